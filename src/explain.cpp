// A problem, its plan and what they cost as JSON; and what this installation can do. Called by api.cpp.
#include "explain.h"

#include <iomanip>
#include <vector>

#include "costs.h"
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

std::string explain_json(const Problem &problem, const Plan &plan, uint32_t wanted) {
  const Costs costs = costs_of(problem, plan, wanted);
  const double bytes = costs.needed.read + costs.needed.written;
  const double intensity = bytes > 0 ? costs.flops / bytes : 0;
  const auto requested = [&](double count) {
    return problem.backend == Backend::kCpu ? "null" : text(std::setprecision(17), count);
  };
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
      .number("bytes_read", costs.needed.read)
      .number("bytes_written", costs.needed.written)
      .json("requested_bytes_read", requested(costs.requested.read))
      .json("requested_bytes_written", requested(costs.requested.written))
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
