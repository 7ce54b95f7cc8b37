/* The whole frontend against scripted peers: real HTTP over a Unix socket on one side, the skeleton's calls on the
 * other, which this program answers instead of common/daemon.c. Everything that the frontend sends goes through the
 * wire format and its checks, and so does what it gets. One thread: a client reads while the frontend's tick runs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <jansson.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/daemon.h"
#include "common/wire.h"
#include "services/frontend/http_server.h"

#define SENT_MAX 1024
#define PUMPS_MAX 3000 /* of at most 1 ms: a test that waits for nothing fails after 3 s */

/* ---- the skeleton, scripted ---- */

struct qn_daemon {
    qn_stats_t *stats;
    char folder[64];
    qn_arena_t arena;             /* of all decoded messages */
    struct { qn_message_type_t type; qn_service_t to; const void *message; } sent[SENT_MAX];
    size_t sent_count, taken;
    qn_peer_t peers[QN_SERVICE_TOOL + 1];
    qn_send_outcome_t outcome;    /* what every send says */
    qn_state_t state;
    int fds[2];
    size_t fd_count;
};

qn_send_outcome_t qn_daemon_send(qn_daemon_t *daemon, qn_peer_t to, qn_message_type_t type, const void *message)
{
    if (daemon->outcome != QN_SEND_OK) return daemon->outcome;
    assert_true(daemon->sent_count < SENT_MAX);
    const uint8_t *frame;
    size_t bytes;
    if (qn_wire_encode(qn_wire_type(type), message, &daemon->arena, &frame, &bytes) != QN_OK)
        fail_msg("%s", qn_err_text());
    void *copy = qn_arena_zalloc(&daemon->arena, 1, qn_message_struct_bytes(type));
    if (qn_wire_decode(qn_wire_type(type), frame, bytes, &daemon->arena, copy) != QN_OK) fail_msg("%s", qn_err_text());
    daemon->sent[daemon->sent_count].type = type;
    daemon->sent[daemon->sent_count].to = (qn_service_t)to.service;
    daemon->sent[daemon->sent_count++].message = copy;
    return QN_SEND_OK;
}

qn_peer_t qn_daemon_peer(const qn_daemon_t *daemon, qn_service_t service) { return daemon->peers[service]; }

void qn_daemon_set_state(qn_daemon_t *daemon, qn_state_t state, const char *text)
{
    (void)text;
    daemon->state = state;
}

qn_err_t qn_daemon_watch(qn_daemon_t *daemon, int fd)
{
    daemon->fds[daemon->fd_count++] = fd;
    return QN_OK;
}

void qn_daemon_unwatch(qn_daemon_t *daemon, int fd)
{
    (void)fd;
    daemon->fd_count--;
}

uint32_t qn_daemon_epoch(const qn_daemon_t *daemon)
{
    (void)daemon;
    return 77;
}

const char *qn_daemon_run_dir(const qn_daemon_t *daemon) { return daemon->folder; }

qn_stats_t *qn_daemon_stats(qn_daemon_t *daemon) { return daemon->stats; }

void qn_daemon_peer_status(const qn_daemon_t *daemon, qn_service_t service, qn_peer_status_t *ret_status)
{
    *ret_status = (qn_peer_status_t){ .peer = daemon->peers[service], .alive = daemon->peers[service].epoch != 0,
                                      .state = QN_STATE_READY, .pid = 1000u + service, .uptime_ms = 1500,
                                      .build = "test", .transport = "ipc" };
}

void qn_daemon_self_status(const qn_daemon_t *daemon, qn_peer_status_t *ret_status)
{
    *ret_status = (qn_peer_status_t){ .state = daemon->state, .pid = 1, .build = "test", .restarts = 2 };
}

/* ---- the case: one frontend, its peers, its clients ---- */

typedef struct {
    qn_daemon_t daemon;
    qn_config_t *config;
    void *frontend;
    uint64_t ahead_ns;            /* added to the clock that ticks see */
} case_t;

typedef struct {
    int fd;
    reply_buffer_t in;            /* all bytes received, NUL-terminated by client_text */
    bool closed;
} client_t;

static void peer_event(case_t *test, qn_service_t service, uint32_t epoch, qn_peer_event_t event)
{
    qn_peer_t peer = { .epoch = epoch, .service = service };
    test->daemon.peers[service] = event == QN_PEER_GONE ? (qn_peer_t){ 0 } : peer;
    qn_frontend_daemon.peer(test->frontend, peer, event);
}

static void deliver(case_t *test, qn_message_type_t type, const void *message)
{
    const uint8_t *frame;
    size_t bytes;
    if (qn_wire_encode(qn_wire_type(type), message, &test->daemon.arena, &frame, &bytes) != QN_OK)
        fail_msg("%s", qn_err_text());
    void *copy = qn_arena_zalloc(&test->daemon.arena, 1, qn_message_struct_bytes(type));
    assert_int_equal(qn_wire_decode(qn_wire_type(type), frame, bytes, &test->daemon.arena, copy), QN_OK);
    const qn_handler_t *handler = qn_frontend_daemon.handlers;
    while (handler->type != type) {
        assert_int_not_equal(handler->type, QN_MESSAGE_NONE);
        handler++;
    }
    handler->handle(test->frontend, test->daemon.peers[QN_SERVICE_TOKENIZER], copy);
}

static void describe(case_t *test)
{
    uint32_t eos[] = { 0 };
    qn_model_description_t message = QN_MODEL_DESCRIPTION_INIT;
    message.default_sampling = (qn_sampling_t){ .temperature = 1, .top_p = 1, .repetition_penalty = 1 };
    message.model = qn_text("tiny");
    message.vocab_size = 1000;
    message.max_model_len = 2048;
    message.block_tokens = 16;
    message.eos_ids = eos;
    message.eos_ids_count = 1;
    deliver(test, QN_MESSAGE_MODEL_DESCRIPTION, &message);
}

static int setup_with(void **state, const char *const *sets, size_t set_count)
{
    case_t *test = calloc(1, sizeof *test);
    strcpy(test->daemon.folder, "/tmp/qn-frontend-XXXXXX");
    assert_non_null(mkdtemp(test->daemon.folder));
    char listen[96];
    snprintf(listen, sizeof listen, "frontend.listen=unix:%s/http", test->daemon.folder);
    const char *all[8] = { listen };
    for (size_t i = 0; i < set_count; i++) all[i + 1] = sets[i];
    if (qn_config_load(NULL, all, set_count + 1, test->daemon.folder, &test->config) != QN_OK)
        fail_msg("%s", qn_err_text());
    const qn_stat_spec_t *tables[] = { qn_frontend_daemon.stats, qn_frontend_daemon.stats };
    size_t counts[] = { 1, qn_frontend_daemon.stat_count };
    assert_int_equal(qn_stats_create(test->daemon.folder, "frontend", 77, tables, counts, 2, &test->daemon.stats),
                     QN_OK);
    if (qn_frontend_daemon.init(&test->daemon, qn_config_values(test->config), &test->frontend) != QN_OK)
        fail_msg("%s", qn_err_text());
    for (int service = QN_SERVICE_TOKENIZER; service <= QN_SERVICE_COMPUTE; service++)
        peer_event(test, (qn_service_t)service, 10u + (unsigned)service, QN_PEER_UP);
    describe(test);
    *state = test;
    return 0;
}

static int setup(void **state) { return setup_with(state, NULL, 0); }

static int setup_small(void **state)
{
    static const char *const sets[] = { "frontend.queue_limit=2", "frontend.max_body_bytes=1024" };
    return setup_with(state, sets, 2);
}

static int teardown(void **state)
{
    case_t *test = *state;
    char path[96];
    qn_frontend_daemon.fini(&test->frontend);
    assert_int_equal(test->daemon.fd_count, 0);
    qn_stats_destroy(&test->daemon.stats);
    qn_config_free(&test->config);
    qn_arena_fini(&test->daemon.arena);
    snprintf(path, sizeof path, "rm -rf %s", test->daemon.folder);
    assert_int_equal(system(path), 0);
    free(test);
    return 0;
}

/* ---- clients ---- */

static client_t client_open(case_t *test, const char *text)
{
    struct sockaddr_un name = { .sun_family = AF_UNIX };
    snprintf(name.sun_path, sizeof name.sun_path, "%s/http", test->daemon.folder);
    client_t client = { .fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0) };
    assert_int_equal(connect(client.fd, (struct sockaddr *)&name, sizeof name), 0);
    assert_int_equal(write(client.fd, text, strlen(text)), (ssize_t)strlen(text));
    return client;
}

static client_t client_post(case_t *test, const char *path, const char *headers, const char *body)
{
    char text[8192];
    snprintf(text, sizeof text,
             "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n%sContent-Length: %zu\r\n\r\n%s", path,
             headers, strlen(body), body);
    return client_open(test, text);
}

static client_t client_get(case_t *test, const char *path)
{
    char text[512];
    snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path);
    return client_open(test, text);
}

static void client_close(client_t *client)
{
    if (client->fd >= 0) close(client->fd);
    client->fd = -1;
    reply_buffer_fini(&client->in);
}

static void tick(case_t *test) { qn_frontend_daemon.tick(test->frontend, qn_clock_now_ns() + test->ahead_ns); }

static void client_read(client_t *client)
{
    char data[65536];
    ssize_t bytes;
    while ((bytes = read(client->fd, data, sizeof data)) > 0) reply_buffer_append(&client->in, data, (size_t)bytes);
    if (bytes == 0 || (bytes < 0 && errno != EAGAIN)) client->closed = true;
}

/* What came so far, as a C string. */
static const char *client_text(client_t *client)
{
    reply_buffer_append(&client->in, "", 1);
    client->in.bytes--;
    return client->in.data;
}

/* Runs the frontend once and waits at most 1 ms for something to happen. */
static void pump(case_t *test, client_t *client)
{
    tick(test);
    struct pollfd items[3] = { { .fd = test->daemon.fds[0], .events = POLLIN },
                               { .fd = test->daemon.fds[1], .events = POLLIN },
                               { .fd = client ? client->fd : -1, .events = POLLIN } };
    poll(items, 3, 1);
    if (client) client_read(client);
}

static void wait_for_text(case_t *test, client_t *client, const char *text)
{
    for (int i = 0; i < PUMPS_MAX; i++) {
        pump(test, client);
        if (strstr(client_text(client), text)) return;
    }
    fail_msg("no \"%s\" in: %s", text, client_text(client));
}

/* Body of a whole reply with Content-Length; checks the status. */
static const char *wait_for_reply(case_t *test, client_t *client, int status)
{
    for (int i = 0; i < PUMPS_MAX; i++) {
        pump(test, client);
        const char *text = client_text(client), *head_end = strstr(text, "\r\n\r\n");
        const char *length = strcasestr(text, "content-length: ");
        if (!head_end || !length) continue;
        if ((size_t)atoi(length + 16) > strlen(head_end + 4)) continue;
        if (atoi(text + 9) != status) fail_msg("%d expected: %s", status, text);
        return head_end + 4;
    }
    fail_msg("no reply: %s", client_text(client));
    return NULL;
}

static void expect_reply(case_t *test, client_t client, int status, const char *part)
{
    const char *body = wait_for_reply(test, &client, status);
    json_error_t error;
    json_t *root = json_loads(body, JSON_REJECT_DUPLICATES, &error);
    if (!root) fail_msg("%s: %s", error.text, body);
    json_decref(root);
    if (!strstr(client_text(&client), part)) fail_msg("no %s in %s", part, client_text(&client));
    client_close(&client);
}

/* ---- the peers' side ---- */

/* The next message that the frontend sent; fails when it is of another type. */
static const void *take_sent(case_t *test, client_t *client, qn_message_type_t type)
{
    for (int i = 0; i < PUMPS_MAX && test->daemon.taken == test->daemon.sent_count; i++) pump(test, client);
    if (test->daemon.taken == test->daemon.sent_count) fail_msg("no %s was sent", qn_message_name(type));
    size_t index = test->daemon.taken++;
    if (test->daemon.sent[index].type != type)
        fail_msg("%s was sent, not %s", qn_message_name(test->daemon.sent[index].type), qn_message_name(type));
    return test->daemon.sent[index].message;
}

static void skip_describe(case_t *test) { take_sent(test, NULL, QN_MESSAGE_DESCRIBE); }

static void send_text(case_t *test, uint64_t request, uint32_t text_position, const char *text, uint32_t token_position,
                      uint32_t id)
{
    uint32_t bytes = (uint32_t)strlen(text);
    qn_delta_t delta = { .request = request, .text_position = text_position, .text_bytes = bytes,
                         .token_position = token_position, .token_count = 1 };
    qn_text_token_t token = { .id = id, .logprob = -1, .text_end = text_position + bytes };
    qn_text_delta_t message = { .deltas = &delta, .deltas_count = 1, .text = qn_text(text), .tokens = &token,
                                .tokens_count = 1 };
    deliver(test, QN_MESSAGE_TEXT_DELTA, &message);
}

static void send_end(case_t *test, uint64_t request, qn_finish_t finish, uint32_t generated)
{
    qn_sequence_end_t end = { .request = request, .prompt_tokens = 3, .cached_tokens = 1, .generated_tokens = generated,
                              .finish = finish };
    qn_timeline_t timeline = { .request = request, .received_ns = 1000, .encode_begin_ns = 2000, .submitted_ns = 4000,
                               .queued_ns = 5000, .planned_ns = 6000, .executed_ns = 7000, .computed_ns = 8000,
                               .resulted_ns = 9000, .detokenized_ns = 9500 };
    qn_text_delta_t message = { .ends = &end, .ends_count = 1, .timelines = &timeline, .timelines_count = 1 };
    deliver(test, QN_MESSAGE_TEXT_DELTA, &message);
}

/* ---- tests ---- */

static void test_frontend_completion_crosses_and_comes_back(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t client = client_post(test, "/v1/completions", "x-request-id: mine\r\n",
        "{\"model\":\"tiny\",\"prompt\":\"hi\",\"max_tokens\":2,\"stop\":[\"x\"],\"seed\":5,\"logit_bias\":{\"3\":1},"
        "\"n\":2,\"temperature\":0.5,\"cache_salt\":\"salt\",\"priority\":-1}");
    const qn_encode_t *first = take_sent(test, &client, QN_MESSAGE_ENCODE);
    const qn_encode_t *second = take_sent(test, &client, QN_MESSAGE_ENCODE);
    assert_int_equal(first->head.request, 2000000000001ull); /* two boots before this one */
    assert_int_equal(second->head.request, first->head.request + 1);
    assert_string_equal(first->client_request.data, "mine");
    assert_string_equal(first->prompt.data, "hi");
    assert_null(first->prompt_ids);
    assert_int_equal(first->sampling.seed, 5);
    assert_int_equal(second->sampling.seed, 6);
    assert_true(first->sampling.temperature == 0.5f);
    assert_int_equal(first->sampling.max_tokens, 2);
    assert_int_equal(first->stop_count, 1);
    assert_int_equal(first->bias_count, 1);
    assert_int_equal(first->priority, -1);
    assert_true(first->received_ns > 0 && !first->want_pieces && first->add_special);
    send_text(test, second->head.request, 0, "B", 0, 8);
    send_text(test, first->head.request, 0, "A", 0, 7);
    send_text(test, first->head.request, 0, "A", 0, 7); /* repeated: dropped */
    send_text(test, first->head.request, 1, "a", 1, 9);
    send_end(test, second->head.request, QN_FINISH_STOP, 1);
    send_end(test, first->head.request, QN_FINISH_LENGTH, 2);
    expect_reply(
        test, client, 200,
        "\"model\":\"tiny\",\"choices\":[{\"index\":0,\"text\":\"Aa\",\"logprobs\":null,\"finish_reason\":\"length\","
        "\"stop_reason\":null},{\"index\":1,\"text\":\"B\",\"logprobs\":null,\"finish_reason\":\"stop\","
        "\"stop_reason\":null}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":3,\"total_tokens\":6,"
        "\"prompt_tokens_details\":{\"cached_tokens\":1}}}");
}

static void test_frontend_request_id_is_echoed_or_made(void **state)
{
    case_t *test = *state;
    client_t client = client_open(test, "GET /ping HTTP/1.1\r\nHost: x\r\nX-Request-Id: a.b-c\r\n\r\n");
    expect_reply(test, client, 200, "x-request-id: a.b-c\r\n");
    client = client_get(test, "/ping");
    wait_for_reply(test, &client, 200);
    const char *id = strstr(client_text(&client), "x-request-id: ");
    assert_non_null(id);
    assert_int_equal(strspn(id + 14, "0123456789abcdef"), 32);
    client_close(&client);
    client = client_open(test, "GET /ping HTTP/1.1\r\nHost: x\r\nX-Request-Id: a b\r\n\r\n");
    expect_reply(test, client, 400, "\"param\":\"x-request-id\"");
}

static void test_frontend_stream_begins_with_the_first_token(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t client = client_post(test, "/v1/completions", "x-request-id: s\r\n",
        "{\"prompt\":\"hi\",\"stream\":true,\"stream_options\":{\"include_usage\":true}}");
    uint64_t request = ((const qn_encode_t *)take_sent(test, &client, QN_MESSAGE_ENCODE))->head.request;
    for (int i = 0; i < 5; i++) pump(test, &client);
    assert_int_equal(client.in.bytes, 0);
    send_text(test, request, 0, "one\n", 0, 1);
    wait_for_text(test, &client, "\"text\":\"one\\n\"");
    assert_non_null(strstr(client_text(&client), "text/event-stream"));
    assert_null(strstr(client_text(&client), "two"));
    send_text(test, request, 4, "two", 1, 2);
    send_end(test, request, QN_FINISH_LENGTH, 2);
    wait_for_text(test, &client, "data: [DONE]\n\n");
    const char *text = client_text(&client);
    assert_non_null(strstr(text, "\"text\":\"two\",\"logprobs\":null,\"finish_reason\":\"length\""));
    assert_non_null(
        strstr(text, "\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2,\"total_tokens\":5"));
    wait_for_text(test, &client, "\r\n0\r\n\r\n"); /* the body ends; the connection stays */
    assert_false(client.closed);
    const char *again = "GET /ping HTTP/1.1\r\nHost: x\r\n\r\n";
    assert_int_equal(write(client.fd, again, strlen(again)), (ssize_t)strlen(again));
    wait_for_text(test, &client, "{\"status\":\"ok\"}");
    client_close(&client);
}

static void test_frontend_client_that_leaves_is_cancelled(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    static const char *const bodies[] = { "{\"prompt\":\"hi\",\"n\":2}",
                                          "{\"prompt\":\"hi\",\"n\":2,\"stream\":true}" };
    for (int i = 0; i < 4; i++) { /* waiting for a whole answer, for a stream's begin, amid a stream */
        client_t client = client_post(test, "/v1/completions", "", bodies[i != 0]);
        uint64_t request = ((const qn_encode_t *)take_sent(test, &client, QN_MESSAGE_ENCODE))->head.request;
        take_sent(test, &client, QN_MESSAGE_ENCODE);
        if (i >= 2) {
            send_text(test, request, 0, "one", 0, 1);
            wait_for_text(test, &client, "one");
        }
        if (i == 3) send_end(test, request, QN_FINISH_STOP, 1); /* what has ended needs no cancelling */
        client_close(&client);
        for (uint64_t choice = i == 3; choice < 2; choice++) {
            const qn_cancel_t *cancel = take_sent(test, NULL, QN_MESSAGE_CANCEL);
            assert_int_equal(cancel->head.request, request + choice);
            assert_int_equal(cancel->reason, QN_CANCEL_REASON_CLIENT_GONE);
        }
        send_text(test, request, 3, "late", 1, 2); /* dropped */
        send_end(test, request, QN_FINISH_CANCELLED, 2);
        tick(test);
        assert_int_equal(test->daemon.taken, test->daemon.sent_count);
        assert_true(qn_frontend_daemon.drained(test->frontend));
    }
}

static void test_frontend_full_outbox_keeps_cancels(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t client = client_post(test, "/v1/completions", "", "{\"prompt\":\"hi\"}");
    take_sent(test, &client, QN_MESSAGE_ENCODE);
    test->daemon.outcome = QN_SEND_FULL;
    client_close(&client);
    for (int i = 0; i < 20; i++) pump(test, NULL);
    assert_int_equal(test->daemon.taken, test->daemon.sent_count);
    client = client_post(test, "/v1/completions", "", "{\"prompt\":\"hi\"}");
    expect_reply(test, client, 503, "Retry-After: 1");
    test->daemon.outcome = QN_SEND_OK;
    take_sent(test, NULL, QN_MESSAGE_CANCEL);
}

static void test_frontend_dead_tokenizer_fails_what_it_held(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t whole = client_post(test, "/v1/completions", "", "{\"prompt\":\"a\"}");
    take_sent(test, &whole, QN_MESSAGE_ENCODE);
    client_t stream = client_post(test, "/generate", "", "{\"text\":\"b\",\"stream\":true}");
    uint64_t facts = ((const qn_tokenize_t *)take_sent(test, &stream, QN_MESSAGE_TOKENIZE))->head.request;
    uint64_t request = ((const qn_encode_t *)take_sent(test, &stream, QN_MESSAGE_ENCODE))->head.request;
    uint32_t ids[] = { 1, 2 };
    qn_tokenized_t tokenized = { .head.request = facts, .ids = ids, .ids_count = 2 };
    deliver(test, QN_MESSAGE_TOKENIZED, &tokenized);
    send_text(test, request, 0, "x", 0, 1);
    wait_for_text(test, &stream, "\"text\":\"x\"");
    client_t memory = client_get(test, "/cache/stats"); /* not the tokenizer's */
    take_sent(test, &memory, QN_MESSAGE_CACHE_QUERY);
    peer_event(test, QN_SERVICE_TOKENIZER, 12, QN_PEER_GONE);
    expect_reply(test, whole, 503, "Retry-After: 1");
    wait_for_text(test, &stream, "data: {\"error\":{");
    wait_for_text(test, &stream, "data: [DONE]");
    client_close(&stream);
    client_t next = client_post(test, "/v1/completions", "", "{\"prompt\":\"a\"}");
    expect_reply(test, next, 503, "tokenizer");
    assert_int_equal(memory.in.bytes, 0);
    peer_event(test, QN_SERVICE_MEMORY, 14, QN_PEER_GONE);
    expect_reply(test, memory, 503, "memory");
    take_sent(test, NULL, QN_MESSAGE_CANCEL); /* to the scheduler, since the tokenizer is gone */
    assert_int_equal(test->daemon.sent[test->daemon.taken - 1].to, QN_SERVICE_SCHEDULER);
}

static void test_frontend_refusals_become_errors(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    static const struct { uint16_t status; uint32_t retry_ms; const char *param, *part;
    } cases[] = {
        { 400, 0, "prompt", "\"param\":\"prompt\"" },
        { 429, 2500, NULL, "Retry-After: 3" },
        { 503, 0, NULL, "Retry-After: 1" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        client_t client = client_post(test, "/v1/completions", "", "{\"prompt\":\"a\",\"n\":2}");
        uint64_t request = ((const qn_encode_t *)take_sent(test, &client, QN_MESSAGE_ENCODE))->head.request;
        take_sent(test, &client, QN_MESSAGE_ENCODE);
        qn_refusal_t refusal = { .head.request = request + 1,
                                 .status = cases[i].status,
                                 .retry_after_ms = cases[i].retry_ms,
                                 .param = qn_text(cases[i].param),
                                 .text = qn_text("too long by 7 tokens") };
        deliver(test, QN_MESSAGE_REFUSAL, &refusal);
        expect_reply(test, client, cases[i].status, cases[i].part);
        take_sent(test, NULL, QN_MESSAGE_CANCEL);
        take_sent(test, NULL, QN_MESSAGE_CANCEL);
    }
}

static void test_frontend_failed_sequence_and_gap_are_errors(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t client = client_post(test, "/v1/completions", "", "{\"prompt\":\"a\"}");
    uint64_t request = ((const qn_encode_t *)take_sent(test, &client, QN_MESSAGE_ENCODE))->head.request;
    send_end(test, request, QN_FINISH_ERROR, 0);
    expect_reply(test, client, 500, "server_error");
    client = client_post(test, "/v1/completions", "", "{\"prompt\":\"a\"}");
    request = ((const qn_encode_t *)take_sent(test, &client, QN_MESSAGE_ENCODE))->head.request;
    send_text(test, request, 5, "x", 0, 1);
    expect_reply(test, client, 500, "lost");
    take_sent(test, NULL, QN_MESSAGE_CANCEL);
}

static void test_frontend_broken_deltas_are_dropped(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t client = client_post(test, "/v1/completions", "", "{\"prompt\":\"a\",\"logprobs\":1}");
    uint64_t request = ((const qn_encode_t *)take_sent(test, &client, QN_MESSAGE_ENCODE))->head.request;
    qn_text_token_t token = { .id = 1, .top_count = 5, .piece_bytes = 0 };
    static const struct {
        uint32_t text_offset, text_bytes, token_offset, token_count;
        uint16_t piece_bytes;
    } cases[] = {
        { 0, 9, 0, 0, 0 }, { UINT32_MAX, UINT32_MAX, 0, 0, 0 },
        { 0, 0, 1, 1, 0 }, { 0, 0, UINT32_MAX, UINT32_MAX, 0 },
        { 0, 0, 0, 1, 0 }, { 0, 0, 0, 0, 7 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        qn_delta_t delta = { .request = request, .text_offset = cases[i].text_offset, .text_bytes = cases[i].text_bytes,
                             .token_offset = cases[i].token_offset, .token_count = cases[i].token_count };
        token.piece_bytes = cases[i].piece_bytes;
        qn_text_delta_t message = { .deltas = &delta, .deltas_count = 1, .text = qn_text("abc"), .tokens = &token,
                                    .tokens_count = 1 };
        deliver(test, QN_MESSAGE_TEXT_DELTA, &message);
        tick(test);
    }
    send_text(test, request, 0, "ok", 0, 1);
    send_end(test, request, QN_FINISH_LENGTH, 1);
    expect_reply(test, client, 200, "\"text\":\"ok\"");
}

static void test_frontend_echo_logprobs_wait_for_the_prompts_facts(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t client = client_post(test, "/v1/completions", "",
        "{\"prompt\":[7,8],\"echo\":true,\"logprobs\":1,\"max_tokens\":1,\"temperature\":0}");
    const qn_detokenize_t *text = take_sent(test, &client, QN_MESSAGE_DETOKENIZE);
    const qn_detokenize_t *first = take_sent(test, &client, QN_MESSAGE_DETOKENIZE);
    const qn_encode_t *encode = take_sent(test, &client, QN_MESSAGE_ENCODE);
    assert_int_equal(text->ids_count, 2);
    assert_int_equal(first->ids_count, 1);
    assert_true(encode->want_pieces && encode->sampling.prompt_logprobs && encode->sampling.logprobs);
    assert_int_equal(encode->sampling.top_logprobs, 1);
    uint32_t ids[] = { 8 };
    float logprobs[] = { -2 };
    qn_token_logprob_t top[] = { { .id = 9, .logprob = -1 } };
    uint16_t piece_bytes[] = { 1, 2 };
    qn_prompt_logprobs_t prompt = { .head.request = encode->head.request, .position = 1, .ids = ids, .ids_count = 1,
        .logprobs = logprobs, .logprobs_count = 1, .top_per_token = 1, .top = top, .top_count = 1,
        .piece_bytes = piece_bytes, .piece_bytes_count = 2, .pieces = (const uint8_t *)"bcc", .pieces_count = 3 };
    deliver(test, QN_MESSAGE_PROMPT_LOGPROBS, &prompt);
    qn_delta_t delta = { .request = encode->head.request, .text_bytes = 1, .token_count = 1 };
    qn_text_token_t tokens[] = { { .id = 5, .logprob = -0.5f, .text_end = 1, .piece_bytes = 1, .top_count = 1 },
                                 { .id = 6, .logprob = -3, .piece_bytes = 2 } };
    qn_text_delta_t message = { .deltas = &delta, .deltas_count = 1, .text = qn_text("z"), .tokens = tokens,
                                .tokens_count = 2, .pieces = (const uint8_t *)"zyy", .pieces_count = 3 };
    deliver(test, QN_MESSAGE_TEXT_DELTA, &message);
    send_end(test, encode->head.request, QN_FINISH_LENGTH, 1);
    for (int i = 0; i < 5; i++) pump(test, &client);
    assert_int_equal(client.in.bytes, 0);
    qn_detokenized_t answer = { .head.request = text->head.request, .text = qn_text("ab") };
    deliver(test, QN_MESSAGE_DETOKENIZED, &answer);
    qn_refusal_t refusal = { .head.request = first->head.request, .status = 400, .text = qn_text("no vocabulary") };
    deliver(test, QN_MESSAGE_REFUSAL, &refusal); /* then the first token has no text */
    expect_reply(test, client, 200,
        "\"text\":\"abz\",\"logprobs\":{\"tokens\":[\"token_id:7\",\"b\",\"z\"],\"token_logprobs\":[null,-2,-0.5],"
        "\"top_logprobs\":[null,{\"cc\":-1,\"b\":-2},{\"yy\":-3,\"z\":-0.5}],\"text_offset\":[0,0,2]}");
}

static void test_frontend_sglang_stream_is_cumulative(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t client = client_post(test, "/generate", "",
        "{\"input_ids\":[1,2,3],\"rid\":\"r1\",\"stream\":true,\"sampling_params\":{\"max_new_tokens\":2}}");
    const qn_encode_t *encode = take_sent(test, &client, QN_MESSAGE_ENCODE);
    assert_string_equal(encode->client_request.data, "r1");
    assert_int_equal(encode->prompt_ids_count, 3);
    send_text(test, encode->head.request, 0, "a", 0, 10);
    wait_for_text(test, &client,
                  "data: {\"text\":\"a\",\"output_ids\":[10],\"meta_info\":{\"id\":\"r1\",\"finish_reason\":null,"
                  "\"prompt_tokens\":3,\"completion_tokens\":1");
    send_text(test, encode->head.request, 1, "b", 1, 11);
    send_end(test, encode->head.request, QN_FINISH_LENGTH, 2);
    wait_for_text(test, &client, "data: {\"text\":\"ab\",\"output_ids\":[10,11],\"meta_info\":{\"id\":\"r1\","
                  "\"finish_reason\":{\"type\":\"length\",\"length\":2}");
    wait_for_text(test, &client, "data: [DONE]\n\n");
    assert_non_null(strstr(client_text(&client), "x-request-id: r1\r\n"));
    client_close(&client);
}

static void test_frontend_abort_ends_by_name(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t client =
        client_post(test, "/v1/completions", "x-request-id: job\r\n", "{\"prompt\":\"a\",\"stream\":true}");
    uint64_t request = ((const qn_encode_t *)take_sent(test, &client, QN_MESSAGE_ENCODE))->head.request;
    send_text(test, request, 0, "a", 0, 10);
    wait_for_text(test, &client, "\"text\":\"a\"");
    expect_reply(test, client_post(test, "/abort_request", "", "{\"rid\":\"other\"}"), 200, "{\"aborted\":0}");
    expect_reply(test, client_post(test, "/abort_request", "", "{\"request_id\":\"cmpl-job\"}"), 200,
                 "{\"aborted\":1}");
    const qn_cancel_t *cancel = take_sent(test, &client, QN_MESSAGE_CANCEL);
    assert_int_equal(cancel->head.request, request);
    assert_int_equal(cancel->reason, QN_CANCEL_REASON_CLIENT_ASKED);
    send_end(test, request, QN_FINISH_CANCELLED, 1);
    wait_for_text(test, &client, "\"finish_reason\":\"abort\"");
    wait_for_text(test, &client, "data: [DONE]");
    client_close(&client);
    expect_reply(test, client_post(test, "/abort_request", "", "{}"), 400, "\"param\":\"rid\"");
    expect_reply(test, client_post(test, "/abort_request", "", "{\"abort_all\":true}"), 200, "{\"aborted\":0}");
}

static void test_frontend_queries_ask_and_answer(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t client = client_post(test, "/tokenize", "",
                                  "{\"prompt\":\"ab\",\"return_token_strs\":true,\"add_special_tokens\":false}");
    const qn_tokenize_t *tokenize = take_sent(test, &client, QN_MESSAGE_TOKENIZE);
    assert_true(!tokenize->add_special && tokenize->want_pieces);
    uint32_t ids[] = { 5, 6 };
    uint16_t lengths[] = { 1, 1 };
    qn_tokenized_t tokenized = { .head.request = tokenize->head.request,
                                 .ids = ids,
                                 .ids_count = 2,
                                 .piece_bytes = lengths,
                                 .piece_bytes_count = 2,
                                 .pieces = (const uint8_t *)"ab",
                                 .pieces_count = 2 };
    deliver(test, QN_MESSAGE_TOKENIZED, &tokenized);
    expect_reply(test, client, 200,
                 "{\"count\":2,\"max_model_len\":2048,\"tokens\":[5,6],\"token_strs\":[\"a\",\"b\"]}");
    client = client_post(test, "/detokenize", "", "{\"tokens\":[5,6]}");
    const qn_detokenize_t *detokenize = take_sent(test, &client, QN_MESSAGE_DETOKENIZE);
    assert_false(detokenize->skip_special);
    qn_detokenized_t detokenized = { .head.request = detokenize->head.request, .text = qn_text("ab") };
    deliver(test, QN_MESSAGE_DETOKENIZED, &detokenized);
    expect_reply(test, client, 200, "{\"prompt\":\"ab\"}");
    client = client_get(test, "/cache/stats?mode=research");
    const qn_cache_query_t *query = take_sent(test, &client, QN_MESSAGE_CACHE_QUERY);
    qn_cache_stats_t stats = { .head.request = query->head.request,
                               .total_blocks = 9,
                               .lookup_tokens = 8,
                               .hit_tokens = 2,
                               .policy = qn_text("lru") };
    deliver(test, QN_MESSAGE_CACHE_STATS, &stats);
    expect_reply(test, client, 200, "\"hit_rate\":0.25");
    client = client_post(test, "/flush_cache", "", "");
    const qn_flush_cache_t *flush = take_sent(test, &client, QN_MESSAGE_FLUSH_CACHE);
    qn_flushed_t flushed = { .head.request = flush->head.request, .freed_blocks = 4 };
    deliver(test, QN_MESSAGE_FLUSHED, &flushed);
    expect_reply(test, client, 200, "{\"freed_blocks\":4}");
}

static void test_frontend_query_without_answer_times_out(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t client = client_get(test, "/cache/stats");
    take_sent(test, &client, QN_MESSAGE_CACHE_QUERY);
    test->ahead_ns = 11000000000ull;
    expect_reply(test, client, 504, "\"timeout\"");
}

static void test_frontend_silent_stream_is_pinged(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t client = client_post(test, "/v1/completions", "", "{\"prompt\":\"a\",\"stream\":true}");
    uint64_t request = ((const qn_encode_t *)take_sent(test, &client, QN_MESSAGE_ENCODE))->head.request;
    test->ahead_ns = 14000000000ull;
    for (int i = 0; i < 5; i++) pump(test, &client);
    assert_int_equal(client.in.bytes, 0);
    test->ahead_ns = 16000000000ull;
    wait_for_text(test, &client, "\r\n: ping\n\n");
    send_text(test, request, 0, "a", 0, 1);
    send_end(test, request, QN_FINISH_STOP, 1);
    wait_for_text(test, &client, "data: [DONE]");
    client_close(&client);
}

static void test_frontend_status_routes_answer(void **state)
{
    case_t *test = *state;
    static const struct { const char *path; int status; const char *part;
    } cases[] = {
        { "/health", 200, "\"status\":\"ok\"" },
        { "/ready", 200, "{\"name\":\"compute\",\"state\":\"ready\"" },
        { "/version", 200, "\"protocol\":1" },
        { "/v1/models", 200, "\"object\":\"list\",\"data\":[{\"id\":\"tiny\"" },
        { "/v1/models/tiny", 200, "\"max_model_len\":2048" },
        { "/v1/models/org/none", 404, "model_not_found" },
        { "/model_info", 200, "\"vocab_size\":1000" },
        { "/server_info", 200, "\"queue_limit\":1024" },
        { "/services", 200,
          "{\"name\":\"memory\",\"pid\":1004,\"epoch\":14,\"build\":\"test\",\"state\":\"ready\",\"uptime_s\":1.5,"
          "\"restarts\":0,\"transport\":\"ipc\"" },
        { "/services", 200, "{\"name\":\"frontend\",\"pid\":1,\"epoch\":77" },
        { "/nowhere", 404, "\"code\":\"not_found\"" },
        { "/v1/models?mode=research", 200,
          "\"metadata\":{\"service\":\"frontend\",\"method\":\"models\",\"execution_time_us\":" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        expect_reply(test, client_get(test, cases[i].path), cases[i].status, cases[i].part);
    peer_event(test, QN_SERVICE_COMPUTE, 15, QN_PEER_GONE);
    expect_reply(test, client_get(test, "/health"), 503, "{\"name\":\"compute\",\"state\":\"down\"");
    client_t client = client_get(test, "/metrics");
    wait_for_reply(test, &client, 200);
    assert_non_null(strstr(client_text(&client), "text/plain; version=0.0.4"));
    assert_non_null(strstr(client_text(&client), "quintet_service_up{service=\"compute\"} 0\n"));
    assert_non_null(strstr(client_text(&client), "quintet_frontend_other_2xx_total{service=\"frontend\"} "));
    client_close(&client);
}

static void test_frontend_bad_http_is_refused_with_the_reason(void **state)
{
    case_t *test = *state;
    expect_reply(test, client_get(test, "/v1/completions"), 405, "Allow: POST\r\n");
    expect_reply(test, client_open(test, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n"
                                   "Content-Length: 2\r\n\r\n{}"), 415, "application/json");
    expect_reply(test, client_post(test, "/v1/completions", "", "{\"prompt\":\"a\",\"n\":0}"), 400, "\"param\":\"n\"");
    expect_reply(test, client_post(test, "/v1/completions", "", "{\"prompt\":\"a\",\"model\":\"x\"}"), 404,
                 "model_not_found");
    expect_reply(test, client_post(test, "/v1/completions", "", ""), 400, "empty");
    char body[1200] = "{\"prompt\":\"";
    memset(body + 11, 'a', 1100);
    strcpy(body + 1111, "\"}");
    expect_reply(test, client_post(test, "/v1/completions", "", body), 413, "1024 bytes");
    expect_reply(test, client_open(test, "POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n"),
                 413, "max_body_bytes");
}

static void test_frontend_full_queue_says_429(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t first = client_post(test, "/v1/completions", "", "{\"prompt\":\"a\",\"n\":2}");
    take_sent(test, &first, QN_MESSAGE_ENCODE);
    take_sent(test, &first, QN_MESSAGE_ENCODE);
    expect_reply(test, client_post(test, "/v1/completions", "", "{\"prompt\":\"a\"}"), 429, "Retry-After: 1");
    expect_reply(test, client_post(test, "/v1/completions", "", "{\"prompt\":\"a\",\"n\":3}"), 400, "queue_limit");
    expect_reply(test, client_get(test, "/cache/stats"), 429, "rate_limit");
    client_close(&first);
    take_sent(test, NULL, QN_MESSAGE_CANCEL);
    take_sent(test, NULL, QN_MESSAGE_CANCEL);
    client_t next = client_post(test, "/v1/completions", "", "{\"prompt\":\"a\"}");
    take_sent(test, &next, QN_MESSAGE_ENCODE);
    client_close(&next);
}

static void test_frontend_research_mode_shows_hops(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    for (int stream = 0; stream < 2; stream++) {
        client_t client = client_post(test, "/v1/completions", "x-quintet-mode: research\r\n",
                                      stream ? "{\"prompt\":\"a\",\"stream\":true}" : "{\"prompt\":\"a\"}");
        uint64_t request = ((const qn_encode_t *)take_sent(test, &client, QN_MESSAGE_ENCODE))->head.request;
        send_text(test, request, 0, "a", 0, 1);
        send_end(test, request, QN_FINISH_STOP, 1);
        wait_for_text(test, &client,
                      "\"hops\":[{\"from\":\"frontend\",\"to\":\"tokenizer\",\"us\":1},"
                      "{\"from\":\"tokenizer\",\"to\":\"tokenizer\",\"us\":2},{\"from\":\"tokenizer\",\"to\":"
                      "\"scheduler\",\"us\":1},");
        assert_non_null(
            strstr(client_text(&client), stream ? "\"choices\":[],\"metadata\":{" : "{\"data\":{\"id\":\"cmpl-"));
        assert_non_null(strstr(client_text(&client),
                               "\"epoch\":77,\"reason\":\"sequence 1 of 1: stop after 1 tokens; 1 of 3 prompt "
                               "tokens were cached\""));
        if (stream) wait_for_text(test, &client, "data: [DONE]");
        client_close(&client);
    }
}

static void test_frontend_drain_finishes_and_refuses(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t client = client_post(test, "/v1/completions", "", "{\"prompt\":\"a\"}");
    uint64_t request = ((const qn_encode_t *)take_sent(test, &client, QN_MESSAGE_ENCODE))->head.request;
    client_t idle = client_get(test, "/ping");
    wait_for_text(test, &idle, "ok");
    qn_frontend_daemon.drain(test->frontend);
    assert_int_equal(test->daemon.state, QN_STATE_DRAINING);
    assert_false(qn_frontend_daemon.drained(test->frontend));
    const char *more = "POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n{\"text\":\"a\"}";
    assert_int_equal(write(idle.fd, more, strlen(more)), (ssize_t)strlen(more));
    wait_for_text(test, &idle, "The server is stopping");
    send_text(test, request, 0, "a", 0, 1);
    send_end(test, request, QN_FINISH_STOP, 1);
    expect_reply(test, client, 200, "\"text\":\"a\"");
    assert_true(qn_frontend_daemon.drained(test->frontend));
    client_close(&idle);
}

static void test_frontend_slow_reader_loses_nothing(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t client =
        client_post(test, "/v1/completions", "", "{\"prompt\":\"a\",\"stream\":true,\"max_tokens\":5000}");
    uint64_t request = ((const qn_encode_t *)take_sent(test, &client, QN_MESSAGE_ENCODE))->head.request;
    for (uint32_t i = 0; i < 5000; i++) { /* more than the socket holds, while nobody reads */
        char text[9];
        snprintf(text, sizeof text, "<%06u>", i);
        send_text(test, request, i * 8, text, i, 1);
        tick(test);
    }
    send_end(test, request, QN_FINISH_LENGTH, 5000);
    wait_for_text(test, &client, "data: [DONE]");
    const char *at = client_text(&client);
    for (uint32_t i = 0; i < 5000; i++) {
        char text[16];
        snprintf(text, sizeof text, "<%06u>", i);
        at = strstr(at, text);
        if (!at) fail_msg("%s is missing", text);
    }
    client_close(&client);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_frontend_completion_crosses_and_comes_back, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_request_id_is_echoed_or_made, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_stream_begins_with_the_first_token, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_client_that_leaves_is_cancelled, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_full_outbox_keeps_cancels, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_dead_tokenizer_fails_what_it_held, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_refusals_become_errors, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_failed_sequence_and_gap_are_errors, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_broken_deltas_are_dropped, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_echo_logprobs_wait_for_the_prompts_facts, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_sglang_stream_is_cumulative, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_abort_ends_by_name, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_queries_ask_and_answer, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_query_without_answer_times_out, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_silent_stream_is_pinged, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_status_routes_answer, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_bad_http_is_refused_with_the_reason, setup_small, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_full_queue_says_429, setup_small, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_research_mode_shows_hops, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_drain_finishes_and_refuses, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_slow_reader_loses_nothing, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
