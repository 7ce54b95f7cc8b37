/* Calls that run tokens beside the steps (executor_task.h): what each waits for, one after the other.
 *
 *   the cache     a region of memory's for a sequence of a task's own, taken when the first one wants it
 *   a range       of the workspace, when what comes out is larger than the reply may be
 *   the worker    which runs one task at a time, between steps
 *
 * A call ends in every case: with a reply, a refusal, or 503 when memory is gone. The loop's thread. */
#ifndef QN_COMPUTE_TASKS_H
#define QN_COMPUTE_TASKS_H

#include "common/daemon/calls.h"
#include "qn_messages.h"
#include "services/compute/executor/executor_task.h"
#include "services/compute/worker/step_queue.h"

#define TASKS_MAX 8 /* calls that wait or run; more are told to try again */

struct compute_service;
typedef struct compute_task compute_task_t;

/* A tensor that comes out: where it will be, of which shape, and its numbers in short once they are there. */
typedef struct {
    char name[64];
    qn_dtype_t dtype; /* f32, bf16 */
    uint64_t shape[4], count;
    uint32_t rank;
    uint64_t at, bytes; /* in the task's memory for what comes out */
    float min, max, mean, std, zeros;
    uint64_t nan_count;
} task_tensor_t;

struct compute_task {
    step_task_t step; /* first: the worker's view */
    struct compute_service *service;
    qn_call_t call;
    executor_task_t run;
    bool has_call; /* not answered yet */
    /* Owned copies of the request, and memory of the executor's. */
    void *copies;
    qn_probe_t probe;
    void *weights_memory, *logits_memory, *residual_memory;
    float *logits;
    /* What comes out. */
    task_tensor_t *tensors;
    uint32_t tensor_count;
    uint64_t out_bytes, values; /* all tensors together; numbers in them */
    uint8_t *out;               /* own memory, or the workspace's range */
    void *own_out;
    bool wants_range, has_range;
    uint32_t lifetime_ms, top;
    qn_workspace_handle_t handle;
    uint64_t range_offset;
    uint64_t message; /* id of the message to memory that is not answered; 0: none */
    /* Of each kind. */
    uint32_t heads[1024], head_count, rows;
    float threshold;
    qn_head_scores_t *head_scores;
    bool wants_cache;
    qn_failure_t failure;
    void (*look)(compute_task_t *task);  /* on the worker, when it has run: fills the tensors */
    void (*reply)(compute_task_t *task); /* on the loop */
};

/* Takes a call: returns a zeroed task, or NULL when the call was refused (no model yet, off, or too many). */
compute_task_t *tasks_begin(struct compute_service *service, qn_call_t *call);
/* Goes on with it; the call is answered later. */
qn_call_outcome_t tasks_go(compute_task_t *task);
/* Refuses it; the task is gone. */
qn_call_outcome_t tasks_refuse(compute_task_t *task, uint16_t status, const char *param, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* Adds a tensor that comes out. Returns view. */
task_tensor_t *tasks_add(compute_task_t *task, const char *name, qn_dtype_t dtype, uint32_t rank,
                         const uint64_t *shape);

/* ---- events ---- */

void tasks_tick(struct compute_service *service);
void tasks_take_range(struct compute_service *service, const qn_workspace_range_t *range);
/* true: the region was asked for by a task. */
bool tasks_take_region(struct compute_service *service, const qn_region_t *region);
/* true: the refusal is of a task's message. */
bool tasks_take_refusal(struct compute_service *service, const qn_refusal_t *refusal);
/* The runtime is about to end: what runs has ended. All calls are refused. */
void tasks_end(struct compute_service *service);

/* ---- for replies ---- */

/* The tensor as a reply shows it; its numbers go behind `values`, unless they are in the workspace. */
void tasks_show(const compute_task_t *task, qn_arena_t *arena, const task_tensor_t *tensor,
                qn_tapped_tensor_t *ret_result, float *values, uint32_t *values_count);
/* Most probable of task->logits, of `vocab`. Returns how many. */
uint32_t tasks_top(const compute_task_t *task, uint32_t vocab, qn_token_logprob_t *ret_top, uint32_t count);

#endif
