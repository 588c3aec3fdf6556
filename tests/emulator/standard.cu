// Standard attention, one head, as a framework would run it: every matrix of N x N numbers goes to memory and back.
//
//   forward    S = scale Q K^T    P = softmax(S)    O = P V
//   backward   dV = P^T dO    dP = dO V^T    dS = scale P o (dP - rowsum(P o dP))    dQ = dS K    dK = dS^T Q
//
// All in f16 with float32 sums. `standard_attention N d IN OUT` reads q, k, v and do from IN, each (N, d), writes o, dq,
// dk and dv to OUT, and prints as JSON the bytes that the emulator counted, by pass and array: [read, written]. What
// flash.explain says of standard attention is held against it (tests/test_explain.py).
#include <cuda_fp16.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "device.h"

namespace {

constexpr int kTile = 64, kStep = 16, kThreads = 256;

struct Matrix {
  __half *data;
  int rows, columns;
  int row, column;  // strides
  Matrix transposed() const { return {data, columns, rows, column, row}; }
};

// C = scale A B. A block makes 64 x 64 of C, a thread 4 x 4; so A is read once for each 64 columns of C.
__global__ void multiply(Matrix a, Matrix b, Matrix c, float scale) {
  __shared__ float tile_a[kTile][kStep + 1], tile_b[kStep][kTile + 1];
  const int first_row = blockIdx.y * kTile, first_column = blockIdx.x * kTile;
  const int down = threadIdx.x / 16, across = threadIdx.x % 16;
  float sum[4][4] = {};
  for (int first = 0; first < a.columns; first += kStep) {
    for (int i = threadIdx.x; i < kTile * kStep; i += kThreads) {
      const int row = first_row + i / kStep, column = first_column + i % kTile;
      const int ka = first + i % kStep, kb = first + i / kTile;
      const bool has_a = row < a.rows && ka < a.columns, has_b = kb < b.rows && column < b.columns;
      tile_a[i / kStep][i % kStep] = has_a ? __half2float(a.data[row * a.row + ka * a.column]) : 0;
      tile_b[i / kTile][i % kTile] = has_b ? __half2float(b.data[kb * b.row + column * b.column]) : 0;
    }
    __syncthreads();
    for (int k = 0; k < kStep; ++k)
      for (int y = 0; y < 4; ++y)
        for (int x = 0; x < 4; ++x) sum[y][x] += tile_a[down * 4 + y][k] * tile_b[k][across * 4 + x];
    __syncthreads();
  }
  for (int y = 0; y < 4; ++y) {
    for (int x = 0; x < 4; ++x) {
      const int row = first_row + down * 4 + y, column = first_column + across * 4 + x;
      if (row < c.rows && column < c.columns) c.data[row * c.row + column * c.column] = __float2half(scale * sum[y][x]);
    }
  }
}

__device__ float sum_of_warp(float value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}
__device__ float largest_of_warp(float value) {
  for (int offset = 16; offset > 0; offset /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, offset));
  return value;
}

// A warp for each row, which stays in shared memory.
extern __shared__ float row_memory[];

__global__ void softmax(const __half *s, __half *p, int n) {
  const size_t row = static_cast<size_t>(blockIdx.x) * n;
  float largest = -INFINITY, sum = 0;
  for (int j = threadIdx.x; j < n; j += 32) largest = fmaxf(largest, row_memory[j] = __half2float(s[row + j]));
  largest = largest_of_warp(largest);
  for (int j = threadIdx.x; j < n; j += 32) sum += row_memory[j] = expf(row_memory[j] - largest);
  sum = sum_of_warp(sum);
  for (int j = threadIdx.x; j < n; j += 32) p[row + j] = __float2half(row_memory[j] / sum);
}

__global__ void softmax_backward(const __half *p, const __half *dp, __half *ds, int n, float scale) {
  const size_t row = static_cast<size_t>(blockIdx.x) * n;
  float *const p_row = row_memory, *const dp_row = row_memory + n;
  float sum = 0;
  for (int j = threadIdx.x; j < n; j += 32) {
    p_row[j] = __half2float(p[row + j]), dp_row[j] = __half2float(dp[row + j]);
    sum += p_row[j] * dp_row[j];
  }
  sum = sum_of_warp(sum);
  for (int j = threadIdx.x; j < n; j += 32) ds[row + j] = __float2half(scale * p_row[j] * (dp_row[j] - sum));
}

void product(Matrix a, Matrix b, Matrix c, float scale = 1) {
  const dim3 grid((c.columns + kTile - 1) / kTile, (c.rows + kTile - 1) / kTile);
  multiply<<<grid, kThreads>>>(a, b, c, scale);
}

// The counts of all launches since the last call, as a JSON object.
std::string counted() {
  std::map<std::string, std::pair<uint64_t, uint64_t>> bytes;
  for (const emulator::LaunchRecord &launch : emulator::Device::get().take_records()) {
    for (const emulator::Traffic &traffic : launch.stats.buffers) {
      bytes[traffic.buffer.name].first += traffic.read_bytes,
          bytes[traffic.buffer.name].second += traffic.written_bytes;
    }
  }
  std::string json;
  for (const auto &[name, count] : bytes) {
    json += (json.empty() ? "\"" : ", \"") + name + "\": [" + std::to_string(count.first) + ", " +
            std::to_string(count.second) + "]";
  }
  return "{" + json + "}";
}

}  // namespace

int main(int count, char **arguments) {
  if (count != 5) return std::puts("usage: standard_attention N d IN OUT"), 2;
  const int n = std::atoi(arguments[1]), d = std::atoi(arguments[2]);
  const float scale = 1 / sqrtf(static_cast<float>(d));
  emulator::Options options;
  options.traffic = true;
  emulator::Device::get().set_options(options);

  std::map<std::string, Matrix> x;
  const auto add = [&](const char *name, int columns) {
    void *const data = emulator::Device::get().memory.allocate(sizeof(__half) * n * columns, name);
    x[name] = {static_cast<__half *>(data), n, columns, columns, 1};
  };
  for (const char *name : {"q", "k", "v", "do", "o", "dq", "dk", "dv"}) add(name, d);
  for (const char *name : {"s", "p", "dp", "ds"}) add(name, n);
  const auto bytes = static_cast<std::streamsize>(sizeof(__half)) * n * d;
  std::ifstream in(arguments[3], std::ios::binary);
  for (const char *name : {"q", "k", "v", "do"}) in.read(reinterpret_cast<char *>(x[name].data), bytes);

  product(x["q"], x["k"].transposed(), x["s"], scale);
  softmax<<<n, 32, sizeof(float) * n>>>(x["s"].data, x["p"].data, n);
  product(x["p"], x["v"], x["o"]);
  const std::string forward = counted();
  product(x["p"].transposed(), x["do"], x["dv"]);
  product(x["do"], x["v"].transposed(), x["dp"]);
  softmax_backward<<<n, 32, 2 * sizeof(float) * n>>>(x["p"].data, x["dp"].data, x["ds"].data, n, scale);
  product(x["ds"], x["k"], x["dq"]);
  product(x["ds"].transposed(), x["q"], x["dk"]);
  if (cudaGetLastError() != cudaSuccess) return 1;
  std::printf("{\"forward\": %s, \"backward\": %s}\n", forward.c_str(), counted().c_str());

  std::ofstream out(arguments[4], std::ios::binary);
  for (const char *name : {"o", "dq", "dk", "dv"}) out.write(reinterpret_cast<const char *>(x[name].data), bytes);
  return out ? 0 : 1;
}
