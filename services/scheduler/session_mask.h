/* The mask of the session: rules on attention that every request gets which names none of its own. It stands in a file of
 * the run directory, so that it survives every restart. One thread. */
#ifndef QN_SCHEDULER_SESSION_MASK_H
#define QN_SCHEDULER_SESSION_MASK_H

#include "common/limits.h"
#include "common/probe/probe.h"

typedef struct {
    qn_mask_rule_t rules[QN_MASKS_MAX];
    uint32_t count; /* 0: no mask */
} session_mask_t;

/* What the run directory has; none when there is no file. Failure: QN_ERR_INVALID, it is not what was written. */
qn_err_t session_mask_load(const char *run_dir, session_mask_t *ret_mask);
/* Writes it there, or takes the file away when there are no rules; a kill leaves the old or the new one. QN_ERR_IO. */
qn_err_t session_mask_save(const char *run_dir, const session_mask_t *mask);

#endif
