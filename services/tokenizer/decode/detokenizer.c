/* What is this?      A cursor over a sequence of ids that knows which text is final.
 * State owned:       the decoder state of one sequence.
 * Must never:        need anything but the ids to be rebuilt.
 * Read next:         decoder.c. */
#include "services/tokenizer/decode/detokenizer.h"

#include "services/tokenizer/tokenizer_data.h"

void detokenizer_init(detokenizer_t *d, const tokenizer_t *t, unsigned flags)
{
    *d = (detokenizer_t){.tokenizer = t, .flags = flags};
    decoder_state_init(&d->state);
}

void detokenizer_fini(detokenizer_t *d)
{
    decoder_state_fini(&d->state);
    *d = (detokenizer_t){0};
}

/* With a byte-level decoder ids were mapped to bytes at load. */
static void push_piece(detokenizer_t *d, uint32_t id, text_buffer_t *out)
{
    const tokenizer_t *t = d->tokenizer;
    if (id >= t->id_limit) return;
    if (t->decoded_ends) {
        uint32_t start = id ? t->decoded_ends[id - 1] : 0;
        decoder_push(&t->decoder, &d->state, t->decoded.bytes + start, t->decoded_ends[id] - start, true, out);
        return;
    }
    size_t bytes;
    const char *piece = tokenizer_token_text(t, id, &bytes);
    if (piece) decoder_push(&t->decoder, &d->state, (const uint8_t *)piece, bytes, false, out);
}

size_t detokenizer_push(detokenizer_t *d, uint32_t id, text_buffer_t *out)
{
    size_t length = out->length;
    d->token_count++;
    bool is_left_out = (d->flags & TOKENIZER_SKIP_SPECIAL) && tokenizer_id_is_special(d->tokenizer, id);
    if (!is_left_out) push_piece(d, id, out);
    d->byte_count += out->length - length;
    return out->length - length;
}

size_t detokenizer_flush(detokenizer_t *d, text_buffer_t *out)
{
    size_t length = out->length;
    decoder_flush(&d->tokenizer->decoder, &d->state, out);
    d->byte_count += out->length - length;
    return out->length - length;
}

/* A byte-level decoder keeps at most three bytes: where to begin so that they are known. */
static size_t first_that_counts(const detokenizer_t *d, const uint32_t *ids, size_t count)
{
    const tokenizer_t *t = d->tokenizer;
    size_t at = count, bytes = 0;
    if (!t->decoded_ends || t->decoder.count != 1) return 0;
    while (at > 0 && bytes < 4) {
        uint32_t id = ids[--at];
        if (id >= t->id_limit || ((d->flags & TOKENIZER_SKIP_SPECIAL) && tokenizer_id_is_special(t, id))) continue;
        bytes += t->decoded_ends[id] - (id ? t->decoded_ends[id - 1] : 0);
    }
    return at;
}

void detokenizer_prime(detokenizer_t *d, const uint32_t *ids, size_t count, text_buffer_t *scratch)
{
    for (size_t i = first_that_counts(d, ids, count); i < count; i++) {
        scratch->length = 0;
        detokenizer_push(d, ids[i], scratch);
    }
    scratch->length = 0;
    d->token_count = d->byte_count = 0;
}
