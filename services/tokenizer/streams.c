/* What is this?      The table of running detokenisations.
 * State owned:       streams by request id, in an open-addressing table of fixed size.
 * Must never:        know a message, a peer or a clock; take a token twice.
 * Read next:         detokenizer.h, stop_strings.h, handlers.c */
#include "services/tokenizer/streams.h"

#include <stdlib.h>
#include <string.h>

#include "common/assert.h"

struct streams {
    stream_t **places; /* [place_count]; linear probing */
    size_t place_count, count, limit;
};

streams_t *streams_create(size_t limit)
{
    streams_t *streams = calloc(1, sizeof *streams);
    QN_ASSERT(streams && limit > 0 && limit < SIZE_MAX / 4);
    size_t place_count = 16;
    while (place_count < limit * 2)
        place_count *= 2;
    streams->places = calloc(place_count, sizeof *streams->places);
    QN_ASSERT(streams->places);
    streams->place_count = place_count;
    streams->limit = limit;
    return streams;
}

void streams_destroy(streams_t **streams)
{
    if (!*streams) return;
    QN_ASSERT((*streams)->count == 0);
    free((*streams)->places);
    free(*streams);
    *streams = NULL;
}

/* Fibonacci hashing: request ids are counters. */
static size_t streams_home(const streams_t *streams, uint64_t request)
{
    return (size_t)(request * 0x9e3779b97f4a7c15ull >> 20) & (streams->place_count - 1);
}

static size_t streams_place(const streams_t *streams, uint64_t request)
{
    size_t place = streams_home(streams, request);
    while (streams->places[place] && streams->places[place]->request != request)
        place = (place + 1) & (streams->place_count - 1);
    return place;
}

stream_open_t streams_open(streams_t *streams, const stream_spec_t *spec, stream_t **ret_stream)
{
    size_t place = streams_place(streams, spec->request);
    if (streams->places[place]) return STREAM_EXISTS;
    if (streams->count == streams->limit) return STREAM_NO_ROOM;
    if (spec->stop_id_count > QN_STOP_IDS_MAX) {
        qn_fail(QN_ERR_LIMIT, "%zu stop ids; %d are possible", (size_t)spec->stop_id_count, QN_STOP_IDS_MAX);
        return STREAM_BAD_STOP;
    }
    stream_t *stream = calloc(1, sizeof *stream);
    QN_ASSERT(stream);
    if (stop_strings_init(&stream->stop, spec->stop, spec->stop_bytes, spec->stop_count, spec->include_stop) != QN_OK) {
        free(stream);
        return STREAM_BAD_STOP;
    }
    stream->request = spec->request;
    stream->min_tokens = spec->min_tokens;
    stream->has_text = spec->detokenizer != NULL;
    if (!spec->include_stop && spec->stop_id_count) {
        memcpy(stream->silent_ids, spec->stop_ids, spec->stop_id_count * sizeof *spec->stop_ids);
        stream->silent_count = spec->stop_id_count;
    }
    if (stream->has_text) {
        stream->detokenizer = *spec->detokenizer;
        *spec->detokenizer = (detokenizer_t){0};
    }
    streams->places[place] = stream;
    streams->count++;
    *ret_stream = stream;
    return STREAM_OPENED;
}

stream_t *streams_find(const streams_t *streams, uint64_t request)
{
    return streams->places[streams_place(streams, request)];
}

/* Removes without tombstones: later members of the run move back when their home allows it. */
static void streams_unlink(streams_t *streams, size_t hole)
{
    size_t mask = streams->place_count - 1;
    streams->places[hole] = NULL;
    for (size_t place = (hole + 1) & mask; streams->places[place]; place = (place + 1) & mask) {
        size_t home = streams_home(streams, streams->places[place]->request);
        if (((place - home) & mask) < ((place - hole) & mask)) continue;
        streams->places[hole] = streams->places[place];
        streams->places[place] = NULL;
        hole = place;
    }
}

void streams_close(streams_t *streams, stream_t *stream)
{
    size_t place = streams_place(streams, stream->request);
    QN_ASSERT(streams->places[place] == stream);
    streams_unlink(streams, place);
    streams->count--;
    if (stream->has_text) detokenizer_fini(&stream->detokenizer);
    stop_strings_fini(&stream->stop);
    free(stream);
}

size_t streams_count(const streams_t *streams) { return streams->count; }

stream_t *streams_next(const streams_t *streams, size_t *cursor)
{
    while (*cursor < streams->place_count) {
        stream_t *stream = streams->places[(*cursor)++];
        if (stream) return stream;
    }
    return NULL;
}

static uint32_t count_characters(const text_buffer_t *text)
{
    uint32_t count = 0;
    for (size_t i = 0; i < text->length; i++)
        count += (text->bytes[i] & 0xC0) != 0x80;
    return count;
}

static void stream_release(stream_t *stream, const text_buffer_t *fresh, bool watch_stop, text_buffer_t *out)
{
    size_t before = out->length;
    if (!watch_stop) {
        text_buffer_append(out, fresh->bytes, fresh->length);
    } else if (stop_strings_push(&stream->stop, (const char *)fresh->bytes, fresh->length, out) && !stream->stopped) {
        stream->stopped = true;
        stream->stopped_tokens = stream->token_count;
    }
    stream->text_bytes += out->length - before;
}

/* A stop id ends the sequence wherever it is sampled: before min_tokens it cannot be. */
static bool is_silent(const stream_t *stream, uint32_t id)
{
    for (uint32_t i = 0; i < stream->silent_count; i++)
        if (stream->silent_ids[i] == id) return true;
    return false;
}

stream_token_t stream_push(stream_t *stream, uint32_t position, uint32_t id, text_buffer_t *out)
{
    if (position < stream->token_count || stream->stopped) return STREAM_TOKEN_REPEATED;
    if (position > stream->token_count) return STREAM_TOKEN_GAP;
    stream->token_count++;
    if (!stream->has_text || is_silent(stream, id)) return STREAM_TOKEN_TAKEN;
    text_buffer_t fresh = {0};
    detokenizer_push(&stream->detokenizer, id, &fresh);
    stream->characters += count_characters(&fresh);
    stream_release(stream, &fresh, stream->token_count > stream->min_tokens, out);
    text_buffer_fini(&fresh);
    return STREAM_TOKEN_TAKEN;
}

void stream_finish(stream_t *stream, text_buffer_t *out)
{
    if (stream->stopped || !stream->has_text) return;
    text_buffer_t fresh = {0};
    detokenizer_flush(&stream->detokenizer, &fresh);
    stream_release(stream, &fresh, stream->token_count > stream->min_tokens, out);
    text_buffer_fini(&fresh);
    size_t before = out->length;
    if (!stream->stopped && stop_strings_flush(&stream->stop, out)) {
        stream->stopped = true;
        stream->stopped_tokens = stream->token_count;
    }
    stream->text_bytes += out->length - before;
}
