// A module: what stands outside of functions.
#include "parser.h"

#include <cstring>

namespace emulator {

namespace {

std::string base_name(std::string_view path) {
  const size_t slash = path.rfind('/');
  return std::string(slash == path.npos ? path : path.substr(slash + 1));
}

}  // namespace

std::vector<Declaration> ModuleParser::parameters(Cursor &c) {
  std::vector<Declaration> list;
  c.expect("(");
  while (!c.take(")")) {
    if (!c.take(".param")) c.expect(".reg");
    list.push_back(c.declaration());
    c.take(",");
  }
  return list;
}

void ModuleParser::function(Cursor &c, bool is_entry) {
  Function f;
  if (!is_entry && c.peek().is("(")) f.results = parameters(c);
  const std::string name(c.next().text);
  if (c.peek().is("(")) f.parameters = parameters(c);
  uint32_t max_threads = 1024;
  while (!c.peek().is("{") && !c.peek().is(";")) {
    if (c.at_end()) c.fail("a function without a body");
    if (c.take(".maxntid")) {
      max_threads = static_cast<uint32_t>(c.integer());
      while (c.take(",")) max_threads *= static_cast<uint32_t>(c.integer());
    } else {
      c.next();
    }
  }
  if (c.take(";")) {
    functions.emplace(name, f);
    return;
  }
  f.body = c.position();
  c.skip_block("{", "}");
  if (is_entry)
    entries.push_back({name, f.parameters, f.body, max_threads});
  else
    functions[name] = f;
}

void ModuleParser::variable(Cursor &c, bool constant, bool is_extern) {
  const Declaration d = c.declaration();
  auto v = std::make_unique<Variable>();
  v->name = d.name;
  v->constant = constant;
  v->bytes = d.bytes;
  // The address must satisfy any alignment that PTX may ask for.
  constexpr size_t kAlign = 256;
  v->storage.assign((d.bytes + 2 * kAlign) / 8 + 1, 0);
  v->address = round_up(reinterpret_cast<uint64_t>(v->storage.data()), std::max(kAlign, d.align));
  if (c.take("=")) {
    size_t at = 0;
    const auto width = static_cast<size_t>(d.type.bytes());
    const auto put = [&](uint64_t value, size_t bytes) {
      if (at + bytes > d.bytes) c.fail("too many values for " + d.name);
      std::memcpy(reinterpret_cast<void *>(v->address + at), &value, bytes);
      at += bytes;
    };
    const auto element = [&] {
      const bool negative = c.take("-");
      const std::string text(c.peek().text);
      if (text == "generic") {
        c.next();
        c.expect("(");
        put(symbols.count(std::string(c.peek().text)) ? symbols[std::string(c.peek().text)].value : 0, width);
        c.next();
        c.expect(")");
      } else if (text.size() == 10 && (text[1] == 'f' || text[1] == 'F')) {
        put(std::strtoull(text.c_str() + 2, nullptr, 16) ^ (negative ? 0x80000000u : 0), width);
        c.next();
      } else if (text.size() == 18 && (text[1] == 'd' || text[1] == 'D')) {
        put(std::strtoull(text.c_str() + 2, nullptr, 16) ^ (negative ? uint64_t{1} << 63 : 0), width);
        c.next();
      } else if (!text.empty() && text[0] >= '0' && text[0] <= '9') {
        const uint64_t value = c.integer();
        put(negative ? 0 - value : value, width);
      } else {
        const auto found = symbols.find(text);
        if (found == symbols.end()) c.fail("unknown name " + text);
        c.next();
        uint64_t value = found->second.value;
        if (c.take("+")) value += c.integer();
        put(value, width);
      }
    };
    const auto values = [&](auto &&self) -> void {
      if (!c.take("{")) return element();
      if (c.take("}")) return;
      do self(self);
      while (c.take(","));
      c.expect("}");
    };
    values(values);
  }
  c.expect(";");
  if (is_extern && symbols.count(d.name) != 0) return;
  symbols[d.name] = {Symbol::kVariable, v->address, d.bytes};
  module->variables.push_back(std::move(v));
}

void ModuleParser::run() {
  tokens = tokens_of(ptx);
  Cursor c(tokens, 0);
  while (!c.at_end()) {
    bool is_extern = false;
    while (c.peek().is(".extern") || c.peek().is(".visible") || c.peek().is(".weak") || c.peek().is(".common")) {
      is_extern = is_extern || c.peek().is(".extern");
      c.next();
    }
    if (c.take(".entry")) {
      function(c, true);
    } else if (c.take(".func")) {
      function(c, false);
    } else if (c.take(".global")) {
      variable(c, false, is_extern);
    } else if (c.take(".const")) {
      variable(c, true, is_extern);
    } else if (c.take(".shared")) {
      shared.push_back({c.declaration(), is_extern});
      c.expect(";");
    } else if (c.take(".file")) {
      const uint64_t number = c.integer();
      files[number] = base_name(c.next().text);
      while (c.take(",")) c.next();
    } else if (c.take(".section")) {
      c.next();
      c.skip_block("{", "}");
    } else if (c.take(".version") || c.take(".address_size")) {
      c.next();
    } else if (c.take(".target")) {
      do c.next();
      while (c.take(","));
    } else if (c.take(".pragma")) {
      while (!c.take(";")) c.next();
    } else if (!c.take(";")) {
      c.fail("unknown directive " + std::string(c.peek().text));
    }
  }
  for (const Entry &entry : entries) {
    module->names.push_back(entry.name);
    module->kernels.emplace(entry.name, parse_kernel(*this, entry));
  }
}

std::shared_ptr<Module::Impl> parse(std::string_view ptx) {
  ModuleParser parser;
  parser.ptx = ptx;
  parser.run();
  return parser.module;
}

}  // namespace emulator
