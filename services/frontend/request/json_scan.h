/* Looks over a JSON text without building it: whether it is too large a tree, and which member an offset is in. Makes
 * no judgement about what is valid JSON; jansson does. Pure, linear, no recursion. */
#ifndef QN_FRONTEND_REQUEST_JSON_SCAN_H
#define QN_FRONTEND_REQUEST_JSON_SCAN_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint32_t depth;  /* of the deepest list or object */
    uint32_t keys;   /* members of all objects */
    uint32_t values; /* elements and members in all */
} json_size_t;

json_size_t json_scan_size(const char *text, size_t bytes);
/* The member that the byte at `offset` belongs to: "prompt", "sampling_params.n"; "" when it is in none. Names of bytes
 * that are no printable ASCII are left empty. */
void json_scan_member(const char *text, size_t bytes, size_t offset, char *ret_name, size_t room);

#endif
