// What a plan costs, by counting: operations, memory traffic. Called by explain.cpp.
#pragma once
#include <cstdint>

#include "plan.h"
#include "problem.h"

namespace flash {

// Bytes.
struct Traffic {
  double read, written;
};

struct Costs {
  double pairs, flops;
  Traffic needed;         // every element that is needed once, as if what is read again came from a cache
  Traffic requested;      // what CUDA kernels ask of memory and caches, see requested_traffic; on the CPU 0
  double standard_bytes;  // what standard attention moves besides, for its matrices
};

// wanted: 0 for the forward. Reads lengths and block lists, so check_values must have passed.
Costs costs_of(const Problem &problem, const Plan &plan, uint32_t wanted);

// How many pairs (i, j) of all batches and heads lie inside the visible intervals and listed blocks; an element mask is
// not counted. Where lengths or block lists lie on a CUDA device they are not read: whole sequences are assumed, and the
// share of blocks that the mask lists.
double visible_pairs(const Problem &problem);

// What can be known of a problem without reading its arrays, as on CUDA: whole sequences and no block mask.
Problem unread(Problem problem);
bool has_unread_values(const Problem &problem);
// The share of all blocks that a block mask lists.
double listed_share(const Problem &problem);
// The elements of a mask or bias before broadcasting: axes of extent 1 and broadcast ones have stride 0.
double own_elements(const ScoresView &view, const Problem &problem);

// The dtype of o.
inline DType result_dtype(const Problem &problem) {
  return problem.dtype == DType::kFloat8 ? DType::kBfloat16 : problem.dtype;
}
inline double bytes_of(DType dtype, double count) { return static_cast<double>(size_bytes(dtype)) * count; }

// What the plan's CUDA kernels ask of memory, which caches may answer, in sectors of 32 bytes: rows once for each tile
// that meets them. `pairs` are the visible ones. Right to a few percent where rows are whole sectors and lengths are
// some hundreds (tests/test_explain.py); lists of blocks are left out, and values that lie on the device are not read.
Traffic requested_traffic(const Problem &problem, const Plan &plan, uint32_t wanted, double pairs);

}  // namespace flash
