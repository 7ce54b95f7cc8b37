/* The pairs of a very long word that wait to be merged: lowest rank first, of equal ranks the leftmost. What a heap of
 * all pairs does too, but there each step of a million-symbol word walks cold memory. Here every rank has a row of its
 * positions, which come nearly sorted, since merging goes from left to right: taking and adding are mostly a step
 * along a row. Never worse than n log n. One thread; reused from word to word. */
#ifndef QN_TOKENIZER_BPE_MERGE_QUEUE_H
#define QN_TOKENIZER_BPE_MERGE_QUEUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint32_t rank;
    bool is_listed; /* in the heap of ranks */
    uint32_t *row;  /* ascending; [taken, count) wait; owned */
    uint32_t taken, count, capacity;
    uint32_t *late; /* a heap: positions that came out of order; owned */
    uint32_t late_count, late_capacity;
} merge_row_t;

/* A zeroed one is empty. */
typedef struct {
    merge_row_t *rows; /* [count], owned */
    size_t count, capacity;
    uint32_t *slots; /* hash table rank -> row + 1, owned */
    size_t slot_mask;
    uint32_t *ranks; /* heap of rows by rank: those that may have something; owned */
    size_t rank_count;
    size_t last; /* row of the last push: the next is often of the same rank */
} merge_queue_t;

void merge_queue_push(merge_queue_t *queue, uint32_t rank, uint32_t position);
/* The next pair; false when none is left. A pair pushed twice may come twice. */
bool merge_queue_pop(merge_queue_t *queue, uint32_t *ret_rank, uint32_t *ret_position);
/* Empties it and gives the memory back. */
void merge_queue_fini(merge_queue_t *queue);

#endif
