/* What is this?      The parser of sniffer filters: recursive descent over words.
 * State owned:       the place in the text.
 * Must never:        accept a word that means nothing: a filter with a slip would hide what one looks for.
 * Read next:         sniff_filter.h (grammar), capture_field.h. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "common/daemon/links/endpoint.h"
#include "tools/cli.h"
#include "tools/sniff/sniff_filter_internal.h"

typedef struct {
    const char *at;
    size_t bytes; /* 0: the end of the text */
    bool quoted;  /* without the quotes */
} word_t;

typedef struct {
    sniff_filter_t *filter;
    const char *text;
    const char *next; /* what follows `word` */
    word_t word;      /* looked at, not taken */
    unsigned depth;
    qn_err_t err;
    size_t *ret_at;
} parser_t;

/* The first failure stays. */
static void fail_at(parser_t *parser, const char *at, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void fail_at(parser_t *parser, const char *at, const char *format, ...)
{
    if (parser->err) return;
    char text[QN_ERR_TEXT_MAX];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    *parser->ret_at = (size_t)(at - parser->text);
    parser->err = qn_fail(QN_ERR_INVALID, "%s", text);
}

/* ---- words ---- */

static bool is_operator_char(char c) { return c && strchr("=!<>~", c); }

static bool is_word_char(char c) { return c && !strchr(" \t\n()|&\"'", c) && !is_operator_char(c); }

static size_t operator_bytes(const char *at)
{
    if (!strncmp(at, "&&", 2) || !strncmp(at, "||", 2)) return 2;
    if (is_operator_char(*at)) return at[0] != '~' && at[1] == '=' ? 2 : 1;
    return 1;
}

static void read_quoted(parser_t *parser, const char *at)
{
    const char *end = strchr(at + 1, *at);
    if (!end) {
        fail_at(parser, at, "the quoted text has no end");
        end = at + strlen(at);
    }
    parser->word = (word_t){.at = at + 1, .bytes = (size_t)(end - at - 1), .quoted = true};
    parser->next = *end ? end + 1 : end;
}

/* Moves to the next word. */
static void advance(parser_t *parser)
{
    const char *at = parser->next + strspn(parser->next, " \t\n");
    if (*at == '"' || *at == '\'') {
        read_quoted(parser, at);
        return;
    }
    size_t bytes = 0;
    while (is_word_char(at[bytes]))
        bytes++;
    if (!bytes && *at) bytes = operator_bytes(at);
    parser->word = (word_t){.at = at, .bytes = bytes};
    parser->next = at + bytes;
}

static bool is_end(const parser_t *parser) { return !parser->word.bytes && !parser->word.quoted; }

static bool is_word(const parser_t *parser, const char *word)
{
    return !parser->word.quoted && strlen(word) == parser->word.bytes &&
           !strncasecmp(parser->word.at, word, parser->word.bytes);
}

/* Moves on when the word is one of the two. */
static bool accept(parser_t *parser, const char *word, const char *symbol)
{
    if (!is_word(parser, word) && !(symbol && is_word(parser, symbol))) return false;
    advance(parser);
    return true;
}

/* A keyword before a list, with or without an equals sign: "src scheduler", "src = scheduler". */
static bool accept_list(parser_t *parser, const char *word, const char *synonym)
{
    if (!accept(parser, word, synonym)) return false;
    accept(parser, "=", "==");
    return true;
}

/* The word as a C string in `buffer`. */
static const char *spell(const word_t *word, char buffer[QN_NAME_MAX])
{
    snprintf(buffer, QN_NAME_MAX, "%.*s", (int)(word->bytes < QN_NAME_MAX ? word->bytes : QN_NAME_MAX - 1), word->at);
    return buffer;
}

/* Fails with "`what` ..., not X" and a suggestion among `names`. */
static void fail_name(parser_t *parser, const char *what, const char *const *names, size_t count)
{
    char given[QN_NAME_MAX];
    if (is_end(parser)) {
        fail_at(parser, parser->word.at, "%s is missing here", what);
        return;
    }
    const char *nearest = cli_nearest(spell(&parser->word, given), names, count);
    if (nearest)
        fail_at(parser, parser->word.at, "\"%s\" is not %s; did you mean %s?", given, what, nearest);
    else
        fail_at(parser, parser->word.at, "\"%s\" is not %s", given, what);
}

static filter_node_t *new_node(parser_t *parser, filter_kind_t kind)
{
    filter_node_t *node = qn_arena_zalloc(&parser->filter->arena, 1, sizeof *node);
    node->kind = kind;
    return node;
}

/* ---- lists: services, types, numbers ---- */

static uint64_t take_services(parser_t *parser)
{
    uint64_t bits = 0;
    do {
        size_t i = 0;
        while (i <= QN_DAEMON_COUNT && !is_word(parser, qn_daemon_names()[i]))
            i++;
        if (i > QN_DAEMON_COUNT) {
            fail_name(parser, "a service", qn_daemon_names(), QN_DAEMON_COUNT + 1);
            return 0;
        }
        bits |= 1ull << (i + QN_SERVICE_FRONTEND);
        advance(parser);
    } while (accept(parser, "|", NULL));
    return bits;
}

static qn_message_type_t type_of_word(const parser_t *parser, const char *at, size_t bytes)
{
    for (unsigned type = 1; type < QN_MESSAGE_COUNT && !parser->word.quoted; type++) {
        const char *name = qn_message_name((qn_message_type_t)type);
        if (strlen(name) == bytes && !strncasecmp(name, at, bytes)) return (qn_message_type_t)type;
    }
    return QN_MESSAGE_NONE;
}

static void take_types(parser_t *parser, filter_types_t *types)
{
    do {
        qn_message_type_t type = type_of_word(parser, parser->word.at, parser->word.bytes);
        if (type == QN_MESSAGE_NONE) {
            const char *names[QN_MESSAGE_COUNT];
            for (unsigned i = 1; i < QN_MESSAGE_COUNT; i++)
                names[i - 1] = qn_message_name((qn_message_type_t)i);
            fail_name(parser, "a message type", names, QN_MESSAGE_COUNT - 1);
            return;
        }
        filter_types_add(types, type);
        filter_types_add(&parser->filter->named_types, type);
        advance(parser);
    } while (accept(parser, "|", NULL));
}

/* The word as a request's number; false: it is a name. */
static bool read_number(const word_t *word, uint64_t *ret_number)
{
    char *end, given[QN_NAME_MAX];
    spell(word, given);
    if (word->quoted || given[0] < '0' || given[0] > '9') return false;
    *ret_number = strtoull(given, &end, 10);
    return !*end;
}

static void keep_name(parser_t *parser, filter_node_t *node)
{
    sniff_filter_t *filter = parser->filter;
    if (!node->names) {
        node->names = qn_arena_zalloc(&filter->arena, 1, sizeof *node->names);
        node->names->next = filter->names;
        filter->names = node->names;
    }
    if (node->names->text_count == FILTER_NAMES_MAX) {
        fail_at(parser, parser->word.at, "more than %d names of requests", FILTER_NAMES_MAX);
        return;
    }
    const char *text = qn_arena_strndup(&filter->arena, parser->word.at, parser->word.bytes);
    node->names->texts[node->names->text_count++] = text;
}

#define NUMBERS_MAX 64

/* Numbers, and names: what the client or the frontend called the request (x-request-id). */
static void take_requests(parser_t *parser, filter_node_t *node)
{
    uint64_t numbers[NUMBERS_MAX], number;
    size_t count = 0;
    do {
        const word_t *word = &parser->word;
        if (is_end(parser) || !word->bytes || (!word->quoted && !is_word_char(*word->at))) {
            fail_at(parser, word->at, "the number of a request, or its x-request-id, is missing here");
            return;
        }
        if (!read_number(word, &number)) {
            keep_name(parser, node);
        } else if (count == NUMBERS_MAX) {
            fail_at(parser, word->at, "more than %d numbers", NUMBERS_MAX);
            return;
        } else {
            numbers[count++] = number;
        }
        advance(parser);
    } while (!parser->err && accept(parser, "|", NULL));
    uint64_t *kept = qn_arena_alloc(&parser->filter->arena, (count + 1) * sizeof *kept, 8);
    memcpy(kept, numbers, count * sizeof *kept);
    node->numbers = kept;
    node->number_count = count;
}

/* ---- comparisons ---- */

static bool take_operator(parser_t *parser, filter_operator_t *ret_operation)
{
    static const struct {
        const char *symbol;
        filter_operator_t operation;
    } table[] = {
        {"=", FILTER_EQUAL},       {"==", FILTER_EQUAL},  {"!=", FILTER_UNEQUAL},       {"<", FILTER_LESS},
        {"<=", FILTER_LESS_EQUAL}, {">", FILTER_GREATER}, {">=", FILTER_GREATER_EQUAL}, {"~", FILTER_CONTAINS},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        if (accept(parser, table[i].symbol, NULL)) {
            *ret_operation = table[i].operation;
            return true;
        }
    }
    return false;
}

static void take_operand(parser_t *parser, filter_operand_t *operand)
{
    const word_t *word = &parser->word;
    if (is_end(parser) || (!word->quoted && !is_word_char(*word->at))) {
        fail_at(parser, word->at, "a value to compare with is missing here");
        return;
    }
    operand->text = qn_arena_strndup(&parser->filter->arena, word->at, word->bytes);
    operand->text_bytes = word->bytes;
    char *end;
    operand->number = strtold(operand->text, &end);
    operand->is_number = !word->quoted && *operand->text && !*end && isfinite(operand->number);
    if (is_word(parser, "true") || is_word(parser, "false")) {
        operand->is_number = true;
        operand->number = is_word(parser, "true");
    }
    advance(parser);
}

/* NULL when `operand` may be compared with `field` so, else what is wrong. */
static const char *check_operand(const qn_capture_field_t *field, filter_operator_t operation,
                                 const filter_operand_t *operand)
{
    const qn_wire_field_t *leaf = qn_capture_field_leaf(field);
    bool is_text = leaf->kind == QN_WIRE_STRING && !field->length;
    bool is_enum = leaf->kind == QN_WIRE_ENUM && !field->length;
    if (!is_text && !is_enum) {
        if (operation == FILTER_CONTAINS) return "~ is for texts; compare numbers with = != < <= > >=";
        return operand->is_number ? NULL : "this field is a number: compare it with one";
    }
    if (operation != FILTER_EQUAL && operation != FILTER_UNEQUAL && operation != FILTER_CONTAINS)
        return is_text ? "texts have = != and ~" : "names have = != and ~";
    if (!is_enum || operation == FILTER_CONTAINS) return NULL;
    for (unsigned i = 0; i < leaf->enumeration->count; i++)
        if (!strcmp(leaf->enumeration->names[i], operand->text)) return NULL;
    return "the field has no such value";
}

/* Offers the names an enum field has. */
static void fail_operand(parser_t *parser, const char *at, const qn_capture_field_t *field, const char *why)
{
    const qn_wire_field_t *leaf = qn_capture_field_leaf(field);
    char names[256] = "";
    size_t used = 0;
    for (unsigned i = 0; leaf->kind == QN_WIRE_ENUM && i < leaf->enumeration->count && used < sizeof names; i++)
        used += (size_t)snprintf(names + used, sizeof names - used, "%s%s", i ? ", " : ": it is one of ",
                                 leaf->enumeration->names[i]);
    fail_at(parser, at, "%s%s", why, names);
}

#define FIELDS_MAX 16

/* Fills node->fields for every type that has the field and may be so compared. */
static void bind_field(parser_t *parser, filter_node_t *node, const word_t *path, const char *operand_at)
{
    const char *dot = memchr(path->at, '.', path->bytes);
    qn_message_type_t only = dot ? type_of_word(parser, path->at, (size_t)(dot - path->at)) : QN_MESSAGE_NONE;
    const char *name = only ? dot + 1 : path->at;
    size_t bytes = path->bytes - (size_t)(name - path->at);
    filter_fields_t *fields = qn_arena_zalloc(&parser->filter->arena, QN_MESSAGE_COUNT, sizeof *fields);
    const char *why = NULL;
    qn_capture_field_t wrong = {.step_count = 0};
    size_t bound = 0;
    for (unsigned type = 1; type < QN_MESSAGE_COUNT; type++) {
        qn_capture_field_t found[FIELDS_MAX];
        if (only && type != only) continue;
        size_t count =
            qn_capture_field_find_inside(qn_wire_type((qn_message_type_t)type), name, bytes, found, FIELDS_MAX);
        qn_capture_field_t *kept = qn_arena_zalloc(&parser->filter->arena, count + 1, sizeof *kept);
        for (size_t i = 0; i < count; i++) {
            const char *complaint = check_operand(&found[i], node->operation, &node->operand);
            if (!complaint) {
                kept[fields[type].count++] = found[i];
                continue;
            }
            if (why) continue; /* the first field of that name is complained about */
            why = complaint;
            wrong = found[i];
        }
        fields[type].items = kept;
        bound += fields[type].count;
    }
    node->fields = fields;
    if (only) filter_types_add(&parser->filter->named_types, only);
    if (bound) return;
    if (why) {
        fail_operand(parser, operand_at, &wrong, why);
        return;
    }
    char given[QN_NAME_MAX];
    const char *nearest = qn_capture_field_suggest(only ? qn_wire_type(only) : NULL, name, bytes);
    fail_at(parser, name, "%s has no field \"%s\"%s%s%s", only ? qn_message_name(only) : "no message",
            spell(&(word_t){.at = name, .bytes = bytes}, given), nearest ? "; did you mean " : "",
            nearest ? nearest : "", nearest ? "?" : "");
}

static const char *const keywords[] = {"src", "dst",   "host",    "type", "req", "epoch",
                                       "seq", "bytes", "dropped", "not",  "and", "or"};

static filter_node_t *take_field(parser_t *parser)
{
    word_t path = parser->word;
    if (is_end(parser) || path.quoted || !is_word_char(*path.at)) {
        fail_at(parser, path.at, "a test is missing here, such as \"src scheduler\" or \"step > 5\"");
        return NULL;
    }
    qn_message_type_t type = type_of_word(parser, path.at, path.bytes);
    if (type) {
        filter_node_t *node = new_node(parser, FILTER_TYPE);
        take_types(parser, &node->types);
        return node;
    }
    advance(parser);
    filter_node_t *node = new_node(parser, FILTER_FIELD);
    if (!take_operator(parser, &node->operation)) {
        word_t here = parser->word;
        parser->word = path;
        if (here.bytes && is_word_char(*here.at))
            fail_name(parser, "a word that can begin a test", keywords, sizeof keywords / sizeof *keywords);
        else
            fail_at(parser, path.at, "\"%.*s\" alone is no test: compare it, as in \"%.*s = 1\"", (int)path.bytes,
                    path.at, (int)path.bytes, path.at);
        return NULL;
    }
    const char *operand_at = parser->word.at;
    take_operand(parser, &node->operand);
    if (!parser->err) bind_field(parser, node, &path, operand_at);
    return node;
}

/* `epoch 7`, `epoch > 7`. */
static filter_node_t *take_number_test(parser_t *parser, filter_kind_t kind, bool needs_operator)
{
    filter_node_t *node = new_node(parser, kind);
    node->operation = FILTER_EQUAL;
    const char *at = parser->word.at;
    if (!take_operator(parser, &node->operation) && needs_operator)
        fail_at(parser, at, "an operator is missing here: = != < <= > >=");
    if (node->operation == FILTER_CONTAINS) fail_at(parser, at, "~ is for texts; compare numbers with = != < <= > >=");
    at = parser->word.at;
    take_operand(parser, &node->operand);
    if (!node->operand.is_number) fail_at(parser, at, "this must be a number");
    return node;
}

/* ---- the grammar ---- */

static filter_node_t *take_or(parser_t *parser);

static filter_node_t *take_test(parser_t *parser)
{
    static const struct {
        const char *word;
        filter_kind_t kind;
    } sides[] = {
        {"src", FILTER_SOURCE},
        {"dst", FILTER_TARGET},
        {"host", FILTER_HOST},
    };
    for (size_t i = 0; i < 3; i++) {
        if (accept_list(parser, sides[i].word, NULL)) {
            filter_node_t *node = new_node(parser, sides[i].kind);
            node->bits = take_services(parser);
            return node;
        }
    }
    if (accept_list(parser, "type", NULL)) {
        filter_node_t *node = new_node(parser, FILTER_TYPE);
        take_types(parser, &node->types);
        return node;
    }
    if (accept_list(parser, "req", "request")) {
        filter_node_t *node = new_node(parser, FILTER_REQUEST);
        take_requests(parser, node);
        return node;
    }
    if (accept(parser, "epoch", NULL)) return take_number_test(parser, FILTER_EPOCH, false);
    if (accept(parser, "seq", NULL)) return take_number_test(parser, FILTER_SEQUENCE, false);
    if (accept(parser, "bytes", NULL)) return take_number_test(parser, FILTER_BYTES, true);
    if (accept(parser, "dropped", NULL)) return new_node(parser, FILTER_DROPPED);
    return take_field(parser);
}

static filter_node_t *take_unary(parser_t *parser)
{
    const char *at = parser->word.at;
    if (parser->err || ++parser->depth > SNIFF_FILTER_DEPTH_MAX) {
        fail_at(parser, at, "more than %d parentheses and nots inside one another", SNIFF_FILTER_DEPTH_MAX);
        return NULL;
    }
    filter_node_t *node;
    if (accept(parser, "not", "!")) {
        node = new_node(parser, FILTER_NOT);
        node->left = take_unary(parser);
    } else if (accept(parser, "(", NULL)) {
        node = take_or(parser);
        if (!accept(parser, ")", NULL)) fail_at(parser, at, "this parenthesis is not closed");
    } else {
        node = take_test(parser);
    }
    parser->depth--;
    return node;
}

static filter_node_t *join(parser_t *parser, filter_kind_t kind, filter_node_t *left, filter_node_t *right)
{
    filter_node_t *node = new_node(parser, kind);
    node->left = left;
    node->right = right;
    return node;
}

static filter_node_t *take_and(parser_t *parser)
{
    filter_node_t *left = take_unary(parser);
    while (!parser->err && accept(parser, "and", "&&"))
        left = join(parser, FILTER_AND, left, take_unary(parser));
    return left;
}

static filter_node_t *take_or(parser_t *parser)
{
    filter_node_t *left = take_and(parser);
    while (!parser->err && accept(parser, "or", "||"))
        left = join(parser, FILTER_OR, left, take_and(parser));
    return left;
}

qn_err_t sniff_filter_parse_text(sniff_filter_t *filter, const char *text, size_t *ret_at)
{
    parser_t parser = {.filter = filter, .text = text, .next = text, .ret_at = ret_at};
    *ret_at = 0;
    if (strlen(text) > SNIFF_FILTER_BYTES_MAX) {
        fail_at(&parser, text, "the filter is longer than %d bytes", SNIFF_FILTER_BYTES_MAX);
        return parser.err;
    }
    advance(&parser);
    if (is_end(&parser)) return parser.err;
    filter->root = take_or(&parser);
    if (!parser.err && !is_end(&parser))
        fail_at(&parser, parser.word.at, "\"and\", \"or\" or the end was expected here");
    return parser.err;
}
