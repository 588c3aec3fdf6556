// Happens-before: each missing order is reported in every schedule, each correct twin is not.
#include "testing.h"

using namespace emulator;

namespace testing {

namespace {

// Runs a kernel in all orders: true if all of them report the kind; or, for no kind, if none reports anything.
bool always(const std::string &body, std::optional<Kind> kind, uint32_t threads = 64, uint32_t blocks = 1) {
  bool all = true;
  for (Order order : {Order::kForward, Order::kReverse, Order::kRandom}) {
    for (uint64_t seed = 0; seed < (order == Order::kRandom ? 3u : 1u); ++seed) {
      Options options;
      options.order = order;
      options.seed = seed;
      const auto r =
          launched(".shared .align 16 .b8 s[1024]; mov.u32 %r20, s; add.u32 %r21, %r20, %four;\n" + body + "ret;",
                   threads, blocks, 0, options);
      all = all && (kind ? r.has(*kind) : r.clean());
    }
  }
  return all;
}

void shared_memory() {
  // Another warp's value.
  const std::string write = "st.shared.u32 [%r21], %tid;",
                    read = "xor.b32 %r1, %four, 128; add.u32 %r1, %r20, %r1; ld.shared.u32 %r2, [%r1];";
  CHECK(always(write + "bar.sync 0;" + read, std::nullopt));
  CHECK(always(write + read, Kind::kRace));
  CHECK(always(write + "bar.warp.sync -1;" + read, Kind::kRace));
  // Another lane's value: a shuffle orders nothing.
  const std::string neighbour = "xor.b32 %r1, %four, 4; add.u32 %r1, %r20, %r1; ld.shared.u32 %r2, [%r1];";
  CHECK(always(write + "bar.warp.sync -1;" + neighbour, std::nullopt));
  CHECK(always(write + neighbour, Kind::kRace));
  CHECK(always(write + "shfl.sync.bfly.b32 %r5, %tid, 1, 31, -1;" + neighbour, Kind::kRace));
  // Overwriting what others may still read.
  CHECK(always(write + "bar.sync 0;" + read + "bar.sync 0;" + write, std::nullopt));
  CHECK(always(write + "bar.sync 0;" + read + write, Kind::kRace));
  // Many readers of one word, then one writer.
  const std::string zero =
      "setp.eq.u32 %p0, %tid, 0; @%p0 st.shared.u32 [%r20], 5; bar.sync 0; ld.shared.u32 %r1, [%r20];";
  CHECK(always(zero + "bar.sync 0; setp.eq.u32 %p1, %tid, 40; @%p1 st.shared.u32 [%r20], 6;", std::nullopt, 128));
  CHECK(always(zero + "setp.eq.u32 %p1, %tid, 40; @%p1 st.shared.u32 [%r20], 6;", Kind::kRace, 128));
  CHECK(always(zero + "bar.warp.sync -1; setp.eq.u32 %p1, %tid, 40; @%p1 st.shared.u32 [%r20], 6;", Kind::kRace, 128));
  CHECK(always(zero + "bar.warp.sync -1; setp.eq.u32 %p1, %tid, 4; @%p1 st.shared.u32 [%r20], 6;", std::nullopt, 32));
  // Two lanes of one instruction: the same value is harmless, different ones aren't.
  CHECK(always("st.shared.u32 [%r20], 7;", std::nullopt, 32));
  CHECK(always("st.shared.u32 [%r20], %tid;", Kind::kRace, 32));
  CHECK(always("st.shared.u32 [%r20], 7;", Kind::kRace, 64));
  // Halves of a word belong to different lanes.
  CHECK(always("shl.b32 %r1, %tid, 1; add.u32 %r1, %r20, %r1; st.shared.u16 [%r1], 1;", std::nullopt));
  CHECK(
      always("shl.b32 %r1, %tid, 1; add.u32 %r1, %r20, %r1; st.shared.u16 [%r1], 1; xor.b32 %r2, %r1, 2; ld.shared.u16 "
             "%h0, [%r2];",
             Kind::kRace));
  CHECK(
      always("add.u32 %r1, %r20, %tid; st.shared.u8 [%r1], 1; bar.sync 0; shr.u32 %r2, %tid, 2; shl.b32 %r2, %r2, 2; "
             "add.u32 %r2, %r20, %r2; ld.shared.u32 %r3, [%r2];",
             std::nullopt));
  // Atomics don't race with each other, but with others.
  const std::string clear = "setp.eq.u32 %p0, %tid, 0; @%p0 st.shared.u32 [%r20], 0; bar.sync 0;";
  CHECK(always(clear + "red.shared.add.u32 [%r20], 1;", std::nullopt));
  CHECK(always(clear + "red.shared.add.u32 [%r20], 1; ld.shared.u32 %r1, [%r20];", Kind::kRace));
  CHECK(always(clear + "red.shared.add.u32 [%r20], 1; bar.sync 0; ld.shared.u32 %r1, [%r20];", std::nullopt));
  // Who only arrives isn't waited for: it must not write again.
  const std::string halves =
      "setp.lt.u32 %p0, %tid, 32; and.b32 %r6, %four, 127; add.u32 %r6, %r20, %r6; @%p0 st.shared.u32 [%r6], 1;";
  CHECK(always(halves + "@%p0 bar.arrive 1, 64; @!%p0 bar.sync 1, 64; @!%p0 ld.shared.u32 %r1, [%r6];", std::nullopt));
  CHECK(always(
      halves +
          "@%p0 bar.arrive 1, 64; @!%p0 bar.sync 1, 64; @!%p0 ld.shared.u32 %r1, [%r6]; @%p0 st.shared.u32 [%r6], 2;",
      Kind::kRace));
  CHECK(always(halves + "@%p0 bar.sync 1, 64; @!%p0 bar.arrive 1, 64; @!%p0 ld.shared.u32 %r1, [%r6];", Kind::kRace));
}

void copies() {
  const std::string issue =
      "and.b32 %r3, %tid, 63; shl.b32 %r4, %r3, 4; add.u32 %r4, %r20, %r4; cvt.u64.u32 %d0, %r3; shl.b64 %d0, %d0, 4; "
      "add.s64 %d0, %buffer, %d0;"
      "cp.async.cg.shared.global [%r4], [%d0], 16; cp.async.commit_group;";
  const std::string other =
      "xor.b32 %r5, %r3, 33; shl.b32 %r5, %r5, 4; add.u32 %r5, %r20, %r5; ld.shared.u32 %r6, [%r5];";
  const std::string wait = "cp.async.wait_group 0;";
  CHECK(always(issue + wait + "ld.shared.u32 %r6, [%r4];", std::nullopt));
  CHECK(always(issue + "ld.shared.u32 %r6, [%r4];", Kind::kInFlight));
  CHECK(always(issue + wait + "bar.sync 0;" + other, std::nullopt));
  CHECK(always(issue + "bar.sync 0;" + wait + other, Kind::kRace) ||
        always(issue + "bar.sync 0;" + wait + other, Kind::kInFlight));
  // The next copy into a buffer that others still read.
  CHECK(always(issue + wait + "bar.sync 0;" + other + "bar.sync 0;" + issue + wait, std::nullopt));
  CHECK(always(issue + wait + "bar.sync 0;" + other + issue + wait, Kind::kRace));
}

void global_memory() {
  const std::string mine = "cvt.u64.u32 %d0, %four; add.s64 %d0, %buffer, %d0; st.global.u32 [%d0], %tid;";
  CHECK(always(mine, std::nullopt, 64));
  CHECK(always(mine, Kind::kRace, 64, 2));  // both blocks
  CHECK(always(mine + "ld.global.u32 %r1, [%buffer];", Kind::kRace, 64));
  CHECK(always(mine + "bar.sync 0; ld.global.u32 %r1, [%buffer];", std::nullopt, 64));
  CHECK(always("ld.global.u32 %r1, [%buffer];", std::nullopt, 64, 3));
  CHECK(
      always("ld.global.u32 %r1, [%buffer]; mov.u32 %r2, %ctaid.x; setp.eq.u32 %p0, %r2, 1; setp.eq.and.u32 %p0, %tid, "
             "0, %p0; @%p0 st.global.u32 [%buffer], 1;",
             Kind::kRace, 32, 3));
  CHECK(always("red.global.add.u32 [%buffer], 1;", std::nullopt, 64, 3));
  CHECK(always("st.global.u32 [%buffer], 1;", Kind::kRace, 32, 2));
  // A message between blocks: needs both sides.
  const auto message = [](const std::string &release, const std::string &acquire) {
    return "setp.ne.u32 %p0, %tid, 0; @%p0 exit; mov.u32 %r1, %ctaid.x; setp.ne.u32 %p1, %r1, 0; @%p1 bra receive;\n"
           "st.global.u32 [%buffer+4], 42;" +
           release + "ret;\nreceive:" + acquire +
           "setp.ne.u32 %p2, %r2, 1; @%p2 bra receive; ld.global.u32 %r3, [%buffer+4];";
  };
  const std::string add = "atom.global.exch.b32 %r2, [%buffer], 1;", look = "atom.global.add.u32 %r2, [%buffer], 0;";
  const std::string fence = "fence.acq_rel.gpu;";
  CHECK(always(message(fence + add, look + fence), std::nullopt, 32, 2));
  CHECK(always(message("membar.gl;" + add, look + "membar.gl;"), std::nullopt, 32, 2));
  CHECK(always(message(add, look + fence), Kind::kRace, 32, 2));
  CHECK(always(message(fence + add, look), Kind::kRace, 32, 2));
  CHECK(always(message("st.release.gpu.global.u32 [%buffer], 1;", "ld.acquire.gpu.global.u32 %r2, [%buffer];"),
               std::nullopt, 32, 2));
  CHECK(always(message("st.relaxed.gpu.global.u32 [%buffer], 1;", "ld.acquire.gpu.global.u32 %r2, [%buffer];"),
               Kind::kRace, 32, 2));
  CHECK(always(message("st.release.gpu.global.u32 [%buffer], 1;", "ld.volatile.global.u32 %r2, [%buffer];"),
               Kind::kRace, 32, 2));
}

// From all threads of one block to all of another, by one thread of each: what must lie between, and on which side of
// the barriers.
void fences_and_barriers() {
  const auto message = [](const std::string &release, const std::string &acquire) {
    return "cvt.u64.u32 %d0, %four; add.s64 %d0, %buffer, %d0; setp.eq.u32 %p0, %tid, 0;\n"
           "xor.b32 %r1, %four, 128; cvt.u64.u32 %d1, %r1; add.s64 %d1, %buffer, %d1;\n"
           "mov.u32 %r1, %ctaid.x; setp.ne.u32 %p1, %r1, 0; @%p1 bra receive;\n"
           "st.global.u32 [%d0+1024], %tid;" +
           release + "ret;\nreceive: @!%p0 bra meet;\nlook:" + acquire + "ld.global.u32 %r3, [%d1+1024];";
  };
  const std::string set = "@%p0 atom.global.exch.b32 %r2, [%buffer], 1;",
                    look = "atom.global.add.u32 %r2, [%buffer], 0; setp.ne.u32 %p2, %r2, 1; @%p2 bra look;\n",
                    barrier = "bar.sync 0;", meet = "meet: bar.sync 0;";
  const std::string fence = "fence.acq_rel.gpu;", fence_sc = "fence.sc.gpu;", membar = "membar.gl;";
  const auto ordered = [&](const std::string &release, const std::string &acquire) {
    CHECK(always(message(release, acquire), std::nullopt, 64, 2));
  };
  const auto races = [&](const std::string &release, const std::string &acquire) {
    CHECK(always(message(release, acquire), Kind::kRace, 64, 2));
  };
  // The thread of the atomic has the fence: any will do, since it covers what came over the barrier.
  ordered(barrier + "@%p0 " + fence + set, look + fence + meet);
  ordered(barrier + "@%p0 st.release.gpu.global.u32 [%buffer], 1;",
          "ld.acquire.gpu.global.u32 %r2, [%buffer]; setp.ne.u32 %p2, %r2, 1; @%p2 bra look;\n" + meet);
  races(barrier + set, look + fence + meet);
  races(barrier + "@%p0 " + fence + set, look + meet);
  races("@%p0 " + fence + barrier + set, look + fence + meet);
  // Each thread has one and the barrier comes between it and the atomic: only fence.sc reaches that far.
  for (const std::string &strong : {membar, fence_sc}) {
    ordered(strong + barrier + set, look + meet + strong);
    ordered(strong + barrier + set, look + strong + meet);
    ordered(barrier + "@%p0 " + strong + set, look + meet + strong);
    ordered(strong + barrier + "@%p0 st.release.gpu.global.u32 [%buffer], 1;", look + meet + strong);
    races(barrier + "@%p0 st.release.gpu.global.u32 [%buffer], 1;", look + meet + strong);
    races(fence + barrier + set, look + meet + strong);
    races(strong + barrier + set, look + meet + fence);
    races("@%p0 " + strong + barrier + set, look + meet + strong);
    races(strong + barrier + set, look + meet + "@%p0 " + strong);
    races(strong + barrier + set, look + meet);
    races("membar.cta;" + barrier + set, look + meet + strong);
    races(strong + barrier + set, look + meet + "membar.cta;");
  }
}

// Between blocks every part of a message has .gpu or .sys scope; within one .cta will do.
void scopes() {
  // From thread 0 of block 0 to thread 0 of block 1, or to thread 32 of the same block.
  const auto message = [](bool far, const std::string &release, const std::string &acquire) {
    const std::string where =
        far ? "and.b32 %r1, %tid, 31; mov.u32 %r0, %ctaid.x;" : "and.b32 %r1, %tid, 31; shr.u32 %r0, %tid, 5;";
    return where +
           "setp.ne.u32 %p0, %r1, 0; @%p0 exit; setp.ne.u32 %p1, %r0, 0; @%p1 bra receive;\n"
           "st.global.u32 [%buffer+4], 42;" +
           release + "ret;\nreceive:" + acquire +
           "setp.ne.u32 %p2, %r2, 1; @%p2 bra receive; ld.global.u32 %r3, [%buffer+4];";
  };
  const auto ordered = [&](bool far, const std::string &release, const std::string &acquire) {
    CHECK(always(message(far, release, acquire), std::nullopt, far ? 32 : 64, far ? 2 : 1));
  };
  const auto races = [&](const std::string &release, const std::string &acquire) {
    CHECK(always(message(true, release, acquire), Kind::kRace, 32, 2));
  };
  const auto fence = [](const std::string &scope) { return "fence.acq_rel." + scope + ";"; };
  const auto set = [](const std::string &scope) { return "atom." + scope + ".global.exch.b32 %r2, [%buffer], 1;"; };
  const auto look = [](const std::string &scope) { return "ld.relaxed." + scope + ".global.u32 %r2, [%buffer];"; };
  for (const std::string scope : {"cta", "cluster"}) {
    ordered(false, fence(scope) + set(scope), look(scope) + fence(scope));
    ordered(false, "st.release." + scope + ".global.u32 [%buffer], 1;",
            "ld.acquire." + scope + ".global.u32 %r2, [%buffer];");
    races(fence(scope) + set("gpu"), look("gpu") + fence("gpu"));
    races(fence("gpu") + set(scope), look("gpu") + fence("gpu"));
    races(fence("gpu") + set("gpu"), look(scope) + fence("gpu"));
    races(fence("gpu") + set("gpu"), look("gpu") + fence(scope));
    races("st.release." + scope + ".global.u32 [%buffer], 1;", "ld.acquire.gpu.global.u32 %r2, [%buffer];");
    races("st.release.gpu.global.u32 [%buffer], 1;", "ld.acquire." + scope + ".global.u32 %r2, [%buffer];");
    // A narrow fence takes nothing from a wide one beside it.
    ordered(true, fence("gpu") + fence(scope) + set("gpu"), look("gpu") + fence(scope) + fence("gpu"));
  }
  ordered(true, fence("sys") + set("gpu"), look("sys") + fence("gpu"));
  ordered(false, "membar.cta;" + set("cta"), look("cta") + "membar.cta;");
  ordered(false, fence("gpu") + set("gpu"), look("cta") + fence("cta"));
  races("membar.cta;" + set("gpu"), look("gpu") + "membar.gl;");
  // Fences of one direction.
  ordered(true, "fence.release.gpu;" + set("gpu"), look("gpu") + "fence.acquire.gpu;");
  races("fence.acquire.gpu;" + set("gpu"), look("gpu") + "fence.acquire.gpu;");
  races("fence.release.gpu;" + set("gpu"), look("gpu") + "fence.release.gpu;");
  // Strong accesses themselves.
  const std::string add = ".global.add.u32 %r0, [%buffer], 1;",
                    elsewhere = "mov.u32 %r1, %ctaid.x; setp.eq.u32 %p0, %r1, 0;";
  CHECK(always("atom.cta" + add, std::nullopt, 64));
  CHECK(always("atom.cta" + add, Kind::kRace, 32, 2));
  CHECK(always("atom" + add, std::nullopt, 32, 2));
  CHECK(always(elsewhere + "@%p0 atom.gpu" + add + "@!%p0 atom.cta" + add, Kind::kRace, 32, 2));
  CHECK(always(elsewhere + "@%p0 st.volatile.global.u32 [%buffer], 1; @!%p0 ld.relaxed.gpu.global.u32 %r0, [%buffer];",
               std::nullopt, 1, 2));
  CHECK(always(elsewhere + "@%p0 st.volatile.global.u32 [%buffer], 1; @!%p0 ld.relaxed.cta.global.u32 %r0, [%buffer];",
               Kind::kRace, 1, 2));
  // What red doesn't return it doesn't take over.
  CHECK(always(elsewhere + "@%p0 st.global.u32 [%buffer+4], 42;" + fence("gpu") + "red.global.add.u32 [%buffer], 1;" +
                   fence("gpu") + "@!%p0 ld.global.u32 %r3, [%buffer+4];",
               Kind::kRace, 1, 2));
}

void reports() {
  // Merged by their lines, with both of them, and counted.
  const auto r = launched(
      ".shared .align 4 .b8 s[256]; mov.u32 %r0, s; add.u32 %r1, %r0, %four; st.shared.u32 [%r1], %tid;\n"
      "xor.b32 %r2, %four, 128; add.u32 %r2, %r0, %r2;\nld.shared.u32 %r3, [%r2]; ret;",
      64);
  // In this order: warp 0 reads what isn't written yet; warp 1 writes what was read, and reads what was written.
  CHECK(r.stats.reports.size() == 3 && r.has(Kind::kUninitialised));
  for (const Report &report : r.stats.reports) {
    if (report.kind != Kind::kRace || report.detail.find("read of") == std::string::npos) continue;
    CHECK(report.number == 32 && report.other && report.line.line == report.other->line + 2);
    CHECK(report.thread.x / 32 != report.other_thread.x / 32 && report.kernel == "k");
  }
}

}  // namespace

void test_races() {
  shared_memory();
  copies();
  global_memory();
  fences_and_barriers();
  scopes();
  reports();
}

}  // namespace testing
