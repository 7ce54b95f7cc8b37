/* What links.c (sockets, sending, time) and links_receive.c (frames in, lives and deaths) share. */
#ifndef QN_COMMON_DAEMON_LINKS_LINKS_INTERNAL_H
#define QN_COMMON_DAEMON_LINKS_LINKS_INTERNAL_H

#include <czmq.h>

#include "common/faults.h"
#include "common/daemon/links/links.h"
#include "common/daemon/links/outbox.h"
#include "common/daemon/links/peer.h"

#define IDENTITY_BYTES_MAX 64
#define QN_LINK_DEATH "its process died"

/* A connection and, once greeted, the life of a peer behind it. Dialled ones keep their place for good. */
typedef struct {
    bool used;
    qn_service_t dials; /* QN_SERVICE_NONE: came in through the ROUTER */
    zsock_t *dealer;    /* dialled only */
    bool inner;         /* dialled over inproc */
    bool redial;        /* its inproc connection is dead: connect again */
    unsigned connects;
    uint8_t identity[IDENTITY_BYTES_MAX]; /* inbound only: the ROUTER's name for it */
    size_t identity_bytes;
    qn_peer_t id; /* epoch 0 until greeted */
    qn_peer_link_t link;
    qn_outbox_t outbox;
    int pidfd;         /* -1: another host, this process, or not greeted */
    bool local;        /* a process of this host, and not this one */
    uint16_t protocol; /* agreed with this life; 0: not greeted */
    uint64_t hello_due_ns;
    bool complained; /* a bad frame of this life has been logged */
    qn_peer_status_t status;
} link_t;

typedef struct links_held links_held_t;

struct qn_links {
    qn_links_spec_t spec;
    qn_faults_t faults;
    links_held_t *held; /* frames that a fault holds back, in the order they came */
    size_t held_count;
    zsock_t *router; /* NULL for a daemon nobody dials */
    link_t links[QN_PEERS_MAX];
    qn_state_t state;
    char text[QN_REASON_MAX];
    uint32_t memory_epoch; /* as heartbeats say, like the next two */
    uint64_t kernel_set;
    bool foreign_code;
    char host[QN_NAME_MAX];
    uint64_t now_ns;
    qn_arena_t encode_arena, decode_arena;
    qn_peer_t refused; /* the last greeting that was refused, to log it once */
    uint32_t refused_pid;
    uint64_t refused_ns;
    void *message;    /* decoded; as large as the largest struct */
    uint8_t *aligned; /* copy of an unaligned frame */
    size_t aligned_bytes;
};

/* Sends link control: no credit, and lost when the socket has no room; it is repeated by design. */
bool qn_link_control(qn_links_t *links, link_t *link, qn_message_type_t type, void *message);
bool qn_link_hello(qn_links_t *links, link_t *link, bool reply);
void qn_link_bye(qn_links_t *links, link_t *link, bool unknown_peer, const char *reason);

/* links_receive.c: one frame, whatever came before. */
void qn_links_take_frame(qn_links_t *links, link_t *link, const void *identity, size_t identity_bytes,
                         const void *frame, size_t bytes);
link_t *qn_links_inbound(qn_links_t *links, const void *identity, size_t identity_bytes);

/* links_faults.c: the same under the faults in force. */
void qn_links_take_faulty(qn_links_t *links, link_t *link, const void *identity, size_t identity_bytes,
                          const void *frame, size_t bytes);
/* Takes held frames whose time has come; returns when the next one's is. */
uint64_t qn_links_release_held(qn_links_t *links);
/* Of this link; NULL: of all. */
void qn_links_drop_held(qn_links_t *links, const link_t *link);

#endif
