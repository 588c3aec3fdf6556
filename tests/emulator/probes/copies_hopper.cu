// Tensor copies (TMA): swizzles, boxes that stick out of the tensor, fill, element strides, stores and sums.
//
// Half-word i of the tensor's memory holds i + 1, so every value tells where it came from. A load writes `box` to shared
// memory that held 0xffffffff, at a chosen offset; what comes out is that memory from offset 0 to 16 bytes behind the box.
// A store writes shared half-words 0x8001, 0x8002 ... to the tensor, whose memory comes out.
#include <cuda.h>
#include <cuda_runtime.h>

#include <stdexcept>

#include "probes.h"

namespace probes {

namespace {

constexpr size_t kSharedBytes = 12 * 1024;
enum Direction : uint32_t { kLoad, kStore, kAdd };

struct Copy {
  const char *name;
  Direction direction;
  CUtensorMapDataType type;
  uint32_t rank, dims[3], strides[2], box[3], steps[3];  // strides in bytes
  CUtensorMapSwizzle swizzle;
  bool fill_nan;
  int32_t first[3];  // coordinates of the box
  uint32_t offset;   // in shared memory, bytes
};
constexpr size_t kMemoryHalves = 4096, kStoredHalves = 1024;

size_t bytes_of(CUtensorMapDataType type) {
  switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT8:
      return 1;
    case CU_TENSOR_MAP_DATA_TYPE_UINT32:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT32:
      return 4;
    default:
      return 2;
  }
}

__global__ void copy(const __grid_constant__ CUtensorMap map, uint32_t direction, uint32_t rank, int c0, int c1, int c2,
                     uint32_t offset, uint32_t bytes, uint32_t *out) {
  __shared__ __align__(1024) uint32_t tile[kSharedBytes / 4];
  __shared__ uint64_t barrier;
  for (uint32_t i = threadIdx.x; i < kSharedBytes / 4; i += 32) {
    tile[i] = direction == kLoad ? 0xffffffffu : (0x80018001u + 2 * i * 0x10001u + 0x10000u);
  }
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(tile)) + offset;
  const uint32_t bar = static_cast<uint32_t>(__cvta_generic_to_shared(&barrier));
  if (threadIdx.x == 0) asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(bar) : "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncwarp();
  if (threadIdx.x != 0) return;
  if (direction == kLoad) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
#define LOAD(dimensions, coordinates)                                                               \
  asm volatile("cp.async.bulk.tensor." dimensions                                                   \
               ".shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {" coordinates \
               "}], [%2];" ::"r"(at),                                                               \
               "l"(&map), "r"(bar), "r"(c0), "r"(c1), "r"(c2)                                       \
               : "memory")
    if (rank == 1) LOAD("1d", "%3");
    if (rank == 2) LOAD("2d", "%3, %4");
    if (rank == 3) LOAD("3d", "%3, %4, %5");
    asm volatile(
        "{ .reg .pred p;\nwait: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], 0;\n@!p bra wait; }" ::"r"(bar)
        : "memory");
    for (uint32_t i = 0; i < (offset + bytes) / 4 + 4; ++i) out[i] = tile[i];
    return;
  }
  if (direction == kStore) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),
                 "r"(at), "r"(c0), "r"(c1)
                 : "memory");
  } else {
    asm volatile(
        "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),
        "r"(at), "r"(c0), "r"(c1)
        : "memory");
  }
  asm volatile("cp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;" ::: "memory");
}

// The driver's encoder, without linking the driver.
CUresult encode(CUtensorMap *map, const Copy &c, void *memory) {
  void *found = nullptr;
  cudaDriverEntryPointQueryResult status;
  expect(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &status),
         "cuTensorMapEncodeTiled");
  const auto encoder = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
  const cuuint64_t dims[] = {c.dims[0], c.dims[1], c.dims[2]}, strides[] = {c.strides[0], c.strides[1]};
  return encoder(map, c.type, c.rank, memory, dims, strides, c.box, c.steps, CU_TENSOR_MAP_INTERLEAVE_NONE, c.swizzle,
                 CU_TENSOR_MAP_L2_PROMOTION_NONE,
                 c.fill_nan ? CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA : CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

// A description as the words of a recording, in the order of Copy; `type` and `swizzle` as the driver's enumerations.
Columns columns_of(const Copy &c) {
  std::vector<uint32_t> words = {c.direction, static_cast<uint32_t>(c.type), c.rank};
  words.insert(words.end(), c.dims, c.dims + 3);
  words.insert(words.end(), c.strides, c.strides + 2);
  words.insert(words.end(), c.box, c.box + 3);
  words.insert(words.end(), c.steps, c.steps + 3);
  words.push_back(static_cast<uint32_t>(c.swizzle));
  words.push_back(c.fill_nan);
  words.insert(words.end(), c.first, c.first + 3);
  words.push_back(c.offset);
  return {{"map", 'x', words}};
}
Copy copy_of(const Columns &columns) {
  size_t at = 0;
  const auto next = [&] { return columns.at(0).words.at(at++); };
  Copy c{};
  c.direction = static_cast<Direction>(next());
  c.type = static_cast<CUtensorMapDataType>(next());
  c.rank = next();
  for (uint32_t &x : c.dims) x = next();
  for (uint32_t &x : c.strides) x = next();
  for (uint32_t &x : c.box) x = next();
  for (uint32_t &x : c.steps) x = next();
  c.swizzle = static_cast<CUtensorMapSwizzle>(next());
  c.fill_nan = next() != 0;
  for (int32_t &x : c.first) x = static_cast<int32_t>(next());
  c.offset = next();
  return c;
}

Columns run(const Copy &c) {
  std::vector<uint32_t> memory((c.direction == kLoad ? kMemoryHalves : kStoredHalves) / 2);
  for (uint32_t i = 0; i < memory.size(); ++i) memory[i] = (2 * i + 1) | (2 * i + 2) << 16;
  const Words tensor(memory), out(kSharedBytes / 4);
  CUtensorMap map;
  if (encode(&map, c, tensor.data()) != CUDA_SUCCESS)
    throw std::runtime_error("cuTensorMapEncodeTiled refuses this map");
  size_t bytes = bytes_of(c.type);
  for (uint32_t k = 0; k < c.rank; ++k) bytes *= (c.box[k] + c.steps[k] - 1) / c.steps[k];
  copy<<<1, 32>>>(map, c.direction, c.rank, c.first[0], c.first[1], c.first[2], c.offset, static_cast<uint32_t>(bytes),
                  out.data());
  expect(cudaGetLastError(), "launch");
  if (c.direction != kLoad) return {{"tensor", 'x', tensor.host()}};
  std::vector<uint32_t> words = out.host();
  words.resize((c.offset + bytes) / 4 + 4);
  return {{"tile", 'x', words}};
}

// Rank, dims, strides: rows of 40 16-bit elements, 96 bytes apart. SMALL, for stores: box and steps too.
#define PLANE 2, {40, 30, 1}, {96, 0}
#define EVERY {1, 1, 1}
#define SMALL 2, {20, 18, 1}, {48, 0}, {16, 8, 1}, EVERY
constexpr auto kF16 = CU_TENSOR_MAP_DATA_TYPE_FLOAT16, kF32 = CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
               kU8 = CU_TENSOR_MAP_DATA_TYPE_UINT8, kU16 = CU_TENSOR_MAP_DATA_TYPE_UINT16,
               kU32 = CU_TENSOR_MAP_DATA_TYPE_UINT32;
constexpr auto kNone = CU_TENSOR_MAP_SWIZZLE_NONE, k32 = CU_TENSOR_MAP_SWIZZLE_32B, k64 = CU_TENSOR_MAP_SWIZZLE_64B,
               k128 = CU_TENSOR_MAP_SWIZZLE_128B;
const Copy kCopies[] = {
    {"tma_none", kLoad, kF16, PLANE, {24, 6, 1}, EVERY, kNone, false, {8, 3, 0}, 0},
    {"tma_swizzle_32", kLoad, kF16, PLANE, {16, 16, 1}, EVERY, k32, false, {0, 0, 0}, 0},
    {"tma_swizzle_64", kLoad, kF16, PLANE, {32, 12, 1}, EVERY, k64, false, {8, 2, 0}, 0},
    {"tma_swizzle_128", kLoad, kF16, 2, {64, 24, 1}, {128, 0}, {64, 12, 1}, EVERY, k128, false, {0, 0, 0}, 0},
    {"tma_swizzle_128_narrow_box", kLoad, kF16, PLANE, {32, 8, 1}, EVERY, k128, false, {0, 0, 0}, 0},
    {"tma_swizzle_128_at_256", kLoad, kF16, 2, {64, 24, 1}, {128, 0}, {64, 8, 1}, EVERY, k128, false, {0, 0, 0}, 256},
    {"tma_swizzle_64_at_128", kLoad, kF16, PLANE, {32, 8, 1}, EVERY, k64, false, {0, 0, 0}, 128},
    {"tma_beyond_the_end", kLoad, kF16, PLANE, {32, 8, 1}, EVERY, k64, false, {24, 26, 0}, 0},
    {"tma_before_the_start", kLoad, kF16, PLANE, {32, 8, 1}, EVERY, k64, false, {-5, -3, 0}, 0},
    {"tma_all_outside", kLoad, kF16, PLANE, {16, 4, 1}, EVERY, kNone, false, {48, 40, 0}, 0},
    {"tma_fill_nan_f16", kLoad, kF16, PLANE, {16, 4, 1}, EVERY, kNone, true, {32, 28, 0}, 0},
    {"tma_fill_nan_f32", kLoad, kF32, 2, {20, 30, 1}, {96, 0}, {8, 4, 1}, EVERY, kNone, true, {16, 28, 0}, 0},
    {"tma_f32_swizzle_128", kLoad, kF32, 2, {32, 16, 1}, {128, 0}, {32, 9, 1}, EVERY, k128, false, {1, 0, 0}, 0},
    {"tma_u8", kLoad, kU8, 2, {80, 30, 1}, {96, 0}, {48, 5, 1}, EVERY, kNone, false, {3, 1, 0}, 0},
    {"tma_1d", kLoad, kU16, 1, {100, 1, 1}, {0, 0}, {64, 1, 1}, EVERY, kNone, false, {60, 0, 0}, 0},
    {"tma_3d", kLoad, kF16, 3, {24, 10, 5}, {64, 640}, {16, 4, 2}, EVERY, k32, false, {8, 8, 3}, 0},
    {"tma_3d_one_head", kLoad, kF16, 3, {64, 10, 3}, {384, 128}, {64, 4, 1}, EVERY, k128, false, {0, 7, 1}, 0},
    {"tma_element_strides", kLoad, kF16, PLANE, {24, 12, 1}, {1, 3, 1}, kNone, false, {0, 1, 0}, 0},
    {"tma_store", kStore, kF16, SMALL, kNone, false, {2, 3, 0}, 0},
    {"tma_store_swizzle_32_beyond", kStore, kF16, SMALL, k32, false, {8, 13, 0}, 0},
    {"tma_store_before_the_start", kStore, kF16, SMALL, kNone, false, {-3, -2, 0}, 0},
    {"tma_add", kAdd, kU32, 2, {10, 18, 1}, {48, 0}, {8, 8, 1}, EVERY, kNone, false, {4, 13, 0}, 0},
};

}  // namespace

std::vector<Probe> hopper_copy_probes() {
  std::vector<Probe> all;
  for (const Copy &c : kCopies) {
    const char *const text = c.direction == kLoad    ? "cp.async.bulk.tensor, global to shared"
                             : c.direction == kStore ? "cp.async.bulk.tensor, shared to global"
                                                     : "cp.reduce.async.bulk.tensor.add, shared to global";
    all.push_back({c.name, text, "exact", [&c] { return columns_of(c); },
                   [](const Columns &inputs) { return run(copy_of(inputs)); }});
  }
  return all;
}

}  // namespace probes
