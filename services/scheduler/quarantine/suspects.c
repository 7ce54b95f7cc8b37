/* What is this?      Who is accused of a crash, who runs apart for it, who is found guilty.
 * State owned:       accusations that wait for the service manager's word; who runs apart. The marks are the ledger's.
 * Must never:        quarantine a request that was not alone in the hands of a daemon that crashed.
 * Read next:         planner.h (rule 8: running apart), scheduler.c (what quarantine does). */
#include "services/scheduler/quarantine/suspects.h"

#include <stdlib.h>

#include "common/assert.h"

struct suspects {
    ledger_t *ledger;
    batch_t *batch;
    uint8_t *accused; /* [requests_max]: bits 1 << suspects_peer_t */
    uint32_t *until;  /* [requests_max]: of the accused, the position to be proven */
    bool company[3];  /* of each peer: somebody was in its hands who has ended, is about to, or is not known */
    bool heard[3];    /* of each peer: it answered, or its life began after this scheduler's */
    uint32_t count;   /* requests with suspect_until > 0 */
    uint32_t apart;   /* BATCH_NOBODY: nobody */
};

/* ---- life ---- */

qn_err_t suspects_create(ledger_t *ledger, batch_t *batch, suspects_t **ret_suspects)
{
    uint32_t requests = ledger_requests_max(ledger);
    suspects_t *suspects = calloc(1, sizeof *suspects);
    if (suspects == NULL) return qn_fail(QN_ERR_NO_MEMORY, "suspects: out of memory");
    *suspects = (suspects_t){.ledger = ledger, .batch = batch, .apart = BATCH_NOBODY};
    suspects->accused = calloc(requests, sizeof *suspects->accused);
    suspects->until = calloc(requests, sizeof *suspects->until);
    if (suspects->accused == NULL || suspects->until == NULL) {
        suspects_destroy(&suspects);
        return qn_fail(QN_ERR_NO_MEMORY, "suspects: no memory for %u requests", requests);
    }
    for (const request_t *one = ledger_next(ledger, NULL); one != NULL; one = ledger_next(ledger, one))
        suspects->count += one->suspect_until > 0;
    *ret_suspects = suspects;
    return QN_OK;
}

void suspects_destroy(suspects_t **suspects)
{
    if (*suspects == NULL) return;
    free((*suspects)->accused);
    free((*suspects)->until);
    free(*suspects);
    *suspects = NULL;
}

/* ---- accusations ---- */

static uint32_t smaller(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* What it has to prove to be none any more: what was planned, or one token more than it has. */
static uint32_t goal_of(const request_t *request, uint32_t planned)
{
    uint32_t next = request_known_tokens(request) + 1;
    return smaller(planned > 0 ? planned : next, request_run_limit(request));
}

static void accuse(suspects_t *suspects, suspects_peer_t peer, uint32_t index, uint32_t goal)
{
    suspects->accused[index] |= (uint8_t)(1u << peer);
    if (goal > suspects->until[index]) suspects->until[index] = goal;
}

static void accuse_running(suspects_t *suspects)
{
    const batch_t *batch = suspects->batch;
    for (uint32_t i = 0; i < batch->step_count; i++)
        for (uint32_t j = 0; j < batch->steps[i].run_count; j++) {
            const batch_run_t *run = &batch->steps[i].runs[j];
            const request_t *request = batch->sequences[run->index].request;
            if (request == NULL || request->finish != REQUEST_UNFINISHED) {
                suspects->company[SUSPECTS_COMPUTE] = true;
                continue;
            }
            accuse(suspects, SUSPECTS_COMPUTE, run->index, goal_of(request, run->position + run->token_count));
        }
}

static bool accuse_leasing(suspects_t *suspects, bool all)
{
    const batch_t *batch = suspects->batch;
    bool any = false;
    suspects->company[SUSPECTS_MEMORY] |= batch->retiring_count > 0;
    for (uint32_t slot = 0; slot < batch->slot_count; slot++) {
        uint32_t index = batch->slot_owner[slot];
        if (index == BATCH_NOBODY || (!all && batch->sequences[index].lease_batch == 0)) continue;
        accuse(suspects, SUSPECTS_MEMORY, index, goal_of(batch->sequences[index].request, 0));
        any = true;
    }
    return any;
}

void suspects_heard(suspects_t *suspects, suspects_peer_t peer) { suspects->heard[peer] = true; }

void suspects_leave_steps(suspects_t *suspects)
{
    if (suspects->batch->step_count > 0) suspects->heard[SUSPECTS_COMPUTE] = false;
}

void suspects_accuse(suspects_t *suspects, suspects_peer_t peer)
{
    const batch_t *batch = suspects->batch;
    if (peer == SUSPECTS_COMPUTE && batch->step_count == 0) return; /* what it had in hand was given up before */
    suspects->company[peer] |= !suspects->heard[peer] || (peer == SUSPECTS_MEMORY && batch->left_lease != 0);
    if (peer == SUSPECTS_COMPUTE)
        accuse_running(suspects);
    else if (accuse_leasing(suspects, false))
        return;
    else if (suspects->apart != BATCH_NOBODY)
        suspects_accuse_one(suspects, peer, suspects->apart);
    else
        accuse_leasing(suspects, true);
}

void suspects_accuse_one(suspects_t *suspects, suspects_peer_t peer, uint32_t index)
{
    const request_t *request = ledger_at(suspects->ledger, index);
    if (request != NULL && request->finish == REQUEST_UNFINISHED) accuse(suspects, peer, index, goal_of(request, 0));
}

/* Takes the accusation away; whether it was there. */
static bool drop_accusation(suspects_t *suspects, uint8_t bit, uint32_t index)
{
    bool was = (suspects->accused[index] & bit) != 0;
    suspects->accused[index] &= (uint8_t)~bit;
    if (suspects->accused[index] == 0) suspects->until[index] = 0;
    return was;
}

void suspects_drop(suspects_t *suspects, suspects_peer_t peer)
{
    suspects->company[peer] = false;
    for (uint32_t i = 0; i < ledger_requests_max(suspects->ledger); i++)
        drop_accusation(suspects, (uint8_t)(1u << peer), i);
}

void suspects_acquit(suspects_t *suspects, suspects_peer_t peer)
{
    suspects_drop(suspects, peer);
    suspects->heard[peer] = true;
}

/* ---- verdicts ---- */

static void mark(suspects_t *suspects, request_t *request, uint32_t crashes, uint32_t until)
{
    suspects->count += (until > 0) - (request->suspect_until > 0);
    ledger_suspect(suspects->ledger, request, crashes, until);
}

/* Rule 4. The request to be quarantined, or NULL. */
static request_t *convict(suspects_t *suspects, request_t *request, uint32_t until)
{
    bool again = request->suspect_until > 0 && request->crashes == 0;
    mark(suspects, request, request->crashes + 1 + again, until);
    return request->crashes >= SUSPECTS_CRASHES_MAX ? request : NULL;
}

request_t *suspects_crashed(suspects_t *suspects, suspects_peer_t peer)
{
    uint8_t bit = (uint8_t)(1u << peer);
    request_t *only = NULL;
    uint32_t accused = 0;
    request_t *request = ledger_next(suspects->ledger, NULL);
    for (; request != NULL; request = ledger_next(suspects->ledger, request)) {
        bool is_accused = (suspects->accused[request->index] & bit) != 0;
        accused += is_accused;
        only = is_accused ? request : only;
    }
    bool alone = accused == 1 && !suspects->company[peer] && only->finish == REQUEST_UNFINISHED;
    suspects->company[peer] = false;
    suspects->heard[peer] = true;
    request_t *guilty = alone ? convict(suspects, only, suspects->until[only->index]) : NULL;
    for (request = ledger_next(suspects->ledger, NULL); request != NULL;
         request = ledger_next(suspects->ledger, request)) {
        uint32_t until = suspects->until[request->index];
        if (!drop_accusation(suspects, bit, request->index) || request->finish != REQUEST_UNFINISHED) continue;
        if (!alone) mark(suspects, request, request->crashes, until);
    }
    return guilty;
}

/* The only request in the scheduler's hands, which may not be in the ledger. */
static request_t *inherit_one(suspects_t *suspects, uint64_t id)
{
    request_t *request = ledger_find(suspects->ledger, id);
    if (request == NULL) {
        evidence_t *evidence = ledger_evidence(suspects->ledger);
        evidence_note(evidence, id, evidence_crashes(evidence, id) + 1);
        return NULL;
    }
    return request->finish == REQUEST_UNFINISHED ? convict(suspects, request, goal_of(request, 0)) : NULL;
}

static request_t *slot_holder(const suspects_t *suspects, uint64_t id)
{
    request_t *request = id != 0 ? ledger_find(suspects->ledger, id) : NULL;
    return request != NULL && request->finish == REQUEST_UNFINISHED ? request : NULL;
}

/* Accuses those that held slots; when nobody did, all that waited. */
static void accuse_inherited(suspects_t *suspects, const evidence_t *former)
{
    uint32_t holders = 0;
    for (uint32_t slot = 0; slot < QN_SLOTS_MAX; slot++) {
        const request_t *request = slot_holder(suspects, former->slots[slot]);
        if (request == NULL) continue;
        accuse(suspects, SUSPECTS_SCHEDULER, request->index, goal_of(request, 0));
        holders++;
    }
    const request_t *request = holders == 0 ? ledger_next(suspects->ledger, NULL) : NULL;
    for (; request != NULL; request = ledger_next(suspects->ledger, request))
        accuse(suspects, SUSPECTS_SCHEDULER, request->index, goal_of(request, 0));
}

request_t *suspects_inherit(suspects_t *suspects, const evidence_t *former)
{
    uint64_t one = former->in_hand != 0 ? former->in_hand : former->apart;
    if (one != 0) return inherit_one(suspects, one);
    accuse_inherited(suspects, former);
    return suspects_crashed(suspects, SUSPECTS_SCHEDULER);
}

/* ---- running apart ---- */

static bool has_proven(const suspects_t *suspects, const request_t *request)
{
    const sequence_t *sequence = &suspects->batch->sequences[request->index];
    return request->finish != REQUEST_UNFINISHED ||
           (sequence->phase == SEQUENCE_RUNNING && sequence->proven >= request->suspect_until);
}

static void clear_proven(suspects_t *suspects)
{
    request_t *request = ledger_next(suspects->ledger, NULL);
    for (; request != NULL; request = ledger_next(suspects->ledger, request))
        if (request->suspect_until > 0 && has_proven(suspects, request)) mark(suspects, request, request->crashes, 0);
}

/* Who has a slot goes first, then who came first: it needs no room. */
static uint32_t next_suspect(const suspects_t *suspects)
{
    uint32_t waiting = BATCH_NOBODY;
    const request_t *request = ledger_next(suspects->ledger, NULL);
    for (; request != NULL; request = ledger_next(suspects->ledger, request)) {
        sequence_phase_t phase = suspects->batch->sequences[request->index].phase;
        if (request->suspect_until == 0) continue;
        if (phase == SEQUENCE_RUNNING || phase == SEQUENCE_LEASING) return request->index;
        if (waiting == BATCH_NOBODY && phase == SEQUENCE_WAITING) waiting = request->index;
    }
    return waiting;
}

static void put_apart(suspects_t *suspects, uint32_t index)
{
    suspects->apart = index;
    ledger_evidence(suspects->ledger)->apart = index != BATCH_NOBODY ? ledger_at(suspects->ledger, index)->id : 0;
}

suspects_choice_t suspects_choose(suspects_t *suspects, uint32_t *ret_index)
{
    *ret_index = suspects->apart;
    if (suspects->count == 0 && suspects->apart == BATCH_NOBODY) return SUSPECTS_EVERYBODY;
    clear_proven(suspects);
    const request_t *apart = suspects->apart != BATCH_NOBODY ? ledger_at(suspects->ledger, suspects->apart) : NULL;
    if (apart != NULL && apart->suspect_until > 0) return SUSPECTS_ONE;
    if (suspects->batch->step_count > 0) return SUSPECTS_NOBODY; /* its last steps are in flight */
    put_apart(suspects, next_suspect(suspects));
    *ret_index = suspects->apart;
    if (suspects->apart != BATCH_NOBODY) return SUSPECTS_ONE;
    return suspects->count == 0 ? SUSPECTS_EVERYBODY : SUSPECTS_NOBODY; /* its blocks are on their way back */
}

void suspects_forget(suspects_t *suspects, uint32_t index)
{
    const request_t *request = ledger_at(suspects->ledger, index);
    QN_ASSERT(request != NULL);
    suspects->count -= request->suspect_until > 0;
    for (int peer = SUSPECTS_COMPUTE; peer <= SUSPECTS_SCHEDULER; peer++)
        suspects->company[peer] |= (suspects->accused[index] & (1u << peer)) != 0;
    suspects->accused[index] = 0;
    suspects->until[index] = 0;
    if (suspects->apart == index) put_apart(suspects, BATCH_NOBODY);
}

uint32_t suspects_count(const suspects_t *suspects) { return suspects->count; }
