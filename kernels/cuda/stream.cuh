/* The CUDA stream's inside, and how kernels of this folder are launched. For files in kernels/cuda/ only. */
#ifndef QN_KERNELS_CUDA_STREAM_CUH
#define QN_KERNELS_CUDA_STREAM_CUH

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <type_traits>

extern "C" {
#include "common/assert.h"
#include "common/err.h"
#include "kernels/cuda/cuda.h"
}

#define QN_CUDA_RING_PARTS 4
#define QN_CUDA_SPLITS_MAX 64                 /* of one run and kv head in attention.decode */
#define QN_CUDA_CLUSTER_MAX 8                 /* blocks; what every device with clusters takes */
#define QN_CUDA_PLANS 512                     /* products whose algorithm is remembered; a hash slot each */
#define QN_CUDA_BLAS_BYTES ((size_t)32 << 20) /* what cuBLASLt recommends for Hopper */

/* A product that cuBLASLt was asked about. */
typedef struct {
    uint32_t outputs, tokens, inputs;
    uint32_t kind; /* types, bias and residual; 0 = empty */
    cublasLtMatmulAlgo_t algorithm;
} qn_cuda_plan_t;

struct qn_stream {
    cudaStream_t stream;
    qn_cuda_options_t options;
    uint32_t processors, capability; /* 90 for 9.0 */
    size_t block_shared;             /* dynamic shared memory of a block, at most */
    size_t beside_shared;            /* the same of one that leaves room for a block of attention.decode */
    cudaError_t error;               /* first, or cudaSuccess */
    const char *error_at;            /* the launch it was found at; a literal */
    /* The ring: parts are filled one after the other; an event tells when a part's copies were made. */
    char *ring;
    size_t part_bytes, used;
    unsigned part;
    cudaEvent_t part_done[QN_CUDA_RING_PARTS];
    /* One workspace for the library and for attention's partial sums: launches of a stream do not overlap. */
    char *workspace;
    size_t workspace_bytes;
    uint32_t *counters;  /* attention: splits that are done; all zero between launches */
    uint32_t splits_max; /* of one run and kv head */
    cublasLtHandle_t blas;
    /* Where the parts of a product after the first run beside it; each side has a workspace of QN_CUDA_BLAS_BYTES. */
    cudaStream_t sides[QN_MATMUL_PARTS - 1];
    cudaEvent_t forked, joined[QN_MATMUL_PARTS - 1];
    char *side_workspaces;
    bool rejoined;         /* the next launch follows several: it begins when all of them are done */
    qn_cuda_plan_t *plans; /* [QN_CUDA_PLANS] */
    void *encode_map;      /* the driver's cuTensorMapEncodeTiled; from sm_90 on */
    uint32_t clusters[2][QN_CUDA_CLUSTER_MAX]; /* matmul_wide.cu: that run at once, by blocks a processor and size */
};

/* Keeps the first error and where it was found. */
static inline void qn_cuda_check(qn_stream_t *stream, cudaError_t error, const char *at)
{
    if (error == cudaSuccess || stream->error != cudaSuccess) return;
    stream->error = error;
    stream->error_at = at;
}

/* Raise the shared memory limit of kernels that need more than 48 KiB. Called once per stream. */
cudaError_t qn_cuda_prepare_attention(qn_stream_t *stream);
/* After it; for devices of capability 9.0. */
cudaError_t qn_cuda_prepare_wide(void);
cudaError_t qn_cuda_prepare_wide_product(qn_stream_t *stream);
cudaError_t qn_cuda_prepare_skinny(const qn_stream_t *stream);
cudaError_t qn_cuda_prepare_experts(void);
/* The same for rows of logits; for devices with clusters only. */
cudaError_t qn_cuda_prepare_sampler(void);
cudaError_t qn_cuda_prepare_logprobs(void);
/* Dynamic shared memory of a block of attention.decode. */
size_t qn_cuda_decode_shared(uint32_t head_dim);
/* Workspace of one decode launch. */
size_t qn_cuda_attention_bytes(uint32_t runs, uint32_t heads, uint32_t kv_heads, uint32_t head_dim, uint32_t splits);

/* attention_resident.cu: whether it takes this launch, its workspace, and the launch. `settled`: the tables, the runs and
 * all of the cache but the rows of this step's tokens are as they will be read, whatever runs before. */
bool qn_cuda_resident_fits(const qn_stream_t *stream, const qn_attention_t *a);
size_t qn_cuda_resident_bytes(const qn_stream_t *stream);
void qn_cuda_start_resident(qn_stream_t *stream, const qn_attention_t *a, bool settled);
cudaError_t qn_cuda_prepare_resident(qn_stream_t *stream);
/* attention_enter.cu: all of the launch but attention itself, for shapes that `resident` takes. */
void qn_cuda_enter_attention(qn_stream_t *stream, const qn_decode_attention_t *f);

/* How a kernel is launched. */
typedef struct {
    bool alone;       /* begins when all before it is done, also with dependent launch */
    unsigned cluster; /* blocks along x that run together and see each other's shared memory; 1: none */
} qn_cuda_how_t;

/* Launches; with dependent launch a kernel may begin before its predecessor has ended, so each kernel calls
 * grid_wait() (device.cuh) before it touches anything but weights. */
template <class... P>
static void qn_cuda_start_as(qn_stream_t *stream, const char *at, qn_cuda_how_t how, void (*kernel)(P...), dim3 grid,
                             unsigned threads, size_t shared, std::type_identity_t<P>... arguments)
{
    /* One split of first-level cache and shared memory for all kernels: a processor changes it only when it is empty,
     * which dependent launch keeps it from ever being. */
    cudaLaunchAttribute attributes[3] = {};
    unsigned count = 1;
    attributes[0].id = cudaLaunchAttributePreferredSharedMemoryCarveout;
    attributes[0].val.sharedMemCarveout = cudaSharedmemCarveoutMaxShared;
    bool alone = how.alone || stream->rejoined;
    stream->rejoined = false;
    if (stream->options.dependent_launch && stream->capability >= 90 && !alone) {
        attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attributes[count++].val.programmaticStreamSerializationAllowed = 1;
    }
    if (how.cluster > 1) {
        attributes[count].id = cudaLaunchAttributeClusterDimension;
        attributes[count].val.clusterDim.x = how.cluster;
        attributes[count].val.clusterDim.y = attributes[count].val.clusterDim.z = 1;
        count++;
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared;
    config.stream = stream->stream;
    config.attrs = attributes;
    config.numAttrs = count;
    qn_cuda_check(stream, cudaLaunchKernelEx(&config, kernel, arguments...), at);
}

template <class... P>
static void qn_cuda_start(qn_stream_t *stream, const char *at, void (*kernel)(P...), dim3 grid, unsigned threads,
                          size_t shared, std::type_identity_t<P>... arguments)
{
    qn_cuda_start_as(stream, at, {false, 1}, kernel, grid, threads, shared, arguments...);
}

#endif
