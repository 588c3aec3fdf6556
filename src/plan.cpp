// The one place that decides which backend runs a problem, and that says so when none can.
#include "plan.h"

#include "cpu/cpu.h"
#include "cuda_calls.h"
#include "error.h"

namespace flash {

namespace {

// Compute capability 8.0.
constexpr int kLeastCapability = 80;

// The first of NVIDIA's driver branches (580.65 is of 580) that knows a CUDA version.
int driver_branch(int runtime_version) { return runtime_version / 1000 <= 12 ? 525 : 580; }

std::string why_no_device(const CudaFacts &facts) {
  if (facts.driver_version == 0) return text("there is no NVIDIA driver: ", facts.error);
  if (facts.driver_version / 1000 < facts.runtime_version / 1000) {
    return text("the NVIDIA driver is for CUDA ", facts.driver_version / 1000, '.', facts.driver_version % 1000 / 10,
                ", this library needs one for ", facts.runtime_version / 1000, ".0, which is driver ",
                driver_branch(facts.runtime_version), " or later: ", facts.error);
  }
  return facts.error.empty() ? "there is none" : facts.error;
}

}  // namespace

void check_backend(const char *name, Backend backend, int device_id) {
  if (backend == Backend::kCpu) return;
  const CudaFacts &facts = cuda_facts();
  if (!facts.built) {
    fail(FLASH_UNSUPPORTED, name, ": CUDA arrays need a build with CUDA, this library was built without; copy the ",
         "arrays to the CPU");
  }
  if (facts.devices.empty()) {
    fail(FLASH_UNSUPPORTED, name, ": CUDA arrays need a CUDA device, none can be used here (", why_no_device(facts),
         "); copy the arrays to the CPU");
  }
  if (device_id < 0 || device_id >= static_cast<int>(facts.devices.size())) {
    fail(FLASH_INVALID_VALUE, name, ": must be on one of the ", facts.devices.size(), " CUDA devices, got device ",
         device_id);
  }
  const CudaDevice &device = facts.devices[static_cast<size_t>(device_id)];
  if (device.compute_capability < kLeastCapability) {
    fail(FLASH_UNSUPPORTED, name, ": CUDA arrays need a device of compute capability 8.0 or later, device ", device_id,
         " (", device.name, ") has ", device.compute_capability / 10, '.', device.compute_capability % 10,
         "; copy the arrays to the CPU");
  }
}

Plan make_plan(const Problem &problem, uint32_t wanted) {
  check_backend("q", problem.backend, problem.device_id);
  if (problem.backend == Backend::kCpu) return plan_cpu(problem, wanted);
  return plan_cuda(problem, wanted, cuda_facts().devices[static_cast<size_t>(problem.device_id)]);
}

}  // namespace flash
