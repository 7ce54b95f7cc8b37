/* What is this?      compute.execute: an operation on pieces of a tensor.
 * State owned:       none beyond the jobs of methods_tensors.c.
 * Must never:        answer with other numbers than the operation on the whole tensor gives.
 * Read next:         tensors/tensor_shape.c (what may begin), tensors/tensor_task.c (how it is done). */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "services/compute/methods_tensors.h"

/* ---- the answer ---- */

static void describe_with(const tensor_job_t *job, char *ret_text, size_t size)
{
    const tensor_t *with = job->work.with;
    if (job->work.with_random)
        snprintf(ret_text, size, "random [%" PRIu32 ", %" PRIu32 "], uniform in [-1, 1), seed 1", with->shape.sizes[0],
                 with->shape.sizes[1]);
    else
        snprintf(ret_text, size, "%s", !with ? "" : job->with_passing ? "of the request" : with->id);
}

static void show_results(const tensor_job_t *job, qn_tensor_result_t *rows, qn_tensor_summary_t *summaries,
                         char names[][16], qn_compute_execute_reply_t *reply)
{
    const tensor_task_t *work = &job->work;
    bool apart = work->join == TENSOR_APART;
    reply->results = rows;
    reply->results_count = apart ? work->piece_count : 1;
    for (uint32_t i = 0; i < reply->results_count; i++) {
        const tensor_shape_t *shape = apart ? &work->piece_shape[i] : &work->out->shape;
        summaries[i] = tensor_show_summary(&work->summaries[i]);
        rows[i] = (qn_tensor_result_t){.name = qn_text(apart ? names[i] : "result"),
                                       .shape = shape->sizes,
                                       .shape_count = shape->rank,
                                       .values_offset = apart ? work->piece_offset[i] : 0,
                                       .values_count = tensor_count(shape),
                                       .summary = &summaries[i]};
    }
}

static void show_times(const compute_service_t *service, const tensor_task_t *work, char names[][16],
                       qn_worker_time_t *rows, qn_compute_execute_reply_t *reply)
{
    uint64_t begin_ns = work->times[0].begin_ns, end_ns = begin_ns, sum_ns = 0;
    for (uint32_t i = 0; i < work->piece_count; i++) {
        const tensor_time_t *time = &work->times[i];
        uint64_t took_ns = time->end_ns - time->begin_ns;
        sum_ns += took_ns;
        if (time->end_ns > end_ns) end_ns = time->end_ns;
        rows[i] =
            (qn_worker_time_t){.worker = tensor_worker_name(service),
                               .split = qn_text(names[i]),
                               .begin_us = (float)(time->begin_ns - begin_ns) / 1e3f,
                               .us = (float)took_ns / 1e3f,
                               .threads = service->runtime ? qn_stream_threads(service->runtime->task_stream) : 0};
    }
    reply->workers = rows;
    reply->workers_count = work->piece_count;
    reply->compute_us = (float)sum_ns / 1e3f;
    reply->elapsed_us = (float)(end_ns - begin_ns) / 1e3f;
    reply->overlap = sum_ns > end_ns - begin_ns ? (float)(sum_ns - (end_ns - begin_ns)) / (float)sum_ns : 0;
}

static void answer_execute(compute_service_t *service, void *job_pointer)
{
    tensor_job_t *job = job_pointer;
    const tensor_task_t *work = &job->work;
    static const char *const joins[] = {[TENSOR_APART] = "none", [TENSOR_GATHER] = "gather", [TENSOR_SUM] = "sum"};
    qn_tensor_result_t results[TENSOR_SPLITS_MAX];
    qn_tensor_summary_t summaries[TENSOR_SPLITS_MAX];
    qn_worker_time_t times[TENSOR_SPLITS_MAX];
    char names[TENSOR_SPLITS_MAX][16], with[128];
    describe_with(job, with, sizeof with);
    for (uint32_t i = 0; i < work->piece_count; i++)
        snprintf(names[i], sizeof names[i], "split_%" PRIu32, work->pieces[i]);
    bool fits = work->out->count <= service->config->frontend.max_inline_values;
    qn_compute_execute_reply_t reply = {.operation = qn_text(tensor_operation_name(work->operation)),
                                        .tensor_id = qn_text(job->in_passing ? NULL : work->in->id),
                                        .with = qn_text(with[0] ? with : NULL),
                                        .join = qn_text(joins[work->join]),
                                        .values = fits ? work->out->values : NULL,
                                        .values_count = fits ? (uint32_t)work->out->count : 0,
                                        .values_left_out = !fits,
                                        .moved_bytes = work->moved_bytes};
    if (!fits) job->keep = true;
    if (job->keep) reply.result_id = qn_text(work->out->id);
    show_results(job, results, summaries, names, &reply);
    show_times(service, work, names, times, &reply);
    qn_call_finish(&job->call, &reply);
}

/* ---- the question ---- */

/* "split_3", "t1/split_3" */
static bool read_piece(const char *text, char *ret_tensor, size_t size, uint32_t *ret_piece)
{
    const char *slash = strchr(text, '/'), *name = slash ? slash + 1 : text;
    char *end;
    if (slash && (size_t)(slash - text) >= size) return false;
    if (slash) snprintf(ret_tensor, size, "%.*s", (int)(slash - text), text);
    if (strncmp(name, "split_", 6) != 0 || name[6] < '0' || name[6] > '9') return false;
    unsigned long piece = strtoul(name + 6, &end, 10);
    *ret_piece = (uint32_t)piece;
    return *end == '\0' && piece < TENSOR_SPLITS_MAX;
}

/* Which tensor, and which of its pieces. False: the call was refused. */
static bool find_pieces(compute_service_t *service, const qn_call_t *call, const qn_compute_execute_t *asked,
                        tensor_job_t *job)
{
    char id[16] = "";
    tensor_task_t *work = &job->work;
    if (asked->tensor_id.bytes) snprintf(id, sizeof id, "%.15s", asked->tensor_id.data);
    for (uint32_t i = 0; i < asked->splits_count; i++) {
        char named[16] = "";
        bool good = read_piece(asked->splits[i].data, named, sizeof named, &work->pieces[i]);
        bool twice = false;
        for (uint32_t j = 0; j < i; j++)
            twice = twice || work->pieces[j] == work->pieces[i];
        if (!good || twice || (named[0] && id[0] && strcmp(named, id) != 0)) {
            qn_call_fail(call, 400, "splits",
                         "splits: \"%.32s\" is no name of a piece of one tensor (split_0, t1/split_0), or "
                         "stands there twice",
                         asked->splits[i].data);
            return false;
        }
        if (named[0]) memcpy(id, named, sizeof id);
    }
    work->in = tensor_store_find(service->tensors, id);
    if (!work->in) {
        qn_call_fail(call, 404, "tensor_id",
                     id[0] ? "tensor_id: there is no \"%s\" (any more)"
                           : "tensor_id: no tensor is kept%s; split one first, or give its numbers "
                             "as tensor",
                     id);
        return false;
    }
    work->in->uses++;
    return true;
}

static bool check_pieces(const qn_call_t *call, tensor_task_t *work, uint32_t asked_count)
{
    work->piece_count = asked_count ? asked_count : work->in->splits;
    for (uint32_t i = 0; i < work->piece_count; i++) {
        if (!asked_count) work->pieces[i] = i;
        if (work->pieces[i] < work->in->splits) continue;
        qn_call_fail(call, 404, "splits", "splits: %s has no split_%u; it is split into %u", work->in->id,
                     work->pieces[i], work->in->splits);
        return false;
    }
    return true;
}

static bool find_input(compute_service_t *service, const qn_call_t *call, const qn_compute_execute_t *asked,
                       tensor_job_t *job)
{
    if (asked->tensor && (asked->tensor_id.bytes || asked->splits_count)) {
        qn_call_fail(call, 400, "tensor", "tensor: give its numbers, or name one that is kept, not both");
        return false;
    }
    job->in_passing = asked->tensor != NULL;
    if (asked->tensor)
        job->work.in = tensor_take(service, call, "tensor", asked->tensor, false, "", TENSOR_PASSING_NS);
    else if (!find_pieces(service, call, asked, job))
        return false;
    return job->work.in && check_pieces(call, &job->work, asked->splits_count);
}

static bool find_with(compute_service_t *service, const qn_call_t *call, const qn_compute_execute_t *asked,
                      tensor_job_t *job)
{
    tensor_task_t *work = &job->work;
    if (asked->with && asked->with_tensor_id.bytes) {
        qn_call_fail(call, 400, "with", "with: give its numbers, or name one that is kept, not both");
        return false;
    }
    if (asked->with_tensor_id.bytes) {
        work->with = tensor_store_find(service->tensors, asked->with_tensor_id.data);
        if (work->with)
            work->with->uses++;
        else
            qn_call_fail(call, 404, "with_tensor_id", "with_tensor_id: there is no \"%s\" (any more)",
                         asked->with_tensor_id.data);
        return work->with != NULL;
    }
    work->with_random = !asked->with && work->operation == TENSOR_MATMUL;
    job->with_passing = asked->with || work->with_random;
    uint32_t last = work->in->shape.sizes[work->in->shape.rank - 1];
    tensor_shape_t square = {.rank = 2, .sizes = {last, last}};
    if (work->with_random && tensor_count(&square) == 0) {
        qn_call_fail(call, 413, "with", "with: a square of %u is larger than a tensor may be; give one", last);
        return false;
    }
    if (asked->with)
        work->with = tensor_take(service, call, "with", asked->with, false, "", TENSOR_PASSING_NS);
    else if (work->with_random)
        work->with = tensor_make(service, call, "with", &square, work->in->bf16, "", TENSOR_PASSING_NS);
    return !job->with_passing || work->with;
}

/* What the call says, and memory for its result. False: it was refused. */
static bool set_up(compute_service_t *service, const qn_call_t *call, const qn_compute_execute_t *asked,
                   tensor_job_t *job)
{
    tensor_task_t *work = &job->work;
    tensor_shape_t shape;
    const char *operation = asked->operation.data;
    if (!tensor_operation_find(operation, &work->operation)) {
        qn_call_fail(call, 400, "operation",
                     "operation: matmul, add, mul, softmax, rmsnorm, layernorm, silu, gelu, gelu_tanh "
                     "or relu, not \"%.16s\"",
                     operation);
        return false;
    }
    if ((asked->reduce.bytes && strcmp(asked->reduce.data, "sum") != 0) || (asked->reduce.bytes && asked->gather)) {
        qn_call_fail(call, 400, "reduce", "reduce: \"sum\", and not with gather");
        return false;
    }
    work->join = asked->reduce.bytes ? TENSOR_SUM : asked->gather ? TENSOR_GATHER : TENSOR_APART;
    work->eps = asked->eps;
    if (!find_input(service, call, asked, job) || !find_with(service, call, asked, job)) return false;
    qn_err_t err = tensor_task_shape(work, &shape);
    if (err) { /* the text begins with the field at fault */
        char param[16];
        snprintf(param, sizeof param, "%.*s", (int)strcspn(qn_err_text(), ":"), qn_err_text());
        qn_call_fail(call, err == QN_ERR_LIMIT ? 413 : 400, param, "%s", qn_err_text());
        return false;
    }
    work->out = tensor_make(service, call, "operation", &shape, work->in->bf16, work->in->owner, job->ttl_ns);
    return work->out != NULL;
}

qn_call_outcome_t compute_method_execute(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    (void)ret_reply;
    compute_service_t *service = state;
    const qn_compute_execute_t *asked = message;
    if (!service->runtime) return qn_call_fail(call, 503, NULL, "compute has no model yet; try again");
    tensor_job_t *job = calloc(1, sizeof *job);
    if (!job) return qn_call_fail(call, 507, NULL, "compute has no memory for it");
    job->call = *call;
    job->answer = answer_execute;
    job->ttl_ns = TENSOR_PASSING_NS * 5;
    if (set_up(service, call, asked, job)) {
        job->keep = asked->keep;
        return tensor_job_start(service, job);
    }
    tensor_job_end(service, job);
    return QN_CALL_FAILED;
}
