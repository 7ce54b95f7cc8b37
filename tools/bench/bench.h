/* What the benchmarks of `quintet bench` share: their entries, progress, configuration (timing: kernels/bench/bench_time.h). Each `bench_<name>` is a subcommand
 * as cli.h describes them; argv[0] is "bench NAME". */
#ifndef QN_TOOLS_BENCH_BENCH_H
#define QN_TOOLS_BENCH_BENCH_H

#include <stddef.h>
#include <stdint.h>

#include "common/config/config.h"
#include "kernels/bench/bench_time.h"

int bench_machine(int argc, char **argv);
int bench_kernels(int argc, char **argv);
int bench_step(int argc, char **argv);
int bench_quality(int argc, char **argv);
int bench_tokenizer(int argc, char **argv);
int bench_serve(int argc, char **argv);

/* ---- the terminal ---- */

/* Replaces the line of progress on standard error, when that is a terminal. */
void bench_progress(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Takes the line away. */
void bench_progress_end(void);

/* ---- configuration ---- */

/* Loads what the arguments say, with model.path, load_format and compute.threads as options gave them (NULL and 0: not
 * given). Returns an exit status; owned in *ret_config on EX_OK. */
int bench_config(const qn_config_arguments_t *arguments, const char *model, uint64_t threads, qn_config_t **ret_config);

/* "1,8,16": 1 to `max` numbers from `least` to `most`. Returns how many, or 0 after a usage message about --`name`. */
size_t bench_numbers(const char *name, const char *text, uint32_t least, uint32_t most, uint32_t *ret_numbers,
                     size_t max);

#endif
