/* One Encode in owned form: what must outlive the message while its prompt is encoded, what its stream needs, and what
 * a new scheduler must hear again. Decides what is refused; sends nothing. */
#ifndef QN_TOKENIZER_REQUEST_H
#define QN_TOKENIZER_REQUEST_H

#include "common/daemon/daemon.h"
#include "services/tokenizer/streams.h"
#include "services/tokenizer/text_job.h"

typedef struct {
    qn_peer_t frontend;
    uint64_t key; /* of its prompt, see in_hand.h */
    bool want_pieces, skip_special, include_stop;
    bool cancelled; /* a new scheduler has to hear of that too */
    qn_cancel_reason_t cancel_reason;
    uint32_t keep_ids;                   /* truncate_prompt_tokens */
    qn_submit_t submit;                  /* all its vectors and texts are owned copies */
    char *salt, *user, *model, *adapter; /* owned or NULL */
    char *stop_bytes;                    /* the stop strings in a row, owned */
    const char *stop[QN_STOP_STRINGS_MAX];
    size_t stop_lengths[QN_STOP_STRINGS_MAX];
    uint32_t stop_count;
} request_t;

/* Why an Encode is refused. */
typedef struct {
    uint16_t status; /* HTTP */
    const char *param;
    char text[QN_REASON_MAX];
} request_refusal_t;

/* What can be said before anything is encoded; false: *ret says why not. */
bool request_check(const qn_encode_t *encode, request_refusal_t *ret);
/* Copies all of the message but the prompt. Returns owned. */
request_t *request_create(const qn_encode_t *encode, qn_peer_t frontend, uint64_t begin_ns);
/* Forbids the words that the request names, as rows of its bias and sequences of ids; false: *ret says why not. */
bool request_forbid_words(request_t *request, const qn_encode_t *encode, const tokenizer_t *tokenizer,
                          tokenizer_scratch_t *scratch, request_refusal_t *ret);
void request_destroy(request_t **request);

/* The work of turning its prompt into ids. Returns owned, with the request as owner; input borrowed from the message. */
text_job_t *request_job(request_t *request, const qn_encode_t *encode);
/* The prompt is known: moves the ids out of the job. */
void request_take_prompt(request_t *request, text_job_t *job);
/* What its stream needs; views into the request and the job, whose detokenizer the stream takes. */
stream_spec_t request_stream_spec(const request_t *request, text_job_t *job, bool has_text);
/* Why no stream could be opened. */
void request_stream_refusal(stream_open_t outcome, request_refusal_t *ret);

#endif
