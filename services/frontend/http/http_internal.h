/* What http_server.c (the socket, the table of connections, time) and http_connection.c (one connection) share. A
 * connection carries one request at a time, so the two are one object. */
#ifndef QN_FRONTEND_HTTP_HTTP_INTERNAL_H
#define QN_FRONTEND_HTTP_HTTP_INTERNAL_H

#include "services/frontend/http/http_chunked.h"
#include "services/frontend/http/http_head.h"
#include "services/frontend/http/http_server.h"

#define HTTP_SPARES 16

typedef enum {
    HTTP_READ_HEAD, /* nothing, or part of a head, is there */
    HTTP_READ_BODY,
    HTTP_WAIT,   /* handed up; not answered */
    HTTP_STREAM, /* the answer has begun */
    HTTP_FLUSH,  /* the answer is complete; bytes of it are unsent */
    HTTP_LINGER, /* the last answer is sent; what the client still sends is thrown away, so that it can read it */
    HTTP_CLOSED, /* freed at the next occasion */
} http_phase_t;

struct http_request {
    http_server_t *server;
    int fd;
    http_phase_t phase;
    uint32_t events;      /* what epoll is asked for */
    uint64_t deadline_ns; /* UINT64_MAX: none */
    uint64_t begun_ns;    /* first byte of the head or the body being read */
    bool refused;         /* beyond the limits: never read, not counted */
    bool spare;           /* its descriptor is one of the spares */
    bool pending;         /* in the server's list of those with work besides events */

    reply_buffer_t in; /* received, not taken yet */
    size_t scanned;    /* of `in`, looked through for the end of the head */
    reply_buffer_t head_text;
    http_head_t head; /* views of head_text */
    http_chunked_t chunked;
    uint64_t body_left; /* of Content-Length */
    reply_buffer_t body;
    uint64_t lingered; /* bytes thrown away */

    char id[HTTP_REQUEST_ID_MAX + 1];
    void *user;
    bool done; /* the caller has no more to do with it */
    reply_buffer_t headers;
    unsigned header_count;
    bool keep_alive, chunked_reply;
    reply_buffer_t out, tail; /* to be sent: `out` from out_sent on, then `tail` */
    size_t out_sent;

    http_request_t *previous, *next, *next_pending;
};

struct http_server {
    int epoll_fd, listen_fd;
    int spares[HTTP_SPARES]; /* given up to accept, and refuse, when descriptors run out */
    unsigned spare_count;
    bool listening, draining;
    uint64_t now_ns, listen_again_ns, scan_ns;
    unsigned connections, refused; /* open ones; those of them that were refused */
    uint64_t body_bytes;           /* of all bodies held here */
    http_server_limits_t limits;
    http_server_callbacks_t callbacks;
    http_request_t *first;   /* all connections */
    http_request_t *pending; /* those to be advanced without an event */
    http_request_t *closed;  /* to be freed */
    char chunk[64 << 10];    /* where bytes are received */
};

/* ---- http_connection.c ---- */
/* Reads, hands up, writes: whatever `events` (of epoll, 0: none) and the connection's phase allow. */
void http_connection_advance(http_request_t *connection, uint32_t events);
/* Answers with a refusal and closes after it. */
void http_connection_refuse(http_request_t *connection, int status, const char *param, const char *reason);
/* Its deadline has passed. */
void http_connection_expire(http_request_t *connection);
/* Closes the descriptor and tells the caller when the answer was not complete. */
void http_connection_close(http_request_t *connection);

/* ---- http_server.c ---- */
/* Advances it in this turn or the next, without an event. */
void http_server_pend(http_request_t *connection);
/* Puts it into the list of those to be freed. */
void http_server_bury(http_request_t *connection);

#endif
