/* What is this?      quintet bench kernels: every implementation of every operation, checked, then timed.
 * State owned:       the stream; one case at a time.
 * Must never:        time an implementation that gives wrong numbers.
 * Read next:         kernel_cases.h, kernels/kernels.h.
 *
 * The check is the relative error sqrt(sum (tested - exact)^2 / sum exact^2) of each output against the reference, and
 * equality of ids. Implementations that round activations may be as far off as that rounding is. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "tools/bench.h"
#include "tools/bench_engine.h"
#include "tools/cli.h"
#include "tools/kernel_cases.h"
#include "tools/machine_speed.h"

#define REFERENCE_OPERATIONS_MAX 2e7  /* beyond, the reference is timed only when asked for: it takes seconds */

typedef struct {
    const char *op, *kernel;
    double seconds;
    uint64_t threads;
    bool json;
} options_t;

typedef struct {
    const options_t *options;
    qn_stream_t *stream;
    machine_speed_t speed;
    json_t *rows;                /* with --json */
    size_t timed, wrong;
} bench_t;

typedef struct {
    const kernel_case_t *made;
    const qn_kernel_t *kernel;
    qn_stream_t *stream;
    size_t next;
} launch_t;

static void launch(void *context)
{
    launch_t *l = context;
    l->kernel->launch(l->stream, l->made->arguments[l->next]);
    l->next = (l->next + 1) % l->made->copies;
}

/* ---- the check ---- */

static double float_error(const kernel_output_t *output)
{
    const float *tested = output->tested, *exact = output->exact;
    double difference = 0, total = 0;
    for (size_t i = 0; i < output->count; i++) {
        double d = (double)tested[i] - (double)exact[i];
        difference += d * d;
        total += (double)exact[i] * (double)exact[i];
    }
    return difference == 0 ? 0 : sqrt(difference / total);
}

/* The greatest error of the case's outputs; infinite where ids differ. */
static double error_of(const kernel_case_t *made)
{
    double most = 0;
    for (size_t i = 0; i < made->output_count; i++) {
        const kernel_output_t *output = &made->outputs[i];
        double error = !output->is_id ? float_error(output)
            : memcmp(output->tested, output->exact, output->count * 4) ? INFINITY : 0;
        if (!(error <= most)) most = error;  /* a NaN stays */
    }
    return most;
}

static double allowed_error(const kernel_case_t *made, const qn_kernel_t *kernel)
{
    bool quantised = made->scalar == QN_SCALAR_INT8 || made->scalar == QN_SCALAR_INT4;
    if (strcmp(kernel->name, "vnni") == 0 && quantised) return 2e-2;   /* activations in 8 bits */
    if (strcmp(kernel->name, "avx512bf16") == 0) return 1e-2;          /* activations in bf16 */
    return 1e-5;
}

/* ---- the limits ---- */

static double peak_of(const bench_t *b, const kernel_case_t *made, const qn_kernel_t *kernel, const char **ret_name)
{
    bool quantised = made->scalar == QN_SCALAR_INT8 || made->scalar == QN_SCALAR_INT4;
    if (strcmp(kernel->name, "vnni") == 0 && quantised) return *ret_name = "int8", b->speed.int8;
    if (strcmp(kernel->name, "avx512bf16") == 0) return *ret_name = "bf16", b->speed.bf16;
    return *ret_name = "f32", b->speed.f32;
}

/* Do the launches, in turn, touch more than the caches hold? */
static bool is_from_memory(const bench_t *b, const kernel_case_t *made)
{
    return made->bytes * (double)made->copies > 1.5 * (double)b->speed.cache_bytes;
}

static void report(bench_t *b, const kernel_case_t *made, const qn_kernel_t *kernel, const bench_time_t *time,
                   double error, bool is_right)
{
    const char *peak_name;
    double seconds = time->best_s, peak = peak_of(b, made, kernel, &peak_name);
    if (b->rows) {
        json_array_append_new(b->rows, json_pack("{s:s, s:s, s:s, s:b, s:f, s:f, s:f, s:f, s:f, s:b, s:s, s:f}", "op",
            qn_op_name(made->op), "kernel", kernel->name, "shape", made->shape, "right", (int)is_right, "error",
            isfinite(error) ? error : 1e30, "best_s", seconds, "median_s", time->median_s, "bytes", made->bytes,
            "operations", made->operations, "from_memory", (int)is_from_memory(b, made), "peak_name", peak_name,
            "peak", peak));
        return;
    }
    bench_progress_end();
    printf("%-17s %-10s %-40s", qn_op_name(made->op), kernel->name, made->shape);
    if (!is_right) {
        printf(" WRONG: error %.3g\n", error);
        return;
    }
    printf(" %11.1f us %7.1f GB/s", seconds * 1e6, made->bytes / seconds * 1e-9);
    if (is_from_memory(b, made))
        printf(" (%5.1f %%)", 100 * made->bytes / seconds / b->speed.read_all);
    else printf("          ");
    if (made->operations > 0)
        printf(" %8.1f GFLOP/s (%5.1f %% of %s)", made->operations / seconds * 1e-9,
               100 * made->operations / seconds / peak, peak_name);
    printf("  error %.1g\n", error);
    fflush(stdout);
}

/* ---- the run ---- */

static void run_kernel(bench_t *b, const kernel_case_t *made, const qn_kernel_t *kernel)
{
    launch_t context = { .made = made, .kernel = kernel, .stream = b->stream };
    bench_time_t time = { 0 };
    kernel->launch(b->stream, made->arguments[0]);
    double error = error_of(made);
    bool is_right = error <= allowed_error(made, kernel);
    b->timed += is_right;
    b->wrong += !is_right;
    if (is_right) time = bench_time(launch, &context, b->options->seconds);
    report(b, made, kernel, &time, error, is_right);
}

static bool is_wanted(const bench_t *b, const kernel_case_t *made, const qn_kernel_t *kernel)
{
    const char *asked = b->options->kernel;
    bool runs_here = !(kernel->isa & ~qn_kernels_isa()) && (!kernel->accepts || kernel->accepts(&made->needs));
    if (kernel->op != made->op || !runs_here) return false;
    if (asked) return strcmp(asked, kernel->name) == 0;
    return strcmp(kernel->name, "reference") != 0 || made->operations <= REFERENCE_OPERATIONS_MAX;
}

static void undo_in_place(kernel_case_t *made, void *const *saved)
{
    for (size_t i = 0; i < made->output_count; i++)
        memcpy((void *)(uintptr_t)made->outputs[i].tested, saved[i], made->outputs[i].count * 4);
}

/* Runs the case through all implementations that are wanted; each finds the outputs, which may be inputs too, as they
 * were. */
static qn_err_t run_case(bench_t *b, size_t index)
{
    size_t kernel_count;
    const qn_kernel_t *kernels = qn_kernels(&kernel_count), *reference = NULL;
    kernel_case_t made;
    void *saved[KERNEL_CASE_OUTPUTS_MAX] = { NULL };
    bench_progress("%s %zu of %zu", qn_op_name(kernel_case_op(index)), index + 1, kernel_case_count());
    qn_err_t err = kernel_case_make(index, b->speed.cache_bytes, &made);
    for (size_t i = 0; !err && i < made.output_count; i++) {
        saved[i] = malloc(made.outputs[i].count * 4);
        if (!saved[i]) err = qn_fail(QN_ERR_NO_MEMORY, "no memory for the outputs of %s", made.shape);
        else memcpy(saved[i], made.outputs[i].tested, made.outputs[i].count * 4);
    }
    for (size_t i = 0; i < kernel_count; i++)
        if (kernels[i].op == kernel_case_op(index) && strcmp(kernels[i].name, "reference") == 0)
            reference = &kernels[i];
    if (!err) reference->launch(b->stream, made.exact_arguments);
    for (size_t i = 0; !err && i < kernel_count; i++) {
        if (!is_wanted(b, &made, &kernels[i])) continue;
        undo_in_place(&made, saved);
        run_kernel(b, &made, &kernels[i]);
    }
    for (size_t i = 0; i < KERNEL_CASE_OUTPUTS_MAX; i++) free(saved[i]);
    kernel_case_free(&made);
    return err;
}

static bool op_is_wanted(const options_t *o, qn_op_t op)
{
    return !o->op || strcmp(o->op, qn_op_name(op)) == 0;
}

static qn_err_t run(bench_t *b)
{
    bench_progress("the machine");
    qn_err_t err = machine_speed_measure((unsigned)b->options->threads, 0, &b->speed);
    if (!err) err = qn_stream_create(&(qn_stream_options_t){ .threads = b->speed.threads }, &b->stream);
    if (!err && !b->options->json)
        printf("machine: %.1f GB/s, f32 %.0f GFLOP/s, bf16 dot %.0f GFLOP/s, int8 dot %.0f GOP/s, %u threads\n",
               b->speed.read_all * 1e-9, b->speed.f32 * 1e-9, b->speed.bf16 * 1e-9, b->speed.int8 * 1e-9,
               b->speed.threads);
    for (size_t i = 0; !err && i < kernel_case_count(); i++)
        if (op_is_wanted(b->options, kernel_case_op(i))) err = run_case(b, i);
    bench_progress_end();
    qn_stream_destroy(&b->stream);
    return err;
}

/* EX_OK, or the status of a usage error. */
static int check_names(const options_t *o)
{
    const char *ops[QN_OP_COUNT], *names[256];
    size_t count, name_count = 0;
    const qn_kernel_t *kernels = qn_kernels(&count);
    bool op_found = !o->op, kernel_found = !o->kernel;
    for (unsigned op = 0; op < QN_OP_COUNT; op++) {
        ops[op] = qn_op_name((qn_op_t)op);
        if (o->op && strcmp(o->op, ops[op]) == 0) op_found = true;
    }
    for (size_t i = 0; i < count && name_count < 256; i++) {
        names[name_count++] = kernels[i].name;
        if (o->kernel && strcmp(o->kernel, kernels[i].name) == 0) kernel_found = true;
    }
    if (op_found && kernel_found) return EX_OK;
    const char *word = op_found ? o->kernel : o->op;
    const char *nearest = op_found ? cli_nearest(word, names, name_count) : cli_nearest(word, ops, QN_OP_COUNT);
    return cli_usage("no %s \"%s\"%s%s%s", op_found ? "kernel" : "operation", word, nearest ? "; did you mean \"" : "",
                     nearest ? nearest : "", nearest ? "\"?" : "");
}

int bench_kernels(int argc, char **argv)
{
    options_t o = { .seconds = 0.1 };
    const cli_option_t options[] = {
        { "op", 0, CLI_TEXT, &o.op, NULL, "NAME", "this operation only (matmul, attention.decode, ...)", 0, 0 },
        { "kernel", 0, CLI_TEXT, &o.kernel, NULL, "NAME", "this implementation only (reference, avx2, avx512, ...)", 0,
          0 },
        { "threads", 0, CLI_COUNT, &o.threads, NULL, "N", "threads (default: one per core)", 1, MACHINE_THREADS_MAX },
        { "seconds", 0, CLI_NUMBER, &o.seconds, NULL, "S", "of each measurement (default 0.1)", 0.001, 60 },
        { "json", 'j', CLI_FLAG, &o.json, NULL, NULL, "seconds, bytes and operations as JSON", 0, 0 },
    };
    const cli_command_t command = {
        .name = "bench kernels", .arguments = "[OPTION]...",
        .summary = "Checks every kernel against the reference over a table of shapes, then times it.",
        .details = "Times are the best of many. GB/s counts weights, KV, inputs and outputs once, with its percentage "
                   "of the\nmemory's where the data is larger than the caches; GFLOP/s is with the percentage of the "
                   "peak of the\ninstructions used. Exit status 70 when a kernel is wrong.",
        .options = options, .option_count = sizeof options / sizeof *options,
    };
    int status = cli_parse(&command, &argc, argv);
    if (status != -1) return status;
    if (argc > 1) return cli_usage("unexpected \"%s\"", argv[1]);
    status = check_names(&o);
    if (status) return status;
    bench_t b = { .options = &o, .rows = o.json ? json_array() : NULL };
    qn_err_t err = run(&b);
    if (err) return cli_fail_err(err);
    if (o.json) {
        json_t *all = json_pack("{s:o, s:o}", "machine", machine_speed_json(&b.speed), "kernels", b.rows);
        cli_print_json(all);
        json_decref(all);
    }
    status = cli_finish_output();
    return b.wrong ? cli_fail(EX_SOFTWARE, "%zu kernels gave wrong numbers", b.wrong) : status;
}
