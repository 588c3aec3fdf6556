// f32 and f64 arithmetic. The approximate functions are computed exactly and rounded, so they are better than a GPU's.
#include <cfenv>
#include <cmath>
#include <limits>

#include "builder.h"
#include "lanes.h"

namespace emulator {

namespace {

template <class T>
T add(T a, T b) {
  return a + b;
}
template <class T>
T sub(T a, T b) {
  return a - b;
}
template <class T>
T mul(T a, T b) {
  return a * b;
}
template <class T>
T divide(T a, T b) {
  return a / b;
}
template <class T>
T fma(T a, T b, T c) {
  return std::fma(a, b, c);
}
template <class T>
T square_root(T a) {
  return std::sqrt(a);
}
template <class T>
T reciprocal(T a) {
  return T{1} / a;
}
template <class T>
T absolute(T a) {
  return std::fabs(a);
}
template <class T>
T negative(T a) {
  return -a;
}
// A NaN loses against a number, and -0 is less than +0.
template <class T>
T minimum(T a, T b) {
  if (std::isnan(a)) return b;
  if (std::isnan(b)) return a;
  return a < b || (a == b && std::signbit(a)) ? a : b;
}
template <class T>
T maximum(T a, T b) {
  if (std::isnan(a)) return b;
  if (std::isnan(b)) return a;
  return a > b || (a == b && !std::signbit(a)) ? a : b;
}
template <class T>
T minimum_nan(T a, T b) {
  return std::isnan(a) || std::isnan(b) ? std::numeric_limits<T>::quiet_NaN() : minimum(a, b);
}
template <class T>
T maximum_nan(T a, T b) {
  return std::isnan(a) || std::isnan(b) ? std::numeric_limits<T>::quiet_NaN() : maximum(a, b);
}
// PTX: a's sign on b.
template <class T>
T copy_sign(T a, T b) {
  return std::copysign(b, a);
}

float exp2_approx(float a) { return std::exp2(a); }
float log2_approx(float a) { return std::log2(a); }
float sin_approx(float a) { return std::sin(a); }
float cos_approx(float a) { return std::cos(a); }
float tanh_approx(float a) { return std::tanh(a); }
template <class T>
T rsqrt_approx(T a) {
  return static_cast<T>(1.0 / std::sqrt(static_cast<double>(a)));
}

// The same with .ftz, .sat or a direction: as in number.h, an odd float64 and one rounding.
double odd_mul(double a, double b) { return a * b; }
double odd_sub(double a, double b) { return add_odd(a, -b); }
double odd_fma(double a, double b, double c) { return add_odd(a * b, c); }
double odd_reciprocal(double a) { return div_odd(1.0, a); }
double odd_rsqrt(double a) { return 1.0 / std::sqrt(a); }
double odd_min(double a, double b) { return minimum(a, b); }
double odd_max(double a, double b) { return maximum(a, b); }
double odd_min_nan(double a, double b) { return minimum_nan(a, b); }
double odd_max_nan(double a, double b) { return maximum_nan(a, b); }
double odd_abs(double a) { return std::fabs(a); }
double odd_neg(double a) { return -a; }
double odd_exp2(double a) { return std::exp2(a); }
double odd_log2(double a) { return std::log2(a); }
double odd_sin(double a) { return std::sin(a); }
double odd_cos(double a) { return std::cos(a); }
double odd_tanh(double a) { return std::tanh(a); }

inline double opened(const Instruction &i, float a) { return i.ftz ? flushed(a) : a; }
inline float closed(const Instruction &i, double exact) {
  float r = to_f32(exact, i.rounding);
  if (i.sat) r = static_cast<float>(saturated(r));
  return i.ftz ? flushed(r) : r;
}
template <double (*f)(double)>
float modified(const Instruction &i, float a) {
  return closed(i, f(opened(i, a)));
}
template <double (*f)(double, double)>
float modified(const Instruction &i, float a, float b) {
  return closed(i, f(opened(i, a), opened(i, b)));
}
template <double (*f)(double, double, double)>
float modified(const Instruction &i, float a, float b, float c) {
  return closed(i, f(opened(i, a), opened(i, b), opened(i, c)));
}
template <double (*f)(double)>
void modified1(Warp &w, const Instruction &i, Mask m) {
  lanes_with<static_cast<float (*)(const Instruction &, float)>(modified<f>)>(w, i, m);
}
template <double (*f)(double, double)>
void modified2(Warp &w, const Instruction &i, Mask m) {
  lanes_with<static_cast<float (*)(const Instruction &, float, float)>(modified<f>)>(w, i, m);
}
template <double (*f)(double, double, double)>
void modified3(Warp &w, const Instruction &i, Mask m) {
  lanes_with<static_cast<float (*)(const Instruction &, float, float, float)>(modified<f>)>(w, i, m);
}

// f64 in a direction: the processor's rounding mode around the operation, whose inputs are volatile to keep it there.
int mode_of(Rounding rounding) {
  return rounding == Rounding::kZero   ? FE_TOWARDZERO
         : rounding == Rounding::kDown ? FE_DOWNWARD
         : rounding == Rounding::kUp   ? FE_UPWARD
                                       : FE_TONEAREST;
}
template <class F>
double directed(Rounding rounding, F f) {
  const int before = std::fegetround();
  std::fesetround(mode_of(rounding));
  volatile double result = f();
  std::fesetround(before);
  return result;
}
double add_directed(const Instruction &i, double a, double b) {
  volatile double x = a, y = b;
  return directed(i.rounding, [&] { return x + y; });
}
double sub_directed(const Instruction &i, double a, double b) { return add_directed(i, a, -b); }
double mul_directed(const Instruction &i, double a, double b) {
  volatile double x = a, y = b;
  return directed(i.rounding, [&] { return x * y; });
}
double div_directed(const Instruction &i, double a, double b) {
  volatile double x = a, y = b;
  return directed(i.rounding, [&] { return x / y; });
}
double fma_directed(const Instruction &i, double a, double b, double c) {
  volatile double x = a, y = b, z = c;
  return directed(i.rounding, [&] { return std::fma(x, y, z); });
}
double sqrt_directed(const Instruction &i, double a) {
  volatile double x = a;
  return directed(i.rounding, [&] { return std::sqrt(x); });
}

// ---- Decoding

// The handlers of one operation: f32, f32 with modifiers, f64, f64 with a direction (NULL: there is none).
struct Handlers {
  Handler single, modified, wide, directed;
};

void decode(Builder &b, size_t inputs, Handlers handlers) {
  Instruction &r = b.result;
  r.rounding = b.take_rounding();
  b.take_one({"approx", "full"});
  r.ftz = b.take("ftz");
  r.sat = b.take("sat");
  const Type type = b.take_type();
  b.expect(inputs + 1, inputs + 1);
  r.out[0] = b.target(0, type);
  for (size_t k = 0; k < inputs; ++k) r.in[k] = b.source(k + 1, type);
  const bool plain = r.rounding == Rounding::kNearest && !r.ftz && !r.sat;
  if (type.bits == 64 && (r.sat || (!plain && handlers.directed == nullptr && !r.ftz))) b.fail("no such form of f64");
  r.run = type.bits == 32 ? (plain ? handlers.single : handlers.modified)
                          : (r.rounding == Rounding::kNearest ? handlers.wide : handlers.directed);
  if (r.run == nullptr) b.fail("no such form");
}

void decode_fma(Builder &b) {
  const bool single = b.has("f32");
  decode(b, 3, {lanes<fma<float>>, modified3<odd_fma>, lanes<fma<double>>, lanes_with<fma_directed>});
  b.result.is_fma = single;
}
void decode_minmax(Builder &b, Handlers number, Handlers nan) { decode(b, 2, b.take("NaN") ? nan : number); }

template <class T>
void test_number(Warp &w, const Instruction &i, Mask mask) {
  const T *a = w.in<T>(i.in[0]);
  Mask value = 0;
  each_lane(mask, [&](int lane) {
    const T x = a[lane];
    const bool holds = i.mode == 0   ? std::isfinite(x)
                       : i.mode == 1 ? std::isinf(x)
                       : i.mode == 2 ? !std::isnan(x)
                       : i.mode == 3 ? std::isnan(x)
                       : i.mode == 4 ? std::isnormal(x) || x == 0
                                     : std::fpclassify(x) == FP_SUBNORMAL;
    value |= Mask{holds} << lane;
  });
  write_predicate(w, i.out[0], value, mask);
}
void decode_test(Builder &b) {
  const int mode = b.take_one({"finite", "infinite", "number", "notanumber", "normal", "subnormal"});
  if (mode < 0) b.fail("testp without its test");
  const Type type = b.take_type();
  b.expect(2, 2);
  bool negated;
  b.result.out[0] = b.predicate(b.arg(0), negated);
  b.result.in[0] = b.source(1, type);
  b.result.mode = static_cast<uint8_t>(mode);
  b.result.run = type.bits == 32 ? test_number<float> : test_number<double>;
}

}  // namespace

std::vector<Opcode> float_opcodes() {
  constexpr auto kF = Opcode::kFloats;
  return {
      {"add",
       [](Builder &b) {
         decode(b, 2, {lanes<add<float>>, modified2<add_odd>, lanes<add<double>>, lanes_with<add_directed>});
       },
       kF},
      {"sub",
       [](Builder &b) {
         decode(b, 2, {lanes<sub<float>>, modified2<odd_sub>, lanes<sub<double>>, lanes_with<sub_directed>});
       },
       kF},
      {"mul",
       [](Builder &b) {
         decode(b, 2, {lanes<mul<float>>, modified2<odd_mul>, lanes<mul<double>>, lanes_with<mul_directed>});
       },
       kF},
      {"div",
       [](Builder &b) {
         decode(b, 2, {lanes<divide<float>>, modified2<div_odd>, lanes<divide<double>>, lanes_with<div_directed>});
       },
       kF},
      {"fma", decode_fma, kF},
      {"mad", decode_fma, kF},
      {"sqrt",
       [](Builder &b) {
         decode(
             b, 1,
             {lanes<square_root<float>>, modified1<sqrt_odd>, lanes<square_root<double>>, lanes_with<sqrt_directed>});
       },
       kF},
      {"rcp",
       [](Builder &b) {
         decode(b, 1, {lanes<reciprocal<float>>, modified1<odd_reciprocal>, lanes<reciprocal<double>>, nullptr});
       },
       kF},
      {"rsqrt",
       [](Builder &b) {
         decode(b, 1, {lanes<rsqrt_approx<float>>, modified1<odd_rsqrt>, lanes<rsqrt_approx<double>>, nullptr});
       },
       kF},
      {"ex2", [](Builder &b) { decode(b, 1, {lanes<exp2_approx>, modified1<odd_exp2>, nullptr, nullptr}); }, kF},
      {"lg2", [](Builder &b) { decode(b, 1, {lanes<log2_approx>, modified1<odd_log2>, nullptr, nullptr}); }, kF},
      {"sin", [](Builder &b) { decode(b, 1, {lanes<sin_approx>, modified1<odd_sin>, nullptr, nullptr}); }, kF},
      {"cos", [](Builder &b) { decode(b, 1, {lanes<cos_approx>, modified1<odd_cos>, nullptr, nullptr}); }, kF},
      {"tanh", [](Builder &b) { decode(b, 1, {lanes<tanh_approx>, modified1<odd_tanh>, nullptr, nullptr}); }, kF},
      {"abs",
       [](Builder &b) { decode(b, 1, {lanes<absolute<float>>, modified1<odd_abs>, lanes<absolute<double>>, nullptr}); },
       kF},
      {"neg",
       [](Builder &b) { decode(b, 1, {lanes<negative<float>>, modified1<odd_neg>, lanes<negative<double>>, nullptr}); },
       kF},
      {"copysign",
       [](Builder &b) { decode(b, 2, {lanes<copy_sign<float>>, nullptr, lanes<copy_sign<double>>, nullptr}); }, kF},
      {"min",
       [](Builder &b) {
         decode_minmax(b, {lanes<minimum<float>>, modified2<odd_min>, lanes<minimum<double>>, nullptr},
                       {lanes<minimum_nan<float>>, modified2<odd_min_nan>, nullptr, nullptr});
       },
       kF},
      {"max",
       [](Builder &b) {
         decode_minmax(b, {lanes<maximum<float>>, modified2<odd_max>, lanes<maximum<double>>, nullptr},
                       {lanes<maximum_nan<float>>, modified2<odd_max_nan>, nullptr, nullptr});
       },
       kF},
      {"testp", decode_test, kF},
  };
}

}  // namespace emulator
