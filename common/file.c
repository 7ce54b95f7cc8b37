/* What is this?      Opening and reading files that come from outside.
 * State owned:       none.
 * Must never:        open what is not a regular file: opening alone can block, or make a device act.
 * Read next:         services/memory/weights/model_directory.c, safetensors.c (who reads with it). */
#include "common/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define READ_BYTES 65536

static const char *kind_name(mode_t mode)
{
    if (S_ISDIR(mode)) return "a directory";
    if (S_ISFIFO(mode)) return "a FIFO";
    if (S_ISSOCK(mode)) return "a socket";
    return "a device";
}

static qn_err_t check_kind(const struct stat *info, const char *path)
{
    if (S_ISREG(info->st_mode)) return QN_OK;
    return qn_fail(QN_ERR_INVALID, "%s: is %s, not a regular file", path, kind_name(info->st_mode));
}

bool qn_file_exists(int directory_fd, const char *name)
{
    struct stat info;
    return fstatat(directory_fd, name, &info, AT_SYMLINK_NOFOLLOW) == 0;
}

/* Looked at before it is opened, and again after: it may have been exchanged. */
qn_err_t qn_file_open(int directory_fd, const char *name, const char *path, int *ret_fd, uint64_t *ret_bytes)
{
    struct stat info;
    if (fstatat(directory_fd, name, &info, 0) < 0) {
        int error = errno;
        if (error == ENOENT && qn_file_exists(directory_fd, name))
            return qn_fail(QN_ERR_INVALID, "%s: is a link to a file that is not there", path);
        return qn_fail(error == ENOENT || error == ENOTDIR ? QN_ERR_NOT_FOUND : QN_ERR_IO, "%s: %s", path,
                       strerror(error));
    }
    qn_err_t err = check_kind(&info, path);
    if (err) return err;
    int fd = openat(directory_fd, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) return qn_fail(errno == ENOENT ? QN_ERR_NOT_FOUND : QN_ERR_IO, "%s: %s", path, strerror(errno));
    err = fstat(fd, &info) < 0 ? qn_fail(QN_ERR_IO, "%s: %s", path, strerror(errno)) : check_kind(&info, path);
    if (err) {
        close(fd);
        return err;
    }
    *ret_fd = fd;
    *ret_bytes = (uint64_t)info.st_size;
    return QN_OK;
}

/* The size is only a hint: a file may grow, and those of /proc say 0. */
static qn_err_t read_rest(int fd, const char *path, size_t bytes_max, char **text, size_t *bytes)
{
    size_t capacity = 0;
    for (;;) {
        if (*bytes == capacity) {
            capacity = capacity ? 2 * capacity : READ_BYTES;
            char *grown = realloc(*text, capacity + 1);
            if (!grown) return qn_fail(QN_ERR_NO_MEMORY, "%s: no memory for %zu bytes", path, capacity);
            *text = grown;
        }
        ssize_t got = read(fd, *text + *bytes, capacity - *bytes);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return qn_fail(QN_ERR_IO, "%s: %s", path, strerror(errno));
        if (got == 0) break;
        *bytes += (size_t)got;
        if (*bytes > bytes_max) return qn_fail(QN_ERR_LIMIT, "%s: more than %zu bytes", path, bytes_max);
    }
    (*text)[*bytes] = '\0';
    return QN_OK;
}

qn_err_t qn_file_read(const char *path, size_t bytes_max, char **ret_text, size_t *ret_bytes)
{
    int fd;
    uint64_t size;
    char *text = NULL;
    size_t bytes = 0;
    qn_err_t err = qn_file_open(AT_FDCWD, path, path, &fd, &size);
    if (err) return err;
    if (size > bytes_max)
        err = qn_fail(QN_ERR_LIMIT, "%s: more than %zu bytes", path, bytes_max);
    else
        err = read_rest(fd, path, bytes_max, &text, &bytes);
    close(fd);
    if (err) {
        free(text);
        return err;
    }
    *ret_text = text;
    *ret_bytes = bytes;
    return QN_OK;
}
