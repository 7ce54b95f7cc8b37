/* What is this?      Text to typed value and back, by a row of the key table.
 * State owned:       none; strings belong to the values struct.
 * Must never:        trust its text: it comes from files, the environment and command lines.
 * Read next:         config_keys.c for the rows. */
#include <ctype.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/config/config_internal.h"

bool qn_config_kind_is_text(qn_config_kind_t kind)
{
    return kind != QN_CONFIG_COUNT && kind != QN_CONFIG_BYTES && kind != QN_CONFIG_BOOL;
}

static void *field_of(const qn_config_values_t *values, const qn_config_key_t *key)
{
    return (char *)(uintptr_t)values + key->offset;
}

/* Decimal digits only: no sign, no 0x, no 1e6, so that a number means one thing everywhere. */
static bool parse_digits(const char *text, const char **ret_end, uint64_t *ret_number)
{
    uint64_t number = 0;
    const char *at = text;
    for (; isdigit((unsigned char)*at); at++) {
        unsigned digit = (unsigned)(*at - '0');
        if (number > (UINT64_MAX - digit) / 10) return false;
        number = number * 10 + digit;
    }
    if (at == text) return false;
    *ret_end = at;
    *ret_number = number;
    return true;
}

static const struct {
    const char *name;
    unsigned shift;
} byte_units[] = {
    {"TiB", 40},
    {"GiB", 30},
    {"MiB", 20},
    {"KiB", 10},
};
#define BYTE_UNIT_COUNT (sizeof byte_units / sizeof byte_units[0])

static bool parse_bytes(const char *text, uint64_t *ret_bytes)
{
    const char *unit;
    uint64_t number;
    if (!parse_digits(text, &unit, &number)) return false;
    if (*unit == '\0') {
        *ret_bytes = number;
        return true;
    }
    for (size_t i = 0; i < BYTE_UNIT_COUNT; i++) {
        if (strcmp(unit, byte_units[i].name) != 0 || number > UINT64_MAX >> byte_units[i].shift) continue;
        *ret_bytes = number << byte_units[i].shift;
        return true;
    }
    return false;
}

void qn_config_format_bytes(uint64_t bytes, char *buffer, size_t capacity)
{
    for (size_t i = 0; i < BYTE_UNIT_COUNT; i++) {
        uint64_t unit = 1ull << byte_units[i].shift;
        if (bytes == 0 || bytes % unit != 0) continue;
        snprintf(buffer, capacity, "%llu%s", (unsigned long long)(bytes / unit), byte_units[i].name);
        return;
    }
    snprintf(buffer, capacity, "%llu", (unsigned long long)bytes);
}

static qn_err_t store_number(uint64_t *field, const qn_config_key_t *key, const char *text, const char *where)
{
    const char *end = "";
    uint64_t number;
    bool bytes = key->kind == QN_CONFIG_BYTES;
    if (bytes ? !parse_bytes(text, &number) : !parse_digits(text, &end, &number) || *end != '\0') {
        return qn_fail(QN_ERR_CONFIG, "%s: %s must be %s, not \"%.64s\"", where, key->key,
                       bytes ? "a number of bytes, as 4096, 64KiB or 2GiB" : "a whole number", text);
    }
    if (number < key->min || number > key->max) {
        char low[32], high[32];
        snprintf(low, sizeof low, "%llu", (unsigned long long)key->min);
        snprintf(high, sizeof high, "%llu", (unsigned long long)key->max);
        if (bytes) {
            qn_config_format_bytes(key->min, low, sizeof low);
            qn_config_format_bytes(key->max, high, sizeof high);
        }
        return qn_fail(QN_ERR_CONFIG, "%s: %s must be from %s to %s, not %.64s", where, key->key, low, high, text);
    }
    *field = number;
    return QN_OK;
}

static qn_err_t store_bool(bool *field, const qn_config_key_t *key, const char *text, const char *where)
{
    if (strcmp(text, "true") != 0 && strcmp(text, "false") != 0) {
        return qn_fail(QN_ERR_CONFIG, "%s: %s must be true or false, not \"%.64s\"", where, key->key, text);
    }
    *field = text[0] == 't';
    return QN_OK;
}

/* Is `word` one of the parts of `list`, which are separated by `separator`? */
static bool list_has(const char *list, char separator, const char *word, size_t length)
{
    while (true) {
        size_t part = strcspn(list, (char[]){separator, '\0'});
        if (part == length && memcmp(list, word, length) == 0) return true;
        if (list[part] == '\0') return false;
        list += part + 1;
    }
}

/* "host:port" or "[v6]:port"; ":port" when the host may be left out. */
static bool is_host_and_port(const char *text, bool host_is_optional)
{
    const char *colon = strrchr(text, ':');
    const char *end;
    uint64_t port;
    if (!colon || (colon == text && !host_is_optional)) return false;
    bool bracketed = text[0] == '[' && colon[-1] == ']' && colon - text > 2;
    if (!bracketed && memchr(text, ':', (size_t)(colon - text))) return false;
    if (strpbrk(text, " /")) return false;
    return parse_digits(colon + 1, &end, &port) && *end == '\0' && port <= 65535;
}

static bool is_service_list(const char *text)
{
    static const char services[] = "frontend,tokenizer,scheduler,memory,compute";
    if (text[0] == '\0' || strcmp(text, "all") == 0) return true;
    while (true) {
        size_t part = strcspn(text, ",");
        if (!list_has(services, ',', text, part)) return false;
        if (text[part] == '\0') return true;
        text += part + 1;
    }
}

bool qn_config_names_service(const char *services, const char *service)
{
    return strcmp(services, "all") == 0 || list_has(services, ',', service, strlen(service));
}

/* What is wrong with `text` as a value of `key`, as the rest of "KEY must be ..."; NULL when nothing is. */
static const char *text_problem(const qn_config_key_t *key, const char *text)
{
    if (strlen(text) >= QN_PATH_MAX) return "shorter than 1024 bytes";
    for (const char *at = text; *at; at++) {
        if ((unsigned char)*at < 0x20 || *at == 0x7f) return "without control characters";
    }
    switch (key->kind) {
    case QN_CONFIG_LISTEN:
        if (text[0] == '\0' && key->default_text[0] == '\0') return NULL; /* none, where none may be */
        if (strncmp(text, "unix:", 5) == 0 ? text[5] != '\0' : is_host_and_port(text, true)) return NULL;
        return "host:port, [v6]:port, :port or unix:PATH";
    case QN_CONFIG_ENDPOINT:
        if (strcmp(text, "ipc") == 0) return NULL;
        if (strncmp(text, "tcp://", 6) == 0 && is_host_and_port(text + 6, false)) return NULL;
        return "ipc or tcp://host:port";
    case QN_CONFIG_SERVICES:
        return is_service_list(text)
                   ? NULL
                   : "\"\", all, or some of frontend,tokenizer,scheduler,memory,compute separated by commas";
    default: return NULL;
    }
}

static qn_err_t store_text(char **field, const qn_config_key_t *key, const char *text, const char *where)
{
    const char *problem = text_problem(key, text);
    if (problem) {
        return qn_fail(QN_ERR_CONFIG, "%s: %s must be %s, not \"%.64s\"", where, key->key, problem, text);
    }
    if (key->choices && (strchr(text, '|') || !list_has(key->choices, '|', text, strlen(text)))) {
        return qn_fail(QN_ERR_CONFIG, "%s: %s must be one of %s, not \"%.64s\"", where, key->key, key->choices, text);
    }
    char *copy = strdup(text);
    if (!copy) return qn_fail(QN_ERR_NO_MEMORY, "%s: no memory for %s", where, key->key);
    free(*field);
    *field = copy;
    return QN_OK;
}

qn_err_t qn_config_value_store(qn_config_values_t *values, const qn_config_key_t *key, const char *text,
                               const char *where)
{
    switch (key->kind) {
    case QN_CONFIG_COUNT:
    case QN_CONFIG_BYTES: return store_number(field_of(values, key), key, text, where);
    case QN_CONFIG_BOOL: return store_bool(field_of(values, key), key, text, where);
    default: return store_text(field_of(values, key), key, text, where);
    }
}

char *qn_config_value_text(const qn_config_values_t *values, const qn_config_key_t *key)
{
    const void *field = field_of(values, key);
    char buffer[32];
    switch (key->kind) {
    case QN_CONFIG_BOOL: return strdup(*(const bool *)field ? "true" : "false");
    case QN_CONFIG_BYTES:
        qn_config_format_bytes(*(const uint64_t *)field, buffer, sizeof buffer);
        return strdup(buffer);
    case QN_CONFIG_COUNT:
        snprintf(buffer, sizeof buffer, "%llu", (unsigned long long)*(const uint64_t *)field);
        return strdup(buffer);
    default: return strdup(*(char *const *)field);
    }
}

void qn_config_value_free(qn_config_values_t *values, const qn_config_key_t *key)
{
    if (!qn_config_kind_is_text(key->kind)) return;
    char **field = field_of(values, key);
    free(*field);
    *field = NULL;
}
