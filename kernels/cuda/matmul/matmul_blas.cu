/* What is this?      The matrix product for many tokens: cuBLASLt, with bias and residual as its epilogue.
 * State owned:       the stream's table of algorithms, one hash slot per shape.
 * Must never:        allocate on the step path; use TF32 for f32.
 * Read next:         matmul.cu.
 *
 * cuBLASLt counts columns first: our row-major out [T, O] is its O x T, x [T, M] its M x T, and the weights [O, M] its
 * M x O, taken transposed. In bf16 the library rounds the product before it adds bias or residual (as Hugging Face's
 * own layers do). */
#include "kernels/cuda/matmul/matmul.cuh"

typedef struct {
    cublasLtMatmulDescOpaque_t product;
    cublasLtMatrixLayoutOpaque_t weight, x, out;
} shape_t;

static const size_t BLAS_BYTES = QN_CUDA_BLAS_BYTES;

/* Up to here the parts of a product run side by side: none fills the device. */
#define SIDE_TOKENS 1024

static cudaDataType_t blas_type(qn_scalar_t scalar) { return scalar == QN_SCALAR_F32 ? CUDA_R_32F : CUDA_R_16BF; }

template <class V> static cublasStatus_t set(cublasLtMatmulDesc_t product, cublasLtMatmulDescAttributes_t name, V value)
{
    return cublasLtMatmulDescSetAttribute(product, name, &value, sizeof value);
}

static cublasStatus_t describe_bias(cublasLtMatmulDesc_t product, const qn_matmul_part_t *part)
{
    if (!part->bias.data) return CUBLAS_STATUS_SUCCESS;
    cublasStatus_t status = set(product, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    if (!status) status = set(product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, part->bias.data);
    if (!status) status = set(product, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, blas_type(part->bias.scalar));
    return status;
}

static cublasStatus_t describe(const qn_stream_t *stream, const product_t *product, const qn_matmul_part_t *part,
                               shape_t *shape)
{
    const qn_matmul_t *a = product->a;
    cublasStatus_t status = cublasLtMatmulDescInit(&shape->product, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (!status) status = set(&shape->product, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    if (!status) status = describe_bias(&shape->product, part);
    if (!status)
        status = cublasLtMatrixLayoutInit(&shape->weight, blas_type(part->weight.scalar), a->inputs, part->outputs,
                                          a->inputs);
    if (!status)
        status = cublasLtMatrixLayoutInit(&shape->x, blas_type(stream->options.activations), a->inputs, a->tokens,
                                          a->inputs);
    if (!status)
        status =
            cublasLtMatrixLayoutInit(&shape->out, blas_type(product->out), part->outputs, a->tokens, part->outputs);
    return status;
}

static cublasStatus_t ask(const qn_stream_t *stream, shape_t *shape, cublasLtMatmulAlgo_t *algorithm)
{
    cublasLtMatmulPreferenceOpaque_t preference;
    cublasStatus_t status = cublasLtMatmulPreferenceInit(&preference);
    if (!status)
        status = cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                      &BLAS_BYTES, sizeof BLAS_BYTES);
    uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE; /* of a split: sums stay f32 until they are whole */
    if (!status)
        status = cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes,
                                                      sizeof schemes);
    cublasLtMatmulHeuristicResult_t result;
    int found = 0;
    if (!status)
        status = cublasLtMatmulAlgoGetHeuristic(stream->blas, &shape->product, &shape->weight, &shape->x, &shape->out,
                                                &shape->out, &preference, 1, &result, &found);
    if (!status && !found) status = CUBLAS_STATUS_NOT_SUPPORTED;
    if (!status) *algorithm = result.algo;
    return status;
}

/* The remembered algorithm of this shape; a shape that hashes to a taken slot takes it over. */
static cublasStatus_t find_algorithm(qn_stream_t *stream, const product_t *product, const qn_matmul_part_t *part,
                                     shape_t *shape, const cublasLtMatmulAlgo_t **ret_algorithm)
{
    uint32_t kind = 1u | (uint32_t)part->weight.scalar << 1 | (uint32_t)product->out << 2 |
                    (part->bias.data ? 8u : 0u) | (part->residual ? 16u : 0u);
    uint32_t tokens = product->a->tokens, inputs = product->a->inputs;
    uint32_t hash = (part->outputs * 2654435761u ^ tokens * 2246822519u ^ inputs * 3266489917u ^ kind) * 668265263u;
    qn_cuda_plan_t *plan = &stream->plans[(hash >> 16) % QN_CUDA_PLANS];
    *ret_algorithm = &plan->algorithm;
    if (plan->kind == kind && plan->outputs == part->outputs && plan->tokens == tokens && plan->inputs == inputs)
        return CUBLAS_STATUS_SUCCESS;
    plan->kind = 0;
    cublasStatus_t status = ask(stream, shape, &plan->algorithm);
    if (status) return status;
    plan->kind = kind, plan->outputs = part->outputs, plan->tokens = tokens, plan->inputs = inputs;
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t multiply_part(qn_stream_t *stream, const product_t *product, const qn_matmul_part_t *part,
                                    cudaStream_t where, char *workspace)
{
    shape_t shape;
    const cublasLtMatmulAlgo_t *algorithm;
    cublasStatus_t status = describe(stream, product, part, &shape);
    if (!status) status = find_algorithm(stream, product, part, &shape, &algorithm);
    if (status) return status;
    float one = 1, beta = part->residual ? 1 : 0;
    const void *added = part->residual ? part->residual : part->out;
    return cublasLtMatmul(stream->blas, &shape.product, &one, part->weight.data, &shape.weight, product->a->x, &shape.x,
                          &beta, added, &shape.out, part->out, &shape.out, algorithm, workspace, QN_CUDA_BLAS_BYTES,
                          where);
}

bool qn_cuda_blas_fits(const qn_stream_t *stream, const product_t *product)
{
    const qn_matmul_t *a = product->a;
    for (uint32_t p = 0; p < a->part_count; p++) {
        const qn_matmul_part_t *part = &a->parts[p];
        if (part->weight.scalar != stream->options.activations) return false;
        if (part->bias.data && (part->bias.scalar != part->weight.scalar || product->out != part->weight.scalar))
            return false;
    }
    return true;
}

/* A product that the library refuses goes the plain way; a launch that fails is an error. */
static void start_part(qn_stream_t *stream, const product_t *product, uint32_t p, cudaStream_t where, char *workspace)
{
    cublasStatus_t status = multiply_part(stream, product, &product->a->parts[p], where, workspace);
    if (status == CUBLAS_STATUS_SUCCESS) return;
    if (status != CUBLAS_STATUS_NOT_SUPPORTED)
        return qn_cuda_check(stream, cudaErrorUnknown, cublasLtGetStatusName(status));
    qn_matmul_t single = *product->a;
    single.parts[0] = product->a->parts[p];
    single.part_count = 1;
    product_t rest = {&single, product->out};
    qn_cuda_plain(stream, &rest);
}

/* On streams that begin where the stream is now, and that it waits for. */
static void start_beside(qn_stream_t *stream, const product_t *product)
{
    cudaError_t error = cudaEventRecord(stream->forked, stream->stream);
    for (uint32_t p = 1; p < product->a->part_count && !error; p++) {
        uint32_t side = p - 1;
        error = cudaStreamWaitEvent(stream->sides[side], stream->forked, 0);
        start_part(stream, product, p, stream->sides[side], stream->side_workspaces + side * QN_CUDA_BLAS_BYTES);
        if (!error) error = cudaEventRecord(stream->joined[side], stream->sides[side]);
    }
    start_part(stream, product, 0, stream->stream, stream->workspace);
    for (uint32_t p = 1; p < product->a->part_count && !error; p++)
        error = cudaStreamWaitEvent(stream->stream, stream->joined[p - 1], 0);
    stream->rejoined = true;
    qn_cuda_check(stream, error, "parts of a product beside each other");
}

void qn_cuda_blas(qn_stream_t *stream, const product_t *product)
{
    if (product->a->part_count > 1 && product->a->tokens <= SIDE_TOKENS) return start_beside(stream, product);
    for (uint32_t p = 0; p < product->a->part_count; p++)
        start_part(stream, product, p, stream->stream, stream->workspace);
}
