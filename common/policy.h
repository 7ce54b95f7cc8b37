/* The scheduling policy: a C ABI for shared objects, and for the policies that are built in.
 *
 * A policy is pure: it gets a view of the sequences and a budget and writes a decision with a reason in words, which
 * ends in StepPlan.reasons and so in the sniffer and the dashboard. It keeps no state, reads no clock (the time is in
 * the view), allocates nothing, does not block, and runs on the scheduler's step path: aim for microseconds.
 *
 * A decision that breaks a rule below (an id that was not offered, one id twice, more than the budget) is refused: the
 * scheduler ends with an error that names the policy. It never continues with another policy in silence.
 *
 * A shared object exports one function:
 *     const qn_policy_t *qn_policy_entry(void);
 * and needs nothing but this header: cc -fPIC -shared -I<project> my_policy.c -o my_policy.so; then
 * scheduler.policy: /path/my_policy.so. deploy/policies/example_policy.c is a whole one.
 *
 * This header depends on nothing else of the project. Any change of a struct raises QN_POLICY_ABI_VERSION. */
#ifndef QN_COMMON_POLICY_H
#define QN_COMMON_POLICY_H

#include <stdint.h>

#define QN_POLICY_ABI_VERSION 1
#define QN_POLICY_REASON_MAX 160    /* bytes of a reason, its terminating NUL included */
#define QN_POLICY_ADMISSIONS_MAX 32 /* per decision; the next plan may admit more */

/* States of a sequence in a view. */
#define QN_POLICY_WAITING 0u /* holds no blocks */
#define QN_POLICY_PREFILL 1u /* running; tokens it knows are still to be computed */
#define QN_POLICY_DECODE 2u  /* running; one token per step */

typedef struct {
    uint64_t id;         /* the request */
    uint64_t arrival;    /* order of arrival, unique; the tie breaker */
    uint64_t arrival_ns; /* CLOCK_MONOTONIC */
    int32_t priority;    /* lower is sooner */
    uint32_t state;      /* QN_POLICY_WAITING, ... */
    uint32_t prompt_tokens;
    uint32_t cached_tokens; /* of the prompt, found in the prefix index at its first admission; 0 before */
    uint32_t generated_tokens;
    uint32_t max_tokens;      /* generated tokens at most */
    uint32_t progress_tokens; /* tokens whose KV is written or planned */
    uint32_t prefill_tokens;  /* tokens known but neither written nor planned; waiting: all of them */
    uint32_t blocks;          /* held */
    uint32_t blocks_wanted;   /* waiting: what admission will ask for, before prefix hits */
    uint32_t preemptions;     /* how often it lost its blocks */
} qn_policy_sequence_t;

typedef struct {
    uint64_t now_ns;
    const qn_policy_sequence_t *sequences; /* see each function; in order of arrival */
    uint32_t sequence_count;
    uint32_t waiting_count, running_count; /* in the scheduler, whatever the view shows */
    uint32_t total_blocks;
    uint32_t available_blocks; /* free or evictable, as of the last grant */
    uint32_t block_tokens;
} qn_policy_view_t;

typedef struct {
    uint64_t id;
    char reason[QN_POLICY_REASON_MAX];
} qn_policy_admission_t;

/* Waiting sequences that ask for their blocks now, first one first. Those not named go on waiting. */
typedef struct {
    uint32_t count; /* <= admissions_max of the call */
    qn_policy_admission_t admissions[QN_POLICY_ADMISSIONS_MAX];
} qn_policy_admit_t;

typedef struct {
    uint64_t id;
    uint32_t tokens; /* >= 1, <= its prefill_tokens, <= chunk_tokens of the call */
} qn_policy_part_t;

/* How the step's tokens that no decode uses are dealt to prefills. */
typedef struct {
    uint32_t count;          /* <= parts_max of the call */
    qn_policy_part_t *parts; /* room for parts_max; the sum of tokens stays <= budget_tokens of the call */
    char reason[QN_POLICY_REASON_MAX];
} qn_policy_share_t;

/* Who gives up its blocks. */
typedef struct {
    uint64_t id;
    char reason[QN_POLICY_REASON_MAX];
} qn_policy_preempt_t;

typedef struct {
    uint32_t version; /* QN_POLICY_ABI_VERSION */
    const char *name; /* at most 63 bytes; shown with every reason */

    /* The view holds the waiting sequences. Called when a slot is free and somebody waits. */
    void (*admit)(const qn_policy_view_t *view, uint32_t admissions_max, qn_policy_admit_t *ret_admit);

    /* The view holds the running sequences in QN_POLICY_PREFILL. Called for a step when there are any. Decodes always
     * run and are not in the budget; when `must_progress` (nothing else runs) at least one token is to be dealt. */
    void (*share)(const qn_policy_view_t *view, uint32_t budget_tokens, uint32_t chunk_tokens, uint32_t parts_max,
                  int must_progress, qn_policy_share_t *ret_share);

    /* The view holds the running sequences that may go: all but the one that arrived first, which always makes
     * progress. `needy` cannot continue without a block; when it is in the view it may be named itself. Called when
     * no block is free. */
    void (*preempt)(const qn_policy_view_t *view, uint64_t needy, qn_policy_preempt_t *ret_preempt);
} qn_policy_t;

#define QN_POLICY_SYMBOL "qn_policy_entry"
typedef const qn_policy_t *(*qn_policy_entry_t)(void);

#endif
