/* What is this?      What a StepResult changes: tokens enter the ledger, positions are proven, ends are found.
 * State owned:       none beside the batch's; see batch.h.
 * Must never:        take anything from a result that does not fit its plan in every token.
 * Read next:         batch.c (the life around it), ledger.c (where tokens end up). */
#include <math.h>
#include <string.h>

#include "services/scheduler/batch/batch.h"

static qn_err_t misfit(const batch_result_t *result, const char *what, uint64_t request)
{
    return qn_fail(QN_ERR_PEER, "the result of step %llu does not fit its plan: %s (request %llu)",
                   (unsigned long long)result->step, what, (unsigned long long)request);
}

/* Every run that sampled has exactly one token, and every token such a run. */
static qn_err_t match_tokens(batch_t *batch, const batch_step_t *step, const batch_result_t *result)
{
    uint32_t samples = 0;
    memset(batch->run_of_slot, 0xff, batch->slot_count * sizeof *batch->run_of_slot);
    for (uint32_t i = 0; i < step->run_count; i++)
        if (step->runs[i].sample) {
            batch->run_of_slot[step->runs[i].slot] = i;
            samples++;
        }
    if (samples != result->token_count) return misfit(result, "it gives another number of tokens than runs sample", 0);
    for (uint32_t i = 0; i < result->token_count; i++) {
        const batch_token_t *token = &result->tokens[i];
        uint32_t run = token->slot < batch->slot_count ? batch->run_of_slot[token->slot] : UINT32_MAX;
        if (run == UINT32_MAX) return misfit(result, "a token of a slot that did not sample", token->request);
        batch->run_of_slot[token->slot] = UINT32_MAX; /* once only */
        const batch_run_t *planned = &step->runs[run];
        const request_t *request = batch->sequences[planned->index].request;
        if (request->id != token->request ||
            (!token->masked && token->position != planned->position + planned->token_count))
            return misfit(result, "a token of another request or position", token->request);
        if (request->finish == REQUEST_UNFINISHED && token->masked)
            return misfit(result, "a live sequence was masked", token->request);
        if (request->finish == REQUEST_UNFINISHED && token->position != request_known_tokens(request))
            return misfit(result, "a token out of order", token->request);
        if (!token->masked && (token->id >= batch->vocab_size || isnan(token->logprob)))
            return misfit(result, "a token that is not in the vocabulary, or has no log-probability", token->request);
    }
    return QN_OK;
}

/* The run of this step that ran the request, or NULL. */
static const batch_run_t *run_of(const batch_t *batch, const batch_step_t *step, const request_t *request)
{
    uint32_t at = batch->run_of_request[request->index];
    return at < step->run_count && step->runs[at].index == request->index ? &step->runs[at] : NULL;
}

/* One past the last prompt position that a run gives a score for. */
static uint32_t scores_end(const batch_run_t *run, const request_t *request)
{
    uint32_t end = run->position + run->token_count;
    return end < request->prompt_tokens ? end : request->prompt_tokens;
}

static bool *seen_of(const batch_t *batch, const batch_run_t *run, uint32_t position)
{
    return &batch->seen[run->first + position - run->position];
}

/* Every score is of a position that its request ran in this step, and of the token that stands there; none comes twice. */
static qn_err_t match_score(const batch_t *batch, const batch_step_t *step, const batch_result_t *result,
                            const batch_prompt_token_t *token)
{
    const request_t *request = ledger_find(batch->ledger, token->request);
    const batch_run_t *run = request != NULL ? run_of(batch, step, request) : NULL;
    if (run == NULL || request->prompt.logprobs == NULL)
        return misfit(result, "a prompt score nobody asked for", token->request);
    if (token->position == 0 || token->position < run->position || token->position >= scores_end(run, request))
        return misfit(result, "a prompt score of a position that was not run", token->request);
    if (token->id != request->ids[token->position] || isnan(token->logprob))
        return misfit(result, "a prompt score of another token, or none", token->request);
    bool *seen = seen_of(batch, run, token->position);
    if (*seen) return misfit(result, "a prompt score twice", token->request);
    *seen = true;
    return QN_OK;
}

/* In whatever order they come, the scores of a prompt grow to where its run ended. */
static qn_err_t match_prompt(batch_t *batch, const batch_step_t *step, const batch_result_t *result)
{
    memset(batch->seen, 0, step->token_count * sizeof *batch->seen);
    for (uint32_t i = 0; i < step->run_count; i++)
        batch->run_of_request[step->runs[i].index] = i;
    for (uint32_t i = 0; i < result->prompt_count; i++) {
        qn_err_t err = match_score(batch, step, result, &result->prompt[i]);
        if (err < 0) return err;
    }
    for (uint32_t i = 0; i < step->run_count; i++) {
        const batch_run_t *run = &step->runs[i];
        const request_t *request = batch->sequences[run->index].request;
        if (request->prompt.logprobs == NULL || request->finish != REQUEST_UNFINISHED) continue;
        for (uint32_t at = request->prompt.known; at < scores_end(run, request); at++)
            if (at < run->position || !*seen_of(batch, run, at))
                return misfit(result, "a gap in prompt scores", request->id);
    }
    return QN_OK;
}

static void prove(batch_t *batch, const batch_step_t *step, const batch_result_t *result)
{
    uint32_t next = 0; /* tokens come by slot like runs do, or are searched for */
    for (uint32_t i = 0; i < step->run_count; i++) {
        const batch_run_t *run = &step->runs[i];
        bool masked = false;
        if (run->sample) {
            if (next >= result->token_count || result->tokens[next].slot != run->slot)
                for (next = 0; result->tokens[next].slot != run->slot;)
                    next++;
            masked = result->tokens[next++].masked;
        }
        if (masked)
            batch->masked_count++;
        else
            batch->sequences[run->index].proven = run->position + run->token_count;
    }
}

static void note_change(batch_t *batch, uint32_t index) { batch->changed[batch->changed_count++] = index; }

static void stamp_first_token(batch_t *batch, request_t *request, const batch_result_t *result)
{
    request_timeline_t timeline = request->timeline;
    timeline.executed_ns = result->begin_ns;
    timeline.computed_ns = result->end_ns;
    timeline.resulted_ns = result->taken_ns;
    ledger_stamp(batch->ledger, request, &timeline);
}

static void take_tokens(batch_t *batch, const batch_result_t *result, const request_alternative_t **top)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < result->token_count; i++) {
        const batch_token_t *token = &result->tokens[i];
        request_t *request = ledger_find(batch->ledger, token->request);
        const request_alternative_t *alternatives = *top;
        *top += token->top_count;
        if (request->finish != REQUEST_UNFINISHED) continue;
        if (request->generated_tokens == 0) stamp_first_token(batch, request, result);
        batch->tokens[count++] = (ledger_token_t){.index = request->index,
                                                  .position = token->position,
                                                  .id = token->id,
                                                  .logprob = token->logprob,
                                                  .stopped = token->stopped,
                                                  .top_count = token->top_count,
                                                  .top = alternatives};
        note_change(batch, request->index);
    }
    ledger_append(batch->ledger, batch->tokens, count);
}

static void take_score(request_t *request, const batch_prompt_token_t *token, const request_alternative_t *top)
{
    uint32_t wanted = request_alternatives(request);
    uint32_t kept = token->top_count < wanted ? token->top_count : wanted;
    request->prompt.logprobs[token->position] = token->logprob;
    request->prompt.top_counts[token->position] = (uint8_t)kept;
    if (kept > 0) memcpy(request->prompt.top + (size_t)token->position * wanted, top, kept * sizeof *top);
}

static void take_prompt(batch_t *batch, const batch_step_t *step, const batch_result_t *result,
                        const request_alternative_t *top)
{
    for (uint32_t i = 0; i < result->prompt_count; i++) {
        const batch_prompt_token_t *token = &result->prompt[i];
        request_t *request = ledger_find(batch->ledger, token->request);
        if (token->position >= request->prompt.known && request->finish == REQUEST_UNFINISHED)
            take_score(request, token, top); /* else its prompt is run again */
        top += token->top_count;
    }
    for (uint32_t i = 0; i < step->run_count; i++) {
        request_t *request = batch->sequences[step->runs[i].index].request;
        if (request->prompt.logprobs == NULL || request->finish != REQUEST_UNFINISHED) continue;
        uint32_t end = scores_end(&step->runs[i], request);
        if (request->prompt.known < end) request->prompt.known = end;
    }
}

/* Requests whose prompt scores may have grown, and ends: by stop id, by length, by having nothing left to run. */
static void find_ends(batch_t *batch, const batch_step_t *step)
{
    for (uint32_t i = 0; i < step->run_count; i++) {
        const sequence_t *sequence = &batch->sequences[step->runs[i].index];
        request_t *request = sequence->request;
        if (request->finish != REQUEST_UNFINISHED) continue;
        bool ended = (request->stopped || request->generated_tokens == request->generated_max) &&
                     sequence->proven >= request_run_limit(request);
        if (ended || request->sampling.prompt_logprobs) note_change(batch, request->index);
        if (!ended) continue;
        ledger_finish(batch->ledger, request, request->stopped ? REQUEST_STOP : REQUEST_LENGTH);
        batch_end(batch, request->index);
    }
}

static bool alternatives_fit(const batch_result_t *result)
{
    uint64_t top = 0;
    for (uint32_t i = 0; i < result->token_count; i++)
        top += result->tokens[i].top_count;
    for (uint32_t i = 0; i < result->prompt_count; i++)
        top += result->prompt[i].top_count;
    return top == result->top_count;
}

/* Takes the oldest step out of the ring into batch.last; the buffers of runs change hands. */
static void pop_step(batch_t *batch)
{
    batch_run_t *runs = batch->last.runs;
    batch->last = batch->steps[0];
    for (uint32_t i = 1; i < batch->step_count; i++)
        batch->steps[i - 1] = batch->steps[i];
    batch->step_count--;
    batch->steps[batch->step_count].runs = runs;
}

qn_err_t batch_result(batch_t *batch, const batch_result_t *result)
{
    batch->changed_count = batch->masked_count = 0;
    batch->last.step = 0;
    if (result->step <= batch->void_step) return QN_OK;
    if (batch->step_count == 0 || result->step != batch->steps[0].step)
        return misfit(result, "it is not the oldest plan without a result", 0);
    if (result->end_ns < result->begin_ns) return misfit(result, "it ends before it begins", 0);
    if (!alternatives_fit(result)) return misfit(result, "its alternatives do not add up", 0);
    qn_err_t err = match_tokens(batch, &batch->steps[0], result);
    if (err == QN_OK) err = match_prompt(batch, &batch->steps[0], result);
    if (err < 0) return err;
    pop_step(batch);
    prove(batch, &batch->last, result);
    const request_alternative_t *top = result->top;
    take_tokens(batch, result, &top);
    take_prompt(batch, &batch->last, result, top);
    find_ends(batch, &batch->last);
    return QN_OK;
}
