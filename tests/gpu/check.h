/* One kernel's check: a stream of each kind, memory, and what was found. */
#ifndef QN_TESTS_GPU_CHECK_H
#define QN_TESTS_GPU_CHECK_H

#include "tests/gpu/gpu_test.h"

typedef struct {
    const char *op;
    qn_scalar_t activations;
    qn_stream_t *cpu, *gpu;
    arena_t arena;
    held_t held;
    random_t random;
    char label[128]; /* the case at hand */
    unsigned cases, failures;
    double worst, allowed; /* relative error that came nearest to its bound */
    const float *terms;    /* of the next comparison: a term of each sum, rounded on its own; NULL: none */
} check_t;

/* The same values for both sides. */
typedef struct {
    qn_weight_t host, device;
} pair_t;

check_t check_begin(const char *op, qn_scalar_t activations, bool deterministic);
/* Waits, and forgets the memory of the case. */
void check_next(check_t *check);
/* Prints the line of the table; returns the number of failures. */
unsigned check_end(check_t *check);
void check_failed(check_t *check, const char *what);

float *check_values(check_t *check, size_t count, float deviation, uint32_t outliers, qn_scalar_t scalar);
void *check_push(check_t *check, const float *values, size_t count, qn_scalar_t scalar);
/* Device memory full of NaN. */
void *check_poison(check_t *check, size_t bytes);
pair_t check_weight(check_t *check, size_t count, float deviation, uint32_t outliers, qn_scalar_t scalar);
/* Fails where |got - want| > relative * (|want| + |terms|) + absolute, or got is NaN. */
void check_compare(check_t *check, const void *device, qn_scalar_t scalar, const float *want, size_t count,
                   double relative, double absolute);
double check_rounding(qn_scalar_t scalar);

unsigned check_attention(qn_scalar_t activations);
unsigned check_moe(qn_scalar_t activations);
unsigned check_moe_bits(void);
unsigned check_fused(void);
unsigned check_fill(void);
unsigned check_memory(void);
unsigned check_attention_bits(void);
unsigned check_attention_named(void);
unsigned check_attention_few(void);
unsigned check_masks(qn_scalar_t activations);
unsigned check_slots(void);
unsigned check_logprobs(void);
unsigned check_sampler(void);
/* Starts this program again as `check_kernels lost_in_child`, which calls the other. */
unsigned check_lost(void);
unsigned check_lost_in_child(void);

#endif
