/* What is this?      Log-probabilities of the raw model distribution: log softmax of one id, and the best few.
 * State owned:       the row's values in the stream's workspace, where a slice does not fit into shared memory.
 * Must never:        let the order of equal values depend on anything but their ids.
 * Read next:         logprobs.cuh, sampler.cu. */
#include "kernels/cuda/sampling/logprobs.cuh"

/* blockIdx: x slice, y row. */
static __global__ void __launch_bounds__(ROW_THREADS, 2) log_probabilities(qn_logprobs_t a, float *scratch)
{
    extern __shared__ __align__(16) char shared[];
    grid_begin();
    uint32_t index = blockIdx.y;
    row_t row = begin_row(a.vocab, shared, scratch + (size_t)index * a.vocab);
    const float *logits = a.logits + (size_t)index * a.vocab;
    float log_sum = log_sum_exp(row, logits + row.first);
    if (row.rank == 0 && threadIdx.x == 0) a.ret_logprobs[index] = logits[a.targets[index]] - log_sum;
    qn_top_entry_t *top = a.ret_top + (size_t)index * QN_ALTERNATIVES_MAX;
    top_logprobs(row, logits + row.first, log_sum, a.top_counts[index], top);
    if (a.slots) add_logprob_ids(row, a.tables, a.slots[index], logits, log_sum, a.top_counts[index], top);
    end_row(row);
}

cudaError_t qn_cuda_prepare_logprobs(void)
{
    return cudaFuncSetAttribute(log_probabilities, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                (int)row_bytes(SLICE_MAX * ROW_BLOCKS, ROW_BLOCKS));
}

extern "C" void qn_cuda_logprobs(qn_stream_t *stream, const void *arguments)
{
    const qn_logprobs_t *a = (const qn_logprobs_t *)arguments;
    if (!a->rows) return;
    uint32_t ranks = stream->capability >= 90 ? ROW_BLOCKS : 1;
    size_t bytes = row_bytes(a->vocab, ranks);
    float *scratch = (float *)stream->workspace;
    QN_ASSERT(bytes > sizeof(row_room_t) || (size_t)a->rows * a->vocab * sizeof *scratch <= stream->workspace_bytes);
    qn_cuda_start_as(stream, "logprobs", {false, ranks}, log_probabilities, dim3(ranks, a->rows), ROW_THREADS, bytes,
                     *a, scratch);
}
