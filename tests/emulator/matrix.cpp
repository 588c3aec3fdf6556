// ldmatrix, stmatrix, movmatrix and mma.sync.
//
// Fragments, with group g = lane / 4 and t = lane % 4, e counting 16-bit (tf32: 32-bit) elements of the lane's registers:
//   ldmatrix   lane holds row g, columns 2t and 2t+1 of each 8x8 matrix; .trans: of its transpose; the others: the same
//   A 16 x k   row g + 8 (e/2 % 2), column 2t + e%2 + 8 (e/4)          tf32: row g + 8 (e%2), column t + 4 (e/2)
//   B k x 8    row 2t + e%2 + 8 (e/2), column g                        tf32: row t + 4 e, column g
//   C 16 x 8   row g + 8 (e/2), column 2t + e%2
#include <cstring>

#include "access.h"
#include "builder.h"
#include "lanes.h"

namespace emulator {

namespace {

bool complete(Warp &w, Mask mask, const char *what) {
  if (mask == kAllLanes) return true;
  w.run->report(w, Kind::kBarrier, __builtin_ctz(~mask), std::string(what) + " needs all 32 lanes");
  return false;
}

// in[0]: address of a row: of matrix m in lanes 8m to 8m+7. mode: transposed.
void load_matrix(Warp &w, const Instruction &i, Mask mask) {
  if (!complete(w, mask, "ldmatrix")) return;
  Access a;
  a.space = i.space;
  a.use = Use::kRead;
  a.bytes = 16;
  lane_addresses(w, i.in[0], i.offset, a.address);
  const int matrices = i.vector;
  const Mask rows = matrices == 4 ? kAllLanes : (Mask{1} << 8 * matrices) - 1;
  const Mask good = checked(w, i, a, rows);
  for (int m = 0; m < matrices; ++m) {
    uint16_t element[8][8];
    for (int row = 0; row < 8; ++row) {
      const int lane = 8 * m + row;
      if (good >> lane & 1)
        std::memcpy(element[row], a.place[lane], 16);
      else
        std::memset(element[row], 0xff, 16);
    }
    uint32_t *out = w.out<uint32_t>(i.out[m]);
    for (int lane = 0; lane < kLanes; ++lane) {
      const int g = lane / 4, t = lane % 4;
      const uint16_t low = i.mode ? element[2 * t][g] : element[g][2 * t];
      const uint16_t high = i.mode ? element[2 * t + 1][g] : element[g][2 * t + 1];
      out[lane] = static_cast<uint32_t>(high) << 16 | low;
    }
  }
}

// in[0]: addresses of rows as of ldmatrix; in[1] and following: the matrices.
void store_matrix(Warp &w, const Instruction &i, Mask mask) {
  if (!complete(w, mask, "stmatrix")) return;
  const int matrices = i.vector;
  uint16_t element[kLanes][8];  // row by row
  for (int m = 0; m < matrices; ++m) {
    const uint16_t *in = w.in<uint16_t>(i.in[m + 1]);
    for (int lane = 0; lane < kLanes; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int e = 0; e < 2; ++e) {
        (i.mode ? element[8 * m + 2 * t + e][g] : element[8 * m + g][2 * t + e]) = in[2 * lane + e];
      }
    }
  }
  Access a;
  a.space = i.space;
  a.use = Use::kWrite;
  a.bytes = 16;
  a.data = reinterpret_cast<const std::byte *>(element);
  a.data_stride = 16;
  lane_addresses(w, i.in[0], i.offset, a.address);
  const Mask rows = matrices == 4 ? kAllLanes : (Mask{1} << 8 * matrices) - 1;
  each_lane(checked(w, i, a, rows), [&](int lane) { std::memcpy(a.place[lane], element[lane], 16); });
}

void decode_matrices(Builder &b, bool loads) {
  Instruction &r = b.result;
  b.take("sync");
  b.take("aligned");
  if (!b.take("m8n8")) b.fail("only 8x8 matrices");
  const int count = b.take_one({"x1", "x2", "x4"});
  if (count < 0) b.fail("no number of matrices");
  r.vector = static_cast<uint8_t>(1 << count);
  r.mode = b.take("trans");
  r.space = b.take("shared") || b.take("shared::cta") ? Space::kShared : Space::kGeneric;
  b.take_type();
  b.expect(2, 2);
  const Arg &value = b.arg(loads ? 0 : 1);
  const std::vector<Arg> single{value};
  const std::vector<Arg> &parts = value.kind == Arg::kVector ? value.parts : single;
  if (parts.size() != r.vector) b.fail("wrong number of registers");
  for (size_t k = 0; k < parts.size(); ++k) {
    if (loads)
      r.out[k] = b.target(parts[k], 4);
    else
      r.in[k + 1] = b.source(parts[k], {Type::kBits, 32});
  }
  b.address(loads ? 1 : 0);
  r.control = Control::kTogether;
  r.run = loads ? load_matrix : store_matrix;
}

void transpose(Warp &w, const Instruction &i, Mask mask) {
  if (!complete(w, mask, "movmatrix")) return;
  uint16_t in[8][8];
  std::memcpy(in, w.in<uint32_t>(i.in[0]), sizeof in);  // the lanes' pairs lie row by row
  uint16_t *out = w.out<uint16_t>(i.out[0]);
  for (int row = 0; row < 8; ++row) {
    for (int column = 0; column < 8; ++column) out[8 * row + column] = in[column][row];
  }
}

void decode_transpose(Builder &b) {
  b.take("sync");
  b.take("aligned");
  if (!b.take("m8n8") || !b.take("trans")) b.fail("only .m8n8.trans");
  b.take_type();
  const Type word{Type::kBits, 32};
  b.expect(2, 2);
  b.result.out[0] = b.target(0, word);
  b.result.in[0] = b.source(1, word);
  b.result.control = Control::kTogether;
  b.result.run = transpose;
}

enum Element : uint8_t { kHalf, kBfloat, kTensorFloat };

// The elements of a register as floats: element e of lane l is at [2 l + e], of tf32 at [l].
template <uint8_t type>
void elements_of(const Warp &w, const Operand &reg, float *out) {
  if constexpr (type == kTensorFloat) {
    const uint32_t *in = w.in<uint32_t>(reg);
    for (int k = 0; k < kLanes; ++k) out[k] = bits_as<float>(in[k] & 0xffffe000u);  // the low 13 bits don't count
  } else {
    const uint16_t *in = w.in<uint16_t>(reg);
    for (int k = 0; k < 2 * kLanes; ++k) out[k] = type == kHalf ? f16_float(in[k]) : bf16_float(in[k]);
  }
}

// in: A (registers 0 to 3), B (4 to 5), C (6 to 9); from: type of A and B, width: depth k, mode: C and D are f16.
template <uint8_t type, int depth>
void multiply(Warp &w, const Instruction &i, Mask mask) {
  if (!complete(w, mask, "mma")) return;
  constexpr bool tf32 = type == kTensorFloat;
  constexpr int in_register = tf32 ? 1 : 2;
  constexpr int elements_a = 16 * depth / kLanes, elements_b = 8 * depth / kLanes;
  double a[16][depth], b[depth][8];
  float c[16][8], values[2 * kLanes];
  for (int e = 0; e < elements_a; ++e) {
    if (e % in_register == 0) elements_of<type>(w, i.in[e / in_register], values);
    for (int lane = 0; lane < kLanes; ++lane) {
      const int g = lane / 4, t = lane % 4;
      const int row = tf32 ? g + 8 * (e % 2) : g + 8 * (e / 2 % 2);
      const int column = tf32 ? t + 4 * (e / 2) : 2 * t + e % 2 + 8 * (e / 4);
      a[row][column] = values[lane * in_register + e % in_register];
    }
  }
  for (int e = 0; e < elements_b; ++e) {
    if (e % in_register == 0) elements_of<type>(w, i.in[4 + e / in_register], values);
    for (int lane = 0; lane < kLanes; ++lane) {
      const int g = lane / 4, t = lane % 4;
      b[tf32 ? t + 4 * e : 2 * t + e % 2 + 8 * (e / 2)][g] = values[lane * in_register + e % in_register];
    }
  }
  for (int e = 0; e < 4; ++e) {
    if (i.mode && e % 2 == 0) elements_of<kHalf>(w, i.in[6 + e / 2], values);
    for (int lane = 0; lane < kLanes; ++lane) {
      c[lane / 4 + 8 * (e / 2)][2 * (lane % 4) + e % 2] =
          i.mode ? values[2 * lane + e % 2] : w.in<float>(i.in[6 + e])[lane];
    }
  }
  for (int row = 0; row < 16; ++row) {
    double sum[8];  // rounded once; a tensor core truncates in an order of its own
    for (int column = 0; column < 8; ++column) sum[column] = c[row][column];
    for (int k = 0; k < depth; ++k) {
      for (int column = 0; column < 8; ++column) sum[column] += a[row][k] * b[k][column];
    }
    for (int column = 0; column < 8; ++column) c[row][column] = static_cast<float>(sum[column]);
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int e = 0; e < 4; ++e) {
      const float value = c[g + 8 * (e / 2)][2 * t + e % 2];
      if (i.mode)
        w.out<uint16_t>(i.out[e / 2])[2 * lane + e % 2] = nearest_f16(value);
      else
        w.out<float>(i.out[e])[lane] = value;
    }
  }
}

void decode_multiply(Builder &b) {
  Instruction &r = b.result;
  if (!b.take("sync") || !b.take("aligned")) b.fail("only mma.sync.aligned");
  const int shape = b.take_one({"m16n8k8", "m16n8k16", "m16n8k4"});
  if (!b.take("row") || !b.take("col")) b.fail("only .row.col");
  const Type d = b.take_type(), a = b.take_type(), type_b = b.take_type(), c = b.take_type();
  if (a.kind != type_b.kind || d.kind != c.kind) b.fail("such types aren't supported");
  r.from = a.kind == Type::kF16 ? kHalf : a.kind == Type::kBf16 ? kBfloat : kTensorFloat;
  r.mode = d.kind == Type::kF16;
  const int depth = shape == 0 ? 8 : shape == 1 ? 16 : 4;
  if (shape < 0 || (a.kind != Type::kF16 && a.kind != Type::kBf16 && a.kind != Type::kTf32) ||
      (r.mode ? a.kind != Type::kF16 : d.kind != Type::kFloat)) {
    b.fail("such a shape or type isn't supported");
  }
  b.expect(4, 4);
  const int per_register = r.from == kTensorFloat ? 1 : 2;
  const size_t counts[] = {r.mode ? 2u : 4u, static_cast<size_t>(16 * depth / kLanes / per_register),
                           static_cast<size_t>(8 * depth / kLanes / per_register), r.mode ? 2u : 4u};
  const Type word{Type::kBits, 32};
  const auto parts_of = [&](size_t k) {
    const Arg &arg = b.arg(k);
    std::vector<Arg> parts = arg.kind == Arg::kVector ? arg.parts : std::vector<Arg>{arg};
    if (parts.size() != counts[k]) b.fail("wrong number of registers");
    return parts;
  };
  size_t at = 0;
  for (const Arg &arg : parts_of(0)) r.out[at++] = b.target(arg, 4);
  constexpr size_t kFirst[] = {0, 0, 4, 6};
  for (size_t k = 1; k < 4; ++k) {
    at = kFirst[k];
    for (const Arg &arg : parts_of(k)) r.in[at++] = b.source(arg, word);
  }
  constexpr Handler kHandlers[3][3] = {
      {multiply<kHalf, 8>, multiply<kHalf, 16>, nullptr},
      {multiply<kBfloat, 8>, multiply<kBfloat, 16>, nullptr},
      {multiply<kTensorFloat, 8>, nullptr, multiply<kTensorFloat, 4>},
  };
  r.run = kHandlers[r.from][shape];
  if (r.run == nullptr) b.fail("such a shape isn't supported");
  r.control = Control::kTogether;
  r.is_mma = true;
  r.flops = static_cast<uint32_t>(2 * 16 * 8 * depth);
}

}  // namespace

std::vector<Opcode> matrix_opcodes() {
  return {
      {"ldmatrix", [](Builder &b) { decode_matrices(b, true); }},
      {"stmatrix", [](Builder &b) { decode_matrices(b, false); }},
      {"movmatrix", decode_transpose},
      {"mma", decode_multiply},
  };
}

}  // namespace emulator
