/* The skeleton all five daemons share: one event loop, links to peers, heartbeats, credits, taps.
 *
 * A daemon is a descriptor. Its code never sees a socket: it is given decoded messages (handlers, which only
 * record), one tick(now) per turn of the loop in which it decides, and qn_daemon_send. The same descriptor runs
 * as a process (qn_daemon_main) or as a thread of a composition (qn_daemon_run in a zactor).
 *
 * A turn: take at most QN_TAKE_MAX messages per socket -> handlers -> tick(now) -> flush -> sleep until the
 * deadline that tick returned, a message, or a watched descriptor. All callbacks run on the loop's thread.
 *
 * Links (the left side dials a DEALER, the right side binds a ROUTER):
 *   frontend -> tokenizer, scheduler, memory, compute;  tokenizer -> scheduler;
 *   scheduler -> memory, compute;  compute -> memory */
#ifndef QN_COMMON_DAEMON_DAEMON_H
#define QN_COMMON_DAEMON_DAEMON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/arena.h"
#include "common/config/config.h"
#include "common/daemon/calls.h"
#include "common/daemon/links/peer_types.h"
#include "common/err.h"
#include "common/faults.h"
#include "common/watch/stats.h"
#include "qn_messages.h"

typedef struct qn_daemon qn_daemon_t;

/* `message` points at the generated struct of the type (qn_encode_t, ...); its views are valid during the call only.
 * The frame has passed the verifier. */
typedef struct {
    qn_message_type_t type;
    void (*handle)(void *state, qn_peer_t from, const void *message);
} qn_handler_t;

typedef struct {
    qn_service_t service;
    const char *name;               /* "scheduler" */
    const qn_service_t *dials;      /* peers this daemon connects to; ends with QN_SERVICE_NONE */
    const qn_handler_t *handlers;   /* ends with QN_MESSAGE_NONE */
    const qn_method_row_t *methods; /* ends with QN_METHOD_NONE: every method of this service; NULL: it answers none */
    /* The reply of some method came, to a call of this service. NULL: it calls none. */
    void (*reply)(void *state, qn_peer_t from, qn_message_type_t type, const void *message);
    const qn_stat_spec_t *stats; /* table 1 of the page (table 0 is the skeleton's); may be NULL */
    size_t stat_count;
    bool in_step_path; /* every step waits for it: compute.spin applies */
    /* Builds the state; config outlives it. The daemon is STARTING until qn_daemon_set_state(READY). */
    qn_err_t (*init)(qn_daemon_t *daemon, const qn_config_values_t *config, void **ret_state);
    /* A peer came, is suspected, or is gone. */
    void (*peer)(void *state, qn_peer_t peer, qn_peer_event_t event);
    /* Decides and sends; returns the next time it wants to run (UINT64_MAX: only when something arrives). */
    uint64_t (*tick)(void *state, uint64_t now_ns);
    /* Stop asked (SIGTERM, composition end): finish or cancel what runs. The loop ends when drained() is true or
     * after up.stop_seconds. Both may be NULL. */
    void (*drain)(void *state);
    bool (*drained)(const void *state);
    /* Checks the service's invariants (QN_ASSERT); called every turn in debug and test builds. May be NULL. */
    void (*check)(const void *state);
    void (*fini)(void **state);
} qn_daemon_descriptor_t;

/* main() of a daemon: arguments, configuration, log, signals, lock, loop, notify. Returns the exit status. */
int qn_daemon_main(int argc, char **argv, const qn_daemon_descriptor_t *descriptor);

/* Runs one daemon in this thread until `stop_fd` becomes readable (a signalfd, an eventfd, an actor's pipe) and it
 * has drained. `composed`: other daemons live in this process, so it also binds and prefers inproc endpoints.
 * `composed_services`: bit mask (1 << qn_service_t) of the daemons in this process. Failure: start refused (duplicate,
 * bad run_dir, init failed), or the service called qn_daemon_fail. */
qn_err_t qn_daemon_run(const qn_daemon_descriptor_t *descriptor, const qn_config_t *config, unsigned composed_services,
                       int stop_fd);

/* ---- for services, on the loop's thread ---- */

/* Sends `message` (generated struct; head.request is the caller's, the rest of head is filled in here). */
qn_send_outcome_t qn_daemon_send(qn_daemon_t *daemon, qn_peer_t to, qn_message_type_t type, const void *message);
/* The peer this daemon dialled for `service`, or epoch 0 while it is down. */
qn_peer_t qn_daemon_peer(const qn_daemon_t *daemon, qn_service_t service);
/* Tells `to` that its message was refused. `status` is an HTTP status; `param` may be NULL. */
void qn_daemon_refuse(qn_daemon_t *daemon, qn_peer_t to, uint64_t request, uint16_t status, const char *param,
                      const char *text);
/* The same with a Refusal of one's own; its refused_type and refused_sequence are filled in when the message that is
 * being handled is from `to`. */
qn_send_outcome_t qn_daemon_send_refusal(qn_daemon_t *daemon, qn_peer_t to, qn_refusal_t *refusal);
/* Runs a method of this very service, as if its request had come; the answer comes to `reply` or the handler of
 * Refusal, now or later, from the peer of epoch 0. */
void qn_daemon_call_self(qn_daemon_t *daemon, const qn_method_t *method, const void *request);
/* What every heartbeat says from now on. The first READY is reported to the service manager. `text` is copied. */
void qn_daemon_set_state(qn_daemon_t *daemon, qn_state_t state, const char *text);
/* What every heartbeat says of the life of memory whose regions are mapped here (compute); 0: none. */
void qn_daemon_set_memory_epoch(qn_daemon_t *daemon, uint32_t epoch);
/* The same of the kernels that keys and values come from (compute), and whether some are from a shared object. */
void qn_daemon_set_kernel_set(qn_daemon_t *daemon, uint64_t kernel_set, bool foreign_code);
/* Wakes the loop when `fd` is readable (level-triggered; tick() reads it). At most 16. Does not own the fd. */
qn_err_t qn_daemon_watch(qn_daemon_t *daemon, int fd);
void qn_daemon_unwatch(qn_daemon_t *daemon, int fd);
/* Ends the daemon with this failure after the present callback (sticky device error, unusable model). */
void qn_daemon_fail(qn_daemon_t *daemon, qn_err_t err);
uint32_t qn_daemon_epoch(const qn_daemon_t *daemon);
const char *qn_daemon_run_dir(const qn_daemon_t *daemon);
/* The configuration that it was started with. */
const qn_config_t *qn_daemon_config(const qn_daemon_t *daemon);
qn_stats_t *qn_daemon_stats(qn_daemon_t *daemon);
/* The service's own table on the statistics page. */
#define QN_DAEMON_STATS_TABLE 1

/* Whether a fault of this kind fires here (common/faults.h). */
bool qn_daemon_fault(const qn_daemon_t *daemon, qn_fault_kind_t kind);
/* The page of faults. Returns view. */
qn_faults_t *qn_daemon_faults(qn_daemon_t *daemon);

void qn_daemon_peer_status(const qn_daemon_t *daemon, qn_service_t service, qn_peer_status_t *ret_status);
/* The same about itself. */
void qn_daemon_self_status(const qn_daemon_t *daemon, qn_peer_status_t *ret_status);

/* ---- the five ---- */
extern const qn_daemon_descriptor_t qn_frontend_daemon, qn_tokenizer_daemon, qn_scheduler_daemon, qn_memory_daemon,
    qn_compute_daemon;

#endif
