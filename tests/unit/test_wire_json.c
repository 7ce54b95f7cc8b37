/* Messages as JSON, both ways. */
#include "tests/unit/wire_examples.h"

#include <math.h>

static qn_arena_t arena;

static int arena_reset(void **state)
{
    (void)state;
    qn_arena_reset(&arena);
    return 0;
}

static void test_wire_json_example_survives_the_frame_unchanged(void **state)
{
    (void)state;
    EACH_MESSAGE(type)
    {
        json_t *json = example_json(type);
        size_t bytes;
        json_t *back = qn_wire_to_json(type, example_frame(type, &arena, &bytes), 0);
        assert_null(back); /* no bytes, no message */
        const uint8_t *frame = example_frame(type, &arena, &bytes);
        back = qn_wire_to_json(type, frame, bytes);
        if (!json_equal(json, back)) {
            char *text = json_dumps(back, QN_WIRE_JSON_FLAGS | JSON_INDENT(2));
            fail_msg("%s differs from its example:\n%s", type->name, text);
        }
        json_decref(back);
        uint8_t *unaligned = qn_arena_alloc(&arena, bytes + 8, 8);
        memcpy(unaligned + 3, frame, bytes);
        back = qn_wire_to_json(type, unaligned + 3, bytes);
        assert_true(json_equal(json, back));
        json_decref(back);
        json_decref(json);
    }
}

/* Numbers as text: JSON and jansson have no ulong above 2^63 - 1 and no NaN. */
static void test_wire_json_every_ulong_and_float_survives(void **state)
{
    (void)state;
    static const struct {
        uint64_t value;
        const char *text;
    } ulongs[] = {
        {0, NULL},
        {INT64_MAX, "9223372036854775807"},
        {(uint64_t)INT64_MAX + 1, "\"9223372036854775808\""},
        {UINT64_MAX, "\"18446744073709551615\""},
    };
    static const struct {
        float value;
        const char *text;
    } floats[] = {
        {0.8f, "0.8"},
        {-0.374861f, "-0.374861"},
        {1e-30f, "1e-30"},
        {16777216.0f, "16777216.0"},
        {0.30000004f, "0.30000004"},
        {-0.0f, "-0.0"},
        {INFINITY, "\"inf\""},
        {-INFINITY, "\"-inf\""},
        {NAN, "\"nan\""},
    };
    const qn_wire_type_t *type = qn_wire_type(QN_MESSAGE_TOKEN_BATCH);
    for (size_t u = 0; u < sizeof ulongs / sizeof *ulongs; u++) {
        for (size_t f = 0; f < sizeof floats / sizeof *floats; f++) {
            const qn_token_logprob_t top = {.id = 1, .logprob = floats[f].value};
            const qn_token_batch_t batch = {.step = ulongs[u].value, .top = &top, .top_count = 1};
            const uint8_t *frame, *again;
            size_t bytes, again_bytes;
            assert_int_equal(qn_token_batch_encode(&batch, &arena, &frame, &bytes), QN_OK);
            json_t *json = qn_wire_to_json(type, frame, bytes);
            char *text = json_dumps(json, QN_WIRE_JSON_FLAGS | JSON_COMPACT), want[64];
            snprintf(want, sizeof want, "\"step\":%s", ulongs[u].text ? ulongs[u].text : "");
            assert_true((strstr(text, want) != NULL) == (ulongs[u].text != NULL));
            snprintf(want, sizeof want, "\"logprob\":%s}", floats[f].text);
            if (!strstr(text, want)) fail_msg("%s lacks %s", text, want);
            json_t *parsed = json_loads(text, 0, NULL);
            assert_int_equal(qn_wire_from_json(type, parsed, &arena, &again, &again_bytes), QN_OK);
            assert_int_equal(again_bytes, bytes);
            qn_token_batch_t read;
            assert_int_equal(qn_token_batch_decode(again, again_bytes, &arena, &read), QN_OK);
            assert_true(read.step == ulongs[u].value);
            assert_true(memcmp(&read.top->logprob, &top.logprob, 4) == 0 || isnan(top.logprob));
            json_decref(parsed);
            json_decref(json);
            free(text);
        }
    }
}

#define HEAD "{\"schema\":1,\"src\":\"tool\",\"dst\":\"memory\",\"epoch\":1,\"request\":0,\"sequence\":0,\"sent_ns\":0}"
#define SAMPLING                                                                                                     \
    "{\"seed\":0,\"temperature\":1,\"top_p\":1,\"min_p\":0,\"repetition_penalty\":1,\"presence_penalty\":0,"         \
    "\"frequency_penalty\":0,\"top_k\":0,\"max_tokens\":0,\"min_tokens\":0,\"ignore_eos\":false,\"logprobs\":false," \
    "\"prompt_logprobs\":false,\"top_logprobs\":0}"

static void test_wire_json_wrong_member_is_refused_by_place_with_a_remedy(void **state)
{
    (void)state;
    static const struct {
        qn_message_type_t type;
        const char *json;
        const char *text;
    } cases[] = {
        {QN_MESSAGE_CREDIT, "[]", "Credit: wants an object, not an array"},
        {QN_MESSAGE_CREDIT, "{}", "Credit.head: is required and absent"},
        {QN_MESSAGE_CREDIT, "{\"head\":" HEAD ",\"limt\":1}", "Credit.limt: unknown member; did you mean \"limit\"?"},
        {QN_MESSAGE_CREDIT, "{\"head\":" HEAD ",\"zzzzzzzz\":1}", "Credit.zzzzzzzz: unknown member"},
        {QN_MESSAGE_CREDIT, "{\"head\":" HEAD ",\"limit\":-1}", "Credit.limit: -1 is outside 0 to 9223372036854775807"},
        {QN_MESSAGE_CREDIT, "{\"head\":" HEAD ",\"limit\":1.5}", "Credit.limit: wants an integer, not a real number"},
        {QN_MESSAGE_CREDIT, "{\"head\":" HEAD ",\"limit\":\"18446744073709551616\"}",
         "Credit.limit: is not a decimal number of 64 bits"},
        {QN_MESSAGE_CREDIT, "{\"head\":" HEAD ",\"limit\":\"-1\"}", "Credit.limit: is not a decimal number of 64 bits"},
        {QN_MESSAGE_CREDIT, "{\"head\":{\"schema\":1}}", "Credit.head.src: is missing; a struct needs all its members"},
        {QN_MESSAGE_CREDIT, "{\"head\":{\"shema\":1}}", "Credit.head.shema: unknown member; did you mean \"schema\"?"},
        {QN_MESSAGE_CREDIT,
         "{\"head\":{\"schema\":65536,\"src\":\"tool\",\"dst\":\"memory\",\"epoch\":1,"
         "\"request\":0,"
         "\"sequence\":0,\"sent_ns\":0}}",
         "Credit.head.schema: 65536 is outside 0 to 65535"},
        {QN_MESSAGE_CANCEL, "{\"head\":" HEAD ",\"reason\":\"bored\"}",
         "Cancel.reason: \"bored\" is no value of CancelReason"},
        {QN_MESSAGE_CANCEL, "{\"head\":" HEAD ",\"reason\":2}",
         "Cancel.reason: wants the name of a value, not an integer"},
        {QN_MESSAGE_DESCRIBE, "{\"head\":" HEAD ",\"want_tensors\":1}",
         "Describe.want_tensors: wants true or false, not an integer"},
        {QN_MESSAGE_RELEASE, "{\"head\":" HEAD "}", "Release.sequences: is required and absent"},
        {QN_MESSAGE_RELEASE, "{\"head\":" HEAD ",\"sequences\":7}",
         "Release.sequences: wants an array, not an integer"},
        {QN_MESSAGE_RELEASE, "{\"head\":" HEAD ",\"sequences\":[1,null]}",
         "Release.sequences[1]: wants an integer, not null"},
        {QN_MESSAGE_TOKENIZE, "{\"head\":" HEAD ",\"text\":5}", "Tokenize.text: wants a string, not an integer"},
        {QN_MESSAGE_STEP_PLAN, "{\"head\":" HEAD ",\"step\":1,\"bias\":[{\"id\":1,\"bias\":1e300}]}",
         "StepPlan.bias[0].bias: does not fit a float"},
        {QN_MESSAGE_STEP_PLAN, "{\"head\":" HEAD ",\"step\":1,\"bias\":[{\"id\":1,\"bias\":\"nan\"}]}",
         "StepPlan.bias[0].bias: is not a number (NaN)"},
        {QN_MESSAGE_STEP_PLAN, "{\"head\":" HEAD ",\"step\":1,\"bias\":[{\"id\":1,\"bias\":100.5}]}",
         "StepPlan.bias[0].bias: 100.5 is above the maximum 100"},
        {QN_MESSAGE_STEP_PLAN, "{\"head\":" HEAD "}", "StepPlan.step: 0 is below the minimum 1"},
        {QN_MESSAGE_MODEL_DESCRIPTION,
         "{\"head\":" HEAD ",\"model\":\"m\",\"default_sampling\":" SAMPLING ","
         "\"tensors\":[{\"name\":\"a\"},{\"nam\":\"b\"}]}",
         "ModelDescription.tensors[1].nam: unknown member; did you mean \"name\"?"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_error_t where;
        json_t *json = json_loads(cases[i].json, 0, &where);
        if (!json) fail_msg("case %zu: %s", i, where.text);
        const uint8_t *frame = NULL;
        size_t bytes = 0;
        assert_int_equal(qn_wire_from_json(qn_wire_type(cases[i].type), json, &arena, &frame, &bytes), QN_ERR_INVALID);
        assert_string_equal(qn_err_text(), cases[i].text);
        assert_null(frame);
        json_decref(json);
    }
}

static void test_wire_json_array_longer_than_its_limit_is_refused_before_it_is_built(void **state)
{
    (void)state;
    json_t *sequences = json_array(), *head = json_loads(HEAD, 0, NULL);
    for (unsigned i = 0; i < QN_REQUESTS_MAX; i++)
        json_array_append_new(sequences, json_integer(i));
    json_t *json = json_pack("{s:o, s:o}", "head", head, "sequences", sequences);
    const qn_wire_type_t *type = qn_wire_type(QN_MESSAGE_RELEASE);
    const uint8_t *frame;
    size_t bytes;
    assert_int_equal(qn_wire_from_json(type, json, &arena, &frame, &bytes), QN_OK);
    json_array_append_new(sequences, json_integer(1));
    assert_int_equal(qn_wire_from_json(type, json, &arena, &frame, &bytes), QN_ERR_LIMIT);
    assert_string_equal(qn_err_text(), "Release.sequences: 4097 elements exceed the maximum of 4096");
    json_decref(json);
}

static void test_wire_json_defaults_and_absent_fields_are_left_out_and_come_back(void **state)
{
    (void)state;
    json_t *json = json_loads("{\"head\":" HEAD ",\"text\":\"a\\u0000b\"}", JSON_ALLOW_NUL, NULL);
    const qn_wire_type_t *type = qn_wire_type(QN_MESSAGE_TOKENIZE);
    const uint8_t *frame;
    size_t bytes;
    qn_tokenize_t read;
    assert_int_equal(qn_wire_from_json(type, json, &arena, &frame, &bytes), QN_OK);
    assert_int_equal(qn_tokenize_decode(frame, bytes, &arena, &read), QN_OK);
    assert_true(read.add_special && !read.want_pieces);
    assert_int_equal(read.text.bytes, 3);
    json_t *back = qn_wire_to_json(type, frame, bytes);
    assert_true(json_equal(json, back));
    json_decref(back);
    json_decref(json);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_wire_json_example_survives_the_frame_unchanged, arena_reset),
        cmocka_unit_test_setup(test_wire_json_every_ulong_and_float_survives, arena_reset),
        cmocka_unit_test_setup(test_wire_json_wrong_member_is_refused_by_place_with_a_remedy, arena_reset),
        cmocka_unit_test_setup(test_wire_json_array_longer_than_its_limit_is_refused_before_it_is_built, arena_reset),
        cmocka_unit_test_setup(test_wire_json_defaults_and_absent_fields_are_left_out_and_come_back, arena_reset),
    };
    qn_arena_init(&arena, 0);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    qn_arena_fini(&arena);
    return failed;
}
