/* The CUDA backend: its stream, its rows of the registry, and what a host needs to feed it: a pinned ring for step
 * arguments, marks to wait for, and captured graphs. C; no CUDA header is needed to include it.
 *
 * The launch functions take the argument structs of kernels.h with device pointers in them, arrays of runs, samples,
 * ids and copies included: nothing the launch is given is read by the host, so that a launch can be captured.
 * Activations are the stream's type. One thread at a time uses a stream.
 *
 * Devices: compute capability 8.0 and 9.0 (cubins only, nothing is compiled at run time). */
#ifndef QN_KERNELS_CUDA_CUDA_H
#define QN_KERNELS_CUDA_CUDA_H

#include "kernels/fused.h"

typedef struct {
    int device;              /* ordinal */
    qn_scalar_t activations; /* type of every `void *` activation of kernels.h; logits are f32 always */
    bool deterministic;      /* batch-invariant products and attention, whatever they cost */
    bool dependent_launch;   /* sm_90: a kernel is made resident, and fetches weights, while its predecessor ends */
    uint32_t max_sequences;  /* N of one attention launch, at most QN_SLOTS_MAX */
    uint32_t heads, kv_heads, head_dim; /* the greatest; they size the workspace of attention */
    size_t staging_bytes;               /* of the pinned ring; 0 = 8 MiB */
} qn_cuda_options_t;

/* Returns owned. Allocates the workspace (library and attention) and the ring: nothing after it allocates.
 * Failure: QN_ERR_DEVICE, QN_ERR_UNSUPPORTED (compute capability), QN_ERR_NO_MEMORY. */
qn_err_t qn_cuda_stream_create(const qn_cuda_options_t *options, qn_stream_t **ret_stream);
void qn_cuda_stream_destroy(qn_stream_t **stream);
/* Blocks until every launch so far is done; returns the first error since the stream was made, naming its launch. */
qn_err_t qn_cuda_stream_wait(qn_stream_t *stream);
/* The first error that is known by now; does not wait. */
qn_err_t qn_cuda_stream_error(const qn_stream_t *stream);
/* Whether this build holds code for device `device`. Failure: QN_ERR_DEVICE, QN_ERR_UNSUPPORTED. Any thread. */
qn_err_t qn_cuda_check_device(int device);
/* QN_ISA_ bits of device `device`; 0 where it cannot be asked. */
uint32_t qn_cuda_isa(int device);
/* "NVIDIA H200". Writes "" where the device cannot be asked. */
void qn_cuda_device_name(int device, char *ret_name, size_t size);
/* Multiprocessors of the stream's device. */
uint32_t qn_cuda_stream_processors(const qn_stream_t *stream);

/* ---- moving step arguments and results ---- */

/* Copies `bytes` at `from` into the ring before it returns, and from there to device memory `to` in stream order.
 * Blocks only when the ring is still full of copies that the device has not made. Not while capturing. Errors of
 * upload and download are the stream's, too. */
qn_err_t qn_cuda_upload(qn_stream_t *stream, void *to, const void *from, size_t bytes);
/* Copies device memory `from` to pinned host memory `to` in stream order; `to` is valid after a mark is passed. */
qn_err_t qn_cuda_download(qn_stream_t *stream, void *to, const void *from, size_t bytes);
/* Pinned host memory, which kernels can write too, by the same address; returns owned. */
qn_err_t qn_cuda_pinned_create(size_t bytes, void **ret_memory);
/* Pins memory that somebody else made, page-aligned, so that copies into it are the device's own; and the reverse. */
qn_err_t qn_cuda_pin(void *memory, size_t bytes);
void qn_cuda_unpin(void *memory);
void qn_cuda_pinned_destroy(void **memory);

/* A mark is a place in the stream. `timed` marks can be compared. */
typedef struct qn_cuda_mark qn_cuda_mark_t;
qn_err_t qn_cuda_mark_create(bool timed, qn_cuda_mark_t **ret_mark);
void qn_cuda_mark_destroy(qn_cuda_mark_t **mark);
qn_err_t qn_cuda_mark_set(qn_stream_t *stream, qn_cuda_mark_t *mark);
/* Whether the device has passed the mark, or the stream has failed; does not wait. */
bool qn_cuda_mark_passed(qn_stream_t *stream, const qn_cuda_mark_t *mark);
/* Blocks until the device has passed the mark. */
qn_err_t qn_cuda_mark_wait(qn_cuda_mark_t *mark);
/* Microseconds of the device between two timed marks that it has passed. */
qn_err_t qn_cuda_mark_elapsed(const qn_cuda_mark_t *from, const qn_cuda_mark_t *to, double *ret_us);

/* ---- graphs ---- */

/* Launches between begin and end are recorded, not run; pointers and sizes are frozen, what they point to is not. */
typedef struct qn_cuda_graph qn_cuda_graph_t;
qn_err_t qn_cuda_capture_begin(qn_stream_t *stream);
qn_err_t qn_cuda_capture_end(qn_stream_t *stream, qn_cuda_graph_t **ret_graph);
qn_err_t qn_cuda_graph_launch(qn_stream_t *stream, qn_cuda_graph_t *graph);
void qn_cuda_graph_destroy(qn_cuda_graph_t **graph);

/* ---- implementations ---- */

/* Returns view of the rows of this backend; names are "cuda" (the best for the launch at hand), "reference" (the plain
 * one), what "cuda" chooses from for decode attention, "splits" and "resident", for prompts, "mma" and "wgmma", and for
 * products, "wide" (the last three for bf16 activations only). */
const qn_kernel_t *qn_cuda_kernels(size_t *ret_count);

void qn_cuda_slot_update(qn_stream_t *stream, const void *arguments);
void qn_cuda_block_copy(qn_stream_t *stream, const void *arguments);
void qn_cuda_step_input(qn_stream_t *stream, const void *arguments);
void qn_cuda_embedding(qn_stream_t *stream, const void *arguments);
void qn_cuda_rmsnorm(qn_stream_t *stream, const void *arguments);
void qn_cuda_layernorm(qn_stream_t *stream, const void *arguments);
void qn_cuda_matmul(qn_stream_t *stream, const void *arguments);
void qn_cuda_matmul_skinny(qn_stream_t *stream, const void *arguments);
void qn_cuda_matmul_blas(qn_stream_t *stream, const void *arguments);
void qn_cuda_matmul_wide(qn_stream_t *stream, const void *arguments);
void qn_cuda_matmul_plain(qn_stream_t *stream, const void *arguments);
/* As qn_cuda_matmul, with outputs in f32 whatever the activations are (logits); no residual. */
void qn_cuda_matmul_logits(qn_stream_t *stream, const void *arguments);
void qn_cuda_rope_angles(qn_stream_t *stream, const void *arguments);
void qn_cuda_rope(qn_stream_t *stream, const void *arguments);
void qn_cuda_kv_write(qn_stream_t *stream, const void *arguments);
void qn_cuda_attention_prefill(qn_stream_t *stream, const void *arguments);
void qn_cuda_attention_mma(qn_stream_t *stream, const void *arguments);
void qn_cuda_attention_wgmma(qn_stream_t *stream, const void *arguments);
/* The shapes of the latter. */
bool qn_cuda_wide_takes(uint32_t head_dim, uint32_t block_tokens);
void qn_cuda_attention_decode(qn_stream_t *stream, const void *arguments);
void qn_cuda_attention_splits(qn_stream_t *stream, const void *arguments);
void qn_cuda_attention_resident(qn_stream_t *stream, const void *arguments);
void qn_cuda_attention_plain(qn_stream_t *stream, const void *arguments);
void qn_cuda_attention_probed(qn_stream_t *stream, const void *arguments);
void qn_cuda_blend(qn_stream_t *stream, const void *arguments);
void qn_cuda_activation(qn_stream_t *stream, const void *arguments);
void qn_cuda_moe_route(qn_stream_t *stream, const void *arguments);
void qn_cuda_expert_matmul(qn_stream_t *stream, const void *arguments);
void qn_cuda_moe_combine(qn_stream_t *stream, const void *arguments);
void qn_cuda_softcap(qn_stream_t *stream, const void *arguments);
void qn_cuda_gather_rows(qn_stream_t *stream, const void *arguments);
void qn_cuda_logprobs(qn_stream_t *stream, const void *arguments);
void qn_cuda_sampler(qn_stream_t *stream, const void *arguments);

/* Operations of fused.h, in one launch for few tokens and the types and widths that allow it, else in parts. Tables,
 * runs and the cache's earlier positions are read before the launch's predecessors have ended: what writes them must
 * be this step's step_input (its arrays) or have been launched before it. */
void qn_cuda_norm_matmul(qn_stream_t *stream, const void *arguments);
void qn_cuda_norm_matmul_plain(qn_stream_t *stream, const void *arguments);
void qn_cuda_norm_matmul_wide(qn_stream_t *stream, const void *arguments);
void qn_cuda_decode_attention(qn_stream_t *stream, const void *arguments);
void qn_cuda_decode_attention_splits(qn_stream_t *stream, const void *arguments);
void qn_cuda_decode_attention_resident(qn_stream_t *stream, const void *arguments);
/* The shapes that `resident` takes. */
bool qn_cuda_resident_accepts(const qn_kernel_case_t *shape);

#endif
