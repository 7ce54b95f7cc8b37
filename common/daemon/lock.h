/* One life of a service in a run directory: the lock that refuses a duplicate, and the boot epoch.
 * A second bind() to an ipc path silently steals it, so the lock is taken before any socket is made. */
#ifndef QN_COMMON_DAEMON_LOCK_H
#define QN_COMMON_DAEMON_LOCK_H

#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"

typedef struct {
    int fd;         /* holds the lock for as long as the process (or thread) lives */
    uint32_t epoch; /* boots of this service in this run directory, this one included: 1, 2, ... */
} qn_lock_t;

/* Creates <run_dir>/<service>.lock if needed, locks it, counts the boot. QN_ERR_EXISTS: another one runs; the text
 * names its pid and the remedy. Does not block. */
qn_err_t qn_lock_take(const char *run_dir, const char *service, qn_lock_t *ret_lock);
/* The last life of the service in this run directory, whether it still runs or not. */
typedef struct {
    uint32_t epoch;
    pid_t pid;
    char invocation[40]; /* its INVOCATION_ID under systemd, else "" */
} qn_lock_holder_t;
/* QN_ERR_NOT_FOUND: there was none. */
qn_err_t qn_lock_look(const char *run_dir, const char *service, qn_lock_holder_t *ret_holder);
/* Releases; the file stays, it carries the epoch. Accepts fd < 0. */
void qn_lock_release(qn_lock_t *lock);

#endif
