/* The HTTP client of the quintet command: one server, one call at a time, JSON in and out, on top of libcurl.
 *
 * Servers are named by URL: http://host:port, https://host[:port][/prefix], host:port, or unix:PATH (a Unix socket).
 * A server on this machine is never asked through a proxy; for others libcurl's environment variables hold. */
#ifndef QN_TOOLS_CLIENT_HTTP_CLIENT_H
#define QN_TOOLS_CLIENT_HTTP_CLIENT_H

#include <curl/curl.h>
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "common/err.h"
#include "tools/client/sse_reader.h"

#define HTTP_CLIENT_DEFAULT_URL "http://127.0.0.1:8000"
/* Longest reply that is kept: a reply with log-probabilities of a long prompt has tens of megabytes. */
#define HTTP_CLIENT_REPLY_BYTES_MAX (256u << 20)

typedef struct http_client http_client_t;

typedef struct {
    long status;  /* HTTP status; 0: no reply came */
    json_t *json; /* owned; the reply, NULL when it is no JSON or was streamed */
    char *text;   /* owned; the reply's bytes, NUL-terminated */
    size_t bytes;
    char request_id[128]; /* x-request-id, "" when there was none */
    unsigned retry_after; /* seconds; 0: not said */
} http_reply_t;

typedef struct {
    const char *method; /* "GET" or "POST" */
    const char *path;   /* "/v1/completions" */
    const json_t *body; /* borrowed; NULL: none */
    const char *header; /* one more header line ("x-quintet-mode: research"); may be NULL */
    long timeout_ms;    /* for the whole call; 0: none */
    sse_event_t event;  /* gets the events of a 200 text/event-stream reply; NULL: replies are kept whole */
    void *context;
} http_call_t;

/* `url` NULL: QUINTET_URL, or HTTP_CLIENT_DEFAULT_URL. `interrupt_fd` (-1: none; borrowed): once readable, calls end
 * with QN_ERR_CANCELLED and their connection is closed. Does not connect. Failure: QN_ERR_INVALID. Returns owned. */
qn_err_t http_client_open(const char *url, int interrupt_fd, http_client_t **ret_client);
void http_client_close(http_client_t **client);
/* Returns view: the URL as given. */
const char *http_client_url(const http_client_t *client);

/* For callers that drive many transfers at once: gives a handle of theirs the client's server. Sets URL (`path`, as of a
 * call), Unix socket, proxy rules and what all calls have; the rest is the caller's. Borrows the client until the
 * transfer ends. */
void http_client_apply(const http_client_t *client, CURL *easy, const char *path);
/* The header lines of all calls. `is_json`: there is a body. `more` (may be NULL) is one more. Returns owned; free with
 * curl_slist_free_all. */
struct curl_slist *http_client_headers(bool is_json, const char *more);

/* Calls and waits. QN_OK with any HTTP status. Failures: QN_ERR_NOT_FOUND (nobody listens there), QN_ERR_PEER (the
 * connection broke, or the reply is no HTTP), QN_ERR_TIMEOUT, QN_ERR_CANCELLED, QN_ERR_LIMIT, QN_ERR_IO. `reply` is
 * always written; free with http_reply_fini. */
qn_err_t http_client_call(http_client_t *client, const http_call_t *call, http_reply_t *reply);
void http_reply_fini(http_reply_t *reply);

/* Prints what went wrong with a call for people, with the remedy, and returns the exit status: EX_UNAVAILABLE (no
 * server), EX_DATAERR (400 and other 4xx), EX_TEMPFAIL (429, 503, timeout), EX_NOPERM (401, 403), EX_PROTOCOL,
 * EX_SOFTWARE (other 5xx), CLI_EXIT_INTERRUPTED; EX_OK and nothing printed for a status below 300. */
int http_client_explain(const http_client_t *client, qn_err_t err, const http_reply_t *reply);
/* The same for the `error` member of a stream's event ({"message", "type", "param", "code"}). */
int http_client_explain_error(const json_t *error, long status);

#endif
