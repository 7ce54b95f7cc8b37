/* The matrix product's implementations, and what they are told beside qn_matmul_t. For files in kernels/cuda/ only. */
#ifndef QN_KERNELS_CUDA_MATMUL_CUH
#define QN_KERNELS_CUDA_MATMUL_CUH

#include "kernels/cuda/device.cuh"

/* out, and residual with it, are of type `out`: the stream's activations, or f32 for logits. */
typedef struct {
    const qn_matmul_t *a;
    qn_scalar_t out;
} product_t;

/* bf16 x bf16 with rows of 16-byte pieces. */
bool qn_cuda_thin_fits(const qn_stream_t *stream, const product_t *product);
void qn_cuda_thin(qn_stream_t *stream, const product_t *product);
/* x and weights of one type, bias of the weights' type. */
bool qn_cuda_blas_fits(const qn_stream_t *stream, const product_t *product);
void qn_cuda_blas(qn_stream_t *stream, const product_t *product);
/* Anything. */
void qn_cuda_plain(qn_stream_t *stream, const product_t *product);

#endif
