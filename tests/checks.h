// Checks of the C++ tests: each that fails is printed as file:line, and report() says how many there were.
#pragma once
#include <cstdio>
#include <string>

inline int passed = 0, failed = 0;

inline void check(bool ok, const char *file, int line, const std::string &what) {
  ++(ok ? passed : failed);
  if (!ok) std::printf("%s:%d: %s\n", file, line, what.c_str());
}
#define CHECK(condition) check(condition, __FILE__, __LINE__, #condition)

// The exit status of the program.
inline int report() {
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
