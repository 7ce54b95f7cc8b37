/* What is this?      Finding a shared object in the directories that are allowed, and a sealed copy of it.
 * State owned:       none; a copy is its holder's.
 * Must never:        open what lies outside of the directories, or let a checked file be changed before it is loaded.
 * Read next:         kernels/loaded.h, memfd_create(2) on seals. */
#include "services/compute/kernels/object_file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/checksum.h"

/* Whether the real path lies directly or deeper in the real directory. */
static bool lies_in(const char *path, const char *directory)
{
    char real[PATH_MAX];
    if (!realpath(directory, real)) return false;
    size_t length = strlen(real);
    return strncmp(path, real, length) == 0 && path[length] == '/';
}

/* Calls on each of `dirs` until one says true. */
static bool each_directory(const char *dirs, bool (*look)(void *context, const char *directory), void *context)
{
    char directory[QN_PATH_MAX];
    for (const char *at = dirs; *at;) {
        size_t length = strcspn(at, ":");
        if (length > 0 && length < sizeof directory) {
            memcpy(directory, at, length);
            directory[length] = '\0';
            if (look(context, directory)) return true;
        }
        at += length + (at[length] == ':');
    }
    return false;
}

typedef struct {
    const char *name;
    char real[PATH_MAX];
} search_t;

static bool look_for_name(void *context, const char *directory)
{
    search_t *search = context;
    char candidate[QN_PATH_MAX + 256];
    int length = snprintf(candidate, sizeof candidate, "%s/%s", directory, search->name);
    return length > 0 && (size_t)length < sizeof candidate && realpath(candidate, search->real) != NULL;
}

static bool look_for_directory(void *context, const char *directory)
{
    return lies_in(((search_t *)context)->real, directory);
}

static qn_err_t find(const char *dirs, search_t *search)
{
    bool is_path = strchr(search->name, '/') != NULL;
    bool found = is_path ? realpath(search->name, search->real) != NULL : each_directory(dirs, look_for_name, search);
    if (!found)
        return qn_fail(QN_ERR_NOT_FOUND, "there is no %.200s%s%.200s", search->name, is_path ? "" : " in ",
                       is_path ? "" : dirs);
    if (!each_directory(dirs, look_for_directory, search))
        return qn_fail(QN_ERR_CONFIG, "%.200s lies outside of compute.kernel_dirs (%.200s): put it there", search->real,
                       dirs);
    return QN_OK;
}

static qn_err_t copy(int from, int to, uint64_t *ret_fingerprint)
{
    char piece[65536];
    uint64_t total = 0, hash = 0;
    for (ssize_t bytes; (bytes = read(from, piece, sizeof piece)) != 0;) {
        if (bytes < 0 && errno == EINTR) continue;
        if (bytes < 0) return qn_fail(QN_ERR_IO, "%s", strerror(errno));
        total += (uint64_t)bytes;
        if (total > OBJECT_BYTES_MAX) return qn_fail(QN_ERR_LIMIT, "more than %d MiB", (int)(OBJECT_BYTES_MAX >> 20));
        hash = qn_fingerprint(piece, (size_t)bytes, hash);
        for (ssize_t done = 0, written; done < bytes; done += written) {
            written = write(to, piece + done, (size_t)(bytes - done));
            if (written < 0) return qn_fail(QN_ERR_IO, "%s", strerror(errno));
        }
    }
    *ret_fingerprint = hash ? hash : 1;
    if (fcntl(to, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) != 0)
        return qn_fail(QN_ERR_IO, "%s", strerror(errno));
    return QN_OK;
}

static qn_err_t copy_file(const char *path, object_file_t *file)
{
    struct stat info;
    int from = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (from < 0 || fstat(from, &info) != 0 || !S_ISREG(info.st_mode)) {
        qn_err_t err = from < 0 ? qn_fail(QN_ERR_IO, "%.300s: %s", path, strerror(errno))
                                : qn_fail(QN_ERR_CONFIG, "%.300s is no regular file", path);
        if (from >= 0) close(from);
        return err;
    }
    file->fd = memfd_create("kernels", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    qn_err_t err =
        file->fd < 0 ? qn_fail(QN_ERR_IO, "memfd: %s", strerror(errno)) : copy(from, file->fd, &file->fingerprint);
    close(from);
    return err;
}

qn_err_t object_file_open(const char *dirs, const char *name, object_file_t *ret_file)
{
    search_t search = {.name = name};
    object_file_t file = {.fd = -1};
    qn_err_t err = find(dirs, &search);
    if (!err && strlen(search.real) >= sizeof file.path)
        err = qn_fail(QN_ERR_LIMIT, "%.100s...: too long", search.real);
    if (!err) memcpy(file.path, search.real, strlen(search.real) + 1);
    if (!err) err = copy_file(file.path, &file);
    if (err)
        object_file_close(&file);
    else
        *ret_file = file;
    return err;
}

void object_file_close(object_file_t *file)
{
    if (file->fd >= 0) close(file->fd);
    file->fd = -1;
}
