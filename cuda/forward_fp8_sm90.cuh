// Forward for e4m3 on Hopper's tensor cores: o = softmax(s) v, where s = q k^T and p v are products of 8-bit numbers with
// float32 sums. In the order of forward_sm90.cuh, with one more stage:
//
//   one warp loads (TMA)        three warps transpose         warpgroups of 64 queries each compute
//   q; k and then v of each     v of each tile of keys:       s = q k^T; p = softmax(s)
//   tile of keys                v^T in another place          start s' = q k'^T and O += p v, ... as in forward_sm90.cuh
//                                                             o = O / l;  lse = m + ln l
//
// wgmma takes 8-bit operands along rows only, and p v adds up over v's rows: hence v^T, whose numbers lie in the order in
// which registers hold p (packed_column in isa/index.h). Weights are 2^8 p, up to 256 of e4m3's 448, so that p counts down
// to 2^-18. Numbers stand for themselves times a factor of their key head: those of q and k go into the exponent, that of
// v into the last factor of o. o is rounded to its own type and goes from registers to memory. Few queries are treated as
// in forward_sm90.cuh. Launched by src/cuda_calls.cpp through instances.def.
#pragma once
#include <cfloat>

#include "forward_loads.cuh"
#include "softmax.cuh"

namespace flash {

// One of a call's three factors.
__device__ __forceinline__ float factor_of(const BatchView &view, int64_t b, int kv_head) {
  return view.data == nullptr
             ? 1.0f
             : static_cast<const float *>(view.data)[batch_offset(view.batch, b) + kv_head * view.head];
}

// Four neighbours, rounded to the rows' type, to `place`; `count` of them are wanted.
__device__ __forceinline__ void store_four(float4 x, const Rows &to, char *place, int count) {
  const auto store = [&](auto number) {
    using T = decltype(number);
    if (to.aligned >= 4) {
      store_narrow<T>(x, place);
    } else {
      const float four[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
      for (int c = 0; c < 4; ++c)
        if (c < count) narrow(four[c], reinterpret_cast<T *>(place) + c);
    }
  };
  switch (to.dtype) {
    case DType::kFloat16:
      return store(Half{});
    case DType::kBfloat16:
      return store(Bfloat{});
    default:
      return store(float{});
  }
}

// Numbers [a][b] of a warpgroup become the rows at position_of(a) of head head_of(a), nothing where the position is
// negative. Lanes 2n and 2n + 1 swap half of what they have of 16 columns, so that each has four neighbours and a quad
// stores whole sectors.
template <int kColumns, class HeadOf, class PositionOf>
__device__ __forceinline__ void store_rows(const float (&from)[2][kColumns], const Rows &to, int64_t b, HeadOf head_of,
                                           int columns, PositionOf position_of) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const bool is_odd = lane % 2 != 0;
  const int first_column = fragment_column(lane) + (is_odd ? 6 : 0), bytes = to.dtype == DType::kFloat32 ? 4 : 2;
#pragma unroll
  for (int a = 0; a < 2; ++a) {
    const int position = position_of(a);
    const int left = position < 0 ? 0 : columns - first_column;
    char *const place = static_cast<char *>(to.view.data) +
                        (b * to.view.batch + head_of(a) * to.view.head + position * to.view.row + first_column) * bytes;
#pragma unroll
    for (int n = 0; n < kColumns; n += 4) {
      const float *x = from[a] + n;
      const float y0 = shuffle_xor(is_odd ? x[0] : x[2], 1), y1 = shuffle_xor(is_odd ? x[1] : x[3], 1);
      if (4 * n < left)
        store_four(is_odd ? float4{y0, y1, x[2], x[3]} : float4{x[0], x[1], y0, y1}, to, place + 4 * n * bytes,
                   left - 4 * n);
      __syncwarp();  // or all of them would be shuffled first, and registers hold twice as many
    }
  }
}

template <class T, int kHeadDim, bool kOptions, Memory kMemory>
__global__ void __launch_bounds__(forward_fp8_sm90_tile(kHeadDim, kOptions).threads(), 1)
    forward_fp8_sm90(const __grid_constant__ ForwardFp8Sm90Params params) {
  constexpr WarpgroupTile kTile = forward_fp8_sm90_tile(kHeadDim, kOptions);
  constexpr int kWarpgroups = kTile.warpgroups(), kColumns = kTile.columns;
  using Shared = ForwardMemory<kTile.rows, kColumns, kHeadDim, kHeadDim, 1>;
  using KeyTurn = typename Shared::KeyTurn;
  using TransposedTile = PanelTile<kHeadDim, kColumns, 1>;
  static_assert(sizeof(typename Shared::KeyStep) <= kLongStepBytes);
  // Warps that transpose; barriers of the block: one for each warpgroup's turn, one for those warps.
  constexpr int kTransposing = 3, kTurnBarrier = 1, kTransposingBarrier = kTurnBarrier + kWarpgroups;

  const Shared shared(panel_memory(), kForwardStages * TransposedTile::kBytes, kLongStepBytes);
  const auto transposed_v = [&](KeyTurn turn) {
    return TransposedTile{shared.own_tiles() + static_cast<uint32_t>(turn.stage() * TransposedTile::kBytes)};
  };
  const typename Shared::KeyRing transposed_ring = {shared.end()};
  // Of each stage of v: keys that are real, or all where the others are zeros; 0 = there are no more tiles.
  const uint32_t counts = transposed_ring.address + Shared::KeyRing::kBytes, words = counts + 4 * kForwardStages;

  const ForwardParams &forward = params.hopper.forward;
  const Attention &x = forward.attention;
  const ForwardTasks tasks = {params.hopper};
  const int warpgroup = uniform(static_cast<int>(threadIdx.x) / kWarpgroup) - 1;  // -1 loads and transposes
  if (threadIdx.x == 0) {
    shared.q_ring.init(1, 4 * kWarpgroups);
    shared.k_ring.init(1, 4 * kWarpgroups);
    shared.v_ring.init(1, kTransposing);
    transposed_ring.init(kTransposing, 4 * kWarpgroups);
    fence_barrier_init();
  }
  __syncthreads();

  if (warpgroup < 0) {
    keep_registers<kTile.loading_registers()>();
    if (threadIdx.x == 0) {
      const KeyTurn end = load_forward(params.hopper, shared, [&](KeyTurn turn, const auto &step, int kv_len) {
        store_4_bytes(counts + 4 * turn.stage(), kv_len < x.Lk ? step.count : kColumns);
      });
      shared.v_ring.wait_free(end);
      store_4_bytes(counts + 4 * end.stage(), 0);
      barrier_arrive(shared.v_ring.full(end));
    }
    if (threadIdx.x < kWarp) return;
    for (KeyTurn turn;; turn.advance()) {
      shared.v_ring.wait_full(turn);
      const int count = static_cast<int>(load_4_bytes(counts + 4 * turn.stage()));
      if (count == 0) return;
      if (count < kColumns) {  // v may have anything there, even NaN: 0 times it counts
        clear_rows(shared.v(turn), count, static_cast<int>(threadIdx.x) - kWarp, kTransposing * kWarp);
        sync_threads(kTransposingBarrier, kTransposing * kWarp);
      }
      transposed_ring.wait_free(turn);
      __syncwarp();  // lane 0 may still be where it told of the tile before
      transpose_tile<kTransposing>(shared.v(turn), transposed_v(turn), static_cast<int>(threadIdx.x) / kWarp - 1);
      fence_shared_for_async();
      __syncwarp();
      if (threadIdx.x % kWarp == 0) {
        barrier_arrive(transposed_ring.full(turn));
        shared.v_ring.release(turn);
      }
    }
  }

  take_registers<kTile.computing_registers()>();
  constexpr int kScores = kColumns / 4;
  const int first_row = warpgroup * kWarpgroupRows, thread = static_cast<int>(threadIdx.x) % kWarpgroup,
            lane = thread % kWarp, row_of_thread = first_row + thread / kWarp * kMmaRows + fragment_row(lane);
  const auto wait_for_turn = [&] { sync_threads(kTurnBarrier + warpgroup, 2 * kWarpgroup); };
  const auto pass_turn = [&] { arrive_threads(kTurnBarrier + (warpgroup + 1) % kWarpgroups, 2 * kWarpgroup); };
  const auto release = [&](const auto &ring, auto turn) {
    __syncwarp();
    if (lane == 0) ring.release(turn);
  };
  if (warpgroup == kWarpgroups - 1) pass_turn();                   // the first one's first turn
  const uint32_t anchor = words + 4 * (threadIdx.x - kWarpgroup);  // as in forward_sm90.cuh

  Turn<1> q_turn;
  KeyTurn k_turn, v_turn;
  for (int64_t index, round = 0; (index = task_in_round(round, blockIdx.x, gridDim.x)) < tasks.count(); ++round) {
    const Task task = tasks.at(index);
    const int log2_heads = params.hopper.log2_heads, first_head = task.head << log2_heads;
    const Head head = head_of<kOptions>(x, sequence_of(x, task.b), task.b, first_head);
    const Band band = band_of(x.window, head.sequence);
    const auto query_of = [&](int a) { return (task.begin + row_of_thread + 8 * a) >> log2_heads; };
    // With options, and where the exponent's factor would be no normal number above 0, scores are multiplied first.
    const float factor =
        factor_of(params.q_scale, task.b, head.kv_head) * factor_of(params.k_scale, task.b, head.kv_head);
    const float product = x.log2_scale * factor;
    const bool goes_first = kOptions || !(product >= FLT_MIN && product <= FLT_MAX);
    const float log2_scale = goes_first ? x.log2_scale : product;

    RowSums<2, 4, kWeightShift> sums;
    float o[2][kHeadDim / 4] = {};
    float s[2][kScores];
    BytesInRegisters<kScores> p;
    const auto start_scores = [&] { multiply_tiles<T, kHeadDim>(s, shared.q(), first_row, shared.k(k_turn)); };
    const auto start_o = [&] { add_weighted_columns<kHeadDim, kColumns>(o, p, transposed_v(v_turn)); };
    const auto finish_scores = [&](float (&alpha)[2]) {
      const auto &step = shared.steps[k_turn.stage()];
      const int begin = task.begin + first_row;
      const bool sees_all =
          all_see_all(band, begin >> log2_heads, (begin + kWarpgroupRows - 1) >> log2_heads, step.least, step.most);
      const auto part = part_of<Side::kQueries, 2, kScores, Neighbour::kFourLanesOff>(
          query_of, [&](int b) { return step.first[b / 4] + b / 2 % 2 * 8 + fragment_column(lane) + b % 2; });
      if (goes_first) {
#pragma unroll
        for (int n = 0; n < 2 * kScores; ++n) s[n / kScores][n % kScores] *= factor;
      }
      apply_rules_in_registers<kOptions>(x, head, band, part, sees_all, s);
      if (!kOptions) release(shared.k_ring, k_turn);
      sums.add(s, log2_scale, alpha);
      if constexpr (kOptions) {
        if (x.keep_threshold != 0) {
          const auto kept = kept_pairs(x, head, part);
#pragma unroll
          for (int n = 0; n < 2 * kScores; ++n)
            if ((kept >> n & 1) == 0) s[n / kScores][n % kScores] = 0;
        }
        release(shared.k_ring, k_turn);  // the step has been read
      }
      k_turn.advance();
    };

    shared.q_ring.wait_full(q_turn);
    shared.k_ring.wait_full(k_turn);
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
      p = packed_e4m3(s);
      shared.k_ring.wait_full(k_turn);
      while ((count = uniform(shared.steps[k_turn.stage()].count)) > 0) {
        wait_for_turn();
        begin_products();
        start_scores();
        commit_products();
        transposed_ring.wait_full(v_turn);
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
        release(transposed_ring, v_turn);
        v_turn.advance();
#pragma unroll
        for (int a = 0; a < 2; ++a)
#pragma unroll
          for (int c = 0; c < kHeadDim / 4; ++c) o[a][c] *= alpha[a];
        p = packed_e4m3(s);
        shared.k_ring.wait_full(k_turn);
      }
      transposed_ring.wait_full(v_turn);
      begin_products();
      start_o();
      commit_products();
      wait_for_products<0>();
      settle(o);
      release(transposed_ring, v_turn);
      v_turn.advance();
    }
    release(shared.k_ring, k_turn);
    k_turn.advance();
    release(shared.q_ring, q_turn);
    q_turn.advance();

    const auto head_of_row = [&](int a) {
      return first_head + ((task.begin + row_of_thread + 8 * a) & ((1 << log2_heads) - 1));
    };
    // Of a piece of the keys: in float32, where another kernel merges them, and without the sink, which is in no piece.
    const KeyPieces &pieces = params.hopper.pieces;
    const bool is_piece = pieces.count > 1;
    const int64_t of_head = x.Lq, of_batch = x.Hq * of_head, first = tasks.piece(index) * x.B * of_batch;
    const LseView lse = is_piece ? LseView{pieces.lse + first, of_batch, of_head, 1} : forward.lse;
    const Rows to = is_piece ? Rows{{pieces.o + first * x.Dv, of_batch * x.Dv, x.Dv, of_head * x.Dv},
                                    DType::kFloat32,
                                    x.Dv % 4 == 0 ? 4 : 1}
                             : forward.o;
    const int end = ((tasks.end_of(task) - 1) >> log2_heads) + 1;
    float scale[2];
    finish_rows(
        x, lse, sums, task.b, head_of_row, head.sequence.q_len, end, query_of,
        [&](int a) { return is_piece ? -infinity() : sink_of(x, head_of_row(a)); }, scale);
    const float v_factor = factor_of(params.v_scale, task.b, head.kv_head);
#pragma unroll
    for (int a = 0; a < 2; ++a) scale[a] = scale[a] == 0 ? 0 : scale[a] * v_factor;  // nothing stays nothing
    scale_rows(o, scale);
    store_rows(o, to, task.b, head_of_row, x.Dv, [&](int a) { return query_of(a) < end ? query_of(a) : -1; });
  }
}

}  // namespace flash
