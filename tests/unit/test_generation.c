/* Request bodies: what is accepted and as what, what is refused and with which field named. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "services/frontend/request/generation.h"

static const generation_limits_t limits = {.model = "default",
                                           .vocab_size = 1000,
                                           .max_model_len = 2048,
                                           .requests_max = 256,
                                           .defaults = {.temperature = 1, .top_p = 1, .repetition_penalty = 1}};

static generation_t accept(generation_api_t api, const char *body)
{
    generation_t generation;
    http_error_t error = {0};
    if (!generation_parse(api, body, strlen(body), &limits, &generation, &error))
        fail_msg("%s: %s", body, error.message);
    return generation;
}

typedef struct {
    const char *body, *param;
    int status;
} refusal_t;

static void refuse_all(generation_api_t api, const refusal_t *cases, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        generation_t generation;
        http_error_t error = {0};
        if (generation_parse(api, cases[i].body, strlen(cases[i].body), &limits, &generation, &error))
            fail_msg("accepted: %s", cases[i].body);
        if (error.status != cases[i].status || strcmp(error.param, cases[i].param) != 0)
            fail_msg("%s: %d \"%s\" (%s)", cases[i].body, error.status, error.param, error.message);
        assert_true(strlen(error.message) > 10);
    }
}

static void test_completions_minimal_has_openai_defaults(void **state)
{
    (void)state;
    generation_t generation = accept(GENERATION_COMPLETIONS, "{\"model\":\"default\",\"prompt\":\"hi\"}");
    assert_int_equal(generation.prompt_count, 1);
    assert_memory_equal(generation.prompts[0].text.data, "hi", 3);
    assert_int_equal(generation.max_tokens, 16);
    assert_true(generation.temperature == 1 && generation.top_p == 1 && generation.min_p == 0);
    assert_true(generation.repetition_penalty == 1 && generation.presence_penalty == 0);
    assert_int_equal(generation.n, 1);
    assert_int_equal(generation.best_of, 1);
    assert_int_equal(generation.logprobs, GENERATION_NONE);
    assert_false(generation.stream || generation.echo || generation.seed_given || generation.is_list);
    assert_true(generation.add_special && generation.skip_special);
    generation_fini(&generation);
}

static void test_generation_takes_the_models_defaults_where_the_request_is_silent(void **state)
{
    (void)state;
    const generation_limits_t of_model = {
        .vocab_size = 1000,
        .requests_max = 256,
        .default_max_tokens = 77,
        .defaults = {.temperature = 0.5f, .top_p = 0.75f, .min_p = 0.25f, .repetition_penalty = 1.5f, .top_k = 20}};
    const char *bodies[] = {"{\"prompt\":\"hi\"}",
                            "{\"prompt\":\"hi\",\"temperature\":0,\"top_p\":1,\"min_p\":0,\"repetition_penalty\":1,"
                            "\"top_k\":-1,\"max_tokens\":5}"};
    for (int given = 0; given < 2; given++) {
        generation_t generation;
        http_error_t error = {0};
        assert_true(generation_parse(GENERATION_COMPLETIONS, bodies[given], strlen(bodies[given]), &of_model,
                                     &generation, &error));
        assert_true(generation.temperature == (given ? 0 : 0.5f) && generation.top_p == (given ? 1 : 0.75f));
        assert_true(generation.min_p == (given ? 0 : 0.25f) && generation.repetition_penalty == (given ? 1 : 1.5f));
        assert_int_equal(generation.top_k, given ? 0 : 20);
        assert_int_equal(generation.max_tokens, given ? 5 : 77);
        generation_fini(&generation);
    }
}

static void test_completions_every_field_is_taken(void **state)
{
    (void)state;
    generation_t generation = accept(
        GENERATION_COMPLETIONS,
        "{\"prompt\":[[1,2],[3]],\"max_tokens\":7,\"temperature\":0.5,\"top_p\":0.25,\"top_k\":40,\"min_p\":0.125,"
        "\"n\":2,\"best_of\":3,\"seed\":-1,\"stop\":[\"a\",\"bb\"],\"stop_token_ids\":[5,6],\"logprobs\":2,\"echo\":"
        "true,"
        "\"presence_penalty\":-2,\"frequency_penalty\":2,\"repetition_penalty\":1.5,\"logit_bias\":{\"7\":-100,\"8\":1."
        "5},"
        "\"ignore_eos\":true,\"min_tokens\":3,\"skip_special_tokens\":false,\"add_special_tokens\":false,"
        "\"prompt_logprobs\":1,\"priority\":-5,\"return_token_ids\":true,\"truncate_prompt_tokens\":1,"
        "\"cache_salt\":\"s\",\"user\":\"u\",\"deadline_ms\":250,\"adapter\":\"x\",\"request_id\":\"r\",\"include_stop_str_in_output\":true,\"unknown\":{}}");
    assert_true(generation.is_list);
    assert_int_equal(generation.prompt_count, 2);
    assert_int_equal(generation.prompts[0].id_count, 1); /* truncated: the last one is kept */
    assert_int_equal(generation.prompts[0].ids[0], 2);
    assert_int_equal(generation.prompts[1].ids[0], 3);
    assert_int_equal(generation.max_tokens, 7);
    assert_true(generation.temperature == 0.5f && generation.top_p == 0.25f && generation.min_p == 0.125f);
    assert_int_equal(generation.top_k, 40);
    assert_int_equal(generation.n, 2);
    assert_int_equal(generation.best_of, 3);
    assert_true(generation.seed_given && generation.seed == UINT64_MAX);
    assert_int_equal(generation.stop_count, 2);
    assert_string_equal(generation.stop[1].data, "bb");
    assert_int_equal(generation.stop_id_count, 2);
    assert_int_equal(generation.stop_ids[1], 6);
    assert_int_equal(generation.logprobs, 2);
    assert_int_equal(generation.prompt_logprobs, 2); /* echo with logprobs covers the prompt */
    assert_true(generation.show_prompt_logprobs && generation.echo && generation.include_stop);
    assert_int_equal(generation.bias_count, 2);
    assert_true(generation.ignore_eos && !generation.skip_special && !generation.add_special);
    assert_int_equal(generation.min_tokens, 3);
    assert_int_equal(generation.priority, -5);
    assert_int_equal(generation.cache_salt.bytes, 1);
    assert_memory_equal(generation.user.data, "u", 2);
    assert_memory_equal(generation.adapter.data, "x", 2);
    assert_int_equal(generation.deadline_ms, 250);
    assert_string_equal(generation.request_id, "r");
    generation_fini(&generation);
}

static void test_completions_neutral_and_edge_values_pass(void **state)
{
    (void)state;
    static const char *const bodies[] = {
        "{\"prompt\":\"\"}",
        "{\"prompt\":[\"a\",\"b\"]}",
        "{\"prompt\":[0,999]}",
        "{\"prompt\":\"a\",\"max_tokens\":16.0}",
        "{\"prompt\":\"a\",\"model\":null}",
        "{\"prompt\":\"a\",\"model\":\"\"}",
        "{\"prompt\":\"a\",\"suffix\":\"\"}",
        "{\"prompt\":\"a\",\"tools\":[]}",
        "{\"prompt\":\"a\",\"tool_choice\":\"none\"}",
        "{\"prompt\":\"a\",\"response_format\":{\"type\":\"text\"}}",
        "{\"prompt\":\"a\",\"use_beam_search\":false}",
        "{\"prompt\":\"a\",\"top_k\":-1}",
        "{\"prompt\":\"a\",\"top_k\":0}",
        "{\"prompt\":\"a\",\"temperature\":0}",
        "{\"prompt\":\"a\",\"temperature\":100}",
        "{\"prompt\":\"a\",\"logprobs\":0}",
        "{\"prompt\":\"a\",\"logprobs\":20}",
        "{\"prompt\":\"a\",\"n\":128}",
        "{\"prompt\":\"a\",\"stop\":null}",
        "{\"prompt\":\"a\",\"stop\":[]}",
        "{\"prompt\":\"a\",\"stream\":true,\"n\":2,\"best_of\":2}",
        "{\"prompt\":\"a\",\"logit_bias\":{}}",
        "{\"prompt\":\"nul \\u0000 in text\"}",
        "{\"prompt\":\"\\ud83d\\ude00\"}",
        "{\"prompt\":\"a\",\"max_tokens\":1048576}",
        "{\"prompt\":\"a\",\"stream\":true,\"stream_options\":{\"continuous_usage_stats\":true}}",
    };
    for (size_t i = 0; i < sizeof bodies / sizeof bodies[0]; i++) {
        generation_t generation = accept(GENERATION_COMPLETIONS, bodies[i]);
        generation_fini(&generation);
    }
}

static void test_completions_bad_fields_are_named(void **state)
{
    (void)state;
    static const refusal_t cases[] = {
        {"", "", 400},
        {"{", "", 400},
        {"[]", "", 400},
        {"1", "", 400},
        {"{\"prompt\":\"a\"} x", "", 400},
        {"{\"prompt\":\"a\",\"prompt\":\"b\"}", "prompt", 400}, /* duplicate member */
        {"{\"prompt\":\"\\ud800\"}", "prompt", 400},            /* lone surrogate */
        {"{\"prompt\":\"\xff\"}", "prompt", 400},               /* not UTF-8 */
        {"{\"prompt\":\"a\",\"seed\":99999999999999999999999}", "seed", 400},
        {"{\"prompt\":\"a\",\"temperature\":1e999}", "temperature", 400},
        {"{}", "prompt", 400},
        {"{\"prompt\":null}", "prompt", 400},
        {"{\"prompt\":[]}", "prompt", 400},
        {"{\"prompt\":{}}", "prompt", 400},
        {"{\"prompt\":5}", "prompt", 400},
        {"{\"prompt\":[[]]}", "prompt", 400},
        {"{\"prompt\":[\"a\",1]}", "prompt", 400},
        {"{\"prompt\":[1,\"a\"]}", "prompt", 400},
        {"{\"prompt\":[1,-1]}", "prompt", 400},
        {"{\"prompt\":[1000]}", "prompt", 400},
        {"{\"prompt\":[1,[2]]}", "prompt", 400},
        {"{\"prompt\":[[1],2]}", "prompt", 400},
        {"{\"prompt\":[null]}", "prompt", 400},
        {"{\"prompt\":\"a\",\"model\":\"other\"}", "model", 404},
        {"{\"prompt\":\"a\",\"model\":7}", "model", 400},
        {"{\"prompt\":\"a\",\"max_tokens\":-1}", "max_tokens", 400},
        {"{\"prompt\":\"a\",\"max_tokens\":1048577}", "max_tokens", 400},
        {"{\"prompt\":\"a\",\"max_tokens\":1.5}", "max_tokens", 400},
        {"{\"prompt\":\"a\",\"max_tokens\":\"16\"}", "max_tokens", 400},
        {"{\"prompt\":\"a\",\"max_tokens\":true}", "max_tokens", 400},
        {"{\"prompt\":\"a\",\"temperature\":-0.1}", "temperature", 400},
        {"{\"prompt\":\"a\",\"temperature\":100.5}", "temperature", 400},
        {"{\"prompt\":\"a\",\"temperature\":\"hot\"}", "temperature", 400},
        {"{\"prompt\":\"a\",\"top_p\":1.1}", "top_p", 400},
        {"{\"prompt\":\"a\",\"min_p\":-1}", "min_p", 400},
        {"{\"prompt\":\"a\",\"top_k\":-2}", "top_k", 400},
        {"{\"prompt\":\"a\",\"n\":0}", "n", 400},
        {"{\"prompt\":\"a\",\"n\":129}", "n", 400},
        {"{\"prompt\":\"a\",\"n\":3,\"best_of\":2}", "best_of", 400},
        {"{\"prompt\":\"a\",\"best_of\":2,\"stream\":true}", "best_of", 400},
        {"{\"prompt\":\"a\",\"stream\":1}", "stream", 400},
        {"{\"prompt\":\"a\",\"echo\":\"yes\"}", "echo", 400},
        {"{\"prompt\":\"a\",\"stream_options\":{}}", "stream_options", 400},
        {"{\"prompt\":\"a\",\"stream\":true,\"stream_options\":1}", "stream_options", 400},
        {"{\"prompt\":\"a\",\"stream\":true,\"stream_options\":{\"include_usage\":1}}", "stream_options.include_usage",
         400},
        {"{\"prompt\":\"a\",\"logprobs\":21}", "logprobs", 400},
        {"{\"prompt\":\"a\",\"logprobs\":-1}", "logprobs", 400},
        {"{\"prompt\":\"a\",\"logprobs\":true}", "logprobs", 400},
        {"{\"prompt\":\"a\",\"presence_penalty\":2.1}", "presence_penalty", 400},
        {"{\"prompt\":\"a\",\"repetition_penalty\":0}", "repetition_penalty", 400},
        {"{\"prompt\":\"a\",\"stop\":\"\"}", "stop", 400},
        {"{\"prompt\":\"a\",\"stop\":[1]}", "stop", 400},
        {"{\"prompt\":\"a\",\"stop\":[\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\",\"10\",\"11\",\"12\","
         "\"13\",\"14\","
         "\"15\",\"16\",\"17\"]}",
         "stop", 400},
        {"{\"prompt\":\"a\",\"stop_token_ids\":[-1]}", "stop_token_ids", 400},
        {"{\"prompt\":\"a\",\"stop_token_ids\":1}", "stop_token_ids", 400},
        {"{\"prompt\":\"a\",\"logit_bias\":[]}", "logit_bias", 400},
        {"{\"prompt\":\"a\",\"logit_bias\":{\"x\":1}}", "logit_bias", 400},
        {"{\"prompt\":\"a\",\"logit_bias\":{\"-1\":1}}", "logit_bias", 400},
        {"{\"prompt\":\"a\",\"logit_bias\":{\"1000\":1}}", "logit_bias", 400},
        {"{\"prompt\":\"a\",\"logit_bias\":{\"1\":101}}", "logit_bias", 400},
        {"{\"prompt\":\"a\",\"logit_bias\":{\"1\":\"x\"}}", "logit_bias", 400},
        {"{\"prompt\":\"a\",\"min_tokens\":17}", "min_tokens", 400},
        {"{\"prompt\":\"a\",\"suffix\":\"x\"}", "suffix", 400},
        {"{\"prompt\":\"a\",\"tools\":[{}]}", "tools", 400},
        {"{\"prompt\":\"a\",\"response_format\":{\"type\":\"json_object\"}}", "response_format", 400},
        {"{\"prompt\":\"a\",\"use_beam_search\":true}", "use_beam_search", 400},
        {"{\"prompt\":\"a\",\"cache_salt\":\"\"}", "cache_salt", 400},
        {"{\"prompt\":\"a\",\"user\":7}", "user", 400},
        {"{\"prompt\":\"a\",\"adapter\":[]}", "adapter", 400},
        {"{\"prompt\":\"a\",\"deadline_ms\":0}", "deadline_ms", 400},
        {"{\"prompt\":\"a\",\"deadline_ms\":86400001}", "deadline_ms", 400},
        {"{\"prompt\":\"a\",\"deadline_ms\":1.5}", "deadline_ms", 400},
        {"{\"prompt\":\"a\",\"request_id\":\"a\\r\\nx: y\"}", "request_id", 400},
        {"{\"prompt\":\"a\",\"truncate_prompt_tokens\":0}", "truncate_prompt_tokens", 400},
        {"{\"prompt\":\"a\",\"priority\":2147483648}", "priority", 400},
        {"{\"prompt\":[\"a\",\"b\",\"c\"],\"n\":100}", "prompt", 400}, /* 300 sequences, 256 allowed */
        {"{\"prompt\":\"a\",\"stream\":true,\"prompt_logprobs\":1}", "prompt_logprobs", 400},
    };
    refuse_all(GENERATION_COMPLETIONS, cases, sizeof cases / sizeof cases[0]);
}

static void test_completions_message_names_value_and_range(void **state)
{
    (void)state;
    generation_t generation;
    http_error_t error;
    const char *body = "{\"prompt\":\"a\",\"max_tokens\":-3}";
    assert_false(generation_parse(GENERATION_COMPLETIONS, body, strlen(body), &limits, &generation, &error));
    assert_string_equal(error.message, "max_tokens is -3; it must be an integer from 0 to 1048576.");
}

static void test_completions_zero_tokens_generate_nothing(void **state)
{
    (void)state;
    generation_t generation = accept(GENERATION_COMPLETIONS, "{\"prompt\":\"a\",\"max_tokens\":0,\"echo\":true}");
    assert_true(generation.discard_output);
    assert_int_equal(generation.max_tokens, 0);
    generation_fini(&generation);
}

static void test_completions_deep_nesting_is_refused(void **state)
{
    (void)state;
    for (int depth = 64; depth <= 100000; depth += depth == 64 ? 1 : 99935) {
        char *body = malloc((size_t)depth * 2 + 32);
        int used = sprintf(body, "{\"x\":");
        for (int i = 1; i < depth; i++)
            body[used++] = '[';
        for (int i = 1; i < depth; i++)
            body[used++] = ']';
        used += sprintf(body + used, ",\"prompt\":\"a\"}");
        generation_t generation = {0};
        http_error_t error = {0};
        bool good = generation_parse(GENERATION_COMPLETIONS, body, (size_t)used, &limits, &generation, &error);
        assert_int_equal(good, depth == 64);
        if (!good) assert_int_equal(error.status, 400);
        generation_fini(&generation);
        free(body);
    }
}

static void test_generate_minimal_has_sglang_defaults(void **state)
{
    (void)state;
    generation_t generation = accept(GENERATION_GENERATE, "{\"text\":\"hi\"}");
    assert_int_equal(generation.max_tokens, 128);
    assert_true(generation.temperature == 1);
    assert_int_equal(generation.logprobs, GENERATION_NONE);
    generation_fini(&generation);
}

static void test_generate_every_field_is_taken(void **state)
{
    (void)state;
    generation_t generation =
        accept(GENERATION_GENERATE,
               "{\"input_ids\":[[1,2],[3]],\"rid\":[\"a\",\"b\"],\"stream\":true,\"return_logprob\":true,"
               "\"logprob_start_len\":0,"
               "\"top_logprobs_num\":3,\"return_text_in_logprobs\":false,\"priority\":2,"
               "\"sampling_params\":{\"max_new_tokens\":5,"
               "\"min_new_tokens\":1,\"temperature\":0,\"top_p\":0.5,\"top_k\":1073741824,\"min_p\":0.5,"
               "\"n\":2,\"stop\":\"x\","
               "\"stop_token_ids\":[4],\"ignore_eos\":true,\"sampling_seed\":9,\"no_stop_trim\":true,"
               "\"skip_special_tokens\":false}}");
    assert_int_equal(generation.prompt_count, 2);
    assert_string_equal(generation.prompts[1].rid, "b");
    assert_int_equal(generation.logprobs, 3);
    assert_int_equal(generation.prompt_logprobs, 3);
    assert_int_equal(generation.logprob_start, 0);
    assert_false(generation.text_in_logprobs);
    assert_int_equal(generation.max_tokens, 5);
    assert_int_equal(generation.top_k, 0);
    assert_int_equal(generation.best_of, 2);
    assert_true(generation.stream && generation.ignore_eos && generation.include_stop && !generation.skip_special);
    assert_int_equal(generation.seed, 9);
    generation_fini(&generation);
}

static void test_generate_bad_fields_are_named(void **state)
{
    (void)state;
    static const refusal_t cases[] = {
        {"{}", "text", 400},
        {"{\"text\":\"a\",\"input_ids\":[1]}", "text", 400},
        {"{\"text\":5}", "text", 400},
        {"{\"text\":[]}", "text", 400},
        {"{\"input_ids\":\"a\"}", "input_ids", 400},
        {"{\"input_ids\":[]}", "input_ids", 400},
        {"{\"input_ids\":[\"a\"]}", "input_ids", 400},
        {"{\"text\":\"a\",\"sampling_params\":[]}", "sampling_params", 400},
        {"{\"text\":\"a\",\"sampling_params\":{\"temperature\":-1}}", "sampling_params.temperature", 400},
        {"{\"text\":\"a\",\"sampling_params\":{\"stop\":7}}", "sampling_params.stop", 400},
        {"{\"text\":\"a\",\"sampling_params\":{\"regex\":\"a+\"}}", "sampling_params.regex", 400},
        {"{\"text\":\"a\",\"sampling_params\":{\"min_new_tokens\":500}}", "sampling_params.min_new_tokens", 400},
        {"{\"text\":\"a\",\"top_logprobs_num\":21}", "top_logprobs_num", 400},
        {"{\"text\":\"a\",\"return_logprob\":[true]}", "return_logprob", 400},
        {"{\"text\":\"a\",\"rid\":5}", "rid", 400},
        {"{\"text\":[\"a\",\"b\"],\"rid\":[\"x\"]}", "rid", 400},
        {"{\"text\":\"a\",\"image_data\":\"x\"}", "image_data", 400},
        {"{\"text\":\"a\",\"model\":\"other\"}", "model", 404},
    };
    refuse_all(GENERATION_GENERATE, cases, sizeof cases / sizeof cases[0]);
}

static void test_generate_lists_give_each_prompt_its_own(void **state)
{
    (void)state;
    generation_t generation =
        accept(GENERATION_GENERATE,
               "{\"text\":[\"a\",\"b\"],\"sampling_params\":[{\"temperature\":0.5,\"n\":2,\"stop\":\"x\"},"
               "{\"max_new_tokens\":3,\"n\":2,\"seed\":9}],\"return_logprob\":[false,true],"
               "\"logprob_start_len\":[-1,0],\"top_logprobs_num\":2}");
    const generation_t *first = generation_for(&generation, 0), *second = generation_for(&generation, 1);
    assert_true(first->temperature == 0.5f && second->temperature == 1);
    assert_true(first->stop_count == 1 && second->stop_count == 0);
    assert_int_equal(second->max_tokens, 3);
    assert_true(!first->seed_given && second->seed_given);
    assert_int_equal(first->logprobs, GENERATION_NONE);
    assert_int_equal(second->logprobs, 2);
    assert_int_equal(second->prompt_logprobs, 2);
    assert_int_equal(generation.best_of, 2);
    generation_fini(&generation);
    static const refusal_t cases[] = {
        {"{\"text\":[\"a\",\"b\"],\"sampling_params\":[{}]}", "sampling_params", 400},
        {"{\"text\":[\"a\",\"b\"],\"sampling_params\":[{},{\"top_p\":2}]}", "sampling_params[1].top_p", 400},
        {"{\"text\":[\"a\",\"b\"],\"sampling_params\":[{\"n\":2},{}]}", "sampling_params", 400},
        {"{\"text\":[\"a\",\"b\"],\"top_logprobs_num\":[1,99],\"return_logprob\":true}", "top_logprobs_num", 400},
        {"{\"text\":[\"a\",\"b\"],\"sampling_params\":[{},5]}", "sampling_params[1]", 400},
    };
    refuse_all(GENERATION_GENERATE, cases, sizeof cases / sizeof cases[0]);
}

static void test_plain_form_has_its_own_defaults_and_fields_at_the_top(void **state)
{
    (void)state;
    generation_t generation = accept(GENERATION_GENERATE, "{\"prompt\":\"Hello\"}");
    assert_int_equal(generation.max_tokens, 50);
    assert_true(generation.temperature == 0.7f && !generation.is_list);
    generation_fini(&generation);
    generation = accept(GENERATION_GENERATE,
                        "{\"prompt\":[1,2],\"max_tokens\":3,\"min_tokens\":1,\"temperature\":0,\"stop\":[\"a\",\"b\"],"
                        "\"seed\":4,\"top_k\":5,\"return_logprob\":true,\"top_logprobs_num\":2,\"stream\":true}");
    assert_true(generation.prompts[0].id_count == 2 && generation.max_tokens == 3 && generation.min_tokens == 1);
    assert_true(generation.temperature == 0 && generation.stop_count == 2 && generation.seed == 4);
    assert_true(generation.top_k == 5 && generation.logprobs == 2 && generation.stream);
    assert_int_equal(generation.unknown.count, 0);
    generation_fini(&generation);
    generation = accept(GENERATION_GENERATE, "{\"prompt\":\"a\",\"max_tokens\":3,\"sampling_params\":{\"top_p\":0.5}}");
    assert_true(generation.top_p == 0.5f && generation.max_tokens == 3);
    generation_fini(&generation);
    static const refusal_t cases[] = {
        {"{\"prompt\":5}", "prompt", 400},
        {"{\"prompt\":[]}", "prompt", 400},
        {"{\"prompt\":null}", "prompt", 400},
        {"{\"prompt\":[\"a\",1]}", "prompt", 400},
        {"{\"prompt\":\"a\",\"text\":\"b\",\"input_ids\":[1]}", "text", 400},
        {"{\"prompt\":\"a\",\"temperature\":-1}", "temperature", 400},
        {"{\"prompt\":\"a\",\"max_tokens\":-1}", "max_tokens", 400},
        {"{\"prompt\":\"a\",\"min_tokens\":51}", "min_tokens", 400},
        {"{\"prompt\":\"a\",\"stop\":7}", "stop", 400},
        {"{\"prompt\":\"a\",\"regex\":\"a+\"}", "regex", 400},
        {"{\"prompt\":\"a\",\"kernels\":{\"matmul\":\"reference\"}}", "kernels", 400},
    };
    refuse_all(GENERATION_GENERATE, cases, sizeof cases / sizeof cases[0]);
}

static void test_batch_takes_prompts_with_shared_or_own_fields(void **state)
{
    (void)state;
    generation_t generation =
        accept(GENERATION_BATCH,
               "{\"prompts\":[\"a\",\"b\"],\"max_tokens\":9,\"sampling_params\":[{},{\"max_new_tokens\":2}]}");
    assert_true(generation.prompt_count == 2 && generation.is_list);
    assert_int_equal(generation_for(&generation, 0)->max_tokens, 9);
    assert_int_equal(generation_for(&generation, 1)->max_tokens, 2);
    assert_true(generation_for(&generation, 1)->temperature == 0.7f);
    generation_fini(&generation);
    generation = accept(GENERATION_BATCH, "{\"prompts\":[[1,2]]}");
    assert_true(generation.is_list && generation.max_tokens == 50);
    generation_fini(&generation);
    generation = accept(GENERATION_BATCH, "{\"prompts\":[\"a\"],\"prompt\":\"b\"}");
    assert_int_equal(generation.unknown.count, 1);
    generation_fini(&generation);
    static const refusal_t cases[] = {
        {"{}", "prompts", 400},
        {"{\"prompts\":\"a\"}", "prompts", 400},
        {"{\"prompts\":[]}", "prompts", 400},
        {"{\"prompts\":[1,2]}", "prompts", 400},
        {"{\"prompts\":[\"a\",[1]]}", "prompts", 400},
        {"{\"prompts\":[\"a\",\"b\"],\"sampling_params\":[{}]}", "sampling_params", 400},
        {"{\"prompts\":[\"a\"],\"top_p\":2}", "top_p", 400},
    };
    refuse_all(GENERATION_BATCH, cases, sizeof cases / sizeof cases[0]);
}

static void test_generation_allowed_ids_become_the_bias(void **state)
{
    (void)state;
    generation_t generation = accept(GENERATION_COMPLETIONS,
                                     "{\"prompt\":\"a\",\"allowed_token_ids\":[5,7,5],\"logit_bias\":{\"7\":2,\"9\":3},"
                                     "\"bad_words\":[\"x\",\" y\"]}");
    assert_true(generation.allow_only);
    assert_int_equal(generation.bias_count, 2);
    assert_true(generation.bias[0].id == 5 && generation.bias[0].bias == 0);
    assert_true(generation.bias[1].id == 7 && generation.bias[1].bias == 2);
    assert_int_equal(generation.bad_word_count, 2);
    assert_string_equal(generation.bad_words[1].data, " y");
    generation_fini(&generation);
    static const refusal_t cases[] = {
        {"{\"prompt\":\"a\",\"allowed_token_ids\":[]}", "allowed_token_ids", 400},
        {"{\"prompt\":\"a\",\"allowed_token_ids\":[1000]}", "allowed_token_ids", 400},
        {"{\"prompt\":\"a\",\"allowed_token_ids\":5}", "allowed_token_ids", 400},
        {"{\"prompt\":\"a\",\"allowed_token_ids\":[5],\"stop_token_ids\":[5],\"min_tokens\":1}", "allowed_token_ids",
         400},
        {"{\"prompt\":\"a\",\"bad_words\":\"x\"}", "bad_words", 400},
        {"{\"prompt\":\"a\",\"bad_words\":[\"\"]}", "bad_words", 400},
    };
    refuse_all(GENERATION_COMPLETIONS, cases, sizeof cases / sizeof cases[0]);
}

static void test_generation_logprob_ids_are_one_list_or_one_per_prompt(void **state)
{
    (void)state;
    generation_t generation =
        accept(GENERATION_COMPLETIONS, "{\"prompt\":\"a\",\"logprobs\":0,\"logprob_token_ids\":[7,5]}");
    assert_int_equal(generation.logprob_id_count, 2);
    assert_true(generation.logprob_ids[0] == 7 && generation.logprob_ids[1] == 5);
    generation_fini(&generation);
    generation = accept(GENERATION_GENERATE, "{\"text\":[\"a\",\"b\",\"c\"],\"return_logprob\":[true,true,false],"
                                             "\"token_ids_logprob\":[[5,6],null,[7]]}");
    assert_int_equal(generation_for(&generation, 0)->logprob_id_count, 2);
    assert_int_equal(generation_for(&generation, 0)->logprob_ids[1], 6);
    assert_int_equal(generation_for(&generation, 1)->logprob_id_count, 0);
    assert_int_equal(generation_for(&generation, 2)->logprob_id_count, 0); /* without return_logprob, as the others */
    generation_fini(&generation);
    generation =
        accept(GENERATION_GENERATE, "{\"text\":[\"a\",\"b\"],\"return_logprob\":true,\"token_ids_logprob\":[5,6]}");
    assert_int_equal(generation_for(&generation, 1)->logprob_id_count, 2);
    generation_fini(&generation);
    static const refusal_t openai[] = {
        {"{\"prompt\":\"a\",\"logprob_token_ids\":[5]}", "logprob_token_ids", 400},
        {"{\"prompt\":\"a\",\"logprobs\":1,\"logprob_token_ids\":5}", "logprob_token_ids", 400},
        {"{\"prompt\":\"a\",\"logprobs\":1,\"logprob_token_ids\":[1000]}", "logprob_token_ids", 400},
        {"{\"prompt\":\"a\",\"logprobs\":1,\"max_tokens\":0,\"logprob_token_ids\":[5]}", "logprob_token_ids", 400},
        {"{\"prompt\":\"a\",\"logprobs\":1,\"token_ids_logprob\":[5]}", "token_ids_logprob", 400},
    };
    refuse_all(GENERATION_COMPLETIONS, openai, sizeof openai / sizeof openai[0]);
    static const refusal_t sglang[] = {
        {"{\"text\":\"a\",\"token_ids_logprob\":[[5]]}", "token_ids_logprob", 400},
        {"{\"text\":[\"a\",\"b\"],\"token_ids_logprob\":[[5]]}", "token_ids_logprob", 400},
        {"{\"text\":[\"a\",\"b\"],\"token_ids_logprob\":[[5],[[6]]]}", "token_ids_logprob", 400},
        {"{\"text\":\"a\",\"token_ids_logprob\":[1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9,1,2,3]}", "token_ids_logprob",
         400},
        {"{\"text\":\"a\",\"token_ids_logprob\":\"5\"}", "token_ids_logprob", 400},
        {"{\"text\":\"a\",\"logprob_token_ids\":[5]}", "logprob_token_ids", 400},
        {"{\"text\":\"a\",\"sampling_params\":{\"token_ids_logprob\":[5]}}", "sampling_params.token_ids_logprob", 400},
    };
    refuse_all(GENERATION_GENERATE, sglang, sizeof sglang / sizeof sglang[0]);
}

static void test_generation_unknown_fields_are_named(void **state)
{
    (void)state;
    generation_t generation = accept(GENERATION_COMPLETIONS, "{\"prompt\":\"a\",\"temprature\":1,\"b,\\u00e9\":2}");
    assert_int_equal(generation.unknown.count, 2);
    assert_non_null(strstr(generation.unknown.names, "temprature"));
    assert_non_null(strstr(generation.unknown.names, "b???"));
    generation_fini(&generation);
    generation = accept(GENERATION_GENERATE, "{\"text\":\"a\",\"sampling_params\":{\"foo\":1}}");
    assert_string_equal(generation.unknown.names, "sampling_params.foo");
    generation_fini(&generation);
    generation_limits_t strict = limits;
    http_error_t error = {0};
    const char *body = "{\"prompt\":\"a\",\"foo\":1}";
    strict.strict = true;
    assert_false(generation_parse(GENERATION_COMPLETIONS, body, strlen(body), &strict, &generation, &error));
    assert_string_equal(error.param, "foo");
    assert_int_equal(error.status, 400);
}

static void test_generation_known_and_not_done_is_refused_unless_neutral(void **state)
{
    (void)state;
    static const char *const refused[] = {"tools\":[{}]",
                                          "suffix\":\"x\"",
                                          "length_penalty\":2",
                                          "lora_path\":\"x\"",
                                          "response_format\":{\"type\":\"json_object\"}",
                                          "guided_json\":{\"a\":1}",
                                          "use_beam_search\":true",
                                          "logits_processors\":[1]",
                                          "audio\":{\"a\":1}"};
    static const char *const neutral[] = {"tools\":[]",
                                          "suffix\":null",
                                          "length_penalty\":1.0",
                                          "tool_choice\":\"none\"",
                                          "response_format\":{\"type\":\"text\"}",
                                          "use_beam_search\":false",
                                          "spaces_between_special_tokens\":true"};
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        char body[128], param[64];
        http_error_t error = {0};
        generation_t generation;
        snprintf(body, sizeof body, "{\"prompt\":\"a\",\"%s}", refused[i]);
        snprintf(param, sizeof param, "%.*s", (int)strcspn(refused[i], "\""), refused[i]);
        assert_false(generation_parse(GENERATION_COMPLETIONS, body, strlen(body), &limits, &generation, &error));
        assert_string_equal(error.param, param);
        assert_non_null(strstr(error.message, "not supported"));
    }
    for (size_t i = 0; i < sizeof neutral / sizeof neutral[0]; i++) {
        char body[128];
        snprintf(body, sizeof body, "{\"prompt\":\"a\",\"%s}", neutral[i]);
        generation_t generation = accept(GENERATION_COMPLETIONS, body);
        assert_int_equal(generation.unknown.count, 0);
        generation_fini(&generation);
    }
}

static void test_generation_broken_json_names_the_member(void **state)
{
    (void)state;
    static const refusal_t cases[] = {
        {"{\"prompt\":\"a\",\"temperature\":NaN}", "temperature", 400},
        {"{\"prompt\":\"a\",\"n\":99999999999999999999}", "n", 400},
        {"{\"prompt\":\"a\",\"top_p\":1e999}", "top_p", 400},
        {"{\"prompt\":\"\\ud800\"}", "prompt", 400},
        {"{\"prompt\":\"a\",\"n\":1,\"n\":2}", "n", 400},
        {"{\"stream_options\":{\"include_usage\":Infinity}}", "stream_options.include_usage", 400},
        {"[1,2", "", 400},
    };
    refuse_all(GENERATION_COMPLETIONS, cases, sizeof cases / sizeof cases[0]);
}

static void test_generation_amplification_is_bounded(void **state)
{
    (void)state;
    size_t bytes = 1u << 20;
    char *body = malloc(bytes + 64);
    generation_t generation;
    http_error_t error = {0};
    int head = sprintf(body, "{\"n\":100,\"prompt\":\"");
    memset(body + head, 'a', bytes);
    strcpy(body + head + bytes, "\"}");
    assert_false(generation_parse(GENERATION_COMPLETIONS, body, strlen(body), &limits, &generation, &error));
    assert_string_equal(error.param, "n");
    head = sprintf(body, "{\"prompt_logprobs\":20,\"prompt\":\"");
    memset(body + head, 'a', bytes);
    strcpy(body + head + bytes, "\"}");
    generation_limits_t open = limits;
    open.max_model_len = 0;
    assert_false(generation_parse(GENERATION_COMPLETIONS, body, strlen(body), &open, &generation, &error));
    assert_string_equal(error.param, "prompt_logprobs");
    free(body);
}

static void test_generation_default_max_tokens_of_config_wins(void **state)
{
    (void)state;
    generation_limits_t set = limits;
    set.default_max_tokens = 33;
    for (int api = GENERATION_COMPLETIONS; api <= GENERATION_BATCH; api++) {
        const char *body = api == GENERATION_COMPLETIONS ? "{\"prompt\":\"a\"}"
                           : api == GENERATION_GENERATE  ? "{\"text\":\"a\"}"
                                                         : "{\"prompts\":[\"a\"]}";
        generation_t generation;
        http_error_t error;
        assert_true(generation_parse((generation_api_t)api, body, strlen(body), &set, &generation, &error));
        assert_int_equal(generation.max_tokens, 33);
        generation_fini(&generation);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_completions_minimal_has_openai_defaults),
        cmocka_unit_test(test_generation_takes_the_models_defaults_where_the_request_is_silent),
        cmocka_unit_test(test_completions_every_field_is_taken),
        cmocka_unit_test(test_completions_neutral_and_edge_values_pass),
        cmocka_unit_test(test_completions_bad_fields_are_named),
        cmocka_unit_test(test_completions_message_names_value_and_range),
        cmocka_unit_test(test_completions_zero_tokens_generate_nothing),
        cmocka_unit_test(test_completions_deep_nesting_is_refused),
        cmocka_unit_test(test_generate_minimal_has_sglang_defaults),
        cmocka_unit_test(test_generate_every_field_is_taken),
        cmocka_unit_test(test_generate_bad_fields_are_named),
        cmocka_unit_test(test_generation_default_max_tokens_of_config_wins),
        cmocka_unit_test(test_generate_lists_give_each_prompt_its_own),
        cmocka_unit_test(test_plain_form_has_its_own_defaults_and_fields_at_the_top),
        cmocka_unit_test(test_batch_takes_prompts_with_shared_or_own_fields),
        cmocka_unit_test(test_generation_logprob_ids_are_one_list_or_one_per_prompt),
        cmocka_unit_test(test_generation_allowed_ids_become_the_bias),
        cmocka_unit_test(test_generation_unknown_fields_are_named),
        cmocka_unit_test(test_generation_known_and_not_done_is_refused_unless_neutral),
        cmocka_unit_test(test_generation_broken_json_names_the_member),
        cmocka_unit_test(test_generation_amplification_is_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
