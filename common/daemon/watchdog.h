/* The sign of life for the service manager (systemd's WatchdogSec, or `quintet up`): a loop that stands still for longer
 * than it allows is killed and started again. Fed from the loop itself, never by a timer of its own: what is fed is
 * alive. Never blocks, also when the manager reads nothing. One thread. */
#ifndef QN_COMMON_DAEMON_WATCHDOG_H
#define QN_COMMON_DAEMON_WATCHDOG_H

#include <stdint.h>

typedef struct {
    int fd;             /* -1: nobody watches */
    uint64_t period_ns; /* it is fed this often; a quarter of what the manager allows */
    uint64_t due_ns;
} qn_watchdog_t;

/* Watches when the manager asks for it (WATCHDOG_USEC, WATCHDOG_PID, NOTIFY_SOCKET). */
void qn_watchdog_open(qn_watchdog_t *watchdog);
void qn_watchdog_close(qn_watchdog_t *watchdog);
/* Says that the loop turns, when it is time; returns when it wants to be fed next (UINT64_MAX: never). */
uint64_t qn_watchdog_feed(qn_watchdog_t *watchdog, uint64_t now_ns);

#endif
