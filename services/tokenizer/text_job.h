/* One piece of text work: text to ids, or ids to text, with the bytes of each token when asked for. A job is a function
 * of its input and the tokenizer alone, so it may run in the daemon's loop or on the worker's thread with the same
 * result. */
#ifndef QN_TOKENIZER_TEXT_JOB_H
#define QN_TOKENIZER_TEXT_JOB_H

#include <stdatomic.h>

#include "common/daemon/daemon.h"
#include "common/daemon/in_hand.h"
#include "services/tokenizer/decode/detokenizer.h"
#include "services/tokenizer/tokenizer.h"

typedef enum {
    TEXT_JOB_PROMPT,     /* the prompt of a request: `text` or `ids` in, ids and the decoder's state out */
    TEXT_JOB_TOKENIZE,   /* `text` in, ids out */
    TEXT_JOB_DETOKENIZE, /* `ids` in, text out */
} text_job_kind_t;

typedef struct text_job {
    text_job_kind_t kind;
    qn_peer_t from;
    uint64_t request;
    uint64_t key;       /* of its content, see in_hand.h */
    qn_in_hand_t *hand; /* told while the worker runs it; may be NULL. Borrowed */
    /* in */
    const char *text; /* borrowed until text_job_own(); NULL: ids are given */
    size_t text_bytes;
    const uint32_t *ids; /* likewise */
    size_t id_count;
    unsigned flags;    /* TOKENIZER_... of encoding or decoding */
    bool want_pieces;  /* bytes of each token */
    bool want_offsets; /* where in the text each token begins */
    bool is_open;      /* DETOKENIZE: more follows, what could still change is left out */
    size_t keep_ids;   /* PROMPT: at most so many, from the end; 0: all */
    void *owner;       /* the caller's; not touched */
    bool is_call;      /* of a method: */
    qn_call_t call;    /* what to answer */
    const char *input; /* what the input is called by who asked: "prompt", "tokens" */
    /* out */
    qn_err_t err;
    uint16_t status; /* of a refusal, an HTTP status */
    const char *param;
    char error_text[QN_ERR_TEXT_MAX];
    tokenizer_tokens_t tokens; /* owned */
    detokenizer_t detokenizer; /* PROMPT: as the prompt left it, for what is generated; owned, zeroed when moved */
    text_buffer_t decoded;     /* DETOKENIZE: the text, owned */
    text_buffer_t pieces;      /* bytes of all tokens in a row, owned */
    text_buffer_t lengths;     /* uint16_t each, owned */
    text_buffer_t offsets;     /* uint32_t each, in characters, owned */
    uint64_t run_ns;           /* how long it took */
    /* the queue's */
    atomic_bool cancelled;
    bool owns_input;
    unsigned passed_over;
    struct text_job *next;
} text_job_t;

/* Returns owned, zeroed but for these. */
text_job_t *text_job_create(text_job_kind_t kind, qn_peer_t from, uint64_t request);
/* Copies the input, which was borrowed from a message. */
void text_job_own(text_job_t *job);
void text_job_destroy(text_job_t **job);
/* Bytes of input, the measure of how long it will take. */
size_t text_job_bytes(const text_job_t *job);
/* Does the work; err, status, param and error_text say when it is refused. `tokenizer` may be NULL (ids only). */
void text_job_run(text_job_t *job, const tokenizer_t *tokenizer, tokenizer_scratch_t *scratch);

#endif
