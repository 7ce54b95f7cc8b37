/* What is this?      One token as bytes, out of context but as it reads in the middle of a text.
 * State owned:       none.
 * Must never:        replace an incomplete character by U+FFFD: half a character is two tokens' business.
 * Read next:         detokenizer.h for text, which is always whole characters. */
#include "services/tokenizer/decode/token_bytes.h"

#include <string.h>

#include "services/tokenizer/tokenizer_data.h"

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* "<0x41>" in a vocabulary with byte fallback; -1: an ordinary piece. */
static int fallback_byte(const tokenizer_t *t, const char *piece, size_t bytes)
{
    bool falls_back = false;
    for (size_t i = 0; i < t->decoder.count; i++)
        falls_back |= t->decoder.stages[i].kind == DECODER_BYTE_FALLBACK;
    if (!falls_back || bytes != 6 || memcmp(piece, "<0x", 3) != 0 || piece[5] != '>') return -1;
    int high = hex_digit(piece[3]), low = hex_digit(piece[4]);
    return high < 0 || low < 0 ? -1 : high << 4 | low;
}

/* Decodes "x" and the piece and drops the x: decoders that treat the first piece of a text otherwise see a second. */
static void append_in_context(const tokenizer_t *t, const char *piece, size_t bytes, text_buffer_t *out)
{
    text_buffer_t text = {0};
    decoder_state_t state;
    decoder_state_init(&state);
    decoder_push(&t->decoder, &state, (const uint8_t *)"x", 1, false, &text);
    decoder_push(&t->decoder, &state, (const uint8_t *)piece, bytes, false, &text);
    decoder_flush(&t->decoder, &state, &text);
    if (text.length > 1) text_buffer_append(out, text.bytes + 1, text.length - 1);
    decoder_state_fini(&state);
    text_buffer_fini(&text);
}

size_t tokenizer_token_bytes(const tokenizer_t *t, uint32_t id, text_buffer_t *out)
{
    size_t before = out->length, bytes;
    const char *piece = id < t->id_limit ? tokenizer_token_text(t, id, &bytes) : NULL;
    if (!piece) return 0;
    int byte = fallback_byte(t, piece, bytes);
    if (byte >= 0) {
        text_buffer_append(out, &(uint8_t){(uint8_t)byte}, 1);
    } else if (t->decoded_ends) {
        uint32_t start = id ? t->decoded_ends[id - 1] : 0;
        text_buffer_append(out, t->decoded.bytes + start, t->decoded_ends[id] - start);
    } else {
        append_in_context(t, piece, bytes, out);
    }
    return out->length - before;
}
