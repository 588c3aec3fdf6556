// A kernel of Hopper's parts, compiled by nvcc (kernels/hopper.cu): right results and no report in every schedule, its
// traffic, and a report for each of the mistakes that one line of it can have.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>

#include "faults.h"
#include "tensor_map.h"
#include "testing.h"

using namespace emulator;

namespace testing {

namespace {

constexpr size_t kColumns = 64;

struct alignas(64) Map {
  TensorMap map;
  std::byte rest[128 - sizeof(TensorMap)];
};
struct Arguments {
  int tiles;
  Map q, k, v, o;
};

Map map_of(const uint16_t *rows, size_t count) {
  Map m{};
  m.map.address = reinterpret_cast<uint64_t>(rows);
  m.map.rank = 2;
  m.map.type = 6;  // f16
  m.map.swizzle = Swizzle::k128;
  m.map.strides[0] = 2;
  m.map.strides[1] = kColumns * 2;
  m.map.last[0] = kColumns - 1;
  m.map.last[1] = static_cast<uint32_t>(count - 1);
  for (int d = 0; d < 2; ++d) m.map.box[d] = 64, m.map.steps[d] = 1;
  return m;
}

struct Result {
  Stats stats;
  double error = 0;
  const Traffic *traffic(const char *name) const {
    for (const Traffic &t : stats.buffers)
      if (t.buffer.name == name) return &t;
    return nullptr;
  }
  bool has(Kind kind) const {
    return std::any_of(stats.reports.begin(), stats.reports.end(), [&](const Report &r) { return r.kind == kind; });
  }
};

// O = f16(Q K^T) V of some queries and keys.
Result attention(const std::string &text, size_t queries, size_t keys, const Options &options) {
  Memory memory;
  const auto rows = [&](size_t count, const char *name, uint64_t seed) {
    auto *data = static_cast<uint16_t *>(memory.allocate(count * kColumns * 2, name));
    uint64_t state = seed;
    for (size_t i = 0; i < count * kColumns; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      data[i] = to_f16(static_cast<double>(state >> 40) / (1 << 24) - 0.5);
    }
    return data;
  };
  const uint16_t *q = rows(queries, "q", 1), *k = rows(keys, "k", 2), *v = rows(keys, "v", 3);
  auto *o = static_cast<uint16_t *>(memory.allocate(queries * kColumns * 2, "o"));
  const Arguments arguments{static_cast<int>((keys + 63) / 64), map_of(q, queries), map_of(k, keys), map_of(v, keys),
                            map_of(o, queries)};
  const void *params[] = {&arguments};
  Result result;
  result.stats = launch(load_module(text), memory, "hopper", {static_cast<uint32_t>((queries + 127) / 128)}, {384},
                        8 * 8192 + 8 * (1 + 4 * 2), params, options);
  for (size_t i = 0; i < queries; ++i) {
    double exact[kColumns] = {};
    for (size_t j = 0; j < keys; ++j) {
      double s = 0;
      for (size_t c = 0; c < kColumns; ++c)
        s += static_cast<double>(f16_float(q[i * kColumns + c])) * static_cast<double>(f16_float(k[j * kColumns + c]));
      s = static_cast<double>(f16_float(to_f16(s)));
      for (size_t c = 0; c < kColumns; ++c) exact[c] += s * static_cast<double>(f16_float(v[j * kColumns + c]));
    }
    for (size_t c = 0; c < kColumns; ++c) {
      const double off = std::fabs(static_cast<double>(f16_float(o[i * kColumns + c])) - exact[c]);
      if (!(off <= result.error)) result.error = off;
    }
  }
  return result;
}

// The text with the n-th (from 0) line that contains `part` replaced, or gone.
std::string with(std::string text, const std::string &part, int n, const std::string &line = "") {
  size_t at = text.find(part);
  while (n-- > 0 && at != text.npos) at = text.find(part, at + 1);
  CHECK(at != text.npos);
  if (at == text.npos) return text;
  const size_t begin = text.rfind('\n', at) + 1;
  return text.replace(begin, text.find('\n', at) - begin, line);
}

// The n-th line with `part` moved behind the next label.
std::string behind_label(const std::string &text, const std::string &part, int n) {
  size_t at = text.find(part);
  while (n-- > 0) at = text.find(part, at + 1);
  const size_t begin = text.rfind('\n', at) + 1, end = text.find('\n', at) + 1;
  const size_t label = text.find("\n$L__BB", end), after = text.find('\n', label + 1) + 1;
  return text.substr(0, begin) + text.substr(end, after - end) + text.substr(begin, end - begin) + text.substr(after);
}

void right(const std::string &text) {
  for (const Order order : {Order::kForward, Order::kReverse, Order::kRandom}) {
    for (const Copies copies : {Copies::kLate, Copies::kEager, Copies::kRandom}) {
      Options options;
      options.order = order;
      options.copies = copies;
      options.collect = true;
      const size_t queries = 200, keys = 300, row = 2 * kColumns;
      const Result r = attention(text, queries, keys, options);
      for (const Report &report : r.stats.reports) std::printf("%s\n", report.text().c_str());
      CHECK(r.stats.reports.empty());
      CHECK(r.error < 0.005);
      // Two blocks read all keys; what sticks out isn't read or written.
      CHECK(r.traffic("q")->read_bytes == queries * row && r.traffic("q")->read_unique_bytes == queries * row);
      CHECK(r.traffic("k")->read_bytes == 2 * keys * row && r.traffic("k")->read_unique_bytes == keys * row);
      CHECK(r.traffic("v")->read_sectors == 2 * keys * row / 32);
      CHECK(r.traffic("o")->written_bytes == queries * row && r.traffic("o")->written_twice_bytes == 0);
      CHECK(r.stats.wgmma == 2u * 2 * 4 * 5 * 8 && r.stats.opcodes.at("wgmma") == r.stats.wgmma);
      CHECK(r.stats.matrix_flops == r.stats.wgmma * 2 * 16 * 64 * 16);
      CHECK(r.stats.bank_conflicts == 0 && r.stats.hottest && r.stats.hottest->wgmma > 0);
    }
  }
}

void mistakes(const std::string &text) {
  const auto reported = [&](const std::string &changed, Kind kind, Kind or_kind) {
    bool all = true;
    for (const Order order : {Order::kForward, Order::kReverse, Order::kRandom}) {
      Options options;
      options.order = order;
      options.copies = order == Order::kReverse ? Copies::kEager : Copies::kLate;
      options.collect = true;
      options.max_instructions = 1000000;
      const Result r = attention(changed, 128, 320, options);
      if (r.has(kind) || r.has(or_kind)) continue;
      all = false;
      for (const Report &report : r.stats.reports) std::printf("instead: %s\n", report.text().c_str());
    }
    return all;
  };
  const auto is = [&](const std::string &changed, Kind kind) { return reported(changed, kind, kind); };
  const std::string wait = "wgmma.wait_group.sync.aligned 0", fence = "wgmma.fence.sync.aligned",
                    try_wait = "mbarrier.try_wait.parity", copy = "mbarrier.arrive.expect_tx";
  // Accumulators, and fences of registers.
  CHECK(is(with(text, wait, 0), Kind::kInFlight));
  CHECK(is(with(text, wait, 1, "wgmma.wait_group.sync.aligned 1;"), Kind::kRace));
  CHECK(is(with(text, fence, 0), Kind::kFence));
  CHECK(is(with(text, fence, 1), Kind::kFence));
  // Stages that are released before the wgmma that reads them has been waited for: K, V.
  CHECK(is(behind_label(text, wait, 0), Kind::kRace));
  CHECK(is(behind_label(text, wait, 1), Kind::kRace));
  CHECK(is(with(text, "mbarrier.arrive.shared::cta.b64 _", 0), Kind::kDeadlock));
  // Tiles that nobody waits for: Q, K, V; and the producer's waits for empty stages.
  for (const int n : {0, 1, 2, 3, 4}) CHECK(is(with(text, try_wait, n, "retry: setp.eq.u32 p, 0, 0;"), Kind::kRace));
  // Bytes expected: too few of the second of two copies, too few and too many of one.
  const auto expect = [&](int n, const std::string &mbarrier, int bytes) {
    return with(
        text, copy, n,
        "mov.b32 %r31, " + std::to_string(bytes) + "; " + copy + ".shared::cta.b64 _, [" + mbarrier + "], %r31;");
  };
  CHECK(reported(expect(0, "%r220", 8192), Kind::kMbarrier, Kind::kRace));  // if the first is over before the second
  CHECK(is(expect(1, "%r226", 4096), Kind::kDeadlock));
  CHECK(is(expect(1, "%r226", 8320), Kind::kDeadlock));
  // Fences towards the async proxy, and the barrier behind init.
  CHECK(is(with(text, "fence.mbarrier_init", 0), Kind::kFence));
  CHECK(is(with(text, "fence.proxy.async", 0), Kind::kFence));
  CHECK(is(with(text, "bar.sync \t0", 0), Kind::kRace));
  CHECK(is(with(text, "bar.sync %r175", 0), Kind::kRace));
  // Named barriers, and the store's wait.
  CHECK(is(with(text, "bar.arrive 1, 256", 0), Kind::kDeadlock));
  CHECK(is(with(text, "bar.arrive 1, 256", 0, "bar.arrive 1, 384;"), Kind::kBarrier));
  CHECK(is(with(text, "cp.async.bulk.wait_group.read", 0), Kind::kInFlight));
}

// Every seeded fault of what Hopper has, and other kernels don't, is noticed.
void faults(const std::string &text) {
  Options options;
  options.max_instructions = 300000;
  size_t tried = 0;
  for (const SeededFault &fault : faults_of(text, "hopper")) {
    const bool is_coordinate = fault.what.find("coordinate") != std::string::npos;
    if (fault.kind != FaultKind::kSynchronisation && fault.kind != FaultKind::kDescriptor && !is_coordinate) continue;
    // The turns of the two warpgroups order nothing that has to be.
    if (fault.line.ptx.find("bar.sync %r2, 256") != std::string::npos) continue;
    if (fault.what == "the next barrier" && fault.line.ptx == "bar.arrive 1, 256;") continue;
    ++tried;
    bool noticed = false;
    try {
      noticed = !(attention(with_fault(text, fault), 128, 300, options).error < 0.005);
    } catch (const Fault &) {
      noticed = true;
    }
    check(noticed, __FILE__, __LINE__, fault.what + " in " + fault.line.ptx);
  }
  CHECK(tried > 80);
}

}  // namespace

void test_hopper_kernel() {
#ifdef EMULATOR_KERNELS
  std::ifstream file(std::string(EMULATOR_KERNELS) + "/hopper.ptx");
  std::stringstream text;
  text << file.rdbuf();
  right(text.str());
  mistakes(text.str());
  faults(text.str());
#endif
}

}  // namespace testing
