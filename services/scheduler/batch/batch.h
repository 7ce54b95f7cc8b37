/* The batch: what each request of the ledger is doing now. Which slot it has, which blocks, how far it is planned and
 * how far that is proven. All of this is lost with the process and rebuilt from the ledger: everybody waits again.
 *
 *             admit                grant                    end, preempt
 *   WAITING --------> LEASING ---------------> RUNNING ---------------------> RETIRING ---> NONE (may be forgotten)
 *      ^                 | short, unknown         |  lease unknown                |
 *      '-----------------+------------------------+-------------------------------' preempted: all its blocks are back
 *
 * Positions (absolute): committed <= proven <= planned. [0, proven) is written, a StepResult said so. [proven,
 * planned) is in plans without a result. `planned` exceeds the known tokens by at most one: that input comes from
 * the slot. A sequence gives its slot up when it retires (the next plan may use the slot: plans run in order), its
 * blocks when the last plan that runs it has its result: nothing may write a block that memory could give to
 * somebody else.
 *
 * The fields are open to the planner and to tests; only batch.c and batch_result.c write them. Not thread-safe; no
 * clock; allocates in create and configure only. */
#ifndef QN_SCHEDULER_BATCH_BATCH_H
#define QN_SCHEDULER_BATCH_BATCH_H

#include "common/err.h"
#include "services/scheduler/ledger/ledger.h"
#include "services/scheduler/request.h"

#define BATCH_NO_SLOT UINT32_MAX
#define BATCH_NOBODY UINT32_MAX
#define BATCH_STEPS_MAX 2 /* plans without a result: 1 + lookahead */

typedef enum {
    SEQUENCE_NONE = 0,
    SEQUENCE_WAITING,
    SEQUENCE_LEASING,
    SEQUENCE_RUNNING,
    SEQUENCE_RETIRING,
} sequence_phase_t;

typedef struct {
    request_t *request; /* borrowed from the ledger; NULL when phase is NONE */
    sequence_phase_t phase;
    uint32_t slot;        /* LEASING and RUNNING, else BATCH_NO_SLOT */
    uint32_t block_count; /* granted: entries of its row of batch.tables */
    uint32_t blocks_sent; /* of those, known to compute */
    uint32_t planned, proven, committed;
    uint32_t lease_tokens; /* asked for */
    uint64_t lease_batch;  /* the Lease that is not answered; 0 = none */
    uint64_t last_step;    /* last plan that runs it */
    uint32_t retiring_at;  /* its place in batch.retiring */
    uint32_t copy_from;    /* with `copies`: the block to be copied into that of the token at copied_tokens */
    uint32_t copied_tokens;
    bool copies;          /* rows of a clone go into its first block of its own (block_pool.h, rule 13) */
    bool shared;          /* opened with ids: may have prefix hits */
    bool slot_set;        /* compute knows its slot */
    bool short_of_blocks; /* its last extension was refused; cleared when blocks come back */
    bool requeue;         /* RETIRING: waits again afterwards */
} sequence_t;

typedef struct {
    uint32_t index; /* of the sequence */
    uint32_t slot;
    uint32_t position, token_count;
    uint32_t first; /* tokens of the step before its own; filled in by batch_step_run */
    bool from_slot, sample;
} batch_run_t;

typedef struct {
    uint64_t step;
    uint64_t sent_ns;
    uint32_t run_count;
    uint32_t token_count;
    batch_run_t *runs; /* [slot_count], by slot */
} batch_step_t;

typedef struct {
    ledger_t *ledger; /* borrowed */
    uint32_t slot_count;
    sequence_t *sequences; /* [requests_max], by ledger index */
    uint32_t *slot_owner;  /* [slot_count]: sequence index or BATCH_NOBODY */
    bool *slot_live;       /* [slot_count]: compute holds something there */
    uint32_t free_slots;
    uint32_t *retiring; /* [requests_max]: indices */
    uint32_t waiting_count, leasing_count, running_count, retiring_count;

    uint32_t block_tokens, total_blocks, table_max, vocab_size; /* 0 until configured */
    uint32_t *tables;                                           /* [slot_count, table_max] */
    uint32_t available_blocks;                                  /* free or evictable, as of the last grant */

    batch_step_t steps[BATCH_STEPS_MAX]; /* without a result, oldest first */
    uint32_t step_count;
    uint64_t last_step;     /* given out */
    uint64_t void_step;     /* results up to this one mean nothing: compute or memory was replaced */
    uint32_t session;       /* of plans that build on each other's slots: begins anew with empty slots */
    bool session_open;      /* its first plan was made */
    uint64_t release_count; /* grows when blocks of an ended sequence come back */
    uint64_t open_refusals; /* grows when memory refuses to open a lease */
    uint64_t left_lease;    /* the last Lease that somebody is in who has left it unanswered; 0 = all are answered */

    /* Of the last result. */
    uint32_t *changed; /* [2 * slot_count]: sequences with new tokens, prompt scores, or an end; may repeat */
    uint32_t changed_count;
    uint32_t masked_count;
    batch_step_t last;        /* its step; runs as above */
    uint32_t *run_of_slot;    /* scratch */
    uint32_t *run_of_request; /* scratch [requests_max] */
    bool *seen;               /* scratch [QN_STEP_TOKENS_MAX]: prompt scores of the step's tokens */
    ledger_token_t *tokens;   /* scratch [slot_count] */
} batch_t;

typedef struct {
    uint64_t request;
    uint32_t slot, position, id;
    float logprob;
    uint8_t top_count;
    bool stopped, masked;
} batch_token_t;

typedef struct {
    uint64_t request;
    uint32_t position, id;
    float logprob;
    uint8_t top_count;
} batch_prompt_token_t;

/* StepResult; all pointers borrowed for the call. `top`: of tokens, then of prompt, in order. */
typedef struct {
    uint64_t step, begin_ns, end_ns;
    uint64_t taken_ns; /* it arrived; scheduler_result fills it in */
    const batch_token_t *tokens;
    const batch_prompt_token_t *prompt;
    const request_alternative_t *top;
    uint32_t token_count, prompt_count, top_count;
} batch_result_t;

/* Values of GrantOutcome (schemas/grant.fbs). */
typedef enum { BATCH_GRANTED = 0, BATCH_SHORT = 1, BATCH_UNKNOWN = 2, BATCH_ALREADY_OPEN = 3 } batch_grant_outcome_t;

typedef struct {
    uint64_t lease_batch;
    uint64_t sequence;
    uint32_t first_block, block_count, cached_tokens;
    const uint32_t *blocks; /* borrowed */
    bool copies;            /* cached_tokens ends inside a block, into which block copy_from is to be copied */
    uint32_t copy_from;
    batch_grant_outcome_t outcome;
} batch_grant_t;

/* `slot_count` 1 .. QN_SLOTS_MAX. Adds every request of the ledger. Returns owned. */
qn_err_t batch_create(ledger_t *ledger, uint32_t slot_count, batch_t **ret_batch);
void batch_destroy(batch_t **batch);
/* Sizes of the KV pool and the model; only while no sequence holds or asks for blocks. */
qn_err_t batch_configure(batch_t *batch, uint32_t block_tokens, uint32_t total_blocks, uint32_t tokens_max,
                         uint32_t vocab_size);

/* A request waits; one that has finished stays settled. */
void batch_add(batch_t *batch, request_t *request);
/* Its request has finished: retires it when it holds anything. */
void batch_end(batch_t *batch, uint32_t index);
/* RUNNING: gives its blocks back, then waits again. */
void batch_preempt(batch_t *batch, uint32_t index);
/* WAITING: takes a free slot, asks for `tokens`. */
void batch_lease_open(batch_t *batch, uint32_t index, uint32_t tokens, uint64_t lease_batch);
/* RUNNING: asks for room for `tokens` in all. */
void batch_lease_extend(batch_t *batch, uint32_t index, uint32_t tokens, uint64_t lease_batch);
/* An answer of memory. Answers that nobody waits for any more are ignored. QN_ERR_PEER: it does not fit the lease; the
 * sequence gives back all it has and waits again. */
qn_err_t batch_grant(batch_t *batch, const batch_grant_t *grant);
/* Everybody that holds or asks for blocks gives them back, then waits again. */
void batch_give_back(batch_t *batch);
/* Blocks that are free or evictable, as memory said with its last grant. */
void batch_available(batch_t *batch, uint32_t blocks);
/* Whether the retiring sequence's blocks may go back now. */
bool batch_releasable(const batch_t *batch, uint32_t index);
/* RETIRING and releasable: its blocks went back; it waits again or is settled. */
void batch_released(batch_t *batch, uint32_t index);
/* Blocks may have come back: who was refused may ask again. */
void batch_forget_shortage(batch_t *batch);
/* Up to where its KV may be committed: full blocks that will never be written again. */
uint32_t batch_committable(const batch_t *batch, uint32_t index);
/* Up to where its KV is written for good, to the last token. */
uint32_t batch_written(const batch_t *batch, uint32_t index);
/* Whether the plan that sets its slot has to copy rows first: no step that did has its result. */
bool batch_must_copy(const sequence_t *sequence);
/* Commits up to `position` were sent to memory. */
void batch_committed(batch_t *batch, uint32_t index, uint32_t position);

/* Whether the plan in the making is the first of its session. */
bool batch_opens_session(batch_t *batch);
/* A plan in the making: begins with the next step number; runs are added in order of slots. */
batch_step_t *batch_step_begin(batch_t *batch, uint64_t now_ns);
void batch_step_run(batch_t *batch, batch_step_t *step, const batch_run_t *run);
/* Compute was (or will be, with this plan) told of the slot and the first `blocks` entries of its table. */
void batch_slot_told(batch_t *batch, uint32_t index, uint32_t blocks);
void batch_slot_retired(batch_t *batch, uint32_t slot);

/* The result of the oldest step: tokens enter the ledger, ends are found, batch.changed names who changed. Results of
 * voided steps are ignored (changed_count is 0, batch.last.step 0). QN_ERR_PEER: it does not fit the plan;
 * nothing changed. */
qn_err_t batch_result(batch_t *batch, const batch_result_t *result);

/* Compute is another one, or has lost its slot tables: whatever has no result is planned again, in a new session that
 * begins with empty slots. KV is where it was. */
void batch_compute_lost(batch_t *batch);
/* Memory is another one: all leases are void, everybody waits again. */
void batch_memory_lost(batch_t *batch);

/* Tokens the sequence's blocks hold. */
static inline uint32_t batch_capacity(const batch_t *batch, const sequence_t *sequence)
{
    return sequence->block_count * batch->block_tokens;
}
static inline uint32_t *batch_table(const batch_t *batch, const sequence_t *sequence)
{
    return batch->tables + (size_t)sequence->slot * batch->table_max;
}

/* Verifies all invariants: NULL, or a static text that names the broken one. */
const char *batch_check(const batch_t *batch);

#endif
