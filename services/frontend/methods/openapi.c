/* What is this?      OpenAPI 3.1 from the tables of routes, forms and methods.
 * State owned:       none.
 * Must never:        know a route or a method by name beyond its kind of answer.
 * Read next:         router.h (rows), forms.def, common/wire/method.h; https://spec.openapis.org/oas/v3.1.0. */
#include "services/frontend/methods/openapi.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/build.h"
#include "common/wire/wire.h"
#include "qn_methods.h"
#include "services/frontend/methods/examples.h"
#include "services/frontend/research/forms.h"

static const struct {
    unsigned bit;
    const char *name;
} verbs[] = {{ROUTER_GET, "get"}, {ROUTER_POST, "post"}, {ROUTER_PUT, "put"}, {ROUTER_DELETE, "delete"}};
#define VERB_COUNT (sizeof verbs / sizeof verbs[0])

static void put_raw(json_writer_t *writer, const char *key, const char *json)
{
    json_put_key(writer, key);
    json_put_raw(writer, json, strlen(json));
}

/* One thing that can be done at one path. What is NULL is not said, or known by openapi_bodies.c. */
typedef struct {
    const char *verb, *path; /* path with {names} */
    const char *id, *tag, *doc, *detail;
    const qn_method_t *query;    /* the scalars of its request may stand in the query */
    const char *own_query;       /* {"name": schema, ...} */
    const char *request, *reply; /* JSON Schema */
    char *example;               /* of the request; owned */
    const char *reply_example;
    route_t route;
} operation_t;

/* ---- parts ---- */

/* "post_v1_completions": unique, since path and verb are. */
static void make_id(const char *verb, const char *path, char *ret_id, size_t room)
{
    size_t used = (size_t)snprintf(ret_id, room, "%s", verb);
    for (; *path && used + 1 < room; path++) {
        if (isalnum((unsigned char)*path))
            ret_id[used++] = *path;
        else if (ret_id[used - 1] != '_')
            ret_id[used++] = '_';
    }
    while (ret_id[used - 1] == '_')
        used--;
    ret_id[used] = '\0';
}

static void put_parameter(json_writer_t *writer, const char *name, const char *where, bool required, const char *schema)
{
    json_put_open(writer, '{');
    json_put_member_string(writer, "name", name);
    json_put_member_string(writer, "in", where);
    json_put_member_bool(writer, "required", required);
    put_raw(writer, "schema", schema);
    json_put_close(writer, '}');
}

static void put_path_parameters(const char *path, json_writer_t *writer)
{
    static const char services[] =
        "{\"type\":\"string\",\"enum\":[\"frontend\",\"tokenizer\",\"scheduler\",\"memory\",\"compute\"]}";
    for (const char *open = strchr(path, '{'); open; open = strchr(open + 1, '{')) {
        char name[QN_NAME_MAX];
        snprintf(name, sizeof name, "%.*s", (int)strcspn(open + 1, "}"), open + 1);
        put_parameter(writer, name, "path", true, strcmp(name, "service") == 0 ? services : "{\"type\":\"string\"}");
    }
}

/* A GET form takes the scalars of its method's request in the query. */
static void put_query_parameters(const qn_method_t *method, json_writer_t *writer)
{
    json_t *schema = json_loads(method->request_schema, 0, NULL), *property;
    const char *name;
    json_object_foreach(json_object_get(schema, "properties"), name, property)
    {
        json_t *types = json_object_get(property, "type"); /* "integer", or with null, which a query cannot say */
        bool or_null = json_is_array(types);
        const char *type = json_string_value(or_null ? json_array_get(types, 0) : types);
        if (strcmp(type, "array") == 0 || strcmp(type, "object") == 0) continue;
        json_object_set_new(property, "type", json_string(type)); /* frees `types` */
        json_t *values = json_object_get(property, "enum");
        if (values && or_null) json_array_remove(values, json_array_size(values) - 1);
        char *text = json_dumps(property, JSON_COMPACT);
        put_parameter(writer, name, "query", false, text);
        free(text);
    }
    json_decref(schema);
}

static bool has_research(const operation_t *operation)
{
    switch (operation->route) {
    case ROUTE_HEALTH:
    case ROUTE_READY:
    case ROUTE_METRICS:
    case ROUTE_OPENAPI:
    case ROUTE_DOCS:
    case ROUTE_ABORT_REQUEST: return false;
    default: return true;
    }
}

/* {"name": schema, ...} */
static void put_own_query(const char *query, json_writer_t *writer)
{
    json_t *all = json_loads(query, 0, NULL), *schema;
    const char *name;
    json_object_foreach(all, name, schema)
    {
        char *text = json_dumps(schema, JSON_COMPACT);
        put_parameter(writer, name, "query", false, text);
        free(text);
    }
    json_decref(all);
}

static void put_parameters(const operation_t *operation, json_writer_t *writer)
{
    json_put_key(writer, "parameters");
    json_put_open(writer, '[');
    put_path_parameters(operation->path, writer);
    if (operation->own_query) put_own_query(operation->own_query, writer);
    if (operation->query && strcmp(operation->verb, "get") == 0) put_query_parameters(operation->query, writer);
    if (has_research(operation))
        put_parameter(writer, "mode", "query", false, "{\"type\":\"string\",\"enum\":[\"production\",\"research\"]}");
    json_put_close(writer, ']');
}

/* ---- bodies and answers ---- */

/* Whether a body without members, or none, is refused. */
static bool needs_body(const operation_t *operation)
{
    if (!operation->request) return operation->route != ROUTE_ABORT_REQUEST;
    json_t *schema = json_loads(operation->request, 0, NULL);
    bool needs = json_object_get(schema, "required") || json_object_get(schema, "minProperties");
    json_decref(schema);
    return needs;
}

/* The schema of its body in *ret_schema; false: it takes none. */
static bool write_schema(const operation_t *operation, reply_buffer_t *ret_schema)
{
    json_writer_t writer = json_writer_on(ret_schema);
    if (strcmp(operation->verb, "get") == 0) return false;
    if (!operation->request) return openapi_put_body(operation->route, &writer);
    reply_buffer_text(ret_schema, operation->request);
    return true;
}

static void put_body(const operation_t *operation, const served_model_t *model, json_writer_t *writer)
{
    reply_buffer_t schema = {0};
    if (write_schema(operation, &schema)) {
        json_put_key(writer, "requestBody");
        json_put_open(writer, '{');
        json_put_member_bool(writer, "required", needs_body(operation));
        json_put_key(writer, "content");
        json_put_open(writer, '{');
        json_put_key(writer, "application/json");
        json_put_open(writer, '{');
        json_put_key(writer, "schema");
        json_put_raw(writer, schema.data, schema.bytes);
        if (operation->example) put_raw(writer, "example", operation->example);
        if (!operation->request) {
            json_put_key(writer, "example");
            openapi_put_example(operation->route, model, writer);
        }
        json_put_close(writer, '}');
        json_put_close(writer, '}');
        json_put_close(writer, '}');
    }
    reply_buffer_fini(&schema);
}

static void put_answer(json_writer_t *writer, const char *status, const char *what, const char *content)
{
    json_put_key(writer, status);
    json_put_open(writer, '{');
    json_put_member_string(writer, "description", what);
    if (content) put_raw(writer, "content", content);
    json_put_close(writer, '}');
}

#define JSON_OF(schema) "{\"application/json\":{\"schema\":" schema "}}"
#define ANY_JSON JSON_OF("{\"type\":\"object\"}")
#define ERROR JSON_OF("{\"$ref\":\"#/components/schemas/Error\"}")

/* What a route that is no method answers. */
static const char *content_of(route_t route)
{
    switch (route) {
    case ROUTE_METRICS: return "{\"text/plain\":{\"schema\":{\"type\":\"string\"}}}";
    case ROUTE_DOCS: return "{\"text/html\":{\"schema\":{\"type\":\"string\"}}}";
    case ROUTE_COMPLETIONS:
    case ROUTE_GENERATE:
        return "{\"application/json\":{\"schema\":{\"type\":[\"object\",\"array\"]}},"
               "\"text/event-stream\":{\"schema\":{\"type\":\"string\"}}}";
    default: return ANY_JSON;
    }
}

static void put_method_answer(const operation_t *operation, json_writer_t *writer)
{
    reply_buffer_t content = {0};
    reply_buffer_printf(&content,
                        "{\"application/json\":{\"schema\":{\"anyOf\":[%s,"
                        "{\"$ref\":\"#/components/schemas/Research\"}]}",
                        operation->reply);
    if (operation->reply_example) reply_buffer_printf(&content, ",\"example\":%s", operation->reply_example);
    reply_buffer_text(&content, "}}");
    reply_buffer_append(&content, "", 1);
    put_answer(writer, "200", "The reply; in research mode wrapped with metadata.", content.data);
    reply_buffer_fini(&content);
}

static void put_answers(const operation_t *operation, json_writer_t *writer)
{
    json_put_key(writer, "responses");
    json_put_open(writer, '{');
    if (operation->reply)
        put_method_answer(operation, writer);
    else
        put_answer(writer, "200", "It was done.", content_of(operation->route));
    if (operation->route == ROUTE_HEALTH || operation->route == ROUTE_READY)
        put_answer(writer, "503", "Some service is not ready.", ANY_JSON);
    put_answer(writer, "4XX", "The request cannot be done; param names the field.", ERROR);
    put_answer(writer, "5XX", "A service is down or behind (503, with Retry-After), or failed.", ERROR);
    json_put_close(writer, '}');
}

static void put_operation(const operation_t *operation, const served_model_t *model, json_writer_t *writer)
{
    json_put_key(writer, operation->verb);
    json_put_open(writer, '{');
    json_put_member_string(writer, "operationId", operation->id);
    json_put_member_string(writer, "summary", operation->doc);
    if (operation->detail) json_put_member_string(writer, "description", operation->detail);
    json_put_key(writer, "tags");
    json_put_open(writer, '[');
    json_put_string(writer, operation->tag);
    json_put_close(writer, ']');
    put_parameters(operation, writer);
    put_body(operation, model, writer);
    put_answers(operation, writer);
    json_put_close(writer, '}');
}

/* ---- paths ---- */

#define AN_OBJECT "{\"type\":\"object\"}"

/* Fills in what a method takes and gives. False: the model cannot do it. */
static bool describe_method(const qn_method_t *method, const served_model_t *model, operation_t *operation)
{
    json_t *example = example_for(method, model);
    operation->request = method->request_schema;
    operation->reply = method->reply_schema;
    operation->reply_example = method->reply_example;
    if (!example) return false;
    operation->example = json_dumps(example, JSON_COMPACT | JSON_REAL_PRECISION(9));
    json_decref(example);
    return true;
}

static void describe_form(const form_row_t *form, const served_model_t *model, operation_t *operation)
{
    operation->tag = "research";
    operation->detail = qn_methods[form->method].doc;
    if (form->run) {
        operation->request = form->request ? form->request : AN_OBJECT;
        operation->reply = form->reply ? form->reply : AN_OBJECT;
        operation->example = form->example ? strdup(form->example) : NULL;
        operation->own_query = form->query;
    } else {
        operation->query = &qn_methods[form->method];
        describe_method(operation->query, model, operation);
    }
}

/* All rows of a path, which stand together. Returns how many. */
static size_t put_path(const router_row_t *rows, size_t left, const served_model_t *model, json_writer_t *writer)
{
    char path[256], id[256];
    size_t count = 0;
    snprintf(path, sizeof path, "%s%s", rows->path, rows->prefix ? "{model}" : "");
    json_put_key(writer, path);
    json_put_open(writer, '{');
    for (; count < left && strcmp(rows[count].path, rows->path) == 0; count++) {
        const form_row_t *form = form_of(rows[count].route);
        for (size_t i = 0; i < VERB_COUNT; i++) {
            operation_t operation = {.verb = verbs[i].name,
                                     .path = path,
                                     .id = id,
                                     .tag = "clients",
                                     .doc = rows[count].doc,
                                     .route = rows[count].route};
            if (!(rows[count].methods & verbs[i].bit)) continue;
            make_id(verbs[i].name, path, id, sizeof id);
            if (form) describe_form(form, model, &operation);
            put_operation(&operation, model, writer);
            free(operation.example);
        }
    }
    json_put_close(writer, '}');
    return count;
}

/* The route of methods is listed once per method that the model can do. */
static void put_methods(const served_model_t *model, json_writer_t *writer)
{
    for (size_t i = 1; i < QN_METHOD_COUNT; i++) {
        const qn_method_t *method = &qn_methods[i];
        char path[256];
        operation_t operation = {.verb = "post",
                                 .path = path,
                                 .id = method->name,
                                 .tag = qn_service_enum.names[method->service],
                                 .doc = method->doc,
                                 .route = ROUTE_METHOD};
        if (!describe_method(method, model, &operation)) continue;
        snprintf(path, sizeof path, "/services/%s/%s", qn_service_enum.names[method->service], method->verb);
        json_put_key(writer, path);
        json_put_open(writer, '{');
        put_operation(&operation, model, writer);
        json_put_close(writer, '}');
        free(operation.example);
    }
}

static void put_paths(const served_model_t *model, json_writer_t *writer)
{
    size_t count;
    const router_row_t *rows = router_rows(&count);
    json_put_key(writer, "paths");
    json_put_open(writer, '{');
    for (size_t i = 0; i < count;) {
        if (rows[i].route == ROUTE_METHOD) {
            put_methods(model, writer);
            i++;
        } else {
            i += put_path(rows + i, count - i, model, writer);
        }
    }
    json_put_close(writer, '}');
}

static const char components[] =
    "{\"schemas\":{"
    "\"Error\":{\"type\":\"object\",\"required\":[\"error\"],\"properties\":{\"error\":{\"type\":\"object\","
    "\"required\":[\"message\",\"type\",\"param\",\"code\"],\"properties\":{\"message\":{\"type\":\"string\"},"
    "\"type\":{\"type\":\"string\"},\"param\":{\"type\":[\"string\",\"null\"]},\"code\":{\"type\":\"string\"}}}}},"
    "\"Research\":{\"type\":\"object\",\"required\":[\"data\",\"metadata\"],\"properties\":{\"data\":{},"
    "\"metadata\":{\"type\":\"object\",\"required\":[\"service\",\"method\",\"execution_time_us\",\"hops\",\"epoch\","
    "\"build\",\"algorithm_reasoning\"],\"properties\":{\"service\":{\"type\":\"string\"},"
    "\"method\":{\"type\":\"string\"},\"execution_time_us\":{\"type\":\"number\"},\"hops\":{\"type\":\"array\"},"
    "\"epoch\":{\"type\":\"integer\"},\"build\":{\"type\":\"string\"},"
    "\"algorithm_reasoning\":{\"type\":\"array\",\"items\":{\"type\":\"string\"}}}}}}}}";

void openapi_write(const served_model_t *model, reply_buffer_t *out)
{
    json_writer_t writer = json_writer_on(out);
    json_put_open(&writer, '{');
    json_put_member_string(&writer, "openapi", "3.1.0");
    json_put_key(&writer, "info");
    json_put_open(&writer, '{');
    json_put_member_string(&writer, "title", "Quintet");
    json_put_member_string(&writer, "version", qn_build_id());
    json_put_member_string(&writer, "description",
                           "An LLM inference engine of five services. Every method of every service is a route.");
    json_put_close(&writer, '}');
    put_raw(&writer, "servers", "[{\"url\":\"/\"}]");
    put_paths(model, &writer);
    put_raw(&writer, "components", components);
    json_put_close(&writer, '}');
}
