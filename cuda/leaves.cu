// Not a kernel of the library: it is compiled and then linked into nothing. It uses every function of the headers that
// host and device share, so that one that no longer compiles for the device breaks the build at once.
#include "geometry.h"
#include "random.h"
#include "tensor.h"

namespace flash {

__global__ void leaves(Window window, Sequence sequence, LeadingAxes axes, const void *integers, DType dtype,
                       int64_t index, uint64_t seed, double dropout, int64_t *out) {
  const Interval rows{index, index + 1};
  const Interval intervals[] = {keys_of(window, sequence, index), queries_of(window, sequence, index),
                                keys_of_any(window, sequence, rows), keys_of_all(window, sequence, rows),
                                queries_of_any(window, sequence, rows)};
  int64_t sum = clamp(index, 0, 1) + round_up(index, 2) + size_bytes(dtype) + size_bytes(sum_dtype(dtype)) +
                leading_offset(axes, index) + read_integer(integers, dtype, index);
  for (const Interval &interval : intervals) {
    const Interval both = intersection(interval, rows);
    sum += empty(both) ? 0 : both.begin;
  }
  const Philox words = dropout_words(seed, index, index, index, index);
  *out = sum + (words.word[dropout_word_index(index, index)] >= dropout_threshold(dropout));
}

}  // namespace flash
