// The mathematics of the backward: p and ds of a tile from its scores and do v^T.
//
//   p  = 2^(log2_scale * s - lse2)                      lse2 = log2(e) lse;  0 where nothing is seen
//   dp = keep / (1 - dropout) * (do v^T)                delta = rowsum(do * o) - dlse
//   ds = p (dp - delta)                                 times the derivative of softcap
//   dv = (keep / (1 - dropout) p)^T do,  dk = scale ds^T q,  dq = scale ds k
#pragma once
#include "score.cuh"

namespace flash {

FLASH_INLINE int64_t fact_index(const Attention &x, int64_t b, int h, int64_t i) { return (b * x.Hq + h) * x.Lq + i; }

// p of one score. fact: lse2 and delta of its query, and what rounding took from lse2 where that is told.
__device__ __forceinline__ float weight_of(float s, float log2_scale, float2 fact) {
  return exp2_approximate(fmaf(s, log2_scale, -fact.x));
}
__device__ __forceinline__ float weight_of(float s, float log2_scale, float3 fact) {
  return exp2_approximate_subnormal(fmaf(s, log2_scale, -fact.x) - fact.z);
}

// Products s and dp become p (as dv needs it, with dropout) and ds. fact_of(n): what weight_of() takes, of the query of
// row or column n, lse2 being +inf where it is not real. kSeesAll: every pair is there and visible. kForBias: ds is
// without softcap's derivative.
template <class T, bool kOptions, bool kSeesAll, bool kForBias, class P, class FactOf>
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
    decltype(fact_of(0)) fact;
#pragma unroll
    for (int a = 0; a < P::kRows; ++a) {
      if (P::kQueryRows || a == 0) fact = fact_of(P::kQueryRows ? a : b);
      const bool visible =
          kOptions || kSeesAll || sees_all || (fact.x != infinity() && sees(band, part.query(a, b), part.key(a, b)));
      const float p = visible ? weight_of(s[a][b], x.log2_scale, fact) : 0;
      // By selection: what is hidden may be too large for dp.
      dp[a][b] = p == 0 ? 0 : p * (dp[a][b] - (caps ? 0 : fact.y));
      s[a][b] = p;
    }
  }
  if (drops) keep_numbers(kept, x.keep_scale, s);
}
// Tiles of which every query sees every key take a path without the question.
template <class T, bool kOptions, bool kForBias = false, class P, class FactOf>
__device__ __forceinline__ void differentiate(const Attention &x, const Head &head, const Band &band, const P &part,
                                              bool sees_all, FactOf fact_of, float (&s)[P::kRows][P::kColumns],
                                              float (&dp)[P::kRows][P::kColumns]) {
  if (!kOptions && sees_all)
    differentiate_scores<T, kOptions, true, kForBias>(x, head, band, part, true, fact_of, s, dp);
  else
    differentiate_scores<T, kOptions, false, kForBias>(x, head, band, part, sees_all, fact_of, s, dp);
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

// Whether all queries of a tile are real and see all keys of another, from first_key to last_key.
template <int kCount>
__device__ __forceinline__ bool queries_see_all(const Granules<kCount> &queries, int64_t q_len, const Band &band,
                                                int first_key, int last_key) {
  return queries.least() >= 0 && queries.most() < q_len &&
         all_see_all(band, queries.least(), queries.most(), first_key, last_key);
}

}  // namespace flash
