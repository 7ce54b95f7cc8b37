/* The compute daemon as its peers see it: a real memory daemon, and in the role of the scheduler a client that plans
 * one sequence with lookahead 1. The text it gets is the reference's: over ipc and inproc, after refusals, and after
 * the end of the scheduler and of memory. */
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/daemon/daemon.h"
#include "common/watch/stats.h"
#include "tests/flow/runner.h"

#define DEADLINE_S 30
#define TOKENS 12
#define RESET_AT 5 /* tokens; then a new session begins */

/* Case 1 of tests/golden/default/golden.json. */
static const uint32_t PROMPT[] = {0, 36, 1345, 311, 224};
static const uint32_t EXPECTED[TOKENS] = {20, 17, 224, 426, 1345, 311, 267, 2581, 315, 273, 430, 2414};
#define PROMPT_TOKENS (sizeof PROMPT / sizeof PROMPT[0])

typedef struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool done;          /* every token and every refusal is there */
    bool with_refusals; /* sends a broken plan before every good one */
    bool probing;       /* sends what belongs to no session first, and waits for the answers */
    uint32_t probes;    /* answered */
    /* the client thread's alone until done */
    qn_daemon_t *daemon;
    qn_peer_t compute;
    uint32_t sent, received, refused, ids[TOKENS];
    uint64_t step;
    char refusal_param[65];
} script_t;

static script_t script = {.mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
static char run_dir[64];
static qn_config_t *config;

/* ---- the scheduler's role ---- */

static qn_err_t client_init(qn_daemon_t *daemon, const qn_config_values_t *values, void **ret_state)
{
    (void)values;
    script.daemon = daemon;
    script.compute = (qn_peer_t){0};
    script.sent = script.received = script.refused = 0;
    script.step = script.probes = 0;
    script.probing = true;
    *ret_state = &script;
    return QN_OK;
}

static void send_plan(const qn_step_plan_t *plan)
{
    qn_peer_status_t status;
    qn_step_plan_t whole = *plan;
    qn_daemon_peer_status(script.daemon, QN_SERVICE_COMPUTE, &status);
    if (!whole.memory_epoch) whole.memory_epoch = status.memory_epoch;
    if (!whole.session) whole.session = script.sent > RESET_AT ? 2 : 1;
    if (script.sent == 0 && !script.probing) whole.opens = true;
    assert_int_equal(qn_daemon_send(script.daemon, script.compute, QN_MESSAGE_STEP_PLAN, &whole), QN_SEND_OK);
}

/* Slot 9 holds nothing: refused, and nothing else is disturbed. */
static void send_broken_plan(void)
{
    send_plan(&(qn_step_plan_t){.step = ++script.step,
                                .runs = &(qn_slot_run_t){.slot = 9, .token_count = 1, .from_slot = true},
                                .runs_count = 1});
}

static void send_first_plan(void)
{
    qn_slot_set_t set = {.request = 77,
                         .slot = 3,
                         .prompt_tokens = PROMPT_TOKENS,
                         .sampling = {.top_p = 1, .repetition_penalty = 1, .logprobs = true, .max_tokens = TOKENS}};
    qn_slot_block_t blocks[] = {{3, 0, 5}, {3, 1, 2}};
    qn_slot_run_t run = {.slot = 3, .token_count = PROMPT_TOKENS, .sample = true};
    send_plan(&(qn_step_plan_t){.step = ++script.step,
                                .sets = &set,
                                .sets_count = 1,
                                .blocks = blocks,
                                .blocks_count = 2,
                                .runs = &run,
                                .runs_count = 1,
                                .ids = PROMPT,
                                .ids_count = PROMPT_TOKENS});
}

static void send_next_plan(void)
{
    qn_slot_run_t run = {
        .slot = 3, .position = PROMPT_TOKENS + script.sent - 1, .token_count = 1, .from_slot = true, .sample = true};
    send_plan(&(qn_step_plan_t){.step = ++script.step, .runs = &run, .runs_count = 1});
}

/* A new session: the slot is set anew although it is in use, on the KV that is there; the run begins at the last token. */
static void send_reset_plan(void)
{
    qn_slot_set_t set = {.request = 77,
                         .slot = 3,
                         .prompt_tokens = PROMPT_TOKENS,
                         .sampling = {.top_p = 1, .repetition_penalty = 1, .logprobs = true, .max_tokens = TOKENS}};
    qn_slot_block_t blocks[] = {{3, 0, 5}, {3, 1, 2}};
    qn_slot_run_t run = {.slot = 3, .position = PROMPT_TOKENS + script.sent - 1, .token_count = 1, .sample = true};
    send_plan(&(qn_step_plan_t){.step = ++script.step,
                                .sets = &set,
                                .sets_count = 1,
                                .blocks = blocks,
                                .blocks_count = 2,
                                .runs = &run,
                                .runs_count = 1,
                                .ids = &script.ids[script.sent - 1],
                                .ids_count = 1,
                                .session = 2,
                                .opens = true});
}

/* On the blocks of a memory that is not there, of a session that nobody opened; and where a step is that nobody sent. */
static void send_probes(uint32_t memory_epoch)
{
    qn_slot_run_t run = {.slot = 3, .token_count = 1, .from_slot = true};
    send_plan(
        &(qn_step_plan_t){.step = 1, .runs = &run, .runs_count = 1, .opens = true, .memory_epoch = memory_epoch + 1});
    send_plan(&(qn_step_plan_t){.step = 1, .runs = &run, .runs_count = 1, .session = 9});
    qn_step_query_t query = {.session = 9, .step = 1};
    assert_int_equal(qn_daemon_send(script.daemon, script.compute, QN_MESSAGE_STEP_QUERY, &query), QN_SEND_OK);
}

static void settle(void)
{
    bool all = script.received == TOKENS && (!script.with_refusals || script.refused == TOKENS);
    if (!all) return;
    pthread_mutex_lock(&script.mutex);
    script.done = true;
    pthread_cond_broadcast(&script.changed);
    pthread_mutex_unlock(&script.mutex);
}

static uint64_t client_tick(void *state, uint64_t now_ns)
{
    (void)state;
    qn_peer_status_t status;
    qn_daemon_peer_status(script.daemon, QN_SERVICE_COMPUTE, &status);
    script.compute = qn_daemon_peer(script.daemon, QN_SERVICE_COMPUTE);
    bool ready = script.compute.epoch && status.state == QN_STATE_READY && status.memory_epoch;
    if (ready && script.probing && script.probes == 0) {
        script.probes = 1;
        send_probes(status.memory_epoch);
    }
    if (script.probes == 4) script.probing = false;
    ready = ready && !script.probing;
    for (; ready && script.sent < TOKENS && script.sent < script.received + 2; script.sent++) {
        if (script.sent == RESET_AT && script.received < RESET_AT) break;
        if (script.with_refusals) send_broken_plan();
        if (script.sent == 0)
            send_first_plan();
        else if (script.sent == RESET_AT)
            send_reset_plan();
        else
            send_next_plan();
    }
    settle();
    return now_ns + 2000000;
}

static void take_result(void *state, qn_peer_t from, const void *message)
{
    (void)state, (void)from;
    const qn_step_result_t *result = message;
    assert_int_equal(result->tokens_count, 1);
    assert_int_equal(result->tokens[0].request, 77);
    assert_int_equal(result->tokens[0].position, PROMPT_TOKENS + script.received);
    assert_true(result->end_ns >= result->begin_ns && result->tokens[0].logprob < 0);
    assert_in_range(script.received, 0, TOKENS - 1);
    script.ids[script.received++] = result->tokens[0].id;
}

static void take_refusal(void *state, qn_peer_t from, const void *message)
{
    (void)state, (void)from;
    const qn_refusal_t *refusal = message;
    if (script.probing) {
        assert_int_equal(refusal->status, 503);
        assert_string_equal(refusal->param.data, script.probes == 1 ? "memory_epoch" : "session");
        assert_memory_equal(refusal->refused_type.data, "QSPL", 4);
        assert_true(refusal->refused_sequence > 0);
        script.probes++;
        return;
    }
    assert_int_equal(refusal->status, 400);
    snprintf(script.refusal_param, sizeof script.refusal_param, "%.*s", (int)refusal->param.bytes, refusal->param.data);
    script.refused++;
}

static void take_status(void *state, qn_peer_t from, const void *message)
{
    (void)state, (void)from;
    const qn_step_status_t *status = message;
    assert_true(script.probes == 3 && status->session == 9 && status->step == 1 && !status->held);
    script.probes++;
}

static const qn_daemon_descriptor_t client = {.service = QN_SERVICE_SCHEDULER,
                                              .name = "scheduler",
                                              .dials = (const qn_service_t[]){QN_SERVICE_COMPUTE, QN_SERVICE_NONE},
                                              .handlers = (const qn_handler_t[]){{QN_MESSAGE_STEP_RESULT, take_result},
                                                                                 {QN_MESSAGE_REFUSAL, take_refusal},
                                                                                 {QN_MESSAGE_STEP_STATUS, take_status},
                                                                                 {QN_MESSAGE_NONE, NULL}},
                                              .init = client_init,
                                              .tick = client_tick};

/* ---- running daemons ---- */

static void start(runner_t *runner, const qn_daemon_descriptor_t *descriptor, bool inproc)
{
    unsigned all = 1u << QN_SERVICE_MEMORY | 1u << QN_SERVICE_COMPUTE | 1u << QN_SERVICE_SCHEDULER;
    runner_start(runner, descriptor, config, inproc ? all : 0);
}

static void stop(runner_t *runner) { assert_int_equal(runner_stop(runner), QN_OK); }

/* One life of the client: from its start to all its tokens. */
static void run_client(bool inproc, bool with_refusals)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += DEADLINE_S;
    script.done = false;
    script.with_refusals = with_refusals;
    runner_t runner;
    start(&runner, &client, inproc);
    pthread_mutex_lock(&script.mutex);
    while (!script.done && pthread_cond_timedwait(&script.changed, &script.mutex, &until) == 0) {
    }
    bool done = script.done;
    pthread_mutex_unlock(&script.mutex);
    stop(&runner);
    if (!done) fail_msg("%u of %d tokens, %u refusals after %d s", script.received, TOKENS, script.refused, DEADLINE_S);
    assert_memory_equal(script.ids, EXPECTED, sizeof EXPECTED);
}

/* Plans that were on their way when compute lost its memory are lost with it: a scheduler looks at compute's state,
 * this one is simply started when the new memory is mapped. */
static void wait_for_models(uint64_t count)
{
    uint64_t until_ns = qn_clock_now_ns() + DEADLINE_S * 1000000000ull, mapped = 0;
    qn_stats_view_t *view;
    assert_int_equal(qn_stats_open(run_dir, "compute", &view), QN_OK);
    while (mapped < count && qn_clock_now_ns() < until_ns) {
        for (size_t i = 0; i < qn_stats_row_count(view); i++) {
            qn_stat_row_t row;
            qn_stats_read_row(view, i, &row);
            if (strcmp(row.name, "compute_models_mapped") == 0) mapped = row.value;
        }
        sched_yield();
    }
    qn_stats_close(&view);
    assert_int_equal(mapped, count);
}

static int setup(void **state)
{
    (void)state;
    static const char *const sets[] = {"model.path=deploy/models/default", "memory.kv_bytes=64MiB"};
    snprintf(run_dir, sizeof run_dir, "/tmp/qn-flow-XXXXXX");
    assert_non_null(mkdtemp(run_dir));
    if (qn_config_load(NULL, sets, 2, run_dir, &config)) fail_msg("%s", qn_err_text());
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    char command[128];
    qn_config_free(&config);
    snprintf(command, sizeof command, "rm -r '%s'", run_dir);
    return system(command);
}

static void serve(bool inproc)
{
    runner_t memory, compute;
    start(&memory, &qn_memory_daemon, inproc);
    start(&compute, &qn_compute_daemon, inproc);
    run_client(inproc, true);
    assert_string_equal(script.refusal_param, "runs");
    if (!inproc) {                 /* threads of one process live and end together */
        run_client(inproc, false); /* another scheduler: the slot the first one left is free */
        stop(&memory);
        start(&memory, &qn_memory_daemon, inproc);
        wait_for_models(2);
        run_client(inproc, false); /* another memory: mapped again */
    }
    stop(&compute);
    stop(&memory);
}

static void test_compute_serves_over_ipc(void **state)
{
    (void)state;
    serve(false);
}

static void test_compute_serves_over_inproc(void **state)
{
    (void)state;
    serve(true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_compute_serves_over_ipc, setup, teardown),
        cmocka_unit_test_setup_teardown(test_compute_serves_over_inproc, setup, teardown),
    };
    return cmocka_run_group_tests_name("compute", tests, NULL, NULL);
}
