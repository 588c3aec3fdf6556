// Backward for 16-bit types on tensor cores of compute capability 8.0 and later (mma.m16n8k16), with the same bits on
// every run: where that is asked for, where not all of dq, dk and dv are, and where backward_sm80.cuh has no room.
//
//   one kernel takes tiles of keys:     s^T = k q^T   dp^T = v do^T    dv += p^T do    dk += ds^T q
//   one kernel takes tiles of queries:  s   = q k^T   dp   = do v^T                    dq += ds k
//
// Rows of scores belong to the kernel's own side, so that p and ds are operands of the next product as they lie in
// registers: nothing but rows of q, k, v and do goes through shared memory, and warps exchange nothing. The other side
// comes in stages, the next on its way while one is worked on. Every sum is taken by one thread in a fixed order: the
// same bits on every run, at the price of computing s and dp for dq once more. Launched by src/cuda_calls.cpp through
// instances.def.
#pragma once
#include "both_sides.cuh"

namespace flash {

template <class T, int kHeadDim, Side kOwn, bool kOptions>
struct TensorBackward : BothSides<kHeadDim, backward_deterministic_sm80_tile(kHeadDim).rows,
                                  backward_deterministic_sm80_tile(kHeadDim).columns,
                                  backward_deterministic_sm80_tile(kHeadDim).threads(), kOwn> {
  static constexpr TensorTile kTile = backward_deterministic_sm80_tile(kHeadDim);
  static constexpr int kRows = 2, kColumns = kTile.columns / 4;
  using Both = BothSides<kHeadDim, kTile.rows, kTile.columns, kTile.threads(), kOwn>;
  using Scores = float[kRows][kColumns];
  using Sum = float[kRows][kHeadDim / 4];
  using Both::Both;

  // The sum becomes rows [begin, end) of `to`, through the warp's own rows of a tile that is no longer needed; zeros
  // from `length` on.
  __device__ __forceinline__ void store(Sum &sum, float factor, const Rows &to, int64_t b, int head, int columns,
                                        int begin, int end, int64_t length) const {
    const int thread = here(static_cast<int>(threadIdx.x));
    const int first_row = thread / kWarp * kMmaRows;
    const auto position_of = [&](int row) {
      const int position = begin + paired_row(row);
      return position < end ? position : -1;
    };
    float scale[kRows];
#pragma unroll
    for (int a = 0; a < kRows; ++a)
      scale[a] = begin + paired_row(first_row + 8 * a + fragment_row(thread % kWarp)) < length ? factor : 0;
    store_tile<T>(sum, scale, this->own_tiles[0], first_row, to, b, head, columns, position_of);
  }
};

// ---- dk and dv: tiles of keys ---------------------------------------------------------------------------------------

template <class T, int kHeadDim, bool kOptions, Memory>
__global__ void __launch_bounds__(backward_deterministic_sm80_tile(kHeadDim).threads(), 1)
    backward_keys_sm80(const __grid_constant__ GradientParams params) {
  using B = TensorBackward<T, kHeadDim, Side::kKeys, kOptions>;
  const Attention &x = params.attention;
  const B block(x, params.facts);

  for (int64_t index = blockIdx.x; index < params.tiles.tasks; index += gridDim.x) {
    const Task task = task_of<Side::kKeys>(params.tiles, index);
    const Sequence sequence = sequence_of(x, task.b);
    const Band band = band_of(x.window, sequence);
    const int end = static_cast<int>(smaller(task.begin + params.tiles.step, x.Lk)), group = x.Hq / x.Hk;
    const Source own[2] = {units_of(x.k, task.b, task.head, sequence.kv_len, x.D),
                           units_of(x.v, task.b, task.head, sequence.kv_len, x.Dv)};
    constexpr bool kAtOnce = sums_keys_at_once_sm80(kHeadDim);
#pragma unroll 1
    for (int pass = 0; pass < (kAtOnce ? 1 : 2); ++pass) {
      const bool sums_dk = params.dk.view.data != nullptr && (kAtOnce || pass == 0);
      const bool sums_dv = params.dv.view.data != nullptr && (kAtOnce || pass == 1);
      if (!sums_dk && !sums_dv) continue;
      __syncthreads();  // what was there before has been read
      block.load_own(0, own[0], task.begin, end);
      block.load_own(1, own[1], task.begin, end);
      typename B::Sum sums[kAtOnce ? 2 : 1] = {};
      typename B::Sum &dk = sums[0], &dv = sums[kAtOnce ? 1 : 0];

      for (int h = task.head * group; h < (task.head + 1) * group; ++h) {
        const Head head = head_of<kOptions>(x, sequence, task.b, h);
        const Source other[2] = {units_of(x.q, task.b, h, sequence.q_len, x.D),
                                 units_of(params.dout, task.b, h, sequence.q_len, x.Dv)};
        Walk walk(x.by_column, task.b, h, task.begin, queries_of_any(x.window, sequence, {task.begin, end}));
        typename B::Other next;
        bool has_queries = walk.next(&next);
        if (has_queries) block.load_other(0, other, next, task.b, h);
        commit_copies();
        for (int stage = 0; has_queries; stage = 1 - stage) {
          const bool sees_all = end - task.begin == B::kTile.rows &&
                                queries_see_all(next, static_cast<int>(sequence.q_len), band, task.begin, end - 1);
          wait_for_copies<0>();
          __syncthreads();  // this stage is there, and the one before has been read
          has_queries = walk.next(&next);
          if (has_queries) block.load_other(1 - stage, other, next, task.b, h);
          commit_copies();
          const int thread = here(static_cast<int>(threadIdx.x)), lane = thread % kWarp;
          const int first_row = thread / kWarp * kMmaRows;
          if (first_row >= params.tiles.step) continue;  // a warp without rows has nothing but the copies to do
          typename B::Scores s = {}, dp = {};
          multiply_tiles<T>(s, block.own_tiles[0], first_row, block.other_tile(stage, 0));
          multiply_tiles<T>(dp, block.own_tiles[1], first_row, block.other_tile(stage, 1));
          const auto part = part_of<Side::kKeys, B::kRows, B::kColumns>(
              [&](int a) { return task.begin + paired_row(first_row + 8 * a + fragment_row(lane)); },
              [&](int b) { return block.position(stage, b / 2 * 8 + fragment_column(lane) + b % 2); });
          const auto fact_of = [&](int b) { return block.fact(stage, b / 2 * 8 + fragment_column(lane) + b % 2); };
          differentiate<T, kOptions>(x, head, band, part, sees_all, fact_of, s, dp);
          if (sums_dv) add_weighted_rows<T>(dv, packed<T>(s), block.other_tile(stage, 1));
          if (sums_dk) add_weighted_rows<T>(dk, packed<T>(dp), block.other_tile(stage, 0));
        }
        __syncthreads();  // the last stage has been read, and the next head begins with stage 0
      }
      wait_for_copies<0>();
      __syncthreads();  // k and v have landed even where there were no queries
      const Task same =
          task_of<Side::kKeys>(params.tiles, here(index));  // anew: kept, it would take registers from the loop
      if (sums_dk) block.store(dk, x.scale, params.dk, same.b, same.head, x.D, task.begin, end, sequence.kv_len);
      __syncwarp();
      if (sums_dv) block.store(dv, 1, params.dv, same.b, same.head, x.Dv, task.begin, end, sequence.kv_len);
    }
  }
}

// ---- dq: tiles of queries -------------------------------------------------------------------------------------------

template <class T, int kHeadDim, bool kOptions, Memory>
__global__ void __launch_bounds__(backward_deterministic_sm80_tile(kHeadDim).threads(), 1)
    backward_queries_sm80(const __grid_constant__ GradientParams params) {
  using B = TensorBackward<T, kHeadDim, Side::kQueries, kOptions>;
  const Attention &x = params.attention;
  const B block(x, params.facts);

  for (int64_t index = blockIdx.x; index < params.tiles.tasks; index += gridDim.x) {
    const Task task = task_of(params.tiles, index);
    const Head head = head_of<kOptions>(x, sequence_of(x, task.b), task.b, task.head);
    const Sequence &sequence = head.sequence;
    const Band band = band_of(x.window, sequence);
    const int end = static_cast<int>(smaller(task.begin + params.tiles.step, x.Lq));
    const Interval queries = {task.begin, smaller(end, sequence.q_len)};  // those that are real
    const Source other[2] = {units_of(x.k, task.b, head.kv_head, sequence.kv_len, x.D),
                             units_of(x.v, task.b, head.kv_head, sequence.kv_len, x.Dv)};
    __syncthreads();  // what was there before has been read
    block.load_own(0, units_of(x.q, task.b, task.head, sequence.q_len, x.D), task.begin, end);
    block.load_own(1, units_of(params.dout, task.b, task.head, sequence.q_len, x.Dv), task.begin, end);

    const int thread = here(static_cast<int>(threadIdx.x)), lane = thread % kWarp;
    const int first_row = thread / kWarp * kMmaRows;
    const auto row_of = [&](int a) { return task.begin + paired_row(first_row + 8 * a + fragment_row(lane)); };
    float2 facts[B::kRows];
#pragma unroll
    for (int a = 0; a < B::kRows; ++a) {
      facts[a] = {infinity(), 0};
      if (row_of(a) < queries.end) {
        const int64_t at = fact_index(x, task.b, task.head, row_of(a));
        facts[a] = {params.facts.lse2[at], params.facts.delta[at]};
      }
    }
    const bool is_whole = queries.end - task.begin == B::kTile.rows;
    typename B::Sum dq = {};
    Walk walk(x.by_row, task.b, task.head, task.begin, keys_of_any(x.window, sequence, queries));
    typename B::Other keys, next;
    bool has_keys = walk.next(&next);
    if (has_keys) block.load_other(0, other, next, task.b, task.head);
    commit_copies();
    for (int stage = 0; has_keys; stage = 1 - stage) {
      keys = next;
      wait_for_copies<0>();
      __syncthreads();  // this stage is there, and the one before has been read
      has_keys = walk.next(&next);
      if (has_keys) block.load_other(1 - stage, other, next, task.b, task.head);
      commit_copies();
      if (first_row >= params.tiles.step) continue;  // a warp without rows has nothing but the copies to do
      typename B::Scores s = {}, dp = {};
      multiply_tiles<T>(s, block.own_tiles[0], first_row, block.other_tile(stage, 0));
      multiply_tiles<T>(dp, block.own_tiles[1], first_row, block.other_tile(stage, 1));
      const auto part = part_of<Side::kQueries, B::kRows, B::kColumns>(
          row_of, [&](int b) { return keys.position(b / 4, b / 2 % 2 * 8 + fragment_column(lane) + b % 2); });
      const bool sees_all =
          is_whole && all_see_all(band, task.begin, task.begin + B::kTile.rows - 1, keys.least(), keys.most());
      differentiate<T, kOptions>(x, head, band, part, sees_all, [&](int a) { return facts[a]; }, s, dp);
      add_weighted_rows<T>(dq, packed<T>(dp), block.other_tile(stage, 0));
    }
    wait_for_copies<0>();
    __syncthreads();                                       // q and do have landed even where there were no keys
    const Task same = task_of(params.tiles, here(index));  // anew: kept, it would take registers from the loop
    block.store(dq, x.scale, params.dq, same.b, same.head, x.D, task.begin,
                static_cast<int>(smaller(task.begin + params.tiles.step, x.Lq)), sequence.q_len);
  }
}

}  // namespace flash
