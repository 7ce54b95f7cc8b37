/* What a service manager knows of the last crash of a service, left for the next lives: <run_dir>/<service>.crash.
 *
 * A crash is an exit with another status than 0, or SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL: an end that the program
 * brought about itself. SIGKILL and SIGTERM come from outside and are none, nor is the SIGABRT of a watchdog. The record is there before the service is
 * started again, and names the life (boot epoch) that ended. `quintet up` writes it, or `quintet note-crash` as systemd's
 * ExecStopPost=; who was served by the service reads it when the next life is there. */
#ifndef QN_COMMON_DAEMON_CRASH_H
#define QN_COMMON_DAEMON_CRASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"

typedef struct {
    uint32_t epoch; /* the life that crashed */
    pid_t pid;
    int signal; /* 0: it exited with `status` */
    int status;
    int64_t at_s; /* seconds since 1970 */
} qn_crash_t;

/* Whether a process that ended with this status (as from waitpid) crashed. */
bool qn_crash_counts(int wait_status);
/* Writes the record of the service's last life, when that was process `pid` (0: of this INVOCATION_ID, as systemd gives it).
 * A process that ended before its life had begun leaves no record: QN_ERR_NOT_FOUND. QN_ERR_IO. */
qn_err_t qn_crash_write(const char *run_dir, const char *service, pid_t pid, int wait_status);
/* Whether that life of the service crashed; *ret_crash says how. */
bool qn_crash_read(const char *run_dir, const char *service, uint32_t epoch, qn_crash_t *ret_crash);
/* "SIGSEGV", "status 70". Returns `buffer`. */
const char *qn_crash_describe(const qn_crash_t *crash, char *buffer, size_t capacity);

#endif
