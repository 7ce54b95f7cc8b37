/* What pin_book.c and pin_file.c share. */
#ifndef QN_MEMORY_PIN_BOOK_INTERNAL_H
#define QN_MEMORY_PIN_BOOK_INTERNAL_H

#include "services/memory/pin_book.h"

struct pin_book {
    char *path;
    pin_ground_t ground;
    pin_record_t records[BLOCK_POOL_PINS_MAX]; /* by number */
    uint32_t count, next_number;
    /* Of the file that was read, until its pins are held: by record. */
    uint32_t *blocks[BLOCK_POOL_PINS_MAX]; /* owned */
    uint32_t block_counts[BLOCK_POOL_PINS_MAX];
    uint32_t was_pins[BLOCK_POOL_PINS_MAX];
};

/* Writes the book beside its file and renames it over it. QN_ERR_IO, QN_ERR_NO_MEMORY. */
qn_err_t pin_file_write(const pin_book_t *book, const block_pool_t *pool);
/* Reads the file into the empty book; records have the pool's pin of then. QN_ERR_NOT_FOUND: there is none;
 * QN_ERR_INVALID: it is damaged, or of another build. Nothing is left in the book then. */
qn_err_t pin_file_read(pin_book_t *book, pin_ground_t *ret_ground);
void pin_file_free_blocks(pin_book_t *book);
void pin_file_remove(const pin_book_t *book);

#endif
