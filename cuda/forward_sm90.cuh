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
// Tiles of k and of v go through rings of two. Warpgroups take turns to start their products (kTurn), so that the
// softmax of one runs beside the products of another. Tiles of keys are gathered from the block mask (work.cuh). A block
// of threads stays and takes one tile of queries after the other. Where there are few queries, heads that share keys
// share a tile, and keys are split into pieces, whose results another kernel merges: pieces of a size that depends on no
// other row, so that neither do the bits. Launched by src/cuda_calls.cpp through instances.def.
#pragma once
#include "forward_loads.cuh"
#include "softmax.cuh"

namespace flash {

// kValueDim: of v and o.
template <class T, int kHeadDim, int kValueDim, bool kOptions>
__device__ __forceinline__ void forward_tiles(const ForwardSm90Params &params) {
  constexpr WarpgroupTile kTile = forward_sm90_tile(kHeadDim, kValueDim, kOptions);
  constexpr int kWarpgroups = kTile.warpgroups(), kColumns = kTile.columns;
  using Shared = ForwardMemory<kTile.rows, kColumns, kHeadDim, kValueDim, 2>;
  using QTile = typename Shared::QTile;
  using KeyTurn = typename Shared::KeyTurn;
  static_assert(sizeof(typename Shared::KeyStep) <= kStepBytes);
  const Shared shared(panel_memory(), 0, kStepBytes);
  const QTile q_tile = shared.q();
  const auto &q_ring = shared.q_ring;
  const auto &k_ring = shared.k_ring, &v_ring = shared.v_ring;

  const Attention &x = params.forward.attention;
  const ForwardTasks tasks = {params};
  const int log2_heads = params.log2_heads;
  const int warpgroup = uniform(static_cast<int>(threadIdx.x) / kWarpgroup) - 1;  // -1 loads
  if (threadIdx.x == 0) {
    q_ring.init(1, kWarpgroups);
    k_ring.init(1, 4 * kWarpgroups);
    v_ring.init(1, 4 * kWarpgroups);
    fence_barrier_init();
  }
  __syncthreads();

  if (warpgroup < 0) {
    keep_registers<kTile.loading_registers()>();
    if (threadIdx.x == 0) load_forward(params, shared, [](auto...) {});
    return;
  }

  take_registers<kTile.computing_registers()>();
  constexpr int kScores = kColumns / 4;
  const int first_row = warpgroup * kWarpgroupRows, thread = static_cast<int>(threadIdx.x) % kWarpgroup,
            lane = thread % kWarp, row_of_thread = first_row + thread / kWarp * kMmaRows + fragment_row(lane);
  // Barriers of the block: one for each warpgroup's turn, one for its own threads, one for all that compute.
  constexpr int kTurnBarrier = 1, kOwnBarrier = kTurnBarrier + kWarpgroups, kComputeBarrier = kOwnBarrier + kWarpgroups;
  const auto wait_for_turn = [&] { sync_threads(kTurnBarrier + warpgroup, 2 * kWarpgroup); };
  const auto pass_turn = [&] { arrive_threads(kTurnBarrier + (warpgroup + 1) % kWarpgroups, 2 * kWarpgroup); };
  const auto release = [&](const auto &ring, auto turn) {
    __syncwarp();
    if (lane == 0) ring.release(turn);
  };
  if (warpgroup == kWarpgroups - 1) pass_turn();  // the first one's first turn

  // ptxas would move the exponentials behind the wait for p v, to where their results are needed, and leave the tensor
  // cores alone with it. It doesn't move them past a store that needs their sum.
  const uint32_t anchor = shared.end() + 4 * (threadIdx.x - kWarpgroup);

  Turn<1> q_turn;
  KeyTurn k_turn, v_turn;
  for (int64_t index, round = 0; (index = task_in_round(round, blockIdx.x, gridDim.x)) < tasks.count(); ++round) {
    const Task task = tasks.at(index);
    const int first_head = task.head << log2_heads;
    const Head head = head_of<kOptions>(x, sequence_of(x, task.b), task.b, first_head);
    const Band band = band_of(x.window, head.sequence);
    const auto query_of = [&](int a) { return (task.begin + row_of_thread + 8 * a) >> log2_heads; };

    RowSums<2, 4> sums;
    float o[2][kValueDim / 4] = {};
    float s[2][kScores];
    WeightsInRegisters<2, kScores> p;
    const auto start_scores = [&] { multiply_tiles<T, kHeadDim>(s, q_tile, first_row, shared.k(k_turn)); };
    const auto start_o = [&] { add_weighted_rows<T, kValueDim, kColumns>(o, p, shared.v(v_turn)); };
    // What is left to do with scores that are there, up to the exponentials; gives the tile of keys back.
    const auto finish_scores = [&](float (&alpha)[2]) {
      const auto &step = shared.steps[k_turn.stage()];
      const int begin = task.begin + first_row;
      const bool sees_all =
          all_see_all(band, begin >> log2_heads, (begin + kWarpgroupRows - 1) >> log2_heads, step.least, step.most);
      const auto part = part_of<Side::kQueries, 2, kScores, Neighbour::kFourLanesOff>(
          query_of, [&](int b) { return step.first[b / 4] + b / 2 % 2 * 8 + fragment_column(lane) + b % 2; });
      apply_rules_in_registers<kOptions>(x, head, band, part, sees_all, s);
      if (!kOptions) release(k_ring, k_turn);
      sums.add(s, x.log2_scale, alpha);
      if (kOptions && x.keep_threshold != 0) {
        const auto kept = kept_pairs(x, head, part);
#pragma unroll
        for (int n = 0; n < 2 * kScores; ++n)
          if ((kept >> n & 1) == 0) s[n / kScores][n % kScores] = 0;
      }
      if (kOptions) release(k_ring, k_turn);  // the step has been read
      k_turn.advance();
    };

    q_ring.wait_full(q_turn);
    k_ring.wait_full(k_turn);
    int count = uniform(shared.steps[k_turn.stage()].count);
    if (count > 0) {
      wait_for_turn();
      begin_products();
      start_scores();
      commit_products();
      wait_for_products<0>();
      settle(s);
      pass_turn();
      float alpha[2];
      finish_scores(alpha);
      p = packed<T>(s);
      k_ring.wait_full(k_turn);
      for (int next; (next = uniform(shared.steps[k_turn.stage()].count)) > 0; count = next) {
        wait_for_turn();
        begin_products();
        start_scores();
        commit_products();
        v_ring.wait_full(v_turn);
        begin_products();
        start_o();
        commit_products();
        pass_turn();
        wait_for_products<1>();
        settle(s);
        finish_scores(alpha);
        store_4_bytes(anchor, float_bits(sums.sum[0] + sums.sum[1]));
        wait_for_products<0>();
        settle(o);
        release(v_ring, v_turn);
        v_turn.advance();
#pragma unroll
        for (int a = 0; a < 2; ++a)
#pragma unroll
          for (int c = 0; c < kValueDim / 4; ++c) o[a][c] *= alpha[a];
        p = packed<T>(s);
        k_ring.wait_full(k_turn);
      }
      v_ring.wait_full(v_turn);
      if (count < kColumns && head.sequence.kv_len < x.Lk) {  // v may have anything there, even NaN: 0 times it counts
        clear_rows(shared.v(v_turn), count, static_cast<int>(threadIdx.x) - kWarpgroup, kWarpgroups * kWarpgroup);
        fence_shared_for_async();
        sync_threads(kComputeBarrier, kWarpgroups * kWarpgroup);
      }
      begin_products();
      start_o();
      commit_products();
      wait_for_products<0>();
      settle(o);
      release(v_ring, v_turn);
      v_turn.advance();
    }
    release(k_ring, k_turn);
    k_turn.advance();

    const auto head_of_row = [&](int a) {
      return first_head + ((task.begin + row_of_thread + 8 * a) & ((1 << log2_heads) - 1));
    };
    const auto finish = [&](const LseView &lse, auto sink, float (&scale)[2]) {
      const int end = ((tasks.end_of(task) - 1) >> log2_heads) + 1;
      finish_rows(x, lse, sums, task.b, head_of_row, head.sequence.q_len, end, query_of, sink, scale);
      scale_rows(o, scale);
    };
    float scale[2];
    if (params.pieces.count > 1) {  // without the sink, which is in no piece
      const int64_t of_all = tasks.piece(index) * x.B * x.Hq * x.Lq;
      finish({params.pieces.lse + of_all, int64_t{x.Hq} * x.Lq, x.Lq, 1}, [](int) { return -infinity(); }, scale);
#pragma unroll
      for (int a = 0; a < 2; ++a) {
        if (task.begin + row_of_thread + 8 * a >= tasks.end_of(task)) continue;
        float *const row = params.pieces.o + (of_all + (task.b * x.Hq + head_of_row(a)) * x.Lq + query_of(a)) * x.Dv;
#pragma unroll
        for (int c = 0; c < kValueDim / 4; ++c) {
          const int column = c / 2 * 8 + fragment_column(lane) + c % 2;
          if (column < x.Dv) row[column] = o[a][c];
        }
      }
      sync_threads(kOwnBarrier + warpgroup, kWarpgroup);  // all of it has read q
      if (thread == 0) q_ring.release(q_turn);
      q_turn.advance();
      continue;
    }
    finish(params.forward.lse, [&](int a) { return sink_of(x, head_of_row(a)); }, scale);
    put_rows<T>(o, q_tile, first_row + thread / kWarp * kMmaRows, [](int c) { return c / 2; });
    fence_shared_for_async();  // for the boxes of o, or of the next q
    sync_threads(kOwnBarrier + warpgroup, kWarpgroup);
    const auto batch = static_cast<int>(task.b);
    if (params.has_o_map) {
      if (thread == 0 && task.begin + first_row < tasks.end_of(task)) {
#pragma unroll 1
        for (int panel = 0; panel < Shared::ValueTile::kPanels; ++panel)
          store_rows_of_heads(&params.o, q_tile.at(first_row, 8 * panel), panel * kPanel,
                              (task.begin + first_row) >> log2_heads, task.head, batch);
        commit_stores();
        wait_for_stores_to_read();
      }
    } else {
#pragma unroll 1
      for (int n = 0; n < 1 << log2_heads; ++n)
        send_rows<kWarpgroupRows, kWarpgroup>(q_tile, first_row, thread, params.forward.o, task.b, first_head + n, x.Dv,
                                              [&](int row) {
                                                const int at = task.begin + row;
                                                const bool is_of_head = (at & ((1 << log2_heads) - 1)) == n;
                                                return is_of_head && at < tasks.end_of(task) ? at >> log2_heads : -1;
                                              });
      sync_threads(kOwnBarrier + warpgroup, kWarpgroup);
    }
    if (thread == 0) q_ring.release(q_turn);
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
          o[n] = fmaf(weight, pieces.o[(piece * rows + row) * x.Dv + lane + n * kWarp], o[n]);
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
