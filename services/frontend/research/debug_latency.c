/* What is this?      GET /debug/latency_stats: where the time went over the last minute, from all services.
 * State owned:       the form's.
 * Must never:        make up a figure: what was not observed is null.
 * Read next:         schemas/latency_reply.fbs, services/frontend/latency.h. */
#include <string.h>

#include "common/clock.h"
#include "common/watch/latency.h"
#include "services/frontend/research/forms.h"

/* The members of the answer, the service that measures them and the name of its row. */
static const struct {
    const char *member, *row;
    qn_service_t service;
} parts[] = {
    {"tokenize_ms", "tokenize", QN_SERVICE_TOKENIZER},
    {"queue_ms", "queue", QN_SERVICE_SCHEDULER},
    {"embed_ms", "embed", QN_SERVICE_COMPUTE},
    {"attention_ms", "attention", QN_SERVICE_COMPUTE},
    {"mlp_ms", "mlp", QN_SERVICE_COMPUTE},
    {"output_ms", "output", QN_SERVICE_COMPUTE},
    {"sample_ms", "sample", QN_SERVICE_COMPUTE},
    {"detokenize_ms", "detokenize", QN_SERVICE_TOKENIZER},
    {"step_ms", "step", QN_SERVICE_COMPUTE},
};
#define PART_COUNT (sizeof parts / sizeof *parts)

typedef struct {
    bool detail;
    qn_latency_figures_t parts[PART_COUNT];
} latency_form_t;

static void put_ms(json_writer_t *writer, const char *key, uint64_t ns)
{
    json_put_key(writer, key);
    json_put_number(writer, (double)ns / 1e6);
}

static void put_detail(json_writer_t *writer, const qn_latency_figures_t *figures)
{
    if (figures->count) {
        put_ms(writer, "mean", figures->mean_ns);
        put_ms(writer, "p50", figures->p50_ns);
        put_ms(writer, "p99", figures->p99_ns);
    } else {
        json_put_member_null(writer, "mean");
        json_put_member_null(writer, "p50");
        json_put_member_null(writer, "p99");
    }
    json_put_member_unsigned(writer, "count", figures->count);
}

static void put_figures(json_writer_t *writer, const char *key, const qn_latency_figures_t *figures, bool detail)
{
    json_put_key(writer, key);
    if (detail) {
        json_put_open(writer, '{');
        put_detail(writer, figures);
        json_put_close(writer, '}');
    } else if (figures->count) {
        json_put_number(writer, (double)figures->mean_ns / 1e6);
    } else {
        json_put_null(writer);
    }
}

static void put_window(json_writer_t *writer, const char *key, const qn_window_t *window, uint64_t now_ns, bool detail)
{
    qn_latency_figures_t figures = qn_latency_row(key, window, now_ns);
    put_figures(writer, key, &figures, detail);
}

static void put_hops(json_writer_t *writer, const latency_t *latency, uint64_t now_ns, bool detail)
{
    json_put_key(writer, "hops");
    json_put_open(writer, '[');
    for (unsigned i = 0; i < LATENCY_HOPS; i++) {
        qn_latency_figures_t figures = qn_latency_row("", &latency->hops[i], now_ns);
        json_put_open(writer, '{');
        json_put_member_string(writer, "from", latency_hop_from(i));
        json_put_member_string(writer, "to", latency_hop_to(i));
        if (detail)
            put_detail(writer, &figures);
        else
            put_figures(writer, "ms", &figures, false);
        json_put_close(writer, '}');
    }
    json_put_close(writer, ']');
}

static void answer(form_t *form, const call_t *call, const qn_latency_reply_t *reply)
{
    const latency_form_t *state = form->state;
    const latency_t *latency = &form->frontend->latency;
    uint64_t now_ns = qn_clock_now_ns();
    reply_buffer_t data = {0};
    json_writer_t writer = json_writer_on(&data);
    json_put_open(&writer, '{');
    for (size_t i = 0; i < PART_COUNT; i++)
        put_figures(&writer, parts[i].member, &state->parts[i], state->detail);
    put_window(&writer, "first_token_ms", &latency->first_token, now_ns, state->detail);
    put_window(&writer, "inter_token_ms", &latency->inter_token, now_ns, state->detail);
    put_window(&writer, "total_ms", &latency->total, now_ns, state->detail);
    put_hops(&writer, latency, now_ns, state->detail);
    json_put_member_unsigned(&writer, "steps", reply->total_steps);
    json_put_member_unsigned(&writer, "sampled_steps", reply->sampled_steps);
    json_put_member_unsigned(&writer, "window_s", QN_WINDOW_NS / 1000000000);
    json_put_close(&writer, '}');
    form_answer(form, call, reply, &data);
}

/* Keeps the figures of the service that answered; their names do not outlive the reply. */
static void keep(latency_form_t *state, qn_service_t service, const qn_latency_reply_t *reply)
{
    for (uint32_t i = 0; i < reply->rows_count; i++)
        for (size_t p = 0; p < PART_COUNT; p++)
            if (parts[p].service == service && strcmp(reply->rows[i].name.data, parts[p].row) == 0) {
                state->parts[p] = reply->rows[i];
                state->parts[p].name = (qn_text_t){0};
            }
}

static void took_compute(form_t *form, call_t *call, const void *reply)
{
    keep(form->state, QN_SERVICE_COMPUTE, reply);
    answer(form, call, reply);
}

static void took_scheduler(form_t *form, call_t *call, const void *reply)
{
    (void)call;
    keep(form->state, QN_SERVICE_SCHEDULER, reply);
    form_call(form, QN_METHOD_COMPUTE_LATENCY, &(qn_compute_latency_t){0}, took_compute);
}

static void took_tokenizer(form_t *form, call_t *call, const void *reply)
{
    (void)call;
    keep(form->state, QN_SERVICE_TOKENIZER, reply);
    form_call(form, QN_METHOD_SCHEDULER_LATENCY, &(qn_scheduler_latency_t){0}, took_scheduler);
}

const char form_debug_latency_query[] = "{\"detail\":{\"type\":\"boolean\"}}";
const char form_debug_latency_reply[] = "{\"type\":\"object\"}";

void form_debug_latency(form_t *form)
{
    latency_form_t *state = form->state = qn_arena_zalloc(&form->arena, 1, sizeof *state);
    if (!form_query_flag(form, "detail", &state->detail) || !form_read(form, NULL, 0, NULL, NULL)) return;
    form_call(form, QN_METHOD_TOKENIZER_LATENCY, &(qn_tokenizer_latency_t){0}, took_tokenizer);
}
