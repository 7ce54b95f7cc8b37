/* What is this?      compute.benchmark_kernel: the case of a request, and the answer of a job that is done.
 * State owned:       none; the service's.
 * Must never:        start a second job; time what gives wrong numbers without saying so.
 * Read next:         bench/bench_job.h, kernels/kernel_names.h, schemas/compute/. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "kernels/loaded.h"
#include "services/compute/kernels/kernel_names.h"
#include "services/compute/methods.h"

#define TOKENS_MAX 16384u

/* ---- the spec ---- */

qn_scalar_t compute_weight_format(const compute_service_t *service)
{
    return service->model->layers[0].weights[QN_TENSOR_OUTPUT].scalar;
}

bool compute_bench_begin(compute_service_t *service, const qn_call_t *call, bench_spec_t *ret_spec)
{
    if (!service->runtime) {
        qn_call_fail(call, 503, NULL, "compute has no model yet; try again");
        return false;
    }
    if (service->desk->job) {
        qn_call_fail(call, 503, NULL, "another benchmark runs; try again when it is done");
        return false;
    }
    const qn_model_config_t *config = &service->model->config;
    *ret_spec = (bench_spec_t){
        .config = service->config,
        .queue = service->runtime->queue,
        .stream = service->backend->synchronous ? service->runtime->stream : NULL,
        .activations = service->limits.activations,
        .shape = {.name = "the model",
                  .heads = config->heads,
                  .kv_heads = config->kv_heads,
                  .head_dim = config->head_dim,
                  .hidden = config->hidden,
                  .intermediate = config->intermediate,
                  .vocab = config->vocab,
                  .experts = config->experts,
                  .experts_per_token = config->experts_per_token,
                  .expert_width = config->expert_intermediate,
                  .block_tokens = service->limits.block_tokens},
        .speed = service->desk->speed,
    };
    ret_spec->kernels[0] =
        service->backend->kernels((int)service->config->compute.device, &ret_spec->kernel_count[0], &ret_spec->isa);
    if (service->backend->synchronous) ret_spec->kernels[1] = qn_kernels_loaded(&ret_spec->kernel_count[1]);
    return true;
}

qn_call_outcome_t compute_bench_start(compute_service_t *service, qn_call_t *call, const bench_spec_t *spec,
                                      bool tuning, bool apply)
{
    kernel_desk_t *desk = service->desk;
    qn_err_t err = bench_job_start(spec, &desk->job);
    if (!err) err = qn_daemon_watch(service->daemon, bench_job_fd(desk->job));
    if (err) {
        bench_job_stop(&desk->job);
        return qn_call_fail(call, 503, NULL, "%.300s; try again", qn_err_text());
    }
    desk->tuning = tuning;
    desk->apply = apply;
    desk->job_call = *call;
    return QN_CALL_LATER;
}

/* ---- the request ---- */

static bool read_dtype(const qn_call_t *call, const char *text, bool product, bool cached, qn_scalar_t *scalar)
{
    static const char *const NAMES[] = {"f32", "bf16", "int8", "int4"};
    unsigned found = 0;
    if (!text) return true;
    while (found < 4 && strcmp(NAMES[found], text) != 0)
        found++;
    bool fits = found < 2 ? product || cached : found < 4 && product;
    if (fits)
        *scalar = (qn_scalar_t)found;
    else
        qn_call_fail(call, 400, "dtype",
                     "dtype: \"%.16s\" is not possible here; products take f32, bf16, int8 or int4, "
                     "attention and kv_write f32 or bf16, others none",
                     text);
    return fits;
}

static bool read_part(const qn_call_t *call, const char *text, qn_op_t op, const char *named, const char **ret_part)
{
    static const char *const PRODUCTS[] = {"qkv", "output", "gate_up", "down", "head", NULL};
    static const char *const FUSED[] = {"gate_up", "qkv", "head", NULL}, *const ACTIVATIONS[] = {"gelu", NULL};
    static const char *const NONE[] = {NULL};
    const char *const *possible = op == QN_OP_MATMUL        ? PRODUCTS
                                  : op == QN_OP_NORM_MATMUL ? FUSED
                                  : op == QN_OP_ACTIVATION  ? ACTIVATIONS
                                                            : NONE;
    *ret_part = named ? named : op == QN_OP_ACTIVATION ? NULL : op == QN_OP_MATMUL ? "gate_up" : possible[0];
    if (!text) return true;
    for (size_t i = 0; possible[i]; i++)
        if (strcmp(possible[i], text) == 0) {
            *ret_part = possible[i];
            return true;
        }
    qn_call_fail(call, 400, "part",
                 "part: \"%.16s\" is not possible for %s; products have qkv, output, gate_up, down and head, "
                 "an activation gelu",
                 text, qn_op_name(op));
    return false;
}

static void take_size(uint32_t asked, uint32_t *size)
{
    if (asked) *size = asked;
}

static bool read_shape(const qn_call_t *call, const qn_compute_benchmark_kernel_t *asked, kernel_shape_t *shape)
{
    take_size(asked->heads, &shape->heads);
    take_size(asked->kv_heads, &shape->kv_heads);
    take_size(asked->head_dim, &shape->head_dim);
    take_size(asked->hidden, &shape->hidden);
    take_size(asked->intermediate, &shape->intermediate);
    take_size(asked->vocab, &shape->vocab);
    if (shape->heads % shape->kv_heads != 0) {
        qn_call_fail(call, 400, "kv_heads", "kv_heads: %u heads are no multiple of %u", shape->heads, shape->kv_heads);
        return false;
    }
    if (shape->head_dim > QN_HEAD_DIM_MAX || shape->head_dim % 4 != 0) {
        qn_call_fail(call, 400, "head_dim", "head_dim: %u is not a multiple of 4 up to %d", shape->head_dim,
                     QN_HEAD_DIM_MAX);
        return false;
    }
    return true;
}

/* Operations whose rows are sequences: batch_size of them, and seq_len is their context. */
static bool is_per_sequence(qn_op_t op)
{
    return op == QN_OP_ATTENTION_DECODE || op == QN_OP_DECODE_ATTENTION || op == QN_OP_SAMPLER ||
           op == QN_OP_LOGPROBS || op == QN_OP_SLOT_UPDATE || op == QN_OP_STEP_INPUT || op == QN_OP_BLOCK_COPY;
}

static bool set_case(const compute_service_t *service, const qn_call_t *call,
                     const qn_compute_benchmark_kernel_t *asked, qn_op_t op, bench_case_t *one)
{
    uint64_t tokens = is_per_sequence(op) ? asked->batch_size : (uint64_t)asked->batch_size * asked->seq_len;
    bool attention = op == QN_OP_ATTENTION_PREFILL || op == QN_OP_ATTENTION_DECODE || op == QN_OP_DECODE_ATTENTION;
    bool cached = attention || op == QN_OP_KV_WRITE || op == QN_OP_BLOCK_COPY;
    bool product = op == QN_OP_MATMUL || op == QN_OP_NORM_MATMUL || op == QN_OP_EXPERT_MATMUL || op == QN_OP_EMBEDDING;
    if (tokens > TOKENS_MAX) {
        qn_call_fail(call, 400, "seq_len", "seq_len: %u sequences of %u are more than the %u tokens that are possible",
                     asked->batch_size, asked->seq_len, TOKENS_MAX);
        return false;
    }
    *one =
        (bench_case_t){.op = op,
                       .tokens = (uint32_t)tokens,
                       .context = attention || op == QN_OP_SLOT_UPDATE || op == QN_OP_STEP_INPUT ? asked->seq_len : 0,
                       .sequences = op == QN_OP_ATTENTION_PREFILL ? asked->batch_size : 0,
                       .part = one->part,
                       .scalar = product  ? compute_weight_format(service)
                                 : cached ? service->kv_layout.scalar
                                          : QN_SCALAR_F32};
    return read_dtype(call, asked->dtype.data, product, cached, &one->scalar);
}

static bool knows_implementation(const bench_spec_t *spec, const qn_call_t *call, qn_op_t op, const char *name)
{
    char names[256] = "";
    for (size_t list = 0; list < 2; list++)
        for (size_t i = 0; i < spec->kernel_count[list]; i++) {
            const qn_kernel_t *row = &spec->kernels[list][i];
            size_t used = strlen(names);
            if (row->op != op) continue;
            if (!name || strcmp(row->name, name) == 0) return true;
            snprintf(names + used, sizeof names - used, "%s%s", used ? ", " : "", row->name);
        }
    if (name)
        qn_call_fail(call, 400, "implementation", "implementation: there is no \"%.40s\" of %s; there are %s", name,
                     qn_op_name(op), names);
    else
        qn_call_fail(call, 400, "operation", "operation: this backend has no %s", qn_op_name(op));
    return false;
}

qn_call_outcome_t compute_method_benchmark_kernel(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    (void)ret_reply;
    compute_service_t *service = state;
    const qn_compute_benchmark_kernel_t *asked = message;
    const char *named, *nearest;
    bench_spec_t spec;
    if (!compute_bench_begin(service, call, &spec)) return QN_CALL_FAILED;
    qn_op_t op = kernel_named(asked->operation.data, &named, &nearest);
    if (op == QN_OP_COUNT)
        return qn_call_fail(call, 400, "operation", "operation: there is no \"%.40s\"; did you mean \"%s\"?",
                            asked->operation.data, nearest);
    if (!kernel_op_has_cases(op))
        return qn_call_fail(call, 400, "operation", "operation: there are no cases for %s yet", qn_op_name(op));
    bool moe = op == QN_OP_MOE_ROUTE || op == QN_OP_EXPERT_MATMUL || op == QN_OP_MOE_COMBINE;
    if (moe && !spec.shape.experts)
        return qn_call_fail(call, 400, "operation", "operation: the model has no experts for %s", qn_op_name(op));
    bench_case_t *one = &spec.cases[0];
    if (!read_shape(call, asked, &spec.shape) || !set_case(service, call, asked, op, one) ||
        !read_part(call, asked->part.data, op, named, &one->part) ||
        !knows_implementation(&spec, call, op, asked->implementation.data))
        return QN_CALL_FAILED;
    spec.case_count = 1;
    spec.seconds = asked->seconds;
    if (asked->implementation.data)
        snprintf(spec.implementation, sizeof spec.implementation, "%s", asked->implementation.data);
    return compute_bench_start(service, call, &spec, false, false);
}

/* ---- the answer ---- */

/* What the machine can do at most, against what was done. */
static void show_limit(const machine_speed_t *speed, const bench_case_result_t *done, const bench_row_t *row,
                       qn_kernel_timing_t *timing)
{
    machine_peak_t peak = machine_peak_of(row->kernel->name, done->scalar);
    double most = machine_peak_speed(speed, peak);
    double moving = done->from_memory && speed->read_all > 0 ? done->bytes / speed->read_all : 0;
    double computing = most > 0 ? done->operations / most : 0;
    if (moving <= 0 && computing <= 0) return;
    timing->limited_by = qn_text(moving >= computing ? "memory" : machine_peak_name(peak));
    timing->share_of_limit = (float)((moving >= computing ? moving : computing) / row->best_s);
}

static qn_kernel_timing_t show_row(const compute_service_t *service, const bench_row_t *row)
{
    const bench_job_t *job = service->desk->job;
    const bench_case_result_t *done = bench_job_case(job, row->case_index);
    const qn_kernel_set_t *chosen = service->runtime ? &service->runtime->kernels : NULL;
    qn_kernel_timing_t timing = {.implementation = qn_text(row->kernel->name),
                                 .chosen = chosen && chosen->chosen[row->kernel->op] == row->kernel,
                                 .right = row->right,
                                 .error = isfinite(row->error) ? (float)row->error : -1,
                                 .tolerance = (float)row->tolerance,
                                 .note = qn_text(row->note[0] ? row->note : NULL)};
    if (!row->timed || row->best_s <= 0) return timing;
    timing.us = (float)(row->best_s * 1e6);
    timing.median_us = (float)(row->median_s * 1e6);
    timing.rounds = row->rounds;
    timing.gb_per_s = (float)(done->bytes / row->best_s * 1e-9);
    timing.tflop_per_s = (float)(done->operations / row->best_s * 1e-12);
    show_limit(bench_job_speed(job), done, row, &timing);
    return timing;
}

static int compare_times(const void *a, const void *b)
{
    const qn_kernel_timing_t *left = a, *right = b;
    double l = left->us > 0 ? left->us : INFINITY, r = right->us > 0 ? right->us : INFINITY;
    return (l > r) - (l < r);
}

static void answer_benchmark(compute_service_t *service)
{
    kernel_desk_t *desk = service->desk;
    const bench_case_result_t *done = bench_job_case(desk->job, 0);
    qn_kernel_timing_t timings[32];
    size_t count;
    const bench_row_t *rows = bench_job_rows(desk->job, &count);
    if (count > 32) count = 32;
    for (size_t i = 0; i < count; i++)
        timings[i] = show_row(service, &rows[i]);
    qsort(timings, count, sizeof *timings, compare_times);
    qn_compute_benchmark_kernel_reply_t reply = {
        .operation = qn_text(qn_op_name(bench_job_spec(desk->job)->cases[0].op)),
        .shape = qn_text(done->shape),
        .bytes = (uint64_t)done->bytes,
        .operations = (uint64_t)done->operations,
        .from_memory = done->from_memory,
        .memory_gb_per_s = (float)(bench_job_speed(desk->job)->read_all * 1e-9),
        .results = timings,
        .results_count = (uint32_t)count,
    };
    if (count == 0)
        qn_call_fail(&desk->job_call, 400, "implementation", "implementation: none runs here for %s", done->shape);
    else
        qn_call_finish(&desk->job_call, &reply);
}

void kernel_desk_answer_job(compute_service_t *service)
{
    kernel_desk_t *desk = service->desk;
    const qn_failure_t *failure = bench_job_failure(desk->job);
    qn_daemon_unwatch(service->daemon, bench_job_fd(desk->job));
    if (bench_job_speed(desk->job)->threads) desk->speed = *bench_job_speed(desk->job);
    if (failure->code == QN_ERR_NO_MEMORY)
        qn_call_fail(&desk->job_call, 400, "seq_len",
                     "seq_len: %.300s: a case may have %d MiB; ask for a smaller shape", failure->text,
                     (int)(BENCH_JOB_MEMORY_MAX >> 20));
    else if (failure->code)
        qn_call_fail(&desk->job_call, 503, NULL, "%.400s", failure->text);
    else if (desk->tuning)
        compute_answer_autotune(service);
    else
        answer_benchmark(service);
    bench_job_stop(&desk->job);
}
