/* What is this?      The matrix product: which of the four implementations takes it, and the plain one.
 * State owned:       none.
 * Must never:        in deterministic mode choose by the number of tokens: bits would depend on the batch.
 * Read next:         matmul_skinny.cu (few tokens), matmul_wide.cu (up to 160), matmul_blas.cu (many). */
#include "kernels/cuda/matmul/matmul.cuh"

/* Above, others are faster (tests/gpu/time_kernels.c), a little later where there are several narrow parts. */
#define SKINNY_TOKENS 8
#define SKINNY_PARTS_TOKENS 16
/* Up to here matmul_wide.cu is faster than cuBLASLt, in whole steps: with three parts, with two, of logits, and with one
 * part, by its number of outputs. */
#define WIDE_TOKENS 160
#define WIDE_PAIR_TOKENS 128
#define WIDE_LOGITS_TOKENS 64
#define WIDE_SMALL_TOKENS 128
#define WIDE_LARGE_TOKENS 32
#define SMALL_OUTPUTS 16 /* for each processor */
#define NORMED_TOKENS 4  /* above, a norm in every block costs more than a launch of its own */
#define PLAIN_TOKENS 8   /* tokens that share one read of a weight row */
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

static bool is_few(const qn_stream_t *stream, const qn_matmul_t *a)
{
    uint32_t most = a->part_count == QN_MATMUL_PARTS ? SKINNY_PARTS_TOKENS : SKINNY_TOKENS;
    return a->tokens <= most || stream->options.deterministic;
}

/* cuBLASLt starts a launch for each part, and none of them early: the more parts, the longer `wide` is ahead. */
static uint32_t most_wide_tokens(const qn_stream_t *stream, const qn_norm_matmul_t *a)
{
    const qn_matmul_t *m = &a->matmul;
    if (m->part_count > 1) return m->part_count == 2 ? WIDE_PAIR_TOKENS : WIDE_TOKENS;
    if (a->logits) return WIDE_LOGITS_TOKENS;
    return m->parts[0].outputs <= SMALL_OUTPUTS * stream->processors ? WIDE_SMALL_TOKENS : WIDE_LARGE_TOKENS;
}

static bool prefers_wide(const qn_stream_t *stream, const qn_norm_matmul_t *a)
{
    uint32_t tokens = a->matmul.tokens;
    return !stream->options.deterministic && tokens > SKINNY_TOKENS && tokens <= most_wide_tokens(stream, a) &&
           qn_cuda_wide_product_fits(stream, a);
}

static void multiply(qn_stream_t *stream, const qn_matmul_t *a, qn_scalar_t out)
{
    product_t product = {a, out};
    qn_norm_matmul_t alone = {};
    alone.matmul = *a, alone.logits = out == QN_SCALAR_F32;
    if (!product.a->tokens) return;
    if (prefers_wide(stream, &alone)) return qn_cuda_wide_product(stream, &alone);
    bool few = is_few(stream, a);
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
    if (prefers_wide(stream, a)) return qn_cuda_wide_product(stream, a);
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

/* A product that it does not take, such as a router's with an odd number of experts, goes the plain way. */
static void start_wide(qn_stream_t *stream, const qn_norm_matmul_t *a)
{
    if (qn_cuda_wide_product_fits(stream, a)) return qn_cuda_wide_product(stream, a);
    product_t product = {&a->matmul, a->logits ? QN_SCALAR_F32 : stream->options.activations};
    qn_cuda_plain(stream, &product);
    if (a->activation.out) qn_cuda_activation(stream, &a->activation);
}

extern "C" void qn_cuda_matmul_wide(qn_stream_t *stream, const void *arguments)
{
    qn_norm_matmul_t alone = {};
    alone.matmul = *(const qn_matmul_t *)arguments;
    if (alone.matmul.tokens) start_wide(stream, &alone);
}

extern "C" void qn_cuda_norm_matmul_wide(qn_stream_t *stream, const void *arguments)
{
    const qn_norm_matmul_t *a = (const qn_norm_matmul_t *)arguments;
    if (!a->matmul.tokens) return;
    if (a->norm.x) qn_cuda_rmsnorm(stream, &a->norm);
    start_wide(stream, a);
}

extern "C" void qn_cuda_matmul_blas(qn_stream_t *stream, const void *arguments)
{
    product_t product = {(const qn_matmul_t *)arguments, stream->options.activations};
    QN_ASSERT(qn_cuda_blas_fits(stream, &product));
    if (product.a->tokens) qn_cuda_blas(stream, &product);
}
