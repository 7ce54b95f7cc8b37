/* What is this?      Both ends of the sniffer tap: an XPUB socket per daemon, a SUB socket per listener.
 * State owned:       the sockets; who asked for what and the daemon's numbers; the listener's last numbers.
 * Must never:        block, fail or slow down a daemon because of who listens.
 * Read next:         tools/sniff/cmd_sniff.c (the listener people use), daemon.c (who mirrors). */
#include "common/watch/tap.h"

#include <czmq.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/assert.h"
#include "common/clock.h"
#include "common/limits.h"
#include "common/paths.h"

/* How long the last frames of a stopping daemon (its Byes) may take to leave. */
#define LINGER_MS 50
/* A listener is allowed a longer queue than a daemon: it runs at its own expense. */
#define READER_QUEUE 262144
#define RECONNECT_MS 50
#define TAPS_MAX 64
#define HEARD_MAX 1024 /* directions and types of all taps */

static qn_err_t format_endpoint(const char *run_dir, const char *service, char ret_endpoint[QN_ENDPOINT_MAX])
{
    const size_t path_max = sizeof((struct sockaddr_un *)NULL)->sun_path - 1;
    int length = snprintf(ret_endpoint, QN_ENDPOINT_MAX, "ipc://%s/%s.tap", run_dir, service);
    size_t path_bytes = (size_t)length - strlen("ipc://");
    if (length < 0 || path_bytes > path_max)
        return qn_fail(QN_ERR_INVALID,
                       "the socket path %s/%s.tap is longer than the %zu bytes a Unix socket may have: "
                       "choose a shorter run directory (--run-dir)",
                       run_dir, service, path_max);
    return QN_OK;
}

/* ---- the daemon's side ---- */

static qn_err_t bind_tap(qn_tap_t *tap, const char *endpoint)
{
    tap->zsock = zsock_new(ZMQ_XPUB);
    if (!tap->zsock) return qn_fail(QN_ERR_IO, "cannot make the tap socket: %s", zmq_strerror(zmq_errno()));
    zsock_set_sndhwm(tap->zsock, QN_TAP_QUEUE);
    zsock_set_linger(tap->zsock, LINGER_MS);
    if (zsock_bind(tap->zsock, "%s", endpoint) == -1)
        return qn_fail(QN_ERR_IO, "cannot bind the tap %s: %s; is the run directory there and writable?", endpoint,
                       zmq_strerror(zmq_errno()));
    tap->path = strdup(endpoint + strlen("ipc://"));
    if (tap->path && qn_paths_make_private(tap->path) != QN_OK) return QN_ERR_IO;
    return tap->path ? QN_OK : qn_fail(QN_ERR_NO_MEMORY, "no memory for the tap %s", endpoint);
}

qn_err_t qn_tap_open(const char *run_dir, const char *service, uint8_t source, qn_tap_t **ret_tap)
{
    char endpoint[QN_ENDPOINT_MAX];
    if (strlen(service) >= QN_TAP_NAME_BYTES)
        return qn_fail(QN_ERR_INVALID, "the service name \"%s\" is longer than %d bytes", service,
                       QN_TAP_NAME_BYTES - 1);
    qn_err_t err = format_endpoint(run_dir, service, endpoint);
    if (err) return err;
    qn_tap_t *tap = calloc(1, sizeof *tap);
    if (!tap) return qn_fail(QN_ERR_NO_MEMORY, "no memory for the tap of %s", service);
    tap->header = (qn_tap_header_t){.source = source,
                                    .version = QN_TAP_VERSION,
                                    .pid = (uint32_t)getpid(),
                                    .boot_ns = qn_clock_now_ns()};
    memcpy(tap->header.service, service, strlen(service));
    err = bind_tap(tap, endpoint);
    if (err) {
        qn_tap_close(&tap);
        return err;
    }
    *ret_tap = tap;
    return QN_OK;
}

void qn_tap_close(qn_tap_t **tap)
{
    if (!*tap) return;
    zsock_t *zsock = (*tap)->zsock;
    /* libzmq leaves the path behind; no successor can own it before the daemon's lock is free. */
    if ((*tap)->path) unlink((*tap)->path);
    zsock_destroy(&zsock);
    free((*tap)->path);
    free(*tap);
    *tap = NULL;
}

void *qn_tap_socket(const qn_tap_t *tap) { return zsock_resolve(tap->zsock); }

static bool type_is_wanted(const qn_tap_t *tap, const qn_tap_type_t *type)
{
    unsigned kept = tap->topics - tap->unkept;
    for (unsigned i = 0; i < kept; i++)
        if (memcmp(tap->kept[i].text, type->topic, tap->kept[i].bytes) == 0) return true;
    return tap->unkept != 0;
}

static void add_topic(qn_tap_t *tap, const uint8_t *topic, size_t bytes)
{
    unsigned kept = tap->topics++ - tap->unkept;
    if (bytes > QN_TAP_TOPIC_BYTES || kept == QN_TAP_TOPICS_MAX) {
        tap->unkept++;
        return;
    }
    tap->kept[kept].bytes = (uint8_t)bytes;
    memcpy(tap->kept[kept].text, topic, bytes);
}

static void remove_topic(qn_tap_t *tap, const uint8_t *topic, size_t bytes)
{
    if (!tap->topics) return;
    unsigned kept = tap->topics-- - tap->unkept;
    for (unsigned i = 0; i < kept; i++) {
        if (tap->kept[i].bytes != bytes || memcmp(tap->kept[i].text, topic, bytes) != 0) continue;
        tap->kept[i] = tap->kept[kept - 1];
        return;
    }
    if (tap->unkept) tap->unkept--;
}

void qn_tap_turn(qn_tap_t *tap)
{
    /* XPUB hands out the first subscription to each topic and the end of the last one, also when a listener
     * died. */
    uint8_t change[QN_NAME_MAX];
    int bytes;
    while ((bytes = zmq_recv(qn_tap_socket(tap), change, sizeof change, ZMQ_DONTWAIT)) >= 0) {
        if (bytes > 0 && change[0] == 1) add_topic(tap, change + 1, (size_t)bytes - 1);
        if (bytes > 0 && change[0] == 0) remove_topic(tap, change + 1, (size_t)bytes - 1);
    }
    for (unsigned i = 0; i < tap->type_count; i++)
        tap->types[i].wanted = type_is_wanted(tap, &tap->types[i]);
    qn_tap_type_t spans;
    qn_tap_header_t header = tap->header;
    header.direction = QN_TAP_SPAN;
    memcpy(spans.topic, &header, QN_TAP_TOPIC_BYTES);
    tap->spans = tap->topics && type_is_wanted(tap, &spans);
}

void qn_tap_span(qn_tap_t *tap, const qn_tap_span_t *span) { qn_tap_frame(tap, QN_TAP_SPAN, span, sizeof *span); }

static qn_tap_type_t *find_type(qn_tap_t *tap, const qn_tap_header_t *header)
{
    for (unsigned i = 0; i < tap->type_count; i++)
        if (memcmp(tap->types[i].topic, header, QN_TAP_TOPIC_BYTES) == 0) return &tap->types[i];
    QN_ASSERT(tap->type_count < QN_TAP_TYPES_MAX); /* a daemon sends types of the schema; dropped ones count as one */
    qn_tap_type_t *type = &tap->types[tap->type_count++];
    memcpy(type->topic, header, QN_TAP_TOPIC_BYTES);
    type->wanted = type_is_wanted(tap, type);
    return type;
}

void qn_tap_frame(qn_tap_t *tap, qn_tap_direction_t direction, const void *frame, size_t bytes)
{
    if (!qn_tap_listening(tap)) return;
    qn_tap_header_t header = tap->header;
    header.direction = (uint8_t)direction;
    /* FlatBuffers: root offset in bytes 0..3, file identifier in bytes 4..7. */
    if (direction == QN_TAP_SENT && bytes >= 8) memcpy(header.type, (const char *)frame + 4, sizeof header.type);
    qn_tap_type_t *type = find_type(tap, &header);
    if (!type->wanted) return;
    /* Numbered even when it cannot be sent: the gap tells the listener. */
    header.number = ++type->number;
    zmq_msg_t message;
    if (bytes > QN_FRAME_BYTES_MAX || zmq_msg_init_size(&message, sizeof header + bytes)) return;
    header.frame_bytes = (uint32_t)bytes;
    header.now_ns = qn_clock_now_ns();
    char *data = zmq_msg_data(&message);
    memcpy(data, &header, sizeof header);
    if (bytes) memcpy(data + sizeof header, frame, bytes);
    /* XPUB leaves out the listeners whose queue is full; it does not wait and does not report them. */
    if (zmq_msg_send(&message, qn_tap_socket(tap), ZMQ_DONTWAIT) == -1) zmq_msg_close(&message);
}

/* ---- the listener's side ---- */

/* What was last heard from one tap. */
typedef struct {
    char service[QN_TAP_NAME_BYTES];
    uint64_t boot_ns;
} heard_t;

/* The same of one direction and type. */
typedef struct {
    const heard_t *tap;
    uint8_t topic[QN_TAP_TOPIC_BYTES];
    uint64_t boot_ns, number;
} heard_type_t;

struct qn_tap_reader {
    zsock_t *zsock; /* owned; SUB */
    void *buffer;   /* owned; the message last taken, aligned */
    size_t capacity;
    heard_t heard[TAPS_MAX];
    size_t heard_count;
    heard_type_t types[HEARD_MAX];
    size_t type_count;
    uint64_t foreign;
};

qn_err_t qn_tap_reader_open(const char *run_dir, const char *const *services, size_t service_count,
                            qn_tap_reader_t **ret_reader)
{
    QN_ASSERT(service_count <= TAPS_MAX);
    qn_tap_reader_t *reader = calloc(1, sizeof *reader);
    if (!reader) return qn_fail(QN_ERR_NO_MEMORY, "no memory to listen to the taps");
    qn_err_t err = QN_OK;
    reader->zsock = zsock_new(ZMQ_SUB);
    if (!reader->zsock) err = qn_fail(QN_ERR_IO, "cannot make the listening socket: %s", zmq_strerror(zmq_errno()));
    if (!err) {
        zsock_set_rcvhwm(reader->zsock, READER_QUEUE);
        zsock_set_reconnect_ivl(reader->zsock, RECONNECT_MS);
    }
    for (size_t i = 0; i < service_count && !err; i++) {
        char endpoint[QN_ENDPOINT_MAX];
        err = format_endpoint(run_dir, services[i], endpoint);
        if (!err && zsock_connect(reader->zsock, "%s", endpoint))
            err = qn_fail(QN_ERR_IO, "cannot listen to %s: %s", endpoint, zmq_strerror(zmq_errno()));
    }
    if (err)
        qn_tap_reader_close(&reader);
    else
        *ret_reader = reader;
    return err;
}

static void subscribe(qn_tap_reader_t *reader, const void *topic, size_t bytes)
{
    int failed = zmq_setsockopt(qn_tap_reader_socket(reader), ZMQ_SUBSCRIBE, topic, bytes);
    QN_ASSERT(failed == 0);
}

void qn_tap_reader_want(qn_tap_reader_t *reader, uint8_t source, const char type[4])
{
    qn_tap_header_t header = {.direction = QN_TAP_SENT, .source = source, .version = QN_TAP_VERSION};
    memcpy(header.type, type, sizeof header.type);
    subscribe(reader, &header, QN_TAP_TOPIC_BYTES);
}

void qn_tap_reader_want_dropped(qn_tap_reader_t *reader)
{
    uint8_t direction = QN_TAP_DROPPED;
    subscribe(reader, &direction, sizeof direction);
}

void qn_tap_reader_want_spans(qn_tap_reader_t *reader)
{
    uint8_t direction = QN_TAP_SPAN;
    subscribe(reader, &direction, sizeof direction);
}

void qn_tap_reader_want_all(qn_tap_reader_t *reader) { subscribe(reader, "", 0); }

void qn_tap_reader_close(qn_tap_reader_t **reader)
{
    if (!*reader) return;
    zsock_destroy(&(*reader)->zsock);
    free((*reader)->buffer);
    free(*reader);
    *reader = NULL;
}

void *qn_tap_reader_socket(const qn_tap_reader_t *reader) { return zsock_resolve(reader->zsock); }

uint64_t qn_tap_reader_foreign(const qn_tap_reader_t *reader) { return reader->foreign; }

/* Copies the message into the aligned buffer; false when it breaks the format. */
static bool reader_keep(qn_tap_reader_t *reader, const void *data, size_t bytes)
{
    qn_tap_header_t header;
    if (bytes < sizeof header || bytes > sizeof header + QN_FRAME_BYTES_MAX) return false;
    memcpy(&header, data, sizeof header);
    if (header.version != QN_TAP_VERSION || header.frame_bytes != bytes - sizeof header ||
        !memchr(header.service, 0, sizeof header.service))
        return false;
    if (bytes > reader->capacity) {
        /* Grows only, to at most QN_FRAME_BYTES_MAX and a header. */
        size_t capacity = (bytes + 4095) & ~(size_t)4095;
        void *buffer = aligned_alloc(64, capacity);
        if (!buffer) return false;
        free(reader->buffer);
        reader->buffer = buffer;
        reader->capacity = capacity;
    }
    memcpy(reader->buffer, data, bytes);
    return true;
}

/* Frames before the first one heard were not for us. NULL: more taps than a reader connects to. */
static heard_t *find_heard(qn_tap_reader_t *reader, const qn_tap_header_t *header)
{
    for (size_t i = 0; i < reader->heard_count; i++)
        if (!strcmp(reader->heard[i].service, header->service)) return &reader->heard[i];
    if (reader->heard_count == TAPS_MAX) return NULL;
    heard_t *heard = &reader->heard[reader->heard_count++];
    memcpy(heard->service, header->service, sizeof heard->service);
    heard->boot_ns = header->boot_ns;
    return heard;
}

static heard_type_t *find_heard_type(qn_tap_reader_t *reader, const heard_t *tap, const qn_tap_header_t *header)
{
    for (size_t i = 0; i < reader->type_count; i++)
        if (reader->types[i].tap == tap && !memcmp(reader->types[i].topic, header, QN_TAP_TOPIC_BYTES))
            return &reader->types[i];
    if (reader->type_count == HEARD_MAX) return NULL;
    heard_type_t *type = &reader->types[reader->type_count++];
    type->tap = tap;
    memcpy(type->topic, header, QN_TAP_TOPIC_BYTES);
    return type;
}

/* Fills in what the number of this frame says about the ones before it. */
static void reader_compare(qn_tap_reader_t *reader, qn_tap_message_t *message)
{
    const qn_tap_header_t *header = message->header;
    message->missed = 0;
    message->new_boot = false;
    heard_t *heard = find_heard(reader, header);
    heard_type_t *type = heard ? find_heard_type(reader, heard, header) : NULL;
    if (!type) return;
    message->new_boot = heard->boot_ns != header->boot_ns;
    heard->boot_ns = header->boot_ns;
    if (type->boot_ns == header->boot_ns && header->number > type->number + 1)
        message->missed = header->number - type->number - 1;
    type->boot_ns = header->boot_ns;
    type->number = header->number;
}

bool qn_tap_reader_take(qn_tap_reader_t *reader, qn_tap_message_t *ret_message)
{
    zmq_msg_t incoming;
    zmq_msg_init(&incoming);
    bool kept = false;
    while (!kept && zmq_msg_recv(&incoming, qn_tap_reader_socket(reader), ZMQ_DONTWAIT) >= 0) {
        kept = reader_keep(reader, zmq_msg_data(&incoming), zmq_msg_size(&incoming));
        reader->foreign += !kept;
    }
    zmq_msg_close(&incoming);
    if (!kept) return false;
    ret_message->header = reader->buffer;
    ret_message->frame = (const char *)reader->buffer + sizeof(qn_tap_header_t);
    ret_message->bytes = ret_message->header->frame_bytes;
    reader_compare(reader, ret_message);
    return true;
}
