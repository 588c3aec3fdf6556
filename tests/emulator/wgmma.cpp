// wgmma: D = A B + D of 64 x n, by the four warps of a warpgroup together, A from shared memory or registers, B from
// shared memory.
//
// It is one operation of the warpgroup, which starts when all four warps have issued it: its reads of shared memory belong
// to the warpgroup's agent, whose clock is the group, and a wait returns when all four warps have issued what it waits for. Then, not earlier, the numbers are
// computed, and the registers of A are read. Until a warp has waited, its registers of D may not be touched, nor those of
// A written; and a register that was touched needs a wgmma.fence before the next wgmma has it.
//
// Fragments, with warp w of four, group g = lane / 4 and t = lane % 4:
//   D f32   register r: row 16w + g + 8 (r/2 % 2), column 8 (r/4) + 2t + r%2
//   D f16   register r: row 16w + g + 8 (r%2), columns 8 (r/2) + 2t and + 1
//   A       register r: row 16w + g + 8 (r%2), bytes 16 (r/2) + 4t to + 3 of the row's 32
// A row of A, and a column of B, has 32 bytes along k for every type.
//
// A descriptor says where 16-byte units of a tile lie; a unit holds 8 elements of 16 bits along k (K-major) or along m or
// n (MN-major). LBO and SBO are its two strides, W the units of a swizzle's width:
//   K-major    row r, unit c along k   none: c LBO, else 16 c;  8 rows: SBO;  one row: 16 W bytes (W = 1 without swizzle)
//   MN-major   unit u along mn, row k  none: u SBO + (k/8) LBO + 16 (k%8)
//                                      else: (u/W) LBO + 16 (u%W) + (k/8) SBO + 16 W (k%8)
// and then the address is swizzled, as a tensor copy does.
#include <algorithm>
#include <cstring>

#include "access.h"
#include "builder.h"
#include "lanes.h"
#include "number.h"
#include "tensor_map.h"

namespace emulator {

namespace {

constexpr int kWarps = 4, kRows = 64, kRowBytes = 32;
constexpr uint32_t kUnit = 16;

int element_bytes(MatrixShape::Element e) {
  return e == MatrixShape::kTf32 ? 4 : e == MatrixShape::kE4m3 || e == MatrixShape::kE5m2 ? 1 : 2;
}

// ---- Descriptors

struct Descriptor {
  uint32_t start, lbo, sbo, base;
  Swizzle swizzle;

  explicit Descriptor(uint64_t bits)
      : start(static_cast<uint32_t>(bits & 0x3fff) << 4),
        lbo(static_cast<uint32_t>(bits >> 16 & 0x3fff) << 4),
        sbo(static_cast<uint32_t>(bits >> 32 & 0x3fff) << 4),
        base(static_cast<uint32_t>(bits >> 49 & 7)),
        swizzle(static_cast<Swizzle>((4 - (bits >> 62)) & 3)) {}  // 1: 128, 2: 64, 3: 32 bytes

  uint32_t width() const { return swizzle_bytes(swizzle); }
  // Addresses are of 18 bits.
  uint32_t address(uint32_t offset) const { return swizzled((start + offset) & 0x3ffff, swizzle, base << 7); }
  uint32_t k_major(uint32_t row, uint32_t unit) const {
    return address(row / 8 * sbo + row % 8 * width() + unit * (swizzle == Swizzle::kNone ? lbo : kUnit));
  }
  uint32_t mn_major(uint32_t unit, uint32_t k) const {
    if (swizzle == Swizzle::kNone) return address(unit * sbo + k / 8 * lbo + k % 8 * kUnit);
    const uint32_t units = width() / kUnit;
    return address(unit / units * lbo + unit % units * kUnit + k / 8 * sbo + k % 8 * width());
  }
  // Lines are counted from a multiple of 8 rows, so a tile starts in the first of them unless `base` says another.
  bool aligned() const {
    return swizzle == Swizzle::kNone || (start - (base << 7)) % (8 * width()) < std::max(width(), 16u);
  }
};

// The addresses of a tile's units; rows: along m or n.
std::vector<uint32_t> units_of(const Descriptor &d, bool transposed, uint32_t rows, int depth) {
  std::vector<uint32_t> units;
  if (transposed) {
    for (uint32_t k = 0; k < static_cast<uint32_t>(depth); ++k)
      for (uint32_t u = 0; u < rows / 8; ++u) units.push_back(d.mn_major(u, k));
  } else {
    for (uint32_t row = 0; row < rows; ++row)
      for (uint32_t c = 0; c < 2; ++c) units.push_back(d.k_major(row, c));
  }
  return units;
}

// ---- Checks, when the last warp issues

void check_tile(Warp &w, Warpgroup &group, uint32_t clock, const Descriptor &d, const std::vector<uint32_t> &units,
                const char *name) {
  Block &block = *w.block;
  Run &run = *w.run;
  const int first = __builtin_ctz(w.live);
  const auto where = [](uint32_t address) { return "shared memory + " + std::to_string(address - kSharedStart); };
  if (run.options.races && !d.aligned()) {
    run.report(w, Kind::kMisaligned, first,
               std::string(name) + " starts at " + where(d.start) + ", inside " + std::to_string(8 * d.width()) +
                   " bytes of its swizzle, and its base offset doesn't say so");
  }
  for (const uint32_t address : units) {
    if (address >= kSharedStart && address + kUnit <= kSharedStart + run.shared_bytes) continue;
    return run.report(w, Kind::kOutOfBounds, first,
                      std::string(name) + " reaches address " + std::to_string(address) +
                          ", not in shared memory, which has " + std::to_string(run.shared_bytes) + " bytes from " +
                          std::to_string(kSharedStart));
  }
  const std::string read = std::string("wgmma's read of ") + name;
  if (run.options.uninitialised) {
    for (const uint32_t address : units) {
      std::byte *const written = block.initialised.data() + (address - kSharedStart);
      if (std::memchr(written, 0, kUnit) == nullptr) continue;
      std::memset(written, 1, kUnit);
      run.report(w, Kind::kUninitialised, first, read + " at " + where(address) + ", which nothing has written yet");
      break;
    }
  }
  const auto [lowest, highest] = std::minmax_element(units.begin(), units.end());
  const bool meets_mbarrier = block.mbarrier_in(*lowest - kSharedStart, *highest - *lowest + kUnit) != nullptr;
  for (const uint32_t address : units) {
    if (!meets_mbarrier || block.mbarrier_in(address - kSharedStart, kUnit) == nullptr) continue;
    run.report(w, Kind::kMbarrier, first, read + " at " + where(address) + ", where an mbarrier is");
    break;
  }
  if (block.shadow == nullptr) return;
  // It starts when all four warps have come: what one of their threads wrote, or waited for, is ordered before it.
  const int viewer = block.clocks->together(w.index / kWarps * kWarps * kLanes, kWarps * kLanes);
  const Accessor who{viewer, w.pc, Strength::kWeak, group.agent, clock};
  bool reported = false;
  for (const uint32_t address : units) {
    const Conflict c = block.shadow->read(*block.clocks, who, address - kSharedStart, static_cast<int>(kUnit));
    if (!c || reported) continue;
    reported = true;
    report_conflict(w, first, read, where(address), c);
  }
}

// What is known of one of a warp's registers.
MatrixRegister &known(Warp &w, const Operand &reg) {
  const Kernel &kernel = w.run->kernel;
  if (w.matrix_registers.empty()) w.matrix_registers.resize(kernel.matrix_registers + 1, {0, 0, 1, 0});
  return w.matrix_registers[kernel.matrix_register[reg.offset / kRegisterAlign]];
}

void check_registers(Warp &w, const MatrixShape &shape) {
  Run &run = *w.run;
  const int first = __builtin_ctz(w.live);
  bool unfenced = false, in_flight = false;
  uint32_t earlier = 0;
  const auto &kernel = run.kernel;
  const auto look = [&](const std::vector<Operand> &list, bool results) {
    for (const Operand &reg : list) {
      if (reg.bank != 0) continue;
      MatrixRegister &r = known(w, reg);
      unfenced = unfenced || r.touched == w.matrix_fences;
      // Sums of one shape may follow each other.
      const auto same_shape = [&] {
        const MatrixShape &other = kernel.matrix_shapes[kernel.code[r.work_pc].target];
        return results && other.n == shape.n && other.f16_result == shape.f16_result;
      };
      if ((r.results != 0 && !same_shape()) || (results && r.inputs != 0)) {
        in_flight = true;
        earlier = r.work_pc;
      }
    }
  };
  look(shape.results, true);
  look(shape.inputs, false);
  if (unfenced) {
    run.report(w, Kind::kFence, first,
               w.matrix_fences == 1 ? "wgmma without a wgmma.fence before it"
                                    : "wgmma with registers that were touched after the last wgmma.fence");
  }
  if (in_flight) {
    run.report(w, Kind::kInFlight, first, "wgmma with registers that another one in flight has",
               {earlier, w.block->number, w.thread(first)});
  }
  for (const Operand &reg : shape.results) ++known(w, reg).results, known(w, reg).work_pc = w.pc;
  for (const Operand &reg : shape.inputs) {
    if (reg.bank == 0) ++known(w, reg).inputs, known(w, reg).work_pc = w.pc;
  }
}

// ---- Numbers

float value_of(MatrixShape::Element type, const std::byte *at) {
  uint16_t half;
  uint32_t word;
  switch (type) {
    case MatrixShape::kTf32:
      std::memcpy(&word, at, sizeof word);
      return bits_as<float>(word & 0xffffe000u);  // the low 13 bits don't count
    case MatrixShape::kE4m3:
      return e4m3_float(std::to_integer<uint8_t>(*at));
    case MatrixShape::kE5m2:
      return f16_float(static_cast<uint16_t>(std::to_integer<uint16_t>(*at) << 8));
    default:
      std::memcpy(&half, at, sizeof half);
      return type == MatrixShape::kF16 ? f16_float(half) : bf16_float(half);
  }
}

// The bytes of rows along m or n from shared memory, 32 of each.
void gather(const Block &block, const Descriptor &d, bool transposed, uint32_t rows, std::byte *out) {
  const auto at = [&](uint32_t address) {
    // What is outside has been reported.
    const uint64_t offset = address - kSharedStart;
    return address >= kSharedStart && offset + kUnit <= block.shared.size() ? block.shared.data() + offset : nullptr;
  };
  std::memset(out, 0xff, rows * kRowBytes);
  if (!transposed) {
    for (uint32_t row = 0; row < rows; ++row) {
      for (uint32_t c = 0; c < 2; ++c) {
        if (const std::byte *unit = at(d.k_major(row, c))) std::memcpy(out + row * kRowBytes + c * kUnit, unit, kUnit);
      }
    }
    return;
  }
  for (uint32_t k = 0; k < 16; ++k) {
    for (uint32_t u = 0; u < rows / 8; ++u) {
      const std::byte *unit = at(d.mn_major(u, k));
      for (uint32_t e = 0; unit != nullptr && e < 8; ++e) {
        std::memcpy(out + (u * 8 + e) * kRowBytes + 2 * k, unit + 2 * e, 2);
      }
    }
  }
}

struct Numbers {
  float a[kRows][kRowBytes];
  double b[kRowBytes][256];
  std::byte bytes[256 * kRowBytes];
};

void multiply(Block &block, size_t first_warp, const MatrixShape &shape, const MatrixWork &work) {
  static thread_local Numbers x;
  const auto n = static_cast<uint32_t>(shape.n);
  const int depth = shape.depth;
  if (shape.a_in_registers) {
    for (size_t warp = 0; warp < kWarps; ++warp) {
      for (size_t r = 0; r < 4; ++r) {
        const uint32_t *words = block.warps[first_warp + warp].in<uint32_t>(shape.inputs[r]);
        for (size_t lane = 0; lane < kLanes; ++lane) {
          const size_t row = 16 * warp + lane / 4 + 8 * (r % 2);
          std::memcpy(x.bytes + row * kRowBytes + 16 * (r / 2) + 4 * (lane % 4), words + lane, 4);
        }
      }
    }
  } else {
    gather(block, Descriptor(work.a), shape.transposed_a, kRows, x.bytes);
  }
  for (size_t row = 0; row < kRows; ++row) {
    for (size_t k = 0; k < static_cast<size_t>(depth); ++k) {
      const float value =
          value_of(shape.a, x.bytes + row * kRowBytes + k * static_cast<size_t>(element_bytes(shape.a)));
      x.a[row][k] = shape.negated_a ? -value : value;
    }
  }
  gather(block, Descriptor(work.b), shape.transposed_b, n, x.bytes);
  for (size_t column = 0; column < n; ++column) {
    for (size_t k = 0; k < static_cast<size_t>(depth); ++k) {
      const float value =
          value_of(shape.b, x.bytes + column * kRowBytes + k * static_cast<size_t>(element_bytes(shape.b)));
      x.b[k][column] = static_cast<double>(shape.negated_b ? -value : value);
    }
  }
  for (size_t row = 0; row < kRows; ++row) {
    Warp &w = block.warps[first_warp + row / 16];
    const size_t half = row % 16 / 8, lane0 = row % 8 * 4;
    double sum[256];  // rounded once; a tensor core truncates in an order of its own
    const auto each_element = [&](auto visit) {
      for (size_t column = 0; column < n; ++column) {
        const size_t lane = lane0 + column % 8 / 2, j = column / 8;
        if (shape.f16_result)
          visit(column, w.out<uint16_t>(shape.results[2 * j + half]) + 2 * lane + column % 2, nullptr);
        else
          visit(column, nullptr, w.out<float>(shape.results[4 * j + 2 * half + column % 2]) + lane);
      }
    };
    if (work.accumulate) {
      each_element([&](size_t column, const uint16_t *h, const float *f) {
        sum[column] = static_cast<double>(h != nullptr ? f16_float(*h) : *f);
      });
    } else {
      std::fill_n(sum, n, 0.0);
    }
    for (int k = 0; k < depth; ++k) {
      const auto a = static_cast<double>(x.a[row][k]);
      const double *b = x.b[k];
      for (size_t column = 0; column < n; ++column) sum[column] += a * b[column];
    }
    each_element([&](size_t column, uint16_t *h, float *f) {
      const auto value = static_cast<float>(sum[column]);
      if (h != nullptr)
        *h = nearest_f16(value);
      else
        *f = value;
    });
  }
}

// ---- Order

constexpr Mask kAllWarps = 15;

Warpgroup &group_of(Warp &w) { return w.block->warpgroups[static_cast<size_t>(w.index / kWarps)]; }

// Computes, in their order, those that all warps have issued and whose group is at most this.
void compute(Warp &w, Warpgroup &group, uint32_t most) {
  const auto first_warp = static_cast<size_t>(w.index / kWarps * kWarps);
  const Kernel &kernel = w.run->kernel;
  for (MatrixWork &work : group.work) {
    if (work.issued != kAllWarps || work.group > most) break;
    if (work.done) continue;
    multiply(*w.block, first_warp, kernel.matrix_shapes[kernel.code[work.pc].target], work);
    work.done = true;
    ++w.run->changes;
  }
  while (!group.work.empty() && group.work.front().done) {
    group.work.pop_front();
    ++group.first;
  }
}

bool whole_warpgroup(Warp &w) {
  if (static_cast<size_t>(w.index / kWarps * kWarps + kWarps) <= w.block->warps.size() && w.live == kAllLanes)
    return true;
  w.run->report(w, Kind::kBarrier, __builtin_ctz(w.live), "wgmma needs all threads of four warps");
  return false;
}

// in[0], in[1]: descriptors of A (unless in registers) and B; in[2]: whether to add to D.
void issue(Warp &w, const Instruction &i, Mask mask) {
  if (!whole_warpgroup(w)) return;
  Run &run = *w.run;
  Warpgroup &group = group_of(w);
  const MatrixShape &shape = run.kernel.matrix_shapes[i.target];
  const int first = __builtin_ctz(mask);
  const auto warp = static_cast<size_t>(w.index % kWarps);
  const Mask adds = w.predicate(i.in[2], i.negated[2]);
  const MatrixWork mine{w.pc,
                        group.commits[warp] + 1,
                        Mask{1} << warp,
                        false,
                        shape.a_in_registers ? 0 : w.in<uint64_t>(i.in[0])[first],
                        w.in<uint64_t>(i.in[1])[first],
                        adds != 0};
  bool uniform = adds == 0 || adds == kAllLanes;
  each_lane(mask, [&](int lane) {
    if (!shape.a_in_registers && w.in<uint64_t>(i.in[0])[lane] != mine.a) uniform = false;
    if (w.in<uint64_t>(i.in[1])[lane] != mine.b) uniform = false;
  });
  const uint64_t number = group.issued[warp]++;
  if (number - group.first == group.work.size()) group.work.push_back(mine);
  MatrixWork &work = group.work[number - group.first];
  work.issued |= mine.issued;
  uniform = uniform && work.pc == mine.pc && work.a == mine.a && work.b == mine.b &&
            work.accumulate == mine.accumulate && work.group == mine.group;
  if (!uniform) {
    run.report(w, Kind::kBarrier, first,
               "the threads of a warpgroup don't agree on a wgmma: instruction, descriptors, scale-d or group");
  }
  ++run.changes;
  if (run.options.races) {
    if (group.agent < 0) group.agent = w.block->clocks->add_agent(w.index / kWarps * kWarps * kLanes);
    w.block->clocks->set_owner(group.agent, w.thread(first));
    check_registers(w, shape);
  }
  w.matrix_in_flight.emplace_back(mine.group, w.pc);
  if (work.issued != kAllWarps) return;
  if (!shape.a_in_registers) {
    const Descriptor a(mine.a);
    check_tile(w, group, mine.group, a, units_of(a, shape.transposed_a, kRows, shape.depth), "A");
  }
  const Descriptor b(mine.b);
  check_tile(w, group, mine.group, b, units_of(b, shape.transposed_b, static_cast<uint32_t>(shape.n), shape.depth),
             "B");
  const bool now =
      run.options.copies == Copies::kEager || (run.options.copies == Copies::kRandom && run.random() % 4 == 0);
  if (now) compute(w, group, mine.group);
}

void fence(Warp &w, const Instruction &, Mask) {
  if (whole_warpgroup(w)) ++w.matrix_fences;
}

void commit(Warp &w, const Instruction &, Mask) {
  if (!whole_warpgroup(w)) return;
  ++group_of(w).commits[w.index % kWarps];
  ++w.run->changes;
}

// target: groups that may be left.
void wait(Warp &w, const Instruction &i, Mask) {
  if (!whole_warpgroup(w)) return;
  Warpgroup &group = group_of(w);
  const uint32_t commits = group.commits[w.index % kWarps];
  if (commits <= i.target) return;
  const uint32_t done = commits - i.target;
  for (const MatrixWork &work : group.work) {
    if (work.group > done || work.issued == kAllWarps) continue;
    w.failed = true;
    return;
  }
  compute(w, group, done);
  const Kernel &kernel = w.run->kernel;
  while (!w.matrix_in_flight.empty() && w.matrix_in_flight.front().first <= done) {
    const MatrixShape &shape = kernel.matrix_shapes[kernel.code[w.matrix_in_flight.front().second].target];
    w.matrix_in_flight.pop_front();
    if (!w.run->options.races) continue;
    for (const Operand &reg : shape.results) --known(w, reg).results;
    for (const Operand &reg : shape.inputs) {
      if (reg.bank == 0) --known(w, reg).inputs;
    }
  }
  if (w.run->options.races && group.agent >= 0) w.block->clocks->learn(w.thread(0), w.live, group.agent, done);
}

// ---- Text

void decode(Builder &b) {
  Instruction &r = b.result;
  MatrixShape shape;
  if (!b.take("sync") || !b.take("aligned")) b.fail("only .sync.aligned");
  const int element = [&] {
    constexpr int kDepths[] = {8, 16, 32};
    for (const int depth : kDepths) {
      for (int n = 8; n <= 256; n += 8) {
        if (!b.take("m64n" + std::to_string(n) + "k" + std::to_string(depth))) continue;
        shape.n = n;
        shape.depth = depth;
        return 32 / depth;
      }
    }
    b.fail("no such shape");
  }();
  const auto take = [&] { return b.take_next({"f16", "bf16", "tf32", "e4m3", "e5m2", "f32"}); };
  const int d = take(), a = take(), type_b = take();
  if ((d != 5 && d != 0) || a < 0 || a > 4 || type_b < 0 || type_b > 4) b.fail("such types aren't supported");
  shape.f16_result = d == 0;
  shape.a = static_cast<MatrixShape::Element>(a);
  shape.b = static_cast<MatrixShape::Element>(type_b);
  const bool half = element == 2;
  if (element_bytes(shape.a) != element || element_bytes(shape.b) != element || (element > 1 && a != type_b) ||
      (shape.f16_result && element == 2 && a != MatrixShape::kF16) || (shape.f16_result && element == 4)) {
    b.fail("such types aren't supported");
  }
  shape.a_in_registers = b.arg(1).kind == Arg::kVector;
  const size_t transposes = !half ? 0 : shape.a_in_registers ? 1 : 2;
  b.expect(6 + transposes, 6 + transposes);
  const Arg &results = b.arg(0);
  const size_t count = static_cast<size_t>(shape.n) / (shape.f16_result ? 4 : 2);
  if (results.kind != Arg::kVector || results.parts.size() != count) b.fail("wrong number of accumulators");
  for (const Arg &part : results.parts) shape.results.push_back(b.target(part, 4));
  const Type word{Type::kBits, 32}, bits{Type::kBits, 64};
  if (shape.a_in_registers) {
    if (b.arg(1).parts.size() != 4) b.fail("A has 4 registers");
    for (const Arg &part : b.arg(1).parts) shape.inputs.push_back(b.source(part, word));
  } else {
    r.in[0] = b.source(1, bits);
  }
  r.in[1] = b.source(2, bits);
  r.in[2] = b.predicate(b.arg(3), r.negated[2]);
  const auto literal = [&](size_t k) {
    if (b.arg(k).kind != Arg::kInteger) b.fail("a literal is wanted");
    return static_cast<int64_t>(b.arg(k).value);
  };
  const auto sign = [&](size_t k) {
    if (literal(k) != 1 && literal(k) != -1) b.fail("a sign of 1 or -1 is wanted");
    return literal(k) < 0;
  };
  shape.negated_a = sign(4);
  shape.negated_b = sign(5);
  if (transposes == 2) shape.transposed_a = literal(6) != 0;
  if (transposes != 0) shape.transposed_b = literal(5 + transposes) != 0;
  r.flops = static_cast<uint32_t>(2 * 16 * shape.n * shape.depth);
  r.is_wgmma = true;
  r.control = Control::kTogether;
  r.run = issue;
  b.add_shape(std::move(shape));
}

void decode_order(Builder &b, Handler run) {
  if (!b.take("sync") || !b.take("aligned")) b.fail("only .sync.aligned");
  b.expect(run == wait ? 1 : 0, run == wait ? 1 : 0);
  if (run == wait) {
    if (b.arg(0).kind != Arg::kInteger) b.fail("a literal is wanted");
    b.result.target = static_cast<uint32_t>(b.arg(0).value);
  }
  b.result.control = run == wait ? Control::kAwait : Control::kTogether;
  b.result.run = run;
}

}  // namespace

void touch_matrix_registers(Warp &w, const Instruction &i, Mask lanes) {
  const Kernel &kernel = w.run->kernel;
  const int lane = __builtin_ctz(lanes);
  bool reported = false;
  const auto look = [&](const Operand &reg, bool writes) {
    if (reg.bytes <= 1 || reg.bank != 0 || kernel.matrix_register[reg.offset / kRegisterAlign] == 0) return;
    MatrixRegister &r = known(w, reg);
    // Copies and constants are the compiler's, which puts them behind the fence that comes after them in the source; the
    // assembler puts them before it.
    if (!i.is_move) r.touched = w.matrix_fences;
    if (reported || (r.results == 0 && (r.inputs == 0 || !writes))) return;
    reported = true;
    w.run->report(w, Kind::kInFlight, lane,
                  std::string(writes ? "write to" : "read of") +
                      (r.results != 0 ? " an accumulator" : " a register of A") +
                      " of a wgmma that hasn't been waited for",
                  {r.work_pc, w.block->number, w.thread(lane)});
  };
  for (const Operand &reg : i.out) look(reg, true);
  for (const Operand &reg : i.in) look(reg, false);
}

std::vector<Opcode> wgmma_opcodes() {
  return {
      {"wgmma",
       [](Builder &b) {
         if (!b.take("mma_async")) b.fail("unknown wgmma");
         decode(b);
       }},
      {"wgmma.fence", [](Builder &b) { decode_order(b, fence); }},
      {"wgmma.commit_group", [](Builder &b) { decode_order(b, commit); }},
      {"wgmma.wait_group", [](Builder &b) { decode_order(b, wait); }},
  };
}

}  // namespace emulator
