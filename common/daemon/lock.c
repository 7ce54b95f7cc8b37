/* What is this?      flock(2) on a small text file "epoch N\npid P\n", under systemd also "invocation ID\n".
 * State owned:       the descriptor.
 * Must never:        wait for the lock, or remove the file (a removed file can be locked twice).
 * Read next:         daemon.c */
#include "common/daemon/lock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "common/limits.h"

static int lock_read(int fd, unsigned *ret_epoch, int *ret_pid, char *ret_invocation)
{
    char text[128];
    ssize_t length = pread(fd, text, sizeof text - 1, 0);
    if (length < 0) return -1;
    text[length] = '\0';
    *ret_epoch = 0;
    *ret_pid = 0;
    ret_invocation[0] = '\0';
    return length == 0 || sscanf(text, "epoch %u\npid %d\ninvocation %39s", ret_epoch, ret_pid, ret_invocation) >= 2
               ? 0
               : -1;
}

static qn_err_t lock_write(int fd, const char *path, unsigned epoch)
{
    char text[128];
    const char *invocation = getenv("INVOCATION_ID");
    int length = snprintf(text, sizeof text, "epoch %u\npid %d\n", epoch, (int)getpid());
    if (invocation != NULL && invocation[0] != '\0')
        length += snprintf(text + length, sizeof text - (size_t)length, "invocation %.39s\n", invocation);
    if (pwrite(fd, text, (size_t)length, 0) != length || ftruncate(fd, length) != 0)
        return qn_fail(QN_ERR_IO, "cannot write %s: %s", path, strerror(errno));
    return QN_OK;
}

qn_err_t qn_lock_take(const char *run_dir, const char *service, qn_lock_t *ret_lock)
{
    char path[QN_PATH_MAX];
    if (snprintf(path, sizeof path, "%s/%s.lock", run_dir, service) >= (int)sizeof path)
        return qn_fail(QN_ERR_LIMIT, "run_dir is too long: %s", run_dir);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return qn_fail(QN_ERR_IO, "cannot open %s: %s; is the run directory there and yours?", path, strerror(errno));
    unsigned epoch;
    int pid;
    char invocation[40];
    int readable = lock_read(fd, &epoch, &pid, invocation);
    qn_err_t err = QN_OK;
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        err = errno == EWOULDBLOCK
                  ? qn_fail(QN_ERR_EXISTS, "%s already runs in %s (pid %d); stop it first, or choose another --run-dir",
                            service, run_dir, readable == 0 ? pid : 0)
                  : qn_fail(QN_ERR_IO, "cannot lock %s: %s", path, strerror(errno));
    } else if (lock_read(fd, &epoch, &pid, invocation) != 0) {
        err = qn_fail(QN_ERR_INVALID, "%s is not a lock file of this program; remove it", path);
    } else {
        err = lock_write(fd, path, epoch + 1);
    }
    if (err != QN_OK) {
        close(fd);
        return err;
    }
    *ret_lock = (qn_lock_t){.fd = fd, .epoch = epoch + 1};
    return QN_OK;
}

qn_err_t qn_lock_look(const char *run_dir, const char *service, qn_lock_holder_t *ret_holder)
{
    char path[QN_PATH_MAX];
    int fd = snprintf(path, sizeof path, "%s/%s.lock", run_dir, service) < (int)sizeof path
                 ? open(path, O_RDONLY | O_CLOEXEC)
                 : -1;
    unsigned epoch = 0;
    int pid = 0;
    int readable = fd >= 0 ? lock_read(fd, &epoch, &pid, ret_holder->invocation) : -1;
    if (fd >= 0) close(fd);
    if (readable != 0 || epoch == 0) return qn_fail(QN_ERR_NOT_FOUND, "%s has never run in %s", service, run_dir);
    ret_holder->epoch = epoch;
    ret_holder->pid = pid;
    return QN_OK;
}

void qn_lock_release(qn_lock_t *lock)
{
    if (lock->fd >= 0) close(lock->fd);
    lock->fd = -1;
}
