/* What is this?      Prefixes in files: written whole or not at all, read only when every byte is as it was written.
 * State owned:       none.
 * Must never:        follow a link, open what is not a regular file, or trust a size that a file claims.
 * Read next:         saved_prefix.h, methods_saved.c (who asks). */
#include "services/memory/saved_prefix.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/checksum.h"
#include "common/file.h"

#define MAGIC "QNPREFIX"
#define VERSION 2u
#define SUFFIX ".prefix"
#define FILE_NAME_MAX (SAVED_NAME_MAX + 32)
#define TOKENS_MAX (1u << 20)

_Static_assert(sizeof(saved_header_t) == 88 + SAVED_MODEL_MAX, "no padding: its bytes are the file's");

/* ---- names and sizes ---- */

bool saved_name_ok(const char *name, size_t bytes)
{
    if (bytes == 0 || bytes > SAVED_NAME_MAX || name[0] == '.') return false;
    for (size_t i = 0; i < bytes; i++) {
        char c = name[i];
        bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        if (!letter && c != '.' && c != '_' && c != '-') return false;
    }
    return true;
}

static uint64_t plane_bytes(const saved_ground_t *ground)
{
    return (uint64_t)ground->block_tokens * ground->kv_heads * ground->head_dim * ground->scalar_bytes;
}

static uint64_t block_bytes(const saved_ground_t *ground) { return plane_bytes(ground) * ground->layers * 2; }

uint64_t saved_bytes(const saved_ground_t *ground, uint32_t tokens)
{
    uint64_t blocks = tokens / ground->block_tokens;
    return sizeof(saved_header_t) + (uint64_t)tokens * 4 + blocks * (block_bytes(ground) + 4);
}

static qn_err_t failed(const char *name, const char *what)
{
    return qn_fail(QN_ERR_IO, "saved prefix '%s': %s: %s", name, what, strerror(errno));
}

/* ---- the header ---- */

static uint32_t header_crc(const saved_header_t *header)
{
    saved_header_t copy = *header;
    copy.crc = 0;
    return qn_crc32c(0, &copy, sizeof copy);
}

static saved_header_t make_header(const saved_ground_t *ground, uint64_t salt, uint64_t identity, uint64_t unix_s,
                                  const uint32_t *ids, uint32_t tokens)
{
    saved_header_t header = {.magic = MAGIC,
                             .version = VERSION,
                             .fingerprint = ground->fingerprint,
                             .salt = salt,
                             .identity = identity,
                             .saved_unix_s = unix_s,
                             .block_bytes = block_bytes(ground),
                             .layout = QN_LAYOUT_KV,
                             .layers = ground->layers,
                             .kv_heads = ground->kv_heads,
                             .head_dim = ground->head_dim,
                             .block_tokens = ground->block_tokens,
                             .scalar_bytes = ground->scalar_bytes,
                             .tokens = tokens,
                             .ids_crc = qn_crc32c(0, ids, (size_t)tokens * sizeof *ids)};
    memcpy(header.model, ground->model, sizeof header.model);
    header.crc = header_crc(&header);
    return header;
}

/* Whether the header is one, whole, and of a file of this size. */
static qn_err_t check_header(const char *name, const saved_header_t *header, uint64_t file_bytes)
{
    if (memcmp(header->magic, MAGIC, sizeof header->magic) != 0)
        return qn_fail(QN_ERR_INVALID, "'%s' is not a saved prefix", name);
    if (header->version != VERSION)
        return qn_fail(QN_ERR_UNSUPPORTED, "'%s' was saved in version %" PRIu32 " of the format; this build reads %u",
                       name, header->version, VERSION);
    if (header->crc != header_crc(header)) return qn_fail(QN_ERR_INVALID, "'%s' is damaged: its header", name);
    uint64_t tokens = header->tokens, blocks = header->block_tokens ? tokens / header->block_tokens : 0;
    bool sizes = tokens > 0 && tokens <= TOKENS_MAX && header->block_tokens > 0 && tokens % header->block_tokens == 0 &&
                 header->block_bytes > 0 && header->block_bytes <= QN_REGION_BYTES_MAX / (blocks ? blocks : 1) - 4;
    if (!sizes || file_bytes != sizeof *header + tokens * 4 + blocks * (header->block_bytes + 4))
        return qn_fail(QN_ERR_INVALID, "'%s' is damaged: it has %" PRIu64 " bytes, and its header speaks of others",
                       name, file_bytes);
    return QN_OK;
}

/* Whether it can be restored here. */
static qn_err_t check_fit(const char *name, const saved_header_t *header, const saved_ground_t *ground)
{
    const struct {
        const char *what;
        uint64_t saved, here;
    } rows[] = {
        {"layout of the KV cache", header->layout, QN_LAYOUT_KV},
        {"layers", header->layers, ground->layers},
        {"kv heads", header->kv_heads, ground->kv_heads},
        {"head dimensions", header->head_dim, ground->head_dim},
        {"bytes per number (memory.kv_dtype)", header->scalar_bytes, ground->scalar_bytes},
        {"tokens per block (memory.block_tokens)", header->block_tokens, ground->block_tokens},
        {"bytes per block", header->block_bytes, block_bytes(ground)},
    };
    if (header->fingerprint != ground->fingerprint)
        return qn_fail(QN_ERR_UNSUPPORTED,
                       "'%s' is of another model: it was saved from %.100s with the fingerprint %016" PRIx64
                       ", and %.100s with %016" PRIx64 " is served",
                       name, header->model, header->fingerprint, ground->model, ground->fingerprint);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (rows[i].saved != rows[i].here)
            return qn_fail(QN_ERR_UNSUPPORTED, "'%s' has %" PRIu64 " %s, and the cache here has %" PRIu64, name,
                           rows[i].saved, rows[i].what, rows[i].here);
    return QN_OK;
}

/* ---- the directory ---- */

qn_err_t saved_directory_open(const char *path, int *ret_fd)
{
    if (mkdir(path, 0700) != 0 && errno != EEXIST)
        return qn_fail(QN_ERR_IO, "memory.cache_dir %s cannot be made: %s", path, strerror(errno));
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return qn_fail(QN_ERR_IO, "memory.cache_dir %s cannot be opened: %s", path, strerror(errno));
    *ret_fd = fd;
    return QN_OK;
}

static qn_err_t read_all(int fd, void *buffer, size_t bytes, uint64_t offset, const char *name)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t got = pread(fd, (uint8_t *)buffer + done, bytes - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return failed(name, "reading");
        if (got == 0) return qn_fail(QN_ERR_INVALID, "'%s' is damaged: it ends too early", name);
        done += (size_t)got;
    }
    return QN_OK;
}

static qn_err_t open_file(int directory, const char *name, int *ret_fd, uint64_t *ret_bytes, saved_header_t *ret_header)
{
    char file[FILE_NAME_MAX];
    snprintf(file, sizeof file, "%s" SUFFIX, name);
    qn_err_t err = qn_file_open(directory, file, name, ret_fd, ret_bytes);
    if (err == QN_ERR_NOT_FOUND) return qn_fail(QN_ERR_NOT_FOUND, "no prefix is saved as '%s'", name);
    if (err) return err;
    if (*ret_bytes < sizeof *ret_header)
        err = qn_fail(QN_ERR_INVALID, "'%s' is not a saved prefix", name);
    else
        err = read_all(*ret_fd, ret_header, sizeof *ret_header, 0, name);
    if (!err) err = check_header(name, ret_header, *ret_bytes);
    ret_header->model[SAVED_MODEL_MAX - 1] = '\0';
    if (err) close(*ret_fd);
    return err;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const saved_file_t *)a)->name, ((const saved_file_t *)b)->name);
}

static void show_file(int directory, const saved_ground_t *ground, saved_file_t *file)
{
    int fd;
    qn_err_t err = open_file(directory, file->name, &fd, &file->bytes, &file->header);
    file->readable = err == QN_OK;
    if (!err) close(fd);
    if (!err) err = check_fit(file->name, &file->header, ground);
    if (err) snprintf(file->unfit, sizeof file->unfit, "%.255s", qn_err_text());
}

uint32_t saved_directory_list(int directory, const saved_ground_t *ground, saved_file_t *ret_files, uint64_t *ret_bytes)
{
    uint32_t count = 0;
    int fd = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *entries = fd < 0 ? NULL : fdopendir(fd);
    *ret_bytes = 0;
    if (!entries && fd >= 0) close(fd);
    for (struct dirent *entry; entries && (entry = readdir(entries));) {
        size_t bytes = strlen(entry->d_name), suffix = strlen(SUFFIX);
        struct stat status;
        if (fstatat(directory, entry->d_name, &status, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(status.st_mode)) continue;
        *ret_bytes += (uint64_t)status.st_size;
        bool named = bytes > suffix && strcmp(entry->d_name + bytes - suffix, SUFFIX) == 0 &&
                     saved_name_ok(entry->d_name, bytes - suffix);
        if (!named || count == SAVED_FILES_MAX || !ret_files) continue;
        saved_file_t *file = &ret_files[count++];
        *file = (saved_file_t){.bytes = (uint64_t)status.st_size};
        memcpy(file->name, entry->d_name, bytes - suffix);
        show_file(directory, ground, file);
    }
    if (entries) closedir(entries);
    if (ret_files) qsort(ret_files, count, sizeof *ret_files, by_name);
    return count;
}

/* ---- writing ---- */

static qn_err_t write_all(int fd, const void *buffer, size_t bytes, const char *name)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t put = write(fd, (const uint8_t *)buffer + done, bytes - done);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) return failed(name, "writing");
        done += (size_t)put;
    }
    return QN_OK;
}

static qn_err_t write_blocks(int fd, const char *name, const saved_ground_t *ground, const uint32_t *blocks,
                             uint32_t count, bool (*cancelled)(const void *), const void *context)
{
    uint64_t plane = plane_bytes(ground), bytes = block_bytes(ground);
    uint8_t *buffer = malloc(bytes + 4);
    qn_err_t err = buffer ? QN_OK : qn_fail(QN_ERR_NO_MEMORY, "saved prefix: no memory for a block");
    for (uint32_t i = 0; !err && i < count; i++) {
        if (cancelled(context)) err = qn_fail(QN_ERR_CANCELLED, "saving '%s' was given up", name);
        if (!err)
            err = qn_region_copy_out(ground->region, blocks[i] * plane, plane * ground->block_count, plane,
                                     ground->layers * 2, buffer);
        if (err) break;
        uint32_t crc = qn_crc32c(0, buffer, bytes);
        memcpy(buffer + bytes, &crc, sizeof crc);
        err = write_all(fd, buffer, bytes + 4, name);
    }
    free(buffer);
    return err;
}

/* The file takes its name: from then on it is there after any crash. */
static qn_err_t publish(int directory, int fd, const char *temporary, const char *file, const char *name, bool replace)
{
    if (fsync(fd) != 0) return failed(name, "writing it to the disk");
    if (!replace && renameat2(directory, temporary, directory, file, RENAME_NOREPLACE) != 0) {
        if (errno == EEXIST)
            return qn_fail(QN_ERR_EXISTS, "a prefix is saved as '%s' already; take another name, or say replace", name);
        if (errno != EINVAL && errno != ENOSYS) return failed(name, "renaming");
        replace = true; /* a file system that cannot: it was looked for before */
    }
    if (replace && renameat(directory, temporary, directory, file) != 0) return failed(name, "renaming");
    return fsync(directory) == 0 || errno == EINVAL ? QN_OK : failed(name, "writing its directory to the disk");
}

qn_err_t saved_write(int directory, const char *name, bool replace, const saved_ground_t *ground, uint64_t salt,
                     uint64_t identity, uint64_t unix_s, const uint32_t *ids, uint32_t tokens, const uint32_t *blocks,
                     bool (*cancelled)(const void *), const void *context)
{
    char file[FILE_NAME_MAX], temporary[FILE_NAME_MAX];
    saved_header_t header = make_header(ground, salt, identity, unix_s, ids, tokens);
    snprintf(file, sizeof file, "%s" SUFFIX, name);
    snprintf(temporary, sizeof temporary, ".%s.new", name);
    if (!replace && qn_file_exists(directory, file))
        return qn_fail(QN_ERR_EXISTS, "a prefix is saved as '%s' already; take another name, or say replace", name);
    if (unlinkat(directory, temporary, 0) != 0 && errno != ENOENT) return failed(name, "making room");
    int fd = openat(directory, temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0) return failed(name, "making it");
    qn_err_t err = write_all(fd, &header, sizeof header, name);
    if (!err) err = write_all(fd, ids, (size_t)tokens * sizeof *ids, name);
    if (!err) err = write_blocks(fd, name, ground, blocks, tokens / ground->block_tokens, cancelled, context);
    if (!err) err = publish(directory, fd, temporary, file, name, replace);
    if (err) unlinkat(directory, temporary, 0);
    close(fd);
    return err;
}

/* ---- reading ---- */

qn_err_t saved_open(int directory, const char *name, const saved_ground_t *ground, saved_reader_t *ret_reader)
{
    saved_reader_t reader = {.fd = -1};
    uint64_t bytes;
    qn_err_t err = open_file(directory, name, &reader.fd, &bytes, &reader.header);
    if (err) return err;
    err = check_fit(name, &reader.header, ground);
    size_t ids_bytes = (size_t)reader.header.tokens * sizeof *reader.ids;
    if (!err && !(reader.ids = malloc(ids_bytes))) err = qn_fail(QN_ERR_NO_MEMORY, "'%s': no memory for its ids", name);
    if (!err) err = read_all(reader.fd, reader.ids, ids_bytes, sizeof reader.header, name);
    if (!err && qn_crc32c(0, reader.ids, ids_bytes) != reader.header.ids_crc)
        err = qn_fail(QN_ERR_INVALID, "'%s' is damaged: its token ids", name);
    if (err)
        saved_close(&reader);
    else
        *ret_reader = reader;
    return err;
}

qn_err_t saved_read(const saved_reader_t *reader, const saved_ground_t *ground, uint32_t first, uint32_t count,
                    const uint32_t *blocks, bool (*cancelled)(const void *), const void *context)
{
    uint64_t plane = plane_bytes(ground), bytes = block_bytes(ground);
    uint64_t begin = sizeof reader->header + (uint64_t)reader->header.tokens * 4;
    uint8_t *buffer = malloc(bytes + 4);
    qn_err_t err = buffer ? QN_OK : qn_fail(QN_ERR_NO_MEMORY, "saved prefix: no memory for a block");
    for (uint32_t i = 0; !err && i < count; i++) {
        uint32_t crc;
        if (cancelled(context)) err = qn_fail(QN_ERR_CANCELLED, "restoring was given up");
        if (!err) err = read_all(reader->fd, buffer, bytes + 4, begin + (first + i) * (bytes + 4), "saved prefix");
        if (err) break;
        memcpy(&crc, buffer + bytes, sizeof crc);
        if (crc != qn_crc32c(0, buffer, bytes))
            err = qn_fail(QN_ERR_INVALID, "it is damaged: block %" PRIu32, first + i);
        else
            err = qn_region_copy_in(ground->region, blocks[i] * plane, plane * ground->block_count, plane,
                                    ground->layers * 2, buffer);
    }
    free(buffer);
    return err;
}

void saved_close(saved_reader_t *reader)
{
    if (reader->fd >= 0) close(reader->fd);
    free(reader->ids);
    *reader = (saved_reader_t){.fd = -1};
}
