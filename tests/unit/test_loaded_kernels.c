/* Kernels of shared objects: where they may come from, what the check in a child finds, and what was loaded as rows of the
 * registry. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/loaded.h"
#include "services/compute/kernels/object_child.h"

static const qn_kernel_case_t SHAPE = {
    .heads = 6, .kv_heads = 2, .head_dim = 12, .hidden = 52, .intermediate = 70, .vocab = 90, .block_tokens = 16};

/* build/tests/kernels of the variant that runs. */
static const char *objects(void)
{
    static char path[QN_PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 32);
    assert_true(length > 0);
    path[length] = '\0';
    strcpy(strrchr(path, '/'), "/../kernels");
    return path;
}

static qn_err_t check(const char *name, unsigned seconds, object_child_t *ret_child)
{
    object_file_t file;
    qn_err_t err = object_file_open(objects(), name, &file);
    assert_int_equal(err, QN_OK);
    err = object_child_run(&file, &SHAPE, seconds, ret_child);
    object_file_close(&file);
    return err;
}

static void test_object_plain_kernels_of_every_operation_are_right(void **state)
{
    (void)state;
    object_child_t child;
    qn_err_t err = check("all.so", 300, &child);
    if (err) print_error("%s\n", qn_err_text());
    assert_int_equal(err, QN_OK);
    assert_int_equal(child.right_count, 7);
    for (unsigned i = 0; i < child.right_count; i++)
        assert_true(child.right[i].cases > 20 && child.right[i].worst_error < 1e-5);
}

static void test_object_wrong_kernels_are_refused_with_what_shows_it(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        const char *parts[2];
    } ROWS[] = {
        {"wrong_1.so", {"rmsnorm=plain is wrong: small T 1", "relative error 0.01"}},
        {"wrong_2.so", {"odd T ", "behind the end"}},
        {"wrong_3.so", {"rmsnorm=plain is wrong", "other bits when its items are dealt"}},
        {"wrong_4.so", {"crashes with SIG", "odd T 1"}},
        {"wrong_6.so", {"ended its process", "odd T 1"}},
        {"wrong_7.so", {"rmsnorm=plain is wrong", ""}},
        {"wrong_8.so", {"kernel ABI 0", "compile it again"}},
        {"wrong_9.so", {"rmsnorm=avx2 is built in", "another name"}},
        {"wrong_10.so", {"no operation \"rmsnrom\"", "rmsnorm"}},
    };
    for (size_t i = 0; i < sizeof ROWS / sizeof ROWS[0]; i++) {
        object_child_t child;
        assert_int_equal(check(ROWS[i].name, 300, &child), QN_ERR_INVALID);
        for (size_t part = 0; part < 2; part++)
            if (!strstr(qn_err_text(), ROWS[i].parts[part])) fail_msg("%s: %s", ROWS[i].name, qn_err_text());
    }
}

static void test_object_that_hangs_is_ended(void **state)
{
    (void)state;
    object_child_t child;
    assert_int_equal(check("wrong_5.so", 1, &child), QN_ERR_INVALID);
    assert_non_null(strstr(qn_err_text(), "it hangs: not done after 1 s"));
}

static void test_object_outside_of_the_directories_is_refused(void **state)
{
    (void)state;
    char root[] = "/tmp/quintet_objectsXXXXXX", path[QN_PATH_MAX], link[QN_PATH_MAX];
    object_file_t file;
    assert_non_null(mkdtemp(root));
    snprintf(path, sizeof path, "%s/all.so", objects());
    snprintf(link, sizeof link, "%s/linked.so", root);
    assert_int_equal(symlink(path, link), 0);
    assert_int_equal(object_file_open(root, "linked.so", &file), QN_ERR_CONFIG);
    assert_non_null(strstr(qn_err_text(), "outside of compute.kernel_dirs"));
    assert_int_equal(object_file_open(root, path, &file), QN_ERR_CONFIG);
    assert_int_equal(object_file_open(root, "absent.so", &file), QN_ERR_NOT_FOUND);
    assert_int_equal(object_file_open("", "all.so", &file), QN_ERR_NOT_FOUND);
    assert_int_equal(object_file_open(objects(), "/proc/self/exe", &file), QN_ERR_CONFIG);
    unlink(link);
    snprintf(link, sizeof link, "%s/pipe.so", root);
    assert_int_equal(mkfifo(link, 0600), 0);
    assert_int_equal(object_file_open(root, "pipe.so", &file), QN_ERR_CONFIG);
    unlink(link);
    rmdir(root);
}

/* What is loaded is chosen by name only, and a later one of the name takes the earlier one's place. */
static void test_object_loaded_kernels_are_rows_of_the_registry(void **state)
{
    (void)state;
    object_file_t file;
    size_t first, count, again, all;
    qn_kernel_set_t set;
    assert_int_equal(object_file_open(objects(), "all.so", &file), QN_OK);
    assert_int_equal(qn_kernels_load(file.fd, "all.so", file.fingerprint, &first, &count), QN_OK);
    assert_int_equal(count, 7);
    assert_int_equal(qn_kernels_choose("", &SHAPE, qn_kernels_isa(), &set), QN_OK);
    assert_null(qn_kernel_object(set.chosen[QN_OP_RMSNORM]));
    uint64_t without = qn_kernels_fingerprint(&set, 0);
    assert_int_equal(qn_kernels_choose("rmsnorm=plain,attention.decode=plain", &SHAPE, qn_kernels_isa(), &set), QN_OK);
    assert_string_equal(qn_kernel_object(set.chosen[QN_OP_RMSNORM]), "all.so");
    assert_true(qn_kernels_fingerprint(&set, 0) != without);
    assert_int_equal(qn_kernel_formats(set.chosen[QN_OP_RMSNORM]), 3);
    const qn_kernel_t *before = set.chosen[QN_OP_RMSNORM];
    assert_int_equal(qn_kernels_load(file.fd, "all.so", file.fingerprint + 1, &again, &count), QN_OK);
    assert_ptr_not_equal(qn_kernels_find_loaded(QN_OP_RMSNORM, "plain"), before);
    qn_kernels_loaded(&all);
    assert_int_equal(all, first + 14);
    assert_int_equal(qn_kernels_choose("rmsnorm=plane", &SHAPE, qn_kernels_isa(), &set), QN_ERR_CONFIG);
    assert_non_null(strstr(qn_err_text(), "plain"));
    object_file_close(&file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_object_plain_kernels_of_every_operation_are_right),
        cmocka_unit_test(test_object_wrong_kernels_are_refused_with_what_shows_it),
        cmocka_unit_test(test_object_that_hangs_is_ended),
        cmocka_unit_test(test_object_outside_of_the_directories_is_refused),
        cmocka_unit_test(test_object_loaded_kernels_are_rows_of_the_registry),
    };
    return cmocka_run_group_tests_name("loaded_kernels", tests, NULL, NULL);
}
