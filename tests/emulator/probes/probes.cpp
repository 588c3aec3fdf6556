// probes device                        the GPU, its driver and CUDA, in one line
// probes list TABLE                    the names of a table: lanes, hopper
// probes run TABLE [-i FILE] [NAME...] runs them, or all, and prints what went in and came out (the format: README.md)
//
// The inputs are made here, or taken from a file that an earlier run printed, which may lack some probes. On a GPU this records; linked with the
// emulated CUDA runtime it replays. A probe that fails prints `error` and why; the status is then 1.
#include "probes.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <sstream>
#include <stdexcept>

namespace probes {

namespace {

constexpr size_t kLanes = 32;

// ---- Inputs

// A binary format of `exponent` and `fraction` bits, as words of `shift` more bits below.
struct Format {
  int exponent, fraction, shift;
  int bias() const { return (1 << (exponent - 1)) - 1; }
};
constexpr Format kF16{5, 10, 0}, kBf16{8, 7, 0}, kTf32{8, 10, 13}, kF32{8, 23, 0};

uint32_t number(Format f, bool negative, int exponent, uint32_t fraction) {
  const uint32_t field = static_cast<uint32_t>(exponent + f.bias());
  const uint32_t bits =
      negative << (f.exponent + f.fraction) | field << f.fraction | (fraction & ((1u << f.fraction) - 1));
  return bits << f.shift;
}
uint32_t random_number(Format f, Random &r, int low, int high) {
  const int exponent = low + static_cast<int>(r.below(static_cast<uint32_t>(high - low + 1)));
  return number(f, r.word() & 1, exponent, r.word());
}

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// An element of A, B or C of a matrix product; the scenario is the warp's number.
enum Scenario { kOrdinary, kWide, kLargeAndSmall, kSubnormal, kLarge, kNotFinite, kIntegers, kScenarios };
uint32_t element(Format f, bool accumulator, int scenario, Random &r) {
  const bool narrow = f.exponent == 5, negative = r.word() & 1;
  const int smallest = 1 - f.bias();
  if (scenario == kNotFinite && r.below(24) == 0) {  // an infinity or NaN
    return number(f, negative, f.bias() + 1, r.below(3) == 0 ? ~0u : 0);
  }
  switch (scenario) {
    case kWide:  // how far apart terms may be
      return accumulator ? random_number(f, r, narrow ? -14 : -24, narrow ? 15 : 24)
                         : random_number(f, r, narrow ? -14 : -20, narrow ? 15 : 20);
    case kLargeAndSmall: {  // how many bits below the largest term are kept, and whether rounded or cut off
      const int steps = static_cast<int>(r.below(3));
      const int exponent = accumulator ? (steps == 0 ? 0 : narrow ? -12 : -24) : steps == 0 ? 0 : -10 - steps;
      return number(f, negative, exponent, r.below(2) ? r.word() : 0);
    }
    case kSubnormal:
      if (accumulator || narrow) return number(f, negative, smallest - 1 + static_cast<int>(r.below(3)), r.word());
      return r.below(8) == 0 ? number(f, negative, smallest - 1, r.word()) : random_number(f, r, -68, -60);
    case kLarge:
      return accumulator ? random_number(f, r, narrow ? 12 : 28, narrow ? 15 : 34)
                         : random_number(f, r, narrow ? 12 : 14, narrow ? 15 : 17);
    case kIntegers: {  // exact in any order
      const int value = static_cast<int>(r.below(9));
      if (value == 0) return 0;
      const int exponent = static_cast<int>(std::log2(value));
      return number(f, negative, exponent, static_cast<uint32_t>(value << (f.fraction - exponent)));
    }
    default:
      return random_number(f, r, -6, 0);
  }
}
uint32_t element_pair(Format f, bool accumulator, int scenario, Random &r) {
  const uint32_t low = element(f, accumulator, scenario, r);
  return element(f, accumulator, scenario, r) << 16 | low;
}

// NaN comes last: a signalling one, since a GPU gives its canonical NaN for any.
const std::vector<uint32_t> kSpecialF32 = {0x00000000, 0x80000000, 0x00000001, 0x807fffff, 0x00800000, 0x3f800000,
                                           0xbf800000, 0x3f800001, 0x3effffff, 0x7f7fffff, 0xff7fffff, 0x7f800000,
                                           0xff800000, 0x7fc00000, 0x40490fdb, 0x33800000, 0x7fa00001};
const std::vector<uint32_t> kSpecialF16 = {0x0000, 0x8000, 0x0001, 0x83ff, 0x0400, 0x3c00, 0xbc00, 0x3c01, 0x3bff,
                                           0x7bff, 0xfbff, 0x7c00, 0xfc00, 0x7e00, 0x1400, 0x4248, 0x7d01};
const std::vector<uint32_t> kSpecialBf16 = {0x0000, 0x8000, 0x0001, 0x807f, 0x0080, 0x3f80, 0xbf80, 0x3f81, 0x3f7f,
                                            0x7f7f, 0xff7f, 0x7f80, 0xff80, 0x7fc0, 0x3380, 0x4049, 0x7fa1};
const std::vector<uint32_t> kSpecialBits = {0,     1,     ~0u,   0x80000000, 0x7fffffff, 127,
                                            128,   255,   256,   0xffffff80, 0xffffff7f, 32767,
                                            32768, 65535, 65536, 0xffff8000, 0x00ff00ff};

// The i-th special value for lane i, later on one of them in a quarter of the lanes, else something ordinary.
template <class Ordinary>
uint32_t special_or(const std::vector<uint32_t> &special, size_t i, Random &r, const Ordinary &ordinary) {
  const bool pick = r.below(4) == 0;
  const uint32_t other = r.word();
  if (i < special.size()) return special[i];
  return pick ? special[other % special.size()] : ordinary();
}

uint32_t half_of(Format f, const std::vector<uint32_t> &special, size_t i, Random &r) {
  return special_or(special, i, r, [&] { return random_number(f, r, -10, f.exponent == 5 ? 8 : 10); });
}
uint32_t half_pair(Format f, const std::vector<uint32_t> &special, size_t i, Random &r) {
  const uint32_t low = half_of(f, special, i, r);
  return half_of(f, special, kLanes, r) << 16 | low;
}

// Of lane i of all blocks; the letters are explained in lanes.def.
uint32_t input(char letter, size_t i, Random &r) {
  const int scenario = static_cast<int>(i / kLanes) % kScenarios;
  switch (letter) {
    case 'x':
      return special_or(kSpecialBits, i, r, [&] { return r.word(); });
    case 'f':
      return special_or(kSpecialF32, i, r, [&] {
        return r.word() & 1 ? random_number(kF32, r, -126, 127) : random_number(kF32, r, -8, 8);
      });
    case 'h':
      return half_pair(kF16, kSpecialF16, i, r);
    case 'b':
      return half_pair(kBf16, kSpecialBf16, i, r);
    case 'e':
      return special_or(kSpecialF32, i, r, [&] {
        return r.word() & 1
                   ? random_number(kF32, r, -20, 1)
                   : bits_of(static_cast<float>(static_cast<int>(r.below(320u << 16)) - (160 << 16)) / 0x1p16f);
      });
    case 'r': {  // between two values of the narrower format: half-way, next to it or anywhere
      const uint32_t x = random_number(kF32, r, -27, 16);
      const int dropped = r.word() & 1 ? 13 : 16;
      const uint32_t half = 1u << (dropped - 1), tail[] = {half, half - 1, half + 1, x & (2 * half - 1), 0};
      return (x & ~(2 * half - 1)) | tail[r.below(5)];
    }
    case 'i': {
      const float near[] = {0,     1,       2,       126,     127,     128,     255,    32767,
                            65535, 0x1p23f, 0x1p24f, 0x1p31f, 0x1p32f, 0x1p63f, 0x1p64f};
      const uint32_t which = r.below(sizeof near / sizeof *near), off = r.below(5);
      const float x = near[which] + (off == 0 ? 0.5f : off == 1 ? 0.25f : off == 2 ? 1.5f : off == 3 ? -0.5f : 0);
      return special_or(kSpecialF32, i, r, [&] { return bits_of(r.word() & 1 ? x : -x); });
    }
    case 's':
      return r.below(70);
    case 'n':
      return r.below(17);
    case 'l':
      return r.below(kLanes);
    case 'v':
      return r.below(4);
    case 'z':  // random, all, none
      return scenario == 0 ? r.below(2) : scenario == 1;
    case 'k': {
      const uint32_t usual[] = {0x001f, 0x0000, 0x1c1f, 0x1c03, 0x181f, 0x1807, 0x100f, 0x1f00};
      return r.below(3) == 0 ? r.word() & 0x1f1f : usual[r.below(8)];
    }
    case 'H':
      return element_pair(kF16, false, scenario, r);
    case 'B':
      return element_pair(kBf16, false, scenario, r);
    case 'T':
      return element(kTf32, false, scenario, r);
    case 'F':
      return element(kF32, true, scenario, r);
    case 'G':
      return element_pair(kF16, true, scenario, r);
    default:
      throw std::invalid_argument(std::string("no such input: ") + letter);
  }
}

char format_of(char letter) {
  return std::strchr("feriTF", letter) ? 'f' : std::strchr("hHG", letter) ? 'h' : std::strchr("bB", letter) ? 'b' : 'x';
}

// ---- Probes of one warp

struct Slot {
  const char *name, *letters;
  size_t first;  // of the words of a lane
};

Columns inputs_of(const Row &row) {
  const std::string letters = std::string(row.a) + row.b + row.c;
  const bool matrices = letters.find_first_of("HBTFG") != std::string::npos;
  const bool votes = letters.find('z') != std::string::npos;
  const size_t warps = matrices ? kScenarios : votes ? 3 : std::strcmp(row.tolerance, "exact") == 0 ? 2 : 4;
  Columns columns;
  for (const Slot &slot : {Slot{"a", row.a, 0}, {"b", row.b, 4}, {"c", row.c, 6}}) {
    for (size_t k = 0; slot.letters[k] != '\0'; ++k) {
      Column column{slot.name + std::to_string(k), format_of(slot.letters[k]), {}};
      Random r(row.name + column.name);
      for (size_t i = 0; i < kLanes * warps; ++i) column.words.push_back(input(slot.letters[k], i, r));
      columns.push_back(std::move(column));
    }
  }
  // Without inputs one warp says it all.
  if (columns.empty()) columns.push_back({"a0", 'x', std::vector<uint32_t>(kLanes)});
  return columns;
}

Columns run_row(const Row &row, const Columns &inputs) {
  const size_t threads = inputs.at(0).words.size();
  std::vector<uint32_t> in(kLaneWords * threads), cells(4 * threads);
  for (const Column &column : inputs) {
    const size_t k = static_cast<size_t>(column.name.at(1) - '0');
    const size_t at = column.name[0] == 'a' ? k : column.name[0] == 'b' ? 4 + k : 6 + k;
    for (size_t i = 0; i < threads; ++i) in.at(kLaneWords * i + at) = column.words.at(i);
  }
  for (size_t i = 0; i < threads; ++i) std::copy_n(&in[kLaneWords * i + 6], 4, &cells[4 * i]);
  const Words device_in(in), device_out(4 * threads), device_cells(cells);
  const uint32_t *in_data = device_in.data();
  uint32_t *out_data = device_out.data(), *cells_data = device_cells.data();
  void *arguments[] = {&in_data, &out_data, &cells_data};
  const void *kernel = reinterpret_cast<const void *>(row.kernel);
  expect(cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(threads / kLanes)), dim3(kLanes), arguments, 0, nullptr),
         "launch");
  const std::vector<uint32_t> out = device_out.host();
  Columns outputs;
  for (size_t k = 0; row.outputs[k] != '\0'; ++k) {
    Column column{"d" + std::to_string(k), row.outputs[k], {}};
    for (size_t i = 0; i < threads; ++i) column.words.push_back(out[4 * i + k]);
    outputs.push_back(std::move(column));
  }
  return outputs;
}

// ---- Text

void print(const char *what, const Columns &columns) {
  for (const Column &column : columns) {
    std::printf("%s %s %c", what, column.name.c_str(), column.format);
    for (const uint32_t word : column.words) std::printf(" %x", word);
    std::printf("\n");
  }
}

// The inputs of each probe of a recording.
std::map<std::string, Columns> recorded_inputs(const std::string &path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error("can't read " + path);
  std::map<std::string, Columns> inputs;
  std::string line, probe;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    std::string key;
    words >> key;
    if (key == "probe") words >> probe;
    if (key != "in") continue;
    Column column;
    words >> column.name >> column.format >> std::hex;
    for (uint32_t word; words >> word;) column.words.push_back(word);
    inputs[probe].push_back(std::move(column));
  }
  return inputs;
}

std::vector<Probe> table_of(const std::string &name) {
  if (name == "lanes") return lane_probes();
  std::vector<Probe> all;
#ifdef PROBES_OF_HOPPER
  if (name == "hopper") {
    for (const auto &part : {hopper_lane_probes(), hopper_matrix_probes(), hopper_copy_probes()}) {
      all.insert(all.end(), part.begin(), part.end());
    }
  }
#endif
  if (all.empty()) throw std::runtime_error("no table " + name + " in this program");
  return all;
}

// Whether it went well.
bool run(const Probe &probe, const std::map<std::string, Columns> &recorded) {
  const auto found = recorded.find(probe.name);
  const Columns inputs = found != recorded.end() ? found->second : probe.inputs();
  std::printf("probe %s\ntext %s\ntolerance %s\n", probe.name.c_str(), probe.text.c_str(), probe.tolerance.c_str());
  print("in", inputs);
  std::fflush(stdout);
  try {
    print("out", probe.run(inputs));
    return true;
  } catch (const std::exception &error) {
    std::printf("error %s\n", error.what());
    return false;
  }
}

void print_device() {
  cudaDeviceProp device;
  int driver = 0, runtime = 0;
  expect(cudaGetDeviceProperties(&device, 0), "the device");
  expect(cudaDriverGetVersion(&driver), "the driver");
  expect(cudaRuntimeGetVersion(&runtime), "the runtime");
  std::printf("%s, compute capability %d.%d, driver for CUDA %d.%d, compiled with CUDA %d.%d\n", device.name,
              device.major, device.minor, driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
}

}  // namespace

Probe probe_of(const Row &row) {
  return {row.name, row.text, row.tolerance, [row] { return inputs_of(row); },
          [row](const Columns &inputs) { return run_row(row, inputs); }};
}

Words::Words(size_t count) : count_(count) {
  void *data = nullptr;
  expect(cudaMalloc(&data, count * sizeof(uint32_t)), "cudaMalloc");
  data_ = static_cast<uint32_t *>(data);
  expect(cudaMemset(data_, 0xff, count * sizeof(uint32_t)), "cudaMemset");
}
Words::Words(const std::vector<uint32_t> &words) : Words(words.size()) {
  expect(cudaMemcpy(data_, words.data(), count_ * sizeof(uint32_t), cudaMemcpyHostToDevice), "cudaMemcpy");
}
Words::~Words() { cudaFree(data_); }
std::vector<uint32_t> Words::host() const {
  expect(cudaDeviceSynchronize(), "the kernel");
  std::vector<uint32_t> words(count_);
  expect(cudaMemcpy(words.data(), data_, count_ * sizeof(uint32_t), cudaMemcpyDeviceToHost), "cudaMemcpy");
  return words;
}

void expect(int error, const char *what) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(static_cast<cudaError_t>(error)));
}

}  // namespace probes

int main(int count, char **arguments) {
  using namespace probes;
  std::vector<std::string> words(arguments + 1, arguments + count);
  try {
    const std::string command = words.empty() ? "" : words[0];
    if (command == "device") {
      print_device();
      return 0;
    }
    if ((command != "list" && command != "run") || words.size() < 2) {
      std::fprintf(stderr, "probes device | list TABLE | run TABLE [-i FILE] [NAME...]\n");
      return 2;
    }
    const std::vector<Probe> table = table_of(words[1]);
    std::map<std::string, Columns> recorded;
    words.erase(words.begin(), words.begin() + 2);
    const bool from_file = words.size() >= 2 && words[0] == "-i";
    if (from_file) {
      recorded = recorded_inputs(words[1]);
      words.erase(words.begin(), words.begin() + 2);
    }
    bool well = true;
    for (const Probe &probe : table) {
      if (!words.empty() && std::find(words.begin(), words.end(), probe.name) == words.end()) continue;
      if (from_file && recorded.count(probe.name) == 0) continue;
      if (command == "list")
        std::printf("%s\n", probe.name.c_str());
      else
        well = run(probe, recorded) && well;
    }
    return well ? 0 : 1;
  } catch (const std::exception &error) {
    std::fprintf(stderr, "probes: %s\n", error.what());
    return 2;
  }
}
