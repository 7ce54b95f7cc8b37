/* What is this?      Tests of how decode attention's work is shared out: all runs against a plain list of all pieces, over
 *                    random batches.
 * State owned:       none.
 * Must never:        need a GPU.
 * Read next:         kernels/cuda/attention/attention_cells.h. */
#include "kernels/cuda/attention/attention_cells.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define RUNS_MAX 40

typedef struct {
    span_t spans[RUNS_MAX];
    uint32_t runs, kv_heads, all;
} batch_t;

static uint32_t next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

static batch_t make_batch(uint64_t *random)
{
    static const uint32_t LONGEST[] = {1, 70, 300, 3000, 40000, 3000000};
    batch_t batch = {.runs = 1 + next_random(random) % RUNS_MAX, .kv_heads = 1 + next_random(random) % 9};
    uint32_t longest = LONGEST[next_random(random) % 6];
    uint32_t window = next_random(random) % 3 ? 0 : 1 + next_random(random) % 5000;
    uint32_t idle = next_random(random) % 4; /* 2 or 3: a half or a third of the runs have no tokens; 1: all of them */
    for (uint32_t i = 0; i < batch.runs; i++) {
        batch.spans[i] = span_of(next_random(random) % longest, idle ? next_random(random) % idle : 1, window);
        batch.all += pieces_of(batch.spans[i]) * batch.kv_heads;
    }
    return batch;
}

/* As the device finds it: the cut of the sequence that holds the piece, or what comes after the last one with cells. */
static cut_t cut_at(const batch_t *batch, uint32_t at, uint32_t reach)
{
    uint32_t before = 0, end = 0;
    for (uint32_t i = 0; i < batch->runs; i++) {
        uint32_t pieces = pieces_of(batch->spans[i]) * batch->kv_heads;
        if (at - before < pieces) return cut_in(batch->spans[i], i, before, at, batch->kv_heads, reach);
        before += pieces;
        if (pieces) end = i + 1;
    }
    return (cut_t){.run = end, .before = batch->all};
}

/* Marks the cells of one part; each must be new, and the part's ends those of splits. */
static void take_part(const batch_t *batch, const part_t *part, uint32_t blocks, uint8_t *taken, uint32_t *places)
{
    uint32_t run = part->from.run, head = part->from.head, before = part->from.before;
    uint32_t cell = part->from.cell ? part->from.cell : batch->spans[run].first;
    while (run != part->to.run || head != part->to.head || cell < part->to.cell) {
        const span_t *span = &batch->spans[run];
        bool begins = cell == span->first, ends = run == part->to.run && head == part->to.head;
        uint32_t stop = ends ? part->to.cell : span->stop, at = before + head * pieces_of(*span);
        assert_true(stop <= span->stop && (cell < stop || !pieces_of(*span)));
        if (!pieces_of(*span)) begins = true;
        if (!begins) assert_int_not_equal(split_of(cell), split_of(cell - 1));
        if (!begins || stop < span->stop) { /* its place is nobody else's */
            uint32_t place = place_of(at, blocks, batch->all);
            assert_true(place < blocks && (places[place] == at || places[place] == UINT32_MAX));
            places[place] = at;
        }
        for (; cell < stop; cell++) {
            uint32_t place = at + (cell - span->first) * CELL_PIECES;
            assert_true(place < batch->all);
            assert_false(taken[place]);
            taken[place] = 1;
        }
        if (ends) break;
        if (++head == batch->kv_heads) head = 0, run++, before += pieces_of(*span) * batch->kv_heads;
        cell = run < batch->runs ? batch->spans[run].first : 0;
    }
}

static void test_cells_all_runs_take_every_cell_once(void **state)
{
    (void)state;
    uint64_t random = 11;
    for (int round = 0; round < 1500; round++) {
        batch_t batch = make_batch(&random);
        uint32_t blocks = 1 + next_random(&random) % 400, reach = cut_reach(blocks, batch.all), before = 0;
        uint32_t places[400];
        memset(places, 0xff, sizeof places);
        uint8_t *taken = calloc(batch.all, 1);
        assert_non_null(taken);
        for (uint32_t block = 0; block < blocks; block++) {
            part_t parts[PARTS_MAX];
            cut_t from = cut_at(&batch, run_begin(block, blocks, batch.all), reach);
            cut_t to = cut_at(&batch, run_begin(block + 1, blocks, batch.all), reach);
            span_t span = from.run < batch.runs ? batch.spans[from.run] : (span_t){0};
            uint32_t count = order_run(from, to, span, batch.kv_heads, parts);
            for (uint32_t i = 0; i < count; i++)
                take_part(&batch, &parts[i], blocks, taken, places);
        }
        for (uint32_t i = 0; i < batch.runs; i++)
            for (uint32_t head = 0; head < batch.kv_heads; head++, before += pieces_of(batch.spans[i]))
                for (uint32_t piece = 0; piece < pieces_of(batch.spans[i]); piece += CELL_PIECES)
                    assert_true(taken[before + piece]);
        free(taken);
    }
}

static void test_cells_splits_ascend_by_one_and_are_bounded(void **state)
{
    (void)state;
    uint32_t last = 0;
    for (uint32_t cell = 1; cell < 1u << 15; cell++) {
        uint32_t split = split_of(cell);
        assert_true(split == last || split == last + 1);
        assert_int_equal(next_split(cell, UINT32_MAX) == cell, split != last);
        last = split;
    }
    assert_int_equal(last, SPLIT_COUNT - 1);
    assert_int_equal(split_of(UINT32_MAX / CELL), SPLIT_COUNT - 1);
    assert_int_equal(split_of(15), 15); /* up to position 4096 a split is a cell */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cells_all_runs_take_every_cell_once),
        cmocka_unit_test(test_cells_splits_ascend_by_one_and_are_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
