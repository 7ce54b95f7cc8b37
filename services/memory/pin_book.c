/* What is this?      The list of pins: owners, times, and which of them the pool holds.
 * State owned:       the records and their ids.
 * Must never:        hold a block itself (block_pool_pins.c), or let blocks go before the file says so.
 * Read next:         pin_book.h, pin_file.c (how it is written), methods_cache.c (who asks). */
#include "services/memory/pin_book_internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "common/watch/log.h"

qn_err_t pin_book_create(const char *path, pin_book_t **ret_book)
{
    pin_book_t *book = calloc(1, sizeof *book);
    if (!book) return qn_fail(QN_ERR_NO_MEMORY, "pins: no memory");
    book->path = strdup(path);
    book->next_number = 1;
    if (!book->path) {
        pin_book_destroy(&book);
        return qn_fail(QN_ERR_NO_MEMORY, "pins: no memory");
    }
    *ret_book = book;
    return QN_OK;
}

void pin_book_destroy(pin_book_t **book_pointer)
{
    pin_book_t *book = *book_pointer;
    if (!book) return;
    for (uint32_t i = 0; i < book->count; i++)
        free(book->records[i].ids);
    free(book->path);
    free(book);
    *book_pointer = NULL;
}

uint32_t pin_book_count(const pin_book_t *book) { return book->count; }

const pin_record_t *pin_book_at(const pin_book_t *book, uint32_t index)
{
    QN_ASSERT(index < book->count);
    return &book->records[index];
}

const pin_record_t *pin_book_of_pool(const pin_book_t *book, uint32_t pool_pin)
{
    for (uint32_t i = 0; pool_pin && i < book->count; i++)
        if (book->records[i].pool_pin == pool_pin) return &book->records[i];
    return NULL;
}

/* ---- changes ---- */

/* A book that cannot be written is forgotten by the next life, rather than believed when it is old. */
static void write_down(pin_book_t *book, const block_pool_t *pool)
{
    if (pin_file_write(book, pool) == QN_OK) return;
    qn_log_warning("pins will not outlive memory: %s", qn_err_text());
    pin_file_remove(book);
}

/* The record goes; the pool's pin too when it was the last that wanted it. */
static void drop(pin_book_t *book, block_pool_t *pool, uint32_t index)
{
    pin_record_t gone = book->records[index];
    book->count--;
    memmove(book->records + index, book->records + index + 1, (book->count - index) * sizeof *book->records);
    if (gone.pool_pin && !pin_book_of_pool(book, gone.pool_pin)) block_pool_unpin(pool, gone.pool_pin);
    free(gone.ids);
}

static uint32_t remove_where(pin_book_t *book, block_pool_t *pool, bool (*matches)(const pin_record_t *, const void *),
                             const void *context)
{
    uint32_t removed = 0;
    for (uint32_t i = book->count; i-- > 0;)
        if (matches(&book->records[i], context)) {
            drop(book, pool, i);
            removed++;
        }
    if (removed) write_down(book, pool); /* before anybody can be given the blocks: the loop's next message */
    return removed;
}

static bool has_number(const pin_record_t *record, const void *number)
{
    return record->number == *(const uint32_t *)number;
}
static bool has_owner(const pin_record_t *record, const void *owner) { return strcmp(record->owner, owner) == 0; }
static bool is_any(const pin_record_t *record, const void *nothing) { return (void)record, (void)nothing, true; }
static bool is_over(const pin_record_t *record, const void *now_ms)
{
    return record->expires_ms <= *(const uint64_t *)now_ms;
}

uint32_t pin_book_remove(pin_book_t *book, block_pool_t *pool, uint32_t number)
{
    return remove_where(book, pool, has_number, &number);
}

uint32_t pin_book_remove_owner(pin_book_t *book, block_pool_t *pool, const char *owner)
{
    return remove_where(book, pool, has_owner, owner);
}

uint32_t pin_book_remove_all(pin_book_t *book, block_pool_t *pool) { return remove_where(book, pool, is_any, NULL); }

const pin_record_t *pin_book_add(pin_book_t *book, block_pool_t *pool, uint32_t pool_pin, bool rows, const char *owner,
                                 uint64_t expires_ms)
{
    pin_record_t *record = NULL;
    for (uint32_t i = 0; i < book->count; i++)
        if (book->records[i].pool_pin == pool_pin && strcmp(book->records[i].owner, owner) == 0)
            record = &book->records[i];
    if (!record) {
        pin_record_t fresh = {.number = book->next_number, .pool_pin = pool_pin, .rows = rows};
        uint32_t tokens = 0;
        QN_ASSERT(block_pool_pin_ids(pool, pool_pin, 0, NULL, &tokens, &fresh.salt));
        if (book->count < BLOCK_POOL_PINS_MAX) fresh.ids = malloc((size_t)tokens * sizeof *fresh.ids);
        if (!fresh.ids) {
            if (!pin_book_of_pool(book, pool_pin)) block_pool_unpin(pool, pool_pin);
            return NULL;
        }
        block_pool_pin_ids(pool, pool_pin, tokens, fresh.ids, &fresh.tokens, &fresh.salt);
        strncpy(fresh.owner, owner, PIN_OWNER_MAX);
        book->next_number++;
        record = &book->records[book->count++];
        *record = fresh;
    }
    record->expires_ms = expires_ms;
    write_down(book, pool);
    return record;
}

/* ---- what waits ---- */

static bool hold_again(pin_book_t *book, block_pool_t *pool, pin_record_t *record)
{
    uint32_t pin, tokens;
    (void)book;
    if (block_pool_resident(pool, record->salt, record->ids, record->tokens) <
        record->tokens - record->tokens % block_pool_block_tokens(pool))
        return false;
    block_pool_pin_outcome_t outcome =
        record->rows ? block_pool_clone(pool, record->salt, record->ids, record->tokens, &pin, &tokens)
                     : block_pool_pin(pool, record->salt, record->ids, record->tokens, &pin, &tokens);
    if (outcome != BLOCK_POOL_PINNED) return false;
    record->pool_pin = pin;
    return true;
}

uint64_t pin_book_tick(pin_book_t *book, block_pool_t *pool, uint64_t now_ms)
{
    uint64_t next_ms = PIN_NEVER;
    bool held = false;
    remove_where(book, pool, is_over, &now_ms);
    for (uint32_t i = 0; i < book->count; i++) {
        pin_record_t *record = &book->records[i];
        if (!record->pool_pin) held |= hold_again(book, pool, record);
        if (record->expires_ms < next_ms) next_ms = record->expires_ms;
    }
    if (held) write_down(book, pool);
    return next_ms;
}

/* ---- another life's ---- */

void pin_book_open(pin_book_t *book, block_pool_t *pool, const pin_ground_t *ground, bool bytes_live, uint64_t now_ms)
{
    pin_ground_t then = {0};
    QN_ASSERT(book->count == 0);
    book->ground = *ground;
    qn_err_t err = pin_file_read(book, &then);
    if (err == QN_ERR_NOT_FOUND) return;
    if (err) {
        qn_log_warning("pins of before are lost: %s", qn_err_text());
        pin_file_remove(book);
        return;
    }
    bool same_model = then.fingerprint == ground->fingerprint;
    bool same_bytes = bytes_live && memcmp(&then, ground, sizeof then) == 0;
    if (!same_model) {
        qn_log_notice("%" PRIu32 " pins are of another model, and are forgotten", book->count);
        pin_book_remove_all(book, pool);
    }
    uint32_t held = 0;
    for (uint32_t i = 0; i < book->count; i++) {
        pin_record_t *record = &book->records[i];
        uint32_t pin = record->pool_pin, blocks = book->block_counts[i];
        const pin_record_t *other = NULL; /* another owner's of the same pin comes first */
        for (uint32_t j = 0; j < i && pin; j++)
            if (book->was_pins[j] == pin) other = &book->records[j];
        book->was_pins[i] = pin;
        record->pool_pin = 0;
        if (other)
            record->pool_pin = other->pool_pin;
        else if (same_bytes && pin &&
                 block_pool_adopt(pool, pin, record->salt, record->ids, record->tokens, book->blocks[i], blocks))
            record->pool_pin = pin;
        held += record->pool_pin != 0;
    }
    pin_file_free_blocks(book);
    if (book->count)
        qn_log_notice("%" PRIu32 " pins of before: %" PRIu32 " are held in their blocks, %" PRIu32
                      " wait until their prefix is computed again",
                      book->count, held, book->count - held);
    pin_book_tick(book, pool, now_ms);
    write_down(book, pool);
}
