/* Where things are: the model directory and the run directory that a configuration means. Reads the environment and
 * /proc/self/exe; never blocks longer than a stat. */
#ifndef QN_COMMON_PATHS_H
#define QN_COMMON_PATHS_H

#include <stddef.h>

#include "common/config/config.h"
#include "common/err.h"

/* The Hugging Face directory of model.path; "" means the bundled model, sought from the directory of this executable:
 * deploy/models/default in a build tree (one or two levels up), share/quintet/models/default when installed.
 * QN_ERR_NOT_FOUND: there is no such directory. `size` ≤ QN_PATH_MAX is enough. */
qn_err_t qn_paths_model(const qn_config_values_t *config, char *ret_path, size_t size);

/* The run directory: run_dir of the configuration, or $XDG_RUNTIME_DIR/quintet, /run/quintet for root,
 * /tmp/quintet-UID otherwise. Made with mode 0700 when missing (the last component only). A default directory that
 * another user owns or may write is refused: whoever can write here can pose as a service. */
qn_err_t qn_paths_run_dir(const qn_config_values_t *config, char *ret_path, size_t size);

/* The directories of policies.dirs, separated by colons; "" means policies beside the directory of this executable and
 * ../lib/quintet/policies from it, whether they are there or not. */
qn_err_t qn_paths_policies(const qn_config_values_t *config, char *ret_dirs, size_t size);

/* The directories of compute.kernel_dirs, separated by colons; "" means kernels beside the directory of this executable and
 * ../lib/quintet/kernels from it, whether they are there or not. */
qn_err_t qn_paths_kernels(const qn_config_values_t *config, char *ret_dirs, size_t size);

/* The quintet command beside this executable. QN_ERR_NOT_FOUND. */
qn_err_t qn_paths_command(char *ret_path, size_t size);

/* Only this user may connect to, or read, what stands at `path` in the run directory, whatever the umask: mode 0600. */
qn_err_t qn_paths_make_private(const char *path);

#endif
