// PTX text to a module: variables with their initial values, and kernels as flat instructions.
//
// Functions are expanded where they are called (PTX has no recursion that nvcc would emit unasked; here it is an error),
// so running code has no call stack. Their parameters, and those of call sequences, lie in the thread's local memory.
//
// parser.cpp reads what stands outside of functions, kernel_parser.cpp a kernel's body.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "cursor.h"
#include "program.h"

namespace emulator {

std::shared_ptr<Module::Impl> parse(std::string_view ptx);

// ---- Between the two files

struct Symbol {
  enum Kind { kVariable, kShared, kDynamicShared, kLocal, kKernelParameter, kLocalParameter } kind;
  uint64_t value = 0;
  size_t bytes = 0;
};

// Positions in the token list of a function that calls are expanded from.
struct Function {
  std::vector<Declaration> results, parameters;
  size_t body = 0;  // of its '{'; 0: declared only
};

struct ModuleParser {
  std::shared_ptr<Module::Impl> module = std::make_shared<Module::Impl>();
  std::string_view ptx;
  std::vector<Token> tokens;
  std::unordered_map<std::string, Function> functions;
  std::unordered_map<std::string, Symbol> symbols;  // of the module
  struct SharedVariable {
    Declaration declaration;
    bool is_extern;
  };
  std::vector<SharedVariable> shared;
  std::unordered_map<uint64_t, std::string> files;
  struct Entry {
    std::string name;
    std::vector<Declaration> parameters;
    size_t body;
    uint32_t max_threads;
  };
  std::vector<Entry> entries;

  void run();
  std::vector<Declaration> parameters(Cursor &c);
  void function(Cursor &c, bool is_entry);
  void variable(Cursor &c, bool constant, bool is_extern);
};

// Reads the body of a kernel, when all of the module's names are known.
Kernel parse_kernel(const ModuleParser &module, const ModuleParser::Entry &entry);

}  // namespace emulator
