/* What is this?      Which tokens the files beside tokenizer.json add, and which of all are special.
 * State owned:       the resolved special tokens in side_files_t.
 * Must never:        take an id from a file: ids follow from the order in which tokens are added.
 * Read next:         added_vocabulary.h (what becomes of them), side_files.h. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "services/tokenizer/json/side_files.h"

#define WHERE_BYTES 160

/* A token with the index its file gives, which is only its place in the order. */
typedef struct {
    double index;
    size_t order; /* in the file: equal indices stay as they came */
    side_token_t token;
} declared_t;

typedef struct {
    declared_t *items; /* [count], owned */
    size_t count;
} declared_list_t;

static const char *const kind_names[SIDE_TOKENS] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                                    "pad_token", "cls_token", "mask_token"};

/* ---- one token ---- */

static qn_err_t read_normalized(const json_t *json, const char *where, int8_t *ret)
{
    bool normalized = false;
    const json_t *value = json_object_get(json, "normalized");
    *ret = -1;
    if (!value || json_is_null(value)) return QN_OK;
    qn_err_t err = component_json_bool(json, where, "normalized", 0, &normalized);
    *ret = normalized;
    return err;
}

/* A string, or an object with content and flags. null leaves *ret without content. */
static qn_err_t read_token(const json_t *json, const char *where, side_token_t *ret)
{
    *ret = (side_token_t){.normalized = -1};
    if (json_is_null(json)) return QN_OK;
    if (json_is_string(json)) {
        ret->content = json_string_value(json);
        ret->bytes = json_string_length(json);
        return QN_OK;
    }
    if (!json_is_object(json)) return qn_fail(QN_ERR_INVALID, "%s: must be a string or an object with content", where);
    ret->is_object = true;
    qn_err_t err = component_json_string(json, where, "content", &ret->content, &ret->bytes);
    if (!err) err = component_json_bool(json, where, "single_word", 0, &ret->single_word);
    if (!err) err = component_json_bool(json, where, "lstrip", 0, &ret->left_strip);
    if (!err) err = component_json_bool(json, where, "rstrip", 0, &ret->right_strip);
    if (!err) err = component_json_bool(json, where, "special", 0, &ret->special);
    if (!err) err = read_normalized(json, where, &ret->normalized);
    return err;
}

static bool is_content(const side_token_t *token, const char *content, size_t bytes)
{
    return token->content && token->bytes == bytes && memcmp(token->content, content, bytes) == 0;
}

static bool is_normalized(const side_token_t *token)
{
    return token->normalized < 0 ? !token->special : token->normalized == 1;
}

static bool is_equal(const side_token_t *a, const side_token_t *b)
{
    return a->is_object == b->is_object && is_content(a, b->content, b->bytes) &&
           (!a->is_object ||
            (a->single_word == b->single_word && a->left_strip == b->left_strip && a->right_strip == b->right_strip &&
             a->special == b->special && is_normalized(a) == is_normalized(b)));
}

/* ---- added_tokens_decoder, added_tokens.json ---- */

static int by_index(const void *a, const void *b)
{
    const declared_t *left = a, *right = b;
    if (left->index != right->index) return left->index < right->index ? -1 : 1;
    return left->order < right->order ? -1 : left->order > right->order;
}

static qn_err_t read_decoder(const json_t *decoder, declared_list_t *list)
{
    const char *key;
    json_t *value;
    qn_err_t err = QN_OK;
    json_object_foreach((json_t *)decoder, key, value)
    {
        char where[WHERE_BYTES], *end;
        declared_t *item = &list->items[list->count];
        snprintf(where, sizeof where, "tokenizer_config.json: added_tokens_decoder[\"%.40s\"]", key);
        *item = (declared_t){.index = (double)strtoul(key, &end, 10), .order = list->count};
        if (*end || end == key) err = qn_fail(QN_ERR_INVALID, "%s: the key must be a token id", where);
        if (!err) err = read_token(value, where, &item->token);
        if (!err && !item->token.is_object) err = qn_fail(QN_ERR_INVALID, "%s: must be an object with content", where);
        if (err) return err;
        list->count++;
    }
    return QN_OK;
}

/* {"<tool>": 32000}: not special unless one of the special tokens. */
static qn_err_t read_added(const side_files_t *side, declared_list_t *list)
{
    const char *key;
    size_t bytes;
    json_t *value;
    json_object_keylen_foreach(side->added, key, bytes, value)
    {
        if (!json_is_number(value))
            return qn_fail(QN_ERR_INVALID, "added_tokens.json: \"%.40s\": must be a token id", key);
        declared_t *item = &list->items[list->count];
        *item = (declared_t){.index = json_number_value(value), .order = list->count};
        item->token = (side_token_t){.content = key, .bytes = bytes, .is_object = true};
        for (int i = 0; i < SIDE_TOKENS; i++)
            item->token.special |=
                !side->tokens[i].is_default && !side->tokens[i].is_late && is_content(&side->tokens[i], key, bytes);
        for (size_t i = 0; i < side->extra_count; i++)
            item->token.special |= !side->extra[i].is_late && is_content(&side->extra[i], key, bytes);
        item->token.normalized = !item->token.special;
        list->count++;
    }
    return QN_OK;
}

/* What tokenizer.json itself has added, which without an added_tokens_decoder is declared once more. */
static qn_err_t read_own(const json_t *tokenizer_list, declared_list_t *list)
{
    qn_err_t err = QN_OK;
    for (size_t i = 0; !err && i < json_array_size(tokenizer_list); i++) {
        const json_t *json = json_array_get(tokenizer_list, i);
        declared_t *item = &list->items[list->count];
        *item = (declared_t){.index = json_number_value(json_object_get(json, "id")), .order = list->count};
        err = read_token(json, "added_tokens", &item->token);
        list->count++;
    }
    return err;
}

/* By index; of equal indices the last counts. */
static void sort_declared(declared_list_t *list)
{
    size_t kept = 0;
    qsort(list->items, list->count, sizeof *list->items, by_index);
    for (size_t i = 0; i < list->count; i++) {
        if (i + 1 < list->count && list->items[i + 1].index == list->items[i].index) continue;
        if (list->items[i].token.content) list->items[kept++] = list->items[i];
    }
    list->count = kept;
}

static qn_err_t read_declared(const side_files_t *side, const json_t *tokenizer_list, declared_list_t *list)
{
    const json_t *decoder = json_object_get(side->config, "added_tokens_decoder");
    size_t count = decoder ? json_object_size(decoder) : json_object_size(side->added);
    if (decoder && !json_is_object(decoder))
        return qn_fail(QN_ERR_INVALID, "tokenizer_config.json: added_tokens_decoder: must be an object");
    if (count > TOKENIZER_ADDED_TOKENS_MAX)
        return qn_fail(QN_ERR_LIMIT, "%s: %zu tokens, at most %d are allowed",
                       decoder ? "tokenizer_config.json: added_tokens_decoder" : "added_tokens.json", count,
                       TOKENIZER_ADDED_TOKENS_MAX);
    list->items = calloc(count + json_array_size(tokenizer_list) + 1, sizeof *list->items);
    QN_ASSERT(list->items != NULL);
    qn_err_t err = decoder ? read_decoder(decoder, list) : read_added(side, list);
    if (!err && !decoder) err = read_own(tokenizer_list, list);
    if (!err) sort_declared(list);
    return err;
}

/* ---- special tokens ---- */

static void add_extra(side_files_t *side, const side_token_t *token)
{
    if (!token->content) return;
    for (size_t i = 0; i < side->extra_count; i++)
        if (is_equal(&side->extra[i], token)) return;
    if (side->extra_count == side->extra_capacity) {
        side->extra_capacity = side->extra_capacity ? side->extra_capacity * 2 : 16;
        side->extra = realloc(side->extra, side->extra_capacity * sizeof *side->extra);
        QN_ASSERT(side->extra != NULL);
    }
    side->extra[side->extra_count++] = *token;
}

/* A list of tokens, or an object of named ones. */
static qn_err_t read_extra(side_files_t *side, const json_t *file, const char *name, const char *key, bool is_special)
{
    const json_t *tokens = json_object_get(file, key), *value;
    char where[WHERE_BYTES];
    snprintf(where, sizeof where, "%s: %s", name, key);
    if (!tokens || json_is_null(tokens)) return QN_OK;
    if (json_array_size(tokens) + json_object_size(tokens) > TOKENIZER_ADDED_TOKENS_MAX)
        return qn_fail(QN_ERR_LIMIT, "%s: more than %d tokens", where, TOKENIZER_ADDED_TOKENS_MAX);
    qn_err_t err = QN_OK;
    side_token_t token;
    const char *member;
    if (!json_is_array(tokens) && !json_is_object(tokens))
        return qn_fail(QN_ERR_INVALID, "%s: must be a list of tokens", where);
    for (size_t i = 0; !err && i < json_array_size(tokens); i++) {
        err = read_token(json_array_get(tokens, i), where, &token);
        token.special |= token.is_object && is_special;
        token.is_late = token.is_object && !is_special;
        if (!err) add_extra(side, &token);
    }
    json_object_foreach((json_t *)tokens, member, value)
    {
        if (!err) err = read_token(value, where, &token);
        if (!err) add_extra(side, &token);
    }
    return err;
}

static bool is_in_vocabulary(const tokenizer_t *t, const side_token_t *token)
{
    uint32_t id;
    return tokenizer_id_of(t, token->content, token->bytes, &id);
}

/* The class's own choice; where even the class is a guess, only what the vocabulary has. */
static void take_default(side_files_t *side, const tokenizer_t *t, side_token_kind_t kind)
{
    const char *defaults[SIDE_TOKENS] = {[SIDE_BOS] = side->class->bos,
                                         [SIDE_EOS] = side->class->eos,
                                         [SIDE_UNK] = side->class->unk,
                                         [SIDE_PAD] = side->class->pad};
    const json_t *padding = json_object_get(side->padding, "pad_token");
    if (kind == SIDE_PAD && !defaults[kind]) defaults[kind] = json_string_value(padding);
    if (!defaults[kind]) return;
    side_token_t token = {.content = defaults[kind],
                          .bytes = strlen(defaults[kind]),
                          .is_default = true,
                          .normalized = -1};
    if (!side->class_is_guess || is_in_vocabulary(t, &token)) side->tokens[kind] = token;
}

static qn_err_t read_special(side_files_t *side, const json_t *file, const char *name, bool is_special)
{
    qn_err_t err = QN_OK;
    for (int kind = 0; !err && kind < SIDE_TOKENS; kind++) {
        char where[WHERE_BYTES];
        const json_t *value = json_object_get(file, kind_names[kind]);
        if (!value) continue;
        snprintf(where, sizeof where, "%s: %s", name, kind_names[kind]);
        err = read_token(value, where, &side->tokens[kind]);
        side->tokens[kind].special |= side->tokens[kind].is_object && is_special;
        side->tokens[kind].is_late = side->tokens[kind].is_object && !is_special;
    }
    return err;
}

static qn_err_t read_infill(side_files_t *side)
{
    static const struct {
        const char *key, *content;
    } infill[] = {{"prefix_token", "▁<PRE>"},
                  {"middle_token", "▁<MID>"},
                  {"suffix_token", "▁<SUF>"},
                  {"eot_token", "▁<EOT>"}};
    qn_err_t err = QN_OK;
    for (size_t i = 0; !err && side->class->has_infill && i < sizeof infill / sizeof *infill; i++) {
        side_token_t token = {.content = infill[i].content, .bytes = strlen(infill[i].content), .normalized = -1};
        const json_t *value = json_object_get(side->config, infill[i].key);
        if (value) err = read_token(value, infill[i].key, &token);
        if (!err) add_extra(side, &token);
    }
    return err;
}

/* Without an added_tokens_decoder, special_tokens_map.json goes over tokenizer_config.json; with one it is not read. */
static qn_err_t resolve_special(side_files_t *side, const tokenizer_t *t)
{
    bool has_map = side->special_map && !json_object_get(side->config, "added_tokens_decoder");
    for (int kind = 0; kind < SIDE_TOKENS; kind++)
        take_default(side, t, kind);
    qn_err_t err = read_special(side, side->config, "tokenizer_config.json", false);
    if (!err) err = read_extra(side, side->config, "tokenizer_config.json", "additional_special_tokens", false);
    if (!err && has_map) err = read_special(side, side->special_map, "special_tokens_map.json", true);
    if (!err && has_map)
        err = read_extra(side, side->special_map, "special_tokens_map.json", "additional_special_tokens", true);
    if (!err) err = read_infill(side);
    side->listed_count = side->extra_count;
    return err ? err : read_extra(side, side->config, "tokenizer_config.json", "extra_special_tokens", false);
}

/* A special token given as a string takes the flags with which the token itself is declared. */
static void take_flags(side_files_t *side, const declared_list_t *declared, const json_t *tokenizer_list)
{
    bool has_decoder = json_object_get(side->config, "added_tokens_decoder") != NULL;
    for (int kind = 0; kind < SIDE_TOKENS; kind++) {
        side_token_t *token = &side->tokens[kind], found;
        if (!token->content || token->is_default) continue;
        const char *content = token->content;
        size_t bytes = token->bytes, i;
        json_t *item;
        for (i = 0; has_decoder && i < declared->count; i++)
            if (is_content(&declared->items[i].token, content, bytes)) *token = declared->items[i].token;
        if (has_decoder) continue;
        json_array_foreach(tokenizer_list, i, item)
        {
            if (read_token(item, "added_tokens", &found) == QN_OK && is_content(&found, content, bytes)) *token = found;
        }
    }
    for (int kind = 0; side->class->defaults_special && kind < SIDE_TOKENS; kind++) {
        side_token_t *token = &side->tokens[kind];
        bool is_own = kind == SIDE_BOS || kind == SIDE_EOS || kind == SIDE_UNK || kind == SIDE_PAD;
        if (!is_own || !token->content || token->is_object) continue;
        token->is_object = token->special = true;
        token->normalized = 0;
    }
}

/* ---- the batch ---- */

static const side_token_t *special_at(const side_files_t *side, size_t i)
{
    return i < SIDE_TOKENS ? &side->tokens[i] : &side->extra[i - SIDE_TOKENS];
}

static bool is_special_content(const side_files_t *side, const side_token_t *token)
{
    for (size_t i = 0; i < SIDE_TOKENS + side->extra_count; i++) {
        const side_token_t *special = special_at(side, i);
        if (special->bytes > 0 && is_content(special, token->content, token->bytes)) return true;
    }
    return false;
}

static added_spec_t spec_of(const side_files_t *side, side_token_t token)
{
    token.special |= is_special_content(side, &token);
    return (added_spec_t){.content = token.content,
                          .bytes = token.bytes,
                          .single_word = token.single_word,
                          .left_strip = token.left_strip,
                          .right_strip = token.right_strip,
                          .normalized = is_normalized(&token),
                          .special = token.special};
}

/* Special tokens that are not there yet. A string is there when its content is; one with flags only when it was just
 * declared with the same flags. */
static bool is_wanted(const side_files_t *side, const tokenizer_t *t, const declared_list_t *declared, size_t index)
{
    const side_token_t *token = special_at(side, index);
    if (!token->content || token->bytes == 0) return false;
    bool is_listed = index >= SIDE_TOKENS && index < SIDE_TOKENS + side->listed_count;
    for (size_t i = 0; i < (is_listed ? SIDE_TOKENS : index); i++) /* within the list a second one may change flags */
        if (is_content(special_at(side, i), token->content, token->bytes)) return false;
    if (!token->is_object && added_vocabulary_has(t, token->content, token->bytes)) return false;
    for (size_t i = 0; i < declared->count; i++) {
        const side_token_t *other = &declared->items[i].token;
        if (token->is_object ? is_equal(token, other) : is_content(other, token->content, token->bytes)) return false;
    }
    return true;
}

/* What was just added although no file names it: the model may not have this id. */
static void note_invented(const side_files_t *side, tokenizer_t *t, const added_spec_t *spec, uint32_t id)
{
    for (int kind = 0; kind < SIDE_TOKENS; kind++)
        if (side->tokens[kind].is_default && is_content(&side->tokens[kind], spec->content, spec->bytes)) {
            tokenizer_add_note(t, "%s: %s uses \"%.40s\", which the vocabulary lacks: it gets the new id %u",
                               kind_names[kind], side->class->name, spec->content, id);
            return;
        }
}

static qn_err_t add_batch(const side_files_t *side, tokenizer_t *t, const added_spec_t *specs, size_t count,
                          added_vocabulary_t *added)
{
    qn_err_t err = QN_OK;
    added_vocabulary_begin(added, specs, count);
    for (size_t i = 0; !err && i < count; i++) {
        char where[WHERE_BYTES];
        uint32_t id, before;
        bool is_new = !tokenizer_id_of(t, specs[i].content, specs[i].bytes, &before);
        snprintf(where, sizeof where, "added token \"%.40s\"", specs[i].content);
        err = added_vocabulary_add(added, t, &specs[i], where, &id);
        if (!err && is_new) note_invented(side, t, &specs[i], id);
    }
    return err;
}

qn_err_t side_files_add_tokens(side_files_t *side, tokenizer_t *t, const json_t *list, added_vocabulary_t *added)
{
    if (!side->class) return QN_OK;
    declared_list_t declared = {0};
    qn_err_t err = resolve_special(side, t);
    if (!err) err = read_declared(side, list, &declared);
    if (err) {
        free(declared.items);
        return err;
    }
    take_flags(side, &declared, list);
    size_t most = declared.count + SIDE_TOKENS + side->extra_count, count = 0;
    added_spec_t *specs = calloc(most + 1, sizeof *specs);
    QN_ASSERT(specs != NULL);
    for (size_t i = 0; i < declared.count; i++)
        specs[count++] = spec_of(side, declared.items[i].token);
    for (size_t i = 0; i < SIDE_TOKENS + side->extra_count; i++)
        if (is_wanted(side, t, &declared, i)) specs[count++] = spec_of(side, *special_at(side, i));
    err = add_batch(side, t, specs, count, added);
    free(specs);
    free(declared.items);
    return err;
}
