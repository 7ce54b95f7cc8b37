/* What a daemon has in hand now, told to its next life: a page in <run_dir>/<service>.hand, for daemons that keep no ledger.
 *
 * The key stands for the content of a request (a text, a body), so a client that sends the same again is known. A
 * daemon has one thing in hand at a time. When its service manager says that the former life crashed (crash.h), what that
 * life had in hand has brought it about; content that has done so twice is to be refused with 500. The list is
 * bounded; another build of the program begins with an empty one. */
#ifndef QN_COMMON_DAEMON_IN_HAND_H
#define QN_COMMON_DAEMON_IN_HAND_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

#define QN_IN_HAND_CRASHES_MAX 2
/* What the client of such content is told. */
#define QN_IN_HAND_TEXT                                                                                              \
    "This request made a daemon of the engine crash twice and is not tried again. The folder quarantine of the run " \
    "directory holds it for the operator."

typedef struct qn_in_hand qn_in_hand_t;

/* Judges the former life and begins this one's. Failure: QN_ERR_IO, QN_ERR_NO_MEMORY. Returns owned. */
qn_err_t qn_in_hand_open(const char *run_dir, const char *service, uint32_t epoch, qn_in_hand_t **ret_hand);
void qn_in_hand_close(qn_in_hand_t **hand);

/* Of content; never 0. Several parts: the key of the part before is the seed. */
uint64_t qn_in_hand_key(uint64_t seed, const void *bytes, size_t count);
/* It is handled now; 0: nothing is. Returns what was. Accepts NULL. */
uint64_t qn_in_hand_take(qn_in_hand_t *hand, uint64_t key);
/* The same of a second thread, if the daemon has one that works beside its loop. When both had something in hand at a crash,
 * nobody was alone: neither is refused for it. Accepts NULL. */
void qn_in_hand_take_beside(qn_in_hand_t *hand, uint64_t key);
/* What is handled now. Accepts NULL. */
uint64_t qn_in_hand_now(const qn_in_hand_t *hand);
/* Whether it is to be refused. Accepts NULL. */
bool qn_in_hand_refuses(const qn_in_hand_t *hand, uint64_t key);
/* Keeps the refused content in the quarantine, the first time it is asked to. `object` is taken. */
void qn_in_hand_record(qn_in_hand_t *hand, uint64_t key, json_t *object);

#endif
