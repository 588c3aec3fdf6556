// The part of XLA's foreign function interface (FFI) that the handlers of xla.cpp touch: plain data, as it lies in memory.
//
// Declared here instead of included, so that building flash takes no JAX, and because a library built with one version's
// headers is refused by older ones. This part has been the same since API version 0.0 (jaxlib 0.4.31); what later
// versions added comes after it. tests/test_jax_abi.py holds it against the headers of the jaxlib that is installed.
//
// Every struct starts with its size and a list of extensions. Called by XLA with a Frame; used by xla.cpp only.
#pragma once
#include <cstddef>
#include <cstdint>

#include "flash.h"

namespace flash::xla {

// The newest API version that the handlers have run with, and say that they were built for.
constexpr int kNewestMinor = 5;

struct Extension {
  size_t struct_size;
  int type;
  Extension *next;
};
constexpr int kMetadataExtension = 1;

struct Head {
  size_t struct_size;
  void *extensions;
};

struct Version {
  Head head;
  int major, minor;
};

// Asked for when a handler is registered. Later versions have more fields, which XLA sets itself.
struct Metadata {
  size_t struct_size;
  Version version;
  uint32_t traits;
};
struct MetadataExtension {
  Extension base;
  Metadata *metadata;
};

// xla::PrimitiveType's numbers.
enum DataType : int {
  kPred = 1,
  kS32 = 4,
  kS64 = 5,
  kU8 = 6,
  kU32 = 8,
  kU64 = 9,
  kF16 = 10,
  kF32 = 11,
  kF64 = 12,
  kBF16 = 16,
  kF8E4M3FN = 20
};

// A dense array, row-major.
struct Buffer {
  Head head;
  DataType dtype;
  void *data;
  int64_t rank;
  int64_t *dims;
};
// Operands or results.
struct Buffers {
  Head head;
  int64_t size;
  int *types;  // 1: a buffer; there is no other kind
  Buffer **buffers;
};

struct Name {
  const char *text;  // not NUL-terminated
  size_t length;
};
struct Scalar {
  DataType dtype;
  void *value;
};
constexpr int kScalarAttribute = 3;
// Attributes, sorted by name.
struct Attributes {
  Head head;
  int64_t size;
  int *types;
  Name **names;
  void **values;
};

struct Context;  // XLA's own, of one execution

struct ErrorCreate {
  Head head;
  const char *message;
  int code;
};
enum ErrorCode : int { kInvalidArgument = 3, kResourceExhausted = 8, kUnimplemented = 12, kInternal = 13 };
struct StreamGet {
  Head head;
  Context *context;
  void *stream;  // out
};
struct MemoryAllocate {
  Head head;
  Context *context;
  size_t size, alignment;
  void *data;  // out
};
struct MemoryFree {
  Head head;
  Context *context;
  size_t size;
  void *data;
};

using Unused = void (*)();
struct Api {
  Head head;
  Version version;
  const void *internal;
  XLA_FFI_Error *(*error_create)(ErrorCreate *);
  Unused error_get_message, error_destroy, handler_register;
  XLA_FFI_Error *(*stream_get)(StreamGet *);
  Unused type_register, context_get, state_set, state_get;
  XLA_FFI_Error *(*memory_allocate)(MemoryAllocate *);
  XLA_FFI_Error *(*memory_free)(MemoryFree *);
};

// What a handler is called with.
struct Frame {
  Head head;
  const Api *api;
  Context *context;
  int stage;
  Buffers operands;
  Buffers results;
  Attributes attributes;
};

}  // namespace flash::xla
