// ld and st: all spaces, widths and vectors.
#include <cstring>

#include "access.h"
#include "builder.h"
#include "lanes.h"

namespace emulator {

namespace {

// As a register of type R takes it: zero- or sign-extended.
template <class M, class R>
void load(Warp &w, const Instruction &i, Mask mask) {
  Access a;
  a.space = i.space;
  a.use = Use::kRead;
  a.bytes = static_cast<int>(sizeof(M)) * i.vector;
  lane_addresses(w, i.in[0], i.offset, a.address);
  const Mask good = checked(w, i, a, mask);
  if (i.strong) order_before(w, i, a, good);
  for (int k = 0; k < i.vector; ++k) {
    R *out = w.out<R>(i.out[k]);
    each_lane(good, [&](int lane) {
      M value;
      std::memcpy(&value, a.place[lane] + static_cast<size_t>(k) * sizeof(M), sizeof value);
      out[lane] = static_cast<R>(value);
    });
    each_lane(mask & ~good, [&](int lane) { out[lane] = static_cast<R>(~R{0}); });
  }
}

template <class M, class R>
void store(Warp &w, const Instruction &i, Mask mask) {
  Access a;
  a.space = i.space;
  a.use = Use::kWrite;
  a.bytes = static_cast<int>(sizeof(M)) * i.vector;
  lane_addresses(w, i.in[0], i.offset, a.address);
  alignas(16) std::byte data[kLanes][16];
  for (int k = 0; k < i.vector; ++k) {
    const R *in = w.in<R>(i.in[k + 1]);
    each_lane(mask, [&](int lane) {
      const M value = static_cast<M>(in[lane]);
      std::memcpy(data[lane] + static_cast<size_t>(k) * sizeof(M), &value, sizeof value);
    });
  }
  a.data = data[0];
  a.data_stride = sizeof data[0];
  const Mask good = checked(w, i, a, mask);
  each_lane(good, [&](int lane) { std::memcpy(a.place[lane], data[lane], static_cast<size_t>(a.bytes)); });
  if (i.strong) order_after(w, i, a, good);
}

// Kernel parameters and literals are the same for all lanes, and read at the start of every kernel.
template <class M, class R>
void load_parameter(Warp &w, const Instruction &i, Mask mask) {
  const uint64_t at = w.in<uint64_t>(i.in[0])[0];
  for (int k = 0; k < i.vector; ++k) {
    M value;
    std::memcpy(&value, w.run->parameters.data() + at + static_cast<size_t>(k) * sizeof(M), sizeof value);
    R *out = w.out<R>(i.out[k]);
    each_lane(mask, [&](int lane) { out[lane] = static_cast<R>(value); });
  }
}

template <template <class, class> class Pick>
Handler pick(Builder &b, Type type, int register_bytes) {
  const bool s = type.is_signed();
  switch (type.bits * 10 + register_bytes) {
    case 82:
      return s ? Pick<int8_t, uint16_t>::run : Pick<uint8_t, uint16_t>::run;
    case 84:
      return s ? Pick<int8_t, uint32_t>::run : Pick<uint8_t, uint32_t>::run;
    case 88:
      return s ? Pick<int8_t, uint64_t>::run : Pick<uint8_t, uint64_t>::run;
    case 162:
      return Pick<uint16_t, uint16_t>::run;
    case 164:
      return s ? Pick<int16_t, uint32_t>::run : Pick<uint16_t, uint32_t>::run;
    case 168:
      return s ? Pick<int16_t, uint64_t>::run : Pick<uint16_t, uint64_t>::run;
    case 324:
      return Pick<uint32_t, uint32_t>::run;
    case 328:
      return s ? Pick<int32_t, uint64_t>::run : Pick<uint32_t, uint64_t>::run;
    case 648:
      return Pick<uint64_t, uint64_t>::run;
    default:
      b.fail("a register of the wrong width");
  }
}
template <class M, class R>
struct Load {
  static constexpr Handler run = load<M, R>;
};
template <class M, class R>
struct Store {
  static constexpr Handler run = store<M, R>;
};
template <class M, class R>
struct LoadParameter {
  static constexpr Handler run = load_parameter<M, R>;
};

Space take_space(Builder &b) {
  if (b.take("global")) return Space::kGlobal;
  if (b.take("shared") || b.take("shared::cta") || b.take("shared::cluster")) return Space::kShared;
  if (b.take("local")) return Space::kLocal;
  if (b.take("const")) return Space::kConst;
  if (b.take("param") || b.take("param::entry") || b.take("param::func")) return Space::kParam;
  return Space::kGeneric;
}

void decode(Builder &b, bool loads) {
  Instruction &r = b.result;
  r.space = take_space(b);
  b.take_memory_order();
  b.take_cache_hints();
  const int vector = b.take_one({"v2", "v4"});
  r.vector = vector < 0 ? 1 : vector == 0 ? 2 : 4;
  Type type = b.take_type();
  if (type.lanes == 2) type = {Type::kBits, 32};
  if (b.args.size() == 3) b.args.pop_back();  // a cache policy
  b.expect(2, 2);
  const size_t value_at = loads ? 0 : 1, address_at = loads ? 1 : 0;
  b.address(address_at);
  // Parameters of a call, or of a function expanded in place, lie in local memory.
  const Arg &address = b.arg(address_at);
  if (r.space == Space::kParam && (address.space == Space::kLocal)) r.space = Space::kLocal;
  const bool kernel_parameter = r.space == Space::kParam && !address.based;
  if (r.space == Space::kParam && !loads) b.fail("a write to a kernel parameter");

  const Arg &value = b.arg(value_at);
  std::vector<Arg> single{value};
  const std::vector<Arg> &parts = value.kind == Arg::kVector ? value.parts : single;
  if (parts.size() != r.vector) b.fail("wrong number of elements");
  if (type.bytes() * r.vector > 16) b.fail("at most 16 bytes");
  int register_bytes = 0;
  for (size_t k = 0; k < parts.size(); ++k) {
    if (loads) {
      const int bytes = parts[k].kind == Arg::kRegister ? parts[k].reg.bytes : std::max(type.bytes(), 2);
      r.out[k] = b.target(parts[k], bytes);
      if (register_bytes != 0 && register_bytes != bytes) b.fail("elements of different widths");
      register_bytes = bytes;
    } else {
      r.in[k + 1] = b.any_width(parts[k], type);
      if (register_bytes != 0 && register_bytes != r.in[k + 1].bytes) b.fail("elements of different widths");
      register_bytes = r.in[k + 1].bytes;
    }
  }
  r.run = !loads             ? pick<Store>(b, type, register_bytes)
          : kernel_parameter ? pick<LoadParameter>(b, type, register_bytes)
                             : pick<Load>(b, type, register_bytes);
}

void no_operation(Warp &, const Instruction &, Mask) {}
void decode_nothing(Builder &b) {
  b.ignore_modifiers();
  b.result.run = no_operation;
}

}  // namespace

std::vector<Opcode> memory_opcodes() {
  return {
      {"ld", [](Builder &b) { decode(b, true); }},
      {"ldu", [](Builder &b) { decode(b, true); }},
      {"st", [](Builder &b) { decode(b, false); }},
      // Hints without an effect on results.
      {"prefetch", decode_nothing},
      {"prefetchu", decode_nothing},
      {"applypriority", decode_nothing},
      {"createpolicy", decode_nothing},
      {"cp.async.bulk.prefetch", decode_nothing},
  };
}

}  // namespace emulator
