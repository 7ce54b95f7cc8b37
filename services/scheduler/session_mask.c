/* What is this?      The file of the session's mask.
 * State owned:       <run_dir>/scheduler.mask.
 * Must never:        take bytes for rules that were not written as such.
 * Read next:         session_mask.h, common/probe/probe.h. */
#include "services/scheduler/session_mask.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/checksum.h"
#include "common/file.h"

#define MAGIC 0x4b534d51u /* "QMSK" */
#define FILE_BYTES_MAX 65536

/* Host byte order: the file never leaves the host. Rules follow. */
typedef struct {
    uint32_t magic, rule_bytes, count, crc; /* crc: of the rules */
} head_t;

static void path_of(const char *run_dir, const char *suffix, char ret_path[QN_PATH_MAX + 32])
{
    snprintf(ret_path, QN_PATH_MAX + 32, "%s/scheduler.mask%s", run_dir, suffix);
}

qn_err_t session_mask_load(const char *run_dir, session_mask_t *ret_mask)
{
    char path[QN_PATH_MAX + 32], *text;
    size_t bytes;
    head_t head;
    path_of(run_dir, "", path);
    *ret_mask = (session_mask_t){.count = 0};
    qn_err_t err = qn_file_read(path, FILE_BYTES_MAX, &text, &bytes);
    if (err == QN_ERR_NOT_FOUND) return QN_OK;
    if (err) return err;
    if (bytes >= sizeof head) memcpy(&head, text, sizeof head);
    bool sound = bytes >= sizeof head && head.magic == MAGIC && head.rule_bytes == sizeof(qn_mask_rule_t) &&
                 head.count <= QN_MASKS_MAX && bytes == sizeof head + head.count * sizeof(qn_mask_rule_t) &&
                 head.crc == qn_crc32c(0, text + sizeof head, bytes - sizeof head);
    if (sound) {
        memcpy(ret_mask->rules, text + sizeof head, bytes - sizeof head);
        ret_mask->count = head.count;
    }
    free(text);
    return sound ? QN_OK : qn_fail(QN_ERR_INVALID, "%s is not what a scheduler of this build wrote", path);
}

static qn_err_t write_all(int fd, const void *data, size_t bytes, const char *path)
{
    ssize_t put = bytes ? write(fd, data, bytes) : 0;
    return put == (ssize_t)bytes ? QN_OK
                                 : qn_fail(QN_ERR_IO, "%s: %s", path, put < 0 ? strerror(errno) : "short write");
}

qn_err_t session_mask_save(const char *run_dir, const session_mask_t *mask)
{
    char path[QN_PATH_MAX + 32], fresh[QN_PATH_MAX + 32];
    size_t bytes = mask->count * sizeof *mask->rules;
    head_t head = {.magic = MAGIC, .rule_bytes = sizeof *mask->rules, .count = mask->count};
    head.crc = qn_crc32c(0, mask->rules, bytes);
    path_of(run_dir, "", path);
    path_of(run_dir, ".new", fresh);
    if (mask->count == 0)
        return unlink(path) == 0 || errno == ENOENT ? QN_OK : qn_fail(QN_ERR_IO, "%s: %s", path, strerror(errno));
    int fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) return qn_fail(QN_ERR_IO, "%s: %s", fresh, strerror(errno));
    qn_err_t err = write_all(fd, &head, sizeof head, fresh);
    if (!err) err = write_all(fd, mask->rules, bytes, fresh);
    close(fd);
    if (!err && rename(fresh, path) < 0) err = qn_fail(QN_ERR_IO, "%s: %s", path, strerror(errno));
    return err;
}
