/* What is this?      RLIMIT_NOFILE against the configuration, once, before the first socket.
 * State owned:       none.
 * Must never:        lower a limit, or start what would end inside a library.
 * Read next:         daemon.c (who asks), getrlimit(2). */
#include "common/daemon/descriptors.h"

#include <inttypes.h>
#include <sys/resource.h>

/* Sockets, their signalling descriptors, peers with their pidfds, files, a model's shards: 20 to 28 with the five
 * services on one host, and room for peers that are replaced while their former lives linger. */
#define OWN_DESCRIPTORS 96u

uint64_t qn_descriptors_needed(unsigned services, const qn_config_values_t *config)
{
    uint64_t needed = 0;
    for (unsigned service = QN_SERVICE_FRONTEND; service <= QN_SERVICE_TOOL; service++)
        if (services & 1u << service) needed += OWN_DESCRIPTORS;
    if (services & 1u << QN_SERVICE_FRONTEND) needed += config->frontend.max_connections;
    return needed;
}

qn_err_t qn_descriptors_ensure(unsigned services, const qn_config_values_t *config)
{
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) != 0) return QN_OK;
    if (files.rlim_cur < files.rlim_max) {
        struct rlimit raised = {.rlim_cur = files.rlim_max, .rlim_max = files.rlim_max};
        if (setrlimit(RLIMIT_NOFILE, &raised) == 0) files = raised;
    }
    uint64_t needed = qn_descriptors_needed(services, config);
    if (files.rlim_cur == RLIM_INFINITY || files.rlim_cur >= needed) return QN_OK;
    bool serves = services & 1u << QN_SERVICE_FRONTEND;
    return qn_fail(QN_ERR_CONFIG,
                   "the limit of open files is %" PRIu64 ", and %" PRIu64
                   " are needed (%u for each service%s): raise it "
                   "(ulimit -Hn, LimitNOFILE=)%s",
                   (uint64_t)files.rlim_cur, needed, OWN_DESCRIPTORS, serves ? ", and frontend.max_connections" : "",
                   serves ? " or lower frontend.max_connections" : "");
}
