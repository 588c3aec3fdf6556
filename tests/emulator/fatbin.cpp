#include "fatbin.h"

#include <cstring>

namespace emulator {

namespace {

constexpr uint32_t kWrapperMagic = 0x466243b1, kImageMagic = 0xba55ed50;
constexpr uint16_t kPtx = 1;
constexpr uint64_t kCompressedLz4 = 0x2000, kCompressedZstd = 0x8000;

template <class T>
T read(const std::byte *at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

}  // namespace

std::vector<std::string> ptx_texts(const void *fat_binary) {
  const auto *at = static_cast<const std::byte *>(fat_binary);
  if (at == nullptr) throw std::invalid_argument("no fat binary");
  if (read<uint32_t>(at) == kWrapperMagic) at = reinterpret_cast<const std::byte *>(read<uint64_t>(at + 8));
  if (read<uint32_t>(at) != kImageMagic) throw std::invalid_argument("not a fat binary");
  const std::byte *entry = at + read<uint16_t>(at + 6), *end = entry + read<uint64_t>(at + 8);
  std::vector<std::string> texts;
  while (entry < end) {
    const auto kind = read<uint16_t>(entry);
    const auto header = read<uint32_t>(entry + 4);
    const auto bytes = read<uint64_t>(entry + 8);
    if (header < 48 || header > static_cast<uint64_t>(end - entry) ||
        bytes > static_cast<uint64_t>(end - entry) - header) {
      throw std::invalid_argument("a fat binary of an unknown layout");
    }
    if (kind == kPtx) {
      if (read<uint64_t>(entry + 40) & (kCompressedLz4 | kCompressedZstd)) {
        throw std::invalid_argument("the PTX is compressed: compile with nvcc --no-compress");
      }
      const auto *text = reinterpret_cast<const char *>(entry + header);
      texts.emplace_back(text, strnlen(text, bytes));
    }
    entry += header + bytes;
  }
  return texts;
}

}  // namespace emulator
