/* Failpoints: named places where a test makes a daemon die, hang or fail, at a moment it chose.
 *
 *   QUINTET_FAILPOINTS=NAME[@MATCH]:COUNT:ACTION[:TIMES][,...]
 *
 * fires ACTION at the COUNT-th hit of NAME in this process. With @MATCH only hits that concern it count: of points that
 * know token ids, one id; of points that know text, a piece of it without ',' and ':'. So a request can be made to kill
 * a daemon. TIMES: how often it fires in all lives of the daemon in this run directory (a restarted daemon counts hits
 * anew); without it, once in each life. Every firing is first written as a line "NAME" to <run_dir>/failpoints.
 *
 * ACTION: crash (abort), kill (SIGKILL), exit=STATUS, hang (this thread, for good), error (the place fails as it would
 * by itself). An unknown name or action is refused at start. With nothing armed a point costs one branch. */
#ifndef QN_COMMON_FAILPOINT_H
#define QN_COMMON_FAILPOINT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

typedef enum {
    QN_FAILPOINT_FRONTEND_REQUEST,
    QN_FAILPOINT_FRONTEND_FIRST_BYTE,
    QN_FAILPOINT_FRONTEND_EVENT,
    QN_FAILPOINT_TOKENIZER_BEFORE_ENCODE,
    QN_FAILPOINT_TOKENIZER_AFTER_ENCODE,
    QN_FAILPOINT_TOKENIZER_BEFORE_TOKENS,
    QN_FAILPOINT_TOKENIZER_TOKEN,
    QN_FAILPOINT_SCHEDULER_SUBMIT,
    QN_FAILPOINT_SCHEDULER_BEFORE_PLAN,
    QN_FAILPOINT_SCHEDULER_AFTER_PLAN,
    QN_FAILPOINT_SCHEDULER_AFTER_RESULT,
    QN_FAILPOINT_SCHEDULER_LEDGER_APPEND,
    QN_FAILPOINT_MEMORY_BEFORE_GRANT,
    QN_FAILPOINT_MEMORY_AFTER_LEASE,
    QN_FAILPOINT_COMPUTE_BEFORE_STEP,
    QN_FAILPOINT_COMPUTE_AFTER_STEP,
    QN_FAILPOINT_COUNT
} qn_failpoint_t;

/* Whether any is armed; written before the daemon's loop starts. */
extern bool qn_failpoints_armed;

/* A hit. Nearly always returns false; true when the action is `error`: fail here. Any thread. */
#define QN_FAILPOINT(point) (qn_failpoints_armed && qn_failpoint_hit(point, NULL, 0, NULL, 0))
/* A hit that concerns these token ids, or this text. */
#define QN_FAILPOINT_IDS(point, ids, count) (qn_failpoints_armed && qn_failpoint_hit(point, ids, count, NULL, 0))
#define QN_FAILPOINT_TEXT(point, text, bytes) (qn_failpoints_armed && qn_failpoint_hit(point, NULL, 0, text, bytes))

/* Arms what `text` (borrowed) says, and nothing else; "" or NULL: nothing. Not while another thread may hit a point.
 * QN_ERR_CONFIG: the text names what is wrong. */
qn_err_t qn_failpoints_arm(const char *text, const char *run_dir);
/* As QUINTET_FAILPOINTS says, once per process. */
qn_err_t qn_failpoints_arm_from_environment(const char *run_dir);

bool qn_failpoint_hit(qn_failpoint_t point, const uint32_t *ids, size_t id_count, const char *text, size_t bytes);

#endif
