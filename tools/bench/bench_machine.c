/* What is this?      quintet bench machine: the limits of this machine.
 * State owned:       none.
 * Must never:        print a figure that it did not measure.
 * Read next:         machine_speed.h. */
#include <inttypes.h>
#include <stdio.h>
#include <sysexits.h>

#include "tools/bench/bench.h"
#include "tools/cli.h"
#include "kernels/bench/machine_speed.h"

static void print_arithmetic(const char *what, double speed, const char *unit)
{
    if (speed > 0)
        printf("%-14s %8.1f %s\n", what, speed * 1e-9, unit);
    else
        printf("%-14s        – no such instruction here\n", what);
}

static void print(const machine_speed_t *speed)
{
    printf("memory read    %8.1f GB/s with %u thread%s, %.1f with one (buffer %" PRIu64 " MiB, last cache %" PRIu64
           " MiB)\n",
           speed->read_all * 1e-9, speed->threads, speed->threads == 1 ? "" : "s", speed->read_one * 1e-9,
           speed->buffer_bytes >> 20, speed->cache_bytes >> 20);
    print_arithmetic("f32", speed->f32, "GFLOP/s");
    print_arithmetic("bf16 dot", speed->bf16, "GFLOP/s");
    print_arithmetic("int8 dot", speed->int8, "GOP/s");
}

int bench_machine(int argc, char **argv)
{
    uint64_t threads = 0, megabytes = 0;
    bool json = false;
    const cli_option_t options[] = {
        {"threads", 0, CLI_COUNT, &threads, NULL, "N", "threads (default: one per core)", 1, MACHINE_THREADS_MAX},
        {"buffer", 0, CLI_COUNT, &megabytes, NULL, "MIB",
         "size of the buffer that is read (default: 8 last-level "
         "caches)",
         1, 8192},
        {"json", 'j', CLI_FLAG, &json, NULL, NULL, "bytes/s and operations/s as JSON", 0, 0},
    };
    const cli_command_t command = {
        .name = "bench machine",
        .arguments = "[OPTION]...",
        .summary = "Measures memory bandwidth and arithmetic peaks: what every percentage is of.",
        .options = options,
        .option_count = sizeof options / sizeof *options,
    };
    int status = cli_parse(&command, &argc, argv);
    if (status != -1) return status;
    if (argc > 1) return cli_usage("unexpected \"%s\"", argv[1]);
    machine_speed_t speed;
    qn_err_t err = machine_speed_measure((unsigned)threads, megabytes << 20, &speed);
    if (err) return cli_fail_err(err);
    if (json) {
        json_t *object = machine_speed_json(&speed);
        cli_print_json(object);
        json_decref(object);
    } else {
        print(&speed);
    }
    return cli_finish_output();
}
