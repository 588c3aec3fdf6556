// Tests of the emulator.
//
//   emulator_tests [nvcc]     prints each failed check as file:line, then "N passed, N failed"; exit status 1 if any failed
#include "testing.h"

namespace testing {

int passed = 0, failed = 0;

void check(bool ok, const char *file, int line, const std::string &what) {
  ++(ok ? passed : failed);
  if (!ok) std::printf("%s:%d: %s\n", file, line, what.c_str());
}

}  // namespace testing

int main() {
  for (auto test : {testing::test_instructions, testing::test_memory, testing::test_warps, testing::test_races,
                    testing::test_kernels, testing::test_hopper, testing::test_wgmma, testing::test_hopper_kernel,
                    testing::test_faults}) {
    try {
      test();
    } catch (const std::exception &error) {
      testing::check(false, __FILE__, __LINE__, std::string("unexpected exception: ") + error.what());
    }
  }
  std::printf("%d passed, %d failed\n", testing::passed, testing::failed);
  return testing::failed != 0;
}
