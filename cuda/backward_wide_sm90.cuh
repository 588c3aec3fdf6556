// Backward for 16-bit types and head dims above 128 on Hopper's tensor cores (wgmma) in one pass: the mathematics of
// backward_any.cuh, whose kernels prepare delta and lse2 and sum dbias and dsinks here too.
//
//   warp 0 loads boxes (TMA), warp 2 facts of queries     two warpgroups compute, one has dk in registers, one dv
//   k, v                                                  for each head that reads them, for each tile of queries
//   for each head, for each tile of queries                 s = q k^T;  dp = do v^T, of half the keys each
//     where its queries lie, lse2, delta                    p = 2^(s - lse2);  ds, both to shared memory
//     q;  do                                                dk^T += q^T ds, or dv^T += do^T p
//                                                           dq = ds k, half the head dim each, added in memory
//
// Registers have room for dk and dv of more than 64 keys, but not of 128. So their products are transposed: the rows,
// 64 to a product, are numbers of the head dim, and keys come in 16s. dq's sums have the order of backward_sm80.cuh, and
// its kernel rounds them to rows. Blocks of threads add to dq in the order in which they come; where its bits must not
// differ from run to run, backward_deterministic_sm80.cuh takes over. Launched by src/cuda_calls.cpp through
// instances.def.
#pragma once
#include "backward_loads.cuh"

namespace flash {

// What a block of threads has in shared memory.
template <int kHeadDim, bool kOptions>
struct WideSm90 : BackwardMemory<kHeadDim, kOptions> {
  using Base = BackwardMemory<kHeadDim, kOptions>;
  using Base::kQueries, Base::kTile, Base::start;
  static constexpr int kKeys = kTile.rows, kKeysOfWarpgroup = kKeys / 2;
  static_assert(kTile.warpgroups() == 2 && kQueries == kWarpgroupRows && kKeys % (2 * kUnit) == 0);
  using Weights = PanelTile<kQueries, kKeys>;  // p and ds: rows of queries, columns of keys
  static_assert(Base::kOwn + 2 * Weights::kBytes == Base::kFacts);

  __device__ __forceinline__ Weights p() const { return {start + Base::kOwn}; }
  __device__ __forceinline__ Weights ds() const { return {p().address + Weights::kBytes}; }
  __device__ __forceinline__ Ring<1> weights_ring() const { return this->more_ring(); }
};

// Columns of 16 queries, as a warp holds them, are added to the sums of dq in memory; from `end` on there are none.
template <int kColumns>
__device__ __forceinline__ void add_columns(float *dq, const float (&columns)[2][kColumns], int first_column, int end) {
#pragma unroll
  for (int b = 0; b < kColumns; b += 2) {
    const int column = first_column + b / 2 * kUnit;
    if (column < end)
      add_fragment(dq + column * kMmaRows, columns[0][b], columns[0][b + 1], columns[1][b], columns[1][b + 1]);
  }
}

template <class T, int kHeadDim, bool kOptions, Memory>
__global__ void __launch_bounds__(backward_sm90_tile(kHeadDim, kOptions).threads(), 1)
    backward_wide_sm90(const __grid_constant__ GradientSm90Params params) {
  using B = WideSm90<kHeadDim, kOptions>;
  constexpr WarpgroupTile kTile = B::kTile;
  constexpr int kWarpgroups = kTile.warpgroups(), kComputing = kWarpgroups * kWarpgroup, kWarps = kComputing / kWarp;
  constexpr int kPanels = kHeadDim / kPanel;
  const B block;
  const Attention &x = params.gradient.attention;
  const Tiles &tiles = params.gradient.tiles;
  const int warp = uniform(static_cast<int>(threadIdx.x) / kWarp), lane = static_cast<int>(threadIdx.x % kWarp);
  const int warpgroup = warp / 4 - 1;
  if (threadIdx.x == 0) {
    block.init_barriers();
    block.weights_ring().init(kWarps, kWarps);
    fence_barrier_init();
  }
  __syncthreads();

  if (warpgroup < 0) {
    keep_registers<kTile.loading_registers()>();
    if (warp == 2 || (warp == 0 && lane == 0)) load_backward(params, block, warp, lane);
    return;
  }

  take_registers<kTile.computing_registers()>();
  constexpr int kScores = B::kKeysOfWarpgroup / 4;
  const int first_key = warpgroup * B::kKeysOfWarpgroup;
  const int granule = warp % 4;
  const bool sums_dk = warpgroup == 0;  // else dv
  const auto arrive = [&](uint32_t barrier) {
    __syncwarp();
    if (lane == 0) barrier_arrive(barrier);
  };
  typename B::QueryTurn turn;
  const KeysOfTask keys(params.gradient);
  const Task &task = keys.task;
  float sum[kPanels][2][B::kKeys / 4] = {};  // dk^T or dv^T, 64 numbers of the head dim after the other

  block.own_ring().wait_full({});
  const auto sync_all = [&] { sync_threads(kComputeBarrier, kComputing); };
  const auto clear = [&](auto tile, int from) {
    clear_rows(tile, from, static_cast<int>(threadIdx.x) - kWarpgroup, kComputing);
    fence_shared_for_async();
    sync_all();
  };
  if (keys.is_cut(x, kTile.rows)) clear(block.k(), keys.real);
  for (;; turn.advance()) {
    const typename B::DoutTurn dout_turn = {turn.number};
    const Turn<1> weights_turn = {turn.number};
    block.q_ring().wait_full(turn);
    const typename B::QueryStep &step = block.step(turn);
    const int count = uniform(step.count);
    if (count == 0) break;
    const bool is_cut = count < B::kQueries && keys.q_len < x.Lq;  // 0 times what lies there counts for dk and dv
    if (is_cut) clear(block.q(turn), count);
    float s[2][kScores], dp[2][kScores];
    begin_products();
    multiply_tiles<T, kHeadDim>(s, block.q(turn), 0, block.k(), first_key);
    commit_products();
    block.dout_ring().wait_full(dout_turn);
    if (is_cut) clear(block.dout(dout_turn), count);
    begin_products();
    multiply_tiles<T, kHeadDim>(dp, block.dout(dout_turn), 0, block.v(), first_key);
    commit_products();

    const Head head = head_of<kOptions>(x, keys.sequence, task.b, kOptions ? step.head % x.Hq : 0);
    const int first_row = step.first[granule] + fragment_row(lane);
    const auto part = part_of<Side::kQueries, 2, kScores, Neighbour::kFourLanesOff>(
        [&](int a) { return first_row + 8 * a; },
        [&](int b) { return task.begin + first_key + b / 2 * 8 + fragment_column(lane) + b % 2; });
    const bool sees_all =
        step.least >= 0 && all_see_all(keys.band, step.least, step.most, task.begin, task.begin + kTile.rows - 1);
    const int row = granule * kGranule + fragment_row(here(lane));
    const auto lse2 = [&](int a) { return float_from_bits(load_4_bytes(block.lse2(turn, row + 8 * a))); };
    const auto delta = [&](int a) { return float_from_bits(load_4_bytes(block.delta(turn, row + 8 * a))); };
    const auto put = [&](const auto &from, typename B::Weights to) {
      const int first_unit = here(first_key / kUnit);  // anew: the places of all units would take registers
      put_rows<T>(from, to, granule * kGranule, [&](int b) { return first_unit + b / 2; });
    };
    if constexpr (kOptions) {
      wait_for_products<0>();
      settle(s);
      settle(dp);
      differentiate<T, kOptions>(
          x, head, keys.band, part, sees_all, [&](int a) { return float2{lse2(a), delta(a)}; }, s, dp);
      block.weights_ring().wait_free(weights_turn);
      put(s, block.p());
    } else {
      wait_for_products<1>();
      settle(s);
      apply_rules<T, false>(x, head, keys.band, part, sees_all, s);
      const float lse2_of[] = {lse2(0), lse2(1)};
      exponentiate(x, part, [&](int a) { return float2{lse2_of[a], lse2_of[a]}; }, s);
      block.weights_ring().wait_free(weights_turn);
      put(s, block.p());  // before dp is there: else ptxas moves the exponentials behind that wait
      wait_for_products<0>();
      settle(dp);
      const float delta_of[] = {delta(0), delta(1)};
      differentiate_weights(part, [&](int a) { return float2{delta_of[a], delta_of[a]}; }, s, dp);
    }
    if (sums_dk) arrive(block.dout_ring().free(dout_turn));
    put(dp, block.ds());
    fence_shared_for_async();
    arrive(block.weights_ring().full(weights_turn));
    block.weights_ring().wait_full(weights_turn);

    // The warpgroup's part of dq: of the first or last 64 numbers, and of half of those between.
    constexpr int kOuter = kPanel, kInner = kHeadDim / 2 - kPanel;
    const int outer_column = sums_dk ? 0 : kHeadDim - kOuter, inner_column = kOuter + (sums_dk ? 0 : kInner);
    const int first_query = step.first[granule];  // anew: kept, it would take a register
    float *const dq =
        params.gradient.dq_sums.data + (int64_t{step.head} * params.gradient.dq_sums.rows + first_query) * kHeadDim;
    const auto add_to_dq = [&](const auto &columns, int first_column) {
      if (first_query >= 0) add_columns(dq + lane, columns, first_column, x.D);
    };
    const typename B::QueryTile rows = sums_dk ? block.q(turn) : block.dout(dout_turn);
    const typename B::Weights weights = sums_dk ? block.ds() : block.p();
    const auto add_panels = [&](int begin, int end) {
#pragma unroll
      for (int panel = begin; panel < end; ++panel)
        multiply_columns<T, B::kKeys, true>(sum[panel], rows, panel * kPanel, weights, 0);
      commit_products();
    };
    float outer[2][kOuter / 4], inner[2][kInner / 4];
    begin_products();
    multiply_weights<T, kOuter>(outer, block.ds(), block.k(), outer_column);
    commit_products();
    add_panels(0, kPanels / 2);
    wait_for_products<1>();
    settle(outer);
    add_to_dq(outer, outer_column);
    begin_products();
    multiply_weights<T, kInner>(inner, block.ds(), block.k(), inner_column);
    commit_products();
    add_panels(kPanels / 2, kPanels);
    wait_for_products<1>();
    settle(inner);
    add_to_dq(inner, inner_column);
    wait_for_products<0>();
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel) settle(sum[panel]);
    arrive(block.weights_ring().free(weights_turn));
    if (!sums_dk) arrive(block.dout_ring().free(dout_turn));
    arrive(block.q_ring().free(turn));
  }

  sync_all();                                                                         // k and v have been read
  const Task same = task_of<Side::kKeys>(tiles, here(static_cast<int>(blockIdx.x)));  // kept, it would take registers
  const typename B::KeyTile tile = sums_dk ? block.k() : block.v();
  const float scale = sums_dk ? x.scale : 1;
#pragma unroll
  for (int panel = 0; panel < kPanels; ++panel) {
#pragma unroll
    for (int a = 0; a < 2; ++a)
#pragma unroll
      for (int b = 0; b < B::kKeys / 4; ++b)
        sum[panel][a][b] =
            same.begin + b / 2 * 8 + fragment_column(lane) + b % 2 < keys.band.kv_len ? sum[panel][a][b] * scale : 0;
    put_columns<T>(sum[panel], tile, panel * kPanel + granule * kMmaRows);
  }
  fence_shared_for_async();
  sync_threads(kOwnBarrier + warpgroup, kWarpgroup);
  if (sums_dk)
    store_keys<kTile.rows>(params.gradient, same, tile, 0, params.has_dk_map, params.dk, params.gradient.dk, x.D);
  else
    store_keys<kTile.rows>(params.gradient, same, tile, 0, params.has_dv_map, params.dv, params.gradient.dv, x.Dv);
  wait_for_stores();
}

}  // namespace flash
