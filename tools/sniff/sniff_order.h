/* The reorder window of the sniffer: messages come from five sockets and leave in the order in which they were sent,
 * at most `window_ns` later. */
#ifndef QN_TOOLS_SNIFF_SNIFF_ORDER_H
#define QN_TOOLS_SNIFF_SNIFF_ORDER_H

#include "tools/sniff/sniff_message.h"

/* Held at most; beyond either the earliest leaves before its time. */
#define SNIFF_ORDER_MESSAGES_MAX 65536
#define SNIFF_ORDER_BYTES_MAX (256u << 20)

typedef struct {
    uint64_t window_ns;
    sniff_message_t **heap; /* owned: earliest first; equal times in order of arrival */
    uint64_t *arrivals;     /* owned, beside `heap` */
    size_t count, bytes;
    uint64_t arrival;
} sniff_order_t;

/* Embedded by the caller; ends the process when the host has no memory. */
void sniff_order_init(sniff_order_t *order, uint64_t window_ns);
void sniff_order_fini(sniff_order_t *order);
/* Takes the message. */
void sniff_order_put(sniff_order_t *order, sniff_message_t *message);
/* Returns owned the earliest message whose window is over at `now_ns` (UINT64_MAX: whatever is there), or NULL. */
sniff_message_t *sniff_order_take(sniff_order_t *order, uint64_t now_ns);
/* When sniff_order_take will next have something; UINT64_MAX: empty. */
uint64_t sniff_order_due_ns(const sniff_order_t *order);

#endif
