// Tests of what Hopper's kernels are told, on the host: tiles of wgmma and TMA, steps of boxes, the order of tasks, which
// tensors can have a map, the plan.
//
//   flash_hopper_host_tests   prints each failed check as file:line, then "N passed, N failed"; exit status 1 if any failed
#include "lint/cuda_runtime_api.h"
// After it, as with nvcc:
#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "cuda_calls.h"
#include "cuda_fill.h"
#include "cuda_host.h"
#include "cuda_maps.h"
#include "error.h"
#include "flash.h"
#include "isa/index.h"
#include "warpgroup.cuh"

using namespace flash;

namespace {

// ---- Tiles in shared memory

// TMA's 128-byte swizzle, as the ISA has it: within 1024 bytes, 16-byte chunk c of line r lies in place c ^ r.
int swizzled_by_tma(int offset) { return offset ^ (offset >> 7 & 7) << 4; }

void test_panels() {
  int wrong = 0;
  for (int rows : {64, 96, 128, 192}) {
    std::set<int> places;
    for (int row = 0; row < rows; ++row)
      for (int unit = 0; unit < 24; ++unit) {
        const int place = panel_offset_bytes(row, unit, rows);
        wrong += place != swizzled_by_tma(unit / 8 * rows * 128 + row * 128 + unit % 8 * 16);
        places.insert(place);
      }
    wrong += static_cast<int>(places.size()) != rows * 24 || *places.rbegin() != rows * 24 * 16 - 16;
  }
  CHECK(wrong == 0);
  // A lane's two numbers of the sums of a warp: 8 rows and 4 lanes for each meet all 32 banks once.
  for (int unit = 0; unit < 8; ++unit) {
    std::set<int> banks;
    for (int lane = 0; lane < kWarp; ++lane)
      banks.insert((panel_offset_bytes(fragment_row(lane), unit, 64) / 4 + fragment_column(lane) / 2) % 32);
    CHECK(banks.size() == 32);
  }
  CHECK(panels_of(1) == 1 && panels_of(64) == 1 && panels_of(96) == 2 && panels_of(256) == 4);
}

void test_descriptors() {
  // Fields of the PTX ISA's matrix descriptor: start, leading and stride byte offset without their last four bits, mode.
  const auto field = [](uint64_t x, int from, int bits) { return x >> from & ((uint64_t{1} << bits) - 1); };
  const uint64_t x = matrix_descriptor(0x2c400, 0x20, 22528, 1024);
  CHECK(field(x, 0, 14) == 0x2c420 >> 4 && field(x, 16, 14) == 22528 / 16 && field(x, 32, 14) == 1024 / 16);
  CHECK(field(x, 49, 3) == 0 && field(x, 62, 2) == 1);  // no base offset; 128-byte swizzle
  CHECK(field(x, 14, 2) == 0 && field(x, 30, 2) == 0 && field(x, 46, 3) == 0 && field(x, 52, 10) == 0);

  using Tile = PanelTile<96, 128>;
  const Tile tile = {4096};
  const auto start = [&](uint64_t descriptor) { return static_cast<int>(field(descriptor, 0, 14)) * 16 - 4096; };
  int wrong = 0;
  for (int depth = 0; depth < 8;
       ++depth)  // the 16 numbers of a row that start where its first unit would without swizzle
    wrong += start(tile.along_rows(64, depth)) != swizzled_by_tma(panel_offset_bytes(64, 2 * depth, 96));
  for (int depth = 0; depth < 6; ++depth)
    for (int column : {0, 32, 64, 96})
      wrong +=
          start(tile.along_columns(depth, column)) != swizzled_by_tma(panel_offset_bytes(16 * depth, column / 8, 96));
  CHECK(wrong == 0);
  CHECK(field(tile.along_columns(0), 16, 14) * 16 == Tile::kPanelBytes && Tile::kBytes == 96 * 256);
}

// ---- 8-bit operands

// Bytes of two words as prmt picks them.
uint32_t permuted(uint32_t low, uint32_t high, uint32_t which) {
  uint32_t y = 0;
  for (int n = 0; n < 4; ++n) {
    const uint32_t from = which >> 4 * n & 7;
    y |= ((from < 4 ? low >> 8 * from : high >> 8 * (from - 4)) & 0xff) << 8 * n;
  }
  return y;
}

void test_packed_columns() {
  int wrong = 0;
  for (int lane = 0; lane < kWarp; ++lane)
    for (int n = 0; n < 4; ++n)      // register of A for 32 columns
      for (int c = 0; c < 4; ++c) {  // byte of it: number b of the row's that the lane has of C
        const int position = n / 2 * 16 + lane % 4 * 4 + c, b = n / 2 * 4 + c;
        wrong += packed_column(position) != b / 2 * 8 + fragment_column(lane) + b % 2;
      }
  CHECK(wrong == 0);
  std::set<int> columns;
  for (int n = 0; n < 224; ++n) {
    columns.insert(packed_column(n));
    wrong += packed_column(n) / 16 != n / 16;  // granules stay together
  }
  CHECK(wrong == 0 && columns.size() == 224 && *columns.rbegin() == 223);
}

// A warp's piece, instruction by instruction as the ISA has them: 32 rows of 16 numbers become 16 rows of 32.
void test_transposition() {
  unsigned char from[32][16], to[16][32] = {};
  for (auto &row : from)
    for (auto &x : row) x = static_cast<unsigned char>(draw(0, 255));
  uint32_t stored[kWarp][4];  // of each lane, for the four matrices of stmatrix
  for (int lane = 0; lane < kWarp; ++lane) {
    uint32_t x[4];
    for (int m = 0; m < 4; ++m) {  // ldmatrix.trans: numbers [2q][r] and [2q + 1][r] of pairs of bytes
      const auto *top = from[8 * m + 2 * (lane % 4)] + lane / 4 * 2,
                 *bottom = from[8 * m + 2 * (lane % 4) + 1] + lane / 4 * 2;
      x[m] = top[0] | uint32_t{top[1]} << 8 | uint32_t{bottom[0]} << 16 | uint32_t{bottom[1]} << 24;
    }
    const uint32_t which = transposing_bytes(lane);
    for (int h = 0; h < 2; ++h) {
      stored[lane][2 * h] = permuted(x[2 * h], x[2 * h + 1], which);
      stored[lane][2 * h + 1] = permuted(x[2 * h], x[2 * h + 1], which ^ kOtherBytes);
    }
  }
  int wrong = 0;
  for (int m = 0; m < 4; ++m) {
    std::set<int> places;
    for (int row = 0; row < 8; ++row) {
      const MatrixRow at = transposed_matrix(8 * m + row);
      for (int q = 0; q < 4; ++q)  // stmatrix: word q of a row from lane 4 row + q
        for (int c = 0; c < 4; ++c)
          to[at.row][at.unit * 16 + 4 * q + c] = static_cast<unsigned char>(stored[4 * row + q][m] >> 8 * c);
      places.insert(panel_offset_bytes(at.row, at.unit, 64) % 128);
    }
    wrong += places.size() != 8;  // all banks once
  }
  for (int d = 0; d < 16; ++d)
    for (int n = 0; n < 32; ++n) wrong += to[d][n] != from[packed_column(n)][d];
  CHECK(wrong == 0);
  CHECK((PanelTile<224, 128, 1>::kPanels == 1 && PanelTile<224, 128, 1>::kUnits == 8));
  CHECK((PanelTile<128, 224, 1>::kPanels == 2 && PanelTile<128, 224, 1>::kBytes == 2 * 128 * 128));
  CHECK((PanelTile<160, 64, 1>::kBytes == 160 * 128 && PanelTile<160, 64, 1>::kPanelNumbers == 128));
}

// ---- Steps and tasks

// A step's boxes are those of the walk, whose positions the granules name, up to the length.
template <int kRows>
void test_steps() {
  int wrong = 0, gathered = 0;
  for (int round = 0; round < 2000; ++round) {
    const int box = 16 << draw(0, 2), block = box << draw(0, 2);
    const int64_t length = draw(1, 700), blocks = ceil_div(length, block);
    std::vector<int32_t> index;
    for (int32_t n = 0; n < blocks; ++n)
      if (draw(0, 2) == 0) index.push_back(n);
    const int32_t start[] = {0, static_cast<int32_t>(index.size())};
    BlockLists lists{};
    const bool has_lists = draw(0, 3) != 0;
    if (has_lists) lists.start = start, lists.index = index.data(), lists.line = lists.index_stride = 1;
    lists.count = start[1], lists.own = 64, lists.other = block, lists.other_blocks = blocks;
    const Interval span{draw(0, length), draw(0, length)};
    Walk walk(lists, 0, 0, 0, span, kRows, box), same(lists, 0, 0, 0, span, kRows, box);
    std::vector<int> expected, found;  // positions below the length
    for (int first; same.next(box, &first);)
      for (int n = 0; n < box && first + n < length; ++n) expected.push_back(first + n);
    int before = -1;
    for (Step<kRows> step; step.take(walk, box, static_cast<int>(length));) {
      int count = 0, most = -1;
      for (int row = 0; row < kRows; ++row) {
        const int position = step.position(row / kGranule, row % kGranule);
        if (position < 0 || position >= length) continue;
        wrong += row != count;  // a prefix
        ++count, most = position;
        found.push_back(position);
      }
      wrong += count != step.count || most != step.most || most <= before;
      wrong += step.least != (count == kRows ? step.first[0] : -1);
      gathered += count == kRows && step.most - step.least >= kRows;
      before = most;
    }
    wrong += found != expected;
    for (int64_t j = span.begin; j < smaller(span.end, length); ++j) {
      const bool is_listed = !has_lists || std::find(index.begin(), index.end(), j / block) != index.end();
      wrong += (std::find(found.begin(), found.end(), j) != found.end()) < is_listed;
      if (has_lists && !is_listed) wrong += std::find(found.begin(), found.end(), j) != found.end();
    }
  }
  CHECK(wrong == 0);
  CHECK(gathered > 20);
  Step<kRows> step;  // the last positions there can be: nothing overflows
  Walk walk(BlockLists{}, 0, 0, 0, {INT32_MAX - 3, INT32_MAX}, kRows, kRows);
  CHECK(step.take(walk, kRows, INT32_MAX) && step.most == INT32_MAX - 1 && !step.take(walk, kRows, INT32_MAX));
}

// Each tile once, those of a few heads in turn, and the longest of them first.
void test_tasks() {
  int wrong = 0;
  for (int round = 0; round < 300; ++round) {
    const int64_t B = draw(1, 3), heads = draw(1, 5), length = draw(1, 600);
    const Tiles tiles = cuda_tiles(B, heads, length, 128, 0);
    const auto together = static_cast<int>(draw(1, 20));
    std::set<std::pair<int64_t, int>> seen;
    int64_t group_before = -1;
    int begin_before = 0;
    for (int64_t index = 0; index < tiles.tasks; ++index) {
      const Task task = task_of_heads(tiles, together, index);
      const int64_t head = task.b * heads + task.head, group = head / together;
      wrong += task.begin % tiles.step != 0 || task.begin >= length;
      wrong += group == group_before ? task.begin > begin_before : group < group_before;
      group_before = group, begin_before = task.begin;
      seen.insert({head, task.begin});
    }
    wrong += static_cast<int64_t>(seen.size()) != tiles.tasks;
    const int64_t blocks = draw(1, 40);
    std::set<int64_t> taken;
    for (int64_t block = 0; block < blocks; ++block)
      for (int64_t index, n = 0; (index = task_in_round(n, block, blocks)) < tiles.tasks; ++n) taken.insert(index);
    wrong += static_cast<int64_t>(taken.size()) != tiles.tasks;
  }
  CHECK(wrong == 0);
  CHECK(task_in_round(0, 3, 10) == 3 && task_in_round(1, 3, 10) == 16 && task_in_round(2, 3, 10) == 23);
}

// ---- The plan

alignas(16) char some_memory[32];

// Compact arrays, of which only addresses and strides matter.
Problem compact_problem(int64_t B, int64_t Lq, int64_t Lk, int64_t Hq, int64_t Hk, int64_t D) {
  Problem x = problem_of(B, Lq, Lk, Hq, Hk, D);
  x.dtype = DType::kBfloat16;
  x.q = {some_memory, Lq * Hq * D, Hq * D, D};
  x.k = x.v = {some_memory, Lk * Hk * D, Hk * D, D};
  return x;
}

void test_maps() {
  const TensorShape shape = {40, 100, 4, 2};
  const auto takes = [&](RowsView view, DType dtype = DType::kFloat16) { return takes_map(view, dtype, shape); };
  CHECK(takes({some_memory, 16000, 160, 40}) && takes({some_memory, 8, 800, 16}));
  CHECK(!takes({some_memory + 8, 16000, 160, 40}));
  for (int64_t stride : {int64_t{0}, int64_t{-160}, int64_t{164}, int64_t{1} << 39}) {
    CHECK(!takes({some_memory, stride, 160, 40}) && !takes({some_memory, 16000, stride, 40}) &&
          !takes({some_memory, 16000, 160, stride}));
  }
  CHECK(takes({some_memory, 16000, 160, (int64_t{1} << 39) - 8}));
  CHECK(takes_map({some_memory, 0, 3, 0}, DType::kFloat16, {40, 1, 1, 1}));  // an axis of one has no stride
  CHECK(!takes_map({some_memory, 8, 8, 8}, DType::kFloat16, {40, 0, 1, 1}));
  CHECK(!takes_map({some_memory, 8, 8, 8}, DType::kFloat16, {40, int64_t{1} << 31, 1, 1}));
}

void test_plan() {
  constexpr uint32_t kAll = FLASH_DQ | FLASH_DK | FLASH_DV;
  const auto kernel = [](const Problem &x, uint32_t wanted = 0, const CudaDevice &device = kLarge) {
    const Plan plan = plan_cuda(x, wanted, device);
    CHECK((plan.limit == nullptr) == (std::string(plan.path) == "Hopper's tensor cores") || &device != &kLarge);
    return std::string(plan.kernel);
  };
  for (int64_t D : {8, 21, 64, 80, 96, 128, 192, 256}) {
    const Problem x = compact_problem(2, 3000, 2000, 8, 2, round_up(D, 8));
    CHECK(kernel(x) == "forward_sm90");
    CHECK(kernel(x, 0, kSmall) == "forward_sm80");
    CHECK(kernel(x, kAll) == (D <= 128 ? "backward_sm90" : "backward_wide_sm90"));
    const Plan plan = plan_cuda(x, 0, kLarge);
    CHECK(plan.block_q == (D <= 64 ? 192 : 128) && plan.launches.count == 1);
    const KernelLaunch &launch = plan.launches.list[0];
    CHECK(launch.head_dim == built_hopper_head_dim(D, D) && launch.blocks == 132);
    CHECK(launch.tasks == 2 * 8 * ceil_div(3000, plan.block_q));
  }
  Problem narrow = compact_problem(2, 3000, 2000, 8, 2, 192);
  narrow.Dv = 128;
  CHECK(kernel(narrow) == "forward_narrow_sm90" && plan_cuda(narrow, 0, kLarge).block_k == 128);
  CHECK(kernel(narrow, 0, kSmall) == "forward_sm80" && kernel(narrow, kAll) == "backward_wide_sm90");
  narrow.softcap = 1;
  CHECK(kernel(narrow) == "forward_sm90");
  narrow.softcap = 0, narrow.Dv = 136;
  CHECK(kernel(narrow) == "forward_sm90");
  const Problem few = compact_problem(1, 100, 300, 4, 4, 64);
  CHECK(plan_cuda(few, 0, kLarge).launches.list[0].blocks == 4 && plan_cuda(few, 0, kLarge).block_q == 112);
  // The workspace has room for dq's sums whichever of the two kernels runs.
  const auto bytes = [](const Problem &x) { return place_cuda_backward(nullptr, x, kAll, kLarge).bytes; };
  Problem x = compact_problem(2, 100, 200, 8, 2, 64);
  Problem unaligned = x;
  unaligned.q.data = some_memory + 2;
  CHECK(kernel(x, kAll) == "backward_sm90" && kernel(unaligned, kAll) == "backward_sm80");
  CHECK(bytes(x) == bytes(unaligned));
  CHECK(cuda_launches(x, kAll, kLarge, x.bias, 0, false).list[1].operation == Operation::backward_sm80);
  CHECK(kernel(unaligned) == "forward_sm80");
  // What Hopper's kernels don't take.
  CHECK(kernel(x, FLASH_DQ) == "backward_deterministic_sm80" && kernel(x, FLASH_DQ | FLASH_DV) == "backward_sm90");
  x.deterministic = true;
  CHECK(kernel(x) == "forward_sm90" && kernel(x, kAll) == "backward_sm90");
  // A number for each tile of 128 queries of 16 heads beside what it needs otherwise.
  CHECK(place_cuda_backward(nullptr, x, kAll, kLarge).bytes == bytes(unaligned) + 64);
  CHECK(cuda_launches(x, kAll, kLarge, x.bias, 0, false).list[1].operation == Operation::backward_keys_sm80);
  Problem with_blocks = x;
  with_blocks.blocks.block_q = with_blocks.blocks.block_k = 128;
  CHECK(kernel(with_blocks, kAll) == "backward_deterministic_sm80");
  Problem wide = compact_problem(2, 100, 200, 8, 2, 160);
  CHECK(cuda_launches(wide, kAll, kLarge, wide.bias, 0, false).list[1].operation == Operation::backward_sm80);
  unaligned = wide;
  unaligned.q.data = some_memory + 2;
  CHECK(kernel(unaligned, kAll) == "backward_sm80" && bytes(wide) == bytes(unaligned));
  wide.deterministic = true;
  CHECK(kernel(wide) == "forward_sm90" && kernel(wide, kAll) == "backward_deterministic_sm80");
  const CudaDevice blackwell{"newer", 100, 148, 227 * 1024, int64_t{180} << 30};
  CHECK(std::string(plan_cuda(x, 0, blackwell).kernel) == "forward_sm80" &&
        plan_cuda(x, 0, blackwell).limit != nullptr);
  CHECK(kernel(compact_problem(2, 100, 0, 2, 2, 64)) == "forward_sm80");
}

void test_plan_with_blocks() {
  for (int64_t D : {64, 128, 192, 256})
    for (int64_t block_q : {16, 64, 128, 256})
      for (int64_t block_k : {32, 64, 128, 256}) {
        Problem x = compact_problem(2, 1000, 2000, 8, 2, D);
        x.blocks.block_q = block_q, x.blocks.block_k = block_k;
        const Plan plan = plan_cuda(x, 0, kLarge);
        const bool is_hopper = block_q >= 64 && block_k >= 64;
        CHECK(plan.kernel == std::string(is_hopper ? "forward_sm90" : "forward_sm80"));
        CHECK(block_q % plan.block_q == 0);
        if (!is_hopper) continue;
        const int box = cuda_box_keys(x, false, static_cast<int>(D));
        CHECK(plan.block_k % box == 0 && block_k % box == 0 && box >= 32);
        x.softcap = 1;
        CHECK(plan_cuda(x, 0, kLarge).block_k % cuda_box_keys(x, true, static_cast<int>(D)) == 0);
        const Plan backward = plan_cuda(x, FLASH_DQ | FLASH_DK, kLarge);
        CHECK(backward.kernel == std::string(D <= 128 ? "backward_sm90" : "backward_wide_sm90"));
        CHECK(block_k % backward.block_k == 0);
        CHECK(block_q % cuda_box_queries(x, true, static_cast<int>(D)) == 0);
      }
}

void test_plan_of_float8() {
  const auto message = [](const Problem &x, const CudaDevice &device = kLarge) {
    try {
      (void)plan_cuda(x, 0, device);
    } catch (const Error &error) {
      CHECK(error.status == FLASH_UNSUPPORTED);
      return error.message;
    }
    return std::string();
  };
  const auto contains = [](const std::string &text, const char *part) { return text.find(part) != std::string::npos; };
  for (int64_t D : {16, 64, 80, 128, 208, 256}) {
    Problem x = compact_problem(2, 3000, 2000, 8, 2, D);
    x.dtype = DType::kFloat8;
    for (double softcap : {0.0, 1.0}) {
      x.softcap = softcap;
      const Plan plan = plan_cuda(x, 0, kLarge);
      const int head_dim = built_fp8_head_dim(D, D);
      const WarpgroupTile tile = forward_fp8_sm90_tile(head_dim, softcap > 0);
      CHECK(plan.kernel == std::string("forward_fp8_sm90") && plan.limit == nullptr && plan.launches.count == 1);
      CHECK(plan.block_q == tile.rows && plan.block_k == tile.columns && tile.columns % 32 == 0);
      CHECK(tile.loading_registers() * 128 + tile.computing_registers() * 128 * tile.warpgroups() <= 65536);
      CHECK(plan.launches.list[0].head_dim == head_dim && plan.launches.list[0].blocks == 132);
      x.blocks.block_q = x.blocks.block_k = 64;
      CHECK(cuda_box_keys(x, softcap > 0, head_dim) % 32 == 0 && message(x).empty());
      x.blocks = {};
    }
  }
  Problem x = compact_problem(2, 100, 200, 8, 2, 64);
  x.dtype = DType::kFloat8;
  CHECK(contains(message(x, kSmall), "needs a Hopper GPU (compute capability 9.0), this one has 8.0; convert to"));
  Problem wide = compact_problem(1, 100, 200, 2, 2, 272);
  wide.dtype = DType::kFloat8;
  CHECK(contains(message(wide), "must be at most 256, got 272; convert to"));
  Problem odd = compact_problem(1, 100, 200, 2, 2, 24);
  odd.dtype = DType::kFloat8;
  CHECK(contains(message(odd), "q: rows of float8_e4m3fn must start at multiples of 16 bytes"));
  x.blocks.block_q = 64, x.blocks.block_k = 32;
  CHECK(contains(message(x), "block_mask: blocks must be at least 64 x 64 with float8_e4m3fn, got 64 x 32"));
  Problem no_keys = compact_problem(2, 100, 0, 8, 2, 64), no_queries = compact_problem(2, 0, 100, 8, 2, 64);
  no_keys.dtype = no_queries.dtype = DType::kFloat8;
  CHECK(message(no_keys).empty() && message(no_queries).empty() &&
        plan_cuda(no_queries, 0, kLarge).launches.count == 0);
}

void test_heads_together() {
  CHECK(cuda_heads_together(compact_problem(4, 16384, 16384, 16, 16, 128), 0) == 4);  // 8 MiB of k and v each
  CHECK(cuda_heads_together(compact_problem(4, 16384, 16384, 16, 4, 128), 0) == 16);
  CHECK(cuda_heads_together(compact_problem(1, 128, 128, 4, 2, 64), 0) == 4);
  CHECK(cuda_heads_together(compact_problem(1, 1 << 20, 1 << 20, 4, 4, 128), 0) == 1);
  CHECK(cuda_heads_together(compact_problem(4, 1, 16384, 16, 4, 128), 2) == 4);
  for (bool has_options : {false, true}) {
    for (int head_dim : kHopperHeadDims)
      CHECK(forward_sm90_shared_bytes(head_dim, head_dim, has_options) <= most_shared_bytes(Memory::kHopper));
    for (int head_dim : {64, 128}) {
      const WarpgroupTile tile = forward_sm90_tile(head_dim, head_dim, has_options);
      CHECK(tile.loading_registers() * 128 + tile.computing_registers() * 128 * tile.warpgroups() <= 65536);
    }
  }
}

// Few queries: heads that share keys share a tile, and keys are split into pieces, whatever the batch.
void test_few_queries() {
  CHECK(kPieceKeys % 256 == 0);
  for (int head_dim : kFp8HeadDims)
    for (bool has_options : {false, true})
      CHECK(fp8_piece_keys(head_dim) % 256 == 0 &&
            fp8_piece_keys(head_dim) % forward_fp8_sm90_tile(head_dim, has_options).columns == 0);
  for (int head_dim : kHopperHeadDims)
    for (int value_dim : {head_dim, kNarrowValueDim})
      for (bool has_options : {false, true})
        CHECK(kPieceKeys % forward_sm90_tile(head_dim, value_dim, has_options).columns == 0);
  struct {
    int64_t Hq, Hk, Lq;
    int log2_heads;
  } cases[] = {{8, 2, 1, 2}, {8, 2, 100, 2}, {8, 2, 128, 0}, {6, 2, 1, 0},
               {6, 1, 1, 1}, {128, 1, 5, 6}, {256, 1, 5, 6}};
  for (const auto &given : cases) {
    Problem x = compact_problem(2, given.Lq, 5000, given.Hq, given.Hk, 128);
    CHECK(cuda_log2_heads(x, 128) == given.log2_heads);
    const Tiles tiles = cuda_tiles_of_heads(x, 128);
    CHECK(tiles.heads << given.log2_heads == given.Hq && tiles.step % (1 << given.log2_heads) == 0);
    CHECK(tiles.tasks == 2 * tiles.heads * ceil_div(given.Lq << given.log2_heads, tiles.step));
    const Plan plan = plan_cuda(x, 0, kLarge);
    const int64_t pieces = given.Lq <= 64 ? 4 : 1;
    CHECK(plan.launches.list[0].tasks == tiles.tasks * pieces && plan.launches.count == (pieces > 1 ? 2 : 1));
    CHECK((workspace_bytes(plan) == 0) == (pieces == 1));
    if (pieces > 1) {
      const int64_t rows = pieces * 2 * given.Hq * given.Lq;
      const auto bytes = [](int64_t floats) { return static_cast<size_t>(round_up(floats * 4, 64)); };
      CHECK(workspace_bytes(plan) == bytes(rows * 128) + bytes(rows) + 64);
      CHECK(plan.launches.list[1].operation == Operation::forward_pieces_sm90);
      std::vector<char> memory(workspace_bytes(plan));
      const KeyPieces placed = place_cuda_forward(memory.data(), x, kLarge).pieces;
      CHECK(placed.count == pieces && placed.keys == kPieceKeys && placed.lse - placed.o >= rows * 128);
      CHECK(workspace_bytes(plan_cuda(x, 0, kSmall)) == 0);
    }
    x.softcap = 1;
    CHECK(cuda_log2_heads(x, 128) == 0);
    x.softcap = 0, x.blocks.block_q = 64;
    CHECK(cuda_log2_heads(x, 128) == 0);
  }
}

}  // namespace

int main() {
  test_panels();
  test_descriptors();
  test_packed_columns();
  test_transposition();
  test_steps<64>();
  test_steps<128>();
  test_tasks();
  test_maps();
  test_plan();
  test_plan_with_blocks();
  test_plan_of_float8();
  test_heads_together();
  test_few_queries();
  return report();
}
