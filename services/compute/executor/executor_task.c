/* What is this?      Tokens run beside the steps, to be looked at.
 * State owned:       the private slot: the tables' last row.
 * Must never:        write KV of a living sequence, or leave anything behind that a step could see.
 * Read next:         executor_task.h, executor_decode.c (the same launches of a step), forward/forward.h. */
#include "services/compute/executor/executor_task.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "kernels/cpu/cpu.h"
#include "services/compute/executor/executor_internal.h"

qn_err_t executor_task_memory(executor_t *executor, size_t bytes, void **ret_memory)
{
    return executor->backend->host_create(bytes, ret_memory);
}

void executor_task_release(executor_t *executor, void **memory)
{
    if (*memory) executor->backend->host_destroy(memory);
}

static uint32_t private_slot(const executor_t *self) { return self->limits.max_sequences + 1; }

/* Slot of the living sequence, of which positions up to the task's end are resident. */
static qn_err_t find_living(const executor_t *self, const executor_task_t *task, uint32_t *ret_slot)
{
    for (uint32_t slot = 0; slot < self->limits.max_sequences; slot++) {
        const slot_owner_t *owner = &self->owners[slot];
        if (owner->request != task->request) continue;
        if ((uint64_t)task->position + task->count > owner->resident)
            return qn_fail(QN_ERR_NOT_FOUND,
                           "of this request %u positions are resident by now; positions up to %u are asked "
                           "for",
                           owner->resident, task->position + task->count);
        *ret_slot = slot;
        return QN_OK;
    }
    return qn_fail(QN_ERR_NOT_FOUND, "this request holds no slot: it waits, or has ended");
}

/* The tables' row of a sequence of its own. */
static void start_private(executor_t *self, const executor_task_t *task)
{
    const scratch_in_t *host = self->host, *in = &self->scratch.in;
    uint32_t blocks = (task->position + task->count + task->kv.block_tokens - 1) / task->kv.block_tokens;
    host->starts[0] =
        (qn_slot_start_t){.slot = private_slot(self),
                          .row = {.prompt_tokens = task->position + task->count, .repetition_penalty = 1, .top_p = 1}};
    UPLOAD(self, starts, host->starts, 1);
    for (uint32_t i = 0; i < blocks; i++)
        host->entries[i] = (qn_table_entry_t){.slot = private_slot(self), .index = i, .block = i};
    UPLOAD(self, entries, host->entries, blocks);
    executor_launch(self, QN_OP_SLOT_UPDATE,
                    &(qn_slot_update_t){.tables = self->scratch.tables,
                                        .starts = in->starts,
                                        .start_count = 1,
                                        .entries = in->entries,
                                        .entry_count = blocks,
                                        .ids = in->ids,
                                        .stop_ids = in->stop_ids,
                                        .bias = in->bias});
}

/* Ids, positions and rows of the cache of one chunk; of a living sequence the rows are nowhere. */
static forward_batch_t enter_chunk(executor_t *self, const executor_task_t *task, uint32_t slot, uint32_t done,
                                   uint32_t tokens)
{
    const scratch_in_t *host = self->host;
    qn_run_t run = {.slot = slot, .position = task->position + done, .tokens = tokens};
    forward_batch_t batch = {.tokens = tokens, .decode_runs = tokens == 1, .prefill_runs = tokens > 1};
    host->runs[0] = host->decode_runs[0] = host->prefill_runs[0] = run;
    if (self->token_by_token && tokens > 1) executor_list_tokens(self, &run, &batch);
    UPLOAD(self, ids, task->ids + done, tokens);
    UPLOAD(self, runs, host->runs, 1); /* for attention.probed */
    UPLOAD(self, token_runs, host->token_runs, batch.token_runs);
    executor_enter_step(self, &batch, 1, 0);
    if (!task->request) return batch;
    int64_t nowhere[64];
    memset(nowhere, 0xff, sizeof nowhere);
    for (uint32_t t = 0; t < tokens; t += 64)
        executor_upload(self, self->scratch.kv_rows + t, nowhere, step_smaller(tokens - t, 64), sizeof *nowhere);
    return batch;
}

static void upload_residual(executor_t *self, const float *from, uint32_t tokens)
{
    size_t count = (size_t)tokens * self->forward.model->config.hidden;
    if (self->limits.activations == QN_SCALAR_F32) {
        executor_upload(self, self->scratch.x, from, count, sizeof *from);
        return;
    }
    uint16_t piece[1024];
    for (size_t done = 0; done < count; done += 1024) {
        size_t some = count - done < 1024 ? count - done : 1024;
        for (size_t i = 0; i < some; i++)
            piece[i] = qn_f32_to_bf16(from[done + i]);
        executor_upload(self, (uint16_t *)self->scratch.x + done, piece, some, sizeof *piece);
    }
}

/* The residual stream of a chunk goes behind that of the chunks before it, in the activations' type; widen() follows. */
static void download_residual(executor_t *self, const executor_task_t *task, uint32_t done, uint32_t tokens)
{
    size_t width = self->forward.model->config.hidden, bytes = width * qn_scalar_bytes(self->limits.activations);
    self->backend->download(self->forward.stream, (char *)task->ret_residual + done * bytes, self->scratch.x,
                            tokens * bytes);
}

static void widen(const executor_t *self, float *values, size_t count)
{
    if (self->limits.activations == QN_SCALAR_F32) return;
    const uint16_t *narrow = (const uint16_t *)values;
    for (size_t i = count; i-- > 0;) /* from the end: a number is written where none is read any more */
        values[i] = qn_bf16_to_f32(narrow[i]);
}

static void last_logits(executor_t *self, const executor_task_t *task, uint32_t tokens)
{
    step_times_t unused = {0};
    self->host->rows[0] = tokens - 1;
    UPLOAD(self, rows, self->host->rows, 1);
    forward_logits(&self->forward, self->scratch.x, self->scratch.in.rows, 1, &unused);
    self->backend->download(self->forward.stream, task->ret_logits, self->scratch.logits,
                            self->limits.vocab * sizeof(float));
}

/* Up to the next chunk: a step's budget, or where rows of weights begin. */
static uint32_t chunk_of(const executor_t *self, const executor_task_t *task, uint32_t done)
{
    uint32_t tokens = step_smaller(task->count - done, self->limits.max_step_tokens), at = task->position + done;
    if (task->weights && at < task->weight_from) tokens = step_smaller(tokens, task->weight_from - at);
    return tokens;
}

static void run_chunk(executor_t *self, const executor_task_t *task, forward_probe_t *pass, uint32_t slot,
                      uint32_t done, uint32_t tokens)
{
    step_times_t unused = {0};
    uint32_t at = task->position + done, heads = self->forward.model->config.heads;
    pass->position = at;
    pass->tokens = tokens;
    pass->weights = task->weights && at >= task->weight_from
                        ? task->weights + (size_t)(at - task->weight_from) * heads * task->weight_columns
                        : NULL;
    forward_batch_t batch = enter_chunk(self, task, slot, done, tokens);
    if (task->input) upload_residual(self, task->input + (size_t)done * self->forward.model->config.hidden, tokens);
    forward_stages(&self->forward, &batch, &task->stages, &unused);
    executor_tap_outputs(self);
    if (task->ret_residual) download_residual(self, task, done, tokens);
    if (task->ret_logits && done + tokens == task->count) last_logits(self, task, tokens);
}

static qn_err_t wait(executor_t *self)
{
    self->backend->mark_set(self->forward.stream, self->tickets[0].end);
    while (!self->backend->mark_passed(self->forward.stream, self->tickets[0].end))
        sched_yield();
    return self->backend->stream_error(self->forward.stream);
}

/* Of a living sequence its own masks hold. */
static qn_probe_t probe_of(const executor_t *self, const executor_task_t *task, uint32_t slot)
{
    qn_probe_t probe = task->probe;
    if (!task->request) return probe;
    const slot_owner_t *owner = &self->owners[slot];
    probe.masks = owner->probe_memory ? owner->probe.masks : NULL;
    probe.mask_count = owner->probe_memory ? owner->probe.mask_count : 0;
    return probe;
}

qn_err_t executor_run_chunk(executor_t *executor, executor_task_t *task, bool *ret_done)
{
    executor_t *self = executor;
    const scratch_t *s = &self->scratch;
    uint32_t slot = private_slot(self), tokens = chunk_of(self, task, task->done);
    QN_ASSERT(self->submitted == self->finished);
    qn_err_t err = task->request ? find_living(self, task, &slot) : QN_OK;
    if (err) return err;
    const qn_probe_t probe = probe_of(self, task, slot);
    forward_probe_t pass = {.probe = &probe,
                            .backend = self->backend,
                            .masks = s->in.masks,
                            .values = s->in.tap_values,
                            .aside = s->aside,
                            .weight_layer = task->weight_layer,
                            .weight_columns = task->weight_columns,
                            .workspace = task->workspace,
                            .workspace_bytes = task->workspace_bytes};
    qn_kv_t resident = self->forward.kv;
    uint64_t begin_ns = self->now_ns();
    self->host = &self->tickets[0].in; /* no step has it */
    executor_upload_probe(self, &probe);
    if (task->in_workspace) executor_pin_workspace(self);
    if (!task->request) self->forward.kv = task->kv;
    if (!task->request && task->done == 0) start_private(self, task);
    self->forward.probe = &pass;
    run_chunk(self, task, &pass, slot, task->done, tokens);
    self->forward.probe = NULL;
    self->forward.kv = resident;
    err = wait(self);
    task->done += tokens;
    task->ret_ns += self->now_ns() - begin_ns;
    *ret_done = task->done == task->count;
    if (!err && *ret_done && task->ret_residual)
        widen(self, task->ret_residual, (size_t)task->count * self->forward.model->config.hidden);
    return err;
}

qn_err_t executor_run_task(executor_t *executor, executor_task_t *task)
{
    bool done = false;
    qn_err_t err = QN_OK;
    task->done = 0;
    task->ret_ns = 0;
    while (!err && !done)
        err = executor_run_chunk(executor, task, &done);
    return err;
}
