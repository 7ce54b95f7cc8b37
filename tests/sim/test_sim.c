/* The seeded simulator of scheduler and memory: the real ledger, batch, planner, policies, delivery and block pool, between
 * fake links with random delays, a fake compute that reads and writes a KV store through the block tables it was told
 * (sim_compute.h), and clients that know in advance what they must be told (sim_client.h).
 *
 * Each seed draws a configuration (block size, pool size, slots, budgets, lookahead, policy), a load (shared prefixes,
 * salts, stop ids, cancels, prompt scores), and faults: kills of compute, memory, scheduler (with its last record torn)
 * and tokenizers, and cache flushes. After every event all invariants are checked; at the end every request has ended once,
 * with the tokens the model gives when it is alone, and every block is back.
 *
 *     SIM_SEEDS=300 SIM_FIRST_SEED=1 build/tests/sim/test_sim        SIM_VERBOSE=1: one line per seed */
#include <time.h>

#include "services/memory/block_pool.h"
#include "services/scheduler/ledger_record.h"
#include "services/scheduler/scheduler.h"
#include "tests/sim/sim_client.h"
#include "tests/sim/sim_compute.h"

#define QUEUE_MAX 4096u
#define PLANS_MAX 16u
#define EVENTS_MAX 400000u
#define LEDGER_BYTES (256u * 1024)

typedef enum {
    TO_MEMORY,        /* traffic */
    MEMORY_SEES,      /* a new scheduler (the old one is gone) */
    GRANT,
    TO_COMPUTE,       /* plan */
    COMPUTE_SEES,     /* a new scheduler */
    STEP_DONE,
    RESULT,
    TO_CLIENT,
    SUBMIT,
    CANCEL,
    MEMORY_GONE, MEMORY_UP, COMPUTE_GONE, COMPUTE_UP, CLIENT_GONE, CLIENT_UP,  /* the scheduler learns */
    SCHEDULER_START,
    MEMORY_START,
    FAULT,
    TIMER,
} event_kind_t;

typedef struct {
    uint64_t at_ns, order;
    event_kind_t kind;
    uint32_t from_epoch, to_epoch;
    uint64_t value;
    void *payload;
} event_t;

typedef struct {
    plan_commit_t *commits;
    uint64_t *releases;
    plan_lease_t *leases;
    uint32_t commit_count, release_count, lease_count;
    uint64_t lease_batch;
} traffic_t;

typedef struct {
    batch_grant_t *grants;
    uint32_t count, available;
} grants_t;

typedef struct {
    sim_plan_t *plan;              /* NULL: forget all slots */
    uint32_t scheduler_epoch, memory_epoch;
} queued_plan_t;

enum { LINK_TO_MEMORY, LINK_FROM_MEMORY, LINK_TO_COMPUTE, LINK_FROM_COMPUTE, LINK_TO_CLIENT, LINK_FROM_CLIENT, LINKS };

static struct {
    sim_random_t random;
    uint64_t now_ns, order, link_ns[LINKS], timer_ns, next_request;
    event_t queue[QUEUE_MAX];
    uint32_t queue_count;

    uint8_t *mapping, *mapping_before;
    scheduler_options_t options;
    scheduler_model_t model;
    scheduler_t *scheduler;
    uint32_t scheduler_epoch;
    uint32_t sees_memory, sees_compute;           /* epochs the scheduler talks to; 0 = none */

    block_pool_t *pool;
    block_pool_options_t pool_options;
    uint32_t memory_epoch;                        /* 0 while it is down: memory_life counts */
    uint32_t memory_life, compute_life, compute_epoch;
    sim_compute_t compute;
    queued_plan_t plans[PLANS_MAX];
    uint32_t plan_count;
    bool executing;

    sim_request_t requests[SIM_REQUESTS_MAX];
    uint32_t request_count;
    uint32_t client_epoch[SIM_CLIENTS];
    uint32_t client_sees;                         /* scheduler epoch the clients talk to; 0 = none */

    /* What the ledger of the scheduler that died held: all of it must be found again. */
    struct { uint64_t id; uint32_t generated; request_finish_t finish; } held[2 * SIM_REQUESTS_MAX];
    uint32_t held_count;

    uint64_t steps, hits, preemptions, faults[5], masked, from_slot, compactions, replayed, torn;
} w;

static struct { uint64_t requests, tokens, steps, hits, preemptions, faults[5], masked, from_slot, compactions, replayed, torn, events; } total;

/* ---- events ---- */

static void push(uint64_t at_ns, event_t event)
{
    SIM_CHECK(w.queue_count < QUEUE_MAX, "too many events at once");
    event.at_ns = at_ns;
    event.order = w.order++;
    uint32_t i = w.queue_count++;
    for (; i > 0; i = (i - 1) / 2) {
        event_t *parent = &w.queue[(i - 1) / 2];
        if (parent->at_ns < event.at_ns || (parent->at_ns == event.at_ns && parent->order < event.order))
            break;
        w.queue[i] = *parent;
    }
    w.queue[i] = event;
}

static bool before(const event_t *a, const event_t *b)
{
    return a->at_ns < b->at_ns || (a->at_ns == b->at_ns && a->order < b->order);
}

static event_t pop(void)
{
    event_t top = w.queue[0], last = w.queue[--w.queue_count];
    uint32_t i = 0;
    for (;;) {
        uint32_t child = 2 * i + 1;
        if (child >= w.queue_count)
            break;
        if (child + 1 < w.queue_count && before(&w.queue[child + 1], &w.queue[child]))
            child++;
        if (before(&last, &w.queue[child]))
            break;
        w.queue[i] = w.queue[child];
        i = child;
    }
    w.queue[i] = last;
    return top;
}

/* Sends over a link: random delay, never overtaking. */
static void send_over(int link, event_t event)
{
    uint64_t at_ns = w.now_ns + sim_between(&w.random, 1000, 100000);
    if (at_ns <= w.link_ns[link])
        at_ns = w.link_ns[link] + 1;
    w.link_ns[link] = at_ns;
    push(at_ns, event);
}

static void free_payload(const event_t *event)
{
    if (event->payload == NULL)
        return;
    if (event->kind == TO_MEMORY) {
        traffic_t *traffic = event->payload;
        for (uint32_t i = 0; i < traffic->commit_count; i++)
            free((void *)traffic->commits[i].ids);
        for (uint32_t i = 0; i < traffic->lease_count; i++)
            free((void *)traffic->leases[i].ids);
        free(traffic->commits);
        free(traffic->releases);
        free(traffic->leases);
    } else if (event->kind == GRANT) {
        grants_t *grants = event->payload;
        for (uint32_t i = 0; i < grants->count; i++)
            free((void *)grants->grants[i].blocks);
        free(grants->grants);
    } else if (event->kind == TO_COMPUTE) {
        sim_plan_free(event->payload);
        return;
    } else if (event->kind == TO_CLIENT) {
        sim_delivery_free(event->payload);
        return;
    }
    free(event->payload);
}

/* ---- the scheduler's turn, as service_tick ---- */

static void check_invariants(void)
{
    const char *broken = w.scheduler != NULL ? scheduler_check(w.scheduler) : NULL;
    SIM_CHECK(broken == NULL, "%s", broken);
    broken = w.pool != NULL ? block_pool_check(w.pool) : NULL;
    SIM_CHECK(broken == NULL, "%s", broken);
}

static const sequence_t *oldest_running(void)
{
    const batch_t *batch = scheduler_batch(w.scheduler);
    const sequence_t *oldest = NULL;
    for (uint32_t slot = 0; slot < batch->slot_count; slot++) {
        const sequence_t *one = batch->slot_owner[slot] == BATCH_NOBODY ? NULL : &batch->sequences[batch->slot_owner[slot]];
        if (one != NULL && one->phase == SEQUENCE_RUNNING &&
            (oldest == NULL || one->request->arrival < oldest->request->arrival))
            oldest = one;
    }
    return oldest;
}

static void send_traffic(const plan_traffic_t *traffic)
{
    traffic_t copy = {.commit_count = traffic->commit_count,
                      .release_count = traffic->release_count,
                      .lease_count = traffic->lease_count,
                      .lease_batch = traffic->lease_batch};
    copy.commits = sim_copy(traffic->commits, traffic->commit_count, sizeof *copy.commits);
    copy.releases = sim_copy(traffic->releases, traffic->release_count, sizeof *copy.releases);
    copy.leases = sim_copy(traffic->leases, traffic->lease_count, sizeof *copy.leases);
    for (uint32_t i = 0; i < copy.commit_count; i++)
        copy.commits[i].ids = sim_copy(copy.commits[i].ids, copy.commits[i].ids_count, sizeof(uint32_t));
    for (uint32_t i = 0; i < copy.lease_count; i++)
        copy.leases[i].ids = sim_copy(copy.leases[i].ids, copy.leases[i].ids_count, sizeof(uint32_t));
    send_over(LINK_TO_MEMORY, (event_t){.kind = TO_MEMORY,
                                        .from_epoch = w.scheduler_epoch,
                                        .to_epoch = w.sees_memory,
                                        .payload = sim_copy(&copy, 1, sizeof copy)});
}

static void send_plans(void)
{
    for (;;) {
        plan_t plan;
        bool built;
        qn_err_t err = scheduler_plan(w.scheduler, w.now_ns, &plan, &built);
        SIM_CHECK(err == QN_OK, "plan: %s", qn_err_text());
        if (!built)
            return;
        w.steps++;
        w.from_slot += plan.from_slot_count;
        for (uint32_t i = 0; i < plan.reason_count; i++)
            SIM_CHECK(plan.reasons[i][0] != '\0', "a decision without a reason");
        send_over(LINK_TO_COMPUTE, (event_t){.kind = TO_COMPUTE,
                                             .from_epoch = w.scheduler_epoch,
                                             .to_epoch = w.sees_compute,
                                             .value = w.sees_memory,
                                             .payload = sim_plan_copy(&plan)});
    }
}

static void send_tokens(void)
{
    delivery_t *delivery = scheduler_delivery(w.scheduler);
    delivery_message_t message;
    delivery_begin(delivery);
    while (delivery_next(delivery, &message)) {
        if (w.client_sees != w.scheduler_epoch || sim_chance(&w.random, 3)) {
            delivery_refused(delivery); /* its outbox is full, or it is not there */
            continue;
        }
        send_over(LINK_TO_CLIENT, (event_t){.kind = TO_CLIENT,
                                            .from_epoch = w.scheduler_epoch,
                                            .to_epoch = message.client.epoch,
                                            .value = message.client.instance,
                                            .payload = sim_delivery_copy(&message)});
        delivery_sent(delivery);
    }
}

static void set_timer(uint64_t at_ns)
{
    if (at_ns == UINT64_MAX || (w.timer_ns > w.now_ns && w.timer_ns <= at_ns))
        return;
    w.timer_ns = at_ns > w.now_ns ? at_ns : w.now_ns + 1;
    push(w.timer_ns, (event_t){.kind = TIMER});
}

static sim_request_t *find_request(uint64_t id)
{
    for (uint32_t i = 0; i < w.request_count; i++)
        if (w.requests[i].id == id)
            return &w.requests[i];
    SIM_CHECK(false, "nobody asked for request %llu", (unsigned long long)id);
    return NULL;
}

static void take_refusals(void)
{
    uint64_t id;
    request_client_t client;
    admission_refusal_t refusal;
    while (scheduler_next_refusal(w.scheduler, &id, &client, &refusal)) {
        sim_request_t *request = find_request(id);
        SIM_CHECK(request->must_be_refused, "request %llu was refused: %s", (unsigned long long)id, refusal.text);
        request->state = SIM_WAS_REFUSED;
    }
}

static void tick(void)
{
    if (w.scheduler == NULL)
        return;
    take_refusals();
    send_plans();
    const sequence_t *oldest = oldest_running();
    uint64_t oldest_id = oldest != NULL ? oldest->request->id : 0;
    plan_traffic_t traffic;
    qn_err_t err = scheduler_traffic(w.scheduler, w.now_ns, &traffic);
    SIM_CHECK(err == QN_OK, "traffic: %s", qn_err_text());
    SIM_CHECK(oldest == NULL || (oldest->phase == SEQUENCE_RUNNING && oldest->request->id == oldest_id),
              "the oldest running request %llu was preempted", (unsigned long long)oldest_id);
    if (traffic.commit_count + traffic.release_count + traffic.lease_count > 0)
        send_traffic(&traffic);
    send_tokens();
    set_timer(traffic.again_ns);
    set_timer(scheduler_tidy(w.scheduler, w.now_ns));
    if (delivery_pending(scheduler_delivery(w.scheduler)))
        set_timer(w.now_ns + 1000000);
}

/* ---- memory ---- */

static void start_memory(void)
{
    w.memory_epoch = w.memory_life;
    qn_err_t err = block_pool_create(&w.pool_options, &w.pool);
    SIM_CHECK(err == QN_OK, "%s", qn_err_text());
    w.compute.pool = w.pool;
    for (size_t i = 0; i < (size_t)w.pool_options.block_count * w.pool_options.block_tokens; i++)
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
                      request->expected_kv[at], "%s: request %llu has foreign or stale KV at %u", what,
                  (unsigned long long)sequence, at);
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
    w.hits += grant.cached_tokens > 0;
    check_content(one->sequence, 0, grant.cached_tokens, "prefix hit");
    for (uint32_t i = 0; i < grant.block_count; i++) {
        bool shared = i < grant.cached_tokens / w.pool_options.block_tokens;
        SIM_CHECK(!shared || w.compute.writer_salt[grant.blocks[i]] == one->salt, "a prefix was shared across salts");
        if (!shared)
            w.compute.writer_salt[grant.blocks[i]] = find_request(one->sequence)->submission.salt;
    }
}

static void memory_takes(const event_t *event)
{
    const traffic_t *traffic = event->payload;
    if (event->to_epoch != w.memory_epoch || w.memory_epoch == 0)
        return;
    for (uint32_t i = 0; i < traffic->commit_count; i++) {
        const plan_commit_t *commit = &traffic->commits[i];
        SIM_CHECK(block_pool_commit(w.pool, commit->sequence, commit->position, commit->ids, commit->ids_count),
                  "a commit of %llu at %u does not fit", (unsigned long long)commit->sequence, commit->position);
        check_content(commit->sequence, commit->position, commit->position + commit->ids_count, "commit");
    }
    for (uint32_t i = 0; i < traffic->release_count; i++)
        block_pool_release(w.pool, traffic->releases[i]);
    if (traffic->lease_count == 0)
        return;
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
    if (w.executing || w.plan_count == 0)
        return;
    w.executing = true;
    push(w.now_ns + sim_between(&w.random, 20000, 800000), (event_t){.kind = STEP_DONE, .from_epoch = w.compute_epoch});
}

static void enqueue(queued_plan_t plan)
{
    SIM_CHECK(w.plan_count < PLANS_MAX, "too many plans are queued");
    w.plans[w.plan_count++] = plan;
    begin_step();
}

static void step_done(const event_t *event)
{
    if (event->from_epoch != w.compute_epoch)
        return;
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
        sim_plan_free(done.plan);
        result->result.begin_ns = w.now_ns - 1000;
        result->result.end_ns = w.now_ns;
        send_over(LINK_FROM_COMPUTE, (event_t){.kind = RESULT,
                                               .from_epoch = w.compute_epoch,
                                               .to_epoch = done.scheduler_epoch,
                                               .payload = result});
    }
    begin_step();
}

/* Killed in the middle of a step: some of its runs were written. */
static void kill_compute(void)
{
    if (w.executing && w.plans[0].plan != NULL && w.compute.pool != NULL) {
        sim_result_t *result = malloc(sizeof *result);
        const queued_plan_t *plan = &w.plans[0];
        bool current = plan->scheduler_epoch == w.scheduler_epoch && plan->memory_epoch == w.memory_epoch;
        sim_execute(&w.compute, plan->plan, sim_between(&w.random, 0, plan->plan->plan.run_count), current, result);
        free(result);
    }
    for (uint32_t i = 0; i < w.plan_count; i++)
        if (w.plans[i].plan != NULL)
            sim_plan_free(w.plans[i].plan);
    w.plan_count = 0;
    w.executing = false;
    memset(w.compute.slots, 0, w.compute.slot_count * sizeof *w.compute.slots);
    w.compute.last_step = 0;
    w.compute_epoch = ++w.compute_life;
    uint64_t gone_ns = w.now_ns + sim_between(&w.random, 1000, 200000);
    push(gone_ns, (event_t){.kind = COMPUTE_GONE, .from_epoch = w.compute_epoch - 1});
    push(gone_ns + sim_between(&w.random, 1000, 500000), (event_t){.kind = COMPUTE_UP, .from_epoch = w.compute_epoch});
}

/* ---- faults ---- */

static void kill_memory(void)
{
    if (w.memory_epoch == 0)
        return;
    uint64_t gone_ns = w.now_ns + sim_between(&w.random, 1000, 200000);
    push(gone_ns, (event_t){.kind = MEMORY_GONE, .from_epoch = w.memory_epoch});
    w.memory_epoch = 0;
    w.memory_life++;
    w.compute.pool = NULL;
    block_pool_destroy(&w.pool);
    push(gone_ns + sim_between(&w.random, 1000, 500000), (event_t){.kind = MEMORY_START});
    if (sim_chance(&w.random, 30))
        kill_compute(); /* it cannot live without, or dies with it */
}

/* Undoes the end of what was written since `mapping_before`: a process that dies writes payloads in part, and the 8 bytes
 * that make a record count, or a compaction valid, not at all. */
static void tear_last_write(void)
{
    uint32_t first = 0, header_bytes = 4096;
    while (first < LEDGER_BYTES && w.mapping[first] == w.mapping_before[first])
        first++;
    if (first == LEDGER_BYTES)
        return;
    w.torn++;
    if (first < header_bytes) { /* a compaction: the other area is written, the switch is not thrown */
        memcpy(w.mapping, w.mapping_before, header_bytes);
        return;
    }
    uint32_t head = first & ~7u, cut = head + sim_between(&w.random, 0, LEDGER_BYTES - head - 8);
    memcpy(w.mapping + head, w.mapping_before + head, 8);
    cut = sim_chance(&w.random, 50) ? head + sim_between(&w.random, 0, 200) : cut;
    if (cut < LEDGER_BYTES)
        memcpy(w.mapping + cut, w.mapping_before + cut, LEDGER_BYTES - cut);
}

/* The process dies: its heap is gone, and what it was about to write may be there in part. */
static void kill_scheduler(bool torn)
{
    if (w.scheduler == NULL)
        return;
    w.held_count = 0;
    const ledger_t *ledger = scheduler_ledger(w.scheduler);
    for (const request_t *one = ledger_next(ledger, NULL); one != NULL; one = ledger_next(ledger, one)) {
        w.held[w.held_count].id = one->id;
        w.held[w.held_count].generated = one->generated_tokens;
        w.held[w.held_count++].finish = one->finish;
    }
    ledger_usage_t usage;
    ledger_usage(ledger, &usage);
    w.compactions += usage.compactions;
    if (torn && w.next_request < w.request_count) { /* while it accepts a request */
        admission_refusal_t refusal;
        memcpy(w.mapping_before, w.mapping, LEDGER_BYTES);
        scheduler_submit(w.scheduler, &w.requests[w.next_request].submission, w.now_ns, &refusal);
        tear_last_write();
    }
    scheduler_destroy(&w.scheduler);
    w.sees_memory = w.sees_compute = 0;
    w.timer_ns = 0;
    uint64_t lost_ns = w.now_ns + sim_between(&w.random, 0, 150000);
    for (uint32_t i = 0; i < w.queue_count; i++) /* the end of what it had sent is lost with it */
        if (w.queue[i].kind == TO_CLIENT && w.queue[i].at_ns >= lost_ns && w.queue[i].payload != NULL) {
            free_payload(&w.queue[i]);
            w.queue[i].payload = NULL;
        }
    w.scheduler_epoch++;
    push(w.now_ns + sim_between(&w.random, 1000, 400000), (event_t){.kind = SCHEDULER_START});
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
        if (request->client != client || request->state != SIM_OPEN)
            continue;
        request->got_count = 0;
        request->got_scores = 1;
        if (resubmits)
            push(w.now_ns + sim_between(&w.random, 200001, 900000), (event_t){.kind = SUBMIT, .value = request->id});
        else
            request->state = SIM_ABANDONED;
    }
}

static void fault(uint64_t kind)
{
    w.faults[kind]++;
    switch (kind) {
    case 0:
        kill_compute();
        break;
    case 1:
        kill_memory();
        break;
    case 2:
        kill_scheduler(sim_chance(&w.random, 50));
        break;
    case 3:
        kill_client(sim_between(&w.random, 0, SIM_CLIENTS - 1));
        break;
    default:
        if (w.pool != NULL)
            block_pool_flush(w.pool);
        break;
    }
}

static void start_scheduler(void)
{
    ledger_replay_t replay;
    qn_err_t err = scheduler_create(&w.options, w.now_ns, &w.scheduler, &replay);
    SIM_CHECK(err == QN_OK, "%s", qn_err_text());
    w.replayed += replay.requests;
    SIM_CHECK(replay.requests == w.held_count, "%u requests were in the ledger, %u are found", w.held_count, replay.requests);
    for (uint32_t i = 0; i < w.held_count; i++) {
        const request_t *found = ledger_find(scheduler_ledger(w.scheduler), w.held[i].id);
        SIM_CHECK(found != NULL && found->generated_tokens == w.held[i].generated &&
                  (found->finish == w.held[i].finish || w.held[i].finish == REQUEST_UNFINISHED),
                  "request %llu is not found as it was", (unsigned long long)w.held[i].id);
    }
    send_over(LINK_TO_MEMORY, (event_t){.kind = MEMORY_SEES, .from_epoch = w.scheduler_epoch});
    send_over(LINK_TO_COMPUTE, (event_t){.kind = COMPUTE_SEES, .from_epoch = w.scheduler_epoch});
    if (w.memory_epoch != 0)
        push(w.now_ns + sim_between(&w.random, 200000, 400000), (event_t){.kind = MEMORY_UP, .from_epoch = w.memory_epoch});
    push(w.now_ns + sim_between(&w.random, 200000, 400000), (event_t){.kind = COMPUTE_UP, .from_epoch = w.compute_epoch});
    for (uint32_t client = 0; client < SIM_CLIENTS; client++)
        push(w.now_ns + sim_between(&w.random, 1000, 400000), (event_t){.kind = CLIENT_UP, .value = client});
}

/* ---- clients ---- */

static void submit(uint64_t id)
{
    sim_request_t *request = find_request(id);
    if (request->state != SIM_FUTURE && request->state != SIM_OPEN)
        return;
    if (w.scheduler == NULL || w.client_sees != w.scheduler_epoch) {
        request->state = SIM_OPEN; /* the tokenizer holds it: CLIENT_UP submits */
        return;
    }
    if (request->client_epoch == w.client_epoch[request->client] && request->scheduler_epoch == w.scheduler_epoch)
        return; /* once per life of both */
    request->client_epoch = w.client_epoch[request->client];
    request->scheduler_epoch = w.scheduler_epoch;
    request->submission.client =
        (request_client_t){.epoch = request->client_epoch, .service = 2, .instance = (uint8_t)request->client};
    admission_refusal_t refusal;
    scheduler_submit_outcome_t outcome = scheduler_submit(w.scheduler, &request->submission, w.now_ns, &refusal);
    request->state = SIM_OPEN;
    if (outcome != SCHEDULER_REFUSED)
        return;
    SIM_CHECK(request->must_be_refused || refusal.status == 429, "request %llu was refused: %s", (unsigned long long)id,
              refusal.text);
    request->state = SIM_WAS_REFUSED;
}

static void client_up(uint32_t client)
{
    if (w.scheduler == NULL)
        return;
    w.client_sees = w.scheduler_epoch;
    scheduler_client_up(w.scheduler, (request_client_t){
                                         .epoch = w.client_epoch[client], .service = 2, .instance = (uint8_t)client});
    for (uint32_t i = 0; i < w.request_count; i++) {
        sim_request_t *request = &w.requests[i];
        if (request->client != client || request->state != SIM_OPEN)
            continue;
        submit(request->id);
        if (request->cancelled)
            scheduler_cancel(w.scheduler, request->id, REQUEST_CANCELLED);
    }
}

static void client_takes(const event_t *event)
{
    const sim_delivery_t *delivery = event->payload;
    if (delivery == NULL || event->to_epoch != w.client_epoch[event->value])
        return;
    const delivery_message_t *message = &delivery->message;
    if (message->scores != NULL) {
        sim_request_t *request = find_request(delivery->scores_request);
        if (request->state == SIM_OPEN)
            sim_take_scores(request, delivery);
        return;
    }
    uint32_t top = 0;
    for (uint32_t i = 0; i < message->token_count; i++) {
        sim_request_t *request = find_request(message->tokens[i].request);
        if (request->state == SIM_OPEN)
            sim_take_token(request, &message->tokens[i], message->top + top);
        top += message->tokens[i].top_count;
    }
    SIM_CHECK(top == message->top_count, "alternatives do not add up");
    for (uint32_t i = 0; i < message->end_count; i++) {
        sim_request_t *request = find_request(delivery->ends[i].request);
        SIM_CHECK(request->state != SIM_ENDED || w.scheduler_epoch > 1, "request %llu ends twice",
                  (unsigned long long)request->id);
        if (request->state == SIM_OPEN)
            sim_take_end(request, delivery->ends[i].generated, delivery->ends[i].finish);
    }
}

/* ---- one event ---- */

static void handle_peer(const event_t *event)
{
    qn_err_t err = QN_OK;
    switch (event->kind) {
    case MEMORY_GONE:
        if (event->from_epoch == w.sees_memory) {
            w.sees_memory = 0;
            scheduler_memory_lost(w.scheduler);
        }
        break;
    case MEMORY_UP:
        if (event->from_epoch != w.memory_epoch || w.sees_memory == event->from_epoch)
            break;
        w.sees_memory = event->from_epoch;
        err = scheduler_memory_up(w.scheduler, &w.model);
        break;
    case COMPUTE_GONE:
        if (event->from_epoch == w.sees_compute) {
            w.sees_compute = 0;
            scheduler_compute_lost(w.scheduler);
        }
        break;
    case COMPUTE_UP:
        if (event->from_epoch != w.compute_epoch || w.sees_compute == event->from_epoch)
            break;
        w.sees_compute = event->from_epoch;
        scheduler_compute_up(w.scheduler);
        break;
    default:
        break;
    }
    SIM_CHECK(err == QN_OK, "%s", qn_err_text());
}

static void take_grants(const event_t *event)
{
    const grants_t *grants = event->payload;
    if (w.scheduler == NULL || event->to_epoch != w.scheduler_epoch || event->from_epoch != w.sees_memory)
        return;
    qn_err_t err = scheduler_grant(w.scheduler, grants->grants, grants->count, grants->available);
    SIM_CHECK(err == QN_OK, "%s", qn_err_text());
}

static void take_result(const event_t *event)
{
    sim_result_t *result = event->payload;
    if (w.scheduler == NULL || event->to_epoch != w.scheduler_epoch || event->from_epoch != w.sees_compute)
        return;
    const batch_step_t *step;
    qn_err_t err = scheduler_result(w.scheduler, &result->result, w.now_ns, &step);
    SIM_CHECK(err == QN_OK, "%s", qn_err_text());
}

static void cancel(uint64_t id)
{
    sim_request_t *request = find_request(id);
    if (request->state != SIM_OPEN)
        return;
    request->cancelled = true;
    if (w.scheduler != NULL && w.client_sees == w.scheduler_epoch)
        scheduler_cancel(w.scheduler, id, REQUEST_CANCELLED);
}

/* Memory and compute see a new scheduler, which proves the old one dead. */
static void see_scheduler(const event_t *event)
{
    if (event->kind == MEMORY_SEES) {
        if (w.pool != NULL)
            block_pool_release_all(w.pool);
        return;
    }
    uint32_t kept = w.executing ? 1 : 0;
    while (w.plan_count > kept)
        if (w.plans[--w.plan_count].plan != NULL)
            sim_plan_free(w.plans[w.plan_count].plan);
    enqueue((queued_plan_t){0});
}

static void handle(event_t *event)
{
    switch (event->kind) {
    case TO_MEMORY:
        memory_takes(event);
        break;
    case MEMORY_SEES:
    case COMPUTE_SEES:
        see_scheduler(event);
        break;
    case GRANT:
        take_grants(event);
        break;
    case TO_COMPUTE:
        if (event->to_epoch != w.compute_epoch)
            break;
        enqueue((queued_plan_t){
            .plan = event->payload, .scheduler_epoch = event->from_epoch, .memory_epoch = (uint32_t)event->value});
        event->payload = NULL;
        break;
    case STEP_DONE:
        step_done(event);
        break;
    case RESULT:
        take_result(event);
        break;
    case TO_CLIENT:
        client_takes(event);
        break;
    case SUBMIT:
        if (w.next_request < w.request_count && w.requests[w.next_request].id == event->value)
            w.next_request++;
        submit(event->value);
        break;
    case CANCEL:
        cancel(event->value);
        break;
    case MEMORY_GONE:
    case MEMORY_UP:
    case COMPUTE_GONE:
    case COMPUTE_UP:
        if (w.scheduler != NULL)
            handle_peer(event);
        break;
    case CLIENT_GONE:
        if (w.scheduler != NULL)
            scheduler_client_gone(w.scheduler, (request_client_t){.epoch = event->from_epoch, .service = 2,
                                                                  .instance = (uint8_t)event->value}, w.now_ns);
        break;
    case CLIENT_UP:
        client_up((uint32_t)event->value);
        break;
    case SCHEDULER_START:
        start_scheduler();
        break;
    case MEMORY_START:
        start_memory();
        break;
    case FAULT:
        fault(event->value);
        break;
    case TIMER:
        break;
    }
}

/* ---- a policy that decides at random, within the rules ---- */

static void random_admit(const qn_policy_view_t *view, uint32_t most, qn_policy_admit_t *ret_admit)
{
    uint64_t hash = sim_mix(view->now_ns, view->waiting_count);
    for (uint32_t i = 0; i < view->sequence_count && ret_admit->count < most; i++) {
        uint32_t at = (uint32_t)((hash + i) % view->sequence_count);
        qn_policy_admission_t *admission = &ret_admit->admissions[ret_admit->count++];
        admission->id = view->sequences[at].id;
        snprintf(admission->reason, sizeof admission->reason, "random");
    }
}

static void random_share(const qn_policy_view_t *view, uint32_t budget, uint32_t chunk, uint32_t parts_max, int must,
                         qn_policy_share_t *ret_share)
{
    uint64_t hash = sim_mix(view->now_ns, budget);
    for (uint32_t i = 0; i < view->sequence_count && i < parts_max && budget > 0; i++) {
        const qn_policy_sequence_t *one = &view->sequences[(hash + i) % view->sequence_count];
        uint32_t most = one->prefill_tokens < chunk ? one->prefill_tokens : chunk;
        most = most < budget ? most : budget;
        uint32_t tokens = (uint32_t)(sim_mix(hash, i) % (most + 1));
        if (tokens == 0 && must && ret_share->count == 0)
            tokens = 1;
        if (tokens > 0)
            ret_share->parts[ret_share->count++] = (qn_policy_part_t){.id = one->id, .tokens = tokens};
        budget -= tokens;
    }
    snprintf(ret_share->reason, sizeof ret_share->reason, "random");
}

static void random_preempt(const qn_policy_view_t *view, uint64_t needy, qn_policy_preempt_t *ret_preempt)
{
    ret_preempt->id = view->sequences[sim_mix(view->now_ns, needy) % view->sequence_count].id;
    snprintf(ret_preempt->reason, sizeof ret_preempt->reason, "random");
}

static const qn_policy_t random_policy = {.version = QN_POLICY_ABI_VERSION, .name = "random", .admit = random_admit,
                                          .share = random_share, .preempt = random_preempt};

/* ---- a seed ---- */

static void draw_configuration(void)
{
    sim_random_t *random = &w.random;
    static const uint32_t block_tokens[] = {1, 2, 3, 4, 8, 16};
    static const char *const policies[] = {"fcfs", "priority"};
    uint32_t slots = sim_between(random, 1, 12);
    w.pool_options = (block_pool_options_t){.block_tokens = block_tokens[sim_between(random, 0, 5)],
                                            .sequences_max = 256,
                                            .prefix_cache = sim_chance(random, 85)};
    w.model.block_tokens = w.pool_options.block_tokens;
    w.model.max_model_len = sim_between(random, 8, 120);
    uint32_t one = (w.model.max_model_len + w.model.block_tokens - 1) / w.model.block_tokens;
    uint32_t tiny = one > 2 && sim_chance(random, 10) ? one - 1 : one; /* 10 %: not even one longest sequence fits */
    w.pool_options.block_count = w.model.block_count = sim_chance(random, 60) ? sim_between(random, tiny, tiny + one)
                                                                              : sim_between(random, one, one * slots + 4);
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
        .policy = policies[sim_between(random, 0, 1)],
        .policy_functions = sim_chance(random, 30) ? &random_policy : NULL,
        .ledger_base = w.mapping,
        .ledger_bytes = sim_chance(random, 50) ? LEDGER_BYTES : LEDGER_BYTES_FOR(slots) / 8 * 8, /* small: it compacts */
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
        .prompt_logprobs = sim_chance(random, 15),
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
        if (known > 0)
            submission->prompt_tokens = sim_between(random, 1, known);
    } else if (sim_chance(random, 50))
        request->prompt[submission->prompt_tokens - 1] = sim_between(random, 0, SIM_VOCAB - 1);
    for (uint32_t i = 0; i < submission->stop_count; i++)
        request->stop_ids[i] = sim_between(random, 0, SIM_VOCAB - 1);
    uint32_t pool_tokens = w.model.block_count * w.model.block_tokens;
    admission_model_t limits = {.vocab_size = SIM_VOCAB, .max_model_len = w.model.max_model_len, .pool_tokens = pool_tokens};
    admission_refusal_t refusal;
    uint32_t generated_max;
    request->must_be_refused = !admission_check(&limits, submission, &generated_max, &refusal);
    if (!request->must_be_refused)
        sim_predict(request, generated_max, w.model.eos_ids, w.model.eos_count);
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
    uint32_t faults = sim_chance(random, 25) ? 0 : sim_between(random, 1, 6);
    for (uint32_t i = 0; i < faults; i++)
        push(sim_next(random) % (at_ns + 20000000), (event_t){.kind = FAULT, .value = sim_between(random, 0, 4)});
}

static void begin(uint64_t seed)
{
    uint8_t *mapping = w.mapping, *mapping_before = w.mapping_before;
    memset(&w, 0, sizeof w);
    memset(mapping, 0, LEDGER_BYTES);
    sim_seed = seed;
    w.random.state = sim_mix(seed, 17);
    w.mapping = mapping;
    w.mapping_before = mapping_before;
    draw_configuration();
    uint32_t blocks = w.pool_options.block_count;
    w.compute = (sim_compute_t){.slot_count = w.options.max_sequences,
                                .block_count = blocks,
                                .block_tokens = w.model.block_tokens,
                                .max_step_tokens = w.options.planner.max_step_tokens,
                                .slots = calloc(w.options.max_sequences, sizeof(sim_slot_t)),
                                .kv = calloc((size_t)blocks * w.model.block_tokens, sizeof(uint64_t)),
                                .writer_salt = calloc(blocks, sizeof(uint64_t))};
    w.scheduler_epoch = w.memory_life = w.compute_life = w.compute_epoch = 1;
    for (uint32_t i = 0; i < SIM_CLIENTS; i++)
        w.client_epoch[i] = 1 + i;
    draw_load();
    start_memory();
    start_scheduler();
}

/* Nothing is left to happen: everybody has an end, everything is back. */
static void check_end(void)
{
    SIM_CHECK(w.scheduler != NULL && w.pool != NULL, "a service never came back");
    scheduler_counts_t counts;
    scheduler_counts(w.scheduler, &counts);
    SIM_CHECK(counts.requests == 0, "%u requests never end (%u waiting, %u leasing, %u running, %u retiring)",
              counts.requests, counts.waiting, counts.leasing, counts.running, counts.retiring);
    for (uint32_t i = 0; i < w.request_count; i++) {
        const sim_request_t *request = &w.requests[i];
        SIM_CHECK(request->state != SIM_OPEN && request->state != SIM_FUTURE, "request %llu was never ended",
                  (unsigned long long)request->id);
        SIM_CHECK(!request->must_be_refused || request->state != SIM_ENDED, "request %llu had to be refused",
                  (unsigned long long)request->id);
        total.tokens += request->got_count;
    }
    block_pool_stats_t stats;
    block_pool_stats(w.pool, &stats);
    SIM_CHECK(stats.held_blocks == 0 && stats.sequences == 0, "%u blocks are held at the end", stats.held_blocks);
    ledger_usage_t usage;
    ledger_usage(scheduler_ledger(w.scheduler), &usage);
    SIM_CHECK(usage.reserved_bytes == 0, "the ledger reserves space for nobody");
    w.compactions += usage.compactions;
    w.preemptions = counts.planner.preemptions;
    w.masked = counts.masked_runs;
}

static void finish(uint64_t events)
{
    total.requests += w.request_count;
    total.steps += w.steps;
    total.hits += w.hits;
    total.preemptions += w.preemptions;
    total.masked += w.masked;
    total.from_slot += w.from_slot;
    total.compactions += w.compactions;
    total.replayed += w.replayed;
    total.torn += w.torn;
    total.events += events;
    for (uint32_t i = 0; i < 5; i++)
        total.faults[i] += w.faults[i];
    scheduler_destroy(&w.scheduler);
    block_pool_destroy(&w.pool);
    while (w.plan_count > 0)
        if (w.plans[--w.plan_count].plan != NULL)
            sim_plan_free(w.plans[w.plan_count].plan);
    free(w.compute.slots);
    free(w.compute.kv);
    free(w.compute.writer_salt);
}

static void run_seed(uint64_t seed, bool verbose)
{
    begin(seed);
    uint64_t events = 0;
    while (w.queue_count > 0) {
        event_t event = pop();
        SIM_CHECK(event.at_ns >= w.now_ns, "time runs backwards");
        w.now_ns = event.at_ns;
        handle(&event);
        free_payload(&event);
        tick();
        check_invariants();
        SIM_CHECK(++events < EVENTS_MAX, "it never ends");
    }
    check_end();
    if (verbose)
        printf("seed %llu: P %u, %u blocks, %u slots, lookahead %u, %s: %u requests, %llu steps, %llu preemptions, %llu events, "
               "%.3f s\n", (unsigned long long)seed, w.model.block_tokens, w.model.block_count, w.options.max_sequences,
               w.options.planner.lookahead, scheduler_policy_name(w.scheduler), w.request_count,
               (unsigned long long)w.steps, (unsigned long long)w.preemptions, (unsigned long long)events,
               (double)w.now_ns / 1e9);
    finish(events);
}

static uint64_t from_environment(const char *name, uint64_t fallback)
{
    const char *text = getenv(name);
    return text != NULL ? strtoull(text, NULL, 10) : fallback;
}

int main(void)
{
    uint64_t seeds = from_environment("SIM_SEEDS", 300), first = from_environment("SIM_FIRST_SEED", 1);
    w.mapping = aligned_alloc(64, LEDGER_BYTES);
    w.mapping_before = malloc(LEDGER_BYTES);
    if (w.mapping == NULL || w.mapping_before == NULL)
        return 1;
    for (uint64_t seed = first; seed < first + seeds; seed++)
        run_seed(seed, getenv("SIM_VERBOSE") != NULL);
    printf("sim: %llu seeds, %llu requests, %llu tokens, %llu steps, %llu events; prefix hits %llu, preemptions %llu, from_slot "
           "%llu, masked %llu, compactions %llu, replayed %llu, torn %llu; kills: compute %llu, memory %llu, scheduler %llu, "
           "tokenizer %llu; flushes %llu\n", (unsigned long long)seeds, (unsigned long long)total.requests,
           (unsigned long long)total.tokens, (unsigned long long)total.steps, (unsigned long long)total.events,
           (unsigned long long)total.hits, (unsigned long long)total.preemptions, (unsigned long long)total.from_slot,
           (unsigned long long)total.masked, (unsigned long long)total.compactions, (unsigned long long)total.replayed,
           (unsigned long long)total.torn, (unsigned long long)total.faults[0], (unsigned long long)total.faults[1],
           (unsigned long long)total.faults[2], (unsigned long long)total.faults[3], (unsigned long long)total.faults[4]);
    free(w.mapping);
    free(w.mapping_before);
    return 0;
}
