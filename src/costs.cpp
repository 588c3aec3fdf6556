// FLOPs from the exact number of visible pairs, bytes as if every element that is needed moved once: tiles of k and v that
// are read again come from a cache. What kernels ask of that cache is in traffic.cpp.
#include "costs.h"

namespace flash {
namespace {

int64_t length(Interval x) { return larger(0, x.end - x.begin); }

// The visible pairs of a rectangle of the score matrix. Rows end before q_len.
int64_t pairs_within(Window window, Sequence sequence, Interval rows, Interval keys) {
  if (empty(rows) || empty(intersection(keys, keys_of_any(window, sequence, rows)))) return 0;
  const Interval all = keys_of_all(window, sequence, rows);
  if (all.begin <= keys.begin && keys.end <= all.end) return length(rows) * length(keys);
  int64_t pairs = 0;
  for (int64_t i = rows.begin; i < rows.end; ++i) pairs += length(intersection(keys, keys_of(window, sequence, i)));
  return pairs;
}

int64_t pairs_in_blocks(const Problem &problem, Sequence sequence, int64_t b, int64_t h) {
  const BlockMaskView &blocks = problem.blocks;
  const int32_t *start = blocks.row_start + b * blocks.row_batch + h * blocks.row_head;
  int64_t pairs = 0;
  for (int64_t r = 0; r < ceil_div(problem.Lq, blocks.block_q); ++r) {
    const Interval rows{r * blocks.block_q, smaller((r + 1) * blocks.block_q, sequence.q_len)};
    for (int64_t n = start[r * blocks.row_stride]; n < start[(r + 1) * blocks.row_stride]; ++n) {
      const int64_t first_key = blocks.columns[n * blocks.columns_stride] * blocks.block_k;
      pairs += pairs_within(problem.window, sequence, rows,
                            {first_key, smaller(first_key + blocks.block_k, sequence.kv_len)});
    }
  }
  return pairs;
}

}  // namespace

Problem unread(Problem problem) {
  problem.q_lens = problem.kv_lens = problem.q_offsets = {};
  problem.blocks = {};
  return problem;
}

bool has_unread_values(const Problem &problem) {
  return problem.backend == Backend::kCuda && (problem.q_lens.data != nullptr || problem.kv_lens.data != nullptr ||
                                               problem.q_offsets.data != nullptr || problem.blocks.block_q != 0);
}

double listed_share(const Problem &problem) {
  const BlockMaskView &blocks = problem.blocks;
  if (blocks.block_q == 0) return 1;
  const auto grid = static_cast<double>(ceil_div(problem.Lq, blocks.block_q) * ceil_div(problem.Lk, blocks.block_k)) *
                    static_cast<double>(blocks.row_batch != 0 ? problem.B : 1) *
                    static_cast<double>(blocks.row_head != 0 ? problem.Hq : 1);
  return grid > 0 ? static_cast<double>(blocks.nnz) / grid : 0;
}

double own_elements(const ScoresView &view, const Problem &problem) {
  if (view.data == nullptr) return 0;
  double count = 1;
  for (int axis = 0; axis < view.batch.rank; ++axis) {
    if (view.batch.stride[axis] != 0) count *= static_cast<double>(view.batch.extent[axis]);
  }
  if (view.head != 0) count *= static_cast<double>(problem.Hq);
  if (view.row != 0) count *= static_cast<double>(problem.Lq);
  if (view.column != 0) count *= static_cast<double>(problem.Lk);
  return count;
}

double visible_pairs(const Problem &problem) {
  if (has_unread_values(problem)) return visible_pairs(unread(problem)) * listed_share(problem);
  const auto Hq = static_cast<double>(problem.Hq);
  const bool has_blocks = problem.blocks.block_q != 0, per_head = has_blocks && problem.blocks.row_head != 0;
  double total = 0, pairs = 0;
  Sequence previous{-1, -1, 0};
  for (int64_t b = 0; b < problem.B; ++b) {
    const Sequence sequence = sequence_of(problem, b);
    const bool same = sequence.q_len == previous.q_len && sequence.kv_len == previous.kv_len &&
                      sequence.offset == previous.offset && (!has_blocks || problem.blocks.row_batch == 0);
    previous = sequence;
    if (!same) {
      pairs = 0;
      if (has_blocks) {
        for (int64_t h = 0; h < (per_head ? problem.Hq : 1); ++h) {
          pairs += static_cast<double>(pairs_in_blocks(problem, sequence, b, h));
        }
        if (!per_head) pairs *= Hq;
      } else {
        pairs =
            Hq * static_cast<double>(pairs_within(problem.window, sequence, {0, sequence.q_len}, {0, sequence.kv_len}));
      }
    }
    total += pairs;
  }
  return total;
}

Costs costs_of(const Problem &problem, const Plan &plan, uint32_t wanted) {
  const bool backward = wanted != 0;
  const auto Hq = static_cast<double>(problem.Hq), Hk = static_cast<double>(problem.Hk);
  const auto D = static_cast<double>(problem.D), Dv = static_cast<double>(problem.Dv);
  const auto B = static_cast<double>(problem.B), Lq = static_cast<double>(problem.Lq);
  const auto Lk = static_cast<double>(problem.Lk);
  const DType dtype = problem.dtype, sum = sum_dtype(dtype);
  const DType result = result_dtype(problem);  // of o, and of a score matrix in memory

  Costs costs{};
  costs.pairs = visible_pairs(problem);
  // Two products of the forward, s and o; five of the backward: s again, dp, and dq, dk, dv.
  costs.flops = 2 * costs.pairs * (backward ? 3 * D + 2 * Dv : D + Dv);

  double queries = 0, keys = 0;  // that some pair may need
  const Problem &lengths = problem.backend == Backend::kCuda ? unread(problem) : problem;
  for (int64_t b = 0; b < problem.B; ++b) {
    const Sequence sequence = sequence_of(lengths, b);
    queries += static_cast<double>(length(queries_of_any(problem.window, sequence, {0, sequence.kv_len})));
    keys += static_cast<double>(length(keys_of_any(problem.window, sequence, {0, sequence.q_len})));
  }
  const auto score_bytes = [&](const ScoresView &view) {
    const double own = own_elements(view, problem);
    return bytes_of(view.dtype, own < costs.pairs ? own : costs.pairs);
  };
  costs.needed.read = bytes_of(dtype, queries * Hq * D + keys * Hk * (D + Dv));
  if (problem.mask.data != nullptr) costs.needed.read += score_bytes(problem.mask);
  if (problem.bias.data != nullptr) costs.needed.read += score_bytes(problem.bias);

  if (!backward) {
    costs.needed.written = bytes_of(result, B * Lq * Hq * Dv) + bytes_of(sum, B * Lq * Hq);
  } else {
    costs.needed.read += bytes_of(dtype, 2 * queries * Hq * Dv) + bytes_of(sum, queries * Hq);  // do and o; lse
    if (wanted & FLASH_DQ) costs.needed.written += bytes_of(dtype, B * Lq * Hq * D);
    if (wanted & FLASH_DK) costs.needed.written += bytes_of(dtype, B * Lk * Hk * D);
    if (wanted & FLASH_DV) costs.needed.written += bytes_of(dtype, B * Lk * Hk * Dv);
    if (wanted & FLASH_DBIAS) costs.needed.written += bytes_of(problem.bias.dtype, own_elements(problem.bias, problem));
    if (wanted & FLASH_DSINKS) costs.needed.written += bytes_of(problem.sinks.dtype, Hq);
  }
  // Forward: s and p are each written and read. Backward: p read for dv, dp written, p and dp read, ds written, and read
  // for dq and for dk.
  costs.standard_bytes = bytes_of(result, (backward ? 7 : 4) * B * Hq * Lq * Lk);
  costs.requested = requested_traffic(problem, plan, wanted, costs.pairs);
  return costs;
}

}  // namespace flash
