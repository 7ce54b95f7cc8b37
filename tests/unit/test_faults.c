/* The page of faults: shared, replaced as a whole, and the same firings for the same seed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/faults.h"

#define SCHEDULER 3u
#define COMPUTE 5u

static char run_dir[] = "/tmp/quintet_faultsXXXXXX";

static int make_run_dir(void **state)
{
    (void)state;
    return mkdtemp(run_dir) ? 0 : -1;
}

static int remove_run_dir(void **state)
{
    (void)state;
    char path[64];
    snprintf(path, sizeof path, "%s/faults", run_dir);
    unlink(path);
    return rmdir(run_dir);
}

static qn_faults_t open_page(void)
{
    qn_faults_t faults = {NULL};
    assert_int_equal(qn_faults_open(run_dir, &faults), QN_OK);
    return faults;
}

static void test_faults_are_for_all_who_map_the_page_and_outlive_them(void **state)
{
    (void)state;
    qn_faults_t a = open_page(), b = open_page();
    qn_fault_t fault = {.kind = QN_FAULT_LEASE, .probability = 1, .count = 2}, got;
    assert_false(qn_faults_armed(&a));
    qn_faults_set(&a, &fault, 1);
    assert_true(qn_faults_armed(&b));
    assert_true(qn_faults_hit(&b, QN_FAULT_LEASE));
    assert_false(qn_faults_hit(&b, QN_FAULT_ALLOCATION));
    assert_false(qn_faults_hit_message(&b, SCHEDULER, COMPUTE, "QSPL", false, &got));
    qn_faults_close(&a);
    qn_faults_close(&b);
    a = open_page();
    assert_true(qn_faults_hit(&a, QN_FAULT_LEASE));
    assert_false(qn_faults_hit(&a, QN_FAULT_LEASE));
    qn_fault_state_t list[QN_FAULTS_MAX];
    assert_int_equal(qn_faults_list(&a, list), 1);
    assert_int_equal(list[0].hits, 3);
    assert_int_equal(list[0].fired, 2);
    qn_faults_set(&a, NULL, 0);
    assert_false(qn_faults_armed(&a));
    assert_int_equal(qn_faults_list(&a, list), 0);
    qn_faults_close(&a);
}

static void test_faults_match_type_edge_and_control(void **state)
{
    (void)state;
    static const struct {
        qn_fault_t fault;
        uint32_t from, to;
        const char *type;
        bool control, want;
    } ROWS[] = {
        {{.kind = QN_FAULT_DROP}, SCHEDULER, COMPUTE, "QSPL", false, true},
        {{.kind = QN_FAULT_DROP}, SCHEDULER, COMPUTE, "QHBT", true, false},
        {{.kind = QN_FAULT_DROP, .type = "QHBT"}, SCHEDULER, COMPUTE, "QHBT", true, true},
        {{.kind = QN_FAULT_DROP, .type = "QSPL"}, SCHEDULER, COMPUTE, "QSPL", false, true},
        {{.kind = QN_FAULT_DROP, .type = "QLEA"}, SCHEDULER, COMPUTE, "QSPL", false, false},
        {{.kind = QN_FAULT_DROP, .from = 1u << SCHEDULER}, SCHEDULER, COMPUTE, "QSPL", false, true},
        {{.kind = QN_FAULT_DROP, .from = 1u << COMPUTE}, SCHEDULER, COMPUTE, "QSPL", false, false},
        {{.kind = QN_FAULT_DROP, .to = 1u << COMPUTE}, SCHEDULER, COMPUTE, "QSPL", false, true},
        {{.kind = QN_FAULT_DROP, .to = 1u << SCHEDULER}, SCHEDULER, COMPUTE, "QSPL", false, false},
        {{.kind = QN_FAULT_LEASE}, SCHEDULER, COMPUTE, "QSPL", false, false},
    };
    qn_faults_t faults = open_page();
    for (size_t i = 0; i < sizeof ROWS / sizeof ROWS[0]; i++) {
        qn_fault_t fault = ROWS[i].fault, got;
        fault.probability = 1;
        qn_faults_set(&faults, &fault, 1);
        assert_int_equal(qn_faults_hit_message(&faults, ROWS[i].from, ROWS[i].to, ROWS[i].type, ROWS[i].control, &got),
                         ROWS[i].want);
    }
    qn_faults_set(&faults, NULL, 0);
    qn_faults_close(&faults);
}

static uint64_t firings(qn_faults_t *faults, qn_fault_t fault)
{
    uint64_t bits = 0;
    fault.kind = QN_FAULT_LEASE;
    qn_faults_set(faults, &fault, 1);
    for (unsigned i = 0; i < 64; i++)
        bits |= (uint64_t)qn_faults_hit(faults, QN_FAULT_LEASE) << i;
    qn_faults_set(faults, NULL, 0);
    return bits;
}

static void test_faults_fire_by_seed_skip_and_count(void **state)
{
    (void)state;
    qn_faults_t faults = open_page();
    uint64_t one = firings(&faults, (qn_fault_t){.probability = 0.5f, .seed = 1});
    assert_true(one == firings(&faults, (qn_fault_t){.probability = 0.5f, .seed = 1}));
    assert_true(one != firings(&faults, (qn_fault_t){.probability = 0.5f, .seed = 2}));
    assert_in_range(__builtin_popcountll(one), 16, 48);
    assert_true(firings(&faults, (qn_fault_t){.probability = 0}) == 0);
    assert_true(firings(&faults, (qn_fault_t){.probability = 1}) == UINT64_MAX);
    assert_true(firings(&faults, (qn_fault_t){.probability = 1, .skip = 3, .count = 2}) == 0x18);
    assert_true(firings(&faults, (qn_fault_t){.probability = 0.5f, .seed = 1, .skip = 8}) == (one & ~UINT64_C(0xff)));
    qn_faults_close(&faults);
}

static void test_faults_page_of_another_build_arms_nothing(void **state)
{
    (void)state;
    char path[64];
    snprintf(path, sizeof path, "%s/faults", run_dir);
    FILE *file = fopen(path, "w");
    for (int i = 0; i < 4096; i++)
        fputc(0xff, file);
    fclose(file);
    qn_faults_t faults = open_page();
    qn_fault_state_t list[QN_FAULTS_MAX];
    assert_false(qn_faults_armed(&faults));
    assert_int_equal(qn_faults_list(&faults, list), 0);
    atomic_store(&faults.page->armed, 1000); /* somebody else's bytes */
    qn_fault_t got;
    assert_false(qn_faults_hit_message(&faults, SCHEDULER, COMPUTE, "QSPL", false, &got));
    qn_faults_set(&faults, NULL, 0);
    qn_faults_close(&faults);
    unlink(path);
    assert_int_equal(qn_faults_open("/tmp/quintet_no_such_directory", &faults), QN_ERR_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_faults_are_for_all_who_map_the_page_and_outlive_them),
        cmocka_unit_test(test_faults_match_type_edge_and_control),
        cmocka_unit_test(test_faults_fire_by_seed_skip_and_count),
        cmocka_unit_test(test_faults_page_of_another_build_arms_nothing),
    };
    return cmocka_run_group_tests_name("faults", tests, make_run_dir, remove_run_dir);
}
