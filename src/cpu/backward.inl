// Backward: recomputes the scores tile by tile and stores nothing of size Lq x Lk (FlashAttention, Algorithm 4).
//
//   p  = 2^(log2_scale * s - lse2)                      lse2 = log2(e) lse;  0 where nothing is seen
//   dp = keep / (1 - dropout) * (v do^T)                delta = rowsum(do * o) - dlse
//   ds = p (dp - delta)                                 times the derivative of softcap
//   dv = (keep / (1 - dropout) p) do,  dk = scale ds q,  dq = scale k^T ds
//
// All tiles are transposed, [key][query]. A task owns one tile of keys of one key head: it sums dk and dv over the queries
// of all query heads that read it, strip by strip. Its share of dq is added when the task of the tile before has added its
// own (`progress`), so the order of every sum is fixed and no sum is kept twice. Tasks start in order, so the one that is
// waited for is running or done.
namespace flash {
namespace {

// The part that dk, dv, dq and dbias share: from q, k, v and do to p and ds of one run.
template <class A, class T>
struct BackwardTile {
  using S = typename A::Sum;
  using Operand = typename A::Operand;
  using V = Vector<S>;
  static constexpr int n = kLanes<S>;

  const BackwardCall &call;
  const Problem &problem;
  BackwardScratch scratch;
  int64_t tile;   // keys in one tile
  int64_t d, dv;  // head dims, padded to kMostLanes
  int64_t rows;   // queries of a head in delta and lse2
  int64_t tile_begin;
  uint64_t loaded;  // which granules of the tile k and v hold

  BackwardTile(const BackwardCall &given, void *memory)
      : call(given),
        problem(*given.problem),
        tile(backward_tile_keys(problem)),
        d(round_up(problem.D, kMostLanes)),
        dv(round_up(problem.Dv, kMostLanes)),
        rows(round_up(problem.Lq, kBackwardStrip)),
        tile_begin(0),
        loaded(0) {
    Arena arena = {static_cast<char *>(memory), 0};
    scratch = backward_scratch(&arena, problem);
  }

  static Operand *operands(void *data) { return static_cast<Operand *>(data); }
  static S *sums(void *data) { return static_cast<S *>(data); }
  static T *element(const RowsView &view, int64_t b, int64_t h, int64_t i) {
    return static_cast<T *>(view.data) + b * view.batch + h * view.head + i * view.row;
  }

  void begin_tile(int64_t begin) {
    tile_begin = begin;
    loaded = 0;
  }

  // Makes sure that k and v of these keys are in the tile; keys past kv_len become zeros.
  void load_keys(const Rules<S> &rules, Interval keys) {
    const int64_t kv_head = rules.h / (problem.Hq / problem.Hk);
    for (int64_t g = (keys.begin - tile_begin) / kGranule; g * kGranule < keys.end - tile_begin; ++g) {
      if (loaded >> g & 1) continue;
      loaded |= uint64_t{1} << g;
      const int64_t at = g * kGranule, j = tile_begin + at, real = smaller(kGranule, rules.sequence.kv_len - j);
      const T *k = element(problem.k, rules.b, kv_head, j), *v = element(problem.v, rules.b, kv_head, j);
      load_rows<A>(k, problem.k.row, real, kGranule, problem.D, d, operands(scratch.k) + at * d / A::kPair);
      load_rows<A>(v, problem.v.row, real, kGranule, problem.Dv, dv, operands(scratch.v) + at * dv / A::kPair);
      if (A::kPair > 1)
        load_paired_rows<A>(k, problem.k.row, real, kGranule, problem.D, d,
                            operands(scratch.k_rows) + at * d / A::kPair);
    }
  }

  // q and do of a strip, transposed and in rows.
  void load_queries(const Rules<S> &rules, Strip strip) {
    load_both(element(problem.q, rules.b, rules.h, strip.begin), problem.q.row, strip, problem.D, d, scratch.q,
              scratch.q_rows);
    const RowsView &dout = call.arguments.dout;
    load_both(element(dout, rules.b, rules.h, strip.begin), dout.row, strip, problem.Dv, dv, scratch.dout,
              scratch.dout_rows);
  }
  void load_both(const T *from, int64_t stride, Strip strip, int64_t count, int64_t padded, void *transposed,
                 void *in_rows) {
    const int64_t real = strip.end - strip.begin;
    load_transposed<A>(from, stride, real, strip.width, count, padded, operands(A::kPair > 1 ? scratch.rows : in_rows),
                       operands(transposed));
    if (A::kPair > 1) load_paired_rows<A>(from, stride, real, strip.width, count, padded, operands(in_rows));
  }

  // p and ds of one run; returns how many rows of the tiles count, rounded up to kRowsMultiple.
  template <bool kForBias>
  int64_t differentiate(const Rules<S> &rules, Strip strip, Interval run) {
    const int64_t keys = round_up(run.end - run.begin, kRowsMultiple), first = run.begin - tile_begin;
    load_keys(rules, run);
    S *scores = sums(scratch.scores), *cap_slope = problem.softcap > 0 ? sums(scratch.cap_slope) : nullptr;
    multiply<A, Update::kSet>({operands(scratch.k) + first * d / A::kPair, d / A::kPair, 1, operands(scratch.q),
                               strip.width, scores, strip.width, ceil_div(problem.D, A::kPair)},
                              keys, strip.width);
    multiply<A, Update::kSet>({operands(scratch.v) + first * dv / A::kPair, dv / A::kPair, 1, operands(scratch.dout),
                               strip.width, sums(scratch.dscores), strip.width, ceil_div(problem.Dv, A::kPair)},
                              keys, strip.width);
    if (rules.shaped) shape_scores<S>(rules, strip, run, scores, sums(scratch.extra), cap_slope);
    if (!sees_all(rules, strip, run)) hide(rules, strip, run, keys, scores, sums(scratch.extra));
    S *keep = problem.dropout > 0 ? sums(scratch.keep) : nullptr;
    if (keep != nullptr) load_keep(rules, strip, run, keys, keep);
    gradients<kForBias>(rules, strip, keys, cap_slope, keep);
    return keys;
  }

  // From s and dp to p and ds. For dbias only ds is wanted, in the sum type and without softcap's derivative.
  template <bool kForBias>
  void gradients(const Rules<S> &rules, Strip strip, int64_t keys, const S *cap_slope, const S *keep) {
    const int64_t row = (rules.b * problem.Hq + rules.h) * rows + strip.begin;
    for (int64_t i = 0; i < strip.width; i += n) {
      const V lse2 = load<V>(sums(call.lse2) + row + i), low = load<V>(sums(call.lse2_low) + row + i);
      const V delta = load<V>(sums(call.delta) + row + i);
      for (int64_t r = 0; r < keys; r += 2) {
        V p[2], ds[2];
        for (int u = 0; u < 2; ++u) {
          const int64_t at = (r + u) * strip.width + i;
          p[u] = exp2<A::kExpDegree>((load<V>(sums(scratch.scores) + at) * rules.log2_scale - lse2) - low);
          V dp = load<V>(sums(scratch.dscores) + at), kept = p[u];
          if (keep != nullptr) {
            const V factor = load<V>(keep + at) * rules.keep_scale;
            dp *= factor;
            kept *= factor;
          }
          V slope = dp - delta;
          if (!kForBias && cap_slope != nullptr) slope *= load<V>(cap_slope + at);
          // By selection: what is hidden may be too large for dp, or lie behind the run where nothing was computed.
          ds[u] = p[u] == 0 ? V{} : p[u] * slope;
          p[u] = kept;
          if (kForBias || A::kPair == 1) store(sums(scratch.dscores) + at, ds[u]);
          if constexpr (!kForBias) {
            if constexpr (A::kPair == 1) {
              store(sums(scratch.scores) + at, p[u]);
            } else {
              store_as(static_cast<Bfloat *>(scratch.p) + at, p[u]);
              store_as(static_cast<Bfloat *>(scratch.ds) + at, ds[u]);
            }
          }
        }
        if constexpr (!kForBias && A::kPair > 1)
          store(operands(scratch.ds_pairs) + r / 2 * strip.width + i, pair(ds[0], ds[1]));
      }
    }
  }
};

// ---- Task 1: delta, lse2, dq = 0 ---------------------------------------------------------------------------------------

template <class A, class T>
void prepare_task(const BackwardCall &call, int64_t index, void *) {
  using S = typename A::Sum;
  using V = Vector<S>;
  constexpr int n = kLanes<S>;
  const Problem &problem = *call.problem;
  const BackwardArguments &x = call.arguments;
  const int64_t strips = ceil_div(problem.Lq, kBackwardStrip), head = index / strips,
                begin = index % strips * kBackwardStrip;
  const int64_t b = head / problem.Hq, h = head % problem.Hq, q_len = sequence_of(problem, b).q_len;
  S *delta = static_cast<S *>(call.delta) + index * kBackwardStrip;
  S *lse2 = static_cast<S *>(call.lse2) + index * kBackwardStrip,
    *low = static_cast<S *>(call.lse2_low) + index * kBackwardStrip;
  const TwoPart log2_of_nat = rules_of<S>(problem, b, h).log2_of_nat;
  for (int64_t lane = 0; lane < kBackwardStrip; ++lane) {
    const int64_t i = begin + lane;
    delta[lane] = 0, lse2[lane] = kInfinity<S>, low[lane] = 0;
    if (i >= q_len) continue;
    const S lse = static_cast<const S *>(x.lse.data)[b * x.lse.batch + h * x.lse.head + i * x.lse.row];
    if (lse == -kInfinity<S>) continue;
    lse2[lane] = static_cast<S>(static_cast<double>(lse) * log2_of_nat.high);
    low[lane] = static_cast<S>(rest_of_product(lse, log2_of_nat, lse2[lane]));
    const T *dout = static_cast<const T *>(x.dout.data) + b * x.dout.batch + h * x.dout.head + i * x.dout.row;
    const T *o = static_cast<const T *>(x.o.data) + b * x.o.batch + h * x.o.head + i * x.o.row;
    // By selection: where o is 0 because the row sees nothing but a sink, do may be anything.
    const auto product = [](auto a, auto b) { return b == 0 ? decltype(a){} : a * b; };
    V sum = {};
    int64_t c = 0;
    for (; c + n <= problem.Dv; c += n) sum += product(load_as<S>(dout + c), load_as<S>(o + c));
    S total = 0;
    for (; c < problem.Dv; ++c) total += product(static_cast<S>(to_float(dout[c])), static_cast<S>(to_float(o[c])));
    for (int u = 0; u < n; ++u) total += sum[u];
    delta[lane] = total;
    if (x.dlse.data != nullptr)
      delta[lane] -= static_cast<const S *>(x.dlse.data)[b * x.dlse.batch + h * x.dlse.head + i * x.dlse.row];
  }
  if (call.dq != nullptr) {
    const int64_t size = round_up(problem.D, kMostLanes) * kBackwardStrip;
    S *dq = static_cast<S *>(call.dq) + index * size;
    for (int64_t at = 0; at < size; at += n) store(dq + at, V{});
  }
}

// ---- Task 2: dk and dv of one tile of keys, and its share of dq --------------------------------------------------------

FLASH_INLINE void wait_until(const int64_t *progress, int64_t value) {
  for (int spins = 0; __atomic_load_n(progress, __ATOMIC_ACQUIRE) < value; ++spins)
    if (spins > 4000) give_way();
}

template <class A, class T>
void keys_task(const BackwardCall &call, int64_t index, void *memory) {
  using S = typename A::Sum;
  using Operand = typename A::Operand;
  const Problem &problem = *call.problem;
  const BackwardArguments &x = call.arguments;
  BackwardTile<A, T> t(call, memory);
  const auto operands = [](void *data) { return static_cast<Operand *>(data); };
  const int64_t heads = problem.B * problem.Hk, group = problem.Hq / problem.Hk;
  const int64_t b = index % heads / problem.Hk, kv_head = index % problem.Hk;
  const Interval keys = {index / heads * t.tile, smaller((index / heads + 1) * t.tile, problem.Lk)};
  const Sequence sequence = sequence_of(problem, b);
  S *dk = static_cast<S *>(t.scratch.dk), *dv = static_cast<S *>(t.scratch.dv);
  t.begin_tile(keys.begin);
  for (int64_t at = 0; at < t.tile * t.d; at += t.n) store(dk + at, Vector<S>{});
  for (int64_t at = 0; at < t.tile * t.dv; at += t.n) store(dv + at, Vector<S>{});

  const int64_t *before = index < heads ? nullptr : call.progress + index - heads;
  int64_t *progress = call.progress + index;
  const int64_t step = strip_queries(problem, kBackwardStrip);
  const Interval queries = queries_of_any(problem.window, sequence, keys);
  for (int64_t begin = queries.begin / kBackwardStrip * kBackwardStrip; begin < queries.end; begin += step) {
    if (empty(queries)) break;
    const Strip strip = strip_at(begin, smaller(begin + step, sequence.q_len));
    const Interval seen = intersection(keys_of_any(problem.window, sequence, {strip.begin, strip.end}), keys);
    for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
      bool queries_loaded = false;
      const Rules<S> rules = rules_of<S>(problem, b, h);
      for_each_run(problem, b, h, strip, seen, [&](Interval run) {
        if (!queries_loaded) t.load_queries(rules, strip);
        queries_loaded = true;
        const int64_t rows = t.template differentiate<false>(rules, strip, run), first = run.begin - keys.begin;
        const Operand *p = operands(A::kPair > 1 ? t.scratch.p : t.scratch.scores);
        const Operand *ds = operands(A::kPair > 1 ? t.scratch.ds : t.scratch.dscores);
        const int64_t width = strip.width / A::kPair;
        if (x.dv.data != nullptr)
          multiply<A, Update::kAdd>({p, width, 1, operands(t.scratch.dout_rows), t.dv, dv + first * t.dv, t.dv, width},
                                    rows, t.dv);
        if (x.dk.data != nullptr)
          multiply<A, Update::kAdd>({ds, width, 1, operands(t.scratch.q_rows), t.d, dk + first * t.d, t.d, width}, rows,
                                    t.d);
        if (x.dq.data == nullptr) return;
        if (before != nullptr) wait_until(before, begin + step);
        S *dq = static_cast<S *>(call.dq) +
                ((b * problem.Hq + h) * t.rows + begin / kBackwardStrip * kBackwardStrip) * t.d +
                begin % kBackwardStrip;
        multiply<A, Update::kAdd>({operands(A::kPair > 1 ? t.scratch.k_rows : t.scratch.k) + first * t.d / A::kPair, 1,
                                   t.d, operands(A::kPair > 1 ? t.scratch.ds_pairs : t.scratch.dscores), strip.width,
                                   dq, kBackwardStrip, rows / A::kPair},
                                  round_up(problem.D, kRowsMultiple), strip.width);
      });
    }
    if (x.dq.data != nullptr) {
      if (before != nullptr) wait_until(before, begin + step);
      __atomic_store_n(progress, begin + step, __ATOMIC_RELEASE);
    }
  }
  if (x.dq.data != nullptr) {
    if (before != nullptr) wait_until(before, kOpen);
    __atomic_store_n(progress, kOpen, __ATOMIC_RELEASE);
  }

  const S scale = static_cast<S>(problem.scale);
  for (int64_t at = 0; at < t.tile * t.d; at += t.n) store(dk + at, load<Vector<S>>(dk + at) * scale);
  for (int64_t j = keys.begin; j < keys.end; ++j) {
    const int64_t row = j - keys.begin;
    if (x.dk.data != nullptr) narrow(dk + row * t.d, problem.D, t.element(x.dk, b, kv_head, j));
    if (x.dv.data != nullptr) narrow(dv + row * t.dv, problem.Dv, t.element(x.dv, b, kv_head, j));
  }
}

// ---- Task 3: dq in its own type ----------------------------------------------------------------------------------------

template <class A, class T>
void finish_dq_task(const BackwardCall &call, int64_t index, void *memory) {
  using S = typename A::Sum;
  const Problem &problem = *call.problem;
  const RowsView &dq = call.arguments.dq;
  BackwardTile<A, T> t(call, memory);
  const int64_t strips = ceil_div(problem.Lq, kBackwardStrip), head = index / strips,
                begin = index % strips * kBackwardStrip;
  S *sum = static_cast<S *>(call.dq) + index * t.d * kBackwardStrip, *rows = static_cast<S *>(t.scratch.rows);
  const S scale = static_cast<S>(problem.scale);
  for (int64_t at = 0; at < t.d * kBackwardStrip; at += t.n) store(sum + at, load<Vector<S>>(sum + at) * scale);
  transpose(sum, kBackwardStrip, t.d, kBackwardStrip, rows, t.d);
  for (int64_t i = begin; i < smaller(begin + kBackwardStrip, problem.Lq); ++i)
    narrow(rows + (i - begin) * t.d, problem.D, t.element(dq, head / problem.Hq, head % problem.Hq, i));
}

// ---- Task 4: dbias -----------------------------------------------------------------------------------------------------

template <class A, class T>
struct BiasTask {
  using S = typename A::Sum;
  BackwardTile<A, T> t;
  const Problem &problem;
  const ScoresView &dbias;
  S *sum;  // tile x kBackwardStrip: [key in tile][query in strip]

  // Adds ds of one head over the piece's queries and keys to the sum.
  void add(int64_t b, int64_t h, Interval queries, Interval keys) {
    const Rules<S> rules = rules_of<S>(problem, b, h);
    const int64_t step = strip_queries(problem, kBackwardStrip);
    queries.end = smaller(queries.end, rules.sequence.q_len);
    for (int64_t tile_begin = keys.begin; tile_begin < keys.end; tile_begin += t.tile) {
      t.begin_tile(tile_begin);
      const Interval tile = {tile_begin, smaller(tile_begin + t.tile, keys.end)};
      for (int64_t begin = queries.begin; begin < queries.end; begin += step) {
        const Strip strip = strip_at(begin, smaller(begin + step, queries.end));
        const Interval seen = intersection(keys_of_any(problem.window, rules.sequence, {strip.begin, strip.end}), tile);
        bool queries_loaded = false;
        for_each_run(problem, b, h, strip, seen, [&](Interval run) {
          if (!queries_loaded) t.load_queries(rules, strip);
          queries_loaded = true;
          const int64_t rows = t.template differentiate<true>(rules, strip, run);
          for (int64_t r = 0; r < rows; ++r) {
            const S *ds = static_cast<const S *>(t.scratch.dscores) + r * strip.width;
            S *to = sum + (run.begin - tile_begin + r) * kBackwardStrip + begin % kBackwardStrip;
            for (int64_t i = 0; i < strip.width; i += t.n)
              store(to + i, load<Vector<S>>(to + i) + load<Vector<S>>(ds + i));
          }
        });
      }
    }
  }

  // Sums over what the bias is broadcast along and writes the piece.
  template <class Out>
  void write(Out *to, Interval queries, Interval keys) {
    const bool all_queries = dbias.row == 0, all_keys = dbias.column == 0;
    S *rows = t.sums(t.scratch.extra);  // the sum transposed: [query in strip][key in tile]
    transpose(sum, kBackwardStrip, t.tile, kBackwardStrip, rows, t.tile);
    for (int64_t r = 1; all_queries && r < kBackwardStrip; ++r)
      for (int64_t j = 0; j < t.tile; ++j) rows[j] += rows[r * t.tile + j];
    for (int64_t i = 0; i < (all_queries ? 1 : queries.end - queries.begin); ++i) {
      S *row = rows + i * t.tile;
      for (int64_t j = 1; all_keys && j < t.tile; ++j) row[0] += row[j];
      Out *out = to + (queries.begin + i) * dbias.row + keys.begin * dbias.column;
      const int64_t count = all_keys ? 1 : keys.end - keys.begin;
      if (dbias.column == 1)
        narrow(row, count, out);
      else
        for (int64_t j = 0; j < count; ++j) from_float(row[j], out + j * dbias.column);
    }
  }
};

template <class A, class T>
void bias_task(const BackwardCall &call, int64_t index, void *memory) {
  using S = typename A::Sum;
  const Problem &problem = *call.problem;
  const ScoresView &dbias = call.arguments.dbias;
  const BiasPieces pieces = bias_pieces(problem, dbias);
  BiasTask<A, T> task{BackwardTile<A, T>(call, memory), problem, dbias, nullptr};
  task.sum = static_cast<S *>(task.t.scratch.bias_sum);
  const int64_t tile = task.t.tile;
  for (int64_t at = 0; at < tile * kBackwardStrip; at += task.t.n) store(task.sum + at, Vector<S>{});

  const int64_t key_tile = index % pieces.tiles, strip = index / pieces.tiles % pieces.strips;
  const int64_t own_head = index / pieces.tiles / pieces.strips % pieces.heads;
  const int64_t batch = index / pieces.tiles / pieces.strips / pieces.heads;
  const Interval queries = dbias.row == 0
                               ? Interval{0, problem.Lq}
                               : Interval{strip * kBackwardStrip, smaller((strip + 1) * kBackwardStrip, problem.Lq)};
  const Interval keys = dbias.column == 0 ? Interval{0, problem.Lk}
                                          : Interval{key_tile * tile, smaller((key_tile + 1) * tile, problem.Lk)};
  int64_t member = 0;
  for (int64_t b = 0; b < problem.B; ++b) {
    if (own_batch(dbias.batch, b) != batch) continue;
    member = b;
    for (int64_t h = dbias.head == 0 ? 0 : own_head; h < (dbias.head == 0 ? problem.Hq : own_head + 1); ++h)
      task.add(b, h, queries, keys);
  }
  const int64_t offset = problem.B == 0 ? 0 : leading_offset(dbias.batch, member) + own_head * dbias.head;
  if constexpr (sizeof(S) == 8) {
    task.write(static_cast<double *>(dbias.data) + offset, queries, keys);
  } else {
    switch (dbias.dtype) {
      case DType::kFloat16:
        return task.write(static_cast<Half *>(dbias.data) + offset, queries, keys);
      case DType::kBfloat16:
        return task.write(static_cast<Bfloat *>(dbias.data) + offset, queries, keys);
      default:
        return task.write(static_cast<float *>(dbias.data) + offset, queries, keys);
    }
  }
}

}  // namespace
}  // namespace flash
