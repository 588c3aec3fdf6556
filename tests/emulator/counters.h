// What a launch counts: executions of every instruction, sectors of global memory, passes through the banks of shared memory.
#pragma once
#include <cstdint>
#include <vector>

#include "emulator.h"
#include "program.h"

namespace emulator {

struct Counters {
  std::vector<uint64_t> executed;  // by instruction: warps that ran it with at least one lane
  uint64_t lanes = 0;
  uint64_t barriers = 0;
  uint64_t shared_accesses = 0, shared_wavefronts = 0, bank_conflicts = 0;

  // One access to shared memory by the lanes of the mask: `bytes` each, from the given offsets.
  void count_shared(const uint64_t *offsets, Mask lanes, int bytes);
  // Fills in all that follows from them.
  void finish(const Kernel &kernel, Stats &stats) const;
};

// The number of 32-byte sectors that lanes touch, each at most 32 aligned bytes.
uint64_t count_sectors(const uint64_t *addresses, Mask lanes);

}  // namespace emulator
