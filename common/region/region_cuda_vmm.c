/* What is this?      Regions in device memory shared by descriptor: a physical allocation (cuMemCreate) whose POSIX fd
 *                    any process may map, and which lives as long as anybody holds the fd, CUDA user or not.
 * State owned:       `driver`, the entry points of the driver, found once; the rest is in the mapping object.
 * Must never:        link against libcuda: a build with CUDA must start on a machine without a driver and say so.
 * Read next:         CUDA Driver API, "Virtual Memory Management". */
#ifdef QN_CUDA

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "common/region/region_backend.h"

#define DRIVER_API 12000u /* CUDA version whose signatures are used: the oldest driver that is supported */

static struct {
    __typeof__(&cuMemGetAllocationGranularity) get_granularity;
    __typeof__(&cuMemCreate) create;
    __typeof__(&cuMemRelease) release;
    __typeof__(&cuMemExportToShareableHandle) export_handle;
    __typeof__(&cuMemImportFromShareableHandle) import_handle;
    __typeof__(&cuMemAddressReserve) reserve;
    __typeof__(&cuMemAddressFree) unreserve;
    __typeof__(&cuMemMap) map;
    __typeof__(&cuMemUnmap) unmap;
    __typeof__(&cuMemSetAccess) set_access;
    __typeof__(&cuGetErrorString) error_string;
    const char *missing; /* the first entry point that was not found */
} driver;

static pthread_once_t driver_once = PTHREAD_ONCE_INIT;

static void find_driver(void)
{
    const struct {
        const char *name;
        void *slot;
    } entries[] = {
        {"cuMemGetAllocationGranularity", &driver.get_granularity},
        {"cuMemCreate", &driver.create},
        {"cuMemRelease", &driver.release},
        {"cuMemExportToShareableHandle", &driver.export_handle},
        {"cuMemImportFromShareableHandle", &driver.import_handle},
        {"cuMemAddressReserve", &driver.reserve},
        {"cuMemAddressFree", &driver.unreserve},
        {"cuMemMap", &driver.map},
        {"cuMemUnmap", &driver.unmap},
        {"cuMemSetAccess", &driver.set_access},
        {"cuGetErrorString", &driver.error_string},
    };
    for (size_t i = 0; i < sizeof entries / sizeof *entries; i++) {
        enum cudaDriverEntryPointQueryResult result;
        void *entry = NULL;
        cudaError_t status =
            cudaGetDriverEntryPointByVersion(entries[i].name, &entry, DRIVER_API, cudaEnableDefault, &result);
        if (status != cudaSuccess || result != cudaDriverEntryPointSuccess) {
            driver.missing = entries[i].name;
            return;
        }
        memcpy(entries[i].slot, &entry, sizeof entry);
    }
}

static qn_err_t driver_failed(const qn_mapping_t *mapping, const char *call, CUresult result)
{
    const char *text = "unknown error";
    driver.error_string(result, &text);
    return qn_fail(result == CUDA_ERROR_OUT_OF_MEMORY ? QN_ERR_NO_MEMORY : QN_ERR_DEVICE,
                   "region '%s' on device %" PRId32 ": %s: %s", mapping->header.name, mapping->header.device, call,
                   text);
}

static qn_err_t vmm_probe(int32_t device)
{
    qn_err_t err = region_cuda_probe(device);
    if (err) return err;
    pthread_once(&driver_once, find_driver);
    if (driver.missing)
        return qn_fail(QN_ERR_UNSUPPORTED,
                       "memory.share cuda_vmm: the NVIDIA driver has no %s: update it, or set "
                       "memory.share to cuda_ipc",
                       driver.missing);
    return QN_OK;
}

static CUmemAllocationProp allocation_properties(const qn_mapping_t *mapping)
{
    return (CUmemAllocationProp){
        .type = CU_MEM_ALLOCATION_TYPE_PINNED,
        .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
        .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = mapping->header.device},
    };
}

static qn_err_t round_to_granularity(qn_mapping_t *mapping)
{
    size_t granularity;
    CUmemAllocationProp properties = allocation_properties(mapping);
    CUresult result = driver.get_granularity(&granularity, &properties, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED);
    if (result != CUDA_SUCCESS) return driver_failed(mapping, "cuMemGetAllocationGranularity", result);
    mapping->reserved_bytes = (mapping->total_bytes + granularity - 1) / granularity * granularity;
    return QN_OK;
}

/* Gives the allocation an address; on failure nothing is left mapped. */
static qn_err_t map_allocation(qn_mapping_t *mapping, bool writable)
{
    CUdeviceptr address;
    CUmemAccessDesc access = {
        .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = mapping->header.device},
        .flags = writable ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE : CU_MEM_ACCESS_FLAGS_PROT_READ,
    };
    CUresult result = driver.reserve(&address, mapping->reserved_bytes, 0, 0, 0);
    if (result != CUDA_SUCCESS) return driver_failed(mapping, "cuMemAddressReserve", result);
    result = driver.map(address, mapping->reserved_bytes, 0, mapping->device_handle, 0);
    if (result != CUDA_SUCCESS) {
        driver.unreserve(address, mapping->reserved_bytes);
        return driver_failed(mapping, "cuMemMap", result);
    }
    result = driver.set_access(address, mapping->reserved_bytes, &access, 1);
    if (result != CUDA_SUCCESS) {
        driver.unmap(address, mapping->reserved_bytes);
        driver.unreserve(address, mapping->reserved_bytes);
        return driver_failed(mapping, "cuMemSetAccess", result);
    }
    mapping->pointer = (void *)(uintptr_t)address;
    return QN_OK;
}

static qn_err_t vmm_create(qn_mapping_t *mapping)
{
    CUmemGenericAllocationHandle handle;
    CUmemAllocationProp properties = allocation_properties(mapping);
    qn_err_t err = vmm_probe(mapping->header.device);
    if (!err) err = round_to_granularity(mapping);
    if (!err) err = region_cuda_check_size(mapping);
    if (err) return err;
    CUresult result = driver.create(&handle, mapping->reserved_bytes, &properties, 0);
    if (result == CUDA_ERROR_OUT_OF_MEMORY) return region_cuda_no_room(mapping, mapping->reserved_bytes);
    if (result != CUDA_SUCCESS) return driver_failed(mapping, "cuMemCreate", result);
    mapping->device_handle = handle;
    result = driver.export_handle(&mapping->fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
    if (result != CUDA_SUCCESS) {
        driver.release(handle);
        mapping->fd = -1;
        return driver_failed(mapping, "cuMemExportToShareableHandle", result);
    }
    fcntl(mapping->fd, F_SETFD, FD_CLOEXEC); /* a child that inherited it would keep the bytes alive */
    err = map_allocation(mapping, true);
    if (err) {
        close(mapping->fd);
        mapping->fd = -1;
        driver.release(handle);
    }
    return err;
}

static qn_err_t vmm_import(qn_mapping_t *mapping, int fd, bool writable)
{
    CUmemGenericAllocationHandle handle;
    qn_err_t err = vmm_probe(mapping->header.device);
    if (!err) err = round_to_granularity(mapping);
    if (err) return err;
    CUresult result = driver.import_handle(&handle, (void *)(uintptr_t)fd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
    if (result != CUDA_SUCCESS) return driver_failed(mapping, "cuMemImportFromShareableHandle", result);
    mapping->device_handle = handle;
    err = map_allocation(mapping, writable);
    if (err) driver.release(handle);
    return err;
}

static void vmm_close(qn_mapping_t *mapping)
{
    CUdeviceptr address = (CUdeviceptr)(uintptr_t)mapping->pointer;
    cudaSetDevice(mapping->header.device);
    cudaDeviceSynchronize(); /* nothing may still use the range */
    driver.unmap(address, mapping->reserved_bytes);
    driver.unreserve(address, mapping->reserved_bytes);
    driver.release(mapping->device_handle);
    if (mapping->fd >= 0) close(mapping->fd);
}

const region_backend_t qn_region_cuda_vmm = {
    .name = "cuda_vmm",
    .create = vmm_create,
    .import = vmm_import,
    .read_header = region_cuda_read_header,
    .write_header = region_cuda_write_header,
    .clear = region_cuda_clear,
    .copy = region_cuda_copy,
    .probe = vmm_probe,
    .free_bytes = region_cuda_free_bytes,
    .largest_bytes = region_cuda_largest_bytes,
    .close = vmm_close,
};

#endif
