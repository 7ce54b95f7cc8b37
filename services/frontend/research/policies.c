/* What is this?      GET and PUT /policies/scheduling, batching, admission, eviction: forms over the methods policy_get, policy_set and policy_shadow of the
 *                    scheduler and of memory.
 * State owned:       none; what is still to be changed is in the form's arena.
 * Must never:        change anything when the body has a field that is not known.
 * Read next:         forms.h, schemas/shown_policies.fbs, common/policy/policy_seat.h. */
#include <string.h>

#include "services/frontend/methods/method_json.h"
#include "services/frontend/research/forms.h"

/* What a PUT asks for; a NULL text is not asked for. */
typedef struct {
    qn_decision_kind_t kind;
    const char *policy, *shadow;
} change_t;

/* The table ShownPolicies, as the replies of both services have it. */
static const qn_wire_type_t *shown_type(void)
{
    const qn_wire_type_t *reply = qn_wire_type(QN_MESSAGE_SCHEDULER_POLICY_REPLY);
    size_t i = 0;
    while (strcmp(reply->fields[i].name, "policies") != 0)
        i++;
    return reply->fields[i].table;
}

static void answer(form_t *form, call_t *call, const void *reply)
{
    const change_t *change = form->state;
    bool memory = change->kind == QN_DECISION_KIND_EVICTION;
    const qn_shown_policies_t *shown = memory ? ((const qn_memory_policy_reply_t *)reply)->policies
                                              : ((const qn_scheduler_policy_reply_t *)reply)->policies;
    reply_buffer_t data = {0};
    json_writer_t writer = json_writer_on(&data);
    method_json_write_table(shown_type(), shown, &writer);
    form_answer(form, call, reply, &data);
}

/* ---- GET ---- */

static void ask(form_t *form)
{
    const change_t *change = form->state;
    qn_memory_policy_get_t memory = {0};
    qn_scheduler_policy_get_t scheduler = {.kind = change->kind};
    if (change->kind == QN_DECISION_KIND_EVICTION)
        form_call(form, QN_METHOD_MEMORY_POLICY_GET, &memory, answer);
    else
        form_call(form, QN_METHOD_SCHEDULER_POLICY_GET, &scheduler, answer);
}

static void get(form_t *form, qn_decision_kind_t kind)
{
    change_t *change = qn_arena_zalloc(&form->arena, 1, sizeof *change);
    change->kind = kind;
    form->state = change;
    if (form_read(form, NULL, 0, NULL, NULL)) ask(form);
}

/* ---- PUT ---- */

static void set_live(form_t *form, form_next_t next)
{
    const change_t *change = form->state;
    qn_memory_policy_set_t memory = {.policy = qn_text(change->policy)};
    qn_scheduler_policy_set_t scheduler = {.kind = change->kind, .policy = qn_text(change->policy)};
    if (change->kind == QN_DECISION_KIND_EVICTION)
        form_call(form, QN_METHOD_MEMORY_POLICY_SET, &memory, next);
    else
        form_call(form, QN_METHOD_SCHEDULER_POLICY_SET, &scheduler, next);
}

static void set_shadow(form_t *form, call_t *call, const void *reply)
{
    const change_t *change = form->state;
    (void)call, (void)reply;
    qn_memory_policy_shadow_t memory = {.policy = qn_text(change->shadow)};
    qn_scheduler_policy_shadow_t scheduler = {.kind = change->kind, .policy = qn_text(change->shadow)};
    if (change->kind == QN_DECISION_KIND_EVICTION)
        form_call(form, QN_METHOD_MEMORY_POLICY_SHADOW, &memory, answer);
    else
        form_call(form, QN_METHOD_SCHEDULER_POLICY_SHADOW, &scheduler, answer);
}

/* A name, or with `may_be_none` null for "". False: the form was answered. */
static bool read_choice(form_t *form, const char *name, bool may_be_none, const char **ret_choice)
{
    const json_t *value = json_object_get(form->body, name);
    if (value == NULL || (json_is_null(value) && !may_be_none)) return true;
    if (json_is_null(value)) {
        *ret_choice = "";
        return true;
    }
    size_t bytes = json_is_string(value) ? json_string_length(value) : 0;
    if (!json_is_string(value) || bytes > 511 || strlen(json_string_value(value)) != bytes) {
        form_fail(form, 400, name, "%s must be a policy's name or file, a string of at most 511 bytes%s.", name,
                  may_be_none ? ", or null" : "");
        return false;
    }
    *ret_choice = json_string_value(value); /* lives with the body */
    return true;
}

static void set(form_t *form, qn_decision_kind_t kind)
{
    static const char *const fields[] = {"policy", "shadow", NULL};
    change_t *change = qn_arena_zalloc(&form->arena, 1, sizeof *change);
    change->kind = kind;
    form->state = change;
    if (!form_read(form, NULL, 0, fields, NULL) || !read_choice(form, "policy", false, &change->policy) ||
        !read_choice(form, "shadow", true, &change->shadow))
        return;
    if (change->policy == NULL && change->shadow == NULL)
        form_fail(form, 400, "policy", "Nothing to change: give policy, shadow, or both.");
    else if (change->policy == NULL)
        set_shadow(form, NULL, NULL);
    else
        set_live(form, change->shadow != NULL ? set_shadow : answer);
}

/* ---- the routes ---- */

#define CHOICE                                                                                                            \
    "{\"type\":\"object\",\"properties\":{\"policy\":{\"type\":\"string\"},\"shadow\":{\"type\":[\"string\",\"null\"]}}," \
    "\"minProperties\":1,\"additionalProperties\":false}"
#define CHOICE_EXAMPLE "{\"policy\":\"default\",\"shadow\":null}"
#define SEATS "{\"type\":\"object\"}"

const char form_policies_scheduling_reply[] = SEATS, form_policies_scheduling_set_reply[] = SEATS;
const char form_policies_scheduling_set_request[] = CHOICE, form_policies_scheduling_set_example[] = CHOICE_EXAMPLE;
const char form_policies_batching_reply[] = SEATS, form_policies_batching_set_reply[] = SEATS;
const char form_policies_batching_set_request[] = CHOICE, form_policies_batching_set_example[] = CHOICE_EXAMPLE;
const char form_policies_admission_reply[] = SEATS, form_policies_admission_set_reply[] = SEATS;
const char form_policies_admission_set_request[] = CHOICE, form_policies_admission_set_example[] = CHOICE_EXAMPLE;
const char form_policies_eviction_reply[] = SEATS, form_policies_eviction_set_reply[] = SEATS;
const char form_policies_eviction_set_request[] = CHOICE, form_policies_eviction_set_example[] = CHOICE_EXAMPLE;

void form_policies_scheduling(form_t *form) { get(form, QN_DECISION_KIND_SCHEDULING); }
void form_policies_scheduling_set(form_t *form) { set(form, QN_DECISION_KIND_SCHEDULING); }
void form_policies_batching(form_t *form) { get(form, QN_DECISION_KIND_BATCHING); }
void form_policies_batching_set(form_t *form) { set(form, QN_DECISION_KIND_BATCHING); }
void form_policies_admission(form_t *form) { get(form, QN_DECISION_KIND_ADMISSION); }
void form_policies_admission_set(form_t *form) { set(form, QN_DECISION_KIND_ADMISSION); }
void form_policies_eviction(form_t *form) { get(form, QN_DECISION_KIND_EVICTION); }
void form_policies_eviction_set(form_t *form) { set(form, QN_DECISION_KIND_EVICTION); }
