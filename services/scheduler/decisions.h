/* The last words of the policy: what it decided, in which plan, when. A ring; the oldest go. */
#ifndef QN_SCHEDULER_DECISIONS_H
#define QN_SCHEDULER_DECISIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/policy.h"

#define DECISIONS_MAX 256

typedef struct {
    uint64_t step, time_ns;
    char text[QN_POLICY_REASON_MAX];
} decision_t;

/* A zeroed one is empty. */
typedef struct {
    decision_t ring[DECISIONS_MAX];
    uint64_t made;
} decisions_t;

void decisions_add(decisions_t *decisions, uint64_t step, uint64_t now_ns, const char *text);
/* Newest first: `index` 0, 1, ... NULL: no more. */
const decision_t *decisions_at(const decisions_t *decisions, uint32_t index);
/* Whether its text names this request by its number. */
bool decision_names(const decision_t *decision, uint64_t request);

#endif
