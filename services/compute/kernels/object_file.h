/* The file of a shared object with kernels: found in the directories it may come from, and copied so that the bytes that were
 * checked are the bytes that run. */
#ifndef QN_COMPUTE_KERNELS_OBJECT_FILE_H
#define QN_COMPUTE_KERNELS_OBJECT_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/limits.h"

#define OBJECT_BYTES_MAX (UINT64_C(64) << 20)

typedef struct {
    int fd; /* a sealed memfd; -1: none */
    uint64_t fingerprint;
    char path[QN_PATH_MAX]; /* where it was found */
} object_file_t;

/* Finds `name` (NAME.so, or a path) in `dirs` (separated by colons) and copies it. A file outside of them, by links too, is
 * refused. Failure: QN_ERR_NOT_FOUND, QN_ERR_CONFIG (outside, no regular file), QN_ERR_LIMIT, QN_ERR_IO. */
qn_err_t object_file_open(const char *dirs, const char *name, object_file_t *ret_file);
void object_file_close(object_file_t *file);

#endif
