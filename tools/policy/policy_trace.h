/* A trace of arrivals, to be scheduled again: from a capture of the sniffer (quintet sniff -w), or from JSON Lines, one
 * request per line:
 *   {"arrival_ms": 12.5, "prompt_tokens": 300, "max_tokens": 64, "priority": 0, "user": "ada", "deadline_ms": 2000,
 *    "prefix_tokens": 128}
 * Only prompt_tokens (or input_ids, which are counted) is required; max_tokens is 50, everything else 0 or "" without a word.
 * `arrival` is in seconds, as in traces of quintet bench serve. */
#ifndef QN_TOOLS_POLICY_POLICY_TRACE_H
#define QN_TOOLS_POLICY_POLICY_TRACE_H

#include "common/err.h"
#include "services/scheduler/simulation/simulation.h"

#define POLICY_TRACE_REQUESTS_MAX 1000000u

typedef struct {
    simulation_request_t *requests; /* [count], by line, or in order of arrival; their user names are owned, too */
    uint32_t count;
    uint32_t unfinished;      /* capture: their ends are not in it, so they count with max_tokens */
    double step_us, token_us; /* capture: of its steps; else 0 */
} policy_trace_t;

/* "-" is standard input. QN_ERR_INVALID: a line or field, named in the text; QN_ERR_NOT_FOUND, QN_ERR_IO. */
qn_err_t policy_trace_read(const char *path, policy_trace_t *ret_trace);
void policy_trace_fini(policy_trace_t *trace);

#endif
