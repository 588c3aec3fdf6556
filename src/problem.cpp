// What one call asks for: shapes, dtypes, scalars and combinations of options, checked into plain data. Called by
// api.cpp.
//
// The order of checks: struct, arrays one by one (tensor.cpp's rules, then the shape), scalars, combinations. Values
// inside arrays come last, in check_values, because reading them costs time.
#include "problem.h"

#include <cmath>

#include "check.h"

namespace flash {
namespace {

// Extents and indices fit in 32 bits: Philox counters, block lists and CUDA grids have no more.
constexpr int64_t kMaxExtent = (int64_t{1} << 31) - 1;
constexpr int64_t kMinBlock = 16, kMaxBlock = 256;

constexpr uint64_t kKnownFlags =
    FLASH_CAUSAL | FLASH_SCALE | FLASH_Q_OFFSET | FLASH_WINDOW_LEFT | FLASH_WINDOW_RIGHT | FLASH_DETERMINISTIC;
constexpr uint32_t kKnownGradients = FLASH_DQ | FLASH_DK | FLASH_DV | FLASH_DBIAS | FLASH_DSINKS;

constexpr const char *kQShape = "N + (Lq, Hq, D)";
constexpr const char *kOShape = "N + (Lq, Hq, Dv)";
constexpr const char *kLseShape = "N + (Hq, Lq)";

void check_extent(const Tensor &tensor, int axis_from_end, const char *axis, int64_t wanted, const char *like) {
  const int64_t got = tensor.extent(axis_from_end);
  if (got != wanted) fail(FLASH_INVALID_VALUE, tensor.name, ": ", axis, " must be ", wanted, like, ", got ", got);
}

void check_at_least_one(const Tensor &tensor, int axis_from_end, const char *axis) {
  if (tensor.extent(axis_from_end) == 0) fail(FLASH_INVALID_VALUE, tensor.name, ": ", axis, " must not be 0");
}

void check_head_dim(const Tensor &tensor) {
  check_at_least_one(tensor, 1, "last axis (the head dimension)");
  if (tensor.extent(1) > kMaxHeadDim) {
    fail(FLASH_UNSUPPORTED, tensor.name, ": last axis (the head dimension) must be at most ", kMaxHeadDim, ", got ",
         tensor.extent(1));
  }
}

void check_scalar(const char *name, int64_t value, int64_t least) {
  if (value < least || value >= kScalarLimit) {
    fail(FLASH_INVALID_VALUE, name, ": must be ", least < 0 ? "above -2^30" : "at least 0", " and below 2^30, got ",
         value);
  }
}

// ---- The parts of a problem

void read_q_k_v(const flash_problem &given, Arguments &arguments, NeedsV needs_v, Problem &problem) {
  const Tensor q = arguments.input(
      "q", given.q, {DType::kFloat16, DType::kBfloat16, DType::kFloat32, DType::kFloat64, DType::kFloat8});
  check_axes(q, 3, kQShape);
  check_head_dim(q);
  check_at_least_one(q, 2, "heads axis");
  const Shape leading = leading_shape(q, 3);
  problem.backend = q.backend;
  problem.device_id = q.device_id;
  problem.dtype = q.dtype;
  problem.Lq = q.extent(3), problem.Hq = q.extent(2), problem.D = q.extent(1);
  problem.B = 1;
  for (int64_t extent : leading) problem.B *= extent;  // tensor.cpp has checked that products don't overflow
  problem.q = rows_view(q);

  const Tensor k = arguments.input("k", given.k, {q.dtype}, " as in q");
  check_axes(k, 3, "N + (Lk, Hk, D)");
  if (leading_shape(k, 3) != leading) {
    fail(FLASH_INVALID_VALUE, "k: leading axes must be ", to_text(leading), " as in q, got ",
         to_text(leading_shape(k, 3)));
  }
  check_extent(k, 1, "last axis", problem.D, " as in q");
  check_at_least_one(k, 2, "heads axis");
  problem.Lk = k.extent(3), problem.Hk = k.extent(2);
  if (problem.Hq % problem.Hk != 0) {
    fail(FLASH_INVALID_VALUE, "k: heads axis must divide the ", problem.Hq, " heads of q, got ", problem.Hk);
  }
  problem.k = rows_view(k);

  if (given.v != nullptr || needs_v == NeedsV::kYes) {
    const Tensor v = arguments.input("v", given.v, {q.dtype}, " as in q");
    check_axes(v, 3, "N + (Lk, Hk, Dv)");
    if (leading_shape(v, 3) != leading) {
      fail(FLASH_INVALID_VALUE, "v: leading axes must be ", to_text(leading), " as in q, got ",
           to_text(leading_shape(v, 3)));
    }
    check_extent(v, 3, "keys axis", problem.Lk, " as in k");
    check_extent(v, 2, "heads axis", problem.Hk, " as in k");
    check_head_dim(v);
    problem.Dv = v.extent(1);
    problem.v = rows_view(v);
  }

  const struct {
    const char *name, *what;
    int64_t extent;
  } limited[] = {{"q", "merged leading axes", problem.B},
                 {"q", "queries axis", problem.Lq},
                 {"q", "heads axis", problem.Hq},
                 {"k", "keys axis", problem.Lk}};
  for (const auto &[name, what, extent] : limited) {
    if (extent > kMaxExtent) fail(FLASH_UNSUPPORTED, name, ": ", what, " must be below 2^31, got ", extent);
  }
}

// Reads an optional array of one value per sequence, or per sequence and head.
BatchView read_lengths(const char *name, const flash_tensor *given, Arguments &arguments, const Shape &leading) {
  if (given == nullptr) return {};
  const Tensor tensor = arguments.input(name, given, {DType::kInt32, DType::kInt64});
  check_shape(tensor, leading, "N");
  return batch_view(tensor, HasHead::kNo);
}

BatchView read_float8_scale(const char *name, const flash_tensor *given, Arguments &arguments, const Problem &problem,
                            const Shape &leading) {
  if (given == nullptr) return {};
  if (problem.dtype != DType::kFloat8) {
    fail(FLASH_INVALID_TYPE, name, ": is for float8_e4m3fn only, q is ", flash::name(problem.dtype));
  }
  const Tensor tensor = arguments.input(name, given, {DType::kFloat32});
  if (tensor.ndim() == 0) return batch_view(tensor, HasHead::kNo);
  check_shape(tensor, joined(leading, {problem.Hk}), "() or N + (Hk,)");
  return batch_view(tensor, HasHead::kYes);
}

ScoresView read_scores(const char *name, const flash_tensor *given, Arguments &arguments, const Problem &problem,
                       const Shape &leading, std::initializer_list<DType> dtypes) {
  if (given == nullptr) return {};
  return scores_view(arguments.input(name, given, dtypes), joined(leading, {problem.Hq, problem.Lq, problem.Lk}));
}

struct StartsView {
  const int32_t *data;
  int64_t batch, head, step;
};

// row_start or column_start: int32 (B or 1, Hq or 1, count + 1).
StartsView read_starts(const char *name, const flash_tensor *given, Arguments &arguments, const Problem &problem,
                       int64_t count) {
  const Tensor tensor = arguments.input(name, given, {DType::kInt32});
  const Shape &shape = tensor.shape;
  const bool fits = shape.size() == 3 && (shape[0] == 1 || shape[0] == problem.B) &&
                    (shape[1] == 1 || shape[1] == problem.Hq) && shape[2] == count + 1;
  if (!fits) {
    fail(FLASH_INVALID_VALUE, name, ": shape must be (1 or ", problem.B, ", 1 or ", problem.Hq, ", ", count + 1,
         ") for blocks that cover q and k, got ", to_text(shape));
  }
  return {static_cast<const int32_t *>(tensor.data), tensor.stride[0], tensor.stride[1], tensor.stride[2]};
}

Tensor read_indices(const char *name, const flash_tensor *given, Arguments &arguments) {
  Tensor tensor = arguments.input(name, given, {DType::kInt32});
  if (tensor.ndim() != 1) {
    fail(FLASH_INVALID_VALUE, name, ": must have one axis, got shape ", to_text(tensor.shape));
  }
  if (tensor.extent(1) > kMaxExtent) {
    fail(FLASH_UNSUPPORTED, name, ": must list fewer than 2^31 blocks, got ", tensor.extent(1));
  }
  return tensor;
}

void check_block_size(const char *name, int64_t size) {
  if (size < kMinBlock || size > kMaxBlock || (size & (size - 1)) != 0) {
    fail(FLASH_INVALID_VALUE, name, ": must be a power of two from ", kMinBlock, " to ", kMaxBlock, ", got ", size);
  }
}

BlockMaskView read_block_mask(const flash_block_mask *given, Arguments &arguments, const Problem &problem) {
  const flash_block_mask mask = copy_struct("block_mask", given);
  BlockMaskView view{};
  check_block_size("block_mask.block_q", mask.block_q);
  check_block_size("block_mask.block_k", mask.block_k);
  view.block_q = mask.block_q, view.block_k = mask.block_k;

  const int64_t row_count = ceil_div(problem.Lq, view.block_q), column_count = ceil_div(problem.Lk, view.block_k);
  const StartsView row = read_starts("block_mask.row_start", mask.row_start, arguments, problem, row_count);
  view.row_start = row.data;
  view.row_batch = row.batch, view.row_head = row.head, view.row_stride = row.step;
  const Tensor columns = read_indices("block_mask.columns", mask.columns, arguments);
  view.columns = static_cast<const int32_t *>(columns.data);
  view.columns_stride = columns.step(1);
  view.nnz = columns.extent(1);

  if ((mask.column_start == nullptr) != (mask.rows == nullptr)) {
    fail(FLASH_INVALID_VALUE, "block_mask: column_start and rows must be given together, ",
         mask.rows == nullptr ? "rows" : "column_start", " is NULL");
  }
  if (mask.column_start != nullptr) {
    const StartsView column =
        read_starts("block_mask.column_start", mask.column_start, arguments, problem, column_count);
    view.column_start = column.data;
    view.column_batch = column.batch, view.column_head = column.head, view.column_stride = column.step;
    const Tensor rows = read_indices("block_mask.rows", mask.rows, arguments);
    check_extent(rows, 1, "length", view.nnz, " as in block_mask.columns");
    view.rows = static_cast<const int32_t *>(rows.data);
    view.rows_stride = rows.step(1);
  }
  return view;
}

void read_scalars(const flash_problem &given, Problem &problem) {
  if ((given.flags & ~kKnownFlags) != 0) {
    fail(FLASH_INVALID_VALUE, "flags: unknown bits ", given.flags & ~kKnownFlags, ", this library knows ", kKnownFlags);
  }
  const auto has = [&](uint64_t flag) { return (given.flags & flag) != 0; };
  problem.scale = 1 / std::sqrt(static_cast<double>(problem.D));
  if (has(FLASH_SCALE)) problem.scale = given.scale;
  if (!std::isfinite(problem.scale)) fail(FLASH_INVALID_VALUE, "scale: must be finite, got ", problem.scale);
  problem.softcap = given.softcap;
  if (!std::isfinite(given.softcap) || given.softcap < 0) {
    fail(FLASH_INVALID_VALUE, "softcap: must be finite and at least 0 (0 is off), got ", given.softcap);
  }
  problem.dropout = check_dropout(given.dropout);
  problem.seed = given.seed;
  problem.deterministic = has(FLASH_DETERMINISTIC);

  problem.window = {kOpen, kOpen};
  if (has(FLASH_WINDOW_LEFT)) {
    check_scalar("window_left", given.window_left, 0);
    problem.window.left = given.window_left;
  }
  if (has(FLASH_WINDOW_RIGHT)) {
    check_scalar("window_right", given.window_right, 0);
    problem.window.right = given.window_right;
  }
  if (has(FLASH_CAUSAL)) problem.window.right = 0;
  if (has(FLASH_Q_OFFSET)) {
    if (given.q_offsets != nullptr) {
      fail(FLASH_INVALID_VALUE, "q_offset: is given both as a number and as an array; give one of them");
    }
    check_scalar("q_offset", given.q_offset, 1 - kScalarLimit);
    problem.has_q_offset = true;
    problem.q_offset = given.q_offset;
  }
}

// N of q.
Shape leading_of(const Arguments &arguments) { return leading_shape(*arguments.find("q"), 3); }

}  // namespace

double check_dropout(double dropout) {
  if (!(dropout >= 0 && dropout <= 1)) fail(FLASH_INVALID_VALUE, "dropout: must be 0 to 1, got ", dropout);
  return dropout;
}

Problem read_problem(const flash_problem *given_struct, Arguments &arguments, NeedsV needs_v) {
  const flash_problem given = copy_struct("problem", given_struct);
  Problem problem{};
  read_q_k_v(given, arguments, needs_v, problem);
  const Shape leading = leading_of(arguments);

  // What is added to scores has q's dtype or that of the sums.
  const DType addend = problem.dtype == DType::kFloat8 ? DType::kFloat32 : problem.dtype;
  const std::initializer_list<DType> addends{addend, sum_dtype(problem.dtype)};
  problem.mask = read_scores("mask", given.mask, arguments, problem, leading, {DType::kBool});
  problem.bias = read_scores("bias", given.bias, arguments, problem, leading, addends);
  if (given.alibi_slopes != nullptr) {
    const Tensor slopes = arguments.input("alibi_slopes", given.alibi_slopes, {DType::kFloat32});
    if (slopes.shape != Shape{problem.Hq}) check_shape(slopes, joined(leading, {problem.Hq}), "(Hq,) or N + (Hq,)");
    problem.alibi_slopes = batch_view(slopes, HasHead::kYes);
  }
  if (given.sinks != nullptr) {
    const Tensor sinks = arguments.input("sinks", given.sinks, addends);
    check_shape(sinks, {problem.Hq}, "(Hq,)");
    problem.sinks = batch_view(sinks, HasHead::kYes);
  }
  problem.q_lens = read_lengths("q_lens", given.q_lens, arguments, leading);
  problem.kv_lens = read_lengths("kv_lens", given.kv_lens, arguments, leading);
  problem.q_offsets = read_lengths("q_offset", given.q_offsets, arguments, leading);
  problem.q_scale = read_float8_scale("q_scale", given.q_scale, arguments, problem, leading);
  problem.k_scale = read_float8_scale("k_scale", given.k_scale, arguments, problem, leading);
  problem.v_scale = read_float8_scale("v_scale", given.v_scale, arguments, problem, leading);
  if (given.seeds != nullptr) {
    const Tensor seeds = arguments.input("seed", given.seeds, {DType::kInt32, DType::kInt64});
    for (int64_t extent : seeds.shape) {
      if (extent != 1) fail(FLASH_INVALID_VALUE, "seed: must have one element, got shape ", to_text(seeds.shape));
    }
    problem.seeds = batch_view(seeds, HasHead::kNo);
  }
  if (given.block_mask != nullptr) problem.blocks = read_block_mask(given.block_mask, arguments, problem);
  read_scalars(given, problem);

  if (problem.backend == Backend::kCpu && problem.dtype == DType::kFloat8) {
    fail(FLASH_UNSUPPORTED, "q: float8_e4m3fn needs a Hopper GPU (compute capability 9.0), q is on the CPU; ",
         "convert to float16, bfloat16 or float32");
  }
  if (problem.backend == Backend::kCuda && problem.dtype == DType::kFloat64) {
    fail(FLASH_UNSUPPORTED, "q: float64 runs on the CPU only, q is on CUDA; convert to float32 or copy to the CPU");
  }
  return problem;
}

void read_outputs(const Problem &problem, Arguments &arguments, const flash_tensor *o, const flash_tensor *lse,
                  RowsView *o_view, DType *o_dtype, LseView *lse_view) {
  const Shape leading = leading_of(arguments);
  const bool is_float8 = problem.dtype == DType::kFloat8;  // it can't hold a result
  const Tensor o_tensor = is_float8 ? arguments.output("o", o, {DType::kFloat16, DType::kBfloat16, DType::kFloat32})
                                    : arguments.output("o", o, {problem.dtype}, " as in q");
  check_shape(o_tensor, joined(leading, {problem.Lq, problem.Hq, problem.Dv}), kOShape);
  *o_view = rows_view(o_tensor);
  *o_dtype = o_tensor.dtype;
  *lse_view = {};
  if (lse != nullptr) {
    const Tensor lse_tensor = arguments.output("lse", lse, {sum_dtype(problem.dtype)});
    check_shape(lse_tensor, joined(leading, {problem.Hq, problem.Lq}), kLseShape);
    *lse_view = flash::lse_view(lse_tensor);
  }
}

uint32_t wanted_of(const BackwardArguments &arguments) {
  return (arguments.dq.data != nullptr ? uint32_t{FLASH_DQ} : 0u) |
         (arguments.dk.data != nullptr ? uint32_t{FLASH_DK} : 0u) |
         (arguments.dv.data != nullptr ? uint32_t{FLASH_DV} : 0u) |
         (arguments.dbias.data != nullptr ? uint32_t{FLASH_DBIAS} : 0u) |
         (arguments.dsinks.data != nullptr ? uint32_t{FLASH_DSINKS} : 0u);
}

uint32_t check_wanted(const Problem &problem, uint32_t wanted) {
  if ((wanted & ~kKnownGradients) != 0) {
    fail(FLASH_INVALID_VALUE, "wanted: unknown bits ", wanted & ~kKnownGradients, ", gradients are ", kKnownGradients);
  }
  if (wanted == 0) fail(FLASH_INVALID_VALUE, "gradients: at least one must be wanted");
  if ((wanted & FLASH_DBIAS) && problem.bias.data == nullptr) {
    fail(FLASH_INVALID_VALUE, "dbias: wanted, but the problem has no bias");
  }
  if ((wanted & FLASH_DSINKS) && problem.sinks.data == nullptr) {
    fail(FLASH_INVALID_VALUE, "dsinks: wanted, but the problem has no sinks");
  }
  if (problem.dtype == DType::kFloat8) {
    fail(FLASH_UNSUPPORTED, "q: float8_e4m3fn has no backward; convert to float16, bfloat16 or float32");
  }
  if (problem.blocks.block_q != 0 && problem.blocks.column_start == nullptr) {
    fail(FLASH_INVALID_VALUE, "block_mask.column_start: is NULL, the backward needs column_start and rows");
  }
  return wanted;
}

BackwardArguments read_backward(const Problem &problem, Arguments &arguments, const flash_saved *saved_struct,
                                const flash_gradients *gradients_struct) {
  const flash_saved saved = copy_struct("saved", saved_struct);
  const flash_gradients gradients = copy_struct("gradients", gradients_struct);
  check_wanted(problem, (gradients.dq ? uint32_t{FLASH_DQ} : 0u) | (gradients.dk ? uint32_t{FLASH_DK} : 0u) |
                            (gradients.dv ? uint32_t{FLASH_DV} : 0u) | (gradients.dbias ? uint32_t{FLASH_DBIAS} : 0u) |
                            (gradients.dsinks ? uint32_t{FLASH_DSINKS} : 0u));
  const Shape leading = leading_of(arguments);
  const Shape o_shape = joined(leading, {problem.Lq, problem.Hq, problem.Dv}),
              lse_shape = joined(leading, {problem.Hq, problem.Lq});
  BackwardArguments result{};

  const auto read_rows = [&](const char *name, const flash_tensor *given) {
    const Tensor tensor = arguments.input(name, given, {problem.dtype}, " as in q");
    check_shape(tensor, o_shape, kOShape);
    return rows_view(tensor);
  };
  const auto read_lse = [&](const char *name, const flash_tensor *given) {
    const Tensor tensor = arguments.input(name, given, {sum_dtype(problem.dtype)});
    check_shape(tensor, lse_shape, kLseShape);
    return lse_view(tensor);
  };
  result.dout = read_rows("do", saved.dout);
  result.o = read_rows("o", saved.o);
  result.lse = read_lse("lse", saved.lse);
  if (saved.dlse != nullptr) result.dlse = read_lse("dlse", saved.dlse);

  // A gradient without elements counts as not wanted.
  const auto read_gradient = [&](const char *name, const flash_tensor *given, const char *of, const char *meaning) {
    const Tensor original = *arguments.find(of);  // a copy: `output` may move the list
    Tensor tensor = arguments.output(name, given, {original.dtype}, text(" as in ", of).c_str());
    check_shape(tensor, original.shape, meaning);
    if (!has_elements(tensor.shape)) tensor.data = nullptr;
    return tensor;
  };
  if (gradients.dq) result.dq = rows_view(read_gradient("dq", gradients.dq, "q", "q's"));
  if (gradients.dk) result.dk = rows_view(read_gradient("dk", gradients.dk, "k", "k's"));
  if (gradients.dv) result.dv = rows_view(read_gradient("dv", gradients.dv, "v", "v's"));
  if (gradients.dbias) {
    result.dbias = scores_view(read_gradient("dbias", gradients.dbias, "bias", "bias's own"),
                               joined(leading, {problem.Hq, problem.Lq, problem.Lk}));
  }
  if (gradients.dsinks) {
    result.dsinks = batch_view(read_gradient("dsinks", gradients.dsinks, "sinks", "sinks'"), HasHead::kYes);
  }
  return result;
}

}  // namespace flash
