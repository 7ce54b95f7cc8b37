/* The metadata of research mode: where the time of a request went. */
#ifndef QN_FRONTEND_RESEARCH_H
#define QN_FRONTEND_RESEARCH_H

#include "common/wire/wire.h"
#include "services/frontend/reply/json_writer.h"
#include "services/frontend/request/request_table.h"

typedef struct {
    const char *method; /* route name */
    uint64_t received_ns, now_ns;
    uint32_t epoch;             /* of the frontend */
    const char *reason;         /* why the answer is what it is; NULL: told from the exchange */
    const exchange_t *exchange; /* NULL: no other service was asked */
} research_t;

/* Writes {"service", "method", "execution_time_us", "hops": [{"from", "to", "us"}, ...], "epoch", "build",
 * "algorithm_reasoning": [text, ...]}. Hops are those of the first choice up to its first token; a hop from a service to
 * itself is its own work. */
void research_write(const research_t *research, json_writer_t *writer);

/* Of a method call: ns of the one clock; texts are views. */
typedef struct {
    const char *service, *method, *build;
    bool local;                             /* the frontend's own: there were no hops */
    uint64_t sent_ns, began_ns, replied_ns; /* the call was sent; taken in hand; answered */
    uint64_t now_ns;
    uint32_t epoch; /* of the service */
    const qn_text_t *reasoning;
    uint32_t reasoning_count;
} research_call_t;

/* The same members; execution_time_us is the service's own. */
void research_write_call(const research_call_t *call, json_writer_t *writer);

#endif
