/* What is this?      /debug/taps: compute.forward with points by name; what is read there, and what is put there instead.
 * State owned:       none; a form's.
 * Must never:        leave out a point that was asked for.
 * Read next:         tokens.h, schemas/compute/compute_forward.fbs. */
#include <string.h>

#include "common/wire/wire.h"
#include "services/frontend/request/patch_parse.h"
#include "services/frontend/research/tokens.h"

typedef struct {
    form_tokens_t tokens;
    qn_tap_point_t points[QN_TAPS_MAX];
    qn_tap_request_t taps[QN_TAPS_MAX];
    patch_list_t list;
    uint32_t top;
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

/* ---- reading ---- */

static bool read_points(form_t *form, uint32_t from, uint32_t to)
{
    const json_t *names = json_object_get(form->body, "points");
    taps_form_t *state = form->state;
    const qn_tap_point_t like = {.scale = 1, .position_from = from, .position_to = to};
    uint32_t layers = form->frontend->model.layers;
    bool given = names && !json_is_null(names), good = !given || json_is_array(names);
    http_error_t error;
    if (!good) http_error_set(&error, 400, "points", "points is a list of names, such as \"layer.0.resid\"");
    if (!given) good = point_parse("layer.*.resid", layers, &like, "points", &state->list, &error);
    for (size_t i = 0; good && i < json_array_size(names); i++) {
        const char *name = json_string_value(json_array_get(names, i));
        good = point_parse(name ? name : "", layers, &like, "points", &state->list, &error);
    }
    if (!good) form_fail(form, error.status, error.param, "%s", error.message);
    return good;
}

static bool read_patches(form_t *form)
{
    const json_t *patches = json_object_get(form->body, "patches");
    taps_form_t *state = form->state;
    http_error_t error;
    if (!patches || json_is_null(patches)) return true;
    state->list.values = qn_arena_zalloc(&form->arena, QN_TAP_VALUES_MAX, sizeof *state->list.values);
    if (patches_parse(patches, form->frontend->model.layers, state->tokens.count, &state->list, &error)) return true;
    form_fail(form, error.status, error.param, "%s", error.message);
    return false;
}

static qn_tap_request_t tap_of(const qn_tap_point_t *point)
{
    return (qn_tap_request_t){.site = point->site,
                              .layer = point->layer,
                              .from = point->position_from,
                              .to = point->position_to,
                              .action = point->action,
                              .value_offset = point->value_offset,
                              .value_count = point->value_count,
                              .scale = point->scale};
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
    for (uint32_t i = 0; i < state->list.point_count; i++)
        state->taps[i] = tap_of(&state->points[i]);
    message.taps = state->taps;
    message.taps_count = state->list.point_count;
    message.values = state->list.values;
    message.values_count = state->list.value_count;
    form_call(form, QN_METHOD_COMPUTE_FORWARD, &message, show);
}

void form_debug_taps(form_t *form)
{
    static const json_field_t fields[] = {
        {"top", JSON_FIELD_UNSIGNED, offsetof(taps_form_t, top), 0, QN_TOP_LOGPROBS_MAX, 0}};
    static const char *const others[] = {FORM_TOKENS_MEMBERS, "points", "positions", "patches", "sparsity_mask", NULL};
    taps_form_t *state = qn_arena_zalloc(&form->arena, 1, sizeof *state);
    state->top = 5;
    state->list = (patch_list_t){.points = state->points, .points_max = QN_TAPS_MAX};
    form->state = state;
    if (form_read(form, fields, 1, others, state)) form_find_tokens(form, run);
}

const char form_debug_taps_request[] = FORM_OBJECT(
    FORM_IDS_SCHEMA
    ",\"request\":{\"type\":\"string\"},\"points\":{\"type\":\"array\",\"items\":{\"type\":\"string\"}},"
    "\"patches\":{\"type\":\"array\",\"items\":{\"type\":\"object\"}},\"top\":{\"type\":\"integer\"}," FORM_POSITIONS_SCHEMA
    ",\"sparsity_mask\":{\"type\":[\"object\",\"array\"]}");
const char form_debug_taps_reply[] = FORM_ANY_OBJECT;
const char form_debug_taps_example[] = "{\"input_ids\":[1,2,3,4],\"points\":[\"embed\",\"layer.*.resid\"]}";
