/* What is this?      HTTP calls to one server through libcurl, interruptible, with streamed events.
 * State owned:       one libcurl handle, so connections are kept between calls.
 * Must never:        know a route of the API.
 * Read next:         sse_reader.h, cmd_generate.c. */
#include "tools/client/http_client.h"

#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sysexits.h>

#include "common/build.h"
#include "tools/cli.h"

#define CONNECT_TIMEOUT_MS 5000
#define URL_MAX 2048

struct http_client {
    CURL *easy;                /* owned */
    CURLM *multi;              /* owned */
    int interrupt_fd;          /* borrowed, -1: none */
    char given[URL_MAX];       /* as the user wrote it */
    char base[URL_MAX];        /* what libcurl gets, without a '/' at the end */
    char socket_path[URL_MAX]; /* "" or the Unix socket */
    char error[CURL_ERROR_SIZE];
};

/* One call on its way. */
typedef struct {
    const http_call_t *call;
    http_client_t *client;
    http_reply_t *reply;
    size_t capacity;
    sse_reader_t sse;
    bool is_stream;
    qn_err_t err; /* failure inside a callback */
} transfer_t;

/* ---- open and close ---- */

static bool is_local(const char *base)
{
    static const char *const hosts[] = {"127.", "localhost", "[::1]"};
    const char *host = strstr(base, "://");
    host = host ? host + 3 : base;
    for (size_t i = 0; i < sizeof hosts / sizeof *hosts; i++)
        if (!strncasecmp(host, hosts[i], strlen(hosts[i]))) return true;
    return false;
}

/* Leaves off what OpenAI's clients have at the end of a base URL: slashes and "/v1". */
static void cut_api_path(char *base, size_t length)
{
    while (length && base[length - 1] == '/')
        base[--length] = '\0';
    if (length <= 3 || strcmp(base + length - 3, "/v1")) return;
    for (length -= 3; length && base[length - 1] == '/'; length--) {
    }
    base[length] = '\0';
}

static qn_err_t set_url(http_client_t *client, const char *url)
{
    const char *scheme = "";
    size_t bytes = strlen(url);
    if (bytes + sizeof "http://" > URL_MAX)
        return qn_fail(QN_ERR_INVALID, "the server's URL is longer than %d bytes", URL_MAX - 8);
    memcpy(client->given, url, bytes + 1);
    if (!strncmp(url, "unix:", 5)) {
        snprintf(client->socket_path, sizeof client->socket_path, "%s", url + 5);
        url = "http://localhost";
        if (!client->socket_path[0])
            return qn_fail(QN_ERR_INVALID, "\"%s\" names no path: write unix:/path/of/the/socket", client->given);
    } else if (!strstr(url, "://")) {
        scheme = "http://";
    } else if (strncasecmp(url, "http://", 7) && strncasecmp(url, "https://", 8)) {
        return qn_fail(QN_ERR_INVALID, "\"%s\" is no URL of a server: write http://host:port or unix:PATH", url);
    }
    int length = snprintf(client->base, sizeof client->base, "%s%s", scheme, url);
    if (length > 0 && length < URL_MAX) cut_api_path(client->base, (size_t)length);
    CURLU *parsed = curl_url();
    CURLUcode code = curl_url_set(parsed, CURLUPART_URL, client->base, 0);
    curl_url_cleanup(parsed);
    if (code)
        return qn_fail(QN_ERR_INVALID, "\"%s\" is no URL of a server (%s): write http://host:port or unix:PATH",
                       client->given, curl_url_strerror(code));
    return QN_OK;
}

qn_err_t http_client_open(const char *url, int interrupt_fd, http_client_t **ret_client)
{
    if (!url) url = getenv("QUINTET_URL");
    if (!url || !url[0]) url = HTTP_CLIENT_DEFAULT_URL;
    http_client_t *client = calloc(1, sizeof *client);
    if (!client) return qn_fail(QN_ERR_NO_MEMORY, "no memory for an HTTP client");
    client->interrupt_fd = interrupt_fd;
    qn_err_t err = set_url(client, url);
    if (!err) {
        client->easy = curl_easy_init();
        client->multi = curl_multi_init();
        if (!client->easy || !client->multi) err = qn_fail(QN_ERR_NO_MEMORY, "libcurl does not start");
    }
    if (err)
        http_client_close(&client);
    else
        *ret_client = client;
    return err;
}

void http_client_close(http_client_t **client)
{
    if (!*client) return;
    curl_easy_cleanup((*client)->easy);
    curl_multi_cleanup((*client)->multi);
    free(*client);
    *client = NULL;
}

const char *http_client_url(const http_client_t *client) { return client->given; }

/* ---- a call ---- */

static qn_err_t keep_bytes(transfer_t *transfer, const char *bytes, size_t count)
{
    http_reply_t *reply = transfer->reply;
    if (count > HTTP_CLIENT_REPLY_BYTES_MAX - reply->bytes)
        return qn_fail(QN_ERR_LIMIT, "the reply of %s is longer than %u bytes", transfer->client->given,
                       HTTP_CLIENT_REPLY_BYTES_MAX);
    if (reply->bytes + count + 1 > transfer->capacity) {
        size_t capacity = transfer->capacity ? transfer->capacity : 16384;
        while (capacity < reply->bytes + count + 1)
            capacity *= 2;
        char *text = realloc(reply->text, capacity);
        if (!text) return qn_fail(QN_ERR_NO_MEMORY, "no memory for the reply of %s", transfer->client->given);
        reply->text = text;
        transfer->capacity = capacity;
    }
    memcpy(reply->text + reply->bytes, bytes, count);
    reply->bytes += count;
    reply->text[reply->bytes] = '\0';
    return QN_OK;
}

/* libcurl's name for "body bytes came"; another result than the count ends the transfer. */
static size_t take_body(char *bytes, size_t size, size_t count, void *context)
{
    transfer_t *transfer = context;
    transfer->err = transfer->is_stream ? sse_reader_push(&transfer->sse, bytes, size * count)
                                        : keep_bytes(transfer, bytes, size * count);
    return transfer->err ? 0 : size * count;
}

/* The value of a header line when it is `name`, else NULL; not terminated. */
static const char *header_value(const char *line, size_t bytes, const char *name, size_t *ret_bytes)
{
    size_t length = strlen(name);
    if (bytes <= length || strncasecmp(line, name, length) || line[length] != ':') return NULL;
    const char *at = line + length + 1, *end = line + bytes;
    while (at < end && (*at == ' ' || *at == '\t'))
        at++;
    while (end > at && (end[-1] == '\r' || end[-1] == '\n' || end[-1] == ' '))
        end--;
    *ret_bytes = (size_t)(end - at);
    return at;
}

static size_t take_header(char *line, size_t size, size_t count, void *context)
{
    transfer_t *transfer = context;
    size_t bytes = size * count, length = 0;
    const char *value = header_value(line, bytes, "x-request-id", &length);
    if (value && length < sizeof transfer->reply->request_id) {
        memcpy(transfer->reply->request_id, value, length);
        transfer->reply->request_id[length] = '\0';
    }
    value = header_value(line, bytes, "retry-after", &length);
    for (size_t i = 0; value && i < length && value[i] >= '0' && value[i] <= '9' && i < 6; i++)
        transfer->reply->retry_after = transfer->reply->retry_after * 10 + (unsigned)(value[i] - '0');
    value = header_value(line, bytes, "content-type", &length);
    if (value) {
        long status = 0;
        curl_easy_getinfo(transfer->client->easy, CURLINFO_RESPONSE_CODE, &status);
        transfer->is_stream =
            transfer->call->event && status == 200 && length >= 17 && !strncasecmp(value, "text/event-stream", 17);
    }
    return bytes;
}

static struct curl_slist *add_header(struct curl_slist *headers, const char *line)
{
    struct curl_slist *longer = curl_slist_append(headers, line);
    return longer ? longer : headers;
}

void http_client_apply(const http_client_t *client, CURL *easy, const char *path)
{
    char url[URL_MAX + 256];
    snprintf(url, sizeof url, "%s%s", client->base, path);
    curl_easy_setopt(easy, CURLOPT_URL, url);
    curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(easy, CURLOPT_TCP_NODELAY, 1L);
    curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, (long)CONNECT_TIMEOUT_MS);
    if (client->socket_path[0]) curl_easy_setopt(easy, CURLOPT_UNIX_SOCKET_PATH, client->socket_path);
    if (client->socket_path[0] || is_local(client->base)) curl_easy_setopt(easy, CURLOPT_PROXY, "");
}

struct curl_slist *http_client_headers(bool is_json, const char *more)
{
    char agent[128];
    snprintf(agent, sizeof agent, "User-Agent: quintet/%s", qn_build_id());
    struct curl_slist *headers = add_header(NULL, agent);
    if (is_json) headers = add_header(headers, "Content-Type: application/json");
    /* No "Expect: 100-continue": it costs a round trip before each long prompt. */
    headers = add_header(headers, "Expect:");
    char authorization[320];
    const char *key = getenv("QUINTET_API_KEY");
    if (key && key[0] && strlen(key) <= 256) {
        snprintf(authorization, sizeof authorization, "Authorization: Bearer %s", key);
        headers = add_header(headers, authorization);
        explicit_bzero(authorization, sizeof authorization);
    }
    return more ? add_header(headers, more) : headers;
}

static void set_options(transfer_t *transfer, const char *body, struct curl_slist *headers)
{
    http_client_t *client = transfer->client;
    CURL *easy = client->easy;
    curl_easy_reset(easy);
    http_client_apply(client, easy, transfer->call->path);
    curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, client->error);
    curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, transfer->call->timeout_ms);
    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, take_body);
    curl_easy_setopt(easy, CURLOPT_WRITEDATA, transfer);
    curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, take_header);
    curl_easy_setopt(easy, CURLOPT_HEADERDATA, transfer);
    if (!strcmp(transfer->call->method, "POST")) {
        curl_easy_setopt(easy, CURLOPT_POST, 1L);
        curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)(body ? strlen(body) : 0));
        curl_easy_setopt(easy, CURLOPT_POSTFIELDS, body ? body : "");
    }
}

/* Drives the transfer until it ends, or `interrupt_fd` becomes readable. */
static qn_err_t drive(http_client_t *client, CURLcode *ret_code)
{
    struct curl_waitfd interrupt = {.fd = client->interrupt_fd, .events = CURL_WAIT_POLLIN};
    unsigned interrupts = client->interrupt_fd >= 0;
    for (int running = 1; running;) {
        CURLMcode code = curl_multi_perform(client->multi, &running);
        if (!code && running) code = curl_multi_poll(client->multi, &interrupt, interrupts, 1000, NULL);
        if (code) return qn_fail(QN_ERR_IO, "libcurl: %s", curl_multi_strerror(code));
        if (running && interrupts) {
            struct pollfd now = {.fd = client->interrupt_fd, .events = POLLIN};
            if (poll(&now, 1, 0) == 1) return qn_fail(QN_ERR_CANCELLED, "interrupted");
        }
    }
    int left;
    const CURLMsg *message = curl_multi_info_read(client->multi, &left);
    *ret_code = message ? message->data.result : CURLE_RECV_ERROR;
    return QN_OK;
}

/* libcurl's result as one of ours. */
static qn_err_t translate(const http_client_t *client, CURLcode code)
{
    const char *why = client->error[0] ? client->error : curl_easy_strerror(code);
    switch (code) {
    case CURLE_OK: return QN_OK;
    case CURLE_COULDNT_CONNECT: return qn_fail(QN_ERR_NOT_FOUND, "no server listens at %s", client->given);
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_RESOLVE_PROXY: return qn_fail(QN_ERR_NOT_FOUND, "no server at %s (%s)", client->given, why);
    case CURLE_OPERATION_TIMEDOUT: return qn_fail(QN_ERR_TIMEOUT, "%s did not answer in time (%s)", client->given, why);
    case CURLE_OUT_OF_MEMORY: return qn_fail(QN_ERR_NO_MEMORY, "libcurl has no memory");
    default: return qn_fail(QN_ERR_PEER, "the connection to %s broke: %s", client->given, why);
    }
}

static qn_err_t transfer_run(transfer_t *transfer, const char *body)
{
    http_client_t *client = transfer->client;
    struct curl_slist *headers = http_client_headers(body != NULL, transfer->call->header);
    set_options(transfer, body, headers);

    CURLcode code = CURLE_OK;
    qn_err_t err = QN_OK;
    client->error[0] = '\0';
    if (curl_multi_add_handle(client->multi, client->easy))
        err = qn_fail(QN_ERR_IO, "libcurl refuses the call");
    else
        err = drive(client, &code);
    curl_easy_getinfo(client->easy, CURLINFO_RESPONSE_CODE, &transfer->reply->status);
    /* Taking an unfinished transfer out closes its connection: the server sees the client leave. */
    curl_multi_remove_handle(client->multi, client->easy);
    curl_slist_free_all(headers);
    if (err || transfer->err) return err ? err : transfer->err;
    return translate(client, code);
}

qn_err_t http_client_call(http_client_t *client, const http_call_t *call, http_reply_t *reply)
{
    *reply = (http_reply_t){0};
    transfer_t transfer = {.call = call, .client = client, .reply = reply};
    transfer.sse.event = call->event;
    transfer.sse.context = call->context;
    char *body = NULL;
    if (call->body) {
        body = json_dumps(call->body, JSON_COMPACT | JSON_REAL_PRECISION(17));
        if (!body) return qn_fail(QN_ERR_INVALID, "the request is not valid JSON text: is it UTF-8?");
    }
    qn_err_t err = transfer_run(&transfer, body);
    free(body);
    sse_reader_fini(&transfer.sse);
    if (!err && reply->text) reply->json = json_loadb(reply->text, reply->bytes, JSON_DECODE_ANY, NULL);
    return err;
}

void http_reply_fini(http_reply_t *reply)
{
    json_decref(reply->json);
    free(reply->text);
    *reply = (http_reply_t){0};
}

/* ---- for people ---- */

static int status_to_exit(long status)
{
    if (status == 429 || status == 503 || status == 504) return EX_TEMPFAIL;
    if (status == 401 || status == 403) return EX_NOPERM;
    if (status == 404 || status == 405 || status == 501) return EX_UNAVAILABLE;
    return status >= 500 ? EX_SOFTWARE : EX_DATAERR;
}

int http_client_explain_error(const json_t *error, long status)
{
    const char *message = json_string_value(json_object_get(error, "message"));
    const char *param = json_string_value(json_object_get(error, "param"));
    const json_t *code = json_object_get(error, "code");
    if (!status) status = json_is_integer(code) ? (long)json_integer_value(code) : 500;
    if (param && message && !strstr(message, param))
        return cli_fail_server(status_to_exit(status), error, "the server refused (%ld): %s: %s", status, param,
                               message);
    return cli_fail_server(status_to_exit(status), error, "the server refused (%ld): %s", status,
                           message ? message : "it gives no reason");
}

int http_client_explain(const http_client_t *client, qn_err_t err, const http_reply_t *reply)
{
    if (err == QN_ERR_NOT_FOUND)
        return cli_fail(EX_UNAVAILABLE,
                        "%s\nstart one with: quintet up\n"
                        "or name another with --url or QUINTET_URL",
                        qn_err_text());
    if (err == QN_ERR_CANCELLED) return CLI_EXIT_INTERRUPTED;
    if (err) return cli_fail_err(err);
    if (reply->status < 300) return EX_OK;
    const json_t *error = json_object_get(reply->json, "error");
    if (!json_is_object(error))
        return cli_fail(status_to_exit(reply->status), "%s answered with HTTP status %ld%s%.200s", client->given,
                        reply->status, reply->bytes ? ": " : "", reply->text ? reply->text : "");
    int status = http_client_explain_error(error, reply->status);
    if (reply->retry_after) fprintf(stderr, "try again in %u s\n", reply->retry_after);
    return status;
}
