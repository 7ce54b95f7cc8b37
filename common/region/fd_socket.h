/* Hands descriptors to other processes of the same user over a Unix socket (SCM_RIGHTS).
 *
 * One request and one answer per connection, as SOCK_SEQPACKET packets: {region id, epoch} -> {status} + descriptor.
 * Peers of another uid are refused (SO_PEERCRED). The server never blocks: it is one epoll descriptor that a loop
 * watches, with at most QN_FD_CLIENTS_MAX connections; when they are all silent the oldest is dropped for a new one. */
#ifndef QN_COMMON_REGION_FD_SOCKET_H
#define QN_COMMON_REGION_FD_SOCKET_H

#include <stdint.h>

#include "common/err.h"

#define QN_FD_CLIENTS_MAX 16

typedef struct qn_fd_server qn_fd_server_t;

/* The descriptor of region `id` of `epoch` (borrowed; it is duplicated by the kernel on the way), or -1: not known. */
typedef int qn_fd_find_t(void *state, uint64_t id, uint32_t epoch);

/* Listens at `path` (mode 0600), replacing a socket left there: the caller holds the lock that makes it the only
 * server. QN_ERR_LIMIT: the path is longer than a Unix socket allows (107 bytes). Returns owned. */
qn_err_t qn_fd_server_create(const char *path, qn_fd_find_t *find, void *state, qn_fd_server_t **ret_server);
/* Readable when there is something to do (for qn_daemon_watch); borrowed. */
int qn_fd_server_fd(const qn_fd_server_t *server);
/* Does what can be done now, never blocks; returns how many requests were answered. */
unsigned qn_fd_server_serve(qn_fd_server_t *server);
/* Closes all and removes the socket file. */
void qn_fd_server_destroy(qn_fd_server_t **server);

/* Asks the server at `path`; blocks at most `timeout_ms`. QN_ERR_NOT_FOUND: it has no such region; QN_ERR_PEER: no
 * server, or not one of ours; QN_ERR_TIMEOUT. The descriptor is owned by the caller and close-on-exec. */
qn_err_t qn_fd_request(const char *path, uint64_t id, uint32_t epoch, int timeout_ms, int *ret_fd);

#endif
