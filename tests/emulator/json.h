// JSON as the functions of emulated.h give it to tests: texts of values, put together.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>

#include "emulator.h"

namespace emulator {

// A text that stays valid until this thread's next call.
inline const char *answered(std::string text) {
  thread_local std::string answer;
  answer = std::move(text);
  return answer.c_str();
}

inline std::string quoted(const std::string &text) {
  std::string json = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') json += '\\';
    json += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return json + '"';
}

inline std::string number(uint64_t n) { return std::to_string(n); }
inline std::string number(Dim3 d) { return "[" + number(d.x) + "," + number(d.y) + "," + number(d.z) + "]"; }

// {"name": value, ...} of values that are JSON already.
inline std::string object(std::initializer_list<std::pair<const char *, std::string>> fields) {
  std::string json;
  for (const auto &[name, value] : fields) json += (json.empty() ? "{" : ",") + quoted(name) + ":" + value;
  return json + "}";
}

template <class Items, class Json>
std::string list(const Items &items, const Json &json_of) {
  std::string json;
  for (const auto &item : items) json += (json.empty() ? "[" : ",") + json_of(item);
  return json.empty() ? "[]" : json + "]";
}

}  // namespace emulator
