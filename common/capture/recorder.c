/* What is this?      A listener to all taps that writes a capture.
 * State owned:       one run's reader, reorder window and file.
 * Must never:        slow down a daemon; write more than it was told.
 * Read next:         common/watch/tap.h, capture_file.h, trace.h. */
#include "common/capture/recorder.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <zmq.h>

#include "common/capture/capture_file.h"
#include "common/capture/capture_order.h"
#include "common/clock.h"
#include "common/daemon/links/endpoint.h"
#include "common/paths.h"
#include "common/watch/tap.h"

#define WINDOW_NS 1000000000ull /* as quintet sniff -w */
#define TAKE_MAX 1024
#define POLL_MS 100

typedef struct {
    const qn_recorder_spec_t *spec;
    qn_tap_reader_t *reader;
    qn_capture_t *capture;
    qn_capture_order_t order;
    qn_recorder_figures_t figures;
    unsigned heard; /* bits of services */
    bool told;      /* spec->listening was called */
    qn_err_t err;
} run_t;

/* ---- names ---- */

qn_err_t qn_recorder_path(const char *run_dir, const char *name, const char *suffix, char *ret_path, size_t room)
{
    size_t length = strlen(name);
    bool good = length > 0 && length < QN_NAME_MAX && name[0] != '.';
    for (size_t i = 0; good && i < length; i++)
        good = isalnum((unsigned char)name[i]) || strchr("._-", name[i]);
    if (!good)
        return qn_fail(
            QN_ERR_INVALID,
            "\"%.64s\" is no name of a recording: 1 to %d letters, digits, '.', '_' or '-', and no dot in front", name,
            QN_NAME_MAX - 1);
    int written = snprintf(ret_path, room, "%s/recordings", run_dir);
    if (written < 0 || (size_t)written >= room) return qn_fail(QN_ERR_LIMIT, "the path of %s is too long", run_dir);
    if (mkdir(ret_path, 0700) != 0 && errno != EEXIST)
        return qn_fail(QN_ERR_IO, "cannot make the folder %s: %s", ret_path, strerror(errno));
    int all = snprintf(ret_path, room, "%s/recordings/%s%s", run_dir, name, suffix);
    if (all < 0 || (size_t)all >= room)
        return qn_fail(QN_ERR_LIMIT, "the path of a recording in %s is too long", run_dir);
    return QN_OK;
}

/* ---- what is recorded ---- */

static bool is_chatter(qn_message_type_t type)
{
    return type == QN_MESSAGE_HELLO || type == QN_MESSAGE_HEARTBEAT || type == QN_MESSAGE_CREDIT;
}

/* Heartbeats are heard and not kept: they tell that a daemon's tap knows of us. */
static void subscribe(qn_tap_reader_t *reader)
{
    for (int source = QN_SERVICE_FRONTEND; source <= QN_SERVICE_COMPUTE; source++)
        for (int type = 1; type < QN_MESSAGE_COUNT; type++) {
            bool wanted = type == QN_MESSAGE_HEARTBEAT || !is_chatter((qn_message_type_t)type);
            if (wanted) qn_tap_reader_want(reader, (uint8_t)source, qn_wire_type((qn_message_type_t)type)->identifier);
        }
    qn_tap_reader_want_spans(reader);
}

/* Bits of the daemons whose taps are there. */
static unsigned running_services(const char *run_dir)
{
    unsigned services = 0;
    for (size_t i = 0; i < QN_DAEMON_COUNT; i++) {
        char path[QN_PATH_MAX + 64];
        struct stat found;
        snprintf(path, sizeof path, "%s/%s.tap", run_dir, qn_daemon_names()[i]);
        if (stat(path, &found) == 0) services |= 1u << (QN_SERVICE_FRONTEND + i);
    }
    return services;
}

static void look_who_is_heard(run_t *run, uint64_t now_ns)
{
    if (run->told) return;
    unsigned running = running_services(run->spec->run_dir);
    bool all = (run->heard & running) == running && running;
    if (!all && now_ns < run->figures.begin_ns + QN_RECORDER_LISTEN_NS) return;
    run->told = true;
    if (run->spec->listening) run->spec->listening(run->spec->context, run->heard);
}

/* Takes the message. */
static void keep(run_t *run, qn_capture_message_t *message)
{
    size_t bytes = message->bytes + 80; /* as it lies in the file */
    if (run->figures.bytes + bytes > run->spec->bytes_max) run->figures.end = QN_RECORDER_FULL;
    if (!run->err && run->figures.end != QN_RECORDER_FULL) {
        run->err = qn_capture_write(run->capture, message);
        run->figures.bytes += bytes;
        run->figures.messages += message->header.direction == QN_TAP_SENT;
    }
    free(message);
}

static void keep_due(run_t *run, uint64_t now_ns)
{
    qn_capture_message_t *message;
    while ((message = qn_capture_order_take(&run->order, now_ns)) != NULL)
        keep(run, message);
    if (!run->err) run->err = qn_capture_flush(run->capture);
}

static void take_arrived(run_t *run)
{
    qn_tap_message_t arrived;
    for (int i = 0; i < TAKE_MAX && qn_capture_order_due_ns(&run->order) && qn_tap_reader_take(run->reader, &arrived);
         i++) {
        if (arrived.header->source < 32) run->heard |= 1u << arrived.header->source;
        run->figures.missed += arrived.missed;
        if (is_chatter(qn_message_type_of(arrived.frame, arrived.bytes)) && arrived.header->direction == QN_TAP_SENT)
            continue;
        qn_capture_message_t *message =
            qn_capture_message_new(arrived.header, arrived.frame, arrived.bytes, arrived.missed);
        if (message)
            qn_capture_order_put(&run->order, message);
        else
            run->figures.missed++;
    }
}

/* ---- one run ---- */

static void follow(run_t *run)
{
    zmq_pollitem_t items[] = {
        {.socket = qn_tap_reader_socket(run->reader), .events = ZMQ_POLLIN},
        {.fd = run->spec->stop_fd, .events = ZMQ_POLLIN},
    };
    uint64_t end_ns = run->figures.begin_ns + run->spec->time_ns;
    for (;;) {
        if (zmq_poll(items, 2, POLL_MS) == -1) {
            if (zmq_errno() == EINTR) continue;
            run->err = qn_fail(QN_ERR_IO, "cannot wait for messages: %s", zmq_strerror(zmq_errno()));
        }
        take_arrived(run);
        uint64_t now_ns = qn_clock_now_ns();
        keep_due(run, now_ns);
        look_who_is_heard(run, now_ns);
        if (run->err || run->figures.end == QN_RECORDER_FULL || (items[1].revents & ZMQ_POLLIN)) return;
        if (now_ns < end_ns) continue;
        run->figures.end = QN_RECORDER_TIME_OVER;
        return;
    }
}

/* What was sent before the stop and has not been taken yet. */
static void take_rest(run_t *run)
{
    zmq_pollitem_t item = {.socket = qn_tap_reader_socket(run->reader), .events = ZMQ_POLLIN};
    for (int i = 0; i < 64 && !run->err && zmq_poll(&item, 1, 20) == 1; i++)
        take_arrived(run);
    keep_due(run, UINT64_MAX);
}

static uint64_t wall_minus_monotonic_ns(void)
{
    struct timespec wall;
    clock_gettime(CLOCK_REALTIME, &wall);
    return (uint64_t)wall.tv_sec * 1000000000ull + (uint64_t)wall.tv_nsec - qn_clock_now_ns();
}

qn_err_t qn_recorder_run(const qn_recorder_spec_t *spec, qn_recorder_figures_t *ret_figures)
{
    run_t run = {.spec = spec, .figures = {.begin_ns = qn_clock_now_ns()}};
    run.err = qn_tap_reader_open(spec->run_dir, qn_daemon_names(), QN_DAEMON_COUNT, &run.reader);
    if (!run.err) run.err = qn_capture_create(spec->path, wall_minus_monotonic_ns(), &run.capture);
    if (!run.err) run.err = qn_paths_make_private(spec->path);
    if (!run.err) {
        qn_capture_order_init(&run.order, WINDOW_NS);
        subscribe(run.reader);
        follow(&run);
        take_rest(&run);
        qn_capture_order_fini(&run.order);
    }
    qn_err_t closed = qn_capture_close(&run.capture);
    qn_tap_reader_close(&run.reader);
    run.figures.end_ns = qn_clock_now_ns();
    *ret_figures = run.figures;
    return run.err ? run.err : closed;
}
