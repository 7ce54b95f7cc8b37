/* Whether the limit of open files suffices for what the configuration asks for; libzmq ends the process when it runs out
 * of descriptors. */
#ifndef QN_COMMON_DAEMON_DESCRIPTORS_H
#define QN_COMMON_DAEMON_DESCRIPTORS_H

#include "common/config/config.h"
#include "common/err.h"
#include "qn_messages.h"

/* Raises the soft limit of this process to the hard one. QN_ERR_CONFIG: that is not enough for these daemons (mask of
 * 1 << qn_service_t, QN_SERVICE_TOOL for a supervisor) in one process; the text says how many it takes, why, and what to do. */
qn_err_t qn_descriptors_ensure(unsigned services, const qn_config_values_t *config);
/* Descriptors that they may come to need together. */
uint64_t qn_descriptors_needed(unsigned services, const qn_config_values_t *config);

#endif
