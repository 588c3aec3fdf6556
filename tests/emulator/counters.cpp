#include "counters.h"

#include <algorithm>

namespace emulator {

namespace {

// Passes that 4-byte words need: words of one bank wait for each other, the same word is read once for all.
uint64_t wavefronts(const uint64_t *words, int count) {
  constexpr int kBanks = 32;
  uint64_t distinct[kBanks][kLanes];
  uint8_t in_bank[kBanks] = {}, most = 0;
  for (int i = 0; i < count; ++i) {
    const auto bank = words[i] % kBanks;
    uint64_t *const end = distinct[bank] + in_bank[bank];
    if (std::find(distinct[bank], end, words[i]) != end) continue;
    *end = words[i];
    most = std::max(most, ++in_bank[bank]);
  }
  return most;
}

}  // namespace

void Counters::count_shared(const uint64_t *offsets, Mask lanes, int bytes) {
  ++shared_accesses;
  // 8 bytes a lane go in two halves of the warp, 16 bytes in four quarters.
  const int parts = bytes <= 4 ? 1 : bytes / 4, lanes_in_part = kLanes / parts;
  for (int part = 0; part < parts; ++part) {
    uint64_t words[kLanes];
    int count = 0;
    bool in_row = true;  // each word follows the one before: no conflict
    for (int lane = part * lanes_in_part; lane < (part + 1) * lanes_in_part; ++lane) {
      if (!(lanes >> lane & 1)) continue;
      for (int byte = 0; byte < bytes; byte += 4) {
        words[count] = (offsets[lane] + static_cast<uint64_t>(byte)) / 4;
        if (count > 0 && words[count] != words[count - 1] + 1) in_row = false;
        ++count;
      }
    }
    if (count == 0) continue;
    const uint64_t passes = in_row ? 1 : wavefronts(words, count);
    shared_wavefronts += passes;
    bank_conflicts += passes - 1;
  }
}

uint64_t count_sectors(const uint64_t *addresses, Mask lanes) {
  uint64_t sectors[kLanes], last = ~uint64_t{0};
  int count = 0;
  bool ascending = true;
  for (Mask rest = lanes; rest != 0; rest &= rest - 1) {
    const uint64_t sector = addresses[__builtin_ctz(rest)] / 32;  // aligned, so never in two
    if (sector == last) continue;
    if (count > 0 && sector < last) ascending = false;
    sectors[count++] = last = sector;
  }
  if (ascending) return static_cast<uint64_t>(count);
  std::sort(sectors, sectors + count);
  return static_cast<uint64_t>(std::unique(sectors, sectors + count) - sectors);
}

void Counters::finish(const Kernel &kernel, Stats &stats) const {
  const auto &code = kernel.code;
  for (size_t pc = 0; pc < code.size(); ++pc) {
    if (executed[pc] == 0) continue;
    stats.warp_instructions += executed[pc];
    stats.opcodes[kernel.opcodes[code[pc].opcode]] += executed[pc];
    if (code[pc].is_mma) stats.mma += executed[pc];
    if (code[pc].is_wgmma) stats.wgmma += executed[pc];
    stats.matrix_flops += executed[pc] * code[pc].flops;
  }
  stats.lane_instructions = lanes;
  stats.barriers = barriers;
  stats.shared_accesses = shared_accesses;
  stats.shared_wavefronts = shared_wavefronts;
  stats.bank_conflicts = bank_conflicts;

  // A few instructions around try_wait are no loop of the algorithm.
  constexpr size_t kWait = 8;
  const auto waits = [&](size_t first, size_t last) {
    return last - first < kWait &&
           std::any_of(
               code.begin() + static_cast<std::ptrdiff_t>(first), code.begin() + static_cast<std::ptrdiff_t>(last),
               [](const Instruction &i) { return i.control == Control::kPoll; });
  };
  const auto backward = [&](size_t pc) {
    return code[pc].control == Control::kBranch && code[pc].target <= pc && !waits(code[pc].target, pc);
  };
  for (size_t last = 0; last < code.size(); ++last) {
    if (!backward(last) || executed[last] == 0) continue;
    const size_t first = code[last].target;
    Loop loop;
    bool innermost = true;
    for (size_t pc = first; pc <= last; ++pc) {
      if (pc != last && backward(pc) && code[pc].target > first) innermost = false;
      loop.instructions += executed[pc];
      if (code[pc].is_fma) loop.fma += executed[pc];
      if (code[pc].is_mma) loop.mma += executed[pc];
      if (code[pc].is_wgmma) loop.wgmma += executed[pc];
    }
    if (!innermost || (stats.hottest && stats.hottest->instructions >= loop.instructions)) continue;
    loop.first = kernel.lines[code[first].line];
    loop.last = kernel.lines[code[last].line];
    stats.hottest = loop;
  }
}

}  // namespace emulator
