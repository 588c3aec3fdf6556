// Backward for 16-bit types on tensor cores of compute capability 8.0 and later (mma.m16n8k16) in one pass, in the
// order of FlashAttention-2, Algorithm 2: the mathematics of backward_any.cuh, whose kernels prepare delta and lse2 and
// sum dbias and dsinks here too.
//
//   k, v stay in shared memory                                       dk, dv in registers, 32 keys to a warp
//   for each head that reads them, for each tile of queries
//     wait for q, do; start loading the next
//     s^T = k q^T;  dp^T = v do^T;  p^T and ds^T                     16 keys to a warp, then to shared memory
//     dv += p^T do;  dk += ds^T q
//     dq += ds k                                                     32 queries to a warp, added in memory
//   then another kernel rounds dq to rows
//
// Blocks of threads add to dq in the order in which they come, so its last bits differ from run to run: where they must
// not, backward_deterministic_sm80.cuh computes s and dp once more instead. Launched by src/cuda_calls.cpp through
// instances.def.
#pragma once
#include "both_sides.cuh"

namespace flash {

// How the 8 warps of a block share the work on one pair of tiles.
template <int kHeadDim>
struct OnePass {
  static constexpr TensorTile kTile = backward_sm80_tile(kHeadDim);
  static constexpr int kThreads = kTile.threads();
  // Scores: warps next to each other have the same queries.
  static constexpr int kKeyGroups = kTile.rows / kMmaRows, kQueryGroups = kTile.warps / kKeyGroups;
  // At once; at 128 half of them, because dk and dv take half of all registers.
  static constexpr int kQueries = kTile.columns / kQueryGroups / (kHeadDim == 128 ? 2 : 1);
  // Gradients: 32 rows to a warp, the head dim shared out.
  static constexpr int kGradientRows = 32;
  static constexpr int kKeyParts = kTile.warps * kGradientRows / kTile.rows;
  static constexpr int kQueryParts = kTile.warps * kGradientRows / kTile.columns;
  using Both = BothSides<kHeadDim, kTile.rows, kTile.columns, kThreads, Side::kKeys>;
  using Weights = SharedTile<kWeightColumns>;  // rows of keys, columns of queries
  using Scores = float[2][kQueries / 4];
  using KeySum = float[kGradientRows / 8][kHeadDim / kKeyParts / 4];
  using QuerySum = float[kGradientRows / 8][kHeadDim / kQueryParts / 4];
};

// The warp's part of dq is added to the sums in memory. position_of(m): of the first query of 16, -1 = there are none.
template <int kHeadDim, class PositionOf>
__device__ __forceinline__ void add_to_dq(float *sums_of_head, int part, int columns, PositionOf position_of,
                                          const typename OnePass<kHeadDim>::QuerySum &dq) {
  using B = OnePass<kHeadDim>;
  const int lane = here(static_cast<int>(threadIdx.x)) % kWarp;
#pragma unroll
  for (int m = 0; m < B::kGradientRows / kMmaRows; ++m) {
    const int first = position_of(m);
    if (first < 0) continue;
#pragma unroll
    for (int b = 0; b < kHeadDim / B::kQueryParts / 4; b += 2) {
      const int unit = unit_of<B::kQueryParts>(part, b);
      if (unit * kUnit >= columns) continue;
      float *const to = sums_of_head + int64_t{first} * kHeadDim + unit * (kMmaRows * kUnit) + lane;
      add_fragment(to, dq[2 * m][b], dq[2 * m][b + 1], dq[2 * m + 1][b], dq[2 * m + 1][b + 1]);
    }
  }
}

template <class T, int kHeadDim, bool kOptions, Memory>
__global__ void __launch_bounds__(backward_sm80_tile(kHeadDim).threads(), 1)
    backward_sm80(const __grid_constant__ GradientParams params) {
  using B = OnePass<kHeadDim>;
  constexpr TensorTile kTile = B::kTile;
  const Attention &x = params.attention;
  const typename B::Both block(x, params.facts);
  const typename B::Weights p_tile = {block.facts_of(kBackwardStages)},
                            ds_tile = {p_tile.address + kTile.rows * B::Weights::kRowBytes};
  const bool sums_dk = params.dk.view.data != nullptr, sums_dv = params.dv.view.data != nullptr;

  for (int64_t index = blockIdx.x; index < params.tiles.tasks; index += gridDim.x) {
    // Anew for each use: kept, it would take registers from the loop.
    const auto task_here = [&] { return task_of<Side::kKeys>(params.tiles, here(index)); };
    const auto end_of = [&](const Task &task) {
      return static_cast<int>(smaller(task.begin + params.tiles.step, x.Lk));
    };
    const int group = x.Hq / x.Hk;
    {
      const Task task = task_here();
      const int64_t kv_len = sequence_of(x, task.b).kv_len;
      __syncthreads();  // what was there before has been read
      block.load_own(0, units_of(x.k, task.b, task.head, kv_len, x.D), task.begin, end_of(task));
      block.load_own(1, units_of(x.v, task.b, task.head, kv_len, x.Dv), task.begin, end_of(task));
      commit_copies();
    }
    typename B::KeySum dk = {}, dv = {};

#pragma unroll 1
    for (int n = 0; n < group; ++n) {
      const Task task = task_here();
      const int end = end_of(task), h = task.head * group + n;
      const Sequence sequence = sequence_of(x, task.b);
      const Band band = band_of(x.window, sequence);
      const int q_len = static_cast<int>(sequence.q_len);
      const Head head = head_of<kOptions>(x, sequence, task.b, h);
      float *const dq_of_head = params.dq_sums.data + (task.b * x.Hq + h) * params.dq_sums.rows * kHeadDim;
      const auto load_queries = [&](int stage, const typename B::Both::Other &queries) {
        const int same = here(h);  // anew: the rows' addresses, too
        const Source rows[2] = {units_of(x.q, task.b, same, q_len, x.D),
                                units_of(params.dout, task.b, same, q_len, x.Dv)};
        block.load_other(stage, rows, queries, task.b, same);
        commit_copies();
      };
      Walk walk(x.by_column, task.b, h, task.begin, queries_of_any(x.window, sequence, {task.begin, end}));
      bool has_queries = false, sees_all = false;  // of stage 1 - `stage`
      for (int stage = 0;; stage = 1 - stage) {
        typename B::Both::Other next;
        const bool has_next = walk.next(&next);
        if (!has_queries && !has_next) break;
        if (has_queries) wait_for_copies<0>();
        __syncthreads();  // the stage at hand is there; the one before, p and ds have been read
        if (has_next) load_queries(stage, next);
        const bool had_queries = has_queries, saw_all = sees_all;
        has_queries = has_next;
        sees_all = end - task.begin == kTile.rows && queries_see_all(next, q_len, band, task.begin, end - 1);
        if (!had_queries) continue;
        const int thread = here(static_cast<int>(threadIdx.x)), lane = thread % kWarp, warp = thread / kWarp;
#pragma unroll 1
        for (int query = 0; query < kTile.columns; query += B::kQueryGroups * B::kQueries) {
          const int first_key = warp % B::kKeyGroups * kMmaRows;
          const int first_query = query + (B::kQueryGroups == 1 ? 0 : warp / B::kKeyGroups * B::kQueries);
          const auto of_warp = [&](int which) {
            const typename B::Both::Tile tile = block.other_tile(1 - stage, which);
            return typename B::Both::Tile{tile.address + static_cast<uint32_t>(first_query * tile.kRowBytes)};
          };
          typename B::Scores s = {}, dp = {};
          if (first_key < params.tiles.step) {  // else zeros
            multiply_tiles<T>(s, block.own_tiles[0], first_key, of_warp(0));
            multiply_tiles<T>(dp, block.own_tiles[1], first_key, of_warp(1));
            const auto part = part_of<Side::kKeys, 2, B::kQueries / 4>(
                [&](int a) { return task.begin + paired_row(first_key + 8 * a + fragment_row(lane)); },
                [&](int b) {
                  return block.position(1 - stage, first_query + b / 2 * 8 + fragment_column(lane) + b % 2);
                });
            const auto fact_of = [&](int b) {
              return block.fact(1 - stage, first_query + b / 2 * 8 + fragment_column(lane) + b % 2);
            };
            differentiate<T, kOptions>(x, head, band, part, saw_all, fact_of, s, dp);
          }
          const auto unit_at = [&](int b) { return first_query / kUnit + b / 2; };
          if (sums_dv) put_rows<T>(s, p_tile, first_key, unit_at);
          put_rows<T>(dp, ds_tile, first_key, unit_at);
        }
        __syncthreads();  // p and ds are there
        {
          const int first_key = warp / B::kKeyParts * B::kGradientRows, part = warp % B::kKeyParts;
          using Rows = WeightsInRows<kTile.columns, kWeightColumns>;
          if (sums_dv && first_key < params.tiles.step)
            add_weighted_rows<T, B::kKeyParts>(dv, Rows(p_tile, first_key), block.other_tile(1 - stage, 1), part);
          if (sums_dk && first_key < params.tiles.step)
            add_weighted_rows<T, B::kKeyParts>(dk, Rows(ds_tile, first_key), block.other_tile(1 - stage, 0), part);
        }
        const int first_query = warp / B::kQueryParts * B::kGradientRows, part = warp % B::kQueryParts;
        typename B::QuerySum dq = {};
        add_weighted_rows<T, B::kQueryParts>(dq, WeightsInColumns<kTile.rows, kWeightColumns>(ds_tile, first_query),
                                             block.own_tiles[0], part);
        add_to_dq<kHeadDim>(
            dq_of_head, part, x.D, [&](int m) { return block.position(1 - stage, first_query + m * kMmaRows); }, dq);
      }
    }

    wait_for_copies<0>();
    __syncthreads();  // k and v have landed even where there were no queries
    const int thread = here(static_cast<int>(threadIdx.x)), warp = thread / kWarp;
    const int first_key = warp / B::kKeyParts * B::kGradientRows, part = warp % B::kKeyParts;
    const Task same = task_here();
    const int64_t kv_len = sequence_of(x, same.b).kv_len;
    const auto position_of = [&](int row) {
      const int position = same.begin + paired_row(row);
      return position < end_of(same) ? position : -1;
    };
    const auto put = [&](typename B::KeySum &sum, float factor, typename B::Both::Tile tile) {
      float scale[B::kGradientRows / 8];
#pragma unroll
      for (int a = 0; a < B::kGradientRows / 8; ++a) {
        const int row = first_key + a / 2 * kMmaRows + a % 2 * 8 + fragment_row(thread % kWarp);
        scale[a] = same.begin + paired_row(row) < kv_len ? factor : 0;
      }
      scale_rows(sum, scale);
      put_rows<T>(sum, tile, first_key, [&](int b) { return unit_of<B::kKeyParts>(part, b); });
    };
    put(dk, x.scale, block.own_tiles[0]);
    put(dv, 1, block.own_tiles[1]);
    __syncthreads();  // dk and dv are there
    const auto send = [&](int which, const Rows &to, int columns) {
      if (to.view.data != nullptr)
        send_rows<kTile.rows, B::kThreads>(block.own_tiles[which], 0, thread, to, same.b, same.head, columns,
                                           position_of);
    };
    send(0, params.dk, x.D);
    send(1, params.dv, x.Dv);
  }
}

// ---- dq: from the sums to rows --------------------------------------------------------------------------------------

// A warp takes 8 queries by 32 numbers: lane 8 u + r unit u of query r. Both what it reads and what it writes are whole
// sectors.
template <int, bool>
__global__ void __launch_bounds__(kPlainThreads, 1) backward_dq_sm80(const __grid_constant__ DqParams params) {
  const Attention &x = params.attention;
  const DqSums &sums = params.sums;
  constexpr int kRows = 8, kColumns = 32, kWarps = kPlainThreads / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t row_pieces = ceil_div(x.Lq, kRows), column_pieces = ceil_div(x.D, kColumns);
  for (int64_t index = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp; index < params.tasks;
       index += int64_t{gridDim.x} * kWarps) {
    const int64_t head_of_all = index / column_pieces / row_pieces, b = head_of_all / x.Hq;
    const int h = static_cast<int>(head_of_all % x.Hq);
    const int first = static_cast<int>(index / column_pieces % row_pieces) * kRows, i = first + lane % kRows;
    const int unit = static_cast<int>(index % column_pieces) * (kColumns / kUnit) + lane / kRows;
    if (i >= x.Lq || unit * kUnit >= x.D) continue;
    const bool is_real = i < clamp(read_or(x.q_lens, b, x.Lq), 0, x.Lq);
    // Registers 0 and 1 of a 16 x 8 piece are its first 8 rows, 2 and 3 the others; row r is in lanes 4 r to 4 r + 3.
    const float *const piece = sums.data + (head_of_all * sums.rows + first / kGranule * kGranule) * sums.columns +
                               unit * (kMmaRows * kUnit) + first % kGranule / 8 * (2 * kWarp) + lane % kRows * 4;
    const float4 even = *reinterpret_cast<const float4 *>(piece),
                 odd = *reinterpret_cast<const float4 *>(piece + kWarp);
    const float number[kUnit] = {even.x, odd.x, even.y, odd.y, even.z, odd.z, even.w, odd.w};
    uint32_t word[kUnit / 2];
#pragma unroll
    for (int n = 0; n < kUnit / 2; ++n) {
      const float low = is_real ? number[2 * n] * x.scale : 0, high = is_real ? number[2 * n + 1] * x.scale : 0;
      word[n] = params.dq.dtype == DType::kFloat16 ? pack<Half>(low, high) : pack<Bfloat>(low, high);
    }
    const RowsView &view = params.dq.view;
    auto *const to = static_cast<uint16_t *>(view.data) + b * view.batch + h * view.head + i * view.row + unit * kUnit;
    if (params.dq.aligned >= kUnit) {
      *reinterpret_cast<uint4 *>(to) = {word[0], word[1], word[2], word[3]};
    } else {
#pragma unroll
      for (int c = 0; c < kUnit; ++c)
        if (unit * kUnit + c < x.D) to[c] = static_cast<uint16_t>(word[c / 2] >> (c % 2 * 16));
    }
  }
}

}  // namespace flash
