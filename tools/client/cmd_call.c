/* What is this?      quintet call: any method of any service, through the frontend or straight to its socket.
 * State owned:       none beyond the run.
 * Must never:        know a method by name: the table is made from schemas/.
 * Read next:         common/wire/method.h, direct_call.h, services/frontend/methods/. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "common/assert.h"
#include "common/clock.h"
#include "common/limits.h"
#include "common/wire/wire.h"
#include "qn_methods.h"
#include "services/frontend/methods/method_json.h"
#include "tools/cli.h"
#include "tools/client/direct_call.h"
#include "tools/client/http_client.h"

static struct {
    const char *url;
    bool direct, research, json, list, example;
    uint64_t repeat;
    qn_config_arguments_t configuration;
} options;

static const cli_option_t option_table[] = {
    {"list", 'l', CLI_FLAG, &options.list, NULL, NULL, "list the methods, of SERVICE or of all", 0, 0},
    {"example", 0, CLI_FLAG, &options.example, NULL, NULL, "print an example of METHOD's JSON instead of calling it", 0,
     0},
    {"research", 0, CLI_FLAG, &options.research, NULL, NULL, "with metadata: times, hops, reasons", 0, 0},
    {"direct", 0, CLI_FLAG, &options.direct, NULL, NULL, "speak to the service over its socket, without the frontend",
     0, 0},
    {"repeat", 0, CLI_COUNT, &options.repeat, NULL, "N", "with --direct: call N times and print how long that took", 1,
     1e6},
    {"json", 'j', CLI_FLAG, &options.json, NULL, NULL, "one line of JSON", 0, 0},
    {"url", 0, CLI_TEXT, &options.url, NULL, "URL", "server: http://host:port or unix:PATH", 0, 0},
};

static const cli_command_t command = {
    .name = "call",
    .arguments = "[OPTION]... SERVICE METHOD [JSON | @FILE | -]",
    .summary = "Calls a method of a service and prints its reply; without arguments it lists all methods.",
    .details =
        "No JSON is the same as {}. --direct finds the service by the configuration (--config, --set, --run-dir).\n\n"
        "examples:\n"
        "  quintet call scheduler queue '{\"limit\": 10}'\n"
        "  quintet call memory lookup @ids.json\n"
        "  quintet call --direct memory usage",
    .options = option_table,
    .option_count = sizeof option_table / sizeof *option_table,
    .configuration = &options.configuration,
};

/* ---- lists ---- */

static bool is_listed(const qn_method_t *method, const char *service)
{
    return !service || strcmp(qn_service_enum.names[method->service], service) == 0;
}

static json_t *method_json(const qn_method_t *method)
{
    return json_pack("{s:s,s:s,s:s,s:b,s:b,s:i,s:o,s:o,s:o}", "service", qn_service_enum.names[method->service], "name",
                     method->verb, "doc", method->doc, "changes", method->changes, "idempotent", !method->once,
                     "deadline_s", method->seconds, "request", json_loads(method->request_schema, 0, NULL), "reply",
                     json_loads(method->reply_schema, 0, NULL), "example", json_loads(method->example, 0, NULL));
}

static void print_methods(const char *service)
{
    json_t *all = json_array();
    qn_service_t last = QN_SERVICE_NONE;
    for (size_t i = 1; i < QN_METHOD_COUNT; i++) {
        const qn_method_t *method = &qn_methods[i];
        if (!is_listed(method, service)) continue;
        if (options.json) {
            json_array_append_new(all, method_json(method));
            continue;
        }
        if (method->service != last) printf("%s%s\n", last ? "\n" : "", qn_service_enum.names[method->service]);
        last = method->service;
        printf("  %-16s %s\n", method->verb, method->doc);
    }
    if (options.json) cli_print_json(all);
    json_decref(all);
}

/* ---- what is called ---- */

static int find_service(const char *name, qn_service_t *ret_service)
{
    for (int i = QN_SERVICE_FRONTEND; i <= QN_SERVICE_COMPUTE; i++) {
        *ret_service = (qn_service_t)i;
        if (strcmp(qn_service_enum.names[i], name) == 0) return EX_OK;
    }
    const char *nearest = cli_nearest(name, &qn_service_enum.names[QN_SERVICE_FRONTEND], 5);
    return cli_usage("there is no service \"%s\"%s%s%s", name, nearest ? "; did you mean \"" : "",
                     nearest ? nearest : "", nearest ? "\"?" : "");
}

static int find_method(const char *service_name, const char *verb, const qn_method_t **ret_method)
{
    qn_service_t service;
    int status = find_service(service_name, &service);
    if (status) return status;
    *ret_method = qn_method_find(service, verb, strlen(verb));
    if (*ret_method) return EX_OK;
    const qn_method_t *nearest = qn_method_nearest(service, verb);
    return cli_usage("%s has no method \"%s\"%s%s%s; quintet call --list %s", service_name, verb,
                     nearest ? "; did you mean \"" : "", nearest ? nearest->verb : "", nearest ? "\"?" : "",
                     service_name);
}

/* The argument, a file or standard input. */
static int read_body(const char *argument, json_t **ret_body)
{
    json_error_t why;
    size_t bytes = argument ? strlen(argument) : 0;
    char *text = NULL;
    *ret_body = NULL;
    if (!argument) return EX_OK;
    if (strcmp(argument, "-") == 0 || argument[0] == '@') {
        text = cli_read_all(argument[0] == '@' ? argument + 1 : "-", QN_TEXT_BYTES_MAX, &bytes);
        if (!text) return cli_fail(EX_NOINPUT, "%s", qn_err_text());
    }
    *ret_body = json_loadb(text ? text : argument, bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &why);
    free(text);
    if (*ret_body && !json_is_object(*ret_body)) return cli_fail(EX_DATAERR, "the JSON must be an object");
    return *ret_body ? EX_OK
                     : cli_fail(EX_DATAERR, "it is no JSON: %s (line %d, column %d)", why.text, why.line, why.column);
}

static void print_reply(const json_t *reply)
{
    if (options.json) {
        cli_print_json(reply);
        return;
    }
    char *text = json_dumps(reply, JSON_INDENT(2) | JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));
    cli_print_text(text, strlen(text));
    putchar('\n');
    free(text);
}

/* ---- calling ---- */

static int call_frontend(const qn_method_t *method, const json_t *body)
{
    char path[128];
    http_client_t *client = NULL;
    http_reply_t reply;
    qn_err_t err = http_client_open(options.url, -1, &client);
    if (err) return cli_fail_err(err);
    snprintf(path, sizeof path, "/services/%s/%s", qn_service_enum.names[method->service], method->verb);
    http_call_t call = {.method = "POST",
                        .path = path,
                        .body = body,
                        .header = options.research ? "x-quintet-mode: research" : "x-quintet-mode: production",
                        .timeout_ms = (method->seconds + 5L) * 1000};
    err = http_client_call(client, &call, &reply);
    int status = http_client_explain(client, err, &reply);
    if (status == EX_OK) print_reply(reply.json);
    http_reply_fini(&reply);
    http_client_close(&client);
    return status;
}

static json_t *reply_json(const qn_method_t *method, const void *reply)
{
    reply_buffer_t text = {0};
    json_writer_t writer = json_writer_on(&text);
    method_json_write(qn_wire_type(method->reply), reply, &writer);
    json_t *json = json_loadb(text.data, text.bytes, JSON_ALLOW_NUL, NULL);
    reply_buffer_fini(&text);
    return json;
}

static int explain_refusal(const direct_reply_t *reply)
{
    json_t *error = json_pack("{s:s,s:s}", "type", "refusal", "code", "refused");
    json_object_set_new(error, "message", json_stringn(reply->text.data ? reply->text.data : "", reply->text.bytes));
    json_object_set_new(error, "param",
                        reply->param.data ? json_stringn(reply->param.data, reply->param.bytes) : json_null());
    int status = http_client_explain_error(error, reply->status);
    json_decref(error);
    return status;
}

static int compare_ns(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
    return (left > right) - (left < right);
}

/* {"count", "p50_us", "p99_us", "mean_us"}: of the whole way, JSON left out. */
static int time_calls(direct_caller_t *caller, const qn_method_t *method, void *request)
{
    uint64_t *times = calloc(options.repeat, sizeof *times), sum = 0;
    QN_ASSERT(times != NULL);
    for (size_t i = 0; i < options.repeat; i++) {
        qn_arena_t arena;
        direct_reply_t reply;
        qn_arena_init(&arena, 0);
        uint64_t begin_ns = qn_clock_now_ns();
        qn_err_t err = direct_call(caller, method, request, &arena, &reply);
        times[i] = qn_clock_now_ns() - begin_ns;
        sum += times[i];
        int status = err ? cli_fail_err(err) : reply.reply ? EX_OK : explain_refusal(&reply);
        qn_arena_fini(&arena);
        if (status) return status;
    }
    qsort(times, options.repeat, sizeof *times, compare_ns);
    size_t half = options.repeat / 2, most = options.repeat - 1 - options.repeat / 100;
    json_t *told =
        json_pack("{s:I,s:f,s:f,s:f}", "count", (json_int_t)options.repeat, "p50_us", (double)times[half] / 1e3,
                  "p99_us", (double)times[most] / 1e3, "mean_us", (double)sum / 1e3 / (double)options.repeat);
    print_reply(told);
    json_decref(told);
    free(times);
    return EX_OK;
}

static int ask(direct_caller_t *caller, const qn_method_t *method, void *request, qn_arena_t *arena)
{
    direct_reply_t reply;
    if (options.repeat) return time_calls(caller, method, request);
    if (direct_call(caller, method, request, arena, &reply)) return cli_fail(EX_TEMPFAIL, "%s", qn_err_text());
    if (!reply.reply) return explain_refusal(&reply);
    json_t *json = reply_json(method, reply.reply);
    print_reply(json);
    json_decref(json);
    return EX_OK;
}

static int call_direct(const qn_method_t *method, const json_t *body)
{
    qn_arena_t arena;
    qn_config_t *config = NULL;
    const qn_config_arguments_t *given = &options.configuration;
    direct_caller_t *caller = NULL;
    void *request;
    if (method->service == QN_SERVICE_FRONTEND)
        return cli_usage("the frontend has no socket but its HTTP one: leave --direct out");
    qn_err_t err = qn_config_load(given->path, given->sets, given->set_count, given->run_dir, &config);
    if (err) return cli_fail_err(err);
    qn_arena_init(&arena, 0);
    int status = EX_OK;
    if (qn_method_read(method, body, &arena, &request))
        status = cli_fail(EX_DATAERR, "%s", qn_err_text());
    else if ((err = direct_open(qn_config_values(config), method->service, &caller)))
        status = cli_fail(err == QN_ERR_NOT_FOUND ? EX_UNAVAILABLE : qn_err_exit_status(err), "%s", qn_err_text());
    else
        status = ask(caller, method, request, &arena);
    direct_close(&caller);
    qn_arena_fini(&arena);
    qn_config_free(&config);
    return status;
}

static int call_method(const qn_method_t *method, const char *argument)
{
    json_t *body = NULL;
    int status = read_body(argument, &body);
    if (!status) status = options.direct ? call_direct(method, body) : call_frontend(method, body);
    json_decref(body);
    return status;
}

int cmd_call(int argc, char **argv)
{
    int status = cli_parse(&command, &argc, argv);
    const qn_method_t *method = NULL;
    qn_service_t service;
    if (status != -1) return status;
    if (options.direct && options.url) return cli_usage("--direct speaks to no server: leave out --url");
    if (options.repeat && !options.direct) return cli_usage("--repeat is for --direct");
    if (options.direct && options.research) return cli_usage("--research is the frontend's: leave out --direct");
    if (options.list || argc < 3) {
        if (argc > 1 && (status = find_service(argv[1], &service))) return status;
        print_methods(argc > 1 ? argv[1] : NULL);
        return cli_finish_output();
    }
    if (argc > 4) return cli_usage("the JSON must be one argument: quote it");
    status = find_method(argv[1], argv[2], &method);
    if (status) return status;
    if (options.example) {
        json_t *example = json_loads(method->example, 0, NULL);
        print_reply(example);
        json_decref(example);
        return cli_finish_output();
    }
    status = call_method(method, argc == 4 ? argv[3] : NULL);
    int output = cli_finish_output();
    return status ? status : output;
}
