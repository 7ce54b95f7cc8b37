/* One supervised process: its start, its output, what it says to its manager, the descriptors kept for it. */
#ifndef QN_TOOLS_UP_UP_CHILD_H
#define QN_TOOLS_UP_UP_CHILD_H

#include <sys/types.h>

#include "tools/up/up_log.h"
#include "tools/up/up_notify.h"
#include "tools/up/up_restart.h"
#include "tools/up/up_store.h"

typedef enum {
    UP_CHILD_WAITING,  /* to be started at start_at_ns */
    UP_CHILD_STARTING, /* runs, has not said READY=1 */
    UP_CHILD_READY,
    UP_CHILD_STOPPING, /* was sent SIGTERM, or said STOPPING=1 */
    UP_CHILD_ENDED,    /* will not be started again */
} up_child_state_t;

typedef struct {
    const char *name;    /* "scheduler"; "composed" for several services in one process. Borrowed */
    const char *program; /* borrowed */
    char *const *argv;   /* borrowed; ends with NULL */
    up_log_t *log;       /* borrowed */
    up_child_state_t state;
    pid_t pid;     /* 0: none */
    int output_fd; /* read end of the process's standard output and error; -1: none */
    int notify_fd;
    char notify_path[108];
    uint64_t start_at_ns;
    bool waits_for_former; /* that it does so was said */
    uint64_t watchdog_ns;  /* without a sign of life before it is killed; 0: never */
    uint64_t alive_ns;     /* its last sign of life; 0: it has given none, so none is missed */
    uint64_t aborted_ns;   /* SIGABRT was sent; 0: it was not */
    up_restart_t restart;
    up_store_t store;
    up_lines_t lines;
    char last_error[512]; /* the last line of priority error or above, for the report of a failed start */
} up_child_t;

/* Makes the notify socket <run_dir>/up.<name>.notify. `run_dir` is absolute. */
qn_err_t up_child_open(up_child_t *child, const char *run_dir);
/* Closes and removes what up_child_open made, and the kept descriptors. */
void up_child_close(up_child_t *child);

/* Starts the process in its own process group, with SIGKILL when this one dies, no standard input, and the kept
 * descriptors from 3 on (LISTEN_FDS, LISTEN_FDNAMES, LISTEN_PID). */
qn_err_t up_child_start(up_child_t *child, uint64_t now_ns);
/* Logs what the process printed. */
void up_child_take_output(up_child_t *child);
/* Takes all waiting notices. Returns true when the process became ready by one of them. */
bool up_child_take_notices(up_child_t *child);
/* Kills a process that shows no sign of life: SIGABRT, for the core dump, then SIGKILL, which also ends one that is
 * stopped. Returns when to look again; UINT64_MAX: never. */
uint64_t up_child_watch(up_child_t *child, uint64_t now_ns);
/* Sends `signal` to the process group; no effect without a process. */
void up_child_signal(const up_child_t *child, int signal);
/* Has the process ended? Then its last notices and output are taken, the rest of its group is killed, and *ret_status
 * is as from waitpid. Does not block. */
bool up_child_reap(up_child_t *child, int *ret_status);

#endif
