/* What of a seat (policy_seat.h) outlives the process: who was chosen live, the state of who decides, and which shared object
 * ran when the process died. Plain shared memory, all zero when new, at most one writer.
 *
 * Choice and state have two places each; the older one is written, then made valid by one store: whatever instruction the
 * writer dies at, one of the two is whole. */
#ifndef QN_COMMON_POLICY_POLICY_PAGE_H
#define QN_COMMON_POLICY_POLICY_PAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/policy/policy_object.h"

#define QN_POLICY_LOADED_MAX 3 /* live, previous, shadow */
#define QN_POLICY_WITHDRAWN_MAX 8

typedef struct {
    char configured[QN_POLICY_NAME_MAX]; /* what the configuration said then: another word of it voids the rest */
    char live[QN_POLICY_NAME_MAX], previous[QN_POLICY_NAME_MAX], shadow[QN_POLICY_NAME_MAX]; /* "": none */
} qn_policy_choice_t;

typedef struct {
    uint64_t owner; /* of the bytes */
    uint8_t bytes[QN_POLICY_STATE_MAX];
} qn_policy_state_t;

typedef struct {
    _Atomic uint64_t sequence; /* 0: nothing stands here; else the greater one is the newer */
    uint32_t crc, bytes;
    union {
        qn_policy_choice_t choice;
        qn_policy_state_t state;
    } is;
} qn_policy_place_t;

typedef struct {
    _Atomic uint64_t running; /* fingerprint of the shared object whose code runs at this moment; 0: none */
    uint64_t loaded[QN_POLICY_LOADED_MAX]; /* fingerprints */
    uint64_t withdrawn[QN_POLICY_WITHDRAWN_MAX];
    uint64_t withdrawn_count;
    qn_policy_place_t choices[2], states[2];
} qn_policy_page_t;

/* The former life crashed: the object whose code ran, or else all that were loaded, are withdrawn. Returns whether there
 * was any. With `crashed` false only the marks of the former life are taken off. */
bool qn_policy_page_judge(qn_policy_page_t *page, bool crashed);
void qn_policy_page_withdraw(qn_policy_page_t *page, uint64_t fingerprint);
bool qn_policy_page_is_withdrawn(const qn_policy_page_t *page, uint64_t fingerprint);

void qn_policy_page_write_choice(qn_policy_page_t *page, const qn_policy_choice_t *choice);
/* false: none was written. */
bool qn_policy_page_read_choice(const qn_policy_page_t *page, qn_policy_choice_t *ret_choice);

/* Nothing is written when these bytes stand there already. */
void qn_policy_page_write_state(qn_policy_page_t *page, uint64_t owner, const void *state, uint32_t bytes);
/* false, and *ret_state stays: what was written last is of another owner or size. */
bool qn_policy_page_read_state(const qn_policy_page_t *page, uint64_t owner, void *ret_state, uint32_t bytes);

#endif
