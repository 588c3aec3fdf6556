// Tests of the host side that need no array library: geometry, random numbers, statuses, checks, struct sizes, JSON.
//
//   flash_host_tests        prints each failed check as file:line, then "N passed, N failed"; exit status 1 if any failed
#include <algorithm>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "checks.h"
#include "costs.h"
#include "error.h"
#include "explain.h"
#include "flash.h"
#include "geometry.h"
#include "problem.h"
#include "random.h"
#include "tensor.h"

using namespace flash;

namespace {

// The C functions called below leave this message.
void check_fails(flash_status got, flash_status wanted, const char *part, const char *file, int line) {
  const std::string message = got == FLASH_OK ? "" : flash_error_message();
  check(got == wanted && message.find(part) != std::string::npos, file, line,
        text("wanted status ", wanted, " and \"", part, "\", got ", got, " and \"", message, "\""));
}
#define FAILS(call, status, part) check_fails(call, status, part, __FILE__, __LINE__)
#define INVALID(call, part) FAILS(call, FLASH_INVALID_VALUE, part)

// ---- Arrays for calls

enum { kInt = 0, kUint = 1, kFloat = 2, kBfloat = 4, kBool = 6, kE4m3fn = 10 };

// A flash_tensor with its own memory, shape and strides.
struct Array {
  std::vector<int64_t> shape, strides;
  std::vector<double> storage;  // doubles, for their alignment
  flash_tensor tensor{};

  explicit Array(std::vector<int64_t> extents, int code = kFloat, int bits = 32) : shape(std::move(extents)) {
    int64_t count = 1;
    for (int64_t extent : shape) count *= extent;
    storage.assign(static_cast<size_t>(count > 0 ? (count * bits / 8 + 7) / 8 : 0), 0.0);
    set(storage.data(), code, bits);
  }
  // A view of memory that somebody else owns.
  Array(void *data, std::vector<int64_t> extents, std::vector<int64_t> steps, int code = kFloat, int bits = 32)
      : shape(std::move(extents)), strides(std::move(steps)) {
    set(data, code, bits);
  }
  Array(const Array &) = delete;

  void set(void *data, int code, int bits) {
    tensor.data = data;
    tensor.device.device_type = static_cast<decltype(tensor.device.device_type)>(1);
    tensor.ndim = static_cast<int32_t>(shape.size());
    tensor.dtype.code = static_cast<uint8_t>(code);
    tensor.dtype.bits = static_cast<uint8_t>(bits);
    tensor.dtype.lanes = 1;
    tensor.shape = shape.data();
    tensor.strides = strides.empty() ? nullptr : strides.data();
  }
  void set_device(int type, int id = 0) {
    tensor.device.device_type = static_cast<decltype(tensor.device.device_type)>(type);
    tensor.device.device_id = id;
  }
  template <class T>
  T *data() {
    return static_cast<T *>(tensor.data);
  }
  operator const flash_tensor *() const { return &tensor; }
};

void fill(Array &array, const std::vector<int32_t> &values) {
  std::memcpy(array.tensor.data, values.data(), values.size() * sizeof(int32_t));
}

flash_problem problem_of(const Array &q, const Array &k, const Array &v) {
  flash_problem problem{};
  problem.struct_size = sizeof problem;
  problem.q = q, problem.k = k, problem.v = v;
  return problem;
}

// Checks a problem without running it.
flash_status read(const flash_problem &problem) {
  size_t bytes = 0;
  return flash_forward_workspace(&problem, &bytes);
}

// One valid problem, B = 2, Lq = 5, Lk = 7, Hq = 4, Hk = 2, D = 8, Dv = 3, to break in one way at a time.
struct Sample {
  Array q{{2, 5, 4, 8}}, k{{2, 7, 2, 8}}, v{{2, 7, 2, 3}}, o{{2, 5, 4, 3}}, lse{{2, 4, 5}};
  flash_problem problem = problem_of(q, k, v);
};

// Runs the common checks on some arrays and says what they threw; "" for nothing.
template <class Function>
std::string error_of(Function &&function) {
  try {
    function();
    return "";
  } catch (const Error &error) {
    return error.message;
  }
}
bool contains(const std::string &whole, const char *part) { return whole.find(part) != std::string::npos; }

// ---- Geometry

bool visible(Window window, Sequence sequence, int64_t i, int64_t j) {
  const int64_t position = i + sequence.offset;
  return i < sequence.q_len && j < sequence.kv_len && j >= position - window.left && j <= position + window.right;
}

void test_geometry() {
  std::mt19937 random(7);
  const auto draw = [&](int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random() % static_cast<uint32_t>(high - low + 1));
  };
  int wrong = 0;
  for (int round = 0; round < 3000; ++round) {
    const int64_t rows = draw(0, 12), columns = draw(0, 12);
    const Window window{draw(0, 3) == 0 ? kOpen : draw(0, 6), draw(0, 3) == 0 ? kOpen : draw(0, 6)};
    const Sequence sequence{draw(0, rows), draw(0, columns), draw(-15, 15)};
    const Interval some_rows{draw(0, rows), draw(0, rows)}, some_columns{draw(0, columns), draw(0, columns)};
    const Interval any = keys_of_any(window, sequence, some_rows), all = keys_of_all(window, sequence, some_rows);
    const Interval any_rows = queries_of_any(window, sequence, some_columns);
    for (int64_t i = 0; i < rows; ++i) {
      const Interval keys = keys_of(window, sequence, i);
      for (int64_t j = 0; j < columns; ++j) {
        const bool seen = visible(window, sequence, i, j);
        const Interval queries = queries_of(window, sequence, j);
        wrong += seen != (j >= keys.begin && j < keys.end);
        wrong += seen != (i >= queries.begin && i < queries.end);
        const bool in_rows = i >= some_rows.begin && i < some_rows.end;
        wrong += seen && in_rows && !(j >= any.begin && j < any.end);
        wrong += !seen && in_rows && j >= all.begin && j < all.end && sequence.q_len >= some_rows.end;
        const bool in_columns = j >= some_columns.begin && j < some_columns.end;
        wrong += seen && in_columns && !(i >= any_rows.begin && i < any_rows.end);
      }
    }
  }
  CHECK(wrong == 0);
  CHECK(ceil_div(0, 16) == 0 && ceil_div(17, 16) == 2 && round_up(17, 16) == 32 && clamp(5, 0, 3) == 3);
}

// ---- Random numbers

bool equal(Philox got, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  return got.word[0] == a && got.word[1] == b && got.word[2] == c && got.word[3] == d;
}

void test_random() {
  constexpr uint32_t kOnes = 0xffffffff;
  CHECK(equal(philox4x32(0, {{0, 0, 0, 0}}), 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  CHECK(
      equal(philox4x32(~uint64_t{0}, {{kOnes, kOnes, kOnes, kOnes}}), 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
  CHECK(equal(philox4x32(uint64_t{0x299f31d0} << 32 | 0xa4093822, {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}),
              0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
  CHECK(dropout_words((uint64_t{1} << 40) + 7, 1, 2, 3, 4).word[dropout_word_index(3, 4)] == 0xe3009cf9);
  CHECK(dropout_threshold(0) == 0 && dropout_threshold(1) == uint64_t{1} << 32);
  CHECK(dropout_threshold(0.5) == uint64_t{1} << 31);
}

// ---- Statuses and the C boundary

void test_boundary() {
  CHECK(flash_version() == 10000 * FLASH_VERSION_MAJOR + 100 * FLASH_VERSION_MINOR + FLASH_VERSION_PATCH);
  CHECK(sizeof kStatusOrder / sizeof *kStatusOrder == FLASH_INTERNAL_ERROR + 1);
  size_t bytes = 0;
  INVALID(flash_forward_workspace(nullptr, &bytes), "problem: is NULL");
  Sample s;
  INVALID(flash_forward_workspace(&s.problem, nullptr), "bytes: is NULL");
  INVALID(flash_backward_workspace(&s.problem, FLASH_DQ, nullptr), "bytes: is NULL");
  INVALID(flash_forward(&s.problem, nullptr, nullptr, nullptr, 0, nullptr), "o: is NULL");
  INVALID(flash_backward(&s.problem, nullptr, nullptr, nullptr, 0, nullptr), "saved: is NULL");
  INVALID(flash_weights(&s.problem, nullptr, nullptr, nullptr), "weights: is NULL");
  INVALID(flash_dropout_mask(0, 0.5, nullptr, nullptr), "keep: is NULL");
  INVALID(flash_merge(nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr), "o1: is NULL");
  INVALID(flash_explain(&s.problem, 0, nullptr, 0, nullptr), "needed: is NULL");
  INVALID(flash_config(nullptr, 10, &bytes), "json: is NULL");
}

void test_struct_size() {
  struct {
    flash_problem problem;
    unsigned char later[16];
  } newer{};
  Sample s;
  newer.problem = s.problem;
  newer.problem.struct_size = sizeof newer;
  CHECK(read(newer.problem) == FLASH_OK);
  newer.later[15] = 1;
  FAILS(read(newer.problem), FLASH_UNSUPPORTED, "later version");
  s.problem.struct_size = sizeof(flash_problem) - 1;
  INVALID(read(s.problem), "problem: struct_size must be");
  s.problem.struct_size = 0;
  INVALID(read(s.problem), "got 0");
  s.problem.struct_size = ~size_t{0};
  INVALID(read(s.problem), "struct_size");
}

// The size first, then the text; less room gives a part of it.
template <class Call>
void check_text_protocol(Call &&call) {
  size_t needed = 0, again = 0;
  CHECK(call(nullptr, size_t{0}, &needed) == FLASH_OK && needed > 2);
  std::string whole(needed, '?');
  CHECK(call(&whole[0], needed, &again) == FLASH_OK && again == needed);
  CHECK(whole[0] == '{' && whole[needed - 2] == '}' && whole[needed - 1] == '\0');
  char part[8];
  std::memset(part, '?', sizeof part);
  CHECK(call(part, size_t{7}, &again) == FLASH_OK && again == needed);
  CHECK(std::memcmp(part, whole.data(), 6) == 0 && part[6] == '\0' && part[7] == '?');
}

void test_json() {
  check_text_protocol([](char *json, size_t capacity, size_t *needed) { return flash_config(json, capacity, needed); });
  Sample s;
  check_text_protocol([&](char *json, size_t capacity, size_t *needed) {
    return flash_explain(&s.problem, 0, json, capacity, needed);
  });
  Arguments arguments;
  s.problem.flags = FLASH_CAUSAL;  // offset 2: the rows see 3, 4, 5, 6, 7 keys
  const Problem problem = read_problem(&s.problem, arguments);
  CHECK(visible_pairs(problem) == 2 * 4 * 25);
  const std::string json = explain_json(problem, make_plan(problem, 0), 0);
  CHECK(contains(json, "\"visible_pairs\": 200,") && contains(json, "\"flops\": 4400,"));
  CHECK(contains(json, "\"Dv\": 3}") && contains(json, "\"operation\": \"forward\""));
}

// ---- Arrays

void test_arrays() {
  {
    Sample s;
    s.q.set_device(10);
    INVALID(read(s.problem), "q: must be on the CPU");
    s.q.set_device(3);
    CHECK(read(s.problem) == FLASH_OK);
    s.k.set_device(2, 1);
    INVALID(read(s.problem), "k: must be on the CPU as q is, got CUDA device 1");
  }
  {
    Sample s;
    for (Array *array : {&s.q, &s.k, &s.v}) array->set_device(2);
    FAILS(read(s.problem), FLASH_UNSUPPORTED, "copy the arrays to the CPU");
  }
  {
    Sample s;
    s.k.tensor.dtype.bits = 16;
    FAILS(read(s.problem), FLASH_INVALID_TYPE, "k: dtype must be float32 as in q, got float16");
    s.k.tensor.dtype.code = kUint;
    FAILS(read(s.problem), FLASH_INVALID_TYPE, "got uint16");
    s.q.tensor.dtype.lanes = 4;
    FAILS(read(s.problem), FLASH_INVALID_TYPE, "float32 in vectors of 4");
  }
  {
    Sample s;
    s.q.tensor.data = nullptr;
    INVALID(read(s.problem), "q: data is NULL");
    s.q.tensor.data = s.q.storage.data();
    s.q.tensor.byte_offset = 2;
    INVALID(read(s.problem), "q: data must be aligned to 4 bytes");
    s.q.tensor.byte_offset = 0;
    s.q.tensor.ndim = -1;
    INVALID(read(s.problem), "ndim");
    s.q.tensor.ndim = 4;
    s.q.shape[1] = -5;
    INVALID(read(s.problem), "must not be negative");
    s.q.shape[1] = int64_t{1} << 60;
    INVALID(read(s.problem), "address space");
    s.q.tensor.shape = nullptr;
    INVALID(read(s.problem), "shape is NULL");
  }
  {  // strides that overflow, also where an empty axis hides the extents
    Sample s;
    s.q.strides = {int64_t{1} << 62, 8, 8, 1};
    s.q.tensor.strides = s.q.strides.data();
    INVALID(read(s.problem), "address space");
    Array empty({0, int64_t{1} << 40, int64_t{1} << 40, 8});
    s.problem.q = empty;
    INVALID(read(s.problem), "address space");
  }
  {  // nothing in it: NULL is fine
    Array q({2, 0, 4, 8}), k({2, 0, 2, 8}), v({2, 0, 2, 3});
    q.tensor.data = k.tensor.data = v.tensor.data = nullptr;
    CHECK(read(problem_of(q, k, v)) == FLASH_OK);
  }
}

void test_strides() {
  std::vector<float> memory(4096);
  const auto error = [&](std::vector<int64_t> shape, std::vector<int64_t> strides) {
    Array array(memory.data() + 2048, std::move(shape), std::move(strides));
    return error_of([&] {
      Arguments arguments;
      rows_view(arguments.input("q", array, {DType::kFloat32}));
    });
  };
  CHECK(error({2, 3, 4, 2, 8}, {192, 64, 16, 8, 1}).empty());
  CHECK(error({2, 3, 4, 2, 8}, {0, 0, 16, 8, 1}).empty());
  CHECK(error({2, 1, 4, 2, 8}, {64, 12345, 16, 8, 1}).empty());
  CHECK(error({2, 3, 4, 2, 8}, {-192, -64, -16, 8, 1}).empty());
  CHECK(contains(error({2, 3, 4, 2, 8}, {64, 128, 16, 8, 1}), "must merge into one"));
  CHECK(contains(error({2, 3, 4, 2, 8}, {0, 64, 16, 8, 1}), "must merge into one"));
  CHECK(contains(error({2, 4, 2, 8}, {64, 16, 1, 2}), "last axis must be contiguous"));
  CHECK(error({2, 4, 2, 1}, {64, 16, 1, 7}).empty());

  Array transposed(memory.data(), {2, 5, 4, 8}, {160, 8, 40, 1});
  Arguments arguments;
  const RowsView view = rows_view(arguments.input("q", transposed, {DType::kFloat32}));
  CHECK(view.batch == 160 && view.row == 8 && view.head == 40);

  // mask and bias: broadcast axes get stride 0, the rest keep theirs
  Array bias(memory.data(), {3, 1, 5, 7}, {35, 9, 7, 1});
  const ScoresView scores = scores_view(arguments.input("bias", bias, {DType::kFloat32}), {2, 3, 4, 5, 7});
  CHECK(scores.batch.rank == 2 && scores.head == 0 && scores.row == 7 && scores.column == 1);
  CHECK(leading_offset(scores.batch, 0) == 0 && leading_offset(scores.batch, 2) == 70);
  CHECK(leading_offset(scores.batch, 3) == 0 && leading_offset(scores.batch, 5) == 70);
  CHECK(contains(error_of([&] {
                   Arguments more;
                   scores_view(more.input("mask", bias, {DType::kFloat32}), {2, 4, 5, 7});
                 }),
                 "mask: shape must broadcast"));
}

void test_leading_offset() {
  const LeadingAxes axes{3, {2, 3, 4}, {100, -10, 0}};
  int wrong = 0;
  for (int64_t a = 0; a < 2; ++a) {
    for (int64_t b = 0; b < 3; ++b) {
      for (int64_t c = 0; c < 4; ++c) wrong += leading_offset(axes, (a * 3 + b) * 4 + c) != 100 * a - 10 * b;
    }
  }
  CHECK(wrong == 0);
  CHECK(leading_offset({}, 0) == 0);
}

// ---- Overlap

// Every byte that a view touches, the slow way.
std::vector<int> touched(const std::vector<int64_t> &shape, const std::vector<int64_t> &strides, int64_t first) {
  std::vector<int64_t> offsets{first};
  for (size_t axis = 0; axis < shape.size(); ++axis) {
    std::vector<int64_t> next;
    for (int64_t offset : offsets) {
      for (int64_t x = 0; x < shape[axis]; ++x) next.push_back(offset + x * strides[axis]);
    }
    offsets = next;
  }
  std::vector<int> count(2000, 0);
  for (int64_t offset : offsets) ++count[static_cast<size_t>(offset)];
  return count;
}

void test_overlap() {
  std::vector<float> memory(2000);
  const auto error = [&](const Array &input, const Array &output) {
    return error_of([&] {
      Arguments arguments;
      arguments.input("q", input, {DType::kFloat32});
      arguments.output("o", output, {DType::kFloat32});
    });
  };
  // slices of one packed qkv: (L, 3, H, D), then (L, H, 3, D) and (L, H, D, 3)
  const auto slice = [&](int64_t at, std::vector<int64_t> strides) {
    return Array(memory.data() + at, {10, 2, 4}, std::move(strides));
  };
  CHECK(error(slice(0, {24, 4, 1}), slice(16, {24, 4, 1})).empty());
  CHECK(error(slice(0, {24, 12, 1}), slice(4, {24, 12, 1})).empty());
  CHECK(error(slice(0, {24, 12, 3}), slice(2, {24, 12, 3})).empty());
  CHECK(contains(error(slice(0, {24, 4, 1}), slice(7, {24, 4, 1})), "o: must not share memory with q"));
  CHECK(contains(error(slice(0, {24, 4, 1}), slice(0, {24, 4, 1})), "share memory"));
  CHECK(contains(error(slice(0, {24, 4, 1}), slice(0, {0, 4, 1})), "must not overlap"));
  CHECK(contains(error(slice(0, {24, 4, 1}), slice(500, {3, 4, 1})), "must not overlap"));
  CHECK(error(slice(0, {0, 0, 0}), slice(500, {-24, 4, 1})).empty());

  // Random pairs of views against the bytes that they really touch.
  std::mt19937 random(11);
  const auto draw = [&](int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random() % static_cast<uint32_t>(high - low + 1));
  };
  int wrong = 0, overlaps = 0, interleaved = 0;
  for (int round = 0; round < 4000; ++round) {
    std::vector<int64_t> shape[2], strides[2];
    int64_t first[2];
    for (int n = 0; n < 2; ++n) {
      first[n] = 900 + draw(0, 60);
      for (int axis = 0; axis < 3; ++axis) {
        shape[n].push_back(draw(1, 4));
        strides[n].push_back(draw(-24, 24));
      }
    }
    if (round % 2) strides[1] = strides[0];
    const std::vector<int> a = touched(shape[0], strides[0], first[0]), b = touched(shape[1], strides[1], first[1]);
    bool shared = false, self = false;
    size_t low[2] = {2000, 2000}, high[2] = {0, 0};
    for (size_t at = 0; at < a.size(); ++at) {
      shared = shared || (a[at] && b[at]);
      self = self || b[at] > 1;
      if (a[at]) low[0] = std::min(low[0], at), high[0] = at;
      if (b[at]) low[1] = std::min(low[1], at), high[1] = at;
    }
    const Array input(memory.data() + first[0], shape[0], strides[0]);
    const Array output(memory.data() + first[1], shape[1], strides[1]);
    const std::string message = error(input, output);
    if (contains(message, "must not overlap")) continue;  // only nested strides are accepted for outputs
    wrong += self || shared != !message.empty();
    overlaps += shared;
    interleaved += !shared && low[0] < high[1] && low[1] < high[0];
  }
  CHECK(wrong == 0);
  CHECK(overlaps > 100 && interleaved > 100);

  Sample s;
  std::vector<double> workspace(1 << 16);
  INVALID(flash_forward(&s.problem, s.o, s.lse, s.q.tensor.data, 1 << 20, nullptr), "workspace: must not share memory");
  INVALID(flash_forward(&s.problem, s.o, s.o, workspace.data(), workspace.size(), nullptr),
          "lse: must not share memory");
}

// ---- Problems

void test_shapes() {
  Sample s;
  CHECK(read(s.problem) == FLASH_OK);
  const auto with_k = [&](std::vector<int64_t> shape) {
    Array k(std::move(shape));
    s.problem.k = k;
    const flash_status status = read(s.problem);
    s.problem.k = s.k;
    return status;
  };
  INVALID(with_k({2, 7, 2, 16}), "k: last axis must be 8 as in q, got 16");
  INVALID(with_k({2, 7, 3, 8}), "k: heads axis must divide the 4 heads of q, got 3");
  INVALID(with_k({2, 7, 0, 8}), "k: heads axis must not be 0");
  INVALID(with_k({1, 7, 2, 8}), "k: leading axes must be (2,) as in q, got (1,)");
  INVALID(with_k({2, 6, 2, 8}), "v: keys axis must be 6 as in k, got 7");
  INVALID(with_k({2, 8}), "k: shape must be N + (Lk, Hk, D)");
  Array wide({1, 1, 1, 577}), half({2, 5, 4, 8}, kFloat, 16), wrong_o({2, 5, 4, 8});
  FAILS(read(problem_of(wide, wide, wide)), FLASH_UNSUPPORTED, "at most 576, got 577");
  INVALID(flash_forward(&s.problem, wrong_o, nullptr, nullptr, 0, nullptr),
          "o: shape must be N + (Lq, Hq, Dv) = (2, 5, 4, 3), got (2, 5, 4, 8)");
  s.problem.v = nullptr;
  INVALID(read(s.problem), "v: is NULL");
  Array small({1, 2, 1, 8}, kE4m3fn, 8);
  FAILS(read(problem_of(small, small, small)), FLASH_UNSUPPORTED, "Hopper");
}

void test_options() {
  const auto with = [](auto &&change) {
    Sample s;
    change(s.problem);
    return read(s.problem);
  };
  constexpr int64_t kLimit = int64_t{1} << 30;
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  INVALID(with([](auto &p) { p.flags = 64; }), "flags: unknown bits 64");
  INVALID(with([=](auto &p) { p.flags = FLASH_SCALE, p.scale = inf; }), "scale: must be finite");
  CHECK(with([=](auto &p) { p.scale = nan; }) == FLASH_OK);  // not flagged, so not looked at
  INVALID(with([](auto &p) { p.softcap = -1; }), "softcap: must be finite and at least 0");
  INVALID(with([=](auto &p) { p.dropout = nan; }), "dropout: must be 0 to 1");
  INVALID(with([](auto &p) { p.dropout = 1.5; }), "got 1.5");
  INVALID(with([](auto &p) { p.flags = FLASH_WINDOW_LEFT, p.window_left = -1; }), "window_left: must be at least 0");
  INVALID(with([](auto &p) { p.flags = FLASH_WINDOW_RIGHT, p.window_right = kLimit; }), "window_right");
  INVALID(with([](auto &p) { p.flags = FLASH_Q_OFFSET, p.q_offset = -kLimit; }), "q_offset: must be above -2^30");
  CHECK(with([](auto &p) { p.flags = FLASH_Q_OFFSET, p.q_offset = 1 - kLimit; }) == FLASH_OK);

  Array offsets({2}, kInt, 64), lens({3}, kInt, 32), bias16({7}, kFloat, 16), mask8({5, 7}, kUint, 8);
  Array mask({4, 1, 7}, kBool, 8), sinks({4}), slopes({2, 4}), seeds({2}, kInt, 64), scale({2, 2});
  INVALID(with([&](auto &p) { p.flags = FLASH_Q_OFFSET, p.q_offsets = offsets; }), "both as a number and as an array");
  INVALID(with([&](auto &p) { p.q_lens = lens; }), "q_lens: shape must be N = (2,), got (3,)");
  FAILS(with([&](auto &p) { p.kv_lens = sinks; }), FLASH_INVALID_TYPE, "kv_lens: dtype must be int32 or int64");
  FAILS(with([&](auto &p) { p.bias = bias16; }), FLASH_INVALID_TYPE, "bias: dtype must be float32, got float16");
  FAILS(with([&](auto &p) { p.mask = mask8; }), FLASH_INVALID_TYPE, "mask: dtype must be bool, got uint8");
  FAILS(with([&](auto &p) { p.q_scale = scale; }), FLASH_INVALID_TYPE, "q_scale: is for float8_e4m3fn only");
  INVALID(with([&](auto &p) { p.seeds = seeds; }), "seed: must have one element");
  CHECK(with([&](auto &p) { p.mask = mask, p.sinks = sinks, p.alibi_slopes = slopes; }) == FLASH_OK);
  CHECK(with([&](auto &p) { p.alibi_slopes = sinks, p.q_offsets = offsets; }) == FLASH_OK);
}

void test_sequences() {
  Sample s;
  Array q_lens({2}, kInt, 32), kv_lens({2}, kInt, 32), offsets({2}, kInt, 32);
  fill(q_lens, {5, 3}), fill(kv_lens, {7, 1}), fill(offsets, {-4, 9});
  s.problem.q_lens = q_lens, s.problem.kv_lens = kv_lens;
  Arguments arguments, again;
  const Problem problem = read_problem(&s.problem, arguments);
  check_values(problem);
  CHECK(sequence_of(problem, 0).offset == 2 && sequence_of(problem, 1).offset == -2);
  CHECK(sequence_of(problem, 1).q_len == 3 && sequence_of(problem, 1).kv_len == 1);
  s.problem.q_offsets = offsets;
  const Problem shifted = read_problem(&s.problem, again);
  CHECK(sequence_of(shifted, 0).offset == -4 && sequence_of(shifted, 1).offset == 9);
  fill(kv_lens, {8, 1});
  CHECK(contains(error_of([&] { check_values(problem); }), "kv_lens: must be 0 to 7, got 8 for sequence 0"));
  fill(kv_lens, {7, -1});
  CHECK(contains(error_of([&] { check_values(problem); }), "got -1 for sequence 1"));
}

void test_gradients() {
  Sample s;
  size_t bytes = 0;
  INVALID(flash_backward_workspace(&s.problem, 0, &bytes), "at least one");
  INVALID(flash_backward_workspace(&s.problem, 32, &bytes), "unknown bits 32");
  INVALID(flash_backward_workspace(&s.problem, FLASH_DSINKS, &bytes), "dsinks: wanted, but the problem has no sinks");
  INVALID(flash_backward_workspace(&s.problem, FLASH_DBIAS, &bytes), "dbias: wanted, but the problem has no bias");

  Array bias({4, 1, 7}), dbias({4, 1, 7}), full({2, 4, 5, 7}), dout({2, 5, 4, 3}), dq({2, 5, 4, 8});
  s.problem.bias = bias;
  const flash_saved saved{sizeof(flash_saved), dout, s.o, s.lse, nullptr};
  const auto read_gradients = [&](const flash_gradients &gradients) {
    Arguments arguments;
    const Problem problem = read_problem(&s.problem, arguments);
    return read_backward(problem, arguments, &saved, &gradients);
  };
  flash_gradients gradients{sizeof(flash_gradients), dq, nullptr, nullptr, dbias, nullptr};
  const BackwardArguments backward = read_gradients(gradients);
  CHECK(wanted_of(backward) == (FLASH_DQ | FLASH_DBIAS));
  CHECK(backward.dbias.batch.rank == 1 && backward.dbias.batch.stride[0] == 0);
  CHECK(backward.dbias.head == 7 && backward.dbias.row == 0 && backward.dbias.column == 1);
  gradients.dbias = full;
  CHECK(contains(error_of([&] { read_gradients(gradients); }), "dbias: shape must be bias's own = (4, 1, 7)"));
  gradients.dbias = bias;
  CHECK(contains(error_of([&] { read_gradients(gradients); }), "dbias: must not share memory with bias"));
}

void test_block_mask() {
  Array q({1, 40, 2, 8}), k({1, 50, 1, 8});  // 3 x 4 blocks of 16
  Array row_start({1, 1, 4}, kInt, 32), columns({5}, kInt, 32), column_start({1, 1, 5}, kInt, 32), rows({5}, kInt, 32);
  flash_block_mask mask{sizeof(flash_block_mask), 16, 16, row_start, columns, column_start, rows};
  flash_problem problem = problem_of(q, k, k);
  problem.block_mask = &mask;
  const auto values_error = [&](const std::vector<int32_t> &starts, const std::vector<int32_t> &indices) {
    fill(row_start, starts), fill(columns, indices);
    return error_of([&] {
      Arguments arguments;
      check_values(read_problem(&problem, arguments));
    });
  };
  fill(column_start, {0, 2, 3, 4, 5}), fill(rows, {0, 1, 1, 0, 2});  // (0,0) (1,0) (1,1) (0,2) (2,3)
  CHECK(values_error({0, 2, 4, 5}, {0, 2, 0, 1, 3}).empty());
  Arguments arguments;
  const Problem valid = read_problem(&problem, arguments);
  CHECK(visible_pairs(valid) == 2 * (4 * 16 * 16 + 8 * 2));  // two heads; the last block is 8 rows by 2 keys

  CHECK(contains(values_error({0, 2, 4, 5}, {2, 0, 0, 1, 3}), "block_mask.columns: must ascend"));
  CHECK(contains(values_error({0, 2, 4, 5}, {0, 0, 0, 1, 3}), "block_mask.columns: must ascend"));
  CHECK(contains(values_error({0, 2, 4, 5}, {0, 2, 0, 1, 4}), "must ascend within 0 to 3, got 4"));
  CHECK(contains(values_error({0, 2, 1, 5}, {0, 2, 0, 1, 3}), "block_mask.row_start: must not decrease"));
  CHECK(contains(values_error({0, 2, 4, 6}, {0, 2, 0, 1, 3}), "nor exceed the 5 listed blocks"));
  CHECK(contains(values_error({-1, 2, 4, 5}, {0, 2, 0, 1, 3}), "must not be negative"));
  CHECK(contains(values_error({0, 2, 4, 5}, {0, 3, 0, 1, 3}), "must be the transpose"));
  CHECK(contains(values_error({0, 2, 4, 4}, {0, 2, 0, 1, 3}), "must be the transpose"));

  size_t bytes = 0;
  mask.column_start = mask.rows = nullptr;
  CHECK(read(problem) == FLASH_OK);
  INVALID(flash_backward_workspace(&problem, FLASH_DQ, &bytes), "the backward needs column_start and rows");
  mask.rows = rows;
  INVALID(read(problem), "must be given together");
  mask.rows = nullptr, mask.block_q = 24;
  INVALID(read(problem), "block_mask.block_q: must be a power of two from 16 to 256, got 24");
  mask.block_q = 32;
  INVALID(read(problem), "block_mask.row_start: shape must be (1 or 1, 1 or 2, 3)");
}

}  // namespace

int main() {
  test_geometry();
  test_random();
  test_boundary();
  test_struct_size();
  test_json();
  test_arrays();
  test_strides();
  test_leading_offset();
  test_overlap();
  test_shapes();
  test_options();
  test_sequences();
  test_gradients();
  test_block_mask();
  return report();
}
