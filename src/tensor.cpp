// From flash_tensor to views: every rule that holds for any array, whatever it means. Called by problem.cpp and
// api.cpp.
#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "check.h"

namespace flash {

const char *name(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return "float16";
    case DType::kBfloat16:
      return "bfloat16";
    case DType::kFloat32:
      return "float32";
    case DType::kFloat64:
      return "float64";
    case DType::kFloat8:
      return "float8_e4m3fn";
    case DType::kInt32:
      return "int32";
    case DType::kInt64:
      return "int64";
    case DType::kBool:
      return "bool";
  }
  return "unknown";
}

std::string to_text(const Shape &shape) {
  std::string result = "(";
  for (size_t axis = 0; axis < shape.size(); ++axis) result += (axis ? ", " : "") + std::to_string(shape[axis]);
  return result + (shape.size() == 1 ? ",)" : ")");
}

Shape joined(Shape leading, std::initializer_list<int64_t> trailing) {
  leading.insert(leading.end(), trailing.begin(), trailing.end());
  return leading;
}

bool has_elements(const Shape &shape) { return std::find(shape.begin(), shape.end(), 0) == shape.end(); }

namespace {

constexpr int kMaxAxes = 64;  // NumPy's own limit
// The farthest that an array may reach, in bytes: beyond any address space, and sums of a few of them stay in int64.
constexpr int64_t kMaxReachBytes = int64_t{1} << 60;

// A data that is not NULL for arrays without elements. Never read or written.
alignas(64) unsigned char no_elements[64];

// DLPack's type codes (DLDataTypeCode) and device types (DLDeviceType).
enum {
  kCodeInt = 0,
  kCodeUint = 1,
  kCodeFloat = 2,
  kCodeBfloat = 4,
  kCodeComplex = 5,
  kCodeBool = 6,
  kCodeE4m3fn = 10
};
enum { kDeviceCpu = 1, kDeviceCuda = 2, kDevicePinned = 3, kDeviceManaged = 13 };

struct DTypeCode {
  DType dtype;
  int code, bits;
};
constexpr DTypeCode kDTypeCodes[] = {
    {DType::kFloat16, kCodeFloat, 16}, {DType::kBfloat16, kCodeBfloat, 16}, {DType::kFloat32, kCodeFloat, 32},
    {DType::kFloat64, kCodeFloat, 64}, {DType::kFloat8, kCodeE4m3fn, 8},    {DType::kInt32, kCodeInt, 32},
    {DType::kInt64, kCodeInt, 64},     {DType::kBool, kCodeBool, 8},
};

// The name of any DLPack type, also of those that no argument takes.
std::string dtype_text(int code, int bits, int lanes) {
  std::string result;
  for (const DTypeCode &known : kDTypeCodes) {
    if (known.code == code && known.bits == bits) result = name(known.dtype);
  }
  if (result.empty()) {
    const char *kind = code == kCodeInt       ? "int"
                       : code == kCodeUint    ? "uint"
                       : code == kCodeFloat   ? "float"
                       : code == kCodeComplex ? "complex"
                                              : nullptr;
    result = kind ? text(kind, bits) : text("DLPack type code ", code, " of ", bits, " bits");
  }
  return lanes == 1 ? result : text(result, " in vectors of ", lanes);
}

DType read_dtype(const char *name, const flash_tensor &given, std::initializer_list<DType> allowed, const char *like) {
  const int code = given.dtype.code, bits = given.dtype.bits, lanes = given.dtype.lanes;
  std::string wanted;
  for (const DTypeCode &known : kDTypeCodes) {
    const bool takes = std::find(allowed.begin(), allowed.end(), known.dtype) != allowed.end();
    if (takes && known.code == code && known.bits == bits && lanes == 1) return known.dtype;
    if (takes) wanted += (wanted.empty() ? "" : " or ") + std::string(flash::name(known.dtype));
  }
  fail(FLASH_INVALID_TYPE, name, ": dtype must be ", wanted, like, ", got ", dtype_text(code, bits, lanes));
}

std::string device_text(const Tensor &tensor) {
  return tensor.backend == Backend::kCpu ? "the CPU" : text("CUDA device ", tensor.device_id);
}

// Whether extents (zeros aside, so that an empty array can't hide one) and strides stay within kMaxReachBytes.
bool within_reach(const Tensor &tensor) {
  int64_t elements = 1, reach = 0;
  for (size_t axis = 0; axis < tensor.shape.size(); ++axis) {
    const int64_t extent = std::max<int64_t>(tensor.shape[axis], 1), stride = tensor.stride[axis];
    if (extent > kMaxReachBytes / elements) return false;
    elements *= extent;
    if (stride < -kMaxReachBytes || stride > kMaxReachBytes) return false;
    if (stride == 0 || extent == 1) continue;
    if (extent - 1 > kMaxReachBytes / std::abs(stride)) return false;
    reach += (extent - 1) * std::abs(stride);
    if (reach > kMaxReachBytes) return false;
  }
  const int64_t most = kMaxReachBytes / size_bytes(tensor.dtype);
  return elements <= most && reach <= most;
}

// ---- Memory that two arrays share

// One direction in which an array extends: 0, step, ..., step * most bytes.
struct Direction {
  int64_t step, most;
};

// The bytes of an array: first + any sum over directions + 0 .. width - 1.
struct Footprint {
  uint64_t first;
  std::vector<Direction> directions;
  int64_t width;

  int64_t span() const {
    int64_t sum = width - 1;
    for (const Direction &direction : directions) sum += direction.step * direction.most;
    return sum;
  }
};

// Negative strides are turned round, so that every step is positive.
Footprint footprint_of(const Tensor &tensor) {
  Footprint result{reinterpret_cast<uintptr_t>(tensor.data), {}, size_bytes(tensor.dtype)};
  for (size_t axis = 0; axis < tensor.shape.size(); ++axis) {
    const int64_t step = tensor.stride[axis] * size_bytes(tensor.dtype), most = tensor.shape[axis] - 1;
    if (step < 0) result.first += static_cast<uint64_t>(step * most);
    if (step != 0) result.directions.push_back({std::abs(step), most});
  }
  return result;
}

// Is there a sum of x[n] * step[n], with 0 <= x[n] <= most[n], plus 0 .. slack, that equals the target?
//
// A depth-first search from the longest step down. Two cuts make it short: what the shorter steps can reach at most,
// and that their sums are multiples of their greatest common divisor. For arrays cut from larger ones by slicing and
// transposing, at most about three values of each x survive. The general problem is NP-hard (NumPy's
// shares_memory solves the same one), so a search that takes too long answers "yes".
class SumSearch {
 public:
  SumSearch(std::vector<Direction> directions, int64_t slack) : directions_(std::move(directions)), slack_(slack) {
    std::sort(directions_.begin(), directions_.end(), [](auto a, auto b) { return a.step > b.step; });
    const size_t count = directions_.size();
    reach_.assign(count + 1, 0);
    divisor_.assign(count + 1, 0);
    for (size_t n = count; n-- > 0;) {
      reach_[n] = reach_[n + 1] + directions_[n].step * directions_[n].most;
      divisor_[n] = std::gcd(divisor_[n + 1], directions_[n].step);
    }
  }
  bool may_equal(int64_t target) { return search(0, target); }

 private:
  bool search(size_t n, int64_t rest) {
    if (rest < 0 || rest - slack_ > reach_[n]) return false;
    if (n == directions_.size() || --steps_left_ < 0) return true;
    if (rest % divisor_[n] > slack_) return false;
    const auto [step, most] = directions_[n];
    const int64_t missing = rest - slack_ - reach_[n + 1];
    const int64_t least = missing <= 0 ? 0 : (missing + step - 1) / step;
    for (int64_t x = std::min(most, rest / step); x >= least; --x) {
      if (search(n + 1, rest - x * step)) return true;
    }
    return false;
  }

  std::vector<Direction> directions_;
  int64_t slack_;
  std::vector<int64_t> reach_, divisor_;  // of the directions from n on
  int steps_left_ = 20000;
};

// Whether two arrays have a byte in common. Disjoint slices of one buffer are told apart, even interleaved ones such as
// q = qkv[..., 0, :, :] and v = qkv[..., 2, :, :], whose ranges of addresses overlap.
//
// first_a + (directions of a) + e_a = first_b + (directions of b) + e_b. Counting b from its last byte downwards turns
// the minus signs of b into plus signs: one sum of positive steps that must equal (last byte of b) - (first byte of a).
bool share_memory(const Footprint &a, const Footprint &b) {
  // Unsigned: the difference of two addresses is right modulo 2^64 even where their top bits hold tags.
  const auto target = static_cast<int64_t>(b.first + static_cast<uint64_t>(b.span()) - a.first);
  if (target < 0 || target > a.span() + b.span()) return false;
  std::vector<Direction> directions = a.directions;
  for (const Direction &direction : b.directions) {
    const auto same = std::find_if(directions.begin(), directions.end(),
                                   [&](const Direction &other) { return other.step == direction.step; });
    if (same != directions.end()) {
      same->most += direction.most;
    } else {
      directions.push_back(direction);
    }
  }
  return SumSearch(std::move(directions), a.width - 1 + b.width - 1).may_equal(target);
}

// Whether each step leaps over everything that the shorter ones reach. All views that slicing and transposing make of
// an array without overlap pass; a few contrived ones without overlap (shape (3, 2), strides (2, 3)) don't.
bool is_nested(const Tensor &tensor) {
  std::vector<Direction> directions;
  for (size_t axis = 0; axis < tensor.shape.size(); ++axis) {
    if (tensor.shape[axis] > 1) directions.push_back({std::abs(tensor.stride[axis]), tensor.shape[axis] - 1});
  }
  std::sort(directions.begin(), directions.end(), [](auto a, auto b) { return a.step < b.step; });
  int64_t reach = 0;
  for (const Direction &direction : directions) {
    if (direction.step <= reach) return false;
    reach += direction.step * direction.most;
  }
  return true;
}

// ---- Leading axes

// Drops axes of extent 1 and merges neighbours that one stride describes.
LeadingAxes merge_axes(const char *name, const Shape &extent, const Shape &stride) {
  LeadingAxes result{};
  if (!has_elements(extent)) return result;
  for (size_t axis = 0; axis < extent.size(); ++axis) {
    if (extent[axis] == 1) continue;
    const int last = result.rank - 1;
    if (last >= 0 && result.stride[last] == stride[axis] * extent[axis]) {
      result.extent[last] *= extent[axis];
      result.stride[last] = stride[axis];
      continue;
    }
    if (result.rank == kMaxLeadingAxes) {
      fail(FLASH_UNSUPPORTED, name, ": leading axes ", to_text(extent), " with strides ", to_text(stride),
           " are more than ", kMaxLeadingAxes, " independent ones; pass a contiguous copy");
    }
    result.extent[result.rank] = extent[axis];
    result.stride[result.rank++] = stride[axis];
  }
  return result;
}

}  // namespace

Tensor Arguments::read(const char *name, const flash_tensor *given, std::initializer_list<DType> dtypes,
                       const char *like) const {
  if (given == nullptr) fail(FLASH_INVALID_VALUE, name, ": is NULL, must be an array");
  const int device_type = given->device.device_type;
  const bool is_cpu = device_type == kDeviceCpu || device_type == kDevicePinned;
  const bool is_cuda = device_type == kDeviceCuda || device_type == kDeviceManaged;
  if (!is_cpu && !is_cuda) {
    fail(FLASH_INVALID_VALUE, name, ": must be on the CPU (device type 1 or 3) or on CUDA (2 or 13), got device type ",
         device_type);
  }
  Tensor tensor{name,
                nullptr,
                read_dtype(name, *given, dtypes, like),
                is_cpu ? Backend::kCpu : Backend::kCuda,
                is_cpu ? 0 : given->device.device_id,
                {},
                {}};
  if (!tensors_.empty()) {
    const Tensor &first = tensors_.front();
    if (tensor.backend != first.backend || tensor.device_id != first.device_id) {
      fail(FLASH_INVALID_VALUE, name, ": must be on ", device_text(first), " as ", first.name, " is, got ",
           device_text(tensor));
    }
  }

  const int ndim = given->ndim;
  if (ndim < 0 || ndim > kMaxAxes) fail(FLASH_INVALID_VALUE, name, ": ndim must be 0 to ", kMaxAxes, ", got ", ndim);
  if (ndim > 0 && given->shape == nullptr) fail(FLASH_INVALID_VALUE, name, ": shape is NULL, ndim is ", ndim);
  tensor.shape.assign(given->shape, given->shape + ndim);
  tensor.stride.assign(static_cast<size_t>(ndim), 0);
  if (std::any_of(tensor.shape.begin(), tensor.shape.end(), [](int64_t extent) { return extent < 0; })) {
    fail(FLASH_INVALID_VALUE, name, ": shape must not be negative, got ", to_text(tensor.shape));
  }
  // Strides of axes with one element, or of an array with none, mean nothing and may be anything.
  const bool elements = has_elements(tensor.shape);
  if (elements && given->strides != nullptr) {
    for (size_t axis = 0; axis < tensor.shape.size(); ++axis) {
      if (tensor.shape[axis] > 1) tensor.stride[axis] = given->strides[axis];
    }
  }
  if (!within_reach(tensor)) {
    fail(FLASH_INVALID_VALUE, name, ": shape ", to_text(tensor.shape), " with strides ", to_text(tensor.stride),
         " exceeds the address space");
  }
  if (elements && given->strides == nullptr) {
    int64_t stride = 1;
    for (size_t axis = tensor.shape.size(); axis-- > 0; stride *= tensor.shape[axis]) {
      if (tensor.shape[axis] > 1) tensor.stride[axis] = stride;
    }
  }

  if (!elements) {
    tensor.data = no_elements;
    return tensor;
  }
  if (given->data == nullptr) {
    fail(FLASH_INVALID_VALUE, name, ": data is NULL, shape ", to_text(tensor.shape), " has elements");
  }
  if (given->byte_offset > static_cast<uint64_t>(kMaxReachBytes)) {
    fail(FLASH_INVALID_VALUE, name, ": byte_offset ", given->byte_offset, " exceeds the address space");
  }
  tensor.data = static_cast<unsigned char *>(given->data) + given->byte_offset;
  const auto misaligned = reinterpret_cast<uintptr_t>(tensor.data) % static_cast<uintptr_t>(size_bytes(tensor.dtype));
  if (misaligned != 0) {
    fail(FLASH_INVALID_VALUE, name, ": data must be aligned to ", size_bytes(tensor.dtype), " bytes for ",
         flash::name(tensor.dtype), ", is ", misaligned, " past; pass a copy");
  }
  return tensor;
}

Tensor Arguments::input(const char *name, const flash_tensor *given, std::initializer_list<DType> dtypes,
                        const char *like) {
  tensors_.push_back(read(name, given, dtypes, like));
  return tensors_.back();
}

Tensor Arguments::output(const char *name, const flash_tensor *given, std::initializer_list<DType> dtypes,
                         const char *like, const char *may_be) {
  Tensor tensor = read(name, given, dtypes, like);
  if (has_elements(tensor.shape)) {
    if (!is_nested(tensor)) {
      fail(FLASH_INVALID_VALUE, name, ": elements of an output must not overlap, got shape ", to_text(tensor.shape),
           " with strides ", to_text(tensor.stride));
    }
    const Footprint footprint = footprint_of(tensor);
    for (const Tensor &other : tensors_) {
      if (!has_elements(other.shape)) continue;
      const bool same = other.data == tensor.data && other.shape == tensor.shape && other.stride == tensor.stride;
      if (same && std::strcmp(other.name, may_be) == 0) continue;
      if (share_memory(footprint, footprint_of(other))) {
        fail(FLASH_INVALID_VALUE, name, ": must not share memory with ", other.name, "; pass an array of its own");
      }
    }
  }
  tensors_.push_back(tensor);
  return tensor;
}

void Arguments::check_workspace(const void *workspace, size_t bytes) const {
  if (workspace == nullptr || bytes == 0) return;
  if (bytes > static_cast<size_t>(kMaxReachBytes)) {
    fail(FLASH_INVALID_VALUE, "workspace: ", bytes, " bytes exceed the address space");
  }
  const Footprint footprint{reinterpret_cast<uintptr_t>(workspace), {}, static_cast<int64_t>(bytes)};
  for (const Tensor &other : tensors_) {
    if (has_elements(other.shape) && share_memory(footprint, footprint_of(other))) {
      fail(FLASH_INVALID_VALUE, "workspace: must not share memory with ", other.name, "; pass an array of its own");
    }
  }
}

const Tensor *Arguments::find(const char *name) const {
  for (const Tensor &tensor : tensors_) {
    if (std::strcmp(tensor.name, name) == 0) return &tensor;
  }
  return nullptr;
}

void check_shape(const Tensor &tensor, const Shape &wanted, const char *meaning) {
  if (tensor.shape == wanted) return;
  fail(FLASH_INVALID_VALUE, tensor.name, ": shape must be ", meaning, " = ", to_text(wanted), ", got ",
       to_text(tensor.shape));
}

void check_axes(const Tensor &tensor, int axes, const char *meaning) {
  if (tensor.ndim() >= axes) return;
  fail(FLASH_INVALID_VALUE, tensor.name, ": shape must be ", meaning, ", at least ", axes, " axes, got ",
       to_text(tensor.shape));
}

Shape leading_shape(const Tensor &tensor, int trailing) {
  return Shape(tensor.shape.begin(), tensor.shape.end() - trailing);
}

int64_t batch_stride(const Tensor &tensor, int trailing) {
  const Shape extent = leading_shape(tensor, trailing), stride(tensor.stride.begin(), tensor.stride.end() - trailing);
  const LeadingAxes axes = merge_axes(tensor.name, extent, stride);
  if (axes.rank > 1) {
    fail(FLASH_INVALID_VALUE, tensor.name, ": leading axes ", to_text(extent), " with strides ", to_text(stride),
         " must merge into one without a copy; pass a contiguous copy");
  }
  return axes.rank == 1 ? axes.stride[0] : 0;
}

RowsView rows_view(const Tensor &tensor) {
  if (tensor.extent(1) > 1 && has_elements(tensor.shape) && tensor.step(1) != 1) {
    fail(FLASH_INVALID_VALUE, tensor.name, ": last axis must be contiguous (stride 1), got stride ", tensor.step(1),
         "; pass a contiguous copy");
  }
  return {tensor.data, batch_stride(tensor, 3), tensor.step(3), tensor.step(2)};
}

LseView lse_view(const Tensor &tensor) {
  return {tensor.data, batch_stride(tensor, 2), tensor.step(2), tensor.step(1)};
}

ScoresView scores_view(const Tensor &tensor, const Shape &target) {
  const size_t added = target.size() - tensor.shape.size();
  bool fits = tensor.shape.size() <= target.size();
  Shape stride(target.size(), 0);
  for (size_t axis = 0; fits && axis < tensor.shape.size(); ++axis) {
    fits = tensor.shape[axis] == 1 || tensor.shape[axis] == target[added + axis];
    stride[added + axis] = tensor.stride[axis];  // 0 where the extent is 1: broadcast
  }
  if (!fits) {
    fail(FLASH_INVALID_VALUE, tensor.name, ": shape must broadcast to N + (Hq, Lq, Lk) = ", to_text(target), ", got ",
         to_text(tensor.shape));
  }
  const LeadingAxes batch =
      merge_axes(tensor.name, Shape(target.begin(), target.end() - 3), Shape(stride.begin(), stride.end() - 3));
  const size_t last = target.size() - 1;
  return {tensor.data, tensor.dtype, batch, stride[last - 2], stride[last - 1], stride[last]};
}

BatchView batch_view(const Tensor &tensor, HasHead has_head) {
  const int trailing = has_head == HasHead::kYes ? 1 : 0;
  const LeadingAxes batch = merge_axes(tensor.name, leading_shape(tensor, trailing),
                                       Shape(tensor.stride.begin(), tensor.stride.end() - trailing));
  return {tensor.data, tensor.dtype, batch, trailing == 1 ? tensor.step(1) : 0};
}

}  // namespace flash
