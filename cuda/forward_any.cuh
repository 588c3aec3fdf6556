// Forward on any GPU: o = softmax(s) v with one tile of scores at a time (FlashAttention, Algorithm 1;
// FlashAttention-2's order: queries outside, keys inside, one division at the end). float32 arithmetic, no tensor
// cores.
//
//   q stays in shared memory                              state per query: m (maximum), l (sum), O (sum of p v)
//   for each tile of keys                                 registers
//     s = q k^T                                           k in chunks of the head dim, through one buffer
//     m' = max(m, s);  p = 2^(s - m');  alpha = 2^(m - m')
//     l = alpha l + sum p;  O = alpha O + p v             p through shared memory, v in chunks through k's buffer
//   o = O / l;  lse = m + ln l
//
// A block of threads takes tiles of queries of one head, grid-stride. Launched by src/cuda_calls.cpp through instances.def.
#pragma once
#include "softmax.cuh"
#include "tile.cuh"

namespace flash {

template <int kHeadDim, bool kOptions>
__global__ void __launch_bounds__(forward_tile(kHeadDim).threads(), forward_blocks(kHeadDim))
    forward_any(const __grid_constant__ ForwardParams params) {
  constexpr TileShape kTile = forward_tile(kHeadDim);
  constexpr int kDown = kTile.down, kAcross = kTile.across, kThreads = kTile.threads(), kChunk = kTile.chunk;
  constexpr int kRows = kTile.rows / kDown, kColumns = kTile.columns / kAcross;
  constexpr int kChunks = kHeadDim / kChunk, kFours = kChunk / (4 * kAcross);
  constexpr int kQStride = padded(kHeadDim), kStride = padded(kChunk), kWeights = weights_stride(kTile);
  float *const q_rows = shared_memory(), *const kv_rows = q_rows + kTile.rows * kQStride,
               *const weights = kv_rows + kTile.columns * kStride;

  const Attention &x = params.attention;
  const int d_chunks = chunks_of<kChunks == 1, kChunk>(x.D), dv_chunks = chunks_of<kChunks == 1, kChunk>(x.Dv);
  const int across = static_cast<int>(threadIdx.x) % kAcross, down = static_cast<int>(threadIdx.x) / kAcross;
  float *const own_weights = weights + down * kWeights;

  for (int64_t index = blockIdx.x; index < params.tiles.tasks; index += gridDim.x) {
    const Task task = task_of(params.tiles, index);
    const Head head = head_of<kOptions>(x, sequence_of(x, task.b), task.b, task.head);
    const int end = static_cast<int>(smaller(task.begin + params.tiles.step, x.Lq));
    const Interval queries = {task.begin, smaller(end, head.sequence.q_len)};  // those that are real
    const auto row_of = [&](int a) { return row_at<kDown>(down + a * kDown, task.begin, end); };

    const Source q = source_of(x.q, task.b, task.head, head.sequence.q_len, x.D);
    __syncthreads();  // the tile before has been read
#pragma unroll 1
    for (int c = 0; c < d_chunks * kChunk; c += kChunk)
      load_rows<kTile.rows, kDown, kChunk, kThreads>(q_rows + c, kQStride, q, consecutive<kTile.rows>(task.begin, end),
                                                     c);

    RowSums<kRows, kAcross> sums;
    float4 o[kChunks][kRows][kFours] = {};
    const bool is_whole = queries.end - queries.begin == kTile.rows;
    Walk walk(x.by_row, task.b, task.head, task.begin, keys_of_any(x.window, head.sequence, queries));
    for (Granules<kTile.columns> keys; walk.next(&keys);) {
      // Here and below, anew for each tile: kept, it would take registers from the products.
      const Source k = source_of(x.k, here(task.b), head.kv_head, head.sequence.kv_len, x.D);
      float s[kRows][kColumns] = {};
#pragma unroll 1
      for (int c = 0; c < d_chunks * kChunk; c += kChunk) {
        __syncthreads();
        load_rows<kTile.columns, kAcross, kChunk, kThreads>(kv_rows, kStride, k, keys, c);
        __syncthreads();
        const int depth = static_cast<int>(smaller(kChunk, round_up(x.D - c, 4)));
        multiply_rows(s, q_rows + down * kQStride + c, kDown * kQStride, kv_rows + across * kStride, kAcross * kStride,
                      depth);
      }
      const Band band = band_here(x.window, head.sequence);
      const int same_across = here(across) % kAcross;  // says about where it ends: slots become constants
      const auto part = part_of<Side::kQueries, kRows, kColumns>(
          row_of, [&](int b) { return keys.position(slot_of<kAcross>(same_across + b * kAcross)); });
      const bool sees_all = is_whole && all_see_all(band, task.begin, end - 1, keys.least(), keys.most());
      apply_rules<float, kOptions>(x, head, band, part, sees_all, s);

      float alpha[kRows];
      const Source v = source_of(x.v, here(task.b), head.kv_head, head.sequence.kv_len, x.Dv);
      sums.add(s, x.log2_scale, alpha);
      if constexpr (kOptions) drop_weights(x, head, part, s);
#pragma unroll
      for (int a = 0; a < kRows; ++a)
#pragma unroll
        for (int b = 0; b < kColumns; ++b) own_weights[a * kDown * kWeights + across + b * kAcross] = s[a][b];

#pragma unroll 1
      for (int c = 0; c < dv_chunks; ++c) {
        __syncthreads();
        load_rows<kTile.columns, kAcross, kChunk, kThreads>(kv_rows, kStride, v, keys, c * kChunk);
        __syncthreads();
        // First the sum of a few keys, then O: from its largest summand on O is large, and each addition to it rounds.
#pragma unroll 1
        for (int first = 0; first < kTile.columns; first += kSummedKeys) {
          float4 pv[kRows][kFours] = {};
          multiply_weights<kSummedKeys, kAcross>(pv, own_weights + first, kDown * kWeights,
                                                 kv_rows + first * kStride + 4 * across, kStride);
          visit_at(o, c, [&](auto &sum) {
#pragma unroll
            for (int a = 0; a < kRows; ++a)
#pragma unroll
              for (int f = 0; f < kFours; ++f)
                sum[a][f] = scaled_and_added(sum[a][f], first == 0 ? alpha[a] : 1, pv[a][f]);
          });
        }
      }
    }

    const Task same = task_of(params.tiles, here(index));  // anew: kept, it would take registers from the loop
    const float sink = sink_of(x, same.head);
    float scale[kRows];
#pragma unroll
    for (int a = 0; a < kRows; ++a) {
      const float factor = sums.finish(a, sink);
      const bool is_empty = row_of(a) >= head.sequence.q_len || sums.sum[a] == 0;  // past q_len, or sees nothing
      scale[a] = is_empty ? 0 : factor * x.keep_scale / sums.sum[a];
      const LseView &lse = params.lse;
      if (lse.data != nullptr && across == 0 && row_of(a) >= 0)
        static_cast<float *>(lse.data)[same.b * lse.batch + same.head * lse.head + row_of(a) * lse.row] =
            is_empty ? -infinity() : sums.lse(x, a);
    }
#pragma unroll 1
    for (int c = 0; c < dv_chunks; ++c) {
      __syncthreads();
      visit_at(o, c, [&](auto &sum) {
#pragma unroll
        for (int a = 0; a < kRows; ++a)
#pragma unroll
          for (int f = 0; f < kFours; ++f)
            // By selection: where a sink is far above all scores the factor is 0, and 0 * inf would be NaN.
            *reinterpret_cast<float4 *>(kv_rows + (down + a * kDown) * kStride + 4 * (across + f * kAcross)) =
                scale[a] == 0 ? float4{} : scaled(sum[a][f], scale[a]);
      });
      __syncthreads();
      store_rows<kTile.rows, kDown, kChunk, kThreads>(kv_rows, kStride, params.o, same.b, same.head,
                                                      consecutive<kTile.rows>(same.begin, end), end, c * kChunk, x.Dv);
    }
  }
}

}  // namespace flash
