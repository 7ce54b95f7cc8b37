/* Kernels that fill device memory with bf16 values: load.h says with which. For files in kernels/cuda/ only. */
#ifndef QN_KERNELS_CUDA_FILL_H
#define QN_KERNELS_CUDA_FILL_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

cudaError_t qn_cuda_fill_invented(cudaStream_t stream, void *to, uint64_t count, uint64_t key);
cudaError_t qn_cuda_fill_repeated(cudaStream_t stream, void *to, uint64_t count, uint16_t value);

#ifdef __cplusplus
}
#endif

#endif
