/* What is this?      Pinned buffers between files and device memory, several on their way at once.
 * State owned:       the buffers, one CUDA stream, one event per buffer.
 * Must never:        hand out a buffer that a copy still reads.
 * Read next:         load.h, fill.cu. */
#include "kernels/cuda/load.h"

#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

#include "common/assert.h"
#include "kernels/cuda/fill.h"

typedef enum { BUFFER_FREE, BUFFER_TAKEN, BUFFER_SENT } buffer_state_t;

typedef struct {
    void *memory;
    cudaEvent_t done; /* of its copy */
    buffer_state_t state;
    uint64_t sent; /* the loader's count when it was sent: the least is done first */
} buffer_t;

struct qn_cuda_loader {
    int device;
    cudaStream_t stream;
    buffer_t buffers[QN_CUDA_LOADER_BUFFERS_MAX];
    unsigned count;
    pthread_mutex_t mutex;   /* guards states and `sent` */
    pthread_cond_t returned; /* a taken buffer came back */
    uint64_t sent;
};

static qn_err_t fail(cudaError_t error, const char *what)
{
    qn_err_t code = error == cudaErrorMemoryAllocation ? QN_ERR_NO_MEMORY : QN_ERR_DEVICE;
    return qn_fail(code, "%s: %s (%s)", what, cudaGetErrorString(error), cudaGetErrorName(error));
}

qn_err_t qn_cuda_loader_create(int device, unsigned buffers, size_t buffer_bytes, qn_cuda_loader_t **ret_loader)
{
    QN_ASSERT(buffers >= 1 && buffers <= QN_CUDA_LOADER_BUFFERS_MAX);
    qn_cuda_loader_t *self = calloc(1, sizeof *self);
    if (!self) return qn_fail(QN_ERR_NO_MEMORY, "no memory for a loader");
    self->device = device;
    pthread_mutex_init(&self->mutex, NULL);
    pthread_cond_init(&self->returned, NULL);
    cudaError_t error = cudaSetDevice(device);
    if (!error) error = cudaStreamCreateWithFlags(&self->stream, cudaStreamNonBlocking);
    for (; self->count < buffers && !error; self->count++) {
        buffer_t *buffer = &self->buffers[self->count];
        error = cudaMallocHost(&buffer->memory, buffer_bytes);
        if (!error) error = cudaEventCreateWithFlags(&buffer->done, cudaEventDisableTiming | cudaEventBlockingSync);
    }
    if (error) {
        qn_cuda_loader_destroy(&self);
        return fail(error, "pinned host memory for loading the weights");
    }
    *ret_loader = self;
    return QN_OK;
}

void qn_cuda_loader_destroy(qn_cuda_loader_t **loader)
{
    qn_cuda_loader_t *self = *loader;
    if (!self) return;
    cudaSetDevice(self->device);
    if (self->stream) cudaStreamSynchronize(self->stream);
    for (unsigned i = 0; i < self->count; i++) {
        if (self->buffers[i].done) cudaEventDestroy(self->buffers[i].done);
        cudaFreeHost(self->buffers[i].memory);
    }
    if (self->stream) cudaStreamDestroy(self->stream);
    pthread_cond_destroy(&self->returned);
    pthread_mutex_destroy(&self->mutex);
    free(self);
    *loader = NULL;
}

/* The free one, or else the one that was sent first; NULL: all are taken. */
static buffer_t *find_buffer(qn_cuda_loader_t *self)
{
    buffer_t *best = NULL;
    for (unsigned i = 0; i < self->count; i++) {
        buffer_t *buffer = &self->buffers[i];
        if (buffer->state == BUFFER_FREE) return buffer;
        if (buffer->state == BUFFER_SENT && (!best || buffer->sent < best->sent)) best = buffer;
    }
    return best;
}

qn_err_t qn_cuda_loader_take(qn_cuda_loader_t *loader, void **ret_buffer)
{
    buffer_t *buffer;
    pthread_mutex_lock(&loader->mutex);
    while (!(buffer = find_buffer(loader)))
        pthread_cond_wait(&loader->returned, &loader->mutex);
    bool sent = buffer->state == BUFFER_SENT;
    buffer->state = BUFFER_TAKEN;
    pthread_mutex_unlock(&loader->mutex);
    cudaError_t error = sent ? cudaSetDevice(loader->device) : cudaSuccess;
    if (sent && !error) error = cudaEventSynchronize(buffer->done);
    if (error) {
        qn_cuda_loader_drop(loader, buffer->memory);
        return fail(error, "copy of weights to the device");
    }
    *ret_buffer = buffer->memory;
    return QN_OK;
}

static buffer_t *buffer_of(qn_cuda_loader_t *self, const void *memory)
{
    for (unsigned i = 0; i < self->count; i++)
        if (self->buffers[i].memory == memory) return &self->buffers[i];
    QN_ASSERT(!"a buffer of this loader");
    return NULL;
}

static void give_back(qn_cuda_loader_t *self, buffer_t *buffer, buffer_state_t state)
{
    pthread_mutex_lock(&self->mutex);
    QN_ASSERT(buffer->state == BUFFER_TAKEN);
    buffer->state = state;
    buffer->sent = self->sent++;
    pthread_cond_signal(&self->returned);
    pthread_mutex_unlock(&self->mutex);
}

qn_err_t qn_cuda_loader_send(qn_cuda_loader_t *loader, void *buffer, void *to, size_t bytes)
{
    buffer_t *own = buffer_of(loader, buffer);
    cudaError_t error = cudaSetDevice(loader->device);
    if (!error) error = cudaMemcpyAsync(to, buffer, bytes, cudaMemcpyHostToDevice, loader->stream);
    if (!error) error = cudaEventRecord(own->done, loader->stream);
    give_back(loader, own, error ? BUFFER_FREE : BUFFER_SENT);
    return error ? fail(error, "copy of weights to the device") : QN_OK;
}

void qn_cuda_loader_drop(qn_cuda_loader_t *loader, void *buffer)
{
    give_back(loader, buffer_of(loader, buffer), BUFFER_FREE);
}

qn_err_t qn_cuda_loader_invent(qn_cuda_loader_t *loader, void *to, uint64_t count, uint64_t stream)
{
    cudaError_t error = cudaSetDevice(loader->device);
    if (!error) error = qn_cuda_fill_invented(loader->stream, to, count, stream);
    return error ? fail(error, "dummy weights") : QN_OK;
}

qn_err_t qn_cuda_loader_repeat(qn_cuda_loader_t *loader, void *to, uint64_t count, uint16_t value)
{
    cudaError_t error = cudaSetDevice(loader->device);
    if (!error) error = qn_cuda_fill_repeated(loader->stream, to, count, value);
    return error ? fail(error, "dummy weights") : QN_OK;
}

qn_err_t qn_cuda_loader_finish(qn_cuda_loader_t *loader)
{
    cudaError_t error = cudaSetDevice(loader->device);
    if (!error) error = cudaStreamSynchronize(loader->stream);
    return error ? fail(error, "weights on their way to the device") : QN_OK;
}
