// Errors inside the library: the one list of statuses, and the exception that carries a status and a message to the C
// boundary. Messages name the argument, what was given and what was wanted: "k: last axis must be 64 as in q, got 128".
#pragma once
#include <locale>
#include <sstream>
#include <string>
#include <utility>

#include "flash.h"

namespace flash {

// X(constant, what it says when there is no better message)
#define FLASH_STATUS_LIST(X)                 \
  X(FLASH_OK, "no error")                    \
  X(FLASH_INVALID_VALUE, "invalid value")    \
  X(FLASH_INVALID_TYPE, "invalid data type") \
  X(FLASH_UNSUPPORTED, "not supported")      \
  X(FLASH_OUT_OF_MEMORY, "out of memory")    \
  X(FLASH_CUDA_ERROR, "CUDA error")          \
  X(FLASH_INTERNAL_ERROR, "internal error, please report it")

constexpr flash_status kStatusOrder[] = {
#define FLASH_STATUS_CONSTANT(constant, text) constant,
    FLASH_STATUS_LIST(FLASH_STATUS_CONSTANT)
#undef FLASH_STATUS_CONSTANT
};
constexpr bool statuses_follow_the_enum() {
  int expected = 0;
  for (flash_status status : kStatusOrder)
    if (status != expected++) return false;
  return expected == FLASH_INTERNAL_ERROR + 1;
}
static_assert(statuses_follow_the_enum(), "FLASH_STATUS_LIST must list flash_status in its order");

struct Error {
  flash_status status;
  std::string message;
};

template <class... Parts>
std::string text(const Parts &...parts) {
  std::ostringstream stream;
  stream.imbue(std::locale::classic());  // the host program's locale may write 1024 as 1,024
  (stream << ... << parts);
  return stream.str();
}

// Throws Error; the parts are streamed into the message.
template <class... Parts>
[[noreturn]] void fail(flash_status status, const Parts &...parts) {
  throw Error{status, text(parts...)};
}

}  // namespace flash
