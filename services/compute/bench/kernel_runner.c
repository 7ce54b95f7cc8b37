/* What is this?      Runs kernels over the arrays of a case, on this host or on a device.
 * State owned:       the streams; the region that the arrays of the case at hand lie in.
 * Must never:        let a launch of a device see a host pointer.
 * Read next:         kernel_pointers.h, services/compute/backend/backend.h. */
#include "services/compute/bench/kernel_runner.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/assert.h"
#include "common/region/region.h"
#include "kernels/fused.h"
#include "services/compute/backend/backend.h"
#include "kernels/bench/kernel_pointers.h"
#ifdef QN_CUDA
#include "kernels/cuda/cuda.h"
#endif

#define PLACE_ALIGN 256u
#define SEQUENCES_MAX 256u
#define REPLAYS_MAX 64
#define REPLAYS_LEAST 7

struct kernel_runner {
    kernel_runner_info_t info;
    const backend_t *backend;
    int device;
    qn_stream_t *host_stream, *stream; /* of the exact side; of the launches (on a host the same) */
    qn_kernel_set_t exact;
    backend_mark_t *from, *to;
    /* the case at hand */
    const kernel_case_t *made;
    qn_mapping_t *region;
    size_t used;
    char *placed[KERNEL_CASE_MEMORY_MAX]; /* where each memory of the case lies for the copy at hand; NULL: not yet */
    char *arguments;                      /* [copies] */
    void *first[KERNEL_CASE_OUTPUTS_MAX]; /* outputs before any launch, as they are placed */
    void *fetched;                        /* room for the largest output, of the backend's */
    size_t next;
};

/* ---- the runner ---- */

static void list_kernels(int device, kernel_runner_info_t *info)
{
    (void)device;
#ifdef QN_CUDA
    if (info->device) {
        info->kernels = qn_cuda_kernels(&info->kernel_count);
        info->isa = qn_cuda_isa(device);
        return;
    }
#endif
    info->kernels = qn_kernels(&info->kernel_count);
    info->isa = qn_kernels_isa();
}

static qn_err_t open_device(kernel_runner_t *r, bool deterministic)
{
    static const qn_kernel_case_t GREATEST = {.heads = 32,
                                              .kv_heads = 8,
                                              .head_dim = 128,
                                              .hidden = 4096,
                                              .intermediate = 14336,
                                              .vocab = 151936,
                                              .block_tokens = 16,
                                              .kv_scalar = QN_SCALAR_BF16};
    backend_stream_options_t options = {.device = r->device,
                                        .activations = r->info.activations,
                                        .deterministic = deterministic,
                                        .shape = &GREATEST,
                                        .max_sequences = SEQUENCES_MAX};
    qn_err_t err = r->backend->stream_create(&options, &r->stream);
    if (!err) err = r->backend->mark_create(&r->from);
    if (!err) err = r->backend->mark_create(&r->to);
    if (!err) r->backend->describe(r->stream, r->device, r->info.device_name, sizeof r->info.device_name);
    return err;
}

/* Where the implementations run: the host's own stream, the caller's, or one of the device. */
static qn_err_t open_stream(const kernel_runner_options_t *options, kernel_runner_t *r)
{
    if (r->info.device) return open_device(r, options->deterministic);
    r->stream = options->stream ? options->stream : r->host_stream;
    return QN_OK;
}

qn_err_t kernel_runner_open(const qn_config_values_t *config, const kernel_runner_options_t *options,
                            kernel_runner_t **ret_runner)
{
    static const qn_kernel_case_t ANY = {.heads = 1, .kv_heads = 1, .head_dim = 64};
    const backend_t *backend;
    qn_err_t err = backend_find(config, &backend);
    if (err) return err;
    kernel_runner_t *r = calloc(1, sizeof *r);
    if (!r) return qn_fail(QN_ERR_NO_MEMORY, "no memory for a runner of kernels");
    r->backend = backend;
    r->device = (int)config->compute.device;
    r->info.device = !backend->synchronous;
    err = backend->choose_activations(config->compute.activations, NULL, &r->info.activations);
    if (options->activations) r->info.activations = *options->activations;
    list_kernels(r->device, &r->info);
    if (!err) err = qn_kernels_choose("reference", &ANY, 0, &r->exact);
    uint32_t threads = options->exact_threads ? options->exact_threads : (uint32_t)config->compute.threads;
    if (!err) err = qn_stream_create(&(qn_stream_options_t){.threads = threads}, &r->host_stream);
    if (!err) err = open_stream(options, r);
    if (err)
        kernel_runner_close(&r);
    else
        *ret_runner = r;
    return err;
}

void kernel_runner_close(kernel_runner_t **runner)
{
    kernel_runner_t *r = *runner;
    if (!r) return;
    kernel_runner_leave(r);
    if (r->from) r->backend->mark_destroy(&r->from);
    if (r->to) r->backend->mark_destroy(&r->to);
    if (r->info.device && r->stream) r->backend->stream_destroy(&r->stream);
    qn_stream_destroy(&r->host_stream);
    free(r);
    *runner = NULL;
}

const kernel_runner_info_t *kernel_runner_info(const kernel_runner_t *runner) { return &runner->info; }

/* ---- placing ---- */

static bool is_rotated(const kernel_memory_t *memory)
{
    return memory->kind == KERNEL_MEMORY_ROTATED || memory->kind == KERNEL_MEMORY_WEIGHT_LIST;
}

/* Bytes of `bytes` of a case's memory where it is placed. */
static size_t placed_bytes(const kernel_runner_t *r, const kernel_memory_t *memory, size_t bytes)
{
    return memory->kind == KERNEL_MEMORY_ACTIVATIONS ? bytes / 4 * qn_scalar_bytes(r->info.activations) : bytes;
}

/* The memory of the case that `pointer` is in. */
static size_t find_memory(const kernel_case_t *made, const void *pointer)
{
    const char *at = pointer;
    size_t i = 0;
    while (i < made->memory_count && (at < made->memory[i].data || at >= made->memory[i].data + made->memory[i].bytes))
        i++;
    QN_ASSERT(i < made->memory_count);
    return i;
}

/* `bytes` of a case's memory as they are placed, in `to`. */
static void encode(const kernel_runner_t *r, const kernel_memory_t *memory, const void *from, size_t bytes, void *to)
{
    if (memory->kind != KERNEL_MEMORY_ACTIVATIONS || r->info.activations == QN_SCALAR_F32) {
        memcpy(to, from, bytes);
        return;
    }
    const uint16_t *halves = from; /* little-endian: the numbers are bf16 already, in the upper half of each f32 */
    for (size_t i = 0; i < bytes / 4; i++)
        ((uint16_t *)to)[i] = halves[2 * i + 1];
}

static void decode(const kernel_runner_t *r, const kernel_memory_t *memory, const void *from, size_t bytes, void *to)
{
    if (memory->kind != KERNEL_MEMORY_ACTIVATIONS || r->info.activations == QN_SCALAR_F32) {
        memcpy(to, from, bytes);
        return;
    }
    const uint16_t *values = from;
    for (size_t i = 0; i < bytes / 4; i++) {
        uint32_t bits = (uint32_t)values[i] << 16;
        memcpy((char *)to + 4 * i, &bits, sizeof bits);
    }
}

static void move_pointer(void *context, void **pointer);

/* Copies memory `index` to where launches find it. */
static void place(kernel_runner_t *r, size_t index)
{
    const kernel_memory_t *memory = &r->made->memory[index];
    if (!r->info.device && !is_rotated(memory)) {
        r->placed[index] = memory->data;
        return;
    }
    size_t bytes = placed_bytes(r, memory, memory->bytes);
    char *at = (char *)qn_region_pointer(r->region) + r->used;
    r->used += (bytes + PLACE_ALIGN - 1) / PLACE_ALIGN * PLACE_ALIGN;
    QN_ASSERT(r->used <= qn_region_bytes(r->region));
    r->placed[index] = at;
    void *changed = memory->kind == KERNEL_MEMORY_PLAIN || memory->kind == KERNEL_MEMORY_ROTATED ? NULL : malloc(bytes);
    if (changed) encode(r, memory, memory->data, memory->bytes, changed);
    if (changed && memory->kind == KERNEL_MEMORY_WEIGHT_LIST)
        for (size_t i = 0; i < bytes / sizeof(qn_weight_t); i++) {
            qn_weight_t *weight = (qn_weight_t *)changed + i;
            void *data = (void *)(uintptr_t)weight->data;
            move_pointer(r, &data);
            weight->data = data;
        }
    r->backend->upload(r->stream, at, changed ? changed : memory->data, bytes);
    free(changed);
}

static char *placed_at(kernel_runner_t *r, const void *pointer)
{
    size_t index = find_memory(r->made, pointer);
    const kernel_memory_t *memory = &r->made->memory[index];
    if (!r->placed[index]) place(r, index);
    return r->placed[index] + placed_bytes(r, memory, (size_t)((const char *)pointer - memory->data));
}

static void move_pointer(void *context, void **pointer)
{
    if (*pointer) *pointer = placed_at(context, *pointer);
}

static void forget_rotated(kernel_runner_t *r)
{
    for (size_t i = 0; i < r->made->memory_count; i++)
        if (is_rotated(&r->made->memory[i])) r->placed[i] = NULL;
}

/* The last copy first, so that the outputs of the first are those that are known afterwards. */
static void place_all(kernel_runner_t *r)
{
    size_t bytes = kernel_arguments_bytes(r->made->op);
    for (size_t copy = r->made->copies; copy-- > 0;) {
        char *arguments = r->arguments + copy * bytes;
        memcpy(arguments, r->made->arguments, bytes);
        forget_rotated(r);
        kernel_each_pointer(r->made->op, arguments, move_pointer, r);
    }
}

/* Room for everything that could be placed, and the argument structs. */
static qn_err_t make_room(kernel_runner_t *r)
{
    const kernel_case_t *made = r->made;
    uint64_t bytes = PLACE_ALIGN;
    for (size_t i = 0; i < made->memory_count; i++) {
        const kernel_memory_t *memory = &made->memory[i];
        uint64_t copies = is_rotated(memory) ? made->copies : r->info.device;
        bytes += copies * (placed_bytes(r, memory, memory->bytes) + PLACE_ALIGN);
    }
    qn_region_spec_t spec = {.id = 1,
                             .kind = QN_REGION_KIND_WEIGHTS,
                             .bytes = bytes,
                             .epoch = 1,
                             .name = "kernels",
                             .share = r->info.device ? QN_SHARE_CUDA_IPC : QN_SHARE_MEMFD,
                             .device = r->info.device ? r->device : -1,
                             .huge_pages = true};
    qn_err_t err = qn_region_create(&spec, &r->region);
    if (err) return err;
    qn_region_make_huge(r->region, 0, bytes);
    r->arguments = calloc(made->copies, kernel_arguments_bytes(made->op));
    return r->arguments ? QN_OK : qn_fail(QN_ERR_NO_MEMORY, "no memory for the arguments of %s", made->shape);
}

/* Keeps the outputs as they are before any launch. */
static qn_err_t keep_outputs(kernel_runner_t *r)
{
    size_t most = 1;
    for (size_t i = 0; i < r->made->output_count; i++) {
        const kernel_output_t *output = &r->made->outputs[i];
        const kernel_memory_t *memory = &r->made->memory[find_memory(r->made, output->tested)];
        size_t bytes = output->count * 4;
        r->first[i] = malloc(bytes);
        if (!r->first[i]) return qn_fail(QN_ERR_NO_MEMORY, "no memory for the outputs of %s", r->made->shape);
        encode(r, memory, output->tested, bytes, r->first[i]);
        if (bytes > most) most = bytes;
    }
    return r->backend->host_create(most, &r->fetched);
}

/* ---- launches ---- */

qn_err_t kernel_runner_compute_exact(kernel_runner_t *r, const kernel_case_t *made)
{
    const void *arguments = made->exact_arguments;
    if (made->op == QN_OP_NORM_MATMUL)
        qn_norm_matmul_parts(&r->exact, r->host_stream, arguments);
    else if (made->op == QN_OP_DECODE_ATTENTION)
        qn_decode_attention_parts(&r->exact, r->host_stream, arguments);
    else
        qn_launch(&r->exact, made->op, r->host_stream, arguments);
    return qn_stream_wait(r->host_stream);
}

qn_err_t kernel_runner_take(kernel_runner_t *r, const kernel_case_t *made)
{
    kernel_runner_leave(r);
    r->made = made;
    qn_err_t err = make_room(r);
    if (!err) err = keep_outputs(r);
    if (err) return err;
    place_all(r);
    return r->info.device ? r->backend->stream_wait(r->stream) : QN_OK;
}

void kernel_runner_leave(kernel_runner_t *r)
{
    qn_region_close(&r->region);
    if (r->fetched) r->backend->host_destroy(&r->fetched);
    for (size_t i = 0; i < KERNEL_CASE_OUTPUTS_MAX; i++)
        free(r->first[i]);
    free(r->arguments);
    memset(r->first, 0, sizeof r->first);
    memset(r->placed, 0, sizeof r->placed);
    r->arguments = NULL;
    r->made = NULL;
    r->used = r->next = 0;
}

qn_err_t kernel_runner_check(kernel_runner_t *r, const qn_kernel_t *kernel)
{
    const kernel_case_t *made = r->made;
    for (size_t i = 0; i < made->output_count; i++) {
        const kernel_output_t *output = &made->outputs[i];
        const kernel_memory_t *memory = &made->memory[find_memory(made, output->tested)];
        r->backend->upload(r->stream, placed_at(r, output->tested), r->first[i],
                           placed_bytes(r, memory, output->count * 4));
    }
    kernel->launch(r->stream, r->arguments);
    for (size_t i = 0; i < made->output_count; i++) {
        const kernel_output_t *output = &made->outputs[i];
        const kernel_memory_t *memory = &made->memory[find_memory(made, output->tested)];
        r->backend->download(r->stream, r->fetched, placed_at(r, output->tested),
                             placed_bytes(r, memory, output->count * 4));
        qn_err_t err = r->backend->stream_wait(r->stream);
        if (err) return err;
        decode(r, memory, r->fetched, output->count * 4, (void *)(uintptr_t)output->tested);
    }
    return QN_OK;
}

/* ---- time ---- */

typedef struct {
    kernel_runner_t *runner;
    const qn_kernel_t *kernel;
} launch_t;

static void launch(void *context)
{
    launch_t *l = context;
    kernel_runner_t *r = l->runner;
    l->kernel->launch(r->stream, r->arguments + r->next * kernel_arguments_bytes(r->made->op));
    r->next = (r->next + 1) % r->made->copies;
}

/* Seconds of what `graph` recorded, or of one launch where it is NULL. */
static qn_err_t time_once(launch_t *l, backend_graph_t *graph, double *ret_seconds)
{
    kernel_runner_t *r = l->runner;
    r->backend->mark_set(r->stream, r->from);
    if (graph)
        r->backend->graph_launch(r->stream, graph);
    else
        launch(l);
    r->backend->mark_set(r->stream, r->to);
    qn_err_t err = r->backend->stream_wait(r->stream);
    if (!err) *ret_seconds = (double)r->backend->mark_elapsed_ns(r->from, r->to) * 1e-9;
    return err;
}

static qn_err_t replay(launch_t *l, backend_graph_t *graph, size_t launches, double seconds, bench_time_t *ret_time)
{
    double times[REPLAYS_MAX], sum = 0;
    size_t count = 0;
    qn_err_t err = time_once(l, graph, &times[0]);
    while (!err && count < REPLAYS_MAX && (count < REPLAYS_LEAST || sum < seconds)) {
        err = time_once(l, graph, &times[count]);
        if (!err) sum += times[count++];
    }
    if (err) return err;
    ret_time->rounds = (unsigned)count;
    ret_time->best_s = bench_quantile(times, count, 0) / (double)launches;
    ret_time->median_s = bench_quantile(times, count, 0.5) / (double)launches;
    return QN_OK;
}

/* A graph has each copy once, but at least ten launches and at most ten milliseconds' worth of them. */
static qn_err_t time_on_device(launch_t *l, double seconds, bench_time_t *ret_time)
{
    kernel_runner_t *r = l->runner;
    backend_graph_t *graph = NULL;
    double once = 0;
    qn_err_t err = time_once(l, NULL, &once);
    size_t launches = r->made->copies < 10 ? 10 : r->made->copies;
    if ((double)launches * once > 0.01) launches = 3;
    if (!err) err = r->backend->capture_begin(r->stream);
    if (err) return err;
    for (size_t i = 0; i < launches; i++)
        launch(l);
    err = r->backend->capture_end(r->stream, &graph);
    if (!err) err = replay(l, graph, launches, seconds, ret_time);
    if (graph) r->backend->graph_destroy(&graph);
    return err;
}

qn_err_t kernel_runner_time(kernel_runner_t *r, const qn_kernel_t *kernel, double seconds, bench_time_t *ret_time)
{
    launch_t context = {.runner = r, .kernel = kernel};
    r->next = 0;
    if (r->info.device) return time_on_device(&context, seconds, ret_time);
    *ret_time = bench_time(launch, &context, seconds);
    return QN_OK;
}
