/* The byte pair encoding model: one word in, token ids out. Of all neighbouring pairs that the merge
 * table knows, the one with the lowest rank (the leftmost of equals) is merged, until none is left.
 * Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units".
 *
 * Words start as bytes (byte-level models) or as characters (all others; unknown ones become
 * byte-fallback tokens or the unknown token). A bpe_t is immutable once built; each thread brings a
 * bpe_scratch_t, which also caches words: most words of a text were seen before. */
#ifndef QN_TOKENIZER_BPE_BPE_H
#define QN_TOKENIZER_BPE_BPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "services/tokenizer/bpe/token_list.h"
#include "services/tokenizer/bpe/vocabulary.h"

#define BPE_ID_BITS 20   /* ids below QN_VOCAB_MAX: a pair of them and a rank share 64 bits */
#define BPE_RANK_BITS 24 /* merges below 16 M; the largest published table has 0.5 M */

/* A short piece that encodes to itself; 16 bytes, so four share a cache line. */
typedef struct {
    uint64_t low;  /* bytes 0..7 of the piece, zero-padded */
    uint32_t high; /* bytes 8..11 */
    uint32_t meta; /* length << 28 | id; 0: free */
} bpe_whole_word_t;

#define BPE_WHOLE_BYTES_MAX 12

typedef struct bpe {
    vocabulary_t pieces;        /* the alphabet words are made of: bytes or text */
    bool is_byte;               /* words start as bytes */
    bool ignore_merges;         /* a word that is a piece is that token, whatever the merges say */
    bool fuse_unknown;          /* neighbouring unknown characters become one token */
    bool has_fallback;          /* unknown characters become tokens of their bytes */
    bool is_splittable;         /* words may be cut where nothing can join: find_splittable() says when */
    uint32_t unknown_id;        /* VOCABULARY_NO_ID: unknown characters vanish */
    uint32_t fallback_ids[256]; /* VOCABULARY_NO_ID where missing */
    uint32_t start_ids[256];    /* is_byte: of each byte; else of each ASCII character */
    char *prefix, *suffix;      /* continuing_subword_prefix, end_of_word_suffix; owned or NULL */
    uint64_t *pairs;            /* hash table: left << 44 | right << 24 | rank; all ones: free; owned */
    unsigned pair_shift;
    size_t pair_mask;
    uint64_t *pair_filter; /* a bit per hash of a pair; clear: the pair is not in the table; owned */
    uint32_t *merged_ids;  /* [merge_count] by rank, owned */
    bool is_affine;        /* merged_ids[rank] == rank + affine_base: no look-up needed */
    uint32_t affine_base;
    size_t merge_count;
    uint32_t (*byte_ranks)[256];   /* is_byte: rank of [left][right] bytes, UINT32_MAX: none; owned */
    uint64_t *whole;               /* bit per id: encoding its piece gives just it; owned */
    bpe_whole_word_t *whole_words; /* hash table of the short ones, owned */
    size_t whole_mask;
    uint64_t *joins; /* 256 x 256 bits: a character that ends with this byte and one that begins with
                                 * that byte meet inside some piece; owned */
} bpe_t;

/* Prepares an empty merge table for `merge_count` merges. pieces and the flags are set by the caller. */
void bpe_init(bpe_t *bpe, size_t merge_count);
void bpe_fini(bpe_t *bpe);

/* Adds the merge of the next rank; the same pair again takes the new rank. Ids < 1 << BPE_ID_BITS; at most
 * the promised number of merges. */
void bpe_add_merge(bpe_t *bpe, uint32_t left, uint32_t right, uint32_t merged);

/* After the last merge: derives start_ids, fallback_ids, whole and joins. */
void bpe_finish(bpe_t *bpe);

/* Work space of one thread. */
typedef struct bpe_scratch bpe_scratch_t;
bpe_scratch_t *bpe_scratch_open(void);
void bpe_scratch_close(bpe_scratch_t **scratch);
void bpe_scratch_forget(bpe_scratch_t *scratch);

/* Appends the tokens of one word. `readable` bytes may be read from `word` on (>= bytes): lets short words
 * be compared 16 bytes at a time. */
void bpe_encode_word(const bpe_t *bpe, bpe_scratch_t *scratch, const uint8_t *word, size_t bytes, size_t readable,
                     tokenizer_tokens_t *tokens);

/* Appends the tokens of the words text[0, ends[0]), [ends[0], ends[1]), … ; the fast path. */
void bpe_encode_words(const bpe_t *bpe, bpe_scratch_t *scratch, const uint8_t *text, size_t length, size_t start,
                      const uint32_t *ends, size_t count, tokenizer_tokens_t *tokens);

/* Encodes one word past the cache and writes views of its ids and of the end offset of each token in the
 * word, valid until the next call with this scratch. Returns how many. */
size_t bpe_encode_spans(const bpe_t *bpe, bpe_scratch_t *scratch, const uint8_t *word, size_t bytes,
                        const uint32_t **ret_ids, const uint32_t **ret_ends);

#endif
