// The handlers that flash.jax registers with XLA: from a call frame to flash_forward and flash_backward.
//
//   operands     the arrays whose bit is set in the attribute `given`, in the order of kOperands
//   results      forward: o, and lse if there are two; backward: the gradients whose bit is set in `wanted`
//   attributes   the scalars of flash_problem, block_q and block_k
//
// Scratch memory comes from XLA's allocator on CUDA, where what is freed here may be used again by later work on the
// same stream only, and from malloc on the CPU, where XLA lends none.
#include "xla.h"

#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <string>

#include "check.h"
#include "device.h"
#include "error.h"

namespace flash::xla {
namespace {

constexpr int kDeviceCpu = 1, kDeviceCuda = 2;  // DLPack's
constexpr size_t kScratchAlignment = 16;        // the most that XLA takes; a workspace needs none

using Operand = const flash_tensor *;
constexpr Operand flash_problem::*kProblemOperands[] = {
    &flash_problem::q,         &flash_problem::k,       &flash_problem::v,
    &flash_problem::mask,      &flash_problem::bias,    &flash_problem::alibi_slopes,
    &flash_problem::sinks,     &flash_problem::q_lens,  &flash_problem::kv_lens,
    &flash_problem::q_offsets, &flash_problem::q_scale, &flash_problem::k_scale,
    &flash_problem::v_scale,   &flash_problem::seeds};
constexpr Operand flash_block_mask::*kBlockMaskOperands[] = {&flash_block_mask::row_start, &flash_block_mask::columns,
                                                             &flash_block_mask::column_start, &flash_block_mask::rows};
constexpr Operand flash_saved::*kSavedOperands[] = {&flash_saved::dout, &flash_saved::o, &flash_saved::lse,
                                                    &flash_saved::dlse};
constexpr Operand flash_gradients::*kGradients[] = {&flash_gradients::dq, &flash_gradients::dk, &flash_gradients::dv,
                                                    &flash_gradients::dbias, &flash_gradients::dsinks};
constexpr int kMostOperands = 22, kMostResults = 5;

flash_dtype dlpack_dtype(DataType dtype) {
  switch (dtype) {
    case kPred:
      return {6, 8, 1};
    case kS32:
      return {0, 32, 1};
    case kS64:
      return {0, 64, 1};
    case kU8:
      return {1, 8, 1};
    case kU32:
      return {1, 32, 1};
    case kU64:
      return {1, 64, 1};
    case kF16:
      return {2, 16, 1};
    case kF32:
      return {2, 32, 1};
    case kF64:
      return {2, 64, 1};
    case kBF16:
      return {4, 16, 1};
    case kF8E4M3FN:
      return {10, 8, 1};
  }
  fail(FLASH_INVALID_TYPE, "XLA's data type ", static_cast<int>(dtype), " is not known here");
}

// An error that XLA made: it goes back as it is.
struct XlaError {
  XLA_FFI_Error *error;
};

void check(XLA_FFI_Error *error) {
  if (error != nullptr) throw XlaError{error};
}

void check(flash_status status) {
  if (status != FLASH_OK) throw Error{status, flash_error_message()};
}

template <class T>
T with_size() {
  T x{};
  x.head.struct_size = sizeof(T);
  return x;
}

template <class T>
T versioned() {
  T x{};
  x.struct_size = sizeof(T);
  return x;
}

// Where the arrays of a call lie: XLA names no device in all of its versions, so the first array with elements does.
int device_of(const Frame &frame) {
  for (const Buffers &side : {frame.operands, frame.results}) {
    for (int64_t i = 0; i < side.size; ++i) {
      const Buffer &buffer = *side.buffers[i];
      if (has_elements({buffer.dims, buffer.dims + buffer.rank})) return cuda_device_of(buffer.data);
    }
  }
  return 0;
}

// Memory of one call.
class Scratch {
 public:
  Scratch(const Frame &frame, bool on_cuda, size_t bytes) : frame_(frame), on_cuda_(on_cuda), bytes_(bytes) {
    if (bytes == 0) return;
    if (on_cuda) {
      auto call = with_size<MemoryAllocate>();
      call.context = frame.context, call.size = bytes, call.alignment = kScratchAlignment;
      check(frame.api->memory_allocate(&call));
      data_ = call.data;
    } else {
      data_ = std::malloc(bytes);
    }
    if (data_ == nullptr) fail(FLASH_OUT_OF_MEMORY, "no memory for a workspace of ", bytes, " bytes");
  }
  ~Scratch() {
    if (!on_cuda_) std::free(data_);
    if (!on_cuda_ || data_ == nullptr) return;
    auto call = with_size<MemoryFree>();
    call.context = frame_.context, call.size = bytes_, call.data = data_;
    (void)frame_.api->memory_free(&call);  // nothing to be done about a failure
  }
  Scratch(const Scratch &) = delete;
  Scratch &operator=(const Scratch &) = delete;

  void *data() const { return data_; }

 private:
  const Frame &frame_;
  bool on_cuda_;
  size_t bytes_;
  void *data_ = nullptr;
};

// A frame as the structs of flash.h. It points into itself, so it stays where it is.
class Call {
 public:
  Call(const Frame &frame, bool on_cuda) : frame_(frame) {
    const auto given = attribute<uint64_t>("given", kU64);
    if (frame.operands.size > kMostOperands || frame.results.size > kMostResults || frame.operands.size == 0) {
      fail_mismatch();
    }
    device_ = {on_cuda ? kDeviceCuda : kDeviceCpu, 0};
    if (on_cuda) device_.device_id = device_of(frame);

    int bit = 0;
    const auto operand = [&]() -> Operand { return given >> bit++ & 1 ? next_operand() : nullptr; };
    for (const auto field : kProblemOperands) problem.*field = operand();
    for (const auto field : kBlockMaskOperands) block_mask_.*field = operand();
    for (const auto field : kSavedOperands) saved.*field = operand();
    if (given >> bit != 0 || operands_ != frame.operands.size) fail_mismatch();

    problem.scale = attribute<double>("scale", kF64);
    problem.softcap = attribute<double>("softcap", kF64);
    problem.dropout = attribute<double>("dropout", kF64);
    problem.q_offset = attribute<int64_t>("q_offset", kS64);
    problem.window_left = attribute<int64_t>("window_left", kS64);
    problem.window_right = attribute<int64_t>("window_right", kS64);
    problem.seed = attribute<uint64_t>("seed", kU64);
    problem.flags = attribute<uint64_t>("flags", kU64);
    if (block_mask_.row_start != nullptr) {
      block_mask_.block_q = attribute<int64_t>("block_q", kS64);
      block_mask_.block_k = attribute<int64_t>("block_k", kS64);
      problem.block_mask = &block_mask_;
    }
    if (on_cuda) {
      auto call = with_size<StreamGet>();
      call.context = frame.context;
      check(frame.api->stream_get(&call));
      stream = call.stream;
    }
  }
  Call(const Call &) = delete;
  Call &operator=(const Call &) = delete;

  // NULL when there are no more.
  Operand next_result() {
    if (results_ == frame_.results.size) return nullptr;
    result_tensors_[results_] = tensor(*frame_.results.buffers[results_]);
    return &result_tensors_[results_++];
  }

  template <class T>
  T attribute(const char *name, DataType dtype) const {
    const Attributes &all = frame_.attributes;
    for (int64_t i = 0; i < all.size; ++i) {
      if (std::string(all.names[i]->text, all.names[i]->length) != name) continue;
      const auto scalar = static_cast<const Scalar *>(all.values[i]);
      if (all.types[i] != kScalarAttribute || scalar->dtype != dtype) break;
      T value;
      std::memcpy(&value, scalar->value, sizeof value);
      return value;
    }
    fail_mismatch();
  }

  [[noreturn]] static void fail_mismatch() {
    fail(FLASH_INVALID_VALUE, "the package flash.jax and libflash.so are of different versions: install flash anew");
  }

  flash_problem problem = versioned<flash_problem>();
  flash_saved saved = versioned<flash_saved>();
  void *stream = nullptr;

 private:
  Operand next_operand() {
    if (operands_ == frame_.operands.size) fail_mismatch();
    operand_tensors_[operands_] = tensor(*frame_.operands.buffers[operands_]);
    return &operand_tensors_[operands_++];
  }

  flash_tensor tensor(const Buffer &buffer) const {
    const auto rank = static_cast<int32_t>(buffer.rank);
    return {buffer.data, device_, rank, dlpack_dtype(buffer.dtype), buffer.dims, nullptr, 0};
  }

  const Frame &frame_;
  flash_device device_{};
  flash_block_mask block_mask_ = versioned<flash_block_mask>();
  flash_tensor operand_tensors_[kMostOperands]{}, result_tensors_[kMostResults]{};
  int operands_ = 0, results_ = 0;
};

void forward(const Frame &frame, bool on_cuda) {
  Call call(frame, on_cuda);
  Operand o = call.next_result(), lse = call.next_result();
  size_t bytes = 0;
  check(flash_forward_workspace(&call.problem, &bytes));
  const Scratch scratch(frame, on_cuda, bytes);
  check(flash_forward(&call.problem, o, lse, scratch.data(), bytes, call.stream));
}

void backward(const Frame &frame, bool on_cuda) {
  Call call(frame, on_cuda);
  const auto wanted = static_cast<uint32_t>(call.attribute<uint64_t>("wanted", kU64));
  auto gradients = versioned<flash_gradients>();
  for (int i = 0; i < kMostResults; ++i) {
    if (wanted >> i & 1) gradients.*kGradients[i] = call.next_result();
  }
  size_t bytes = 0;
  check(flash_backward_workspace(&call.problem, wanted, &bytes));
  const Scratch scratch(frame, on_cuda, bytes);
  check(flash_backward(&call.problem, &call.saved, &gradients, scratch.data(), bytes, call.stream));
}

ErrorCode error_code(flash_status status) {
  switch (status) {
    case FLASH_INVALID_VALUE:
    case FLASH_INVALID_TYPE:
      return kInvalidArgument;
    case FLASH_UNSUPPORTED:
      return kUnimplemented;
    case FLASH_OUT_OF_MEMORY:
      return kResourceExhausted;
    default:
      return kInternal;
  }
}

// XLA asks a handler which version it was built for. It uses only what all versions share, so the answer is the
// caller's own version, up to the newest that it has run with.
bool answered_metadata(const Frame &frame) {
  auto extension = static_cast<Extension *>(frame.head.extensions);
  if (extension == nullptr || extension->type != kMetadataExtension) return false;
  Metadata &metadata = *reinterpret_cast<MetadataExtension *>(extension)->metadata;
  const int minor = frame.api != nullptr ? frame.api->version.minor : 1;
  metadata.version.major = 0;
  metadata.version.minor = minor < kNewestMinor ? minor : kNewestMinor;
  metadata.traits = 0;
  return true;
}

XLA_FFI_Error *run(XLA_FFI_CallFrame *given, void (*direction)(const Frame &, bool), bool on_cuda) noexcept {
  const Frame &frame = *reinterpret_cast<const Frame *>(given);
  if (answered_metadata(frame)) return nullptr;
  auto error = with_size<ErrorCreate>();
  std::string message;
  try {
    direction(frame, on_cuda);
    return nullptr;
  } catch (const XlaError &of_xla) {
    return of_xla.error;
  } catch (const Error &failure) {
    message = failure.message, error.code = error_code(failure.status);
  } catch (const std::exception &failure) {
    message = failure.what(), error.code = kInternal;
  }
  error.message = message.c_str();
  return frame.api->error_create(&error);
}

}  // namespace
}  // namespace flash::xla

using namespace flash::xla;

XLA_FFI_Error *flash_xla_forward(XLA_FFI_CallFrame *frame) { return run(frame, forward, false); }
XLA_FFI_Error *flash_xla_backward(XLA_FFI_CallFrame *frame) { return run(frame, backward, false); }
XLA_FFI_Error *flash_xla_cuda_forward(XLA_FFI_CallFrame *frame) { return run(frame, forward, true); }
XLA_FFI_Error *flash_xla_cuda_backward(XLA_FFI_CallFrame *frame) { return run(frame, backward, true); }
