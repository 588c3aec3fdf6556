// One instruction on its way from text to program: what the decoders of each opcode read and write.
//
// A decoder takes the modifiers and operands that it understands; whatever is left over is an error, so nothing that PTX
// says is ever ignored by accident.
#pragma once
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "program.h"

namespace emulator {

struct Type {
  enum Kind : uint8_t { kBits, kUnsigned, kSigned, kF16, kBf16, kTf32, kFloat, kPredicate } kind;
  uint8_t bits;       // of one element; f16x2: 16
  uint8_t lanes = 1;  // 2: packed
  int bytes() const { return bits * lanes / 8; }
  bool is_float() const { return kind >= kF16 && kind <= kFloat; }
  bool is_signed() const { return kind == kSigned; }
};
// Type of a name without the dot: "s32", "bf16x2".
bool type_named(std::string_view name, Type &type);

// An operand as written.
struct Arg {
  enum Kind : uint8_t { kRegister, kPredicate, kInteger, kFloat, kSymbol, kAddress, kVector, kSink } kind = kSink;
  Operand reg;                    // register, or base of an address
  bool negated = false;           // !%p
  bool based = false;             // address: has a register
  uint64_t value = 0;             // integer; bits of a float literal; address without a register
  uint8_t float_bits = 0;         // of a float literal: 32 (0f...), 64
  Space space = Space::kGeneric;  // of a symbol or address, where it says one
  std::string name;               // of a symbol
  std::vector<Arg> parts;         // vector; of `d|p`: d is this one, p is parts[0]; of `[map, {x, y}]`: the vector
};

class Builder {
 public:
  Instruction result;
  std::vector<Arg> args;

  Builder(Kernel &kernel, std::string text, int line, std::vector<std::string_view> modifiers)
      : kernel_(kernel), text_(std::move(text)), line_(line), modifiers_(std::move(modifiers)) {}

  // ---- Modifiers: each of these removes what it finds.
  bool take(std::string_view modifier);
  bool has(std::string_view modifier) const;  // and leaves it
  // The index of the one that is there, or -1.
  int take_one(std::initializer_list<std::string_view> modifiers);
  // The same of the first modifier that is one of these, in the order of the text.
  int take_next(std::initializer_list<std::string_view> modifiers);
  // The next type; an error if there is none.
  Type take_type();
  bool next_is_type() const;
  Rounding take_rounding();  // of floats: .rn .rz .rm .rp; nearest if there is none
  // .relaxed, .acquire and so on: sets acquire, release and strong; and the scope.
  void take_memory_order();
  void take_scope();  // .gpu if there is none
  void take_cache_hints();
  void ignore_modifiers() { modifiers_.clear(); }  // of opcodes that do nothing here
  // An error if anything is left.
  void finish() const;

  // ---- Operands
  void expect(size_t least, size_t most) const;
  // Register or literal as an input of a type, which must have its width.
  Operand source(const Arg &arg, Type type);
  Operand source(size_t i, Type type) { return source(arg(i), type); }
  // The same for types that may be narrower than the register.
  Operand any_width(const Arg &arg, Type type);
  // A register; for `_` a new one that nobody reads.
  Operand target(const Arg &arg, int bytes);
  Operand target(size_t i, Type type) { return target(arg(i), type.bytes()); }
  Operand predicate(const Arg &arg, bool &negated);
  Operand literal(uint64_t value, int bytes);
  const Arg &arg(size_t i) const;
  // Sets result.in[0] and result.offset from [base + offset].
  void address(size_t i);
  AddressOperand address_of(const Arg &arg);
  // Sets result.target.
  void add_shape(BulkShape shape);
  void add_shape(MatrixShape shape);

  [[noreturn]] void fail(const std::string &what) const;

 private:
  Kernel &kernel_;
  std::string text_;
  int line_;
  std::vector<std::string_view> modifiers_;
};

struct Opcode {
  const char *name;  // "add"; of several words where the rest is no modifier: "cp.async.commit_group"
  void (*decode)(Builder &);
  // Of which types, where one name stands for several instructions: f32 and f64; f16, bf16 and their pairs.
  enum Types { kAny, kIntegers, kFloats, kHalves } types = kAny;
};

// The opcodes of each file of instructions.
std::vector<Opcode> integer_opcodes();
std::vector<Opcode> float_opcodes();
std::vector<Opcode> half_opcodes();
std::vector<Opcode> convert_opcodes();
std::vector<Opcode> data_opcodes();
std::vector<Opcode> memory_opcodes();
std::vector<Opcode> atomic_opcodes();
std::vector<Opcode> copy_opcodes();
std::vector<Opcode> matrix_opcodes();
std::vector<Opcode> mbarrier_opcodes();
std::vector<Opcode> bulk_opcodes();
std::vector<Opcode> wgmma_opcodes();
std::vector<Opcode> warp_opcodes();
std::vector<Opcode> control_opcodes();

// Of cvt with 8-bit floats.
void decode_convert_8bit(Builder &b);

}  // namespace emulator
