/* What is this?      A strict reader of the configuration file: sections of scalars, nothing else.
 * State owned:       the file's bytes and the parser, during one call.
 * Must never:        judge keys or values (config.c does), or accept YAML whose meaning a reader must look up.
 * Read next:         config.c. */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "common/config/config_internal.h"
#include "common/file.h"

#define SECTIONS_MAX 32

typedef struct {
    yaml_parser_t parser;
    yaml_event_t event; /* the present one; valid when has_event */
    bool has_event;
    const char *path;
    char *bytes; /* owned */
    size_t length;
    qn_config_take_t *take;
    void *context;
    struct {
        char name[CONFIG_KEY_BYTES_MAX * 2];
        unsigned line;
    } sections[SECTIONS_MAX];
    size_t section_count;
} reader_t;

static qn_err_t __attribute__((format(printf, 3, 4))) fail_at(const reader_t *reader, unsigned line, const char *format,
                                                              ...)
{
    char text[QN_ERR_TEXT_MAX];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return qn_fail(QN_ERR_CONFIG, "%s:%u: %s", reader->path, line, text);
}

static qn_err_t load_bytes(reader_t *reader)
{
    qn_err_t err = qn_file_read(reader->path, CONFIG_FILE_BYTES_MAX, &reader->bytes, &reader->length);
    if (err == QN_OK || err == QN_ERR_NO_MEMORY) return err;
    return qn_fail(QN_ERR_CONFIG, "%s%s", qn_err_text(), err == QN_ERR_LIMIT ? "; is it the right file?" : "");
}

static unsigned line_of_offset(const reader_t *reader, size_t offset)
{
    unsigned line = 1;
    for (size_t i = 0; i < offset && i < reader->length; i++)
        line += reader->bytes[i] == '\n';
    return line;
}

static bool is_indented_with_tab(const reader_t *reader, unsigned line)
{
    const char *at = reader->bytes, *end = at + reader->length;
    for (unsigned i = 1; i < line && at < end; i++) {
        const char *next = memchr(at, '\n', (size_t)(end - at));
        at = next ? next + 1 : end;
    }
    while (at < end && *at == ' ')
        at++;
    return at < end && *at == '\t';
}

static qn_err_t fail_yaml(const reader_t *reader)
{
    const yaml_parser_t *parser = &reader->parser;
    const char *problem = parser->problem ? parser->problem : "not YAML";
    if (parser->error == YAML_MEMORY_ERROR) return qn_fail(QN_ERR_NO_MEMORY, "%s: no memory", reader->path);
    if (parser->error == YAML_READER_ERROR) {
        return fail_at(reader, line_of_offset(reader, parser->problem_offset), "not UTF-8 text: %s", problem);
    }
    unsigned line = (unsigned)parser->problem_mark.line + 1;
    if (is_indented_with_tab(reader, line)) return fail_at(reader, line, "indented with a tab; use spaces");
    return fail_at(reader, line, "not YAML: %s%s%s", problem, parser->context ? " " : "",
                   parser->context ? parser->context : "");
}

static qn_err_t next_event(reader_t *reader)
{
    if (reader->has_event) yaml_event_delete(&reader->event);
    reader->has_event = yaml_parser_parse(&reader->parser, &reader->event) != 0;
    return reader->has_event ? QN_OK : fail_yaml(reader);
}

static unsigned line_of_event(const reader_t *reader) { return (unsigned)reader->event.start_mark.line + 1; }

/* Anchors, aliases and tags give a value a second meaning somewhere else in the file. */
static qn_err_t refuse_indirection(const reader_t *reader)
{
    const yaml_event_t *event = &reader->event;
    bool anchor = event->type == YAML_ALIAS_EVENT, tag = false;
    if (event->type == YAML_SCALAR_EVENT) {
        anchor = event->data.scalar.anchor != NULL;
        tag = event->data.scalar.tag != NULL;
    } else if (event->type == YAML_MAPPING_START_EVENT) {
        anchor = event->data.mapping_start.anchor != NULL;
        tag = event->data.mapping_start.tag != NULL;
    }
    if (anchor) return fail_at(reader, line_of_event(reader), "anchors and aliases are not allowed; write the value");
    if (tag) return fail_at(reader, line_of_event(reader), "tags (!) are not allowed; write the value");
    return QN_OK;
}

static qn_err_t next_node(reader_t *reader)
{
    qn_err_t err = next_event(reader);
    return err ? err : refuse_indirection(reader);
}

/* Copies the scalar key in the present event, after `section` and a dot when there is one. */
static qn_err_t copy_key(const reader_t *reader, const char *section, char *ret_key, size_t capacity)
{
    if (reader->event.type != YAML_SCALAR_EVENT) return fail_at(reader, line_of_event(reader), "a key must be a word");
    const char *name = (const char *)reader->event.data.scalar.value;
    size_t length = reader->event.data.scalar.length;
    int used = snprintf(ret_key, capacity, "%s%s%s", section, section[0] ? "." : "", name);
    if (strlen(name) != length || used < 0 || (size_t)used >= capacity) {
        return fail_at(reader, line_of_event(reader), "unknown key %.40s...", name);
    }
    return QN_OK;
}

static qn_err_t take_scalar(reader_t *reader, const char *key, unsigned line)
{
    const char *value = (const char *)reader->event.data.scalar.value;
    size_t length = reader->event.data.scalar.length;
    bool quoted = reader->event.data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
    bool null = !quoted && (length == 0 || strcmp(value, "~") == 0 || strcmp(value, "null") == 0);
    if (qn_config_section_exists(key)) {
        if (null) return QN_OK; /* a section whose keys are all commented out */
        return fail_at(reader, line, "%s is a section: write its keys below it, indented", key);
    }
    if (strlen(value) != length) return fail_at(reader, line, "%s must be without control characters", key);
    if (null && qn_config_key_index(key) >= 0) {
        return fail_at(reader, line, "%s has no value; write one (\"\" is the empty text) or remove the line", key);
    }
    return reader->take(reader->context, key, value, quoted, line);
}

static qn_err_t enter_section(reader_t *reader, const char *name, unsigned line)
{
    char buffer[CONFIG_KEY_BYTES_MAX];
    if (!qn_config_section_exists(name)) {
        const char *suggestion = qn_config_section_suggest(name, buffer, sizeof buffer);
        return fail_at(reader, line, "unknown section %s%s%s%s", name, suggestion ? "; did you mean " : "",
                       suggestion ? suggestion : "", suggestion ? "?" : "; see quintet config keys");
    }
    for (size_t i = 0; i < reader->section_count; i++) {
        if (strcmp(reader->sections[i].name, name) != 0) continue;
        return fail_at(reader, line, "section %s appears twice (first in line %u)", name, reader->sections[i].line);
    }
    if (reader->section_count == SECTIONS_MAX) return fail_at(reader, line, "too many sections");
    snprintf(reader->sections[reader->section_count].name, CONFIG_KEY_BYTES_MAX * 2, "%s", name);
    reader->sections[reader->section_count++].line = line;
    return QN_OK;
}

/* The keys of one mapping; at the top (section "") a value may be a mapping of its own, below it may not. */
static qn_err_t read_mapping(reader_t *reader, const char *section)
{
    while (true) {
        qn_err_t err = next_node(reader);
        if (err) return err;
        if (reader->event.type == YAML_MAPPING_END_EVENT) return QN_OK;
        char key[CONFIG_KEY_BYTES_MAX * 2];
        unsigned line = line_of_event(reader);
        if ((err = copy_key(reader, section, key, sizeof key)) || (err = next_node(reader))) return err;
        if (reader->event.type == YAML_SCALAR_EVENT) {
            err = take_scalar(reader, key, line);
        } else if (reader->event.type == YAML_MAPPING_START_EVENT && section[0] == '\0') {
            err = enter_section(reader, key, line);
            if (!err) err = read_mapping(reader, key);
        } else {
            err = fail_at(reader, line, "%s takes one value, not a %s", key,
                          reader->event.type == YAML_MAPPING_START_EVENT ? "section" : "list");
        }
        if (err) return err;
    }
}

static qn_err_t read_document(reader_t *reader)
{
    qn_err_t err = next_event(reader); /* stream start */
    if (!err) err = next_event(reader);
    if (err || reader->event.type == YAML_STREAM_END_EVENT) return err;
    if ((err = next_node(reader))) return err;
    if (reader->event.type == YAML_MAPPING_START_EVENT) {
        if ((err = read_mapping(reader, ""))) return err;
    } else if (reader->event.type != YAML_SCALAR_EVENT || reader->event.data.scalar.length > 0) {
        return fail_at(reader, line_of_event(reader), "expected sections, as \"scheduler:\", and keys below them");
    }
    if ((err = next_event(reader)) || (err = next_event(reader))) return err; /* document end, then the stream's */
    if (reader->event.type == YAML_STREAM_END_EVENT) return QN_OK;
    return fail_at(reader, line_of_event(reader), "a second document begins here; a configuration is one");
}

qn_err_t qn_config_yaml_read(const char *path, qn_config_take_t *take, void *context)
{
    reader_t reader = {.path = path, .take = take, .context = context};
    qn_err_t err = load_bytes(&reader);
    if (err) {
        free(reader.bytes);
        return err;
    }
    if (!yaml_parser_initialize(&reader.parser)) {
        free(reader.bytes);
        return qn_fail(QN_ERR_NO_MEMORY, "%s: no memory", path);
    }
    yaml_parser_set_encoding(&reader.parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&reader.parser, (const unsigned char *)reader.bytes, reader.length);
    err = read_document(&reader);
    if (reader.has_event) yaml_event_delete(&reader.event);
    yaml_parser_delete(&reader.parser);
    free(reader.bytes);
    return err;
}
