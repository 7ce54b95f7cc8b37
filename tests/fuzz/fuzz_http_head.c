/* libFuzzer target: any bytes from a client. A head that is taken has one framing, one Host, no control characters; the
 * same bytes as a chunked body give the same answer however they are cut. Seeds: tests/fuzz/seeds/http_head. */
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "services/frontend/http/http_chunked.h"
#include "services/frontend/http/http_head.h"

static void check_head(const uint8_t *data, size_t bytes)
{
    size_t scanned = 0, end = 0;
    for (size_t have = 0; have <= bytes && end == 0; have += 1 + bytes / 7)
        end = http_head_end((const char *)data, have, &scanned);
    if (end == 0) end = http_head_end((const char *)data, bytes, &scanned);
    if (end == 0) return;
    char *text = malloc(end);
    QN_ASSERT(text);
    memcpy(text, data, end);
    http_head_t head;
    if (http_head_parse(text, end, &head) == HTTP_HEAD_BAD) {
        QN_ASSERT(head.status >= 400 && head.status <= 505 && head.reason);
    } else {
        QN_ASSERT(head.path[0] == '/' || head.path[0] == '*');
        QN_ASSERT(head.field_count <= HTTP_FIELDS_MAX && head.query_count <= HTTP_QUERY_MAX);
        QN_ASSERT(!head.chunked || head.content_length == 0);
        QN_ASSERT(head.is_http_1_0 || http_head_field(&head, "host"));
        for (uint32_t i = 0; i < head.field_count; i++)
            QN_ASSERT(!strpbrk(head.fields[i].value, "\r\n") && head.fields[i].name[0]);
    }
    free(text);
}

/* Bytes of the body, or -1 - where it broke. */
static long decode(const uint8_t *data, size_t bytes, size_t step, size_t *ret_used)
{
    http_chunked_t chunked = {0};
    long body = 0;
    size_t at = 0;
    while (at < bytes) {
        size_t room = bytes - at < step ? bytes - at : step, used = 0, piece = 0;
        http_chunked_outcome_t outcome = http_chunked_take(&chunked, (const char *)data + at, room, &used, &piece);
        QN_ASSERT(used >= 1 && used <= room && piece <= used);
        at += used;
        body += (long)piece;
        if (outcome == HTTP_CHUNKED_BAD) body = -1;
        if (outcome == HTTP_CHUNKED_BAD || outcome == HTTP_CHUNKED_END) break;
    }
    *ret_used = at;
    return body;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    check_head(data, bytes);
    size_t whole, cut;
    long body = decode(data, bytes, SIZE_MAX, &whole);
    for (size_t step = 1; step <= 3; step++) {
        long again = decode(data, bytes, step, &cut);
        QN_ASSERT(body == again && whole == cut);
    }
    return 0;
}
