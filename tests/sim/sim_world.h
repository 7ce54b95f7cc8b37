/* The simulated world: its state, the queue of events, the links between the services. */
#ifndef QN_TESTS_SIM_SIM_WORLD_H
#define QN_TESTS_SIM_SIM_WORLD_H

#include "services/memory/block_pool.h"
#include "services/scheduler/scheduler.h"
#include "tests/sim/sim_client.h"
#include "tests/sim/sim_compute.h"

#define QUEUE_MAX 4096u
#define PLANS_MAX 16u
#define EVENTS_MAX 400000u
#define LEDGER_BYTES (256u * 1024)

typedef enum {
    TO_MEMORY,   /* traffic */
    MEMORY_SEES, /* a new scheduler (the old one is gone) */
    GRANT,
    TO_COMPUTE,   /* plan */
    COMPUTE_SEES, /* a new scheduler */
    STEP_DONE,
    RESULT,
    PREFIX_HITS,
    SWITCH_POLICY, /* somebody chooses another policy, or a shadow */
    STEP_QUERY,    /* where is step `value`? */
    STEP_STATUS,
    PLAN_REFUSED, /* of a session that compute does not have open */
    TO_CLIENT,
    SUBMIT,
    CANCEL,
    MEMORY_GONE,
    MEMORY_UP,
    COMPUTE_GONE,
    COMPUTE_UP,
    CLIENT_GONE,
    CLIENT_UP, /* the scheduler learns */
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
    uint32_t session;
    bool held;
    void *payload;
} event_t;

typedef struct {
    plan_commit_t *commits;
    uint64_t *releases;
    plan_lease_t *leases;
    uint32_t commit_count, release_count, lease_count;
    uint64_t lease_batch;
    plan_lookup_t *lookups;
    uint32_t lookup_count;
    uint64_t lookup_batch;
} traffic_t;

typedef struct {
    plan_prefix_hit_t hits[64];
    uint32_t count;
    uint64_t batch;
} prefix_hits_t;

typedef struct {
    batch_grant_t *grants;
    uint32_t count, available;
} grants_t;

typedef struct {
    sim_plan_t *plan; /* NULL: forget all slots */
    uint32_t scheduler_epoch, memory_epoch;
} queued_plan_t;

/* Whom a poisoned request makes crash, and when. */
typedef enum { POISONS_COMPUTE, POISONS_MEMORY, POISONS_PLANNING, POISONS_SUBMIT, POISON_KINDS } poison_kind_t;

typedef struct {
    uint64_t request;
    poison_kind_t kind;
    uint32_t crashes;
} poison_t;

#define SIM_KEPT_MAX 8u
#define POISONS_MAX 2u
#define LIVES_MAX 64u

enum { LINK_TO_MEMORY, LINK_FROM_MEMORY, LINK_TO_COMPUTE, LINK_FROM_COMPUTE, LINK_TO_CLIENT, LINK_FROM_CLIENT, LINKS };

static struct {
    sim_random_t random;
    uint64_t now_ns, order, link_ns[LINKS], timer_ns, again_ns, next_request;
    event_t queue[QUEUE_MAX];
    uint32_t queue_count;

    uint8_t *mapping, *mapping_before;
    scheduler_options_t options;
    scheduler_model_t model;
    scheduler_t *scheduler;
    uint32_t scheduler_epoch;
    uint32_t sees_memory, sees_compute; /* epochs the scheduler talks to; 0 = none */

    block_pool_t *pool;
    block_pool_options_t pool_options;
    qn_policy_seat_t *eviction;
    uint32_t memory_epoch; /* 0 while it is down: memory_life counts */
    uint32_t memory_life, compute_life, compute_epoch;
    sim_compute_t compute;
    queued_plan_t plans[PLANS_MAX];
    uint32_t plan_count;
    bool executing;
    uint64_t execution;       /* number of the step that runs: an earlier end means nothing */
    uint32_t compute_session; /* that compute has open; 0 = none */

    sim_request_t requests[SIM_REQUESTS_MAX];
    uint32_t request_count;
    uint32_t client_epoch[SIM_CLIENTS];
    uint32_t scoring_percent; /* of the requests ask for prompt scores */
    uint32_t client_sees;     /* scheduler epoch the clients talk to; 0 = none */

    /* What the ledger of the scheduler that died held: all of it must be found again. */
    struct {
        uint64_t id;
        uint32_t generated;
        request_finish_t finish;
    } held[2 * SIM_REQUESTS_MAX];
    uint32_t held_count;
    bool compaction_torn; /* the request that was being accepted may be there: it compacts after its record, too */

    poison_t poisons[POISONS_MAX];
    uint32_t poison_count;
    bool compute_crashed[LIVES_MAX], memory_crashed[LIVES_MAX]; /* by epoch, as the service manager knows it */
    bool scheduler_crashed;
    uint32_t lost_compute, lost_memory; /* lives the scheduler saw last */

    /* What pins of the memory that died kept, when its bytes live on. */
    struct {
        uint32_t pin, tokens, block_count, ids[SIM_TOKENS_MAX], blocks[SIM_TOKENS_MAX];
        uint64_t salt;
    } kept[SIM_KEPT_MAX];
    uint32_t kept_count;
    bool bytes_live;
    uint64_t copies, clones, adopted, filled;

    char chosen[LEDGER_POLICY_PAGES + 1][QN_POLICY_NAME_MAX]; /* in force when the scheduler died; "": nobody chose */

    uint64_t switches, withdrawals, differences, lookups;
    uint64_t steps, hits, preemptions, faults[7], masked, from_slot, compactions, replayed, torn, forgotten, yielded,
        renewed;
} w;

static struct {
    uint64_t copies, clones, adopted, filled;
    uint64_t poison_crashes[POISON_KINDS], quarantined, switches, withdrawals, differences, lookups;
    uint64_t requests, tokens, steps, hits, preemptions, faults[7], masked, from_slot, compactions, replayed, torn,
        forgotten, yielded, renewed, events;
} total;

/* ---- events ---- */

static void push(uint64_t at_ns, event_t event)
{
    SIM_CHECK(w.queue_count < QUEUE_MAX, "too many events at once");
    event.at_ns = at_ns;
    event.order = w.order++;
    uint32_t i = w.queue_count++;
    for (; i > 0; i = (i - 1) / 2) {
        event_t *parent = &w.queue[(i - 1) / 2];
        if (parent->at_ns < event.at_ns || (parent->at_ns == event.at_ns && parent->order < event.order)) break;
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
        if (child >= w.queue_count) break;
        if (child + 1 < w.queue_count && before(&w.queue[child + 1], &w.queue[child])) child++;
        if (before(&last, &w.queue[child])) break;
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
    if (at_ns <= w.link_ns[link]) at_ns = w.link_ns[link] + 1;
    w.link_ns[link] = at_ns;
    push(at_ns, event);
}

static void free_payload(const event_t *event)
{
    if (event->payload == NULL) return;
    if (event->kind == TO_MEMORY) {
        traffic_t *traffic = event->payload;
        for (uint32_t i = 0; i < traffic->commit_count; i++)
            free((void *)traffic->commits[i].ids);
        for (uint32_t i = 0; i < traffic->lease_count; i++)
            free((void *)traffic->leases[i].ids);
        free(traffic->commits);
        free(traffic->releases);
        for (uint32_t i = 0; i < traffic->lookup_count; i++)
            free((void *)traffic->lookups[i].ids);
        free(traffic->leases);
        free(traffic->lookups);
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

static poison_t *find_poison(uint64_t request)
{
    for (uint32_t i = 0; i < w.poison_count; i++)
        if (w.poisons[i].request == request) return &w.poisons[i];
    return NULL;
}

/* Whether the request makes the daemon crash here; counted. */
static bool strikes(uint64_t request, poison_kind_t kind)
{
    poison_t *poison = find_poison(request);
    if (poison == NULL || poison->kind != kind) return false;
    poison->crashes++;
    total.poison_crashes[kind]++;
    return true;
}

static sim_request_t *find_request(uint64_t id)
{
    for (uint32_t i = 0; i < w.request_count; i++)
        if (w.requests[i].id == id) return &w.requests[i];
    SIM_CHECK(false, "nobody asked for request %llu", (unsigned long long)id);
    return NULL;
}

#endif
