/* The table of shapes that `quintet bench kernels` runs: per case the arguments of one operation over random data, and
 * what a right implementation must give. Shapes are those of the bundled model and of Qwen2.5-0.5B, for one token, for
 * eight and for a prompt of 512, and attention over several contexts.
 *
 * Weights of small batches are there in several copies, used in turn, together larger than the last-level cache: a
 * decode step meets its weights in memory, not in a cache. */
#ifndef QUINTET_TOOLS_KERNEL_CASES_H
#define QUINTET_TOOLS_KERNEL_CASES_H

#include <stdbool.h>
#include <stddef.h>

#include "common/err.h"
#include "kernels/kernels.h"

#define KERNEL_CASE_COPIES_MAX 64
#define KERNEL_CASE_OUTPUTS_MAX 3
#define KERNEL_CASE_MEMORY_MAX 128

/* What the implementation under test leaves at `tested` and the reference at `exact`. */
typedef struct {
    const void *tested, *exact;
    size_t count;
    bool is_id;                  /* uint32_t, which must be equal; else float */
} kernel_output_t;

typedef struct {
    qn_op_t op;
    char shape[96];
    qn_kernel_case_t needs;
    qn_scalar_t scalar;          /* of weights or KV; F32 where there are none */
    const void *arguments[KERNEL_CASE_COPIES_MAX];  /* in turn; copy 0 is checked */
    size_t copies;
    const void *exact_arguments; /* the reference's: its own outputs, and of a large case only the last rows */
    kernel_output_t outputs[KERNEL_CASE_OUTPUTS_MAX];
    size_t output_count;
    double bytes, operations;    /* of one launch */
    void *memory[KERNEL_CASE_MEMORY_MAX];  /* owned */
    size_t memory_count;
    bool no_memory;
} kernel_case_t;

size_t kernel_case_count(void);
/* The operation of case `index`, without making it. */
qn_op_t kernel_case_op(size_t index);
/* Makes case `index`; `cache_bytes` is the last-level cache's. Blocks for up to seconds. QN_ERR_NO_MEMORY. `ret_case`
 * holds memory until kernel_case_free, also after a failure. */
qn_err_t kernel_case_make(size_t index, uint64_t cache_bytes, kernel_case_t *ret_case);
void kernel_case_free(kernel_case_t *made);

#endif
