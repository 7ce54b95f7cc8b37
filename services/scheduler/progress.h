/* Whether the oldest step without a result makes progress. A step is overdue when it takes far longer than steps of its
 * size took; then compute is asked whether it has it, and asked again for as long as it says so. When compute knows
 * nothing of it, or says nothing, a new session is due: the step is planned again.
 *
 * Bound of a step: PROGRESS_FACTOR times the slowest recent step of its size (token counts within a factor of two),
 * at least PROGRESS_LEAST_NS; of a size that was not seen yet, what smaller ones took in proportion, at most
 * PROGRESS_FIRST_NS. Pure: time is an argument. Embedded by scheduler.c. */
#ifndef QN_SCHEDULER_PROGRESS_H
#define QN_SCHEDULER_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

#define PROGRESS_FACTOR 20u
#define PROGRESS_LEAST_NS 1000000000ull
#define PROGRESS_FIRST_NS 30000000000ull
#define PROGRESS_ANSWER_NS 1000000000ull /* compute's loop is not held up by a step */
#define PROGRESS_RENEWALS_MAX 6u         /* doublings of the bound */
#define PROGRESS_CLASSES 16u             /* floor(log2(tokens)) */
#define PROGRESS_RECENT 16u              /* steps remembered of each */

typedef enum {
    PROGRESS_FINE,
    PROGRESS_ASK,   /* ask compute for the step: once per call */
    PROGRESS_RENEW, /* it has no answer, or knows nothing of the step */
} progress_verdict_t;

typedef struct {
    uint64_t recent_ns[PROGRESS_CLASSES][PROGRESS_RECENT]; /* 0: none */
    uint8_t next[PROGRESS_CLASSES];
    uint64_t step; /* the oldest without a result; 0 = none */
    uint32_t tokens;
    uint64_t since_ns; /* it is the oldest since, so compute works on it */
    uint64_t due_ns;   /* of the next question, or of its answer */
    uint32_t renewals; /* in a row: each waits twice as long, for a compute that is stopped takes nothing */
    bool asked, overdue, lost;
} progress_t;

/* `step` is the oldest without a result now, 0: there is none. */
void progress_watch(progress_t *progress, uint64_t step, uint32_t tokens, uint64_t now_ns);
/* The watched step has its result: its time counts. Then progress_watch. */
void progress_result(progress_t *progress, uint64_t now_ns);
/* Compute answered: `held`: it has the step. Answers about other steps are ignored. */
void progress_answer(progress_t *progress, uint64_t step, bool held, uint64_t now_ns);
/* *ret_again_ns: when to look again though nothing arrives; UINT64_MAX: never. */
progress_verdict_t progress_look(progress_t *progress, uint64_t now_ns, uint64_t *ret_again_ns);
/* How long a step of so many tokens may take. */
uint64_t progress_bound_ns(const progress_t *progress, uint32_t tokens);

#endif
