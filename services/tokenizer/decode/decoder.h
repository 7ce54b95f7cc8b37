/* Pieces of tokens to text: the `decoder` of a tokenizer.json as a chain of stages that works on a
 * stream, so that decoding token by token and decoding all at once are the same code.
 *
 * A decoder_t is immutable once loaded; everything that changes is in a decoder_state_t per sequence. */
#ifndef QN_TOKENIZER_DECODE_DECODER_H
#define QN_TOKENIZER_DECODE_DECODER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "services/tokenizer/split/pattern.h"
#include "services/tokenizer/text_buffer.h"

#define DECODER_STAGES_MAX 8 /* published decoders have at most 4 */

typedef enum {
    DECODER_JOIN_SPACES,   /* no decoder: pieces separated by spaces */
    DECODER_BYTE_LEVEL,    /* the printable stand-ins for bytes, fused, broken UTF-8 to U+FFFD */
    DECODER_BYTE_FALLBACK, /* runs of "<0x41>" to bytes; U+FFFD for each when the run is not UTF-8 */
    DECODER_METASPACE,     /* replacement character to space; dropped in the first piece */
    DECODER_FUSE,          /* all pieces become one */
    DECODER_STRIP,         /* up to `start` and `stop` times `character` off each piece */
    DECODER_REPLACE,       /* pattern to content in each piece */
    DECODER_BPE,           /* suffix to space, in the last piece to nothing */
} decoder_kind_t;

typedef struct {
    decoder_kind_t kind;
    uint32_t character;   /* METASPACE, STRIP: code point */
    uint32_t start, stop; /* STRIP */
    bool keeps_first;     /* METASPACE: prepend_scheme never */
    pattern_t *pattern;   /* REPLACE: owned; BPE: the suffix, owned */
    uint8_t *content;     /* REPLACE: owned */
    size_t content_bytes;
} decoder_stage_t;

typedef struct {
    decoder_stage_t stages[DECODER_STAGES_MAX];
    size_t count;
} decoder_t;

/* Frees what the stages own; accepts a zeroed one. */
void decoder_fini(decoder_t *decoder);

/* True when the first stage is BYTE_LEVEL: push with `is_mapped` and the bytes byte_level_map gives. */
static inline bool decoder_takes_bytes(const decoder_t *decoder)
{
    return decoder->count > 0 && decoder->stages[0].kind == DECODER_BYTE_LEVEL;
}

typedef struct {
    bool started;       /* a piece (or part of one) was seen */
    bool broken;        /* BYTE_FALLBACK: this run is not UTF-8 */
    bool in_piece;      /* inside a piece that arrives in parts */
    uint8_t tail_bytes; /* BYTE_LEVEL: bytes of an unfinished character, in tail */
    uint8_t tail[4];
    uint32_t count;     /* STRIP: left to strip at the start */
    uint32_t held_same; /* STRIP: trailing characters held */
    size_t checked;     /* BYTE_FALLBACK: bytes of held known to be whole characters */
    text_buffer_t held; /* owned */
    text_buffer_t run;  /* BYTE_FALLBACK: bytes of the current run, owned */
} decoder_stage_state_t;

typedef struct {
    decoder_stage_state_t stages[DECODER_STAGES_MAX];
} decoder_state_t;

void decoder_state_init(decoder_state_t *state);
void decoder_state_fini(decoder_state_t *state);

/* Feeds one piece, appends to `out` what became final: valid UTF-8 if the pieces are. */
void decoder_push(const decoder_t *decoder, decoder_state_t *state, const uint8_t *piece, size_t bytes, bool is_mapped,
                  text_buffer_t *out);
/* End of the sequence: appends the rest. */
void decoder_flush(const decoder_t *decoder, decoder_state_t *state, text_buffer_t *out);

#endif
