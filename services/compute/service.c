/* What is this?      The compute daemon: descriptor, start, tick, peers, statistics.
 * State owned:       what compute_service_t names, in step with one life of memory and one of the scheduler.
 * Must never:        run a step on the loop's thread; keep anything a restarted compute could not build again.
 * Read next:         handlers.c, runtime.h, executor.h, README.md */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "common/clock.h"
#include "common/watch/log.h"
#include "services/compute/handlers.h"
#include "services/compute/methods.h"

#define COMPUTE_NICE 5                /* control daemons share the cores: their messages go first */
#define COMPUTE_RETRY_NS 200000000ull /* between two attempts to map what memory described */
#define COMPUTE_ATTEMPTS_MAX 25       /* five seconds of them: memory restarts faster than that */
#define COMPUTE_SEND_RETRY_NS 1000000ull

enum {
    COMPUTE_STAT_STEPS,
    COMPUTE_STAT_TOKENS,
    COMPUTE_STAT_SAMPLED,
    COMPUTE_STAT_REFUSED,
    COMPUTE_STAT_STEP,
    COMPUTE_STAT_INPUT,
    COMPUTE_STAT_ATTENTION,
    COMPUTE_STAT_MLP,
    COMPUTE_STAT_OUTPUT,
    COMPUTE_STAT_SAMPLE,
    COMPUTE_STAT_SLOTS,
    COMPUTE_STAT_QUEUE,
    COMPUTE_STAT_THREADS,
    COMPUTE_STAT_MODELS,
    COMPUTE_STAT_COUNT,
};

static const qn_stat_spec_t compute_stats[COMPUTE_STAT_COUNT] = {
    [COMPUTE_STAT_STEPS] = {"compute_steps", QN_STAT_COUNTER, "steps", "Step plans executed"},
    [COMPUTE_STAT_TOKENS] = {"compute_tokens", QN_STAT_COUNTER, "tokens", "Tokens run, prompt and generated"},
    [COMPUTE_STAT_SAMPLED] = {"compute_sampled_tokens", QN_STAT_COUNTER, "tokens", "Tokens sampled"},
    [COMPUTE_STAT_REFUSED] = {"compute_refused_plans", QN_STAT_COUNTER, "plans", "Step plans that broke a rule"},
    [COMPUTE_STAT_STEP] = {"compute_step_seconds", QN_STAT_HISTOGRAM_NS, "seconds", "Duration of a step"},
    [COMPUTE_STAT_INPUT] = {"compute_input_seconds", QN_STAT_COUNTER, "nanoseconds", "In the embedding"},
    [COMPUTE_STAT_ATTENTION] = {"compute_attention_seconds", QN_STAT_COUNTER, "nanoseconds", "In attention"},
    [COMPUTE_STAT_MLP] = {"compute_mlp_seconds", QN_STAT_COUNTER, "nanoseconds", "Time in MLP blocks"},
    [COMPUTE_STAT_OUTPUT] = {"compute_output_seconds", QN_STAT_COUNTER, "nanoseconds", "Time in the output head"},
    [COMPUTE_STAT_SAMPLE] = {"compute_sample_seconds", QN_STAT_COUNTER, "nanoseconds", "Time in the sampler"},
    [COMPUTE_STAT_SLOTS] = {"compute_used_slots", QN_STAT_GAUGE, "slots", "Slots that hold a sequence"},
    [COMPUTE_STAT_QUEUE] = {"compute_queued_plans", QN_STAT_GAUGE, "plans", "Step plans not yet answered"},
    [COMPUTE_STAT_THREADS] = {"compute_threads", QN_STAT_GAUGE, "threads", "CPU threads; 0 without a model"},
    [COMPUTE_STAT_MODELS] = {"compute_models_mapped", QN_STAT_COUNTER, "models", "Models made ready so far"},
};

static void add_stat(compute_service_t *service, unsigned row, uint64_t amount)
{
    qn_stats_add(qn_daemon_stats(service->daemon), QN_DAEMON_STATS_TABLE, row, amount);
}

static void set_stat(compute_service_t *service, unsigned row, uint64_t value)
{
    qn_stats_set(qn_daemon_stats(service->daemon), QN_DAEMON_STATS_TABLE, row, value);
}

/* ---- start and end ---- */

/* Words in compute.kernels are checked at once; whether they suit the model shows when it is known. */
static qn_err_t check_config(const qn_config_values_t *config, const backend_t **ret_backend)
{
    qn_kernel_case_t any = {
        .heads = 1, .kv_heads = 1, .head_dim = 64, .hidden = 64, .intermediate = 64, .vocab = 64, .block_tokens = 16};
    qn_kernel_set_t set;
    qn_err_t err = backend_find(config, ret_backend);
    const char *asked = config->compute.activations;
    int device = (int)config->compute.device;
    if (!err) err = (*ret_backend)->choose_activations(asked, NULL, &any.activations);
    any.kv_scalar = any.activations;
    if (!err) err = (*ret_backend)->choose_kernels(config->compute.kernels, asked, &any, device, &set);
    return err;
}

static void service_fini(void **state)
{
    compute_service_t *service = *state;
    if (!service) return;
    compute_end_session(service);
    if (service->tasks) compute_drop_tasks(service);
    task_queue_destroy(&service->tasks);
    tensor_store_destroy(&service->tensors);
    qn_arena_fini(&service->sending);
    free(service);
    *state = NULL;
}

static qn_err_t service_init(qn_daemon_t *daemon, const qn_config_values_t *config, void **ret_state)
{
    const backend_t *backend;
    qn_err_t err = check_config(config, &backend);
    if (err) return err;
    compute_service_t *service = calloc(1, sizeof *service);
    if (!service) return qn_fail(QN_ERR_NO_MEMORY, "no memory for compute");
    service->backend = backend;
    service->daemon = daemon;
    service->config = config;
    qn_arena_init(&service->sending, 0);
    err = tensor_store_create(config->compute.tensor_bytes, &service->tensors);
    if (!err) err = task_queue_create(&service->tasks);
    if (err) {
        service_fini((void **)&service);
        return err;
    }
    qn_daemon_set_state(daemon, QN_STATE_STARTING, "waiting for memory");
    *ret_state = service;
    return QN_OK;
}

/* ---- one life of memory ---- */

void compute_end_session(compute_service_t *service)
{
    if (service->runtime) step_worker_stop(&service->runtime->worker); /* no task runs any more */
    tasks_end(service);
    if (service->runtime) qn_daemon_unwatch(service->daemon, step_queue_fd(service->runtime->queue));
    runtime_destroy(&service->runtime);
    for (unsigned i = 0; i < COMPUTE_SETTLES_MAX; i++)
        service->settling[i].jobs = 0; /* nothing runs any more */
    model_destroy(&service->model);
    for (unsigned i = 0; i < COMPUTE_SCRATCH_COUNT; i++)
        qn_region_close(&service->scratch[i]);
    qn_region_close(&service->workspace);
    qn_region_close(&service->kv);
    qn_region_close(&service->weights);
    service->memory = (qn_peer_t){0};
    service->phase = COMPUTE_ALONE;
    service->plan_session = 0; /* its slots went with the runtime */
    service->owner++;
    qn_daemon_set_memory_epoch(service->daemon, 0);
}

static void ask_memory(compute_service_t *service, uint64_t now_ns)
{
    qn_peer_t memory = qn_daemon_peer(service->daemon, QN_SERVICE_MEMORY);
    if (memory.epoch == 0 || now_ns < service->retry_ns) return;
    service->memory = memory;
    if (compute_send_describe(service) != QN_SEND_OK) {
        service->retry_ns = now_ns + COMPUTE_RETRY_NS;
        return;
    }
    service->phase = COMPUTE_ASKED;
    qn_daemon_set_state(service->daemon, QN_STATE_STARTING, "waiting for the model");
}

static bool all_mapped(const compute_service_t *service)
{
    for (unsigned i = 0; i < COMPUTE_SCRATCH_COUNT; i++)
        if (!service->scratch[i]) return false;
    return service->workspace || service->config->memory.workspace_bytes == 0;
}

/* "bf16 in rows", "int4 in panels": of the first layer's products. */
static const char *describe_weights(const model_t *model, char ret_text[32])
{
    const qn_weight_t *weight = &model->layers[0].weights[QN_TENSOR_OUTPUT];
    snprintf(ret_text, 32, "%s in %s", qn_scalar_name(weight->scalar),
             weight->layout == QN_LAYOUT_PANELS ? "panels" : "rows");
    return ret_text;
}

static void announce(compute_service_t *service)
{
    const runtime_t *runtime = service->runtime;
    char text[2 * QN_REASON_MAX], weights[32], where[64];
    service->backend->describe(runtime->stream, (int)service->config->compute.device, where, sizeof where);
    snprintf(text, sizeof text, "%s, %s, %s, matmul %s, attention %s", service->model->config.architecture_name,
             describe_weights(service->model, weights), where, runtime->kernels.chosen[QN_OP_MATMUL]->name,
             runtime->kernels.chosen[QN_OP_ATTENTION_DECODE]->name);
    qn_log_info("%s; %" PRIu32 " slots, %" PRIu32 " tokens a step, sequences of %" PRIu32, text,
                service->limits.max_sequences, service->limits.max_step_tokens, service->limits.max_model_len);
    qn_daemon_set_state(service->daemon, QN_STATE_READY, text);
}

static void start_runtime(compute_service_t *service)
{
    runtime_parts_t parts = {
        .backend = service->backend,
        .device = (int)service->config->compute.device,
        .deterministic = service->config->compute.deterministic,
        .model = service->model,
        .limits = service->limits,
        .kv = service->kv_layout,
        .kernels = service->config->compute.kernels,
        .activations_asked = service->config->compute.activations,
        .threads = (uint32_t)service->config->compute.threads,
        .nice = COMPUTE_NICE,
        .tasks = service->tasks,
        .now_ns = qn_clock_now_ns,
        .activations = qn_region_pointer(service->scratch[COMPUTE_ACTIVATIONS]),
        .state = qn_region_pointer(service->scratch[COMPUTE_STATE]),
        .step_io = qn_region_pointer(service->scratch[COMPUTE_STEP_IO]),
        .workspace = service->workspace,
    };
    qn_err_t err = runtime_create(&parts, &service->runtime);
    if (!err) err = qn_daemon_watch(service->daemon, step_queue_fd(service->runtime->queue));
    if (err) {
        qn_daemon_fail(service->daemon, err);
        return;
    }
    service->phase = COMPUTE_RUNNING;
    service->attempts = 0;
    add_stat(service, COMPUTE_STAT_MODELS, 1);
    qn_daemon_set_memory_epoch(service->daemon, service->memory.epoch);
    announce(service);
}

/* A handler could not use what it got: try again from the start, or end when that cannot help. */
static void act_on_failure(compute_service_t *service, uint64_t now_ns)
{
    qn_failure_t failure = service->failure;
    service->failure.code = QN_OK;
    service->attempts++;
    if (service->failure_is_final || service->attempts >= COMPUTE_ATTEMPTS_MAX) {
        qn_daemon_fail(service->daemon, qn_failure_raise(&failure));
        return;
    }
    qn_log_warning("the model is not usable yet: %s", failure.text);
    compute_end_session(service);
    service->retry_ns = now_ns + COMPUTE_RETRY_NS;
    qn_daemon_set_state(service->daemon, QN_STATE_STARTING, "waiting for memory");
}

/* ---- results ---- */

static void count_step(compute_service_t *service, const step_result_t *result)
{
    add_stat(service, COMPUTE_STAT_STEPS, 1);
    add_stat(service, COMPUTE_STAT_TOKENS, result->run_tokens);
    add_stat(service, COMPUTE_STAT_SAMPLED, result->token_count);
    add_stat(service, COMPUTE_STAT_INPUT, result->times.input_ns);
    add_stat(service, COMPUTE_STAT_ATTENTION, result->times.attention_ns);
    add_stat(service, COMPUTE_STAT_MLP, result->times.mlp_ns);
    add_stat(service, COMPUTE_STAT_OUTPUT, result->times.output_ns);
    add_stat(service, COMPUTE_STAT_SAMPLE, result->times.sample_ns);
    qn_stats_observe_ns(qn_daemon_stats(service->daemon), QN_DAEMON_STATS_TABLE, COMPUTE_STAT_STEP,
                        result->end_ns - result->begin_ns);
    compute_observe_step(service, result);
}

/* Sends what has finished. Returns false when the scheduler takes nothing at the moment. */
static bool send_results(compute_service_t *service)
{
    step_queue_t *queue = service->runtime->queue;
    step_queue_quiet(queue);
    for (step_job_t *job; (job = step_queue_finished(queue)) != NULL; step_queue_release(queue)) {
        if (job->failure.code) {
            qn_daemon_fail(service->daemon,
                           qn_fail(job->failure.code, "step %" PRIu64 ": %s", job->plan.step, job->failure.text));
            return true;
        }
        if (job->skipped) continue;
        qn_send_outcome_t outcome =
            job->owner == service->owner ? compute_send_result(service, job) : QN_SEND_GONE; /* nobody waits for it */
        if (outcome == QN_SEND_FULL) return false;
        if (outcome == QN_SEND_INVALID) {
            qn_daemon_fail(service->daemon, qn_fail(QN_ERR_LIMIT, "the result of step %" PRIu64 " cannot be sent: %s",
                                                    job->plan.step, qn_err_text()));
            return true;
        }
        count_step(service, &job->result);
    }
    return true;
}

/* ---- tick ---- */

static void publish_stats(compute_service_t *service)
{
    bool running = service->phase == COMPUTE_RUNNING;
    set_stat(service, COMPUTE_STAT_REFUSED, service->plans_refused);
    set_stat(service, COMPUTE_STAT_SLOTS, running ? slot_book_used(service->runtime->book) : 0);
    set_stat(service, COMPUTE_STAT_QUEUE, running ? step_queue_depth(service->runtime->queue) : 0);
    set_stat(service, COMPUTE_STAT_THREADS, running ? service->backend->stream_threads(service->runtime->stream) : 0);
}

static uint64_t service_tick(void *state, uint64_t now_ns)
{
    compute_service_t *service = state;
    uint64_t wake_ns = UINT64_MAX;
    if (service->failure.code) act_on_failure(service, now_ns);
    if (service->phase == COMPUTE_ALONE) ask_memory(service, now_ns);
    if (service->phase == COMPUTE_ALONE && service->retry_ns > now_ns) wake_ns = service->retry_ns;
    if (service->phase == COMPUTE_DESCRIBED) {
        if (compute_send_reserves(service) == QN_SEND_OK)
            service->phase = COMPUTE_RESERVING;
        else
            wake_ns = now_ns + COMPUTE_RETRY_NS;
    }
    if (service->phase == COMPUTE_RESERVING && all_mapped(service)) start_runtime(service);
    if (service->phase == COMPUTE_RUNNING && !send_results(service)) wake_ns = now_ns + COMPUTE_SEND_RETRY_NS;
    compute_answer_settles(service);
    compute_finish_tasks(service);
    uint64_t expires_ns = tensor_store_expire(service->tensors, now_ns);
    if (expires_ns < wake_ns) wake_ns = expires_ns;
    tasks_tick(service);
    publish_stats(service);
    return wake_ns;
}

static void service_peer(void *state, qn_peer_t peer, qn_peer_event_t event)
{
    compute_service_t *service = state;
    if (event != QN_PEER_GONE) return;
    if (qn_peer_equal(peer, service->scheduler)) {
        qn_log_notice("scheduler epoch %" PRIu32 " is gone: its slots are empty", peer.epoch);
        compute_forget_scheduler(service);
    }
    if (qn_peer_equal(peer, service->memory)) {
        qn_log_notice("memory epoch %" PRIu32 " is gone: its regions are unmapped", peer.epoch);
        compute_end_session(service);
        qn_daemon_set_state(service->daemon, QN_STATE_STARTING, "waiting for memory");
    }
}

static bool service_drained(const void *state)
{
    const compute_service_t *service = state;
    return service->phase != COMPUTE_RUNNING || step_queue_depth(service->runtime->queue) == 0;
}

static void service_check(const void *state)
{
    const compute_service_t *service = state;
    QN_ASSERT((service->phase == COMPUTE_RUNNING) == (service->runtime != NULL));
    if (!service->runtime) return;
    QN_ASSERT(service->weights && service->kv && service->model && all_mapped(service));
    QN_ASSERT(slot_book_used(service->runtime->book) <= service->limits.max_sequences);
    QN_ASSERT(step_queue_depth(service->runtime->queue) <= STEP_QUEUE_JOBS);
}

const qn_daemon_descriptor_t qn_compute_daemon = {
    .service = QN_SERVICE_COMPUTE,
    .name = "compute",
    .dials = (const qn_service_t[]){QN_SERVICE_MEMORY, QN_SERVICE_NONE},
    .handlers = compute_handlers,
    .methods = compute_methods,
    .stats = compute_stats,
    .stat_count = COMPUTE_STAT_COUNT,
    .in_step_path = true,
    .init = service_init,
    .peer = service_peer,
    .tick = service_tick,
    .drained = service_drained,
    .check = service_check,
    .fini = service_fini,
};
