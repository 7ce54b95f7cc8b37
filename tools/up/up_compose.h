/* Services as threads of this process, over inproc://: what `quintet up --compose LIST` runs. */
#ifndef QN_TOOLS_UP_UP_COMPOSE_H
#define QN_TOOLS_UP_UP_COMPOSE_H

#include "common/config/config.h"

/* Runs the services of `list` ("all", or names separated by commas) as one actor each until SIGINT or SIGTERM, then
 * stops them in order. Tells the service manager READY=1 when all are ready. Returns the exit status: 0, or that of
 * the first service that failed; one that fails ends all, since they share a process. Call with one thread. */
int up_compose_run(const qn_config_t *config, const char *list);

#endif
