// Tiles: rows of q, k, v and do on their way through shared memory, and the two products between them.
//
// A block of threads is a grid of `down` x `across`; thread (y, x) owns the rows y + down * a and the columns
// x + across * b of a tile of scores. Which position a row of shared memory holds is chosen so that rows 2n and 2n + 1
// of a thread are neighbours, as its columns are: one draw of the dropout generator serves such a square of 2 x 2.
#pragma once
#include "configs.h"
#include "number.cuh"
#include "work.cuh"

namespace flash {

// The slot of the tile that row (or column) n of shared memory holds, for `kThreads` threads along it.
template <int kThreads>
FLASH_INLINE int slot_of(int n) {
  const auto row = static_cast<unsigned>(n);
  return static_cast<int>(row / (2 * kThreads) * (2 * kThreads) + 2 * (row % kThreads) + row / kThreads % 2);
}

// visit(sums[index]), where the compiler knows which element that is in each case: registers have no index at run time.
template <int n = 0, class Sum, int kCount, class Visit>
__device__ __forceinline__ void visit_at(Sum (&sums)[kCount], int index, Visit &&visit) {
  if (index == n) visit(sums[n]);
  if constexpr (n + 1 < kCount) visit_at<n + 1>(sums, index, visit);
}

// Chunks that `columns` numbers of a row fill. Where the kernel knows, the loop over them is none.
template <bool kIsOne, int kChunk>
FLASH_INLINE int chunks_of(int columns) {
  return kIsOne ? 1 : static_cast<int>(ceil_div(columns, kChunk));
}

#if defined(__CUDACC__)
__device__ __forceinline__ float *shared_memory() {
  extern __shared__ __align__(128) float flash_shared_memory[];
  return flash_shared_memory;
}
#else
float *shared_memory();
#endif

__device__ __forceinline__ float4 load_four(const float *from) { return *reinterpret_cast<const float4 *>(from); }
__device__ __forceinline__ void load_numbers(float (&to)[4], const float *from) {
  const float4 x = load_four(from);
  to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
}
__device__ __forceinline__ void load_numbers(float (&to)[2], const float *from) {
  const float2 x = *reinterpret_cast<const float2 *>(from);
  to[0] = x.x, to[1] = x.y;
}

__device__ __forceinline__ float4 scaled(float4 x, float factor) {
  return {x.x * factor, x.y * factor, x.z * factor, x.w * factor};
}
__device__ __forceinline__ float4 scaled_and_added(float4 x, float factor, float4 y) {
  return {fmaf(x.x, factor, y.x), fmaf(x.y, factor, y.y), fmaf(x.z, factor, y.z), fmaf(x.w, factor, y.w)};
}

// The rows of one head of one sequence.
struct Source {
  const char *data;
  int64_t row_bytes;  // stride
  int length;         // rows from here on are never read: zeros stand for them
  int columns;        // D or Dv
  DType dtype;
  bool is_vector;
};
__device__ __forceinline__ Source source_of(const Rows &rows, int64_t b, int head, int64_t length, int columns) {
  const int64_t bytes = size_bytes(rows.dtype);
  return {static_cast<const char *>(rows.view.data) + (b * rows.view.batch + head * rows.view.head) * bytes,
          rows.view.row * bytes,
          static_cast<int>(length),
          columns,
          rows.dtype,
          rows.aligned >= 4};
}

// to[n][c] = number begin + c of the row at the tile's slot_of(n), for c < kChunk; zeros where there is none. The rows
// of `to` are `stride` apart.
template <int kCount, int kSlotThreads, int kChunk, int kThreads>
__device__ __forceinline__ void load_rows(float *to, int stride, const Source &from, const Granules<kCount> &granules,
                                          int begin) {
  constexpr int kFours = kChunk / 4, kRowsAtOnce = kThreads / kFours, kSteps = kCount / kRowsAtOnce;
  // Loads that a thread waits for together: 512 of a block cover the latency of memory, more take registers.
  constexpr int kInFlight = kSteps < 512 / kThreads ? kSteps : 512 / kThreads;
  static_assert(kCount % kRowsAtOnce == 0 && kSteps % kInFlight == 0, "every thread loads the same number of fours");
  const int thread =
      static_cast<int>(threadIdx.x % kThreads);  // says that it is below kThreads: slots become constants
  const bool is_wide = from.dtype == DType::kFloat32;
  const auto is_there = [&](int position, int column) {
    return static_cast<unsigned>(position) < static_cast<unsigned>(from.length) && column < from.columns;
  };
  if (from.is_vector) {
    const int c = thread % kFours * 4;
    float *const own = to + thread / kFours * stride + c;
    const char *const column = from.data + int64_t{begin + c} * (is_wide ? 4 : 2);
#pragma unroll 1
    for (int step = 0; step < kSteps; step += kInFlight) {
      RawFour raw[kInFlight];
#pragma unroll
      for (int u = 0; u < kInFlight; ++u) {
        const int n = thread / kFours + (step + u) * kRowsAtOnce;
        const int position = granules.position(slot_of<kSlotThreads>(n));
        raw[u] = {};
        if (is_there(position, begin + c)) raw[u] = load_raw(column + position * from.row_bytes, is_wide);
      }
      const auto store = [&](auto widened) {
#pragma unroll
        for (int u = 0; u < kInFlight; ++u)
          *reinterpret_cast<float4 *>(own + (step + u) * kRowsAtOnce * stride) = widened(raw[u]);
      };
      if (is_wide)
        store(widen_raw<float>);
      else if (from.dtype == DType::kBfloat16)
        store(widen_raw<Bfloat>);
      else
        store(widen_raw<Half>);
    }
  } else {
#pragma unroll 1
    for (int at = thread; at < kCount * kChunk; at += kThreads) {
      const int n = at / kChunk, c = at % kChunk, position = granules.position(slot_of<kSlotThreads>(n));
      to[n * stride + c] = is_there(position, begin + c)
                               ? read_number(from.data + position * from.row_bytes, from.dtype, begin + c)
                               : 0.f;
    }
  }
}

// sum[a][b] += left row a . right row b over `depth` numbers, a multiple of 4. `left` and `right` are the thread's
// first rows; its next ones are left_step and right_step further.
template <int kRows, int kColumns>
__device__ __forceinline__ void multiply_rows(float (&sum)[kRows][kColumns], const float *left, int left_step,
                                              const float *right, int right_step, int depth) {
#pragma unroll 1
  for (int d = 0; d < depth; d += 4) {
    float4 x[kRows];
#pragma unroll
    for (int a = 0; a < kRows; ++a) x[a] = load_four(left + a * left_step + d);
#pragma unroll
    for (int b = 0; b < kColumns; ++b) {
      const float4 y = load_four(right + b * right_step + d);
#pragma unroll
      for (int a = 0; a < kRows; ++a) {
        sum[a][b] = fmaf(x[a].x, y.x, sum[a][b]);
        sum[a][b] = fmaf(x[a].y, y.y, sum[a][b]);
        sum[a][b] = fmaf(x[a].z, y.z, sum[a][b]);
        sum[a][b] = fmaf(x[a].w, y.w, sum[a][b]);
      }
    }
  }
}

// sum[a][f] += sum over n < kCount of weights[a][n] * rows[n][four numbers at f * 4 * kAcross]. `weights` is the
// thread's first row of probabilities, its next ones are weights_step further; `rows` starts at the thread's first
// column.
template <int kCount, int kAcross, int kRows, int kFours>
__device__ __forceinline__ void multiply_weights(float4 (&sum)[kRows][kFours], const float *weights, int weights_step,
                                                 const float *rows, int stride) {
  // Weights of a row that are read at once: with 64 sums a thread, four of each row would take too many registers.
  constexpr int kTogether = kRows * kFours < 16 ? 4 : 2;
#pragma unroll 1
  for (int n = 0; n < kCount; n += kTogether) {
    float w[kRows][kTogether];
#pragma unroll
    for (int a = 0; a < kRows; ++a) load_numbers(w[a], weights + a * weights_step + n);
#pragma unroll
    for (int u = 0; u < kTogether; ++u)
#pragma unroll
      for (int f = 0; f < kFours; ++f) {
        const float4 y = load_four(rows + (n + u) * stride + f * 4 * kAcross);
#pragma unroll
        for (int a = 0; a < kRows; ++a) {
          sum[a][f].x = fmaf(w[a][u], y.x, sum[a][f].x);
          sum[a][f].y = fmaf(w[a][u], y.y, sum[a][f].y);
          sum[a][f].z = fmaf(w[a][u], y.z, sum[a][f].z);
          sum[a][f].w = fmaf(w[a][u], y.w, sum[a][f].w);
        }
      }
  }
}

// The position of row n of a tile of rows [begin, end); -1 = nothing there.
template <int kDown>
FLASH_INLINE int row_at(int n, int begin, int end) {
  const int position = begin + slot_of<kDown>(n);
  return position < end ? position : -1;
}

// The way back: number begin + c of the row at the tile's slot_of(n) becomes from[n][c], in the type of memory, for
// rows before `end`.
template <int kCount, int kSlotThreads, int kChunk, int kThreads>
__device__ __forceinline__ void store_rows(const float *from, int stride, const Rows &to, int64_t b, int head,
                                           const Granules<kCount> &granules, int end, int begin, int columns) {
  const RowsView &view = to.view;
#pragma unroll 1
  for (int at = static_cast<int>(threadIdx.x); at < kCount * kChunk / 4; at += kThreads) {
    const int n = at / (kChunk / 4), c = at % (kChunk / 4) * 4, position = granules.position(slot_of<kSlotThreads>(n));
    if (position < 0 || position >= end || begin + c >= columns) continue;
    const int64_t index = b * view.batch + head * view.head + position * view.row + begin + c;
    const float4 x = load_four(from + n * stride + c);
    if (to.aligned >= 4) {
      char *const four = static_cast<char *>(view.data) + index * size_bytes(to.dtype);
      if (to.dtype == DType::kFloat32)
        store_narrow<float>(x, four);
      else if (to.dtype == DType::kBfloat16)
        store_narrow<Bfloat>(x, four);
      else
        store_narrow<Half>(x, four);
    } else {
      write_number(x.x, view.data, to.dtype, index);
      if (begin + c + 1 < columns) write_number(x.y, view.data, to.dtype, index + 1);
      if (begin + c + 2 < columns) write_number(x.z, view.data, to.dtype, index + 2);
      if (begin + c + 3 < columns) write_number(x.w, view.data, to.dtype, index + 3);
    }
  }
}

}  // namespace flash
