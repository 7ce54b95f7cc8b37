/* The seeded simulator of scheduler and memory: the real ledger, batch, planner, policies, delivery and block pool,
 * between fake links with random delays, a fake compute that reads and writes a KV store through the block tables it
 * was told (sim_compute.h), and clients that know in advance what they must be told (sim_client.h).
 *
 * Each seed draws a configuration (block size, pool size, slots, budgets, lookahead, policy), a load (shared prefixes,
 * salts, stop ids, cancels, prompt scores), and faults: kills of compute, memory, scheduler (with its last record torn)
 * and tokenizers, cache flushes, and a compute that loses plans and slots while it lives on; some requests are poisoned
 * and make compute, memory or the scheduler crash. After every event all invariants are checked; at the end every request
 * has ended once, with the tokens the model gives when it is alone, the poisoned ones are quarantined and nobody else is,
 * and every block is back.
 *
 *     SIM_SEEDS=300 SIM_FIRST_SEED=1 build/tests/sim/test_sim        SIM_VERBOSE=1: one line per seed */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/sim/sim_draw.h"
#include "tests/sim/sim_peers.h"

/* ---- the scheduler's turn, as service_tick ---- */

static void check_invariants(void)
{
    const char *broken = w.scheduler != NULL ? scheduler_check(w.scheduler) : NULL;
    SIM_CHECK(broken == NULL, "%s", broken);
    broken = w.pool != NULL ? block_pool_check(w.pool) : NULL;
    SIM_CHECK(broken == NULL, "%s", broken);
}

/* Of those that have a client. */
static const sequence_t *oldest_running(void)
{
    const batch_t *batch = scheduler_batch(w.scheduler);
    const sequence_t *oldest = NULL;
    for (uint32_t slot = 0; slot < batch->slot_count; slot++) {
        const sequence_t *one =
            batch->slot_owner[slot] == BATCH_NOBODY ? NULL : &batch->sequences[batch->slot_owner[slot]];
        if (one != NULL && one->phase == SEQUENCE_RUNNING && !request_is_orphan(one->request) &&
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
                      .lease_batch = traffic->lease_batch,
                      .lookup_count = traffic->lookup_count,
                      .lookup_batch = traffic->lookup_batch};
    copy.lookups = sim_copy(traffic->lookups, traffic->lookup_count, sizeof *copy.lookups);
    copy.commits = sim_copy(traffic->commits, traffic->commit_count, sizeof *copy.commits);
    copy.releases = sim_copy(traffic->releases, traffic->release_count, sizeof *copy.releases);
    copy.leases = sim_copy(traffic->leases, traffic->lease_count, sizeof *copy.leases);
    for (uint32_t i = 0; i < copy.commit_count; i++)
        copy.commits[i].ids = sim_copy(copy.commits[i].ids, copy.commits[i].ids_count, sizeof(uint32_t));
    for (uint32_t i = 0; i < copy.lease_count; i++)
        copy.leases[i].ids = sim_copy(copy.leases[i].ids, copy.leases[i].ids_count, sizeof(uint32_t));
    for (uint32_t i = 0; i < copy.lookup_count; i++)
        copy.lookups[i].ids = sim_copy(copy.lookups[i].ids, copy.lookups[i].ids_count, sizeof(uint32_t));
    send_over(LINK_TO_MEMORY, (event_t){.kind = TO_MEMORY,
                                        .from_epoch = w.scheduler_epoch,
                                        .to_epoch = w.sees_memory,
                                        .payload = sim_copy(&copy, 1, sizeof copy)});
}

/* False: planning for a poisoned request made the scheduler crash, before the plan was sent. */
static bool send_plans(void)
{
    for (;;) {
        plan_t plan;
        bool built;
        scheduler_plan(w.scheduler, w.now_ns, &plan, &built);
        if (!built) return true;
        for (uint32_t i = 0; i < plan.run_count; i++) {
            const batch_t *batch = scheduler_batch(w.scheduler);
            uint32_t owner = batch->slot_owner[plan.runs[i].slot];
            if (strikes(batch->sequences[owner].request->id, POISONS_PLANNING)) return false;
        }
        w.steps++;
        w.from_slot += plan.from_slot_count;
        for (uint32_t i = 0; i < plan.reason_count; i++) {
            SIM_CHECK(plan.reasons[i][0] != '\0', "a decision without a reason");
            w.yielded += strstr(plan.reasons[i], "yields") != NULL;
        }
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
    if (at_ns < w.again_ns) w.again_ns = at_ns;
}

/* The first of those that were set in this turn, unless one before it is on its way. */
static void start_timer(void)
{
    if (w.again_ns == UINT64_MAX || (w.timer_ns > w.now_ns && w.timer_ns <= w.again_ns)) return;
    w.timer_ns = w.again_ns > w.now_ns ? w.again_ns : w.now_ns + 1;
    push(w.timer_ns, (event_t){.kind = TIMER});
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

/* As scheduler_send_quarantined. */
static void tell_quarantined(void)
{
    suspects_peer_t peer;
    const request_t *one;
    while ((one = scheduler_next_guilty(w.scheduler, &peer)) != NULL)
        SIM_CHECK(find_poison(one->id) != NULL, "request %llu is quarantined and did nothing",
                  (unsigned long long)one->id);
    for (one = NULL; (one = scheduler_next_untold(w.scheduler, one)) != NULL;) {
        if (w.client_sees != w.scheduler_epoch) continue;
        sim_request_t *request = find_request(one->id);
        if (request->state == SIM_OPEN) request->state = SIM_QUARANTINED;
        scheduler_told(w.scheduler, one);
    }
}

static void crash_scheduler(void)
{
    kill_scheduler(false);
    w.scheduler_crashed = true;
}

/* Who has a client does not wait for the slot of one that has none. */
static void check_orphans_yield(void)
{
    const batch_t *batch = scheduler_batch(w.scheduler);
    bool orphan_runs = false, waits = false;
    scheduler_counts_t counts;
    scheduler_counts(w.scheduler, &counts);
    if (counts.suspects > 0) return; /* the others keep what they have */
    for (uint32_t i = 0; i < ledger_requests_max(scheduler_ledger(w.scheduler)); i++) {
        const sequence_t *one = &batch->sequences[i];
        if (one->phase == SEQUENCE_NONE) continue;
        orphan_runs |= one->phase == SEQUENCE_RUNNING && request_is_orphan(one->request);
        waits |= one->phase == SEQUENCE_WAITING && !request_is_orphan(one->request);
    }
    SIM_CHECK(!orphan_runs || !waits || batch->free_slots > 0 || !scheduler_running(w.scheduler),
              "a request waits for the slot of one whose client is gone");
}

/* Ten seconds after its client died an orphan has left the ledger, however often the scheduler died meanwhile. */
static void check_orphans_end(void)
{
    const uint64_t slack_ns = 50000000; /* the death is seen, the end is carried out */
    for (uint32_t i = 0; i < w.request_count; i++) {
        const sim_request_t *request = &w.requests[i];
        if (request->abandoned_ns == 0 || w.now_ns < request->abandoned_ns + SCHEDULER_ORPHAN_NS + slack_ns) continue;
        const request_t *held = ledger_find(scheduler_ledger(w.scheduler), request->id);
        /* Its end waits for blocks that a step without a result, which compute has lost, may still write. */
        bool retires = held != NULL && scheduler_batch(w.scheduler)->sequences[held->index].phase == SEQUENCE_RETIRING;
        SIM_CHECK(held == NULL || (retires && held->finish != REQUEST_UNFINISHED && w.faults[5] > 0),
                  "request %llu is held for longer than an orphan's time", (unsigned long long)request->id);
    }
}

static void look_at_progress(void)
{
    const progress_t *progress;
    uint64_t again_ns;
    progress_verdict_t verdict = scheduler_progress(w.scheduler, w.now_ns, &progress, &again_ns);
    if (verdict == PROGRESS_RENEW) {
        scheduler_renew(w.scheduler);
        w.renewed++;
    } else if (verdict == PROGRESS_ASK) {
        send_over(LINK_TO_COMPUTE, (event_t){.kind = STEP_QUERY,
                                             .from_epoch = w.scheduler_epoch,
                                             .to_epoch = w.sees_compute,
                                             .session = scheduler_session(w.scheduler),
                                             .value = progress->step});
    }
    set_timer(again_ns);
}

static void tick(void)
{
    if (w.scheduler == NULL) return;
    w.again_ns = UINT64_MAX;
    look_at_progress();
    take_refusals();
    tell_quarantined();
    if (!send_plans()) {
        crash_scheduler();
        return;
    }
    scheduler_counts_t counts;
    scheduler_counts(w.scheduler, &counts);
    const sequence_t *oldest = counts.suspects == 0 ? oldest_running() : NULL; /* rule 9 preempts anybody */
    uint64_t oldest_id = oldest != NULL ? oldest->request->id : 0;
    plan_traffic_t traffic;
    scheduler_traffic(w.scheduler, w.now_ns, &traffic);
    SIM_CHECK(oldest == NULL || (oldest->phase == SEQUENCE_RUNNING && oldest->request->id == oldest_id),
              "the oldest running request %llu was preempted", (unsigned long long)oldest_id);
    if (traffic.commit_count + traffic.release_count + traffic.lease_count + traffic.lookup_count > 0)
        send_traffic(&traffic);
    send_tokens();
    set_timer(traffic.again_ns);
    set_timer(scheduler_tidy(w.scheduler, w.now_ns));
    if (delivery_pending(scheduler_delivery(w.scheduler))) set_timer(w.now_ns + 1000000);
    start_timer();
    check_orphans_yield();
    check_orphans_end();
}

static void start_scheduler(void)
{
    ledger_replay_t replay;
    w.options.epoch = w.scheduler_epoch;
    w.options.former_crashed = w.scheduler_crashed;
    w.scheduler_crashed = false;
    qn_err_t err = scheduler_create(&w.options, w.now_ns, &w.scheduler, &replay);
    SIM_CHECK(err == QN_OK, "%s", qn_err_text());
    for (uint32_t kind = QN_POLICY_SCHEDULING; kind <= LEDGER_POLICY_PAGES;
         kind++) { /* what was set live outlives it */
        const qn_policy_seat_t *seat = policies_seat(scheduler_policies(w.scheduler), kind);
        const char *choice = qn_policy_object_choice(qn_policy_seat_live(seat));
        SIM_CHECK(w.chosen[kind][0] == '\0' || strcmp(choice, w.chosen[kind]) == 0, "policy %s was chosen, %s decides",
                  w.chosen[kind], choice);
    }
    w.replayed += replay.requests;
    SIM_CHECK(replay.requests == w.held_count || (w.compaction_torn && replay.requests == w.held_count + 1),
              "%u requests were in the ledger, %u are found", w.held_count, replay.requests);
    for (uint32_t i = 0; i < w.held_count; i++) {
        const request_t *found = ledger_find(scheduler_ledger(w.scheduler), w.held[i].id);
        SIM_CHECK(found != NULL && found->generated_tokens == w.held[i].generated &&
                      (found->finish == w.held[i].finish || w.held[i].finish == REQUEST_UNFINISHED ||
                       found->sampling.prompt_logprobs),
                  "request %llu is not found as it was", (unsigned long long)w.held[i].id);
    }
    send_over(LINK_TO_MEMORY, (event_t){.kind = MEMORY_SEES, .from_epoch = w.scheduler_epoch});
    send_over(LINK_TO_COMPUTE, (event_t){.kind = COMPUTE_SEES, .from_epoch = w.scheduler_epoch});
    if (w.memory_epoch != 0)
        push(w.now_ns + sim_between(&w.random, 200000, 400000),
             (event_t){.kind = MEMORY_UP, .from_epoch = w.memory_epoch});
    push(w.now_ns + sim_between(&w.random, 200000, 400000),
         (event_t){.kind = COMPUTE_UP, .from_epoch = w.compute_epoch});
    for (uint32_t client = 0; client < SIM_CLIENTS; client++)
        push(w.now_ns + sim_between(&w.random, 1000, 400000), (event_t){.kind = CLIENT_UP, .value = client});
}

/* ---- clients ---- */

static void submit(uint64_t id)
{
    sim_request_t *request = find_request(id);
    if (request->state != SIM_FUTURE && request->state != SIM_OPEN) return;
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
    request->state = SIM_OPEN;
    scheduler_take_in_hand(w.scheduler, id);
    if (!scheduler_is_quarantined(w.scheduler, id) && strikes(id, POISONS_SUBMIT)) {
        crash_scheduler();
        return;
    }
    scheduler_submit_outcome_t outcome = scheduler_submit(w.scheduler, &request->submission, w.now_ns, &refusal);
    scheduler_take_in_hand(w.scheduler, 0);
    if (outcome != SCHEDULER_REFUSED) return;
    if (refusal.status == 500) {
        SIM_CHECK(find_poison(id) != NULL, "request %llu is refused for a crash and did nothing",
                  (unsigned long long)id);
        request->state = SIM_QUARANTINED;
        return;
    }
    SIM_CHECK(request->must_be_refused || refusal.status == 429, "request %llu was refused: %s", (unsigned long long)id,
              refusal.text);
    request->state = SIM_WAS_REFUSED;
}

/* What this life of the client holds no more is run for nobody, and so it is run no more. */
static void client_replayed(request_client_t client)
{
    scheduler_client_replayed(w.scheduler, client);
    const request_t *request = ledger_next(scheduler_ledger(w.scheduler), NULL);
    for (; request != NULL; request = ledger_next(scheduler_ledger(w.scheduler), request)) {
        bool is_its = request->client.epoch == client.epoch && request->client.instance == client.instance;
        SIM_CHECK(!is_its || request->finish != REQUEST_UNFINISHED || find_request(request->id)->state == SIM_OPEN,
                  "request %llu runs on for nobody", (unsigned long long)request->id);
    }
}

static void client_up(uint32_t client)
{
    if (w.scheduler == NULL) return;
    w.client_sees = w.scheduler_epoch;
    request_client_t life = {.epoch = w.client_epoch[client], .service = 2, .instance = (uint8_t)client};
    scheduler_client_up(w.scheduler, life);
    for (uint32_t i = 0; i < w.request_count; i++) {
        sim_request_t *request = &w.requests[i];
        if (request->client != client || request->state != SIM_OPEN) continue;
        submit(request->id);
        if (w.scheduler == NULL) return;
        if (request->cancelled) scheduler_cancel(w.scheduler, request->id, REQUEST_CANCELLED);
    }
    client_replayed(life);
}

static void client_takes(const event_t *event)
{
    const sim_delivery_t *delivery = event->payload;
    if (delivery == NULL || event->to_epoch != w.client_epoch[event->value]) return;
    const delivery_message_t *message = &delivery->message;
    if (message->scores != NULL) {
        sim_request_t *request = find_request(delivery->scores_request);
        if (request->state == SIM_OPEN) sim_take_scores(request, delivery);
        return;
    }
    uint32_t top = 0;
    for (uint32_t i = 0; i < message->token_count; i++) {
        sim_request_t *request = find_request(message->tokens[i].request);
        if (request->state == SIM_OPEN) sim_take_token(request, &message->tokens[i], message->top + top);
        top += message->tokens[i].top_count;
    }
    SIM_CHECK(top == message->top_count, "alternatives do not add up");
    for (uint32_t i = 0; i < message->end_count; i++) {
        sim_request_t *request = find_request(delivery->ends[i].request);
        SIM_CHECK(request->state != SIM_ENDED || w.scheduler_epoch > 1, "request %llu ends twice",
                  (unsigned long long)request->id);
        if (request->state == SIM_OPEN) sim_take_end(request, delivery->ends[i].generated, delivery->ends[i].finish);
    }
}

/* ---- one event ---- */

/* As the service does when the next life of a peer is there. */
static void judge(suspects_peer_t peer, uint32_t lost, const bool *crashed)
{
    if (lost == 0) return;
    if (crashed[lost])
        scheduler_peer_crashed(w.scheduler, peer);
    else
        scheduler_peer_survived(w.scheduler, peer);
}

static void handle_peer(const event_t *event)
{
    qn_err_t err = QN_OK;
    switch (event->kind) {
    case MEMORY_GONE:
        if (event->from_epoch == w.sees_memory) {
            w.sees_memory = 0;
            w.lost_memory = event->from_epoch;
            scheduler_memory_lost(w.scheduler);
        }
        break;
    case MEMORY_UP:
        if (event->from_epoch != w.memory_epoch || w.sees_memory == event->from_epoch) break;
        w.sees_memory = event->from_epoch;
        judge(SUSPECTS_MEMORY, w.lost_memory, w.memory_crashed);
        w.lost_memory = 0;
        err = scheduler_memory_up(w.scheduler, &w.model);
        break;
    case COMPUTE_GONE:
        if (event->from_epoch == w.sees_compute) {
            w.sees_compute = 0;
            w.lost_compute = event->from_epoch;
            scheduler_compute_lost(w.scheduler);
        }
        break;
    case COMPUTE_UP:
        if (event->from_epoch != w.compute_epoch || w.sees_compute == event->from_epoch) break;
        w.sees_compute = event->from_epoch;
        scheduler_compute_lost(w.scheduler); /* once more: it starts */
        judge(SUSPECTS_COMPUTE, w.lost_compute, w.compute_crashed);
        w.lost_compute = 0;
        scheduler_compute_up(w.scheduler);
        break;
    default: break;
    }
    SIM_CHECK(err == QN_OK, "%s", qn_err_text());
}

static void take_grants(const event_t *event)
{
    const grants_t *grants = event->payload;
    if (w.scheduler == NULL || event->to_epoch != w.scheduler_epoch || event->from_epoch != w.sees_memory) return;
    uint32_t misfits = scheduler_grant(w.scheduler, grants->grants, grants->count, grants->available);
    SIM_CHECK(misfits == 0, "%s", qn_err_text());
}

static void take_hits(const event_t *event)
{
    const prefix_hits_t *hits = event->payload;
    if (w.scheduler == NULL || event->to_epoch != w.scheduler_epoch || event->from_epoch != w.sees_memory) return;
    scheduler_prefix_hits(w.scheduler, hits->batch, hits->hits, hits->count);
}

static void take_result(const event_t *event)
{
    sim_result_t *result = event->payload;
    if (w.scheduler == NULL || result == NULL || event->session != scheduler_session(w.scheduler) ||
        event->to_epoch != w.scheduler_epoch || event->from_epoch != w.sees_compute)
        return;
    const batch_step_t *step;
    qn_err_t err = scheduler_result(w.scheduler, &result->result, w.now_ns, &step);
    SIM_CHECK(err == QN_OK, "%s", qn_err_text());
}

static void cancel(uint64_t id)
{
    sim_request_t *request = find_request(id);
    if (request->state != SIM_OPEN) return;
    request->cancelled = true;
    bool is_heard = w.scheduler != NULL && w.client_sees == w.scheduler_epoch;
    if (!is_heard && sim_chance(&w.random, 50)) { /* its client does not wait for a scheduler to be told */
        request->state = SIM_ABANDONED;
        w.forgotten++;
        return;
    }
    if (w.scheduler != NULL && w.client_sees == w.scheduler_epoch) scheduler_cancel(w.scheduler, id, REQUEST_CANCELLED);
}

/* Memory and compute see a new scheduler, which proves the old one dead. */
static void see_scheduler(const event_t *event)
{
    if (event->kind == MEMORY_SEES) {
        if (w.pool != NULL) block_pool_release_all(w.pool);
        return;
    }
    drop_waiting_plans();
    w.compute_session = 0;
    enqueue((queued_plan_t){0});
}

static void handle(event_t *event)
{
    switch (event->kind) {
    case TO_MEMORY: memory_takes(event); break;
    case MEMORY_SEES:
    case COMPUTE_SEES: see_scheduler(event); break;
    case GRANT: take_grants(event); break;
    case TO_COMPUTE: compute_takes(event); break;
    case STEP_QUERY: compute_answers(event); break;
    case STEP_STATUS:
    case PLAN_REFUSED:
        if (w.scheduler == NULL || event->to_epoch != w.scheduler_epoch || event->from_epoch != w.sees_compute) break;
        if (event->kind == STEP_STATUS)
            scheduler_step_status(w.scheduler, event->session, event->value, event->held, w.now_ns);
        else if (event->session == scheduler_session(w.scheduler))
            scheduler_renew(w.scheduler);
        break;
    case STEP_DONE: step_done(event); break;
    case RESULT: take_result(event); break;
    case PREFIX_HITS: take_hits(event); break;
    case SWITCH_POLICY: switch_policy(); break;
    case TO_CLIENT: client_takes(event); break;
    case SUBMIT:
        if (w.next_request < w.request_count && w.requests[w.next_request].id == event->value) w.next_request++;
        submit(event->value);
        break;
    case CANCEL: cancel(event->value); break;
    case MEMORY_GONE:
    case MEMORY_UP:
    case COMPUTE_GONE:
    case COMPUTE_UP:
        if (w.scheduler != NULL) handle_peer(event);
        break;
    case CLIENT_GONE:
        if (w.scheduler != NULL)
            scheduler_client_gone(w.scheduler,
                                  (request_client_t){.epoch = event->from_epoch,
                                                     .service = 2,
                                                     .instance = (uint8_t)event->value},
                                  w.now_ns);
        break;
    case CLIENT_UP: client_up((uint32_t)event->value); break;
    case SCHEDULER_START: start_scheduler(); break;
    case MEMORY_START: start_memory(); break;
    case FAULT: fault(event->value); break;
    case TIMER: break;
    }
}

/* ---- a seed ---- */

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
    qn_policy_catalogue_t catalogue = eviction_catalogue("");
    SIM_CHECK(qn_policy_seat_open(&catalogue, "lru", NULL, &w.eviction) == QN_OK, "%s", qn_err_text());
    w.pool_options.eviction = w.eviction;
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
        SIM_CHECK(!request->must_be_refused || request->state != SIM_ENDED || request->cancelled,
                  "request %llu had to be refused", (unsigned long long)request->id);
        const poison_t *poison = find_poison(request->id);
        bool had_to_be = poison != NULL && !request->cancelled && request->state != SIM_ABANDONED &&
                         request->state != SIM_WAS_REFUSED; /* the queue was full */
        SIM_CHECK(!had_to_be || request->state == SIM_QUARANTINED,
                  "poisoned request %llu was not quarantined (state %d)", (unsigned long long)request->id,
                  (int)request->state);
        total.quarantined += request->state == SIM_QUARANTINED;
        total.tokens += request->got_count;
    }
    block_pool_stats_t stats;
    block_pool_unpin_all(w.pool);
    block_pool_stats(w.pool, &stats);
    SIM_CHECK(stats.held_blocks == 0 && stats.sequences == 0, "%u blocks are held at the end", stats.held_blocks);
    ledger_usage_t usage;
    ledger_usage(scheduler_ledger(w.scheduler), &usage);
    /* A scheduler that dies takes two pieces of evidence with it: a crash that nobody judged, and who was alone. */
    uint64_t losses = w.faults[0] + w.faults[1] + w.faults[2] + w.faults[3] + w.faults[5];
    uint32_t most = w.poison_count == 1 ? 2 : 3 + 2 * (w.scheduler_epoch - 1);
    for (uint32_t i = 0; i < w.poison_count && losses == 0; i++)
        SIM_CHECK(w.poisons[i].crashes <= most, "request %llu made its daemon crash %u times",
                  (unsigned long long)w.poisons[i].request, w.poisons[i].crashes);
    SIM_CHECK(counts.suspects == 0, "%u requests are suspects for ever", counts.suspects);
    SIM_CHECK(usage.reserved_bytes == 0, "the ledger reserves space for nobody");
    w.compactions += usage.compactions;
    w.preemptions = counts.planner.preemptions;
    w.masked = counts.masked_runs;
}

static void finish(uint64_t events)
{
    count_policies();
    total.switches += w.switches;
    total.withdrawals += w.withdrawals;
    total.differences += w.differences;
    total.lookups += w.lookups;
    total.requests += w.request_count;
    total.steps += w.steps;
    total.hits += w.hits;
    total.preemptions += w.preemptions;
    total.masked += w.masked;
    total.from_slot += w.from_slot;
    total.compactions += w.compactions;
    total.replayed += w.replayed;
    total.torn += w.torn;
    total.forgotten += w.forgotten;
    total.yielded += w.yielded;
    total.events += events;
    total.renewed += w.renewed;
    total.copies += w.copies;
    total.clones += w.clones;
    total.adopted += w.adopted;
    total.filled += w.filled;
    for (uint32_t i = 0; i < 7; i++)
        total.faults[i] += w.faults[i];
    scheduler_destroy(&w.scheduler);
    block_pool_destroy(&w.pool);
    qn_policy_seat_close(&w.eviction);
    while (w.plan_count > 0)
        if (w.plans[--w.plan_count].plan != NULL) sim_plan_free(w.plans[w.plan_count].plan);
    free(w.compute.slots);
    free(w.compute.kv);
    free(w.compute.writer_salt);
}

/* Once, in the middle: one number of a held block changes, as a write through a wrong block table would do it. */
static void damage_store(void)
{
    for (uint32_t block = 0; block < w.pool_options.block_count; block++)
        if (w.pool != NULL && block_pool_references(w.pool, block) > 0)
            w.compute.kv[(size_t)block * w.pool_options.block_tokens] ^= 1;
}

static void run_seed(uint64_t seed, bool verbose, uint64_t damage_at)
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
        if (events == damage_at) damage_store();
    }
    check_end();
    if (verbose)
        printf("seed %llu: P %u, %u blocks, %u slots, lookahead %u, %s: %u requests, %llu steps, %llu preemptions, "
               "%llu events, "
               "%.3f s\n",
               (unsigned long long)seed, w.model.block_tokens, w.model.block_count, w.options.max_sequences,
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

static void report(uint64_t seeds)
{
    printf(
        "sim: %llu seeds, %llu requests, %llu tokens, %llu steps, %llu events; prefix hits %llu, preemptions %llu, "
        "from_slot "
        "%llu, masked %llu, compactions %llu, replayed %llu, torn %llu, forgotten %llu, yielded %llu, renewed %llu; kills: compute %llu, memory %llu, scheduler "
        "%llu, "
        "tokenizer %llu; flushes %llu; confusions %llu; clones %llu, copies %llu, adopted %llu, filled %llu; crashes: compute %llu, memory %llu, planning %llu, submit %llu; quarantined %llu; "
        "policies: switched %llu, withdrawn %llu, differences of shadows %llu, lookups %llu\n",
        (unsigned long long)seeds, (unsigned long long)total.requests, (unsigned long long)total.tokens,
        (unsigned long long)total.steps, (unsigned long long)total.events, (unsigned long long)total.hits,
        (unsigned long long)total.preemptions, (unsigned long long)total.from_slot, (unsigned long long)total.masked,
        (unsigned long long)total.compactions, (unsigned long long)total.replayed, (unsigned long long)total.torn,
        (unsigned long long)total.forgotten, (unsigned long long)total.yielded, (unsigned long long)total.renewed,
        (unsigned long long)total.faults[0], (unsigned long long)total.faults[1], (unsigned long long)total.faults[2],
        (unsigned long long)total.faults[3], (unsigned long long)total.faults[4], (unsigned long long)total.faults[5],
        (unsigned long long)total.clones, (unsigned long long)total.copies, (unsigned long long)total.adopted,
        (unsigned long long)total.filled, (unsigned long long)total.poison_crashes[0],
        (unsigned long long)total.poison_crashes[1], (unsigned long long)total.poison_crashes[2],
        (unsigned long long)total.poison_crashes[3], (unsigned long long)total.quarantined,
        (unsigned long long)total.switches, (unsigned long long)total.withdrawals,
        (unsigned long long)total.differences, (unsigned long long)total.lookups);
}

static void test_sim_every_seed_ends_as_predicted(void **state)
{
    (void)state;
    uint64_t seeds = from_environment("SIM_SEEDS", 300), first = from_environment("SIM_FIRST_SEED", 1);
    for (uint64_t seed = first; seed < first + seeds; seed++)
        run_seed(seed, getenv("SIM_VERBOSE") != NULL, 0);
    report(seeds);
    if (seeds < 300) return;
    /* what the seeds are meant to reach, they reach */
    assert_true(total.hits > 0 && total.preemptions > 0 && total.from_slot > 0 && total.masked > 0);
    for (int i = 0; i < POISON_KINDS; i++)
        assert_true(total.poison_crashes[i] > 0);
    assert_true(total.quarantined > 0);
    assert_true(total.compactions > 0 && total.replayed > 0 && total.torn > 0);
    assert_true(total.forgotten > 0 && total.yielded > 0);
    assert_true(total.renewed > 0);
    assert_true(total.switches > 0 && total.withdrawals > 0 && total.differences > 0 && total.lookups > 0);
    for (int i = 0; i < 7; i++)
        assert_true(total.faults[i] > 0);
    assert_true(total.copies > 0 && total.clones > 0 && total.adopted > 0 && total.filled > 0);
}

/* The simulator is worth something only if it notices. */
static void test_sim_one_wrong_number_in_the_store_is_noticed(void **state)
{
    (void)state;
    uint32_t noticed = 0, tried = 10;
    fflush(NULL);
    for (uint64_t seed = 1; seed <= tried; seed++) {
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            signal(SIGABRT, SIG_DFL);
            if (freopen("/dev/null", "w", stderr) == NULL) _exit(0);
            run_seed(seed, false, 300);
            _exit(0);
        }
        int status = 0;
        assert_int_equal(waitpid(child, &status, 0), child);
        noticed += !(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    assert_true(noticed >= tried / 2); /* in the others nobody read it any more */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sim_every_seed_ends_as_predicted),
        cmocka_unit_test(test_sim_one_wrong_number_in_the_store_is_noticed),
    };
    w.mapping = aligned_alloc(64, LEDGER_BYTES);
    w.mapping_before = malloc(LEDGER_BYTES);
    if (w.mapping == NULL || w.mapping_before == NULL) return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    free(w.mapping);
    free(w.mapping_before);
    return failed;
}
