/* What is this?      The public face: open, encode, decode, ask.
 * State owned:       the immutable tokenizer_t; a tokenizer_scratch_t per thread.
 * Must never:        write to a tokenizer_t after open; know a socket, a schema or a clock.
 * Read next:         tokenizer_json.c (how it is built), pretokenizer.h, bpe.h, decoder.h (what it runs). */
#include "services/tokenizer/tokenizer.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/file.h"
#include "common/limits.h"
#include "services/tokenizer/decode/detokenizer.h"
#include "services/tokenizer/json/side_files.h"
#include "services/tokenizer/tokenizer_data.h"

#define WORDS_AT_ONCE 256

/* ---- open ---- */

static qn_err_t read_whole(int fd, const char *path, text_buffer_t *out)
{
    struct stat status;
    if (fstat(fd, &status) != 0) return qn_fail(QN_ERR_IO, "%s: %s", path, strerror(errno));
    if (status.st_size > (off_t)TOKENIZER_JSON_BYTES_MAX)
        return qn_fail(QN_ERR_LIMIT, "%s: has %lld bytes, at most %u are allowed", path, (long long)status.st_size,
                       TOKENIZER_JSON_BYTES_MAX);
    text_buffer_reserve(out, (size_t)status.st_size + 1);
    for (;;) {
        ssize_t got = read(fd, out->bytes + out->length, out->capacity - out->length);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return qn_fail(QN_ERR_IO, "%s: %s", path, strerror(errno));
        if (got == 0) return QN_OK;
        out->length += (size_t)got;
        if (out->length == out->capacity) return qn_fail(QN_ERR_IO, "%s: grew while it was read; try again", path);
    }
}

static qn_err_t read_file(const char *path, text_buffer_t *out)
{
    int fd;
    uint64_t bytes;
    qn_err_t err = qn_file_open(AT_FDCWD, path, path, &fd, &bytes);
    if (err) return err;
    err = read_whole(fd, path, out);
    close(fd);
    return err;
}

/* A file beside the tokenizer that may be absent. */
static qn_err_t read_beside(const char *directory, const char *name, text_buffer_t *out)
{
    char path[QN_PATH_MAX + 64];
    if (snprintf(path, sizeof path, "%s/%s", directory, name) >= (int)sizeof path)
        return qn_fail(QN_ERR_LIMIT, "%.80s...: the path of %s is longer than %d bytes", directory, name, QN_PATH_MAX);
    if (!qn_file_exists(AT_FDCWD, path)) return QN_OK;
    return read_file(path, out);
}

static void clear_info(tokenizer_info_t *info)
{
    *info = (tokenizer_info_t){.bos_id = -1, .eos_id = -1, .pad_id = -1, .unk_id = -1, .model_max_length = -1};
}

static qn_err_t load(tokenizer_t *t, const tokenizer_files_t *files)
{
    side_files_t side;
    qn_err_t err = side_files_open(files, t, &side);
    if (!err) err = tokenizer_json_load(t, files->tokenizer.bytes, files->tokenizer.length, &side);
    side_files_fini(&side);
    return err;
}

qn_err_t tokenizer_open_memory(const tokenizer_files_t *files, tokenizer_t **ret)
{
    tokenizer_t *t = calloc(1, sizeof *t);
    QN_ASSERT(t != NULL);
    clear_info(&t->info);
    qn_arena_init(&t->strings, 4096);
    unicode_classes_init(&t->classes);
    vocabulary_init(&t->added, 64);
    vocabulary_init(&t->added_texts, 64);
    added_tokens_init(&t->plain_set);
    added_tokens_init(&t->normalized_set);
    qn_err_t err = load(t, files);
    if (err)
        tokenizer_close(&t);
    else
        *ret = t;
    return err;
}

void tokenizer_add_note(tokenizer_t *t, const char *format, ...)
{
    char text[QN_ERR_TEXT_MAX];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (t->note_count == TOKENIZER_NOTES_MAX) return;
    if (!t->notes) t->notes = calloc(TOKENIZER_NOTES_MAX, sizeof *t->notes);
    QN_ASSERT(t->notes != NULL);
    bool is_last = t->note_count + 1 == TOKENIZER_NOTES_MAX;
    const char *kept = is_last ? "more like these are left out" : text;
    t->notes[t->note_count++] = qn_arena_strndup(&t->strings, kept, strlen(kept));
}

size_t tokenizer_note_count(const tokenizer_t *t) { return t->note_count; }

const char *tokenizer_note(const tokenizer_t *t, size_t index) { return t->notes[index]; }

/* Newer directories keep the chat template in a file of its own. */
static void take_chat_template(tokenizer_t *t, const text_buffer_t *file)
{
    if (file->length > 0)
        t->info.chat_template = qn_arena_strndup(&t->strings, (const char *)file->bytes, file->length);
}

/* Splits a path into the directory and the tokenizer.json in it. */
static qn_err_t locate(const char *path, char *directory, char *file)
{
    struct stat status;
    if (strlen(path) >= QN_PATH_MAX)
        return qn_fail(QN_ERR_LIMIT, "%.60s…: the path is longer than %d bytes", path, QN_PATH_MAX);
    if (stat(path, &status) == 0 && S_ISDIR(status.st_mode)) {
        strcpy(directory, path);
        snprintf(file, QN_PATH_MAX + 64, "%s/tokenizer.json", path);
        return QN_OK;
    }
    strcpy(file, path);
    strcpy(directory, path);
    char *slash = strrchr(directory, '/');
    if (slash)
        slash[slash == directory] = '\0';
    else
        strcpy(directory, ".");
    return QN_OK;
}

/* The files of one directory, as bytes. */
enum { FILE_TOKENIZER, FILE_CONFIG, FILE_SPECIAL_MAP, FILE_ADDED, FILE_MODEL, FILE_CHAT, FILES };

static qn_err_t read_all(const char *directory, const char *file, text_buffer_t *files)
{
    static const char *const names[FILES] = {[FILE_CONFIG] = "tokenizer_config.json",
                                             [FILE_SPECIAL_MAP] = "special_tokens_map.json",
                                             [FILE_ADDED] = "added_tokens.json",
                                             [FILE_MODEL] = "config.json",
                                             [FILE_CHAT] = "chat_template.jinja"};
    qn_err_t err = read_file(file, &files[FILE_TOKENIZER]);
    for (int i = FILE_CONFIG; !err && i < FILES; i++)
        err = read_beside(directory, names[i], &files[i]);
    return err;
}

static tokenizer_file_t file_of(const text_buffer_t *buffer)
{
    return (tokenizer_file_t){buffer->bytes, buffer->length};
}

static qn_err_t open_files(const char *file, const text_buffer_t *files, tokenizer_t **ret)
{
    tokenizer_files_t all = {.tokenizer = file_of(&files[FILE_TOKENIZER]),
                             .config = file_of(&files[FILE_CONFIG]),
                             .special_tokens_map = file_of(&files[FILE_SPECIAL_MAP]),
                             .added_tokens = file_of(&files[FILE_ADDED]),
                             .model_config = file_of(&files[FILE_MODEL])};
    qn_err_t err = tokenizer_open_memory(&all, ret);
    if (err == QN_OK) {
        take_chat_template(*ret, &files[FILE_CHAT]);
        return QN_OK;
    }
    char reason[QN_ERR_TEXT_MAX];
    snprintf(reason, sizeof reason, "%s", qn_err_text());
    return qn_fail(err, "%.200s: %.300s", file, reason);
}

qn_err_t tokenizer_open(const char *path, tokenizer_t **ret)
{
    char directory[QN_PATH_MAX + 64], file[QN_PATH_MAX + 64];
    text_buffer_t files[FILES] = {0};
    qn_err_t err = locate(path, directory, file);
    if (!err) err = read_all(directory, file, files);
    if (!err) err = open_files(file, files, ret);
    for (int i = 0; i < FILES; i++)
        text_buffer_fini(&files[i]);
    return err;
}

void tokenizer_close(tokenizer_t **ret)
{
    tokenizer_t *t = *ret;
    if (!t) return;
    unicode_classes_fini(&t->classes);
    vocabulary_fini(&t->raw_pieces);
    bpe_fini(&t->bpe);
    vocabulary_fini(&t->added);
    vocabulary_fini(&t->added_texts);
    added_tokens_fini(&t->plain_set);
    added_tokens_fini(&t->normalized_set);
    normalizer_fini(&t->normalizer);
    pretokenizer_fini(&t->pretokenizer);
    decoder_fini(&t->decoder);
    text_buffer_fini(&t->decoded);
    free(t->decoded_ends);
    free(t->special);
    free(t->notes);
    qn_arena_fini(&t->strings);
    free(t);
    *ret = NULL;
}

tokenizer_scratch_t *tokenizer_scratch_open(const tokenizer_t *t)
{
    (void)t; /* the cache belongs to one tokenizer by contract */
    tokenizer_scratch_t *scratch = calloc(1, sizeof *scratch);
    QN_ASSERT(scratch != NULL);
    scratch->bpe = bpe_scratch_open();
    return scratch;
}

void tokenizer_scratch_close(tokenizer_scratch_t **scratch)
{
    if (!*scratch) return;
    bpe_scratch_close(&(*scratch)->bpe);
    normalizer_work_fini(&(*scratch)->normalizer);
    pretokenizer_work_fini(&(*scratch)->pretokenizer);
    free(*scratch);
    *scratch = NULL;
}

void tokenizer_scratch_forget(tokenizer_scratch_t *scratch) { bpe_scratch_forget(scratch->bpe); }

/* ---- encode ---- */

typedef struct {
    const tokenizer_t *t;
    tokenizer_scratch_t *scratch;
    bool skips_special, with_spans;
    tokenizer_tokens_t *tokens;
} encode_t;

/* The whole pre-tokenizer is one scanner and the model works on bytes: no list of words, no copies. */
static void encode_by_scanner(const encode_t *e, const text_view_t *view)
{
    uint32_t ends[WORDS_AT_ONCE];
    size_t at = 0, start = 0, count;
    while ((count = e->t->scan(&e->t->classes, view->bytes, view->length, &at, ends, WORDS_AT_ONCE)) > 0) {
        bpe_encode_words(&e->t->bpe, e->scratch->bpe, view->bytes, view->length, start, ends, count, e->tokens);
        start = at;
    }
}

static void append_word_spans(const encode_t *e, const text_view_t *text, size_t start, size_t end)
{
    const uint32_t *ids, *ends;
    size_t count = bpe_encode_spans(&e->t->bpe, e->scratch->bpe, text->bytes + start, end - start, &ids, &ends);
    for (size_t i = 0, from = 0; i < count; i++) {
        /* Tokens of an affix stand for no byte of the word: they share the one before its end. */
        size_t first_at = start + from < end ? start + from : end - 1;
        size_t last_at = ends[i] > from ? start + ends[i] - 1 : first_at;
        tokenizer_span_t first = text_view_span(text, first_at), last = text_view_span(text, last_at);
        token_list_append_span(e->tokens, ids[i], (tokenizer_span_t){first.start, last.end});
        from = ends[i];
    }
}

static qn_err_t encode_words(const encode_t *e, const text_view_t *view, bool is_aligned)
{
    text_view_t text;
    const pretokenizer_words_t *words;
    qn_err_t err = pretokenizer_run(&e->t->pretokenizer, &e->t->classes, &e->scratch->pretokenizer, *view, is_aligned,
                                    &text, &words);
    if (err) return err;
    for (size_t i = 0; i < words->count; i++) {
        pretokenizer_word_t word = words->words[i];
        if (e->with_spans)
            append_word_spans(e, &text, word.start, word.end);
        else
            bpe_encode_word(&e->t->bpe, e->scratch->bpe, text.bytes + word.start, word.end - word.start,
                            text.length - word.start, e->tokens);
    }
    return QN_OK;
}

static void append_added(const encode_t *e, const added_token_t *token, const text_view_t *view, size_t start,
                         size_t end)
{
    if (!e->with_spans) {
        token_list_append(e->tokens, token->id);
        return;
    }
    tokenizer_span_t span = {text_view_span(view, start).start, text_view_span(view, end - 1).end};
    token_list_append_span(e->tokens, token->id, span);
}

/* Text without added tokens. */
static qn_err_t encode_plain(const encode_t *e, const text_view_t *view, bool is_aligned)
{
    if (view->length == 0) return QN_OK;
    if (e->t->scan && !e->with_spans) {
        encode_by_scanner(e, view);
        return QN_OK;
    }
    return encode_words(e, view, is_aligned);
}

/* Text between non-normalized added tokens: normalize, then look for the normalized ones. */
static qn_err_t encode_segment(const encode_t *e, text_view_t view)
{
    const tokenizer_t *t = e->t;
    bool is_aligned = e->with_spans || t->pretokenizer.needs_spans;
    qn_err_t err = normalizer_run(&t->normalizer, &t->classes, &e->scratch->normalizer, view, is_aligned, &view);
    if (err) return err;
    added_walk_t walk = {0, 0};
    const added_token_t *token;
    size_t start, end, done = 0;
    while (added_tokens_next(&t->normalized_set, &t->classes, view.bytes, view.length, e->skips_special, &walk, &token,
                             &start, &end)) {
        text_view_t before = text_view_part(&view, done, start > done ? start : done);
        if ((err = encode_plain(e, &before, is_aligned)) != QN_OK) return err;
        append_added(e, token, &view, start, end);
        done = end;
    }
    text_view_t rest = text_view_part(&view, done, view.length);
    return encode_plain(e, &rest, is_aligned);
}

static qn_err_t encode_text(const encode_t *e, const uint8_t *text, size_t bytes)
{
    text_view_t view = {text, bytes, NULL, 0};
    added_walk_t walk = {0, 0};
    const added_token_t *token;
    size_t start, end, done = 0;
    while (added_tokens_next(&e->t->plain_set, &e->t->classes, text, bytes, e->skips_special, &walk, &token, &start,
                             &end)) {
        qn_err_t err = done < start ? encode_segment(e, text_view_part(&view, done, start)) : QN_OK;
        if (err) return err;
        append_added(e, token, &view, start, end);
        done = end;
    }
    return done < bytes ? encode_segment(e, text_view_part(&view, done, bytes)) : QN_OK;
}

/* Puts the template's ids around what was encoded. */
static void apply_template(const token_template_t *template, bool with_spans, tokenizer_tokens_t *tokens)
{
    if (template->count == 1 && template->items[0] == TEMPLATE_TEXT) return;
    tokenizer_tokens_t text = *tokens;
    *tokens = (tokenizer_tokens_t){0};
    for (size_t i = 0; i < template->count; i++) {
        bool is_text = template->items[i] == TEMPLATE_TEXT;
        size_t count = is_text ? text.count : 1;
        token_list_reserve(tokens, count);
        for (size_t k = 0; k < count; k++) {
            uint32_t id = is_text ? text.ids[k] : template->items[i];
            if (with_spans)
                token_list_append_span(tokens, id, is_text ? text.spans[k] : (tokenizer_span_t){0, 0});
            else
                token_list_append(tokens, id);
        }
    }
    tokenizer_tokens_fini(&text);
}

qn_err_t tokenizer_encode(const tokenizer_t *t, tokenizer_scratch_t *scratch, const char *text, size_t bytes,
                          unsigned flags, tokenizer_tokens_t *tokens)
{
    tokens->count = 0;
    if (bytes > QN_TEXT_BYTES_MAX)
        return qn_fail(QN_ERR_LIMIT, "text: %zu bytes, at most %u are allowed", bytes, QN_TEXT_BYTES_MAX);
    size_t valid = unicode_valid_prefix((const uint8_t *)text, bytes);
    if (valid != bytes) return qn_fail(QN_ERR_INVALID, "text: is not UTF-8 at byte %zu", valid);
    bool skips_special = !(flags & TOKENIZER_PARSE_SPECIAL) || t->splits_special;
    encode_t e = {t, scratch, skips_special, flags & TOKENIZER_WITH_SPANS, tokens};
    qn_err_t err = encode_text(&e, (const uint8_t *)text, bytes);
    if (err)
        tokens->count = 0;
    else if (flags & TOKENIZER_ADD_SPECIAL)
        apply_template(&t->template, e.with_spans, tokens);
    return err;
}

/* ---- decode ---- */

void tokenizer_decode(const tokenizer_t *t, const uint32_t *ids, size_t count, unsigned flags, text_buffer_t *text)
{
    detokenizer_t d;
    detokenizer_init(&d, t, flags);
    for (size_t i = 0; i < count; i++)
        detokenizer_push(&d, ids[i], text);
    detokenizer_flush(&d, text);
    detokenizer_fini(&d);
}

/* ---- questions ---- */

size_t tokenizer_vocab_size(const tokenizer_t *t)
{
    const vocabulary_t *raw = tokenizer_raw_pieces(t);
    size_t size = raw->count;
    for (size_t i = 0; i < t->added.count; i++) {
        const vocabulary_entry_t *entry = &t->added.entries[i];
        size += vocabulary_find(raw, t->added.pool.bytes + entry->offset, entry->length) == VOCABULARY_NO_ID;
    }
    return size;
}

uint32_t tokenizer_id_limit(const tokenizer_t *t) { return t->id_limit; }

const char *tokenizer_token_text(const tokenizer_t *t, uint32_t id, size_t *ret_bytes)
{
    const uint8_t *text = vocabulary_piece(&t->added_texts, id, ret_bytes);
    return (const char *)(text ? text : vocabulary_piece(tokenizer_raw_pieces(t), id, ret_bytes));
}

bool tokenizer_id_of(const tokenizer_t *t, const char *piece, size_t bytes, uint32_t *ret_id)
{
    uint32_t id = vocabulary_find(&t->added, piece, bytes);
    if (id == VOCABULARY_NO_ID) id = vocabulary_find(tokenizer_raw_pieces(t), piece, bytes);
    if (id == VOCABULARY_NO_ID) return false;
    *ret_id = id;
    return true;
}

bool tokenizer_is_special(const tokenizer_t *t, uint32_t id) { return tokenizer_id_is_special(t, id); }

const tokenizer_info_t *tokenizer_info(const tokenizer_t *t) { return &t->info; }
