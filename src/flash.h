/* flash: exact attention with a plain C interface.
 *
 *   s[i,j] = softcap(scale * q[i].k[j]) - slope[h] * |i + off - j| + bias[i,j]     off = q_offset, default kv_len - q_len
 *   p      = softmax of s over the visible keys (and the sink),   lse = natural log of its denominator
 *   o[i]   = sum_j keep[i,j] * p[i,j] / (1 - dropout) * v[j]
 *
 * Needs C99 and nothing else. Read it from top to bottom: tensors, the problem, what can be done with it.
 * In shapes, N stands for any number of leading axes (also none), merged they are the batch of size B.
 *
 * Rules for every function:
 *   - Tensors are borrowed for the call; the caller allocates outputs and workspace. The library allocates nothing on
 *     a device, never synchronises with one, prints nothing, and is safe to call from many threads.
 *   - Everything is checked before the first write. A failing call returns a status other than FLASH_OK and leaves a
 *     message for this thread in flash_error_message().
 *   - CUDA work is enqueued on `stream` (NULL is the legacy stream). CPU work is finished on return and ignores it.
 *
 * The text between the "cdef" markers is also what the Python package declares to cffi: only plain declarations there.
 */
#ifndef FLASH_H
#define FLASH_H

#include <stddef.h>
#include <stdint.h>

#define FLASH_VERSION_MAJOR 0
#define FLASH_VERSION_MINOR 1
#define FLASH_VERSION_PATCH 0

#ifdef __cplusplus
extern "C" {
#endif
#if defined(__GNUC__)
#pragma GCC visibility push(default)
#endif

/* ---- Tensors ---------------------------------------------------------------------------------------------------- */

/* A strided view with the layout of DLPack's DLTensor; it is DLTensor itself where dlpack.h was included first.
 * Strides count elements; NULL means compact, row-major. The element at index 0 lies at data + byte_offset.
 * Device types: 1 CPU, 3 pinned host (used as CPU), 2 CUDA, 13 CUDA managed (used as CUDA).
 * Data types: code 2 float16/float32/float64, 4 bfloat16, 10 float8_e4m3fn, 6 bool (8 bits), 0 int32/int64; lanes 1. */
#ifdef DLPACK_DLPACK_H_
typedef DLTensor flash_tensor;
#else
/* cdef: begin */
typedef struct flash_device {
  int32_t device_type;
  int32_t device_id;
} flash_device;
typedef struct flash_dtype {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
} flash_dtype;
typedef struct flash_tensor {
  void *data;
  flash_device device;
  int32_t ndim;
  flash_dtype dtype;
  int64_t *shape;
  int64_t *strides;
  uint64_t byte_offset;
} flash_tensor;
/* cdef: end */
#endif

/* cdef: begin */

/* ---- Status ----------------------------------------------------------------------------------------------------- */

typedef enum flash_status {
  FLASH_OK,
  FLASH_INVALID_VALUE, /* a shape, stride, device or number that can't be right */
  FLASH_INVALID_TYPE,  /* a data type that this argument doesn't take */
  FLASH_UNSUPPORTED,   /* meaningful, but not available here; the message says what would work */
  FLASH_OUT_OF_MEMORY,
  FLASH_CUDA_ERROR,
  FLASH_INTERNAL_ERROR
} flash_status;

/* The message of this thread's last failing call, valid until its next failing call; "" before the first. */
const char *flash_error_message(void);

/* 10000 * major + 100 * minor + patch of the library that is loaded. */
uint32_t flash_version(void);

/* ---- The problem ------------------------------------------------------------------------------------------------ */

/* flash_problem.flags: which of its scalars count. A scalar whose flag is not set keeps its default. */
enum {
  FLASH_CAUSAL = 1,        /* query i sees keys j <= i + off */
  FLASH_SCALE = 2,         /* scale is given (default 1 / sqrt(D)) */
  FLASH_Q_OFFSET = 4,      /* q_offset is given (default kv_len - q_len, per sequence) */
  FLASH_WINDOW_LEFT = 8,   /* window_left is given: j >= i + off - window_left */
  FLASH_WINDOW_RIGHT = 16, /* window_right is given: j <= i + off + window_right */
  FLASH_DETERMINISTIC = 32 /* the backward gives the same bits on every run */
};

/* Which gradients are meant. */
enum { FLASH_DQ = 1, FLASH_DK = 2, FLASH_DV = 4, FLASH_DBIAS = 8, FLASH_DSINKS = 16 };

/* The blocks of the score matrix that are not zero, compressed by rows and by columns. Block (r, c) covers queries from
 * r * block_q and keys from c * block_k. Both sizes are powers of two from 16 to 256; the grid has
 * rows = ceil(Lq / block_q) and cols = ceil(Lk / block_k). Row r of head h of batch b lists the column indices
 * columns[row_start[b, h, r]] up to columns[row_start[b, h, r + 1] - 1], ascending. */
typedef struct flash_block_mask {
  size_t struct_size;
  int64_t block_q, block_k;
  const flash_tensor *row_start;    /* int32 (B or 1, Hq or 1, rows + 1) */
  const flash_tensor *columns;      /* int32 (nnz,) */
  const flash_tensor *column_start; /* int32 (B or 1, Hq or 1, cols + 1); backward only, else may be NULL */
  const flash_tensor *rows;         /* int32 (nnz,); backward only, else may be NULL */
} flash_block_mask;

/* One attention problem. All-zero means default: zero it, set struct_size, q, k and v, then what is wanted.
 * The last axis of q, k, v must be contiguous, their leading axes must merge into one; other strides are free. */
typedef struct flash_problem {
  size_t struct_size;                 /* sizeof(flash_problem) as the caller compiled it */
  const flash_tensor *q;              /* N + (Lq, Hq, D) */
  const flash_tensor *k;              /* N + (Lk, Hk, D), Hq % Hk == 0: query head h reads key head h / (Hq / Hk) */
  const flash_tensor *v;              /* N + (Lk, Hk, Dv) */
  const flash_tensor *mask;           /* bool, broadcast to N + (Hq, Lq, Lk): true = may attend; may be NULL */
  const flash_tensor *bias;           /* q's dtype or float32, broadcast to N + (Hq, Lq, Lk); may be NULL */
  const flash_tensor *alibi_slopes;   /* float32 (Hq,) or N + (Hq,); may be NULL */
  const flash_tensor *sinks;          /* q's dtype or float32 (Hq,); may be NULL */
  const flash_tensor *q_lens;         /* int32 or int64, N: how many queries are real; may be NULL */
  const flash_tensor *kv_lens;        /* int32 or int64, N: how many keys are real; may be NULL */
  const flash_tensor *q_offsets;      /* int32 or int64, N: replaces q_offset; may be NULL */
  const flash_tensor *q_scale;        /* float32 () or N + (Hk,), float8 only; may be NULL */
  const flash_tensor *k_scale;        /* the same */
  const flash_tensor *v_scale;        /* the same */
  const flash_tensor *seeds;          /* one integer on q's device: replaces seed; may be NULL */
  const flash_block_mask *block_mask; /* blocks not listed are neither read nor computed; may be NULL */
  double scale;                       /* any finite number */
  double softcap;                     /* 0 = off; s becomes softcap * tanh(s / softcap) */
  double dropout;                     /* in [0, 1] */
  int64_t q_offset;                   /* position of query 0 in key coordinates, may be negative */
  int64_t window_left;                /* >= 0, inclusive */
  int64_t window_right;               /* >= 0, inclusive */
  uint64_t seed;                      /* key of the Philox4x32-10 generator that dropout draws from */
  uint64_t flags;                     /* FLASH_CAUSAL | ... */
} flash_problem;

/* What the backward needs besides the problem. */
typedef struct flash_saved {
  size_t struct_size;
  const flash_tensor *dout; /* N + (Lq, Hq, Dv): gradient of the loss with respect to o */
  const flash_tensor *o;    /* N + (Lq, Hq, Dv), from flash_forward */
  const flash_tensor *lse;  /* N + (Hq, Lq), from flash_forward */
  const flash_tensor *dlse; /* N + (Hq, Lq): gradient with respect to lse; may be NULL */
} flash_saved;

/* Where gradients go, each with its argument's shape and dtype; NULL = not wanted. */
typedef struct flash_gradients {
  size_t struct_size;
  const flash_tensor *dq, *dk, *dv;
  const flash_tensor *dbias;  /* the bias's own shape, before broadcasting */
  const flash_tensor *dsinks; /* (Hq,) */
} flash_gradients;

/* ---- Attention -------------------------------------------------------------------------------------------------- */

/* How many bytes of scratch memory flash_forward needs for this problem, on q's device, any alignment. No tensor's data
 * is read. */
flash_status flash_forward_workspace(const flash_problem *problem, size_t *bytes);

/* o: N + (Lq, Hq, Dv) in q's dtype (for float8_e4m3fn in bfloat16, float16 or float32). lse: N + (Hq, Lq), float32
 * (float64 for float64), may be NULL. */
flash_status flash_forward(const flash_problem *problem, const flash_tensor *o, const flash_tensor *lse,
                           void *workspace, size_t workspace_bytes, void *stream);

/* The same for flash_backward; wanted is FLASH_DQ | ... */
flash_status flash_backward_workspace(const flash_problem *problem, uint32_t wanted, size_t *bytes);

flash_status flash_backward(const flash_problem *problem, const flash_saved *saved, const flash_gradients *gradients,
                            void *workspace, size_t workspace_bytes, void *stream);

/* ---- Small tools ------------------------------------------------------------------------------------------------ */

/* The probabilities of some queries, before dropout. rows: int64 (R,) in [0, Lq), NULL for all of them.
 * weights: N + (Hq, R, Lk), float32 (float64 for float64). problem->v may be NULL. */
flash_status flash_weights(const flash_problem *problem, const flash_tensor *rows, const flash_tensor *weights,
                           void *stream);

/* Which positions dropout keeps. keep: bool, (B, H, Lq, Lk). */
flash_status flash_dropout_mask(uint64_t seed, double dropout, const flash_tensor *keep, void *stream);

/* The attention over the union of two disjoint key sets. o, o1, o2: N + (Lq, Hq, Dv) of one dtype; lse, lse1, lse2:
 * N + (Hq, Lq). lse may be NULL; o and lse may be o1 and lse1 themselves, but may not overlap the inputs otherwise. */
flash_status flash_merge(const flash_tensor *o1, const flash_tensor *lse1, const flash_tensor *o2,
                         const flash_tensor *lse2, const flash_tensor *o, const flash_tensor *lse, void *stream);

/* ---- Looking inside --------------------------------------------------------------------------------------------- */

/* A JSON object: the kernel and tiles that would run and why not a faster one, FLOPs, bytes that must move and (CUDA)
 * that kernels ask for, those of standard attention, workspace, what bounds it. wanted: 0 for the forward, else
 * FLASH_DQ | ... for the backward. Writes at most capacity bytes, NUL included; *needed is the size of the whole text.
 * json NULL and capacity 0 only ask for the size. */
flash_status flash_explain(const flash_problem *problem, uint32_t wanted, char *json, size_t capacity, size_t *needed);

/* The same for a JSON object about the library: version, build, CPU paths, threads, CUDA devices. */
flash_status flash_config(char *json, size_t capacity, size_t *needed);

/* ---- XLA -------------------------------------------------------------------------------------------------------- */

/* Handlers for XLA's typed foreign function interface, which flash.jax registers; src/xla.cpp says what they take. */
struct XLA_FFI_CallFrame;
struct XLA_FFI_Error;
struct XLA_FFI_Error *flash_xla_forward(struct XLA_FFI_CallFrame *frame);
struct XLA_FFI_Error *flash_xla_backward(struct XLA_FFI_CallFrame *frame);
struct XLA_FFI_Error *flash_xla_cuda_forward(struct XLA_FFI_CallFrame *frame);
struct XLA_FFI_Error *flash_xla_cuda_backward(struct XLA_FFI_CallFrame *frame);

/* cdef: end */

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif
#ifdef __cplusplus
}
#endif
#endif
