/* The transfers of a load: one thread, libcurl's multi interface over epoll, connections kept between requests. */
#ifndef QN_TOOLS_BENCH_LOAD_ENGINE_H
#define QN_TOOLS_BENCH_LOAD_ENGINE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "tools/bench/load_prompts.h"
#include "tools/bench/load_record.h"
#include "tools/client/http_client.h"

#define LOAD_CONCURRENCY_MAX 4096
#define LOAD_REQUESTS_MAX 1000000
/* A client of a closed loop whose request failed waits so long before its next: a server that is down is not flooded. */
#define LOAD_PAUSE_NS 100000000ull

typedef struct load_engine load_engine_t;

/* Called when a request ended. False: end the run. */
typedef bool (*load_ended_t)(void *context, const load_record_t *record, const load_gap_t *gaps, size_t gap_count,
                             const json_t *ids);
/* Called some times a second. */
typedef void (*load_progress_t)(void *context, double seconds, uint32_t busy);

typedef struct {
    const http_client_t *client;   /* borrowed */
    const load_prompts_t *prompts; /* borrowed */
    uint32_t concurrency;          /* 1 .. LOAD_CONCURRENCY_MAX: requests at once, at most */
    long timeout_ms;               /* of a request; 0: none */
    int interrupt_fd;              /* borrowed; -1: none */
    bool keeps_ids;
    load_ended_t ended;
    load_progress_t progress; /* may be NULL */
    void *context;
} load_engine_options_t;

typedef struct {
    load_purpose_t purpose;
    uint64_t requests;         /* 0: no bound */
    double seconds;            /* nothing is sent after; 0: no bound. One of both is above 0. */
    load_arrivals_t *arrivals; /* borrowed; NULL and no trace: as soon as one of `concurrency` is free */
    bool is_trace;             /* arrivals are those of the lines */
    uint32_t concurrency;      /* 1 .. that of the engine */
} load_run_t;

typedef enum {
    LOAD_ENDED_REQUESTS,
    LOAD_ENDED_SECONDS,
    LOAD_ENDED_INTERRUPT, /* interrupt_fd became readable; requests under way were taken back */
    LOAD_ENDED_LIMIT,     /* ended() said so, or LOAD_REQUESTS_MAX were sent */
} load_end_t;

/* QN_ERR_LIMIT: this process may not open that many connections; the text has the remedy. Returns owned. */
qn_err_t load_engine_open(const load_engine_options_t *options, load_engine_t **ret_engine);
void load_engine_close(load_engine_t **engine);
/* Blocks until all that was sent has ended. Connections stay open for the next run. Failures: QN_ERR_IO,
 * QN_ERR_NO_MEMORY. *ret_cpu_s: time the processor gave this process meanwhile. */
qn_err_t load_engine_run(load_engine_t *engine, const load_run_t *run, load_end_t *ret_end, double *ret_cpu_s);

#endif
