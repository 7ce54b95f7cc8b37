/* What is this?      The region interface: checks, the header page, and the table of what this process owns.
 * State owned:       `registry`, the process-wide list of owned mappings, under its mutex.
 * Must never:        hand out a pointer to bytes whose header does not match their description.
 * Read next:         region_backend.h, then region_memfd.c as the plainest share. */
#include "common/region/region.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/assert.h"
#include "common/checksum.h"
#include "common/region/fd_socket.h"
#include "common/region/region_backend.h"

#define HEADER_MAGIC "QNREGION"
#define HEADER_VERSION 3
#define FD_TIMEOUT_MS 2000

static struct {
    pthread_mutex_t mutex;
    qn_mapping_t *owned;
} registry = {.mutex = PTHREAD_MUTEX_INITIALIZER};

uint32_t qn_region_layout(qn_region_kind_t kind)
{
    switch (kind) {
    case QN_REGION_KIND_WEIGHTS: return QN_LAYOUT_WEIGHTS;
    case QN_REGION_KIND_KV: return QN_LAYOUT_KV;
    case QN_REGION_KIND_ACTIVATIONS: return QN_LAYOUT_ACTIVATIONS;
    case QN_REGION_KIND_STEP_IO: return QN_LAYOUT_STEP_IO;
    case QN_REGION_KIND_STATE: return QN_LAYOUT_STATE;
    case QN_REGION_KIND_TAP: return QN_LAYOUT_TAP;
    }
    return 0;
}

static qn_err_t find_backend(qn_share_t share, const region_backend_t **ret_backend)
{
    switch (share) {
    case QN_SHARE_MEMFD: *ret_backend = &qn_region_memfd; return QN_OK;
#ifdef QN_CUDA
    case QN_SHARE_CUDA_IPC: *ret_backend = &qn_region_cuda_ipc; return QN_OK;
    case QN_SHARE_CUDA_VMM: *ret_backend = &qn_region_cuda_vmm; return QN_OK;
#else
    case QN_SHARE_CUDA_IPC:
    case QN_SHARE_CUDA_VMM:
        return qn_fail(QN_ERR_UNSUPPORTED, "memory.share %s: this build has no CUDA; build with `make cuda`",
                       share == QN_SHARE_CUDA_IPC ? "cuda_ipc" : "cuda_vmm");
#endif
    }
    return qn_fail(QN_ERR_INVALID, "region share %d is not known", (int)share);
}

/* The backend of a mapping that exists: it was found once, when the mapping was made. */
static const region_backend_t *backend_of(const qn_mapping_t *mapping)
{
    const region_backend_t *backend = NULL;
    QN_ASSERT(find_backend((qn_share_t)mapping->header.share, &backend) == QN_OK);
    return backend;
}

/* ---- the header page ---- */

static uint32_t header_crc(const region_header_t *header)
{
    region_header_t copy = *header;
    copy.crc = 0;
    return qn_crc32c(0, &copy, sizeof copy);
}

static qn_err_t write_header(qn_mapping_t *mapping)
{
    mapping->header.crc = header_crc(&mapping->header);
    return backend_of(mapping)->write_header(mapping);
}

/* Is this a header at all, and one of this build? */
static qn_err_t check_header(const region_header_t *header)
{
    if (memcmp(header->magic, HEADER_MAGIC, sizeof header->magic) != 0)
        return qn_fail(QN_ERR_INVALID, "not a region: the magic number is missing");
    if (header->version != HEADER_VERSION)
        return qn_fail(QN_ERR_INVALID, "the region's header has version %" PRIu32 ", this build reads %d",
                       header->version, HEADER_VERSION);
    if (header->crc != header_crc(header) || memchr(header->name, 0, sizeof header->name) == NULL)
        return qn_fail(QN_ERR_INVALID, "the region's header is damaged (CRC)");
    uint32_t layout = qn_region_layout((qn_region_kind_t)header->kind);
    if (header->kind > UINT8_MAX || header->share > UINT8_MAX || layout == 0 || header->layout != layout)
        return qn_fail(QN_ERR_INVALID,
                       "region '%s' has layout %" PRIu32 ", this build reads layout %" PRIu32
                       ": restart both services with one build",
                       header->name, header->layout, layout);
    return QN_OK;
}

static qn_err_t differs(const qn_region_t *wire, const char *field, uint64_t found, uint64_t wanted)
{
    return qn_fail(QN_ERR_INVALID,
                   "region %" PRIu64 " '%.*s' refused: its %s is %" PRIu64 ", its description says %" PRIu64, wire->id,
                   (int)wire->name.bytes, wire->name.data, field, found, wanted);
}

/* Does the header say what the description says? */
static qn_err_t compare_header(const region_header_t *header, const qn_region_t *wire)
{
    if (header->id != wire->id) return differs(wire, "id", header->id, wire->id);
    if (header->kind != wire->kind) return differs(wire, "kind", header->kind, wire->kind);
    if (header->share != wire->share) return differs(wire, "share", header->share, wire->share);
    if (header->bytes != wire->bytes) return differs(wire, "byte count", header->bytes, wire->bytes);
    if (header->epoch != wire->epoch) return differs(wire, "epoch", header->epoch, wire->epoch);
    if (header->layout != wire->layout) return differs(wire, "layout", header->layout, wire->layout);
    if (header->fingerprint != wire->fingerprint)
        return differs(wire, "fingerprint", header->fingerprint, wire->fingerprint);
    if (header->device != wire->device)
        return differs(wire, "device", (uint64_t)header->device, (uint64_t)wire->device);
    return QN_OK;
}

/* ---- making ---- */

static qn_err_t check_bytes(uint64_t bytes, const char *name)
{
    if (bytes == 0 || bytes > QN_REGION_BYTES_MAX)
        return qn_fail(QN_ERR_LIMIT, "region '%s': %" PRIu64 " bytes are not in 1 .. 2^46", name, bytes);
    return QN_OK;
}

static qn_err_t set_fd_socket(qn_mapping_t *mapping, const char *fd_socket)
{
    if (!fd_socket) fd_socket = "";
    if (strlen(fd_socket) >= sizeof mapping->fd_socket)
        return qn_fail(QN_ERR_LIMIT, "%s: a Unix socket path has at most %zu bytes; choose a shorter run_dir",
                       fd_socket, sizeof mapping->fd_socket - 1);
    strcpy(mapping->fd_socket, fd_socket);
    return QN_OK;
}

static qn_mapping_t *mapping_new(void)
{
    qn_mapping_t *mapping = calloc(1, sizeof *mapping);
    if (!mapping) return NULL;
    memcpy(mapping->header.magic, HEADER_MAGIC, sizeof mapping->header.magic);
    mapping->header.version = HEADER_VERSION;
    mapping->fd = -1;
    mapping->pid = getpid();
    mapping->references = 1;
    return mapping;
}

static void registry_add(qn_mapping_t *mapping)
{
    pthread_mutex_lock(&registry.mutex);
    mapping->next = registry.owned;
    registry.owned = mapping;
    pthread_mutex_unlock(&registry.mutex);
}

static qn_err_t create_checked(const qn_region_spec_t *spec, qn_mapping_t *mapping)
{
    region_header_t *header = &mapping->header;
    const region_backend_t *backend = NULL;
    qn_err_t err = find_backend(spec->share, &backend);
    if (err) return err;
    if ((err = check_bytes(spec->bytes, spec->name))) return err;
    if ((err = set_fd_socket(mapping, spec->fd_socket))) return err;
    QN_ASSERT(spec->id != 0 && strlen(spec->name) < sizeof header->name);
    header->id = spec->id;
    header->bytes = spec->bytes;
    header->epoch = spec->epoch;
    header->kind = spec->kind;
    header->layout = qn_region_layout(spec->kind);
    header->share = spec->share;
    header->device = spec->device;
    header->huge_pages = spec->huge_pages;
    strcpy(header->name, spec->name);
    mapping->total_bytes = region_header_offset(spec->bytes) + REGION_PAGE;
    mapping->owner = true;
    if ((err = backend->create(mapping))) return err;
    if (backend->clear) err = backend->clear(mapping);
    if (!err) err = write_header(mapping);
    if (err) backend->close(mapping);
    return err;
}

qn_err_t qn_region_create(const qn_region_spec_t *spec, qn_mapping_t **ret_mapping)
{
    qn_mapping_t *mapping = mapping_new();
    if (!mapping) return qn_fail(QN_ERR_NO_MEMORY, "region '%s': no memory", spec->name);
    qn_err_t err = create_checked(spec, mapping);
    if (err) {
        free(mapping);
        return err;
    }
    registry_add(mapping);
    *ret_mapping = mapping;
    return QN_OK;
}

qn_err_t qn_region_seal(qn_mapping_t *mapping, uint64_t fingerprint)
{
    QN_ASSERT(mapping->owner && !mapping->header.sealed);
    mapping->header.fingerprint = fingerprint;
    mapping->header.sealed = 1;
    qn_err_t err = write_header(mapping);
    const region_backend_t *backend = backend_of(mapping);
    return err || !backend->seal ? err : backend->seal(mapping);
}

bool qn_region_make_huge(const qn_mapping_t *mapping, uint64_t offset, uint64_t bytes)
{
    QN_ASSERT(mapping->owner && !mapping->header.sealed);
    QN_ASSERT(offset <= mapping->header.bytes && bytes <= mapping->header.bytes - offset);
    const region_backend_t *backend = backend_of(mapping);
    if (!mapping->header.huge_pages || !backend->make_huge) return true;
    return backend->make_huge(mapping, offset, bytes);
}

uint64_t qn_region_huge_bytes(const qn_mapping_t *mapping)
{
    const region_backend_t *backend = backend_of(mapping);
    return backend->huge_bytes ? backend->huge_bytes(mapping) : 0;
}

static void check_copy(const qn_mapping_t *mapping, uint64_t offset, uint64_t pitch, uint64_t width, uint32_t rows)
{
    uint64_t bytes = mapping->header.bytes;
    QN_ASSERT(rows > 0 && width > 0 && (rows == 1 || (width <= pitch && pitch <= bytes)));
    QN_ASSERT(offset <= bytes && width <= bytes - offset);
    QN_ASSERT(rows == 1 || rows - 1 <= (bytes - offset - width) / pitch);
}

qn_err_t qn_region_copy_out(const qn_mapping_t *mapping, uint64_t offset, uint64_t pitch, uint64_t width, uint32_t rows,
                            void *buffer)
{
    const region_backend_t *backend = backend_of(mapping);
    check_copy(mapping, offset, pitch, width, rows);
    if (backend->copy) return backend->copy(mapping, offset, pitch, width, rows, buffer, true);
    for (uint32_t i = 0; i < rows; i++)
        memcpy((uint8_t *)buffer + i * width, (uint8_t *)mapping->pointer + offset + i * pitch, width);
    return QN_OK;
}

qn_err_t qn_region_copy_in(const qn_mapping_t *mapping, uint64_t offset, uint64_t pitch, uint64_t width, uint32_t rows,
                           const void *buffer)
{
    const region_backend_t *backend = backend_of(mapping);
    check_copy(mapping, offset, pitch, width, rows);
    if (backend->copy) return backend->copy(mapping, offset, pitch, width, rows, (void *)buffer, false);
    for (uint32_t i = 0; i < rows; i++)
        memcpy((uint8_t *)mapping->pointer + offset + i * pitch, (const uint8_t *)buffer + i * width, width);
    return QN_OK;
}

qn_err_t qn_region_probe(qn_share_t share, int32_t device)
{
    const region_backend_t *backend = NULL;
    qn_err_t err = find_backend(share, &backend);
    return err || !backend->probe ? err : backend->probe(device);
}

qn_err_t qn_region_free_bytes(qn_share_t share, int32_t device, uint64_t *ret_bytes)
{
    const region_backend_t *backend = NULL;
    qn_err_t err = find_backend(share, &backend);
    return err ? err : backend->free_bytes(device, ret_bytes);
}

qn_err_t qn_region_largest_bytes(qn_share_t share, int32_t device, uint64_t *ret_bytes)
{
    const region_backend_t *backend = NULL;
    qn_err_t err = find_backend(share, &backend);
    if (!err && backend->largest_bytes) return backend->largest_bytes(device, ret_bytes);
    if (!err) *ret_bytes = QN_REGION_BYTES_MAX;
    return err;
}

void qn_region_describe(const qn_mapping_t *mapping, qn_region_t *ret_wire)
{
    QN_ASSERT(mapping->owner);
    const region_header_t *header = &mapping->header;
    *ret_wire = (qn_region_t){
        .id = header->id,
        .kind = (qn_region_kind_t)header->kind,
        .share = (qn_share_t)header->share,
        .device = header->device,
        .bytes = header->bytes,
        .epoch = header->epoch,
        .layout = header->layout,
        .fingerprint = header->fingerprint,
        .handle = mapping->handle_count ? mapping->handle : NULL,
        .handle_count = mapping->handle_count,
        .fd_socket = {.data = mapping->fd_socket, .bytes = (uint32_t)strlen(mapping->fd_socket)},
        .name = {.data = header->name, .bytes = (uint32_t)strlen(header->name)},
    };
}

int qn_region_fd(const qn_mapping_t *mapping)
{
    QN_ASSERT(mapping->owner);
    return mapping->fd;
}

/* ---- importing ---- */

static bool same_region(const region_header_t *header, const qn_region_t *wire)
{
    return header->id == wire->id && header->epoch == wire->epoch && strlen(header->name) == wire->name.bytes &&
           memcmp(header->name, wire->name.data ? wire->name.data : "", wire->name.bytes) == 0;
}

/* A region this process owns: one more user of its mapping. A forked child inherits the table, but owns nothing in
 * it. */
static qn_mapping_t *registry_find(const qn_region_t *wire)
{
    pid_t self = getpid();
    pthread_mutex_lock(&registry.mutex);
    qn_mapping_t *mapping = registry.owned;
    while (mapping && (mapping->pid != self || !same_region(&mapping->header, wire)))
        mapping = mapping->next;
    if (mapping) mapping->references++;
    pthread_mutex_unlock(&registry.mutex);
    return mapping;
}

static qn_err_t check_wire(const qn_region_t *wire)
{
    if (wire->name.bytes >= QN_NAME_MAX)
        return qn_fail(QN_ERR_INVALID, "region %" PRIu64 ": its name has %" PRIu32 " bytes, at most %d are allowed",
                       wire->id, wire->name.bytes, QN_NAME_MAX - 1);
    uint32_t layout = qn_region_layout(wire->kind);
    if (layout == 0) return qn_fail(QN_ERR_INVALID, "region %" PRIu64 ": kind %d is not known", wire->id, wire->kind);
    if (wire->layout != layout)
        return qn_fail(QN_ERR_INVALID,
                       "region %" PRIu64 " '%.*s' has layout %" PRIu32 ", this build reads layout %" PRIu32
                       ": restart both services with one build",
                       wire->id, (int)wire->name.bytes, wire->name.data, wire->layout, layout);
    return check_bytes(wire->bytes, "import");
}

/* Brings the descriptor here; -1 where the share has none. */
static qn_err_t fetch_fd(const qn_region_t *wire, int *ret_fd)
{
    char path[sizeof((qn_mapping_t *)0)->fd_socket];
    *ret_fd = -1;
    if (wire->share == QN_SHARE_CUDA_IPC) return QN_OK;
    if (wire->fd_socket.bytes == 0 || wire->fd_socket.bytes >= sizeof path)
        return qn_fail(QN_ERR_INVALID,
                       "region %" PRIu64 " '%.*s' belongs to another process and names no usable fd "
                       "socket",
                       wire->id, (int)wire->name.bytes, wire->name.data);
    memcpy(path, wire->fd_socket.data, wire->fd_socket.bytes);
    path[wire->fd_socket.bytes] = '\0';
    return qn_fd_request(path, wire->id, wire->epoch, FD_TIMEOUT_MS, ret_fd);
}

static qn_err_t import_foreign(const region_backend_t *backend, const qn_region_t *wire, bool writable,
                               qn_mapping_t *mapping)
{
    int fd;
    qn_err_t err = fetch_fd(wire, &fd);
    if (err) return err;
    mapping->total_bytes = region_header_offset(wire->bytes) + REGION_PAGE;
    mapping->header.bytes = wire->bytes;
    mapping->header.device = wire->device;
    mapping->header.share = wire->share;
    memcpy(mapping->header.name, wire->name.data ? wire->name.data : "", wire->name.bytes); /* for error texts */
    if (wire->handle_count > 0 && wire->handle_count <= sizeof mapping->handle) {
        memcpy(mapping->handle, wire->handle, wire->handle_count);
        mapping->handle_count = wire->handle_count;
    }
    region_header_t header;
    err = backend->import(mapping, fd, writable);
    if (!err) {
        err = backend->read_header(mapping, fd, &header);
        if (!err) err = check_header(&header);
        if (!err) err = compare_header(&header, wire);
        if (!err)
            mapping->header = header;
        else
            backend->close(mapping);
    }
    if (fd >= 0) close(fd);
    return err;
}

qn_err_t qn_region_import(const qn_region_t *wire, bool writable, qn_mapping_t **ret_mapping)
{
    const region_backend_t *backend = NULL;
    qn_err_t err = check_wire(wire);
    if (!err) err = find_backend(wire->share, &backend);
    if (err) return err;
    if (writable && wire->kind == QN_REGION_KIND_WEIGHTS)
        return qn_fail(QN_ERR_INVALID, "region %" PRIu64 ": weights cannot be imported writable", wire->id);
    qn_mapping_t *mapping = registry_find(wire);
    if (mapping) {
        err = compare_header(&mapping->header, wire);
        if (err)
            qn_region_close(&mapping);
        else
            *ret_mapping = mapping;
        return err;
    }
    mapping = mapping_new();
    if (!mapping) return qn_fail(QN_ERR_NO_MEMORY, "region %" PRIu64 ": no memory", wire->id);
    err = import_foreign(backend, wire, writable, mapping);
    if (err)
        free(mapping);
    else
        *ret_mapping = mapping;
    return err;
}

/* ---- adopting ---- */

/* From the descriptor alone, for the header of a file tells the rest. */
static qn_err_t adopt_memfd(qn_mapping_t *mapping, int fd)
{
    struct stat info;
    region_header_t header = {0};
    if (fstat(fd, &info) < 0 || info.st_size < 2 * (off_t)REGION_PAGE)
        return qn_fail(QN_ERR_INVALID, "the kept descriptor is not a region (too small)");
    mapping->total_bytes = (uint64_t)info.st_size;
    qn_err_t err = qn_region_memfd.read_header(mapping, fd, &header);
    if (!err) err = check_header(&header);
    if (!err && (header.share != QN_SHARE_MEMFD || header.bytes > QN_REGION_BYTES_MAX ||
                 region_header_offset(header.bytes) + REGION_PAGE != mapping->total_bytes))
        err = qn_fail(QN_ERR_INVALID, "the kept region '%s' has another size than its header says", header.name);
    if (err) return err;
    mapping->header = header;
    return qn_region_memfd.import(mapping, fd, !header.sealed);
}

/* The header is in the device's memory: it can be read when all is mapped. */
static qn_err_t adopt_device(qn_mapping_t *mapping, int fd)
{
    const region_backend_t *backend = NULL;
    region_header_t header = {0};
    qn_err_t err = find_backend(QN_SHARE_CUDA_VMM, &backend);
    if (!err) err = check_bytes(mapping->header.bytes, "kept");
    if (err) return err;
    mapping->total_bytes = region_header_offset(mapping->header.bytes) + REGION_PAGE;
    if ((err = backend->import(mapping, fd, true))) return err;
    err = backend->read_header(mapping, fd, &header);
    if (!err) err = check_header(&header);
    if (!err && (header.share != QN_SHARE_CUDA_VMM || header.bytes != mapping->header.bytes ||
                 header.device != mapping->header.device))
        err = qn_fail(QN_ERR_INVALID, "the kept region '%s' has another size or device than it was kept with",
                      header.name);
    if (err)
        backend->close(mapping);
    else
        mapping->header = header;
    return err;
}

/* `mapping` is new, its header only as far as it is known; NULL: there was no memory for it. */
static qn_err_t adopt(qn_mapping_t *mapping, qn_err_t (*adopt_share)(qn_mapping_t *mapping, int fd), int fd,
                      const char *fd_socket, qn_mapping_t **ret_mapping)
{
    if (!mapping) return qn_fail(QN_ERR_NO_MEMORY, "a kept region: no memory");
    qn_err_t err = set_fd_socket(mapping, fd_socket);
    if (!err) err = adopt_share(mapping, fd);
    if (err) {
        free(mapping);
        return err;
    }
    mapping->fd = fd;
    mapping->owner = true;
    registry_add(mapping);
    *ret_mapping = mapping;
    return QN_OK;
}

qn_err_t qn_region_adopt(int fd, const char *fd_socket, qn_mapping_t **ret_mapping)
{
    return adopt(mapping_new(), adopt_memfd, fd, fd_socket, ret_mapping);
}

qn_err_t qn_region_adopt_device(int fd, int32_t device, uint64_t bytes, const char *fd_socket,
                                qn_mapping_t **ret_mapping)
{
    qn_mapping_t *mapping = mapping_new();
    if (mapping) {
        mapping->header.share = QN_SHARE_CUDA_VMM;
        mapping->header.device = device;
        mapping->header.bytes = bytes;
        strcpy(mapping->header.name, "kept"); /* for error texts */
    }
    return adopt(mapping, adopt_device, fd, fd_socket, ret_mapping);
}

/* ---- end and reading ---- */

static void registry_remove(const qn_mapping_t *mapping)
{
    qn_mapping_t **link = &registry.owned;
    while (*link != mapping)
        link = &(*link)->next;
    *link = mapping->next;
}

void qn_region_close(qn_mapping_t **mapping_pointer)
{
    qn_mapping_t *mapping = *mapping_pointer;
    if (!mapping) return;
    *mapping_pointer = NULL;
    pthread_mutex_lock(&registry.mutex);
    bool last = --mapping->references == 0;
    if (last && mapping->owner) registry_remove(mapping);
    pthread_mutex_unlock(&registry.mutex);
    if (!last) return;
    backend_of(mapping)->close(mapping);
    free(mapping);
}

void *qn_region_pointer(const qn_mapping_t *mapping) { return mapping->pointer; }
uint64_t qn_region_bytes(const qn_mapping_t *mapping) { return mapping->header.bytes; }
uint64_t qn_region_id(const qn_mapping_t *mapping) { return mapping->header.id; }
uint32_t qn_region_epoch(const qn_mapping_t *mapping) { return mapping->header.epoch; }
uint64_t qn_region_fingerprint(const qn_mapping_t *mapping) { return mapping->header.fingerprint; }
qn_region_kind_t qn_region_kind(const qn_mapping_t *mapping) { return (qn_region_kind_t)mapping->header.kind; }
qn_share_t qn_region_share(const qn_mapping_t *mapping) { return (qn_share_t)mapping->header.share; }
int32_t qn_region_device(const qn_mapping_t *mapping) { return mapping->header.device; }
const char *qn_region_name(const qn_mapping_t *mapping) { return mapping->header.name; }
bool qn_region_sealed(const qn_mapping_t *mapping) { return mapping->header.sealed != 0; }
