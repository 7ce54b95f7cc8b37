/* Kernels from shared objects (plugin.h) as rows of the registry. They are chosen by name only, never because of a rank.
 *
 * The rows are the process's: qn_kernels_choose and its like find them. An object stays loaded until the process ends; a
 * later kernel of the same operation and name takes the place of an earlier one. Load and list from one thread; rows that were
 * given out stay valid. */
#ifndef QN_KERNELS_LOADED_H
#define QN_KERNELS_LOADED_H

#include "kernels/kernels.h"

#define QN_LOADED_KERNELS_MAX 24 /* in the life of a process */

/* Maps the object that `fd` is open on and takes its kernels; `name` (copied) is what it is called in texts. The file's bytes
 * must not change afterwards: give a sealed memfd. The object's own code runs here (constructors, qn_kernel_plugin).
 * Failure: QN_ERR_CONFIG naming what is wrong, QN_ERR_LIMIT. `ret_first`, `ret_count`: its rows in qn_kernels_loaded. */
qn_err_t qn_kernels_load(int fd, const char *name, uint64_t fingerprint, size_t *ret_first, size_t *ret_count);
/* Items that a thread gets at least; 0, which it is at first: as many as repay waking it. A check sets 1, so that a few items are
 * dealt to several threads. */
extern size_t qn_loaded_grain;
/* Returns view of the rows. */
const qn_kernel_t *qn_kernels_loaded(size_t *ret_count);
/* The row of this operation and name that was loaded last; NULL: none. */
const qn_kernel_t *qn_kernels_find_loaded(qn_op_t op, const char *name);
/* Of a loaded row: QN_PLUGIN_ bits, the object's name, the fingerprint of its bytes; 0 and NULL of others. */
uint32_t qn_kernel_formats(const qn_kernel_t *kernel);
const char *qn_kernel_object(const qn_kernel_t *kernel);
uint64_t qn_kernel_object_fingerprint(const qn_kernel_t *kernel);

#endif
