/* What is this?      The table of API keys.
 * State owned:       the keys, each padded with zeros to one length.
 * Must never:        show a key, or tell by its time how much of a guess was right.
 * Read next:         access.c (what needs which scope). */
#include "services/frontend/http/api_keys.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "common/file.h"
#include "common/limits.h"
#include "common/watch/log.h"

#define FILE_BYTES_MAX (API_KEYS_MAX * 512u)

typedef struct {
    char name[QN_NAME_MAX];
    access_t scope;
    uint8_t key[API_KEY_BYTES_MAX];
} api_key_t;

struct api_keys {
    size_t count;
    api_key_t keys[API_KEYS_MAX];
};

/* ---- reading ---- */

/* The next word of [*at, end); 0 bytes: none is left. */
static size_t next_word(const char **at, const char *end)
{
    while (*at < end && (**at == ' ' || **at == '\t' || **at == '\r'))
        (*at)++;
    const char *word = *at;
    while (word < end && *word != ' ' && *word != '\t' && *word != '\r')
        word++;
    return (size_t)(word - *at);
}

static bool is_name(const char *text, size_t bytes)
{
    if (bytes == 0 || bytes >= QN_NAME_MAX) return false;
    for (size_t i = 0; i < bytes; i++)
        if (!isalnum((unsigned char)text[i]) && !strchr("._-", text[i])) return false;
    return true;
}

static bool is_key(const char *text, size_t bytes)
{
    if (bytes < API_KEY_BYTES_MIN || bytes > API_KEY_BYTES_MAX) return false;
    for (size_t i = 0; i < bytes; i++)
        if (!isgraph((unsigned char)text[i])) return false;
    return true;
}

static bool is_word(const char *text, size_t bytes, const char *word)
{
    return strlen(word) == bytes && memcmp(text, word, bytes) == 0;
}

/* What is wrong with the line, or NULL: then it is in *ret_key. */
static const char *parse_line(const char *at, const char *end, api_key_t *ret_key)
{
    *ret_key = (api_key_t){.scope = ACCESS_USER};
    size_t bytes = next_word(&at, end);
    if (!is_name(at, bytes)) return "the name must be 1 to 63 letters, digits, '.', '_' or '-'";
    memcpy(ret_key->name, at, bytes);
    at += bytes;
    bytes = next_word(&at, end);
    if (is_word(at, bytes, "admin")) ret_key->scope = ACCESS_ADMIN;
    if (!is_word(at, bytes, "admin") && !is_word(at, bytes, "user")) return "the scope must be user or admin";
    at += bytes;
    bytes = next_word(&at, end);
    if (!is_key(at, bytes)) return "the key must be 16 to 256 visible ASCII characters";
    memcpy(ret_key->key, at, bytes);
    at += bytes;
    return next_word(&at, end) == 0 ? NULL : "a line is NAME SCOPE KEY, and nothing behind the key";
}

static const char *add_line(api_keys_t *keys, const char *line, const char *end)
{
    if (keys->count == API_KEYS_MAX) return "there may be 1024 keys at most";
    api_key_t *added = &keys->keys[keys->count];
    const char *problem = parse_line(line, end, added);
    for (size_t i = 0; !problem && i < keys->count; i++) {
        if (strcmp(keys->keys[i].name, added->name) == 0) problem = "this name stands above already";
        if (memcmp(keys->keys[i].key, added->key, sizeof added->key) == 0) problem = "this key stands above already";
    }
    keys->count += problem == NULL;
    return problem;
}

qn_err_t api_keys_parse(const char *path, const char *text, size_t bytes, api_keys_t **ret_keys)
{
    api_keys_t *keys = calloc(1, sizeof *keys);
    if (!keys) return qn_fail(QN_ERR_NO_MEMORY, "no memory for API keys");
    const char *end = text + bytes, *problem = NULL;
    unsigned number = 0;
    while (text < end && !problem) {
        const char *line = text, *line_end = memchr(text, '\n', (size_t)(end - text));
        if (!line_end) line_end = end;
        text = line_end + (line_end < end);
        number++;
        bool empty = next_word(&line, line_end) == 0;
        if (!empty && *line != '#') problem = add_line(keys, line, line_end);
    }
    if (!problem && keys->count == 0) problem = "there is no key in the file";
    if (!problem) {
        *ret_keys = keys;
        return QN_OK;
    }
    api_keys_destroy(&keys);
    return qn_fail(QN_ERR_CONFIG, "%s:%u (frontend.api_keys_file): %s", path, number, problem);
}

qn_err_t api_keys_read(const char *path, api_keys_t **ret_keys)
{
    char *text = NULL;
    size_t bytes = 0;
    struct stat found;
    qn_err_t err = qn_file_read(path, FILE_BYTES_MAX, &text, &bytes);
    if (err) return err;
    if (stat(path, &found) == 0 && (found.st_mode & (S_IRWXG | S_IRWXO)))
        qn_log_warning("%s holds API keys and is open to others than its owner: chmod 600 it", path);
    err = api_keys_parse(path, text, bytes, ret_keys);
    explicit_bzero(text, bytes);
    free(text);
    return err;
}

void api_keys_destroy(api_keys_t **keys)
{
    if (*keys) explicit_bzero(*keys, sizeof **keys);
    free(*keys);
    *keys = NULL;
}

size_t api_keys_count(const api_keys_t *keys) { return keys->count; }

/* ---- checking ---- */

/* 1 when they are equal, else 0: without a branch on what is in them. */
static unsigned is_equal(const uint8_t *a, const uint8_t *b)
{
    volatile uint8_t difference = 0;
    for (size_t i = 0; i < API_KEY_BYTES_MAX; i++)
        difference |= (uint8_t)(a[i] ^ b[i]);
    return ((unsigned)difference - 1) >> 31;
}

access_t api_keys_scope(const api_keys_t *keys, const char *authorization)
{
    static const char scheme[] = "Bearer ";
    uint8_t given[API_KEY_BYTES_MAX] = {0};
    if (!authorization || strncasecmp(authorization, scheme, sizeof scheme - 1) != 0) return ACCESS_PUBLIC;
    authorization += sizeof scheme - 1;
    authorization += strspn(authorization, " ");
    size_t bytes = strcspn(authorization, " \t");
    if (bytes < API_KEY_BYTES_MIN || bytes > API_KEY_BYTES_MAX) return ACCESS_PUBLIC;
    memcpy(given, authorization, bytes);
    unsigned users = 0, admins = 0;
    for (size_t i = 0; i < keys->count; i++) { /* all of them, always */
        unsigned equal = is_equal(given, keys->keys[i].key);
        admins |= equal & (unsigned)(keys->keys[i].scope == ACCESS_ADMIN);
        users |= equal;
    }
    explicit_bzero(given, sizeof given);
    return admins ? ACCESS_ADMIN : users ? ACCESS_USER : ACCESS_PUBLIC;
}
