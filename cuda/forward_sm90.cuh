// Forward for 16-bit types on Hopper's tensor cores (wgmma): o = softmax(s) v, in the order of FlashAttention-3,
// Algorithms 1 and 2.
//
//   one warp loads, by boxes (TMA)                        warpgroups of 64 queries each compute
//   for each tile of queries                              for each tile of queries
//     q; for each tile of keys:                             s = q k^T; p = softmax(s)
//       where its keys lie, k; then v                       for each further tile of keys:
//                                                             start s' = q k'^T and O += p v
//                                                             once s' is there: p' = 2^(s' - m'), while p v goes on
//                                                             O = alpha O
//                                                           O += p v;  o = O / l;  lse = m + ln l
//
// Tiles of k and of v go through rings of two, gathered from the block mask (work.cuh); the loop over them is that of
// forward_compute.cuh. A block of threads stays and takes one tile of queries after the other. Where there are few
// queries, heads that share keys share a tile, and keys are split into pieces, whose results another kernel merges: pieces
// of a size that depends on no other row, so that neither do the bits. Launched by src/cuda_calls.cpp through
// instances.def.
#pragma once
#include "forward_compute.cuh"

namespace flash {

// What a block of threads has in shared memory, kValueDim numbers of v and o; and the anchors of the threads that compute.
template <int kHeadDim, int kValueDim, bool kOptions>
struct ForwardSm90Memory
    : ForwardMemory<forward_sm90_tile(kHeadDim, kValueDim, kOptions).rows,
                    forward_sm90_tile(kHeadDim, kValueDim, kOptions).columns, kHeadDim, kValueDim, 2> {
  static constexpr WarpgroupTile kTile = forward_sm90_tile(kHeadDim, kValueDim, kOptions);
  using Base = ForwardMemory<kTile.rows, kTile.columns, kHeadDim, kValueDim, 2>;
  static_assert(sizeof(typename Base::KeyStep) <= kStepBytes);

  __device__ __forceinline__ ForwardSm90Memory() : Base(panel_memory(), 0, kStepBytes) {}
  __device__ __forceinline__ uint32_t anchor() const { return this->end() + 4 * (threadIdx.x - kWarpgroup); }
};

// What `attend` multiplies: 16-bit numbers, v as it lies.
template <class T, int kHeadDim, int kValueDim, bool kOptions>
struct SixteenBitProducts {
  using Number = T;
  using Shared = ForwardSm90Memory<kHeadDim, kValueDim, kOptions>;
  using KeyTurn = typename Shared::KeyTurn;
  static constexpr int kColumns = Shared::kTile.columns, kScores = kColumns / 4;
  const Shared &shared;
  int first_row;
  bool may_be_cut;  // keys behind the last real one are loaded, too

  __device__ __forceinline__ auto v_ring() const { return shared.v_ring; }
  __device__ __forceinline__ void start_scores(float (&s)[2][kScores], KeyTurn turn) const {
    multiply_tiles<T, kHeadDim>(s, shared.q(), first_row, shared.k(turn));
  }
  __device__ __forceinline__ auto pack(const float (&s)[2][kScores]) const { return packed<T>(s); }
  __device__ __forceinline__ void start_o(float (&o)[2][kValueDim / 4], const WeightsInRegisters<2, kScores> &p,
                                          KeyTurn turn) const {
    add_weighted_rows<T, kValueDim, kColumns>(o, p, shared.v(turn));
  }
  __device__ __forceinline__ void scale(float (&)[2][kScores]) const {}
  __device__ __forceinline__ void hide_rest(int count, KeyTurn turn) const {
    if (count == kColumns || !may_be_cut) return;  // v may have anything there, even NaN: 0 times it counts
    constexpr int kWarpgroups = Shared::kTile.warpgroups(), kThreads = kWarpgroups * kWarpgroup;
    clear_rows(shared.v(turn), count, static_cast<int>(threadIdx.x) - kWarpgroup, kThreads);
    fence_shared_for_async();
    sync_threads(ComputingThread<kWarpgroups>::kMoreBarriers, kThreads);
  }
};

// O's rows, which are o by now, leave by way of q's place: by boxes, or where o's layout has no map in units of 16 bytes.
template <class T, int kValueDim, class Queries, class QTile>
__device__ __forceinline__ void send_o(const ForwardSm90Params &params, const Queries &queries,
                                       const float (&o)[2][kValueDim / 4], QTile by_way_of) {
  const auto &me = queries.me;
  const Task &task = queries.task;
  put_rows<T>(o, by_way_of, me.first_row + me.thread / kWarp * kMmaRows, [](int c) { return c / 2; });
  fence_shared_for_async();  // for the boxes of o, or of the next q
  me.sync_warpgroup();
  const int begin = task.begin + me.first_row, end = queries.tasks.end_of(task), log2_heads = queries.log2_heads;
  if (params.has_o_map) {
    if (me.thread != 0 || begin >= end) return;
#pragma unroll 1
    for (int panel = 0; panel < PanelTile<kWarpgroupRows, kValueDim>::kPanels; ++panel)
      store_rows_of_heads(&params.o, by_way_of.at(me.first_row, 8 * panel), panel * kPanel, begin >> log2_heads,
                          task.head, static_cast<int>(task.b));
    commit_stores();
    wait_for_stores_to_read();
  } else {
#pragma unroll 1
    for (int n = 0; n < 1 << log2_heads; ++n)
      send_rows<kWarpgroupRows, kWarpgroup>(by_way_of, me.first_row, me.thread, params.forward.o, task.b,
                                            queries.first_head + n, queries.x.Dv, [&](int row) {
                                              const int at = task.begin + row;
                                              const bool is_of_head = (at & ((1 << log2_heads) - 1)) == n;
                                              return is_of_head && at < end ? at >> log2_heads : -1;
                                            });
    me.sync_warpgroup();
  }
}

template <class T, int kHeadDim, int kValueDim, bool kOptions>
__device__ __forceinline__ void forward_tiles(const ForwardSm90Params &params) {
  using Shared = ForwardSm90Memory<kHeadDim, kValueDim, kOptions>;
  constexpr WarpgroupTile kTile = Shared::kTile;
  constexpr int kWarpgroups = kTile.warpgroups();
  const Shared shared;
  const Attention &x = params.forward.attention;
  const ForwardTasks tasks = {params};
  const int warpgroup = uniform(static_cast<int>(threadIdx.x) / kWarpgroup) - 1;  // -1 loads
  if (threadIdx.x == 0) {
    shared.q_ring.init(1, kWarpgroups);
    shared.k_ring.init(1, 4 * kWarpgroups);
    shared.v_ring.init(1, 4 * kWarpgroups);
    fence_barrier_init();
  }
  __syncthreads();

  if (warpgroup < 0) {
    keep_registers<kTile.loading_registers()>();
    if (threadIdx.x == 0) load_forward(params, shared, [](auto...) {});
    return;
  }

  take_registers<kTile.computing_registers()>();
  const ComputingThread<kWarpgroups> me(warpgroup);
  const uint32_t anchor = shared.anchor();
  me.start_turns();
  Turn<1> q_turn;
  typename Shared::KeyTurn k_turn, v_turn;
  for (int64_t index, round = 0; (index = task_in_round(round, blockIdx.x, gridDim.x)) < tasks.count(); ++round) {
    const QueriesOfTask<kOptions, kWarpgroups> queries(tasks, index, me);
    const SixteenBitProducts<T, kHeadDim, kValueDim, kOptions> products = {shared, me.first_row,
                                                                           queries.head.sequence.kv_len < x.Lk};
    RowSums<2, 4> sums;
    float o[2][kValueDim / 4] = {};
    shared.q_ring.wait_full(q_turn);
    attend<kOptions>(products, queries, x.log2_scale, anchor, sums, o, k_turn, v_turn);

    float scale[2];
    if (params.pieces.count > 1) {
      const int64_t piece = tasks.piece(index);
      queries.finish(sums, lse_of_piece(params, piece), [](int) { return -infinity(); }, scale);
      scale_rows(o, scale);
      store_rows(o, o_of_piece(params, piece), queries);
      me.sync_warpgroup();  // all of it has read q
    } else {
      queries.finish(sums, params.forward.lse, [&](int h) { return sink_of(x, h); }, scale);
      scale_rows(o, scale);
      send_o<T, kValueDim>(params, queries, o, shared.q());
    }
    if (me.thread == 0) shared.q_ring.release(q_turn);
    q_turn.advance();
  }
  wait_for_stores();
}

template <class T, int kHeadDim, bool kOptions, Memory kMemory>
__global__ void __launch_bounds__(forward_sm90_tile(kHeadDim, kHeadDim, kOptions).threads(), 1)
    forward_sm90(const __grid_constant__ ForwardSm90Params params) {
  forward_tiles<T, kHeadDim, kHeadDim, kOptions>(params);
}

// v of at most kNarrowValueDim, as in multi-head latent attention: less to multiply, and more keys to a tile.
template <class T, int kHeadDim, bool kOptions, Memory kMemory>
__global__ void __launch_bounds__(forward_sm90_tile(kHeadDim, kNarrowValueDim, kOptions).threads(), 1)
    forward_narrow_sm90(const __grid_constant__ ForwardSm90Params params) {
  forward_tiles<T, kHeadDim, kNarrowValueDim, kOptions>(params);
}

// ---- Pieces of keys -------------------------------------------------------------------------------------------------

// o and lse of all keys from those of the pieces, a warp to a query.
template <int, bool>
__global__ void __launch_bounds__(kPlainThreads, 1) forward_pieces_sm90(const __grid_constant__ PiecesParams params) {
  constexpr int kWarps = kPlainThreads / kWarp, kMostColumns = kHopperHeadDims[4] / kWarp;
  const Attention &x = params.attention;
  const KeyPieces &pieces = params.pieces;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t rows = x.B * x.Hq * x.Lq;
  for (int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp; row < params.tasks;
       row += int64_t{gridDim.x} * kWarps) {
    const int64_t i = row % x.Lq, b = row / x.Lq / x.Hq;
    const int h = static_cast<int>(row / x.Lq % x.Hq);
    const bool is_real = i < clamp(read_or(x.q_lens, b, x.Lq), 0, x.Lq);
    const float sink = is_real ? sink_of(x, h) * kLn2 : -infinity();
    float most = sink;
    for (int64_t piece = lane; piece < pieces.count; piece += kWarp) most = fmaxf(most, pieces.lse[piece * rows + row]);
    most = max_of_lanes<kWarp>(most);
    const float base = most == -infinity() ? 0 : most;
    float total = expf(sink - base), o[kMostColumns] = {};
    for (int64_t piece = 0; piece < pieces.count; ++piece) {
      const float weight = expf(pieces.lse[piece * rows + row] - base);
      if (weight == 0) continue;
      total += weight;
#pragma unroll
      for (int n = 0; n < kMostColumns; ++n)
        if (lane + n * kWarp < x.Dv)
          o[n] = fmaf(weight, pieces.o[(piece * rows + row) * KeyPieces::row(x.Dv) + lane + n * kWarp], o[n]);
    }
    const float factor = total == 0 ? 0 : 1 / total;
    const int64_t start = b * params.o.view.batch + h * params.o.view.head + i * params.o.view.row;
#pragma unroll
    for (int n = 0; n < kMostColumns; ++n)
      if (lane + n * kWarp < x.Dv)
        write_number(o[n] * factor, params.o.view.data, params.o.dtype, start + lane + n * kWarp);
    const LseView &lse = params.lse;
    if (lane == 0 && lse.data != nullptr)
      static_cast<float *>(lse.data)[b * lse.batch + h * lse.head + i * lse.row] =
          total == 0 ? -infinity() : base + logf(total);
  }
}

}  // namespace flash
