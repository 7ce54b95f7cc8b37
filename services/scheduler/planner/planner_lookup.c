/* What is this?      Part of the planner: what memory is asked about the prefixes of those who wait (rule 10).
 * State owned:       what memory said last, by request.
 * Must never:        hold anybody up for long; ask twice at once.
 * Read next:         planner_traffic.c, schemas/prefix_query.fbs. */
#include <string.h>

#include "services/scheduler/planner/planner_inner.h"

uint32_t planner_prefix_of(const planner_t *planner, const request_t *request)
{
    const planner_prefix_t *prefix = &planner->prefixes[request->index];
    return prefix->request == request->id ? prefix->tokens : 0;
}

static bool is_due(const planner_t *planner, const request_t *request, uint64_t now_ns)
{
    const planner_prefix_t *prefix = &planner->prefixes[request->index];
    if (planner->batch->sequences[request->index].phase != SEQUENCE_WAITING) return false;
    if (request->sampling.prompt_logprobs) return false; /* it opens without ids: nothing is shared */
    return prefix->request != request->id || now_ns >= prefix->asked_ns + PREFIX_AGAIN_NS;
}

void planner_add_lookups(planner_t *planner, plan_traffic_t *traffic, uint64_t now_ns)
{
    const batch_t *batch = planner->batch;
    if (!(qn_policy_seat_wants(planner->policies.scheduling) & QN_POLICY_WANTS_PREFIX)) return;
    bool open = planner->open_lookup != 0 && now_ns < planner->lookup_ns + PREFIX_AGAIN_NS;
    if (open || batch->waiting_count == 0) return;
    uint64_t ids = 0;
    bool first = false;
    const request_t *request = ledger_next(batch->ledger, NULL);
    for (; request != NULL && traffic->lookup_count < QN_PREFIX_QUERY_ITEMS_MAX;
         request = ledger_next(batch->ledger, request)) {
        if (!is_due(planner, request, now_ns)) continue;
        ids += request->prompt_tokens;
        if (traffic->lookup_count > 0 && ids > LOOKUP_IDS_MAX) break;
        planner_prefix_t *prefix = &planner->prefixes[request->index];
        uint32_t known = prefix->request == request->id ? prefix->tokens : 0;
        first = first || prefix->request != request->id;
        *prefix = (planner_prefix_t){.request = request->id, .asked_ns = now_ns, .tokens = known};
        planner->lookups[traffic->lookup_count++] = (plan_lookup_t){.sequence = request->id,
                                                                    .salt = request->salt,
                                                                    .ids = request->ids,
                                                                    .ids_count = request->prompt_tokens};
    }
    if (traffic->lookup_count == 0) return;
    planner->open_lookup = traffic->lookup_batch = ++planner->last_lookup_batch;
    planner->lookup_ns = now_ns;
    planner->lookup_first = first;
}

bool planner_awaits_prefixes(const planner_t *planner, uint64_t now_ns, uint64_t *again_ns)
{
    const qn_policy_object_t *live = qn_policy_seat_live(planner->policies.scheduling);
    uint64_t until_ns = planner->lookup_ns + PREFIX_WAIT_NS;
    bool wants = (qn_policy_object_head(live)->wants & QN_POLICY_WANTS_PREFIX) != 0;
    if (!wants || planner->open_lookup == 0 || !planner->lookup_first || now_ns >= until_ns) return false;
    *again_ns = until_ns < *again_ns ? until_ns : *again_ns;
    return true;
}

void planner_prefix_hits(planner_t *planner, uint64_t lookup_batch, const plan_prefix_hit_t *hits, uint32_t count)
{
    if (lookup_batch != planner->open_lookup) return;
    planner->open_lookup = 0;
    for (uint32_t i = 0; i < count; i++) {
        const request_t *request = ledger_find(planner->batch->ledger, hits[i].sequence);
        if (request == NULL || planner->prefixes[request->index].request != request->id) continue;
        uint32_t most = request->prompt_tokens; /* memory's number is shown to policies only, and still has its bound */
        planner->prefixes[request->index].tokens = hits[i].tokens < most ? hits[i].tokens : most;
    }
}
