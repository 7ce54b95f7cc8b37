/* Fields of a decoded message by name, for filters: "step", "runs.token_count", "weights.bytes", "reasons.length". A name
 * that the message itself does not have means the members of that name inside it: "finish", "sampling.temperature".
 * Works on the descriptors of the wire codec, so it knows every message there is and none in particular. */
#ifndef QN_COMMON_CAPTURE_CAPTURE_FIELD_H
#define QN_COMMON_CAPTURE_CAPTURE_FIELD_H

#include <stdbool.h>
#include <stddef.h>

#include "common/wire/wire.h"

/* message -> Region -> ... -> member of a struct: the schemas nest four deep. */
#define QN_CAPTURE_FIELD_DEPTH_MAX 6

typedef struct {
    const qn_wire_field_t *steps[QN_CAPTURE_FIELD_DEPTH_MAX];
    unsigned step_count; /* 0: no such field */
    bool length;         /* ".length": elements of the vector, bytes of the text */
} qn_capture_field_t;

/* One value of a field. */
typedef struct {
    long double number; /* holds every uint64_t exactly on x86-64 */
    const char *text;   /* texts and enums (the value's name); else NULL */
    size_t text_bytes;
} qn_capture_value_t;

/* Finds `path` (of `bytes` bytes) in messages of `type`; false: there is no such field, or it has no single values
 * (a struct, a table). */
bool qn_capture_field_find(const qn_wire_type_t *type, const char *path, size_t bytes, qn_capture_field_t *ret_field);
/* The same for a name that need not begin at the message. Writes at most `capacity` fields, returns how many: the one of
 * qn_capture_field_find alone when there is one, else all members that `path` leads to from anywhere inside. */
size_t qn_capture_field_find_inside(const qn_wire_type_t *type, const char *path, size_t bytes,
                                    qn_capture_field_t *ret_fields, size_t capacity);
/* The descriptor of what the path ends in. */
const qn_wire_field_t *qn_capture_field_leaf(const qn_capture_field_t *field);
/* Does `test` hold for any value of the field in the decoded message? A vector has many, an absent member none. */
bool qn_capture_field_any(const qn_capture_field_t *field, const void *message,
                          bool (*test)(const void *context, const qn_capture_value_t *value), const void *context);
/* The known field path nearest to `path` in `type` (NULL: in any message), or NULL. A view of a constant. */
const char *qn_capture_field_suggest(const qn_wire_type_t *type, const char *path, size_t bytes);

#endif
