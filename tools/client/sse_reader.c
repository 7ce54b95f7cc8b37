/* What is this?      The reader of server-sent events.
 * State owned:       the line and the event that have begun.
 * Must never:        look into the data.
 * Read next:         http_client.c, which feeds it; cmd_generate.c, which gets the events. */
#include "tools/client/sse_reader.h"

#include <stdlib.h>
#include <string.h>

static qn_err_t append(char **buffer, size_t *used, size_t *capacity, const char *bytes, size_t count)
{
    if (count > SSE_EVENT_BYTES_MAX - *used)
        return qn_fail(QN_ERR_LIMIT, "the server sent an event longer than %u bytes", SSE_EVENT_BYTES_MAX);
    if (*used + count + 1 > *capacity) {
        size_t grown = *capacity ? *capacity : 4096;
        while (grown < *used + count + 1)
            grown *= 2;
        char *moved = realloc(*buffer, grown);
        if (!moved) return qn_fail(QN_ERR_NO_MEMORY, "no memory for an event of the server");
        *buffer = moved;
        *capacity = grown;
    }
    if (count) memcpy(*buffer + *used, bytes, count);
    *used += count;
    (*buffer)[*used] = '\0';
    return QN_OK;
}

/* An empty line: the event is whole. */
static qn_err_t end_event(sse_reader_t *sse)
{
    if (!sse->data_begun) return QN_OK;
    bool go_on = sse->event(sse->context, sse->data, sse->data_bytes);
    sse->data_begun = false;
    sse->data_bytes = 0;
    sse->stopped = !go_on;
    return go_on ? QN_OK : qn_fail(QN_ERR_CANCELLED, "stopped while the server was answering");
}

static qn_err_t end_line(sse_reader_t *sse)
{
    size_t bytes = sse->line_bytes;
    sse->line_bytes = 0;
    if (!bytes) return end_event(sse);
    if (bytes < 4 || memcmp(sse->line, "data", 4) || (bytes > 4 && sse->line[4] != ':')) return QN_OK;
    size_t skip = bytes > 4 ? 5 : 4;
    if (bytes > skip && sse->line[skip] == ' ') skip++;
    qn_err_t err = QN_OK;
    if (sse->data_begun) err = append(&sse->data, &sse->data_bytes, &sse->data_capacity, "\n", 1);
    sse->data_begun = true;
    return err ? err : append(&sse->data, &sse->data_bytes, &sse->data_capacity, sse->line + skip, bytes - skip);
}

qn_err_t sse_reader_push(sse_reader_t *sse, const char *bytes, size_t count)
{
    qn_err_t err = sse->stopped ? QN_ERR_CANCELLED : QN_OK;
    size_t at = 0;
    while (at < count && !err) {
        /* The LF of a CRLF ends no second line. */
        if (sse->after_cr && bytes[at] == '\n') {
            sse->after_cr = false;
            at++;
            continue;
        }
        sse->after_cr = false;
        size_t end = at;
        while (end < count && bytes[end] != '\n' && bytes[end] != '\r')
            end++;
        err = append(&sse->line, &sse->line_bytes, &sse->line_capacity, bytes + at, end - at);
        if (!err && end < count) {
            sse->after_cr = bytes[end] == '\r';
            err = end_line(sse);
        }
        at = end + 1;
    }
    sse->stopped = sse->stopped || err;
    return err;
}

void sse_reader_fini(sse_reader_t *sse)
{
    free(sse->line);
    free(sse->data);
    *sse = (sse_reader_t){0};
}
