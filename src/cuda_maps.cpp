// The driver's function that makes tensor maps, found at run time: the library doesn't link the driver.
#include "cuda_maps.h"

#include <initializer_list>

#include "../cuda/isa/index.h"
#include "device.h"
#include "error.h"
#include "geometry.h"

#ifdef FLASH_CUDA
#include <cuda.h>
#include <cuda_runtime_api.h>
#endif

namespace flash {

bool takes_map(const RowsView &view, DType dtype, const TensorShape &shape) {
  constexpr int64_t kAlignment = 16, kMostStride = int64_t{1} << 40, kMostExtent = int64_t{1} << 31;  // of cuda.h
  if (reinterpret_cast<uintptr_t>(view.data) % kAlignment != 0) return false;
  const int64_t extents[] = {shape.rows, shape.heads, shape.batches}, strides[] = {view.row, view.head, view.batch};
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t bytes = strides[axis] * size_bytes(dtype);
    if (extents[axis] < 1 || extents[axis] >= kMostExtent) return false;
    if (extents[axis] > 1 && (bytes <= 0 || bytes >= kMostStride || bytes % kAlignment != 0)) return false;
  }
  return true;
}

#ifdef FLASH_CUDA

namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

Encode find_encode() {
  void *function = nullptr;
  cudaDriverEntryPointQueryResult result{};
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result);
  if (error != cudaSuccess) fail_cuda(error, "looking for cuTensorMapEncodeTiled");
  if (result != cudaDriverEntryPointSuccess) fail(FLASH_CUDA_ERROR, "the driver has no cuTensorMapEncodeTiled");
  return reinterpret_cast<Encode>(function);
}

struct Axis {
  int64_t extent, stride, box;
};

// Behind the columns up to four axes.
void fill(TensorMap *map, const RowsView &view, DType dtype, int64_t columns, std::initializer_list<Axis> axes) {
  static_assert(sizeof(TensorMap) == sizeof(CUtensorMap));
  static const Encode encode = find_encode();
  constexpr int kMost = 5;
  cuuint64_t extents[kMost] = {static_cast<cuuint64_t>(columns)}, strides[kMost] = {};
  cuuint32_t box[kMost] = {static_cast<cuuint32_t>(kPanelRowBytes / size_bytes(dtype))}, steps[kMost] = {1, 1, 1, 1, 1};
  cuuint32_t rank = 1;
  for (const Axis &axis : axes) {
    extents[rank] = static_cast<cuuint64_t>(axis.extent);
    // An axis of one element has no stride; the driver wants one all the same.
    strides[rank - 1] = static_cast<cuuint64_t>(axis.extent > 1 ? axis.stride * size_bytes(dtype) : 16);
    box[rank++] = static_cast<cuuint32_t>(axis.box);
  }
  const CUtensorMapDataType type = dtype == DType::kFloat8    ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                                   : dtype == DType::kFloat16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                              : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const CUresult result = encode(reinterpret_cast<CUtensorMap *>(map), type, rank, view.data, extents, strides, box,
                                 steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) fail(FLASH_CUDA_ERROR, "cuTensorMapEncodeTiled gave ", static_cast<int>(result));
}

}  // namespace

void fill_map(TensorMap *map, const RowsView &view, DType dtype, const TensorShape &shape, int box_rows) {
  fill(map, view, dtype, shape.columns,
       {{shape.rows, view.row, box_rows}, {shape.heads, view.head, 1}, {shape.batches, view.batch, 1}});
}

void fill_map_of_heads(TensorMap *map, const RowsView &view, DType dtype, const TensorShape &shape, int box_rows,
                       int log2_heads) {
  const int64_t heads = int64_t{1} << log2_heads;
  fill(map, view, dtype, shape.columns,
       {{heads, view.head, heads},
        {shape.rows, view.row, box_rows / heads},
        {shape.heads / heads, view.head * heads, 1},
        {shape.batches, view.batch, 1}});
}

#endif

}  // namespace flash
