// Forward for 16-bit types on tensor cores of compute capability 8.0 and later (mma.m16n8k16): o = softmax(s) v, in the
// order of FlashAttention-2, Algorithm 1.
//
//   q stays in shared memory                              a warp owns 16 or 32 queries: no exchange between warps
//   for each tile of keys                                 state per query in registers: m, l, O
//     wait for k          start loading v
//     s = q k^T; m' = max(m, s); p = 2^(s - m')           s in registers is p, and p is the operand of p v
//     wait for v          start loading the next k
//     l = alpha l + sum p;  O = alpha O + p v             alpha = 2^(m - m')
//   o = O / l;  lse = m + ln l                            o through q's shared memory, in full sectors
//
// Tiles of keys are gathered from the block mask (work.cuh). A tile that every query sees takes no rules at all.
// Launched by src/cuda_calls.cpp through instances.def.
#pragma once
#include "fragment.cuh"
#include "softmax.cuh"

namespace flash {

template <class T, int kHeadDim, bool kOptions, Memory kMemory>
__global__ void __launch_bounds__(forward_sm80_tile(kHeadDim, kOptions, kMemory).threads(),
                                  forward_sm80_blocks(kHeadDim, kOptions))
    forward_sm80(const __grid_constant__ ForwardParams params) {
  constexpr TensorTile kTile = forward_sm80_tile(kHeadDim, kOptions, kMemory);
  constexpr int kThreads = kTile.threads(), kRows = kTile.warp_rows() / 8, kColumns = kTile.columns / 4;
  using Tile = SharedTile<kHeadDim>;
  const Tile q_tile = {shared_address(shared_memory())}, k_tile = {q_tile.address + kTile.rows * Tile::kRowBytes},
             v_tile = {k_tile.address + kTile.columns * Tile::kRowBytes};

  const Attention &x = params.attention;

  for (int64_t index = blockIdx.x; index < params.tiles.tasks; index += gridDim.x) {
    const Task task = task_of(params.tiles, index);
    const Head head = head_of<kOptions>(x, sequence_of(x, task.b), task.b, task.head);
    const auto end_of = [&](const Task &of) {
      const int left = x.Lq - of.begin;
      return of.begin + (left < params.tiles.step ? left : params.tiles.step);
    };
    const Interval queries = {task.begin, smaller(end_of(task), head.sequence.q_len)};  // those that are real
    const auto position_of_row = [&](const Task &of, int n) {
      const int position = of.begin + paired_row(n);
      return position < end_of(of) ? position : -1;
    };
    const auto thread_here = [] { return here(static_cast<int>(threadIdx.x)); };
    const auto first_row_of = [&](int thread) { return thread / kWarp * kTile.warp_rows(); };  // of the thread's warp
    // May lie behind the last.
    const auto query_of = [&](const Task &of, int thread, int a) {
      return of.begin + paired_row(first_row_of(thread) + a / 2 * kMmaRows + a % 2 * 8 + fragment_row(thread % kWarp));
    };
    const Source q = units_of(x.q, task.b, task.head, head.sequence.q_len, x.D);
    const Source k = units_of(x.k, task.b, head.kv_head, head.sequence.kv_len, x.D);
    const Source v = units_of(x.v, task.b, head.kv_head, head.sequence.kv_len, x.Dv);

    RowSums<kRows, 4> sums;
    float o[kRows][kHeadDim / 4] = {};
    const Band band = band_of(x.window, head.sequence);
    Walk walk(x.by_row, task.b, task.head, task.begin, keys_of_any(x.window, head.sequence, queries));
    Granules<kTile.columns> keys;
    bool has_keys = walk.next(&keys);
    const auto load_keys = [&](Tile to, const Source &from) {
      load_tile<kTile.columns, kHeadDim, kThreads>(to, from,
                                                   [&](int granule, int n) { return keys.position(granule, n); });
      commit_copies();
    };
    __syncthreads();  // the tile before has been read
    load_tile<kTile.rows, kHeadDim, kThreads>(
        q_tile, q, [&](int granule, int n) { return position_of_row(task, granule * kGranule + n); });
    commit_copies();
    if (has_keys) load_keys(k_tile, k);

    while (has_keys) {
      wait_for_copies<0>();
      __syncthreads();  // q and k are there, and v has been read
      load_keys(v_tile, v);
      WeightsInRegisters<kRows, kColumns> p = {};
      if (first_row_of(thread_here()) < params.tiles.step) {  // else a warp has no rows
        const int thread = thread_here();
        float s[kRows][kColumns] = {};
        multiply_tiles<T>(s, q_tile, first_row_of(thread), k_tile);
        const auto part = part_of<Side::kQueries, kRows, kColumns>(
            [&](int a) { return query_of(task, thread, a); },
            [&](int b) { return keys.position(b / 4, b / 2 % 2 * 8 + fragment_column(thread % kWarp) + b % 2); });
        const bool are_there = !kOptions || task.begin + first_row_of(thread) + kTile.warp_rows() <= x.Lq;
        const bool sees_all = are_there && all_see_all(band, task.begin, end_of(task) - 1, keys.least(), keys.most());
        apply_rules<T, kOptions>(x, head, band, part, sees_all, s);

        float alpha[kRows];
        sums.add(s, x.log2_scale, alpha);
        if constexpr (kOptions) drop_weights(x, head, part, s);
#pragma unroll
        for (int a = 0; a < kRows; ++a)
#pragma unroll
          for (int c = 0; c < kHeadDim / 4; ++c) o[a][c] *= alpha[a];

        p = packed<T>(s);
      }
      wait_for_copies<0>();
      __syncthreads();  // v is there, and k has been read
      has_keys = walk.next(&keys);
      if (has_keys) load_keys(k_tile, k);
      add_weighted_rows<T>(o, p, v_tile);
    }

    const Task same = task_of(params.tiles, here(index));  // anew: kept, it would take registers from the loop
    const int64_t q_len = sequence_of(x, same.b).q_len;
    const int thread = thread_here();
    float scale[kRows];
    const float sink = sink_of(x, same.head);
    finish_rows(
        x, params.lse, sums, same.b, [&](int) { return same.head; }, q_len, end_of(same),
        [&](int a) { return query_of(same, thread, a); }, [&](int) { return sink; }, scale);
    wait_for_copies<0>();
    __syncthreads();  // q's copies have landed even where there were no keys
    store_tile<T>(o, scale, q_tile, first_row_of(thread), params.o, same.b, same.head, x.Dv,
                  [&](int n) { return position_of_row(same, n); });
  }
}

}  // namespace flash
