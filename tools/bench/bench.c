/* What is this?      Progress and configuration for the benchmarks.
 * State owned:       whether a line of progress stands on the terminal.
 * Must never:        print progress where nobody watches.
 * Read next:         cmd_bench.c, bench_step.c. */
#include "tools/bench/bench.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sysexits.h>
#include <unistd.h>

#include "tools/cli.h"

static bool line_stands = false;

void bench_progress(const char *format, ...)
{
    if (!isatty(STDERR_FILENO)) return;
    va_list arguments;
    va_start(arguments, format);
    fputs("\r\033[K", stderr);
    vfprintf(stderr, format, arguments);
    fflush(stderr);
    va_end(arguments);
    line_stands = true;
}

void bench_progress_end(void)
{
    if (line_stands) fputs("\r\033[K", stderr);
    line_stands = false;
}

/* A directory with a config.json and no weights can only be meant with dummy ones. */
static bool is_shape_only(const char *directory)
{
    char path[QN_PATH_MAX + 64];
    struct stat info;
    static const char *const WEIGHTS[] = {"model.safetensors", "model.safetensors.index.json"};
    snprintf(path, sizeof path, "%s/config.json", directory);
    if (stat(path, &info) != 0) return false;
    for (size_t i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", directory, WEIGHTS[i]);
        if (stat(path, &info) == 0) return false;
    }
    return true;
}

int bench_config(const qn_config_arguments_t *arguments, const char *model, uint64_t threads, qn_config_t **ret_config)
{
    char path_set[QN_PATH_MAX + 16], threads_set[64];
    const char *sets[QN_CONFIG_SETS_MAX + 3];
    size_t count = 0;
    if (model && strlen(model) >= QN_PATH_MAX) return cli_usage("--model is longer than %d bytes", QN_PATH_MAX);
    if (model) {
        snprintf(path_set, sizeof path_set, "model.path=%s", model);
        sets[count++] = path_set;
        if (is_shape_only(model)) sets[count++] = "model.load_format=dummy";
    }
    if (threads) {
        snprintf(threads_set, sizeof threads_set, "compute.threads=%llu", (unsigned long long)threads);
        sets[count++] = threads_set;
    }
    for (size_t i = 0; i < arguments->set_count; i++)
        sets[count++] = arguments->sets[i];
    qn_err_t err = qn_config_load(arguments->path, sets, count, arguments->run_dir, ret_config);
    return err ? cli_fail_err(err) : EX_OK;
}

size_t bench_numbers(const char *name, const char *text, uint32_t least, uint32_t most, uint32_t *ret_numbers,
                     size_t max)
{
    size_t count = 0;
    for (const char *at = text;; at++) {
        char *end;
        errno = 0;
        unsigned long number = strtoul(at, &end, 10);
        bool bad = end == at || at[0] < '0' || at[0] > '9' || errno || number < least || number > most;
        if (bad || count == max || (*end && *end != ',')) {
            cli_usage("--%s wants up to %zu numbers from %u to %u, separated by commas, not \"%s\"", name, max, least,
                      most, text);
            return 0;
        }
        ret_numbers[count++] = (uint32_t)number;
        if (!*end) return count;
        at = end;
    }
}
