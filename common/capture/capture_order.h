/* The reorder window of the sniffer: messages come from five sockets and leave in the order in which they were sent,
 * at most `window_ns` later. */
#ifndef QN_COMMON_CAPTURE_CAPTURE_ORDER_H
#define QN_COMMON_CAPTURE_CAPTURE_ORDER_H

#include "common/capture/capture_message.h"

/* Held at most; beyond either the earliest leaves before its time. */
#define QN_CAPTURE_ORDER_MESSAGES_MAX 65536
#define QN_CAPTURE_ORDER_BYTES_MAX (256u << 20)

typedef struct {
    uint64_t window_ns;
    qn_capture_message_t **heap; /* owned: earliest first; equal times in order of arrival */
    uint64_t *arrivals;          /* owned, beside `heap` */
    size_t count, bytes;
    uint64_t arrival;
} qn_capture_order_t;

/* Embedded by the caller; ends the process when the host has no memory. */
void qn_capture_order_init(qn_capture_order_t *order, uint64_t window_ns);
void qn_capture_order_fini(qn_capture_order_t *order);
/* Takes the message. */
void qn_capture_order_put(qn_capture_order_t *order, qn_capture_message_t *message);
/* Returns owned the earliest message whose window is over at `now_ns` (UINT64_MAX: whatever is there), or NULL. */
qn_capture_message_t *qn_capture_order_take(qn_capture_order_t *order, uint64_t now_ns);
/* When qn_capture_order_take will next have something; UINT64_MAX: empty. */
uint64_t qn_capture_order_due_ns(const qn_capture_order_t *order);

#endif
