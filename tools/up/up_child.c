/* What is this?      fork, exec, pipes and sockets of one service of `quintet up`.
 * State owned:       the process, its output pipe, its notify socket, its kept descriptors.
 * Must never:        decide when to start or stop (up.c), block on the process.
 * Read next:         up_restart.c, up_notify.c. */
#include "tools/up/up_child.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"

#define ABORT_GRACE_NS 2000000000ull /* for a core dump; one that is stopped does not even begin it */
#define LISTEN_FDS_START 3
#define OUTPUT_READS_MAX 16 /* of 4 KiB per turn: a talkative service must not hold up the others */

qn_err_t up_child_open(up_child_t *child, const char *run_dir)
{
    char path[QN_PATH_MAX];
    child->output_fd = child->notify_fd = -1;
    snprintf(path, sizeof path, "%s/up.%s.notify", run_dir, child->name);
    qn_err_t err = up_notify_open(path, &child->notify_fd);
    if (!err) snprintf(child->notify_path, sizeof child->notify_path, "%.107s", path);
    return err;
}

void up_child_close(up_child_t *child)
{
    if (child->output_fd >= 0) close(child->output_fd);
    if (child->notify_fd >= 0) {
        close(child->notify_fd);
        unlink(child->notify_path);
    }
    child->output_fd = child->notify_fd = -1;
    up_store_clear(&child->store);
}

/* ---- start ---- */

/* The kept descriptors get the numbers 3, 4, ...: first all out of the way, then each into its place. */
static bool place_fds(const up_store_t *store)
{
    int moved[UP_STORE_FDS_MAX];
    for (size_t i = 0; i < store->count; i++) {
        moved[i] = fcntl(store->items[i].fd, F_DUPFD_CLOEXEC, LISTEN_FDS_START + (int)store->count);
        if (moved[i] < 0) return false;
    }
    for (size_t i = 0; i < store->count; i++) {
        if (dup2(moved[i], LISTEN_FDS_START + (int)i) < 0) return false;
    }
    return true;
}

static void set_environment(const up_child_t *child)
{
    static char names[UP_STORE_FDS_MAX * UP_FD_NAME_MAX];
    static const char *const foreign[] = {
        "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "LISTEN_PIDFDID",
    };
    char number[24];
    for (size_t i = 0; i < sizeof foreign / sizeof foreign[0]; i++)
        unsetenv(foreign[i]);
    setenv("NOTIFY_SOCKET", child->notify_path, 1);
    if (child->watchdog_ns > 0) {
        snprintf(number, sizeof number, "%" PRIu64, child->watchdog_ns / 1000);
        setenv("WATCHDOG_USEC", number, 1);
        snprintf(number, sizeof number, "%d", (int)getpid());
        setenv("WATCHDOG_PID", number, 1);
    }
    if (child->store.count == 0) return;
    up_store_names(&child->store, names, sizeof names);
    setenv("LISTEN_FDNAMES", names, 1);
    snprintf(number, sizeof number, "%zu", child->store.count);
    setenv("LISTEN_FDS", number, 1);
    snprintf(number, sizeof number, "%d", (int)getpid());
    setenv("LISTEN_PID", number, 1);
}

static void reset_signals(void)
{
    sigset_t none;
    sigemptyset(&none);
    signal(SIGPIPE, SIG_DFL);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* In the new process. The parent has one thread, so everything may be called between fork and exec. */
static void __attribute__((noreturn)) become(const up_child_t *child, int output, pid_t parent)
{
    reset_signals();
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1); /* it died before the prctl */
    int nothing = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (nothing < 0 || dup2(nothing, STDIN_FILENO) < 0 || dup2(output, STDOUT_FILENO) < 0 ||
        dup2(output, STDERR_FILENO) < 0 || !place_fds(&child->store)) {
        _exit(1);
    }
    set_environment(child);
    execv(child->program, child->argv);
    int missing = errno == ENOENT;
    dprintf(STDERR_FILENO, "<3>cannot run %s: %s\n", child->program, strerror(errno));
    _exit(missing ? 127 : 126);
}

qn_err_t up_child_start(up_child_t *child, uint64_t now_ns)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return qn_fail(QN_ERR_IO, "cannot make a pipe: %s", strerror(errno));
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    pid_t parent = getpid(), pid = fork();
    if (pid == 0) become(child, ends[1], parent);
    close(ends[1]);
    if (pid < 0) {
        close(ends[0]);
        return qn_fail(QN_ERR_IO, "cannot start %s: %s", child->name, strerror(errno));
    }
    setpgid(pid, pid); /* both sides do it, so that neither need wait for the other */
    child->pid = pid;
    child->output_fd = ends[0];
    child->state = UP_CHILD_STARTING;
    child->last_error[0] = '\0';
    child->alive_ns = child->aborted_ns = 0;
    up_restart_started(&child->restart, now_ns);
    return QN_OK;
}

/* ---- while it runs ---- */

static void take_line(void *context, char *line)
{
    up_child_t *child = context;
    const char *source = child->name;
    int priority;
    char *text = up_log_parse(line, &source, &priority);
    if (priority <= UP_LOG_ERROR) snprintf(child->last_error, sizeof child->last_error, "%s", text);
    up_log_write(child->log, source, priority, text);
}

void up_child_take_output(up_child_t *child)
{
    char bytes[4096];
    for (int i = 0; i < OUTPUT_READS_MAX && child->output_fd >= 0; i++) {
        ssize_t length = read(child->output_fd, bytes, sizeof bytes);
        if (length < 0) return;
        if (length == 0) { /* all writers are gone, though the process may still live */
            close(child->output_fd);
            child->output_fd = -1;
            up_lines_end(&child->lines, take_line, child);
            return;
        }
        up_lines_feed(&child->lines, bytes, (size_t)length, take_line, child);
    }
}

static void keep_fds(up_child_t *child, const up_notice_t *notice, const int *fds, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (up_store_add(&child->store, fds[i], notice->fd_name) != UP_STORE_FULL) continue;
        up_log_printf(child->log, UP_LOG_WARNING, "%s gave more than %d descriptors to keep; \"%s\" was closed",
                      child->name, UP_STORE_FDS_MAX, notice->fd_name);
    }
}

static void log_status(const up_child_t *child, const up_notice_t *notice)
{
    char text[QN_REASON_MAX + 64];
    if (notice->status[0] == '\0') return;
    snprintf(text, sizeof text, "status: %s", notice->status);
    up_log_write(child->log, child->name, UP_LOG_DEBUG, text);
    bool waits = strncmp(notice->status, "waiting", 7) == 0; /* for one that has something to tell */
    if (child->state == UP_CHILD_STARTING && !notice->ready && !waits)
        up_log_progress(child->log, child->name, notice->status);
}

bool up_child_take_notices(up_child_t *child)
{
    up_notice_t notice;
    int fds[UP_STORE_FDS_MAX];
    size_t count;
    bool became_ready = false;
    while (up_notify_take(child->notify_fd, &notice, fds, &count)) {
        if (notice.fd_store_remove)
            up_store_remove(&child->store, notice.fd_name);
        else
            keep_fds(child, &notice, fds, count);
        if (notice.alive) child->alive_ns = qn_clock_now_ns();
        if (notice.has_status) log_status(child, &notice);
        if (notice.stopping && child->pid > 0) child->state = UP_CHILD_STOPPING;
        if (!notice.ready || child->state != UP_CHILD_STARTING) continue;
        child->state = UP_CHILD_READY;
        up_restart_ready(&child->restart);
        became_ready = true;
    }
    return became_ready;
}

uint64_t up_child_watch(up_child_t *child, uint64_t now_ns)
{
    bool watched = child->watchdog_ns > 0 && child->alive_ns > 0 && child->pid > 0;
    if (!watched || (child->state != UP_CHILD_STARTING && child->state != UP_CHILD_READY)) return UINT64_MAX;
    if (child->aborted_ns == 0) {
        uint64_t due_ns = child->alive_ns + child->watchdog_ns;
        if (now_ns < due_ns) return due_ns;
        up_log_printf(child->log, UP_LOG_ERROR, "%s shows no sign of life for %.1f s: killing it (SIGABRT)",
                      child->name, (double)(now_ns - child->alive_ns) / 1e9);
        kill(child->pid, SIGABRT);
        child->aborted_ns = now_ns;
        return now_ns + ABORT_GRACE_NS;
    }
    if (now_ns < child->aborted_ns + ABORT_GRACE_NS) return child->aborted_ns + ABORT_GRACE_NS;
    up_child_signal(child, SIGKILL);
    return now_ns + ABORT_GRACE_NS;
}

void up_child_signal(const up_child_t *child, int signal)
{
    if (child->pid > 0) kill(-child->pid, signal);
}

bool up_child_reap(up_child_t *child, int *ret_status)
{
    siginfo_t info = {0};
    if (child->pid <= 0) return false;
    if (waitid(P_PID, (id_t)child->pid, &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid == 0) return false;
    up_child_signal(child, SIGKILL); /* what it has started; while the zombie is here, the group is surely its own */
    waitpid(child->pid, ret_status, 0);
    child->pid = 0;
    up_child_take_notices(child); /* a descriptor sent in the last moment is kept */
    up_child_take_output(child);
    if (child->output_fd >= 0) close(child->output_fd);
    child->output_fd = -1;
    up_lines_end(&child->lines, take_line, child);
    return true;
}
