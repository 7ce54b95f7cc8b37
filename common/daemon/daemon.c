/* What is this?      The skeleton of every daemon: start, loop, drain, stop.
 * State owned:       lock, statistics page, tap, links; the service's state through its descriptor.
 * Must never:        know what a service does; sleep while a message, a deadline or a stop is pending.
 * Read next:         links.c (the link protocol), services/<name>/service.c (a descriptor). */
#include "common/daemon/daemon.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sysexits.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "common/assert.h"
#include "common/build.h"
#include "common/clock.h"
#include "common/daemon/descriptors.h"
#include "common/daemon/links/endpoint.h"
#include "common/failpoint.h"
#include "common/limits.h"
#include "common/daemon/links/links.h"
#include "common/daemon/lock.h"
#include "common/daemon/watchdog.h"
#include "common/watch/last_error.h"
#include "common/watch/log.h"
#include "common/paths.h"
#include "common/watch/tap.h"
#include "common/wire/wire.h"

#define WATCHED_FDS_MAX 16
#define SPIN_NS 1000000ull /* about a step of a small model: what wakes a loop that spins is worth the core it takes */
#define SPIN_CORES_LEAST 8

struct qn_daemon {
    const qn_daemon_descriptor_t *descriptor;
    void *state;
    const qn_config_t *config; /* borrowed */
    char run_dir[QN_PATH_MAX];
    qn_lock_t lock;
    qn_stats_t *stats;
    qn_tap_t *tap;
    qn_links_t *links;
    qn_handler_t handlers[QN_MESSAGE_COUNT]; /* by type */
    qn_arena_t reply_arena;                  /* of the method being answered */
    int watched_fds[WATCHED_FDS_MAX];
    size_t watched_count;
    int stop_fd;
    uint64_t spin_ns; /* 0: it sleeps at once */
    bool composed, announced;
    qn_watchdog_t watchdog; /* of a process of its own; a composition has one for all */
    bool draining;
    uint64_t drain_ns; /* then it stops with what it has */
    uint64_t drain_until_ns;
    qn_err_t failure;
    qn_peer_t handled_from; /* of the message being handled, for a Refusal of it; epoch 0: none */
    qn_message_type_t handled_type;
    uint64_t handled_sequence;
    bool busy; /* something was handled or sent in this turn */
};

/* ---- callbacks of links --------------------------------------------------------------------------------------- */

static void daemon_call(qn_daemon_t *daemon, qn_peer_t from, const qn_method_t *method, const void *message)
{
    qn_call_t call = {.daemon = daemon,
                      .method = method,
                      .from = from,
                      .id = ((const qn_head_t *)message)->request,
                      .began_ns = qn_clock_now_ns(),
                      .arena = &daemon->reply_arena};
    qn_arena_reset(&daemon->reply_arena);
    qn_calls_run(daemon->descriptor->methods, daemon->state, &call, message);
}

/* ---- what a recorder is told ---- */

static void daemon_tell_handled(qn_daemon_t *daemon, uint64_t begin_ns, qn_message_type_t type, const qn_head_t *head)
{
    qn_tap_span_t span = {.kind = QN_TAP_HANDLED,
                          .from = (uint8_t)head->src,
                          .epoch = head->epoch,
                          .sequence = head->sequence,
                          .request = head->request,
                          .begin_ns = begin_ns,
                          .end_ns = qn_clock_now_ns()};
    memcpy(span.type, qn_wire_type(type)->identifier, sizeof span.type);
    qn_tap_span(daemon->tap, &span);
}

static void daemon_tell_turn(qn_daemon_t *daemon, uint64_t begin_ns)
{
    if (!daemon->busy) return;
    qn_tap_span_t span = {.kind = QN_TAP_TURN, .begin_ns = begin_ns, .end_ns = qn_clock_now_ns()};
    qn_tap_span(daemon->tap, &span);
}

static void daemon_handle(void *context, qn_peer_t from, qn_message_type_t type, const void *message)
{
    qn_daemon_t *daemon = context;
    const qn_handler_t *handler = &daemon->handlers[type];
    const qn_method_t *method = &qn_methods[qn_method_requests[type]];
    daemon->handled_from = from;
    daemon->handled_type = type;
    daemon->handled_sequence = ((const qn_head_t *)message)->sequence;
    if (handler->handle) {
        handler->handle(daemon->state, from, message);
    } else if (method->name && method->service == daemon->descriptor->service && daemon->descriptor->methods) {
        daemon_call(daemon, from, method, message);
    } else if (qn_method_replies[type] && daemon->descriptor->reply) {
        daemon->descriptor->reply(daemon->state, from, type, message);
    } else if (type == QN_MESSAGE_REFUSAL) {
        const qn_refusal_t *refusal = message;
        qn_log_warning("%s refused %.*s: %.*s", qn_service_name((qn_service_t)from.service),
                       (int)refusal->refused_type.bytes, refusal->refused_type.data ? refusal->refused_type.data : "",
                       (int)refusal->text.bytes, refusal->text.data ? refusal->text.data : "");
    } else {
        char text[QN_REASON_MAX];
        snprintf(text, sizeof text, "%s takes no %s", daemon->descriptor->name, qn_message_name(type));
        qn_daemon_refuse(daemon, from, ((const qn_head_t *)message)->request, 400, NULL, text);
    }
    daemon->handled_from = (qn_peer_t){0};
    qn_watchdog_feed(&daemon->watchdog, qn_clock_now_ns()); /* a turn may take many long messages */
}

static void daemon_deliver(void *context, qn_peer_t from, qn_message_type_t type, const void *message)
{
    qn_daemon_t *daemon = context;
    daemon->busy = true;
    if (!qn_tap_wants_spans(daemon->tap)) {
        daemon_handle(daemon, from, type, message);
        return;
    }
    qn_head_t head = *(const qn_head_t *)message; /* the handler may take what it is in */
    uint64_t begin_ns = qn_clock_now_ns();
    daemon_handle(daemon, from, type, message);
    daemon_tell_handled(daemon, begin_ns, type, &head);
}

static void daemon_peer(void *context, qn_peer_t peer, qn_peer_event_t event)
{
    qn_daemon_t *daemon = context;
    if (daemon->state && daemon->descriptor->peer) daemon->descriptor->peer(daemon->state, peer, event);
}

/* ---- start ---------------------------------------------------------------------------------------------------- */

static qn_err_t daemon_open_links(qn_daemon_t *daemon, const qn_config_values_t *values, unsigned composed_services)
{
    const qn_daemon_descriptor_t *descriptor = daemon->descriptor;
    const qn_stat_spec_t *tables[] = {qn_link_stats, descriptor->stats};
    size_t counts[] = {QN_LINK_STAT_COUNT, descriptor->stat_count};
    qn_err_t err =
        qn_stats_create(daemon->run_dir, descriptor->name, daemon->lock.epoch, tables, counts, 2, &daemon->stats);
    if (err == QN_OK) err = qn_tap_open(daemon->run_dir, descriptor->name, (uint8_t)descriptor->service, &daemon->tap);
    if (err != QN_OK) return err;
    qn_links_spec_t spec = {
        .service = descriptor->service,
        .dials = descriptor->dials,
        .run_dir = daemon->run_dir,
        .config = values,
        .composed_services = composed_services,
        .epoch = daemon->lock.epoch,
        .started_ns = qn_clock_now_ns(),
        .stats = daemon->stats,
        .tap = daemon->tap,
        .context = daemon,
        .deliver = daemon_deliver,
        .peer = daemon_peer,
    };
    return qn_links_open(&spec, &daemon->links);
}

static qn_err_t daemon_start(qn_daemon_t *daemon, const qn_config_t *config, unsigned composed_services)
{
    const qn_daemon_descriptor_t *descriptor = daemon->descriptor;
    const qn_config_values_t *values = qn_config_values(config);
    for (const qn_handler_t *handler = descriptor->handlers; handler->type != QN_MESSAGE_NONE; handler++) {
        QN_ASSERT(handler->type < QN_MESSAGE_COUNT);
        daemon->handlers[handler->type] = *handler;
    }
    qn_calls_check(descriptor->service, descriptor->methods);
    qn_links_setup_zmq();
    qn_err_t err = qn_paths_run_dir(values, daemon->run_dir, sizeof daemon->run_dir);
    if (err == QN_OK) err = qn_failpoints_arm_from_environment(daemon->run_dir);
    if (err == QN_OK) err = qn_lock_take(daemon->run_dir, descriptor->name, &daemon->lock);
    if (err == QN_OK) qn_last_error_begin(daemon->run_dir, descriptor->name);
    if (err == QN_OK) err = daemon_open_links(daemon, values, composed_services);
    if (err == QN_OK) err = descriptor->init(daemon, values, &daemon->state);
    return err;
}

static void daemon_finish(qn_daemon_t *daemon)
{
    if (daemon->state && daemon->descriptor->fini) daemon->descriptor->fini(&daemon->state);
    daemon->state = NULL;
    qn_links_close(&daemon->links, "stopped");
    qn_tap_close(&daemon->tap);
    qn_stats_destroy(&daemon->stats);
    qn_lock_release(&daemon->lock);
    qn_watchdog_close(&daemon->watchdog);
    qn_arena_fini(&daemon->reply_arena);
}

/* A core for latency is well spent where a GPU waits for the answer, and where there are cores to spare. */
static bool spins(const qn_daemon_descriptor_t *descriptor, const qn_config_values_t *values)
{
    cpu_set_t set;
    if (!descriptor->in_step_path || strcmp(values->compute.spin, "off") == 0) return false;
    if (strcmp(values->compute.spin, "on") == 0) return true;
    return strcmp(values->compute.backend, "cuda") == 0 && sched_getaffinity(0, sizeof set, &set) == 0 &&
           CPU_COUNT(&set) >= SPIN_CORES_LEAST;
}

/* ---- loop ----------------------------------------------------------------------------------------------------- */

static void daemon_begin_drain(qn_daemon_t *daemon, uint64_t now_ns)
{
    daemon->draining = true;
    daemon->drain_until_ns = now_ns + daemon->drain_ns;
    if (!daemon->composed) sd_notify(0, "STOPPING=1");
    qn_links_set_state(daemon->links, QN_STATE_DRAINING, "stopping");
    qn_log_info("draining");
    if (daemon->descriptor->drain) daemon->descriptor->drain(daemon->state);
}

static bool daemon_is_done(const qn_daemon_t *daemon, uint64_t now_ns)
{
    if (daemon->failure != QN_OK) return true;
    if (!daemon->draining) return false;
    return now_ns >= daemon->drain_until_ns || !daemon->descriptor->drained ||
           daemon->descriptor->drained(daemon->state);
}

/* As zmq_poll, without sleeping, for as long as spin_ns and the wait allow: a sleeping core takes its time to wake. */
static int daemon_spin(const qn_daemon_t *daemon, zmq_pollitem_t *items, int count, uint64_t now_ns, uint64_t wait_ns)
{
    uint64_t end_ns = now_ns + (wait_ns < daemon->spin_ns ? wait_ns : daemon->spin_ns);
    int ready = 0;
    while (ready == 0 && qn_clock_now_ns() < end_ns) {
        ready = zmq_poll(items, count, 0);
        if (ready == 0) sched_yield();
    }
    return ready;
}

/* Waits for whatever comes first; returns the number of items that belong to the links. */
static size_t daemon_sleep(qn_daemon_t *daemon, zmq_pollitem_t *items, uint64_t until_ns)
{
    size_t link_count = qn_links_poll_items(daemon->links, items), count = link_count;
    for (size_t i = 0; i < daemon->watched_count; i++)
        items[count++] = (zmq_pollitem_t){.fd = daemon->watched_fds[i], .events = ZMQ_POLLIN};
    if (!daemon->draining) items[count++] = (zmq_pollitem_t){.fd = daemon->stop_fd, .events = ZMQ_POLLIN};
    uint64_t now_ns = qn_clock_now_ns();
    uint64_t wait_ns = until_ns > now_ns ? until_ns - now_ns : 0;
    long wait_ms = wait_ns > 3600000000000ull ? 3600000 : (long)((wait_ns + 999999) / 1000000);
    int ready = daemon_spin(daemon, items, (int)count, now_ns, wait_ns);
    if (ready == 0) ready = zmq_poll(items, (int)count, wait_ms);
    if (ready < 0) {
        QN_ASSERT(errno == EINTR);
        for (size_t i = 0; i < count; i++)
            items[i].revents = 0;
    }
    if (!daemon->draining && items[count - 1].revents) daemon_begin_drain(daemon, qn_clock_now_ns());
    return link_count;
}

static void daemon_loop(qn_daemon_t *daemon)
{
    const qn_daemon_descriptor_t *descriptor = daemon->descriptor;
    zmq_pollitem_t items[QN_LINKS_POLL_MAX + WATCHED_FDS_MAX + 1];
    uint64_t until_ns = 0;
    for (;;) {
        size_t link_count = daemon_sleep(daemon, items, until_ns);
        uint64_t begin_ns = qn_clock_now_ns();
        daemon->busy = false;
        bool more = qn_links_take(daemon->links, items, link_count, begin_ns);
        uint64_t now_ns = qn_clock_now_ns();
        until_ns = descriptor->tick(daemon->state, now_ns);
#ifdef QN_CHECKED
        if (descriptor->check) descriptor->check(daemon->state);
#endif
        uint64_t links_due_ns = qn_links_turn(daemon->links, now_ns);
        if (qn_tap_wants_spans(daemon->tap)) daemon_tell_turn(daemon, begin_ns);
        uint64_t fed_ns = qn_watchdog_feed(&daemon->watchdog, now_ns);
        if (daemon_is_done(daemon, now_ns)) return;
        if (links_due_ns < until_ns) until_ns = links_due_ns;
        if (fed_ns < until_ns) until_ns = fed_ns;
        if (daemon->draining && daemon->drain_until_ns < until_ns) until_ns = daemon->drain_until_ns;
        if (more) until_ns = 0;
    }
}

/* To the log, to whoever asks while it is down, and to the manager: `systemctl status` shows the last STATUS. */
static void daemon_report_failure(const qn_daemon_t *daemon, qn_err_t err)
{
    qn_log_error("%s (%s, %s)", qn_err_text(), qn_err_name(err), qn_err_origin());
    if (daemon->lock.fd >= 0) qn_last_error_write(qn_err_text());
    if (!daemon->composed) sd_notifyf(0, "STATUS=failed: %s", qn_err_text());
}

qn_err_t qn_daemon_run(const qn_daemon_descriptor_t *descriptor, const qn_config_t *config, unsigned composed_services,
                       int stop_fd)
{
    qn_daemon_t *daemon = calloc(1, sizeof *daemon);
    if (!daemon) return qn_fail(QN_ERR_NO_MEMORY, "no memory for %s", descriptor->name);
    daemon->descriptor = descriptor;
    daemon->config = config;
    daemon->composed = composed_services != 0;
    daemon->stop_fd = stop_fd;
    daemon->lock.fd = daemon->watchdog.fd = -1;
    if (!daemon->composed) qn_watchdog_open(&daemon->watchdog);
    if (spins(descriptor, qn_config_values(config))) daemon->spin_ns = SPIN_NS;
    daemon->drain_ns = qn_config_values(config)->up.stop_seconds * 1000000000ull;
    qn_log_set_name(descriptor->name);
    qn_err_t err = daemon_start(daemon, config, composed_services);
    if (err == QN_OK) {
        qn_log_info("started: epoch %u, pid %d, build %s", daemon->lock.epoch, (int)getpid(), qn_build_id());
        daemon_loop(daemon);
        err = daemon->failure;
    }
    if (err != QN_OK) daemon_report_failure(daemon, err);
    daemon_finish(daemon);
    if (err == QN_OK) qn_log_info("stopped");
    qn_log_set_name(NULL);
    free(daemon);
    return err;
}

/* ---- process -------------------------------------------------------------------------------------------------- */

static qn_log_level_t log_level_of(const char *word)
{
    static const char *const words[] = {"error", "warning", "notice", "info", "debug"};
    for (int i = 0; i < 5; i++)
        if (strcmp(word, words[i]) == 0) return (qn_log_level_t)i;
    return QN_LOG_INFO; /* the configuration's choices are these five */
}

/* SIGTERM and SIGINT arrive through a descriptor; every thread made later inherits the mask. */
static int daemon_stop_signals(void)
{
    sigset_t stop;
    sigemptyset(&stop);
    sigaddset(&stop, SIGTERM);
    sigaddset(&stop, SIGINT);
    sigset_t blocked = stop;
    sigaddset(&blocked, SIGHUP); /* for a service that reads something again; the others have nothing to do for it */
    pthread_sigmask(SIG_BLOCK, &blocked, NULL);
    signal(SIGPIPE, SIG_IGN);
    return signalfd(-1, &stop, SFD_CLOEXEC | SFD_NONBLOCK);
}

int qn_daemon_main(int argc, char **argv, const qn_daemon_descriptor_t *descriptor)
{
    qn_log_set_name(descriptor->name);
    qn_config_t *config = NULL;
    qn_err_t err = qn_config_from_arguments(&argc, argv, false, &config);
    if (err != QN_OK) {
        qn_log_error("%s", qn_err_text());
        sd_notifyf(0, "STATUS=failed: %s", qn_err_text());
        return err == QN_ERR_INVALID ? EX_USAGE : qn_err_exit_status(err);
    }
    qn_log_set_level(log_level_of(qn_config_values(config)->log.level));
    err = qn_descriptors_ensure(1u << descriptor->service, qn_config_values(config));
    int stop_fd = daemon_stop_signals();
    if (err != QN_OK)
        qn_log_error("%s", qn_err_text());
    else if (stop_fd < 0)
        err = qn_fail(QN_ERR_IO, "cannot make a signalfd: %s", strerror(errno));
    else
        err = qn_daemon_run(descriptor, config, 0, stop_fd);
    if (stop_fd >= 0) close(stop_fd);
    qn_config_free(&config);
    return qn_err_exit_status(err);
}

/* ---- for services --------------------------------------------------------------------------------------------- */

static bool is_self(qn_peer_t peer) { return peer.epoch == 0; }

/* Its own answer to its own call goes the way of those that come from others. */
static void daemon_hear_self(qn_daemon_t *daemon, qn_message_type_t type, const void *message)
{
    if (type == QN_MESSAGE_REFUSAL)
        daemon->handlers[type].handle(daemon->state, (qn_peer_t){0}, message);
    else
        daemon->descriptor->reply(daemon->state, (qn_peer_t){0}, type, message);
}

void qn_daemon_call_self(qn_daemon_t *daemon, const qn_method_t *method, const void *request)
{
    QN_ASSERT(daemon->descriptor->reply && daemon->handlers[QN_MESSAGE_REFUSAL].handle);
    daemon_call(daemon, (qn_peer_t){0}, method, request);
}

qn_send_outcome_t qn_daemon_send(qn_daemon_t *daemon, qn_peer_t to, qn_message_type_t type, const void *message)
{
    bool answers = type == QN_MESSAGE_REFUSAL || qn_method_replies[type];
    if (is_self(to) && daemon->descriptor->reply && answers) {
        daemon_hear_self(daemon, type, message);
        return QN_SEND_OK;
    }
    daemon->busy = true;
    return qn_links_send(daemon->links, to, type, message);
}

qn_peer_t qn_daemon_peer(const qn_daemon_t *daemon, qn_service_t service)
{
    return qn_links_dialled(daemon->links, service);
}

/* Names what is refused: the message that is being handled, when it is from the one who is told. */
qn_send_outcome_t qn_daemon_send_refusal(qn_daemon_t *daemon, qn_peer_t to, qn_refusal_t *refusal)
{
    if (daemon->handled_from.epoch && qn_peer_equal(daemon->handled_from, to)) {
        refusal->refused_type = qn_text(qn_wire_type(daemon->handled_type)->identifier);
        refusal->refused_sequence = daemon->handled_sequence;
    }
    return qn_daemon_send(daemon, to, QN_MESSAGE_REFUSAL, refusal);
}

void qn_daemon_refuse(qn_daemon_t *daemon, qn_peer_t to, uint64_t request, uint16_t status, const char *param,
                      const char *text)
{
    qn_refusal_t refusal = {
        .head.request = request,
        .status = status,
        .retry_after_ms = status == 429 || status == 503 ? 1000 : 0,
        .param = qn_text(param),
        .text = qn_text(text),
    };
    if (refusal.param.bytes > QN_NAME_MAX) refusal.param.bytes = QN_NAME_MAX;
    if (refusal.text.bytes >= QN_ERR_TEXT_MAX) refusal.text.bytes = QN_ERR_TEXT_MAX - 1;
    qn_daemon_send_refusal(daemon, to, &refusal);
}

void qn_daemon_set_state(qn_daemon_t *daemon, qn_state_t state, const char *text)
{
    if (daemon->draining) return;
    qn_links_set_state(daemon->links, state, text);
    if (state == QN_STATE_READY) qn_last_error_clear();
    if (daemon->composed) return;
    bool first_ready = state == QN_STATE_READY && !daemon->announced;
    sd_notifyf(0, "%sSTATUS=%s", first_ready ? "READY=1\n" : "", text ? text : "");
    daemon->announced |= first_ready;
}

void qn_daemon_set_memory_epoch(qn_daemon_t *daemon, uint32_t epoch)
{
    qn_links_set_memory_epoch(daemon->links, epoch);
}

qn_faults_t *qn_daemon_faults(qn_daemon_t *daemon) { return qn_links_faults(daemon->links); }

bool qn_daemon_fault(const qn_daemon_t *daemon, qn_fault_kind_t kind)
{
    const qn_faults_t *faults = qn_links_faults(daemon->links);
    return qn_faults_armed(faults) && qn_faults_hit(faults, kind);
}

void qn_daemon_set_kernel_set(qn_daemon_t *daemon, uint64_t kernel_set, bool foreign_code)
{
    qn_links_set_kernel_set(daemon->links, kernel_set, foreign_code);
}

qn_err_t qn_daemon_watch(qn_daemon_t *daemon, int fd)
{
    if (daemon->watched_count == WATCHED_FDS_MAX)
        return qn_fail(QN_ERR_LIMIT, "a daemon watches %d descriptors at most", WATCHED_FDS_MAX);
    daemon->watched_fds[daemon->watched_count++] = fd;
    return QN_OK;
}

void qn_daemon_unwatch(qn_daemon_t *daemon, int fd)
{
    for (size_t i = 0; i < daemon->watched_count; i++) {
        if (daemon->watched_fds[i] != fd) continue;
        daemon->watched_fds[i] = daemon->watched_fds[--daemon->watched_count];
        return;
    }
}

void qn_daemon_fail(qn_daemon_t *daemon, qn_err_t err)
{
    QN_ASSERT(err != QN_OK);
    if (daemon->failure == QN_OK) daemon->failure = err;
}

uint32_t qn_daemon_epoch(const qn_daemon_t *daemon) { return daemon->lock.epoch; }

const char *qn_daemon_run_dir(const qn_daemon_t *daemon) { return daemon->run_dir; }

const qn_config_t *qn_daemon_config(const qn_daemon_t *daemon) { return daemon->config; }

qn_stats_t *qn_daemon_stats(qn_daemon_t *daemon) { return daemon->stats; }

void qn_daemon_peer_status(const qn_daemon_t *daemon, qn_service_t service, qn_peer_status_t *ret_status)
{
    qn_links_status(daemon->links, service, ret_status);
}

void qn_daemon_self_status(const qn_daemon_t *daemon, qn_peer_status_t *ret_status)
{
    qn_links_self_status(daemon->links, ret_status);
}
