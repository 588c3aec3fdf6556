// wgmma, 8-bit floats and stmatrix against models of the PTX ISA's text, and the order of wgmma, registers and memory: each
// report with the kernel that earns it and its twin that doesn't.
#include <algorithm>
#include <cmath>
#include <optional>
#include <stdexcept>

#include "program.h"
#include "tensor_map.h"
#include "testing_hopper.h"

using namespace emulator;

namespace testing {

namespace {

// ---- wgmma

struct Multiply {
  int n;
  MatrixShape::Element a, b;
  Swizzle swizzle_a, swizzle_b;
  bool a_in_registers = false, transposed_a = false, transposed_b = false, f16_result = false, accumulate = true;
  int sign_a = 1, sign_b = 1;
};

const char *name_of(MatrixShape::Element e) {
  constexpr const char *kNames[] = {"f16", "bf16", "tf32", "e4m3", "e5m2"};
  return kNames[e];
}
int bytes_of(MatrixShape::Element e) { return e == MatrixShape::kTf32 ? 4 : e >= MatrixShape::kE4m3 ? 1 : 2; }

// Small integers and halves, which every type holds exactly, with their bits.
double number(uint32_t k) { return (static_cast<double>(k * 2654435761u >> 28) - 8) / 2; }
uint32_t bits_of(MatrixShape::Element e, double x) {
  switch (e) {
    case MatrixShape::kF16:
      return to_f16(x);
    case MatrixShape::kBf16:
      return to_bf16(x);
    case MatrixShape::kTf32:
      return bits_as<uint32_t>(static_cast<float>(x)) | 0x1fff;  // bits that don't count
    case MatrixShape::kE5m2:
      return static_cast<uint32_t>(to_f16(x)) >> 8;
    default: {
      if (x == 0) return 0;
      const int exponent = std::ilogb(x);
      return (x < 0 ? 0x80u : 0) | static_cast<uint32_t>(exponent + 7) << 3 |
             static_cast<uint32_t>(std::scalbn(std::fabs(x), 3 - exponent) - 8);
    }
  }
}

// Where a tile's bytes are, and how its descriptor says so. Rows are along m or n; the ISA: K-major without swizzle: core
// matrices of 8 rows of 16 bytes; with one: rows as wide as the swizzle. Transposed: the same with k and mn exchanged.
struct Layout {
  uint32_t lbo, sbo;
  uint64_t descriptor(uint32_t start, Swizzle swizzle) const {
    constexpr uint64_t kModes[] = {0, 3, 2, 1};
    return start >> 4 | uint64_t{lbo >> 4} << 16 | uint64_t{sbo >> 4} << 32 | kModes[static_cast<int>(swizzle)] << 62;
  }
};
Layout layout_of(Swizzle swizzle, bool transposed, int rows) {
  const auto width = swizzle_bytes(swizzle), count = static_cast<uint32_t>(rows);
  if (swizzle == Swizzle::kNone) {
    // Core matrices in a row along k, then along mn; with a gap of 16 bytes, so that nothing is right by chance.
    return transposed ? Layout{count / 8 * 144 + 16, 144} : Layout{144, 2 * 144 + 16};
  }
  // Panels as wide as the swizzle and, along mn, of all k; K-major: rows below each other.
  return transposed ? Layout{16 * width, 8 * width} : Layout{16, 8 * width};
}
uint32_t place(Swizzle swizzle, bool transposed, const Layout &l, uint32_t mn, uint32_t k_byte, uint32_t k) {
  const uint32_t width = swizzle_bytes(swizzle);
  uint32_t at;
  if (swizzle == Swizzle::kNone) {
    at = transposed ? mn / 8 * l.sbo + k / 8 * l.lbo + k % 8 * 16 + mn % 8 * 2
                    : mn / 8 * l.sbo + mn % 8 * 16 + k_byte / 16 * l.lbo + k_byte % 16;
    return at;
  }
  const uint32_t column = transposed ? mn * 2 : k_byte;  // along the contiguous way
  const uint32_t line = transposed ? k : mn;
  at = column / width * (transposed ? l.lbo : 0) + line * width + column % width;
  const uint32_t row = at / 128, mask = width / 16 - 1;
  return at ^ (row & mask) << 4;
}

void product(const Multiply &x, Copies copies) {
  const int element = bytes_of(x.a), depth = 32 / element;
  const auto n = static_cast<uint32_t>(x.n);
  constexpr uint32_t kB = 16384, kBytes = 49152;
  Memory memory;
  auto *tiles = static_cast<uint8_t *>(memory.allocate(kBytes, "tiles"));
  const auto fill = [&](uint32_t start, Swizzle swizzle, bool transposed, uint32_t rows, MatrixShape::Element type,
                        uint32_t seed) {
    const Layout l = layout_of(swizzle, transposed, static_cast<int>(rows));
    for (uint32_t mn = 0; mn < rows; ++mn) {
      for (uint32_t k = 0; k < static_cast<uint32_t>(depth); ++k) {
        const uint32_t bits = bits_of(type, number(seed + mn * 64 + k));
        const uint32_t at = start + place(swizzle, transposed, l, mn, k * static_cast<uint32_t>(element), k);
        if (at + static_cast<uint32_t>(element) > kBytes) throw std::logic_error("a tile that is too large");
        std::memcpy(tiles + at, &bits, static_cast<size_t>(element));
      }
    }
    return l;
  };
  constexpr uint32_t kSeedA = 1, kSeedB = 100000;
  const Layout la = fill(0, x.swizzle_a, x.transposed_a, 64, x.a, kSeedA);
  const Layout lb = fill(kB, x.swizzle_b, x.transposed_b, n, x.b, kSeedB);
  constexpr uint32_t kStart = 1024;  // of shared memory
  const uint64_t a = la.descriptor(kStart, x.swizzle_a), b = lb.descriptor(kStart + kB, x.swizzle_b);

  // Registers start at 1, and go out one by one.
  const uint32_t count = n / (x.f16_result ? 4 : 2);
  auto *out = static_cast<uint32_t *>(memory.allocate(count * 128 * 4, "out"));
  std::string list, ones, stores;
  for (uint32_t r = 0; r < count; ++r) {
    const std::string reg = "%c" + std::to_string(r);
    list += (r ? ", " : "") + reg;
    ones += "mov.b32 " + reg + (x.f16_result ? ", 0x3c003c00; " : ", 0f3f800000; ");
    stores += "st.global.b32 [%d3+" + std::to_string(r * 512) + "], " + reg + ";\n";
  }
  // A in registers: register r has row 16 w + g + 8 (r % 2), bytes 16 (r / 2) + 4 t of it. Kept row by row in the first 2 KiB.
  std::string inputs = std::to_string(a);
  std::string get;
  if (x.a_in_registers) {
    std::vector<uint8_t> rows(64 * 32);
    for (uint32_t m = 0; m < 64; ++m) {
      for (uint32_t k = 0; k < static_cast<uint32_t>(depth); ++k) {
        const uint32_t bits = bits_of(x.a, number(kSeedA + m * 64 + k));
        std::memcpy(&rows[m * 32 + k * static_cast<uint32_t>(element)], &bits, static_cast<size_t>(element));
      }
    }
    std::memcpy(tiles, rows.data(), rows.size());
    inputs = "{%a0, %a1, %a2, %a3}";
    get =
        "shr.u32 %r1, %tid, 5; shl.b32 %r1, %r1, 9; shr.u32 %r2, %tid, 2; and.b32 %r2, %r2, 7; shl.b32 %r2, %r2, 5; "
        "add.u32 %r1, %r1, %r2; and.b32 %r2, %tid, 3; shl.b32 %r2, %r2, 2; add.u32 %r1, %r1, %r2; cvt.u64.u32 %d4, "
        "%r1; "
        "add.s64 %d4, %d1, %d4; ld.global.b32 %a0, [%d4]; ld.global.b32 %a1, [%d4+256]; ld.global.b32 %a2, [%d4+16]; "
        "ld.global.b32 %a3, [%d4+272];\n";
  }
  std::string flags = ", " + std::to_string(x.sign_a) + ", " + std::to_string(x.sign_b);
  if (element == 2 && !x.a_in_registers) flags += x.transposed_a ? ", 1" : ", 0";
  if (element == 2) flags += x.transposed_b ? ", 1" : ", 0";
  const std::string shape = "m64n" + std::to_string(n) + "k" + std::to_string(depth);
  const std::string text = module_text(
      ".param .u64 tiles, .param .u64 out",
      ".reg .pred %p<8>; .reg .b32 %r<8>, %c<" + std::to_string(count) +
          ">, %a<4>, %tid; .reg .b64 %d<8>; .shared .align 1024 "
          ".b8 s[49152];\nmov.u32 %tid, %tid.x; ld.param.u64 %d1, [tiles]; ld.param.u64 %d2, [out]; mov.u32 %r5, s;\n"
          "mul.wide.u32 %d3, %tid, 4; add.s64 %d2, %d2, %d3; add.s64 %d4, %d1, %d3; shl.b32 %r1, %tid, 2; add.u32 %r2, "
          "%r5, %r1;\n"
          "mov.u32 %r3, 0; next: ld.global.b32 %r4, [%d4]; st.shared.b32 [%r2], %r4; add.s64 %d4, %d4, 512; add.u32 "
          "%r2, %r2, 512;\n"
          "add.u32 %r3, %r3, 1; setp.lt.u32 %p0, %r3, 96; @%p0 bra next;\nfence.proxy.async.shared::cta; bar.sync 0; "
          "mov.b64 %d3, "
          "%d2;\n" +
          get + ones + "setp.eq.u32 %p1, %tid, %tid;\nwgmma.fence.sync.aligned; wgmma.mma_async.sync.aligned." + shape +
          "." + (x.f16_result ? "f16." : "f32.") + name_of(x.a) + "." + name_of(x.b) + " {" + list + "}, " + inputs +
          ", " + std::to_string(b) + ", " + (x.accumulate ? "%p1" : "!%p1") + flags +
          ";\nwgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;\n" + stores + "ret;");
  Options options;
  options.collect = true;
  options.uninitialised = true;
  options.copies = copies;
  const void *params[] = {&tiles, &out};
  const Stats stats = launch(load_module(text), memory, "k", {}, {128}, 0, params, options);
  for (const Report &report : stats.reports) std::printf("%s\n", report.text().substr(0, 500).c_str());
  CHECK(stats.reports.empty());
  CHECK(stats.wgmma == 4 && stats.matrix_flops == 2u * 64 * n * static_cast<uint32_t>(depth));
  bool right = true;
  for (uint32_t row = 0; row < 64; ++row) {
    for (uint32_t column = 0; column < n; ++column) {
      double sum = x.accumulate ? 1 : 0;
      for (uint32_t k = 0; k < static_cast<uint32_t>(depth); ++k) {
        sum += x.sign_a * x.sign_b * number(kSeedA + row * 64 + k) * number(kSeedB + column * 64 + k);
      }
      const uint32_t thread = row / 16 * 32 + row % 8 * 4 + column % 8 / 2, half = row % 16 / 8;
      double got;
      if (x.f16_result) {
        const uint32_t word = out[(column / 8 * 2 + half) * 128 + thread];
        got = static_cast<double>(f16_float(static_cast<uint16_t>(word >> 16 * (column % 2))));
      } else {
        got = static_cast<double>(bits_as<float>(out[(column / 8 * 4 + half * 2 + column % 2) * 128 + thread]));
      }
      right = right && got == sum;  // small enough to be exact
    }
  }
  CHECK(right);
}

void products() {
  constexpr auto kF16 = MatrixShape::kF16, kBf16 = MatrixShape::kBf16, kTf32 = MatrixShape::kTf32,
                 kE4m3 = MatrixShape::kE4m3, kE5m2 = MatrixShape::kE5m2;
  constexpr auto kNone = Swizzle::kNone, k32 = Swizzle::k32, k64 = Swizzle::k64, k128 = Swizzle::k128;
  for (const Copies copies : {Copies::kLate, Copies::kEager}) {
    for (const Swizzle swizzle : {kNone, k32, k64, k128}) {
      for (const bool a : {false, true})
        for (const bool b : {false, true}) product({64, kF16, kF16, swizzle, swizzle, false, a, b}, copies);
      product({24, kBf16, kBf16, k128, swizzle, true}, copies);
      product({128, kF16, kF16, swizzle, k64, false, true, false}, copies);
      product({256, kE4m3, kE5m2, k128, swizzle == k32 ? k64 : swizzle}, copies);
    }
    product({8, kF16, kF16, k128, kNone}, copies);
    product({192, kBf16, kBf16, k128, k128, true, false, true}, copies);
    product({256, kBf16, kBf16, k128, k128, false, false, true}, copies);
    product({64, kF16, kF16, k128, k128, false, false, false, true}, copies);
    product({64, kF16, kF16, k128, k128, false, false, false, false, false}, copies);
    product({64, kF16, kF16, k128, k128, false, false, false, false, true, -1, 1}, copies);
    product({64, kF16, kF16, k128, k128, false, false, false, false, true, -1, -1}, copies);
    product({64, kE5m2, kE4m3, k32, k128, true}, copies);
    product({40, kTf32, kTf32, k128, k128}, copies);
    product({40, kTf32, kTf32, k64, kNone, true}, copies);
  }
}

// ---- 8-bit floats

// The number that 8 bits stand for, from the formats' tables.
double number_of(bool e4m3, uint32_t bits) {
  const int fraction_bits = e4m3 ? 3 : 2, bias = e4m3 ? 7 : 15;
  const uint32_t exponent = (bits & 0x7f) >> fraction_bits, fraction = bits & ((1u << fraction_bits) - 1);
  if (e4m3 ? (bits & 0x7f) == 0x7f : exponent == 31 && fraction != 0) return NAN;
  if (!e4m3 && exponent == 31) return bits & 0x80 ? -INFINITY : INFINITY;
  const double x =
      exponent == 0 ? std::ldexp(fraction, 1 - bias - fraction_bits)
                    : std::ldexp((1u << fraction_bits) + fraction, static_cast<int>(exponent) - bias - fraction_bits);
  return bits & 0x80 ? -x : x;
}

// The nearest of all finite numbers, ties to the even one.
uint32_t nearest(bool e4m3, double x) {
  if (std::isnan(x)) return 0x7f;
  uint32_t best = 0;
  double least = INFINITY;
  for (uint32_t bits = 0; bits < 0x7f; ++bits) {
    const double y = number_of(e4m3, bits);
    if (!std::isfinite(y)) break;
    const double off = std::fabs(y - std::fmin(std::fabs(x), 1e6));
    if (off < least || (off == least && bits % 2 == 0)) best = bits, least = off;
  }
  return best | (std::signbit(x) ? 0x80 : 0);
}

void small_floats() {
  const auto x = floats<float>(
      {0, -0.0f, 1, -1.0625f, 448, 464, 465, 1e9f, -INFINITY, NAN, 0.015625f, 0.0009765625f, 57344, 61440, 3e-8f});
  const auto y = values<float>({1e-3f, 2.1e-3f, 0.0146f, 17, 18, 19});
  const auto h = values<uint32_t>({0x3c00bc00, 0x7c00fc00, 0x7bff0001});
  for (const bool e4m3 : {true, false}) {
    const std::string name = e4m3 ? "e4m3x2" : "e5m2x2";
    const auto both = [&](double a, double b) { return nearest(e4m3, a) << 8 | nearest(e4m3, b); };
    CHECK_LANES(
        uint16_t, "cvt.rn.satfinite." + name + ".f32 %r, %a0, %a1;",
        [&](float a, float b) { return both(static_cast<double>(a), static_cast<double>(b)); }, x, y);
    CHECK_LANES(
        uint16_t, "cvt.rn.satfinite.relu." + name + ".f32 %r, %a0, %a1;",
        [&](float a, float b) {
          return both(a < 0 ? 0.0 : std::fabs(static_cast<double>(a)), b < 0 ? 0.0 : std::fabs(static_cast<double>(b)));
        },
        x, y);
    CHECK_LANES(
        uint16_t, "cvt.rn.satfinite." + name + ".f16x2 %r, %a0;",
        [&](uint32_t a) {
          return both(f16_value(static_cast<uint16_t>(a >> 16)), f16_value(static_cast<uint16_t>(a)));
        },
        h);
    for (uint32_t first = 0; first < 256; first += 64) {
      std::vector<uint16_t> all;
      for (uint32_t k = 0; k < 32; ++k)
        all.push_back(static_cast<uint16_t>((first + 2 * k + 1) << 8 | (first + 2 * k)));
      CHECK_LANES(
          uint32_t, "cvt.rn.f16x2." + name + " %r, %a0;",
          [&](uint16_t a) {
            const auto half = [&](uint32_t bits) { return static_cast<uint32_t>(to_f16(number_of(e4m3, bits))); };
            return half(a >> 8) << 16 | half(a & 255u);
          },
          all);
    }
  }
}

// ---- The order of wgmma, registers and shared memory

const std::string
    kMatrix = "{%f0, %f1, %f2, %f3}",
    // N-major and K-major tiles of 8 columns, A of 64 rows: 128-byte swizzle, 8 KiB at s and 1 KiB at s + 8192.
    kDescriptors =
        "and.b32 %r5, %r20, 0x3ffff; shr.u32 %r5, %r5, 4; cvt.u64.u32 %d2, %r5; mov.b64 %d3, "
        "0x4000004000010000; or.b64 %d2, %d2, %d3; add.u64 %d3, %d2, 512;\n",
    kClear = "mov.f32 %f0, 0f00000000; mov.f32 %f1, %f0; mov.f32 %f2, %f0; mov.f32 %f3, %f0;\n",
    // 128 threads write 16 KiB.
    kTiles =
        "shl.b32 %r6, %tid, 4; add.u32 %r6, %r20, %r6; mov.u32 %r7, 0; fill: st.shared.v4.u32 [%r6], {%r7, "
        "%r7, %r7, %r7}; add.u32 %r6, %r6, 2048; add.u32 %r7, %r7, 1; setp.lt.u32 %p0, %r7, 8; @%p0 bra "
        "fill;\n",
    kBegin = "wgmma.fence.sync.aligned;\n", kEnd = "wgmma.commit_group.sync.aligned;\n",
    kWaitAll = "wgmma.wait_group.sync.aligned 0;\n", kWaitButOne = "wgmma.wait_group.sync.aligned 1;\n",
    kMultiply = "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 " + kMatrix + ", %d2, %d3, 1, 1, 1, 0, 0;\n",
    kFromRegisters = "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 " + kMatrix +
                     ", {%r10, %r11, %r12, %r13}, %d3, 1, 1, 1, 0;\n";

void matrix_order() {
  const std::string ready = kDescriptors + kClear + kTiles + kFenceAsync + kMeet;
  const auto is = [&](const std::string &body, std::optional<Kind> kind) { return reports(body, kind, 128); };
  CHECK(is(ready + kBegin + kMultiply + kEnd + kWaitAll + put("%f0"), std::nullopt));
  // Registers: touched in flight, touched without a fence.
  CHECK(is(ready + kBegin + kMultiply + kEnd + put("%f0") + kWaitAll, Kind::kInFlight));
  CHECK(is(ready + kBegin + kMultiply + kEnd + kWaitButOne + put("%f0") + kWaitAll, Kind::kInFlight));
  CHECK(is(ready + kBegin + kMultiply + kWaitAll + put("%f0") + kEnd + kWaitAll, Kind::kInFlight));
  CHECK(is(ready + kBegin + kMultiply + kEnd + "mov.f32 %f3, 0f00000000;" + kWaitAll, Kind::kInFlight));
  CHECK(is(ready + kBegin + kMultiply + kEnd + "mov.f32 %f4, 0f00000000;" + kWaitAll, std::nullopt));
  CHECK(is(ready + kBegin + kMultiply + kEnd, Kind::kInFlight));  // and the warp ends
  CHECK(is(ready + kMultiply + kEnd + kWaitAll, Kind::kFence));
  CHECK(is(ready + kBegin + "add.f32 %f2, %f2, %f2;" + kMultiply + kEnd + kWaitAll, Kind::kFence));
  CHECK(is(ready + kBegin + kClear + kMultiply + kEnd + kWaitAll, std::nullopt));  // a compiler's copies
  CHECK(is(ready + kBegin + kMultiply + kMultiply + kEnd + kMultiply + kEnd + kWaitAll, std::nullopt));
  CHECK(is(ready + kBegin + kMultiply + kEnd + kWaitAll + put("%f1") + kBegin + kMultiply + kEnd + kWaitAll,
           std::nullopt));
  CHECK(is(ready + kBegin + kMultiply + kEnd + kWaitAll + put("%f1") + kMultiply + kEnd + kWaitAll, Kind::kFence));
  const std::string set_a = "mov.b32 %r10, 0; mov.b32 %r11, 0; mov.b32 %r12, 0; mov.b32 %r13, 0;";
  CHECK(is(ready + set_a + kBegin + kFromRegisters + kEnd + put("%r10") + kWaitAll, std::nullopt));  // A may be read
  CHECK(is(ready + set_a + kBegin + kFromRegisters + kEnd + set_a + kWaitAll, Kind::kInFlight));
  CHECK(is(ready + kBegin + "cvt.rn.f16x2.f32 %r10, %f5, %f6;" + kFromRegisters + kEnd + kWaitAll, Kind::kFence));
  CHECK(is(ready + kBegin + kMultiply +
               "wgmma.mma_async.sync.aligned.m64n8k16.f16.f16.f16 {%f0, %f1}, %d2, %d3, 1, 1, 1, 0, 0;\n" + kEnd +
               kWaitAll,
           Kind::kInFlight));
  // Shared memory that threads wrote: fence, order.
  const std::string go = kBegin + kMultiply + kEnd + kWaitAll;
  CHECK(is(kDescriptors + kClear + kTiles + kMeet + go, Kind::kFence));
  CHECK(is(kDescriptors + kClear + kTiles + kMeet + "@%p7 " + kFenceAsync + go,
           Kind::kFence));  // not of those that wrote
  CHECK(
      is(kDescriptors + kClear + kTiles + kFenceAsync + go, std::nullopt));  // it starts when all four warps have come
  CHECK(reports(kDescriptors + kClear + "setp.lt.u32 %p1, %tid, 128; @!%p1 bra more;" + kTiles + kFenceAsync + go +
                    "exit; more: st.shared.u32 [%r20], 1;" + kFenceAsync,
                Kind::kRace, 256));
  CHECK(is(kDescriptors + kClear + go, Kind::kUninitialised));
  CHECK(is(ready + go + kMeet + kTiles, std::nullopt));
  CHECK(is(ready + go + kTiles, std::nullopt));  // waiting speaks for the four warps
  CHECK(is(ready + kBegin + kMultiply + kEnd + kMeet + "@%p7 st.shared.u32 [%r20], 1;" + kWaitAll, Kind::kRace));
  // One operation of four warps.
  CHECK(is(ready + "setp.lt.u32 %p1, %tid, 96; @!%p1 bra over;" + go + "over: bar.sync 0;", Kind::kDeadlock));
  CHECK(reports(ready + go, Kind::kBarrier, 96));
  CHECK(is(ready + "shr.u32 %r8, %tid, 5; cvt.u64.u32 %d5, %r8; shl.b64 %d5, %d5, 6; add.u64 %d3, %d3, %d5;" + go,
           Kind::kBarrier));
  CHECK(is(ready + "add.u64 %d3, %d3, 16;" + go, Kind::kMisaligned));
  CHECK(is(ready + "add.u64 %d3, %d3, 2;" + go, std::nullopt));  // the next step along k
  CHECK(is(ready + "add.u64 %d3, %d3, 511;" + go, Kind::kOutOfBounds));
}

// ---- stmatrix

void matrix_stores() {
  for (const int count : {1, 2, 4}) {
    for (const std::string trans : {"", ".trans"}) {
      std::string from, to;
      for (int k = 0; k < count; ++k) {
        from += (k ? ", %r" : "%r") + std::to_string(10 + k);
        to += (k ? ", %r" : "%r") + std::to_string(14 + k);
      }
      const std::string form = ".sync.aligned.m8n8.x" + std::to_string(count) + trans + ".shared.b16 ";
      std::string body = "shl.b32 %r3, %lane, 4; add.u32 %r3, %r20, %r3; mov.u32 %r9, 0;";
      for (int k = 0; k < count; ++k)
        body += "mad.lo.u32 %r" + std::to_string(10 + k) + ", %lane, 40503, " + std::to_string(977 * k + 5) + ";";
      body += "stmatrix" + form + "[%r3], {" + from + "}; bar.warp.sync -1; ldmatrix" + form + "{" + to + "}, [%r3];";
      for (int k = 0; k < count; ++k) {
        const std::string a = "%r" + std::to_string(10 + k), b = "%r" + std::to_string(14 + k);
        body += "xor.b32 " + a + ", " + a + ", " + b + "; or.b32 %r9, %r9, " + a + ";";
      }
      const Launched r = run_block(body + put("%r9"));
      CHECK(r.clean() && std::all_of(r.words.begin(), r.words.begin() + 32, [](uint32_t w) { return w == 0; }));
      CHECK(r.stats.bank_conflicts == 0);
    }
  }
  // Lane 4 g + t has row g, columns 2 t and 2 t + 1.
  const Launched r = run_block(
      "shl.b32 %r3, %lane, 4; add.u32 %r3, %r20, %r3; stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r3], "
      "{%lane}; bar.warp.sync -1; add.u32 %r3, %r20, %four; ld.shared.u32 %r4, [%r3];" +
      put("%r4"));
  for (uint32_t k = 0; k < 32; ++k) CHECK(r.words[k] == k);
}

}  // namespace

void test_wgmma() {
  products();
  small_floats();
  matrix_order();
  matrix_stores();
}

}  // namespace testing
