// What Hopper's forwards share: the warpgroups that compute, 64 rows of a tile of queries each, and their loop over
// tiles of keys.
#pragma once
#include "forward_loads.cuh"
#include "softmax.cuh"

namespace flash {

// A thread of theirs, and the barriers of the block: one for each warpgroup's turn, one for its own threads; from
// kMoreBarriers on those that a kernel has besides.
template <int kWarpgroups>
struct ComputingThread {
  static constexpr int kTurnBarrier = 1, kOwnBarrier = kTurnBarrier + kWarpgroups,
                       kMoreBarriers = kOwnBarrier + kWarpgroups;
  int warpgroup, thread, lane, first_row;

  __device__ __forceinline__ explicit ComputingThread(int number)
      : warpgroup(number),
        thread(static_cast<int>(threadIdx.x) % kWarpgroup),
        lane(thread % kWarp),
        first_row(number * kWarpgroupRows) {}

  // Row a of the thread is this one of the tile.
  __device__ __forceinline__ int row(int a) const { return row_of(thread, a); }
  // The same made anew, for use behind the loop: kept, it would take a register from it.
  __device__ __forceinline__ int row_anew(int a) const {
    return row_of(here(static_cast<int>(threadIdx.x)) % kWarpgroup, a);
  }
  // Warpgroups start their products one after the other, so that the softmax of one warpgroup runs beside the products of
  // another.
  __device__ __forceinline__ void wait_for_turn() const { sync_threads(kTurnBarrier + warpgroup, 2 * kWarpgroup); }
  __device__ __forceinline__ void pass_turn() const {
    arrive_threads(kTurnBarrier + (warpgroup + 1) % kWarpgroups, 2 * kWarpgroup);
  }
  __device__ __forceinline__ void start_turns() const {
    if (warpgroup == kWarpgroups - 1) pass_turn();  // the first one's first turn
  }
  __device__ __forceinline__ void sync_warpgroup() const { sync_threads(kOwnBarrier + warpgroup, kWarpgroup); }
  template <int kStages>
  __device__ __forceinline__ void release(const Ring<kStages> &ring, Turn<kStages> turn) const {
    __syncwarp();
    if (lane == 0) ring.release(turn);
  }

 private:
  __device__ __forceinline__ int row_of(int thread_of_warpgroup, int a) const {
    return first_row + thread_of_warpgroup / kWarp * kMmaRows + fragment_row(thread_of_warpgroup % kWarp) + 8 * a;
  }
};

// The rows of a task that one thread has: 2^log2_heads heads of a query in turn.
template <bool kOptions, int kWarpgroups>
struct QueriesOfTask {
  const Attention &x;
  const ForwardTasks &tasks;
  const ComputingThread<kWarpgroups> &me;
  Task task;
  int log2_heads, first_head;
  Head head;
  Band band;

  __device__ __forceinline__ QueriesOfTask(const ForwardTasks &all, int64_t index,
                                           const ComputingThread<kWarpgroups> &thread)
      : x(all.x),
        tasks(all),
        me(thread),
        task(all.at(index)),
        log2_heads(all.params.log2_heads),
        first_head(task.head << log2_heads),
        head(head_of<kOptions>(x, sequence_of(x, task.b), task.b, first_head)),
        band(band_of(x.window, head.sequence)) {}

  __device__ __forceinline__ int query(int a) const { return (task.begin + me.row(a)) >> log2_heads; }
  // Behind the loop.
  __device__ __forceinline__ int query_anew(int a) const { return (task.begin + me.row_anew(a)) >> log2_heads; }
  __device__ __forceinline__ int head_at(int a) const {
    return first_head + ((task.begin + me.row_anew(a)) & ((1 << log2_heads) - 1));
  }
  __device__ __forceinline__ bool is_there(int a) const { return task.begin + me.row_anew(a) < tasks.end_of(task); }
  // Whether all queries of the warpgroup see all keys of the step and, with options, none lies behind the last.
  template <class KeyStep>
  __device__ __forceinline__ bool all_see(const KeyStep &step) const {
    const int begin = task.begin + me.first_row, last = (begin + kWarpgroupRows - 1) >> log2_heads;
    return (!kOptions || last < x.Lq) && all_see_all(band, begin >> log2_heads, last, step.least, step.most);
  }
  // lse, and what O's rows must be multiplied with to become o. sink(head): its sink.
  template <class Sums, class SinkOf>
  __device__ __forceinline__ void finish(Sums &sums, const LseView &lse, SinkOf sink, float (&scale)[2]) const {
    const int end = ((tasks.end_of(task) - 1) >> log2_heads) + 1;
    finish_rows(
        x, lse, sums, task.b, [&](int a) { return head_at(a); }, head.sequence.q_len, end,
        [&](int a) { return query_anew(a); }, [&](int a) { return sink(head_at(a)); }, scale);
  }
};

// O = sum of p v over the tiles of keys of a task, relative to the maxima in `sums`: FlashAttention-3, Algorithm 2.
//
// `products` says of which numbers: Number is q's type; start_scores(s, turn) and start_o(o, p, turn) start s = q k^T and
// O += p v, pack(s) makes p of weights, v_ring() tells when v is there, scale(s) is for scores that just came, and
// hide_rest(count, turn) for the last tile of v, of which only `count` rows are real. `anchor`: a place in shared memory
// of the thread's own.
template <bool kOptions, class Products, class Queries, class Sums, class KeyTurn, int kValues>
__device__ __forceinline__ void attend(const Products &products, const Queries &queries, float log2_scale,
                                       uint32_t anchor, Sums &sums, float (&o)[2][kValues], KeyTurn &k_turn,
                                       KeyTurn &v_turn) {
  constexpr int kScores = Products::kScores;
  const auto &shared = products.shared;
  const Attention &x = queries.x;
  const auto &me = queries.me;
  const auto count_of_step = [&] {
    shared.k_ring.wait_full(k_turn);
    return uniform(shared.steps[k_turn.stage()].count);
  };
  float s[2][kScores], alpha[2];
  const auto start_scores = [&] {
    me.wait_for_turn();
    begin_products();
    products.start_scores(s, k_turn);
    commit_products();
  };
  const auto start_o = [&](const auto &p) {
    begin_products();
    products.start_o(o, p, v_turn);
    commit_products();
  };
  // What is left to do with scores that are there, up to the exponentials; gives the tile of keys back.
  const auto finish_scores = [&] {
    settle(s);
    const auto &step = shared.steps[k_turn.stage()];
    const auto part = part_of<Side::kQueries, 2, kScores, Neighbour::kFourLanesOff>(
        [&](int a) { return queries.query(a); },
        [&](int b) { return step.first[b / 4] + b / 2 % 2 * 8 + fragment_column(me.lane) + b % 2; });
    const bool sees_all = queries.all_see(step);
    products.scale(s);
    apply_rules<typename Products::Number, kOptions>(x, queries.head, queries.band, part, sees_all, s);
    if (!kOptions) me.release(shared.k_ring, k_turn);
    sums.add(s, log2_scale, alpha);
    if constexpr (kOptions) {
      drop_weights(x, queries.head, part, s);
      me.release(shared.k_ring, k_turn);  // the step has been read
    }
    k_turn.advance();
  };
  const auto finish_o = [&] {
    wait_for_products<0>();
    settle(o);
    me.release(products.v_ring(), v_turn);
    v_turn.advance();
  };

  int count = count_of_step();
  if (count > 0) {
    start_scores();
    wait_for_products<0>();
    me.pass_turn();
    finish_scores();
    auto p = products.pack(s);
    for (int next; (next = count_of_step()) > 0; count = next) {
      start_scores();
      products.v_ring().wait_full(v_turn);
      start_o(p);
      me.pass_turn();
      wait_for_products<1>();
      finish_scores();
      // ptxas would move the exponentials behind the wait for p v, to where their results are needed, and leave the
      // tensor cores alone with it. It doesn't move them past a store that needs their sum.
      store_4_bytes(anchor, float_bits(sums.sum[0] + sums.sum[1]));
      finish_o();
#pragma unroll
      for (int a = 0; a < 2; ++a)
#pragma unroll
        for (int c = 0; c < kValues; ++c) o[a][c] *= alpha[a];
      p = products.pack(s);
    }
    products.v_ring().wait_full(v_turn);
    products.hide_rest(count, v_turn);
    start_o(p);
    finish_o();
  }
  me.release(shared.k_ring, k_turn);
  k_turn.advance();
}

// ---- o without shared memory ------------------------------------------------------------------------------------------

// Four neighbours, rounded to the rows' type, to `place`; `count` of them are wanted.
__device__ __forceinline__ void store_four(float4 x, const Rows &to, char *place, int count) {
  const auto store = [&](auto number) {
    using T = decltype(number);
    if (to.aligned >= 4) {
      store_narrow<T>(x, place);
    } else {
      const float four[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
      for (int c = 0; c < 4; ++c)
        if (c < count) narrow(four[c], reinterpret_cast<T *>(place) + c);
    }
  };
  switch (to.dtype) {
    case DType::kFloat16:
      return store(Half{});
    case DType::kBfloat16:
      return store(Bfloat{});
    default:
      return store(float{});
  }
}

// Numbers [a][b] of a warpgroup become the task's rows. Lanes 2n and 2n + 1 swap half of what they have of 16 columns, so
// that each has four neighbours and a quad stores whole sectors.
template <int kColumns, class Queries>
__device__ __forceinline__ void store_rows(const float (&from)[2][kColumns], const Rows &to, const Queries &queries) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const bool is_odd = lane % 2 != 0;
  const int first_column = fragment_column(lane) + (is_odd ? 6 : 0), bytes = to.dtype == DType::kFloat32 ? 4 : 2;
#pragma unroll
  for (int a = 0; a < 2; ++a) {
    const int left = queries.is_there(a) ? queries.x.Dv - first_column : 0;
    char *const place =
        static_cast<char *>(to.view.data) + (queries.task.b * to.view.batch + queries.head_at(a) * to.view.head +
                                             queries.query_anew(a) * to.view.row + first_column) *
                                                bytes;
#pragma unroll
    for (int n = 0; n < kColumns; n += 4) {
      const float *x = from[a] + n;
      const float y0 = shuffle_xor(is_odd ? x[0] : x[2], 1), y1 = shuffle_xor(is_odd ? x[1] : x[3], 1);
      if (4 * n < left)
        store_four(is_odd ? float4{y0, y1, x[2], x[3]} : float4{x[0], x[1], y0, y1}, to, place + 4 * n * bytes,
                   left - 4 * n);
      __syncwarp();  // or all of them would be shuffled first, and registers hold twice as many
    }
  }
}

// ---- Pieces of keys -------------------------------------------------------------------------------------------------

// Where o and lse of one piece go, in float32: forward_pieces_sm90 merges them with those of the others, and with the
// sink, which is in no piece.
__device__ __forceinline__ Rows o_of_piece(const ForwardSm90Params &params, int64_t piece) {
  const Attention &x = params.forward.attention;
  const int64_t row = KeyPieces::row(x.Dv), of_head = x.Lq * row, of_batch = x.Hq * of_head;
  return {{params.pieces.o + piece * x.B * of_batch, of_batch, row, of_head}, DType::kFloat32, KeyPieces::kGroup};
}
__device__ __forceinline__ LseView lse_of_piece(const ForwardSm90Params &params, int64_t piece) {
  const Attention &x = params.forward.attention;
  const int64_t of_head = x.Lq, of_batch = x.Hq * of_head;
  return {params.pieces.lse + piece * x.B * of_batch, of_batch, of_head, 1};
}

}  // namespace flash
