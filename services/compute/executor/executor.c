/* What is this?      The executor of step plans: uploads a plan, launches the network, samples, reports.
 * State owned:       per slot and per step in flight, what is needed to word a report; the host's arrays of the steps in
 *                    flight; recorded steps. All else is in the regions.
 * Must never:        allocate or check in a step (slot_book.c has checked); touch the device but through the backend.
 * Read next:         executor_decode.c (what a step launches), executor_prompts.c, forward.c (the network),
 *                    kernels/cpu/slots.c and sampler.c (the tables). */
#include "services/compute/executor/executor_internal.h"

#include <sched.h>
#include <stdlib.h>

#include "common/assert.h"

/* ---- life ---- */

/* What the device needs once: rope's frequencies, the experts' weights, and the null slot, which is done and owns no
 * block. */
static qn_err_t upload_constants(executor_t *self, const model_t *model)
{
    const qn_model_config_t *config = &model->config;
    uint32_t null_slot = self->limits.max_sequences;
    float frequencies[QN_HEAD_DIM_MAX / 2];
    qn_rope_frequencies(&config->rope, config->head_dim, frequencies);
    executor_upload(self, self->scratch.frequencies, frequencies, config->head_dim / 2, sizeof *frequencies);
    executor_upload(self, self->scratch.experts, model->experts, model_expert_count(config), sizeof *model->experts);
    UPLOAD(self, retire, &null_slot, 1);
    UPLOAD(self, entries, (&(qn_table_entry_t){.slot = null_slot}), 1);
    executor_launch(self, QN_OP_SLOT_UPDATE,
                    &(qn_slot_update_t){.tables = self->scratch.tables,
                                        .retire = self->scratch.in.retire,
                                        .retire_count = 1,
                                        .entries = self->scratch.in.entries,
                                        .entry_count = 1});
    return self->backend->stream_wait(self->forward.stream);
}

static qn_err_t make_tickets(executor_t *self, const scratch_sizes_t *sizes)
{
    qn_err_t err = QN_OK;
    QN_ASSERT(self->backend->steps_in_flight <= EXECUTOR_STEPS_MAX);
    for (unsigned i = 0; !err && i < self->backend->steps_in_flight; i++) {
        ticket_t *ticket = &self->tickets[i];
        ticket->samples = calloc(self->limits.max_sequences, sizeof *ticket->samples);
        ticket->readers = calloc(self->limits.max_sequences, sizeof *ticket->readers);
        if (!ticket->samples || !ticket->readers)
            return qn_fail(QN_ERR_NO_MEMORY, "no memory for the executor's reports");
        err = self->backend->host_create(sizes->step_io_bytes, &ticket->in_memory);
        if (!err) err = self->backend->host_create(sizes->out_bytes, &ticket->out_memory);
        if (!err) err = self->backend->mark_create(&ticket->begin);
        if (!err) err = self->backend->mark_create(&ticket->end);
        if (err) break;
        scratch_place_in(&self->limits, ticket->in_memory, &ticket->in);
        scratch_place_out(&self->limits, ticket->out_memory, &ticket->out);
    }
    return err;
}

static qn_err_t place(executor_t *self, const executor_parts_t *parts)
{
    const qn_model_config_t *config = &parts->model->config;
    scratch_sizes_t sizes;
    scratch_place(config, &parts->limits, parts->activations, parts->state, parts->step_io, &self->scratch);
    qn_err_t err = scratch_measure(config, &parts->limits, &sizes);
    if (!err) err = make_tickets(self, &sizes);
    return err ? err : upload_constants(self, parts->model);
}

qn_err_t executor_create(const executor_parts_t *parts, executor_t **ret_executor)
{
    executor_t *self = calloc(1, sizeof *self);
    if (!self) return qn_fail(QN_ERR_NO_MEMORY, "no memory for the executor");
    self->backend = parts->backend;
    self->limits = parts->limits;
    self->now_ns = parts->now_ns;
    self->token_by_token = parts->deterministic && !parts->backend->chunks_are_decodes;
    self->forward = (forward_t){
        .model = parts->model,
        .scratch = &self->scratch,
        .kernels = parts->kernels,
        .stream = parts->stream,
        .kv = parts->kv,
        .activations = parts->limits.activations,
        .now_ns = parts->backend->synchronous ? parts->now_ns : NULL,
    };
    self->workspace = parts->workspace;
    self->pass_runs = calloc(parts->limits.max_sequences, sizeof *self->pass_runs);
    self->pass_done = calloc(parts->limits.max_sequences, sizeof *self->pass_done);
    self->owners = calloc(parts->limits.max_sequences, sizeof *self->owners);
    self->prompt_rows = calloc(parts->limits.max_step_tokens, sizeof *self->prompt_rows);
    qn_err_t err =
        self->owners && self->prompt_rows && self->pass_runs && self->pass_done
            ? place(self, parts)
            : qn_fail(QN_ERR_NO_MEMORY, "no memory for the executor of %u slots", parts->limits.max_sequences);
    if (err)
        executor_destroy(&self);
    else
        *ret_executor = self;
    return err;
}

void executor_destroy(executor_t **executor)
{
    executor_t *self = *executor;
    if (!self) return;
    /* The device may still read and write host memory. Its errors have been reported, or nobody is left to hear them. */
    if (self->forward.stream) self->backend->stream_wait(self->forward.stream);
    executor_destroy_graphs(self);
    executor_destroy_stamps(self);
    for (unsigned i = 0; i < EXECUTOR_STEPS_MAX; i++) {
        ticket_t *ticket = &self->tickets[i];
        if (ticket->begin) self->backend->mark_destroy(&ticket->begin);
        if (ticket->end) self->backend->mark_destroy(&ticket->end);
        if (ticket->in_memory) self->backend->host_destroy(&ticket->in_memory);
        if (ticket->out_memory) self->backend->host_destroy(&ticket->out_memory);
        free(ticket->samples);
        free(ticket->readers);
    }
    if (self->workspace_pinned) self->backend->host_unpin(qn_region_pointer(self->workspace));
    for (uint32_t slot = 0; self->owners && slot < self->limits.max_sequences; slot++)
        executor_end_probe(self, slot);
    free(self->owners);
    free(self->prompt_rows);
    free(self->pass_runs);
    free(self->pass_done);
    free(self);
    *executor = NULL;
}

void executor_set_kernels(executor_t *self, const qn_kernel_set_t *kernels)
{
    QN_ASSERT(self->submitted == self->finished);
    executor_destroy_graphs(self);
    self->forward.kernels = *kernels;
}

const float *executor_logits(const executor_t *executor, uint32_t *ret_rows)
{
    *ret_rows = executor->logits_rows;
    return executor->scratch.logits;
}

/* ---- the slot tables ---- */

static void start_of(const step_set_t *set, qn_slot_start_t *ret_start)
{
    const step_sampling_t *from = &set->sampling;
    bool penalties = from->repetition_penalty != 1 || from->presence_penalty != 0 || from->frequency_penalty != 0;
    *ret_start = (qn_slot_start_t){
        .slot = set->slot,
        .stop_offset = set->stop_offset,
        .bias_offset = set->bias_offset,
        .history_offset = set->history_offset,
        .history_count = set->history_count,
        .logprob_offset = set->logprob_offset,
        .bad_offset = set->bad_offset,
        .row =
            {
                .seed = from->seed,
                .prompt_tokens = set->prompt_tokens,
                .top_k = from->top_k,
                .min_tokens = from->min_tokens,
                .stop_count = set->stop_count,
                .bias_count = set->bias_count,
                .logprob_id_count = set->logprob_count,
                .bad_id_count = set->bad_count,
                .allow_only = set->allow_only,
                .temperature = from->temperature,
                .top_p = from->top_p,
                .min_p = from->min_p,
                .repetition_penalty = from->repetition_penalty,
                .presence_penalty = from->presence_penalty,
                .frequency_penalty = from->frequency_penalty,
                .logprobs = from->logprobs,
                .top_logprobs = (uint8_t)from->top_logprobs,
                .penalties = penalties,
            },
    };
}

static void start_slots(executor_t *self, const step_plan_t *plan)
{
    for (uint32_t i = 0; i < plan->set_count; i++) {
        const step_set_t *set = &plan->sets[i];
        start_of(set, &self->host->starts[i]);
        executor_end_probe(self, set->slot);
        self->owners[set->slot] =
            (slot_owner_t){.request = set->request,
                           .prompt_tokens = set->prompt_tokens,
                           .top_logprobs = step_smaller(set->sampling.top_logprobs, self->limits.vocab),
                           .logprob_ids = set->logprob_count,
                           .prompt_logprobs = set->sampling.prompt_logprobs};
        if (!qn_probe_is_empty(&set->probe)) executor_start_probe(self, set);
    }
    UPLOAD(self, starts, self->host->starts, plan->set_count);
}

static void update_tables(executor_t *self, const step_plan_t *plan)
{
    const scratch_in_t *in = &self->scratch.in;
    for (uint32_t i = 0; plan->opens && i < self->limits.max_sequences; i++)
        self->owners[i].request = 0;
    for (uint32_t i = 0; i < plan->retire_count; i++) {
        executor_end_probe(self, plan->retire[i]);
        self->owners[plan->retire[i]].request = 0;
    }
    UPLOAD(self, retire, plan->retire, plan->retire_count);
    UPLOAD(self, entries, plan->blocks, plan->block_count);
    UPLOAD(self, copies, plan->copies, plan->copy_count);
    UPLOAD(self, ids, plan->ids, plan->id_count);
    UPLOAD(self, stop_ids, plan->stop_ids, plan->stop_id_count);
    UPLOAD(self, bias, plan->bias, plan->bias_count);
    UPLOAD(self, list_ids, plan->list_ids, plan->list_id_count);
    start_slots(self, plan);
    bool changes = plan->retire_count || plan->set_count || plan->block_count;
    if (changes)
        executor_launch(self, QN_OP_SLOT_UPDATE,
                        &(qn_slot_update_t){.tables = self->scratch.tables,
                                            .retire = in->retire,
                                            .retire_count = plan->retire_count,
                                            .starts = in->starts,
                                            .start_count = plan->set_count,
                                            .entries = in->entries,
                                            .entry_count = plan->block_count,
                                            .ids = in->ids,
                                            .stop_ids = in->stop_ids,
                                            .bias = in->bias,
                                            .list_ids = in->list_ids});
    if (plan->copy_count)
        executor_launch(self, QN_OP_BLOCK_COPY,
                        &(qn_block_copy_args_t){.kv = self->forward.kv,
                                                .copies = in->copies,
                                                .copy_count = plan->copy_count});
}

/* ---- the runs ---- */

void executor_list_tokens(executor_t *self, const qn_run_t *chunk, forward_batch_t *batch)
{
    for (uint32_t i = 0; i < chunk->tokens; i++)
        self->host->token_runs[batch->token_runs++] = (qn_run_t){.slot = chunk->slot,
                                                                 .position = chunk->position + i,
                                                                 .tokens = 1,
                                                                 .first = chunk->first + i,
                                                                 .ids_offset = chunk->ids_offset + i};
}

/* Fills the head of the pass's arrays; its samples come behind those of the passes before it. */
static forward_batch_t make_runs(executor_t *self, const step_plan_t *plan, ticket_t *ticket)
{
    const scratch_in_t *host = self->host;
    forward_batch_t batch = {0};
    uint32_t base = ticket->sample_count;
    for (uint32_t i = 0; i < plan->run_count; i++) {
        const step_run_t *from = &plan->runs[i];
        qn_run_t run = {.slot = from->slot,
                        .position = from->position,
                        .tokens = from->tokens,
                        .first = batch.tokens,
                        .ids_offset = from->ids_offset,
                        .from_slot = from->from_slot};
        host->runs[i] = run;
        if (run.tokens == 1)
            host->decode_runs[batch.decode_runs++] = run;
        else
            host->prefill_runs[batch.prefill_runs++] = run;
        if (run.tokens > 1 && self->token_by_token) executor_list_tokens(self, &run, &batch);
        batch.tokens += run.tokens;
        self->owners[run.slot].resident = run.position + run.tokens;
        if (!from->sample) continue;
        const slot_owner_t *sequence = &self->owners[run.slot];
        uint32_t position = run.position + run.tokens, place = ticket->sample_count++ - base;
        host->samples[place] = (qn_sample_t){.slot = run.slot, .position = position};
        host->sample_rows[place] = batch.tokens - 1;
        ticket->samples[base + place] =
            (sample_t){sequence->request, run.slot, position, sequence->top_logprobs + sequence->logprob_ids};
    }
    return batch;
}

void executor_run_pass(executor_t *self, const step_plan_t *plan, ticket_t *ticket)
{
    uint32_t sampled_before = ticket->sample_count;
    forward_batch_t batch = make_runs(self, plan, ticket);
    step_times_t *times = &ticket->result->times;
    bool recorded = !self->forward.probe && executor_is_plain_decode(self, plan, &batch);
    bool first = ticket->result->run_tokens == 0;
    ticket->result->run_tokens += batch.tokens;
    if (recorded) executor_fill_up(self, plan->run_count);
    UPLOAD(self, token_runs, self->host->token_runs, batch.token_runs);
    if (self->forward.probe) UPLOAD(self, runs, self->host->runs, plan->run_count); /* for attention.probed */
    if (first) self->backend->mark_set(self->forward.stream, ticket->begin);
    if (recorded) executor_run_decode(self, ticket, plan->run_count);
    if (recorded || !batch.tokens) return;
    executor_run_network(self, &batch, plan->run_count, ticket->sample_count - sampled_before, times);
    if (self->forward.probe) executor_tap_outputs(self);
    executor_compute_prompts(self, plan, ticket);
    executor_compute_samples(self, ticket, ticket->sample_count - sampled_before, self->scratch.in.sample_rows, times);
}

/* ---- steps ---- */

void executor_submit(executor_t *self, const step_plan_t *plan, step_result_t *result)
{
    QN_ASSERT(self->submitted - self->finished < self->backend->steps_in_flight);
    ticket_t *ticket = &self->tickets[self->submitted % self->backend->steps_in_flight];
    ticket->result = result;
    self->host = &ticket->in;
    result->step = plan->step;
    result->times = (step_times_t){0};
    result->run_tokens = result->token_count = result->prompt_count = result->top_count = 0;
    result->begin_ns = self->now_ns();
    result->read_count = 0;
    ticket->sample_count = ticket->reader_count = 0;
    update_tables(self, plan);
    executor_begin_stamps(self, ticket);
    if (self->probed_slots)
        executor_run_passes(self, plan, ticket);
    else
        executor_run_pass(self, plan, ticket);
    executor_end_stamps(self);
    result->times.sampled = self->backend->synchronous && result->run_tokens;
    self->backend->mark_set(self->forward.stream, ticket->end);
    self->submitted++;
}

static ticket_t *oldest(const executor_t *self)
{
    return (ticket_t *)(uintptr_t)&self->tickets[self->finished % self->backend->steps_in_flight];
}

bool executor_is_done(const executor_t *self)
{
    QN_ASSERT(self->submitted != self->finished);
    return self->backend->mark_passed(self->forward.stream, oldest(self)->end);
}

static void report_samples(const ticket_t *ticket)
{
    step_result_t *result = ticket->result;
    for (uint32_t i = 0; i < ticket->sample_count; i++) {
        const qn_sample_result_t *from = &ticket->out.results[i];
        const sample_t *sample = &ticket->samples[i];
        uint32_t top = from->masked ? 0 : sample->alternatives;
        result->tokens[result->token_count++] = (step_token_t){.request = sample->request,
                                                               .slot = sample->slot,
                                                               .position = sample->position,
                                                               .id = from->id,
                                                               .logprob = from->logprob,
                                                               .top_count = top,
                                                               .stopped = from->stopped,
                                                               .masked = from->masked};
        executor_add_top(result, ticket->out.sample_top + (size_t)i * QN_ALTERNATIVES_MAX, top);
    }
}

qn_err_t executor_finish(executor_t *self)
{
    ticket_t *ticket = oldest(self);
    while (!executor_is_done(self))
        sched_yield();
    qn_err_t err = self->backend->stream_error(self->forward.stream);
    self->finished++;
    if (err) return err;
    report_samples(ticket);
    executor_report_prompts(ticket);
    executor_read_stamps(self, ticket);
    executor_report_reads(ticket);
    step_result_t *result = ticket->result;
    result->end_ns = self->now_ns();
    if (!self->backend->synchronous) /* it may have waited behind the step before */
        result->begin_ns = result->end_ns - self->backend->mark_elapsed_ns(ticket->begin, ticket->end);
    return QN_OK;
}

qn_err_t executor_run(executor_t *self, const step_plan_t *plan, step_result_t *result)
{
    executor_submit(self, plan, result);
    return executor_finish(self);
}
