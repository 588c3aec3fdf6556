// Real kernels, compiled by nvcc (kernels/*.cu): right results under every schedule without a report, and the same kernels
// with a fault made in their PTX, which must be caught.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <thread>

#include "testing.h"

using namespace emulator;

namespace testing {

namespace {

#ifndef EMULATOR_KERNELS
#define EMULATOR_KERNELS "."
#endif

std::string read_file(const std::string &name) {
  std::ifstream file(std::string(EMULATOR_KERNELS) + "/" + name, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// The text without the n-th (from 0) line that contains `part`; `with` replaces the part instead if given.
std::string broken(std::string text, const std::string &part, int n, const std::string &with = "") {
  size_t at = text.find(part);
  while (n-- > 0 && at != text.npos) at = text.find(part, at + 1);
  CHECK(at != text.npos);
  if (at == text.npos) return text;
  if (!with.empty()) return text.replace(at, part.size(), with);
  const size_t end = text.find('\n', at + 1);
  const size_t begin = text.rfind('\n', end - 1);
  return text.erase(begin, end - begin);
}

std::vector<Options> schedules() {
  std::vector<Options> all;
  for (Order order : {Order::kForward, Order::kReverse, Order::kRandom}) {
    for (Copies copies : {Copies::kLate, Copies::kEager, Copies::kRandom}) {
      Options options;
      options.order = order;
      options.copies = copies;
      options.seed = all.size();
      options.collect = true;
      all.push_back(options);
    }
  }
  return all;
}

bool none(const Stats &stats) {
  for (const Report &report : stats.reports) std::printf("%s\n", report.text().c_str());
  return stats.reports.empty();
}

bool has(const Stats &stats, Kind kind) {
  for (const Report &report : stats.reports) {
    if (report.kind == kind) return true;
  }
  return false;
}

template <class T>
T *put(Memory &memory, const std::vector<T> &values, const char *name) {
  T *data = static_cast<T *>(memory.allocate(values.size() * sizeof(T), name));
  std::memcpy(data, values.data(), values.size() * sizeof(T));
  return data;
}

std::vector<float> numbers(size_t count, uint64_t seed) {
  std::vector<float> all(count);
  uint64_t state = seed;
  for (float &x : all) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    x = static_cast<float>(static_cast<int64_t>(state) >> 40) / 0x1p23f;
  }
  return all;
}

void reductions(const std::string &text) {
  const Module module = load_module(text);
  const auto x = numbers(3000, 1);
  double wanted = 0;
  for (float value : x) wanted += value;
  for (const char *kernel : {"reduce", "reduce_by_last"}) {
    for (const Options &options : schedules()) {
      Memory memory;
      float *input = put(memory, x, "x"), *sums = put(memory, std::vector<float>(5, NAN), "sums");
      float *total = put(memory, std::vector<float>(1, 0), "total");
      long long n = 3000;
      const bool by_last = kernel[6] != 0;
      const void *params[] = {&input, &n, &sums, &total};
      *static_cast<int *>(reinterpret_cast<void *>(module.variable("blocks_done")->address)) = 0;
      const Stats stats = launch(module, memory, kernel, {5}, {by_last ? 32u : 128u}, 0, params, options);
      CHECK(none(stats));
      CHECK(std::fabs(*total - wanted) < 1e-3);
      CHECK(stats.traffic(input)->read_bytes == 12000 && stats.traffic(input)->read_unique_bytes == 12000);
      CHECK(stats.traffic(sums)->written_bytes == 20 && stats.traffic(sums)->written_twice_bytes == 0);
      CHECK(stats.bank_conflicts == 0);
    }
  }
  // Without its fences the last block may see nothing of what the others wrote.
  const auto by_last = [&](const std::string &faulty) {
    Memory memory;
    float *input = put(memory, x, "x"), *sums = put(memory, std::vector<float>(5, NAN), "sums");
    float *total = put(memory, std::vector<float>(1, 0), "total");
    int n = 3000;
    const void *params[] = {&input, &n, &sums, &total};
    Options options;
    options.collect = true;
    return launch(load_module(faulty), memory, "reduce_by_last", {5}, {32}, 0, params, options);
  };
  const size_t at = text.find(".entry reduce_by_last");
  const std::string before = text.substr(0, at), after = text.substr(at);
  const char *fence = after.find("membar") != after.npos ? "membar" : "fence";
  CHECK(has(by_last(before + broken(after, fence, 0)), Kind::kRace));
  CHECK(has(by_last(before + broken(after, fence, 1)), Kind::kRace));
  CHECK(has(by_last(before + broken(after, "bar.sync", 0)), Kind::kRace));

  for (const Options &options : schedules()) {
    Memory memory;
    int *turns = put(memory, std::vector<int>(1, 0), "turns"), *order = put(memory, std::vector<int>(1, 0), "order");
    const void *params[] = {&turns, &order};
    CHECK(none(launch(module, memory, "chain", {9}, {32}, 0, params, options)));
    CHECK(*order == 81 && *turns == 9);
  }
}

Stats multiply(const Module &module, int m, int n, int k, const Options &options, double *error) {
  Memory memory;
  const auto a = numbers(static_cast<size_t>(m * k), 2), b = numbers(static_cast<size_t>(k * n), 3);
  float *pa = put(memory, a, "a"), *pb = put(memory, b, "b");
  float *c = static_cast<float *>(memory.allocate(static_cast<size_t>(m * n) * 4, "c"));
  const void *params[] = {&pa, &pb, &c, &m, &n, &k};
  const Dim3 grid{static_cast<uint32_t>((n + 15) / 16), static_cast<uint32_t>((m + 15) / 16), 1};
  const Stats stats = launch(module, memory, "multiply", grid, {16, 16}, 0, params, options);
  *error = 0;
  for (int i = 0; i < m; ++i) {
    for (int j = 0; j < n; ++j) {
      double exact = 0;
      for (int l = 0; l < k; ++l)
        exact += double{a[static_cast<size_t>(i * k + l)]} * b[static_cast<size_t>(l * n + j)];
      const double off = std::fabs(c[i * n + j] - exact);
      if (!(off <= *error)) *error = off;
    }
  }
  return stats;
}

void matrix_products(const std::string &text) {
  const Module module = load_module(text);
  double error;
  for (const Options &options : schedules()) {
    const Stats stats = multiply(module, 37, 50, 41, options, &error);
    CHECK(none(stats));
    CHECK(error < 1e-5);
    CHECK(stats.hottest && stats.hottest->fma > 0);
  }
  // One module, several host threads.
  std::vector<std::thread> threads;
  std::vector<double> errors(4, 1);
  for (double &own : errors) threads.emplace_back([&] { multiply(module, 37, 50, 41, {}, &own); });
  for (std::thread &thread : threads) thread.join();
  for (double own : errors) CHECK(own < 1e-5);

  const size_t at = text.find(".entry multiply(");
  const std::string before = text.substr(0, at), after = text.substr(at);
  Options options;
  options.collect = true;
  CHECK(has(multiply(load_module(before + broken(after, "bar.sync", 0)), 37, 50, 41, options, &error), Kind::kRace));
  CHECK(has(multiply(load_module(before + broken(after, "bar.sync", 1)), 37, 50, 41, options, &error), Kind::kRace));
  bool bounds = false;  // one of the branches around an access, taken away
  for (int k = 0; k < 6 && !bounds; ++k) {
    Options limited = options;
    limited.max_instructions = 1000000;
    bounds =
        has(multiply(load_module(before + broken(after, "\n\t@", k)), 37, 50, 41, limited, &error), Kind::kOutOfBounds);
  }
  CHECK(bounds);
}

Stats tensor(const Module &module, bool bf16, int m, int n, int k, const Options &options, double *error) {
  Memory memory;
  std::vector<uint16_t> a, b;
  for (float x : numbers(static_cast<size_t>(m * k), 4)) a.push_back(bf16 ? to_bf16(x) : to_f16(x));
  for (float x : numbers(static_cast<size_t>(n * k), 5)) b.push_back(bf16 ? to_bf16(x) : to_f16(x));
  uint16_t *pa = put(memory, a, "a"), *pb = put(memory, b, "b");
  float *c = static_cast<float *>(memory.allocate(static_cast<size_t>(m * n) * 4, "c"));
  const void *params[] = {&pa, &pb, &c, &m, &n, &k};
  const Dim3 grid{static_cast<uint32_t>((n + 63) / 64), static_cast<uint32_t>((m + 63) / 64), 1};
  const Stats stats =
      launch(module, memory, bf16 ? "multiply_bf16" : "multiply_f16", grid, {128}, 4 * 64 * 40 * 2, params, options);
  *error = 0;
  const auto value = [&](uint16_t bits) { return static_cast<double>(bf16 ? bf16_float(bits) : f16_float(bits)); };
  for (int i = 0; i < m; ++i) {
    for (int j = 0; j < n; ++j) {
      double exact = 0;
      for (int l = 0; l < k; ++l)
        exact += value(a[static_cast<size_t>(i * k + l)]) * value(b[static_cast<size_t>(j * k + l)]);
      const double off = std::fabs(c[i * n + j] - exact);
      if (!(off <= *error)) *error = off;
    }
  }
  return stats;
}

void tensor_products(const std::string &text) {
  const Module module = load_module(text);
  double error;
  for (bool bf16 : {false, true}) {
    for (const Options &options : schedules()) {
      const Stats stats = tensor(module, bf16, 100, 130, 128, options, &error);
      CHECK(none(stats));
      CHECK(error < 1e-4);
      CHECK(stats.mma == 2u * 3 * 4 * 4 * 2 * 8);  // blocks x warps x steps x parts x columns
      CHECK(stats.bank_conflicts == 0);
    }
  }
  const auto faulty = [&](const std::string &changed) {
    Options options;
    options.collect = true;
    return tensor(load_module(changed), false, 100, 130, 128, options, &error);
  };
  CHECK(has(faulty(broken(text, "cp.async.wait_group 1", 0, "cp.async.wait_group 2")), Kind::kInFlight));
  CHECK(has(faulty(broken(text, "bar.sync", 0)), Kind::kRace));
  CHECK(has(faulty(broken(text, "bar.sync", 1)), Kind::kRace));
  faulty(broken(text, "ldmatrix.sync.aligned.m8n8.x4.shared", 0, "ldmatrix.sync.aligned.m8n8.x4.trans.shared"));
  CHECK(error > 0.01);
  const Stats stats = faulty(broken(text, "bar.sync", 0));
  const Report &report =
      *std::find_if(stats.reports.begin(), stats.reports.end(), [](const Report &r) { return r.kind == Kind::kRace; });
  CHECK(report.line.caller_file == "tensor.cu" && report.other && report.other->caller_file == "tensor.cu");
}

void oddities(const std::string &text) {
  const Module module = load_module(text);
  Memory memory;
  std::vector<int> which(40);
  for (size_t k = 0; k < which.size(); ++k) which[k] = static_cast<int>(k * 5 % 9);
  int *input = put(memory, which, "which");
  auto *out = put(memory, std::vector<double>(40, NAN), "out");
  int n = 40;
  const void *params[] = {&input, &out, &n};
  Options options;
  options.collect = true;
  CHECK(none(launch(module, memory, "oddities", {}, {64}, 0, params, options)));
  bool ok = true;
  for (int k = 0; k < 40; ++k) {
    const double x = (which[static_cast<size_t>(k)] & 7) * 0.5;
    const double wanted[] = {std::sin(x + 1), std::exp(x), std::pow(x, k), 1 / (x + 3), std::sqrt(x),
                             std::tanh(x),    std::log(x), x * x - 1,      x * x - 1};
    ok = ok && std::fabs(out[k] - wanted[which[static_cast<size_t>(k)]]) <= 1e-6 * std::fabs(out[k]);
  }
  CHECK(ok);
  n = 65;
  const Stats stats = launch(module, memory, "oddities", {}, {64}, 0, params, options);
  CHECK(has(stats, Kind::kTrap) && stats.reports[0].detail.find("assertion failed: n <= 64 (reduce.cu:") == 0);
}

// The texts of a fat binary, alone and behind the wrapper that __cudaRegisterFatBinary gets.
void fat_binaries(const std::string &image) {
  alignas(8) static std::byte bytes[1 << 20];
  CHECK(image.size() <= sizeof bytes);
  std::memcpy(bytes, image.data(), image.size());
  const auto texts = ptx_texts(bytes);
  CHECK(texts.size() == 1 && load_module(texts[0]).has_kernel("reduce_by_last"));
  struct {
    uint32_t magic = 0x466243b1, version = 1;
    const void *image = bytes;
    void *unused = nullptr;
  } wrapper;
  CHECK(ptx_texts(&wrapper) == texts);
  bool refused = false;
  try {
    ptx_texts(image.data() + 16);
  } catch (const std::invalid_argument &) {
    refused = true;
  }
  CHECK(refused);
}

}  // namespace

void test_kernels() {
  const std::string reduce = read_file("reduce.ptx"), products = read_file("tensor.ptx");
  if (reduce.empty() || products.empty()) {
    std::printf("skipped: kernels compiled by nvcc, as there is no nvcc\n");
    return;
  }
  reductions(reduce);
  matrix_products(reduce);
  oddities(reduce);
  tensor_products(products);
  fat_binaries(read_file("reduce.fatbin"));
}

}  // namespace testing
