// Forward for e4m3 on Hopper's tensor cores: o = softmax(s) v, where s = q k^T and p v are products of 8-bit numbers with
// float32 sums. In the order of forward_sm90.cuh, whose loop it shares (forward_compute.cuh), with one more stage:
//
//   one warp loads (TMA)        three warps transpose         warpgroups of 64 queries each compute
//   q; k and then v of each     v of each tile of keys:       s = q k^T; p = softmax(s)
//   tile of keys                v^T in another place          start s' = q k'^T and O += p v, ... as there
//                                                             o = O / l;  lse = m + ln l
//
// wgmma takes 8-bit operands along rows only, and p v adds up over v's rows: hence v^T, whose numbers lie in the order in
// which registers hold p (packed_column in isa/index.h). Weights are 2^8 p, up to 256 of e4m3's 448, so that p counts down
// to 2^-18. Numbers stand for themselves times a factor of their key head: those of q and k go into the exponent, that of
// v into the last factor of o. o is rounded to its own type and goes from registers to memory. Few queries are treated as
// in forward_sm90.cuh. Launched by src/cuda_calls.cpp through instances.def.
#pragma once
#include <cfloat>

#include "forward_compute.cuh"

namespace flash {

// One of a call's three factors.
__device__ __forceinline__ float factor_of(const BatchView &view, int64_t b, int kv_head) {
  return view.data == nullptr
             ? 1.0f
             : static_cast<const float *>(view.data)[batch_offset(view.batch, b) + kv_head * view.head];
}

// What a block of threads has in shared memory besides: two stages of v^T with their barriers, and words.
template <int kHeadDim, bool kOptions>
struct ForwardFp8Memory : ForwardMemory<forward_fp8_sm90_tile(kHeadDim, kOptions).rows,
                                        forward_fp8_sm90_tile(kHeadDim, kOptions).columns, kHeadDim, kHeadDim, 1> {
  static constexpr WarpgroupTile kTile = forward_fp8_sm90_tile(kHeadDim, kOptions);
  using Base = ForwardMemory<kTile.rows, kTile.columns, kHeadDim, kHeadDim, 1>;
  using typename Base::KeyRing, typename Base::KeyTurn;
  using TransposedTile = PanelTile<kHeadDim, kTile.columns, 1>;
  static_assert(sizeof(typename Base::KeyStep) <= kLongStepBytes);

  __device__ __forceinline__ ForwardFp8Memory()
      : Base(panel_memory(), kForwardStages * TransposedTile::kBytes, kLongStepBytes) {}
  __device__ __forceinline__ TransposedTile transposed_v(KeyTurn turn) const {
    return {this->own_tiles() + static_cast<uint32_t>(turn.stage() * TransposedTile::kBytes)};
  }
  __device__ __forceinline__ KeyRing transposed_ring() const { return {this->end()}; }
  // Of a stage of v: keys that are real, or all where the others are zeros; 0 = there are no more tiles.
  __device__ __forceinline__ uint32_t count(KeyTurn turn) const {
    return transposed_ring().address + KeyRing::kBytes + 4 * turn.stage();
  }
  __device__ __forceinline__ uint32_t anchor() const {
    return transposed_ring().address + KeyRing::kBytes + 4 * (kForwardStages + threadIdx.x - kWarpgroup);
  }
};

// What `attend` multiplies: 8-bit numbers, of v the transposed ones.
template <class T, int kHeadDim, bool kOptions>
struct EightBitProducts {
  using Number = T;
  using Shared = ForwardFp8Memory<kHeadDim, kOptions>;
  using KeyTurn = typename Shared::KeyTurn;
  static constexpr int kColumns = Shared::kTile.columns, kScores = kColumns / 4;
  const Shared &shared;
  int first_row;
  float factor;     // of scores
  bool goes_first;  // before the rules of scores, else with the exponent

  __device__ __forceinline__ auto v_ring() const { return shared.transposed_ring(); }
  __device__ __forceinline__ void start_scores(float (&s)[2][kScores], KeyTurn turn) const {
    multiply_tiles<T, kHeadDim>(s, shared.q(), first_row, shared.k(turn));
  }
  __device__ __forceinline__ auto pack(const float (&s)[2][kScores]) const { return packed_e4m3(s); }
  __device__ __forceinline__ void start_o(float (&o)[2][kHeadDim / 4], const BytesInRegisters<kScores> &p,
                                          KeyTurn turn) const {
    add_weighted_columns<kHeadDim, kColumns>(o, p, shared.transposed_v(turn));
  }
  __device__ __forceinline__ void scale(float (&s)[2][kScores]) const {
    if (!goes_first) return;
#pragma unroll
    for (int n = 0; n < 2 * kScores; ++n) s[n / kScores][n % kScores] *= factor;
  }
  __device__ __forceinline__ void hide_rest(int, KeyTurn) const {}  // those who transpose did
};

template <class T, int kHeadDim, bool kOptions, Memory kMemory>
__global__ void __launch_bounds__(forward_fp8_sm90_tile(kHeadDim, kOptions).threads(), 1)
    forward_fp8_sm90(const __grid_constant__ ForwardFp8Sm90Params params) {
  using Shared = ForwardFp8Memory<kHeadDim, kOptions>;
  using KeyTurn = typename Shared::KeyTurn;
  constexpr WarpgroupTile kTile = Shared::kTile;
  constexpr int kWarpgroups = kTile.warpgroups(), kColumns = kTile.columns;
  constexpr int kTransposing = 3,
                kTransposingBarrier = ComputingThread<kWarpgroups>::kMoreBarriers;  // warps that transpose
  const Shared shared;
  const auto transposed_ring = shared.transposed_ring();
  const Attention &x = params.hopper.forward.attention;
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
        store_4_bytes(shared.count(turn), kv_len < x.Lk ? step.count : kColumns);
      });
      shared.v_ring.wait_free(end);
      store_4_bytes(shared.count(end), 0);
      barrier_arrive(shared.v_ring.full(end));
    }
    if (threadIdx.x < kWarp) return;
    for (KeyTurn turn;; turn.advance()) {
      shared.v_ring.wait_full(turn);
      const int count = static_cast<int>(load_4_bytes(shared.count(turn)));
      if (count == 0) return;
      if (count < kColumns) {  // v may have anything there, even NaN: 0 times it counts
        clear_rows(shared.v(turn), count, static_cast<int>(threadIdx.x) - kWarp, kTransposing * kWarp);
        sync_threads(kTransposingBarrier, kTransposing * kWarp);
      }
      transposed_ring.wait_free(turn);
      __syncwarp();  // lane 0 may still be where it told of the tile before
      transpose_tile<kTransposing>(shared.v(turn), shared.transposed_v(turn),
                                   static_cast<int>(threadIdx.x) / kWarp - 1);
      fence_shared_for_async();
      __syncwarp();
      if (threadIdx.x % kWarp == 0) {
        barrier_arrive(transposed_ring.full(turn));
        shared.v_ring.release(turn);
      }
    }
  }

  take_registers<kTile.computing_registers()>();
  const ComputingThread<kWarpgroups> me(warpgroup);
  const uint32_t anchor = shared.anchor();
  me.start_turns();
  Turn<1> q_turn;
  KeyTurn k_turn, v_turn;
  for (int64_t index, round = 0; (index = task_in_round(round, blockIdx.x, gridDim.x)) < tasks.count(); ++round) {
    const QueriesOfTask<kOptions, kWarpgroups> queries(tasks, index, me);
    const Head &head = queries.head;
    // With options, and where the exponent's factor would be no normal number above 0, scores are multiplied first.
    const float factor =
        factor_of(params.q_scale, head.b, head.kv_head) * factor_of(params.k_scale, head.b, head.kv_head);
    const float product = x.log2_scale * factor;
    const bool goes_first = kOptions || !(product >= FLT_MIN && product <= FLT_MAX);
    const EightBitProducts<T, kHeadDim, kOptions> products = {shared, me.first_row, factor, goes_first};

    RowSums<2, 4, kWeightShift> sums;
    float o[2][kHeadDim / 4] = {};
    shared.q_ring.wait_full(q_turn);
    attend<kOptions>(products, queries, goes_first ? x.log2_scale : product, anchor, sums, o, k_turn, v_turn);
    me.release(shared.q_ring, q_turn);
    q_turn.advance();

    const ForwardParams &forward = params.hopper.forward;
    const bool is_piece = params.hopper.pieces.count > 1;
    const int64_t piece = tasks.piece(index);
    float scale[2];
    queries.finish(
        sums, is_piece ? lse_of_piece(params.hopper, piece) : forward.lse,
        [&](int h) { return is_piece ? -infinity() : sink_of(x, h); }, scale);
    const float v_factor = factor_of(params.v_scale, head.b, head.kv_head);
#pragma unroll
    for (int a = 0; a < 2; ++a) scale[a] = scale[a] == 0 ? 0 : scale[a] * v_factor;  // nothing stays nothing
    scale_rows(o, scale);
    store_rows(o, is_piece ? o_of_piece(params.hopper, piece) : forward.o, queries);
  }
}

}  // namespace flash
