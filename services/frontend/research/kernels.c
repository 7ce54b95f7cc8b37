/* What is this?      PUT /kernels/{op}: the operation is in the path, the implementation in the body.
 * State owned:       none.
 * Must never:        know which operations there are: compute does.
 * Read next:         forms.h, schemas/compute/compute_choose_kernel.fbs. */
#include <string.h>

#include "services/frontend/methods/method_json.h"
#include "services/frontend/research/forms.h"

static void show(form_t *form, call_t *call, const void *reply)
{
    reply_buffer_t data = {0};
    json_writer_t writer = json_writer_on(&data);
    method_json_write(qn_wire_type(qn_methods[QN_METHOD_COMPUTE_CHOOSE_KERNEL].reply), reply, &writer);
    form_answer(form, call, reply, &data);
}

void form_kernels_choose(form_t *form)
{
    static const char *const MEMBERS[] = {"implementation", "operation", NULL};
    qn_compute_choose_kernel_t message = {.operation = qn_text(form->segments[0])};
    if (!form_read(form, NULL, 0, MEMBERS, NULL)) return;
    const json_t *operation = json_object_get(form->body, "operation");
    if (operation && !json_is_null(operation) &&
        (!json_is_string(operation) || strcmp(json_string_value(operation), form->segments[0]) != 0)) {
        form_fail(form, 400, "operation", "operation: the path says %.64s; leave it out here", form->segments[0]);
        return;
    }
    const json_t *name = json_object_get(form->body, "implementation");
    if (!json_is_string(name)) {
        form_fail(form, 400, "implementation", "implementation: %s; say which, or \"auto\"",
                  name ? "it is not a string" : "it is missing");
        return;
    }
    size_t bytes = json_string_length(name);
    if (bytes == 0 || bytes > 31) {
        form_fail(form, 400, "implementation", "implementation: a name has 1 to 31 bytes");
        return;
    }
    message.implementation = qn_text(json_string_value(name));
    form_call(form, QN_METHOD_COMPUTE_CHOOSE_KERNEL, &message, show);
}
