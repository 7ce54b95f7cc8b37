/* Why a daemon ended: one line in <run_dir>/<service>.error, for whoever asks while it is down. Written when it fails or an
 * assertion does, removed when it is ready again; a process that was killed leaves none. */
#ifndef QN_COMMON_WATCH_LAST_ERROR_H
#define QN_COMMON_WATCH_LAST_ERROR_H

#include <stddef.h>

/* Where this thread's errors go; the first of a process is also that of its threads without one. A run directory that is
 * not known yet has no file. */
void qn_last_error_begin(const char *run_dir, const char *service);
/* Keeps one line, replacing the one before. Allocates nothing and cannot fail: there is nobody left to tell. */
void qn_last_error_write(const char *text);
void qn_last_error_clear(void);
/* The line that `service` left; "" when there is none. */
void qn_last_error_read(const char *run_dir, const char *service, char *ret_text, size_t size);

#endif
