/* When a dead service is started again, and when it is not. Decides only; time is an argument. */
#ifndef QN_TOOLS_UP_UP_RESTART_H
#define QN_TOOLS_UP_UP_RESTART_H

#include <stdbool.h>
#include <stdint.h>

/* The first restart is immediate; then 50 ms, doubled each time up to 1 s. A life that was ready and lasted 1 s starts
 * over: it did not die of its start, and requests wait for the next one. */
#define UP_RESTART_FIRST_NS 50000000ull
#define UP_RESTART_LONGEST_NS 1000000000ull
#define UP_RESTART_HEALTHY_NS 1000000000ull
/* Deaths in a row without ever having been ready: it cannot start, and trying on only hides why. */
#define UP_RESTART_TRIES_MAX 5

typedef struct {
    uint64_t started_ns; /* of the present life */
    unsigned deaths;     /* in a row, each after less than UP_RESTART_HEALTHY_NS */
    bool was_ready;      /* in any life */
    bool is_ready;       /* in the present one */
} up_restart_t;

typedef enum {
    UP_VERDICT_RESTART, /* at *ret_at_ns */
    UP_VERDICT_GIVE_UP, /* a mistake of configuration or installation: another try ends the same way */
} up_verdict_t;

void up_restart_started(up_restart_t *restart, uint64_t now_ns);
void up_restart_ready(up_restart_t *restart);
/* `wait_status` as from waitpid. *ret_at_ns is written for UP_VERDICT_RESTART. */
up_verdict_t up_restart_died(up_restart_t *restart, int wait_status, uint64_t now_ns, uint64_t *ret_at_ns);

/* The exit status that stands for a wait status: its own, or EX_SOFTWARE for a signal or a 0 nobody asked for. */
int up_restart_exit_status(int wait_status);

#endif
