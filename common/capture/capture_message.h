/* One mirrored message on its way through the sniffer: from a tap or a capture file, through the reorder window,
 * decoded, filtered, printed. */
#ifndef QN_COMMON_CAPTURE_CAPTURE_MESSAGE_H
#define QN_COMMON_CAPTURE_CAPTURE_MESSAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/arena.h"
#include "common/limits.h"
#include "common/watch/tap.h"
#include "common/wire/wire.h"

/* Requests of one message that are listed and matched; a step has QN_SLOTS_MAX at most. */
#define QN_CAPTURE_REQUESTS_MAX 4096

typedef struct {
    qn_tap_header_t header;
    uint64_t missed;        /* frames of this tap lost just before this one */
    uint64_t time_ns;       /* monotonic: when it was sent, or when a dropped one was received */
    qn_message_type_t type; /* QN_MESSAGE_NONE: no known file identifier */
    qn_head_t head;         /* zeros when the frame is too broken to have one */
    /* After qn_capture_message_decode: */
    const void *content;         /* view: the C struct of the type; NULL: the frame fails the verifier */
    char error[QN_ERR_TEXT_MAX]; /* why it does */
    const uint64_t *requests;    /* view: ids of the requests it is about, sorted, each once */
    size_t request_count;
    size_t bytes;
    _Alignas(16) uint8_t frame[];
} qn_capture_message_t;

/* Copies a frame. Returns owned (free), NULL when the host has no memory. */
qn_capture_message_t *qn_capture_message_new(const qn_tap_header_t *header, const void *frame, size_t bytes,
                                             uint64_t missed);

/* Returns view of the span that the message is, or NULL: it is a frame, or no believable span. */
const qn_tap_span_t *qn_capture_message_span(const qn_capture_message_t *message);

/* Which request holds which of compute's slots, as far as the traffic has told. A zeroed one is empty. */
typedef struct {
    uint64_t request[QN_SLOTS_MAX]; /* 0: not known */
    uint32_t scheduler_epoch;
} qn_capture_slots_t;

/* Verifies and decodes the frame and finds the requests it is about; learns slots from it. The views live as long as
 * the message and until the arena is reset. Call once per message, in order of time. */
void qn_capture_message_decode(qn_capture_message_t *message, qn_capture_slots_t *slots, qn_arena_t *arena);
/* Is the message about this request? */
bool qn_capture_message_has_request(const qn_capture_message_t *message, uint64_t request);
/* "scheduler", as messages and filters write it. */
const char *qn_capture_service_name(qn_service_t service);

#endif
