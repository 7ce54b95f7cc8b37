/* The codec on good messages and on frames that are wrong as a whole. Limits: test_wire_limits.c. */
#include "tests/unit/wire_examples.h"

static qn_arena_t arena;

static int arena_reset(void **state)
{
    (void)state;
    qn_arena_reset(&arena);
    return 0;
}

/* ---- round trips -------------------------------------------------------------------------------------------- */

static void test_wire_example_survives_decode_and_encode_unchanged(void **state)
{
    (void)state;
    EACH_MESSAGE(type)
    {
        size_t bytes, again_bytes;
        const uint8_t *frame = example_frame(type, &arena, &bytes), *again;
        assert_int_equal((uintptr_t)frame % 8, 0);
        assert_int_equal(bytes % 8, 0);
        assert_ptr_equal(qn_wire_type(qn_message_type_of(frame, bytes)), type);
        assert_int_equal(qn_message_type_by_name(type->name), type_number);
        assert_int_equal(qn_message_struct_bytes((qn_message_type_t)type_number), type->struct_bytes);
        void *message = qn_arena_alloc(&arena, type->struct_bytes, 16);
        assert_int_equal(qn_wire_decode(type, frame, bytes, &arena, message), QN_OK);
        assert_int_equal(qn_wire_encode(type, message, &arena, &again, &again_bytes), QN_OK);
        assert_int_equal(bytes, again_bytes);
        assert_memory_equal(frame, again, bytes);
    }
}

static void test_wire_step_plan_built_in_c_is_read_back_by_its_views(void **state)
{
    (void)state;
    const qn_slot_run_t runs[] = {
        {.slot = 0, .position = 19, .token_count = 1, .from_slot = true, .sample = true},
        {.slot = 1, .position = 0, .token_count = 5, .sample = true},
    };
    const uint32_t ids[] = {0, 516, 2557, 1648, 224};
    const qn_text_t reasons[] = {qn_text("fcfs"), qn_text("")};
    const qn_step_plan_t plan = {
        .head = {.request = 7},
        .step = 112,
        .runs = runs,
        .runs_count = 2,
        .ids = ids,
        .ids_count = 5,
        .reasons = reasons,
        .reasons_count = 2,
        .stop_ids = ids,
        .stop_ids_count = 0,
    };
    const uint8_t *frame;
    size_t bytes;
    qn_step_plan_t read;
    assert_int_equal(qn_step_plan_encode(&plan, &arena, &frame, &bytes), QN_OK);
    assert_int_equal(qn_step_plan_decode(frame, bytes, &arena, &read), QN_OK);
    assert_int_equal(read.head.schema, QN_PROTOCOL);
    assert_int_equal(read.head.request, 7);
    assert_int_equal(read.step, 112);
    assert_int_equal(read.runs_count, 2);
    assert_int_equal(read.runs[1].token_count, 5);
    assert_true(read.runs[0].from_slot && !read.runs[1].from_slot);
    assert_memory_equal(read.ids, ids, sizeof ids);
    assert_true((const uint8_t *)read.ids > frame && (const uint8_t *)read.ids < frame + bytes); /* a view */
    assert_string_equal(read.reasons[0].data, "fcfs");
    assert_int_equal(read.reasons[1].bytes, 0);
    assert_null(read.sets);         /* absent */
    assert_non_null(read.stop_ids); /* empty */
    assert_int_equal(read.stop_ids_count, 0);
}

static void test_wire_defaults_that_are_not_zero_come_from_the_init_macro(void **state)
{
    (void)state;
    qn_tokenize_t asked = QN_TOKENIZE_INIT, read;
    asked.text = qn_text("abc");
    const uint8_t *frame;
    size_t with_default, without;
    assert_int_equal(qn_tokenize_encode(&asked, &arena, &frame, &with_default), QN_OK);
    assert_int_equal(qn_tokenize_decode(frame, with_default, &arena, &read), QN_OK);
    assert_true(read.add_special);
    asked.add_special = false;
    assert_int_equal(qn_tokenize_encode(&asked, &arena, &frame, &without), QN_OK);
    assert_int_equal(qn_tokenize_decode(frame, without, &arena, &read), QN_OK);
    assert_false(read.add_special);
    qn_model_description_t model = QN_MODEL_DESCRIPTION_INIT;
    assert_int_equal(model.bos_id, -1);
}

static void test_wire_padding_of_structs_never_leaves_the_process(void **state)
{
    (void)state;
    qn_slot_run_t runs[3];
    const uint8_t *clean, *dirty;
    size_t clean_bytes, dirty_bytes;
    for (int round = 0; round < 2; round++) {
        memset(runs, round ? 0xAA : 0, sizeof runs);
        for (int i = 0; i < 3; i++) {
            runs[i].slot = (uint32_t)i, runs[i].position = 4, runs[i].token_count = 1, runs[i].ids_offset = 0;
            runs[i].from_slot = runs[i].sample = true;
        }
        const qn_step_plan_t plan = {.step = 1, .runs = runs, .runs_count = 3};
        assert_int_equal(qn_step_plan_encode(&plan, &arena, round ? &dirty : &clean,
                                             round ? &dirty_bytes : &clean_bytes),
                         QN_OK);
    }
    assert_int_equal(clean_bytes, dirty_bytes);
    assert_memory_equal(clean, dirty, clean_bytes);
}

static void test_wire_field_of_a_newer_schema_is_ignored(void **state)
{
    (void)state;
    const qn_wire_type_t *credit = qn_wire_type(QN_MESSAGE_CREDIT);
    struct {
        qn_credit_t credit;
        uint32_t extra;
    } newer = {.credit = {.limit = 9}, .extra = 77};
    qn_wire_field_t fields[] = {
        credit->fields[0],
        credit->fields[1],
        {.name = "extra", .kind = QN_WIRE_U32, .bytes = 4, .align = 4, .slot = 2, .offset = sizeof(qn_credit_t)}};
    const uint8_t layout[] = {0, 1, 2};
    const qn_wire_type_t type = {.name = "Credit",
                                 .identifier = "QCRD",
                                 .struct_bytes = sizeof newer,
                                 .field_count = 3,
                                 .fields = fields,
                                 .layout = layout};
    const uint8_t *frame;
    size_t bytes;
    qn_credit_t read;
    assert_int_equal(qn_wire_encode(&type, &newer, &arena, &frame, &bytes), QN_OK);
    assert_int_equal(qn_credit_decode(frame, bytes, &arena, &read), QN_OK);
    assert_int_equal(read.limit, 9);
}

/* ---- frames that are refused as a whole ---------------------------------------------------------------------- */

static void test_wire_failure_names_the_element(void **state)
{
    (void)state;
    const qn_slot_run_t runs[4] = {{.token_count = 1}, {.token_count = 1}, {.token_count = 1}};
    const qn_step_plan_t plan = {.step = 1, .runs = runs, .runs_count = 4};
    const uint8_t *frame = NULL;
    size_t bytes = 0;
    assert_int_equal(qn_step_plan_encode(&plan, &arena, &frame, &bytes), QN_ERR_INVALID);
    assert_string_equal(qn_err_text(), "StepPlan.runs[3].token_count: 0 is below the minimum 1");
    assert_null(frame);
}

static void test_wire_unaligned_short_long_or_other_frame_is_refused(void **state)
{
    (void)state;
    size_t bytes;
    const uint8_t *frame = example_frame(qn_wire_type(QN_MESSAGE_STEP_PLAN), &arena, &bytes);
    uint8_t *copy = qn_arena_alloc(&arena, QN_FRAME_BYTES_MAX + 16, 8);
    qn_step_plan_t plan;
    qn_submit_t submit;
    for (size_t shift = 1; shift < 8; shift++) {
        memcpy(copy + shift, frame, bytes);
        assert_int_equal(qn_step_plan_decode(copy + shift, bytes, &arena, &plan), QN_ERR_INVALID);
        assert_non_null(strstr(qn_err_text(), "aligned"));
        assert_int_equal(qn_message_type_of(copy + shift, bytes), QN_MESSAGE_STEP_PLAN);
    }
    memcpy(copy, frame, bytes);
    assert_int_equal(qn_step_plan_decode(copy, 11, &arena, &plan), QN_ERR_INVALID);
    memset(copy + bytes, 0, QN_FRAME_BYTES_MAX + 16 - bytes);
    assert_int_equal(qn_step_plan_decode(copy, QN_FRAME_BYTES_MAX, &arena, &plan), QN_OK);
    assert_int_equal(qn_step_plan_decode(copy, QN_FRAME_BYTES_MAX + 1, &arena, &plan), QN_ERR_LIMIT);
    assert_int_equal(qn_submit_decode(frame, bytes, &arena, &submit), QN_ERR_INVALID);
    assert_string_equal(qn_err_text(), "Submit: file identifier is not \"QSUB\": the frame is a StepPlan");
    assert_int_equal(qn_message_type_of("QSPL", 4), QN_MESSAGE_NONE);
    assert_int_equal(qn_message_type_of("\0\0\0\0QXXX", 8), QN_MESSAGE_NONE);
}

static void test_wire_message_larger_than_a_frame_is_refused_by_the_encoder(void **state)
{
    (void)state;
    uint32_t *ids = qn_arena_zalloc(&arena, 4194304, sizeof *ids);
    const qn_tokenized_t message = {.ids = ids, .ids_count = 4194304}; /* 16 MiB without anything else */
    const uint8_t *frame;
    size_t bytes;
    assert_int_equal(qn_tokenized_encode(&message, &arena, &frame, &bytes), QN_ERR_LIMIT);
    assert_non_null(strstr(qn_err_text(), "exceeds the maximum of 16777216"));
}

static void test_wire_protocol_version_other_than_ours_is_refused(void **state)
{
    (void)state;
    const qn_credit_t ours = {.head = {.schema = QN_PROTOCOL}, .limit = 5};
    const qn_credit_t other = {.head = {.schema = QN_PROTOCOL + 1}, .limit = 5};
    const uint8_t *frame;
    size_t bytes;
    qn_credit_t read;
    assert_int_equal(qn_credit_encode(&other, &arena, &frame, &bytes), QN_ERR_INVALID);
    assert_int_equal(qn_credit_encode(&ours, &arena, &frame, &bytes), QN_OK);
    uint8_t *copy = memcpy(qn_arena_alloc(&arena, bytes, 8), frame, bytes);
    assert_int_equal(qn_wire_set_head(copy, bytes, &other.head), QN_OK);
    assert_int_equal(qn_credit_decode(copy, bytes, &arena, &read), QN_ERR_UNSUPPORTED);
    assert_int_equal(qn_wire_head(copy, bytes).schema, QN_PROTOCOL + 1); /* a sniffer still sees it */
}

static void test_wire_vector_without_data_or_text_is_refused_not_followed(void **state)
{
    (void)state;
    const qn_text_t hole[] = {qn_text("a"), {0}};
    const qn_commit_t missing = {.ids_count = 3};
    const qn_step_plan_t plan = {.step = 1, .reasons = hole, .reasons_count = 2};
    const uint8_t *frame;
    size_t bytes;
    assert_int_equal(qn_commit_encode(&missing, &arena, &frame, &bytes), QN_ERR_INVALID);
    assert_string_equal(qn_err_text(), "Commit.ids: 3 elements at a NULL pointer");
    assert_int_equal(qn_step_plan_encode(&plan, &arena, &frame, &bytes), QN_ERR_INVALID);
    assert_non_null(strstr(qn_err_text(), "StepPlan.reasons[1]"));
    const qn_release_t none = {0}; /* required, so written as an empty vector */
    qn_release_t read;
    assert_int_equal(qn_release_encode(&none, &arena, &frame, &bytes), QN_OK);
    assert_int_equal(qn_release_decode(frame, bytes, &arena, &read), QN_OK);
    assert_non_null(read.sequences);
}

/* ---- heads -------------------------------------------------------------------------------------------------- */

static void test_wire_head_is_read_and_replaced_in_place_at_any_alignment(void **state)
{
    (void)state;
    EACH_MESSAGE(type)
    {
        size_t bytes;
        const uint8_t *frame = example_frame(type, &arena, &bytes);
        uint8_t *copy = qn_arena_alloc(&arena, bytes + 8, 8);
        qn_head_t head, old;
        memcpy(&old, example_message(type, &arena), sizeof old);
        for (size_t shift = 0; shift < 8; shift++) {
            memcpy(copy + shift, frame, bytes);
            head = qn_wire_head(copy + shift, bytes);
            assert_memory_equal(&head, &old, sizeof head);
            head.sequence = 1000 + shift, head.sent_ns = 5;
            assert_int_equal(qn_wire_set_head(copy + shift, bytes, &head), QN_OK);
            assert_int_equal(qn_wire_head(copy + shift, bytes).sequence, 1000 + shift);
            assert_int_equal(qn_wire_set_head(copy + shift, bytes, &old), QN_OK);
            assert_memory_equal(copy + shift, frame, bytes); /* nothing but the head was touched */
        }
    }
}

static void test_wire_head_of_what_is_no_frame_is_zero(void **state)
{
    (void)state;
    const uint8_t noise[64] = {0xff, 0xff, 0xff, 0x7f, 'Q', 'S', 'P', 'L'};
    const qn_head_t zero = {0};
    for (size_t bytes = 0; bytes <= sizeof noise; bytes++) {
        qn_head_t head = qn_wire_head(noise, bytes);
        assert_memory_equal(&head, &zero, sizeof head);
        uint8_t copy[sizeof noise];
        memcpy(copy, noise, sizeof noise);
        assert_int_equal(qn_wire_set_head(copy, bytes, &head), QN_ERR_INVALID);
    }
    const qn_credit_t credit = {.limit = 1};
    const uint8_t *frame;
    size_t bytes;
    assert_int_equal(qn_credit_encode(&credit, &arena, &frame, &bytes), QN_OK);
    uint8_t *copy = memcpy(qn_arena_alloc(&arena, bytes, 8), frame, bytes);
    qn_head_t bad = {.schema = QN_PROTOCOL};
    memset((uint8_t *)&bad + offsetof(qn_head_t, src), 200, 1);
    assert_int_equal(qn_wire_set_head(copy, bytes, &bad), QN_OK);
    assert_int_equal(qn_wire_head(copy, bytes).src, QN_SERVICE_NONE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_wire_example_survives_decode_and_encode_unchanged, arena_reset),
        cmocka_unit_test_setup(test_wire_step_plan_built_in_c_is_read_back_by_its_views, arena_reset),
        cmocka_unit_test_setup(test_wire_defaults_that_are_not_zero_come_from_the_init_macro, arena_reset),
        cmocka_unit_test_setup(test_wire_padding_of_structs_never_leaves_the_process, arena_reset),
        cmocka_unit_test_setup(test_wire_field_of_a_newer_schema_is_ignored, arena_reset),
        cmocka_unit_test_setup(test_wire_failure_names_the_element, arena_reset),
        cmocka_unit_test_setup(test_wire_unaligned_short_long_or_other_frame_is_refused, arena_reset),
        cmocka_unit_test_setup(test_wire_message_larger_than_a_frame_is_refused_by_the_encoder, arena_reset),
        cmocka_unit_test_setup(test_wire_protocol_version_other_than_ours_is_refused, arena_reset),
        cmocka_unit_test_setup(test_wire_vector_without_data_or_text_is_refused_not_followed, arena_reset),
        cmocka_unit_test_setup(test_wire_head_is_read_and_replaced_in_place_at_any_alignment, arena_reset),
        cmocka_unit_test_setup(test_wire_head_of_what_is_no_frame_is_zero, arena_reset),
    };
    qn_arena_init(&arena, 0);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    qn_arena_fini(&arena);
    return failed;
}
