// Backward for 16-bit types on Hopper's tensor cores (wgmma) in one pass: the mathematics of backward_any.cuh, whose
// kernels prepare delta and lse2 and sum dbias and dsinks here too.
//
//   warp 0 loads boxes (TMA), warp 2 facts of queries     warpgroups of 64 keys each compute, dk and dv in registers
//   k, v                                                  for each head that reads them, for each tile of queries
//   for each head, for each tile of queries                 s^T = k q^T;  dp^T = v do^T
//     where its queries lie, lse2, delta                    p^T = 2^(s^T - lse2);  ds^T, also to shared memory
//     q;  do                                                dv += p^T do;  dq = ds k
//   warp 1 adds dq to the sums in memory                    dk += ds^T q;  dq to shared memory, for warp 1
//
// s and dp are transposed, so that p and ds feed the products of dv and dk from registers; only dq, whose sum goes over
// the keys of all warpgroups, takes ds from shared memory. dq's sums have the order of backward_sm80.cuh, and its kernel
// rounds them to rows. Blocks of threads add to dq in the order in which they come or, for the same bits on every run, of
// their keys. Launched by src/cuda_calls.cpp through instances.def.
#pragma once
#include "backward_loads.cuh"

namespace flash {

// What a block of threads has in shared memory.
template <int kHeadDim, bool kOptions>
struct OnePassSm90 : BackwardMemory<kHeadDim, kOptions> {
  using Base = BackwardMemory<kHeadDim, kOptions>;
  using Base::kQueries, Base::kTile, Base::start;
  using typename Base::QueryStep, typename Base::QueryTurn;
  static constexpr int kWarpgroups = kTile.warpgroups(), kDqThreads = kWarpgroups * kWarpgroup + kWarp;
  using Weights = PanelTile<kTile.rows, kQueries>;  // ds: rows of keys, columns of queries
  // A warpgroup computes dq of 64 queries; where there are no more, the part of the head dim that is its own.
  static constexpr bool kSharesHeadDim = kQueries == kWarpgroupRows;
  static constexpr int kDqColumns = kSharesHeadDim ? kHeadDim / kWarpgroups : kHeadDim;
  static constexpr int kGranuleBytes = kGranule * kHeadDim * static_cast<int>(sizeof(float));  // of dq
  static constexpr int kDq = Base::kOwn + 2 * Weights::kBytes, kDqStep = kDq + kQueries / kGranule * kGranuleBytes,
                       kAnchors = kDqStep + kStepBytes;
  static_assert(kAnchors + 4 * kWarpgroups * kWarpgroup == Base::kFacts);

  // Two, in turn: who writes the next can't overtake who reads this one by more than a step.
  __device__ __forceinline__ Weights ds(QueryTurn turn) const {
    return {start + Base::kOwn + static_cast<uint32_t>(turn.stage() * Weights::kBytes)};
  }
  __device__ __forceinline__ uint32_t dq(int granule) const {
    return start + kDq + static_cast<uint32_t>(granule * kGranuleBytes);
  }
  __device__ __forceinline__ QueryStep &dq_step() const { return this->step_at(kDqStep); }
  __device__ __forceinline__ uint32_t anchor() const { return start + kAnchors + 4 * (threadIdx.x - kWarpgroup); }
};

// By warp 1: dq of each tile of queries, when it lies in shared memory, is added to the sums in memory.
template <int kHeadDim, bool kOptions>
__device__ __forceinline__ void add_dq(const GradientSm90Params &params, const OnePassSm90<kHeadDim, kOptions> &block,
                                       int lane) {
  using B = OnePassSm90<kHeadDim, kOptions>;
  const GradientParams &gradient = params.gradient;
  const Attention &x = gradient.attention;
  const Tiles &tiles = gradient.tiles;
  const Task task = task_of<Side::kKeys>(tiles, blockIdx.x);
  const Sequence sequence = sequence_of(x, task.b);
  // Blocks with keys before these that add to the same tile of queries, all of which must have: they started earlier.
  const auto before = [&](int64_t first_query) {
    const Interval queries = {first_query, smaller(first_query + B::kQueries, sequence.q_len)};
    return static_cast<int>(task.begin / tiles.step - keys_of_any(x.window, sequence, queries).begin / tiles.step);
  };
  for (;;) {
    arrive_threads(kDqFree, B::kDqThreads);
    sync_threads(kDqFull, B::kDqThreads);
    const typename B::QueryStep &step = block.dq_step();
    if (step.count == 0) break;
    const bool takes_turns = params.dq_turns.done != nullptr;
    int *const turn = params.dq_turns.done + step.head * params.dq_turns.of_head(x.Lq) + step.first[0] / B::kQueries;
    const int own_turn = takes_turns ? before(step.first[0]) : 0;
    if (takes_turns) {
      while (lane == 0 && load_acquire(turn) != own_turn) {
      }
      __syncwarp();
      fence_global_for_async();
    }
    if (lane < B::kQueries / kGranule && step.first[lane] >= 0)
      add_bytes(gradient.dq_sums.data + (int64_t{step.head} * gradient.dq_sums.rows + step.first[lane]) * kHeadDim,
                block.dq(lane), B::kGranuleBytes);
    commit_stores();
    wait_for_stores_to_read();
    if (takes_turns) {
      wait_for_stores();
      fence_global_for_async();
      __syncwarp();
      if (lane == 0) store_release(turn, own_turn + 1);
    }
  }
  wait_for_stores();
}

template <class T, int kHeadDim, bool kOptions, Memory>
__global__ void __launch_bounds__(backward_sm90_tile(kHeadDim, kOptions).threads(), 1)
    backward_sm90(const __grid_constant__ GradientSm90Params params) {
  using B = OnePassSm90<kHeadDim, kOptions>;
  constexpr WarpgroupTile kTile = B::kTile;
  constexpr int kComputing = B::kWarpgroups * kWarpgroup, kDqThreads = B::kDqThreads;
  const B block;
  const Attention &x = params.gradient.attention;
  const Tiles &tiles = params.gradient.tiles;
  const int warp = uniform(static_cast<int>(threadIdx.x) / kWarp), lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warpgroup = warp / 4 - 1;
  if (threadIdx.x == 0) {
    block.init_barriers();
    fence_barrier_init();
  }
  __syncthreads();

  if (warpgroup < 0) {
    keep_registers<kTile.loading_registers()>();
    if (warp == 1) add_dq(params, block, lane);
    if (warp == 2 || (warp == 0 && lane == 0)) load_backward(params, block, warp, lane);
    return;
  }

  take_registers<kTile.computing_registers()>();
  constexpr int kScores = B::kQueries / 4;
  const int first_row = warpgroup * kWarpgroupRows, row_of_warp = first_row + warp % 4 * kMmaRows;
  const auto release = [&](const auto &ring, auto turn) {
    __syncwarp();
    if (lane == 0) ring.release(turn);
  };
  typename B::QueryTurn turn;
  const KeysOfTask keys(params.gradient);
  const Task &task = keys.task;
  float dk[2][kHeadDim / 4] = {}, dv[2][kHeadDim / 4] = {};

  block.own_ring().wait_full({});
  const auto clear = [&](auto tile, int from) {
    clear_rows(tile, from, static_cast<int>(threadIdx.x) - kWarpgroup, kComputing);
  };
  const auto cleared = [&] {
    fence_shared_for_async();
    sync_threads(kComputeBarrier, kComputing);
  };
  if (keys.is_cut(x, kTile.rows)) {
    clear(block.k(), keys.real);
    cleared();
  }
  for (;; turn.advance()) {
    block.q_ring().wait_full(turn);
    block.dout_ring().wait_full(turn);
    const typename B::QueryStep &step = block.step(turn);
    const int count = uniform(step.count);
    if (count == 0) break;
    if (count < B::kQueries && keys.q_len < x.Lq) {  // 0 times what lies there counts for dk and dv
      clear(block.q(turn), count);
      clear(block.dout(turn), count);
      cleared();
    }
    float s[2][kScores], dp[2][kScores];
    begin_products();
    multiply_tiles<T, kHeadDim>(s, block.k(), first_row, block.q(turn));
    commit_products();
    multiply_tiles<T, kHeadDim>(dp, block.v(), first_row, block.dout(turn));
    commit_products();
    const Head head = head_of<kOptions>(x, keys.sequence, task.b, kOptions ? step.head % x.Hq : 0);
    const auto part = part_of<Side::kKeys, 2, kScores, Neighbour::kFourLanesOff>(
        [&](int a) { return task.begin + row_of_warp + fragment_row(lane) + 8 * a; },
        [&](int b) { return step.position(b / 4, b / 2 % 2 * 8 + fragment_column(lane) + b % 2); });
    const bool sees_all =
        step.least >= 0 && all_see_all(keys.band, step.least, step.most, task.begin, task.begin + kTile.rows - 1);
    const auto column = [&](int b) { return b / 2 * 8 + fragment_column(lane) + b % 2; };
    if constexpr (kOptions) {
      wait_for_products<0>();
      settle(s);
      settle(dp);
      differentiate<T, kOptions>(
          x, head, keys.band, part, sees_all,
          [&](int b) {
            return float2{float_from_bits(load_4_bytes(block.lse2(turn, column(b)))),
                          float_from_bits(load_4_bytes(block.delta(turn, column(b))))};
          },
          s, dp);
    } else {
      wait_for_products<1>();
      settle(s);
      apply_rules<T, false>(x, head, keys.band, part, sees_all, s);
      exponentiate(x, part, [&](int b) { return load_8_bytes(block.lse2(turn, column(b))); }, s);
      float sum = 0;  // stored as in forward_compute.cuh, so that the exponentials stay where they are
#pragma unroll
      for (int b = 0; b < kScores; ++b) sum += s[0][b] + s[1][b];
      store_4_bytes(block.anchor(), float_bits(sum));
      wait_for_products<0>();
      settle(dp);
      differentiate_weights(part, [&](int b) { return load_8_bytes(block.delta(turn, column(b))); }, s, dp);
    }
    const auto p_weights = packed<T>(s), ds_weights = packed<T>(dp);
    put_rows<T>(dp, block.ds(turn), row_of_warp, [](int b) { return b / 2; });
    begin_products();
    add_weighted_rows<T, kHeadDim, B::kQueries>(dv, p_weights, block.dout(turn));
    commit_products();
    cleared();  // ds is there

    float dq[2][B::kDqColumns / 4];
    begin_products();
    multiply_columns<T, B::kDqColumns>(dq, block.ds(turn), B::kSharesHeadDim ? 0 : first_row, block.k(),
                                       B::kSharesHeadDim ? warpgroup * B::kDqColumns : 0);
    commit_products();
    wait_for_products<1>();
    settle(dv);
    release(block.dout_ring(), turn);
    begin_products();
    add_weighted_rows<T, kHeadDim, B::kQueries>(dk, ds_weights, block.q(turn));
    commit_products();
    wait_for_products<1>();
    settle(dq);
    sync_threads(kDqFree, kDqThreads);
    if (threadIdx.x == kWarpgroup) block.dq_step() = step;
    const uint32_t place =
        block.dq(B::kSharesHeadDim ? warp % 4 : row_of_warp / kGranule) +
        static_cast<uint32_t>((B::kSharesHeadDim ? warpgroup * B::kDqColumns : 0) * kMmaRows * 4 + lane * 4);
#pragma unroll
    for (int b = 0; b < B::kDqColumns / 4; ++b)
#pragma unroll
      for (int a = 0; a < 2; ++a)
        store_4_bytes(place + static_cast<uint32_t>((b / 2 * 4 + 2 * a + b % 2) * kWarp * 4), float_bits(dq[a][b]));
    fence_shared_for_async();
    arrive_threads(kDqFull, kDqThreads);
    wait_for_products<0>();
    settle(dk);
    release(block.q_ring(), turn);
  }
  sync_threads(kDqFree, kDqThreads);
  if (threadIdx.x == kWarpgroup) block.dq_step().count = 0;
  arrive_threads(kDqFull, kDqThreads);

  sync_threads(kComputeBarrier, kComputing);                                          // k has been read
  const Task same = task_of<Side::kKeys>(tiles, here(static_cast<int>(blockIdx.x)));  // kept, it would take registers
  const auto put = [&](float (&sum)[2][kHeadDim / 4], float factor, typename B::KeyTile tile) {
    float scale[2];
#pragma unroll
    for (int a = 0; a < 2; ++a) scale[a] = row_of_warp + fragment_row(lane) + 8 * a < keys.real ? factor : 0;
    scale_rows(sum, scale);
    put_rows<T>(sum, tile, row_of_warp, [](int b) { return b / 2; });
  };
  put(dk, x.scale, block.k());
  put(dv, 1, block.v());
  fence_shared_for_async();
  sync_threads(kOwnBarrier + warpgroup, kWarpgroup);
  store_keys<kWarpgroupRows>(params.gradient, same, block.k(), first_row, params.has_dk_map, params.dk,
                             params.gradient.dk, x.D);
  store_keys<kWarpgroupRows>(params.gradient, same, block.v(), first_row, params.has_dv_map, params.dv,
                             params.gradient.dv, x.Dv);
  wait_for_stores();
}

}  // namespace flash
