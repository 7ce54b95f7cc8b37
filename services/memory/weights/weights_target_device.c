/* What is this?      Weights into a device region, by way of the loader's pinned buffers.
 * State owned:       the loader, for as long as the region is filled: pinned memory is scarce.
 * Must never:        copy pageable memory to the device: the driver would copy it twice, one piece at a time.
 * Read next:         kernels/cuda/load.h. */
#ifdef QN_CUDA

#include "kernels/cuda/load.h"
#include "services/memory/weights/weights_target.h"

#define SPARE_BUFFERS 2u /* on their way to the device while every thread fills one */

static qn_err_t device_open(weights_target_t *target, unsigned threads, uint64_t piece_bytes)
{
    qn_cuda_loader_t *loader;
    qn_err_t err = qn_cuda_loader_create(target->device, threads + SPARE_BUFFERS, piece_bytes, &loader);
    if (!err) target->loader = loader;
    return err;
}

static qn_err_t device_take(weights_target_t *target, uint64_t offset, uint8_t **ret_piece)
{
    (void)offset;
    void *buffer;
    qn_err_t err = qn_cuda_loader_take(target->loader, &buffer);
    if (!err) *ret_piece = buffer;
    return err;
}

static qn_err_t device_send(weights_target_t *target, uint64_t offset, uint8_t *piece, uint64_t bytes)
{
    return qn_cuda_loader_send(target->loader, piece, target->base + offset, bytes);
}

static void device_drop(weights_target_t *target, uint8_t *piece) { qn_cuda_loader_drop(target->loader, piece); }

static qn_err_t device_fill_dummy(weights_target_t *target, uint64_t offset, uint64_t count, uint64_t stream)
{
    return qn_cuda_loader_invent(target->loader, target->base + offset, count, stream);
}

static qn_err_t device_repeat(weights_target_t *target, uint64_t offset, uint64_t count, uint16_t value)
{
    return qn_cuda_loader_repeat(target->loader, target->base + offset, count, value);
}

static qn_err_t device_finish(weights_target_t *target) { return qn_cuda_loader_finish(target->loader); }

static void device_close(weights_target_t *target)
{
    qn_cuda_loader_t *loader = target->loader;
    qn_cuda_loader_destroy(&loader);
    target->loader = NULL;
}

const weights_target_kind_t weights_target_device = {
    .open = device_open,
    .take = device_take,
    .send = device_send,
    .drop = device_drop,
    .fill_dummy = device_fill_dummy,
    .repeat = device_repeat,
    .finish = device_finish,
    .close = device_close,
};

#endif
