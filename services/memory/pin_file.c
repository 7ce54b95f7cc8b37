/* What is this?      The pin book's file.
 * State owned:       none.
 * Must never:        believe a length in the file before the checksum of the whole.
 * Read next:         pin_book.c.
 *
 * header, then per pin an entry, its ids, its blocks; all in one buffer, little endian as in memory. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/checksum.h"
#include "common/file.h"
#include "services/memory/pin_book_internal.h"

#define MAGIC "QNPINS01"
#define FILE_BYTES_MAX (UINT32_C(1) << 30)
#define TOKENS_MAX (UINT32_C(1) << 20)

typedef struct {
    char magic[8];
    uint32_t crc; /* of all that follows this field */
    uint32_t count;
    uint32_t next_number, unused;
    pin_ground_t ground;
} header_t;

#define CRC_FROM offsetof(header_t, count)

typedef struct {
    uint64_t salt, expires_ms;
    uint32_t number, pool_pin, tokens, block_count;
    uint32_t rows, unused;
    char owner[PIN_OWNER_MAX];
} entry_t;

/* ---- writing ---- */

static const uint32_t *blocks_of(const block_pool_t *pool, const pin_record_t *record, uint32_t *ret_count)
{
    *ret_count = 0;
    return record->pool_pin ? block_pool_pin_blocks(pool, record->pool_pin, ret_count) : NULL;
}

static size_t book_bytes(const pin_book_t *book, const block_pool_t *pool)
{
    size_t bytes = sizeof(header_t);
    for (uint32_t i = 0; i < book->count; i++) {
        uint32_t blocks;
        blocks_of(pool, &book->records[i], &blocks);
        bytes += sizeof(entry_t) + ((size_t)book->records[i].tokens + blocks) * sizeof(uint32_t);
    }
    return bytes;
}

static uint8_t *put(uint8_t *at, const void *bytes, size_t count)
{
    if (count) memcpy(at, bytes, count);
    return at + count;
}

static void lay_out(const pin_book_t *book, const block_pool_t *pool, uint8_t *buffer, size_t bytes)
{
    header_t header = {.magic = MAGIC, .count = book->count, .next_number = book->next_number, .ground = book->ground};
    uint8_t *at = buffer + sizeof header;
    for (uint32_t i = 0; i < book->count; i++) {
        const pin_record_t *record = &book->records[i];
        entry_t entry = {.salt = record->salt,
                         .expires_ms = record->expires_ms,
                         .number = record->number,
                         .pool_pin = record->pool_pin,
                         .tokens = record->tokens,
                         .rows = record->rows};
        const uint32_t *blocks = blocks_of(pool, record, &entry.block_count);
        memcpy(entry.owner, record->owner, sizeof entry.owner);
        at = put(at, &entry, sizeof entry);
        at = put(at, record->ids, (size_t)record->tokens * sizeof(uint32_t));
        at = put(at, blocks, (size_t)entry.block_count * sizeof(uint32_t));
    }
    memcpy(buffer, &header, sizeof header);
    header.crc = qn_crc32c(0, buffer + CRC_FROM, bytes - CRC_FROM);
    memcpy(buffer, &header, sizeof header);
}

static qn_err_t write_buffer(const char *path, const uint8_t *buffer, size_t bytes)
{
    char temporary[QN_PATH_MAX + 32];
    snprintf(temporary, sizeof temporary, "%s.new", path);
    unlink(temporary);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0) return qn_fail(QN_ERR_IO, "%s: %s", temporary, strerror(errno));
    bool good = true;
    for (size_t done = 0; good && done < bytes;) {
        ssize_t wrote = write(fd, buffer + done, bytes - done);
        good = wrote > 0 || (wrote < 0 && errno == EINTR);
        if (wrote > 0) done += (size_t)wrote;
    }
    good = good && rename(temporary, path) == 0; /* no fsync: after a loss of power the blocks are gone too */
    qn_err_t err = good ? QN_OK : qn_fail(QN_ERR_IO, "%s: %s", path, strerror(errno));
    close(fd);
    return err;
}

qn_err_t pin_file_write(const pin_book_t *book, const block_pool_t *pool)
{
    size_t bytes = book_bytes(book, pool);
    uint8_t *buffer = bytes <= FILE_BYTES_MAX ? malloc(bytes) : NULL;
    if (!buffer) return qn_fail(QN_ERR_NO_MEMORY, "pins: no memory for a list of %zu bytes", bytes);
    lay_out(book, pool, buffer, bytes);
    qn_err_t err = write_buffer(book->path, buffer, bytes);
    free(buffer);
    return err;
}

void pin_file_remove(const pin_book_t *book) { unlink(book->path); }

/* ---- reading ---- */

typedef struct {
    const uint8_t *at;
    size_t left;
} reader_t;

static bool get(reader_t *reader, void *to, size_t count)
{
    if (count > reader->left) return false;
    if (count) memcpy(to, reader->at, count);
    reader->at += count;
    reader->left -= count;
    return true;
}

static uint32_t *get_numbers(reader_t *reader, uint32_t count)
{
    uint32_t *numbers = malloc((size_t)count * sizeof *numbers + 1);
    if (numbers && get(reader, numbers, (size_t)count * sizeof *numbers)) return numbers;
    free(numbers);
    return NULL;
}

static bool read_record(pin_book_t *book, reader_t *reader)
{
    entry_t entry;
    uint32_t last = book->count ? book->records[book->count - 1].number : 0;
    if (!get(reader, &entry, sizeof entry)) return false;
    if (entry.tokens == 0 || entry.tokens > TOKENS_MAX || entry.block_count > entry.tokens || entry.number <= last)
        return false;
    pin_record_t record = {.number = entry.number,
                           .pool_pin = entry.pool_pin,
                           .salt = entry.salt,
                           .expires_ms = entry.expires_ms,
                           .tokens = entry.tokens,
                           .rows = entry.rows != 0};
    memcpy(record.owner, entry.owner, sizeof entry.owner);
    record.ids = get_numbers(reader, entry.tokens);
    uint32_t *blocks = record.ids ? get_numbers(reader, entry.block_count) : NULL;
    if (!blocks) {
        free(record.ids);
        return false;
    }
    book->blocks[book->count] = blocks;
    book->block_counts[book->count] = entry.block_count;
    book->records[book->count++] = record;
    return true;
}

void pin_file_free_blocks(pin_book_t *book)
{
    for (uint32_t i = 0; i < BLOCK_POOL_PINS_MAX; i++) {
        free(book->blocks[i]);
        book->blocks[i] = NULL;
    }
}

static qn_err_t read_book(pin_book_t *book, const char *text, size_t bytes, pin_ground_t *ret_ground)
{
    header_t header;
    reader_t reader = {.at = (const uint8_t *)text, .left = bytes};
    bool good = get(&reader, &header, sizeof header) && memcmp(header.magic, MAGIC, sizeof header.magic) == 0 &&
                header.crc == qn_crc32c(0, text + CRC_FROM, bytes - CRC_FROM) && header.count <= BLOCK_POOL_PINS_MAX;
    for (uint32_t i = 0; good && i < header.count; i++)
        good = read_record(book, &reader);
    if (good && reader.left == 0) {
        book->next_number = header.next_number > 0 ? header.next_number : 1;
        *ret_ground = header.ground;
        return QN_OK;
    }
    pin_file_free_blocks(book);
    while (book->count > 0)
        free(book->records[--book->count].ids);
    return qn_fail(QN_ERR_INVALID, "%s is damaged, or of another build", book->path);
}

qn_err_t pin_file_read(pin_book_t *book, pin_ground_t *ret_ground)
{
    char *text;
    size_t bytes;
    qn_err_t err = qn_file_read(book->path, FILE_BYTES_MAX, &text, &bytes);
    if (err) return err;
    err = read_book(book, text, bytes, ret_ground);
    free(text);
    return err;
}
