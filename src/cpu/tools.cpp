// Probabilities, dropout positions and merging on the CPU: small tools, one number at a time and in double.
#include <cmath>
#include <limits>

#include "../random.h"
#include "cpu.h"
#include "number.h"
#include "parallel.h"

namespace flash {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double read(const void *data, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::kFloat16:
      return to_float(static_cast<const Half *>(data)[index]);
    case DType::kBfloat16:
      return to_float(static_cast<const Bfloat *>(data)[index]);
    case DType::kFloat64:
      return static_cast<const double *>(data)[index];
    case DType::kBool:
      return static_cast<const bool *>(data)[index];
    default:
      return static_cast<const float *>(data)[index];
  }
}
void write(void *data, DType dtype, int64_t index, double value) {
  switch (dtype) {
    case DType::kFloat16:
      return from_float(static_cast<float>(value), static_cast<Half *>(data) + index);
    case DType::kBfloat16:
      return from_float(static_cast<float>(value), static_cast<Bfloat *>(data) + index);
    case DType::kFloat64:
      return from_float(value, static_cast<double *>(data) + index);
    default:
      return from_float(static_cast<float>(value), static_cast<float *>(data) + index);
  }
}
double read(const ScoresView &view, int64_t b, int64_t h, int64_t i, int64_t j) {
  return read(view.data, view.dtype, leading_offset(view.batch, b) + h * view.head + i * view.row + j * view.column);
}

bool listed(const BlockMaskView &blocks, int64_t b, int64_t h, int64_t i, int64_t j) {
  if (blocks.block_q == 0) return true;
  const int32_t *row =
      blocks.row_start + b * blocks.row_batch + h * blocks.row_head + i / blocks.block_q * blocks.row_stride;
  for (int64_t at = row[0]; at < row[blocks.row_stride]; ++at)
    if (blocks.columns[at * blocks.columns_stride] == j / blocks.block_k) return true;
  return false;
}

double score(const Problem &x, const Sequence &sequence, int64_t b, int64_t h, int64_t i, int64_t j) {
  const int64_t kv_head = h / (x.Hq / x.Hk);
  double s = 0;
  for (int64_t c = 0; c < x.D; ++c)
    s += read(x.q.data, x.dtype, b * x.q.batch + i * x.q.row + h * x.q.head + c) *
         read(x.k.data, x.dtype, b * x.k.batch + j * x.k.row + kv_head * x.k.head + c);
  s *= x.scale;
  if (x.softcap > 0) s = x.softcap * std::tanh(s / x.softcap);
  if (const BatchView &slopes = x.alibi_slopes; slopes.data != nullptr)
    s -= read(slopes.data, slopes.dtype, leading_offset(slopes.batch, b) + h * slopes.head) *
         static_cast<double>(std::abs(i + sequence.offset - j));
  if (x.bias.data != nullptr) s += read(x.bias, b, h, i, j);
  return s;
}

}  // namespace

void cpu_weights(const Problem &x, const int64_t *rows, int64_t rows_stride, int64_t count, WeightsView weights) {
  const DType dtype = sum_dtype(x.dtype);
  parallel(cpu_threads(), x.B * x.Hq * count, [&](int, int64_t task) {
    const int64_t b = task / count / x.Hq, h = task / count % x.Hq, r = task % count;
    const int64_t i = rows == nullptr ? r : rows[r * rows_stride];
    const Sequence sequence = sequence_of(x, b);
    const Interval seen = keys_of(x.window, sequence, i);
    const int64_t first = b * weights.batch + h * weights.head + r * weights.row;
    const double sink = x.sinks.data == nullptr ? -kInfinity : read(x.sinks.data, x.sinks.dtype, h * x.sinks.head);
    // Two passes over the scores, which are not kept: the maximum and the sum first, then the probabilities.
    double max = i < sequence.q_len ? sink : -kInfinity, sum = max == -kInfinity ? 0 : 1;
    const auto visible = [&](int64_t j) {
      return j >= seen.begin && j < seen.end && listed(x.blocks, b, h, i, j) &&
             (x.mask.data == nullptr || read(x.mask, b, h, i, j) != 0);
    };
    for (int64_t j = seen.begin; j < seen.end; ++j) {
      if (!visible(j)) continue;
      const double s = score(x, sequence, b, h, i, j);
      if (s == -kInfinity) continue;
      if (s > max) {
        sum = sum * std::exp(max - s) + 1;
        max = s;
      } else {
        sum += std::exp(s - max);
      }
    }
    for (int64_t j = 0; j < x.Lk; ++j)
      write(weights.data, dtype, first + j * weights.column,
            sum == 0 || !visible(j) ? 0 : std::exp(score(x, sequence, b, h, i, j) - max) / sum);
  });
}

void cpu_dropout_mask(uint64_t seed, double dropout, bool *keep, const int64_t extent[4], const int64_t stride[4]) {
  const uint64_t threshold = dropout_threshold(dropout);
  parallel(cpu_threads(), extent[0] * extent[1] * extent[2], [&](int, int64_t task) {
    const int64_t b = task / extent[2] / extent[1], h = task / extent[2] % extent[1], i = task % extent[2];
    bool *row = keep + b * stride[0] + h * stride[1] + i * stride[2];
    for (int64_t j = 0; j < extent[3]; ++j)
      row[j * stride[3]] = dropout_words(seed, b, h, i, j).word[dropout_word_index(i, j)] >= threshold;
  });
}

void cpu_merge(DType dtype, int64_t B, int64_t Lq, int64_t Hq, int64_t Dv, MergePart first, MergePart second,
               MergePart merged) {
  const DType lse_dtype = sum_dtype(dtype);
  const auto lse_index = [](const LseView &x, int64_t b, int64_t h, int64_t i) {
    return b * x.batch + h * x.head + i * x.row;
  };
  const auto o_index = [](const RowsView &x, int64_t b, int64_t h, int64_t i) {
    return b * x.batch + i * x.row + h * x.head;
  };
  parallel(cpu_threads(), B * Hq * Lq, [&](int, int64_t task) {
    const int64_t b = task / Lq / Hq, h = task / Lq % Hq, i = task % Lq;
    const double lse1 = read(first.lse.data, lse_dtype, lse_index(first.lse, b, h, i));
    const double lse2 = read(second.lse.data, lse_dtype, lse_index(second.lse, b, h, i));
    const double max = lse1 >= lse2 || lse1 != lse1 ? lse1 : lse2;
    double weight1 = 0, weight2 = 0, lse = max;
    if (max != -kInfinity) {
      weight1 = std::exp(lse1 - max), weight2 = std::exp(lse2 - max);
      lse = max + std::log(weight1 + weight2);
      const double sum = weight1 + weight2;
      weight1 /= sum, weight2 /= sum;
    }
    const int64_t at1 = o_index(first.o, b, h, i), at2 = o_index(second.o, b, h, i), at = o_index(merged.o, b, h, i);
    for (int64_t c = 0; c < Dv; ++c) {
      const double part1 = weight1 == 0 ? 0 : weight1 * read(first.o.data, dtype, at1 + c);
      const double part2 = weight2 == 0 ? 0 : weight2 * read(second.o.data, dtype, at2 + c);
      write(merged.o.data, dtype, at + c, part1 + part2);
    }
    if (merged.lse.data != nullptr) write(merged.lse.data, lse_dtype, lse_index(merged.lse, b, h, i), lse);
  });
}

}  // namespace flash
