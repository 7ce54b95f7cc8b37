/* What is this?      The list of backends, by name.
 * State owned:       none.
 * Must never:        put another backend in the place of the one that was asked for.
 * Read next:         backend_cpu.c, backend_cuda.c. */
#include "services/compute/backend/backend.h"

#include <string.h>

qn_err_t backend_find(const qn_config_values_t *config, const backend_t **ret_backend)
{
    const backend_t *backend = NULL;
    if (strcmp(config->compute.backend, "cpu") == 0) backend = backend_cpu();
#ifdef QN_CUDA
    if (strcmp(config->compute.backend, "cuda") == 0) backend = backend_cuda();
#endif
    if (!backend)
        return qn_fail(QN_ERR_UNSUPPORTED, "compute.backend: this build has no %s; use cpu, or build with `make cuda`",
                       config->compute.backend);
    qn_err_t err = backend->check((int)config->compute.device);
    if (!err) *ret_backend = backend;
    return err;
}
