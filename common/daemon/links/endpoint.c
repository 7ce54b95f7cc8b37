/* What is this?      Endpoint names.
 * State owned:       none.
 * Must never:        touch a socket or the file system. */
#include "common/daemon/links/endpoint.h"

#include <stdio.h>
#include <string.h>
#include <sys/un.h>

const char *qn_service_name(qn_service_t service)
{
    return (unsigned)service < qn_service_enum.count ? qn_service_enum.names[service] : "unknown";
}

const char *const *qn_daemon_names(void) { return qn_service_enum.names + QN_SERVICE_FRONTEND; }

static const char *endpoint_configured(const qn_config_values_t *config, qn_service_t service)
{
    switch (service) {
    case QN_SERVICE_TOKENIZER: return config->tokenizer.endpoint;
    case QN_SERVICE_SCHEDULER: return config->scheduler.endpoint;
    case QN_SERVICE_MEMORY: return config->memory.endpoint;
    case QN_SERVICE_COMPUTE: return config->compute.endpoint;
    default: return "ipc";
    }
}

qn_err_t qn_endpoint_outer(const qn_config_values_t *config, const char *run_dir, qn_service_t service,
                           char ret_endpoint[QN_ENDPOINT_MAX])
{
    const char *configured = endpoint_configured(config, service);
    if (strncmp(configured, "tcp://", 6) == 0) {
        if (snprintf(ret_endpoint, QN_ENDPOINT_MAX, "%s", configured) >= QN_ENDPOINT_MAX)
            return qn_fail(QN_ERR_LIMIT, "%s.endpoint is longer than %d bytes", qn_service_name(service),
                           QN_ENDPOINT_MAX - 1);
        return QN_OK;
    }
    if (strcmp(configured, "ipc") != 0)
        return qn_fail(QN_ERR_CONFIG, "%s.endpoint is \"%s\"; write ipc or tcp://HOST:PORT", qn_service_name(service),
                       configured);
    int length = snprintf(ret_endpoint, QN_ENDPOINT_MAX, "ipc://%s/%s.sock", run_dir, qn_service_name(service));
    size_t path_max = sizeof((struct sockaddr_un *)0)->sun_path - 1;
    if (length >= QN_ENDPOINT_MAX || (size_t)length - 6 > path_max)
        return qn_fail(
            QN_ERR_LIMIT,
            "run_dir %s is too long for a Unix socket (%zu bytes with the file name); choose a shorter --run-dir",
            run_dir, path_max);
    return QN_OK;
}

qn_err_t qn_endpoint_inner(const char *run_dir, qn_service_t service, char ret_endpoint[QN_ENDPOINT_MAX])
{
    if (snprintf(ret_endpoint, QN_ENDPOINT_MAX, "inproc://%s/%s", run_dir, qn_service_name(service)) >= QN_ENDPOINT_MAX)
        return qn_fail(QN_ERR_LIMIT, "run_dir %s is too long; choose a shorter --run-dir", run_dir);
    return QN_OK;
}

bool qn_endpoint_is_open(const char *endpoint)
{
    static const char *const loopback[] = {"127.", "localhost:", "[::1]:", "::1:", "lo:"};
    if (strncmp(endpoint, "tcp://", 6) != 0) return false;
    for (size_t i = 0; i < sizeof loopback / sizeof *loopback; i++)
        if (strncmp(endpoint + 6, loopback[i], strlen(loopback[i])) == 0) return false;
    return true;
}
