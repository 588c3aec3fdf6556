// The C functions of flash.h, and nothing else: each one is guard -> read -> plan -> check values -> run.
#include <cstdio>
#include <new>
#include <string>

#include "check.h"
#include "cpu/cpu.h"
#include "cuda_calls.h"
#include "error.h"
#include "explain.h"
#include "flash.h"
#include "plan.h"
#include "problem.h"

using namespace flash;

namespace {

// A plain array: setting it can't fail, not even when memory has run out.
thread_local char last_message[1024] = "";

flash_status failed(flash_status status, const char *message) {
  std::snprintf(last_message, sizeof last_message, "%s", message);
  return status;
}

const char *status_text(flash_status status) {
#define FLASH_STATUS_TEXT(constant, text) \
  if (status == constant) return text;
  FLASH_STATUS_LIST(FLASH_STATUS_TEXT)
#undef FLASH_STATUS_TEXT
  return "unknown status";
}

// Runs `call`; no exception leaves the library.
template <class Call>
flash_status guard(Call &&call) noexcept {
  try {
    call();
    return FLASH_OK;
  } catch (const Error &error) {
    return failed(error.status, error.message.empty() ? status_text(error.status) : error.message.c_str());
  } catch (const std::bad_alloc &) {
    return failed(FLASH_OUT_OF_MEMORY, status_text(FLASH_OUT_OF_MEMORY));
  } catch (const std::exception &error) {
    std::snprintf(last_message, sizeof last_message, "%s: %s", status_text(FLASH_INTERNAL_ERROR), error.what());
    return FLASH_INTERNAL_ERROR;
  } catch (...) {
    return failed(FLASH_INTERNAL_ERROR, status_text(FLASH_INTERNAL_ERROR));
  }
}

void check_pointer(const char *name, const void *pointer) {
  if (pointer == nullptr) fail(FLASH_INVALID_VALUE, name, ": is NULL, must point to the result");
}

void check_workspace(const Arguments &arguments, const Plan &plan, const void *workspace, size_t bytes) {
  if (least_workspace_bytes(plan) > 0) {
    if (workspace == nullptr) {
      fail(FLASH_INVALID_VALUE, "workspace: must have ", workspace_bytes(plan), " bytes, got NULL");
    }
    if (bytes < least_workspace_bytes(plan)) {
      fail(FLASH_INVALID_VALUE, "workspace: must have ", workspace_bytes(plan), " bytes (with fewer threads at least ",
           least_workspace_bytes(plan), "), got ", bytes);
    }
  }
  arguments.check_workspace(workspace, bytes);
}

// As snprintf does: what fits, always NUL-terminated, and the size that it would have taken.
void copy_text(const std::string &from, char *json, size_t capacity, size_t *needed) {
  *needed = from.size() + 1;
  if (capacity == 0) return;
  const size_t length = from.size() < capacity ? from.size() : capacity - 1;
  std::memcpy(json, from.data(), length);
  json[length] = '\0';
}

void check_text(const char *json, size_t capacity, const size_t *needed) {
  check_pointer("needed", needed);
  if (json == nullptr && capacity != 0) fail(FLASH_INVALID_VALUE, "json: is NULL, capacity is ", capacity);
}

}  // namespace

const char *flash_error_message(void) { return last_message; }

uint32_t flash_version(void) { return 10000 * FLASH_VERSION_MAJOR + 100 * FLASH_VERSION_MINOR + FLASH_VERSION_PATCH; }

flash_status flash_forward_workspace(const flash_problem *problem, size_t *bytes) {
  return guard([&] {
    check_pointer("bytes", bytes);
    Arguments arguments;
    *bytes = workspace_bytes(make_plan(read_problem(problem, arguments), 0));
  });
}

flash_status flash_forward(const flash_problem *given, const flash_tensor *o, const flash_tensor *lse, void *workspace,
                           size_t bytes, void *stream) {
  return guard([&] {
    Arguments arguments;
    const Problem problem = read_problem(given, arguments);
    RowsView o_view;
    DType o_dtype;
    LseView lse_view;
    read_outputs(problem, arguments, o, lse, &o_view, &o_dtype, &lse_view);
    const Plan plan = make_plan(problem, 0);
    check_workspace(arguments, plan, workspace, bytes);
    check_values(problem);
    if (problem.backend == Backend::kCuda)
      return cuda_forward(problem, plan, o_view, o_dtype, lse_view, workspace, stream);
    cpu_forward(problem, plan, o_view, lse_view, workspace, bytes);
  });
}

flash_status flash_backward_workspace(const flash_problem *given, uint32_t wanted, size_t *bytes) {
  return guard([&] {
    check_pointer("bytes", bytes);
    Arguments arguments;
    const Problem problem = read_problem(given, arguments);
    *bytes = workspace_bytes(make_plan(problem, check_wanted(problem, wanted)));
  });
}

flash_status flash_backward(const flash_problem *given, const flash_saved *saved, const flash_gradients *gradients,
                            void *workspace, size_t bytes, void *stream) {
  return guard([&] {
    Arguments arguments;
    const Problem problem = read_problem(given, arguments);
    const BackwardArguments backward = read_backward(problem, arguments, saved, gradients);
    const uint32_t wanted = wanted_of(backward);
    if (wanted == 0) return check_values(problem);  // none of the gradients has elements
    const Plan plan = make_plan(problem, wanted);
    check_workspace(arguments, plan, workspace, bytes);
    check_values(problem);
    if (problem.backend == Backend::kCuda) return cuda_backward(problem, backward, workspace, stream);
    cpu_backward(problem, plan, backward, workspace, bytes);
  });
}

flash_status flash_weights(const flash_problem *given, const flash_tensor *rows, const flash_tensor *weights,
                           void *stream) {
  return guard([&] {
    Arguments arguments;
    const Problem problem = read_problem(given, arguments, NeedsV::kNo);
    if (problem.dtype == DType::kFloat8) {
      fail(FLASH_UNSUPPORTED,
           "q: probabilities of float8_e4m3fn aren't computed; convert to float16, bfloat16 or float32");
    }
    const int64_t *rows_data = nullptr;
    int64_t rows_stride = 0, count = problem.Lq;
    if (rows != nullptr) {
      const Tensor tensor = arguments.input("rows", rows, {DType::kInt64});
      if (tensor.ndim() != 1) fail(FLASH_INVALID_VALUE, "rows: must have one axis, got shape ", to_text(tensor.shape));
      rows_data = static_cast<const int64_t *>(tensor.data);
      rows_stride = tensor.step(1), count = tensor.extent(1);
    }
    const Tensor tensor = arguments.output("weights", weights, {sum_dtype(problem.dtype)});
    const Shape leading = leading_shape(*arguments.find("q"), 3);
    check_shape(tensor, joined(leading, {problem.Hq, count, problem.Lk}), "N + (Hq, R, Lk)");
    const WeightsView view{tensor.data, batch_stride(tensor, 3), tensor.step(3), tensor.step(2), tensor.step(1)};
    check_backend("q", problem.backend, problem.device_id);
    check_values(problem);
    if (problem.backend == Backend::kCuda) {
      return cuda_weights(problem, rows_data, rows_stride, count, view, stream);
    }
    for (int64_t r = 0; rows_data != nullptr && r < count; ++r) {
      const int64_t row = rows_data[r * rows_stride];
      if (row < 0 || row >= problem.Lq) {
        fail(FLASH_INVALID_VALUE, "rows: must be 0 to ", problem.Lq - 1, ", got ", row, " at ", r);
      }
    }
    cpu_weights(problem, rows_data, rows_stride, count, view);
  });
}

flash_status flash_dropout_mask(uint64_t seed, double dropout, const flash_tensor *keep, void *stream) {
  return guard([&] {
    check_dropout(dropout);
    Arguments arguments;
    const Tensor tensor = arguments.output("keep", keep, {DType::kBool});
    if (tensor.ndim() != 4) {
      fail(FLASH_INVALID_VALUE, "keep: shape must be (B, H, Lq, Lk), got ", to_text(tensor.shape));
    }
    check_backend("keep", tensor.backend, tensor.device_id);
    const auto data = static_cast<bool *>(tensor.data);
    if (tensor.backend == Backend::kCuda) {
      return cuda_dropout_mask(tensor.device_id, seed, dropout, data, tensor.shape.data(), tensor.stride.data(),
                               stream);
    }
    cpu_dropout_mask(seed, dropout, data, tensor.shape.data(), tensor.stride.data());
  });
}

flash_status flash_merge(const flash_tensor *o1, const flash_tensor *lse1, const flash_tensor *o2,
                         const flash_tensor *lse2, const flash_tensor *o, const flash_tensor *lse, void *stream) {
  return guard([&] {
    Arguments arguments;
    const Tensor first =
        arguments.input("o1", o1, {DType::kFloat16, DType::kBfloat16, DType::kFloat32, DType::kFloat64});
    check_axes(first, 3, "N + (Lq, Hq, Dv)");
    const int64_t Lq = first.extent(3), Hq = first.extent(2), Dv = first.extent(1);
    const DType lse_dtype = sum_dtype(first.dtype);
    const Shape leading = leading_shape(first, 3), lse_shape = joined(leading, {Hq, Lq});
    int64_t B = 1;
    for (int64_t extent : leading) B *= extent;

    const auto rows = [&](const Tensor &tensor) {
      check_shape(tensor, first.shape, "o1's");
      return rows_view(tensor);
    };
    const auto sums = [&](const Tensor &tensor) {
      check_shape(tensor, lse_shape, "N + (Hq, Lq)");
      return lse_view(tensor);
    };
    MergePart part1{rows_view(first), sums(arguments.input("lse1", lse1, {lse_dtype}))};
    MergePart part2{rows(arguments.input("o2", o2, {first.dtype}, " as in o1")),
                    sums(arguments.input("lse2", lse2, {lse_dtype}))};
    MergePart merged{rows(arguments.output("o", o, {first.dtype}, " as in o1", "o1")), {}};
    if (lse != nullptr) merged.lse = sums(arguments.output("lse", lse, {lse_dtype}, "", "lse1"));
    check_backend("o1", first.backend, first.device_id);
    if (first.backend == Backend::kCuda) {
      if (first.dtype == DType::kFloat64) {
        fail(FLASH_UNSUPPORTED, "o1: float64 runs on the CPU only, o1 is on CUDA; convert to float32");
      }
      return cuda_merge(first.device_id, first.dtype, B, Lq, Hq, Dv, part1, part2, merged, stream);
    }
    cpu_merge(first.dtype, B, Lq, Hq, Dv, part1, part2, merged);
  });
}

flash_status flash_explain(const flash_problem *given, uint32_t wanted, char *json, size_t capacity, size_t *needed) {
  return guard([&] {
    check_text(json, capacity, needed);
    Arguments arguments;
    const Problem problem = read_problem(given, arguments);
    if (wanted != 0) check_wanted(problem, wanted);
    const Plan plan = make_plan(problem, wanted);
    check_values(problem);
    copy_text(explain_json(problem, plan, wanted), json, capacity, needed);
  });
}

flash_status flash_config(char *json, size_t capacity, size_t *needed) {
  return guard([&] {
    check_text(json, capacity, needed);
    copy_text(config_json(), json, capacity, needed);
  });
}
