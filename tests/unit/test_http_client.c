/* What is this?      Tests of the HTTP client against a server of canned replies in a thread.
 * State owned:       one listening socket per test.
 * Must never:        touch the network beyond the loopback.
 * Read next:         tools/client/http_client.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <arpa/inet.h>
#include <cmocka.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sysexits.h>
#include <unistd.h>

#include "tools/cli.h"
#include "tools/client/http_client.h"

#define SOCKET_PATH "/tmp/quintet-http-client-test.sock"

/* Answers one connection with `reply` byte by byte in `piece` bytes; then waits for the client to leave, or, with
 * `hang_up`, closes at once. */
typedef struct {
    int listen_fd;
    const char *reply;
    size_t piece;
    bool hang_up;
    char request[4096];
    bool client_left; /* seen: the end of the connection */
    char url[64];
    pthread_t thread;
} server_t;

static void read_request(server_t *server, int fd)
{
    size_t used = 0;
    for (;;) {
        ssize_t got = read(fd, server->request + used, sizeof server->request - 1 - used);
        if (got <= 0) return;
        used += (size_t)got;
        server->request[used] = '\0';
        const char *body = strstr(server->request, "\r\n\r\n"), *length = strstr(server->request, "Content-Length: ");
        if (body && strlen(body + 4) >= (size_t)(length ? atoi(length + 16) : 0)) return;
    }
}

static void *serve(void *argument)
{
    server_t *server = argument;
    int fd = accept(server->listen_fd, NULL, NULL);
    read_request(server, fd);
    size_t total = strlen(server->reply);
    for (size_t at = 0; at < total; at += server->piece) {
        size_t bytes = total - at < server->piece ? total - at : server->piece;
        if (send(fd, server->reply + at, bytes, MSG_NOSIGNAL) < 0) break;
    }
    char byte;
    server->client_left = !server->hang_up && read(fd, &byte, 1) <= 0;
    close(fd);
    return NULL;
}

static void start(server_t *server, bool on_unix_socket)
{
    server->piece = server->piece ? server->piece : 1000000;
    server->listen_fd = socket(on_unix_socket ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_un un = {.sun_family = AF_UNIX, .sun_path = SOCKET_PATH};
    socklen_t length = sizeof in;
    if (on_unix_socket) {
        unlink(SOCKET_PATH);
        assert_int_equal(bind(server->listen_fd, (void *)&un, sizeof un), 0);
        strcpy(server->url, "unix:" SOCKET_PATH);
    } else {
        assert_int_equal(bind(server->listen_fd, (void *)&in, sizeof in), 0);
        assert_int_equal(getsockname(server->listen_fd, (void *)&in, &length), 0);
        snprintf(server->url, sizeof server->url, "http://127.0.0.1:%d", ntohs(in.sin_port));
    }
    assert_int_equal(listen(server->listen_fd, 1), 0);
    assert_int_equal(pthread_create(&server->thread, NULL, serve, server), 0);
}

static void stop(server_t *server)
{
    assert_int_equal(pthread_join(server->thread, NULL), 0);
    close(server->listen_fd);
}

static http_client_t *open_client(const char *url, int interrupt_fd)
{
    http_client_t *client = NULL;
    assert_int_equal(http_client_open(url, interrupt_fd, &client), QN_OK);
    return client;
}

static void test_http_client_call_sends_json_and_takes_json(void **state)
{
    (void)state;
    for (int on_unix = 0; on_unix < 2; on_unix++) {
        for (size_t piece = 1; piece < 64; piece += 31) {
            server_t server = {.piece = piece,
                               .reply = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n"
                                        "X-Request-Id: abc\r\n\r\n{\"answer\":42}"};
            start(&server, on_unix);
            http_client_t *client = open_client(server.url, -1);
            json_t *body = json_pack("{s:s}", "prompt", "caf\xc3\xa9");
            http_call_t call = {.method = "POST",
                                .path = "/v1/x",
                                .body = body,
                                .header = "x-quintet-mode: research",
                                .timeout_ms = 5000};
            http_reply_t reply;
            assert_int_equal(http_client_call(client, &call, &reply), QN_OK);
            assert_int_equal(reply.status, 200);
            assert_int_equal(json_integer_value(json_object_get(reply.json, "answer")), 42);
            assert_string_equal(reply.request_id, "abc");
            assert_int_equal(http_client_explain(client, QN_OK, &reply), EX_OK);
            http_reply_fini(&reply);
            http_client_close(&client);
            stop(&server);
            assert_memory_equal(server.request, "POST /v1/x HTTP/1.1\r\n", 21);
            assert_non_null(strstr(server.request, "x-quintet-mode: research"));
            assert_non_null(strstr(server.request, "{\"prompt\":\"caf\xc3\xa9\"}"));
            assert_null(strstr(server.request, "Expect"));
            json_decref(body);
        }
    }
    unlink(SOCKET_PATH);
}

static bool join_events(void *context, const char *data, size_t bytes)
{
    (void)bytes;
    strcat(context, data);
    strcat(context, ";");
    return !strstr(data, "stop");
}

#define STREAM_HEAD "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\r\n"

static void test_http_client_stream_gives_events_until_the_server_ends(void **state)
{
    (void)state;
    server_t server = {.piece = 3,
                       .hang_up = true,
                       .reply = STREAM_HEAD "data: 1\n\n: ping\n\ndata: 2\n\ndata: [DONE]\n\n"};
    start(&server, false);
    http_client_t *client = open_client(server.url, -1);
    char events[128] = "";
    http_call_t call = {.method = "POST", .path = "/", .event = join_events, .context = events};
    http_reply_t reply;
    assert_int_equal(http_client_call(client, &call, &reply), QN_OK);
    assert_string_equal(events, "1;2;[DONE];");
    assert_null(reply.text);
    http_reply_fini(&reply);
    http_client_close(&client);
    stop(&server);
}

static void test_http_client_callback_stops_server_sees_the_client_leave(void **state)
{
    (void)state;
    server_t server = {.reply = STREAM_HEAD "data: 1\n\ndata: stop\n\ndata: 3\n\n"};
    start(&server, false);
    http_client_t *client = open_client(server.url, -1);
    char events[128] = "";
    http_call_t call = {.method = "POST", .path = "/", .event = join_events, .context = events};
    http_reply_t reply;
    assert_int_equal(http_client_call(client, &call, &reply), QN_ERR_CANCELLED);
    /* Before the client is closed: leaving the call is what closes the connection. */
    stop(&server);
    assert_true(server.client_left);
    assert_string_equal(events, "1;stop;");
    http_reply_fini(&reply);
    http_client_close(&client);
}

static int interrupt_fd;
static bool interrupt_after_first(void *context, const char *data, size_t bytes)
{
    (void)context;
    (void)data;
    (void)bytes;
    return eventfd_write(interrupt_fd, 1) == 0;
}

static void test_http_client_interrupt_ends_the_call_and_the_connection(void **state)
{
    (void)state;
    interrupt_fd = eventfd(0, EFD_CLOEXEC);
    server_t server = {.reply = STREAM_HEAD "data: 1\n\n"};
    start(&server, false);
    http_client_t *client = open_client(server.url, interrupt_fd);
    http_call_t call = {.method = "POST", .path = "/", .event = interrupt_after_first};
    http_reply_t reply;
    assert_int_equal(http_client_call(client, &call, &reply), QN_ERR_CANCELLED);
    stop(&server);
    assert_true(server.client_left);
    assert_int_equal(http_client_explain(client, QN_ERR_CANCELLED, &reply), CLI_EXIT_INTERRUPTED);
    http_reply_fini(&reply);
    http_client_close(&client);
    close(interrupt_fd);
}

static void test_http_client_broken_connections_are_told_apart(void **state)
{
    (void)state;
    static const struct {
        const char *reply;
        bool hang_up;
        long timeout_ms;
        qn_err_t err;
        int exit_status;
    } cases[] = {
        {"", true, 5000, QN_ERR_PEER, EX_PROTOCOL},
        {"this is no HTTP\r\n\r\n", true, 5000, QN_ERR_PEER, EX_PROTOCOL},
        {"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", true, 5000, QN_ERR_PEER, EX_PROTOCOL},
        {"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", false, 200, QN_ERR_TIMEOUT, EX_TEMPFAIL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        server_t server = {.reply = cases[i].reply, .hang_up = cases[i].hang_up};
        start(&server, false);
        http_client_t *client = open_client(server.url, -1);
        http_call_t call = {.method = "GET", .path = "/", .timeout_ms = cases[i].timeout_ms};
        http_reply_t reply;
        qn_err_t err = http_client_call(client, &call, &reply);
        assert_int_equal(err, cases[i].err);
        assert_int_equal(http_client_explain(client, err, &reply), cases[i].exit_status);
        http_reply_fini(&reply);
        http_client_close(&client);
        stop(&server);
    }
}

static void test_http_client_nobody_listens_is_unavailable(void **state)
{
    (void)state;
    server_t server = {.reply = ""};
    start(&server, false);
    shutdown(server.listen_fd, SHUT_RDWR);
    close(server.listen_fd);
    pthread_join(server.thread, NULL);
    const char *const urls[] = {server.url, "unix:/tmp/there/is/no/such.sock"};
    for (size_t i = 0; i < 2; i++) {
        http_client_t *client = open_client(urls[i], -1);
        http_call_t call = {.method = "GET", .path = "/", .timeout_ms = 5000};
        http_reply_t reply;
        qn_err_t err = http_client_call(client, &call, &reply);
        assert_int_equal(err, QN_ERR_NOT_FOUND);
        assert_int_equal(http_client_explain(client, err, &reply), EX_UNAVAILABLE);
        http_client_close(&client);
    }
}

static void test_http_client_status_maps_to_exit_status(void **state)
{
    (void)state;
    static const struct {
        int status;
        int exit_status;
    } cases[] = {
        {400, EX_DATAERR}, {401, EX_NOPERM},   {403, EX_NOPERM},   {404, EX_UNAVAILABLE},
        {413, EX_DATAERR}, {429, EX_TEMPFAIL}, {500, EX_SOFTWARE}, {503, EX_TEMPFAIL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[512];
        const char *body =
            "{\"error\":{\"message\":\"why and what to do\",\"type\":\"t\",\"param\":\"top_p\",\"code\":null}}";
        snprintf(text, sizeof text, "HTTP/1.1 %d Reason\r\nRetry-After: 7\r\nContent-Length: %zu\r\n\r\n%s",
                 cases[i].status, strlen(body), body);
        server_t server = {.reply = text};
        start(&server, false);
        http_client_t *client = open_client(server.url, -1);
        /* An error is never streamed, also when events were asked for. */
        char events[128] = "";
        http_call_t call = {.method = "GET", .path = "/", .timeout_ms = 5000, .event = join_events, .context = events};
        http_reply_t reply;
        assert_int_equal(http_client_call(client, &call, &reply), QN_OK);
        assert_int_equal(reply.retry_after, 7);
        assert_int_equal(http_client_explain(client, QN_OK, &reply), cases[i].exit_status);
        http_reply_fini(&reply);
        http_client_close(&client);
        stop(&server);
    }
}

static void test_http_client_urls_both_kinds(void **state)
{
    (void)state;
    static const struct {
        const char *url;
        qn_err_t err;
    } cases[] = {
        {"http://127.0.0.1:8000", QN_OK}, {"http://127.0.0.1:8000/", QN_OK},
        {"127.0.0.1:8000", QN_OK},        {"localhost", QN_OK},
        {"https://host/prefix", QN_OK},   {"http://[::1]:80", QN_OK},
        {"unix:/run/x.sock", QN_OK},      {"unix:", QN_ERR_INVALID},
        {"ftp://host", QN_ERR_INVALID},   {"http://", QN_ERR_INVALID},
        {"http://ho st", QN_ERR_INVALID}, {"http://host:99999", QN_ERR_INVALID},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        http_client_t *client = NULL;
        qn_err_t err = http_client_open(cases[i].url, -1, &client);
        if (err != cases[i].err) fail_msg("%s: %d: %s", cases[i].url, err, qn_err_text());
        http_client_close(&client);
    }
    setenv("QUINTET_URL", "http://example.test:1", 1);
    http_client_t *client = open_client(NULL, -1);
    assert_string_equal(http_client_url(client), "http://example.test:1");
    http_client_close(&client);
    unsetenv("QUINTET_URL");
    client = open_client(NULL, -1);
    assert_string_equal(http_client_url(client), HTTP_CLIENT_DEFAULT_URL);
    http_client_close(&client);
}

int main(void)
{
    setenv("http_proxy", "http://127.0.0.1:1", 1); /* must not be asked for local servers */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_http_client_call_sends_json_and_takes_json),
        cmocka_unit_test(test_http_client_stream_gives_events_until_the_server_ends),
        cmocka_unit_test(test_http_client_callback_stops_server_sees_the_client_leave),
        cmocka_unit_test(test_http_client_interrupt_ends_the_call_and_the_connection),
        cmocka_unit_test(test_http_client_broken_connections_are_told_apart),
        cmocka_unit_test(test_http_client_nobody_listens_is_unavailable),
        cmocka_unit_test(test_http_client_status_maps_to_exit_status),
        cmocka_unit_test(test_http_client_urls_both_kinds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
