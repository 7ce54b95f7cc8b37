/* What is this?      What stands before decode attention of many sequences, in one launch: the norms of q's and k's
 *                    heads, their rotation, and the write of k and v to the cache.
 * State owned:       none.
 * Must never:        round elsewhere than the operations apart do.
 * Read next:         rope.cu, kv.cu and norm.cuh (the operations apart), attention_resident.cu (what follows). */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/norm.cuh"

#define VEC 8

typedef struct {
    qn_kv_write_t write;
    bf16 *q;
    const float *angles;        /* NULL: no rotation */
    qn_weight_t q_norm, k_norm; /* data NULL: none */
    float q_eps, q_offset, k_eps, k_offset;
    uint32_t heads;
} enter_t;

/* A thread's share of a head: pairs i, i + D/2 for VEC i. The sum of squares is that of a warp over the row, in which
 * lane l has elements VEC * l on: the lanes beyond the row add nothing. */
template <int D>
static __device__ __forceinline__ void norm_head(const qn_weight_t &weight, float eps, float offset, uint32_t at,
                                                 float (&low)[VEC], float (&high)[VEC])
{
    constexpr uint32_t EACH = D / (2 * VEC);
    uint32_t mine = ((1u << EACH) - 1) << threadIdx.x % WARP / EACH * EACH; /* the lanes of this head */
    float sums[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < VEC; i++)
        sums[0] = fmaf(low[i], low[i], sums[0]), sums[1] = fmaf(high[i], high[i], sums[1]);
    float sum = sums[0] + sums[1];
#pragma unroll
    for (int step = D / (4 * VEC); step > 0; step /= 2)
        sum += __shfl_xor_sync(mine, sum, step);
    float scale = norm_scale(sum, D, eps);
#pragma unroll
    for (int i = 0; i < VEC; i++) {
        float one = load_scalar(weight.data, weight.scalar, at + i);
        float other = load_scalar(weight.data, weight.scalar, at + D / 2 + i);
        low[i] = to_float(from_float<bf16>(normed(low[i], scale, one, offset)));
        high[i] = to_float(from_float<bf16>(normed(high[i], scale, other, offset)));
    }
}

/* A block per token; D/16 threads per head: those of q, then of k, then of v. */
template <int D> static __global__ void enter(const __grid_constant__ enter_t e)
{
    constexpr uint32_t EACH = D / (2 * VEC);
    grid_begin();
    const qn_kv_t &kv = e.write.kv;
    uint32_t token = blockIdx.x, at = threadIdx.x % EACH * VEC, jobs = e.heads + 2 * kv.kv_heads;
    int64_t row = e.write.kv_rows[token];
    const float *angles = e.angles ? e.angles + (size_t)token * D : NULL;
    for (uint32_t first = 0; first < jobs; first += blockDim.x / EACH) {
        uint32_t job = first + threadIdx.x / EACH;
        if (job >= jobs) return;
        uint32_t other = job - e.heads, kind = job < e.heads ? 0 : other < kv.kv_heads ? 1 : 2;
        uint32_t head = kind == 0 ? job : kind == 1 ? other : other - kv.kv_heads;
        const bf16 *from = kind == 0 ? e.q : (const bf16 *)(kind == 1 ? e.write.k : e.write.v);
        from += ((size_t)token * (kind == 0 ? e.heads : kv.kv_heads) + head) * D + at;
        float low[VEC], high[VEC];
        load_vector(from, low);
        load_vector(from + D / 2, high);
        if (e.q_norm.data && kind == 0) norm_head<D>(e.q_norm, e.q_eps, e.q_offset, at, low, high);
        if (e.k_norm.data && kind == 1) norm_head<D>(e.k_norm, e.k_eps, e.k_offset, at, low, high);
        if (angles && kind < 2) {
            float cosines[VEC], sines[VEC];
            load_vector(angles + at, cosines);
            load_vector(angles + D / 2 + at, sines);
#pragma unroll
            for (int i = 0; i < VEC; i++)
                rotate_pair(low[i], high[i], cosines[i], sines[i]);
        }
        if (kind && row < 0) continue;
        bf16 *to = kind == 0 ? (bf16 *)from
                             : (bf16 *)kv.data + kv_offset(kv, e.write.layer, kind - 1, 0, 0) +
                                   ((size_t)row * kv.kv_heads + head) * D + at;
        store_vector(to, low);
        store_vector(to + D / 2, high);
    }
}

void qn_cuda_enter_attention(qn_stream_t *stream, const qn_decode_attention_t *f)
{
    enter_t e = {
        f->write,      (bf16 *)f->attention.q,  f->rope.angles,    {}, {}, f->q_norm.eps, f->q_norm.weight_offset,
        f->k_norm.eps, f->k_norm.weight_offset, f->attention.heads};
    if (f->q_norm.x) e.q_norm = f->q_norm.weight;
    if (f->k_norm.x) e.k_norm = f->k_norm.weight;
    uint32_t dim = f->attention.kv.head_dim, threads = (e.heads + 2 * f->write.kv.kv_heads) * (dim / (2 * VEC));
    threads = threads < 512 ? divide_up(threads, WARP) * WARP : 512;
    qn_cuda_start(stream, "enter_attention", dim == 64 ? enter<64> : enter<128>, f->write.tokens, threads, 0, e);
}
