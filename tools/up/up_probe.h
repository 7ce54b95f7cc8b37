/* Asks the frontend GET /ready without waiting: the services have each said that they are ready, but a request is served
 * only when the frontend has also heard of them. */
#ifndef QN_TOOLS_UP_UP_PROBE_H
#define QN_TOOLS_UP_UP_PROBE_H

#include <stdbool.h>
#include <stddef.h>

typedef struct {
    int fd; /* -1: no question is open */
    bool sent;
    char reply[16]; /* "HTTP/1.1 200" is enough */
    size_t used;
} up_probe_t;

typedef enum {
    UP_PROBE_PENDING, /* wait for up_probe_events on probe->fd, then go on */
    UP_PROBE_READY,   /* 200 */
    UP_PROBE_NOT_YET, /* another status, or the connection broke */
    UP_PROBE_NOBODY,  /* nobody listens there */
} up_probe_outcome_t;

/* Connects to frontend.listen ("host:port", "unix:PATH", ...). May block for the lookup of a host name. Any outcome but
 * PENDING closes the connection. */
up_probe_outcome_t up_probe_begin(up_probe_t *probe, const char *listen);
/* Goes on as far as it can without waiting. */
up_probe_outcome_t up_probe_step(up_probe_t *probe);
/* What poll should wait for on probe->fd. */
short up_probe_events(const up_probe_t *probe);
void up_probe_close(up_probe_t *probe);

#endif
