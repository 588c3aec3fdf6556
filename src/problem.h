// The validated description of one attention problem, and everything that a user can get wrong about it.
//
// read_problem and its siblings take what the caller passed and either throw Error, with the message that the caller
// sees, or return plain data that the planner and the kernels can rely on. Nothing is written before they return.
#pragma once
#include <cstdint>

#include "flash.h"
#include "geometry.h"
#include "tensor.h"

namespace flash {

class Arguments;  // check.h: the arrays of one call

constexpr int64_t kMaxHeadDim = 576;
// Scalars given as integers, and offsets in arrays, lie strictly between -kScalarLimit and kScalarLimit.
constexpr int64_t kScalarLimit = int64_t{1} << 30;

// The blocks to compute, compressed by rows (forward) and by columns (backward). Index arrays are int32.
struct BlockMaskView {
  int64_t block_q, block_k;                 // powers of two, 16 to 256; 0 = no block mask
  const int32_t *row_start, *columns;       // row r of (b, h): columns[row_start[b, h, r] .. row_start[b, h, r + 1])
  const int32_t *column_start, *rows;       // the transpose; NULL in a forward
  int64_t row_batch, row_head, row_stride;  // strides of row_start; 0 where broadcast
  int64_t column_batch, column_head, column_stride;  // strides of column_start
  int64_t columns_stride, rows_stride;               // strides of columns and rows
  int64_t nnz;                                       // length of columns and rows
};

struct Problem {
  Backend backend;
  int device_id;
  DType dtype;
  int64_t B, Lq, Lk, Hq, Hk, D, Dv;

  RowsView q, k, v;
  ScoresView mask, bias;                 // bool; q's dtype or the sum dtype
  BatchView alibi_slopes;                // float32, per batch and head
  BatchView sinks;                       // per head
  BatchView q_lens, kv_lens, q_offsets;  // int32 or int64
  BatchView q_scale, k_scale, v_scale;   // float32, per batch and key head
  BatchView seeds;                       // one integer
  BlockMaskView blocks;

  double scale, softcap, dropout;
  Window window;  // causal already folded in
  bool has_q_offset;
  int64_t q_offset;
  uint64_t seed;  // unless seeds is given
  bool deterministic;
};

// What the backward reads and writes besides the problem. A gradient whose data is NULL is not wanted.
struct BackwardArguments {
  RowsView dout, o;
  LseView lse, dlse;
  RowsView dq, dk, dv;
  ScoresView dbias;  // strides 0 where the bias itself is broadcast
  BatchView dsinks;
};

// Reads and checks the problem itself; `arguments` is fresh and then holds its arrays. Without `needs_v` (only the
// probabilities do without it) v may be NULL, and then Dv is 0.
enum class NeedsV : bool { kNo, kYes };
Problem read_problem(const flash_problem *given, Arguments &arguments, NeedsV needs_v = NeedsV::kYes);
// Reads and checks the arguments of one call, after read_problem with the same `arguments`. A lse of NULL is not wanted.
void read_outputs(const Problem &problem, Arguments &arguments, const flash_tensor *o, const flash_tensor *lse,
                  RowsView *o_view, DType *o_dtype, LseView *lse_view);
BackwardArguments read_backward(const Problem &problem, Arguments &arguments, const flash_saved *saved,
                                const flash_gradients *gradients);
// FLASH_DQ | ... of the gradients that BackwardArguments asks for.
uint32_t wanted_of(const BackwardArguments &arguments);
// Checks a choice of gradients (FLASH_DQ | ..., at least one) against what the problem has, and returns it.
uint32_t check_wanted(const Problem &problem, uint32_t wanted);
// In [0, 1], else throws.
double check_dropout(double dropout);
// Values inside host arrays: lengths, offsets and block lists. CUDA arrays are not read back.
void check_values(const Problem &problem);

// The lengths and offset of batch b, clamped to what the shapes allow. Host arrays only.
Sequence sequence_of(const Problem &problem, int64_t b);
// The seed of dropout, read from `seeds` where that is given. Host arrays only.
uint64_t seed_of(const Problem &problem);

}  // namespace flash
