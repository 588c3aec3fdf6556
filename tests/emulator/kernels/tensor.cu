// C = A B^T with tensor cores: A (m, k) and B (n, k) in f16 or bf16, k a multiple of 32; C (m, n) in float32.
//
// A block of 4 warps makes 64 x 64 of C in steps of 32 along k. Both tiles are brought by cp.async into one of two buffers
// while the other one is multiplied: rows of 40 elements, so that ldmatrix finds its 8 rows in different banks.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace {

constexpr int kBlock = 64, kStep = 32, kRow = 40;

__device__ uint32_t shared_address(const void *p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

__device__ void copy16(void *to, const void *from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0)
               : "memory");
}
__device__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int pending>
__device__ void wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

__device__ void load4(uint32_t (&r)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

__device__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __half) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __nv_bfloat16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <class T>
struct Tiles {
  T a[2][kBlock][kRow], b[2][kBlock][kRow];
};

// Rows first .. first + 63, columns `column` .. + 31; rows beyond the end become zero.
template <class T>
__device__ void fetch(T (*to)[kRow], const T *from, int first, int rows, int column, int k) {
  for (int i = threadIdx.x; i < kBlock * kStep / 8; i += blockDim.x) {
    const int row = i / (kStep / 8), part = i % (kStep / 8) * 8;
    const bool valid = first + row < rows;
    copy16(&to[row][part], from + (valid ? (int64_t)(first + row) * k + column + part : 0), valid);
  }
}

template <class T>
__device__ void multiply(const T *a, const T *b, float *c, int m, int n, int k) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto &tiles = *reinterpret_cast<Tiles<T> *>(memory);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int first_row = blockIdx.y * kBlock, first_column = blockIdx.x * kBlock;
  float sum[8][4] = {};
  fetch(tiles.a[0], a, first_row, m, 0, k);
  fetch(tiles.b[0], b, first_column, n, 0, k);
  commit();
  for (int step = 0; step < k / kStep; ++step) {
    const int now = step % 2;
    if ((step + 1) * kStep < k) {
      fetch(tiles.a[now ^ 1], a, first_row, m, (step + 1) * kStep, k);
      fetch(tiles.b[now ^ 1], b, first_column, n, (step + 1) * kStep, k);
    }
    commit();
    wait<1>();
    __syncthreads();  // everybody's part of the tile has arrived
    for (int part = 0; part < kStep; part += 16) {
      uint32_t ra[4];
      load4(ra, &tiles.a[now][warp * 16 + lane % 16][part + lane / 16 * 8]);
      for (int column = 0; column < kBlock; column += 16) {
        uint32_t rb[4];
        load4(rb, &tiles.b[now][column + lane % 8 + lane / 16 * 8][part + lane / 8 % 2 * 8]);
        multiply_add(sum[column / 8], ra, rb[0], rb[1], T{});
        multiply_add(sum[column / 8 + 1], ra, rb[2], rb[3], T{});
      }
    }
    __syncthreads();  // before the next fetch writes over it
  }
  for (int j = 0; j < 8; ++j) {
    for (int e = 0; e < 4; ++e) {
      const int row = first_row + warp * 16 + lane / 4 + e / 2 * 8,
                column = first_column + j * 8 + lane % 4 * 2 + e % 2;
      if (row < m && column < n) c[(int64_t)row * n + column] = sum[j][e];
    }
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(128)
    multiply_f16(const __half *a, const __half *b, float *c, int m, int n, int k) {
  multiply(a, b, c, m, n, k);
}
extern "C" __global__ void __launch_bounds__(128)
    multiply_bf16(const __nv_bfloat16 *a, const __nv_bfloat16 *b, float *c, int m, int n, int k) {
  multiply(a, b, c, m, n, k);
}
