/* What is this?      Tests of the sniffer's filter language: what it takes, what it refuses and where.
 * State owned:       encoded messages for one test.
 * Must never:        depend on a running service.
 * Read next:         tools/sniff/sniff_filter.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/sniff/sniff_filter.h"

#define NOW_NS 5000000000ull

static qn_head_t head_of(qn_service_t from, qn_service_t to, uint64_t request, uint64_t sequence)
{
    return (qn_head_t){.src = from, .dst = to, .epoch = 7, .request = request, .sequence = sequence, .sent_ns = NOW_NS};
}

static qn_capture_message_t *mirror(qn_message_type_t type, const void *content)
{
    qn_arena_t arena;
    const uint8_t *frame;
    size_t bytes;
    qn_arena_init(&arena, 0);
    if (qn_wire_encode(qn_wire_type(type), content, &arena, &frame, &bytes)) fail_msg("%s", qn_err_text());
    qn_tap_header_t header = {.version = QN_TAP_VERSION, .now_ns = NOW_NS, .service = "scheduler"};
    qn_capture_message_t *message = qn_capture_message_new(&header, frame, bytes, 0);
    assert_non_null(message);
    qn_arena_fini(&arena);
    return message;
}

static const qn_slot_set_t sets[] = {
    {.request = 7, .slot = 3, .sampling = {.repetition_penalty = 1, .temperature = 0.5f, .max_tokens = 64}}};
static const qn_slot_run_t runs[] = {{.slot = 3, .token_count = 12}, {.slot = 5, .token_count = 1, .from_slot = true}};
static const uint32_t retire[] = {9};

static qn_capture_message_t *step_plan(void)
{
    qn_text_t reasons[] = {qn_text("admit 7 (fcfs: oldest waiting)")};
    qn_step_plan_t plan = QN_STEP_PLAN_INIT;
    plan.head = head_of(QN_SERVICE_SCHEDULER, QN_SERVICE_COMPUTE, 0, 42);
    plan.step = 9;
    plan.sets = sets;
    plan.sets_count = 1;
    plan.runs = runs;
    plan.runs_count = 2;
    plan.retire = retire;
    plan.retire_count = 1;
    plan.reasons = reasons;
    plan.reasons_count = 1;
    return mirror(QN_MESSAGE_STEP_PLAN, &plan);
}

static qn_capture_message_t *heartbeat(void)
{
    qn_heartbeat_t beat = QN_HEARTBEAT_INIT;
    beat.head = head_of(QN_SERVICE_MEMORY, QN_SERVICE_SCHEDULER, 0, 0);
    beat.state = QN_STATE_READY;
    beat.uptime_ms = 1500;
    beat.text = qn_text("loaded");
    return mirror(QN_MESSAGE_HEARTBEAT, &beat);
}

/* Decodes with slots 5 -> request 11 and 9 -> request 13 known from before. */
static void decode(qn_capture_message_t *message, qn_arena_t *arena)
{
    static qn_capture_slots_t slots;
    slots = (qn_capture_slots_t){.scheduler_epoch = 7};
    slots.request[5] = 11;
    slots.request[9] = 13;
    qn_capture_message_decode(message, &slots, arena);
    assert_non_null(message->content);
}

static bool takes(const char *text, const qn_capture_message_t *message)
{
    sniff_filter_t *filter = NULL;
    size_t at = 0;
    if (sniff_filter_parse(text, &filter, &at)) fail_msg("\"%s\" is refused at %zu: %s", text, at, qn_err_text());
    bool taken = sniff_filter_match(filter, message);
    sniff_filter_free(&filter);
    assert_null(filter);
    return taken;
}

static const struct {
    const char *text;
    bool plan, beat;
} matches[] = {
    {"", true, true},
    {"   ", true, true},
    {"src scheduler", true, false},
    {"dst scheduler", false, true},
    {"host scheduler", true, true},
    {"host memory|compute", true, true},
    {"src memory | compute", false, true},
    {"SRC Scheduler AND Type StepPlan", true, false},
    {"src scheduler and type StepPlan and req 7", true, false},
    {"req 7", true, false},
    {"req 11", true, false}, /* runs in slot 5 */
    {"req 13", true, false}, /* retired from slot 9 */
    {"req 12", false, false},
    {"req 1|2|7", true, false},
    {"type StepPlan|Heartbeat", true, true},
    {"StepPlan", true, false},
    {"stepplan or heartbeat", true, true},
    {"not StepPlan", false, true},
    {"! StepPlan", false, true},
    {"!StepPlan", false, true},
    {"not not StepPlan", true, false},
    {"StepPlan and src memory or Heartbeat", false, true},
    {"Heartbeat or StepPlan and src memory", false, true},
    {"(Heartbeat or StepPlan) and src memory", false, true},
    {"not (src memory or src compute)", true, false},
    {"src scheduler && type StepPlan || dst tool", true, false},
    {"bytes > 1", true, true},
    {"bytes > 100000", false, false},
    {"epoch 7", true, true},
    {"epoch = 8", false, false},
    {"epoch >= 7", true, true},
    {"seq 42", true, false},
    {"seq < 1", false, true},
    {"dropped", false, false},
    {"step = 9", true, false},
    {"step == 9", true, false},
    {"step!=9", false, false},
    {"step>=9", true, false},
    {"step > 9", false, false},
    {"step <= 8.5", false, false},
    {"StepPlan.step < 10", true, false},
    {"TokenBatch.step < 10", false, false},
    {"runs.token_count = 12", true, false},
    {"runs.token_count > 12", false, false},
    {"runs.token_count = 1", true, false},
    {"runs.from_slot = true", true, false},
    {"runs.from_slot = 1", true, false},
    {"runs.sample = true", false, false},
    {"runs.length = 2", true, false},
    {"ids.length = 0", true, false},
    {"sets.sampling.temperature = 0.5", true, false},
    {"sets.sampling.max_tokens < 65", true, false},
    {"temperature = 0.5", true, false},
    {"temperature > 0.5", false, false},
    {"sampling.max_tokens < 65", true, false},
    {"token_count = 12", true, false},
    {"StepPlan.token_count = 12", true, false},
    {"slot = 5", true, false},
    {"request = 7", true, false},
    {"src = scheduler and type = StepPlan", true, false},
    {"src == memory", false, true},
    {"req job-1", false, false},
    {"retire = 9", true, false},
    {"retire != 9", false, false},
    {"reasons ~ fcfs", true, false},
    {"reasons ~ 'oldest waiting'", true, false},
    {"reasons ~ sjf", false, false},
    {"reasons.length = 1", true, false},
    {"state = ready", false, true},
    {"state != ready", false, false},
    {"state ~ rea", false, true},
    {"text = loaded", false, true},
    {"text = \"loaded\"", false, true},
    {"head.sequence = 42", true, false},
    {"head.src = scheduler", true, false},
    {"uptime_ms > 1e3", false, true},
};

static void test_filter_match_table(void **state)
{
    (void)state;
    qn_arena_t arena;
    qn_arena_init(&arena, 0);
    qn_capture_message_t *plan = step_plan(), *beat = heartbeat();
    decode(plan, &arena);
    decode(beat, &arena);
    for (size_t i = 0; i < sizeof matches / sizeof *matches; i++) {
        if (takes(matches[i].text, plan) != matches[i].plan)
            fail_msg("\"%s\" on the StepPlan is not %d", matches[i].text, matches[i].plan);
        if (takes(matches[i].text, beat) != matches[i].beat)
            fail_msg("\"%s\" on the Heartbeat is not %d", matches[i].text, matches[i].beat);
    }
    free(plan);
    free(beat);
    qn_arena_fini(&arena);
}

static const struct {
    const char *text;
    size_t at;
    const char *says;
} refusals[] = {
    {"src shceduler", 4, "did you mean scheduler?"},
    {"src", 3, "a service is missing"},
    {"src scheduler|", 14, "a service is missing"},
    {"type StepPlam", 5, "did you mean StepPlan?"},
    {"type", 4, "a message type is missing"},
    {"req", 3, "the number of a request, or its x-request-id"},
    {"req ''", 5, "the number of a request, or its x-request-id"},
    {"req > 7", 4, "the number of a request, or its x-request-id"},
    {"req 7|", 6, "the number of a request, or its x-request-id"},
    {"finish = stopp", 9, "it is one of"},
    {"bytes 7", 6, "an operator is missing"},
    {"bytes > many", 8, "must be a number"},
    {"epoch ~ 3", 6, "~ is for texts"},
    {"step", 0, "alone is no test"},
    {"step >", 6, "a value to compare with"},
    {"step > and", 7, "this field is a number"},
    {"step ~ 9", 7, "~ is for texts"},
    {"stepp > 5", 0, "did you mean step"},
    {"StepPlan.token_coumt > 5", 9, "did you mean token_count?"},
    {"Heartbeat.step > 5", 10, "Heartbeat has no field"},
    {"runs > 5", 0, "no field"},
    {"runs.slot.length > 5", 0, "no field"},
    {"state = redy", 8, "it is one of starting, ready, draining, failing"},
    {"state > ready", 8, "names have"},
    {"reasons > fcfs", 10, "texts have"},
    {"srce scheduler", 0, "did you mean src?"},
    {"src scheduler type StepPlan", 14, "\"and\", \"or\" or the end"},
    {"src scheduler and", 17, "a test is missing"},
    {"and", 0, "alone is no test"},
    {"(src scheduler", 0, "not closed"},
    {"src scheduler)", 13, "\"and\", \"or\" or the end"},
    {"()", 1, "a test is missing"},
    {"not", 3, "a test is missing"},
    {"reasons ~ 'fcfs", 10, "no end"},
    {"src scheduler &", 14, "\"and\", \"or\" or the end"},
    {"= 5", 0, "a test is missing"},
};

static void test_filter_refusal_table_names_place_and_remedy(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
        sniff_filter_t *filter = NULL;
        size_t at = 9999;
        if (sniff_filter_parse(refusals[i].text, &filter, &at) != QN_ERR_INVALID)
            fail_msg("\"%s\" is taken", refusals[i].text);
        assert_null(filter);
        if (at != refusals[i].at || !strstr(qn_err_text(), refusals[i].says))
            fail_msg("\"%s\": at %zu: %s", refusals[i].text, at, qn_err_text());
    }
}

static qn_capture_message_t *encode(uint64_t request, const char *name)
{
    qn_encode_t message = QN_ENCODE_INIT;
    message.head = head_of(QN_SERVICE_FRONTEND, QN_SERVICE_TOKENIZER, request, 1);
    message.client_request = qn_text(name);
    message.sampling.repetition_penalty = 1;
    message.sampling.top_p = 1;
    return mirror(QN_MESSAGE_ENCODE, &message);
}

static void learn(sniff_filter_t *filter, qn_arena_t *arena, uint64_t request, const char *name)
{
    qn_capture_message_t *message = encode(request, name);
    decode(message, arena);
    sniff_filter_learn(filter, message);
    free(message);
}

/* The client's name of a request finds its Encode, and whatever bears the numbers it was given. */
static void test_filter_request_by_name_finds_all_its_messages(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool mine, other, plan;
    } cases[] = {
        {"req job-1", true, false, true}, {"req 'job-1'|12", true, true, true}, {"req \"7\"", false, false, false},
        {"req job", false, false, false}, {"req job-2", false, true, false},    {"not req job-1", false, true, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        qn_arena_t arena;
        qn_arena_init(&arena, 0);
        sniff_filter_t *filter = NULL;
        size_t at;
        assert_int_equal(sniff_filter_parse(cases[i].text, &filter, &at), QN_OK);
        learn(filter, &arena, 11, "job-1"); /* in slot 5 of the plan */
        learn(filter, &arena, 12, "job-2");
        qn_capture_message_t *messages[] = {encode(11, "job-1"), encode(12, "job-2"), step_plan()};
        const bool expected[] = {cases[i].mine, cases[i].other, cases[i].plan};
        for (size_t j = 0; j < 3; j++) {
            decode(messages[j], &arena);
            if (sniff_filter_match(filter, messages[j]) != expected[j]) fail_msg("\"%s\" on %zu", cases[i].text, j);
            free(messages[j]);
        }
        assert_true(sniff_filter_wants(filter, QN_SERVICE_FRONTEND, QN_MESSAGE_ENCODE));
        sniff_filter_free(&filter);
        qn_arena_fini(&arena);
    }
}

static void test_filter_wants_what_it_can_match_and_no_more(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool plan, result, encode; /* StepPlan of scheduler, StepResult of compute, Encode of frontend */
    } cases[] = {
        {"", true, true, true},
        {"src scheduler", true, false, false},
        {"not src scheduler", false, true, true},
        {"host compute", true, true, true}, /* where a message goes is in the frame */
        {"type StepPlan", true, false, false},
        {"not type StepPlan", false, true, true},
        {"src compute and type StepPlan", false, false, false},
        {"src compute or type Encode", false, true, true},
        {"not (src compute or type Encode)", true, false, false},
        {"step > 5", true, true, false},
        {"not step > 5", true, true, true},
        {"StepPlan.step > 5", true, false, false},
        {"dropped", false, false, false},
        {"req 7", true, true, true},
        {"req job and type StepPlan", true, false, true}, /* the name is learned from Encode */
        {"bytes > 5 and epoch 3", true, true, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        sniff_filter_t *filter = NULL;
        size_t at;
        assert_int_equal(sniff_filter_parse(cases[i].text, &filter, &at), QN_OK);
        if (sniff_filter_wants(filter, QN_SERVICE_SCHEDULER, QN_MESSAGE_STEP_PLAN) != cases[i].plan ||
            sniff_filter_wants(filter, QN_SERVICE_COMPUTE, QN_MESSAGE_STEP_RESULT) != cases[i].result ||
            sniff_filter_wants(filter, QN_SERVICE_FRONTEND, QN_MESSAGE_ENCODE) != cases[i].encode)
            fail_msg("\"%s\"", cases[i].text);
        sniff_filter_free(&filter);
    }
}

static void test_filter_depth_both_sides_of_the_limit(void **state)
{
    (void)state;
    for (int extra = 0; extra < 2; extra++) {
        char text[SNIFF_FILTER_BYTES_MAX + 2] = "";
        for (int i = 0; i < SNIFF_FILTER_DEPTH_MAX - 1 + extra; i++)
            strcat(text, "not ");
        strcat(text, "dropped");
        sniff_filter_t *filter = NULL;
        size_t at;
        assert_int_equal(sniff_filter_parse(text, &filter, &at), extra ? QN_ERR_INVALID : QN_OK);
        sniff_filter_free(&filter);
    }
}

static void test_filter_length_both_sides_of_the_limit(void **state)
{
    (void)state;
    char text[SNIFF_FILTER_BYTES_MAX + 2];
    memset(text, ' ', sizeof text);
    memcpy(text, "dropped", 7);
    sniff_filter_t *filter = NULL;
    size_t at;
    text[SNIFF_FILTER_BYTES_MAX] = '\0';
    assert_int_equal(sniff_filter_parse(text, &filter, &at), QN_OK);
    sniff_filter_free(&filter);
    text[SNIFF_FILTER_BYTES_MAX] = ' ';
    text[SNIFF_FILTER_BYTES_MAX + 1] = '\0';
    assert_int_equal(sniff_filter_parse(text, &filter, &at), QN_ERR_INVALID);
}

static void test_filter_names_only_types_it_mentions(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool heartbeat, hello;
    } cases[] = {
        {"", false, false},
        {"src memory", false, false},
        {"type Heartbeat", true, false},
        {"Heartbeat.uptime_ms > 5", true, false},
        {"uptime_ms > 5", false, false},
        {"not (Hello or type Heartbeat|Credit)", true, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        sniff_filter_t *filter = NULL;
        size_t at;
        assert_int_equal(sniff_filter_parse(cases[i].text, &filter, &at), QN_OK);
        assert_int_equal(sniff_filter_names(filter, QN_MESSAGE_HEARTBEAT), cases[i].heartbeat);
        assert_int_equal(sniff_filter_names(filter, QN_MESSAGE_HELLO), cases[i].hello);
        sniff_filter_free(&filter);
    }
}

static void test_filter_broken_frame_matches_dropped_but_no_field(void **state)
{
    (void)state;
    qn_arena_t arena;
    qn_arena_init(&arena, 0);
    qn_tap_header_t header = {.direction = QN_TAP_DROPPED, .now_ns = NOW_NS, .service = "memory"};
    static qn_capture_slots_t slots;
    static const char *const frames[] = {"", "x", "\x08\0\0\0QSPL", "\x08\0\0\0NOPEmore bytes than that"};
    static const size_t sizes[] = {0, 1, 8, 28};
    for (size_t i = 0; i < 4; i++) {
        qn_capture_message_t *message = qn_capture_message_new(&header, frames[i], sizes[i], 0);
        qn_capture_message_decode(message, &slots, &arena);
        assert_null(message->content);
        assert_int_not_equal(message->error[0], 0);
        assert_int_equal(message->time_ns, NOW_NS);
        assert_true(takes("dropped", message));
        assert_true(takes("", message));
        assert_false(takes("step >= 0", message));
        assert_false(takes("src scheduler", message));
        assert_int_equal(takes("StepPlan", message), i == 2);
        free(message);
    }
    qn_arena_fini(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_filter_match_table),
        cmocka_unit_test(test_filter_refusal_table_names_place_and_remedy),
        cmocka_unit_test(test_filter_request_by_name_finds_all_its_messages),
        cmocka_unit_test(test_filter_wants_what_it_can_match_and_no_more),
        cmocka_unit_test(test_filter_depth_both_sides_of_the_limit),
        cmocka_unit_test(test_filter_length_both_sides_of_the_limit),
        cmocka_unit_test(test_filter_names_only_types_it_mentions),
        cmocka_unit_test(test_filter_broken_frame_matches_dropped_but_no_field),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
