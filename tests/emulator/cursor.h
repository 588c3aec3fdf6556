// A position in a list of tokens, with the few productions that all of PTX shares: integers, declarations, brackets.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "builder.h"
#include "lexer.h"

namespace emulator {

inline uint64_t round_up(uint64_t value, uint64_t to) { return (value + to - 1) / to * to; }

// A declaration without its initialiser: ".align 16 .b8 name[512]", ".v4 .f32 name".
struct Declaration {
  std::string name;
  Type type{};
  size_t align = 0, bytes = 0;
  bool unsized = false;  // name[]
};

class Cursor {
 public:
  Cursor(const std::vector<Token> &tokens, size_t at) : tokens_(tokens), at_(at) {}
  const Token &peek(size_t ahead = 0) const { return tokens_[std::min(at_ + ahead, tokens_.size() - 1)]; }
  const Token &next() { return tokens_[at_ + 1 < tokens_.size() ? at_++ : at_]; }
  bool take(std::string_view text) {
    if (!peek().is(text)) return false;
    next();
    return true;
  }
  void expect(std::string_view text) {
    if (!take(text)) fail("expected '" + std::string(text) + "', got '" + std::string(peek().text) + "'");
  }
  [[noreturn]] void fail(const std::string &what) const { throw ParseError(peek().line, what); }
  bool at_end() const { return peek().kind == Token::kEnd; }
  size_t position() const { return at_; }
  void skip_to(size_t position) { at_ = position; }

  // From an open bracket behind its closing one.
  void skip_block(std::string_view open, std::string_view close) {
    expect(open);
    for (int depth = 1; depth > 0;) {
      if (at_end()) fail("no '" + std::string(close) + "'");
      const Token &token = next();
      if (token.is(open)) ++depth;
      if (token.is(close)) --depth;
    }
  }

  uint64_t integer() {
    const bool negative = take("-");
    const std::string text(next().text);
    char *end = nullptr;
    const bool binary = text.substr(0, 2) == "0b" || text.substr(0, 2) == "0B";
    const uint64_t value = std::strtoull(text.c_str() + (binary ? 2 : 0), &end, binary ? 2 : 0);
    if (end == text.c_str() || (*end != '\0' && *end != 'U')) fail("not an integer: " + text);
    return negative ? 0 - value : value;
  }

  // Behind the state space.
  Declaration declaration() {
    Declaration d;
    size_t vector = 1;
    for (;;) {
      const Token &token = peek();
      if (token.kind != Token::kWord) fail("a declaration without a name");
      if (take(".align")) {
        d.align = static_cast<size_t>(integer());
      } else if (take(".v2")) {
        vector = 2;
      } else if (take(".v4")) {
        vector = 4;
      } else if (take(".ptr")) {
        while (peek().is(".global") || peek().is(".shared") || peek().is(".const") || peek().is(".local")) next();
      } else if (token.text[0] == '.') {
        if (!type_named(token.text.substr(1), d.type)) fail("unknown type " + std::string(token.text));
        next();
      } else {
        break;
      }
    }
    d.name = std::string(next().text);
    size_t count = vector;
    while (take("[")) {
      if (take("]")) {
        d.unsized = true;
        count = 0;
      } else {
        count *= static_cast<size_t>(integer());
        expect("]");
      }
    }
    d.bytes = count * static_cast<size_t>(d.type.bytes());
    d.align = std::max(d.align, static_cast<size_t>(d.type.bytes()) * vector);
    return d;
  }

 private:
  const std::vector<Token> &tokens_;
  size_t at_;
};

}  // namespace emulator
