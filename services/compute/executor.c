/* What is this?      The executor of step plans: uploads a plan, launches the network, samples, downloads, reports.
 * State owned:       per slot, what is needed to word a report; the host's copy of the step's arrays; all else is in
 *                    the regions.
 * Must never:        allocate or check in a step (slot_book.c has checked); touch the device but through the backend.
 * Read next:         forward.c (the network), kernels/cpu/slots.c and sampler.c (the tables).
 *
 * Log-probabilities of a prompt: the logits at position p speak of the id at p + 1. Inside a chunk that id is at hand;
 * for a chunk's last token it comes with the next chunk, so its residual row is kept in `pending` until then. */
#include "services/compute/executor.h"

#include <stdlib.h>
#include <string.h>

#include "common/assert.h"

typedef struct {
    uint64_t request;
    uint32_t prompt_tokens, top_logprobs;
    bool prompt_logprobs;
    bool pending;             /* pending[slot] holds the row before the next run */
} sequence_t;

/* A prompt token's log-probability that this step computes. */
typedef struct {
    uint32_t run;             /* index in the plan */
    uint32_t row, target;     /* row of x, or slot of pending */
    uint32_t position;        /* of the target */
} prompt_row_t;

struct executor {
    const backend_t *backend;
    forward_t forward;
    scratch_t scratch;         /* on the device */
    scratch_io_t host;         /* the host's copy of scratch.io, in host_memory */
    void *host_memory;
    step_limits_t limits;
    sequence_t *sequences;     /* [slots] */
    prompt_row_t *prompt_rows; /* [T] */
    uint32_t logits_rows;
};

/* `count` elements of `bytes` each; in stream order. */
static void upload(const executor_t *self, void *to, const void *from, size_t count, size_t bytes)
{
    if (count) self->backend->upload(self->forward.stream, to, from, count * bytes);
}

static void download(const executor_t *self, void *to, const void *from, size_t count, size_t bytes)
{
    if (count) self->backend->download(self->forward.stream, to, from, count * bytes);
}

/* To and from the array of the step of this name. */
#define UPLOAD(self, field, from, count) \
    upload((self), (self)->scratch.io.field, (from), (count), sizeof *(self)->scratch.io.field)
#define DOWNLOAD(self, field, count) \
    download((self), (self)->host.field, (self)->scratch.io.field, (count), sizeof *(self)->host.field)

/* What the device needs once: rope's frequencies and the experts' weights. */
static qn_err_t upload_constants(executor_t *self, const model_t *model)
{
    const qn_model_config_t *config = &model->config;
    float frequencies[QN_HEAD_DIM_MAX / 2];
    qn_rope_frequencies(&config->rope, config->head_dim, frequencies);
    upload(self, self->scratch.frequencies, frequencies, config->head_dim / 2, sizeof *frequencies);
    upload(self, self->scratch.experts, model->experts, model_expert_count(config), sizeof *model->experts);
    return self->backend->stream_wait(self->forward.stream);
}

static qn_err_t place(executor_t *self, const executor_parts_t *parts)
{
    const qn_model_config_t *config = &parts->model->config;
    scratch_sizes_t sizes;
    scratch_place(config, &parts->limits, parts->activations, parts->state, parts->step_io, &self->scratch);
    qn_err_t err = scratch_measure(config, &parts->limits, &sizes);
    if (!err) err = parts->backend->host_create(sizes.step_io_bytes, &self->host_memory);
    if (err) return err;
    scratch_place_io(&parts->limits, self->host_memory, &self->host);
    return upload_constants(self, parts->model);
}

qn_err_t executor_create(const executor_parts_t *parts, executor_t **ret_executor)
{
    executor_t *self = calloc(1, sizeof *self);
    if (!self) return qn_fail(QN_ERR_NO_MEMORY, "no memory for the executor");
    self->backend = parts->backend;
    self->limits = parts->limits;
    self->forward = (forward_t){
        .model = parts->model, .scratch = &self->scratch, .kernels = parts->kernels, .stream = parts->stream,
        .kv = parts->kv, .now_ns = parts->now_ns,
    };
    self->sequences = calloc(parts->limits.max_sequences, sizeof *self->sequences);
    self->prompt_rows = calloc(parts->limits.max_step_tokens, sizeof *self->prompt_rows);
    qn_err_t err = self->sequences && self->prompt_rows
        ? place(self, parts)
        : qn_fail(QN_ERR_NO_MEMORY, "no memory for the executor of %u slots", parts->limits.max_sequences);
    if (err) executor_destroy(&self);
    else *ret_executor = self;
    return err;
}

void executor_destroy(executor_t **executor)
{
    executor_t *self = *executor;
    if (!self) return;
    if (self->host_memory) self->backend->host_destroy(&self->host_memory);
    free(self->sequences);
    free(self->prompt_rows);
    free(self);
    *executor = NULL;
}

const float *executor_logits(const executor_t *executor, uint32_t *ret_rows)
{
    *ret_rows = executor->logits_rows;
    return executor->scratch.logits;
}

static void launch(const executor_t *self, qn_op_t op, const void *arguments)
{
    qn_launch(&self->forward.kernels, op, self->forward.stream, arguments);
}

/* ---- the slot tables ---- */

static void start_of(const step_set_t *set, qn_slot_start_t *ret_start)
{
    const step_sampling_t *from = &set->sampling;
    bool penalties = from->repetition_penalty != 1 || from->presence_penalty != 0 || from->frequency_penalty != 0;
    *ret_start = (qn_slot_start_t){
        .slot = set->slot, .stop_offset = set->stop_offset, .bias_offset = set->bias_offset,
        .history_offset = set->history_offset, .history_count = set->history_count,
        .row = {
            .seed = from->seed, .prompt_tokens = set->prompt_tokens, .top_k = from->top_k,
            .min_tokens = from->min_tokens, .stop_count = set->stop_count, .bias_count = set->bias_count,
            .temperature = from->temperature, .top_p = from->top_p, .min_p = from->min_p,
            .repetition_penalty = from->repetition_penalty, .presence_penalty = from->presence_penalty,
            .frequency_penalty = from->frequency_penalty, .logprobs = from->logprobs,
            .top_logprobs = (uint8_t)from->top_logprobs, .penalties = penalties,
        },
    };
}

static void start_slots(executor_t *self, const step_plan_t *plan)
{
    for (uint32_t i = 0; i < plan->set_count; i++) {
        const step_set_t *set = &plan->sets[i];
        start_of(set, &self->host.starts[i]);
        self->sequences[set->slot] = (sequence_t){
            .request = set->request, .prompt_tokens = set->prompt_tokens,
            .top_logprobs = step_smaller(set->sampling.top_logprobs, self->limits.vocab),
            .prompt_logprobs = set->sampling.prompt_logprobs };
    }
    UPLOAD(self, starts, self->host.starts, plan->set_count);
}

static void update_tables(executor_t *self, const step_plan_t *plan)
{
    const scratch_io_t *io = &self->scratch.io;
    UPLOAD(self, retire, plan->retire, plan->retire_count);
    UPLOAD(self, entries, plan->blocks, plan->block_count);
    UPLOAD(self, copies, plan->copies, plan->copy_count);
    UPLOAD(self, ids, plan->ids, plan->id_count);
    UPLOAD(self, stop_ids, plan->stop_ids, plan->stop_id_count);
    UPLOAD(self, bias, plan->bias, plan->bias_count);
    start_slots(self, plan);
    launch(self, QN_OP_SLOT_UPDATE, &(qn_slot_update_t){
        .tables = self->scratch.tables, .retire = io->retire, .retire_count = plan->retire_count,
        .starts = io->starts, .start_count = plan->set_count, .entries = io->entries,
        .entry_count = plan->block_count, .ids = io->ids, .stop_ids = io->stop_ids, .bias = io->bias });
    launch(self, QN_OP_BLOCK_COPY, &(qn_block_copy_args_t){
        .kv = self->forward.kv, .copies = io->copies, .copy_count = plan->copy_count });
}

/* ---- the network ---- */

static forward_batch_t make_runs(executor_t *self, const step_plan_t *plan)
{
    const scratch_io_t *host = &self->host;
    forward_batch_t batch = { 0 };
    for (uint32_t i = 0; i < plan->run_count; i++) {
        const step_run_t *from = &plan->runs[i];
        qn_run_t run = { .slot = from->slot, .position = from->position, .tokens = from->tokens,
                         .first = batch.tokens, .ids_offset = from->ids_offset, .from_slot = from->from_slot };
        host->runs[i] = run;
        if (run.tokens == 1) host->decode_runs[batch.decode_runs++] = run;
        else host->prefill_runs[batch.prefill_runs++] = run;
        batch.tokens += run.tokens;
    }
    UPLOAD(self, runs, host->runs, plan->run_count);
    UPLOAD(self, decode_runs, host->decode_runs, batch.decode_runs);
    UPLOAD(self, prefill_runs, host->prefill_runs, batch.prefill_runs);
    return batch;
}

static void run_network(executor_t *self, const step_plan_t *plan, step_result_t *result)
{
    const scratch_t *s = &self->scratch;
    forward_batch_t batch = make_runs(self, plan);
    result->run_tokens = batch.tokens;
    if (!batch.tokens) return;
    launch(self, QN_OP_STEP_INPUT, &(qn_step_input_t){
        .tables = s->tables, .runs = s->io.runs, .run_count = plan->run_count, .ids = s->io.ids,
        .block_tokens = self->limits.block_tokens, .ret_ids = s->token_ids, .ret_positions = s->positions,
        .ret_lengths = s->lengths, .ret_kv_rows = s->kv_rows });
    forward_layers(&self->forward, &batch, &result->times);
}

/* ---- log-probabilities of the prompt ---- */

/* Lists the prompt tokens whose logits are known now. `from_pending` chooses between the two sources of rows. */
static uint32_t list_prompt_rows(executor_t *self, const step_plan_t *plan, bool from_pending)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < plan->run_count; i++) {
        const step_run_t *run = &plan->runs[i];
        const sequence_t *sequence = &self->sequences[run->slot];
        if (!sequence->prompt_logprobs || run->from_slot) continue;
        const uint32_t *ids = plan->ids + run->ids_offset;
        if (from_pending) {
            if (sequence->pending && run->position < sequence->prompt_tokens)
                self->prompt_rows[count++] = (prompt_row_t){ i, run->slot, ids[0], run->position };
            continue;
        }
        for (uint32_t t = 1; t < run->tokens && run->position + t < sequence->prompt_tokens; t++)
            self->prompt_rows[count++] =
                (prompt_row_t){ i, self->host.runs[i].first + t - 1, ids[t], run->position + t };
    }
    return count;
}

/* Computes `count` listed rows, R at a time, and lists them in the result; their log-probabilities and alternatives
 * are still on the device, in this order. */
static void compute_prompt_rows(executor_t *self, const step_plan_t *plan, const float *source, uint32_t count,
                                step_result_t *result)
{
    const scratch_io_t *host = &self->host, *io = &self->scratch.io;
    for (uint32_t done = 0, rows; done < count; done += rows) {
        rows = step_smaller(count - done, self->scratch.logit_rows);
        uint32_t base = result->prompt_count;
        for (uint32_t i = 0; i < rows; i++) {
            const prompt_row_t *row = &self->prompt_rows[done + i];
            const sequence_t *sequence = &self->sequences[plan->runs[row->run].slot];
            host->rows[i] = row->row;
            host->targets[i] = row->target;
            host->top_counts[i] = sequence->top_logprobs;
            result->prompt[result->prompt_count++] = (step_prompt_token_t){
                .request = sequence->request, .position = row->position, .id = row->target,
                .top_count = sequence->top_logprobs };
        }
        UPLOAD(self, rows, host->rows, rows);
        UPLOAD(self, targets, host->targets, rows);
        UPLOAD(self, top_counts, host->top_counts, rows);
        forward_logits(&self->forward, source, io->rows, rows, &result->times);
        self->logits_rows = rows;
        launch(self, QN_OP_LOGPROBS, &(qn_logprobs_t){
            .logits = self->scratch.logits, .targets = io->targets, .top_counts = io->top_counts, .rows = rows,
            .vocab = self->limits.vocab, .ret_logprobs = io->logprobs + base,
            .ret_top = io->prompt_top + (size_t)base * QN_TOP_LOGPROBS_MAX });
    }
}

/* The last row of a chunk that ends inside the prompt waits for its target. */
static void keep_pending(executor_t *self, const step_plan_t *plan)
{
    const scratch_t *s = &self->scratch;
    uint32_t width = self->forward.model->config.hidden;
    for (uint32_t i = 0; i < plan->run_count; i++) {
        const step_run_t *run = &plan->runs[i];
        sequence_t *sequence = &self->sequences[run->slot];
        if (!sequence->prompt_logprobs) continue;
        sequence->pending = run->position + run->tokens < sequence->prompt_tokens;
        if (!sequence->pending) continue;
        self->host.rows[0] = self->host.runs[i].first + run->tokens - 1;
        UPLOAD(self, rows, self->host.rows, 1);
        launch(self, QN_OP_GATHER_ROWS, &(qn_gather_rows_t){
            .x = s->x, .rows = s->io.rows, .row_count = 1, .width = width,
            .out = s->pending + (size_t)run->slot * width });
    }
}

static void compute_prompts(executor_t *self, const step_plan_t *plan, step_result_t *result)
{
    compute_prompt_rows(self, plan, self->scratch.pending, list_prompt_rows(self, plan, true), result);
    compute_prompt_rows(self, plan, self->scratch.x, list_prompt_rows(self, plan, false), result);
    keep_pending(self, plan);
    DOWNLOAD(self, logprobs, result->prompt_count);
    DOWNLOAD(self, prompt_top, (size_t)result->prompt_count * QN_TOP_LOGPROBS_MAX);
}

/* ---- sampling ---- */

static uint32_t list_samples(executor_t *self, const step_plan_t *plan)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < plan->run_count; i++) {
        const step_run_t *run = &plan->runs[i];
        if (!run->sample) continue;
        self->host.samples[count++] = (qn_sample_t){ .slot = run->slot, .position = run->position + run->tokens };
    }
    UPLOAD(self, samples, self->host.samples, count);
    return count;
}

static void fill_sample_rows(executor_t *self, const step_plan_t *plan, uint32_t first, uint32_t rows)
{
    const scratch_io_t *host = &self->host;
    for (uint32_t i = 0, sample = 0; i < plan->run_count && sample < first + rows; i++) {
        if (!plan->runs[i].sample) continue;
        if (sample >= first) host->rows[sample - first] = host->runs[i].first + host->runs[i].tokens - 1;
        sample++;
    }
    UPLOAD(self, rows, host->rows, rows);
}

static void compute_samples(executor_t *self, const step_plan_t *plan, uint32_t count, step_result_t *result)
{
    const scratch_t *s = &self->scratch;
    for (uint32_t done = 0, rows; done < count; done += rows) {
        rows = step_smaller(count - done, s->logit_rows);
        fill_sample_rows(self, plan, done, rows);
        forward_logits(&self->forward, s->x, s->io.rows, rows, &result->times);
        self->logits_rows = rows;
        uint64_t begin_ns = self->forward.now_ns();
        launch(self, QN_OP_SAMPLER, &(qn_sampler_t){
            .tables = s->tables, .samples = s->io.samples + done, .sample_count = rows, .logits = s->logits,
            .scratch = s->sampler, .ret_results = s->io.results + done,
            .ret_top = s->io.sample_top + (size_t)done * QN_TOP_LOGPROBS_MAX });
        result->times.sample_ns += self->forward.now_ns() - begin_ns;
    }
    DOWNLOAD(self, results, count);
    DOWNLOAD(self, sample_top, (size_t)count * QN_TOP_LOGPROBS_MAX);
}

/* ---- the report ---- */

static void add_top(step_result_t *result, const qn_top_entry_t *from, uint32_t count)
{
    memcpy(result->top + result->top_count, from, count * sizeof *from);
    result->top_count += count;
}

static void report_samples(executor_t *self, uint32_t count, step_result_t *result)
{
    const scratch_io_t *host = &self->host;
    for (uint32_t i = 0; i < count; i++) {
        const qn_sample_result_t *from = &host->results[i];
        const sequence_t *sequence = &self->sequences[host->samples[i].slot];
        uint32_t top = from->masked ? 0 : sequence->top_logprobs;
        result->tokens[result->token_count++] = (step_token_t){
            .request = sequence->request, .slot = host->samples[i].slot, .position = host->samples[i].position,
            .id = from->id, .logprob = from->logprob, .top_count = top, .stopped = from->stopped,
            .masked = from->masked };
        add_top(result, host->sample_top + (size_t)i * QN_TOP_LOGPROBS_MAX, top);
    }
}

static void report_prompts(const executor_t *self, step_result_t *result)
{
    for (uint32_t i = 0; i < result->prompt_count; i++) {
        result->prompt[i].logprob = self->host.logprobs[i];
        add_top(result, self->host.prompt_top + (size_t)i * QN_TOP_LOGPROBS_MAX, result->prompt[i].top_count);
    }
}

qn_err_t executor_run(executor_t *self, const step_plan_t *plan, step_result_t *result)
{
    result->step = plan->step;
    result->times = (step_times_t){ 0 };
    result->run_tokens = result->token_count = result->prompt_count = result->top_count = 0;
    result->begin_ns = self->forward.now_ns();
    update_tables(self, plan);
    run_network(self, plan, result);
    compute_prompts(self, plan, result);
    uint32_t samples = list_samples(self, plan);
    compute_samples(self, plan, samples, result);
    qn_err_t err = self->backend->stream_wait(self->forward.stream);
    if (err) return err;
    report_samples(self, samples, result);
    report_prompts(self, result);
    result->end_ns = self->forward.now_ns();
    return QN_OK;
}
