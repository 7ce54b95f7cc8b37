/* An answer that says no: status, the field at fault, and what to do about it, in OpenAI's shape
 * {"error":{"message","type","param","code"}}. */
#ifndef QN_FRONTEND_HTTP_HTTP_ERROR_H
#define QN_FRONTEND_HTTP_HTTP_ERROR_H

#include <stdint.h>

#include "common/limits.h"
#include "services/frontend/reply/reply_buffer.h"

typedef struct {
    int status;                  /* 0: no error */
    uint32_t retry_after_s;      /* 0: no Retry-After header */
    char param[QN_NAME_MAX + 1]; /* "" is shown as null */
    char code[QN_NAME_MAX];      /* "": the usual one of the status */
    char message[QN_ERR_TEXT_MAX];
} http_error_t;

/* Replaces *error. `param` may be NULL. 429 and 503 get a Retry-After of one second; change it afterwards when more is
 * known. */
void http_error_set(http_error_t *error, int status, const char *param, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* Writes the JSON object, without a newline. */
void http_error_write(const http_error_t *error, reply_buffer_t *out);

#endif
