/* The rows of a seat on its service's statistics page: counts, and the metrics that the live policy publishes by name. */
#ifndef QN_COMMON_POLICY_POLICY_STATS_H
#define QN_COMMON_POLICY_POLICY_STATS_H

#include "common/policy/policy_seat.h"
#include "common/watch/stats.h"

#define QN_POLICY_STAT_COUNTS 5
#define QN_POLICY_STAT_ROWS (QN_POLICY_STAT_COUNTS + QN_POLICY_METRICS_MAX)

#define QN_POLICY_STAT_METRIC {"", QN_STAT_NUMBER, "", "What a policy publishes itself"}
/* QN_POLICY_STAT_ROWS rows of a table of qn_stat_spec_t, in a row from [FIRST] on: [FIRST] = QN_POLICY_STATS("kind"). */
#define QN_POLICY_STATS(kind)                                                                                   \
    {"policy_decisions{kind=\"" kind "\"}", QN_STAT_COUNTER, "decisions", "Decisions of policies"},             \
        {"policy_switches{kind=\"" kind "\"}", QN_STAT_COUNTER, "changes", "Live policies changed by request"}, \
        {"policy_withdrawn{kind=\"" kind "\"}", QN_STAT_COUNTER, "policies",                                    \
         "Policies withdrawn: a broken rule, or too slow"},                                                     \
        {"policy_shadow_decisions{kind=\"" kind "\"}", QN_STAT_GAUGE, "decisions", "Decisions of the shadow"},  \
        {"policy_shadow_differences{kind=\"" kind "\"}", QN_STAT_GAUGE, "decisions",                            \
         "Decisions in which live and shadow differed"},                                                        \
        QN_POLICY_STAT_METRIC, QN_POLICY_STAT_METRIC, QN_POLICY_STAT_METRIC, QN_POLICY_STAT_METRIC,             \
        QN_POLICY_STAT_METRIC, QN_POLICY_STAT_METRIC, QN_POLICY_STAT_METRIC, QN_POLICY_STAT_METRIC

/* Writes the rows from `first` of `table` on. `*named`: of which change of the live policy the metrics have their names; 0 at
 * first. A few ns when nothing changed. */
void qn_policy_stats_publish(const qn_policy_seat_t *seat, qn_stats_t *stats, unsigned table, unsigned first,
                             uint64_t *named);

#endif
