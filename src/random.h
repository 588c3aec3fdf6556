// Dropout as a pure function: the same on every backend, device and tile size.
//
// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) with key (seed low, seed high)
// and counter (j >> 1, i >> 1, h, b) gives four words for a 2 x 2 square of score positions; position (i, j) takes word
// 2 * (i & 1) + (j & 1) and is kept when word >= round(dropout * 2^32).
#pragma once
#include <cstdint>

#include "portable.h"

namespace flash {

struct Philox {
  uint32_t word[4];
};
struct PhiloxKey {
  uint32_t word[2];
};

constexpr int kPhiloxRounds = 10;

FLASH_INLINE PhiloxKey philox_key(uint64_t seed) {
  return {{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)}};
}
FLASH_INLINE PhiloxKey next(PhiloxKey key) { return {{key.word[0] + 0x9E3779B9u, key.word[1] + 0xBB67AE85u}}; }

FLASH_INLINE Philox philox_round(Philox x, PhiloxKey key) {
  const uint64_t product0 = uint64_t{0xD2511F53u} * x.word[0], product1 = uint64_t{0xCD9E8D57u} * x.word[2];
  return {{static_cast<uint32_t>(product1 >> 32) ^ x.word[1] ^ key.word[0], static_cast<uint32_t>(product1),
           static_cast<uint32_t>(product0 >> 32) ^ x.word[3] ^ key.word[1], static_cast<uint32_t>(product0)}};
}

FLASH_INLINE Philox philox4x32(uint64_t seed, Philox counter) {
  PhiloxKey key = philox_key(seed);
  for (int round = 0; round < kPhiloxRounds; ++round, key = next(key)) counter = philox_round(counter, key);
  return counter;
}

// The counter of the square that holds position (i, j) of head h and batch b.
FLASH_INLINE Philox dropout_counter(int64_t b, int64_t h, int64_t i, int64_t j) {
  return {{static_cast<uint32_t>(j >> 1), static_cast<uint32_t>(i >> 1), static_cast<uint32_t>(h),
           static_cast<uint32_t>(b)}};
}

FLASH_INLINE Philox dropout_words(uint64_t seed, int64_t b, int64_t h, int64_t i, int64_t j) {
  return philox4x32(seed, dropout_counter(b, h, i, j));
}

FLASH_INLINE int dropout_word_index(int64_t i, int64_t j) { return static_cast<int>(2 * (i & 1) + (j & 1)); }

// round(dropout * 2^32): from 0 (keep all) to 2^32 (keep none), so it needs more than 32 bits.
FLASH_INLINE uint64_t dropout_threshold(double dropout) { return static_cast<uint64_t>(dropout * 4294967296.0 + 0.5); }

}  // namespace flash
