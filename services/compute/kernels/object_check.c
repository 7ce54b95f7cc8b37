/* What is this?      Runs the kernels of a shared object over shapes of all kinds and compares with the reference.
 * State owned:       none.
 * Must never:        run in a process that serves; let one pass that was wrong once.
 * Read next:         kernels/plugin.h, kernels/bench/kernel_cases.h, object_child.c. */
#include "services/compute/kernels/object_check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/bench/kernel_cases.h"
#include "kernels/cpu/cpu.h"
#include "kernels/loaded.h"

#define GUARD_WORDS 16u /* behind every output; memory of a case has at least so many words to spare */
#define GUARD 0x7fc0dea1u
#define THREADS 3

/* Sizes that are no multiple of anything beside sizes that models have. */
static const kernel_shape_t SHAPES[] = {
    {"tiny", 1, 1, 4, 1, 3, 5, 0, 0, 0, 1},         {"odd", 3, 1, 20, 37, 101, 97, 0, 0, 0, 5},
    {"small", 4, 2, 64, 256, 170, 70, 0, 0, 0, 16}, {"wide", 14, 2, 16, 896, 65, 49, 0, 0, 0, 16},
    {"deep", 5, 5, 128, 130, 66, 70, 0, 0, 0, 32},
};
static const uint32_t TOKENS[] = {1, 2, 7, 33};

typedef struct {
    const object_check_t *check;
    const qn_kernel_t *kernel;
    qn_stream_t *one, *several;
    qn_kernel_set_t exact;
    unsigned cases;
    double worst;
} run_t;

static qn_err_t wrong(const run_t *run, const kernel_case_t *made, const char *how)
{
    return qn_fail(QN_ERR_INVALID, "%s=%s is wrong: %s: %s", qn_op_name(run->kernel->op), run->kernel->name,
                   made->shape, how);
}

/* ---- one case ---- */

static uint32_t *guard_of(const kernel_output_t *output)
{
    return (uint32_t *)(uintptr_t)output->tested + output->count;
}

/* The outputs of the tested side before any launch: kept, or put back. */
static void keep_outputs(const kernel_case_t *made, char *kept, bool put_back)
{
    for (size_t i = 0; i < made->output_count; i++) {
        size_t bytes = made->outputs[i].count * 4;
        char *at = (char *)(uintptr_t)made->outputs[i].tested;
        memcpy(put_back ? at : kept, put_back ? kept : at, bytes);
        kept += bytes;
        for (unsigned word = 0; word < GUARD_WORDS; word++)
            guard_of(&made->outputs[i])[word] = GUARD;
    }
}

static size_t output_bytes(const kernel_case_t *made)
{
    size_t bytes = 0;
    for (size_t i = 0; i < made->output_count; i++)
        bytes += made->outputs[i].count * 4;
    return bytes;
}

static bool guards_stand(const kernel_case_t *made)
{
    for (size_t i = 0; i < made->output_count; i++)
        for (unsigned word = 0; word < GUARD_WORDS; word++)
            if (guard_of(&made->outputs[i])[word] != GUARD) return false;
    return true;
}

static qn_err_t judge(run_t *run, const kernel_case_t *made)
{
    char how[128];
    double error = kernel_case_error(made), allowed = kernel_tolerance(made);
    if (!guards_stand(made)) return wrong(run, made, "it writes behind the end of an output");
    if (error > run->worst) run->worst = error;
    if (error <= allowed) return QN_OK;
    if (isfinite(error))
        snprintf(how, sizeof how, "relative error %.3g, and %.0e is allowed", error, allowed);
    else
        snprintf(how, sizeof how, "numbers that are not finite");
    return wrong(run, made, how);
}

/* On one thread, then dealt to several: the same bits. */
static qn_err_t run_case(run_t *run, const kernel_case_t *made)
{
    char what[256];
    size_t bytes = output_bytes(made);
    char *before = malloc(bytes + 1), *first = malloc(bytes + 1);
    if (!before || !first) {
        free(before), free(first);
        return qn_fail(QN_ERR_NO_MEMORY, "no memory for the outputs of %s", made->shape);
    }
    snprintf(what, sizeof what, "%s=%s: %s", qn_op_name(run->kernel->op), run->kernel->name, made->shape);
    run->check->begins(run->check->context, what);
    qn_launch(&run->exact, made->op, run->one, made->exact_arguments);
    keep_outputs(made, before, false);
    run->kernel->launch(run->one, made->arguments);
    qn_err_t err = judge(run, made);
    if (!err) {
        keep_outputs(made, first, false);
        keep_outputs(made, before, true);
        qn_loaded_grain = 1;
        run->kernel->launch(run->several, made->arguments);
        qn_loaded_grain = 0;
        err = judge(run, made);
        size_t at = 0;
        for (size_t i = 0; !err && i < made->output_count; at += made->outputs[i++].count * 4)
            if (memcmp(first + at, made->outputs[i].tested, made->outputs[i].count * 4) != 0)
                err = wrong(run, made, "other bits when its items are dealt to threads in another way");
    }
    run->cases++;
    free(before), free(first);
    return err;
}

/* ---- all cases of a kernel ---- */

static bool accepts(const qn_kernel_t *kernel, const kernel_shape_t *shape, qn_scalar_t kv_scalar)
{
    qn_kernel_case_t needs = {.heads = shape->heads,
                              .kv_heads = shape->kv_heads,
                              .head_dim = shape->head_dim,
                              .hidden = shape->hidden,
                              .intermediate = shape->intermediate,
                              .vocab = shape->vocab,
                              .block_tokens = shape->block_tokens,
                              .kv_scalar = kv_scalar,
                              .activations = QN_SCALAR_F32};
    return !kernel->accepts || kernel->accepts(&needs);
}

static qn_err_t run_variants(run_t *run, const kernel_wish_t *wish, qn_scalar_t format, unsigned variants)
{
    const kernel_case_target_t target = {.activations = QN_SCALAR_F32, .memory_max = UINT64_C(1) << 30};
    qn_err_t err = QN_OK;
    for (unsigned variant = 0; !err && variant < variants; variant++) {
        kernel_case_t made;
        err = kernel_case_make_wish(wish, &target, &made);
        if (!err) err = kernel_case_vary(&made, variant, format);
        if (!err) err = run_case(run, &made);
        kernel_case_free(&made);
    }
    return err;
}

static qn_err_t run_shape(run_t *run, const kernel_shape_t *shape, qn_scalar_t format)
{
    static const char *const PARTS[] = {"qkv", "output", "gate_up", "down", "head"};
    qn_op_t op = run->kernel->op;
    bool product = op == QN_OP_MATMUL, attention = op == QN_OP_ATTENTION_PREFILL || op == QN_OP_ATTENTION_DECODE;
    bool small = shape->hidden < 2048; /* of a large model only a few rows: the reference takes seconds for all */
    qn_err_t err = QN_OK;
    for (size_t t = 0; !err && t < (small ? sizeof TOKENS / sizeof *TOKENS : 1); t++)
        for (size_t p = 0; !err && p < (product ? sizeof PARTS / sizeof *PARTS : 1); p++) {
            kernel_wish_t wish = {.op = op,
                                  .shape = shape,
                                  .tokens = TOKENS[t],
                                  .context = attention ? TOKENS[t] + 17 * (uint32_t)t : 0,
                                  .scalar = product || attention ? format : QN_SCALAR_F32,
                                  .part = product ? PARTS[p] : NULL};
            if (!small && p == 4) continue; /* the head of a large vocabulary */
            err = run_variants(run, &wish, format, small ? (unsigned)kernel_variant_count(op) : 1);
        }
    return err;
}

static qn_err_t check_kernel(const object_check_t *check, const qn_kernel_t *kernel, const kernel_shape_t *live,
                             run_t *run)
{
    static const qn_scalar_t FORMATS[] = {QN_SCALAR_F32, QN_SCALAR_BF16, QN_SCALAR_INT8, QN_SCALAR_INT4};
    uint32_t formats = qn_kernel_formats(kernel);
    bool has_format = kernel->op != QN_OP_ACTIVATION && kernel->op != QN_OP_SOFTCAP;
    qn_err_t err = QN_OK;
    run->kernel = kernel;
    run->cases = 0, run->worst = 0;
    for (size_t f = 0; !err && f < (has_format ? 4 : 1); f++) {
        if (has_format && !(formats & 1u << FORMATS[f])) continue;
        for (size_t i = 0; !err && i < sizeof SHAPES / sizeof *SHAPES + (live != NULL); i++) {
            const kernel_shape_t *shape = i < sizeof SHAPES / sizeof *SHAPES ? &SHAPES[i] : live;
            if (accepts(kernel, shape, FORMATS[f])) err = run_shape(run, shape, FORMATS[f]);
        }
    }
    if (!err && run->cases == 0)
        err = qn_fail(QN_ERR_INVALID, "%s=%s accepts none of the shapes it is checked with", qn_op_name(kernel->op),
                      kernel->name);
    if (!err) check->right(check->context, kernel, run->cases, run->worst);
    return err;
}

static qn_err_t check_all(const object_check_t *check, run_t *run, size_t first, size_t count)
{
    kernel_shape_t live = {.name = "the model's"};
    const qn_kernel_case_t *shape = check->shape;
    if (shape)
        live = (kernel_shape_t){.name = live.name,
                                .heads = shape->heads,
                                .kv_heads = shape->kv_heads,
                                .head_dim = shape->head_dim,
                                .hidden = shape->hidden,
                                .intermediate = shape->intermediate,
                                .vocab = shape->vocab,
                                .block_tokens = shape->block_tokens};
    size_t all;
    const qn_kernel_t *rows = qn_kernels_loaded(&all);
    qn_err_t err = QN_OK;
    for (size_t i = 0; !err && i < count; i++)
        err = check_kernel(check, &rows[first + i], shape ? &live : NULL, run);
    return err;
}

qn_err_t object_check(int fd, const char *name, const object_check_t *check)
{
    static const qn_kernel_case_t ANY = {.heads = 1, .kv_heads = 1, .head_dim = 64};
    run_t run = {.check = check};
    size_t first, count;
    char what[160];
    snprintf(what, sizeof what, "loading %.120s", name);
    check->begins(check->context, what);
    qn_err_t err = qn_kernels_load(fd, name, 1, &first, &count);
    if (!err) err = qn_kernels_choose("reference", &ANY, 0, &run.exact);
    if (!err) err = qn_stream_create(&(qn_stream_options_t){.threads = 1}, &run.one);
    if (!err) err = qn_stream_create(&(qn_stream_options_t){.threads = THREADS}, &run.several);
    if (!err) err = check_all(check, &run, first, count);
    qn_stream_destroy(&run.one);
    qn_stream_destroy(&run.several);
    return err;
}
