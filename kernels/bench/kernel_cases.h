/* The cases that kernels are checked and timed with, and the tables of shapes that `quintet bench kernels` runs: per case the arguments of one operation over random data, and
 * what a right implementation must give. On a host the shapes are those of the bundled model and of Qwen2.5-0.5B, for
 * one token, for eight and for a prompt of 512, and attention over several contexts; on a device those of Llama-3.2-1B,
 * Llama-3.1-8B and Qwen3-30B-A3B, up to batches of 256 and prompts of 8192.
 *
 * A case lies in host memory, its activations in f32; who runs it (kernel_runner.h) places its arrays. Weights and keys
 * of small batches are wanted in several copies, used in turn, together larger than the last-level cache: a decode step
 * meets its weights in memory, not in a cache. */
#ifndef QN_KERNELS_BENCH_KERNEL_CASES_H
#define QN_KERNELS_BENCH_KERNEL_CASES_H

#include <stdbool.h>
#include <stddef.h>

#include "common/err.h"
#include "kernels/kernels.h"

#define KERNEL_CASE_COPIES_MAX 64
#define KERNEL_CASE_OUTPUTS_MAX 3
#define KERNEL_CASE_MEMORY_MAX 128

/* For whom a case is made. */
typedef struct {
    bool device;             /* weights in rows, not panels, and the table of a device */
    qn_scalar_t activations; /* all inputs can be held by it */
    uint64_t rotated_bytes;  /* together the copies of weights have at least so many */
    uint64_t memory_max;     /* bytes of a case at most; 0: no bound. Copies are left out where they would not fit */
} kernel_case_target_t;

/* The sizes of a model that its operations have. */
typedef struct {
    const char *name;
    uint32_t heads, kv_heads, head_dim, hidden, intermediate, vocab;
    uint32_t experts, experts_per_token, expert_width;
    uint32_t block_tokens; /* of the KV cache; 0: 16 */
} kernel_shape_t;

/* One case that is in no table. */
typedef struct {
    qn_op_t op;
    const kernel_shape_t *shape; /* borrowed until the case is freed, like `part` */
    uint32_t tokens;             /* T, rows or sequences */
    uint32_t context;            /* of attention: positions of each sequence */
    uint32_t sequences;          /* that share the tokens of attention.prefill in equal parts; 0: one */
    qn_scalar_t scalar;          /* of weights or KV */
    const char *part;            /* NULL, or of a product: qkv, output, gate_up, down, head; of an activation: gelu */
} kernel_wish_t;

typedef enum {
    KERNEL_MEMORY_PLAIN,       /* the same bytes wherever it is placed */
    KERNEL_MEMORY_ACTIVATIONS, /* f32 here, of the target's type where it is placed */
    KERNEL_MEMORY_ROTATED,     /* plain; each copy of the arguments has its own */
    KERNEL_MEMORY_WEIGHT_LIST, /* qn_weight_t [..], rotated, as are what they point to */
} kernel_memory_kind_t;

typedef struct {
    char *data; /* owned */
    size_t bytes;
    kernel_memory_kind_t kind;
} kernel_memory_t;

/* What the implementation under test leaves at `tested` and the reference at `exact`. */
typedef struct {
    const void *tested, *exact;
    size_t count;
    bool is_id; /* uint32_t, which must be equal; else float */
} kernel_output_t;

typedef struct {
    qn_op_t op;
    char shape[128];
    qn_kernel_case_t needs;
    qn_scalar_t scalar;          /* of weights or KV; F32 where there are none */
    const void *arguments;       /* of the implementation under test */
    size_t copies;               /* that are wanted of what is rotated; at least 1 */
    const void *exact_arguments; /* the reference's: its own outputs, and of a large case only the last rows */
    kernel_output_t outputs[KERNEL_CASE_OUTPUTS_MAX];
    size_t output_count;
    double bytes, operations; /* of one launch */
    kernel_case_target_t target;
    kernel_memory_t memory[KERNEL_CASE_MEMORY_MAX];
    size_t memory_count;
    uint64_t memory_bytes; /* of all of it */
    bool no_memory;
} kernel_case_t;

size_t kernel_case_count(bool device);
/* The operation of case `index`, without making it. */
qn_op_t kernel_case_op(bool device, size_t index);
/* Makes case `index` of the target's table. Blocks for up to seconds. QN_ERR_NO_MEMORY. `ret_case` holds memory until
 * kernel_case_free, also after a failure. */
qn_err_t kernel_case_make(size_t index, const kernel_case_target_t *target, kernel_case_t *ret_case);
/* Whether cases can be made of it. */
bool kernel_op_has_cases(qn_op_t op);
/* Makes a case that is in no table, of an operation that has cases, with at least one token. As kernel_case_make. */
qn_err_t kernel_case_make_wish(const kernel_wish_t *wish, const kernel_case_target_t *target, kernel_case_t *ret_case);
/* What else the arguments of an operation may say (a residual, another activation, a window, an output in place): variants
 * 0 .. count of a small case just made; 0 is the plain one. 0: there are none of this operation. */
size_t kernel_variant_count(qn_op_t op);
/* Changes `made`; `format`: of the weights of norms, F32 or BF16. QN_ERR_NO_MEMORY. */
qn_err_t kernel_case_vary(kernel_case_t *made, unsigned variant, qn_scalar_t format);
void kernel_case_free(kernel_case_t *made);

/* How far an implementation of the operation may be from the reference (relative, of each output; ids must be equal),
 * which depends on what the numbers are rounded to: weights in 8 and 4 bits let products round activations, too. */
double kernel_tolerance(const kernel_case_t *made);
/* The greatest relative error sqrt(sum (tested - exact)^2 / sum exact^2) of the case's outputs; infinite where ids differ
 * or a number is not finite. */
double kernel_case_error(const kernel_case_t *made);

#endif
