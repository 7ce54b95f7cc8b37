/* What is this?      The files beside tokenizer.json, read together the way transformers does.
 * State owned:       the parsed files, until the tokenizer is open.
 * Must never:        leave out silently what a file asks for: it is done, refused, or told by tokenizer_note().
 * Read next:         side_tokens.c (which tokens they add), tokenizer_class.h. */
#include "services/tokenizer/json/side_files.h"

#include <stdio.h>

#define WHERE_BYTES 160

static qn_err_t parse(const tokenizer_file_t *file, const char *name, json_t **ret)
{
    json_error_t error;
    if (!file->bytes) return QN_OK;
    /* "No limit" is written as 1e30 in full, which no integer holds. */
    json_t *json = json_loadb(file->bytes, file->length, JSON_DECODE_INT_AS_REAL | JSON_ALLOW_NUL, &error);
    if (json_is_object(json)) {
        *ret = json;
        return QN_OK;
    }
    json_decref(json);
    return qn_fail(QN_ERR_INVALID, "%s: must be a JSON object: %s (line %d)", name, error.text, error.line);
}

/* Only what names the class is wanted of it: a config.json that does not parse is the model's trouble. */
static json_t *parse_model_config(const tokenizer_file_t *file)
{
    json_error_t error;
    return file->bytes ? json_loadb(file->bytes, file->length, JSON_DECODE_INT_AS_REAL | JSON_ALLOW_NUL, &error) : NULL;
}

static void find_class(side_files_t *side, tokenizer_t *t)
{
    const char *model = json_string_value(json_object_get(side->model_config, "model_type"));
    const char *name = json_string_value(json_object_get(side->config, "tokenizer_class"));
    bool known;
    if (!name) name = json_string_value(json_object_get(side->model_config, "tokenizer_class"));
    if (!name && model) {
        side->class = tokenizer_class_by_model(model);
        side->class_is_guess = side->class && !side->config;
    }
    if (!side->class) side->class = tokenizer_class_by_name(name ? name : "PreTrainedTokenizer", &known);
    if (name && !known)
        tokenizer_add_note(t,
                           "tokenizer_class: what \"%.60s\" changes is not known here; it is read as "
                           "PreTrainedTokenizerFast",
                           name);
}

qn_err_t side_files_open(const tokenizer_files_t *files, tokenizer_t *t, side_files_t *ret)
{
    *ret = (side_files_t){0};
    qn_err_t err = parse(&files->config, "tokenizer_config.json", &ret->config);
    if (!err) err = parse(&files->special_tokens_map, "special_tokens_map.json", &ret->special_map);
    if (!err) err = parse(&files->added_tokens, "added_tokens.json", &ret->added);
    if (err) return err;
    ret->model_config = parse_model_config(&files->model_config);
    if (ret->config || ret->special_map || ret->added || ret->model_config) find_class(ret, t);
    return QN_OK;
}

void side_files_fini(side_files_t *side)
{
    json_decref(side->config);
    json_decref(side->special_map);
    json_decref(side->added);
    json_decref(side->model_config);
    free(side->extra);
    *side = (side_files_t){0};
}

/* ---- add_prefix_space ---- */

static bool is_type(const json_t *component, const char *type)
{
    const char *name = json_string_value(json_object_get(component, "type"));
    return name && strcmp(name, type) == 0;
}

/* true where false stands, in all members of a Sequence. */
static void set_in_depth(json_t *component, int depth)
{
    size_t i;
    json_t *member;
    if (json_is_false(json_object_get(component, "add_prefix_space")))
        json_object_set_new(component, "add_prefix_space", json_true());
    if (depth < 8) json_array_foreach(json_object_get(component, "pretokenizers"), i, member)
        {
            set_in_depth(member, depth + 1);
        }
}

static void replace(json_t **component, json_t *by)
{
    json_decref(*component);
    *component = by;
}

/* A sentencepiece vocabulary is converted anew: the spaces are where legacy and add_prefix_space say. */
static void remake_spaces(const side_files_t *side, bool prefix, json_t **normalizer, json_t **pretokenizer,
                          json_t **decoder)
{
    const json_t *legacy = json_object_get(side->config, "legacy");
    json_t *to_underscore =
        json_pack("{s:s, s:{s:s}, s:s}", "type", "Replace", "pattern", "String", " ", "content", "▁");
    json_t *decoders = json_pack("[{s:s, s:{s:s}, s:s}, {s:s}, {s:s}]", "type", "Replace", "pattern", "String", "▁",
                                 "content", " ", "type", "ByteFallback", "type", "Fuse");
    if (prefix)
        json_array_append_new(decoders, json_pack("{s:s, s:s, s:i, s:i}", "type", "Strip", "content", " ", "start", 1,
                                                  "stop", 0));
    replace(decoder, json_pack("{s:s, s:o}", "type", "Sequence", "decoders", decoders));
    if (json_is_false(legacy)) {
        json_decref(to_underscore);
        replace(normalizer, json_null());
        replace(pretokenizer, json_pack("{s:s, s:s, s:s, s:b}", "type", "Metaspace", "replacement", "▁",
                                        "prepend_scheme", prefix ? "first" : "never", "split", 0));
        return;
    }
    json_t *steps = json_array();
    if (prefix) json_array_append_new(steps, json_pack("{s:s, s:s}", "type", "Prepend", "prepend", "▁"));
    json_array_append_new(steps, to_underscore);
    replace(normalizer, json_pack("{s:s, s:o}", "type", "Sequence", "normalizers", steps));
    replace(pretokenizer, json_null());
}

static void set_prefix_space(tokenizer_t *t, json_t *pretokenizer, bool prefix, bool is_said)
{
    const json_t *own = json_object_get(pretokenizer, "add_prefix_space");
    if (!is_type(pretokenizer, "ByteLevel") || !json_is_boolean(own) || json_is_true(own) == prefix) return;
    json_object_set_new(pretokenizer, "add_prefix_space", json_boolean(prefix));
    if (!is_said)
        tokenizer_add_note(t, "add_prefix_space: tokenizer.json says true and tokenizer_config.json nothing, which is "
                              "false; write it there to get the space");
}

void side_files_edit(side_files_t *side, tokenizer_t *t, json_t **normalizer, json_t **pretokenizer, json_t **decoder)
{
    if (!side->class) return;
    const json_t *said = json_object_get(side->config, "add_prefix_space");
    bool prefix = json_is_true(said);
    if (said && !json_is_boolean(said)) return; /* null: tokenizer.json decides */
    if (!said && side->class->prefix_space == PREFIX_SPACE_AS_FILE) return;
    side->is_remade = side->class->remakes_spaces && !is_type(*decoder, "ByteLevel");
    if (side->is_remade) remake_spaces(side, prefix, normalizer, pretokenizer, decoder);
    if (side->class->prefix_in_depth && prefix) set_in_depth(*pretokenizer, 0);
    set_prefix_space(t, *pretokenizer, prefix, said != NULL);
}

/* ---- the template and what tokenizer_info() tells ---- */

/* As Python sees it: absent gives the default, null and 0 are false. */
static bool flag_of(const json_t *config, const char *key, bool fallback)
{
    const json_t *value = json_object_get(config, key);
    return value ? json_is_true(value) || json_number_value(value) != 0.0 : fallback;
}

static qn_err_t add_to_template(const tokenizer_t *t, const side_token_t *token, const char *what,
                                token_template_t *template)
{
    uint32_t id;
    if (!token->content || !tokenizer_id_of(t, token->content, token->bytes, &id))
        return qn_fail(QN_ERR_INVALID, "tokenizer_config.json: add_%s is true, but there is no %s", what, what);
    template->items[template->count++] = id;
    return QN_OK;
}

static qn_err_t build_template(const side_files_t *side, tokenizer_t *t)
{
    token_template_t template = {.count = 0};
    qn_err_t err = QN_OK;
    if (flag_of(side->config, "add_bos_token", side->class->adds_bos))
        err = add_to_template(t, &side->tokens[SIDE_BOS], "bos_token", &template);
    template.items[template.count++] = TEMPLATE_TEXT;
    if (!err && flag_of(side->config, "add_eos_token", false))
        err = add_to_template(t, &side->tokens[SIDE_EOS], "eos_token", &template);
    if (!err) t->template = template;
    return err;
}

static void tell_token(const side_files_t *side, tokenizer_t *t, side_token_kind_t kind, const char **ret_text,
                       int64_t *ret_id)
{
    const side_token_t *token = &side->tokens[kind];
    uint32_t id;
    if (!token->content) return;
    *ret_text = qn_arena_strndup(&t->strings, token->content, token->bytes);
    if (tokenizer_id_of(t, token->content, token->bytes, &id)) *ret_id = id;
}

/* Members that other programs act on and this one does not. */
static void note_the_rest(const side_files_t *side, tokenizer_t *t)
{
    static const char *const flags[] = {"add_bos_token", "add_eos_token"};
    for (size_t i = 0; i < 2; i++)
        if (!side->class->builds_template && json_is_true(json_object_get(side->config, flags[i])))
            tokenizer_add_note(t,
                               "%s: true is not followed, since %sFast does not; the post_processor of tokenizer.json "
                               "decides",
                               flags[i], side->class->name);
    if (json_is_true(json_object_get(side->config, "clean_up_tokenization_spaces")))
        tokenizer_add_note(t, "clean_up_tokenization_spaces: true is not followed: it would take spaces out of a text "
                              "that byte pairs spell exactly");
}

qn_err_t side_files_finish(const side_files_t *side, tokenizer_t *t)
{
    if (!side->class) return QN_OK;
    bool lacks_bos = side->class_is_guess && !side->tokens[SIDE_BOS].content;
    qn_err_t err = side->class->builds_template && !lacks_bos ? build_template(side, t) : QN_OK;
    if (side->class->builds_template && lacks_bos)
        tokenizer_add_note(t,
                           "there is no tokenizer_config.json, and the bos_token of %s is not in the vocabulary: the "
                           "post_processor of tokenizer.json decides",
                           side->class->name);
    tell_token(side, t, SIDE_BOS, &t->info.bos_token, &t->info.bos_id);
    tell_token(side, t, SIDE_EOS, &t->info.eos_token, &t->info.eos_id);
    tell_token(side, t, SIDE_PAD, &t->info.pad_token, &t->info.pad_id);
    tell_token(side, t, SIDE_UNK, &t->info.unk_token, &t->info.unk_id);
    t->splits_special = flag_of(side->config, "split_special_tokens", false);
    if (side->config) tokenizer_config_tell(t, side->config);
    note_the_rest(side, t);
    return err;
}
