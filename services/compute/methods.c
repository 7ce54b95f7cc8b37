/* What is this?      Compute's methods that are answered in the loop: what could run, and what does.
 * State owned:       none; the service's.
 * Must never:        touch the device: the worker owns the stream.
 * Read next:         common/daemon/calls.h, schemas/compute/, kernels/kernels.h (the registry). */
#include <string.h>

#include "services/compute/methods.h"

static const char *const isa_names[] = {"avx2", "avx512", "avx512_vnni", "avx512_bf16", "sm90"};
#define ISA_COUNT (sizeof isa_names / sizeof isa_names[0])

/* The names of these QN_ISA_ bits, in the arena. */
static const qn_text_t *show_isa(qn_arena_t *arena, uint32_t isa, uint32_t *ret_count)
{
    qn_text_t *names = qn_arena_zalloc(arena, ISA_COUNT, sizeof *names);
    *ret_count = 0;
    for (size_t i = 0; i < ISA_COUNT; i++)
        if (isa & (1u << i)) names[(*ret_count)++] = qn_text(isa_names[i]);
    return names;
}

static qn_kernel_implementation_t show_kernel(qn_arena_t *arena, const qn_kernel_t *kernel, uint32_t machine,
                                              const qn_kernel_case_t *shape, const qn_kernel_t *chosen)
{
    qn_kernel_implementation_t row = {
        .name = qn_text(kernel->name),
        .rank = kernel->rank,
        .available = (kernel->isa & ~machine) == 0,
        .fits = !kernel->accepts || kernel->accepts(shape),
        .chosen = kernel == chosen,
    };
    row.needs = show_isa(arena, kernel->isa, &row.needs_count);
    return row;
}

static qn_kernel_operation_t show_operation(const compute_service_t *service, qn_arena_t *arena, qn_op_t op,
                                            const qn_kernel_case_t *shape)
{
    size_t count;
    uint32_t machine;
    const qn_kernel_t *rows = service->backend->kernels((int)service->config->compute.device, &count, &machine);
    const qn_kernel_t *chosen = service->runtime->kernels.chosen[op];
    qn_kernel_implementation_t *shown = qn_arena_zalloc(arena, count, sizeof *shown);
    qn_kernel_operation_t operation = {.operation = qn_text(qn_op_name(op)),
                                       .chosen = qn_text(chosen ? chosen->name : NULL),
                                       .implementations = shown};
    for (size_t i = 0; i < count; i++)
        if (rows[i].op == op)
            shown[operation.implementations_count++] = show_kernel(arena, &rows[i], machine, shape, chosen);
    return operation;
}

static qn_call_outcome_t method_kernels(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    const compute_service_t *service = state;
    const qn_compute_kernels_t *asked = message;
    qn_compute_kernels_reply_t *reply = ret_reply;
    size_t count;
    uint32_t machine;
    if (!service->runtime) return qn_call_fail(call, 503, NULL, "compute has no model yet; try again");
    service->backend->kernels((int)service->config->compute.device, &count, &machine);
    qn_kernel_case_t shape = service->runtime->shape;
    qn_kernel_operation_t *rows = qn_arena_zalloc(call->arena, QN_OP_COUNT, sizeof *rows);
    for (unsigned op = 0; op < QN_OP_COUNT; op++)
        if (!asked->operation.bytes || strcmp(asked->operation.data, qn_op_name((qn_op_t)op)) == 0)
            rows[reply->operations_count++] = show_operation(service, call->arena, (qn_op_t)op, &shape);
    if (reply->operations_count == 0)
        return qn_call_fail(call, 404, "operation", "operation: there is no \"%.64s\"; leave it out to see all",
                            asked->operation.data);
    reply->operations = rows;
    reply->backend = qn_text(service->backend->name);
    reply->machine = show_isa(call->arena, machine, &reply->machine_count);
    reply->activations = shape.activations == QN_SCALAR_BF16 ? QN_DTYPE_BF16 : QN_DTYPE_F32;
    reply->asked = qn_text(service->config->compute.kernels);
    return QN_CALL_DONE;
}

const qn_method_row_t compute_methods[] = {
    {QN_METHOD_COMPUTE_KERNELS, method_kernels},
    {QN_METHOD_COMPUTE_LATENCY, compute_method_latency},
    {QN_METHOD_COMPUTE_TENSOR_SPLIT, compute_method_tensor_split},
    {QN_METHOD_COMPUTE_EXECUTE, compute_method_execute},
    {QN_METHOD_COMPUTE_TENSORS, compute_method_tensors},
    {QN_METHOD_COMPUTE_TENSOR_VALUES, compute_method_tensor_values},
    {QN_METHOD_COMPUTE_TENSOR_DROP, compute_method_tensor_drop},
    {QN_METHOD_COMPUTE_FORWARD, method_forward},
    {QN_METHOD_COMPUTE_ATTENTION_SCORES, method_attention_scores},
    {QN_METHOD_COMPUTE_RUN_STAGE, method_run_stage},
    {QN_METHOD_NONE, NULL},
};
