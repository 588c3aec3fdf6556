// Memory: spaces, widths, vectors, atomics, cp.async, ldmatrix and mma, and what is reported about wrong addresses.
#include <limits>

#include "testing.h"

using namespace emulator;

namespace testing {

namespace {

constexpr float kNanValue = std::numeric_limits<float>::quiet_NaN();
const std::string kShared = ".extern .shared .align 16 .b8 dyn[];\n.shared .align 8 .b8 fixed[64];\n";

void loads_and_stores() {
  // Widths with both extensions, through shared memory.
  auto r = launched(
      ".shared .align 4 .b8 s[256]; mov.u32 %r0, s; add.u32 %r0, %r0, %four; mul.lo.u32 %r1, %tid, -1237;"
      "st.shared.u32 [%r0], %r1; ld.shared.s8 %r2, [%r0+1]; ld.shared.u8 %r3, [%r0]; ld.shared.s16 %r4, [%r0];"
      "add.u32 %r5, %r2, %r3; add.u32 %r5, %r5, %r4;" +
      put("%r5") + "ret;");
  CHECK(r.clean());
  for (uint32_t t = 0; t < 32; ++t) {
    const uint32_t x = t * static_cast<uint32_t>(-1237);
    const auto wanted =
        static_cast<uint32_t>(static_cast<int8_t>(x >> 8) + static_cast<uint8_t>(x) + static_cast<int16_t>(x));
    CHECK(r.words[t] == wanted);
  }
  // Vectors, generic addresses of three spaces, constants, local memory.
  r = launched(
      ".local .align 16 .b8 l[32]; mov.u64 %d0, l; cvta.local.u64 %d1, %d0;"
      "st.local.v4.u32 [%d0], {%tid, %four, 7, %lane}; ld.v2.u32 {%r0, %r1}, [%d1];"
      "mov.u64 %d2, fixed; cvta.shared.u64 %d2, %d2; cvt.u64.u32 %d3, %four; add.s64 %d3, %d2, %d3;"
      "setp.lt.u32 %p0, %tid, 16; @%p0 st.u32 [%d3], %r0; @%p0 ld.u32 %r3, [%d3]; @!%p0 mov.u32 %r3, %r0;"
      "ld.const.u32 %r2, [table+8]; mov.u64 %d4, table; cvta.const.u64 %d4, %d4; ld.u32 %r4, [%d4+4];"
      "add.u32 %r5, %r3, %r1; add.u32 %r5, %r5, %r2; add.u32 %r5, %r5, %r4;" +
          put("%r5") + "ret;",
      32, 1, 0, {}, kShared + ".const .align 4 .u32 table[4] = {1, 20, 300, -1};\n");
  CHECK(r.clean());
  for (uint32_t t = 0; t < 32; ++t) CHECK(r.words[t] == 5 * t + 300 + 20);
  // Dynamic shared memory lies behind the static one, at its alignment.
  r = launched(
      "mov.u32 %r0, dyn; mov.u32 %r1, fixed; sub.u32 %r2, %r0, %r1; st.shared.u32 [%r0+124], %r2; ld.shared.u32 %r3, "
      "[%r0+124];" +
          put("%r3") + "ret;",
      1, 1, 128, {}, kShared);
  CHECK(r.clean() && r.words[0] == 64);
  const Stats &s = r.stats;
  CHECK(s.buffers.size() == 1 && s.buffers[0].written_bytes == 4 && s.buffers[0].written_sectors == 1 &&
        s.opcodes.at("ld.shared") == 1);
}

void atomics() {
  const auto r = launched(
      "setp.eq.u32 %p1, %tid, 0; @%p1 st.global.u32 [%buffer+64], 0; @%p1 st.global.u32 [%buffer+68], 5; @%p1 "
      "st.global.u32 [%buffer+72], 0; @%p1 st.global.u32 [%buffer+76], 0;"
      "@%p1 st.global.u64 [%buffer+80], 0; @%p1 st.global.u32 [%buffer+88], 0; @%p1 st.global.u32 [%buffer+92], -1; "
      "@%p1 st.global.u32 [%buffer+96], 0;"
      "bar.sync 0;"
      "atom.global.add.u32 %r0, [%buffer+64], 3; atom.global.max.s32 %r1, [%buffer+68], %tid; cvt.rn.f32.u32 %f0, %tid;"
      "red.global.add.f32 [%buffer+72], %f0; atom.global.inc.u32 %r2, [%buffer+76], 9; cvt.u64.u32 %d0, %tid;"
      "red.relaxed.gpu.global.add.u64 [%buffer+80], %d0; mov.b32 %r3, 0x3c004000; red.global.add.noftz.f16x2 "
      "[%buffer+88], %r3;"
      "atom.global.and.b32 %r4, [%buffer+92], 0xff; mov.u32 %r7, 1; atom.global.cas.b32 %r5, [%buffer+96], 0, %r7;"
      "setp.eq.u32 %p0, %r5, 0; @%p0 st.global.u32 [%buffer+100], %tid; ret;",
      64);
  CHECK(r.clean());
  CHECK(r.words[16] == 192 && r.words[17] == 63 && r.words[19] == 4 && r.words[20] == 2016 && r.words[23] == 0xff);
  CHECK(bits_as<float>(r.words[18]) == 2016.0f);
  CHECK(r.words[22] == 0x54005800u);  // 64 x 1 and 64 x 2
  CHECK(r.words[24] == 1 && r.words[25] < 64);
  const auto shared = launched(
      ".shared .align 4 .b8 s[8]; mov.u32 %r0, s; setp.eq.u32 %p0, %tid, 0; @%p0 st.shared.u32 [%r0], 10; bar.sync 0;"
      "atom.shared.exch.b32 %r1, [s], %tid; red.shared.min.u32 [s], 0; bar.sync 0; ld.shared.u32 %r2, [%r0];" +
          put("%r2") + "ret;",
      64);
  CHECK(shared.clean() && shared.words[5] == 0);
  // Sums of f32: subnormal addends and sums are zero in global memory, with their sign, and themselves in shared memory.
  const std::vector<float> olds{1e-40f, -1e-40f, 1.5e-38f, 0.0f, -0.0f, 1e-38f, 3.0f, kNanValue};
  const std::vector<float> adds{1e-40f, -0.0f, -1.4e-38f, -1e-42f, -1e-42f, 1e-38f, -1e-40f, 1e-40f};
  const auto bits = [](float x) { return std::to_string(bits_as<uint32_t>(x)); };
  struct {
    std::string add;
    bool (*is_shared)(uint32_t lane);
  } const forms[] = {
      {"red.global.add.f32 [%d3], %r4;", [](uint32_t) { return false; }},
      {"red.shared.add.f32 [%d0], %r4; ld.shared.u32 %r3, [%d0]; st.global.u32 [%d3], %r3;",
       [](uint32_t) { return true; }},
      {"selp.b64 %d1, %d1, %d3, %p0; atom.add.f32 %f0, [%d1], %r4; ld.u32 %r3, [%d1]; st.global.u32 [%d3], %r3;",
       [](uint32_t lane) { return lane % 2 == 1; }},
  };
  for (const auto &form : forms) {
    bool ok = true;
    for (size_t k = 0; k < olds.size(); ++k) {
      const auto sum = launched(
          ".shared .align 4 .b8 s[128]; mov.u32 %r0, s; cvt.u64.u32 %d0, %r0; cvta.shared.u64 %d1, %d0;"
          "cvt.u64.u32 %d2, %four; add.s64 %d0, %d0, %d2; add.s64 %d1, %d1, %d2; add.s64 %d3, %buffer, %d2;"
          "and.b32 %r2, %tid, 1; setp.eq.u32 %p0, %r2, 1; mov.u32 %r3, " +
          bits(olds[k]) + "; mov.u32 %r4, " + bits(adds[k]) + "; st.shared.u32 [%d0], %r3; st.global.u32 [%d3], %r3;" +
          form.add + "ret;");
      const float plain = olds[k] + adds[k], flushes = flushed(flushed(olds[k]) + flushed(adds[k]));
      ok = ok && sum.clean();
      for (uint32_t t = 0; t < 32; ++t)
        ok = ok && same(bits_as<float>(sum.words[t]), form.is_shared(t) ? plain : flushes);
    }
    check(ok, __FILE__, __LINE__, form.add);
  }
}

void wrong_addresses() {
  const auto global = [](const std::string &access) { return launched(access + "ret;", 1); };
  const auto detail = [](const Launched &r) { return r.stats.reports.empty() ? "" : r.stats.reports[0].detail; };
  auto r = global("ld.global.u32 %r0, [%buffer+4096];");
  CHECK(r.has(Kind::kOutOfBounds) && detail(r) == "4-byte read at buffer + 4096, which has 4096 bytes");
  r = global("st.global.u64 [%buffer+-8], %d0;");
  CHECK(r.has(Kind::kOutOfBounds) && detail(r) == "8-byte write at buffer - 8, which has 4096 bytes");
  CHECK(global("ld.global.v2.u32 {%r0, %r1}, [%buffer+4092];").has(Kind::kMisaligned) ||
        global("ld.global.v2.u32 {%r0, %r1}, [%buffer+4092];").has(Kind::kOutOfBounds));
  CHECK(global("ld.global.u32 %r0, [%buffer+2];").has(Kind::kMisaligned));
  CHECK(global("mov.u64 %d0, 64; ld.global.u32 %r0, [%d0];").has(Kind::kOutOfBounds));
  CHECK(global("ld.u32 %r0, [%d1];").has(Kind::kOutOfBounds));  // a register that nothing set
  CHECK(global("mov.u64 %d0, 0; sub.u64 %d0, %d0, 4; ld.global.v4.u32 {%r0, %r1, %r2, %r3}, [%d0];")
            .has(Kind::kOutOfBounds));
  const auto shared = [](const std::string &access, Options options = {}) {
    return launched("mov.u32 %r9, fixed; " + access + "ret;", 1, 1, 32, options, kShared);
  };
  CHECK(shared("st.shared.u32 [%r9+60], 1; st.shared.u32 [dyn+28], 1;").clean());
  CHECK(shared("mov.u32 %r1, dyn; st.shared.u32 [%r1+32], 1;").has(Kind::kOutOfBounds));
  CHECK(shared("st.shared.u32 [%r9+-4], 1;").has(Kind::kOutOfBounds));
  CHECK(shared("st.shared.u32 [%r9+2], 1;").has(Kind::kMisaligned));
  CHECK(shared("ld.shared.u32 %r1, [%r9];").has(Kind::kUninitialised));
  CHECK(shared("st.shared.u16 [%r9], 1; ld.shared.u32 %r1, [%r9];").has(Kind::kUninitialised));
  Options quiet;
  quiet.uninitialised = false;
  CHECK(shared("ld.shared.u32 %r1, [%r9]; st.global.u32 [%buffer], %r1;", quiet).clean());
  CHECK(
      launched("st.global.u32 [table], 1; ret;", 1, 1, 0, {}, ".const .align 4 .u32 table[4];\n").has(Kind::kReadOnly));
  CHECK(
      launched(".local .align 8 .b8 l[16]; mov.u64 %d0, l; st.local.u32 [%d0+16], 1; ret;", 1).has(Kind::kOutOfBounds));
  // Freed memory belongs to no buffer.
  Memory memory;
  void *a = memory.allocate(64, "a");
  CHECK(memory.find(a) && memory.find(static_cast<char *>(a) + 63) && !memory.find(static_cast<char *>(a) + 64));
  CHECK(memory.allocated_bytes() == 64 && memory.release(a) && !memory.release(a) && !memory.find(a));
  float mine[4];
  memory.add(mine, sizeof mine, "mine");
  bool refused = false;
  try {
    memory.add(mine + 1, 4, "part");
  } catch (const std::invalid_argument &) {
    refused = true;
  }
  CHECK(refused && memory.remove(mine) && !memory.remove(mine));
}

// A fault as an exception, with all that a report says.
void thrown() {
  Memory memory;
  int *p = static_cast<int *>(memory.allocate(16, "p"));
  const void *params[] = {&p};
  const Module module = load_module(
      module_text(".param .u64 p",
                  ".reg .b64 %d<2>; .reg .b32 %r<2>;\nld.param.u64 %d0, [p];\n.loc 1 10 1\nmov.u32 %r0, %tid.y;\n"
                  ".loc 2 33 1, function_name $L__info_string0, inlined_at 1 12 5\nmul.wide.u32 %d1, %r0, 8;\nadd.s64 "
                  "%d1, %d0, %d1;\nst.global.u32 [%d1], 1; ret;",
                  ".file 1 \"some/where/kernel.cu\"\n.file 2 \"tile.cuh\"\n"));
  std::string text;
  try {
    launch(module, memory, "k", {1, 1, 1}, {1, 4, 1}, 0, params);
  } catch (const Fault &fault) {
    text = fault.what();
    CHECK(fault.report.kind == Kind::kOutOfBounds && fault.report.thread.y == 2);
  }
  CHECK(
      text ==
      "out of bounds in k at tile.cuh:33 (inlined at kernel.cu:12), block (0,0,0) thread (0,2,0): 4-byte write at p + "
      "16, which has 16 bytes [st.global.u32 [%d1], 1]");
  const auto refused = [&](Dim3 grid, Dim3 block, size_t shared) {
    try {
      launch(module, memory, "k", grid, block, shared, params);
    } catch (const Fault &fault) {
      return fault.report.kind == Kind::kLaunch;
    }
    return false;
  };
  CHECK(refused({1}, {1025}, 0) && refused({0}, {1}, 0) && refused({1, 65536}, {1}, 0) && refused({1}, {1}, 1 << 20));
}

void copies() {
  const std::string fetch =
      "mov.u32 %r9, dyn; shl.b32 %r8, %tid, 4; add.u32 %r8, %r9, %r8; cvt.u64.u32 %d0, %r8; add.s64 %d0, %d0, 1024;"
      "add.s64 %d0, %buffer, %d0; st.global.v4.u32 [%d0], {%tid, 1, 2, 3};\n";
  const std::string read = "ld.shared.v4.u32 {%r0, %r1, %r2, %r3}, [%r8]; add.u32 %r4, %r0, %r3;" + put("%r4") + "ret;";
  for (Copies when : {Copies::kLate, Copies::kEager, Copies::kRandom}) {
    Options options;
    options.copies = when;
    const auto with = [&](const std::string &copy) {
      return launched(fetch + copy + read, 32, 1, 512, options, kShared);
    };
    auto r = with("cp.async.cg.shared.global [%r8], [%d0], 16; cp.async.commit_group; cp.async.wait_group 0;");
    CHECK(r.clean() && r.words[3] == 6);
    CHECK(with("cp.async.ca.shared.global [%r8], [%d0], 8; cp.async.ca.shared.global [%r8+8], [%d0+8], 8; "
               "cp.async.wait_all;")
              .clean());
    // Not committed, or one group too many left: still under way.
    CHECK(with("cp.async.cg.shared.global [%r8], [%d0], 16; cp.async.wait_group 0;").has(Kind::kInFlight));
    CHECK(with("cp.async.cg.shared.global [%r8], [%d0], 16; cp.async.commit_group; cp.async.wait_group 1;")
              .has(Kind::kInFlight));
    // Fewer bytes than the width: the rest is zero, and the source isn't touched if there are none.
    r = with("mov.u32 %r7, 4; cp.async.cg.shared.global.L2::128B [%r8], [%d0], 16, %r7; cp.async.wait_all;");
    CHECK(r.clean() && r.words[3] == 3);
    CHECK(with("mov.u32 %r7, 0; mov.u64 %d1, 16; cp.async.cg.shared.global [%r8], [%d1], 16, %r7; cp.async.wait_all;")
              .clean());
    CHECK(with("mov.u64 %d1, 16; cp.async.cg.shared.global [%r8], [%d1], 16; cp.async.wait_all;")
              .has(Kind::kOutOfBounds));
  }
  Options late;
  late.races = false;
  const auto r = launched(fetch + "cp.async.cg.shared.global [%r8], [%d0], 16;" + read, 32, 1, 512, late, kShared);
  CHECK(r.words[1] == 0xfffffffeu);  // poison, also without race detection
}

// mma against the product of matrices, with fragments as the ISA's figures have them.
template <int depth>
void check_product(const std::string &name, int type) {
  const std::string shape = depth == 16 ? "m16n8k16" : depth == 8 ? "m16n8k8" : "m16n8k4";
  const int per = type == 2 ? 1 : 2, a_registers = 16 * depth / 32 / per, b_registers = 8 * depth / 32 / per;
  std::string a = "{", b = "{";
  std::string body;
  for (int k = 0; k < a_registers + b_registers; ++k) {
    // Small numbers that are exact in every type: element e of register k in lane l.
    body += "mad.lo.u32 %r10, %lane, 7, " + std::to_string(k * 5 + 1) +
            "; and.b32 %r10, %r10, 15; cvt.rn.f32.u32 %f0, %r10; add.u32 %r10, %r10, 3; cvt.rn.f32.u32 %f1, %r10;";
    const std::string r = "%r" + std::to_string(k);
    body += type == 0   ? "cvt.rn.f16x2.f32 " + r + ", %f1, %f0;"
            : type == 1 ? "cvt.rn.bf16x2.f32 " + r + ", %f1, %f0;"
                        : "mov.b32 " + r + ", %f0;";
    (k < a_registers ? a : b) += (k == 0 || k == a_registers ? "" : ", ") + r;
  }
  body += "cvt.rn.f32.u32 %f4, %lane; mma.sync.aligned." + shape + ".row.col.f32." + name + "." + name +
          ".f32 {%f8, %f9, %f10, %f11}, " + a + "}, " + b +
          "}, {%f4, %f4, %f4, %f4}; shl.b32 %r10, %tid, 4; cvt.u64.u32 %d0, %r10; add.s64 %d0, %buffer, %d0; "
          "st.global.v4.f32 [%d0], {%f8, %f9, %f10, %f11}; ret;";
  const auto r = launched(body);
  CHECK(r.clean());
  const auto element = [&](int lane, int k, int e) { return ((lane * 7 + k * 5 + 1) & 15) + 3 * e; };
  bool ok = r.stats.mma == 1;
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      const int lane = row % 8 * 4 + column / 2, at = row / 8 * 2 + column % 2;
      double sum = lane;
      for (int k = 0; k < depth; ++k) {
        double x, y;
        if (type == 2) {
          x = element(row % 8 * 4 + k % 4, row / 8 + 2 * (k / 4), 0);
          y = element(column * 4 + k % 4, a_registers + k / 4, 0);
        } else {
          x = element(row % 8 * 4 + k % 8 / 2, row / 8 + 2 * (k / 8), k % 2);
          y = element(column * 4 + k % 8 / 2, a_registers + k / 8, k % 2);
        }
        sum += x * y;
      }
      ok = ok && bits_as<float>(r.words[static_cast<size_t>(lane * 4 + at)]) == static_cast<float>(sum);
    }
  }
  check(ok, __FILE__, __LINE__, shape + " " + name);
}

void matrices() {
  check_product<16>("f16", 0);
  check_product<8>("f16", 0);
  check_product<16>("bf16", 1);
  check_product<8>("bf16", 1);
  check_product<8>("tf32", 2);
  check_product<4>("tf32", 2);
  // movmatrix: element (row, column) has the value 8 row + column.
  const auto moved = launched(
      "shl.b32 %r0, %lane, 1; add.u32 %r1, %r0, 1; shl.b32 %r1, %r1, 16; or.b32 %r0, %r0, %r1;"
      "movmatrix.sync.aligned.m8n8.trans.b16 %r2, %r0;" +
      put("%r2") + "ret;");
  CHECK(moved.clean());
  bool transposed_all = true;
  for (uint32_t lane = 0; lane < 32; ++lane) {
    const uint32_t row = lane / 4, column = lane % 4 * 2;
    transposed_all = transposed_all && moved.words[lane] == ((8 * column + row) | (8 * (column + 1) + row) << 16);
  }
  CHECK(transposed_all);
  CHECK(launched("setp.lt.u32 %p0, %tid, 16; @%p0 movmatrix.sync.aligned.m8n8.trans.b16 %r2, %r0; ret;")
            .has(Kind::kBarrier));
  // ldmatrix: element (row, column) of matrix m has the value 64 m + 8 row + column.
  for (bool transposed : {false, true}) {
    const auto r = launched(
        "mov.u32 %r9, dyn; shl.b32 %r8, %tid, 4; add.u32 %r8, %r9, %r8; mov.u32 %r4, 0;\n"
        "loop: shl.b32 %r5, %tid, 3; add.u32 %r5, %r5, %r4; cvt.u16.u32 %h0, %r5; shl.b32 %r6, %r4, 1; add.u32 %r6, "
        "%r8, %r6;"
        "st.shared.u16 [%r6], %h0; add.u32 %r4, %r4, 1; setp.lt.u32 %p0, %r4, 8; @%p0 bra loop; bar.warp.sync -1;"
        "ldmatrix.sync.aligned.m8n8.x4" +
            std::string(transposed ? ".trans" : "") +
            ".shared.b16 {%r0, %r1, %r2, %r3}, [%r8];"
            "cvt.u64.u32 %d0, %tid; shl.b64 %d0, %d0, 4; add.s64 %d0, %buffer, %d0; st.global.v4.u32 [%d0], {%r0, %r1, "
            "%r2, %r3}; ret;",
        32, 1, 512, {}, kShared);
    CHECK(r.clean());
    bool ok = true;
    for (uint32_t lane = 0; lane < 32; ++lane) {
      for (uint32_t m = 0; m < 4; ++m) {
        const uint32_t i = lane / 4, j = lane % 4 * 2;
        const uint32_t low = 64 * m + (transposed ? 8 * j + i : 8 * i + j),
                       high = 64 * m + (transposed ? 8 * (j + 1) + i : 8 * i + j + 1);
        ok = ok && r.words[lane * 4 + m] == (high << 16 | low);
      }
    }
    CHECK(ok);
  }
}

void counts() {
  // 32 lanes, 4 bytes each, a row of words: 4 sectors; every other word: 8; words 32 apart in shared memory: 32 passes.
  auto r = launched("mov.u32 %r0, 1;" + put("%r0") + "ret;");
  CHECK(r.stats.buffers[0].written_sectors == 4 && r.stats.buffers[0].written_bytes == 128 &&
        r.stats.buffers[0].written_unique_bytes == 128);
  r = launched("shl.b32 %four, %four, 1; mov.u32 %r0, 1;" + put("%r0") + put("%r0") + "ret;");
  CHECK(r.stats.buffers[0].written_sectors == 16 && r.stats.buffers[0].written_twice_bytes == 128);
  const auto banks = [](const std::string &step, const std::string &store) {
    const auto s = launched("mov.u32 %r0, dyn; mad.lo.u32 %r0, %tid, " + step + ", %r0; " + store + " ret;", 32, 1,
                            8192, {}, kShared)
                       .stats;
    return s.bank_conflicts;
  };
  CHECK(banks("4", "st.shared.u32 [%r0], 1;") == 0);
  CHECK(banks("128", "st.shared.u32 [%r0], 1;") == 31);
  CHECK(banks("8", "st.shared.u32 [%r0], 1;") == 1);
  CHECK(banks("8", "st.shared.v2.u32 [%r0], {1, 2};") == 0);
  CHECK(banks("16", "st.shared.v4.u32 [%r0], {1, 2, 3, 4};") == 0);
  CHECK(banks("80", "st.shared.v4.u32 [%r0], {1, 2, 3, 4};") == 0);
  CHECK(banks("128", "st.shared.v4.u32 [%r0], {1, 2, 3, 4};") == 28);
}

}  // namespace

void test_memory() {
  loads_and_stores();
  atomics();
  wrong_addresses();
  thrown();
  copies();
  matrices();
  counts();
}

}  // namespace testing
