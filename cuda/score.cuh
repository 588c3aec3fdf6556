// The rules of one score: scale, softcap, ALiBi, bias, mask, who sees whom, dropout. The only device code that knows
// the options; alignment comes from geometry.h, dropout from random.h.
#pragma once
#include <cstdint>
#include <type_traits>

#include "number.cuh"
#include "random.h"
#include "work.cuh"

namespace flash {

constexpr float kLog2E = 1.44269504088896340736f, kLn2 = 0.693147180559945309417f;
__device__ __forceinline__ float infinity() { return float_from_bits(0x7f800000u); }

// Where batch b starts: leading_offset in 32 bits (extents are below 2^31), and small in code.
__device__ __forceinline__ int64_t batch_offset(const LeadingAxes &axes, int64_t b) {
  int64_t offset = 0;
  auto rest = static_cast<uint32_t>(b);
#pragma unroll 1
  for (int axis = axes.rank - 1; axis >= 0; --axis) {
    const auto extent = static_cast<uint32_t>(axes.extent[axis]);
    offset += rest % extent * axes.stride[axis];
    rest /= extent;
  }
  return offset;
}

__device__ __forceinline__ int64_t read_or(const BatchView &view, int64_t b, int64_t otherwise) {
  return view.data == nullptr ? otherwise : read_integer(view.data, view.dtype, batch_offset(view.batch, b));
}

// The lengths and offset of batch b, clamped to what the shapes allow.
__device__ __forceinline__ Sequence sequence_of(const Attention &x, int64_t b) {
  constexpr int64_t kMostOffset = (int64_t{1} << 30) - 1;
  Sequence sequence;
  sequence.q_len = clamp(read_or(x.q_lens, b, x.Lq), 0, x.Lq);
  sequence.kv_len = clamp(read_or(x.kv_lens, b, x.Lk), 0, x.Lk);
  sequence.offset = x.has_q_offset ? x.q_offset : sequence.kv_len - sequence.q_len;
  if (x.q_offsets.data != nullptr) sequence.offset = clamp(read_or(x.q_offsets, b, 0), -kMostOffset, kMostOffset);
  return sequence;
}

// The band of a sequence, worked out anew where this stands: kept, it would take registers from the products.
__device__ __forceinline__ Band band_here(Window window, Sequence sequence) {
  sequence.offset = here(sequence.offset);
  return band_of(window, sequence);
}

__device__ __forceinline__ uint64_t seed_of(const Attention &x) {
  return static_cast<uint64_t>(read_or(x.seeds, 0, static_cast<int64_t>(x.seed)));
}

// One head of one sequence: what its scores have in common.
struct Head {
  int64_t b;
  int h, kv_head;
  Sequence sequence;
  uint64_t seed;
  int64_t mask, bias;  // where its part of them begins
  float slope;
};

template <bool kOptions>
__device__ __forceinline__ Head head_of(const Attention &x, const Sequence &sequence, int64_t b, int h) {
  Head head = {b, h, h / (x.Hq / x.Hk), sequence, 0, 0, 0, 0.f};
  if constexpr (kOptions) {
    if (x.keep_threshold != 0) head.seed = seed_of(x);
    if (x.mask.data != nullptr) head.mask = batch_offset(x.mask.batch, b) + h * x.mask.head;
    if (x.bias.data != nullptr) head.bias = batch_offset(x.bias.batch, b) + h * x.bias.head;
    if (x.alibi_slopes.data != nullptr)
      head.slope = static_cast<const float *>(
          x.alibi_slopes.data)[batch_offset(x.alibi_slopes.batch, b) + h * x.alibi_slopes.head];
  }
  return head;
}

// tanh(scale * q . k / softcap), with softcap on: its derivative follows from it.
__device__ __forceinline__ float tanh_of(const Attention &x, float product) {
  return tanhf(product * x.scale / x.softcap);
}

__device__ __forceinline__ float bias_of(const Attention &x, const Head &head, int i, int j) {
  return read_number(x.bias.data, x.bias.dtype, head.bias + i * x.bias.row + j * x.bias.column);
}

// The score of a visible pair, from q . k or, with softcap on, from tanh_of.
__device__ __forceinline__ float shaped(const Attention &x, const Head &head, float from, int i, int j) {
  float s = from * (x.softcap > 0 ? x.softcap : x.scale);
  if (head.slope != 0) {
    const int64_t distance = i + head.sequence.offset - j;
    s -= head.slope * static_cast<float>(distance < 0 ? -distance : distance);
  }
  return x.bias.data == nullptr ? s : s + bias_of(x, head, i, j);
}

__device__ __forceinline__ bool mask_allows(const Attention &x, const Head &head, int i, int j) {
  return x.mask.data == nullptr ||
         static_cast<const uint8_t *>(x.mask.data)[head.mask + i * x.mask.row + j * x.mask.column] != 0;
}

// Where the row next to one of a thread's rows is, an even position and the odd one after it: rows 2n and 2n + 1 are
// both the thread's, or 0 and 1 are 8 apart and the thread 4 lanes further has the next one of each, as with wgmma.
enum class Neighbour : uint8_t { kOwn, kFourLanesOff };

// The part of a tile that one thread owns: row_of(a) and column_of(b) are positions, -1 where there is none.
template <Side kRowSide_, Neighbour kNeighbour_, int kRows_, int kColumns_, class RowOf, class ColumnOf>
struct Part {
  static constexpr Side kRowSide = kRowSide_;
  static constexpr Neighbour kNeighbour = kNeighbour_;
  static constexpr int kRows = kRows_, kColumns = kColumns_;
  static constexpr bool kQueryRows = kRowSide == Side::kQueries;
  RowOf row_of;
  ColumnOf column_of;

  __device__ __forceinline__ int query(int a, int b) const { return kQueryRows ? row_of(a) : column_of(b); }
  __device__ __forceinline__ int key(int a, int b) const { return kQueryRows ? column_of(b) : row_of(a); }
};
template <Side kRowSide, int kRows, int kColumns, Neighbour kNeighbour = Neighbour::kOwn, class RowOf, class ColumnOf>
__device__ __forceinline__ Part<kRowSide, kNeighbour, kRows, kColumns, RowOf, ColumnOf> part_of(RowOf row_of,
                                                                                                ColumnOf column_of) {
  return {row_of, column_of};
}

// change(score, i, j) for all scores of a part.
template <class P, class Change>
__device__ __forceinline__ void for_each_score(const P &part, float (&s)[P::kRows][P::kColumns], Change change) {
#pragma unroll
  for (int a = 0; a < P::kRows; ++a)
#pragma unroll
    for (int b = 0; b < P::kColumns; ++b) change(s[a][b], part.query(a, b), part.key(a, b));
}

// change(score, number) for all scores, with the numbers of their pairs: rows of keys at `from`, `row` apart, in aligned
// pairs.
template <class T, class P, class Change>
__device__ __forceinline__ void for_each_number(const T *from, int64_t row, const P &part,
                                                float (&s)[P::kRows][P::kColumns], Change change) {
  // Where a thread has two neighbouring keys: in a row, in a column, or not at all.
  constexpr bool kInRow = P::kQueryRows, kInColumn = !kInRow && P::kNeighbour == Neighbour::kOwn;
#pragma unroll
  for (int a = 0; a < P::kRows; a += kInColumn ? 2 : 1)
#pragma unroll
    for (int b = 0; b < P::kColumns; b += kInRow ? 2 : 1) {
      const T *const at = from + part.query(a, b) * row + part.key(a, b);
      if constexpr (kInRow || kInColumn) {
        const auto pair = load_pair(at);
        change(s[a][b], pair.x);
        change(kInRow ? s[a][b + 1] : s[a + 1][b], pair.y);
      } else {
        change(s[a][b], widen(*at));
      }
    }
}

// With softcap on, scores become tanh_of.
template <class P>
__device__ __forceinline__ void cap_scores(const Attention &x, const P &part, float (&s)[P::kRows][P::kColumns]) {
  if (x.softcap > 0) for_each_score(part, s, [&](float &score, int, int) { score = tanh_of(x, score); });
}

// Scores from q . k or tanh_of, in registers; -inf where a query does not see a key. sees_all: every real query sees every
// key, but for the mask; then queries that are not real get any score, and with options none lies behind the last. One
// option after the other, so that none costs an instruction where it isn't used; and nothing is asked of single pairs
// where all see all. T: of q, and of the bias unless that is float32.
template <class T, bool kOptions, class P>
__device__ __forceinline__ void shape_scores(const Attention &x, const Head &head, const Band &band, const P &part,
                                             bool sees_all, float (&s)[P::kRows][P::kColumns]) {
  if constexpr (kOptions) {
    const float factor = x.softcap > 0 ? x.softcap : x.scale;
    for_each_score(part, s, [&](float &score, int, int) { score *= factor; });
    if (head.slope != 0) {
      const auto subtract = [&](auto offset) {  // in 32 bits where distances fit them
        for_each_score(part, s, [&](float &score, int i, int j) {
          score -= head.slope * fabsf(static_cast<float>(i + offset - j));
        });
      };
      if (x.is_plain_in_memory)
        subtract(static_cast<int>(head.sequence.offset));
      else
        subtract(head.sequence.offset);
    }
  }
  const auto q_len = static_cast<unsigned>(head.sequence.q_len);
  if (!sees_all)
    for_each_score(part, s, [&](float &score, int i, int j) {
      if (!sees(band, i, j) || (kOptions && static_cast<unsigned>(i) >= q_len)) score = -infinity();
    });
  if constexpr (kOptions) {
    const bool in_pairs = sees_all && x.is_plain_in_memory;
    if (x.bias.data != nullptr) {
      const auto add = [&](auto number) {
        for_each_number(static_cast<const decltype(number) *>(x.bias.data) + head.bias, x.bias.row, part, s,
                        [](float &score, float bias) { score += bias; });
      };
      if (!in_pairs || (sizeof(T) == 4 && x.bias.dtype != DType::kFloat32))
        for_each_score(part, s, [&](float &score, int i, int j) {
          if (score != -infinity()) score += bias_of(x, head, i, j);
        });
      else if (sizeof(T) == 2 && x.bias.dtype != DType::kFloat32)
        add(std::conditional_t<sizeof(T) == 2, T, float>{});
      else
        add(float{});
    }
    if (x.mask.data != nullptr) {
      if (in_pairs)
        for_each_number(static_cast<const uint8_t *>(x.mask.data) + head.mask, x.mask.row, part, s,
                        [](float &score, uint32_t allowed) { score = allowed != 0 ? score : -infinity(); });
      else
        for_each_score(part, s, [&](float &score, int i, int j) {
          if (score != -infinity() && !mask_allows(x, head, i, j)) score = -infinity();
        });
    }
  }
}

// Both at once.
template <class T, bool kOptions, class P>
__device__ __forceinline__ void apply_rules(const Attention &x, const Head &head, const Band &band, const P &part,
                                            bool sees_all, float (&s)[P::kRows][P::kColumns]) {
  if constexpr (kOptions) cap_scores(x, part, s);
  shape_scores<T, kOptions>(x, head, band, part, sees_all, s);
}

// Which pairs dropout keeps: bit kColumns * a + b. Neighbouring rows, and columns, start at an even position: one draw
// serves such a square. What is kept where there is no pair does not matter.
template <class P>
__device__ __forceinline__ auto kept_pairs(const Attention &x, const Head &head, const P &part) {
  constexpr int kRows = P::kRows, kColumns = P::kColumns;
  constexpr bool kOwn = P::kNeighbour == Neighbour::kOwn;
  static_assert(kRows % 2 == 0 && kColumns % 2 == 0 && kRows * kColumns <= 64, "squares of 2 x 2, in one word");
  static_assert(kOwn || kRows == 2, "rows 8 apart");
  using Word = std::conditional_t<kRows * kColumns <= 32, uint32_t, uint64_t>;
  Word kept = 0;
  if (x.keep_threshold >> 32 != 0) return kept;
  const uint32_t least = static_cast<uint32_t>(x.keep_threshold);
  // Of two lanes with neighbouring rows the first draws for row 0 of both, the second for row 1.
  const int drawn = kOwn ? 0 : static_cast<int>(threadIdx.x) / 4 % 2;
#pragma unroll 1  // all draws at once would take more registers than there are
  for (int square = 0; square < kRows * kColumns / 4; ++square) {
    const int a = square / (kColumns / 2) * 2, b = square % (kColumns / 2) * 2;
    const int i = P::kQueryRows && drawn == 1 ? part.query(1, b) : part.query(a, b);
    const int j = !P::kQueryRows && drawn == 1 ? part.key(1, b) : part.key(a, b);
    const Philox words = dropout_words(head.seed, head.b, head.h, i, j);
    Word bits = 0;
    if (words.word[0] >= least) bits |= 1;
    if (words.word[P::kQueryRows ? 1 : 2] >= least) bits |= 2;
    if (words.word[P::kQueryRows ? 2 : 1] >= least) bits |= Word{1} << kColumns;
    if (words.word[3] >= least) bits |= Word{2} << kColumns;
    kept |= bits << (kColumns * a + b);
  }
  if constexpr (!kOwn) {
    // What was drawn for the other lane's row against what that lane drew for this one's.
    constexpr Word kRow = static_cast<Word>((Word{1} << (kColumns - 1) << 1) - 1);
    const Word own = drawn == 0 ? kept & kRow : kept >> kColumns & kRow,
               others = shuffle_xor(drawn == 0 ? kept >> kColumns & kRow : kept & kRow, 4);
    kept = drawn == 0 ? own | others << kColumns : others | own << kColumns;
  }
  return kept;
}

// Numbers of pairs that dropout doesn't keep become 0, the others `scale` times what they were.
template <class Word, int kRows, int kColumns>
__device__ __forceinline__ void keep_numbers(Word kept, float scale, float (&x)[kRows][kColumns]) {
#pragma unroll
  for (int n = 0; n < kRows * kColumns; ++n) {
    float &number = x[n / kColumns][n % kColumns];
    number = (kept >> n & 1) != 0 ? number * scale : 0;
  }
}
template <class P>
__device__ __forceinline__ void drop_weights(const Attention &x, const Head &head, const P &part,
                                             float (&p)[P::kRows][P::kColumns]) {
  if (x.keep_threshold != 0) keep_numbers(kept_pairs(x, head, part), 1, p);
}

}  // namespace flash
