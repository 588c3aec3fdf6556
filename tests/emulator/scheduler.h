// Who runs when: groups of lanes within a warp, warps within a block, blocks within a launch; barriers; deadlocks.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "machine.h"

namespace emulator {

class Scheduler {
 public:
  explicit Scheduler(Run &run);
  void run();

 private:
  std::unique_ptr<Block> start(uint64_t number);
  void start_warp(Block &block, int index);
  // Runs a block until it ends (true), or until all it does is wait for others (false).
  bool visit(Block &block);
  bool stuck(const Block &block) const;
  // Ends a bulk copy to shared memory, if there is one.
  bool land_one(Block &block);
  Warp *choose(Block &block, const Warp *last);

  void turn(Warp &warp, uint64_t instructions);
  // A group's instructions up to the next change of groups; false ends the warp's turn.
  bool run_group(Warp &warp, size_t at, uint64_t &budget);
  bool branch_table(Warp &warp, size_t at, const Instruction &i, Mask lanes);
  void end_lanes(Warp &warp, size_t at, Mask ending);
  // Runs an instruction that lanes execute together; returns the lanes for which that isn't possible yet.
  Mask run_together(Warp &warp, const Instruction &i, Mask lanes);
  void arrange(Warp &warp);

  void arrive(Warp &warp, const Instruction &i, Mask lanes);
  void complete_if_full(Block &block, Barrier &barrier);

  [[noreturn]] void never_together(Warp &warp);
  [[noreturn]] void deadlock(const Block &block);

  Run &run_;
  std::vector<std::unique_ptr<Block>> resident_, spare_;
};

}  // namespace emulator
