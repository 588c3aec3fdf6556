// What the CUDA kernels of a plan ask of memory: rows of the tiles themselves, rows of the other side that they go
// through, results, and what one kernel leaves for the next. tests/traffic.py has it byte for byte, apart from here.
#include "../cuda/configs.h"
#include "costs.h"
#include "cuda_fill.h"

namespace flash {
namespace {

constexpr double kSector = 32, kFloat = 4;

// Rows of all tiles of a launch, over batches and heads.
struct Walk {
  double own;    // those of the tiles themselves
  double met;    // those of the other side that tiles go through
  double again;  // own rows, once for each step that the tile takes on the other side
};

// How rows are fetched: so many of a tile's own as there are, those of the other side from a multiple of `columns` on in
// boxes of `box`.
struct Fetch {
  int64_t rows, columns, box;
};

// Of tiles of queries, or of keys.
Walk walk_of(const Problem &problem, bool of_queries, const Tiles &tiles, Fetch fetch) {
  const Problem whole = unread(problem);
  const Sequence sequence = sequence_of(whole, 0);
  const int64_t together = of_queries ? problem.Hq / tiles.heads : 1;  // heads that share a tile of queries
  const int64_t length = (of_queries ? problem.Lq : problem.Lk) * together;
  const int64_t other_length = of_queries ? problem.Lk : problem.Lq;
  int64_t own = 0, met = 0, again = 0;
  for (int64_t begin = 0; begin < length; begin += tiles.step) {
    const Interval rows{begin / together, ceil_div(smaller(begin + tiles.step, length), together)};
    const Interval seen =
        of_queries ? keys_of_any(problem.window, sequence, rows) : queries_of_any(problem.window, sequence, rows);
    const int64_t row_count = smaller(fetch.rows, length - begin);
    own += row_count;
    if (empty(seen)) continue;
    const int64_t first = seen.begin / fetch.columns * fetch.columns;
    const int64_t met_count = smaller(other_length - first, round_up(seen.end - first, fetch.box));
    met += met_count;
    again += row_count * ceil_div(met_count, fetch.columns);
  }
  const double heads = static_cast<double>(problem.B * tiles.heads);
  const double shared = heads * listed_share(problem);
  return {heads * static_cast<double>(own), shared * static_cast<double>(met), shared * static_cast<double>(again)};
}

// One problem's numbers, and its launches one by one.
class Requests {
 public:
  Requests(const Problem &problem, const Plan &plan, uint32_t wanted, double pairs)
      : x_(problem), plan_(plan), wanted_(wanted), size_(bytes_of(problem.dtype, 1)) {
    D_ = static_cast<double>(x_.D), Dv_ = static_cast<double>(x_.Dv);
    group_ = static_cast<double>(x_.Hq / x_.Hk);
    rows_ = static_cast<double>(x_.B * x_.Hq * x_.Lq);
    keys_ = static_cast<double>(x_.B * x_.Hk * x_.Lk);
    if (x_.mask.data != nullptr) scores_ += bytes_of(x_.mask.dtype, pairs);
    if (x_.bias.data != nullptr) scores_ += bytes_of(x_.bias.dtype, pairs);
  }

  Traffic of(const KernelLaunch &launch) const {
    switch (launch.operation) {
      case Operation::forward_any:
      case Operation::forward_sm80:
      case Operation::forward_sm90:
      case Operation::forward_narrow_sm90:
      case Operation::forward_fp8_sm90:
        return forward(launch);
      case Operation::forward_pieces_sm90:  // all lanes of a warp read each piece's lse, after one of them
        return {pieces() * rows_ * (kFloat * Dv_ + 2 * kSector), o_and_lse()};
      case Operation::backward_prepare_any:  // a warp for each query, which reads lse and writes three facts
        return {rows_ * (2 * size_ * Dv_ + kSector), rows_ * 3 * kSector + dq_sums()};
      case Operation::backward_sm80:
      case Operation::backward_sm90:
      case Operation::backward_wide_sm90:
        return one_pass(launch);
      case Operation::backward_dq_sm80:
        return {rows_ * kFloat * static_cast<double>(round_up(x_.D, 8)), rows_ * size_ * D_};
      case Operation::backward_keys_sm80:
      case Operation::backward_keys_any:
        return keys(launch);
      case Operation::backward_queries_sm80:
      case Operation::backward_queries_any:
        return queries(launch);
      case Operation::backward_bias_sm80:
        return bias(kFacts);
      case Operation::backward_bias_any:
        return bias(3 * kFloat);
      case Operation::backward_bias_sum_any:
        return {bias_partial(), bytes_of(x_.bias.dtype, own_elements(x_.bias, x_))};
      case Operation::backward_sinks_any:
        return {3 * kFloat * rows_, bytes_of(x_.sinks.dtype, static_cast<double>(x_.Hq))};
      case Operation::weights_any:  // of other calls
      case Operation::merge_any:
      case Operation::dropout_mask_any:
        break;
    }
    return {};
  }

 private:
  static constexpr double kFacts = 2 * kFloat;  // of a query: lse and delta

  static bool is_hopper(const KernelLaunch &launch) { return launch.memory == Memory::kHopper; }
  static bool is_one_pass(const KernelLaunch &launch) {
    return launch.operation == Operation::backward_sm80 || launch.operation == Operation::backward_sm90 ||
           launch.operation == Operation::backward_wide_sm90;
  }
  Walk walk(const KernelLaunch &launch, bool of_queries, const Tiles &tiles, int64_t columns) const {
    const Fetch by_boxes{launch.tile_rows, columns, columns}, by_granules{tiles.step, columns, kGranule};
    return walk_of(x_, of_queries, tiles, is_hopper(launch) ? by_boxes : by_granules);
  }
  // Rows whose own chunk of the head dim is still there from the product before are read again but for that.
  static double but_last_chunk(int64_t columns, int64_t chunk) {
    return static_cast<double>(larger(0, columns - 1) / chunk * chunk);
  }
  double o_and_lse() const { return rows_ * (bytes_of(result_dtype(x_), Dv_) + kFloat); }
  double dq_sums() const {
    const KernelLaunch *pass = nullptr;
    for (const KernelLaunch &launch : plan_.launches) {
      if (is_one_pass(launch)) pass = &launch;
    }
    if (pass == nullptr) return 0;
    return kFloat * static_cast<double>(x_.B * x_.Hq * round_up(x_.Lq, kGranule) * pass->head_dim);
  }
  Tiles forward_tiles(const KernelLaunch &launch) const {
    return is_hopper(launch) ? cuda_tiles_of_heads(x_, launch.tile_rows) : cuda_query_tiles(x_, launch.tile_rows);
  }
  double pieces() const {  // of the keys
    const KernelLaunch &first = *plan_.launches.begin();
    return static_cast<double>(first.tasks / forward_tiles(first).tasks);
  }
  double bias_partial() const {
    return kFloat * static_cast<double>(bias_partial_count(cuda_bias_pieces(x_, x_.bias, INT64_MAX), x_.bias));
  }
  double written_keys() const {
    return size_ * keys_ * ((wanted_ & FLASH_DK ? D_ : 0) + (wanted_ & FLASH_DV ? Dv_ : 0));
  }

  Traffic forward(const KernelLaunch &launch) const {
    const Walk w = walk(launch, true, forward_tiles(launch), plan_.block_k);
    const double of_pieces = pieces() * rows_ * kFloat * (static_cast<double>(KeyPieces::row(x_.Dv)) + 1);
    return {size_ * (w.own * pieces() * D_ + w.met * (D_ + Dv_)) + scores_, pieces() > 1 ? of_pieces : o_and_lse()};
  }

  Traffic one_pass(const KernelLaunch &launch) const {
    const Walk w = walk(launch, false, cuda_key_tiles(x_, launch.tile_rows), plan_.block_q);
    const bool adds_boxes = launch.operation == Operation::backward_sm90;
    const double sums = static_cast<double>(adds_boxes ? launch.head_dim : round_up(x_.D, 8));
    return {size_ * (w.own + w.met * group_) * (D_ + Dv_) + w.met * group_ * kFacts + scores_,
            w.met * group_ * kFloat * sums + written_keys()};
  }

  Traffic keys(const KernelLaunch &launch) const {
    const Walk w = walk(launch, false, cuda_key_tiles(x_, launch.tile_rows), plan_.block_k);
    const double met = w.met * group_;
    if (launch.operation == Operation::backward_keys_sm80) {
      const double passes = sums_keys_at_once_sm80(launch.head_dim) ? 1 : 2;
      return {passes * (size_ * (w.own + met) * (D_ + Dv_) + met * kFacts + scores_), written_keys()};
    }
    const TileShape tile = backward_tile(launch.head_dim);
    const double passes = sums_keys_at_once(launch.head_dim) ? 1 : 2;
    const double own = keeps_own_rows(launch.head_dim) ? w.own : passes * group_ * w.again;
    // Queries for the scores, and for dk and dv; a sector for each of their three facts.
    const double other = (passes + 1) * D_ + passes * Dv_ + but_last_chunk(x_.Dv, tile.chunk);
    return {size_ * (own * (D_ + Dv_) + met * other) + met * passes * 3 * kSector + passes * scores_, written_keys()};
  }

  Traffic queries(const KernelLaunch &launch) const {
    const Walk w = walk(launch, true, cuda_query_tiles(x_, launch.tile_rows), plan_.block_k);
    const double written = size_ * rows_ * D_;
    if (launch.operation == Operation::backward_queries_sm80)
      return {size_ * (w.own + w.met) * (D_ + Dv_) + w.own * kFacts + scores_, written};
    const TileShape tile = backward_tile(launch.head_dim);
    const double own = keeps_own_rows(launch.head_dim) ? w.own : w.again;
    const double other = D_ + Dv_ + but_last_chunk(x_.D, tile.chunk);
    return {size_ * (own * (D_ + Dv_) + w.met * other) + w.again * 3 * kFloat + scores_, written};
  }

  // fact_bytes: of each of a tile's queries.
  Traffic bias(double fact_bytes) const {
    constexpr TileShape tile = bias_tile_shape();
    const Tiles tiles = cuda_query_tiles(x_, tile.rows);
    const Walk w = walk_of(x_, true, tiles, {tiles.step, tile.columns, kGranule});
    const double written = bias_partial() > 0 ? bias_partial() : bytes_of(x_.bias.dtype, own_elements(x_.bias, x_));
    return {size_ * (w.again + w.met) * (D_ + Dv_) + w.again * fact_bytes + scores_, written};
  }

  const Problem &x_;
  const Plan &plan_;
  uint32_t wanted_;
  double size_, D_, Dv_, group_;
  double rows_, keys_;  // queries and keys of all batches and heads
  double scores_ = 0;   // of mask and bias, where scores are made
};

}  // namespace

Traffic requested_traffic(const Problem &problem, const Plan &plan, uint32_t wanted, double pairs) {
  Traffic total{};
  const Requests requests(problem, plan, wanted, pairs);
  for (const KernelLaunch &launch : plan.launches) {
    const Traffic one = requests.of(launch);
    total.read += one.read, total.written += one.written;
  }
  return total;
}

}  // namespace flash
