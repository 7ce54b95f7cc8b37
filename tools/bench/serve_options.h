/* The options of `quintet bench serve`, and what they make of a load. */
#ifndef QN_TOOLS_BENCH_SERVE_OPTIONS_H
#define QN_TOOLS_BENCH_SERVE_OPTIONS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "tools/bench/load_engine.h"
#include "tools/bench/load_server.h"

typedef struct {
    const char *url, *save, *compare;
    bool json, ids;
    double timeout_s;
    uint64_t warmup;
    load_slo_t slo;
    load_run_t run;           /* without `arrivals` */
    load_arrivals_t arrivals; /* where --rate was given */
    bool has_arrivals;
    load_prompts_t prompts; /* without what the server tells */
    json_t *fields;         /* owned */
    json_t *load;           /* owned; all of it for the report */
} serve_options_t;

/* Parses argv and reads the files. Returns -1 to go on, or an exit status. */
int serve_options_parse(int argc, char **argv, serve_options_t *ret_options);
/* Completes the prompts by what the server told. Returns an exit status. */
int serve_options_complete(serve_options_t *options, const load_server_t *server);

#endif
