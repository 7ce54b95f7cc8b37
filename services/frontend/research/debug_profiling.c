/* What is this?      POST /debug/profiling/stop: the recording's figures, and the timeline itself when it is not long.
 * State owned:       the form's.
 * Must never:        send a file but the recording's own.
 * Read next:         schemas/frontend/frontend_profile_stop.fbs, common/capture/trace.h. */
#include <stdio.h>
#include <stdlib.h>

#include "services/frontend/methods/method_json.h"
#include "services/frontend/research/forms.h"

#define INLINE_BYTES_MAX (8u << 20)

/* The timeline, or null when it is too long or cannot be read: then it is in the file. */
static void put_trace(json_writer_t *writer, const qn_frontend_profile_stop_reply_t *reply)
{
    json_put_key(writer, "trace");
    FILE *file = reply->trace_bytes <= INLINE_BYTES_MAX ? fopen(reply->trace_path.data, "re") : NULL;
    char *text = file ? malloc(reply->trace_bytes + 1) : NULL;
    size_t bytes = text ? fread(text, 1, reply->trace_bytes, file) : 0;
    if (text && bytes == reply->trace_bytes)
        json_put_raw(writer, text, bytes);
    else
        json_put_null(writer);
    free(text);
    if (file) fclose(file);
}

static void took_stop(form_t *form, call_t *call, const void *message)
{
    const qn_frontend_profile_stop_reply_t *reply = message;
    if (!reply->recorded) {
        form_fail(form, 409, NULL, "Nothing is being recorded; POST /debug/profiling/start begins.");
        return;
    }
    reply_buffer_t data = {0};
    json_writer_t writer = json_writer_on(&data);
    json_put_open(&writer, '{');
    json_put_member_string(&writer, "name", reply->name.data);
    json_put_member_string(&writer, "ended", reply->ended.data);
    json_put_key(&writer, "seconds");
    json_put_number(&writer, (double)reply->seconds);
    json_put_member_unsigned(&writer, "requests", reply->requests);
    json_put_member_unsigned(&writer, "steps", reply->steps);
    json_put_member_unsigned(&writer, "hops", reply->hops);
    json_put_member_unsigned(&writer, "missed", reply->missed);
    json_put_member_bool(&writer, "truncated", reply->truncated);
    json_put_member_unsigned(&writer, "trace_bytes", reply->trace_bytes);
    json_put_member_string(&writer, "trace_path", reply->trace_path.data);
    json_put_member_string(&writer, "capture_path", reply->capture_path.data);
    put_trace(&writer, reply);
    json_put_close(&writer, '}');
    form_answer(form, call, message, &data);
}

const char form_profiling_stop_request[] =
    "{\"type\":\"object\",\"properties\":{\"name\":{\"type\":[\"string\",\"null\"],\"maxLength\":63}},"
    "\"additionalProperties\":false}";
const char form_profiling_stop_example[] = "{}";
const char form_profiling_stop_reply[] = "{\"type\":\"object\"}";

void form_profiling_stop(form_t *form)
{
    static const char *const others[] = {"name", NULL};
    const json_t *name = json_object_get(form->body, "name");
    if (!form_read(form, NULL, 0, others, NULL)) return;
    if (name && !json_is_null(name) && !json_is_string(name)) {
        form_fail(form, 400, "name", "name must be a string: that of the recording.");
        return;
    }
    const char *text = json_string_value(name);
    qn_frontend_profile_stop_t message = {.name = qn_text(text)};
    if (message.name.bytes >= QN_NAME_MAX) {
        form_fail(form, 400, "name", "name is longer than %d bytes.", QN_NAME_MAX - 1);
        return;
    }
    form_call(form, QN_METHOD_FRONTEND_PROFILE_STOP, &message, took_stop);
}
