// The CPU kernels for one instruction set: FLASH_CPU_PATH names it, the compiler's flags choose it. Built once per path,
// and everything but the table at the end has internal linkage.
#include "kernels.h"

#include "../random.h"
#include "layout.h"
#include "simd.h"
//
#include "gemm.inl"
#include "tile.inl"
//
#include "backward.inl"
#include "forward.inl"

namespace flash {

#if defined(__AVX512BF16__)
using BfloatArithmetic = BfloatPairArithmetic;
#else
using BfloatArithmetic = FloatArithmetic;
#endif

// One row of the table: an operation for every storage type, with the arithmetic it is done in.
#define FLASH_FOR_EACH_DTYPE(operation)                                                                      \
  {operation<FloatArithmetic, Half>, operation<BfloatArithmetic, Bfloat>, operation<FloatArithmetic, float>, \
   operation<DoubleArithmetic, double>}
#define FLASH_JOIN(a, b) FLASH_JOIN_EXPANDED(a, b)
#define FLASH_JOIN_EXPANDED(a, b) a##b

const CpuKernels FLASH_JOIN(kernels_, FLASH_CPU_PATH) = {
    FLASH_FOR_EACH_DTYPE(forward_task),   FLASH_FOR_EACH_DTYPE(prepare_task), FLASH_FOR_EACH_DTYPE(keys_task),
    FLASH_FOR_EACH_DTYPE(finish_dq_task), FLASH_FOR_EACH_DTYPE(bias_task),
};

}  // namespace flash
