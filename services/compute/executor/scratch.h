/* Scratch: where every buffer of a step lies in the three regions compute reserves.
 *   activations  what a step computes and forgets
 *   state        what sequences carry from step to step: the slot tables
 *   step_io      the plan as the device reads it
 * One function lays them out, first with no memory to learn the sizes, then over the regions. */
#ifndef QN_COMPUTE_EXECUTOR_SCRATCH_H
#define QN_COMPUTE_EXECUTOR_SCRATCH_H

#include "common/err.h"
#include "services/compute/model.h"
#include "services/compute/worker/step.h"

/* The arrays of a plan that host and device both have: the region's, and the host's copy of the same layout. */
typedef struct {
    /* What every step has: step_input brings it to the device, and reads `runs` where the host has them. */
    qn_run_t *runs, *decode_runs, *prefill_runs; /* [slots] */
    qn_sample_t *samples;                        /* [slots] */
    uint32_t *sample_rows;                       /* [slots], rows of x */
    /* What only some plans have. */
    uint32_t *retire, *ids, *stop_ids;
    qn_slot_start_t *starts;
    qn_table_entry_t *entries;
    qn_copy_t *copies;
    qn_bias_entry_t *bias;
    qn_run_t *token_runs; /* [T], where chunks run token by token */
    uint32_t *list_ids;
    uint32_t *rows, *targets, *slots, *top_counts; /* [R], for log-probabilities of a prompt */
} scratch_in_t;

/* What comes back, in host memory that the device writes (backend.h). */
typedef struct {
    qn_sample_result_t *results; /* [slots] */
    float *logprobs;             /* [T] */
    qn_top_entry_t *sample_top;  /* [slots, QN_ALTERNATIVES_MAX] */
    qn_top_entry_t *prompt_top;  /* [T, QN_ALTERNATIVES_MAX] */
} scratch_out_t;

typedef struct {
    uint32_t logit_rows; /* R */
    /* activations; void: of limits.activations */
    void *x, *normed;                /* [T, E] */
    void *q, *attended;              /* [T, H*D] */
    void *k, *v;                     /* [T, K*D] */
    void *gate, *up;                 /* [T, F], or [T*A, expert F] where that is larger */
    void *router;                    /* [T, X] */
    void *expert_x;                  /* [T*A, E]: the experts' inputs, then their outputs */
    float *expert_weights;           /* [T, A] */
    uint32_t *expert_places;         /* [T, A] */
    uint32_t *expert_rows;           /* [T*A] */
    uint32_t *expert_offsets;        /* [X+1] */
    void *products;                  /* what the largest product of a step needs beside its arguments */
    float *angles;                   /* [T, D] */
    void *picked;                    /* [R, E] */
    float *logits;                   /* [R, V] */
    float *sampler;                  /* [R, 2, V] */
    uint32_t *token_ids, *positions; /* [T] */
    uint32_t *lengths;               /* [T] */
    int64_t *kv_rows;                /* [T] */
    /* state */
    qn_slot_tables_t tables; /* one slot more than limits.max_sequences: the null slot, always done */
    void *pending;           /* [slots, E]: last row of a prompt chunk, awaiting its target's id */
    float *frequencies;      /* [D/2] */
    qn_weight_t *experts;    /* [L, MODEL_EXPERT_PARTS, X]: the model's */
    /* step_io */
    scratch_in_t in;
} scratch_t;

/* Of the three regions, and of the host memory for what comes back. */
typedef struct {
    uint64_t activations_bytes, state_bytes, step_io_bytes, out_bytes;
} scratch_sizes_t;

/* Bytes needed. QN_ERR_LIMIT: a product overflows. */
qn_err_t scratch_measure(const qn_model_config_t *config, const step_limits_t *limits, scratch_sizes_t *ret_sizes);
/* Lays the buffers over three pieces of at least those sizes, 64-byte aligned. */
void scratch_place(const qn_model_config_t *config, const step_limits_t *limits, void *activations, void *state,
                   void *step_io, scratch_t *ret_scratch);
/* Lay the arrays of the step over step_io_bytes and out_bytes of host memory, 64-byte aligned. */
void scratch_place_in(const step_limits_t *limits, void *memory, scratch_in_t *ret_in);
void scratch_place_out(const step_limits_t *limits, void *memory, scratch_out_t *ret_out);

#endif
