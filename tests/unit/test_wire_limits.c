/* Every limit of every schema on both sides: encoder and decoder must agree. */
#include "common/model/model_warnings.h"
#include "tests/unit/wire_examples.h"

#include <math.h>

static qn_arena_t arena;

static int arena_reset(void **state)
{
    (void)state;
    qn_arena_reset(&arena);
    return 0;
}

/* ---- a codec without limits, to make frames that no encoder of ours would make ------------------------------- */

static const qn_wire_struct_t *lenient_struct(const qn_wire_struct_t *record)
{
    qn_wire_struct_t *copy = qn_arena_alloc(&arena, sizeof *copy, 16);
    *copy = *record;
    copy->limit_count = 0;
    return copy;
}

static const qn_wire_type_t *lenient_type(const qn_wire_type_t *type)
{
    qn_wire_type_t *copy = qn_arena_alloc(&arena, sizeof *copy, 16);
    qn_wire_field_t *fields = qn_arena_zalloc(&arena, type->field_count, sizeof *fields);
    memcpy(fields, type->fields, type->field_count * sizeof *fields);
    for (size_t i = 0; i < type->field_count; i++) {
        fields[i].limited = fields[i].required = false;
        fields[i].max_len = fields[i].max_bytes = UINT32_MAX;
        if (fields[i].record) fields[i].record = lenient_struct(fields[i].record);
        if (fields[i].table) fields[i].table = lenient_type(fields[i].table);
    }
    *copy = *type;
    copy->fields = fields;
    return copy;
}

/* Encoder and decoder must agree on `message`: both accept it, or both refuse and name `field`. */
static void expect_agreement(const qn_wire_type_t *type, const qn_wire_type_t *lenient, const void *message, bool good,
                             const char *field)
{
    const uint8_t *frame;
    size_t bytes;
    char text[QN_ERR_TEXT_MAX] = "";
    qn_err_t encoded = qn_wire_encode(type, message, &arena, &frame, &bytes);
    if (encoded) snprintf(text, sizeof text, "%s", qn_err_text());
    if (good != (encoded == QN_OK)) fail_msg("%s.%s: encoder says %d: %s", type->name, field, encoded, text);
    if (!good && !strstr(text, field)) fail_msg("%s.%s is not named: %s", type->name, field, text);
    if (qn_wire_encode(lenient, message, &arena, &frame, &bytes)) fail_msg("lenient %s: %s", field, qn_err_text());
    void *again = qn_arena_alloc(&arena, type->struct_bytes, 16);
    qn_err_t decoded = qn_wire_decode(type, frame, bytes, &arena, again);
    if (decoded != encoded) fail_msg("%s.%s: decoder says %d, encoder %d", type->name, field, decoded, encoded);
    if (!good) assert_string_equal(text, qn_err_text());
}

typedef struct {
    const qn_wire_type_t *type, *lenient;
    uint8_t *root; /* the message */
    int tried;     /* values on either side of a limit */
} probe_t;

static void probe_value(probe_t *probe, const qn_wire_field_t *field, uint8_t *at, const void *value, bool good)
{
    uint8_t old[8];
    memcpy(old, at, field->bytes);
    memcpy(at, value, field->bytes);
    expect_agreement(probe->type, probe->lenient, probe->root, good, field->name);
    memcpy(at, old, field->bytes);
    probe->tried++;
}

static void probe_float(probe_t *probe, const qn_wire_field_t *field, uint8_t *at)
{
    float min = (float)field->min.f, max = (float)field->max.f;
    const struct {
        float value;
        bool good;
    } cases[] = {
        {min, true},
        {max, true},
        {nextafterf(min, -INFINITY), false},
        {nextafterf(max, INFINITY), false},
        {NAN, false},
        {-NAN, false},
        {INFINITY, false},
        {-INFINITY, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        probe_value(probe, field, at, &cases[i].value, cases[i].good);
}

/* Least, greatest, and their neighbours where the type has them. */
static void probe_scalar(probe_t *probe, const qn_wire_field_t *field, uint8_t *at)
{
    if (!field->limited) return;
    if (field->kind == QN_WIRE_F32) {
        probe_float(probe, field, at);
        return;
    }
    uint64_t type_max = field->bytes == 8 ? UINT64_MAX : (1ull << 8 * field->bytes) - 1;
    uint64_t below = field->min.u - 1, above = field->max.u + 1;
    probe_value(probe, field, at, &field->min, true);
    probe_value(probe, field, at, &field->max, true);
    if (field->min.u > 0) probe_value(probe, field, at, &below, false);
    if (field->max.u < type_max) probe_value(probe, field, at, &above, false);
    if (field->max.u < type_max) probe_value(probe, field, at, &type_max, false);
}

static void probe_struct(probe_t *probe, const qn_wire_struct_t *record, uint8_t *at)
{
    for (size_t i = 0; i < record->limit_count; i++)
        probe_scalar(probe, &record->limits[i], at + record->limits[i].offset);
}

/* Sets a vector to `count` copies of its first element; the lenient codec is asked only for what fits a frame. */
static void probe_length(probe_t *probe, const qn_wire_field_t *field, uint8_t *message, uint32_t count, bool good)
{
    uint8_t *old, *elements;
    uint32_t old_count;
    memcpy(&old, message + field->offset, sizeof old);
    memcpy(&old_count, message + field->count_offset, sizeof old_count);
    size_t bytes = field->kind == QN_WIRE_STRING  ? sizeof(qn_text_t)
                   : field->kind == QN_WIRE_TABLE ? field->table->struct_bytes
                                                  : field->bytes;
    size_t frame_bytes = (size_t)count * (bytes + (field->kind == QN_WIRE_TABLE ? 128 : 0));
    if (frame_bytes > QN_FRAME_BYTES_MAX - 4096) return;
    elements = qn_arena_alloc(&arena, count * bytes, 16);
    for (uint32_t i = 0; i < count; i++)
        memcpy(elements + i * bytes, old, bytes);
    memcpy(message + field->offset, &elements, sizeof elements);
    memcpy(message + field->count_offset, &count, sizeof count);
    expect_agreement(probe->type, probe->lenient, probe->root, good, field->name);
    memcpy(message + field->offset, &old, sizeof old);
    memcpy(message + field->count_offset, &old_count, sizeof old_count);
    probe->tried++;
}

/* Texts that are not UTF-8: refused by the encoder, and by the decoder when they stand in a frame. */
static void probe_utf8(probe_t *probe, qn_text_t *text, const char *name)
{
    static const char *const bad[] = {
        "\xc3",
        "\x80",
        "\xff",
        "\xed\xa0\x80" /* surrogate */,
        "\xc0\x80" /* overlong NUL */,
        "\xe0\x9f\xbf" /* overlong */,
        "\xf4\x90\x80\x80" /* above U+10FFFF */,
        "\xe2\x82",
        "\xf0\x9f\x99",
    };
    qn_text_t old = *text;
    void *read = qn_arena_alloc(&arena, probe->type->struct_bytes, 16);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const uint8_t *frame;
        size_t bytes, length = strlen(bad[i]);
        *text = (qn_text_t){bad[i], (uint32_t)length};
        assert_int_equal(qn_wire_encode(probe->type, probe->root, &arena, &frame, &bytes), QN_ERR_INVALID);
        assert_non_null(strstr(qn_err_text(), name));
        *text = (qn_text_t){"\x15\x16\x15\x16", (uint32_t)length};
        assert_int_equal(qn_wire_encode(probe->type, probe->root, &arena, &frame, &bytes), QN_OK);
        uint8_t *copy = memcpy(qn_arena_alloc(&arena, bytes, 8), frame, bytes);
        char mark[10] = {(char)length, 0, 0, 0, 0x15, 0x16, 0x15, 0x16};
        mark[4 + length] = 0;
        uint8_t *place = memmem(copy, bytes, mark, 4 + length + 1);
        assert_non_null(place);
        memcpy(place + 4, bad[i], length);
        assert_int_equal(qn_wire_decode(probe->type, copy, bytes, &arena, read), QN_ERR_INVALID);
        assert_non_null(strstr(qn_err_text(), "not UTF-8"));
    }
    *text = old;
}

static void probe_text(probe_t *probe, qn_text_t *text, uint32_t max_bytes, const char *name)
{
    qn_text_t old = *text;
    char *long_text = qn_arena_alloc(&arena, (size_t)max_bytes + 1, 1);
    memset(long_text, 'x', (size_t)max_bytes + 1);
    const struct {
        qn_text_t text;
        bool good;
    } cases[] = {
        {{long_text, max_bytes}, max_bytes < QN_FRAME_BYTES_MAX},
        {{long_text, max_bytes + 1}, false},
        {{"", 0}, true},
        {{"\xc3\xa9\xe2\x82\xac\xf0\x9f\x99\x82", 9 < max_bytes ? 9 : 2}, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (cases[i].text.bytes > QN_FRAME_BYTES_MAX - 65536) continue;
        *text = cases[i].text;
        expect_agreement(probe->type, probe->lenient, probe->root, cases[i].good, name);
        probe->tried++;
    }
    *text = old;
    if (max_bytes >= 8) probe_utf8(probe, text, name);
}

static void probe_table(probe_t *probe, const qn_wire_type_t *type, uint8_t *message);

static void probe_vector(probe_t *probe, const qn_wire_field_t *field, uint8_t *message)
{
    uint8_t *elements;
    memcpy(&elements, message + field->offset, sizeof elements);
    if (!elements) return;
    probe_length(probe, field, message, field->max_len, true);
    probe_length(probe, field, message, field->max_len + 1, false);
    if (field->kind == QN_WIRE_STRUCT)
        probe_struct(probe, field->record, elements);
    else if (field->kind == QN_WIRE_TABLE)
        probe_table(probe, field->table, elements);
    else if (field->kind == QN_WIRE_STRING)
        probe_text(probe, (qn_text_t *)(void *)elements, field->max_bytes, field->name);
    else
        probe_scalar(probe, field, elements);
}

static void probe_table(probe_t *probe, const qn_wire_type_t *type, uint8_t *message)
{
    for (size_t i = 0; i < type->field_count; i++) {
        const qn_wire_field_t *field = &type->fields[i];
        uint8_t *at = message + field->offset, *inner;
        memcpy(&inner, at, sizeof inner);
        if (field->vector)
            probe_vector(probe, field, message);
        else if (field->kind == QN_WIRE_STRUCT)
            probe_struct(probe, field->record, at);
        else if (field->kind == QN_WIRE_STRING)
            probe_text(probe, (qn_text_t *)(void *)at, field->max_len, field->name);
        else if (field->kind == QN_WIRE_TABLE && inner)
            probe_table(probe, field->table, inner);
        else if (field->kind < QN_WIRE_STRUCT)
            probe_scalar(probe, field, at);
    }
}

/* A message as the example has it, all in memory that may be written. */
static void *writable_example(const qn_wire_type_t *type) { return example_message(type, &arena); }

static void test_wire_limits_every_limit_holds_on_both_sides_for_encoder_and_decoder(void **state)
{
    (void)state;
    int tried = 0;
    EACH_MESSAGE(type)
    {
        qn_arena_reset(&arena);
        probe_t probe = {.type = type, .lenient = lenient_type(type), .root = writable_example(type)};
        probe_table(&probe, type, probe.root);
        assert_true(probe.tried >= 6); /* src and dst of the head at least */
        tried += probe.tried;
    }
    print_message("%d values on either side of a limit\n", tried);
    assert_true(tried > 500);
}

static void test_wire_limits_required_field_absent_is_refused(void **state)
{
    (void)state;
    int tried = 0;
    EACH_MESSAGE(type)
    {
        const qn_wire_type_t *lenient = lenient_type(type);
        for (size_t i = 0; i < type->field_count; i++) {
            const qn_wire_field_t *field = &type->fields[i];
            if (!field->required || (field->kind == QN_WIRE_STRUCT && !field->vector)) continue;
            uint8_t *message = writable_example(type);
            memset(message + field->offset, 0, sizeof(void *));
            if (field->vector) memset(message + field->count_offset, 0, 4);
            const uint8_t *frame;
            size_t bytes;
            assert_int_equal(qn_wire_encode(lenient, message, &arena, &frame, &bytes), QN_OK);
            assert_int_equal(qn_wire_decode(type, frame, bytes, &arena, message), QN_ERR_INVALID);
            assert_non_null(strstr(qn_err_text(), field->name));
            assert_non_null(strstr(qn_err_text(), "is required and absent"));
            tried++;
        }
    }
    assert_true(tried >= 7);
}

static void test_wire_limits_agree_with_limits_h(void **state)
{
    (void)state;
    static const struct {
        qn_message_type_t type;
        const char *field;
        bool bytes;
        uint32_t limit;
    } cases[] = {
        {QN_MESSAGE_BYE, "reason", false, QN_REASON_MAX},
        {QN_MESSAGE_CACHE_STATS, "policy", false, QN_NAME_MAX},
        {QN_MESSAGE_DETOKENIZE, "ids", false, QN_PROMPT_TOKENS_MAX},
        {QN_MESSAGE_ENCODE, "bias", false, QN_LOGIT_BIAS_MAX},
        {QN_MESSAGE_ENCODE, "masks", false, QN_MASKS_MAX},
        {QN_MESSAGE_ENCODE, "taps", false, QN_TAPS_MAX},
        {QN_MESSAGE_ENCODE, "tap_values", false, QN_TAP_VALUES_MAX},
        {QN_MESSAGE_SUBMIT, "masks", false, QN_MASKS_MAX},
        {QN_MESSAGE_SUBMIT, "taps", false, QN_TAPS_MAX},
        {QN_MESSAGE_SUBMIT, "tap_values", false, QN_TAP_VALUES_MAX},
        {QN_MESSAGE_ENCODE, "prompt", false, QN_TEXT_BYTES_MAX},
        {QN_MESSAGE_ENCODE, "prompt_ids", false, QN_PROMPT_TOKENS_MAX},
        {QN_MESSAGE_ENCODE, "logprob_ids", false, QN_LOGPROB_IDS_MAX},
        {QN_MESSAGE_ENCODE, "stop", false, QN_STOP_STRINGS_MAX},
        {QN_MESSAGE_ENCODE, "stop", true, QN_STOP_STRING_BYTES_MAX},
        {QN_MESSAGE_ENCODE, "stop_ids", false, QN_STOP_IDS_MAX},
        {QN_MESSAGE_GRANT, "items", false, QN_REQUESTS_MAX},
        {QN_MESSAGE_HEARTBEAT, "text", false, QN_REASON_MAX},
        {QN_MESSAGE_HELLO, "build", false, QN_NAME_MAX},
        {QN_MESSAGE_LEASE, "items", false, QN_REQUESTS_MAX},
        {QN_MESSAGE_MODEL_DESCRIPTION, "eos_ids", false, QN_STOP_IDS_MAX},
        {QN_MESSAGE_MODEL_DESCRIPTION, "warnings", false, QN_MODEL_WARNINGS_MAX},
        {QN_MESSAGE_MODEL_DESCRIPTION, "tensors", false, QN_TENSORS_MAX},
        {QN_MESSAGE_PROMPT_LOGPROBS, "ids", false, QN_STEP_TOKENS_MAX},
        {QN_MESSAGE_PROMPT_LOGPROBS, "top", false, QN_STEP_TOKENS_MAX * QN_ALTERNATIVES_MAX},
        {QN_MESSAGE_REFUSAL, "text", false, QN_ERR_TEXT_MAX},
        {QN_MESSAGE_RELEASE, "sequences", false, QN_REQUESTS_MAX},
        {QN_MESSAGE_RESERVE, "name", false, QN_NAME_MAX},
        {QN_MESSAGE_STEP_PLAN, "reasons", true, QN_REASON_MAX},
        {QN_MESSAGE_STEP_PLAN, "retire", false, QN_SLOTS_MAX},
        {QN_MESSAGE_STEP_PLAN, "runs", false, QN_SLOTS_MAX},
        {QN_MESSAGE_STEP_PLAN, "sets", false, QN_SLOTS_MAX},
        {QN_MESSAGE_STEP_PLAN, "stop_ids", false, QN_SLOTS_MAX * QN_SLOT_STOP_IDS_MAX},
        {QN_MESSAGE_STEP_RESULT, "prompt", false, QN_STEP_TOKENS_MAX},
        {QN_MESSAGE_STEP_RESULT, "tokens", false, QN_SLOTS_MAX},
        {QN_MESSAGE_STEP_RESULT, "top", false, (QN_STEP_TOKENS_MAX + QN_SLOTS_MAX) * QN_ALTERNATIVES_MAX},
        {QN_MESSAGE_SUBMIT, "prompt_ids", false, QN_PROMPT_TOKENS_MAX},
        {QN_MESSAGE_TOKENIZE, "text", false, QN_TEXT_BYTES_MAX},
        {QN_MESSAGE_TOKEN_BATCH, "ends", false, QN_REQUESTS_MAX},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const qn_wire_field_t *field = field_named(qn_wire_type(cases[i].type), cases[i].field);
        uint32_t limit = cases[i].bytes ? field->max_bytes : field->max_len;
        if (limit != cases[i].limit)
            fail_msg("%s.%s: the schema says %u, limits.h %u", qn_message_name(cases[i].type), cases[i].field, limit,
                     cases[i].limit);
    }
    const qn_wire_struct_t *run = field_named(qn_wire_type(QN_MESSAGE_STEP_PLAN), "runs")->record;
    assert_string_equal(run->limits[0].name, "slot");
    assert_int_equal(run->limits[0].max.u, QN_SLOTS_MAX - 1);
    assert_string_equal(run->limits[1].name, "token_count");
    assert_int_equal(run->limits[1].max.u, QN_STEP_TOKENS_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_wire_limits_every_limit_holds_on_both_sides_for_encoder_and_decoder, arena_reset),
        cmocka_unit_test_setup(test_wire_limits_required_field_absent_is_refused, arena_reset),
        cmocka_unit_test_setup(test_wire_limits_agree_with_limits_h, arena_reset),
    };
    qn_arena_init(&arena, 0);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    qn_arena_fini(&arena);
    return failed;
}
