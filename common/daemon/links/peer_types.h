/* The words in which daemon.h and links.h speak of peers: who one is, what becomes of it, what became of a message. */
#ifndef QN_COMMON_DAEMON_LINKS_PEER_TYPES_H
#define QN_COMMON_DAEMON_LINKS_PEER_TYPES_H

#include <stdbool.h>
#include <stdint.h>

#include "common/limits.h"
#include "qn_messages.h"

/* One life of a peer. A restarted peer has the same service and instance and another epoch; what was sent to the old
 * one is lost and what the old one sent is no longer delivered. Compare with qn_peer_equal. */
typedef struct {
    uint32_t epoch;  /* 0: no peer */
    uint8_t service; /* qn_service_t */
    uint8_t instance;
} qn_peer_t;

static inline bool qn_peer_equal(qn_peer_t a, qn_peer_t b)
{
    return a.epoch == b.epoch && a.service == b.service && a.instance == b.instance;
}

/* The scheduler: there is one, instance 0, whose leases and plans count. Links see to it that nobody else is that one
 * while it lives; further instances may greet, watch and be answered. */
static inline bool qn_peer_is_scheduler(qn_peer_t peer)
{
    return peer.service == QN_SERVICE_SCHEDULER && peer.instance == 0;
}

typedef enum {
    QN_PEER_UP,      /* HELLO exchanged: messages flow */
    QN_PEER_SUSPECT, /* QN_LIVENESS heartbeats missed; nothing is freed for that */
    QN_PEER_RESUMED, /* heard of again after SUSPECT */
    QN_PEER_GONE,    /* proven: BYE, process dead (pidfd), or a newer epoch of the same instance */
} qn_peer_event_t;

typedef enum {
    QN_SEND_OK,      /* sent, or held for credit; delivered unless the peer dies first */
    QN_SEND_FULL,    /* QN_OUTBOX_MAX messages are held for this peer: try again in a later tick */
    QN_SEND_GONE,    /* this peer does not live (any more) */
    QN_SEND_INVALID, /* it breaks its schema (a length, a range, QN_FRAME_BYTES_MAX): nothing was sent, qn_err_text says
                        what; refuse the request it belongs to */
} qn_send_outcome_t;

/* What is known of a service from its heartbeats and its process, which is asked at each call; costs no message. */
typedef struct {
    qn_peer_t peer; /* epoch 0: never seen */
    qn_state_t state;
    bool alive; /* heartbeats are current */
    uint64_t uptime_ms;
    uint64_t heard_ns; /* time of the last frame */
    uint32_t pid;      /* 0: dead, or never seen */
    uint32_t restarts;
    uint32_t memory_epoch; /* that it runs on; 0: none */
    uint64_t kernel_set;   /* that it computes with; 0: none */
    bool foreign_code;     /* as its heartbeats say */
    uint64_t beats;        /* heartbeats of this life so far: a later one is newer news */
    char build[QN_NAME_MAX];
    char transport[16];                         /* "ipc", "inproc", "tcp" */
    char text[QN_REASON_MAX + QN_ERR_TEXT_MAX]; /* what it said last; why it is not alive */
} qn_peer_status_t;

#endif
