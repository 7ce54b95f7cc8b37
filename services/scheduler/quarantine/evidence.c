/* What is this?      The list of requests that made a scheduler crash, kept by id.
 * State owned:       none; the ledger's mapping holds the page.
 * Must never:        trust the former life's bytes beyond their bounds.
 * Read next:         suspects.c. */
#include "services/scheduler/quarantine/evidence.h"

uint64_t evidence_crashes(const evidence_t *evidence, uint64_t request)
{
    for (uint32_t i = 0; i < EVIDENCE_KNOWN_MAX; i++)
        if (evidence->known[i].request == request && request != 0) return evidence->known[i].crashes;
    return 0;
}

void evidence_note(evidence_t *evidence, uint64_t request, uint64_t crashes)
{
    evidence_known_t *place = &evidence->known[0];
    for (uint32_t i = 0; i < EVIDENCE_KNOWN_MAX; i++) {
        evidence_known_t *one = &evidence->known[i];
        if (one->request == request) {
            place = one;
            break;
        }
        if (one->crashes < place->crashes) place = one;
    }
    place->request = request;
    place->crashes = crashes;
}
