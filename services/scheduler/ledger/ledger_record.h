/* The bytes of ledger records: how they are written, and how foreign (torn, flipped, stale) bytes are told from ours.
 * Layout, host byte order (the mapping never leaves the host): record_head_t, payload, zeros up to a multiple of 8. */
#ifndef QN_SCHEDULER_LEDGER_LEDGER_RECORD_H
#define QN_SCHEDULER_LEDGER_LEDGER_RECORD_H

#include "services/scheduler/ledger/ledger.h"

typedef enum {
    LEDGER_RECORD_REQUEST =
        1, /* record_request_t, probe, ids, log-probs, stop ids, bias, logprob ids, bad ids, alternatives: all of a request so far */
    LEDGER_RECORD_TOKENS = 2,   /* record_tokens_t, record_token_t [count], their alternatives in order */
    LEDGER_RECORD_FINISH = 3,   /* record_change_t; value = request_finish_t */
    LEDGER_RECORD_FORGET = 4,   /* record_change_t */
    LEDGER_RECORD_CLIP = 5,     /* record_change_t; value = generated_max */
    LEDGER_RECORD_ADOPT = 6,    /* record_change_t; client */
    LEDGER_RECORD_ORPHAN = 7,   /* record_change_t; value = orphaned_ns */
    LEDGER_RECORD_ADMIT = 8,    /* record_change_t; value = cached_tokens */
    LEDGER_RECORD_PREEMPT = 9,  /* record_change_t; value = preemptions */
    LEDGER_RECORD_STAMP = 10,   /* record_stamp_t */
    LEDGER_RECORD_SUSPECT = 11, /* record_change_t; value = suspect_until, second = crashes */
} ledger_record_type_t;

typedef struct {
    uint32_t bytes;    /* of the whole record, a multiple of 8; 0 = end of the area */
    uint32_t crc;      /* CRC-32C of all that follows this field, after that of `bytes` */
    uint64_t sequence; /* one more than the record before */
    uint32_t type;
    uint32_t payload_bytes; /* before padding */
} record_head_t;

typedef struct {
    uint64_t id, arrival, salt, orphaned_ns;
    request_client_t client;
    request_sampling_t sampling;
    request_timeline_t timeline;
    int32_t priority;
    uint32_t prompt_tokens, generated_tokens, generated_max;
    uint32_t cached_tokens, preemptions, stop_count, bias_count;
    uint32_t crashes, suspect_until;
    uint32_t finish, flags;
    uint32_t logprob_id_count, bad_id_count;
    uint64_t model, deadline_ns, user;
    char user_name[QN_POLICY_USER_MAX];
    uint32_t probe_bytes, unused;
    uint64_t kv_read, kv_all;
} record_request_t;

typedef struct {
    uint32_t count, top_count;
} record_tokens_t;

typedef struct {
    uint64_t request;
    uint32_t position, id;
    float logprob;
    uint16_t stopped, top_count;
} record_token_t;

typedef struct {
    uint64_t request;
    request_client_t client;
    uint64_t value;
    uint32_t second, unused;
} record_change_t;

typedef struct {
    uint64_t request;
    request_timeline_t timeline;
} record_stamp_t;

#define RECORD_BYTES(payload) ((sizeof(record_head_t) + (size_t)(payload) + 7) & ~(size_t)7)

/* What one more generated token adds to the payload of a REQUEST record. */
size_t ledger_token_payload(const request_t *request);
/* Payload size of a REQUEST record; with `all_tokens` as if generated_max were generated. */
size_t ledger_request_payload(const request_t *request, bool all_tokens);
/* Writes the payload of a REQUEST record; exactly ledger_request_payload(request, false) bytes. */
void ledger_request_write(const request_t *request, uint8_t *payload);
/* Reads one into a zeroed request, allocating its arrays. QN_ERR_INVALID: counts and size do not fit;
 * QN_ERR_NO_MEMORY. On failure the request may own arrays: ledger_request_fini. */
qn_err_t ledger_request_read(const uint8_t *payload, size_t bytes, request_t *ret_request);
/* Allocates the arrays of a request whose counts and sampling are set. */
qn_err_t ledger_request_allocate(request_t *request);
/* Gives the request a copy of `probe` unless it is empty. false: no memory. */
bool ledger_keep_probe(request_t *request, const qn_probe_t *probe);
void ledger_request_fini(request_t *request);

/* Appends a record at `at`, where `room` bytes are left: head written last, the next head zeroed first, so that a kill
 * at any instruction leaves either no record or a whole one. The payload stands at ledger_record_payload(at) already.
 * Returns the record's bytes. */
size_t ledger_record_seal(uint8_t *at, size_t room, uint64_t sequence, ledger_record_type_t type, size_t payload_bytes);
static inline uint8_t *ledger_record_payload(uint8_t *at) { return at + sizeof(record_head_t); }
/* Bytes of the valid record at `at` with this sequence number, or 0. */
size_t ledger_record_check(const uint8_t *at, size_t room, uint64_t sequence);

#endif
