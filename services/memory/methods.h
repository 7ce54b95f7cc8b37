/* Memory's methods: a function per row of memory_methods, and what their files share. */
#ifndef QN_MEMORY_METHODS_H
#define QN_MEMORY_METHODS_H

#include "services/memory/handlers.h"

/* Refuses: there is no model yet. */
qn_call_outcome_t memory_still_loading(const qn_call_t *call);
/* Hexadecimal in the arena; 0: absent. */
qn_text_t memory_show_hash(qn_arena_t *arena, uint64_t value);

/* methods_cache.c */
qn_call_outcome_t memory_method_blocks(void *state, qn_call_t *call, const void *message, void *ret_reply);
qn_call_outcome_t memory_method_lookup(void *state, qn_call_t *call, const void *message, void *ret_reply);
qn_call_outcome_t memory_method_fragmentation(void *state, qn_call_t *call, const void *message, void *ret_reply);
qn_call_outcome_t memory_method_evict(void *state, qn_call_t *call, const void *message, void *ret_reply);
qn_call_outcome_t memory_method_pin(void *state, qn_call_t *call, const void *message, void *ret_reply);
qn_call_outcome_t memory_method_unpin(void *state, qn_call_t *call, const void *message, void *ret_reply);

#endif
