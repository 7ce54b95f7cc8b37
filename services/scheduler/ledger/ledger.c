/* What is this?      The requests that live, on the heap for the planner and in the mapping for the next process.
 * State owned:       entries, the index by id, the list by arrival; the mapping's content (the mapping is the
 *                    caller's).
 * Must never:        change a request's durable part without a record, or allocate on the append path.
 * Read next:         ledger_record.c for the bytes, ledger_replay.c for a start; batch.c for what a request does while it runs. */
#include "services/scheduler/ledger/ledger_internal.h"

#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "common/failpoint.h"

#define HEADER_BYTES 4096u
#define EVIDENCE_BYTES (12u * 1024)
#define POLICIES_AT (HEADER_BYTES + EVIDENCE_BYTES)
#define MAGIC 0x34524744454c4e51ull /* "QNLEDGR4" */
/* Below this an area is not worth compacting for the sake of resident memory. */
#define COMPACT_BYTES (1u << 20)

_Static_assert(sizeof(ledger_header_t) <= HEADER_BYTES && sizeof(evidence_t) <= EVIDENCE_BYTES &&
                   POLICIES_AT + LEDGER_POLICY_PAGES * sizeof(qn_policy_page_t) <= LEDGER_HEAD_BYTES,
               "each has its pages");

/* ---- entries ---- */

static uint32_t *bucket_of(const ledger_t *ledger, uint64_t id)
{
    return &ledger->buckets[(uint32_t)((id * 0x9e3779b97f4a7c15ull) >> 40) & ledger->bucket_mask];
}

static ledger_entry_t *entry_of(const ledger_t *ledger, const request_t *request)
{
    QN_ASSERT(request->index < ledger->requests_max && request == &ledger->entries[request->index].request);
    return &ledger->entries[request->index];
}

uint64_t ledger_reservation(const request_t *request) { return RECORD_BYTES(ledger_request_payload(request, true)); }

request_t *ledger_add_entry(ledger_t *ledger, const request_t *filled)
{
    uint32_t index = ledger->unused;
    QN_ASSERT(index != LEDGER_NONE);
    ledger_entry_t *entry = &ledger->entries[index];
    ledger->unused = entry->next_in_bucket;
    entry->request = *filled;
    entry->request.index = index;
    uint32_t *bucket = bucket_of(ledger, filled->id);
    entry->next_in_bucket = *bucket;
    *bucket = index;
    entry->previous = ledger->newest;
    entry->next = LEDGER_NONE;
    if (ledger->newest != LEDGER_NONE)
        ledger->entries[ledger->newest].next = index;
    else
        ledger->oldest = index;
    ledger->newest = index;
    ledger->count++;
    ledger->reserved_bytes += ledger_reservation(&entry->request);
    ledger->living_bytes += ledger_request_payload(&entry->request, false);
    return &entry->request;
}

void ledger_remove_entry(ledger_t *ledger, request_t *request)
{
    ledger_entry_t *entry = entry_of(ledger, request);
    uint32_t index = request->index;
    uint32_t *link = bucket_of(ledger, request->id);
    while (*link != index)
        link = &ledger->entries[*link].next_in_bucket;
    *link = entry->next_in_bucket;
    if (entry->previous != LEDGER_NONE)
        ledger->entries[entry->previous].next = entry->next;
    else
        ledger->oldest = entry->next;
    if (entry->next != LEDGER_NONE)
        ledger->entries[entry->next].previous = entry->previous;
    else
        ledger->newest = entry->previous;
    ledger->reserved_bytes -= ledger_reservation(request);
    ledger->living_bytes -= ledger_request_payload(request, false);
    ledger_request_fini(request);
    entry->next_in_bucket = ledger->unused;
    ledger->unused = index;
    ledger->count--;
}

void ledger_add_token(ledger_t *ledger, request_t *request, const record_token_t *token, const void *top)
{
    uint32_t at = request->generated_tokens++;
    request->ids[request->prompt_tokens + at] = token->id;
    request->logprobs[at] = token->logprob;
    request->stopped = token->stopped != 0;
    ledger->living_bytes += ledger_token_payload(request);
    if (request->top == NULL) return;
    request->top_counts[at] = (uint8_t)token->top_count;
    if (token->top_count > 0)
        memcpy(request->top + (size_t)at * request_alternatives(request), top, token->top_count * sizeof *request->top);
}

/* ---- records ---- */

uint8_t *ledger_tail(const ledger_t *ledger) { return ledger->areas[ledger->active] + ledger->used_bytes; }

static void seal(ledger_t *ledger, ledger_record_type_t type, size_t payload_bytes)
{
    ledger->used_bytes += ledger_record_seal(ledger_tail(ledger), ledger->area_bytes - ledger->used_bytes,
                                             ledger->next_sequence++, type, payload_bytes);
}

/* Writes the living requests into the other area, then makes it the active one. */
static void compact(ledger_t *ledger)
{
    uint32_t other = 1 - ledger->active;
    uint64_t first = ledger->next_sequence;
    size_t used = 0;
    memset(ledger->areas[other], 0, sizeof(uint64_t));
    for (uint32_t i = ledger->oldest; i != LEDGER_NONE; i = ledger->entries[i].next) {
        const request_t *request = &ledger->entries[i].request;
        uint8_t *at = ledger->areas[other] + used;
        size_t bytes = ledger_request_payload(request, false);
        QN_ASSERT(RECORD_BYTES(bytes) + sizeof(uint64_t) <= ledger->area_bytes - used);
        ledger_request_write(request, ledger_record_payload(at));
        used +=
            ledger_record_seal(at, ledger->area_bytes - used, ledger->next_sequence++, LEDGER_RECORD_REQUEST, bytes);
    }
    ledger->header->first_sequence[other] = first;
    atomic_store_explicit(&ledger->header->active, other, memory_order_release);
    ledger->active = other;
    ledger->used_bytes = used;
    ledger->compactions++;
}

/* Returns where the payload of the next record goes. */
static uint8_t *make_room(ledger_t *ledger, size_t payload_bytes)
{
    size_t needed = RECORD_BYTES(payload_bytes) + sizeof(uint64_t);
    bool full = ledger->used_bytes + needed > ledger->area_bytes;
    bool wasteful = ledger->used_bytes > COMPACT_BYTES && ledger->used_bytes > 4 * ledger->living_bytes;
    if (full || wasteful) compact(ledger);
    QN_ASSERT(ledger->used_bytes + needed <= ledger->area_bytes);
    return ledger_record_payload(ledger_tail(ledger));
}

static void write_change(ledger_t *ledger, ledger_record_type_t type, const request_t *request, uint64_t value)
{
    record_change_t change = {.request = request->id,
                              .client = request->client,
                              .value = value,
                              .second = request->crashes};
    memcpy(make_room(ledger, sizeof change), &change, sizeof change);
    seal(ledger, type, sizeof change);
}

/* ---- life ---- */

static void format(ledger_t *ledger, size_t area_bytes)
{
    ledger_header_t *header = ledger->header;
    atomic_store(&header->magic, 0);
    header->request_bytes = sizeof(record_request_t);
    header->token_bytes = sizeof(record_token_t);
    header->area_bytes = area_bytes;
    header->first_sequence[0] = header->first_sequence[1] = 1;
    atomic_store(&header->active, 0);
    memset((uint8_t *)header + HEADER_BYTES, 0, LEDGER_HEAD_BYTES - HEADER_BYTES + sizeof(uint64_t));
    atomic_store(&header->magic, MAGIC);
}

static bool header_fits(const ledger_header_t *header, size_t area_bytes)
{
    return atomic_load(&header->magic) == MAGIC && header->request_bytes == sizeof(record_request_t) &&
           header->token_bytes == sizeof(record_token_t) && header->area_bytes == area_bytes;
}

static size_t area_bytes_of(size_t bytes) { return (bytes - LEDGER_HEAD_BYTES) / 2 & ~(size_t)7; }

static bool allocate_entries(ledger_t *ledger, uint32_t requests_max)
{
    uint32_t buckets = 16;
    while (buckets < requests_max)
        buckets *= 2;
    ledger->requests_max = requests_max;
    ledger->bucket_mask = buckets - 1;
    ledger->entries = calloc(requests_max, sizeof *ledger->entries);
    ledger->buckets = malloc(buckets * sizeof *ledger->buckets);
    if (ledger->entries == NULL || ledger->buckets == NULL) return false;
    memset(ledger->buckets, 0xff, buckets * sizeof *ledger->buckets);
    for (uint32_t i = 0; i < requests_max; i++)
        ledger->entries[i].next_in_bucket = i + 1 < requests_max ? i + 1 : LEDGER_NONE;
    ledger->oldest = ledger->newest = LEDGER_NONE;
    return true;
}

qn_err_t ledger_open(void *base, size_t bytes, uint32_t requests_max, ledger_t **ret_ledger,
                     ledger_replay_t *ret_replay)
{
    if (bytes < LEDGER_BYTES_MIN || (uintptr_t)base % sizeof(uint64_t) != 0 || requests_max == 0)
        return qn_fail(QN_ERR_INVALID, "ledger: a mapping of %zu bytes for %u requests; it takes %u bytes at least",
                       bytes, requests_max, LEDGER_BYTES_MIN);
    ledger_t *ledger = calloc(1, sizeof *ledger);
    if (ledger == NULL || !allocate_entries(ledger, requests_max)) {
        ledger_close(&ledger);
        return qn_fail(QN_ERR_NO_MEMORY, "ledger: no memory for %u entries", requests_max);
    }
    ledger->header = base;
    ledger->area_bytes = area_bytes_of(bytes);
    ledger->areas[0] = (uint8_t *)base + LEDGER_HEAD_BYTES;
    ledger->areas[1] = ledger->areas[0] + ledger->area_bytes;
    ledger->next_arrival = 1;
    *ret_replay = (ledger_replay_t){.formatted = !header_fits(ledger->header, ledger->area_bytes)};
    if (ret_replay->formatted) format(ledger, ledger->area_bytes);
    ledger_replay_records(ledger, ret_replay);
    *ret_ledger = ledger;
    return QN_OK;
}

void ledger_close(ledger_t **ledger)
{
    if (*ledger == NULL) return;
    for (uint32_t i = 0; (*ledger)->entries != NULL && i < (*ledger)->requests_max; i++)
        ledger_request_fini(&(*ledger)->entries[i].request);
    free((*ledger)->entries);
    free((*ledger)->buckets);
    free(*ledger);
    *ledger = NULL;
}

/* ---- changes ---- */

/* As much of a UTF-8 text as there is room for, whole characters only. */
static void cut_name(const char *name, char ret_name[QN_POLICY_USER_MAX])
{
    size_t length = strlen(name);
    if (length >= QN_POLICY_USER_MAX) {
        length = QN_POLICY_USER_MAX - 1;
        while (length > 0 && ((uint8_t)name[length] & 0xc0) == 0x80)
            length--;
    }
    memcpy(ret_name, name, length);
    memset(ret_name + length, 0, QN_POLICY_USER_MAX - length);
}

/* The request without its arrays. */
static request_t from_submission(const ledger_t *ledger, const ledger_submission_t *submission)
{
    request_t request = {
        .id = submission->id,
        .arrival = ledger->next_arrival,
        .client = submission->client,
        .priority = submission->priority,
        .salt = submission->salt,
        .sampling = submission->sampling,
        .timeline = submission->timeline,
        .prompt_tokens = submission->prompt_tokens,
        .generated_max = submission->generated_max,
        .stop_count = submission->stop_count,
        .bias_count = submission->bias_count,
        .allow_only = submission->allow_only,
        .logprob_id_count = submission->logprob_id_count,
        .bad_id_count = submission->bad_id_count,
        .model = submission->model,
        .deadline_ns = submission->deadline_ns,
        .user = submission->user,
    };
    if (submission->user_name != NULL) cut_name(submission->user_name, request.user_name);
    return request;
}

ledger_outcome_t ledger_submit(ledger_t *ledger, const ledger_submission_t *submission, request_t **ret_request)
{
    QN_ASSERT(submission->prompt_tokens >= 1 && submission->stop_count <= QN_STOP_IDS_MAX &&
              submission->bias_count <= QN_LOGIT_BIAS_MAX && submission->logprob_id_count <= QN_LOGPROB_IDS_MAX &&
              submission->bad_id_count <= QN_BAD_IDS_MAX);
    request_t *living = ledger_find(ledger, submission->id);
    if (living != NULL) {
        *ret_request = living;
        return LEDGER_EXISTS;
    }
    request_t request = from_submission(ledger, submission);
    request.probe = submission->probe;
    if (ledger->unused == LEDGER_NONE || ledger->reserved_bytes + ledger_reservation(&request) > ledger->area_bytes / 2)
        return LEDGER_FULL;
    if (ledger_request_allocate(&request) < 0 || !ledger_keep_probe(&request, &submission->probe)) {
        ledger_request_fini(&request);
        return LEDGER_FULL;
    }
    memcpy(request.ids, submission->prompt_ids, 4 * (size_t)submission->prompt_tokens);
    if (submission->stop_count > 0) memcpy(request.stop_ids, submission->stop_ids, 4 * (size_t)submission->stop_count);
    if (submission->bias_count > 0)
        memcpy(request.bias, submission->bias, sizeof *request.bias * submission->bias_count);
    if (submission->logprob_id_count > 0)
        memcpy(request.logprob_ids, submission->logprob_ids, 4 * (size_t)submission->logprob_id_count);
    if (submission->bad_id_count > 0)
        memcpy(request.bad_ids, submission->bad_ids, 4 * (size_t)submission->bad_id_count);
    size_t bytes = ledger_request_payload(&request, false);
    ledger_request_write(&request, make_room(ledger, bytes));
    seal(ledger, LEDGER_RECORD_REQUEST, bytes);
    ledger->next_arrival++;
    *ret_request = ledger_add_entry(ledger, &request);
    return LEDGER_ACCEPTED;
}

/* Alternatives of the token that its request asked for. */
static uint16_t kept_alternatives(const request_t *request, const ledger_token_t *token)
{
    uint32_t wanted = request_alternatives(request);
    return (uint16_t)(token->top_count < wanted ? token->top_count : wanted);
}

void ledger_append(ledger_t *ledger, const ledger_token_t *tokens, uint32_t count)
{
    record_tokens_t head = {.count = count};
    for (uint32_t i = 0; i < count; i++)
        head.top_count += kept_alternatives(ledger_at(ledger, tokens[i].index), &tokens[i]);
    if (count == 0) return;
    size_t tokens_bytes = sizeof head + count * sizeof(record_token_t);
    size_t bytes = tokens_bytes + head.top_count * sizeof(request_alternative_t);
    uint8_t *payload = make_room(ledger, bytes), *top = payload + tokens_bytes;
    memcpy(payload, &head, sizeof head);
    for (uint32_t i = 0; i < count; i++) {
        request_t *request = ledger_at(ledger, tokens[i].index);
        QN_ASSERT(request != NULL && request->finish == REQUEST_UNFINISHED);
        QN_ASSERT(request->generated_tokens < request->generated_max);
        QN_ASSERT(tokens[i].position == request_known_tokens(request));
        record_token_t token = {.request = request->id,
                                .position = tokens[i].position,
                                .id = tokens[i].id,
                                .logprob = tokens[i].logprob,
                                .stopped = tokens[i].stopped,
                                .top_count = kept_alternatives(request, &tokens[i])};
        memcpy(payload + sizeof head + i * sizeof token, &token, sizeof token);
        if (token.top_count > 0) memcpy(top, tokens[i].top, token.top_count * sizeof *tokens[i].top);
        ledger_add_token(ledger, request, &token, tokens[i].top);
        top += token.top_count * sizeof *tokens[i].top;
    }
    if (QN_FAILPOINT(QN_FAILPOINT_SCHEDULER_LEDGER_APPEND)) return; /* the tokens are lost with this process */
    seal(ledger, LEDGER_RECORD_TOKENS, bytes);
}

void ledger_clip(ledger_t *ledger, request_t *request, uint32_t generated_max)
{
    QN_ASSERT(generated_max >= request->generated_tokens && generated_max <= request->generated_max);
    if (generated_max == request->generated_max) return;
    write_change(ledger, LEDGER_RECORD_CLIP, request, generated_max);
    ledger->reserved_bytes -= ledger_reservation(request);
    request->generated_max = generated_max;
    ledger->reserved_bytes += ledger_reservation(request);
}

void ledger_adopt(ledger_t *ledger, request_t *request, request_client_t client)
{
    request->client = client;
    request->orphaned_ns = 0;
    write_change(ledger, LEDGER_RECORD_ADOPT, request, 0);
}

void ledger_orphan(ledger_t *ledger, request_t *request, uint64_t since_ns)
{
    if (request->orphaned_ns == since_ns) return;
    write_change(ledger, LEDGER_RECORD_ORPHAN, request, since_ns);
    request->orphaned_ns = since_ns;
}

void ledger_admit(ledger_t *ledger, request_t *request, uint32_t cached_tokens)
{
    QN_ASSERT(cached_tokens <= request->prompt_tokens);
    if (request->admitted) return;
    write_change(ledger, LEDGER_RECORD_ADMIT, request, cached_tokens);
    request->admitted = true;
    request->cached_tokens = cached_tokens;
}

void ledger_preempt(ledger_t *ledger, request_t *request)
{
    write_change(ledger, LEDGER_RECORD_PREEMPT, request, request->preemptions + 1);
    request->preemptions++;
}

void ledger_stamp(ledger_t *ledger, request_t *request, const request_timeline_t *timeline)
{
    record_stamp_t stamp = {.request = request->id, .timeline = *timeline};
    memcpy(make_room(ledger, sizeof stamp), &stamp, sizeof stamp);
    seal(ledger, LEDGER_RECORD_STAMP, sizeof stamp);
    request->timeline = *timeline;
}

void ledger_suspect(ledger_t *ledger, request_t *request, uint32_t crashes, uint32_t until)
{
    request->crashes = crashes;
    request->suspect_until = until;
    write_change(ledger, LEDGER_RECORD_SUSPECT, request, until);
}

void ledger_finish(ledger_t *ledger, request_t *request, request_finish_t finish)
{
    QN_ASSERT(finish != REQUEST_UNFINISHED);
    if (request->finish != REQUEST_UNFINISHED) return;
    write_change(ledger, LEDGER_RECORD_FINISH, request, finish);
    request->finish = finish;
}

void ledger_reopen(ledger_t *ledger, request_t *request)
{
    ledger_clip(ledger, request, request->generated_tokens);
    request->finish = REQUEST_UNFINISHED; /* the mapping may say so too soon: then the next life reopens it again */
}

void ledger_forget(ledger_t *ledger, request_t **request)
{
    QN_ASSERT((*request)->finish != REQUEST_UNFINISHED);
    write_change(ledger, LEDGER_RECORD_FORGET, *request, 0);
    ledger_remove_entry(ledger, *request);
    *request = NULL;
}

/* ---- views ---- */

request_t *ledger_find(const ledger_t *ledger, uint64_t id)
{
    for (uint32_t i = *bucket_of(ledger, id); i != LEDGER_NONE; i = ledger->entries[i].next_in_bucket)
        if (ledger->entries[i].request.id == id) return &ledger->entries[i].request;
    return NULL;
}

request_t *ledger_at(const ledger_t *ledger, uint32_t index)
{
    if (index >= ledger->requests_max || ledger->entries[index].request.prompt_tokens == 0) return NULL;
    return &ledger->entries[index].request;
}

request_t *ledger_next(const ledger_t *ledger, const request_t *after)
{
    uint32_t next = after == NULL ? ledger->oldest : entry_of(ledger, after)->next;
    return next == LEDGER_NONE ? NULL : &ledger->entries[next].request;
}

uint32_t ledger_count(const ledger_t *ledger) { return ledger->count; }

uint32_t ledger_requests_max(const ledger_t *ledger) { return ledger->requests_max; }

static evidence_t *evidence_at(const void *base)
{
    return (evidence_t *)(void *)((uint8_t *)(uintptr_t)base + HEADER_BYTES);
}

evidence_t *ledger_evidence(const ledger_t *ledger) { return evidence_at(ledger->header); }

qn_policy_page_t *ledger_policy_page(const ledger_t *ledger, qn_policy_kind_t kind)
{
    QN_ASSERT(kind >= QN_POLICY_SCHEDULING && kind <= LEDGER_POLICY_PAGES);
    uint8_t *pages = (uint8_t *)ledger->header + POLICIES_AT;
    return (qn_policy_page_t *)(void *)(pages + (kind - QN_POLICY_SCHEDULING) * sizeof(qn_policy_page_t));
}

uint32_t ledger_former_epoch(const void *base, size_t bytes)
{
    if (bytes < LEDGER_BYTES_MIN || !header_fits(base, area_bytes_of(bytes))) return 0;
    return (uint32_t)evidence_at(base)->epoch;
}

void ledger_usage(const ledger_t *ledger, ledger_usage_t *ret_usage)
{
    *ret_usage = (ledger_usage_t){
        .area_bytes = ledger->area_bytes,
        .used_bytes = ledger->used_bytes,
        .reserved_bytes = ledger->reserved_bytes,
        .compactions = ledger->compactions,
    };
}
