// Forward: o = softmax(s) v with the scores of one strip and one tile of keys at a time (FlashAttention, Algorithm 1;
// FlashAttention-2's order: queries outside, keys inside, one division at the end).
//
//   for each tile of keys                       state per query: m (maximum), l (sum), O (sum of p v)
//     for each strip, for each run of visible keys
//       s = k q^T;  m' = max(m, s);  p = 2^(s - m');  alpha = 2^(m - m')        (m, s times log2(e))
//       l = alpha l + sum p;  O = alpha O + v^T p
//   o = O / l;  lse = m + ln l
//
// Everything is held transposed, one query per lane: s[key][query], O[dim][query]. A task is one tile of queries of one
// head; its strips share the loaded tiles of k and v.
namespace flash {
namespace {

template <class A, class T>
struct ForwardTask {
  using S = typename A::Sum;
  using Operand = typename A::Operand;
  using V = Vector<S>;
  static constexpr int n = kLanes<S>;
  // Keys whose summands of O are added up before O takes them: with 32, rounding adds a third less than with a whole tile;
  // beside p in 16 bits that would be nothing.
  static constexpr int64_t kSumKeys = A::kPair == 1 ? 32 : kMostTileKeys;

  const ForwardCall &call;
  const Problem &problem;
  Rules<S> rules;
  ForwardScratch scratch;
  int64_t kv_head;
  int64_t tile;     // keys in one tile
  int64_t d, dv;    // head dims, padded to kMostLanes
  uint64_t loaded;  // which granules of the tile k and v hold

  const T *key(int64_t j) const {
    return static_cast<const T *>(problem.k.data) + rules.b * problem.k.batch + kv_head * problem.k.head +
           j * problem.k.row;
  }
  const T *value(int64_t j) const {
    return static_cast<const T *>(problem.v.data) + rules.b * problem.v.batch + kv_head * problem.v.head +
           j * problem.v.row;
  }
  Operand *k_tile() const { return static_cast<Operand *>(scratch.k); }
  Operand *v_tile() const { return static_cast<Operand *>(scratch.v); }
  Operand *q_strip(int64_t s) const { return static_cast<Operand *>(scratch.q) + s * d * kForwardStrip; }
  S *o_strip(int64_t s) const { return static_cast<S *>(scratch.o) + s * dv * kForwardStrip; }
  S *max_strip(int64_t s) const { return static_cast<S *>(scratch.max) + s * kForwardStrip; }
  S *sum_strip(int64_t s) const { return static_cast<S *>(scratch.sum) + s * kForwardStrip; }

  void begin_strip(int64_t s, Strip strip) {
    const T *q = static_cast<const T *>(problem.q.data) + rules.b * problem.q.batch + rules.h * problem.q.head +
                 strip.begin * problem.q.row;
    load_transposed<A>(q, problem.q.row, strip.end - strip.begin, strip.width, problem.D, d,
                       static_cast<Operand *>(scratch.rows), q_strip(s));
    for (int64_t i = 0; i < strip.width; i += n) {
      store(max_strip(s) + i, broadcast<V>(-kInfinity<S>));
      store(sum_strip(s) + i, V{});
    }
    for (int64_t x = 0; x < dv * strip.width; x += n) store(o_strip(s) + x, V{});
  }

  // Makes sure that k and v of these keys are in the tile; keys past kv_len become zeros.
  void load_keys(int64_t tile_begin, Interval keys) {
    for (int64_t g = (keys.begin - tile_begin) / kGranule; g * kGranule < keys.end - tile_begin; ++g) {
      if (loaded >> g & 1) continue;
      loaded |= uint64_t{1} << g;
      const int64_t j = tile_begin + g * kGranule, real = smaller(kGranule, rules.sequence.kv_len - j);
      load_rows<A>(key(j), problem.k.row, real, kGranule, problem.D, d, k_tile() + g * kGranule * d / A::kPair);
      load_paired_rows<A>(value(j), problem.v.row, real, kGranule, problem.Dv, dv,
                          v_tile() + g * kGranule * dv / A::kPair);
    }
  }

  // One run of keys for one strip: scores, softmax, product with v.
  void step(int64_t s, Strip strip, int64_t tile_begin, Interval run) {
    const int64_t rows = round_up(run.end - run.begin, kRowsMultiple), first = run.begin - tile_begin;
    load_keys(tile_begin, run);
    S *scores = static_cast<S *>(scratch.scores), *extra = static_cast<S *>(scratch.extra);
    multiply<A, Update::kSet>({k_tile() + first * d / A::kPair, d / A::kPair, 1, q_strip(s), strip.width, scores,
                               strip.width, ceil_div(problem.D, A::kPair)},
                              rows, strip.width);
    if (rules.shaped) shape_scores<S>(rules, strip, run, scores, extra, nullptr);
    if (!sees_all(rules, strip, run)) hide(rules, strip, run, rows, scores, extra);
    if (problem.dropout > 0) load_keep(rules, strip, run, rows, extra);
    const Operand *p = softmax(s, strip, rows, problem.dropout > 0 ? extra : nullptr);
    add_values(s, strip, first, rows, p);
  }

  // O = alpha O + v^T p, kSumKeys keys at a time. Sums begin at multiples of kSumKeys and alpha O is rounded by itself, so
  // that keys which a row doesn't see change nothing in it, wherever the run begins.
  void add_values(int64_t s, Strip strip, int64_t first, int64_t rows, const Operand *p) {
    const int64_t dims = round_up(problem.Dv, kRowsMultiple);
    S *o = o_strip(s);
    for (int64_t c = 0; c < dims; ++c)
      for (int64_t i = 0; i < strip.width; i += n) {
        S *at = o + c * strip.width + i;
        store(at, load<V>(at) * load<V>(static_cast<const S *>(scratch.alpha) + i));
      }
    for (int64_t key = first, end; key < first + rows; key = end) {
      end = smaller(first + rows, round_up(key + 1, kSumKeys));
      multiply<A, Update::kAdd>({v_tile() + key * dv / A::kPair, 1, dv, p + (key - first) / A::kPair * strip.width,
                                 strip.width, o, strip.width, (end - key) / A::kPair},
                                dims, strip.width);
    }
  }

  // Scores become probabilities relative to the new maximum; returns them as operands. m, l and alpha are brought up to
  // date. l sums four interleaved series, unrounded and before dropout.
  const Operand *softmax(int64_t s, Strip strip, int64_t rows, const S *keep) {
    S *scores = static_cast<S *>(scratch.scores);
    for (int64_t i = 0; i < strip.width; i += n) {
      V top[kRowsMultiple];
      for (int u = 0; u < kRowsMultiple; ++u) top[u] = load<V>(scores + u * strip.width + i);
      for (int64_t r = kRowsMultiple; r < rows; r += kRowsMultiple)
        for (int u = 0; u < kRowsMultiple; ++u) top[u] = maximum(top[u], load<V>(scores + (r + u) * strip.width + i));
      const V old = load<V>(max_strip(s) + i);
      const V now = maximum(old, maximum(maximum(top[0], top[1]), maximum(top[2], top[3])) * rules.log2_scale);
      const V base = now == -kInfinity<S> ? V{} : now;
      const V alpha = exp2(old - base);
      V sum[kRowsMultiple] = {};
      for (int64_t r = 0; r < rows; r += kRowsMultiple) {
        V p[kRowsMultiple];
        S *at = scores + r * strip.width + i;
        for (int u = 0; u < kRowsMultiple; ++u) {
          p[u] = exp2<A::kExpDegree>(load<V>(at + u * strip.width) * rules.log2_scale - base);
          sum[u] += p[u];
        }
        if (keep != nullptr)
          for (int u = 0; u < kRowsMultiple; ++u) p[u] *= load<V>(keep + (r + u) * strip.width + i);
        if constexpr (A::kPair == 1) {
          for (int u = 0; u < kRowsMultiple; ++u) store(at + u * strip.width, p[u]);
        } else {
          Operand *pairs = static_cast<Operand *>(scratch.p) + r / 2 * strip.width + i;
          for (int u = 0; u < kRowsMultiple; u += 2) store(pairs + u / 2 * strip.width, pair(p[u], p[u + 1]));
        }
      }
      store(max_strip(s) + i, now);
      store(sum_strip(s) + i, load<V>(sum_strip(s) + i) * alpha + ((sum[0] + sum[1]) + (sum[2] + sum[3])));
      store(static_cast<S *>(scratch.alpha) + i, alpha);
    }
    if constexpr (A::kPair == 1)
      return scores;
    else
      return static_cast<const Operand *>(scratch.p);
  }

  // o = O / l and lse of the strip's rows, with the sink as one more column.
  void end_strip(int64_t s, Strip strip) {
    S *max = max_strip(s), *sum = sum_strip(s), *o = o_strip(s), *factor = static_cast<S *>(scratch.alpha);
    if (problem.sinks.data != nullptr)
      add_sink(max, sum, factor, strip.width);
    else
      for (int64_t i = 0; i < strip.width; i += n) store(factor + i, broadcast<V>(S(1)));
    for (int64_t i = 0; i < strip.width; i += n) {
      const V l = load<V>(sum + i);
      store(factor + i, l == 0 ? V{} : load<V>(factor + i) * rules.keep_scale / l);
    }
    for (int64_t c = 0; c < problem.Dv; ++c)
      for (int64_t i = 0; i < strip.width; i += n) {
        const V f = load<V>(factor + i);
        S *at = o + c * strip.width + i;
        store(at, f == 0 ? V{} : load<V>(at) * f);
      }
    S *rows = static_cast<S *>(scratch.rows);
    transpose(o, strip.width, dv, strip.width, rows, dv);
    for (int64_t i = strip.begin; i < strip.end; ++i) narrow(rows + (i - strip.begin) * dv, problem.Dv, o_row(i));
    if (call.lse.data != nullptr)
      for (int64_t i = strip.begin; i < strip.end; ++i) {
        const int64_t lane = i - strip.begin;
        const double log_sum = sum[lane] == 0 ? -kInfinity<double> : __builtin_log(static_cast<double>(sum[lane]));
        *lse_at(i) =
            sum[lane] == 0 ? -kInfinity<S> : static_cast<S>(multiply_add(max[lane], rules.nat_of_log2, log_sum));
      }
  }

  // The sink enters m and l; factor is what O must be multiplied with for the new m.
  void add_sink(S *max, S *sum, S *factor, int64_t width) {
    const auto given = read_number<double>(problem.sinks.data, problem.sinks.dtype, rules.h * problem.sinks.head);
    const auto sink = static_cast<S>(given == -kInfinity<double> ? given : multiply_add(given, rules.log2_of_nat, 0));
    const auto low = sink == -kInfinity<S> ? S(0) : static_cast<S>(rest_of_product(given, rules.log2_of_nat, sink));
    for (int64_t i = 0; i < width; i += n) {
      const V sink_log2 = broadcast<V>(sink), old = load<V>(max + i), now = maximum(old, sink_log2);
      const V base = now == -kInfinity<S> ? V{} : now, scale = exp2(old - base);
      store(max + i, now);
      store(sum + i, load<V>(sum + i) * scale + exp2(sink_log2 - base + low));
      store(factor + i, scale);
    }
  }

  T *o_row(int64_t i) const {
    return static_cast<T *>(call.o.data) + rules.b * call.o.batch + rules.h * call.o.head + i * call.o.row;
  }
  S *lse_at(int64_t i) const {
    return static_cast<S *>(call.lse.data) + rules.b * call.lse.batch + rules.h * call.lse.head + i * call.lse.row;
  }

  // Rows past q_len.
  void clear_row(int64_t i) const {
    T *o = o_row(i);
    for (int64_t c = 0; c < problem.Dv; ++c) from_float(S(0), o + c);
    if (call.lse.data != nullptr) *lse_at(i) = -kInfinity<S>;
  }

  void run(Interval queries) {
    const Interval real = {queries.begin, smaller(queries.end, rules.sequence.q_len)};
    const int64_t step_queries = strip_queries(problem, kForwardStrip);
    const auto strip = [&](int64_t begin) { return strip_at(begin, smaller(begin + step_queries, real.end)); };
    for (int64_t s = 0, i = real.begin; i < real.end; ++s, i += step_queries) begin_strip(s, strip(i));
    const Interval any = keys_of_any(problem.window, rules.sequence, real);
    for (int64_t begin = any.begin / tile * tile; begin < any.end; begin += tile) {
      loaded = 0;
      for (int64_t s = 0, i = real.begin; i < real.end; ++s, i += step_queries) {
        const Strip now = strip(i);
        const Interval keys = intersection(keys_of_any(problem.window, rules.sequence, {now.begin, now.end}),
                                           {begin, smaller(begin + tile, any.end)});
        for_each_run(problem, rules.b, rules.h, now, keys, [&](Interval run) { step(s, now, begin, run); });
      }
    }
    for (int64_t s = 0, i = real.begin; i < real.end; ++s, i += step_queries) end_strip(s, strip(i));
    for (int64_t i = larger(real.begin, real.end); i < queries.end; ++i) clear_row(i);
  }
};

// Tasks run from the last tile of queries to the first: under a causal rule the last has the most work.
template <class A, class T>
void forward_task(const ForwardCall &call, int64_t index, void *memory) {
  using S = typename A::Sum;
  const Problem &problem = *call.problem;
  const int64_t heads = problem.B * problem.Hq;
  const int64_t tile = ceil_div(problem.Lq, call.block_q) - 1 - index / heads;
  const int64_t b = index % heads / problem.Hq, h = index % problem.Hq;
  Arena arena = {static_cast<char *>(memory), 0};
  ForwardTask<A, T> task{call,
                         problem,
                         rules_of<S>(problem, b, h),
                         forward_scratch(&arena, problem, call.block_q),
                         h / (problem.Hq / problem.Hk),
                         tile_keys(problem.D, problem.Dv),
                         round_up(problem.D, kMostLanes),
                         round_up(problem.Dv, kMostLanes),
                         0};
  task.run({tile * call.block_q, smaller((tile + 1) * call.block_q, problem.Lq)});
}

}  // namespace
}  // namespace flash
