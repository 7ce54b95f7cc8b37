/* What is this?      compute.autotune: the cases of the model that is served, and which implementation is best over them.
 * State owned:       none; the service's.
 * Must never:        choose what is not within the tolerance in every case, or what an object brought.
 * Read next:         bench/bench_job.h, kernels/tune_table.h, methods_benchmark.c. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/watch/log.h"
#include "kernels/loaded.h"
#include "services/compute/kernels/kernel_names.h"
#include "services/compute/methods.h"

#define SHAPES_MAX 24 /* of one operation */
#define CANDIDATES_MAX 16

/* ---- the cases ---- */

/* Implementations that fit here. */
static size_t count_candidates(const compute_service_t *service, const bench_spec_t *spec, qn_op_t op)
{
    size_t count = 0;
    for (size_t i = 0; i < spec->kernel_count[0]; i++) {
        const qn_kernel_t *row = &spec->kernels[0][i];
        bool fits = !row->accepts || row->accepts(&service->runtime->shape);
        count += row->op == op && !(row->isa & ~spec->isa) && fits;
    }
    return count;
}

static void add_case(const compute_service_t *service, bench_spec_t *spec, bench_case_t one)
{
    uint32_t most = service->limits.max_step_tokens;
    if (one.tokens > most) one.tokens = most;
    if (spec->case_count < BENCH_JOB_CASES_MAX) spec->cases[spec->case_count++] = one;
}

static void add_products(const compute_service_t *service, bench_spec_t *spec)
{
    static const char *const PARTS[] = {"qkv", "output", "gate_up", "down", "head"};
    static const uint32_t TOKENS[] = {1, 8, 256};
    for (size_t t = 0; t < 3; t++)
        for (size_t p = 0; p < 5; p++)
            if (t < 2 || p < 4) /* only last rows go through the head */
                add_case(service, spec,
                         (bench_case_t){.op = QN_OP_MATMUL,
                                        .tokens = TOKENS[t],
                                        .scalar = compute_weight_format(service),
                                        .part = PARTS[p]});
}

static void add_attention(const compute_service_t *service, bench_spec_t *spec, qn_op_t op)
{
    static const struct {
        uint32_t tokens, context;
    } DECODES[] = {{1, 256}, {1, 2048}, {8, 512}}, PROMPTS[] = {{128, 128}, {256, 1024}};
    bool prompts = op == QN_OP_ATTENTION_PREFILL;
    for (size_t i = 0; i < (prompts ? 2 : 3); i++)
        add_case(service, spec,
                 (bench_case_t){.op = op,
                                .tokens = prompts ? PROMPTS[i].tokens : DECODES[i].tokens,
                                .context = prompts ? PROMPTS[i].context : DECODES[i].context,
                                .sequences = prompts,
                                .scalar = service->kv_layout.scalar});
}

static void add_rows(const compute_service_t *service, bench_spec_t *spec, qn_op_t op)
{
    bool sequences = op == QN_OP_SAMPLER || op == QN_OP_LOGPROBS || op == QN_OP_SOFTCAP;
    qn_scalar_t scalar = op == QN_OP_KV_WRITE                                 ? service->kv_layout.scalar
                         : op == QN_OP_EMBEDDING || op == QN_OP_EXPERT_MATMUL ? compute_weight_format(service)
                                                                              : QN_SCALAR_F32;
    add_case(service, spec, (bench_case_t){.op = op, .tokens = 1, .scalar = scalar});
    add_case(service, spec, (bench_case_t){.op = op, .tokens = sequences ? 8 : 128, .scalar = scalar});
}

static void add_operation(const compute_service_t *service, bench_spec_t *spec, qn_op_t op)
{
    bool moe = op == QN_OP_MOE_ROUTE || op == QN_OP_EXPERT_MATMUL || op == QN_OP_MOE_COMBINE;
    bool attention = op == QN_OP_ATTENTION_PREFILL || op == QN_OP_ATTENTION_DECODE || op == QN_OP_DECODE_ATTENTION;
    if (!kernel_op_has_cases(op) || count_candidates(service, spec, op) < 2) return;
    if (op == QN_OP_NORM_MATMUL || (moe && !spec->shape.experts)) return; /* the first follows its parts */
    if (op == QN_OP_MATMUL)
        add_products(service, spec);
    else if (attention)
        add_attention(service, spec, op);
    else
        add_rows(service, spec, op);
}

qn_call_outcome_t compute_method_autotune(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    (void)ret_reply;
    compute_service_t *service = state;
    const qn_compute_autotune_t *asked = message;
    const char *part, *nearest;
    bench_spec_t spec;
    if (!compute_bench_begin(service, call, &spec)) return QN_CALL_FAILED;
    qn_op_t only = asked->operation.data ? kernel_named(asked->operation.data, &part, &nearest) : QN_OP_COUNT;
    if (asked->operation.data && only == QN_OP_COUNT)
        return qn_call_fail(call, 400, "operation", "operation: there is no \"%.40s\"; did you mean \"%s\"?",
                            asked->operation.data, nearest);
    bool pair = service->backend->chunks_are_decodes;
    for (unsigned op = 0; op < QN_OP_COUNT; op++) {
        bool twins = pair && ((only == QN_OP_ATTENTION_PREFILL && op == QN_OP_ATTENTION_DECODE) ||
                              (only == QN_OP_ATTENTION_DECODE && op == QN_OP_ATTENTION_PREFILL));
        if (only == QN_OP_COUNT || op == only || twins) add_operation(service, &spec, (qn_op_t)op);
    }
    if (spec.case_count == 0)
        return qn_call_fail(call, 400, "operation",
                            "operation: there is one implementation here, nothing to choose from");
    spec.kernel_count[1] = 0; /* what an object brought is chosen by people alone */
    if (!service->backend->synchronous && service->config->compute.deterministic)
        spec.only = &service->runtime->kernels; /* others may not keep what deterministic promises */
    spec.seconds = asked->seconds;
    spec.max_seconds = asked->max_seconds;
    return compute_bench_start(service, call, &spec, true, asked->apply);
}

/* ---- who is best ---- */

typedef struct {
    const qn_kernel_t *kernel;
    double score; /* sum of log(time / the fastest's) over the shapes */
    size_t shapes;
    bool out; /* not right, or not timed, somewhere */
} candidate_t;

typedef struct {
    qn_op_t op;
    candidate_t candidates[CANDIDATES_MAX];
    size_t candidate_count;
    size_t shapes; /* that were measured */
} contest_t;

static candidate_t *candidate_of(contest_t *contest, const qn_kernel_t *kernel)
{
    for (size_t i = 0; i < contest->candidate_count; i++)
        if (contest->candidates[i].kernel == kernel) return &contest->candidates[i];
    if (contest->candidate_count == CANDIDATES_MAX) return NULL;
    candidate_t *fresh = &contest->candidates[contest->candidate_count++];
    *fresh = (candidate_t){.kernel = kernel};
    return fresh;
}

static double time_of(const bench_row_t *row) { return row->right && row->timed && row->best_s > 0 ? row->best_s : 0; }

static double fastest(const bench_row_t *rows, size_t count, size_t index, const bench_row_t **ret_row)
{
    double best = 0;
    for (size_t i = 0; i < count; i++)
        if (rows[i].case_index == index && time_of(&rows[i]) > 0 && (best <= 0 || time_of(&rows[i]) < best)) {
            best = time_of(&rows[i]);
            if (ret_row) *ret_row = &rows[i];
        }
    return best;
}

static void hold_contest(const bench_job_t *job, qn_op_t op, contest_t *contest)
{
    size_t count;
    const bench_row_t *rows = bench_job_rows(job, &count);
    *contest = (contest_t){.op = op};
    for (size_t c = 0; c < bench_job_spec(job)->case_count; c++) {
        if (bench_job_spec(job)->cases[c].op != op) continue;
        if (!bench_job_case(job, c)->done) { /* the time was over: no verdict on some of the shapes */
            contest->candidate_count = 0;
            return;
        }
        double best = fastest(rows, count, c, NULL);
        contest->shapes++;
        for (size_t i = 0; i < count; i++) {
            candidate_t *candidate = rows[i].case_index == c ? candidate_of(contest, rows[i].kernel) : NULL;
            if (!candidate) continue;
            candidate->shapes++;
            candidate->out |= time_of(&rows[i]) <= 0;
            if (time_of(&rows[i]) > 0) candidate->score += log(time_of(&rows[i]) / best);
        }
    }
}

/* NULL: nobody. With a twin the best is one that both have; scores add up. */
static const candidate_t *winner(const contest_t *contest, const contest_t *twin)
{
    const candidate_t *best = NULL;
    double least = INFINITY;
    for (size_t i = 0; i < contest->candidate_count; i++) {
        const candidate_t *one = &contest->candidates[i];
        double score = one->score;
        bool good = !one->out && one->shapes == contest->shapes;
        bool found = twin == NULL;
        for (size_t j = 0; twin && j < twin->candidate_count; j++) {
            const candidate_t *other = &twin->candidates[j];
            if (strcmp(other->kernel->name, one->kernel->name) != 0 || other->out || other->shapes != twin->shapes)
                continue;
            found = true;
            score += other->score;
        }
        if (good && found && score < least) least = score, best = one;
    }
    return best;
}

/* ---- the answer ---- */

typedef struct {
    compute_service_t *service;
    json_t *chosen, *measured;
    qn_tuned_operation_t operations[QN_OP_COUNT];
    qn_tuned_shape_t shapes[QN_OP_COUNT][SHAPES_MAX];
    size_t count;
} verdict_t;

static const bench_row_t *row_of(const bench_row_t *rows, size_t count, size_t index, const qn_kernel_t *kernel)
{
    for (size_t i = 0; i < count; i++)
        if (rows[i].case_index == index && rows[i].kernel == kernel) return &rows[i];
    return NULL;
}

static void note_shape(verdict_t *v, const bench_row_t *rows, size_t count, size_t index)
{
    const bench_job_t *job = v->service->desk->job;
    json_t *times = json_object();
    for (size_t i = 0; i < count; i++)
        if (rows[i].case_index == index && time_of(&rows[i]) > 0)
            json_object_set_new(times, rows[i].kernel->name, json_real(rows[i].best_s * 1e6));
    json_array_append_new(v->measured,
                          json_pack("{s:s, s:s, s:o}", "operation", qn_op_name(bench_job_spec(job)->cases[index].op),
                                    "shape", bench_job_case(job, index)->shape, "us", times));
}

static void add_verdict(verdict_t *v, qn_op_t op, const qn_kernel_t *best)
{
    const bench_job_t *job = v->service->desk->job;
    const qn_kernel_t *now = v->service->runtime ? v->service->runtime->kernels.chosen[op] : NULL;
    size_t count, shape_count = 0;
    const bench_row_t *rows = bench_job_rows(job, &count);
    double gain = 0;
    qn_tuned_shape_t *shapes = v->shapes[v->count];
    for (size_t c = 0; c < bench_job_spec(job)->case_count && shape_count < SHAPES_MAX; c++) {
        const bench_row_t *first = NULL;
        if (bench_job_spec(job)->cases[c].op != op || fastest(rows, count, c, &first) <= 0) continue;
        const bench_row_t *chosen = row_of(rows, count, c, best), *before = now ? row_of(rows, count, c, now) : NULL;
        shapes[shape_count++] = (qn_tuned_shape_t){.shape = qn_text(bench_job_case(job, c)->shape),
                                                   .implementation = qn_text(first->kernel->name),
                                                   .us = (float)(first->best_s * 1e6),
                                                   .chosen_us = (float)(chosen->best_s * 1e6)};
        if (before && time_of(before) > 0) gain += log(before->best_s / chosen->best_s);
        note_shape(v, rows, count, c);
    }
    v->operations[v->count++] =
        (qn_tuned_operation_t){.operation = qn_text(qn_op_name(op)),
                               .implementation = qn_text(best->name),
                               .previous = qn_text(now ? now->name : NULL),
                               .speedup = (float)exp(gain / (double)(shape_count ? shape_count : 1)),
                               .shapes = shapes,
                               .shapes_count = (uint32_t)shape_count};
    json_object_set_new(v->chosen, qn_op_name(op), json_string(best->name));
}

static void judge(verdict_t *v)
{
    const bench_job_t *job = v->service->desk->job;
    contest_t contest, twin;
    for (unsigned op = 0; op < QN_OP_COUNT; op++) {
        bool paired =
            v->service->backend->chunks_are_decodes && (op == QN_OP_ATTENTION_PREFILL || op == QN_OP_ATTENTION_DECODE);
        hold_contest(job, (qn_op_t)op, &contest);
        if (paired)
            hold_contest(job, op == QN_OP_ATTENTION_PREFILL ? QN_OP_ATTENTION_DECODE : QN_OP_ATTENTION_PREFILL, &twin);
        const candidate_t *best = winner(&contest, paired ? &twin : NULL);
        if (best) add_verdict(v, (qn_op_t)op, best->kernel);
    }
}

/* What the table says now, without a table what was found over what was found before. */
static void take_tuned(compute_service_t *service, const json_t *chosen)
{
    char merged[LIVE_CHOICE_MAX] = "";
    const char *op;
    json_t *name;
    size_t used = 0;
    for (const char *at = service->desk->tuned; *at;) {
        size_t bytes = strcspn(at, ",");
        char item[2 * QN_NAME_MAX];
        snprintf(item, sizeof item, "%.*s", (int)bytes, at);
        item[strcspn(item, "=")] = '\0';
        if (!json_object_get(chosen, item))
            used += (size_t)snprintf(merged + used, sizeof merged - used, "%s%.*s", used ? "," : "", (int)bytes, at);
        at += bytes + (at[bytes] == ',');
    }
    json_object_foreach((json_t *)(uintptr_t)chosen, op, name)
    {
        if (used + strlen(op) + json_string_length(name) + 3 < sizeof merged)
            used += (size_t)snprintf(merged + used, sizeof merged - used, "%s%s=%s", used ? "," : "", op,
                                     json_string_value(name));
    }
    memcpy(service->desk->tuned, merged, sizeof merged);
}

static bool apply(compute_service_t *service, const json_t *chosen)
{
    char choice[LIVE_CHOICE_MAX];
    qn_kernel_set_t set;
    if (!service->runtime || service->desk->change.under_way) return false;
    take_tuned(service, chosen);
    qn_err_t err = kernel_desk_choice(service, &service->runtime->shape, choice, &set);
    bool same = !err && memcmp(&set, &service->runtime->kernels, sizeof set) == 0;
    if (!err && !same) err = kernel_desk_apply(service, &set, NULL);
    if (err) qn_log_error("the tuned kernels are not applied: %s", qn_err_text());
    return !err;
}

void compute_answer_autotune(compute_service_t *service)
{
    kernel_desk_t *desk = service->desk;
    const char *path = service->config->compute.autotune_table;
    verdict_t *v = calloc(1, sizeof *v);
    if (!v) {
        qn_call_fail(&desk->job_call, 503, NULL, "no memory for the answer; try again");
        return;
    }
    *v = (verdict_t){.service = service, .chosen = json_object(), .measured = json_array()};
    judge(v);
    qn_err_t err = path[0] && v->count ? tune_table_write(path, desk->key, v->chosen, v->measured) : QN_OK;
    if (err) {
        qn_call_fail(&desk->job_call, 500, NULL, "%.400s", qn_err_text());
    } else {
        qn_compute_autotune_reply_t reply = {.machine = qn_text(desk->key),
                                             .stored = qn_text(path[0] && v->count ? path : NULL),
                                             .complete = bench_job_is_complete(desk->job),
                                             .applied = desk->apply && apply(service, v->chosen),
                                             .operations = v->operations,
                                             .operations_count = (uint32_t)v->count};
        qn_call_finish(&desk->job_call, &reply);
    }
    json_decref(v->chosen);
    json_decref(v->measured);
    free(v);
}
