/* What is this?      The records of the active area read again at start: what was durable becomes entries.
 * State owned:       nothing of its own: the ledger's (ledger_internal.h).
 * Must never:        believe a record that does not fit its request; read past a torn one.
 * Read next:         ledger_record.c for the bytes, ledger.c for who writes them. */
#include "services/scheduler/ledger/ledger_internal.h"

#include <string.h>

static bool replay_request(ledger_t *ledger, const uint8_t *payload, size_t bytes)
{
    request_t request = {0};
    bool good = ledger->unused != LEDGER_NONE && ledger_request_read(payload, bytes, &request) == QN_OK &&
                ledger_find(ledger, request.id) == NULL;
    if (!good) {
        ledger_request_fini(&request);
        return false;
    }
    ledger_add_entry(ledger, &request);
    if (request.arrival >= ledger->next_arrival) ledger->next_arrival = request.arrival + 1;
    return true;
}

static bool replay_tokens(ledger_t *ledger, const uint8_t *payload, size_t bytes)
{
    record_tokens_t head;
    if (bytes < sizeof head) return false;
    memcpy(&head, payload, sizeof head);
    uint64_t top_left = head.top_count;
    if (bytes != sizeof head + head.count * sizeof(record_token_t) + top_left * sizeof(request_alternative_t))
        return false;
    const uint8_t *at = payload + sizeof head, *top = at + head.count * sizeof(record_token_t);
    for (uint32_t i = 0; i < head.count; i++, at += sizeof(record_token_t)) {
        record_token_t token;
        memcpy(&token, at, sizeof token);
        request_t *request = ledger_find(ledger, token.request);
        if (request == NULL || request->generated_tokens >= request->generated_max ||
            token.position != request_known_tokens(request) || token.top_count > top_left ||
            token.top_count > request_alternatives(request))
            return false;
        ledger_add_token(ledger, request, &token, top);
        top += token.top_count * sizeof(request_alternative_t);
        top_left -= token.top_count;
    }
    return top_left == 0;
}

static bool replay_change(ledger_t *ledger, uint32_t type, const uint8_t *payload, size_t bytes)
{
    record_change_t change;
    if (bytes != sizeof change) return false;
    memcpy(&change, payload, sizeof change);
    request_t *request = ledger_find(ledger, change.request);
    if (request == NULL) return false;
    switch (type) {
    case LEDGER_RECORD_FINISH:
        request->finish = (request_finish_t)change.value;
        return change.value >= REQUEST_STOP && change.value <= REQUEST_ERROR;
    case LEDGER_RECORD_FORGET: ledger_remove_entry(ledger, request); return true;
    case LEDGER_RECORD_CLIP:
        if (change.value < request->generated_tokens || change.value > request->generated_max) return false;
        ledger->reserved_bytes -= ledger_reservation(request);
        request->generated_max = (uint32_t)change.value;
        ledger->reserved_bytes += ledger_reservation(request);
        return true;
    case LEDGER_RECORD_ADOPT:
        request->client = change.client;
        request->orphaned_ns = 0;
        return true;
    case LEDGER_RECORD_ORPHAN: request->orphaned_ns = change.value; return true;
    case LEDGER_RECORD_ADMIT:
        request->admitted = true;
        request->cached_tokens = (uint32_t)change.value;
        return change.value <= request->prompt_tokens;
    case LEDGER_RECORD_PREEMPT: request->preemptions = (uint32_t)change.value; return true;
    case LEDGER_RECORD_SUSPECT:
        request->crashes = change.second;
        request->suspect_until = (uint32_t)change.value;
        return change.value <= UINT32_MAX;
    default: return false;
    }
}

static bool replay_stamp(ledger_t *ledger, const uint8_t *payload, size_t bytes)
{
    record_stamp_t stamp;
    if (bytes != sizeof stamp) return false;
    memcpy(&stamp, payload, sizeof stamp);
    request_t *request = ledger_find(ledger, stamp.request);
    if (request != NULL) request->timeline = stamp.timeline;
    return request != NULL;
}

static bool replay_record(ledger_t *ledger, const uint8_t *at)
{
    record_head_t head;
    memcpy(&head, at, sizeof head);
    const uint8_t *payload = at + sizeof head;
    if (head.type == LEDGER_RECORD_REQUEST) return replay_request(ledger, payload, head.payload_bytes);
    if (head.type == LEDGER_RECORD_TOKENS) return replay_tokens(ledger, payload, head.payload_bytes);
    if (head.type == LEDGER_RECORD_STAMP) return replay_stamp(ledger, payload, head.payload_bytes);
    return replay_change(ledger, head.type, payload, head.payload_bytes);
}

void ledger_replay_records(ledger_t *ledger, ledger_replay_t *ret_replay)
{
    ledger->active = (uint32_t)(atomic_load(&ledger->header->active) & 1);
    ledger->next_sequence = ledger->header->first_sequence[ledger->active];
    for (;;) {
        size_t bytes =
            ledger_record_check(ledger_tail(ledger), ledger->area_bytes - ledger->used_bytes, ledger->next_sequence);
        if (bytes == 0 || !replay_record(ledger, ledger_tail(ledger))) break;
        ledger->used_bytes += bytes;
        ledger->next_sequence++;
        ret_replay->records++;
    }
    ret_replay->requests = ledger->count;
    if (ledger->area_bytes - ledger->used_bytes < sizeof(uint64_t)) return;
    uint32_t torn;
    memcpy(&torn, ledger_tail(ledger), sizeof torn);
    ret_replay->torn_bytes = torn;
    memset(ledger_tail(ledger), 0, sizeof(uint64_t));
}
