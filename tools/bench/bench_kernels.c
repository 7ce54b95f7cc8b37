/* What is this?      quintet bench kernels: every implementation of every operation, checked, then timed.
 * State owned:       one case at a time.
 * Must never:        time an implementation that gives wrong numbers.
 * Read next:         kernel_cases.h, kernel_runner.h, kernels/kernels.h.
 *
 * The check is the relative error sqrt(sum (tested - exact)^2 / sum exact^2) of each output against the reference, and
 * equality of ids. Implementations that round activations may be as far off as that rounding is. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "tools/bench/bench.h"
#include "tools/cli.h"
#include "services/compute/bench/kernel_runner.h"

/* Beyond, the plain implementation is timed only when asked for: it takes seconds. */
#define REFERENCE_OPERATIONS_MAX 2e7
#define REFERENCE_OPERATIONS_MAX_DEVICE 2e10
#define UNKNOWN_CACHE_BYTES (UINT64_C(64) << 20) /* of a device */

typedef struct {
    const char *op, *kernel;
    double seconds;
    uint64_t threads;
    bool json;
} options_t;

typedef struct {
    const options_t *options;
    kernel_runner_t *runner;
    const kernel_runner_info_t *info;
    machine_speed_t speed;
    json_t *rows; /* with --json */
    size_t timed, wrong;
} bench_t;

/* ---- the check ---- */

static double allowed_error(const kernel_case_t *made, const qn_kernel_t *kernel)
{
    double tolerance = kernel_tolerance(made);
    bool asked = machine_peak_of(kernel->name, made->scalar) == MACHINE_PEAK_BF16; /* compute.activations: bf16 */
    return asked && tolerance < 1e-2 ? 1e-2 : tolerance;
}

/* ---- what is printed ---- */

/* Do the launches, in turn, touch more than the caches hold? */
static bool is_from_memory(const bench_t *b, const kernel_case_t *made)
{
    return made->bytes * (double)made->copies > 1.5 * (double)b->speed.cache_bytes;
}

static void report(bench_t *b, const kernel_case_t *made, const qn_kernel_t *kernel, const bench_time_t *time,
                   double error, bool is_right)
{
    machine_peak_t limit = machine_peak_of(kernel->name, made->scalar);
    const char *peak_name = machine_peak_name(limit);
    double seconds = time->best_s, peak = machine_peak_speed(&b->speed, limit);
    if (b->rows) {
        json_array_append_new(b->rows, json_pack("{s:s, s:s, s:s, s:b, s:f, s:f, s:f, s:f, s:f, s:b, s:s, s:f}", "op",
                                                 qn_op_name(made->op), "kernel", kernel->name, "shape", made->shape,
                                                 "right", (int)is_right, "error", isfinite(error) ? error : 1e30,
                                                 "best_s", seconds, "median_s", time->median_s, "bytes", made->bytes,
                                                 "operations", made->operations, "from_memory",
                                                 (int)is_from_memory(b, made), "peak_name", peak_name, "peak", peak));
        return;
    }
    bench_progress_end();
    printf("%-17s %-10s %-40s", qn_op_name(made->op), kernel->name, made->shape);
    if (!is_right) {
        printf(" WRONG: error %.3g\n", error);
        return;
    }
    printf(" %11.1f us %7.1f GB/s", seconds * 1e6, made->bytes / seconds * 1e-9);
    if (is_from_memory(b, made) && b->speed.read_all > 0)
        printf(" (%5.1f %%)", 100 * made->bytes / seconds / b->speed.read_all);
    else
        printf("          ");
    if (made->operations > 0) printf(" %8.1f GFLOP/s", made->operations / seconds * 1e-9);
    if (made->operations > 0 && peak > 0)
        printf(" (%5.1f %% of %s)", 100 * made->operations / seconds / peak, peak_name);
    printf("  error %.1g\n", error);
    fflush(stdout);
}

/* ---- the run ---- */

static qn_err_t run_kernel(bench_t *b, const kernel_case_t *made, const qn_kernel_t *kernel)
{
    bench_time_t time = {0};
    qn_err_t err = kernel_runner_check(b->runner, kernel);
    if (err) return err;
    double error = kernel_case_error(made);
    bool is_right = error <= allowed_error(made, kernel);
    if (is_right) err = kernel_runner_time(b->runner, kernel, b->options->seconds, &time);
    if (err) return err;
    b->timed += is_right;
    b->wrong += !is_right;
    report(b, made, kernel, &time, error, is_right);
    return QN_OK;
}

static bool is_wanted(const bench_t *b, const kernel_case_t *made, const qn_kernel_t *kernel)
{
    const char *asked = b->options->kernel;
    bool runs_here = !(kernel->isa & ~b->info->isa) && (!kernel->accepts || kernel->accepts(&made->needs));
    if (kernel->op != made->op || !runs_here) return false;
    if (asked) return strcmp(asked, kernel->name) == 0;
    double most = b->info->device ? REFERENCE_OPERATIONS_MAX_DEVICE : REFERENCE_OPERATIONS_MAX;
    return strcmp(kernel->name, "reference") != 0 || made->operations <= most;
}

/* Runs the case through all implementations that are wanted. */
static qn_err_t run_case(bench_t *b, size_t index)
{
    bool device = b->info->device;
    uint64_t cache = b->speed.cache_bytes ? b->speed.cache_bytes : UNKNOWN_CACHE_BYTES;
    kernel_case_target_t target = {.device = device,
                                   .activations = b->info->activations,
                                   .rotated_bytes = device ? 8 * cache : 3 * b->speed.cache_bytes};
    kernel_case_t made;
    bench_progress("%s %zu of %zu", qn_op_name(kernel_case_op(device, index)), index + 1, kernel_case_count(device));
    qn_err_t err = kernel_case_make(index, &target, &made);
    if (!err) err = kernel_runner_compute_exact(b->runner, &made);
    if (!err) err = kernel_runner_take(b->runner, &made);
    for (size_t i = 0; !err && i < b->info->kernel_count; i++)
        if (is_wanted(b, &made, &b->info->kernels[i])) err = run_kernel(b, &made, &b->info->kernels[i]);
    kernel_runner_leave(b->runner);
    kernel_case_free(&made);
    return err;
}

static bool op_is_wanted(const options_t *o, qn_op_t op) { return !o->op || strcmp(o->op, qn_op_name(op)) == 0; }

static qn_err_t run(bench_t *b)
{
    qn_err_t err = QN_OK;
    bool device = b->info->device;
    bench_progress("the machine");
    if (device)
        machine_speed_of_gpu(b->info->device_name, &b->speed);
    else
        err = machine_speed_measure((unsigned)b->options->threads, 0, &b->speed);
    bench_progress_end();
    if (device && !b->options->json) printf("%s\n", b->info->device_name);
    if (!err && !b->options->json && b->speed.read_all > 0) machine_speed_print(&b->speed);
    for (size_t i = 0; !err && i < kernel_case_count(device); i++)
        if (op_is_wanted(b->options, kernel_case_op(device, i))) err = run_case(b, i);
    bench_progress_end();
    return err;
}

/* EX_OK, or the status of a usage error. */
static int check_names(const options_t *o, const kernel_runner_info_t *info)
{
    const char *ops[QN_OP_COUNT], *names[256];
    size_t count = info->kernel_count, name_count = 0;
    const qn_kernel_t *kernels = info->kernels;
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

/* What was asked for, with the names checked; an exit status. */
static int measure(const options_t *o, const qn_config_values_t *config)
{
    bench_t b = {.options = o};
    qn_err_t err = kernel_runner_open(config, &(kernel_runner_options_t){0}, &b.runner);
    if (err) return cli_fail_err(err);
    b.info = kernel_runner_info(b.runner);
    int status = check_names(o, b.info);
    if (!status) {
        b.rows = o->json ? json_array() : NULL;
        err = run(&b);
        if (!err && o->json && b.timed + b.wrong > 0) {
            json_t *all = json_pack("{s:o, s:O}", "machine", machine_speed_json(&b.speed), "kernels", b.rows);
            cli_print_json(all);
            json_decref(all);
        }
        json_decref(b.rows);
    }
    kernel_runner_close(&b.runner);
    if (status) return status;
    if (err) return cli_fail_err(err);
    if (b.timed + b.wrong == 0)
        return cli_fail(EX_UNAVAILABLE, "no case for operation %s with kernel %s on this machine",
                        o->op ? o->op : "any", o->kernel ? o->kernel : "any");
    status = cli_finish_output();
    return b.wrong ? cli_fail(EX_SOFTWARE, "%zu kernels gave wrong numbers", b.wrong) : status;
}

int bench_kernels(int argc, char **argv)
{
    options_t o = {.seconds = 0.1};
    const cli_option_t options[] = {
        {"op", 0, CLI_TEXT, &o.op, NULL, "NAME", "this operation only (matmul, attention.decode, ...)", 0, 0},
        {"kernel", 0, CLI_TEXT, &o.kernel, NULL, "NAME", "this implementation only (reference, avx2, avx512, ...)", 0,
         0},
        {"threads", 0, CLI_COUNT, &o.threads, NULL, "N", "as compute.threads", 1, MACHINE_THREADS_MAX},
        {"seconds", 0, CLI_NUMBER, &o.seconds, NULL, "S", "of each measurement (default 0.1)", 0.001, 60},
        {"json", 'j', CLI_FLAG, &o.json, NULL, NULL, "seconds, bytes and operations as JSON", 0, 0},
    };
    qn_config_arguments_t arguments;
    const cli_command_t command = {
        .name = "bench kernels",
        .arguments = "[OPTION]...",
        .summary = "Checks every kernel against the reference over a table of shapes, then times it.",
        .details = "Times are the best of many. GB/s counts weights, KV, inputs and outputs once, with its percentage "
                   "of the\nmemory's where the data is larger than the caches; GFLOP/s is with the percentage of the "
                   "peak of the\ninstructions used. Exit status 70 when a kernel is wrong.\n\n"
                   "examples:\n"
                   "  quintet bench kernels --op matmul --threads 1\n"
                   "  quintet bench kernels --set compute.backend=cuda",
        .options = options,
        .option_count = sizeof options / sizeof *options,
        .configuration = &arguments,
    };
    int status = cli_parse(&command, &argc, argv);
    if (status != -1) return status;
    if (argc > 1) return cli_usage("unexpected \"%s\"", argv[1]);
    qn_config_t *config = NULL;
    status = bench_config(&arguments, NULL, o.threads, &config);
    if (status) return status;
    status = measure(&o, qn_config_values(config));
    qn_config_free(&config);
    return status;
}
