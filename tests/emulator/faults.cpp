#include "faults.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <optional>
#include <set>
#include <unordered_map>

#include "builder.h"
#include "statements.h"

namespace emulator {

namespace {

// ---- Numbers in the text ----------------------------------------------------------------------------------------------

std::optional<int64_t> integer_of(std::string_view text) {
  const std::string copy(text);
  char *end = nullptr;
  const bool is_float = copy.size() > 1 && copy[0] == '0' && std::string_view("fFdD").find(copy[1]) != copy.npos;
  if (copy.empty() || is_float) return std::nullopt;
  const bool is_negative = copy[0] == '-';
  const uint64_t value = std::strtoull(copy.c_str() + (is_negative ? 1 : 0), &end, 0);
  if (end == copy.c_str() + (is_negative ? 1 : 0) || (*end != '\0' && *end != 'U')) return std::nullopt;
  return static_cast<int64_t>(is_negative ? 0 - value : value);
}

// ---- Memory -----------------------------------------------------------------------------------------------------------

constexpr std::string_view kAccesses[] = {"ld",       "ldu",      "st",       "atom",      "red",
                                          "ldmatrix", "stmatrix", "cp.async", "cp.reduce", "prefetch"};

// Reads or writes global or shared memory. Where parameters lie is no choice of the kernel's, nor is local memory.
bool is_access(const Statement &s) {
  if (s.has("param") || s.has("local") || s.has("commit_group") || s.has("wait_group") || s.has("wait_all"))
    return false;
  if (s.is("cp.async.mbarrier")) return false;
  return std::any_of(std::begin(kAccesses), std::end(kAccesses), [&](std::string_view name) { return s.is(name); });
}

// Bytes that one lane accesses.
int64_t access_bytes(const Statement &s) {
  if (s.is("ldmatrix") || s.is("stmatrix") || s.is("cp.async") || s.is("cp.reduce")) return 16;
  int64_t bytes = 4;
  for (size_t at = s.opcode.find('.'); at != s.opcode.npos; at = s.opcode.find('.', at + 1)) {
    const std::string_view word = s.opcode.substr(at + 1, s.opcode.find('.', at + 1) - at - 1);
    Type type;
    if (type_named(word, type)) bytes = std::max(1, type.bytes());
  }
  return bytes * (s.has("v2") ? 2 : s.has("v4") ? 4 : s.has("v8") ? 8 : 1);
}

// ---- Registers that reach an address ----------------------------------------------------------------------------------

constexpr std::string_view kArithmetic[] = {
    "add", "sub", "mul", "mad", "mul24", "mad24", "shl",  "shr", "and", "or",  "xor",  "not",  "neg",  "abs", "min",
    "max", "div", "rem", "cvt", "cvta",  "mov",   "selp", "bfe", "bfi", "shf", "lop3", "prmt", "shfl", "mapa"};

bool is_integer_arithmetic(const Statement &s) {
  if (s.has("f32") || s.has("f64") || s.has("f16") || s.has("bf16") || s.has("pred")) return false;
  return std::any_of(std::begin(kArithmetic), std::end(kArithmetic), [&](std::string_view name) { return s.is(name); });
}

// What one element, of what is accessed in the end, is in a source of `s`, if it is `unit` in the result.
int64_t unit_of_source(const Statement &s, size_t operand, int64_t unit) {
  const auto constant = [&](size_t k) { return k < s.operands.size() ? integer_of(s.operands[k].text) : std::nullopt; };
  if (s.is("shl")) {
    const auto shift = constant(2);
    return operand == 1 && shift && *shift < 60 ? std::max<int64_t>(1, unit >> *shift) : 1;
  }
  if (s.is("mul") || ((s.is("mad") || s.is("mad24")) && operand < 3)) {
    const auto factor = constant(operand == 1 ? 2 : 1);
    return factor && *factor > 0 ? std::max<int64_t>(1, unit / *factor) : 1;
  }
  if (s.is("shr") || s.is("div") || s.is("rem") || s.is("shfl")) return 1;
  return unit;
}

struct Flow {
  std::unordered_map<std::string, std::vector<size_t>> writers;  // of a register: statements
  std::map<std::string, int64_t> units;                          // of registers that reach an address: one element
};

Flow address_flow(const WrittenKernel &kernel) {
  Flow flow;
  for (size_t n = 0; n < kernel.statements.size(); ++n) {
    const Statement &s = kernel.statements[n];
    if (is_integer_arithmetic(s) && !s.operands.empty())
      for (const std::string &name : s.operands[0].registers) flow.writers[name].push_back(n);
  }
  std::vector<std::string> open;
  const auto reach = [&](const std::string &name, int64_t unit) {
    const auto [found, added] = flow.units.emplace(name, unit);
    if (!added && found->second <= unit) return;
    found->second = unit;
    open.push_back(name);
  };
  for (const Statement &s : kernel.statements) {
    if (!is_access(s)) continue;
    for (const WrittenOperand &o : s.operands)
      if (o.is_address())
        for (const std::string &name : o.registers) reach(name, access_bytes(s));
  }
  while (!open.empty()) {
    const std::string name = open.back();
    open.pop_back();
    const int64_t unit = flow.units.at(name);
    for (size_t n : flow.writers[name]) {
      const Statement &s = kernel.statements[n];
      const size_t last = s.is("shfl") ? 2 : s.operands.size();
      for (size_t k = 1; k < last; ++k)
        for (const std::string &source : s.operands[k].registers) reach(source, unit_of_source(s, k, unit));
    }
  }
  return flow;
}

// ---- Registers that reach a descriptor of wgmma, with the least by which they change it --------------------------------

std::map<std::string, int64_t> descriptor_units(const WrittenKernel &kernel, const Flow &flow) {
  std::map<std::string, int64_t> units;
  std::vector<std::string> open;
  const auto reach = [&](const std::string &name, int64_t unit) {
    if (units.emplace(name, unit).second) open.push_back(name);
  };
  for (const Statement &s : kernel.statements) {
    if (!s.is("wgmma.mma_async")) continue;
    for (size_t k = 1; k < 3 && k < s.operands.size(); ++k) {
      if (s.operands[k].text.front() == '{') continue;  // A in registers
      for (const std::string &name : s.operands[k].registers) reach(name, 1);
    }
  }
  while (!open.empty()) {
    const std::string name = open.back();
    open.pop_back();
    const auto writers = flow.writers.find(name);
    if (writers == flow.writers.end()) continue;
    for (size_t n : writers->second) {
      const Statement &s = kernel.statements[n];
      if (s.is("shfl") || s.operands.size() < 2) continue;
      const int64_t constant = s.operands.size() > 2 ? integer_of(s.operands[2].text).value_or(0) : 0;
      int64_t unit = units.at(name);
      if ((s.is("shr") || s.is("bfe")) && constant < 16) unit <<= constant;
      if (s.is("shl") && constant < 16) unit = std::max<int64_t>(1, unit >> constant);
      if (s.is("and")) unit = std::max(unit, constant & -constant);  // the compiler knows how a tile is aligned
      for (size_t k = 1; k < s.operands.size(); ++k)
        for (const std::string &source : s.operands[k].registers) reach(source, unit);
    }
  }
  return units;
}

// ---- The faults -------------------------------------------------------------------------------------------------------

class Finder {
 public:
  Finder(std::string_view ptx, std::string_view kernel)
      : ptx_(ptx),
        name_(kernel),
        kernel_(written_kernel(ptx, kernel)),
        flow_(address_flow(kernel_)),
        descriptor_units_(descriptor_units(kernel_, flow_)) {
    const Module module = load_module(ptx);
    for (InstructionInfo &i : module.instructions(kernel)) lines_.emplace(i.ptx_line, std::move(i.line));
  }

  std::vector<SeededFault> run() {
    find_decisions();
    find_float_bits();
    for (size_t n = 0; n < kernel_.statements.size(); ++n) {
      const Statement &s = kernel_.statements[n];
      synchronisation(s);
      order(n);
      predicate(s);
      offsets(s);
      descriptor(s);
      if (!step(s)) constants(s);
    }
    return std::move(faults_);
  }

 private:
  enum class Lines { kLost, kKept };
  // The replacement of a statement's text, which has lost its line breaks unless it says otherwise.
  void add(const Statement &s, FaultKind kind, std::string what, std::string replacement, Lines lines = Lines::kLost) {
    const std::string_view old = ptx_.substr(s.begin, s.end - s.begin);
    if (lines == Lines::kLost) replacement.append(static_cast<size_t>(std::count(old.begin(), old.end(), '\n')), '\n');
    Line line = lines_.count(s.line) != 0 ? lines_.at(s.line) : Line{"ptx", s.line, "ptx", s.line, ""};
    line.ptx = std::string(old);
    faults_.push_back({name_, kind, std::move(what), s.line, s.begin, s.end, std::move(replacement), std::move(line)});
  }

  // The statement with some of its text replaced.
  std::string edited(const Statement &s, size_t begin, size_t end, std::string_view text) const {
    return std::string(ptx_.substr(s.begin, begin - s.begin)) + std::string(text) +
           std::string(ptx_.substr(end, s.end - end));
  }
  std::string edited(const Statement &s, const WrittenOperand &o, std::string_view text) const {
    return edited(s, o.begin, o.end, text);
  }

  void synchronisation(const Statement &s) {
    constexpr std::string_view kRemoved[] = {"bar",
                                             "barrier",
                                             "fence",
                                             "membar",
                                             "mbarrier.init",
                                             "mbarrier.arrive",
                                             "mbarrier.arrive_drop",
                                             "mbarrier.expect_tx",
                                             "mbarrier.complete_tx",
                                             "cp.async.commit_group",
                                             "cp.async.wait_group",
                                             "cp.async.wait_all",
                                             "cp.async.mbarrier",
                                             "cp.async.bulk.commit_group",
                                             "cp.async.bulk.wait_group",
                                             "wgmma.fence",
                                             "wgmma.commit_group",
                                             "wgmma.wait_group",
                                             "griddepcontrol.wait",
                                             "griddepcontrol.launch_dependents"};
    // bar.red gives a number back; what uses it is left without a value, which is no fault of synchronisation.
    if (s.is("bar.red") || s.is("barrier.red") || s.is("bar.cta.red") || s.is("barrier.cta.red")) return;
    for (std::string_view name : kRemoved) {
      if (!s.is(name)) continue;
      add(s, FaultKind::kSynchronisation, std::string(s.opcode) + " removed", ";");
      break;
    }
    const auto changed = [&](size_t operand, int64_t by, const std::string &what) {
      if (operand >= s.operands.size()) return;
      const auto value = integer_of(s.operands[operand].text);
      if (value) add(s, FaultKind::kSynchronisation, what, edited(s, s.operands[operand], std::to_string(*value + by)));
    };
    if (s.is("cp.async.wait_group") || s.is("cp.async.bulk.wait_group") || s.is("wgmma.wait_group"))
      changed(0, 1, "wait for one group less");
    if (s.has("expect_tx")) changed(s.operands.size() - 1, 16, "expects 16 bytes more");
    if (s.is("mbarrier.init")) changed(1, 1, "expects one arrival more");
    if (s.is("mbarrier.try_wait") || s.is("mbarrier.test_wait"))
      add(s, FaultKind::kSynchronisation, "wait always succeeds", set(s, 0, true));
    if (s.has("parity") && s.operands.size() > 2)
      add(s, FaultKind::kSynchronisation, "wait of the other parity", with_changed(s, s.operands[2], "xor.b32", 1));
    const bool is_named =
        (s.is("bar") || s.is("barrier")) && !s.has("warp") && !s.has("cluster") && s.operands.size() == 2;
    if (is_named) {
      changed(0, 1, "the next barrier");
      changed(1, 32, "32 threads more");
    }
  }

  // The statement with a register or literal in it changed by `opcode`, within it alone.
  std::string with_changed(const Statement &s, const WrittenOperand &o, std::string_view opcode, int by) const {
    return "{ .reg .b32 changed; " + std::string(opcode) + " changed, " + std::string(o.text) + ", " +
           std::to_string(by) + "; " + edited(s, o, "changed") + " }";
  }

  // A wait for wgmma that comes behind the next arrival at an mbarrier: with it, its branch and the label behind it.
  void order(size_t n) {
    constexpr size_t kNear = 16;
    if (!kernel_.statements[n].is("wgmma.wait_group")) return;
    for (size_t k = n + 1; k + 1 < kernel_.statements.size() && k < n + kNear; ++k) {
      const Statement &s = kernel_.statements[k];
      if (s.is("wgmma") || s.is("bar") || s.is("barrier")) return;
      if (!s.is("mbarrier.arrive") || s.has("expect_tx")) continue;
      Statement both = kernel_.statements[n];
      const size_t end = kernel_.statements[k + 1].begin;
      const std::string wait(ptx_.substr(both.begin, both.end - both.begin));
      const std::string between(ptx_.substr(both.end, end - both.end));
      both.end = end;
      add(both, FaultKind::kSynchronisation, "released before the wait", between + wait + " ", Lines::kKept);
      return;
    }
  }

  // A field of a constant that becomes part of a descriptor.
  void descriptor(const Statement &s) {
    if (!is_integer_arithmetic(s) || s.operands.empty() || s.operands[0].registers.empty()) return;
    const auto unit = descriptor_units_.find(s.operands[0].registers[0]);
    if (unit == descriptor_units_.end() || !(s.is("add") || s.is("sub") || s.is("or") || s.has("b64"))) return;
    constexpr int64_t kLbo = int64_t{1} << 16, kSbo = int64_t{1} << 32, kField = 0x3fff;
    for (size_t k = 1; k < s.operands.size(); ++k) {
      const auto value = integer_of(s.operands[k].text);
      if (!value || !s.operands[k].registers.empty()) continue;
      const auto changed = [&](const std::string &what, int64_t to) {
        add(s, FaultKind::kDescriptor, what, edited(s, s.operands[k], std::to_string(to)));
      };
      const auto bits = static_cast<uint64_t>(*value);
      const bool is_wide = s.has("b64") || s.has("s64") || s.has("u64");
      if (is_wide && (*value > kField || *value < -kField)) {
        // CuTe and this project write 1 where LBO doesn't count.
        if ((*value / kLbo & kField) > 1) changed("LBO + 16", *value + kLbo);
        if ((*value / kSbo & kField) != 0) changed("SBO + 16", *value + kSbo);
        if (bits >> 62 != 0) changed("another swizzle", static_cast<int64_t>(bits ^ uint64_t{1} << 63));
      } else if (flow_.units.count(s.operands[0].registers[0]) == 0) {
        changed("address moved", *value + unit->second);
      }
    }
  }

  // Predicates that decide: guards, and what leads to them; and choices.
  void find_decisions() {
    std::unordered_map<std::string, std::vector<size_t>> combined;
    std::vector<std::string> open;
    const auto decide = [&](const std::string &name, bool guards) {
      const bool added = guards ? guards_.insert(name).second : false;
      const bool chosen = choices_.insert(name).second;
      if (added || chosen) open.push_back(name);
    };
    for (size_t n = 0; n < kernel_.statements.size(); ++n) {
      const Statement &s = kernel_.statements[n];
      if (!s.guard.empty()) decide(s.guard, true);
      if (s.is("selp") && s.operands.size() == 4)
        for (const std::string &name : s.operands[3].registers) decide(name, false);
      if (s.is("wgmma.mma_async") && s.operands.size() > 3)
        for (const std::string &name : s.operands[3].registers) decide(name, false);
      const bool is_logic = s.has("pred") || (s.is("setp") && s.operands.size() > 3);
      if (is_logic && !s.operands.empty())
        for (const std::string &name : s.operands[0].registers) combined[name].push_back(n);
    }
    while (!open.empty()) {
      const std::string name = open.back();
      open.pop_back();
      for (size_t n : combined[name]) {
        const Statement &s = kernel_.statements[n];
        for (size_t k = s.is("setp") ? 3 : 1; k < s.operands.size(); ++k)
          for (const std::string &source : s.operands[k].registers) decide(source, guards_.count(name) != 0);
      }
    }
  }

  // mov.pred in place of what writes the predicates of an operand; of "p|q", q is the opposite.
  std::string set(const Statement &s, size_t operand, bool value) const {
    const std::string guard = s.guard_text.empty() ? "" : std::string(s.guard_text) + " ";
    std::string_view names = s.operands[operand].text;
    std::string text;
    for (bool to = value; !names.empty(); to = !to) {
      const size_t bar = std::min(names.find('|'), names.size());
      const std::string_view name = names.substr(0, bar);
      if (name != "_") text += guard + "mov.pred " + std::string(name) + ", " + (to ? "-1" : "0") + "; ";
      names.remove_prefix(std::min(bar + 1, names.size()));
    }
    return text;
  }

  // Bits of a float, taken apart as integers: what functions of the math library do inside.
  void find_float_bits() {
    const auto is_float = [](const std::string &name) { return name.substr(0, 2) == "%f"; };
    for (bool found = true; found;) {
      found = false;
      for (const Statement &s : kernel_.statements) {
        const bool copies = s.is("mov") && s.operands.size() == 2;
        const bool computes = s.is("and") || s.is("add") || s.is("sub") || s.is("shl") || s.is("shr");
        if ((!copies && !computes) || s.operands[0].registers.size() != 1 || s.operands[1].registers.size() != 1)
          continue;
        const std::string &to = s.operands[0].registers[0], &from = s.operands[1].registers[0];
        if (!is_float(to) && (is_float(from) || float_bits_.count(from) != 0)) found |= float_bits_.insert(to).second;
      }
    }
  }

  // Whether the high halves of both operands of a 64-bit division are 0: it then takes a shorter way to the same result.
  bool chooses_division(const Statement &s) const {
    if (s.operands[2].text != "0" || s.operands[1].registers.size() != 1) return false;
    const auto writers = flow_.writers.find(s.operands[1].registers[0]);
    if (writers == flow_.writers.end()) return false;
    return std::any_of(writers->second.begin(), writers->second.end(), [&](size_t n) {
      const Statement &other = kernel_.statements[n];
      return other.is("and") && other.operands.size() == 3 && other.operands[2].text == "-4294967296";
    });
  }

  void predicate(const Statement &s) {
    if (!s.is("setp") || s.operands.size() < 3 || chooses_division(s)) return;
    for (const std::string &name : s.operands[1].registers)
      if (float_bits_.count(name) != 0) return;
    const bool is_float = s.has("f32") || s.has("f64") || s.has("f16") || s.has("f16x2") || s.has("bf16");
    const std::set<std::string> &wanted = is_float ? guards_ : choices_;
    const auto &names = s.operands[0].registers;
    if (std::none_of(names.begin(), names.end(), [&](const std::string &name) { return wanted.count(name) != 0; }))
      return;
    const std::string of_floats = is_float ? " of floats" : "";
    add(s, FaultKind::kPredicate, "setp" + of_floats + " always true", set(s, 0, true));
    add(s, FaultKind::kPredicate, "setp" + of_floats + " always false", set(s, 0, false));
    if (is_float) return;
    constexpr std::pair<std::string_view, std::string_view> kOffByOne[] = {
        {"lt", "le"}, {"le", "lt"}, {"gt", "ge"}, {"ge", "gt"}, {"lo", "ls"}, {"ls", "lo"}, {"hi", "hs"}, {"hs", "hi"}};
    const std::string_view compare = s.opcode.substr(5, s.opcode.find('.', 5) - 5);
    for (const auto &[from, to] : kOffByOne) {
      const size_t at = static_cast<size_t>(s.opcode.data() - ptx_.data()) + 5;
      if (compare == from)
        add(s, FaultKind::kPredicate, std::string(from) + " for " + std::string(to),
            edited(s, at, at + from.size(), to));
    }
  }

  void offsets(const Statement &s) {
    if (!is_access(s)) return;
    const int64_t bytes = access_bytes(s);
    for (const WrittenOperand &o : s.operands) {
      if (!o.is_address()) continue;
      if (o.text.find(',') != o.text.npos) {
        coordinates(s, o);
        continue;
      }
      add(s, FaultKind::kAddress, "offset + " + std::to_string(bytes),
          edited(s, o.end - 1, o.end, "+" + std::to_string(bytes) + "]"));
    }
  }

  // Of a tensor copy the operand is [map, {coordinates}].
  void coordinates(const Statement &s, const WrittenOperand &o) {
    size_t begin = o.text.find('{');
    for (int d = 0; begin != o.text.npos; ++d) {
      const size_t end = o.text.find_first_of(",}", begin + 1);
      if (end == o.text.npos) return;
      const std::string_view text = o.text.substr(begin + 1, end - begin - 1);
      const size_t first = text.find_first_not_of(" \t\n");
      WrittenOperand coordinate;
      coordinate.text = text.substr(std::min(first, text.size()));
      coordinate.begin = static_cast<size_t>(coordinate.text.data() - ptx_.data());
      coordinate.end = coordinate.begin + coordinate.text.size();
      add(s, FaultKind::kAddress, "coordinate " + std::to_string(d) + " + 1",
          with_changed(s, coordinate, "add.s32", 1));
      begin = o.text[end] == ',' ? end : o.text.npos;
    }
  }

  // Whether the statement moves a register on, as loops do: %r1 = %r1 + 4, maybe by way of another register.
  bool steps(const Statement &s) const {
    const auto &to = s.operands[0].registers, &from = s.operands[1].registers;
    if (to.size() != 1 || from.size() != 1) return false;
    if (to == from) return true;
    const auto writers = flow_.writers.find(from[0]);
    if (writers == flow_.writers.end()) return false;
    return std::any_of(writers->second.begin(), writers->second.end(), [&](size_t n) {
      const Statement &other = kernel_.statements[n];
      return other.is("mov") && other.operands.size() == 2 && other.operands[1].registers == to;
    });
  }

  // Whether the statement shifts to the sign of a number, or what is added before it is divided from there.
  bool makes_sign(const Statement &s) const {
    const auto shifts_all = [](const Statement &x) {
      return x.is("shr") && x.operands.size() == 3 && (x.operands[2].text == "31" || x.operands[2].text == "63");
    };
    if (!s.is("shr") || s.operands[1].registers.empty() || shifts_all(s)) return shifts_all(s);
    const auto writers = flow_.writers.find(s.operands[1].registers[0]);
    if (writers == flow_.writers.end() || writers->second.empty()) return false;
    return std::all_of(writers->second.begin(), writers->second.end(),
                       [&](size_t n) { return shifts_all(kernel_.statements[n]); });
  }

  bool step(const Statement &s) {
    if (!is_integer_arithmetic(s) || s.operands.size() != 3) return false;
    const bool is_shift = s.is("shl") || s.is("shr");
    const auto value = integer_of(s.operands[2].text);
    if (!value || !(s.is("add") || s.is("sub") || is_shift) || !steps(s)) return false;
    add(s, FaultKind::kStep, is_shift ? "step shifts one more" : "step doubled",
        edited(s, s.operands[2], std::to_string(is_shift ? *value + 1 : 2 * *value)));
    return true;
  }

  void constants(const Statement &s) {
    if (!is_integer_arithmetic(s) || s.operands.size() < 2 || s.is("lop3") || s.is("prmt") || s.is("shfl")) return;
    std::optional<int64_t> unit;
    for (const std::string &name : s.operands[0].registers) {
      const auto found = flow_.units.find(name);
      if (found != flow_.units.end()) unit = std::min(unit.value_or(found->second), found->second);
    }
    if (!unit) return;
    for (size_t k = 1; k < s.operands.size(); ++k) {
      const WrittenOperand &o = s.operands[k];
      if (!o.registers.empty()) continue;
      const auto value = integer_of(o.text);
      if (!value) {  // the address of a variable
        if (s.is("mov") && o.text.front() != '{')
          add(s, FaultKind::kAddress, "address + " + std::to_string(*unit),
              edited(s, o, std::string(o.text) + "+" + std::to_string(*unit)));
        continue;
      }
      if (k == 2 && makes_sign(s)) continue;
      const bool is_mask = s.is("and") || s.is("or") || s.is("xor"), is_shift = (s.is("shl") || s.is("shr")) && k == 2;
      const int64_t by = is_shift || s.is("bfe") || s.is("bfi") || s.is("shf") ? 1 : *unit;
      const std::string opcode(s.opcode.substr(0, s.opcode.find('.')));
      add(s, FaultKind::kAddress, "constant of " + opcode + (is_mask ? " ^ " : " + ") + std::to_string(by),
          edited(s, o, std::to_string(is_mask ? *value ^ by : *value + by)));
    }
  }

  std::string_view ptx_;
  std::string name_;
  WrittenKernel kernel_;
  Flow flow_;
  std::map<std::string, int64_t> descriptor_units_;
  std::unordered_map<int, Line> lines_;     // by PTX line
  std::set<std::string> guards_, choices_;  // predicates that decide what runs; all that decide anything
  std::set<std::string> float_bits_;        // registers
  std::vector<SeededFault> faults_;
};

}  // namespace

const char *name_of(FaultKind kind) {
  constexpr const char *kNames[] = {"synchronisation", "predicate", "address", "descriptor", "step"};
  return kNames[static_cast<size_t>(kind)];
}

std::vector<SeededFault> faults_of(std::string_view ptx, std::string_view kernel) { return Finder(ptx, kernel).run(); }

std::string with_fault(std::string_view ptx, const SeededFault &fault) {
  return std::string(ptx.substr(0, fault.begin)) + fault.replacement + std::string(ptx.substr(fault.end));
}

}  // namespace emulator
