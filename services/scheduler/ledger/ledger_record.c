/* What is this?      Encoding and checking of ledger records.
 * State owned:       none.
 * Must never:        accept a record because two of length, CRC and sequence number fit.
 * Read next:         ledger.c. */
#include "services/scheduler/ledger/ledger_record.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "common/checksum.h"

_Static_assert(sizeof(request_sampling_t) == 48, "stored in the ledger as it stands: no padding");
_Static_assert(sizeof(request_timeline_t) == 64, "stored in the ledger as it stands");
_Static_assert(sizeof(request_client_t) == 8, "stored in the ledger as it stands");
_Static_assert(sizeof(record_request_t) % 8 == 0 && sizeof(record_head_t) == 24, "records are 8-byte aligned");

#define FLAG_STOPPED 1u
#define FLAG_ADMITTED 2u
#define FLAG_ALLOW_ONLY 4u

/* ---- a request ---- */

/* Id and log-probability; alternatives and how many of them there are. */
size_t ledger_token_payload(const request_t *request)
{
    size_t top = request_alternatives(request);
    return 4 + 4 + (top > 0 ? 1 + top * sizeof(request_alternative_t) : 0);
}

static size_t probe_bytes(const request_t *request)
{
    return qn_probe_is_empty(&request->probe) ? 0 : qn_probe_packed_bytes(&request->probe);
}

size_t ledger_request_payload(const request_t *request, bool all_tokens)
{
    size_t generated = all_tokens ? request->generated_max : request->generated_tokens;
    return sizeof(record_request_t) + probe_bytes(request) + 4 * (size_t)request->prompt_tokens +
           generated * ledger_token_payload(request) +
           4 * ((size_t)request->stop_count + request->logprob_id_count + request->bad_id_count) +
           sizeof(request_bias_t) * request->bias_count;
}

static uint8_t *put(uint8_t *at, const void *data, size_t bytes)
{
    if (bytes > 0) memcpy(at, data, bytes);
    return at + bytes;
}

void ledger_request_write(const request_t *request, uint8_t *payload)
{
    record_request_t fixed = {
        .id = request->id,
        .arrival = request->arrival,
        .salt = request->salt,
        .orphaned_ns = request->orphaned_ns,
        .client = request->client,
        .sampling = request->sampling,
        .timeline = request->timeline,
        .priority = request->priority,
        .prompt_tokens = request->prompt_tokens,
        .generated_tokens = request->generated_tokens,
        .generated_max = request->generated_max,
        .cached_tokens = request->cached_tokens,
        .preemptions = request->preemptions,
        .crashes = request->crashes,
        .suspect_until = request->suspect_until,
        .stop_count = request->stop_count,
        .bias_count = request->bias_count,
        .logprob_id_count = request->logprob_id_count,
        .bad_id_count = request->bad_id_count,
        .finish = request->finish,
        .flags = (request->stopped ? FLAG_STOPPED : 0) | (request->admitted ? FLAG_ADMITTED : 0) |
                 (request->allow_only ? FLAG_ALLOW_ONLY : 0),
        .model = request->model,
        .deadline_ns = request->deadline_ns,
        .user = request->user,
        .probe_bytes = (uint32_t)probe_bytes(request),
        .kv_read = request->kv_read,
        .kv_all = request->kv_all,
    };
    memcpy(fixed.user_name, request->user_name, sizeof fixed.user_name);
    payload = put(payload, &fixed, sizeof fixed);
    if (fixed.probe_bytes) qn_probe_pack(&request->probe, payload);
    payload += fixed.probe_bytes;
    payload = put(payload, request->ids, 4 * (size_t)request_known_tokens(request));
    payload = put(payload, request->logprobs, 4 * (size_t)request->generated_tokens);
    payload = put(payload, request->stop_ids, 4 * (size_t)request->stop_count);
    payload = put(payload, request->bias, sizeof(request_bias_t) * request->bias_count);
    payload = put(payload, request->logprob_ids, 4 * (size_t)request->logprob_id_count);
    payload = put(payload, request->bad_ids, 4 * (size_t)request->bad_id_count);
    if (request->top == NULL) return;
    size_t generated = request->generated_tokens;
    payload = put(payload, request->top, generated * request_alternatives(request) * sizeof *request->top);
    put(payload, request->top_counts, generated);
}

/* At least one element, so that a missing array always means out of memory. */
static void *array(size_t count, size_t bytes) { return calloc(count > 0 ? count : 1, bytes); }

static bool allocate_alternatives(request_t *request)
{
    size_t top = request_alternatives(request);
    request->top_counts = array(request->generated_max, sizeof *request->top_counts);
    request->top = array(request->generated_max * top, sizeof *request->top);
    return request->top_counts != NULL && request->top != NULL;
}

static bool allocate_prompt_scores(request_t *request)
{
    request_prompt_scores_t *prompt = &request->prompt;
    prompt->known = 1;
    prompt->logprobs = array(request->prompt_tokens, sizeof *prompt->logprobs);
    prompt->top_counts = array(request->prompt_tokens, sizeof *prompt->top_counts);
    prompt->top = array((size_t)request->prompt_tokens * request_alternatives(request), sizeof *prompt->top);
    return prompt->logprobs != NULL && prompt->top_counts != NULL && prompt->top != NULL;
}

qn_err_t ledger_request_allocate(request_t *request)
{
    request->ids = array((size_t)request->prompt_tokens + request->generated_max, sizeof *request->ids);
    request->logprobs = array(request->generated_max, sizeof *request->logprobs);
    request->bias = array(request->bias_count, sizeof *request->bias);
    request->bad_ids = array(request->bad_id_count, sizeof *request->bad_ids);
    bool whole = request->ids != NULL && request->logprobs != NULL && request->bias != NULL && request->bad_ids != NULL;
    if (request_alternatives(request) > 0) whole = whole && allocate_alternatives(request);
    if (request->sampling.prompt_logprobs) whole = whole && allocate_prompt_scores(request);
    return whole ? QN_OK
                 : qn_fail(QN_ERR_NO_MEMORY, "ledger: no memory for a request of %u tokens",
                           request->prompt_tokens + request->generated_max);
}

void ledger_request_fini(request_t *request)
{
    free(request->ids);
    free(request->logprobs);
    free(request->bias);
    free(request->bad_ids);
    free(request->top_counts);
    free(request->top);
    free(request->prompt.logprobs);
    free(request->prompt.top_counts);
    free(request->prompt.top);
    free(request->probe_memory);
    memset(request, 0, sizeof *request);
}

static bool counts_fit(const record_request_t *fixed)
{
    return fixed->prompt_tokens >= 1 && fixed->prompt_tokens <= QN_PROMPT_TOKENS_MAX &&
           fixed->generated_max <= QN_PROMPT_TOKENS_MAX && fixed->generated_tokens <= fixed->generated_max &&
           fixed->stop_count <= QN_STOP_IDS_MAX && fixed->bias_count <= QN_LOGIT_BIAS_MAX &&
           fixed->logprob_id_count <= QN_LOGPROB_IDS_MAX && fixed->bad_id_count <= QN_BAD_IDS_MAX &&
           fixed->sampling.top_logprobs <= QN_TOP_LOGPROBS_MAX && fixed->finish <= REQUEST_ERROR;
}

static void copy_fixed(const record_request_t *fixed, request_t *request)
{
    request->id = fixed->id;
    request->arrival = fixed->arrival;
    request->salt = fixed->salt;
    request->orphaned_ns = fixed->orphaned_ns;
    request->client = fixed->client;
    request->sampling = fixed->sampling;
    request->timeline = fixed->timeline;
    request->priority = fixed->priority;
    request->prompt_tokens = fixed->prompt_tokens;
    request->generated_tokens = fixed->generated_tokens;
    request->generated_max = fixed->generated_max;
    request->cached_tokens = fixed->cached_tokens;
    request->preemptions = fixed->preemptions;
    request->crashes = fixed->crashes;
    request->suspect_until = fixed->suspect_until;
    request->stop_count = fixed->stop_count;
    request->bias_count = fixed->bias_count;
    request->logprob_id_count = fixed->logprob_id_count;
    request->bad_id_count = fixed->bad_id_count;
    request->finish = (request_finish_t)fixed->finish;
    request->stopped = (fixed->flags & FLAG_STOPPED) != 0;
    request->admitted = (fixed->flags & FLAG_ADMITTED) != 0;
    request->allow_only = (fixed->flags & FLAG_ALLOW_ONLY) != 0;
    request->model = fixed->model;
    request->deadline_ns = fixed->deadline_ns;
    request->user = fixed->user;
    memcpy(request->user_name, fixed->user_name, sizeof request->user_name);
    request->user_name[sizeof request->user_name - 1] = '\0';
    request->kv_read = fixed->kv_read;
    request->kv_all = fixed->kv_all;
}

bool ledger_keep_probe(request_t *request, const qn_probe_t *probe)
{
    request->probe = (qn_probe_t){0};
    if (qn_probe_is_empty(probe)) return true;
    request->probe_memory = qn_probe_copy(probe, &request->probe);
    return request->probe_memory != NULL;
}

/* A record's bytes lie anywhere; a probe's views want alignment. */
static qn_err_t read_probe(const uint8_t *payload, uint32_t bytes, request_t *request)
{
    if (bytes == 0) return QN_OK;
    request->probe_memory = malloc(bytes);
    if (!request->probe_memory) return qn_fail(QN_ERR_NO_MEMORY, "ledger: no memory for a probe");
    memcpy(request->probe_memory, payload, bytes);
    if (qn_probe_unpack(request->probe_memory, bytes, &request->probe)) return QN_OK;
    return qn_fail(QN_ERR_INVALID, "ledger: request %llu has a probe that is none", (unsigned long long)request->id);
}

static const uint8_t *get(const uint8_t *at, void *data, size_t bytes)
{
    if (bytes > 0) memcpy(data, at, bytes);
    return at + bytes;
}

static qn_err_t read_alternatives(const uint8_t *payload, request_t *request)
{
    size_t generated = request->generated_tokens, top = request_alternatives(request);
    if (request->top == NULL) return QN_OK;
    payload = get(payload, request->top, generated * top * sizeof *request->top);
    get(payload, request->top_counts, generated);
    for (size_t i = 0; i < generated; i++)
        if (request->top_counts[i] > top)
            return qn_fail(QN_ERR_INVALID, "ledger: request %llu has more alternatives than it asked for",
                           (unsigned long long)request->id);
    return QN_OK;
}

qn_err_t ledger_request_read(const uint8_t *payload, size_t bytes, request_t *ret_request)
{
    record_request_t fixed;
    if (bytes < sizeof fixed) return qn_fail(QN_ERR_INVALID, "ledger: a request record of %zu bytes", bytes);
    payload = get(payload, &fixed, sizeof fixed);
    if (!counts_fit(&fixed))
        return qn_fail(QN_ERR_INVALID, "ledger: request %llu has impossible counts", (unsigned long long)fixed.id);
    copy_fixed(&fixed, ret_request);
    if (fixed.probe_bytes > bytes - sizeof fixed)
        return qn_fail(QN_ERR_INVALID, "ledger: request %llu has a probe beyond its end", (unsigned long long)fixed.id);
    qn_err_t err = read_probe(payload, fixed.probe_bytes, ret_request);
    if (err < 0) return err;
    payload += fixed.probe_bytes;
    if (bytes != ledger_request_payload(ret_request, false))
        return qn_fail(QN_ERR_INVALID, "ledger: request %llu has another size than its counts say",
                       (unsigned long long)fixed.id);
    err = ledger_request_allocate(ret_request);
    if (err < 0) return err;
    payload = get(payload, ret_request->ids, 4 * (size_t)request_known_tokens(ret_request));
    payload = get(payload, ret_request->logprobs, 4 * (size_t)ret_request->generated_tokens);
    payload = get(payload, ret_request->stop_ids, 4 * (size_t)ret_request->stop_count);
    payload = get(payload, ret_request->bias, sizeof(request_bias_t) * ret_request->bias_count);
    payload = get(payload, ret_request->logprob_ids, 4 * (size_t)ret_request->logprob_id_count);
    payload = get(payload, ret_request->bad_ids, 4 * (size_t)ret_request->bad_id_count);
    return read_alternatives(payload, ret_request);
}

/* ---- a record ---- */

static uint32_t record_crc(const record_head_t *head, const uint8_t *payload)
{
    uint32_t crc = qn_crc32c(0, &head->bytes, sizeof head->bytes);
    crc = qn_crc32c(crc, &head->sequence, sizeof *head - offsetof(record_head_t, sequence));
    return qn_crc32c(crc, payload, head->payload_bytes);
}

size_t ledger_record_seal(uint8_t *at, size_t room, uint64_t sequence, ledger_record_type_t type, size_t payload_bytes)
{
    size_t bytes = RECORD_BYTES(payload_bytes);
    QN_ASSERT(bytes + sizeof(uint64_t) <= room && bytes <= UINT32_MAX);
    record_head_t head = {.bytes = (uint32_t)bytes,
                          .sequence = sequence,
                          .type = type,
                          .payload_bytes = (uint32_t)payload_bytes};
    head.crc = record_crc(&head, ledger_record_payload(at));
    memset(at + bytes, 0, sizeof(uint64_t)); /* a stale record there must not follow this one */
    memcpy(at + offsetof(record_head_t, sequence), &head.sequence, sizeof head - offsetof(record_head_t, sequence));
    atomic_thread_fence(memory_order_release);
    uint64_t length_and_crc;
    memcpy(&length_and_crc, &head, sizeof length_and_crc);
    atomic_store_explicit((_Atomic uint64_t *)(void *)at, length_and_crc, memory_order_release);
    return bytes;
}

size_t ledger_record_check(const uint8_t *at, size_t room, uint64_t sequence)
{
    record_head_t head;
    if (room < sizeof head) return 0;
    memcpy(&head, at, sizeof head);
    if (head.sequence != sequence || head.bytes > room || head.payload_bytes > room ||
        head.bytes != RECORD_BYTES(head.payload_bytes))
        return 0;
    return head.crc == record_crc(&head, at + sizeof head) ? head.bytes : 0;
}
