/* What is this?      What both CUDA shares have in common: whether the device can be used, copies, free memory, errors.
 * State owned:       none.
 * Must never:        run a kernel: regions are made and filled by copies only. Count on the thread that calls having
 *                    chosen the device, or synchronise with streams other than its own.
 * Read next:         region_cuda_ipc.c, region_cuda_vmm.c. */
#ifdef QN_CUDA

#include <cuda_runtime_api.h>
#include <inttypes.h>

#include "common/region/region_backend.h"

#define PIECE (UINT64_C(2) << 20) /* what a device's memory is given out in */

/* ---- errors ---- */

qn_err_t region_cuda_failed(const qn_mapping_t *mapping, const char *call, int status)
{
    cudaGetLastError(); /* a failure that is not sticky must not be seen again by the next call */
    return qn_fail(status == cudaErrorMemoryAllocation ? QN_ERR_NO_MEMORY : QN_ERR_DEVICE,
                   "region '%s' on device %" PRId32 ": %s: %s", mapping->header.name, mapping->header.device, call,
                   cudaGetErrorString((cudaError_t)status));
}

qn_err_t region_cuda_no_room(const qn_mapping_t *mapping, uint64_t bytes)
{
    size_t free_bytes = 0, device_bytes = 0;
    cudaGetLastError();
    cudaMemGetInfo(&free_bytes, &device_bytes);
    return qn_fail(QN_ERR_NO_MEMORY,
                   "region '%s' needs %" PRIu64 " bytes, and %zu of device %" PRId32 "'s %zu are "
                   "free: end what else uses it (nvidia-smi), lower memory.kv_bytes, or choose a smaller model or "
                   "another compute.device",
                   mapping->header.name, bytes, free_bytes, mapping->header.device, device_bytes);
}

/* The runtime cannot even start. Without a driver its version is 0. */
static qn_err_t driver_unfit(void)
{
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (driver == 0)
        return qn_fail(QN_ERR_UNSUPPORTED, "compute.backend is cuda, but this machine has no NVIDIA driver "
                                           "(libcuda.so.1 is not there): install it, or set compute.backend to cpu");
    return qn_fail(QN_ERR_UNSUPPORTED,
                   "the NVIDIA driver is too old: it supports CUDA %d.%d, this build needs %d.%d; "
                   "update the driver",
                   driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
}

/* What a person can do about it, where there is one thing to do. */
static qn_err_t device_unfit(int32_t device, cudaError_t status)
{
    int count = 0;
    cudaGetLastError();
    switch (status) {
    case cudaErrorInsufficientDriver: return driver_unfit();
    case cudaErrorNoDevice:
        return qn_fail(QN_ERR_UNSUPPORTED, "compute.backend is cuda, but the driver shows no GPU: look at nvidia-smi "
                                           "and at CUDA_VISIBLE_DEVICES, or set compute.backend to cpu");
    case cudaErrorInvalidDevice:
        cudaGetDeviceCount(&count);
        return qn_fail(QN_ERR_CONFIG, "compute.device is %" PRId32 ", and the driver shows %d GPU%s, numbered from 0",
                       device, count, count == 1 ? "" : "s");
    case cudaErrorDevicesUnavailable:
        return qn_fail(QN_ERR_DEVICE,
                       "device %" PRId32 " lets no further process in: another one has it for itself "
                       "alone; end that one, or allow several (nvidia-smi -i %" PRId32 " -c DEFAULT), which memory and "
                       "compute need as two processes",
                       device, device);
    case cudaErrorInitializationError:
        return qn_fail(QN_ERR_DEVICE, "the NVIDIA driver cannot start: /dev/nvidia* may be missing or forbidden, or "
                                      "its kernel module is of another version than libcuda.so.1 (nvidia-smi tells)");
    case cudaErrorMemoryAllocation:
        return qn_fail(QN_ERR_NO_MEMORY,
                       "device %" PRId32 " has not even the memory for a context free: end what "
                       "else uses it (nvidia-smi), or choose another compute.device",
                       device);
    default:
        return qn_fail(QN_ERR_DEVICE, "device %" PRId32 " cannot be used: %s (%s); look at nvidia-smi", device,
                       cudaGetErrorString(status), cudaGetErrorName(status));
    }
}

/* ---- the device ---- */

qn_err_t region_cuda_probe(int32_t device)
{
    int count;
    cudaError_t status = cudaGetDeviceCount(&count);
    if (status == cudaSuccess && count == 0) status = cudaErrorNoDevice;
    if (status == cudaSuccess) status = cudaSetDevice(device);
    if (status == cudaSuccess) status = cudaFree(NULL); /* cudaSetDevice alone may leave the context unmade */
    return status == cudaSuccess ? QN_OK : device_unfit(device, status);
}

qn_err_t region_cuda_enter(const qn_mapping_t *mapping) { return region_cuda_probe(mapping->header.device); }

static qn_err_t memory_info(int32_t device, size_t *ret_free_bytes, size_t *ret_device_bytes)
{
    qn_err_t err = region_cuda_probe(device);
    if (err) return err;
    cudaError_t status = cudaMemGetInfo(ret_free_bytes, ret_device_bytes);
    return status == cudaSuccess ? QN_OK : device_unfit(device, status);
}

qn_err_t region_cuda_free_bytes(int32_t device, uint64_t *ret_bytes)
{
    size_t free_bytes, device_bytes;
    qn_err_t err = memory_info(device, &free_bytes, &device_bytes);
    if (!err) *ret_bytes = free_bytes;
    return err;
}

qn_err_t region_cuda_largest_bytes(int32_t device, uint64_t *ret_bytes)
{
    size_t free_bytes, device_bytes;
    qn_err_t err = memory_info(device, &free_bytes, &device_bytes);
    if (!err) *ret_bytes = device_bytes / 4 * 3 / PIECE * PIECE - REGION_PAGE;
    return err;
}

qn_err_t region_cuda_check_size(const qn_mapping_t *mapping)
{
    uint64_t largest;
    qn_err_t err = region_cuda_largest_bytes(mapping->header.device, &largest);
    if (!err && mapping->header.bytes > largest)
        err = qn_fail(QN_ERR_LIMIT,
                      "region '%s': %" PRIu64 " bytes are more than 75 %% of device %" PRId32 " (%" PRIu64
                      "): lower memory.kv_bytes, or choose a smaller model or another compute.device",
                      mapping->header.name, mapping->header.bytes, mapping->header.device, largest);
    return err;
}

/* ---- content ---- */

static uint8_t *header_address(const qn_mapping_t *mapping)
{
    return (uint8_t *)mapping->pointer + mapping->total_bytes - REGION_PAGE;
}

/* Copies of pageable memory and fills may still run when their call returns: what was asked for is there after this. */
static qn_err_t finish(const qn_mapping_t *mapping, const char *what, cudaError_t status)
{
    if (status == cudaSuccess) status = cudaStreamSynchronize(cudaStreamPerThread);
    return status == cudaSuccess ? QN_OK : region_cuda_failed(mapping, what, (int)status);
}

qn_err_t region_cuda_clear(const qn_mapping_t *mapping)
{
    cudaError_t status = cudaSetDevice(mapping->header.device);
    if (status == cudaSuccess) status = cudaMemsetAsync(mapping->pointer, 0, mapping->total_bytes, cudaStreamPerThread);
    return finish(mapping, "clearing it", status);
}

qn_err_t region_cuda_copy(const qn_mapping_t *mapping, uint64_t offset, uint64_t pitch, uint64_t width, uint32_t rows,
                          void *buffer, bool out)
{
    uint8_t *there = (uint8_t *)mapping->pointer + offset;
    cudaError_t status = cudaSetDevice(mapping->header.device);
    if (status == cudaSuccess)
        status = out ? cudaMemcpy2DAsync(buffer, width, there, pitch, width, rows, cudaMemcpyDeviceToHost,
                                         cudaStreamPerThread)
                     : cudaMemcpy2DAsync(there, pitch, buffer, width, width, rows, cudaMemcpyHostToDevice,
                                         cudaStreamPerThread);
    return finish(mapping, out ? "copying out of it" : "copying into it", status);
}

qn_err_t region_cuda_read_header(const qn_mapping_t *mapping, int fd, region_header_t *ret_header)
{
    (void)fd;
    cudaError_t status = cudaSetDevice(mapping->header.device);
    if (status == cudaSuccess)
        status = cudaMemcpyAsync(ret_header, header_address(mapping), sizeof *ret_header, cudaMemcpyDeviceToHost,
                                 cudaStreamPerThread);
    return finish(mapping, "reading the header", status);
}

qn_err_t region_cuda_write_header(const qn_mapping_t *mapping)
{
    cudaError_t status = cudaSetDevice(mapping->header.device);
    if (status == cudaSuccess)
        status = cudaMemcpyAsync(header_address(mapping), &mapping->header, sizeof mapping->header,
                                 cudaMemcpyHostToDevice, cudaStreamPerThread);
    return finish(mapping, "writing the header", status);
}

#endif
