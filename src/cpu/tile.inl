// Tiles: how rows of q, k, v and do come in, and how the rules of a problem act on a tile of scores.
//
// A score tile holds s[key][query], `width` queries per row, the first key and query being run.begin and strip.begin.
namespace flash {
namespace {

constexpr double kLog2E = 1.44269504088896340736;
template <class S>
constexpr S kInfinity = static_cast<S>(__builtin_huge_val());
template <class S>
constexpr S kSmallest = sizeof(S) == 4 ? S(0x1p-126) : S(0x1p-1022);

// ---- Rows in and out ---------------------------------------------------------------------------------------------------

template <class S, class T>
void widen(const T *from, int64_t count, int64_t padded, S *to) {
  int64_t c = 0;
  for (; c + kLanes<S> <= count; c += kLanes<S>) store(to + c, load_as<S>(from + c));
  for (; c < count; ++c) to[c] = to_float(from[c]);
  for (; c < padded; ++c) to[c] = 0;
}
template <class S, class T>
void narrow(const S *from, int64_t count, T *to) {
  int64_t c = 0;
  for (; c + kLanes<S> <= count; c += kLanes<S>) store_as(to + c, load<Vector<S>>(from + c));
  for (; c < count; ++c) from_float(from[c], to + c);
}

// Operands as a row of the tile holds them: numbers, or pairs of neighbours along the head dim.
template <class T, class S>
FLASH_INLINE void load_row(const T *from, int64_t count, int64_t padded, S *to) {
  widen(from, count, padded, to);
}
FLASH_INLINE void load_row(const Bfloat *from, int64_t count, int64_t padded, uint32_t *to) {
  __builtin_memcpy(to, from, static_cast<size_t>(count) * sizeof *from);
  __builtin_memset(reinterpret_cast<Bfloat *>(to) + count, 0, static_cast<size_t>(padded - count) * sizeof *from);
}

// to[r] = row r for r < real, 0 up to `rows`; `padded` numbers a row.
template <class A, class T>
void load_rows(const T *from, int64_t row_stride, int64_t real, int64_t rows, int64_t count, int64_t padded,
               typename A::Operand *to) {
  const int64_t operands = padded / A::kPair;
  for (int64_t r = 0; r < real; ++r) load_row(from + r * row_stride, count, padded, to + r * operands);
  for (int64_t i = real * operands; i < rows * operands; ++i) to[i] = 0;
}

// The same with pairs along the rows: operand (r / 2, c) holds rows r and r + 1. `rows` is even.
template <class A, class T>
void load_paired_rows(const T *from, int64_t row_stride, int64_t real, int64_t rows, int64_t count, int64_t padded,
                      typename A::Operand *to) {
  if constexpr (A::kPair == 1) {
    load_rows<A>(from, row_stride, real, rows, count, padded, to);
  } else {
    for (int64_t r = 0; r < rows; r += 2) {
      const T *low = from + r * row_stride, *high = low + row_stride;
      typename A::Operand *out = to + r / 2 * padded;
      int64_t c = 0;
      if (r + 1 < real) {
        for (; c + kLanes<float> <= count; c += kLanes<float>) {
          const auto a = __builtin_convertvector(load<Beside<uint16_t, float>>(low + c), Vector<uint32_t>);
          const auto b = __builtin_convertvector(load<Beside<uint16_t, float>>(high + c), Vector<uint32_t>);
          store(out + c, a | b << 16);
        }
        for (; c < count; ++c) out[c] = low[c].bits | uint32_t{high[c].bits} << 16;
      } else if (r < real) {
        for (; c < count; ++c) out[c] = low[c].bits;
      }
      for (; c < padded; ++c) out[c] = 0;
    }
  }
}

// Rows as columns: to[c][r], `width` rows (a multiple of kMostLanes) of which `real` exist. `rows` is room for them.
template <class A, class T>
void load_transposed(const T *from, int64_t row_stride, int64_t real, int64_t width, int64_t count, int64_t padded,
                     typename A::Operand *rows, typename A::Operand *to) {
  load_rows<A>(from, row_stride, real, width, count, padded, rows);
  transpose(rows, padded / A::kPair, width, round_up(padded / A::kPair, kLanes<typename A::Sum>), to, width);
}

#if defined(__AVX512BF16__)
// (low[0] high[0] low[1] high[1] ...), rounded to bfloat16.
FLASH_INLINE Vector<uint32_t> pair(Vector<float> low, Vector<float> high) {
  alignas(64) static constexpr uint16_t kOrder[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const auto both =
      reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(high), reinterpret_cast<__m512>(low)));
  return reinterpret_cast<Vector<uint32_t>>(_mm512_permutexvar_epi16(load<__m512i>(kOrder), both));
}
#endif

// ---- The rules of a problem for one head of one sequence --------------------------------------------------------------

// A number in two parts, to twice the precision.
struct TwoPart {
  double high, low;
};
FLASH_INLINE TwoPart two_part(long double x) {
  const auto high = static_cast<double>(x);
  return {high, static_cast<double>(x - high)};
}
FLASH_INLINE double multiply_add(double x, TwoPart y, double z) {
  return __builtin_fma(x, y.high, __builtin_fma(x, y.low, z));
}

// x y - z, where z is x y but for its rounding.
FLASH_INLINE double rest_of_product(double x, TwoPart y, double z) { return __builtin_fma(x, y.high, -z) + x * y.low; }

template <class S>
struct Rules {
  const Problem *problem;
  int64_t b, h;
  Sequence sequence;
  bool shaped;   // scores need more than a scale that is positive, and a normal number with log2(e) in it
  S log2_scale;  // p = 2^(log2_scale * score - ...): the scale times log2(e), or log2(e) once scores are shaped
  // log2(e) and ln(2) but for log2_scale's rounding, which every score has and so lse and sinks must have: it would show
  // in gradients where scores are large.
  TwoPart log2_of_nat, nat_of_log2;
  S slope;
  uint64_t seed;
  S keep_scale;  // 1 / (1 - dropout); 0 if nothing is kept
};

template <class S>
S read_number(const void *data, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::kFloat16:
      return static_cast<S>(to_float(static_cast<const Half *>(data)[index]));
    case DType::kBfloat16:
      return static_cast<S>(to_float(static_cast<const Bfloat *>(data)[index]));
    case DType::kFloat64:
      return static_cast<S>(static_cast<const double *>(data)[index]);
    default:
      return static_cast<S>(static_cast<const float *>(data)[index]);
  }
}

template <class S>
Rules<S> rules_of(const Problem &problem, int64_t b, int64_t h) {
  Rules<S> rules;
  rules.problem = &problem;
  rules.b = b, rules.h = h;
  rules.sequence = sequence_of(problem, b);
  const BatchView &slopes = problem.alibi_slopes;
  rules.slope = slopes.data == nullptr
                    ? 0
                    : read_number<S>(slopes.data, slopes.dtype, leading_offset(slopes.batch, b) + h * slopes.head);
  rules.shaped = problem.softcap > 0 || slopes.data != nullptr || problem.bias.data != nullptr ||
                 !(problem.scale * kLog2E >= kSmallest<S> && problem.scale * kLog2E <= 1 / kSmallest<S>);
  rules.log2_scale = static_cast<S>(rules.shaped ? kLog2E : problem.scale * kLog2E);
  const long double of_scale = rules.shaped ? 1 : problem.scale, rounded = rules.log2_scale;
  rules.log2_of_nat = two_part(rounded / of_scale), rules.nat_of_log2 = two_part(of_scale / rounded);
  rules.seed = problem.dropout > 0 ? seed_of(problem) : 0;
  rules.keep_scale = problem.dropout < 1 ? static_cast<S>(1 / (1 - problem.dropout)) : 0;
  return rules;
}

// Queries [begin, end) of a head, one per lane; lanes from end - begin to width are padding.
struct Strip {
  int64_t begin, end, width;
};
FLASH_INLINE Strip strip_at(int64_t begin, int64_t end) {
  return {begin, end, round_up(larger(end - begin, 1), kMostLanes)};
}

// Calls visit(run) for each stretch of `keys` whose blocks are listed for the strip's row of blocks; all of `keys` if
// there is no block mask. A run begins at a multiple of kRowsMultiple.
template <class Visit>
FLASH_INLINE void for_each_run(const Problem &problem, int64_t b, int64_t h, Strip strip, Interval keys, Visit visit) {
  if (empty(keys)) return;
  keys.begin -= keys.begin % kRowsMultiple;
  const BlockMaskView &blocks = problem.blocks;
  if (blocks.block_q == 0) return visit(keys);
  const int32_t *row =
      blocks.row_start + b * blocks.row_batch + h * blocks.row_head + strip.begin / blocks.block_q * blocks.row_stride;
  int64_t at = row[0];
  const int64_t last = row[blocks.row_stride];
  for (int64_t high = last; at < high;) {  // the first block that ends behind keys.begin
    const int64_t middle = at + (high - at) / 2;
    if ((blocks.columns[middle * blocks.columns_stride] + int64_t{1}) * blocks.block_k <= keys.begin)
      at = middle + 1;
    else
      high = middle;
  }
  while (at < last) {
    int64_t column = blocks.columns[at * blocks.columns_stride];
    Interval run = {column * blocks.block_k, 0};
    if (run.begin >= keys.end) return;
    do {
      ++column, ++at;
    } while (at < last && blocks.columns[at * blocks.columns_stride] == column);
    run.end = column * blocks.block_k;
    visit(intersection(run, keys));
  }
}

// ---- Bias and mask tiles -----------------------------------------------------------------------------------------------

template <class S>
FLASH_INLINE Vector<S> load_as(const bool *from) {
  return __builtin_convertvector(load<Beside<uint8_t, S>>(from), Vector<S>);
}
template <class S, class T>
FLASH_INLINE Vector<S> load_number_as(const T *from) {
  if constexpr (sizeof(S) == 8 && sizeof(T) < 8 && sizeof(T) > 1) {
    Vector<S> x;
    for (int lane = 0; lane < kLanes<S>; ++lane) x[lane] = to_float(from[lane]);
    return x;
  } else {
    return load_as<S>(from);
  }
}

// tile[j][i] = from[i * row + j * column] for i < real queries, j < keys. What padding lanes hold is finite.
template <class S, class T>
void load_scores(const T *from, int64_t row, int64_t column, int64_t real, int64_t keys, int64_t width, S *tile) {
  constexpr int n = kLanes<S>;
  if (row == 0) {
    for (int64_t j = 0; j < keys; ++j)
      for (int64_t i = 0; i < width; i += n)
        store(tile + j * width + i, broadcast<Vector<S>>(static_cast<S>(to_float(from[j * column]))));
    return;
  }
  int64_t i = 0;
  if (column == 1)
    for (; i + n <= real; i += n) {
      int64_t j = 0;
      for (; j + n <= keys; j += n) {
        Vector<S> x[n];
        for (int r = 0; r < n; ++r) x[r] = load_number_as<S>(from + (i + r) * row + j);
        transpose_square<S>(x);
        for (int r = 0; r < n; ++r) store(tile + (j + r) * width + i, x[r]);
      }
      for (; j < keys; ++j)
        for (int r = 0; r < n; ++r) tile[j * width + i + r] = to_float(from[(i + r) * row + j]);
    }
  for (; i < real; ++i)
    for (int64_t j = 0; j < keys; ++j) tile[j * width + i] = to_float(from[i * row + j * column]);
  for (; i < width; ++i)
    for (int64_t j = 0; j < keys; ++j) tile[j * width + i] = 0;
}

template <class S>
void load_scores(const ScoresView &view, int64_t b, int64_t h, Strip strip, Interval run, S *tile) {
  const int64_t offset =
      leading_offset(view.batch, b) + h * view.head + strip.begin * view.row + run.begin * view.column;
  const auto load_from = [&](auto *data) {
    load_scores(data + offset, view.row, view.column, strip.end - strip.begin, run.end - run.begin, strip.width, tile);
  };
  switch (view.dtype) {
    case DType::kFloat16:
      return load_from(static_cast<const Half *>(view.data));
    case DType::kBfloat16:
      return load_from(static_cast<const Bfloat *>(view.data));
    case DType::kFloat32:
      return load_from(static_cast<const float *>(view.data));
    case DType::kFloat64:
      if constexpr (sizeof(S) == 8) load_from(static_cast<const double *>(view.data));
      return;
    default:
      return load_from(static_cast<const bool *>(view.data));
  }
}

// ---- The rules at work on a tile ---------------------------------------------------------------------------------------

// Products become scores: scale, softcap, ALiBi, bias. cap_slope, if wanted, is the derivative of softcap.
template <class S>
void shape_scores(const Rules<S> &rules, Strip strip, Interval run, S *scores, S *extra, S *cap_slope) {
  using V = Vector<S>;
  constexpr int n = kLanes<S>;
  const Problem &problem = *rules.problem;
  const int64_t keys = run.end - run.begin, count = keys * strip.width;
  const S scale = static_cast<S>(problem.scale);
  if (problem.softcap > 0) {
    // At least the smallest normal number: a positive cap that rounds to 0 would divide 0 by 0.
    const S cap = static_cast<S>(problem.softcap) > kSmallest<S> ? static_cast<S>(problem.softcap) : kSmallest<S>;
    for (int64_t x = 0; x < count; x += n) {
      const V y = tanh<S>(load<V>(scores + x) * scale / cap);
      store(scores + x, y * cap);
      if (cap_slope != nullptr) store(cap_slope + x, 1 - y * y);
    }
  } else {
    for (int64_t x = 0; x < count; x += n) store(scores + x, load<V>(scores + x) * scale);
  }
  if (rules.slope != 0)
    for (int64_t i = 0; i < strip.width; i += n) {
      V distance;  // from the first key to each query
      for (int lane = 0; lane < n; ++lane)
        distance[lane] = static_cast<S>(strip.begin + i + lane + rules.sequence.offset - run.begin);
      for (int64_t j = 0; j < keys; ++j) {
        S *at = scores + j * strip.width + i;
        const V d = distance - static_cast<S>(j);
        store(at, load<V>(at) - rules.slope * (d < 0 ? -d : d));
      }
    }
  if (problem.bias.data != nullptr) {
    load_scores(problem.bias, rules.b, rules.h, strip, run, extra);
    for (int64_t x = 0; x < count; x += n) store(scores + x, load<V>(scores + x) + load<V>(extra + x));
  }
}

// -inf where a query may not see a key, and in the `rows` of the tile behind the run.
template <class S>
void hide(const Rules<S> &rules, Strip strip, Interval run, int64_t rows, S *scores, S *extra) {
  using V = Vector<S>;
  constexpr int n = kLanes<S>;
  const Problem &problem = *rules.problem;
  const int64_t keys = run.end - run.begin;
  const V nothing = broadcast<V>(-kInfinity<S>);
  if (problem.mask.data != nullptr) {
    load_scores(problem.mask, rules.b, rules.h, strip, run, extra);
    for (int64_t x = 0; x < keys * strip.width; x += n)
      store(scores + x, load<V>(extra + x) != 0 ? load<V>(scores + x) : nothing);
  }
  for (int64_t i = 0; i < strip.width; i += n) {
    Vector<Integer<S>> begin, end;
    for (int lane = 0; lane < n; ++lane) {
      const Interval seen = keys_of(problem.window, rules.sequence, smaller(strip.begin + i + lane, strip.end - 1));
      begin[lane] = static_cast<Integer<S>>(clamp(seen.begin - run.begin, 0, keys));
      end[lane] = static_cast<Integer<S>>(clamp(seen.end - run.begin, 0, keys));
    }
    for (int64_t j = 0; j < rows; ++j) {
      S *at = scores + j * strip.width + i;
      const auto index = broadcast<Vector<Integer<S>>>(static_cast<Integer<S>>(j));
      store(at, (index >= begin) & (index < end) ? load<V>(at) : nothing);
    }
  }
}

// Whether every query of the strip sees all of the run, so that nothing needs to be hidden.
template <class S>
FLASH_INLINE bool sees_all(const Rules<S> &rules, Strip strip, Interval run) {
  if (rules.problem->mask.data != nullptr || (run.end - run.begin) % kRowsMultiple != 0) return false;
  const Interval all = keys_of_all(rules.problem->window, rules.sequence, {strip.begin, strip.end});
  return all.begin <= run.begin && run.end <= all.end;
}

// keep[j][i] = 1 where dropout keeps the pair, else 0, for `rows` keys. One Philox counter serves 2 x 2 positions; the
// rounds are outside and the squares inside, so that the compiler makes vectors of the squares.
template <class S>
void load_keep(const Rules<S> &rules, Strip strip, Interval run, int64_t rows, S *keep) {
  constexpr int kMostSquares = kBackwardStrip / 2;
  const uint64_t threshold = dropout_threshold(rules.problem->dropout);
  const S kept = threshold >> 32 == 0;  // 2^32 keeps nothing and is the only threshold that doesn't fit a word
  const uint32_t least = static_cast<uint32_t>(threshold);
  const int squares = static_cast<int>(strip.width / 2);
  for (int64_t j = run.begin; j < run.begin + rows; j += 2) {
    uint32_t word[4][kMostSquares];
    for (int s = 0; s < squares; ++s) {
      const Philox counter = dropout_counter(rules.b, rules.h, strip.begin + 2 * s, j);
      for (int w = 0; w < 4; ++w) word[w][s] = counter.word[w];
    }
    PhiloxKey key = philox_key(rules.seed);
    for (int round = 0; round < kPhiloxRounds; ++round, key = next(key))
      for (int s = 0; s < squares; ++s) {
        const Philox four = philox_round({{word[0][s], word[1][s], word[2][s], word[3][s]}}, key);
        for (int w = 0; w < 4; ++w) word[w][s] = four.word[w];
      }
    for (int64_t odd = 0; odd < 2; ++odd) {
      S *row = keep + (j + odd - run.begin) * strip.width;
      for (int s = 0; s < squares; ++s) {
        row[2 * s] = word[odd][s] >= least ? kept : 0;
        row[2 * s + 1] = word[2 + odd][s] >= least ? kept : 0;
      }
    }
  }
}

}  // namespace
}  // namespace flash
