// Tiles of the plain kernels, with the reason beside the number. Read by the kernels and by the planner.
//
// A tile of scores has `rows` of its own side (queries; keys in the kernel of dk and dv) and `columns` of the other
// side. A block of threads is a grid of down x across; each thread has rows / down x columns / across scores in
// registers, so a number read from shared memory is used that many times. Rows come in pieces of `chunk` numbers of the
// head dim.
//
// All of it fits the 99 KiB of shared memory that every GPU since compute capability 8.0 gives to one block.
#pragma once
#include <cstdint>
#include <initializer_list>

#include "portable.h"

namespace flash {

struct TileShape {
  int rows, columns, down, across, chunk;
  FLASH_INLINE constexpr int threads() const { return down * across; }
};

// Head dims that kernels are built for: the larger of D and Dv is rounded up to one of these.
constexpr int kHeadDims[] = {64, 128, 256, 576};
FLASH_INLINE constexpr int built_head_dim(int64_t D, int64_t Dv) {
  for (int head_dim : kHeadDims)
    if (D <= head_dim && Dv <= head_dim) return head_dim;
  return 0;
}

// Consecutive positions that are fetched together; the smallest block of a block mask.
constexpr int kGranule = 16;
// Rows in shared memory are 4 numbers longer than needed: 8 threads that read 16 bytes each from 8 consecutive rows
// then meet all 32 banks once.
constexpr int kRowPadding = 4;

// The more products a number that was read from shared memory takes part in, the better: a multiprocessor can multiply
// 128 numbers in the time in which it reads 32. With x rows and y columns a thread that is x y products for x + y
// numbers, 8 x 8 being what is needed and what registers allow: as many again hold o, and as many the sum of a few
// p v. At 64 both products are 8 x 8; at 128, with o twice as wide, that is so for p v, and q k has 8 x 4. From 256 on,
// fewer rows, because q stays in shared memory (74 KB of it at 576); at 576 more threads, because o stays in registers
// (72 a thread).
FLASH_INLINE constexpr TileShape forward_tile(int head_dim) {
  if (head_dim == 64) return {64, 64, 8, 8, 64};
  if (head_dim == 128) return {64, 64, 8, 16, 128};
  return {32, 64, 16, head_dim == 256 ? 8 : 16, 64};
}
// Blocks of threads that a multiprocessor is to have registers for; shared memory has room for as many on the largest.
FLASH_INLINE constexpr int forward_blocks(int head_dim) { return head_dim == 64 ? 4 : head_dim <= 256 ? 2 : 1; }
// Keys whose p v are added up before they are added to O: halves the rounding error of O for 4 % more instructions.
constexpr int kSummedKeys = 16;

// dbias keeps nothing but the sum of one tile of scores, and goes through rows of any size in chunks.
constexpr int kAnyHeadDim = 0;

// Scores of two products at once, with dk and dv (or dq) in registers beside them: at 64 as many as scores, 4 x 8. At
// 128 twice that, so that scores have to be 4 x 4; rows are then kept whole, in the room that fewer columns leave. With
// half the rows 64 numbers at 256; 72 for only one of them at 576.
FLASH_INLINE constexpr TileShape backward_tile(int head_dim) {
  if (head_dim <= 64) return {64, 64, 16, 8, 64};
  if (head_dim == 128) return {64, 32, 16, 8, 128};
  return {32, head_dim == 256 ? 64 : 32, 16, 16, 64};
}
FLASH_INLINE constexpr int backward_blocks(int head_dim) { return head_dim <= 128 ? 2 : 1; }
// Whether dk and dv are summed in one pass: registers hold both. Else keys are gone through twice.
FLASH_INLINE constexpr bool sums_keys_at_once(int head_dim) { return head_dim <= 256; }

FLASH_INLINE constexpr int padded(int numbers) { return numbers + kRowPadding; }
// Rows of probabilities in shared memory: a warp writes `across` neighbours in each of 32 / across rows, which should
// lie in different banks. Tiles of 32 rows do without: the forward at 576 has no room for it.
FLASH_INLINE constexpr int weights_stride(TileShape tile) {
  return tile.columns + (tile.across == 8 || tile.rows == 32 ? 8 : 16);
}

FLASH_INLINE constexpr int forward_shared_bytes(int head_dim) {
  const TileShape tile = forward_tile(head_dim);
  return 4 * (tile.rows * padded(head_dim) + tile.columns * padded(tile.chunk) + tile.rows * weights_stride(tile));
}
// Whether the rows of the block's own side stay in shared memory: where one chunk holds them.
FLASH_INLINE constexpr bool keeps_own_rows(int head_dim) {
  return head_dim != kAnyHeadDim && backward_tile(head_dim).chunk >= head_dim;
}
FLASH_INLINE constexpr int backward_shared_bytes(int head_dim) {
  const TileShape tile = backward_tile(head_dim);
  return 4 * ((keeps_own_rows(head_dim) ? 2 : 1) * tile.rows * padded(tile.chunk) + tile.columns * padded(tile.chunk) +
              tile.rows * weights_stride(tile));
}

FLASH_INLINE constexpr TileShape bias_tile_shape() { return backward_tile(kAnyHeadDim); }
FLASH_INLINE constexpr int bias_shared_bytes() { return backward_shared_bytes(kAnyHeadDim); }

// ---- Tensor cores ---------------------------------------------------------------------------------------------------

// A tile of scores whose rows are shared out among warps.
struct TensorTile {
  int rows, columns, warps;
  FLASH_INLINE constexpr int threads() const { return warps * 32; }
  FLASH_INLINE constexpr int warp_rows() const { return rows / warps; }
};

constexpr int kTensorHeadDims[] = {64, 128, 192, 256};
FLASH_INLINE constexpr int built_tensor_head_dim(int64_t D, int64_t Dv) {
  for (int head_dim : kTensorHeadDims)
    if (D <= head_dim && Dv <= head_dim) return head_dim;
  return 0;
}
// Shared memory that a kernel asks of its GPU for one block of threads: what each has since compute capability 8.0, or
// what those for data centers have (163 KiB on 8.0, more on 9.0 and 10.0), or what the kernels for 9.0a count on.
enum class Memory : uint8_t { kSmall, kLarge, kHopper };
FLASH_INLINE constexpr int most_shared_bytes(Memory memory) {
  return (memory == Memory::kSmall ? 99 : memory == Memory::kLarge ? 163 : 227) * 1024;
}

// 32 queries a warp where registers hold O and the scores of as many (192 of 255 at 128): each fragment of k and v then
// serves two products. Else 16: from 192 on, and with options, whose rules take registers too. At 256 q, k and v of 128
// queries need large memory; with options fewer keys, for the registers.
FLASH_INLINE constexpr TensorTile forward_sm80_tile(int head_dim, bool has_options, Memory memory) {
  if (head_dim == 256)
    return {memory == Memory::kLarge ? 128 : 64, has_options ? 32 : 64, memory == Memory::kLarge ? 8 : 4};
  return {128, 64, head_dim <= 128 && !has_options ? 4 : 8};
}
// The memory that kernels are built for on a GPU that has large memory, or has not.
FLASH_INLINE constexpr Memory forward_sm80_memory(int head_dim, bool has_large) {
  return head_dim == 256 && has_large ? Memory::kLarge : Memory::kSmall;
}
FLASH_INLINE constexpr int forward_sm80_blocks(int head_dim, bool has_options) {
  return head_dim <= 64 && !has_options ? 2 : 1;
}
FLASH_INLINE constexpr int forward_sm80_shared_bytes(int head_dim, bool has_options, Memory memory) {
  const TensorTile tile = forward_sm80_tile(head_dim, has_options, memory);
  return 2 * head_dim * (tile.rows + 2 * tile.columns);
}

constexpr int kBackwardStages = 2;
// Of each query on the other side: lse2, delta and its position.
constexpr int kFactBytes = 12;
// k, v and two stages of q and do, with their facts.
FLASH_INLINE constexpr int backward_rows_bytes(int head_dim, TensorTile tile) {
  return 2 * 2 * head_dim * (tile.rows + kBackwardStages * tile.columns) + kBackwardStages * kFactBytes * tile.columns;
}

// dk, dv and dq in one pass: keys x queries. Scores lie 16 keys to a warp, dk, dv and dq 32 rows to a warp with the
// head dim shared out, so that each of the five products has the registers of all 8 warps. The most keys and then the
// most queries that fit shared memory; from 192 on fewer keys, whose dk and dv take registers.
FLASH_INLINE constexpr TensorTile backward_sm80_tile(int head_dim) {
  return {head_dim <= 128 ? 128 : 64, head_dim <= 192 ? 64 : 32, 8};
}
FLASH_INLINE constexpr Memory backward_sm80_memory(int head_dim) {
  return head_dim <= 64 ? Memory::kSmall : Memory::kLarge;
}
// p and ds go through shared memory in rows for this many queries.
constexpr int kWeightColumns = 64;
FLASH_INLINE constexpr int backward_sm80_shared_bytes(int head_dim) {
  const TensorTile tile = backward_sm80_tile(head_dim);
  return backward_rows_bytes(head_dim, tile) + 2 * 2 * kWeightColumns * tile.rows;
}

// dk and dv, or dq, with the same bits on every run: 16 rows a warp, dk and dv (or dq) in registers beside two tiles of
// scores. The columns, and the rows from 192 on, are what leaves room for two stages of the other side in 99 KiB and,
// at 256, for the scores in registers.
FLASH_INLINE constexpr TensorTile backward_deterministic_sm80_tile(int head_dim) {
  if (head_dim <= 64) return {128, 64, 8};
  if (head_dim <= 128) return {128, 32, 8};
  return {64, head_dim <= 192 ? 32 : 16, 4};
}
// Whether registers hold dk and dv at once. Else keys are gone through twice.
FLASH_INLINE constexpr bool sums_keys_at_once_sm80(int head_dim) { return head_dim <= 128; }
FLASH_INLINE constexpr int backward_deterministic_sm80_shared_bytes(int head_dim) {
  return backward_rows_bytes(head_dim, backward_deterministic_sm80_tile(head_dim));
}

// dbias: the tile of its pieces, whose sums a warp has in registers beside the scores of two products. Rows come in chunks
// of this many columns, so that one kernel takes any head dims; each of three stages has one of queries and one of keys:
// 48 KiB, two blocks in the memory of any GPU.
constexpr int kBiasChunk = 64, kBiasStages = 3;
FLASH_INLINE constexpr TensorTile bias_sm80_tile() { return {bias_tile_shape().rows, bias_tile_shape().columns, 4}; }
FLASH_INLINE constexpr int bias_sm80_shared_bytes() {
  return kBiasStages * 2 * kBiasChunk * (bias_sm80_tile().rows + bias_sm80_tile().columns);
}

// ---- Hopper ---------------------------------------------------------------------------------------------------------

// A tile of scores whose rows are shared out among warpgroups, at most 64 each. One more warpgroup loads.
struct WarpgroupTile {
  int rows, columns;
  bool transposes = false;  // the one that loads
  FLASH_INLINE constexpr int warpgroups() const { return (rows + 63) / 64; }
  FLASH_INLINE constexpr int threads() const { return 128 * (warpgroups() + 1); }
  // Registers of a thread that loads, and of one that computes: of 65536 in all.
  FLASH_INLINE constexpr int loading_registers() const { return warpgroups() == 3 ? 32 : transposes ? 40 : 24; }
  FLASH_INLINE constexpr int computing_registers() const { return warpgroups() == 3 ? 160 : transposes ? 232 : 240; }
};
constexpr int kHopperHeadDims[] = {64, 96, 128, 192, 256};
FLASH_INLINE constexpr int built_hopper_head_dim(int64_t D, int64_t Dv) {
  for (int head_dim : kHopperHeadDims)
    if (D <= head_dim && Dv <= head_dim) return head_dim;
  return 0;
}
// Values this narrow have kernels of their own where keys are of kNarrowHeadDim and there are no options.
constexpr int kNarrowHeadDim = 192, kNarrowValueDim = 128;
// Three warpgroups at 64, where the exponentials take as long as the products, so that those of one run beside the
// products of two. Else two, whose registers hold O, scores and weights (192 of 232 at 128 and 256). With options, whose
// rules take registers too, fewer keys where those would not suffice; and at 192 for shared memory, unless values are
// narrow. Products of fewer than 128 keys wait for shared memory: the more the better.
FLASH_INLINE constexpr WarpgroupTile forward_sm90_tile(int head_dim, int value_dim, bool has_options) {
  if (has_options) return {128, head_dim <= 96 ? 128 : head_dim == 128 ? 96 : 64};
  if (head_dim == 64) return {192, 128};
  return {128, value_dim <= 128 ? 128 : head_dim == 192 ? 96 : 64};
}
// Up to this many queries, keys are split into pieces of kPieceKeys: a multiple of each tile's keys, and of a block
// mask's blocks. Results of a piece, in float32, are then at most a twelfth of the keys and values they come from.
constexpr int kMostQueriesOfPieces = 64, kPieceKeys = 1536;
constexpr int kForwardStages = 2;
// Of each tile of keys where it lies, at most 16 words; barriers; a word for each thread (forward_compute.cuh).
constexpr int kStepBytes = 64, kBarrierBytes = 128;
FLASH_INLINE constexpr int forward_sm90_shared_bytes(int head_dim, int value_dim, bool has_options) {
  const WarpgroupTile tile = forward_sm90_tile(head_dim, value_dim, has_options);
  const int key_bytes = (head_dim + 63) / 64 * 128, value_bytes = (value_dim + 63) / 64 * 128;
  return key_bytes * tile.rows + kForwardStages * (key_bytes + value_bytes) * tile.columns +
         kForwardStages * kStepBytes + kBarrierBytes + 4 * tile.rows * 2;
}

// e4m3: FlashAttention-3's tiles. Weights take half the registers of 16-bit ones and rows half the shared memory, of which
// the transposed v takes a part; what is left goes to more keys (at 128 224: O, scores and weights take 204 of 232
// registers). Keys come in 32s, the depth of a product.
constexpr int kFp8HeadDims[] = {64, 128, 256};
FLASH_INLINE constexpr int built_fp8_head_dim(int64_t D, int64_t Dv) {
  for (int head_dim : kFp8HeadDims)
    if (D <= head_dim && Dv <= head_dim) return head_dim;
  return 0;
}
FLASH_INLINE constexpr WarpgroupTile forward_fp8_sm90_tile(int head_dim, bool has_options) {
  if (has_options) return {128, head_dim == 64 ? 128 : 64, true};
  if (head_dim == 64) return {192, 160, true};
  return {128, head_dim == 128 ? 224 : 96, true};
}
// As kPieceKeys: 8 tiles, or 16 at 256.
FLASH_INLINE constexpr int fp8_piece_keys(int head_dim) {
  return head_dim == 64 ? 1280 : head_dim == 128 ? 1792 : 1536;
}
constexpr int kLongStepBytes = 80;
// Weights are 2^8 p: up to 256, within e4m3's 448.
constexpr int kWeightShift = 8;
// q; two stages of k, of v and of v transposed; where tiles of keys lie; barriers; a word for each thread.
FLASH_INLINE constexpr int forward_fp8_sm90_shared_bytes(int head_dim, bool has_options) {
  const WarpgroupTile tile = forward_fp8_sm90_tile(head_dim, has_options);
  const int row_bytes = (head_dim + 127) / 128 * 128, transposed_bytes = head_dim * ((tile.columns + 127) / 128 * 128);
  return row_bytes * (tile.rows + 2 * kForwardStages * tile.columns) + kForwardStages * transposed_bytes +
         kForwardStages * kLongStepBytes + kBarrierBytes + 4 * tile.rows * 2;
}

// dk, dv and dq in one pass: keys x queries. To 128 each warpgroup has dk and dv of 64 keys, and as many queries as
// registers have scores for beside them. Above, where those two alone would fill the registers, one warpgroup has dk of
// all keys and the other dv, of as many keys as leave registers for the rest (144 of 240 at 192, 160 at 256): the more
// keys, the fewer blocks of threads read q and do and add to dq.
constexpr int kBackwardHopperHeadDims[] = {64, 128, 192, 256};
FLASH_INLINE constexpr int built_backward_hopper_head_dim(int64_t D, int64_t Dv) {
  for (int head_dim : kBackwardHopperHeadDims)
    if (D <= head_dim && Dv <= head_dim) return head_dim;
  return 0;
}
FLASH_INLINE constexpr bool is_wide_sm90(int head_dim) { return head_dim > 128; }
FLASH_INLINE constexpr WarpgroupTile backward_sm90_tile(int head_dim, bool has_options) {
  if (is_wide_sm90(head_dim)) return {head_dim == 192 ? 96 : 80, 64};
  return {128, head_dim == 64 && !has_options ? 128 : 64};
}
// One at 256, where there is no room for two.
FLASH_INLINE constexpr int backward_dout_stages(int head_dim) { return head_dim <= 192 ? kBackwardStages : 1; }
// Besides k, v, q and do: two of ds, dq in float32 and where it lies, a word for each thread; or p and ds in whole
// panels.
FLASH_INLINE constexpr int backward_sm90_own_bytes(int head_dim, bool has_options) {
  const WarpgroupTile tile = backward_sm90_tile(head_dim, has_options);
  if (is_wide_sm90(head_dim)) return 2 * tile.columns * ((tile.rows + 63) / 64 * 128);
  return 2 * 2 * tile.rows * tile.columns + 4 * head_dim * tile.columns + kStepBytes + 4 * tile.rows * 2;
}
// k, v; two stages of q, one or two of do; of each query of a stage lse2 and delta, and where it lies.
FLASH_INLINE constexpr int backward_sm90_shared_bytes(int head_dim, bool has_options) {
  const WarpgroupTile tile = backward_sm90_tile(head_dim, has_options);
  return 2 * head_dim * (2 * tile.rows + (kBackwardStages + backward_dout_stages(head_dim)) * tile.columns) +
         backward_sm90_own_bytes(head_dim, has_options) + kBackwardStages * 8 * tile.columns +
         (kBackwardStages + 1) * kStepBytes + kBarrierBytes;
}

// ---- All ------------------------------------------------------------------------------------------------------------

FLASH_INLINE constexpr bool fits(int bytes, Memory memory) { return bytes <= most_shared_bytes(memory); }
FLASH_INLINE constexpr bool all_fit() {
  for (int head_dim : kHeadDims)
    if (!fits(forward_shared_bytes(head_dim), Memory::kSmall) || !fits(backward_shared_bytes(head_dim), Memory::kSmall))
      return false;
  for (int head_dim : kTensorHeadDims) {
    for (bool has_options : {false, true})
      for (Memory memory : {Memory::kSmall, Memory::kLarge})
        if (!fits(forward_sm80_shared_bytes(head_dim, has_options, memory), memory)) return false;
    if (!fits(backward_sm80_shared_bytes(head_dim), backward_sm80_memory(head_dim)) ||
        !fits(backward_deterministic_sm80_shared_bytes(head_dim), Memory::kSmall))
      return false;
  }
  for (int head_dim : kHopperHeadDims)
    for (bool has_options : {false, true})
      if (!fits(forward_sm90_shared_bytes(head_dim, head_dim, has_options), Memory::kHopper)) return false;
  if (!fits(forward_sm90_shared_bytes(kNarrowHeadDim, kNarrowValueDim, false), Memory::kHopper)) return false;
  for (int head_dim : kFp8HeadDims)
    for (bool has_options : {false, true})
      if (!fits(forward_fp8_sm90_shared_bytes(head_dim, has_options), Memory::kHopper)) return false;
  for (int head_dim : kBackwardHopperHeadDims)
    for (bool has_options : {false, true})
      if (!fits(backward_sm90_shared_bytes(head_dim, has_options), Memory::kHopper)) return false;
  return true;
}
static_assert(all_fit(), "a block of threads must fit its GPU");

// Threads of the kernels that go over queries or elements one by one.
constexpr int kPlainThreads = 256;

// Of flash_weights: one per key of a step of the walk.
constexpr int kWeightsThreads = 64;

// The blocks of threads that dbias is worth sharing between: enough for any GPU, and not asked of the GPU at hand, so
// that sums have the same order everywhere.
constexpr int64_t kBiasBlocks = 512;

}  // namespace flash
