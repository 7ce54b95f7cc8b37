/* What is this?      Compute's methods that are answered in the loop: what could run, and what does.
 * State owned:       none; the service's.
 * Must never:        touch the device: the worker owns the stream.
 * Read next:         common/daemon/calls.h, schemas/compute/, kernels/kernels.h (the registry). */
#include <string.h>

#include "kernels/loaded.h"
#include "services/compute/handlers.h"
#include "services/compute/methods.h"

static const char *const isa_names[] = {"avx2", "avx512", "avx512_vnni", "avx512_bf16", "sm90"};
#define IMPLEMENTATIONS_MAX 32 /* of an operation, as the schema says */
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
        .object = qn_text(qn_kernel_object(kernel)),
    };
    row.needs = show_isa(arena, kernel->isa, &row.needs_count);
    return row;
}

static qn_kernel_operation_t show_operation(const compute_service_t *service, qn_arena_t *arena, qn_op_t op,
                                            const qn_kernel_case_t *shape)
{
    size_t count, loaded_count;
    uint32_t machine;
    const live_kernels_t *live = &service->desk->live;
    const qn_kernel_t *rows = service->backend->kernels((int)service->config->compute.device, &count, &machine);
    const qn_kernel_t *chosen = service->runtime->kernels.chosen[op], *loaded = qn_kernels_loaded(&loaded_count);
    qn_kernel_implementation_t *shown = qn_arena_zalloc(arena, count + loaded_count, sizeof *shown);
    qn_kernel_operation_t operation = {.operation = qn_text(qn_op_name(op)),
                                       .chosen = qn_text(chosen ? chosen->name : NULL),
                                       .live = qn_text(live->chosen[op][0] ? live->chosen[op] : NULL),
                                       .implementations = shown};
    for (size_t i = 0; i < count + loaded_count && operation.implementations_count < IMPLEMENTATIONS_MAX; i++) {
        const qn_kernel_t *row = i < count ? &rows[i] : &loaded[i - count];
        bool replaced = i >= count && qn_kernels_find_loaded(op, row->name) != row;
        if (row->op == op && !replaced)
            shown[operation.implementations_count++] = show_kernel(arena, row, machine, shape, chosen);
    }
    return operation;
}

/* What was set live, what the table says, what was withdrawn. */
static void show_desk(const compute_service_t *service, qn_arena_t *arena, qn_compute_kernels_reply_t *reply)
{
    const kernel_desk_t *desk = service->desk;
    char *live = qn_arena_alloc(arena, LIVE_CHOICE_MAX, 1);
    qn_text_t *withdrawn = qn_arena_zalloc(arena, LIVE_OBJECTS_MAX, sizeof *withdrawn);
    live_kernels_list(&desk->live, live);
    for (unsigned i = 0; i < desk->live.withdrawn_count; i++)
        withdrawn[i] = qn_text(desk->live.withdrawn[i].path);
    reply->live = qn_text(live);
    reply->tuned = qn_text(desk->tuned);
    reply->key = qn_text(desk->key);
    reply->kernel_set = service->kernel_set;
    reply->withdrawn = withdrawn;
    reply->withdrawn_count = desk->live.withdrawn_count;
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
    show_desk(service, call->arena, reply);
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
    {QN_METHOD_COMPUTE_CHOOSE_KERNEL, compute_method_choose_kernel},
    {QN_METHOD_COMPUTE_LOAD_KERNEL, compute_method_load_kernel},
    {QN_METHOD_COMPUTE_BENCHMARK_KERNEL, compute_method_benchmark_kernel},
    {QN_METHOD_COMPUTE_AUTOTUNE, compute_method_autotune},
    {QN_METHOD_NONE, NULL},
};
