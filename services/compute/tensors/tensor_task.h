/* Tasks on tensors: filling one, or an operation on the pieces of one, a slice at a time on the worker.
 *
 * The pieces of a tensor are worked on one after the other, in rows of the last dimension, as the executor's own kernels do it
 * (kernels.h): so the bits of a row are the same in any piece and any slice. What two kernels of the registry do not have
 * (softmax, add, mul) is a plain loop here. */
#ifndef QN_COMPUTE_TENSORS_TENSOR_TASK_H
#define QN_COMPUTE_TENSORS_TENSOR_TASK_H

#include "services/compute/tensors/tensor_store.h"
#include "services/compute/worker/task_queue.h"

typedef enum { TENSOR_FILL_VALUES, TENSOR_FILL_RANDOM, TENSOR_FILL_ZEROS, TENSOR_FILL_ARANGE } tensor_fill_t;

typedef enum {
    TENSOR_MATMUL,
    TENSOR_ADD,
    TENSOR_MUL,
    TENSOR_SOFTMAX,
    TENSOR_RMSNORM,
    TENSOR_LAYERNORM,
    TENSOR_SILU,
    TENSOR_GELU,
    TENSOR_GELU_TANH,
    TENSOR_RELU,
    TENSOR_OPERATIONS,
} tensor_operation_t;

/* What becomes of the pieces' results. */
typedef enum { TENSOR_APART, TENSOR_GATHER, TENSOR_SUM } tensor_join_t;

/* "matmul"; NULL: no such operation. */
const char *tensor_operation_name(tensor_operation_t operation);
bool tensor_operation_find(const char *name, tensor_operation_t *ret_operation);

/* Element i of a random tensor: uniform in [-1, 1), of 24 bits of SplitMix64(seed, i). */
float tensor_random(uint64_t seed, uint64_t i);

/* min, max, mean and standard deviation are of the numbers that are none of NaN. */
typedef struct {
    double min, max, mean, std, zeros; /* zeros: share of all */
    uint64_t nan_count;
} tensor_summary_t;

typedef struct {
    uint64_t begin_ns, end_ns;
} tensor_time_t;

typedef struct tensor_task tensor_task_t;
struct tensor_task {
    task_t task;
    uint64_t (*now_ns)(void);

    /* A fill: of `out`, from `seed`; values are there already with TENSOR_FILL_VALUES. */
    bool fills;
    tensor_fill_t fill;
    uint64_t seed;
    tensor_t *out;

    /* An operation, of pieces[piece_count] of `in`. `with`: the right side, or a norm's weight; NULL: none. */
    tensor_operation_t operation;
    tensor_join_t join;
    tensor_t *in, *with;
    bool with_random; /* `with` is to be filled first: random, seed 1 */
    uint32_t pieces[TENSOR_SPLITS_MAX];
    uint32_t piece_count;
    float eps;
    qn_kernel_set_t kernels;
    /* The result is `out`: joined along the split dimension in the order of pieces (gather), their sum, or with APART one
     * after the other, piece i at piece_offset[i] with piece_shape[i]. */
    uint64_t piece_offset[TENSOR_SPLITS_MAX];
    tensor_shape_t piece_shape[TENSOR_SPLITS_MAX];

    /* Found out on the way. */
    tensor_time_t times[TENSOR_SPLITS_MAX];        /* of piece i */
    tensor_summary_t summaries[TENSOR_SPLITS_MAX]; /* of `out`, or with APART of each piece */
    uint64_t moved_bytes;                          /* copied in and out of pieces */

    /* Where it stands. */
    int stage;
    uint32_t at_piece;
    uint64_t at;
    float *x, *y, *weight; /* [slice rows, ..], and the right side of this piece; owned */
    void *scratch;
};

/* Checks that the operation has a result on these pieces and finds its shape; fills in piece_shape and piece_offset.
 * Failure: QN_ERR_INVALID, the text begins with the field at fault. QN_ERR_LIMIT: it would be too large or take too long. */
qn_err_t tensor_task_shape(tensor_task_t *task, tensor_shape_t *ret_shape);
/* Takes the memory that its slices need. QN_ERR_NO_MEMORY. `out` is there. */
qn_err_t tensor_task_prepare(tensor_task_t *task);
/* The memory of prepare. */
void tensor_task_fini(tensor_task_t *task);
bool tensor_task_slice(task_t *task, qn_stream_t *stream);

#endif
