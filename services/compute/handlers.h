/* Between compute's messages and its nouns: the handler table, the messages compute sends, and the state both sides of
 * it share. */
#ifndef QN_COMPUTE_HANDLERS_H
#define QN_COMPUTE_HANDLERS_H

#include "common/daemon/daemon.h"
#include "common/region/region.h"
#include "common/watch/window.h"
#include "services/compute/runtime.h"
#include "services/compute/tensors/tensor_store.h"
#include "services/compute/tasks.h"
#include "services/compute/executor/scratch.h"

/* How far compute has come with the memory daemon that lives now. */
typedef enum {
    COMPUTE_ALONE,     /* no memory, or the last attempt failed: ask at retry_ns */
    COMPUTE_ASKED,     /* Describe is out */
    COMPUTE_DESCRIBED, /* weights and KV are mapped, the model is bound */
    COMPUTE_RESERVING, /* three Reserve are out */
    COMPUTE_RUNNING,
} compute_phase_t;

#define COMPUTE_SETTLES_MAX 4

/* The three regions compute reserves. */
enum { COMPUTE_ACTIVATIONS, COMPUTE_STATE, COMPUTE_STEP_IO, COMPUTE_SCRATCH_COUNT };

typedef struct compute_service {
    qn_daemon_t *daemon;
    const qn_config_values_t *config;
    const backend_t *backend;
    compute_phase_t phase;
    uint64_t retry_ns;
    uint32_t attempts; /* that failed since the last success */
    /* of one life of memory */
    qn_peer_t memory;
    uint64_t weights_id, kv_id; /* of the description in force */
    qn_mapping_t *weights, *kv, *scratch[COMPUTE_SCRATCH_COUNT];
    uint64_t scratch_bytes[COMPUTE_SCRATCH_COUNT];
    qn_mapping_t *workspace; /* NULL: memory.workspace_bytes is 0 */
    qn_kv_t kv_layout;
    step_limits_t limits;
    model_t *model;
    runtime_t *runtime; /* in COMPUTE_RUNNING */
    /* of one life of the scheduler */
    qn_peer_t scheduler;
    uint64_t owner;          /* number of that life and session; tags its jobs */
    uint32_t plan_session;   /* that the scheduler has open; 0: none, so its next plan opens one */
    uint32_t gone_scheduler; /* memory has proof that this life and those before are dead: no plan of theirs is taken */
    uint64_t plans_refused;
    struct {
        qn_peer_t memory;
        uint64_t request, jobs;      /* submitted when it came */
    } settling[COMPUTE_SETTLES_MAX]; /* epoch 0: a free place. Answered when no step is here */
    qn_arena_t sending;              /* the arrays of one StepResult */
    tensor_store_t *tensors;
    task_queue_t *tasks;                   /* outlives runtimes: what waits goes on with the next one */
    compute_task_t *beside[TASKS_MAX];     /* calls that run tokens beside the steps; NULL: free */
    compute_task_t *running_task;          /* the worker has it */
    qn_mapping_t *probe_kv;                /* KV cache of their own sequences; NULL: not wanted yet */
    uint64_t cache_message, task_messages; /* the Reserve of it that is not answered; counts their messages */
    /* A handler's verdict that tick acts on. */
    qn_failure_t failure;  /* code QN_OK: none */
    bool failure_is_final; /* trying again cannot help */
    struct {
        qn_window_t step, input, attention, mlp, output, sample;
    } windows;                /* times of the last minute; methods_latency.c shows them */
    uint64_t sample_until_ns; /* steps are sampled until then, where that is not free */
} compute_service_t;

extern const qn_handler_t compute_handlers[];
extern const qn_method_row_t compute_methods[]; /* methods.c */

/* methods_latency.c: a step is over; it was sampled when times.sampled. */
void compute_observe_step(compute_service_t *service, const step_result_t *result);
qn_call_outcome_t compute_method_latency(void *state, qn_call_t *call, const void *message, void *ret_reply);

/* Answers the Settles whose time has come. */
void compute_answer_settles(compute_service_t *service);
/* Asks memory for the model, with tensors. */
qn_send_outcome_t compute_send_describe(compute_service_t *service);
/* Asks memory for the three regions. */
qn_send_outcome_t compute_send_reserves(compute_service_t *service);
/* Sends a finished job's result to the scheduler that planned it. */
qn_send_outcome_t compute_send_result(compute_service_t *service, const step_job_t *job);
/* Ends what was built for one life of memory: waits for the running step, unmaps everything. */
void compute_end_session(compute_service_t *service);
/* Forgets the scheduler's slots and drops its waiting plans. */
void compute_forget_scheduler(compute_service_t *service);

#endif
