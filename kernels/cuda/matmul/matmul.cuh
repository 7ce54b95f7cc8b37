/* The matrix product's implementations, and what they are told beside qn_matmul_t. For files in kernels/cuda/ only. */
#ifndef QN_KERNELS_CUDA_MATMUL_MATMUL_CUH
#define QN_KERNELS_CUDA_MATMUL_MATMUL_CUH

#include "kernels/cuda/device.cuh"

/* sums of 16 weight rows x 8 tokens += 32 inputs of them: thread t of a quad holds inputs 8t .. 8t+7 of weight rows
 * lane / 4 (low) and lane / 4 + 8 (high) and of token lane / 4. Two mma.m16n8k16, each with half of every thread's
 * inputs: the order of inputs is free as long as weights and x agree. */
static __device__ __forceinline__ void mma_rows(float (&sums)[4], const uint4 &low, const uint4 &high, const uint4 &x)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(low.x), "r"(high.x), "r"(low.y), "r"(high.y), "r"(x.x), "r"(x.y));
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(low.z), "r"(high.z), "r"(low.w), "r"(high.w), "r"(x.z), "r"(x.w));
}

/* out, and residual with it, are of type `out`: the stream's activations, or f32 for logits. */
typedef struct {
    const qn_matmul_t *a;
    qn_scalar_t out;
} product_t;

/* bf16 x bf16 with rows of 16-byte pieces. */
bool qn_cuda_skinny_fits(const qn_stream_t *stream, const product_t *product);
void qn_cuda_skinny(qn_stream_t *stream, const product_t *product);
/* The same for few tokens, with a norm of bf16 weights before it and a gated activation after it. */
bool qn_cuda_skinny_fused_fits(const qn_stream_t *stream, const qn_norm_matmul_t *a);
void qn_cuda_skinny_fused(qn_stream_t *stream, const qn_norm_matmul_t *a);
/* bf16 on capability 9.0, rows of 16-byte pieces and of four outputs; not the norm. For any number of tokens. */
bool qn_cuda_wide_product_fits(const qn_stream_t *stream, const qn_norm_matmul_t *a);
void qn_cuda_wide_product(qn_stream_t *stream, const qn_norm_matmul_t *a);
/* x and weights of one type, bias of the weights' type. */
bool qn_cuda_blas_fits(const qn_stream_t *stream, const product_t *product);
void qn_cuda_blas(qn_stream_t *stream, const product_t *product);
/* Anything. */
void qn_cuda_plain(qn_stream_t *stream, const product_t *product);

#endif
