/* What is this?      CUDA as a backend: kernels/cuda behind compute's own words. Empty in a build without CUDA.
 * State owned:       none; streams, marks and graphs are their holder's.
 * Must never:        wait where backend.h says that it does not.
 * Read next:         kernels/cuda/cuda.h. */
#ifdef QN_CUDA

#include "services/compute/backend/backend.h"

#include <string.h>

#include "common/region/region.h"
#include "kernels/cuda/cuda.h"

#define LOGIT_ROWS 256 /* [R, V] and the sampler's [R, 2, V]: 400 MB of the device for 128k tokens */

/* A stream's marks and graphs under this file's names. */
static qn_cuda_mark_t *to_mark(const backend_mark_t *mark) { return (qn_cuda_mark_t *)(uintptr_t)mark; }
static qn_cuda_graph_t *to_graph(const backend_graph_t *graph) { return (qn_cuda_graph_t *)(uintptr_t)graph; }

static qn_err_t check(int device)
{
    qn_err_t err = qn_region_probe(QN_SHARE_CUDA_IPC, device);
    return err ? err : qn_cuda_check_device(device);
}

/* bf16 halves what activations move and is what tensor cores multiply; f32 weights would not gain by it. */
static qn_err_t choose_activations(const char *choice, const qn_weight_t *weights, qn_scalar_t *ret_scalar)
{
    bool f32 = strcmp(choice, "auto") == 0 ? weights && weights->scalar == QN_SCALAR_F32 : strcmp(choice, "f32") == 0;
    *ret_scalar = f32 ? QN_SCALAR_F32 : QN_SCALAR_BF16;
    return QN_OK;
}

static qn_err_t choose_kernels(const char *choice, const char *activations, const qn_kernel_case_t *shape, int device,
                               qn_kernel_set_t *ret_set)
{
    (void)activations; /* the stream's: every kernel computes with them */
    size_t count;
    const qn_kernel_t *rows = qn_cuda_kernels(&count);
    return qn_kernels_choose_from(rows, count, choice, shape, qn_cuda_isa(device), ret_set);
}

static const qn_kernel_t *kernels(int device, size_t *ret_count, uint32_t *ret_isa)
{
    *ret_isa = qn_cuda_isa(device);
    return qn_cuda_kernels(ret_count);
}

static qn_err_t stream_create(const backend_stream_options_t *options, qn_stream_t **ret_stream)
{
    return qn_cuda_stream_create(&(qn_cuda_options_t){.device = options->device,
                                                      .activations = options->activations,
                                                      .deterministic = options->deterministic,
                                                      .dependent_launch = true,
                                                      .max_sequences = options->max_sequences,
                                                      .heads = options->shape->heads,
                                                      .kv_heads = options->shape->kv_heads,
                                                      .head_dim = options->shape->head_dim},
                                 ret_stream);
}

static void describe(const qn_stream_t *stream, int device, char *ret_text, size_t size)
{
    (void)stream;
    qn_cuda_device_name(device, ret_text, size);
}

static uint32_t stream_threads(const qn_stream_t *stream)
{
    (void)stream;
    return 0;
}

static qn_err_t stream_error(qn_stream_t *stream) { return qn_cuda_stream_error(stream); }

/* The results of these are kept by the stream. */
static void upload(qn_stream_t *stream, void *to, const void *from, size_t bytes)
{
    qn_cuda_upload(stream, to, from, bytes);
}

static void download(qn_stream_t *stream, void *to, const void *from, size_t bytes)
{
    qn_cuda_download(stream, to, from, bytes);
}

static qn_err_t mark_create(backend_mark_t **ret_mark)
{
    qn_cuda_mark_t *mark = NULL;
    qn_err_t err = qn_cuda_mark_create(true, &mark);
    *ret_mark = (backend_mark_t *)mark;
    return err;
}

static void mark_destroy(backend_mark_t **mark)
{
    qn_cuda_mark_t *own = to_mark(*mark);
    qn_cuda_mark_destroy(&own);
    *mark = NULL;
}

static void mark_set(qn_stream_t *stream, backend_mark_t *mark) { qn_cuda_mark_set(stream, to_mark(mark)); }

static bool mark_passed(qn_stream_t *stream, const backend_mark_t *mark)
{
    return qn_cuda_mark_passed(stream, to_mark(mark));
}

/* What cannot be asked is not timed; a broken stream says so elsewhere. */
static uint64_t mark_elapsed_ns(const backend_mark_t *from, const backend_mark_t *to)
{
    double us = 0;
    return qn_cuda_mark_elapsed(to_mark(from), to_mark(to), &us) == QN_OK ? (uint64_t)(us * 1e3) : 0;
}

static qn_err_t capture_end(qn_stream_t *stream, backend_graph_t **ret_graph)
{
    qn_cuda_graph_t *graph = NULL;
    qn_err_t err = qn_cuda_capture_end(stream, &graph);
    *ret_graph = (backend_graph_t *)graph;
    return err;
}

static void graph_launch(qn_stream_t *stream, backend_graph_t *graph) { qn_cuda_graph_launch(stream, to_graph(graph)); }

static void graph_destroy(backend_graph_t **graph)
{
    qn_cuda_graph_t *own = to_graph(*graph);
    qn_cuda_graph_destroy(&own);
    *graph = NULL;
}

const backend_t *backend_cuda(void)
{
    static const backend_t CUDA = {
        .name = "cuda",
        .steps_in_flight = 2,
        .logit_rows = LOGIT_ROWS,
        .check = check,
        .describe = describe,
        .choose_activations = choose_activations,
        .choose_kernels = choose_kernels,
        .kernels = kernels,
        .stream_create = stream_create,
        .stream_destroy = qn_cuda_stream_destroy,
        .stream_wait = qn_cuda_stream_wait,
        .stream_error = stream_error,
        .stream_threads = stream_threads,
        .upload = upload,
        .download = download,
        .host_create = qn_cuda_pinned_create,
        .host_destroy = qn_cuda_pinned_destroy,
        .host_pin = qn_cuda_pin,
        .host_unpin = qn_cuda_unpin,
        .mark_create = mark_create,
        .mark_destroy = mark_destroy,
        .mark_set = mark_set,
        .mark_passed = mark_passed,
        .mark_elapsed_ns = mark_elapsed_ns,
        .capture_begin = qn_cuda_capture_begin,
        .capture_end = capture_end,
        .graph_launch = graph_launch,
        .graph_destroy = graph_destroy,
    };
    return &CUDA;
}

#endif
