#include "device.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace emulator {

namespace {

std::vector<int> numbers_of(const char *text) {
  std::vector<int> numbers;
  for (char *end; *text != '\0'; text = *end == ',' ? end + 1 : end) {
    numbers.push_back(static_cast<int>(std::strtol(text, &end, 10)));
    if (end == text) throw std::invalid_argument("EMULATOR_DEVICES: must be numbers with commas between them");
  }
  return numbers;
}

constexpr size_t kKiB = 1024;
constexpr size_t kSharedBytesForAll = 48 * kKiB;

}  // namespace

const Machine &machine() {
  static const Machine machine = [] {
    const char *driver = std::getenv("EMULATOR_DRIVER"), *devices = std::getenv("EMULATOR_DEVICES"),
               *races = std::getenv("EMULATOR_RACES");
    return Machine{driver == nullptr ? 13000 : std::atoi(driver), numbers_of(devices == nullptr ? "90" : devices),
                   races == nullptr || std::atoi(races) != 0};
  }();
  return machine;
}

size_t shared_limit_bytes(int compute_capability) {
  switch (compute_capability) {
    case 75:
      return 64 * kKiB;
    case 80:
    case 87:
      return 163 * kKiB;
    case 90:
    case 100:
    case 103:
      return 227 * kKiB;
    default:
      return 99 * kKiB;
  }
}

Device &Device::get() {
  static auto *const device = new Device;
  return *device;
}

// ---- Kernels

void *Device::register_image(const void *fat_binary) {
  const std::lock_guard lock(mutex_);
  auto image = std::make_unique<Image>();
  // An object without kernels, or one that holds code only, has no text; its kernels can't be launched here.
  if (std::vector<std::string> texts = ptx_texts(fat_binary); !texts.empty()) image->ptx = std::move(texts.front());
  images_.push_back(std::move(image));
  return images_.back().get();
}

void Device::register_kernel(void *image, const void *stub, const std::string &name) {
  const std::lock_guard lock(mutex_);
  kernels_[stub] = {static_cast<Image *>(image), name};
}

void Device::register_variable(void *image, const void *host, const std::string &name) {
  const std::lock_guard lock(mutex_);
  variables_[host] = {static_cast<Image *>(image), name};
}

bool Device::has_kernel(const void *stub) const {
  const std::lock_guard lock(mutex_);
  return kernels_.count(stub) != 0;
}

bool Device::runs_on(const void *stub, int capability) const {
  const std::lock_guard lock(mutex_);
  const std::string &ptx = kernels_.at(stub).image->ptx;
  const size_t at = ptx.find(".target sm_");
  if (at == std::string::npos) return false;
  char *end;
  const auto target = static_cast<int>(std::strtol(ptx.c_str() + at + std::strlen(".target sm_"), &end, 10));
  return *end == 'a' ? capability == target : capability >= target;
}

std::string Device::name_of_kernel(const void *stub) const {
  const std::lock_guard lock(mutex_);
  return kernels_.at(stub).name;
}

std::vector<std::string> Device::kernels() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> names;
  for (const auto &[stub, symbol] : kernels_) names.push_back(symbol.name);
  return names;
}

Device::Image &Device::image_of(const std::string &kernel) const {
  for (const auto &[stub, symbol] : kernels_)
    if (symbol.name == kernel) return *symbol.image;
  throw std::out_of_range("no kernel " + kernel);
}

Module &Device::parsed(Image &image) {
  if (!image.module) image.module = load_module(image.ptx);
  return *image.module;
}

Module Device::module_of(const std::string &kernel) {
  const std::lock_guard lock(mutex_);
  return parsed(image_of(kernel));
}

std::string Device::ptx_of(const std::string &kernel) const {
  const std::lock_guard lock(mutex_);
  return image_of(kernel).ptx;
}

std::optional<Buffer> Device::variable(const void *host) {
  const std::lock_guard lock(mutex_);
  const auto found = variables_.find(host);
  if (found == variables_.end()) return std::nullopt;
  return parsed(*found->second.image).variable(found->second.name);
}

// ---- Launches

void Device::allow_shared_bytes(const void *stub, int device, size_t bytes) {
  const std::lock_guard lock(mutex_);
  allowed_shared_[{stub, device}] = bytes;
}

size_t Device::allowed_shared_bytes(const void *stub, int device) const {
  const std::lock_guard lock(mutex_);
  const auto found = allowed_shared_.find({stub, device});
  return found == allowed_shared_.end() ? kSharedBytesForAll : found->second;
}

void Device::launch(const void *stub, int device, Dim3 grid, Dim3 block, size_t shared_bytes, uint64_t stream,
                    const void *const *params) {
  std::unique_lock lock(mutex_);
  const Symbol symbol = kernels_.at(stub);
  const Module module = faulty_ && faulty_kernel_ == symbol.name ? *faulty_ : parsed(*symbol.image);
  Options options = options_;
  if (most_blocks_ != 0) grid.x = std::min(grid.x, most_blocks_);
  lock.unlock();
  options.shared_limit_bytes = shared_limit_bytes(machine().devices.at(static_cast<size_t>(device)));

  Stats stats = emulator::launch(module, memory, symbol.name, grid, block, shared_bytes, params, options);

  lock.lock();
  if (records_.size() == kMostRecords) records_.erase(records_.begin());
  records_.push_back({symbol.name, grid, block, shared_bytes, stream, device, std::move(stats)});
}

Options Device::options() const {
  const std::lock_guard lock(mutex_);
  return options_;
}

void Device::set_options(const Options &options) {
  const std::lock_guard lock(mutex_);
  options_ = options;
}

void Device::set_most_blocks(uint32_t blocks) {
  const std::lock_guard lock(mutex_);
  most_blocks_ = blocks;
}

void Device::plant(const std::optional<PlantedFault> &fault) {
  const std::lock_guard lock(mutex_);
  faulty_.reset();
  if (!fault) return;
  std::string text = image_of(fault->kernel).ptx;
  size_t begin = 0;
  for (int line = 1; line < fault->ptx_line && begin != std::string::npos; ++line) {
    begin = text.find('\n', begin);
    if (begin != std::string::npos) ++begin;
  }
  if (begin == std::string::npos || fault->ptx_line < 1) {
    throw std::out_of_range("no line " + std::to_string(fault->ptx_line) + " in the PTX of " + fault->kernel);
  }
  const size_t end = text.find('\n', begin);
  text.replace(begin, (end == std::string::npos ? text.size() : end) - begin, fault->text);
  faulty_ = load_module(text);
  faulty_kernel_ = fault->kernel;
}

void Device::plant_text(const std::string &kernel, const std::string &ptx) {
  const std::lock_guard lock(mutex_);
  faulty_.reset();
  faulty_ = load_module(ptx);
  faulty_kernel_ = kernel;
}

void Device::count_call(const char *function) {
  const std::lock_guard lock(mutex_);
  ++calls_[function];
}

std::map<std::string, uint64_t> Device::take_calls() {
  const std::lock_guard lock(mutex_);
  return std::exchange(calls_, {});
}

std::vector<LaunchRecord> Device::take_records() {
  const std::lock_guard lock(mutex_);
  return std::exchange(records_, {});
}

}  // namespace emulator
