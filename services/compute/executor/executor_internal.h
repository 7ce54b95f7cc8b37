/* The executor's inside, shared by executor*.c alone. */
#ifndef QN_COMPUTE_EXECUTOR_EXECUTOR_INTERNAL_H
#define QN_COMPUTE_EXECUTOR_EXECUTOR_INTERNAL_H

#include <stdatomic.h>

#include "services/compute/executor/executor.h"

#define EXECUTOR_STEPS_MAX 2 /* in flight: one runs, one waits behind it on the device */
#define EXECUTOR_GRAPHS_MAX 24
#define EXECUTOR_STAMPS_MAX (2 * QN_LAYERS_MAX + 64)
#define EXECUTOR_SAMPLE_EVERY 64

/* What the executor keeps of the sequence that a slot has. */
typedef struct {
    uint64_t request;
    uint32_t prompt_tokens, top_logprobs, logprob_ids; /* how many of each a report has */
    uint32_t resident; /* positions that have been launched, and so are in the cache when the stream is there */
    bool prompt_logprobs;
    bool pending;       /* pending[slot] holds the row before the next run */
    void *probe_memory; /* owned; what `probe` views. NULL: no probe */
    qn_probe_t probe;
    uint64_t probe_group; /* of those that share a pass; 0: alone */
} slot_owner_t;

/* A prompt token's log-probability that a step computes. */
typedef struct {
    uint32_t run;         /* index in the plan */
    uint32_t row, target; /* row of x, or slot of pending */
    uint32_t position;    /* of the target */
} prompt_row_t;

/* What the report says of a sample before it is known; slots may have other sequences by then. */
typedef struct {
    uint64_t request;
    uint32_t slot, position, alternatives;
} sample_t;

/* A step between submission and report. */
typedef struct {
    scratch_in_t in;   /* the host's arrays of the step; the device reads their head by itself */
    scratch_out_t out; /* what the device writes */
    void *in_memory, *out_memory;
    backend_mark_t *begin; /* passed when its launches may start */
    backend_mark_t *end;   /* passed when all of the step is done */
    step_result_t *result;
    sample_t *samples; /* [slots] */
    uint32_t sample_count;
    uint64_t *readers; /* [slots]: requests whose counts are in out.kv_read */
    uint32_t reader_count;
} ticket_t;

/* Marks between the parts of a step that is sampled. */
typedef struct {
    atomic_bool wanted;     /* set by the loop */
    const ticket_t *ticket; /* of the step that is sampled; NULL: none is */
    uint32_t count;
    backend_mark_t *marks[EXECUTOR_STAMPS_MAX];
    uint64_t *sums[EXECUTOR_STAMPS_MAX]; /* in the step's result: what the time before the mark is added to */
} stamps_t;

/* The decode step of one batch size. */
typedef struct {
    bool warm;                                   /* ran once launch by launch: libraries have chosen their algorithms */
    backend_graph_t *graphs[EXECUTOR_STEPS_MAX]; /* then recorded, for each ticket: results go to its memory */
} decode_graph_t;

struct executor {
    const backend_t *backend;
    forward_t forward;
    scratch_t scratch;        /* on the device */
    const scratch_in_t *host; /* of the step that is being submitted: its ticket's */
    step_limits_t limits;
    slot_owner_t *owners;      /* [slots] */
    prompt_row_t *prompt_rows; /* [T] */
    uint32_t logits_rows;
    uint32_t probed_slots;         /* that have a probe */
    step_run_t *pass_runs;         /* [slots]: the runs of one pass */
    bool *pass_done;               /* [slots]: by run of the plan */
    const qn_mapping_t *workspace; /* borrowed; NULL: none */
    bool workspace_pinned;         /* from its first use on */
    bool token_by_token;           /* attention over chunks */
    uint64_t (*now_ns)(void);
    uint64_t submitted, finished;
    ticket_t tickets[EXECUTOR_STEPS_MAX];
    decode_graph_t graphs[EXECUTOR_GRAPHS_MAX];
    stamps_t stamps;
};

/* `count` elements of `bytes` each; in stream order. */
static inline void executor_upload(const executor_t *self, void *to, const void *from, size_t count, size_t bytes)
{
    if (count) self->backend->upload(self->forward.stream, to, from, count * bytes);
}

/* To the array of the step of this name. */
#define UPLOAD(self, field, from, count) \
    executor_upload((self), (self)->scratch.in.field, (from), (count), sizeof *(self)->scratch.in.field)

static inline void executor_launch(const executor_t *self, qn_op_t op, const void *arguments)
{
    qn_launch(&self->forward.kernels, op, self->forward.stream, arguments);
}

/* executor_prompts.c: launches the log-probabilities of prompt tokens that are known in this step and lists them in the
 * result. Later, adds what came back. */
void executor_compute_prompts(executor_t *self, const step_plan_t *plan, ticket_t *ticket);
void executor_report_prompts(const ticket_t *ticket);

/* executor_decode.c: the first launch of a pass: its arrays, and ids, positions and rows of the cache of `runs` runs. */
void executor_enter_step(executor_t *self, const forward_batch_t *batch, uint32_t runs, uint32_t samples);
/* Launches the network and the sampler for the pass's runs and `samples`, which the host's arrays hold
 * already. Row i of x, or rows[i] unless NULL, gives the pass's sample i: the last of the ticket's. */
void executor_run_network(executor_t *self, const forward_batch_t *batch, uint32_t runs, uint32_t samples,
                          step_times_t *times);
void executor_compute_samples(executor_t *self, ticket_t *ticket, uint32_t count, const uint32_t *rows,
                              step_times_t *times);
/* Whether `plan` is what a recorded step can do: each run one token that is sampled. */
bool executor_is_plain_decode(const executor_t *self, const step_plan_t *plan, const forward_batch_t *batch);
/* Fills the host's arrays up with runs of the null slot, to the size of a recorded step. */
void executor_fill_up(executor_t *self, uint32_t runs);
/* Network and sampler in one, of that size; recorded when it comes the second time. */
void executor_run_decode(executor_t *self, ticket_t *ticket, uint32_t runs);

void executor_destroy_graphs(executor_t *self);

/* executor_stamps.c: around the launches of a step; before the first, after the last, and when it is done. */
void executor_begin_stamps(executor_t *self, ticket_t *ticket);
void executor_end_stamps(executor_t *self);
void executor_read_stamps(executor_t *self, const ticket_t *ticket);
void executor_destroy_stamps(executor_t *self);
/* executor_probe.c: a slot's probe begins with its set, and ends with it. */
void executor_start_probe(executor_t *self, const step_set_t *set);
void executor_end_probe(executor_t *self, uint32_t slot);
/* Runs the plan in passes: what has no probe as ever, then what may share masks together, then each of the others. For
 * plans with a slot that has a probe. */
void executor_run_passes(executor_t *self, const step_plan_t *plan, ticket_t *ticket);
/* Of a pass with a probe: what taps read of the last norm and of the logits. */
void executor_tap_outputs(executor_t *self);
void executor_report_reads(const ticket_t *ticket);
/* Before the first copy into the workspace: a failure only makes copies slow, and is said once. */
void executor_pin_workspace(executor_t *self);
/* What a pass with this probe has on the device. */
void executor_upload_probe(executor_t *self, const qn_probe_t *probe);
/* executor.c: a chunk as runs of one token each, after those of the chunks before it. */
void executor_list_tokens(executor_t *self, const qn_run_t *chunk, forward_batch_t *batch);
/* executor.c: launches the runs of a plan, or of a part of it. */
void executor_run_pass(executor_t *self, const step_plan_t *plan, ticket_t *ticket);

/* Appends to the result's alternatives. */
static inline void executor_add_top(step_result_t *result, const qn_top_entry_t *from, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        result->top[result->top_count++] = from[i];
}

#endif
