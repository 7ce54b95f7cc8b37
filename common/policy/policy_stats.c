/* What is this?      A seat's counts and its policy's own metrics on the statistics page.
 * State owned:       none.
 * Must never:        show a metric under the name of a policy that is gone.
 * Read next:         policy_seat.h, common/watch/stats.h. */
#include "common/policy/policy_stats.h"

#include <stdio.h>

static void name_metrics(const qn_policy_object_t *live, qn_stats_t *stats, unsigned table, unsigned first)
{
    const qn_policy_head_t *head = qn_policy_object_head(live);
    char name[QN_STAT_NAME_MAX];
    for (uint32_t i = 0; i < QN_POLICY_METRICS_MAX; i++) {
        name[0] = '\0';
        if (i < head->metric_count)
            snprintf(name, sizeof name, "policy_metric{policy=\"%s\",metric=\"%s\"}", head->name,
                     head->metric_names[i]);
        qn_stats_name(stats, table, first + i, name);
    }
}

void qn_policy_stats_publish(const qn_policy_seat_t *seat, qn_stats_t *stats, unsigned table, unsigned first,
                             uint64_t *named)
{
    qn_policy_counts_t counts;
    const qn_policy_object_t *live = qn_policy_seat_live(seat);
    const qn_policy_head_t *head = qn_policy_object_head(live);
    qn_policy_seat_counts(seat, &counts);
    qn_stats_set(stats, table, first + 0, counts.decisions);
    qn_stats_set(stats, table, first + 1, counts.switches);
    qn_stats_set(stats, table, first + 2, counts.withdrawals);
    qn_stats_set(stats, table, first + 3, counts.shadow_decisions);
    qn_stats_set(stats, table, first + 4, counts.shadow_differences);
    uint64_t changes = 1 + counts.switches + counts.withdrawals;
    if (*named != changes) name_metrics(live, stats, table, first + QN_POLICY_STAT_COUNTS);
    *named = changes;
    for (uint32_t i = 0; i < head->metric_count; i++)
        qn_stats_set_number(stats, table, first + QN_POLICY_STAT_COUNTS + i, qn_policy_object_memory(live)->metrics[i]);
}
