// The kernels of lanes_hopper.def, which need a GPU of compute capability 9.0.
#include "row.cuh"

namespace probes {

namespace {
#define PROBE(name, outputs, a, b, c, tolerance, text) PROBE_KERNEL(name, text)
#include "lanes_hopper.def"
#undef PROBE
}  // namespace

std::vector<Probe> hopper_lane_probes() {
  return {
#define PROBE(name, outputs, a, b, c, tolerance, text) probe_of({#name, outputs, a, b, c, tolerance, text, name}),
#include "lanes_hopper.def"
#undef PROBE
  };
}

}  // namespace probes
