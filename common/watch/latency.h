/* A row of LatencyReply from a window: what the methods *.latency answer with. */
#ifndef QN_COMMON_WATCH_LATENCY_H
#define QN_COMMON_WATCH_LATENCY_H

#include "common/watch/window.h"
#include "qn_messages.h"

static inline qn_latency_figures_t qn_latency_row(const char *name, const qn_window_t *window, uint64_t now_ns)
{
    qn_window_figures_t figures;
    qn_window_read(window, now_ns, &figures);
    return (qn_latency_figures_t){.name = qn_text(name),
                                  .count = figures.count,
                                  .mean_ns = (uint64_t)figures.mean_ns,
                                  .p50_ns = figures.p50_ns,
                                  .p99_ns = figures.p99_ns};
}

#endif
