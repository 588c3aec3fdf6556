// Who may see whom: the only place that knows how causal, window, offset and lengths align.
//
//   visible(i, j) = i < q_len  and  j < kv_len  and  i + off - left <= j <= i + off + right       (causal: right <= 0)
//
// For one query the visible keys are one interval, and for one key the visible queries are one interval; masks and
// block lists only take away from it. Host and device, plain arithmetic, no other dependency.
#pragma once
#include <cstdint>

#include "portable.h"

namespace flash {

// A side of the window that is open. Lengths and offsets stay far below it, so no sum with it overflows.
constexpr int64_t kOpen = int64_t{1} << 40;

struct Window {
  int64_t left, right;  // >= 0, both ends included; kOpen = unbounded; causal makes right 0
};

struct Sequence {
  int64_t q_len, kv_len;  // how many queries and keys are real
  int64_t offset;         // position of query 0 in key coordinates
};

struct Interval {
  int64_t begin, end;  // half open; empty when begin >= end
};

FLASH_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
FLASH_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
FLASH_INLINE int64_t clamp(int64_t x, int64_t low, int64_t high) { return larger(low, smaller(x, high)); }
FLASH_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
FLASH_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
FLASH_INLINE bool empty(Interval x) { return x.begin >= x.end; }
FLASH_INLINE Interval intersection(Interval a, Interval b) { return {larger(a.begin, b.begin), smaller(a.end, b.end)}; }

// The keys that query i may see.
FLASH_INLINE Interval keys_of(Window window, Sequence sequence, int64_t i) {
  if (i >= sequence.q_len) return {0, 0};
  const int64_t position = i + sequence.offset;
  return {larger(0, position - window.left), smaller(sequence.kv_len, position + window.right + 1)};
}

// The same rule by diagonals, in 32 bits and without a look at q_len: a real query i sees key j where low <= j - i <=
// high and j is real; -1 is no key.
struct Band {
  int low, high, kv_len;
};
FLASH_INLINE Band band_of(Window window, Sequence sequence) {
  constexpr int64_t kMost = (int64_t{1} << 31) - 1;  // beyond any difference of positions
  return {static_cast<int>(clamp(sequence.offset - window.left, -kMost, kMost)),
          static_cast<int>(clamp(sequence.offset + window.right, -kMost, kMost)), static_cast<int>(sequence.kv_len)};
}
FLASH_INLINE bool sees(Band band, int i, int j) {
  return static_cast<unsigned>(j) < static_cast<unsigned>(band.kv_len) && j - i >= band.low && j - i <= band.high;
}
// Whether every real query from first_query to last_query sees every key from first_key, which may be -1, to last_key.
FLASH_INLINE bool all_see_all(Band band, int first_query, int last_query, int first_key, int last_key) {
  return first_key >= 0 && last_key < band.kv_len && first_key - last_query >= band.low &&
         last_key - first_query <= band.high;
}

// The queries that may see key j.
FLASH_INLINE Interval queries_of(Window window, Sequence sequence, int64_t j) {
  if (j >= sequence.kv_len) return {0, 0};
  const int64_t position = j - sequence.offset;
  return {larger(0, position - window.right), smaller(sequence.q_len, position + window.left + 1)};
}

// The keys that some query of `rows` may see: from the first row's first to the last row's last.
FLASH_INLINE Interval keys_of_any(Window window, Sequence sequence, Interval rows) {
  rows.end = smaller(rows.end, sequence.q_len);
  if (empty(rows)) return {0, 0};
  return {keys_of(window, sequence, rows.begin).begin, keys_of(window, sequence, rows.end - 1).end};
}

// The keys that every query of `rows` may see: a block inside it needs no element test.
FLASH_INLINE Interval keys_of_all(Window window, Sequence sequence, Interval rows) {
  if (empty(rows)) return {0, 0};
  return {keys_of(window, sequence, rows.end - 1).begin, keys_of(window, sequence, rows.begin).end};
}

// The queries that may see some key of `columns`.
FLASH_INLINE Interval queries_of_any(Window window, Sequence sequence, Interval columns) {
  columns.end = smaller(columns.end, sequence.kv_len);
  if (empty(columns)) return {0, 0};
  return {queries_of(window, sequence, columns.begin).begin, queries_of(window, sequence, columns.end - 1).end};
}

}  // namespace flash
