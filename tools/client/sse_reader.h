/* Server-sent events, read piece by piece (https://html.spec.whatwg.org/multipage/server-sent-events.html): bytes in,
 * the data of each whole event out. Comments and fields other than `data` are skipped; several data lines of one event
 * are joined with newlines; CR, LF and CRLF end a line. */
#ifndef QN_TOOLS_CLIENT_SSE_READER_H
#define QN_TOOLS_CLIENT_SSE_READER_H

#include <stdbool.h>
#include <stddef.h>

#include "common/err.h"

/* Longest data of one event: a final chunk with log-probabilities and metadata is far below. */
#define SSE_EVENT_BYTES_MAX (16u << 20)

/* Gets the data of one event, NUL-terminated, valid during the call. False: stop. */
typedef bool (*sse_event_t)(void *context, const char *data, size_t bytes);

/* Embedded by the caller; zeroed but for `event` and `context`. */
typedef struct {
    sse_event_t event;
    void *context;
    char *line, *data; /* owned: the line begun, the event begun */
    size_t line_bytes, line_capacity, data_bytes, data_capacity;
    bool data_begun, after_cr, stopped;
} sse_reader_t;

/* Takes `bytes` bytes. QN_ERR_LIMIT: an event is longer than SSE_EVENT_BYTES_MAX; QN_ERR_CANCELLED: event() said
 * stop. After a failure nothing more is taken. */
qn_err_t sse_reader_push(sse_reader_t *sse, const char *bytes, size_t count);
/* Frees what is held; an event that was not ended by an empty line is dropped, as the standard says. */
void sse_reader_fini(sse_reader_t *sse);

#endif
