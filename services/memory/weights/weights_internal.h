/* The inside of weights_t, for weights.c (the plan), weights_fill.c (the threads) and weights_bring.c (the bytes). */
#ifndef QN_MEMORY_WEIGHTS_WEIGHTS_INTERNAL_H
#define QN_MEMORY_WEIGHTS_WEIGHTS_INTERNAL_H

#include "common/arena.h"
#include "common/model/model_tensors.h"
#include "services/memory/weights/safetensors.h"
#include "services/memory/weights/weights.h"

/* Where a tensor comes from. */
typedef struct {
    uint32_t source;           /* index in `checkpoint` */
    safetensors_dtype_t dtype; /* F64, F32, F16 or BF16; BF16 for dummy */
    bool transposed;           /* the source is [inputs, source_outputs] */
    uint64_t source_first, source_outputs;
    uint64_t outputs, inputs; /* of the tensor; one input for rank 1 */
    qn_tensor_role_t role;
} weights_origin_t;

struct weights {
    qn_model_config_t config; /* settled: weights_source.h */
    qn_model_warnings_t warnings;
    qn_arena_t arena; /* names of the tensors */
    weights_tensor_t *tensors;
    weights_origin_t *origins; /* one per tensor */
    uint32_t *order;           /* tensors in the order of their sources' bytes */
    size_t count, left_out;
    uint64_t bytes, fingerprint;
    safetensors_t *checkpoint; /* NULL: dummy, or files closed */
    bool dummy;
    uint64_t seed; /* dummy */
    float dummy_norm;
};

/* A piece of work: outputs [first, first + count) of a tensor. */
typedef struct {
    size_t tensor;
    uint64_t first, count;
} weights_chunk_t;

/* What one thread needs to bring chunks of a plan. */
typedef struct {
    uint8_t *raw; /* bytes of the source */
    float *rows;  /* the same, widened */
} weights_buffers_t;

/* How a tensor of a dummy plan is made, in bf16: all of one value (norms), or of a stream of random numbers, four
 * neighbours from each: kernels/cuda/load.h makes the same. */
typedef struct {
    bool repeated;
    uint16_t value; /* bits of bf16 */
    uint64_t stream;
} weights_invention_t;

/* Outputs of one chunk of a tensor: what keeps the buffers small, and whole panels. The last chunk has fewer. */
uint64_t weights_chunk_outputs(const weights_t *weights, size_t tensor);
/* Place and size of a chunk in its tensor. */
void weights_chunk_place(const weights_t *weights, const weights_chunk_t *chunk, uint64_t *ret_offset,
                         uint64_t *ret_bytes);
/* The bytes of the greatest chunk of the plan; 0 without tensors. */
uint64_t weights_chunk_bytes_max(const weights_t *weights);
/* Failure: QN_ERR_NO_MEMORY. */
qn_err_t weights_buffers_make(const weights_t *weights, weights_buffers_t *ret_buffers);
void weights_buffers_free(weights_buffers_t *buffers);
/* Reads a chunk, or draws dummy weights for it, and writes it to `target`, host memory, in the tensor's format. */
qn_err_t weights_bring(const weights_t *weights, const weights_chunk_t *chunk, const weights_buffers_t *buffers,
                       uint8_t *target);
/* Of a dummy plan. */
weights_invention_t weights_invention(const weights_t *weights, size_t tensor);

#endif
