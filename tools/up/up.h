/* The supervisor behind `quintet up`: starts the services, restarts what dies, keeps descriptors for them, shows their
 * log, and stops them in order. */
#ifndef QN_TOOLS_UP_UP_H
#define QN_TOOLS_UP_UP_H

#include "common/config/config.h"

typedef struct {
    const qn_config_t *config;
    const qn_config_arguments_t *arguments; /* passed on to every service as they were given */
    const char *binary_dir;                 /* directory of quintet-frontend and so on */
    const char *composed;                   /* services that run in one process: "", "all" or a list */
} up_spec_t;

/* Runs in the foreground until SIGINT or SIGTERM, or until a service cannot be started; returns the exit status: 0, or
 * that of the service that failed. The calling process must have one thread. */
int up_run(const up_spec_t *spec);

#endif
