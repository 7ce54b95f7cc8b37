/* The filter language of `quintet sniff`, in the manner of tcpdump:
 *
 *   filter     := { "" } | or                      the empty filter takes everything
 *   or         := and { "or" and }
 *   and        := unary { "and" unary }
 *   unary      := "not" unary | "(" or ")" | test
 *   test       := "src" SERVICES | "dst" SERVICES | "host" SERVICES      host: either side
 *               | "type" TYPES | TYPE                                    StepPlan, Encode, ...
 *               | "req" REQUESTS                     messages about these requests, inside batches too
 *               | "epoch" [OP] NUMBER | "seq" [OP] NUMBER | "bytes" OP NUMBER
 *               | "dropped"                          frames that a receiver's verifier refused
 *               | FIELD OP VALUE                     step > 5; StepPlan.runs.token_count >= 64; reasons ~ fcfs
 *   SERVICES, TYPES, REQUESTS: one, or several separated by "|"; a NUMBER may have a fraction and an exponent
 *   a request is its number inside the engine, or its x-request-id (in quotes when that is a number, too)
 *   an "=" may stand after src, dst, host, type and req
 *   OP: = == != < <= > >=, and ~ (contains) for texts; FIELD.length is the number of elements or bytes; a FIELD inside a message
 *   needs no path: finish = stop, temperature > 0
 *
 * A comparison holds when any value of the field makes it true; a message type without the field never does. "&&",
 * "||" and "!" may stand for and, or, not; texts with blanks go in quotes. */
#ifndef QN_TOOLS_SNIFF_SNIFF_FILTER_H
#define QN_TOOLS_SNIFF_SNIFF_FILTER_H

#include <stdbool.h>
#include <stddef.h>

#include "common/err.h"
#include "common/capture/capture_message.h"

#define SNIFF_FILTER_BYTES_MAX 4096
#define SNIFF_FILTER_DEPTH_MAX 64 /* parentheses and nots inside one another */

typedef struct sniff_filter sniff_filter_t;

/* Parses `text`. QN_ERR_INVALID: *ret_at is the byte at fault, the text of the failure says what is wrong and what was
 * meant. Returns owned. */
qn_err_t sniff_filter_parse(const char *text, sniff_filter_t **ret_filter, size_t *ret_at);
void sniff_filter_free(sniff_filter_t **filter);
/* Remembers what a decoded message says about the names of requests; to be told of every message before it is matched. */
void sniff_filter_learn(sniff_filter_t *filter, const qn_capture_message_t *message);
/* Can the filter take any message of this type sent by this service? What is not wanted need not be asked for. Encodes are
 * wanted whenever a request's name has to be learned from them. */
bool sniff_filter_wants(const sniff_filter_t *filter, qn_service_t source, qn_message_type_t type);
/* Does the filter take this decoded message? */
bool sniff_filter_match(const sniff_filter_t *filter, const qn_capture_message_t *message);
/* Does the filter name this type, alone or with a field? */
bool sniff_filter_names(const sniff_filter_t *filter, qn_message_type_t type);

#endif
