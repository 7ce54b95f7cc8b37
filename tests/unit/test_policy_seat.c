/* Units of common/policy: loading shared objects (policy_object.c), what outlives a process (policy_page.c), and who decides
 * (policy_seat.c). The objects are compiled here, as a designer of policies does it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "services/scheduler/policy/policy.h"

static char folder[64], outside[64];

/* A batching policy; the parts of it that tests vary. */
#define SOURCE                                                                                                    \
    "#include \"common/policy.h\"\n"                                                                              \
    "%s\n"                                                                                                        \
    "static void size(const qn_policy_memory_t *memory, const qn_policy_load_t *load, qn_policy_size_t *ret) {\n" \
    "  ret->step_tokens = load->step_tokens_max; ret->chunk_tokens = 1; (void)memory; %s }\n"                     \
    "static const qn_batching_policy_t policy = {.head = {.version = QN_POLICY_ABI_VERSION,\n"                    \
    "  .kind = QN_POLICY_BATCHING, .name = \"made\", %s}, .size = size};\n"                                       \
    "const qn_policy_head_t *qn_policy_entry(void) { return &policy.head; }\n"

static void compile(const char *in, const char *name, const char *source)
{
    char path[128], command[512];
    snprintf(path, sizeof path, "%s/%s.c", outside, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(source, file);
    fclose(file);
    snprintf(command, sizeof command, "cc -std=c11 -I. -fPIC -shared %s -o %s/%s.so", path, in, name);
    assert_int_equal(system(command), 0);
}

static void make(const char *in, const char *name, const char *before, const char *body, const char *head)
{
    char source[2048];
    snprintf(source, sizeof source, SOURCE, before, body, head);
    compile(in, name, source);
}

static qn_policy_catalogue_t catalogue_of(qn_policy_kind_t kind) { return policy_catalogue(kind, folder); }

static qn_policy_seat_t *open_seat(const char *configured, qn_policy_page_t *page)
{
    qn_policy_catalogue_t catalogue = catalogue_of(QN_POLICY_BATCHING);
    qn_policy_seat_t *seat = NULL;
    assert_int_equal(qn_policy_seat_open(&catalogue, configured, page, &seat), QN_OK);
    return seat;
}

static uint32_t ask(qn_policy_seat_t *seat)
{
    qn_policy_load_t load = {.step_tokens_max = 64, .chunk_tokens_max = 32};
    qn_policy_size_t size;
    policy_size(seat, &load, &size);
    return size.chunk_tokens;
}

/* ---- loading ---- */

static void test_policy_object_of_a_directory_is_loaded_by_name_and_path(void **state)
{
    (void)state;
    char path[128], link[128];
    make(folder, "good", "", "", "");
    qn_policy_seat_t *seat = open_seat("good.so", NULL);
    assert_int_equal(ask(seat), 1);
    snprintf(path, sizeof path, "%s/../%s/good.so", folder, strrchr(folder, '/') + 1);
    assert_int_equal(qn_policy_seat_set(seat, path), QN_OK);
    assert_string_equal(qn_policy_seat_name(seat), "made");
    snprintf(link, sizeof link, "%s/link.so", folder);
    make(outside, "elsewhere", "", "", "");
    snprintf(path, sizeof path, "%s/elsewhere.so", outside);
    assert_int_equal(symlink(path, link), 0);
    static const char *const refused[] = {"link.so", "../elsewhere.so"};
    for (int i = 0; i < 2; i++)
        assert_int_equal(qn_policy_seat_set(seat, refused[i]), QN_ERR_CONFIG);
    assert_int_equal(qn_policy_seat_set(seat, path), QN_ERR_CONFIG);
    assert_non_null(strstr(qn_err_text(), "outside the directories of policies.dirs"));
    assert_non_null(strstr(qn_err_text(), "elsewhere.so"));
    assert_int_equal(ask(seat), 1); /* what was live is live */
    qn_policy_seat_close(&seat);
    unlink(link);
}

static void test_policy_object_that_is_none_is_refused_by_name(void **state)
{
    (void)state;
    char path[128];
    compile(
        folder, "abi1",
        "#include <stdint.h>\nstruct { uint32_t version; const char *name; void (*admit)(void); } old = {1, \"old\"};\n"
        "void *qn_policy_entry(void) { return &old; }\n");
    compile(folder, "symbol", "int x;\n");
    compile(folder, "nothing", "void *qn_policy_entry(void) { return 0; }\n");
    make(folder, "state", "", "", ".state_bytes = 4097");
    make(folder, "metrics", "static const char *const names[] = {\"Bad name\"};", "",
         ".metric_count = 1, .metric_names = names");
    snprintf(path, sizeof path, "%s/text.so", folder);
    FILE *file = fopen(path, "w");
    fputs("not ELF", file);
    fclose(file);
    static const struct {
        const char *choice, *words;
    } table[] = {
        {"abi1.so", "policy ABI 1, this build has 2"},
        {"symbol.so", "does not export qn_policy_entry"},
        {"nothing.so", "returned nothing"},
        {"state.so", "more state"},
        {"metrics.so", "metric"},
        {"text.so", "text.so"},
        {"missing.so", "No such file"},
        {"lifo", "built in are fixed, pressure"},
        {"", "there is no"},
    };
    qn_policy_seat_t *seat = open_seat("fixed", NULL);
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        assert_int_equal(qn_policy_seat_set(seat, table[i].choice), QN_ERR_CONFIG);
        if (strstr(qn_err_text(), table[i].words) == NULL) fail_msg("%s: %s", table[i].choice, qn_err_text());
        assert_string_equal(qn_policy_seat_name(seat), "fixed");
    }
    qn_policy_seat_close(&seat);
    qn_policy_catalogue_t scheduling = catalogue_of(QN_POLICY_SCHEDULING);
    qn_policy_object_t *object = NULL;
    assert_int_equal(qn_policy_object_open(&scheduling, "good.so", NULL, &object), QN_ERR_CONFIG);
    assert_non_null(strstr(qn_err_text(), "it is of kind batching"));
    qn_policy_t lacks = policy_fcfs;
    lacks.share = NULL;
    assert_int_equal(qn_policy_object_wrap(QN_POLICY_SCHEDULING, &lacks.head, &object), QN_ERR_CONFIG);
    assert_null(object);
}

static void test_policy_object_written_anew_under_its_name_is_loaded_anew(void **state)
{
    (void)state;
    make(folder, "changed", "", "ret->chunk_tokens = 7;", "");
    qn_policy_seat_t *seat = open_seat("changed.so", NULL);
    assert_int_equal(ask(seat), 7);
    make(folder, "changed", "", "ret->chunk_tokens = 8;", "");
    assert_int_equal(ask(seat), 7);
    assert_int_equal(qn_policy_seat_set(seat, "changed.so"), QN_OK);
    assert_int_equal(ask(seat), 8);
    qn_policy_seat_close(&seat);
}

/* ---- withdrawal ---- */

static void test_policy_seat_too_slow_is_withdrawn_to_the_one_before_it(void **state)
{
    (void)state;
    make(folder, "slow", "#include <time.h>\n",
         "for (clock_t end = clock() + CLOCKS_PER_SEC / 50; clock() < end;) {} ret->chunk_tokens = 9;", "");
    qn_policy_page_t *page = calloc(1, sizeof *page);
    qn_policy_seat_t *seat = open_seat("pressure", page);
    assert_int_equal(qn_policy_seat_set(seat, "slow.so"), QN_OK);
    assert_int_not_equal(ask(seat), 9);
    assert_string_equal(qn_policy_seat_name(seat), "pressure");
    assert_non_null(strstr(qn_policy_seat_withdrawn(seat), "ms of processor time"));
    assert_int_equal(qn_policy_seat_set(seat, "slow.so"), QN_ERR_CONFIG); /* the same file is not tried again */
    assert_non_null(strstr(qn_err_text(), "withdrawn"));
    qn_policy_seat_close(&seat);
    free(page);
}

static void test_policy_seat_object_that_crashed_is_not_loaded_by_the_next_life(void **state)
{
    (void)state;
    make(folder, "crash", "", "ret->chunk_tokens = 5;", "");
    qn_policy_page_t *page = calloc(1, sizeof *page);
    qn_policy_seat_t *seat = open_seat("crash.so", page);
    qn_policy_seat_ask(seat, false); /* and it never comes back */
    qn_policy_seat_close(&seat);
    assert_true(qn_policy_page_judge(page, true));
    seat = open_seat("crash.so", page);
    assert_string_equal(qn_policy_seat_name(seat), "fixed");
    assert_non_null(strstr(qn_policy_seat_withdrawn(seat), "crash.so"));
    qn_policy_seat_close(&seat);
    assert_false(qn_policy_page_judge(page, false));         /* killed, not crashed */
    make(folder, "crash", "", "ret->chunk_tokens = 6;", ""); /* mended */
    seat = open_seat("crash.so", page);
    assert_int_equal(ask(seat), 6);
    qn_policy_seat_close(&seat);
    free(page);
}

/* ---- state ---- */

#define COUNTS "unsigned *count = memory->state; ret->chunk_tokens = ++*count; memory->metrics[0] = *count;"
#define COUNTS_HEAD ".state_bytes = 4, .metric_count = 1, .metric_names = names"
#define COUNTS_NAMES "static const char *const names[] = {\"count\"};"

static void test_policy_seat_state_outlives_the_process_and_not_a_change(void **state)
{
    (void)state;
    make(folder, "count", COUNTS_NAMES, COUNTS, COUNTS_HEAD);
    qn_policy_page_t *page = calloc(1, sizeof *page);
    for (uint32_t life = 0; life < 3; life++) {
        qn_policy_seat_t *seat = open_seat("count.so", page);
        assert_int_equal(ask(seat), 2 * life + 1);
        assert_int_equal(ask(seat), 2 * life + 2);
        assert_true(qn_policy_object_memory(qn_policy_seat_live(seat))->metrics[0] == 2 * life + 2);
        qn_policy_seat_close(&seat);
    }
    qn_policy_seat_t *seat = open_seat("count.so", page);
    assert_int_equal(qn_policy_seat_set(seat, "fixed"), QN_OK);
    assert_int_equal(qn_policy_seat_set(seat, "count.so"), QN_OK);
    assert_int_equal(ask(seat), 1);
    qn_policy_seat_close(&seat);
    free(page);
}

/* The writer dies at any byte: the state is that of some decision, whole. */
static void test_policy_page_torn_writes_leave_the_one_before(void **state)
{
    (void)state;
    qn_policy_page_t *page = calloc(1, sizeof *page), *before = malloc(sizeof *before), *torn = malloc(sizeof *torn);
    uint64_t numbers[64], found[64];
    for (uint64_t round = 1; round < 6; round++) {
        for (int i = 0; i < 64; i++)
            numbers[i] = round;
        *before = *page;
        qn_policy_page_write_state(page, 11, numbers, sizeof numbers);
        for (size_t cut = 0; cut <= sizeof *page; cut += 13) { /* the first bytes are written, the others are not */
            *torn = *before;
            memcpy(torn, page, cut);
            memset(found, 0, sizeof found);
            bool read = qn_policy_page_read_state(torn, 11, found, sizeof found);
            assert_true(read || round == 1);
            for (int i = 1; i < 64; i++)
                assert_int_equal(found[i], found[0]);
            assert_true(found[0] == round || found[0] == round - 1);
        }
        assert_false(qn_policy_page_read_state(page, 12, found, sizeof found)); /* another owner */
        assert_false(qn_policy_page_read_state(page, 11, found, 8));            /* another size */
    }
    free(page);
    free(before);
    free(torn);
}

/* ---- the examples ---- */

static const char *examples(void)
{
    static const char *const dirs[] = {"build/policies", "build/asan/policies", "build/tsan/policies"};
    for (int i = 0; i < 3; i++)
        if (access(dirs[i], R_OK) == 0) return dirs[i];
    return NULL;
}

static void test_policy_object_examples_of_all_kinds_load_and_decide(void **state)
{
    (void)state;
    static const qn_policy_sequence_t two[] = {
        {.id = 1, .arrival = 1, .prefill_tokens = 10, .user_name = ""},
        {.id = 2, .arrival = 2, .prefill_tokens = 10, .deadline_ns = 7000000, .user_name = ""},
    };
    static const qn_policy_view_t view = {.now_ns = 1, .sequences = two, .sequence_count = 2, .waiting_count = 2};
    if (examples() == NULL) {
        print_message("the example policies are not built: make all\n");
        skip();
    }
    qn_policy_seat_t *seat = NULL;
    qn_policy_catalogue_t catalogue = policy_catalogue(QN_POLICY_SCHEDULING, examples());
    assert_int_equal(qn_policy_seat_open(&catalogue, "example_scheduling.so", NULL, &seat), QN_OK);
    qn_policy_admit_t admit;
    policy_admit(seat, &view, 2, &admit);
    assert_int_equal(admit.admissions[0].id, 2);
    assert_string_equal(qn_policy_seat_name(seat), "deadline");
    qn_policy_seat_close(&seat);
    catalogue = policy_catalogue(QN_POLICY_BATCHING, examples());
    assert_int_equal(qn_policy_seat_open(&catalogue, "example_batching.so", NULL, &seat), QN_OK);
    qn_policy_load_t load = {
        .decode_tokens = 3, .step_tokens_max = 500, .chunk_tokens_max = 100, .last_tokens = 10, .last_ns = 5000000};
    qn_policy_size_t size;
    policy_size(seat, &load, &size);
    assert_int_equal(size.step_tokens, 100); /* 0.5 ms each, 50 ms in all */
    assert_string_equal(qn_policy_seat_name(seat), "steady");
    qn_policy_seat_close(&seat);
    catalogue = policy_catalogue(QN_POLICY_ADMISSION, examples());
    assert_int_equal(qn_policy_seat_open(&catalogue, "example_admission.so", NULL, &seat), QN_OK);
    for (uint64_t late = 0; late < 2; late++) {
        qn_policy_arrival_t arrival = {.now_ns = 5,
                                       .deadline_ns = 2000000000 + late * 3000000000,
                                       .user_name = "",
                                       .waiting_count = 8,
                                       .running_count = 4,
                                       .slot_count = 4};
        qn_policy_verdict_t verdict;
        policy_judge(seat, &arrival, &verdict);
        assert_int_equal(verdict.accept, late);
    }
    assert_string_equal(qn_policy_seat_name(seat), "in_time");
    qn_policy_seat_close(&seat);
}

static int make_folders(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/qn-policies-XXXXXX");
    strcpy(outside, "/tmp/qn-outside-XXXXXX");
    return mkdtemp(folder) == NULL || mkdtemp(outside) == NULL;
}

static int remove_folders(void **state)
{
    (void)state;
    char command[256];
    snprintf(command, sizeof command, "rm -rf %s %s", folder, outside);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_policy_object_of_a_directory_is_loaded_by_name_and_path),
        cmocka_unit_test(test_policy_object_that_is_none_is_refused_by_name),
        cmocka_unit_test(test_policy_object_written_anew_under_its_name_is_loaded_anew),
        cmocka_unit_test(test_policy_seat_too_slow_is_withdrawn_to_the_one_before_it),
        cmocka_unit_test(test_policy_seat_object_that_crashed_is_not_loaded_by_the_next_life),
        cmocka_unit_test(test_policy_seat_state_outlives_the_process_and_not_a_change),
        cmocka_unit_test(test_policy_page_torn_writes_leave_the_one_before),
        cmocka_unit_test(test_policy_object_examples_of_all_kinds_load_and_decide),
    };
    return cmocka_run_group_tests(tests, make_folders, remove_folders);
}
