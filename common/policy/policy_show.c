/* What is this?      Seats for people: what the methods policy_get, policy_set and policy_shadow of two services share.
 * State owned:       none.
 * Must never:        change a seat without a word in the log.
 * Read next:         policy_seat.h, schemas/shown_policies.fbs. */
#include "common/policy/policy_show.h"

#include <stdio.h>
#include <string.h>

#include "common/watch/log.h"
#include "qn_limits.h"

typedef struct {
    qn_arena_t *arena;
    qn_text_t *names;
    uint32_t count;
} list_t;

static qn_text_t copy_text(qn_arena_t *arena, const char *text)
{
    size_t bytes = strlen(text);
    char *copy = qn_arena_zalloc(arena, bytes + 1, 1);
    memcpy(copy, text, bytes);
    return qn_text(copy);
}

static void add_name(void *context, const char *name)
{
    list_t *list = context;
    if (list->count < QN_SHOWN_POLICIES_LOADABLE_MAX) list->names[list->count++] = copy_text(list->arena, name);
}

static qn_text_t choice_of(const qn_policy_object_t *object)
{
    return object != NULL ? qn_text(qn_policy_object_choice(object)) : (qn_text_t){0};
}

static void show_choices(const qn_policy_seat_t *seat, qn_arena_t *arena, qn_shown_policies_t *shown)
{
    const qn_policy_catalogue_t *catalogue = qn_policy_seat_catalogue(seat);
    qn_text_t *builtin = qn_arena_zalloc(arena, catalogue->builtin_count, sizeof *builtin);
    list_t loadable = {.arena = arena,
                       .names = qn_arena_zalloc(arena, QN_SHOWN_POLICIES_LOADABLE_MAX, sizeof(qn_text_t))};
    for (size_t i = 0; i < catalogue->builtin_count; i++)
        builtin[i] = qn_text(catalogue->builtin[i]->name);
    qn_policy_object_list(catalogue->dirs, add_name, &loadable);
    shown->builtin = builtin;
    shown->builtin_count = (uint32_t)catalogue->builtin_count;
    shown->loadable = loadable.names;
    shown->loadable_count = loadable.count;
    shown->dirs = qn_text(catalogue->dirs);
}

static void show_metrics(const qn_policy_seat_t *seat, qn_arena_t *arena, qn_shown_policies_t *shown)
{
    const qn_policy_object_t *live = qn_policy_seat_live(seat);
    const qn_policy_head_t *head = qn_policy_object_head(live);
    qn_shown_metric_t *metrics = qn_arena_zalloc(arena, head->metric_count, sizeof *metrics);
    for (uint32_t i = 0; i < head->metric_count; i++)
        metrics[i] = (qn_shown_metric_t){.name = qn_text(head->metric_names[i]),
                                         .value = (float)qn_policy_object_memory(live)->metrics[i]};
    shown->metrics = metrics;
    shown->metrics_count = head->metric_count;
}

static void show_differences(const qn_policy_seat_t *seat, const qn_call_t *call, qn_shown_policies_t *shown)
{
    qn_shadow_difference_t *rows = qn_arena_zalloc(call->arena, QN_POLICY_DIFFERENCES_MAX, sizeof *rows);
    const qn_policy_difference_t *one;
    bool clock = shown->kind != QN_DECISION_KIND_EVICTION; /* whose time is a count of events */
    for (; (one = qn_policy_seat_difference(seat, shown->differences_count)) != NULL; shown->differences_count++)
        rows[shown->differences_count] = (qn_shadow_difference_t){
            .age_ms = clock && call->began_ns > one->now_ns ? (call->began_ns - one->now_ns) / 1000000 : 0,
            .function = qn_text(one->function),
            .live = qn_text(one->live),
            .live_decision = qn_text(one->by_live.words),
            .live_reason = qn_text(one->by_live.reason),
            .shadow = qn_text(one->shadow),
            .shadow_decision = qn_text(one->by_shadow.words),
            .shadow_reason = qn_text(one->by_shadow.reason),
        };
    shown->differences = rows;
}

const qn_shown_policies_t *qn_policy_show(const qn_policy_seat_t *seat, const qn_call_t *call)
{
    qn_shown_policies_t *shown = qn_arena_zalloc(call->arena, 1, sizeof *shown);
    qn_policy_counts_t counts;
    const char *withdrawn = qn_policy_seat_withdrawn(seat);
    qn_policy_seat_counts(seat, &counts);
    *shown = (qn_shown_policies_t){
        .kind = (qn_decision_kind_t)(qn_policy_seat_catalogue(seat)->kind - QN_POLICY_SCHEDULING),
        .live = qn_text(qn_policy_seat_name(seat)),
        .policy = choice_of(qn_policy_seat_live(seat)),
        .configured = qn_text(qn_policy_seat_configured(seat)),
        .previous = choice_of(qn_policy_seat_previous(seat)),
        .shadow = choice_of(qn_policy_seat_shadow(seat)),
        .withdrawn = withdrawn[0] != '\0' ? qn_text(withdrawn) : (qn_text_t){0},
        .decisions = counts.decisions,
        .switches = counts.switches,
        .withdrawals = counts.withdrawals,
        .shadow_decisions = counts.shadow_decisions,
        .shadow_differences = counts.shadow_differences,
    };
    show_choices(seat, call->arena, shown);
    show_metrics(seat, call->arena, shown);
    show_differences(seat, call, shown);
    return shown;
}

qn_call_outcome_t qn_policy_change(qn_policy_seat_t *seat, bool shadow, qn_text_t choice, const qn_call_t *call)
{
    char name[QN_POLICY_NAME_MAX] = "";
    const char *kind = qn_policy_kind_name(qn_policy_seat_catalogue(seat)->kind);
    if (choice.bytes >= sizeof name || (!shadow && choice.bytes == 0))
        return qn_call_fail(call, 400, "policy", "policy: a name of 1 to %zu bytes is wanted", sizeof name - 1);
    if (choice.bytes > 0) memcpy(name, choice.data, choice.bytes);
    if (!shadow && strcmp(name, "default") == 0) snprintf(name, sizeof name, "%s", qn_policy_seat_configured(seat));
    char before[QN_NAME_MAX];
    snprintf(before, sizeof before, "%s", qn_policy_seat_name(seat));
    qn_err_t err = shadow ? qn_policy_seat_set_shadow(seat, name) : qn_policy_seat_set(seat, name);
    if (err == QN_ERR_NO_MEMORY) return qn_call_fail(call, 503, NULL, "%s", qn_err_text());
    if (err < 0) return qn_call_fail(call, 400, "policy", "%s", qn_err_text());
    if (shadow)
        qn_log_notice("%s policy: %s%s", kind, name[0] != '\0' ? "in shadow: " : "no shadow", name);
    else
        qn_log_notice("%s policy: %s decides, set live; before: %s", kind, name, before);
    return QN_CALL_DONE;
}
