/* What is this?      PUT /config: {"frontend.mode": "research", ...}, or the method's own {"set": [{"key", "value"}]}.
 * State owned:       none.
 * Must never:        decide which keys may change (common/config/config.h).
 * Read next:         forms.h, schemas/frontend/frontend_config_set.fbs. */
#include <stdlib.h>
#include <string.h>

#include "qn_limits.h"
#include "services/frontend/methods/method_json.h"
#include "services/frontend/research/forms.h"

const char form_config_set_request[] =
    "{\"type\":\"object\",\"description\":\"values by key; or set, a list of {key, value}\","
    "\"additionalProperties\":{\"type\":[\"string\",\"number\",\"boolean\",\"array\"]},\"minProperties\":1}";

const char form_config_set_example[] = "{\"frontend.default_max_tokens\":16}";

/* The text of a value as the command line has it; NULL: it is none. */
static const char *text_of(const json_t *value, qn_arena_t *arena)
{
    if (json_is_string(value)) return qn_arena_strndup(arena, json_string_value(value), json_string_length(value));
    if (!json_is_number(value) && !json_is_boolean(value)) return NULL;
    char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));
    const char *copy = qn_arena_strndup(arena, text, strlen(text));
    free(text);
    return copy;
}

/* False: it was refused. */
static bool add(form_t *form, qn_frontend_config_set_t *message, qn_config_change_t *changes, const char *key,
                const json_t *value)
{
    const char *text = text_of(value, &form->arena);
    if (!key || !text) {
        form_fail(form, 400, key ? key : "set", "%.64s: a value is a text, a number, true or false",
                  key ? key : "set: each is {\"key\", \"value\"}");
        return false;
    }
    if (message->set_count == QN_FRONTEND_CONFIG_SET_SET_MAX || strlen(key) > QN_CONFIG_CHANGE_KEY_MAX ||
        strlen(text) > QN_CONFIG_CHANGE_VALUE_MAX) {
        form_fail(form, 400, "set", "at most %u keys of %u bytes with values of %u bytes can be set at once",
                  QN_FRONTEND_CONFIG_SET_SET_MAX, QN_CONFIG_CHANGE_KEY_MAX, QN_CONFIG_CHANGE_VALUE_MAX);
        return false;
    }
    changes[message->set_count++] = (qn_config_change_t){.key = qn_text(key), .value = qn_text(text)};
    return true;
}

static void show(form_t *form, call_t *call, const void *reply)
{
    reply_buffer_t data = {0};
    json_writer_t writer = json_writer_on(&data);
    method_json_write(qn_wire_type(call->method->reply), reply, &writer);
    form_answer(form, call, reply, &data);
}

void form_config_set(form_t *form)
{
    qn_config_change_t *changes = qn_arena_zalloc(&form->arena, QN_FRONTEND_CONFIG_SET_SET_MAX, sizeof *changes);
    qn_frontend_config_set_t message = {.set = changes};
    json_t *list = json_object_get(form->body, "set"), *value;
    const char *key;
    size_t index;
    json_array_foreach(list, index, value)
    {
        key = json_string_value(json_object_get(value, "key"));
        if (!add(form, &message, changes, key, json_object_get(value, "value"))) return;
    }
    json_object_foreach(form->body, key, value)
    {
        if (value != list && !add(form, &message, changes, key, value)) return;
    }
    form_call(form, QN_METHOD_FRONTEND_CONFIG_SET, &message, show);
}
