/* What is this?      The composition: several daemons as czmq actors of one process.
 * State owned:       the members, their stop and end events.
 * Must never:        look into a daemon; go on without one of them.
 * Read next:         common/daemon/daemon.h (qn_daemon_run), up.c (which supervises the process). */
#include "tools/up/up_compose.h"

#include <czmq.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sysexits.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/daemon/daemon.h"
#include "common/daemon/descriptors.h"
#include "common/daemon/links/links.h"
#include "common/daemon/watchdog.h"
#include "common/watch/log.h"

#define MEMBERS_MAX 5
#define ORDER_GRACE_NS 500000000ull /* the first may take all of the time; the others then need little */

typedef struct composition composition_t;

typedef struct {
    composition_t *composition;
    const qn_daemon_descriptor_t *service;
    zactor_t *actor;
    int stop_fd; /* eventfd: readable = stop */
    bool stop_sent;
    atomic_bool ended;
    _Atomic uint64_t turned_ns; /* its loop's last turn; 0: it is starting */
    qn_err_t err;               /* valid once ended */
} member_t;

struct composition {
    const qn_config_t *config;
    unsigned services; /* 1 << qn_service_t */
    int end_fd;        /* eventfd: a member has ended */
    atomic_size_t ready_count;
    member_t members[MEMBERS_MAX]; /* in the order of stopping; those with service NULL are not of this process */
    size_t member_count;
    qn_watchdog_t watchdog; /* one for all: fed while every loop turns */
};

/* ---- on a member's thread ---- */

/* All callbacks of a daemon run on one thread, which therefore knows whose they are. */
static _Thread_local struct {
    member_t *member;
    qn_daemon_t *daemon;
    bool announced;
} self;

static qn_err_t member_init(qn_daemon_t *daemon, const qn_config_values_t *config, void **ret_state)
{
    self.daemon = daemon;
    return self.member->service->init(daemon, config, ret_state);
}

/* A composed daemon does not speak to the service manager; the last one that gets ready does so for all. */
static uint64_t member_tick(void *state, uint64_t now_ns)
{
    composition_t *composition = self.member->composition;
    uint64_t due_ns = self.member->service->tick(state, now_ns);
    uint64_t turn_ns = now_ns + composition->watchdog.period_ns;
    atomic_store(&self.member->turned_ns, now_ns);
    if (composition->watchdog.period_ns && turn_ns < due_ns) due_ns = turn_ns;
    qn_peer_status_t status;
    if (self.announced) return due_ns;
    qn_daemon_self_status(self.daemon, &status);
    if (status.state != QN_STATE_READY) return due_ns;
    self.announced = true;
    if (atomic_fetch_add(&composition->ready_count, 1) + 1 == composition->member_count) sd_notify(0, "READY=1");
    return due_ns;
}

static void member_actor(zsock_t *pipe, void *argument)
{
    member_t *member = argument;
    qn_daemon_descriptor_t descriptor = *member->service;
    descriptor.init = member_init;
    descriptor.tick = member_tick;
    self.member = member;
    zsock_signal(pipe, 0);
    composition_t *composition = member->composition;
    member->err = qn_daemon_run(&descriptor, composition->config, composition->services, member->stop_fd);
    atomic_store(&member->ended, true);
    eventfd_write(composition->end_fd, 1);
    char *term = zstr_recv(pipe); /* zactor_destroy's $TERM */
    zstr_free(&term);
}

/* ---- on the main thread ---- */

static bool add_members(composition_t *composition, const char *list)
{
    /* The order of stopping: who asks before who answers. */
    static const qn_daemon_descriptor_t *const services[MEMBERS_MAX] = {
        &qn_frontend_daemon, &qn_tokenizer_daemon, &qn_scheduler_daemon, &qn_compute_daemon, &qn_memory_daemon,
    };
    for (size_t i = 0; i < MEMBERS_MAX; i++) {
        if (!qn_config_names_service(list, services[i]->name)) continue;
        member_t *member = &composition->members[i];
        composition->member_count++;
        member->composition = composition;
        member->service = services[i];
        member->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        composition->services |= 1u << services[i]->service;
        if (member->stop_fd < 0) return false;
    }
    return true;
}

static int open_stop_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigset_t blocked = set;
    sigaddset(&blocked, SIGHUP);                /* the frontend's, which reads its keys again */
    pthread_sigmask(SIG_BLOCK, &blocked, NULL); /* inherited by all threads made later */
    signal(SIGPIPE, SIG_IGN);
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static void set_log_level(const char *level)
{
    static const char *const words[] = {"error", "warning", "notice", "info", "debug"};
    for (int i = 0; i < 5; i++) {
        if (strcmp(words[i], level) == 0) qn_log_set_level((qn_log_level_t)i);
    }
}

static void stop_member(member_t *member)
{
    if (!member->stop_sent) eventfd_write(member->stop_fd, 1);
    member->stop_sent = true;
}

/* The first that still runs is asked to stop, the next when it has ended; after the deadline all are. */
static bool continue_stop(composition_t *composition, bool late)
{
    bool running = false;
    for (size_t i = 0; i < MEMBERS_MAX; i++) {
        member_t *member = &composition->members[i];
        if (!member->service || atomic_load(&member->ended)) continue;
        running = true;
        stop_member(member);
        if (!late) break;
    }
    return running;
}

/* The first member that ended without being asked to, or NULL. */
static const member_t *find_failed(const composition_t *composition)
{
    for (size_t i = 0; i < MEMBERS_MAX; i++) {
        const member_t *member = &composition->members[i];
        if (member->service && !member->stop_sent && atomic_load(&member->ended)) return member;
    }
    return NULL;
}

/* Feeds the watchdog unless a loop stands still: one that has not turned for three of the four periods that the manager
 * allows. Returns how long to wait at most. */
static int feed(composition_t *composition)
{
    uint64_t now_ns = qn_clock_now_ns(), period_ns = composition->watchdog.period_ns;
    if (composition->watchdog.fd < 0) return -1;
    for (size_t i = 0; i < MEMBERS_MAX; i++) {
        uint64_t turned_ns = atomic_load(&composition->members[i].turned_ns);
        if (turned_ns > 0 && now_ns > turned_ns + 3 * period_ns) return (int)(period_ns / 1000000) + 1;
    }
    uint64_t due_ns = qn_watchdog_feed(&composition->watchdog, now_ns);
    return (int)((due_ns - now_ns) / 1000000) + 1;
}

static void wait_for_event(const composition_t *composition, int signal_fd, int timeout_ms)
{
    struct pollfd items[] = {{.fd = signal_fd, .events = POLLIN}, {.fd = composition->end_fd, .events = POLLIN}};
    eventfd_t count;
    poll(items, 2, timeout_ms);
    if (items[1].revents) eventfd_read(composition->end_fd, &count);
}

static int run_members(composition_t *composition, int signal_fd)
{
    struct signalfd_siginfo info;
    const member_t *failed = NULL;
    bool asked = false;
    while (!failed && !asked) {
        wait_for_event(composition, signal_fd, feed(composition));
        asked = read(signal_fd, &info, sizeof info) == (ssize_t)sizeof info;
        failed = find_failed(composition);
    }
    sd_notify(0, "STOPPING=1");
    uint64_t stop_ns = qn_config_values(composition->config)->up.stop_seconds * 1000000000ull;
    uint64_t late_ns = qn_clock_now_ns() + stop_ns + ORDER_GRACE_NS;
    while (continue_stop(composition, qn_clock_now_ns() >= late_ns)) {
        uint64_t now_ns = qn_clock_now_ns();
        wait_for_event(composition, -1, now_ns < late_ns ? (int)((late_ns - now_ns) / 1000000 + 1) : -1);
    }
    if (!failed) return EX_OK;
    return failed->err ? qn_err_exit_status(failed->err) : EX_SOFTWARE;
}

static bool start_members(composition_t *composition)
{
    for (size_t i = 0; i < MEMBERS_MAX; i++) {
        member_t *member = &composition->members[i];
        if (!member->service) continue;
        member->actor = zactor_new(member_actor, member);
        if (!member->actor) return false;
    }
    return true;
}

int up_compose_run(const qn_config_t *config, const char *list)
{
    composition_t composition = {.config = config};
    set_log_level(qn_config_values(config)->log.level);
    int signal_fd = open_stop_signals();
    composition.end_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (signal_fd < 0 || composition.end_fd < 0 || !add_members(&composition, list)) {
        qn_log_error("cannot make an event descriptor: %s", strerror(errno));
        return EX_OSERR;
    }
    qn_err_t err = qn_descriptors_ensure(composition.services, qn_config_values(config));
    if (err != QN_OK) {
        qn_log_error("%s", qn_err_text());
        return qn_err_exit_status(err);
    }
    qn_links_setup_zmq();
    qn_watchdog_open(&composition.watchdog);
    int status = EX_OSERR;
    if (start_members(&composition))
        status = run_members(&composition, signal_fd);
    else
        qn_log_error("cannot start a thread: %s", strerror(errno));
    for (size_t i = 0; i < MEMBERS_MAX; i++) {
        if (!composition.members[i].service) continue;
        stop_member(&composition.members[i]);
        zactor_destroy(&composition.members[i].actor);
        close(composition.members[i].stop_fd);
    }
    qn_watchdog_close(&composition.watchdog);
    close(composition.end_fd);
    close(signal_fd);
    zsys_shutdown();
    return status;
}
