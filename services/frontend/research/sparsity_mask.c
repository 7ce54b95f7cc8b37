/* What is this?      /optimization/sparsity_mask: the session's mask in the words of sparsity_mask.
 * State owned:       none.
 * Must never:        say of a mask what the scheduler did not.
 * Read next:         forms.h, request/mask_parse.h (the members), services/scheduler/session_mask.h. */
#include <string.h>

#include "common/wire/wire.h"
#include "services/frontend/request/mask_parse.h"
#include "services/frontend/research/tokens.h"

static const char *const NAMES[] = {[QN_MASK_RULE_KIND_TOP_K] = "top_k",
                                    [QN_MASK_RULE_KIND_THRESHOLD] = "threshold",
                                    [QN_MASK_RULE_KIND_RATIO] = "sparsity_ratio",
                                    [QN_MASK_RULE_KIND_WINDOW] = "window",
                                    [QN_MASK_RULE_KIND_SINK_WINDOW] = "sink_window",
                                    [QN_MASK_RULE_KIND_BLOCK_TOP_K] = "block_top_k"};

static void put_range(json_writer_t *writer, const char *key, uint32_t from, uint32_t to)
{
    json_put_key(writer, key);
    if (from == 0 && to == 0) {
        json_put_string(writer, "all");
        return;
    }
    json_put_open(writer, '[');
    for (uint32_t i = from; i < to; i++)
        json_put_unsigned(writer, i);
    json_put_close(writer, ']');
}

static void put_rule(json_writer_t *writer, const qn_mask_row_t *rule)
{
    json_put_open(writer, '{');
    json_put_member_string(writer, "method", NAMES[rule->kind]);
    if (rule->k) json_put_member_unsigned(writer, "k", rule->k);
    if (rule->window) json_put_member_unsigned(writer, "window", rule->window);
    if (rule->kind == QN_MASK_RULE_KIND_SINK_WINDOW) json_put_member_unsigned(writer, "sinks", rule->sinks);
    bool ratio = rule->kind == QN_MASK_RULE_KIND_RATIO;
    if (ratio || rule->kind == QN_MASK_RULE_KIND_THRESHOLD) {
        json_put_key(writer, ratio ? "sparsity_ratio" : "threshold");
        json_put_float(writer, rule->value);
    }
    put_range(writer, "layers", rule->layer_from, rule->layer_to);
    put_range(writer, "heads", rule->head_from, rule->head_to);
    json_put_close(writer, '}');
}

static void show(form_t *form, call_t *call, const void *message)
{
    const qn_scheduler_mask_reply_t *reply = message;
    reply_buffer_t data = {0};
    json_writer_t writer = json_writer_on(&data);
    json_put_open(&writer, '{');
    json_put_key(&writer, "id");
    if (reply->rules_count)
        json_put_text(&writer, reply->id.data, reply->id.bytes);
    else
        json_put_null(&writer);
    json_put_member_string(&writer, "scope", "session");
    json_put_member_bool(&writer, "active", reply->rules_count > 0);
    json_put_key(&writer, "mask");
    json_put_open(&writer, '[');
    for (uint32_t i = 0; i < reply->rules_count; i++)
        put_rule(&writer, &reply->rules[i]);
    json_put_close(&writer, ']');
    json_put_close(&writer, '}');
    form_answer(form, call, message, &data);
}

void form_sparsity_mask_get(form_t *form)
{
    qn_scheduler_mask_get_t message = {0};
    if (form_read(form, NULL, 0, NULL, NULL)) form_call(form, QN_METHOD_SCHEDULER_MASK_GET, &message, show);
}

void form_sparsity_mask_clear(form_t *form)
{
    qn_scheduler_mask_set_t message = {0};
    if (form_read(form, NULL, 0, NULL, NULL)) form_call(form, QN_METHOD_SCHEDULER_MASK_SET, &message, show);
}

/* Of a living request the cache is full of what it saw: it keeps the mask it came with. */
static bool is_for_session(form_t *form)
{
    const json_t *scope = json_object_get(form->body, "scope");
    if (!scope || json_is_null(scope)) return true;
    if (json_is_string(scope) && strcmp(json_string_value(scope), "session") == 0) return true;
    form_fail(form, 400, "scope",
              "scope is \"session\"; a mask of one request is its own field: send sparsity_mask with the request");
    return false;
}

void form_sparsity_mask_set(form_t *form)
{
    static const char *const others[] = {"scope", NULL};
    mask_list_t list;
    http_error_t error;
    const served_model_t *model = &form->frontend->model;
    if (!is_for_session(form)) return;
    if (!mask_parse(form->body, "", model->layers, model->heads, others, &list, &error)) {
        form_fail(form, error.status, error.param, "%s", error.message);
        return;
    }
    qn_mask_row_t *rows = qn_arena_zalloc(&form->arena, list.count + 1, sizeof *rows);
    for (uint32_t i = 0; i < list.count; i++)
        rows[i] = mask_row(&list.rules[i]);
    qn_scheduler_mask_set_t message = {.rules = rows, .rules_count = list.count};
    form_call(form, QN_METHOD_SCHEDULER_MASK_SET, &message, show);
}

const char form_sparsity_mask_set_request[] = FORM_OBJECT(
    "\"method\":{\"type\":\"string\",\"enum\":[\"top_k\",\"threshold\",\"window\",\"sink_window\",\"block_top_k\"]},"
    "\"mask_pattern\":{\"type\":\"string\"},\"k\":{\"type\":\"integer\",\"minimum\":1},\"threshold\":{\"type\":\"number\"},"
    "\"sparsity_ratio\":{\"type\":\"number\"},\"window\":{\"type\":\"integer\"},\"sinks\":{\"type\":\"integer\"},"
    "\"scope\":{\"type\":\"string\"},\"layers\":" FORM_NUMBERS_SCHEMA ",\"heads\":" FORM_NUMBERS_SCHEMA);
const char form_sparsity_mask_set_example[] = "{\"mask_pattern\":\"sink_window\",\"window\":4096,\"sinks\":4}";
const char form_sparsity_mask_clear_request[] = FORM_OBJECT("");
const char form_sparsity_mask_clear_example[] = "{}";
const char form_sparsity_mask_get_reply[] = FORM_ANY_OBJECT, form_sparsity_mask_set_reply[] = FORM_ANY_OBJECT,
           form_sparsity_mask_clear_reply[] = FORM_ANY_OBJECT;
