// A probe runs one instruction, or one short sequence, on given words and shows the words that come out. Recorded on a
// GPU, its columns say what the emulator must do; see README.md.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace probes {

// One word of each lane; or whatever else a probe takes or gives, in the order that its text says.
struct Column {
  std::string name;
  char format;  // x bits, f f32, h f16x2, b bf16x2
  std::vector<uint32_t> words;
};
using Columns = std::vector<Column>;

struct Probe {
  std::string name, text, tolerance;
  std::function<Columns()> inputs;
  // Throws std::runtime_error with the reason if the device refuses.
  std::function<Columns(const Columns &inputs)> run;
};

// A row of lanes.def, lanes_hopper.def. The kernel runs with 32 threads a block; thread i has kLaneWords words at
// in[kLaneWords i], a0-a3 b0 b1 c0-c3 and two that are 0, and writes d0-d3 to out[4 i]; cells[4 i] holds c0-c3.
struct Row {
  const char *name, *outputs, *a, *b, *c, *tolerance, *text;
  void (*kernel)(const uint32_t *in, uint32_t *out, uint32_t *cells);
};
constexpr int kLaneWords = 12;
Probe probe_of(const Row &row);

// Every probe of one source file.
std::vector<Probe> lane_probes();           // lanes.cu
std::vector<Probe> hopper_lane_probes();    // lanes_hopper.cu
std::vector<Probe> hopper_matrix_probes();  // matrix_hopper.cu
std::vector<Probe> hopper_copy_probes();    // copies_hopper.cu

// Pseudo-random words that depend on the names alone.
class Random {
 public:
  explicit Random(const std::string &seed) {
    for (char c : seed) state_ = (state_ ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  }
  uint32_t word() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return static_cast<uint32_t>((z ^ z >> 31) >> 16);
  }
  uint32_t below(uint32_t n) { return word() % n; }

 private:
  uint64_t state_ = 0xcbf29ce484222325u;
};

// Device memory of some words: set from the host, or 0xffffffff.
class Words {
 public:
  explicit Words(size_t count);
  explicit Words(const std::vector<uint32_t> &words);
  Words(const Words &) = delete;
  Words &operator=(const Words &) = delete;
  ~Words();
  uint32_t *data() const { return data_; }
  std::vector<uint32_t> host() const;  // once the device is done

 private:
  size_t count_;
  uint32_t *data_ = nullptr;
};

// Throws if a call of the CUDA runtime failed; the number is its cudaError_t.
void expect(int error, const char *what);

}  // namespace probes
