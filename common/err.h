/* Failures: what goes wrong outside the direct caller's control and is forwarded unchanged.
 *
 * Three mechanisms, never mixed:
 *   outcome  expected and local; the module's own enum, handled by the direct caller
 *   failure  qn_err_t < 0; forwarded; its origin and message are recorded once, by qn_fail()
 *   bug      QN_ASSERT (assert.h); on in release builds
 * The record is per thread and is overwritten by the next failure of that thread. */
#ifndef QN_COMMON_ERR_H
#define QN_COMMON_ERR_H

#include "common/limits.h"

typedef enum {
    QN_OK = 0,
    QN_ERR_NO_MEMORY = -1,   /* host or device allocation refused */
    QN_ERR_IO = -2,          /* a system call failed; errno is in the text */
    QN_ERR_INVALID = -3,     /* bytes from a file, a wire or a user break a rule */
    QN_ERR_UNSUPPORTED = -4, /* well-formed, but this build or machine cannot do it */
    QN_ERR_NOT_FOUND = -5,
    QN_ERR_EXISTS = -6, /* e.g. a duplicate service */
    QN_ERR_LIMIT = -7,  /* a bound of limits.h or of the configuration is reached */
    QN_ERR_TIMEOUT = -8,
    QN_ERR_PEER = -9,    /* the peer broke the protocol or is gone */
    QN_ERR_DEVICE = -10, /* CUDA or another accelerator reported an error */
    QN_ERR_CANCELLED = -11,
    QN_ERR_CONFIG = -12, /* a configuration key or value; maps to EX_CONFIG */
} qn_err_t;

/* Records `code`, the place and a printf-formatted message for this thread; returns `code`.
 * The text says what, why and what to do; at most QN_ERR_TEXT_MAX bytes are kept. */
#define qn_fail(code, ...) qn_fail_at((code), __FILE__, __LINE__, __VA_ARGS__)
qn_err_t qn_fail_at(qn_err_t code, const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* Returns view of this thread's last recorded message ("" when none); valid until the next qn_fail. */
const char *qn_err_text(void);
/* "file.c:123" of the last recorded failure. */
const char *qn_err_origin(void);
/* A failure carried to another thread, or past other failures of this one. */
typedef struct {
    qn_err_t code; /* QN_OK: none */
    char text[QN_ERR_TEXT_MAX];
    char origin[QN_NAME_MAX];
} qn_failure_t;

/* Keeps this thread's record, as that of `code`. */
void qn_failure_keep(qn_failure_t *failure, qn_err_t code);
/* Makes it this thread's record, origin included; returns its code. */
qn_err_t qn_failure_raise(const qn_failure_t *failure);

/* "QN_ERR_IO" -> "io": a short stable word for logs, metrics and JSON. */
const char *qn_err_name(qn_err_t code);
/* The sysexits.h status a program should exit with for this failure. */
int qn_err_exit_status(qn_err_t code);

#endif
