// What a plan costs, by counting: FLOPs from the exact number of visible pairs, bytes as if every element that is needed
// moved once (tiles of k and v that are read again come from a cache). Called by api.cpp.
#include "explain.h"

#include <iomanip>
#include <vector>

#include "device.h"
#include "error.h"

namespace flash {
namespace {

// ---- JSON

std::string quoted(const std::string &from) {
  std::string result = "\"";
  for (const char c : from) {
    if (c == '"' || c == '\\') {
      result += '\\';
      result += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      result += text("\\u", std::hex, std::setw(4), std::setfill('0'), static_cast<int>(c));
    } else {
      result += c;
    }
  }
  return result + '"';
}

class JsonObject {
 public:
  JsonObject &json(const char *key, const std::string &value) {
    members_ += (members_.empty() ? "" : ", ") + quoted(key) + ": " + value;
    return *this;
  }
  JsonObject &string(const char *key, const std::string &value) { return json(key, quoted(value)); }
  // 17 digits, so that counts up to 2^53 are written in full.
  JsonObject &number(const char *key, double value) { return json(key, text(std::setprecision(17), value)); }
  JsonObject &number(const char *key, int64_t value) { return json(key, std::to_string(value)); }
  JsonObject &number(const char *key, int value) { return json(key, std::to_string(value)); }
  JsonObject &boolean(const char *key, bool value) { return json(key, value ? "true" : "false"); }
  std::string done() const { return "{" + members_ + "}"; }

 private:
  std::string members_;
};

std::string json_list(const std::vector<std::string> &values) {
  std::string result;
  for (const std::string &value : values) result += (result.empty() ? "" : ", ") + value;
  return "[" + result + "]";
}

// ---- Counting

int64_t length(Interval x) { return larger(0, x.end - x.begin); }

// The visible pairs of a rectangle of the score matrix. Rows end before q_len.
int64_t pairs_within(Window window, Sequence sequence, Interval rows, Interval keys) {
  if (empty(rows) || empty(intersection(keys, keys_of_any(window, sequence, rows)))) return 0;
  const Interval all = keys_of_all(window, sequence, rows);
  if (all.begin <= keys.begin && keys.end <= all.end) return length(rows) * length(keys);
  int64_t pairs = 0;
  for (int64_t i = rows.begin; i < rows.end; ++i) pairs += length(intersection(keys, keys_of(window, sequence, i)));
  return pairs;
}

int64_t pairs_in_blocks(const Problem &problem, Sequence sequence, int64_t b, int64_t h) {
  const BlockMaskView &blocks = problem.blocks;
  const int32_t *start = blocks.row_start + b * blocks.row_batch + h * blocks.row_head;
  int64_t pairs = 0;
  for (int64_t r = 0; r < ceil_div(problem.Lq, blocks.block_q); ++r) {
    const Interval rows{r * blocks.block_q, smaller((r + 1) * blocks.block_q, sequence.q_len)};
    for (int64_t n = start[r * blocks.row_stride]; n < start[(r + 1) * blocks.row_stride]; ++n) {
      const int64_t first_key = blocks.columns[n * blocks.columns_stride] * blocks.block_k;
      pairs += pairs_within(problem.window, sequence, rows,
                            {first_key, smaller(first_key + blocks.block_k, sequence.kv_len)});
    }
  }
  return pairs;
}

// What can be known of a problem without reading its arrays, as on CUDA: whole sequences and no block mask.
Problem unread(Problem problem) {
  problem.q_lens = problem.kv_lens = problem.q_offsets = {};
  problem.blocks = {};
  return problem;
}
bool has_unread_values(const Problem &problem) {
  return problem.backend == Backend::kCuda && (problem.q_lens.data != nullptr || problem.kv_lens.data != nullptr ||
                                               problem.q_offsets.data != nullptr || problem.blocks.block_q != 0);
}

// The share of all blocks that a block mask lists.
double listed_share(const Problem &problem) {
  const BlockMaskView &blocks = problem.blocks;
  if (blocks.block_q == 0) return 1;
  const auto grid = static_cast<double>(ceil_div(problem.Lq, blocks.block_q) * ceil_div(problem.Lk, blocks.block_k)) *
                    static_cast<double>(blocks.row_batch != 0 ? problem.B : 1) *
                    static_cast<double>(blocks.row_head != 0 ? problem.Hq : 1);
  return grid > 0 ? static_cast<double>(blocks.nnz) / grid : 0;
}

// The elements of a mask or bias before broadcasting: axes of extent 1 and broadcast ones have stride 0.
double own_elements(const ScoresView &view, const Problem &problem) {
  if (view.data == nullptr) return 0;
  double count = 1;
  for (int axis = 0; axis < view.batch.rank; ++axis) {
    if (view.batch.stride[axis] != 0) count *= static_cast<double>(view.batch.extent[axis]);
  }
  if (view.head != 0) count *= static_cast<double>(problem.Hq);
  if (view.row != 0) count *= static_cast<double>(problem.Lq);
  if (view.column != 0) count *= static_cast<double>(problem.Lk);
  return count;
}

struct Costs {
  double pairs, flops, bytes_read, bytes_written, standard_bytes;
};

double bytes_of(DType dtype, double count) { return static_cast<double>(size_bytes(dtype)) * count; }

Costs costs_of(const Problem &problem, uint32_t wanted) {
  const bool backward = wanted != 0;
  const auto Hq = static_cast<double>(problem.Hq), Hk = static_cast<double>(problem.Hk);
  const auto D = static_cast<double>(problem.D), Dv = static_cast<double>(problem.Dv);
  const auto B = static_cast<double>(problem.B), Lq = static_cast<double>(problem.Lq);
  const auto Lk = static_cast<double>(problem.Lk);
  const DType dtype = problem.dtype, sum = sum_dtype(dtype);
  const DType result = dtype == DType::kFloat8 ? DType::kBfloat16 : dtype;  // of o, and of a score matrix in memory

  Costs costs{};
  costs.pairs = visible_pairs(problem);
  // Two products of the forward, s and o; five of the backward: s again, dp, and dq, dk, dv.
  costs.flops = 2 * costs.pairs * (backward ? 3 * D + 2 * Dv : D + Dv);

  double queries = 0, keys = 0;  // that some pair may need
  const Problem &lengths = problem.backend == Backend::kCuda ? unread(problem) : problem;
  for (int64_t b = 0; b < problem.B; ++b) {
    const Sequence sequence = sequence_of(lengths, b);
    queries += static_cast<double>(length(queries_of_any(problem.window, sequence, {0, sequence.kv_len})));
    keys += static_cast<double>(length(keys_of_any(problem.window, sequence, {0, sequence.q_len})));
  }
  const auto score_bytes = [&](const ScoresView &view) {
    const double own = own_elements(view, problem);
    return bytes_of(view.dtype, own < costs.pairs ? own : costs.pairs);
  };
  costs.bytes_read = bytes_of(dtype, queries * Hq * D + keys * Hk * (D + Dv));
  if (problem.mask.data != nullptr) costs.bytes_read += score_bytes(problem.mask);
  if (problem.bias.data != nullptr) costs.bytes_read += score_bytes(problem.bias);

  if (!backward) {
    costs.bytes_written = bytes_of(result, B * Lq * Hq * Dv) + bytes_of(sum, B * Lq * Hq);
  } else {
    costs.bytes_read += bytes_of(dtype, 2 * queries * Hq * Dv) + bytes_of(sum, queries * Hq);  // do and o; lse
    if (wanted & FLASH_DQ) costs.bytes_written += bytes_of(dtype, B * Lq * Hq * D);
    if (wanted & FLASH_DK) costs.bytes_written += bytes_of(dtype, B * Lk * Hk * D);
    if (wanted & FLASH_DV) costs.bytes_written += bytes_of(dtype, B * Lk * Hk * Dv);
    if (wanted & FLASH_DBIAS) costs.bytes_written += bytes_of(problem.bias.dtype, own_elements(problem.bias, problem));
    if (wanted & FLASH_DSINKS) costs.bytes_written += bytes_of(problem.sinks.dtype, Hq);
  }
  // Forward: s and p are each written and read. Backward: p read for dv, dp written, p and dp read, ds written, and read
  // for dq and for dk.
  costs.standard_bytes = bytes_of(result, (backward ? 7 : 4) * B * Hq * Lq * Lk);
  return costs;
}

// FLOPs per byte of memory traffic at which arithmetic and memory take equally long. A rule of thumb, from data sheets:
// 5 TFLOP/s at 300 GB/s for a 32-core AVX-512 server, 1 TFLOP/s at 60 GB/s for an 8-core AVX2 desktop; in float32 without
// tensor cores 19.5 TFLOP/s at 1.6 TB/s for an A100, 67 at 3.4 for an H100.
constexpr double kFlopsPerByte = 16;

#if defined(__clang__)
constexpr const char *kCompiler = "Clang " __clang_version__;
#elif defined(__GNUC__)
constexpr const char *kCompiler = "GCC " __VERSION__;
#else
constexpr const char *kCompiler = "unknown";
#endif

std::string build_json() {
  JsonObject build;
#ifdef __OPTIMIZE__
  build.boolean("optimized", true);
#else
  build.boolean("optimized", false);
#endif
#ifdef _OPENMP
  build.number("openmp", _OPENMP);
#else
  build.json("openmp", "null");
#endif
#if defined(__SANITIZE_ADDRESS__)
  build.boolean("address_sanitizer", true);
#endif
  return build.done();
}

std::string cpu_json() {
  JsonObject cpu;
  // A bad FLASH_CPU fails every other call; here it is what the reader is looking for.
  try {
    cpu.string("path", name(cpu_path()));
  } catch (const Error &error) {
    cpu.json("path", "null").string("error", error.message);
  }
  std::vector<std::string> available;
  for (int n = 0; n < kCpuPaths; ++n) {
    const auto path = static_cast<CpuPath>(n);
    if (has_cpu_path(path)) available.push_back(quoted(name(path)));
  }
  return cpu.json("available", json_list(available)).number("threads", cpu_threads()).done();
}

// CUDA writes 13.0 as 13000.
std::string cuda_version_text(int version) { return text(version / 1000, '.', version % 1000 / 10); }

std::string cuda_json() {
  const CudaFacts &facts = cuda_facts();
  JsonObject cuda;
  cuda.boolean("built", facts.built);
  const auto add_version = [&](const char *key, int version) {
    cuda.json(key, version == 0 ? "null" : quoted(cuda_version_text(version)));
  };
  add_version("runtime", facts.runtime_version);
  add_version("driver", facts.driver_version);
  cuda.json("error", facts.error.empty() ? "null" : quoted(facts.error));
  std::vector<std::string> devices;
  for (const CudaDevice &device : facts.devices) {
    devices.push_back(
        JsonObject{}
            .string("name", device.name)
            .string("compute_capability", text(device.compute_capability / 10, '.', device.compute_capability % 10))
            .number("multiprocessors", device.multiprocessors)
            .number("shared_bytes", device.shared_bytes)
            .number("memory_bytes", device.memory_bytes)
            .done());
  }
  return cuda.json("devices", json_list(devices)).done();
}

// By kernel, in the order in which they start.
std::string launches_json(const Plan &plan) {
  JsonObject launches;
  for (const KernelLaunch &launch : plan.launches) {
    const std::string head_dim = launch.head_dim == 0 ? "any" : std::to_string(launch.head_dim);
    const std::string kernel =
        text(name(launch.operation), '<', head_dim, launch.has_options ? ", options>" : ", plain>");
    launches.json(kernel.c_str(), JsonObject{}
                                      .number("blocks", launch.blocks)
                                      .number("threads", launch.threads)
                                      .number("shared_bytes", launch.shared_bytes)
                                      .done());
  }
  return launches.done();
}

}  // namespace

double visible_pairs(const Problem &problem) {
  if (has_unread_values(problem)) return visible_pairs(unread(problem)) * listed_share(problem);
  const auto Hq = static_cast<double>(problem.Hq);
  const bool has_blocks = problem.blocks.block_q != 0, per_head = has_blocks && problem.blocks.row_head != 0;
  double total = 0, pairs = 0;
  Sequence previous{-1, -1, 0};
  for (int64_t b = 0; b < problem.B; ++b) {
    const Sequence sequence = sequence_of(problem, b);
    const bool same = sequence.q_len == previous.q_len && sequence.kv_len == previous.kv_len &&
                      sequence.offset == previous.offset && (!has_blocks || problem.blocks.row_batch == 0);
    previous = sequence;
    if (!same) {
      pairs = 0;
      if (has_blocks) {
        for (int64_t h = 0; h < (per_head ? problem.Hq : 1); ++h) {
          pairs += static_cast<double>(pairs_in_blocks(problem, sequence, b, h));
        }
        if (!per_head) pairs *= Hq;
      } else {
        pairs =
            Hq * static_cast<double>(pairs_within(problem.window, sequence, {0, sequence.q_len}, {0, sequence.kv_len}));
      }
    }
    total += pairs;
  }
  return total;
}

std::string explain_json(const Problem &problem, const Plan &plan, uint32_t wanted) {
  const Costs costs = costs_of(problem, wanted);
  const double bytes = costs.bytes_read + costs.bytes_written;
  const double intensity = bytes > 0 ? costs.flops / bytes : 0;
  return JsonObject{}
      .string("backend", problem.backend == Backend::kCpu ? "cpu" : "cuda")
      .string("kernel", plan.kernel)
      .string("path", plan.path)
      .json("limit", plan.limit == nullptr ? "null" : quoted(plan.limit))
      .string("operation", wanted == 0 ? "forward" : "backward")
      .string("dtype", name(problem.dtype))
      .json("shape", JsonObject{}
                         .number("B", problem.B)
                         .number("Lq", problem.Lq)
                         .number("Lk", problem.Lk)
                         .number("Hq", problem.Hq)
                         .number("Hk", problem.Hk)
                         .number("D", problem.D)
                         .number("Dv", problem.Dv)
                         .done())
      .json("tiles", JsonObject{}.number("block_q", plan.block_q).number("block_k", plan.block_k).done())
      .number("tasks", plan.tasks)
      .number("workers", plan.workers)
      .json("launches", launches_json(plan))
      .number("flops", costs.flops)
      .number("visible_pairs", costs.pairs)
      .boolean("is_estimate", has_unread_values(problem))
      .number("bytes_read", costs.bytes_read)
      .number("bytes_written", costs.bytes_written)
      .number("workspace_bytes", static_cast<int64_t>(workspace_bytes(plan)))
      .number("standard_bytes", costs.standard_bytes)
      .number("arithmetic_intensity", intensity)
      .string("bound", intensity > kFlopsPerByte ? "compute" : "memory")
      .done();
}

std::string config_json() {
  return JsonObject{}
      .string("version", text(FLASH_VERSION_MAJOR, '.', FLASH_VERSION_MINOR, '.', FLASH_VERSION_PATCH))
      .string("compiler", kCompiler)
      .json("build", build_json())
      .json("cpu", cpu_json())
      .json("cuda", cuda_json())
      .done();
}

}  // namespace flash
