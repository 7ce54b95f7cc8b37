/* The recorder: what all daemons of a run directory send, and what their loops do, into a capture file for a while. A
 * capture becomes a timeline with trace.h, is read by `quintet sniff -r`, and is bounded.
 *
 * Blocks, so it runs on a thread of its own or in a program of its own. */
#ifndef QN_COMMON_CAPTURE_RECORDER_H
#define QN_COMMON_CAPTURE_RECORDER_H

#include <stddef.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"

#define QN_RECORDER_BYTES_MAX (64u << 20)   /* of one capture: some minutes of a busy engine on a CPU */
#define QN_RECORDER_NS_MAX 600000000000ull  /* of one recording */
#define QN_RECORDER_LISTEN_NS 1000000000ull /* daemons that are there are heard of within four heartbeats */

typedef enum {
    QN_RECORDER_STOPPED, /* asked to */
    QN_RECORDER_TIME_OVER,
    QN_RECORDER_FULL, /* of bytes */
} qn_recorder_end_t;

typedef struct {
    const char *run_dir, *path; /* borrowed for the call */
    uint64_t time_ns, bytes_max;
    int stop_fd; /* ends it when it is readable */
    /* Called once when every daemon that runs is heard of: from then on nothing is missed. `services`: bits
     * 1 << qn_service_t of those that are heard. May be NULL. */
    void (*listening)(void *context, unsigned services);
    void *context;
} qn_recorder_spec_t;

typedef struct {
    qn_recorder_end_t end;
    uint64_t begin_ns, end_ns, messages, missed, bytes;
} qn_recorder_figures_t;

/* Records until it is stopped or a bound is reached. Failure: QN_ERR_IO, QN_ERR_INVALID, QN_ERR_NO_MEMORY; what was
 * written so far is a capture all the same. */
qn_err_t qn_recorder_run(const qn_recorder_spec_t *spec, qn_recorder_figures_t *ret_figures);

/* RUN_DIR/recordings/NAME`suffix`; makes the folder. A name is 1 to 63 of [A-Za-z0-9._-] and does not begin with a dot:
 * QN_ERR_INVALID, QN_ERR_LIMIT (the path is too long), QN_ERR_IO. */
qn_err_t qn_recorder_path(const char *run_dir, const char *name, const char *suffix, char *ret_path, size_t room);
#define QN_RECORDER_CAPTURE_SUFFIX ".qncap"
#define QN_RECORDER_TRACE_SUFFIX ".trace.json"

#endif
