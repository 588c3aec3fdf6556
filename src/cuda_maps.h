// Maps of tensors for Hopper's copies of boxes (TMA): which tensors can have one, and CUDA's own record of it.
#pragma once
#include <cstdint>

#include "../cuda/tensor_map.h"
#include "tensor.h"

namespace flash {

// What RowsView leaves out.
struct TensorShape {
  int64_t columns, rows, heads, batches;
};

// Whether rows start at multiples of 16 bytes, as copies of boxes need it, and no axis goes backwards or repeats itself.
bool takes_map(const RowsView &view, DType dtype, const TensorShape &shape);

// For boxes of 128 bytes of columns and `box_rows` rows of one head, which lie in shared memory with the 128-byte swizzle. The
// tensor must take a map. Throws Error (FLASH_CUDA_ERROR) where the driver can't make one.
void fill_map(TensorMap *map, const RowsView &view, DType dtype, const TensorShape &shape, int box_rows);

// The same for boxes whose rows are those of 2^log2_heads heads in turn: box_rows of them.
void fill_map_of_heads(TensorMap *map, const RowsView &view, DType dtype, const TensorShape &shape, int box_rows,
                       int log2_heads);

}  // namespace flash
