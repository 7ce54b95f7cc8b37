/* What is this?      The forms of /parallel: tensors as nested lists, numbers or names, for compute's methods.
 * State owned:       none; a form's lives in its arena.
 * Must never:        compute; change a number.
 * Read next:         forms.h, schemas/compute/compute_execute.fbs, services/compute/methods_execute.c. */
#include <string.h>

#include "services/frontend/methods/method_body.h"
#include "services/frontend/methods/method_json.h"
#include "services/frontend/research/forms.h"

#define RANK_MAX 8
#define VALUES_MAX 1048576u

static void answer(form_t *form, call_t *call, const void *reply)
{
    reply_buffer_t data = {0};
    json_writer_t writer = json_writer_on(&data);
    method_json_write(qn_wire_type(qn_methods[form->row->method].reply), reply, &writer);
    form_answer(form, call, reply, &data);
}

/* Sizes of a nested list, by its first elements. Returns its rank, 0 when it is none. */
static unsigned sizes_of(const json_t *list, size_t sizes[RANK_MAX])
{
    unsigned rank = 0;
    for (; json_is_array(list) && json_array_size(list) > 0 && rank < RANK_MAX; list = json_array_get(list, 0))
        sizes[rank++] = json_array_size(list);
    return json_is_number(list) ? rank : 0;
}

/* Appends the numbers of a nested list; false: it is ragged, or not of numbers. */
static bool flatten(const json_t *list, const size_t *sizes, unsigned rank, json_t *values)
{
    size_t index;
    json_t *element;
    if (rank == 0) {
        if (!json_is_number(list) || json_array_size(values) == VALUES_MAX) return false;
        return json_array_append(values, (json_t *)list) == 0;
    }
    if (json_array_size(list) != sizes[0]) return false;
    json_array_foreach(list, index, element) if (!flatten(element, sizes + 1, rank - 1, values)) return false;
    return true;
}

/* A nested list becomes {"shape", "values"}. Returns owned; NULL: it is no tensor. */
static json_t *from_list(const json_t *list)
{
    size_t sizes[RANK_MAX];
    unsigned rank = sizes_of(list, sizes);
    json_t *values = json_array(), *shape = json_array();
    for (unsigned i = 0; i < rank; i++)
        json_array_append_new(shape, json_integer((json_int_t)sizes[i]));
    if (rank > 0 && flatten(list, sizes, rank, values))
        return json_pack("{s:o, s:o}", "shape", shape, "values", values);
    json_decref(values);
    json_decref(shape);
    return NULL;
}

/* Member `name` is a nested list, {"shape", "values"}, {"tensor_id"} or the id of a kept tensor, which is called `id_name` for
 * the method. False: the form was answered. */
static bool read_tensor(form_t *form, const char *name, const char *id_name)
{
    json_t *value = json_object_get(form->body, name);
    const json_t *id = json_is_object(value) ? json_object_get(value, "tensor_id") : value;
    if (!value || json_is_null(value)) return true;
    if (json_is_string(id)) {
        json_object_set(form->body, id_name, (json_t *)id);
        json_object_del(form->body, name);
        return true;
    }
    if (!json_is_array(value)) return true; /* the schema judges it */
    json_t *tensor = from_list(value);
    if (!tensor) {
        form_fail(form, 400, name,
                  "%s: a nested list of numbers, of one size in each dimension, %d dimensions and %u numbers "
                  "at most",
                  name, RANK_MAX, VALUES_MAX);
        return false;
    }
    json_object_set_new(form->body, name, tensor);
    return true;
}

static void call_method(form_t *form)
{
    http_error_t error;
    method_body_t body = {.method = &qn_methods[form->row->method]};
    if (method_body_read(&body, form->body, &error))
        form_call(form, form->row->method, body.request, answer);
    else
        form_fail(form, error.status, error.param[0] ? error.param : NULL, "%s", error.message);
    method_body_fini(&body);
}

void form_parallel_tensor_split(form_t *form)
{
    if (read_tensor(form, "tensor", "tensor_id")) call_method(form);
}

void form_parallel_execute(form_t *form)
{
    if (read_tensor(form, "tensor", "tensor_id") && read_tensor(form, "with", "with_tensor_id")) call_method(form);
}

/* DELETE /parallel/all is all of them. */
void form_parallel_drop(form_t *form)
{
    if (strcmp(form->segments[0], "all") == 0)
        json_object_set_new(form->body, "all", json_true());
    else
        json_object_set_new(form->body, "tensor_id", json_string(form->segments[0]));
    call_method(form);
}
