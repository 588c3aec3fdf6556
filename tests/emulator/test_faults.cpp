// Faults: which are found in a text, and that each of them changes what a kernel does.
#include <algorithm>

#include "faults.h"
#include "testing.h"

namespace testing {

namespace {

using emulator::FaultKind;
using emulator::SeededFault;

const std::string kParameters = ".param .u64 out, .param .u64 in, .param .u32 n";

// Sums in[tid + 32 i] for i < n through shared memory: thread t stores what thread 31 - t of its warp read.
const std::string kBody = R"(
  .reg .pred %p<4>; .reg .b32 %r<12>; .reg .f32 %f<4>; .reg .b64 %rd<8>;
  .shared .align 16 .b8 buffer[272];
  ld.param.u64 %rd1, [out];
  ld.param.u64 %rd2, [in];
  ld.param.u32 %r1, [n];
  mov.u32 %r2, %tid.x;
  mul.wide.u32 %rd3, %r2, 4;
  add.s64 %rd4, %rd2, %rd3;
  mov.u32 %r3, 0;
  mov.f32 %f1, 0f00000000;
loop:
  setp.lt.s32 %p1, %r3, %r1;
  @!%p1 bra done;
  ld.global.f32 %f2, [%rd4];
  add.f32 %f1, %f1, %f2;
  add.s64 %rd4, %rd4, 128;
  add.s32 %r3, %r3, 1;
  bra loop;
done:
  mov.u32 %r4, buffer;
  shl.b32 %r5, %r2, 2;
  add.s32 %r6, %r4, %r5;
  st.shared.f32 [%r6], %f1;
  bar.sync 0;
  xor.b32 %r7, %r2, 31;
  shl.b32 %r8, %r7, 2;
  add.s32 %r9, %r4, %r8;
  ld.shared.f32 %f3, [%r9];
  add.s64 %rd5, %rd1, %rd3;
  st.global.f32 [%rd5], %f3;
  ret;
)";

std::vector<std::string> descriptions(const std::vector<SeededFault> &faults) {
  std::vector<std::string> all;
  for (const SeededFault &fault : faults)
    all.push_back(std::string(name_of(fault.kind)) + ": " + fault.what + " | " + fault.replacement);
  return all;
}

void same_list(const std::vector<std::string> &got, const std::vector<std::string> &wanted, const char *what) {
  for (size_t n = 0; n < std::max(got.size(), wanted.size()); ++n) {
    const std::string g = n < got.size() ? got[n] : "(nothing)", w = n < wanted.size() ? wanted[n] : "(nothing)";
    check(g == w, __FILE__, __LINE__, std::string(what) + ": got \"" + g + "\", wanted \"" + w + "\"");
  }
}

// What the kernel above gives, or the report that it ends with.
std::string outcome(const std::string &ptx) {
  emulator::Memory memory;
  std::vector<float> in(5 * 64);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i * i % 97);
  void *out = memory.allocate(64 * 4, "out"), *from = memory.allocate(in.size() * 4, "in");
  std::memcpy(from, in.data(), in.size() * 4);
  const uint32_t n = 6;  // one row of 32 more is still in bounds
  const void *params[] = {&out, &from, &n};
  emulator::Options options;
  options.max_instructions = 10000;
  try {
    emulator::launch(emulator::load_module(ptx), memory, "k", {}, {64}, 0, params, options);
  } catch (const emulator::Fault &fault) {
    return name_of(fault.report.kind);
  }
  return std::string(static_cast<const char *>(out), 64 * 4);
}

void all_are_found() {
  const std::string text = module_text(kParameters, kBody);
  same_list(descriptions(emulator::faults_of(text, "k")),
            {
                "address: constant of mul + 4 | mul.wide.u32 %rd3, %r2, 8;",
                "predicate: setp always true | mov.pred %p1, -1; ",
                "predicate: setp always false | mov.pred %p1, 0; ",
                "predicate: lt for le | setp.le.s32 %p1, %r3, %r1;",
                "address: offset + 4 | ld.global.f32 %f2, [%rd4+4];",
                "step: step doubled | add.s64 %rd4, %rd4, 256;",
                "step: step doubled | add.s32 %r3, %r3, 2;",
                "address: address + 4 | mov.u32 %r4, buffer+4;",
                "address: constant of shl + 1 | shl.b32 %r5, %r2, 3;",
                "address: offset + 4 | st.shared.f32 [%r6+4], %f1;",
                "synchronisation: bar.sync removed | ;",
                "address: constant of xor ^ 1 | xor.b32 %r7, %r2, 30;",
                "address: constant of shl + 1 | shl.b32 %r8, %r7, 3;",
                "address: offset + 4 | ld.shared.f32 %f3, [%r9+4];",
                "address: offset + 4 | st.global.f32 [%rd5+4], %f3;",
            },
            "a kernel");
}

void all_are_caught() {
  const std::string text = module_text(kParameters, kBody), right = outcome(text);
  CHECK(right.size() == 64 * 4);
  for (const SeededFault &fault : emulator::faults_of(text, "k")) {
    const std::string got = outcome(emulator::with_fault(text, fault));
    // Moving all of the buffer changes nothing: it has room behind, and its content is at the same distance.
    const bool is_equivalent = fault.what == "address + 4";
    check((got == right) == is_equivalent, __FILE__, __LINE__, fault.what + " in " + fault.line.ptx);
  }
}

// The faults of a few statements, without what is around them.
std::vector<std::string> of_statements(const std::string &statements) {
  const std::string text =
      module_text(".param .u64 out",
                  ".reg .pred %p<8>; .reg .b16 %h<4>; .reg .b32 %r<16>; .reg .f32 %f<8>; .reg .b64 %rd<8>;\n"
                  ".shared .align 16 .b8 buffer[1024];\n" +
                      statements + "\nret;");
  return descriptions(emulator::faults_of(text, "k"));
}

void copies_and_waits() {
  same_list(of_statements("cp.async.cg.shared.global [%r1], [%rd1+32], 16;\n"
                          "cp.async.commit_group;\n"
                          "cp.async.wait_group 1;\n"
                          "cp.async.wait_all;\n"
                          "bar.warp.sync -1;\n"
                          "membar.gl; fence.acq_rel.gpu;"),
            {"address: offset + 16 | cp.async.cg.shared.global [%r1+16], [%rd1+32], 16;",
             "address: offset + 16 | cp.async.cg.shared.global [%r1], [%rd1+32+16], 16;",
             "synchronisation: cp.async.commit_group removed | ;", "synchronisation: cp.async.wait_group removed | ;",
             "synchronisation: wait for one group less | cp.async.wait_group 2;",
             "synchronisation: cp.async.wait_all removed | ;", "synchronisation: bar.warp.sync removed | ;",
             "synchronisation: membar.gl removed | ;", "synchronisation: fence.acq_rel.gpu removed | ;"},
            "copies");
}

void of_hopper() {
  const std::string copy = "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes ";
  same_list(
      of_statements(
          "wgmma.wait_group.sync.aligned 0;\n@%p1 bra after;\nmbarrier.arrive.shared::cta.b64 _, [%r1];\nafter:\n"
          "mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r1], %r2;\n"
          "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], 64;\n"
          "bar.sync 1, 128; fence.proxy.async.shared::cta;\n" +
          copy +
          "[%r1], [%rd1, {%r2, 3}], [%r3];\n"
          "add.s32 %r4, %r5, 32; shr.u32 %r6, %r4, 4; cvt.u64.u32 %rd2, %r6; or.b64 %rd3, %rd2, 4611686293372469248; "
          "add.s64 %rd4, %rd3, 2; setp.ne.s32 %p3, %r7, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%f0, %f1, %f2, %f3}, %rd3, %rd4, %p3, 1, 1, 0, 0;"),
      {"synchronisation: wgmma.wait_group.sync.aligned removed | ;",
       "synchronisation: wait for one group less | wgmma.wait_group.sync.aligned 1;",
       "synchronisation: released before the wait | \n@%p1 bra after;\nmbarrier.arrive.shared::cta.b64 _, "
       "[%r1];\nafter:\n"
       "wgmma.wait_group.sync.aligned 0; ",
       "synchronisation: mbarrier.arrive.shared::cta.b64 removed | ;",
       "synchronisation: wait always succeeds | mov.pred %p2, -1; ",
       "synchronisation: wait of the other parity | { .reg .b32 changed; xor.b32 changed, %r2, 1; "
       "mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r1], changed; }",
       "synchronisation: mbarrier.arrive.expect_tx.shared::cta.b64 removed | ;",
       "synchronisation: expects 16 bytes more | mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], 80;",
       "synchronisation: bar.sync removed | ;",
       "synchronisation: the next barrier | bar.sync 2, 128;",
       "synchronisation: 32 threads more | bar.sync 1, 160;",
       "synchronisation: fence.proxy.async.shared::cta removed | ;",
       "address: offset + 16 | " + copy + "[%r1+16], [%rd1, {%r2, 3}], [%r3];",
       "address: coordinate 0 + 1 | { .reg .b32 changed; add.s32 changed, %r2, 1; " + copy +
           "[%r1], [%rd1, {changed, 3}], [%r3]; }",
       "address: coordinate 1 + 1 | { .reg .b32 changed; add.s32 changed, 3, 1; " + copy +
           "[%r1], [%rd1, {%r2, changed}], [%r3]; }",
       "address: offset + 16 | " + copy + "[%r1], [%rd1, {%r2, 3}], [%r3+16];",
       "descriptor: address moved | add.s32 %r4, %r5, 48;",
       "descriptor: LBO + 16 | or.b64 %rd3, %rd2, 4611686293372534784;",
       "descriptor: SBO + 16 | or.b64 %rd3, %rd2, 4611686297667436544;",
       "descriptor: another swizzle | or.b64 %rd3, %rd2, -4611685743482306560;",
       "descriptor: address moved | add.s64 %rd4, %rd3, 3;",
       "predicate: setp always true | mov.pred %p3, -1; ",
       "predicate: setp always false | mov.pred %p3, 0; "},
      "of Hopper");
}

void predicates() {
  // What decides nothing is left alone, and so are comparisons of floats that only choose.
  same_list(of_statements("setp.eq.s32 %p1, %r1, 1;\n"
                          "setp.gt.f32 %p2, %f1, %f2; selp.f32 %f3, %f1, %f2, %p2;\n"
                          "setp.gt.f32 %p3, %f1, %f2; not.pred %p4, %p3; @%p4 bra end;\n"
                          "@%p4 setp.ge.and.u32 %p5|%p6, %r1, %r2, %p2; selp.b32 %r3, %r1, %r2, %p6;\n"
                          "end:"),
            {"predicate: setp of floats always true | mov.pred %p3, -1; ",
             "predicate: setp of floats always false | mov.pred %p3, 0; ",
             "predicate: setp always true | @%p4 mov.pred %p5, -1; @%p4 mov.pred %p6, 0; ",
             "predicate: setp always false | @%p4 mov.pred %p5, 0; @%p4 mov.pred %p6, -1; ",
             "predicate: ge for gt | @%p4 setp.gt.and.u32 %p5|%p6, %r1, %r2, %p2;"},
            "predicates");
}

void units() {
  // One element of what is accessed, on each way to the address; registers of an inner scope are their own.
  same_list(
      of_statements("add.s32 %r1, %r8, 3; mad.lo.s32 %r2, %r1, 48, 7; shr.u32 %r3, %r9, 5; and.b32 %r4, %r3, 6;\n"
                    "mul.lo.s32 %r5, %r4, 16; add.s32 %r6, %r2, %r5; ld.shared.v4.f32 {%f1, %f2, %f3, %f4}, [%r6];\n"
                    "{ .reg .b32 %r6; mov.u32 %r6, 9; }"),
      {"address: constant of add + 1 | add.s32 %r1, %r8, 4;",
       "address: constant of mad + 16 | mad.lo.s32 %r2, %r1, 64, 7;",
       "address: constant of mad + 16 | mad.lo.s32 %r2, %r1, 48, 23;",
       "address: constant of shr + 1 | shr.u32 %r3, %r9, 6;", "address: constant of and ^ 1 | and.b32 %r4, %r3, 7;",
       "address: constant of mul + 16 | mul.lo.s32 %r5, %r4, 32;",
       "address: offset + 16 | ld.shared.v4.f32 {%f1, %f2, %f3, %f4}, [%r6+16];"},
      "units");
}

void every_fault_can_be_loaded() {
  for (const char *name : {"reduce", "tensor", "hopper"}) {
#ifdef EMULATOR_KERNELS
    FILE *file = std::fopen((std::string(EMULATOR_KERNELS) + "/" + name + ".ptx").c_str(), "rb");
    CHECK(file != nullptr);
    if (file == nullptr) continue;
    std::string text(1 << 20, '\0');
    text.resize(std::fread(text.data(), 1, text.size(), file));
    std::fclose(file);
    size_t count = 0;
    for (const emulator::KernelInfo &kernel : emulator::load_module(text).kernels()) {
      for (const SeededFault &fault : emulator::faults_of(text, kernel.name)) {
        const std::string changed = emulator::with_fault(text, fault);
        CHECK(changed != text &&
              std::count(changed.begin(), changed.end(), '\n') == std::count(text.begin(), text.end(), '\n'));
        emulator::load_module(changed);
        CHECK(fault.line.file != "ptx");
        ++count;
      }
    }
    CHECK(count > 0);
#else
    (void)name;
#endif
  }
}

}  // namespace

void test_faults() {
  all_are_found();
  all_are_caught();
  copies_and_waits();
  of_hopper();
  predicates();
  units();
  every_fault_can_be_loaded();
}

}  // namespace testing
