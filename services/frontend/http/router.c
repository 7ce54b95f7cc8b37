/* What is this?      The table of HTTP routes.
 * State owned:       none; the table is constant.
 * Must never:        look at a body or a header.
 * Read next:         routes.c, which acts on what is found. */
#include "services/frontend/http/router.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

enum { GET = 1, POST = 2 };

typedef struct {
    const char *path;
    unsigned methods;
    bool prefix; /* the path goes on: at least one character follows */
    route_t route;
} row_t;

static const row_t rows[] = {
    {"/v1/completions", POST, false, ROUTE_COMPLETIONS},
    {"/generate", POST, false, ROUTE_GENERATE},
    {"/batch_generate", POST, false, ROUTE_BATCH_GENERATE},
    {"/tokenize", POST, false, ROUTE_TOKENIZE},
    {"/detokenize", POST, false, ROUTE_DETOKENIZE},
    {"/v1/models", GET, false, ROUTE_MODELS},
    {"/v1/models/", GET, true, ROUTE_MODEL},
    {"/health", GET, false, ROUTE_HEALTH},
    {"/ready", GET, false, ROUTE_READY},
    {"/ping", GET | POST, false, ROUTE_PING},
    {"/version", GET, false, ROUTE_VERSION},
    {"/services", GET, false, ROUTE_SERVICES},
    {"/cache/stats", GET, false, ROUTE_CACHE_STATS},
    {"/flush_cache", POST, false, ROUTE_FLUSH_CACHE}, /* SGLang takes GET too; here GET changes nothing */
    {"/abort_request", POST, false, ROUTE_ABORT_REQUEST},
    {"/metrics", GET, false, ROUTE_METRICS},
    {"/model_info", GET, false, ROUTE_MODEL_INFO},
    {"/get_model_info", GET, false, ROUTE_MODEL_INFO}, /* SGLang's older names */
    {"/server_info", GET, false, ROUTE_SERVER_INFO},
    {"/get_server_info", GET, false, ROUTE_SERVER_INFO},
};

static const char *const names[ROUTE_COUNT] = {
    [ROUTE_NONE] = "none",
    [ROUTE_COMPLETIONS] = "completions",
    [ROUTE_GENERATE] = "generate",
    [ROUTE_TOKENIZE] = "tokenize",
    [ROUTE_DETOKENIZE] = "detokenize",
    [ROUTE_MODELS] = "models",
    [ROUTE_MODEL] = "model",
    [ROUTE_HEALTH] = "health",
    [ROUTE_READY] = "ready",
    [ROUTE_PING] = "ping",
    [ROUTE_VERSION] = "version",
    [ROUTE_SERVICES] = "services",
    [ROUTE_CACHE_STATS] = "cache_stats",
    [ROUTE_FLUSH_CACHE] = "flush_cache",
    [ROUTE_ABORT_REQUEST] = "abort_request",
    [ROUTE_METRICS] = "metrics",
    [ROUTE_MODEL_INFO] = "model_info",
    [ROUTE_SERVER_INFO] = "server_info",
    [ROUTE_BATCH_GENERATE] = "batch_generate",
};

const char *router_name(route_t route) { return (unsigned)route < ROUTE_COUNT ? names[route] : "none"; }

bool router_generates(route_t route)
{
    return route == ROUTE_COMPLETIONS || route == ROUTE_GENERATE || route == ROUTE_BATCH_GENERATE;
}

static bool row_matches(const row_t *row, const char *path, const char **ret_rest)
{
    size_t length = strlen(row->path);
    *ret_rest = "";
    if (!row->prefix) return strcmp(row->path, path) == 0;
    if (strncmp(row->path, path, length) != 0 || path[length] == '\0') return false;
    *ret_rest = path + length;
    return true;
}

static unsigned method_bit(const char *method)
{
    if (strcmp(method, "GET") == 0 || strcmp(method, "HEAD") == 0) return GET;
    return strcmp(method, "POST") == 0 ? POST : 0;
}

router_outcome_t router_find(const char *method, const char *path, router_match_t *ret_match)
{
    *ret_match = (router_match_t){.route = ROUTE_NONE, .name = names[ROUTE_NONE], .rest = ""};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const char *rest;
        if (!row_matches(&rows[i], path, &rest)) continue;
        if (rows[i].methods & method_bit(method)) {
            ret_match->route = rows[i].route;
            ret_match->name = names[rows[i].route];
            ret_match->rest = rest;
            return ROUTER_FOUND;
        }
        snprintf(ret_match->allow, sizeof ret_match->allow, "%s%s", rows[i].methods & GET ? "GET, HEAD" : "",
                 rows[i].methods & POST ? (rows[i].methods & GET ? ", POST" : "POST") : "");
        return ROUTER_NO_METHOD;
    }
    return ROUTER_NO_PATH;
}
