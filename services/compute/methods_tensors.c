/* What is this?      Compute's methods about the tensors of people: keep and split, list, read, drop; and the end of tasks.
 * State owned:       jobs from their start until they are answered.
 * Must never:        touch the numbers of a tensor that a task may be working on.
 * Read next:         tensors/tensor_store.h, tensors/tensor_task.h, methods_execute.c. */
#include "services/compute/methods_tensors.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"

#define SECOND_NS UINT64_C(1000000000)

/* ---- jobs ---- */

static void release(compute_service_t *service, tensor_t *tensor, bool passing)
{
    if (!tensor) return;
    tensor->uses--;
    if (passing && tensor->uses == 0) tensor_store_drop(service->tensors, tensor);
}

void tensor_job_end(compute_service_t *service, tensor_job_t *job)
{
    tensor_task_fini(&job->work);
    if (!job->work.fills) release(service, job->work.in, job->in_passing);
    release(service, job->work.with, job->with_passing);
    release(service, job->work.out, !job->keep);
    free(job);
}

qn_call_outcome_t tensor_job_start(compute_service_t *service, tensor_job_t *job)
{
    qn_call_t call = job->call;
    job->work.now_ns = qn_clock_now_ns;
    qn_err_t err = tensor_task_prepare(&job->work);
    if (!err && task_queue_add(service->tensor_tasks, &job->work.task)) {
        step_queue_nudge(service->runtime->queue);
        return QN_CALL_LATER;
    }
    job->keep = false;
    tensor_job_end(service, job);
    if (err) return qn_call_fail(&call, 507, NULL, "%s", qn_err_text());
    return qn_call_fail(&call, 429, NULL, "%d tasks wait already; try again", TASKS_MAX);
}

void compute_finish_tasks(compute_service_t *service)
{
    for (task_t *task; (task = task_queue_finished(service->tensor_tasks));) {
        tensor_job_t *job = (tensor_job_t *)task;
        uint64_t now_ns = qn_clock_now_ns();
        tensor_t *used[] = {job->work.in, job->work.with, job->work.out};
        for (size_t i = 0; i < sizeof used / sizeof used[0]; i++)
            if (used[i]) used[i]->deadline_ns = now_ns + used[i]->ttl_ns;
        job->answer(service, job);
        if (job->keep) job->work.out->hidden = false;
        tensor_job_end(service, job);
    }
}

void compute_drop_tasks(compute_service_t *service)
{
    compute_finish_tasks(service);
    for (task_t *task; (task = task_queue_withdraw(service->tensor_tasks));) {
        tensor_job_t *job = (tensor_job_t *)task;
        job->keep = false;
        qn_call_fail(&job->call, 503, NULL, "compute is stopping; try again");
        tensor_job_end(service, job);
    }
}

/* ---- tensors ---- */

bool tensor_read_shape(const uint32_t *sizes, uint32_t rank, tensor_shape_t *ret_shape)
{
    if (rank == 0 || rank > TENSOR_RANK_MAX) return false;
    *ret_shape = (tensor_shape_t){.rank = rank};
    memcpy(ret_shape->sizes, sizes, rank * sizeof *sizes);
    return tensor_count(ret_shape) > 0;
}

tensor_t *tensor_make(compute_service_t *service, const qn_call_t *call, const char *param, const tensor_shape_t *shape,
                      bool bf16, const char *owner, uint64_t ttl_ns)
{
    tensor_t *tensor = tensor_store_add(service->tensors, shape, bf16, owner, qn_clock_now_ns(), ttl_ns);
    if (tensor) {
        tensor->uses++;
        return tensor;
    }
    if (tensor_store_count(service->tensors) == TENSORS_MAX)
        qn_call_fail(call, 413, param, "%s: %d tensors are kept, and no more may be; drop one", param, TENSORS_MAX);
    else
        qn_call_fail(call, 413, param,
                     "%s: %" PRIu64 " numbers of 4 bytes are more than the %" PRIu64
                     " bytes that compute.tensor_bytes leaves; drop tensors, or raise it",
                     param, tensor_count(shape), tensor_store_room(service->tensors));
    return NULL;
}

tensor_t *tensor_take(compute_service_t *service, const qn_call_t *call, const char *param,
                      const qn_tensor_value_t *value, bool bf16, const char *owner, uint64_t ttl_ns)
{
    tensor_shape_t shape;
    if (!tensor_read_shape(value->shape, value->shape_count, &shape) || tensor_count(&shape) != value->values_count) {
        qn_call_fail(call, 400, param,
                     "%s: the product of shape (1 to 8 sizes, none 0, %u numbers at most) is not the %u "
                     "values",
                     param, TENSOR_ELEMENTS_MAX, value->values_count);
        return NULL;
    }
    tensor_t *tensor = tensor_make(service, call, param, &shape, bf16, owner, ttl_ns);
    if (tensor) memcpy(tensor->values, value->values, tensor->count * sizeof *tensor->values);
    return tensor;
}

qn_text_t tensor_worker_name(const compute_service_t *service)
{
    (void)service; /* one worker; with several, each says its instance */
    return qn_text("compute.0");
}

static float finite(double value) { return value > -3e38 && value < 3e38 ? (float)value : 0; }

qn_tensor_summary_t tensor_show_summary(const tensor_summary_t *summary)
{
    return (qn_tensor_summary_t){.min = (float)summary->min,
                                 .max = (float)summary->max,
                                 .mean = (float)summary->mean,
                                 .std = (float)summary->std,
                                 .zeros = finite(summary->zeros),
                                 .nan_count = summary->nan_count};
}

static float expires_in(const tensor_t *tensor)
{
    uint64_t now_ns = qn_clock_now_ns();
    return tensor->deadline_ns > now_ns ? (float)(tensor->deadline_ns - now_ns) / 1e9f : 0;
}

static const char *dtype_of(const tensor_t *tensor) { return tensor->bf16 ? "bf16" : "f32"; }

/* ---- split ---- */

static void answer_split(compute_service_t *service, void *job_pointer)
{
    const tensor_job_t *job = job_pointer;
    const tensor_t *tensor = job->work.out;
    qn_tensor_split_t splits[TENSOR_SPLITS_MAX];
    uint32_t shapes[TENSOR_SPLITS_MAX][TENSOR_RANK_MAX];
    char names[TENSOR_SPLITS_MAX][sizeof "split_4294967295"];
    qn_tensor_summary_t summary = tensor_show_summary(&job->work.summaries[0]);
    for (uint32_t i = 0; i < tensor->splits; i++) {
        memcpy(shapes[i], tensor->shape.sizes, sizeof shapes[i]);
        uint32_t first = tensor_piece(tensor, i, &shapes[i][tensor->split_dim]);
        snprintf(names[i], sizeof names[i], "split_%" PRIu32, i);
        splits[i] = (qn_tensor_split_t){.id = qn_text(names[i]),
                                        .shape = shapes[i],
                                        .shape_count = tensor->shape.rank,
                                        .offset = first,
                                        .worker = tensor_worker_name(service)};
    }
    qn_compute_tensor_split_reply_t reply = {.tensor_id = qn_text(tensor->id),
                                             .shape = tensor->shape.sizes,
                                             .shape_count = tensor->shape.rank,
                                             .dtype = qn_text(dtype_of(tensor)),
                                             .bytes = tensor->count * sizeof(float),
                                             .split_dim = tensor->split_dim,
                                             .splits = splits,
                                             .splits_count = tensor->splits,
                                             .summary = &summary,
                                             .expires_in_s = expires_in(tensor)};
    qn_call_finish(&job->call, &reply);
}

static bool read_fill(const qn_compute_tensor_split_t *asked, tensor_fill_t *ret_fill)
{
    static const struct {
        const char *name;
        tensor_fill_t fill;
    } fills[] = {{"random", TENSOR_FILL_RANDOM}, {"zeros", TENSOR_FILL_ZEROS}, {"arange", TENSOR_FILL_ARANGE}};
    *ret_fill = TENSOR_FILL_RANDOM;
    if (!asked->fill.bytes) return true;
    for (size_t i = 0; i < sizeof fills / sizeof fills[0]; i++)
        if (strcmp(asked->fill.data, fills[i].name) == 0) {
            *ret_fill = fills[i].fill;
            return true;
        }
    return false;
}

/* The tensor that is to be split, used once by the job; NULL: the call was refused. */
static tensor_t *find_tensor(compute_service_t *service, const qn_call_t *call, const qn_compute_tensor_split_t *asked,
                             tensor_job_t *job)
{
    tensor_shape_t shape;
    bool bf16 = asked->dtype.bytes && strcmp(asked->dtype.data, "bf16") == 0;
    const char *owner = asked->owner.bytes ? asked->owner.data : "";
    if (asked->tensor_id.bytes) {
        tensor_t *tensor = tensor_store_find(service->tensors, asked->tensor_id.data);
        if (!tensor)
            qn_call_fail(call, 404, "tensor_id", "tensor_id: there is no \"%s\" (any more)", asked->tensor_id.data);
        else if (tensor->uses > 0)
            qn_call_fail(call, 409, "tensor_id", "tensor_id: \"%s\" is being used; try again", asked->tensor_id.data);
        else
            tensor->uses++;
        return tensor && tensor->uses == 1 ? tensor : NULL;
    }
    if (asked->tensor) return tensor_take(service, call, "tensor", asked->tensor, bf16, owner, job->ttl_ns);
    if (!tensor_read_shape(asked->tensor_shape, asked->tensor_shape_count, &shape)) {
        qn_call_fail(call, 400, "tensor_shape", "tensor_shape: 1 to %d sizes, none 0, and %u numbers at most",
                     TENSOR_RANK_MAX, TENSOR_ELEMENTS_MAX);
        return NULL;
    }
    return tensor_make(service, call, "tensor_shape", &shape, bf16, owner, job->ttl_ns);
}

static qn_call_outcome_t check_split(const qn_call_t *call, const qn_compute_tensor_split_t *asked,
                                     tensor_fill_t *ret_fill)
{
    if ((asked->tensor_id.bytes != 0) + (asked->tensor != NULL) + (asked->tensor_shape_count != 0) != 1)
        return qn_call_fail(call, 400, "tensor_shape", "tensor_shape: give one of tensor_shape, tensor and tensor_id");
    if (asked->dtype.bytes && strcmp(asked->dtype.data, "f32") != 0 && strcmp(asked->dtype.data, "bf16") != 0)
        return qn_call_fail(call, 400, "dtype", "dtype: f32 or bf16");
    if (!read_fill(asked, ret_fill)) return qn_call_fail(call, 400, "fill", "fill: random, zeros or arange");
    if (asked->tensor_shape_count == 0 && asked->fill.bytes)
        return qn_call_fail(call, 400, "fill", "fill: only with tensor_shape; this tensor has its numbers");
    if (asked->tensor_id.bytes && asked->dtype.bytes)
        return qn_call_fail(call, 400, "dtype", "dtype: a tensor that is kept has one");
    if (asked->tensor_shape_count == 0) *ret_fill = TENSOR_FILL_VALUES;
    return QN_CALL_DONE;
}

qn_call_outcome_t compute_method_tensor_split(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    (void)ret_reply;
    compute_service_t *service = state;
    const qn_compute_tensor_split_t *asked = message;
    tensor_fill_t fill = TENSOR_FILL_VALUES;
    if (!service->runtime) return qn_call_fail(call, 503, NULL, "compute has no model yet; try again");
    if (check_split(call, asked, &fill) == QN_CALL_FAILED) return QN_CALL_FAILED;
    tensor_job_t *job = calloc(1, sizeof *job);
    if (!job) return qn_call_fail(call, 507, NULL, "compute has no memory for it");
    job->call = *call;
    job->ttl_ns = asked->ttl_s * SECOND_NS;
    job->answer = answer_split;
    tensor_t *tensor = find_tensor(service, call, asked, job);
    int rank = tensor ? (int)tensor->shape.rank : 0,
        dim = asked->split_dim < 0 ? asked->split_dim + rank : asked->split_dim;
    if (!tensor) {
        free(job);
        return QN_CALL_FAILED;
    }
    job->work.fills = job->keep = true;
    job->work.fill = fill;
    job->work.seed = asked->seed;
    job->work.out = tensor;
    if (dim < 0 || dim >= rank) {
        job->keep = asked->tensor_id.bytes != 0;
        tensor_job_end(service, job);
        return qn_call_fail(call, 400, "split_dim", "split_dim: the tensor has %d dimensions", rank);
    }
    tensor_split(tensor, (uint32_t)dim, asked->num_splits);
    tensor->was_split = true;
    return tensor_job_start(service, job);
}

/* ---- list, read, drop ---- */

qn_call_outcome_t compute_method_tensors(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    (void)message;
    const compute_service_t *service = state;
    qn_compute_tensors_reply_t *reply = ret_reply;
    qn_kept_tensor_t *rows = qn_arena_zalloc(call->arena, TENSORS_MAX, sizeof *rows);
    for (uint32_t i = 0; i < tensor_store_count(service->tensors); i++) {
        const tensor_t *tensor = tensor_store_at(service->tensors, i);
        if (tensor->hidden) continue;
        rows[reply->tensors_count++] = (qn_kept_tensor_t){.tensor_id = qn_text(tensor->id),
                                                          .shape = tensor->shape.sizes,
                                                          .shape_count = tensor->shape.rank,
                                                          .dtype = qn_text(dtype_of(tensor)),
                                                          .owner = qn_text(tensor->owner),
                                                          .split_dim = tensor->split_dim,
                                                          .splits = tensor->splits,
                                                          .bytes = tensor->count * sizeof(float),
                                                          .expires_in_s = expires_in(tensor)};
    }
    reply->tensors = rows;
    reply->free_bytes = tensor_store_room(service->tensors);
    return QN_CALL_DONE;
}

qn_call_outcome_t compute_method_tensor_values(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    const compute_service_t *service = state;
    const qn_compute_tensor_values_t *asked = message;
    qn_compute_tensor_values_reply_t *reply = ret_reply;
    uint64_t most = service->config->frontend.max_inline_values;
    const tensor_t *tensor = tensor_store_find(service->tensors, asked->tensor_id.bytes ? asked->tensor_id.data : "");
    if (!tensor && asked->tensor_id.bytes)
        return qn_call_fail(call, 404, "tensor_id", "tensor_id: there is no \"%s\" (any more)", asked->tensor_id.data);
    if (asked->limit > most)
        return qn_call_fail(call, 413, "limit",
                            "limit: %u numbers are more than frontend.max_inline_values (%" PRIu64 "); ask for pages",
                            asked->limit, most);
    if (!tensor) return QN_CALL_DONE;
    if (tensor->uses > 0)
        return qn_call_fail(call, 409, "tensor_id", "tensor_id: \"%s\" is being used; try again", tensor->id);
    uint64_t left = asked->offset < tensor->count ? tensor->count - asked->offset : 0;
    uint64_t count = asked->limit ? asked->limit : most;
    if (count > left) count = left;
    reply->tensor_id = qn_text(tensor->id);
    reply->shape = tensor->shape.sizes;
    reply->shape_count = tensor->shape.rank;
    reply->offset = asked->offset;
    reply->total = tensor->count;
    reply->values = count ? tensor->values + asked->offset : NULL;
    reply->values_count = (uint32_t)count;
    return QN_CALL_DONE;
}

static bool is_named(const qn_compute_tensor_drop_t *asked, const tensor_t *tensor)
{
    if (asked->all) return true;
    if (asked->owner.bytes) return strcmp(asked->owner.data, tensor->owner) == 0;
    return strcmp(asked->tensor_id.data, tensor->id) == 0;
}

qn_call_outcome_t compute_method_tensor_drop(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    compute_service_t *service = state;
    const qn_compute_tensor_drop_t *asked = message;
    qn_compute_tensor_drop_reply_t *reply = ret_reply;
    if ((asked->tensor_id.bytes != 0) + (asked->owner.bytes != 0) + asked->all != 1)
        return qn_call_fail(call, 400, "tensor_id", "tensor_id: give one of tensor_id, owner and all");
    uint32_t named = 0;
    for (uint32_t i = tensor_store_count(service->tensors); i-- > 0;) {
        tensor_t *tensor = tensor_store_at(service->tensors, i);
        if (tensor->hidden || !is_named(asked, tensor)) continue;
        named++;
        if (tensor->uses > 0) continue;
        tensor_store_drop(service->tensors, tensor);
        reply->dropped++;
    }
    if (asked->tensor_id.bytes && named == 0)
        return qn_call_fail(call, 404, "tensor_id", "tensor_id: there is no \"%s\" (any more)", asked->tensor_id.data);
    if (asked->tensor_id.bytes && reply->dropped == 0)
        return qn_call_fail(call, 409, "tensor_id", "tensor_id: \"%s\" is being used; try again",
                            asked->tensor_id.data);
    reply->kept = tensor_store_count(service->tensors);
    reply->free_bytes = tensor_store_room(service->tensors);
    return QN_CALL_DONE;
}
