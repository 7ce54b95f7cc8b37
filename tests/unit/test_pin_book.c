/* Units of services/memory/pin_book.c and pin_file.c: owners, times, another life, damaged files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "services/memory/pin_book.h"

static char path[64];
static const pin_ground_t ground = {.fingerprint = 7, .kv_id = 2, .kv_epoch = 5, .block_tokens = 4, .scalar_bytes = 4};

static block_pool_t *make_pool(void)
{
    block_pool_options_t options = {
        .block_count = 32, .block_tokens = 4, .sequences_max = 4, .tokens_max = 32, .prefix_cache = true};
    block_pool_t *pool = NULL;
    assert_int_equal(block_pool_create(&options, &pool), QN_OK);
    return pool;
}

static const uint32_t *ids(void)
{
    static uint32_t made[32];
    for (uint32_t i = 0; i < 32; i++)
        made[i] = 100 + i;
    return made;
}

static void compute(block_pool_t *pool, uint32_t tokens)
{
    block_pool_grant_t grant;
    assert_int_equal(block_pool_open(pool, 1, 0, tokens, ids(), tokens, &grant), BLOCK_POOL_GRANTED);
    assert_true(
        block_pool_commit(pool, 1, grant.cached_tokens, ids() + grant.cached_tokens, tokens - grant.cached_tokens));
    block_pool_release(pool, 1);
}

static pin_book_t *make_book(block_pool_t *pool, const pin_ground_t *here, bool bytes_live, uint64_t now_ms)
{
    pin_book_t *book = NULL;
    assert_int_equal(pin_book_create(path, &book), QN_OK);
    pin_book_open(book, pool, here, bytes_live, now_ms);
    return book;
}

static uint32_t pin(pin_book_t *book, block_pool_t *pool, uint32_t tokens, const char *owner, uint64_t expires_ms)
{
    uint32_t pool_pin, kept;
    assert_int_equal(block_pool_clone(pool, 0, ids(), tokens, &pool_pin, &kept), BLOCK_POOL_PINNED);
    const pin_record_t *record = pin_book_add(book, pool, pool_pin, true, owner, expires_ms);
    assert_non_null(record);
    return record->number;
}

static uint32_t held(const block_pool_t *pool)
{
    uint32_t blocks;
    block_pool_pins(pool, &blocks);
    assert_null(block_pool_check(pool));
    return blocks;
}

static void end(pin_book_t **book, block_pool_t **pool)
{
    pin_book_destroy(book);
    block_pool_destroy(pool);
}

static int clean(void **state)
{
    (void)state;
    snprintf(path, sizeof path, "/tmp/qn-pins-%d", (int)getpid());
    unlink(path);
    return 0;
}

static void test_pin_book_a_prefix_stays_as_long_as_one_owner_wants_it(void **state)
{
    (void)state;
    block_pool_t *pool = make_pool();
    pin_book_t *book = make_book(pool, &ground, false, 0);
    compute(pool, 16);
    uint32_t first = pin(book, pool, 8, "ann", PIN_NEVER), second = pin(book, pool, 8, "bob", 100);
    assert_true(first != second && held(pool) == 2);
    assert_int_equal(pin(book, pool, 8, "ann", 50), first); /* the same takes the new time */
    assert_int_equal(pin_book_tick(book, pool, 49), 50);
    assert_int_equal(pin_book_tick(book, pool, 50), 100);
    assert_int_equal(held(pool), 2);
    assert_int_equal(pin_book_tick(book, pool, 100), PIN_NEVER);
    assert_int_equal(held(pool), 0);
    assert_int_equal(pin_book_remove(book, pool, first), 0);
    end(&book, &pool);
}

static void test_pin_book_the_next_life_holds_the_same_blocks(void **state)
{
    (void)state;
    block_pool_t *pool = make_pool(), *next = make_pool();
    pin_book_t *book = make_book(pool, &ground, false, 0);
    compute(pool, 16);
    uint32_t rows = pin(book, pool, 7, "ann", PIN_NEVER);
    pin(book, pool, 12, "bob", 500);
    pin(book, pool, 12, "ann", PIN_NEVER);
    pin_book_destroy(&book);
    book = make_book(next, &ground, true, 400);
    assert_int_equal(pin_book_count(book), 3);
    assert_int_equal(held(next), 3);
    assert_int_equal(pin_book_at(book, 0)->tokens, 7);
    assert_int_equal(pin_book_at(book, 0)->number, rows);
    assert_int_equal(block_pool_lookup(next, 0, ids(), 16), 12);
    assert_int_equal(pin_book_remove_owner(book, next, "ann"), 2);
    assert_int_equal(held(next), 3); /* bob's */
    assert_int_equal(pin_book_tick(book, next, 500), PIN_NEVER);
    assert_int_equal(held(next), 0);
    end(&book, &pool);
    block_pool_destroy(&next);
}

static void test_pin_book_without_its_bytes_a_pin_waits_for_its_prefix(void **state)
{
    (void)state;
    pin_ground_t elsewhere = ground;
    elsewhere.kv_epoch++;
    for (int i = 0; i < 2; i++) { /* the region is gone, or is another one */
        block_pool_t *pool = make_pool(), *next = make_pool();
        clean(NULL);
        pin_book_t *book = make_book(pool, &ground, false, 0);
        compute(pool, 16);
        pin(book, pool, 8, "ann", PIN_NEVER);
        pin_book_destroy(&book);
        book = make_book(next, i ? &elsewhere : &ground, i == 1, 0);
        assert_int_equal(pin_book_count(book), 1);
        assert_int_equal(held(next), 0);
        pin_book_tick(book, next, 1);
        assert_int_equal(held(next), 0);
        compute(next, 16);
        pin_book_tick(book, next, 2);
        assert_int_equal(held(next), 2);
        end(&book, &pool);
        block_pool_destroy(&next);
    }
}

static void test_pin_book_of_another_model_is_forgotten(void **state)
{
    (void)state;
    pin_ground_t other = ground;
    other.fingerprint++;
    block_pool_t *pool = make_pool(), *next = make_pool();
    pin_book_t *book = make_book(pool, &ground, false, 0);
    compute(pool, 16);
    pin(book, pool, 8, "ann", PIN_NEVER);
    pin_book_destroy(&book);
    book = make_book(next, &other, true, 0);
    assert_int_equal(pin_book_count(book), 0);
    end(&book, &pool);
    block_pool_destroy(&next);
}

static void test_pin_book_every_damaged_byte_loses_the_book_and_nothing_else(void **state)
{
    (void)state;
    block_pool_t *pool = make_pool();
    pin_book_t *book = make_book(pool, &ground, false, 0);
    char bytes[4096];
    compute(pool, 16);
    pin(book, pool, 10, "ann", PIN_NEVER);
    pin_book_destroy(&book);
    int fd = open(path, O_RDONLY);
    ssize_t size = read(fd, bytes, sizeof bytes);
    close(fd);
    assert_true(size > 100);
    for (ssize_t at = 0; at <= size; at++) {
        block_pool_t *next = make_pool();
        fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        if (at < size) bytes[at] ^= 4;
        assert_int_equal(write(fd, bytes, (size_t)(at < size ? size : size - 1)), at < size ? size : size - 1);
        if (at < size) bytes[at] ^= 4;
        close(fd);
        book = make_book(next, &ground, true, 0);
        assert_int_equal(pin_book_count(book), 0);
        assert_int_equal(held(next), 0);
        assert_int_equal(access(path, F_OK), -1);
        end(&book, &next);
    }
    block_pool_destroy(&pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_pin_book_a_prefix_stays_as_long_as_one_owner_wants_it, clean),
        cmocka_unit_test_setup(test_pin_book_the_next_life_holds_the_same_blocks, clean),
        cmocka_unit_test_setup(test_pin_book_without_its_bytes_a_pin_waits_for_its_prefix, clean),
        cmocka_unit_test_setup(test_pin_book_of_another_model_is_forgotten, clean),
        cmocka_unit_test_setup_teardown(test_pin_book_every_damaged_byte_loses_the_book_and_nothing_else, clean, clean),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
