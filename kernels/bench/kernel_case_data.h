/* What the cases of `quintet bench kernels` are made of. All memory belongs to the case; when there is none, the case
 * says so (no_memory), the pointer is NULL and the others cope. For kernel_case*.c only. */
#ifndef QN_KERNELS_BENCH_KERNEL_CASE_DATA_H
#define QN_KERNELS_BENCH_KERNEL_CASE_DATA_H

#include "kernels/bench/kernel_cases.h"

typedef struct case_row case_row_t;
struct case_row {
    qn_op_t op;
    const kernel_shape_t *model;
    uint32_t tokens;    /* T, rows or sequences */
    uint32_t context;   /* attention */
    qn_scalar_t scalar; /* of weights or KV */
    const char *part;   /* which product, what kind */
    void (*make)(kernel_case_t *c, const case_row_t *row);
    uint32_t sequences; /* that share the tokens of attention.prefill; 0: one */
};

/* The same arguments for both sides but for what the caller changes in `exact`. */
#define CASE_TAKE(c, type, tested_value, exact_value)                  \
    do {                                                               \
        const type tested_ = tested_value, exact_ = exact_value;       \
        (c)->arguments = case_copy((c), &tested_, sizeof tested_);     \
        (c)->exact_arguments = case_copy((c), &exact_, sizeof exact_); \
    } while (0)

/* ---- memory and numbers ---- */

/* Plain. */
void *case_hold(kernel_case_t *c, size_t bytes);
void *case_hold_zero(kernel_case_t *c, size_t bytes);
void *case_copy(kernel_case_t *c, const void *from, size_t bytes);
/* In [-1, 1). */
float case_next_number(uint64_t *state);
void case_fill(float *values, size_t count, uint64_t seed);
/* Plain. */
float *case_floats(kernel_case_t *c, size_t count, uint64_t seed);
/* Numbers that the target's activations can hold. */
float *case_activations(kernel_case_t *c, size_t count, uint64_t seed);
/* Bytes of one, where they are placed. */
double case_activation_bytes(const kernel_case_t *c);
/* As `from`, which is activations. */
float *case_copy_activations(kernel_case_t *c, const float *from, size_t count);
/* Scattered, below `limit`. */
uint32_t *case_ids(kernel_case_t *c, size_t count, uint32_t limit);

void case_add_output(kernel_case_t *c, const void *tested, const void *exact, size_t count, bool is_id);
/* Two outputs, one for each side: activations, or f32 everywhere. The last `checked` are compared. */
typedef struct {
    float *tested, *exact;
} case_pair_t;
case_pair_t case_output_pair(kernel_case_t *c, size_t count, size_t checked);
case_pair_t case_float_pair(kernel_case_t *c, size_t count, size_t checked);
/* As many copies of what is rotated as the target wants, where each launch reads `bytes` of it. */
void case_rotate(kernel_case_t *c, double bytes, size_t most);

/* ---- weights and KV ---- */

/* Of a matrix as the target wants it; int4 in groups of 32. */
uint64_t case_matrix_bytes(const kernel_case_t *c, qn_scalar_t scalar, uint64_t outputs, uint64_t inputs);
/* A random matrix, values of deviation about 1/sqrt(inputs), in panels or, for a device, in rows; rotated. */
qn_weight_t case_matrix(kernel_case_t *c, qn_scalar_t scalar, uint64_t outputs, uint64_t inputs, uint64_t seed);
/* `count` matrices that lie one after the other in `all`. */
qn_weight_t *case_weight_list(kernel_case_t *c, uint32_t count, qn_weight_t all, uint64_t bytes);
qn_weight_t case_vector(kernel_case_t *c, uint32_t count, uint64_t seed);
/* Tokens of a KV block. */
uint32_t case_block_tokens(const case_row_t *row);
/* One layer of `blocks`; rotated. */
qn_kv_t case_cache(kernel_case_t *c, const case_row_t *row, uint32_t blocks, bool is_random);
/* [tokens, 2, head_dim / 2], as of positions 0, 7, 14, ... */
float *case_angles(kernel_case_t *c, uint32_t tokens, uint32_t head_dim);
/* Runs of row->tokens in all, one of each sequence for decode, and the tables of their slots. */
qn_run_t *case_runs(kernel_case_t *c, const case_row_t *row, uint32_t *ret_sequences);
qn_slot_tables_t case_tables(kernel_case_t *c, const case_row_t *row, uint32_t sequences);
/* Rows of the outputs of a large case that are compared: the reference takes seconds for all. */
uint32_t case_checked_rows(const case_row_t *row, double row_operations);

/* ---- the cases, a function for each operation ---- */

void case_make_embedding(kernel_case_t *c, const case_row_t *row);
void case_make_rmsnorm(kernel_case_t *c, const case_row_t *row);
void case_make_layernorm(kernel_case_t *c, const case_row_t *row);
void case_make_matmul(kernel_case_t *c, const case_row_t *row);
void case_make_norm_matmul(kernel_case_t *c, const case_row_t *row);
void case_make_angles(kernel_case_t *c, const case_row_t *row);
void case_make_rope(kernel_case_t *c, const case_row_t *row);
void case_make_kv_write(kernel_case_t *c, const case_row_t *row);
void case_make_attention(kernel_case_t *c, const case_row_t *row);
void case_make_decode_attention(kernel_case_t *c, const case_row_t *row);
void case_make_activation(kernel_case_t *c, const case_row_t *row);
void case_make_route(kernel_case_t *c, const case_row_t *row);
void case_make_expert(kernel_case_t *c, const case_row_t *row);
void case_make_combine(kernel_case_t *c, const case_row_t *row);
void case_make_softcap(kernel_case_t *c, const case_row_t *row);
void case_make_gather(kernel_case_t *c, const case_row_t *row);
void case_make_logprobs(kernel_case_t *c, const case_row_t *row);
void case_make_sampler(kernel_case_t *c, const case_row_t *row);
void case_make_step_input(kernel_case_t *c, const case_row_t *row);
void case_make_slot_update(kernel_case_t *c, const case_row_t *row);
void case_make_block_copy(kernel_case_t *c, const case_row_t *row);

#endif
