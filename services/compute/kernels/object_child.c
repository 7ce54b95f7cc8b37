/* What is this?      The child process that checks a shared object, from the side of compute.
 * State owned:       none; a child is its holder's.
 * Must never:        block but in object_child_end and object_child_run; take a child's silence for a good result.
 * Read next:         object_check.h (what it does), tools/cmd_kernel.c (its main). */
#include "services/compute/kernels/object_child.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/paths.h"

#define OBJECT_FD 3 /* in the child */

/* ---- start ---- */

static qn_err_t spawn(const object_file_t *file, char **arguments, int out, pid_t *ret_pid)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none;
    sigemptyset(&none);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, out, STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, file->fd, OBJECT_FD);
    posix_spawn_file_actions_addclosefrom_np(&actions, OBJECT_FD + 1);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    int failure = posix_spawn(ret_pid, arguments[0], &actions, &attributes, arguments, environ);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    return failure ? qn_fail(QN_ERR_IO, "cannot start %.200s: %s", arguments[0], strerror(failure)) : QN_OK;
}

qn_err_t object_child_start(const object_file_t *file, const qn_kernel_case_t *shape, unsigned seconds, uint64_t now_ns,
                            object_child_t *ret_child)
{
    char command[QN_PATH_MAX], sizes[128] = "";
    int ends[2];
    qn_err_t err = qn_paths_command(command, sizeof command);
    if (err) return err;
    if (pipe2(ends, O_CLOEXEC) != 0) return qn_fail(QN_ERR_IO, "pipe: %s", strerror(errno));
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    if (shape)
        snprintf(sizes, sizeof sizes, "%u,%u,%u,%u,%u,%u,%u", shape->heads, shape->kv_heads, shape->head_dim,
                 shape->hidden, shape->intermediate, shape->vocab, shape->block_tokens);
    char *const with[] = {
        command, "kernel", "check", "--lines", "--fd", "3", (char *)(uintptr_t)file->path, shape ? "--shape" : NULL,
        sizes,   NULL};
    *ret_child = (object_child_t){.out = ends[0], .seconds = seconds, .deadline_ns = now_ns + seconds * 1000000000ull};
    int out = fcntl(ends[1], F_DUPFD_CLOEXEC, OBJECT_FD + 1), object = fcntl(file->fd, F_DUPFD_CLOEXEC, OBJECT_FD + 1);
    object_file_t moved = *file; /* neither may be what the other is moved to */
    moved.fd = object;
    err = out < 0 || object < 0 ? qn_fail(QN_ERR_IO, "%s", strerror(errno))
                                : spawn(&moved, (char **)(uintptr_t)with, out, &ret_child->pid);
    if (out >= 0) close(out);
    if (object >= 0) close(object);
    close(ends[1]);
    if (err) {
        close(ends[0]);
        ret_child->out = -1;
        ret_child->pid = 0;
    }
    return err;
}

/* ---- what it says ---- */

static void take_right(object_child_t *child, const char *text)
{
    object_right_t *right = &child->right[child->right_count];
    if (child->right_count == OBJECT_CHILD_RIGHT_MAX) return;
    if (sscanf(text, "%95s %u %lf", right->kernel, &right->cases, &right->worst_error) == 3) child->right_count++;
}

static void take_line(object_child_t *child, const char *line)
{
    if (strncmp(line, "begin ", 6) == 0) snprintf(child->at, sizeof child->at, "%s", line + 6);
    if (strncmp(line, "right ", 6) == 0) take_right(child, line + 6);
    if (strncmp(line, "wrong ", 6) == 0) snprintf(child->wrong, sizeof child->wrong, "%s", line + 6);
    if (strcmp(line, "done") == 0) child->done = true;
}

/* A longer line than there is room for is cut. */
static void take_bytes(object_child_t *child, const char *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (bytes[i] != '\n') {
            if (child->line_bytes + 1 < sizeof child->line) child->line[child->line_bytes++] = bytes[i];
            continue;
        }
        child->line[child->line_bytes] = '\0';
        child->line_bytes = 0;
        take_line(child, child->line);
    }
}

bool object_child_read(object_child_t *child, uint64_t now_ns)
{
    char bytes[4096];
    for (int rounds = 0; rounds < 64; rounds++) {
        ssize_t count = read(child->out, bytes, sizeof bytes);
        if (count > 0) {
            take_bytes(child, bytes, (size_t)count);
            continue;
        }
        if (count == 0) return true;
        if (errno == EINTR) continue;
        if (errno != EAGAIN) return true;
        break;
    }
    if (now_ns < child->deadline_ns) return false;
    child->late = true;
    kill(child->pid, SIGKILL);
    return true;
}

static int wait_for(object_child_t *child)
{
    int status = 0;
    while (waitpid(child->pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (child->out >= 0) close(child->out);
    child->out = -1;
    child->pid = 0;
    return status;
}

qn_err_t object_child_end(object_child_t *child)
{
    /* Its output is closed; what closed it and lives on is ended. */
    if (!child->done && !child->wrong[0] && !child->late) usleep(1000);
    int64_t patience = 1000;
    for (siginfo_t info = {0}; waitid(P_PID, (id_t)child->pid, &info, WEXITED | WNOWAIT | WNOHANG) == 0;
         info.si_pid = 0) {
        if (info.si_pid || patience-- == 0) break;
        usleep(1000);
    }
    if (patience < 0) kill(child->pid, SIGKILL);
    int status = wait_for(child);
    if (child->late) return qn_fail(QN_ERR_INVALID, "it hangs: not done after %u s, at %s", child->seconds, child->at);
    if (child->wrong[0]) return qn_fail(QN_ERR_INVALID, "%s", child->wrong);
    if (WIFSIGNALED(status))
        return qn_fail(QN_ERR_INVALID, "it crashes with SIG%s at %s", sigabbrev_np(WTERMSIG(status)), child->at);
    if (!child->done || WEXITSTATUS(status) != 0)
        return qn_fail(QN_ERR_INVALID, "it ended its process with status %d at %s", WEXITSTATUS(status), child->at);
    return QN_OK;
}

qn_err_t object_child_run(const object_file_t *file, const qn_kernel_case_t *shape, unsigned seconds,
                          object_child_t *ret_child)
{
    qn_err_t err = object_child_start(file, shape, seconds, qn_clock_now_ns(), ret_child);
    if (err) return err;
    while (!object_child_read(ret_child, qn_clock_now_ns()))
        poll(&(struct pollfd){.fd = ret_child->out, .events = POLLIN}, 1, 100);
    return object_child_end(ret_child);
}

void object_child_kill(object_child_t *child)
{
    if (child->pid == 0) return;
    kill(child->pid, SIGKILL);
    wait_for(child);
}
