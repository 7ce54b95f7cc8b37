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
qn_call_outcome_t memory_method_clear(void *state, qn_call_t *call, const void *message, void *ret_reply);

/* methods_pins.c */
qn_call_outcome_t memory_method_pins(void *state, qn_call_t *call, const void *message, void *ret_reply);
qn_call_outcome_t memory_method_clone(void *state, qn_call_t *call, const void *message, void *ret_reply);
/* The Commit that answers this CommitQuery has been taken in. */
void memory_clone_committed(memory_service_t *service, uint64_t query);
/* The scheduler is gone: what was asked of it has no answer. */
void memory_clones_fail(memory_service_t *service);

/* methods_saved.c */
qn_call_outcome_t memory_method_save(void *state, qn_call_t *call, const void *message, void *ret_reply);
qn_call_outcome_t memory_method_restore(void *state, qn_call_t *call, const void *message, void *ret_reply);
/* Compute has settled for this Settle (0: for all): blocks may be written. */
void memory_restores_settled(memory_service_t *service, uint64_t query);
/* After the errands: frees what waited for compute. */
void memory_restores_fini(memory_service_t *service);

/* methods_plan.c */
qn_call_outcome_t memory_method_plan(void *state, qn_call_t *call, const void *message, void *ret_reply);

#endif
