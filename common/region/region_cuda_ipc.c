/* What is this?      Regions in device memory shared by CUDA IPC: cudaMalloc and a 64-byte handle in the description.
 * State owned:       none; the allocation belongs to the owner's mapping object.
 * Must never:        outlive its maker's promise: when the owner is dead, what is mapped stays readable, but its handle
 *                    can never be opened again, so a new owner must load anew.
 * Read next:         CUDA Runtime API, "Device Management", cudaIpcGetMemHandle. */
#ifdef QN_CUDA

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <inttypes.h>
#include <string.h>

#include "common/region/region_backend.h"

/* cudaMalloc carves small allocations from common 2 MiB pieces, and an IPC handle opens the whole piece. */
#define PIECE (UINT64_C(2) << 20)

static qn_err_t ipc_create(qn_mapping_t *mapping)
{
    uint64_t bytes = (mapping->total_bytes + PIECE - 1) / PIECE * PIECE;
    cudaIpcMemHandle_t handle;
    _Static_assert(sizeof handle == sizeof mapping->handle, "an IPC handle has 64 bytes");
    qn_err_t err = region_cuda_enter(mapping);
    if (!err) err = region_cuda_check_size(mapping);
    if (err) return err;
    cudaError_t status = cudaMalloc(&mapping->pointer, bytes);
    if (status == cudaErrorMemoryAllocation) return region_cuda_no_room(mapping, bytes);
    if (status != cudaSuccess) return region_cuda_failed(mapping, "cudaMalloc", status);
    if ((status = cudaIpcGetMemHandle(&handle, mapping->pointer)) != cudaSuccess) {
        err = region_cuda_failed(mapping, "cudaIpcGetMemHandle", status);
        cudaFree(mapping->pointer);
        return err;
    }
    memcpy(mapping->handle, &handle, sizeof handle);
    mapping->handle_count = sizeof handle;
    return QN_OK;
}

/* Is the open allocation as large as the description says? Reading a header beyond its end would be a sticky error. */
static qn_err_t check_extent(qn_mapping_t *mapping)
{
    __typeof__(&cuMemGetAddressRange) get_range = NULL;
    enum cudaDriverEntryPointQueryResult result;
    CUdeviceptr base;
    size_t bytes = 0;
    cudaError_t status = cudaGetDriverEntryPointByVersion("cuMemGetAddressRange", (void **)&get_range, 12000,
                                                          cudaEnableDefault, &result);
    if (status != cudaSuccess || !get_range)
        return region_cuda_failed(mapping, "finding cuMemGetAddressRange", (int)status);
    if (get_range(&base, &bytes, (CUdeviceptr)(uintptr_t)mapping->pointer) != CUDA_SUCCESS)
        return qn_fail(QN_ERR_DEVICE, "the region's size cannot be found");
    if (bytes < mapping->total_bytes)
        return qn_fail(QN_ERR_INVALID, "the region has %zu bytes in all, its description means %" PRIu64, bytes,
                       mapping->total_bytes);
    return QN_OK;
}

/* IPC mappings are always writable; `writable` false is the importer's promise. */
static qn_err_t ipc_import(qn_mapping_t *mapping, int fd, bool writable)
{
    (void)fd;
    (void)writable;
    cudaIpcMemHandle_t handle;
    if (mapping->handle_count != sizeof handle)
        return qn_fail(QN_ERR_INVALID, "the region's CUDA IPC handle has %" PRIu32 " bytes, not %zu",
                       mapping->handle_count, sizeof handle);
    memcpy(&handle, mapping->handle, sizeof handle);
    qn_err_t err = region_cuda_enter(mapping);
    if (err) return err;
    cudaError_t status = cudaIpcOpenMemHandle(&mapping->pointer, handle, cudaIpcMemLazyEnablePeerAccess);
    if (status != cudaSuccess) return region_cuda_failed(mapping, "cudaIpcOpenMemHandle (is the owner alive?)", status);
    err = check_extent(mapping);
    if (err) cudaIpcCloseMemHandle(mapping->pointer);
    return err;
}

static void ipc_close(qn_mapping_t *mapping)
{
    cudaSetDevice(mapping->header.device);
    if (mapping->owner)
        cudaFree(mapping->pointer);
    else
        cudaIpcCloseMemHandle(mapping->pointer);
}

const region_backend_t qn_region_cuda_ipc = {
    .name = "cuda_ipc",
    .create = ipc_create,
    .import = ipc_import,
    .read_header = region_cuda_read_header,
    .write_header = region_cuda_write_header,
    .clear = region_cuda_clear,
    .copy = region_cuda_copy,
    .probe = region_cuda_probe,
    .free_bytes = region_cuda_free_bytes,
    .largest_bytes = region_cuda_largest_bytes,
    .close = ipc_close,
};

#endif
