/* What is this?      The rules a request must keep to be servable by this model and this pool.
 * State owned:       none.
 * Must never:        let a token id through that is outside the vocabulary, or a sequence that can never fit.
 * Read next:         scheduler.c, the caller. */
#include "services/scheduler/planner/admission.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common/name_hash.h"

void admission_refuse(admission_refusal_t *ret_refusal, uint16_t status, uint32_t retry_after_ms, const char *param,
                      const char *format, ...)
{
    ret_refusal->status = status;
    ret_refusal->retry_after_ms = retry_after_ms;
    ret_refusal->param = param;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(ret_refusal->text, sizeof ret_refusal->text, format, arguments);
    va_end(arguments);
}

/* Index of the first id outside the vocabulary, or `count`. */
static uint32_t first_outside(const uint32_t *ids, uint32_t count, uint32_t vocab_size)
{
    uint32_t i = 0;
    while (i < count && ids[i] < vocab_size)
        i++;
    return i;
}

static bool check_ids(const admission_model_t *model, const ledger_submission_t *submission,
                      admission_refusal_t *ret_refusal)
{
    uint32_t at = first_outside(submission->prompt_ids, submission->prompt_tokens, model->vocab_size);
    if (at < submission->prompt_tokens) {
        admission_refuse(ret_refusal, 400, 0, "prompt", "token id %u at position %u is outside the vocabulary of %u",
                         submission->prompt_ids[at], at, model->vocab_size);
        return false;
    }
    at = first_outside(submission->stop_ids, submission->stop_count, model->vocab_size);
    if (at < submission->stop_count) {
        admission_refuse(ret_refusal, 400, 0, "stop_token_ids", "token id %u is outside the vocabulary of %u",
                         submission->stop_ids[at], model->vocab_size);
        return false;
    }
    for (uint32_t i = 0; i < submission->bias_count; i++)
        if (submission->bias[i].id >= model->vocab_size) {
            admission_refuse(ret_refusal, 400, 0, "logit_bias", "token id %u is outside the vocabulary of %u",
                             submission->bias[i].id, model->vocab_size);
            return false;
        }
    at = first_outside(submission->logprob_ids, submission->logprob_id_count, model->vocab_size);
    if (at < submission->logprob_id_count) {
        admission_refuse(ret_refusal, 400, 0, "logprob_token_ids", "token id %u is outside the vocabulary of %u",
                         submission->logprob_ids[at], model->vocab_size);
        return false;
    }
    for (uint32_t i = 0; i < submission->bad_id_count; i++)
        if ((submission->bad_ids[i] & ~QN_SEQUENCE_END) >= model->vocab_size) {
            admission_refuse(ret_refusal, 400, 0, "bad_words", "token id %u is outside the vocabulary of %u",
                             submission->bad_ids[i] & ~QN_SEQUENCE_END, model->vocab_size);
            return false;
        }
    return true;
}

static bool check_model(const admission_model_t *model, const ledger_submission_t *submission,
                        admission_refusal_t *ret_refusal)
{
    if (submission->model == 0 || model->model == NULL || model->model[0] == '\0' ||
        submission->model == qn_name_hash(qn_text(model->model)))
        return true;
    admission_refuse(ret_refusal, 404, 0, "model", "the model that was asked for is not served here; \"%.128s\" is",
                     model->model);
    return false;
}

/* What a probe names must be there, and a mask's scores must fit what one thread holds of a row. */
static bool check_probe(const admission_model_t *model, const ledger_submission_t *submission, uint32_t generated_max,
                        admission_refusal_t *ret_refusal)
{
    const char *param;
    if (qn_probe_is_empty(&submission->probe)) return true;
    if (qn_probe_check(&submission->probe, &model->probes, &param) < 0) {
        admission_refuse(ret_refusal, 400, 0, strcmp(param, "masks") == 0 ? "sparsity_mask" : "patches", "%s",
                         qn_err_text());
        return false;
    }
    if (submission->probe.mask_count == 0 || submission->prompt_tokens + generated_max <= QN_MASK_POSITIONS_MAX)
        return true;
    admission_refuse(ret_refusal, 400, 0, "sparsity_mask",
                     "a mask is for %u tokens of prompt and answer together; this asks for %u: lower max_tokens",
                     QN_MASK_POSITIONS_MAX, submission->prompt_tokens + generated_max);
    return false;
}

bool admission_check(const admission_model_t *model, const ledger_submission_t *submission, uint32_t *ret_generated_max,
                     admission_refusal_t *ret_refusal)
{
    uint32_t prompt = submission->prompt_tokens;
    uint32_t most = submission->sampling.max_tokens;
    if (!check_model(model, submission, ret_refusal) || !check_ids(model, submission, ret_refusal)) return false;
    if (prompt > model->max_model_len - (most > 0)) {
        admission_refuse(ret_refusal, 400, 0, "prompt",
                         "the prompt has %u tokens, but the model's maximum length is %u tokens, at least one of them "
                         "generated; shorten the prompt",
                         prompt, model->max_model_len);
        return false;
    }
    if (prompt > model->pool_tokens) {
        admission_refuse(ret_refusal, 400, 0, "prompt",
                         "the prompt has %u tokens and can never fit the KV cache of %u tokens; shorten the prompt or "
                         "raise memory.kv_bytes",
                         prompt, model->pool_tokens);
        return false;
    }
    uint32_t by_length = model->max_model_len - prompt;
    uint32_t by_pool = model->pool_tokens - prompt + 1; /* the last token is never written to the cache */
    most = most < by_length ? most : by_length;
    *ret_generated_max = most < by_pool ? most : by_pool;
    return check_probe(model, submission, *ret_generated_max, ret_refusal);
}
