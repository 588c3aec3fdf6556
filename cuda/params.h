// What the plain kernels are told: the problem as plain numbers and borrowed pointers, for host and device.
//
// The host fills these structs from a checked Problem (src/cuda_calls.cpp). What lies in device arrays (lengths, offsets, the
// seed, block lists) was not checked: kernels clamp lengths and skip indices out of range, so nothing is ever accessed
// out of bounds. Extents are below 2^31, products and strides are 64 bits wide.
#pragma once
#include <cstdint>

#include "geometry.h"
#include "tensor.h"
#include "tensor_map.h"

namespace flash {

// N + (L, H, D). The type is known at run time only: it matters where rows come in and go out, and three times as many
// kernels would make the library three times as large.
struct Rows {
  RowsView view;
  DType dtype;  // float16, bfloat16 or float32
  int aligned;  // every row consists of aligned groups of this many numbers: 8, 4 or 1
};

// One direction of a block mask. Its lines are rows of blocks (seen from queries) or columns of blocks (seen from
// keys); line r of (b, h) lists index[start[b, h, r]] up to index[start[b, h, r + 1] - 1], ascending. start NULL = no
// mask.
struct BlockLists {
  const int32_t *start, *index;
  int64_t batch, head, line;  // strides of start
  int64_t index_stride;
  int64_t count;         // length of index
  int own, other;        // size of a block along the lines, and along what they list
  int64_t other_blocks;  // indices lie below it
};

// What every kernel needs to know of one problem.
struct Attention {
  int64_t B;
  int Lq, Lk, Hq, Hk, D, Dv;
  Rows q, k, v;
  ScoresView mask, bias;                 // may be absent (data NULL), as all that follow
  BatchView alibi_slopes;                // float32
  BatchView sinks;                       // q's type or float32
  BatchView q_lens, kv_lens, q_offsets;  // int32 or int64
  BatchView seeds;                       // one integer
  BlockLists by_row, by_column;          // by_column: backward only
  Window window;
  int64_t q_offset;         // if has_q_offset
  uint64_t seed;            // unless seeds is given
  uint64_t keep_threshold;  // a dropout word at least this large is kept; 0 = no dropout
  float keep_scale;         // 1 / (1 - dropout); 0 if nothing is kept
  float scale, softcap;     // softcap 0 = off
  float log2_scale;         // p = 2^(log2_scale * score - lse2): scale * log2(e) where scores are plain products
  // log2_scale was rounded, which every score has and so lse and sinks must have: log2(e) and ln(2) with that rounding,
  // less kLog2E and kLn2. It would show in gradients where scores are large.
  float log2_of_nat_low, nat_of_log2_low;
  bool has_q_offset;
  bool is_plain_in_memory;  // rows of mask and bias are aligned pairs of neighbours, distances fit 32 bits
};

// Tiles that a launch works on, numbered with the tiles of one head next to each other: they share its keys.
struct Tiles {
  int64_t tasks;  // tiles * heads * B
  int64_t tiles;  // of one head
  int64_t heads;
  int step;  // rows from one tile to the next: the tile's own, or fewer where a block mask has smaller blocks
};

struct ForwardParams {
  Attention attention;
  Tiles tiles;  // of queries
  Rows o;
  LseView lse;  // may be absent
};

// Where there are few queries, keys are split into pieces that different blocks of threads take: results of each piece
// for all queries, (count, B, Hq, Lq, row(Dv)) and (count, B, Hq, Lq), to be merged by another kernel.
struct KeyPieces {
  int64_t count;  // 1: no pieces
  int keys;       // of a piece
  float *o, *lse;
  // Rows of o consist of groups that are stored at once.
  static constexpr int kGroup = 4;
  static FLASH_INLINE int64_t row(int64_t Dv) { return round_up(Dv, kGroup); }
};

// The same for Hopper, whose copies take maps of the tensors. Rows of a tile are 2^log2_heads heads of a query, which
// share keys, and then those of the next query; `tiles` counts such rows, and such groups as heads.
struct ForwardSm90Params {
  ForwardParams forward;
  KeyPieces pieces;
  TensorMap q, k, v, o;  // boxes of a tile's rows; of box_keys keys; of the 64 rows of a warpgroup
  int log2_heads;
  int heads_together;  // whose keys stay in the L2 cache
  int box_keys;        // divides the keys of a tile and the blocks of the mask
  bool has_o_map;      // else o's rows are stored one by one
};

struct PiecesParams {
  Attention attention;
  KeyPieces pieces;
  Rows o;
  LseView lse;    // may be absent
  int64_t tasks;  // queries of all heads
};

// The same for e4m3. o has a type of its own, and no map.
struct ForwardFp8Sm90Params {
  ForwardSm90Params hopper;
  BatchView q_scale, k_scale, v_scale;  // float32, per batch and key head; may be absent
};

// What the backward keeps per query in the workspace, (B, Hq, Lq) each.
struct QueryFacts {
  float *delta;     // rowsum(do * o) - dlse
  float *lse2;      // log2(e) * lse, +inf where the row sees nothing, so that p = 0 there
  float *lse2_low;  // what rounding took from lse2
};

// dq as it grows in memory where blocks of threads own keys, without its scale: for each head its granules of queries,
// 16 by `columns` numbers each, in the order in which a warp holds them (backward_sm80.cuh).
struct DqSums {
  float *data;            // NULL: none
  int64_t rows, columns;  // of a head: Lq and the kernel's head dim, Lq rounded up to whole granules
};

// Where blocks of threads add to dq in the order of their keys: for each head, for each tile of queries, how many have.
struct DqTurns {
  int *done;        // NULL: in the order in which they come
  int64_t queries;  // of a tile
  FLASH_INLINE int64_t of_head(int Lq) const { return ceil_div(Lq, queries); }
};

struct PrepareParams {
  Attention attention;
  Rows dout, o;
  LseView lse, dlse;  // dlse may be absent
  QueryFacts facts;
  DqSums dq_sums;    // to be set to 0, where there are any
  DqTurns dq_turns;  // the same
  int64_t tasks;     // queries of all heads
};

// What is not wanted is absent.
struct GradientParams {
  Attention attention;
  Tiles tiles;  // of keys, but for dq alone of queries
  Rows dout;
  QueryFacts facts;
  DqSums dq_sums;  // instead of dq, where dk and dv are summed in the same pass
  Rows dq, dk, dv;
};

// The same for Hopper.
struct GradientSm90Params {
  GradientParams gradient;
  TensorMap q, k, v, dout, dk, dv;  // boxes of box_queries; of a tile's keys; of keys that a warpgroup stores
  DqTurns dq_turns;
  int box_queries;              // divides the queries of a tile and the blocks of the mask
  bool has_dk_map, has_dv_map;  // else their rows are stored one by one
};

struct DqParams {
  Attention attention;
  DqSums sums;
  Rows dq;
  int64_t tasks;  // pieces of 8 x 32 numbers
};

// dbias is cut into pieces: one per (batch, head, tile of queries, tile of keys) that the bias tells apart. What it is
// broadcast along is summed inside the piece, item by item. Where there are few pieces, each is shared by `splits`
// blocks of threads, whose float32 sums are added afterwards in their order.
struct BiasCounts {
  int64_t batches, heads, query_tiles, key_tiles;
  FLASH_INLINE int64_t product() const { return batches * heads * query_tiles * key_tiles; }
};
struct BiasPieces {
  BiasCounts own;    // what the bias tells apart: 1 along a broadcast axis
  BiasCounts other;  // what is summed inside one piece: 1 along the bias's own axes
  int64_t splits;
  int query_step;  // queries from one tile to the next
};

struct BiasParams {
  Attention attention;
  Rows dout;
  QueryFacts facts;
  ScoresView dbias;  // strides 0 along broadcast axes
  BiasPieces pieces;
  float *partial;  // (splits, pieces, queries of a tile or 1, keys of a tile or 1); NULL if splits is 1
  int64_t tasks;
};

struct SinkParams {
  Attention attention;
  QueryFacts facts;
  BatchView dsinks;
};

struct WeightsParams {
  Attention attention;
  const int64_t *rows;  // may be NULL: row r is query r
  int64_t rows_stride, count;
  float *weights;  // element (b, h, r, j) at b * batch + h * head + r * row + j * column
  int64_t batch, head, row, column;
  int64_t tasks;  // B * Hq * count
};

struct DropoutMaskParams {
  uint64_t seed, keep_threshold;
  bool *keep;
  int64_t extent[4], stride[4];  // b, h, i, j
  int64_t tasks;                 // elements
};

struct MergeParams {
  Rows o1, o2, o;
  LseView lse1, lse2, lse;  // lse may be absent
  int64_t Lq, Hq, Dv;
  int64_t tasks;  // queries of all heads
};

// How the host starts a kernel.
struct Launch {
  int64_t blocks;  // kernels stride over their tasks, so a grid may have fewer
  int threads, shared_bytes;
  void *stream;
};

// ---- The axes of dbias ----------------------------------------------------------------------------------------------

// How many batches the bias tells apart: those along axes with a stride.
FLASH_INLINE int64_t own_batches(const LeadingAxes &axes) {
  int64_t count = 1;
  for (int axis = 0; axis < axes.rank; ++axis)
    if (axes.stride[axis] != 0) count *= axes.extent[axis];
  return count;
}

}  // namespace flash
