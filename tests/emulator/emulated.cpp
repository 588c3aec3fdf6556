#include "emulated.h"

#include <cuda_runtime_api.h>
#include <cxxabi.h>

#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>

#include "device.h"
#include "json.h"

namespace emulator {
namespace {

std::string demangled(const std::string &name) {
  char *const text = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, nullptr);
  const std::string result = text == nullptr ? name : text;
  std::free(text);
  return result;
}

std::string json_of(const Traffic &x) {
  return object({{"name", quoted(x.buffer.name)},
                 {"address", number(x.buffer.address)},
                 {"bytes", number(x.buffer.bytes)},
                 {"read_bytes", number(x.read_bytes)},
                 {"read_sectors", number(x.read_sectors)},
                 {"read_unique_bytes", number(x.read_unique_bytes)},
                 {"written_bytes", number(x.written_bytes)},
                 {"written_sectors", number(x.written_sectors)},
                 {"written_unique_bytes", number(x.written_unique_bytes)},
                 {"written_twice_bytes", number(x.written_twice_bytes)},
                 {"atomic_bytes", number(x.atomic_bytes)}});
}

std::string json_of(const std::optional<Loop> &loop) {
  if (!loop) return "null";
  return object({{"line", quoted(loop->first.text())},
                 {"instructions", number(loop->instructions)},
                 {"fma", number(loop->fma)},
                 {"mma", number(loop->mma)},
                 {"wgmma", number(loop->wgmma)}});
}

std::string json_of(const LaunchRecord &x) {
  const Stats &stats = x.stats;
  std::string opcodes;
  for (const auto &[name, count] : stats.opcodes) {
    opcodes += (opcodes.empty() ? "{" : ",") + quoted(name) + ":" + number(count);
  }
  return object({{"kernel", quoted(x.kernel)},
                 {"name", quoted(demangled(x.kernel))},
                 {"grid", number(x.grid)},
                 {"block", number(x.block)},
                 {"shared_bytes", number(x.shared_bytes)},
                 {"stream", number(x.stream)},
                 {"device", number(static_cast<uint64_t>(x.device))},
                 {"warp_instructions", number(stats.warp_instructions)},
                 {"lane_instructions", number(stats.lane_instructions)},
                 {"opcodes", opcodes.empty() ? "{}" : opcodes + "}"},
                 {"mma", number(stats.mma)},
                 {"wgmma", number(stats.wgmma)},
                 {"matrix_flops", number(stats.matrix_flops)},
                 {"barriers", number(stats.barriers)},
                 {"shared_accesses", number(stats.shared_accesses)},
                 {"shared_wavefronts", number(stats.shared_wavefronts)},
                 {"bank_conflicts", number(stats.bank_conflicts)},
                 {"hottest", json_of(stats.hottest)},
                 {"executed_lines", list(stats.executed_lines, [](int line) { return std::to_string(line); })},
                 {"buffers", list(stats.buffers, [](const Traffic &traffic) { return json_of(traffic); })}});
}

}  // namespace
}  // namespace emulator

using emulator::Device;

void *emulated_allocate(size_t bytes, const char *name) {
  try {
    return Device::get().memory.allocate(bytes, name);
  } catch (const std::bad_alloc &) {
    return nullptr;
  }
}

int emulated_free(void *address) { return Device::get().memory.release(address) ? 1 : 0; }

void emulated_set_options(int order, int copies, uint64_t seed, uint64_t most_instructions, unsigned checks) {
  emulator::Options options;
  options.order = static_cast<emulator::Order>(order);
  options.copies = static_cast<emulator::Copies>(copies);
  options.seed = seed;
  options.max_instructions = most_instructions;
  options.races = (checks & 1) != 0;
  options.uninitialised = (checks & 2) != 0;
  options.traffic = (checks & 4) != 0;
  options.executed_lines = (checks & 8) != 0;
  options.run = (checks & 16) == 0;
  Device::get().set_options(options);
}

const char *emulated_launches(void) {
  return emulator::answered(emulator::list(Device::get().take_records(),
                                           [](const emulator::LaunchRecord &x) { return emulator::json_of(x); }));
}

const char *emulated_kernels(void) {
  return emulator::answered(emulator::list(Device::get().kernels(), emulator::quoted));
}

const char *emulated_ptx(const char *kernel) {
  try {
    return emulator::answered(Device::get().ptx_of(kernel));
  } catch (const std::out_of_range &) {
    return nullptr;
  }
}

const char *emulated_plant(const char *kernel, int ptx_line, const char *text) {
  try {
    if (kernel == nullptr)
      Device::get().plant(std::nullopt);
    else
      Device::get().plant(emulator::PlantedFault{kernel, ptx_line, text});
    return nullptr;
  } catch (const std::exception &error) {
    return emulator::answered(error.what());
  }
}

const char *emulated_calls(void) {
  std::string json;
  for (const auto &[name, count] : Device::get().take_calls()) {
    json += (json.empty() ? "{" : ",") + emulator::quoted(name) + ":" + emulator::number(count);
  }
  return emulator::answered(json.empty() ? "{}" : json + "}");
}

int emulated_last_error(void) { return static_cast<int>(cudaPeekAtLastError()); }

int emulated_devices(void) { return static_cast<int>(emulator::machine().devices.size()); }

int emulated_set_device(int id) { return cudaSetDevice(id) == cudaSuccess ? 1 : 0; }

int emulated_current_device(void) {
  int id = -1;
  return cudaGetDevice(&id) == cudaSuccess ? id : -1;
}
