/* What is this?      /pipeline/step_execute: one stage of a request's way, run alone.
 * State owned:       none; a form's.
 * Must never:        compute anything itself: the stages are compute's and the tokenizer's own.
 * Read next:         pipeline.h, pipeline_schedule.c, schemas/compute/compute_run_stage.fbs. */
#include "services/frontend/research/pipeline.h"

#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/wire/wire.h"

static const char *const NAMES[] = {[PIPELINE_TOKENIZE] = "tokenize", [PIPELINE_EMBED] = "embed",
                                    [PIPELINE_LAYER] = "layer",       [PIPELINE_ATTENTION] = "attention",
                                    [PIPELINE_MLP] = "mlp",           [PIPELINE_OUTPUT] = "output",
                                    [PIPELINE_SAMPLE] = "sample",     [PIPELINE_DETOKENIZE] = "detokenize"};

const char *pipeline_name(pipeline_step_t step) { return NAMES[step]; }

bool pipeline_find(const char *name, pipeline_step_t *ret_step, uint32_t *layer)
{
    if (strncmp(name, "layer.", 6) == 0 && name[6] >= '0' && name[6] <= '9') {
        char *end;
        unsigned long number = strtoul(name + 6, &end, 10);
        *ret_step = PIPELINE_LAYER;
        *layer = number < QN_LAYERS_MAX ? (uint32_t)number : QN_LAYERS_MAX;
        return *end == '\0';
    }
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++)
        if (strcmp(NAMES[i], name) == 0) {
            *ret_step = (pipeline_step_t)i;
            return true;
        }
    return false;
}

bool pipeline_stage(pipeline_step_t step, qn_model_stage_t *ret_stage)
{
    switch (step) {
    case PIPELINE_EMBED: *ret_stage = QN_MODEL_STAGE_EMBED; return true;
    case PIPELINE_LAYER: *ret_stage = QN_MODEL_STAGE_LAYER; return true;
    case PIPELINE_ATTENTION: *ret_stage = QN_MODEL_STAGE_ATTENTION; return true;
    case PIPELINE_MLP: *ret_stage = QN_MODEL_STAGE_MLP; return true;
    case PIPELINE_OUTPUT:
    case PIPELINE_SAMPLE: *ret_stage = QN_MODEL_STAGE_OUTPUT; return true;
    case PIPELINE_TOKENIZE:
    case PIPELINE_DETOKENIZE: break;
    }
    return false;
}

/* ---- one step ---- */

typedef struct {
    form_tokens_t tokens;
    uint32_t layer;
    bool intermediates, overlap;
    pipeline_step_t step;
    float *input;
    uint32_t input_count;
    uint64_t region, offset;
    uint32_t epoch;
} step_form_t;

static void put_ids(json_writer_t *writer, const char *key, const uint32_t *ids, uint32_t count)
{
    json_put_key(writer, key);
    json_put_open(writer, '[');
    for (uint32_t i = 0; i < count; i++)
        json_put_unsigned(writer, ids[i]);
    json_put_close(writer, ']');
}

/* One step has nothing beside it that it could overlap with: a schedule of several has. */
static void put_time(json_writer_t *writer, const form_t *form, const call_t *call, float compute_us)
{
    const step_form_t *state = form->state;
    json_put_key(writer, "time");
    json_put_open(writer, '{');
    json_put_key(writer, "compute_us");
    json_put_float(writer, compute_us);
    json_put_member_unsigned(writer, "total_us", (qn_clock_now_ns() - call->sent_ns) / 1000);
    json_put_member_unsigned(writer, "overlapped_us", 0);
    json_put_close(writer, '}');
    json_put_member_bool(writer, "overlap", state->overlap);
}

static void begin_reply(json_writer_t *writer, const step_form_t *state)
{
    json_put_open(writer, '{');
    json_put_member_string(writer, "step", pipeline_name(state->step));
    if (state->step == PIPELINE_LAYER || state->step == PIPELINE_ATTENTION || state->step == PIPELINE_MLP)
        json_put_member_unsigned(writer, "layer_idx", state->layer);
    put_ids(writer, "input_ids", state->tokens.ids, state->tokens.count);
}

static void show_stage(form_t *form, call_t *call, const void *message)
{
    const qn_compute_run_stage_reply_t *reply = message;
    const step_form_t *state = form->state;
    reply_buffer_t data = {0};
    json_writer_t writer = json_writer_on(&data);
    begin_reply(&writer, state);
    json_put_key(&writer, "output");
    json_put_open(&writer, '{');
    if (state->step == PIPELINE_SAMPLE)
        json_put_member_unsigned(&writer, "id", reply->next_id);
    else
        form_put_tensor(&writer, reply->output, reply->values, reply->handle);
    json_put_close(&writer, '}');
    if (state->step == PIPELINE_OUTPUT || state->step == PIPELINE_SAMPLE)
        json_put_member_unsigned(&writer, "next_id", reply->next_id);
    if (state->intermediates) {
        json_put_key(&writer, "intermediates");
        json_put_open(&writer, '{');
        for (uint32_t i = 0; i < reply->intermediates_count; i++) {
            const qn_tapped_tensor_t *tensor = &reply->intermediates[i];
            json_put_key_text(&writer, tensor->name.data, tensor->name.bytes);
            json_put_open(&writer, '{');
            form_put_tensor(&writer, tensor, reply->values, reply->handle);
            json_put_close(&writer, '}');
        }
        json_put_close(&writer, '}');
    }
    put_time(&writer, form, call, reply->compute_us);
    json_put_close(&writer, '}');
    form_answer(form, call, message, &data);
}

static void show_text(form_t *form, call_t *call, const void *message)
{
    const qn_tokenizer_decode_reply_t *reply = message;
    reply_buffer_t data = {0};
    json_writer_t writer = json_writer_on(&data);
    begin_reply(&writer, form->state);
    json_put_key(&writer, "output");
    json_put_open(&writer, '{');
    json_put_key(&writer, "text");
    json_put_text(&writer, reply->text.data, reply->text.bytes);
    json_put_close(&writer, '}');
    put_time(&writer, form, call, 0);
    json_put_close(&writer, '}');
    form_answer(form, call, message, &data);
}

/* The ids are there, which is all that the step is; where they stand in the vocabulary is asked for the times' sake. */
static void show_ids(form_t *form, call_t *call, const void *message)
{
    const step_form_t *state = form->state;
    reply_buffer_t data = {0};
    json_writer_t writer = json_writer_on(&data);
    begin_reply(&writer, state);
    json_put_key(&writer, "output");
    json_put_open(&writer, '{');
    put_ids(&writer, "ids", state->tokens.ids, state->tokens.count);
    if (state->tokens.texts) {
        json_put_key(&writer, "tokens");
        json_put_open(&writer, '[');
        for (uint32_t i = 0; i < state->tokens.count; i++)
            json_put_string(&writer, state->tokens.texts[i]);
        json_put_close(&writer, ']');
    }
    json_put_close(&writer, '}');
    put_time(&writer, form, call, 0);
    json_put_close(&writer, '}');
    form_answer(form, call, message, &data);
}

static void run(form_t *form)
{
    const step_form_t *state = form->state;
    qn_model_stage_t stage;
    if (state->step == PIPELINE_TOKENIZE) {
        qn_tokenizer_info_t message = {0};
        form_call(form, QN_METHOD_TOKENIZER_INFO, &message, show_ids);
    } else if (state->step == PIPELINE_DETOKENIZE) {
        qn_tokenizer_decode_t message = {.ids = state->tokens.ids, .ids_count = state->tokens.count};
        form_call(form, QN_METHOD_TOKENIZER_DECODE, &message, show_text);
    } else if (pipeline_stage(state->step, &stage)) {
        qn_compute_run_stage_t message = {.stage = stage,
                                          .layer = state->layer,
                                          .ids = state->tokens.ids,
                                          .ids_count = state->tokens.count,
                                          .input = state->input,
                                          .input_count = state->input_count,
                                          .input_region = state->region,
                                          .input_epoch = state->epoch,
                                          .input_offset = state->offset,
                                          .intermediates = state->intermediates,
                                          .top = 5,
                                          .inline_values = form_inline_values(form),
                                          .lifetime_ms = 60000};
        form_call(form, QN_METHOD_COMPUTE_RUN_STAGE, &message, show_stage);
    }
}

/* Numbers in lists, one behind the other. False: answered. */
static bool add_numbers(form_t *form, step_form_t *state, const json_t *list)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *each = json_array_get(list, i);
        if (json_is_array(each)) {
            if (!add_numbers(form, state, each)) return false;
        } else if (json_is_number(each) && state->input_count < QN_COMPUTE_RUN_STAGE_INPUT_MAX) {
            state->input[state->input_count++] = (float)json_number_value(each);
        } else {
            form_fail(form, 400, "input", "input is numbers, or lists of them, %d at most; larger ones are handles",
                      QN_COMPUTE_RUN_STAGE_INPUT_MAX);
            return false;
        }
    }
    return true;
}

/* "input": the handle or the values that an earlier step gave. */
static bool read_input(form_t *form, step_form_t *state)
{
    const json_t *input = json_object_get(form->body, "input");
    if (!input || json_is_null(input)) return true;
    if (json_is_array(input)) {
        state->input = qn_arena_zalloc(&form->arena, QN_COMPUTE_RUN_STAGE_INPUT_MAX, sizeof *state->input);
        return add_numbers(form, state, input);
    }
    const json_t *region = json_object_get(input, "region"), *epoch = json_object_get(input, "epoch");
    const json_t *offset = json_object_get(input, "offset");
    if (!json_is_integer(region) || !json_is_integer(epoch) || !json_is_integer(offset) ||
        json_integer_value(region) <= 0 || json_integer_value(epoch) < 0 || json_integer_value(offset) < 0) {
        form_fail(form, 400, "input",
                  "input is lists of numbers, or a handle {\"region\", \"epoch\", \"offset\"} of an "
                  "earlier step");
        return false;
    }
    state->region = (uint64_t)json_integer_value(region);
    state->epoch = (uint32_t)json_integer_value(epoch);
    state->offset = (uint64_t)json_integer_value(offset);
    return true;
}

void form_step_execute(form_t *form)
{
    static const json_field_t fields[] = {
        {"layer_idx", JSON_FIELD_UNSIGNED, offsetof(step_form_t, layer), 0, QN_LAYERS_MAX, 0},
        {"return_intermediate", JSON_FIELD_FLAG, offsetof(step_form_t, intermediates), 0, 0, 0},
        {"overlap", JSON_FIELD_FLAG, offsetof(step_form_t, overlap), 0, 0, 0},
    };
    static const char *const others[] = {"prompt", "input_ids", "step", "input", NULL};
    step_form_t *state = qn_arena_zalloc(&form->arena, 1, sizeof *state);
    const char *step = json_string_value(json_object_get(form->body, "step"));
    uint32_t layers = form->frontend->model.layers;
    form->state = state;
    if (!form_read(form, fields, sizeof fields / sizeof *fields, others, state)) return;
    if (!step || !pipeline_find(step, &state->step, &state->layer))
        form_fail(form, 400, "step", "step is " PIPELINE_STEPS);
    else if (layers && state->layer >= layers)
        form_fail(form, 400, "layer_idx", "layer_idx is %u; the model has %u layers, from 0", state->layer, layers);
    else if (read_input(form, state))
        form_find_tokens(form, run);
}

const char form_step_execute_request[] = FORM_OBJECT(
    FORM_IDS_SCHEMA ",\"step\":{\"type\":\"string\"},\"layer_idx\":{\"type\":\"integer\",\"minimum\":0},"
                    "\"input\":{\"type\":[\"object\",\"array\"]},\"return_intermediate\":{\"type\":\"boolean\"},"
                    "\"overlap\":{\"type\":\"boolean\"}");
const char form_step_execute_reply[] = FORM_ANY_OBJECT;
const char form_step_execute_example[] = "{\"step\":\"embed\",\"input_ids\":[1,2,3],\"return_intermediate\":true}";
