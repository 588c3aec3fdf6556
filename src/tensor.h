// Views: what is left of a flash_tensor once it has been checked. Plain data for host and device; strides count elements.
//
// check.h declares how a flash_tensor becomes a view; tensor.cpp holds that code and the names of data types.
#pragma once
#include <cstdint>

#include "portable.h"

namespace flash {

// Where an array lies. Pinned host memory counts as CPU, managed memory as CUDA.
enum class Backend : uint8_t { kCpu, kCuda };

enum class DType : uint8_t { kFloat16, kBfloat16, kFloat32, kFloat64, kFloat8, kInt32, kInt64, kBool };

FLASH_INLINE int64_t size_bytes(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
    case DType::kBfloat16:
      return 2;
    case DType::kFloat32:
    case DType::kInt32:
      return 4;
    case DType::kFloat64:
    case DType::kInt64:
      return 8;
    case DType::kFloat8:
    case DType::kBool:
      return 1;
  }
  return 0;
}

// "float16", "bfloat16", ...
const char *name(DType dtype);

// The type that scores, sums and lse have for q of this type.
FLASH_INLINE DType sum_dtype(DType dtype) { return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32; }

// q, k, v, o and their gradients: element (b, i, h, d) lies at data[b * batch + i * row + h * head + d].
struct RowsView {
  void *data;
  int64_t batch, row, head;
};

// lse and dlse: element (b, h, i) lies at data[b * batch + h * head + i * row].
struct LseView {
  void *data;
  int64_t batch, head, row;
};

// The leading axes N of an argument that needn't merge into one (broadcast ones have stride 0), outermost first.
constexpr int kMaxLeadingAxes = 8;
struct LeadingAxes {
  int rank;
  int64_t extent[kMaxLeadingAxes], stride[kMaxLeadingAxes];
};

// Where batch b starts, in elements from the first.
FLASH_INLINE int64_t leading_offset(const LeadingAxes &axes, int64_t b) {
  int64_t offset = 0;
  for (int axis = axes.rank - 1; axis >= 0; --axis) {
    offset += b % axes.extent[axis] * axes.stride[axis];
    b /= axes.extent[axis];
  }
  return offset;
}

// mask, bias and dbias, broadcast to (B, Hq, Lq, Lk): a broadcast axis has stride 0. data NULL = not given.
struct ScoresView {
  void *data;
  DType dtype;
  LeadingAxes batch;
  int64_t head, row, column;
};

// One value per batch, or per batch and head: lengths, offsets, slopes. data NULL = not given.
struct BatchView {
  void *data;
  DType dtype;
  LeadingAxes batch;
  int64_t head;
};

FLASH_INLINE int64_t read_integer(const void *data, DType dtype, int64_t index) {
  return dtype == DType::kInt64 ? static_cast<const int64_t *>(data)[index] : static_cast<const int32_t *>(data)[index];
}

}  // namespace flash
