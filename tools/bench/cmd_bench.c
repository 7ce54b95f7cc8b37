/* What is this?      quintet bench: finds the benchmark and hands it its arguments.
 * State owned:       the table of benchmarks.
 * Must never:        measure.
 * Read next:         bench_machine.c (what all percentages are of), bench_step.c. */
#include <string.h>
#include <sysexits.h>

#include "tools/bench/bench.h"
#include "tools/cli.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
} benches[] = {
    {"machine", bench_machine}, {"kernels", bench_kernels},     {"step", bench_step},
    {"quality", bench_quality}, {"tokenizer", bench_tokenizer}, {"serve", bench_serve},
};
#define BENCH_COUNT (sizeof benches / sizeof *benches)

static const cli_command_t command = {
    .name = "bench",
    .arguments = "NAME [OPTION]...",
    .summary = "Measures parts of Quintet in this process, without services; and a running server.",
    .details = "names:\n"
               "  machine    memory bandwidth and arithmetic peaks of this machine\n"
               "  kernels    every kernel, checked against the reference, then timed\n"
               "  step       prefill and decode steps of a model\n"
               "  quality    what quantisation and kernels do to a model's predictions\n"
               "  tokenizer  encoding speed of a tokenizer.json\n"
               "  serve      load on a running server over HTTP\n\n"
               "quintet bench NAME --help tells more. A machine that does something else meanwhile gives no figures.",
};

int cmd_bench(int argc, char **argv)
{
    const char *names[BENCH_COUNT];
    for (size_t i = 0; i < BENCH_COUNT; i++) {
        names[i] = benches[i].name;
        if (argc > 1 && !strcmp(argv[1], names[i])) return benches[i].run(argc - 1, argv + 1);
    }
    const char *word = argc > 1 && argv[1][0] != '-' ? argv[1] : NULL;
    int status = cli_parse(&command, &argc, argv);
    if (status != -1) return status;
    if (!word) return cli_usage("say what to measure: machine, kernels, step, quality, tokenizer or serve");
    const char *nearest = cli_nearest(word, names, BENCH_COUNT);
    if (nearest) return cli_usage("there is no benchmark \"%s\"; did you mean \"%s\"?", word, nearest);
    return cli_usage("there is no benchmark \"%s\"", word);
}
