/* The check of kernels from a shared object against the reference. It runs the object's code, which may be wrong in any way:
 * in a process of its own, whose lines tell the one that started it how far it has come. */
#ifndef QN_COMPUTE_KERNELS_OBJECT_CHECK_H
#define QN_COMPUTE_KERNELS_OBJECT_CHECK_H

#include "kernels/kernels.h"

typedef struct {
    const qn_kernel_case_t *shape; /* of the model that is served, checked beside the fixed ones; NULL: none */
    /* Called before each launch ("rmsnorm=mine: odd T 7 bf16, in place"), and after each kernel that is right. */
    void (*begins)(void *context, const char *what);
    void (*right)(void *context, const qn_kernel_t *kernel, unsigned cases, double worst_error);
    void *context;
} object_check_t;

/* Loads the object into this process and runs all of its kernels over the cases. Failure: what is wrong with it, with the
 * kernel, the shape and the error that showed it (QN_ERR_CONFIG, QN_ERR_INVALID). */
qn_err_t object_check(int fd, const char *name, const object_check_t *check);

#endif
