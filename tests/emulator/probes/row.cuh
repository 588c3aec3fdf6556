// The kernel around a row of a table: registers by the names that its PTX uses.
//
//   a0-a3 b0 b1 c0-c3   inputs                       d0-d3   outputs, 0 before
//   cell                global address of 16 bytes of the lane's own, which hold c0-c3
//   from                global address of a0-a3
//   at, first           shared address of the lane's own 16 bytes, which hold c0-c3; of lane 0's
//   row                 shared address of the 16 bytes of lane b0 % 32
//   bar                 shared address of 8 bytes of the lane's own, not set
//   la lb lc ld, ha hb hc hd, p q   scratch: 64 bits, 16 bits, predicates
#pragma once
#include "probes.h"

namespace probes {

#define PROBE_KERNEL(name, text)                                                                                      \
  __global__ void name(const uint32_t *in, uint32_t *out, uint32_t *cells) {                                          \
    __shared__ uint4 own[32];                                                                                         \
    __shared__ uint64_t barriers[32];                                                                                 \
    const int lane = threadIdx.x, thread = blockIdx.x * 32 + lane;                                                    \
    const uint32_t *w = in + kLaneWords * thread;                                                                     \
    own[lane] = make_uint4(w[6], w[7], w[8], w[9]);                                                                   \
    __syncwarp();                                                                                                     \
    const uint32_t first = static_cast<uint32_t>(__cvta_generic_to_shared(own));                                      \
    const uint32_t bar = static_cast<uint32_t>(__cvta_generic_to_shared(barriers + lane));                            \
    uint32_t d0, d1, d2, d3;                                                                                          \
    asm volatile(                                                                                                     \
        "{ .reg .b32 a<4>, b<2>, c<4>, d<4>, at, first, row, bar; .reg .b64 cell, from, la, lb, lc, ld;\n"            \
        ".reg .b16 ha, hb, hc, hd; .reg .pred p, q;\n"                                                                \
        "mov.b32 d0, 0; mov.b32 d1, 0; mov.b32 d2, 0; mov.b32 d3, 0;\n"                                               \
        "mov.b32 a0, %4; mov.b32 a1, %5; mov.b32 a2, %6; mov.b32 a3, %7; mov.b32 b0, %8; mov.b32 b1, %9;\n"           \
        "mov.b32 c0, %10; mov.b32 c1, %11; mov.b32 c2, %12; mov.b32 c3, %13; mov.b64 cell, %14; mov.b64 from, %15;\n" \
        "mov.b32 first, %16; mov.b32 at, %17; mov.b32 row, %18; mov.b32 bar, %19;\n" text                             \
        "\nmov.b32 %0, d0; mov.b32 %1, d1; mov.b32 %2, d2; mov.b32 %3, d3; }"                                         \
        : "=r"(d0), "=r"(d1), "=r"(d2), "=r"(d3)                                                                      \
        : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "r"(w[4]), "r"(w[5]), "r"(w[6]), "r"(w[7]), "r"(w[8]),          \
          "r"(w[9]), "l"(__cvta_generic_to_global(cells + 4 * thread)), "l"(__cvta_generic_to_global(w)), "r"(first), \
          "r"(first + 16 * lane), "r"(first + 16 * (w[4] % 32)), "r"(bar)                                             \
        : "memory");                                                                                                  \
    reinterpret_cast<uint4 *>(out)[thread] = make_uint4(d0, d1, d2, d3);                                              \
  }

}  // namespace probes
