// Lanes that work together or go different ways: shuffles, votes, divergence, barriers, deadlocks, waiting for others.
#include <algorithm>

#include "testing.h"

using namespace emulator;

namespace testing {

namespace {

std::vector<uint32_t> lane_numbers() {
  std::vector<uint32_t> v(32);
  for (uint32_t k = 0; k < 32; ++k) v[k] = k;
  return v;
}
const auto lane = lane_numbers();
const auto word = values<uint32_t>({3, 3, 9}, 30);

void together() {
  const auto w = [](uint32_t k) { return word[k]; };
  CHECK_LANES(
      uint32_t, "shfl.sync.bfly.b32 %r, %a0, 5, 31, -1;", [&](uint32_t, uint32_t k) { return w(k ^ 5); }, word, lane);
  CHECK_LANES(
      uint32_t, "shfl.sync.up.b32 %r|%p0, %a0, 3, 0, -1; @!%p0 mov.u32 %r, 1;",
      [&](uint32_t, uint32_t k) { return k < 3 ? 1 : w(k - 3); }, word, lane);
  CHECK_LANES(
      uint32_t, "shfl.sync.down.b32 %r|%p0, %a0, 3, 31, -1; @!%p0 mov.u32 %r, 1;",
      [&](uint32_t, uint32_t k) { return k > 28 ? 1 : w(k + 3); }, word, lane);
  CHECK_LANES(uint32_t, "shfl.sync.idx.b32 %r, %a0, 7, 31, -1;", [&](uint32_t, uint32_t) { return w(7); }, word, lane);
  // Segments of 8 lanes: the clamp is 31 & ..., the segment mask 24.
  CHECK_LANES(
      uint32_t, "shfl.sync.idx.b32 %r, %a0, 13, 0x181f, -1;", [&](uint32_t, uint32_t k) { return w((k & 24) | 5); },
      word, lane);
  CHECK_LANES(
      uint32_t, "shfl.sync.down.b32 %r, %a0, 2, 0x181f, -1;",
      [&](uint32_t, uint32_t k) { return (k & 7) > 5 ? w(k) : w(k + 2); }, word, lane);
  CHECK_LANES(
      uint32_t, "and.b32 %w0, %a0, 3; setp.eq.u32 %p0, %w0, 1; vote.sync.ballot.b32 %r, %p0, -1;",
      [](uint32_t) { return 0x22222222u; }, lane);
  CHECK_LANES(
      uint32_t,
      "setp.lt.u32 %p0, %a0, 31; vote.sync.all.pred %p1, %p0, -1; vote.sync.any.pred %p2, !%p0, -1; selp.b32 %r, 1, 0, "
      "%p1; @%p2 add.u32 %r, %r, 2;",
      [](uint32_t) { return 2; }, lane);
  CHECK_LANES(
      uint32_t, "match.any.sync.b32 %r, %a0, -1;",
      [&](uint32_t a) {
        uint32_t m = 0;
        for (uint32_t k = 0; k < 32; ++k) m |= (word[k] == a ? 1u : 0) << k;
        return m;
      },
      word);
  CHECK_LANES(
      uint32_t, "match.all.sync.b32 %w0|%p0, %a0, -1; selp.b32 %r, 1, %w0, %p0;", [](uint32_t) { return 0; }, word);
  CHECK_LANES(
      uint32_t, "redux.sync.add.s32 %r, %a0, -1;",
      [](uint32_t) {
        uint32_t sum = 0;
        for (uint32_t x : word) sum += x;
        return sum;
      },
      word);
  CHECK_LANES(
      uint32_t, "redux.sync.max.u32 %r, %a0, -1;", [](uint32_t) { return *std::max_element(word.begin(), word.end()); },
      word);
  CHECK_LANES(
      uint32_t, "elect.sync %w0|%p0, -1; selp.b32 %r, 1, %w0, %p0;", [](uint32_t k) { return k == 0 ? 1 : 0; }, lane);
  // Halves of a warp with masks of their own, on different ways.
  CHECK_LANES(
      uint32_t,
      "setp.lt.u32 %p0, %a1, 16; @%p0 bra low; shfl.sync.bfly.b32 %r, %a0, 1, 31, 0xffff0000; bra.uni join;\n"
      "low: shfl.sync.bfly.b32 %r, %a0, 2, 31, 0xffff;\njoin: activemask.b32 %w0; and.b32 %w0, %w0, 1; add.u32 %r, %r, "
      "%w0;",
      [&](uint32_t, uint32_t k) { return w(k < 16 ? k ^ 2 : k ^ 1) + 1; }, word, lane);
  CHECK_LANES(
      uint32_t,
      "setp.lt.u32 %p0, %a1, 16; selp.b32 %w0, 0xffff, 0xffff0000, %p0; shfl.sync.bfly.b32 %r, %a0, 3, 31, %w0;",
      [&](uint32_t, uint32_t k) { return w(k ^ 3); }, word, lane);
  CHECK(
      launched("setp.lt.u32 %p0, %tid, 16; @%p0 shfl.sync.bfly.b32 %r0, %tid, 1, 31, -1; @!%p0 bar.warp.sync -1; ret;")
          .has(Kind::kBarrier));
  CHECK(launched("shfl.sync.bfly.b32 %r0, %tid, 1, 31, 0xffff; ret;").has(Kind::kBarrier));
  // Lanes that have ended aren't waited for.
  CHECK(launched("setp.ge.u32 %p0, %tid, 20; @%p0 exit; bar.warp.sync -1; bar.sync 0; ret;", 64).clean());
}

void divergence() {
  // Collatz: every lane loops a number of times of its own, then all meet again.
  const auto r = launched(
      "add.u32 %r0, %tid, 1; mov.u32 %r1, 0;\n"
      "loop: setp.eq.u32 %p0, %r0, 1; @%p0 bra done; and.b32 %r2, %r0, 1; setp.eq.u32 %p1, %r2, 0; @%p1 bra even;\n"
      "mad.lo.u32 %r0, %r0, 3, 1; bra.uni next;\neven: shr.u32 %r0, %r0, 1;\nnext: add.u32 %r1, %r1, 1; bra.uni loop;\n"
      "done: activemask.b32 %r3; setp.ne.u32 %p2, %r3, -1; @%p2 mov.u32 %r1, 999;\n" +
      put("%r1") + "ret;");
  CHECK(r.clean());
  for (uint32_t t = 0; t < 32; ++t) {
    uint32_t n = t + 1, steps = 0;
    for (; n != 1; ++steps) n = n % 2 == 0 ? n / 2 : 3 * n + 1;
    CHECK(r.words[t] == steps);
  }
  // A block that lies behind the place where the lanes meet.
  const auto far =
      launched("mov.u32 %r1, 1; setp.lt.u32 %p0, %tid, 7; @%p0 bra far;\njoin: bar.sync 0; add.u32 %r1, %r1, 1;" +
                   put("%r1") + "ret;\nfar: mov.u32 %r1, 5; bra.uni join;",
               64);
  CHECK(far.clean() && far.words[0] == 6 && far.words[7] == 2 && far.words[40] == 2);
  // A jump table.
  const auto table = launched(
      "and.b32 %r0, %tid, 3; mov.u32 %r1, 7;\nlist: .branchtargets a, b, c, a;\nbrx.idx %r0, list;\n"
      "a: mov.u32 %r1, 10; bra.uni end;\nb: mov.u32 %r1, 20; bra.uni end;\nc: mov.u32 %r1, 30;\nend:" +
      put("%r1") + "ret;");
  CHECK(table.clean() && table.words[0] == 10 && table.words[1] == 20 && table.words[2] == 30 && table.words[3] == 10);
  // Functions: parameters, results, a loop inside, a call in a call.
  const auto call = launched(
      "{ .param .b32 x; .param .b32 y; st.param.b32 [x+0], %tid; call.uni (y), outer, (x); ld.param.b32 %r0, [y+0]; }" +
          put("%r0") + "ret;",
      32, 1, 0, {},
      ".func (.param .b32 r) inner (.param .b32 a) { .reg .b32 %r<3>; .reg .pred %p; ld.param.b32 %r1, [a]; mov.u32 "
      "%r2, 0;\n"
      "up: add.u32 %r2, %r2, %r1; sub.u32 %r1, %r1, 1; setp.gt.s32 %p, %r1, 0; @%p bra up; st.param.b32 [r+0], %r2; "
      "ret; }\n"
      ".func (.param .b32 r) outer (.param .b32 a) { .reg .b32 %r<3>; .reg .pred %p; ld.param.b32 %r1, [a]; "
      "setp.gt.u32 %p, %r1, 9; @%p bra big;\n"
      "{ .param .b32 x; .param .b32 y; st.param.b32 [x], %r1; call (y), inner, (x); ld.param.b32 %r2, [y]; } "
      "st.param.b32 [r], %r2; ret;\n"
      "big: st.param.b32 [r], 1000; ret; }\n");
  CHECK(call.clean() && call.words[4] == 10 && call.words[9] == 45 && call.words[10] == 1000);
}

void barriers() {
  for (Order order : {Order::kForward, Order::kReverse, Order::kRandom}) {
    Options options;
    options.order = order;
    options.seed = 5;
    // Each warp reads what the next one wrote.
    const auto r = launched(
        ".shared .align 4 .b8 s[512]; mov.u32 %r0, s; add.u32 %r1, %r0, %four; st.shared.u32 [%r1], %tid; bar.sync 0;"
        "xor.b32 %r2, %four, 128; add.u32 %r2, %r0, %r2; ld.shared.u32 %r3, [%r2];" +
            put("%r3") + "ret;",
        128, 1, 0, options);
    CHECK(r.clean() && r.words[5] == 37 && r.words[100] == 68);
    const auto red = launched(
        "setp.lt.u32 %p0, %tid, 70; bar.red.popc.u32 %r0, 0, %p0; bar.red.and.pred %p1, 1, %p0; bar.red.or.pred %p2, "
        "2, %p0;"
        "selp.b32 %r1, 1000, 0, %p1; selp.b32 %r2, 2000, 0, %p2; add.u32 %r0, %r0, %r1; add.u32 %r0, %r0, %r2;" +
            put("%r0") + "ret;",
        128, 1, 0, options);
    CHECK(red.clean() && red.words[0] == 2070 && red.words[127] == 2070 && red.stats.barriers == 3);
    // Producer and consumer warps on named barriers of 64 threads.
    const auto named = launched(
        ".shared .align 4 .b8 s[128]; mov.u32 %r0, s; shl.b32 %r1, %lane, 2; add.u32 %r1, %r0, %r1; mov.u32 %r2, 0; "
        "mov.u32 %r4, 0; setp.ge.u32 %p0, %tid, 32; @%p0 bra consume;\n"
        "make: setp.eq.u32 %p2, %r2, 0; @%p2 bra first; bar.sync 2, 64;\nfirst: st.shared.u32 [%r1], %r2; bar.arrive "
        "1, 64; add.u32 %r2, %r2, 1; setp.lt.u32 %p1, %r2, 5; @%p1 bra make; ret;\n"
        "consume: bar.sync 1, 64; ld.shared.u32 %r3, [%r1]; add.u32 %r4, %r4, %r3; add.u32 %r2, %r2, 1; setp.eq.u32 "
        "%p1, %r2, 5; @%p1 bra end; bar.arrive 2, 64; bra.uni consume;\n"
        "end:" +
            put("%r4") + "ret;",
        64, 1, 0, options);
    CHECK(named.clean() && named.words[40] == 10);
  }
  auto r = launched("setp.lt.u32 %p0, %tid, 32; @%p0 bra skip; bar.sync 1, 64;\nskip: ret;", 64);
  CHECK(r.has(Kind::kDeadlock) && r.stats.reports[0].detail.find("warp 1 waits at") != std::string::npos);
  CHECK(launched("setp.lt.u32 %p0, %tid, 32; @%p0 bra skip; bar.sync 1; bra.uni end;\nskip: bar.sync 2;\nend: ret;", 64)
            .has(Kind::kDeadlock));
  CHECK(launched("setp.lt.u32 %p0, %tid, 16; @%p0 bra skip; bar.sync 1; bra.uni end;\nskip: bar.sync 2;\nend: ret;")
            .has(Kind::kBarrier));
  CHECK(launched("setp.lt.u32 %p0, %tid, 16; @%p0 bar.sync 0; bar.sync 1; ret;").has(Kind::kBarrier));
  CHECK(launched("setp.lt.u32 %p0, %tid, 32; @%p0 bar.sync 1, 64; @!%p0 bar.sync 1, 96; ret;", 64).has(Kind::kBarrier));
  CHECK(launched("setp.lt.u32 %p0, %tid, 32; @%p0 exit; bar.sync 0; ret;", 96).clean());
  CHECK(launched("trap; ret;").has(Kind::kTrap));
  Options limited;
  limited.max_instructions = 1000;
  CHECK(launched("loop: bra.uni loop;", 32, 1, 0, limited).has(Kind::kTimeout));
}

void waiting() {
  for (Order order : {Order::kForward, Order::kReverse, Order::kRandom}) {
    Options options;
    options.order = order;
    options.seed = 7;
    // Lanes of one warp take turns with a lock: the lane that has it must be able to go on.
    const auto lock = launched(
        "setp.eq.u32 %p0, %tid, 0; @%p0 st.global.u32 [%buffer], 0; @%p0 st.global.u32 [%buffer+4], 0; bar.sync 0;\n"
        "again: atom.acquire.gpu.global.cas.b32 %r0, [%buffer], 0, 1; setp.ne.u32 %p1, %r0, 0; @%p1 bra again;\n"
        "ld.global.u32 %r1, [%buffer+4]; add.u32 %r1, %r1, 1; st.global.u32 [%buffer+4], %r1; "
        "atom.release.gpu.global.exch.b32 %r0, [%buffer], 0; ret;",
        64, 1, 0, options);
    CHECK(lock.clean() && lock.words[1] == 64);
    // Blocks in a ring: each waits for a flag that the next block sets.
    const auto ring = launched(
        "mov.u32 %r9, %ctaid.x; shl.b32 %r8, %r9, 2; cvt.u64.u32 %d0, %r8; add.s64 %d0, %buffer, %d0; setp.ne.u32 %p0, "
        "%tid, 0; @%p0 bra end;\n"
        "st.release.gpu.global.u32 [%d0], 1; add.u32 %r8, %r8, 4; and.b32 %r8, %r8, 31; cvt.u64.u32 %d1, %r8; add.s64 "
        "%d1, %buffer, %d1;\n"
        "wait: ld.acquire.gpu.global.u32 %r1, [%d1]; setp.ne.u32 %p1, %r1, 1; @%p1 bra wait;\nend: ret;",
        32, 8, 0, options);
    CHECK(ring.clean());
  }
  const auto never =
      launched("wait: ld.volatile.global.u32 %r1, [%buffer]; setp.ne.u32 %p1, %r1, 1; @%p1 bra wait;\nret;");
  CHECK(never.has(Kind::kDeadlock) && never.stats.reports[0].detail.find("spins at") != std::string::npos);
}

}  // namespace

void test_warps() {
  together();
  divergence();
  barriers();
  waiting();
}

}  // namespace testing
