// Tests of the CUDA side's plain arithmetic, on the host: tiles, walks over block lists, axes of dbias, tile tables, the
// plan and the workspace. Device functions are called as a host compiler sees them (tests/lint).
//
//   flash_cuda_host_tests   prints each failed check as file:line, then "N passed, N failed"; exit status 1 if any failed
#include "lint/cuda_runtime_api.h"
// After it, as with nvcc:
#include <algorithm>
#include <cfloat>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "bias.cuh"
#include "configs.h"
#include "cuda_calls.h"
#include "cuda_fill.h"
#include "cuda_host.h"
#include "flash.h"
#include "geometry.h"
#include "isa/index.h"
#include "params.h"
#include "random.h"
#include "score.cuh"
#include "tile.cuh"

using namespace flash;

namespace {

// ---- Tiles

void test_tiles() {
  int wrong = 0;
  for (int round = 0; round < 500; ++round) {
    const int64_t B = draw(0, 3), heads = draw(1, 3), length = draw(0, 300);
    const int rows = 32 << draw(0, 1);
    const int64_t block = draw(0, 1) == 0 ? 0 : int64_t{16} << draw(0, 4);
    const Tiles tiles = cuda_tiles(B, heads, length, rows, block);
    // Else a tile crosses two lines of blocks.
    wrong += tiles.step > rows || (block != 0 && block % tiles.step != 0 && tiles.step < length);
    wrong += tiles.tasks != B * heads * tiles.tiles;
    std::vector<int> seen(static_cast<size_t>(B * heads * length));
    int64_t head_before = -1;
    int begin_before = 0;
    for (int64_t index = 0; index < tiles.tasks; ++index) {
      const Task task = task_of(tiles, index);
      const int64_t head = task.b * heads + task.head;
      wrong += task.begin % tiles.step != 0 || task.begin >= length;
      wrong += head == head_before ? task.begin >= begin_before : head < head_before;
      head_before = head, begin_before = task.begin;
      const Task of_keys = task_of<Side::kKeys>(tiles, index);  // the same from the first on
      wrong += of_keys.b != task.b || of_keys.head != task.head;
      wrong += of_keys.begin + task.begin != (tiles.tiles - 1) * tiles.step;
      for (int64_t i = task.begin; i < std::min<int64_t>(task.begin + tiles.step, length); ++i)
        ++seen[static_cast<size_t>(head * length + i)];
    }
    wrong += std::count(seen.begin(), seen.end(), 1) != static_cast<int64_t>(seen.size());
  }
  CHECK(wrong == 0);
  CHECK(cuda_tiles(1 << 20, 64, INT32_MAX, 32, 16).tasks == (int64_t{1} << 26) * (int64_t{1} << 27));
}

// Rows 2n and 2n + 1 of a thread lie at neighbouring slots, the first at an even one, and all slots are taken once.
template <int kThreads>
void test_slots(int count) {
  int wrong = 0;
  std::set<int> slots;
  for (int thread = 0; thread < kThreads; ++thread)
    for (int n = thread; n < count; n += 2 * kThreads) {
      const int even = slot_of<kThreads>(n), odd = slot_of<kThreads>(n + kThreads);
      wrong += even % 2 != 0 || odd != even + 1;
      slots.insert({even, odd});
      wrong += row_at<kThreads>(n, 100, 200) != 100 + even || row_at<kThreads>(n, 100, 101 + even) != 100 + even;
      wrong += row_at<kThreads>(n, 100, 100 + even) != -1;
    }
  CHECK(wrong == 0);
  CHECK(static_cast<int>(slots.size()) == count && *slots.begin() == 0 && *slots.rbegin() == count - 1);
}

template <int kCount>
void test_granules() {
  int wrong = 0;
  for (int64_t begin : {0, 16, 1 << 20, INT32_MAX / 16 * 16})
    for (int64_t wanted : {1, 15, 16, 17, 31, 32, 33, 64}) {
      const int64_t length = smaller(wanted, INT32_MAX - begin);
      const Granules<kCount> granules = consecutive<kCount>(begin, begin + length);
      for (int slot = 0; slot < kCount; ++slot)
        wrong += granules.position(slot) != (slot < round_up(length, kGranule) ? begin + slot : -1);
      const bool is_full = length > kCount - kGranule;
      wrong += granules.least() != (is_full ? begin : -1) || (is_full && granules.most() != begin + kCount - 1);
    }
  CHECK(wrong == 0);
}

// ---- Walks

// All positions that a walk with tiles of kCount comes by, in its order.
template <int kCount>
std::vector<int64_t> walked(const BlockLists &lists, int64_t b, int h, int own_begin, Interval span) {
  std::vector<int64_t> positions;
  Walk walk(lists, b, h, own_begin, span);
  for (Granules<kCount> granules; walk.next(&granules);) {
    bool is_over = false;
    for (int slot = 0; slot < kCount; ++slot) {
      const int position = granules.position(slot);
      is_over = is_over || position < 0;
      if (!is_over) positions.push_back(position);
    }
  }
  return positions;
}

template <int kCount>
void test_walk() {
  int wrong = 0, stray = 0;
  for (int round = 0; round < 2000; ++round) {
    const int own = 16 << draw(0, 4), other = 16 << draw(0, 4);
    const int64_t length = draw(0, 700), lines = draw(1, 4), blocks = ceil_div(length, other);
    // Two heads, each with its own list; some entries, and in some rounds the starts, are out of range.
    const bool has_bad_start = draw(0, 9) == 0;
    std::vector<int32_t> index, start;
    for (int64_t line = 0; line < 2 * lines; ++line) {
      if (line % lines == 0) start.push_back(static_cast<int32_t>(index.size()));
      if (draw(0, 5) == 0) index.push_back(-1);
      for (int32_t block = 0; block < blocks; ++block)
        if (draw(0, 2) == 0) index.push_back(block);
      if (draw(0, 5) == 0) index.push_back(static_cast<int32_t>(blocks + draw(0, 3)));
      if (draw(0, 5) == 0) index.push_back(static_cast<int32_t>(1 << draw(24, 28)));  // times `other` is 0 in 32 bits
      start.push_back(static_cast<int32_t>(index.size()));
    }
    if (has_bad_start)
      for (int32_t &x : start) x = static_cast<int32_t>(draw(-1000, 1000));
    BlockLists lists{};
    lists.start = start.data(), lists.index = index.data();
    lists.head = lines + 1, lists.line = 1, lists.index_stride = 1;
    lists.count = static_cast<int64_t>(index.size());
    lists.own = own, lists.other = other, lists.other_blocks = blocks;
    const int h = static_cast<int>(draw(0, 1));
    const int64_t line = draw(0, lines - 1);
    const Interval span{draw(0, length), draw(0, length)};
    const auto positions = walked<kCount>(lists, 0, h, static_cast<int>(line) * own, span);
    for (size_t n = 0; n < positions.size(); ++n) {
      wrong += positions[n] < (has_bad_start ? 0 : span.begin / kGranule * kGranule);
      wrong += positions[n] >= round_up(span.end, kGranule);
      if (!has_bad_start && n > 0) wrong += positions[n] <= positions[n - 1];
    }
    stray += has_bad_start;
    if (has_bad_start) continue;  // enough that nothing is read out of bounds
    const std::set<int64_t> found(positions.begin(), positions.end());
    const auto *const first = index.data() + start[static_cast<size_t>(h * (lines + 1) + line)],
                      *const last = index.data() + start[static_cast<size_t>(h * (lines + 1) + line + 1)];
    for (int64_t j = span.begin; j < span.end; ++j)
      wrong += (found.count(j) != 0) != (std::find(first, last, static_cast<int32_t>(j / other)) != last);
  }
  CHECK(wrong == 0);
  CHECK(stray > 50);
}

// Without a block mask: all of the span, in steps at fixed places.
void test_walk_without_lists() {
  int wrong = 0;
  for (int round = 0; round < 500; ++round) {
    const Interval span{draw(0, 500), draw(0, 500)};
    const auto positions = walked<64>(BlockLists{}, 0, 0, 0, span);
    if (empty(span)) {
      wrong += !positions.empty();
      continue;
    }
    wrong += positions.front() != span.begin / 64 * 64 || positions.back() < span.end - 1;
    for (size_t n = 1; n < positions.size(); ++n) wrong += positions[n] != positions[n - 1] + 1;
  }
  CHECK(wrong == 0);
  // The last positions there can be: nothing overflows.
  CHECK(walked<64>(BlockLists{}, 0, 0, 0, {INT32_MAX - 100, INT32_MAX}).size() >= 100);
}

// ---- The axes of arguments that are broadcast

void test_axes() {
  int wrong = 0;
  for (int round = 0; round < 1000; ++round) {
    LeadingAxes axes{};
    axes.rank = static_cast<int>(draw(0, 4));
    int64_t batches = 1, stride = 1;
    for (int axis = axes.rank - 1; axis >= 0; --axis) {
      axes.extent[axis] = draw(1, 4);
      axes.stride[axis] = draw(0, 1) == 0 ? 0 : stride;
      batches *= axes.extent[axis];
      if (axes.stride[axis] != 0) stride *= axes.extent[axis];
    }
    const int64_t own = own_batches(axes);
    wrong += own != stride || batches % own != 0;
    std::set<int64_t> seen;
    for (int64_t n = 0; n < own; ++n)
      for (int64_t other = 0; other < batches / own; ++other) {
        const int64_t b = batch_of(axes, n, other);
        wrong += b < 0 || b >= batches || leading_offset(axes, b) != own_offset(axes, n);
        wrong += batch_offset(axes, b) != leading_offset(axes, b);
        seen.insert(b);
      }
    wrong += static_cast<int64_t>(seen.size()) != batches;
  }
  CHECK(wrong == 0);
}

// ---- Dropout

// One draw for a square of four, in a thread's order, is what dropout_words says of each pair.
template <Side kSide>
void test_kept_pairs() {
  constexpr int kRows = 4, kColumns = 8;
  int wrong = 0;
  Attention x{};
  x.keep_threshold = dropout_threshold(0.4);
  for (int round = 0; round < 50; ++round) {
    Head head{};
    head.b = draw(0, 5), head.h = static_cast<int>(draw(0, 7)), head.seed = random_bits();
    const int row = 64 * static_cast<int>(draw(0, 9)), column = 64 * static_cast<int>(draw(0, 9)), thread = 5;
    const auto part =
        part_of<kSide, kRows, kColumns>([=](int a) { return row_at<16>(thread + 16 * a, row, 1 << 20); },
                                        [=](int b) { return row_at<8>(thread + 8 * b, column, 1 << 20); });
    const uint64_t kept = kept_pairs(x, head, part);
    for (int a = 0; a < kRows; ++a)
      for (int b = 0; b < kColumns; ++b) {
        const int i = part.query(a, b), j = part.key(a, b);
        const uint32_t word = dropout_words(head.seed, head.b, head.h, i, j).word[dropout_word_index(i, j)];
        wrong += (kept >> (kColumns * a + b) & 1) != (word >= x.keep_threshold);
      }
  }
  CHECK(wrong == 0);
}

// ---- Tile tables

void test_configs() {
  CHECK(built_head_dim(1, 1) == 64 && built_head_dim(64, 65) == 128 && built_head_dim(200, 8) == 256);
  CHECK(built_head_dim(576, 512) == 576 && built_head_dim(577, 8) == 0);
  for (int head_dim : kHeadDims) {
    for (const TileShape &tile : {forward_tile(head_dim), backward_tile(head_dim)}) {
      CHECK(tile.threads() % 32 == 0 && tile.threads() <= 1024);
      CHECK(tile.rows % (2 * tile.down) == 0 && tile.columns % (2 * tile.across) == 0);  // squares of 2 x 2
      CHECK(tile.rows % kGranule == 0 && Walk::kStep % tile.columns == 0);
      CHECK(head_dim % tile.chunk == 0 && tile.chunk % (4 * tile.across) == 0);
      CHECK(padded(tile.chunk) % 4 == 0 && weights_stride(tile) % 4 == 0);  // vectors of four stay aligned
      CHECK(weights_stride(tile) >= tile.columns);
    }
    // What comes out goes through the buffer that rows of the other side came in by.
    CHECK(forward_tile(head_dim).rows <= forward_tile(head_dim).columns);
  }
  CHECK(forward_shared_bytes(64) == 4 * (64 * 68 + 64 * 68 + 64 * 72));
  CHECK(forward_shared_bytes(128) == 4 * (64 * 132 + 64 * 132 + 64 * 80));
  CHECK(forward_shared_bytes(576) == 4 * (32 * 580 + 64 * 68 + 32 * 72));
  CHECK(backward_shared_bytes(64) == 4 * (2 * 64 * 68 + 64 * 68 + 64 * 72));
  CHECK(backward_shared_bytes(128) == 4 * (2 * 64 * 132 + 32 * 132 + 64 * 40));
  CHECK(backward_shared_bytes(576) == 4 * (32 * 68 + 32 * 68 + 32 * 40));
  // dbias leaves its tile in shared memory, and sinks one double per thread.
  CHECK(bias_shared_bytes() >= 4 * bias_tile_shape().rows * weights_stride(bias_tile_shape()));
}

// ---- The plan

float some_memory[4];
// A bias over B, with stride 0 along the axes that it lacks.
ScoresView bias_of(const Problem &problem, bool has_batch, bool has_heads, bool has_rows, bool has_columns) {
  ScoresView bias{};
  bias.data = some_memory, bias.dtype = DType::kFloat32;
  bias.batch.rank = 1, bias.batch.extent[0] = problem.B;
  int64_t stride = 1;
  if (has_columns) bias.column = stride, stride *= problem.Lk;
  if (has_rows) bias.row = stride, stride *= problem.Lq;
  if (has_heads) bias.head = stride, stride *= problem.Hq;
  if (has_batch) bias.batch.stride[0] = stride;
  return bias;
}

void test_bias_pieces() {
  int wrong = 0, split = 0;
  for (int round = 0; round < 1000; ++round) {
    Problem problem = problem_of(draw(1, 4), draw(1, 600), draw(1, 600), draw(1, 4), 1, 64);
    if (draw(0, 2) == 0) problem.blocks.block_q = 16 << draw(0, 4);
    const ScoresView bias = bias_of(problem, draw(0, 1) == 0, draw(0, 1) == 0, draw(0, 1) == 0, draw(0, 1) == 0);
    const int64_t room = draw(0, 2) == 0 ? INT64_MAX : draw(0, 100000);
    const BiasPieces pieces = cuda_bias_pieces(problem, bias, room);
    const int64_t query_tiles = ceil_div(problem.Lq, pieces.query_step), key_tiles = ceil_div(problem.Lk, 64);
    wrong += pieces.own.product() * pieces.other.product() != problem.B * problem.Hq * query_tiles * key_tiles;
    for (const auto &[own, other] :
         {std::pair(pieces.own.batches, pieces.other.batches), std::pair(pieces.own.heads, pieces.other.heads),
          std::pair(pieces.own.query_tiles, pieces.other.query_tiles),
          std::pair(pieces.own.key_tiles, pieces.other.key_tiles)})
      wrong += own != 1 && other != 1;
    wrong += pieces.splits < 1 || pieces.splits > pieces.other.product();
    wrong +=
        pieces.query_step > 64 || (problem.blocks.block_q != 0 && problem.blocks.block_q % pieces.query_step != 0 &&
                                   pieces.query_step < problem.Lq);
    const int64_t count = bias_partial_count(pieces, bias);
    wrong += count > room || (pieces.splits == 1) != (count == 0);
    split += pieces.splits > 1;
  }
  CHECK(wrong == 0);
  CHECK(split > 100);
  // One tile for everything: as many blocks as are worth it, or as there are items.
  const Problem large = problem_of(64, 64, 64, 16, 16, 64), small = problem_of(2, 64, 64, 2, 2, 64);
  CHECK(cuda_bias_pieces(large, bias_of(large, false, false, true, true), INT64_MAX).splits == kBiasBlocks);
  CHECK(cuda_bias_pieces(small, bias_of(small, false, false, true, true), INT64_MAX).splits == 4);
  const Problem none = problem_of(0, 64, 64, 2, 2, 64);
  CHECK(cuda_bias_pieces(none, bias_of(none, true, true, true, true), INT64_MAX).own.product() == 0);
}

void test_plan() {
  Problem problem = problem_of(2, 100, 200, 8, 2, 64);
  Plan plan = plan_cuda(problem, 0, kLarge);
  CHECK(plan.kernel == std::string("forward_any") && plan.path == std::string("float32") && plan.limit == nullptr);
  CHECK(plan.block_q == 64 && plan.block_k == 64 && plan.tasks == 2 * 8 * 2 && plan.workers == 132);
  CHECK(workspace_bytes(plan) == 0);
  problem.D = 65;
  problem.dtype = DType::kFloat16;
  plan = plan_cuda(problem, 0, kSmall);
  CHECK(plan.kernel == std::string("forward_sm80") && plan.path == std::string("tensor cores"));
  CHECK(plan.limit == nullptr && plan_cuda(problem, 0, kLarge).limit != nullptr);
  CHECK(plan.workers == 1 && plan.block_q == 112 && plan.launches.list[0].head_dim == 128);
  CHECK(plan_cuda(problem, FLASH_DQ, kSmall).kernel == std::string("backward_deterministic_sm80"));
  problem.Dv = 576;
  plan = plan_cuda(problem, 0, kSmall);
  CHECK(plan.kernel == std::string("forward_any") && plan.limit != nullptr && plan.block_q == 32);
  problem.blocks.block_q = 16, problem.blocks.block_k = 128;
  CHECK(plan_cuda(problem, 0, kSmall).block_q == 16);

  problem = problem_of(2, 100, 200, 8, 2, 64);
  plan = plan_cuda(problem, FLASH_DQ, kLarge);
  CHECK(plan.kernel == std::string("backward_any") && plan.tasks == 2 * 8 * 2);
  CHECK(plan_cuda(problem, FLASH_DK, kLarge).tasks == 2 * 2 * 4);
  CHECK(plan_cuda(problem, FLASH_DK | FLASH_DV, kLarge).tasks == 2 * 2 * 4);
  CHECK(plan_cuda(problem, FLASH_DQ | FLASH_DV, kLarge).tasks == 2 * 8 * 2 + 2 * 2 * 4);
  CHECK(plan_cuda(problem, FLASH_DSINKS, kLarge).tasks == 8);
  problem.bias = bias_of(problem, true, true, true, true);
  CHECK(plan_cuda(problem, FLASH_DBIAS, kLarge).tasks == 2 * 8 * 2 * 4);
}

// All gradients in one pass where that is allowed and there is room; a forward with larger tiles where there is.
void test_plan_of_memory() {
  const auto kernel = [](const Problem &problem, uint32_t wanted, const CudaDevice &device) {
    return std::string(plan_cuda(problem, wanted, device).kernel);
  };
  constexpr uint32_t kAll = FLASH_DQ | FLASH_DK | FLASH_DV;
  for (int64_t D : {40, 64, 128, 192, 256}) {
    Problem problem = problem_of(2, 300, 500, 8, 2, D);
    problem.dtype = DType::kBfloat16;
    CHECK(kernel(problem, kAll, kLarge) == "backward_sm80");
    CHECK((kernel(problem, kAll, kSmall) == "backward_sm80") == (D <= 64));
    CHECK(kernel(problem, FLASH_DQ | FLASH_DK, kLarge) == "backward_sm80");
    CHECK(kernel(problem, FLASH_DQ | FLASH_DV | FLASH_DSINKS, kLarge) == "backward_sm80");
    for (uint32_t wanted : {uint32_t{FLASH_DQ}, uint32_t{FLASH_DK}, uint32_t{FLASH_DK | FLASH_DV}})
      CHECK(kernel(problem, wanted, kLarge) == "backward_deterministic_sm80");
    const Plan plan = plan_cuda(problem, kAll, kLarge);
    CHECK(plan.launches.count == 3 && plan.launches.list[1].operation == Operation::backward_sm80);
    CHECK(plan.launches.list[2].operation == Operation::backward_dq_sm80);
    CHECK(plan.launches.list[2].tasks == ceil_div(2 * 8 * ceil_div(300, 8) * ceil_div(D, 32), 8));
    problem.deterministic = true;
    CHECK(kernel(problem, kAll, kLarge) == "backward_deterministic_sm80");
    const Plan same = plan_cuda(problem, kAll, kLarge);
    CHECK(same.launches.list[1].operation == Operation::backward_keys_sm80);
    CHECK(same.shared_bytes == 3 * size_t{2 * 8 * 300 * 4});
    CHECK(plan.shared_bytes == same.shared_bytes + size_t{2 * 8 * 304 * 4} * plan.launches.list[1].head_dim);
    CHECK(plan_cuda(problem, 0, kLarge).block_q == 128);
    CHECK(plan_cuda(problem, 0, kSmall).block_q == (D == 256 ? 64 : 128));
  }
  // Of few queries a tile has no more rows than they fill granules.
  Problem problem = problem_of(2, 17, 500, 8, 2, 64);
  problem.dtype = DType::kFloat16;
  CHECK(plan_cuda(problem, 0, kLarge).block_q == 32);
}

// Pieces of the workspace are aligned, apart from each other and inside it.
void test_workspace() {
  int wrong = 0;
  for (int round = 0; round < 300; ++round) {
    Problem problem = problem_of(draw(0, 3), draw(0, 300), draw(0, 300), draw(1, 4), 1, 64);
    problem.dtype = draw(0, 1) == 0 ? DType::kFloat16 : DType::kFloat32;
    const CudaDevice &device = draw(0, 1) == 0 ? kSmall : kLarge;
    const uint32_t wanted = FLASH_DQ | (draw(0, 1) == 0 ? 0 : FLASH_DBIAS) | (draw(0, 1) == 0 ? 0 : FLASH_DK);
    if (wanted & FLASH_DBIAS) problem.bias = bias_of(problem, draw(0, 1) == 0, draw(0, 1) == 0, true, draw(0, 1) == 0);
    const CudaBackwardMemory size = place_cuda_backward(nullptr, problem, wanted, device);
    wrong += size.delta != nullptr || size.bias_partial != nullptr;
    wrong += workspace_bytes(plan_cuda(problem, wanted, device)) != (size.bytes == 0 ? 0 : size.bytes + 64);
    std::vector<char> buffer(size.bytes + kWorkspaceAlignment);
    const size_t slack = kWorkspaceAlignment - reinterpret_cast<uintptr_t>(buffer.data()) % kWorkspaceAlignment;
    char *const base = buffer.data() + slack;
    const CudaBackwardMemory memory = place_cuda_backward(base, problem, wanted, device);
    wrong += memory.bytes != size.bytes || memory.bias_partial_count != size.bias_partial_count;
    const int64_t rows = problem.B * problem.Hq * problem.Lq;
    const char *end = base;
    for (const auto &[piece, count] :
         {std::pair(memory.delta, rows), std::pair(memory.lse2, rows), std::pair(memory.lse2_low, rows),
          std::pair(memory.dq_sums.data, problem.B * problem.Hq * memory.dq_sums.rows * memory.dq_sums.columns),
          std::pair(memory.bias_partial, memory.bias_partial_count)}) {
      if (piece == nullptr) continue;
      const char *const begin = reinterpret_cast<const char *>(piece);
      wrong += begin < end || reinterpret_cast<uintptr_t>(begin) % kWorkspaceAlignment != 0;
      end = begin + count * static_cast<int64_t>(sizeof(float));
    }
    wrong += end > base + size.bytes;
  }
  CHECK(wrong == 0);
}

// ---- Bands, and where numbers lie for tensor cores

void test_band() {
  int wrong = 0, seen_by_all = 0;
  for (int round = 0; round < 3000; ++round) {
    const Window window{draw(0, 2) == 0 ? kOpen : draw(0, 40), draw(0, 2) == 0 ? kOpen : draw(0, 40)};
    const Sequence sequence{draw(1, 60), draw(0, 60), draw(-80, 80)};
    const Band band = band_of(window, sequence);
    for (int i = 0; i < sequence.q_len; ++i)
      for (int j = -1; j < 70; ++j) {
        const Interval seen = keys_of(window, sequence, i);
        wrong += sees(band, i, j) != (j >= seen.begin && j < seen.end);
      }
    const int first_query = static_cast<int>(draw(0, sequence.q_len - 1)), first_key = static_cast<int>(draw(-1, 60));
    const int last_query = static_cast<int>(draw(first_query, sequence.q_len - 1));
    const int last_key = static_cast<int>(draw(first_key, 70));
    bool all = true;
    for (int i = first_query; i <= last_query; ++i)
      for (int j = first_key; j <= last_key; ++j) all = all && sees(band, i, j);
    wrong += all_see_all(band, first_query, last_query, first_key, last_key) != all;
    seen_by_all += all;
  }
  CHECK(wrong == 0);
  CHECK(seen_by_all > 50);
  // At the ends of what positions and offsets may be.
  constexpr int kLast = INT32_MAX - 1;
  for (int64_t offset : {-(int64_t{1} << 30), int64_t{0}, int64_t{1} << 30}) {
    const Sequence longest{INT32_MAX, INT32_MAX, offset};
    for (Window window : {Window{kOpen, kOpen}, Window{0, 0}, Window{5, kOpen}, Window{kOpen, (int64_t{1} << 30) - 1}})
      for (int i : {0, 1, 1 << 30, kLast})
        for (int j : {-1, 0, 1, 1 << 30, kLast}) {
          const Interval seen = keys_of(window, longest, i);
          CHECK(sees(band_of(window, longest), i, j) == (j >= seen.begin && j < seen.end));
        }
  }
}

void test_fragments() {
  for (int units : {8, 16, 24, 32}) {
    std::set<int> places;
    int conflicts = 0, wrong = 0;
    for (int row = 0; row < 64; ++row)
      for (int unit = 0; unit < units; ++unit) places.insert(swizzled_offset_bytes(row, unit, units));
    CHECK(static_cast<int>(places.size()) == 64 * units && *places.rbegin() == (64 * units - 1) * 16);
    for (int first = 0; first < 64; first += 8)
      for (int unit = 0; unit < units; ++unit) {
        std::set<int> banks;  // groups of four
        for (int row = first; row < first + 8; ++row) banks.insert(swizzled_offset_bytes(row, unit, units) / 16 % 8);
        conflicts += banks.size() != 8;
      }
    for (int row = 0; row < 64; ++row)
      for (int unit = 0; unit < 2; ++unit)
        for (int step = 0; unit + step < units; step += 2)
          wrong += swizzled_step(static_cast<uint32_t>(swizzled_offset_bytes(row, unit, units)), step) !=
                   static_cast<uint32_t>(swizzled_offset_bytes(row, unit + step, units));
    CHECK(conflicts == 0 && wrong == 0);
  }
  std::set<int> rows;
  for (int n = 0; n < 32; ++n) rows.insert(paired_row(n));
  CHECK(rows.size() == 32 && *rows.rbegin() == 31);
  for (int lane = 0; lane < 32; ++lane) {
    CHECK(paired_row(fragment_row(lane) + 8) == paired_row(fragment_row(lane)) + 1);
    CHECK(paired_row(fragment_row(lane)) % 2 == 0 && fragment_column(lane) % 2 == 0);
    CHECK(row_major_matrix(lane).row % 8 == lane % 8 && column_major_matrix(lane).row % 8 == lane % 8);
  }
  CHECK(row_major_matrix(8).row == 8 && row_major_matrix(8).unit == 0 && row_major_matrix(16).unit == 1);
  CHECK(column_major_matrix(8).row == 0 && column_major_matrix(8).unit == 1 && column_major_matrix(16).row == 8);
}

void test_tensor_tiles() {
  for (int head_dim : kTensorHeadDims) {
    CHECK(built_tensor_head_dim(head_dim, 1) == head_dim && built_tensor_head_dim(1, head_dim) == head_dim);
    for (bool has_options : {false, true}) {
      for (Memory memory : {Memory::kSmall, Memory::kLarge}) {
        const TensorTile tile = forward_sm80_tile(head_dim, has_options, memory);
        CHECK(tile.warp_rows() % 16 == 0 && tile.columns % 16 == 0 && Walk::kStep % tile.columns == 0);
        CHECK(forward_sm80_shared_bytes(head_dim, has_options, memory) <= most_shared_bytes(memory));
      }
    }
    const TensorTile tile = backward_deterministic_sm80_tile(head_dim);
    CHECK(tile.warp_rows() == 16 && tile.columns % 16 == 0 && Walk::kStep % tile.columns == 0);
    CHECK(backward_deterministic_sm80_shared_bytes(head_dim) <= most_shared_bytes(Memory::kSmall));
    const TensorTile one = backward_sm80_tile(head_dim);
    CHECK(one.rows % 32 == 0 && one.columns % 32 == 0 && one.columns <= kWeightColumns);
    CHECK(one.columns <= one.threads() && tile.columns <= tile.threads() && Walk::kStep % one.columns == 0);
    CHECK(backward_sm80_shared_bytes(head_dim) <= most_shared_bytes(backward_sm80_memory(head_dim)));
    // The head dim of dk, dv and dq is shared out by whole 16 columns, whose units don't carry in swizzled_step.
    for (int rows : {one.rows, one.columns}) {
      const int parts = one.warps * 32 / rows;
      CHECK(head_dim % (16 * parts) == 0);
      for (int part = 0; part < parts; ++part)
        for (int n = 0; n < head_dim / 16 / parts; ++n)
          for (int unit : {2 * part, 2 * part + 1})
            CHECK(swizzled_step(static_cast<uint32_t>(swizzled_offset_bytes(3, unit, head_dim / 8)), 2 * parts * n) ==
                  static_cast<uint32_t>(swizzled_offset_bytes(3, unit + 2 * parts * n, head_dim / 8)));
    }
  }
  CHECK(built_tensor_head_dim(257, 1) == 0 && built_tensor_head_dim(65, 8) == 128);
}

// ---- Arguments of kernels

void test_arguments() {
  alignas(16) float data[8];
  const auto aligned = [&](const void *at, int64_t columns, int64_t batch, int64_t row, int64_t head, DType dtype) {
    return cuda_rows({const_cast<void *>(at), batch, row, head}, dtype, columns).aligned;
  };
  const auto is_vector = [&](auto... rows) { return aligned(rows...) >= 4; };
  CHECK(aligned(data, 64, 128, 64, 0, DType::kFloat16) == 8 && aligned(data, 8, -8, 16, 8, DType::kBfloat16) == 8);
  CHECK(aligned(data + 2, 8, 8, 8, 8, DType::kFloat16) == 4 && aligned(data, 12, 8, 8, 8, DType::kFloat16) == 4);
  CHECK(aligned(data, 8, 8, 12, 8, DType::kFloat16) == 4 && aligned(data, 8, 8, 9, 8, DType::kFloat16) == 1);
  CHECK(is_vector(data, 64, 128, 64, 0, DType::kFloat32) && is_vector(data + 2, 8, 8, 8, 8, DType::kFloat16));
  CHECK(!is_vector(data + 1, 64, 128, 64, 64, DType::kFloat32) && !is_vector(data + 2, 8, 8, 8, 8, DType::kFloat32));
  CHECK(!is_vector(data, 6, 8, 8, 8, DType::kFloat32) && !is_vector(data, 8, 6, 8, 8, DType::kFloat32));
  CHECK(!is_vector(data, 8, 8, 6, 8, DType::kFloat32) && !is_vector(data, 8, 8, 8, 6, DType::kFloat32));
  CHECK(is_vector(data, 8, 8, -8, 8, DType::kFloat32));

  Problem problem = problem_of(1, 40, 50, 2, 1, 8);
  CHECK(!has_score_options(problem));
  Attention x = cuda_attention(problem);
  CHECK(x.keep_threshold == 0 && x.keep_scale == 1 && x.softcap == 0 && x.by_row.start == nullptr);
  CHECK(std::abs(x.log2_scale - 0.125 * 1.4426950408889634) < 1e-7);
  problem.dropout = 0.75;
  x = cuda_attention(problem);
  CHECK(has_score_options(problem) && x.keep_scale == 4 && x.keep_threshold == 3ull << 30);
  CHECK(std::abs(x.log2_scale - 1.4426950408889634) < 1e-6);
  problem.dropout = 1;
  CHECK(cuda_attention(problem).keep_scale == 0 && cuda_attention(problem).keep_threshold == 1ull << 32);
  problem.dropout = 0, problem.softcap = 1e-300;
  CHECK(cuda_attention(problem).softcap == FLT_MIN);
  problem.softcap = 0;
  // A scale that is no ordinary float32, times log2(e), goes the way of options.
  for (double scale : {0.0, -1.0, 1e-39, 1e39}) {
    problem.scale = scale;
    CHECK(has_score_options(problem));
  }
  problem.scale = 1;

  int32_t lists[16] = {};
  problem.blocks.block_q = 16, problem.blocks.block_k = 32, problem.blocks.nnz = 5;
  problem.blocks.row_start = lists, problem.blocks.columns = lists + 4;
  x = cuda_attention(problem);
  CHECK(x.by_row.start == lists && x.by_row.own == 16 && x.by_row.other == 32 && x.by_row.other_blocks == 2);
  CHECK(x.by_row.count == 5 && x.by_column.start == nullptr);
  problem.blocks.column_start = lists + 8, problem.blocks.rows = lists + 11;
  x = cuda_attention(problem);
  CHECK(x.by_column.start == lists + 8 && x.by_column.own == 32 && x.by_column.other == 16);
  CHECK(x.by_column.index == lists + 11 && x.by_column.other_blocks == 3);
}

}  // namespace

int main() {
  test_tiles();
  test_band();
  test_fragments();
  test_tensor_tiles();
  test_slots<8>(64);
  test_slots<16>(64);
  test_slots<16>(32);
  test_granules<32>();
  test_granules<64>();
  test_walk<32>();
  test_walk<64>();
  test_walk_without_lists();
  test_axes();
  test_kept_pairs<Side::kQueries>();
  test_kept_pairs<Side::kKeys>();
  test_configs();
  test_bias_pieces();
  test_plan();
  test_plan_of_memory();
  test_workspace();
  test_arguments();
  return report();
}
