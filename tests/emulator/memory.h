// Global memory as a launch sees it: the buffers that a kernel may touch, found by address, and what was done to each.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "emulator.h"

namespace emulator {

struct Memory::Impl {
  struct Entry {
    Buffer buffer;
    void *block = nullptr;  // what to free, if allocate() made it
    size_t block_bytes = 0;
  };
  mutable std::mutex mutex;
  std::map<uint64_t, Entry> entries;  // by address
  size_t allocated = 0;

  ~Impl();
  void insert(Entry entry);
  const Entry *find(uint64_t address) const;  // that holds the address; the caller locks
};

// One bit for each byte of a buffer, in pages that are made when they are touched: buffers may be vast.
class ByteSet {
 public:
  // Adds [begin, end) and returns how many of these weren't there before.
  uint64_t add(uint64_t begin, uint64_t end);

 private:
  static constexpr uint64_t kPageBytes = 1 << 14;  // of the buffer
  std::vector<std::vector<uint64_t>> pages_;
};

// A buffer during one launch.
struct TrackedBuffer {
  Buffer buffer;
  bool constant = false;
  bool touched = false;
  Traffic traffic;
  ByteSet read, written, twice;
};

// The buffers of one launch: a copy of the table, so that a launch never waits for another.
class BufferTable {
 public:
  BufferTable(const Memory &memory, const Module::Impl &module);
  // The buffer that holds all of [address, address + bytes), or NULL.
  TrackedBuffer *find(uint64_t address, size_t bytes) {
    if (last_ != nullptr && contains(*last_, address, bytes)) return last_;
    return search(address, bytes);
  }
  std::vector<TrackedBuffer> &all() { return buffers_; }
  size_t index_of(const TrackedBuffer &buffer) const { return static_cast<size_t>(&buffer - buffers_.data()); }
  // "q + 8192, which has 8192 bytes", or that there is no buffer near.
  std::string describe(uint64_t address) const;

 private:
  static bool contains(const TrackedBuffer &b, uint64_t address, size_t bytes) {
    return address >= b.buffer.address && address - b.buffer.address + bytes <= b.buffer.bytes;
  }
  TrackedBuffer *search(uint64_t address, size_t bytes);
  std::vector<TrackedBuffer> buffers_;  // by address
  TrackedBuffer *last_ = nullptr;
};

}  // namespace emulator
