/* The request ledger: every request the scheduler has accepted, its parameters and its tokens so far, in shared memory
 * that outlives the process.
 *
 * The mapping holds a page of evidence (evidence.h) and two areas; one is active. An area is a row of records, each with length, CRC-32C and sequence
 * number, only ever appended to. A record counts when all three fit; the first that does not ends the area: it is
 * the torn tail of a writer that was killed, and the next append writes over it. When an area fills with records of
 * ended requests, the living ones are written into the other area, one record each, and a single 8-byte store makes
 * that one active. So at every instant of the writer's death the mapping holds exactly the requests of some moment,
 * and start is always replay.
 *
 * Space is bounded: a request is accepted only when the living ones, with all tokens they may still generate, fill at
 * most half an area; appending tokens (as many at once as the mapping was sized for) therefore never fails.
 *
 * Not persisted: prompt scores; the prompt of a replayed request is run again, which gives them again.
 * Not thread-safe, never blocks, no clock. The heap is used at submit and at forget, never by append. */
#ifndef QN_SCHEDULER_LEDGER_LEDGER_H
#define QN_SCHEDULER_LEDGER_LEDGER_H

#include "common/err.h"
#include "common/policy/policy_page.h"
#include "services/scheduler/quarantine/evidence.h"
#include "services/scheduler/request.h"

#define LEDGER_HEAD_BYTES (80u * 1024) /* before the areas: the header, the evidence, the policies' pages */
#define LEDGER_POLICY_PAGES 3u         /* scheduling, batching, admission: qn_policy_kind_t from 1 */
#define LEDGER_BYTES_MIN (LEDGER_HEAD_BYTES + 32u * 1024)
/* Bytes that make sure of room for `slots` tokens in one append. */
#define LEDGER_BYTES_FOR(slots) (LEDGER_BYTES_MIN + 1024u * (slots))

typedef struct ledger ledger_t;

typedef struct {
    bool formatted;      /* the mapping held no ledger (of this version): an empty one was made */
    uint32_t requests;   /* living ones found */
    uint64_t records;    /* valid records read */
    uint64_t torn_bytes; /* of the record that ended the replay; 0 = the tail was clean */
} ledger_replay_t;

/* What a client submits; all pointers are borrowed for the call. */
typedef struct {
    uint64_t id;
    request_client_t client;
    int32_t priority;
    uint64_t salt;
    request_sampling_t sampling;
    request_timeline_t timeline;
    const uint32_t *prompt_ids;
    uint32_t prompt_tokens;
    uint32_t generated_max;
    const uint32_t *stop_ids;
    uint32_t stop_count; /* <= QN_STOP_IDS_MAX */
    const request_bias_t *bias;
    uint32_t bias_count; /* <= QN_LOGIT_BIAS_MAX */
    bool allow_only;     /* `bias` names all ids that may be generated */
    const uint32_t *logprob_ids;
    uint32_t logprob_id_count; /* <= QN_LOGPROB_IDS_MAX */
    const uint32_t *bad_ids;
    uint32_t bad_id_count; /* <= QN_BAD_IDS_MAX */
    uint64_t model;        /* qn_name_hash of the model that is to serve it; 0: any */
    uint64_t deadline_ns, user;
    const char *user_name; /* kept as far as QN_POLICY_USER_MAX; NULL: "" */
    qn_probe_t probe;      /* empty: none */
} ledger_submission_t;

typedef enum {
    LEDGER_ACCEPTED,
    LEDGER_EXISTS, /* this id lives already */
    LEDGER_FULL,   /* requests_max, or space for what it may generate */
} ledger_outcome_t;

typedef struct {
    uint32_t index;    /* of the request's entry */
    uint32_t position; /* prompt_tokens + generated_tokens: tokens come in order */
    uint32_t id;
    float logprob;
    bool stopped;
    uint8_t top_count;                /* kept as far as the request asked for them */
    const request_alternative_t *top; /* borrowed for the call */
} ledger_token_t;

/* Opens the ledger in `base` [bytes], a shared mapping (borrowed, 8-byte aligned, >= LEDGER_BYTES_MIN, zeroed when
 * new), and replays it. QN_ERR_INVALID: the mapping is too small; QN_ERR_NO_MEMORY. Returns owned. */
qn_err_t ledger_open(void *base, size_t bytes, uint32_t requests_max, ledger_t **ret_ledger,
                     ledger_replay_t *ret_replay);
/* Frees what is on the heap; the mapping keeps its content. */
void ledger_close(ledger_t **ledger);

/* Accepts a request; *ret_request (a view that lives until ledger_forget) is written for ACCEPTED and EXISTS. */
ledger_outcome_t ledger_submit(ledger_t *ledger, const ledger_submission_t *submission, request_t **ret_request);
/* Appends tokens, durably, as one record. Each continues its request, which is unfinished and has room. */
void ledger_append(ledger_t *ledger, const ledger_token_t *tokens, uint32_t count);
/* Lowers generated_max (never below what is generated). */
void ledger_clip(ledger_t *ledger, request_t *request, uint32_t generated_max);
/* Another client takes the request over; it is no orphan then. */
void ledger_adopt(ledger_t *ledger, request_t *request, request_client_t client);
/* It has had no client since `since_ns`; 0: it has one again. */
void ledger_orphan(ledger_t *ledger, request_t *request, uint64_t since_ns);
/* It was given its first blocks, which hold `cached_tokens` of its prompt already. Later ones change nothing. */
void ledger_admit(ledger_t *ledger, request_t *request, uint32_t cached_tokens);
/* It gave its blocks up once more. */
void ledger_preempt(ledger_t *ledger, request_t *request);
/* How far it has come, and when. */
void ledger_stamp(ledger_t *ledger, request_t *request, const request_timeline_t *timeline);
/* Notes suspicion (request.h), durably: `crashes` and `until`. */
void ledger_suspect(ledger_t *ledger, request_t *request, uint32_t crashes, uint32_t until);
/* Says why it ended, durably; the entry stays. `finish` is not REQUEST_UNFINISHED and the first one stays. */
void ledger_finish(ledger_t *ledger, request_t *request, request_finish_t finish);
/* It finished, and something of it that is not persisted has still to be told: unfinished again, with the tokens it has. */
void ledger_reopen(ledger_t *ledger, request_t *request);
/* Takes the finished request out of the ledger, durably, and frees it. */
void ledger_forget(ledger_t *ledger, request_t **request);

/* NULL when no such request lives. O(1). */
request_t *ledger_find(const ledger_t *ledger, uint64_t id);
request_t *ledger_at(const ledger_t *ledger, uint32_t index);
/* In order of arrival; NULL starts, and ends. `after` may be finished but not forgotten. */
request_t *ledger_next(const ledger_t *ledger, const request_t *after);
uint32_t ledger_count(const ledger_t *ledger);
uint32_t ledger_requests_max(const ledger_t *ledger);

/* The page of evidence in the mapping; zeroed with a new ledger. */
evidence_t *ledger_evidence(const ledger_t *ledger);
/* What of the policies outlives the process; zeroed with a new ledger. */
qn_policy_page_t *ledger_policy_page(const ledger_t *ledger, qn_policy_kind_t kind);
/* The epoch that the last life left in the mapping's evidence; 0: the mapping holds no ledger. */
uint32_t ledger_former_epoch(const void *base, size_t bytes);

typedef struct {
    uint64_t area_bytes, used_bytes; /* of the active area */
    uint64_t reserved_bytes;         /* what the living requests may come to need, compacted */
    uint64_t compactions;
} ledger_usage_t;
void ledger_usage(const ledger_t *ledger, ledger_usage_t *ret_usage);

#endif
