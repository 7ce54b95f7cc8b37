/* What is this?      Regions in host memory: an anonymous file (memfd) that other processes map.
 * State owned:       none; mappings and descriptors are the caller's mapping object.
 * Must never:        map a file whose size its owner could still change (a read beyond the end is a SIGBUS).
 * Read next:         memfd_create(2), fcntl(2) on F_ADD_SEALS. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/watch/log.h"
#include "common/region/region_backend.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 /* Linux 5.14 */
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1; glibc 2.36 does not know it */
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010 /* Linux 5.1; glibc's fcntl.h may not know it */
#endif

#define HUGE_PAGE (UINT64_C(2) << 20)
#define SIZE_SEALS (F_SEAL_SHRINK | F_SEAL_GROW)
/* Nanoseconds of this thread that a huge page may cost before it is not worth it. Clearing one takes 0.2 ms; when
 * memory is in pieces the kernel moves them about, which can take a hundred times as long. */
#define HUGE_PAGE_NS 10000000

/* Maps the content (not the header page), aligned to a huge page where it fills one: the kernel uses huge pages only
 * where address and file offset agree modulo 2 MiB. */
static qn_err_t map_content(qn_mapping_t *mapping, int fd, bool writable)
{
    int protection = PROT_READ | (writable ? PROT_WRITE : 0);
    uint64_t bytes = region_header_offset(mapping->header.bytes);
    uint64_t slack = bytes >= HUGE_PAGE ? HUGE_PAGE : 0;
    uint8_t *range = mmap(NULL, bytes + slack, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED)
        return qn_fail(QN_ERR_NO_MEMORY, "region '%s': no address range of %" PRIu64 " bytes: %s", mapping->header.name,
                       bytes + slack, strerror(errno));
    uint8_t *start = slack ? range + (HUGE_PAGE - (uintptr_t)range % HUGE_PAGE) % HUGE_PAGE : range;
    if (mmap(start, bytes, protection, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
        qn_err_t err = qn_fail(QN_ERR_IO, "region '%s': cannot map %" PRIu64 " bytes %s: %s", mapping->header.name,
                               bytes, writable ? "writable" : "read-only", strerror(errno));
        munmap(range, bytes + slack);
        return err;
    }
    if (start > range) munmap(range, (size_t)(start - range));
    if (range + slack > start) munmap(start + bytes, (size_t)(range + slack - start));
    /* Refused where the system has none: ordinary pages do as well. */
    madvise(start, bytes, mapping->header.huge_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    mapping->pointer = start;
    return QN_OK;
}

static qn_err_t memfd_create_region(qn_mapping_t *mapping)
{
    char label[QN_NAME_MAX + 16] = "quintet.";
    strcat(label, mapping->header.name);
    int fd = memfd_create(label, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) return qn_fail(QN_ERR_IO, "region '%s': memfd_create: %s", mapping->header.name, strerror(errno));
    qn_err_t err = QN_OK;
    if (ftruncate(fd, (off_t)mapping->total_bytes) < 0)
        err = qn_fail(QN_ERR_NO_MEMORY, "region '%s': %" PRIu64 " bytes refused: %s", mapping->header.name,
                      mapping->total_bytes, strerror(errno));
    else if (fcntl(fd, F_ADD_SEALS, SIZE_SEALS) < 0)
        err = qn_fail(QN_ERR_IO, "region '%s': cannot seal its size: %s", mapping->header.name, strerror(errno));
    else
        err = map_content(mapping, fd, true);
    if (err)
        close(fd);
    else
        mapping->fd = fd;
    return err;
}

static qn_err_t memfd_read_header(const qn_mapping_t *mapping, int fd, region_header_t *ret_header)
{
    ssize_t got = pread(fd, ret_header, sizeof *ret_header, (off_t)(mapping->total_bytes - REGION_PAGE));
    if (got != (ssize_t)sizeof *ret_header)
        return qn_fail(QN_ERR_IO, "cannot read the region's header: %s", got < 0 ? strerror(errno) : "short read");
    return QN_OK;
}

static qn_err_t memfd_import(qn_mapping_t *mapping, int fd, bool writable)
{
    struct stat info;
    region_header_t header;
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & SIZE_SEALS) != SIZE_SEALS)
        return qn_fail(QN_ERR_INVALID, "the descriptor is not a sealed memfd: its owner could cut it off");
    if (fstat(fd, &info) < 0 || (uint64_t)info.st_size != mapping->total_bytes)
        return qn_fail(QN_ERR_INVALID, "the region has %" PRIu64 " bytes in all, its description means %" PRIu64,
                       (uint64_t)info.st_size, mapping->total_bytes);
    qn_err_t err = memfd_read_header(mapping, fd, &header); /* a wish for huge pages does no harm: the caller checks */
    if (err) return err;
    mapping->header.huge_pages = header.huge_pages;
    return map_content(mapping, fd, writable);
}

static qn_err_t memfd_write_header(const qn_mapping_t *mapping)
{
    const region_header_t *header = &mapping->header;
    ssize_t put = pwrite(mapping->fd, header, sizeof *header, (off_t)(mapping->total_bytes - REGION_PAGE));
    if (put != (ssize_t)sizeof *header)
        return qn_fail(QN_ERR_IO, "region '%s': cannot write its header: %s", header->name,
                       put < 0 ? strerror(errno) : "short write");
    return QN_OK;
}

/* ---- huge pages ---- */

static int64_t thread_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Collapsing wants at least one page to be there; where the system makes huge pages for shared memory by itself, that
 * one is huge already. The kernel touches it, not this thread: another one may be writing there. */
static bool memfd_make_huge(const qn_mapping_t *mapping, uint64_t offset, uint64_t bytes)
{
    uint64_t first = (offset + HUGE_PAGE - 1) / HUGE_PAGE, end = (offset + bytes) / HUGE_PAGE;
    for (uint64_t page = first; page < end; page++) {
        uint8_t *start = (uint8_t *)mapping->pointer + page * HUGE_PAGE;
        int64_t begin_ns = thread_ns();
        if (madvise(start, REGION_PAGE, MADV_POPULATE_READ) < 0) return false;
        if (madvise(start, HUGE_PAGE, MADV_COLLAPSE) < 0 && (errno == EINVAL || errno == ENOMEM))
            return false; /* a kernel before 6.1, or no memory in one piece */
        if (thread_ns() - begin_ns > HUGE_PAGE_NS) return false;
    }
    return true;
}

/* The lines of smaps after that of a mapping tell how much of it is mapped how. */
static uint64_t memfd_huge_bytes(const qn_mapping_t *mapping)
{
    static const char *const kinds[] = {"ShmemPmdMapped:", "AnonHugePages:", "FilePmdMapped:"};
    char line[512];
    uint64_t first = (uintptr_t)mapping->pointer, end = first + mapping->header.bytes, total_kib = 0;
    bool inside = false;
    FILE *file = fopen("/proc/self/smaps", "re");
    if (!file) return 0;
    while (fgets(line, sizeof line, file)) {
        unsigned long long low, high, kib;
        if (sscanf(line, "%llx-%llx ", &low, &high) == 2) inside = low >= first && low < end;
        for (size_t i = 0; inside && i < sizeof kinds / sizeof kinds[0]; i++) {
            size_t length = strlen(kinds[i]);
            if (strncmp(line, kinds[i], length) == 0 && sscanf(line + length, "%llu", &kib) == 1) total_kib += kib;
        }
    }
    fclose(file);
    return total_kib * 1024;
}

/* The first number of a one-line file, or of the line of `path` that begins with `key`; UINT64_MAX when there is none
 * (cgroup files say "max" for no limit). */
static uint64_t read_number(const char *path, const char *key)
{
    char line[256];
    unsigned long long value = UINT64_MAX;
    FILE *file = fopen(path, "re");
    if (!file) return UINT64_MAX;
    while (fgets(line, sizeof line, file)) {
        if (strncmp(line, key, strlen(key)) != 0) continue;
        if (sscanf(line + strlen(key), "%llu", &value) != 1) value = UINT64_MAX;
        break;
    }
    fclose(file);
    return value;
}

/* What the control group (version 2) of this process still allows. Page cache counts as used there but can go. */
static uint64_t group_free_bytes(void)
{
    char line[512], path[640];
    FILE *file = fopen("/proc/self/cgroup", "re");
    bool found = file && fgets(line, sizeof line, file) && strncmp(line, "0::", 3) == 0;
    if (file) fclose(file);
    if (!found) return UINT64_MAX;
    line[strcspn(line, "\n")] = '\0';
    snprintf(path, sizeof path, "/sys/fs/cgroup%s/memory.max", line + 3);
    uint64_t limit = read_number(path, "");
    snprintf(path, sizeof path, "/sys/fs/cgroup%s/memory.current", line + 3);
    uint64_t used = read_number(path, "");
    snprintf(path, sizeof path, "/sys/fs/cgroup%s/memory.stat", line + 3);
    uint64_t cached = read_number(path, "inactive_file ");
    if (limit == UINT64_MAX || used == UINT64_MAX) return UINT64_MAX;
    if (cached <= used) used -= cached;
    return used < limit ? limit - used : 0;
}

static qn_err_t memfd_free_bytes(int32_t device, uint64_t *ret_bytes)
{
    (void)device;
    uint64_t host_kib = read_number("/proc/meminfo", "MemAvailable:"), group = group_free_bytes();
    if (host_kib == UINT64_MAX) return qn_fail(QN_ERR_IO, "/proc/meminfo has no MemAvailable");
    *ret_bytes = host_kib * 1024 < group ? host_kib * 1024 : group;
    return QN_OK;
}

static qn_err_t memfd_seal(qn_mapping_t *mapping)
{
    if (mprotect(mapping->pointer, region_header_offset(mapping->header.bytes), PROT_READ) < 0)
        return qn_fail(QN_ERR_IO, "region '%s': cannot make it read-only: %s", mapping->header.name, strerror(errno));
    if (fcntl(mapping->fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) < 0)
        qn_log_warning("region '%s': this kernel cannot forbid writing to it (%s); importers map it read-only all the "
                       "same",
                       mapping->header.name, strerror(errno));
    return QN_OK;
}

static void memfd_close(qn_mapping_t *mapping)
{
    munmap(mapping->pointer, region_header_offset(mapping->header.bytes));
    if (mapping->fd >= 0) close(mapping->fd);
}

const region_backend_t qn_region_memfd = {
    .name = "memfd",
    .create = memfd_create_region,
    .import = memfd_import,
    .read_header = memfd_read_header,
    .write_header = memfd_write_header,
    .free_bytes = memfd_free_bytes,
    .seal = memfd_seal,
    .make_huge = memfd_make_huge,
    .huge_bytes = memfd_huge_bytes,
    .close = memfd_close,
};
