#include "lexer.h"

#include <cctype>
#include <string>

#include "emulator.h"

namespace emulator {

std::vector<Token> tokens_of(std::string_view ptx) {
  std::vector<Token> tokens;
  int line = 1;
  size_t i = 0;
  const auto in_word = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '$' || c == '%' || c == '.';
  };
  while (i < ptx.size()) {
    const char c = ptx[i];
    if (c == '\n') {
      ++line;
      ++i;
    } else if (c == '\0' || std::isspace(static_cast<unsigned char>(c)) != 0) {
      ++i;
    } else if (ptx.substr(i, 2) == "//") {
      while (i < ptx.size() && ptx[i] != '\n') ++i;
    } else if (ptx.substr(i, 2) == "/*") {
      const size_t end = ptx.find("*/", i + 2);
      for (const size_t stop = end == ptx.npos ? ptx.size() : end + 2; i < stop; ++i) line += ptx[i] == '\n';
    } else if (c == '"') {
      const size_t end = ptx.find('"', i + 1);
      if (end == ptx.npos) throw ParseError(line, "a string without an end");
      tokens.push_back({Token::kString, ptx.substr(i + 1, end - i - 1), line});
      i = end + 1;
    } else if (in_word(c)) {
      const size_t begin = i;
      // "a::b" belongs to a modifier: .shared::cta, .L2::128B
      while (i < ptx.size() && (in_word(ptx[i]) || ptx.substr(i, 2) == "::")) i += ptx[i] == ':' ? 2 : 1;
      tokens.push_back({Token::kWord, ptx.substr(begin, i - begin), line});
    } else if (std::string_view("@!{}[](),;:|+-<>=*/").find(c) != std::string_view::npos) {
      tokens.push_back({Token::kPunctuation, ptx.substr(i, 1), line});
      ++i;
    } else {
      throw ParseError(line, std::string("unexpected character '") + c + "'");
    }
  }
  tokens.push_back({Token::kEnd, {}, line});
  return tokens;
}

}  // namespace emulator
