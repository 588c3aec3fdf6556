// What Hopper's forwards share: where q, k and v lie in shared memory, and the thread that loads them there.
#pragma once
#include "score.cuh"
#include "warpgroup.cuh"

namespace flash {

// q; two stages of k and of v, each with barriers that say full and free; for each stage of k where its keys lie. What a
// kernel has besides lies between the tiles and the rest.
template <int kQueries, int kKeys, int kHeadDim, int kValueDim, int kNumberBytes>
struct ForwardMemory {
  using QTile = PanelTile<kQueries, kHeadDim, kNumberBytes>;
  using KeyTile = PanelTile<kKeys, kHeadDim, kNumberBytes>;
  using ValueTile = PanelTile<kKeys, kValueDim, kNumberBytes>;
  using KeyTurn = Turn<kForwardStages>;
  using KeyStep = Step<kKeys>;
  using KeyRing = Ring<kForwardStages>;
  static constexpr int kTileBytes = QTile::kBytes + kForwardStages * (KeyTile::kBytes + ValueTile::kBytes);

  uint32_t start;
  KeyStep *steps;
  Ring<1> q_ring;
  KeyRing k_ring, v_ring;

  __device__ __forceinline__ ForwardMemory(char *shared, int own_bytes, int step_bytes)
      : start(shared_address(shared)),
        steps(reinterpret_cast<KeyStep *>(shared + kTileBytes + own_bytes)),
        q_ring{start + static_cast<uint32_t>(kTileBytes + own_bytes + kForwardStages * step_bytes)},
        k_ring{q_ring.address + Ring<1>::kBytes},
        v_ring{k_ring.address + KeyRing::kBytes} {}

  __device__ __forceinline__ QTile q() const { return {start}; }
  __device__ __forceinline__ KeyTile k(KeyTurn turn) const {
    return {start + QTile::kBytes + static_cast<uint32_t>(turn.stage() * KeyTile::kBytes)};
  }
  __device__ __forceinline__ ValueTile v(KeyTurn turn) const {
    return {start + QTile::kBytes +
            static_cast<uint32_t>(kForwardStages * KeyTile::kBytes + turn.stage() * ValueTile::kBytes)};
  }
  __device__ __forceinline__ uint32_t own_tiles() const { return start + kTileBytes; }
  __device__ __forceinline__ uint32_t end() const { return v_ring.address + KeyRing::kBytes; }
};

// What the blocks of threads of a launch share out: tiles of rows, and with each which piece of the keys it meets. Rows
// are 2^log2_heads heads of a query in turn.
struct ForwardTasks {
  const ForwardSm90Params &params;
  const Attention &x = params.forward.attention;
  const Tiles &tiles = params.forward.tiles;

  __device__ __forceinline__ int64_t count() const { return tiles.tasks * params.pieces.count; }
  __device__ __forceinline__ Task at(int64_t index) const {
    return task_of_heads(tiles, params.heads_together, index / params.pieces.count);
  }
  __device__ __forceinline__ int64_t piece(int64_t index) const { return index % params.pieces.count; }
  // Behind the last row of a task's tile.
  __device__ __forceinline__ int end_of(const Task &task) const {
    const int left = (x.Lq << params.log2_heads) - task.begin;
    return task.begin + (left < tiles.step ? left : tiles.step);
  }
};

// By one thread, all tasks of this block: q; then for each tile of keys where they lie and k, and v one tile later, when
// its products come; behind the last a step without keys. before_v(turn, step, kv_len) is called when v's place is
// free. Returns whose turn it is after the last v.
template <class Shared, class BeforeV>
__device__ __forceinline__ typename Shared::KeyTurn load_forward(const ForwardSm90Params &params, const Shared &shared,
                                                                 BeforeV before_v) {
  using QTile = typename Shared::QTile;
  using KeyTurn = typename Shared::KeyTurn;
  constexpr int kColumns = Shared::KeyTile::kRows;
  const Attention &x = params.forward.attention;
  const ForwardTasks tasks = {params};
  prefetch_map(&params.q);
  prefetch_map(&params.k);
  prefetch_map(&params.v);
  Turn<1> q_turn;
  KeyTurn k_turn, v_turn;
  int64_t index;
  for (uint32_t round = 0; (index = task_in_round(round, blockIdx.x, gridDim.x)) < tasks.count(); ++round) {
    const Task task = tasks.at(index);
    const Sequence sequence = sequence_of(x, task.b);
    const int first_query = task.begin >> params.log2_heads, last_query = (tasks.end_of(task) - 1) >> params.log2_heads;
    const int first_head = task.head << params.log2_heads, kv_head = first_head / (x.Hq / x.Hk),
              kv_len = static_cast<int>(sequence.kv_len), batch = static_cast<int>(task.b);
    Interval keys = keys_of_any(x.window, sequence, {first_query, smaller(last_query + 1, sequence.q_len)});
    if (params.pieces.count > 1) {
      const int64_t begin = tasks.piece(index) * params.pieces.keys;
      keys = intersection(keys, {begin, begin + params.pieces.keys});
    }
    Walk walk(x.by_row, task.b, first_head, first_query, keys, kColumns, params.box_keys);

    shared.q_ring.wait_free(q_turn);
    barrier_arrive_expecting(shared.q_ring.full(q_turn), QTile::kBytes);
#pragma unroll 1
    for (int panel = 0; panel < QTile::kPanels; ++panel)
      load_rows_of_heads(shared.q().at(0, 8 * panel), &params.q, shared.q_ring.full(q_turn),
                         panel * QTile::kPanelNumbers, first_query, task.head, batch);
    q_turn.advance();

    const auto load_keys = [&](auto to, const TensorMap *map, uint32_t barrier, const auto &step) {
      load_boxes(to, map, barrier, step, params.box_keys, x.Lk, kv_head, batch);
    };
    KeyTurn last;  // of the step before
    for (bool is_first = true, has_keys = true; has_keys; is_first = false) {
      auto &step = shared.steps[k_turn.stage()];
      shared.k_ring.wait_free(k_turn);
      has_keys = step.take(walk, params.box_keys, kv_len);
      const KeyTurn turn = k_turn;
      k_turn.advance();
      if (has_keys)
        load_keys(shared.k(turn), &params.k, shared.k_ring.full(turn), step);
      else
        barrier_arrive(shared.k_ring.full(turn));
      if (!is_first) {
        const auto &of_v = shared.steps[last.stage()];
        shared.v_ring.wait_free(v_turn);
        before_v(v_turn, of_v, kv_len);
        load_keys(shared.v(v_turn), &params.v, shared.v_ring.full(v_turn), of_v);
        v_turn.advance();
      }
      last = turn;
    }
  }
  return v_turn;
}

}  // namespace flash
