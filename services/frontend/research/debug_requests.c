/* What is this?      GET /debug/requests/{id} and POST /debug/requests/diff: the lives of requests, and two beside each
 *                    other.
 * State owned:       the forms'.
 * Must never:        show a prompt or an answer; fail because the scheduler has forgotten what the frontend knows.
 * Read next:         request_log.h (the frontend's half), schemas/scheduler/scheduler_history_reply.fbs (the other). */
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "services/frontend/research/forms.h"
#include "services/frontend/research/json_diff.h"

#define STEPS_SHOWN 256
#define STEPS_MAX 4096
#define DIFFERENCES_MAX 1000

/* One or two requests, whose sequences are asked for one after the other. */
typedef struct {
    logged_request_t requests[2];
    json_t *lives[2]; /* owned until they are answered */
    uint32_t count, at, choice;
    uint32_t steps;
} requests_form_t;

static void put(json_t *object, const char *key, json_t *value) { json_object_set_new(object, key, value); }

static json_t *ms_json(uint64_t begin_ns, uint64_t end_ns)
{
    return begin_ns && end_ns ? json_real(((double)end_ns - (double)begin_ns) / 1e6) : json_null();
}

static json_t *text_json(qn_text_t text)
{
    json_t *value = json_stringn(text.data ? text.data : "", text.bytes);
    return value ? value : json_string("");
}

/* ---- the frontend's half ---- */

static json_t *restarts_json(const request_log_t *log, const logged_request_t *request)
{
    json_t *list = json_array();
    const logged_restart_t *restart;
    for (uint32_t i = 0; (restart = request_log_restart(log, i)); i++) {
        if (restart->time_ns < request->received_ns) continue;
        if (request->ended_ns && restart->time_ns > request->ended_ns) continue;
        json_array_append_new(list, json_pack("{s:s,s:I,s:o}", "service", qn_service_enum.names[restart->service],
                                              "epoch", (json_int_t)restart->epoch, "at_ms",
                                              ms_json(request->received_ns, restart->time_ns)));
    }
    return list;
}

static json_t *error_json(const http_error_t *error)
{
    if (!error->status) return json_null();
    json_t *message = json_string(error->message);
    return json_pack("{s:i,s:o}", "status", error->status, "message", message ? message : json_string(""));
}

static json_t *life_json(const frontend_t *frontend, const logged_request_t *request)
{
    uint64_t end_ns = request->ended_ns ? request->ended_ns : qn_clock_now_ns();
    json_t *life = json_object(), *restarts = restarts_json(frontend->log, request);
    put(life, "id", json_string(request->client_id));
    put(life, "route", json_string(router_name(request->route)));
    put(life, "live", json_boolean(request->live));
    put(life, "stream", json_boolean(request->stream));
    put(life, "created", json_integer(request->created_s));
    put(life, "received_ns", json_integer((json_int_t)request->received_ns));
    put(life, "first_token_ms", ms_json(request->received_ns, request->first_token_ns));
    put(life, "total_ms", ms_json(request->received_ns, end_ns));
    put(life, "error", error_json(&request->error));
    put(life, "restarts_survived", json_integer((json_int_t)json_array_size(restarts)));
    put(life, "restarts", restarts);
    put(life, "choices", json_integer(request->choice_count));
    put(life, "sequences", json_array());
    return life;
}

/* ---- a sequence: what the frontend knows, and what the scheduler does ---- */

static const char *finish_name(const logged_choice_t *choice)
{
    static const char *const names[] = {[CHOICE_STOP] = "stop",
                                        [CHOICE_LENGTH] = "length",
                                        [CHOICE_CANCELLED] = "cancelled",
                                        [CHOICE_FAILED] = "error"};
    return choice->ended ? names[choice->end.finish] : NULL;
}

/* Before the first token only the scheduler knows how far it has come. */
static void merge_stages(const qn_timeline_t *timeline, uint64_t stages[STAGE_COUNT])
{
    const uint64_t known[STAGE_COUNT] = {timeline->received_ns, timeline->encode_begin_ns, timeline->submitted_ns,
                                         timeline->queued_ns,   timeline->planned_ns,      timeline->executed_ns,
                                         timeline->computed_ns, timeline->resulted_ns,     0};
    for (unsigned i = 0; i < STAGE_COUNT; i++)
        if (!stages[i]) stages[i] = known[i];
}

static json_t *hops_json(const logged_request_t *request, const uint64_t stages[STAGE_COUNT])
{
    json_t *list = json_array();
    for (unsigned i = 0; i < LATENCY_HOPS; i++) {
        uint64_t begin_ns = stages[i], end_ns = i + 1 < STAGE_COUNT ? stages[i + 1] : request->first_token_ns;
        if (!begin_ns || end_ns < begin_ns) continue; /* not reached, or another sequence's first token */
        json_array_append_new(list, json_pack("{s:s,s:s,s:o,s:f}", "from", latency_hop_from(i), "to", latency_hop_to(i),
                                              "at_ms", ms_json(request->received_ns, begin_ns), "us",
                                              ((double)end_ns - (double)begin_ns) / 1e3));
    }
    return list;
}

static json_t *steps_json(const logged_request_t *request, const qn_scheduler_history_reply_t *reply)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < reply->runs_count; i++) {
        const qn_history_run_t *step = &reply->runs[i];
        json_t *row = json_object();
        put(row, "step", json_integer((json_int_t)step->step));
        put(row, "phase", json_string(step->position < reply->prompt_tokens ? "prefill" : "decode"));
        put(row, "position", json_integer(step->position));
        put(row, "tokens", json_integer(step->token_count));
        put(row, "at_ms", ms_json(request->received_ns, step->sent_ns));
        put(row, "ms", ms_json(step->begin_ns, step->end_ns));
        put(row, "round_trip_ms", ms_json(step->sent_ns, step->result_ns));
        put(row, "step_sequences", json_integer(step->step_sequences));
        put(row, "step_tokens", json_integer(step->step_tokens));
        json_array_append_new(list, row);
    }
    return list;
}

static json_t *reasons_json(const qn_scheduler_history_reply_t *reply)
{
    json_t *list = json_array();
    for (uint32_t i = reply->decisions_count; i-- > 0;) { /* oldest first, as the steps */
        const qn_decision_t *decision = &reply->decisions[i];
        json_array_append_new(list, json_pack("{s:I,s:o,s:o,s:o}", "step", (json_int_t)decision->step, "function",
                                              text_json(decision->function), "policy", text_json(decision->policy),
                                              "text", text_json(decision->text)));
    }
    return list;
}

static void put_history(const logged_request_t *request, const qn_scheduler_history_reply_t *reply, json_t *sequence)
{
    const qn_queued_sequence_t *queue = reply->queue;
    put(sequence, "state", json_string(queue ? qn_sequence_state_enum.names[queue->state] : "finished"));
    put(sequence, "priority", json_integer(reply->priority));
    put(sequence, "prompt_tokens", json_integer(reply->prompt_tokens));
    put(sequence, "cached_tokens", json_integer(reply->cached_tokens));
    put(sequence, "generated_tokens", json_integer(reply->generated_tokens));
    put(sequence, "max_tokens", json_integer(reply->max_tokens));
    put(sequence, "preemptions", json_integer(reply->preemptions));
    put(sequence, "crashes", json_integer(reply->crashes));
    put(sequence, "blocks", json_integer(queue ? queue->blocks : 0));
    put(sequence, "blocks_most", json_integer(reply->blocks_most));
    put(sequence, "steps_total", json_integer(reply->steps_total));
    put(sequence, "steps", steps_json(request, reply));
    put(sequence, "reasons", reasons_json(reply));
}

/* `reply` NULL: the scheduler does not know it (any more), or is down. */
static json_t *sequence_json(const logged_request_t *request, const logged_choice_t *choice,
                             const qn_scheduler_history_reply_t *reply)
{
    json_t *sequence = json_object();
    uint64_t stages[STAGE_COUNT];
    memcpy(stages, choice->stages, sizeof stages);
    if (reply) merge_stages(&reply->timeline, stages);
    const char *finish = finish_name(choice);
    put(sequence, "request", json_integer((json_int_t)choice->request));
    put(sequence, "finish", finish ? json_string(finish) : json_null());
    put(sequence, "hops", hops_json(request, stages));
    put(sequence, "known_to_scheduler", json_boolean(reply != NULL));
    if (reply) {
        put_history(request, reply, sequence);
        return sequence;
    }
    put(sequence, "prompt_tokens", choice->ended ? json_integer(choice->end.prompt_tokens) : json_null());
    put(sequence, "cached_tokens", choice->ended ? json_integer(choice->end.cached_tokens) : json_null());
    put(sequence, "generated_tokens", json_integer(choice->tokens));
    return sequence;
}

/* ---- asking ---- */

static void answer_json(form_t *form, const call_t *call, const void *reply, json_t *value)
{
    reply_buffer_t data = {0};
    char *text = json_dumps(value, JSON_COMPACT | JSON_REAL_PRECISION(9));
    reply_buffer_text(&data, text);
    free(text);
    json_decref(value);
    form_answer(form, call, reply, &data);
}

static void answer(form_t *form, const call_t *call, const void *reply)
{
    requests_form_t *state = form->state;
    if (state->count == 1) {
        answer_json(form, call, reply, state->lives[0]);
        return;
    }
    uint32_t left_out = 0;
    json_t *differences = json_diff(state->lives[0], state->lives[1], DIFFERENCES_MAX, &left_out);
    answer_json(form, call, reply,
                json_pack("{s:o,s:o,s:o,s:i}", "a", state->lives[0], "b", state->lives[1], "differences", differences,
                          "differences_left_out", (int)left_out));
}

static void ask(form_t *form);

static void took_history(form_t *form, call_t *call, const void *reply)
{
    requests_form_t *state = form->state;
    const logged_request_t *request = &state->requests[state->at];
    json_t *sequences = json_object_get(state->lives[state->at], "sequences");
    json_array_append_new(sequences, sequence_json(request, &request->choices[state->choice], reply));
    if (++state->choice >= request->kept_count) {
        state->at++;
        state->choice = 0;
    }
    if (state->at < state->count)
        ask(form);
    else
        answer(form, call, reply);
}

static void ask(form_t *form)
{
    const requests_form_t *state = form->state;
    qn_scheduler_history_t message = {.request = state->requests[state->at].choices[state->choice].request,
                                      .limit = state->steps};
    form_try(form, QN_METHOD_SCHEDULER_HISTORY, &message, took_history);
}

/* The client left while the scheduler was asked. */
static void drop_lives(void *context)
{
    requests_form_t *state = context;
    for (uint32_t i = 0; i < state->count; i++)
        if (state->at < state->count) json_decref(state->lives[i]);
}

static bool find(form_t *form, const char *id, const char *param, logged_request_t *ret_request)
{
    if (request_log_find(form->frontend->log, form->frontend->table, id, ret_request)) return true;
    form_fail(form, 404, param,
              "No request \"%.256s\" is in flight or among the last %d that ended. An id is the x-request-id of a "
              "generation, or the id of its reply.",
              id, REQUEST_LOG_MAX);
    return false;
}

static bool read_steps(form_t *form, uint32_t *ret_steps)
{
    const char *text = http_request_query(form->request, "steps");
    *ret_steps = STEPS_SHOWN;
    if (!text) return true;
    char *end;
    unsigned long value = strtoul(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end || value < 1 || value > STEPS_MAX) {
        form_fail(form, 400, "steps", "steps: \"%.32s\" is no number from 1 to %d.", text, STEPS_MAX);
        return false;
    }
    *ret_steps = (uint32_t)value;
    return true;
}

static void begin(form_t *form, const char *const *ids, const char *const *params, uint32_t count)
{
    requests_form_t *state = form->state = qn_arena_zalloc(&form->arena, 1, sizeof *state);
    if (!read_steps(form, &state->steps)) return;
    for (uint32_t i = 0; i < count; i++)
        if (!find(form, ids[i], params[i], &state->requests[i])) return;
    for (uint32_t i = 0; i < count; i++)
        state->lives[i] = life_json(form->frontend, &state->requests[i]);
    state->count = count;
    form->drop = drop_lives;
    ask(form);
}

#define STEPS "{\"steps\":{\"type\":\"integer\",\"minimum\":1,\"maximum\":4096}}"

const char form_debug_request_query[] = STEPS, form_debug_requests_diff_query[] = STEPS;
const char form_debug_request_reply[] = "{\"type\":\"object\"}";
const char form_debug_requests_diff_reply[] = "{\"type\":\"object\"}";
const char form_debug_requests_diff_request[] =
    "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"string\",\"minLength\":1},\"b\":{\"type\":\"string\",\"minLength\":1}},"
    "\"required\":[\"a\",\"b\"],\"additionalProperties\":false}";
const char form_debug_requests_diff_example[] = "{\"a\":\"example\",\"b\":\"example\"}";

void form_debug_request(form_t *form)
{
    const char *id = form->segments[0], *param = "id";
    if (form_read(form, NULL, 0, NULL, NULL)) begin(form, &id, &param, 1);
}

void form_debug_requests_diff(form_t *form)
{
    static const char *const names[] = {"a", "b", NULL};
    const char *ids[2];
    if (!form_read(form, NULL, 0, names, NULL)) return;
    for (int i = 0; i < 2; i++) {
        ids[i] = json_string_value(json_object_get(form->body, names[i]));
        if (ids[i] && ids[i][0]) continue;
        form_fail(form, 400, names[i], "%s must be the id of a request: a string.", names[i]);
        return;
    }
    begin(form, ids, names, 2);
}
