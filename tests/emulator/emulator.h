// Runs the PTX of CUDA kernels on the CPU and reports what a GPU would do silently: the one interface of the emulator.
//
//   Memory memory;
//   float *x = static_cast<float *>(memory.allocate(n * sizeof(float), "x"));    // device address == host address
//   Module module = load_module(ptx_texts(fat_binary, bytes).front());
//   const void *params[] = {&x, &n};
//   Stats stats = launch(module, memory, "kernel", {blocks}, {threads}, shared_bytes, params);
//
// A launch is complete when launch() returns. Faults (an access outside every buffer, a race, a deadlock ...) become
// Reports: the first one is thrown as a Fault, or all are collected in Stats::reports. Text that can't be understood
// throws ParseError when the module is loaded, so a launch never meets an unknown instruction.
//
// Threads: every function may be called from several threads at once, also launches of one Module over one Memory.
// One launch runs on one thread and is deterministic: the same options give the same interleaving and reports.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace emulator {

// ---- Reports ----------------------------------------------------------------------------------------------------------

enum class Kind {
  kOutOfBounds,    // an address in no buffer of that space, or one that runs over its end
  kMisaligned,     // an address that isn't a multiple of the access size
  kReadOnly,       // a write to constant or parameter memory
  kUninitialised,  // shared memory read before anything wrote it
  kRace,           // two accesses, one of them a write, that nothing orders
  kInFlight,       // memory or registers touched between an asynchronous operation and its wait, or never waited for
  kFence,          // a fence that is missing before an asynchronous operation
  kMbarrier,       // an mbarrier that isn't one, with counts that can't be right, or written over
  kBarrier,        // a barrier, shuffle or other collective that not all of the lanes reach together
  kDeadlock,       // every warp waits
  kTrap,           // trap, or a failed assert()
  kTimeout,        // more than Options::max_instructions
  kLaunch,         // arguments that a GPU would refuse
};
const char *name_of(Kind kind);  // "out of bounds", ...

// A place in the CUDA source, from .loc; without -lineinfo the PTX line of the instruction, with file "ptx".
struct Line {
  std::string file;         // base name
  int line = 0;             // of the instruction itself, inside whatever was inlined
  std::string caller_file;  // where the kernel's own source inlined it; equal to file and line if nothing was inlined
  int caller_line = 0;
  std::string ptx;  // the text of the instruction

  std::string text() const;  // "softmax.cuh:41 (inlined at forward_any.cuh:120)"
};

struct Dim3 {
  uint32_t x = 1, y = 1, z = 1;
};

struct Report {
  Kind kind;
  std::string kernel;
  Line line;                  // where it was noticed
  std::optional<Line> other;  // the earlier access of a race; of a copy in flight, where it was issued
  Dim3 block, thread;         // of line
  Dim3 other_block, other_thread;
  std::string detail;   // "4-byte read at q + 8192, which has 8192 bytes"
  uint64_t number = 1;  // how many times; reports of equal kind and lines are merged

  std::string text() const;  // all of it, in one or two lines
};

// Thrown by launch() unless the options say to collect.
class Fault : public std::runtime_error {
 public:
  explicit Fault(Report r) : std::runtime_error(r.text()), report(std::move(r)) {}
  Report report;
};

// Thrown by load_module(): what can't be understood, with its line in the PTX text.
class ParseError : public std::runtime_error {
 public:
  ParseError(int ptx_line, const std::string &what)
      : std::runtime_error("PTX line " + std::to_string(ptx_line) + ": " + what), line(ptx_line) {}
  int line;
};

// ---- Device memory ----------------------------------------------------------------------------------------------------

struct Buffer {
  std::string name;
  uint64_t address = 0;
  size_t bytes = 0;
};

// The global memory of one device: what a kernel may touch. Addresses are host addresses.
class Memory {
 public:
  Memory();
  ~Memory();
  Memory(const Memory &) = delete;
  Memory &operator=(const Memory &) = delete;

  // New memory: aligned to 256 bytes, filled with 0xff (NaN in every float type), with gaps before and behind it that
  // belong to no buffer. Never NULL, also for 0 bytes; throws std::bad_alloc.
  void *allocate(size_t bytes, std::string name = "");
  // Frees what allocate() gave; false if it never did or the memory is freed already.
  bool release(void *address);

  // Makes memory of somebody else a buffer, until remove() of the same address. Buffers must not overlap: throws
  // std::invalid_argument.
  void add(void *address, size_t bytes, std::string name = "");
  bool remove(const void *address);

  // The buffer that holds the address.
  std::optional<Buffer> find(const void *address) const;
  size_t allocated_bytes() const;  // by allocate() and not yet released

  struct Impl;
  Impl &impl() const { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

// ---- Modules ----------------------------------------------------------------------------------------------------------

struct KernelInfo {
  std::string name;  // as mangled in the PTX
  std::vector<size_t> parameter_bytes;
  size_t static_shared_bytes = 0;
  size_t local_bytes = 0;       // for each thread
  uint32_t max_threads = 1024;  // for each block: .maxntid
};

// One instruction of a kernel, for tools that look for barriers, waits, predicates or constants to break.
struct InstructionInfo {
  int ptx_line;      // 1 = the first line of the text
  std::string text;  // "@%p1 bra $L__BB0_2"
  Line line;
};

// A loaded PTX text with the memory of its module-level variables. Copies share that memory.
class Module {
 public:
  std::vector<KernelInfo> kernels() const;
  bool has_kernel(std::string_view kernel) const;
  // Of a kernel; throws std::out_of_range if there is none of this name.
  KernelInfo kernel(std::string_view name) const;
  std::vector<InstructionInfo> instructions(std::string_view kernel) const;
  // A .global or .const variable by its PTX name, for cudaMemcpyToSymbol and its like.
  std::optional<Buffer> variable(std::string_view name) const;

  struct Impl;
  explicit Module(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
  Impl &impl() const { return *impl_; }

 private:
  std::shared_ptr<Impl> impl_;
};

Module load_module(std::string_view ptx);

// The PTX texts inside a fat binary image, which may be the argument of __cudaRegisterFatBinary (a wrapper that points
// to the image) or the image itself. Throws std::invalid_argument for compressed texts (nvcc's --no-compress) and for
// what isn't a fat binary. See fatbin.h for the layout.
std::vector<std::string> ptx_texts(const void *fat_binary);

// ---- Launches ---------------------------------------------------------------------------------------------------------

// Which warp, and which block, runs next.
enum class Order { kForward, kReverse, kRandom };
// When the bytes of asynchronous copies arrive and wgmma computes: as late as the waits allow, at once, or at a random
// moment between.
enum class Copies { kLate, kEager, kRandom };

struct Options {
  Order order = Order::kForward;
  Copies copies = Copies::kLate;
  uint64_t seed = 0;  // of both

  bool races = true;                   // happens-before detection, kInFlight, kFence, and where descriptors may start
  bool uninitialised = true;           // kUninitialised
  bool traffic = true;                 // Stats::buffers, sectors and bank conflicts
  bool executed_lines = false;         // Stats::executed_lines
  bool run = true;                     // else the launch is checked, and nothing more
  bool collect = false;                // put reports into Stats instead of throwing the first; the launch goes on
  size_t max_reports = 100;            // different ones; later ones are dropped
  uint64_t max_instructions = 0;       // of all warps together; 0 = no limit
  uint32_t max_resident_blocks = 256;  // blocks are run one by one, more at a time only while they wait for others

  size_t shared_limit_bytes = 227 * 1024;  // static and dynamic together
};

// Global memory, one buffer. "Requested" counts bytes that lanes ask for; a sector is 32 bytes at a multiple of 32, counted
// once for each warp instruction that touches it; "unique" counts each byte of the buffer once.
struct Traffic {
  Buffer buffer;
  uint64_t read_bytes = 0, read_sectors = 0, read_unique_bytes = 0;
  uint64_t written_bytes = 0, written_sectors = 0, written_unique_bytes = 0;  // without atomics
  uint64_t written_twice_bytes = 0;  // bytes that more than one plain store wrote
  uint64_t atomic_bytes = 0;         // by atom and red
};

// A loop: the instructions between the target of a backward branch and that branch.
struct Loop {
  Line first, last;
  uint64_t instructions = 0;  // executed by warps
  uint64_t fma = 0;           // of these fma.f32, mad.f32 and their packed forms
  uint64_t mma = 0, wgmma = 0;
};

struct Stats {
  uint64_t warp_instructions = 0;
  uint64_t lane_instructions = 0;           // sum of the active lanes
  std::map<std::string, uint64_t> opcodes;  // warp instructions by opcode without types: "fma", "ld.global"
  uint64_t mma = 0, wgmma = 0;              // warp instructions: a warpgroup's wgmma is four
  uint64_t matrix_flops = 0;                // of these: 2 for each product
  uint64_t barriers = 0;                    // bar.sync that let their threads go on
  uint64_t shared_accesses = 0;             // warp instructions: ld, st, atom, ldmatrix
  uint64_t shared_wavefronts = 0;           // passes through the 32 banks that they took
  uint64_t bank_conflicts = 0;              // passes beyond what their width needs
  std::optional<Loop> hottest;              // the innermost loop with the most instructions
  std::vector<Traffic> buffers;             // those touched, by address
  std::vector<int> executed_lines;          // of the PTX: those of instructions that any lane ran, ascending
  std::vector<Report> reports;

  const Traffic *traffic(const void *address) const;  // of the buffer that holds it; NULL if it wasn't touched
};

// Runs a kernel over a grid. `params[i]` points to the value of the i-th parameter, as in cudaLaunchKernel. Throws
// Fault (see Options::collect; kLaunch and kTimeout, kDeadlock and kTrap end the launch even when collecting) and
// std::out_of_range for an unknown kernel.
Stats launch(const Module &module, Memory &memory, std::string_view kernel, Dim3 grid, Dim3 block,
             size_t dynamic_shared_bytes, const void *const *params, const Options &options = {});

}  // namespace emulator
