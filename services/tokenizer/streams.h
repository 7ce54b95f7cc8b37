/* The requests this tokenizer is turning into text: for each, the incremental detokeniser, the stop strings, how far it
 * got, and what a scheduler that lost it would need to hear again. Positions are absolute, so tokens that arrive
 * twice are dropped and a gap is seen. Bounded by the limit given at creation. One thread. */
#ifndef QN_TOKENIZER_STREAMS_H
#define QN_TOKENIZER_STREAMS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/limits.h"
#include "services/tokenizer/decode/detokenizer.h"
#include "services/tokenizer/decode/stop_strings.h"
#include "services/tokenizer/text_buffer.h"
#include "services/tokenizer/tokenizer.h"

typedef struct {
    uint64_t request;
    uint64_t text_bytes;     /* released so far: absolute position of the next byte of output text */
    uint32_t characters;     /* of the text of the tokens taken, what a stop string holds back or cuts included */
    uint32_t token_count;    /* generated tokens taken: the next position expected */
    uint32_t min_tokens;     /* stop strings are not looked for before this many */
    bool stopped;            /* a stop string matched: later tokens give nothing */
    uint32_t stopped_tokens; /* token_count at the match */
    bool has_text;           /* false: no tokenizer, token ids only */
    uint32_t silent_ids[QN_STOP_IDS_MAX], silent_count; /* stop ids, whose text is left out like a stop string's */
    detokenizer_t detokenizer;
    stop_strings_t stop;
    void *owner; /* the handlers' data about the request; freed by them */
} stream_t;

typedef struct streams streams_t;

/* What a stream needs to start. */
typedef struct {
    uint64_t request;
    bool include_stop;
    uint32_t min_tokens;
    const char *const *stop;
    const size_t *stop_bytes;
    size_t stop_count;
    const uint32_t *stop_ids; /* copied; at most QN_STOP_IDS_MAX */
    uint32_t stop_id_count;
    detokenizer_t *detokenizer; /* primed with the prompt; taken (zeroed) when opened. NULL: token ids only */
} stream_spec_t;

typedef enum { STREAM_OPENED, STREAM_EXISTS, STREAM_NO_ROOM, STREAM_BAD_STOP } stream_open_t;

/* Returns owned; never fails. */
streams_t *streams_create(size_t limit);
/* All streams must be closed. */
void streams_destroy(streams_t **streams);

/* STREAM_BAD_STOP: qn_err_text() says why. Writes *ret_stream (view) only when opened. */
stream_open_t streams_open(streams_t *streams, const stream_spec_t *spec, stream_t **ret_stream);
/* NULL when unknown. */
stream_t *streams_find(const streams_t *streams, uint64_t request);
void streams_close(streams_t *streams, stream_t *stream);
size_t streams_count(const streams_t *streams);
/* Iterates in no particular order; start with *cursor = 0; NULL at the end. Closing the stream just returned is allowed
 * only if the iteration starts over. */
stream_t *streams_next(const streams_t *streams, size_t *cursor);

typedef enum {
    STREAM_TOKEN_TAKEN,
    STREAM_TOKEN_REPEATED, /* seen already, or after a stop string: nothing was appended */
    STREAM_TOKEN_GAP,      /* tokens before this one are missing: the request cannot go on */
} stream_token_t;

/* Takes generated token `position`; appends the text that became final to `out`. Afterwards stream->stopped says
 * whether a stop string ended the text. */
stream_token_t stream_push(stream_t *stream, uint32_t position, uint32_t id, text_buffer_t *out);
/* The sequence ended: appends what was held, unless a stop string ended it before. */
void stream_finish(stream_t *stream, text_buffer_t *out);

#endif
