/* What is this?      The executor of step plans: stages a plan for the device, launches the network, samples, reports.
 * State owned:       per slot, what is needed to word a report; all else is in the regions.
 * Must never:        allocate or check in a step (slot_book.c has checked); read device tables of a running step.
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
    forward_t forward;
    scratch_t scratch;
    step_limits_t limits;
    sequence_t *sequences;     /* [slots] */
    prompt_row_t *prompt_rows; /* [T] */
    uint32_t logits_rows;
};

qn_err_t executor_create(const executor_parts_t *parts, executor_t **ret_executor)
{
    executor_t *self = calloc(1, sizeof *self);
    if (self) {
        self->sequences = calloc(parts->limits.max_sequences, sizeof *self->sequences);
        self->prompt_rows = calloc(parts->limits.max_step_tokens, sizeof *self->prompt_rows);
    }
    if (!self || !self->sequences || !self->prompt_rows) {
        executor_destroy(&self);
        return qn_fail(QN_ERR_NO_MEMORY, "no memory for the executor of %u slots", parts->limits.max_sequences);
    }
    self->limits = parts->limits;
    const qn_model_config_t *config = &parts->model->config;
    scratch_place(config, &parts->limits, parts->activations, parts->state, parts->step_io, &self->scratch);
    qn_rope_frequencies(&config->rope, config->head_dim, self->scratch.frequencies);
    self->forward = (forward_t){
        .model = parts->model, .scratch = &self->scratch, .kernels = parts->kernels, .stream = parts->stream,
        .kv = parts->kv, .now_ns = parts->now_ns,
    };
    *ret_executor = self;
    return QN_OK;
}

void executor_destroy(executor_t **executor)
{
    if (!*executor) return;
    free((*executor)->sequences);
    free((*executor)->prompt_rows);
    free(*executor);
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

static void stage(void *to, const void *from, size_t count, size_t bytes)
{
    if (count) memcpy(to, from, count * bytes);
}

static void update_tables(executor_t *self, const step_plan_t *plan)
{
    const scratch_t *s = &self->scratch;
    stage(s->retire, plan->retire, plan->retire_count, sizeof *s->retire);
    stage(s->entries, plan->blocks, plan->block_count, sizeof *s->entries);
    stage(s->copies, plan->copies, plan->copy_count, sizeof *s->copies);
    stage(s->ids, plan->ids, plan->id_count, sizeof *s->ids);
    stage(s->stop_ids, plan->stop_ids, plan->stop_id_count, sizeof *s->stop_ids);
    stage(s->bias, plan->bias, plan->bias_count, sizeof *s->bias);
    for (uint32_t i = 0; i < plan->set_count; i++) {
        const step_set_t *set = &plan->sets[i];
        start_of(set, &s->starts[i]);
        self->sequences[set->slot] = (sequence_t){
            .request = set->request, .prompt_tokens = set->prompt_tokens,
            .top_logprobs = step_smaller(set->sampling.top_logprobs, self->limits.vocab),
            .prompt_logprobs = set->sampling.prompt_logprobs };
    }
    launch(self, QN_OP_SLOT_UPDATE, &(qn_slot_update_t){
        .tables = s->tables, .retire = s->retire, .retire_count = plan->retire_count, .starts = s->starts,
        .start_count = plan->set_count, .entries = s->entries, .entry_count = plan->block_count, .ids = s->ids,
        .stop_ids = s->stop_ids, .bias = s->bias });
    launch(self, QN_OP_BLOCK_COPY, &(qn_block_copy_args_t){
        .kv = self->forward.kv, .copies = s->copies, .copy_count = plan->copy_count });
}

/* ---- the network ---- */

static forward_batch_t make_runs(executor_t *self, const step_plan_t *plan)
{
    const scratch_t *s = &self->scratch;
    forward_batch_t batch = { 0 };
    for (uint32_t i = 0; i < plan->run_count; i++) {
        const step_run_t *from = &plan->runs[i];
        qn_run_t run = { .slot = from->slot, .position = from->position, .tokens = from->tokens,
                         .first = batch.tokens, .ids_offset = from->ids_offset, .from_slot = from->from_slot };
        s->runs[i] = run;
        if (run.tokens == 1) s->decode_runs[batch.decode_runs++] = run;
        else s->prefill_runs[batch.prefill_runs++] = run;
        batch.tokens += run.tokens;
    }
    return batch;
}

static void run_network(executor_t *self, const step_plan_t *plan, step_result_t *result)
{
    const scratch_t *s = &self->scratch;
    forward_batch_t batch = make_runs(self, plan);
    result->run_tokens = batch.tokens;
    if (!batch.tokens) return;
    launch(self, QN_OP_STEP_INPUT, &(qn_step_input_t){
        .tables = s->tables, .runs = s->runs, .run_count = plan->run_count, .ids = s->ids,
        .block_tokens = self->limits.block_tokens, .ret_ids = s->token_ids, .ret_positions = s->positions,
        .ret_kv_rows = s->kv_rows });
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
                (prompt_row_t){ i, self->scratch.runs[i].first + t - 1, ids[t], run->position + t };
    }
    return count;
}

static void report_prompt_row(executor_t *self, const step_plan_t *plan, const prompt_row_t *row, uint32_t index,
                              step_result_t *result)
{
    const sequence_t *sequence = &self->sequences[plan->runs[row->run].slot];
    result->prompt[result->prompt_count++] = (step_prompt_token_t){
        .request = sequence->request, .position = row->position, .id = row->target,
        .logprob = self->scratch.logprobs[index], .top_count = sequence->top_logprobs };
}

/* Computes `count` listed rows, R at a time; results begin at prompt_top[base]. */
static qn_err_t compute_prompt_rows(executor_t *self, const step_plan_t *plan, const float *source, uint32_t count,
                                    step_result_t *result)
{
    const scratch_t *s = &self->scratch;
    for (uint32_t done = 0; done < count;) {
        uint32_t rows = count - done < s->logit_rows ? count - done : s->logit_rows, base = result->prompt_count;
        for (uint32_t i = 0; i < rows; i++) {
            const prompt_row_t *row = &self->prompt_rows[done + i];
            s->rows[i] = row->row;
            s->targets[i] = row->target;
            s->top_counts[i] = self->sequences[plan->runs[row->run].slot].top_logprobs;
        }
        forward_logits(&self->forward, source, rows, &result->times);
        self->logits_rows = rows;
        launch(self, QN_OP_LOGPROBS, &(qn_logprobs_t){
            .logits = s->logits, .targets = s->targets, .top_counts = s->top_counts, .rows = rows,
            .vocab = self->limits.vocab, .ret_logprobs = s->logprobs + base,
            .ret_top = s->prompt_top + (size_t)base * QN_TOP_LOGPROBS_MAX });
        /* rows, targets and logprobs are read and written by the host here and in the next round. */
        qn_err_t err = qn_stream_wait(self->forward.stream);
        if (err) return err;
        for (uint32_t i = 0; i < rows; i++)
            report_prompt_row(self, plan, &self->prompt_rows[done + i], base + i, result);
        done += rows;
    }
    return QN_OK;
}

/* The last row of a chunk that ends inside the prompt waits for its target. */
static void keep_pending(executor_t *self, const step_plan_t *plan)
{
    const scratch_t *s = &self->scratch;
    for (uint32_t i = 0; i < plan->run_count; i++) {
        const step_run_t *run = &plan->runs[i];
        sequence_t *sequence = &self->sequences[run->slot];
        if (!sequence->prompt_logprobs) continue;
        sequence->pending = run->position + run->tokens < sequence->prompt_tokens;
        if (!sequence->pending) continue;
        s->rows[0] = s->runs[i].first + run->tokens - 1;
        launch(self, QN_OP_GATHER_ROWS, &(qn_gather_rows_t){
            .x = s->x, .rows = s->rows, .row_count = 1, .width = self->forward.model->config.hidden,
            .out = s->pending + (size_t)run->slot * self->forward.model->config.hidden });
    }
}

static qn_err_t report_prompts(executor_t *self, const step_plan_t *plan, step_result_t *result)
{
    qn_err_t err = compute_prompt_rows(self, plan, self->scratch.pending, list_prompt_rows(self, plan, true), result);
    if (!err)
        err = compute_prompt_rows(self, plan, self->scratch.x, list_prompt_rows(self, plan, false), result);
    if (!err) keep_pending(self, plan);
    return err;
}

/* ---- sampling ---- */

static uint32_t list_samples(executor_t *self, const step_plan_t *plan)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < plan->run_count; i++) {
        const step_run_t *run = &plan->runs[i];
        if (!run->sample) continue;
        self->scratch.samples[count++] = (qn_sample_t){ .slot = run->slot, .position = run->position + run->tokens };
    }
    return count;
}

static void fill_sample_rows(executor_t *self, const step_plan_t *plan, uint32_t first, uint32_t rows)
{
    const scratch_t *s = &self->scratch;
    for (uint32_t i = 0, sample = 0; i < plan->run_count && sample < first + rows; i++) {
        if (!plan->runs[i].sample) continue;
        if (sample >= first) s->rows[sample - first] = s->runs[i].first + s->runs[i].tokens - 1;
        sample++;
    }
}

static qn_err_t sample_rows(executor_t *self, const step_plan_t *plan, uint32_t count, step_result_t *result)
{
    const scratch_t *s = &self->scratch;
    for (uint32_t done = 0; done < count;) {
        uint32_t rows = count - done < s->logit_rows ? count - done : s->logit_rows;
        fill_sample_rows(self, plan, done, rows);
        forward_logits(&self->forward, s->x, rows, &result->times);
        self->logits_rows = rows;
        uint64_t begin_ns = self->forward.now_ns();
        launch(self, QN_OP_SAMPLER, &(qn_sampler_t){
            .tables = s->tables, .samples = s->samples + done, .sample_count = rows, .logits = s->logits,
            .scratch = s->sampler, .ret_results = s->results + done,
            .ret_top = s->sample_top + (size_t)done * QN_TOP_LOGPROBS_MAX });
        qn_err_t err = qn_stream_wait(self->forward.stream);
        if (err) return err;
        result->times.sample_ns += self->forward.now_ns() - begin_ns;
        done += rows;
    }
    return QN_OK;
}

static void add_top(step_result_t *result, const qn_top_entry_t *from, uint32_t count)
{
    memcpy(result->top + result->top_count, from, count * sizeof *from);
    result->top_count += count;
}

static void report_samples(executor_t *self, uint32_t count, step_result_t *result)
{
    const scratch_t *s = &self->scratch;
    for (uint32_t i = 0; i < count; i++) {
        const qn_sample_result_t *from = &s->results[i];
        const sequence_t *sequence = &self->sequences[s->samples[i].slot];
        uint32_t top = from->masked ? 0 : sequence->top_logprobs;
        result->tokens[result->token_count++] = (step_token_t){
            .request = sequence->request, .slot = s->samples[i].slot, .position = s->samples[i].position,
            .id = from->id, .logprob = from->logprob, .top_count = top, .stopped = from->stopped,
            .masked = from->masked };
        add_top(result, s->sample_top + (size_t)i * QN_TOP_LOGPROBS_MAX, top);
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
    qn_err_t err = report_prompts(self, plan, result);
    uint32_t samples = list_samples(self, plan);
    if (!err) err = sample_rows(self, plan, samples, result);
    if (!err) err = qn_stream_wait(self->forward.stream);
    if (err) return err;
    report_samples(self, samples, result);
    for (uint32_t i = 0; i < result->prompt_count; i++)
        add_top(result, self->scratch.prompt_top + (size_t)i * QN_TOP_LOGPROBS_MAX, result->prompt[i].top_count);
    result->end_ns = self->forward.now_ns();
    return QN_OK;
}
