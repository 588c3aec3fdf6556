// Instructions of compute capability 9.0a (Hopper), one function each: with sm80.cuh the only home of inline PTX. A host
// compiler that checks the kernels sees declarations only.
//
// A warpgroup is four warps whose first has a number that is a multiple of four; all of its threads execute the
// instructions of matrix products together. index.h has the layouts of tiles, fragments and descriptors.
#pragma once
#include <cstdint>

#include "cpu/number.h"
#include "portable.h"
#include "tensor_map.h"

namespace flash {

#if defined(__CUDACC__)
#define FLASH_INSTRUCTION __device__ __forceinline__

// ---- Warps and registers --------------------------------------------------------------------------------------------

// x of lane 0, which the compiler then knows to be the same in all lanes.
FLASH_INSTRUCTION int uniform(int x) { return __shfl_sync(0xffffffffu, x, 0); }
// Registers of each thread of the warpgroup from here on, a multiple of 8: more waits until others have given theirs.
template <int kCount>
FLASH_INSTRUCTION void keep_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
FLASH_INSTRUCTION void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}
// Barriers 1 to 15 of the block, each for a fixed number of threads: all arrive, those that sync wait for the rest.
FLASH_INSTRUCTION void sync_threads(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
FLASH_INSTRUCTION void arrive_threads(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// ---- Barriers in shared memory (mbarrier): a phase ends when `count` arrivals and all expected bytes are there --------

FLASH_INSTRUCTION void barrier_init(uint32_t barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
// Makes barriers that this thread initialised known to copies.
FLASH_INSTRUCTION void fence_barrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
FLASH_INSTRUCTION void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
FLASH_INSTRUCTION void barrier_arrive_expecting(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Whether the phase of this parity has ended; tries for a while.
FLASH_INSTRUCTION bool barrier_try_wait(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{ .reg .pred done;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "selp.u32 %0, 1, 0, done; }"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}

// What this thread wrote to shared memory becomes visible to copies and matrix products.
FLASH_INSTRUCTION void fence_shared_for_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// The same for global memory, for what others wrote as well.
FLASH_INSTRUCTION void fence_global_for_async() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

// What one block of threads tells another: who sees the value sees what came before it.
FLASH_INSTRUCTION int load_acquire(const int *from) {
  int x;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(x) : "l"(__cvta_generic_to_global(from)) : "memory");
  return x;
}
FLASH_INSTRUCTION void store_release(int *to, int x) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(__cvta_generic_to_global(to)), "r"(x) : "memory");
}

// ---- Transposing 8-bit numbers: index.h -------------------------------------------------------------------------------

// Four 8 x 8 matrices of 16-bit numbers to shared memory; each lane gives the address of one row.
FLASH_INSTRUCTION void store_matrices(uint32_t address, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(r[0]), "r"(r[1]),
               "r"(r[2]), "r"(r[3])
               : "memory");
}
// Four of the eight bytes of high and low: those that the last four digits of `which` name.
FLASH_INSTRUCTION uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t which) {
  uint32_t y;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(y) : "r"(low), "r"(high), "r"(which));
  return y;
}
// Four numbers rounded to e4m3 (to nearest, ties to even; at most 448), the first in the lowest byte.
FLASH_INSTRUCTION uint32_t pack_e4m3(float x0, float x1, float x2, float x3) {
  uint32_t y;
  asm("{ .reg .b16 low, high;\n"
      "cvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\n"
      "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n"
      "mov.b32 %0, {low, high}; }"
      : "=r"(y)
      : "f"(x0), "f"(x1), "f"(x2), "f"(x3));
  return y;
}

// ---- Copies of boxes (TMA): one thread starts them, zeros stand for what lies outside of the tensor ------------------

FLASH_INSTRUCTION void prefetch_map(const TensorMap *map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
// Coordinates: number in the row, row, head, batch.
FLASH_INSTRUCTION void load_box(uint32_t to, const TensorMap *map, uint32_t barrier, int column, int row, int head,
                                int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(to),
      "l"(map), "r"(barrier), "r"(column), "r"(row), "r"(head), "r"(batch)
      : "memory");
}
FLASH_INSTRUCTION void store_box(const TensorMap *map, uint32_t from, int column, int row, int head, int batch) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(map),
               "r"(from), "r"(column), "r"(row), "r"(head), "r"(batch)
               : "memory");
}
// The same where rows are those of several heads in turn: from the first of group `group` on.
FLASH_INSTRUCTION void load_rows_of_heads(uint32_t to, const TensorMap *map, uint32_t barrier, int column, int row,
                                          int group, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(to),
      "l"(map), "r"(barrier), "r"(column), "r"(0), "r"(row), "r"(group), "r"(batch)
      : "memory");
}
FLASH_INSTRUCTION void store_rows_of_heads(const TensorMap *map, uint32_t from, int column, int row, int group,
                                           int batch) {
  asm volatile(
      "cp.async.bulk.tensor.5d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];" ::"l"(map),
      "r"(from), "r"(column), "r"(0), "r"(row), "r"(group), "r"(batch)
      : "memory");
}
// Adds `bytes` of float32 numbers, a multiple of 16, to those in global memory.
FLASH_INSTRUCTION void add_bytes(float *to, uint32_t from, int bytes) {
  asm volatile(
      "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(__cvta_generic_to_global(to)),
      "r"(from), "r"(bytes)
      : "memory");
}
FLASH_INSTRUCTION void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until shared memory may be written again; what was stored may still be on its way.
FLASH_INSTRUCTION void wait_for_stores_to_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
FLASH_INSTRUCTION void wait_for_stores() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

// ---- Matrix products: 16-bit and 8-bit operands, float32 sums --------------------------------------------------------
//
// Before the first product, and whenever other instructions touched registers that products use.
FLASH_INSTRUCTION void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
FLASH_INSTRUCTION void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until all but the last kPending groups are done.
template <int kPending>
FLASH_INSTRUCTION void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Sums of products that were waited for: keeps the compiler from reading them earlier.
template <int kRows, int kColumns>
FLASH_INSTRUCTION void settle(float (&sum)[kRows][kColumns]) {
#pragma unroll
  for (int a = 0; a < kRows; ++a)
#pragma unroll
    for (int b = 0; b < kColumns; ++b) asm volatile("" : "+f"(sum[a][b])::"memory");
}

// Where the rows of an operand lie along memory's rows (numbers of a row are added up) or across them.
enum class Along : int { kRows = 0, kColumns = 1 };

// sum = a b + (add ? sum : 0), of 64 x 16 and 16 x N numbers. `sum` is [row 8 apart][N / 4]: see index.h. b, and a where
// it lies in shared memory too, are descriptors.
#define FLASH_SUMS_1 "%0, %1, %2, %3, %4, %5, %6, %7"
#define FLASH_SUMS_2 FLASH_SUMS_1 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define FLASH_SUMS_2_AND_A_HALF FLASH_SUMS_2 ", %16, %17, %18, %19"
#define FLASH_SUMS_3 FLASH_SUMS_2 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define FLASH_SUMS_4 FLASH_SUMS_3 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define FLASH_SUMS_5 FLASH_SUMS_4 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define FLASH_SUMS_6 FLASH_SUMS_5 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define FLASH_SUMS_8 FLASH_SUMS_6 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define FLASH_SUMS_10 \
  FLASH_SUMS_8        \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define FLASH_SUMS_12                                                                \
  FLASH_SUMS_8                                                                       \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define FLASH_SUMS_14 \
  FLASH_SUMS_12       \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define FLASH_SUMS_16                                                                            \
  FLASH_SUMS_12                                                                                  \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define FLASH_SUM(b)                                                                               \
  "+f"(sum[0][b]), "+f"(sum[0][b + 1]), "+f"(sum[1][b]), "+f"(sum[1][b + 1]), "+f"(sum[0][b + 2]), \
      "+f"(sum[0][b + 3]), "+f"(sum[1][b + 2]), "+f"(sum[1][b + 3])
#define FLASH_PLACES_1 FLASH_SUM(0)
#define FLASH_PLACES_2 FLASH_PLACES_1, FLASH_SUM(4)
#define FLASH_PLACES_2_AND_A_HALF FLASH_PLACES_2, "+f"(sum[0][8]), "+f"(sum[0][9]), "+f"(sum[1][8]), "+f"(sum[1][9])
#define FLASH_PLACES_3 FLASH_PLACES_2, FLASH_SUM(8)
#define FLASH_PLACES_4 FLASH_PLACES_3, FLASH_SUM(12)
#define FLASH_PLACES_5 FLASH_PLACES_4, FLASH_SUM(16)
#define FLASH_PLACES_6 FLASH_PLACES_5, FLASH_SUM(20)
#define FLASH_PLACES_8 FLASH_PLACES_6, FLASH_SUM(24), FLASH_SUM(28)
#define FLASH_PLACES_10 FLASH_PLACES_8, FLASH_SUM(32), FLASH_SUM(36)
#define FLASH_PLACES_12 FLASH_PLACES_8, FLASH_SUM(32), FLASH_SUM(36), FLASH_SUM(40), FLASH_SUM(44)
#define FLASH_PLACES_14 FLASH_PLACES_12, FLASH_SUM(48), FLASH_SUM(52)
#define FLASH_PLACES_16 FLASH_PLACES_14, FLASH_SUM(56), FLASH_SUM(60)

// n0 to n6 are N / 2 and the numbers after it: those of the operands behind the sums.
#define FLASH_WGMMA(T, type, N, sixteenths, n0, n1, n2, n3, n4, n5, n6)                                                \
  template <Along kA, Along kB>                                                                                        \
  FLASH_INSTRUCTION void multiply_shared(T, float (&sum)[2][N / 4], uint64_t a, uint64_t b, bool add) {                \
    asm volatile("{ .reg .pred add; setp.ne.b32 add, %" #n2                                                            \
                 ", 0;\n"                                                                                              \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type " {" FLASH_SUMS_##sixteenths          \
                 "}, %" #n0 ", %" #n1 ", add, 1, 1, %" #n3 ", %" #n4 "; }"                                             \
                 : FLASH_PLACES_##sixteenths                                                                           \
                 : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(static_cast<int>(kA)), "n"(static_cast<int>(kB)));  \
  }                                                                                                                    \
  template <Along kB>                                                                                                  \
  FLASH_INSTRUCTION void multiply_registers(T, float (&sum)[2][N / 4], const uint32_t (&a)[4], uint64_t b, bool add) { \
    asm volatile("{ .reg .pred add; setp.ne.b32 add, %" #n5                                                            \
                 ", 0;\n"                                                                                              \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type " {" FLASH_SUMS_##sixteenths          \
                 "}, {%" #n0 ", %" #n1 ", %" #n2 ", %" #n3 "}, %" #n4 ", add, 1, 1, %" #n6 "; }"                       \
                 : FLASH_PLACES_##sixteenths                                                                           \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)),                     \
                   "n"(static_cast<int>(kB)));                                                                         \
  }
#define FLASH_WGMMAS(...)               \
  FLASH_WGMMA(Half, "f16", __VA_ARGS__) \
  FLASH_WGMMA(Bfloat, "bf16", __VA_ARGS__)
FLASH_WGMMAS(32, 2, 16, 17, 18, 19, 20, 21, 22)
FLASH_WGMMAS(40, 2_AND_A_HALF, 20, 21, 22, 23, 24, 25, 26)
FLASH_WGMMAS(48, 3, 24, 25, 26, 27, 28, 29, 30)
FLASH_WGMMAS(64, 4, 32, 33, 34, 35, 36, 37, 38)
FLASH_WGMMAS(80, 5, 40, 41, 42, 43, 44, 45, 46)
FLASH_WGMMAS(96, 6, 48, 49, 50, 51, 52, 53, 54)
FLASH_WGMMAS(128, 8, 64, 65, 66, 67, 68, 69, 70)
FLASH_WGMMAS(192, 12, 96, 97, 98, 99, 100, 101, 102)
FLASH_WGMMAS(256, 16, 128, 129, 130, 131, 132, 133, 134)

// The same for e4m3, of 64 x 32 and 32 x N numbers, which always lie along rows.
#define FLASH_WGMMA_E4M3(N, sixteenths, n0, n1, n2, n3, n4, n5)                                                 \
  template <Along kA, Along kB>                                                                                 \
  FLASH_INSTRUCTION void multiply_shared(Float8, float (&sum)[2][N / 4], uint64_t a, uint64_t b, bool add) {    \
    static_assert(kA == Along::kRows && kB == Along::kRows);                                                    \
    asm volatile("{ .reg .pred add; setp.ne.b32 add, %" #n2                                                     \
                 ", 0;\n"                                                                                       \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k32.f32.e4m3.e4m3 {" FLASH_SUMS_##sixteenths           \
                 "}, %" #n0 ", %" #n1 ", add, 1, 1; }"                                                          \
                 : FLASH_PLACES_##sixteenths                                                                    \
                 : "l"(a), "l"(b), "r"(static_cast<int>(add)));                                                 \
  }                                                                                                             \
  template <Along kB>                                                                                           \
  FLASH_INSTRUCTION void multiply_registers(Float8, float (&sum)[2][N / 4], const uint32_t (&a)[4], uint64_t b, \
                                            bool add) {                                                         \
    static_assert(kB == Along::kRows);                                                                          \
    asm volatile("{ .reg .pred add; setp.ne.b32 add, %" #n5                                                     \
                 ", 0;\n"                                                                                       \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k32.f32.e4m3.e4m3 {" FLASH_SUMS_##sixteenths           \
                 "}, {%" #n0 ", %" #n1 ", %" #n2 ", %" #n3 "}, %" #n4 ", add, 1, 1; }"                          \
                 : FLASH_PLACES_##sixteenths                                                                    \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)));             \
  }
FLASH_WGMMA_E4M3(32, 2, 16, 17, 18, 19, 20, 21)
FLASH_WGMMA_E4M3(64, 4, 32, 33, 34, 35, 36, 37)
FLASH_WGMMA_E4M3(96, 6, 48, 49, 50, 51, 52, 53)
FLASH_WGMMA_E4M3(128, 8, 64, 65, 66, 67, 68, 69)
FLASH_WGMMA_E4M3(160, 10, 80, 81, 82, 83, 84, 85)
FLASH_WGMMA_E4M3(224, 14, 112, 113, 114, 115, 116, 117)
FLASH_WGMMA_E4M3(256, 16, 128, 129, 130, 131, 132, 133)

#undef FLASH_INSTRUCTION
#else
enum class Along : int { kRows, kColumns };
int uniform(int x);
template <int kCount>
void keep_registers();
template <int kCount>
void take_registers();
void sync_threads(int barrier, int threads);
void arrive_threads(int barrier, int threads);
void barrier_init(uint32_t barrier, int count);
void fence_barrier_init();
void barrier_arrive(uint32_t barrier);
void barrier_arrive_expecting(uint32_t barrier, int bytes);
bool barrier_try_wait(uint32_t barrier, uint32_t parity);
void fence_shared_for_async();
void fence_global_for_async();
int load_acquire(const int *from);
void store_release(int *to, int x);
void store_matrices(uint32_t address, const uint32_t (&r)[4]);
uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t which);
uint32_t pack_e4m3(float x0, float x1, float x2, float x3);
void prefetch_map(const TensorMap *map);
void load_box(uint32_t to, const TensorMap *map, uint32_t barrier, int column, int row, int head, int batch);
void store_box(const TensorMap *map, uint32_t from, int column, int row, int head, int batch);
void load_rows_of_heads(uint32_t to, const TensorMap *map, uint32_t barrier, int column, int row, int group, int batch);
void store_rows_of_heads(const TensorMap *map, uint32_t from, int column, int row, int group, int batch);
void add_bytes(float *to, uint32_t from, int bytes);
void commit_stores();
void wait_for_stores_to_read();
void wait_for_stores();
void begin_products();
void commit_products();
template <int kPending>
void wait_for_products();
template <int kRows, int kColumns>
void settle(float (&sum)[kRows][kColumns]);
template <Along kA, Along kB, class T, int kColumns>
void multiply_shared(T, float (&sum)[2][kColumns], uint64_t a, uint64_t b, bool add);
template <Along kB, class T, int kColumns>
void multiply_registers(T, float (&sum)[2][kColumns], const uint32_t (&a)[4], uint64_t b, bool add);
#endif

}  // namespace flash
