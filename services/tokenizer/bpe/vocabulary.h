/* Byte strings with ids, looked up both ways. Built once, then immutable: any number of threads may
 * look up. Used twice: for pieces as a tokenizer.json writes them and, for byte-level models, for the
 * bytes they stand for. */
#ifndef QN_TOKENIZER_BPE_VOCABULARY_H
#define QN_TOKENIZER_BPE_VOCABULARY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "services/tokenizer/text_buffer.h"

#define VOCABULARY_NO_ID UINT32_MAX

typedef struct {
    uint32_t offset, length; /* in bytes of the pool */
    uint32_t id;
} vocabulary_entry_t;

typedef struct {
    uint32_t hash;
    uint32_t entry; /* index + 1; 0: free */
} vocabulary_slot_t;

typedef struct {
    text_buffer_t pool;
    vocabulary_entry_t *entries; /* [count], owned */
    vocabulary_slot_t *slots;    /* [slot_mask + 1], owned */
    uint32_t *by_id;             /* [id_limit] entry index + 1, 0: no such id; owned */
    size_t count, capacity;
    size_t slot_mask;
    size_t by_id_capacity;
    uint32_t id_limit; /* largest id + 1 */
} vocabulary_t;

/* `expected` entries: sizes the tables; more may be added. */
void vocabulary_init(vocabulary_t *vocabulary, size_t expected);
void vocabulary_fini(vocabulary_t *vocabulary);

/* Adds a piece (copied). A piece that is there already gets the new id; an id that is there already names
 * the new piece from now on. Total bytes must stay below 4 GiB. */
void vocabulary_add(vocabulary_t *vocabulary, const void *piece, size_t bytes, uint32_t id);

/* Id of a piece or VOCABULARY_NO_ID. */
uint32_t vocabulary_find(const vocabulary_t *vocabulary, const void *piece, size_t bytes);

/* View of the piece of an id; NULL when there is none. */
const uint8_t *vocabulary_piece(const vocabulary_t *vocabulary, uint32_t id, size_t *ret_bytes);

#endif
