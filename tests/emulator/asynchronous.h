// What works beside the threads of a block: mbarriers, bulk copies (TMA) and wgmma.
//
// All of it starts with an instruction and ends some time later. Memory and registers are checked when it starts, in the
// name of the agent that does the work (race.h); its numbers are computed as late as allowed, at once, or at a random
// moment (Copies), so that whoever looks too early sees the wrong ones even without race detection.
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "program.h"
#include "race.h"

namespace emulator {

struct Block;
struct Warp;

// ---- mbarriers

// The object in 8 bytes of shared memory. A phase ends when no arrival and no byte is pending any more.
struct Mbarrier {
  uint32_t expected = 0, pending = 0;  // arrivals
  int64_t bytes = 0;                   // tx-count: expected and not yet arrived; negative: the other way round
  uint64_t phase = 0;                  // that is under way; = phases that have ended
  int thread = 0;                      // of its init
  Clock clock = 0;
  uint32_t pc = 0;
  int agent = -1;         // of bulk copies that complete here
  Clock agent_clock = 0;  // of those that complete in the phase under way
  Knowledge arriving;
  std::optional<Handed> passed;  // what the last ended phase hands to those who wait for it
  // For the check at the end: copies that nobody has waited for.
  uint64_t copied = 0, waited = 0;  // the phase that the last copy belongs to, and the last that was waited for; from 1
  uint32_t copy_pc = 0;
  int copy_thread = 0;
};

constexpr uint64_t kMbarrierBytes = 8;

// The mbarrier at an offset; reports that there is none (NULL), or that its init isn't ordered before this.
Mbarrier *find_mbarrier(Warp &warp, int lane, uint32_t offset);
// Some bytes of the tx-count have arrived, so that they are no longer expected.
void complete_bytes(Block &block, Mbarrier &mbarrier, int64_t bytes);

// ---- Bulk copies

// 16 bytes of shared memory that lie next to each other in global memory too, of which [begin, end) are inside the tensor.
struct Chunk {
  uint32_t shared;
  uint8_t begin, end;
  uint64_t global;  // of byte 0, which may be outside
};

struct BulkCopy {
  const BulkShape *shape;
  uint32_t pc;
  int thread;
  uint32_t mbarrier;  // a load's, and its phase
  uint64_t phase;
  uint32_t group;  // of a store: of its thread
  std::vector<Chunk> chunks;
  std::vector<std::byte> data;                  // of a load: the bytes on their way
  BulkShape::Element element = BulkShape::kU8;  // of a reduction
};

// The bulk groups of one thread.
struct BulkGroups {
  uint32_t commits = 0;
  uint32_t read = 0;             // the groups that it has waited for, at least for their reads of shared memory
  uint32_t last_pc = 0;          // of the last copy
  uint32_t last_group = 0;       // from 1; 0: there was none
  int reader = -1, writer = -1;  // agents
};

// Ends the copy at this place of Block::bulk.
void land_bulk_copy(Block &block, size_t index);
// Reports what a thread, or the block, leaves behind when it ends.
void end_of_thread(Warp &warp, int lane);
void end_of_block(Warp &last);

// ---- wgmma

// One wgmma.mma_async of a warpgroup, which each of its four warps issues.
struct MatrixWork {
  uint32_t pc;
  uint32_t group;  // from 1
  Mask issued;     // warps
  bool done;
  uint64_t a, b;  // descriptors
  bool accumulate;
};

struct Warpgroup {
  std::deque<MatrixWork> work;
  uint64_t first = 0;       // number of work.front()
  uint64_t issued[4] = {};  // by warp
  uint32_t commits[4] = {};
  int agent = -1;
};

// What a warp remembers of a register that is an accumulator or holds A, by Kernel::matrix_register.
struct MatrixRegister {
  uint16_t results = 0, inputs = 0;  // how many wgmma in flight write or read it
  uint32_t touched = 0;              // by another instruction, in this interval between wgmma.fence
  uint32_t work_pc = 0;              // the last wgmma that has it
};

// Before an instruction other than wgmma that has such registers runs.
void touch_matrix_registers(Warp &warp, const Instruction &i, Mask lanes);

}  // namespace emulator
