/* What is this?      The schemas' examples, fitted to the model by what each field is `of`.
 * State owned:       none.
 * Must never:        know a method by name.
 * Read next:         common/wire/method.h (qn_live_kind_t), schemas/README.md ("A method"). */
#include "services/frontend/methods/examples.h"

#include <string.h>

/* Numbers below `limit`, in place; 0: nothing is known, and all stay. */
static void fit_numbers(json_t *value, uint32_t limit)
{
    size_t index;
    json_t *element;
    if (limit == 0) return;
    json_array_foreach(value, index, element) fit_numbers(element, limit);
    if (json_is_integer(value) && json_integer_value(value) >= (json_int_t)limit)
        json_integer_set(value, json_integer_value(value) % (json_int_t)limit);
}

/* False: the model cannot do it. */
static bool fit_field(json_t *example, const qn_live_field_t *field, const served_model_t *model)
{
    json_t *value = json_object_get(example, field->field);
    if (!value) return true;
    switch (field->kind) {
    case QN_LIVE_TEXT: return model->has_text;
    case QN_LIVE_TOKEN: fit_numbers(value, model->vocab_size); break;
    case QN_LIVE_LAYER: fit_numbers(value, model->layers); break;
    case QN_LIVE_HEAD: fit_numbers(value, model->heads); break;
    case QN_LIVE_REQUEST: json_object_del(example, field->field); break;
    case QN_LIVE_MODEL: json_object_set_new(example, field->field, json_string(model->id)); break;
    }
    return true;
}

json_t *example_for(const qn_method_t *method, const served_model_t *model)
{
    if (method->needs_text && !model->has_text) return NULL;
    json_t *example = json_loads(method->example, 0, NULL);
    for (size_t i = 0; i < method->live_count; i++) {
        if (fit_field(example, &method->live[i], model)) continue;
        json_decref(example);
        return NULL;
    }
    return example;
}
