/* What is this?      The matrix product: which of the three implementations takes it, and the plain one.
 * State owned:       none.
 * Must never:        in deterministic mode choose by the number of tokens: bits would depend on the batch.
 * Read next:         matmul_skinny.cu (few tokens), matmul_blas.cu (many). */
#include "kernels/cuda/matmul/matmul.cuh"

/* Above, cuBLASLt is the faster one (tests/gpu/time_kernels.c), a little later where it takes a launch for each of
 * several narrow parts. */
#define SKINNY_TOKENS 8
#define SKINNY_PARTS_TOKENS 16
#define NORMED_TOKENS 4 /* above, a norm in every block costs more than a launch of its own */
#define PLAIN_TOKENS 8  /* tokens that share one read of a weight row */
#define PLAIN_WARPS 8

/* A warp per output and PLAIN_TOKENS tokens. Lane i adds the products m = i, i + 32, ... in ascending order. */
template <class W, class A, class O>
static __global__ void __launch_bounds__(PLAIN_WARPS *WARP)
    dot_rows(const A *x, uint32_t tokens, uint32_t inputs, qn_matmul_part_t part)
{
    grid_begin();
    uint32_t row = blockIdx.x * PLAIN_WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    uint32_t first = blockIdx.y * PLAIN_TOKENS, count = min(tokens - first, (uint32_t)PLAIN_TOKENS);
    if (row >= part.outputs) return;
    const W *weights = (const W *)part.weight.data + (size_t)row * inputs;
    float sums[PLAIN_TOKENS] = {};
    for (uint32_t m = lane; m < inputs; m += WARP) {
        float weight = to_float(weights[m]);
#pragma unroll
        for (uint32_t t = 0; t < PLAIN_TOKENS; t++)
            if (t < count) sums[t] = fmaf(to_float(x[(size_t)(first + t) * inputs + m]), weight, sums[t]);
    }
#pragma unroll
    for (uint32_t t = 0; t < PLAIN_TOKENS; t++) {
        float sum = warp_sum(sums[t]);
        if (lane || t >= count) continue;
        size_t at = (size_t)(first + t) * part.outputs + row;
        if (part.bias.data) sum += load_scalar(part.bias.data, part.bias.scalar, row);
        if (part.residual) sum += to_float(((const O *)part.residual)[at]);
        ((O *)part.out)[at] = from_float<O>(sum);
    }
}

template <class W, class A, class O>
static void start_plain(qn_stream_t *stream, const qn_matmul_t *a, const qn_matmul_part_t *part)
{
    dim3 grid(divide_up(part->outputs, PLAIN_WARPS), divide_up(a->tokens, PLAIN_TOKENS));
    qn_cuda_start(stream, "matmul", dot_rows<W, A, O>, grid, PLAIN_WARPS * WARP, 0, (const A *)a->x, a->tokens,
                  a->inputs, *part);
}

void qn_cuda_plain(qn_stream_t *stream, const product_t *product)
{
    const qn_matmul_t *a = product->a;
    for (uint32_t p = 0; p < a->part_count; p++) {
        const qn_matmul_part_t *part = &a->parts[p];
        with_scalar(part->weight.scalar, [&](auto w) {
            with_scalar(stream->options.activations, [&](auto act) {
                with_scalar(product->out,
                            [&](auto out) { start_plain<decltype(w), decltype(act), decltype(out)>(stream, a, part); });
            });
        });
    }
}

static void multiply(qn_stream_t *stream, const qn_matmul_t *a, qn_scalar_t out)
{
    product_t product = {a, out};
    if (!product.a->tokens) return;
    uint32_t skinny_tokens = product.a->part_count == QN_MATMUL_PARTS ? SKINNY_PARTS_TOKENS : SKINNY_TOKENS;
    bool few = product.a->tokens <= skinny_tokens || stream->options.deterministic;
    if (few && qn_cuda_skinny_fits(stream, &product))
        qn_cuda_skinny(stream, &product);
    else if (!few && qn_cuda_blas_fits(stream, &product))
        qn_cuda_blas(stream, &product);
    else
        qn_cuda_plain(stream, &product);
}

extern "C" void qn_cuda_matmul(qn_stream_t *stream, const void *arguments)
{
    multiply(stream, (const qn_matmul_t *)arguments, stream->options.activations);
}

extern "C" void qn_cuda_matmul_logits(qn_stream_t *stream, const void *arguments)
{
    multiply(stream, (const qn_matmul_t *)arguments, QN_SCALAR_F32);
}

extern "C" void qn_cuda_norm_matmul(qn_stream_t *stream, const void *arguments)
{
    const qn_norm_matmul_t *a = (const qn_norm_matmul_t *)arguments;
    if (!a->matmul.tokens) return;
    if (qn_cuda_skinny_fused_fits(stream, a)) {
        qn_norm_matmul_t rest = *a;
        if (a->norm.x && a->matmul.tokens > NORMED_TOKENS) {
            qn_cuda_rmsnorm(stream, &a->norm);
            rest.norm.x = NULL;
        }
        return qn_cuda_skinny_fused(stream, &rest);
    }
    if (a->norm.x) qn_cuda_rmsnorm(stream, &a->norm);
    multiply(stream, &a->matmul, a->logits ? QN_SCALAR_F32 : stream->options.activations);
    if (a->activation.out) qn_cuda_activation(stream, &a->activation);
}

/* ---- each one by name ---- */

extern "C" void qn_cuda_matmul_plain(qn_stream_t *stream, const void *arguments)
{
    product_t product = {(const qn_matmul_t *)arguments, stream->options.activations};
    if (product.a->tokens) qn_cuda_plain(stream, &product);
}

extern "C" void qn_cuda_norm_matmul_plain(qn_stream_t *stream, const void *arguments)
{
    const qn_norm_matmul_t *a = (const qn_norm_matmul_t *)arguments;
    product_t product = {&a->matmul, a->logits ? QN_SCALAR_F32 : stream->options.activations};
    if (!a->matmul.tokens) return;
    if (a->norm.x) qn_cuda_rmsnorm(stream, &a->norm);
    qn_cuda_plain(stream, &product);
    if (a->activation.out) qn_cuda_activation(stream, &a->activation);
}

extern "C" void qn_cuda_matmul_skinny(qn_stream_t *stream, const void *arguments)
{
    product_t product = {(const qn_matmul_t *)arguments, stream->options.activations};
    QN_ASSERT(qn_cuda_skinny_fits(stream, &product));
    if (product.a->tokens) qn_cuda_skinny(stream, &product);
}

extern "C" void qn_cuda_matmul_blas(qn_stream_t *stream, const void *arguments)
{
    product_t product = {(const qn_matmul_t *)arguments, stream->options.activations};
    QN_ASSERT(qn_cuda_blas_fits(stream, &product));
    if (product.a->tokens) qn_cuda_blas(stream, &product);
}
