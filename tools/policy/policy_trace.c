/* What is this?      Reading traces of arrivals: JSON Lines, and captures of the sniffer.
 * State owned:       none beyond the trace.
 * Must never:        guess a number that a line got wrong.
 * Read next:         cmd_policy.c, common/capture/capture_file.h. */
#include "tools/policy/policy_trace.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/name_hash.h"
#include "tools/cli.h"
#include "common/capture/capture_file.h"

#define TRACE_BYTES_MAX (1u << 30)

static simulation_request_t *add(policy_trace_t *trace)
{
    if (trace->count == POLICY_TRACE_REQUESTS_MAX) return NULL;
    if ((trace->count & (trace->count - 1)) == 0) { /* room for twice as many */
        size_t room = trace->count > 0 ? 2 * (size_t)trace->count : 1;
        void *larger = realloc(trace->requests, room * sizeof *trace->requests);
        if (larger == NULL) return NULL;
        trace->requests = larger;
    }
    simulation_request_t *request = &trace->requests[trace->count++];
    *request = (simulation_request_t){.max_tokens = 50};
    return request;
}

static bool set_user(simulation_request_t *request, const char *name)
{
    request->user = qn_name_hash(qn_text(name));
    request->user_name = name[0] != '\0' ? strndup(name, QN_POLICY_USER_MAX - 1) : NULL;
    return name[0] == '\0' || request->user_name != NULL;
}

void policy_trace_fini(policy_trace_t *trace)
{
    for (uint32_t i = 0; i < trace->count; i++)
        free((char *)trace->requests[i].user_name);
    free(trace->requests);
    *trace = (policy_trace_t){0};
}

/* ---- JSON Lines ---- */

typedef enum { TRACE_COUNT, TRACE_MS, TRACE_PRIORITY } trace_kind_t;

typedef struct {
    const char *name;
    trace_kind_t kind;
    double min, max;
} trace_field_t;

static const trace_field_t fields[] = {
    {"arrival_ms", TRACE_MS, 0, 1e12},
    {"deadline_ms", TRACE_MS, 0, 86400000},
    {"prompt_tokens", TRACE_COUNT, 1, QN_PROMPT_TOKENS_MAX},
    {"max_tokens", TRACE_COUNT, 1, QN_PROMPT_TOKENS_MAX},
    {"prefix_tokens", TRACE_COUNT, 0, QN_PROMPT_TOKENS_MAX},
    {"priority", TRACE_PRIORITY, INT32_MIN, INT32_MAX},
    {"arrival", TRACE_MS, 0, 1e9}, /* seconds, as in quintet bench serve --trace */
};
#define FIELDS (sizeof fields / sizeof *fields)

static qn_err_t read_number(const trace_field_t *field, const json_t *value, uint32_t line, double *ret_number)
{
    bool whole = field->kind != TRACE_MS;
    double number = json_number_value(value);
    if ((whole ? json_is_integer(value) : json_is_number(value)) && number >= field->min && number <= field->max) {
        *ret_number = number;
        return QN_OK;
    }
    return qn_fail(QN_ERR_INVALID, "line %u: %s must be %s from %.0f to %.0f", line, field->name,
                   whole ? "a whole number" : "a number", field->min, field->max);
}

static qn_err_t read_member(const char *name, const json_t *value, uint32_t line, simulation_request_t *request)
{
    if (strcmp(name, "user") == 0) {
        if (!json_is_string(value)) return qn_fail(QN_ERR_INVALID, "line %u: user must be a string", line);
        return set_user(request, json_string_value(value)) ? QN_OK
                                                           : qn_fail(QN_ERR_NO_MEMORY, "no memory for the trace");
    }
    if (strcmp(name, "input_ids") == 0 && json_is_array(value)) {
        request->prompt_tokens = (uint32_t)json_array_size(value);
        return QN_OK;
    }
    double numbers[FIELDS];
    size_t at = 0;
    while (at < FIELDS && strcmp(fields[at].name, name) != 0)
        at++;
    if (at == FIELDS) return qn_fail(QN_ERR_INVALID, "line %u: %.64s is no field of a trace", line, name);
    qn_err_t err = read_number(&fields[at], value, line, &numbers[at]);
    if (err < 0) return err;
    switch (at) {
    case 0: request->arrival_ns = (uint64_t)(numbers[at] * 1e6); break;
    case 1: request->deadline_ns = (uint64_t)(numbers[at] * 1e6); break;
    case 2: request->prompt_tokens = (uint32_t)numbers[at]; break;
    case 3: request->max_tokens = (uint32_t)numbers[at]; break;
    case 4: request->prefix_tokens = (uint32_t)numbers[at]; break;
    case 5: request->priority = (int32_t)numbers[at]; break;
    default: request->arrival_ns = (uint64_t)(numbers[at] * 1e9); break;
    }
    return QN_OK;
}

static qn_err_t read_line(const char *text, size_t bytes, uint32_t line, policy_trace_t *trace)
{
    json_error_t why;
    json_t *object = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &why);
    const char *name;
    json_t *value;
    if (!json_is_object(object)) {
        json_decref(object);
        return qn_fail(QN_ERR_INVALID, "line %u is no JSON object%s%s", line, object ? "" : ": ",
                       object ? "" : why.text);
    }
    simulation_request_t *request = add(trace);
    qn_err_t err = request != NULL ? QN_OK
                                   : qn_fail(QN_ERR_LIMIT, "line %u: a trace has %u requests at most", line,
                                             POLICY_TRACE_REQUESTS_MAX);
    if (err == QN_OK)
        json_object_foreach(object, name, value) if (err == QN_OK) err = read_member(name, value, line, request);
    if (err == QN_OK && request->prompt_tokens == 0)
        err = qn_fail(QN_ERR_INVALID, "line %u: prompt_tokens is missing", line);
    json_decref(object);
    return err;
}

static qn_err_t read_lines(const char *text, size_t bytes, policy_trace_t *trace)
{
    uint32_t line = 0;
    qn_err_t err = QN_OK;
    for (size_t at = 0; at < bytes && err == QN_OK;) {
        const char *end = memchr(text + at, '\n', bytes - at);
        size_t length = end != NULL ? (size_t)(end - text) - at : bytes - at;
        line++;
        if (strspn(text + at, " \t\r") < length) err = read_line(text + at, length, line, trace);
        at += length + 1;
    }
    return err;
}

/* ---- captures ---- */

/* What is known of the steps: sums for a line through (tokens, ns). */
typedef struct {
    double count, tokens, ns, tokens_tokens, tokens_ns;
    uint64_t step;
    double step_tokens; /* of the plan with this number */
} steps_t;

static simulation_request_t *find(const policy_trace_t *trace, const uint64_t *ids, uint64_t id)
{
    for (uint32_t i = trace->count; i-- > 0;)
        if (ids[i] == id) return &trace->requests[i];
    return NULL;
}

static bool take_submit(policy_trace_t *trace, uint64_t **ids, const qn_capture_message_t *message)
{
    const qn_submit_t *submit = message->content;
    if (find(trace, *ids, submit->head.request) != NULL) return true; /* submitted again to a new scheduler */
    uint64_t *larger = realloc(*ids, (trace->count + 1) * sizeof **ids);
    if (larger == NULL) return false;
    *ids = larger;
    simulation_request_t *request = add(trace);
    if (request == NULL) return false;
    (*ids)[trace->count - 1] = submit->head.request;
    request->arrival_ns = message->time_ns;
    request->prompt_tokens = submit->prompt_ids_count;
    request->max_tokens = submit->sampling.max_tokens > 0 ? submit->sampling.max_tokens : 1;
    request->priority = submit->priority;
    request->deadline_ns = submit->deadline_ms * 1000000ull;
    trace->unfinished++;
    return set_user(request, submit->user.bytes > 0 ? submit->user.data : "");
}

static void take_ends(policy_trace_t *trace, const uint64_t *ids, const qn_token_batch_t *batch)
{
    for (uint32_t i = 0; i < batch->ends_count; i++) {
        const qn_sequence_end_t *end = &batch->ends[i];
        simulation_request_t *request = find(trace, ids, end->request);
        if (request == NULL) continue;
        request->max_tokens = end->generated_tokens > 0 ? end->generated_tokens : 1;
        request->prefix_tokens = end->cached_tokens;
        if (trace->unfinished > 0) trace->unfinished--;
    }
}

static void take_plan(steps_t *steps, const qn_step_plan_t *plan)
{
    steps->step = plan->step;
    steps->step_tokens = 0;
    for (uint32_t i = 0; i < plan->runs_count; i++)
        steps->step_tokens += plan->runs[i].token_count;
}

static void take_result(steps_t *steps, const qn_step_result_t *result)
{
    double ns = (double)(result->end_ns - result->begin_ns);
    if (result->step != steps->step || steps->step_tokens == 0) return; /* planned ahead: its size is not at hand */
    steps->count++;
    steps->tokens += steps->step_tokens;
    steps->ns += ns;
    steps->tokens_tokens += steps->step_tokens * steps->step_tokens;
    steps->tokens_ns += steps->step_tokens * ns;
}

static void fit_steps(const steps_t *steps, policy_trace_t *trace)
{
    if (steps->count == 0) return;
    double spread = steps->count * steps->tokens_tokens - steps->tokens * steps->tokens;
    double slope = spread > 0 ? (steps->count * steps->tokens_ns - steps->tokens * steps->ns) / spread : 0;
    double base = (steps->ns - slope * steps->tokens) / steps->count;
    if (slope < 0) slope = 0, base = steps->ns / steps->count;
    if (base < 0) base = 0, slope = steps->ns / steps->tokens;
    trace->step_us = base / 1e3;
    trace->token_us = slope / 1e3;
}

static bool take_message(policy_trace_t *trace, uint64_t **ids, steps_t *steps, const qn_capture_message_t *message)
{
    if (message->content == NULL) return true;
    switch (message->type) {
    case QN_MESSAGE_SUBMIT: return take_submit(trace, ids, message);
    case QN_MESSAGE_TOKEN_BATCH: take_ends(trace, *ids, message->content); break;
    case QN_MESSAGE_STEP_PLAN: take_plan(steps, message->content); break;
    case QN_MESSAGE_STEP_RESULT: take_result(steps, message->content); break;
    default: break;
    }
    return true;
}

static qn_err_t read_capture(const char *path, policy_trace_t *trace)
{
    qn_capture_t *capture = NULL;
    qn_capture_message_t *message;
    static qn_capture_slots_t slots;
    steps_t steps = {0};
    uint64_t *ids = NULL;
    qn_arena_t arena;
    qn_err_t err = qn_capture_open(path, &capture);
    if (err < 0) return err;
    qn_arena_init(&arena, 0);
    while (err == QN_OK && qn_capture_read(capture, &message) == QN_CAPTURE_MESSAGE) {
        qn_arena_reset(&arena);
        qn_capture_message_decode(message, &slots, &arena);
        if (!take_message(trace, &ids, &steps, message))
            err = qn_fail(QN_ERR_LIMIT, "a trace has %u requests at most, and has to fit memory",
                          POLICY_TRACE_REQUESTS_MAX);
        free(message);
    }
    qn_arena_fini(&arena);
    qn_capture_close(&capture);
    free(ids);
    fit_steps(&steps, trace);
    uint64_t first_ns = UINT64_MAX;
    for (uint32_t i = 0; i < trace->count; i++)
        if (trace->requests[i].arrival_ns < first_ns) first_ns = trace->requests[i].arrival_ns;
    for (uint32_t i = 0; i < trace->count; i++)
        trace->requests[i].arrival_ns -= first_ns;
    return err;
}

/* ---- either ---- */

static bool is_capture(const char *path)
{
    char magic[8] = {0};
    FILE *file = fopen(path, "r");
    bool is =
        file != NULL && fread(magic, 1, sizeof magic, file) == sizeof magic && memcmp(magic, "QNTCAP\r\n", 8) == 0;
    if (file != NULL) fclose(file);
    return is;
}

qn_err_t policy_trace_read(const char *path, policy_trace_t *ret_trace)
{
    policy_trace_t trace = {0};
    qn_err_t err = QN_OK;
    if (strcmp(path, "-") != 0 && is_capture(path)) {
        err = read_capture(path, &trace);
    } else {
        size_t bytes;
        char *text = cli_read_all(path, TRACE_BYTES_MAX, &bytes);
        if (text == NULL) return QN_ERR_IO;
        err = read_lines(text, bytes, &trace);
        free(text);
    }
    if (err == QN_OK && trace.count == 0) err = qn_fail(QN_ERR_INVALID, "%s: there is no request in it", path);
    if (err < 0)
        policy_trace_fini(&trace);
    else
        *ret_trace = trace;
    return err;
}
