#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "services/frontend/reply/prometheus.h"

static char *render(prometheus_t *page)
{
    reply_buffer_t out = {0};
    size_t bytes;
    prometheus_write(page, &out);
    reply_buffer_append(&out, "", 1);
    prometheus_destroy(&page);
    return reply_buffer_take(&out, &bytes);
}

static void test_prometheus_services_share_a_family(void **state)
{
    (void)state;
    prometheus_t *page = prometheus_create("m");
    qn_stat_row_t frames = {.name = "link_frames", .help = "Frames", .kind = QN_STAT_COUNTER, .value = 7};
    qn_stat_row_t gauge = {.name = "waiting", .help = "Two\nlines", .kind = QN_STAT_GAUGE, .value = 3};
    prometheus_add(page, "frontend", &frames);
    prometheus_add(page, "scheduler", &gauge);
    frames.value = UINT64_MAX;
    prometheus_add(page, "memory", &frames);
    gauge.name = "link_frames_total"; /* taken by a counter */
    prometheus_add(page, "memory", &gauge);
    char *text = render(page);
    assert_string_equal(
        text,
        "# HELP quintet_link_frames_total Frames\n# TYPE quintet_link_frames_total counter\n"
        "quintet_link_frames_total{service=\"frontend\",model_name=\"m\"} 7\n"
        "quintet_link_frames_total{service=\"memory\",model_name=\"m\"} 18446744073709551615\n"
        "# HELP quintet_waiting Two lines\n# TYPE quintet_waiting gauge\nquintet_waiting{service=\"scheduler\",model_name=\"m\"} "
        "3\n");
    free(text);
}

static void test_prometheus_number_is_any_and_a_nameless_row_is_hidden(void **state)
{
    (void)state;
    prometheus_t *page = prometheus_create("m");
    double value = -0.25;
    qn_stat_row_t row = {.name = "policy_metric{policy=\"fair\",metric=\"users\"}",
                         .help = "Own",
                         .kind = QN_STAT_NUMBER};
    qn_stat_row_t hidden = {.name = "", .help = "Own", .kind = QN_STAT_NUMBER};
    memcpy(&row.value, &value, sizeof value);
    prometheus_add(page, "scheduler", &hidden);
    prometheus_add(page, "scheduler", &row);
    char *text = render(page);
    assert_string_equal(text, "# HELP quintet_policy_metric Own\n# TYPE quintet_policy_metric gauge\n"
                              "quintet_policy_metric{service=\"scheduler\",policy=\"fair\",metric=\"users\","
                              "model_name=\"m\"} -0.25\n");
    free(text);
}

static void test_prometheus_histogram_is_cumulative_in_seconds(void **state)
{
    (void)state;
    prometheus_t *page = prometheus_create("m");
    qn_stat_row_t row = {
        .name = "step", .help = "Step", .kind = QN_STAT_HISTOGRAM_NS, .value = 4, .sum_ns = 2500000000};
    row.buckets[0] = 1;
    row.buckets[1] = 2;
    row.buckets[QN_STAT_BUCKETS - 1] = 1;
    prometheus_add(page, "compute", &row);
    char *text = render(page);
    static const char *const lines[] = {
        "# TYPE quintet_step_seconds histogram\n",
        "quintet_step_seconds_bucket{service=\"compute\",le=\"1e-06\",model_name=\"m\"} 1\n",
        "quintet_step_seconds_bucket{service=\"compute\",le=\"2e-06\",model_name=\"m\"} 3\n",
        "quintet_step_seconds_bucket{service=\"compute\",le=\"4e-06\",model_name=\"m\"} 3\n",
        "quintet_step_seconds_bucket{service=\"compute\",le=\"+Inf\",model_name=\"m\"} 4\n",
        "quintet_step_seconds_sum{service=\"compute\",model_name=\"m\"} 2.500000000\n",
        "quintet_step_seconds_count{service=\"compute\",model_name=\"m\"} 4\n",
    };
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        if (!strstr(text, lines[i])) fail_msg("no %s in %s", lines[i], text);
    }
    free(text);
}

static void test_prometheus_labels_of_a_row_and_of_the_model(void **state)
{
    (void)state;
    prometheus_t *page = prometheus_create("a\"b\\c\nd");
    qn_stat_row_t row = {.name = "requests{code=\"200\"}", .help = "Requests", .kind = QN_STAT_COUNTER, .value = 2};
    prometheus_add(page, "frontend", &row);
    row.name = "requests{code=\"404\"}";
    row.value = 1;
    prometheus_add(page, "frontend", &row);
    char *text = render(page);
#define MODEL ",model_name=\"a\\\"b\\\\c\\nd\"} "
    assert_string_equal(text, "# HELP quintet_requests_total Requests\n# TYPE quintet_requests_total counter\n"
                              "quintet_requests_total{service=\"frontend\",code=\"200\"" MODEL "2\n"
                              "quintet_requests_total{service=\"frontend\",code=\"404\"" MODEL "1\n");
    free(text);
}

static void test_prometheus_times_are_in_seconds_whatever_they_are_kept_in(void **state)
{
    (void)state;
    static const struct {
        const char *name, *unit;
        qn_stat_kind_t kind;
        const char *line;
    } cases[] = {
        {"work", "nanoseconds", QN_STAT_COUNTER, "\nquintet_work_seconds_total{service=\"s\",model_name=\"m\"} 1.5"},
        {"work_seconds", "nanoseconds", QN_STAT_COUNTER, "\nquintet_work_seconds_total{"},
        {"load", "milliseconds", QN_STAT_GAUGE, "\nquintet_load_seconds{service=\"s\",model_name=\"m\"} 1500000.0"},
        {"sent_bytes", "bytes", QN_STAT_COUNTER,
         "\nquintet_sent_bytes_total{service=\"s\",model_name=\"m\"} 1500000000\n"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        prometheus_t *page = prometheus_create("m");
        qn_stat_row_t row = {
            .name = cases[i].name, .unit = cases[i].unit, .help = "x", .kind = cases[i].kind, .value = 1500000000};
        prometheus_add(page, "s", &row);
        char *text = render(page);
        if (!strstr(text, cases[i].line)) fail_msg("no %s in %s", cases[i].line, text);
        free(text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prometheus_services_share_a_family),
        cmocka_unit_test(test_prometheus_labels_of_a_row_and_of_the_model),
        cmocka_unit_test(test_prometheus_times_are_in_seconds_whatever_they_are_kept_in),
        cmocka_unit_test(test_prometheus_number_is_any_and_a_nameless_row_is_hidden),
        cmocka_unit_test(test_prometheus_histogram_is_cumulative_in_seconds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
