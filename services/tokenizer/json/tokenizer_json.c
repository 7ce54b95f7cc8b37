/* What is this?      tokenizer.json into a tokenizer_t.
 * State owned:       none; parse buffers live for the call.
 * Must never:        trust a count, an id or an order in the file; accept a model it cannot run exactly.
 * Read next:         component_json.c (the small parts), bpe.h (the large one), side_files.h. */
#include <jansson.h>
#include <stdio.h>

#include "common/limits.h"
#include "common/watch/log.h"
#include "services/tokenizer/bpe/byte_level.h"
#include "services/tokenizer/json/added_vocabulary.h"
#include "services/tokenizer/json/component_json.h"
#include "services/tokenizer/json/json_cursor.h"
#include "services/tokenizer/json/side_files.h"
#include "services/tokenizer/tokenizer_data.h"

#define AFFIX_BYTES_MAX 64 /* "##", "</w>" */

/* Members of an object that were asked for by name. */
typedef struct {
    const char *name;
    json_slice_t slice;
} member_t;

static qn_err_t broken(const json_cursor_t *cursor, const char *where)
{
    return qn_fail(QN_ERR_INVALID, "%s: not valid JSON at byte %zu of it", where, cursor->at);
}

/* Walks over an object once and keeps the slices of the members named; the last of equals counts. */
static qn_err_t find_members(json_slice_t object, const char *where, member_t *members, size_t count)
{
    json_cursor_t cursor = json_cursor(object);
    text_buffer_t escaped = {0};
    bool first = true, more = true, ok = json_cursor_take(&cursor, '{');
    while (ok && (ok = json_cursor_more(&cursor, '}', &first, &more)) && more) {
        const char *key;
        size_t bytes;
        json_slice_t value;
        escaped.length = 0;
        ok = json_cursor_string_view(&cursor, &escaped, &key, &bytes) && json_cursor_take(&cursor, ':') &&
             json_cursor_value(&cursor, &value);
        for (size_t i = 0; ok && i < count; i++)
            if (strlen(members[i].name) == bytes && memcmp(members[i].name, key, bytes) == 0) members[i].slice = value;
    }
    ok = ok && json_cursor_at_end(&cursor);
    text_buffer_fini(&escaped);
    return ok ? QN_OK : broken(&cursor, where);
}

/* Parses a slice into a tree; *ret stays NULL when it is absent. */
static qn_err_t parse_slice(const member_t *member, json_t **ret)
{
    json_error_t error;
    if (!member->slice.text) return QN_OK;
    *ret = json_loadb(member->slice.text, member->slice.length, JSON_DECODE_ANY | JSON_ALLOW_NUL, &error);
    return *ret ? QN_OK
                : qn_fail(QN_ERR_INVALID, "%s: not valid JSON: %s (line %d of it)", member->name, error.text,
                          error.line);
}

/* ---- model ---- */

enum {
    MODEL_TYPE,
    MODEL_VOCAB,
    MODEL_MERGES,
    MODEL_UNK,
    MODEL_PREFIX,
    MODEL_SUFFIX,
    MODEL_FUSE,
    MODEL_FALLBACK,
    MODEL_IGNORE,
    MODEL_DROPOUT,
    MODEL_MEMBERS
};

typedef struct {
    tokenizer_t *t;
    member_t members[MODEL_MEMBERS];
    json_t *values[MODEL_MEMBERS]; /* owned; of the small members */
    text_buffer_t strings;         /* work space for strings with escapes */
    text_buffer_t joined;
} model_load_t;

/* A piece per 4 bytes of JSON at the very least: sizes the table without a first pass. */
static qn_err_t load_vocabulary(model_load_t *load, vocabulary_t *pieces)
{
    json_cursor_t cursor = json_cursor(load->members[MODEL_VOCAB].slice);
    bool first = true, more = true, ok = json_cursor_take(&cursor, '{');
    vocabulary_init(pieces, cursor.length / 24);
    while (ok && (ok = json_cursor_more(&cursor, '}', &first, &more)) && more) {
        const char *piece;
        size_t bytes;
        uint32_t id;
        load->strings.length = 0;
        ok = json_cursor_string_view(&cursor, &load->strings, &piece, &bytes) && json_cursor_take(&cursor, ':') &&
             json_cursor_uint32(&cursor, &id);
        if (!ok) break;
        if (id >= QN_VOCAB_MAX || bytes > TOKENIZER_PIECE_BYTES_MAX)
            return qn_fail(QN_ERR_LIMIT,
                           "model.vocab[\"%.*s\"]: id %u or length %zu is beyond the limits of %u ids "
                           "and %u bytes",
                           (int)(bytes < 40 ? bytes : 40), piece, id, bytes, QN_VOCAB_MAX, TOKENIZER_PIECE_BYTES_MAX);
        vocabulary_add(pieces, piece, bytes, id);
    }
    return ok && json_cursor_at_end(&cursor) ? QN_OK : broken(&cursor, "model.vocab");
}

/* Number of items of the merges array: strings, or pairs of strings. */
static size_t count_merges(json_slice_t merges)
{
    json_cursor_t cursor = json_cursor(merges);
    bool first = true, more = true, ok = json_cursor_take(&cursor, '[');
    size_t count = 0;
    json_slice_t item;
    while (ok && (ok = json_cursor_more(&cursor, ']', &first, &more)) && more) {
        ok = json_cursor_value(&cursor, &item);
        count++;
    }
    return count;
}

typedef struct {
    const char *left, *right;
    size_t left_bytes, right_bytes;
} merge_t;

/* "a b" */
static bool read_legacy_merge(model_load_t *load, json_cursor_t *cursor, merge_t *ret)
{
    const char *text;
    size_t bytes;
    if (!json_cursor_string_view(cursor, &load->strings, &text, &bytes)) return false;
    const char *space = memchr(text, ' ', bytes);
    if (!space || memchr(space + 1, ' ', bytes - (size_t)(space + 1 - text))) return false;
    *ret = (merge_t){text, space + 1, (size_t)(space - text), bytes - (size_t)(space + 1 - text)};
    return true;
}

/* ["a", "b"] */
static bool read_pair_merge(model_load_t *load, json_cursor_t *cursor, merge_t *ret)
{
    text_buffer_reserve(&load->strings, 2 * TOKENIZER_PIECE_BYTES_MAX + 2); /* the first view must not move */
    return json_cursor_take(cursor, '[') &&
           json_cursor_string_view(cursor, &load->strings, &ret->left, &ret->left_bytes) &&
           ret->left_bytes <= TOKENIZER_PIECE_BYTES_MAX && json_cursor_take(cursor, ',') &&
           json_cursor_string_view(cursor, &load->strings, &ret->right, &ret->right_bytes) &&
           ret->right_bytes <= TOKENIZER_PIECE_BYTES_MAX && json_cursor_take(cursor, ']');
}

/* The merged piece is the left one followed by the right one without the continuing prefix. */
static qn_err_t add_merge(model_load_t *load, const vocabulary_t *pieces, const merge_t *merge, size_t prefix,
                          size_t index)
{
    text_buffer_t *joined = &load->joined;
    size_t drop = prefix < merge->right_bytes ? prefix : merge->right_bytes;
    joined->length = 0;
    text_buffer_append(joined, merge->left, merge->left_bytes);
    text_buffer_append(joined, merge->right + drop, merge->right_bytes - drop);
    uint32_t left = vocabulary_find(pieces, merge->left, merge->left_bytes);
    uint32_t right = vocabulary_find(pieces, merge->right, merge->right_bytes);
    uint32_t merged = vocabulary_find(pieces, joined->bytes, joined->length);
    if (left == VOCABULARY_NO_ID || right == VOCABULARY_NO_ID || merged == VOCABULARY_NO_ID)
        return qn_fail(QN_ERR_INVALID,
                       "model.merges[%zu]: \"%.*s\" + \"%.*s\": a part or the result is not in "
                       "model.vocab",
                       index, (int)(merge->left_bytes < 40 ? merge->left_bytes : 40), merge->left,
                       (int)(merge->right_bytes < 40 ? merge->right_bytes : 40), merge->right);
    bpe_add_merge(&load->t->bpe, left, right, merged);
    return QN_OK;
}

static qn_err_t load_merges(model_load_t *load, const vocabulary_t *pieces)
{
    json_slice_t slice = load->members[MODEL_MERGES].slice;
    size_t count = count_merges(slice), index = 0;
    if (count >= (1u << BPE_RANK_BITS) - 1)
        return qn_fail(QN_ERR_LIMIT, "model.merges: %zu merges, at most %u are allowed", count,
                       (1u << BPE_RANK_BITS) - 2);
    bpe_init(&load->t->bpe, count);
    json_cursor_t cursor = json_cursor(slice);
    size_t prefix = load->t->bpe.prefix ? strlen(load->t->bpe.prefix) : 0;
    bool first = true, more = true, ok = json_cursor_take(&cursor, '[');
    while (ok && (ok = json_cursor_more(&cursor, ']', &first, &more)) && more) {
        merge_t merge = {0};
        load->strings.length = 0;
        ok = json_cursor_peek(&cursor) == '[' ? read_pair_merge(load, &cursor, &merge)
                                              : read_legacy_merge(load, &cursor, &merge);
        if (!ok) break;
        QN_ASSERT(index < count);
        qn_err_t err = add_merge(load, pieces, &merge, prefix, index++);
        if (err) return err;
    }
    return ok && json_cursor_at_end(&cursor)
               ? QN_OK
               : qn_fail(QN_ERR_INVALID, "model.merges[%zu]: must be \"left right\" or [\"left\", \"right\"]", index);
}

/* Bytes that occur in UTF-8: without one of them in the vocabulary words cannot start as bytes. */
static bool has_all_bytes(const vocabulary_t *raw)
{
    for (unsigned byte = 0; byte < 0xF5; byte++) {
        uint8_t character[4];
        if (byte == 0xC0 || byte == 0xC1) continue;
        unsigned size = unicode_encode(byte_level_character((uint8_t)byte), character);
        if (vocabulary_find(raw, character, size) == VOCABULARY_NO_ID) return false;
    }
    return true;
}

/* The last thing that happens to a word is the byte alphabet: the model may as well work on bytes. */
static bool may_work_on_bytes(const tokenizer_t *t, const vocabulary_t *raw)
{
    const pretokenizer_t *steps = &t->pretokenizer;
    bool ends_in_bytes = steps->count > 0 && steps->steps[steps->count - 1].kind == PRETOKENIZER_BYTE_LEVEL;
    for (size_t i = 0; i + 1 < steps->count; i++)
        ends_in_bytes &= steps->steps[i].kind != PRETOKENIZER_BYTE_LEVEL;
    return ends_in_bytes && !t->bpe.prefix && !t->bpe.suffix && has_all_bytes(raw);
}

static void map_pieces(const vocabulary_t *raw, vocabulary_t *bytes)
{
    text_buffer_t mapped = {0};
    vocabulary_init(bytes, raw->count);
    for (size_t i = 0; i < raw->count; i++) {
        const vocabulary_entry_t *entry = &raw->entries[i];
        mapped.length = 0;
        if (byte_level_map(raw->pool.bytes + entry->offset, entry->length, &mapped))
            vocabulary_add(bytes, mapped.bytes, mapped.length, entry->id);
    }
    text_buffer_fini(&mapped);
}

/* Chooses between bytes and text, and drops the byte step that the model then does itself. */
static void place_pieces(tokenizer_t *t, vocabulary_t *raw)
{
    t->bpe.is_byte = may_work_on_bytes(t, raw);
    if (!t->bpe.is_byte) {
        t->bpe.pieces = *raw;
        return;
    }
    t->raw_pieces = *raw;
    map_pieces(raw, &t->bpe.pieces);
    t->pretokenizer.count--;
    const pretokenizer_step_t *only = &t->pretokenizer.steps[0];
    bool is_scan = t->pretokenizer.count == 1 && only->kind == PRETOKENIZER_SPLIT &&
                   only->find == PRETOKENIZER_FIND_SCANNER && only->behavior == PRETOKENIZER_ISOLATED;
    if (is_scan) t->scan = only->scan;
}

static bool is_set(const json_t *value) { return value && !json_is_null(value); }

static qn_err_t load_affix(const json_t *value, const char *where, char **ret)
{
    if (!is_set(value)) return QN_OK;
    size_t bytes = json_string_length(value);
    if (!json_is_string(value) || bytes > AFFIX_BYTES_MAX || strlen(json_string_value(value)) != bytes)
        return qn_fail(QN_ERR_INVALID, "%s: must be a string of at most %d bytes", where, AFFIX_BYTES_MAX);
    if (bytes == 0) return QN_OK; /* changes nothing */
    *ret = strdup(json_string_value(value));
    QN_ASSERT(*ret != NULL);
    return QN_OK;
}

static qn_err_t load_flag(const json_t *value, const char *where, bool *ret)
{
    *ret = json_is_true(value);
    if (is_set(value) && !json_is_boolean(value)) return qn_fail(QN_ERR_INVALID, "%s: must be true or false", where);
    return QN_OK;
}

static qn_err_t load_model_options(model_load_t *load)
{
    bpe_t *bpe = &load->t->bpe;
    const json_t *dropout = load->values[MODEL_DROPOUT];
    if (json_number_value(dropout) != 0.0)
        return qn_fail(QN_ERR_UNSUPPORTED, "model.dropout: random merges are for training; set it to null");
    qn_err_t err = load_affix(load->values[MODEL_PREFIX], "model.continuing_subword_prefix", &bpe->prefix);
    if (!err) err = load_affix(load->values[MODEL_SUFFIX], "model.end_of_word_suffix", &bpe->suffix);
    if (!err) err = load_flag(load->values[MODEL_FUSE], "model.fuse_unk", &bpe->fuse_unknown);
    if (!err) err = load_flag(load->values[MODEL_FALLBACK], "model.byte_fallback", &bpe->has_fallback);
    if (!err) err = load_flag(load->values[MODEL_IGNORE], "model.ignore_merges", &bpe->ignore_merges);
    if (!err && is_set(load->values[MODEL_UNK]) && !json_is_string(load->values[MODEL_UNK]))
        err = qn_fail(QN_ERR_INVALID, "model.unk_token: must be a string or null");
    return err;
}

static qn_err_t check_model_type(const json_t *type)
{
    const char *name = json_string_value(type);
    if (is_set(type) && !name) return qn_fail(QN_ERR_INVALID, "model.type: must be a string");
    if (!name || strcmp(name, "BPE") == 0) return QN_OK; /* old files leave it out */
    return component_json_unsupported("model.type", "model", name);
}

static qn_err_t load_model_tables(model_load_t *load)
{
    vocabulary_t raw = {0};
    qn_err_t err = load_vocabulary(load, &raw);
    if (!err) err = load_merges(load, &raw);
    if (err) {
        vocabulary_fini(&raw);
        return err;
    }
    tokenizer_t *t = load->t;
    place_pieces(t, &raw);
    const json_t *unknown = load->values[MODEL_UNK];
    if (is_set(unknown))
        t->bpe.unknown_id =
            vocabulary_find(tokenizer_raw_pieces(t), json_string_value(unknown), json_string_length(unknown));
    bpe_finish(&t->bpe);
    return QN_OK;
}

static qn_err_t load_model(tokenizer_t *t, json_slice_t slice)
{
    model_load_t load = {.t = t,
                         .members = {[MODEL_TYPE] = {"type", {0}},
                                     [MODEL_VOCAB] = {"vocab", {0}},
                                     [MODEL_MERGES] = {"merges", {0}},
                                     [MODEL_UNK] = {"unk_token", {0}},
                                     [MODEL_PREFIX] = {"continuing_subword_prefix", {0}},
                                     [MODEL_SUFFIX] = {"end_of_word_suffix", {0}},
                                     [MODEL_FUSE] = {"fuse_unk", {0}},
                                     [MODEL_FALLBACK] = {"byte_fallback", {0}},
                                     [MODEL_IGNORE] = {"ignore_merges", {0}},
                                     [MODEL_DROPOUT] = {"dropout", {0}}}};
    qn_err_t err = find_members(slice, "model", load.members, MODEL_MEMBERS);
    for (size_t i = 0; !err && i < MODEL_MEMBERS; i++)
        if (i != MODEL_VOCAB && i != MODEL_MERGES) err = parse_slice(&load.members[i], &load.values[i]);
    if (!err) err = check_model_type(load.values[MODEL_TYPE]);
    if (!err && (!load.members[MODEL_VOCAB].slice.text || !load.members[MODEL_MERGES].slice.text))
        err = qn_fail(QN_ERR_INVALID, "model: must have vocab and merges");
    if (!err) err = load_model_options(&load);
    if (!err) err = load_model_tables(&load);
    for (size_t i = 0; i < MODEL_MEMBERS; i++)
        json_decref(load.values[i]);
    text_buffer_fini(&load.strings);
    text_buffer_fini(&load.joined);
    return err;
}

/* ---- added tokens ---- */

static qn_err_t read_added(const json_t *json, size_t index, added_spec_t *ret)
{
    char where[48];
    snprintf(where, sizeof where, "added_tokens[%zu]", index);
    *ret = (added_spec_t){0};
    qn_err_t err = component_json_string(json, where, "content", &ret->content, &ret->bytes);
    if (!err) err = component_json_bool(json, where, "single_word", 0, &ret->single_word);
    if (!err) err = component_json_bool(json, where, "lstrip", 0, &ret->left_strip);
    if (!err) err = component_json_bool(json, where, "rstrip", 0, &ret->right_strip);
    if (!err) err = component_json_bool(json, where, "normalized", 1, &ret->normalized);
    if (!err) err = component_json_bool(json, where, "special", 0, &ret->special);
    return err;
}

/* The "id" in the file is not followed, as in the reference library, only compared. */
static void compare_id(const json_t *json, size_t index, const added_spec_t *spec, uint32_t id)
{
    const json_t *declared = json_object_get(json, "id");
    if (id != VOCABULARY_NO_ID && json_is_integer(declared) && json_integer_value(declared) != id)
        qn_log_warning("added_tokens[%zu] \"%.40s\" says id %lld but gets %u", index, spec->content,
                       (long long)json_integer_value(declared), id);
}

/* A sentencepiece model has its control symbols, and neither the unknown token nor what was added later. */
static bool is_sentencepiece(const tokenizer_t *t, const added_spec_t *spec)
{
    uint32_t id = vocabulary_find(tokenizer_raw_pieces(t), spec->content, spec->bytes);
    return id != VOCABULARY_NO_ID && id != t->bpe.unknown_id;
}

static qn_err_t load_added_tokens(tokenizer_t *t, const json_t *list, bool is_remade, added_vocabulary_t *added)
{
    size_t count = json_array_size(list);
    added_spec_t *specs = calloc(count + 1, sizeof *specs);
    QN_ASSERT(specs != NULL);
    qn_err_t err = QN_OK;
    for (size_t i = 0; !err && i < count; i++) {
        err = read_added(json_array_get(list, i), i, &specs[i]);
        if (!err && is_remade && !is_sentencepiece(t, &specs[i])) specs[i].bytes = 0;
    }
    if (!err) added_vocabulary_begin(added, specs, count);
    for (size_t i = 0; !err && i < count; i++) {
        char where[48];
        uint32_t id;
        snprintf(where, sizeof where, "added_tokens[%zu]", i);
        err = added_vocabulary_add(added, t, &specs[i], where, &id);
        if (!err) compare_id(json_array_get(list, i), i, &specs[i], id);
    }
    free(specs);
    return err;
}

/* With a byte-level decoder, what each id contributes never changes: map all of them once. */
static void map_decoded(tokenizer_t *t)
{
    if (!decoder_takes_bytes(&t->decoder)) return;
    t->decoded_ends = calloc((size_t)t->id_limit + 1, sizeof *t->decoded_ends);
    QN_ASSERT(t->decoded_ends != NULL);
    for (uint32_t id = 0; id < t->id_limit; id++) {
        size_t bytes;
        const char *text = tokenizer_token_text(t, id, &bytes);
        if (text) byte_level_map((const uint8_t *)text, bytes, &t->decoded);
        t->decoded_ends[id] = (uint32_t)t->decoded.length;
    }
}

/* ---- the whole file ---- */

enum {
    TOP_VERSION,
    TOP_ADDED,
    TOP_NORMALIZER,
    TOP_PRETOKENIZER,
    TOP_POST,
    TOP_DECODER,
    TOP_PADDING,
    TOP_MODEL,
    TOP_MEMBERS
};

static qn_err_t load_added_and_tables(tokenizer_t *t, const json_t *list, side_files_t *side)
{
    added_vocabulary_t added;
    if (list && !json_is_array(list) && !json_is_null(list))
        return qn_fail(QN_ERR_INVALID, "added_tokens: must be an array");
    if (json_array_size(list) > TOKENIZER_ADDED_TOKENS_MAX)
        return qn_fail(QN_ERR_LIMIT, "added_tokens: %zu tokens, at most %d are allowed", json_array_size(list),
                       TOKENIZER_ADDED_TOKENS_MAX);
    added_vocabulary_init(&added);
    qn_err_t err = load_added_tokens(t, list, side->is_remade, &added);
    if (!err) err = side_files_add_tokens(side, t, list, &added);
    if (!err) err = added_vocabulary_finish(&added, t);
    if (!err) map_decoded(t);
    added_vocabulary_fini(&added);
    return err;
}

static qn_err_t check_template(const tokenizer_t *t)
{
    for (size_t i = 0; i < t->template.count; i++)
        if (t->template.items[i] != TEMPLATE_TEXT && t->template.items[i] >= t->id_limit)
            return qn_fail(QN_ERR_INVALID, "post_processor: adds the id %u, which no token has", t->template.items[i]);
    return QN_OK;
}

static qn_err_t load_parts(tokenizer_t *t, const member_t *members, json_t **values, side_files_t *side)
{
    const char *version = json_string_value(values[TOP_VERSION]);
    if (version && strcmp(version, "1.0") != 0)
        return qn_fail(QN_ERR_UNSUPPORTED, "version: \"%.20s\" is not supported; 1.0 is", version);
    if (!members[TOP_MODEL].slice.text) return qn_fail(QN_ERR_INVALID, "model: is missing");
    side->padding = values[TOP_PADDING];
    side_files_edit(side, t, &values[TOP_NORMALIZER], &values[TOP_PRETOKENIZER], &values[TOP_DECODER]);
    qn_err_t err = normalizer_json_load(values[TOP_NORMALIZER], &t->normalizer);
    if (!err) err = pretokenizer_json_load(values[TOP_PRETOKENIZER], &t->pretokenizer);
    if (!err) err = template_json_load(values[TOP_POST], &t->template);
    if (!err) err = decoder_json_load(values[TOP_DECODER], &t->decoder);
    if (!err) err = load_model(t, members[TOP_MODEL].slice);
    if (!err) err = load_added_and_tables(t, values[TOP_ADDED], side);
    if (!err) err = side_files_finish(side, t);
    return err ? err : check_template(t);
}

qn_err_t tokenizer_json_load(tokenizer_t *t, const char *json, size_t bytes, side_files_t *side)
{
    member_t members[TOP_MEMBERS] = {
        [TOP_VERSION] = {"version", {0}},       [TOP_ADDED] = {"added_tokens", {0}},
        [TOP_NORMALIZER] = {"normalizer", {0}}, [TOP_PRETOKENIZER] = {"pre_tokenizer", {0}},
        [TOP_POST] = {"post_processor", {0}},   [TOP_DECODER] = {"decoder", {0}},
        [TOP_PADDING] = {"padding", {0}},       [TOP_MODEL] = {"model", {0}}};
    json_t *values[TOP_MEMBERS] = {0};
    qn_err_t err = find_members((json_slice_t){json, bytes}, "tokenizer.json", members, TOP_MEMBERS);
    for (size_t i = 0; !err && i < TOP_MODEL; i++)
        err = parse_slice(&members[i], &values[i]);
    if (!err) err = load_parts(t, members, values, side);
    for (size_t i = 0; i < TOP_MEMBERS; i++)
        json_decref(values[i]);
    return err;
}
