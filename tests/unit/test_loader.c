/* Loading the model on a thread, and not loading it when its regions were kept. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "services/memory/weights/loader.h"

static qn_config_t *config;
static region_table_t *table;

static void start_config(const char *const *sets, size_t count)
{
    qn_config_free(&config);
    if (qn_config_load(NULL, sets, count, "/tmp", &config)) fail_msg("%s", qn_err_text());
}

static int setup(void **state)
{
    (void)state;
    static const char *const sets[] = {"model.path=deploy/models/default", "memory.kv_bytes=32MiB"};
    start_config(sets, 2);
    return region_table_create(QN_SHARE_MEMFD, -1, 4, "/run/x/memory.fds", true, &table);
}

static int teardown(void **state)
{
    (void)state;
    qn_config_free(&config);
    region_table_destroy(&table);
    return 0;
}

/* Starts, waits and takes; `kept_*` may be NULL. */
static qn_err_t load(qn_mapping_t *kept_weights, qn_mapping_t *kept_kv, loader_result_t *ret_result)
{
    loader_t *loader;
    qn_err_t err;
    uint64_t done, total;
    assert_int_equal(loader_start(qn_config_values(config), table, NULL, &kept_weights, &kept_kv, &loader), QN_OK);
    assert_null(kept_weights);
    struct pollfd wait = {.fd = loader_fd(loader), .events = POLLIN};
    assert_int_equal(poll(&wait, 1, 60000), 1);
    assert_true(loader_take(loader, &err, ret_result));
    loader_progress(loader, &done, &total);
    assert_true(done <= total);
    loader_destroy(&loader);
    assert_null(loader);
    return err;
}

static void test_loader_result_is_complete(void **state)
{
    (void)state;
    loader_result_t result;
    if (load(NULL, NULL, &result)) fail_msg("%s", qn_err_text());
    assert_string_equal(result.directory->id, "default");
    assert_int_equal(result.kv.bytes, 32 << 20);
    assert_int_equal(result.kv.block_count, 256);
    assert_int_equal(result.kv.max_model_len, 2048);
    assert_int_equal(qn_region_bytes(result.kv_region), 32 << 20);
    assert_int_equal(qn_region_bytes(result.weights_region), weights_bytes(result.weights));
    assert_true(qn_region_sealed(result.weights_region));
    assert_true(qn_region_fingerprint(result.weights_region) == weights_fingerprint(result.weights));
    assert_int_equal(block_pool_available(result.pool), 256);
    assert_false(result.weights_kept || result.kv_kept);
    loader_result_fini(&result);
}

static void test_loader_failure_keeps_text_and_origin(void **state)
{
    (void)state;
    static const char *const sets[] = {"model.path=/nonexistent"};
    loader_result_t result;
    start_config(sets, 1);
    assert_int_equal(load(NULL, NULL, &result), QN_ERR_NOT_FOUND);
    assert_non_null(strstr(qn_err_text(), "/nonexistent/config.json"));
    assert_non_null(strstr(qn_err_origin(), "model_directory.c:"));
}

static void test_loader_destroyed_while_it_runs_ends_soon(void **state)
{
    (void)state;
    static const char *const sets[] = {"model.path=deploy/models/default", "model.load_format=dummy"};
    qn_mapping_t *none = NULL;
    loader_t *loader;
    start_config(sets, 2);
    for (int i = 0; i < 20; i++) {
        assert_int_equal(loader_start(qn_config_values(config), table, NULL, &none, &none, &loader), QN_OK);
        loader_destroy(&loader);
    }
}

/* As the service manager would keep it: the descriptor alone, everything else is gone. */
static qn_mapping_t *keep(qn_mapping_t **region)
{
    qn_mapping_t *kept;
    int fd = dup(qn_region_fd(*region));
    qn_region_close(region);
    assert_int_equal(qn_region_adopt(fd, "/run/x/memory.fds", &kept), QN_OK);
    return kept;
}

static void test_loader_kept_regions_are_used_again(void **state)
{
    (void)state;
    loader_result_t first, second;
    assert_int_equal(load(NULL, NULL, &first), QN_OK);
    uint64_t bytes = qn_region_bytes(first.weights_region);
    uint8_t *copy = malloc(bytes);
    memcpy(copy, qn_region_pointer(first.weights_region), bytes);
    qn_mapping_t *weights = keep(&first.weights_region), *kv = keep(&first.kv_region);
    loader_result_fini(&first);
    assert_int_equal(load(weights, kv, &second), QN_OK);
    assert_true(second.weights_kept && second.kv_kept);
    assert_memory_equal(copy, qn_region_pointer(second.weights_region), bytes);
    assert_int_equal(qn_region_epoch(second.weights_region), 4);
    free(copy);
    loader_result_fini(&second);
}

static void test_loader_kept_kv_of_automatic_size_is_used_as_it_is(void **state)
{
    (void)state;
    static const char *const sets[] = {"model.path=deploy/models/default", "scheduler.max_sequences=4"};
    loader_result_t first, second;
    start_config(sets, 2);
    assert_int_equal(load(NULL, NULL, &first), QN_OK);
    assert_int_equal(first.kv.block_count, 512);
    qn_mapping_t *larger, *small;
    assert_int_equal(region_table_make(table, 9, QN_REGION_KIND_KV, "kv", 400 * first.block_bytes, &larger), QN_OK);
    assert_int_equal(region_table_make(table, 10, QN_REGION_KIND_KV, "kv", 300 * first.block_bytes, &small), QN_OK);
    loader_result_fini(&first);
    assert_int_equal(load(NULL, larger, &second), QN_OK); /* more than three quarters of what it would be */
    assert_true(second.kv_kept);
    assert_int_equal(second.kv.block_count, 400);
    loader_result_fini(&second);
    assert_int_equal(load(NULL, small, &second), QN_OK); /* less: made anew */
    assert_false(second.kv_kept);
    assert_int_equal(second.kv.block_count, 512);
    loader_result_fini(&second);
}

static void test_loader_kept_weights_of_another_model_are_dropped(void **state)
{
    (void)state;
    static const char *const sets[] = {"model.path=deploy/models/default", "model.load_format=dummy"};
    loader_result_t first, second;
    assert_int_equal(load(NULL, NULL, &first), QN_OK);
    qn_mapping_t *weights = keep(&first.weights_region);
    start_config(sets, 2);
    assert_int_equal(load(weights, NULL, &second), QN_OK); /* same size, another fingerprint */
    assert_false(second.weights_kept);
    assert_true(qn_region_fingerprint(second.weights_region) != weights_fingerprint(first.weights));
    loader_result_fini(&first);
    loader_result_fini(&second);
}

/* A copy of the bundled model's config.json with dynamic rope and dummy weights. */
static void write_dynamic_model(const char *directory)
{
    char command[512];
    snprintf(command, sizeof command,
             "sed 's/\"rope_type\": \"default\"/\"rope_type\": \"dynamic\", \"factor\": 2.0/' "
             "deploy/models/default/config.json > %s/config.json",
             directory);
    assert_int_equal(system(command), 0);
}

static bool shares_prefixes(block_pool_t *pool)
{
    uint32_t ids[32] = {1, 2, 3};
    block_pool_grant_t grant;
    assert_int_equal(block_pool_open(pool, 1, 0, 32, ids, 32, &grant), BLOCK_POOL_GRANTED);
    assert_true(block_pool_commit(pool, 1, 0, ids, 32));
    assert_int_equal(block_pool_open(pool, 2, 0, 33, ids, 32, &grant), BLOCK_POOL_GRANTED);
    return grant.cached_tokens > 0;
}

static void test_loader_dynamic_rope_shares_no_prefixes_beyond_its_length(void **state)
{
    (void)state;
    char directory[] = "/tmp/qn-loader-XXXXXX", path[64], command[64];
    assert_non_null(mkdtemp(directory));
    write_dynamic_model(directory);
    snprintf(path, sizeof path, "model.path=%s", directory);
    for (int within = 0; within <= 1; within++) {
        const char *const sets[] = {path, "model.load_format=dummy", "memory.kv_bytes=64MiB",
                                    within ? "model.max_model_len=2048" : "model.max_model_len=2049"};
        loader_result_t result;
        start_config(sets, 4);
        if (load(NULL, NULL, &result)) fail_msg("%s", qn_err_text());
        assert_int_equal(result.directory->config.rope.type, QN_ROPE_DYNAMIC);
        assert_int_equal(shares_prefixes(result.pool), within);
        loader_result_fini(&result);
    }
    snprintf(command, sizeof command, "rm -r %s", directory);
    assert_int_equal(system(command), 0);
}

/* Whether there are huge pages is the system's; the key must not change what is made, and off must mean none. */
static void test_loader_huge_pages_follow_the_key(void **state)
{
    (void)state;
    static const char *const keys[] = {"memory.huge_pages=off", "memory.huge_pages=auto", "memory.huge_pages=all"};
    uint64_t weights_huge[3], kv_huge[3];
    for (size_t i = 0; i < 3; i++) {
        const char *const sets[] = {"model.path=deploy/models/default", "memory.kv_bytes=32MiB", keys[i]};
        region_table_t *regions;
        loader_result_t result;
        start_config(sets, 3);
        assert_int_equal(region_table_create(QN_SHARE_MEMFD, -1, 4, "/run/x/memory.fds", i > 0, &regions), QN_OK);
        region_table_t *usual = table;
        table = regions;
        if (load(NULL, NULL, &result)) fail_msg("%s", qn_err_text());
        weights_huge[i] = qn_region_huge_bytes(result.weights_region);
        kv_huge[i] = qn_region_huge_bytes(result.kv_region);
        assert_int_equal(*(uint8_t *)qn_region_pointer(result.kv_region), 0);
        loader_result_fini(&result);
        table = usual;
        region_table_destroy(&regions);
    }
    assert_true(weights_huge[0] == 0 && kv_huge[0] == 0);
    if (weights_huge[1] > 0) assert_true(kv_huge[2] > 0); /* what works for weights works for the KV cache */
}

static void test_loader_kept_weights_of_another_format_are_dropped(void **state)
{
    (void)state;
    static const char *const formats[] = {"model.quantize=int8", "model.quantize=int4", "model.layout=rows"};
    for (size_t i = 0; i < 3; i++) {
        const char *const sets[] = {"model.path=deploy/models/default", "memory.kv_bytes=32MiB", formats[i]};
        loader_result_t first, second;
        start_config(sets, 2);
        assert_int_equal(load(NULL, NULL, &first), QN_OK);
        qn_mapping_t *weights = keep(&first.weights_region);
        start_config(sets, 3);
        assert_int_equal(load(weights, NULL, &second), QN_OK);
        assert_false(second.weights_kept);
        loader_result_fini(&first);
        weights = keep(&second.weights_region);
        loader_result_fini(&second);
        assert_int_equal(load(weights, NULL, &second), QN_OK);
        assert_true(second.weights_kept);
        loader_result_fini(&second);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_loader_result_is_complete, setup, teardown),
        cmocka_unit_test_setup_teardown(test_loader_failure_keeps_text_and_origin, setup, teardown),
        cmocka_unit_test_setup_teardown(test_loader_destroyed_while_it_runs_ends_soon, setup, teardown),
        cmocka_unit_test_setup_teardown(test_loader_kept_regions_are_used_again, setup, teardown),
        cmocka_unit_test_setup_teardown(test_loader_kept_kv_of_automatic_size_is_used_as_it_is, setup, teardown),
        cmocka_unit_test_setup_teardown(test_loader_kept_weights_of_another_model_are_dropped, setup, teardown),
        cmocka_unit_test_setup_teardown(test_loader_huge_pages_follow_the_key, setup, teardown),
        cmocka_unit_test_setup_teardown(test_loader_kept_weights_of_another_format_are_dropped, setup, teardown),
        cmocka_unit_test_setup_teardown(test_loader_dynamic_rope_shares_no_prefixes_beyond_its_length, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
