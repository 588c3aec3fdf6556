// Small tools on any GPU: probabilities, what dropout keeps, and the union of two results. One number at a time.
#pragma once
#include "reduce.cuh"
#include "score.cuh"
#include "tile.cuh"

namespace flash {

// The score of one pair; -inf where it is not visible.
__device__ __forceinline__ float score_of(const Attention &x, const Head &head, Interval seen, int i, int j) {
  if (j < seen.begin || j >= seen.end || !mask_allows(x, head, i, j)) return -infinity();
  const RowsView &q = x.q.view, &k = x.k.view;
  const int64_t q_row = head.b * q.batch + head.h * q.head + i * q.row;
  const int64_t k_row = head.b * k.batch + head.kv_head * k.head + j * k.row;
  float product = 0;
#pragma unroll 1
  for (int c = 0; c < x.D; ++c)
    product = fmaf(read_number(q.data, x.q.dtype, q_row + c), read_number(k.data, x.k.dtype, k_row + c), product);
  return shaped(x, head, x.softcap > 0 ? tanh_of(x, product) : product, i, j);
}

// The probabilities of one query per block of threads, before dropout. The scores are gone through twice: for their
// maximum and sum, then for the probabilities.
template <int, bool>
__global__ void __launch_bounds__(kWeightsThreads, 1) weights_any(const __grid_constant__ WeightsParams params) {
  const Attention &x = params.attention;
  float *const scratch = shared_memory();
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t index = blockIdx.x; index < params.tasks; index += gridDim.x) {
    const int64_t r = index % params.count, b = index / params.count / x.Hq;
    const int64_t given = params.rows == nullptr ? r : params.rows[r * params.rows_stride];
    const int i = given >= 0 && given < x.Lq ? static_cast<int>(given) : 0;
    const Head head = head_of<true>(x, sequence_of(x, b), b, static_cast<int>(index / params.count % x.Hq));
    const bool is_real = given == i && i < head.sequence.q_len;
    const Interval seen = is_real ? keys_of(x.window, head.sequence, i) : Interval{0, 0};
    float *const row = params.weights + b * params.batch + head.h * params.head + r * params.row;
    for (int64_t j = thread; j < x.Lk; j += kWeightsThreads) row[j * params.column] = 0;

    const float sink = is_real && x.sinks.data != nullptr
                           ? read_number(x.sinks.data, x.sinks.dtype, head.h * x.sinks.head)
                           : -infinity();
    float max = sink, sum = 0;
    Granules<kWeightsThreads> keys;
    for (Walk walk(x.by_row, b, head.h, i, seen); walk.next(&keys);) {
      const float s = score_of(x, head, seen, i, keys.position(thread));
      const float now = fmaxf(max, s);
      if (s != -infinity()) sum = s > max ? fmaf(sum, expf(max - s), 1.f) : sum + expf(s - max);
      max = now;
    }
    const float top = max_of_block(max, scratch);
    sum = sum_of_block(sum == 0 ? 0 : sum * expf(max - top), scratch);
    if (sink != -infinity()) sum += expf(sink - top);
    for (Walk walk(x.by_row, b, head.h, i, seen); sum != 0 && walk.next(&keys);) {
      const int j = keys.position(thread);
      const float s = score_of(x, head, seen, i, j);
      if (j >= 0 && s != -infinity()) row[j * params.column] = expf(s - top) / sum;
    }
  }
}

template <int, bool>
__global__ void __launch_bounds__(kPlainThreads, 1) dropout_mask_any(const __grid_constant__ DropoutMaskParams params) {
  for (int64_t at = int64_t{blockIdx.x} * kPlainThreads + threadIdx.x; at < params.tasks;
       at += int64_t{gridDim.x} * kPlainThreads) {
    int64_t rest = at;
    const int64_t j = rest % params.extent[3];
    rest /= params.extent[3];
    const int64_t i = rest % params.extent[2];
    rest /= params.extent[2];
    const int64_t h = rest % params.extent[1], b = rest / params.extent[1];
    const Philox words = dropout_words(params.seed, b, h, i, j);
    const int n = dropout_word_index(i, j);
    const uint32_t word = n == 0 ? words.word[0] : n == 1 ? words.word[1] : n == 2 ? words.word[2] : words.word[3];
    params.keep[b * params.stride[0] + h * params.stride[1] + i * params.stride[2] + j * params.stride[3]] =
        word >= params.keep_threshold;
  }
}

// lse = log(exp(lse1) + exp(lse2)),  o = exp(lse1 - lse) o1 + exp(lse2 - lse) o2: one warp per query.
template <int, bool>
__global__ void __launch_bounds__(kPlainThreads, 1) merge_any(const __grid_constant__ MergeParams params) {
  constexpr int kWarps = kPlainThreads / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int64_t index = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp; index < params.tasks;
       index += int64_t{gridDim.x} * kWarps) {
    const int64_t i = index % params.Lq, h = index / params.Lq % params.Hq, b = index / params.Lq / params.Hq;
    const auto lse_at = [&](const LseView &lse) {
      return static_cast<float *>(lse.data) + b * lse.batch + h * lse.head + i * lse.row;
    };
    const auto row_of = [&](const Rows &rows) { return b * rows.view.batch + h * rows.view.head + i * rows.view.row; };
    const float lse1 = *lse_at(params.lse1), lse2 = *lse_at(params.lse2);
    const float max = lse1 >= lse2 || lse1 != lse1 ? lse1 : lse2;
    float weight1 = 0, weight2 = 0, lse = max;
    if (max != -infinity()) {
      weight1 = expf(lse1 - max), weight2 = expf(lse2 - max);
      const float sum = weight1 + weight2;
      lse = max + logf(sum);
      weight1 /= sum, weight2 /= sum;
    }
    const int64_t row1 = row_of(params.o1), row2 = row_of(params.o2), row = row_of(params.o);
    const auto part = [](float weight, const Rows &rows, int64_t index) {
      return weight == 0 ? 0 : weight * read_number(rows.view.data, rows.dtype, index);
    };
    for (int64_t c = lane; c < params.Dv; c += kWarp)
      write_number(part(weight1, params.o1, row1 + c) + part(weight2, params.o2, row2 + c), params.o.view.data,
                   params.o.dtype, row + c);
    __syncwarp();  // lse may be lse1 itself, which other lanes have read
    if (lane == 0 && params.lse.data != nullptr) *lse_at(params.lse) = lse;
  }
}

}  // namespace flash
