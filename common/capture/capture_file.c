/* What is this?      Writer and reader of capture files.
 * State owned:       the open file.
 * Must never:        trust a length in a file.
 * Read next:         capture_file.h (format). */
#include "common/capture/capture_file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/checksum.h"
#include "common/clock.h"

static const char magic[8] = {'Q', 'N', 'T', 'C', 'A', 'P', '\r', '\n'};
#define VERSION 2

typedef struct {
    char magic[8];
    uint32_t version, reserved;
    uint64_t clock_ns, begun_ns;
} file_header_t;

typedef struct {
    uint32_t bytes, crc;
} record_header_t;

/* What a payload holds before its frame. */
typedef struct {
    uint64_t missed;
    qn_tap_header_t header;
} prefix_t;

_Static_assert(sizeof(file_header_t) == 32 && sizeof(record_header_t) == 8 && sizeof(prefix_t) == 72, "as documented");

struct qn_capture {
    FILE *file; /* owned */
    char path[QN_PATH_MAX];
    uint64_t clock_ns;
    uint64_t offset; /* of the next record */
    uint8_t *frame;  /* owned; read buffer */
    size_t capacity;
};

static uint32_t crc_of(const prefix_t *prefix, const void *frame, size_t bytes)
{
    return qn_crc32c(qn_crc32c(0, prefix, sizeof *prefix), frame, bytes);
}

static qn_err_t open_file(const char *path, const char *mode, qn_capture_t **ret_capture)
{
    qn_capture_t *capture = calloc(1, sizeof *capture);
    if (!capture) return qn_fail(QN_ERR_NO_MEMORY, "no memory for a capture file");
    bool standard = strcmp(path, "-") == 0;
    if (standard) path = mode[0] == 'r' ? "standard input" : "standard output";
    snprintf(capture->path, sizeof capture->path, "%s", path);
    int fd = standard ? fcntl(mode[0] == 'r' ? STDIN_FILENO : STDOUT_FILENO, F_DUPFD_CLOEXEC, 3) : -1;
    capture->file = !standard ? fopen(path, mode) : fd >= 0 ? fdopen(fd, mode) : NULL;
    if (!capture->file) {
        qn_err_t err =
            qn_fail(errno == ENOENT ? QN_ERR_NOT_FOUND : QN_ERR_IO, "cannot open %s: %s", path, strerror(errno));
        free(capture);
        return err;
    }
    *ret_capture = capture;
    return QN_OK;
}

static qn_err_t write_failed(const qn_capture_t *capture)
{
    return qn_fail(QN_ERR_IO, "cannot write %s: %s", capture->path, strerror(errno));
}

qn_err_t qn_capture_create(const char *path, uint64_t clock_ns, qn_capture_t **ret_capture)
{
    qn_capture_t *capture = NULL;
    qn_err_t err = open_file(path, "wbe", &capture);
    if (err) return err;
    capture->clock_ns = clock_ns;
    file_header_t header = {.version = VERSION, .clock_ns = clock_ns, .begun_ns = qn_clock_now_ns()};
    memcpy(header.magic, magic, sizeof magic);
    if (fwrite(&header, sizeof header, 1, capture->file) != 1) {
        err = write_failed(capture);
        qn_capture_close(&capture);
        return err;
    }
    *ret_capture = capture;
    return QN_OK;
}

qn_err_t qn_capture_write(qn_capture_t *capture, const qn_capture_message_t *message)
{
    prefix_t prefix = {.missed = message->missed, .header = message->header};
    record_header_t record = {.bytes = (uint32_t)(sizeof prefix + message->bytes),
                              .crc = crc_of(&prefix, message->frame, message->bytes)};
    if (fwrite(&record, sizeof record, 1, capture->file) != 1 ||
        fwrite(&prefix, sizeof prefix, 1, capture->file) != 1 ||
        fwrite(message->frame, 1, message->bytes, capture->file) != message->bytes)
        return write_failed(capture);
    return QN_OK;
}

qn_err_t qn_capture_flush(qn_capture_t *capture) { return fflush(capture->file) ? write_failed(capture) : QN_OK; }

qn_err_t qn_capture_open(const char *path, qn_capture_t **ret_capture)
{
    qn_capture_t *capture = NULL;
    qn_err_t err = open_file(path, "rbe", &capture);
    if (err) return err;
    file_header_t header;
    if (fread(&header, sizeof header, 1, capture->file) != 1 || memcmp(header.magic, magic, sizeof magic))
        err = qn_fail(QN_ERR_INVALID, "%s is no capture of quintet sniff -w", path);
    else if (header.version != VERSION)
        err = qn_fail(QN_ERR_UNSUPPORTED, "%s is a capture of version %" PRIu32 "; this program reads version %d", path,
                      header.version, VERSION);
    if (err) {
        qn_capture_close(&capture);
        return err;
    }
    capture->clock_ns = header.clock_ns;
    capture->offset = sizeof header;
    *ret_capture = capture;
    return QN_OK;
}

uint64_t qn_capture_clock_ns(const qn_capture_t *capture) { return capture->clock_ns; }

static qn_capture_outcome_t torn(const qn_capture_t *capture, const char *why)
{
    qn_fail(QN_ERR_INVALID, "%s ends in a torn record at byte %" PRIu64 " (%s): what follows is left out",
            capture->path, capture->offset, why);
    return QN_CAPTURE_TORN;
}

static bool reserve(qn_capture_t *capture, size_t bytes)
{
    if (bytes <= capture->capacity) return true;
    uint8_t *frame = realloc(capture->frame, bytes);
    if (!frame) return false;
    capture->frame = frame;
    capture->capacity = bytes;
    return true;
}

qn_capture_outcome_t qn_capture_read(qn_capture_t *capture, qn_capture_message_t **ret_message)
{
    record_header_t record;
    prefix_t prefix;
    size_t got = fread(&record, 1, sizeof record, capture->file);
    if (!got) return QN_CAPTURE_END;
    if (got < sizeof record) return torn(capture, "cut short");
    if (record.bytes < sizeof prefix || record.bytes - sizeof prefix > QN_FRAME_BYTES_MAX)
        return torn(capture, "impossible length");
    size_t bytes = record.bytes - sizeof prefix;
    if (!reserve(capture, bytes)) return torn(capture, "no memory");
    if (fread(&prefix, sizeof prefix, 1, capture->file) != 1 || fread(capture->frame, 1, bytes, capture->file) != bytes)
        return torn(capture, "cut short");
    if (record.crc != crc_of(&prefix, capture->frame, bytes)) return torn(capture, "wrong CRC");
    if (prefix.header.frame_bytes != bytes || !memchr(prefix.header.service, 0, sizeof prefix.header.service))
        return torn(capture, "broken header");
    qn_capture_message_t *message = qn_capture_message_new(&prefix.header, capture->frame, bytes, prefix.missed);
    if (!message) return torn(capture, "no memory");
    capture->offset += sizeof record + record.bytes;
    *ret_message = message;
    return QN_CAPTURE_MESSAGE;
}

qn_err_t qn_capture_close(qn_capture_t **capture)
{
    if (!*capture) return QN_OK;
    qn_err_t err = fclose((*capture)->file) ? write_failed(*capture) : QN_OK;
    free((*capture)->frame);
    free(*capture);
    *capture = NULL;
    return err;
}
