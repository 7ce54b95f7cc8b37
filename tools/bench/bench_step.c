/* What is this?      quintet bench step: prefill and decode steps of a model, against what the machine can do.
 * State owned:       one engine and its figures.
 * Must never:        count a step that a daemon would not run the same way.
 * Read next:         bench_engine.h, machine_speed.h. */
#include <inttypes.h>
#include <stdio.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "common/clock.h"
#include "tools/bench/bench.h"
#include "tools/bench/bench_engine.h"
#include "tools/cli.h"
#include "kernels/bench/machine_speed.h"

#define BATCHES_MAX 16
#define ROUND_STEPS 64 /* decode steps of one life of the sequences: their context grows by that much */
#define STEPS_LEAST 5

typedef struct {
    const char *model, *batches, *contexts, *prefills;
    uint64_t threads;
    double seconds;
    bool json;
    uint32_t batch[BATCHES_MAX], context[BATCHES_MAX], prefill[BATCHES_MAX];
    size_t batch_count, context_count, prefill_count;
} options_t;

typedef struct {
    uint32_t batch, tokens, context;
    bench_time_t time;        /* of one step */
    double gap_s;             /* median of what lay between two steps that were in flight together; 0: none were */
    double bytes, operations; /* of one step */
    step_times_t parts;       /* summed */
    unsigned steps;
} figure_t;

/* Times of the steps of one figure. */
typedef struct {
    double *taken, *gaps;
    uint64_t end_ns; /* of the step before */
    figure_t *figure;
} series_t;

static void add_step(series_t *series, const step_result_t *result)
{
    figure_t *figure = series->figure;
    if (figure->steps == BENCH_ROUNDS_MAX) return;
    series->taken[figure->steps++] = (double)(result->end_ns - result->begin_ns) * 1e-9;
    uint64_t gap_ns = result->begin_ns > series->end_ns ? result->begin_ns - series->end_ns : 0; /* they may overlap */
    series->gaps[figure->steps - 1] = (double)gap_ns * 1e-9;
    figure->parts.input_ns += result->times.input_ns;
    figure->parts.attention_ns += result->times.attention_ns;
    figure->parts.mlp_ns += result->times.mlp_ns;
    figure->parts.output_ns += result->times.output_ns;
    figure->parts.sample_ns += result->times.sample_ns;
}

static void close_series(series_t *series)
{
    figure_t *figure = series->figure;
    figure->time.rounds = figure->steps;
    figure->time.median_s = bench_quantile(series->taken, figure->steps, 0.5);
    figure->time.best_s = bench_quantile(series->taken, figure->steps, 0);
}

static bool enough(const series_t *series, uint64_t begin_ns, double seconds)
{
    unsigned steps = series->figure->steps;
    return steps == BENCH_ROUNDS_MAX ||
           (steps >= STEPS_LEAST && (double)(qn_clock_now_ns() - begin_ns) * 1e-9 >= seconds);
}

/* ---- decode ---- */

/* One life of `batch` sequences from `context` positions on, with as many steps in flight as the backend takes. The
 * first two warm up: one has ids, one is recorded where that is done. */
static qn_err_t decode_round(bench_engine_t *engine, series_t *series, uint64_t begin_ns, double seconds)
{
    static bench_run_t runs[QN_SLOTS_MAX];
    const figure_t *figure = series->figure;
    const step_result_t *result;
    uint32_t id = 1;
    qn_err_t err = QN_OK;
    for (uint32_t i = 0; i < figure->batch; i++) {
        bench_engine_start(engine, i, figure->context);
        runs[i] = (bench_run_t){.slot = i, .position = figure->context - 1, .tokens = 1, .ids = &id, .sample = true};
    }
    bench_engine_info_t info;
    bench_engine_info(engine, &info);
    unsigned launched = 0, done = 0;
    bool more = true;
    while (!err && (more || done < launched)) {
        more = more && launched <= ROUND_STEPS && (done < 2 || !enough(series, begin_ns, seconds));
        if (more) {
            err = bench_engine_submit(engine, runs, figure->batch);
            launched++;
            for (uint32_t i = 0; i < figure->batch; i++)
                runs[i].position++, runs[i].ids = NULL;
        }
        if (err || launched == done || (more && launched - done < info.steps_in_flight)) continue;
        err = bench_engine_finish(engine, &result);
        if (!err && done++ > 1) add_step(series, result);
        if (!err) series->end_ns = result->end_ns;
    }
    for (uint32_t i = 0; i < figure->batch; i++)
        bench_engine_retire(engine, i);
    return err ? err : bench_engine_step(engine, NULL, 0, &result);
}

static qn_err_t measure_decode(bench_engine_t *engine, series_t *series, double seconds)
{
    figure_t *figure = series->figure;
    uint64_t begin_ns = qn_clock_now_ns();
    qn_err_t err = QN_OK;
    while (!err && !enough(series, begin_ns, seconds))
        err = decode_round(engine, series, begin_ns, seconds);
    figure->bytes = bench_engine_decode_bytes(engine, figure->batch, figure->context);
    bench_engine_info_t info;
    bench_engine_info(engine, &info);
    if (info.steps_in_flight > 1) figure->gap_s = bench_quantile(series->gaps, figure->steps, 0.5);
    close_series(series);
    return err;
}

/* ---- prefill ---- */

static qn_err_t measure_prefill(bench_engine_t *engine, series_t *series, double seconds)
{
    figure_t *figure = series->figure;
    bench_engine_info_t info;
    bench_engine_info(engine, &info);
    uint32_t *ids = malloc(figure->tokens * sizeof *ids);
    if (!ids) return qn_fail(QN_ERR_NO_MEMORY, "no memory for a prompt of %u tokens", figure->tokens);
    for (uint32_t i = 0; i < figure->tokens; i++)
        ids[i] = (i * 2654435761u >> 8) % info.config->vocab;
    const bench_run_t run = {.slot = 0, .tokens = figure->tokens, .ids = ids, .sample = true};
    const step_result_t *result;
    uint64_t begin_ns = qn_clock_now_ns();
    qn_err_t err = QN_OK;
    for (unsigned round = 0; !err && !enough(series, begin_ns, seconds); round++) {
        bench_engine_start(engine, 0, figure->tokens);
        err = bench_engine_step(engine, &run, 1, &result);
        if (!err && round > 0) add_step(series, result);
        bench_engine_retire(engine, 0);
    }
    if (!err) err = bench_engine_step(engine, NULL, 0, &result);
    figure->operations = bench_engine_prefill_operations(engine, figure->tokens);
    free(ids);
    close_series(series);
    return err;
}

/* ---- what is printed ---- */

/* The peak that the products can reach. */
static machine_peak_t peak_of(const bench_engine_info_t *info)
{
    return machine_peak_of(info->kernels->chosen[QN_OP_MATMUL]->name, info->product_scalar);
}

static double percent_of_limit(const figure_t *figure, const bench_engine_info_t *info, const machine_speed_t *speed)
{
    double limit = figure->tokens ? machine_peak_speed(speed, peak_of(info)) : speed->read_all;
    double done = figure->tokens ? figure->operations : figure->bytes;
    return limit > 0 ? 100 * done / figure->time.median_s / limit : NAN;
}

static double tokens_per_second(const figure_t *figure, double seconds)
{
    return (figure->tokens ? figure->tokens : figure->batch) / seconds;
}

static void print_parts(const figure_t *figure)
{
    const step_times_t *parts = &figure->parts;
    double each = 1e-6 / figure->steps;
    printf("  | input %.2f attention %.2f mlp %.2f output %.2f sample %.2f ms\n", (double)parts->input_ns * each,
           (double)parts->attention_ns * each, (double)parts->mlp_ns * each, (double)parts->output_ns * each,
           (double)parts->sample_ns * each);
}

static void print_figure(const figure_t *figure, const bench_engine_info_t *info, const machine_speed_t *speed)
{
    double percent = percent_of_limit(figure, info, speed); /* nan: nothing is known of this GPU */
    if (figure->tokens)
        printf("prefill %5u", figure->tokens);
    else
        printf("decode batch %3u context %5u", figure->batch, figure->context);
    printf(": %9.3f ms (best %.3f), %8.1f tok/s (best %.1f), ", figure->time.median_s * 1e3, figure->time.best_s * 1e3,
           tokens_per_second(figure, figure->time.median_s), tokens_per_second(figure, figure->time.best_s));
    if (figure->tokens)
        printf("%.1f GFLOP/s, %.1f %% of %s peak\n", figure->operations / figure->time.median_s * 1e-9, percent,
               machine_peak_name(peak_of(info)));
    else
        printf("%.1f MB a step, %.2f GB/s, %.1f %% of memory%s\n", figure->bytes * 1e-6,
               figure->bytes / figure->time.median_s * 1e-9, percent,
               figure->bytes < (double)speed->cache_bytes ? " (it fits the cache)" : "");
    if (figure->gap_s > 0) printf("  | %.1f us between two steps\n", figure->gap_s * 1e6);
    if (figure->parts.mlp_ns) print_parts(figure);
}

static void print_all(const bench_engine_info_t *info, const machine_speed_t *speed, const figure_t *figures,
                      size_t count)
{
    printf("%s: %s products, %s head, %s KV, %.1f MiB of weights, matmul %s, attention %s, %s, loaded in "
           "%.2f s\n",
           info->id, qn_scalar_name(info->product_scalar), qn_scalar_name(info->head_scalar),
           qn_scalar_name(info->kv_scalar), (double)info->weights_bytes / 1048576,
           info->kernels->chosen[QN_OP_MATMUL]->name, info->kernels->chosen[QN_OP_ATTENTION_DECODE]->name,
           info->device_name, info->load_s);
    if (speed->read_all > 0) machine_speed_print(speed);
    for (size_t i = 0; i < count; i++)
        print_figure(&figures[i], info, speed);
}

static json_t *figure_json(const figure_t *figure, const bench_engine_info_t *info, const machine_speed_t *speed)
{
    const step_times_t *parts = &figure->parts;
    double each = 1e-9 / figure->steps;
    const char *name = figure->tokens ? machine_peak_name(peak_of(info)) : "read";
    double limit = figure->tokens ? machine_peak_speed(speed, peak_of(info)) : speed->read_all;
    double percent = percent_of_limit(figure, info, speed);
    return json_pack("{s:s, s:i, s:i, s:i, s:i, s:f, s:f, s:f, s:f, s:f, s:f, s:s, s:f, s:o, s:f, s:{s:f, s:f, s:f, "
                     "s:f, s:f}}",
                     "kind", figure->tokens ? "prefill" : "decode", "batch", figure->batch, "context", figure->context,
                     "tokens", figure->tokens ? figure->tokens : figure->batch, "steps", figure->steps, "median_s",
                     figure->time.median_s, "best_s", figure->time.best_s, "tokens_per_second",
                     tokens_per_second(figure, figure->time.median_s), "best_tokens_per_second",
                     tokens_per_second(figure, figure->time.best_s), "bytes", figure->bytes, "operations",
                     figure->operations, "limit_name", name, "limit", limit, "percent",
                     isnan(percent) ? json_null() : json_real(percent), "gap_s", figure->gap_s, "parts_s", "input",
                     (double)parts->input_ns * each, "attention", (double)parts->attention_ns * each, "mlp",
                     (double)parts->mlp_ns * each, "output", (double)parts->output_ns * each, "sample",
                     (double)parts->sample_ns * each);
}

static void print_json(const bench_engine_info_t *info, const machine_speed_t *speed, const figure_t *figures,
                       size_t count)
{
    json_t *rows = json_array();
    for (size_t i = 0; i < count; i++)
        json_array_append_new(rows, figure_json(&figures[i], info, speed));
    json_t *all = json_pack("{s:s, s:s, s:s, s:s, s:I, s:s, s:s, s:i, s:f, s:o, s:o}", "model", info->id, "products",
                            qn_scalar_name(info->product_scalar), "head", qn_scalar_name(info->head_scalar), "kv",
                            qn_scalar_name(info->kv_scalar), "weights_bytes", (json_int_t)info->weights_bytes, "matmul",
                            info->kernels->chosen[QN_OP_MATMUL]->name, "attention",
                            info->kernels->chosen[QN_OP_ATTENTION_DECODE]->name, "threads", (int)info->threads,
                            "load_s", info->load_s, "machine", machine_speed_json(speed), "figures", rows);
    cli_print_json(all);
    json_decref(all);
}

/* ---- the run ---- */

static qn_err_t measure_all(const options_t *options, bench_engine_t *engine, figure_t *figures, size_t *ret_count)
{
    series_t series = {.taken = calloc(2 * BENCH_ROUNDS_MAX, sizeof(double))};
    series.gaps = series.taken + BENCH_ROUNDS_MAX;
    if (!series.taken) return qn_fail(QN_ERR_NO_MEMORY, "no memory for times");
    size_t count = 0;
    qn_err_t err = QN_OK;
    for (size_t b = 0; !err && b < options->batch_count; b++)
        for (size_t c = 0; !err && c < options->context_count; c++) {
            series.figure = &figures[count++];
            *series.figure = (figure_t){.batch = options->batch[b], .context = options->context[c]};
            bench_progress("decode, batch %u, context %u", options->batch[b], options->context[c]);
            err = measure_decode(engine, &series, options->seconds);
        }
    for (size_t p = 0; !err && p < options->prefill_count; p++) {
        series.figure = &figures[count++];
        *series.figure = (figure_t){.batch = 1, .tokens = options->prefill[p], .context = options->prefill[p]};
        bench_progress("prefill of %u", options->prefill[p]);
        err = measure_prefill(engine, &series, options->seconds);
    }
    free(series.taken);
    *ret_count = count;
    return err;
}

static uint32_t greatest(const uint32_t *numbers, size_t count)
{
    uint32_t most = 0;
    for (size_t i = 0; i < count; i++)
        if (numbers[i] > most) most = numbers[i];
    return most;
}

static qn_err_t run(const options_t *options, const qn_config_values_t *config)
{
    static figure_t figures[BATCHES_MAX * BATCHES_MAX + BATCHES_MAX];
    uint32_t prefill = greatest(options->prefill, options->prefill_count), batch = 1, length = 1;
    if (options->batch_count) {
        batch = greatest(options->batch, options->batch_count);
        length = greatest(options->context, options->context_count) + ROUND_STEPS;
    }
    bench_engine_size_t size = {.sequences = batch,
                                .step_tokens = prefill > batch ? prefill : batch,
                                .model_len = length > prefill ? length : prefill,
                                .others_len = length};
    machine_speed_t speed, after;
    bench_engine_t *engine = NULL;
    size_t count = 0;
    bench_progress("loading %s", config->model.path);
    qn_err_t err = bench_engine_open(config, size, &engine);
    bench_progress("the machine");
    bench_engine_info_t info = {.id = NULL};
    if (!err) bench_engine_info(engine, &info);
    bool gpu = !err && !info.backend->synchronous;
    if (gpu)
        machine_speed_of_gpu(info.device_name, &speed);
    else if (!err)
        err = machine_speed_measure((unsigned)config->compute.threads, 0, &speed);
    if (!err) err = measure_all(options, engine, figures, &count);
    if (!err && !gpu) err = machine_speed_measure(speed.threads, speed.buffer_bytes, &after);
    bench_progress_end();
    if (!err) {
        if (!gpu) machine_speed_raise(&speed, &after);
        if (options->json)
            print_json(&info, &speed, figures, count);
        else
            print_all(&info, &speed, figures, count);
    }
    bench_engine_close(&engine);
    return err;
}

/* 0, or the status of a usage error. */
static int take_numbers(options_t *o)
{
    if (strcmp(o->batches, "0") != 0) {
        o->batch_count = bench_numbers("batch", o->batches, 1, QN_SLOTS_MAX, o->batch, BATCHES_MAX);
        if (!o->batch_count) return EX_USAGE;
    }
    o->context_count =
        bench_numbers("context", o->contexts, 1, QN_PROMPT_TOKENS_MAX - ROUND_STEPS, o->context, BATCHES_MAX);
    if (!o->context_count) return EX_USAGE;
    if (strcmp(o->prefills, "0") != 0) {
        o->prefill_count = bench_numbers("prefill", o->prefills, 1, QN_STEP_TOKENS_MAX, o->prefill, BATCHES_MAX);
        if (!o->prefill_count) return EX_USAGE;
    }
    return o->batch_count || o->prefill_count ? EX_OK : cli_usage("--batch 0 and --prefill 0 leave nothing to measure");
}

int bench_step(int argc, char **argv)
{
    options_t o = {.batches = "1,8", .contexts = "256", .prefills = "512", .seconds = 2};
    const cli_option_t options[] = {
        {"model", 0, CLI_TEXT, &o.model, NULL, "DIR",
         "model directory; with a config.json and no weights: dummy "
         "ones",
         0, 0},
        {"batch", 0, CLI_TEXT, &o.batches, NULL, "N,N", "sequences of a decode step (default 1,8; 0: none)", 0, 0},
        {"context", 0, CLI_TEXT, &o.contexts, NULL, "N,N", "positions each sees at first (default 256)", 0, 0},
        {"prefill", 0, CLI_TEXT, &o.prefills, NULL, "N,N", "tokens of a prompt in one step (default 512; 0: none)", 0,
         0},
        {"threads", 0, CLI_COUNT, &o.threads, NULL, "N", "as compute.threads", 1, MACHINE_THREADS_MAX},
        {"seconds", 0, CLI_NUMBER, &o.seconds, NULL, "S", "of each measurement, at least (default 2)", 0.01, 600},
        {"json", 'j', CLI_FLAG, &o.json, NULL, NULL, "seconds, bytes, operations and limits as JSON", 0, 0},
    };
    qn_config_arguments_t arguments;
    const cli_command_t command = {
        .name = "bench step",
        .arguments = "[OPTION]...",
        .summary = "Measures decode and prefill steps of a model, and how near they come to what the machine can do.",
        .details = "The first figure is the median of the steps. Decode is compared with reading the weights\n"
                   "once and the keys and values of every sequence; prefill with the peak of the instructions\n"
                   "that its products use.\n\n"
                   "examples:\n"
                   "  quintet bench step --model deploy/shapes/qwen2.5-0.5b --set model.quantize=int8 --threads 2\n"
                   "  quintet bench step --batch 1,4,16 --context 128,1024 --prefill 0 --set memory.kv_dtype=bf16",
        .options = options,
        .option_count = sizeof options / sizeof *options,
        .configuration = &arguments,
    };
    int status = cli_parse(&command, &argc, argv);
    if (status != -1) return status;
    if (argc > 1) return cli_usage("unexpected \"%s\"", argv[1]);
    status = take_numbers(&o);
    qn_config_t *config = NULL;
    if (!status) status = bench_config(&arguments, o.model, o.threads, &config);
    if (status) return status;
    qn_err_t err = run(&o, qn_config_values(config));
    qn_config_free(&config);
    return err ? cli_fail_err(err) : cli_finish_output();
}
