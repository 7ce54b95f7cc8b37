/* What bpe_build.c (tables) and bpe.c (encoding) share: look-ups in a bpe_t, and short words as integers. Private
 * to these two files. */
#ifndef QN_TOKENIZER_BPE_BPE_TABLES_H
#define QN_TOKENIZER_BPE_BPE_TABLES_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "services/tokenizer/bpe/bpe.h"

#define BPE_NO_RANK UINT32_MAX
#define BPE_FREE_PAIR UINT64_MAX
#define BPE_FILTER_BITS \
    2 /* four filter bits for each slot: half of the pairs asked for are not there, and the filter
                           * fits the near caches, the table does not */

static inline uint64_t bpe_fold(uint64_t low, uint64_t high)
{
    unsigned __int128 product = (unsigned __int128)(low ^ 0xD6E8FEB86659FD93ull) * (high ^ 0xA0761D6478BD642Full);
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words are read as integers, the first byte lowest");

/* A word of 1..15 bytes as bpe_load_key gives it, without reading beyond: halves that overlap agree where they do. */
static inline void bpe_load_key_exactly(const uint8_t *word, size_t bytes, uint64_t key[2])
{
    uint32_t first, last;
    if (bytes > 8) {
        memcpy(&key[0], word, 8);
        memcpy(&key[1], word + bytes - 8, 8);
        key[1] >>= 8 * (16 - bytes);
    } else if (bytes == 8) {
        memcpy(&key[0], word, 8);
    } else if (bytes >= 4) {
        memcpy(&first, word, 4);
        memcpy(&last, word + bytes - 4, 4);
        key[0] = first | (uint64_t)last << 8 * (bytes - 4);
    } else {
        key[0] = word[0] | (uint64_t)word[bytes / 2] << 8 * (bytes / 2) | (uint64_t)word[bytes - 1] << 8 * (bytes - 1);
    }
}

/* A word of 1..15 bytes as two integers: its bytes in order, padded with zeros, and its length. */
static inline void bpe_load_key(const uint8_t *word, size_t bytes, size_t readable, uint64_t *ret_low,
                                uint64_t *ret_high)
{
    uint64_t key[2] = {0, 0};
    if (__builtin_expect(readable >= 16, 1)) {
        memcpy(key, word, 16);
        key[0] &= bytes >= 8 ? UINT64_MAX : (1ull << (8 * bytes)) - 1;
        key[1] &= bytes > 8 ? (1ull << (8 * (bytes - 8))) - 1 : 0;
    } else {
        bpe_load_key_exactly(word, bytes, key);
    }
    *ret_low = key[0];
    *ret_high = key[1] | (uint64_t)bytes << 56;
}

static inline uint64_t bpe_pair_key(uint32_t left, uint32_t right) { return (uint64_t)left << BPE_ID_BITS | right; }

/* Fibonacci hashing: the top bits of a product. */
static inline uint64_t bpe_pair_hash(uint64_t key) { return key * 0x9E3779B97F4A7C15ull; }

static inline uint64_t *bpe_pair_slot(const bpe_t *bpe, uint64_t key)
{
    for (size_t at = bpe_pair_hash(key) >> bpe->pair_shift;; at = (at + 1) & bpe->pair_mask) {
        uint64_t *slot = &bpe->pairs[at];
        if (*slot >> BPE_RANK_BITS == key || *slot == BPE_FREE_PAIR) return slot;
    }
}

static inline size_t bpe_filter_bit(const bpe_t *bpe, uint64_t key)
{
    return bpe_pair_hash(key) >> (bpe->pair_shift - BPE_FILTER_BITS);
}

static inline uint32_t bpe_pair_rank(const bpe_t *bpe, uint32_t left, uint32_t right)
{
    uint64_t key = bpe_pair_key(left, right);
    size_t bit = bpe_filter_bit(bpe, key);
    if (!(bpe->pair_filter[bit >> 6] >> (bit & 63) & 1)) return BPE_NO_RANK;
    uint64_t slot = *bpe_pair_slot(bpe, key);
    return slot == BPE_FREE_PAIR ? BPE_NO_RANK : (uint32_t)(slot & ((1u << BPE_RANK_BITS) - 1));
}

/* A character's piece with the prefix and suffix its place asks for. */
static inline uint32_t bpe_character_id(const bpe_t *bpe, const uint8_t *character, unsigned bytes, bool is_first,
                                        bool is_last)
{
    if (!bpe->prefix && !bpe->suffix) {
        return bytes == 1 ? bpe->start_ids[character[0]] : vocabulary_find(&bpe->pieces, character, bytes);
    }
    text_buffer_t piece = {0};
    if (!is_first && bpe->prefix) text_buffer_append(&piece, bpe->prefix, strlen(bpe->prefix));
    text_buffer_append(&piece, character, bytes);
    if (is_last && bpe->suffix) text_buffer_append(&piece, bpe->suffix, strlen(bpe->suffix));
    uint32_t id = vocabulary_find(&bpe->pieces, piece.bytes, piece.length);
    text_buffer_fini(&piece);
    return id;
}

static inline uint32_t bpe_merged_id(const bpe_t *bpe, uint32_t rank)
{
    return bpe->is_affine ? bpe->affine_base + rank : bpe->merged_ids[rank];
}

/* May the characters before and from `at` on (0 < at < bytes of the word) end up in one token? Not at all inside a
 * character: that is never asked. */
static inline bool bpe_can_join(const bpe_t *bpe, const uint8_t *word, size_t at)
{
    unsigned pair = (unsigned)word[at - 1] << 8 | word[at];
    return bpe->joins[pair >> 6] >> (pair & 63) & 1;
}

static inline bool bpe_is_whole(const bpe_t *bpe, uint32_t id)
{
    return bpe->ignore_merges || (bpe->whole[id >> 6] >> (id & 63) & 1);
}

#endif
