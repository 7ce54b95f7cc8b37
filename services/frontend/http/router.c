/* What is this?      The table of HTTP routes.
 * State owned:       none; the table is constant.
 * Must never:        look at a body or a header.
 * Read next:         routes.c, which acts on what is found. */
#include "services/frontend/http/router.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define GET ROUTER_GET
#define POST ROUTER_POST
#define PUT ROUTER_PUT
#define DELETE ROUTER_DELETE

static const router_row_t rows[] = {
    {"/v1/completions", POST, false, ROUTE_COMPLETIONS,
     "Text or token ids to text: OpenAI's and vLLM's completions, streamed or whole.", ACCESS_USER},
    {"/generate", POST, false, ROUTE_GENERATE, "Text or token ids to text, as SGLang writes it, or as plain fields.",
     ACCESS_USER},
    {"/batch_generate", POST, false, ROUTE_BATCH_GENERATE,
     "Several prompts to several texts, batched together, in order.", ACCESS_USER},
    {"/tokenize", POST, false, ROUTE_TOKENIZE, "Text to token ids.", ACCESS_USER},
    {"/detokenize", POST, false, ROUTE_DETOKENIZE, "Token ids to text.", ACCESS_USER},
    {"/v1/models", GET, false, ROUTE_MODELS, "The models that are served.", ACCESS_USER},
    {"/v1/models/", GET, true, ROUTE_MODEL, "One model.", ACCESS_USER},
    {"/health", GET, false, ROUTE_HEALTH, "Whether all five services are ready, and what each says. Passive.",
     ACCESS_PUBLIC},
    {"/ready", GET, false, ROUTE_READY, "The same as /health.", ACCESS_PUBLIC},
    {"/ping", GET | POST, false, ROUTE_PING, "Whether the frontend answers.", ACCESS_PUBLIC},
    {"/version", GET, false, ROUTE_VERSION, "The build and its protocol.", ACCESS_PUBLIC},
    {"/services", GET, false, ROUTE_SERVICES, "The five services: process, life, build, state.", ACCESS_ADMIN},
    {"/services/{service}", GET, false, ROUTE_SERVICE,
     "One service: its methods with schemas, its messages, its health.", ACCESS_ADMIN},
    {"/services/{service}/examples", GET, false, ROUTE_EXAMPLES,
     "Requests that can be posted to the service's methods as they stand.", ACCESS_ADMIN},
    {"/services/{service}/{method}", POST, false, ROUTE_METHOD,
     "Calls a method of a service; no body is the same as {}.", ACCESS_ADMIN},
    {"/openapi.json", GET, false, ROUTE_OPENAPI, "This description: OpenAPI 3.1 of every route.", ACCESS_USER},
    {"/docs", GET, false, ROUTE_DOCS, "This description as a page, with forms to try it.", ACCESS_USER},
    {"/cache/stats", GET, false, ROUTE_CACHE_STATS, "Figures of the prefix cache.", ACCESS_ADMIN},
    {"/flush_cache", POST, false, ROUTE_FLUSH_CACHE, "Forgets all cached prefixes; blocks in use stay.",
     ACCESS_ADMIN}, /* SGLang takes GET too; here GET changes nothing */
    {"/abort_request", POST, false, ROUTE_ABORT_REQUEST, "Ends requests, by id or all.", ACCESS_USER},
    {"/metrics", GET, false, ROUTE_METRICS, "Prometheus text of all services.", ACCESS_USER},
    {"/model_info", GET, false, ROUTE_MODEL_INFO, "What is known of the model.", ACCESS_USER},
    {"/get_model_info", GET, false, ROUTE_MODEL_INFO, "The same as /model_info.",
     ACCESS_USER}, /* SGLang's older names */
    {"/server_info", GET, false, ROUTE_SERVER_INFO, "What the server runs with.", ACCESS_USER},
    {"/get_server_info", GET, false, ROUTE_SERVER_INFO, "The same as /server_info.", ACCESS_USER},
#define FORM(methods, path, name, method, doc) {path, methods, false, ROUTE_FORM_##name, doc, ACCESS_ADMIN},
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
    [ROUTE_OPENAPI] = "openapi",
    [ROUTE_DOCS] = "docs",
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

static bool row_matches(const router_row_t *row, const char *path, router_match_t *ret_match)
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
        ret_match->access = rows[i].access;
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

const router_row_t *router_rows(size_t *ret_count)
{
    *ret_count = sizeof rows / sizeof rows[0];
    return rows;
}
