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
    prometheus_t *page = prometheus_create();
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
        "quintet_link_frames_total{service=\"frontend\"} 7\n"
        "quintet_link_frames_total{service=\"memory\"} 18446744073709551615\n"
        "# HELP quintet_waiting Two lines\n# TYPE quintet_waiting gauge\nquintet_waiting{service=\"scheduler\"} 3\n");
    free(text);
}

static void test_prometheus_histogram_is_cumulative_in_seconds(void **state)
{
    (void)state;
    prometheus_t *page = prometheus_create();
    qn_stat_row_t row = {
        .name = "step", .help = "Step", .kind = QN_STAT_HISTOGRAM_NS, .value = 4, .sum_ns = 2500000000};
    row.buckets[0] = 1;
    row.buckets[1] = 2;
    row.buckets[QN_STAT_BUCKETS - 1] = 1;
    prometheus_add(page, "compute", &row);
    char *text = render(page);
    static const char *const lines[] = {
        "# TYPE quintet_step_seconds histogram\n",
        "quintet_step_seconds_bucket{service=\"compute\",le=\"1e-06\"} 1\n",
        "quintet_step_seconds_bucket{service=\"compute\",le=\"2e-06\"} 3\n",
        "quintet_step_seconds_bucket{service=\"compute\",le=\"4e-06\"} 3\n",
        "quintet_step_seconds_bucket{service=\"compute\",le=\"+Inf\"} 4\n",
        "quintet_step_seconds_sum{service=\"compute\"} 2.500000000\n",
        "quintet_step_seconds_count{service=\"compute\"} 4\n",
    };
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        if (!strstr(text, lines[i])) fail_msg("no %s in %s", lines[i], text);
    }
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prometheus_services_share_a_family),
        cmocka_unit_test(test_prometheus_histogram_is_cumulative_in_seconds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
