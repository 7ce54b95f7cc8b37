/* What is this?      POST /optimization/batch_schedule: a batch of requests in the order that an algorithm gives them.
 * State owned:       none; what is known so far is in the form's arena.
 * Must never:        touch the policy of other traffic; run anything when dry_run says so.
 * Read next:         forms.h, schemas/scheduler/scheduler_schedule.fbs, reply/reply_batch.c (the answer of a run).
 *
 * The prompts are counted (tokenizer.encode), then scheduled in a simulation (scheduler.schedule). That is the answer of a dry
 * run. Else they are sent in the order in which the simulation began them, max_batch_size of them at a time, as one
 * request of /batch_generate would be, and what was simulated stands beside what was measured. */
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "services/frontend/reply/reply_batch.h"
#include "services/frontend/request/json_fields.h"
#include "services/frontend/research/forms.h"

#define REQUESTS_MAX 256u
#define MAX_TOKENS_DEFAULT 50u

typedef struct {
    const json_t *prompt; /* a string or a list of ids */
    uint32_t max_tokens, deadline_ms;
    int32_t priority;
    const char *user;
} item_t;

typedef struct {
    const char *policy;  /* NULL: the live one */
    bool longest_first;  /* of equals: maximize_throughput */
    bool ties_by_length; /* strategy was given, and the algorithm is not the order of arrival */
    bool dry_run;
    uint32_t max_batch_size;
    uint32_t count, counted;
    item_t items[REQUESTS_MAX];
    uint32_t tokens[REQUESTS_MAX]; /* of prompts */
    uint32_t place[REQUESTS_MAX];  /* in the simulation: which item */
} batch_t;

/* ---- reading ---- */

static const json_field_t item_fields[] = {
    {"max_tokens", JSON_FIELD_UNSIGNED, offsetof(item_t, max_tokens), 1, QN_PROMPT_TOKENS_MAX, 0},
    {"priority", JSON_FIELD_SIGNED, offsetof(item_t, priority), INT32_MIN, INT32_MAX, 0},
    {"deadline_ms", JSON_FIELD_UNSIGNED, offsetof(item_t, deadline_ms), 1, 86400000, 0},
};
#define ITEM_FIELDS (sizeof item_fields / sizeof *item_fields)

static bool is_item_member(const char *name)
{
    return json_fields_name(item_fields, ITEM_FIELDS, name) || strcmp(name, "prompt") == 0 ||
           strcmp(name, "input_ids") == 0 || strcmp(name, "user") == 0;
}

/* False: the form was answered. */
static bool read_item(form_t *form, const json_t *object, size_t at, item_t *item)
{
    http_error_t error;
    const char *name;
    json_t *value;
    *item = (item_t){.max_tokens = MAX_TOKENS_DEFAULT};
    if (!json_is_object(object)) {
        form_fail(form, 400, "requests", "requests[%zu] must be an object with a prompt.", at);
        return false;
    }
    json_object_foreach((json_t *)object, name, value)
    {
        if (is_item_member(name)) continue;
        form_fail(form, 400, "requests", "requests[%zu]: %.64s is no field of a request here.", at, name);
        return false;
    }
    if (!json_fields_read(object, "", item_fields, ITEM_FIELDS, item, &error)) {
        form_fail(form, 400, "requests", "requests[%zu]: %s", at, error.message);
        return false;
    }
    const json_t *user = json_object_get(object, "user");
    item->user = json_is_string(user) ? json_string_value(user) : NULL;
    const json_t *prompt = json_object_get(object, "prompt"), *ids = json_object_get(object, "input_ids");
    item->prompt = prompt != NULL ? prompt : ids;
    bool good = json_is_string(item->prompt) || (json_is_array(item->prompt) && json_array_size(item->prompt) > 0);
    if ((prompt == NULL) == (ids == NULL) || !good || (user != NULL && item->user == NULL)) {
        form_fail(
            form, 400, "requests",
            "requests[%zu] needs a prompt (a string) or input_ids (a list of ids), one of them; user is a string.", at);
        return false;
    }
    return true;
}

/* The seeds' names for what is built in. */
static const char *policy_of(const char *algorithm)
{
    static const char *const names[][2] = {{"priority_queue", "priority"},
                                           {"fifo", "fcfs"},
                                           {"sjf", "shortest_job"},
                                           {"shortest_job_first", "shortest_job"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(algorithm, names[i][0]) == 0) return names[i][1];
    return algorithm;
}

static bool read_strategy(form_t *form, batch_t *batch)
{
    const json_t *value = json_object_get(form->body, "strategy");
    const char *name = json_is_string(value) ? json_string_value(value) : NULL;
    if (value == NULL || json_is_null(value)) return true;
    bool latency = name != NULL && strcmp(name, "minimize_latency") == 0;
    batch->longest_first = name != NULL && strcmp(name, "maximize_throughput") == 0;
    batch->ties_by_length = batch->policy == NULL || strcmp(batch->policy, "fcfs") != 0;
    if (latency || batch->longest_first) return true;
    form_fail(form, 400, "strategy",
              "strategy is minimize_latency (of requests that the algorithm holds equal the shortest first) or "
              "maximize_throughput (the longest first).");
    return false;
}

static const json_field_t fields[] = {
    {"max_batch_size", JSON_FIELD_UNSIGNED, offsetof(batch_t, max_batch_size), 1, REQUESTS_MAX, 0},
    {"dry_run", JSON_FIELD_FLAG, offsetof(batch_t, dry_run), 0, 0, 0},
};

static bool read_batch(form_t *form, batch_t *batch)
{
    static const char *const others[] = {"algorithm", "strategy", "requests", "temperature", "seed", NULL};
    if (!form_read(form, fields, sizeof fields / sizeof *fields, others, batch)) return false;
    const json_t *algorithm = json_object_get(form->body, "algorithm");
    const json_t *requests = json_object_get(form->body, "requests");
    size_t count = json_array_size(requests);
    if (algorithm != NULL && !json_is_string(algorithm) && !json_is_null(algorithm)) {
        form_fail(form, 400, "algorithm",
                  "algorithm must be the name of a scheduling policy (GET /policies/scheduling).");
        return false;
    }
    if (json_is_string(algorithm)) batch->policy = policy_of(json_string_value(algorithm));
    if (!read_strategy(form, batch)) return false;
    if (count < 1 || count > REQUESTS_MAX) {
        form_fail(form, 400, "requests", "requests must be a list of 1 to %u requests.", REQUESTS_MAX);
        return false;
    }
    for (; batch->count < count; batch->count++)
        if (!read_item(form, json_array_get(requests, batch->count), batch->count, &batch->items[batch->count]))
            return false;
    return true;
}

/* ---- counting, then scheduling ---- */

static void schedule(form_t *form);

static void count_next(form_t *form, call_t *call, const void *message)
{
    batch_t *batch = form->state;
    const qn_tokenizer_encode_reply_t *reply = message;
    (void)call;
    if (reply != NULL) batch->tokens[batch->counted++] = reply->ids_count;
    for (; batch->counted < batch->count && json_is_array(batch->items[batch->counted].prompt); batch->counted++)
        batch->tokens[batch->counted] = (uint32_t)json_array_size(batch->items[batch->counted].prompt);
    if (batch->counted == batch->count) {
        schedule(form);
        return;
    }
    const json_t *prompt = batch->items[batch->counted].prompt;
    qn_tokenizer_encode_t ask = {.text = {.data = json_string_value(prompt),
                                          .bytes = (uint32_t)json_string_length(prompt)},
                                 .add_special_tokens = true,
                                 .parse_special_tokens = true};
    form_call(form, QN_METHOD_TOKENIZER_ENCODE, &ask, count_next);
}

/* The order in which the simulation sees them: where the algorithm holds two equal, the first of them is first. */
static void order_places(batch_t *batch)
{
    for (uint32_t i = 0; i < batch->count; i++) {
        uint32_t at = i;
        uint64_t length = (uint64_t)batch->tokens[i] + batch->items[i].max_tokens;
        for (; batch->ties_by_length && at > 0; at--) {
            uint32_t before = batch->place[at - 1];
            uint64_t other = (uint64_t)batch->tokens[before] + batch->items[before].max_tokens;
            if (batch->longest_first ? other >= length : other <= length) break;
            batch->place[at] = before;
        }
        batch->place[at] = i;
    }
}

/* Schedule, reasons and simulated metrics as members of an object, with the ids of the body's list. */
static void write_plan(const batch_t *batch, const qn_scheduler_schedule_reply_t *reply, json_writer_t *writer)
{
    json_put_member_string(writer, "algorithm", reply->policy.data);
    json_put_key(writer, "schedule");
    json_put_open(writer, '[');
    for (uint32_t i = 0; i < reply->schedule_count; i++) {
        const qn_scheduled_step_t *step = &reply->schedule[i];
        json_put_open(writer, '{');
        json_put_member_unsigned(writer, "step", step->step);
        json_put_key(writer, "sequences");
        json_put_open(writer, '[');
        for (uint32_t k = 0; k < step->sequences_count; k++) {
            json_put_open(writer, '{');
            json_put_member_unsigned(writer, "id", batch->place[step->sequences[k].id]);
            json_put_member_unsigned(writer, "tokens", step->sequences[k].tokens);
            json_put_member_string(writer, "phase",
                                   step->sequences[k].phase == QN_SCHEDULE_PHASE_PREFILL ? "prefill" : "decode");
            json_put_close(writer, '}');
        }
        json_put_close(writer, ']');
        json_put_key(writer, "ms");
        json_put_number(writer, step->ms);
        json_put_close(writer, '}');
    }
    json_put_close(writer, ']');
    json_put_key(writer, "reasons");
    json_put_open(writer, '[');
    for (uint32_t i = 0; i < batch->count; i++)
        for (uint32_t k = 0; k < batch->count; k++)
            if (batch->place[k] == i)
                json_put_text(writer, reply->requests[k].reason.data, reply->requests[k].reason.bytes);
    json_put_close(writer, ']');
}

static void write_simulated(const qn_scheduler_schedule_reply_t *reply, json_writer_t *writer)
{
    const qn_schedule_metrics_t *metrics = reply->metrics;
    json_put_open(writer, '{');
    json_put_key(writer, "mean_latency_ms");
    json_put_number(writer, metrics->latency_ms->mean);
    json_put_key(writer, "p99_latency_ms");
    json_put_number(writer, metrics->latency_ms->p99);
    json_put_key(writer, "mean_ttft_ms");
    json_put_number(writer, metrics->ttft_ms->mean);
    json_put_key(writer, "tokens_per_s");
    json_put_number(writer, metrics->tokens_per_s);
    json_put_key(writer, "total_ms");
    json_put_number(writer, metrics->total_ms);
    json_put_member_unsigned(writer, "steps", metrics->steps);
    json_put_close(writer, '}');
}

static void answer_dry(form_t *form, call_t *call, const qn_scheduler_schedule_reply_t *reply)
{
    reply_buffer_t data = {0};
    json_writer_t writer = json_writer_on(&data);
    json_put_open(&writer, '{');
    json_put_key(&writer, "outputs");
    json_put_open(&writer, '[');
    json_put_close(&writer, ']');
    write_plan(form->state, reply, &writer);
    json_put_key(&writer, "metrics");
    write_simulated(reply, &writer);
    json_put_member_bool(&writer, "dry_run", true);
    json_put_close(&writer, '}');
    form_answer(form, call, reply, &data);
}

/* ---- running ---- */

/* The items as a body of /batch_generate. Returns owned. */
static json_t *generation_of(const form_t *form, const batch_t *batch)
{
    json_t *prompts = json_array(), *parameters = json_array();
    for (uint32_t i = 0; i < batch->count; i++) {
        json_array_append(prompts, (json_t *)batch->items[i].prompt);
        json_array_append_new(parameters, json_pack("{s:I}", "max_new_tokens", (json_int_t)batch->items[i].max_tokens));
    }
    json_t *body = json_pack("{s:o, s:o}", "prompts", prompts, "sampling_params", parameters);
    static const char *const passed[] = {"temperature", "seed"};
    for (size_t i = 0; i < sizeof passed / sizeof *passed; i++) {
        json_t *value = json_object_get(form->body, passed[i]);
        if (value != NULL) json_object_set(body, passed[i], value);
    }
    return body;
}

/* Which item begins when: by the first step of the simulation that has it, else (refused, not shown) at the end. */
static void order_of(const batch_t *batch, const qn_scheduler_schedule_reply_t *reply, uint32_t *ret_order)
{
    bool seen[REQUESTS_MAX] = {false};
    uint32_t count = 0;
    for (uint32_t i = 0; i < reply->schedule_count; i++)
        for (uint32_t k = 0; k < reply->schedule[i].sequences_count; k++) {
            uint32_t place = reply->schedule[i].sequences[k].id;
            if (place >= batch->count || seen[place]) continue;
            seen[place] = true;
            ret_order[count++] = batch->place[place];
        }
    for (uint32_t place = 0; place < batch->count; place++)
        if (!seen[place]) ret_order[count++] = batch->place[place];
}

static void run(form_t *form, const qn_scheduler_schedule_reply_t *reply)
{
    const batch_t *batch = form->state;
    exchange_batch_t *plan = calloc(1, sizeof *plan);
    QN_ASSERT(plan != NULL);
    json_writer_t writer = json_writer_on(&plan->members);
    json_put_open(&writer, '{'); /* a comma goes before each member but the first */
    write_plan(batch, reply, &writer);
    json_put_key(&writer, "simulated");
    write_simulated(reply, &writer);
    plan->window = batch->max_batch_size > 0 ? batch->max_batch_size : reply->max_batch_size;
    plan->count = batch->count;
    order_of(batch, reply, plan->order);
    json_t *body = generation_of(form, batch);
    form_generate(form, body, plan);
    json_decref(body);
}

static void scheduled(form_t *form, call_t *call, const void *message)
{
    const batch_t *batch = form->state;
    if (batch->dry_run)
        answer_dry(form, call, message);
    else
        run(form, message);
}

static void schedule(form_t *form)
{
    batch_t *batch = form->state;
    qn_simulated_request_t *requests = qn_arena_zalloc(&form->arena, batch->count, sizeof *requests);
    order_places(batch);
    for (uint32_t i = 0; i < batch->count; i++) {
        const item_t *item = &batch->items[batch->place[i]];
        requests[i] = (qn_simulated_request_t){.prompt_tokens = batch->tokens[batch->place[i]],
                                               .max_tokens = item->max_tokens,
                                               .priority = item->priority,
                                               .deadline_ms = item->deadline_ms,
                                               .user = qn_text(item->user)};
    }
    qn_scheduler_schedule_t ask = {.requests = requests,
                                   .requests_count = batch->count,
                                   .policy = qn_text(batch->policy),
                                   .max_batch_size = batch->max_batch_size,
                                   .steps = QN_SCHEDULER_SCHEDULE_REPLY_SCHEDULE_MAX};
    form_call(form, QN_METHOD_SCHEDULER_SCHEDULE, &ask, scheduled);
}

#define TEXT "{\"type\":\"string\",\"minLength\":1}"
#define IDS "{\"type\":\"array\",\"minItems\":1,\"items\":{\"type\":\"integer\",\"minimum\":0}}"

const char form_batch_schedule_request[] =
    "{\"type\":\"object\",\"required\":[\"requests\"],\"properties\":{"
    "\"algorithm\":{\"type\":[\"string\",\"null\"]},\"strategy\":{\"enum\":[\"minimize_latency\","
    "\"maximize_throughput\",null]},\"requests\":{\"type\":\"array\",\"minItems\":1,\"maxItems\":256,\"items\":{"
    "\"type\":\"object\",\"anyOf\":[{\"required\":[\"prompt\"]},{\"required\":[\"input_ids\"]}],"
    "\"properties\":{\"prompt\":" TEXT ",\"input_ids\":" IDS ","
    "\"max_tokens\":{\"type\":\"integer\",\"minimum\":1},\"priority\":{\"type\":\"integer\"},"
    "\"user\":{\"type\":\"string\"},\"deadline_ms\":{\"type\":\"integer\",\"minimum\":1}}}},\"max_batch_size\":{"
    "\"type\":\"integer\",\"minimum\":1,\"maximum\":256},\"dry_run\":{\"type\":\"boolean\"},"
    "\"temperature\":{\"type\":\"number\"},\"seed\":{\"type\":\"integer\"}}}";
const char form_batch_schedule_example[] =
    "{\"algorithm\":\"priority_queue\",\"requests\":[{\"input_ids\":[1,2,3],\"max_tokens\":8,\"priority\":1}]}";
const char form_batch_schedule_reply[] = "{\"type\":\"object\"}";

void form_batch_schedule(form_t *form)
{
    batch_t *batch = qn_arena_zalloc(&form->arena, 1, sizeof *batch);
    form->state = batch;
    if (read_batch(form, batch)) count_next(form, NULL, NULL);
}
