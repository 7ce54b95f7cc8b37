/* What is this?      Rotary position embedding: the angles of a step, and the rotation of q and k.
 * State owned:       none.
 * Must never:        form an angle in less than float32, or its sine by the fast approximation.
 * Read next:         kv.cu. */
#include "kernels/cuda/device.cuh"

/* The base of a sequence of `length` tokens under dynamic scaling, "NTK-aware" (transformers' modeling_rope_utils):
 * beyond the original context it grows with the length. */
static __device__ double stretched_base(const qn_rope_angles_t &a, uint32_t length)
{
    double dim = a.head_dim, theta = a.theta;
    if (length <= a.original_positions) return theta;
    return theta * pow((double)a.factor * length / a.original_positions - ((double)a.factor - 1), dim / (dim - 2));
}

/* A block per token. */
static __global__ void make_angles(qn_rope_angles_t a)
{
    __shared__ double base;
    grid_begin();
    uint32_t pairs = a.head_dim / 2, t = blockIdx.x;
    float *cosines = a.out + (size_t)t * a.head_dim, *sines = cosines + pairs;
    if (a.lengths) {
        if (threadIdx.x == 0) base = stretched_base(a, a.lengths[t]);
        __syncthreads();
    }
    for (uint32_t i = threadIdx.x; i < pairs; i += blockDim.x) {
        float frequency = a.lengths ? (float)pow(base, -2.0 * i / a.head_dim) : a.frequencies[i];
        float angle = __fmul_rn((float)a.positions[t], frequency);
        cosines[i] = cosf(angle) * a.scale;
        sines[i] = sinf(angle) * a.scale;
    }
}

extern "C" void qn_cuda_rope_angles(qn_stream_t *stream, const void *arguments)
{
    const qn_rope_angles_t *a = (const qn_rope_angles_t *)arguments;
    if (a->tokens) qn_cuda_start(stream, "rope_angles", make_angles, a->tokens, 64, 0, *a);
}

/* VEC pairs of one head: x[i ..] with x[i + D/2 ..]. */
template <int VEC, class A>
static __device__ void rotate(A *x, const float *cosines, const float *sines, uint32_t pairs)
{
    float low[VEC], high[VEC], c[VEC], s[VEC];
    load_vector(x, low);
    load_vector(x + pairs, high);
    load_vector(cosines, c);
    load_vector(sines, s);
#pragma unroll
    for (int j = 0; j < VEC; j++)
        rotate_pair(low[j], high[j], c[j], s[j]);
    store_vector(x, low);
    store_vector(x + pairs, high);
}

/* A block per token; its threads share out the vectors of all heads of q, then of k. */
template <int VEC, class A> static __global__ void rotate_token(qn_rope_t a)
{
    grid_begin();
    uint32_t pairs = a.head_dim / 2, per_head = pairs / VEC, t = blockIdx.x;
    const float *cosines = a.angles + (size_t)t * a.head_dim;
    A *q = (A *)a.q + (size_t)t * a.heads * a.head_dim, *k = (A *)a.k + (size_t)t * a.kv_heads * a.head_dim;
    for (uint32_t i = threadIdx.x; i < (a.heads + a.kv_heads) * per_head; i += blockDim.x) {
        uint32_t head = i / per_head, at = i % per_head * VEC;
        A *x = head < a.heads ? q + (size_t)head * a.head_dim : k + (size_t)(head - a.heads) * a.head_dim;
        rotate<VEC>(x + at, cosines + at, cosines + pairs + at, pairs);
    }
}

extern "C" void qn_cuda_rope(qn_stream_t *stream, const void *arguments)
{
    const qn_rope_t *a = (const qn_rope_t *)arguments;
    if (!a->tokens) return;
    with_scalar(stream->options.activations, [&](auto act) {
        with_vector(a->head_dim / 2, (uintptr_t)a->q | (uintptr_t)a->k | (uintptr_t)a->angles, [&](auto vec) {
            uint32_t vectors = (a->heads + a->kv_heads) * (a->head_dim / 2 / vec());
            unsigned threads = vectors < 256 ? divide_up(vectors, WARP) * WARP : 256;
            qn_cuda_start(stream, "rope", rotate_token<vec(), decltype(act)>, a->tokens, threads, 0, *a);
        });
    });
}
