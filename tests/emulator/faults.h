// Faults to plant in a kernel, to see whether the tests would notice them: each is one statement of its PTX, changed.
//
//   for (const SeededFault &fault : faults_of(ptx, "kernel"))
//     launch(load_module(with_fault(ptx, fault)), ...);     // a report, or another result than that of load_module(ptx)
//
// The faults are those that people make when they write kernels:
//
//   synchronisation  a barrier, fence, wait, arrive or commit that isn't there; a wait for one group too few, or of the
//                    wrong parity; a barrier that expects other bytes, arrivals or threads, or is another one; a buffer
//                    that is released before the wait for the wgmma that reads it
//   predicate        a comparison that decides about a branch, an access or a choice: always true, always false, and off
//                    by one (< for <=)
//   address          a constant on the way to an address: the offset in an access, and what is added, multiplied, shifted
//                    and masked before it, each changed by one element of what is accessed; a box's coordinates
//   descriptor       a field of a wgmma's descriptor: its address or strides 16 bytes off, another swizzle
//   step             what a loop adds to a register on each turn, doubled
//
// They are found in the text alone, by what an opcode is and by which registers reach an address, so a new kernel needs
// nothing. Left alone is what the compiler makes up: where parameters and local memory lie, the sign of a number that is
// divided, and the question whether a 64-bit division may be done in 32 bits. So are comparisons of floats that
// only choose between two values or look into the bits of one: these are arithmetic.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "emulator.h"

namespace emulator {

enum class FaultKind { kSynchronisation, kPredicate, kAddress, kDescriptor, kStep };
const char *name_of(FaultKind kind);

struct SeededFault {
  std::string kernel;
  FaultKind kind;
  std::string what;         // "bar removed", "setp always true", "offset + 16"
  int ptx_line;             // of the statement, 1 = the first line of the text
  size_t begin, end;        // the statement, with its guard and ";", as positions in the text
  std::string replacement;  // of these; has as many lines
  Line line;                // in the CUDA source; its ptx is the statement
};

// In the order of the text. Throws std::out_of_range if the module has no such kernel.
std::vector<SeededFault> faults_of(std::string_view ptx, std::string_view kernel);

// The text with the fault in place.
std::string with_fault(std::string_view ptx, const SeededFault &fault);

}  // namespace emulator
