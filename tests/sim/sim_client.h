/* Requests and the clients that ask for them: what each must be told in the end is computed beforehand, alone, from the
 * model; what arrives is compared token by token. */
#ifndef QN_TESTS_SIM_SIM_CLIENT_H
#define QN_TESTS_SIM_SIM_CLIENT_H

#include "services/scheduler/scheduler.h"
#include "tests/sim/sim_base.h"

#define SIM_REQUESTS_MAX 64u
#define SIM_CLIENTS 2u

typedef enum { SIM_FUTURE, SIM_OPEN, SIM_ENDED, SIM_WAS_REFUSED, SIM_ABANDONED, SIM_QUARANTINED } sim_request_state_t;

typedef struct {
    uint64_t id;
    uint32_t client;                        /* which of SIM_CLIENTS */
    uint32_t client_epoch, scheduler_epoch; /* the lives of both when it asked last */
    sim_request_state_t state;
    ledger_submission_t submission;
    uint32_t prompt[SIM_TOKENS_MAX];
    uint32_t stop_ids[4];
    request_bias_t bias[2];
    bool cancelled, must_be_refused;
    uint64_t abandoned_ns;                /* its client died and does not ask again; 0 = no */
    uint32_t expected[SIM_TOKENS_MAX];    /* prompt and generated */
    uint64_t expected_kv[SIM_TOKENS_MAX]; /* of each token that is run */
    uint32_t expected_count;              /* generated */
    request_finish_t expected_finish;
    uint32_t got_count;  /* generated tokens that arrived */
    uint32_t got_scores; /* prompt scores that arrived: positions [1, this) */
} sim_request_t;

/* A message on its way to a client: a deep copy. */
typedef struct {
    delivery_message_t message;
    uint64_t scores_request;
    const float *score_logprobs;
    const request_alternative_t *score_top;
    uint32_t score_top_stride;
    struct {
        uint64_t request;
        uint32_t generated;
        request_finish_t finish;
    } *ends;
} sim_delivery_t;

static inline sim_delivery_t *sim_delivery_copy(const delivery_message_t *message)
{
    sim_delivery_t *copy = calloc(1, sizeof *copy);
    SIM_CHECK(copy != NULL, "out of memory");
    copy->message = *message;
    copy->message.tokens = sim_copy(message->tokens, message->token_count, sizeof *message->tokens);
    copy->message.top = sim_copy(message->top, message->top_count, sizeof *message->top);
    copy->ends = calloc(message->end_count + 1, sizeof *copy->ends);
    for (uint32_t i = 0; i < message->end_count; i++) {
        copy->ends[i].request = message->ends[i]->id;
        copy->ends[i].generated = message->ends[i]->generated_tokens;
        copy->ends[i].finish = message->ends[i]->finish;
    }
    if (message->scores != NULL) {
        const request_t *request = message->scores;
        size_t stride = request->sampling.top_logprobs;
        copy->scores_request = request->id;
        copy->score_top_stride = (uint32_t)stride;
        copy->score_logprobs = sim_copy(request->prompt.logprobs, message->scores_end, sizeof(float));
        copy->score_top = sim_copy(request->prompt.top, message->scores_end * stride, sizeof *request->prompt.top);
    }
    return copy;
}

static inline void sim_delivery_free(sim_delivery_t *copy)
{
    free((void *)copy->message.tokens);
    free((void *)copy->message.top);
    free((void *)copy->score_logprobs);
    free((void *)copy->score_top);
    free(copy->ends);
    free(copy);
}

/* ---- what must come ---- */

static inline bool sim_stops_at(const sim_request_t *request, uint32_t id, uint32_t generated, const uint32_t *eos,
                                uint32_t eos_count)
{
    if (generated < request->submission.sampling.min_tokens) return false;
    for (uint32_t i = 0; i < request->submission.stop_count; i++)
        if (request->stop_ids[i] == id) return true;
    for (uint32_t i = 0; !request->submission.sampling.ignore_eos && i < eos_count; i++)
        if (eos[i] == id) return true;
    return false;
}

/* Runs the model on the request alone. `most`: generated tokens at most. */
static inline void sim_predict(sim_request_t *request, uint32_t most, const uint32_t *eos, uint32_t eos_count)
{
    uint32_t prompt = request->submission.prompt_tokens;
    memcpy(request->expected, request->prompt, prompt * sizeof *request->prompt);
    request->expected_count = 0;
    request->expected_finish = REQUEST_LENGTH;
    for (uint32_t i = 0; i < prompt; i++)
        request->expected_kv[i] = sim_kv(request->expected_kv, i, request->expected[i]);
    while (request->expected_count < most) {
        uint32_t at = prompt + request->expected_count;
        uint32_t id = sim_sample(request->expected_kv[at - 1], request->submission.sampling.seed);
        request->expected[at] = id;
        request->expected_kv[at] = sim_kv(request->expected_kv, at, id);
        bool stops = sim_stops_at(request, id, request->expected_count, eos, eos_count);
        request->expected_count++;
        if (stops) {
            request->expected_finish = REQUEST_STOP;
            return;
        }
    }
}

/* ---- what comes ---- */

static inline void sim_take_token(sim_request_t *request, const delivery_token_t *token,
                                  const request_alternative_t *top)
{
    uint32_t at = request->submission.prompt_tokens + token->position;
    SIM_CHECK(token->position <= request->got_count, "request %llu: token %u comes, %u is next",
              (unsigned long long)request->id, token->position, request->got_count);
    SIM_CHECK(token->position < request->expected_count && token->id == request->expected[at],
              "request %llu: token %u is %u, alone it is %u of %u", (unsigned long long)request->id, token->position,
              token->id, request->expected[at], request->expected_count);
    uint64_t kv = request->expected_kv[at - 1];
    SIM_CHECK(token->logprob == sim_logprob(kv, token->id), "request %llu: token %u has another log-probability",
              (unsigned long long)request->id, token->position);
    for (uint32_t i = 0; i < token->top_count; i++)
        SIM_CHECK(top[i].id == sim_alternative(kv, i), "request %llu: token %u has another alternative %u",
                  (unsigned long long)request->id, token->position, i);
    if (token->position == request->got_count) request->got_count++;
}

static inline void sim_take_scores(sim_request_t *request, const sim_delivery_t *delivery)
{
    const delivery_message_t *message = &delivery->message;
    SIM_CHECK(message->scores_begin >= 1 && message->scores_begin <= request->got_scores,
              "request %llu: scores from %u come, %u is next", (unsigned long long)request->id, message->scores_begin,
              request->got_scores);
    for (uint32_t at = message->scores_begin; at < message->scores_end; at++) {
        SIM_CHECK(delivery->score_logprobs[at] == sim_logprob(request->expected_kv[at - 1], request->expected[at]),
                  "request %llu: prompt token %u has another score", (unsigned long long)request->id, at);
        for (uint32_t i = 0; i < message->scores_top_count; i++)
            SIM_CHECK(delivery->score_top[at * delivery->score_top_stride + i].id == sim_alternative(at, i),
                      "request %llu: prompt token %u has another alternative", (unsigned long long)request->id, at);
    }
    if (message->scores_end > request->got_scores) request->got_scores = message->scores_end;
}

static inline void sim_take_end(sim_request_t *request, uint32_t generated, request_finish_t finish)
{
    /* One that was cancelled, ended, lost its end with the scheduler, and was cancelled again, ends with fewer. */
    SIM_CHECK(generated == request->got_count || (request->cancelled && generated < request->got_count),
              "request %llu ends with %u tokens, %u came", (unsigned long long)request->id, generated,
              request->got_count);
    bool whole = generated == request->expected_count && finish == request->expected_finish;
    SIM_CHECK(whole || (request->cancelled && finish == REQUEST_CANCELLED),
              "request %llu ends with %u of %u tokens, "
              "finish %d",
              (unsigned long long)request->id, generated, request->expected_count, (int)finish);
    SIM_CHECK(!request->submission.sampling.prompt_logprobs || finish == REQUEST_CANCELLED ||
                  request->got_scores == request->submission.prompt_tokens,
              "request %llu ends with %u of %u prompt scores", (unsigned long long)request->id, request->got_scores,
              request->submission.prompt_tokens);
    request->state = SIM_ENDED;
}

#endif
