/* Default places: found, made private, refused when another could write there. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/paths.h"

static char directory[64], saved_runtime[256];

static int setup(void **state)
{
    (void)state;
    const char *runtime = getenv("XDG_RUNTIME_DIR");
    snprintf(saved_runtime, sizeof saved_runtime, "%s", runtime ? runtime : "");
    snprintf(directory, sizeof directory, "/tmp/qn-paths-XXXXXX");
    return mkdtemp(directory) ? setenv("XDG_RUNTIME_DIR", directory, 1) : -1;
}

static int teardown(void **state)
{
    (void)state;
    char path[128];
    snprintf(path, sizeof path, "%s/quintet", directory);
    remove(path);
    if (saved_runtime[0])
        setenv("XDG_RUNTIME_DIR", saved_runtime, 1);
    else
        unsetenv("XDG_RUNTIME_DIR");
    return rmdir(directory);
}

static qn_config_values_t values(char *run_dir, char *model)
{
    qn_config_values_t values = {.run_dir = run_dir};
    values.model.path = model;
    return values;
}

static void test_paths_run_dir_default_is_made_private(void **state)
{
    (void)state;
    char path[QN_PATH_MAX], wanted[128];
    struct stat info;
    qn_config_values_t config = values("", "");
    snprintf(wanted, sizeof wanted, "%s/quintet", directory);
    assert_int_equal(qn_paths_run_dir(&config, path, sizeof path), QN_OK);
    assert_string_equal(path, wanted);
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0700);
    assert_int_equal(qn_paths_run_dir(&config, path, sizeof path), QN_OK); /* a second time: it is there */
}

static void test_paths_run_dir_that_others_may_write_is_refused(void **state)
{
    (void)state;
    char path[QN_PATH_MAX], made[128];
    qn_config_values_t config = values("", "");
    snprintf(made, sizeof made, "%s/quintet", directory);
    assert_int_equal(mkdir(made, 0700), 0);
    assert_int_equal(chmod(made, 0770), 0);
    assert_int_equal(qn_paths_run_dir(&config, path, sizeof path), QN_ERR_CONFIG);
    assert_int_equal(chmod(made, 0755), 0); /* reading is harmless */
    assert_int_equal(qn_paths_run_dir(&config, path, sizeof path), QN_OK);
    if (geteuid() == 0) {
        assert_int_equal(chown(made, 65534, 65534), 0);
        assert_int_equal(qn_paths_run_dir(&config, path, sizeof path), QN_ERR_CONFIG);
    }
    rmdir(made);
    assert_int_equal(symlink("/tmp", made), 0);
    assert_int_equal(qn_paths_run_dir(&config, path, sizeof path), QN_ERR_CONFIG);
}

static void test_paths_run_dir_given_is_taken_as_it_is(void **state)
{
    (void)state;
    char path[QN_PATH_MAX], given[128];
    qn_config_values_t config = values(given, "");
    snprintf(given, sizeof given, "%s/quintet", directory);
    assert_int_equal(qn_paths_run_dir(&config, path, sizeof path), QN_OK);
    assert_string_equal(path, given);
    snprintf(given, sizeof given, "%s/none/quintet", directory);
    assert_int_equal(qn_paths_run_dir(&config, path, sizeof path), QN_ERR_CONFIG);
    snprintf(given, sizeof given, "/proc/self/exe");
    assert_int_equal(qn_paths_run_dir(&config, path, sizeof path), QN_ERR_CONFIG);
}

static void test_paths_model_given_or_bundled(void **state)
{
    (void)state;
    char path[QN_PATH_MAX];
    qn_config_values_t config = values("", "/some/where");
    assert_int_equal(qn_paths_model(&config, path, sizeof path), QN_OK);
    assert_string_equal(path, "/some/where");
    assert_int_equal(qn_paths_model(&config, path, 11), QN_ERR_LIMIT);
    assert_int_equal(qn_paths_model(&config, path, 12), QN_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_paths_run_dir_default_is_made_private, setup, teardown),
        cmocka_unit_test_setup_teardown(test_paths_run_dir_that_others_may_write_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_paths_run_dir_given_is_taken_as_it_is, setup, teardown),
        cmocka_unit_test_setup_teardown(test_paths_model_given_or_bundled, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
