// The emulated CUDA device behind cuda_runtime.cpp (what the library calls) and emulated.cpp (what tests call): its
// memory, the kernels that were registered with it, and a record of every launch.
//
// A launch runs at once, on the calling thread. What a GPU would do silently becomes a failed launch: the status is
// cudaErrorLaunchFailure and its text the emulator's report. Streams and events order nothing, since nothing overlaps.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "emulator.h"

namespace emulator {

// A launch that has run, for tests that hold counts against formulas.
struct LaunchRecord {
  std::string kernel;
  Dim3 grid, block;
  size_t shared_bytes;
  uint64_t stream;
  int device;
  Stats stats;
};

// What the machine pretends to be, from the environment, read once:
//   EMULATOR_DRIVER    CUDA's number of the newest version that the driver knows, such as 13000; 0 = no driver
//   EMULATOR_DEVICES   compute capabilities, such as "90,80"; "" = no device
//   EMULATOR_RACES     0 = launches start out without Options::races
struct Machine {
  int driver_version;
  std::vector<int> devices;
  bool races;
};
const Machine &machine();

// Most dynamic and static shared memory of one block, when asked for.
size_t shared_limit_bytes(int compute_capability);

// A line of a kernel's PTX that a test has replaced.
struct PlantedFault {
  std::string kernel;
  int ptx_line;
  std::string text;
};

// Functions may be called from several threads at once.
class Device {
 public:
  static Device &get();  // never destroyed: libraries unregister their kernels at exit

  Memory memory;

  // Kernels by the address of their host stub, as nvcc's code registers them. A module is parsed when it is first used.
  void *register_image(const void *fat_binary);
  void register_kernel(void *image, const void *stub, const std::string &name);
  void register_variable(void *image, const void *host, const std::string &name);
  bool has_kernel(const void *stub) const;
  // Whether the kernel's PTX is for such a device: for sm_80 and later ones, or for sm_90 alone if its target is sm_90a.
  bool runs_on(const void *stub, int capability) const;
  std::string name_of_kernel(const void *stub) const;
  std::vector<std::string> kernels() const;
  // Throws std::out_of_range if there is none of this name.
  Module module_of(const std::string &kernel);
  std::string ptx_of(const std::string &kernel) const;
  std::optional<Buffer> variable(const void *host);

  // More than 48 KiB of dynamic shared memory has to be allowed for each kernel and device first.
  void allow_shared_bytes(const void *stub, int device, size_t bytes);
  size_t allowed_shared_bytes(const void *stub, int device) const;

  // Throws Fault.
  void launch(const void *stub, int device, Dim3 grid, Dim3 block, size_t shared_bytes, uint64_t stream,
              const void *const *params);

  // The options of all launches to come.
  Options options() const;
  void set_options(const Options &options);
  // Launches to come get at most so many blocks along x, 0 = as many as they ask for. Right for kernels that stride over
  // their tasks: each block then has several.
  void set_most_blocks(uint32_t blocks);
  // Replaces the fault planted before, if any; nullopt = none. Throws ParseError if the text is no instruction.
  void plant(const std::optional<PlantedFault> &fault);
  // The same with all of the module's text, of which only this kernel is used.
  void plant_text(const std::string &kernel, const std::string &ptx);
  // How often each function of the runtime that needs the driver was called, since the last call of take_calls.
  void count_call(const char *function);
  std::map<std::string, uint64_t> take_calls();
  // Records of launches since the last call; at most the last kMostRecords.
  std::vector<LaunchRecord> take_records();

 private:
  struct Image {
    std::string ptx;
    std::optional<Module> module;
  };
  struct Symbol {
    Image *image;
    std::string name;
  };
  static constexpr size_t kMostRecords = 10'000;

  Image &image_of(const std::string &kernel) const;  // the caller locks
  static Module &parsed(Image &image);

  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<Image>> images_;
  std::map<const void *, Symbol> kernels_, variables_;
  std::map<std::pair<const void *, int>, size_t> allowed_shared_;
  std::optional<Module> faulty_;
  std::string faulty_kernel_;
  Options options_ = [] {
    Options options;
    options.races = machine().races;
    return options;
  }();
  uint32_t most_blocks_ = 0;
  std::map<std::string, uint64_t> calls_;
  std::vector<LaunchRecord> records_;
};

}  // namespace emulator
