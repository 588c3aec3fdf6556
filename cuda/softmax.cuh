// Online softmax (FlashAttention, Algorithm 1) of the rows of a tile, in units of log2: p = 2^(log2_scale * s - m).
//
// A row's scores are spread over kAcross neighbouring lanes. The maximum is theirs together; the sum stays each lane's
// own until the end. Where p is to be rounded to a type of small range, 2^kShift p takes its place, also in the sum.
#pragma once
#include "reduce.cuh"
#include "score.cuh"

namespace flash {

template <int kRows, int kAcross, int kShift = 0>
struct RowSums {
  float max[kRows];  // log2 units
  float sum[kRows];  // of this lane's columns

  __device__ __forceinline__ RowSums() {
#pragma unroll
    for (int a = 0; a < kRows; ++a) max[a] = -infinity(), sum[a] = 0;
  }

  // Scores become probabilities relative to the new maximum; returns in alpha what earlier sums must be multiplied
  // with.
  template <int kColumns>
  __device__ __forceinline__ void add(float (&s)[kRows][kColumns], float log2_scale, float (&alpha)[kRows]) {
#pragma unroll
    for (int a = 0; a < kRows; ++a) {
      float top = s[a][0];
#pragma unroll
      for (int b = 1; b < kColumns; ++b) top = fmaxf(top, s[a][b]);
      const float now = fmaxf(max[a], max_of_lanes<kAcross>(top) * log2_scale);
      const float base = now == -infinity() ? 0 : now;  // a row that has seen nothing yet: -inf - -inf would be NaN
      alpha[a] = exp2_approximate(max[a] - base);
      max[a] = now;
      const float exponent = shifted(-base);
      float total = 0;
#pragma unroll
      for (int b = 0; b < kColumns; ++b) {
        s[a][b] = exp2_approximate(fmaf(s[a][b], log2_scale, exponent));
        total += s[a][b];
      }
      sum[a] = fmaf(sum[a], alpha[a], total);
    }
  }

  // The row's sum becomes that of all lanes, with the sink (log2 units, -inf = none) as one more column; returns what
  // the sums of p v must be multiplied with for the new maximum.
  __device__ __forceinline__ float finish(int a, float sink) {
    sum[a] = sum_of_lanes<kAcross>(sum[a]);
    const float now = fmaxf(max[a], sink), base = now == -infinity() ? 0 : now;
    const float factor = exp2_approximate(max[a] - base);
    sum[a] = fmaf(sum[a], factor, exp2_approximate(shifted(sink - base)));
    max[a] = now;
    return factor;
  }

  __device__ __forceinline__ float lse(const Attention &x, int a) const {
    if (sum[a] == 0) return -infinity();
    return fmaf(max[a], kLn2, fmaf(max[a], x.nat_of_log2_low, logf(unshifted(sum[a]))));
  }

 private:
  // By selection: x + 0 is an addition, since it changes -0.
  static __device__ __forceinline__ float shifted(float exponent) { return kShift == 0 ? exponent : exponent + kShift; }
  static __device__ __forceinline__ float unshifted(float x) { return kShift == 0 ? x : x * (1.0f / (1 << kShift)); }
};

// The sink of a head in units of log2, -inf = none.
__device__ __forceinline__ float sink_of(const Attention &x, int h) {
  const float sink = x.sinks.data == nullptr ? -infinity() : read_number(x.sinks.data, x.sinks.dtype, h * x.sinks.head);
  return sink == -infinity() ? sink : fmaf(sink, kLog2E, sink * x.log2_of_nat_low);
}

// The end of a tile's rows: their lse, and in scale[a] what O's row a must be multiplied with to become o; 0 for nothing.
// Row a is query query_of(a) of head head_of(a), with sink sink_of(a). Queries of the tile end at `end`, real ones at
// q_len.
template <int kRows, int kShift, class HeadOf, class QueryOf, class SinkOf>
__device__ __forceinline__ void finish_rows(const Attention &x, const LseView &lse, RowSums<kRows, 4, kShift> &sums,
                                            int64_t b, HeadOf head_of, int64_t q_len, int end, QueryOf query_of,
                                            SinkOf sink_of, float (&scale)[kRows]) {
#pragma unroll
  for (int a = 0; a < kRows; ++a) {
    const float factor = sums.finish(a, sink_of(a));
    const bool is_empty = query_of(a) >= q_len || sums.sum[a] == 0;  // past q_len, or sees nothing
    scale[a] = is_empty ? 0 : factor * x.keep_scale / sums.sum[a];
    if (lse.data != nullptr && threadIdx.x % 4 == 0 && query_of(a) < end)
      static_cast<float *>(lse.data)[b * lse.batch + head_of(a) * lse.head + query_of(a) * lse.row] =
          is_empty ? -infinity() : sums.lse(x, a);
  }
}

}  // namespace flash
