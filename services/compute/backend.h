/* A backend: what compute asks of the place where its kernels run. Arrays of a plan and its results cross between host
 * and device only through these calls, in stream order with the launches, so that nothing above knows whether the
 * device's memory is the host's. Errors of a stream are sticky and come out of stream_wait. */
#ifndef QN_SERVICES_COMPUTE_BACKEND_H
#define QN_SERVICES_COMPUTE_BACKEND_H

#include "common/err.h"
#include "kernels/kernels.h"

typedef struct {
    uint32_t threads;                /* CPU: as qn_stream_options_t */
    int nice;                        /* CPU */
    const qn_kernel_case_t *shape;   /* what it will be asked to compute */
    uint32_t max_sequences;          /* of one launch */
} backend_stream_options_t;

typedef struct {
    const char *name;                /* compute.backend */
    /* Chooses by compute.kernels among what this machine can run; as qn_kernels_choose. */
    qn_err_t (*choose_kernels)(const char *choice, const qn_kernel_case_t *shape, qn_kernel_set_t *ret_set);
    /* Returns owned. Failure: QN_ERR_NO_MEMORY, QN_ERR_IO, QN_ERR_DEVICE. */
    qn_err_t (*stream_create)(const backend_stream_options_t *options, qn_stream_t **ret_stream);
    void (*stream_destroy)(qn_stream_t **stream);
    /* Blocks until every launch and copy so far is done; returns the first error since the stream was made. */
    qn_err_t (*stream_wait)(qn_stream_t *stream);
    /* Copies host `from` to device `to`; `from` has been read when it returns. */
    void (*upload)(qn_stream_t *stream, void *to, const void *from, size_t bytes);
    /* Copies device `from` to `to`, which lies in memory of host_create; it is there after stream_wait. */
    void (*download)(qn_stream_t *stream, void *to, const void *from, size_t bytes);
    /* Host memory that download can fill, 64-byte aligned. Returns owned. Failure: QN_ERR_NO_MEMORY. */
    qn_err_t (*host_create)(size_t bytes, void **ret_memory);
    void (*host_destroy)(void **memory);
} backend_t;

/* Returns view of the CPU's, whose device memory is the host's: copies are made at once. */
const backend_t *backend_cpu(void);

#endif
