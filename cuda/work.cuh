// Who works on what: the tile of one block of threads, and the stretches of the other side that it has to meet.
//
// Positions of the other side come in granules of 16 consecutive ones. A step takes as many granules as fill a tile,
// and with a block mask they are gathered from the listed blocks: blocks that are not listed are neither read nor
// computed, and a tile is full however small the blocks are. A tile's own rows never cross a line of the block mask.
#pragma once
#include "configs.h"
#include "params.h"

namespace flash {

// One tile of one head.
struct Task {
  int64_t b;
  int head, begin;  // the first row
};
// Which side of the score matrix lies along the rows of a tile.
enum class Side : bool { kQueries, kKeys };

// The longest tasks of a head come first: under a causal rule the last queries have the most keys, the first keys the
// most queries.
template <Side kSide = Side::kQueries>
FLASH_INLINE Task task_of(const Tiles &tiles, int64_t index) {
  const int64_t head = index / tiles.tiles, n = index % tiles.tiles;
  const int64_t tile = kSide == Side::kQueries ? tiles.tiles - 1 - n : n;
  return {head / tiles.heads, static_cast<int>(head % tiles.heads), static_cast<int>(tile * tiles.step)};
}
// The same with the tiles of `heads_together` heads in turn: the longest of all of them come first.
FLASH_INLINE Task task_of_heads(const Tiles &tiles, int heads_together, int64_t index) {
  const int64_t first = index / (tiles.tiles * heads_together) * heads_together;
  const int64_t heads = smaller(heads_together, tiles.tasks / tiles.tiles - first), rest = index - first * tiles.tiles;
  const int64_t head = first + rest % heads, tile = tiles.tiles - 1 - rest / heads;
  return {head / tiles.heads, static_cast<int>(head % tiles.heads), static_cast<int>(tile * tiles.step)};
}

// The task that block `block` of `blocks` which stay takes in this round. Every second round goes backwards, so that
// who had the longest task of one gets the shortest of the next.
FLASH_INLINE int64_t task_in_round(int64_t round, int64_t block, int64_t blocks) {
  return round * blocks + (round % 2 == 0 ? block : blocks - 1 - block);
}

// The positions of a tile of kCount rows or columns.
template <int kCount>
struct Granules {
  static constexpr int kNumber = kCount / kGranule;
  int first[kNumber];  // -1 = nothing there

  // Of one slot of the tile; -1 = nothing there.
  FLASH_INLINE int position(int slot) const { return position(slot / kGranule, slot % kGranule); }
  FLASH_INLINE int position(int granule, int offset) const {
    static_assert(kNumber == 1 || kNumber == 2 || kNumber == 4, "tiles have 16, 32 or 64 rows and columns");
    // Read whether needed or not: an array that is indexed at run time would live in memory, not in registers.
    const int first0 = first[0], first1 = first[kNumber > 1 ? 1 : 0], first2 = first[kNumber > 2 ? 2 : 0],
              first3 = first[kNumber - 1];
    const int base = granule == 0 ? first0 : granule == 1 ? first1 : granule == 2 ? first2 : first3;
    return base < 0 ? -1 : base + offset;
  }
  // The first position, -1 where a granule is missing, and the last.
  FLASH_INLINE int least() const {
    int found = first[0];
#pragma unroll
    for (int g = 1; g < kNumber; ++g) found = first[g] < found ? first[g] : found;
    return found;
  }
  FLASH_INLINE int most() const {
    int found = first[0];
#pragma unroll
    for (int g = 1; g < kNumber; ++g) found = first[g] > found ? first[g] : found;
    return found + kGranule - 1;
  }
};

// Positions [begin, end), begin a multiple of kGranule; what is left of the tile is empty.
template <int kCount>
FLASH_INLINE Granules<kCount> consecutive(int64_t begin, int64_t end) {
  Granules<kCount> granules;
#pragma unroll
  for (int g = 0; g < granules.kNumber; ++g) {
    const int64_t first = begin + g * kGranule;
    granules.first[g] = first < end ? static_cast<int>(first) : -1;
  }
  return granules;
}

// A walk over the positions of `span` that the block mask lists for the line of `own_begin`; all of them if there is no
// block mask.
class Walk {
 public:
  static constexpr int kStep = 64;  // a multiple of the columns of every tile, but for Hopper's

  // The walk starts at a multiple of `step`, which the columns of the tile divide, or, with a block mask, of `box`, in
  // which positions are taken.
  __device__ __forceinline__ Walk(const BlockLists &lists, int64_t b, int h, int own_begin, Interval span,
                                  int step = kStep, int box = kGranule)
      : lists_(lists), end_(0), position_(0), stretch_end_(0), at_(0), last_(0) {
    if (empty(span)) return;
    end_ = static_cast<uint32_t>(span.end);
    if (lists.start == nullptr) {
      // Steps at fixed places, so that the bits of a row don't depend on the rows beside it.
      position_ = static_cast<uint32_t>(span.begin / step * step), stretch_end_ = end_;
      return;
    }
    const int32_t *start = lists.start + b * lists.batch + h * lists.head + own_begin / lists.own * lists.line;
    at_ = static_cast<int>(clamp(start[0], 0, lists.count));
    last_ = static_cast<int>(clamp(start[lists.line], at_, lists.count));
    const auto begin = static_cast<uint32_t>(span.begin / box * box);
    for (int high = last_; at_ < high;) {  // the first block that ends behind begin
      const int middle = at_ + (high - at_) / 2;
      if ((lists.index[middle * lists.index_stride] + int64_t{1}) * lists.other <= begin)
        at_ = middle + 1;
      else
        high = middle;
    }
    if (at_ < last_) next_block();
    position_ = position_ < begin ? begin : position_;
  }

  // The next `count` positions, a divisor of the mask's blocks: the first of them, -1 if there is nothing left.
  __device__ __forceinline__ bool next(int count, int *first) {
    while (position_ >= stretch_end_ && at_ < last_) next_block();
    const bool found = position_ < stretch_end_;
    *first = found ? static_cast<int>(position_) : -1;
    position_ += static_cast<uint32_t>(count);
    return found;
  }

  // The next tile; false if there is nothing left.
  template <int kCount>
  __device__ __forceinline__ bool next(Granules<kCount> *granules) {
    bool any = false;
#pragma unroll
    for (int g = 0; g < Granules<kCount>::kNumber; ++g) {
      const bool found = next(kGranule, &granules->first[g]);
      any = any || found;
    }
    return any;
  }

 private:
  __device__ __forceinline__ void next_block() {
    const int64_t block = lists_.index[at_++ * lists_.index_stride];
    if (block < 0 || block >= lists_.other_blocks) return;
    position_ = static_cast<uint32_t>(block * lists_.other);
    stretch_end_ = static_cast<uint32_t>(smaller((block + 1) * lists_.other, end_));
  }

  const BlockLists &lists_;
  uint32_t end_;                     // of the span; the granule behind the last may start at 2^31
  uint32_t position_, stretch_end_;  // what is left of the stretch at hand
  int at_, last_;                    // what is left of the list
};

}  // namespace flash
