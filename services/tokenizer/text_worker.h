/* The thread for long texts. A job that would hold up the daemon's loop, and with it every stream, waits here and is done
 * beside it; the loop takes the finished ones when the descriptor becomes readable.
 *
 * The shortest waiting job is next, so that a few huge texts do not delay the ordinary ones of other clients; a job that
 * was passed over TEXT_WORKER_PATIENCE times is next whatever its size. All calls are the loop's. */
#ifndef QN_TOKENIZER_TEXT_WORKER_H
#define QN_TOKENIZER_TEXT_WORKER_H

#include "services/tokenizer/text_job.h"

#define TEXT_WORKER_JOBS_MAX 1024          /* waiting or running */
#define TEXT_WORKER_BYTES_MAX (256u << 20) /* of their inputs: 32 of the longest */
#define TEXT_WORKER_PATIENCE 8

typedef struct text_worker text_worker_t;

/* Keeps a reference to the tokenizer (NULL: ids only) until stop. Returns owned. Failure: QN_ERR_IO. */
qn_err_t text_worker_start(const tokenizer_t *tokenizer, text_worker_t **ret_worker);
/* Waits for the job that runs and drops all others; accepts NULL. `drop` is called for each job (its owner). */
void text_worker_stop(text_worker_t **worker, void (*drop)(text_job_t *job));
/* Readable when a job is finished (for qn_daemon_watch); borrowed. */
int text_worker_fd(const text_worker_t *worker);

/* Takes *job (owning its input) and sets it to NULL; false: the queue is full, the job stays the caller's. */
bool text_worker_submit(text_worker_t *worker, text_job_t **job);
/* A finished job, the caller's from now on; NULL: none. Cancelled ones come too, with `cancelled` set. */
text_job_t *text_worker_finished(text_worker_t *worker);
/* True when a job of this request is here, not finished. Cancels it: it comes back unrun if it was waiting. */
bool text_worker_has(const text_worker_t *worker, uint64_t request);
bool text_worker_cancel(text_worker_t *worker, uint64_t request);
/* Cancels all jobs of a peer. */
void text_worker_cancel_peer(text_worker_t *worker, qn_peer_t from);
size_t text_worker_count(const text_worker_t *worker);

#endif
