/* The pin book: who pinned what, and until when. The pool knows blocks; the book knows owners, and outlives both: it is
 * written to a file at every change, so that a restarted memory holds the same blocks again when their bytes live on, and
 * otherwise holds the prefix again as soon as somebody has computed it.
 *
 * Several records may keep the same prefix for different owners: it stays as long as one of them. Times are given, in
 * milliseconds since 1970. One thread; blocks for a small file's write. */
#ifndef QN_MEMORY_PIN_BOOK_H
#define QN_MEMORY_PIN_BOOK_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "services/memory/block_pool.h"

#define PIN_OWNER_MAX 64
#define PIN_NEVER UINT64_MAX

/* What a file's blocks mean something in. */
typedef struct {
    uint64_t fingerprint; /* of the weights */
    uint64_t kv_id;       /* of the KV region: its id and epoch */
    uint32_t kv_epoch, block_tokens, scalar_bytes, unused;
} pin_ground_t;

typedef struct {
    uint32_t number;   /* from 1; never used twice */
    uint32_t pool_pin; /* 0: nothing of it is resident; it waits */
    uint64_t salt;
    uint64_t expires_ms; /* PIN_NEVER */
    uint32_t tokens;     /* in ids */
    uint32_t *ids;       /* owned */
    bool rows;           /* a clone: to the last token */
    char owner[PIN_OWNER_MAX + 1];
} pin_record_t;

typedef struct pin_book pin_book_t;

/* An empty book that will be written to `path` (copied). Returns owned. */
qn_err_t pin_book_create(const char *path, pin_book_t **ret_book);
void pin_book_destroy(pin_book_t **book);
/* Reads the file of an earlier life, over a pool that nobody has used. `bytes_live`: the KV region may be the one of then
 * (its id and epoch tell). What is damaged, of another model or expired is left out, with a line in the log. */
void pin_book_open(pin_book_t *book, block_pool_t *pool, const pin_ground_t *ground, bool bytes_live, uint64_t now_ms);

/* Records a pin that the pool has just made or found; the same prefix of the same owner takes the new time. `owner` may be
 * "". Returns view of the record, NULL: BLOCK_POOL_PINS_MAX are recorded (the pin is undone), or no memory. */
const pin_record_t *pin_book_add(pin_book_t *book, block_pool_t *pool, uint32_t pool_pin, bool rows, const char *owner,
                                 uint64_t expires_ms);
/* Removes one, those of an owner, or all. Returns how many. */
uint32_t pin_book_remove(pin_book_t *book, block_pool_t *pool, uint32_t number);
uint32_t pin_book_remove_owner(pin_book_t *book, block_pool_t *pool, const char *owner);
uint32_t pin_book_remove_all(pin_book_t *book, block_pool_t *pool);
/* Removes what has expired, and holds what waited and is resident now. Returns when the next one expires. */
uint64_t pin_book_tick(pin_book_t *book, block_pool_t *pool, uint64_t now_ms);

uint32_t pin_book_count(const pin_book_t *book);
/* View, by number. */
const pin_record_t *pin_book_at(const pin_book_t *book, uint32_t index);
/* The record of this pin of the pool; NULL: none. */
const pin_record_t *pin_book_of_pool(const pin_book_t *book, uint32_t pool_pin);

#endif
