/* What is this?      A trie of added tokens and the leftmost-longest search over it.
 * State owned:       nodes and tokens.
 * Must never:        cut inside a character; look at the merge table.
 * Read next:         tokenizer.c (segments between the matches). */
#include "services/tokenizer/split/added_tokens.h"

#include <stdlib.h>
#include <string.h>

#include "common/assert.h"

void added_tokens_init(added_tokens_t *set) { *set = (added_tokens_t){.only_first = -2, .node_count = 1}; }

void added_tokens_fini(added_tokens_t *set)
{
    free(set->tokens);
    free(set->nodes);
    *set = (added_tokens_t){.only_first = -2, .node_count = 1};
}

static uint32_t new_node(added_tokens_t *set, uint8_t byte)
{
    if (set->node_count >= set->node_capacity) {
        set->node_capacity = set->node_capacity ? set->node_capacity * 2 : 64;
        set->nodes = realloc(set->nodes, set->node_capacity * sizeof *set->nodes);
        QN_ASSERT(set->nodes != NULL);
    }
    set->nodes[set->node_count] = (added_node_t){.byte = byte};
    return (uint32_t)set->node_count++;
}

static uint32_t child_with(const added_tokens_t *set, uint32_t node, uint8_t byte)
{
    uint32_t child = set->nodes[node].child;
    while (child && set->nodes[child].byte != byte)
        child = set->nodes[child].sibling;
    return child;
}

static uint32_t child_made(added_tokens_t *set, uint32_t node, uint8_t byte)
{
    uint32_t child = child_with(set, node, byte);
    if (child) return child;
    child = new_node(set, byte);
    set->nodes[child].sibling = set->nodes[node].child;
    set->nodes[node].child = child;
    return child;
}

void added_tokens_add(added_tokens_t *set, const void *content, size_t bytes, added_token_t token)
{
    const uint8_t *text = content;
    QN_ASSERT(bytes > 0);
    if (set->roots[text[0]] == 0) set->roots[text[0]] = new_node(set, text[0]);
    uint32_t node = set->roots[text[0]];
    for (size_t i = 1; i < bytes; i++)
        node = child_made(set, node, text[i]);
    if (set->nodes[node].token) return;
    set->only_first = set->only_first == -2 || set->only_first == text[0] ? text[0] : -1;
    set->tokens = realloc(set->tokens, (set->token_count + 1) * sizeof *set->tokens);
    QN_ASSERT(set->tokens != NULL);
    set->tokens[set->token_count++] = token;
    set->nodes[node].token = (uint32_t)set->token_count;
}

/* First place from `at` on where a string could begin; `length` when there is none. */
static size_t next_candidate(const added_tokens_t *set, const uint8_t *text, size_t length, size_t at)
{
    if (set->only_first >= 0) {
        const uint8_t *hit = memchr(text + at, set->only_first, length - at);
        return hit ? (size_t)(hit - text) : length;
    }
    while (at < length && set->roots[text[at]] == 0)
        at++;
    return at;
}

/* The longest string that begins at `at`: its token and end; NULL when none does. */
static const added_token_t *longest_at(const added_tokens_t *set, const uint8_t *text, size_t length, size_t at,
                                       size_t *ret_end)
{
    const added_token_t *found = NULL;
    uint32_t node = set->roots[text[at]];
    while (node) {
        at++;
        if (set->nodes[node].token) {
            found = &set->tokens[set->nodes[node].token - 1];
            *ret_end = at;
        }
        if (at == length) break;
        node = child_with(set, node, text[at]);
    }
    return found;
}

static bool is_class_at(const unicode_classes_t *classes, const uint8_t *text, size_t at, unsigned mask)
{
    unsigned bytes;
    return unicode_class(classes, unicode_decode(text + at, &bytes)) & mask;
}

static bool touches_word(const unicode_classes_t *classes, const uint8_t *text, size_t length, size_t start, size_t end)
{
    if (start > 0 && is_class_at(classes, text, unicode_step_back(text, start), UNICODE_WORD)) return true;
    return end < length && is_class_at(classes, text, end, UNICODE_WORD);
}

/* Moves the ends over spaces as the token asks; never into what an earlier match took. */
static void strip_around(const added_token_t *token, const unicode_classes_t *classes, const uint8_t *text,
                         size_t length, size_t floor, size_t *start, size_t *end)
{
    while (token->left_strip && *start > 0) {
        size_t before = unicode_step_back(text, *start);
        if (!is_class_at(classes, text, before, UNICODE_SPACE)) break;
        *start = before;
    }
    if (token->left_strip && *start < floor) *start = floor;
    while (token->right_strip && *end < length && is_class_at(classes, text, *end, UNICODE_SPACE))
        *end += unicode_lead_bytes(text[*end]);
}

bool added_tokens_next(const added_tokens_t *set, const unicode_classes_t *classes, const uint8_t *text, size_t length,
                       bool skip_special, added_walk_t *walk, const added_token_t **ret_token, size_t *ret_start,
                       size_t *ret_end)
{
    if (set->only_first == -2) return false;
    for (;;) {
        size_t start = next_candidate(set, text, length, walk->next), end = 0;
        if (start >= length) return false;
        const added_token_t *token = longest_at(set, text, length, start, &end);
        walk->next = token ? end : start + 1;
        if (!token || (skip_special && token->special)) continue;
        if (token->single_word && touches_word(classes, text, length, start, end)) continue;
        strip_around(token, classes, text, length, walk->consumed, &start, &end);
        walk->consumed = end;
        if (start >= end) continue; /* an earlier match took all of it along */
        *ret_token = token;
        *ret_start = start;
        *ret_end = end;
        return true;
    }
}
