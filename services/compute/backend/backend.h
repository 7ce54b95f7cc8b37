/* A backend: what compute asks of the place where its kernels run. Arrays of a plan and its results cross between host
 * and device only through these calls, in stream order with the launches, so that nothing above knows whether the
 * device's memory is the host's. Errors of a stream are sticky and come out of stream_error and stream_wait. */
#ifndef QN_COMPUTE_BACKEND_BACKEND_H
#define QN_COMPUTE_BACKEND_BACKEND_H

#include "common/config/config.h"
#include "common/err.h"
#include "kernels/kernels.h"

/* A place in a stream. */
typedef struct backend_mark backend_mark_t;
/* Launches that were recorded; they run again with one call. */
typedef struct backend_graph backend_graph_t;

typedef struct {
    uint32_t threads;   /* CPU: as qn_stream_options_t */
    int nice;           /* CPU */
    int device;         /* CUDA: compute.device */
    bool deterministic; /* compute.deterministic; the CPU always is */
    qn_scalar_t activations;
    const qn_kernel_case_t *shape; /* what it will be asked to compute */
    uint32_t max_sequences;        /* of one launch */
} backend_stream_options_t;

typedef struct {
    const char *name; /* compute.backend */
    /* Whether launches and copies have ended when they return. If not, steps_in_flight may be launched before the
     * oldest of them has ended. */
    bool synchronous;
    uint32_t steps_in_flight;
    uint32_t logit_rows;     /* step_limits_t.logit_rows, at most */
    bool chunks_are_decodes; /* attention.prefill gives the bits that attention.decode gives token by token */
    /* Whether this machine has what the backend needs; says what is missing. */
    qn_err_t (*check)(int device);
    /* "2 threads", "NVIDIA H200". */
    void (*describe)(const qn_stream_t *stream, int device, char *ret_text, size_t size);
    /* The activations' type between the layers for weights like `weights` (NULL: not known yet), by compute.activations.
     * Failure: QN_ERR_CONFIG, when this machine or these weights cannot do what it says. */
    qn_err_t (*choose_activations)(const char *choice, const qn_weight_t *weights, qn_scalar_t *ret_scalar);
    /* Chooses by compute.kernels and compute.activations among what this machine, or its device, can run; as
     * qn_kernels_choose. */
    qn_err_t (*choose_kernels)(const char *choice, const char *activations, const qn_kernel_case_t *shape, int device,
                               qn_kernel_set_t *ret_set);
    /* Its rows of the registry, a view, and what of QN_ISA_ this machine or device has. */
    const qn_kernel_t *(*kernels)(int device, size_t *ret_count, uint32_t *ret_isa);
    /* Returns owned. Failure: QN_ERR_NO_MEMORY, QN_ERR_IO, QN_ERR_DEVICE. */
    qn_err_t (*stream_create)(const backend_stream_options_t *options, qn_stream_t **ret_stream);
    void (*stream_destroy)(qn_stream_t **stream);
    /* Blocks until every launch and copy so far is done; returns the first error since the stream was made. */
    qn_err_t (*stream_wait)(qn_stream_t *stream);
    /* The first error that is known by now; does not wait. */
    qn_err_t (*stream_error)(qn_stream_t *stream);
    /* CPU threads that compute; 0 where something else does. */
    uint32_t (*stream_threads)(const qn_stream_t *stream);
    /* Copies host `from` to device `to`; `from` has been read when it returns. */
    void (*upload)(qn_stream_t *stream, void *to, const void *from, size_t bytes);
    /* Copies device `from` to `to`, which lies in memory of host_create; it is there when a later mark is passed. */
    void (*download)(qn_stream_t *stream, void *to, const void *from, size_t bytes);
    /* Host memory that kernels can read, and download and kernels can fill, 64-byte aligned; what kernels wrote is there
     * when a later mark is passed. Returns owned. Failure: QN_ERR_NO_MEMORY, QN_ERR_DEVICE. */
    qn_err_t (*host_create)(size_t bytes, void **ret_memory);
    void (*host_destroy)(void **memory);
    /* Makes whole pages that others made as fast for download as those of host_create; NULL: they are. QN_ERR_DEVICE. */
    qn_err_t (*host_pin)(void *memory, size_t bytes);
    void (*host_unpin)(void *memory);
    /* Returns owned. */
    qn_err_t (*mark_create)(backend_mark_t **ret_mark);
    void (*mark_destroy)(backend_mark_t **mark);
    void (*mark_set)(qn_stream_t *stream, backend_mark_t *mark);
    /* Whether everything before the mark is done, or the stream has failed. Does not wait. */
    bool (*mark_passed)(qn_stream_t *stream, const backend_mark_t *mark);
    /* Nanoseconds of the device between two marks of a stream that it has passed; NULL for a synchronous backend. */
    uint64_t (*mark_elapsed_ns)(const backend_mark_t *from, const backend_mark_t *to);
    /* NULL where there are no graphs. Launches between begin and end are recorded and not run; their pointers and counts
     * are frozen, what they point to is not. end returns owned, also when it fails: nothing. */
    qn_err_t (*capture_begin)(qn_stream_t *stream);
    qn_err_t (*capture_end)(qn_stream_t *stream, backend_graph_t **ret_graph);
    void (*graph_launch)(qn_stream_t *stream, backend_graph_t *graph);
    void (*graph_destroy)(backend_graph_t **graph);
} backend_t;

/* The backend that compute.backend names, checked against this build and this machine. Returns view. Failure:
 * QN_ERR_UNSUPPORTED (not in this build), or that of its check. */
qn_err_t backend_find(const qn_config_values_t *config, const backend_t **ret_backend);

/* Returns view of the CPU's, whose device memory is the host's: copies are made at once. */
const backend_t *backend_cpu(void);
/* Returns view of CUDA's; in a build with CUDA only. */
const backend_t *backend_cuda(void);

#endif
