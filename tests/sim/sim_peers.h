/* Memory (the real block pool over a fake store) and compute (sim_compute.h) as peers, and how they, the scheduler
 * and the tokenizers are killed. */
#ifndef QN_TESTS_SIM_SIM_PEERS_H
#define QN_TESTS_SIM_SIM_PEERS_H

#include "tests/sim/sim_world.h"

/* ---- memory ---- */

static void start_memory(void)
{
    w.memory_epoch = w.memory_life;
    qn_err_t err = block_pool_create(&w.pool_options, &w.pool);
    SIM_CHECK(err == QN_OK, "%s", qn_err_text());
    w.compute.pool = w.pool;
    for (uint32_t i = 0; w.bytes_live && i < w.kept_count; i++)
        w.adopted += block_pool_adopt(w.pool, w.kept[i].pin, w.kept[i].salt, w.kept[i].identity, w.kept[i].ids,
                                      w.kept[i].tokens, w.kept[i].blocks, w.kept[i].block_count);
    for (size_t i = 0; i < (size_t)w.pool_options.block_count * w.pool_options.block_tokens; i++)
        if (block_pool_references(w.pool, (uint32_t)(i / w.pool_options.block_tokens)) == 0)
            w.compute.kv[i] = sim_next(&w.random); /* whatever was there */
    push(w.now_ns + sim_between(&w.random, 1000, 300000), (event_t){.kind = MEMORY_UP, .from_epoch = w.memory_epoch});
}

/* What stands in memory for the sequence at [from, to) is what the model computes for it alone. */
static void check_content(uint64_t sequence, uint32_t from, uint32_t to, const char *what)
{
    const sim_request_t *request = find_request(sequence);
    uint32_t count = 0, block_tokens = w.pool_options.block_tokens;
    const uint32_t *table = block_pool_table(w.pool, sequence, &count);
    for (uint32_t at = from; at < to; at++)
        SIM_CHECK(w.compute.kv[(size_t)table[at / block_tokens] * block_tokens + at % block_tokens] ==
                      request->expected_kv[at],
                  "%s: request %llu has foreign or stale KV at %u", what, (unsigned long long)sequence, at);
}

static void lease(const traffic_t *traffic, uint32_t at, batch_grant_t *ret_grant)
{
    const plan_lease_t *one = &traffic->leases[at];
    block_pool_grant_t grant = {0};
    block_pool_outcome_t outcome =
        one->open ? block_pool_open(w.pool, one->sequence, one->salt, one->tokens, one->ids, one->ids_count, &grant)
                  : block_pool_extend(w.pool, one->sequence, one->tokens, &grant);
    *ret_grant = (batch_grant_t){.lease_batch = traffic->lease_batch,
                                 .sequence = one->sequence,
                                 .first_block = grant.first_block,
                                 .block_count = grant.block_count,
                                 .cached_tokens = grant.cached_tokens,
                                 .blocks = sim_copy(grant.blocks, grant.block_count, sizeof *grant.blocks),
                                 .outcome = (batch_grant_outcome_t)outcome};
    ret_grant->copies = grant.copies;
    ret_grant->copy_from = grant.copy_from;
    w.hits += grant.cached_tokens > 0;
    uint32_t rows = grant.copies ? grant.cached_tokens % w.pool_options.block_tokens : 0;
    check_content(one->sequence, 0, grant.cached_tokens - rows, "prefix hit");
    for (uint32_t i = 0; i < rows; i++)
        SIM_CHECK(w.compute.kv[(size_t)grant.copy_from * w.pool_options.block_tokens + i] ==
                      find_request(one->sequence)->expected_kv[grant.cached_tokens - rows + i],
                  "rows of a clone: request %llu is given foreign ones", (unsigned long long)one->sequence);
    w.copies += grant.copies;
    for (uint32_t i = 0; i < grant.block_count; i++) {
        bool shared = i < grant.cached_tokens / w.pool_options.block_tokens;
        SIM_CHECK(!shared || w.compute.writer_salt[grant.blocks[i]] == one->salt, "a prefix was shared across salts");
        if (!shared) w.compute.writer_salt[grant.blocks[i]] = find_request(one->sequence)->submission.salt;
    }
}

static void kill_memory(bool crash);

static void answer_lookups(const traffic_t *traffic, uint32_t to_epoch)
{
    if (traffic->lookup_count == 0) return;
    prefix_hits_t *hits = calloc(1, sizeof *hits);
    hits->count = traffic->lookup_count;
    hits->batch = traffic->lookup_batch;
    for (uint32_t i = 0; i < hits->count; i++) {
        const plan_lookup_t *one = &traffic->lookups[i];
        hits->hits[i] = (plan_prefix_hit_t){.sequence = one->sequence,
                                            .tokens = block_pool_lookup(w.pool, one->salt, one->ids, one->ids_count)};
    }
    w.lookups++;
    send_over(LINK_FROM_MEMORY,
              (event_t){.kind = PREFIX_HITS, .from_epoch = w.memory_epoch, .to_epoch = to_epoch, .payload = hits});
}

static void memory_takes(const event_t *event)
{
    const traffic_t *traffic = event->payload;
    if (event->to_epoch != w.memory_epoch || w.memory_epoch == 0) return;
    for (uint32_t i = 0; i < traffic->lease_count; i++)
        if (event->from_epoch == w.scheduler_epoch && strikes(traffic->leases[i].sequence, POISONS_MEMORY)) {
            kill_memory(true);
            return;
        }
    for (uint32_t i = 0; i < traffic->commit_count; i++) {
        const plan_commit_t *commit = &traffic->commits[i];
        SIM_CHECK(block_pool_commit(w.pool, commit->sequence, commit->position, commit->ids, commit->ids_count),
                  "a commit of %llu at %u does not fit", (unsigned long long)commit->sequence, commit->position);
        check_content(commit->sequence, commit->position, commit->position + commit->ids_count, "commit");
    }
    for (uint32_t i = 0; i < traffic->release_count; i++)
        block_pool_release(w.pool, traffic->releases[i]);
    answer_lookups(traffic, event->from_epoch);
    if (traffic->lease_count == 0) return;
    grants_t grants = {.count = traffic->lease_count, .grants = calloc(traffic->lease_count, sizeof *grants.grants)};
    for (uint32_t i = 0; i < traffic->lease_count; i++)
        lease(traffic, i, &grants.grants[i]);
    grants.available = block_pool_available(w.pool);
    send_over(LINK_FROM_MEMORY, (event_t){.kind = GRANT,
                                          .from_epoch = w.memory_epoch,
                                          .to_epoch = event->from_epoch,
                                          .payload = sim_copy(&grants, 1, sizeof grants)});
}

/* ---- compute ---- */

static void begin_step(void)
{
    if (w.executing || w.plan_count == 0) return;
    w.executing = true;
    push(w.now_ns + sim_between(&w.random, 20000, 800000),
         (event_t){.kind = STEP_DONE, .from_epoch = w.compute_epoch, .value = ++w.execution});
}

static void enqueue(queued_plan_t plan)
{
    SIM_CHECK(w.plan_count < PLANS_MAX, "too many plans are queued");
    w.plans[w.plan_count++] = plan;
    begin_step();
}

static void kill_compute(bool crash);

/* The slot's sequence when the plan runs: set by the plan itself, or before. */
static uint64_t runs_of(const sim_plan_t *copy, uint32_t slot)
{
    for (uint32_t i = 0; i < copy->plan.set_count; i++)
        if (copy->plan.sets[i].slot == slot) return copy->set_requests[i];
    return w.compute.slots[slot].request;
}

/* Plans that have not begun. */
static void drop_waiting_plans(void)
{
    uint32_t kept = w.executing ? 1 : 0;
    while (w.plan_count > kept)
        if (w.plans[--w.plan_count].plan != NULL) sim_plan_free(w.plans[w.plan_count].plan);
}

/* A plan arrives: the first of a session empties the slots, one of another session is refused. */
static void compute_takes(event_t *event)
{
    if (event->to_epoch != w.compute_epoch) return;
    sim_plan_t *plan = event->payload;
    if (plan->plan.opens) {
        drop_waiting_plans();
        enqueue((queued_plan_t){0});
        w.compute_session = plan->plan.session;
    } else if (plan->plan.session != w.compute_session) {
        send_over(LINK_FROM_COMPUTE, (event_t){.kind = PLAN_REFUSED,
                                               .from_epoch = w.compute_epoch,
                                               .to_epoch = event->from_epoch,
                                               .session = plan->plan.session});
        return;
    }
    enqueue(
        (queued_plan_t){.plan = plan, .scheduler_epoch = event->from_epoch, .memory_epoch = (uint32_t)event->value});
    event->payload = NULL;
}

static void compute_answers(const event_t *event)
{
    bool held = false;
    if (event->to_epoch != w.compute_epoch) return;
    for (uint32_t i = 0; i < w.plan_count; i++)
        held |= w.plans[i].plan != NULL && w.plans[i].scheduler_epoch == event->from_epoch &&
                w.plans[i].plan->plan.step == event->value;
    send_over(LINK_FROM_COMPUTE, (event_t){.kind = STEP_STATUS,
                                           .from_epoch = w.compute_epoch,
                                           .to_epoch = event->from_epoch,
                                           .session = event->session,
                                           .value = event->value,
                                           .held = held});
}

static void step_done(const event_t *event)
{
    if (event->from_epoch != w.compute_epoch || !w.executing || event->value != w.execution) return;
    const sim_plan_t *runs = w.plans[0].plan;
    for (uint32_t i = 0; runs != NULL && i < runs->plan.run_count; i++)
        if (strikes(runs_of(runs, runs->plan.runs[i].slot), POISONS_COMPUTE)) {
            kill_compute(true);
            return;
        }
    queued_plan_t done = w.plans[0];
    memmove(w.plans, w.plans + 1, --w.plan_count * sizeof *w.plans);
    w.executing = false;
    if (done.plan == NULL) {
        memset(w.compute.slots, 0, w.compute.slot_count * sizeof *w.compute.slots);
        w.compute.last_step = 0;
    } else {
        sim_result_t *result = malloc(sizeof *result);
        bool current = done.scheduler_epoch == w.scheduler_epoch && done.memory_epoch == w.memory_epoch;
        sim_execute(&w.compute, done.plan, UINT32_MAX, current, result);
        result->result.begin_ns = w.now_ns - 1000;
        result->result.end_ns = w.now_ns;
        send_over(LINK_FROM_COMPUTE, (event_t){.kind = RESULT,
                                               .from_epoch = w.compute_epoch,
                                               .to_epoch = done.scheduler_epoch,
                                               .session = done.plan->plan.session,
                                               .payload = result});
        sim_plan_free(done.plan);
    }
    begin_step();
}

/* ---- kills ---- */

/* It took somebody else for its scheduler: plans, slots and results on their way are gone, and it lives on. */
static void confuse_compute(void)
{
    if (w.executing && w.plans[0].plan != NULL) sim_plan_free(w.plans[0].plan);
    if (w.executing) memmove(w.plans, w.plans + 1, --w.plan_count * sizeof *w.plans);
    w.executing = false;
    drop_waiting_plans();
    memset(w.compute.slots, 0, w.compute.slot_count * sizeof *w.compute.slots);
    w.compute.last_step = 0;
    w.compute_session = 0;
    for (uint32_t i = 0; i < w.queue_count; i++)
        if (w.queue[i].kind == RESULT && w.queue[i].payload != NULL) {
            free_payload(&w.queue[i]);
            w.queue[i].payload = NULL;
        }
}

/* Killed in the middle of a step: some of its runs were written. */
static void kill_compute(bool crash)
{
    SIM_CHECK(w.compute_life + 1 < LIVES_MAX, "compute dies too often");
    w.compute_crashed[w.compute_epoch] = crash;
    if (w.executing && w.plans[0].plan != NULL && w.compute.pool != NULL) {
        sim_result_t *result = malloc(sizeof *result);
        const queued_plan_t *plan = &w.plans[0];
        bool current = plan->scheduler_epoch == w.scheduler_epoch && plan->memory_epoch == w.memory_epoch;
        sim_execute(&w.compute, plan->plan, sim_between(&w.random, 0, plan->plan->plan.run_count), current, result);
        free(result);
    }
    for (uint32_t i = 0; i < w.plan_count; i++)
        if (w.plans[i].plan != NULL) sim_plan_free(w.plans[i].plan);
    w.plan_count = 0;
    w.executing = false;
    memset(w.compute.slots, 0, w.compute.slot_count * sizeof *w.compute.slots);
    w.compute.last_step = 0;
    w.compute_session = 0;
    w.compute_epoch = ++w.compute_life;
    uint64_t gone_ns = w.now_ns + sim_between(&w.random, 1000, 200000);
    push(gone_ns, (event_t){.kind = COMPUTE_GONE, .from_epoch = w.compute_epoch - 1});
    push(gone_ns + sim_between(&w.random, 1000, 500000), (event_t){.kind = COMPUTE_UP, .from_epoch = w.compute_epoch});
}

/* What memory writes down of its pins while it lives, as if read again after its death. */
static void keep_pins(void)
{
    w.kept_count = 0;
    w.bytes_live = sim_chance(&w.random, 70);
    for (uint32_t pin = 1; pin <= 4 * SIM_KEPT_MAX && w.kept_count < SIM_KEPT_MAX; pin++) {
        uint32_t at = w.kept_count, count;
        const uint32_t *blocks = block_pool_pin_blocks(w.pool, pin, &count);
        if (blocks == NULL) continue;
        block_pool_pin_ids(w.pool, pin, SIM_TOKENS_MAX, w.kept[at].ids, &w.kept[at].tokens, &w.kept[at].salt,
                           &w.kept[at].identity);
        memcpy(w.kept[at].blocks, blocks, count * sizeof *blocks);
        w.kept[at].pin = pin;
        w.kept[at].block_count = count;
        w.kept_count++;
    }
}

static void kill_memory(bool crash)
{
    if (w.memory_epoch == 0) return;
    SIM_CHECK(w.memory_life + 1 < LIVES_MAX, "memory dies too often");
    w.memory_crashed[w.memory_epoch] = crash;
    uint64_t gone_ns = w.now_ns + sim_between(&w.random, 1000, 200000);
    push(gone_ns, (event_t){.kind = MEMORY_GONE, .from_epoch = w.memory_epoch});
    w.memory_epoch = 0;
    w.memory_life++;
    keep_pins();
    w.compute.pool = NULL;
    block_pool_destroy(&w.pool);
    push(gone_ns + sim_between(&w.random, 1000, 500000), (event_t){.kind = MEMORY_START});
    if (sim_chance(&w.random, 30)) kill_compute(false); /* it cannot live without, or dies with it */
}

/* Undoes the end of what was written since `mapping_before`: a process that dies writes payloads in part, and the 8
 * bytes that make a record count, or a compaction valid, not at all. */
static void tear_last_write(void)
{
    uint32_t first = 0, header_bytes = 4096;
    while (first < LEDGER_BYTES && w.mapping[first] == w.mapping_before[first])
        if (++first == header_bytes) first = LEDGER_HEAD_BYTES; /* the evidence holds no records */
    if (first == LEDGER_BYTES) return;
    w.torn++;
    w.compaction_torn = first < header_bytes;
    if (w.compaction_torn) { /* a compaction: the other area is written, the switch is not thrown */
        memcpy(w.mapping, w.mapping_before, header_bytes);
        return;
    }
    uint32_t head = first & ~7u, cut = head + sim_between(&w.random, 0, LEDGER_BYTES - head - 8);
    memcpy(w.mapping + head, w.mapping_before + head, 8);
    cut = sim_chance(&w.random, 50) ? head + sim_between(&w.random, 0, 200) : cut;
    if (cut < LEDGER_BYTES) memcpy(w.mapping + cut, w.mapping_before + cut, LEDGER_BYTES - cut);
}

/* What was in force, and what happened to policies in this life of the scheduler. */
static void count_policies(void)
{
    for (uint32_t kind = QN_POLICY_SCHEDULING; kind <= LEDGER_POLICY_PAGES; kind++) {
        const qn_policy_seat_t *seat = policies_seat(scheduler_policies(w.scheduler), kind);
        qn_policy_counts_t counts;
        qn_policy_seat_counts(seat, &counts);
        w.withdrawals += counts.withdrawals;
        w.differences += counts.shadow_differences;
        snprintf(w.chosen[kind], sizeof w.chosen[kind], "%s", qn_policy_object_choice(qn_policy_seat_live(seat)));
    }
    if (w.options.policy_functions != NULL) w.chosen[QN_POLICY_SCHEDULING][0] = '\0'; /* a test's table is given anew */
}

/* The process dies: its heap is gone, and what it was about to write may be there in part. */
static void kill_scheduler(bool torn)
{
    if (w.scheduler == NULL) return;
    w.held_count = 0;
    const ledger_t *ledger = scheduler_ledger(w.scheduler);
    for (const request_t *one = ledger_next(ledger, NULL); one != NULL; one = ledger_next(ledger, one)) {
        w.held[w.held_count].id = one->id;
        w.held[w.held_count].generated = one->generated_tokens;
        w.held[w.held_count++].finish = one->finish;
    }
    count_policies();
    ledger_usage_t usage;
    ledger_usage(ledger, &usage);
    w.compactions += usage.compactions;
    w.compaction_torn = false;
    if (torn && w.next_request < w.request_count) { /* while it accepts a request */
        admission_refusal_t refusal;
        memcpy(w.mapping_before, w.mapping, LEDGER_BYTES);
        scheduler_submit(w.scheduler, &w.requests[w.next_request].submission, w.now_ns, &refusal);
        tear_last_write();
    }
    scheduler_destroy(&w.scheduler);
    w.sees_memory = w.sees_compute = w.lost_memory = w.lost_compute = 0;
    w.timer_ns = 0;
    uint64_t lost_ns = w.now_ns + sim_between(&w.random, 0, 150000);
    for (uint32_t i = 0; i < w.queue_count; i++) /* the end of what it had sent is lost with it */
        if (w.queue[i].kind == TO_CLIENT && w.queue[i].at_ns >= lost_ns && w.queue[i].payload != NULL) {
            free_payload(&w.queue[i]);
            w.queue[i].payload = NULL;
        }
    w.scheduler_epoch++;
    push(w.now_ns + sim_between(&w.random, 1000, 400000), (event_t){.kind = SCHEDULER_START});
    const sim_request_t *one = &w.requests[sim_between(&w.random, 0, w.request_count - 1)];
    if (sim_chance(&w.random, 50)) push(w.now_ns + 500, (event_t){.kind = CANCEL, .value = one->id});
}

static void kill_client(uint32_t client)
{
    uint32_t old = w.client_epoch[client];
    w.client_epoch[client] += SIM_CLIENTS;
    push(w.now_ns + sim_between(&w.random, 1000, 200000),
         (event_t){.kind = CLIENT_GONE, .from_epoch = old, .value = client, .to_epoch = w.scheduler_epoch});
    bool resubmits = sim_chance(&w.random, 50);
    for (uint32_t i = 0; i < w.request_count; i++) {
        sim_request_t *request = &w.requests[i];
        if (request->client != client || request->state != SIM_OPEN) continue;
        request->got_count = 0;
        request->got_scores = 1;
        if (resubmits)
            push(w.now_ns + sim_between(&w.random, 200001, 900000), (event_t){.kind = SUBMIT, .value = request->id});
        else {
            request->state = SIM_ABANDONED;
            request->abandoned_ns = w.now_ns;
        }
    }
    if (!resubmits && sim_chance(&w.random, 30)) /* the orphans' clock is not started again */
        push(w.now_ns + sim_between(&w.random, 1, 9900) * 1000000ull, (event_t){.kind = FAULT, .value = 2});
}

/* ---- people: clones, pins, what is brought from files ---- */

/* A running sequence says what it has written (CommitQuery) and is cloned. */
static void clone_running(void)
{
    uint32_t pin, tokens, count = 0;
    const batch_t *batch = scheduler_batch(w.scheduler);
    for (uint32_t slot = 0; slot < batch->slot_count; slot++) {
        const sequence_t *one =
            batch->slot_owner[slot] == BATCH_NOBODY ? NULL : &batch->sequences[batch->slot_owner[slot]];
        if (one == NULL || one->phase != SEQUENCE_RUNNING || w.sees_memory != w.memory_epoch) continue;
        const uint32_t *table = block_pool_table(w.pool, one->request->id, &count);
        bool same = table != NULL && count == one->block_count &&
                    memcmp(table, batch_table(batch, one), count * sizeof *table) == 0;
        uint32_t written = batch_written(batch, one->request->index);
        if (!same || written <= one->committed) continue; /* it stands in a message on its way */
        if (!block_pool_commit(w.pool, one->request->id, one->committed, one->request->ids + one->committed,
                               written - one->committed))
            continue;
        check_content(one->request->id, 0, written, "clone");
        w.clones += block_pool_clone_sequence(w.pool, one->request->id, &pin, &tokens) == BLOCK_POOL_PINNED;
        w.compute.clones = true;
    }
}

/* A prefix comes from a file. No step runs: memory has asked (Settle). */
static void fill(const sim_request_t *request)
{
    uint32_t block_tokens = w.pool_options.block_tokens;
    uint32_t count = request->submission.prompt_tokens / block_tokens * block_tokens;
    uint64_t salt = request->submission.salt, id;
    block_pool_grant_t grant;
    if (w.plan_count > 0 || w.compute_session == 0 || w.compute_session != scheduler_session(w.scheduler)) return;
    if (count == 0 || !block_pool_fill_open(w.pool, salt, block_pool_identity(w.pool, salt),
                                            request->submission.prompt_ids, count, &id, &grant))
        return;
    for (uint32_t at = grant.cached_tokens; at < count; at++)
        w.compute.kv[(size_t)grant.blocks[at / block_tokens] * block_tokens + at % block_tokens] =
            request->expected_kv[at];
    for (uint32_t i = grant.cached_tokens / block_tokens; i < grant.block_count; i++)
        w.compute.writer_salt[grant.blocks[i]] = salt;
    if (sim_chance(&w.random, 20)) {
        block_pool_fill_drop(w.pool, id);
        return;
    }
    block_pool_fill_finish(w.pool, id, request->submission.prompt_ids, count);
    w.filled++;
}

static void people(void)
{
    uint32_t pin, tokens;
    const sim_request_t *request = &w.requests[sim_between(&w.random, 0, w.request_count - 1)];
    if (w.pool == NULL || w.scheduler == NULL || w.memory_epoch == 0) return;
    if (sim_chance(&w.random, 40)) clone_running();
    if (sim_chance(&w.random, 80)) fill(request);
    for (int i = 0; i < 4; i++) {
        const sim_request_t *one = &w.requests[sim_between(&w.random, 0, w.request_count - 1)];
        w.clones += block_pool_clone(w.pool, one->submission.salt, one->submission.prompt_ids,
                                     sim_between(&w.random, 1, one->submission.prompt_tokens), &pin,
                                     &tokens) == BLOCK_POOL_PINNED;
    }
    w.compute.clones = true;
    if (sim_chance(&w.random, 30))
        for (uint32_t i = 1; i <= 8; i++)
            if (sim_chance(&w.random, 50)) block_pool_unpin(w.pool, i);
}

static void fault(uint64_t kind)
{
    w.faults[kind]++;
    switch (kind) {
    case 0: kill_compute(false); break;
    case 1: kill_memory(false); break;
    case 2: kill_scheduler(sim_chance(&w.random, 50)); break;
    case 3: kill_client(sim_between(&w.random, 0, SIM_CLIENTS - 1)); break;
    case 5: confuse_compute(); break;
    case 6: people(); break;
    default:
        if (w.pool != NULL) block_pool_flush(w.pool);
        break;
    }
}

#endif
