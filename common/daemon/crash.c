/* What is this?      The record of a service's last crash, a small text file that is replaced as a whole.
 * State owned:       none.
 * Must never:        blame a life for the death of another one, or call a kill from outside a crash.
 * Read next:         tools/up/up.c (who writes), services/scheduler/quarantine/suspects.h (what follows). */
#include "common/daemon/crash.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/daemon/lock.h"
#include "common/limits.h"

#define RECORD_FORMAT "epoch %u\npid %d\nsignal %d\nstatus %d\nat %lld\n"

static bool is_crash_signal(int signal)
{
    return signal == SIGSEGV || signal == SIGABRT || signal == SIGBUS || signal == SIGFPE || signal == SIGILL;
}

bool qn_crash_counts(int wait_status)
{
    if (WIFEXITED(wait_status)) return WEXITSTATUS(wait_status) != 0;
    return WIFSIGNALED(wait_status) && is_crash_signal(WTERMSIG(wait_status));
}

static bool path_of(const char *run_dir, const char *service, const char *suffix, char ret_path[QN_PATH_MAX])
{
    return snprintf(ret_path, QN_PATH_MAX, "%s/%s.crash%s", run_dir, service, suffix) < QN_PATH_MAX;
}

static bool is_life_of(const qn_lock_holder_t *holder, pid_t pid)
{
    if (pid != 0) return holder->pid == pid;
    const char *invocation = getenv("INVOCATION_ID");
    return invocation != NULL && invocation[0] != '\0' && strcmp(invocation, holder->invocation) == 0;
}

static qn_err_t replace(const char *run_dir, const char *service, const char *text)
{
    char path[QN_PATH_MAX], fresh[QN_PATH_MAX];
    if (!path_of(run_dir, service, "", path) || !path_of(run_dir, service, ".new", fresh))
        return qn_fail(QN_ERR_LIMIT, "run_dir is too long: %s", run_dir);
    int fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    ssize_t bytes = (ssize_t)strlen(text);
    bool written = fd >= 0 && write(fd, text, (size_t)bytes) == bytes;
    if (fd >= 0) close(fd);
    if (!written || rename(fresh, path) != 0) return qn_fail(QN_ERR_IO, "cannot write %s: %s", path, strerror(errno));
    return QN_OK;
}

qn_err_t qn_crash_write(const char *run_dir, const char *service, pid_t pid, int wait_status)
{
    qn_lock_holder_t holder;
    char text[160];
    if (qn_lock_look(run_dir, service, &holder) != QN_OK || !is_life_of(&holder, pid))
        return qn_fail(QN_ERR_NOT_FOUND, "%s ended before its life in %s had begun", service, run_dir);
    int signal = WIFSIGNALED(wait_status) ? WTERMSIG(wait_status) : 0;
    snprintf(text, sizeof text, RECORD_FORMAT, holder.epoch, (int)holder.pid, signal,
             signal == 0 ? WEXITSTATUS(wait_status) : 0, (long long)time(NULL));
    return replace(run_dir, service, text);
}

bool qn_crash_read(const char *run_dir, const char *service, uint32_t epoch, qn_crash_t *ret_crash)
{
    char path[QN_PATH_MAX], text[160];
    if (epoch == 0 || !path_of(run_dir, service, "", path)) return false;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t bytes = fd >= 0 ? read(fd, text, sizeof text - 1) : -1;
    if (fd >= 0) close(fd);
    if (bytes <= 0) return false;
    text[bytes] = '\0';
    unsigned found;
    int pid, signal, status;
    long long at_s;
    if (sscanf(text, RECORD_FORMAT, &found, &pid, &signal, &status, &at_s) != 5 || found != epoch) return false;
    *ret_crash = (qn_crash_t){.epoch = found, .pid = pid, .signal = signal, .status = status, .at_s = at_s};
    return true;
}

const char *qn_crash_describe(const qn_crash_t *crash, char *buffer, size_t capacity)
{
    const char *name = crash->signal > 0 ? sigabbrev_np(crash->signal) : NULL;
    if (crash->signal > 0)
        snprintf(buffer, capacity, "SIG%s", name != NULL ? name : "?");
    else
        snprintf(buffer, capacity, "status %d", crash->status);
    return buffer;
}
