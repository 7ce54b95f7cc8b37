/* What is this?      A heap of messages by time sent.
 * State owned:       the messages it holds.
 * Must never:        grow without bound.
 * Read next:         cmd_sniff.c. */
#include "common/capture/capture_order.h"

#include <stdlib.h>

#include "common/assert.h"

void qn_capture_order_init(qn_capture_order_t *order, uint64_t window_ns)
{
    *order = (qn_capture_order_t){.window_ns = window_ns};
    order->heap = calloc(QN_CAPTURE_ORDER_MESSAGES_MAX + 1, sizeof *order->heap);
    order->arrivals = calloc(QN_CAPTURE_ORDER_MESSAGES_MAX + 1, sizeof *order->arrivals);
    QN_ASSERT(order->heap && order->arrivals);
}

void qn_capture_order_fini(qn_capture_order_t *order)
{
    for (size_t i = 0; i < order->count; i++)
        free(order->heap[i]);
    free(order->heap);
    free(order->arrivals);
    *order = (qn_capture_order_t){0};
}

static bool is_before(const qn_capture_order_t *order, size_t a, size_t b)
{
    uint64_t left = order->heap[a]->time_ns, right = order->heap[b]->time_ns;
    return left != right ? left < right : order->arrivals[a] < order->arrivals[b];
}

static void swap(qn_capture_order_t *order, size_t a, size_t b)
{
    qn_capture_message_t *message = order->heap[a];
    uint64_t arrival = order->arrivals[a];
    order->heap[a] = order->heap[b];
    order->arrivals[a] = order->arrivals[b];
    order->heap[b] = message;
    order->arrivals[b] = arrival;
}

void qn_capture_order_put(qn_capture_order_t *order, qn_capture_message_t *message)
{
    size_t at = order->count++;
    QN_ASSERT(at <= QN_CAPTURE_ORDER_MESSAGES_MAX);
    order->heap[at] = message;
    order->arrivals[at] = order->arrival++;
    order->bytes += message->bytes;
    for (; at && is_before(order, at, (at - 1) / 2); at = (at - 1) / 2)
        swap(order, at, (at - 1) / 2);
}

uint64_t qn_capture_order_due_ns(const qn_capture_order_t *order)
{
    if (!order->count) return UINT64_MAX;
    if (order->count >= QN_CAPTURE_ORDER_MESSAGES_MAX || order->bytes > QN_CAPTURE_ORDER_BYTES_MAX) return 0;
    return order->heap[0]->time_ns + order->window_ns;
}

qn_capture_message_t *qn_capture_order_take(qn_capture_order_t *order, uint64_t now_ns)
{
    if (!order->count || qn_capture_order_due_ns(order) > now_ns) return NULL;
    qn_capture_message_t *message = order->heap[0];
    swap(order, 0, --order->count);
    order->bytes -= message->bytes;
    for (size_t at = 0;;) {
        size_t least = at, left = 2 * at + 1;
        if (left < order->count && is_before(order, left, least)) least = left;
        if (left + 1 < order->count && is_before(order, left + 1, least)) least = left + 1;
        if (least == at) return message;
        swap(order, at, least);
        at = least;
    }
}
