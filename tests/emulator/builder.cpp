#include "builder.h"

#include <algorithm>
#include <cmath>

namespace emulator {

bool type_named(std::string_view name, Type &type) {
  struct Named {
    std::string_view name;
    Type type;
  };
  static constexpr Named kTypes[] = {
      {"b8", {Type::kBits, 8}},
      {"b16", {Type::kBits, 16}},
      {"b32", {Type::kBits, 32}},
      {"b64", {Type::kBits, 64}},
      {"u8", {Type::kUnsigned, 8}},
      {"u16", {Type::kUnsigned, 16}},
      {"u32", {Type::kUnsigned, 32}},
      {"u64", {Type::kUnsigned, 64}},
      {"s8", {Type::kSigned, 8}},
      {"s16", {Type::kSigned, 16}},
      {"s32", {Type::kSigned, 32}},
      {"s64", {Type::kSigned, 64}},
      {"u16x2", {Type::kUnsigned, 16, 2}},
      {"s16x2", {Type::kSigned, 16, 2}},
      {"f16", {Type::kF16, 16}},
      {"f16x2", {Type::kF16, 16, 2}},
      {"bf16", {Type::kBf16, 16}},
      {"bf16x2", {Type::kBf16, 16, 2}},
      {"tf32", {Type::kTf32, 32}},
      {"f32", {Type::kFloat, 32}},
      {"f64", {Type::kFloat, 64}},
      {"pred", {Type::kPredicate, 32}},
  };
  for (const Named &named : kTypes) {
    if (named.name != name) continue;
    type = named.type;
    return true;
  }
  return false;
}

void Builder::fail(const std::string &what) const { throw ParseError(line_, what + ": " + text_); }

bool Builder::take(std::string_view modifier) {
  const auto found = std::find(modifiers_.begin(), modifiers_.end(), modifier);
  if (found == modifiers_.end()) return false;
  modifiers_.erase(found);
  return true;
}

bool Builder::has(std::string_view modifier) const {
  return std::find(modifiers_.begin(), modifiers_.end(), modifier) != modifiers_.end();
}

int Builder::take_one(std::initializer_list<std::string_view> modifiers) {
  int index = 0;
  for (std::string_view modifier : modifiers) {
    if (take(modifier)) return index;
    ++index;
  }
  return -1;
}

int Builder::take_next(std::initializer_list<std::string_view> modifiers) {
  for (auto modifier = modifiers_.begin(); modifier != modifiers_.end(); ++modifier) {
    const auto found = std::find(modifiers.begin(), modifiers.end(), *modifier);
    if (found == modifiers.end()) continue;
    modifiers_.erase(modifier);
    return static_cast<int>(found - modifiers.begin());
  }
  return -1;
}

bool Builder::next_is_type() const {
  Type type;
  return std::any_of(modifiers_.begin(), modifiers_.end(), [&](std::string_view m) { return type_named(m, type); });
}

Type Builder::take_type() {
  Type type;
  for (auto modifier = modifiers_.begin(); modifier != modifiers_.end(); ++modifier) {
    if (!type_named(*modifier, type)) continue;
    modifiers_.erase(modifier);
    return type;
  }
  fail("no type");
}

Rounding Builder::take_rounding() {
  switch (take_one({"rn", "rz", "rm", "rp", "rna"})) {
    case 1:
      return Rounding::kZero;
    case 2:
      return Rounding::kDown;
    case 3:
      return Rounding::kUp;
    case 4:
      return Rounding::kAway;
    default:
      return Rounding::kNearest;
  }
}

void Builder::take_memory_order() {
  if (take("weak")) {
  } else if (take("volatile") || take("relaxed") || take("mmio")) {
    result.strong = true;
  } else if (take("acquire")) {
    result.strong = result.acquire = true;
  } else if (take("release")) {
    result.strong = result.release = true;
  } else if (take("acq_rel") || take("sc")) {
    result.strong = result.acquire = result.release = true;
  }
  take_scope();
}

void Builder::take_scope() {
  const int scope = take_one({"cta", "cluster", "gpu", "gl", "sys"});
  result.scope = scope == 0 || scope == 1 ? Scope::kBlock : Scope::kDevice;
}

void Builder::take_cache_hints() {
  take_one({"ca", "cg", "cs", "cv", "lu", "wb", "wt"});
  take("nc");
  while (take_one({"L1::evict_normal", "L1::evict_unchanged", "L1::evict_first", "L1::evict_last", "L1::no_allocate",
                   "L2::evict_normal", "L2::evict_first", "L2::evict_last", "L2::cache_hint", "L2::64B", "L2::128B",
                   "L2::256B"}) >= 0) {
  }
}

void Builder::finish() const {
  if (!modifiers_.empty()) fail("unknown modifier ." + std::string(modifiers_.front()));
}

void Builder::expect(size_t least, size_t most) const {
  if (args.size() < least || args.size() > most) fail("wrong number of operands");
}

const Arg &Builder::arg(size_t i) const {
  if (i >= args.size()) fail("too few operands");
  return args[i];
}

Operand Builder::literal(uint64_t value, int bytes) {
  if (bytes < 8) value &= (uint64_t{1} << (8 * bytes)) - 1;
  const size_t index = kernel_.literal_index.emplace(std::pair(value, bytes), kernel_.literals.size()).first->second;
  if (index == kernel_.literals.size()) kernel_.literals.push_back({value, static_cast<uint8_t>(bytes)});
  return {static_cast<uint32_t>(index * kLiteralBytes), 1, static_cast<uint8_t>(bytes)};
}

Operand Builder::any_width(const Arg &arg, Type type) {
  switch (arg.kind) {
    case Arg::kRegister:
      return arg.reg;
    case Arg::kInteger:
    case Arg::kSymbol:
      return literal(arg.value, std::max(type.bytes(), 2));
    case Arg::kFloat: {
      const double x = arg.float_bits == 64 ? bits_as<double>(arg.value)
                                            : static_cast<double>(bits_as<float>(static_cast<uint32_t>(arg.value)));
      if (arg.float_bits == type.bits || !type.is_float()) return literal(arg.value, type.bytes());
      if (type.kind == Type::kFloat && type.bits == 64) return literal(bits_as<uint64_t>(x), 8);
      if (type.kind == Type::kFloat) return literal(bits_as<uint32_t>(static_cast<float>(x)), 4);
      return literal(type.kind == Type::kF16 ? to_f16(x) : to_bf16(x), 2);
    }
    default:
      fail("an operand of the wrong kind");
  }
}

Operand Builder::source(const Arg &arg, Type type) {
  const Operand operand = any_width(arg, type);
  if (operand.bytes != std::max(type.bytes(), 2)) fail("an operand whose width isn't that of the type");
  return operand;
}

Operand Builder::target(const Arg &arg, int bytes) {
  if (arg.kind == Arg::kSink) return kernel_.new_register(bytes);
  if (arg.kind != Arg::kRegister) fail("the result must go to a register");
  if (arg.reg.bytes != bytes) fail("a result whose width isn't that of the type");
  return arg.reg;
}

Operand Builder::predicate(const Arg &arg, bool &negated) {
  if (arg.kind == Arg::kInteger) {
    negated = false;
    return literal(arg.value != 0 ? ~uint32_t{0} : 0, 4);
  }
  if (arg.kind != Arg::kPredicate) fail("a predicate is wanted");
  negated = arg.negated;
  return arg.reg;
}

void Builder::address(size_t i) {
  const AddressOperand address = address_of(arg(i));
  result.in[0] = address.base;
  if (arg(i).based) result.offset = address.offset;
}

AddressOperand Builder::address_of(const Arg &a) {
  if (a.kind != Arg::kAddress) fail("an address in brackets is wanted");
  if (a.based) return {a.reg, static_cast<int64_t>(a.value)};
  return {literal(a.value, 8), 0};
}

void Builder::add_shape(BulkShape shape) {
  result.target = static_cast<uint32_t>(kernel_.bulk_shapes.size());
  kernel_.bulk_shapes.push_back(shape);
}

void Builder::add_shape(MatrixShape shape) {
  result.target = static_cast<uint32_t>(kernel_.matrix_shapes.size());
  kernel_.matrix_shapes.push_back(std::move(shape));
}

}  // namespace emulator
