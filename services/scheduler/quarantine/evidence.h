/* Evidence: what a scheduler was doing, told to the next one. A page beside the ledger, written with plain stores while the
 * scheduler works (not appended: only the last state matters) and read once at start, when the service manager says
 * that the former life crashed.
 *
 * Who was in its hands then is answered in this order: the request whose Submit or Cancel was handled; the suspect that
 * ran apart (suspects.h); all that held slots. */
#ifndef QN_SCHEDULER_QUARANTINE_EVIDENCE_H
#define QN_SCHEDULER_QUARANTINE_EVIDENCE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/limits.h"

#define EVIDENCE_KNOWN_MAX 64

/* A request by id, whether it is in the ledger or not: its Submit made a scheduler crash, or it was quarantined. */
typedef struct {
    uint64_t request;
    uint64_t crashes;
} evidence_known_t;

typedef struct {
    uint64_t epoch;   /* boot epoch of the life that writes; 0: none did */
    uint64_t in_hand; /* the request whose message is handled; 0: none */
    uint64_t apart;   /* the suspect that runs with nobody beside it; 0: none */
    evidence_known_t known[EVIDENCE_KNOWN_MAX];
    uint64_t slots[QN_SLOTS_MAX]; /* requests that hold a slot; 0: nobody */
} evidence_t;

/* Crashes that the request brought about, as far as they are known here. */
uint64_t evidence_crashes(const evidence_t *evidence, uint64_t request);
/* Notes that it has brought about so many; the one with the fewest gives way when all places are taken. */
void evidence_note(evidence_t *evidence, uint64_t request, uint64_t crashes);

#endif
