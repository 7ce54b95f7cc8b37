/* Methods as a table: requests from JSON, replies as JSON, examples fitted to a model. */
#include "tests/unit/wire_examples.h"

#include <math.h>

#include "qn_methods.h"
#include "services/frontend/methods/examples.h"
#include "services/frontend/methods/method_json.h"

static qn_err_t read_text(qn_method_id_t method, const char *text, qn_arena_t *arena, void **ret_request)
{
    json_t *json = text ? json_loads(text, JSON_ALLOW_NUL, NULL) : NULL;
    qn_err_t err = qn_method_read(&qn_methods[method], json, arena, ret_request);
    json_decref(json);
    return err;
}

static void test_method_every_example_is_a_request_of_its_method(void **state)
{
    (void)state;
    for (size_t i = 1; i < QN_METHOD_COUNT; i++) {
        qn_arena_t arena;
        void *request;
        qn_arena_init(&arena, 0);
        if (read_text((qn_method_id_t)i, qn_methods[i].example, &arena, &request))
            fail_msg("%s: %s", qn_methods[i].name, qn_err_text());
        assert_int_equal(qn_method_requests[qn_methods[i].request], i);
        assert_true(qn_method_replies[qn_methods[i].reply]);
        assert_ptr_equal(qn_method_find(qn_methods[i].service, qn_methods[i].verb, strlen(qn_methods[i].verb)),
                         &qn_methods[i]);
        qn_arena_fini(&arena);
    }
}

static void test_method_defaults_are_the_schemas_when_nothing_is_said(void **state)
{
    (void)state;
    static const char *const empty[] = {NULL, "{}", "{\"limit\":null}"};
    for (size_t i = 0; i < 3; i++) {
        qn_arena_t arena;
        void *request;
        qn_arena_init(&arena, 0);
        assert_int_equal(read_text(QN_METHOD_SCHEDULER_QUEUE, empty[i], &arena, &request), QN_OK);
        assert_int_equal(((qn_scheduler_queue_t *)request)->limit, 256);
        qn_arena_fini(&arena);
    }
}

static void test_method_bad_member_is_named(void **state)
{
    (void)state;
    static const struct {
        const char *text, *place, *words;
    } cases[] = {
        {"{\"limit\":0}", "limit", "limit: 0 is below the minimum 1"},
        {"{\"limit\":4097}", "limit", "above the maximum 4096"},
        {"{\"limit\":1.5}", "limit", "wants an integer, not a real number"},
        {"{\"limti\":1}", "limti", "did you mean \"limit\""},
        {"{\"head\":{}}", "head", "unknown member"},
        {"{\"offset\":4294967296}", "offset", "outside 0 to 4294967295"},
        {"[]", "", "wants an object, not an array"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        qn_arena_t arena;
        void *request;
        qn_arena_init(&arena, 0);
        assert_int_equal(read_text(QN_METHOD_SCHEDULER_QUEUE, cases[i].text, &arena, &request), QN_ERR_INVALID);
        assert_string_equal(qn_wire_error_place(), cases[i].place);
        if (!strstr(qn_err_text(), cases[i].words)) fail_msg("%s: %s", cases[i].text, qn_err_text());
        qn_arena_fini(&arena);
    }
}

/* Members of the JSON are exactly those of the schema, and agree with the wire's own JSON where that has them. */
static void test_method_json_shows_every_member_of_every_reply(void **state)
{
    (void)state;
    for (size_t i = 1; i < QN_METHOD_COUNT; i++) {
        qn_arena_t arena;
        qn_arena_init(&arena, 0);
        const qn_wire_type_t *type = qn_wire_type(qn_methods[i].reply);
        const void *reply = example_message(type, &arena);
        reply_buffer_t out = {0};
        json_writer_t writer = json_writer_on(&out);
        method_json_write(type, reply, &writer);
        json_t *json = json_loadb(out.data, out.bytes, JSON_REJECT_DUPLICATES, NULL);
        json_t *schema = json_loads(qn_methods[i].reply_schema, 0, NULL), *value;
        const char *name;
        assert_int_equal(json_object_size(json), json_object_size(json_object_get(schema, "properties")));
        json_object_foreach(json_object_get(schema, "properties"), name, value)
        {
            if (!json_object_get(json, name)) fail_msg("%s: no %s", type->name, name);
        }
        assert_null(json_object_get(json, "head"));
        assert_true(method_reply_began_ns(type, reply) > 0);
        json_decref(schema);
        json_decref(json);
        reply_buffer_fini(&out);
        qn_arena_fini(&arena);
    }
}

static void test_method_json_absent_things_have_their_forms(void **state)
{
    (void)state;
    qn_scheduler_explain_reply_t reply = {.policy = qn_text("p")};
    reply_buffer_t out = {0};
    json_writer_t writer = json_writer_on(&out);
    method_json_write(qn_wire_type(QN_MESSAGE_SCHEDULER_EXPLAIN_REPLY), &reply, &writer);
    qn_memory_lookup_reply_t share = {.share = NAN};
    method_json_write(qn_wire_type(QN_MESSAGE_MEMORY_LOOKUP_REPLY), &share, &writer);
    reply_buffer_append(&out, "", 1);
    assert_string_equal(out.data, "{\"policy\":\"p\",\"sequence\":null,\"why\":null,\"decisions\":[]},"
                                  "{\"tokens\":0,\"cached_tokens\":0,\"share\":null,\"blocks\":[]}");
    reply_buffer_fini(&out);
}

static void test_method_examples_fit_the_model(void **state)
{
    (void)state;
    served_model_t tiny = {.id = "tiny", .vocab_size = 10, .layers = 1, .heads = 1};
    for (size_t i = 1; i < QN_METHOD_COUNT; i++) {
        for (int text = 0; text < 2; text++) {
            tiny.has_text = text;
            json_t *example = example_for(&qn_methods[i], &tiny);
            bool needs = qn_methods[i].needs_text || strstr(qn_methods[i].example, "\"text\"");
            assert_true((example == NULL) == (needs && !text));
            size_t index;
            json_t *id;
            json_array_foreach(json_object_get(example, "ids"), index, id) assert_true(json_integer_value(id) < 10);
            json_decref(example);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_method_every_example_is_a_request_of_its_method),
        cmocka_unit_test(test_method_defaults_are_the_schemas_when_nothing_is_said),
        cmocka_unit_test(test_method_bad_member_is_named),
        cmocka_unit_test(test_method_json_shows_every_member_of_every_reply),
        cmocka_unit_test(test_method_json_absent_things_have_their_forms),
        cmocka_unit_test(test_method_examples_fit_the_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
