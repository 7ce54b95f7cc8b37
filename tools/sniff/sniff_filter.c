/* What is this?      Evaluation of sniffer filters.
 * State owned:       the parsed filter.
 * Must never:        change a message.
 * Read next:         sniff_filter_parse.c. */
#include "tools/sniff/sniff_filter.h"

#include <stdlib.h>
#include <string.h>

#include "tools/sniff/sniff_filter_internal.h"

qn_err_t sniff_filter_parse(const char *text, sniff_filter_t **ret_filter, size_t *ret_at)
{
    sniff_filter_t *filter = calloc(1, sizeof *filter);
    if (!filter) return qn_fail(QN_ERR_NO_MEMORY, "no memory for the filter");
    qn_arena_init(&filter->arena, 0);
    qn_err_t err = sniff_filter_parse_text(filter, text, ret_at);
    if (err)
        sniff_filter_free(&filter);
    else
        *ret_filter = filter;
    return err;
}

void sniff_filter_free(sniff_filter_t **filter)
{
    if (!*filter) return;
    qn_arena_fini(&(*filter)->arena);
    free(*filter);
    *filter = NULL;
}

bool sniff_filter_names(const sniff_filter_t *filter, qn_message_type_t type)
{
    return filter_types_has(&filter->named_types, type);
}

static bool compare(long double left, filter_operator_t operation, long double right)
{
    switch (operation) {
    case FILTER_EQUAL: return left == right;
    case FILTER_UNEQUAL: return left != right;
    case FILTER_LESS: return left < right;
    case FILTER_LESS_EQUAL: return left <= right;
    case FILTER_GREATER: return left > right;
    case FILTER_GREATER_EQUAL: return left >= right;
    case FILTER_CONTAINS: return false;
    }
    return false;
}

/* Enums compare by name, or by number when the operand is one. */
static bool value_matches(const void *context, const qn_capture_value_t *value)
{
    const filter_node_t *node = context;
    const filter_operand_t *operand = &node->operand;
    if (!value->text) return compare(value->number, node->operation, operand->number);
    if (node->operation == FILTER_CONTAINS)
        return memmem(value->text, value->text_bytes, operand->text, operand->text_bytes) != NULL;
    bool equal = value->text_bytes == operand->text_bytes && !memcmp(value->text, operand->text, operand->text_bytes);
    return equal == (node->operation == FILTER_EQUAL);
}

/* ---- requests by name ---- */

void sniff_filter_learn(sniff_filter_t *filter, const qn_capture_message_t *message)
{
    if (message->type != QN_MESSAGE_ENCODE || !message->content) return;
    const qn_text_t name = ((const qn_encode_t *)message->content)->client_request;
    for (filter_names_t *names = filter->names; name.data && names; names = names->next)
        for (size_t i = 0; i < names->text_count; i++) {
            if (strlen(names->texts[i]) != name.bytes || memcmp(names->texts[i], name.data, name.bytes)) continue;
            names->requests[names->learned++ % FILTER_NAMED_REQUESTS_MAX] = message->head.request;
            break;
        }
}

static bool has_any_request(const filter_node_t *node, const qn_capture_message_t *message)
{
    for (size_t i = 0; i < node->number_count; i++)
        if (qn_capture_message_has_request(message, node->numbers[i])) return true;
    const filter_names_t *names = node->names;
    for (size_t i = 0; names && i < names->learned && i < FILTER_NAMED_REQUESTS_MAX; i++)
        if (qn_capture_message_has_request(message, names->requests[i])) return true;
    return false;
}

/* ---- matching ---- */

static bool field_matches(const filter_node_t *node, const qn_capture_message_t *message)
{
    const filter_fields_t *fields = &node->fields[message->type];
    for (size_t i = 0; message->content && i < fields->count; i++)
        if (qn_capture_field_any(&fields->items[i], message->content, value_matches, node)) return true;
    return false;
}

static bool node_matches(const filter_node_t *node, const qn_capture_message_t *message)
{
    const qn_head_t *head = &message->head;
    switch (node->kind) {
    case FILTER_AND: return node_matches(node->left, message) && node_matches(node->right, message);
    case FILTER_OR: return node_matches(node->left, message) || node_matches(node->right, message);
    case FILTER_NOT: return !node_matches(node->left, message);
    case FILTER_SOURCE: return node->bits >> head->src & 1;
    case FILTER_TARGET: return node->bits >> head->dst & 1;
    case FILTER_HOST: return (node->bits >> head->src & 1) || (node->bits >> head->dst & 1);
    case FILTER_TYPE: return filter_types_has(&node->types, message->type);
    case FILTER_REQUEST: return has_any_request(node, message);
    case FILTER_EPOCH: return compare(head->epoch, node->operation, node->operand.number);
    case FILTER_SEQUENCE: return compare(head->sequence, node->operation, node->operand.number);
    case FILTER_BYTES: return compare(message->bytes, node->operation, node->operand.number);
    case FILTER_DROPPED: return message->header.direction == QN_TAP_DROPPED;
    case FILTER_FIELD: return field_matches(node, message);
    }
    return false;
}

bool sniff_filter_match(const sniff_filter_t *filter, const qn_capture_message_t *message)
{
    return !filter->root || node_matches(filter->root, message);
}

/* ---- what can match at all ---- */

typedef enum { NEVER, MAYBE, ALWAYS } chance_t;

/* Of messages that `source` sends, of which only their type is known. */
static chance_t node_chance(const filter_node_t *node, qn_service_t source, qn_message_type_t type)
{
    if (node->kind == FILTER_NOT) return ALWAYS - node_chance(node->left, source, type);
    if (node->kind == FILTER_AND || node->kind == FILTER_OR) {
        chance_t left = node_chance(node->left, source, type), right = node_chance(node->right, source, type);
        return (node->kind == FILTER_AND) == (left < right) ? left : right;
    }
    switch (node->kind) {
    case FILTER_SOURCE: return node->bits >> source & 1 ? ALWAYS : NEVER;
    case FILTER_HOST: return node->bits >> source & 1 ? ALWAYS : MAYBE;
    case FILTER_TYPE: return filter_types_has(&node->types, type) ? ALWAYS : NEVER;
    case FILTER_FIELD: return node->fields[type].count ? MAYBE : NEVER;
    case FILTER_DROPPED: return NEVER;
    default: return MAYBE;
    }
}

bool sniff_filter_wants(const sniff_filter_t *filter, qn_service_t source, qn_message_type_t type)
{
    if (filter->names && type == QN_MESSAGE_ENCODE) return true;
    return !filter->root || node_chance(filter->root, source, type) != NEVER;
}
