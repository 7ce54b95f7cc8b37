/* The queue of very long words gives what a sorted list would, whatever comes in whatever order. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "services/tokenizer/bpe/merge_queue.h"

#define ITEMS 400

static uint64_t waiting[ITEMS];
static size_t waiting_count;

static uint32_t draw(uint64_t *seed, uint32_t below)
{
    *seed = *seed * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(*seed >> 33) % below;
}

static bool is_waiting(uint64_t item)
{
    for (size_t i = 0; i < waiting_count; i++)
        if (waiting[i] == item) return true;
    return false;
}

static void expect_least(merge_queue_t *queue)
{
    uint32_t rank, position;
    size_t least = 0;
    for (size_t i = 1; i < waiting_count; i++)
        if (waiting[i] < waiting[least]) least = i;
    assert_true(merge_queue_pop(queue, &rank, &position));
    assert_true(((uint64_t)rank << 32 | position) == waiting[least]);
    waiting[least] = waiting[--waiting_count];
}

static void test_merge_queue_order_is_by_rank_then_position(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 200; seed++) {
        merge_queue_t queue = {0};
        uint64_t random = seed;
        uint32_t ranks = 1 + draw(&random, 40), rank, position;
        waiting_count = 0;
        for (uint32_t i = 0; i < ITEMS; i++) {
            rank = draw(&random, ranks);
            position = seed % 2 ? i : draw(&random, ITEMS);
            uint64_t item = (uint64_t)rank << 32 | position;
            if (is_waiting(item)) continue;
            merge_queue_push(&queue, rank, position);
            waiting[waiting_count++] = item;
            if (draw(&random, 3) == 0) expect_least(&queue);
        }
        while (waiting_count > 0)
            expect_least(&queue);
        assert_false(merge_queue_pop(&queue, &rank, &position));
        merge_queue_fini(&queue);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_merge_queue_order_is_by_rank_then_position),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
