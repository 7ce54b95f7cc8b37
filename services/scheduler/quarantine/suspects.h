/* Suspects: requests that may have made a daemon crash, and how the one that did is found.
 *
 * Rules
 *  1. When a daemon is gone, those that were in its hands are accused: of compute, who ran in a step without a result;
 *     of memory, who had asked for blocks (when nobody had: all that hold any); of the scheduler, see evidence.h.
 *  2. When the service manager says that it crashed (common/daemon/crash.h) the accused become suspects; else nothing
 *     happens. A kill from outside makes nobody a suspect. What a peer answered and does not fit counts as its crash.
 *  3. Suspects run apart: one at a time, everybody else stands still, keeping slot and blocks. A suspect that has
 *     proven what it was running at the crash is none any more. So all of them take a few steps.
 *  4. Who was the only one in its hands has brought the crash about. A request that has done so, and was a suspect or
 *     had done so before, is to be quarantined: it made a daemon crash twice.
 *
 * Counts and marks are in the ledger, so they outlive the scheduler. Pure: no clock, no socket. */
#ifndef QN_SCHEDULER_QUARANTINE_SUSPECTS_H
#define QN_SCHEDULER_QUARANTINE_SUSPECTS_H

#include "services/scheduler/batch/batch.h"

/* A request is ended when it has brought about so many crashes. */
#define SUSPECTS_CRASHES_MAX 2

typedef enum { SUSPECTS_COMPUTE, SUSPECTS_MEMORY, SUSPECTS_SCHEDULER } suspects_peer_t;

typedef struct suspects suspects_t;

/* Who may run. */
typedef enum {
    SUSPECTS_EVERYBODY,
    SUSPECTS_ONE,    /* only *ret_index */
    SUSPECTS_NOBODY, /* until the steps without a result have one */
} suspects_choice_t;

/* Borrows ledger and batch. Returns owned. */
qn_err_t suspects_create(ledger_t *ledger, batch_t *batch, suspects_t **ret_suspects);
void suspects_destroy(suspects_t **suspects);

/* Before the batch hears of the loss. */
void suspects_accuse(suspects_t *suspects, suspects_peer_t peer);
/* This life of it has answered: what it was sent by a former scheduler is behind it. Before that nobody was alone in its
 * hands. */
void suspects_heard(suspects_t *suspects, suspects_peer_t peer);
/* The steps without a result are given up, and compute, which may live on, may still be at them: nobody is alone in its
 * hands before it answers a step of the next session, or has died. */
void suspects_leave_steps(suspects_t *suspects);
/* Only this one was in its hands. */
void suspects_accuse_one(suspects_t *suspects, suspects_peer_t peer, uint32_t index);
/* It lives: who was accused is not. */
void suspects_drop(suspects_t *suspects, suspects_peer_t peer);
/* It did not crash; the next life of it has nothing from a former scheduler. */
void suspects_acquit(suspects_t *suspects, suspects_peer_t peer);
/* It crashed. Returns the request to be quarantined, or NULL. */
request_t *suspects_crashed(suspects_t *suspects, suspects_peer_t peer);
/* The former scheduler crashed and left this evidence. Returns the request to be quarantined, or NULL. */
request_t *suspects_inherit(suspects_t *suspects, const evidence_t *former);

/* Decides who may run now; clears suspects that have proven what they had to. */
suspects_choice_t suspects_choose(suspects_t *suspects, uint32_t *ret_index);
/* The request has left the ledger's entry. */
void suspects_forget(suspects_t *suspects, uint32_t index);
uint32_t suspects_count(const suspects_t *suspects);

#endif
