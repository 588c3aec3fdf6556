// Small dense products, the only place where the kernels multiply matrices.
//
//   c[m, n] = f(c[m, n], sum over k of a(m, k) * b[k, n])      m < M, n < N, k < K
//
// a is read one operand at a time and broadcast, element (m, k) at a[m * a_row + k * a_step]: a tile of k, v, p or ds in
// either orientation. b is read as vectors, row k at b + k * b_row: a tile with one query (or one head dim) per lane.
// Accumulators of a kRows x 2 block stay in registers for the whole sum over k.
//
// An Arithmetic says what an operand is: a float, a double, or a pair of bfloat16 neighbours along k, for which one
// instruction multiplies and adds both.
namespace flash {
namespace {

struct FloatArithmetic {
  using Sum = float;
  using Operand = float;
  static constexpr int kPair = 1;
  static constexpr int kExpDegree = 6;
  static FLASH_INLINE Vector<float> multiply_add(Vector<float> a, Vector<float> b, Vector<float> c) {
    return a * b + c;
  }
};

struct DoubleArithmetic {
  using Sum = double;
  using Operand = double;
  static constexpr int kPair = 1;
  static constexpr int kExpDegree = 13;
  static FLASH_INLINE Vector<double> multiply_add(Vector<double> a, Vector<double> b, Vector<double> c) {
    return a * b + c;
  }
};

#if defined(__AVX512BF16__)
struct BfloatPairArithmetic {
  using Sum = float;
  using Operand = uint32_t;  // the element of smaller k in the low half
  static constexpr int kPair = 2;
  static constexpr int kExpDegree = 5;
  static FLASH_INLINE Vector<float> multiply_add(Vector<uint32_t> a, Vector<uint32_t> b, Vector<float> c) {
    return reinterpret_cast<Vector<float>>(
        _mm512_dpbf16_ps(reinterpret_cast<__m512>(c), reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b)));
  }
};
#endif

// Rows of one register block: 12 x 2 accumulators of 32 vector registers, or 6 x 2 of 16. M is a multiple of 4 (of
// kRowsMultiple), so what remains below a full block is 4 or 8, or 2 or 4.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kBlockRows = 12;
#else
constexpr int kBlockRows = 6;
#endif
constexpr int kRowsMultiple = 4;

enum class Update { kSet, kAdd };  // c = sum, c += sum

template <class A>
struct Product {
  using Operand = typename A::Operand;
  using Sum = typename A::Sum;
  const Operand *a;
  int64_t a_row, a_step;
  const Operand *b;
  int64_t b_row;
  Sum *c;
  int64_t c_row;
  int64_t K;  // operands, so pairs where those are pairs
};

template <class A, Update kUpdate, int kRows, int kVectors>
FLASH_INLINE void multiply_block(const Product<A> &x, const typename A::Operand *a, const typename A::Operand *b,
                                 typename A::Sum *c) {
  using Operand = typename A::Operand;
  using Sum = typename A::Sum;
  constexpr int n = kLanes<Sum>;
  Vector<Sum> sum[kRows][kVectors] = {};
  const int64_t a_row = x.a_row, a_step = x.a_step, b_row = x.b_row;
  // Rows in threes: base, base + a_row and base + 2 * a_row are addressing modes, so four pointers serve twelve rows.
  const Operand *a0 = a, *a1 = a + 3 * a_row, *a2 = a + 6 * a_row, *a3 = a + 9 * a_row;
  for (int64_t k = 0; k < x.K; ++k) {
    Vector<Operand> right[kVectors];
    for (int j = 0; j < kVectors; ++j) right[j] = load<Vector<Operand>>(b + j * n);
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      const Operand *base = i < 3 ? a0 : i < 6 ? a1 : i < 9 ? a2 : a3;
      const Vector<Operand> left = broadcast<Vector<Operand>>(base[i % 3 * a_row]);
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) sum[i][j] = A::multiply_add(left, right[j], sum[i][j]);
    }
    a0 += a_step, a1 += a_step, a2 += a_step, a3 += a_step;
    b += b_row;
  }
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      Sum *to = c + i * x.c_row + j * n;
      if constexpr (kUpdate == Update::kSet) store(to, sum[i][j]);
      if constexpr (kUpdate == Update::kAdd) store(to, load<Vector<Sum>>(to) + sum[i][j]);
    }
}

template <class A, Update kUpdate, int kVectors>
void multiply_panel(const Product<A> &x, int64_t M, int64_t column) {
  const typename A::Operand *b = x.b + column;
  int64_t m = 0;
  for (; m + kBlockRows <= M; m += kBlockRows)
    multiply_block<A, kUpdate, kBlockRows, kVectors>(x, x.a + m * x.a_row, b, x.c + m * x.c_row + column);
  const auto *a = x.a + m * x.a_row;
  auto *c = x.c + m * x.c_row + column;
  if (M - m == 8) multiply_block<A, kUpdate, 8, kVectors>(x, a, b, c);
  if (M - m == 4) multiply_block<A, kUpdate, 4, kVectors>(x, a, b, c);
  if (M - m == 2) multiply_block<A, kUpdate, 2, kVectors>(x, a, b, c);
}

// M a multiple of kRowsMultiple, N a multiple of the lanes.
template <class A, Update kUpdate>
void multiply(const Product<A> &x, int64_t M, int64_t N) {
  constexpr int n = kLanes<typename A::Sum>;
  int64_t column = 0;
  for (; column + 2 * n <= N; column += 2 * n) multiply_panel<A, kUpdate, 2>(x, M, column);
  if (column < N) multiply_panel<A, kUpdate, 1>(x, M, column);
}

}  // namespace
}  // namespace flash
