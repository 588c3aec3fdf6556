// Ends, barriers, fences and traps. Branches and calls are the parser's; waiting is the scheduler's.
#include <cstring>

#include "access.h"
#include "builder.h"
#include "lanes.h"

namespace emulator {

namespace {

void no_operation(Warp &, const Instruction &, Mask) {}

void decode_nothing(Builder &b) {
  b.ignore_modifiers();
  b.result.run = no_operation;
}

// mode: Fence
void fence(Warp &w, const Instruction &i, Mask mask) {
  if (w.block->clocks == nullptr) return;
  each_lane(mask, [&](int lane) { w.block->clocks->fence(w.thread(lane), static_cast<Fence>(i.mode), i.scope); });
}
void decode_fence(Builder &b, Fence fence_by_default) {
  const int order = b.take_one({"sc", "acq_rel", "acquire", "release"});
  constexpr Fence kFences[] = {Fence::kSc, Fence::kBoth, Fence::kAcquire, Fence::kRelease};
  b.result.mode = static_cast<uint8_t>(order < 0 ? fence_by_default : kFences[order]);
  b.take_scope();
  b.expect(0, 0);
  b.result.run = fence;
}

// Of the generic towards the async proxy. mode: bits by Proxy.
void fence_proxy(Warp &w, const Instruction &i, Mask mask) {
  if (w.block->clocks == nullptr) return;
  Proxies proxies;
  for (int proxy = 0; proxy < 3; ++proxy) {
    if (i.mode >> proxy & 1) proxies.push_back(static_cast<Proxy>(proxy));
  }
  each_lane(mask, [&](int lane) { w.block->clocks->fence_proxy(w.thread(lane), proxies); });
}
constexpr uint8_t bit(Proxy proxy) { return static_cast<uint8_t>(1 << static_cast<int>(proxy)); }
void decode_fence_proxy(Builder &b) {
  const int of = b.take_one({"global", "shared::cta", "shared::cluster", "shared"});
  b.result.mode = of == 0 ? bit(Proxy::kGlobal) : bit(Proxy::kShared) | bit(Proxy::kMbarrierInit);
  if (of < 0) b.result.mode |= bit(Proxy::kGlobal);
  b.expect(0, 0);
  b.result.run = fence_proxy;
}
void decode_fence_init(Builder &b) {
  if (!b.take("release") || !b.take("cluster")) b.fail("only .release.cluster");
  b.result.mode = bit(Proxy::kMbarrierInit);
  b.expect(0, 0);
  b.result.run = fence_proxy;
}

// A launch has as many registers as it needs; the number must be one that the instruction takes.
void decode_registers(Builder &b) {
  if (b.take_one({"inc", "dec"}) < 0) b.fail("no direction");
  if (!b.take("sync") || !b.take("aligned")) b.fail("only .sync.aligned");
  b.take("u32");
  b.expect(1, 1);
  const Arg &count = b.arg(0);
  if (count.kind != Arg::kInteger || count.value < 24 || count.value > 256 || count.value % 8 != 0)
    b.fail("a multiple of 8 from 24 to 256 is wanted");
  b.result.control = Control::kTogether;
  b.result.run = no_operation;
}

void trap(Warp &w, const Instruction &, Mask mask) { w.run->stop(w, Kind::kTrap, __builtin_ctz(mask), "trap"); }

// in: where, in local memory, the addresses of message, file and function and the line lie.
void assertion_failed(Warp &w, const Instruction &i, Mask mask) {
  const int lane = __builtin_ctz(mask);
  const auto argument = [&](int k) {
    uint64_t value;
    std::memcpy(&value, w.local + static_cast<size_t>(lane) * w.local_bytes + w.in<uint64_t>(i.in[k])[0], sizeof value);
    return value;
  };
  const std::string file = text_at(w, argument(1));
  w.run->stop(w, Kind::kTrap, lane,
              "assertion failed: " + text_at(w, argument(0)) + " (" + file.substr(file.rfind('/') + 1) + ":" +
                  std::to_string(static_cast<uint32_t>(argument(2))) + ")");
}
void decode_assertion(Builder &b) {
  b.expect(5, 5);
  for (size_t k = 0; k < 5; ++k) b.result.in[k] = b.literal(b.arg(k).value, 8);
  b.result.run = assertion_failed;
}

// bar and barrier[.cta]. in[0]: number, in[1]: threads, if given; in[2]: predicate of .red. The scheduler reads `mode`.
void decode_barrier(Builder &b) {
  Instruction &r = b.result;
  b.take("cta");
  b.take("aligned");
  const Type number{Type::kUnsigned, 32};
  r.control = Control::kBarrier;
  r.run = no_operation;
  if (b.take("red")) {
    const int operation = b.take_one({"popc", "and", "or"});
    if (operation < 0) b.fail("no operation");
    r.mode = static_cast<uint8_t>(static_cast<int>(BarrierMode::kPopc) + operation);
    const bool counts = b.next_is_type() && operation == 0;
    Type type{Type::kPredicate, 32};
    if (b.next_is_type()) type = b.take_type();
    b.expect(3, 4);
    bool negated;
    r.out[0] = counts ? b.target(0, type) : b.predicate(b.arg(0), negated);
    r.in[0] = b.source(1, number);
    if (b.args.size() == 4) r.in[1] = b.source(2, number);
    r.in[2] = b.predicate(b.args.back(), r.negated[2]);
    return;
  }
  const bool arrives = b.take("arrive");
  if (!arrives && !b.take("sync")) b.fail("unknown barrier");
  r.mode = static_cast<uint8_t>(arrives ? BarrierMode::kArrive : BarrierMode::kSync);
  b.expect(arrives ? 2 : 1, 2);
  r.in[0] = b.source(0, number);
  if (b.args.size() == 2) r.in[1] = b.source(1, number);
}

void decode_exit(Builder &b) {
  b.take("uni");
  b.expect(0, 0);
  b.result.control = Control::kExit;
  b.result.run = no_operation;
}

}  // namespace

std::vector<Opcode> control_opcodes() {
  return {
      {"exit", decode_exit},
      {"ret", decode_exit},
      {"bar", decode_barrier},
      {"barrier", decode_barrier},
      {"membar", [](Builder &b) { decode_fence(b, Fence::kSc); }},  // of sm_70 and later
      {"fence", [](Builder &b) { decode_fence(b, Fence::kBoth); }},
      {"fence.proxy.async", decode_fence_proxy},
      {"fence.mbarrier_init", decode_fence_init},
      {"trap", [](Builder &b) { b.result.run = trap; }},
      {"brkpt", [](Builder &b) { b.result.run = trap; }},
      {"nanosleep",
       [](Builder &b) {
         b.take("u32");
         b.result.control = Control::kYield;
         b.result.run = no_operation;
       }},
      {"pmevent", decode_nothing},
      {"setmaxnreg", decode_registers},
      {"griddepcontrol", decode_nothing},
      {"__assertfail", decode_assertion},
  };
}

}  // namespace emulator
