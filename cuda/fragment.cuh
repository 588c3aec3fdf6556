// Tiles of 16-bit rows in shared memory, and products of them on tensor cores (mma.m16n8k16, sums in float32).
//
// Rows arrive by asynchronous copies of 16 bytes and lie swizzled, so that ldmatrix reads them without bank conflicts.
// A warp computes kRowTiles times 16 rows of results. Of those, a lane holds numbers [a][b]: with 16-row tile a / 2,
// row fragment_row(lane) + 8 (a % 2) of it, column 8 (b / 2) + fragment_column(lane) + b % 2. isa/index.h has the
// layouts.
#pragma once
#include "isa/index.h"
#include "tile.cuh"

namespace flash {

// Rows of kHeadDim numbers, which stand for D or Dv of them and zeros.
template <int kHeadDim>
struct SharedTile {
  static constexpr int kUnits = kHeadDim / kUnit, kRowBytes = kHeadDim * 2;
  uint32_t address;

  __device__ __forceinline__ uint32_t at(int row, int unit) const {
    return address + static_cast<uint32_t>(swizzled_offset_bytes(row, unit, kUnits));
  }
};

// source_of for 16-bit types, whose rows move in units.
__device__ __forceinline__ Source units_of(const Rows &rows, int64_t b, int head, int64_t length, int columns) {
  return {static_cast<const char *>(rows.view.data) + (b * rows.view.batch + head * rows.view.head) * 2,
          rows.view.row * 2,
          static_cast<int>(length),
          columns,
          rows.dtype,
          rows.aligned >= kUnit};
}

// Unit `unit` of a row of 16-bit numbers at `row`, for rows that are not made of aligned units; zeros past `columns`.
__device__ __forceinline__ uint4 gather_unit(const char *row, int unit, int columns) {
  uint32_t word[4];
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    const int c = unit * kUnit + 2 * n;
    const auto *from = reinterpret_cast<const uint16_t *>(row) + c;
    word[n] = (c < columns ? from[0] : 0u) | (c + 1 < columns ? uint32_t{from[1]} << 16 : 0u);
  }
  return {word[0], word[1], word[2], word[3]};
}

// Row n of the tile becomes the row at position_of(n / 16, n % 16), zeros where that is negative or past the length.
// The copies are on their way when this returns.
template <int kRows, int kHeadDim, int kThreads, class PositionOf>
__device__ __forceinline__ void load_tile(SharedTile<kHeadDim> to, const Source &from, PositionOf position_of) {
  constexpr int kUnits = kHeadDim / kUnit;
  // A power of two, so that n / 16 is a constant in each step.
  constexpr int kAtOnce = kThreads >= 16 * kUnits ? 16 : kThreads >= 8 * kUnits ? 8 : 4;
  static_assert(kThreads >= kAtOnce * kUnits && kRows % kAtOnce == 0);
  const int thread = here(static_cast<int>(threadIdx.x)), unit = thread % kUnits, row_of_thread = thread / kUnits;
  if (kThreads > kAtOnce * kUnits && row_of_thread >= kAtOnce) return;
  const bool has_unit = unit * kUnit < from.columns;
  const auto load = [&](int first, auto copy) {
    const int position = position_of(first / kGranule, first % kGranule + row_of_thread);
    const bool is_there = has_unit && static_cast<unsigned>(position) < static_cast<unsigned>(from.length);
    copy(to.at(first + row_of_thread, unit), from.data + (is_there ? position * from.row_bytes : 0), is_there);
  };
  if (from.is_vector) {
#pragma unroll
    for (int first = 0; first < kRows; first += kAtOnce)
      load(first, [&](uint32_t place, const char *row, bool is_there) {
        copy_16_bytes(place, row + (is_there ? unit * 16 : 0), is_there);
      });
  } else {
#pragma unroll 1
    for (int first = 0; first < kRows; first += kAtOnce)
      load(first, [&](uint32_t place, const char *row, bool is_there) {
        store_16_bytes(place, is_there ? gather_unit(row, unit, from.columns) : uint4{});
      });
  }
}

// sum += rows of `left` from first_row on times rows of `right`: numbers [a][b] of kRowTiles x 16 rows and one column
// for each row of `right`.
template <class T, int kHeadDim, int kRows, int kColumns>
__device__ __forceinline__ void multiply_tiles(float (&sum)[kRows][kColumns], SharedTile<kHeadDim> left, int first_row,
                                               SharedTile<kHeadDim> right) {
  constexpr int kRowTiles = kRows / 2;
  const int lane = here(static_cast<int>(threadIdx.x)) % kWarp;
  const MatrixRow of_left = row_major_matrix(lane), of_right = column_major_matrix(lane);
  const uint32_t left_place = left.at(first_row + of_left.row, of_left.unit),
                 right_place = right.at(of_right.row, of_right.unit);
  constexpr auto kBlockBytes = static_cast<uint32_t>(kMmaRows * SharedTile<kHeadDim>::kRowBytes);
#pragma unroll
  for (int d = 0; d < kHeadDim / kMmaDepth; ++d) {
    uint32_t a[kRowTiles][4];
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) load_matrices(a[m], swizzled_step(left_place, 2 * d) + m * kBlockBytes);
#pragma unroll
    for (int n = 0; n < kColumns / 4; ++n) {
      uint32_t b[4];
      load_matrices(b, swizzled_step(right_place, 2 * d) + n * kBlockBytes);
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        float (&top)[kColumns] = sum[2 * m], (&bottom)[kColumns] = sum[2 * m + 1];
        mma<T>(top[4 * n], top[4 * n + 1], bottom[4 * n], bottom[4 * n + 1], a[m], b[0], b[1]);
        mma<T>(top[4 * n + 2], top[4 * n + 3], bottom[4 * n + 2], bottom[4 * n + 3], a[m], b[2], b[3]);
      }
    }
  }
}

// Where several warps share the columns of a result, warp `part` of kParts has every kParts-th 16 of them: number
// [a][b] of its part lies in this unit of the row.
template <int kParts>
__device__ __forceinline__ constexpr int unit_of(int part, int b) {
  return 2 * (part + kParts * (b / 4)) + b / 2 % 2;
}

// Results of one product as weights of the next: [16-row tile][columns / 16].
template <int kRows, int kColumns>
struct WeightsInRegisters {
  static constexpr int kDepth = kColumns * 4;
  uint32_t a[kRows / 2][kColumns / 4][4];

  __device__ __forceinline__ void load(uint32_t (&to)[4], int m, int k) const {
#pragma unroll
    for (int n = 0; n < 4; ++n) to[n] = a[m][k][n];
  }
};
template <class T, int kRows, int kColumns>
__device__ __forceinline__ WeightsInRegisters<kRows, kColumns> packed(const float (&x)[kRows][kColumns]) {
  WeightsInRegisters<kRows, kColumns> result;
#pragma unroll
  for (int m = 0; m < kRows / 2; ++m)
#pragma unroll
    for (int k = 0; k < kColumns / 4; ++k) {
      const float *top = x[2 * m] + 4 * k, *bottom = x[2 * m + 1] + 4 * k;
      result.a[m][k][0] = pack<T>(top[0], top[1]), result.a[m][k][1] = pack<T>(bottom[0], bottom[1]);
      result.a[m][k][2] = pack<T>(top[2], top[3]), result.a[m][k][3] = pack<T>(bottom[2], bottom[3]);
    }
  return result;
}

// Rows of a tile as weights, from first_row on, or its columns: of both the first kDepth_ numbers.
template <int kDepth_, int kHeadDim>
struct WeightsInRows {
  static constexpr int kDepth = kDepth_;
  uint32_t place;

  __device__ __forceinline__ WeightsInRows(SharedTile<kHeadDim> tile, int first_row) {
    const MatrixRow of = row_major_matrix(here(static_cast<int>(threadIdx.x)) % kWarp);
    place = tile.at(first_row + of.row, of.unit);
  }
  __device__ __forceinline__ void load(uint32_t (&to)[4], int m, int k) const {
    load_matrices(to,
                  swizzled_step(place, 2 * k) + static_cast<uint32_t>(m * kMmaRows * SharedTile<kHeadDim>::kRowBytes));
  }
};
template <int kDepth_, int kHeadDim>
struct WeightsInColumns {
  static constexpr int kDepth = kDepth_;
  uint32_t place;

  __device__ __forceinline__ WeightsInColumns(SharedTile<kHeadDim> tile, int first_column) {
    const MatrixRow of = column_major_matrix(here(static_cast<int>(threadIdx.x)) % kWarp);
    place = tile.at(of.row, first_column / kUnit + of.unit);
  }
  __device__ __forceinline__ void load(uint32_t (&to)[4], int m, int k) const {
    load_matrices_transposed(
        to, swizzled_step(place, 2 * m) + static_cast<uint32_t>(k * kMmaDepth * SharedTile<kHeadDim>::kRowBytes));
  }
};

// sum += weights times rows of `right`, one for each column of the weights; of the result's columns the warp's part.
template <class T, int kParts = 1, int kHeadDim, int kRows, int kColumns, class Weights>
__device__ __forceinline__ void add_weighted_rows(float (&sum)[kRows][kColumns], const Weights &weights,
                                                  SharedTile<kHeadDim> right, int part = 0) {
  static_assert(kColumns * 4 * kParts == kHeadDim);
  constexpr int kRowTiles = kRows / 2;
  const MatrixRow of_right = row_major_matrix(here(static_cast<int>(threadIdx.x)) % kWarp);
  const uint32_t right_place = right.at(of_right.row, 2 * part + of_right.unit);
  constexpr auto kBlockBytes = static_cast<uint32_t>(kMmaDepth * SharedTile<kHeadDim>::kRowBytes);
#pragma unroll
  for (int k = 0; k < Weights::kDepth / kMmaDepth; ++k) {
    uint32_t a[kRowTiles][4];
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) weights.load(a[m], m, k);
#pragma unroll
    for (int n = 0; n < kColumns / 4; ++n) {
      uint32_t b[4];
      load_matrices_transposed(b, swizzled_step(right_place, 2 * kParts * n) + k * kBlockBytes);
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        float (&top)[kColumns] = sum[2 * m], (&bottom)[kColumns] = sum[2 * m + 1];
        mma<T>(top[4 * n], top[4 * n + 1], bottom[4 * n], bottom[4 * n + 1], a[m], b[0], b[1]);
        mma<T>(top[4 * n + 2], top[4 * n + 3], bottom[4 * n + 2], bottom[4 * n + 3], a[m], b[2], b[3]);
      }
    }
  }
}

// ---- The way back ---------------------------------------------------------------------------------------------------

// Rows times their scale. By selection: 0 stands for nothing, even where the number is not finite.
template <int kRows, int kColumns>
__device__ __forceinline__ void scale_rows(float (&x)[kRows][kColumns], const float (&scale)[kRows]) {
#pragma unroll
  for (int a = 0; a < kRows; ++a)
#pragma unroll
    for (int b = 0; b < kColumns; ++b) x[a][b] = scale[a] == 0 ? 0 : x[a][b] * scale[a];
}

// Numbers [a][b], rounded to T, become rows of the tile from first_row on, in unit unit_at(b).
template <class T, class Tile, int kRows, int kColumns, class UnitAt>
__device__ __forceinline__ void put_rows(const float (&from)[kRows][kColumns], Tile to, int first_row, UnitAt unit_at) {
  const int lane = here(static_cast<int>(threadIdx.x)) % kWarp;
#pragma unroll
  for (int a = 0; a < kRows; ++a)
#pragma unroll
    for (int b = 0; b < kColumns; b += 2)
      store_4_bytes(to.at(first_row + a / 2 * kMmaRows + a % 2 * 8 + fragment_row(lane), unit_at(b)) +
                        static_cast<uint32_t>(fragment_column(lane)) * 2,
                    pack<T>(from[a][b], from[a][b + 1]));
}

// kRows rows of the tile from first_row on become the rows at position_of(row); nothing where that is negative. Shared
// out among kThreads threads, of which this is number `thread`.
template <int kRows, int kThreads, class Tile, class PositionOf>
__device__ __forceinline__ void send_rows(Tile from, int first_row, int thread, const Rows &to, int64_t b, int head,
                                          int columns, PositionOf position_of) {
  constexpr int kUnits = Tile::kUnits;
  const RowsView &view = to.view;
  char *const head_of_rows = static_cast<char *>(view.data) + (b * view.batch + head * view.head) * 2;
#pragma unroll 1
  for (int at = thread; at < kRows * kUnits; at += kThreads) {
    const int row = first_row + at / kUnits, unit = at % kUnits, position = position_of(row);
    if (position < 0 || unit * kUnit >= columns) continue;
    const uint4 x = load_16_bytes(from.at(row, unit));
    char *const place = head_of_rows + (position * view.row + unit * kUnit) * 2;
    if (to.aligned >= kUnit) {
      *reinterpret_cast<uint4 *>(place) = x;
    } else {
      const uint32_t word[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
      for (int c = 0; c < kUnit; ++c)
        if (unit * kUnit + c < columns)
          reinterpret_cast<uint16_t *>(place)[c] = static_cast<uint16_t>(word[c / 2] >> (c % 2 * 16));
    }
  }
}

// Numbers [a][b] times scale[a], rounded to T, become the rows at position_of(row) for the rows of the tile from
// first_row on, one warp at a time. The tile's rows are overwritten on the way.
template <class T, int kHeadDim, int kRows, class PositionOf>
__device__ __forceinline__ void store_tile(float (&from)[kRows][kHeadDim / 4], const float (&scale)[kRows],
                                           SharedTile<kHeadDim> by_way_of, int first_row, const Rows &to, int64_t b,
                                           int head, int columns, PositionOf position_of) {
  scale_rows(from, scale);
  put_rows<T>(from, by_way_of, first_row, [](int n) { return n / 2; });
  __syncwarp();
  send_rows<kRows * 8, kWarp>(by_way_of, first_row, here(static_cast<int>(threadIdx.x)) % kWarp, to, b, head, columns,
                              position_of);
}

// 16 x 8 numbers of dq, of which this lane holds c0 to c3, are added to the sums in memory, 32 neighbours at a time:
// those that the lanes hold of one register, whatever rows and columns they are of. `to`: the lane's place.
__device__ __forceinline__ void add_fragment(float *to, float c0, float c1, float c2, float c3) {
  add_in_memory(to, c0);
  add_in_memory(to + kWarp, c1);
  add_in_memory(to + 2 * kWarp, c2);
  add_in_memory(to + 3 * kWarp, c3);
}

}  // namespace flash
