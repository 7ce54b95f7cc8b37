/* What is this?      The receiving half of the links: frames in, the lives and deaths of peers.
 * State owned:       none of its own; the tables of links_internal.h.
 * Must never:        deliver an unverified frame, or one of a life that is over.
 * Read next:         links.c, peer.h, daemon.c (the loop that calls qn_links_take). */
#include "common/daemon/links/links_internal.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/assert.h"
#include "common/clock.h"
#include "common/daemon/links/endpoint.h"
#include "common/limits.h"
#include "common/watch/log.h"
#include "common/wire/wire.h"

#define REFUSED_LOG_NS 200000000ull

/* ---- lives and deaths ----------------------------------------------------------------------------------------- */

static bool links_is_local(const qn_links_t *links, const qn_hello_t *hello)
{
    bool same_host = hello->host.data && strcmp(hello->host.data, links->host) == 0;
    return same_host && hello->pid != (uint32_t)getpid() && hello->pid > 0 && hello->pid <= INT32_MAX;
}

/* False: the process that said Hello is dead already. */
static bool links_watch_life(const qn_links_t *links, const qn_hello_t *hello, int *ret_pidfd)
{
    *ret_pidfd = -1;
    if (!links_is_local(links, hello)) return true;
    *ret_pidfd = (int)syscall(SYS_pidfd_open, (pid_t)hello->pid, 0);
    return *ret_pidfd >= 0 || errno != ESRCH;
}

/* Whether the life behind the link is over for certain. A newer epoch alone proves nothing: anybody can claim one. */
static bool link_is_proven_dead(const link_t *link, const qn_hello_t *successor)
{
    if (link->local) {
        struct pollfd life = {.fd = link->pidfd, .events = POLLIN};
        if (link->pidfd >= 0) return poll(&life, 1, 0) == 1 && life.revents != 0;
        return kill((pid_t)link->status.pid, 0) != 0 && errno == ESRCH;
    }
    /* Threads of this process answer for each other; of another host there is no better proof than silence. */
    if (link->status.pid == (uint32_t)getpid()) return successor && successor->pid == link->status.pid;
    return link->link.suspect;
}

/* The highest version that both speak; 0: none. */
static uint16_t links_agree(const qn_hello_t *hello)
{
    uint16_t lowest = hello->protocol_lowest ? hello->protocol_lowest : hello->protocol;
    if (hello->protocol < QN_PROTOCOL_LOWEST || lowest > QN_PROTOCOL || lowest > hello->protocol) return 0;
    return hello->protocol < QN_PROTOCOL ? hello->protocol : QN_PROTOCOL;
}

static void link_copy_text(char *ret_text, size_t size, qn_text_t text)
{
    snprintf(ret_text, size, "%.*s", (int)text.bytes, text.data ? text.data : "");
}

static void links_gone(qn_links_t *links, link_t *link, const char *why)
{
    qn_peer_t id = link->id;
    bool greeted = link->link.greeted;
    if (link->pidfd >= 0) close(link->pidfd);
    qn_outbox_clear(&link->outbox);
    if (links->held) qn_links_drop_held(links, link);
    link->pidfd = -1;
    link->local = false;
    link->protocol = 0;
    link->link = (qn_peer_link_t){0};
    link->status.alive = false;
    link->status.pid = 0;
    snprintf(link->status.text, sizeof link->status.text, "%s", why);
    link->id = (qn_peer_t){0};
    link->hello_due_ns = links->now_ns;
    link->redial = link->inner;
    if (link->dials == QN_SERVICE_NONE) *link = (link_t){.pidfd = -1};
    if (!greeted) return;
    qn_log_info("%s epoch %u is gone: %s", qn_service_name((qn_service_t)id.service), id.epoch, why);
    links->spec.peer(links->spec.context, id, QN_PEER_GONE);
}

static void link_greeted(qn_links_t *links, link_t *link, const qn_hello_t *hello)
{
    link->id = (qn_peer_t){.epoch = hello->head.epoch, .service = hello->service, .instance = hello->instance};
    qn_peer_link_greet(&link->link, QN_LINK_WINDOW, hello->window, links->now_ns);
    link->link.beat_ns = 0; /* beat in this turn: the peer learns our text and uptime at once */
    link->local = links_is_local(links, hello);
    link->protocol = links_agree(hello);
    bool lives = links_watch_life(links, hello, &link->pidfd);
    link->complained = false;
    link->status.peer = link->id;
    link->status.state = hello->state;
    link->status.pid = hello->pid;
    link->status.alive = true;
    link->status.uptime_ms = 0;
    link->status.memory_epoch = 0;
    link->status.kernel_set = 0;
    link->status.foreign_code = false;
    link->status.beats = 0;
    link->status.restarts = hello->head.epoch - 1;
    link->status.text[0] = '\0'; /* the heartbeat that follows at once brings it */
    link_copy_text(link->status.build, sizeof link->status.build, hello->build);
    qn_log_debug("%s epoch %u (pid %u) is up", qn_service_name(hello->service), hello->head.epoch, hello->pid);
    links->spec.peer(links->spec.context, link->id, QN_PEER_UP);
    if (!lives) links_gone(links, link, QN_LINK_DEATH);
}

link_t *qn_links_inbound(qn_links_t *links, const void *identity, size_t identity_bytes)
{
    for (size_t i = 0; i < QN_PEERS_MAX; i++) {
        link_t *link = &links->links[i];
        if (link->used && link->dials == QN_SERVICE_NONE && link->identity_bytes == identity_bytes &&
            memcmp(link->identity, identity, identity_bytes) == 0)
            return link;
    }
    return NULL;
}

static link_t *links_free_place(qn_links_t *links)
{
    for (size_t i = 0; i < QN_PEERS_MAX; i++)
        if (!links->links[i].used) return &links->links[i];
    return NULL;
}

/* The greeted connection of this service and instance, or NULL. Tools are any number. */
static link_t *links_holder(qn_links_t *links, const qn_hello_t *hello)
{
    for (size_t i = 0; i < QN_PEERS_MAX && hello->service != QN_SERVICE_TOOL; i++) {
        link_t *link = &links->links[i];
        if (link->used && link->link.greeted && link->dials == QN_SERVICE_NONE && link->id.service == hello->service &&
            link->id.instance == hello->instance)
            return link;
    }
    return NULL;
}

/* Says why, to the one that greeted and, once, to the log. It may greet again. */
static void links_refuse_hello(qn_links_t *links, link_t *from, const qn_hello_t *hello, const char *why)
{
    qn_peer_t who = {.epoch = hello->head.epoch, .service = hello->service, .instance = hello->instance};
    char reason[QN_REASON_MAX];
    snprintf(reason, sizeof reason, "refused: %s", why);
    qn_link_bye(links, from, false, reason);
    if (qn_peer_equal(links->refused, who) && links->refused_pid == hello->pid) return;
    if (links->now_ns - links->refused_ns < REFUSED_LOG_NS) return; /* many of them are no reason to fill the log */
    links->refused_ns = links->now_ns;
    links->refused = who;
    links->refused_pid = hello->pid;
    qn_log_error("refused the greeting of %s epoch %u (pid %u): %s", qn_service_name(hello->service), who.epoch,
                 hello->pid, why);
}

/* Why this greeting is not accepted; false: it is. */
static bool links_objects(const link_t *holder, const qn_hello_t *hello, char ret_why[static QN_REASON_MAX])
{
    if (links_agree(hello) == 0) {
        snprintf(ret_why, QN_REASON_MAX, "it speaks protocol %u to %u, this build %u to %u: run the same release",
                 hello->protocol_lowest ? hello->protocol_lowest : hello->protocol, hello->protocol, QN_PROTOCOL_LOWEST,
                 QN_PROTOCOL);
        return true;
    }
    if (hello->service == QN_SERVICE_NONE || hello->head.src != hello->service || hello->head.epoch == 0) {
        snprintf(ret_why, QN_REASON_MAX, "it does not say who it is");
        return true;
    }
    if (!holder || link_is_proven_dead(holder, hello)) return false;
    snprintf(ret_why, QN_REASON_MAX, "epoch %u (pid %u) of it is connected and not proven dead", holder->id.epoch,
             holder->status.pid);
    return true;
}

/* The ROUTER's side of a greeting; `link` is NULL for a new connection. */
static void links_take_hello(qn_links_t *links, link_t *link, const void *identity, size_t identity_bytes,
                             const qn_hello_t *hello)
{
    if (link && link->link.greeted && link->id.epoch == hello->head.epoch) { /* our answer was late: repeat it */
        qn_link_hello(links, link, true);
        return;
    }
    if (identity_bytes == 0 || identity_bytes > IDENTITY_BYTES_MAX) return; /* no build of ours names itself so */
    link_t fresh = {.used = true, .pidfd = -1, .identity_bytes = identity_bytes, .id.service = hello->service};
    memcpy(fresh.identity, identity, identity_bytes);
    char why[QN_REASON_MAX];
    link_t *holder = link && link->link.greeted ? link : links_holder(links, hello);
    if (links_objects(holder, hello, why)) {
        links_refuse_hello(links, &fresh, hello, why);
        return;
    }
    if (holder) links_gone(links, holder, "it is dead, and the next life greeted");
    if (!link) link = links_free_place(links);
    if (!link) {
        snprintf(why, sizeof why, "%d peers are connected already", QN_PEERS_MAX);
        links_refuse_hello(links, &fresh, hello, why);
        return;
    }
    *link = fresh;
    qn_link_hello(links, link, true);
    link_greeted(links, link, hello);
}

/* The dialling side: the answer to our greeting. */
static void link_take_answer(qn_links_t *links, link_t *link, const qn_hello_t *hello)
{
    char why[QN_REASON_MAX];
    if (!hello->reply || hello->service != link->dials) return;
    if (link->link.greeted && link->id.epoch == hello->head.epoch) return;
    if (links_objects(link->link.greeted ? link : NULL, hello, why)) {
        links_refuse_hello(links, link, hello, why);
        return;
    }
    if (link->link.greeted) links_gone(links, link, "it is dead, and the next life answered");
    link_greeted(links, link, hello);
}

/* ---- receiving ------------------------------------------------------------------------------------------------ */

/* Messages were lost: what either side believes of the other may be wrong. The link begins anew, as if each had met another
 * life of the other, and whoever was owed something asks again. */
static void link_begin_anew(qn_links_t *links, link_t *link)
{
    qn_stats_add(links->spec.stats, 0, QN_LINK_STAT_LOST, 1);
    qn_log_warning("messages of %s epoch %u were lost: the link begins anew",
                   qn_service_name((qn_service_t)link->id.service), link->id.epoch);
    qn_link_bye(links, link, false, "messages were lost: greet anew");
    links_gone(links, link, "messages were lost");
}

static void link_take_heartbeat(qn_links_t *links, link_t *link, const qn_heartbeat_t *beat)
{
    if (beat->sent > link->link.received) {
        link_begin_anew(links, link);
        return;
    }
    qn_peer_link_granted(&link->link, beat->limit);
    link->status.state = beat->state;
    link->status.uptime_ms = beat->uptime_ms;
    link->status.restarts = beat->restarts;
    link->status.memory_epoch = beat->memory_epoch;
    link->status.kernel_set = beat->kernel_set;
    link->status.foreign_code = beat->foreign_code;
    link->status.beats++;
    link_copy_text(link->status.text, sizeof link->status.text, beat->text);
}

static void link_take_data(qn_links_t *links, link_t *link, qn_message_type_t type, const qn_head_t *head)
{
    qn_stats_t *stats = links->spec.stats;
    switch (qn_peer_link_take(&link->link, head->sequence)) {
    case QN_PEER_DATA_GAP: link_begin_anew(links, link); return;
    case QN_PEER_DATA_NEXT: break;
    case QN_PEER_DATA_REPEATED:
    case QN_PEER_DATA_OVERRUN: qn_stats_add(stats, 0, QN_LINK_STAT_STALE, 1); return;
    }
    unsigned hop = QN_LINK_STAT_HOP_FRONTEND + (unsigned)head->src - QN_SERVICE_FRONTEND;
    uint64_t now_ns = qn_clock_now_ns();
    if (hop <= QN_LINK_STAT_HOP_COMPUTE && now_ns > head->sent_ns)
        qn_stats_observe_ns(stats, 0, hop, now_ns - head->sent_ns);
    links->spec.deliver(links->spec.context, link->id, type, head);
    uint64_t limit = link->link.greeted ? qn_peer_link_credit_due(&link->link) : 0;
    if (limit) {
        qn_credit_t credit = {.limit = qn_peer_link_grant(&link->link)};
        qn_link_control(links, link, QN_MESSAGE_CREDIT, &credit);
    }
}

/* A frame that fails verification is counted, logged once per life, dropped, and the peer is told. */
static void links_take_malformed(qn_links_t *links, link_t *link, qn_message_type_t type, const void *frame,
                                 size_t bytes)
{
    char why[QN_ERR_TEXT_MAX];
    snprintf(why, sizeof why, "%s", qn_err_text());
    qn_stats_add(links->spec.stats, 0, QN_LINK_STAT_MALFORMED, 1);
    if (qn_tap_listening(links->spec.tap)) qn_tap_frame(links->spec.tap, QN_TAP_DROPPED, frame, bytes);
    if (!link || !link->link.greeted) return;
    if (!link->complained)
        qn_log_warning("dropped a frame of %zu bytes from %s epoch %u: %s (more are counted, not logged)", bytes,
                       qn_service_name((qn_service_t)link->id.service), link->id.epoch, why);
    link->complained = true;
    if (type == QN_MESSAGE_REFUSAL) return; /* never answer an answer */
    qn_refusal_t refusal = {.status = 503,
                            .text = qn_text(why)}; /* it was damaged on its way: the sender checks, too */
    if (type != QN_MESSAGE_NONE) refusal.refused_type = qn_text(qn_wire_type(type)->identifier);
    qn_links_send(links, link->id, QN_MESSAGE_REFUSAL, &refusal);
}

static void links_take_stranger(qn_links_t *links, qn_message_type_t type, const void *identity, size_t identity_bytes,
                                const qn_head_t *head)
{
    qn_stats_add(links->spec.stats, 0, QN_LINK_STAT_STALE, 1);
    if (type == QN_MESSAGE_BYE || identity_bytes == 0 || identity_bytes > IDENTITY_BYTES_MAX) return;
    link_t stranger = {.identity_bytes = identity_bytes, .id = {.service = head->src}, .pidfd = -1};
    memcpy(stranger.identity, identity, identity_bytes);
    qn_link_bye(links, &stranger, true, "greet first: this life does not know you");
}

/* A Bye of another life than the one we know, or while we know none: our greeting was refused, or we are told to greet
 * anew. One that is proven alive is not given up for that. */
static void link_take_strange_bye(qn_links_t *links, link_t *link, const qn_bye_t *bye)
{
    if (link->link.greeted && link->local && !link_is_proven_dead(link, NULL)) return;
    if (link->link.greeted || bye->unknown_peer) {
        links_gone(links, link, "a newer epoch does not know us");
        return;
    }
    char reason[QN_REASON_MAX];
    link_copy_text(reason, sizeof reason, bye->reason);
    if (!link->complained)
        qn_log_warning("%s: %s (it is greeted again and again)", qn_service_name(link->dials), reason);
    link->complained = true;
}

void qn_links_take_frame(qn_links_t *links, link_t *link, const void *identity, size_t identity_bytes,
                         const void *frame, size_t bytes)
{
    qn_stats_add(links->spec.stats, 0, QN_LINK_STAT_FRAMES_RECEIVED, 1);
    qn_stats_add(links->spec.stats, 0, QN_LINK_STAT_BYTES_RECEIVED, bytes);
    qn_message_type_t type = qn_message_type_of(frame, bytes);
    qn_arena_reset(&links->decode_arena);
    qn_err_t err = type == QN_MESSAGE_NONE
                       ? qn_fail(QN_ERR_INVALID, "no message has the file identifier of this frame")
                       : qn_wire_decode(qn_wire_type(type), frame, bytes, &links->decode_arena, links->message);
    if (err != QN_OK) {
        links_take_malformed(links, link, type, frame, bytes);
        return;
    }
    const qn_head_t *head = links->message;
    if (type == QN_MESSAGE_HELLO) {
        if (link && link->dealer)
            link_take_answer(links, link, links->message);
        else
            links_take_hello(links, link, identity, identity_bytes, links->message);
        return;
    }
    if (!link || !link->link.greeted || head->epoch != link->id.epoch || head->src != link->id.service) {
        if (type == QN_MESSAGE_BYE && link && link->dealer) link_take_strange_bye(links, link, links->message);
        links_take_stranger(links, type, identity, identity_bytes, head);
        return;
    }
    if (qn_peer_link_heard(&link->link, links->now_ns))
        links->spec.peer(links->spec.context, link->id, QN_PEER_RESUMED);
    link->status.heard_ns = links->now_ns;
    link->status.alive = true;
    switch (type) {
    case QN_MESSAGE_BYE: {
        const qn_bye_t *bye = links->message;
        char reason[QN_REASON_MAX];
        link_copy_text(reason, sizeof reason, bye->reason);
        links_gone(links, link, reason);
        break;
    }
    case QN_MESSAGE_HEARTBEAT: link_take_heartbeat(links, link, links->message); break;
    case QN_MESSAGE_CREDIT: qn_peer_link_granted(&link->link, ((const qn_credit_t *)links->message)->limit); break;
    default: link_take_data(links, link, type, head); break;
    }
}

/* libzmq hands out slices of its receive buffer over ipc and tcp; readers need 8-byte alignment. */
static const void *links_align(qn_links_t *links, const void *frame, size_t bytes)
{
    if (((uintptr_t)frame & 7) == 0) return frame;
    qn_stats_add(links->spec.stats, 0, QN_LINK_STAT_UNALIGNED, 1);
    if (bytes > links->aligned_bytes) {
        free(links->aligned);
        links->aligned_bytes = (bytes + 4095) & ~(size_t)4095;
        links->aligned = aligned_alloc(64, links->aligned_bytes);
        QN_ASSERT(links->aligned != NULL);
    }
    return memcpy(links->aligned, frame, bytes);
}

static void links_skip_parts(void *socket)
{
    int more = 1;
    size_t size = sizeof more;
    while (zmq_getsockopt(socket, ZMQ_RCVMORE, &more, &size) == 0 && more) {
        zmq_msg_t part;
        zmq_msg_init(&part);
        zmq_msg_recv(&part, socket, ZMQ_DONTWAIT);
        zmq_msg_close(&part);
    }
}

/* Takes up to QN_TAKE_MAX messages; true: stopped at that bound. `link` is NULL for the ROUTER. */
static bool links_drain(qn_links_t *links, link_t *link, void *socket)
{
    int taken = 0;
    for (; taken < QN_TAKE_MAX; taken++) {
        uint8_t identity[256];
        int identity_bytes = 0;
        if (!link) {
            identity_bytes = zmq_recv(socket, identity, sizeof identity, ZMQ_DONTWAIT);
            if (identity_bytes < 0) break;
        }
        zmq_msg_t part;
        zmq_msg_init(&part);
        if (zmq_msg_recv(&part, socket, ZMQ_DONTWAIT) < 0) {
            zmq_msg_close(&part);
            break;
        }
        if (zmq_msg_more(&part)) links_skip_parts(socket);
        size_t bytes = zmq_msg_size(&part);
        const void *frame = links_align(links, zmq_msg_data(&part), bytes);
        link_t *from = link ? link : qn_links_inbound(links, identity, (size_t)identity_bytes);
        if (qn_faults_armed(&links->faults) || links->held)
            qn_links_take_faulty(links, from, identity, (size_t)identity_bytes, frame, bytes);
        else
            qn_links_take_frame(links, from, identity, (size_t)identity_bytes, frame, bytes);
        zmq_msg_close(&part);
    }
    return taken == QN_TAKE_MAX;
}

size_t qn_links_poll_items(const qn_links_t *links, zmq_pollitem_t items[QN_LINKS_POLL_MAX])
{
    size_t count = 0;
    items[count++] = (zmq_pollitem_t){.socket = qn_tap_socket(links->spec.tap), .events = ZMQ_POLLIN};
    if (links->router) items[count++] = (zmq_pollitem_t){.socket = zsock_resolve(links->router), .events = ZMQ_POLLIN};
    for (size_t i = 0; i < QN_PEERS_MAX; i++) {
        const link_t *link = &links->links[i];
        if (link->used && link->dealer)
            items[count++] = (zmq_pollitem_t){.socket = zsock_resolve(link->dealer), .events = ZMQ_POLLIN};
        if (link->used && link->pidfd >= 0) items[count++] = (zmq_pollitem_t){.fd = link->pidfd, .events = ZMQ_POLLIN};
    }
    return count;
}

static bool links_is_ready(const zmq_pollitem_t *items, size_t count, const void *socket, int fd)
{
    for (size_t i = 0; i < count; i++)
        if ((socket ? items[i].socket == socket : !items[i].socket && items[i].fd == fd) && items[i].revents)
            return true;
    return false;
}

bool qn_links_take(qn_links_t *links, const zmq_pollitem_t *items, size_t count, uint64_t now_ns)
{
    links->now_ns = now_ns;
    bool more = false;
    if (links_is_ready(items, count, qn_tap_socket(links->spec.tap), -1)) qn_tap_turn(links->spec.tap);
    /* What a peer said before it died is taken before its death is. */
    for (size_t i = 0; i < QN_PEERS_MAX; i++) {
        link_t *link = &links->links[i];
        if (link->used && link->dealer && links_is_ready(items, count, zsock_resolve(link->dealer), -1))
            more |= links_drain(links, link, zsock_resolve(link->dealer));
    }
    if (links->router && links_is_ready(items, count, zsock_resolve(links->router), -1))
        more |= links_drain(links, NULL, zsock_resolve(links->router));
    for (size_t i = 0; i < QN_PEERS_MAX && !more; i++) {
        link_t *link = &links->links[i];
        if (link->used && link->pidfd >= 0 && links_is_ready(items, count, NULL, link->pidfd))
            links_gone(links, link, QN_LINK_DEATH);
    }
    return more;
}
