/* What is this?      A ring of the policy's reasons, for who asks why.
 * State owned:       the ring.
 * Must never:        be read by a decision.
 * Read next:         decisions.h, outgoing.c (who adds), methods.c (who asks). */
#include "services/scheduler/decisions.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

void decisions_add(decisions_t *decisions, uint64_t step, uint64_t now_ns, const char *text)
{
    decision_t *decision = &decisions->ring[decisions->made++ % DECISIONS_MAX];
    decision->step = step;
    decision->time_ns = now_ns;
    snprintf(decision->text, sizeof decision->text, "%s", text);
}

const decision_t *decisions_at(const decisions_t *decisions, uint32_t index)
{
    uint64_t kept = decisions->made < DECISIONS_MAX ? decisions->made : DECISIONS_MAX;
    return index < kept ? &decisions->ring[(decisions->made - 1 - index) % DECISIONS_MAX] : NULL;
}

bool decision_names(const decision_t *decision, uint64_t request)
{
    char number[24];
    size_t length = (size_t)snprintf(number, sizeof number, "%" PRIu64, request);
    for (const char *at = decision->text; (at = strstr(at, number)); at += length) {
        bool begins = at == decision->text || (!isdigit((unsigned char)at[-1]) && at[-1] != '.');
        if (begins && !isdigit((unsigned char)at[length]) && at[length] != '.') return true;
    }
    return false;
}
