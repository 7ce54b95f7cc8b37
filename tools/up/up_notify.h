/* The receiving end of sd_notify(3): what a service tells its manager. */
#ifndef QN_TOOLS_UP_UP_NOTIFY_H
#define QN_TOOLS_UP_UP_NOTIFY_H

#include <stdbool.h>
#include <stddef.h>

#include "common/err.h"
#include "common/limits.h"
#include "tools/up/up_store.h"

#define UP_NOTICE_BYTES_MAX 4096

typedef struct {
    bool ready, stopping, alive; /* alive: WATCHDOG=1 */
    bool has_status;
    char status[QN_REASON_MAX]; /* cut to fit; control characters replaced */
    bool fd_store, fd_store_remove;
    char fd_name[UP_FD_NAME_MAX]; /* "": none given, or one that may not be */
} up_notice_t;

/* Reads "KEY=VALUE" lines. Unknown keys are ignored. */
void up_notice_parse(const char *text, size_t length, up_notice_t *ret_notice);

/* Binds a datagram socket at `path` (replacing what is there), non-blocking. The path of a Unix socket has at most 107
 * bytes: QN_ERR_LIMIT. */
qn_err_t up_notify_open(const char *path, int *ret_fd);
/* Takes one message; false: none is waiting. Descriptors that came with FDSTORE=1 are the caller's; all others are
 * closed here, which is also the answer to BARRIER=1. */
bool up_notify_take(int fd, up_notice_t *ret_notice, int ret_fds[UP_STORE_FDS_MAX], size_t *ret_fd_count);

#endif
