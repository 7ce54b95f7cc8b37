/* What a daemon had in hand when it died, over its lives; the quarantine's folder. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/daemon/crash.h"
#include "common/daemon/in_hand.h"
#include "common/daemon/lock.h"
#include "common/limits.h"
#include "common/watch/log.h"
#include "common/watch/quarantine.h"

static char directory[64];

static int setup(void **state)
{
    (void)state;
    qn_log_set_level(QN_LOG_ERROR);
    snprintf(directory, sizeof directory, "/tmp/qn-hand-XXXXXX");
    return mkdtemp(directory) ? 0 : -1;
}

static unsigned empty_folder(const char *path)
{
    DIR *folder = opendir(path);
    unsigned count = 0;
    for (struct dirent *entry; folder != NULL && (entry = readdir(folder)) != NULL;) {
        char name[1024];
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        count += entry->d_name[0] != '.' && unlink(name) == 0;
    }
    if (folder != NULL) closedir(folder);
    return count;
}

static int teardown(void **state)
{
    (void)state;
    char path[128];
    snprintf(path, sizeof path, "%s/quarantine", directory);
    empty_folder(path);
    rmdir(path);
    empty_folder(directory);
    return rmdir(directory);
}

/* A life that ends with `key` in hand; wait_status as from waitpid. */
static void live(uint64_t key, int wait_status)
{
    qn_lock_t lock;
    qn_in_hand_t *hand;
    assert_int_equal(qn_lock_take(directory, "tokenizer", &lock), QN_OK);
    assert_int_equal(qn_in_hand_open(directory, "tokenizer", lock.epoch, &hand), QN_OK);
    qn_in_hand_take(hand, key);
    qn_in_hand_close(&hand);
    qn_lock_release(&lock);
    if (qn_crash_counts(wait_status))
        assert_int_equal(qn_crash_write(directory, "tokenizer", getpid(), wait_status), QN_OK);
}

static bool next_life_refuses(uint64_t key)
{
    qn_lock_t lock;
    qn_in_hand_t *hand;
    assert_int_equal(qn_lock_take(directory, "tokenizer", &lock), QN_OK);
    assert_int_equal(qn_in_hand_open(directory, "tokenizer", lock.epoch, &hand), QN_OK);
    bool refuses = qn_in_hand_refuses(hand, key);
    qn_in_hand_close(&hand);
    qn_lock_release(&lock);
    return refuses;
}

static void test_in_hand_two_crashes_over_the_same_content_refuse_it(void **state)
{
    (void)state;
    live(7, SIGSEGV);
    assert_false(next_life_refuses(7));
    live(7, SIGABRT);
    assert_true(next_life_refuses(7));
    assert_false(next_life_refuses(8));
    assert_true(next_life_refuses(7)); /* and it stays so */
}

static void test_in_hand_kills_and_crashes_over_other_content_refuse_nothing(void **state)
{
    (void)state;
    for (int life = 0; life < 4; life++)
        live(7, SIGKILL);
    live(7, SIGSEGV);
    live(8, SIGSEGV);
    live(0, SIGSEGV);
    live(7, SIGTERM);
    assert_false(next_life_refuses(7));
    assert_false(next_life_refuses(8));
    assert_false(next_life_refuses(0));
}

static void test_in_hand_list_is_bounded_and_keeps_who_is_refused(void **state)
{
    (void)state;
    live(7, SIGSEGV);
    live(7, SIGSEGV);
    for (uint64_t key = 1000; key < 1300; key++)
        live(key, SIGSEGV);
    assert_true(next_life_refuses(7));
}

static void test_in_hand_key_tells_contents_apart(void **state)
{
    (void)state;
    assert_int_not_equal(qn_in_hand_key(0, "a boom b", 8), qn_in_hand_key(0, "a boom c", 8));
    assert_int_not_equal(qn_in_hand_key(0, "a", 1), qn_in_hand_key(0, "a\0", 2));
    assert_int_not_equal(qn_in_hand_key(0, "a", 1), qn_in_hand_key(1, "a", 1));
    assert_int_not_equal(qn_in_hand_key(0, "", 0), 0);
    assert_int_equal(qn_in_hand_key(5, "a boom b and more", 17), qn_in_hand_key(5, "a boom b and more", 17));
}

static void test_in_hand_records_refused_content_once(void **state)
{
    (void)state;
    qn_in_hand_t *hand;
    char path[128];
    live(7, SIGSEGV);
    live(7, SIGSEGV);
    assert_int_equal(qn_in_hand_open(directory, "tokenizer", 99, &hand), QN_OK);
    for (int i = 0; i < 3; i++)
        qn_in_hand_record(hand, 7, json_pack("{s:o}", "text", qn_quarantine_text("a\xff", 2)));
    qn_in_hand_close(&hand);
    snprintf(path, sizeof path, "%s/quarantine", directory);
    assert_int_equal(empty_folder(path), 1);
}

static void test_quarantine_is_bounded_in_number_and_size(void **state)
{
    (void)state;
    char path[QN_PATH_MAX], first[QN_PATH_MAX];
    uint32_t *ids = calloc(QN_QUARANTINE_IDS_MAX + 5, sizeof *ids);
    assert_non_null(ids);
    for (int i = 0; i < QN_QUARANTINE_FILES_MAX + 8; i++) {
        json_t *object = json_pack("{s:i}", "i", i);
        assert_int_equal(qn_quarantine_write(directory, "compute", (uint64_t)i, object, i == 0 ? first : path), QN_OK);
        json_decref(object);
    }
    assert_int_not_equal(access(first, F_OK), 0);
    assert_int_equal(access(path, F_OK), 0);
    snprintf(path, sizeof path, "%s/quarantine", directory);
    assert_int_equal(empty_folder(path), QN_QUARANTINE_FILES_MAX);
    json_t *list = qn_quarantine_ids(ids, QN_QUARANTINE_IDS_MAX + 5);
    assert_int_equal(json_array_size(list), QN_QUARANTINE_IDS_MAX);
    json_decref(list);
    json_t *text = qn_quarantine_text("a\xff\n", 3);
    assert_string_equal(json_string_value(text), "a\\xff\\x0a");
    json_decref(text);
    free(ids);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_in_hand_two_crashes_over_the_same_content_refuse_it, setup, teardown),
        cmocka_unit_test_setup_teardown(test_in_hand_kills_and_crashes_over_other_content_refuse_nothing, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_in_hand_list_is_bounded_and_keeps_who_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_in_hand_key_tells_contents_apart, setup, teardown),
        cmocka_unit_test_setup_teardown(test_in_hand_records_refused_content_once, setup, teardown),
        cmocka_unit_test_setup_teardown(test_quarantine_is_bounded_in_number_and_size, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
