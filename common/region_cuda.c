/* What is this?      What both CUDA shares have in common: copies, free memory, errors.
 * State owned:       none.
 * Must never:        run a kernel: regions are made and filled by copies only.
 * Read next:         region_cuda_ipc.c, region_cuda_vmm.c. */
#ifdef QN_CUDA

#include <cuda_runtime_api.h>
#include <inttypes.h>

#include "common/region_backend.h"

qn_err_t region_cuda_failed(const qn_mapping_t *mapping, const char *call, int status)
{
    cudaGetLastError(); /* a failure that is not sticky must not be seen again by the next call */
    return qn_fail(status == cudaErrorMemoryAllocation ? QN_ERR_NO_MEMORY : QN_ERR_DEVICE, "region '%s' on device %"
                   PRId32 ": %s: %s", mapping->header.name, mapping->header.device, call,
                   cudaGetErrorString((cudaError_t)status));
}

qn_err_t region_cuda_enter(const qn_mapping_t *mapping)
{
    cudaError_t status = cudaSetDevice(mapping->header.device);
    if (status == cudaSuccess) status = cudaFree(NULL); /* cudaSetDevice alone may leave the context unmade */
    return status == cudaSuccess ? QN_OK : region_cuda_failed(mapping, "cudaSetDevice", status);
}

qn_err_t region_cuda_check_size(const qn_mapping_t *mapping, uint64_t bytes)
{
    size_t free_bytes, device_bytes;
    cudaError_t status = cudaMemGetInfo(&free_bytes, &device_bytes);
    if (status != cudaSuccess) return region_cuda_failed(mapping, "cudaMemGetInfo", status);
    if (bytes > device_bytes / 4 * 3)
        return qn_fail(QN_ERR_LIMIT, "region '%s': %" PRIu64 " bytes are more than 75 %% of device %" PRId32 " (%zu)",
                       mapping->header.name, bytes, mapping->header.device, device_bytes);
    return QN_OK;
}

static uint8_t *header_address(const qn_mapping_t *mapping)
{
    return (uint8_t *)mapping->pointer + mapping->total_bytes - REGION_PAGE;
}

qn_err_t region_cuda_read_header(const qn_mapping_t *mapping, int fd, region_header_t *ret_header)
{
    (void)fd;
    cudaError_t status = cudaMemcpy(ret_header, header_address(mapping), sizeof *ret_header, cudaMemcpyDeviceToHost);
    return status == cudaSuccess ? QN_OK : region_cuda_failed(mapping, "reading the header", status);
}

qn_err_t region_cuda_write_header(const qn_mapping_t *mapping)
{
    cudaError_t status = cudaMemcpy(header_address(mapping), &mapping->header, sizeof mapping->header,
                                    cudaMemcpyHostToDevice);
    return status == cudaSuccess ? QN_OK : region_cuda_failed(mapping, "writing the header", status);
}

qn_err_t region_cuda_write(const qn_mapping_t *mapping, uint64_t offset, const void *source, uint64_t bytes)
{
    cudaError_t status = cudaSetDevice(mapping->header.device);
    if (status == cudaSuccess)
        status = cudaMemcpy((uint8_t *)mapping->pointer + offset, source, bytes, cudaMemcpyHostToDevice);
    return status == cudaSuccess ? QN_OK : region_cuda_failed(mapping, "copying to the device", status);
}

qn_err_t region_cuda_free_bytes(int32_t device, uint64_t *ret_bytes)
{
    size_t free_bytes, device_bytes;
    cudaError_t status = cudaSetDevice(device);
    if (status == cudaSuccess) status = cudaMemGetInfo(&free_bytes, &device_bytes);
    if (status != cudaSuccess)
        return qn_fail(QN_ERR_DEVICE, "compute.device %" PRId32 ": %s", device, cudaGetErrorString(status));
    *ret_bytes = free_bytes;
    return QN_OK;
}

#endif
