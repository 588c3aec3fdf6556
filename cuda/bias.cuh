// dbias in pieces: the tiles of scores that a block of threads adds up, and how their sum becomes part of dbias. Tiles are
// those of bias_tile_shape() in every kernel: the planner cuts dbias the same way whichever of them runs.
#pragma once
#include "score.cuh"

namespace flash {

// Where number `own` of the batches that a bias tells apart starts, in elements from the first.
FLASH_INLINE int64_t own_offset(const LeadingAxes &axes, int64_t own) {
  int64_t offset = 0;
#pragma unroll 1
  for (int axis = axes.rank - 1; axis >= 0; --axis)
    if (axes.stride[axis] != 0) {
      offset += own % axes.extent[axis] * axes.stride[axis];
      own /= axes.extent[axis];
    }
  return offset;
}
// The batch that is number `own` among those told apart, and number `other` along the axes without a stride. In 32 bits:
// extents are below 2^31.
FLASH_INLINE int64_t batch_of(const LeadingAxes &axes, int64_t own, int64_t other) {
  auto own_rest = static_cast<uint32_t>(own), other_rest = static_cast<uint32_t>(other);
  uint32_t batch = 0, scale = 1;
#pragma unroll 1
  for (int axis = axes.rank - 1; axis >= 0; --axis) {
    const auto extent = static_cast<uint32_t>(axes.extent[axis]);
    if (axes.stride[axis] != 0) {
      batch += own_rest % extent * scale;
      own_rest /= extent;
    } else {
      batch += other_rest % extent * scale;
      other_rest /= extent;
    }
    scale *= extent;
  }
  return batch;
}

// A tile of scores, by number.
struct BiasTile {
  int64_t batch;
  int h, query_tile, key_tile;
};
FLASH_INLINE BiasTile bias_tile(const BiasCounts &counts, int64_t index) {
  BiasTile tile;
  tile.key_tile = static_cast<int>(index % counts.key_tiles), index /= counts.key_tiles;
  tile.query_tile = static_cast<int>(index % counts.query_tiles), index /= counts.query_tiles;
  tile.h = static_cast<int>(index % counts.heads);
  tile.batch = index / counts.heads;
  return tile;
}

// Where element (row, column) of a piece lies in dbias.
FLASH_INLINE int64_t bias_index(const BiasParams &params, const BiasTile &piece, int row, int column) {
  const ScoresView &to = params.dbias;
  return own_offset(to.batch, piece.batch) + piece.h * to.head +
         (int64_t{piece.query_tile} * params.pieces.query_step + row) * to.row +
         (int64_t{piece.key_tile} * bias_tile_shape().columns + column) * to.column;
}

// One tile that a piece adds up.
struct BiasItem {
  using Keys = Granules<bias_tile_shape().columns>;
  Head head;
  int begin, end;  // queries
  Keys keys;       // those that some query may see, each in its place of the tile

  // Whether the tile is full of real queries that see all its keys, but for the mask.
  __device__ __forceinline__ bool sees_all(const Band &band) const {
    return end - begin == bias_tile_shape().rows && end <= head.sequence.q_len &&
           all_see_all(band, begin, end - 1, keys.least(), keys.most());
  }
};

// The items of a task, which is a piece or, with splits, some of its items; without those of which no pair is seen.
class BiasItems {
 public:
  __device__ __forceinline__ BiasItems(const BiasParams &params, int64_t task)
      : params_(params), piece_(piece_of(params, task)) {
    const int64_t split = task / params.pieces.own.product(), items = params.pieces.other.product();
    const int64_t first = items * split / params.pieces.splits;
    left_ = items * (split + 1) / params.pieces.splits - first;
    other_ = bias_tile(params.pieces.other, first);
  }
  static __device__ __forceinline__ BiasTile piece_of(const BiasParams &params, int64_t task) {
    return bias_tile(params.pieces.own, task % params.pieces.own.product());
  }

  __device__ __forceinline__ bool next(BiasItem *item) {
    while (left_ > 0) {
      const BiasTile other = other_;
      step();
      if (take(other, item)) return true;
    }
    return false;
  }

 private:
  // To the next tile, without the divisions that its number would take.
  __device__ __forceinline__ void step() {
    const BiasCounts &counts = params_.pieces.other;
    --left_;
    if (++other_.key_tile < counts.key_tiles) return;
    other_.key_tile = 0;
    if (++other_.query_tile < counts.query_tiles) return;
    other_.query_tile = 0;
    if (++other_.h < counts.heads) return;
    other_.h = 0;
    ++other_.batch;
  }
  // `other`: along each axis it or the piece is number 0 of 1. False if no pair is seen.
  __device__ __forceinline__ bool take(const BiasTile &other, BiasItem *item) const {
    constexpr int kColumns = bias_tile_shape().columns;
    const Attention &x = params_.attention;
    const int64_t b = batch_of(params_.dbias.batch, piece_.batch, other.batch);
    item->head = head_of<true>(x, sequence_of(x, b), b, piece_.h + other.h);
    item->begin = (piece_.query_tile + other.query_tile) * params_.pieces.query_step;
    item->end = static_cast<int>(smaller(int64_t{item->begin} + params_.pieces.query_step, x.Lq));
    const Sequence &sequence = item->head.sequence;
    const int64_t first_key = int64_t{piece_.key_tile + other.key_tile} * kColumns;
    const Interval span =
        intersection(keys_of_any(x.window, sequence, {item->begin, smaller(item->end, sequence.q_len)}),
                     {first_key, smaller(first_key + kColumns, x.Lk)});
    if (empty(span)) return false;
    // The walk gathers listed granules; here each has its place.
    BiasItem::Keys listed;
    Walk walk(x.by_row, b, item->head.h, item->begin, span);
    if (!walk.next(&listed)) return false;
#pragma unroll
    for (int g = 0; g < BiasItem::Keys::kNumber; ++g) {
      const int first = static_cast<int>(first_key) + g * kGranule;
      bool is_listed = false;
#pragma unroll
      for (int at = 0; at < BiasItem::Keys::kNumber; ++at) is_listed = is_listed || listed.first[at] == first;
      item->keys.first[g] = is_listed ? first : -1;
    }
    return true;
  }

  const BiasParams &params_;
  BiasTile piece_, other_;  // the latter is of the next item
  int64_t left_;            // items
};

// The sums of a task become dbias, or one of the splits of it: from shared memory, where `sums` holds them in the order of
// positions, over the axes along which the bias is broadcast. By all kThreads threads, once the sums are there.
template <int kThreads>
__device__ __forceinline__ void store_bias(const BiasParams &params, int64_t task, const float *sums, int stride) {
  constexpr int kRows = bias_tile_shape().rows, kColumns = bias_tile_shape().columns;
  const Attention &x = params.attention;
  const BiasTile piece = BiasItems::piece_of(params, task);
  const bool all_rows = params.dbias.row == 0, all_columns = params.dbias.column == 0;
  const int rows = all_rows ? 1 : kRows, columns = all_columns ? 1 : kColumns, step = params.pieces.query_step;
  const int64_t rows_there = smaller(step, x.Lq - int64_t{piece.query_tile} * step);
  const int64_t columns_there = x.Lk - int64_t{piece.key_tile} * kColumns;
#pragma unroll 1
  for (int at = static_cast<int>(threadIdx.x); at < rows * columns; at += kThreads) {
    const int row = at / columns, column = at % columns;
    float total = 0;
    for (int r = row; r < (all_rows ? kRows : row + 1); ++r)
      for (int c = column; c < (all_columns ? kColumns : column + 1); ++c) total += sums[r * stride + c];
    if (params.partial != nullptr)
      params.partial[(task * rows + row) * columns + column] = total;
    else if ((all_rows || row < rows_there) && (all_columns || column < columns_there))
      write_number(total, params.dbias.data, params.dbias.dtype, bias_index(params, piece, row, column));
  }
}

}  // namespace flash
