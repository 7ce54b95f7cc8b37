/* A seat: who decides about one thing. The live policy; the one before it, which takes over when the live one is withdrawn;
 * a shadow, which is asked the same and changes nothing. All can be changed between two decisions.
 *
 * Each decision is asked like this (policy.c of the scheduler has all of them):
 *
 *     do {
 *         const qn_policy_object_t *object = qn_policy_seat_ask(seat, false);
 *         ... call its table, check what it said: `broken` is NULL or the rule that it broke ...
 *     } while (!qn_policy_seat_take(seat, false, broken));
 *
 * It ends: who breaks a rule or is too slow is withdrawn, and the last resort is a built-in policy that breaks none.
 * Not thread-safe. */
#ifndef QN_COMMON_POLICY_POLICY_SEAT_H
#define QN_COMMON_POLICY_POLICY_SEAT_H

#include "common/policy/policy_object.h"
#include "common/policy/policy_page.h"

#define QN_POLICY_DIFFERENCES_MAX 32
#define QN_POLICY_WORDS_MAX 192 /* of a decision */

typedef struct qn_policy_seat qn_policy_seat_t;

/* What a decision was, in words and as a number that is the same for equal ones. */
typedef struct {
    uint64_t hash;
    char words[QN_POLICY_WORDS_MAX];
    char reason[QN_POLICY_REASON_MAX];
} qn_policy_decision_t;

/* One where live and shadow differed. */
typedef struct {
    uint64_t now_ns;
    char function[16];
    char live[QN_NAME_MAX], shadow[QN_NAME_MAX]; /* names */
    qn_policy_decision_t by_live, by_shadow;
} qn_policy_difference_t;

typedef struct {
    uint64_t decisions, switches, withdrawals;
    uint64_t shadow_decisions, shadow_differences; /* since the shadow was set */
} qn_policy_counts_t;

/* `page`: borrowed, NULL: nothing outlives the seat. `configured`: what the configuration says; what was set live under the
 * same word of it takes its place. QN_ERR_CONFIG: `configured` cannot be opened (a shared object that was withdrawn can,
 * and is not: the next resort decides, and qn_policy_seat_withdrawn says so). qn_policy_page_judge comes before this.
 * Returns owned. */
qn_err_t qn_policy_seat_open(const qn_policy_catalogue_t *catalogue, const char *configured, qn_policy_page_t *page,
                             qn_policy_seat_t **ret_seat);
/* Around a table, for tests and simulations; the catalogue's last resort follows it. */
qn_err_t qn_policy_seat_wrap(const qn_policy_catalogue_t *catalogue, const qn_policy_head_t *head,
                             qn_policy_seat_t **ret_seat);
void qn_policy_seat_close(qn_policy_seat_t **seat);

/* Live from the next decision on. Failure: nothing has changed. */
qn_err_t qn_policy_seat_set(qn_policy_seat_t *seat, const char *choice);
/* Shadow from the next decision on; NULL or "": none. */
qn_err_t qn_policy_seat_set_shadow(qn_policy_seat_t *seat, const char *choice);

/* ---- decisions ---- */

/* Whose turn it is. Shadow: NULL when there is none. */
const qn_policy_object_t *qn_policy_seat_ask(qn_policy_seat_t *seat, bool shadow);
/* What it said stands (true), or it is withdrawn. `broken`: NULL, or the rule that it broke. */
bool qn_policy_seat_take(qn_policy_seat_t *seat, bool shadow, const char *broken);
/* Both have decided: counted, and kept when they differ. */
void qn_policy_seat_compare(qn_policy_seat_t *seat, const char *function, uint64_t now_ns,
                            const qn_policy_decision_t *by_live, const qn_policy_decision_t *by_shadow);

/* ---- views ---- */

const qn_policy_object_t *qn_policy_seat_live(const qn_policy_seat_t *seat);
const qn_policy_object_t *qn_policy_seat_previous(const qn_policy_seat_t *seat); /* NULL: the last resort */
const qn_policy_object_t *qn_policy_seat_shadow(const qn_policy_seat_t *seat);   /* NULL: none */
const char *qn_policy_seat_name(const qn_policy_seat_t *seat);
/* What the configuration says. */
const char *qn_policy_seat_configured(const qn_policy_seat_t *seat);
const qn_policy_catalogue_t *qn_policy_seat_catalogue(const qn_policy_seat_t *seat);
/* Why a policy was withdrawn last, with its name; "": none was. Ends with a change of the live one. */
const char *qn_policy_seat_withdrawn(const qn_policy_seat_t *seat);
/* What live or shadow wants of views. */
uint32_t qn_policy_seat_wants(const qn_policy_seat_t *seat);
void qn_policy_seat_counts(const qn_policy_seat_t *seat, qn_policy_counts_t *ret_counts);
/* The newest first: number `at` of them, NULL: no more. */
const qn_policy_difference_t *qn_policy_seat_difference(const qn_policy_seat_t *seat, uint32_t at);

#endif
