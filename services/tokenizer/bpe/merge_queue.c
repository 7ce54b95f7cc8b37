/* What is this?      A priority queue of (rank, position) with a row per rank.
 * State owned:       rows, and heaps of what is small.
 * Must never:        change the order a heap of all pairs would give.
 * Read next:         bpe.c (merge_long). */
#include "services/tokenizer/bpe/merge_queue.h"

#include <stdlib.h>
#include <string.h>

#include "common/assert.h"

static void *grown(void *array, size_t count, size_t bytes)
{
    void *larger = realloc(array, count * bytes);
    QN_ASSERT(larger != NULL);
    return larger;
}

/* ---- rows by rank ---- */

static size_t home(const merge_queue_t *queue, uint32_t rank) { return rank * 0x9E3779B1u & queue->slot_mask; }

static void grow_slots(merge_queue_t *queue)
{
    size_t slots = queue->slots ? (queue->slot_mask + 1) * 2 : 256;
    free(queue->slots);
    queue->slots = calloc(slots, sizeof *queue->slots);
    QN_ASSERT(queue->slots != NULL);
    queue->slot_mask = slots - 1;
    for (size_t i = 0; i < queue->count; i++) {
        size_t at = home(queue, queue->rows[i].rank);
        while (queue->slots[at])
            at = (at + 1) & queue->slot_mask;
        queue->slots[at] = (uint32_t)i + 1;
    }
}

static size_t new_row(merge_queue_t *queue, uint32_t rank)
{
    if (queue->count == queue->capacity) {
        queue->capacity = queue->capacity ? queue->capacity * 2 : 128;
        queue->rows = grown(queue->rows, queue->capacity, sizeof *queue->rows);
        queue->ranks = grown(queue->ranks, queue->capacity, sizeof *queue->ranks);
    }
    queue->rows[queue->count] = (merge_row_t){.rank = rank};
    return queue->count++;
}

static size_t row_of(merge_queue_t *queue, uint32_t rank)
{
    if (queue->last < queue->count && queue->rows[queue->last].rank == rank) return queue->last;
    if (!queue->slots || queue->count * 2 >= queue->slot_mask) grow_slots(queue);
    size_t at = home(queue, rank);
    while (queue->slots[at] && queue->rows[queue->slots[at] - 1].rank != rank)
        at = (at + 1) & queue->slot_mask;
    if (!queue->slots[at]) queue->slots[at] = (uint32_t)new_row(queue, rank) + 1;
    return queue->last = queue->slots[at] - 1;
}

/* ---- two small heaps ---- */

static uint32_t rank_at(const merge_queue_t *queue, size_t at) { return queue->rows[queue->ranks[at]].rank; }

static void list_row(merge_queue_t *queue, size_t row)
{
    size_t at = queue->rank_count++;
    for (; at > 0 && rank_at(queue, (at - 1) / 2) > queue->rows[row].rank; at = (at - 1) / 2)
        queue->ranks[at] = queue->ranks[(at - 1) / 2];
    queue->ranks[at] = (uint32_t)row;
    queue->rows[row].is_listed = true;
}

static void unlist_first(merge_queue_t *queue)
{
    uint32_t moved = queue->ranks[--queue->rank_count];
    size_t at = 0;
    for (size_t child; (child = at * 2 + 1) < queue->rank_count; at = child) {
        if (child + 1 < queue->rank_count && rank_at(queue, child + 1) < rank_at(queue, child)) child++;
        if (rank_at(queue, child) >= queue->rows[moved].rank) break;
        queue->ranks[at] = queue->ranks[child];
    }
    queue->ranks[at] = moved;
}

static void add_late(merge_row_t *row, uint32_t position)
{
    if (row->late_count == row->late_capacity) {
        row->late_capacity = row->late_capacity ? row->late_capacity * 2 : 16;
        row->late = grown(row->late, row->late_capacity, sizeof *row->late);
    }
    size_t at = row->late_count++;
    for (; at > 0 && row->late[(at - 1) / 2] > position; at = (at - 1) / 2)
        row->late[at] = row->late[(at - 1) / 2];
    row->late[at] = position;
}

static uint32_t take_late(merge_row_t *row)
{
    uint32_t first = row->late[0], moved = row->late[--row->late_count];
    size_t at = 0;
    for (size_t child; (child = at * 2 + 1) < row->late_count; at = child) {
        if (child + 1 < row->late_count && row->late[child + 1] < row->late[child]) child++;
        if (row->late[child] >= moved) break;
        row->late[at] = row->late[child];
    }
    row->late[at] = moved;
    return first;
}

/* ---- the queue ---- */

void merge_queue_push(merge_queue_t *queue, uint32_t rank, uint32_t position)
{
    size_t index = row_of(queue, rank);
    merge_row_t *row = &queue->rows[index];
    if (row->taken == row->count) row->taken = row->count = 0;
    if (row->count > 0 && row->row[row->count - 1] >= position) {
        if (row->row[row->count - 1] > position) add_late(row, position);
    } else {
        if (row->count == row->capacity) {
            row->capacity = row->capacity ? row->capacity * 2 : 16;
            row->row = grown(row->row, row->capacity, sizeof *row->row);
        }
        row->row[row->count++] = position;
    }
    if (!row->is_listed) list_row(queue, index);
}

bool merge_queue_pop(merge_queue_t *queue, uint32_t *ret_rank, uint32_t *ret_position)
{
    while (queue->rank_count > 0) {
        merge_row_t *row = &queue->rows[queue->ranks[0]];
        bool has_row = row->taken < row->count;
        if (!has_row && row->late_count == 0) {
            row->is_listed = false;
            unlist_first(queue);
            continue;
        }
        bool is_late = row->late_count > 0 && (!has_row || row->late[0] < row->row[row->taken]);
        *ret_rank = row->rank;
        *ret_position = is_late ? take_late(row) : row->row[row->taken++];
        return true;
    }
    return false;
}

void merge_queue_fini(merge_queue_t *queue)
{
    for (size_t i = 0; i < queue->count; i++) {
        free(queue->rows[i].row);
        free(queue->rows[i].late);
    }
    free(queue->rows);
    free(queue->slots);
    free(queue->ranks);
    *queue = (merge_queue_t){0};
}
