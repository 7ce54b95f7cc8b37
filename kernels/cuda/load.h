/* Bringing weights to the device, for quintet-memory: pinned buffers that several threads fill from files while earlier
 * ones are copied, and dummy weights made on the device (load_format dummy). C; needs no CUDA header.
 *
 *     take a buffer -> fill it (pread) -> send it        by any number of threads, in any order
 *     finish                                             all copies are made
 *
 * A copy runs at the speed of the bus, a read at that of one core's memcpy: about eight threads fill a bus. */
#ifndef QN_KERNELS_CUDA_LOAD_H
#define QN_KERNELS_CUDA_LOAD_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

typedef struct qn_cuda_loader qn_cuda_loader_t;

#define QN_CUDA_LOADER_BUFFERS_MAX 64

/* `buffers` (1 .. QN_CUDA_LOADER_BUFFERS_MAX; two more than threads is enough) of `buffer_bytes` of pinned host memory.
 * Returns owned. Failure: QN_ERR_DEVICE, QN_ERR_NO_MEMORY. */
qn_err_t qn_cuda_loader_create(int device, unsigned buffers, size_t buffer_bytes, qn_cuda_loader_t **ret_loader);
/* Waits for the copies that run. Accepts NULL. */
void qn_cuda_loader_destroy(qn_cuda_loader_t **loader);

/* A buffer that nothing reads any more: the caller's until it is sent or dropped. Blocks until there is one. Any
 * thread. Failure: QN_ERR_DEVICE. */
qn_err_t qn_cuda_loader_take(qn_cuda_loader_t *loader, void **ret_buffer);
/* Copies the first `bytes` of the buffer to device memory `to`; does not wait for it. Any thread. The buffer is the
 * loader's again, also on failure: QN_ERR_DEVICE. */
qn_err_t qn_cuda_loader_send(qn_cuda_loader_t *loader, void *buffer, void *to, size_t bytes);
/* Gives back a buffer that is not needed. */
void qn_cuda_loader_drop(qn_cuda_loader_t *loader, void *buffer);

/* Fills `count` bf16 elements of device memory `to` (8-byte aligned), uniform with mean 0 and a deviation of 0.02, from
 * splitmix64 keyed by `stream`: the values of quintet-memory's own dummy weights. Does not wait. */
qn_err_t qn_cuda_loader_invent(qn_cuda_loader_t *loader, void *to, uint64_t count, uint64_t stream);
/* Fills `count` bf16 elements with one value, given by its bits. Does not wait. */
qn_err_t qn_cuda_loader_repeat(qn_cuda_loader_t *loader, void *to, uint64_t count, uint16_t value);

/* Blocks until all that was sent and filled so far is in device memory. Failure: QN_ERR_DEVICE. */
qn_err_t qn_cuda_loader_finish(qn_cuda_loader_t *loader);

#endif
