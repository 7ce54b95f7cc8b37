/* The desk of kernels: what is chosen in all layers and why, objects that are loaded, and the one benchmark, the one check and the one
 * change that may be under way. The loop's; the worker sees a choice only as an errand. */
#ifndef QN_COMPUTE_KERNELS_KERNEL_DESK_H
#define QN_COMPUTE_KERNELS_KERNEL_DESK_H

#include <stdatomic.h>

#include "common/daemon/calls.h"
#include "common/daemon/daemon.h"
#include "services/compute/bench/bench_job.h"
#include "services/compute/kernels/live_kernels.h"
#include "services/compute/kernels/object_child.h"
#include "services/compute/kernels/tune_table.h"

typedef struct compute_service compute_service_t;

/* Kernels on their way to the worker, and the call that waits for it. */
typedef struct {
    bool under_way, has_call;
    atomic_bool applied;
    qn_call_t call;
    qn_op_t op;
    char previous[QN_PLUGIN_NAME_MAX];
    bool twin, reruns;
} desk_change_t;

typedef struct {
    live_kernels_t live;
    char tuned[LIVE_CHOICE_MAX];        /* of the table, for the model that is served; what fits */
    char key[TUNE_KEY_MAX];             /* of the table; "" without a model */
    char withdrawn_text[QN_REASON_MAX]; /* what was withdrawn at the start of this life; "": nothing */
    desk_change_t change;
    int wake_fd; /* the worker has applied a change; watched */
    bool loading;
    object_file_t file;
    object_child_t child;
    qn_call_t load_call;
    bench_job_t *job; /* NULL: none */
    bool tuning, apply;
    qn_call_t job_call;
    machine_speed_t speed; /* threads 0: not measured yet */
} kernel_desk_t;

/* At the start of compute: reads what was set live, withdraws what the former life crashed with, checks and loads the objects of
 * the configuration and of the former life. Blocks while they are checked. Returns owned. Failure: QN_ERR_CONFIG: an object that
 * the configuration names is not there or wrong. */
qn_err_t kernel_desk_open(compute_service_t *service, kernel_desk_t **ret_desk);
/* Ends what is under way. */
void kernel_desk_close(compute_service_t *service, kernel_desk_t **desk);

/* The model is known: takes what the table says of it. */
void kernel_desk_meet_model(compute_service_t *service, const qn_kernel_case_t *shape, const char *device,
                            const char *weights);
/* All layers as one choice for a model of this shape. What was set live and does not fit it is left out, with an error in the
 * log. Failure: QN_ERR_CONFIG. */
qn_err_t kernel_desk_choice(compute_service_t *service, const qn_kernel_case_t *shape, char ret_choice[LIVE_CHOICE_MAX],
                            qn_kernel_set_t *ret_set);
/* Before the runtime ends: no benchmark touches it any more, its caller is told. */
void kernel_desk_leave_model(compute_service_t *service);

/* Chooses anew from all layers, from the next step on. `call`: answered when the worker has it, or NULL. */
qn_err_t kernel_desk_apply(compute_service_t *service, const qn_kernel_set_t *set, const qn_call_t *call);
/* Loads the object of `file` into this process and notes it; rows as qn_kernels_load. */
qn_err_t kernel_desk_load(compute_service_t *service, const object_file_t *file, size_t *ret_first, size_t *ret_count);
/* Whether every tensor that the kernel would read here is of a format it takes. QN_ERR_CONFIG says which is not. */
qn_err_t kernel_desk_check_formats(const compute_service_t *service, const qn_kernel_t *kernel);

/* Ends of changes, checks and benchmarks; `ret_wake_ns`: as tick. */
void kernel_desk_tick(compute_service_t *service, uint64_t now_ns, uint64_t *ret_wake_ns);

/* methods_kernels.c: the answers. */
void kernel_desk_answer_change(compute_service_t *service);
void kernel_desk_answer_load(compute_service_t *service);
void kernel_desk_answer_job(compute_service_t *service);

#endif
