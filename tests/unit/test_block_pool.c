/* Units of services/memory/block_pool.c: leases, sharing, eviction, the pin rules. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "services/memory/block_pool.h"

#define P 4u

static block_pool_t *make(uint32_t blocks, bool prefix_cache)
{
    block_pool_options_t options = {
        .block_count = blocks, .block_tokens = P, .sequences_max = 4, .tokens_max = 64, .prefix_cache = prefix_cache};
    block_pool_t *pool = NULL;
    assert_int_equal(block_pool_create(&options, &pool), QN_OK);
    return pool;
}

static void check(const block_pool_t *pool)
{
    const char *broken = block_pool_check(pool);
    if (broken != NULL) fail_msg("%s", broken);
}

static void expect(const block_pool_t *pool, uint32_t held, uint32_t cached, uint32_t free_blocks)
{
    block_pool_stats_t stats;
    block_pool_stats(pool, &stats);
    check(pool);
    assert_int_equal(stats.held_blocks, held);
    assert_int_equal(stats.cached_blocks, cached);
    assert_int_equal(stats.free_blocks, free_blocks);
}

/* ids[i] = base + i. */
static const uint32_t *ids(uint32_t base)
{
    static uint32_t made[64];
    for (uint32_t i = 0; i < 64; i++)
        made[i] = base + i;
    return made;
}

static void open_and_commit(block_pool_t *pool, uint64_t sequence, uint64_t salt, uint32_t base, uint32_t tokens)
{
    block_pool_grant_t grant;
    assert_int_equal(block_pool_open(pool, sequence, salt, tokens, ids(base), tokens, &grant), BLOCK_POOL_GRANTED);
    assert_true(block_pool_commit(pool, sequence, grant.cached_tokens, ids(base) + grant.cached_tokens,
                                  tokens - grant.cached_tokens));
}

static void test_block_pool_create_options_out_of_range_refused(void **state)
{
    (void)state;
    static const block_pool_options_t bad[] = {
        {.block_count = 0, .block_tokens = 16, .sequences_max = 1, .tokens_max = 1},
        {.block_count = (1u << 28) + 1, .block_tokens = 16, .sequences_max = 1, .tokens_max = 1},
        {.block_count = 1, .block_tokens = 0, .sequences_max = 1, .tokens_max = 1},
        {.block_count = 1, .block_tokens = 1025, .sequences_max = 1, .tokens_max = 1},
        {.block_count = 1, .block_tokens = 16, .sequences_max = 0, .tokens_max = 1},
        {.block_count = 1, .block_tokens = 16, .sequences_max = 65537, .tokens_max = 1},
        {.block_count = 1, .block_tokens = 16, .sequences_max = 1, .tokens_max = 0},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        block_pool_t *pool = NULL;
        assert_int_equal(block_pool_create(&bad[i], &pool), QN_ERR_INVALID);
        assert_null(pool);
    }
}

static void test_block_pool_open_takes_exactly_the_blocks_needed(void **state)
{
    (void)state;
    static const struct {
        uint32_t tokens, blocks;
    } table[] = {{1, 1}, {4, 1}, {5, 2}, {8, 2}, {9, 3}, {16, 4}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        block_pool_t *pool = make(4, true);
        block_pool_grant_t grant;
        assert_int_equal(block_pool_open(pool, 7, 0, table[i].tokens, NULL, 0, &grant), BLOCK_POOL_GRANTED);
        assert_int_equal(grant.block_count, table[i].blocks);
        assert_int_equal(grant.first_block, 0);
        assert_int_equal(grant.cached_tokens, 0);
        expect(pool, table[i].blocks, 0, 4 - table[i].blocks);
        block_pool_destroy(&pool);
    }
}

static void test_block_pool_open_beyond_any_limit_is_short_and_changes_nothing(void **state)
{
    (void)state;
    block_pool_t *pool = make(8, true);
    block_pool_grant_t grant;
    assert_int_equal(block_pool_open(pool, 1, 0, 33, NULL, 0, &grant), BLOCK_POOL_SHORT_OF_BLOCKS); /* 9 blocks */
    expect(pool, 0, 0, 8);
    for (uint64_t sequence = 1; sequence <= 4; sequence++)
        assert_int_equal(block_pool_open(pool, sequence, 0, 4, NULL, 0, &grant), BLOCK_POOL_GRANTED);
    assert_int_equal(block_pool_open(pool, 5, 0, 4, NULL, 0, &grant), BLOCK_POOL_SHORT_OF_BLOCKS); /* sequences_max */
    expect(pool, 4, 0, 4);
    assert_int_equal(block_pool_open(pool, 4, 0, 4, NULL, 0, &grant), BLOCK_POOL_ALREADY_OPEN);
    assert_true(block_pool_release(pool, 2));
    assert_false(block_pool_release(pool, 2));
    assert_int_equal(block_pool_open(pool, 5, 0, 24, NULL, 0, &grant), BLOCK_POOL_SHORT_OF_BLOCKS); /* 6 of 5 free */
    assert_int_equal(block_pool_open(pool, 5, 0, 20, NULL, 0, &grant), BLOCK_POOL_GRANTED);
    expect(pool, 8, 0, 0);
    block_pool_destroy(&pool);
}

static void test_block_pool_extend_appends_or_is_short_or_unknown(void **state)
{
    (void)state;
    block_pool_t *pool = make(3, true);
    block_pool_grant_t grant;
    assert_int_equal(block_pool_extend(pool, 1, 4, &grant), BLOCK_POOL_UNKNOWN_SEQUENCE);
    assert_int_equal(block_pool_open(pool, 1, 0, 4, NULL, 0, &grant), BLOCK_POOL_GRANTED);
    assert_int_equal(block_pool_extend(pool, 1, 3, &grant), BLOCK_POOL_GRANTED);
    assert_int_equal(grant.block_count, 0);
    assert_int_equal(block_pool_extend(pool, 1, 12, &grant), BLOCK_POOL_GRANTED);
    assert_int_equal(grant.first_block, 1);
    assert_int_equal(grant.block_count, 2);
    uint32_t count = 0;
    const uint32_t *table = block_pool_table(pool, 1, &count);
    assert_int_equal(count, 3);
    assert_memory_equal(table + 1, grant.blocks, 2 * sizeof *table);
    assert_int_equal(block_pool_extend(pool, 1, 13, &grant), BLOCK_POOL_SHORT_OF_BLOCKS);
    expect(pool, 3, 0, 0);
    block_pool_destroy(&pool);
}

static void test_block_pool_open_finds_committed_prefix_but_never_the_last_token(void **state)
{
    (void)state;
    /* a prompt of n tokens equal to one that is resident: how many tokens are shared */
    static const struct {
        uint32_t tokens, cached;
    } table[] = {{1, 0}, {4, 0}, {5, 4}, {8, 4}, {9, 8}, {12, 8}, {13, 12}, {20, 12}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        block_pool_t *pool = make(16, true);
        block_pool_grant_t grant;
        open_and_commit(pool, 1, 0, 100, 13);
        assert_int_equal(block_pool_lookup(pool, 0, ids(100), table[i].tokens), table[i].cached);
        assert_int_equal(block_pool_open(pool, 2, 0, table[i].tokens, ids(100), table[i].tokens, &grant),
                         BLOCK_POOL_GRANTED);
        assert_int_equal(grant.cached_tokens, table[i].cached);
        for (uint32_t k = 0; k < grant.block_count; k++)
            assert_int_equal(block_pool_references(pool, grant.blocks[k]), k < table[i].cached / P ? 2 : 1);
        check(pool);
        block_pool_destroy(&pool);
    }
}

static void test_block_pool_open_other_salt_or_other_ids_shares_nothing(void **state)
{
    (void)state;
    block_pool_t *pool = make(16, true);
    uint32_t changed[13];
    open_and_commit(pool, 1, 5, 100, 13);
    assert_int_equal(block_pool_lookup(pool, 5, ids(100), 13), 12);
    assert_int_equal(block_pool_lookup(pool, 0, ids(100), 13), 0);
    assert_int_equal(block_pool_lookup(pool, 6, ids(100), 13), 0);
    for (uint32_t at = 0; at < 12; at++) { /* one different id ends the prefix in its block */
        memcpy(changed, ids(100), sizeof changed);
        changed[at]++;
        assert_int_equal(block_pool_lookup(pool, 5, changed, 13), at / P * P);
    }
    /* the second block's ids alone are no prefix */
    assert_int_equal(block_pool_lookup(pool, 5, ids(104), 9), 0);
    block_pool_destroy(&pool);
}

/* What other kernels computed is no prefix; with the old ones it is one again. Who was open keeps what it was opened with. */
static void test_block_pool_other_kernels_share_nothing(void **state)
{
    (void)state;
    block_pool_t *pool = make(16, true);
    block_pool_set_kernels(pool, 7);
    open_and_commit(pool, 1, 5, 100, 13);
    assert_int_equal(block_pool_lookup(pool, 5, ids(100), 13), 12);
    block_pool_set_kernels(pool, 8);
    assert_int_equal(block_pool_lookup(pool, 5, ids(100), 13), 0);
    open_and_commit(pool, 2, 5, 100, 9);
    assert_int_equal(block_pool_lookup(pool, 5, ids(100), 13), 8);
    assert_true(block_pool_release(pool, 1));
    assert_true(block_pool_release(pool, 2));
    block_pool_set_kernels(pool, 7);
    assert_int_equal(block_pool_lookup(pool, 5, ids(100), 13), 12);
    block_pool_set_kernels(pool, 0);
    assert_int_equal(block_pool_lookup(pool, 5, ids(100), 13), 0);
    block_pool_destroy(&pool);
}

static void test_block_pool_prefix_cache_off_frees_at_once(void **state)
{
    (void)state;
    block_pool_t *pool = make(4, false);
    open_and_commit(pool, 1, 0, 100, 13);
    assert_int_equal(block_pool_lookup(pool, 0, ids(100), 13), 0);
    assert_true(block_pool_release(pool, 1));
    expect(pool, 0, 0, 4);
    block_pool_destroy(&pool);
}

static void test_block_pool_release_keeps_full_blocks_cached_and_frees_the_rest(void **state)
{
    (void)state;
    block_pool_t *pool = make(8, true);
    open_and_commit(pool, 1, 0, 100, 10); /* 2 full blocks, one partial */
    expect(pool, 3, 0, 5);
    assert_true(block_pool_release(pool, 1));
    expect(pool, 0, 2, 6);
    assert_int_equal(block_pool_available(pool), 8);
    block_pool_grant_t grant;
    assert_int_equal(block_pool_open(pool, 2, 0, 10, ids(100), 10, &grant), BLOCK_POOL_GRANTED);
    assert_int_equal(grant.cached_tokens, 8);
    expect(pool, 3, 0, 5);
    block_pool_destroy(&pool);
}

static void test_block_pool_eviction_takes_the_least_recently_used_last_blocks_first(void **state)
{
    (void)state;
    block_pool_t *pool = make(6, true);
    open_and_commit(pool, 1, 0, 100, 9); /* blocks a0 a1 + partial */
    assert_true(block_pool_release(pool, 1));
    open_and_commit(pool, 2, 0, 200, 9); /* b0 b1 + partial */
    assert_true(block_pool_release(pool, 2));
    expect(pool, 0, 4, 2);
    block_pool_grant_t grant;
    assert_int_equal(block_pool_open(pool, 3, 0, 12, NULL, 0, &grant), BLOCK_POOL_GRANTED); /* 2 free + a1 */
    expect(pool, 3, 3, 0);
    assert_int_equal(block_pool_lookup(pool, 0, ids(100), 9), 4);
    assert_int_equal(block_pool_lookup(pool, 0, ids(200), 9), 8);
    assert_int_equal(block_pool_extend(pool, 3, 16, &grant), BLOCK_POOL_GRANTED); /* a0 */
    assert_int_equal(block_pool_lookup(pool, 0, ids(100), 9), 0);
    assert_int_equal(block_pool_lookup(pool, 0, ids(200), 9), 8);
    block_pool_stats_t stats;
    block_pool_stats(pool, &stats);
    assert_int_equal(stats.evictions, 2);
    block_pool_destroy(&pool);
}

static void test_block_pool_open_shared_cached_blocks_are_not_counted_as_room(void **state)
{
    (void)state;
    block_pool_t *pool = make(3, true);
    block_pool_grant_t grant;
    open_and_commit(pool, 1, 0, 100, 12); /* 3 full blocks */
    assert_true(block_pool_release(pool, 1));
    expect(pool, 0, 3, 0);
    /* 4 blocks wanted, 2 of them shared, 1 evictable */
    assert_int_equal(block_pool_open(pool, 2, 0, 16, ids(100), 12, &grant), BLOCK_POOL_SHORT_OF_BLOCKS);
    expect(pool, 0, 3, 0);
    assert_int_equal(block_pool_open(pool, 2, 0, 12, ids(100), 12, &grant), BLOCK_POOL_GRANTED);
    assert_int_equal(grant.cached_tokens, 8);
    expect(pool, 3, 0, 0);
    block_pool_destroy(&pool);
}

static void test_block_pool_commit_repeats_are_skipped_gaps_refused(void **state)
{
    (void)state;
    block_pool_t *pool = make(8, true);
    block_pool_grant_t grant;
    assert_false(block_pool_commit(pool, 1, 0, ids(100), 1));
    assert_int_equal(block_pool_open(pool, 1, 0, 10, NULL, 0, &grant), BLOCK_POOL_GRANTED);
    assert_false(block_pool_commit(pool, 1, 1, ids(101), 1)); /* a gap */
    assert_true(block_pool_commit(pool, 1, 0, ids(100), 3));
    assert_true(block_pool_commit(pool, 1, 0, ids(100), 6));  /* 3 of them again */
    assert_true(block_pool_commit(pool, 1, 2, ids(102), 2));  /* all again */
    assert_false(block_pool_commit(pool, 1, 6, ids(106), 7)); /* past its 3 blocks */
    assert_true(block_pool_commit(pool, 1, 6, ids(106), 6));
    assert_int_equal(block_pool_lookup(pool, 0, ids(100), 13), 12);
    check(pool);
    block_pool_destroy(&pool);
}

static void test_block_pool_commit_equal_content_first_stays_indexed(void **state)
{
    (void)state;
    block_pool_t *pool = make(8, true);
    block_pool_grant_t one, two;
    uint32_t first, second;
    assert_int_equal(block_pool_open(pool, 1, 0, 8, NULL, 0, &one), BLOCK_POOL_GRANTED);
    first = one.blocks[0];
    assert_int_equal(block_pool_open(pool, 2, 0, 8, NULL, 0, &two), BLOCK_POOL_GRANTED);
    second = two.blocks[0];
    assert_true(block_pool_commit(pool, 1, 0, ids(100), 4));
    assert_true(block_pool_commit(pool, 2, 0, ids(100), 8)); /* its second block follows the first one's block */
    assert_true(block_pool_indexed(pool, first));
    assert_false(block_pool_indexed(pool, second));
    assert_int_equal(block_pool_lookup(pool, 0, ids(100), 9), 8);
    check(pool);
    assert_true(block_pool_release(pool, 1));
    assert_true(block_pool_release(pool, 2));
    expect(pool, 0, 2, 6);
    block_pool_destroy(&pool);
}

static void test_block_pool_commit_held_block_replaces_cached_one(void **state)
{
    (void)state;
    block_pool_t *pool = make(8, true);
    block_pool_grant_t grant;
    open_and_commit(pool, 1, 0, 100, 9);
    assert_int_equal(block_pool_open(pool, 2, 0, 9, NULL, 0, &grant), BLOCK_POOL_GRANTED); /* without ids: no hit */
    uint32_t mine = grant.blocks[0];
    assert_true(block_pool_release(pool, 1));
    expect(pool, 3, 2, 3);
    assert_true(block_pool_commit(pool, 2, 0, ids(100), 4));
    assert_true(block_pool_indexed(pool, mine));
    expect(pool, 3, 1, 4);
    assert_int_equal(block_pool_lookup(pool, 0, ids(100), 9), 8); /* the child moved with its parent */
    block_pool_destroy(&pool);
}

static void test_block_pool_evicted_parent_takes_followers_out_of_the_index(void **state)
{
    (void)state;
    block_pool_t *pool = make(4, true);
    block_pool_grant_t one, two;
    assert_int_equal(block_pool_open(pool, 1, 0, 4, NULL, 0, &one), BLOCK_POOL_GRANTED);
    assert_int_equal(block_pool_open(pool, 2, 0, 8, NULL, 0, &two), BLOCK_POOL_GRANTED);
    uint32_t follower = two.blocks[1];
    assert_true(block_pool_commit(pool, 1, 0, ids(100), 4));
    assert_true(block_pool_commit(pool, 2, 0, ids(100), 8)); /* its own first block is a duplicate */
    assert_true(block_pool_release(pool, 1));                /* the parent is cached, its follower held */
    assert_true(block_pool_indexed(pool, follower));
    assert_int_equal(block_pool_extend(pool, 2, 16, &two), BLOCK_POOL_GRANTED); /* evicts the parent */
    assert_false(block_pool_indexed(pool, follower));
    assert_int_equal(block_pool_references(pool, follower), 1);
    assert_true(block_pool_commit(pool, 2, 8, ids(108), 4)); /* its chain is broken: not indexed, not a failure */
    expect(pool, 4, 0, 0);
    assert_true(block_pool_release(pool, 2));
    expect(pool, 0, 0, 4);
    block_pool_destroy(&pool);
}

static void test_block_pool_flush_empties_index_and_leaves_sequences(void **state)
{
    (void)state;
    block_pool_t *pool = make(8, true);
    open_and_commit(pool, 1, 0, 100, 9);
    open_and_commit(pool, 2, 0, 200, 9);
    assert_true(block_pool_release(pool, 2));
    assert_int_equal(block_pool_flush(pool), 2);
    expect(pool, 3, 0, 5);
    assert_int_equal(block_pool_lookup(pool, 0, ids(100), 9), 0);
    assert_true(block_pool_commit(pool, 1, 9, ids(109), 3));
    expect(pool, 3, 0, 5);
    assert_true(block_pool_release(pool, 1));
    expect(pool, 0, 0, 8);
    assert_int_equal(block_pool_flush(pool), 0);
    block_pool_destroy(&pool);
}

static void test_block_pool_release_all_returns_everything(void **state)
{
    (void)state;
    block_pool_t *pool = make(16, true);
    open_and_commit(pool, 1, 0, 100, 9);
    open_and_commit(pool, 2, 0, 100, 9);
    open_and_commit(pool, 3, 1, 100, 9);
    assert_int_equal(block_pool_release_all(pool), 3);
    expect(pool, 0, 4, 12);
    assert_int_equal(block_pool_release_all(pool), 0);
    block_pool_destroy(&pool);
}

/* A thousand random calls; block_pool_check after each is the expectation. */
static void test_block_pool_random_calls_keep_every_invariant(void **state)
{
    (void)state;
    for (uint32_t seed = 1; seed <= 20; seed++) {
        srand(seed);
        block_pool_t *pool = make(10, true);
        uint32_t committed[8] = {0}, room[8] = {0};
        for (int i = 0; i < 1000; i++) {
            uint32_t sequence = (uint32_t)rand() % 6, base = 100 * ((uint32_t)rand() % 2);
            uint32_t tokens = 1 + (uint32_t)rand() % 30;
            block_pool_grant_t grant;
            switch (rand() % 5) {
            case 0:
            case 1:
                if (block_pool_open(pool, sequence, sequence % 2, tokens, ids(base), tokens, &grant) ==
                    BLOCK_POOL_GRANTED) {
                    committed[sequence] = grant.cached_tokens;
                    room[sequence] = grant.block_count * P;
                }
                break;
            case 2:
                if (block_pool_extend(pool, sequence, tokens, &grant) == BLOCK_POOL_GRANTED)
                    room[sequence] += grant.block_count * P;
                break;
            case 3:
                if (room[sequence] > committed[sequence] &&
                    block_pool_commit(pool, sequence, committed[sequence], ids(base) + committed[sequence], 1))
                    committed[sequence]++;
                break;
            default:
                if (rand() % 40 == 0)
                    block_pool_flush(pool);
                else if (block_pool_release(pool, sequence))
                    committed[sequence] = room[sequence] = 0;
                break;
            }
            check(pool);
        }
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
        cmocka_unit_test(test_block_pool_create_options_out_of_range_refused),
        cmocka_unit_test(test_block_pool_open_takes_exactly_the_blocks_needed),
        cmocka_unit_test(test_block_pool_open_beyond_any_limit_is_short_and_changes_nothing),
        cmocka_unit_test(test_block_pool_extend_appends_or_is_short_or_unknown),
        cmocka_unit_test(test_block_pool_open_finds_committed_prefix_but_never_the_last_token),
        cmocka_unit_test(test_block_pool_open_other_salt_or_other_ids_shares_nothing),
        cmocka_unit_test(test_block_pool_other_kernels_share_nothing),
        cmocka_unit_test(test_block_pool_prefix_cache_off_frees_at_once),
        cmocka_unit_test(test_block_pool_release_keeps_full_blocks_cached_and_frees_the_rest),
        cmocka_unit_test(test_block_pool_eviction_takes_the_least_recently_used_last_blocks_first),
        cmocka_unit_test(test_block_pool_open_shared_cached_blocks_are_not_counted_as_room),
        cmocka_unit_test(test_block_pool_commit_repeats_are_skipped_gaps_refused),
        cmocka_unit_test(test_block_pool_commit_equal_content_first_stays_indexed),
        cmocka_unit_test(test_block_pool_commit_held_block_replaces_cached_one),
        cmocka_unit_test(test_block_pool_evicted_parent_takes_followers_out_of_the_index),
        cmocka_unit_test(test_block_pool_flush_empties_index_and_leaves_sequences),
        cmocka_unit_test(test_block_pool_release_all_returns_everything),
        cmocka_unit_test(test_block_pool_random_calls_keep_every_invariant),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
