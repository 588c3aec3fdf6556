// Each arithmetic instruction against a scalar model written from the PTX ISA text.
#include <algorithm>
#include <cmath>
#include <limits>

#include "testing.h"

using namespace emulator;

namespace testing {

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();

const auto u32a = values<uint32_t>({0, 1, 0x7fffffff, 0x80000000, 0xffffffff, 31, 32, 33}, 1);
const auto u32b = values<uint32_t>({0, 0xffffffff, 1, 0xffffffff, 2, 5, 32, 40}, 2);
const auto u32c = values<uint32_t>({7, 7, 0, 0xffffffff}, 3);
const auto u64a = values<uint64_t>({0, 1, uint64_t{1} << 63, ~uint64_t{0}}, 4);
const auto u64b = values<uint64_t>({0, ~uint64_t{0}, ~uint64_t{0}, 2}, 5);
const auto u16a = values<uint16_t>({0, 1, 0x7fff, 0x8000, 0xffff}, 6);
const auto u16b = values<uint16_t>({0, 0xffff, 1, 0xffff, 3}, 7);
const auto f32a = floats<float>({0.0f, -0.0f, 1.0f, kInf, -kInf, kNan, 1e-40f, 3e38f, 1.5f, -1e-42f}, 8);
const auto f32b = floats<float>({-0.0f, 0.0f, kNan, -kInf, 2.0f, 1.0f, 1e-40f, 3e38f, -2.5f, 1.0f}, 9);
const auto f32c = floats<float>({1.0f, 0.0f, 2.0f, kInf, 1.0f, 1.0f, 1e-38f, -kInf, 0.25f, 0.0f}, 10);
const auto f64a = floats<double>({0.0, 1e300, -1e-300, 3.0}, 11);
const auto f64b = floats<double>({1.0, 1e10, 7.0, -11.0}, 12);
const auto shifts = values<uint32_t>({0, 1, 31, 32, 33, 63, 64, 65, 255, 256}, 13);

uint32_t s(int64_t x) { return static_cast<uint32_t>(x); }
int32_t i(uint32_t x) { return static_cast<int32_t>(x); }

void integers() {
  CHECK_LANES(uint32_t, "add.s32 %r, %a0, %a1;", [](uint32_t a, uint32_t b) { return a + b; }, u32a, u32b);
  CHECK_LANES(uint32_t, "sub.u32 %r, %a0, %a1;", [](uint32_t a, uint32_t b) { return a - b; }, u32a, u32b);
  CHECK_LANES(
      uint32_t, "add.sat.s32 %r, %a0, %a1;",
      [](uint32_t a, uint32_t b) { return s(std::clamp<int64_t>(int64_t{i(a)} + i(b), INT32_MIN, INT32_MAX)); }, u32a,
      u32b);
  CHECK_LANES(
      uint16_t, "add.u16 %r, %a0, %a1;", [](uint16_t a, uint16_t b) { return static_cast<uint16_t>(a + b); }, u16a,
      u16b);
  CHECK_LANES(uint64_t, "add.u64 %r, %a0, %a1;", [](uint64_t a, uint64_t b) { return a + b; }, u64a, u64b);
  CHECK_LANES(uint32_t, "mul.lo.s32 %r, %a0, %a1;", [](uint32_t a, uint32_t b) { return a * b; }, u32a, u32b);
  CHECK_LANES(
      uint32_t, "mul.hi.s32 %r, %a0, %a1;", [](uint32_t a, uint32_t b) { return s(int64_t{i(a)} * i(b) >> 32); }, u32a,
      u32b);
  CHECK_LANES(
      uint32_t, "mul.hi.u32 %r, %a0, %a1;", [](uint32_t a, uint32_t b) { return s(uint64_t{a} * b >> 32); }, u32a,
      u32b);
  CHECK_LANES(
      uint64_t, "mul.wide.s32 %r, %a0, %a1;", [](uint32_t a, uint32_t b) { return int64_t{i(a)} * i(b); }, u32a, u32b);
  CHECK_LANES(
      uint32_t, "mul.wide.u16 %r, %a0, %a1;", [](uint16_t a, uint16_t b) { return uint32_t{a} * b; }, u16a, u16b);
  CHECK_LANES(
      uint64_t, "mul.hi.u64 %r, %a0, %a1;",
      [](uint64_t a, uint64_t b) { return static_cast<uint64_t>((static_cast<unsigned __int128>(a) * b) >> 64); }, u64a,
      u64b);
  CHECK_LANES(
      uint32_t, "mad.lo.s32 %r, %a0, %a1, %a2;", [](uint32_t a, uint32_t b, uint32_t c) { return a * b + c; }, u32a,
      u32b, u32c);
  const auto ends = values<uint32_t>({0x7fffffff, 0x80000000, 0x7fffffff, 0x80000000, 5}, 14);
  CHECK_LANES(
      uint32_t, "mad.hi.sat.s32 %r, %a0, %a1, %a2;",
      [](uint32_t a, uint32_t b, uint32_t c) {
        return s(std::clamp<int64_t>((int64_t{i(a)} * i(b) >> 32) + i(c), INT32_MIN, INT32_MAX));
      },
      ends, ends, ends);
  CHECK_LANES(
      uint64_t, "mad.wide.u32 %r, %a0, %a1, %a2;",
      [](uint32_t a, uint32_t b, uint64_t c) { return uint64_t{a} * b + c; }, u32a, u32b, u64a);
  CHECK_LANES(
      uint32_t, "div.s32 %r, %a0, %a1;",
      [](uint32_t a, uint32_t b) { return b == 0     ? ~0u
                                          : b == ~0u ? 0 - a
                                                     : s(i(a) / i(b)); }, u32a, u32b);
  CHECK_LANES(
      uint32_t, "rem.s32 %r, %a0, %a1;",
      [](uint32_t a, uint32_t b) { return b == 0     ? a
                                          : b == ~0u ? 0
                                                     : s(i(a) % i(b)); }, u32a, u32b);
  CHECK_LANES(
      uint64_t, "div.u64 %r, %a0, %a1;", [](uint64_t a, uint64_t b) { return b == 0 ? ~uint64_t{0} : a / b; }, u64a,
      u64b);
  CHECK_LANES(
      uint32_t, "min.s32 %r, %a0, %a1;", [](uint32_t a, uint32_t b) { return s(std::min(i(a), i(b))); }, u32a, u32b);
  CHECK_LANES(uint32_t, "max.u32 %r, %a0, %a1;", [](uint32_t a, uint32_t b) { return std::max(a, b); }, u32a, u32b);
  CHECK_LANES(uint32_t, "abs.s32 %r, %a0;", [](uint32_t a) { return i(a) < 0 ? 0 - a : a; }, u32a);
  CHECK_LANES(uint32_t, "neg.s32 %r, %a0;", [](uint32_t a) { return 0 - a; }, u32a);
  CHECK_LANES(
      uint32_t, "sad.u32 %r, %a0, %a1, %a2;",
      [](uint32_t a, uint32_t b, uint32_t c) { return c + (a < b ? b - a : a - b); }, u32a, u32b, u32c);
  CHECK_LANES(uint32_t, "and.b32 %r, %a0, %a1;", [](uint32_t a, uint32_t b) { return a & b; }, u32a, u32b);
  CHECK_LANES(uint32_t, "not.b32 %r, %a0;", [](uint32_t a) { return ~a; }, u32a);
  CHECK_LANES(uint32_t, "cnot.b32 %r, %a0;", [](uint32_t a) { return a == 0; }, u32a);
  CHECK_LANES(
      uint32_t, "shl.b32 %r, %a0, %a1;", [](uint32_t a, uint32_t n) { return n > 31 ? 0 : a << n; }, u32a, shifts);
  CHECK_LANES(
      uint32_t, "shr.s32 %r, %a0, %a1;", [](uint32_t a, uint32_t n) { return s(i(a) >> std::min(n, 31u)); }, u32a,
      shifts);
  CHECK_LANES(
      uint64_t, "shr.u64 %r, %a0, %a1;", [](uint64_t a, uint32_t n) { return n > 63 ? 0 : a >> n; }, u64a, shifts);
  CHECK_LANES(
      uint16_t, "shr.s16 %r, %a0, %a1;",
      [](uint16_t a, uint32_t n) { return static_cast<uint16_t>(static_cast<int16_t>(a) >> std::min(n, 15u)); }, u16a,
      shifts);
  CHECK_LANES(
      uint32_t, "shf.l.wrap.b32 %r, %a0, %a1, %a2;",
      [](uint32_t a, uint32_t b, uint32_t n) {
        n &= 31;
        return n == 0 ? b : b << n | a >> (32 - n);
      },
      u32a, u32b, shifts);
  CHECK_LANES(
      uint32_t, "shf.r.wrap.b32 %r, %a0, %a1, %a2;",
      [](uint32_t a, uint32_t b, uint32_t n) {
        n &= 31;
        return n == 0 ? a : b << (32 - n) | a >> n;
      },
      u32a, u32b, shifts);
  CHECK_LANES(
      uint32_t, "shf.r.clamp.b32 %r, %a0, %a1, %a2;",
      [](uint32_t a, uint32_t b, uint32_t n) {
        n = std::min(n, 32u);
        return n == 0 ? a : n == 32 ? b : b << (32 - n) | a >> n;
      },
      u32a, u32b, shifts);
  CHECK_LANES(
      uint32_t, "lop3.b32 %r, %a0, %a1, %a2, 0xe8;",
      [](uint32_t a, uint32_t b, uint32_t c) { return (a & b) | (a & c) | (b & c); }, u32a, u32b, u32c);
  // The table's index is a, b, c from the high bit: f0 is a, cc b, aa c.
  CHECK_LANES(
      uint32_t, "lop3.b32 %r, %a0, %a1, %a2, 0x2c;",
      [](uint32_t a, uint32_t b, uint32_t c) { return (~a & b) | (a & ~b & c); }, u32a, u32b, u32c);
  CHECK_LANES(uint32_t, "bfe.u32 %r, %a0, 5, 9;", [](uint32_t a) { return a >> 5 & 511; }, u32a);
  CHECK_LANES(uint32_t, "bfe.s32 %r, %a0, 5, 9;", [](uint32_t a) { return s(i(a << 18) >> 23); }, u32a);
  CHECK_LANES(uint32_t, "bfe.s32 %r, %a0, 24, 16;", [](uint32_t a) { return s(i(a) >> 24); }, u32a);
  CHECK_LANES(uint32_t, "bfe.u32 %r, %a0, 0, 0;", [](uint32_t) { return 0u; }, u32a);
  CHECK_LANES(
      uint32_t, "bfi.b32 %r, %a0, %a1, 4, 8;", [](uint32_t a, uint32_t b) { return (b & ~0xff0u) | (a & 255) << 4; },
      u32a, u32b);
  CHECK_LANES(
      uint64_t, "bfi.b64 %r, %a0, %a1, 32, 32;", [](uint64_t a, uint64_t b) { return (b & 0xffffffffu) | a << 32; },
      u64a, u64b);
  CHECK_LANES(
      uint32_t, "brev.b32 %r, %a0;",
      [](uint32_t a) {
        uint32_t r = 0;
        for (int k = 0; k < 32; ++k) r |= (a >> k & 1) << (31 - k);
        return r;
      },
      u32a);
  CHECK_LANES(uint32_t, "popc.b64 %r, %a0;", [](uint64_t a) { return __builtin_popcountll(a); }, u64a);
  CHECK_LANES(uint32_t, "clz.b32 %r, %a0;", [](uint32_t a) { return a == 0 ? 32 : __builtin_clz(a); }, u32a);
  CHECK_LANES(
      uint32_t, "bfind.u32 %r, %a0;",
      [](uint32_t a) { return a == 0 ? ~0u : 31u - static_cast<uint32_t>(__builtin_clz(a)); }, u32a);
  CHECK_LANES(
      uint32_t, "bfind.s32 %r, %a0;",
      [](uint32_t a) {
        a = i(a) < 0 ? ~a : a;
        return a == 0 ? ~0u : 31u - static_cast<uint32_t>(__builtin_clz(a));
      },
      u32a);
  CHECK_LANES(
      uint32_t, "prmt.b32 %r, %a0, %a1, 0x5140;",
      [](uint32_t a, uint32_t b) { return (a & 255) | (b & 255) << 8 | (a >> 8 & 255) << 16 | (b >> 8 & 255) << 24; },
      u32a, u32b);
  CHECK_LANES(
      uint32_t, "prmt.b32 %r, %a0, %a1, 0xba98;",
      [](uint32_t a, uint32_t) {
        uint32_t r = 0;
        for (int k = 0; k < 32; k += 8) r |= (a >> k & 128 ? 255u : 0u) << k;
        return r;
      },
      u32a, u32b);
  CHECK_LANES(
      uint32_t, "dp4a.s32.s32 %r, %a0, %a1, %a2;",
      [](uint32_t a, uint32_t b, uint32_t c) {
        for (int k = 0; k < 32; k += 8) c += s(static_cast<int8_t>(a >> k) * static_cast<int8_t>(b >> k));
        return c;
      },
      u32a, u32b, u32c);
  CHECK_LANES(
      uint32_t, "dp4a.u32.s32 %r, %a0, %a1, %a2;",
      [](uint32_t a, uint32_t b, uint32_t c) {
        for (int k = 0; k < 32; k += 8) c += s(static_cast<uint8_t>(a >> k) * static_cast<int8_t>(b >> k));
        return c;
      },
      u32a, u32b, u32c);
  CHECK_LANES(
      uint32_t, "dp2a.lo.s32.u32 %r, %a0, %a1, %a2;",
      [](uint32_t a, uint32_t b, uint32_t c) {
        return c + s(static_cast<int16_t>(a) * static_cast<int>(b & 255)) +
               s((i(a) >> 16) * static_cast<int>(b >> 8 & 255));
      },
      u32a, u32b, u32c);
  CHECK_LANES(
      uint32_t, "dp2a.hi.u32.s32 %r, %a0, %a1, %a2;",
      [](uint32_t a, uint32_t b, uint32_t c) {
        return c + (a & 0xffff) * s(static_cast<int8_t>(b >> 16)) + (a >> 16) * s(i(b) >> 24);
      },
      u32a, u32b, u32c);
  const auto bases = values<uint32_t>({3, 3, 2, 2, 31, 0}, 15), steps = values<uint32_t>({1, ~0u, 1, ~0u, 0, 0}, 16);
  CHECK_LANES(
      uint32_t, "and.b32 %w0, %a1, 31; rem.s32 %w1, %a2, 9; fns.b32 %r, %a0, %w0, %w1;",
      [](uint32_t mask, uint32_t base, uint32_t step) {
        const int n = i(step) % 9;
        int bit = i(base & 31);
        if (n == 0) return mask >> bit & 1 ? s(bit) : ~0u;
        for (int count = std::abs(n) - 1; bit >= 0 && bit < 32; bit += n > 0 ? 1 : -1) {
          if ((mask >> bit & 1) == 0) continue;
          if (count == 0) return s(bit);
          --count;
        }
        return ~0u;
      },
      values<uint32_t>({0xaaaaaaaa, 0xaaaaaaaa, 0xaaaaaaaa, 0xaaaaaaaa}, 17), bases, steps);
  CHECK_LANES(
      uint32_t, "fns.b32 %r, 0xaaaaaaaa, 2, %a0;", [](uint32_t step) { return step == 1 ? 3 : 1; },
      std::vector<uint32_t>{1, ~0u, 1, ~0u, 1, ~0u, 1, ~0u, 1, ~0u, 1, ~0u, 1, ~0u, 1, ~0u,
                            1, ~0u, 1, ~0u, 1, ~0u, 1, ~0u, 1, ~0u, 1, ~0u, 1, ~0u, 1, ~0u});
  CHECK_LANES(
      uint32_t, "add.cc.u32 %w0, %a0, %a1; addc.u32 %r, %a2, 0;",
      [](uint32_t a, uint32_t b, uint32_t c) { return c + s((uint64_t{a} + b) >> 32); }, u32a, u32b, u32c);
  CHECK_LANES(
      uint32_t, "mad.lo.cc.u32 %w0, %a0, %a1, %a2; madc.hi.u32 %r, %a0, %a1, 0;",
      [](uint32_t a, uint32_t b, uint32_t c) { return (uint64_t{a} * b + c) >> 32; }, u32a, u32b, u32c);
  CHECK_LANES(
      uint32_t, "sub.cc.u32 %w0, %a0, %a1; subc.u32 %r, %a2, 0;",
      [](uint32_t a, uint32_t b, uint32_t c) { return c - (a < b); }, u32a, u32b, u32c);
}

void comparisons() {
  CHECK_LANES(
      uint32_t, "setp.lt.s32 %p0, %a0, %a1; selp.b32 %r, 1, 2, %p0;",
      [](uint32_t a, uint32_t b) { return i(a) < i(b) ? 1 : 2; }, u32a, u32b);
  CHECK_LANES(
      uint32_t, "setp.hi.u32 %p0|%p1, %a0, %a1; selp.b32 %r, 1, 2, %p1;",
      [](uint32_t a, uint32_t b) { return !(a > b) ? 1 : 2; }, u32a, u32b);
  CHECK_LANES(
      uint32_t, "setp.ne.f32 %p0, %a0, %a1; selp.b32 %r, 1, 2, %p0;",
      [](float a, float b) { return a < b || a > b ? 1 : 2; }, f32a, f32b);
  CHECK_LANES(
      uint32_t, "setp.neu.f32 %p0, %a0, %a1; selp.b32 %r, 1, 2, %p0;", [](float a, float b) { return a != b ? 1 : 2; },
      f32a, f32b);
  CHECK_LANES(
      uint32_t, "setp.geu.f32 %p0, %a0, %a1; selp.b32 %r, 1, 2, %p0;",
      [](float a, float b) { return !(a < b) ? 1 : 2; }, f32a, f32b);
  CHECK_LANES(
      uint32_t, "setp.nan.f32 %p0, %a0, %a1; selp.b32 %r, 1, 2, %p0;",
      [](float a, float b) { return a != a || b != b ? 1 : 2; }, f32a, f32b);
  CHECK_LANES(
      uint32_t, "setp.gt.u32 %p1, %a0, 9; setp.eq.and.u32 %p0, %a1, 32, !%p1; selp.b32 %r, 1, 2, %p0;",
      [](uint32_t a, uint32_t b) { return b == 32 && !(a > 9) ? 1 : 2; }, u32a, u32b);
  CHECK_LANES(
      uint32_t, "setp.lt.f64 %p0, %a0, %a1; selp.b32 %r, 1, 2, %p0;", [](double a, double b) { return a < b ? 1 : 2; },
      f64a, f64b);
  CHECK_LANES(uint32_t, "set.lt.u32.f32 %r, %a0, %a1;", [](float a, float b) { return a < b ? ~0u : 0; }, f32a, f32b);
  CHECK_LANES(
      float, "set.ge.f32.s32 %r, %a0, %a1;", [](uint32_t a, uint32_t b) { return i(a) >= i(b) ? 1.0f : 0.0f; }, u32a,
      u32b);
  CHECK_LANES(
      uint32_t, "slct.b32.f32 %r, %a0, %a1, %a2;", [](uint32_t a, uint32_t b, float c) { return c >= 0 ? a : b; }, u32a,
      u32b, f32a);
  CHECK_LANES(
      uint32_t, "setp.lt.s32 %p0, %a0, 0; @%p0 mov.b32 %r, 5; @!%p0 mov.b32 %r, 6;",
      [](uint32_t a) { return i(a) < 0 ? 5 : 6; }, u32a);
  CHECK_LANES(
      uint32_t, "mov.pred %p0, -1; mov.pred %p1, 0; or.pred %p2, !%p0, %p1; selp.b32 %r, 1, %a0, %p2;",
      [](uint32_t a) { return a; }, u32a);
  CHECK_LANES(
      uint32_t, "testp.subnormal.f32 %p0, %a0; selp.b32 %r, 1, 0, %p0;",
      [](float a) { return std::fpclassify(a) == FP_SUBNORMAL; }, f32a);
}

void singles() {
  CHECK_LANES(float, "add.f32 %r, %a0, %a1;", [](float a, float b) { return a + b; }, f32a, f32b);
  CHECK_LANES(
      float, "add.ftz.f32 %r, %a0, %a1;", [](float a, float b) { return flushed(flushed(a) + flushed(b)); }, f32a,
      f32b);
  CHECK_LANES(float, "sub.rn.f32 %r, %a0, %a1;", [](float a, float b) { return a - b; }, f32a, f32b);
  CHECK_LANES(float, "mul.f32 %r, %a0, %a1;", [](float a, float b) { return a * b; }, f32a, f32b);
  CHECK_LANES(
      float, "mul.sat.f32 %r, %a0, %a1;", [](float a, float b) { return static_cast<float>(saturated(a * b)); }, f32a,
      f32b);
  CHECK_LANES(
      float, "fma.rn.f32 %r, %a0, %a1, %a2;", [](float a, float b, float c) { return std::fmaf(a, b, c); }, f32a, f32b,
      f32c);
  CHECK_LANES(float, "div.rn.f32 %r, %a0, %a1;", [](float a, float b) { return a / b; }, f32a, f32b);
  CHECK_LANES(float, "sqrt.rn.f32 %r, %a0;", [](float a) { return std::sqrt(a); }, f32a);
  CHECK_LANES(float, "rcp.rn.f32 %r, %a0;", [](float a) { return 1 / a; }, f32a);
  CHECK_LANES(float, "abs.f32 %r, %a0;", [](float a) { return std::fabs(a); }, f32a);
  CHECK_LANES(float, "neg.f32 %r, %a0;", [](float a) { return -a; }, f32a);
  CHECK_LANES(float, "copysign.f32 %r, %a0, %a1;", [](float a, float b) { return std::copysign(b, a); }, f32a, f32b);
  CHECK_LANES(
      float, "max.f32 %r, %a0, %a1;",
      [](float a, float b) {
        return a != a ? b : b != b ? a : a == b ? (std::signbit(a) ? b : a) : std::max(a, b);
      },
      f32a, f32b);
  CHECK_LANES(
      float, "min.NaN.f32 %r, %a0, %a1;",
      [](float a, float b) { return a != a || b != b ? kNan
                                    : a == b         ? (std::signbit(a) ? a : b)
                                                     : std::min(a, b); },
      f32a, f32b);
  // Directions: from the nearest result and the sign of its error.
  const auto toward = [](double exact, float direction) {
    const float near = static_cast<float>(exact);
    return near == exact || (near < exact) == (direction < exact) ? near : std::nextafter(near, direction);
  };
  const auto x = floats<float>({1, 1, 16777216}, 20), y = floats<float>({1e-7f, -1e-7f, 1}, 21);
  CHECK_LANES(float, "mul.rm.f32 %r, %a0, %a1;", [&](float a, float b) { return toward(double{a} * b, -kInf); }, x, y);
  CHECK_LANES(float, "mul.rp.f32 %r, %a0, %a1;", [&](float a, float b) { return toward(double{a} * b, kInf); }, x, y);
  CHECK_LANES(float, "add.rz.f32 %r, %a0, %a1;", [&](float a, float b) { return toward(double{a} + b, 0.0f); }, x, y);
  CHECK_LANES(
      float, "ex2.approx.ftz.f32 %r, %a0;",
      [](float a) { return flushed(static_cast<float>(std::exp2(double{flushed(a)}))); }, f32a);
  const auto near = [](double wanted) {  // to 2 ulp, whatever the approximation
    return [wanted](float got) {
      return got == static_cast<float>(wanted) || std::fabs(got - wanted) <= std::fabs(wanted) * 0x1p-22 ||
             (wanted != wanted && got != got);
    };
  };
  const auto check_near = [&](const char *code, double (*model)(double)) {
    const auto got = run<float>(code, f32a);
    bool ok = true;
    for (size_t lane = 0; lane < 32; ++lane) ok = ok && near(model(f32a[lane]))(got[lane]);
    check(ok, __FILE__, __LINE__, code);
  };
  check_near("ex2.approx.f32 %r, %a0;", [](double a) { return std::exp2(a); });
  check_near("lg2.approx.f32 %r, %a0;", [](double a) { return std::log2(a); });
  check_near("sin.approx.f32 %r, %a0;", [](double a) { return std::sin(a); });
  check_near("cos.approx.f32 %r, %a0;", [](double a) { return std::cos(a); });
  check_near("tanh.approx.f32 %r, %a0;", [](double a) { return std::tanh(a); });
  check_near("rsqrt.approx.f32 %r, %a0;", [](double a) { return 1 / std::sqrt(a); });
  check_near("rcp.approx.f32 %r, %a0;", [](double a) { return 1 / a; });
}

void doubles() {
  CHECK_LANES(double, "add.f64 %r, %a0, %a1;", [](double a, double b) { return a + b; }, f64a, f64b);
  CHECK_LANES(
      double, "fma.rn.f64 %r, %a0, %a1, %a0;", [](double a, double b) { return std::fma(a, b, a); }, f64a, f64b);
  CHECK_LANES(double, "div.rn.f64 %r, %a0, %a1;", [](double a, double b) { return a / b; }, f64a, f64b);
  CHECK_LANES(double, "max.f64 %r, %a0, %a1;", [](double a, double b) { return std::max(a, b); }, f64a, f64b);
  CHECK_LANES(
      double, "add.rm.f64 %r, %a0, %a1;",
      [](double a, double b) {
        const long double exact = static_cast<long double>(a) + b;  // of the random lanes: of like size, so exact
        const double near = a + b;
        return near > exact ? std::nextafter(near, -HUGE_VAL) : near;
      },
      f64b, f64b);
}

uint16_t h(double x) { return to_f16(x); }
uint16_t bf(double x) { return to_bf16(x); }

void halves() {
  // The formats themselves, against arithmetic on their definition.
  CHECK(h(1.0) == 0x3c00 && h(-2.0) == 0xc000 && h(65504.0) == 0x7bff && h(65520.0) == 0x7c00 && h(65519.0) == 0x7bff);
  CHECK(h(0x1p-24) == 1 && h(0x1p-25) == 0 && h(0x1.8p-25) == 1 && h(0x1p-14) == 0x400 && h(-0.0) == 0x8000);
  CHECK(bf(1.0) == 0x3f80 && bf(3.0e38) == 0x7f62 && bf(1.00390625) == 0x3f80 && bf(1.01171875) == 0x3f82);
  bool round_trip = true;
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto b = static_cast<uint16_t>(bits);
    const bool nan = (b & 0x7fff) > 0x7c00, bf_nan = (b & 0x7fff) > 0x7f80;
    round_trip = round_trip && (nan || (h(f16_float(b)) == b && f16_value(b) == f16_float(b))) &&
                 (bf_nan || bf(bf16_float(b)) == b);
  }
  CHECK(round_trip);
  bool quick = true;  // ties and their neighbours, and any bits
  for (uint32_t k = 0; k < 65536; ++k) {
    for (uint32_t bits : {k << 16, k << 16 | 0x8000, k << 16 | 0x7fff, k * 0x1000 + 0x1000, k * 65537u * 40503u}) {
      const float x = bits_as<float>(bits);
      quick = quick && nearest_f16(x) == h(x) && nearest_bf16(x) == bf(x);
      const float half = x * 0x1p-16f;  // more of the subnormals
      quick = quick && nearest_f16(half) == h(half);
    }
  }
  CHECK(quick);
  std::vector<uint16_t> a, b, c, ba, bb, bc;
  for (size_t k = 0; k < 32; ++k) {
    a.push_back(h(f32a[k])), b.push_back(h(f32b[k])), c.push_back(h(f32c[k]));
    ba.push_back(bf(f32a[k])), bb.push_back(bf(f32b[k])), bc.push_back(bf(f32c[k]));
  }
  const auto v = [](uint16_t x) { return f16_value(x); };
  const auto w = [](uint16_t x) { return static_cast<double>(bf16_float(x)); };
  CHECK_LANES(uint16_t, "add.f16 %r, %a0, %a1;", [&](uint16_t x, uint16_t y) { return h(v(x) + v(y)); }, a, b);
  CHECK_LANES(uint16_t, "mul.f16 %r, %a0, %a1;", [&](uint16_t x, uint16_t y) { return h(v(x) * v(y)); }, a, b);
  CHECK_LANES(
      uint16_t, "fma.rn.f16 %r, %a0, %a1, %a2;",
      [&](uint16_t x, uint16_t y, uint16_t z) { return h(std::fma(v(x), v(y), v(z))); }, a, b, c);
  CHECK_LANES(
      uint16_t, "fma.rn.bf16 %r, %a0, %a1, %a2;",
      [&](uint16_t x, uint16_t y, uint16_t z) { return bf(std::fma(w(x), w(y), w(z))); }, ba, bb, bc);
  CHECK_LANES(uint16_t, "neg.bf16 %r, %a0;", [&](uint16_t x) { return static_cast<uint16_t>(x ^ 0x8000); }, ba);
  CHECK_LANES(
      uint16_t, "max.bf16 %r, %a0, %a1;",
      [&](uint16_t x, uint16_t y) {
        const double p = w(x);
        const double q = w(y);
        return bf(p != p ? q : q != q ? p : p == q ? (std::signbit(p) ? q : p) : std::max(p, q));
      },
      ba, bb);
  CHECK_LANES(
      uint32_t, "mov.b32 %w0, {%a0, %a1}; mov.b32 %w1, {%a1, %a0}; add.f16x2 %r, %w0, %w1;",
      [&](uint16_t x, uint16_t y) {
        const uint32_t sum = h(v(x) + v(y));
        return sum << 16 | sum;
      },
      a, b);
  CHECK_LANES(
      uint32_t, "mov.b32 %w0, {%a0, %a1}; fma.rn.relu.f16x2 %r, %w0, %w0, %w0;",
      [&](uint16_t x, uint16_t y) {
        const auto one = [&](double p) {
          const double q = std::fma(p, p, p);
          return uint32_t{h(q < 0 ? 0 : q)};
        };
        return one(v(y)) << 16 | one(v(x));
      },
      a, b);
  CHECK_LANES(
      uint32_t, "setp.lt.f16 %p0, %a0, %a1; selp.b32 %r, 1, 0, %p0;",
      [&](uint16_t x, uint16_t y) { return v(x) < v(y); }, a, b);
  CHECK_LANES(
      uint32_t, "mov.b32 %w0, {%a0, %a1}; mov.b32 %w1, {%a1, %a0}; set.gt.u32.f16x2 %r, %w0, %w1;",
      [&](uint16_t x, uint16_t y) { return (v(x) > v(y) ? 0xffffu : 0) | (v(y) > v(x) ? 0xffff0000u : 0); }, a, b);
}

void conversions() {
  CHECK_LANES(uint64_t, "cvt.s64.s32 %r, %a0;", [](uint32_t a) { return int64_t{i(a)}; }, u32a);
  CHECK_LANES(uint32_t, "cvt.u32.u64 %r, %a0;", [](uint64_t a) { return a; }, u64a);
  CHECK_LANES(uint32_t, "cvt.s32.s8 %r, %a0;", [](uint32_t a) { return s(static_cast<int8_t>(a)); }, u32a);
  CHECK_LANES(uint32_t, "cvt.sat.u8.s32 %r, %a0;", [](uint32_t a) { return s(std::clamp(i(a), 0, 255)); }, u32a);
  CHECK_LANES(
      uint16_t, "cvt.sat.s16.s32 %r, %a0;",
      [](uint32_t a) { return static_cast<uint16_t>(std::clamp(i(a), -32768, 32767)); }, u32a);
  CHECK_LANES(float, "cvt.rn.f32.s32 %r, %a0;", [](uint32_t a) { return static_cast<float>(i(a)); }, u32a);
  CHECK_LANES(float, "cvt.rn.f32.u64 %r, %a0;", [](uint64_t a) { return static_cast<float>(a); }, u64a);
  CHECK_LANES(
      double, "cvt.rn.f64.s64 %r, %a0;", [](uint64_t a) { return static_cast<double>(static_cast<int64_t>(a)); }, u64a);
  CHECK_LANES(
      float, "cvt.rz.f32.u32 %r, %a0;",
      [](uint32_t a) {
        float x = static_cast<float>(a);
        return double{x} > a ? std::nextafter(x, 0.0f) : x;
      },
      u32a);
  const auto clamp = [](double x) {
    return x != x ? 0u : s(x >= 2147483647.0 ? INT32_MAX : x <= -2147483648.0 ? INT32_MIN : static_cast<int64_t>(x));
  };
  CHECK_LANES(uint32_t, "cvt.rzi.s32.f32 %r, %a0;", [&](float a) { return clamp(std::trunc(a)); }, f32a);
  CHECK_LANES(uint32_t, "cvt.rni.s32.f32 %r, %a0;", [&](float a) { return clamp(std::nearbyint(a)); }, f32a);
  CHECK_LANES(uint32_t, "cvt.rmi.s32.f64 %r, %a0;", [&](double a) { return clamp(std::floor(a)); }, f64a);
  CHECK_LANES(
      uint32_t, "cvt.rzi.u32.f32 %r, %a0;",
      [](float a) { return !(a > 0)             ? 0u
                           : a >= 4294967296.0f ? ~0u
                                                : static_cast<uint32_t>(a); }, f32a);
  CHECK_LANES(float, "cvt.rpi.f32.f32 %r, %a0;", [](float a) { return std::ceil(a); }, f32a);
  CHECK_LANES(float, "cvt.sat.f32.f32 %r, %a0;", [](float a) { return static_cast<float>(saturated(a)); }, f32a);
  CHECK_LANES(float, "cvt.rn.f32.f64 %r, %a0;", [](double a) { return static_cast<float>(a); }, f64a);
  CHECK_LANES(double, "cvt.f64.f32 %r, %a0;", [](float a) { return double{a}; }, f32a);
  CHECK_LANES(uint16_t, "cvt.rn.f16.f32 %r, %a0;", [](float a) { return h(a); }, f32a);
  CHECK_LANES(uint16_t, "cvt.rn.bf16.f32 %r, %a0;", [](float a) { return bf(a); }, f32a);
  CHECK_LANES(uint16_t, "cvt.rz.f16.f32 %r, %a0;", [](float a) { return to_f16(a, Rounding::kZero); }, f32a);
  CHECK_LANES(float, "cvt.f32.f16 %r, %a0;", [](uint16_t a) { return static_cast<float>(f16_value(a)); }, u16a);
  CHECK_LANES(
      uint32_t, "cvt.rn.bf16x2.f32 %r, %a0, %a1;", [](float a, float b) { return uint32_t{bf(a)} << 16 | bf(b); }, f32a,
      f32b);
  CHECK_LANES(
      uint32_t, "cvt.rn.f16x2.f32 %r, %a0, %a1;", [](float a, float b) { return uint32_t{h(a)} << 16 | h(b); }, f32a,
      f32b);
  CHECK_LANES(
      uint32_t, "cvt.rna.tf32.f32 %r, %a0;",
      [](float a) {
        if (a != a) return kNan32;
        return std::isinf(a) ? bits_as<uint32_t>(a) : (bits_as<uint32_t>(a) + 0x1000u) & ~0x1fffu;
      },
      f32b);
  CHECK_LANES(uint16_t, "cvt.rn.f16.s32 %r, %a0;", [](uint32_t a) { return h(i(a)); }, u32a);
}

void moves() {
  CHECK_LANES(
      uint64_t, "mov.b64 %r, {%a0, %a1};", [](uint32_t a, uint32_t b) { return uint64_t{b} << 32 | a; }, u32a, u32b);
  CHECK_LANES(uint32_t, "mov.b64 {%w0, %r}, %a0;", [](uint64_t a) { return a >> 32; }, u64a);
  CHECK_LANES(uint32_t, "mov.b64 {_, %r}, %a0;", [](uint64_t a) { return a >> 32; }, u64a);
  CHECK_LANES(
      uint16_t, "mov.b64 {%h0, %h1, %r, %h2}, %a0;", [](uint64_t a) { return static_cast<uint16_t>(a >> 32); }, u64a);
  CHECK_LANES(
      float, "{ .reg .f32 %a1; mov.f32 %a1, 0f3F800000; add.f32 %r, %a0, %a1; }", [](float a) { return a + 1; }, f32a);
  CHECK_LANES(float, "mul.f32 %r, %a0, -2.5;", [](float a) { return a * -2.5f; }, f32a);
  CHECK_LANES(
      uint32_t, "mov.u32 %w0, %laneid; mov.u32 %w1, %lanemask_le; add.u32 %r, %w0, %w1; add.u32 %r, %r, WARP_SZ;",
      [](uint32_t lane) { return lane + ((uint64_t{2} << lane) - 1) + 32; },
      [] {
        std::vector<uint32_t> v;
        for (uint32_t k = 0; k < 32; ++k) v.push_back(k);
        return v;
      }());
}

bool refused(const std::string &code, const std::string &part) {
  try {
    load_module(module_text("", ".reg .b32 %w<4>; .reg .b64 %d<4>; .reg .pred %p<4>;\n" + code + "\nret;"));
  } catch (const ParseError &error) {
    return std::string(error.what()).find(part) != std::string::npos && error.line > 1;
  }
  return false;
}

void errors() {
  CHECK(refused("frobnicate.b32 %w0, %w1;", "unknown instruction frobnicate.b32"));
  CHECK(refused("add.frob.s32 %w0, %w1, %w2;", "unknown modifier .frob"));
  CHECK(refused("add.s32 %w0, %w1;", "operands"));
  CHECK(refused("add.s32 %w0, %d1, %w2;", "width"));
  CHECK(refused("add.s32 %w0, %w9, %w2;", "unknown name %w9"));
  CHECK(refused("bra nowhere;", "no label nowhere"));
  CHECK(refused("mad.hi.sat.u32 %w0, %w1, %w2, %w3;", ".sat is for s32 only"));
  CHECK(refused("add.sat.u32 %w0, %w1, %w2;", ".sat is for s32 only"));
  CHECK(refused("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%w0}, {%w0}, {%w0}, {%w0};", "m16n8k32"));
}

}  // namespace

void test_instructions() {
  integers();
  comparisons();
  singles();
  doubles();
  halves();
  conversions();
  moves();
  errors();
}

}  // namespace testing
