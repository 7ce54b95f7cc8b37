/* What is this?      The merging of a word, and a cache of words per thread.
 * State owned:       bpe_scratch_t: work arrays and the cache.
 * Must never:        let the cache change a result; take more than n log n time for a word.
 * Read next:         bpe_build.c (the tables), pretokenizer.h (where words come from). */
#include "services/tokenizer/bpe/bpe.h"

#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "services/tokenizer/bpe/bpe_tables.h"
#include "services/tokenizer/bpe/merge_queue.h"
#include "services/tokenizer/split/unicode_classes.h"

#define WORDS_AHEAD 16          /* words whose table entries are on their way from memory */
#define SHORT_WORD 64           /* symbols a 64-bit mask can hold */
#define HUGE_WORD 256           /* symbols of a word whose pairs a heap orders faster than rows by rank do */
#define KEEP_SYMBOLS (1u << 20) /* work arrays larger than this are given back after use */

/* One 32-byte entry answers for a word of up to 15 bytes; two share a cache line. */
#define CACHE_SETS 8192
#define SMALL_BYTES_MAX 15
#define SMALL_IDS_MAX 3
typedef struct {
    uint64_t low, high;          /* the word, zero-padded; its length in the top byte; high 0: free */
    uint32_t ids[SMALL_IDS_MAX]; /* when there are more, the first two are their place in the ring */
    uint32_t count;
} cache_entry_t;

/* Words up to 255 bytes: an index over a ring that holds each word and its ids. An entry whose place in the ring has
 * been written over is dead. */
#define LONG_SETS 16384
#define LONG_BYTES_MAX 255
#define RING_BYTES (1u << 20)
typedef struct {
    uint64_t hash;
    uint64_t place; /* bytes ever written to the ring before this one; 0: free */
    uint16_t bytes;
    uint16_t count;
} long_entry_t;

struct bpe_scratch {
    _Alignas(64) cache_entry_t cache[CACHE_SETS][2];
    long_entry_t long_cache[LONG_SETS];
    uint64_t ring_place; /* bytes ever written; the next one goes to ring_place % RING_BYTES */
    uint8_t ring[RING_BYTES];
    uint32_t *ids;    /* [capacity] symbols of the current word */
    uint32_t *ends;   /* [capacity] end offset of each symbol in the word */
    uint32_t *ranks;  /* [capacity] rank of the pair (this, next) */
    uint32_t *next;   /* [capacity] */
    uint32_t *before; /* [capacity] */
    uint64_t *heap;   /* [2 * capacity] rank << 32 | position */
    size_t capacity, heap_count;
    tokenizer_tokens_t parts;
    size_t count;
};

/* ---- scratch ---- */

bpe_scratch_t *bpe_scratch_open(void)
{
    bpe_scratch_t *scratch = aligned_alloc(64, sizeof *scratch);
    QN_ASSERT(scratch != NULL);
    memset(scratch, 0, sizeof *scratch);
    scratch->ring_place = 4;
    return scratch;
}

static void free_arrays(bpe_scratch_t *scratch)
{
    free(scratch->ids);
    free(scratch->ends);
    free(scratch->ranks);
    free(scratch->next);
    free(scratch->before);
    free(scratch->heap);
    scratch->ids = scratch->ends = scratch->ranks = scratch->next = scratch->before = NULL;
    scratch->heap = NULL;
    scratch->capacity = 0;
}

void bpe_scratch_close(bpe_scratch_t **scratch)
{
    if (!*scratch) return;
    free_arrays(*scratch);
    tokenizer_tokens_fini(&(*scratch)->parts);
    free(*scratch);
    *scratch = NULL;
}

void bpe_scratch_forget(bpe_scratch_t *scratch)
{
    memset(scratch->cache, 0, sizeof scratch->cache);
    memset(scratch->long_cache, 0, sizeof scratch->long_cache);
}

static void *array_of(size_t count, size_t bytes)
{
    void *array = malloc(count * bytes);
    QN_ASSERT(array != NULL);
    return array;
}

static void make_room(bpe_scratch_t *scratch, size_t symbols)
{
    if (scratch->capacity >= symbols) return;
    QN_ASSERT(symbols < SIZE_MAX / 64);
    free_arrays(scratch);
    size_t capacity = symbols < 256 ? 256 : symbols;
    scratch->ids = array_of(capacity, sizeof *scratch->ids);
    scratch->ends = array_of(capacity, sizeof *scratch->ends);
    scratch->ranks = array_of(capacity, sizeof *scratch->ranks);
    scratch->next = array_of(capacity, sizeof *scratch->next);
    scratch->before = array_of(capacity, sizeof *scratch->before);
    scratch->heap = array_of(capacity * 2, sizeof *scratch->heap);
    scratch->capacity = capacity;
}

/* ---- first symbols of a word ---- */

static inline void add_symbol(bpe_scratch_t *scratch, uint32_t id, size_t end)
{
    scratch->ids[scratch->count] = id;
    scratch->ends[scratch->count++] = (uint32_t)end;
}

/* The character as byte-fallback tokens; false when one of them is missing. */
static bool add_fallback(const bpe_t *bpe, bpe_scratch_t *scratch, const uint8_t *character, unsigned bytes,
                         bool is_first, bool is_last, size_t start)
{
    if (!bpe->has_fallback) return false;
    text_buffer_t piece = {0};
    if (!is_first && bpe->prefix) text_buffer_append(&piece, bpe->prefix, strlen(bpe->prefix));
    text_buffer_append(&piece, character, bytes);
    if (is_last && bpe->suffix) text_buffer_append(&piece, bpe->suffix, strlen(bpe->suffix));
    bool is_complete = true;
    for (size_t i = 0; i < piece.length; i++)
        is_complete &= bpe->fallback_ids[piece.bytes[i]] != VOCABULARY_NO_ID;
    for (size_t i = 0; is_complete && i < piece.length; i++) {
        size_t end = start + i + 1 < start + bytes ? start + i + 1 : start + bytes;
        add_symbol(scratch, bpe->fallback_ids[piece.bytes[i]], end);
    }
    text_buffer_fini(&piece);
    return is_complete;
}

/* Characters to symbols, in the order the reference library gives them: a pending unknown token is
 * written when the next known character comes, so byte-fallback tokens in between precede it. */
static void start_characters(const bpe_t *bpe, bpe_scratch_t *scratch, const uint8_t *word, size_t bytes)
{
    bool is_pending = false;
    size_t pending_end = 0;
    for (size_t at = 0; at < bytes;) {
        unsigned size = unicode_lead_bytes(word[at]);
        bool is_first = at == 0, is_last = at + size == bytes;
        uint32_t id = bpe_character_id(bpe, word + at, size, is_first, is_last);
        if (id != VOCABULARY_NO_ID) {
            if (is_pending) add_symbol(scratch, bpe->unknown_id, pending_end);
            is_pending = false;
            add_symbol(scratch, id, at + size);
        } else if (!add_fallback(bpe, scratch, word + at, size, is_first, is_last, at) &&
                   bpe->unknown_id != VOCABULARY_NO_ID) {
            if (is_pending && !bpe->fuse_unknown) add_symbol(scratch, bpe->unknown_id, pending_end);
            is_pending = true;
            pending_end = at + size;
        }
        at += size;
    }
    if (is_pending) add_symbol(scratch, bpe->unknown_id, pending_end);
}

static void start_word(const bpe_t *bpe, bpe_scratch_t *scratch, const uint8_t *word, size_t bytes)
{
    /* A character is one symbol, or with fallback one per byte of it and its prefix and suffix. */
    size_t prefix = bpe->has_fallback && bpe->prefix ? strlen(bpe->prefix) : 0;
    size_t suffix = bpe->has_fallback && bpe->suffix ? strlen(bpe->suffix) : 0;
    make_room(scratch, bytes * (1 + prefix) + suffix);
    scratch->count = 0;
    if (!bpe->is_byte) {
        start_characters(bpe, scratch, word, bytes);
        return;
    }
    for (size_t i = 0; i < bytes; i++) {
        scratch->ids[i] = bpe->start_ids[word[i]];
        scratch->ends[i] = (uint32_t)(i + 1);
    }
    scratch->count = bytes;
}

/* ---- merging ---- */

/* Ranks of neighbouring first symbols; of bytes they are in a small table of their own. */
static inline uint32_t first_rank(const bpe_t *bpe, const uint8_t *word, const uint32_t *ids, size_t at)
{
    if (bpe->byte_ranks) return bpe->byte_ranks[word[at]][word[at + 1]];
    return bpe_pair_rank(bpe, ids[at], ids[at + 1]);
}

/* Up to 64 symbols: the living ones are bits of a mask, the best pair is found by looking at all. */
static void merge_short(const bpe_t *bpe, bpe_scratch_t *scratch, const uint8_t *word)
{
    size_t count = scratch->count;
    uint32_t *ids = scratch->ids, *ends = scratch->ends, ranks[SHORT_WORD];
    uint64_t alive = count == 64 ? UINT64_MAX : (1ull << count) - 1;
    for (size_t i = 0; i + 1 < count; i++)
        ranks[i] = first_rank(bpe, word, ids, i);
    ranks[count - 1] = BPE_NO_RANK;
    for (;;) {
        uint32_t best = BPE_NO_RANK;
        unsigned left = 0;
        for (unsigned i = 0; i < count; i++) {
            if (ranks[i] >= best) continue;
            best = ranks[i];
            left = i;
        }
        if (best == BPE_NO_RANK) break;
        uint64_t above = alive & (UINT64_MAX << left) & ~(1ull << left);
        unsigned right = (unsigned)__builtin_ctzll(above);
        above &= above - 1;
        alive &= ~(1ull << right);
        ids[left] = bpe_merged_id(bpe, best);
        ends[left] = ends[right];
        ranks[right] = BPE_NO_RANK;
        ranks[left] = above ? bpe_pair_rank(bpe, ids[left], ids[__builtin_ctzll(above)]) : BPE_NO_RANK;
        uint64_t below = alive & ((1ull << left) - 1);
        if (below) {
            unsigned before = 63 - (unsigned)__builtin_clzll(below);
            ranks[before] = bpe_pair_rank(bpe, ids[before], ids[left]);
        }
    }
    size_t kept = 0;
    for (; alive; alive &= alive - 1, kept++) {
        unsigned at = (unsigned)__builtin_ctzll(alive);
        ids[kept] = ids[at];
        ends[kept] = ends[at];
    }
    scratch->count = kept;
}

/* A heap with four children a node: fewer cache misses than two. */
static void heap_sift_down(uint64_t *heap, size_t count, size_t at)
{
    uint64_t item = heap[at];
    for (;;) {
        size_t child = at * 4 + 1;
        if (child >= count) break;
        size_t end = child + 4 < count ? child + 4 : count, least = child;
        for (size_t i = child + 1; i < end; i++)
            if (heap[i] < heap[least]) least = i;
        if (heap[least] >= item) break;
        heap[at] = heap[least];
        at = least;
    }
    heap[at] = item;
}

static void heap_push(bpe_scratch_t *scratch, uint64_t item)
{
    size_t at = scratch->heap_count++;
    QN_ASSERT(scratch->heap_count <= scratch->capacity * 2);
    while (at > 0 && scratch->heap[(at - 1) / 4] > item) {
        scratch->heap[at] = scratch->heap[(at - 1) / 4];
        at = (at - 1) / 4;
    }
    scratch->heap[at] = item;
}

static uint64_t heap_pop(bpe_scratch_t *scratch)
{
    uint64_t top = scratch->heap[0];
    scratch->heap[0] = scratch->heap[--scratch->heap_count];
    if (scratch->heap_count > 1) heap_sift_down(scratch->heap, scratch->heap_count, 0);
    return top;
}

/* The pairs that wait: a heap, for very long words rows by rank (merge_queue.h). */
static void rank_pair(const bpe_t *bpe, bpe_scratch_t *scratch, merge_queue_t *queue, uint32_t left, uint32_t right)
{
    uint32_t rank = bpe_pair_rank(bpe, scratch->ids[left], scratch->ids[right]);
    scratch->ranks[left] = rank;
    if (rank == BPE_NO_RANK) return;
    if (queue)
        merge_queue_push(queue, rank, left);
    else
        heap_push(scratch, (uint64_t)rank << 32 | left);
}

static bool next_pair(bpe_scratch_t *scratch, merge_queue_t *queue, uint32_t *ret_rank, uint32_t *ret_left)
{
    if (queue) return merge_queue_pop(queue, ret_rank, ret_left);
    if (scratch->heap_count == 0) return false;
    uint64_t top = heap_pop(scratch);
    *ret_left = (uint32_t)top;
    *ret_rank = (uint32_t)(top >> 32);
    return true;
}

static void link_symbols(const bpe_t *bpe, bpe_scratch_t *scratch, merge_queue_t *queue, const uint8_t *word)
{
    uint32_t count = (uint32_t)scratch->count;
    scratch->heap_count = 0;
    for (uint32_t i = 0; i < count; i++) {
        scratch->next[i] = i + 1;
        scratch->before[i] = i - 1; /* UINT32_MAX for the first */
        scratch->ranks[i] = i + 1 < count ? first_rank(bpe, word, scratch->ids, i) : BPE_NO_RANK;
        if (scratch->ranks[i] == BPE_NO_RANK) continue;
        if (queue)
            merge_queue_push(queue, scratch->ranks[i], i);
        else
            scratch->heap[scratch->heap_count++] = (uint64_t)scratch->ranks[i] << 32 | i;
    }
    for (size_t i = scratch->heap_count / 4 + 1; i-- > 0;)
        if (i < scratch->heap_count) heap_sift_down(scratch->heap, scratch->heap_count, i);
}

/* Any length: a linked list and the pairs that wait; one that is no longer there is skipped. */
static void merge_linked(const bpe_t *bpe, bpe_scratch_t *scratch, merge_queue_t *queue, const uint8_t *word)
{
    uint32_t count = (uint32_t)scratch->count, left, rank;
    link_symbols(bpe, scratch, queue, word);
    while (next_pair(scratch, queue, &rank, &left)) {
        if (scratch->ranks[left] != rank) continue;
        uint32_t right = scratch->next[left], after = scratch->next[right];
        scratch->ids[left] = bpe_merged_id(bpe, rank);
        scratch->ends[left] = scratch->ends[right];
        scratch->ranks[right] = BPE_NO_RANK;
        scratch->next[left] = after;
        scratch->ranks[left] = BPE_NO_RANK;
        if (scratch->before[left] != UINT32_MAX) rank_pair(bpe, scratch, queue, scratch->before[left], left);
        if (after < count) {
            scratch->before[after] = left;
            rank_pair(bpe, scratch, queue, left, after);
        }
    }
    size_t kept = 0;
    for (uint32_t at = 0; at < count; at = scratch->next[at], kept++) {
        scratch->ids[kept] = scratch->ids[at];
        scratch->ends[kept] = scratch->ends[at];
    }
    scratch->count = kept;
}

static void merge_long(const bpe_t *bpe, bpe_scratch_t *scratch, const uint8_t *word)
{
    merge_queue_t queue = {0};
    merge_linked(bpe, scratch, scratch->count > HUGE_WORD ? &queue : NULL, word);
    merge_queue_fini(&queue);
}

size_t bpe_encode_spans(const bpe_t *bpe, bpe_scratch_t *scratch, const uint8_t *word, size_t bytes,
                        const uint32_t **ret_ids, const uint32_t **ret_ends)
{
    uint32_t id = bpe->ignore_merges ? vocabulary_find(&bpe->pieces, word, bytes) : VOCABULARY_NO_ID;
    if (scratch->capacity > KEEP_SYMBOLS && bytes < KEEP_SYMBOLS / 2) free_arrays(scratch);
    if (id != VOCABULARY_NO_ID) {
        make_room(scratch, 1);
        scratch->count = 0;
        add_symbol(scratch, id, bytes);
    } else {
        start_word(bpe, scratch, word, bytes);
        if (scratch->count > SHORT_WORD)
            merge_long(bpe, scratch, word);
        else if (scratch->count > 1)
            merge_short(bpe, scratch, word);
    }
    *ret_ids = scratch->ids;
    *ret_ends = scratch->ends;
    return scratch->count;
}

/* ---- words through the cache ---- */

static uint64_t hash_long(const uint8_t *word, size_t bytes)
{
    uint64_t hash = bytes, part;
    for (; bytes >= 8; word += 8, bytes -= 8) {
        memcpy(&part, word, 8);
        hash = bpe_fold(hash, part);
    }
    part = 0;
    memcpy(&part, word, bytes);
    return bpe_fold(hash, part);
}

static void append_ids(tokenizer_tokens_t *tokens, const uint32_t *ids, size_t count)
{
    token_list_reserve(tokens, count);
    memcpy(tokens->ids + tokens->count, ids, count * sizeof *ids);
    tokens->count += count;
}

/* The next place after `start` where a word of bytes can be cut: nothing merges across, so both sides are what they
 * would be alone. `bytes` when there is none. */
static inline size_t next_cut(const bpe_t *bpe, const uint8_t *word, size_t start, size_t bytes)
{
    for (size_t at = start + 1; at < bytes; at++)
        if ((word[at] & 0xC0) != 0x80 && !bpe_can_join(bpe, word, at)) return at;
    return bytes;
}

/* Encodes a word that can be cut at `end` by its parts, which are often known although the word is not. */
static size_t encode_parts(const bpe_t *bpe, bpe_scratch_t *scratch, const uint8_t *word, size_t bytes, size_t end,
                           const uint32_t **ret_ids)
{
    uint32_t ends[WORDS_AHEAD];
    size_t start = 0, count = 0;
    if (scratch->parts.capacity > KEEP_SYMBOLS && bytes < KEEP_SYMBOLS / 2) tokenizer_tokens_fini(&scratch->parts);
    scratch->parts.count = 0;
    for (;; end = next_cut(bpe, word, end, bytes)) {
        ends[count++] = (uint32_t)end;
        if (count < WORDS_AHEAD && end < bytes) continue;
        bpe_encode_words(bpe, scratch, word, bytes, start, ends, count, &scratch->parts);
        if (end == bytes) break;
        start = end;
        count = 0;
    }
    *ret_ids = scratch->parts.ids;
    return scratch->parts.count;
}

/* Without any cache. Most words that are a piece encode to it: one look-up instead of merging. Short ones were looked
 * up already, in whole_words, which has them all unless there are affixes. */
static size_t encode_fresh(const bpe_t *bpe, bpe_scratch_t *scratch, const uint8_t *word, size_t bytes,
                           const uint32_t **ret_ids)
{
    const uint32_t *ends;
    size_t cut = bpe->is_byte && bpe->is_splittable ? next_cut(bpe, word, 0, bytes) : bytes;
    if (cut < bytes) return encode_parts(bpe, scratch, word, bytes, cut, ret_ids);
    bool was_looked_up = bytes <= BPE_WHOLE_BYTES_MAX && !bpe->prefix && !bpe->suffix;
    uint32_t id = was_looked_up ? VOCABULARY_NO_ID : vocabulary_find(&bpe->pieces, word, bytes);
    if (id != VOCABULARY_NO_ID && bpe_is_whole(bpe, id)) {
        make_room(scratch, 1);
        scratch->ids[0] = id;
        *ret_ids = scratch->ids;
        return 1;
    }
    return bpe_encode_spans(bpe, scratch, word, bytes, ret_ids, &ends);
}

/* Where a word of the long cache lies: its bytes, padded to 4, then its ids. */
static size_t ring_bytes(size_t bytes, size_t count) { return ((bytes + 3) & ~(size_t)3) + count * 4; }

/* Takes the next `bytes` of the ring; their place is what was ever written before them. */
static uint8_t *ring_take(bpe_scratch_t *scratch, size_t bytes, uint64_t *ret_place)
{
    size_t at = scratch->ring_place % RING_BYTES;
    if (at + bytes > RING_BYTES) { /* never split: skip to the beginning */
        scratch->ring_place += RING_BYTES - at;
        at = 0;
    }
    *ret_place = scratch->ring_place;
    scratch->ring_place += bytes;
    return scratch->ring + at;
}

/* What was put at a place, NULL when it has been written over. */
static const uint8_t *ring_at(const bpe_scratch_t *scratch, uint64_t place)
{
    return scratch->ring_place - place > RING_BYTES ? NULL : scratch->ring + place % RING_BYTES;
}

static void ring_put(bpe_scratch_t *scratch, long_entry_t *entry, uint64_t hash, const uint8_t *word, size_t bytes,
                     const uint32_t *ids, size_t count)
{
    uint64_t place;
    uint8_t *at = ring_take(scratch, ring_bytes(bytes, count), &place);
    *entry = (long_entry_t){hash, place, (uint16_t)bytes, (uint16_t)count};
    memcpy(at, word, bytes);
    memcpy(at + ring_bytes(bytes, 0), ids, count * sizeof *ids);
}

/* The ids of a cached word, NULL when the entry is another word's or dead. */
static const uint32_t *ring_get(const bpe_scratch_t *scratch, const long_entry_t *entry, uint64_t hash,
                                const uint8_t *word, size_t bytes)
{
    if (entry->hash != hash || entry->bytes != bytes || entry->place == 0) return NULL;
    const uint8_t *at = ring_at(scratch, entry->place);
    bool is_same = at && memcmp(at, word, bytes) == 0;
    return is_same ? (const uint32_t *)(const void *)(at + ring_bytes(bytes, 0)) : NULL;
}

/* Words too long for the small cache: the long cache, else fresh. Writes a view of the ids. */
static size_t encode_through_long_cache(const bpe_t *bpe, bpe_scratch_t *scratch, const uint8_t *word, size_t bytes,
                                        const uint32_t **ret_ids)
{
    if (bytes > LONG_BYTES_MAX) return encode_fresh(bpe, scratch, word, bytes, ret_ids);
    uint64_t hash = hash_long(word, bytes);
    long_entry_t *entry = &scratch->long_cache[hash % LONG_SETS];
    *ret_ids = ring_get(scratch, entry, hash, word, bytes);
    if (*ret_ids) return entry->count;
    size_t count = encode_fresh(bpe, scratch, word, bytes, ret_ids);
    ring_put(scratch, entry, hash, word, bytes, *ret_ids, count);
    return count;
}

static __attribute__((noinline)) void encode_missed(const bpe_t *bpe, bpe_scratch_t *scratch, const uint8_t *word,
                                                    size_t bytes, uint64_t low, uint64_t high, cache_entry_t *set,
                                                    tokenizer_tokens_t *tokens)
{
    const uint32_t *ids;
    size_t count = encode_fresh(bpe, scratch, word, bytes, &ids);
    append_ids(tokens, ids, count);
    if (count > SMALL_BYTES_MAX) return; /* byte-fallback of affixes; room is promised for a token per byte */
    cache_entry_t entry = {.low = low, .high = high, .count = (uint32_t)count};
    if (count <= SMALL_IDS_MAX) {
        memcpy(entry.ids, ids, count * sizeof *ids);
    } else {
        uint64_t place;
        memcpy(ring_take(scratch, count * sizeof *ids, &place), ids, count * sizeof *ids);
        memcpy(entry.ids, &place, sizeof place);
    }
    set[1] = set[0]; /* the older of the two goes */
    set[0] = entry;
}

/* A short word as the two tables know it. */
typedef struct {
    uint64_t low, high, hash;
} word_key_t;

static inline word_key_t word_key(const uint8_t *word, size_t bytes, size_t readable)
{
    word_key_t key;
    bpe_load_key(word, bytes, readable, &key.low, &key.high);
    key.hash = bpe_fold(key.low, key.high);
    return key;
}

/* The ids of an entry that has them in the ring; false when they were written over. */
static bool copy_from_ring(const bpe_scratch_t *scratch, const cache_entry_t *entry, tokenizer_tokens_t *tokens)
{
    uint64_t place;
    memcpy(&place, entry->ids, sizeof place);
    const uint8_t *at = ring_at(scratch, place);
    if (at) memcpy(tokens->ids + tokens->count, at, entry->count * sizeof *tokens->ids);
    return at != NULL;
}

/* A word of 1..15 bytes. Nearly all are one token and found in the immutable table; the cache has the
 * others. Stores three ids at once: token_list_reserve leaves that much slack. */
static inline __attribute__((always_inline)) void encode_small(const bpe_t *bpe, bpe_scratch_t *scratch,
                                                               const uint8_t *word, size_t bytes, word_key_t key,
                                                               tokenizer_tokens_t *tokens)
{
    for (size_t at = key.hash & bpe->whole_mask; bpe->whole_words[at].meta; at = (at + 1) & bpe->whole_mask) {
        const bpe_whole_word_t *known = &bpe->whole_words[at];
        bool is_same =
            known->low == key.low && (key.high & 0x00FFFFFFFFFFFFFFull) == known->high && known->meta >> 28 == bytes;
        if (!is_same) continue;
        tokens->ids[tokens->count++] = known->meta & ((1u << 28) - 1);
        return;
    }
    cache_entry_t *set = scratch->cache[(key.hash >> 32) % CACHE_SETS];
    for (int way = 0; way < 2; way++) {
        if (set[way].low != key.low || set[way].high != key.high) continue;
        if (set[way].count <= SMALL_IDS_MAX)
            memcpy(tokens->ids + tokens->count, set[way].ids, sizeof set[way].ids);
        else if (!copy_from_ring(scratch, &set[way], tokens))
            break;
        tokens->count += set[way].count;
        return;
    }
    encode_missed(bpe, scratch, word, bytes, key.low, key.high, set, tokens);
}

/* A longer word among short ones: keeps the room promised to those. */
static void encode_reserved(const bpe_t *bpe, bpe_scratch_t *scratch, const uint8_t *word, size_t bytes,
                            tokenizer_tokens_t *tokens, size_t promised)
{
    const uint32_t *ids;
    size_t count = encode_through_long_cache(bpe, scratch, word, bytes, &ids);
    append_ids(tokens, ids, count);
    token_list_reserve(tokens, promised);
}

static void encode_one(const bpe_t *bpe, bpe_scratch_t *scratch, const uint8_t *word, size_t bytes, size_t readable,
                       tokenizer_tokens_t *tokens)
{
    if (bytes <= 15) {
        token_list_reserve(tokens, bytes);
        encode_small(bpe, scratch, word, bytes, word_key(word, bytes, readable), tokens);
        return;
    }
    const uint32_t *ids;
    size_t count = encode_through_long_cache(bpe, scratch, word, bytes, &ids);
    append_ids(tokens, ids, count);
}

static bool is_known(const bpe_t *bpe, const uint8_t *character)
{
    return bpe_character_id(bpe, character, unicode_lead_bytes(character[0]), true, true) != VOCABULARY_NO_ID;
}

/* End of the part of the word from `start` on that can be encoded alone: the next place between two known
 * characters that no token has side by side. */
static size_t cut_end(const bpe_t *bpe, const uint8_t *word, size_t start, size_t bytes)
{
    size_t before = start;
    for (size_t at = start + unicode_lead_bytes(word[start]); at < bytes; at += unicode_lead_bytes(word[at])) {
        if (!bpe_can_join(bpe, word, at) && is_known(bpe, word + at) && is_known(bpe, word + before)) return at;
        before = at;
    }
    return bytes;
}

void bpe_encode_word(const bpe_t *bpe, bpe_scratch_t *scratch, const uint8_t *word, size_t bytes, size_t readable,
                     tokenizer_tokens_t *tokens)
{
    if (bytes == 0) return;
    if (!bpe->is_splittable || bpe->is_byte) {
        encode_one(bpe, scratch, word, bytes, readable, tokens);
        return;
    }
    for (size_t start = 0; start < bytes;) {
        size_t end = cut_end(bpe, word, start, bytes);
        encode_one(bpe, scratch, word + start, end - start, readable - start, tokens);
        start = end;
    }
}

void bpe_encode_words(const bpe_t *bpe, bpe_scratch_t *scratch, const uint8_t *text, size_t length, size_t start,
                      const uint32_t *ends, size_t count, tokenizer_tokens_t *tokens)
{
    word_key_t keys[WORDS_AHEAD];
    for (size_t first = 0; first < count; first += WORDS_AHEAD) {
        size_t last = first + WORDS_AHEAD < count ? first + WORDS_AHEAD : count;
        /* The tables are larger than the near caches: ask for all lines before the first is needed. */
        for (size_t i = first, from = start; i < last; from = ends[i++]) {
            if (ends[i] - from > 15) continue;
            keys[i - first] = word_key(text + from, ends[i] - from, length - from);
            __builtin_prefetch(&bpe->whole_words[keys[i - first].hash & bpe->whole_mask]);
            __builtin_prefetch(scratch->cache[(keys[i - first].hash >> 32) % CACHE_SETS]);
        }
        token_list_reserve(tokens, 15 * WORDS_AHEAD);
        for (size_t i = first; i < last; start = ends[i++]) {
            size_t bytes = ends[i] - start;
            if (bytes <= 15)
                encode_small(bpe, scratch, text + start, bytes, keys[i - first], tokens);
            else
                encode_reserved(bpe, scratch, text + start, bytes, tokens, 15 * (last - i));
        }
    }
}
