/* What is this?      /pipeline/schedule: several prompts through the same stages, once one call after the other, and once with
 *                    the tokenizer's stages beside compute's.
 * State owned:       none; a form's.
 * Must never:        say that something overlapped which was not measured: times are of calls that were out.
 * Read next:         pipeline.h, forms.h (several calls of one form). */
#include "services/frontend/research/pipeline.h"

#include <string.h>

#include "common/clock.h"
#include "common/wire/wire.h"

#define ITEMS_MAX 16
#define STEPS_MAX 64
#define EXAMPLE_PROMPT "The quick brown fox jumps over the lazy dog"

typedef struct {
    pipeline_step_t step;
    uint32_t layer;
    char name[16];
} schedule_step_t;

typedef struct {
    uint64_t start_ns, end_ns;
} span_t;

typedef struct {
    const char *prompt;
    size_t prompt_bytes;
    uint32_t *ids, count, next_id;
    float *residual; /* what the last stage left; NULL: none yet */
    uint32_t residual_count;
    uint32_t next; /* step */
    bool busy;
    span_t spans[STEPS_MAX];
} item_t;

/* Each works at one call at a time. */
typedef enum { WITH_TOKENIZER, WITH_COMPUTE, RESOURCES } resource_t;

typedef struct {
    item_t items[ITEMS_MAX];
    schedule_step_t steps[STEPS_MAX];
    uint32_t item_count, step_count;
    bool wants_overlap, overlapping, ready; /* ready: ids of all items are known */
    uint32_t busy[RESOURCES];
    uint64_t begin_ns, total_ns[2], overlapped_ns;
    span_t first_spans[ITEMS_MAX][STEPS_MAX]; /* one after the other */
    item_t *of_call[RESOURCES];
} schedule_t;

static void go_on(form_t *form, call_t *call, const void *reply);

/* ---- the answer ---- */

static uint64_t overlap_of(const span_t *a, const span_t *b)
{
    uint64_t from = a->start_ns > b->start_ns ? a->start_ns : b->start_ns;
    uint64_t to = a->end_ns < b->end_ns ? a->end_ns : b->end_ns;
    return to > from ? to - from : 0;
}

/* Nanoseconds of a step during which a step of another item was being worked on, too; and of which. */
static uint64_t overlap_with_others(const schedule_t *s, uint32_t item, uint32_t step, uint32_t *ret_item,
                                    uint32_t *ret_step)
{
    uint64_t most = 0;
    for (uint32_t i = 0; i < s->item_count; i++)
        for (uint32_t k = 0; i != item && k < s->step_count; k++) {
            uint64_t shared = overlap_of(&s->items[item].spans[step], &s->items[i].spans[k]);
            if (shared <= most) continue;
            most = shared;
            *ret_item = i;
            *ret_step = k;
        }
    return most;
}

static void put_ms(json_writer_t *writer, const char *key, uint64_t ns)
{
    json_put_key(writer, key);
    json_put_number(writer, (double)ns / 1e6);
}

static void put_spans(json_writer_t *writer, const schedule_t *s)
{
    json_put_key(writer, "schedule");
    json_put_open(writer, '[');
    for (uint32_t i = 0; i < s->item_count; i++)
        for (uint32_t k = 0; k < s->step_count; k++) {
            uint32_t other = 0, step = 0;
            uint64_t shared = overlap_with_others(s, i, k, &other, &step);
            json_put_open(writer, '{');
            json_put_member_unsigned(writer, "item", i);
            json_put_member_string(writer, "step", s->steps[k].name);
            put_ms(writer, "start_ms", s->items[i].spans[k].start_ns - s->begin_ns);
            put_ms(writer, "end_ms", s->items[i].spans[k].end_ns - s->begin_ns);
            put_ms(writer, "overlapped_ms", shared);
            if (shared) {
                json_put_key(writer, "overlapped_with");
                json_put_open(writer, '{');
                json_put_member_unsigned(writer, "item", other);
                json_put_member_string(writer, "step", s->steps[step].name);
                json_put_close(writer, '}');
            }
            json_put_close(writer, '}');
        }
    json_put_close(writer, ']');
}

static void answer(form_t *form, const call_t *call, const void *reply)
{
    const schedule_t *s = form->state;
    reply_buffer_t data = {0};
    json_writer_t writer = json_writer_on(&data);
    json_put_open(&writer, '{');
    json_put_member_unsigned(&writer, "batch_size", s->item_count);
    json_put_key(&writer, "steps");
    json_put_open(&writer, '[');
    for (uint32_t k = 0; k < s->step_count; k++)
        json_put_string(&writer, s->steps[k].name);
    json_put_close(&writer, ']');
    put_spans(&writer, s);
    put_ms(&writer, "total_without_overlap_ms", s->total_ns[0]);
    json_put_key(&writer, "total_with_overlap_ms");
    if (s->wants_overlap)
        json_put_number(&writer, (double)s->total_ns[1] / 1e6);
    else
        json_put_null(&writer);
    json_put_key(&writer, "next_ids");
    json_put_open(&writer, '[');
    for (uint32_t i = 0; i < s->item_count; i++)
        json_put_unsigned(&writer, s->items[i].next_id);
    json_put_close(&writer, ']');
    json_put_close(&writer, '}');
    form_answer(form, call, reply, &data);
}

/* ---- calls ---- */

static resource_t resource_of(pipeline_step_t step)
{
    return step == PIPELINE_TOKENIZE || step == PIPELINE_DETOKENIZE ? WITH_TOKENIZER : WITH_COMPUTE;
}

static void send(form_t *form, item_t *item)
{
    schedule_t *s = form->state;
    const schedule_step_t *step = &s->steps[item->next];
    resource_t resource = resource_of(step->step);
    qn_model_stage_t stage = QN_MODEL_STAGE_EMBED;
    item->busy = true;
    s->busy[resource]++;
    s->of_call[resource] = item;
    item->spans[item->next].start_ns = qn_clock_now_ns();
    if (step->step == PIPELINE_TOKENIZE) {
        qn_tokenizer_encode_t message = {.text = {.data = item->prompt, .bytes = (uint32_t)item->prompt_bytes},
                                         .add_special_tokens = true,
                                         .parse_special_tokens = true};
        form_call(form, QN_METHOD_TOKENIZER_ENCODE, &message, go_on);
    } else if (step->step == PIPELINE_DETOKENIZE) {
        qn_tokenizer_decode_t message = {.ids = item->ids, .ids_count = item->count};
        form_call(form, QN_METHOD_TOKENIZER_DECODE, &message, go_on);
    } else {
        pipeline_stage(step->step, &stage);
        bool takes = item->residual && stage != QN_MODEL_STAGE_EMBED;
        qn_compute_run_stage_t message = {.stage = stage,
                                          .layer = step->layer,
                                          .ids = item->ids,
                                          .ids_count = item->count,
                                          .input = takes ? item->residual : NULL,
                                          .input_count = takes ? item->residual_count : 0,
                                          .top = 1,
                                          .inline_values = QN_COMPUTE_RUN_STAGE_INPUT_MAX,
                                          .lifetime_ms = 1000};
        form_call(form, QN_METHOD_COMPUTE_RUN_STAGE, &message, go_on);
    }
}

/* One after the other, or each service at one. A form that failed in between is over. */
static void send_more(form_t *form)
{
    schedule_t *s = form->state;
    form_hold(form); /* a call may fail at once, and that ends the form */
    for (uint32_t i = 0; i < s->item_count && !form->over; i++) {
        item_t *item = &s->items[i];
        if (item->next == s->step_count || item->busy) continue;
        uint32_t working = s->busy[WITH_TOKENIZER] + s->busy[WITH_COMPUTE];
        bool free_now = s->overlapping ? s->busy[resource_of(s->steps[item->next].step)] == 0 : working == 0;
        if (free_now) send(form, item);
    }
    form_release(form);
}

static void start_again(schedule_t *s)
{
    for (uint32_t i = 0; i < s->item_count; i++) {
        memcpy(s->first_spans[i], s->items[i].spans, sizeof s->items[i].spans);
        s->items[i].next = 0;
        s->items[i].residual = NULL;
    }
    s->overlapping = true;
    s->begin_ns = qn_clock_now_ns();
}

static void take_ids(form_t *form, item_t *item, const uint32_t *ids, uint32_t count)
{
    item->ids = qn_arena_zalloc(&form->arena, count + 1, sizeof *item->ids);
    memcpy(item->ids, ids, count * sizeof *ids);
    item->count = count;
}

static void take(form_t *form, item_t *item, const call_t *call, const void *message)
{
    const schedule_t *s = form->state;
    if (call->method == &qn_methods[QN_METHOD_TOKENIZER_ENCODE]) {
        const qn_tokenizer_encode_reply_t *reply = message;
        take_ids(form, item, reply->ids, reply->ids_count);
    } else if (call->method == &qn_methods[QN_METHOD_COMPUTE_RUN_STAGE]) {
        const qn_compute_run_stage_reply_t *reply = message;
        pipeline_step_t step = s->steps[item->next].step;
        bool output = step == PIPELINE_OUTPUT || step == PIPELINE_SAMPLE;
        if (output) item->next_id = reply->next_id;
        if (!output && !reply->handle) {
            item->residual = qn_arena_zalloc(&form->arena, reply->values_count + 1, sizeof *item->residual);
            memcpy(item->residual, reply->values, reply->values_count * sizeof *item->residual);
            item->residual_count = reply->values_count;
        }
    }
}

static void go_on(form_t *form, call_t *call, const void *reply)
{
    schedule_t *s = form->state;
    bool of_tokenizer = call->method->service == QN_SERVICE_TOKENIZER;
    resource_t resource = of_tokenizer ? WITH_TOKENIZER : WITH_COMPUTE;
    item_t *item = s->of_call[resource];
    item->spans[item->next].end_ns = qn_clock_now_ns();
    take(form, item, call, reply);
    item->busy = false;
    item->next++;
    s->busy[resource]--;
    bool all = true;
    for (uint32_t i = 0; i < s->item_count; i++)
        all = all && s->items[i].next == s->step_count;
    if (all) s->total_ns[s->overlapping] = qn_clock_now_ns() - s->begin_ns;
    if (all && s->wants_overlap && !s->overlapping)
        start_again(s);
    else if (all) {
        answer(form, call, reply);
        return;
    }
    send_more(form);
}

/* Without a tokenize step the ids are made before the clock starts. */
static void next_ids(form_t *form)
{
    schedule_t *s = form->state;
    s->begin_ns = qn_clock_now_ns();
    send_more(form);
}

static void ids_came(form_t *form, call_t *call, const void *message)
{
    const qn_tokenizer_encode_reply_t *reply = message;
    schedule_t *s = form->state;
    (void)call;
    take_ids(form, &s->items[s->busy[WITH_TOKENIZER]++], reply->ids, reply->ids_count);
    if (s->busy[WITH_TOKENIZER] < s->item_count) {
        const item_t *item = &s->items[s->busy[WITH_TOKENIZER]];
        qn_tokenizer_encode_t next = {.text = {.data = item->prompt, .bytes = (uint32_t)item->prompt_bytes},
                                      .add_special_tokens = true,
                                      .parse_special_tokens = true};
        form_call(form, QN_METHOD_TOKENIZER_ENCODE, &next, ids_came);
        return;
    }
    s->busy[WITH_TOKENIZER] = 0;
    next_ids(form);
}

/* ---- reading ---- */

static bool read_steps(form_t *form, schedule_t *s)
{
    static const char *const ALL[] = {"tokenize", "embed", "attention", "output"};
    const json_t *list = json_object_get(form->body, "steps");
    bool given = list && !json_is_null(list);
    size_t count = given ? json_array_size(list) : 4;
    uint32_t layers = form->frontend->model.layers;
    if (count == 0 || count > STEPS_MAX) {
        form_fail(form, 400, "steps", "steps is a list of 1 to %d names", STEPS_MAX);
        return false;
    }
    for (size_t i = 0; i < count; i++) {
        schedule_step_t *step = &s->steps[s->step_count++];
        const char *name = given ? json_string_value(json_array_get(list, i)) : ALL[i];
        if (!name || strlen(name) >= sizeof step->name || !pipeline_find(name, &step->step, &step->layer) ||
            (layers && step->layer >= layers)) {
            form_fail(form, 400, "steps", "steps[%zu]: a step is " PIPELINE_STEPS "; the model has %u layers", i,
                      layers);
            return false;
        }
        strcpy(step->name, name);
    }
    return true;
}

static bool read_prompts(form_t *form, schedule_t *s, uint32_t batch_size, bool batch_given)
{
    const json_t *list = json_object_get(form->body, "prompts");
    bool given = list && !json_is_null(list);
    s->item_count = given ? (uint32_t)json_array_size(list) : batch_size;
    if (given && (!json_is_array(list) || batch_given || s->item_count == 0 || s->item_count > ITEMS_MAX)) {
        form_fail(form, 400, "prompts", "prompts is a list of 1 to %d texts, without batch_size", ITEMS_MAX);
        return false;
    }
    for (uint32_t i = 0; i < s->item_count; i++) {
        const json_t *prompt = given ? json_array_get(list, i) : NULL;
        size_t bytes = given ? json_string_length(prompt) : strlen(EXAMPLE_PROMPT);
        if (given && (!json_is_string(prompt) || bytes == 0 || bytes > QN_TOKENIZER_ENCODE_TEXT_MAX)) {
            form_fail(form, 400, "prompts", "prompts[%u] must be a text of 1 to %d bytes", i,
                      QN_TOKENIZER_ENCODE_TEXT_MAX);
            return false;
        }
        s->items[i].prompt = given ? json_string_value(prompt) : EXAMPLE_PROMPT;
        s->items[i].prompt_bytes = bytes;
    }
    return true;
}

void form_pipeline_schedule(form_t *form)
{
    typedef struct {
        uint32_t batch_size;
        bool overlap, batch_given;
    } options_t;
    static const json_field_t fields[] = {
        {"batch_size", JSON_FIELD_UNSIGNED, offsetof(options_t, batch_size), 1, ITEMS_MAX,
         offsetof(options_t, batch_given)},
        {"overlap_comm", JSON_FIELD_FLAG, offsetof(options_t, overlap), 0, 0, 0},
    };
    static const char *const others[] = {"steps", "prompts", NULL};
    options_t options = {.batch_size = 4, .overlap = true};
    schedule_t *s = qn_arena_zalloc(&form->arena, 1, sizeof *s);
    form->state = s;
    if (!form_read(form, fields, 2, others, &options) || !read_steps(form, s) ||
        !read_prompts(form, s, options.batch_size, options.batch_given))
        return;
    s->wants_overlap = options.overlap;
    if (!form->frontend->model.has_text) {
        form_fail(form, 400, "prompts", "this model has no tokenizer.json: a schedule is of texts");
        return;
    }
    if (s->steps[0].step == PIPELINE_TOKENIZE) {
        next_ids(form);
        return;
    }
    qn_tokenizer_encode_t first = {.text = {.data = s->items[0].prompt, .bytes = (uint32_t)s->items[0].prompt_bytes},
                                   .add_special_tokens = true,
                                   .parse_special_tokens = true};
    form_call(form, QN_METHOD_TOKENIZER_ENCODE, &first, ids_came);
}

const char form_pipeline_schedule_request[] = FORM_OBJECT(
    "\"steps\":{\"type\":\"array\",\"items\":{\"type\":\"string\"}},"
    "\"prompts\":{\"type\":\"array\",\"items\":{\"type\":\"string\"}},\"overlap_comm\":{\"type\":\"boolean\"},"
    "\"batch_size\":{\"type\":\"integer\",\"minimum\":1,\"maximum\":16}");
const char form_pipeline_schedule_reply[] = FORM_ANY_OBJECT;
const char form_pipeline_schedule_example[] =
    "{\"steps\":[\"tokenize\",\"embed\",\"attention\",\"output\"],\"batch_size\":4,\"overlap_comm\":true}";
