/*
 * The C interface between the N-API binding and a compute backend.
 *
 * A backend (CPU, CUDA, emulated CUDA) is one `diffit_backend` table. The binding calls it from one
 * queue thread per (environment, device), strictly in order, so a backend needs no locks of its own
 * around its context. All tensors are contiguous, row-major, and aligned to DIFFIT_ALIGNMENT unless
 * they are views at an offset (then to their element size).
 *
 * C only: no C++ type crosses this line, so a backend may be another compiler's shared library.
 */
#ifndef DIFFIT_H
#define DIFFIT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Raise with every change of this header or of ops.def; the loader refuses another value. */
#define DIFFIT_ABI_VERSION 5
#define DIFFIT_MAX_DIMS 6
#define DIFFIT_ALIGNMENT 64
#define DIFFIT_MARKS 1024

typedef int32_t diffit_status;
enum {
  DIFFIT_OK = 0,
  DIFFIT_INVALID = 1, /* arguments that do not fit together: a bug above this line */
  DIFFIT_OUT_OF_MEMORY = 2, /* scratch memory could not be had */
  DIFFIT_UNSUPPORTED = 3, /* dtype or size this backend has no kernel for */
  DIFFIT_DEVICE_FAULT = 4 /* the device or its driver failed */
};

typedef int32_t diffit_dtype;
enum { DIFFIT_F32 = 0, DIFFIT_BF16 = 1, DIFFIT_F16 = 2, DIFFIT_I32 = 3, DIFFIT_I64 = 4, DIFFIT_U8 = 5 };

/* A contiguous tensor. ndim 0 is a scalar with one element; a dimension may be 0. */
typedef struct diffit_tensor {
  void *data;
  int64_t shape[DIFFIT_MAX_DIMS];
  int32_t ndim;
  diffit_dtype dtype;
} diffit_tensor;

/* A list of tensors, for the operations that walk over all parameters at once. */
typedef struct diffit_list {
  const diffit_tensor *items;
  int64_t count;
} diffit_list;

/* A short list of integers (shapes, strides). */
typedef struct diffit_ints {
  const int64_t *items;
  int64_t count;
} diffit_ints;

/* Kinds of the `unary` and `unary_backward` operations. */
enum {
  DIFFIT_NEG = 0,
  DIFFIT_EXP = 1,
  DIFFIT_LOG = 2,
  DIFFIT_SQRT = 3,
  DIFFIT_RSQRT = 4,
  DIFFIT_RECIPROCAL = 5,
  DIFFIT_SIN = 6,
  DIFFIT_COS = 7,
  DIFFIT_TANH = 8,
  DIFFIT_SIGMOID = 9,
  DIFFIT_RELU = 10,
  DIFFIT_SILU = 11,
  DIFFIT_GELU_TANH = 12, /* 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) */
  DIFFIT_GELU_ERF = 13, /* 0.5 x (1 + erf(x / sqrt(2))) */
  DIFFIT_ABS = 14,
  DIFFIT_SQUARE = 15,
  DIFFIT_IS_FINITE = 16 /* 1 or 0 */
};

/* Kinds of the `binary` operation; comparisons give 1 or 0 in the dtype of the result. */
enum {
  DIFFIT_ADD = 0,
  DIFFIT_SUB = 1,
  DIFFIT_MUL = 2,
  DIFFIT_DIV = 3,
  DIFFIT_MAXIMUM = 4,
  DIFFIT_MINIMUM = 5,
  DIFFIT_POW = 6,
  DIFFIT_EQUAL = 7,
  DIFFIT_LESS = 8
};

/* Kinds of the `reduce` operation. */
enum { DIFFIT_SUM = 0, DIFFIT_MEAN = 1, DIFFIT_MAX = 2, DIFFIT_ARGMAX = 3 };

/* Activations of the gemm epilogue: the matching kinds of `unary`, or -1 for none. */
enum { DIFFIT_NO_ACTIVATION = -1 };

/* Kinds of the `philox` operation. */
enum { DIFFIT_UNIFORM = 0, DIFFIT_NORMAL = 1 };

/* Backend state: threads, scratch memory, streams. Opaque to the binding. */
typedef struct diffit_context diffit_context;

/* Parameter spelling of ops.def. */
#define IN(name) const diffit_tensor *name /* read */
#define OPT(name) const diffit_tensor *name /* read, or NULL */
#define OUT(name) diffit_tensor *name /* written whole */
#define OPT_OUT(name) diffit_tensor *name /* written whole, or NULL: not wanted */
#define INOUT(name) diffit_tensor *name /* read and written */
#define LIST(name) const diffit_list *name /* tensors read */
#define LIST_INOUT(name) const diffit_list *name /* tensors read and written */
#define INTS(name) const diffit_ints *name
#define I64(name) int64_t name
#define F64(name) double name

/* One function pointer per operation. */
typedef struct diffit_ops {
#define DIFFIT_OP(name, ...) diffit_status (*name)(diffit_context *, __VA_ARGS__);
#include "ops.def"
#undef DIFFIT_OP
} diffit_ops;

#undef IN
#undef OPT
#undef OUT
#undef OPT_OUT
#undef INOUT
#undef LIST
#undef LIST_INOUT
#undef INTS
#undef I64
#undef F64

typedef struct diffit_device_info {
  char name[128]; /* processor or GPU */
  char variant[32]; /* avx512, avx2, neon, baseline; sm_90a ... */
  int32_t threads; /* worker threads (CPU), multiprocessors (CUDA) */
  int64_t memory; /* bytes of device memory, 0 where unknown */
} diffit_device_info;

typedef struct diffit_backend {
  uint32_t abi_version;
  const char *name; /* "cpu", "cuda", "cuda-emulated" */

  /* Opens device `index`; `variant` may be NULL or empty (choose) or force a code path, `threads` 0
     chooses. On failure returns a status and one plain sentence in `why`. */
  diffit_status (*create)(int32_t index, const char *variant, int32_t threads, diffit_context **context, char *why,
                          size_t why_size);
  void (*destroy)(diffit_context *);
  void (*info)(diffit_context *, diffit_device_info *);

  /* Device memory, aligned to DIFFIT_ALIGNMENT; NULL when there is none left. Called from any thread. */
  void *(*alloc)(diffit_context *, size_t bytes);
  void (*free)(diffit_context *, void *);

  /* Copies between host and device, ordered with the operations; return when the host side is done. */
  diffit_status (*upload)(diffit_context *, void *device, const void *host, size_t bytes);
  diffit_status (*download)(diffit_context *, void *host, const void *device, size_t bytes);

  /* The sentence that belongs to the last status that was not DIFFIT_OK. */
  const char *(*error)(diffit_context *);

  /* From here to `ops` a function may be NULL: the backend has nothing of the kind. */

  /* Number of devices create() would open; 0 where there is none. */
  int32_t (*count)(void);
  /* Bytes that the device has free now, of all processes together, and its total. Called from any thread; leaves no sentence. */
  diffit_status (*memory)(diffit_context *, int64_t *freeBytes, int64_t *totalBytes);

  /* Puts mark `slot` (0 to DIFFIT_MARKS - 1) behind everything enqueued so far; elapsed() waits for both marks and gives the
     device's milliseconds between them. */
  diffit_status (*mark)(diffit_context *, int32_t slot);
  diffit_status (*elapsed)(diffit_context *, int32_t from, int32_t to, double *milliseconds);

  /* Between capture_begin and capture_end operations are remembered, not run; replay runs them all in one launch, on the same
     memory. capture_end gives NULL and a status when what was remembered cannot be replayed. A graph goes stale when the backend
     has moved its scratch memory: replay then returns DIFFIT_UNSUPPORTED and has done nothing, as it does when there is no memory
     for the launch. */
  diffit_status (*capture_begin)(diffit_context *);
  diffit_status (*capture_end)(diffit_context *, void **graph);
  diffit_status (*replay)(diffit_context *, void *graph);
  void (*free_graph)(diffit_context *, void *graph);

  diffit_ops ops;
} diffit_backend;

/* The one symbol a backend's shared library exports. */
typedef const diffit_backend *(*diffit_backend_entry)(void);
#define DIFFIT_BACKEND_SYMBOL "diffit_backend_table"

#ifdef __cplusplus
}
#endif
#endif
