/* All connections of one daemon: the ROUTER it binds, the DEALERs it dials, the peers behind them. Speaks the link
 * protocol (Hello, Bye, Heartbeat, Credit, Refusal of bad frames) and hands verified data messages up.
 *
 * Used by daemon.c only. One thread. Never blocks: what cannot be sent now waits in a bounded outbox. */
#ifndef QN_COMMON_DAEMON_LINKS_LINKS_H
#define QN_COMMON_DAEMON_LINKS_LINKS_H

#include <zmq.h>

#include "common/config/config.h"
#include "common/daemon/links/peer_types.h"
#include "common/err.h"
#include "common/faults.h"
#include "common/watch/stats.h"
#include "common/watch/tap.h"

typedef struct qn_links qn_links_t;

/* Rows of table 0 of every statistics page. */
enum {
    QN_LINK_STAT_FRAMES_SENT,
    QN_LINK_STAT_FRAMES_RECEIVED,
    QN_LINK_STAT_BYTES_SENT,
    QN_LINK_STAT_BYTES_RECEIVED,
    QN_LINK_STAT_MALFORMED,
    QN_LINK_STAT_STALE,
    QN_LINK_STAT_LOST,
    QN_LINK_STAT_UNALIGNED,
    QN_LINK_STAT_HELD,
    QN_LINK_STAT_REFUSED_FULL,
    QN_LINK_STAT_HOP_FRONTEND,
    QN_LINK_STAT_HOP_TOKENIZER,
    QN_LINK_STAT_HOP_SCHEDULER,
    QN_LINK_STAT_HOP_MEMORY,
    QN_LINK_STAT_HOP_COMPUTE,
    QN_LINK_STAT_COUNT,
};
extern const qn_stat_spec_t qn_link_stats[QN_LINK_STAT_COUNT];

typedef struct {
    qn_service_t service;
    const qn_service_t *dials; /* ends with QN_SERVICE_NONE */
    const char *run_dir;
    const qn_config_values_t *config; /* endpoints */
    unsigned composed_services;       /* 1 << service for those in this process */
    uint32_t epoch;
    uint64_t started_ns;
    qn_stats_t *stats;
    qn_tap_t *tap; /* borrowed */
    void *context;
    /* A verified data message from a greeted peer; views are valid during the call. */
    void (*deliver)(void *context, qn_peer_t from, qn_message_type_t type, const void *message);
    void (*peer)(void *context, qn_peer_t peer, qn_peer_event_t event);
} qn_links_spec_t;

/* Binds and dials. The daemon's lock must be held: binding an ipc path steals it from whoever has it. Returns owned. */
qn_err_t qn_links_open(const qn_links_spec_t *spec, qn_links_t **ret_links);
/* Says BYE to everybody and closes; accepts NULL. */
void qn_links_close(qn_links_t **links, const char *reason);

/* At most this many poll items: the ROUTER, a DEALER per service, the tap, a pidfd per peer. */
#define QN_LINKS_POLL_MAX (QN_PEERS_MAX + 8)
/* Writes the poll items of all sockets and of the peers' pidfds; returns how many. */
size_t qn_links_poll_items(const qn_links_t *links, zmq_pollitem_t items[QN_LINKS_POLL_MAX]);
/* Takes what zmq_poll found on those items, at most QN_TAKE_MAX messages per socket. True: there may be more. */
bool qn_links_take(qn_links_t *links, const zmq_pollitem_t *items, size_t count, uint64_t now_ns);
/* Greets, beats, suspects, and sends what was held; returns when it is next due. */
uint64_t qn_links_turn(qn_links_t *links, uint64_t now_ns);

qn_send_outcome_t qn_links_send(qn_links_t *links, qn_peer_t to, qn_message_type_t type, const void *message);
/* What heartbeats say from now on; told to everybody at once. */
void qn_links_set_state(qn_links_t *links, qn_state_t state, const char *text);
void qn_links_set_memory_epoch(qn_links_t *links, uint32_t epoch);
void qn_links_set_kernel_set(qn_links_t *links, uint64_t kernel_set, bool foreign_code);
/* Returns view of the page of faults that this daemon maps. */
qn_faults_t *qn_links_faults(qn_links_t *links);
qn_peer_t qn_links_dialled(const qn_links_t *links, qn_service_t service);
void qn_links_status(const qn_links_t *links, qn_service_t service, qn_peer_status_t *ret_status);
void qn_links_self_status(const qn_links_t *links, qn_peer_status_t *ret_status);

/* Names this host and pid namespace: processes that say the same in Hello can watch each other's lives. */
void qn_links_host(char ret_host[QN_NAME_MAX]);

/* Once per process, before any socket: no signal handlers, no zero-copy receive (libzmq hands out unaligned slices of its
 * receive buffer). */
void qn_links_setup_zmq(void);

#endif
