// dbias for 16-bit types on tensor cores of compute capability 8.0 and later (mma.m16n8k16), for any head dims.
//
//   for each tile of scores of a piece of dbias:   s = q k^T   dp = do v^T   dbias += p (dp - delta)
//
// A piece stays in registers while everything that its bias was added to goes by, 64 columns of rows at a time: chunks of q
// and k, then of do and v, then those of the next tile, through a ring of stages that is filled ahead. Each sum is taken
// by one thread in a fixed order: the same bits on every run. Launched by src/cuda_calls.cpp through instances.def.
#pragma once
#include "bias.cuh"
#include "fragment.cuh"
#include "gradient.cuh"

namespace flash {

// Stages of rows on their way: of queries and of keys, kBiasChunk columns each.
struct BiasRing {
  static constexpr TensorTile kTile = bias_sm80_tile();
  using Tile = SharedTile<kBiasChunk>;
  static_assert(kTile.rows == bias_tile_shape().rows && kTile.columns == bias_tile_shape().columns);
  // Of the sums on their way out, in the same memory: a warp writes eight rows' pairs to 32 banks.
  static constexpr int kSumStride = kTile.columns + 4;
  static_assert(4 * kSumStride * kTile.rows <= bias_sm80_shared_bytes());
  uint32_t address;

  __device__ __forceinline__ Tile queries(int stage) const {
    return {address + static_cast<uint32_t>(stage * (kTile.rows + kTile.columns) * Tile::kRowBytes)};
  }
  __device__ __forceinline__ Tile keys(int stage) const {
    return {queries(stage).address + kTile.rows * Tile::kRowBytes};
  }
  __device__ __forceinline__ uint32_t sum(int row, int column) const {
    return address + static_cast<uint32_t>(4 * (row * kSumStride + column));
  }
};

// What is loaded, chunk by chunk, ahead of its products.
class BiasLoads {
 public:
  __device__ __forceinline__ BiasLoads(const BiasParams &params, int64_t task)
      : params_(params), items_(params, task), is_loaded_(true), of_values_(false), column_(0) {}

  // The item of the latest chunk, until there are no more.
  __device__ __forceinline__ bool has_item() const { return has_item_; }
  __device__ __forceinline__ const BiasItem &item() const { return item_; }

  // The next chunk, if there is one, is on its way to a stage when this returns.
  __device__ __forceinline__ void load(const BiasRing &ring, int stage) {
    if (is_loaded_) has_item_ = items_.next(&item_), is_loaded_ = false;
    if (!has_item_) return;
    constexpr TensorTile kTile = BiasRing::kTile;
    const Attention &x = params_.attention;
    const Head &head = item_.head;
    const Source queries = of_values_ ? units_of(params_.dout, head.b, head.h, head.sequence.q_len, x.Dv)
                                      : units_of(x.q, head.b, head.h, head.sequence.q_len, x.D);
    const Source keys = of_values_ ? units_of(x.v, head.b, head.kv_head, head.sequence.kv_len, x.Dv)
                                   : units_of(x.k, head.b, head.kv_head, head.sequence.kv_len, x.D);
    load_tile<kTile.rows, kBiasChunk, kTile.threads()>(ring.queries(stage), from_column(queries),
                                                       [&](int granule, int n) {
                                                         const int i = item_.begin + granule * kGranule + paired_row(n);
                                                         return i < item_.end ? i : -1;
                                                       });
    load_tile<kTile.columns, kBiasChunk, kTile.threads()>(
        ring.keys(stage), from_column(keys), [&](int granule, int n) { return item_.keys.position(granule, n); });
    column_ += kBiasChunk;
    if (column_ < queries.columns) return;
    column_ = 0;
    of_values_ = !of_values_;
    is_loaded_ = !of_values_;
  }

 private:
  __device__ __forceinline__ Source from_column(Source rows) const {
    rows.data += column_ * 2;
    rows.columns -= column_;
    return rows;
  }

  const BiasParams &params_;
  BiasItems items_;
  BiasItem item_;
  bool has_item_, is_loaded_;  // the latter: all of the item is
  bool of_values_;             // of do and v, after q and k
  int column_;
};

template <class T, int, bool, Memory>
__global__ void __launch_bounds__(bias_sm80_tile().threads(), 2)
    backward_bias_sm80(const __grid_constant__ BiasParams params) {
  constexpr TensorTile kTile = BiasRing::kTile;
  constexpr int kRows = 2, kColumns = kTile.columns / 4;
  using Scores = float[kRows][kColumns];
  const Attention &x = params.attention;
  const BiasRing ring = {shared_address(shared_memory())};
  const int thread = here(static_cast<int>(threadIdx.x)), lane = thread % kWarp;
  const int first_row = thread / kWarp * kMmaRows;
  const auto slot_of_row = [&](int a) { return paired_row(first_row + 8 * a + fragment_row(lane)); };
  // A warp without rows has nothing but the copies to do.
  const bool has_rows = first_row < params.pieces.query_step;

  for (int64_t index = blockIdx.x; index < params.tasks; index += gridDim.x) {
    __syncthreads();  // the sums before have been read
    BiasLoads loads(params, index);
#pragma unroll 1
    for (int stage = 0; stage + 1 < kBiasStages; ++stage) {
      loads.load(ring, stage);
      commit_copies();
    }
    int stage = 0;
    const auto add_product = [&](Scores &product, int columns) {
#pragma unroll 1
      for (int column = 0; column < columns; column += kBiasChunk) {
        wait_for_copies<kBiasStages - 2>();
        __syncthreads();  // this stage is there, and the one before has been read
        loads.load(ring, stage == 0 ? kBiasStages - 1 : stage - 1);
        commit_copies();
        if (has_rows) multiply_tiles<T>(product, ring.queries(stage), first_row, ring.keys(stage));
        stage = stage + 1 == kBiasStages ? 0 : stage + 1;
      }
    };
    Scores sum = {};
    // Two chunks are loaded ahead, and an item has two or more: the one being loaded now is the next to be multiplied.
    static_assert(kBiasStages == 3);
    while (loads.has_item()) {
      const BiasItem item = loads.item();
      const auto row_of = [&](int a) { return item.begin + slot_of_row(a); };
      const int end = static_cast<int>(smaller(item.end, item.head.sequence.q_len));
      float2 facts[kRows];
#pragma unroll
      for (int a = 0; a < kRows; ++a) {
        facts[a] = {infinity(), 0};
        if (row_of(a) < end) {
          const int64_t at = fact_index(x, item.head.b, item.head.h, row_of(a));
          facts[a] = {params.facts.lse2[at], params.facts.delta[at]};
        }
      }
      Scores s = {}, dp = {};
      add_product(s, x.D);
      add_product(dp, x.Dv);
      if (!has_rows) continue;
      const Band band = band_of(x.window, item.head.sequence);
      const auto part = part_of<Side::kQueries, kRows, kColumns>(
          row_of, [&](int b) { return item.keys.position(b / 4, b / 2 % 2 * 8 + fragment_column(lane) + b % 2); });
      differentiate<T, true, /*kForBias=*/true>(
          x, item.head, band, part, item.sees_all(band), [&](int a) { return facts[a]; }, s, dp);
#pragma unroll
      for (int a = 0; a < kRows; ++a)
#pragma unroll
        for (int b = 0; b < kColumns; ++b) sum[a][b] += dp[a][b];
    }
    wait_for_copies<0>();
    __syncthreads();  // the last stage has been read
#pragma unroll
    for (int a = 0; a < kRows; ++a)
#pragma unroll
      for (int b = 0; b < kColumns; b += 2)
        store_8_bytes(ring.sum(slot_of_row(a), b / 2 * 8 + fragment_column(lane)), {sum[a][b], sum[a][b + 1]});
    __syncthreads();
    store_bias<kTile.threads()>(params, index, shared_memory(), BiasRing::kSumStride);
  }
}

}  // namespace flash
