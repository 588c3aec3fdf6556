// From a function of single values to the handler of a warp: the loop over lanes that every arithmetic instruction is.
//
//   lanes<add<uint32_t>>     out[0][lane] = add(in[0][lane], in[1][lane]) for the lanes of the mask
//
// Inputs and output are separate registers or exactly the same one, so the loops vectorise.
#pragma once
#include <cstddef>
#include <cstring>
#include <tuple>
#include <utility>

#include "machine.h"

namespace emulator {

constexpr Mask kAllLanes = ~Mask{0};

template <class Visit>
inline void each_lane(Mask lanes, Visit visit) {
  for (; lanes != 0; lanes &= lanes - 1) visit(__builtin_ctz(lanes));
}

// The lanes for which it holds; written so that compilers make it a few vector instructions.
template <class Predicate>
inline Mask lanes_where(Predicate holds) {
  uint8_t is[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) is[lane] = holds(lane);
  Mask mask = 0;
  for (int part = 0; part < 4; ++part) {
    uint64_t eight;
    std::memcpy(&eight, is + 8 * part, sizeof eight);
    mask |= static_cast<Mask>(eight * 0x0102040810204080 >> 56) << 8 * part;  // the lowest bits of its bytes
  }
  return mask;
}

namespace detail {

template <auto f, class Out, class... In, size_t... k>
inline void run(Out (*)(In...), std::index_sequence<k...>, Warp &warp, const Instruction &i, Mask lanes) {
  Out *out = warp.out<Out>(i.out[0]);
  const std::tuple<const In *...> in{warp.in<In>(i.in[k])...};
  if (lanes == kAllLanes) {
#pragma GCC ivdep
    for (int lane = 0; lane < kLanes; ++lane) out[lane] = f(std::get<k>(in)[lane]...);
  } else {
    each_lane(lanes, [&](int lane) { out[lane] = f(std::get<k>(in)[lane]...); });
  }
}

template <auto f, class Out, class... In, size_t... k>
inline void run_with(Out (*)(const Instruction &, In...), std::index_sequence<k...>, Warp &warp, const Instruction &i,
                     Mask lanes) {
  Out *out = warp.out<Out>(i.out[0]);
  const std::tuple<const In *...> in{warp.in<In>(i.in[k])...};
  each_lane(lanes, [&](int lane) { out[lane] = f(i, std::get<k>(in)[lane]...); });
}

template <class Out, class... In>
constexpr size_t inputs(Out (*)(In...)) {
  return sizeof...(In);
}

}  // namespace detail

template <auto f>
void lanes(Warp &warp, const Instruction &i, Mask mask) {
  detail::run<f>(f, std::make_index_sequence<detail::inputs(f)>(), warp, i, mask);
}

// For functions that also read the instruction's modifiers: f(instruction, inputs...).
template <auto f>
void lanes_with(Warp &warp, const Instruction &i, Mask mask) {
  detail::run_with<f>(f, std::make_index_sequence<detail::inputs(f) - 1>(), warp, i, mask);
}

// Predicates are masks: writes the bits of the lanes.
inline void write_predicate(Warp &warp, const Operand &out, Mask value, Mask lanes) {
  if (!out.given()) return;
  Mask *mask = warp.out<Mask>(out);
  *mask = (*mask & ~lanes) | (value & lanes);
}

}  // namespace emulator
