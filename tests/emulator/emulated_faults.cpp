// Seeding faults into the library's kernels, for tests/faults.py. What a kernel may be given is found once and kept, with
// the module's text cut down to that kernel: a fault is then parsed in a few milliseconds.
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>

#include "device.h"
#include "emulated.h"
#include "faults.h"
#include "json.h"
#include "statements.h"

namespace emulator {
namespace {

struct Seeds {
  std::string ptx;
  std::vector<SeededFault> faults;
};

const Seeds &seeds_of(const std::string &kernel) {
  static std::mutex mutex;
  static auto *const known = new std::map<std::string, std::unique_ptr<Seeds>>;
  const std::lock_guard lock(mutex);
  std::unique_ptr<Seeds> &seeds = (*known)[kernel];
  if (seeds == nullptr) {
    const std::string ptx = with_only_kernel(Device::get().ptx_of(kernel), kernel);
    seeds = std::make_unique<Seeds>(Seeds{ptx, faults_of(ptx, kernel)});
  }
  return *seeds;
}

std::string json_of(const SeededFault &x) {
  return object({{"kind", quoted(name_of(x.kind))},
                 {"what", quoted(x.what)},
                 {"ptx_line", std::to_string(x.ptx_line)},
                 {"ptx", quoted(x.line.ptx)},
                 {"replacement", quoted(x.replacement)},
                 {"file", quoted(x.line.file)},
                 {"line", std::to_string(x.line.line)},
                 {"caller_file", quoted(x.line.caller_file)},
                 {"caller_line", std::to_string(x.line.caller_line)}});
}

}  // namespace
}  // namespace emulator

const char *emulated_faults(const char *kernel) {
  try {
    return emulator::answered(
        emulator::list(emulator::seeds_of(kernel).faults, [](const auto &x) { return emulator::json_of(x); }));
  } catch (const std::out_of_range &) {
    return nullptr;
  }
}

void emulated_set_most_blocks(unsigned blocks) { emulator::Device::get().set_most_blocks(blocks); }

const char *emulated_seed(const char *kernel, size_t position) {
  try {
    const emulator::Seeds &seeds = emulator::seeds_of(kernel);
    emulator::Device::get().plant_text(kernel, with_fault(seeds.ptx, seeds.faults.at(position)));
    return nullptr;
  } catch (const std::exception &error) {
    return emulator::answered(error.what());
  }
}
