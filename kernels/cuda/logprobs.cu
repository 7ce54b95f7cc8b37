/* What is this?      Log-probabilities of the raw model distribution: log softmax of one id, and the best few.
 * State owned:       none.
 * Must never:        let the order of equal values depend on anything but their ids.
 * Read next:         logprobs.cuh, sampler.cu. */
#include "kernels/cuda/logprobs.cuh"

static __global__ void __launch_bounds__(SELECT_THREADS, 1) log_probabilities(qn_logprobs_t a)
{
    __shared__ select_room_t room;
    grid_begin();
    uint32_t row = blockIdx.x;
    const float *logits = a.logits + (size_t)row * a.vocab;
    float log_sum = log_sum_exp(logits, a.vocab, room);
    if (threadIdx.x == 0) a.ret_logprobs[row] = logits[a.targets[row]] - log_sum;
    top_logprobs(logits, a.vocab, log_sum, a.top_counts[row], room, a.ret_top + (size_t)row * QN_TOP_LOGPROBS_MAX);
}

extern "C" void qn_cuda_logprobs(qn_stream_t *stream, const void *arguments)
{
    const qn_logprobs_t *a = (const qn_logprobs_t *)arguments;
    if (a->rows) qn_cuda_start(stream, "logprobs", log_probabilities, a->rows, SELECT_THREADS, 0, *a);
}
