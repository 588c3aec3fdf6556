// f16 and bf16 arithmetic, single and in pairs: each element is computed exactly and rounded once.
#include <cmath>

#include "builder.h"
#include "lanes.h"

namespace emulator {

namespace {

struct F16 {
  static constexpr double kSmallest = 0x1p-14;
  static double value(uint16_t bits) { return f16_float(bits); }
  static uint16_t bits(double x) { return to_f16(x); }
};
struct Bf16 {
  static constexpr double kSmallest = 0x1p-126;
  static double value(uint16_t bits) { return bf16_float(bits); }
  static uint16_t bits(double x) { return to_bf16(x); }
};

double add(double a, double b) { return add_odd(a, b); }
double sub(double a, double b) { return add_odd(a, -b); }
double mul(double a, double b) { return a * b; }
double fma(double a, double b, double c) { return add_odd(a * b, c); }
double exp2_approx(double a) { return std::exp2(a); }
double tanh_approx(double a) { return std::tanh(a); }
double minimum(double a, double b) {
  return std::isnan(a) ? b : std::isnan(b) ? a : a < b || (a == b && std::signbit(a)) ? a : b;
}
double maximum(double a, double b) {
  return std::isnan(a) ? b : std::isnan(b) ? a : a > b || (a == b && !std::signbit(a)) ? a : b;
}
double minimum_nan(double a, double b) { return std::isnan(a) || std::isnan(b) ? NAN : minimum(a, b); }
double maximum_nan(double a, double b) { return std::isnan(a) || std::isnan(b) ? NAN : maximum(a, b); }

// Modifiers of these instructions, in Instruction: sat; mode 1: .relu, negative results and NaN become 0 (NaN stays).
// .ftz: a subnormal becomes zero of its sign.
template <class H>
double flushed_half(const Instruction &i, double x) {
  return i.ftz && std::fabs(x) < H::kSmallest ? std::copysign(0.0, x) : x;
}
template <class H>
double opened(const Instruction &i, uint16_t a) {
  return flushed_half<H>(i, H::value(a));
}
template <class H>
uint16_t closed(const Instruction &i, double x) {
  if (i.sat) x = saturated(x);
  if (i.mode == 1 && x < 0) x = 0;
  const uint16_t bits = H::bits(x);
  return H::bits(flushed_half<H>(i, H::value(bits)));
}
template <class H, double (*f)(double)>
uint16_t one(const Instruction &i, uint16_t a) {
  return closed<H>(i, f(opened<H>(i, a)));
}
template <class H, double (*f)(double, double)>
uint16_t one(const Instruction &i, uint16_t a, uint16_t b) {
  return closed<H>(i, f(opened<H>(i, a), opened<H>(i, b)));
}
template <class H, double (*f)(double, double, double)>
uint16_t one(const Instruction &i, uint16_t a, uint16_t b, uint16_t c) {
  return closed<H>(i, f(opened<H>(i, a), opened<H>(i, b), opened<H>(i, c)));
}

// A register of Out::lanes elements, each of which goes through `one`.
template <class H, auto f, class... In, size_t... k>
void each(std::index_sequence<k...>, Warp &w, const Instruction &i, Mask mask) {
  // A pair is two 16-bit elements of the same lane: element e of lane l is number 2 l + e.
  const int pair = i.vector;
  uint16_t *out = w.out<uint16_t>(i.out[0]);
  const uint16_t *in[] = {w.in<uint16_t>(i.in[k])...};
  each_lane(mask, [&](int lane) {
    for (int e = lane * pair; e < (lane + 1) * pair; ++e) out[e] = one<H, f>(i, in[k][e]...);
  });
}
template <class H, double (*f)(double)>
void unary(Warp &w, const Instruction &i, Mask m) {
  each<H, f>(std::make_index_sequence<1>(), w, i, m);
}
template <class H, double (*f)(double, double)>
void binary(Warp &w, const Instruction &i, Mask m) {
  each<H, f>(std::make_index_sequence<2>(), w, i, m);
}
template <class H, double (*f)(double, double, double)>
void ternary(Warp &w, const Instruction &i, Mask m) {
  each<H, f>(std::make_index_sequence<3>(), w, i, m);
}

// neg and abs only touch the sign bits.
template <class T>
T negative(T a) {
  return static_cast<T>(a ^ static_cast<T>(0x80008000u));
}
template <class T>
T absolute(T a) {
  return static_cast<T>(a & static_cast<T>(0x7fff7fffu));
}

void decode(Builder &b, size_t inputs, Handler f16, Handler bf16) {
  Instruction &r = b.result;
  b.take("rn");
  b.take("approx");
  r.ftz = b.take("ftz");
  r.sat = b.take("sat");
  r.mode = b.take("relu") ? 1 : 0;
  const Type type = b.take_type();
  r.vector = type.lanes;
  b.expect(inputs + 1, inputs + 1);
  r.out[0] = b.target(0, type);
  for (size_t k = 0; k < inputs; ++k) r.in[k] = b.source(k + 1, type);
  r.run = type.kind == Type::kF16 ? f16 : bf16;
}
template <auto narrow, auto wide>
void decode_sign(Builder &b) {
  b.take("ftz");
  const Type type = b.take_type();
  b.expect(2, 2);
  b.result.out[0] = b.target(0, type);
  b.result.in[0] = b.source(1, type);
  b.result.run = type.lanes == 1 ? lanes<narrow> : lanes<wide>;
}

}  // namespace

std::vector<Opcode> half_opcodes() {
  constexpr auto kH = Opcode::kHalves;
  return {
      {"add", [](Builder &b) { decode(b, 2, binary<F16, add>, binary<Bf16, add>); }, kH},
      {"sub", [](Builder &b) { decode(b, 2, binary<F16, sub>, binary<Bf16, sub>); }, kH},
      {"mul", [](Builder &b) { decode(b, 2, binary<F16, mul>, binary<Bf16, mul>); }, kH},
      {"fma",
       [](Builder &b) {
         decode(b, 3, ternary<F16, fma>, ternary<Bf16, fma>);
         b.result.is_fma = true;
       },
       kH},
      {"ex2", [](Builder &b) { decode(b, 1, unary<F16, exp2_approx>, unary<Bf16, exp2_approx>); }, kH},
      {"tanh", [](Builder &b) { decode(b, 1, unary<F16, tanh_approx>, unary<Bf16, tanh_approx>); }, kH},
      {"min",
       [](Builder &b) {
         if (b.take("NaN"))
           decode(b, 2, binary<F16, minimum_nan>, binary<Bf16, minimum_nan>);
         else
           decode(b, 2, binary<F16, minimum>, binary<Bf16, minimum>);
       },
       kH},
      {"max",
       [](Builder &b) {
         if (b.take("NaN"))
           decode(b, 2, binary<F16, maximum_nan>, binary<Bf16, maximum_nan>);
         else
           decode(b, 2, binary<F16, maximum>, binary<Bf16, maximum>);
       },
       kH},
      {"neg", decode_sign<negative<uint16_t>, negative<uint32_t>>, kH},
      {"abs", decode_sign<absolute<uint16_t>, absolute<uint32_t>>, kH},
  };
}

}  // namespace emulator
