/* What is this?      Error replies in OpenAI's shape.
 * State owned:       none.
 * Must never:        send anything.
 * Read next:         generation_parse.c, where most of them come from. */
#include "services/frontend/http/http_error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "services/frontend/reply/json_writer.h"

static const struct {
    int status;
    const char *type, *code;
} statuses[] = {
    {400, "invalid_request_error", "invalid_value"},
    {401, "authentication_error", "invalid_api_key"},
    {404, "not_found_error", "not_found"},
    {405, "invalid_request_error", "method_not_allowed"},
    {413, "invalid_request_error", "request_too_large"},
    {415, "invalid_request_error", "unsupported_media_type"},
    {429, "rate_limit_error", "rate_limit_exceeded"},
    {503, "service_unavailable_error", "service_unavailable"},
    {504, "service_unavailable_error", "timeout"},
};

void http_error_set(http_error_t *error, int status, const char *param, const char *format, ...)
{
    *error = (http_error_t){.status = status};
    if (status == 429 || status == 503) error->retry_after_s = 1;
    snprintf(error->param, sizeof error->param, "%s", param ? param : "");
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->message, sizeof error->message, format, arguments);
    va_end(arguments);
}

void http_error_write(const http_error_t *error, reply_buffer_t *out)
{
    const char *type = error->status < 500 ? "invalid_request_error" : "server_error";
    const char *code = error->status < 500 ? "invalid_request" : "internal_error";
    for (size_t i = 0; i < sizeof statuses / sizeof statuses[0]; i++) {
        if (statuses[i].status != error->status) continue;
        type = statuses[i].type;
        code = statuses[i].code;
    }
    json_writer_t writer = json_writer_on(out);
    json_put_open(&writer, '{');
    json_put_key(&writer, "error");
    json_put_open(&writer, '{');
    json_put_member_string(&writer, "message", error->message);
    json_put_member_string(&writer, "type", type);
    json_put_member_string(&writer, "param", error->param[0] ? error->param : NULL);
    json_put_member_string(&writer, "code", error->code[0] ? error->code : code);
    json_put_close(&writer, '}');
    json_put_close(&writer, '}');
}
