/* What is this?      Faults of messages (common/faults.h), on the receiving side: the one place all frames pass.
 * State owned:       frames that are held back: links->held.
 * Must never:        run when no fault is armed and nothing is held.
 * Read next:         common/faults.h, links_receive.c. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/daemon/links/endpoint.h"
#include "common/daemon/links/links_internal.h"
#include "common/watch/log.h"
#include "common/wire/wire.h"

#define HELD_MAX 4096
#define REORDER_NS 20000000ull /* when no other message comes */

struct links_held {
    struct links_held *next;
    uint64_t due_ns;
    bool lets_pass;     /* a reordered one: others overtake it */
    qn_service_t dials; /* of the link; NONE: the ROUTER's, by identity */
    uint8_t identity[IDENTITY_BYTES_MAX];
    size_t identity_bytes, bytes;
    _Alignas(8) uint8_t frame[];
};

static bool is_of(const links_held_t *held, const link_t *link, const void *identity, size_t identity_bytes)
{
    if (link && link->dealer) return held->dials == link->dials;
    return held->dials == QN_SERVICE_NONE && held->identity_bytes == identity_bytes &&
           memcmp(held->identity, identity, identity_bytes) == 0;
}

/* The last one that keeps what follows on the link waiting; NULL: none. */
static const links_held_t *last_before(const qn_links_t *links, const link_t *link, const void *identity,
                                       size_t identity_bytes)
{
    const links_held_t *last = NULL;
    for (const links_held_t *one = links->held; one; one = one->next)
        if (!one->lets_pass && is_of(one, link, identity, identity_bytes)) last = one;
    return last;
}

/* Holds a copy at the end of the list. False: no room, so it is taken at once. */
static bool hold(qn_links_t *links, const link_t *link, const void *identity, size_t identity_bytes, const void *frame,
                 size_t bytes, uint64_t due_ns, bool lets_pass)
{
    if (links->held_count == HELD_MAX || identity_bytes > IDENTITY_BYTES_MAX) return false;
    links_held_t *held = malloc(sizeof *held + bytes), **end = &links->held;
    if (!held) return false;
    *held = (links_held_t){.due_ns = due_ns,
                           .lets_pass = lets_pass,
                           .dials = link && link->dealer ? link->dials : QN_SERVICE_NONE,
                           .identity_bytes = identity_bytes,
                           .bytes = bytes};
    if (identity_bytes) memcpy(held->identity, identity, identity_bytes);
    memcpy(held->frame, frame, bytes);
    while (*end)
        end = &(*end)->next;
    *end = held;
    links->held_count++;
    return true;
}

static void take_held(qn_links_t *links, links_held_t **place)
{
    links_held_t *held = *place;
    *place = held->next;
    links->held_count--;
    link_t *link = NULL;
    for (size_t i = 0; held->dials != QN_SERVICE_NONE && i < QN_PEERS_MAX; i++)
        if (links->links[i].used && links->links[i].dials == held->dials) link = &links->links[i];
    if (held->dials == QN_SERVICE_NONE) link = qn_links_inbound(links, held->identity, held->identity_bytes);
    qn_links_take_frame(links, link, held->identity, held->identity_bytes, held->frame, held->bytes);
    free(held);
}

uint64_t qn_links_release_held(qn_links_t *links)
{
    uint64_t due_ns = UINT64_MAX;
    for (links_held_t **place = &links->held; *place;) {
        if ((*place)->due_ns <= links->now_ns) {
            take_held(links, place);
            place = &links->held; /* a frame may end its link, and with it others of the list */
            continue;
        }
        if ((*place)->due_ns < due_ns) due_ns = (*place)->due_ns;
        place = &(*place)->next;
    }
    return due_ns;
}

/* What was overtaken by the frame just taken. */
static void release_overtaken(qn_links_t *links, const link_t *link, const void *identity, size_t identity_bytes)
{
    for (links_held_t **place = &links->held; *place; place = &(*place)->next)
        if ((*place)->lets_pass && is_of(*place, link, identity, identity_bytes)) {
            take_held(links, place);
            return;
        }
}

void qn_links_drop_held(qn_links_t *links, const link_t *link)
{
    for (links_held_t **place = &links->held; *place;) {
        links_held_t *held = *place;
        if (link && !is_of(held, link, link->identity, link->identity_bytes)) {
            place = &held->next;
            continue;
        }
        *place = held->next;
        links->held_count--;
        free(held);
    }
}

/* The table of a FlatBuffers frame is where its first word says: nowhere, then. */
static void take_damaged(qn_links_t *links, link_t *link, const void *identity, size_t identity_bytes,
                         const void *frame, size_t bytes)
{
    uint8_t *copy = aligned_alloc(64, (bytes + 64) / 64 * 64);
    if (!copy) return;
    memcpy(copy, frame, bytes);
    memset(copy, 0xff, bytes < 4 ? bytes : 4);
    qn_links_take_frame(links, link, identity, identity_bytes, copy, bytes);
    free(copy);
}

static void die(const qn_links_t *links, const char type[4])
{
    qn_log_warning("a fault kills %s at a %.4s", qn_service_name(links->spec.service), type);
    kill(getpid(), SIGKILL);
}

static bool is_control(const void *frame, size_t bytes)
{
    qn_message_type_t type = qn_message_type_of(frame, bytes);
    return type == QN_MESSAGE_HELLO || type == QN_MESSAGE_BYE || type == QN_MESSAGE_HEARTBEAT ||
           type == QN_MESSAGE_CREDIT;
}

static uint64_t later(uint64_t a, uint64_t b) { return a > b ? a : b; }

void qn_links_take_faulty(qn_links_t *links, link_t *link, const void *identity, size_t identity_bytes,
                          const void *frame, size_t bytes)
{
    char type[4] = {0};
    qn_fault_t fault = {.kind = QN_FAULT_NONE};
    uint32_t from = link && link->link.greeted ? link->id.service : QN_SERVICE_NONE;
    if (bytes >= 8) memcpy(type, (const char *)frame + 4, 4);
    if (qn_faults_armed(&links->faults))
        qn_faults_hit_message(&links->faults, from, links->spec.service, type, is_control(frame, bytes), &fault);
    const links_held_t *last = last_before(links, link, identity, identity_bytes);
    if (fault.kind == QN_FAULT_DROP) return;
    if (fault.kind == QN_FAULT_KILL) die(links, type);
    if (fault.kind == QN_FAULT_DELAY || last) {
        uint64_t wait_ns = fault.kind == QN_FAULT_DELAY ? fault.delay_ms * 1000000ull : 0;
        uint64_t due_ns = later(links->now_ns + wait_ns, last ? last->due_ns : 0);
        if (hold(links, link, identity, identity_bytes, frame, bytes, due_ns, false)) return;
    }
    if (fault.kind == QN_FAULT_REORDER &&
        hold(links, link, identity, identity_bytes, frame, bytes, links->now_ns + REORDER_NS, true))
        return;
    if (fault.kind == QN_FAULT_CORRUPT)
        take_damaged(links, link, identity, identity_bytes, frame, bytes);
    else
        qn_links_take_frame(links, link, identity, identity_bytes, frame, bytes);
    if (fault.kind == QN_FAULT_DUPLICATE) {
        if (!link) link = qn_links_inbound(links, identity, identity_bytes);
        qn_links_take_frame(links, link, identity, identity_bytes, frame, bytes);
    }
    release_overtaken(links, link, identity, identity_bytes);
}
