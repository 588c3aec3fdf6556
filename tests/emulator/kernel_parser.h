// The body of one kernel, while it is parsed.
#pragma once
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "parser.h"

namespace emulator {

class KernelParser {
 public:
  KernelParser(const ModuleParser &module, const ModuleParser::Entry &entry) : m_(module), entry_(entry) {}
  Kernel run();

 private:
  struct Scope {
    std::unordered_map<std::string, Operand> registers;  // predicates: 1 byte
    std::unordered_map<std::string, Symbol> symbols;
    std::unordered_map<std::string, uint32_t> labels;
    std::unordered_map<std::string, uint32_t> tables;
    int parent;
  };
  struct Reference {  // to a label, maybe further down
    std::string label;
    int scope, line;
    size_t instruction;  // whose target it is; or, with `table`, an entry of one
    std::optional<std::pair<size_t, size_t>> table;
  };

  void lay_out_shared();
  void body(Cursor &c);
  void statement(Cursor &c);
  void declare_registers(Cursor &c);
  void declare_local(Cursor &c);
  void location(Cursor &c);
  void instruction(Cursor &c);
  void branch(Cursor &c, Instruction i, std::string_view opcode);
  void call(Cursor &c, const Instruction &like);
  void append(Instruction i);
  uint32_t opcode_index(std::string_view name);
  uint32_t line_index();
  std::string file_name(uint64_t number) const {
    const auto found = m_.files.find(number);
    return found == m_.files.end() ? "?" : found->second;
  }
  Arg operand(Cursor &c);
  Arg word_operand(Cursor &c);
  const Operand *find_register(const std::string &name) const;
  const Symbol *find_symbol(const std::string &name) const;
  void resolve();
  void mark_matrix_registers();
  std::string text_between(size_t begin, size_t end) const;
  int new_scope() {
    scopes_.push_back({});
    scopes_.back().parent = scope_;
    return scope_ = static_cast<int>(scopes_.size()) - 1;
  }

  const ModuleParser &m_;
  const ModuleParser::Entry &entry_;
  Kernel kernel_;
  std::vector<Scope> scopes_;
  int scope_ = -1;
  std::vector<Reference> references_;
  std::vector<std::pair<std::string, std::string>> calls_;  // being expanded: name, label behind the body
  std::unordered_map<std::string, uint32_t> opcodes_;
  int expansions_ = 0;

  using Place = std::tuple<uint64_t, uint64_t, uint64_t>;  // file, line, column
  std::optional<Place> place_;
  std::map<Place, Place> inlined_at_;
  std::map<std::pair<uint64_t, uint64_t>, uint32_t> line_of_place_;
  bool new_place_ = true;
  uint32_t line_ = 0;
};

}  // namespace emulator
