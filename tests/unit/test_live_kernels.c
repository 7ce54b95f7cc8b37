/* What was set live of kernels, on the disk and in layers; the table of the fastest ones. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "services/compute/kernels/tune_table.h"

static char run_dir[] = "/tmp/quintet_liveXXXXXX";

static int make_run_dir(void **state)
{
    (void)state;
    return mkdtemp(run_dir) ? 0 : -1;
}

static int remove_run_dir(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", run_dir);
    return system(command);
}

static live_object_t object_of(const char *path, uint64_t fingerprint, const char *kernel)
{
    live_object_t object = {.fingerprint = fingerprint, .kernel_count = 1};
    snprintf(object.path, sizeof object.path, "%s", path);
    snprintf(object.kernels[0], sizeof object.kernels[0], "%s", kernel);
    return object;
}

static void test_live_kernels_survive_on_the_disk(void **state)
{
    (void)state;
    live_kernels_t *live = calloc(2, sizeof *live), *read = live + 1;
    assert_int_equal(live_kernels_read(run_dir, read), QN_OK);
    assert_int_equal(read->object_count, 0);
    live_object_t object = object_of("/lib/a.so", UINT64_C(0xfedcba9876543210), "rmsnorm=mine");
    strcpy(live->chosen[QN_OP_RMSNORM], "mine");
    strcpy(live->configured, "matmul=avx2");
    live->epoch = 9;
    assert_int_equal(live_kernels_add_object(live, &object), QN_OK);
    assert_int_equal(live_kernels_write(run_dir, live), QN_OK);
    assert_int_equal(live_kernels_read(run_dir, read), QN_OK);
    assert_string_equal(read->chosen[QN_OP_RMSNORM], "mine");
    assert_string_equal(read->configured, "matmul=avx2");
    assert_int_equal(read->epoch, 9);
    assert_int_equal(read->object_count, 1);
    assert_true(read->objects[0].fingerprint == object.fingerprint);
    assert_string_equal(read->objects[0].kernels[0], "rmsnorm=mine");
    free(live);
}

static void test_live_kernels_file_of_somebody_else_is_refused_and_empty(void **state)
{
    (void)state;
    static const char *const TEXTS[] = {"", "[]", "{", "null", "\xff"};
    live_kernels_t *live = calloc(1, sizeof *live);
    char path[128];
    snprintf(path, sizeof path, "%s/live/compute.kernels", run_dir);
    for (size_t i = 0; i < sizeof TEXTS / sizeof TEXTS[0]; i++) {
        FILE *file = fopen(path, "w");
        fputs(TEXTS[i], file);
        fclose(file);
        assert_int_equal(live_kernels_read(run_dir, live), QN_ERR_INVALID);
        assert_non_null(strstr(qn_err_text(), "delete it"));
        assert_int_equal(live->object_count + live->epoch, 0);
    }
    FILE *file = fopen(path, "w"); /* members of other kinds are as if they were not there */
    fputs("{\"epoch\": \"x\", \"kernels\": [1], \"objects\": {\"a\": 2}, \"withdrawn\": [3, {\"path\": 4}]}", file);
    fclose(file);
    assert_int_equal(live_kernels_read(run_dir, live), QN_OK);
    assert_int_equal(live->object_count + live->withdrawn_count, 0);
    free(live);
}

static void test_live_kernels_layers_are_composed_in_order(void **state)
{
    (void)state;
    static const struct {
        const char *configured, *tuned, *live, *want;
    } ROWS[] = {
        {"", "", "", ""},
        {"", "rope=avx2", "", "rope=avx2"},
        {"rope=avx512", "rope=avx2", "", "rope=avx2,rope=avx512"},
        {"rope=avx512", "rope=avx2", "reference", "rope=avx2,rope=avx512,rope=reference"},
        {"reference", "rope=avx2", "", "reference"},
        {"reference,rope=avx512", "rope=avx2", "avx2", "reference,rope=avx512,rope=avx2"},
    };
    live_kernels_t *live = calloc(1, sizeof *live);
    char choice[LIVE_CHOICE_MAX];
    for (size_t i = 0; i < sizeof ROWS / sizeof ROWS[0]; i++) {
        strcpy(live->chosen[QN_OP_ROPE], ROWS[i].live);
        assert_int_equal(live_kernels_compose(live, ROWS[i].configured, ROWS[i].tuned, choice), QN_OK);
        assert_string_equal(choice, ROWS[i].want);
    }
    free(live);
}

/* Withdrawn: chosen no more, neither live nor by the configuration, until another object has the name. */
static void test_live_kernels_withdrawn_objects_take_their_names_with_them(void **state)
{
    (void)state;
    live_kernels_t *live = calloc(1, sizeof *live);
    char choice[LIVE_CHOICE_MAX];
    live_object_t bad = object_of("/lib/bad.so", 3, "rmsnorm=mine"),
                  mended = object_of("/lib/bad.so", 4, "rmsnorm=mine");
    assert_int_equal(live_kernels_add_object(live, &bad), QN_OK);
    strcpy(live->chosen[QN_OP_RMSNORM], "mine");
    strcpy(live->chosen[QN_OP_ROPE], "avx2");
    live_kernels_withdraw(live);
    assert_int_equal(live->object_count, 0);
    assert_non_null(live_kernels_withdrawn(live, 3));
    assert_null(live_kernels_withdrawn(live, 4));
    assert_int_equal(live_kernels_compose(live, "rmsnorm=mine,matmul=avx2", "", choice), QN_OK);
    assert_string_equal(choice, "matmul=avx2,rope=avx2");
    assert_int_equal(live_kernels_add_object(live, &mended), QN_OK);
    assert_int_equal(live_kernels_compose(live, "rmsnorm=mine,matmul=avx2", "", choice), QN_OK);
    assert_string_equal(choice, "rmsnorm=mine,matmul=avx2,rope=avx2");
    for (uint64_t i = 0; i < 2 * LIVE_OBJECTS_MAX; i++) { /* no more than there is room for */
        live_object_t one = object_of("/lib/bad.so", 100 + i, "rope=mine");
        assert_int_equal(live_kernels_add_object(live, &one), QN_OK);
        live_kernels_withdraw(live);
    }
    assert_int_equal(live->withdrawn_count, LIVE_OBJECTS_MAX);
    assert_non_null(live_kernels_withdrawn(live, 100 + 2 * LIVE_OBJECTS_MAX - 1));
    free(live);
}

static void test_tune_table_keeps_other_machines_and_other_operations(void **state)
{
    (void)state;
    char path[128], tuned[LIVE_CHOICE_MAX];
    snprintf(path, sizeof path, "%s/table.json", run_dir);
    json_t *first = json_pack("{s:s, s:s}", "rope", "avx2", "matmul", "avx512"),
           *second = json_pack("{s:s}", "rope", "avx512");
    json_t *measured = json_array();
    assert_int_equal(tune_table_read(path, "one", tuned), QN_OK);
    assert_string_equal(tuned, "");
    assert_int_equal(tune_table_write(path, "one", first, measured), QN_OK);
    assert_int_equal(tune_table_write(path, "two", second, measured), QN_OK);
    assert_int_equal(tune_table_write(path, "one", second, measured), QN_OK);
    assert_int_equal(tune_table_read(path, "one", tuned), QN_OK);
    assert_string_equal(tuned, "rope=avx512,matmul=avx512");
    assert_int_equal(tune_table_read(path, "two", tuned), QN_OK);
    assert_string_equal(tuned, "rope=avx512");
    assert_int_equal(tune_table_read(path, "three", tuned), QN_OK);
    assert_string_equal(tuned, "");
    FILE *file = fopen(path, "w");
    fputs("{\"format\": 2, \"machines\": {}}", file);
    fclose(file);
    assert_int_equal(tune_table_read(path, "one", tuned), QN_ERR_INVALID);
    assert_int_equal(tune_table_write(path, "one", first, measured), QN_ERR_INVALID);
    json_decref(first), json_decref(second), json_decref(measured);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_live_kernels_survive_on_the_disk),
        cmocka_unit_test(test_live_kernels_file_of_somebody_else_is_refused_and_empty),
        cmocka_unit_test(test_live_kernels_layers_are_composed_in_order),
        cmocka_unit_test(test_live_kernels_withdrawn_objects_take_their_names_with_them),
        cmocka_unit_test(test_tune_table_keeps_other_machines_and_other_operations),
    };
    return cmocka_run_group_tests_name("live_kernels", tests, make_run_dir, remove_run_dir);
}
