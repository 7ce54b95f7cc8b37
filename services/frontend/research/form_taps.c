/* What is this?      /debug/taps: compute.forward with points by name; what is read there, and what is put there instead.
 * State owned:       none; a form's.
 * Must never:        leave out a point that was asked for.
 * Read next:         form_tokens.h, schemas/compute/compute_forward.fbs. */
#include <string.h>

#include "common/wire/wire.h"
#include "services/frontend/research/form_tokens.h"

typedef struct {
    form_tokens_t tokens;
    qn_tap_request_t taps[QN_TAPS_MAX];
    uint32_t tap_count, top;
    float *values;
    uint32_t value_count;
} taps_form_t;

static void show(form_t *form, call_t *call, const void *message)
{
    const qn_compute_forward_reply_t *reply = message;
    const taps_form_t *state = form->state;
    reply_buffer_t data = {0};
    json_writer_t writer = json_writer_on(&data);
    json_put_open(&writer, '{');
    json_put_key(&writer, "points");
    json_put_open(&writer, '[');
    for (uint32_t i = 0; i < reply->taps_count; i++) {
        json_put_open(&writer, '{');
        json_put_key(&writer, "point");
        json_put_text(&writer, reply->taps[i].name.data, reply->taps[i].name.bytes);
        form_put_tensor(&writer, &reply->taps[i], reply->values, reply->handle);
        json_put_close(&writer, '}');
    }
    json_put_close(&writer, ']');
    json_put_key(&writer, "input_ids");
    json_put_open(&writer, '[');
    for (uint32_t i = 0; i < state->tokens.count; i++)
        json_put_unsigned(&writer, state->tokens.ids[i]);
    json_put_close(&writer, ']');
    json_put_member_unsigned(&writer, "next_id", reply->next_id);
    json_put_key(&writer, "top");
    json_put_open(&writer, '[');
    for (uint32_t i = 0; i < reply->top_count; i++) {
        json_put_open(&writer, '{');
        json_put_member_unsigned(&writer, "id", reply->top[i].id);
        json_put_key(&writer, "logprob");
        json_put_float(&writer, reply->top[i].logprob);
        json_put_close(&writer, '}');
    }
    json_put_close(&writer, ']');
    json_put_close(&writer, '}');
    form_answer(form, call, message, &data);
}

/* ---- what is written ---- */

/* Numbers, or lists of them, one behind the other. False: answered. */
static bool add_numbers(form_t *form, const json_t *value)
{
    taps_form_t *state = form->state;
    for (size_t i = 0; i < json_array_size(value); i++) {
        const json_t *each = json_array_get(value, i);
        if (json_is_array(each)) {
            if (!add_numbers(form, each)) return false;
            continue;
        }
        if (!json_is_number(each) || state->value_count == QN_TAP_VALUES_MAX) {
            form_fail(form, 400, "patches.values", "values are numbers, or lists of them, %d at most in all",
                      QN_TAP_VALUES_MAX);
            return false;
        }
        state->values[state->value_count++] = (float)json_number_value(each);
    }
    return true;
}

/* {"point", "action": "add" | "replace", "values", "scale", "positions"}. */
static bool add_patch(form_t *form, const json_t *patch)
{
    taps_form_t *state = form->state;
    const char *point = json_string_value(json_object_get(patch, "point"));
    const char *action = json_string_value(json_object_get(patch, "action"));
    const json_t *scale = json_object_get(patch, "scale"), *positions = json_object_get(patch, "positions");
    qn_tap_request_t tap = {.scale = scale ? (float)json_number_value(scale) : 1,
                            .action =
                                action && strcmp(action, "replace") == 0 ? QN_TAP_ACTION_REPLACE : QN_TAP_ACTION_ADD,
                            .value_offset = state->value_count};
    const char *name;
    json_t *member;
    json_object_foreach((json_t *)(uintptr_t)patch, name, member)
    {
        static const char *const known[] = {"point", "action", "values", "scale", "positions"};
        bool found = false;
        for (size_t i = 0; i < 5; i++)
            found = found || strcmp(known[i], name) == 0;
        if (found) continue;
        form_fail(form, 400, "patches",
                  "patches: %.64s is no member; there are point, action, values, scale, positions", name);
        return false;
    }
    if (!point || (action && strcmp(action, "replace") != 0 && strcmp(action, "add") != 0) ||
        (scale && !json_is_number(scale))) {
        form_fail(form, 400, "patches", "a patch has a point, values, an action (replace or add) and a scale");
        return false;
    }
    tap.to = state->tokens.count;
    if (positions && !json_is_null(positions)) {
        json_int_t from = json_integer_value(json_array_get(positions, 0)),
                   to = json_integer_value(json_array_get(positions, 1));
        if (json_array_size(positions) != 2 || from < 0 || from >= to || to > state->tokens.count) {
            form_fail(form, 400, "patches.positions", "positions is [from, to) with 0 <= from < to <= %u",
                      state->tokens.count);
            return false;
        }
        tap.from = (uint32_t)from;
        tap.to = (uint32_t)to;
    }
    if (!add_numbers(form, json_object_get(patch, "values"))) return false;
    tap.value_count = state->value_count - tap.value_offset;
    return form_parse_point(form, point, &tap, state->taps, QN_TAPS_MAX, &state->tap_count);
}

static bool read_patches(form_t *form)
{
    const json_t *list = json_object_get(form->body, "patches");
    taps_form_t *state = form->state;
    if (!list || json_is_null(list)) return true;
    state->values = qn_arena_zalloc(&form->arena, QN_TAP_VALUES_MAX, sizeof *state->values);
    if (!json_is_array(list)) {
        form_fail(form, 400, "patches", "patches is a list of {point, action, values, scale, positions}");
        return false;
    }
    for (size_t i = 0; i < json_array_size(list); i++)
        if (!add_patch(form, json_array_get(list, i))) return false;
    return true;
}

static bool read_points(form_t *form, uint32_t from, uint32_t to)
{
    const json_t *list = json_object_get(form->body, "points");
    taps_form_t *state = form->state;
    const qn_tap_request_t like = {.scale = 1, .from = from, .to = to};
    if (!list || json_is_null(list))
        return form_parse_point(form, "layer.*.resid", &like, state->taps, QN_TAPS_MAX, &state->tap_count);
    if (!json_is_array(list)) {
        form_fail(form, 400, "points", "points is a list of names, such as \"layer.0.resid\"");
        return false;
    }
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *name = json_string_value(json_array_get(list, i));
        if (!form_parse_point(form, name ? name : "", &like, state->taps, QN_TAPS_MAX, &state->tap_count)) return false;
    }
    return true;
}

/* Of a living request only what is asked for is run again: the keys and values before it are resident. */
static void run(form_t *form)
{
    taps_form_t *state = form->state;
    const form_tokens_t *tokens = &state->tokens;
    uint32_t from, to, first;
    qn_compute_forward_t message = {.request = tokens->request,
                                    .top = state->top,
                                    .inline_values = form_inline_values(form),
                                    .lifetime_ms = 60000};
    if (!form_read_positions(form, tokens->count, &from, &to) || !read_points(form, from, to) || !read_patches(form) ||
        !form_read_masks(form, &message.masks, &message.masks_count))
        return;
    first = tokens->request ? from : 0;
    message.ids = tokens->ids + first;
    message.ids_count = (tokens->request ? to : tokens->count) - first;
    message.position = first;
    message.taps = state->taps;
    message.taps_count = state->tap_count;
    message.values = state->values;
    message.values_count = state->value_count;
    form_call(form, QN_METHOD_COMPUTE_FORWARD, &message, show);
}

void form_debug_taps(form_t *form)
{
    static const json_field_t fields[] = {
        {"top", JSON_FIELD_UNSIGNED, offsetof(taps_form_t, top), 0, QN_TOP_LOGPROBS_MAX, 0}};
    static const char *const others[] = {FORM_TOKENS_MEMBERS, "points", "positions", "patches", "sparsity_mask", NULL};
    taps_form_t *state = qn_arena_zalloc(&form->arena, 1, sizeof *state);
    state->top = 5;
    form->state = state;
    if (form_read(form, fields, 1, others, state)) form_find_tokens(form, run);
}
