/* Regions: large pieces of memory that one daemon (memory) owns and others map. Only a small description (qn_region_t,
 * the generated wire struct) crosses a service boundary, never the bytes.
 *
 * One interface over three shares (files region_memfd.c, region_cuda_ipc.c, region_cuda_vmm.c):
 *   memfd      host memory; the descriptor travels over the fd socket (fd_socket.h)
 *   cuda_ipc   cudaMalloc; a 64-byte handle travels in the description. A dead owner's handle cannot be opened again
 *   cuda_vmm   cuMemCreate; a descriptor travels over the fd socket and keeps the bytes alive when its maker is dead
 *
 * Behind the content of every region stands a header page: magic, id, kind, byte count, epoch, layout, fingerprint,
 * name, CRC. An importer compares it with the description before it hands out a pointer and refuses any difference.
 * In the process that made a region, import gives the same pointer again (composition over inproc): a small
 * process-wide table, guarded by a mutex, knows what this process owns. All functions may be called from any thread;
 * one mapping is used by one thread at a time. */
#ifndef QN_COMMON_REGION_REGION_H
#define QN_COMMON_REGION_REGION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/limits.h"
#include "qn_messages.h"

/* Layout numbers, hundred per kind; a change of the meaning of the bytes takes the next number.
 *   weights      tensors at 64-byte aligned offsets, places and formats in ModelDescription (weight_layout.h)
 *   kv           [L layers, 2 (K, V), B blocks, P tokens, K kv heads, D head dim] of kv_dtype, row-major (kernels.h)
 *   others       private to compute, which reserves them */
#define QN_LAYOUT_WEIGHTS 102
#define QN_LAYOUT_KV 201
#define QN_LAYOUT_ACTIVATIONS 301
#define QN_LAYOUT_STEP_IO 402
#define QN_LAYOUT_STATE 501
#define QN_LAYOUT_TAP 601
/* The layout number of `kind` in this build. */
uint32_t qn_region_layout(qn_region_kind_t kind);

#define QN_REGION_ALIGN 64 /* bytes; tensors in a region begin at multiples: a cache line, an AVX-512 vector */
#define QN_REGION_BYTES_MAX (UINT64_C(1) << 46)

/* Bytes mapped in this process: an owner's or an importer's. */
typedef struct qn_mapping qn_mapping_t;

typedef struct {
    uint64_t id; /* unique in `epoch`, not 0 */
    qn_region_kind_t kind;
    qn_share_t share;
    int32_t device;        /* CUDA ordinal; -1 for memfd */
    uint64_t bytes;        /* 1 .. QN_REGION_BYTES_MAX */
    uint32_t epoch;        /* of the owner */
    const char *name;      /* at most 63 bytes */
    const char *fd_socket; /* where importers ask for the descriptor; NULL or "": nowhere (inproc only) */
    bool huge_pages;       /* memfd: ask the system for them, here and in every importer; false: forbid them */
} qn_region_spec_t;

/* Can regions of this share be made on this device? CUDA: makes the device's context, which takes a tenth of a second,
 * and says what is missing and what to do: QN_ERR_UNSUPPORTED (this build has no CUDA, this machine no driver, an old
 * one or no GPU), QN_ERR_CONFIG (no device of this number), QN_ERR_DEVICE (it is another's alone, or broken),
 * QN_ERR_NO_MEMORY (nothing of it is free). */
qn_err_t qn_region_probe(qn_share_t share, int32_t device);
/* Makes a region of zeroed memory. memfd: the size is sealed; pages are allocated when first touched (so they land on
 * the toucher's NUMA node). QN_ERR_UNSUPPORTED: a CUDA share in a build without CUDA. QN_ERR_LIMIT: more than
 * qn_region_largest_bytes; QN_ERR_NO_MEMORY: the text says how much is free. Blocks until a device's memory is zero
 * (1 s for 3 TB). Returns owned. */
qn_err_t qn_region_create(const qn_region_spec_t *spec, qn_mapping_t **ret_mapping);
/* Allocates the whole huge pages of [offset, offset + bytes) as such, also where the system makes none by itself for
 * shared memory (shmem_enabled=never): a region that is about to be filled reads faster ever after. Does what it can,
 * nothing for a region that does not want them or is not host memory. May block for memory to be tidied up: returns
 * false when that took longer than it is worth, and further calls should not be made. Any thread. Owner only. */
bool qn_region_make_huge(const qn_mapping_t *mapping, uint64_t offset, uint64_t bytes);
/* Bytes that this process maps by huge pages at the moment; 0 for device memory. Reads /proc. */
uint64_t qn_region_huge_bytes(const qn_mapping_t *mapping);
/* The content is complete and will not change: writes the fingerprint into the header; memfd: no new writable mapping
 * can be made by anyone and the owner's becomes read-only. Owner only, once. */
qn_err_t qn_region_seal(qn_mapping_t *mapping, uint64_t fingerprint);
/* Fills `ret_wire`; its texts and handle are views of the mapping. Owner only. */
void qn_region_describe(const qn_mapping_t *mapping, qn_region_t *ret_wire);
/* The descriptor to hand out (borrowed), -1 for cuda_ipc. Owner only. */
int qn_region_fd(const qn_mapping_t *mapping);
/* A memfd region that outlived its owner (the service manager kept its descriptor): maps it again with the identity in
 * its header, and owns it. Takes `fd` on success. `fd_socket` as in the spec. QN_ERR_INVALID: not a region of this
 * build's layout. */
qn_err_t qn_region_adopt(int fd, const char *fd_socket, qn_mapping_t **ret_mapping);
/* The same for a cuda_vmm region, whose descriptor does not tell how large it is or where: `device` and `bytes` (its
 * qn_region_bytes) must be known. */
qn_err_t qn_region_adopt_device(int fd, int32_t device, uint64_t bytes, const char *fd_socket,
                                qn_mapping_t **ret_mapping);

/* Maps the region `wire` describes. `writable` false: read-only where the share can (memfd, cuda_vmm; not cuda_ipc, and
 * not in the owner's own process, whose mapping is shared). Everything is checked first (see above), the layout against
 * this build's. Blocks at most 2 s, for the fd socket. QN_ERR_INVALID: refused; QN_ERR_NOT_FOUND: the owner does not
 * have it (any more); QN_ERR_TIMEOUT. Returns owned. */
qn_err_t qn_region_import(const qn_region_t *wire, bool writable, qn_mapping_t **ret_mapping);

/* Unmaps; the last user in this process frees. Accepts NULL. Bytes of a memfd or cuda_vmm region live as long as
 * anybody maps them or holds the descriptor. */
void qn_region_close(qn_mapping_t **mapping);

/* Memory that new regions of this share can still get without pushing others out: what the host (or the control group,
 * if that is less) has available, or the free memory of the device. */
qn_err_t qn_region_free_bytes(qn_share_t share, int32_t device, uint64_t *ret_bytes);
/* The size that no region of this share may exceed, however much is free: 75 % of a device (others need room, and slabs
 * stay few and large), QN_REGION_BYTES_MAX on the host. */
qn_err_t qn_region_largest_bytes(qn_share_t share, int32_t device, uint64_t *ret_bytes);

/* Copies `rows` pieces of `width` bytes, `pitch` bytes apart in the region from `offset` on, from or to a dense buffer of
 * this process. They lie inside. Blocks until it is done. QN_ERR_DEVICE. Any thread, owner or importer. */
qn_err_t qn_region_copy_out(const qn_mapping_t *mapping, uint64_t offset, uint64_t pitch, uint64_t width, uint32_t rows,
                            void *buffer);
qn_err_t qn_region_copy_in(const qn_mapping_t *mapping, uint64_t offset, uint64_t pitch, uint64_t width, uint32_t rows,
                           const void *buffer);

/* Host pointer (memfd) or device pointer (CUDA); page-aligned. */
void *qn_region_pointer(const qn_mapping_t *mapping);
uint64_t qn_region_bytes(const qn_mapping_t *mapping);
uint64_t qn_region_id(const qn_mapping_t *mapping);
uint32_t qn_region_epoch(const qn_mapping_t *mapping);
uint64_t qn_region_fingerprint(const qn_mapping_t *mapping);
qn_region_kind_t qn_region_kind(const qn_mapping_t *mapping);
qn_share_t qn_region_share(const qn_mapping_t *mapping);
int32_t qn_region_device(const qn_mapping_t *mapping);
const char *qn_region_name(const qn_mapping_t *mapping);
bool qn_region_sealed(const qn_mapping_t *mapping);

#endif
