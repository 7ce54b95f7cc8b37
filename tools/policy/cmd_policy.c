/* What is this?      quintet policy replay: schedules a trace again under one policy or several, and compares.
 * State owned:       none beyond the run.
 * Must never:        run a model or talk to a server: it is a simulation.
 * Read next:         policy_trace.h, services/scheduler/simulation/simulation.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "common/paths.h"
#include "tools/cli.h"
#include "tools/policy/policy_trace.h"

static struct {
    cli_texts_t policies, batchings;
    uint64_t slots, step_tokens, chunk_tokens, blocks, block_tokens;
    double step_us, token_us;
    bool time_given, json;
} options = {.blocks = 4096};

static qn_config_arguments_t arguments;

static const cli_option_t option_table[] = {
    {"policy", 'p', CLI_TEXTS, &options.policies, NULL, "NAME",
     "scheduling policy, built in or NAME.so; several compare", 0, 0},
    {"batching", 'b', CLI_TEXTS, &options.batchings, NULL, "NAME",
     "batching policy; one for all, or one for each --policy", 0, 0},
    {"slots", 0, CLI_COUNT, &options.slots, NULL, "N", "sequences at once (default: scheduler.max_sequences)", 1, 256},
    {"step-tokens", 0, CLI_COUNT, &options.step_tokens, NULL, "N",
     "budget of a step (default: scheduler.max_step_tokens)", 1, 8192},
    {"chunk-tokens", 0, CLI_COUNT, &options.chunk_tokens, NULL, "N",
     "of one prompt in a step (default: scheduler.prefill_chunk_tokens)", 1, 8192},
    {"blocks", 0, CLI_COUNT, &options.blocks, NULL, "N", "KV blocks (default: 4096)", 1, 1u << 28},
    {"block-tokens", 0, CLI_COUNT, &options.block_tokens, NULL, "N", "of a block (default: memory.block_tokens)", 1,
     1024},
    {"step-us", 0, CLI_NUMBER, &options.step_us, &options.time_given, "US",
     "a step takes US and --token-us for each token (default: as in the capture, else 1000 and 100)", 0, 6e7},
    {"token-us", 0, CLI_NUMBER, &options.token_us, &options.time_given, "US", "see --step-us", 0, 6e7},
    {"json", 'j', CLI_FLAG, &options.json, NULL, NULL, "print JSON", 0, 0},
};

static const cli_command_t command = {
    .name = "policy",
    .arguments = "replay [OPTION]... TRACE",
    .summary = "Schedules the requests of a trace again, in a simulation, under one policy or several side by side.",
    .details =
        "TRACE is a capture (quintet sniff -w FILE) or JSON Lines with arrival_ms, prompt_tokens, max_tokens, priority,\n"
        "user, deadline_ms, prefix_tokens; \"-\" is standard input. The scheduler is the real one; memory counts blocks, and\n"
        "the time of a step is a formula.\n\n"
        "examples:\n"
        "  quintet policy replay -p fcfs -p fair trace.jsonl\n"
        "  quintet policy replay -p fcfs -p example_scheduling.so --slots 8 -j day.qcap\n\n"
        "exit status: 0; 64 wrong usage, 65 a trace that makes no sense, 66 no such trace, 78 no such policy.",
    .options = option_table,
    .option_count = sizeof option_table / sizeof *option_table,
    .configuration = &arguments,
};

typedef struct {
    const char *policy, *batching;
    simulation_summary_t summary;
} column_t;

/* ---- output ---- */

static json_t *spread_json(const simulation_spread_t *spread)
{
    return json_pack("{s:f, s:f, s:f}", "mean", spread->mean, "p50", spread->p50, "p99", spread->p99);
}

static void print_json(const column_t *columns, size_t count, const simulation_options_t *used)
{
    json_t *results = json_array();
    for (size_t i = 0; i < count; i++) {
        const simulation_summary_t *one = &columns[i].summary;
        json_array_append_new(results,
                              json_pack("{s:s, s:s, s:i, s:i, s:i, s:I, s:I, s:I, s:f, s:f, s:o, s:o, s:o, s:s}",
                                        "policy", columns[i].policy, "batching", columns[i].batching, "requests",
                                        (int)one->requests, "refused", (int)one->refused, "late", (int)one->late,
                                        "steps", (json_int_t)one->steps, "generated_tokens",
                                        (json_int_t)one->generated_tokens, "preemptions", (json_int_t)one->preemptions,
                                        "total_ms", one->total_ms, "tokens_per_s", one->tokens_per_s, "queue_ms",
                                        spread_json(&one->queue), "ttft_ms", spread_json(&one->ttft), "latency_ms",
                                        spread_json(&one->latency), "withdrawn", one->withdrawn));
    }
    json_t *json = json_pack("{s:f, s:f, s:i, s:i, s:o}", "step_us", (double)used->step_ns / 1e3, "token_us",
                             (double)used->token_ns / 1e3, "slots", (int)used->max_sequences, "blocks",
                             (int)used->block_count, "results", results);
    cli_print_json(json);
    json_decref(json);
}

static void print_row(const char *what, const column_t *columns, size_t count, size_t offset)
{
    printf("%-16s", what);
    for (size_t i = 0; i < count; i++)
        printf("  %16.1f", *(const double *)(const void *)((const char *)&columns[i].summary + offset));
    putchar('\n');
}

static void print_table(const column_t *columns, size_t count, const simulation_options_t *used)
{
#define AT(field) offsetof(simulation_summary_t, field)
    static const struct {
        const char *what;
        size_t offset;
    } rows[] = {
        {"TTFT mean ms", AT(ttft.mean)},       {"TTFT p50 ms", AT(ttft.p50)},       {"TTFT p99 ms", AT(ttft.p99)},
        {"latency mean ms", AT(latency.mean)}, {"latency p50 ms", AT(latency.p50)}, {"latency p99 ms", AT(latency.p99)},
        {"queue mean ms", AT(queue.mean)},     {"queue p99 ms", AT(queue.p99)},     {"total ms", AT(total_ms)},
        {"tokens/s", AT(tokens_per_s)},
    };
    printf("%-16s", "");
    for (size_t i = 0; i < count; i++)
        printf("  %16.16s", columns[i].policy);
    putchar('\n');
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        print_row(rows[i].what, columns, count, rows[i].offset);
    printf("%-16s", "late");
    for (size_t i = 0; i < count; i++)
        printf("  %16u", columns[i].summary.late);
    printf("\n%-16s", "preemptions");
    for (size_t i = 0; i < count; i++)
        printf("  %16llu", (unsigned long long)columns[i].summary.preemptions);
    printf("\n%u requests, %u slots, %u blocks of %u tokens; a step takes %.0f us and %.1f us for each token\n",
           columns[0].summary.requests, used->max_sequences, used->block_count, used->block_tokens,
           (double)used->step_ns / 1e3, (double)used->token_ns / 1e3);
}

/* ---- the run ---- */

static int simulate(const simulation_options_t *used, const policy_trace_t *trace, column_t *column)
{
    simulation_options_t with = *used;
    simulation_t *simulation = NULL;
    with.policy = column->policy;
    with.batching = column->batching;
    qn_err_t err = simulation_create(&with, trace->requests, trace->count, &simulation);
    if (err == QN_ERR_INVALID) return cli_fail(EX_DATAERR, "%s", qn_err_text());
    if (err < 0) return cli_fail_err(err);
    while (!simulation_run(simulation, 1000)) {
    }
    simulation_summary(simulation, &column->summary);
    simulation_destroy(&simulation);
    return EX_OK;
}

static simulation_options_t options_in_force(const qn_config_values_t *config, const policy_trace_t *trace,
                                             const char *dirs)
{
    bool captured = !options.time_given && trace->step_us + trace->token_us > 0;
    double step_us = captured ? trace->step_us : options.time_given ? options.step_us : 1000;
    double token_us = captured ? trace->token_us : options.time_given ? options.token_us : 100;
    return (simulation_options_t){
        .policy_dirs = dirs,
        .max_sequences = (uint32_t)(options.slots > 0 ? options.slots : config->scheduler.max_sequences),
        .max_step_tokens =
            (uint32_t)(options.step_tokens > 0 ? options.step_tokens : config->scheduler.max_step_tokens),
        .prefill_chunk_tokens =
            (uint32_t)(options.chunk_tokens > 0 ? options.chunk_tokens : config->scheduler.prefill_chunk_tokens),
        .queue_limit = QN_REQUESTS_MAX,
        .block_tokens = (uint32_t)(options.block_tokens > 0 ? options.block_tokens : config->memory.block_tokens),
        .block_count = (uint32_t)options.blocks,
        .step_ns = (uint64_t)(step_us * 1e3),
        .token_ns = (uint64_t)(token_us * 1e3),
    };
}

static int replay(const qn_config_values_t *config, const char *path)
{
    policy_trace_t trace;
    char dirs[2 * QN_PATH_MAX];
    column_t columns[CLI_TEXTS_MAX] = {{.policy = config->scheduler.policy}};
    size_t count = options.policies.count > 0 ? options.policies.count : 1;
    qn_err_t err = qn_paths_policies(config, dirs, sizeof dirs);
    if (err == QN_OK) err = policy_trace_read(path, &trace);
    if (err == QN_ERR_INVALID || err == QN_ERR_LIMIT) return cli_fail(EX_DATAERR, "%s", qn_err_text());
    if (err == QN_ERR_IO || err == QN_ERR_NOT_FOUND) return cli_fail(EX_NOINPUT, "%s", qn_err_text());
    if (err < 0) return cli_fail_err(err);
    simulation_options_t used = options_in_force(config, &trace, dirs);
    int status = EX_OK;
    for (size_t i = 0; i < count && status == EX_OK; i++) {
        if (options.policies.count > 0) columns[i].policy = options.policies.items[i];
        columns[i].batching = options.batchings.count == 0   ? config->scheduler.batching
                              : options.batchings.count == 1 ? options.batchings.items[0]
                                                             : options.batchings.items[i];
        status = simulate(&used, &trace, &columns[i]);
    }
    if (status == EX_OK && options.json) print_json(columns, count, &used);
    if (status == EX_OK && !options.json) print_table(columns, count, &used);
    if (status == EX_OK && trace.unfinished > 0)
        fprintf(stderr, "quintet policy: %u requests do not end in the capture: they count with their max_tokens\n",
                trace.unfinished);
    policy_trace_fini(&trace);
    int output = cli_finish_output();
    return status != EX_OK ? status : output;
}

int cmd_policy(int argc, char **argv)
{
    int status = cli_parse(&command, &argc, argv);
    if (status != -1) return status;
    if (argc < 2 || strcmp(argv[1], "replay") != 0)
        return cli_usage(argc < 2 ? "say what to do: replay TRACE"
                                  : "there is no \"policy %s\"; there is \"policy replay\"",
                         argc < 2 ? "" : argv[1]);
    if (argc != 3) return cli_usage("give one trace");
    if (options.batchings.count > 1 && options.batchings.count != options.policies.count)
        return cli_usage("--batching is given %zu times, --policy %zu times: one for all, or one for each",
                         options.batchings.count, options.policies.count);
    qn_config_t *config = NULL;
    qn_err_t err = qn_config_load(arguments.path, arguments.sets, arguments.set_count, arguments.run_dir, &config);
    return err < 0 ? cli_fail_err(err) : replay(qn_config_values(config), argv[2]);
}
