/* The whole frontend against scripted peers: real HTTP over a Unix socket on one side, the skeleton's calls on the
 * other, which this header answers instead of common/daemon/daemon.c. Everything that the frontend sends goes through the
 * wire format and its checks, and so does what it gets. One thread: a client reads while the frontend's tick runs.
 * For the programs that test the frontend as a service; each includes it once. */
#ifndef QN_TESTS_UNIT_FRONTEND_CASE_H
#define QN_TESTS_UNIT_FRONTEND_CASE_H

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
#include "common/daemon/daemon.h"
#include "common/wire/wire.h"
#include "services/frontend/http/http_server.h"

#define SENT_MAX 1024
#define PUMPS_MAX 60000 /* of at most 1 ms: a test that waits for nothing fails after a minute */

/* ---- the skeleton, scripted ---- */

struct qn_daemon {
    qn_stats_t *stats;
    char folder[64];
    qn_arena_t arena; /* of all decoded messages */
    struct {
        qn_message_type_t type;
        qn_service_t to;
        const void *message;
    } sent[SENT_MAX];
    size_t sent_count, taken;
    qn_peer_t peers[QN_SERVICE_TOOL + 1];
    qn_send_outcome_t outcome; /* what every send says */
    qn_state_t state;
    int fds[8];
    size_t fd_count;
};

qn_send_outcome_t qn_daemon_send(qn_daemon_t *daemon, qn_peer_t to, qn_message_type_t type, const void *message)
{
    if (daemon->outcome != QN_SEND_OK) return daemon->outcome;
    if (type == QN_MESSAGE_TOKENIZER_INFO) return QN_SEND_OK; /* what each new tokenizer is asked: not these tests' */
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

qn_faults_t *qn_daemon_faults(qn_daemon_t *daemon)
{
    static qn_faults_t none; /* no page: nothing is armed */
    (void)daemon;
    return &none;
}

const qn_config_t *qn_daemon_config(const qn_daemon_t *daemon)
{
    (void)daemon;
    return NULL;
}

qn_stats_t *qn_daemon_stats(qn_daemon_t *daemon) { return daemon->stats; }

void qn_daemon_peer_status(const qn_daemon_t *daemon, qn_service_t service, qn_peer_status_t *ret_status)
{
    *ret_status = (qn_peer_status_t){.peer = daemon->peers[service],
                                     .alive = daemon->peers[service].epoch != 0,
                                     .state = QN_STATE_READY,
                                     .pid = 1000u + service,
                                     .uptime_ms = 1500,
                                     .build = "test",
                                     .transport = "ipc"};
}

void qn_daemon_self_status(const qn_daemon_t *daemon, qn_peer_status_t *ret_status)
{
    *ret_status = (qn_peer_status_t){.state = daemon->state, .pid = 1, .build = "test", .restarts = 2};
}

/* The frontend's own methods need a whole daemon: tests/system/test_methods.py calls them. */
void qn_daemon_call_self(qn_daemon_t *daemon, const qn_method_t *method, const void *request)
{
    (void)request;
    fail_msg("%s: %s was called", daemon->folder, method->name);
}

void qn_daemon_refuse(qn_daemon_t *daemon, qn_peer_t to, uint64_t request, uint16_t status, const char *param,
                      const char *text)
{
    fail_msg("%s refused %s %lu: %u %s %s", daemon->folder, qn_service_enum.names[to.service], (unsigned long)request,
             status, param, text);
}

void qn_daemon_fail(qn_daemon_t *daemon, qn_err_t err) { fail_msg("%s failed: %d", daemon->folder, err); }

/* ---- the case: one frontend, its peers, its clients ---- */

typedef struct {
    qn_daemon_t daemon;
    qn_config_t *config;
    void *frontend;
    uint64_t ahead_ns; /* added to the clock that ticks see */
} case_t;

typedef struct {
    int fd;
    reply_buffer_t in; /* all bytes received, NUL-terminated by client_text */
    bool closed;
} client_t;

static inline void peer_event(case_t *test, qn_service_t service, uint32_t epoch, qn_peer_event_t event)
{
    qn_peer_t peer = {.epoch = epoch, .service = service};
    test->daemon.peers[service] = event == QN_PEER_GONE ? (qn_peer_t){0} : peer;
    qn_frontend_daemon.peer(test->frontend, peer, event);
}

static inline void deliver(case_t *test, qn_message_type_t type, const void *message)
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

static inline void describe(case_t *test)
{
    uint32_t eos[] = {0};
    qn_model_description_t message = QN_MODEL_DESCRIPTION_INIT;
    message.default_sampling = (qn_sampling_t){.temperature = 1, .top_p = 1, .repetition_penalty = 1};
    message.model = qn_text("tiny");
    message.vocab_size = 1000;
    message.max_model_len = 2048;
    message.block_tokens = 16;
    message.eos_ids = eos;
    message.eos_ids_count = 1;
    deliver(test, QN_MESSAGE_MODEL_DESCRIPTION, &message);
}

static inline int setup_with(void **state, const char *const *sets, size_t set_count)
{
    case_t *test = calloc(1, sizeof *test);
    strcpy(test->daemon.folder, "/tmp/qn-frontend-XXXXXX");
    assert_non_null(mkdtemp(test->daemon.folder));
    char listen[96];
    snprintf(listen, sizeof listen, "frontend.listen=unix:%s/http", test->daemon.folder);
    const char *all[8] = {listen};
    for (size_t i = 0; i < set_count; i++)
        all[i + 1] = sets[i];
    if (qn_config_load(NULL, all, set_count + 1, test->daemon.folder, &test->config) != QN_OK)
        fail_msg("%s", qn_err_text());
    const qn_stat_spec_t *tables[] = {qn_frontend_daemon.stats, qn_frontend_daemon.stats};
    size_t counts[] = {1, qn_frontend_daemon.stat_count};
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

static inline int setup(void **state) { return setup_with(state, NULL, 0); }

static inline int setup_small(void **state)
{
    static const char *const sets[] = {"frontend.queue_limit=2", "frontend.max_body_bytes=1024"};
    return setup_with(state, sets, 2);
}

static inline int teardown(void **state)
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

static inline client_t client_open(case_t *test, const char *text)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    snprintf(name.sun_path, sizeof name.sun_path, "%s/http", test->daemon.folder);
    client_t client = {.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0)};
    assert_int_equal(connect(client.fd, (struct sockaddr *)&name, sizeof name), 0);
    assert_int_equal(write(client.fd, text, strlen(text)), (ssize_t)strlen(text));
    return client;
}

static inline client_t client_post(case_t *test, const char *path, const char *headers, const char *body)
{
    char text[8192];
    snprintf(text, sizeof text,
             "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n%sContent-Length: %zu\r\n\r\n%s", path,
             headers, strlen(body), body);
    return client_open(test, text);
}

static inline client_t client_get(case_t *test, const char *path)
{
    char text[512];
    snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path);
    return client_open(test, text);
}

static inline void client_close(client_t *client)
{
    if (client->fd >= 0) close(client->fd);
    client->fd = -1;
    reply_buffer_fini(&client->in);
}

static inline void tick(case_t *test) { qn_frontend_daemon.tick(test->frontend, qn_clock_now_ns() + test->ahead_ns); }

static inline void client_read(client_t *client)
{
    char data[65536];
    ssize_t bytes;
    while ((bytes = read(client->fd, data, sizeof data)) > 0)
        reply_buffer_append(&client->in, data, (size_t)bytes);
    if (bytes == 0 || (bytes < 0 && errno != EAGAIN)) client->closed = true;
}

/* What came so far, as a C string. */
static inline const char *client_text(client_t *client)
{
    reply_buffer_append(&client->in, "", 1);
    client->in.bytes--;
    return client->in.data;
}

/* Runs the frontend once and waits at most 1 ms for something to happen. */
static inline void pump(case_t *test, client_t *client)
{
    tick(test);
    struct pollfd items[3] = {{.fd = test->daemon.fds[0], .events = POLLIN},
                              {.fd = test->daemon.fds[1], .events = POLLIN},
                              {.fd = client ? client->fd : -1, .events = POLLIN}};
    poll(items, 3, 1);
    if (client) client_read(client);
}

static inline void wait_for_text(case_t *test, client_t *client, const char *text)
{
    for (int i = 0; i < PUMPS_MAX; i++) {
        pump(test, client);
        if (strstr(client_text(client), text)) return;
    }
    fail_msg("no \"%s\" in: %s", text, client_text(client));
}

/* Body of a whole reply with Content-Length; checks the status. */
static inline const char *wait_for_reply(case_t *test, client_t *client, int status)
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

static inline void expect_reply(case_t *test, client_t client, int status, const char *part)
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
static inline const void *take_sent(case_t *test, client_t *client, qn_message_type_t type)
{
    for (int i = 0; i < PUMPS_MAX && test->daemon.taken == test->daemon.sent_count; i++)
        pump(test, client);
    if (test->daemon.taken == test->daemon.sent_count) fail_msg("no %s was sent", qn_message_name(type));
    size_t index = test->daemon.taken++;
    if (test->daemon.sent[index].type != type)
        fail_msg("%s was sent, not %s", qn_message_name(test->daemon.sent[index].type), qn_message_name(type));
    return test->daemon.sent[index].message;
}

/* What it says to peers that come up. */
static inline void skip_describe(case_t *test)
{
    take_sent(test, NULL, QN_MESSAGE_REPLAY_COMPLETE);
    take_sent(test, NULL, QN_MESSAGE_DESCRIBE);
}

static inline void send_text(case_t *test, uint64_t request, uint32_t text_position, const char *text,
                             uint32_t token_position, uint32_t id)
{
    uint32_t bytes = (uint32_t)strlen(text);
    qn_delta_t delta = {.request = request,
                        .text_position = text_position,
                        .text_bytes = bytes,
                        .token_position = token_position,
                        .token_count = 1};
    qn_text_token_t token = {.id = id, .logprob = -1, .text_end = text_position + bytes};
    qn_text_delta_t message = {
        .deltas = &delta, .deltas_count = 1, .text = qn_text(text), .tokens = &token, .tokens_count = 1};
    deliver(test, QN_MESSAGE_TEXT_DELTA, &message);
}

static inline void send_end(case_t *test, uint64_t request, qn_finish_t finish, uint32_t generated)
{
    qn_sequence_end_t end = {
        .request = request, .prompt_tokens = 3, .cached_tokens = 1, .generated_tokens = generated, .finish = finish};
    qn_timeline_t timeline = {.request = request,
                              .received_ns = 1000,
                              .encode_begin_ns = 2000,
                              .submitted_ns = 4000,
                              .queued_ns = 5000,
                              .planned_ns = 6000,
                              .executed_ns = 7000,
                              .computed_ns = 8000,
                              .resulted_ns = 9000,
                              .detokenized_ns = 9500};
    qn_text_delta_t message = {.ends = &end, .ends_count = 1, .timelines = &timeline, .timelines_count = 1};
    deliver(test, QN_MESSAGE_TEXT_DELTA, &message);
}

#endif
