// Hopper's instructions against models of the PTX ISA's text, and their misuse: each report with the kernel that earns it
// and its twin that doesn't. A whole kernel is in test_hopper_kernel.cpp.
#include <algorithm>
#include <cmath>
#include <optional>
#include <stdexcept>

#include "program.h"
#include "tensor_map.h"
#include "testing.h"

using namespace emulator;

namespace testing {

namespace {

const std::string kInit = "mov.u32 %r20, s; setp.eq.u32 %p7, %tid, 0;\n",
                  kShared = ".shared .align 1024 .b8 s[16384]; .shared .align 8 .b8 m[64]; mov.u32 %r21, m;\n" + kInit;

Launched run_block(const std::string &body, uint32_t threads = 32, Options options = {}) {
  options.max_instructions = 200000;
  return launched(kShared + body + "\nret;", threads, 1, 0, options);
}

// Every schedule reports the kind, or the other one, or nothing.
bool reports(const std::string &body, std::optional<Kind> kind, uint32_t threads = 32,
             std::optional<Kind> or_kind = std::nullopt) {
  bool all = true;
  for (const Order order : {Order::kForward, Order::kReverse, Order::kRandom}) {
    for (const Copies copies : {Copies::kLate, Copies::kEager, Copies::kRandom}) {
      Options options;
      options.order = order;
      options.copies = copies;
      const Launched r = run_block(body, threads, options);
      const bool fine = kind ? r.has(*kind) || (or_kind && r.has(*or_kind)) : r.clean();
      if (!fine && kind) {
        for (const Report &report : r.stats.reports) std::printf("instead: %s\n", report.text().c_str());
      }
      all = all && fine;
    }
  }
  return all;
}

std::string init(int count, const std::string &at = "[%r21]") {
  return "@%p7 mbarrier.init.shared::cta.b64 " + at + ", " + std::to_string(count) + ";\n";
}
const std::string kFenceInit = "fence.mbarrier_init.release.cluster;\n", kMeet = "bar.sync 0;\n";

// Until the phase of this parity is over; n: of the label.
std::string wait(int n, int parity, const std::string &at = "[%r21]") {
  const std::string label = "w" + std::to_string(n);
  return label + ": mbarrier.try_wait.parity.shared::cta.b64 %p6, " + at + ", " + std::to_string(parity) +
         "; @!%p6 bra " + label + ";\n";
}

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
                  kFenceAsync = "fence.proxy.async.shared::cta;\n",
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

// ---- wgmma

struct Multiply {
  int n;
  MatrixShape::Element a, b;
  Swizzle swizzle_a, swizzle_b;
  bool a_in_registers = false, transposed_a = false, transposed_b = false, f16_result = false, accumulate = true;
  int sign_a = 1, sign_b = 1;
};

const char *name_of(MatrixShape::Element e) {
  constexpr const char *kNames[] = {"f16", "bf16", "tf32", "e4m3", "e5m2"};
  return kNames[e];
}
int bytes_of(MatrixShape::Element e) { return e == MatrixShape::kTf32 ? 4 : e >= MatrixShape::kE4m3 ? 1 : 2; }

// Small integers and halves, which every type holds exactly, with their bits.
double number(uint32_t k) { return (static_cast<double>(k * 2654435761u >> 28) - 8) / 2; }
uint32_t bits_of(MatrixShape::Element e, double x) {
  switch (e) {
    case MatrixShape::kF16:
      return to_f16(x);
    case MatrixShape::kBf16:
      return to_bf16(x);
    case MatrixShape::kTf32:
      return bits_as<uint32_t>(static_cast<float>(x)) | 0x1fff;  // bits that don't count
    case MatrixShape::kE5m2:
      return static_cast<uint32_t>(to_f16(x)) >> 8;
    default: {
      if (x == 0) return 0;
      const int exponent = std::ilogb(x);
      return (x < 0 ? 0x80u : 0) | static_cast<uint32_t>(exponent + 7) << 3 |
             static_cast<uint32_t>(std::scalbn(std::fabs(x), 3 - exponent) - 8);
    }
  }
}

// Where a tile's bytes are, and how its descriptor says so. Rows are along m or n; the ISA: K-major without swizzle: core
// matrices of 8 rows of 16 bytes; with one: rows as wide as the swizzle. Transposed: the same with k and mn exchanged.
struct Layout {
  uint32_t lbo, sbo;
  uint64_t descriptor(uint32_t start, Swizzle swizzle) const {
    constexpr uint64_t kModes[] = {0, 3, 2, 1};
    return start >> 4 | uint64_t{lbo >> 4} << 16 | uint64_t{sbo >> 4} << 32 | kModes[static_cast<int>(swizzle)] << 62;
  }
};
Layout layout_of(Swizzle swizzle, bool transposed, int rows) {
  const auto width = swizzle_bytes(swizzle), count = static_cast<uint32_t>(rows);
  if (swizzle == Swizzle::kNone) {
    // Core matrices in a row along k, then along mn; with a gap of 16 bytes, so that nothing is right by chance.
    return transposed ? Layout{count / 8 * 144 + 16, 144} : Layout{144, 2 * 144 + 16};
  }
  // Panels as wide as the swizzle and, along mn, of all k; K-major: rows below each other.
  return transposed ? Layout{16 * width, 8 * width} : Layout{16, 8 * width};
}
uint32_t place(Swizzle swizzle, bool transposed, const Layout &l, uint32_t mn, uint32_t k_byte, uint32_t k) {
  const uint32_t width = swizzle_bytes(swizzle);
  uint32_t at;
  if (swizzle == Swizzle::kNone) {
    at = transposed ? mn / 8 * l.sbo + k / 8 * l.lbo + k % 8 * 16 + mn % 8 * 2
                    : mn / 8 * l.sbo + mn % 8 * 16 + k_byte / 16 * l.lbo + k_byte % 16;
    return at;
  }
  const uint32_t column = transposed ? mn * 2 : k_byte;  // along the contiguous way
  const uint32_t line = transposed ? k : mn;
  at = column / width * (transposed ? l.lbo : 0) + line * width + column % width;
  const uint32_t row = at / 128, mask = width / 16 - 1;
  return at ^ (row & mask) << 4;
}

void product(const Multiply &x, Copies copies) {
  const int element = bytes_of(x.a), depth = 32 / element;
  const auto n = static_cast<uint32_t>(x.n);
  constexpr uint32_t kB = 16384, kBytes = 49152;
  Memory memory;
  auto *tiles = static_cast<uint8_t *>(memory.allocate(kBytes, "tiles"));
  const auto fill = [&](uint32_t start, Swizzle swizzle, bool transposed, uint32_t rows, MatrixShape::Element type,
                        uint32_t seed) {
    const Layout l = layout_of(swizzle, transposed, static_cast<int>(rows));
    for (uint32_t mn = 0; mn < rows; ++mn) {
      for (uint32_t k = 0; k < static_cast<uint32_t>(depth); ++k) {
        const uint32_t bits = bits_of(type, number(seed + mn * 64 + k));
        const uint32_t at = start + place(swizzle, transposed, l, mn, k * static_cast<uint32_t>(element), k);
        if (at + static_cast<uint32_t>(element) > kBytes) throw std::logic_error("a tile that is too large");
        std::memcpy(tiles + at, &bits, static_cast<size_t>(element));
      }
    }
    return l;
  };
  constexpr uint32_t kSeedA = 1, kSeedB = 100000;
  const Layout la = fill(0, x.swizzle_a, x.transposed_a, 64, x.a, kSeedA);
  const Layout lb = fill(kB, x.swizzle_b, x.transposed_b, n, x.b, kSeedB);
  constexpr uint32_t kStart = 1024;  // of shared memory
  const uint64_t a = la.descriptor(kStart, x.swizzle_a), b = lb.descriptor(kStart + kB, x.swizzle_b);

  // Registers start at 1, and go out one by one.
  const uint32_t count = n / (x.f16_result ? 4 : 2);
  auto *out = static_cast<uint32_t *>(memory.allocate(count * 128 * 4, "out"));
  std::string list, ones, stores;
  for (uint32_t r = 0; r < count; ++r) {
    const std::string reg = "%c" + std::to_string(r);
    list += (r ? ", " : "") + reg;
    ones += "mov.b32 " + reg + (x.f16_result ? ", 0x3c003c00; " : ", 0f3f800000; ");
    stores += "st.global.b32 [%d3+" + std::to_string(r * 512) + "], " + reg + ";\n";
  }
  // A in registers: register r has row 16 w + g + 8 (r % 2), bytes 16 (r / 2) + 4 t of it. Kept row by row in the first 2 KiB.
  std::string inputs = std::to_string(a);
  std::string get;
  if (x.a_in_registers) {
    std::vector<uint8_t> rows(64 * 32);
    for (uint32_t m = 0; m < 64; ++m) {
      for (uint32_t k = 0; k < static_cast<uint32_t>(depth); ++k) {
        const uint32_t bits = bits_of(x.a, number(kSeedA + m * 64 + k));
        std::memcpy(&rows[m * 32 + k * static_cast<uint32_t>(element)], &bits, static_cast<size_t>(element));
      }
    }
    std::memcpy(tiles, rows.data(), rows.size());
    inputs = "{%a0, %a1, %a2, %a3}";
    get =
        "shr.u32 %r1, %tid, 5; shl.b32 %r1, %r1, 9; shr.u32 %r2, %tid, 2; and.b32 %r2, %r2, 7; shl.b32 %r2, %r2, 5; "
        "add.u32 %r1, %r1, %r2; and.b32 %r2, %tid, 3; shl.b32 %r2, %r2, 2; add.u32 %r1, %r1, %r2; cvt.u64.u32 %d4, "
        "%r1; "
        "add.s64 %d4, %d1, %d4; ld.global.b32 %a0, [%d4]; ld.global.b32 %a1, [%d4+256]; ld.global.b32 %a2, [%d4+16]; "
        "ld.global.b32 %a3, [%d4+272];\n";
  }
  std::string flags = ", " + std::to_string(x.sign_a) + ", " + std::to_string(x.sign_b);
  if (element == 2 && !x.a_in_registers) flags += x.transposed_a ? ", 1" : ", 0";
  if (element == 2) flags += x.transposed_b ? ", 1" : ", 0";
  const std::string shape = "m64n" + std::to_string(n) + "k" + std::to_string(depth);
  const std::string text = module_text(
      ".param .u64 tiles, .param .u64 out",
      ".reg .pred %p<8>; .reg .b32 %r<8>, %c<" + std::to_string(count) +
          ">, %a<4>, %tid; .reg .b64 %d<8>; .shared .align 1024 "
          ".b8 s[49152];\nmov.u32 %tid, %tid.x; ld.param.u64 %d1, [tiles]; ld.param.u64 %d2, [out]; mov.u32 %r5, s;\n"
          "mul.wide.u32 %d3, %tid, 4; add.s64 %d2, %d2, %d3; add.s64 %d4, %d1, %d3; shl.b32 %r1, %tid, 2; add.u32 %r2, "
          "%r5, %r1;\n"
          "mov.u32 %r3, 0; next: ld.global.b32 %r4, [%d4]; st.shared.b32 [%r2], %r4; add.s64 %d4, %d4, 512; add.u32 "
          "%r2, %r2, 512;\n"
          "add.u32 %r3, %r3, 1; setp.lt.u32 %p0, %r3, 96; @%p0 bra next;\nfence.proxy.async.shared::cta; bar.sync 0; "
          "mov.b64 %d3, "
          "%d2;\n" +
          get + ones + "setp.eq.u32 %p1, %tid, %tid;\nwgmma.fence.sync.aligned; wgmma.mma_async.sync.aligned." + shape +
          "." + (x.f16_result ? "f16." : "f32.") + name_of(x.a) + "." + name_of(x.b) + " {" + list + "}, " + inputs +
          ", " + std::to_string(b) + ", " + (x.accumulate ? "%p1" : "!%p1") + flags +
          ";\nwgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;\n" + stores + "ret;");
  Options options;
  options.collect = true;
  options.uninitialised = true;
  options.copies = copies;
  const void *params[] = {&tiles, &out};
  const Stats stats = launch(load_module(text), memory, "k", {}, {128}, 0, params, options);
  for (const Report &report : stats.reports) std::printf("%s\n", report.text().substr(0, 500).c_str());
  CHECK(stats.reports.empty());
  CHECK(stats.wgmma == 4 && stats.matrix_flops == 2u * 64 * n * static_cast<uint32_t>(depth));
  bool right = true;
  for (uint32_t row = 0; row < 64; ++row) {
    for (uint32_t column = 0; column < n; ++column) {
      double sum = x.accumulate ? 1 : 0;
      for (uint32_t k = 0; k < static_cast<uint32_t>(depth); ++k) {
        sum += x.sign_a * x.sign_b * number(kSeedA + row * 64 + k) * number(kSeedB + column * 64 + k);
      }
      const uint32_t thread = row / 16 * 32 + row % 8 * 4 + column % 8 / 2, half = row % 16 / 8;
      double got;
      if (x.f16_result) {
        const uint32_t word = out[(column / 8 * 2 + half) * 128 + thread];
        got = static_cast<double>(f16_float(static_cast<uint16_t>(word >> 16 * (column % 2))));
      } else {
        got = static_cast<double>(bits_as<float>(out[(column / 8 * 4 + half * 2 + column % 2) * 128 + thread]));
      }
      right = right && got == sum;  // small enough to be exact
    }
  }
  CHECK(right);
}

void products() {
  constexpr auto kF16 = MatrixShape::kF16, kBf16 = MatrixShape::kBf16, kTf32 = MatrixShape::kTf32,
                 kE4m3 = MatrixShape::kE4m3, kE5m2 = MatrixShape::kE5m2;
  constexpr auto kNone = Swizzle::kNone, k32 = Swizzle::k32, k64 = Swizzle::k64, k128 = Swizzle::k128;
  for (const Copies copies : {Copies::kLate, Copies::kEager}) {
    for (const Swizzle swizzle : {kNone, k32, k64, k128}) {
      for (const bool a : {false, true})
        for (const bool b : {false, true}) product({64, kF16, kF16, swizzle, swizzle, false, a, b}, copies);
      product({24, kBf16, kBf16, k128, swizzle, true}, copies);
      product({128, kF16, kF16, swizzle, k64, false, true, false}, copies);
      product({256, kE4m3, kE5m2, k128, swizzle == k32 ? k64 : swizzle}, copies);
    }
    product({8, kF16, kF16, k128, kNone}, copies);
    product({192, kBf16, kBf16, k128, k128, true, false, true}, copies);
    product({256, kBf16, kBf16, k128, k128, false, false, true}, copies);
    product({64, kF16, kF16, k128, k128, false, false, false, true}, copies);
    product({64, kF16, kF16, k128, k128, false, false, false, false, false}, copies);
    product({64, kF16, kF16, k128, k128, false, false, false, false, true, -1, 1}, copies);
    product({64, kF16, kF16, k128, k128, false, false, false, false, true, -1, -1}, copies);
    product({64, kE5m2, kE4m3, k32, k128, true}, copies);
    product({40, kTf32, kTf32, k128, k128}, copies);
    product({40, kTf32, kTf32, k64, kNone, true}, copies);
  }
}

// ---- 8-bit floats

// The number that 8 bits stand for, from the formats' tables.
double number_of(bool e4m3, uint32_t bits) {
  const int fraction_bits = e4m3 ? 3 : 2, bias = e4m3 ? 7 : 15;
  const uint32_t exponent = (bits & 0x7f) >> fraction_bits, fraction = bits & ((1u << fraction_bits) - 1);
  if (e4m3 ? (bits & 0x7f) == 0x7f : exponent == 31 && fraction != 0) return NAN;
  if (!e4m3 && exponent == 31) return bits & 0x80 ? -INFINITY : INFINITY;
  const double x =
      exponent == 0 ? std::ldexp(fraction, 1 - bias - fraction_bits)
                    : std::ldexp((1u << fraction_bits) + fraction, static_cast<int>(exponent) - bias - fraction_bits);
  return bits & 0x80 ? -x : x;
}

// The nearest of all finite numbers, ties to the even one.
uint32_t nearest(bool e4m3, double x) {
  if (std::isnan(x)) return 0x7f;
  uint32_t best = 0;
  double least = INFINITY;
  for (uint32_t bits = 0; bits < 0x7f; ++bits) {
    const double y = number_of(e4m3, bits);
    if (!std::isfinite(y)) break;
    const double off = std::fabs(y - std::fmin(std::fabs(x), 1e6));
    if (off < least || (off == least && bits % 2 == 0)) best = bits, least = off;
  }
  return best | (std::signbit(x) ? 0x80 : 0);
}

void small_floats() {
  const auto x = floats<float>(
      {0, -0.0f, 1, -1.0625f, 448, 464, 465, 1e9f, -INFINITY, NAN, 0.015625f, 0.0009765625f, 57344, 61440, 3e-8f});
  const auto y = values<float>({1e-3f, 2.1e-3f, 0.0146f, 17, 18, 19});
  const auto h = values<uint32_t>({0x3c00bc00, 0x7c00fc00, 0x7bff0001});
  for (const bool e4m3 : {true, false}) {
    const std::string name = e4m3 ? "e4m3x2" : "e5m2x2";
    const auto both = [&](double a, double b) { return nearest(e4m3, a) << 8 | nearest(e4m3, b); };
    CHECK_LANES(
        uint16_t, "cvt.rn.satfinite." + name + ".f32 %r, %a0, %a1;",
        [&](float a, float b) { return both(static_cast<double>(a), static_cast<double>(b)); }, x, y);
    CHECK_LANES(
        uint16_t, "cvt.rn.satfinite.relu." + name + ".f32 %r, %a0, %a1;",
        [&](float a, float b) {
          return both(a < 0 ? 0.0 : std::fabs(static_cast<double>(a)), b < 0 ? 0.0 : std::fabs(static_cast<double>(b)));
        },
        x, y);
    CHECK_LANES(
        uint16_t, "cvt.rn.satfinite." + name + ".f16x2 %r, %a0;",
        [&](uint32_t a) {
          return both(f16_value(static_cast<uint16_t>(a >> 16)), f16_value(static_cast<uint16_t>(a)));
        },
        h);
    for (uint32_t first = 0; first < 256; first += 64) {
      std::vector<uint16_t> all;
      for (uint32_t k = 0; k < 32; ++k)
        all.push_back(static_cast<uint16_t>((first + 2 * k + 1) << 8 | (first + 2 * k)));
      CHECK_LANES(
          uint32_t, "cvt.rn.f16x2." + name + " %r, %a0;",
          [&](uint16_t a) {
            const auto half = [&](uint32_t bits) { return static_cast<uint32_t>(to_f16(number_of(e4m3, bits))); };
            return half(a >> 8) << 16 | half(a & 255u);
          },
          all);
    }
  }
}

// ---- The order of wgmma, registers and shared memory

const std::string
    kMatrix = "{%f0, %f1, %f2, %f3}",
    // N-major and K-major tiles of 8 columns, A of 64 rows: 128-byte swizzle, 8 KiB at s and 1 KiB at s + 8192.
    kDescriptors =
        "and.b32 %r5, %r20, 0x3ffff; shr.u32 %r5, %r5, 4; cvt.u64.u32 %d2, %r5; mov.b64 %d3, "
        "0x4000004000010000; or.b64 %d2, %d2, %d3; add.u64 %d3, %d2, 512;\n",
    kClear = "mov.f32 %f0, 0f00000000; mov.f32 %f1, %f0; mov.f32 %f2, %f0; mov.f32 %f3, %f0;\n",
    // 128 threads write 16 KiB.
    kTiles =
        "shl.b32 %r6, %tid, 4; add.u32 %r6, %r20, %r6; mov.u32 %r7, 0; fill: st.shared.v4.u32 [%r6], {%r7, "
        "%r7, %r7, %r7}; add.u32 %r6, %r6, 2048; add.u32 %r7, %r7, 1; setp.lt.u32 %p0, %r7, 8; @%p0 bra "
        "fill;\n",
    kBegin = "wgmma.fence.sync.aligned;\n", kEnd = "wgmma.commit_group.sync.aligned;\n",
    kWaitAll = "wgmma.wait_group.sync.aligned 0;\n", kWaitButOne = "wgmma.wait_group.sync.aligned 1;\n",
    kMultiply = "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 " + kMatrix + ", %d2, %d3, 1, 1, 1, 0, 0;\n",
    kFromRegisters = "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 " + kMatrix +
                     ", {%r10, %r11, %r12, %r13}, %d3, 1, 1, 1, 0;\n";

void matrix_order() {
  const std::string ready = kDescriptors + kClear + kTiles + kFenceAsync + kMeet;
  const auto is = [&](const std::string &body, std::optional<Kind> kind) { return reports(body, kind, 128); };
  CHECK(is(ready + kBegin + kMultiply + kEnd + kWaitAll + put("%f0"), std::nullopt));
  // Registers: touched in flight, touched without a fence.
  CHECK(is(ready + kBegin + kMultiply + kEnd + put("%f0") + kWaitAll, Kind::kInFlight));
  CHECK(is(ready + kBegin + kMultiply + kEnd + kWaitButOne + put("%f0") + kWaitAll, Kind::kInFlight));
  CHECK(is(ready + kBegin + kMultiply + kWaitAll + put("%f0") + kEnd + kWaitAll, Kind::kInFlight));
  CHECK(is(ready + kBegin + kMultiply + kEnd + "mov.f32 %f3, 0f00000000;" + kWaitAll, Kind::kInFlight));
  CHECK(is(ready + kBegin + kMultiply + kEnd + "mov.f32 %f4, 0f00000000;" + kWaitAll, std::nullopt));
  CHECK(is(ready + kBegin + kMultiply + kEnd, Kind::kInFlight));  // and the warp ends
  CHECK(is(ready + kMultiply + kEnd + kWaitAll, Kind::kFence));
  CHECK(is(ready + kBegin + "add.f32 %f2, %f2, %f2;" + kMultiply + kEnd + kWaitAll, Kind::kFence));
  CHECK(is(ready + kBegin + kClear + kMultiply + kEnd + kWaitAll, std::nullopt));  // a compiler's copies
  CHECK(is(ready + kBegin + kMultiply + kMultiply + kEnd + kMultiply + kEnd + kWaitAll, std::nullopt));
  CHECK(is(ready + kBegin + kMultiply + kEnd + kWaitAll + put("%f1") + kBegin + kMultiply + kEnd + kWaitAll,
           std::nullopt));
  CHECK(is(ready + kBegin + kMultiply + kEnd + kWaitAll + put("%f1") + kMultiply + kEnd + kWaitAll, Kind::kFence));
  const std::string set_a = "mov.b32 %r10, 0; mov.b32 %r11, 0; mov.b32 %r12, 0; mov.b32 %r13, 0;";
  CHECK(is(ready + set_a + kBegin + kFromRegisters + kEnd + put("%r10") + kWaitAll, std::nullopt));  // A may be read
  CHECK(is(ready + set_a + kBegin + kFromRegisters + kEnd + set_a + kWaitAll, Kind::kInFlight));
  CHECK(is(ready + kBegin + "cvt.rn.f16x2.f32 %r10, %f5, %f6;" + kFromRegisters + kEnd + kWaitAll, Kind::kFence));
  CHECK(is(ready + kBegin + kMultiply +
               "wgmma.mma_async.sync.aligned.m64n8k16.f16.f16.f16 {%f0, %f1}, %d2, %d3, 1, 1, 1, 0, 0;\n" + kEnd +
               kWaitAll,
           Kind::kInFlight));
  // Shared memory that threads wrote: fence, order.
  const std::string go = kBegin + kMultiply + kEnd + kWaitAll;
  CHECK(is(kDescriptors + kClear + kTiles + kMeet + go, Kind::kFence));
  CHECK(is(kDescriptors + kClear + kTiles + kMeet + "@%p7 " + kFenceAsync + go,
           Kind::kFence));  // not of those that wrote
  CHECK(
      is(kDescriptors + kClear + kTiles + kFenceAsync + go, std::nullopt));  // it starts when all four warps have come
  CHECK(reports(kDescriptors + kClear + "setp.lt.u32 %p1, %tid, 128; @!%p1 bra more;" + kTiles + kFenceAsync + go +
                    "exit; more: st.shared.u32 [%r20], 1;" + kFenceAsync,
                Kind::kRace, 256));
  CHECK(is(kDescriptors + kClear + go, Kind::kUninitialised));
  CHECK(is(ready + go + kMeet + kTiles, std::nullopt));
  CHECK(is(ready + go + kTiles, std::nullopt));  // waiting speaks for the four warps
  CHECK(is(ready + kBegin + kMultiply + kEnd + kMeet + "@%p7 st.shared.u32 [%r20], 1;" + kWaitAll, Kind::kRace));
  // One operation of four warps.
  CHECK(is(ready + "setp.lt.u32 %p1, %tid, 96; @!%p1 bra over;" + go + "over: bar.sync 0;", Kind::kDeadlock));
  CHECK(reports(ready + go, Kind::kBarrier, 96));
  CHECK(is(ready + "shr.u32 %r8, %tid, 5; cvt.u64.u32 %d5, %r8; shl.b64 %d5, %d5, 6; add.u64 %d3, %d3, %d5;" + go,
           Kind::kBarrier));
  CHECK(is(ready + "add.u64 %d3, %d3, 16;" + go, Kind::kMisaligned));
  CHECK(is(ready + "add.u64 %d3, %d3, 2;" + go, std::nullopt));  // the next step along k
  CHECK(is(ready + "add.u64 %d3, %d3, 511;" + go, Kind::kOutOfBounds));
}

// ---- stmatrix

void matrix_stores() {
  for (const int count : {1, 2, 4}) {
    for (const std::string trans : {"", ".trans"}) {
      std::string from, to;
      for (int k = 0; k < count; ++k) {
        from += (k ? ", %r" : "%r") + std::to_string(10 + k);
        to += (k ? ", %r" : "%r") + std::to_string(14 + k);
      }
      const std::string form = ".sync.aligned.m8n8.x" + std::to_string(count) + trans + ".shared.b16 ";
      std::string body = "shl.b32 %r3, %lane, 4; add.u32 %r3, %r20, %r3; mov.u32 %r9, 0;";
      for (int k = 0; k < count; ++k)
        body += "mad.lo.u32 %r" + std::to_string(10 + k) + ", %lane, 40503, " + std::to_string(977 * k + 5) + ";";
      body += "stmatrix" + form + "[%r3], {" + from + "}; bar.warp.sync -1; ldmatrix" + form + "{" + to + "}, [%r3];";
      for (int k = 0; k < count; ++k) {
        const std::string a = "%r" + std::to_string(10 + k), b = "%r" + std::to_string(14 + k);
        body += "xor.b32 " + a + ", " + a + ", " + b + "; or.b32 %r9, %r9, " + a + ";";
      }
      const Launched r = run_block(body + put("%r9"));
      CHECK(r.clean() && std::all_of(r.words.begin(), r.words.begin() + 32, [](uint32_t w) { return w == 0; }));
      CHECK(r.stats.bank_conflicts == 0);
    }
  }
  // Lane 4 g + t has row g, columns 2 t and 2 t + 1.
  const Launched r = run_block(
      "shl.b32 %r3, %lane, 4; add.u32 %r3, %r20, %r3; stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r3], "
      "{%lane}; bar.warp.sync -1; add.u32 %r3, %r20, %four; ld.shared.u32 %r4, [%r3];" +
      put("%r4"));
  for (uint32_t k = 0; k < 32; ++k) CHECK(r.words[k] == k);
}

}  // namespace

void test_hopper() {
  phases();
  mbarrier_order();
  bulk_copies();
  bulk_sums();
  vector_sums();
  tensor_copies();
  products();
  small_floats();
  matrix_order();
  matrix_stores();
}

}  // namespace testing
