/* What is this?      The rules by which added tokens get ids, flags and a place in the searched sets.
 * State owned:       every version of every token, until the tokenizer is open.
 * Must never:        follow the id a file gives; forget that a string was special once.
 * Read next:         added_tokens.h (the search), side_files.h (where later batches come from). */
#include "services/tokenizer/json/added_vocabulary.h"

#include <stdlib.h>

#include "common/limits.h"

void added_vocabulary_init(added_vocabulary_t *added)
{
    *added = (added_vocabulary_t){0};
    vocabulary_init(&added->special_contents, 64);
}

void added_vocabulary_fini(added_vocabulary_t *added)
{
    free(added->versions);
    free(added->content_at);
    free(added->is_pattern);
    free(added->latest);
    free(added->before);
    text_buffer_fini(&added->pool);
    vocabulary_fini(&added->special_contents);
    *added = (added_vocabulary_t){0};
}

bool added_vocabulary_has(const tokenizer_t *t, const char *content, size_t bytes)
{
    return vocabulary_find(&t->added, content, bytes) != VOCABULARY_NO_ID;
}

static bool is_special(const added_vocabulary_t *added, const char *content, size_t bytes)
{
    return vocabulary_find(&added->special_contents, content, bytes) != VOCABULARY_NO_ID;
}

/* Keeps a version; its index. */
static size_t keep_version(added_vocabulary_t *added, const added_spec_t *spec, bool is_pattern)
{
    if (added->count == added->capacity) {
        added->capacity = added->capacity ? added->capacity * 2 : 64;
        added->versions = realloc(added->versions, added->capacity * sizeof *added->versions);
        added->content_at = realloc(added->content_at, added->capacity * sizeof *added->content_at);
        added->is_pattern = realloc(added->is_pattern, added->capacity * sizeof *added->is_pattern);
        QN_ASSERT(added->versions && added->content_at && added->is_pattern);
    }
    added->versions[added->count] = *spec;
    added->versions[added->count].content = NULL; /* the pool may move: content_at says where it is */
    added->content_at[added->count] = added->pool.length;
    added->is_pattern[added->count] = is_pattern;
    text_buffer_append(&added->pool, spec->content, spec->bytes);
    return added->count++;
}

/* "Declared already" means before this batch. */
static void remember_latest(added_vocabulary_t *added)
{
    free(added->before);
    added->before = calloc(added->latest_limit + 1, sizeof *added->before);
    QN_ASSERT(added->before != NULL);
    if (added->latest_limit) memcpy(added->before, added->latest, added->latest_limit * sizeof *added->before);
    added->before_limit = added->latest_limit;
}

void added_vocabulary_begin(added_vocabulary_t *added, const added_spec_t *specs, size_t count)
{
    remember_latest(added);
    for (size_t i = 0; i < count; i++) {
        const added_spec_t *spec = &specs[i];
        if (!spec->special || spec->bytes == 0 || is_special(added, spec->content, spec->bytes)) continue;
        vocabulary_add(&added->special_contents, spec->content, spec->bytes, 0);
        keep_version(added, spec, true);
    }
}

static void set_latest(added_vocabulary_t *added, uint32_t id, size_t version)
{
    if (id >= added->latest_limit) {
        size_t limit = added->latest_limit ? added->latest_limit : 1024;
        while (limit <= id)
            limit *= 2;
        added->latest = realloc(added->latest, limit * sizeof *added->latest);
        QN_ASSERT(added->latest != NULL);
        memset(added->latest + added->latest_limit, 0, (limit - added->latest_limit) * sizeof *added->latest);
        added->latest_limit = limit;
    }
    added->latest[id] = (uint32_t)version + 1;
}

static bool is_same(const added_spec_t *a, const added_spec_t *b)
{
    return a->single_word == b->single_word && a->left_strip == b->left_strip && a->right_strip == b->right_strip &&
           a->normalized == b->normalized && a->special == b->special;
}

static uint32_t choose_id(const tokenizer_t *t, const added_spec_t *spec)
{
    const vocabulary_t *raw = tokenizer_raw_pieces(t);
    uint32_t id = vocabulary_find(&t->added, spec->content, spec->bytes);
    if (id == VOCABULARY_NO_ID) id = vocabulary_find(raw, spec->content, spec->bytes);
    if (id != VOCABULARY_NO_ID) return id;
    uint32_t count = (uint32_t)raw->count;
    return t->added.id_limit > count ? t->added.id_limit : count;
}

qn_err_t added_vocabulary_add(added_vocabulary_t *added, tokenizer_t *t, const added_spec_t *spec, const char *where,
                              uint32_t *ret_id)
{
    *ret_id = VOCABULARY_NO_ID;
    if (spec->bytes == 0) return QN_OK;
    if (spec->bytes > TOKENIZER_PIECE_BYTES_MAX)
        return qn_fail(QN_ERR_LIMIT, "%s.content: %zu bytes, at most %u are allowed", where, spec->bytes,
                       TOKENIZER_PIECE_BYTES_MAX);
    uint32_t id = choose_id(t, spec);
    if (id >= QN_VOCAB_MAX)
        return qn_fail(QN_ERR_LIMIT, "%s: id %u is beyond the limit of %u", where, id, QN_VOCAB_MAX);
    if (added->count >= 2 * TOKENIZER_ADDED_TOKENS_MAX)
        return qn_fail(QN_ERR_LIMIT, "%s: with it more than %d tokens are added", where, TOKENIZER_ADDED_TOKENS_MAX);
    *ret_id = id;
    uint32_t before = id < added->before_limit ? added->before[id] : 0;
    if (before && is_same(&added->versions[before - 1], spec)) return QN_OK;
    vocabulary_add(&t->added, spec->content, spec->bytes, id);
    set_latest(added, id, keep_version(added, spec, !is_special(added, spec->content, spec->bytes)));
    return QN_OK;
}

/* ---- the result ---- */

static text_view_t version_content(const added_vocabulary_t *added, size_t version)
{
    return (text_view_t){added->pool.bytes + added->content_at[version], added->versions[version].bytes, NULL, 0};
}

/* What is looked for, and what the token decodes to: its content as the normalizer would leave it. */
static qn_err_t searchable(const added_vocabulary_t *added, const tokenizer_t *t, size_t version,
                           normalizer_work_t *work, text_view_t *ret)
{
    *ret = version_content(added, version);
    if (!added->versions[version].normalized) return QN_OK;
    return normalizer_run(&t->normalizer, &t->classes, work, *ret, false, ret);
}

/* Where a version says to look; how to match and what to take along says the latest one of its id. */
static qn_err_t add_pattern(const added_vocabulary_t *added, tokenizer_t *t, size_t version, normalizer_work_t *work)
{
    text_view_t content = version_content(added, version), pattern;
    uint32_t id = vocabulary_find(&t->added, content.bytes, content.length);
    QN_ASSERT(id != VOCABULARY_NO_ID);
    const added_spec_t *latest = &added->versions[added->latest[id] - 1];
    added_token_t token = {.id = id,
                           .single_word = latest->single_word,
                           .left_strip = latest->left_strip,
                           .right_strip = latest->right_strip,
                           .special = is_special(added, (const char *)content.bytes, content.length)};
    qn_err_t err = searchable(added, t, version, work, &pattern);
    if (err || pattern.length == 0) return err; /* normalized away: can never be found */
    added_tokens_add(added->versions[version].normalized ? &t->normalized_set : &t->plain_set, pattern.bytes,
                     pattern.length, token);
    return QN_OK;
}

static qn_err_t add_texts(const added_vocabulary_t *added, tokenizer_t *t, normalizer_work_t *work)
{
    qn_err_t err = QN_OK;
    for (uint32_t id = 0; !err && id < added->latest_limit; id++) {
        text_view_t text;
        if (!added->latest[id]) continue;
        err = searchable(added, t, added->latest[id] - 1, work, &text);
        if (!err) vocabulary_add(&t->added_texts, text.bytes, text.length, id);
    }
    return err;
}

/* Special is a property of the text of a token: the ids whose text is the content of a special token. */
static void mark_if_special(tokenizer_t *t, const vocabulary_t *contents, uint32_t id)
{
    size_t bytes;
    const char *text = tokenizer_token_text(t, id, &bytes);
    if (text && vocabulary_find(contents, text, bytes) != VOCABULARY_NO_ID) t->special[id >> 6] |= 1ull << (id & 63);
}

static void mark_special(tokenizer_t *t, const vocabulary_t *contents)
{
    const vocabulary_t *raw = tokenizer_raw_pieces(t);
    t->id_limit = raw->id_limit > t->added.id_limit ? raw->id_limit : t->added.id_limit;
    t->special = calloc((t->id_limit + 63) / 64 + 1, sizeof *t->special);
    QN_ASSERT(t->special != NULL);
    for (size_t i = 0; i < t->added.count; i++)
        mark_if_special(t, contents, t->added.entries[i].id);
    for (size_t i = 0; i < contents->count; i++) {
        const vocabulary_entry_t *entry = &contents->entries[i];
        uint32_t id = vocabulary_find(raw, contents->pool.bytes + entry->offset, entry->length);
        if (id != VOCABULARY_NO_ID) mark_if_special(t, contents, id);
    }
}

qn_err_t added_vocabulary_finish(added_vocabulary_t *added, tokenizer_t *t)
{
    normalizer_work_t work = {0};
    qn_err_t err = QN_OK;
    for (int special = 1; special >= 0; special--) /* special ones come first: of equal strings the first counts */
        for (size_t i = 0; !err && i < added->count; i++) {
            text_view_t content = version_content(added, i);
            bool is_first = is_special(added, (const char *)content.bytes, content.length);
            if (added->is_pattern[i] && is_first == (special == 1)) err = add_pattern(added, t, i, &work);
        }
    if (!err) err = add_texts(added, t, &work);
    if (!err) mark_special(t, &added->special_contents);
    normalizer_work_fini(&work);
    return err;
}
