// The kernels of lanes.def, which the emulator runs too.
#include "row.cuh"

namespace probes {

namespace {
#define PROBE(name, outputs, a, b, c, tolerance, text) PROBE_KERNEL(name, text)
#include "lanes.def"
#undef PROBE
}  // namespace

std::vector<Probe> lane_probes() {
  return {
#define PROBE(name, outputs, a, b, c, tolerance, text) probe_of({#name, outputs, a, b, c, tolerance, text, name}),
#include "lanes.def"
#undef PROBE
  };
}

}  // namespace probes
