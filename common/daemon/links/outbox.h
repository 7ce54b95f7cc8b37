/* Frames waiting for a peer: for its credit, or for room in the socket. A bounded ring, first in first out. */
#ifndef QN_COMMON_DAEMON_LINKS_OUTBOX_H
#define QN_COMMON_DAEMON_LINKS_OUTBOX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    struct qn_outbox_frame *frames; /* owned; NULL until the first frame waits */
    uint32_t first, count;
} qn_outbox_t;

typedef struct qn_outbox_frame {
    uint64_t number; /* of the data message; 0 = link control, needs no credit */
    size_t bytes;
    uint8_t *data; /* owned by the box */
} qn_outbox_frame_t;

/* Copies a frame to the end. False: QN_OUTBOX_MAX frames wait already. */
bool qn_outbox_push(qn_outbox_t *box, uint64_t number, const void *data, size_t bytes);
/* The oldest frame, or NULL. Returns view. */
const qn_outbox_frame_t *qn_outbox_first(const qn_outbox_t *box);
void qn_outbox_pop(qn_outbox_t *box);
/* Frees all; the box is empty and usable afterwards. */
void qn_outbox_clear(qn_outbox_t *box);

#endif
