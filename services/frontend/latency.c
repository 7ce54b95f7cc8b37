/* What is this?      From the stamps of a request's way to windows of its hops.
 * State owned:       the caller's.
 * Must never:        read a clock.
 * Read next:         request_table.h (stages), research.c (the same hops of one request). */
#include "services/frontend/latency.h"

static const struct {
    const char *from, *to;
} hops[LATENCY_HOPS] = {
    [STAGE_ENCODE_BEGIN - 1] = {"frontend", "tokenizer"}, [STAGE_SUBMITTED - 1] = {"tokenizer", "tokenizer"},
    [STAGE_QUEUED - 1] = {"tokenizer", "scheduler"},      [STAGE_PLANNED - 1] = {"scheduler", "scheduler"},
    [STAGE_EXECUTED - 1] = {"scheduler", "compute"},      [STAGE_COMPUTED - 1] = {"compute", "compute"},
    [STAGE_RESULTED - 1] = {"compute", "scheduler"},      [STAGE_DETOKENIZED - 1] = {"scheduler", "tokenizer"},
    [STAGE_COUNT - 1] = {"tokenizer", "frontend"},
};

const char *latency_hop_from(unsigned hop) { return hops[hop].from; }
const char *latency_hop_to(unsigned hop) { return hops[hop].to; }

/* Stages of different hosts may be out of order, and some are not reached: those say nothing. */
void latency_observe_way(latency_t *latency, const choice_t *choice, uint64_t now_ns)
{
    for (unsigned i = 0; i < LATENCY_HOPS; i++) {
        uint64_t begin_ns = choice->stages[i], end_ns = i + 1 < STAGE_COUNT ? choice->stages[i + 1] : now_ns;
        if (begin_ns && end_ns >= begin_ns) qn_window_observe(&latency->hops[i], now_ns, end_ns - begin_ns);
    }
}
