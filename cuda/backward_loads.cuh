// What Hopper's backward kernels share: where k, v, q and do lie in shared memory, the warps that load them there, and
// how dk and dv leave it.
#pragma once
#include "gradient.cuh"
#include "warpgroup.cuh"

namespace flash {

// k and v; stages of q and of do, each with barriers that say full and free; for each stage of q where its queries lie,
// and of each of them lse2 and delta. What a kernel has besides lies between the tiles and the rest.
template <int kHeadDim, bool kOptions>
struct BackwardMemory {
  static constexpr WarpgroupTile kTile = backward_sm90_tile(kHeadDim, kOptions);
  static constexpr int kQueries = kTile.columns, kDoutStages = backward_dout_stages(kHeadDim);
  using KeyTile = PanelTile<kTile.rows, kHeadDim>;
  using QueryTile = PanelTile<kQueries, kHeadDim>;
  using QueryStep = Step<kQueries>;
  using QueryTurn = Turn<kBackwardStages>;
  using DoutTurn = Turn<kDoutStages>;
  using QueryRing = Ring<kBackwardStages>;
  using DoutRing = Ring<kDoutStages>;
  static_assert(sizeof(QueryStep) <= kStepBytes);
  static constexpr int kQ = 2 * KeyTile::kBytes, kDout = kQ + kBackwardStages * QueryTile::kBytes,
                       kOwn = kDout + kDoutStages * QueryTile::kBytes,
                       kFacts = kOwn + backward_sm90_own_bytes(kHeadDim, kOptions),
                       kSteps = kFacts + kBackwardStages * 8 * kQueries,
                       kBarriers = kSteps + (kBackwardStages + 1) * kStepBytes;
  static_assert(kBarriers + kBarrierBytes == backward_sm90_shared_bytes(kHeadDim, kOptions));

  char *shared;
  uint32_t start;

  __device__ __forceinline__ BackwardMemory() : shared(panel_memory()), start(shared_address(shared)) {}
  __device__ __forceinline__ KeyTile k() const { return {start}; }
  __device__ __forceinline__ KeyTile v() const { return {start + KeyTile::kBytes}; }
  __device__ __forceinline__ QueryTile q(QueryTurn turn) const {
    return {start + kQ + static_cast<uint32_t>(turn.stage() * QueryTile::kBytes)};
  }
  __device__ __forceinline__ QueryTile dout(DoutTurn turn) const {
    return {start + kDout + static_cast<uint32_t>(turn.stage() * QueryTile::kBytes)};
  }
  // Of the queries of a stage: lse2, +inf where there is no real query, and delta.
  __device__ __forceinline__ uint32_t lse2(QueryTurn turn, int query) const {
    return start + kFacts + static_cast<uint32_t>((turn.stage() * 2 * kQueries + query) * 4);
  }
  __device__ __forceinline__ uint32_t delta(QueryTurn turn, int query) const { return lse2(turn, kQueries + query); }
  __device__ __forceinline__ QueryStep &step_at(int offset) const {
    return *reinterpret_cast<QueryStep *>(shared + offset);
  }
  __device__ __forceinline__ QueryStep &step(QueryTurn turn) const {
    return step_at(kSteps + turn.stage() * kStepBytes);
  }
  // Of the boxes that are loaded.
  __device__ __forceinline__ QueryStep &box_step() const { return step_at(kSteps + kBackwardStages * kStepBytes); }
  // Of k and v: full once, and never free again.
  __device__ __forceinline__ Ring<1> own_ring() const { return {start + kBarriers}; }
  __device__ __forceinline__ QueryRing q_ring() const { return {own_ring().address + Ring<1>::kBytes}; }
  __device__ __forceinline__ DoutRing dout_ring() const { return {q_ring().address + QueryRing::kBytes}; }
  __device__ __forceinline__ Ring<1> more_ring() const { return {dout_ring().address + DoutRing::kBytes}; }
  static_assert(2 * Ring<1>::kBytes + QueryRing::kBytes + DoutRing::kBytes <= kBarrierBytes);
  // By one thread.
  __device__ __forceinline__ void init_barriers() const {
    own_ring().init(1, kTile.warpgroups());
    q_ring().init(2, 4 * kTile.warpgroups());
    dout_ring().init(1, 4 * kTile.warpgroups());
  }
};

// Barriers of the block.
enum BackwardBarrier : int { kOwnBarrier = 1, kComputeBarrier = 3, kDqFull = 4, kDqFree = 5 };

// Behind the last key of a task's tile.
__device__ __forceinline__ int end_of_keys(const GradientParams &params, const Task &task) {
  return static_cast<int>(smaller(task.begin + params.tiles.step, params.attention.Lk));
}

// The tile of keys that a block of threads has, as those who compute see it.
struct KeysOfTask {
  Task task;
  Sequence sequence;
  int q_len, real;  // keys: what lies behind is the next tile's, or none
  Band band;        // ends with them

  __device__ __forceinline__ explicit KeysOfTask(const GradientParams &params)
      : task(task_of<Side::kKeys>(params.tiles, blockIdx.x)),
        sequence(sequence_of(params.attention, task.b)),
        q_len(static_cast<int>(sequence.q_len)),
        real(static_cast<int>(larger(0, smaller(end_of_keys(params, task), sequence.kv_len) - task.begin))),
        band(band_of(params.attention.window, sequence)) {
    band.kv_len = task.begin + real;
  }
  // Whether the tile of `rows` has keys behind the real ones, loaded with them: 0 times what lies there counts for dq.
  __device__ __forceinline__ bool is_cut(const Attention &x, int rows) const {
    return real < rows && task.begin + real < x.Lk;
  }
};

// By warp 0, of which one thread, k and v, and for each head that reads them, for each tile of queries q and do; by
// warp 2 where the queries of each stage lie, their lse2 and delta. Behind the last a step without queries.
template <class Shared>
__device__ __forceinline__ void load_backward(const GradientSm90Params &params, const Shared &shared, int warp,
                                              int lane) {
  using KeyTile = typename Shared::KeyTile;
  constexpr int kQueries = Shared::kQueries;
  const Attention &x = params.gradient.attention;
  const int group = x.Hq / x.Hk;
  typename Shared::QueryTurn turn;
  const Task task = task_of<Side::kKeys>(params.gradient.tiles, blockIdx.x);
  const Sequence sequence = sequence_of(x, task.b);
  const int batch = static_cast<int>(task.b), q_len = static_cast<int>(sequence.q_len);
  const Interval keys = {task.begin, smaller(end_of_keys(params.gradient, task), sequence.kv_len)};
  if (warp == 0) {
    const uint32_t full = shared.own_ring().full({});
    barrier_arrive_expecting(full, 2 * KeyTile::kBytes);
#pragma unroll 1
    for (int panel = 0; panel < KeyTile::kPanels; ++panel) {
      load_box(shared.k().at(0, 8 * panel), &params.k, full, panel * kPanel, task.begin, task.head, batch);
      load_box(shared.v().at(0, 8 * panel), &params.v, full, panel * kPanel, task.begin, task.head, batch);
    }
  }
#pragma unroll 1
  for (int n = 0; n <= group; ++n) {
    const int h = task.head * group + (n < group ? n : 0);
    Walk walk(x.by_column, task.b, h, task.begin, n < group ? queries_of_any(x.window, sequence, keys) : Interval{0, 0},
              kQueries, params.box_queries);
    for (bool has_queries = true; has_queries; turn.advance()) {
      shared.q_ring().wait_free(turn);
      // Each of the two warps goes through the walk for itself.
      typename Shared::QueryStep &step = warp == 0 ? shared.box_step() : shared.step(turn);
      if (warp != 0) __syncwarp();  // the step before has been read
      if (lane == 0) {
        step.take(walk, params.box_queries, q_len);
        step.head = static_cast<int>(task.b * x.Hq + h);
      }
      if (warp != 0) __syncwarp();
      has_queries = step.count > 0;
      if (!has_queries && n < group) break;  // the next head
      const uint32_t full = shared.q_ring().full(turn);
      if (warp == 0) {
        const typename Shared::DoutTurn dout_turn = {turn.number};
        const uint32_t dout_full = shared.dout_ring().full(dout_turn);
        if (has_queries) {
          load_boxes(shared.q(turn), &params.q, full, step, params.box_queries, x.Lq, h, batch);
          shared.dout_ring().wait_free(dout_turn);
          load_boxes(shared.dout(dout_turn), &params.dout, dout_full, step, params.box_queries, x.Lq, h, batch);
        } else {
          barrier_arrive(full);
          shared.dout_ring().wait_free(dout_turn);
          barrier_arrive(dout_full);
        }
      } else {
#pragma unroll 1
        for (int query = lane; has_queries && query < kQueries; query += kWarp) {
          const int i = step.position(query / kGranule, query % kGranule);
          const bool is_real = i >= 0 && i < q_len;
          const int64_t at = is_real ? fact_index(x, task.b, h, i) : 0;
          const QueryFacts &facts = params.gradient.facts;
          store_4_bytes(shared.lse2(turn, query), float_bits(is_real ? facts.lse2[at] : infinity()));
          store_4_bytes(shared.delta(turn, query), float_bits(is_real ? facts.delta[at] : 0));
        }
        __syncwarp();
        if (lane == 0) barrier_arrive(full);
      }
    }
  }
}

// kRows rows of the tile from first_row on become those of dk or dv, where it is wanted, by the threads of a warpgroup.
template <int kRows, class Tile>
__device__ __forceinline__ void store_keys(const GradientParams &params, const Task &task, Tile from, int first_row,
                                           bool has_map, const TensorMap &map, const Rows &to, int columns) {
  if (to.view.data == nullptr) return;
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroup, end = end_of_keys(params, task);
  if (!has_map) {
    send_rows<kRows, kWarpgroup>(from, first_row, thread, to, task.b, task.head, columns,
                                 [&](int row) { return task.begin + row < end ? task.begin + row : -1; });
  } else if (thread == 0 && task.begin + first_row < end) {
    store_boxes(&map, from, first_row, task.begin + first_row, task.head, static_cast<int>(task.b));
  }
}

}  // namespace flash
