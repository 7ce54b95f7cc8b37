/* libFuzzer target: any bytes as the body of /v1/completions and of /generate. What is accepted must obey the limits
 * that the rest of the frontend relies on; what is refused must say so in valid JSON. Seeds:
 * tests/fuzz/seeds/http_json. */
#include <jansson.h>
#include <math.h>
#include <string.h>

#include "common/assert.h"
#include "services/frontend/request/generation.h"

static void check_prompts(const generation_t *generation, const generation_limits_t *limits)
{
    QN_ASSERT(generation->prompt_count >= 1 && generation->prompt_count <= QN_PROMPTS_MAX);
    for (uint32_t i = 0; i < generation->prompt_count; i++) {
        const generation_prompt_t *prompt = &generation->prompts[i];
        QN_ASSERT((prompt->text.data != NULL) != (prompt->ids != NULL));
        QN_ASSERT(!prompt->ids || prompt->id_count >= 1);
        for (uint32_t j = 0; j < prompt->id_count; j++)
            QN_ASSERT(prompt->ids[j] < limits->vocab_size);
        if (prompt->text.data) QN_ASSERT(prompt->text.data[prompt->text.bytes] == '\0');
    }
}

static void check(const generation_t *generation, const generation_limits_t *limits)
{
    check_prompts(generation, limits);
    QN_ASSERT(generation->n >= 1 && generation->best_of >= generation->n && generation->best_of <= QN_CHOICES_MAX);
    QN_ASSERT((uint64_t)generation->best_of * generation->prompt_count <= limits->requests_max);
    QN_ASSERT((generation->max_tokens >= 1) != generation->discard_output &&
              generation->max_tokens <= QN_PROMPT_TOKENS_MAX);
    QN_ASSERT(generation->min_tokens <= generation->max_tokens);
    QN_ASSERT(generation->temperature >= 0 && generation->temperature <= 100);
    QN_ASSERT(generation->top_p >= 0 && generation->top_p <= 1 && generation->min_p >= 0 && generation->min_p <= 1);
    QN_ASSERT(generation->repetition_penalty >= 0.0099f && generation->repetition_penalty <= 100);
    QN_ASSERT(fabsf(generation->presence_penalty) <= 2 && fabsf(generation->frequency_penalty) <= 2);
    QN_ASSERT(generation->logprobs >= -1 && generation->logprobs <= QN_TOP_LOGPROBS_MAX);
    QN_ASSERT(generation->prompt_logprobs >= -1 && generation->prompt_logprobs <= QN_TOP_LOGPROBS_MAX);
    QN_ASSERT(generation->stop_count <= QN_STOP_STRINGS_MAX && generation->stop_id_count <= QN_STOP_IDS_MAX);
    for (uint32_t i = 0; i < generation->stop_count; i++)
        QN_ASSERT(generation->stop[i].bytes >= 1 && generation->stop[i].bytes <= QN_STOP_STRING_BYTES_MAX);
    QN_ASSERT(generation->bias_count <= QN_LOGIT_BIAS_MAX);
    QN_ASSERT(!generation->request_id || strlen(generation->request_id) <= QN_CLIENT_REQUEST_MAX);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    const generation_limits_t limits = {.model = "default",
                                        .vocab_size = 1000,
                                        .requests_max = 256,
                                        .defaults = QN_GENERATION_CONFIG_NEUTRAL};
    for (int api = GENERATION_COMPLETIONS; api <= GENERATION_BATCH; api++) {
        generation_t generation = {0};
        http_error_t error = {0};
        if (generation_parse((generation_api_t)api, (const char *)data, bytes, &limits, &generation, &error)) {
            check(&generation, &limits);
            generation_fini(&generation);
            continue;
        }
        QN_ASSERT(error.status == 400 || error.status == 404);
        reply_buffer_t out = {0};
        http_error_write(&error, &out);
        json_t *reply = json_loadb(out.data, out.bytes, JSON_REJECT_DUPLICATES, NULL);
        QN_ASSERT(reply);
        json_decref(reply);
        reply_buffer_fini(&out);
    }
    return 0;
}
