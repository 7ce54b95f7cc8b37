/* What is this?      Calls that run tokens beside the steps, from the request to the reply.
 * State owned:       compute_service_t.beside; the private KV cache's region.
 * Must never:        touch a task that the worker has; answer a call twice.
 * Read next:         tasks.h, methods_tasks.c (the calls), executor/executor_task.c (the run). */
#include "services/compute/tasks.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/watch/log.h"
#include "services/compute/handlers.h"

#define TASK_LEASE_MS 600000 /* more than a call may take; what the reader has begins when it is answered */
#define CACHE_NAME "compute.probe_kv"

/* ---- life ---- */

static void release_range(compute_task_t *task)
{
    qn_workspace_release_t message = {.lease = task->handle.lease};
    if (task->has_range)
        qn_daemon_send(task->service->daemon, task->service->memory, QN_MESSAGE_WORKSPACE_RELEASE, &message);
    task->has_range = false;
}

static void destroy(compute_task_t *task)
{
    compute_service_t *service = task->service;
    for (unsigned i = 0; i < TASKS_MAX; i++)
        if (service->tasks[i] == task) service->tasks[i] = NULL;
    executor_t *executor = service->runtime->executor;
    executor_task_release(executor, &task->weights_memory);
    executor_task_release(executor, &task->logits_memory);
    executor_task_release(executor, &task->residual_memory);
    executor_task_release(executor, &task->own_out);
    free(task->copies);
    free(task->tensors);
    free(task->head_scores);
    free(task);
}

compute_task_t *tasks_begin(compute_service_t *service, qn_call_t *call)
{
    if (service->phase != COMPUTE_RUNNING) {
        qn_call_fail(call, 503, NULL, "compute has no model yet; try again");
        return NULL;
    }
    if (service->config->compute.probe_tokens == 0) {
        qn_call_fail(call, 501, NULL, "compute.probe_tokens is 0: nothing is run beside the steps");
        return NULL;
    }
    unsigned i = 0;
    while (i < TASKS_MAX && service->tasks[i])
        i++;
    compute_task_t *task = i < TASKS_MAX ? calloc(1, sizeof *task) : NULL;
    if (!task) {
        qn_call_fail(call, 503, NULL, "%d such calls are being worked on; try again", TASKS_MAX);
        return NULL;
    }
    task->service = service;
    task->call = *call;
    task->has_call = true;
    service->tasks[i] = task;
    return task;
}

qn_call_outcome_t tasks_refuse(compute_task_t *task, uint16_t status, const char *param, const char *format, ...)
{
    char text[QN_ERR_TEXT_MAX];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (task->has_call) qn_call_fail(&task->call, status, param, "%s", text);
    release_range(task);
    destroy(task);
    return QN_CALL_FAILED;
}

task_tensor_t *tasks_add(compute_task_t *task, const char *name, qn_dtype_t dtype, uint32_t rank, const uint64_t *shape)
{
    task_tensor_t *tensor = &task->tensors[task->tensor_count++];
    *tensor = (task_tensor_t){.dtype = dtype, .rank = rank, .count = 1, .at = task->out_bytes};
    snprintf(tensor->name, sizeof tensor->name, "%s", name);
    for (uint32_t i = 0; i < rank; i++) {
        tensor->shape[i] = shape[i];
        tensor->count *= shape[i];
    }
    tensor->bytes = tensor->count * (dtype == QN_DTYPE_F32 ? 4 : 2);
    task->out_bytes += (tensor->bytes + 63) / 64 * 64;
    task->values += tensor->count;
    return tensor;
}

/* ---- numbers in short ---- */

static float number_at(const task_tensor_t *tensor, const uint8_t *from, uint64_t i)
{
    float value;
    uint32_t bits;
    if (tensor->dtype == QN_DTYPE_F32) {
        memcpy(&value, from + 4 * i, sizeof value);
        return value;
    }
    uint16_t half;
    memcpy(&half, from + 2 * i, sizeof half);
    bits = (uint32_t)half << 16;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void summarise(task_tensor_t *tensor, const uint8_t *from)
{
    double sum = 0, squares = 0;
    uint64_t zeros = 0, numbers = 0;
    tensor->min = INFINITY;
    tensor->max = -INFINITY;
    for (uint64_t i = 0; i < tensor->count; i++) {
        float value = number_at(tensor, from, i);
        if (isnan(value)) {
            tensor->nan_count++;
            continue;
        }
        numbers++;
        zeros += value == 0;
        tensor->min = value < tensor->min ? value : tensor->min;
        tensor->max = value > tensor->max ? value : tensor->max;
        sum += (double)value;
    }
    double mean = numbers ? sum / (double)numbers : NAN;
    for (uint64_t i = 0; i < tensor->count; i++) {
        double off = (double)number_at(tensor, from, i) - mean;
        if (!isnan(off)) squares += off * off;
    }
    if (!numbers) tensor->min = tensor->max = NAN;
    tensor->mean = (float)mean;
    tensor->std = numbers ? (float)sqrt(squares / (double)numbers) : NAN;
    tensor->zeros = tensor->count ? (float)zeros / (float)tensor->count : 0;
}

/* ---- the worker's side ---- */

static bool run_on_worker(step_task_t *step, void *executor)
{
    compute_task_t *task = (compute_task_t *)step;
    bool done = false;
    task->run.workspace = task->out;
    task->run.in_workspace = task->has_range;
    task->run.workspace_bytes = task->out_bytes;
    qn_err_t err = executor_run_chunk(executor, &task->run, &done);
    if (err) qn_failure_keep(&task->failure, err);
    if (err || !done) return err != QN_OK;
    if (task->look) task->look(task);
    for (uint32_t i = 0; i < task->tensor_count; i++)
        summarise(&task->tensors[i], task->out + task->tensors[i].at);
    return true;
}

/* ---- the loop's side: what it waits for ---- */

static uint64_t next_message(compute_service_t *service) { return (UINT64_C(1) << 62) + ++service->task_messages; }

static qn_err_t cache_bytes(const compute_service_t *service, uint32_t *ret_blocks, uint64_t *ret_bytes)
{
    const qn_kv_t *kv = &service->kv_layout;
    uint64_t tokens = step_smaller(service->config->compute.probe_tokens, service->limits.max_model_len), block_bytes;
    *ret_blocks = (uint32_t)((tokens + kv->block_tokens - 1) / kv->block_tokens);
    qn_err_t err =
        qn_model_kv_block_bytes(&service->model->config, kv->block_tokens, qn_scalar_bytes(kv->scalar), &block_bytes);
    *ret_bytes = block_bytes * *ret_blocks;
    return err;
}

static void ask_cache(compute_service_t *service)
{
    uint32_t blocks;
    uint64_t bytes;
    if (service->probe_kv || service->cache_message || cache_bytes(service, &blocks, &bytes)) return;
    uint64_t id = next_message(service);
    qn_reserve_t message = {.head.request = id,
                            .kind = QN_REGION_KIND_STATE,
                            .bytes = bytes,
                            .name = qn_text(CACHE_NAME)};
    if (qn_daemon_send(service->daemon, service->memory, QN_MESSAGE_RESERVE, &message) == QN_SEND_OK)
        service->cache_message = id;
}

static void ask_range(compute_task_t *task)
{
    compute_service_t *service = task->service;
    uint64_t id = next_message(service);
    qn_workspace_lease_t message = {.head.request = id, .bytes = task->out_bytes, .lifetime_ms = TASK_LEASE_MS};
    if (qn_daemon_send(service->daemon, service->memory, QN_MESSAGE_WORKSPACE_LEASE, &message) == QN_SEND_OK)
        task->message = id;
}

qn_call_outcome_t tasks_go(compute_task_t *task)
{
    if (!task->wants_range) {
        qn_err_t err = executor_task_memory(task->service->runtime->executor, task->out_bytes + 64, &task->own_out);
        if (err) return tasks_refuse(task, 507, NULL, "%s", qn_err_text());
        task->out = task->own_out;
    } else if (!task->service->workspace) {
        return tasks_refuse(task, 501, "inline_values",
                            "%" PRIu64
                            " numbers do not fit the reply, and there is no workspace: memory.workspace_bytes is 0",
                            task->values);
    }
    task->step.run = run_on_worker;
    tasks_tick(task->service);
    return QN_CALL_LATER;
}

static void give_to_worker(compute_task_t *task)
{
    compute_service_t *service = task->service;
    if (task->wants_cache) {
        uint32_t blocks;
        uint64_t bytes;
        cache_bytes(service, &blocks, &bytes);
        task->run.kv = service->kv_layout;
        task->run.kv.data = qn_region_pointer(service->probe_kv);
        task->run.kv.blocks = blocks;
    }
    if (step_queue_give_task(service->runtime->queue, &task->step)) service->running_task = task;
}

static void finish(compute_task_t *task)
{
    if (task->failure.code) {
        bool missing = task->failure.code == QN_ERR_NOT_FOUND;
        if (!missing) qn_daemon_fail(task->service->daemon, qn_failure_raise(&task->failure));
        tasks_refuse(task, missing ? 404 : 500, missing ? "request" : NULL, "%s", task->failure.text);
        return;
    }
    qn_workspace_lease_t renew = {.lease = task->handle.lease, .lifetime_ms = task->lifetime_ms};
    if (task->has_range)
        qn_daemon_send(task->service->daemon, task->service->memory, QN_MESSAGE_WORKSPACE_LEASE, &renew);
    task->handle.lifetime_ms = task->lifetime_ms;
    task->reply(task);
    task->has_call = false;
    destroy(task); /* the range, if it has one, is the reader's until its deadline */
}

void tasks_tick(compute_service_t *service)
{
    if (service->phase != COMPUTE_RUNNING) return;
    step_task_t *done = step_queue_done_task(service->runtime->queue);
    if (done) {
        service->running_task = NULL;
        finish((compute_task_t *)done);
    }
    for (unsigned i = 0; i < TASKS_MAX; i++) {
        compute_task_t *task = service->tasks[i];
        if (!task || task == service->running_task) continue;
        if (task->wants_cache && !service->probe_kv)
            ask_cache(service);
        else if (task->wants_range && !task->has_range && !task->message)
            ask_range(task);
        else if (!service->running_task && (task->has_range || !task->wants_range))
            give_to_worker(task);
    }
}

void tasks_take_range(compute_service_t *service, const qn_workspace_range_t *range)
{
    if (range->head.request == 0) return; /* renewed: finish() */
    for (unsigned i = 0; i < TASKS_MAX; i++) {
        compute_task_t *task = service->tasks[i];
        if (!task || task->message != range->head.request) continue;
        const qn_mapping_t *workspace = service->workspace;
        bool ours = range->region->id == qn_region_id(workspace) &&
                    range->region->epoch == qn_region_epoch(workspace) && range->offset <= qn_region_bytes(workspace) &&
                    task->out_bytes <= qn_region_bytes(workspace) - range->offset;
        task->message = 0;
        task->handle = (qn_workspace_handle_t){.region = range->region->id,
                                               .epoch = range->region->epoch,
                                               .lease = range->lease,
                                               .lifetime_ms = range->lifetime_ms,
                                               .region_bytes = qn_region_bytes(workspace)};
        task->has_range = true;
        if (!ours) {
            tasks_refuse(task, 503, NULL, "memory leased a range that compute does not map; try again");
            return;
        }
        task->range_offset = range->offset;
        task->out = (uint8_t *)qn_region_pointer(workspace) + range->offset;
        return;
    }
    /* Nobody waits for it any more. */
    qn_workspace_release_t message = {.lease = range->lease};
    qn_daemon_send(service->daemon, service->memory, QN_MESSAGE_WORKSPACE_RELEASE, &message);
}

bool tasks_take_region(compute_service_t *service, const qn_region_t *region)
{
    if (!service->cache_message || region->name.bytes != strlen(CACHE_NAME) ||
        memcmp(region->name.data, CACHE_NAME, region->name.bytes) != 0)
        return false;
    service->cache_message = 0;
    qn_err_t err = service->probe_kv ? QN_OK : qn_region_import(region, true, &service->probe_kv);
    for (unsigned i = 0; err && i < TASKS_MAX; i++)
        if (service->tasks[i] && service->tasks[i]->wants_cache)
            tasks_refuse(service->tasks[i], 503, NULL, "the KV cache for this call cannot be mapped: %s",
                         qn_err_text());
    return true;
}

bool tasks_take_refusal(compute_service_t *service, const qn_refusal_t *refusal)
{
    const char *text = refusal->text.data ? refusal->text.data : "";
    bool of_cache = service->cache_message && refusal->head.request == service->cache_message, found = of_cache;
    if (of_cache) service->cache_message = 0;
    for (unsigned i = 0; i < TASKS_MAX; i++) {
        compute_task_t *task = service->tasks[i];
        if (!task) continue;
        if (of_cache && task->wants_cache) {
            tasks_refuse(task, 507, NULL,
                         "there is no room for the KV cache of this call: %.300s; or lower "
                         "compute.probe_tokens",
                         text);
        } else if (task->message && task->message == refusal->head.request) {
            found = true;
            tasks_refuse(task, refusal->status, "inline_values", "%.300s", text);
        }
    }
    return found;
}

void tasks_end(compute_service_t *service)
{
    if (!service->runtime) return;
    service->running_task = NULL;
    for (unsigned i = 0; i < TASKS_MAX; i++) {
        compute_task_t *task = service->tasks[i];
        if (!task) continue;
        task->has_range = false; /* its lease went with memory, or ends with it */
        tasks_refuse(task, 503, NULL, "memory has restarted; try again");
    }
    qn_region_close(&service->probe_kv);
    service->cache_message = 0;
}

/* ---- replies ---- */

void tasks_show(const compute_task_t *task, qn_arena_t *arena, const task_tensor_t *tensor,
                qn_tapped_tensor_t *ret_result, float *values, uint32_t *values_count)
{
    uint64_t *shape = qn_arena_zalloc(arena, 4, sizeof *shape);
    char *name = qn_arena_strndup(arena, tensor->name, strlen(tensor->name));
    memcpy(shape, tensor->shape, sizeof tensor->shape);
    *ret_result = (qn_tapped_tensor_t){.name = qn_text(name),
                                       .dtype = tensor->dtype,
                                       .shape = shape,
                                       .shape_count = tensor->rank,
                                       .min = tensor->min,
                                       .max = tensor->max,
                                       .mean = tensor->mean,
                                       .std = tensor->std,
                                       .zeros = tensor->zeros,
                                       .nan_count = tensor->nan_count,
                                       .bytes = tensor->bytes};
    if (task->has_range) {
        ret_result->offset = task->range_offset + tensor->at;
        return;
    }
    ret_result->value_offset = *values_count;
    ret_result->value_count = (uint32_t)tensor->count;
    for (uint64_t i = 0; i < tensor->count; i++)
        values[(*values_count)++] = number_at(tensor, task->out + tensor->at, i);
}

uint32_t tasks_top(const compute_task_t *task, uint32_t vocab, qn_token_logprob_t *ret_top, uint32_t count)
{
    double total = 0, best = -INFINITY;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < vocab; i++)
        best = (double)task->logits[i] > best ? (double)task->logits[i] : best;
    for (uint32_t i = 0; i < vocab; i++)
        total += exp((double)task->logits[i] - best);
    for (uint32_t i = 0; i < vocab; i++) {
        float logprob = (float)((double)task->logits[i] - best - log(total));
        uint32_t at = kept < count ? kept : count;
        while (at > 0 && ret_top[at - 1].logprob < logprob)
            at--;
        if (at == count) continue;
        if (kept < count) kept++;
        for (uint32_t j = kept - 1; j > at; j--)
            ret_top[j] = ret_top[j - 1];
        ret_top[at] = (qn_token_logprob_t){.id = i, .logprob = logprob};
    }
    return kept;
}
