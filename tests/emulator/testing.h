// What the emulator's tests share: CHECK, PTX snippets run in one warp, launches whose reports are looked at.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "emulator.h"
#include "number.h"

namespace testing {

extern int passed, failed;
void check(bool ok, const char *file, int line, const std::string &what);
#define CHECK(condition) testing::check(condition, __FILE__, __LINE__, #condition)

void test_instructions();
void test_memory();
void test_warps();
void test_races();
void test_kernels();
void test_hopper();
void test_wgmma();
void test_hopper_kernel();
void test_faults();

// A PTX module around one kernel.
inline std::string module_text(const std::string &parameters, const std::string &body,
                               const std::string &globals = "") {
  return ".version 9.0\n.target sm_80\n.address_size 64\n" + globals + "\n.visible .entry k(" + parameters + ")\n{\n" +
         body + "\n}\n";
}

// Runs `code` once in each of 32 lanes: input k is the register %a<k>, of the width of its elements, and the result is
// %r. More registers: %p<8>, %h<8> (16 bits), %w<8> (32), %d<8> (64).
template <class R, class... A>
std::vector<R> run(const std::string &code, const std::vector<A> &...inputs) {
  emulator::Memory memory;
  std::string parameters = ".param .u64 out",
              body =
                  ".reg .pred %p<8>; .reg .b16 %h<8>; .reg .b32 %w<8>; .reg .b64 %d<8>, %at, %base; .reg .b32 %tid;\n"
                  "mov.u32 %tid, %tid.x;\n.reg .b" +
                  std::to_string(8 * sizeof(R)) + " %r;\n";
  int k = 0;
  std::vector<void *> buffers;
  const auto add = [&](const void *data, size_t element, size_t count) {
    const std::string n = std::to_string(k++), bits = std::to_string(8 * element);
    parameters += ", .param .u64 in" + n;
    body += ".reg .b" + bits + " %a" + n + "; ld.param.u64 %base, [in" + n + "];\nmul.wide.u32 %at, %tid, " +
            std::to_string(element) + "; add.s64 %at, %base, %at; ld.global.b" + bits + " %a" + n + ", [%at];\n";
    buffers.push_back(memory.allocate(element * count));
    std::memcpy(buffers.back(), data, element * count);
  };
  (add(inputs.data(), sizeof(A), inputs.size()), ...);
  body += "{\n" + code + "\n}\nld.param.u64 %base, [out]; mul.wide.u32 %at, %tid, " + std::to_string(sizeof(R)) +
          "; add.s64 %at, %base, %at; st.global.b" + std::to_string(8 * sizeof(R)) + " [%at], %r;\nret;";
  std::vector<R> result(32);
  void *out = memory.allocate(32 * sizeof(R));
  std::vector<const void *> params{&out};
  for (void *&buffer : buffers) params.push_back(&buffer);
  emulator::launch(emulator::load_module(module_text(parameters, body)), memory, "k", {}, {32}, 0, params.data());
  std::memcpy(result.data(), out, 32 * sizeof(R));
  return result;
}

// Launches a kernel `k` of the text with one pointer parameter, "buffer" of 4096 bytes of 0xff, and collects reports.
struct Launched {
  emulator::Stats stats;
  std::vector<uint32_t> words;  // of the buffer afterwards
  bool has(emulator::Kind kind) const {
    for (const emulator::Report &report : stats.reports) {
      if (report.kind == kind) return true;
    }
    return false;
  }
  bool clean() const {
    for (const emulator::Report &report : stats.reports) std::printf("%s\n", report.text().c_str());
    return stats.reports.empty();
  }
};
inline Launched launched(const std::string &body, uint32_t threads = 32, uint32_t blocks = 1, size_t shared_bytes = 0,
                         emulator::Options options = {}, const std::string &globals = "") {
  emulator::Memory memory;
  void *buffer = memory.allocate(4096, "buffer");
  const void *params[] = {&buffer};
  options.collect = true;
  if (options.max_instructions == 0) options.max_instructions = 10000000;
  const std::string text = module_text(
      ".param .u64 buffer",
      ".reg .pred %p<8>; .reg .b16 %h<8>; .reg .b32 %r<24>; .reg .b64 %d<8>; .reg .f32 %f<16>; .reg .b64 %buffer;\n"
      ".reg .b32 %tid, %lane, %four;\nld.param.u64 %buffer, [buffer]; cvta.to.global.u64 %buffer, %buffer;\n"
      "mov.u32 %tid, %tid.x; mov.u32 %lane, %laneid; shl.b32 %four, %tid, 2;\n" +
          body,
      globals);
  Launched result;
  result.stats =
      emulator::launch(emulator::load_module(text), memory, "k", {blocks}, {threads}, shared_bytes, params, options);
  result.words.resize(1024);
  std::memcpy(result.words.data(), buffer, 4096);
  return result;
}
// Stores a 32-bit register to buffer[4 tid].
inline std::string put(const std::string &reg) {
  return "cvt.u64.u32 %d7, %four; add.s64 %d7, %buffer, %d7; st.global.b32 [%d7], " + reg + ";\n";
}

// 32 values: the given ones, then bits from a fixed sequence.
template <class T>
std::vector<T> values(std::vector<T> first, uint64_t seed = 1) {
  uint64_t state = seed * 0x9e3779b97f4a7c15u;
  while (first.size() < 32) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const uint64_t bits = state >> 11 ^ state << 40;
    T value;
    std::memcpy(&value, &bits, sizeof value);
    first.push_back(value);
  }
  return first;
}
// The same for floats of ordinary size.
template <class T>
std::vector<T> floats(std::vector<T> first, uint64_t seed = 1) {
  for (uint32_t bits : values<uint32_t>({}, seed)) {
    if (first.size() < 32) first.push_back(static_cast<T>(static_cast<int32_t>(bits)) / T{1 << 28});
  }
  return first;
}

// Equal bits, or both NaN.
template <class T>
bool same(T a, T b) {
  if (a != a && b != b) return true;
  return std::memcmp(&a, &b, sizeof a) == 0;
}

// Checks `got[lane]` against model(inputs of the lane).
template <class R, class F, class... A>
void check_lanes(const char *file, int line, const std::string &what, const std::vector<R> &got, F model,
                 const std::vector<A> &...inputs) {
  bool ok = true;
  std::string where;
  for (size_t lane = 0; lane < 32; ++lane) {
    const R wanted = static_cast<R>(model(inputs[lane]...));
    if (same(got[lane], wanted)) continue;
    if (ok)
      where =
          ": lane " + std::to_string(lane) + " got " + std::to_string(got[lane]) + ", wanted " + std::to_string(wanted);
    ok = false;
  }
  check(ok, file, line, what + where);
}
#define CHECK_LANES(R, code, model, ...) \
  testing::check_lanes<R>(__FILE__, __LINE__, code, testing::run<R>(code, __VA_ARGS__), model, __VA_ARGS__)

}  // namespace testing
