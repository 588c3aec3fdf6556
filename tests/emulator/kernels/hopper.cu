// O = f16(Q K^T) V, rows of 64 f16: attention without its softmax, with all that a Hopper kernel is made of. Tiles of 64 x
// 64 come by TMA through a ring of two stages, with a full and an empty mbarrier each, for K and V apart; warpgroup 0
// loads, 1 and 2 compute 64 rows each: S = Q K^T from shared memory, then O += S V with S in registers and V N-major.
// They take turns over named barriers 1 and 2, and store O by TMA over shared memory.
//
// In shared memory every tile is 64 rows of 128 bytes, swizzled (128 bytes), at a multiple of 1024.
#include <cuda_fp16.h>

#include <cstdint>

struct alignas(64) Map {
  uint64_t words[16];
};
struct Arguments {
  int tiles;  // of 64 keys
  Map q, k, v, o;
};

constexpr int kTileBytes = 64 * 128, kStages = 2, kConsumers = 2;
constexpr uint32_t kSharedQ = 0, kSharedK = kSharedQ + kConsumers * kTileBytes,
                   kSharedV = kSharedK + kStages * kTileBytes, kSharedO = kSharedV + kStages * kTileBytes,
                   kSharedBarriers = kSharedO + kConsumers * kTileBytes;
// 8 bytes each: q, then by stage: K full and empty, V full and empty.
constexpr uint32_t kFull = 0, kEmpty = 8, kV = 16, kStageBarriers = 32;

__device__ void init(uint32_t barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
__device__ void wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{ .reg .pred p;\nretry: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra retry; }" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
__device__ void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ void load(uint32_t to, const Map &map, int column, int row, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, "
      "%3}], [%4], %5;" ::"r"(to),
      "l"(&map), "r"(column), "r"(row), "r"(barrier), "l"(0x14F0000000000000)
      : "memory");
}
__device__ void expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ uint64_t descriptor(uint32_t address) {
  return (address & 0x3ffff) >> 4 | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}

#define R(k) "+f"(c[k])
#define R8(k) R(k), R(k + 1), R(k + 2), R(k + 3), R(k + 4), R(k + 5), R(k + 6), R(k + 7)
#define ACCUMULATORS                                                                                           \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, " \
  "%23, %24, %25, %26, %27, %28, %29, %30, %31}"
__device__ void multiply(float (&c)[32], uint64_t a, uint64_t b, int add) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %34, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 " ACCUMULATORS
      ", %32, %33, p, 1, 1, 0, 0; }"
      : R8(0), R8(8), R8(16), R8(24)
      : "l"(a), "l"(b), "r"(add));
}
__device__ void multiply(float (&c)[32], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 " ACCUMULATORS
               ", {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
               : R8(0), R8(8), R8(16), R8(24)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
__device__ void begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
__device__ void finish(float (&c)[32]) {
  asm volatile("wgmma.wait_group.sync.aligned 0;" : R8(0), R8(8), R8(16), R8(24)::"memory");
}
__device__ uint32_t pair(float low, float high) {
  uint32_t d;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  return d;
}

extern "C" __global__ void __launch_bounds__(384, 1) hopper(const __grid_constant__ Arguments x) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const uint32_t base = static_cast<uint32_t>(__cvta_generic_to_shared(shared)), barriers = base + kSharedBarriers;
  const auto stage = [&](int tile) { return barriers + 8 + tile % kStages * kStageBarriers; };
  const int group = __shfl_sync(~0u, threadIdx.x / 128, 0), thread = threadIdx.x % 128;
  if (threadIdx.x == 0) {
    init(barriers, 1);
    for (int s = 0; s < kStages; ++s) {
      for (uint32_t kind : {0u, kV}) {
        init(stage(s) + kind + kFull, 1);
        init(stage(s) + kind + kEmpty, kConsumers);
      }
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  if (group == 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (thread != 0) return;
    expect(barriers, kConsumers * kTileBytes);
    for (int g = 0; g < kConsumers; ++g)
      load(base + kSharedQ + g * kTileBytes, x.q, 0, (blockIdx.x * kConsumers + g) * 64, barriers);
    for (int tile = 0; tile < x.tiles; ++tile) {
      const uint32_t at = tile % kStages * kTileBytes, parity = tile / kStages % 2 ^ 1;
      wait(stage(tile) + kEmpty, parity);
      expect(stage(tile) + kFull, kTileBytes);
      load(base + kSharedK + at, x.k, 0, tile * 64, stage(tile) + kFull);
      wait(stage(tile) + kV + kEmpty, parity);
      expect(stage(tile) + kV + kFull, kTileBytes);
      load(base + kSharedV + at, x.v, 0, tile * 64, stage(tile) + kV + kFull);
    }
    return;
  }
  asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
  const int mine = group - 1;
  const uint32_t q = base + kSharedQ + mine * kTileBytes, o = base + kSharedO + mine * kTileBytes;
  float sum[32];
  for (float &element : sum) element = 0;
  if (mine == 1) asm volatile("bar.arrive 1, 256;" ::: "memory");
  wait(barriers, 0);
  for (int tile = 0; tile < x.tiles; ++tile) {
    const uint32_t at = tile % kStages * kTileBytes, parity = tile / kStages % 2;
    float c[32];
    wait(stage(tile) + kFull, parity);
    asm volatile("bar.sync %0, 256;" ::"r"(1 + mine) : "memory");
    begin();
    for (int step = 0; step < 4; ++step)
      multiply(c, descriptor(q + 32 * step), descriptor(base + kSharedK + at + 32 * step), step);
    commit();
    asm volatile("bar.arrive %0, 256;" ::"r"(2 - mine) : "memory");
    finish(c);
    if (thread == 0) arrive(stage(tile) + kEmpty);
    uint32_t a[4][4];
    for (int step = 0; step < 4; ++step)
      for (int k = 0; k < 4; ++k) a[step][k] = pair(c[8 * step + 2 * k], c[8 * step + 2 * k + 1]);
    wait(stage(tile) + kV + kFull, parity);
    begin();
    for (int step = 0; step < 4; ++step) multiply(sum, a[step], descriptor(base + kSharedV + at + 2048 * step));
    commit();
    finish(sum);
    if (thread == 0) arrive(stage(tile) + kV + kEmpty);
  }
  // Rows 16 w to 16 w + 15 of this warp, 16 columns at a time: lane l has the address of row l % 16, column 8 (l / 16).
  const int lane = thread % 32, row = thread / 32 * 16 + lane % 16;
  for (int j = 0; j < 4; ++j) {
    const uint32_t chunk = 2 * j + lane / 16, to = o + row * 128 + (chunk ^ row % 8) * 16;
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to),
                 "r"(pair(sum[8 * j], sum[8 * j + 1])), "r"(pair(sum[8 * j + 2], sum[8 * j + 3])),
                 "r"(pair(sum[8 * j + 4], sum[8 * j + 5])), "r"(pair(sum[8 * j + 6], sum[8 * j + 7]))
                 : "memory");
  }
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  asm volatile("bar.sync %0, 128;" ::"r"(3 + mine) : "memory");
  if (thread == 0) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&x.o), "r"(0),
                 "r"((blockIdx.x * kConsumers + mine) * 64), "r"(o)
                 : "memory");
    asm volatile("cp.async.bulk.commit_group;\ncp.async.bulk.wait_group.read 0;" ::: "memory");
  }
}
