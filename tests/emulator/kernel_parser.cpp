// A kernel's body: declarations, labels, instructions, calls.
#include "kernel_parser.h"

#include <algorithm>
#include <set>

namespace emulator {

namespace {

using Decode = void (*)(Builder &);

// Decoders of an opcode by the kind of its type, see Opcode.
struct Decoders {
  Decode any = nullptr, integers = nullptr, floats = nullptr, halves = nullptr;
  Decode of(Opcode::Types types) const {
    if (any != nullptr) return any;
    return types == Opcode::kFloats ? floats : types == Opcode::kHalves ? halves : integers;
  }
};

const std::unordered_map<std::string_view, Decoders> &opcode_table() {
  static const auto table = [] {
    std::unordered_map<std::string_view, Decoders> all;
    for (auto list :
         {integer_opcodes, float_opcodes, half_opcodes, convert_opcodes, data_opcodes, memory_opcodes, atomic_opcodes,
          copy_opcodes, bulk_opcodes, mbarrier_opcodes, matrix_opcodes, wgmma_opcodes, warp_opcodes, control_opcodes}) {
      for (const Opcode &opcode : list()) {
        Decoders &d = all[opcode.name];
        (opcode.types == Opcode::kAny        ? d.any
         : opcode.types == Opcode::kIntegers ? d.integers
         : opcode.types == Opcode::kFloats   ? d.floats
                                             : d.halves) = opcode.decode;
      }
    }
    return all;
  }();
  return table;
}

// What the last type among the modifiers is: "add.rn.f32" is of floats.
Opcode::Types types_of(const std::vector<std::string_view> &words) {
  Opcode::Types types = Opcode::kIntegers;
  for (std::string_view word : words) {
    Type type;
    if (!type_named(word, type)) continue;
    types = type.kind == Type::kF16 || type.kind == Type::kBf16     ? Opcode::kHalves
            : type.kind == Type::kFloat || type.kind == Type::kTf32 ? Opcode::kFloats
                                                                    : Opcode::kIntegers;
  }
  return types;
}

}  // namespace

Kernel KernelParser::run() {
  kernel_.info.name = entry_.name;
  kernel_.info.max_threads = entry_.max_threads;
  new_scope();
  for (int s = 0; s < kSpecials; ++s) kernel_.new_register(special_bytes(s));
  for (const Declaration &d : entry_.parameters) {
    const size_t offset = round_up(kernel_.parameter_bytes, std::max<size_t>(d.align, 1));
    kernel_.parameters.push_back({d.name, offset, d.bytes});
    kernel_.parameter_bytes = offset + d.bytes;
    kernel_.info.parameter_bytes.push_back(d.bytes);
    scopes_[0].symbols[d.name] = {Symbol::kKernelParameter, offset, d.bytes};
  }
  lay_out_shared();
  Cursor c(m_.tokens, entry_.body);
  body(c);
  Instruction end;
  end.control = Control::kExit;
  end.opcode = opcode_index("ret");
  append(end);
  resolve();
  mark_matrix_registers();
  kernel_.info.static_shared_bytes = kernel_.static_shared_bytes;
  kernel_.info.local_bytes = kernel_.local_bytes = round_up(kernel_.local_bytes, 16);
  kernel_.register_bytes = round_up(kernel_.register_bytes, 64);
  return std::move(kernel_);
}

// Static variables first, those of the module that the kernel may name and its own; dynamic ones behind them.
void KernelParser::lay_out_shared() {
  std::set<std::string_view> named;
  const auto scan = [&](size_t open) {
    Cursor block(m_.tokens, open);
    block.skip_block("{", "}");
    for (size_t i = open; i < block.position(); ++i) named.insert(m_.tokens[i].text);
    return block.position();
  };
  const size_t end = scan(entry_.body);
  for (const auto &[name, f] : m_.functions) {
    if (f.body != 0) scan(f.body);
  }
  uint64_t at = 0;
  const auto place = [&](const Declaration &d) {
    at = round_up(at, std::max<size_t>(d.align, 1));
    scopes_[0].symbols[d.name] = {Symbol::kShared, kSharedStart + at, d.bytes};
    at += d.bytes;
  };
  for (const auto &[d, is_extern] : m_.shared) {
    if (!is_extern && named.count(d.name) != 0) place(d);
  }
  for (size_t i = entry_.body; i < end; ++i) {
    if (!m_.tokens[i].is(".shared")) continue;
    Cursor c(m_.tokens, i + 1);
    place(c.declaration());
  }
  kernel_.static_shared_bytes = at;
  for (const auto &[d, is_extern] : m_.shared) {
    if (is_extern && named.count(d.name) != 0) kernel_.dynamic_align = std::max(kernel_.dynamic_align, d.align);
  }
  for (const auto &[d, is_extern] : m_.shared) {
    const uint64_t offset = round_up(kSharedStart + at, kernel_.dynamic_align);
    if (is_extern) scopes_[0].symbols[d.name] = {Symbol::kDynamicShared, offset, 0};
  }
}

void KernelParser::body(Cursor &c) {
  c.expect("{");
  const int outer = scope_;
  new_scope();
  while (!c.take("}")) statement(c);
  scope_ = outer;
}

void KernelParser::statement(Cursor &c) {
  if (c.at_end()) c.fail("the text ends inside a function");
  if (c.peek().is("{")) return body(c);
  if (c.take(";")) return;
  const Token &token = c.peek();
  if (token.kind == Token::kWord && c.peek(1).is(":")) {
    const std::string label(token.text);
    c.next();
    c.next();
    if (c.take(".branchtargets")) {
      kernel_.tables.emplace_back();
      const size_t table = kernel_.tables.size() - 1;
      scopes_[static_cast<size_t>(scope_)].tables[label] = static_cast<uint32_t>(table);
      do {
        references_.push_back(
            {std::string(c.next().text), scope_, token.line, 0, std::pair(table, kernel_.tables[table].size())});
        kernel_.tables[table].push_back(0);
      } while (c.take(","));
      c.expect(";");
    } else if (c.take(".callprototype")) {
      while (!c.take(";")) c.next();
    } else {
      scopes_[static_cast<size_t>(scope_)].labels[label] = static_cast<uint32_t>(kernel_.code.size());
    }
    return;
  }
  if (token.kind == Token::kWord && token.text[0] == '.') {
    if (token.is(".reg")) return declare_registers(c);
    if (token.is(".local") || token.is(".param")) return declare_local(c);
    if (token.is(".loc")) return location(c);
    if (token.is(".shared") || token.is(".pragma")) {
      while (!c.take(";")) c.next();
      return;
    }
    c.fail("unknown directive " + std::string(token.text));
  }
  instruction(c);
}

void KernelParser::declare_registers(Cursor &c) {
  c.expect(".reg");
  Type type{};
  int vector = 1;
  while (c.peek().text.substr(0, 1) == ".") {
    const std::string_view name = c.next().text.substr(1);
    if (name == "v2" || name == "v4") {
      vector = name == "v2" ? 2 : 4;
    } else if (!type_named(name, type)) {
      c.fail("unknown register type ." + std::string(name));
    }
  }
  if (vector != 1) c.fail("vector registers aren't supported");
  const int bytes = type.kind == Type::kPredicate ? 1 : std::max(type.bytes(), 2);
  auto &registers = scopes_[static_cast<size_t>(scope_)].registers;
  do {
    const std::string name(c.next().text);
    if (c.take("<")) {
      const uint64_t count = c.integer();
      c.expect(">");
      for (uint64_t i = 0; i < count; ++i) registers[name + std::to_string(i)] = kernel_.new_register(bytes);
    } else {
      registers[name] = kernel_.new_register(bytes);
    }
  } while (c.take(","));
  c.expect(";");
}

void KernelParser::declare_local(Cursor &c) {
  const bool parameter = c.next().is(".param");
  const Declaration d = c.declaration();
  c.expect(";");
  // Parameters as wide as a register, whatever type the other side reads them with.
  kernel_.local_bytes = round_up(kernel_.local_bytes, std::max<size_t>(d.align, 8));
  scopes_[static_cast<size_t>(scope_)].symbols[d.name] = {parameter ? Symbol::kLocalParameter : Symbol::kLocal,
                                                          kernel_.local_bytes, d.bytes};
  kernel_.local_bytes += std::max<size_t>(d.bytes, 8);
}

// .loc file line column[, function_name label[+offset], inlined_at file line column]
void KernelParser::location(Cursor &c) {
  c.expect(".loc");
  const auto place = [&] {
    const uint64_t file = c.integer(), line = c.integer(), column = c.integer();
    return Place(file, line, column);
  };
  const Place here = place();
  bool inlined = false;
  while (c.take(",")) {
    if (c.take("function_name")) {
      c.next();
      if (c.take("+")) c.next();
    } else {
      c.expect("inlined_at");
      inlined_at_[here] = place();
      inlined = true;
    }
  }
  if (!inlined) inlined_at_.erase(here);
  // Line 0 is code without a place of its own; the one before is nearer to the truth.
  if (std::get<1>(here) == 0) return;
  place_ = here;
  new_place_ = true;
}

uint32_t KernelParser::line_index() {
  if (!place_ || !new_place_) return line_;
  new_place_ = false;
  Place caller = *place_;
  for (int depth = 0; depth < 64; ++depth) {
    const auto found = inlined_at_.find(caller);
    if (found == inlined_at_.end()) break;
    caller = found->second;
  }
  Line line;
  line.file = file_name(std::get<0>(*place_));
  line.line = static_cast<int>(std::get<1>(*place_));
  line.caller_file = file_name(std::get<0>(caller));
  line.caller_line = static_cast<int>(std::get<1>(caller));
  kernel_.lines.push_back(line);
  return line_ = static_cast<uint32_t>(kernel_.lines.size() - 1);
}

uint32_t KernelParser::opcode_index(std::string_view name) {
  const auto [found, added] = opcodes_.emplace(std::string(name), static_cast<uint32_t>(kernel_.opcodes.size()));
  if (added) kernel_.opcodes.emplace_back(name);
  return found->second;
}

void KernelParser::append(Instruction i) {
  if (kernel_.texts.size() == kernel_.code.size()) kernel_.texts.emplace_back("(end)");
  if (place_) {
    i.line = line_index();
  } else {
    const int line = static_cast<int>(i.ptx_line);
    kernel_.lines.push_back({"ptx", line, "ptx", line, ""});
    i.line = static_cast<uint32_t>(kernel_.lines.size() - 1);
  }
  kernel_.code.push_back(i);
}

std::string KernelParser::text_between(size_t begin, size_t end) const {
  const char *from = m_.tokens[begin].text.data();
  const std::string_view last = m_.tokens[end - 1].text;
  std::string text;
  for (const char *at = from; at != last.data() + last.size(); ++at) {
    const bool space = *at == ' ' || *at == '\t' || *at == '\n' || *at == '\r';
    if (!space)
      text += *at;
    else if (!text.empty() && text.back() != ' ')
      text += ' ';
  }
  return text;
}

void KernelParser::instruction(Cursor &c) {
  const size_t begin = c.position();
  Instruction i;
  i.ptx_line = static_cast<uint32_t>(c.peek().line);
  if (c.take("@")) {
    i.guard_negated = c.take("!");
    const Arg guard = word_operand(c);
    if (guard.kind != Arg::kPredicate) c.fail("the guard isn't a predicate");
    i.guard = guard.reg;
  }
  const int line = c.peek().line;
  const std::string_view opcode = c.next().text;
  std::vector<std::string_view> words;
  for (size_t at = 0; at <= opcode.size();) {
    const size_t dot = std::min(opcode.find('.', at), opcode.size());
    words.push_back(opcode.substr(at, dot - at));
    at = dot + 1;
  }
  if (words[0] == "bra" || words[0] == "brx") return branch(c, i, opcode);
  if (words[0] == "call") return call(c, i);
  if (words[0] == "ret" && !calls_.empty()) {
    references_.push_back({calls_.back().second, 0, line, kernel_.code.size(), std::nullopt});
    i.control = Control::kBranch;
    i.opcode = opcode_index("ret");
    c.expect(";");
    kernel_.texts.push_back("ret");
    return append(i);
  }

  // The longest run of leading words that names an opcode: "cp.async.commit_group" before "cp".
  const auto &table = opcode_table();
  const Opcode::Types types = types_of(words);
  Decode decode = nullptr;
  size_t used = 0;
  for (size_t end = words.size(); end > 0 && decode == nullptr; --end) {
    const std::string_view name(opcode.data(),
                                static_cast<size_t>(words[end - 1].data() + words[end - 1].size() - opcode.data()));
    const auto found = table.find(name);
    if (found == table.end()) continue;
    decode = found->second.of(types);
    used = end;
  }
  std::vector<Arg> args;
  if (decode == nullptr) throw ParseError(line, "unknown instruction " + std::string(opcode));
  if (!c.peek().is(";")) {
    do args.push_back(operand(c));
    while (c.take(","));
  }
  c.expect(";");
  Builder builder(kernel_, text_between(begin, c.position() - 1), line,
                  {words.begin() + static_cast<ptrdiff_t>(used), words.end()});
  builder.result = i;
  builder.args = std::move(args);
  decode(builder);
  builder.finish();

  // Counted without types, but with the state space.
  std::string counted(
      opcode.substr(0, static_cast<size_t>(words[used - 1].data() + words[used - 1].size() - opcode.data())));
  for (std::string_view word : words) {
    if (word == "global" || word == "shared" || word == "local" || word == "param" || word == "const") {
      counted += "." + std::string(word);
    }
  }
  builder.result.opcode = opcode_index(counted);
  kernel_.texts.push_back(text_between(begin, c.position() - 1));
  append(builder.result);
}

void KernelParser::branch(Cursor &c, Instruction i, std::string_view opcode) {
  const int line = c.peek().line;
  std::string text(opcode);
  i.opcode = opcode_index(opcode.substr(0, 3));
  if (opcode == "brx.idx" || opcode == "brx.idx.uni") {
    const Arg index = operand(c);
    c.expect(",");
    const std::string name(c.next().text);
    i.control = Control::kTable;
    i.in[0] = index.reg;
    bool found = false;
    for (int s = scope_; s >= 0 && !found; s = scopes_[static_cast<size_t>(s)].parent) {
      const auto &tables = scopes_[static_cast<size_t>(s)].tables;
      const auto at = tables.find(name);
      if (at == tables.end()) continue;
      i.target = at->second;
      found = true;
    }
    if (!found || index.kind != Arg::kRegister) throw ParseError(line, "brx.idx without its .branchtargets");
    text += " " + name;
  } else if (opcode == "bra" || opcode == "bra.uni") {
    const std::string label(c.next().text);
    i.control = Control::kBranch;
    references_.push_back({label, scope_, line, kernel_.code.size(), std::nullopt});
    text += " " + label;
  } else {
    throw ParseError(line, "unknown instruction " + text);
  }
  c.expect(";");
  kernel_.texts.push_back(text);
  append(i);
}

// call[.uni] [(results),] name[, (parameters)]; the function's text is parsed once more, in place.
void KernelParser::call(Cursor &c, const Instruction &like) {
  const int line = c.peek().line;
  const auto list = [&] {
    std::vector<Symbol> symbols;
    c.expect("(");
    while (!c.take(")")) {
      const std::string name(c.next().text);
      const Symbol *symbol = find_symbol(name);
      if (symbol == nullptr) throw ParseError(line, "an argument of call must be a .param variable, not " + name);
      symbols.push_back(*symbol);
      c.take(",");
    }
    return symbols;
  };
  std::vector<Symbol> results, parameters;
  if (c.peek().is("(")) {
    results = list();
    c.expect(",");
  }
  const std::string name(c.next().text);
  if (c.take(",") && c.peek().is("(")) parameters = list();
  if (!c.take(";")) throw ParseError(line, "an indirect call of " + name + " isn't supported");
  if (name == "vprintf") return;
  if (name == "__assertfail") {
    std::vector<std::string_view> no_modifiers;
    Builder builder(kernel_, "call __assertfail", line, no_modifiers);
    builder.result = like;
    for (size_t p = 0; p < parameters.size(); ++p) {
      Arg arg;
      arg.kind = Arg::kInteger;
      arg.value = parameters[p].value;
      builder.args.push_back(arg);
    }
    opcode_table().at("__assertfail").any(builder);
    builder.result.opcode = opcode_index("call");
    kernel_.texts.push_back("call __assertfail");
    return append(builder.result);
  }
  if (like.guard.given()) throw ParseError(line, "a call with a guard isn't supported");
  const auto found = m_.functions.find(name);
  if (found == m_.functions.end() || found->second.body == 0)
    throw ParseError(line, "no function " + name + " to call");
  for (const auto &[active, label] : calls_) {
    if (active == name) throw ParseError(line, name + " calls itself: recursion isn't supported");
  }
  const Function &f = found->second;
  if (f.results.size() != results.size() || f.parameters.size() != parameters.size()) {
    throw ParseError(line, "call of " + name + " with the wrong number of arguments");
  }
  const int outer = scope_;
  scope_ = 0;  // it sees the module's names and its own, not those of the caller
  new_scope();
  for (size_t k = 0; k < results.size(); ++k) scopes_.back().symbols[f.results[k].name] = results[k];
  for (size_t k = 0; k < parameters.size(); ++k) scopes_.back().symbols[f.parameters[k].name] = parameters[k];
  const std::string end = "(end of call " + std::to_string(expansions_++) + ")";
  calls_.emplace_back(name, end);
  const auto place = place_;
  Cursor inner(m_.tokens, f.body);
  body(inner);
  calls_.pop_back();
  scopes_[0].labels[end] = static_cast<uint32_t>(kernel_.code.size());
  scope_ = outer;
  place_ = place;
  new_place_ = true;
}

// Which instructions other than wgmma have registers of one.
void KernelParser::mark_matrix_registers() {
  if (kernel_.matrix_shapes.empty()) return;
  kernel_.matrix_register.assign(kernel_.register_bytes / kRegisterAlign + 1, 0);
  for (const MatrixShape &shape : kernel_.matrix_shapes) {
    for (const auto *list : {&shape.results, &shape.inputs}) {
      for (const Operand &o : *list) {
        uint16_t &number = kernel_.matrix_register[o.offset / kRegisterAlign];
        if (o.bank == 0 && number == 0) number = static_cast<uint16_t>(++kernel_.matrix_registers);
      }
    }
  }
  for (Instruction &i : kernel_.code) {
    const auto is_one = [&](const Operand &o) {
      return o.bytes > 1 && o.bank == 0 && kernel_.matrix_register[o.offset / kRegisterAlign] != 0;
    };
    i.touches_matrix_register = !i.is_wgmma && (std::any_of(std::begin(i.in), std::end(i.in), is_one) ||
                                                std::any_of(std::begin(i.out), std::end(i.out), is_one));
  }
}

void KernelParser::resolve() {
  for (const Reference &reference : references_) {
    std::optional<uint32_t> target;
    for (int s = reference.scope; s >= 0 && !target; s = scopes_[static_cast<size_t>(s)].parent) {
      const auto &labels = scopes_[static_cast<size_t>(s)].labels;
      const auto found = labels.find(reference.label);
      if (found != labels.end()) target = found->second;
    }
    if (!target) throw ParseError(reference.line, "no label " + reference.label);
    if (reference.table)
      kernel_.tables[reference.table->first][reference.table->second] = *target;
    else
      kernel_.code[reference.instruction].target = *target;
  }
}

Kernel parse_kernel(const ModuleParser &module, const ModuleParser::Entry &entry) {
  return KernelParser(module, entry).run();
}

}  // namespace emulator
