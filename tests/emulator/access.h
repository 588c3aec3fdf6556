// The one way to memory: every instruction that reads or writes goes through checked(), which finds out where each lane's
// bytes are, reports what is wrong, feeds race detection and counts traffic.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "machine.h"

namespace emulator {

enum class Use : uint8_t { kRead, kWrite, kAtomic };

// The bytes of each lane of one instruction.
struct Access {
  Space space = Space::kGeneric;
  Use use = Use::kRead;
  int bytes = 0;      // of a lane: 1 to 16, and the alignment
  bool copy = false;  // cp.async: the write ends later
  uint64_t address[kLanes];
  // For writes: what the lane writes, so that lanes of one instruction that write the same are no race. May be NULL.
  const std::byte *data = nullptr;
  size_t data_stride = 0;

  std::byte *place[kLanes];  // result: where the bytes are, in host memory
};

// Base register and offset.
void lane_addresses(const Warp &warp, const Operand &base, int64_t offset, uint64_t *address);
// Fills in Access::place and returns the lanes that may go on; the others have been reported.
Mask checked(Warp &warp, const Instruction &i, Access &access, Mask lanes);

// The offset in shared memory that a lane's address says, if the bytes are there, aligned; else it has been reported.
std::optional<uint32_t> shared_offset(Warp &warp, const AddressOperand &address, int lane, uint64_t bytes,
                                      uint64_t align, const char *what);
// Report of an access of an asynchronous operation, or to an mbarrier.
void report_conflict(Warp &warp, int lane, const std::string &access, const std::string &where,
                     const Conflict &conflict);

// Atomics and strong accesses make an order: called before a strong load's value is used, and after a strong store.
void order_before(Warp &warp, const Instruction &i, const Access &access, Mask lanes);
void order_after(Warp &warp, const Instruction &i, const Access &access, Mask lanes);

// The text at a generic address, for messages; stops at anything unreadable.
std::string text_at(Warp &warp, uint64_t address);

}  // namespace emulator
