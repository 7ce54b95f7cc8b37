/* The sniffer tap: a daemon mirrors the frames it sends (so each appears once in a system) and the malformed ones it
 * received to whoever listens on <run_dir>/<service>.tap, always over ipc, also when daemons are threads of one
 * process.
 *
 * Costs one branch per frame while nobody listens, a look at a short table while somebody listens to other types, one copy
 * for what somebody asked for. Never blocks and never fails: a listener that does not keep up loses frames, alone. The
 * frames of a type are numbered, so each listener knows exactly how many it missed; the numbers are the announcement.
 *
 * One ZeroMQ message per frame: a qn_tap_header_t in the byte order of the host, then the frame. A subscription is a prefix
 * of the header: its first 8 bytes say direction, service and type, so only what is asked for leaves the daemon. The empty
 * one asks for everything. */
#ifndef QN_COMMON_WATCH_TAP_H
#define QN_COMMON_WATCH_TAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

#define QN_TAP_VERSION 2
/* Messages held for a listener that is behind: several seconds of a busy daemon, some megabytes of ordinary frames. */
#define QN_TAP_QUEUE 16384
/* Distinct types and subscriptions that a tap tells apart; more subscriptions count as one to everything. Types: those
 * that one daemon sends, replies of methods among them. */
#define QN_TAP_TYPES_MAX 256
#define QN_TAP_TOPICS_MAX 512
#define QN_TAP_TOPIC_BYTES 8
/* Bytes of a service's name with the terminating NUL; "scheduler@12" fits. */
#define QN_TAP_NAME_BYTES 24

typedef enum {
    QN_TAP_SENT = 0,    /* the daemon sent this frame */
    QN_TAP_DROPPED = 1, /* the daemon received this frame, the verifier refused it, it was dropped */
    QN_TAP_SPAN = 2,    /* no frame but a qn_tap_span_t: something that the daemon's loop did */
} qn_tap_direction_t;

/* 64 bytes, no padding. */
typedef struct {
    uint8_t direction; /* qn_tap_direction_t */
    uint8_t source;    /* qn_service_t of the tap's daemon */
    uint8_t version;   /* QN_TAP_VERSION */
    uint8_t reserved;
    char type[4]; /* the frame's file identifier; zeros when it was dropped */
    uint32_t frame_bytes;
    uint32_t pid;
    uint64_t boot_ns;                /* when this tap was opened: another value is another life of the daemon */
    uint64_t number;                 /* among the mirrored frames of this direction and type, from 1 */
    uint64_t now_ns;                 /* when it was mirrored */
    char service[QN_TAP_NAME_BYTES]; /* whose tap this is, NUL-padded */
} qn_tap_header_t;

_Static_assert(sizeof(qn_tap_header_t) == 64, "listeners in other languages rely on 64 bytes without padding");

typedef enum {
    QN_TAP_HANDLED = 0, /* a message was handled */
    QN_TAP_TURN = 1,    /* a whole turn of the loop, in which something was handled or sent */
} qn_tap_span_kind_t;

/* What a recorder shows as a slice; 48 bytes, no padding. Of a turn only kind and times mean anything. */
typedef struct {
    uint8_t kind; /* qn_tap_span_kind_t */
    uint8_t from; /* qn_service_t of the message's sender */
    uint8_t reserved[2];
    char type[4];   /* the message's file identifier */
    uint32_t epoch; /* its head: of the sender, ... */
    uint32_t unused;
    uint64_t sequence, request;
    uint64_t begin_ns, end_ns;
} qn_tap_span_t;

_Static_assert(sizeof(qn_tap_span_t) == 48, "captures rely on 48 bytes without padding");

/* ---- the daemon's side ---- */

/* What is mirrored of one direction and type. */
typedef struct {
    uint8_t topic[QN_TAP_TOPIC_BYTES];
    bool wanted;
    uint64_t number;
} qn_tap_type_t;

/* Only qn_tap_listening may look inside. */
typedef struct {
    void *zsock;     /* owned; zsock_t, XPUB */
    char *path;      /* owned; of the bound socket */
    unsigned topics; /* distinct subscriptions of all listeners */
    unsigned unkept; /* of them: longer than a topic, or more than there is room for */
    struct {
        uint8_t bytes, text[QN_TAP_TOPIC_BYTES];
    } kept[QN_TAP_TOPICS_MAX];
    qn_tap_type_t types[QN_TAP_TYPES_MAX];
    unsigned type_count;
    bool spans;             /* somebody asked for them */
    qn_tap_header_t header; /* what stays the same from frame to frame */
} qn_tap_t;

/* Binds <run_dir>/<service>.tap; `source` is the service's number. A socket of that name left by a dead daemon is replaced: hold the daemon's lock
 * first. Failure: QN_ERR_INVALID (the path is longer than a Unix socket's may be), QN_ERR_IO. Returns owned. */
qn_err_t qn_tap_open(const char *run_dir, const char *service, uint8_t source, qn_tap_t **ret_tap);
/* Frees, nulls and removes the socket's path; accepts NULL. Frames already mirrored have a few milliseconds to reach
 * their listeners. */
void qn_tap_close(qn_tap_t **tap);
/* Returns view of the raw ZeroMQ socket for the loop's poll: readable when a subscription changed. */
void *qn_tap_socket(const qn_tap_t *tap);
/* Takes the pending subscription changes. Call when qn_tap_socket is readable, or every turn. */
void qn_tap_turn(qn_tap_t *tap);

/* The one branch. */
static inline bool qn_tap_listening(const qn_tap_t *tap) { return __builtin_expect(tap->topics != 0, 0); }

/* Whether spans are wanted: the branch before any clock is read for one. */
static inline bool qn_tap_wants_spans(const qn_tap_t *tap) { return __builtin_expect(tap->spans, 0); }
/* Tells who asked. */
void qn_tap_span(qn_tap_t *tap, const qn_tap_span_t *span);

/* Mirrors a frame (copied) when somebody asked for its type. */
void qn_tap_frame(qn_tap_t *tap, qn_tap_direction_t direction, const void *frame, size_t bytes);

/* ---- the listener's side ---- */

typedef struct qn_tap_reader qn_tap_reader_t;

/* A mirrored frame as a listener sees it; views are valid until the next take. */
typedef struct {
    const qn_tap_header_t *header;
    const void *frame; /* 16-byte aligned */
    size_t bytes;
    uint64_t missed; /* frames of its kind lost since the previous one that arrived */
    bool new_boot;   /* the daemon behind the tap was restarted since the previous one (never for the first) */
} qn_tap_message_t;

/* Connects to the taps of `services` (at most 64, borrowed for the call), to hear nothing yet. Daemons that do not run yet
 * are waited for, restarted ones found again. Failure: QN_ERR_INVALID, QN_ERR_IO. Returns owned. */
qn_err_t qn_tap_reader_open(const char *run_dir, const char *const *services, size_t service_count,
                            qn_tap_reader_t **ret_reader);
/* Asks for the frames of `type` (a file identifier) that the service number `source` sends. */
void qn_tap_reader_want(qn_tap_reader_t *reader, uint8_t source, const char type[4]);
/* Asks for the frames that were dropped, whoever sent them. */
void qn_tap_reader_want_dropped(qn_tap_reader_t *reader);
/* Asks for the spans of all daemons. */
void qn_tap_reader_want_spans(qn_tap_reader_t *reader);
void qn_tap_reader_want_all(qn_tap_reader_t *reader);
void qn_tap_reader_close(qn_tap_reader_t **reader);
void *qn_tap_reader_socket(const qn_tap_reader_t *reader);
/* Takes one frame without waiting; false: none is there. Messages that break the format are skipped and counted. */
bool qn_tap_reader_take(qn_tap_reader_t *reader, qn_tap_message_t *ret_message);
/* Messages skipped because they are not of this version or break the format. */
uint64_t qn_tap_reader_foreign(const qn_tap_reader_t *reader);

#endif
