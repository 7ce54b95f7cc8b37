/* What is this?      The assembly of compute's parts, in order, and their end in reverse.
 * State owned:       the parts.
 * Must never:        touch a region after its end: the worker stops first.
 * Read next:         executor.h, step_worker.h. */
#include "services/compute/runtime.h"

#include <stdlib.h>

qn_kernel_case_t runtime_kernel_case(const qn_model_config_t *config, uint32_t block_tokens, qn_scalar_t kv_scalar,
                                     qn_scalar_t activations)
{
    return (qn_kernel_case_t){
        .heads = config->heads,
        .kv_heads = config->kv_heads,
        .head_dim = config->head_dim,
        .hidden = config->hidden,
        .intermediate = config->intermediate,
        .vocab = config->vocab,
        .block_tokens = block_tokens,
        .kv_scalar = kv_scalar,
        .activations = activations,
    };
}

/* A device computes nothing for tasks: they take one thread of the host, the worker's own. */
static qn_err_t open_task_stream(runtime_t *self)
{
    self->task_stream = self->stream;
    if (self->backend->synchronous) return QN_OK;
    self->task_stream = NULL;
    return qn_stream_create(&(qn_stream_options_t){.threads = 1}, &self->task_stream);
}

static qn_err_t build(const runtime_parts_t *parts, runtime_t *self)
{
    qn_kernel_case_t shape = runtime_kernel_case(&parts->model->config, parts->limits.block_tokens, parts->kv.scalar,
                                                 parts->limits.activations);
    backend_stream_options_t options = {.threads = parts->threads,
                                        .nice = parts->nice,
                                        .device = parts->device,
                                        .deterministic = parts->deterministic,
                                        .activations = parts->limits.activations,
                                        .shape = &shape,
                                        .max_sequences = parts->limits.max_sequences};
    step_worker_options_t worker = {.nice = parts->nice,
                                    .steps_in_flight = parts->backend->steps_in_flight,
                                    .tasks = parts->tasks};
    self->backend = parts->backend;
    self->shape = shape;
    qn_err_t err =
        self->backend->choose_kernels(parts->kernels, parts->activations_asked, &shape, parts->device, &self->kernels);
    if (!err) err = self->backend->stream_create(&options, &self->stream);
    if (err) return err;
    executor_parts_t executor = {
        .model = parts->model,
        .limits = parts->limits,
        .kv = parts->kv,
        .kernels = self->kernels,
        .backend = self->backend,
        .stream = self->stream,
        .deterministic = parts->deterministic,
        .activations = parts->activations,
        .state = parts->state,
        .step_io = parts->step_io,
        .workspace = parts->workspace,
        .now_ns = parts->now_ns,
    };
    err = executor_create(&executor, &self->executor);
    if (!err) err = slot_book_create(&parts->limits, &self->book);
    if (!err) err = step_queue_create(&parts->limits, &self->queue);
    if (!err && parts->tasks) err = open_task_stream(self);
    worker.task_stream = self->task_stream;
    if (!err) err = step_worker_start(self->queue, self->executor, &worker, &self->worker);
    return err;
}

qn_err_t runtime_create(const runtime_parts_t *parts, runtime_t **ret_runtime)
{
    runtime_t *self = calloc(1, sizeof *self);
    if (!self) return qn_fail(QN_ERR_NO_MEMORY, "no memory for the runtime");
    qn_err_t err = build(parts, self);
    if (err)
        runtime_destroy(&self);
    else
        *ret_runtime = self;
    return err;
}

void runtime_destroy(runtime_t **runtime)
{
    runtime_t *self = *runtime;
    if (!self) return;
    step_worker_stop(&self->worker);
    step_queue_destroy(&self->queue);
    slot_book_destroy(&self->book);
    executor_destroy(&self->executor);
    if (self->task_stream != self->stream) qn_stream_destroy(&self->task_stream);
    if (self->stream) self->backend->stream_destroy(&self->stream);
    free(self);
    *runtime = NULL;
}
