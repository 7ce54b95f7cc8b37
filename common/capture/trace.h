/* A capture as a timeline: JSON of the trace event format, as Perfetto (ui.perfetto.dev) and chrome://tracing read it.
 *
 * A process for every service and one for the device, on one clock, in microseconds since the capture began:
 *   services   a slice per turn of the loop, in it one per message that was handled; an instant per message that was sent
 *   device     a slice per step, from StepResult
 *   arrows     "message": from a message's sending to its handling; "request": a request's way up to its first token, and
 *              to its end
 *   requests   nested asynchronous slices per request: tokenize, queue, prefill, decode
 *   counters   sequences and tokens of each step
 * Turns and handling are in captures of the recorder only; without them arrows end in the instants. */
#ifndef QN_COMMON_CAPTURE_TRACE_H
#define QN_COMMON_CAPTURE_TRACE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "common/err.h"

#define QN_TRACE_BYTES_MAX (256u << 20) /* what viewers take; events beyond are left out, and the trace says so */

typedef struct {
    uint64_t requests; /* that the capture is about */
    uint64_t steps;    /* planned in it */
    uint64_t hops;     /* messages between services */
    uint64_t events, missed, bytes;
    bool truncated, torn;
} qn_trace_figures_t;

/* Reads the capture ("-": standard input) and writes JSON. Failure: that of reading, QN_ERR_IO of writing. */
qn_err_t qn_trace_write(const char *capture_path, FILE *out, qn_trace_figures_t *ret_figures);

#endif
