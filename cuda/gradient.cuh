// What the backward kernels on tensor cores have in common: rows of both sides in shared memory, and p and ds from the
// products. The mathematics is that of backward_any.cuh.
#pragma once
#include "backward_any.cuh"
#include "fragment.cuh"

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

// Products s and dp become p (as dv needs it, with dropout) and ds. fact_of(n): lse2, +inf where there is no real
// query, and delta, of the query of row or column n. kSeesAll: every pair is there and visible. kForBias: ds is without
// softcap's derivative.
template <class T, bool kOptions, bool kSeesAll, bool kForBias = false, class P, class FactOf>
__device__ __forceinline__ void differentiate_scores(const Attention &x, const Head &head, const Band &band,
                                                     const P &part, bool sees_all, FactOf fact_of,
                                                     float (&s)[P::kRows][P::kColumns],
                                                     float (&dp)[P::kRows][P::kColumns]) {
  const bool drops = kOptions && x.keep_threshold != 0, caps = kOptions && x.softcap > 0 && !kForBias;
  decltype(kept_pairs(x, head, part)) kept = 0;
  if (drops) {
    kept = kept_pairs(x, head, part);
    keep_numbers(kept, x.keep_scale, dp);
  }
  if constexpr (kOptions) {
    cap_scores(x, part, s);
    if (caps) {  // dp becomes what p is multiplied with for ds
#pragma unroll
      for (int b = 0; b < P::kColumns; ++b)
#pragma unroll
        for (int a = 0; a < P::kRows; ++a)
          dp[a][b] = (dp[a][b] - fact_of(P::kQueryRows ? a : b).y) * (1 - s[a][b] * s[a][b]);
    }
    shape_scores<T, kOptions>(x, head, band, part, sees_all, s);
  }
#pragma unroll
  for (int b = 0; b < P::kColumns; ++b) {
    float2 fact;
#pragma unroll
    for (int a = 0; a < P::kRows; ++a) {
      if (P::kQueryRows || a == 0) fact = fact_of(P::kQueryRows ? a : b);
      const bool visible =
          kOptions || kSeesAll || sees_all || (fact.x != infinity() && sees(band, part.query(a, b), part.key(a, b)));
      const float p = visible ? exp2_approximate(fmaf(s[a][b], x.log2_scale, -fact.x)) : 0;
      // By selection: what is hidden may be too large for dp.
      dp[a][b] = p == 0 ? 0 : p * (dp[a][b] - (caps ? 0 : fact.y));
      s[a][b] = p;
    }
  }
  if (drops) keep_numbers(kept, x.keep_scale, s);
}
// Tiles of which every query sees every key take a path without the question.
template <class T, bool kOptions, class P, class FactOf>
__device__ __forceinline__ void differentiate(const Attention &x, const Head &head, const Band &band, const P &part,
                                              bool sees_all, FactOf fact_of, float (&s)[P::kRows][P::kColumns],
                                              float (&dp)[P::kRows][P::kColumns]) {
  if (!kOptions && sees_all)
    differentiate_scores<T, kOptions, true>(x, head, band, part, true, fact_of, s, dp);
  else
    differentiate_scores<T, kOptions, false>(x, head, band, part, sees_all, fact_of, s, dp);
}

// The same without options in two steps, each when its product is there: s becomes p, and dp becomes ds. lse2_of(n) and
// delta_of(n): of the query of row n, twice, or of those of columns n and n + 1.
template <class P, class Lse2Of>
__device__ __forceinline__ void exponentiate(const Attention &x, const P &, Lse2Of lse2_of,
                                             float (&s)[P::kRows][P::kColumns]) {
#pragma unroll
  for (int b = 0; b < P::kColumns; b += 2) {
    float2 lse2;
#pragma unroll
    for (int a = 0; a < P::kRows; ++a) {
      if (P::kQueryRows || a == 0) lse2 = lse2_of(P::kQueryRows ? a : b);
      s[a][b] = exp2_approximate(fmaf(s[a][b], x.log2_scale, -lse2.x));
      s[a][b + 1] = exp2_approximate(fmaf(s[a][b + 1], x.log2_scale, -lse2.y));
    }
  }
}
template <class P, class DeltaOf>
__device__ __forceinline__ void differentiate_weights(const P &, DeltaOf delta_of,
                                                      const float (&p)[P::kRows][P::kColumns],
                                                      float (&dp)[P::kRows][P::kColumns]) {
#pragma unroll
  for (int b = 0; b < P::kColumns; b += 2) {
    float2 delta;
#pragma unroll
    for (int a = 0; a < P::kRows; ++a) {  // by selection: what is hidden may be too large for dp
      if (P::kQueryRows || a == 0) delta = delta_of(P::kQueryRows ? a : b);
      dp[a][b] = p[a][b] == 0 ? 0 : p[a][b] * (dp[a][b] - delta.x);
      dp[a][b + 1] = p[a][b + 1] == 0 ? 0 : p[a][b + 1] * (dp[a][b + 1] - delta.y);
    }
  }
}

// 16 x 8 numbers of dq, of which this lane holds c0 to c3, are added to the sums in memory, 32 neighbours at a time:
// those that the lanes hold of one register, whatever rows and columns they are of. `to`: the lane's place.
__device__ __forceinline__ void add_fragment(float *to, float c0, float c1, float c2, float c3) {
  add_in_memory(to, c0);
  add_in_memory(to + kWarp, c1);
  add_in_memory(to + 2 * kWarp, c2);
  add_in_memory(to + 3 * kWarp, c3);
}

// Whether all queries of a tile are real and see all keys of another, from first_key to last_key.
template <int kCount>
__device__ __forceinline__ bool queries_see_all(const Granules<kCount> &queries, int q_len, const Band &band,
                                                int first_key, int last_key) {
  return queries.least() >= 0 && queries.most() < q_len &&
         all_see_all(band, queries.least(), queries.most(), first_key, last_key);
}

}  // namespace flash
