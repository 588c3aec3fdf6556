// mbarriers, bulk and tensor copies against models of the PTX ISA's text, and their misuse: each report with the kernel that
// earns it and its twin that doesn't. A whole kernel is in test_hopper_kernel.cpp.
#include <algorithm>
#include <cmath>
#include <optional>
#include <stdexcept>

#include "tensor_map.h"
#include "testing_hopper.h"

using namespace emulator;

namespace testing {

namespace {

// ---- mbarriers

void phases() {
  // What test_wait answers for both parities after each step, as two bits of a word.
  int asked = 0;
  const auto ask = [&] {
    const std::string shift = std::to_string(2 * asked++);
    return "mbarrier.test_wait.parity.shared::cta.b64 %p0, [%r21], 0; selp.b32 %r1, 1, 0, %p0; shl.b32 %r1, %r1, " +
           shift +
           "; or.b32 %r0, %r0, %r1; mbarrier.test_wait.parity.shared.b64 %p0, [%r21], 1; selp.b32 %r1, 2, 0, %p0; "
           "shl.b32 %r1, %r1, " +
           shift + "; or.b32 %r0, %r0, %r1;\n";
  };
  const auto answers = [&](const std::string &steps) {
    asked = 0;
    return run_block("mov.b32 %r0, 0;" + steps + put("%r0"), 1).words[0];
  };
  constexpr uint32_t kFirst = 2, kSecond = 1;  // the phase under way has an even or odd number
  const std::string arrive = "mbarrier.arrive.shared::cta.b64 %d0, [%r21];";
  std::string text = init(3) + ask() + arrive + ask();
  text += "mbarrier.arrive.shared.b64 _, [%r21], 2;" + ask() +
          "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r21], 3;";
  CHECK(answers(text + ask()) == (kFirst | kFirst << 2 | kSecond << 4 | kFirst << 6));
  // Asking is not waiting, however often.
  text = init(1);
  for (int k = 0; k < 12; ++k) text += ask();
  CHECK(run_block("mov.b32 %r0, 0;" + text, 1).clean());
  asked = 0;
  // Bytes: expected with an arrival, alone, or after they have come.
  text = init(1) + "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r21], 48;" + ask();
  text += "mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%r21], 16;" + ask();
  text += "mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%r21], 32;";
  CHECK(answers(text + ask()) == (kFirst | kFirst << 2 | kSecond << 4));
  text = init(1) + "mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%r21], 16;" + ask();
  CHECK(answers(text + "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r21], 16;" + ask()) == (kFirst | kSecond << 2));
  text = init(1) + "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%r21], 16;" + arrive + ask();
  CHECK(answers(text + "mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%r21], 16;" + ask()) ==
        (kFirst | kSecond << 2));
  // A state is over when its phase is, and stays so.
  text = init(1) + arrive + "mbarrier.test_wait.shared::cta.b64 %p0, [%r21], %d0; selp.b32 %r0, 1, 0, %p0;";
  text +=
      "mbarrier.arrive.shared::cta.b64 %d1, [%r21]; mbarrier.test_wait.shared::cta.b64 %p0, [%r21], %d0; selp.b32 "
      "%r1, 2, 0, %p0; or.b32 %r0, %r0, %r1;";
  CHECK(answers(text) == 3);
  text = init(2) + arrive +
         "mbarrier.pending_count.b64 %r1, %d0; mbarrier.arrive.shared::cta.b64 %d0, [%r21];"
         "mbarrier.pending_count.b64 %r0, %d0; shl.b32 %r1, %r1, 4; or.b32 %r0, %r0, %r1;";
  CHECK(answers(text) == 0x21);
  // Who drops out isn't waited for again.
  text = init(2) + "mbarrier.arrive_drop.shared::cta.b64 _, [%r21];" + arrive + ask();
  CHECK(answers(text + arrive + ask()) == (kSecond | kFirst << 2));
  // Invalidated, and made anew.
  CHECK(answers(init(1) + arrive + "mbarrier.inval.shared::cta.b64 [%r21];" + init(2) + arrive + ask()) == kFirst);
  CHECK(run_block(
            "mapa.shared::cluster.u32 %r1, %r21, 0; sub.u32 %r1, %r1, %r21; mov.u32 %r2, %cluster_nctarank; add.u32 "
            "%r1, %r1, %r2;" +
                put("%r1"),
            1)
            .words[0] == 1);
}

void mbarrier_order() {
  const std::string write = "@%p7 st.shared.u32 [%r20], 5;", read = "ld.shared.u32 %r1, [%r20];",
                    arrive = "mbarrier.arrive.shared::cta.b64 _, [%r21];", set_up = init(1) + kMeet;
  // A message: thread 0 arrives, the others wait.
  const auto message = [&](const std::string &arrives, const std::string &waits) {
    return set_up + write + "@%p7 " + arrives + waits + read;
  };
  CHECK(reports(message(arrive, wait(0, 0)), std::nullopt, 64));
  CHECK(reports(message(arrive, ""), Kind::kRace, 64));
  CHECK(reports(message(arrive, wait(0, 1)), Kind::kRace, 64, Kind::kDeadlock));  // the phase before, or after
  CHECK(reports(message("mbarrier.arrive.relaxed.cta.shared::cta.b64 _, [%r21];", wait(0, 0)), Kind::kRace, 64));
  CHECK(reports(set_up + "@%p7 " + arrive + write + wait(0, 0) + read, Kind::kRace, 64));
  CHECK(reports(message("mov.u32 %r9, 0;", wait(0, 0)), Kind::kDeadlock, 64));
  // Only one lane waits; the rest of the warp hears of it, or not.
  const std::string one = "setp.eq.u32 %p5, %lane, 0; @!%p5 bra over;" + wait(0, 0) + "over: ";
  CHECK(reports(message(arrive, one + "bar.warp.sync -1;"), std::nullopt, 64));
  CHECK(reports(message(arrive, one), Kind::kRace, 64));
  // Use before the init is ordered, without any, of something else, and over it.
  CHECK(reports(init(32) + "bar.warp.sync -1;" + arrive, std::nullopt));
  CHECK(reports(init(32) + arrive, Kind::kRace));
  CHECK(reports(arrive, Kind::kMbarrier));
  CHECK(reports(set_up + "mbarrier.arrive.shared::cta.b64 _, [%r21+8];", Kind::kMbarrier));
  CHECK(reports(set_up + "mbarrier.arrive.shared::cta.b64 _, [%r21+4];", Kind::kMisaligned));
  CHECK(reports(set_up + "ld.shared.u32 %r1, [%r21+4];", Kind::kMbarrier));
  CHECK(reports(set_up + "@%p7 st.shared.u8 [%r21+7], %h0;", Kind::kMbarrier));
  CHECK(reports(set_up + "@%p7 st.shared.u8 [%r21+8], %h0;", std::nullopt));
  CHECK(reports(set_up + init(1), Kind::kMbarrier));
  // Counts.
  CHECK(reports(init(0), Kind::kMbarrier));
  CHECK(reports(set_up + "@%p7 mbarrier.arrive.shared::cta.b64 _, [%r21], 2;", Kind::kMbarrier));
  CHECK(reports(set_up + "@%p7 mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%r21], 1048576;", Kind::kMbarrier));
  CHECK(reports(set_up + "@%p7 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r21], 16;", Kind::kMbarrier));
  // The report of a deadlock says how every mbarrier stands.
  const Launched stuck =
      run_block(set_up + "@%p7 mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%r21], 32;" + wait(0, 0));
  CHECK(stuck.stats.reports.back().detail.find("in phase 0 waits for 1 of 1 arrivals and 32 bytes") !=
        std::string::npos);
  // cp.async that arrives when it has landed.
  const std::string copy =
      "and.b32 %r3, %tid, 31; shl.b32 %r3, %r3, 4; add.u32 %r4, %r20, %r3; cvt.u64.u32 %d0, %r3; "
      "add.s64 %d0, %buffer, %d0; setp.lt.u32 %p5, %tid, 32;"
      "@%p5 cp.async.cg.shared.global [%r4], [%d0], 16;";
  CHECK(reports(init(32) + kMeet + copy + "@%p5 cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%r21];" + wait(0, 0) +
                    "ld.shared.u32 %r1, [%r4];",
                std::nullopt, 64));
}

// ---- Bulk copies of bytes

std::string load(int bytes, const std::string &expect) {
  return "@%p7 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r21], " + expect +
         ";\n@%p7 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r20], [%buffer], " +
         std::to_string(bytes) + ", [%r21];\n";
}
const std::string kStore = "@%p7 cp.async.bulk.global.shared::cta.bulk_group [%buffer], [%r20], 256;\n",
                  kCommit = "@%p7 cp.async.bulk.commit_group;\n", kWait = "@%p7 cp.async.bulk.wait_group 0;\n",
                  kWaitRead = "@%p7 cp.async.bulk.wait_group.read 0;\n",
                  kMine = "add.u32 %r2, %r20, %four; cvt.u64.u32 %d1, %four; add.s64 %d1, %buffer, %d1;\n",
                  kFill = "st.shared.u32 [%r2], %tid;\n";

void bulk_copies() {
  const std::string set_up = kMine + init(1) + kFenceInit + kMeet, read = "ld.shared.u32 %r3, [%r2];\n";
  const std::string whole = set_up + load(256, "256") + wait(0, 0) + read;
  CHECK(reports(whole, std::nullopt, 64));
  const Launched r = run_block(set_up + "st.global.u32 [%d1], %tid; fence.proxy.async.global; bar.sync 0;" +
                                   load(256, "256") + wait(0, 0) + read + "st.global.u32 [%d1+1024], %r3;",
                               64);
  CHECK(r.clean());
  for (uint32_t k = 0; k < 64; ++k) CHECK(r.words[256 + k] == k);
  CHECK(r.stats.buffers[0].read_bytes == 256 && r.stats.buffers[0].read_sectors == 8);
  // Read too early; the target still read by others; the bytes that come.
  CHECK(reports(set_up + load(256, "256") + read, Kind::kRace, 64));
  CHECK(reports(set_up + load(256, "256") + read, Kind::kInFlight, 64));  // and nobody waited
  CHECK(reports(whole + kMeet + load(256, "256") + wait(1, 1) + read, std::nullopt, 64));
  CHECK(reports(whole + load(256, "256") + wait(1, 1) + read, Kind::kRace, 64));
  CHECK(reports(whole + kMeet + load(256, "256") + wait(1, 0) + read, Kind::kRace, 64, Kind::kDeadlock));
  CHECK(reports(set_up + load(256, "272") + wait(0, 0), Kind::kDeadlock, 64));
  CHECK(reports(set_up + load(256, "240") + wait(0, 0), Kind::kDeadlock, 64));
  CHECK(reports(set_up + load(256, "0") + wait(0, 0) + read, Kind::kRace, 64));  // a phase without them
  // Sizes and places.
  CHECK(reports(set_up + load(24, "24") + wait(0, 0), Kind::kMisaligned, 64));
  CHECK(reports("add.u32 %r20, %r20, 8;" + set_up + load(16, "16"), Kind::kMisaligned, 64));
  CHECK(reports("add.u64 %buffer, %buffer, 4080;" + set_up + load(32, "32"), Kind::kOutOfBounds, 64));
  CHECK(reports(kMine + init(1) + kFenceInit + kMeet +
                    "@%p7 cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes "
                    "[%r21], [%buffer], 16, [%r21];",
                Kind::kMbarrier));
  // Fences: after init, after what threads wrote to shared and to global memory.
  CHECK(reports(kMine + init(1) + kMeet + load(256, "256") + wait(0, 0), Kind::kFence, 64));
  CHECK(reports(kMine + init(1) + kFenceAsync + kMeet + load(256, "256") + wait(0, 0), std::nullopt, 64));
  CHECK(reports(kMine + init(1) + kMeet + "@%p7 " + kFenceInit + load(256, "256") + wait(0, 0), std::nullopt, 64));
  CHECK(reports(kMine + kFill + init(1) + kFenceInit + kMeet + load(256, "256") + wait(0, 0), Kind::kFence, 64));
  CHECK(
      reports(kMine + kFill + init(1) + kFenceAsync + kMeet + load(256, "256") + wait(0, 0) + read, std::nullopt, 64));
  CHECK(reports("st.global.u32 [%buffer], 1;" + set_up + load(256, "256") + wait(0, 0), Kind::kFence, 1));
  // Stores.
  const auto store = [&](const std::string &before, const std::string &after) {
    return kMine + kFill + before + kStore + after;
  };
  const std::string ready = kFenceAsync + kMeet, finish = kCommit + kWait;
  const Launched stored =
      run_block(store(ready, finish + kMeet + "ld.global.u32 %r3, [%d1]; st.global.u32 [%d1+512], %r3;"), 64);
  CHECK(stored.clean());
  for (uint32_t k = 0; k < 64; ++k) CHECK(stored.words[k] == k && stored.words[128 + k] == k);
  CHECK(stored.stats.buffers[0].written_bytes == 512 && stored.stats.buffers[0].written_sectors == 16);
  CHECK(reports(store(ready, finish), std::nullopt, 64));
  CHECK(reports(store(kMeet, finish), Kind::kFence, 64));
  CHECK(reports(store(kMeet + kFenceAsync, finish), Kind::kFence,
                64));  // of the thread that copies, not of those that wrote
  CHECK(reports(store(kFenceAsync, finish), Kind::kRace, 64));
  CHECK(reports(store(ready, ""), Kind::kInFlight, 64));
  CHECK(reports(store(ready, kCommit), Kind::kInFlight, 64));
  CHECK(reports(store(ready, kCommit + kWaitRead + kMeet + kFill), std::nullopt, 64));
  CHECK(reports(store(ready, kCommit + kMeet + kFill + kWaitRead), Kind::kRace, 64));
  CHECK(reports(store(ready, kCommit + kWaitRead + kMeet + "ld.global.u32 %r3, [%d1];"), Kind::kRace, 64));
  CHECK(reports(store(ready, finish + kMeet + "ld.global.u32 %r3, [%d1];"), std::nullopt, 64));
  CHECK(reports(store(ready, kCommit + kStore + kCommit + "@%p7 cp.async.bulk.wait_group 1;" + kMeet + kFill),
                Kind::kRace, 64));
  CHECK(reports(kMine + kFenceAsync + kStore + finish, Kind::kUninitialised));
  // All lanes of a warp store the same, or different bytes to one place.
  const std::string all = "setp.lt.u32 %p7, %tid, 32;";
  CHECK(reports(store(ready + all, finish), std::nullopt, 64));
  CHECK(reports(store(ready + all + "shl.b32 %r4, %lane, 5; and.b32 %r4, %r4, 32; add.u32 %r20, %r20, %r4;",
                      "@%p7 cp.async.bulk.commit_group;" + kWait),
                Kind::kRace, 128));
}

// What cp.reduce.async.bulk leaves of two words.
uint32_t reduced(const std::string &operation, uint32_t old, uint32_t value) {
  return run_block("@%p7 st.global.u32 [%buffer], " + std::to_string(old) + ";" + "st.shared.v4.u32 [%r20], {" +
                       std::to_string(value) + ", 0, 0, 0}; fence.proxy.async;" +
                       "cp.reduce.async.bulk.global.shared::cta.bulk_group." + operation + " [%buffer], [%r20], 16;" +
                       kCommit + kWait,
                   1)
      .words[0];
}
uint32_t word_of(float x) { return bits_as<uint32_t>(x); }

void bulk_sums() {
  CHECK(reduced("add.u32", 5, 7) == 12 && reduced("add.u32", 0xffffffff, 2) == 1);
  CHECK(reduced("min.s32", 5, 0xfffffffe) == 0xfffffffe && reduced("max.s32", 5, 0xfffffffe) == 5);
  CHECK(reduced("min.u32", 5, 0xfffffffe) == 5 && reduced("inc.u32", 5, 5) == 0 && reduced("dec.u32", 5, 9) == 4);
  CHECK(reduced("and.b32", 12, 10) == 8 && reduced("or.b32", 12, 10) == 14 && reduced("xor.b32", 12, 10) == 6);
  CHECK(reduced("add.f32", word_of(1.5f), word_of(2.25f)) == word_of(3.75f));
  CHECK(reduced("add.noftz.f16", 0x3c004000, 0x3c003c00) == 0x40004200);  // 1 and 2, plus 1 and 1
  CHECK(reduced("add.noftz.bf16", 0x3f804000, 0x3f803f80) == 0x40004040);
  CHECK(reduced("max.f16", 0x3c00c000, 0xbc003c00) == 0x3c003c00);
}

// Vectors are of sm_90 too.
void vector_sums() {
  const Launched r = run_block(
      "mov.f32 %f0, 0f3f800000; mov.f32 %f1, 0f40000000; mov.b32 %r1, 0x3c004000;\n"
      "st.global.v4.f32 [%buffer], {%f0, %f1, %f0, %f1}; st.global.v4.b32 [%buffer+16], {%r1, %r1, %r1, %r1};\n"
      "red.global.add.v4.f32 [%buffer], {%f1, %f1, %f0, %f0}; red.global.add.noftz.v4.f16x2 [%buffer+16], {%r1, %r1, "
      "%r1, "
      "%r1};\natom.global.add.v2.f32 {%f2, %f3}, [%buffer+8], {%f0, %f0}; st.global.v2.f32 [%buffer+32], {%f2, %f3};",
      1);
  CHECK(r.clean());
  const float wanted[] = {3, 4, 3, 4};
  for (size_t k = 0; k < 4; ++k) CHECK(r.words[k] == word_of(wanted[k]) && r.words[4 + k] == 0x40004400);
  CHECK(r.words[8] == word_of(2) && r.words[9] == word_of(3));
  CHECK(run_block("red.global.add.v4.f32 [%buffer+8], {%f1, %f1, %f0, %f0};", 1).has(Kind::kMisaligned));
}

// ---- Tensor copies

struct Tensor {
  int rank;
  uint32_t sizes[3], box[3];
  uint64_t strides[3];  // in bytes
  int element;          // bytes
  Swizzle swizzle;
  int32_t first[3];
  uint32_t steps[3] = {1, 1, 1};
  bool fills_nan = false;
};

struct alignas(64) Map {
  TensorMap map;
  std::byte rest[128 - sizeof(TensorMap)];
};

Map map_of(const Tensor &t, const void *memory) {
  Map m{};
  m.map.address = reinterpret_cast<uint64_t>(memory);
  m.map.rank = static_cast<uint8_t>(t.rank);
  m.map.type = t.element == 2 ? 6 : t.element == 4 ? 7 : 0;  // f16, f32, u8
  m.map.swizzle = t.swizzle;
  m.map.fills_nan = t.fills_nan;
  for (int d = 0; d < t.rank; ++d) {
    m.map.last[d] = t.sizes[d] - 1;
    m.map.strides[d] = d == 0 ? static_cast<uint64_t>(t.element) : t.strides[d];
    m.map.box[d] = static_cast<uint16_t>(t.box[d]);
    m.map.steps[d] = static_cast<uint8_t>(t.steps[d]);
  }
  CHECK(problem_of(m.map).empty());
  return m;
}

struct Copied {
  Stats stats;
  Traffic traffic;                      // of the tensor
  std::vector<uint8_t> memory, shared;  // of the tensor, and 4096 bytes
};

// Byte i of the tensor is (7 i + i / 256) % 251; of shared memory before a store: 255 - i % 256.
uint8_t tensor_byte(size_t i) { return static_cast<uint8_t>((7 * i + i / 256) % 251); }
constexpr size_t kTensorBytes = 8192, kTileBytes = 4096;

Copied copied(const Tensor &t, const std::string &body) {
  Memory memory;
  auto *tensor = static_cast<uint8_t *>(memory.allocate(kTensorBytes, "tensor"));
  auto *out = static_cast<uint8_t *>(memory.allocate(kTileBytes, "out"));
  for (size_t i = 0; i < kTensorBytes; ++i) tensor[i] = tensor_byte(i);
  const Map map = map_of(t, tensor);
  const std::string text = module_text(".param .u64 out, .param .align 64 .b8 map[128]",
                                       ".reg .pred %p<8>; .reg .b32 %r<24>; .reg .b64 %d<8>; .reg .b32 %tid; .shared "
                                       ".align 1024 .b8 s[4096]; .shared .align 8 "
                                       ".b8 m[8];\nmov.u32 %tid, %tid.x; setp.eq.u32 %p7, %tid, 0; mov.u32 %r20, s; "
                                       "mov.u32 %r21, m; ld.param.u64 %d1, [out];\n"
                                       "mov.b64 %d2, map; cvta.param.u64 %d2, %d2; shl.b32 %r1, %tid, 7; add.u32 %r2, "
                                       "%r20, %r1; cvt.u64.u32 %d3, %r1; add.s64 "
                                       "%d3, %d1, %d3;\n" +
                                           body + "ret;");
  const void *params[] = {&out, &map};
  Options options;
  options.collect = true;
  options.max_instructions = 1000000;
  Copied result;
  result.stats = launch(load_module(text), memory, "k", {}, {32}, 0, params, options);
  if (const Traffic *traffic = result.stats.traffic(tensor)) result.traffic = *traffic;
  result.memory.assign(tensor, tensor + kTensorBytes);
  result.shared.assign(out, out + kTileBytes);
  return result;
}

std::string coordinates(const Tensor &t) {
  std::string list;
  for (int d = 0; d < t.rank; ++d) list += (d ? ", " : "") + std::to_string(t.first[d]);
  return "[%d2, {" + list + "}]";
}

uint32_t bytes_of(const Tensor &t) {
  uint32_t bytes = static_cast<uint32_t>(t.element) * t.box[0];
  for (int d = 1; d < t.rank; ++d) bytes *= (t.box[d] + t.steps[d] - 1) / t.steps[d];
  return bytes;
}

// Calls visit(offset in shared memory, offset in the tensor or nothing) for every byte of the box.
template <class Visit>
void each_byte(const Tensor &t, Visit visit) {
  const uint32_t row = t.box[0] * static_cast<uint32_t>(t.element);
  for (uint32_t at = 0; at < bytes_of(t); ++at) {
    uint32_t rest = at / row;
    int64_t place = 0;
    bool inside = true;
    for (int d = 0; d < t.rank; ++d) {
      const uint32_t count = (t.box[d] + t.steps[d] - 1) / t.steps[d];
      const uint32_t index = d == 0 ? at % row / static_cast<uint32_t>(t.element) : rest % count * t.steps[d];
      if (d > 0) rest /= count;
      const int64_t x = t.first[d] + static_cast<int64_t>(index);
      inside = inside && x >= 0 && x < t.sizes[d];
      place += x * static_cast<int64_t>(d == 0 ? static_cast<uint64_t>(t.element) : t.strides[d]);
    }
    place += at % static_cast<uint32_t>(t.element);
    // The ISA's tables: within a repeating pattern, 16-byte chunk c of row r goes to c XOR some bits of r.
    uint32_t to = at;
    const uint32_t line = at / 128, chunk = at / 16 % 8;
    if (t.swizzle == Swizzle::k128) to = line * 128 + (chunk ^ line % 8) * 16 + at % 16;
    if (t.swizzle == Swizzle::k64) to = line * 128 + (chunk ^ line % 4) * 16 + at % 16;
    if (t.swizzle == Swizzle::k32) to = line * 128 + (chunk ^ line % 2) * 16 + at % 16;
    visit(to, inside ? std::optional<size_t>(static_cast<size_t>(place)) : std::nullopt);
  }
}

const Tensor kTensors[] = {
    {1, {100}, {64}, {}, 2, Swizzle::kNone, {60}},
    {2, {40, 30}, {24, 6}, {0, 96}, 2, Swizzle::kNone, {8, 3}},
    {2, {40, 30}, {16, 16}, {0, 96}, 2, Swizzle::k32, {0, 0}},
    {2, {40, 30}, {32, 12}, {0, 96}, 2, Swizzle::k64, {8, 2}},
    {2, {64, 24}, {64, 12}, {0, 128}, 2, Swizzle::k128, {0, 0}},
    {2, {40, 30}, {32, 8}, {0, 96}, 2, Swizzle::k64, {24, 26}},    // beyond the end
    {2, {40, 30}, {32, 8}, {0, 96}, 2, Swizzle::k64, {-5, -3}},    // before the start
    {2, {40, 30}, {16, 4}, {0, 96}, 2, Swizzle::kNone, {48, 40}},  // all outside
    {2, {20, 30}, {32, 9}, {0, 96}, 4, Swizzle::k128, {1, 0}},
    {2, {80, 30}, {48, 5}, {0, 96}, 1, Swizzle::kNone, {3, 1}},
    {3, {24, 10, 5}, {16, 4, 2}, {0, 64, 640}, 2, Swizzle::k32, {8, 8, 3}},
    {3, {64, 10, 3}, {64, 4, 1}, {0, 384, 128}, 2, Swizzle::k128, {0, 7, 1}},
    {2, {40, 30}, {24, 12}, {0, 96}, 2, Swizzle::kNone, {0, 1}, {1, 3, 1}},
};

void tensor_copies() {
  for (const Tensor &t : kTensors) {
    const std::string dimensions = std::to_string(t.rank) + "d", bytes = std::to_string(bytes_of(t));
    const Copied loaded =
        copied(t, init(1) + kFenceInit + kMeet + "@%p7 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r21], " + bytes +
                      ";\n@%p7 cp.async.bulk.tensor." + dimensions +
                      ".shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%r20], " +
                      coordinates(t) + ", [%r21], 0x14F0000000000000;\n" + wait(0, 0) +
                      "mov.u32 %r3, 0; next: ld.shared.u32 %r4, [%r2]; st.global.u32 [%d3], %r4; add.u32 %r2, %r2, 4; "
                      "add.s64 %d3, %d3, 4;\n"
                      "add.u32 %r3, %r3, 1; setp.lt.u32 %p0, %r3, 32; @%p0 bra next;\n");
    bool right = true;
    uint64_t inside = 0;
    each_byte(t, [&](uint32_t shared, std::optional<size_t> place) {
      inside += place.has_value();
      right = right && loaded.shared[shared] == (place ? tensor_byte(*place) : 0);
    });
    CHECK(right);
    CHECK(loaded.traffic.read_bytes == inside);
    // What is behind the box was never written.
    const bool only = std::all_of(loaded.stats.reports.begin(), loaded.stats.reports.end(),
                                  [](const Report &r) { return r.kind == Kind::kUninitialised; });
    CHECK(only && loaded.stats.reports.empty() == (bytes_of(t) == kTileBytes));

    const Copied stored =
        copied(t,
               "mov.u32 %r3, 0; next: shl.b32 %r4, %r3, 2; add.u32 %r4, %r4, %r1; and.b32 %r4, %r4, 255; mul.lo.u32 "
               "%r4, %r4, 0x01010101; "
               "add.u32 %r4, %r4, 0x03020100; not.b32 %r4, %r4; st.shared.u32 [%r2], %r4; add.u32 %r2, %r2, 4; add.u32 "
               "%r3, %r3, 1; "
               "setp.lt.u32 %p0, %r3, 32; @%p0 bra next;\n" +
                   kFenceAsync + kMeet + "@%p7 cp.async.bulk.tensor." + dimensions +
                   ".global.shared::cta.tile.bulk_group " + coordinates(t) + ", [%r20];\n" + kCommit + kWaitRead);
    CHECK(stored.stats.reports.empty());
    std::vector<uint8_t> wanted(kTensorBytes);
    for (size_t i = 0; i < kTensorBytes; ++i) wanted[i] = tensor_byte(i);
    uint64_t written = 0;
    each_byte(t, [&](uint32_t shared, std::optional<size_t> place) {
      if (place) wanted[*place] = static_cast<uint8_t>(255 - shared % 256);
      written += place.has_value();
    });
    CHECK(stored.memory == wanted);
    CHECK(stored.traffic.written_bytes == written);
  }
  // NaN where the box sticks out.
  Tensor t{2, {40, 30}, {16, 4}, {0, 96}, 2, Swizzle::kNone, {32, 28}};
  t.fills_nan = true;
  const std::string get = init(1) + kFenceInit + kMeet +
                          "@%p7 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r21], 128;\n@%p7 "
                          "cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [%r20], " +
                          coordinates(t) + ", [%r21];\n" + wait(0, 0) +
                          "@%p7 ld.shared.u32 %r4, [%r20+16]; @%p7 st.global.u32 [%d1], %r4;";
  CHECK(copied(t, get).shared[1] == 0x7f);
  // A box at a wrong place, a map of another rank, no map.
  const auto kind_of = [&](const std::string &text, const std::string &from, const std::string &to) {
    std::string changed = text;
    const size_t at = changed.find(from);
    CHECK(at != changed.npos);
    const Copied r = copied(t, changed.replace(at, from.size(), to));
    return r.stats.reports.empty() ? Kind::kTimeout : r.stats.reports.front().kind;
  };
  CHECK(copied(t, get).stats.reports.empty());
  CHECK(kind_of(get, "bytes [%r20]", "bytes [%r20+64]") == Kind::kMisaligned);
  CHECK(kind_of(get, "bytes [%r20]", "bytes [%r20+4096]") == Kind::kOutOfBounds);
  CHECK(kind_of(get, "2d.shared::cta.global.mbarrier::complete_tx::bytes [%r20], [%d2, {",
                "3d.shared::cta.global.mbarrier::complete_tx::bytes [%r20], [%d2, {0, ") == Kind::kOutOfBounds);
  CHECK(kind_of(get, "[%d2,", "[%d2+64,") == Kind::kOutOfBounds);
  CHECK(kind_of(get, "[%d2,", "[%d2+32,") == Kind::kMisaligned);
  // The rules for maps.
  const auto refused = [&](auto change) {
    Map m = map_of(t, reinterpret_cast<void *>(4096));
    change(m.map);
    return !problem_of(m.map).empty();
  };
  CHECK(!refused([](TensorMap &) {}));
  CHECK(refused([](TensorMap &m) { m.address += 8; }));
  CHECK(refused([](TensorMap &m) { m.strides[1] = 100; }));
  CHECK(refused([](TensorMap &m) { m.strides[1] = uint64_t{1} << 40; }));
  CHECK(refused([](TensorMap &m) { m.box[1] = 257; }));
  CHECK(refused([](TensorMap &m) { m.box[0] = 12; }));
  CHECK(refused([](TensorMap &m) { m.swizzle = Swizzle::k32, m.box[0] = 24; }));
  CHECK(refused([](TensorMap &m) { m.rank = 6; }));
}

}  // namespace

void test_hopper() {
  phases();
  mbarrier_order();
  bulk_copies();
  bulk_sums();
  vector_sums();
  tensor_copies();
}

}  // namespace testing
