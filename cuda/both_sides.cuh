// Rows of both sides of a backward kernel on tensor cores, in shared memory.
#pragma once
#include "fragment.cuh"
#include "gradient.cuh"

namespace flash {

// Rows of a block's own side stay in shared memory, of k and v or of q and do; the other side comes in stages, the next
// on its way while one is worked on.
template <int kHeadDim, int kOwnRows, int kOtherRows, int kThreads, Side kOwn>
struct BothSides {
  using Tile = SharedTile<kHeadDim>;
  using Other = Granules<kOtherRows>;

  const Attention &x;
  const QueryFacts &facts;
  Tile own_tiles[2];  // of q and do, or of k and v

  __device__ __forceinline__ BothSides(const Attention &attention, const QueryFacts &query_facts)
      : x(attention), facts(query_facts) {
    own_tiles[0] = {shared_address(shared_memory())};
    own_tiles[1] = {own_tiles[0].address + kOwnRows * Tile::kRowBytes};
  }
  // Of k and v, or of q and do.
  __device__ __forceinline__ Tile other_tile(int stage, int which) const {
    return {own_tiles[1].address +
            static_cast<uint32_t>((kOwnRows + (2 * stage + which) * kOtherRows) * Tile::kRowBytes)};
  }
  // Where the other side is queries: lse2 and delta of each one of a stage, +inf and 0 where it is not real, and then
  // the position of each, -1 where there is none. Of stage 2: where others may put something.
  __device__ __forceinline__ uint32_t facts_of(int stage) const {
    return other_tile(kBackwardStages, 0).address + static_cast<uint32_t>(stage * kOtherRows * kFactBytes);
  }
  __device__ __forceinline__ uint32_t fact_address(int stage, int query) const {
    return facts_of(stage) + static_cast<uint32_t>(query) * 8;
  }
  __device__ __forceinline__ uint32_t position_address(int stage, int query) const {
    return facts_of(stage) + static_cast<uint32_t>(kOtherRows * 8 + query * 4);
  }
  __device__ __forceinline__ float2 fact(int stage, int query) const {
    return load_8_bytes(fact_address(stage, query));
  }
  __device__ __forceinline__ int position(int stage, int query) const {
    return static_cast<int>(load_4_bytes(position_address(stage, query)));
  }

  __device__ __forceinline__ void load_own(int which, const Source &from, int begin, int end) const {
    load_tile<kOwnRows, kHeadDim, kThreads>(own_tiles[which], from, [&](int granule, int n) {
      const int position = begin + granule * kGranule + paired_row(n);
      return position < end ? position : -1;
    });
  }
  // The rows `from` of both kinds for one stage; b, h: the queries' head, where the other side is queries.
  __device__ __forceinline__ void load_other(int stage, const Source (&from)[2], const Other &other, int64_t b,
                                             int h) const {
#pragma unroll
    for (int which = 0; which < 2; ++which)
      load_tile<kOtherRows, kHeadDim, kThreads>(other_tile(stage, which), from[which],
                                                [&](int granule, int n) { return other.position(granule, n); });
    if constexpr (kOwn == Side::kKeys) {
      const int thread = here(static_cast<int>(threadIdx.x));
      if (thread < kOtherRows) {
        const int i = other.position(thread);
        const bool is_there = i >= 0 && i < from[0].length;
        const int64_t at = is_there ? fact_index(x, b, h, i) : 0;
        const uint32_t to = fact_address(stage, thread);
        store_4_bytes(position_address(stage, thread), static_cast<uint32_t>(i));
        if (is_there) {
          copy_4_bytes(to, facts.lse2 + at);
          copy_4_bytes(to + 4, facts.delta + at);
        } else {
          store_8_bytes(to, {infinity(), 0});
        }
      }
    }
  }
};

}  // namespace flash
