/* Names that people give to operations: the registry's, and the field's usual ones. */
#ifndef QN_COMPUTE_KERNELS_KERNEL_NAMES_H
#define QN_COMPUTE_KERNELS_KERNEL_NAMES_H

#include "kernels/kernels.h"

/* QN_OP_COUNT: none; then `ret_nearest` is a name there is. `ret_part`: which product or kind the name means, or NULL. */
qn_op_t kernel_named(const char *name, const char **ret_part, const char **ret_nearest);

#endif
