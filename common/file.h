/* Files that somebody else put there: opened only when they are regular, so that a FIFO, a device or a socket can
 * neither hang nor feed a daemon, and read up to a bound. */
#ifndef QN_COMMON_FILE_H
#define QN_COMMON_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

/* Whether the directory has an entry of this name, whatever it is: a link that leads nowhere counts. */
bool qn_file_exists(int directory_fd, const char *name);
/* Opens `name` for reading, relative to directory_fd (AT_FDCWD for a path); `path` names it in errors. *ret_fd is the
 * caller's to close. QN_ERR_NOT_FOUND: there is none. QN_ERR_INVALID: it is not a regular file, or a link that leads
 * nowhere. QN_ERR_IO. Never blocks on what it opens. */
qn_err_t qn_file_open(int directory_fd, const char *name, const char *path, int *ret_fd, uint64_t *ret_bytes);
/* All of a file, with a NUL behind it that is not counted. Returns owned. As qn_file_open; QN_ERR_LIMIT: it has more
 * than bytes_max. */
qn_err_t qn_file_read(const char *path, size_t bytes_max, char **ret_text, size_t *ret_bytes);

#endif
