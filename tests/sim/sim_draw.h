/* What a seed draws: configuration, load, faults; and a policy that decides at random. */
#ifndef QN_TESTS_SIM_SIM_DRAW_H
#define QN_TESTS_SIM_SIM_DRAW_H

#include "tests/sim/sim_world.h"

/* ---- a policy that decides at random, within the rules ---- */

static void random_admit(const qn_policy_memory_t *memory, const qn_policy_view_t *view, uint32_t most,
                         qn_policy_admit_t *ret_admit)
{
    uint64_t hash = sim_mix(view->now_ns, view->waiting_count);
    (void)memory;
    for (uint32_t i = 0; i < view->sequence_count && ret_admit->count < most; i++) {
        uint32_t at = (uint32_t)((hash + i) % view->sequence_count);
        qn_policy_admission_t *admission = &ret_admit->admissions[ret_admit->count++];
        admission->id = view->sequences[at].id;
        snprintf(admission->reason, sizeof admission->reason, "random");
    }
}

static void random_share(const qn_policy_memory_t *memory, const qn_policy_view_t *view, uint32_t budget,
                         uint32_t chunk, uint32_t parts_max, int must, qn_policy_share_t *ret_share)
{
    uint64_t hash = sim_mix(view->now_ns, budget);
    (void)memory;
    for (uint32_t i = 0; i < view->sequence_count && i < parts_max && budget > 0; i++) {
        const qn_policy_sequence_t *one = &view->sequences[(hash + i) % view->sequence_count];
        uint32_t most = one->prefill_tokens < chunk ? one->prefill_tokens : chunk;
        most = most < budget ? most : budget;
        uint32_t tokens = (uint32_t)(sim_mix(hash, i) % (most + 1));
        if (tokens == 0 && must && ret_share->count == 0) tokens = 1;
        if (tokens > 0) ret_share->parts[ret_share->count++] = (qn_policy_part_t){.id = one->id, .tokens = tokens};
        budget -= tokens;
    }
    snprintf(ret_share->reason, sizeof ret_share->reason, "random");
}

static void random_preempt(const qn_policy_memory_t *memory, const qn_policy_view_t *view, uint64_t needy,
                           qn_policy_preempt_t *ret_preempt)
{
    (void)memory;
    ret_preempt->id = view->sequences[sim_mix(view->now_ns, needy) % view->sequence_count].id;
    snprintf(ret_preempt->reason, sizeof ret_preempt->reason, "random");
}

static const qn_policy_t random_policy = {.head = {.version = QN_POLICY_ABI_VERSION,
                                                   .kind = QN_POLICY_SCHEDULING,
                                                   .name = "random"},
                                          .admit = random_admit,
                                          .share = random_share,
                                          .preempt = random_preempt};

/* The same until it breaks a rule, now and then: it is withdrawn, and nothing else happens. */
static void erratic_admit(const qn_policy_memory_t *memory, const qn_policy_view_t *view, uint32_t most,
                          qn_policy_admit_t *ret_admit)
{
    random_admit(memory, view, most, ret_admit);
    uint64_t hash = sim_mix(view->now_ns, 77);
    if (hash % 30 == 0) ret_admit->count = most + 1;
    if (hash % 30 == 1 && ret_admit->count > 0) ret_admit->admissions[0].id = 4711;
    if (hash % 30 == 2 && ret_admit->count > 1) ret_admit->admissions[1].id = ret_admit->admissions[0].id;
}

static void erratic_share(const qn_policy_memory_t *memory, const qn_policy_view_t *view, uint32_t budget,
                          uint32_t chunk, uint32_t parts_max, int must, qn_policy_share_t *ret_share)
{
    random_share(memory, view, budget, chunk, parts_max, must, ret_share);
    if (sim_mix(view->now_ns, 78) % 40 == 0 && ret_share->count > 0) ret_share->parts[0].tokens = budget + 1;
}

static const qn_policy_t erratic_policy = {.head = {.version = QN_POLICY_ABI_VERSION,
                                                    .kind = QN_POLICY_SCHEDULING,
                                                    .name = "erratic"},
                                           .admit = erratic_admit,
                                           .share = erratic_share,
                                           .preempt = random_preempt};

/* What may be chosen live, by kind. */
static const char *const choices[LEDGER_POLICY_PAGES + 1][6] = {
    [QN_POLICY_SCHEDULING] = {"fcfs", "priority", "shortest_job", "prefix", "fair"},
    [QN_POLICY_BATCHING] = {"fixed", "pressure"},
    [QN_POLICY_ADMISSION] = {"queue", "user_share"},
};

static const char *draw_choice(qn_policy_kind_t kind)
{
    return choices[kind][sim_between(&w.random, 0, kind == QN_POLICY_SCHEDULING ? 4 : 1)];
}

static void switch_eviction(void)
{
    static const char *const names[] = {"lru", "lfu", "fifo", "cost"};
    const char *name = names[sim_between(&w.random, 0, 3)];
    qn_err_t err = sim_chance(&w.random, 60)
                       ? qn_policy_seat_set(w.eviction, name)
                       : qn_policy_seat_set_shadow(w.eviction, sim_chance(&w.random, 80) ? name : NULL);
    SIM_CHECK(err == QN_OK, "%s", qn_err_text());
    if (w.pool != NULL) block_pool_eviction_changed(w.pool);
}

/* Somebody chooses: live or shadow, of any kind. */
static void switch_policy(void)
{
    if (sim_chance(&w.random, 25)) switch_eviction();
    if (w.scheduler == NULL) return;
    qn_policy_kind_t kind = sim_between(&w.random, QN_POLICY_SCHEDULING, LEDGER_POLICY_PAGES);
    qn_policy_seat_t *seat = policies_seat(scheduler_policies(w.scheduler), kind);
    const char *choice = draw_choice(kind);
    qn_err_t err = sim_chance(&w.random, 60)
                       ? qn_policy_seat_set(seat, choice)
                       : qn_policy_seat_set_shadow(seat, sim_chance(&w.random, 80) ? choice : NULL);
    SIM_CHECK(err == QN_OK, "%s", qn_err_text());
    w.switches++;
}

static void draw_configuration(void)
{
    sim_random_t *random = &w.random;
    w.scoring_percent = sim_chance(random, 20) ? 80 : 15; /* evaluation harnesses ask for nothing but scores */
    static const uint32_t block_tokens[] = {1, 2, 3, 4, 8, 16};
    uint32_t slots = sim_between(random, 1, 12);
    w.pool_options = (block_pool_options_t){.block_tokens = block_tokens[sim_between(random, 0, 5)],
                                            .sequences_max = 256,
                                            .prefix_cache = sim_chance(random, 85)};
    w.model.block_tokens = w.pool_options.block_tokens;
    w.model.max_model_len = sim_between(random, 8, 120);
    uint32_t one = (w.model.max_model_len + w.model.block_tokens - 1) / w.model.block_tokens;
    uint32_t tiny = one > 2 && sim_chance(random, 10) ? one - 1 : one; /* 10 %: not even one longest sequence fits */
    w.pool_options.block_count = w.model.block_count =
        sim_chance(random, 60) ? sim_between(random, tiny, tiny + one) : sim_between(random, one, one * slots + 4);
    w.pool_options.tokens_max = w.model.max_model_len;
    w.model.vocab_size = SIM_VOCAB;
    w.model.eos_count = sim_between(random, 0, 2);
    for (uint32_t i = 0; i < w.model.eos_count; i++)
        w.model.eos_ids[i] = sim_between(random, 0, SIM_VOCAB - 1);
    w.options = (scheduler_options_t){
        .planner = {.max_step_tokens = slots + sim_between(random, 0, 40),
                    .prefill_chunk_tokens = sim_between(random, 1, 40),
                    .lookahead = sim_between(random, 0, 1)},
        .max_sequences = slots,
        .queue_limit = sim_between(random, 8, SIM_REQUESTS_MAX),
        .policy = draw_choice(QN_POLICY_SCHEDULING),
        .batching = draw_choice(QN_POLICY_BATCHING),
        .admission = draw_choice(QN_POLICY_ADMISSION),
        .policy_functions = sim_chance(random, 70)   ? NULL
                            : sim_chance(random, 70) ? &random_policy
                                                     : &erratic_policy,
        .ledger_base = w.mapping,
        .ledger_bytes =
            sim_chance(random, 50) ? LEDGER_BYTES : LEDGER_BYTES_FOR(slots) / 8 * 8, /* small: it compacts */
    };
}

static void draw_sampling(request_sampling_t *sampling)
{
    sim_random_t *random = &w.random;
    *sampling = (request_sampling_t){
        .seed = sim_between(random, 0, 3),
        .repetition_penalty = sim_chance(random, 30) ? 1.1f : 1.0f,
        .max_tokens = sim_chance(random, 5) ? 0 : sim_between(random, 1, w.model.max_model_len),
        .min_tokens = sim_chance(random, 20) ? sim_between(random, 0, 10) : 0,
        .ignore_eos = sim_chance(random, 30),
        .logprobs = 1,
        .prompt_logprobs = sim_chance(random, w.scoring_percent),
        .top_logprobs = (uint8_t)(sim_chance(random, 30) ? sim_between(random, 1, 4) : 0),
    };
}

/* Prompts are prefixes of a few texts, so that they meet in the index. */
static void draw_request(uint32_t at)
{
    sim_random_t *random = &w.random;
    sim_request_t *request = &w.requests[at];
    ledger_submission_t *submission = &request->submission;
    *request = (sim_request_t){.id = 1000 + at, .client = sim_between(random, 0, SIM_CLIENTS - 1), .got_scores = 1};
    uint32_t text = sim_between(random, 0, 2), most = w.model.max_model_len + (sim_chance(random, 5) ? 4 : 0);
    *submission = (ledger_submission_t){.id = request->id,
                                        .priority = (int32_t)sim_between(random, 0, 4) - 2,
                                        .user = sim_between(random, 0, 3),
                                        .deadline_ns = sim_between(random, 0, 1) * sim_between(random, 1, 50000000),
                                        .salt = sim_chance(random, 80) ? 0 : sim_between(random, 1, 2),
                                        .prompt_ids = request->prompt,
                                        .prompt_tokens = sim_between(random, 1, most),
                                        .stop_ids = request->stop_ids,
                                        .stop_count = sim_between(random, 0, 3),
                                        .bias = request->bias,
                                        .bias_count = sim_between(random, 0, 2)};
    if (sim_chance(random, 70)) /* mostly short enough to generate something */
        submission->prompt_tokens = 1 + submission->prompt_tokens / 2;
    draw_sampling(&submission->sampling);
    for (uint32_t i = 0; i < submission->prompt_tokens; i++)
        request->prompt[i] = (uint32_t)(sim_mix(text, i) % SIM_VOCAB);
    const sim_request_t *earlier = at > 0 ? &w.requests[sim_between(random, 0, at - 1)] : NULL;
    if (earlier != NULL && sim_chance(random, 25)) { /* the next turn of a conversation: prompt and answer so far */
        uint32_t known = earlier->submission.prompt_tokens + earlier->expected_count;
        memcpy(request->prompt, earlier->expected, known * sizeof *request->prompt);
        if (known > 0) submission->prompt_tokens = sim_between(random, 1, known);
    } else if (sim_chance(random, 50))
        request->prompt[submission->prompt_tokens - 1] = sim_between(random, 0, SIM_VOCAB - 1);
    for (uint32_t i = 0; i < submission->stop_count; i++)
        request->stop_ids[i] = sim_between(random, 0, SIM_VOCAB - 1);
    uint32_t pool_tokens = w.model.block_count * w.model.block_tokens;
    admission_model_t limits = {.vocab_size = SIM_VOCAB,
                                .max_model_len = w.model.max_model_len,
                                .pool_tokens = pool_tokens};
    admission_refusal_t refusal;
    uint32_t generated_max;
    request->must_be_refused = !admission_check(&limits, submission, &generated_max, &refusal);
    if (!request->must_be_refused) sim_predict(request, generated_max, w.model.eos_ids, w.model.eos_count);
}

/* Whether anything of it is ever run: else nothing can crash over it. */
static bool is_run(const sim_request_t *request)
{
    const request_sampling_t *sampling = &request->submission.sampling;
    return sampling->max_tokens > 0 || (sampling->prompt_logprobs && request->submission.prompt_tokens > 1);
}

static void draw_load(void)
{
    sim_random_t *random = &w.random;
    w.request_count = sim_between(random, 5, SIM_REQUESTS_MAX - 8);
    uint64_t at_ns = 0, spacing_ns = sim_between(random, 1000, 2000000);
    for (uint32_t i = 0; i < w.request_count; i++) {
        draw_request(i);
        at_ns += sim_next(random) % spacing_ns;
        push(at_ns, (event_t){.kind = SUBMIT, .value = w.requests[i].id});
        if (sim_chance(random, 15))
            push(at_ns + sim_next(random) % 20000000, (event_t){.kind = CANCEL, .value = w.requests[i].id});
    }
    uint32_t poisons = sim_chance(random, 40) ? sim_between(random, 1, POISONS_MAX) : 0;
    for (uint32_t i = 0; i < poisons; i++) {
        const sim_request_t *request = &w.requests[sim_between(random, 0, w.request_count - 1)];
        if (request->must_be_refused || find_poison(request->id) != NULL || !is_run(request)) continue;
        w.poisons[w.poison_count++] =
            (poison_t){.request = request->id, .kind = sim_between(random, 0, POISON_KINDS - 1)};
    }
    uint32_t switches = sim_chance(random, 30) ? 0 : sim_between(random, 1, 30);
    for (uint32_t i = 0; i < switches; i++)
        push(sim_next(random) % (at_ns + 20000000), (event_t){.kind = SWITCH_POLICY});
    uint32_t faults = sim_chance(random, 25) ? 0 : sim_between(random, 1, 6);
    for (uint32_t i = 0; i < faults; i++)
        push(sim_next(random) % (at_ns + 20000000), (event_t){.kind = FAULT, .value = sim_between(random, 0, 6)});
}

#endif
