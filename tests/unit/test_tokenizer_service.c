/* The tokenizer as a service against scripted peers: whatever becomes of the scheduler, a request that its client has
 * left is cancelled. The skeleton's calls are answered here instead of by common/daemon/daemon.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/daemon/daemon.h"
#include "common/limits.h"
#include "services/tokenizer/handlers.h"

#define SENT_MAX 64

struct qn_daemon {
    qn_stats_t *stats;
    char folder[64];
    struct {
        qn_message_type_t type;
        uint64_t request;
        int reason;
    } sent[SENT_MAX];
    size_t sent_count, taken;
    qn_peer_t scheduler;
    qn_send_outcome_t outcome; /* what every send says */
};

qn_send_outcome_t qn_daemon_send(qn_daemon_t *daemon, qn_peer_t to, qn_message_type_t type, const void *message)
{
    (void)to;
    if (daemon->outcome != QN_SEND_OK) return daemon->outcome;
    assert_true(daemon->sent_count < SENT_MAX);
    daemon->sent[daemon->sent_count].type = type;
    daemon->sent[daemon->sent_count].reason =
        type == QN_MESSAGE_CANCEL ? (int)((const qn_cancel_t *)message)->reason : -1;
    daemon->sent[daemon->sent_count++].request = ((const qn_head_t *)message)->request;
    return QN_SEND_OK;
}

qn_peer_t qn_daemon_peer(const qn_daemon_t *daemon, qn_service_t service)
{
    return service == QN_SERVICE_SCHEDULER ? daemon->scheduler : (qn_peer_t){0};
}

void qn_daemon_refuse(qn_daemon_t *daemon, qn_peer_t to, uint64_t request, uint16_t status, const char *param,
                      const char *text)
{
    (void)daemon;
    (void)to;
    (void)param;
    fail_msg("request %lu was refused with %u: %s", (unsigned long)request, status, text);
}

void qn_daemon_fail(qn_daemon_t *daemon, qn_err_t err)
{
    (void)daemon;
    fail_msg("the tokenizer ends: %s (%d)", qn_err_text(), (int)err);
}

const char *qn_daemon_run_dir(const qn_daemon_t *daemon) { return daemon->folder; }

uint32_t qn_daemon_epoch(const qn_daemon_t *daemon)
{
    (void)daemon;
    return 1;
}

void qn_daemon_set_state(qn_daemon_t *daemon, qn_state_t state, const char *text)
{
    (void)daemon;
    (void)state;
    (void)text;
}

qn_err_t qn_daemon_watch(qn_daemon_t *daemon, int fd)
{
    (void)daemon;
    (void)fd;
    return QN_OK;
}

void qn_daemon_unwatch(qn_daemon_t *daemon, int fd)
{
    (void)daemon;
    (void)fd;
}

qn_stats_t *qn_daemon_stats(qn_daemon_t *daemon) { return daemon->stats; }

/* ---- the case ---- */

typedef struct {
    qn_daemon_t daemon;
    qn_config_t *config;
    void *tokenizer;
} case_t;

static const qn_peer_t frontend = {.epoch = 5, .service = QN_SERVICE_FRONTEND};

static int setup(void **state)
{
    case_t *test = calloc(1, sizeof *test);
    assert_non_null(test);
    snprintf(test->daemon.folder, sizeof test->daemon.folder, "/tmp/qn-tokenizer-XXXXXX");
    assert_non_null(mkdtemp(test->daemon.folder));
    char model[128];
    snprintf(model, sizeof model, "model.path=%s", test->daemon.folder); /* no tokenizer.json: token ids only */
    const char *sets[] = {model};
    assert_int_equal(qn_config_load(NULL, sets, 1, test->daemon.folder, &test->config), QN_OK);
    const qn_stat_spec_t *tables[] = {qn_tokenizer_daemon.stats, qn_tokenizer_daemon.stats};
    size_t counts[] = {qn_tokenizer_daemon.stat_count, qn_tokenizer_daemon.stat_count};
    assert_int_equal(qn_stats_create(test->daemon.folder, "tokenizer", 1, tables, counts, 2, &test->daemon.stats),
                     QN_OK);
    assert_int_equal(qn_tokenizer_daemon.init(&test->daemon, qn_config_values(test->config), &test->tokenizer), QN_OK);
    *state = test;
    return 0;
}

static int teardown(void **state)
{
    case_t *test = *state;
    char command[128];
    qn_tokenizer_daemon.fini(&test->tokenizer);
    qn_stats_destroy(&test->daemon.stats);
    qn_config_free(&test->config);
    snprintf(command, sizeof command, "rm -r '%s'", test->daemon.folder);
    free(test);
    return system(command);
}

static qn_peer_t scheduler_of(uint32_t epoch) { return (qn_peer_t){.epoch = epoch, .service = QN_SERVICE_SCHEDULER}; }

static void deliver(case_t *test, qn_peer_t from, qn_message_type_t type, const void *message)
{
    for (const qn_handler_t *handler = tokenizer_handlers; handler->type != QN_MESSAGE_NONE; handler++)
        if (handler->type == type) handler->handle(test->tokenizer, from, message);
    qn_tokenizer_daemon.tick(test->tokenizer, 1);
}

static void peer(case_t *test, qn_peer_t peer, qn_peer_event_t event)
{
    if (peer.service == QN_SERVICE_SCHEDULER) test->daemon.scheduler = event == QN_PEER_GONE ? (qn_peer_t){0} : peer;
    qn_tokenizer_daemon.peer(test->tokenizer, peer, event);
    qn_tokenizer_daemon.tick(test->tokenizer, 1);
}

static void encode(case_t *test, uint64_t request)
{
    uint32_t ids[] = {1, 2, 3};
    qn_encode_t message = QN_ENCODE_INIT;
    message.head.request = request;
    message.prompt_ids = ids;
    message.prompt_ids_count = 3;
    message.sampling = (qn_sampling_t){.max_tokens = 9, .top_p = 1, .repetition_penalty = 1};
    deliver(test, frontend, QN_MESSAGE_ENCODE, &message);
}

static void cancel(case_t *test, uint64_t request, qn_cancel_reason_t reason)
{
    qn_cancel_t message = {.head.request = request, .reason = reason};
    deliver(test, frontend, QN_MESSAGE_CANCEL, &message);
}

static void replay_complete(case_t *test, qn_peer_t from)
{
    qn_replay_complete_t message = {0};
    deliver(test, from, QN_MESSAGE_REPLAY_COMPLETE, &message);
}

static void token(case_t *test, uint32_t scheduler, uint64_t request, uint32_t position)
{
    qn_sampled_token_t one = {.request = request, .position = position, .id = 7};
    qn_token_batch_t batch = {.tokens = &one, .tokens_count = 1};
    deliver(test, scheduler_of(scheduler), QN_MESSAGE_TOKEN_BATCH, &batch);
}

static void expect(case_t *test, qn_message_type_t type, uint64_t request)
{
    if (test->daemon.taken == test->daemon.sent_count) fail_msg("no %s was sent", qn_message_name(type));
    size_t at = test->daemon.taken++;
    if (test->daemon.sent[at].type != type)
        fail_msg("%s was sent, not %s", qn_message_name(test->daemon.sent[at].type), qn_message_name(type));
    assert_int_equal(test->daemon.sent[at].request, request);
}

static void expect_nothing(const case_t *test) { assert_int_equal(test->daemon.taken, test->daemon.sent_count); }

/* ---- tests ---- */

static void test_tokenizer_cancel_without_a_scheduler_reaches_the_next_one(void **state)
{
    case_t *test = *state;
    peer(test, frontend, QN_PEER_UP);
    peer(test, scheduler_of(1), QN_PEER_UP);
    expect(test, QN_MESSAGE_REPLAY_COMPLETE, 0);
    encode(test, 70);
    encode(test, 71);
    expect(test, QN_MESSAGE_SUBMIT, 70);
    expect(test, QN_MESSAGE_SUBMIT, 71);
    peer(test, scheduler_of(1), QN_PEER_GONE);
    cancel(test, 70, QN_CANCEL_REASON_CLIENT_GONE);
    cancel(test, 70, QN_CANCEL_REASON_CLIENT_GONE);  /* again */
    cancel(test, 69, QN_CANCEL_REASON_CLIENT_ASKED); /* of a tokenizer before this one */
    expect(test, QN_MESSAGE_TEXT_DELTA, 0);          /* its end, for the client that asked */
    expect_nothing(test);
    peer(test, scheduler_of(2), QN_PEER_UP);
    expect(test, QN_MESSAGE_SUBMIT, 71);
    expect(test, QN_MESSAGE_REPLAY_COMPLETE, 0);
    expect(test, QN_MESSAGE_CANCEL, 70);
    expect(test, QN_MESSAGE_CANCEL, 69);
    expect_nothing(test);
}

/* It was on its way to the scheduler when that died: the request is submitted again, and so is its end. */
static void test_tokenizer_cancel_lost_with_the_scheduler_is_said_again(void **state)
{
    case_t *test = *state;
    peer(test, frontend, QN_PEER_UP);
    peer(test, scheduler_of(1), QN_PEER_UP);
    encode(test, 70);
    cancel(test, 70, QN_CANCEL_REASON_CLIENT_ASKED);
    test->daemon.taken = test->daemon.sent_count;
    peer(test, scheduler_of(1), QN_PEER_GONE);
    peer(test, scheduler_of(2), QN_PEER_UP);
    expect(test, QN_MESSAGE_SUBMIT, 70);
    expect(test, QN_MESSAGE_REPLAY_COMPLETE, 0);
    expect(test, QN_MESSAGE_CANCEL, 70);
    assert_int_equal(test->daemon.sent[test->daemon.taken - 1].reason, QN_CANCEL_REASON_CLIENT_ASKED);
    expect_nothing(test);
}

static void test_tokenizer_cancel_waits_for_room(void **state)
{
    case_t *test = *state;
    peer(test, frontend, QN_PEER_UP);
    peer(test, scheduler_of(1), QN_PEER_UP);
    encode(test, 70);
    test->daemon.taken = test->daemon.sent_count;
    test->daemon.outcome = QN_SEND_FULL;
    cancel(test, 70, QN_CANCEL_REASON_CLIENT_GONE);
    assert_true(qn_tokenizer_daemon.tick(test->tokenizer, 5) < UINT64_MAX); /* it comes again by itself */
    test->daemon.outcome = QN_SEND_OK;
    qn_tokenizer_daemon.tick(test->tokenizer, 6);
    expect(test, QN_MESSAGE_CANCEL, 70);
    expect_nothing(test);
}

static void test_tokenizer_dead_frontend_is_cancelled_at_the_next_scheduler(void **state)
{
    case_t *test = *state;
    peer(test, frontend, QN_PEER_UP);
    peer(test, scheduler_of(1), QN_PEER_UP);
    encode(test, 70);
    test->daemon.taken = test->daemon.sent_count;
    peer(test, scheduler_of(1), QN_PEER_GONE);
    peer(test, frontend, QN_PEER_GONE);
    expect_nothing(test);
    peer(test, scheduler_of(2), QN_PEER_UP);
    expect(test, QN_MESSAGE_REPLAY_COMPLETE, 0);
    expect(test, QN_MESSAGE_CANCEL, 70);
}

/* A tokenizer that just came back knows nobody, and does not take that for nobody waiting. */
static void test_tokenizer_tokens_of_an_unknown_request_are_cancelled_once_all_is_replayed(void **state)
{
    case_t *test = *state;
    peer(test, scheduler_of(1), QN_PEER_UP);
    expect(test, QN_MESSAGE_REPLAY_COMPLETE, 0);
    token(test, 1, 70, 0);
    expect_nothing(test); /* no frontend yet */
    peer(test, frontend, QN_PEER_UP);
    qn_peer_t other = {.epoch = 6, .service = QN_SERVICE_FRONTEND, .instance = 1};
    peer(test, other, QN_PEER_UP);
    token(test, 1, 70, 0);
    replay_complete(test, frontend);
    token(test, 1, 70, 0);
    expect_nothing(test); /* the other may hold it */
    replay_complete(test, other);
    token(test, 1, 70, 1);
    expect(test, QN_MESSAGE_CANCEL, 70);
    expect_nothing(test);
    peer(test, other, QN_PEER_GONE);
    encode(test, 71);
    expect(test, QN_MESSAGE_SUBMIT, 71);
    token(test, 1, 71, 0); /* known */
    expect(test, QN_MESSAGE_TEXT_DELTA, 0);
    expect_nothing(test);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_tokenizer_cancel_without_a_scheduler_reaches_the_next_one, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_tokenizer_cancel_lost_with_the_scheduler_is_said_again, setup, teardown),
        cmocka_unit_test_setup_teardown(test_tokenizer_cancel_waits_for_room, setup, teardown),
        cmocka_unit_test_setup_teardown(test_tokenizer_dead_frontend_is_cancelled_at_the_next_scheduler, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_tokenizer_tokens_of_an_unknown_request_are_cancelled_once_all_is_replayed,
                                        setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
