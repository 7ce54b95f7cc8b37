/* What is this?      Sockets and peers of one daemon: opening, sending, what time demands.
 * State owned:       the ROUTER, a DEALER per dialled service, a table of peers with their outboxes.
 * Must never:        block; free anything because a peer is silent.
 * Read next:         links_receive.c (frames in), peer.h (the protocol's rules), zmq_socket(3) on ROUTER. */
#include "common/daemon/links/links_internal.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/assert.h"
#include "common/build.h"
#include "common/clock.h"
#include "common/daemon/links/endpoint.h"
#include "common/limits.h"
#include "common/paths.h"
#include "common/watch/log.h"
#include "common/wire/wire.h"

#define RECONNECT_MS 10      /* a restarted peer is back within two of these */
#define LINGER_MS 500        /* what a BYE gets on the way out; spent only when the peer does not read */
#define HELLO_NS 10000000ull /* between greetings while the peer does not answer */
#define DIALS_MAX 5

const qn_stat_spec_t qn_link_stats[QN_LINK_STAT_COUNT] = {
    [QN_LINK_STAT_FRAMES_SENT] = {"link_frames_sent", QN_STAT_COUNTER, "frames", "Frames sent, link control included"},
    [QN_LINK_STAT_FRAMES_RECEIVED] = {"link_frames_received", QN_STAT_COUNTER, "frames", "Frames received"},
    [QN_LINK_STAT_BYTES_SENT] = {"link_bytes_sent", QN_STAT_COUNTER, "bytes", "Bytes of frames sent"},
    [QN_LINK_STAT_BYTES_RECEIVED] = {"link_bytes_received", QN_STAT_COUNTER, "bytes", "Bytes of frames received"},
    [QN_LINK_STAT_MALFORMED] = {"link_frames_malformed", QN_STAT_COUNTER, "frames", "Frames that failed verification"},
    [QN_LINK_STAT_STALE] = {"link_frames_stale", QN_STAT_COUNTER, "frames",
                            "Frames of an unknown peer or an old epoch"},
    [QN_LINK_STAT_LOST] = {"link_frames_lost", QN_STAT_COUNTER, "frames", "Gaps in the numbering of a link"},
    [QN_LINK_STAT_UNALIGNED] = {"link_frames_unaligned", QN_STAT_COUNTER, "frames",
                                "Frames copied because not 8-byte aligned"},
    [QN_LINK_STAT_HELD] = {"link_frames_held", QN_STAT_COUNTER, "frames",
                           "Frames that waited for credit or socket room"},
    [QN_LINK_STAT_REFUSED_FULL] = {"link_sends_full", QN_STAT_COUNTER, "frames",
                                   "Sends refused because the outbox was full"},
    [QN_LINK_STAT_HOP_FRONTEND] = {"hop_from_frontend", QN_STAT_HISTOGRAM_NS, "seconds",
                                   "Sent by frontend to handled here"},
    [QN_LINK_STAT_HOP_TOKENIZER] = {"hop_from_tokenizer", QN_STAT_HISTOGRAM_NS, "seconds",
                                    "Sent by tokenizer to handled here"},
    [QN_LINK_STAT_HOP_SCHEDULER] = {"hop_from_scheduler", QN_STAT_HISTOGRAM_NS, "seconds",
                                    "Sent by scheduler to handled here"},
    [QN_LINK_STAT_HOP_MEMORY] = {"hop_from_memory", QN_STAT_HISTOGRAM_NS, "seconds", "Sent by memory to handled here"},
    [QN_LINK_STAT_HOP_COMPUTE] = {"hop_from_compute", QN_STAT_HISTOGRAM_NS, "seconds",
                                  "Sent by compute to handled here"},
};

/* ---- setup ---------------------------------------------------------------------------------------------------- */

static void setup_zmq(void)
{
    zsys_handler_set(NULL);
    void *context = zsys_init();
    QN_ASSERT(context != NULL);
    if (zmq_ctx_set(context, 10 /* ZMQ_ZERO_COPY_RECV, declared for draft builds only */, 0) != 0)
        qn_log_notice("this libzmq cannot turn zero-copy receive off; unaligned frames are copied");
}

void qn_links_setup_zmq(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, setup_zmq);
}

/* A pid means something only under the same kernel and in the same pid namespace. */
void qn_links_host(char ret_host[QN_NAME_MAX])
{
    char boot[40] = "";
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (file) {
        if (fscanf(file, "%36s", boot) != 1) boot[0] = '\0';
        fclose(file);
    }
    struct stat space;
    unsigned long inode = stat("/proc/self/ns/pid", &space) == 0 ? (unsigned long)space.st_ino : 0;
    snprintf(ret_host, QN_NAME_MAX, "%s.%lu", boot, inode);
}

static void links_limit_socket(zsock_t *socket)
{
    int queue = QN_LINK_WINDOW + 64; /* a full window and the control frames beside it */
    zsock_set_sndhwm(socket, queue);
    zsock_set_rcvhwm(socket, queue);
    zsock_set_linger(socket, LINGER_MS);
    zsock_set_maxmsgsize(socket, QN_FRAME_BYTES_MAX);
}

/* Said by both ends: either may be the one whose operator looks. */
static void links_warn_of_open(const char *endpoint)
{
    if (!qn_endpoint_is_open(endpoint)) return;
    qn_log_warning("%s: messages there are neither authenticated nor encrypted, and whoever reaches it can pose as a "
                   "service; use it in a network of your own only, or 127.0.0.1 behind a tunnel",
                   endpoint);
}

static qn_err_t links_bind(qn_links_t *links)
{
    const qn_links_spec_t *spec = &links->spec;
    char endpoint[QN_ENDPOINT_MAX];
    qn_err_t err = qn_endpoint_outer(spec->config, spec->run_dir, spec->service, endpoint);
    if (err != QN_OK) return err;
    links->router = zsock_new(ZMQ_ROUTER);
    if (!links->router) return qn_fail(QN_ERR_IO, "cannot make a ROUTER socket: %s", zmq_strerror(errno));
    zsock_set_router_mandatory(links->router, 1);
    links_limit_socket(links->router);
    if (zsock_bind(links->router, "%s", endpoint) < 0)
        return qn_fail(QN_ERR_IO, "cannot listen on %s: %s", endpoint, zmq_strerror(errno));
    links_warn_of_open(endpoint);
    if (strncmp(endpoint, "ipc://", 6) == 0) err = qn_paths_make_private(endpoint + 6);
    if (err != QN_OK || spec->composed_services == 0) return err;
    err = qn_endpoint_inner(spec->run_dir, spec->service, endpoint);
    if (err == QN_OK && zsock_bind(links->router, "%s", endpoint) < 0)
        err = qn_fail(QN_ERR_IO, "cannot listen on %s: %s", endpoint, zmq_strerror(errno));
    return err;
}

static qn_err_t link_connect(qn_links_t *links, link_t *link)
{
    const qn_links_spec_t *spec = &links->spec;
    char endpoint[QN_ENDPOINT_MAX], identity[IDENTITY_BYTES_MAX];
    qn_err_t err = link->inner ? qn_endpoint_inner(spec->run_dir, link->dials, endpoint)
                               : qn_endpoint_outer(spec->config, spec->run_dir, link->dials, endpoint);
    if (err != QN_OK) return err;
    zsock_destroy(&link->dealer);
    link->dealer = zsock_new(ZMQ_DEALER);
    if (!link->dealer) return qn_fail(QN_ERR_IO, "cannot make a DEALER socket: %s", zmq_strerror(errno));
    /* One identity per connection: a ROUTER that still holds the old one cannot confuse the two. */
    snprintf(identity, sizeof identity, "%s.%u.%d.%u", qn_service_name(spec->service), spec->epoch, (int)getpid(),
             link->connects++);
    zsock_set_identity(link->dealer, identity);
    zsock_set_immediate(link->dealer, 1); /* nothing is queued for a peer that is not there */
    zsock_set_reconnect_ivl(link->dealer, RECONNECT_MS);
    links_limit_socket(link->dealer);
    if (link->connects == 1) links_warn_of_open(endpoint);
    snprintf(link->status.transport, sizeof link->status.transport, "%.*s", (int)strcspn(endpoint, ":"), endpoint);
    if (zsock_connect(link->dealer, "%s", endpoint) != 0)
        return qn_fail(QN_ERR_IO, "cannot dial %s: %s", endpoint, zmq_strerror(errno));
    return QN_OK;
}

static qn_err_t links_dial(qn_links_t *links, link_t *link, qn_service_t service)
{
    *link =
        (link_t){.used = true, .dials = service, .pidfd = -1, .inner = links->spec.composed_services & (1u << service)};
    return link_connect(links, link);
}

qn_err_t qn_links_open(const qn_links_spec_t *spec, qn_links_t **ret_links)
{
    qn_links_setup_zmq();
    qn_links_t *links = calloc(1, sizeof *links);
    size_t message_bytes = 0;
    for (int type = 0; type < QN_MESSAGE_COUNT; type++) {
        size_t bytes = qn_message_struct_bytes((qn_message_type_t)type);
        if (bytes > message_bytes) message_bytes = bytes;
    }
    if (links) links->message = aligned_alloc(64, (message_bytes + 63) & ~(size_t)63);
    if (!links || !links->message) {
        free(links);
        return qn_fail(QN_ERR_NO_MEMORY, "no memory for the links");
    }
    links->spec = *spec;
    links->now_ns = spec->started_ns;
    qn_arena_init(&links->encode_arena, 0);
    qn_arena_init(&links->decode_arena, 0);
    qn_links_host(links->host);
    qn_err_t err = qn_faults_open(spec->run_dir, &links->faults);
    if (!err && spec->service != QN_SERVICE_FRONTEND) err = links_bind(links);
    if (!err && qn_faults_armed(&links->faults)) qn_log_warning("faults are armed: see quintet status, DELETE /faults");
    for (size_t i = 0; err == QN_OK && spec->dials[i] != QN_SERVICE_NONE; i++) {
        QN_ASSERT(i < DIALS_MAX);
        err = links_dial(links, &links->links[i], spec->dials[i]);
    }
    if (err != QN_OK) {
        qn_links_close(&links, "start refused");
        return err;
    }
    *ret_links = links;
    return QN_OK;
}

/* ---- sending -------------------------------------------------------------------------------------------------- */

/* Hands one frame to the socket; false: not now. */
static bool link_transmit(qn_links_t *links, const link_t *link, const void *frame, size_t bytes)
{
    if (link->dealer) return zmq_send(zsock_resolve(link->dealer), frame, bytes, ZMQ_DONTWAIT) >= 0;
    void *router = zsock_resolve(links->router);
    if (zmq_send(router, link->identity, link->identity_bytes, ZMQ_DONTWAIT | ZMQ_SNDMORE) < 0) return false;
    return zmq_send(router, frame, bytes, ZMQ_DONTWAIT) >= 0;
}

static void links_count_sent(qn_links_t *links, const void *frame, size_t bytes)
{
    qn_stats_add(links->spec.stats, 0, QN_LINK_STAT_FRAMES_SENT, 1);
    qn_stats_add(links->spec.stats, 0, QN_LINK_STAT_BYTES_SENT, bytes);
    if (qn_tap_listening(links->spec.tap)) qn_tap_frame(links->spec.tap, QN_TAP_SENT, frame, bytes);
}

static void link_flush(qn_links_t *links, link_t *link)
{
    for (const qn_outbox_frame_t *frame; (frame = qn_outbox_first(&link->outbox)); qn_outbox_pop(&link->outbox)) {
        if (!qn_peer_link_may_send(&link->link, frame->number)) return;
        if (!link_transmit(links, link, frame->data, frame->bytes)) return;
        links_count_sent(links, frame->data, frame->bytes);
    }
}

/* NULL: the message breaks its schema (a length, a range, the frame's size): nothing can be sent, and the log says what.
 * Whoever sends bounds what it sends where that is accepted; this is what is left when a bound was forgotten, and it
 * costs one message, not the daemon. */
static const uint8_t *links_encode(qn_links_t *links, const link_t *link, qn_message_type_t type, void *message,
                                   uint64_t number, size_t *ret_bytes)
{
    qn_head_t *head = message; /* field 0 of every message */
    head->schema = link->protocol ? link->protocol : QN_PROTOCOL;
    head->src = links->spec.service;
    head->dst = link->dials != QN_SERVICE_NONE ? link->dials : (qn_service_t)link->id.service;
    head->epoch = links->spec.epoch;
    head->sequence = number;
    head->sent_ns = qn_clock_now_ns();
    const uint8_t *frame;
    qn_arena_reset(&links->encode_arena);
    qn_err_t err = qn_wire_encode(qn_wire_type(type), message, &links->encode_arena, &frame, ret_bytes);
    if (err == QN_OK) return frame;
    qn_log_error("%s for %s was not sent: %s", qn_message_name(type), qn_service_name(head->dst), qn_err_text());
    return NULL;
}

bool qn_link_control(qn_links_t *links, link_t *link, qn_message_type_t type, void *message)
{
    size_t bytes;
    const uint8_t *frame = links_encode(links, link, type, message, 0, &bytes);
    if (!frame || !link_transmit(links, link, frame, bytes)) return false;
    links_count_sent(links, frame, bytes);
    return true;
}

bool qn_link_hello(qn_links_t *links, link_t *link, bool reply)
{
    qn_hello_t hello = {
        .protocol = QN_PROTOCOL,
        .protocol_lowest = QN_PROTOCOL_LOWEST,
        .service = links->spec.service,
        .reply = reply,
        .state = links->state,
        .pid = (uint32_t)getpid(),
        .window = QN_LINK_WINDOW,
        .host = qn_text(links->host),
        .build = qn_text(qn_build_id()),
    };
    return qn_link_control(links, link, QN_MESSAGE_HELLO, &hello);
}

static void link_beat(qn_links_t *links, link_t *link)
{
    qn_heartbeat_t beat = {
        .state = links->state,
        .uptime_ms = (links->now_ns - links->spec.started_ns) / 1000000,
        .restarts = links->spec.epoch - 1,
        .limit = qn_peer_link_grant(&link->link),
        .text = qn_text(links->text),
        .memory_epoch = links->memory_epoch,
        .kernel_set = links->kernel_set,
        .foreign_code = links->foreign_code,
        .sent = link->link.numbered - link->outbox.count,
    };
    qn_link_control(links, link, QN_MESSAGE_HEARTBEAT, &beat);
    link->link.beat_ns = links->now_ns;
}

void qn_link_bye(qn_links_t *links, link_t *link, bool unknown_peer, const char *reason)
{
    qn_bye_t bye = {.unknown_peer = unknown_peer, .reason = qn_text(reason)};
    qn_link_control(links, link, QN_MESSAGE_BYE, &bye);
}

static link_t *links_find(const qn_links_t *links, qn_peer_t peer)
{
    for (size_t i = 0; i < QN_PEERS_MAX; i++) {
        const link_t *link = &links->links[i];
        if (link->used && link->link.greeted && qn_peer_equal(link->id, peer)) return (link_t *)link;
    }
    return NULL;
}

qn_send_outcome_t qn_links_send(qn_links_t *links, qn_peer_t to, qn_message_type_t type, const void *message)
{
    link_t *link = links_find(links, to);
    if (!link) return QN_SEND_GONE;
    if (link->outbox.count == QN_OUTBOX_MAX) {
        qn_stats_add(links->spec.stats, 0, QN_LINK_STAT_REFUSED_FULL, 1);
        return QN_SEND_FULL;
    }
    union {
        qn_head_t head;
        uint8_t bytes[1024];
    } copy;
    size_t struct_bytes = qn_message_struct_bytes(type), bytes;
    QN_ASSERT(struct_bytes > 0 && struct_bytes <= sizeof copy);
    memcpy(&copy, message, struct_bytes);
    const uint8_t *frame = links_encode(links, link, type, &copy, link->link.numbered + 1, &bytes);
    if (!frame) return QN_SEND_INVALID;
    uint64_t number = qn_peer_link_next_number(&link->link); /* only now: a number without a frame would be a gap */
    bool now = link->outbox.count == 0 && qn_peer_link_may_send(&link->link, number);
    if (now && link_transmit(links, link, frame, bytes)) {
        links_count_sent(links, frame, bytes);
    } else {
        qn_stats_add(links->spec.stats, 0, QN_LINK_STAT_HELD, 1);
        qn_outbox_push(&link->outbox, number, frame, bytes);
    }
    return QN_SEND_OK;
}

/* ---- time ----------------------------------------------------------------------------------------------------- */

static uint64_t link_turn(qn_links_t *links, link_t *link)
{
    if (!link->link.greeted) {
        if (link->dials == QN_SERVICE_NONE) return UINT64_MAX;
        if (link->redial) { /* inproc connections do not come back by themselves */
            link->redial = false;
            if (link_connect(links, link) != QN_OK) qn_log_error("%s", qn_err_text());
        }
        if (links->now_ns >= link->hello_due_ns) {
            qn_link_hello(links, link, false);
            link->hello_due_ns = links->now_ns + HELLO_NS;
        }
        return link->hello_due_ns;
    }
    if (qn_peer_link_beat_due(&link->link, links->now_ns)) link_beat(links, link);
    if (qn_peer_link_falls_silent(&link->link, links->now_ns)) {
        link->status.alive = false;
        qn_log_warning("%s epoch %u is silent for %u heartbeats; nothing is freed for that",
                       qn_service_name((qn_service_t)link->id.service), link->id.epoch, QN_LIVENESS);
        links->spec.peer(links->spec.context, link->id, QN_PEER_SUSPECT);
    }
    link_flush(links, link);
    /* Socket room and reconnects raise no event here, so held frames are tried again soon. */
    uint64_t due = link->link.beat_ns + QN_HEARTBEAT_NS;
    bool ready = link->outbox.count && qn_peer_link_may_send(&link->link, qn_outbox_first(&link->outbox)->number);
    return ready && due > links->now_ns + 1000000 ? links->now_ns + 1000000 : due;
}

uint64_t qn_links_turn(qn_links_t *links, uint64_t now_ns)
{
    links->now_ns = now_ns;
    uint64_t due_ns = links->held ? qn_links_release_held(links) : UINT64_MAX;
    for (size_t i = 0; i < QN_PEERS_MAX; i++) {
        if (!links->links[i].used) continue;
        uint64_t link_due_ns = link_turn(links, &links->links[i]);
        if (link_due_ns < due_ns) due_ns = link_due_ns;
    }
    return due_ns;
}

static void beat_at_once(qn_links_t *links)
{
    for (size_t i = 0; i < QN_PEERS_MAX; i++)
        links->links[i].link.beat_ns = 0;
}

void qn_links_set_state(qn_links_t *links, qn_state_t state, const char *text)
{
    links->state = state;
    snprintf(links->text, sizeof links->text, "%s", text ? text : "");
    beat_at_once(links);
}

void qn_links_set_memory_epoch(qn_links_t *links, uint32_t epoch)
{
    links->memory_epoch = epoch;
    beat_at_once(links);
}

void qn_links_set_kernel_set(qn_links_t *links, uint64_t kernel_set, bool foreign_code)
{
    links->kernel_set = kernel_set;
    links->foreign_code = foreign_code;
    beat_at_once(links);
}

/* ---- what is known -------------------------------------------------------------------------------------------- */

qn_faults_t *qn_links_faults(qn_links_t *links) { return &links->faults; }

qn_peer_t qn_links_dialled(const qn_links_t *links, qn_service_t service)
{
    for (size_t i = 0; i < DIALS_MAX; i++)
        if (links->links[i].used && links->links[i].dials == service) return links->links[i].id;
    return (qn_peer_t){0};
}

/* A process that died since the last turn: whoever asks now is told, though the event comes with the next turn. */
static bool link_has_died(const link_t *link)
{
    struct pollfd death = {.fd = link->pidfd, .events = POLLIN};
    return link->pidfd >= 0 && poll(&death, 1, 0) == 1;
}

void qn_links_status(const qn_links_t *links, qn_service_t service, qn_peer_status_t *ret_status)
{
    const link_t *found = NULL;
    for (size_t i = 0; i < QN_PEERS_MAX; i++) {
        const link_t *link = &links->links[i];
        if (link->used && (link->dials == service || (link->dials == QN_SERVICE_NONE && link->id.service == service)))
            if (!found || link->link.greeted) found = link;
    }
    *ret_status = found ? found->status : (qn_peer_status_t){0};
    if (!found || !found->link.greeted) return;
    if (link_has_died(found)) {
        ret_status->alive = false;
        ret_status->pid = 0;
        snprintf(ret_status->text, sizeof ret_status->text, "%s", QN_LINK_DEATH);
    } else if (found->link.suspect) {
        snprintf(ret_status->text, sizeof ret_status->text, "silent for %.1f s",
                 (double)(links->now_ns - found->link.heard_ns) / 1e9);
    }
}

void qn_links_self_status(const qn_links_t *links, qn_peer_status_t *ret_status)
{
    const qn_links_spec_t *spec = &links->spec;
    *ret_status = (qn_peer_status_t){
        .peer = {.epoch = spec->epoch, .service = spec->service},
        .state = links->state,
        .alive = true,
        .uptime_ms = (links->now_ns - spec->started_ns) / 1000000,
        .heard_ns = links->now_ns,
        .pid = (uint32_t)getpid(),
        .restarts = spec->epoch - 1,
    };
    snprintf(ret_status->build, sizeof ret_status->build, "%s", qn_build_id());
    snprintf(ret_status->text, sizeof ret_status->text, "%s", links->text);
    snprintf(ret_status->transport, sizeof ret_status->transport, "%s", spec->composed_services ? "inproc" : "ipc");
}

void qn_links_close(qn_links_t **links_ref, const char *reason)
{
    qn_links_t *links = *links_ref;
    if (!links) return;
    /* Closing is asynchronous in libzmq; unbinding is not, and the next life in this process needs the name. Before
     * the farewells: a peer dials again as soon as it reads one, and inproc connects for good to whoever has the name. */
    char endpoint[QN_ENDPOINT_MAX];
    if (links->router && links->spec.composed_services &&
        qn_endpoint_inner(links->spec.run_dir, links->spec.service, endpoint) == QN_OK)
        zsock_unbind(links->router, "%s", endpoint);
    for (size_t i = 0; i < QN_PEERS_MAX; i++) {
        link_t *link = &links->links[i];
        if (!link->used) continue;
        if (link->link.greeted) qn_link_bye(links, link, false, reason);
        qn_outbox_clear(&link->outbox);
        if (link->pidfd >= 0) close(link->pidfd);
        zsock_destroy(&link->dealer);
    }
    zsock_destroy(&links->router);
    qn_links_drop_held(links, NULL);
    qn_faults_close(&links->faults);
    qn_arena_fini(&links->encode_arena);
    qn_arena_fini(&links->decode_arena);
    free(links->message);
    free(links->aligned);
    free(links);
    *links_ref = NULL;
}
