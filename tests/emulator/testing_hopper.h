// What the tests of Hopper's instructions share: blocks with shared memory and an mbarrier, run under every schedule.
//
// %r20: shared memory of 16 KiB at a multiple of 1024; %r21: 64 bytes more, for mbarriers; %p7: thread 0.
#pragma once
#include <optional>
#include <string>

#include "testing.h"

namespace testing {

inline const std::string kInit = "mov.u32 %r20, s; setp.eq.u32 %p7, %tid, 0;\n",
                         kShared =
                             ".shared .align 1024 .b8 s[16384]; .shared .align 8 .b8 m[64]; mov.u32 %r21, m;\n" + kInit;

inline Launched run_block(const std::string &body, uint32_t threads = 32, emulator::Options options = {}) {
  options.max_instructions = 200000;
  return launched(kShared + body + "\nret;", threads, 1, 0, options);
}

// Whether every schedule reports the kind, or the other one, or nothing.
inline bool reports(const std::string &body, std::optional<emulator::Kind> kind, uint32_t threads = 32,
                    std::optional<emulator::Kind> or_kind = std::nullopt) {
  bool all = true;
  for (const auto order : {emulator::Order::kForward, emulator::Order::kReverse, emulator::Order::kRandom}) {
    for (const auto copies : {emulator::Copies::kLate, emulator::Copies::kEager, emulator::Copies::kRandom}) {
      emulator::Options options;
      options.order = order;
      options.copies = copies;
      const Launched r = run_block(body, threads, options);
      const bool fine = kind ? r.has(*kind) || (or_kind && r.has(*or_kind)) : r.clean();
      if (!fine && kind) {
        for (const emulator::Report &report : r.stats.reports) std::printf("instead: %s\n", report.text().c_str());
      }
      all = all && fine;
    }
  }
  return all;
}

inline std::string init(int count, const std::string &at = "[%r21]") {
  return "@%p7 mbarrier.init.shared::cta.b64 " + at + ", " + std::to_string(count) + ";\n";
}
inline const std::string kFenceInit = "fence.mbarrier_init.release.cluster;\n", kMeet = "bar.sync 0;\n",
                         kFenceAsync = "fence.proxy.async.shared::cta;\n";

// Until the phase of this parity is over; n: of the label.
inline std::string wait(int n, int parity, const std::string &at = "[%r21]") {
  const std::string label = "w" + std::to_string(n);
  return label + ": mbarrier.try_wait.parity.shared::cta.b64 %p6, " + at + ", " + std::to_string(parity) +
         "; @!%p6 bra " + label + ";\n";
}

}  // namespace testing
