/* Fields of a decoded message by name, for filters: "step", "runs.token_count", "weights.bytes", "reasons.length". A name
 * that the message itself does not have means the members of that name inside it: "finish", "sampling.temperature".
 * Works on the descriptors of the wire codec, so it knows every message there is and none in particular. */
#ifndef QN_TOOLS_SNIFF_SNIFF_FIELD_H
#define QN_TOOLS_SNIFF_SNIFF_FIELD_H

#include <stdbool.h>
#include <stddef.h>

#include "common/wire/wire.h"

/* message -> Region -> ... -> member of a struct: the schemas nest four deep. */
#define SNIFF_FIELD_DEPTH_MAX 6

typedef struct {
    const qn_wire_field_t *steps[SNIFF_FIELD_DEPTH_MAX];
    unsigned step_count; /* 0: no such field */
    bool length;         /* ".length": elements of the vector, bytes of the text */
} sniff_field_t;

/* One value of a field. */
typedef struct {
    long double number; /* holds every uint64_t exactly on x86-64 */
    const char *text;   /* texts and enums (the value's name); else NULL */
    size_t text_bytes;
} sniff_value_t;

/* Finds `path` (of `bytes` bytes) in messages of `type`; false: there is no such field, or it has no single values
 * (a struct, a table). */
bool sniff_field_find(const qn_wire_type_t *type, const char *path, size_t bytes, sniff_field_t *ret_field);
/* The same for a name that need not begin at the message. Writes at most `capacity` fields, returns how many: the one of
 * sniff_field_find alone when there is one, else all members that `path` leads to from anywhere inside. */
size_t sniff_field_find_inside(const qn_wire_type_t *type, const char *path, size_t bytes, sniff_field_t *ret_fields,
                               size_t capacity);
/* The descriptor of what the path ends in. */
const qn_wire_field_t *sniff_field_leaf(const sniff_field_t *field);
/* Does `test` hold for any value of the field in the decoded message? A vector has many, an absent member none. */
bool sniff_field_any(const sniff_field_t *field, const void *message,
                     bool (*test)(const void *context, const sniff_value_t *value), const void *context);
/* The known field path nearest to `path` in `type` (NULL: in any message), or NULL. A view of a constant. */
const char *sniff_field_suggest(const qn_wire_type_t *type, const char *path, size_t bytes);

#endif
