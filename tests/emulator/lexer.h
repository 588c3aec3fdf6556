// PTX text to tokens: words (opcodes with their modifiers, registers, names, numbers), strings and single punctuation.
#pragma once
#include <string_view>
#include <vector>

namespace emulator {

struct Token {
  enum Kind : char { kWord, kString, kPunctuation, kEnd } kind;
  std::string_view text;  // of the module's text; without the quotes of a string
  int line;

  bool is(std::string_view wanted) const { return kind != kString && text == wanted; }
};

// Always ends with a kEnd token. Throws ParseError for a character that no PTX has.
std::vector<Token> tokens_of(std::string_view ptx);

}  // namespace emulator
