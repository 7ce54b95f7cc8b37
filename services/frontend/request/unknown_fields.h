/* Members of a request body that no table names: gathered for a warning, so that nothing is ignored in silence. */
#ifndef QN_FRONTEND_REQUEST_UNKNOWN_FIELDS_H
#define QN_FRONTEND_REQUEST_UNKNOWN_FIELDS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/limits.h"

typedef struct {
    uint32_t count;
    char first[QN_NAME_MAX + 1];
    char names[256]; /* "foo, sampling_params.bar", printable ASCII; "..." at the end when not all fit */
} unknown_fields_t;  /* zeroed: none */

/* Adds the members of `object` for which `is_known` says false. `prefix`: "" or "sampling_params.". */
void unknown_fields_add(unknown_fields_t *unknown, const json_t *object, const char *prefix,
                        bool (*is_known)(const char *name));

#endif
