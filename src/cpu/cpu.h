// The CPU backend: what the rest of the library calls. All arguments are validated; results are finished on return.
//
// Work is cut into tasks that threads take one at a time from a counter. What a task computes depends on the shapes
// only, and sums that cross tasks are taken in a fixed order, so results have the same bits whatever the thread count.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../plan.h"
#include "../problem.h"

namespace flash {

Plan plan_cpu(const Problem &problem, uint32_t wanted);

// Fewer workspace bytes than workspace_bytes(plan) mean fewer workers; there are at least least_workspace_bytes(plan).
void cpu_forward(const Problem &problem, const Plan &plan, RowsView o, LseView lse, void *workspace,
                 size_t workspace_bytes);
void cpu_backward(const Problem &problem, const Plan &plan, const BackwardArguments &arguments, void *workspace,
                  size_t workspace_bytes);

// The probabilities of `count` queries, before dropout: element (b, h, r, j) of weights lies at
// weights[b * batch + h * head + r * row + j * column], in the sum dtype. Query r is rows[r * rows_stride], or r if rows
// is NULL.
struct WeightsView {
  void *data;
  int64_t batch, head, row, column;
};
void cpu_weights(const Problem &problem, const int64_t *rows, int64_t rows_stride, int64_t count, WeightsView weights);

// keep[b, h, i, j] of shape extent[4], byte strides stride[4].
void cpu_dropout_mask(uint64_t seed, double dropout, bool *keep, const int64_t extent[4], const int64_t stride[4]);

struct MergePart {
  RowsView o;
  LseView lse;
};
// o = the union of two disjoint key sets; o and lse may be those of a part. lse.data may be NULL.
void cpu_merge(DType dtype, int64_t B, int64_t Lq, int64_t Hq, int64_t Dv, MergePart first, MergePart second,
               MergePart merged);

}  // namespace flash
