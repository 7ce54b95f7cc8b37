/* What is this?      The tables of a BPE model, built once.
 * State owned:       what a bpe_t owns.
 * Must never:        be called on a bpe_t that threads already use.
 * Read next:         bpe.c (what the tables are for). */
#include <stdlib.h>

#include "common/assert.h"
#include "services/tokenizer/bpe/bpe_tables.h"
#include "services/tokenizer/split/unicode_classes.h"

#define WHOLE_ASKED_BYTES_MAX 255 /* longer pieces are not asked whether they encode to themselves */

void bpe_init(bpe_t *bpe, size_t merge_count)
{
    QN_ASSERT(merge_count < (1u << BPE_RANK_BITS) - 1);
    unsigned bits = 6;
    while (((size_t)1 << bits) < merge_count * 2)
        bits++;
    bpe->pair_shift = 64 - bits;
    bpe->pair_mask = ((size_t)1 << bits) - 1;
    bpe->pairs = malloc((bpe->pair_mask + 1) * sizeof *bpe->pairs);
    bpe->merged_ids = malloc((merge_count + 1) * sizeof *bpe->merged_ids);
    bpe->joins = calloc(1024, sizeof *bpe->joins);
    bpe->pair_filter = calloc((bpe->pair_mask + 1) << BPE_FILTER_BITS >> 6, sizeof *bpe->pair_filter);
    QN_ASSERT(bpe->pairs && bpe->merged_ids && bpe->joins && bpe->pair_filter);
    memset(bpe->pairs, 0xFF, (bpe->pair_mask + 1) * sizeof *bpe->pairs);
    bpe->unknown_id = VOCABULARY_NO_ID;
}

void bpe_fini(bpe_t *bpe)
{
    vocabulary_fini(&bpe->pieces);
    free(bpe->prefix);
    free(bpe->suffix);
    free(bpe->pairs);
    free(bpe->pair_filter);
    free(bpe->merged_ids);
    free(bpe->whole);
    free(bpe->whole_words);
    free(bpe->joins);
    free(bpe->byte_ranks);
    *bpe = (bpe_t){0};
}

void bpe_add_merge(bpe_t *bpe, uint32_t left, uint32_t right, uint32_t merged)
{
    QN_ASSERT(left < (1u << BPE_ID_BITS) && right < (1u << BPE_ID_BITS));
    uint64_t key = bpe_pair_key(left, right);
    *bpe_pair_slot(bpe, key) = key << BPE_RANK_BITS | bpe->merge_count;
    size_t bit = bpe_filter_bit(bpe, key);
    bpe->pair_filter[bit >> 6] |= 1ull << (bit & 63);
    bpe->merged_ids[bpe->merge_count++] = merged;
}

static void find_start_ids(bpe_t *bpe)
{
    for (unsigned i = 0; i < 256; i++) {
        static const char digits[] = "0123456789ABCDEF";
        const char fallback[] = {'<', '0', 'x', digits[i >> 4], digits[i & 15], '>'};
        uint8_t byte = (uint8_t)i;
        bpe->fallback_ids[i] = vocabulary_find(&bpe->pieces, fallback, sizeof fallback);
        bpe->start_ids[i] = vocabulary_find(&bpe->pieces, &byte, 1);
    }
}

/* Which characters can ever be neighbours inside one token: everywhere else a word may be cut. */
static void find_joins(bpe_t *bpe)
{
    for (size_t i = 0; i < bpe->pieces.count; i++) {
        const vocabulary_entry_t *entry = &bpe->pieces.entries[i];
        const uint8_t *piece = bpe->pieces.pool.bytes + entry->offset;
        for (size_t at = 1; at < entry->length; at++) {
            if ((piece[at] & 0xC0) == 0x80) continue;
            unsigned pair = (unsigned)piece[at - 1] << 8 | piece[at];
            bpe->joins[pair >> 6] |= 1ull << (pair & 63);
        }
    }
}

/* Cutting assumes that a token's text is its piece: no merge may involve fallback or unknown tokens. */
static bool merges_are_plain(const bpe_t *bpe)
{
    for (size_t at = 0; at <= bpe->pair_mask; at++) {
        if (bpe->pairs[at] == BPE_FREE_PAIR) continue;
        uint32_t left = (uint32_t)(bpe->pairs[at] >> (BPE_RANK_BITS + BPE_ID_BITS));
        uint32_t right = (uint32_t)(bpe->pairs[at] >> BPE_RANK_BITS) & ((1u << BPE_ID_BITS) - 1);
        if (left == bpe->unknown_id || right == bpe->unknown_id) return false;
        size_t bytes;
        const uint8_t *piece = vocabulary_piece(&bpe->pieces, left, &bytes);
        if (piece && bytes == 6 && memcmp(piece, "<0x", 3) == 0 && bpe->has_fallback) return false;
        piece = vocabulary_piece(&bpe->pieces, right, &bytes);
        if (piece && bytes == 6 && memcmp(piece, "<0x", 3) == 0 && bpe->has_fallback) return false;
    }
    return true;
}

/* Two pieces with one id (a strange vocabulary): what is known of an id then says nothing of a piece. */
static bool shares_ids(const bpe_t *bpe)
{
    for (size_t i = 0; i < bpe->pieces.count; i++)
        if (bpe->pieces.by_id[bpe->pieces.entries[i].id] != i + 1) return true;
    return false;
}

/* Is the piece of a merge what its two pieces say one after the other? */
static bool is_concatenation(const bpe_t *bpe, uint32_t left, uint32_t right, uint32_t merged)
{
    size_t left_bytes, right_bytes, bytes;
    const uint8_t *first = vocabulary_piece(&bpe->pieces, left, &left_bytes);
    const uint8_t *second = vocabulary_piece(&bpe->pieces, right, &right_bytes);
    if (!first || !second) return true; /* no bytes come to this token, so the merge never happens */
    const uint8_t *whole = vocabulary_piece(&bpe->pieces, merged, &bytes);
    return whole && bytes == left_bytes + right_bytes && memcmp(whole, first, left_bytes) == 0 &&
           memcmp(whole + left_bytes, second, right_bytes) == 0;
}

/* The same for bytes: what has merged is then always a piece, and where no piece has two bytes side by side nothing
 * merges across. Not so when an id names a piece of other characters too, whose merges are then those of both. */
static bool merges_concatenate(const bpe_t *bpe)
{
    for (size_t at = 0; at <= bpe->pair_mask; at++) {
        uint64_t pair = bpe->pairs[at];
        if (pair == BPE_FREE_PAIR) continue;
        uint32_t left = (uint32_t)(pair >> (BPE_RANK_BITS + BPE_ID_BITS));
        uint32_t right = (uint32_t)(pair >> BPE_RANK_BITS) & ((1u << BPE_ID_BITS) - 1);
        uint32_t rank = (uint32_t)pair & ((1u << BPE_RANK_BITS) - 1);
        if (!is_concatenation(bpe, left, right, bpe->merged_ids[rank])) return false;
    }
    return true;
}

static bool find_splittable(const bpe_t *bpe)
{
    if (bpe->prefix || bpe->suffix || bpe->ignore_merges || shares_ids(bpe)) return false;
    return bpe->is_byte ? merges_concatenate(bpe) : merges_are_plain(bpe);
}

static void find_whole(bpe_t *bpe)
{
    size_t words = (bpe->pieces.id_limit + 63) / 64;
    bpe->whole = calloc(words ? words : 1, sizeof *bpe->whole);
    QN_ASSERT(bpe->whole != NULL);
    if (bpe->prefix || bpe->suffix || bpe->ignore_merges || shares_ids(bpe)) return;
    bpe_scratch_t *scratch = bpe_scratch_open();
    for (size_t i = 0; i < bpe->pieces.count; i++) {
        const vocabulary_entry_t *entry = &bpe->pieces.entries[i];
        const uint32_t *ids, *ends;
        if (entry->length == 0 || entry->length > WHOLE_ASKED_BYTES_MAX) continue;
        size_t count =
            bpe_encode_spans(bpe, scratch, bpe->pieces.pool.bytes + entry->offset, entry->length, &ids, &ends);
        if (count == 1 && ids[0] == entry->id) bpe->whole[entry->id >> 6] |= 1ull << (entry->id & 63);
    }
    bpe_scratch_close(&scratch);
}

/* Most vocabularies number merged pieces in the order of the merges. */
static void find_affine(bpe_t *bpe)
{
    bpe->is_affine = true;
    bpe->affine_base = bpe->merge_count ? bpe->merged_ids[0] : 0;
    for (size_t rank = 0; rank < bpe->merge_count; rank++)
        bpe->is_affine &= bpe->merged_ids[rank] == bpe->affine_base + rank;
}

static void find_byte_ranks(bpe_t *bpe)
{
    bpe->byte_ranks = malloc(256 * sizeof *bpe->byte_ranks);
    QN_ASSERT(bpe->byte_ranks != NULL);
    for (unsigned left = 0; left < 256; left++) {
        for (unsigned right = 0; right < 256; right++) {
            bool is_pair = bpe->start_ids[left] != VOCABULARY_NO_ID && bpe->start_ids[right] != VOCABULARY_NO_ID;
            bpe->byte_ranks[left][right] =
                is_pair ? bpe_pair_rank(bpe, bpe->start_ids[left], bpe->start_ids[right]) : BPE_NO_RANK;
        }
    }
}

static void add_whole_word(bpe_t *bpe, const uint8_t *piece, size_t bytes, uint32_t id)
{
    uint64_t low, high;
    bpe_load_key(piece, bytes, bytes, &low, &high);
    size_t at = bpe_fold(low, high) & bpe->whole_mask;
    while (bpe->whole_words[at].meta)
        at = (at + 1) & bpe->whole_mask;
    bpe->whole_words[at] = (bpe_whole_word_t){low, (uint32_t)high, (uint32_t)bytes << 28 | id};
}

static void find_whole_words(bpe_t *bpe)
{
    size_t slots = 64;
    while (slots < bpe->pieces.count * 2)
        slots *= 2;
    bpe->whole_mask = slots - 1;
    bpe->whole_words = calloc(slots, sizeof *bpe->whole_words);
    QN_ASSERT(bpe->whole_words != NULL);
    if (bpe->prefix || bpe->suffix) return;
    for (size_t i = 0; i < bpe->pieces.count; i++) {
        const vocabulary_entry_t *entry = &bpe->pieces.entries[i];
        if (entry->length > 0 && entry->length <= BPE_WHOLE_BYTES_MAX && bpe_is_whole(bpe, entry->id))
            add_whole_word(bpe, bpe->pieces.pool.bytes + entry->offset, entry->length, entry->id);
    }
}

void bpe_finish(bpe_t *bpe)
{
    find_affine(bpe);
    find_start_ids(bpe);
    if (bpe->is_byte) find_byte_ranks(bpe);
    find_joins(bpe);
    bpe->is_splittable = find_splittable(bpe);
    find_whole(bpe);
    find_whole_words(bpe);
}
