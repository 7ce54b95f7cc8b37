/* The protocol state of one link to one life of a peer: greeting, message numbers, credit, liveness. Pure: no socket,
 * no clock; links.c feeds it what arrived and asks what is due.
 *
 * Credit: each side may send data messages numbered 1, 2, ... up to a limit the other granted. A limit is
 * absolute, so a lost or repeated grant harms nothing. Link control (Hello, Bye, Heartbeat, Credit) has number 0 and
 * needs no credit.
 * Liveness: QN_LIVENESS silent heartbeat periods make a peer suspected. Suspicion changes nothing but what is shown. */
#ifndef QN_COMMON_DAEMON_LINKS_PEER_H
#define QN_COMMON_DAEMON_LINKS_PEER_H

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    bool greeted; /* Hello exchanged with this life */
    bool suspect;
    uint32_t window;     /* what we grant: messages we hold unhandled at most */
    uint64_t numbered;   /* number of the last data message made; it may still wait for credit */
    uint64_t sent_limit; /* the peer's grant to us */
    uint64_t received;   /* number of the last data message taken */
    uint64_t granted;    /* our grant to the peer, as last told */
    uint64_t heard_ns;   /* last frame of any kind */
    uint64_t beat_ns;    /* last Heartbeat or Hello sent */
} qn_peer_link_t;

/* A new life greeted us (or answered our greeting), granting `peer_window`. */
void qn_peer_link_greet(qn_peer_link_t *link, uint32_t own_window, uint32_t peer_window, uint64_t now_ns);
/* The number for the next data message. */
uint64_t qn_peer_link_next_number(qn_peer_link_t *link);
/* Whether the peer's grant covers data message `number`. */
bool qn_peer_link_may_send(const qn_peer_link_t *link, uint64_t number);
/* A grant arrived; lower than known: ignored (late or repeated). */
void qn_peer_link_granted(qn_peer_link_t *link, uint64_t limit);

typedef enum {
    QN_PEER_DATA_NEXT,     /* in order */
    QN_PEER_DATA_GAP,      /* in order, but messages before it were lost */
    QN_PEER_DATA_REPEATED, /* seen already: drop */
    QN_PEER_DATA_OVERRUN,  /* beyond our grant: the peer breaks the protocol; drop */
} qn_peer_data_t;
/* A data message with `number` was taken. */
qn_peer_data_t qn_peer_link_take(qn_peer_link_t *link, uint64_t number);
/* Our grant as it should be told now: 0 while at least half of the told window is left. */
uint64_t qn_peer_link_credit_due(const qn_peer_link_t *link);
/* The grant a Heartbeat carries; remembers it as told. */
uint64_t qn_peer_link_grant(qn_peer_link_t *link);

/* Something arrived. True: it was suspected until now. */
bool qn_peer_link_heard(qn_peer_link_t *link, uint64_t now_ns);
/* True once when the peer becomes suspected. */
bool qn_peer_link_falls_silent(qn_peer_link_t *link, uint64_t now_ns);
bool qn_peer_link_beat_due(const qn_peer_link_t *link, uint64_t now_ns);

#endif
