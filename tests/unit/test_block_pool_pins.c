/* Units of services/memory/block_pool_pins.c and block_pool_map.c: pins, eviction by people, what is shown. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "services/memory/block_pool.h"

#define P 4u

static block_pool_t *make(uint32_t blocks)
{
    block_pool_options_t options = {
        .block_count = blocks, .block_tokens = P, .sequences_max = 4, .tokens_max = 16, .prefix_cache = true};
    block_pool_t *pool = NULL;
    assert_int_equal(block_pool_create(&options, &pool), QN_OK);
    return pool;
}

static const uint32_t *ids(uint32_t base)
{
    static uint32_t made[64];
    for (uint32_t i = 0; i < 64; i++)
        made[i] = base + i;
    return made;
}

static void check(const block_pool_t *pool)
{
    const char *broken = block_pool_check(pool);
    if (broken != NULL) fail_msg("%s", broken);
}

static void expect(const block_pool_t *pool, uint32_t held, uint32_t cached)
{
    block_pool_stats_t stats;
    block_pool_stats(pool, &stats);
    check(pool);
    assert_int_equal(stats.held_blocks, held);
    assert_int_equal(stats.cached_blocks, cached);
}

/* A sequence that ran and ended: its full blocks are cached. */
static void run(block_pool_t *pool, uint32_t base, uint32_t tokens)
{
    block_pool_grant_t grant;
    assert_int_equal(block_pool_open(pool, 1000 + base, 0, tokens, ids(base), tokens, &grant), BLOCK_POOL_GRANTED);
    assert_true(block_pool_commit(pool, 1000 + base, grant.cached_tokens, ids(base) + grant.cached_tokens,
                                  tokens - grant.cached_tokens));
    assert_true(block_pool_release(pool, 1000 + base));
}

static void test_pins_hold_what_is_cached_until_they_are_let_go(void **state)
{
    (void)state;
    block_pool_t *pool = make(16);
    uint32_t pin, tokens, held, again;
    run(pool, 100, 13);
    run(pool, 300, 9);
    expect(pool, 0, 5);
    assert_int_equal(block_pool_pin(pool, 0, ids(100), 13, &pin, &tokens), BLOCK_POOL_PINNED);
    assert_int_equal(tokens, 12);
    expect(pool, 3, 2);
    assert_int_equal(block_pool_pins(pool, &held), 1);
    assert_int_equal(held, 3);
    assert_int_equal(block_pool_pin(pool, 0, ids(100), 13, &again, &tokens), BLOCK_POOL_PINNED);
    assert_int_equal(again, pin);
    assert_int_equal(block_pool_pin_of(pool, 0, ids(100), 64), pin); /* a longer prompt that begins so */
    assert_int_equal(block_pool_pin_of(pool, 0, ids(300), 9), 0);
    assert_int_equal(block_pool_release_all(pool), 0); /* the scheduler's end is not theirs */
    expect(pool, 3, 2);
    assert_true(block_pool_unpin(pool, pin));
    assert_false(block_pool_unpin(pool, pin));
    assert_false(block_pool_unpin(pool, 0));
    expect(pool, 0, 5);
    block_pool_destroy(&pool);
}

static void test_pins_nothing_of_what_is_not_cached(void **state)
{
    (void)state;
    block_pool_t *pool = make(16);
    uint32_t pin = 9, tokens = 9;
    assert_int_equal(block_pool_pin(pool, 0, ids(100), 13, &pin, &tokens), BLOCK_POOL_NOT_CACHED);
    assert_int_equal(pin + tokens, 0);
    run(pool, 100, 13);
    assert_int_equal(block_pool_pin(pool, 5, ids(100), 13, &pin, &tokens), BLOCK_POOL_NOT_CACHED); /* another salt */
    block_pool_destroy(&pool);
}

/* 16 tokens at most are 4 blocks: of 8 blocks, pins may hold 4. */
static void test_pins_leave_room_for_the_longest_sequence(void **state)
{
    (void)state;
    block_pool_t *pool = make(8);
    uint32_t pin, tokens;
    run(pool, 100, 13);
    run(pool, 300, 9);
    assert_int_equal(block_pool_pin(pool, 0, ids(100), 13, &pin, &tokens), BLOCK_POOL_PINNED);
    assert_int_equal(block_pool_pin(pool, 0, ids(300), 9, &pin, &tokens), BLOCK_POOL_PINS_TOO_MUCH);
    block_pool_grant_t grant;
    assert_int_equal(block_pool_open(pool, 1, 0, 16, ids(700), 16, &grant), BLOCK_POOL_GRANTED);
    check(pool);
    block_pool_destroy(&pool);
}

static void test_pins_have_a_bound_and_take_no_place_of_sequences(void **state)
{
    (void)state;
    block_pool_t *pool = make(256);
    uint32_t pin, tokens;
    for (uint32_t i = 0; i < BLOCK_POOL_PINS_MAX; i++) {
        run(pool, 1000 * (i + 1), 5);
        assert_int_equal(block_pool_pin(pool, 0, ids(1000 * (i + 1)), 5, &pin, &tokens), BLOCK_POOL_PINNED);
    }
    run(pool, 500, 5);
    assert_int_equal(block_pool_pin(pool, 0, ids(500), 5, &pin, &tokens), BLOCK_POOL_PINS_FULL);
    block_pool_grant_t grant;
    for (uint64_t sequence = 1; sequence <= 4; sequence++)
        assert_int_equal(block_pool_open(pool, sequence, 0, 4, NULL, 0, &grant), BLOCK_POOL_GRANTED);
    assert_int_equal(block_pool_open(pool, 5, 0, 4, NULL, 0, &grant), BLOCK_POOL_SHORT_OF_BLOCKS);
    block_pool_stats_t stats;
    block_pool_stats(pool, &stats);
    assert_int_equal(stats.sequences, 4);
    assert_int_equal(block_pool_release_all(pool), 4);
    assert_int_equal(block_pool_unpin_all(pool), BLOCK_POOL_PINS_MAX);
    expect(pool, 0, BLOCK_POOL_PINS_MAX + 1);
    block_pool_destroy(&pool);
}

static void test_evict_dry_run_names_what_the_real_one_takes(void **state)
{
    (void)state;
    block_pool_t *pool = make(16);
    run(pool, 100, 13);
    run(pool, 300, 9);
    const uint32_t *blocks;
    uint32_t count, would[2];
    assert_int_equal(block_pool_evict(pool, 2, true, &blocks, &count), 2);
    assert_int_equal(count, 2);
    would[0] = blocks[0], would[1] = blocks[1];
    expect(pool, 0, 5);
    assert_int_equal(block_pool_evict(pool, 2, true, &blocks, &count), 2); /* asking changes no order */
    assert_memory_equal(blocks, would, sizeof would);
    assert_int_equal(block_pool_evict(pool, 2, false, &blocks, &count), 2);
    assert_memory_equal(blocks, would, sizeof would);
    expect(pool, 0, 3);
    assert_false(block_pool_indexed(pool, would[0]));
    assert_int_equal(block_pool_evict(pool, UINT32_MAX, false, &blocks, &count), 3);
    assert_int_equal(block_pool_evict(pool, UINT32_MAX, false, &blocks, &count), 0);
    expect(pool, 0, 0);
    block_pool_destroy(&pool);
}

static void test_evict_prefix_takes_its_cached_end_only(void **state)
{
    (void)state;
    block_pool_t *pool = make(16);
    block_pool_grant_t grant;
    const uint32_t *blocks;
    uint32_t count;
    run(pool, 100, 13);
    run(pool, 300, 9);
    assert_int_equal(block_pool_open(pool, 1, 0, 5, ids(100), 5, &grant),
                     BLOCK_POOL_GRANTED); /* holds the first block */
    assert_int_equal(grant.cached_tokens, 4);
    assert_int_equal(block_pool_evict_prefix(pool, 0, ids(100), 13, true, &blocks, &count), 2);
    assert_int_equal(block_pool_evict_prefix(pool, 0, ids(100), 13, false, &blocks, &count), 2);
    assert_int_equal(block_pool_lookup(pool, 0, ids(100), 13), 4);
    assert_int_equal(block_pool_lookup(pool, 0, ids(300), 9), 8);
    check(pool);
    block_pool_destroy(&pool);
}

static void test_map_shows_states_owners_and_pins(void **state)
{
    (void)state;
    block_pool_t *pool = make(16);
    block_pool_grant_t grant;
    uint32_t pin, tokens, found[4];
    run(pool, 100, 9);
    assert_int_equal(block_pool_pin(pool, 0, ids(100), 9, &pin, &tokens), BLOCK_POOL_PINNED);
    assert_int_equal(block_pool_open(pool, 7, 0, 9, ids(100), 9, &grant), BLOCK_POOL_GRANTED);
    assert_int_equal(block_pool_lookup_blocks(pool, 0, ids(100), 9, 4, found), 2);
    block_pool_block_t shown[16];
    block_pool_show(pool, 0, 16, shown);
    const block_pool_block_t *second = &shown[found[1]];
    assert_int_equal(second->state, BLOCK_POOL_HELD);
    assert_int_equal(second->references, 2);
    assert_int_equal(second->pins, 1);
    assert_int_equal(second->owner_count, 1);
    assert_int_equal(second->owners[0], 7);
    assert_true(second->indexed && second->content != 0 && second->depth == 1);
    block_pool_fragmentation_t fragmentation;
    block_pool_fragmentation(pool, &fragmentation);
    assert_int_equal(fragmentation.held_tokens, 12);
    assert_int_equal(fragmentation.used_tokens, 8);
    assert_int_equal(fragmentation.free_blocks, 13);
    assert_true(fragmentation.free_runs >= 1 && fragmentation.largest_free_run <= 13);
    block_pool_destroy(&pool);
}

/* Random calls, seed printed by the failing check: every invariant after each. */
static void test_pins_random_calls_keep_every_invariant(void **state)
{
    (void)state;
    unsigned seed = 11;
    block_pool_t *pool = make(32);
    for (int i = 0; i < 4000; i++) {
        uint32_t base = 100 * (1 + (unsigned)rand_r(&seed) % 6), length = 1 + (unsigned)rand_r(&seed) % 16, a, b;
        const uint32_t *blocks;
        block_pool_grant_t grant;
        switch (rand_r(&seed) % 8) {
        case 0: block_pool_pin(pool, 0, ids(base), length, &a, &b); break;
        case 1: block_pool_unpin(pool, block_pool_pin_of(pool, 0, ids(base), length)); break;
        case 2: block_pool_evict(pool, length, rand_r(&seed) % 2, &blocks, &b); break;
        case 3: block_pool_evict_prefix(pool, 0, ids(base), length, rand_r(&seed) % 2, &blocks, &b); break;
        case 4: block_pool_release(pool, base); break;
        case 5:
            if (rand_r(&seed) % 20 == 0) block_pool_flush(pool);
            break;
        default:
            if (block_pool_open(pool, base, 0, length, ids(base), length, &grant) == BLOCK_POOL_GRANTED)
                block_pool_commit(pool, base, grant.cached_tokens, ids(base) + grant.cached_tokens,
                                  length - grant.cached_tokens);
        }
        check(pool);
    }
    block_pool_destroy(&pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pins_hold_what_is_cached_until_they_are_let_go),
        cmocka_unit_test(test_pins_nothing_of_what_is_not_cached),
        cmocka_unit_test(test_pins_leave_room_for_the_longest_sequence),
        cmocka_unit_test(test_pins_have_a_bound_and_take_no_place_of_sequences),
        cmocka_unit_test(test_evict_dry_run_names_what_the_real_one_takes),
        cmocka_unit_test(test_evict_prefix_takes_its_cached_end_only),
        cmocka_unit_test(test_map_shows_states_owners_and_pins),
        cmocka_unit_test(test_pins_random_calls_keep_every_invariant),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
