// Tiles in shared memory that TMA fills and warpgroups multiply (wgmma, sums in float32), and how the two sides tell
// each other that a tile is there or free.
//
// A warpgroup computes 64 rows of results. Of those, a thread holds numbers [a][b]: row 16 warp + fragment_row(lane) + 8
// a, column 8 (b / 2) + fragment_column(lane) + b % 2. isa/index.h has the layouts.
#pragma once
#include "fragment.cuh"
#include "isa/sm90.cuh"

namespace flash {

#if defined(__CUDACC__)
__device__ __forceinline__ char *panel_memory() {
  extern __shared__ __align__(1024) char flash_panel_memory[];
  return flash_panel_memory;
}
#else
char *panel_memory();
#endif

// kRows rows of kHeadDim numbers, of 2 bytes or of 1, which stand for D or Dv of them and zeros.
template <int kRows_, int kHeadDim, int kNumberBytes = 2>
struct PanelTile {
  static constexpr int kRows = kRows_, kUnits = kHeadDim * kNumberBytes / 16,
                       kPanelNumbers = kPanelRowBytes / kNumberBytes,
                       kPanels = (kHeadDim + kPanelNumbers - 1) / kPanelNumbers, kPanelBytes = kRows * kPanelRowBytes,
                       kBytes = kPanels * kPanelBytes;
  static_assert(kPanelBytes % kPanelAlignment == 0, "rows come in eights");
  uint32_t address;

  __device__ __forceinline__ uint32_t at(int row, int unit) const {
    return address + static_cast<uint32_t>(panel_offset_bytes(row, unit, kRows));
  }
  // Bytes 32 depth to 32 depth + 31 of the rows from first_row on, to be added up.
  __device__ __forceinline__ uint64_t along_rows(int first_row, int depth) const {
    return matrix_descriptor(address + static_cast<uint32_t>(first_row * kPanelRowBytes),
                             static_cast<uint32_t>(depth / 4 * kPanelBytes + depth % 4 * kDepthBytes), 0,
                             8 * kPanelRowBytes);
  }
  // Rows 16 depth to 16 depth + 15, to be added up, of the columns from `column` on: whole panels, or a part of one.
  __device__ __forceinline__ uint64_t along_columns(int depth, int column = 0) const {
    static_assert(kNumberBytes == 2, "8-bit operands lie along rows");
    return matrix_descriptor(
        address + static_cast<uint32_t>(column / kPanel * kPanelBytes + column % kPanel * kNumberBytes),
        static_cast<uint32_t>(depth * kMmaDepth * kPanelRowBytes), kPanelBytes, 8 * kPanelRowBytes);
  }
};

// Products, under way when these return.
//
// sum = rows of `left` from first_row on times rows of `right`, one for each column of the sum, from first_column on.
template <class T, int kHeadDim, int kLeftRows, int kRightRows, int kColumns, int kNumberBytes>
__device__ __forceinline__ void multiply_tiles(float (&sum)[2][kColumns],
                                               PanelTile<kLeftRows, kHeadDim, kNumberBytes> left, int first_row,
                                               PanelTile<kRightRows, kHeadDim, kNumberBytes> right,
                                               int first_column = 0) {
  static_assert(kColumns * 4 <= kRightRows);
#pragma unroll
  for (int d = 0; d < kHeadDim * kNumberBytes / kDepthBytes; ++d)
    multiply_shared<Along::kRows, Along::kRows>(T{}, sum, left.along_rows(first_row, d),
                                                right.along_rows(first_column, d), d > 0);
}
// sum += weights times rows of `right`, one for each column of the weights.
template <class T, int kHeadDim, int kColumns>
__device__ __forceinline__ void add_weighted_rows(float (&sum)[2][kHeadDim / 4],
                                                  const WeightsInRegisters<2, kColumns / 4> &weights,
                                                  PanelTile<kColumns, kHeadDim> right) {
#pragma unroll
  for (int k = 0; k < kColumns / kMmaDepth; ++k)
    multiply_registers<Along::kColumns>(T{}, sum, weights.a[0][k], right.along_columns(k), true);
}

// Results of one product, rounded to e4m3, as weights of the next: [columns / 32], the columns in packed_column's order.
template <int kColumns>
struct BytesInRegisters {
  uint32_t a[kColumns / 8][4];
};
template <int kColumns>
__device__ __forceinline__ BytesInRegisters<kColumns> packed_e4m3(const float (&x)[2][kColumns]) {
  BytesInRegisters<kColumns> result;
#pragma unroll
  for (int k = 0; k < kColumns / 8; ++k)
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const float *four = x[n % 2] + 8 * k + n / 2 * 4;
      result.a[k][n] = pack_e4m3(four[0], four[1], four[2], four[3]);
    }
  return result;
}
// sum += weights times the columns of `right`, whose numbers lie in packed_column's order.
template <int kHeadDim, int kColumns>
__device__ __forceinline__ void add_weighted_columns(float (&sum)[2][kHeadDim / 4],
                                                     const BytesInRegisters<kColumns / 4> &weights,
                                                     PanelTile<kHeadDim, kColumns, 1> right) {
#pragma unroll
  for (int k = 0; k < kColumns / kDepthBytes; ++k)
    multiply_registers<Along::kRows>(Float8{}, sum, weights.a[k], right.along_rows(0, k), true);
}

// Rows of `from` become columns of `to`, in packed_column's order: the part of warp number `warp` of kWarps.
template <int kWarps, int kRows, int kHeadDim>
__device__ __forceinline__ void transpose_tile(PanelTile<kRows, kHeadDim, 1> from, PanelTile<kHeadDim, kRows, 1> to,
                                               int warp) {
  constexpr int kAtOnce = 2, kAlong = kHeadDim / 16 / kAtOnce,
                kPieces = kRows / 32 * kAlong;  // to hide the loads' delay
  static_assert(kRows % 32 == 0 && kHeadDim % (16 * kAtOnce) == 0);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const MatrixRow place = transposed_matrix(lane);
  const uint32_t which = transposing_bytes(lane);
#pragma unroll 1
  for (int piece = warp; piece < kPieces; piece += kWarps) {
    const int first_row = piece / kAlong * 32, unit = piece % kAlong * kAtOnce;
    uint32_t x[kAtOnce][4];
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) load_matrices_transposed(x[n], from.at(first_row + lane, unit + n));
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      const uint32_t y[4] = {
          permute_bytes(x[n][0], x[n][1], which), permute_bytes(x[n][0], x[n][1], which ^ kOtherBytes),
          permute_bytes(x[n][2], x[n][3], which), permute_bytes(x[n][2], x[n][3], which ^ kOtherBytes)};
      store_matrices(to.at((unit + n) * 16 + place.row, first_row / 16 + place.unit), y);
    }
  }
}

// sum = 64 columns of `left` times kColumns columns of `right`, of both from the given one on; over all rows. With
// `adds` sum +=.
template <class T, int kColumns, bool adds = false, int kRows, int kLeftColumns, int kRightColumns>
__device__ __forceinline__ void multiply_columns(float (&sum)[2][kColumns / 4], PanelTile<kRows, kLeftColumns> left,
                                                 int left_column, PanelTile<kRows, kRightColumns> right, int column) {
#pragma unroll
  for (int k = 0; k < kRows / kMmaDepth; ++k)
    multiply_shared<Along::kColumns, Along::kColumns>(T{}, sum, left.along_columns(k, left_column),
                                                      right.along_columns(k, column), adds || k > 0);
}
// sum = rows of weights times kColumns columns of `right` from the given one on, a row of `right` for each weight.
template <class T, int kColumns, int kRows, int kHeadDim>
__device__ __forceinline__ void multiply_weights(float (&sum)[2][kColumns / 4],
                                                 PanelTile<kWarpgroupRows, kRows> weights,
                                                 PanelTile<kRows, kHeadDim> right, int column) {
#pragma unroll
  for (int k = 0; k < kRows / kMmaDepth; ++k)
    multiply_shared<Along::kRows, Along::kColumns>(T{}, sum, weights.along_rows(0, k), right.along_columns(k, column),
                                                   k > 0);
}

// Rows from first_row on become 0: the part of thread number `thread` of `threads`.
template <int kRows, int kHeadDim, int kNumberBytes>
__device__ __forceinline__ void clear_rows(PanelTile<kRows, kHeadDim, kNumberBytes> tile, int first_row, int thread,
                                           int threads) {
  constexpr int kUnits = tile.kUnits;
#pragma unroll 1
  for (int at = first_row * kUnits + thread; at < kRows * kUnits; at += threads)
    store_16_bytes(tile.at(at / kUnits, at % kUnits), {});
}

// Numbers [a][b] of 64 rows and kColumns * 4 columns, rounded to T, become a row of the tile for each column, 16 numbers
// of it, from first_column on, to a warp. Of two lanes with neighbouring rows one gets both numbers of an even column,
// the other those of the next.
template <class T, class Tile, int kColumns>
__device__ __forceinline__ void put_columns(const float (&from)[2][kColumns], Tile to, int first_column) {
  const int lane = here(static_cast<int>(threadIdx.x)) % kWarp;
  const bool is_odd = fragment_row(lane) % 2 != 0;
#pragma unroll
  for (int a = 0; a < 2; ++a)
#pragma unroll
    for (int b = 0; b < kColumns; b += 2) {
      const float even = from[a][b], odd = from[a][b + 1];
      const float own = is_odd ? odd : even, others = shuffle_xor(is_odd ? even : odd, 4);
      store_4_bytes(to.at(b / 2 * 8 + fragment_column(lane) + (is_odd ? 1 : 0), first_column / kUnit + a) +
                        static_cast<uint32_t>(fragment_row(lane) / 2 * 4),
                    is_odd ? pack<T>(others, own) : pack<T>(own, others));
    }
}

// Where the rows of a tile of the other side lie: boxes of consecutive ones, gathered from the block mask.
template <int kRows>
struct Step {
  static constexpr int kNowhere = -(1 << 30);
  int least, most;              // positions; least is -1 where there are fewer than kRows real rows
  int count;                    // real rows: a prefix of the tile; 0 = no tile, the walk is over
  int head;                     // of those that share keys: which one the rows are of
  int first[kRows / kGranule];  // of a granule; kNowhere: no rows

  // The next tile of the walk, in boxes of `box` rows; rows from `length` on are not real. False if there is none.
  __device__ __forceinline__ bool take(Walk &walk, int box, int length) {
    count = 0, most = -1;
#pragma unroll 1
    for (int row = 0; row < kRows; row += box) {
      int position;
      const bool found = walk.next(box, &position);
      const int left = found ? length - position : 0, real = left < box ? left : box;
#pragma unroll 1
      for (int n = 0; n < box; n += kGranule) first[(row + n) / kGranule] = n < left ? position + n : kNowhere;
      if (!found) continue;
      count += real;
      most = position + real - 1;
    }
    least = count == kRows ? first[0] : -1;
    return count > 0;
  }
  __device__ __forceinline__ int position(int granule, int offset) const { return first[granule] + offset; }
};

// The rows of a step, by one thread; zeros where there are none. `length`: rows of the tensor.
template <int kRows, int kHeadDim, int kNumberBytes>
__device__ __forceinline__ void load_boxes(PanelTile<kRows, kHeadDim, kNumberBytes> to, const TensorMap *map,
                                           uint32_t barrier, const Step<kRows> &step, int box, int length, int head,
                                           int batch) {
  using Tile = PanelTile<kRows, kHeadDim, kNumberBytes>;
  barrier_arrive_expecting(barrier, Tile::kBytes);
#pragma unroll 1
  for (int row = 0; row < kRows; row += box) {
    const int position = step.first[row / kGranule] < 0 ? length : step.first[row / kGranule];
#pragma unroll 1
    for (int panel = 0; panel < Tile::kPanels; ++panel)
      load_box(to.at(row, 8 * panel), map, barrier, panel * Tile::kPanelNumbers, position, head, batch);
  }
}
// kRows consecutive rows, or none, become boxes of global memory, by one thread.
template <class Tile>
__device__ __forceinline__ void store_boxes(const TensorMap *map, Tile from, int first_row, int position, int head,
                                            int batch) {
#pragma unroll 1
  for (int panel = 0; panel < Tile::kPanels; ++panel)
    store_box(map, from.at(first_row, 8 * panel), panel * kPanel, position, head, batch);
  commit_stores();
  wait_for_stores_to_read();
}

// Which tile of a ring of kStages, counted from the first: its place, and the parity of the phase its barriers are in.
template <int kStages>
struct Turn {
  uint32_t number = 0;
  __device__ __forceinline__ int stage() const { return static_cast<int>(number % kStages); }
  __device__ __forceinline__ uint32_t parity() const { return number / kStages % 2; }
  __device__ __forceinline__ void advance() { ++number; }
};

// Two barriers for each tile of a ring: one says that it is full, the other that it is free again.
template <int kStages>
struct Ring {
  static constexpr int kBytes = 2 * 8 * kStages;
  uint32_t address;

  __device__ __forceinline__ uint32_t full(Turn<kStages> turn) const {
    return address + static_cast<uint32_t>(8 * turn.stage());
  }
  __device__ __forceinline__ uint32_t free(Turn<kStages> turn) const {
    return address + static_cast<uint32_t>(8 * (kStages + turn.stage()));
  }
  // By one thread: arrivals that fill a tile, and that free it.
  __device__ __forceinline__ void init(int writers, int readers) const {
    for (int stage = 0; stage < kStages; ++stage) {
      barrier_init(address + static_cast<uint32_t>(8 * stage), writers);
      barrier_init(address + static_cast<uint32_t>(8 * (kStages + stage)), readers);
    }
  }
  __device__ __forceinline__ void wait_full(Turn<kStages> turn) const { wait(full(turn), turn.parity()); }
  // A ring starts free.
  __device__ __forceinline__ void wait_free(Turn<kStages> turn) const { wait(free(turn), turn.parity() ^ 1); }
  __device__ __forceinline__ void release(Turn<kStages> turn) const { barrier_arrive(free(turn)); }

 private:
  static __device__ __forceinline__ void wait(uint32_t barrier, uint32_t parity) {
    while (!barrier_try_wait(barrier, parity)) {
    }
  }
};

}  // namespace flash
