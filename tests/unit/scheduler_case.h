/* A scheduler with a ledger in plain memory, for unit tests: requests are submitted, grants and results made by hand.
 */
#ifndef QN_TESTS_UNIT_SCHEDULER_CASE_H
#define QN_TESTS_UNIT_SCHEDULER_CASE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "services/scheduler/scheduler.h"

typedef struct {
    uint8_t *mapping;
    scheduler_t *scheduler;
    scheduler_options_t options;
    plan_t plan;
    plan_traffic_t traffic;
    uint32_t next_block;
    uint64_t now_ns;
} case_t;

static const request_client_t case_client = {.epoch = 3, .service = 2};

/* block_tokens 4, 64 blocks, max_model_len 64 */
static inline void case_open(case_t *self, scheduler_options_t options)
{
    size_t bytes = LEDGER_BYTES_FOR(64);
    ledger_replay_t replay;
    *self = (case_t){.mapping = calloc(1, bytes), .options = options, .now_ns = 1000};
    self->options.ledger_base = self->mapping;
    self->options.ledger_bytes = bytes;
    if (self->options.policy == NULL) self->options.policy = "fcfs";
    assert_int_equal(scheduler_create(&self->options, self->now_ns, &self->scheduler, &replay), QN_OK);
}

static inline void case_up(case_t *self)
{
    scheduler_model_t model = {
        .vocab_size = 1000, .max_model_len = 64, .block_tokens = 4, .block_count = 64, .eos_ids = {2}, .eos_count = 1};
    assert_int_equal(scheduler_memory_up(self->scheduler, &model), QN_OK);
    scheduler_compute_up(self->scheduler);
}

static inline void case_close(case_t *self)
{
    assert_null(scheduler_check(self->scheduler));
    scheduler_destroy(&self->scheduler);
    free(self->mapping);
}

static inline scheduler_submit_outcome_t case_submit_as(case_t *self, uint64_t id, uint32_t prompt_tokens,
                                                        request_sampling_t sampling, admission_refusal_t *ret_refusal)
{
    uint32_t ids[64];
    for (uint32_t i = 0; i < prompt_tokens; i++)
        ids[i] = 10 + i;
    if (sampling.repetition_penalty == 0) sampling.repetition_penalty = 1;
    ledger_submission_t submission = {
        .id = id, .client = case_client, .sampling = sampling, .prompt_ids = ids, .prompt_tokens = prompt_tokens};
    return scheduler_submit(self->scheduler, &submission, self->now_ns, ret_refusal);
}

static inline void case_submit(case_t *self, uint64_t id, uint32_t prompt_tokens, uint32_t max_tokens)
{
    admission_refusal_t refusal;
    request_sampling_t sampling = {.max_tokens = max_tokens};
    assert_int_equal(case_submit_as(self, id, prompt_tokens, sampling, &refusal), SCHEDULER_ACCEPTED);
}

static inline const request_t *case_request(const case_t *self, uint64_t id)
{
    return ledger_find(scheduler_ledger(self->scheduler), id);
}

static inline const sequence_t *case_sequence(const case_t *self, uint64_t id)
{
    return &scheduler_batch(self->scheduler)->sequences[case_request(self, id)->index];
}

static inline bool case_plan(case_t *self)
{
    bool built = false;
    scheduler_plan(self->scheduler, ++self->now_ns, &self->plan, &built);
    return built;
}

static inline void case_traffic(case_t *self) { scheduler_traffic(self->scheduler, ++self->now_ns, &self->traffic); }

static inline void case_grant(case_t *self, const plan_lease_t *lease, uint64_t batch, batch_grant_outcome_t outcome,
                              uint32_t cached_tokens)
{
    const sequence_t *sequence = case_sequence(self, lease->sequence);
    uint32_t blocks[16], needed = (lease->tokens + 3) / 4;
    batch_grant_t grant = {.lease_batch = batch, .sequence = lease->sequence, .outcome = outcome, .blocks = blocks};
    if (outcome == BATCH_GRANTED) {
        grant.first_block = sequence->block_count;
        grant.block_count = needed > sequence->block_count ? needed - sequence->block_count : 0;
        grant.cached_tokens = cached_tokens;
        for (uint32_t i = 0; i < grant.block_count; i++)
            blocks[i] = self->next_block++ % 64;
    }
    assert_int_equal(scheduler_grant(self->scheduler, &grant, 1, 0), QN_OK);
}

/* Asks, and grants all that is asked. */
static inline void case_lease_all(case_t *self)
{
    case_traffic(self);
    for (uint32_t i = 0; i < self->traffic.lease_count; i++)
        case_grant(self, &self->traffic.leases[i], self->traffic.lease_batch, BATCH_GRANTED, 0);
}

/* Scores of all prompt tokens that the step runs: minus their position. Returns how many. */
static inline uint32_t case_scores(const case_t *self, const batch_step_t *step, batch_prompt_token_t *ret_scores)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < step->run_count; i++) {
        const batch_run_t *run = &step->runs[i];
        const request_t *request = scheduler_batch(self->scheduler)->sequences[run->index].request;
        if (!request->sampling.prompt_logprobs) continue;
        for (uint32_t at = run->position; at < run->position + run->token_count && at < request->prompt_tokens; at++)
            if (at > 0)
                ret_scores[count++] = (batch_prompt_token_t){.request = request->id,
                                                             .position = at,
                                                             .id = request->ids[at],
                                                             .logprob = -(float)at};
    }
    return count;
}

/* The result of the oldest step; every sample gives `id`. */
static inline qn_err_t case_result(case_t *self, uint32_t id, bool stopped)
{
    const batch_t *batch = scheduler_batch(self->scheduler);
    const batch_step_t *step = &batch->steps[0];
    batch_token_t tokens[64];
    batch_prompt_token_t scores[64];
    uint32_t count = 0;
    for (uint32_t i = 0; i < step->run_count; i++)
        if (step->runs[i].sample) {
            const request_t *request = batch->sequences[step->runs[i].index].request;
            tokens[count++] = (batch_token_t){.request = request->id,
                                              .slot = step->runs[i].slot,
                                              .position = step->runs[i].position + step->runs[i].token_count,
                                              .id = id,
                                              .stopped = stopped,
                                              .masked = request->stopped};
        }
    batch_result_t result = {.step = step->step,
                             .begin_ns = 1,
                             .end_ns = 2,
                             .tokens = tokens,
                             .token_count = count,
                             .prompt = scores,
                             .prompt_count = case_scores(self, step, scores)};
    const batch_step_t *done;
    return scheduler_result(self->scheduler, &result, ++self->now_ns, &done);
}

#endif
