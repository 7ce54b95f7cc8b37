/* What is this?      The CUDA stream: context, workspace, pinned ring for step arguments, marks and graphs.
 * State owned:       all of struct qn_stream.
 * Must never:        allocate or synchronise the device on the step path; lose the first error.
 * Read next:         cuda.h, then device.cuh and any kernel of this folder. */
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "kernels/cuda/stream.cuh"

#define RING_BYTES ((size_t)8 << 20)
#define RING_ALIGN 256
#define STATIC_BYTES 1024 /* of shared memory that kernels declare and that are meant to stand side by side */

struct qn_cuda_mark {
    cudaEvent_t event;
};
struct qn_cuda_graph {
    cudaGraph_t graph;
    cudaGraphExec_t program;
};

static qn_err_t fail(cudaError_t error, const char *what)
{
    qn_err_t code = error == cudaErrorMemoryAllocation ? QN_ERR_NO_MEMORY : QN_ERR_DEVICE;
    return qn_fail(code, "%s: %s (%s)", what, cudaGetErrorString(error), cudaGetErrorName(error));
}

/* ---- life ---- */

extern "C" qn_err_t qn_cuda_check_device(int device)
{
    int major = 0, minor = 0;
    cudaError_t error = cudaSetDevice(device);
    if (!error) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (!error) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    if (error)
        return qn_fail(QN_ERR_DEVICE, "cannot use CUDA device %d: %s; look at nvidia-smi", device,
                       cudaGetErrorString(error));
    /* Others of 8.x have less shared memory than decode attention takes. */
    if (minor != 0 || (major != 8 && major != 9))
        return qn_fail(QN_ERR_UNSUPPORTED,
                       "CUDA device %d has compute capability %d.%d; this build is for 8.0 and "
                       "9.0",
                       device, major, minor);
    return QN_OK;
}

extern "C" uint32_t qn_cuda_isa(int device)
{
    int major = 0;
    cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    return error == cudaSuccess && major >= 9 ? QN_ISA_SM90 : 0;
}

extern "C" void qn_cuda_device_name(int device, char *ret_name, size_t size)
{
    cudaDeviceProp properties;
    bool known = cudaGetDeviceProperties(&properties, device) == cudaSuccess;
    snprintf(ret_name, size, "%s", known ? properties.name : "");
}

static qn_err_t enter_device(qn_stream_t *stream)
{
    int device = stream->options.device, major, minor, processors, shared, reserved, block;
    qn_err_t err = qn_cuda_check_device(device);
    if (err) return err;
    cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (!error) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    if (!error) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    if (!error) error = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
    if (!error) error = cudaDeviceGetAttribute(&block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (!error) error = cudaDeviceGetAttribute(&reserved, cudaDevAttrReservedSharedMemoryPerBlock, device);
    if (error) return fail(error, "attributes of the CUDA device");
    stream->capability = (uint32_t)(major * 10 + minor);
    stream->processors = (uint32_t)processors;
    size_t attention = qn_cuda_decode_shared(stream->options.head_dim) + STATIC_BYTES;
    stream->block_shared = (size_t)block - STATIC_BYTES;
    stream->beside_shared = (size_t)(shared - 2 * reserved) - STATIC_BYTES - attention;
    return QN_OK;
}

/* Splits of a decode: enough that one sequence alone fills the device. */
static void size_attention(qn_stream_t *stream)
{
    const qn_cuda_options_t *o = &stream->options;
    uint32_t splits = 256 / o->kv_heads;
    stream->splits_max = splits < 16 ? 16 : splits > QN_CUDA_SPLITS_MAX ? QN_CUDA_SPLITS_MAX : splits / 8 * 8;
    size_t partial = qn_cuda_attention_bytes(o->max_sequences, o->heads, o->kv_heads, o->head_dim, stream->splits_max);
    size_t resident = qn_cuda_resident_bytes(stream);
    stream->workspace_bytes = partial > QN_CUDA_BLAS_BYTES ? partial : QN_CUDA_BLAS_BYTES;
    if (resident > stream->workspace_bytes) stream->workspace_bytes = resident;
}

static cudaError_t make_buffers(qn_stream_t *stream)
{
    size_t counters = ((size_t)stream->options.max_sequences * stream->options.heads + 1) * sizeof *stream->counters;
    size_t ring = stream->options.staging_bytes ? stream->options.staging_bytes : RING_BYTES;
    stream->part_bytes = ring / QN_CUDA_RING_PARTS / RING_ALIGN * RING_ALIGN;
    cudaError_t error = cudaStreamCreateWithFlags(&stream->stream, cudaStreamNonBlocking);
    if (!error) error = cudaMallocHost((void **)&stream->ring, ring);
    for (int i = 0; i < QN_CUDA_RING_PARTS && !error; i++)
        error = cudaEventCreateWithFlags(&stream->part_done[i], cudaEventDisableTiming);
    if (!error) error = cudaMalloc((void **)&stream->workspace, stream->workspace_bytes);
    if (!error) error = cudaMalloc((void **)&stream->counters, counters);
    if (!error) error = cudaMemset(stream->counters, 0, counters);
    for (int i = 0; i < QN_MATMUL_PARTS - 1 && !error; i++) {
        error = cudaStreamCreateWithFlags(&stream->sides[i], cudaStreamNonBlocking);
        if (!error) error = cudaEventCreateWithFlags(&stream->joined[i], cudaEventDisableTiming);
    }
    if (!error) error = cudaEventCreateWithFlags(&stream->forked, cudaEventDisableTiming);
    if (!error) error = cudaMalloc((void **)&stream->side_workspaces, (QN_MATMUL_PARTS - 1) * QN_CUDA_BLAS_BYTES);
    if (!error) error = qn_cuda_prepare_attention(stream);
    if (!error) error = qn_cuda_prepare_skinny(stream);
    if (!error) error = qn_cuda_prepare_experts();
    if (!error && stream->capability >= 90) error = qn_cuda_prepare_wide();
    if (!error && stream->capability >= 90) error = qn_cuda_prepare_wide_product(stream);
    if (!error && stream->capability >= 90) error = qn_cuda_prepare_sampler();
    if (!error && stream->capability >= 90) error = qn_cuda_prepare_logprobs();
    return error;
}

qn_err_t qn_cuda_stream_create(const qn_cuda_options_t *options, qn_stream_t **ret_stream)
{
    QN_ASSERT(options->max_sequences && options->max_sequences <= QN_SLOTS_MAX && options->kv_heads &&
              options->heads % options->kv_heads == 0);
    qn_stream_t *stream = (qn_stream_t *)calloc(1, sizeof *stream);
    if (stream) stream->plans = (qn_cuda_plan_t *)calloc(QN_CUDA_PLANS, sizeof *stream->plans);
    if (!stream || !stream->plans) {
        free(stream);
        return qn_fail(QN_ERR_NO_MEMORY, "no memory for a CUDA stream");
    }
    stream->options = *options;
    qn_err_t err = enter_device(stream);
    if (!err) {
        size_attention(stream);
        cudaError_t error = make_buffers(stream);
        if (error) err = fail(error, "cannot make a CUDA stream with its workspace");
    }
    if (!err && cublasLtCreate(&stream->blas) != CUBLAS_STATUS_SUCCESS)
        err = qn_fail(QN_ERR_DEVICE, "cuBLASLt cannot be initialised; is the library the driver's version?");
    if (err)
        qn_cuda_stream_destroy(&stream);
    else
        *ret_stream = stream;
    return err;
}

void qn_cuda_stream_destroy(qn_stream_t **stream)
{
    qn_stream_t *self = *stream;
    if (!self) return;
    if (self->stream) cudaStreamSynchronize(self->stream);
    if (self->blas) cublasLtDestroy(self->blas);
    for (int i = 0; i < QN_CUDA_RING_PARTS; i++)
        if (self->part_done[i]) cudaEventDestroy(self->part_done[i]);
    cudaFreeHost(self->ring);
    cudaFree(self->workspace);
    cudaFree(self->counters);
    cudaFree(self->side_workspaces);
    for (int i = 0; i < QN_MATMUL_PARTS - 1; i++) {
        if (self->joined[i]) cudaEventDestroy(self->joined[i]);
        if (self->sides[i]) cudaStreamDestroy(self->sides[i]);
    }
    if (self->forked) cudaEventDestroy(self->forked);
    if (self->stream) cudaStreamDestroy(self->stream);
    free(self->plans);
    free(self);
    *stream = NULL;
}

qn_err_t qn_cuda_stream_wait(qn_stream_t *stream)
{
    qn_cuda_check(stream, cudaStreamSynchronize(stream->stream), "a kernel that ran");
    return qn_cuda_stream_error(stream);
}

qn_err_t qn_cuda_stream_error(const qn_stream_t *stream)
{
    return stream->error ? fail(stream->error, stream->error_at) : QN_OK;
}

uint32_t qn_cuda_stream_processors(const qn_stream_t *stream) { return stream->processors; }

/* ---- moving ---- */

/* Ends a part and waits for the next one's copies of the lap before. */
static cudaError_t next_part(qn_stream_t *stream)
{
    cudaError_t error = cudaEventRecord(stream->part_done[stream->part], stream->stream);
    if (error) return error;
    stream->part = (stream->part + 1) % QN_CUDA_RING_PARTS;
    stream->used = 0;
    return cudaEventSynchronize(stream->part_done[stream->part]);
}

/* One piece that fits into a part. */
static cudaError_t upload_piece(qn_stream_t *stream, void *to, const void *from, size_t bytes)
{
    cudaError_t error = cudaSuccess;
    if (stream->used + bytes > stream->part_bytes) error = next_part(stream);
    if (error) return error;
    char *at = stream->ring + stream->part * stream->part_bytes + stream->used;
    memcpy(at, from, bytes);
    stream->used += (bytes + RING_ALIGN - 1) / RING_ALIGN * RING_ALIGN;
    return cudaMemcpyAsync(to, at, bytes, cudaMemcpyHostToDevice, stream->stream);
}

qn_err_t qn_cuda_upload(qn_stream_t *stream, void *to, const void *from, size_t bytes)
{
    cudaError_t error = cudaSuccess;
    for (size_t done = 0, piece; done < bytes && !error; done += piece) {
        piece = bytes - done < stream->part_bytes ? bytes - done : stream->part_bytes;
        error = upload_piece(stream, (char *)to + done, (const char *)from + done, piece);
    }
    qn_cuda_check(stream, error, "upload");
    return error ? fail(error, "upload") : QN_OK;
}

qn_err_t qn_cuda_download(qn_stream_t *stream, void *to, const void *from, size_t bytes)
{
    cudaError_t error = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream->stream);
    qn_cuda_check(stream, error, "download");
    return error ? fail(error, "download") : QN_OK;
}

qn_err_t qn_cuda_pinned_create(size_t bytes, void **ret_memory)
{
    cudaError_t error = cudaMallocHost(ret_memory, bytes);
    return error ? fail(error, "pinned memory") : QN_OK;
}

void qn_cuda_pinned_destroy(void **memory)
{
    if (*memory) cudaFreeHost(*memory);
    *memory = NULL;
}

qn_err_t qn_cuda_pin(void *memory, size_t bytes)
{
    cudaError_t error = cudaHostRegister(memory, bytes, cudaHostRegisterDefault);
    return error ? fail(error, "pinning the workspace") : QN_OK;
}

void qn_cuda_unpin(void *memory) { cudaHostUnregister(memory); }

/* ---- marks ---- */

qn_err_t qn_cuda_mark_create(bool timed, qn_cuda_mark_t **ret_mark)
{
    qn_cuda_mark_t *mark = (qn_cuda_mark_t *)calloc(1, sizeof *mark);
    if (!mark) return qn_fail(QN_ERR_NO_MEMORY, "no memory for a mark");
    cudaError_t error = cudaEventCreateWithFlags(&mark->event, timed ? cudaEventDefault : cudaEventDisableTiming);
    if (error) {
        free(mark);
        return fail(error, "mark");
    }
    *ret_mark = mark;
    return QN_OK;
}

void qn_cuda_mark_destroy(qn_cuda_mark_t **mark)
{
    if (!*mark) return;
    cudaEventDestroy((*mark)->event);
    free(*mark);
    *mark = NULL;
}

qn_err_t qn_cuda_mark_set(qn_stream_t *stream, qn_cuda_mark_t *mark)
{
    cudaError_t error = cudaEventRecord(mark->event, stream->stream);
    qn_cuda_check(stream, error, "mark");
    return error ? fail(error, "mark") : QN_OK;
}

bool qn_cuda_mark_passed(qn_stream_t *stream, const qn_cuda_mark_t *mark)
{
    if (stream->error) return true;
    cudaError_t error = cudaEventQuery(mark->event);
    if (error == cudaErrorNotReady) return false;
    qn_cuda_check(stream, error, "a kernel that ran");
    return true;
}

qn_err_t qn_cuda_mark_wait(qn_cuda_mark_t *mark)
{
    cudaError_t error = cudaEventSynchronize(mark->event);
    return error ? fail(error, "wait for a mark") : QN_OK;
}

qn_err_t qn_cuda_mark_elapsed(const qn_cuda_mark_t *from, const qn_cuda_mark_t *to, double *ret_us)
{
    float milliseconds;
    cudaError_t error = cudaEventElapsedTime(&milliseconds, from->event, to->event);
    if (error) return fail(error, "time between marks");
    *ret_us = (double)milliseconds * 1000;
    return QN_OK;
}

/* ---- graphs ---- */

qn_err_t qn_cuda_capture_begin(qn_stream_t *stream)
{
    cudaError_t error = cudaStreamBeginCapture(stream->stream, cudaStreamCaptureModeThreadLocal);
    qn_cuda_check(stream, error, "begin of a capture");
    return error ? fail(error, "begin of a capture") : QN_OK;
}

qn_err_t qn_cuda_capture_end(qn_stream_t *stream, qn_cuda_graph_t **ret_graph)
{
    qn_cuda_graph_t *graph = (qn_cuda_graph_t *)calloc(1, sizeof *graph);
    if (!graph) return qn_fail(QN_ERR_NO_MEMORY, "no memory for a graph");
    cudaError_t error = cudaStreamEndCapture(stream->stream, &graph->graph);
    if (!error) error = cudaGraphInstantiate(&graph->program, graph->graph, 0);
    qn_cuda_check(stream, error, "end of a capture");
    if (error) {
        qn_cuda_graph_destroy(&graph);
        return fail(error, "end of a capture");
    }
    *ret_graph = graph;
    return QN_OK;
}

qn_err_t qn_cuda_graph_launch(qn_stream_t *stream, qn_cuda_graph_t *graph)
{
    cudaError_t error = cudaGraphLaunch(graph->program, stream->stream);
    qn_cuda_check(stream, error, "launch of a graph");
    return error ? fail(error, "launch of a graph") : QN_OK;
}

void qn_cuda_graph_destroy(qn_cuda_graph_t **graph)
{
    if (!*graph) return;
    if ((*graph)->program) cudaGraphExecDestroy((*graph)->program);
    if ((*graph)->graph) cudaGraphDestroy((*graph)->graph);
    free(*graph);
    *graph = NULL;
}
