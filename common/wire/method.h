/* A method: a pair of messages that anybody may call by name, with JSON. The rows are made from schemas/ into the
 * generated qn_methods.h; everything that offers methods to people (HTTP, the command line, the docs) reads them. */
#ifndef QN_COMMON_WIRE_METHOD_H
#define QN_COMMON_WIRE_METHOD_H

#include <jansson.h>

#include "qn_messages.h"

#define QN_METHOD_LIVE_MAX 8

/* What a field of a request speaks of: its example is fitted to the model that is served. */
typedef enum {
    QN_LIVE_TOKEN, /* an id of the vocabulary, or many */
    QN_LIVE_TEXT,  /* text, which a model without a tokenizer cannot read */
    QN_LIVE_LAYER,
    QN_LIVE_HEAD,
    QN_LIVE_REQUEST, /* the id of a request: examples leave it out */
    QN_LIVE_MODEL,   /* a model's name */
} qn_live_kind_t;

typedef struct {
    const char *field;
    qn_live_kind_t kind;
} qn_live_field_t;

typedef struct {
    const char *name; /* "scheduler.queue" */
    const char *verb; /* "queue" */
    qn_service_t service;
    qn_message_type_t request, reply;
    bool changes;     /* something is another after it */
    bool once;        /* repeating it is not the same as doing it once */
    bool needs_text;  /* a model without a tokenizer cannot do it */
    uint16_t seconds; /* it may take */
    const char *doc;
    const char *request_schema, *reply_schema; /* JSON Schema 2020-12 */
    const char *example, *reply_example;       /* JSON objects, of the request and of the reply */
    qn_live_field_t live[QN_METHOD_LIVE_MAX];
    size_t live_count;
} qn_method_t;

/* The number of the method whose request the message is; 0: of none. */
extern const uint16_t qn_method_requests[QN_MESSAGE_COUNT];
/* Whether the message is some method's reply. */
extern const bool qn_method_replies[QN_MESSAGE_COUNT];

/* What the schema says of any message, and who sends it to whom: bits 1 << qn_service_t. */
typedef struct {
    const char *doc;
    uint8_t from, to;
} qn_message_doc_t;
extern const qn_message_doc_t qn_message_docs[QN_MESSAGE_COUNT];

/* NULL: there is none. `verb` may be a view of `bytes` bytes. */
const qn_method_t *qn_method_find(qn_service_t service, const char *verb, size_t bytes);
/* The method of the service with the nearest name, or NULL when none is near. */
const qn_method_t *qn_method_nearest(qn_service_t service, const char *verb);

/* The C struct of the request, with all it points to, from a caller's JSON object (NULL: {}), checked as the receiver
 * will check it. null is the same as leaving the member out. Failure: QN_ERR_INVALID or QN_ERR_LIMIT; the text names the
 * member and what is possible, qn_wire_error_place() is the member. */
qn_err_t qn_method_read(const qn_method_t *method, const json_t *json, qn_arena_t *arena, void **ret_request);

#endif
