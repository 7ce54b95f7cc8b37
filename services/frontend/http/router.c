/* What is this?      The table of HTTP routes.
 * State owned:       none; the table is constant.
 * Must never:        look at a body or a header.
 * Read next:         routes.c, which acts on what is found. */
#include "services/frontend/http/router.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

enum { GET = 1, POST = 2, PUT = 4, DELETE = 8 };

typedef struct {
    const char *path; /* {name} stands for one segment */
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
    {"/services/{service}", GET, false, ROUTE_SERVICE},
    {"/services/{service}/examples", GET, false, ROUTE_EXAMPLES},
    {"/services/{service}/{method}", POST, false, ROUTE_METHOD},
    {"/cache/stats", GET, false, ROUTE_CACHE_STATS},
    {"/flush_cache", POST, false, ROUTE_FLUSH_CACHE}, /* SGLang takes GET too; here GET changes nothing */
    {"/abort_request", POST, false, ROUTE_ABORT_REQUEST},
    {"/metrics", GET, false, ROUTE_METRICS},
    {"/model_info", GET, false, ROUTE_MODEL_INFO},
    {"/get_model_info", GET, false, ROUTE_MODEL_INFO}, /* SGLang's older names */
    {"/server_info", GET, false, ROUTE_SERVER_INFO},
    {"/get_server_info", GET, false, ROUTE_SERVER_INFO},
#define FORM(methods, path, name, method, doc) {path, methods, false, ROUTE_FORM_##name},
#define FORM_OWN FORM
#include "services/frontend/research/forms.def"
#undef FORM
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
    [ROUTE_SERVICE] = "service",
    [ROUTE_EXAMPLES] = "examples",
    [ROUTE_METHOD] = "method",
    [ROUTE_FORMS] = "none",
#define FORM(methods, path, name, method, doc) [ROUTE_FORM_##name] = #name,
#include "services/frontend/research/forms.def"
#undef FORM
#undef FORM_OWN
};

const char *router_name(route_t route) { return (unsigned)route < ROUTE_COUNT ? names[route] : "none"; }

bool router_generates(route_t route)
{
    return route == ROUTE_COMPLETIONS || route == ROUTE_GENERATE || route == ROUTE_BATCH_GENERATE;
}

/* A path with {names}: each stands for one segment that is not empty. */
static bool pattern_matches(const char *pattern, const char *path, segment_t *ret_segments)
{
    size_t segments = 0;
    while (*pattern && *path) {
        if (*pattern != '{') {
            if (*pattern++ != *path++) return false;
            continue;
        }
        size_t bytes = strcspn(path, "/");
        if (bytes == 0) return false;
        ret_segments[segments++] = (segment_t){path, bytes};
        pattern = strchr(pattern, '}') + 1;
        path += bytes;
    }
    return *pattern == '\0' && *path == '\0';
}

static bool row_matches(const row_t *row, const char *path, router_match_t *ret_match)
{
    size_t length = strlen(row->path);
    ret_match->rest = "";
    if (!row->prefix) return pattern_matches(row->path, path, ret_match->segments);
    if (strncmp(row->path, path, length) != 0 || path[length] == '\0') return false;
    ret_match->rest = path + length;
    return true;
}

static unsigned method_bit(const char *method)
{
    static const struct {
        const char *name;
        unsigned bit;
    } bits[] = {{"GET", GET}, {"HEAD", GET}, {"POST", POST}, {"PUT", PUT}, {"DELETE", DELETE}};
    for (size_t i = 0; i < sizeof bits / sizeof bits[0]; i++)
        if (strcmp(method, bits[i].name) == 0) return bits[i].bit;
    return 0;
}

static void write_allow(unsigned methods, char ret_allow[48])
{
    static const char *const words[] = {"GET, HEAD", "POST", "PUT", "DELETE"};
    size_t used = 0;
    for (unsigned i = 0; i < 4; i++)
        if (methods & (1u << i))
            used += (size_t)snprintf(ret_allow + used, 48 - used, "%s%s", used ? ", " : "", words[i]);
}

/* Rows of one path stand together; the first path that matches is the one. */
router_outcome_t router_find(const char *method, const char *path, router_match_t *ret_match)
{
    const char *found = NULL;
    unsigned allowed = 0;
    *ret_match = (router_match_t){.route = ROUTE_NONE, .name = names[ROUTE_NONE], .rest = ""};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if (found ? strcmp(found, rows[i].path) != 0 : !row_matches(&rows[i], path, ret_match)) continue;
        found = rows[i].path;
        allowed |= rows[i].methods;
        if (!(rows[i].methods & method_bit(method))) continue;
        ret_match->route = rows[i].route;
        ret_match->name = names[rows[i].route];
        return ROUTER_FOUND;
    }
    if (!found) return ROUTER_NO_PATH;
    write_allow(allowed, ret_match->allow);
    return ROUTER_NO_METHOD;
}
