/* The check of a shared object in a process of its own (`quintet kernel check`): started, watched, and what it found. A kernel
 * that crashes or hangs ends the child, not the one that asked. */
#ifndef QN_COMPUTE_KERNELS_OBJECT_CHILD_H
#define QN_COMPUTE_KERNELS_OBJECT_CHILD_H

#include <stdbool.h>
#include <sys/types.h>

#include "kernels/kernels.h"
#include "services/compute/kernels/object_file.h"

#define OBJECT_CHILD_SECONDS 60 /* usual; then it hangs */
#define OBJECT_CHILD_RIGHT_MAX 8

typedef struct {
    char kernel[96]; /* "rmsnorm=mine" */
    unsigned cases;
    double worst_error;
} object_right_t;

typedef struct {
    pid_t pid; /* 0: none */
    int out;   /* its lines; readable: call object_child_read. -1: none */
    unsigned seconds;
    uint64_t deadline_ns;
    char line[512];
    size_t line_bytes;
    char at[256]; /* what it was doing last */
    char wrong[480];
    bool done, late;
    object_right_t right[OBJECT_CHILD_RIGHT_MAX];
    unsigned right_count;
} object_child_t;

/* Starts the check of the file; `shape`: of the model that is served, or NULL. Failure: QN_ERR_IO, QN_ERR_NOT_FOUND (no
 * quintet command beside this program). */
qn_err_t object_child_start(const object_file_t *file, const qn_kernel_case_t *shape, unsigned seconds, uint64_t now_ns,
                            object_child_t *ret_child);
/* Takes what it said; does not block. True: it has ended (or was ended at its deadline), and object_child_end says how. */
bool object_child_read(object_child_t *child, uint64_t now_ns);
/* Waits for its end and closes everything. Failure: QN_ERR_INVALID with what is wrong with the object: the kernel, the shape, the
 * error; or that it crashed or hung, and where. */
qn_err_t object_child_end(object_child_t *child);
/* All three, blocking. */
qn_err_t object_child_run(const object_file_t *file, const qn_kernel_case_t *shape, unsigned seconds,
                          object_child_t *ret_child);
/* Ends a child that nobody waits for any more. */
void object_child_kill(object_child_t *child);

#endif
