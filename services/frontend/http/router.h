/* Which route a method and a path name. */
#ifndef QN_FRONTEND_HTTP_ROUTER_H
#define QN_FRONTEND_HTTP_ROUTER_H

#include <stdbool.h>
#include <stddef.h>

typedef enum {
    ROUTE_NONE,
    ROUTE_COMPLETIONS,
    ROUTE_GENERATE,
    ROUTE_TOKENIZE,
    ROUTE_DETOKENIZE,
    ROUTE_MODELS,
    ROUTE_MODEL,
    ROUTE_HEALTH,
    ROUTE_READY,
    ROUTE_PING,
    ROUTE_VERSION,
    ROUTE_SERVICES,
    ROUTE_CACHE_STATS,
    ROUTE_FLUSH_CACHE,
    ROUTE_ABORT_REQUEST,
    ROUTE_METRICS,
    ROUTE_MODEL_INFO,
    ROUTE_SERVER_INFO,
    ROUTE_BATCH_GENERATE,
    ROUTE_SERVICE,
    ROUTE_EXAMPLES,
    ROUTE_METHOD,
    ROUTE_OPENAPI,
    ROUTE_DOCS,
    ROUTE_FORMS, /* those of forms.def follow, in its order */
#define FORM(methods, path, name, method, doc) ROUTE_FORM_##name,
#define FORM_OWN FORM
#include "services/frontend/research/forms.def"
#undef FORM
#undef FORM_OWN
    ROUTE_COUNT,
} route_t;

/* Who may: what no row says is for administrators. A larger scope has the smaller one in it. */
typedef enum {
    ACCESS_ADMIN = 0, /* shows or changes how the server works, or what others do with it */
    ACCESS_USER,      /* uses the model */
    ACCESS_PUBLIC,    /* whether it lives */
} access_t;

typedef enum {
    ROUTER_FOUND,
    ROUTER_NO_PATH,   /* 404 */
    ROUTER_NO_METHOD, /* 405; ret_allow names the methods that exist */
} router_outcome_t;

/* View of a part of the path. */
typedef struct {
    const char *text;
    size_t bytes;
} segment_t;

#define ROUTER_SEGMENTS_MAX 2

typedef struct {
    route_t route;
    const char *name;                        /* "completions"; static */
    segment_t segments[ROUTER_SEGMENTS_MAX]; /* what stands for {names} of the route's path, in order */
    const char *rest; /* view of what followed the path of a prefix route ("/v1/models/"), else "" */
    char allow[48];   /* for ROUTER_NO_METHOD: "GET, HEAD" */
    access_t access;  /* what the path needs */
} router_match_t;

/* HEAD is answered where GET is. `ret_match` is written for every outcome. */
router_outcome_t router_find(const char *method, const char *path, router_match_t *ret_match);
enum { ROUTER_GET = 1, ROUTER_POST = 2, ROUTER_PUT = 4, ROUTER_DELETE = 8 };

typedef struct {
    const char *path; /* {name} stands for one segment */
    unsigned methods; /* ROUTER_ bits */
    bool prefix;      /* the path goes on: at least one character follows */
    route_t route;
    const char *doc; /* one sentence */
    access_t access;
} router_row_t;

/* Returns view of the table; rows of one path stand together. */
const router_row_t *router_rows(size_t *ret_count);
/* Returns view of "completions" and the like; "none" for ROUTE_NONE. */
const char *router_name(route_t route);
/* Whether its body asks for generated text. */
bool router_generates(route_t route);

#endif
