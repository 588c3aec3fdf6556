// Tile sizes and scratch memory of the CPU kernels. The planner adds up the sizes with the very functions that hand out
// the pointers, so the two agree by construction. The same for every instruction set.
//
// Terms: a strip is a few consecutive queries of one head, one per vector lane; it never crosses a row of the block
// mask. Score tiles are stored transposed, tile[key][query], so that softmax is arithmetic between whole vectors.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../problem.h"

namespace flash {

constexpr int64_t kMostLanes = 16;      // float lanes of the widest vector; lane counts are padded to a multiple
constexpr int64_t kGranule = 16;        // keys that are loaded together; the smallest block of a block mask
constexpr int64_t kForwardStrip = 32;   // queries: two AVX-512 vectors; its score tile of 256 keys fills half of L1
constexpr int64_t kForwardStrips = 8;   // most strips that share one loaded tile of k and v
constexpr int64_t kBackwardStrip = 64;  // the sum over queries in dk and dv is this long, so longer pays

// Keys of one tile: k, v and the score tiles together stay within a 1 MiB L2 cache. Rows are summed tile by tile, so this
// depends on nothing but the head dims: a row's bits do not depend on what else is in the batch.
constexpr int64_t kMostTileKeys = 256;
FLASH_INLINE int64_t tile_keys(int64_t D, int64_t Dv) {
  return D + Dv <= 256 ? kMostTileKeys : D + Dv <= 512 ? 128 : 64;
}

// Keys of one task of the backward: fewer when there are few, so that the work inside one head can be shared.
FLASH_INLINE int64_t backward_tile_keys(const Problem &problem) {
  return smaller(tile_keys(problem.D, problem.Dv), problem.Lk <= 256 ? 64 : problem.Lk <= 1024 ? 128 : 256);
}

// Queries of a strip: it never crosses a row of the block mask, whose blocks have at least kGranule queries.
FLASH_INLINE int64_t strip_queries(const Problem &problem, int64_t most) {
  return problem.blocks.block_q == 0 ? most : smaller(most, problem.blocks.block_q);
}

// The pieces of dbias: one per (batch, head, kBackwardStrip queries, tile of keys) that the bias distinguishes. An axis
// along which it is broadcast has stride 0 and is summed inside the piece, in a fixed order.
struct BiasPieces {
  int64_t batches, heads, strips, tiles;
};
FLASH_INLINE int64_t own_batches(const LeadingAxes &axes) {
  int64_t count = 1;
  for (int axis = 0; axis < axes.rank; ++axis)
    if (axes.stride[axis] != 0) count *= axes.extent[axis];
  return count;
}
// The batch's index among the batches that the bias distinguishes.
FLASH_INLINE int64_t own_batch(const LeadingAxes &axes, int64_t b) {
  int64_t own = 0, scale = 1;
  for (int axis = axes.rank - 1; axis >= 0; --axis) {
    if (axes.stride[axis] != 0) {
      own += b % axes.extent[axis] * scale;
      scale *= axes.extent[axis];
    }
    b /= axes.extent[axis];
  }
  return own;
}
FLASH_INLINE BiasPieces bias_pieces(const Problem &problem, const ScoresView &dbias) {
  return {own_batches(dbias.batch), dbias.head == 0 ? 1 : problem.Hq,
          dbias.row == 0 ? 1 : ceil_div(problem.Lq, kBackwardStrip),
          dbias.column == 0 ? 1 : ceil_div(problem.Lk, backward_tile_keys(problem))};
}

// Hands out aligned pieces of one buffer; with base NULL it only adds up.
struct Arena {
  char *base;
  size_t used;
};
FLASH_INLINE void *take(Arena *arena, int64_t count, int64_t bytes) {
  void *piece = arena->base == nullptr ? nullptr : arena->base + arena->used;
  arena->used += static_cast<size_t>(round_up(count * bytes, 64));
  return piece;
}

// One worker's memory in the forward. Sizes are in numbers of the sum type; operands are never larger.
struct ForwardScratch {
  void *k, *v;      // tile_keys x D, tile_keys x Dv
  void *q;          // per strip D x kForwardStrip
  void *scores;     // tile_keys x kForwardStrip
  void *p;          // the same, as pairs
  void *o;          // per strip Dv x kForwardStrip
  void *max, *sum;  // per strip kForwardStrip
  void *alpha;      // kForwardStrip
  void *rows;       // kForwardStrip x max(D, Dv): on the way to and from transposition
  void *extra;      // tile_keys x kForwardStrip: bias, mask or dropout of a tile
};
FLASH_INLINE ForwardScratch forward_scratch(Arena *arena, const Problem &problem, int64_t block_q) {
  const int64_t n = tile_keys(problem.D, problem.Dv), sum_bytes = size_bytes(sum_dtype(problem.dtype));
  const int64_t d = round_up(problem.D, kMostLanes), dv = round_up(problem.Dv, kMostLanes);
  const int64_t strips = block_q / strip_queries(problem, kForwardStrip);
  ForwardScratch x;
  x.k = take(arena, n * d, sum_bytes);
  x.v = take(arena, n * dv, sum_bytes);
  x.q = take(arena, strips * d * kForwardStrip, sum_bytes);
  x.scores = take(arena, n * kForwardStrip, sum_bytes);
  x.p = take(arena, n * kForwardStrip, sum_bytes);
  x.o = take(arena, strips * dv * kForwardStrip, sum_bytes);
  x.max = take(arena, strips * kForwardStrip, sum_bytes);
  x.sum = take(arena, strips * kForwardStrip, sum_bytes);
  x.alpha = take(arena, kForwardStrip, sum_bytes);
  x.rows = take(arena, kForwardStrip * larger(d, dv), sum_bytes);
  x.extra = take(arena, n * kForwardStrip, sum_bytes);
  return x;
}

// One worker's memory in the backward.
struct BackwardScratch {
  void *k, *v;                     // tile_keys x D, tile_keys x Dv, pairs along the head dim
  void *k_rows;                    // tile_keys x D, pairs along the keys
  void *q, *dout;                  // D x kBackwardStrip, Dv x kBackwardStrip: transposed
  void *q_rows, *dout_rows;        // kBackwardStrip x D and x Dv, pairs along the queries
  void *scores, *dscores;          // tile_keys x kBackwardStrip: s, then p; dp, then ds
  void *p, *ds, *ds_pairs;         // the same as pairs: along the queries (p, ds), along the keys (ds_pairs)
  void *dk, *dv;                   // tile_keys x D, tile_keys x Dv
  void *rows;                      // kBackwardStrip x max(D, Dv)
  void *extra, *cap_slope, *keep;  // tile_keys x kBackwardStrip: bias or mask; derivative of softcap; dropout
  void *bias_sum;                  // the same: sum of a piece of dbias
};
FLASH_INLINE BackwardScratch backward_scratch(Arena *arena, const Problem &problem) {
  const int64_t n = backward_tile_keys(problem), sum_bytes = size_bytes(sum_dtype(problem.dtype));
  const int64_t d = round_up(problem.D, kMostLanes), dv = round_up(problem.Dv, kMostLanes);
  const int64_t tile = n * kBackwardStrip;
  BackwardScratch x;
  x.k = take(arena, n * d, sum_bytes);
  x.v = take(arena, n * dv, sum_bytes);
  x.k_rows = take(arena, n * d, sum_bytes);
  x.q = take(arena, d * kBackwardStrip, sum_bytes);
  x.dout = take(arena, dv * kBackwardStrip, sum_bytes);
  x.q_rows = take(arena, d * kBackwardStrip, sum_bytes);
  x.dout_rows = take(arena, dv * kBackwardStrip, sum_bytes);
  x.scores = take(arena, tile, sum_bytes);
  x.dscores = take(arena, tile, sum_bytes);
  x.p = take(arena, tile, sum_bytes);
  x.ds = take(arena, tile, sum_bytes);
  x.ds_pairs = take(arena, tile, sum_bytes);
  x.dk = take(arena, n * d, sum_bytes);
  x.dv = take(arena, n * dv, sum_bytes);
  x.rows = take(arena, kBackwardStrip * larger(d, dv), sum_bytes);
  x.extra = take(arena, tile, sum_bytes);
  x.cap_slope = take(arena, tile, sum_bytes);
  x.keep = take(arena, tile, sum_bytes);
  x.bias_sum = take(arena, tile, sum_bytes);
  return x;
}

}  // namespace flash
