/* What is this?      /debug/attention_scores: compute.attention_scores in the seeds' words.
 * State owned:       none; a form's.
 * Must never:        show a matrix of other positions than it says.
 * Read next:         tokens.h, schemas/compute/compute_attention_scores.fbs. */
#include <stdio.h>
#include <string.h>

#include "common/wire/wire.h"
#include "services/frontend/research/tokens.h"

typedef struct {
    form_tokens_t tokens;
    uint32_t layer;
    float threshold;
    bool one_head; /* the matrix is of one head alone */
} attention_form_t;

static void put_tokens(json_writer_t *writer, const form_tokens_t *tokens)
{
    json_put_key(writer, "tokens");
    json_put_open(writer, '[');
    for (uint32_t i = 0; i < tokens->count; i++) {
        if (tokens->texts)
            json_put_string(writer, tokens->texts[i]);
        else
            json_put_unsigned(writer, tokens->ids[i]);
    }
    json_put_close(writer, ']');
}

static void put_member_float(json_writer_t *writer, const char *key, float value)
{
    json_put_key(writer, key);
    json_put_float(writer, value);
}

static void show(form_t *form, call_t *call, const void *message)
{
    const qn_compute_attention_scores_reply_t *reply = message;
    const attention_form_t *state = form->state;
    const qn_tapped_tensor_t *weights = reply->weights;
    reply_buffer_t data = {0};
    json_writer_t writer = json_writer_on(&data);
    json_put_open(&writer, '{');
    json_put_member_unsigned(&writer, "layer_idx", reply->layer);
    json_put_key(&writer, "attention_matrix");
    if (reply->handle)
        form_put_handle(&writer, weights, reply->handle);
    else
        form_put_nested(&writer, reply->values, weights->shape + state->one_head,
                        weights->shape_count - state->one_head);
    put_member_float(&writer, "sparsity_ratio", reply->sparsity_ratio);
    put_member_float(&writer, "entropy", reply->entropy);
    json_put_key(&writer, "per_head");
    json_put_open(&writer, '[');
    for (uint32_t i = 0; i < reply->per_head_count; i++) {
        json_put_open(&writer, '{');
        json_put_member_unsigned(&writer, "head", reply->per_head[i].head);
        put_member_float(&writer, "sparsity_ratio", reply->per_head[i].sparsity_ratio);
        put_member_float(&writer, "entropy", reply->per_head[i].entropy);
        json_put_close(&writer, '}');
    }
    json_put_close(&writer, ']');
    json_put_key(&writer, "positions");
    json_put_open(&writer, '[');
    json_put_unsigned(&writer, reply->from);
    json_put_unsigned(&writer, reply->from + reply->rows);
    json_put_close(&writer, ']');
    put_tokens(&writer, &state->tokens);
    if (reply->handle) {
        json_put_key(&writer, "summary");
        form_put_summary(&writer, weights);
    }
    json_put_close(&writer, '}');
    form_answer(form, call, message, &data);
}

/* A number, a list of numbers, or nothing. */
static bool read_heads(form_t *form, uint16_t **ret_heads, uint32_t *ret_count, bool *ret_one)
{
    const json_t *value = json_object_get(form->body, "head_idx");
    uint32_t heads = form->frontend->model.heads;
    *ret_count = 0;
    *ret_one = json_is_integer(value);
    if (!value || json_is_null(value)) return true;
    size_t count = json_is_array(value) ? json_array_size(value) : 1;
    *ret_heads = qn_arena_zalloc(&form->arena, count + 1, sizeof **ret_heads);
    for (size_t i = 0; i < count; i++) {
        const json_t *head = json_is_array(value) ? json_array_get(value, i) : value;
        json_int_t number = json_is_integer(head) ? json_integer_value(head) : -1;
        if (number < 0 || number > UINT16_MAX || (heads && number >= heads) ||
            count > QN_COMPUTE_ATTENTION_SCORES_HEADS_MAX) {
            form_fail(form, 400, "head_idx", "head_idx is a head, or a list of heads; the model has %u, from 0", heads);
            return false;
        }
        (*ret_heads)[(*ret_count)++] = (uint16_t)number;
    }
    return true;
}

static void run(form_t *form)
{
    attention_form_t *state = form->state;
    const form_tokens_t *tokens = &state->tokens;
    qn_compute_attention_scores_t message = {.layer = state->layer,
                                             .threshold = state->threshold,
                                             .request = tokens->request,
                                             .inline_values = form_inline_values(form),
                                             .lifetime_ms = 60000};
    uint16_t *heads = NULL;
    uint32_t from, to;
    if (!form_read_positions(form, tokens->count, &from, &to) ||
        !read_heads(form, &heads, &message.heads_count, &state->one_head) ||
        !form_read_masks(form, &message.masks, &message.masks_count))
        return;
    message.heads = heads;
    message.from = from;
    message.to = to;
    message.ids = tokens->ids + (tokens->request ? from : 0); /* of a living one the keys before are resident */
    message.ids_count = to - (tokens->request ? from : 0);
    form_call(form, QN_METHOD_COMPUTE_ATTENTION_SCORES, &message, show);
}

void form_attention_scores(form_t *form)
{
    static const json_field_t fields[] = {
        {"layer_idx", JSON_FIELD_UNSIGNED, offsetof(attention_form_t, layer), 0, QN_LAYERS_MAX, 0},
        {"threshold", JSON_FIELD_FLOAT, offsetof(attention_form_t, threshold), 0, 1, 0},
    };
    static const char *const others[] = {FORM_TOKENS_MEMBERS, "head_idx", "positions", "sparsity_mask", NULL};
    attention_form_t *state = qn_arena_zalloc(&form->arena, 1, sizeof *state);
    uint32_t layers = form->frontend->model.layers;
    state->threshold = 0.01f;
    form->state = state;
    if (!form_read(form, fields, sizeof fields / sizeof *fields, others, state)) return;
    if (layers && state->layer >= layers)
        form_fail(form, 400, "layer_idx", "layer_idx is %u; the model has %u layers, from 0", state->layer, layers);
    else
        form_find_tokens(form, run);
}

const char form_attention_scores_request[] = FORM_OBJECT(
    FORM_IDS_SCHEMA ",\"request\":{\"type\":\"string\"},\"layer_idx\":{\"type\":\"integer\",\"minimum\":0},"
                    "\"head_idx\":" FORM_NUMBERS_SCHEMA "," FORM_POSITIONS_SCHEMA
                    ",\"threshold\":{\"type\":\"number\"},\"sparsity_mask\":{\"type\":[\"object\",\"array\"]}");
const char form_attention_scores_reply[] = FORM_ANY_OBJECT;
const char form_attention_scores_example[] = "{\"input_ids\":[1,2,3,4],\"layer_idx\":0,\"head_idx\":0}";
