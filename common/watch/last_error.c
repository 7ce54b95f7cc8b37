/* What is this?      The file in which a daemon says why it ended.
 * State owned:       the file's path, per thread and per process.
 * Must never:        allocate, wait, or fail: it is called where nothing may be trusted any more.
 * Read next:         daemon.c (who writes), services/frontend/routes_status.c (who reads). */
#include "common/watch/last_error.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/limits.h"

static _Thread_local char thread_path[QN_PATH_MAX];
static char process_path[QN_PATH_MAX];
/* Daemons that are threads of one process begin at the same time: one of them writes process_path. */
static atomic_int process_path_state;
enum { UNCLAIMED, CLAIMED, WRITTEN };

static const char *own_path(void)
{
    if (thread_path[0]) return thread_path;
    return atomic_load_explicit(&process_path_state, memory_order_acquire) == WRITTEN ? process_path : "";
}

void qn_last_error_begin(const char *run_dir, const char *service)
{
    int length = snprintf(thread_path, sizeof thread_path, "%s/%s.error", run_dir, service);
    if (length < 0 || (size_t)length >= sizeof thread_path) thread_path[0] = '\0';
    int unclaimed = UNCLAIMED;
    if (!thread_path[0] || !atomic_compare_exchange_strong(&process_path_state, &unclaimed, CLAIMED)) return;
    memcpy(process_path, thread_path, sizeof process_path);
    atomic_store_explicit(&process_path_state, WRITTEN, memory_order_release);
}

void qn_last_error_write(const char *text)
{
    if (!own_path()[0]) return;
    int fd = open(own_path(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) return;
    if (write(fd, text, strcspn(text, "\n")) < 0) { /* a full disk: the log has it, too */
    }
    close(fd);
}

void qn_last_error_clear(void)
{
    if (own_path()[0]) unlink(own_path());
}

void qn_last_error_read(const char *run_dir, const char *service, char *ret_text, size_t size)
{
    char path[QN_PATH_MAX];
    ret_text[0] = '\0';
    int length = snprintf(path, sizeof path, "%s/%s.error", run_dir, service);
    int fd =
        length > 0 && (size_t)length < sizeof path ? open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK) : -1;
    if (fd < 0) return;
    ssize_t bytes = read(fd, ret_text, size - 1);
    ret_text[bytes > 0 ? bytes : 0] = '\0';
    close(fd);
}
