// What host and device code share: the two compilers' words for "always inlined".
//
// Leaves such as geometry.h and random.h are compiled once per CPU instruction set and again for the GPU. Their functions
// are always inlined, so no object file can hold an AVX-512 copy that the linker then hands to an older CPU.
#pragma once

#if defined(__CUDACC__)
#define FLASH_INLINE __host__ __device__ __forceinline__
#else
#define FLASH_INLINE inline __attribute__((always_inline))
#endif
