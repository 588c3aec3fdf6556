// What the parser makes of a kernel: flat instructions over a register file, ready to run.
//
// A register is an array of 32 lanes of its width (2, 4 or 8 bytes); a predicate is a 32-bit mask. A warp has them all in
// one block of memory, bank 0. Literals and addresses of variables are arrays of the same shape, bank 1, which all
// warps share: so an instruction never asks what kind of operand it has.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "emulator.h"
#include "number.h"

namespace emulator {

constexpr int kLanes = 32;
using Mask = uint32_t;  // one bit for each lane

struct Warp;
struct Instruction;
using Handler = void (*)(Warp &, const Instruction &, Mask);

// Special registers that are ordinary ones, filled in when a warp starts.
enum Special : int {
  kTidX,
  kTidY,
  kTidZ,
  kNtidX,
  kNtidY,
  kNtidZ,
  kCtaidX,
  kCtaidY,
  kCtaidZ,
  kNctaidX,
  kNctaidY,
  kNctaidZ,
  kLaneId,
  kWarpId,
  kNwarpId,
  kSmId,
  kNsmId,
  kMaskEq,
  kMaskLe,
  kMaskLt,
  kMaskGe,
  kMaskGt,
  kDynamicSharedBytes,
  kTotalSharedBytes,
  kZero,
  kOne,
  kClock,
  kGridId,
  kClock64,
  kSpecials
};
// Where they lie: they are a warp's first registers, those of 8 bytes last.
constexpr int special_bytes(int special) { return special < kGridId ? 4 : 8; }
constexpr uint32_t special_offset(int special) {
  return special <= kGridId ? 128u * static_cast<uint32_t>(special)
                            : 128u * kGridId + 256u * static_cast<uint32_t>(special - kGridId);
}

struct Operand {
  uint32_t offset = 0;  // in its bank, in bytes
  uint8_t bank = 0;     // 0: registers, 1: literals
  uint8_t bytes = 0;    // of a lane: 2, 4, 8; 1: predicate; 0: no operand, or `_`
  bool given() const { return bytes != 0; }
};

struct AddressOperand {
  Operand base;
  int64_t offset = 0;
};

// What the scheduler does beside calling the handler.
enum class Control : uint8_t {
  kNone,      // calls it, for the lanes whose guard holds
  kBranch,    // to target
  kTable,     // brx.idx: to Kernel::tables[target][in[0]]
  kExit,      // these lanes end
  kTogether,  // needs all lanes of `members`, or all live ones, at this instruction
  kBarrier,   // the same, and then waits for other warps
  kYield,     // nanosleep: another warp's turn
  kPoll,      // mbarrier.try_wait: another warp's turn if it fails, which is Warp::failed
  kAwait,     // wgmma.wait_group: all live ones, again and again until it doesn't fail
};

enum class BarrierMode : uint8_t { kSync, kArrive, kPopc, kAnd, kOr };  // Instruction::mode of a barrier

enum class Space : uint8_t { kGeneric, kGlobal, kConst, kShared, kLocal, kParam };
enum class Compare : uint8_t { kEq, kNe, kLt, kLe, kGt, kGe, kNum, kNan };
// Who sees a strong access or fence as one: .cta (and .cluster, since clusters are single blocks), or .gpu and .sys.
enum class Scope : uint8_t { kBlock, kDevice };
enum class Bool : uint8_t { kNone, kAnd, kOr, kXor };

struct Instruction {
  Handler run = nullptr;
  Operand guard;  // a predicate; not given: always
  bool guard_negated = false;
  Control control = Control::kNone;
  // What the modifiers said; each handler reads those of its opcode.
  Space space = Space::kGeneric;
  uint8_t width = 0;   // of one element, in bytes
  uint8_t vector = 1;  // elements
  bool is_signed = false;
  bool ftz = false, sat = false;
  bool negated[4] = {};  // predicate inputs: !%p
  Operand out[4], in[12];
  Operand members;  // lanes that must come together; not given: all live ones
  Rounding rounding = Rounding::kNearest;
  Compare compare = Compare::kEq;
  bool or_unordered = false;  // setp.ltu and its like
  Bool combine = Bool::kNone;
  uint8_t mode = 0;                                       // of opcodes with variants
  uint8_t from = 0, to = 0;                               // types of cvt
  bool acquire = false, release = false, strong = false;  // memory order; strong: volatile, relaxed or more
  Scope scope = Scope::kDevice;                           // of a strong access or fence
  int64_t offset = 0;                                     // of an address
  uint32_t target = 0;  // of a branch; count of a wait; index into Kernel::bulk_shapes or ::matrix_shapes
  // For reports and counts.
  uint32_t ptx_line = 0, line = 0;  // line: index into Kernel::lines
  uint32_t opcode = 0;              // index into Kernel::opcodes
  bool is_fma = false, is_mma = false, is_wgmma = false;
  uint32_t flops = 0;  // of a warp, on tensor cores
  bool is_move = false;
  bool touches_matrix_register = false;  // which may be in use by a wgmma; never set for wgmma itself
};

// What there is to know of a bulk copy beside its Instruction.
struct BulkShape {
  enum Direction : uint8_t { kLoad, kStore, kReduce } direction = kLoad;
  enum Operation : uint8_t { kAdd, kMin, kMax, kIncrement, kDecrement, kAnd, kOr, kXor } operation = kAdd;
  enum Element : uint8_t { kU8, kU16, kU32, kS32, kU64, kS64, kF16, kF32, kF64, kBf16 } element = kU8;  // of kReduce
  int rank = 0;                             // 0: plain bytes in a row
  AddressOperand shared, global, mbarrier;  // global: of the tensor map, if rank > 0
  Operand coordinates[5], bytes, multicast;
};

struct MatrixShape {
  enum Element : uint8_t { kF16, kBf16, kTf32, kE4m3, kE5m2 } a = kF16, b = kF16;
  int n = 0, depth = 0;  // 64 x n x depth
  bool f16_result = false, a_in_registers = false;
  bool transposed_a = false, transposed_b = false;  // M- or N-major
  bool negated_a = false, negated_b = false;
  std::vector<Operand> results, inputs;
};

struct Parameter {
  std::string name;
  size_t offset, bytes;
};

constexpr size_t kRegisterAlign = 64;

struct Kernel {
  KernelInfo info;
  std::vector<Parameter> parameters;
  size_t parameter_bytes = 0;
  size_t register_bytes = 0;  // bank 0 of one warp
  size_t static_shared_bytes = 0, dynamic_align = 16, local_bytes = 0;
  std::vector<Instruction> code;              // ends with an exit
  std::vector<std::vector<uint32_t>> tables;  // of brx.idx
  struct Literal {
    uint64_t value;
    uint8_t bytes;  // of a lane
  };
  std::vector<Literal> literals;  // bank 1: kLiteralBytes each
  std::map<std::pair<uint64_t, int>, size_t> literal_index;
  std::vector<BulkShape> bulk_shapes;
  std::vector<MatrixShape> matrix_shapes;
  // Of registers that some wgmma has: 1 + number, by offset / kRegisterAlign; 0: another register. Empty without wgmma.
  std::vector<uint16_t> matrix_register;
  size_t matrix_registers = 0;
  std::vector<Line> lines;
  std::vector<std::string> texts;    // of instructions
  std::vector<std::string> opcodes;  // distinct, for the counts

  // Predicates (1 byte a lane says that it is one) take 4 bytes; other arrays start on vector boundaries.
  Operand new_register(int bytes) {
    const size_t size = bytes == 1 ? 4 : static_cast<size_t>(bytes) * kLanes, align = bytes == 1 ? 4 : kRegisterAlign;
    const size_t offset = (register_bytes + align - 1) / align * align;
    register_bytes = offset + size;
    return {static_cast<uint32_t>(offset), 0, static_cast<uint8_t>(bytes)};
  }
};

// Bytes of a literal in bank 1: wide enough for 32 lanes of 8 bytes.
constexpr size_t kLiteralBytes = kLanes * 8;

struct Variable {
  std::string name;
  std::vector<uint64_t> storage;  // doubles as its aligned memory, with padding behind
  uint64_t address = 0;
  size_t bytes = 0;
  bool constant = false;
};

struct Module::Impl {
  std::unordered_map<std::string, Kernel> kernels;
  std::vector<std::string> names;  // of kernels, in the order of the text
  std::vector<std::unique_ptr<Variable>> variables;
};

// Addresses. Shared memory starts at 1024 as on sm_80 and later, where the system keeps the first KiB. The windows are where
// generic addresses of the other spaces lie: no host address has these top bytes.
constexpr uint64_t kSharedStart = 1024;
constexpr uint64_t kSharedWindow = uint64_t{1} << 56, kLocalWindow = uint64_t{2} << 56,
                   kParamWindow = uint64_t{3} << 56;
constexpr uint64_t kWindowMask = uint64_t{0xff} << 56;

}  // namespace emulator
