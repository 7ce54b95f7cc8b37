/* Units of services/memory/block_pool_clone.c and _pins.c: pins, clones, fills, what is made again (rules 10 to 14). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "services/memory/block_pool.h"

#define P 4u

static block_pool_t *make_with(uint32_t blocks, uint32_t pin_blocks_max)
{
    block_pool_options_t options = {.block_count = blocks,
                                    .block_tokens = P,
                                    .sequences_max = 4,
                                    .tokens_max = 32,
                                    .prefix_cache = true,
                                    .pin_blocks_max = pin_blocks_max};
    block_pool_t *pool = NULL;
    assert_int_equal(block_pool_create(&options, &pool), QN_OK);
    return pool;
}

static block_pool_t *make(uint32_t blocks) { return make_with(blocks, 0); }

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

static const uint32_t *ids(uint32_t base)
{
    static uint32_t made[64];
    for (uint32_t i = 0; i < 64; i++)
        made[i] = base + i;
    return made;
}

static block_pool_grant_t open_at(block_pool_t *pool, uint64_t sequence, uint32_t base, uint32_t tokens)
{
    block_pool_grant_t grant;
    assert_int_equal(block_pool_open(pool, sequence, 0, tokens, ids(base), tokens, &grant), BLOCK_POOL_GRANTED);
    return grant;
}

static void commit(block_pool_t *pool, uint64_t sequence, uint32_t base, uint32_t from, uint32_t to)
{
    assert_true(block_pool_commit(pool, sequence, from, ids(base) + from, to - from));
}

static void test_block_pool_pin_keeps_the_last_full_block_too(void **state)
{
    (void)state;
    block_pool_t *pool = make(16);
    uint32_t pin, tokens, blocks;
    open_at(pool, 1, 0, 12);
    commit(pool, 1, 0, 0, 12);
    assert_int_equal(block_pool_pin(pool, 0, ids(0), 8, &pin, &tokens), BLOCK_POOL_PINNED);
    assert_int_equal(tokens, 8);
    block_pool_release(pool, 1);
    expect(pool, 2, 1);
    assert_int_equal(block_pool_flush(pool), 1); /* the pinned blocks stay (rule 10) */
    assert_int_equal(block_pool_lookup(pool, 0, ids(0), 12), 8);
    assert_int_equal(block_pool_pins(pool, &blocks), 1);
    assert_int_equal(blocks, 2);
    assert_true(block_pool_unpin(pool, pin));
    assert_false(block_pool_unpin(pool, pin));
    expect(pool, 0, 2);
    block_pool_destroy(&pool);
}

static void test_block_pool_pin_share_and_room_are_bounds(void **state)
{
    (void)state;
    block_pool_t *pool = make_with(16, 2);
    uint32_t pin, tokens;
    open_at(pool, 1, 0, 16);
    commit(pool, 1, 0, 0, 16);
    assert_int_equal(block_pool_pin(pool, 0, ids(0), 12, &pin, &tokens), BLOCK_POOL_PINS_TOO_MUCH);
    assert_int_equal(block_pool_pin(pool, 0, ids(0), 8, &pin, &tokens), BLOCK_POOL_PINNED);
    block_pool_destroy(&pool);
    pool = make(11); /* the longest sequence needs 8 */
    open_at(pool, 1, 0, 16);
    commit(pool, 1, 0, 0, 16);
    assert_int_equal(block_pool_pin(pool, 0, ids(0), 16, &pin, &tokens), BLOCK_POOL_PINS_TOO_MUCH);
    assert_int_equal(block_pool_pin(pool, 0, ids(0), 12, &pin, &tokens), BLOCK_POOL_PINNED);
    block_pool_destroy(&pool);
}

static void test_block_pool_clone_of_a_sequence_gives_its_rows_to_the_next(void **state)
{
    (void)state;
    block_pool_t *pool = make(16);
    uint32_t pin, tokens;
    block_pool_grant_t source = open_at(pool, 1, 0, 7);
    uint32_t tail = source.blocks[1];
    commit(pool, 1, 0, 0, 6);
    assert_int_equal(block_pool_clone_sequence(pool, 1, &pin, &tokens), BLOCK_POOL_PINNED);
    assert_int_equal(tokens, 6);
    check(pool);
    block_pool_grant_t next = open_at(pool, 2, 0, 12);
    assert_int_equal(next.cached_tokens, 6);
    assert_true(next.copies && next.copy_from == tail && next.blocks[1] != tail);
    commit(pool, 1, 0, 6, 8); /* the source goes on writing its block, and fills it */
    assert_true(block_pool_indexed(pool, tail));
    check(pool);
    block_pool_release(pool, 1);
    block_pool_unpin(pool, pin);
    assert_int_equal(block_pool_references(pool, tail), 1); /* until the copy is proven (rule 13) */
    commit(pool, 2, 0, 6, 7);
    assert_int_equal(block_pool_references(pool, tail), 0);
    expect(pool, 3, 1); /* its own three, one of them shared; the tail is cached */
    block_pool_release(pool, 2);
    expect(pool, 0, 2);
    block_pool_destroy(&pool);
}

static void test_block_pool_clone_released_before_its_copy_lets_the_source_go(void **state)
{
    (void)state;
    block_pool_t *pool = make(16);
    uint32_t pin, tokens;
    uint32_t tail = open_at(pool, 1, 0, 3).blocks[0];
    commit(pool, 1, 0, 0, 3);
    assert_int_equal(block_pool_clone_sequence(pool, 1, &pin, &tokens), BLOCK_POOL_PINNED);
    assert_true(open_at(pool, 2, 0, 5).copies);
    block_pool_release(pool, 1);
    block_pool_unpin(pool, pin);
    assert_int_equal(block_pool_references(pool, tail), 1);
    assert_true(block_pool_release(pool, 2));
    expect(pool, 0, 0);
    block_pool_destroy(&pool);
}

static void test_block_pool_clone_of_ids_finds_rows_in_a_cached_block(void **state)
{
    (void)state;
    static const struct {
        uint32_t asked, kept, cached; /* of the next sequence, which has 12 tokens */
    } table[] = {{3, 3, 3}, {4, 4, 4}, {5, 5, 5}, {7, 7, 7}, {8, 8, 8}, {12, 12, 8}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        block_pool_t *pool = make(16);
        uint32_t pin, tokens;
        open_at(pool, 1, 0, 12);
        commit(pool, 1, 0, 0, 12);
        block_pool_release(pool, 1);
        assert_int_equal(block_pool_clone(pool, 0, ids(0), table[i].asked, &pin, &tokens), BLOCK_POOL_PINNED);
        assert_int_equal(tokens, table[i].kept);
        uint32_t again;
        assert_int_equal(block_pool_clone(pool, 0, ids(0), table[i].asked, &again, &tokens), BLOCK_POOL_PINNED);
        assert_int_equal(again, pin);
        assert_int_equal(block_pool_flush(pool),
                         3 - (table[i].asked + P - 1) / P); /* full blocks stay found, rows kept */
        check(pool);
        block_pool_grant_t grant = open_at(pool, 2, 0, 12);
        assert_int_equal(grant.cached_tokens, table[i].cached);
        assert_int_equal(grant.copies, table[i].cached % P != 0);
        assert_int_equal(block_pool_clone(pool, 1, ids(0), 12, &pin, &tokens),
                         BLOCK_POOL_NOT_CACHED); /* another salt */
        block_pool_destroy(&pool);
    }
}

static void test_block_pool_clone_without_index_is_refused(void **state)
{
    (void)state;
    block_pool_t *pool = make(16);
    uint32_t pin, tokens;
    open_at(pool, 1, 0, 6);
    assert_int_equal(block_pool_clone_sequence(pool, 1, &pin, &tokens), BLOCK_POOL_NOT_CACHED);
    assert_int_equal(block_pool_clone_sequence(pool, 2, &pin, &tokens), BLOCK_POOL_NOT_OPEN);
    commit(pool, 1, 0, 0, 6);
    block_pool_flush(pool);
    assert_int_equal(block_pool_clone_sequence(pool, 1, &pin, &tokens), BLOCK_POOL_NOT_OPEN);
    block_pool_destroy(&pool);
}

static void test_block_pool_adopt_makes_pins_again_in_their_blocks(void **state)
{
    (void)state;
    block_pool_t *pool = make(20), *next = make(20);
    uint32_t pin, tokens, kept[3][32], lengths[3], counts[3];
    uint32_t blocks[3][8];
    uint64_t salt, identity;
    open_at(pool, 1, 0, 14);
    commit(pool, 1, 0, 0, 6);
    assert_int_equal(block_pool_clone_sequence(pool, 1, &pin, &tokens), BLOCK_POOL_PINNED); /* 1: rows in block 1 */
    commit(pool, 1, 0, 6, 14);
    assert_int_equal(block_pool_pin(pool, 0, ids(0), 12, &pin, &tokens),
                     BLOCK_POOL_PINNED); /* 2: block 1 is full now */
    assert_int_equal(block_pool_clone(pool, 0, ids(0), 14, &pin, &tokens), BLOCK_POOL_PINNED);
    assert_int_equal(tokens, 14);
    for (uint32_t i = 0; i < 3; i++) {
        assert_true(block_pool_pin_ids(pool, i + 1, 32, kept[i], &lengths[i], &salt, &identity));
        memcpy(blocks[i], block_pool_pin_blocks(pool, i + 1, &counts[i]), sizeof blocks[i]);
        assert_memory_equal(kept[i], ids(0), lengths[i] * sizeof(uint32_t));
    }
    for (uint32_t i = 0; i < 3; i++)
        assert_true(block_pool_adopt(next, i + 1, salt, identity, kept[i], lengths[i], blocks[i], counts[i]));
    expect(next, 4, 0);
    assert_false(
        block_pool_adopt(next, 1, salt, identity, kept[0], lengths[0], blocks[0], counts[0])); /* there already */
    blocks[1][2] = blocks[1][0];
    assert_false(
        block_pool_adopt(next, 9, salt, identity, kept[1], lengths[1], blocks[1], counts[1])); /* twice in a table */
    blocks[1][2] = 99;
    assert_false(block_pool_adopt(next, 9, salt, identity, kept[1], lengths[1], blocks[1], counts[1]));
    assert_false(block_pool_adopt(next, 9, 5, 5, kept[2], lengths[2], blocks[2], counts[2])); /* others' blocks */
    expect(next, 4, 0);
    block_pool_grant_t grant = open_at(next, 1, 0, 20);
    assert_int_equal(grant.cached_tokens, 14);
    assert_int_equal(grant.blocks[0], blocks[0][0]);
    assert_int_equal(block_pool_unpin_all(next), 3);
    expect(next, 6, 0);
    block_pool_destroy(&pool);
    block_pool_destroy(&next);
}

static void test_block_pool_fill_enters_the_index_when_it_is_finished(void **state)
{
    (void)state;
    block_pool_t *pool = make(16);
    block_pool_grant_t grant;
    uint64_t fill, other;
    open_at(pool, 1, 0, 5);
    commit(pool, 1, 0, 0, 5);
    assert_true(block_pool_fill_open(pool, 0, 0, ids(0), 12, &fill, &grant));
    assert_int_equal(grant.cached_tokens, 4);
    assert_int_equal(grant.block_count, 3);
    assert_int_equal(block_pool_lookup(pool, 0, ids(0), 13), 4);
    assert_int_equal(block_pool_release_all(pool), 1); /* the scheduler is gone: not the fill */
    block_pool_fill_finish(pool, fill, ids(0), 12);
    expect(pool, 0, 3);
    assert_int_equal(block_pool_lookup(pool, 0, ids(0), 13), 12);
    assert_true(block_pool_fill_open(pool, 0, 0, ids(50), 12, &fill, &grant));
    assert_true(block_pool_fill_open(pool, 0, 0, ids(40), 4, &other, &grant));
    assert_false(block_pool_fill_open(pool, 0, 0, ids(30), 4, &other, &grant)); /* BLOCK_POOL_FILLS_MAX */
    block_pool_fill_drop(pool, fill);
    assert_false(
        block_pool_fill_open(pool, 0, 0, ids(0), 32, &other, &grant)); /* 8 blocks, 1 filling, 8 for a sequence */
    assert_int_equal(block_pool_lookup(pool, 0, ids(50), 13), 0);
    check(pool);
    block_pool_destroy(&pool);
}

static void test_block_pool_messages_cannot_name_pins(void **state)
{
    (void)state;
    block_pool_t *pool = make(16);
    block_pool_grant_t grant;
    uint32_t pin, tokens;
    open_at(pool, 1, 0, 8);
    commit(pool, 1, 0, 0, 8);
    assert_int_equal(block_pool_pin(pool, 0, ids(0), 8, &pin, &tokens), BLOCK_POOL_PINNED);
    for (unsigned bit = 62; bit < 64; bit++) {
        uint64_t forged = 1ull << bit | pin;
        assert_false(block_pool_release(pool, forged));
        assert_false(block_pool_commit(pool, forged, 8, ids(0), 1));
        assert_int_equal(block_pool_extend(pool, forged, 12, &grant), BLOCK_POOL_UNKNOWN_SEQUENCE);
        assert_int_equal(block_pool_open(pool, forged, 0, 4, NULL, 0, &grant), BLOCK_POOL_UNKNOWN_SEQUENCE);
    }
    expect(pool, 2, 0);
    block_pool_destroy(&pool);
}

static void test_block_pool_people_at_random_keep_every_invariant(void **state)
{
    (void)state;
    for (uint32_t seed = 1; seed <= 20; seed++) {
        srand(seed);
        block_pool_t *pool = make_with(16, seed % 2 ? 5 : 0);
        uint32_t committed[8] = {0}, room[8] = {0}, pin, tokens;
        for (int i = 0; i < 1000; i++) {
            uint32_t sequence = 1 + (uint32_t)rand() % 5, base = 100 * ((uint32_t)rand() % 2);
            uint32_t some = 1 + (uint32_t)rand() % 20;
            block_pool_grant_t grant;
            uint64_t fill;
            switch (rand() % 8) {
            case 0:
                if (block_pool_open(pool, sequence, 0, some, ids(base), some, &grant) == BLOCK_POOL_GRANTED) {
                    committed[sequence] = grant.cached_tokens;
                    room[sequence] = grant.block_count * P;
                    assert_true(!grant.copies == (grant.cached_tokens % P == 0));
                }
                break;
            case 1:
            case 2:
                if (room[sequence] > committed[sequence] &&
                    block_pool_commit(pool, sequence, committed[sequence], ids(base) + committed[sequence], 1))
                    committed[sequence]++;
                break;
            case 3: block_pool_clone_sequence(pool, sequence, &pin, &tokens); break;
            case 4: block_pool_clone(pool, 0, ids(base), some, &pin, &tokens); break;
            case 5: block_pool_unpin(pool, 1 + (uint32_t)rand() % 60); break;
            case 6:
                if (some / P > 0 && block_pool_fill_open(pool, 0, 0, ids(base), some / P * P, &fill, &grant)) {
                    check(pool);
                    block_pool_fill_finish(pool, fill, ids(base), some / P * P);
                }
                break;
            default:
                if (rand() % 20 == 0)
                    block_pool_flush(pool);
                else if (block_pool_release(pool, sequence))
                    committed[sequence] = room[sequence] = 0;
                break;
            }
            check(pool);
        }
        block_pool_unpin_all(pool);
        block_pool_release_all(pool);
        block_pool_stats_t stats;
        block_pool_stats(pool, &stats);
        assert_int_equal(stats.held_blocks, 0);
        block_pool_destroy(&pool);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_block_pool_pin_keeps_the_last_full_block_too),
        cmocka_unit_test(test_block_pool_pin_share_and_room_are_bounds),
        cmocka_unit_test(test_block_pool_clone_of_a_sequence_gives_its_rows_to_the_next),
        cmocka_unit_test(test_block_pool_clone_released_before_its_copy_lets_the_source_go),
        cmocka_unit_test(test_block_pool_clone_of_ids_finds_rows_in_a_cached_block),
        cmocka_unit_test(test_block_pool_clone_without_index_is_refused),
        cmocka_unit_test(test_block_pool_adopt_makes_pins_again_in_their_blocks),
        cmocka_unit_test(test_block_pool_fill_enters_the_index_when_it_is_finished),
        cmocka_unit_test(test_block_pool_messages_cannot_name_pins),
        cmocka_unit_test(test_block_pool_people_at_random_keep_every_invariant),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
