/* What is this?      A scheduler in a world of its own: virtual clock, counted blocks, steps whose time is a formula.
 * State owned:       its scheduler, the world's clock and blocks, the record of steps and outcomes.
 * Must never:        touch what serves; look at a clock.
 * Read next:         simulation.h, scheduler.h (what it drives), simulation_summary.c (what comes out). */
#include "services/scheduler/simulation/simulation_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/assert.h"

#define LEDGER_BYTES ((size_t)4 << 30) /* sparse */
#define TURNS_MAX 64                   /* of memory's answers before the next step: it settles in a few */

static const request_client_t client = {.epoch = 1, .service = 2};

/* ---- creation ---- */

static qn_err_t check_requests(const simulation_options_t *options, const simulation_request_t *requests,
                               uint32_t count)
{
    uint64_t generated = 0;
    for (uint32_t i = 0; i < count; i++) {
        const simulation_request_t *one = &requests[i];
        uint64_t tokens = (uint64_t)one->prompt_tokens + one->max_tokens;
        if (one->prompt_tokens < 1 || one->max_tokens < 1 || tokens > QN_PROMPT_TOKENS_MAX)
            return qn_fail(QN_ERR_INVALID,
                           "request %u has %u prompt tokens and %u to generate; 1 of each at least, %u in all", i,
                           one->prompt_tokens, one->max_tokens, QN_PROMPT_TOKENS_MAX);
        if (tokens > (uint64_t)options->block_count * options->block_tokens)
            return qn_fail(QN_ERR_INVALID, "request %u needs %llu tokens of cache, all blocks hold %llu", i,
                           (unsigned long long)tokens,
                           (unsigned long long)options->block_count * options->block_tokens);
        generated += one->max_tokens;
    }
    if (generated <= SIMULATION_TOKENS_MAX) return QN_OK;
    return qn_fail(QN_ERR_INVALID, "the requests generate %llu tokens, a simulation takes %u",
                   (unsigned long long)generated, SIMULATION_TOKENS_MAX);
}

static qn_err_t build(simulation_t *self, const simulation_request_t *requests, uint32_t count)
{
    self->count = count;
    self->requests = calloc(count + 1, sizeof *self->requests);
    self->outcomes = calloc(count + 1, sizeof *self->outcomes);
    self->held = calloc(count + 1, sizeof *self->held);
    self->order = calloc(count + 1, sizeof *self->order);
    self->steps = calloc(self->options.steps_kept + 1, sizeof *self->steps);
    self->ids = calloc(QN_PROMPT_TOKENS_MAX, sizeof *self->ids);
    self->tokens = calloc(self->options.max_sequences, sizeof *self->tokens);
    self->mapping =
        mmap(NULL, LEDGER_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (!self->requests || !self->outcomes || !self->held || !self->order || !self->steps || !self->ids ||
        !self->tokens || self->mapping == MAP_FAILED)
        return qn_fail(QN_ERR_NO_MEMORY, "no memory to simulate %u requests", count);
    if (count > 0) memcpy(self->requests, requests, count * sizeof *requests);
    simulation_sort(self);
    self->free_blocks = self->options.block_count;
    const simulation_options_t *options = &self->options;
    scheduler_options_t scheduler = {
        .planner = {.max_step_tokens = options->max_step_tokens, .prefill_chunk_tokens = options->prefill_chunk_tokens},
        .max_sequences = options->max_sequences,
        .queue_limit = options->queue_limit,
        .policy = options->policy,
        .batching = options->batching,
        .admission = options->admission,
        .policy_dirs = options->policy_dirs,
        .ledger_base = self->mapping,
        .ledger_bytes = LEDGER_BYTES,
        .epoch = 1,
    };
    ledger_replay_t replay;
    return scheduler_create(&scheduler, 0, &self->scheduler, &replay);
}

qn_err_t simulation_create(const simulation_options_t *options, const simulation_request_t *requests, uint32_t count,
                           simulation_t **ret_simulation)
{
    qn_err_t err = options->max_sequences < 1 || options->max_sequences > QN_SLOTS_MAX || options->block_tokens < 1
                       ? qn_fail(QN_ERR_CONFIG, "a simulation has 1 to %d sequences, and blocks of one token at least",
                                 QN_SLOTS_MAX)
                       : check_requests(options, requests, count);
    simulation_t *self = err == QN_OK ? calloc(1, sizeof *self) : NULL;
    if (err < 0) return err;
    if (self == NULL) return qn_fail(QN_ERR_NO_MEMORY, "no memory for a simulation");
    self->options = *options;
    err = build(self, requests, count);
    uint64_t longest = (uint64_t)options->block_count * options->block_tokens;
    scheduler_model_t model = {.vocab_size = 2,
                               .max_model_len =
                                   longest < QN_PROMPT_TOKENS_MAX ? (uint32_t)longest : QN_PROMPT_TOKENS_MAX,
                               .block_tokens = options->block_tokens,
                               .block_count = options->block_count};
    if (err == QN_OK) err = scheduler_memory_up(self->scheduler, &model);
    if (err < 0) {
        simulation_destroy(&self);
        return err;
    }
    scheduler_compute_up(self->scheduler);
    scheduler_client_up(self->scheduler, client);
    scheduler_client_replayed(self->scheduler, client);
    *ret_simulation = self;
    return QN_OK;
}

void simulation_destroy(simulation_t **simulation)
{
    simulation_t *self = *simulation;
    if (self == NULL) return;
    scheduler_destroy(&self->scheduler);
    if (self->mapping != NULL && self->mapping != MAP_FAILED) munmap(self->mapping, LEDGER_BYTES);
    free(self->requests);
    free(self->outcomes);
    free(self->held);
    free(self->order);
    free(self->steps);
    free(self->runs);
    free(self->reasons);
    free(self->ids);
    free(self->tokens);
    free(self);
    *simulation = NULL;
}

/* ---- arrivals ---- */

static void submit(simulation_t *self, uint32_t at)
{
    const simulation_request_t *one = &self->requests[at];
    simulation_outcome_t *outcome = &self->outcomes[at];
    admission_refusal_t refusal;
    ledger_submission_t submission = {
        .id = at + 1,
        .client = client,
        .priority = one->priority,
        .sampling = {.max_tokens = one->max_tokens, .repetition_penalty = 1, .ignore_eos = 1},
        .timeline = {.received_ns = one->arrival_ns + 1},
        .prompt_ids = self->ids,
        .prompt_tokens = one->prompt_tokens,
        .deadline_ns = one->deadline_ns > 0 ? one->arrival_ns + one->deadline_ns : 0,
        .user = one->user,
        .user_name = one->user_name,
    };
    if (scheduler_submit(self->scheduler, &submission, self->now_ns, &refusal) == SCHEDULER_ACCEPTED) return;
    outcome->refused = true;
    snprintf(outcome->reason, sizeof outcome->reason, "%.159s", refusal.text);
}

static void take_arrivals(simulation_t *self)
{
    while (self->arrived < self->count && self->requests[self->order[self->arrived]].arrival_ns <= self->now_ns)
        submit(self, self->order[self->arrived++]);
}

/* ---- memory ---- */

static uint32_t blocks_for(const simulation_t *self, uint32_t tokens)
{
    return (tokens + self->options.block_tokens - 1) / self->options.block_tokens;
}

static uint32_t cached_of(const simulation_t *self, const plan_lease_t *lease)
{
    uint32_t prefix = self->requests[lease->sequence - 1].prefix_tokens;
    uint32_t most = lease->ids_count > 0 ? lease->ids_count - 1 : 0; /* a token is left to run */
    prefix = prefix < most ? prefix : most;
    return lease->open ? prefix - prefix % self->options.block_tokens : 0;
}

static void lease(simulation_t *self, const plan_traffic_t *traffic, const plan_lease_t *one)
{
    uint32_t *held = &self->held[one->sequence - 1];
    uint32_t wanted = blocks_for(self, one->tokens), more = wanted > *held ? wanted - *held : 0;
    batch_grant_t grant = {.lease_batch = traffic->lease_batch, .sequence = one->sequence, .outcome = BATCH_SHORT};
    if (more <= self->free_blocks) {
        grant.outcome = BATCH_GRANTED;
        grant.first_block = *held;
        grant.block_count = more;
        grant.blocks = self->ids; /* which ones is nobody's business here: zeros */
        grant.cached_tokens = cached_of(self, one);
        self->free_blocks -= more;
        *held += more;
    }
    uint32_t misfits = scheduler_grant(self->scheduler, &grant, 1, self->free_blocks);
    QN_ASSERT(misfits == 0);
}

static void answer_lookups(simulation_t *self, const plan_traffic_t *traffic)
{
    plan_prefix_hit_t hits[QN_PREFIX_HITS_ITEMS_MAX];
    for (uint32_t i = 0; i < traffic->lookup_count; i++)
        hits[i] = (plan_prefix_hit_t){.sequence = traffic->lookups[i].sequence,
                                      .tokens = self->requests[traffic->lookups[i].sequence - 1].prefix_tokens};
    if (traffic->lookup_count > 0)
        scheduler_prefix_hits(self->scheduler, traffic->lookup_batch, hits, traffic->lookup_count);
}

/* Memory answers at once, until nothing more is asked. Prefixes are asked for before anybody is admitted: the answer is
 * there in the next turn. */
static uint64_t settle_memory(simulation_t *self)
{
    plan_traffic_t traffic = {.again_ns = PLANNER_NEVER};
    for (int turn = 0; turn < TURNS_MAX; turn++) {
        scheduler_traffic(self->scheduler, self->now_ns, &traffic);
        for (uint32_t i = 0; i < traffic.release_count; i++) {
            self->free_blocks += self->held[traffic.releases[i] - 1];
            self->held[traffic.releases[i] - 1] = 0;
        }
        for (uint32_t i = 0; i < traffic.lease_count; i++)
            lease(self, &traffic, &traffic.leases[i]);
        answer_lookups(self, &traffic);
        if (traffic.release_count + traffic.lease_count + traffic.lookup_count == 0) break;
    }
    return traffic.again_ns;
}

/* ---- steps ---- */

static bool keep(simulation_t *self, const plan_t *plan, uint64_t end_ns)
{
    if (self->step_count >= self->options.steps_kept) return true;
    void *runs = realloc(self->runs, (self->run_count + plan->run_count) * sizeof *self->runs);
    if (runs != NULL) self->runs = runs;
    void *reasons = realloc(self->reasons, (self->reason_count + plan->reason_count + 1) * sizeof *self->reasons);
    if (reasons != NULL) self->reasons = reasons;
    if (runs == NULL || reasons == NULL) return false;
    self->steps[self->step_count++] = (simulation_step_t){.step = plan->step,
                                                          .begin_ns = self->now_ns,
                                                          .end_ns = end_ns,
                                                          .tokens = plan->token_count,
                                                          .first_run = self->run_count,
                                                          .run_count = plan->run_count,
                                                          .first_reason = self->reason_count,
                                                          .reason_count = plan->reason_count};
    const batch_step_t *step = &scheduler_batch(self->scheduler)->steps[0];
    for (uint32_t i = 0; i < step->run_count; i++) {
        const request_t *request = scheduler_batch(self->scheduler)->sequences[step->runs[i].index].request;
        self->runs[self->run_count++] = (simulation_run_t){.request = (uint32_t)request->id - 1,
                                                           .tokens = step->runs[i].token_count,
                                                           .prefill = step->runs[i].position < request->prompt_tokens};
    }
    memcpy(self->reasons + self->reason_count, plan->reasons, plan->reason_count * sizeof *self->reasons);
    self->reason_count += plan->reason_count;
    return true;
}

static void note_outcomes(simulation_t *self, const batch_step_t *step, uint64_t end_ns)
{
    for (uint32_t i = 0; i < step->run_count; i++) {
        const request_t *request = scheduler_batch(self->scheduler)->sequences[step->runs[i].index].request;
        simulation_outcome_t *outcome = &self->outcomes[request->id - 1];
        if (outcome->first_run_ns == 0) outcome->first_run_ns = self->now_ns + 1;
        outcome->preemptions = request->preemptions;
        if (!step->runs[i].sample) continue;
        if (outcome->first_token_ns == 0) outcome->first_token_ns = end_ns;
        if (request->generated_tokens + 1 >= request->generated_max) outcome->end_ns = end_ns;
        const planner_decision_t *why = scheduler_decision(self->scheduler, request->id, 0);
        if (why != NULL && outcome->first_token_ns == end_ns)
            snprintf(outcome->reason, sizeof outcome->reason, "%s", why->reason);
    }
}

static void finish_step(simulation_t *self, uint64_t end_ns)
{
    const batch_t *batch = scheduler_batch(self->scheduler);
    const batch_step_t *step = &batch->steps[0], *done;
    uint32_t count = 0;
    for (uint32_t i = 0; i < step->run_count; i++)
        if (step->runs[i].sample)
            self->tokens[count++] = (batch_token_t){.request = batch->sequences[step->runs[i].index].request->id,
                                                    .slot = step->runs[i].slot,
                                                    .position = step->runs[i].position + step->runs[i].token_count};
    batch_result_t result = {
        .step = step->step, .begin_ns = self->now_ns, .end_ns = end_ns, .tokens = self->tokens, .token_count = count};
    self->generated += count;
    qn_err_t err = scheduler_result(self->scheduler, &result, end_ns, &done);
    QN_ASSERT(err == QN_OK);
}

/* Everybody is told everything, so that who has ended can be forgotten. */
static void deliver(simulation_t *self)
{
    delivery_message_t message;
    delivery_begin(scheduler_delivery(self->scheduler));
    while (delivery_next(scheduler_delivery(self->scheduler), &message))
        delivery_sent(scheduler_delivery(self->scheduler));
    scheduler_tidy(self->scheduler, self->now_ns);
}

static bool take_step(simulation_t *self)
{
    plan_t plan;
    bool built;
    scheduler_plan(self->scheduler, self->now_ns, &plan, &built);
    if (!built) return false;
    uint64_t end_ns = self->now_ns + self->options.step_ns + plan.token_count * self->options.token_ns;
    if (end_ns == self->now_ns) end_ns++; /* time goes on */
    if (!keep(self, &plan, end_ns)) self->options.steps_kept = self->step_count;
    self->all_steps++;
    self->all_tokens += plan.token_count;
    note_outcomes(self, &scheduler_batch(self->scheduler)->steps[0], end_ns);
    finish_step(self, end_ns);
    self->now_ns = end_ns;
    return true;
}

bool simulation_run(simulation_t *self, uint32_t steps)
{
    while (!self->ended && steps > 0) {
        take_arrivals(self);
        uint64_t again_ns = settle_memory(self);
        bool stepped = take_step(self);
        deliver(self);
        steps--;
        if (stepped) continue;
        uint64_t arrival_ns =
            self->arrived < self->count ? self->requests[self->order[self->arrived]].arrival_ns : PLANNER_NEVER;
        uint64_t next_ns = arrival_ns < again_ns ? arrival_ns : again_ns;
        if (next_ns == PLANNER_NEVER ||
            ledger_count(scheduler_ledger(self->scheduler)) + (self->count - self->arrived) == 0)
            self->ended = true;
        else if (next_ns > self->now_ns)
            self->now_ns = next_ns;
        else
            self->now_ns++;
    }
    return self->ended;
}

/* ---- views ---- */

const simulation_request_t *simulation_request(const simulation_t *self, uint32_t request)
{
    QN_ASSERT(request < self->count);
    return &self->requests[request];
}

const simulation_outcome_t *simulation_outcome(const simulation_t *self, uint32_t request)
{
    QN_ASSERT(request < self->count);
    return &self->outcomes[request];
}

const simulation_step_t *simulation_steps(const simulation_t *self, uint32_t *ret_count)
{
    *ret_count = self->step_count;
    return self->steps;
}

const simulation_run_t *simulation_runs(const simulation_t *self) { return self->runs; }

const char (*simulation_reasons(const simulation_t *self))[QN_POLICY_REASON_MAX]
{
    return (const char(*)[QN_POLICY_REASON_MAX])self->reasons;
}
