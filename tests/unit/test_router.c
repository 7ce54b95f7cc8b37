#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "services/frontend/http/router.h"

static void test_router_known_paths_give_their_route(void **state)
{
    (void)state;
    static const struct {
        const char *method, *path;
        route_t route;
        const char *rest;
    } cases[] = {
        {"POST", "/v1/completions", ROUTE_COMPLETIONS, ""},
        {"POST", "/generate", ROUTE_GENERATE, ""},
        {"POST", "/batch_generate", ROUTE_BATCH_GENERATE, ""},
        {"GET", "/v1/models", ROUTE_MODELS, ""},
        {"GET", "/v1/models/default", ROUTE_MODEL, "default"},
        {"GET", "/v1/models/org/name", ROUTE_MODEL, "org/name"},
        {"HEAD", "/health", ROUTE_HEALTH, ""},

        {"POST", "/flush_cache", ROUTE_FLUSH_CACHE, ""},
        {"GET", "/services", ROUTE_SERVICES, ""},
        {"GET", "/services/memory", ROUTE_SERVICE, ""},
        {"GET", "/services/memory/examples", ROUTE_EXAMPLES, ""},
        {"POST", "/services/memory/usage", ROUTE_METHOD, ""},
        {"GET", "/get_server_info", ROUTE_SERVER_INFO, ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        router_match_t match;
        assert_int_equal(router_find(cases[i].method, cases[i].path, &match), ROUTER_FOUND);
        assert_int_equal(match.route, cases[i].route);
        assert_string_equal(match.rest, cases[i].rest);
        assert_string_equal(match.name, router_name(cases[i].route));
    }
}

static void test_router_names_in_a_path_are_given_in_order(void **state)
{
    (void)state;
    router_match_t match;
    assert_int_equal(router_find("POST", "/services/memory/usage", &match), ROUTER_FOUND);
    assert_int_equal(match.segments[0].bytes, 6);
    assert_memory_equal(match.segments[0].text, "memory", 6);
    assert_int_equal(match.segments[1].bytes, 5);
    assert_memory_equal(match.segments[1].text, "usage", 5);
}

static void test_router_unknown_paths_are_not_found(void **state)
{
    (void)state;
    static const char *const paths[] = {"",
                                        "/",
                                        "/v1",
                                        "/v1/completions/",
                                        "/v1/completionsx",
                                        "/v1/models/",
                                        "/HEALTH",
                                        "/services/",
                                        "/services/memory/",
                                        "/services//usage",
                                        "/services/memory/usage/more"};
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++) {
        router_match_t match;
        assert_int_equal(router_find("GET", paths[i], &match), ROUTER_NO_PATH);
        assert_int_equal(match.route, ROUTE_NONE);
    }
}

static void test_router_wrong_method_names_the_allowed(void **state)
{
    (void)state;
    static const struct {
        const char *method, *path, *allow;
    } cases[] = {
        {"GET", "/v1/completions", "POST"},
        {"DELETE", "/health", "GET, HEAD"},
        {"PUT", "/ping", "GET, HEAD, POST"},
        {"GET", "/flush_cache", "POST"},
        {"get", "/health", "GET, HEAD"}, /* methods are case-sensitive */
        {"POST", "/v1/models/default", "GET, HEAD"},
        {"DELETE", "/services/memory", "GET, HEAD"},
        {"GET", "/services/memory/usage", "POST"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        router_match_t match;
        assert_int_equal(router_find(cases[i].method, cases[i].path, &match), ROUTER_NO_METHOD);
        assert_string_equal(match.allow, cases[i].allow);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_router_known_paths_give_their_route),
        cmocka_unit_test(test_router_names_in_a_path_are_given_in_order),
        cmocka_unit_test(test_router_unknown_paths_are_not_found),
        cmocka_unit_test(test_router_wrong_method_names_the_allowed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
