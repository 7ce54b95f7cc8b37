/* frontend.listen: "host:port", "[v6]:port", ":port" (all addresses) or "unix:PATH". */
#ifndef QN_FRONTEND_HTTP_LISTEN_ADDRESS_H
#define QN_FRONTEND_HTTP_LISTEN_ADDRESS_H

#include <stdbool.h>
#include <stddef.h>

#include "common/err.h"
#include "common/limits.h"

typedef struct {
    bool is_unix;
    char host[QN_ENDPOINT_MAX]; /* "" = all addresses; brackets removed */
    char port[8];               /* decimal; "0" = any free one */
    char path[108];             /* sun_path */
} listen_address_t;

/* QN_ERR_CONFIG names the key and the form expected. */
qn_err_t listen_address_parse(const char *text, listen_address_t *ret_address);
/* Opens a listening, non-blocking socket. A Unix socket that nobody listens on any more is replaced; one that answers
 * is not (QN_ERR_EXISTS), nor is a port in use. May block for a name lookup. Returns owned in *ret_fd. */
qn_err_t listen_address_open(const listen_address_t *address, int *ret_fd);
/* The address a socket really has, as in frontend.listen; for the log. */
void listen_address_of(int fd, char *ret_text, size_t room);

#endif
