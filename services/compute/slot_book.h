/* The slot book: what the host knows of every slot, and with it the check that a plan makes sense.
 *
 * A frame has been verified structurally; whether its slots are set, its positions follow on, its blocks exist and its
 * ids are in the vocabulary is decided here, before the plan is queued. The book advances as if the plan had run, so
 * plans are checked in the order they came although none may have run yet. It cannot know which sequences have ended on
 * the device: that is masked there. */
#ifndef QN_COMPUTE_SLOT_BOOK_H
#define QN_COMPUTE_SLOT_BOOK_H

#include "common/err.h"
#include "services/compute/worker/step.h"

typedef struct slot_book slot_book_t;

/* Returns owned. Failure: QN_ERR_NO_MEMORY. */
qn_err_t slot_book_create(const step_limits_t *limits, slot_book_t **ret_book);
void slot_book_destroy(slot_book_t **book);
/* Checks `plan` and enters it. QN_ERR_INVALID: it breaks a rule; nothing was entered, qn_err_text() says which,
 * *ret_param (a literal) names the field of StepPlan. Allocates nothing. */
qn_err_t slot_book_admit(slot_book_t *book, const step_plan_t *plan, const char **ret_param);
/* Forgets every slot: their owner is gone. */
void slot_book_clear(slot_book_t *book);
/* Slots that are set. */
uint32_t slot_book_used(const slot_book_t *book);

#endif
