/* What bpe_build.c (tables) and bpe.c (encoding) share: look-ups in a bpe_t, and short words as integers. Private
 * to these two files. */
#ifndef QUINTET_TOKENIZER_BPE_TABLES_H
#define QUINTET_TOKENIZER_BPE_TABLES_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "services/tokenizer/bpe.h"

#define BPE_NO_RANK UINT32_MAX
#define BPE_FREE_PAIR UINT64_MAX

static inline uint64_t bpe_fold(uint64_t low, uint64_t high)
{
    unsigned __int128 product = (unsigned __int128)(low ^ 0xD6E8FEB86659FD93ull) * (high ^ 0xA0761D6478BD642Full);
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* A word of 1..15 bytes as two integers. */
static inline void bpe_load_key(const uint8_t *word, size_t bytes, size_t readable, uint64_t *ret_low,
                            uint64_t *ret_high)
{
    uint64_t key[2] = { 0, 0 };
    if (__builtin_expect(readable >= 16, 1)) {
        memcpy(key, word, 16);
        key[0] &= bytes >= 8 ? UINT64_MAX : (1ull << (8 * bytes)) - 1;
        key[1] &= bytes > 8 ? (1ull << (8 * (bytes - 8))) - 1 : 0;
    } else {
        memcpy(key, word, bytes);
    }
    *ret_low = key[0];
    *ret_high = key[1] | (uint64_t)bytes << 56;
}

static inline uint64_t bpe_pair_key(uint32_t left, uint32_t right) { return (uint64_t)left << BPE_ID_BITS | right; }

/* Fibonacci hashing: the top bits of a product. */
static inline uint64_t *bpe_pair_slot(const bpe_t *bpe, uint64_t key)
{
    for (size_t at = (key * 0x9E3779B97F4A7C15ull) >> bpe->pair_shift;; at = (at + 1) & bpe->pair_mask) {
        uint64_t *slot = &bpe->pairs[at];
        if (*slot >> BPE_RANK_BITS == key || *slot == BPE_FREE_PAIR) return slot;
    }
}

static inline uint32_t bpe_pair_rank(const bpe_t *bpe, uint32_t left, uint32_t right)
{
    uint64_t slot = *bpe_pair_slot(bpe, bpe_pair_key(left, right));
    return slot == BPE_FREE_PAIR ? BPE_NO_RANK : (uint32_t)(slot & ((1u << BPE_RANK_BITS) - 1));
}

/* A character's piece with the prefix and suffix its place asks for. */
static inline uint32_t bpe_character_id(const bpe_t *bpe, const uint8_t *character, unsigned bytes, bool is_first,
                             bool is_last)
{
    if (!bpe->prefix && !bpe->suffix) {
        return bytes == 1 ? bpe->start_ids[character[0]] : vocabulary_find(&bpe->pieces, character, bytes);
    }
    text_buffer_t piece = { 0 };
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

static inline bool bpe_is_whole(const bpe_t *bpe, uint32_t id)
{
    return bpe->ignore_merges || (bpe->whole[id >> 6] >> (id & 63) & 1);
}

#endif
