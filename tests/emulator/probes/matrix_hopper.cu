// wgmma: what each mode of a descriptor reads, and how sums are rounded.
//
// Descriptors. Shared memory holds +-1 to 4 in f16, a fixed function of the place (placed below), so D, which is exact,
// tells which elements were read. One operand is described by the words of the case, the other lies without swizzle at
// kPlain. A case is one block: start, LBO and SBO in bytes, base offset, swizzle (0 none, 1 128, 2 64, 3 32 bytes). The
// lists hold the canonical layouts of CUTLASS's mma_sm90_desc.hpp, other strides, steps along k and starts that aren't a
// multiple of the pattern.
//
// Sums. A comes from registers, B lies without swizzle in shared memory. The first block has terms of many sizes, the
// second a few large ones beside small ones: how many bits are kept, and whether they are rounded or cut off.
#include <cuda_runtime.h>

#include <cstring>

#include "probes.h"

namespace probes {

namespace {

constexpr int kPlain = 48 * 1024, kSharedBytes = 56 * 1024;
constexpr int kCaseWords = 64;  // of D that are kept, two elements each

// The f16 bits of element i of shared memory.
__device__ uint32_t placed(uint32_t i) {
  uint32_t random = (i + 1) * 2654435761u;
  random = (random ^ random >> 15) * 2246822519u;
  random ^= random >> 13;
  const uint32_t magnitudes[] = {0x3c00, 0x4000, 0x4200, 0x4400};  // 1 to 4
  return magnitudes[random % 4] | (random & 4) << 13;
}

// Addresses and strides in bytes.
__device__ uint64_t descriptor(uint32_t start, uint32_t lbo, uint32_t sbo, uint32_t base, uint32_t swizzle) {
  const auto field = [](uint32_t bytes) { return static_cast<uint64_t>((bytes & 0x3ffff) >> 4); };
  return field(start) | field(lbo) << 16 | field(sbo) << 32 | static_cast<uint64_t>(base) << 49 |
         static_cast<uint64_t>(swizzle) << 62;
}

__device__ void begin() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
// Nothing may read the accumulators before; nor may the compiler move a copy of them here.
template <int count>
__device__ void finish(uint32_t (&d)[count]) {
  asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
  for (uint32_t &x : d) asm volatile("" : "+r"(x)::"memory");
}

__device__ uint32_t shared_address(const void *p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

__device__ uint8_t *filled() {
  extern __shared__ __align__(1024) uint8_t shared[];
  for (int i = threadIdx.x; i < kSharedBytes / 4; i += blockDim.x) {
    reinterpret_cast<uint32_t *>(shared)[i] = placed(2 * i) | placed(2 * i + 1) << 16;
  }
  return shared;
}

// A by the case, M = 64; B 16 x 8, K-major: two 8x8 matrices 128 bytes apart. Columns 0 and 1 of D:
// out[2 (thread / 4) + register].
template <int transposed>
__global__ void describe_a(const uint32_t *in, uint32_t *out) {
  const uint32_t shared = shared_address(filled()), *c = in + 5 * blockIdx.x;
  const uint64_t a = descriptor(shared + c[0], c[1], c[2], c[3], c[4]), b = descriptor(shared + kPlain, 128, 128, 0, 0);
  uint32_t d[2] = {};
  begin();
  asm volatile(
      "{ .reg .pred p; setp.ne.u32 p, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n8k16.f16.f16.f16 {%0, %1}, %2, %3, p, 1, 1, %4, 0; }"
      : "+r"(d[0]), "+r"(d[1])
      : "l"(a), "l"(b), "n"(transposed));
  finish(d);
  if (threadIdx.x % 4 != 0) return;
  for (int k = 0; k < 2; ++k) out[kCaseWords * blockIdx.x + threadIdx.x / 2 + k] = d[k];
}

// B by the case, N = 128; A 64 x 16, K-major: 8x8 matrices 128 bytes apart along k, 256 along m. Row 0 of D:
// out[16 lane + n / 8] for lanes 0 to 3.
template <int transposed>
__global__ void describe_b(const uint32_t *in, uint32_t *out) {
  const uint32_t shared = shared_address(filled()), *c = in + 5 * blockIdx.x;
  const uint64_t a = descriptor(shared + kPlain, 128, 256, 0, 0), b = descriptor(shared + c[0], c[1], c[2], c[3], c[4]);
  uint32_t d[32] = {};
  begin();
  asm volatile(
      "{ .reg .pred p; setp.ne.u32 p, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f16.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, "
      "%13, "
      "%14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, p, 1, 1, "
      "0, "
      "%34; }"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]), "+r"(d[7]), "+r"(d[8]),
        "+r"(d[9]), "+r"(d[10]), "+r"(d[11]), "+r"(d[12]), "+r"(d[13]), "+r"(d[14]), "+r"(d[15]), "+r"(d[16]),
        "+r"(d[17]), "+r"(d[18]), "+r"(d[19]), "+r"(d[20]), "+r"(d[21]), "+r"(d[22]), "+r"(d[23]), "+r"(d[24]),
        "+r"(d[25]), "+r"(d[26]), "+r"(d[27]), "+r"(d[28]), "+r"(d[29]), "+r"(d[30]), "+r"(d[31])
      : "l"(a), "l"(b), "n"(transposed));
  finish(d);
  if (threadIdx.x >= 4) return;
#pragma unroll
  for (int k = 0; k < 16; ++k) out[kCaseWords * blockIdx.x + 16 * threadIdx.x + k] = d[2 * k];
}

// in: a[4][threads], c[4][threads], b[64][blocks]: B 16 x 8, K-major: element (k, n) is half 64 (k / 8) + 8 n + k % 8.
enum class Sum { kF16, kBf16, kF16Negated, kF16Fresh };
template <Sum sum>
__global__ void sums(const uint32_t *in, uint32_t *out) {
  __shared__ __align__(128) uint32_t tile[64];
  const int threads = gridDim.x * 128, thread = blockIdx.x * 128 + threadIdx.x;
  if (threadIdx.x < 64) tile[threadIdx.x] = in[8 * threads + 64 * blockIdx.x + threadIdx.x];
  const uint64_t b = descriptor(shared_address(tile), 128, 128, 0, 0);
  uint32_t a[4];
  uint32_t d[4];  // f32
  for (int k = 0; k < 4; ++k) {
    a[k] = in[k * threads + thread];
    d[k] = in[(4 + k) * threads + thread];
  }
  begin();
#define WGMMA(types, scale_d, scale_a)                                                                        \
  asm volatile("{ .reg .pred p; setp.ne.u32 p, " scale_d ", 0;\nwgmma.mma_async.sync.aligned.m64n8k16." types \
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, %8, p, " scale_a ", 1, 0; }"                             \
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])                                               \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
  if constexpr (sum == Sum::kF16) WGMMA("f32.f16.f16", "1", "1");
  if constexpr (sum == Sum::kBf16) WGMMA("f32.bf16.bf16", "1", "1");
  if constexpr (sum == Sum::kF16Negated) WGMMA("f32.f16.f16", "1", "-1");
  if constexpr (sum == Sum::kF16Fresh) WGMMA("f32.f16.f16", "0", "1");
#undef WGMMA
  finish(d);
  for (int k = 0; k < 4; ++k) out[k * threads + thread] = d[k];
}

// ---- Host

struct Case {
  uint32_t start, lbo, sbo, base, swizzle;
};

Probe describe(const char *name, const char *text, void (*kernel)(const uint32_t *, uint32_t *),
               std::vector<Case> cases) {
  const auto inputs = [cases] {
    Columns columns{{"start", 'x', {}}, {"lbo", 'x', {}}, {"sbo", 'x', {}}, {"base", 'x', {}}, {"swizzle", 'x', {}}};
    for (const Case &c : cases) {
      const uint32_t words[] = {c.start, c.lbo, c.sbo, c.base, c.swizzle};
      for (size_t k = 0; k < 5; ++k) columns[k].words.push_back(words[k]);
    }
    return columns;
  };
  const auto run = [kernel](const Columns &columns) {
    const size_t count = columns.at(0).words.size();
    std::vector<uint32_t> in;
    for (size_t i = 0; i < count; ++i) {
      for (size_t k = 0; k < 5; ++k) in.push_back(columns.at(k).words.at(i));
    }
    const Words device_in(in), device_out(kCaseWords * count);
    expect(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes), "shared memory");
    kernel<<<static_cast<unsigned>(count), 128, kSharedBytes>>>(device_in.data(), device_out.data());
    expect(cudaGetLastError(), "launch");
    return Columns{{"d", 'h', device_out.host()}};
  };
  return {name, text, "exact", inputs, run};
}

// Of 16-bit numbers: exponents from 2^-15 on; most terms small beside a few large ones if `uneven`.
uint32_t pair_of(bool bf16, bool uneven, Random &r) {
  uint32_t pair = 0;
  for (int k = 0; k < 2; ++k) {
    const uint32_t exponent = uneven ? (r.below(3) == 0 ? 0 : 11 + r.below(2)) : r.below(15);
    const uint32_t one = bf16 ? 127 : 15, bits = bf16 ? 7 : 10;
    pair = pair << 16 | r.below(2) << 15 | (one - exponent) << bits | (r.below(2) ? r.below(1u << bits) : 0);
  }
  return pair;
}

Probe sums_of(const char *name, const char *text, void (*kernel)(const uint32_t *, uint32_t *), bool bf16) {
  const auto inputs = [name, bf16] {
    Columns columns;
    for (const char *column : {"a0", "a1", "a2", "a3", "c0", "c1", "c2", "c3", "b"}) {
      Random r(std::string(name) + column);
      const bool accumulator = *column == 'c';
      columns.push_back({column, accumulator ? 'f' : bf16 ? 'b' : 'h', {}});
      const size_t count = *column == 'b' ? 64 : 128;
      for (size_t i = 0; i < 2 * count; ++i) {  // two blocks
        const bool uneven = i >= count;
        uint32_t word = pair_of(bf16, uneven, r);
        if (accumulator)
          word = r.below(2) << 31 | (127 - (uneven ? r.below(2) * 24 : r.below(24))) << 23 | r.below(1 << 23);
        columns.back().words.push_back(word);
      }
    }
    return columns;
  };
  const auto run = [kernel](const Columns &columns) {
    std::vector<uint32_t> in;
    for (const Column &column : columns) in.insert(in.end(), column.words.begin(), column.words.end());
    const size_t threads = columns.at(0).words.size();
    const Words device_in(in), device_out(4 * threads);
    kernel<<<static_cast<unsigned>(threads / 128), 128>>>(device_in.data(), device_out.data());
    expect(cudaGetLastError(), "launch");
    const std::vector<uint32_t> out = device_out.host();
    Columns outputs;
    for (size_t k = 0; k < 4; ++k) {
      const auto first = out.begin() + static_cast<std::ptrdiff_t>(k * threads);
      outputs.push_back(
          {"d" + std::to_string(k), 'f', std::vector<uint32_t>(first, first + static_cast<std::ptrdiff_t>(threads))});
    }
    return outputs;
  };
  return {name, text, "sum 17", inputs, run};
}

}  // namespace

std::vector<Probe> hopper_matrix_probes() {
  // Along k (or m) is 16 elements: 32 bytes. start, LBO, SBO, base offset, swizzle.
  const std::vector<Case> k_major = {
      {0, 128, 256, 0, 0},   {0, 2048, 128, 0, 0},  {48, 144, 272, 0, 0},   {1024, 4096, 400, 0, 0},
      {0, 16, 1024, 0, 1},   {32, 16, 1024, 0, 1},  {96, 2048, 1024, 0, 1}, {0, 16, 2048, 0, 1},
      {256, 16, 1024, 0, 1}, {256, 16, 1024, 2, 1}, {0, 16, 1152, 0, 1},    {0, 16, 512, 0, 2},
      {32, 4096, 512, 0, 2}, {0, 16, 1536, 0, 2},   {128, 16, 512, 0, 2},   {0, 16, 256, 0, 3},
      {0, 1024, 768, 0, 3},  {64, 16, 256, 0, 3},
  };
  const std::vector<Case> mn_major = {
      {0, 1024, 128, 0, 0},    {0, 2048, 256, 0, 0},     {48, 2192, 144, 0, 0}, {0, 128, 1024, 0, 0},
      {0, 8192, 1024, 0, 1},   {2048, 8192, 1024, 0, 1}, {0, 4096, 2048, 0, 1}, {64, 8192, 1024, 0, 1},
      {256, 8192, 1024, 0, 1}, {256, 8192, 1024, 2, 1},  {0, 1024, 512, 0, 2},  {0, 2048, 4096, 0, 2},
      {32, 1024, 512, 0, 2},   {0, 512, 256, 0, 3},      {0, 1024, 4096, 0, 3}, {64, 512, 256, 0, 3},
  };
  return {
      describe("wgmma_a_k_major", "wgmma m64n8k16 f16, A described, K-major", describe_a<0>, k_major),
      describe("wgmma_a_mn_major", "wgmma m64n8k16 f16, A described, M-major", describe_a<1>, mn_major),
      describe("wgmma_b_k_major", "wgmma m64n128k16 f16, B described, K-major", describe_b<0>, k_major),
      describe("wgmma_b_mn_major", "wgmma m64n128k16 f16, B described, N-major", describe_b<1>, mn_major),
      sums_of("wgmma_f32_f16", "wgmma m64n8k16 f32.f16.f16, A from registers", sums<Sum::kF16>, false),
      sums_of("wgmma_f32_bf16", "wgmma m64n8k16 f32.bf16.bf16, A from registers", sums<Sum::kBf16>, true),
      sums_of("wgmma_f32_f16_negated", "the same as wgmma_f32_f16, scale-a -1", sums<Sum::kF16Negated>, false),
      sums_of("wgmma_f32_f16_fresh", "the same as wgmma_f32_f16, scale-d 0", sums<Sum::kF16Fresh>, false),
  };
}

}  // namespace probes
