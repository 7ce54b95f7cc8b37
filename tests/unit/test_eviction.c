/* Units of services/memory/eviction.c and eviction_builtin.c: the order of candidates, live and in shadow. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "services/memory/block_pool.h"
#include "services/memory/eviction.h"

#define BLOCKS 64u

static qn_policy_seat_t *open_seat(const char *name)
{
    qn_policy_catalogue_t catalogue = eviction_catalogue("");
    qn_policy_seat_t *seat = NULL;
    assert_int_equal(qn_policy_seat_open(&catalogue, name, NULL, &seat), QN_OK);
    return seat;
}

/* born, use, hits, depth of four blocks */
static void add_four(eviction_t *eviction)
{
    static const qn_policy_block_t four[] = {
        {.block = 0, .now = 50, .born = 10, .use = 50, .hits = 9, .depth = 0, .block_tokens = 16},
        {.block = 1, .now = 51, .born = 40, .use = 51, .hits = 0, .depth = 1, .block_tokens = 16},
        {.block = 2, .now = 52, .born = 20, .use = 45, .hits = 2, .depth = 500, .block_tokens = 16},
        {.block = 3, .now = 53, .born = 30, .use = 49, .hits = 2, .depth = 3, .block_tokens = 16},
    };
    for (size_t i = 0; i < 4; i++)
        eviction_add(eviction, &four[i]);
}

static void expect_order(eviction_t *eviction, const uint32_t order[4])
{
    for (int i = 0; i < 4; i++) {
        assert_int_equal(eviction_choose(eviction), order[i]);
        eviction_evicts(eviction, order[i], 60);
        eviction_remove(eviction, order[i]);
        assert_null(eviction_check(eviction));
    }
    assert_int_equal(eviction_choose(eviction), EVICTION_NO_BLOCK);
}

static void test_eviction_order_of_the_built_in_policies(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint32_t order[4];
    } table[] = {
        {"lru", {2, 3, 0, 1}},  /* by use */
        {"lfu", {1, 2, 3, 0}},  /* by hits, then use */
        {"fifo", {0, 2, 3, 1}}, /* by birth */
        {"cost",
         {1, 3, 2, 0}}, /* hits + 1 times what it costs: 2 stands behind 8000 tokens, and costs thrice as much as 3 */
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        qn_policy_seat_t *seat = open_seat(table[i].name);
        eviction_t *eviction = eviction_create(seat, BLOCKS);
        add_four(eviction);
        expect_order(eviction, table[i].order);
        eviction_destroy(&eviction);
        qn_policy_seat_close(&seat);
    }
}

static void test_eviction_switched_live_orders_all_anew(void **state)
{
    (void)state;
    qn_policy_seat_t *seat = open_seat("lru");
    eviction_t *eviction = eviction_create(seat, BLOCKS);
    add_four(eviction);
    assert_int_equal(eviction_choose(eviction), 2);
    assert_int_equal(qn_policy_seat_set(seat, "fifo"), QN_OK);
    eviction_rescore(eviction);
    assert_null(eviction_check(eviction));
    expect_order(eviction, (const uint32_t[]){0, 2, 3, 1});
    eviction_destroy(&eviction);
    qn_policy_seat_close(&seat);
}

static void test_eviction_shadow_has_an_order_of_its_own(void **state)
{
    (void)state;
    qn_policy_seat_t *seat = open_seat("lru");
    eviction_t *eviction = eviction_create(seat, BLOCKS);
    qn_policy_counts_t counts;
    add_four(eviction);
    assert_int_equal(qn_policy_seat_set_shadow(seat, "fifo"), QN_OK);
    eviction_rescore(eviction);
    expect_order(eviction, (const uint32_t[]){2, 3, 0, 1}); /* fifo: 0 twice, then 1 against 0 and the same */
    qn_policy_seat_counts(seat, &counts);
    assert_int_equal(counts.shadow_differences, 2);
    const qn_policy_difference_t *one = qn_policy_seat_difference(seat, 1);
    assert_string_equal(one->function, "evict");
    assert_non_null(strstr(one->by_live.words, "block 2"));
    assert_non_null(strstr(one->by_shadow.words, "block 0"));
    assert_non_null(strstr(one->by_shadow.reason, "fifo"));
    eviction_destroy(&eviction);
    qn_policy_seat_close(&seat);
}

static double no_number(const qn_policy_memory_t *memory, const qn_policy_block_t *block)
{
    (void)memory;
    return block->block == 2 ? NAN : (double)block->block;
}

static void test_eviction_score_that_is_no_number_withdraws_the_policy(void **state)
{
    (void)state;
    static const qn_eviction_policy_t bad = {
        .head = {.version = QN_POLICY_ABI_VERSION, .kind = QN_POLICY_EVICTION, .name = "bad"}, .score = no_number};
    qn_policy_catalogue_t catalogue = eviction_catalogue("");
    qn_policy_seat_t *seat = NULL;
    assert_int_equal(qn_policy_seat_wrap(&catalogue, &bad.head, &seat), QN_OK);
    eviction_t *eviction = eviction_create(seat, BLOCKS);
    add_four(eviction); /* two have scores of the bad one when the third shows it */
    assert_string_equal(qn_policy_seat_name(seat), "lru");
    assert_non_null(strstr(qn_policy_seat_withdrawn(seat), "no number"));
    expect_order(eviction, (const uint32_t[]){2, 3, 0, 1});
    eviction_destroy(&eviction);
    qn_policy_seat_close(&seat);
}

/* Against a plain search, with switches, shadows, and candidates that come and go. */
static void test_eviction_heaps_hold_what_a_search_finds(void **state)
{
    (void)state;
    static const char *const names[] = {"lru", "lfu", "fifo"};
    qn_policy_seat_t *seat = open_seat("lru");
    eviction_t *eviction = eviction_create(seat, BLOCKS);
    qn_policy_block_t facts[BLOCKS] = {{0}};
    bool in[BLOCKS] = {false};
    srand(7);
    for (uint64_t now = 1; now < 4000; now++) {
        uint32_t block = (uint32_t)rand() % BLOCKS;
        if (in[block]) {
            eviction_remove(eviction, block);
            if (rand() % 4 == 0)
                eviction_put_back(eviction, block);
            else
                in[block] = false;
        } else {
            facts[block] = (qn_policy_block_t){.block = block,
                                               .now = now,
                                               .use = now,
                                               .born = now / 2,
                                               .hits = (uint64_t)rand() % 5,
                                               .depth = block % 7};
            eviction_add(eviction, &facts[block]);
            in[block] = true;
        }
        if (rand() % 50 == 0) {
            if (rand() % 2)
                assert_int_equal(qn_policy_seat_set(seat, names[rand() % 3]), QN_OK);
            else
                assert_int_equal(qn_policy_seat_set_shadow(seat, rand() % 2 ? names[rand() % 3] : NULL), QN_OK);
            eviction_rescore(eviction);
        }
        assert_null(eviction_check(eviction));
        uint32_t best = EVICTION_NO_BLOCK;
        for (uint32_t i = 0; i < BLOCKS; i++)
            if (in[i] && (best == EVICTION_NO_BLOCK || eviction_is_before(eviction, i, best))) best = i;
        assert_int_equal(eviction_choose(eviction), best);
    }
    eviction_destroy(&eviction);
    qn_policy_seat_close(&seat);
}

/* fifo scores the first block of a prefix lowest; those that follow it go first all the same. */
static void test_eviction_takes_what_follows_a_block_before_it(void **state)
{
    (void)state;
    qn_policy_seat_t *seat = open_seat("fifo");
    block_pool_t *pool = NULL;
    block_pool_options_t options = {.block_count = 4,
                                    .block_tokens = 2,
                                    .sequences_max = 4,
                                    .tokens_max = 8,
                                    .prefix_cache = true,
                                    .eviction = seat};
    assert_int_equal(block_pool_create(&options, &pool), QN_OK);
    uint32_t ids[7] = {1, 2, 3, 4, 5, 6, 7};
    block_pool_grant_t grant;
    assert_int_equal(block_pool_open(pool, 1, 0, 7, ids, 7, &grant), BLOCK_POOL_GRANTED);
    assert_true(block_pool_commit(pool, 1, 0, ids, 6));
    block_pool_release(pool, 1);
    for (uint32_t cached = 3; cached-- > 0;) { /* each lease of a block more takes the last one of the prefix */
        uint32_t other[8] = {90, 91, 92, 93, 94, 95, 96, 97};
        assert_int_equal(block_pool_open(pool, 2, 0, 2 * (4 - cached), other, 1, &grant), BLOCK_POOL_GRANTED);
        assert_int_equal(block_pool_lookup(pool, 0, ids, 7), 2 * cached);
        assert_null(block_pool_check(pool));
        block_pool_release(pool, 2);
    }
    block_pool_destroy(&pool);
    qn_policy_seat_close(&seat);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_eviction_order_of_the_built_in_policies),
        cmocka_unit_test(test_eviction_switched_live_orders_all_anew),
        cmocka_unit_test(test_eviction_shadow_has_an_order_of_its_own),
        cmocka_unit_test(test_eviction_score_that_is_no_number_withdraws_the_policy),
        cmocka_unit_test(test_eviction_heaps_hold_what_a_search_finds),
        cmocka_unit_test(test_eviction_takes_what_follows_a_block_before_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
