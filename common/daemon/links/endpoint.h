/* Where a daemon listens and is dialled: endpoint strings for ipc, tcp and inproc. */
#ifndef QN_COMMON_DAEMON_LINKS_ENDPOINT_H
#define QN_COMMON_DAEMON_LINKS_ENDPOINT_H

#include <stdbool.h>
#include <stddef.h>

#include "common/config/config.h"
#include "qn_messages.h"

/* "scheduler" for QN_SERVICE_SCHEDULER. */
const char *qn_service_name(qn_service_t service);

/* The daemons, in the order of a request's way through them; the tools come behind. */
#define QN_DAEMON_COUNT (QN_SERVICE_TOOL - QN_SERVICE_FRONTEND)
/* Returns view of their QN_DAEMON_COUNT names; behind them stands "tool". */
const char *const *qn_daemon_names(void);

/* ZeroMQ endpoint of `service` for others: ipc://<run_dir>/<service>.sock, or the tcp:// address configured.
 * QN_ERR_CONFIG: neither "ipc" nor tcp://; QN_ERR_LIMIT: the path does not fit a Unix socket address. */
qn_err_t qn_endpoint_outer(const qn_config_values_t *config, const char *run_dir, qn_service_t service,
                           char ret_endpoint[QN_ENDPOINT_MAX]);
/* Endpoint inside this process; one composition per run directory. */
qn_err_t qn_endpoint_inner(const char *run_dir, qn_service_t service, char ret_endpoint[QN_ENDPOINT_MAX]);

/* Whether a tcp endpoint can be reached from other hosts: not bound to, or dialled at, this host's loopback. */
bool qn_endpoint_is_open(const char *endpoint);

#endif
