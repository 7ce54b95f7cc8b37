/* Units of services/memory/saved_prefix.c: round trip, what is refused, what is left behind. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "services/memory/saved_prefix.h"

#define BLOCKS 6u
#define TOKENS 12u

typedef struct {
    saved_ground_t ground;
    qn_mapping_t *region;
    char directory[64];
    int fd;
} fixture_t;

static const uint32_t ids[TOKENS] = {9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 11, 12};
static const uint32_t blocks[] = {4, 0, 3}, others[] = {1, 2, 5};

static bool never(const void *context) { return context != NULL; }

static uint8_t *bytes_of(const fixture_t *fixture) { return qn_region_pointer(fixture->region); }

static int setup(void **state)
{
    fixture_t *fixture = calloc(1, sizeof *fixture);
    fixture->ground = (saved_ground_t){.fingerprint = 77,
                                       .model = "tiny",
                                       .layers = 3,
                                       .kv_heads = 2,
                                       .head_dim = 8,
                                       .block_tokens = 4,
                                       .scalar_bytes = 4,
                                       .block_count = BLOCKS};
    uint64_t bytes = 3ull * 2 * BLOCKS * 4 * 2 * 8 * 4;
    qn_region_spec_t spec = {
        .id = 2, .kind = QN_REGION_KIND_KV, .device = -1, .bytes = bytes, .epoch = 1, .name = "kv"};
    assert_int_equal(qn_region_create(&spec, &fixture->region), QN_OK);
    fixture->ground.region = fixture->region;
    for (uint64_t i = 0; i < bytes; i++)
        bytes_of(fixture)[i] = (uint8_t)(i * 31 + i / 251);
    snprintf(fixture->directory, sizeof fixture->directory, "/tmp/qn-saved-%d", (int)getpid());
    assert_int_equal(saved_directory_open(fixture->directory, &fixture->fd), QN_OK);
    *state = fixture;
    return 0;
}

static int teardown(void **state)
{
    fixture_t *fixture = *state;
    char command[128];
    close(fixture->fd);
    snprintf(command, sizeof command, "rm -r %s", fixture->directory);
    assert_int_equal(system(command), 0);
    qn_region_close(&fixture->region);
    free(fixture);
    return 0;
}

static qn_err_t write_it(fixture_t *fixture, const char *name, bool replace)
{
    return saved_write(fixture->fd, name, replace, &fixture->ground, 5, 6, 1000, ids, TOKENS, blocks, never, NULL);
}

static void test_saved_prefix_comes_back_in_other_blocks(void **state)
{
    fixture_t *fixture = *state;
    saved_reader_t reader;
    assert_int_equal(write_it(fixture, "p", false), QN_OK);
    assert_int_equal(saved_open(fixture->fd, "p", &fixture->ground, &reader), QN_OK);
    assert_int_equal(reader.header.tokens, TOKENS);
    assert_int_equal(reader.header.salt, 5);
    assert_int_equal(reader.header.identity, 6);
    assert_memory_equal(reader.ids, ids, sizeof ids);
    assert_int_equal(saved_read(&reader, &fixture->ground, 0, 3, others, never, NULL), QN_OK);
    saved_close(&reader);
    size_t plane = 4 * 2 * 8 * 4;
    for (size_t row = 0; row < 6; row++)
        for (size_t i = 0; i < 3; i++)
            assert_memory_equal(bytes_of(fixture) + (row * BLOCKS + others[i]) * plane,
                                bytes_of(fixture) + (row * BLOCKS + blocks[i]) * plane, plane);
    struct stat status;
    assert_int_equal(fstatat(fixture->fd, "p.prefix", &status, 0), 0);
    assert_int_equal(status.st_size, saved_bytes(&fixture->ground, TOKENS));
    assert_int_equal(status.st_mode & 0777, 0600);
}

static void test_saved_prefix_a_name_that_is_taken_is_refused_or_replaced(void **state)
{
    fixture_t *fixture = *state;
    assert_int_equal(write_it(fixture, "p", false), QN_OK);
    assert_int_equal(write_it(fixture, "p", false), QN_ERR_EXISTS);
    assert_int_equal(write_it(fixture, "p", true), QN_OK);
}

static void test_saved_prefix_given_up_leaves_nothing(void **state)
{
    fixture_t *fixture = *state;
    uint64_t bytes;
    assert_int_equal(saved_write(fixture->fd, "p", false, &fixture->ground, 5, 6, 1000, ids, TOKENS, blocks, never,
                                 fixture),
                     QN_ERR_CANCELLED);
    assert_int_equal(saved_directory_list(fixture->fd, &fixture->ground, NULL, &bytes), 0);
    assert_int_equal(bytes, 0);
}

static void test_saved_prefix_of_another_ground_is_refused(void **state)
{
    fixture_t *fixture = *state;
    saved_reader_t reader;
    saved_file_t files[SAVED_FILES_MAX];
    uint64_t bytes;
    assert_int_equal(write_it(fixture, "p", false), QN_OK);
    for (int i = 0; i < 6; i++) {
        saved_ground_t ground = fixture->ground;
        ground.fingerprint += i == 0;
        ground.layers += i == 1;
        ground.kv_heads += i == 2;
        ground.head_dim += i == 3;
        ground.block_tokens += i == 4;
        ground.scalar_bytes = i == 5 ? 2 : ground.scalar_bytes;
        assert_int_equal(saved_open(fixture->fd, "p", &ground, &reader), QN_ERR_UNSUPPORTED);
        assert_int_equal(saved_directory_list(fixture->fd, &ground, files, &bytes), 1);
        assert_true(files[0].readable && files[0].unfit[0]);
    }
}

/* Every bit of header, ids and of the first block. */
static void test_saved_prefix_every_flipped_bit_is_noticed(void **state)
{
    fixture_t *fixture = *state;
    saved_reader_t reader;
    assert_int_equal(write_it(fixture, "p", false), QN_OK);
    int fd = openat(fixture->fd, "p.prefix", O_RDWR);
    for (off_t at = 0; at < 208 + 48 + 64; at++)
        for (int bit = 0; bit < 8; bit++) {
            uint8_t byte;
            assert_int_equal(pread(fd, &byte, 1, at), 1);
            byte ^= (uint8_t)(1 << bit);
            assert_int_equal(pwrite(fd, &byte, 1, at), 1);
            qn_err_t err = saved_open(fixture->fd, "p", &fixture->ground, &reader);
            if (err == QN_OK) {
                err = saved_read(&reader, &fixture->ground, 0, 3, others, never, NULL);
                saved_close(&reader);
            }
            assert_true(err == QN_ERR_INVALID || err == QN_ERR_UNSUPPORTED);
            byte ^= (uint8_t)(1 << bit);
            assert_int_equal(pwrite(fd, &byte, 1, at), 1);
        }
    close(fd);
    assert_int_equal(saved_open(fixture->fd, "p", &fixture->ground, &reader), QN_OK);
    saved_close(&reader);
}

static void test_saved_prefix_names(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        bool good;
    } table[] = {{"a", true},   {"A-b_c.9", true}, {"", false},    {".", false},   {"..", false},
                 {".a", false}, {"a/b", false},    {"a b", false}, {"a\n", false}, {"\xc3\xa9", false}};
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        assert_int_equal(saved_name_ok(table[i].name, strlen(table[i].name)), table[i].good);
    char name[SAVED_NAME_MAX + 1];
    memset(name, 'x', sizeof name);
    assert_true(saved_name_ok(name, SAVED_NAME_MAX));
    assert_false(saved_name_ok(name, SAVED_NAME_MAX + 1));
    assert_false(saved_name_ok("a\0b", 3));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_saved_prefix_comes_back_in_other_blocks, setup, teardown),
        cmocka_unit_test_setup_teardown(test_saved_prefix_a_name_that_is_taken_is_refused_or_replaced, setup, teardown),
        cmocka_unit_test_setup_teardown(test_saved_prefix_given_up_leaves_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(test_saved_prefix_of_another_ground_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_saved_prefix_every_flipped_bit_is_noticed, setup, teardown),
        cmocka_unit_test(test_saved_prefix_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
