// Block-sparse attention from C++: arrays that own their memory, a sliding window given as a list of blocks, what
// flash_explain says about it, and a check that it equals the dense computation with the same mask.
#include <flash.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

// DLPack's data types, for the element types used here.
template <class T>
constexpr flash_dtype kDtype{};
template <>
constexpr flash_dtype kDtype<float>{2, 32, 1};
template <>
constexpr flash_dtype kDtype<int32_t>{0, 32, 1};
template <>
constexpr flash_dtype kDtype<bool>{6, 8, 1};

// A compact array in host memory, and its flash_tensor, valid as long as the array is.
template <class T>
class Array {
 public:
  explicit Array(std::vector<int64_t> shape) : shape_(std::move(shape)), size_(1) {
    for (int64_t extent : shape_) size_ *= static_cast<size_t>(extent);
    data_ = std::make_unique<T[]>(size_);
    view_.data = data_.get();
    view_.device = {1, 0};
    view_.ndim = static_cast<int32_t>(shape_.size());
    view_.dtype = kDtype<T>;
    view_.shape = shape_.data();
  }
  Array(std::vector<int64_t> shape, const std::vector<T> &values) : Array(std::move(shape)) {
    std::copy(values.begin(), values.end(), data_.get());
  }
  Array(const Array &) = delete;  // the view points into this object
  Array &operator=(const Array &) = delete;

  const flash_tensor *view() const { return &view_; }
  T *begin() { return data_.get(); }
  T *end() { return data_.get() + size_; }
  T &operator[](size_t index) { return data_[index]; }

 private:
  std::vector<int64_t> shape_;
  size_t size_;
  std::unique_ptr<T[]> data_;
  flash_tensor view_{};
};

void check(flash_status status) {
  if (status != FLASH_OK) throw std::runtime_error(flash_error_message());
}

void forward(const flash_problem &problem, const Array<float> &o) {
  size_t bytes = 0;
  check(flash_forward_workspace(&problem, &bytes));
  std::vector<char> workspace(bytes);
  check(flash_forward(&problem, o.view(), nullptr, workspace.data(), bytes, nullptr));
}

std::string explain(const flash_problem &problem) {
  size_t bytes = 0;
  check(flash_explain(&problem, 0, nullptr, 0, &bytes));
  std::string json(bytes, '\0');
  check(flash_explain(&problem, 0, json.data(), bytes, &bytes));
  json.resize(bytes - 1);  // the NUL
  return json;
}

// Row block r lists columns [max(0, r - 1), r]: a window of two blocks, compressed by rows.
void list_blocks(int64_t blocks, std::vector<int32_t> *row_start, std::vector<int32_t> *columns) {
  row_start->push_back(0);
  for (int64_t r = 0; r < blocks; ++r) {
    for (int64_t c = r > 0 ? r - 1 : 0; c <= r; ++c) columns->push_back(static_cast<int32_t>(c));
    row_start->push_back(static_cast<int32_t>(columns->size()));
  }
}

int run() {
  constexpr int64_t kLength = 256, kHeads = 2, kDim = 32, kBlock = 32, kBlocks = kLength / kBlock;
  Array<float> q({kLength, kHeads, kDim}), k({kLength, kHeads, kDim}), v({kLength, kHeads, kDim});
  Array<float> sparse({kLength, kHeads, kDim}), dense({kLength, kHeads, kDim});
  std::mt19937 generator(0);
  std::normal_distribution<float> normal;
  for (Array<float> *array : {&q, &k, &v})
    for (float &x : *array) x = normal(generator);

  flash_problem problem{};
  problem.struct_size = sizeof problem;
  problem.q = q.view();
  problem.k = k.view();
  problem.v = v.view();

  std::vector<int32_t> row_start_values, columns_values;
  list_blocks(kBlocks, &row_start_values, &columns_values);
  const Array<int32_t> row_start({1, 1, kBlocks + 1}, row_start_values);
  const Array<int32_t> columns({static_cast<int64_t>(columns_values.size())}, columns_values);
  flash_block_mask blocks{};
  blocks.struct_size = sizeof blocks;
  blocks.block_q = blocks.block_k = kBlock;
  blocks.row_start = row_start.view();
  blocks.columns = columns.view();
  problem.block_mask = &blocks;
  forward(problem, sparse);
  std::printf("%s\n", explain(problem).c_str());

  Array<bool> mask({kLength, kLength});
  for (int64_t i = 0; i < kLength; ++i)
    for (int64_t j = 0; j < kLength; ++j) {
      const int64_t behind = i / kBlock - j / kBlock;
      mask[static_cast<size_t>(i * kLength + j)] = behind == 0 || behind == 1;
    }
  problem.block_mask = nullptr;
  problem.mask = mask.view();
  forward(problem, dense);

  float error = 0;
  for (size_t n = 0; n < kLength * kHeads * kDim; ++n) {
    const float difference = std::fabs(sparse[n] - dense[n]);
    if (!(difference <= error)) error = difference;  // a NaN stays
  }
  std::printf("sparse and dense differ by at most %.1e\n", error);
  return error < 1e-5f ? 0 : 1;
}

}  // namespace

int main() {
  try {
    return run();
  } catch (const std::exception &error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
