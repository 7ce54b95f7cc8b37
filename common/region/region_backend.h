/* What a share must do for region.c, and the mapping all of them fill in. Included by region*.c only. */
#ifndef QN_COMMON_REGION_REGION_BACKEND_H
#define QN_COMMON_REGION_REGION_BACKEND_H

#include <sys/types.h>
#include <sys/un.h>

#include "common/region/region.h"

#define REGION_PAGE 4096u

/* The header page's content, behind the content of the region (content rounded up to REGION_PAGE), so that the content
 * itself begins on a huge page. Native byte order: it is read on the same host. */
typedef struct {
    char magic[8];    /* "QNREGION" */
    uint32_t version; /* 2 */
    uint32_t crc;     /* CRC-32C of the header with this field 0 */
    uint64_t id, bytes, fingerprint;
    uint32_t epoch, layout, kind, share;
    int32_t device;
    uint32_t sealed;
    uint32_t huge_pages;    /* memfd: wanted by everybody who maps it */
    uint32_t reserved;      /* 0: no byte of the header is left undefined */
    char name[QN_NAME_MAX]; /* NUL-terminated */
} region_header_t;

struct qn_mapping {
    region_header_t header;
    void *pointer;
    uint64_t total_bytes; /* content rounded up to a page, and the header page */
    int fd;               /* owner of memfd or cuda_vmm, else -1 */
    uint8_t handle[64];   /* cuda_ipc */
    uint32_t handle_count;
    uint64_t device_handle;  /* cuda_vmm: CUmemGenericAllocationHandle */
    uint64_t reserved_bytes; /* cuda_vmm: address range, a multiple of the granularity */
    char fd_socket[sizeof((struct sockaddr_un *)0)->sun_path];
    bool owner;
    pid_t pid;           /* of the process that made the mapping */
    unsigned references; /* users in this process; under the registry's mutex */
    qn_mapping_t *next;  /* registry chain of owned mappings */
};

typedef struct {
    const char *name;
    /* From header.{bytes,device} and total_bytes: pointer, fd or handle. On failure nothing is left behind. */
    qn_err_t (*create)(qn_mapping_t *mapping);
    /* From the description in header, fd (borrowed; -1 for cuda_ipc) and handle: pointer. The same. */
    qn_err_t (*import)(qn_mapping_t *mapping, int fd, bool writable);
    qn_err_t (*read_header)(const qn_mapping_t *mapping, int fd, region_header_t *ret_header);
    qn_err_t (*write_header)(const qn_mapping_t *mapping);
    /* Makes what was created zero; NULL: it is. */
    qn_err_t (*clear)(const qn_mapping_t *mapping);
    /* qn_region_probe; NULL: nothing can be missing. */
    qn_err_t (*probe)(int32_t device);
    qn_err_t (*free_bytes)(int32_t device, uint64_t *ret_bytes);
    /* qn_region_largest_bytes; NULL: QN_REGION_BYTES_MAX. */
    qn_err_t (*largest_bytes)(int32_t device, uint64_t *ret_bytes);
    /* qn_region_copy_out (`out`) and _in; NULL: host memory. */
    qn_err_t (*copy)(const qn_mapping_t *mapping, uint64_t offset, uint64_t pitch, uint64_t width, uint32_t rows,
                     void *buffer, bool out);
    /* The content is complete; NULL: nothing to protect it with. */
    qn_err_t (*seal)(qn_mapping_t *mapping);
    /* qn_region_make_huge and qn_region_huge_bytes; NULL: there is no such thing. */
    bool (*make_huge)(const qn_mapping_t *mapping, uint64_t offset, uint64_t bytes);
    uint64_t (*huge_bytes)(const qn_mapping_t *mapping);
    /* Undoes create or import; the descriptor too. */
    void (*close)(qn_mapping_t *mapping);
} region_backend_t;

extern const region_backend_t qn_region_memfd;
#ifdef QN_CUDA
extern const region_backend_t qn_region_cuda_ipc, qn_region_cuda_vmm;

/* Common to both CUDA shares (region_cuda.c). Any thread. */
qn_err_t region_cuda_read_header(const qn_mapping_t *mapping, int fd, region_header_t *ret_header);
qn_err_t region_cuda_write_header(const qn_mapping_t *mapping);
qn_err_t region_cuda_clear(const qn_mapping_t *mapping);
qn_err_t region_cuda_probe(int32_t device);
qn_err_t region_cuda_free_bytes(int32_t device, uint64_t *ret_bytes);
qn_err_t region_cuda_largest_bytes(int32_t device, uint64_t *ret_bytes);
qn_err_t region_cuda_copy(const qn_mapping_t *mapping, uint64_t offset, uint64_t pitch, uint64_t width, uint32_t rows,
                          void *buffer, bool out);
/* Makes the device's primary context current in this thread. */
qn_err_t region_cuda_enter(const qn_mapping_t *mapping);
/* Refuses more than qn_region_largest_bytes. */
qn_err_t region_cuda_check_size(const qn_mapping_t *mapping);
/* qn_fail: an allocation of `bytes` was refused; says what is free, and what to do. */
qn_err_t region_cuda_no_room(const qn_mapping_t *mapping, uint64_t bytes);
/* qn_fail with the region, the call and the runtime's text; `status` is a cudaError_t. */
qn_err_t region_cuda_failed(const qn_mapping_t *mapping, const char *call, int status);
#endif

/* Content rounded up and the header page; the caller has checked `bytes` against QN_REGION_BYTES_MAX. */
static inline uint64_t region_header_offset(uint64_t bytes)
{
    return (bytes + REGION_PAGE - 1) / REGION_PAGE * REGION_PAGE;
}

#endif
