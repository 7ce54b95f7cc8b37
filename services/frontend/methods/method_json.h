/* Replies of methods as JSON, straight from the generated struct. Every member is shown: absent vectors as [], absent
 * texts and tables as null, NaN and infinities as null. The head, began_ns and algorithm_reasoning are metadata and not
 * shown. */
#ifndef QN_FRONTEND_METHODS_METHOD_JSON_H
#define QN_FRONTEND_METHODS_METHOD_JSON_H

#include "common/wire/wire.h"
#include "services/frontend/reply/json_writer.h"

/* The reply as an object. */
void method_json_write(const qn_wire_type_t *type, const void *reply, json_writer_t *writer);
/* A table without the frame around it: one row of a reply, say. */
void method_json_write_table(const qn_wire_type_t *type, const void *table, json_writer_t *writer);

/* When the service took the call in hand. */
uint64_t method_reply_began_ns(const qn_wire_type_t *type, const void *reply);
/* Returns view of the texts of algorithm_reasoning; NULL: none. */
const qn_text_t *method_reply_reasoning(const qn_wire_type_t *type, const void *reply, uint32_t *ret_count);

#endif
