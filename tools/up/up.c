/* What is this?      The loop of `quintet up`: one poll over signals, notify sockets and outputs.
 * State owned:       the children, the lock of the run directory.
 * Must never:        block on a service or on a reader of its log; leave a process behind.
 * Read next:         up_child.c (one process), up_restart.c (the rule), up_compose.c (services as threads). */
#include "tools/up/up.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/daemon/crash.h"
#include "common/daemon/descriptors.h"
#include "common/daemon/lock.h"
#include "common/paths.h"
#include "tools/up/up_child.h"
#include "tools/up/up_probe.h"

#define SERVICE_COUNT 5
#define ARGUMENTS_MAX (2 * QN_CONFIG_SETS_MAX + 12)
#define ORDER_GRACE_NS 500000000ull /* the first may take all of the time; the others then need little */
#define KILL_GRACE_NS 1000000000ull /* between the SIGTERM of a late stop and SIGKILL */
#define FORMER_NS 3000000000ull     /* how long services of a killed supervisor may take to die */
#define FORMER_LOOK_NS 20000000ull
#define PROBE_NS 10000000000ull /* how long the frontend may take to hear of the others */
#define PROBE_EVERY_NS 10000000ull
#define SAME_SIGNAL_NS 300000000ull
#define STATUS_INTERRUPTED 130 /* as shells report a program ended by Ctrl-C */

/* Also the order in which they stop: who asks before who answers. */
static const char *const services[SERVICE_COUNT] = {"frontend", "tokenizer", "scheduler", "compute", "memory"};

typedef enum { UP_RUNNING, UP_STOPPING } up_phase_t;

typedef struct {
    const up_spec_t *spec;
    up_log_t log;
    qn_lock_t lock;
    int signal_fd;
    up_child_t children[SERVICE_COUNT];
    size_t child_count;
    char program[SERVICE_COUNT][PATH_MAX];
    char *arguments[SERVICE_COUNT][ARGUMENTS_MAX];
    char run_dir[QN_PATH_MAX];
    up_phase_t phase;
    bool all_were_ready, ready_reported;
    up_probe_t probe;
    uint64_t probe_at_ns, probe_until_ns; /* while all were ready and that is not reported */
    uint64_t started_ns;
    uint64_t watch_at_ns;                 /* the next look at signs of life */
    uint64_t terminate_at_ns, kill_at_ns; /* while stopping: SIGTERM to all that is left, SIGKILL */
    uint64_t stop_asked_ns;               /* by a signal */
    bool killed;
    char fatal[640]; /* why it stops by itself; "": it does not */
    int exit_status;
} up_t;

/* ---- start ---- */

static void pass_on(char **argv, size_t *count, const char *option, const char *value)
{
    if (!value) return;
    argv[(*count)++] = (char *)(uintptr_t)option;
    argv[(*count)++] = (char *)(uintptr_t)value;
}

static up_child_t *add_child(up_t *up, const char *name)
{
    up_child_t *child = &up->children[up->child_count];
    child->name = name;
    child->program = up->program[up->child_count];
    child->argv = up->arguments[up->child_count];
    child->log = &up->log;
    child->start_at_ns = up->started_ns;
    child->watchdog_ns = qn_config_values(up->spec->config)->up.watchdog_seconds * 1000000000ull;
    up->child_count++;
    return child;
}

static void add_arguments(up_t *up, char **argv, size_t count)
{
    const qn_config_arguments_t *arguments = up->spec->arguments;
    pass_on(argv, &count, "--config", arguments->path);
    for (size_t i = 0; i < arguments->set_count; i++)
        pass_on(argv, &count, "--set", arguments->sets[i]);
    pass_on(argv, &count, "--run-dir", arguments->run_dir);
    argv[count] = NULL;
}

static qn_err_t add_service(up_t *up, const char *service)
{
    size_t index = up->child_count;
    char *program = up->program[index];
    int length = snprintf(program, PATH_MAX, "%s/quintet-%s", up->spec->binary_dir, service);
    if (length < 0 || length >= PATH_MAX || access(program, X_OK) != 0) {
        return qn_fail(QN_ERR_NOT_FOUND, "no program quintet-%s in %s; build it, or name the directory with --bin-dir",
                       service, up->spec->binary_dir);
    }
    up->arguments[index][0] = program;
    add_arguments(up, up->arguments[index], 1);
    add_child(up, service);
    return QN_OK;
}

/* The composed services are this program again, told to be them: a crash in one of them leaves the supervisor alone. */
static qn_err_t add_composition(up_t *up)
{
    size_t index = up->child_count;
    char **argv = up->arguments[index];
    ssize_t length = readlink("/proc/self/exe", up->program[index], PATH_MAX - 1);
    if (length < 0) return qn_fail(QN_ERR_IO, "/proc/self/exe: %s", strerror(errno));
    up->program[index][length] = '\0';
    argv[0] = (char *)(uintptr_t)"quintet";
    argv[1] = (char *)(uintptr_t)"up";
    argv[2] = (char *)(uintptr_t)"--compose";
    argv[3] = (char *)(uintptr_t)up->spec->composed;
    add_arguments(up, argv, 4);
    add_child(up, "composed");
    return QN_OK;
}

static qn_err_t add_children(up_t *up)
{
    bool composed = false;
    for (size_t i = 0; i < SERVICE_COUNT; i++) {
        qn_err_t err = QN_OK;
        if (!qn_config_names_service(up->spec->composed, services[i]))
            err = add_service(up, services[i]);
        else if (!composed)
            err = add_composition(up);
        composed = composed || qn_config_names_service(up->spec->composed, services[i]);
        if (err) return err;
    }
    return QN_OK;
}

static int open_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static qn_err_t open_all(up_t *up)
{
    char absolute[PATH_MAX];
    qn_err_t err = qn_paths_run_dir(qn_config_values(up->spec->config), up->run_dir, sizeof up->run_dir);
    if (!err && !realpath(up->run_dir, absolute)) err = qn_fail(QN_ERR_IO, "%s: %s", up->run_dir, strerror(errno));
    if (!err) err = qn_descriptors_ensure(1u << QN_SERVICE_TOOL, qn_config_values(up->spec->config));
    if (!err) err = qn_lock_take(up->run_dir, "up", &up->lock);
    if (!err) err = add_children(up);
    for (size_t i = 0; i < up->child_count; i++)
        up->children[i].notify_fd = up->children[i].output_fd = -1;
    for (size_t i = 0; i < up->child_count && !err; i++)
        err = up_child_open(&up->children[i], absolute);
    if (err) return err;
    up->signal_fd = open_signals();
    if (up->signal_fd < 0) return qn_fail(QN_ERR_IO, "cannot make a signalfd: %s", strerror(errno));
    up_log_printf(&up->log, UP_LOG_INFO, "starting in %s", absolute);
    return QN_OK;
}

static void close_all(up_t *up)
{
    for (size_t i = 0; i < up->child_count; i++)
        up_child_close(&up->children[i]);
    up_probe_close(&up->probe);
    if (up->signal_fd >= 0) close(up->signal_fd);
    qn_lock_release(&up->lock);
}

/* ---- stop ---- */

static void begin_stop(up_t *up, uint64_t now_ns)
{
    up->phase = UP_STOPPING;
    up->ready_reported = true; /* nobody is asked any more */
    up_probe_close(&up->probe);
    up->terminate_at_ns = now_ns + qn_config_values(up->spec->config)->up.stop_seconds * 1000000000ull + ORDER_GRACE_NS;
    up->kill_at_ns = up->terminate_at_ns + KILL_GRACE_NS;
    sd_notify(0, "STOPPING=1");
    for (size_t i = 0; i < up->child_count; i++) {
        if (up->children[i].pid == 0) up->children[i].state = UP_CHILD_ENDED;
    }
}

static void terminate(up_child_t *child)
{
    if (child->pid == 0 || child->state == UP_CHILD_STOPPING) return;
    up_child_signal(child, SIGTERM);
    child->state = UP_CHILD_STOPPING;
}

static void kill_all(up_t *up)
{
    for (size_t i = 0; i < up->child_count; i++)
        up_child_signal(&up->children[i], SIGKILL);
    up->killed = true;
}

/* The first that still runs is asked to stop, the next when it has ended; late ones all at once, then by force. */
static void continue_stop(up_t *up, uint64_t now_ns)
{
    if (now_ns >= up->kill_at_ns && !up->killed) {
        for (size_t i = 0; i < up->child_count; i++) {
            if (up->children[i].pid == 0) continue;
            up_log_printf(&up->log, UP_LOG_WARNING, "%s did not stop; killing it", up->children[i].name);
        }
        kill_all(up);
        if (up->exit_status == EX_OK) up->exit_status = EX_SOFTWARE;
    }
    for (size_t i = 0; i < up->child_count; i++) {
        if (up->children[i].pid == 0) continue;
        terminate(&up->children[i]);
        if (now_ns < up->terminate_at_ns) return;
    }
}

/* One Ctrl-C can arrive twice: from the terminal and from a parent that forwards it. */
static void handle_stop_signal(up_t *up, const char *name, uint64_t now_ns)
{
    if (up->phase == UP_RUNNING) {
        up->stop_asked_ns = now_ns;
        up_log_printf(&up->log, UP_LOG_NOTICE, "%s: stopping; once more kills at once", name);
        begin_stop(up, now_ns);
        return;
    }
    if (up->stop_asked_ns == 0) up->stop_asked_ns = now_ns;
    if (up->killed || now_ns - up->stop_asked_ns < SAME_SIGNAL_NS) return;
    up_log_printf(&up->log, UP_LOG_WARNING, "%s again: killing what still runs", name);
    up->exit_status = STATUS_INTERRUPTED;
    kill_all(up);
}

/* ---- events ---- */

static void handle_ready(up_t *up, const up_child_t *child, uint64_t now_ns)
{
    double seconds = (double)(now_ns - child->restart.started_ns) / 1e9;
    if (up->all_were_ready) {
        up_log_printf(&up->log, UP_LOG_NOTICE, "%s is ready again (%.1f s)", child->name, seconds);
        return;
    }
    for (size_t i = 0; i < up->child_count; i++) {
        if (!up->children[i].restart.was_ready) return;
    }
    up->all_were_ready = true;
    up->probe_at_ns = now_ns;
    up->probe_until_ns = now_ns + PROBE_NS;
}

static void report_ready(up_t *up, uint64_t now_ns)
{
    const qn_config_values_t *values = qn_config_values(up->spec->config);
    up->ready_reported = true;
    const char *scheme = strncmp(values->frontend.listen, "unix:", 5) == 0 ? "" : "http://";
    if (values->frontend.listen[0] == ':') scheme = "http://localhost";
    up_log_printf(&up->log, UP_LOG_NOTICE, "ready: %s%s (model %s, %.1f s)", scheme, values->frontend.listen,
                  values->model.id, (double)(now_ns - up->started_ns) / 1e9);
    sd_notifyf(0, "READY=1\nSTATUS=%s%s, model %s", scheme, values->frontend.listen, values->model.id);
}

/* Each service has said that it is ready; asks the frontend until it agrees. One that takes no connection has other
 * troubles, which its log tells. */
static void probe_ready(up_t *up, uint64_t now_ns)
{
    up_probe_outcome_t outcome = UP_PROBE_PENDING;
    if (!up->all_were_ready || up->ready_reported) return;
    const char *listen = qn_config_values(up->spec->config)->frontend.listen;
    if (up->probe.fd >= 0)
        outcome = up_probe_step(&up->probe);
    else if (now_ns >= up->probe_at_ns)
        outcome = up_probe_begin(&up->probe, listen);
    if (outcome == UP_PROBE_NOT_YET) up->probe_at_ns = now_ns + PROBE_EVERY_NS;
    bool late = now_ns >= up->probe_until_ns && outcome != UP_PROBE_READY;
    if (late) up_log_printf(&up->log, UP_LOG_WARNING, "the frontend does not answer GET /ready with 200");
    if (outcome == UP_PROBE_READY || outcome == UP_PROBE_NOBODY || late) report_ready(up, now_ns);
    if (late) up_probe_close(&up->probe);
}

static void describe_death(int wait_status, char *buffer, size_t capacity)
{
    if (!WIFSIGNALED(wait_status)) {
        snprintf(buffer, capacity, "ended with status %d", WEXITSTATUS(wait_status));
        return;
    }
    const char *name = sigabbrev_np(WTERMSIG(wait_status));
    snprintf(buffer, capacity, "was killed by SIG%s%s", name ? name : "?",
             WCOREDUMP(wait_status) ? " (core dumped)" : "");
}

/* Status 0, or the signal that asked for the stop. */
static bool is_clean_stop(int wait_status)
{
    return WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) == 0 : WTERMSIG(wait_status) == SIGTERM;
}

/* Left for those who will ask, before the service lives again: requests that make it crash are looked for. One that was
 * aborted for showing no sign of life did not bring that about: whoever stopped it did. */
static void note_crash(up_t *up, const up_child_t *child, pid_t pid, int wait_status)
{
    if (!qn_crash_counts(wait_status)) return;
    for (size_t i = 0; i < SERVICE_COUNT; i++) {
        bool composed =
            strcmp(child->name, "composed") == 0 && qn_config_names_service(up->spec->composed, services[i]);
        if (!composed && strcmp(child->name, services[i]) != 0) continue;
        if (qn_crash_write(up->run_dir, services[i], pid, wait_status) == QN_ERR_IO)
            up_log_printf(&up->log, UP_LOG_WARNING, "%s", qn_err_text());
    }
}

static void handle_death(up_t *up, up_child_t *child, pid_t pid, int wait_status, uint64_t now_ns)
{
    char death[64];
    describe_death(wait_status, death, sizeof death);
    if (up->phase == UP_RUNNING && child->aborted_ns == 0) note_crash(up, child, pid, wait_status);
    if (up->phase == UP_STOPPING) {
        child->state = UP_CHILD_ENDED;
        if (up->killed || is_clean_stop(wait_status)) return;
        up_log_printf(&up->log, UP_LOG_WARNING, "%s %s while stopping", child->name, death);
        if (up->exit_status == EX_OK) up->exit_status = up_restart_exit_status(wait_status);
        return;
    }
    if (up_restart_died(&child->restart, wait_status, now_ns, &child->start_at_ns) == UP_VERDICT_RESTART) {
        up_log_printf(&up->log, UP_LOG_WARNING, "%s %s; starting it again in %.2f s", child->name, death,
                      (double)(child->start_at_ns - now_ns) / 1e9);
        child->state = UP_CHILD_WAITING;
        return;
    }
    snprintf(up->fatal, sizeof up->fatal, "%s cannot start: it %s%s%s", child->name, death,
             child->last_error[0] ? ": " : "", child->last_error);
    up_log_write(&up->log, "up", UP_LOG_ERROR, up->fatal);
    child->state = UP_CHILD_ENDED;
    up->exit_status = up_restart_exit_status(wait_status);
    begin_stop(up, now_ns);
}

/* For who reads something again: the frontend its API keys. */
static void pass_hangup(up_t *up)
{
    up_log_write(&up->log, "up", UP_LOG_NOTICE,
                 "SIGHUP: API keys are read again, the configuration is not; PUT /config changes what can change live");
    for (size_t i = 0; i < up->child_count; i++)
        if (up->children[i].pid > 0) kill(up->children[i].pid, SIGHUP);
}

static void take_signals(up_t *up, uint64_t now_ns)
{
    struct signalfd_siginfo info;
    while (read(up->signal_fd, &info, sizeof info) == (ssize_t)sizeof info) {
        if (info.ssi_signo == SIGINT)
            handle_stop_signal(up, "SIGINT", now_ns);
        else if (info.ssi_signo == SIGTERM)
            handle_stop_signal(up, "SIGTERM", now_ns);
        else if (info.ssi_signo == SIGHUP && isatty(STDERR_FILENO))
            handle_stop_signal(up, "SIGHUP", now_ns);
        else if (info.ssi_signo == SIGHUP)
            pass_hangup(up);
    }
}

static bool is_held(const char *run_dir, const char *service)
{
    char path[QN_PATH_MAX + QN_NAME_MAX];
    snprintf(path, sizeof path, "%s/%s.lock", run_dir, service);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return false;
    bool held = flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    close(fd);
    return held;
}

/* Services of a supervisor that was killed a moment ago may still be dying: a process with much memory takes its time.
 * One that stays longer is not dying, and the service will say so itself. */
static bool must_wait_for_former(const up_t *up, const up_child_t *child, uint64_t now_ns)
{
    if (child->restart.started_ns != 0 || now_ns - up->started_ns >= FORMER_NS) return false;
    for (size_t i = 0; i < SERVICE_COUNT; i++) {
        bool composed = qn_config_names_service(up->spec->composed, services[i]);
        bool is_child = composed ? strcmp(child->name, "composed") == 0 : strcmp(child->name, services[i]) == 0;
        if (is_child && is_held(up->run_dir, services[i])) return true;
    }
    return false;
}

static void start_due(up_t *up, uint64_t now_ns)
{
    for (size_t i = 0; i < up->child_count; i++) {
        up_child_t *child = &up->children[i];
        if (child->state != UP_CHILD_WAITING || child->start_at_ns > now_ns) continue;
        if (must_wait_for_former(up, child, now_ns)) {
            if (!child->waits_for_former)
                up_log_printf(&up->log, UP_LOG_INFO, "%s of an earlier quintet up is still ending; waiting for it",
                              child->name);
            child->waits_for_former = true;
            child->start_at_ns = now_ns + FORMER_LOOK_NS;
            continue;
        }
        if (up_child_start(child, now_ns) == QN_OK) continue;
        up_log_printf(&up->log, UP_LOG_ERROR, "%s", qn_err_text());
        child->start_at_ns = now_ns + UP_RESTART_LONGEST_NS; /* the machine is out of something; it may pass */
    }
}

static int wait_ms(const up_t *up, uint64_t now_ns)
{
    uint64_t until_ns = up->phase == UP_RUNNING ? up->watch_at_ns : UINT64_MAX;
    for (size_t i = 0; i < up->child_count; i++) {
        const up_child_t *child = &up->children[i];
        if (child->state == UP_CHILD_WAITING && child->start_at_ns < until_ns) until_ns = child->start_at_ns;
    }
    if (up->all_were_ready && !up->ready_reported) {
        uint64_t next_ns = up->probe.fd >= 0 ? up->probe_until_ns : up->probe_at_ns;
        if (next_ns < until_ns) until_ns = next_ns;
    }
    if (up->phase == UP_STOPPING) {
        uint64_t next_ns = now_ns < up->terminate_at_ns ? up->terminate_at_ns : up->kill_at_ns;
        if (!up->killed && next_ns < until_ns) until_ns = next_ns;
    }
    if (until_ns == UINT64_MAX) return -1;
    return until_ns <= now_ns ? 0 : (int)((until_ns - now_ns + 999999) / 1000000);
}

static void sleep_until_event(const up_t *up)
{
    struct pollfd items[2 + 2 * SERVICE_COUNT];
    nfds_t count = 0;
    items[count++] = (struct pollfd){.fd = up->signal_fd, .events = POLLIN};
    items[count++] = (struct pollfd){.fd = up->probe.fd, .events = up_probe_events(&up->probe)}; /* poll skips -1 */
    for (size_t i = 0; i < up->child_count; i++) {
        items[count++] = (struct pollfd){.fd = up->children[i].notify_fd, .events = POLLIN};
        items[count++] = (struct pollfd){.fd = up->children[i].output_fd, .events = POLLIN};
    }
    poll(items, count, wait_ms(up, qn_clock_now_ns()));
}

static bool all_have_ended(const up_t *up)
{
    for (size_t i = 0; i < up->child_count; i++) {
        if (up->children[i].state != UP_CHILD_ENDED) return false;
    }
    return true;
}

/* After the notices were read: what a service has said in time counts, also when nobody here had time to hear it. */
static void watch_children(up_t *up, uint64_t now_ns)
{
    up->watch_at_ns = UINT64_MAX;
    for (size_t i = 0; i < up->child_count; i++) {
        uint64_t again_ns = up_child_watch(&up->children[i], now_ns);
        if (again_ns < up->watch_at_ns) up->watch_at_ns = again_ns;
    }
}

static void turn(up_t *up)
{
    uint64_t now_ns = qn_clock_now_ns();
    take_signals(up, now_ns);
    for (size_t i = 0; i < up->child_count; i++) {
        up_child_t *child = &up->children[i];
        int status;
        pid_t pid = child->pid;
        up_child_take_output(child);
        if (up_child_take_notices(child)) handle_ready(up, child, now_ns);
        if (up_child_reap(child, &status)) handle_death(up, child, pid, status, now_ns);
    }
    if (up->phase == UP_STOPPING) {
        continue_stop(up, now_ns);
    } else {
        watch_children(up, now_ns);
        start_due(up, now_ns);
        probe_ready(up, now_ns);
    }
}

int up_run(const up_spec_t *spec)
{
    up_t *up = calloc(1, sizeof *up);
    if (!up) return EX_OSERR;
    up->spec = spec;
    up->lock.fd = up->signal_fd = up->probe.fd = -1;
    up->started_ns = qn_clock_now_ns();
    up_log_init(&up->log, STDERR_FILENO);
    up->log.debug = strcmp(qn_config_values(spec->config)->log.level, "debug") == 0;
    qn_err_t err = open_all(up);
    if (err) {
        up_log_printf(&up->log, UP_LOG_ERROR, "%s", qn_err_text());
        up->exit_status = qn_err_exit_status(err);
    } else {
        for (turn(up); !all_have_ended(up); turn(up))
            sleep_until_event(up);
        /* Said again: by now what the other services say while stopping has pushed it out of sight. */
        if (up->fatal[0])
            up_log_printf(&up->log, UP_LOG_ERROR, "stopped, because %s", up->fatal);
        else
            up_log_printf(&up->log, UP_LOG_INFO, "stopped");
    }
    int status = up->exit_status;
    close_all(up);
    free(up);
    return status;
}
