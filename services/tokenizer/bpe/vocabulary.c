/* What is this?      An open-addressing hash table over a pool of byte strings.
 * State owned:       the pool, the entries, the slots.
 * Must never:        change after load.
 * Read next:         bpe.h. */
#include "services/tokenizer/bpe/vocabulary.h"

#include <stdlib.h>
#include <string.h>

#include "common/assert.h"

static inline uint64_t mix(uint64_t a, uint64_t b)
{
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* Multiply and fold, eight bytes a turn. */
static uint32_t hash_bytes(const uint8_t *bytes, size_t length)
{
    uint64_t hash = 0x9E3779B97F4A7C15ull ^ length, word;
    for (; length >= 8; bytes += 8, length -= 8) {
        memcpy(&word, bytes, 8);
        hash = mix(hash ^ word, 0xD6E8FEB86659FD93ull);
    }
    word = 0;
    memcpy(&word, bytes, length);
    hash = mix(hash ^ word, 0xA0761D6478BD642Full);
    return (uint32_t)(hash ^ hash >> 32);
}

void vocabulary_init(vocabulary_t *vocabulary, size_t expected)
{
    *vocabulary = (vocabulary_t){0};
    size_t slots = 64;
    while (slots < expected * 2)
        slots *= 2;
    vocabulary->slots = calloc(slots, sizeof *vocabulary->slots);
    QN_ASSERT(vocabulary->slots != NULL);
    vocabulary->slot_mask = slots - 1;
}

void vocabulary_fini(vocabulary_t *vocabulary)
{
    text_buffer_fini(&vocabulary->pool);
    free(vocabulary->entries);
    free(vocabulary->slots);
    free(vocabulary->by_id);
    *vocabulary = (vocabulary_t){0};
}

/* The slot of a piece: the one that holds it or the free one where it belongs. */
static vocabulary_slot_t *find_slot(const vocabulary_t *vocabulary, const uint8_t *piece, size_t bytes, uint32_t hash)
{
    for (size_t at = hash & vocabulary->slot_mask;; at = (at + 1) & vocabulary->slot_mask) {
        vocabulary_slot_t *slot = &vocabulary->slots[at];
        if (slot->entry == 0) return slot;
        if (slot->hash != hash) continue;
        const vocabulary_entry_t *entry = &vocabulary->entries[slot->entry - 1];
        if (entry->length == bytes && memcmp(vocabulary->pool.bytes + entry->offset, piece, bytes) == 0) return slot;
    }
}

static void grow_slots(vocabulary_t *vocabulary)
{
    size_t slots = (vocabulary->slot_mask + 1) * 2;
    vocabulary_slot_t *grown = calloc(slots, sizeof *grown);
    QN_ASSERT(grown != NULL);
    for (size_t i = 0; i <= vocabulary->slot_mask; i++) {
        if (vocabulary->slots[i].entry == 0) continue;
        size_t at = vocabulary->slots[i].hash & (slots - 1);
        while (grown[at].entry)
            at = (at + 1) & (slots - 1);
        grown[at] = vocabulary->slots[i];
    }
    free(vocabulary->slots);
    vocabulary->slots = grown;
    vocabulary->slot_mask = slots - 1;
}

static uint32_t new_entry(vocabulary_t *vocabulary, const void *piece, size_t bytes)
{
    if (vocabulary->count == vocabulary->capacity) {
        vocabulary->capacity = vocabulary->capacity ? vocabulary->capacity * 2 : 1024;
        vocabulary->entries = realloc(vocabulary->entries, vocabulary->capacity * sizeof *vocabulary->entries);
        QN_ASSERT(vocabulary->entries != NULL);
    }
    QN_ASSERT(vocabulary->pool.length + bytes < UINT32_MAX);
    vocabulary->entries[vocabulary->count] =
        (vocabulary_entry_t){(uint32_t)vocabulary->pool.length, (uint32_t)bytes, 0};
    text_buffer_append(&vocabulary->pool, piece, bytes);
    text_buffer_reserve(&vocabulary->pool, 1); /* the pool is never NULL: the empty piece has an address */
    return (uint32_t)++vocabulary->count;
}

static void name_id(vocabulary_t *vocabulary, uint32_t id, uint32_t entry)
{
    if (id >= vocabulary->by_id_capacity) {
        size_t capacity = vocabulary->by_id_capacity ? vocabulary->by_id_capacity : 1024;
        while (capacity <= id)
            capacity *= 2;
        vocabulary->by_id = realloc(vocabulary->by_id, capacity * sizeof *vocabulary->by_id);
        QN_ASSERT(vocabulary->by_id != NULL);
        memset(vocabulary->by_id + vocabulary->by_id_capacity, 0,
               (capacity - vocabulary->by_id_capacity) * sizeof *vocabulary->by_id);
        vocabulary->by_id_capacity = capacity;
    }
    vocabulary->by_id[id] = entry;
    if (id >= vocabulary->id_limit) vocabulary->id_limit = id + 1;
}

void vocabulary_add(vocabulary_t *vocabulary, const void *piece, size_t bytes, uint32_t id)
{
    if ((vocabulary->count + 1) * 2 > vocabulary->slot_mask) grow_slots(vocabulary);
    uint32_t hash = hash_bytes(piece, bytes);
    vocabulary_slot_t *slot = find_slot(vocabulary, piece, bytes, hash);
    if (slot->entry == 0) *slot = (vocabulary_slot_t){hash, new_entry(vocabulary, piece, bytes)};
    vocabulary->entries[slot->entry - 1].id = id;
    name_id(vocabulary, id, slot->entry);
}

uint32_t vocabulary_find(const vocabulary_t *vocabulary, const void *piece, size_t bytes)
{
    const vocabulary_slot_t *slot = find_slot(vocabulary, piece, bytes, hash_bytes(piece, bytes));
    return slot->entry ? vocabulary->entries[slot->entry - 1].id : VOCABULARY_NO_ID;
}

const uint8_t *vocabulary_piece(const vocabulary_t *vocabulary, uint32_t id, size_t *ret_bytes)
{
    if (id >= vocabulary->id_limit || vocabulary->by_id[id] == 0) return NULL;
    const vocabulary_entry_t *entry = &vocabulary->entries[vocabulary->by_id[id] - 1];
    *ret_bytes = entry->length;
    return vocabulary->pool.bytes + entry->offset;
}
