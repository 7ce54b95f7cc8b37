/* What is this?      Streaming versions of the decoders of a tokenizer.json, chained.
 * State owned:       none here; decoder_state_t holds what each stage keeps back.
 * Must never:        release bytes that a later piece could change; give a result that depends on
 *                    whether pieces arrive one by one or together.
 * Read next:         detokenizer.h (who uses it), byte_level.h. */
#include "services/tokenizer/decode/decoder.h"

#include "services/tokenizer/bpe/byte_level.h"
#include "services/tokenizer/split/unicode_classes.h"

#define REPLACEMENT "\xEF\xBF\xBD" /* U+FFFD */

/* A part of a piece on its way through the chain: whole characters; `begins` and `ends` mark the first
 * and the last part. Pieces of the vocabulary arrive whole; after a fusing stage one endless piece comes
 * in parts. */
typedef struct {
    const uint8_t *bytes;
    size_t length;
    bool begins, ends;
} part_t;

typedef struct {
    const decoder_t *decoder;
    decoder_state_t *state;
    text_buffer_t *out;
} chain_t;

static void stage_take(const chain_t *chain, size_t index, part_t part);

static void pass(const chain_t *chain, size_t index, part_t part)
{
    if (index + 1 < chain->decoder->count)
        stage_take(chain, index + 1, part);
    else
        text_buffer_append(chain->out, part.bytes, part.length);
}

static void pass_whole(const chain_t *chain, size_t index, const void *bytes, size_t length)
{
    pass(chain, index, (part_t){bytes, length, true, true});
}

static void take_join_spaces(const chain_t *chain, size_t index, part_t part)
{
    decoder_stage_state_t *own = &chain->state->stages[index];
    if (own->started) pass_whole(chain, index, " ", 1);
    own->started = true;
    pass(chain, index, part);
}

/* Passes on as parts of the one fused piece. */
static void pass_fused(const chain_t *chain, size_t index, const uint8_t *bytes, size_t length)
{
    decoder_stage_state_t *own = &chain->state->stages[index];
    if (length == 0) return;
    pass(chain, index, (part_t){bytes, length, !own->in_piece, false});
    own->in_piece = true;
}

/* Bytes of a byte-level text: whole characters go on, broken ones as U+FFFD, an unfinished one waits. */
static void take_raw_bytes(const chain_t *chain, size_t index, const uint8_t *bytes, size_t length)
{
    decoder_stage_state_t *own = &chain->state->stages[index];
    size_t at = 0;
    while (own->tail_bytes > 0 && at < length) {
        uint8_t joined[5];
        memcpy(joined, own->tail, own->tail_bytes);
        joined[own->tail_bytes] = bytes[at];
        unsigned bad;
        unsigned size = unicode_check(joined, own->tail_bytes + 1u, &bad);
        if (size == 0 && bad == 0) {
            own->tail[own->tail_bytes++] = bytes[at++];
        } else if (size > 0) {
            own->tail_bytes = 0;
            at++;
            pass_fused(chain, index, joined, size);
        } else { /* only the new byte can be wrong: what waited is one broken subpart */
            own->tail_bytes = 0;
            pass_fused(chain, index, (const uint8_t *)REPLACEMENT, 3);
        }
    }
    while (at < length) {
        size_t valid = unicode_valid_prefix(bytes + at, length - at);
        pass_fused(chain, index, bytes + at, valid);
        at += valid;
        if (at == length) return;
        unsigned bad;
        unicode_check(bytes + at, length - at, &bad);
        if (bad == 0) {
            own->tail_bytes = (uint8_t)(length - at);
            memcpy(own->tail, bytes + at, length - at);
            return;
        }
        pass_fused(chain, index, (const uint8_t *)REPLACEMENT, 3);
        at += bad;
    }
}

static void take_byte_level(const chain_t *chain, size_t index, part_t part)
{
    decoder_stage_state_t *own = &chain->state->stages[index];
    /* Whether a piece is mapped depends on all of it. */
    text_buffer_append(&own->held, part.bytes, part.length);
    if (!part.ends) return;
    text_buffer_t mapped = {0};
    byte_level_map(own->held.bytes, own->held.length, &mapped);
    own->held.length = 0;
    take_raw_bytes(chain, index, mapped.bytes, mapped.length);
    text_buffer_fini(&mapped);
}

static int hex_digit(uint8_t c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* "<0x41>" -> 0x41, anything else -> -1. A plus sign counts as in Rust's from_str_radix. */
static int fallback_byte(const uint8_t *piece, size_t length)
{
    if (length != 6 || memcmp(piece, "<0x", 3) != 0 || piece[5] != '>') return -1;
    int high = piece[3] == '+' ? 0 : hex_digit(piece[3]);
    int low = hex_digit(piece[4]);
    return high < 0 || low < 0 ? -1 : high << 4 | low;
}

static void pass_replacements(const chain_t *chain, size_t index, size_t count)
{
    for (size_t i = 0; i < count; i++)
        pass_whole(chain, index, REPLACEMENT, 3);
}

static void fallback_run_add(const chain_t *chain, size_t index, uint8_t byte)
{
    decoder_stage_state_t *own = &chain->state->stages[index];
    if (own->broken) {
        pass_replacements(chain, index, 1);
        return;
    }
    text_buffer_append(&own->run, &byte, 1);
    unsigned bad;
    unsigned size = unicode_check(own->run.bytes + own->checked, own->run.length - own->checked, &bad);
    if (size > 0) {
        own->checked += size;
    } else if (bad > 0) { /* the whole run is lost, and all that will follow in it */
        own->broken = true;
        pass_replacements(chain, index, own->run.length);
        own->run.length = own->checked = 0;
    }
}

static void fallback_run_end(const chain_t *chain, size_t index)
{
    decoder_stage_state_t *own = &chain->state->stages[index];
    size_t length = own->run.length;
    bool is_whole = own->checked == length;
    own->broken = false;
    own->run.length = own->checked = 0;
    if (length == 0) return;
    if (is_whole)
        pass_whole(chain, index, own->run.bytes, length);
    else
        pass_replacements(chain, index, length);
}

static void take_byte_fallback(const chain_t *chain, size_t index, part_t part)
{
    decoder_stage_state_t *own = &chain->state->stages[index];
    if (part.begins && part.ends) {
        int byte = fallback_byte(part.bytes, part.length);
        if (byte >= 0) {
            fallback_run_add(chain, index, (uint8_t)byte);
        } else {
            fallback_run_end(chain, index);
            pass(chain, index, part);
        }
        return;
    }
    /* A piece in parts is a byte only if all of it has six bytes: wait until it is longer or ends. */
    if (part.begins) own->in_piece = false;
    if (own->in_piece) {
        part.begins = false;
        pass(chain, index, part);
        return;
    }
    text_buffer_append(&own->held, part.bytes, part.length);
    if (!part.ends && own->held.length <= 6) return;
    part_t joined = {own->held.bytes, own->held.length, true, part.ends};
    own->held.length = 0;
    int byte = part.ends ? fallback_byte(joined.bytes, joined.length) : -1;
    if (byte >= 0) {
        fallback_run_add(chain, index, (uint8_t)byte);
        return;
    }
    own->in_piece = !part.ends;
    fallback_run_end(chain, index);
    pass(chain, index, joined);
}

static void take_metaspace(const chain_t *chain, size_t index, part_t part)
{
    const decoder_stage_t *stage = &chain->decoder->stages[index];
    decoder_stage_state_t *own = &chain->state->stages[index];
    if (part.begins) {
        own->in_piece = !own->started && !stage->keeps_first; /* here: drop replacements */
        own->started = true;
    }
    text_buffer_t *work = &own->held;
    work->length = 0;
    text_buffer_reserve(work, part.length);
    for (size_t at = 0; at < part.length;) {
        unsigned size;
        uint32_t code = unicode_decode(part.bytes + at, &size);
        if (code != stage->character)
            text_buffer_append(work, part.bytes + at, size);
        else if (!own->in_piece)
            text_buffer_append(work, " ", 1);
        at += size;
    }
    pass(chain, index, (part_t){work->bytes, work->length, part.begins, part.ends});
}

static void take_fuse(const chain_t *chain, size_t index, part_t part)
{
    pass_fused(chain, index, part.bytes, part.length);
}

static void strip_release(text_buffer_t *work, const decoder_stage_t *stage, uint32_t count)
{
    uint8_t character[4];
    unsigned size = unicode_encode(stage->character, character);
    for (uint32_t i = 0; i < count; i++)
        text_buffer_append(work, character, size);
}

static void take_strip(const chain_t *chain, size_t index, part_t part)
{
    const decoder_stage_t *stage = &chain->decoder->stages[index];
    decoder_stage_state_t *own = &chain->state->stages[index];
    if (part.begins) {
        own->count = stage->start;
        own->held_same = 0;
    }
    text_buffer_t *work = &own->held;
    work->length = 0;
    for (size_t at = 0; at < part.length;) {
        unsigned size;
        uint32_t code = unicode_decode(part.bytes + at, &size);
        bool is_same = code == stage->character;
        if (is_same && own->count > 0) {
            own->count--;
        } else if (is_same && own->held_same < stage->stop) {
            own->held_same++; /* may turn out to be at the end */
        } else if (is_same) { /* one more of the same: as many as may go are held already */
            text_buffer_append(work, part.bytes + at, size);
        } else {
            own->count = 0;
            strip_release(work, stage, own->held_same);
            own->held_same = 0;
            text_buffer_append(work, part.bytes + at, size);
        }
        at += size;
    }
    if (part.ends) own->held_same = 0;
    pass(chain, index, (part_t){work->bytes, work->length, part.begins, part.ends});
}

/* Replaces every match in a whole piece. A pattern that gives up on a text leaves the rest as it is. */
static void replace_all(const decoder_stage_t *stage, const uint8_t *text, size_t length, text_buffer_t *out)
{
    pattern_work_t work = {0};
    pattern_walk_t walk = pattern_walk(text, length);
    size_t done = 0, start, end;
    bool found;
    if (length == 0) return;
    while (pattern_next(stage->pattern, &work, &walk, &found, &start, &end) == QN_OK && found) {
        text_buffer_append(out, text + done, start - done);
        text_buffer_append(out, stage->content, stage->content_bytes);
        done = end;
    }
    text_buffer_append(out, text + done, length - done);
    pattern_work_fini(&work);
}

/* Bytes at the end of the text that could be the beginning of the literal. */
static size_t held_suffix(const uint8_t *text, size_t length, const uint8_t *literal, size_t literal_bytes)
{
    size_t most = length < literal_bytes - 1 ? length : literal_bytes - 1;
    for (size_t size = most; size > 0; size--)
        if (memcmp(text + length - size, literal, size) == 0) return size;
    return 0;
}

/* The text up to where everything is decided: after the last match, less a possible beginning of one. */
static size_t decided_bytes(const decoder_stage_t *stage, const uint8_t *text, size_t length)
{
    size_t literal_bytes;
    const uint8_t *literal = pattern_literal(stage->pattern, &literal_bytes);
    if (!literal) return 0; /* a regular expression may look at everything */
    pattern_walk_t walk = pattern_walk(text, length);
    size_t done = 0, start, end;
    bool found;
    while (pattern_next(stage->pattern, NULL, &walk, &found, &start, &end) == QN_OK && found)
        done = end;
    return length - held_suffix(text + done, length - done, literal, literal_bytes);
}

static void take_replace(const chain_t *chain, size_t index, part_t part)
{
    const decoder_stage_t *stage = &chain->decoder->stages[index];
    decoder_stage_state_t *own = &chain->state->stages[index];
    if (part.begins) own->in_piece = false;
    text_buffer_append(&own->held, part.bytes, part.length);
    size_t ready = part.ends ? own->held.length : decided_bytes(stage, own->held.bytes, own->held.length);
    text_buffer_t work = {0};
    replace_all(stage, own->held.bytes, ready, &work);
    text_buffer_drop(&own->held, ready);
    if (work.length > 0 || part.ends) {
        pass(chain, index, (part_t){work.bytes, work.length, !own->in_piece, part.ends});
        own->in_piece = true;
    }
    text_buffer_fini(&work);
}

static void bpe_release(const chain_t *chain, size_t index, bool is_last)
{
    decoder_stage_state_t *own = &chain->state->stages[index];
    decoder_stage_t stage = chain->decoder->stages[index];
    stage.content = (uint8_t *)" ";
    stage.content_bytes = is_last ? 0 : 1;
    text_buffer_t work = {0};
    replace_all(&stage, own->held.bytes, own->held.length, &work);
    own->held.length = 0;
    pass_whole(chain, index, work.bytes, work.length);
    text_buffer_fini(&work);
}

/* Holds one piece: whether it is the last is known when the next one or the end comes. */
static void take_bpe(const chain_t *chain, size_t index, part_t part)
{
    decoder_stage_state_t *own = &chain->state->stages[index];
    if (part.begins && own->started) bpe_release(chain, index, false);
    own->started = true;
    text_buffer_append(&own->held, part.bytes, part.length);
}

static void stage_take(const chain_t *chain, size_t index, part_t part)
{
    switch (chain->decoder->stages[index].kind) {
    case DECODER_JOIN_SPACES: take_join_spaces(chain, index, part); break;
    case DECODER_BYTE_LEVEL: take_byte_level(chain, index, part); break;
    case DECODER_BYTE_FALLBACK: take_byte_fallback(chain, index, part); break;
    case DECODER_METASPACE: take_metaspace(chain, index, part); break;
    case DECODER_FUSE: take_fuse(chain, index, part); break;
    case DECODER_STRIP: take_strip(chain, index, part); break;
    case DECODER_REPLACE: take_replace(chain, index, part); break;
    case DECODER_BPE: take_bpe(chain, index, part); break;
    }
}

/* No more pieces reach this stage: release what it holds, end a fused piece. */
static void stage_end(const chain_t *chain, size_t index)
{
    decoder_stage_state_t *own = &chain->state->stages[index];
    switch (chain->decoder->stages[index].kind) {
    case DECODER_BYTE_LEVEL:
        if (own->tail_bytes > 0) pass_fused(chain, index, (const uint8_t *)REPLACEMENT, 3);
        /* fall through */
    case DECODER_FUSE: pass(chain, index, (part_t){(const uint8_t *)"", 0, !own->in_piece, true}); break;
    case DECODER_BYTE_FALLBACK: fallback_run_end(chain, index); break;
    case DECODER_BPE:
        if (own->started) bpe_release(chain, index, true);
        break;
    case DECODER_JOIN_SPACES:
    case DECODER_METASPACE:
    case DECODER_STRIP:
    case DECODER_REPLACE: break; /* hold nothing between pieces */
    }
}

void decoder_push(const decoder_t *decoder, decoder_state_t *state, const uint8_t *piece, size_t bytes, bool is_mapped,
                  text_buffer_t *out)
{
    chain_t chain = {decoder, state, out};
    if (is_mapped)
        take_raw_bytes(&chain, 0, piece, bytes);
    else if (decoder->count == 0)
        text_buffer_append(out, piece, bytes);
    else
        stage_take(&chain, 0, (part_t){piece, bytes, true, true});
}

void decoder_flush(const decoder_t *decoder, decoder_state_t *state, text_buffer_t *out)
{
    chain_t chain = {decoder, state, out};
    for (size_t i = 0; i < decoder->count; i++)
        stage_end(&chain, i);
}

void decoder_state_init(decoder_state_t *state) { *state = (decoder_state_t){0}; }

void decoder_state_fini(decoder_state_t *state)
{
    for (size_t i = 0; i < DECODER_STAGES_MAX; i++) {
        text_buffer_fini(&state->stages[i].held);
        text_buffer_fini(&state->stages[i].run);
    }
}

void decoder_fini(decoder_t *decoder)
{
    for (size_t i = 0; i < decoder->count; i++) {
        pattern_close(&decoder->stages[i].pattern);
        free(decoder->stages[i].content);
    }
    *decoder = (decoder_t){0};
}
