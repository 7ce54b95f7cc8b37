/* What `quintet doctor` finds about the GPU that compute.backend=cuda wants. */
#ifndef QN_TOOLS_DOCTOR_GPU_H
#define QN_TOOLS_DOCTOR_GPU_H

#include "common/config/config.h"
#include "tools/findings.h"

/* Adds at most six findings: the device, its memory, and whether both ways to share it between processes work.
 * `running`: quintet up has the device, so what is free does not count. Forks before it touches the driver; blocks for
 * a second. Nothing of the driver may have been used in this process before. */
void doctor_gpu(const qn_config_values_t *values, bool running, findings_t *findings);

#endif
