/* Causal attention and its gradients through flash.h, held against plain loops in double.
 *
 *   cmake -S examples -B build/examples -Dflash_DIR="$(python -m flash --cmakedir)"
 *   cmake --build build/examples && build/examples/attention_c
 */
#include <flash.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { B = 2, LQ = 5, LK = 7, HQ = 4, HK = 2, D = 8, GROUP = HQ / HK };

static float q[B][LQ][HQ][D], k[B][LK][HK][D], v[B][LK][HK][D], o[B][LQ][HQ][D], lse[B][HQ][LQ];
static float dout[B][LQ][HQ][D], dq[B][LQ][HQ][D], dk[B][LK][HK][D], dv[B][LK][HK][D];

static double want_o[B][LQ][HQ][D], want_lse[B][HQ][LQ];
static double want_dq[B][LQ][HQ][D], want_dk[B][LK][HK][D], want_dv[B][LK][HK][D];

/* ---- Calling the library ---- */

/* A compact float32 array on the CPU. `shape` must outlive the tensor: tensors are borrowed views. */
static flash_tensor tensor(void *data, int32_t ndim, int64_t *shape) {
  flash_tensor t;
  memset(&t, 0, sizeof t);
  t.data = data;
  t.device.device_type = 1;
  t.ndim = ndim;
  t.dtype.code = 2;
  t.dtype.bits = 32;
  t.dtype.lanes = 1;
  t.shape = shape;
  return t;
}

static void check(flash_status status, const char *call) {
  if (status == FLASH_OK) return;
  fprintf(stderr, "%s: status %d: %s\n", call, (int)status, flash_error_message());
  exit(1);
}

static void *allocate(size_t bytes) {
  void *memory = malloc(bytes ? bytes : 1);
  if (!memory) {
    fprintf(stderr, "out of memory\n");
    exit(1);
  }
  return memory;
}

/* ---- The same in plain loops ---- */

/* One query of one head: its probabilities, o and lse, then what it adds to the gradients. */
static void plain_row(int b, int h, int i) {
  const int last = i + LK - LQ, hk = h / GROUP; /* the last query meets the last key */
  const double scale = 1 / sqrt((double)D);
  double p[LK], greatest = -INFINITY, total = 0, delta = 0;
  for (int j = 0; j <= last; ++j) {
    p[j] = 0;
    for (int d = 0; d < D; ++d) p[j] += scale * q[b][i][h][d] * k[b][j][hk][d];
    if (p[j] > greatest) greatest = p[j];
  }
  for (int j = 0; j <= last; ++j) total += p[j] = exp(p[j] - greatest);
  want_lse[b][h][i] = greatest + log(total);
  for (int j = 0; j <= last; ++j) {
    p[j] /= total;
    for (int d = 0; d < D; ++d) want_o[b][i][h][d] += p[j] * v[b][j][hk][d];
  }
  for (int d = 0; d < D; ++d) delta += dout[b][i][h][d] * want_o[b][i][h][d];
  for (int j = 0; j <= last; ++j) {
    double dp = 0;
    for (int d = 0; d < D; ++d) dp += (double)dout[b][i][h][d] * v[b][j][hk][d];
    for (int d = 0; d < D; ++d) {
      want_dv[b][j][hk][d] += p[j] * dout[b][i][h][d];
      want_dq[b][i][h][d] += scale * p[j] * (dp - delta) * k[b][j][hk][d];
      want_dk[b][j][hk][d] += scale * p[j] * (dp - delta) * q[b][i][h][d];
    }
  }
}

/* ---- Filling and comparing ---- */

static void fill(float *x, size_t count) {
  static unsigned state = 1;
  for (size_t n = 0; n < count; ++n) {
    state = state * 1664525u + 1013904223u;
    x[n] = (float)(state >> 8) / (1 << 23) - 1; /* in [-1, 1) */
  }
}

/* Prints the largest error; 1 where it is more than float32 explains. */
static int compare(const char *name, const float *got, const double *want, size_t count) {
  double error = 0;
  for (size_t n = 0; n < count; ++n) {
    const double difference = fabs(got[n] - want[n]);
    if (!(difference <= error)) error = difference; /* a NaN stays */
  }
  printf("%-4s largest error %.1e\n", name, error);
  return !(error < 1e-5);
}

#define COUNT(array) (sizeof(array) / sizeof(float))
#define FILL(array) fill((float *)array, COUNT(array))
#define COMPARE(array) compare(#array, (const float *)array, (const double *)want_##array, COUNT(array))

int main(void) {
  int64_t q_shape[] = {B, LQ, HQ, D}, k_shape[] = {B, LK, HK, D}, lse_shape[] = {B, HQ, LQ};
  const flash_tensor tq = tensor(q, 4, q_shape), tk = tensor(k, 4, k_shape), tv = tensor(v, 4, k_shape);
  const flash_tensor to = tensor(o, 4, q_shape), tlse = tensor(lse, 3, lse_shape), tdout = tensor(dout, 4, q_shape);
  const flash_tensor tdq = tensor(dq, 4, q_shape), tdk = tensor(dk, 4, k_shape), tdv = tensor(dv, 4, k_shape);
  flash_problem problem;
  flash_saved saved;
  flash_gradients gradients;
  size_t bytes;
  void *workspace;
  int failures = 0;

  FILL(q);
  FILL(k);
  FILL(v);
  FILL(dout);

  /* All-zero means default; struct_size lets a library of another version read this struct. */
  memset(&problem, 0, sizeof problem);
  problem.struct_size = sizeof problem;
  problem.q = &tq;
  problem.k = &tk;
  problem.v = &tv;
  problem.flags = FLASH_CAUSAL;

  check(flash_forward_workspace(&problem, &bytes), "flash_forward_workspace");
  workspace = allocate(bytes);
  check(flash_forward(&problem, &to, &tlse, workspace, bytes, NULL), "flash_forward");
  free(workspace);

  memset(&saved, 0, sizeof saved);
  saved.struct_size = sizeof saved;
  saved.dout = &tdout;
  saved.o = &to;
  saved.lse = &tlse;
  memset(&gradients, 0, sizeof gradients);
  gradients.struct_size = sizeof gradients;
  gradients.dq = &tdq;
  gradients.dk = &tdk;
  gradients.dv = &tdv;
  check(flash_backward_workspace(&problem, FLASH_DQ | FLASH_DK | FLASH_DV, &bytes), "flash_backward_workspace");
  workspace = allocate(bytes);
  check(flash_backward(&problem, &saved, &gradients, workspace, bytes, NULL), "flash_backward");
  free(workspace);

  for (int b = 0; b < B; ++b)
    for (int h = 0; h < HQ; ++h)
      for (int i = 0; i < LQ; ++i) plain_row(b, h, i);
  failures += COMPARE(o) + COMPARE(lse) + COMPARE(dq) + COMPARE(dk) + COMPARE(dv);

  /* A wrong call changes nothing and says what is wrong. */
  int64_t wrong_shape[] = {B, LK, HK, D / 2};
  const flash_tensor wrong = tensor(k, 4, wrong_shape);
  problem.k = &wrong;
  if (flash_forward_workspace(&problem, &bytes) != FLASH_INVALID_VALUE) ++failures;
  printf("a wrong call says \"%s\"\n", flash_error_message());
  if (flash_error_message()[0] != 'k') ++failures;

  printf("flash %u: %s\n", (unsigned)flash_version(), failures ? "FAILED" : "ok");
  return failures != 0;
}
