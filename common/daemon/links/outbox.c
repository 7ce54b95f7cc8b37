/* What is this?      A bounded ring of copied frames.
 * State owned:       the ring and the copies.
 * Must never:        grow beyond QN_OUTBOX_MAX.
 * Read next:         links.c */
#include "common/daemon/links/outbox.h"

#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "common/limits.h"

bool qn_outbox_push(qn_outbox_t *box, uint64_t number, const void *data, size_t bytes)
{
    if (box->count == QN_OUTBOX_MAX) return false;
    if (!box->frames) box->frames = calloc(QN_OUTBOX_MAX, sizeof *box->frames);
    uint8_t *copy = malloc(bytes);
    QN_ASSERT(box->frames && copy);
    memcpy(copy, data, bytes);
    box->frames[(box->first + box->count++) % QN_OUTBOX_MAX] =
        (qn_outbox_frame_t){.number = number, .bytes = bytes, .data = copy};
    return true;
}

const qn_outbox_frame_t *qn_outbox_first(const qn_outbox_t *box)
{
    return box->count ? &box->frames[box->first] : NULL;
}

void qn_outbox_pop(qn_outbox_t *box)
{
    QN_ASSERT(box->count > 0);
    free(box->frames[box->first].data);
    box->first = (box->first + 1) % QN_OUTBOX_MAX;
    box->count--;
}

void qn_outbox_clear(qn_outbox_t *box)
{
    while (box->count)
        qn_outbox_pop(box);
    free(box->frames);
    *box = (qn_outbox_t){0};
}
