/* The planner: (ledger, batch, budget, now) -> the next step for compute, and the next messages for memory. It decides;
 * the caller sends, at once and in order, what it gets.
 *
 * Rules
 *  1. At most 1 + lookahead plans are without a result.
 *  2. A running sequence whose next token is the last known one, or unknown yet (from_slot), decodes: one token,
 *     always. The policy deals the rest of max_step_tokens to prompts, prefill_chunk_tokens at most to each.
 *  3. No run leaves its sequence's blocks, its run limit, or what compute was told. A slot appears once in a plan.
 *  4. A lease is extended when less than `headroom` (a block, at least 8 tokens) is left ahead of what is planned.
 *  5. Who cannot be extended for want of blocks starves. When nothing is about to come back, the policy names one
 *     running sequence that gives up all its blocks and waits again (its tokens stay in the ledger, its KV is
 *     computed again, or found in the prefix index). The running sequence that arrived first is never offered, and
 *     its extension is asked first: so it always makes progress, and so, one after the other, do all.
 *  6. Nobody is admitted while somebody starves, nor after a refusal until blocks of an ended sequence came back or
 *     enough are known to be free: admitting into a full pool only preempts.
 *  7. Every decision of the policy has its words in the next plan's reasons.
 *  8. Orphans (requests held for a client that is gone) run on what nobody else wants: while somebody with a client
 *     waits or starves, they are shown to no policy, give up slots and blocks, the last to arrive first, and get none.
 *  9. Who runs apart (suspects.h) runs, is extended and admitted alone. The others keep what they have, unless it needs
 *     their slot or their blocks: then they are preempted, one after the other, and rules 5 and 6 do not protect them.
 * 10. When a policy wants it, memory is asked how much of the prompts of those who wait is cached: once for each, again a
 *     second later at the earliest, one question at a time. The first answer about somebody is waited for before anybody is
 *     admitted, 2 ms at most.
 *
 * Pure: no clock, no socket; allocates at creation only. */
#ifndef QN_SCHEDULER_PLANNER_PLANNER_H
#define QN_SCHEDULER_PLANNER_PLANNER_H

#include "services/scheduler/batch/batch.h"
#include "services/scheduler/policy/policy.h"

#define PLANNER_REASONS_MAX 64 /* StepPlan.reasons */
#define PLANNER_EOS_MAX QN_STOP_IDS_MAX
#define PLANNER_NEVER UINT64_MAX
#define PLANNER_EVERYBODY UINT32_MAX
#define PLANNER_NOBODY (UINT32_MAX - 1)

typedef struct planner planner_t;

typedef struct {
    uint32_t max_step_tokens;      /* >= slots of the batch, <= QN_STEP_TOKENS_MAX */
    uint32_t prefill_chunk_tokens; /* >= 1 */
    uint32_t lookahead;            /* 0 or 1 */
} planner_options_t;

/* As SlotSet of schemas/step_plan.fbs; offsets into the plan's vectors. */
typedef struct {
    const request_t *request;
    uint32_t slot;
    uint32_t stop_offset, stop_count, bias_offset, bias_count, history_offset, history_count;
    uint32_t logprob_offset, bad_offset; /* into list_ids; the request has the counts */
} plan_set_t;

typedef struct {
    uint32_t slot, index, block;
} plan_block_t;

typedef struct {
    uint32_t from, to;
} plan_copy_t;

typedef struct {
    uint32_t slot, position, token_count, ids_offset;
    bool from_slot, sample;
} plan_run_t;

/* Views, valid until the next call of the planner. The input ids of a run that is not from_slot stand at ids_offset. */
typedef struct {
    uint64_t step;
    uint32_t session;
    bool opens; /* first of its session */
    const uint32_t *retire;
    const plan_set_t *sets;
    const plan_block_t *blocks;
    const plan_copy_t *copies;
    const plan_run_t *runs;
    const uint32_t *ids, *stop_ids, *list_ids;
    const request_bias_t *bias;
    const char (*reasons)[QN_POLICY_REASON_MAX];
    uint32_t retire_count, set_count, block_count, copy_count, run_count, id_count, stop_id_count, bias_count,
        list_id_count, reason_count;
    uint32_t tap_count, tap_value_count; /* of the sets' probes */
    uint32_t token_count, from_slot_count;
    bool reset; /* compute empties all slots first: it is a new session */
} plan_t;

typedef struct {
    uint64_t sequence;
    uint64_t salt;
    uint32_t tokens;
    const uint32_t *ids; /* view into the ledger */
    uint32_t ids_count;
    bool open;
} plan_lease_t;

typedef struct {
    uint64_t sequence;
    uint32_t position;
    const uint32_t *ids;
    uint32_t ids_count;
} plan_commit_t;

/* Who waits, and what of its prompt may be cached. */
typedef struct {
    uint64_t sequence;
    uint64_t salt;
    const uint32_t *ids; /* view into the ledger */
    uint32_t ids_count;
} plan_lookup_t;

typedef struct {
    uint64_t sequence;
    uint32_t tokens; /* resident */
} plan_prefix_hit_t;

/* For memory, to be sent in this order: Commit, Release, Lease, PrefixQuery. Views, valid until the next call of the planner. */
typedef struct {
    const plan_commit_t *commits;
    const uint64_t *releases;
    const plan_lease_t *leases;
    uint32_t commit_count, release_count, lease_count;
    uint64_t lease_batch;
    const plan_lookup_t *lookups;
    uint32_t lookup_count;
    uint64_t lookup_batch;
    uint64_t again_ns; /* call again then, though nothing arrives; PLANNER_NEVER */
} plan_traffic_t;

typedef struct {
    uint64_t preemptions, admissions, from_slot_runs;
} planner_counts_t;

/* A decision that was made. */
#define PLANNER_DECISIONS_MAX 1024
typedef struct {
    uint64_t now_ns, step; /* the step it was made for */
    uint64_t request;      /* 0: it is about several */
    char function[16];
    char policy[QN_NAME_MAX];
    char reason[QN_POLICY_REASON_MAX];
} planner_decision_t;

/* Borrows the batch and the policies. QN_ERR_CONFIG: an option out of range. Returns owned. */
qn_err_t planner_create(const planner_options_t *options, batch_t *batch, const policies_t *policies,
                        planner_t **ret_planner);
void planner_destroy(planner_t **planner);
/* The model's own end-of-sequence ids, added to a request's stop ids unless it ignores them. */
void planner_set_eos(planner_t *planner, const uint32_t *ids, uint32_t count);

/* Who may run from now on: a sequence's index (rule 8), PLANNER_EVERYBODY, PLANNER_NOBODY. */
void planner_set_apart(planner_t *planner, uint32_t index);
/* Builds the next plan. *ret_built is false when there is nothing to run or rule 1 forbids it. */
void planner_plan(planner_t *planner, uint64_t now_ns, plan_t *ret_plan, bool *ret_built);
/* Decides what to ask of memory and what to give back. */
void planner_traffic(planner_t *planner, uint64_t now_ns, plan_traffic_t *ret_traffic);
/* Memory answers the lookup of this number. */
void planner_prefix_hits(planner_t *planner, uint64_t lookup_batch, const plan_prefix_hit_t *hits, uint32_t count);
/* The last step that has a result, for the batching policy. */
void planner_step_took(planner_t *planner, uint32_t tokens, uint64_t ns);
/* Keeps a decision of the seat's policy that the planner was not asked for; `request` may be 0. */
void planner_record(planner_t *planner, uint64_t request, const char *function, const qn_policy_seat_t *seat,
                    uint64_t now_ns, const char *reason);
/* Decision number `at` from the newest that is about this request (0: any); NULL: no more. Returns view. */
const planner_decision_t *planner_decision(const planner_t *planner, uint64_t request, uint32_t at);
/* Memory is another one: refusals of the old one say nothing. */
void planner_memory_lost(planner_t *planner);
void planner_counts(const planner_t *planner, planner_counts_t *ret_counts);

#endif
