/* The metadata of research mode: where the time of a request went. */
#ifndef QN_FRONTEND_RESEARCH_H
#define QN_FRONTEND_RESEARCH_H

#include "services/frontend/reply/json_writer.h"
#include "services/frontend/request/request_table.h"

typedef struct {
    const char *method; /* route name */
    uint64_t received_ns, now_ns;
    uint32_t epoch;             /* of the frontend */
    const char *reason;         /* why the answer is what it is; NULL: told from the exchange */
    const exchange_t *exchange; /* NULL: no other service was asked */
} research_t;

/* Writes {"service", "method", "execution_time_us", "hops": [{"from", "to", "us"}, ...], "epoch", "reason"}. Hops are
 * those of the first choice up to its first token; a hop from a service to itself is its own work. */
void research_write(const research_t *research, json_writer_t *writer);

#endif
