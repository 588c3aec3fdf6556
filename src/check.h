// From what a caller passes to checked data: the common rules for every array and every versioned struct.
//
// Used by problem.cpp and api.cpp only; the kernels see the views of tensor.h. Every function throws Error with a
// message that names the argument, what was given and what was wanted.
#pragma once
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <string>
#include <vector>

#include "error.h"
#include "flash.h"
#include "tensor.h"

namespace flash {

using Shape = std::vector<int64_t>;
// "(2, 3)", "(2,)", "()"
std::string to_text(const Shape &shape);
// The leading axes, then the trailing ones.
Shape joined(Shape leading, std::initializer_list<int64_t> trailing);
bool has_elements(const Shape &shape);

// An array that satisfies the common rules: known device, allowed dtype, aligned data, no sum of strides that
// overflows.
struct Tensor {
  const char *name;  // of the argument
  void *data;        // of the element at index 0; never NULL, so that NULL in a view means "not given"
  DType dtype;
  Backend backend;
  int device_id;        // 0 for the CPU
  Shape shape, stride;  // stride in elements; 0 along axes of extent 1, and everywhere if there is no element

  int ndim() const { return static_cast<int>(shape.size()); }
  int64_t extent(int axis_from_end) const { return shape[shape.size() - static_cast<size_t>(axis_from_end)]; }
  int64_t step(int axis_from_end) const { return stride[stride.size() - static_cast<size_t>(axis_from_end)]; }
};

// The arrays of one call: all on the device of the first one, outputs apart from each other and from every input.
// Inputs have to be read before outputs. Names must outlive the object: pass literals.
class Arguments {
 public:
  // `like` says where the wanted dtype comes from, for the message: " as in q".
  Tensor input(const char *name, const flash_tensor *given, std::initializer_list<DType> dtypes, const char *like = "");
  // `may_be` names an input that the output may be itself, element for element.
  Tensor output(const char *name, const flash_tensor *given, std::initializer_list<DType> dtypes, const char *like = "",
                const char *may_be = "");
  // Scratch memory must be apart from every array read so far.
  void check_workspace(const void *workspace, size_t bytes) const;
  // An array read before, or NULL.
  const Tensor *find(const char *name) const;

 private:
  Tensor read(const char *name, const flash_tensor *given, std::initializer_list<DType> dtypes, const char *like) const;
  std::vector<Tensor> tensors_;
};

// Throws unless the shape is `wanted`; `meaning` explains it in letters: "N + (Hq, Lq)".
void check_shape(const Tensor &tensor, const Shape &wanted, const char *meaning);
// Throws unless the array has at least `axes` axes.
void check_axes(const Tensor &tensor, int axes, const char *meaning);

// The axes before the last `trailing` ones.
Shape leading_shape(const Tensor &tensor, int trailing);

// N + (L, H, D), checked elsewhere for its extents: contiguous last axis, leading axes that merge into one.
RowsView rows_view(const Tensor &tensor);
// N + (H, L): any strides, leading axes that merge into one.
LseView lse_view(const Tensor &tensor);
// The stride of the merged leading axes before the last `trailing` ones.
int64_t batch_stride(const Tensor &tensor, int trailing);
// Broadcast by NumPy's rules to N + (H, Lq, Lk), which is `target`.
ScoresView scores_view(const Tensor &tensor, const Shape &target);
// N + (H,) if `has_head`, else N; any strides.
enum class HasHead : bool { kNo, kYes };
BatchView batch_view(const Tensor &tensor, HasHead has_head);

// No version of any struct comes near this size; a larger struct_size is uninitialised memory, not a newer caller.
constexpr size_t kMaxStructBytes = 4096;

// A copy of a struct that starts with its size. Callers compiled against a later header may pass a larger one, but what
// this library doesn't know must be zero: ignoring an option would give a wrong result without a word.
template <class T>
T copy_struct(const char *name, const T *given, size_t first_version_bytes = sizeof(T)) {
  if (given == nullptr) fail(FLASH_INVALID_VALUE, name, ": is NULL, must point to a struct");
  size_t size = 0;
  std::memcpy(&size, given, sizeof size);
  if (size < first_version_bytes || size > kMaxStructBytes) {
    fail(FLASH_INVALID_VALUE, name, ": struct_size must be ", sizeof(T), " (its sizeof), got ", size);
  }
  const auto *bytes = reinterpret_cast<const unsigned char *>(given);
  for (size_t i = sizeof(T); i < size; ++i) {
    if (bytes[i] != 0) {
      fail(FLASH_UNSUPPORTED, name, ": uses a field of a later version of flash.h (byte ", i,
           " isn't zero); this library knows ", sizeof(T), " bytes, load a newer one");
    }
  }
  T copy{};
  std::memcpy(&copy, given, size < sizeof(T) ? size : sizeof(T));
  return copy;
}

}  // namespace flash
