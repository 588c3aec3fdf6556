// The statements of one kernel as they are written, with their places in the text: for tools that look at PTX or change
// it. What runs is made by kernel_parser.h.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace emulator {

// "%r1", "[%r1+16]", "{%f1, %f2}", "%p1|%p2", "16", "$L__BB0_1", "name".
struct WrittenOperand {
  size_t begin = 0, end = 0;  // in the text
  std::string_view text;
  std::vector<std::string> registers;  // in it; those of an inner scope are told apart from others of that name
  bool is_address() const { return text.front() == '['; }
};

struct Statement {
  size_t begin = 0, end = 0;  // in the text, with guard and ";"
  int line = 0;               // of the text, 1 = the first
  std::string guard;          // the register, or empty
  std::string_view guard_text;
  std::string_view opcode;  // with its modifiers
  std::vector<WrittenOperand> operands;

  // Whether the opcode starts with these words: "cp.async.cg.shared.global" does with "cp.async".
  bool is(std::string_view words) const;
  // Whether the word, without dot, is among the modifiers.
  bool has(std::string_view modifier) const;
};

struct Label {
  std::string name;
  size_t statement;  // that follows it
};

struct WrittenKernel {
  std::vector<Statement> statements;  // no directives
  std::vector<Label> labels;
};

// Throws std::out_of_range if the text has no such kernel.
WrittenKernel written_kernel(std::string_view ptx, std::string_view kernel);

// The text without the bodies of other kernels, with as many lines.
std::string with_only_kernel(std::string_view ptx, std::string_view kernel);

}  // namespace emulator
