/* What is this?      A matcher for a few short strings in a stream that is cut anywhere.
 * State owned:       copies of the strings, the held suffix, counters.
 * Must never:        release a byte that may belong to a match; depend on how the stream was cut.
 * Read next:         detokenizer.h (where the text comes from). */
#include "services/tokenizer/decode/stop_strings.h"

#include <string.h>

qn_err_t stop_strings_init(stop_strings_t *s, const char *const *strings, const size_t *lengths, size_t count,
                           bool include_stop)
{
    *s = (stop_strings_t){0};
    if (count > QN_STOP_STRINGS_MAX)
        return qn_fail(QN_ERR_LIMIT, "stop: %zu strings, at most %d are allowed", count, QN_STOP_STRINGS_MAX);
    for (size_t i = 0; i < count; i++) {
        if (lengths[i] == 0)
            return qn_fail(QN_ERR_INVALID, "stop[%zu]: is empty; leave it out or give at least one character", i);
        if (lengths[i] > QN_STOP_STRING_BYTES_MAX)
            return qn_fail(QN_ERR_LIMIT, "stop[%zu]: %zu bytes, at most %d are allowed", i, lengths[i],
                           QN_STOP_STRING_BYTES_MAX);
    }
    for (size_t i = 0; i < count; i++) {
        text_buffer_append(&s->strings, strings[i], lengths[i]);
        s->lengths[i] = (uint16_t)lengths[i];
    }
    s->count = count;
    s->include_stop = include_stop;
    return QN_OK;
}

void stop_strings_fini(stop_strings_t *s)
{
    text_buffer_fini(&s->strings);
    text_buffer_fini(&s->held);
    s->count = 0;
}

typedef enum { NOTHING_HERE, COULD_BEGIN_HERE, FOUND_HERE } verdict_t;

/* Looks at the strings against text[0 .. available). The shortest complete one wins. */
static verdict_t look_here(const stop_strings_t *s, const uint8_t *text, size_t available, uint32_t *ret_index)
{
    verdict_t verdict = NOTHING_HERE;
    size_t found_bytes = SIZE_MAX;
    const uint8_t *string = s->strings.bytes;
    for (uint32_t i = 0; i < s->count; string += s->lengths[i++]) {
        size_t length = s->lengths[i];
        size_t compare = length < available ? length : available;
        if (string[0] != text[0] || memcmp(string, text, compare) != 0) continue;
        if (compare == length) {
            if (length >= found_bytes) continue;
            found_bytes = length;
            *ret_index = i;
            verdict = FOUND_HERE;
        } else if (verdict == NOTHING_HERE) {
            verdict = COULD_BEGIN_HERE;
        }
    }
    return verdict;
}

static void release(stop_strings_t *s, size_t bytes, text_buffer_t *out)
{
    text_buffer_append(out, s->held.bytes, bytes);
    s->byte_count += bytes;
}

/* Decides over the held text as far as possible; at the end of the stream, over all of it. */
static void decide(stop_strings_t *s, bool is_end, text_buffer_t *out)
{
    size_t at = 0;
    while (at < s->held.length) {
        uint32_t index = 0;
        verdict_t verdict = look_here(s, s->held.bytes + at, s->held.length - at, &index);
        if (verdict == FOUND_HERE) {
            s->matched = true;
            s->match_index = index;
            s->match_start = s->byte_count + at;
            release(s, at + (s->include_stop ? s->lengths[index] : 0), out);
            s->held.length = 0;
            return;
        }
        if (verdict == COULD_BEGIN_HERE && !is_end) break;
        at++;
    }
    release(s, at, out);
    text_buffer_drop(&s->held, at);
}

bool stop_strings_push(stop_strings_t *s, const char *text, size_t bytes, text_buffer_t *out)
{
    if (s->matched) return true;
    if (s->count == 0) {
        text_buffer_append(out, text, bytes);
        s->byte_count += bytes;
        return false;
    }
    text_buffer_append(&s->held, text, bytes);
    decide(s, false, out);
    return s->matched;
}

bool stop_strings_flush(stop_strings_t *s, text_buffer_t *out)
{
    if (!s->matched) decide(s, true, out);
    return s->matched;
}
