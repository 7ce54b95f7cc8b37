/* What is this?      The per-thread record of the last failure.
 * State owned:       one thread-local text and origin.
 * Must never:        log, exit or allocate.
 * Read next:         assert.h (bugs), log.h. */
#include "common/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sysexits.h>

static _Thread_local struct {
    char text[QN_ERR_TEXT_MAX];
    char origin[QN_NAME_MAX];
} last_failure;

/* A text that quotes somebody else's bytes must not steer the terminal that shows it. */
static void make_printable(char *text)
{
    for (; *text != '\0'; text++)
        if (((unsigned char)*text < ' ' && *text != '\n' && *text != '\t') || *text == 0x7f) *text = '?';
}

qn_err_t qn_fail_at(qn_err_t code, const char *file, int line, const char *format, ...)
{
    /* Formatted aside: the arguments may be views of the text that is being replaced. */
    char text[QN_ERR_TEXT_MAX];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    make_printable(text);
    memcpy(last_failure.text, text, sizeof text);
    const char *base = strrchr(file, '/');
    snprintf(last_failure.origin, sizeof last_failure.origin, "%s:%d", base ? base + 1 : file, line);
    return code;
}

void qn_failure_keep(qn_failure_t *failure, qn_err_t code)
{
    failure->code = code;
    memcpy(failure->text, last_failure.text, sizeof failure->text);
    memcpy(failure->origin, last_failure.origin, sizeof failure->origin);
}

qn_err_t qn_failure_raise(const qn_failure_t *failure)
{
    memcpy(last_failure.text, failure->text, sizeof last_failure.text);
    memcpy(last_failure.origin, failure->origin, sizeof last_failure.origin);
    return failure->code;
}

const char *qn_err_text(void) { return last_failure.text; }

const char *qn_err_origin(void) { return last_failure.origin; }

const char *qn_err_name(qn_err_t code)
{
    switch (code) {
    case QN_OK: return "ok";
    case QN_ERR_NO_MEMORY: return "no_memory";
    case QN_ERR_IO: return "io";
    case QN_ERR_INVALID: return "invalid";
    case QN_ERR_UNSUPPORTED: return "unsupported";
    case QN_ERR_NOT_FOUND: return "not_found";
    case QN_ERR_EXISTS: return "exists";
    case QN_ERR_LIMIT: return "limit";
    case QN_ERR_TIMEOUT: return "timeout";
    case QN_ERR_PEER: return "peer";
    case QN_ERR_DEVICE: return "device";
    case QN_ERR_CANCELLED: return "cancelled";
    case QN_ERR_CONFIG: return "config";
    }
    return "unknown";
}

int qn_err_exit_status(qn_err_t code)
{
    switch (code) {
    case QN_OK: return EX_OK;
    case QN_ERR_NO_MEMORY: return EX_OSERR;
    case QN_ERR_IO: return EX_IOERR;
    case QN_ERR_INVALID: return EX_DATAERR;
    case QN_ERR_UNSUPPORTED: return EX_UNAVAILABLE;
    case QN_ERR_NOT_FOUND: return EX_NOINPUT;
    case QN_ERR_EXISTS: return EX_UNAVAILABLE;
    case QN_ERR_LIMIT: return EX_UNAVAILABLE;
    case QN_ERR_TIMEOUT: return EX_TEMPFAIL;
    case QN_ERR_PEER: return EX_PROTOCOL;
    case QN_ERR_DEVICE: return EX_OSERR;
    case QN_ERR_CANCELLED: return EX_TEMPFAIL;
    case QN_ERR_CONFIG: return EX_CONFIG;
    }
    return EX_SOFTWARE;
}
