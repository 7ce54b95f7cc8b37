/* What is this?      The calls forward, attention_scores and run_stage: what each wants run, and how it is shown.
 * State owned:       none; a task's.
 * Must never:        run anything on the loop's thread.
 * Read next:         tasks.h, schemas/compute/, executor/executor_task.h. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "services/compute/handlers.h"
#include "services/compute/methods.h"
#include "services/compute/tasks.h"

static const char *const SITES[] = {
    [QN_TAP_SITE_EMBED] = "embed",   [QN_TAP_SITE_ATTN_Q] = "attn.q",     [QN_TAP_SITE_ATTN_K] = "attn.k",
    [QN_TAP_SITE_ATTN_V] = "attn.v", [QN_TAP_SITE_ATTN_OUT] = "attn.out", [QN_TAP_SITE_MLP_OUT] = "mlp.out",
    [QN_TAP_SITE_RESID] = "resid",   [QN_TAP_SITE_NORM] = "norm",         [QN_TAP_SITE_LOGITS] = "logits"};

/* What all three have. */
typedef struct {
    const uint32_t *ids;
    uint32_t ids_count, position, inline_values, lifetime_ms, top;
    uint64_t request;
    const qn_mask_row_t *masks;
    uint32_t masks_count;
    const float *values; /* for taps that write, or the input of a stage */
    uint32_t values_count;
    const qn_tap_request_t *taps;
    uint32_t taps_count;
} common_t;

static uint32_t most_tokens(const compute_service_t *service)
{
    uint32_t most = step_smaller(service->config->compute.probe_tokens, service->limits.max_model_len);
    return step_smaller(most, QN_MASK_POSITIONS_MAX);
}

static qn_call_outcome_t check_ids(compute_task_t *task, const common_t *c)
{
    const compute_service_t *service = task->service;
    if (c->ids_count == 0) return tasks_refuse(task, 400, "ids", "ids: at least one token id is needed");
    if (c->request && (uint64_t)c->position + c->ids_count > service->limits.max_model_len)
        return tasks_refuse(task, 400, "ids", "ids: positions end at %u", service->limits.max_model_len);
    if (!c->request && c->position)
        return tasks_refuse(task, 400, "position",
                            "position is that of a living request's ids; without one they begin at 0");
    if (!c->request && c->ids_count > most_tokens(service))
        return tasks_refuse(task, 400, "ids", "%u ids; %u are possible: raise compute.probe_tokens", c->ids_count,
                            most_tokens(service));
    for (uint32_t i = 0; i < c->ids_count; i++)
        if (c->ids[i] >= service->limits.vocab)
            return tasks_refuse(task, 400, "ids", "token id %u at position %u is outside the vocabulary of %u",
                                c->ids[i], i, service->limits.vocab);
    return QN_CALL_DONE;
}

static qn_mask_rule_t rule_of(const qn_mask_row_t *row)
{
    return (qn_mask_rule_t){.kind = row->kind,
                            .k = row->k,
                            .window = row->window,
                            .sinks = row->sinks,
                            .value = row->value,
                            .layer_from = row->layer_from,
                            .layer_to = row->layer_to,
                            .head_from = row->head_from,
                            .head_to = row->head_to};
}

/* Copies what the task points to: the request's views end with the call. */
static qn_call_outcome_t copy(compute_task_t *task, const common_t *c)
{
    size_t taps = c->taps_count * sizeof(qn_tap_point_t), masks = c->masks_count * sizeof(qn_mask_rule_t);
    size_t values = c->values_count * sizeof(float), ids = c->ids_count * sizeof(uint32_t);
    task->copies = malloc(taps + masks + values + ids + 8);
    task->tensors = calloc(c->taps_count + 2, sizeof *task->tensors);
    if (!task->copies || !task->tensors) return tasks_refuse(task, 507, NULL, "no memory for this call");
    qn_tap_point_t *points = task->copies;
    qn_mask_rule_t *rules = (qn_mask_rule_t *)(points + c->taps_count);
    float *numbers = (float *)(rules + c->masks_count);
    uint32_t *tokens = (uint32_t *)(numbers + c->values_count);
    for (uint32_t i = 0; i < c->masks_count; i++)
        rules[i] = rule_of(&c->masks[i]);
    if (values) memcpy(numbers, c->values, values);
    memcpy(tokens, c->ids, ids);
    uint32_t end = c->position + c->ids_count;
    for (uint32_t i = 0; i < c->taps_count; i++) {
        const qn_tap_request_t *from = &c->taps[i];
        points[i] = (qn_tap_point_t){.position_from = from->from,
                                     .position_to = from->to ? from->to : end,
                                     .value_offset = from->value_offset,
                                     .value_count = from->value_count,
                                     .scale = from->scale,
                                     .layer = (uint16_t)from->layer,
                                     .site = from->site,
                                     .action = from->action};
    }
    task->probe = (qn_probe_t){.masks = rules,
                               .mask_count = c->masks_count,
                               .taps = points,
                               .tap_count = c->taps_count,
                               .values = numbers,
                               .value_count = c->values_count,
                               .workspace = 1};
    task->run.ids = tokens;
    task->run.count = c->ids_count;
    task->run.position = c->position;
    task->run.request = c->request;
    task->lifetime_ms = c->lifetime_ms;
    task->top = c->top;
    task->wants_cache = c->request == 0;
    return QN_CALL_DONE;
}

static qn_call_outcome_t begin_common(compute_task_t *task, const common_t *c)
{
    const char *param = "taps";
    qn_call_outcome_t outcome = check_ids(task, c);
    if (outcome == QN_CALL_DONE) outcome = copy(task, c);
    if (outcome != QN_CALL_DONE) return outcome;
    if (qn_probe_check(&task->probe, &task->service->limits.probes, &param) < 0)
        return tasks_refuse(task, 400, param, "%s", qn_err_text());
    task->run.probe = task->probe;
    task->run.stages = (forward_stages_t){.embed = true, .layer_count = task->service->model->config.layers};
    return QN_CALL_DONE;
}

/* The tensors of taps that read. */
static qn_call_outcome_t add_taps(compute_task_t *task)
{
    uint32_t begin = task->run.position, end = begin + task->run.count;
    for (uint32_t i = 0; i < task->probe.tap_count; i++) {
        qn_tap_point_t *tap = (qn_tap_point_t *)(uintptr_t)&task->probe.taps[i];
        char name[64];
        if (tap->action != QN_TAP_ACTION_READ) continue;
        if (tap->position_from < begin || tap->position_to > end)
            return tasks_refuse(task, 400, "taps", "taps[%u]: positions %u to %u, and positions %u to %u are run", i,
                                tap->position_from, tap->position_to, begin, end);
        uint64_t shape[2] = {tap->position_to - tap->position_from,
                             qn_probe_width(&task->service->limits.probes, tap->site)};
        bool f32 = task->service->limits.activations == QN_SCALAR_F32 || tap->site == QN_TAP_SITE_LOGITS;
        if (qn_probe_site_is_of_layer(tap->site))
            snprintf(name, sizeof name, "layer.%u.%s", tap->layer, SITES[tap->site]);
        else
            snprintf(name, sizeof name, "%s", SITES[tap->site]);
        tap->offset = tasks_add(task, name, f32 ? QN_DTYPE_F32 : QN_DTYPE_BF16, 2, shape)->at;
    }
    return QN_CALL_DONE;
}

static qn_call_outcome_t want_logits(compute_task_t *task)
{
    size_t bytes = task->service->limits.vocab * sizeof(float);
    if (executor_task_memory(task->service->runtime->executor, bytes, &task->logits_memory) < 0)
        return tasks_refuse(task, 507, NULL, "%s", qn_err_text());
    task->logits = task->run.ret_logits = task->logits_memory;
    return QN_CALL_DONE;
}

/* The handle of a reply, NULL when all is inline. */
static const qn_workspace_handle_t *handle_of(compute_task_t *task, qn_arena_t *arena)
{
    char *path = qn_arena_zalloc(arena, QN_PATH_MAX + 16, 1);
    if (!task->has_range) return NULL;
    snprintf(path, QN_PATH_MAX + 16, "%s/memory.fds", qn_daemon_run_dir(task->service->daemon));
    task->handle.fd_socket = qn_text(path);
    return &task->handle;
}

/* ---- forward ---- */

static void summarise_logits(const compute_task_t *task, qn_arena_t *arena, qn_tapped_tensor_t *ret)
{
    task_tensor_t tensor = {.name = "logits", .dtype = QN_DTYPE_F32, .shape = {task->service->limits.vocab}, .rank = 1};
    double sum = 0, squares = 0;
    uint64_t zeros = 0, *shape = qn_arena_zalloc(arena, 4, sizeof *shape);
    float least = INFINITY, most = -INFINITY;
    uint32_t V = task->service->limits.vocab, numbers = 0;
    for (uint32_t i = 0; i < V; i++) {
        float value = task->logits[i];
        if (isnan(value)) continue;
        numbers++;
        zeros += value == 0;
        least = value < least ? value : least;
        most = value > most ? value : most;
        sum += (double)value;
        squares += (double)value * (double)value;
    }
    double mean = sum / numbers;
    shape[0] = tensor.shape[0];
    *ret = (qn_tapped_tensor_t){.name = qn_text("logits"),
                                .shape = shape,
                                .shape_count = 1,
                                .min = least,
                                .max = most,
                                .mean = (float)mean,
                                .std = (float)sqrt(squares / numbers - mean * mean),
                                .zeros = (float)zeros / (float)V,
                                .nan_count = V - numbers};
}

static void reply_forward(compute_task_t *task)
{
    qn_arena_t arena;
    qn_arena_init(&arena, 0);
    qn_token_logprob_t *top = qn_arena_zalloc(&arena, 21, sizeof *top);
    qn_tapped_tensor_t logits, *taps = qn_arena_zalloc(&arena, task->tensor_count + 1, sizeof *taps);
    float *values = qn_arena_zalloc(&arena, task->has_range ? 1 : task->values + 1, sizeof *values);
    qn_compute_forward_reply_t reply = {.tokens = task->run.count, .values = values, .taps = taps, .top = top};
    uint32_t wanted = task->top ? task->top : 1;
    uint32_t found = tasks_top(task, task->service->limits.vocab, top, wanted);
    reply.next_id = top[0].id;
    reply.top_count = task->top ? found : 0;
    summarise_logits(task, &arena, &logits);
    reply.logits = &logits;
    for (uint32_t i = 0; i < task->tensor_count; i++)
        tasks_show(task, &arena, &task->tensors[i], &taps[i], values, &reply.values_count);
    reply.taps_count = task->tensor_count;
    reply.handle = handle_of(task, &arena);
    reply.compute_us = (float)task->run.ret_ns / 1000;
    qn_call_finish(&task->call, &reply);
    qn_arena_fini(&arena);
}

qn_call_outcome_t method_forward(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    (void)ret_reply;
    const qn_compute_forward_t *request = message;
    const common_t c = {.ids = request->ids,
                        .ids_count = request->ids_count,
                        .position = request->position,
                        .request = request->request,
                        .inline_values = request->inline_values,
                        .lifetime_ms = request->lifetime_ms,
                        .top = request->top,
                        .masks = request->masks,
                        .masks_count = request->masks_count,
                        .values = request->values,
                        .values_count = request->values_count,
                        .taps = request->taps,
                        .taps_count = request->taps_count};
    compute_task_t *task = tasks_begin(state, call);
    if (!task) return QN_CALL_FAILED;
    qn_call_outcome_t outcome = begin_common(task, &c);
    if (outcome == QN_CALL_DONE) outcome = add_taps(task);
    if (outcome == QN_CALL_DONE) outcome = want_logits(task);
    if (outcome != QN_CALL_DONE) return outcome;
    task->wants_range = task->values > c.inline_values;
    task->reply = reply_forward;
    return tasks_go(task);
}

/* ---- attention scores ---- */

/* From [rows, H, columns] of all heads to [heads, rows, columns] of those that are wanted, with what is said of each. */
static void look_at_weights(compute_task_t *task)
{
    uint32_t H = task->service->model->config.heads, columns = task->run.weight_columns;
    float *out = (float *)(void *)(task->out + task->tensors[0].at);
    for (uint32_t h = 0; h < task->head_count; h++) {
        uint64_t below = 0;
        double entropy = 0;
        for (uint32_t r = 0; r < task->rows; r++) {
            const float *row = task->run.weights + ((size_t)r * H + task->heads[h]) * columns;
            float *to = out + ((size_t)h * task->rows + r) * columns;
            memcpy(to, row, columns * sizeof *row);
            for (uint32_t c = 0; c < columns; c++) {
                below += row[c] < task->threshold;
                if (row[c] > 0) entropy -= (double)row[c] * log((double)row[c]);
            }
        }
        task->head_scores[h] = (qn_head_scores_t){.head = task->heads[h],
                                                  .sparsity_ratio = (float)below / ((float)task->rows * (float)columns),
                                                  .entropy = (float)(entropy / task->rows)};
    }
}

static void reply_scores(compute_task_t *task)
{
    qn_arena_t arena;
    qn_tapped_tensor_t weights;
    qn_arena_init(&arena, 0);
    float *values = qn_arena_zalloc(&arena, task->has_range ? 1 : task->values + 1, sizeof *values);
    qn_compute_attention_scores_reply_t reply = {.layer = task->run.weight_layer,
                                                 .from = task->run.weight_from,
                                                 .rows = task->rows,
                                                 .columns = task->run.weight_columns,
                                                 .per_head = task->head_scores,
                                                 .per_head_count = task->head_count,
                                                 .weights = &weights,
                                                 .values = values,
                                                 .compute_us = (float)task->run.ret_ns / 1000};
    for (uint32_t h = 0; h < task->head_count; h++) {
        reply.sparsity_ratio += task->head_scores[h].sparsity_ratio / (float)task->head_count;
        reply.entropy += task->head_scores[h].entropy / (float)task->head_count;
    }
    tasks_show(task, &arena, &task->tensors[0], &weights, values, &reply.values_count);
    reply.handle = handle_of(task, &arena);
    qn_call_finish(&task->call, &reply);
    qn_arena_fini(&arena);
}

static qn_call_outcome_t choose_heads(compute_task_t *task, const qn_compute_attention_scores_t *request)
{
    uint32_t H = task->service->model->config.heads;
    task->head_count = request->heads_count ? request->heads_count : H;
    for (uint32_t i = 0; i < task->head_count; i++) {
        task->heads[i] = request->heads_count ? request->heads[i] : i;
        if (task->heads[i] >= H)
            return tasks_refuse(task, 400, "heads", "head %u; the model has %u, from 0", task->heads[i], H);
    }
    task->head_scores = calloc(task->head_count, sizeof *task->head_scores);
    return task->head_scores ? QN_CALL_DONE : tasks_refuse(task, 507, NULL, "no memory for this call");
}

qn_call_outcome_t method_attention_scores(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    (void)ret_reply;
    const compute_service_t *service = state;
    const qn_compute_attention_scores_t *request = message;
    compute_task_t *task = tasks_begin(state, call);
    if (!task) return QN_CALL_FAILED;
    uint32_t layers = service->model->config.layers, H = service->model->config.heads;
    uint64_t first = request->request ? request->from : 0, all = first + request->ids_count;
    uint32_t end = request->to ? request->to : (uint32_t)all;
    if (request->layer >= layers)
        return tasks_refuse(task, 400, "layer", "layer %u; the model has %u, from 0", request->layer, layers);
    if (request->from >= end || end > all)
        return tasks_refuse(task, 400, "from", "rows %u to %u of %llu positions", request->from, end,
                            (unsigned long long)all);
    const common_t c = {.ids = request->ids,
                        .ids_count = end - (uint32_t)first,
                        .position = (uint32_t)first,
                        .request = request->request,
                        .lifetime_ms = request->lifetime_ms,
                        .masks = request->masks,
                        .masks_count = request->masks_count};
    qn_call_outcome_t outcome = begin_common(task, &c);
    if (outcome == QN_CALL_DONE) outcome = choose_heads(task, request);
    if (outcome != QN_CALL_DONE) return outcome;
    task->rows = end - request->from;
    task->threshold = request->threshold;
    size_t bytes = (size_t)task->rows * H * end * sizeof(float);
    uint64_t shape[3] = {task->head_count, task->rows, end};
    char name[64];
    if (bytes > (size_t)1 << 30)
        return tasks_refuse(task, 400, "to",
                            "%u rows of %u positions and %u heads are more than a GiB: ask for fewer rows", task->rows,
                            end, H);
    if (executor_task_memory(task->service->runtime->executor, bytes, &task->weights_memory) < 0)
        return tasks_refuse(task, 507, NULL, "%s", qn_err_text());
    memset(task->weights_memory, 0, bytes);
    task->run.weights = task->weights_memory;
    task->run.weight_layer = request->layer;
    task->run.weight_from = request->from;
    task->run.weight_columns = end;
    task->run.stages = (forward_stages_t){.embed = true, .layer_count = request->layer, .attention = true};
    snprintf(name, sizeof name, "layer.%u.attention", request->layer);
    tasks_add(task, name, QN_DTYPE_F32, 3, shape);
    task->wants_range = task->values > request->inline_values;
    task->look = look_at_weights;
    task->reply = reply_scores;
    return tasks_go(task);
}

/* ---- stages ---- */

/* The stage's output in its place: the stream of all tokens, or the logits of the last one. */
static void look_at_stage(compute_task_t *task)
{
    const float *from = task->logits ? task->logits : task->run.ret_residual;
    memcpy(task->out + task->tensors[0].at, from, task->tensors[0].bytes);
}

static void reply_stage(compute_task_t *task)
{
    qn_arena_t arena;
    qn_tapped_tensor_t output, inside[16];
    qn_arena_init(&arena, 0);
    qn_token_logprob_t *top = qn_arena_zalloc(&arena, 21, sizeof *top);
    float *values = qn_arena_zalloc(&arena, task->has_range ? 1 : task->values + 1, sizeof *values);
    qn_compute_run_stage_reply_t reply = {.top = top,
                                          .output = &output,
                                          .values = values,
                                          .compute_us = (float)task->run.ret_ns / 1000};
    if (task->logits) {
        uint32_t found = tasks_top(task, task->service->limits.vocab, top, task->top ? task->top : 1);
        reply.next_id = top[0].id;
        reply.top_count = task->top ? found : 0;
    }
    tasks_show(task, &arena, &task->tensors[0], &output, values, &reply.values_count);
    for (uint32_t i = 1; i < task->tensor_count && i <= 16; i++)
        tasks_show(task, &arena, &task->tensors[i], &inside[reply.intermediates_count++], values, &reply.values_count);
    reply.intermediates = inside;
    reply.handle = handle_of(task, &arena);
    qn_call_finish(&task->call, &reply);
    qn_arena_fini(&arena);
}

/* The sites inside a stage. Returns how many. */
static uint32_t sites_of(qn_model_stage_t stage, uint32_t layer, qn_tap_request_t ret_taps[8])
{
    static const qn_tap_site_t ALL[] = {QN_TAP_SITE_ATTN_Q, QN_TAP_SITE_ATTN_K, QN_TAP_SITE_ATTN_V,
                                        QN_TAP_SITE_ATTN_OUT, QN_TAP_SITE_MLP_OUT};
    uint32_t count = 0, from = stage == QN_MODEL_STAGE_MLP ? 4 : 0, to = stage == QN_MODEL_STAGE_ATTENTION ? 4 : 5;
    if (stage == QN_MODEL_STAGE_OUTPUT) {
        ret_taps[0] = (qn_tap_request_t){.site = QN_TAP_SITE_NORM, .scale = 1};
        return 1;
    }
    for (uint32_t i = from; stage != QN_MODEL_STAGE_EMBED && i < to; i++)
        ret_taps[count++] = (qn_tap_request_t){.site = ALL[i], .layer = layer, .scale = 1};
    return count;
}

/* The parts that a stage runs, when all before it has to be run first or was. */
static forward_stages_t stages_of(qn_model_stage_t stage, uint32_t layer, uint32_t layers, bool given)
{
    forward_stages_t parts = {.embed = !given};
    switch (stage) {
    case QN_MODEL_STAGE_EMBED: return (forward_stages_t){.embed = true};
    case QN_MODEL_STAGE_OUTPUT: parts.layer_count = given ? 0 : layers; return parts;
    case QN_MODEL_STAGE_LAYER:
        parts.first_layer = given ? layer : 0;
        parts.layer_count = given ? 1 : layer + 1;
        return parts;
    case QN_MODEL_STAGE_ATTENTION:
    case QN_MODEL_STAGE_MLP: break;
    }
    parts.first_layer = given ? layer : 0;
    parts.layer_count = given ? 0 : layer;
    parts.attention = stage == QN_MODEL_STAGE_ATTENTION || !given;
    parts.mlp = stage == QN_MODEL_STAGE_MLP;
    return parts;
}

/* The input's numbers, from the request or from the workspace; *ret_given false: there are none. */
static qn_call_outcome_t find_input(compute_task_t *task, const qn_compute_run_stage_t *request,
                                    const float **ret_input, bool *ret_given)
{
    const compute_service_t *service = task->service;
    uint64_t count = (uint64_t)request->ids_count * service->model->config.hidden, bytes = count * sizeof(float);
    const qn_mapping_t *workspace = service->workspace;
    *ret_given = request->input_count || request->input_region;
    *ret_input = request->input;
    if (!*ret_given) return QN_CALL_DONE;
    if (request->stage == QN_MODEL_STAGE_EMBED)
        return tasks_refuse(task, 400, request->input_region ? "input_region" : "input",
                            "embed makes its output of the ids alone: leave the input out");
    if (request->input_region) {
        if (!workspace || request->input_region != qn_region_id(workspace) ||
            request->input_epoch != qn_region_epoch(workspace))
            return tasks_refuse(task, 410, "input_region",
                                "this region is not there any more; run the stage before it again");
        if (request->input_offset % 4 || request->input_offset > qn_region_bytes(workspace) ||
            bytes > qn_region_bytes(workspace) - request->input_offset)
            return tasks_refuse(task, 400, "input_offset", "%llu bytes at %llu are not inside the workspace of %llu",
                                (unsigned long long)bytes, (unsigned long long)request->input_offset,
                                (unsigned long long)qn_region_bytes(workspace));
        *ret_input =
            (const float *)(const void *)((const uint8_t *)qn_region_pointer(workspace) + request->input_offset);
        return QN_CALL_DONE;
    }
    if (request->input_count != count)
        return tasks_refuse(task, 400, "input", "%u numbers; the residual stream of %u tokens has %llu",
                            request->input_count, request->ids_count, (unsigned long long)count);
    return QN_CALL_DONE;
}

qn_call_outcome_t method_run_stage(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    (void)ret_reply;
    const compute_service_t *service = state;
    const qn_compute_run_stage_t *request = message;
    const float *input;
    qn_tap_request_t taps[8];
    bool given, output = request->stage == QN_MODEL_STAGE_OUTPUT;
    compute_task_t *task = tasks_begin(state, call);
    if (!task) return QN_CALL_FAILED;
    uint32_t layers = service->model->config.layers, width = service->model->config.hidden;
    if (request->layer >= layers)
        return tasks_refuse(task, 400, "layer", "layer %u; the model has %u, from 0", request->layer, layers);
    if (request->ids_count > service->limits.max_step_tokens)
        return tasks_refuse(task, 400, "ids", "%u ids; a stage takes %u at once (scheduler.max_step_tokens)",
                            request->ids_count, service->limits.max_step_tokens);
    qn_call_outcome_t outcome = find_input(task, request, &input, &given);
    if (outcome != QN_CALL_DONE) return outcome;
    common_t c = {.ids = request->ids,
                  .ids_count = request->ids_count,
                  .lifetime_ms = request->lifetime_ms,
                  .top = request->top,
                  .values = given ? input : NULL,
                  .values_count = given ? request->ids_count * width : 0,
                  .taps = taps,
                  .taps_count = request->intermediates ? sites_of(request->stage, request->layer, taps) : 0};
    outcome = check_ids(task, &c);
    if (outcome == QN_CALL_DONE) outcome = copy(task, &c);
    if (outcome != QN_CALL_DONE) return outcome;
    if (given) task->run.input = task->probe.values;
    task->probe.values = NULL;
    task->probe.value_count = 0;
    task->run.stages = stages_of(request->stage, request->layer, layers, given);
    uint64_t shape[2] = {output ? 1 : request->ids_count, output ? service->limits.vocab : width};
    size_t bytes = (size_t)request->ids_count * width * sizeof(float);
    if (output)
        outcome = want_logits(task);
    else if (executor_task_memory(task->service->runtime->executor, bytes, &task->residual_memory) < 0)
        outcome = tasks_refuse(task, 507, NULL, "%s", qn_err_text());
    if (outcome != QN_CALL_DONE) return outcome;
    task->run.ret_residual = task->residual_memory;
    tasks_add(task, output ? "logits" : "residual", QN_DTYPE_F32, 2, shape);
    outcome = add_taps(task);
    if (outcome != QN_CALL_DONE) return outcome;
    task->run.probe = task->probe;
    task->wants_range = task->values > request->inline_values;
    task->look = look_at_stage;
    task->reply = reply_stage;
    return tasks_go(task);
}
