/* Policies: a C ABI for shared objects, and for the policies that are built in. Four kinds:
 *
 *   scheduling   who of the waiting runs next, who gets a step's prompt tokens, who gives up its blocks
 *   batching     how many tokens the next step takes, and how long a piece of a prompt may be
 *   admission    who is accepted into the queue and who is refused
 *   eviction     which cached KV block goes when memory needs one
 *
 * A policy is pure: a view and a budget go in, a decision and its reason in words come out. It reads no clock (the time is
 * in the view), allocates nothing, does not block, keeps nothing but its state (below), and runs on the step path: aim
 * for microseconds. Reasons are seen in a request's record, in StepPlan.reasons, in the log at level debug, in research
 * mode and in the comparison with a shadow.
 *
 * A decision that breaks a rule below (an id that was not offered, one id twice, more than the budget, no number), or
 * that takes more than QN_POLICY_SLOW_NS of processor time, withdraws the policy: the one before it decides, at once and
 * for this very decision, and an error in the log, a counter and /policies say so.
 *
 * A shared object exports one function:
 *     const qn_policy_head_t *qn_policy_entry(void);
 * which returns the `head` of one of the four tables below, and needs nothing but this header:
 *     cc -fPIC -shared -I<project> my_policy.c -o build/policies/my_policy.so
 * then PUT /policies/scheduling {"policy": "my_policy.so"}, or scheduler.policy in the configuration. It is loaded only
 * from the directories of policies.dirs. deploy/policies/ has a whole one of each kind.
 *
 * This header depends on nothing else of the project. Any change of a struct raises QN_POLICY_ABI_VERSION. */
#ifndef QN_COMMON_POLICY_H
#define QN_COMMON_POLICY_H

#include <stdint.h>

#define QN_POLICY_ABI_VERSION 2
#define QN_POLICY_REASON_MAX 160    /* bytes of a reason, its terminating NUL included */
#define QN_POLICY_ADMISSIONS_MAX 32 /* per decision; the next plan may admit more */
#define QN_POLICY_STATE_MAX 4096    /* bytes of a policy's state */
#define QN_POLICY_METRICS_MAX 8     /* metrics of a policy */
#define QN_POLICY_USER_MAX 64       /* bytes of a user's name in a view, NUL included; longer ones are cut */
#define QN_POLICY_SLOW_NS 5000000ull

typedef enum {
    QN_POLICY_SCHEDULING = 1,
    QN_POLICY_BATCHING = 2,
    QN_POLICY_ADMISSION = 3,
    QN_POLICY_EVICTION = 4,
} qn_policy_kind_t;

/* What a policy asks to be shown beyond what costs nothing. */
#define QN_POLICY_WANTS_PREFIX 1u /* scheduling: prefix_tokens of who waits; memory is asked for it */
#define QN_POLICY_WANTS_USERS 2u  /* admission: the counts by user */

/* Every table begins with this. */
typedef struct {
    uint32_t version; /* QN_POLICY_ABI_VERSION */
    uint32_t kind;    /* qn_policy_kind_t */
    const char *name; /* at most 63 bytes; shown with every decision */
    uint32_t state_bytes;
    uint32_t wants; /* QN_POLICY_WANTS_..., or 0 */
    uint32_t metric_count;
    const char *const *metric_names; /* [metric_count]: at most 23 letters of a-z, 0-9 and _, beginning with a letter */
} qn_policy_head_t;

/* What a policy may keep from one decision to the next. */
typedef struct {
    void *state; /* [state_bytes], aligned to 16; all zero at first. It outlives the scheduler's death, and the policy's
                        being switched off and on again is a new start. NULL when state_bytes is 0 */
    double *metrics; /* [metric_count]: set to whatever /metrics is to show, quintet_policy_metric{policy,metric} */
} qn_policy_memory_t;

/* ---- scheduling ---- */

/* States of a sequence in a view. */
#define QN_POLICY_WAITING 0u /* holds no blocks */
#define QN_POLICY_PREFILL 1u /* running; tokens it knows are still to be computed */
#define QN_POLICY_DECODE 2u  /* running; one token per step */

typedef struct {
    uint64_t id;           /* the request */
    uint64_t arrival;      /* order of arrival, unique; the tie breaker */
    uint64_t arrival_ns;   /* CLOCK_MONOTONIC */
    uint64_t deadline_ns;  /* the same clock; 0: it has none */
    uint64_t user;         /* hash of the user's name; 0: it has none */
    const char *user_name; /* cut to QN_POLICY_USER_MAX; "": it has none */
    int32_t priority;      /* lower is sooner */
    uint32_t state;        /* QN_POLICY_WAITING, ... */
    uint32_t prompt_tokens;
    uint32_t prefix_tokens; /* waiting: of its prompt, cached by memory when it was last asked (QN_POLICY_WANTS_PREFIX);
                                  running: as it was granted */
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
    qn_policy_head_t head;

    /* The view holds the waiting sequences. Called when a slot is free and somebody waits. `ret_admit` comes with count 0,
     * as the outputs below. */
    void (*admit)(const qn_policy_memory_t *memory, const qn_policy_view_t *view, uint32_t admissions_max,
                  qn_policy_admit_t *ret_admit);

    /* The view holds the running sequences in QN_POLICY_PREFILL. Called for a step when there are any. Decodes always
     * run and are not in the budget; when `must_progress` (nothing else runs) at least one token is to be dealt. */
    void (*share)(const qn_policy_memory_t *memory, const qn_policy_view_t *view, uint32_t budget_tokens,
                  uint32_t chunk_tokens, uint32_t parts_max, int must_progress, qn_policy_share_t *ret_share);

    /* The view holds the running sequences that may go: all but the one that arrived first, which always makes
     * progress. `needy` cannot continue without a block; when it is in the view it may be named itself. Called when
     * no block is free. */
    void (*preempt)(const qn_policy_memory_t *memory, const qn_policy_view_t *view, uint64_t needy,
                    qn_policy_preempt_t *ret_preempt);
} qn_policy_t;

/* ---- batching ---- */

typedef struct {
    uint64_t now_ns;
    uint32_t waiting_count, running_count;
    uint32_t decode_tokens;  /* of this step: they always run */
    uint32_t prefill_tokens; /* known to running sequences and neither written nor planned */
    uint32_t short_count;    /* running sequences that memory refused a block */
    uint32_t total_blocks, available_blocks, block_tokens;
    uint32_t step_tokens_max;  /* scheduler.max_step_tokens */
    uint32_t chunk_tokens_max; /* scheduler.prefill_chunk_tokens */
    uint32_t last_tokens;      /* of the last step that has a result, 0: there is none */
    uint64_t last_ns;          /* its time on the device */
} qn_policy_load_t;

typedef struct {
    uint32_t step_tokens;  /* decode_tokens .. step_tokens_max; at least 1 when nothing decodes */
    uint32_t chunk_tokens; /* 1 .. step_tokens_max: of one prompt in this step */
    char reason[QN_POLICY_REASON_MAX];
} qn_policy_size_t;

typedef struct {
    qn_policy_head_t head;
    /* Called for each step that has prompt tokens to deal. */
    void (*size)(const qn_policy_memory_t *memory, const qn_policy_load_t *load, qn_policy_size_t *ret_size);
} qn_batching_policy_t;

/* ---- admission ---- */

typedef struct {
    uint64_t now_ns;
    uint64_t id;
    uint64_t deadline_ns, user; /* as in qn_policy_sequence_t */
    const char *user_name;
    int32_t priority;
    uint32_t prompt_tokens, max_tokens;
    uint32_t request_count; /* accepted and not ended: below queue_limit, or it is refused before a policy is asked */
    uint32_t queue_limit;   /* scheduler.queue_limit */
    uint32_t waiting_count, running_count, slot_count;
    uint32_t user_requests; /* of those, this user's; with QN_POLICY_WANTS_USERS, else 0 */
    uint32_t user_count;    /* users who have any, this one included; with QN_POLICY_WANTS_USERS, else 0 */
    uint32_t total_blocks, available_blocks, block_tokens; /* 0: memory is not there yet */
} qn_policy_arrival_t;

/* Accepted: into the queue, and a slot when scheduling says so. Refused: the client gets 429 with the reason. */
typedef struct {
    uint32_t accept;         /* 0 or 1 */
    uint32_t retry_after_ms; /* when refused: 1 .. 3600000 */
    char reason[QN_POLICY_REASON_MAX];
} qn_policy_verdict_t;

typedef struct {
    qn_policy_head_t head;
    void (*judge)(const qn_policy_memory_t *memory, const qn_policy_arrival_t *arrival,
                  qn_policy_verdict_t *ret_verdict);
} qn_admission_policy_t;

/* ---- eviction ---- */

/* A KV block that nobody references and that is kept for its content. */
typedef struct {
    uint64_t block;
    uint64_t now;   /* logical time: grows by one with every open, extend, commit and release */
    uint64_t use;   /* logical time of its last release */
    uint64_t born;  /* logical time when its content entered the index */
    uint64_t hits;  /* sequences that found it since then */
    double floor;   /* score of the block that was evicted last under this policy; 0 at first */
    uint32_t depth; /* blocks before it in its prefix: 0 holds the first tokens of a prompt */
    uint32_t block_tokens;
} qn_policy_block_t;

typedef struct {
    qn_policy_head_t head; /* state_bytes is 0: what eviction remembers is in the block */
    /* The block with the lowest score goes first; of equal ones the deeper, then the one that was let go first. Asked once
     * each time a block becomes unreferenced. A block that others follow goes after them, whatever their scores: without
     * it they could not be found. Not a NaN. */
    double (*score)(const qn_policy_memory_t *memory, const qn_policy_block_t *block);
    /* Why it goes, in words; NULL: its numbers are shown. */
    void (*explain)(const qn_policy_block_t *block, char ret_reason[QN_POLICY_REASON_MAX]);
} qn_eviction_policy_t;

#define QN_POLICY_SYMBOL "qn_policy_entry"
typedef const qn_policy_head_t *(*qn_policy_entry_t)(void);

#endif
