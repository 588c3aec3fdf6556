// Backward on any GPU: recomputes the scores tile by tile and stores nothing of size Lq x Lk (FlashAttention, Algorithm
// 4; the formulas are in gradient.cuh). float32 arithmetic, no tensor cores.
//
// One kernel prepares delta and lse2. One takes tiles of keys and meets all queries of all heads that read them, for dk
// and dv; one takes tiles of queries and meets all keys, for dq; one takes tiles of the bias. Each sum belongs to one
// thread and is taken in a fixed order: without atomics, at the price of recomputing s and dp for dq and for dbias,
// results have the same bits on every run. Launched by src/cuda_calls.cpp through instances.def.
#pragma once
#include "bias.cuh"
#include "gradient.cuh"
#include "reduce.cuh"
#include "tile.cuh"

namespace flash {

// ---- delta and lse2: one warp per query -----------------------------------------------------------------------------

template <int, bool>
__global__ void __launch_bounds__(kPlainThreads, 1) backward_prepare_any(const __grid_constant__ PrepareParams params) {
  const Attention &x = params.attention;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  constexpr int kWarps = kPlainThreads / kWarp;
  for (int64_t index = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp; index < params.tasks;
       index += int64_t{gridDim.x} * kWarps) {
    const int64_t i = index % x.Lq, b = index / x.Lq / x.Hq;
    const int h = static_cast<int>(index / x.Lq % x.Hq);
    if (params.dq_sums.data != nullptr) {  // as many numbers as a row has; the last row also those of what is no row
      const int64_t end = i + 1 == x.Lq ? params.dq_sums.rows : i + 1;
      float *const head = params.dq_sums.data + index / x.Lq * params.dq_sums.rows * params.dq_sums.columns;
#pragma unroll 1
      for (int64_t c = i * params.dq_sums.columns + lane; c < end * params.dq_sums.columns; c += kWarp) head[c] = 0;
    }
    if (params.dq_turns.done != nullptr && i % params.dq_turns.queries == 0 && lane == 0)
      params.dq_turns.done[index / x.Lq * params.dq_turns.of_head(x.Lq) + i / params.dq_turns.queries] = 0;
    float lse = -infinity();
    if (i < clamp(read_or(x.q_lens, b, x.Lq), 0, x.Lq))
      lse =
          static_cast<const float *>(params.lse.data)[b * params.lse.batch + h * params.lse.head + i * params.lse.row];
    float delta = 0;
    if (lse != -infinity()) {
      const RowsView &dout = params.dout.view, &o = params.o.view;
      const int64_t dout_row = b * dout.batch + h * dout.head + i * dout.row,
                    o_row = b * o.batch + h * o.head + i * o.row;
#pragma unroll 1
      for (int c = lane; c < x.Dv; c += kWarp) {
        // By selection: where o is 0 because the row sees nothing but a sink, do may be anything.
        const float number = read_number(o.data, params.o.dtype, o_row + c);
        if (number != 0) delta = fmaf(read_number(dout.data, params.dout.dtype, dout_row + c), number, delta);
      }
    }
    delta = sum_of_lanes<kWarp>(delta);
    if (lane != 0) continue;
    const LseView &dlse = params.dlse;
    if (lse != -infinity() && dlse.data != nullptr)
      delta -= static_cast<const float *>(dlse.data)[b * dlse.batch + h * dlse.head + i * dlse.row];
    const float low = lse * x.log2_of_nat_low, lse2 = fmaf(lse, kLog2E, low);
    params.facts.delta[index] = delta;
    params.facts.lse2[index] = lse == -infinity() ? infinity() : lse2;
    params.facts.lse2_low[index] = lse == -infinity() ? 0 : fmaf(lse, kLog2E, -lse2) + low;
  }
}

// ---- One pair of tiles ----------------------------------------------------------------------------------------------

// The threads of a block and its shared memory; kOwn is the side of the score matrix that lies along the tile's rows.
template <int kHeadDim, Side kOwn, bool kOptions>
struct Backward {
  static constexpr TileShape kTile = backward_tile(kHeadDim);
  static constexpr int kDown = kTile.down, kAcross = kTile.across, kThreads = kTile.threads(), kChunk = kTile.chunk;
  static constexpr int kRows = kTile.rows / kDown, kColumns = kTile.columns / kAcross;
  static constexpr int kChunks = kHeadDim <= kChunk ? 1 : kHeadDim / kChunk, kFours = kChunk / (4 * kAcross);
  static constexpr int kStride = padded(kChunk), kWeights = weights_stride(kTile);
  static constexpr bool kKeepsOwn = keeps_own_rows(kHeadDim);
  using Own = Granules<kTile.rows>;
  using Other = Granules<kTile.columns>;
  using Scores = float[kRows][kColumns];
  using Sum = float4[kChunks][kRows][kFours];

  const Attention &x;
  const QueryFacts &facts;
  int across, down;
  float *own_rows[2];  // of q and do (k and v); both the same buffer unless kKeepsOwn
  float *other_rows, *weights;

  __device__ __forceinline__ Backward(const Attention &attention, const QueryFacts &query_facts)
      : x(attention), facts(query_facts) {
    across = static_cast<int>(threadIdx.x) % kAcross, down = static_cast<int>(threadIdx.x) / kAcross;
    own_rows[0] = shared_memory();
    own_rows[1] = own_rows[0] + (kKeepsOwn ? kTile.rows * kStride : 0);
    other_rows = own_rows[1] + kTile.rows * kStride;
    weights = other_rows + kTile.columns * kStride;
  }

  __device__ __forceinline__ void load_own(int which, const Source &from, const Own &own, int begin) const {
    load_rows<kTile.rows, kDown, kChunk, kThreads>(own_rows[which], kStride, from, own, begin);
  }
  __device__ __forceinline__ void load_other(const Source &from, const Other &other, int begin) const {
    load_rows<kTile.columns, kAcross, kChunk, kThreads>(other_rows, kStride, from, other, begin);
  }

  // product = rows of the own side times rows of the other side. The other side's last chunk stays in shared memory.
  __device__ __forceinline__ void multiply(int which, const Source &own_from, const Own &own, const Source &other_from,
                                           const Other &other, Scores &product) const {
#pragma unroll
    for (int a = 0; a < kRows; ++a)
#pragma unroll
      for (int b = 0; b < kColumns; ++b) product[a][b] = 0;
#pragma unroll 1
    for (int c = 0; c < chunks_of<kKeepsOwn, kChunk>(own_from.columns) * kChunk; c += kChunk) {
      __syncthreads();
      if constexpr (!kKeepsOwn) load_own(which, own_from, own, c);
      load_other(other_from, other, c);
      __syncthreads();
      multiply_rows(product, own_rows[which] + down * kStride, kDown * kStride, other_rows + across * kStride,
                    kAcross * kStride, static_cast<int>(smaller(kChunk, round_up(own_from.columns - c, 4))));
    }
  }

  // sum += weights times rows of the other side, chunk by chunk from the last, which `is_loaded` if it was the last one
  // to be multiplied.
  __device__ __forceinline__ void add(Sum &sum, const Scores &weight, const Source &other_from, const Other &other,
                                      bool is_loaded) const {
    __syncthreads();
#pragma unroll
    for (int a = 0; a < kRows; ++a)
#pragma unroll
      for (int b = 0; b < kColumns; ++b) weights[(down + a * kDown) * kWeights + across + b * kAcross] = weight[a][b];
    const int last = chunks_of<kKeepsOwn, kChunk>(other_from.columns) - 1;
#pragma unroll 1
    for (int c = last; c >= 0; --c) {
      if (c < last) __syncthreads();
      if (c < last || !is_loaded) load_other(other_from, other, c * kChunk);
      __syncthreads();
      visit_at(sum, c, [&](auto &part) {
        multiply_weights<kTile.columns, kAcross>(part, weights + down * kWeights, kDown * kWeights,
                                                 other_rows + 4 * across, kStride);
      });
    }
  }

  // Products s and dp become p and ds. begin, end: the rows of the tile. sees_all: every query is real and sees every
  // key, but for the mask.
  template <bool kForBias>
  __device__ __forceinline__ void differentiate(const Head &head, const Band &band, int begin, int end,
                                                const Other &other, bool sees_all, Scores &s, Scores &dp) const {
    const int same_down = here(down);
    const int same_across = here(across) & (kAcross - 1);  // says where it ends: granules of slots become constants
    const auto part = part_of<kOwn, kRows, kColumns>(
        [&](int a) { return row_at<kDown>(same_down + a * kDown, begin, end); },
        [&](int b) { return other.position(slot_of<kAcross>(same_across + b * kAcross)); });
    const auto load_fact = [&](int n) -> float3 {
      const int i = part.query(n, n);
      if (i < 0 || i >= head.sequence.q_len) return {infinity(), 0, 0};
      const int64_t at = fact_index(x, head.b, head.h, i);
      return {facts.lse2[at], facts.delta[at], facts.lse2_low[at]};
    };
    // Of rows all at once; those of columns are needed one after the other.
    constexpr bool kQueryRows = kOwn == Side::kQueries;
    float3 loaded[kRows];
#pragma unroll
    for (int a = 0; kQueryRows && a < kRows; ++a) loaded[a] = load_fact(a);
    const auto fact_of = [&](int n) { return kQueryRows ? loaded[n] : load_fact(n); };
    differentiate_scores<float, kOptions, false, kForBias>(x, head, band, part, sees_all, fact_of, s, dp);
  }

  __device__ __forceinline__ void store(const Sum &sum, float scale, const Rows &to, int64_t b, int head, int columns,
                                        const Own &own, int begin, int end, int64_t length) const {
#pragma unroll 1
    for (int c = 0; c < chunks_of<kKeepsOwn, kChunk>(columns); ++c) {
      __syncthreads();
      visit_at(sum, c, [&](auto &part) {
#pragma unroll
        for (int a = 0; a < kRows; ++a)
#pragma unroll
          for (int f = 0; f < kFours; ++f)  // past the length sums are of hidden pairs, or not even that
            *reinterpret_cast<float4 *>(own_rows[0] + (down + a * kDown) * kStride + 4 * (across + f * kAcross)) =
                row_at<kDown>(down + a * kDown, begin, end) < length ? scaled(part[a][f], scale) : float4{};
      });
      __syncthreads();
      store_rows<kTile.rows, kDown, kChunk, kThreads>(own_rows[0], kStride, to, b, head, own, end, c * kChunk, columns);
    }
  }
};

// ---- dk and dv: tiles of keys ---------------------------------------------------------------------------------------

template <int kHeadDim, bool kOptions>
__global__ void __launch_bounds__(backward_tile(kHeadDim).threads(), backward_blocks(kHeadDim))
    backward_keys_any(const __grid_constant__ GradientParams params) {
  using B = Backward<kHeadDim, Side::kKeys, kOptions>;
  const Attention &x = params.attention;
  const B block(x, params.facts);
  const bool wants_dk = params.dk.view.data != nullptr, wants_dv = params.dv.view.data != nullptr;

  // Counted in 32 bits: there is no register left for a task's number of 64.
#pragma unroll 1
  for (uint32_t round = 0;; ++round) {
    const int64_t index = blockIdx.x + round * int64_t{gridDim.x};
    if (index >= params.tiles.tasks) break;
    const Task task = task_of<Side::kKeys>(params.tiles, index);
    const Sequence sequence = sequence_of(x, task.b);
    const int end = static_cast<int>(smaller(task.begin + params.tiles.step, x.Lk)), group = x.Hq / x.Hk;
    const typename B::Own own = consecutive<B::kTile.rows>(task.begin, end);
    const Source k = source_of(x.k, task.b, task.head, sequence.kv_len, x.D);
    const Source v = source_of(x.v, task.b, task.head, sequence.kv_len, x.Dv);
    if constexpr (B::kKeepsOwn) {
      __syncthreads();
      block.load_own(0, k, own, 0);
      block.load_own(1, v, own, 0);
    }
    constexpr bool kAtOnce = sums_keys_at_once(kHeadDim);
#pragma unroll 1
    for (int pass = 0; pass < (kAtOnce ? 1 : 2); ++pass) {
      const bool sums_dk = wants_dk && (kAtOnce || pass == 0), sums_dv = wants_dv && (kAtOnce || pass == 1);
      if (!sums_dk && !sums_dv) continue;
      typename B::Sum sums[kAtOnce ? 2 : 1] = {};
      typename B::Sum &dk = sums[0], &dv = sums[kAtOnce ? 1 : 0];

      for (int h = task.head * group; h < (task.head + 1) * group; ++h) {
        const Head head = head_of<kOptions>(x, sequence, task.b, h);
        Walk walk(x.by_column, task.b, h, task.begin, queries_of_any(x.window, sequence, {task.begin, end}));
        for (typename B::Other queries; walk.next(&queries);) {
          // Here and below, anew: kept, it would take registers from the products.
          const Source q = source_of(x.q, task.b, here(h), sequence.q_len, x.D);
          const Source dout = source_of(params.dout, task.b, here(h), sequence.q_len, x.Dv);
          typename B::Scores s, dp;
          block.multiply(0, k, own, q, queries, s);
          block.multiply(1, v, own, dout, queries, dp);
          const Band band = band_here(x.window, sequence);
          const bool sees_all =
              end - task.begin == B::kTile.rows && queries_see_all(queries, sequence.q_len, band, task.begin, end - 1);
          block.template differentiate<false>(head, band, task.begin, end, queries, sees_all, s, dp);
          if (sums_dv) block.add(dv, s, dout, queries, true);
          if (sums_dk) block.add(dk, dp, q, queries, false);
        }
      }
      const Task same = task_of<Side::kKeys>(params.tiles, here(index));
      const typename B::Own stored = consecutive<B::kTile.rows>(same.begin, end);
      if (sums_dk)
        block.store(dk, x.scale, params.dk, same.b, same.head, x.D, stored, same.begin, end, sequence.kv_len);
      if (sums_dv) block.store(dv, 1, params.dv, same.b, same.head, x.Dv, stored, same.begin, end, sequence.kv_len);
    }
  }
}

// ---- dq: tiles of queries -------------------------------------------------------------------------------------------

template <int kHeadDim, bool kOptions>
__global__ void __launch_bounds__(backward_tile(kHeadDim).threads(), backward_blocks(kHeadDim))
    backward_queries_any(const __grid_constant__ GradientParams params) {
  using B = Backward<kHeadDim, Side::kQueries, kOptions>;
  const Attention &x = params.attention;
  const B block(x, params.facts);

  for (int64_t index = blockIdx.x; index < params.tiles.tasks; index += gridDim.x) {
    const Task task = task_of(params.tiles, index);
    const Head head = head_of<kOptions>(x, sequence_of(x, task.b), task.b, task.head);
    const Sequence &sequence = head.sequence;
    const int end = static_cast<int>(smaller(task.begin + params.tiles.step, x.Lq));
    const Interval queries = {task.begin, smaller(end, sequence.q_len)};  // those that are real
    const typename B::Own own = consecutive<B::kTile.rows>(task.begin, end);
    const Source q = source_of(x.q, task.b, task.head, sequence.q_len, x.D);
    const Source dout = source_of(params.dout, task.b, task.head, sequence.q_len, x.Dv);
    const Source k = source_of(x.k, task.b, head.kv_head, sequence.kv_len, x.D);
    const Source v = source_of(x.v, task.b, head.kv_head, sequence.kv_len, x.Dv);
    if constexpr (B::kKeepsOwn) {
      __syncthreads();
      block.load_own(0, q, own, 0);
      block.load_own(1, dout, own, 0);
    }
    typename B::Sum dq = {};
    const bool is_whole = queries.end - queries.begin == B::kTile.rows;
    const Band band = band_of(x.window, sequence);
    Walk walk(x.by_row, task.b, task.head, task.begin, keys_of_any(x.window, sequence, queries));
    for (typename B::Other keys; walk.next(&keys);) {
      typename B::Scores s, dp;
      block.multiply(1, dout, own, v, keys, dp);
      block.multiply(0, q, own, k, keys, s);
      const bool sees_all = is_whole && all_see_all(band, task.begin, end - 1, keys.least(), keys.most());
      block.template differentiate<false>(head, band, task.begin, end, keys, sees_all, s, dp);
      block.add(dq, dp, k, keys, true);
    }
    block.store(dq, x.scale, params.dq, task.b, task.head, x.D, own, task.begin, end, queries.end);
  }
}

// ---- dbias: tiles of the bias ---------------------------------------------------------------------------------------

template <int, bool>
__global__ void __launch_bounds__(bias_tile_shape().threads(), backward_blocks(kAnyHeadDim))
    backward_bias_any(const __grid_constant__ BiasParams params) {
  using B = Backward<kAnyHeadDim, Side::kQueries, true>;
  const Attention &x = params.attention;
  const B block(x, params.facts);

  for (int64_t index = blockIdx.x; index < params.tasks; index += gridDim.x) {
    typename B::Scores sum = {};
    BiasItems items(params, index);
    for (BiasItem item; items.next(&item);) {
      const Head &head = item.head;
      const typename B::Own own = consecutive<B::kTile.rows>(item.begin, item.end);
      typename B::Scores s, dp;
      block.multiply(1, source_of(params.dout, head.b, head.h, head.sequence.q_len, x.Dv), own,
                     source_of(x.v, head.b, head.kv_head, head.sequence.kv_len, x.Dv), item.keys, dp);
      block.multiply(0, source_of(x.q, head.b, head.h, head.sequence.q_len, x.D), own,
                     source_of(x.k, head.b, head.kv_head, head.sequence.kv_len, x.D), item.keys, s);
      const Band band = band_of(x.window, head.sequence);
      block.template differentiate<true>(head, band, item.begin, item.end, item.keys, item.sees_all(band), s, dp);
#pragma unroll
      for (int a = 0; a < B::kRows; ++a)
#pragma unroll
        for (int b = 0; b < B::kColumns; ++b) sum[a][b] += dp[a][b];
    }
    __syncthreads();
#pragma unroll
    for (int a = 0; a < B::kRows; ++a)
#pragma unroll
      for (int b = 0; b < B::kColumns; ++b)
        block.weights[slot_of<B::kDown>(block.down + a * B::kDown) * B::kWeights +
                      slot_of<B::kAcross>(block.across + b * B::kAcross)] = sum[a][b];
    __syncthreads();
    store_bias<B::kThreads>(params, index, block.weights, B::kWeights);
  }
}

// Adds up the splits of dbias, in their order: one element per thread.
template <int, bool>
__global__ void __launch_bounds__(kPlainThreads, 1) backward_bias_sum_any(const __grid_constant__ BiasParams params) {
  constexpr TileShape kTile = bias_tile_shape();
  const Attention &x = params.attention;
  const BiasPieces &pieces = params.pieces;
  const bool all_rows = params.dbias.row == 0, all_columns = params.dbias.column == 0;
  const int rows = all_rows ? 1 : kTile.rows, columns = all_columns ? 1 : kTile.columns;
  const int64_t elements = pieces.own.product() * rows * columns;
  for (int64_t at = int64_t{blockIdx.x} * kPlainThreads + threadIdx.x; at < elements;
       at += int64_t{gridDim.x} * kPlainThreads) {
    const BiasTile piece = bias_tile(pieces.own, at / columns / rows);
    const int row = static_cast<int>(at / columns % rows), column = static_cast<int>(at % columns);
    const int64_t i = int64_t{piece.query_tile} * pieces.query_step + row;
    if (!all_rows && (row >= pieces.query_step || i >= x.Lq)) continue;
    if (!all_columns && int64_t{piece.key_tile} * kTile.columns + column >= x.Lk) continue;
    float total = 0;
    for (int64_t split = 0; split < pieces.splits; ++split) total += params.partial[split * elements + at];
    write_number(total, params.dbias.data, params.dbias.dtype, bias_index(params, piece, row, column));
  }
}

// ---- dsinks: one block of threads per head --------------------------------------------------------------------------

// dsinks[h] = sum over b, i of p_sink (dlse - rowsum(do * o)),  p_sink = e^(sink - lse). In double, because most of the
// terms cancel and there can be millions.
template <int, bool>
__global__ void __launch_bounds__(kPlainThreads, 1) backward_sinks_any(const __grid_constant__ SinkParams params) {
  const Attention &x = params.attention;
  auto *const scratch = reinterpret_cast<double *>(shared_memory());
  for (int h = static_cast<int>(blockIdx.x); h < x.Hq; h += static_cast<int>(gridDim.x)) {
    const float sink = read_number(x.sinks.data, x.sinks.dtype, h * x.sinks.head);
    double sum = 0;
    for (int64_t b = 0; b < x.B; ++b)
#pragma unroll 1
      for (int64_t i = threadIdx.x; i < x.Lq; i += kPlainThreads) {
        const int64_t at = fact_index(x, b, h, i);
        const float lse2 = params.facts.lse2[at];
        if (lse2 == infinity() || sink == -infinity()) continue;
        const float p =
            exp2_approximate(fmaf(sink, kLog2E, -lse2) + fmaf(sink, x.log2_of_nat_low, -params.facts.lse2_low[at]));
        sum -= static_cast<double>(p) * static_cast<double>(params.facts.delta[at]);
      }
    sum = sum_of_block(sum, scratch);
    if (threadIdx.x == 0)
      write_number(static_cast<float>(sum), params.dsinks.data, params.dsinks.dtype, h * params.dsinks.head);
  }
}

}  // namespace flash
