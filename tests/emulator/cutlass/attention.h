// Attention in float64, forward and backward, for the drivers of CUTLASS's example 41.
//
//   p = softmax(scale q k^T),  o = p v,  lse = log sum exp;  dv = p^T do,  ds = p (do v^T - delta),  delta = sum(do o)
//
// Arrays are [B, L, H, D], lse is [B, H, Lq] with rows padded. Causal: the last query sees the last key.
#pragma once
#include <algorithm>

#include "check.h"

namespace check {

struct Shape {
  int B = 1, H = 2, Lq = 0, Lk = 0, D = 64;
  bool causal = false;

  float scale() const { return 1.0f / std::sqrt(static_cast<float>(D)); }
  size_t q_size() const { return static_cast<size_t>(B) * Lq * H * D; }
  size_t k_size() const { return static_cast<size_t>(B) * Lk * H * D; }
  size_t at(int L, int b, int l, int h) const { return ((static_cast<size_t>(b) * L + l) * H + h) * D; }
  // Rows of lse start at multiples of 32 queries, as the kernels have it.
  int lse_stride() const { return (Lq + 31) / 32 * 32; }
  size_t lse_size() const { return static_cast<size_t>(B) * H * lse_stride(); }
  size_t lse_at(int b, int h, int i) const { return (static_cast<size_t>(b) * H + h) * lse_stride() + i; }
};

struct Attention {
  Shape shape;
  std::vector<Half> q, k, v, do_;
  std::vector<double> o, lse, dq, dk, dv;  // lse: 0 in the padding
};

inline double dot(const Half *a, const Half *b, int count) {
  double sum = 0;
  for (int c = 0; c < count; ++c) sum += static_cast<double>(a[c]) * static_cast<double>(b[c]);
  return sum;
}

// One query of one head: its row of o and lse, and what it adds to the gradients.
inline void attend(Attention &x, int b, int h, int i) {
  const Shape &s = x.shape;
  const size_t row = s.at(s.Lq, b, i, h);
  const int seen = s.causal ? i + 1 + s.Lk - s.Lq : s.Lk;
  std::vector<double> p(static_cast<size_t>(seen));
  double m = -INFINITY, l = 0;
  for (int j = 0; j < seen; ++j) {
    p[j] = static_cast<double>(s.scale()) * dot(&x.q[row], &x.k[s.at(s.Lk, b, j, h)], s.D);
    m = std::max(m, p[j]);
  }
  for (double &score : p) l += score = std::exp(score - m);
  x.lse[s.lse_at(b, h, i)] = m + std::log(l);
  for (double &weight : p) weight /= l;

  double delta = 0;
  for (int j = 0; j < seen; ++j) delta += p[j] * dot(&x.do_[row], &x.v[s.at(s.Lk, b, j, h)], s.D);
  for (int j = 0; j < seen; ++j) {
    const size_t key = s.at(s.Lk, b, j, h);
    const double ds = static_cast<double>(s.scale()) * p[j] * (dot(&x.do_[row], &x.v[key], s.D) - delta);
    for (int c = 0; c < s.D; ++c) {
      x.o[row + c] += p[j] * static_cast<double>(x.v[key + c]);
      x.dq[row + c] += ds * static_cast<double>(x.k[key + c]);
      x.dk[key + c] += ds * static_cast<double>(x.q[row + c]);
      x.dv[key + c] += p[j] * static_cast<double>(x.do_[row + c]);
    }
  }
}

inline Attention attention_of(const Shape &s) {
  const size_t q = s.q_size(), k = s.k_size();
  Attention x{s, random_halves(q, 1), random_halves(k, 2), random_halves(k, 3), random_halves(q, 4)};
  x.o.resize(q), x.dq.resize(q), x.lse.resize(s.lse_size()), x.dk.resize(k), x.dv.resize(k);
  for (int b = 0; b < s.B; ++b)
    for (int h = 0; h < s.H; ++h)
      for (int i = 0; i < s.Lq; ++i) attend(x, b, h, i);
  return x;
}

template <class T>
std::vector<T> rounded(const std::vector<double> &values) {
  std::vector<T> result;
  for (double x : values) result.push_back(T(static_cast<float>(x)));
  return result;
}

}  // namespace check
