/* The sniffer tap: a daemon mirrors the frames it sends (so each appears once in a system) and the malformed ones it
 * received to whoever listens on <run_dir>/<service>.tap, always over ipc, also when daemons are threads of one
 * process.
 *
 * Costs one branch per frame while nobody listens, one copy while somebody does. Never blocks and never fails: a
 * listener that does not keep up loses frames, alone. Frames are numbered, so each listener knows exactly how
 * many it missed; the numbers are the announcement.
 *
 * One ZeroMQ message per frame: a qn_tap_header_t in the byte order of the host, then the frame. The header starts with
 * the frame's file identifier, so a listener may subscribe to types by it ("QSPL"); it must subscribe to
 * everything ("") when it wants to count what it missed. */
#ifndef QN_COMMON_TAP_H
#define QN_COMMON_TAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

#define QN_TAP_VERSION 1
/* Messages held for a listener that is behind: about a second of a busy daemon, under a megabyte of ordinary frames. */
#define QN_TAP_QUEUE 1024
/* Bytes of a service's name with the terminating NUL; "scheduler@12" fits. */
#define QN_TAP_NAME_BYTES 24

typedef enum {
    QN_TAP_SENT = 0,    /* the daemon sent this frame */
    QN_TAP_DROPPED = 1, /* the daemon received this frame, the verifier refused it, it was dropped */
} qn_tap_direction_t;

/* 64 bytes, no padding. */
typedef struct {
    char type[4];      /* the frame's file identifier; zeros when it is too short to have one */
    uint8_t version;   /* QN_TAP_VERSION */
    uint8_t direction; /* qn_tap_direction_t */
    uint16_t reserved;
    uint32_t frame_bytes;
    uint32_t pid;
    uint64_t boot_ns;                /* when this tap was opened: another value is another life of the daemon */
    uint64_t number;                 /* of this frame among the mirrored ones, from 1 */
    uint64_t now_ns;                 /* when it was mirrored */
    char service[QN_TAP_NAME_BYTES]; /* whose tap this is, NUL-padded */
} qn_tap_header_t;

_Static_assert(sizeof(qn_tap_header_t) == 64, "listeners in other languages rely on 64 bytes without padding");

/* ---- the daemon's side ---- */

/* Only qn_tap_listening may look inside. */
typedef struct {
    void *zsock;     /* owned; zsock_t, XPUB */
    char *path;      /* owned; of the bound socket */
    unsigned topics; /* distinct subscriptions of all listeners */
    uint64_t number;
    qn_tap_header_t header; /* what stays the same from frame to frame */
} qn_tap_t;

/* Binds <run_dir>/<service>.tap. A socket of that name left by a dead daemon is replaced: hold the daemon's lock
 * first. Failure: QN_ERR_INVALID (the path is longer than a Unix socket's may be), QN_ERR_IO. Returns owned. */
qn_err_t qn_tap_open(const char *run_dir, const char *service, qn_tap_t **ret_tap);
/* Frees, nulls and removes the socket's path; accepts NULL. Frames already mirrored have a few milliseconds to reach
 * their listeners. */
void qn_tap_close(qn_tap_t **tap);
/* Returns view of the raw ZeroMQ socket for the loop's poll: readable when a subscription changed. */
void *qn_tap_socket(const qn_tap_t *tap);
/* Takes the pending subscription changes. Call when qn_tap_socket is readable, or every turn. */
void qn_tap_turn(qn_tap_t *tap);

/* The one branch. */
static inline bool qn_tap_listening(const qn_tap_t *tap) { return __builtin_expect(tap->topics != 0, 0); }

/* Mirrors a frame (copied) when somebody listens. */
void qn_tap_frame(qn_tap_t *tap, qn_tap_direction_t direction, const void *frame, size_t bytes);

/* ---- the listener's side ---- */

typedef struct qn_tap_reader qn_tap_reader_t;

/* A mirrored frame as a listener sees it; views are valid until the next take. */
typedef struct {
    const qn_tap_header_t *header;
    const void *frame; /* 16-byte aligned */
    size_t bytes;
    uint64_t missed; /* frames of this tap lost since the previous one that arrived */
    bool new_boot;   /* the daemon behind the tap was restarted since the previous one (never for the first) */
} qn_tap_message_t;

/* Connects to the taps of `services` (at most 64, borrowed for the call). Daemons that do not run yet are waited for,
 * restarted ones found again. Failure: QN_ERR_INVALID, QN_ERR_IO. Returns owned. */
qn_err_t qn_tap_reader_open(const char *run_dir, const char *const *services, size_t service_count,
                            qn_tap_reader_t **ret_reader);
void qn_tap_reader_close(qn_tap_reader_t **reader);
void *qn_tap_reader_socket(const qn_tap_reader_t *reader);
/* Takes one frame without waiting; false: none is there. Messages that break the format are skipped and counted. */
bool qn_tap_reader_take(qn_tap_reader_t *reader, qn_tap_message_t *ret_message);
/* Messages skipped because they are not of this version or break the format. */
uint64_t qn_tap_reader_foreign(const qn_tap_reader_t *reader);

#endif
