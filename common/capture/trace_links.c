/* What is this?      A hash table of messages that were sent, by their place on their links.
 * State owned:       the table.
 * Must never:        grow: the older of two messages with one place goes.
 * Read next:         trace.c. */
#include "common/capture/trace_links.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

struct trace_links {
    trace_link_t table[TRACE_LINKS];
};

trace_links_t *trace_links_create(void) { return calloc(1, sizeof(trace_links_t)); }

void trace_links_destroy(trace_links_t **links)
{
    for (size_t i = 0; *links && i < TRACE_LINKS; i++)
        free((*links)->table[i].requests);
    free(*links);
    *links = NULL;
}

static bool is_same(const trace_key_t *a, const trace_key_t *b)
{
    return a->sequence == b->sequence && a->from == b->from && a->to == b->to && a->epoch == b->epoch &&
           memcmp(a->type, b->type, sizeof a->type) == 0;
}

/* SplitMix64's finaliser over the parts. */
static trace_link_t *place_of(trace_links_t *links, const trace_key_t *key)
{
    uint64_t mixed =
        key->sequence * 0x9E3779B97F4A7C15ull + ((uint64_t)key->epoch << 16) + ((uint64_t)key->from << 8) + key->to;
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9ull;
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EBull;
    return &links->table[(mixed ^ (mixed >> 31)) % TRACE_LINKS];
}

void trace_links_put(trace_links_t *links, const trace_key_t *key, uint64_t sent_ns, const uint64_t *requests,
                     size_t request_count)
{
    trace_link_t *link = place_of(links, key);
    free(link->requests);
    if (request_count > TRACE_LINK_REQUESTS_MAX) request_count = TRACE_LINK_REQUESTS_MAX;
    *link = (trace_link_t){.key = *key, .sent_ns = sent_ns};
    if (request_count) link->requests = malloc(request_count * sizeof *requests);
    if (!link->requests) return;
    memcpy(link->requests, requests, request_count * sizeof *requests);
    link->request_count = request_count;
}

const trace_link_t *trace_links_take(trace_links_t *links, const trace_key_t *key)
{
    trace_link_t *link = place_of(links, key);
    if (link->key.sequence == 0 || !is_same(&link->key, key)) return NULL;
    link->key.sequence = 0;
    return link;
}
