/* What /proc says of a process's memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <unistd.h>

#include "services/frontend/research/process_memory.h"

static void test_process_memory_status_gives_bytes(void **state)
{
    (void)state;
    process_memory_t memory = {0};
    assert_true(process_memory_parse_status("Name:\tVmRSS: 3 kB\nVmHWM:\t    9000 kB\nVmRSS:\t    8000 kB\n"
                                            "RssAnon:\t 1276 kB\nRssFile:\t 6700 kB\nRssShmem:\t 24 kB\n",
                                            &memory));
    assert_int_equal(memory.rss_bytes, 8000 * 1024);
    assert_int_equal(memory.peak_rss_bytes, 9000 * 1024);
    assert_int_equal(memory.private_bytes, 1276 * 1024);
    assert_int_equal(memory.file_bytes, 6700 * 1024);
    assert_int_equal(memory.shared_bytes, 24 * 1024);
}

static void test_process_memory_status_of_a_zombie_says_nothing(void **state)
{
    (void)state;
    process_memory_t memory = {0};
    assert_false(process_memory_parse_status("Name:\tquintet\nState:\tZ (zombie)\n", &memory));
}

static void test_process_memory_pieces_of_a_region_are_one(void **state)
{
    (void)state;
    process_memory_t memory = {0};
    process_memory_parse_maps("7f0000000000-7f0000010000 rw-s 00000000 00:01 5  /memfd:quintet.kv (deleted)\n"
                              "7f0000010000-7f0000012000 rw-p 00000000 00:00 0\n"
                              "7f0000020000-7f0000030000 rw-s 00010000 00:01 5  /memfd:quintet.kv (deleted)\n"
                              "7f0000030000-7f0000031000 r--s 00000000 00:01 6  /memfd:quintet.kv2 (deleted)\n"
                              "7f0000040000-7f0000041000 rw-s 00000000 00:01 7  /memfd:quintet-ledger (deleted)\n"
                              "garbage /memfd:quintet.x\n",
                              &memory);
    assert_int_equal(memory.region_count, 2);
    assert_string_equal(memory.regions[0].name, "kv");
    assert_int_equal(memory.regions[0].bytes, 0x20000);
    assert_string_equal(memory.regions[1].name, "kv2");
    assert_int_equal(memory.regions[1].bytes, 0x1000);
}

static void test_process_memory_of_this_process_is_read(void **state)
{
    (void)state;
    process_memory_t memory;
    assert_true(process_memory_read((uint32_t)getpid(), &memory));
    assert_true(memory.rss_bytes > 0 && memory.rss_bytes <= memory.peak_rss_bytes);
    assert_false(process_memory_read(UINT32_MAX, &memory));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_process_memory_status_gives_bytes),
        cmocka_unit_test(test_process_memory_status_of_a_zombie_says_nothing),
        cmocka_unit_test(test_process_memory_pieces_of_a_region_are_one),
        cmocka_unit_test(test_process_memory_of_this_process_is_read),
    };
    return cmocka_run_group_tests_name("process_memory", tests, NULL, NULL);
}
