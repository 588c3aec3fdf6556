// The CUDA backend's plan: kernel, tiles, grid and workspace from the problem and the device's facts, without a CUDA
// call; and the arguments that kernels get. Called by plan.cpp and cuda_calls.cpp.
#include <cfloat>
#include <cmath>
#include <numeric>

#include "../cuda/isa/index.h"
#include "check.h"
#include "cuda_calls.h"
#include "cuda_fill.h"
#include "cuda_maps.h"
#include "error.h"
#include "random.h"

namespace flash {
namespace {

constexpr double kLog2E = 1.44269504088896340736, kLn2 = 0.693147180559945309417;

BlockLists lists_by_row(const Problem &problem) {
  const BlockMaskView &x = problem.blocks;
  return {x.row_start,
          x.columns,
          x.row_batch,
          x.row_head,
          x.row_stride,
          x.columns_stride,
          x.nnz,
          static_cast<int>(x.block_q),
          static_cast<int>(x.block_k),
          ceil_div(problem.Lk, x.block_k)};
}
BlockLists lists_by_column(const Problem &problem) {
  const BlockMaskView &x = problem.blocks;
  return {x.column_start,
          x.rows,
          x.column_batch,
          x.column_head,
          x.column_stride,
          x.rows_stride,
          x.nnz,
          static_cast<int>(x.block_k),
          static_cast<int>(x.block_q),
          ceil_div(problem.Lq, x.block_q)};
}

// Below this a product with -inf, or with the smallest scores, is not what it would be in exact arithmetic.
bool is_plain_scale(double scale) { return scale * kLog2E >= FLT_MIN && scale * kLog2E <= FLT_MAX; }

// Whether the scores' own numbers lie side by side in aligned pairs of keys, or there are none.
bool is_in_pairs(const ScoresView &x) {
  if (x.data == nullptr) return true;
  bool has_odd = x.row % 2 != 0 || x.head % 2 != 0;
  for (int axis = 0; axis < x.batch.rank; ++axis) has_odd = has_odd || x.batch.stride[axis] % 2 != 0;
  const auto pair_bytes = static_cast<uintptr_t>(2 * size_bytes(x.dtype));
  return x.column == 1 && !has_odd && reinterpret_cast<uintptr_t>(x.data) % pair_bytes == 0;
}

// Rows from one tile to the next, so that none crosses a line of the block mask (a power of two).
int tile_step(int rows, int64_t length, int64_t block) {
  int64_t most = rows;
  if (block != 0)
    for (most = block; most > rows;) most /= 2;
  return static_cast<int>(larger(kGranule, smaller(most, round_up(length, kGranule))));
}

int64_t warps_to_blocks(int64_t warps) { return ceil_div(warps, kPlainThreads / 32); }
int64_t threads_to_blocks(int64_t threads) { return ceil_div(threads, kPlainThreads); }

// Hands out pieces of one buffer; with base NULL it only adds up.
float *take(char *base, size_t *used, int64_t count) {
  float *piece = base == nullptr ? nullptr : reinterpret_cast<float *>(base + *used);
  *used += static_cast<size_t>(round_up(count * int64_t{sizeof(float)}, kWorkspaceAlignment));
  return piece;
}

}  // namespace

Rows cuda_rows(const RowsView &view, DType dtype, int64_t columns) {
  for (int count : {8, 4}) {
    const auto fits = [&](int64_t numbers) { return numbers % count == 0; };
    const uintptr_t bytes = static_cast<uintptr_t>(count) * static_cast<uintptr_t>(size_bytes(dtype));
    if (reinterpret_cast<uintptr_t>(view.data) % bytes == 0 && fits(columns) && fits(view.batch) && fits(view.row) &&
        fits(view.head)) {
      return {view, dtype, count};
    }
  }
  return {view, dtype, 1};
}

Attention cuda_attention(const Problem &problem) {
  Attention x{};
  x.B = problem.B;
  x.Lq = static_cast<int>(problem.Lq), x.Lk = static_cast<int>(problem.Lk);
  x.Hq = static_cast<int>(problem.Hq), x.Hk = static_cast<int>(problem.Hk);
  x.D = static_cast<int>(problem.D), x.Dv = static_cast<int>(problem.Dv);
  x.q = cuda_rows(problem.q, problem.dtype, problem.D);
  x.k = cuda_rows(problem.k, problem.dtype, problem.D);
  x.v = cuda_rows(problem.v, problem.dtype, problem.Dv);
  x.mask = problem.mask, x.bias = problem.bias;
  x.alibi_slopes = problem.alibi_slopes, x.sinks = problem.sinks;
  x.q_lens = problem.q_lens, x.kv_lens = problem.kv_lens, x.q_offsets = problem.q_offsets, x.seeds = problem.seeds;
  if (problem.blocks.block_q != 0) {
    x.by_row = lists_by_row(problem);
    if (problem.blocks.column_start != nullptr) x.by_column = lists_by_column(problem);
  }
  x.window = problem.window;
  x.q_offset = problem.q_offset, x.has_q_offset = problem.has_q_offset;
  constexpr int64_t kMostLength = int64_t{1} << 30;  // offsets are within as much
  x.is_plain_in_memory =
      is_in_pairs(x.mask) && is_in_pairs(x.bias) && problem.Lq < kMostLength && problem.Lk < kMostLength;
  x.seed = problem.seed;
  x.keep_threshold = dropout_threshold(problem.dropout);
  x.keep_scale = problem.dropout < 1 ? static_cast<float>(1 / (1 - problem.dropout)) : 0;
  x.scale = static_cast<float>(problem.scale);
  // At least the smallest normal number: a positive cap that rounds to 0 would divide 0 by 0.
  if (problem.softcap > 0) x.softcap = problem.softcap > FLT_MIN ? static_cast<float>(problem.softcap) : FLT_MIN;
  const double of_scale = has_score_options(problem) ? 1 : problem.scale;
  x.log2_scale = static_cast<float>(of_scale * kLog2E);
  const double rounded = static_cast<double>(x.log2_scale);
  x.log2_of_nat_low = static_cast<float>(rounded / of_scale - static_cast<double>(static_cast<float>(kLog2E)));
  x.nat_of_log2_low = static_cast<float>(of_scale / rounded - static_cast<double>(static_cast<float>(kLn2)));
  return x;
}

bool has_score_options(const Problem &problem) {
  return problem.softcap > 0 || problem.alibi_slopes.data != nullptr || problem.bias.data != nullptr ||
         problem.mask.data != nullptr || problem.dropout > 0 || !is_plain_scale(problem.scale);
}

Tiles cuda_tiles(int64_t B, int64_t heads, int64_t length, int tile_rows, int64_t block) {
  const int step = tile_step(tile_rows, length, block);
  const int64_t tiles = ceil_div(length, step);
  return {tiles * heads * B, tiles, heads, step};
}

BiasPieces cuda_bias_pieces(const Problem &problem, const ScoresView &dbias, int64_t most_partial) {
  constexpr TileShape tile = bias_tile_shape();
  const int step = tile_step(tile.rows, problem.Lq, problem.blocks.block_q);
  const int64_t own = own_batches(dbias.batch);
  const int64_t query_tiles = ceil_div(problem.Lq, step), key_tiles = ceil_div(problem.Lk, tile.columns);
  const bool all_heads = dbias.head == 0, all_rows = dbias.row == 0, all_columns = dbias.column == 0;
  BiasPieces pieces{};
  pieces.own = {own, all_heads ? 1 : problem.Hq, all_rows ? 1 : query_tiles, all_columns ? 1 : key_tiles};
  pieces.other = {own == 0 ? 0 : problem.B / own, all_heads ? problem.Hq : 1, all_rows ? query_tiles : 1,
                  all_columns ? key_tiles : 1};
  pieces.query_step = step;
  pieces.splits = 1;
  const int64_t number = pieces.own.product();
  if (number == 0 || number >= kBiasBlocks) return pieces;
  pieces.splits = larger(1, smaller(pieces.other.product(), ceil_div(kBiasBlocks, number)));
  const int64_t one = bias_partial_count(pieces, dbias) / pieces.splits;
  if (one > 0) pieces.splits = smaller(pieces.splits, most_partial / one);
  if (pieces.splits < 2) pieces.splits = 1;
  return pieces;
}

int64_t bias_partial_count(const BiasPieces &pieces, const ScoresView &dbias) {
  constexpr TileShape tile = bias_tile_shape();
  if (pieces.splits == 1) return 0;
  return pieces.splits * pieces.own.product() * (dbias.row == 0 ? 1 : tile.rows) *
         (dbias.column == 0 ? 1 : tile.columns);
}

namespace {

// What a kernel is written for.
enum class Family : uint8_t { kAny, kSm80, kSm90, kFp8Sm90 };

// The kernel family for a problem and its tiles.
struct Choice {
  Family family;
  bool is_one_pass;  // dq with dk and dv
  DType dtype;
  Memory memory;
  int head_dim, rows, columns, threads, shared_bytes;
};

// Whether dq can be summed with dk and dv in one pass.
bool wants_one_pass(uint32_t wanted) { return (wanted & FLASH_DQ) != 0 && (wanted & (FLASH_DK | FLASH_DV)) != 0; }

// Whether a forward on Hopper is one for keys that are longer than values.
bool has_narrow_values(const Problem &x) {
  return built_hopper_head_dim(x.D, x.Dv) == kNarrowHeadDim && x.Dv <= kNarrowValueDim && !has_score_options(x);
}
int hopper_value_dim(const Problem &x, int head_dim) { return has_narrow_values(x) ? kNarrowValueDim : head_dim; }

// Why Hopper's own kernels don't take a problem of 16-bit numbers; NULL if they do.
const char *hopper_limit(const Problem &x, uint32_t wanted, const CudaDevice &device) {
  // Smaller blocks would leave most of a warpgroup's 64 rows empty, or make boxes of a few keys.
  constexpr int64_t kLeastBlock = 64;
  if (device.compute_capability != 90 || device.shared_bytes < most_shared_bytes(Memory::kHopper))
    return "the kernels for tensor cores newer than those of 8.0 are for compute capability 9.0";
  if (wanted != 0 && !wants_one_pass(wanted)) return "Hopper's backward takes dq together with dk or dv";
  const bool is_wide = is_wide_sm90(built_backward_hopper_head_dim(x.D, x.Dv));
  if (wanted != 0 && x.deterministic && (is_wide || x.blocks.block_q != 0))
    return "Hopper's backward isn't deterministic with a block mask, or at head dimensions above 128";
  if (x.blocks.block_q != 0 && smaller(x.blocks.block_q, x.blocks.block_k) < kLeastBlock)
    return "Hopper's kernels take block masks with blocks of 64 and more";
  if (!takes_map(x.q, x.dtype, {x.D, x.Lq, x.Hq, x.B}) || !takes_map(x.k, x.dtype, {x.D, x.Lk, x.Hk, x.B}) ||
      !takes_map(x.v, x.dtype, {x.Dv, x.Lk, x.Hk, x.B}))
    return "Hopper's kernels take q, k and v with rows that start at multiples of 16 bytes and strides above 0";
  return nullptr;
}

// Throws where float8 can't run: no other kernel takes it.
void check_float8(const Problem &x, const CudaDevice &device) {
  constexpr const char *kConvert = "; convert to float16, bfloat16 or float32";
  constexpr int64_t kLeastBlock = 64;
  if (device.compute_capability != 90 || device.shared_bytes < most_shared_bytes(Memory::kHopper)) {
    fail(FLASH_UNSUPPORTED, "q: float8_e4m3fn needs a Hopper GPU (compute capability 9.0), this one has ",
         device.compute_capability / 10, '.', device.compute_capability % 10, kConvert);
  }
  if (built_fp8_head_dim(x.D, x.Dv) == 0) {
    fail(FLASH_UNSUPPORTED, x.D > x.Dv ? "q" : "v", ": head dimensions of float8_e4m3fn must be at most 256, got ",
         larger(x.D, x.Dv), kConvert);
  }
  if (x.blocks.block_q != 0 && smaller(x.blocks.block_q, x.blocks.block_k) < kLeastBlock) {
    fail(FLASH_UNSUPPORTED, "block_mask: blocks must be at least 64 x 64 with float8_e4m3fn, got ", x.blocks.block_q,
         " x ", x.blocks.block_k, kConvert);
  }
  const auto check = [&](const char *name, const RowsView &view, const TensorShape &shape) {
    const bool is_empty = shape.rows == 0 || shape.batches == 0;
    if (is_empty || takes_map(view, x.dtype, shape)) return;
    fail(FLASH_UNSUPPORTED, name,
         ": rows of float8_e4m3fn must start at multiples of 16 bytes and have strides above 0, ", "got strides ",
         to_text({view.batch, view.row, view.head}), " of batch, rows and heads; pass a copy whose head ",
         "dimension is padded to a multiple of 16");
  };
  check("q", x.q, {x.D, x.Lq, x.Hq, x.B});
  check("k", x.k, {x.D, x.Lk, x.Hk, x.B});
  check("v", x.v, {x.Dv, x.Lk, x.Hk, x.B});
}

// takes_dout: whether do can be copied by boxes.
Choice choose(const Problem &problem, uint32_t wanted, const CudaDevice &device, bool takes_dout = true) {
  const bool is_forward = wanted == 0, has_options = has_score_options(problem);
  const bool is_one_pass = wants_one_pass(wanted) && !problem.deterministic;
  const auto has = [&](Memory memory) { return device.shared_bytes >= most_shared_bytes(memory); };
  if (problem.dtype == DType::kFloat8) {
    const int head_dim = built_fp8_head_dim(problem.D, problem.Dv);
    const WarpgroupTile tile = forward_fp8_sm90_tile(head_dim, has_options);
    return {Family::kFp8Sm90, false,          problem.dtype,
            Memory::kHopper,  head_dim,       tile.rows,
            tile.columns,     tile.threads(), forward_fp8_sm90_shared_bytes(head_dim, has_options)};
  }
  const int tensor_dim = built_tensor_head_dim(problem.D, problem.Dv);
  if (size_bytes(problem.dtype) == 2 && tensor_dim != 0) {
    const auto tensor = [&](Family family, int head_dim, auto tile, Memory memory, int bytes, bool one_pass = false) {
      return Choice{family, one_pass, problem.dtype, memory, head_dim, tile.rows, tile.columns, tile.threads(), bytes};
    };
    if (takes_dout && hopper_limit(problem, wanted, device) == nullptr) {
      const int head_dim = is_forward ? built_hopper_head_dim(problem.D, problem.Dv)
                                      : built_backward_hopper_head_dim(problem.D, problem.Dv);
      if (is_forward) {
        const int value_dim = hopper_value_dim(problem, head_dim);
        return tensor(Family::kSm90, head_dim, forward_sm90_tile(head_dim, value_dim, has_options), Memory::kHopper,
                      forward_sm90_shared_bytes(head_dim, value_dim, has_options));
      }
      return tensor(Family::kSm90, head_dim, backward_sm90_tile(head_dim, has_options), Memory::kHopper,
                    backward_sm90_shared_bytes(head_dim, has_options), true);
    }
    if (is_forward) {
      const Memory memory = forward_sm80_memory(tensor_dim, has(Memory::kLarge));
      return tensor(Family::kSm80, tensor_dim, forward_sm80_tile(tensor_dim, has_options, memory), memory,
                    forward_sm80_shared_bytes(tensor_dim, has_options, memory));
    }
    const Memory memory = backward_sm80_memory(tensor_dim);
    if (is_one_pass && has(memory))
      return tensor(Family::kSm80, tensor_dim, backward_sm80_tile(tensor_dim), memory,
                    backward_sm80_shared_bytes(tensor_dim), true);
    return tensor(Family::kSm80, tensor_dim, backward_deterministic_sm80_tile(tensor_dim), Memory::kSmall,
                  backward_deterministic_sm80_shared_bytes(tensor_dim));
  }
  const int head_dim = built_head_dim(problem.D, problem.Dv);
  const TileShape tile = is_forward ? forward_tile(head_dim) : backward_tile(head_dim);
  return {
      Family::kAny,   false,          kAnyType,
      Memory::kSmall, head_dim,       tile.rows,
      tile.columns,   tile.threads(), is_forward ? forward_shared_bytes(head_dim) : backward_shared_bytes(head_dim)};
}

// dbias has a kernel of its own beside that of the other gradients, on tensor cores for any head dims.
KernelLaunch bias_launch(const Problem &problem, int64_t tasks) {
  const bool is_tensor = size_bytes(problem.dtype) == 2;
  return {is_tensor ? Operation::backward_bias_sm80 : Operation::backward_bias_any,
          is_tensor ? problem.dtype : kAnyType,
          kAnyHeadDim,
          true,
          Memory::kSmall,
          tasks,
          tasks,
          is_tensor ? bias_sm80_tile().threads() : bias_tile_shape().threads(),
          is_tensor ? bias_sm80_shared_bytes() : bias_shared_bytes(),
          0};
}

// The kernel on Hopper that goes over the tiles of a choice.
Operation hopper_operation(const Problem &x, const Choice &choice, uint32_t wanted) {
  if (choice.family == Family::kFp8Sm90) return Operation::forward_fp8_sm90;
  if (wanted == 0) return has_narrow_values(x) ? Operation::forward_narrow_sm90 : Operation::forward_sm90;
  return is_wide_sm90(choice.head_dim) ? Operation::backward_wide_sm90 : Operation::backward_sm90;
}

}  // namespace

CudaBackwardMemory place_cuda_backward(char *base, const Problem &problem, uint32_t wanted, const CudaDevice &device) {
  const int64_t rows = problem.B * problem.Hq * problem.Lq;
  CudaBackwardMemory memory{};
  memory.delta = take(base, &memory.bytes, rows);
  memory.lse2 = take(base, &memory.bytes, rows);
  memory.lse2_low = take(base, &memory.bytes, rows);
  const Choice choice = choose(problem, wanted, device);
  if (choice.is_one_pass) {
    memory.dq_sums = {nullptr, round_up(problem.Lq, kGranule), choice.head_dim};
    memory.dq_sums.data =
        take(base, &memory.bytes, problem.B * problem.Hq * memory.dq_sums.rows * memory.dq_sums.columns);
  }
  if (choice.family == Family::kSm90 && problem.deterministic) {
    memory.dq_turns.queries = choice.columns;
    const int64_t turns = problem.B * problem.Hq * memory.dq_turns.of_head(static_cast<int>(problem.Lq));
    static_assert(sizeof(int) == sizeof(float));
    memory.dq_turns.done = reinterpret_cast<int *>(take(base, &memory.bytes, turns));
  }
  if (wanted & FLASH_DBIAS) {
    // The gradient's strides are not known to a query for the workspace's size; the bias's own are.
    const BiasPieces pieces = cuda_bias_pieces(problem, problem.bias, INT64_MAX);
    memory.bias_partial_count = bias_partial_count(pieces, problem.bias);
    memory.bias_partial = take(base, &memory.bytes, memory.bias_partial_count);
  }
  return memory;
}

const char *name(Operation operation) {
#define FLASH_KERNEL(header, name, type, head_dim, options, memory) \
  if (operation == Operation::name) return #name;
#include "../cuda/instances.def"
#undef FLASH_KERNEL
  return "unknown operation";
}

Tiles cuda_query_tiles(const Problem &problem, int tile_rows) {
  return cuda_tiles(problem.B, problem.Hq, problem.Lq, tile_rows, problem.blocks.block_q);
}
Tiles cuda_key_tiles(const Problem &problem, int tile_rows) {
  return cuda_tiles(problem.B, problem.Hk, problem.Lk, tile_rows, problem.blocks.block_k);
}

int64_t cuda_dq_pieces(const Problem &problem) {
  return problem.B * problem.Hq * ceil_div(problem.Lq, 8) * ceil_div(problem.D, 32);
}

KernelLaunch plain_launch(Operation operation, int64_t tasks, int shared_bytes) {
  return {operation, kAnyType, 0, false, Memory::kSmall, tasks, tasks, kPlainThreads, shared_bytes, 0};
}

int cuda_log2_heads(const Problem &problem, int tile_rows) {
  if (problem.Lq >= tile_rows || has_score_options(problem) || problem.blocks.block_q != 0) return 0;
  int log2_heads = 0;
  for (int64_t group = problem.Hq / problem.Hk; group % 2 == 0 && 2 << log2_heads <= kWarpgroupRows; group /= 2)
    ++log2_heads;
  return log2_heads;
}

int cuda_heads_together(const Problem &problem, int log2_heads) {
  constexpr int64_t kCacheBytes = int64_t{32} << 20;  // of the 50 MiB of an H100
  const int64_t keys_bytes = problem.Lk * (problem.D + problem.Dv) * size_bytes(problem.dtype);
  const int64_t key_heads = clamp(kCacheBytes / larger(1, keys_bytes), 1, problem.Hk * problem.B);
  return static_cast<int>(smaller(key_heads * ((problem.Hq / problem.Hk) >> log2_heads), int64_t{1} << 20));
}

Tiles cuda_tiles_of_heads(const Problem &problem, int tile_rows) {
  const int log2_heads = cuda_log2_heads(problem, tile_rows);
  return cuda_tiles(problem.B, problem.Hq >> log2_heads, problem.Lq << log2_heads, tile_rows, problem.blocks.block_q);
}

CudaForwardMemory place_cuda_forward(char *base, const Problem &problem, const CudaDevice &device) {
  CudaForwardMemory memory{{1, 0, nullptr, nullptr}, 0};
  const Choice choice = choose(problem, 0, device);
  const bool is_float8 = choice.family == Family::kFp8Sm90;
  if (problem.Lq > kMostQueriesOfPieces || (choice.family != Family::kSm90 && !is_float8)) return memory;
  const int keys = is_float8 ? fp8_piece_keys(choice.head_dim) : kPieceKeys;
  const int64_t count = ceil_div(problem.Lk, keys), rows = count * problem.B * problem.Hq * problem.Lq;
  if (count < 2) return memory;
  memory.pieces = {count, keys, nullptr, nullptr};
  memory.pieces.o = take(base, &memory.bytes, rows * KeyPieces::row(problem.Dv));
  memory.pieces.lse = take(base, &memory.bytes, rows);
  return memory;
}

int cuda_box_keys(const Problem &problem, bool has_options, int head_dim) {
  const WarpgroupTile tile = problem.dtype == DType::kFloat8
                                 ? forward_fp8_sm90_tile(head_dim, has_options)
                                 : forward_sm90_tile(head_dim, hopper_value_dim(problem, head_dim), has_options);
  return static_cast<int>(std::gcd(tile.columns, problem.blocks.block_k));
}
int cuda_box_queries(const Problem &problem, bool has_options, int head_dim) {
  return static_cast<int>(std::gcd(backward_sm90_tile(head_dim, has_options).columns, problem.blocks.block_q));
}

KernelLaunches cuda_launches(const Problem &problem, uint32_t wanted, const CudaDevice &device, const ScoresView &dbias,
                             int64_t most_partial, bool takes_dout) {
  const Choice choice = choose(problem, wanted, device, takes_dout);
  const bool has_options = has_score_options(problem);
  KernelLaunches launches{};
  const auto add = [&](KernelLaunch launch) {
    if (launch.tasks > 0) launches.list[launches.count++] = launch;
  };
  const auto add_tiles = [&](Operation operation, const Tiles &tiles) {
    add({operation, choice.dtype, choice.head_dim, has_options, choice.memory, tiles.tasks, tiles.tasks, choice.threads,
         choice.shared_bytes, choice.rows});
  };
  const auto add_plain = [&](Operation operation, int64_t tasks, int shared_bytes) {
    add(plain_launch(operation, tasks, shared_bytes));
  };
  const bool is_tensor = choice.family == Family::kSm80;
  if (wanted == 0 && (choice.family == Family::kSm90 || choice.family == Family::kFp8Sm90)) {
    const int64_t pieces = place_cuda_forward(nullptr, problem, device).pieces.count;
    const int64_t tasks = cuda_tiles_of_heads(problem, choice.rows).tasks * pieces;
    add({hopper_operation(problem, choice, wanted), choice.dtype, choice.head_dim, has_options, choice.memory, tasks,
         smaller(tasks, device.multiprocessors),  // which keep their blocks
         choice.threads, choice.shared_bytes, choice.rows});
    if (pieces > 1) add_plain(Operation::forward_pieces_sm90, warps_to_blocks(problem.B * problem.Hq * problem.Lq), 0);
    return launches;
  }
  if (wanted == 0) {
    add_tiles(is_tensor ? Operation::forward_sm80 : Operation::forward_any, cuda_query_tiles(problem, choice.rows));
    return launches;
  }
  add_plain(Operation::backward_prepare_any, warps_to_blocks(problem.B * problem.Hq * problem.Lq), 0);
  const int before = launches.count;
  if (choice.is_one_pass) {
    add_tiles(is_tensor ? Operation::backward_sm80 : hopper_operation(problem, choice, wanted),
              cuda_key_tiles(problem, choice.rows));
    add_plain(Operation::backward_dq_sm80, warps_to_blocks(cuda_dq_pieces(problem)), 0);
  } else {
    if (wanted & (FLASH_DK | FLASH_DV)) {
      add_tiles(is_tensor ? Operation::backward_keys_sm80 : Operation::backward_keys_any,
                cuda_key_tiles(problem, choice.rows));
    }
    if (wanted & FLASH_DQ) {
      add_tiles(is_tensor ? Operation::backward_queries_sm80 : Operation::backward_queries_any,
                cuda_query_tiles(problem, choice.rows));
    }
  }
  if (wanted & FLASH_DBIAS) {
    const BiasPieces pieces = cuda_bias_pieces(problem, dbias, most_partial);
    add(bias_launch(problem, pieces.own.product() * pieces.splits));
    if (pieces.splits > 1) {
      add_plain(Operation::backward_bias_sum_any, threads_to_blocks(bias_partial_count(pieces, dbias) / pieces.splits),
                0);
    }
  }
  if (wanted & FLASH_DSINKS) {
    add_plain(Operation::backward_sinks_any, problem.Hq, kPlainThreads * static_cast<int>(sizeof(double)));
  }
  if (launches.count == before) launches.count = 0;  // no gradient has elements
  return launches;
}

Plan plan_cuda(const Problem &problem, uint32_t wanted, const CudaDevice &device) {
  if (problem.dtype == DType::kFloat8) check_float8(problem, device);
  const Choice choice = choose(problem, wanted, device);
  Plan plan{};
  if (choice.family == Family::kSm90 || choice.family == Family::kFp8Sm90) {
    plan.kernel = name(hopper_operation(problem, choice, wanted));
    plan.path = "Hopper's tensor cores";
  } else if (choice.family == Family::kSm80) {
    plan.kernel = wanted == 0 ? "forward_sm80" : choice.is_one_pass ? "backward_sm80" : "backward_deterministic_sm80";
    plan.path = "tensor cores";
    if (device.compute_capability >= 90) {
      plan.limit = hopper_limit(problem, wanted, device);
    } else if (wanted != 0 && !choice.is_one_pass && !problem.deterministic) {
      plan.limit =
          "one pass for all gradients asks for dq together with dk or dv, and for 163 KiB of shared memory at "
          "head dimensions above 64";
    }
  } else {
    plan.kernel = wanted == 0 ? "forward_any" : "backward_any";
    plan.path = "float32";
    if (problem.dtype != DType::kFloat32) plan.limit = "the kernels for tensor cores take head dimensions to 256";
  }
  plan.workers = device.multiprocessors;
  if (choice.is_one_pass) {
    plan.block_q = choice.columns, plan.block_k = cuda_key_tiles(problem, choice.rows).step;
  } else {
    plan.block_q = cuda_query_tiles(problem, choice.rows).step, plan.block_k = choice.columns;
  }
  plan.launches = cuda_launches(problem, wanted, device, problem.bias, INT64_MAX);
  for (const KernelLaunch &launch : plan.launches) {
    const bool is_small =
        launch.operation == Operation::backward_prepare_any || launch.operation == Operation::backward_bias_sum_any ||
        launch.operation == Operation::backward_dq_sm80 || launch.operation == Operation::forward_pieces_sm90;
    if (!is_small) plan.tasks += launch.tasks;
  }
  plan.shared_bytes = wanted == 0 ? place_cuda_forward(nullptr, problem, device).bytes
                                  : place_cuda_backward(nullptr, problem, wanted, device).bytes;
  return plan;
}

}  // namespace flash
