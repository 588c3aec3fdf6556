// Values inside host arrays: lengths, offsets, seeds and block lists. Reading them costs time, so they are checked last,
// once everything else about a call is known to be right. CUDA arrays are never read here.
#include <vector>

#include "error.h"
#include "problem.h"

namespace flash {
namespace {

void check_range(const char *name, const BatchView &view, int64_t B, int64_t least, int64_t most) {
  if (view.data == nullptr) return;
  for (int64_t b = 0; b < B; ++b) {
    const int64_t value = read_integer(view.data, view.dtype, leading_offset(view.batch, b));
    if (value < least || value > most) {
      fail(FLASH_INVALID_VALUE, name, ": must be ", least, " to ", most, ", got ", value, " for sequence ", b);
    }
  }
}

// One direction of a block mask, for one head of one batch: line r lists index(start(r)) .. index(start(r + 1) - 1).
struct BlockLines {
  const char *starts_name, *indices_name;
  const int32_t *starts, *indices;
  int64_t start_step, index_step;
  int64_t lines, other_lines;  // how many of its own kind, and how many that indices may name

  int64_t start(int64_t line) const { return starts[line * start_step]; }
  int64_t index(int64_t at) const { return indices[at * index_step]; }
};

void check_lines(const BlockLines &lists, int64_t nnz) {
  if (lists.start(0) < 0) fail(FLASH_INVALID_VALUE, lists.starts_name, ": must not be negative, got ", lists.start(0));
  for (int64_t line = 0; line < lists.lines; ++line) {
    const int64_t begin = lists.start(line), end = lists.start(line + 1);
    if (end < begin || end > nnz) {
      fail(FLASH_INVALID_VALUE, lists.starts_name, ": must not decrease nor exceed the ", nnz, " listed blocks, got ",
           begin, " then ", end, " at ", line);
    }
    int64_t previous = -1;
    for (int64_t at = begin; at < end; ++at) {
      const int64_t index = lists.index(at);
      if (index <= previous || index >= lists.other_lines) {
        fail(FLASH_INVALID_VALUE, lists.indices_name, ": must ascend within 0 to ", lists.other_lines - 1, ", got ",
             index, " at ", at);
      }
      previous = index;
    }
  }
}

// Both are valid; is one the transpose of the other? Rows are walked upwards, so each column meets its rows upwards
// too.
void check_transpose(const BlockLines &by_row, const BlockLines &by_column, std::vector<int64_t> &seen) {
  seen.assign(static_cast<size_t>(by_column.lines), 0);
  const auto differ = [&](int64_t row, int64_t column) {
    fail(FLASH_INVALID_VALUE, "block_mask: column_start and rows must be the transpose of row_start and columns, but ",
         "block (", row, ", ", column, ") is in one of them only");
  };
  for (int64_t row = 0; row < by_row.lines; ++row) {
    for (int64_t at = by_row.start(row); at < by_row.start(row + 1); ++at) {
      const int64_t column = by_row.index(at);
      const int64_t there = by_column.start(column) + seen[static_cast<size_t>(column)]++;
      if (there >= by_column.start(column + 1) || by_column.index(there) != row) differ(row, column);
    }
  }
  for (int64_t column = 0; column < by_column.lines; ++column) {
    const int64_t there = by_column.start(column) + seen[static_cast<size_t>(column)];
    if (there < by_column.start(column + 1)) differ(by_column.index(there), column);
  }
}

void check_block_lists(const Problem &problem) {
  const BlockMaskView &blocks = problem.blocks;
  const int64_t row_count = ceil_div(problem.Lq, blocks.block_q), column_count = ceil_div(problem.Lk, blocks.block_k);
  const bool per_batch = blocks.row_batch != 0 || blocks.column_batch != 0;
  const bool per_head = blocks.row_head != 0 || blocks.column_head != 0;
  std::vector<int64_t> seen;
  for (int64_t b = 0; b < (per_batch ? problem.B : smaller(problem.B, 1)); ++b) {
    for (int64_t h = 0; h < (per_head ? problem.Hq : 1); ++h) {
      const BlockLines by_row{"block_mask.row_start",
                              "block_mask.columns",
                              blocks.row_start + b * blocks.row_batch + h * blocks.row_head,
                              blocks.columns,
                              blocks.row_stride,
                              blocks.columns_stride,
                              row_count,
                              column_count};
      check_lines(by_row, blocks.nnz);
      if (blocks.column_start == nullptr) continue;
      const BlockLines by_column{"block_mask.column_start",
                                 "block_mask.rows",
                                 blocks.column_start + b * blocks.column_batch + h * blocks.column_head,
                                 blocks.rows,
                                 blocks.column_stride,
                                 blocks.rows_stride,
                                 column_count,
                                 row_count};
      check_lines(by_column, blocks.nnz);
      check_transpose(by_row, by_column, seen);
    }
  }
}

}  // namespace

void check_values(const Problem &problem) {
  if (problem.backend != Backend::kCpu) return;
  check_range("q_lens", problem.q_lens, problem.B, 0, problem.Lq);
  check_range("kv_lens", problem.kv_lens, problem.B, 0, problem.Lk);
  check_range("q_offset", problem.q_offsets, problem.B, 1 - kScalarLimit, kScalarLimit - 1);
  if (problem.blocks.block_q != 0) check_block_lists(problem);
}

Sequence sequence_of(const Problem &problem, int64_t b) {
  const auto value = [b](const BatchView &view, int64_t otherwise) {
    return view.data == nullptr ? otherwise : read_integer(view.data, view.dtype, leading_offset(view.batch, b));
  };
  Sequence sequence{};
  sequence.q_len = clamp(value(problem.q_lens, problem.Lq), 0, problem.Lq);
  sequence.kv_len = clamp(value(problem.kv_lens, problem.Lk), 0, problem.Lk);
  const int64_t otherwise = problem.has_q_offset ? problem.q_offset : sequence.kv_len - sequence.q_len;
  const int64_t offset = value(problem.q_offsets, otherwise);
  // Without an array the offset may reach 2^31 (kv_len - q_len): only what arrays hold is clamped.
  sequence.offset = problem.q_offsets.data == nullptr ? offset : clamp(offset, 1 - kScalarLimit, kScalarLimit - 1);
  return sequence;
}

uint64_t seed_of(const Problem &problem) {
  if (problem.seeds.data == nullptr) return problem.seed;
  return static_cast<uint64_t>(read_integer(problem.seeds.data, problem.seeds.dtype, 0));
}

}  // namespace flash
