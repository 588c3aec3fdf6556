// Operands: names of registers and variables, literals, addresses, vectors.
#include "kernel_parser.h"

namespace emulator {

namespace {

const std::unordered_map<std::string_view, int> &special_table() {
  static const std::unordered_map<std::string_view, int> table = {
      {"%tid.x", kTidX},
      {"%tid.y", kTidY},
      {"%tid.z", kTidZ},
      {"%ntid.x", kNtidX},
      {"%ntid.y", kNtidY},
      {"%ntid.z", kNtidZ},
      {"%ctaid.x", kCtaidX},
      {"%ctaid.y", kCtaidY},
      {"%ctaid.z", kCtaidZ},
      {"%nctaid.x", kNctaidX},
      {"%nctaid.y", kNctaidY},
      {"%nctaid.z", kNctaidZ},
      {"%laneid", kLaneId},
      {"%warpid", kWarpId},
      {"%nwarpid", kNwarpId},
      {"%smid", kSmId},
      {"%nsmid", kNsmId},
      {"%gridid", kGridId},
      {"%lanemask_eq", kMaskEq},
      {"%lanemask_le", kMaskLe},
      {"%lanemask_lt", kMaskLt},
      {"%lanemask_ge", kMaskGe},
      {"%lanemask_gt", kMaskGt},
      {"%dynamic_smem_size", kDynamicSharedBytes},
      {"%total_smem_size", kTotalSharedBytes},
      // Each block is a cluster of its own.
      {"%is_explicit_cluster", kZero},
      {"%cluster_ctarank", kZero},
      {"%cluster_nctarank", kOne},
      {"%cluster_ctaid.x", kZero},
      {"%cluster_ctaid.y", kZero},
      {"%cluster_ctaid.z", kZero},
      {"%cluster_nctaid.x", kOne},
      {"%cluster_nctaid.y", kOne},
      {"%cluster_nctaid.z", kOne},
      {"%clusterid.x", kCtaidX},
      {"%clusterid.y", kCtaidY},
      {"%clusterid.z", kCtaidZ},
      {"%nclusterid.x", kNctaidX},
      {"%nclusterid.y", kNctaidY},
      {"%nclusterid.z", kNctaidZ},
      // Not constant; whoever times itself gets the same time always.
      {"%clock", kClock},
      {"%clock_hi", kClock},
      {"%clock64", kClock64},
      {"%globaltimer", kClock64},
      {"%globaltimer_lo", kClock},
      {"%globaltimer_hi", kClock},
  };
  return table;
}

}  // namespace

const Operand *KernelParser::find_register(const std::string &name) const {
  for (int s = scope_; s >= 0; s = scopes_[static_cast<size_t>(s)].parent) {
    const auto &registers = scopes_[static_cast<size_t>(s)].registers;
    const auto found = registers.find(name);
    if (found != registers.end()) return &found->second;
  }
  return nullptr;
}

const Symbol *KernelParser::find_symbol(const std::string &name) const {
  for (int s = scope_; s >= 0; s = scopes_[static_cast<size_t>(s)].parent) {
    const auto &symbols = scopes_[static_cast<size_t>(s)].symbols;
    const auto found = symbols.find(name);
    if (found != symbols.end()) return &found->second;
  }
  const auto found = m_.symbols.find(name);
  return found == m_.symbols.end() ? nullptr : &found->second;
}

Arg KernelParser::word_operand(Cursor &c) {
  Arg arg;
  const Token &token = c.peek();
  if (token.kind != Token::kWord) c.fail("expected an operand, got '" + std::string(token.text) + "'");
  const std::string name(token.text);
  const char first = name[0];
  if (name == "_") {
    c.next();
    return arg;
  }
  if (name == "WARP_SZ") {
    c.next();
    arg.kind = Arg::kInteger;
    arg.value = kLanes;
    return arg;
  }
  if (first >= '0' && first <= '9') {
    if (first == '0' && name.size() == 10 && (name[1] == 'f' || name[1] == 'F')) {
      arg.kind = Arg::kFloat;
      arg.float_bits = 32;
      arg.value = std::strtoull(name.c_str() + 2, nullptr, 16);
      c.next();
    } else if (first == '0' && name.size() == 18 && (name[1] == 'd' || name[1] == 'D')) {
      arg.kind = Arg::kFloat;
      arg.float_bits = 64;
      arg.value = std::strtoull(name.c_str() + 2, nullptr, 16);
      c.next();
    } else if (name.find('.') != name.npos) {
      arg.kind = Arg::kFloat;
      arg.float_bits = 64;
      arg.value = bits_as<uint64_t>(std::strtod(name.c_str(), nullptr));
      c.next();
    } else {
      arg.kind = Arg::kInteger;
      arg.value = c.integer();
    }
    return arg;
  }
  c.next();
  if (const Operand *reg = find_register(name)) {
    arg.kind = reg->bytes == 1 ? Arg::kPredicate : Arg::kRegister;
    arg.reg = *reg;
    return arg;
  }
  if (const auto special = special_table().find(name); special != special_table().end()) {
    arg.kind = Arg::kRegister;
    arg.reg = {special_offset(special->second), 0, static_cast<uint8_t>(special_bytes(special->second))};
    return arg;
  }
  if (const Symbol *symbol = find_symbol(name)) {
    arg.kind = Arg::kSymbol;
    arg.name = name;
    arg.value = symbol->value;
    arg.space = symbol->kind == Symbol::kKernelParameter  ? Space::kParam
                : symbol->kind == Symbol::kLocalParameter ? Space::kLocal
                                                          : Space::kGeneric;
    return arg;
  }
  c.fail("unknown name " + name);
}

Arg KernelParser::operand(Cursor &c) {
  Arg arg;
  if (c.take("!")) {
    arg = word_operand(c);
    arg.negated = true;
    return arg;
  }
  if (c.take("-")) {
    arg = word_operand(c);
    if (arg.kind == Arg::kFloat) {
      arg.value ^= uint64_t{1} << (arg.float_bits - 1);
    } else if (arg.kind == Arg::kInteger) {
      arg.value = 0 - arg.value;
    } else {
      c.fail("a minus before something that isn't a number");
    }
    return arg;
  }
  if (c.take("{")) {
    arg.kind = Arg::kVector;
    if (!c.take("}")) {
      do arg.parts.push_back(operand(c));
      while (c.take(","));
      c.expect("}");
    }
    return arg;
  }
  if (c.take("[")) {
    arg = operand(c);
    if (arg.kind == Arg::kRegister) {
      arg.based = true;
      arg.value = 0;
    }
    arg.kind = Arg::kAddress;
    while (c.peek().is("+") || c.peek().is("-")) {
      if (c.take("-"))
        arg.value -= c.integer();
      else {
        c.expect("+");
        arg.value += c.integer();
      }
    }
    if (c.take(",")) arg.parts.push_back(operand(c));  // [map, {x, y}]
    c.expect("]");
    return arg;
  }
  arg = word_operand(c);
  if (arg.kind == Arg::kSymbol && (c.peek().is("+") || c.peek().is("-"))) {
    const bool minus = c.next().is("-");
    const uint64_t offset = c.integer();
    arg.value += minus ? 0 - offset : offset;
  }
  if (c.take("|")) arg.parts.push_back(word_operand(c));
  return arg;
}

}  // namespace emulator
