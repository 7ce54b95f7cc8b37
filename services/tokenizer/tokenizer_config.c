/* What is this?      tokenizer_config.json into what tokenizer_info() tells.
 * State owned:       none; strings go to the tokenizer's arena.
 * Must never:        change how text is encoded; fail because a member is missing.
 * Read next:         tokenizer.h (tokenizer_info_t). */
#include <jansson.h>

#include "services/tokenizer/tokenizer_data.h"

/* A token is a string or an object with its content. */
static void load_info_token(tokenizer_t *t, const json_t *config, const char *key, const char **ret_text,
                            int64_t *ret_id)
{
    const json_t *value = json_object_get(config, key);
    if (json_is_object(value)) value = json_object_get(value, "content");
    if (!json_is_string(value)) return;
    *ret_text = qn_arena_strndup(&t->strings, json_string_value(value), json_string_length(value));
    uint32_t id;
    if (tokenizer_id_of(t, *ret_text, json_string_length(value), &id)) *ret_id = id;
}

/* A template is a string, or a list of named ones. */
static const char *find_chat_template(const json_t *value)
{
    if (json_is_string(value)) return json_string_value(value);
    const char *found = NULL;
    for (size_t i = 0; i < json_array_size(value); i++) {
        const json_t *item = json_array_get(value, i);
        const char *name = json_string_value(json_object_get(item, "name"));
        const char *text = json_string_value(json_object_get(item, "template"));
        if (text && (!found || (name && strcmp(name, "default") == 0))) found = text;
    }
    return found;
}

static const char *keep_string(tokenizer_t *t, const char *text)
{
    return text ? qn_arena_strndup(&t->strings, text, strlen(text)) : NULL;
}

qn_err_t tokenizer_config_load(tokenizer_t *t, const char *json, size_t bytes)
{
    json_error_t error;
    /* "No limit" is written as 1e30 in full, which no integer holds. */
    json_t *config = json_loadb(json, bytes, JSON_DECODE_INT_AS_REAL, &error);
    if (!json_is_object(config)) {
        json_decref(config);
        return qn_fail(QN_ERR_INVALID, "tokenizer_config.json: must be a JSON object: %s (line %d)", error.text,
                       error.line);
    }
    load_info_token(t, config, "bos_token", &t->info.bos_token, &t->info.bos_id);
    load_info_token(t, config, "eos_token", &t->info.eos_token, &t->info.eos_id);
    load_info_token(t, config, "pad_token", &t->info.pad_token, &t->info.pad_id);
    load_info_token(t, config, "unk_token", &t->info.unk_token, &t->info.unk_id);
    t->info.chat_template = keep_string(t, find_chat_template(json_object_get(config, "chat_template")));
    t->info.tokenizer_class = keep_string(t, json_string_value(json_object_get(config, "tokenizer_class")));
    double length = json_number_value(json_object_get(config, "model_max_length"));
    if (length >= 1 && length < INT32_MAX) t->info.model_max_length = (int64_t)length;
    json_decref(config);
    return QN_OK;
}
