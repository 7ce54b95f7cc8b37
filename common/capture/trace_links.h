/* Messages on their way: sent, and not yet handled. A table of fixed size; what is not handled within the next 65,536
 * messages is forgotten. For trace.c only. */
#ifndef QN_COMMON_CAPTURE_TRACE_LINKS_H
#define QN_COMMON_CAPTURE_TRACE_LINKS_H

#include <stddef.h>
#include <stdint.h>

#define TRACE_LINKS 65536u
#define TRACE_LINK_REQUESTS_MAX 256u /* followed in one message */

/* A message's place on its link. */
typedef struct {
    uint8_t from, to; /* qn_service_t */
    uint32_t epoch;   /* of the sender */
    uint64_t sequence;
    char type[4];
} trace_key_t;

typedef struct {
    trace_key_t key; /* sequence 0: this place is free */
    uint64_t sent_ns;
    uint64_t *requests; /* owned; that it is about */
    size_t request_count;
} trace_link_t;

typedef struct trace_links trace_links_t;

/* Returns owned; NULL: no memory. */
trace_links_t *trace_links_create(void);
void trace_links_destroy(trace_links_t **links);
/* Copies the first TRACE_LINK_REQUESTS_MAX requests. */
void trace_links_put(trace_links_t *links, const trace_key_t *key, uint64_t sent_ns, const uint64_t *requests,
                     size_t request_count);
/* Returns view of the message, valid until the next put; NULL: not known. It is forgotten. */
const trace_link_t *trace_links_take(trace_links_t *links, const trace_key_t *key);

#endif
