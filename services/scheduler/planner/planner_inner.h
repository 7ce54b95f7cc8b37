/* What planner_step.c and planner_traffic.c share. Not for others. */
#ifndef QN_SCHEDULER_PLANNER_PLANNER_INNER_H
#define QN_SCHEDULER_PLANNER_PLANNER_INNER_H

#include "services/scheduler/planner/planner.h"
#include "qn_limits.h"

/* Ids in one plan: what fits a frame with room for the rest (histories of many sequences after a restart of compute are
 * spread over several plans). */
#define PLAN_IDS_MAX (1u << 20)
#define PLAN_BLOCKS_MAX (1u << 18)
/* Ids of one Lease; at least one sequence always fits. */
#define LEASE_IDS_MAX (2u << 20)
#define ADMISSION_RETRY_NS 5000000ull

#define PREFIX_AGAIN_NS 1000000000ull
#define PREFIX_WAIT_NS 2000000ull
/* Ids of one PrefixQuery; at least one sequence always fits. */
#define LOOKUP_IDS_MAX (1u << 20)

/* What memory said of the prompt of a waiting request. */
typedef struct {
    uint64_t request; /* another one in its place knows nothing */
    uint64_t asked_ns;
    uint32_t tokens;
} planner_prefix_t;

struct planner {
    planner_options_t options;
    batch_t *batch;
    policies_t policies; /* borrowed */
    uint32_t eos_ids[PLANNER_EOS_MAX];
    uint32_t eos_count;

    plan_t plan;                                /* its views are these: */
    uint32_t *retire;                           /* [slots] */
    plan_set_t *sets;                           /* [slots] */
    plan_block_t *blocks;                       /* [PLAN_BLOCKS_MAX] */
    plan_copy_t *copies;                        /* [slots] */
    plan_run_t *runs;                           /* [slots] */
    uint32_t *ids;                              /* [PLAN_IDS_MAX] */
    uint32_t *stop_ids;                         /* [slots * QN_SLOT_STOP_IDS_MAX] */
    request_bias_t *bias;                       /* [QN_STEP_PLAN_BIAS_MAX] */
    uint32_t *list_ids;                         /* [QN_STEP_PLAN_LIST_IDS_MAX] */
    char (*reasons)[QN_POLICY_REASON_MAX];      /* of the plan [PLANNER_REASONS_MAX] */
    char (*next_reasons)[QN_POLICY_REASON_MAX]; /* gathered for the next one */
    uint32_t next_reason_count, reasons_dropped;

    uint32_t *tokens_of_slot;       /* [slots] */
    qn_policy_sequence_t *view;     /* [requests_max] */
    qn_policy_part_t *parts;        /* [slots] */
    qn_policy_part_t *shadow_parts; /* [slots] */
    qn_policy_admit_t admit;

    plan_commit_t *commits; /* [QN_LEASE_ITEMS_MAX] */
    uint64_t *releases;     /* [QN_LEASE_ITEMS_MAX] */
    plan_lease_t *leases;   /* [QN_LEASE_ITEMS_MAX] */
    uint64_t last_lease_batch;
    bool admission_blocked;
    bool yielding;                  /* blocks of an orphan are on their way back for somebody who waits */
    uint64_t blocked_release_count; /* of the batch, when it was blocked */
    uint64_t seen_refusals;         /* of the batch */
    uint64_t retry_ns;
    uint32_t apart; /* rule 8 */
    planner_counts_t counts;

    plan_lookup_t *lookups;                             /* [QN_PREFIX_QUERY_ITEMS_MAX] */
    planner_prefix_t *prefixes;                         /* [requests_max] */
    uint64_t last_lookup_batch, open_lookup, lookup_ns; /* open_lookup: not answered since lookup_ns; 0 = none */
    bool lookup_first;                                  /* somebody of the open one was never asked about */
    uint32_t last_tokens;                               /* of the last step that has a result */
    uint64_t last_ns;
    planner_decision_t *decisions; /* [PLANNER_DECISIONS_MAX], a ring */
    uint64_t decision_count;
};

/* Keeps the words of a decision for the next plan. */
void planner_note(planner_t *planner, const char *reason);
/* The same for a decision of a policy, which is recorded, too. */
void planner_decide(planner_t *planner, uint64_t request, const char *function, const qn_policy_seat_t *seat,
                    uint64_t now_ns, const char *reason);
/* Rule 10. */
void planner_add_lookups(planner_t *planner, plan_traffic_t *traffic, uint64_t now_ns);
/* The live policy is not asked before memory has answered. Sets *again_ns: when it is asked all the same. */
bool planner_awaits_prefixes(const planner_t *planner, uint64_t now_ns, uint64_t *again_ns);
/* What is known of the cached prefix of a sequence that waits. */
uint32_t planner_prefix_of(const planner_t *planner, const request_t *request);
/* One sequence as policies see it. */
void planner_show(const planner_t *planner, const sequence_t *sequence, qn_policy_sequence_t *ret_shown);
/* The numbers of a view around planner->view[count]. */
qn_policy_view_t planner_view(const planner_t *planner, uint64_t now_ns, uint32_t count);
/* Tokens known that are neither written nor planned, and that will be run. */
uint32_t planner_prefill_tokens(const sequence_t *sequence);
/* Tokens to lease for: what is known or planned and some headroom, never past the run limit. */
uint32_t planner_lease_tokens(const planner_t *planner, const sequence_t *sequence);

#endif
