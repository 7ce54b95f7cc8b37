/* A request as the scheduler knows it: what was asked, and the tokens so far. Plain data; the ledger owns it.
 *
 * Sequence positions are absolute: token `i` of ids[] stands at position i, the prompt first, then what was generated.
 * Values of enums equal those of schemas/common.fbs. */
#ifndef QN_SCHEDULER_REQUEST_H
#define QN_SCHEDULER_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/limits.h"
#include "common/policy.h"
#include "common/probe/probe.h"

/* As Sampling of schemas/common.fbs. Stored as it stands in the ledger: no padding, checked in ledger_record.c. */
typedef struct {
    uint64_t seed;
    float temperature;
    float top_p;
    float min_p;
    float repetition_penalty;
    float presence_penalty;
    float frequency_penalty;
    uint32_t top_k;
    uint32_t max_tokens;
    uint32_t min_tokens;
    uint8_t ignore_eos;
    uint8_t logprobs;
    uint8_t prompt_logprobs;
    uint8_t top_logprobs;
} request_sampling_t;

typedef struct {
    uint32_t id;
    float bias;
} request_bias_t;

/* CLOCK_MONOTONIC ns, 0 = not reached yet; as Timeline of schemas/common.fbs. */
typedef struct {
    uint64_t received_ns, encode_begin_ns, submitted_ns, queued_ns;
    uint64_t planned_ns, executed_ns, computed_ns, resulted_ns;
} request_timeline_t;

/* One life of the tokenizer that submitted it. */
typedef struct {
    uint32_t epoch;
    uint8_t service;
    uint8_t instance;
    uint16_t unused;
} request_client_t;

typedef struct {
    uint32_t id;
    float logprob;
} request_alternative_t;

typedef enum {
    REQUEST_UNFINISHED = 0,
    REQUEST_STOP = 1, /* a stop id, or a stop string the tokenizer saw */
    REQUEST_LENGTH = 2,
    REQUEST_CANCELLED = 3,
    REQUEST_ERROR = 4,
} request_finish_t;

/* Log-probabilities of prompt tokens; position 0 has none. Kept only when they were asked for. */
typedef struct {
    uint32_t known;             /* positions [1, known) are there */
    float *logprobs;            /* [prompt_tokens] */
    uint8_t *top_counts;        /* [prompt_tokens] */
    request_alternative_t *top; /* [prompt_tokens, request_alternatives], NULL when none are wanted */
} request_prompt_scores_t;

typedef struct {
    uint64_t id;
    uint32_t index;   /* of its ledger entry, below requests_max; stable while it lives */
    uint64_t arrival; /* order of arrival, never used twice */
    request_client_t client;
    int32_t priority;
    uint64_t salt; /* hash of cache_salt; 0 = none */
    request_sampling_t sampling;
    request_timeline_t timeline;
    uint32_t prompt_tokens;
    uint32_t generated_tokens;
    uint32_t generated_max; /* max_tokens, clipped to what the model and the KV pool hold */
    uint32_t cached_tokens; /* of the prompt, found in the prefix index at first */
    uint32_t preemptions;
    uint32_t crashes; /* of daemons that had nothing but this request in hand */
    uint32_t
        suspect_until;    /* among those in hand at a crash: runs apart until this position is proven; 0 = no suspect */
    uint64_t orphaned_ns; /* CLOCK_MONOTONIC: it has had no client since; 0 = it has one. Survives every death */
    uint32_t stop_count, bias_count, logprob_id_count, bad_id_count;
    uint32_t stop_ids[QN_STOP_IDS_MAX]; /* of the request; the model's own are added when a slot is set */
    uint32_t logprob_ids[QN_LOGPROB_IDS_MAX];
    uint32_t *bad_ids;          /* [bad_id_count]; as in schemas/submit.fbs */
    request_bias_t *bias;       /* [bias_count] */
    uint32_t *ids;              /* [prompt_tokens + generated_max] */
    float *logprobs;            /* [generated_max] */
    uint8_t *top_counts;        /* [generated_max]; NULL when it wants no alternatives */
    request_alternative_t *top; /* [generated_max, request_alternatives] */
    request_prompt_scores_t prompt;
    void *probe_memory;       /* owned; what `probe` views. NULL: no probe */
    qn_probe_t probe;         /* what is done beside the network; nobody here looks inside */
    uint64_t kv_read, kv_all; /* of attention under masks: rows read, rows there were */
    bool allow_only;          /* `bias` names all ids that may be generated */
    bool stopped;             /* the last token is one of its stop ids */
    bool admitted;            /* has been given blocks once */
    request_finish_t finish;
    uint64_t model;       /* hash of the name it asked for; 0: any */
    uint64_t deadline_ns; /* CLOCK_MONOTONIC, for policies; 0: none */
    uint64_t user;        /* hash of the user's name; 0: none */
    char user_name[QN_POLICY_USER_MAX];
} request_t;

/* Tokens known: prompt and generated. */
static inline uint32_t request_known_tokens(const request_t *request)
{
    return request->prompt_tokens + request->generated_tokens;
}

/* Alternatives of each token: the likeliest, and those asked for by id. */
static inline uint32_t request_alternatives(const request_t *request)
{
    return request->sampling.top_logprobs + request->logprob_id_count;
}

/* Positions [0, this) are ever run: the last token that may be generated, or that ended it, is never an input. With
 * nothing to generate the whole prompt is run, for its scores. */
static inline uint32_t request_run_limit(const request_t *request)
{
    if (request->stopped) return request_known_tokens(request) - 1;
    return request->generated_max > 0 ? request->prompt_tokens + request->generated_max - 1 : request->prompt_tokens;
}

/* Whether its whole prompt must be run: what the prefix cache holds has no scores and no rows to tap. */
static inline bool request_runs_whole_prompt(const request_t *request)
{
    return request->sampling.prompt_logprobs || (request->probe_memory && qn_probe_reads(&request->probe));
}

/* It is held for a client that may come back: it runs on what nobody else wants. */
static inline bool request_is_orphan(const request_t *request) { return request->orphaned_ns != 0; }

/* Whether nothing is left to run: it stopped, or has all tokens it may have, and has the scores of its prompt if it was
 * asked for them. A scheduler that died left the tokens and not the scores: they take a run. */
static inline bool request_complete(const request_t *request)
{
    bool generated = request->stopped || request->generated_tokens >= request->generated_max;
    bool scored = !request->sampling.prompt_logprobs || request->prompt.known >= request->prompt_tokens;
    return generated && scored;
}

#endif
