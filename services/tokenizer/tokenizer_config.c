/* What is this?      The members of tokenizer_config.json that only inform, into what tokenizer_info() tells.
 * State owned:       none; strings go to the tokenizer's arena.
 * Must never:        fail because a member is missing.
 * Read next:         tokenizer.h (tokenizer_info_t), json/side_files.h (what changes ids). */
#include <jansson.h>

#include "services/tokenizer/tokenizer_data.h"

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

void tokenizer_config_tell(tokenizer_t *t, const json_t *config)
{
    t->info.chat_template = keep_string(t, find_chat_template(json_object_get(config, "chat_template")));
    t->info.tokenizer_class = keep_string(t, json_string_value(json_object_get(config, "tokenizer_class")));
    double length = json_number_value(json_object_get(config, "model_max_length"));
    if (length >= 1 && length < INT32_MAX) t->info.model_max_length = (int64_t)length;
}
