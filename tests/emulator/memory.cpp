#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "program.h"

namespace emulator {

namespace {
constexpr size_t kAlign = 256, kGap = 4096;
// From here on memory is taken only where it is touched, and is zero at first: few tests could afford a fill.
constexpr size_t kVast = size_t{1} << 30;

void *new_block(size_t bytes) {
  if (bytes >= kVast) {
    void *block = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (block == MAP_FAILED) throw std::bad_alloc();
    return block;
  }
  void *block = std::aligned_alloc(kAlign, bytes);
  if (block == nullptr) throw std::bad_alloc();
  std::memset(block, 0xff, bytes);
  return block;
}

void free_block(void *block, size_t bytes) {
  if (bytes >= kVast)
    munmap(block, bytes);
  else
    std::free(block);
}
}  // namespace

Memory::Memory() : impl_(std::make_unique<Impl>()) {}
Memory::~Memory() = default;

Memory::Impl::~Impl() {
  for (auto &[address, entry] : entries) free_block(entry.block, entry.block_bytes);
}

const Memory::Impl::Entry *Memory::Impl::find(uint64_t address) const {
  auto next = entries.upper_bound(address);
  if (next == entries.begin()) return nullptr;
  const Entry &entry = std::prev(next)->second;
  return address - entry.buffer.address < std::max<size_t>(entry.buffer.bytes, 1) ? &entry : nullptr;
}

void Memory::Impl::insert(Entry entry) {
  const uint64_t begin = entry.buffer.address, end = begin + std::max<size_t>(entry.buffer.bytes, 1);
  auto next = entries.lower_bound(begin);
  if ((next != entries.end() && next->first < end) || find(begin) != nullptr) {
    throw std::invalid_argument("the buffer " + entry.buffer.name + " overlaps another one");
  }
  entries.emplace(begin, std::move(entry));
}

void *Memory::allocate(size_t bytes, std::string name) {
  if (bytes > SIZE_MAX - 4 * kGap) throw std::bad_alloc();
  const size_t block_bytes = (bytes + 2 * kGap + kAlign) / kAlign * kAlign;
  void *block = new_block(block_bytes);
  const uint64_t address = reinterpret_cast<uint64_t>(block) + kGap;
  std::lock_guard<std::mutex> lock(impl_->mutex);
  impl_->insert({{std::move(name), address, bytes}, block, block_bytes});
  impl_->allocated += bytes;
  return reinterpret_cast<void *>(address);
}

bool Memory::release(void *address) {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  const auto found = impl_->entries.find(reinterpret_cast<uint64_t>(address));
  if (found == impl_->entries.end() || found->second.block == nullptr) return false;
  impl_->allocated -= found->second.buffer.bytes;
  free_block(found->second.block, found->second.block_bytes);
  impl_->entries.erase(found);
  return true;
}

void Memory::add(void *address, size_t bytes, std::string name) {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  impl_->insert({{std::move(name), reinterpret_cast<uint64_t>(address), bytes}});
}

bool Memory::remove(const void *address) {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  const auto found = impl_->entries.find(reinterpret_cast<uint64_t>(address));
  if (found == impl_->entries.end() || found->second.block != nullptr) return false;
  impl_->entries.erase(found);
  return true;
}

std::optional<Buffer> Memory::find(const void *address) const {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  const Impl::Entry *entry = impl_->find(reinterpret_cast<uint64_t>(address));
  if (entry == nullptr) return std::nullopt;
  return entry->buffer;
}

size_t Memory::allocated_bytes() const {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  return impl_->allocated;
}

uint64_t ByteSet::add(uint64_t begin, uint64_t end) {
  uint64_t added = 0;
  while (begin < end) {
    const uint64_t first = begin % 64, last = std::min<uint64_t>(64, first + (end - begin));
    const uint64_t bits = (last - first == 64 ? ~uint64_t{0} : ((uint64_t{1} << (last - first)) - 1)) << first;
    const uint64_t page = begin / kPageBytes;
    if (page >= pages_.size()) pages_.resize(page + 1);
    if (pages_[page].empty()) pages_[page].resize(kPageBytes / 64);
    uint64_t &word = pages_[page][begin % kPageBytes / 64];
    added += static_cast<uint64_t>(__builtin_popcountll(bits & ~word));
    word |= bits;
    begin += last - first;
  }
  return added;
}

BufferTable::BufferTable(const Memory &memory, const Module::Impl &module) {
  const Memory::Impl &impl = memory.impl();
  {
    std::lock_guard<std::mutex> lock(impl.mutex);
    for (const auto &[address, entry] : impl.entries) buffers_.emplace_back().buffer = entry.buffer;
  }
  for (const auto &variable : module.variables) {
    TrackedBuffer &tracked = buffers_.emplace_back();
    tracked.buffer = {variable->name, variable->address, variable->bytes};
    tracked.constant = variable->constant;
  }
  std::sort(buffers_.begin(), buffers_.end(),
            [](const TrackedBuffer &a, const TrackedBuffer &b) { return a.buffer.address < b.buffer.address; });
}

TrackedBuffer *BufferTable::search(uint64_t address, size_t bytes) {
  const auto after = std::upper_bound(buffers_.begin(), buffers_.end(), address,
                                      [](uint64_t a, const TrackedBuffer &b) { return a < b.buffer.address; });
  if (after == buffers_.begin()) return nullptr;
  TrackedBuffer &found = *std::prev(after);
  if (!contains(found, address, bytes)) return nullptr;
  if (!found.touched) {
    found.touched = true;
    found.traffic.buffer = found.buffer;
  }
  return last_ = &found;
}

std::string BufferTable::describe(uint64_t address) const {
  const auto after = std::upper_bound(buffers_.begin(), buffers_.end(), address,
                                      [](uint64_t a, const TrackedBuffer &b) { return a < b.buffer.address; });
  const auto place = [&](const TrackedBuffer &b) {
    const bool before = address < b.buffer.address;
    const uint64_t distance = before ? b.buffer.address - address : address - b.buffer.address;
    return (b.buffer.name.empty() ? "a buffer" : b.buffer.name) + (before ? " - " : " + ") + std::to_string(distance) +
           ", which has " + std::to_string(b.buffer.bytes) + " bytes";
  };
  constexpr uint64_t kNear = 1 << 20;
  if (after != buffers_.begin()) {
    const TrackedBuffer &b = *std::prev(after);
    if (address - b.buffer.address - b.buffer.bytes < kNear || address - b.buffer.address < b.buffer.bytes) {
      return place(b);
    }
  }
  if (after != buffers_.end() && after->buffer.address - address < kNear) return place(*after);
  char text[32];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(address));
  return std::string("address ") + text + ", far from every buffer";
}

}  // namespace emulator
