/* What is this?      The table of methods and messages, shown by service, with the service's health.
 * State owned:       none.
 * Must never:        know a method by name.
 * Read next:         common/wire/method.h, examples.h, routes_status.c (the rest of a service's figures). */
#include "services/frontend/methods/describe.h"

#include <stdlib.h>
#include <string.h>

#include "common/wire/wire.h"
#include "qn_methods.h"
#include "services/frontend/methods/call.h"
#include "services/frontend/methods/examples.h"

static void put_text_json(json_writer_t *writer, const char *key, const char *json)
{
    json_put_key(writer, key);
    json_put_raw(writer, json, strlen(json));
}

/* Takes the value. */
static void put_tree(json_writer_t *writer, const char *key, json_t *value)
{
    char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));
    put_text_json(writer, key, text);
    free(text);
    json_decref(value);
}

/* ---- methods ---- */

static void put_method(const frontend_t *frontend, const qn_method_t *method, json_writer_t *writer)
{
    json_t *example = example_for(method, &frontend->model);
    if (!example) return;
    json_put_open(writer, '{');
    json_put_member_string(writer, "name", method->verb);
    json_put_member_string(writer, "doc", method->doc);
    json_put_member_bool(writer, "changes", method->changes);
    json_put_member_bool(writer, "idempotent", !method->once);
    json_put_member_unsigned(writer, "deadline_s", method->seconds);
    put_text_json(writer, "request", method->request_schema);
    put_text_json(writer, "reply", method->reply_schema);
    put_tree(writer, "example", example);
    json_put_close(writer, '}');
}

static void put_methods(const frontend_t *frontend, qn_service_t service, json_writer_t *writer)
{
    json_put_key(writer, "methods");
    json_put_open(writer, '[');
    for (size_t i = 1; i < QN_METHOD_COUNT; i++)
        if (qn_methods[i].service == service) put_method(frontend, &qn_methods[i], writer);
    json_put_close(writer, ']');
}

void describe_examples(const frontend_t *frontend, qn_service_t service, reply_buffer_t *out)
{
    json_writer_t writer = json_writer_on(out);
    json_put_open(&writer, '{');
    json_put_member_string(&writer, "service", qn_service_enum.names[service]);
    json_put_key(&writer, "examples");
    json_put_open(&writer, '[');
    for (size_t i = 1; i < QN_METHOD_COUNT; i++) {
        const qn_method_t *method = &qn_methods[i];
        json_t *example = method->service == service ? example_for(method, &frontend->model) : NULL;
        if (!example) continue;
        json_put_open(&writer, '{');
        json_put_member_string(&writer, "method", method->verb);
        json_put_member_string(&writer, "doc", method->doc);
        put_tree(&writer, "request", example);
        put_text_json(&writer, "reply", method->reply_example);
        json_put_close(&writer, '}');
    }
    json_put_close(&writer, ']');
    json_put_close(&writer, '}');
}

/* ---- messages ---- */

static void put_messages(qn_service_t service, bool in, json_writer_t *writer)
{
    json_put_key(writer, in ? "in" : "out");
    json_put_open(writer, '[');
    for (int type = 1; type < QN_MESSAGE_COUNT; type++) {
        const qn_message_doc_t *said = &qn_message_docs[type];
        if (!((in ? said->to : said->from) & (1u << service))) continue;
        json_put_open(writer, '{');
        json_put_member_string(writer, "name", qn_message_name((qn_message_type_t)type));
        json_put_member_string(writer, "identifier", qn_wire_type((qn_message_type_t)type)->identifier);
        json_put_member_string(writer, "doc", said->doc);
        json_put_close(writer, '}');
    }
    json_put_close(writer, ']');
}

/* ---- a service ---- */

static void put_latency(const qn_stat_row_t *row, json_writer_t *writer)
{
    json_put_key(writer, row->name);
    json_put_open(writer, '{');
    json_put_member_unsigned(writer, "count", row->value);
    json_put_member_unsigned(writer, "mean_ns", row->value ? row->sum_ns / row->value : 0);
    json_put_member_unsigned(writer, "p50_ns", qn_stat_quantile_ns(row, 0.5));
    json_put_member_unsigned(writer, "p99_ns", qn_stat_quantile_ns(row, 0.99));
    json_put_close(writer, '}');
}

/* The rows of its statistics page by name: numbers, and latencies in ns. Rows with labels are for /metrics. */
static void put_figures(const frontend_t *frontend, qn_service_t service, json_writer_t *writer)
{
    qn_stats_view_t *view = NULL;
    json_put_key(writer, "figures");
    json_put_open(writer, '{');
    if (qn_stats_open(qn_daemon_run_dir(frontend->daemon), qn_service_enum.names[service], &view) == QN_OK) {
        for (size_t i = 0; i < qn_stats_row_count(view); i++) {
            qn_stat_row_t row;
            qn_stats_read_row(view, i, &row);
            if (row.name[0] == '\0' || strchr(row.name, '{')) continue;
            if (row.kind == QN_STAT_HISTOGRAM_NS)
                put_latency(&row, writer);
            else
                json_put_member_unsigned(writer, row.name, row.value);
        }
        qn_stats_close(&view);
    }
    json_put_close(writer, '}');
}

void describe_service(const frontend_t *frontend, qn_service_t service, reply_buffer_t *out)
{
    json_writer_t writer = json_writer_on(out);
    json_put_open(&writer, '{');
    frontend_put_service(frontend, service, &writer);
    put_methods(frontend, service, &writer);
    json_put_key(&writer, "messages");
    json_put_open(&writer, '{');
    put_messages(service, true, &writer);
    put_messages(service, false, &writer);
    json_put_close(&writer, '}');
    json_put_key(&writer, "health");
    json_put_open(&writer, '{');
    frontend_put_health(frontend, service, &writer);
    put_figures(frontend, service, &writer);
    json_put_close(&writer, '}');
    json_put_close(&writer, '}');
}

/* ---- what the tokenizer can do ---- */

static void learn(void *state, call_t *call, const void *reply)
{
    frontend_t *frontend = state;
    const qn_tokenizer_info_reply_t *info = reply;
    (void)call; /* one that failed: the tokenizer is gone, and the next one is asked */
    if (info) frontend->model.has_text = info->text;
}

void describe_meet_tokenizer(frontend_t *frontend)
{
    qn_tokenizer_info_t message = {0};
    frontend_call(frontend, &qn_methods[QN_METHOD_TOKENIZER_INFO], &message, NULL, ROUTE_NONE, learn, NULL);
}
