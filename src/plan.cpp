// The one place that decides which backend runs a problem, and that says so when none can.
#include "plan.h"

#include "cpu/cpu.h"
#include "error.h"

namespace flash {

void check_backend(const char *name, Backend backend) {
  if (backend == Backend::kCpu) return;
  const CudaFacts &facts = cuda_facts();
  if (!facts.built) {
    fail(FLASH_UNSUPPORTED, name, ": CUDA arrays need a build with CUDA, this library was built without; copy the ",
         "arrays to the CPU");
  }
  if (facts.devices.empty()) {
    fail(FLASH_UNSUPPORTED, name, ": CUDA arrays need a CUDA device, none can be used here (",
         facts.error.empty() ? "there is none" : facts.error, "); copy the arrays to the CPU");
  }
  fail(FLASH_UNSUPPORTED, name, ": CUDA arrays aren't supported yet: the CUDA kernels are not part of this version; ",
       "copy the arrays to the CPU");
}

Plan make_plan(const Problem &problem, uint32_t wanted) {
  check_backend("q", problem.backend);
  return plan_cpu(problem, wanted);
}

}  // namespace flash
