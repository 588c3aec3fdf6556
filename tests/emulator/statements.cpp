#include "statements.h"

#include <map>
#include <stdexcept>

#include "cursor.h"

namespace emulator {

namespace {

class Reader {
 public:
  Reader(std::string_view ptx, const std::vector<Token> &tokens) : ptx_(ptx), tokens_(tokens) {}

  // From the '{' of a body behind its '}'.
  size_t body(size_t at) {
    scopes_.emplace_back();
    const size_t scope = ++scopes_read_;
    for (++at; !tokens_[at].is("}");) {
      if (tokens_[at].kind == Token::kEnd) throw ParseError(tokens_[at].line, "the text ends inside a function");
      if (tokens_[at].is("{")) {
        at = body(at);
      } else if (tokens_[at].kind == Token::kWord && tokens_[at + 1].is(":")) {
        kernel.labels.push_back({std::string(tokens_[at].text), kernel.statements.size()});
        at += 2;
      } else if (tokens_[at].is(".loc")) {
        at = location(at);
      } else if (tokens_[at].text.substr(0, 1) == ".") {
        if (tokens_[at].is(".reg") && scope > 1) declare(at, scope);
        while (!tokens_[at].is(";")) ++at;
        ++at;
      } else {
        at = statement(at);
      }
    }
    scopes_.pop_back();
    return at + 1;
  }

  WrittenKernel kernel;

 private:
  size_t offset(size_t token) const { return static_cast<size_t>(tokens_[token].text.data() - ptx_.data()); }
  size_t end_of(size_t token) const { return offset(token) + tokens_[token].text.size(); }

  // It has no ";": numbers, then maybe ", function_name ..., inlined_at ...".
  size_t location(size_t at) const {
    for (at += 4; tokens_[at].is(",");) {
      const bool is_name = tokens_[at + 1].is("function_name");
      at += is_name ? 3 : 5;
      if (is_name && tokens_[at].is("+")) at += 2;
    }
    return at;
  }

  // Registers of an inner scope; those of the kernel's own are known by being unknown.
  void declare(size_t at, size_t scope) {
    for (; !tokens_[at].is(";"); ++at) {
      if (tokens_[at].text.front() != '.') scopes_.back()[std::string(tokens_[at].text)] = scope;
    }
  }

  std::string register_name(size_t token) const {
    const std::string name(tokens_[token].text);
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      const auto found = scope->find(name);
      if (found != scope->end()) return name + "#" + std::to_string(found->second);
    }
    return name;
  }

  bool is_register(size_t token) const {
    const std::string_view text = tokens_[token].text;
    if (tokens_[token].kind != Token::kWord) return false;
    return text.front() == '%' || register_name(token).find('#') != std::string::npos;
  }

  size_t statement(size_t at) {
    Statement s;
    s.begin = offset(at);
    s.line = tokens_[at].line;
    if (tokens_[at].is("@")) {
      const size_t name = at + (tokens_[at + 1].is("!") ? 2 : 1);
      s.guard = register_name(name);
      s.guard_text = ptx_.substr(s.begin, end_of(name) - s.begin);
      at = name + 1;
    }
    if (!tokens_[at].is(";")) s.opcode = tokens_[at++].text;
    while (!tokens_[at].is(";")) at = operand(at, s);
    s.end = end_of(at);
    if (!s.opcode.empty()) kernel.statements.push_back(std::move(s));
    return at + 1;
  }

  size_t operand(size_t at, Statement &s) const {
    WrittenOperand o;
    o.begin = offset(at);
    for (int depth = 0; depth > 0 || (!tokens_[at].is(",") && !tokens_[at].is(";")); ++at) {
      if (tokens_[at].kind == Token::kEnd) throw ParseError(s.line, "the text ends inside an instruction");
      for (std::string_view open : {"[", "{", "("}) depth += tokens_[at].is(open) ? 1 : 0;
      for (std::string_view close : {"]", "}", ")"}) depth -= tokens_[at].is(close) ? 1 : 0;
      if (is_register(at)) o.registers.push_back(register_name(at));
      o.end = end_of(at);
    }
    o.text = ptx_.substr(o.begin, o.end - o.begin);
    if (!o.text.empty()) s.operands.push_back(std::move(o));
    return tokens_[at].is(",") ? at + 1 : at;
  }

  std::string_view ptx_;
  const std::vector<Token> &tokens_;
  std::vector<std::map<std::string, size_t>> scopes_;  // of each open one: registers, and the number of the scope
  size_t scopes_read_ = 0;
};

}  // namespace

bool Statement::is(std::string_view words) const {
  return opcode.substr(0, words.size()) == words && (opcode.size() == words.size() || opcode[words.size()] == '.');
}

bool Statement::has(std::string_view modifier) const {
  for (size_t at = opcode.find('.'); at != opcode.npos;) {
    const size_t next = std::min(opcode.find('.', at + 1), opcode.size());
    const std::string_view word = opcode.substr(at + 1, next - at - 1);
    if (word == modifier || (word.substr(0, modifier.size()) == modifier && word.substr(modifier.size(), 2) == "::"))
      return true;
    at = next == opcode.size() ? opcode.npos : next;
  }
  return false;
}

WrittenKernel written_kernel(std::string_view ptx, std::string_view kernel) {
  const std::vector<Token> tokens = tokens_of(ptx);
  for (size_t at = 0; at + 1 < tokens.size(); ++at) {
    if (!tokens[at].is(".entry") || !tokens[at + 1].is(kernel)) continue;
    while (!tokens[at].is("{")) ++at;
    Reader reader(ptx, tokens);
    reader.body(at);
    return std::move(reader.kernel);
  }
  throw std::out_of_range("no kernel " + std::string(kernel));
}

std::string with_only_kernel(std::string_view ptx, std::string_view kernel) {
  const std::vector<Token> tokens = tokens_of(ptx);
  std::string result(ptx);
  for (size_t at = 0; at + 1 < tokens.size(); ++at) {
    if (!tokens[at].is(".entry") || tokens[at + 1].is(kernel)) continue;
    const auto offset = [&](size_t token) { return static_cast<size_t>(tokens[token].text.data() - ptx.data()); };
    const bool has_linkage = at > 0 && (tokens[at - 1].is(".visible") || tokens[at - 1].is(".weak"));
    const size_t begin = offset(has_linkage ? at - 1 : at);
    while (!tokens[at].is("{")) ++at;
    Cursor body(tokens, at);
    body.skip_block("{", "}");
    const size_t end = offset(body.position() - 1) + 1;
    for (size_t i = begin; i < end; ++i)
      if (result[i] != '\n') result[i] = ' ';
    at = body.position() - 1;
  }
  return result;
}

}  // namespace emulator
