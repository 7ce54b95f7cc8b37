/* The times of requests over the last minute, as the frontend sees them: in all, to the first token, between tokens, and
 * from stage to stage of their way. Filled in by exchange_reply.c, shown by research/debug_latency.c. */
#ifndef QN_FRONTEND_LATENCY_H
#define QN_FRONTEND_LATENCY_H

#include "common/watch/window.h"
#include "services/frontend/request/request_table.h"

#define LATENCY_HOPS STAGE_COUNT /* from each stage to the next, and from the last one to the frontend */

typedef struct {
    qn_window_t total, first_token, inter_token;
    qn_window_t hops[LATENCY_HOPS]; /* [i]: the hop that ends at stage i + 1; the last: at the frontend */
} latency_t;

/* The first token of a choice is there: its way so far. */
void latency_observe_way(latency_t *latency, const choice_t *choice, uint64_t now_ns);
/* Who a hop is from and to; a hop from a service to itself is its own work. Returns view. */
const char *latency_hop_from(unsigned hop);
const char *latency_hop_to(unsigned hop);

#endif
