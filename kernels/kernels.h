/* The launch API of all kernels, the same for every backend.
 *
 * An operation (qn_op_t) is a name and an argument struct; an implementation is a row of the registry; a backend is a
 * folder (cpu/, cuda/) with one file per operation. The plain C implementation "reference" of cpu/ is the truth
 * that all others are checked against.
 *
 * Letters used in shapes, everywhere:
 *   T tokens of this step        N sequences (runs) of this step   S rows whose logits are wanted
 *   H query heads                K kv heads (H is a multiple)      D head dimension
 *   E width of the residual      F width of the MLP                V vocabulary
 *   L layers                     B KV blocks                       P tokens per block
 *   M inputs of a matrix product, O outputs      X experts         A experts of one token
 *
 * Pointers are device pointers (on the CPU: of this process); all arrays are dense and row-major. Activations are
 * `void *` of the set's activation type, f32 on the CPU. A launch is asynchronous on its stream, launches of one
 * stream run in order, and argument structs are read before the launch returns. Kernels allocate nothing.
 * Errors are sticky and come out of qn_stream_wait. Arguments are the executor's, checked by it: kernels assert.
 *
 * Batch invariance: the bits of one output row depend on that row's inputs alone, never on T, N, S, the rows beside
 * it, the split of a prompt into chunks or the number of threads. Each output element therefore has one fixed order
 * of additions. Where two operations are the same function at two sizes (attention.prefill and attention.decode),
 * implementations of the same name give the same bits. */
#ifndef QN_KERNELS_KERNELS_H
#define QN_KERNELS_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/model/activation.h"
#include "common/err.h"
#include "common/limits.h"

/* int8 and int4 are formats of weights alone, with scales beside the numbers (weight_layout.h). */
typedef enum { QN_SCALAR_F32, QN_SCALAR_BF16, QN_SCALAR_INT8, QN_SCALAR_INT4 } qn_scalar_t;

/* Of f32 and bf16. */
static inline uint32_t qn_scalar_bytes(qn_scalar_t scalar) { return scalar == QN_SCALAR_F32 ? 4 : 2; }

static inline const char *qn_scalar_name(qn_scalar_t scalar)
{
    static const char *const NAMES[] = {
        [QN_SCALAR_F32] = "f32", [QN_SCALAR_BF16] = "bf16", [QN_SCALAR_INT8] = "int8", [QN_SCALAR_INT4] = "int4"};
    return NAMES[scalar];
}

/* Where the elements of a weight matrix lie: weight_layout.h. */
typedef enum { QN_LAYOUT_ROWS, QN_LAYOUT_PANELS } qn_layout_t;

/* ---- where launches go ---- */

/* A CPU stream is a pool of threads with a static split, a CUDA stream a CUDA stream (cuda/cuda.h). Launch from one
 * thread at a time. */
typedef struct qn_stream qn_stream_t;

typedef struct {
    uint32_t threads; /* CPU: including the launching one; 0 = one per core this process may use */
    int nice;         /* CPU: added to the niceness of the pool's own threads (the launching thread keeps its) */
} qn_stream_options_t;

#define QN_STREAM_THREADS_MAX 256

/* Returns owned. Failure: QN_ERR_NO_MEMORY, QN_ERR_IO (threads refused). */
qn_err_t qn_stream_create(const qn_stream_options_t *options, qn_stream_t **ret_stream);
void qn_stream_destroy(qn_stream_t **stream);
/* Blocks until every launch so far is done; returns the first error since the stream was made. */
qn_err_t qn_stream_wait(qn_stream_t *stream);
uint32_t qn_stream_threads(const qn_stream_t *stream);
/* What a stream would have of qn_stream_options_t.threads on the CPU. */
uint32_t qn_stream_threads_for(uint32_t threads);

/* ---- weights and KV ---- */

typedef struct {
    const void *data; /* [O, M], or [O] for norms and biases; NULL where the model has none. 64-byte aligned */
    qn_scalar_t scalar;
    qn_layout_t layout; /* PANELS for products on the CPU, and for a table that is one of them */
    uint32_t group;     /* int4: inputs that share a scale, 32 or 64 */
} qn_weight_t;

/* The KV region: [L, 2 (K then V), B, P, K, D] of `scalar`. */
typedef struct {
    void *data;
    qn_scalar_t scalar;
    uint32_t layers, blocks, block_tokens, kv_heads, head_dim;
} qn_kv_t;

/* Elements from the start of the region to [layer, which, block, offset, 0, 0]. */
static inline size_t qn_kv_offset(const qn_kv_t *kv, uint32_t layer, uint32_t which, uint32_t block, uint32_t offset)
{
    size_t plane = (size_t)layer * 2 + which;
    return ((plane * kv->blocks + block) * kv->block_tokens + offset) * kv->kv_heads * kv->head_dim;
}

/* ---- slot tables (state region) ---- */

/* One row per slot: what a sequence carries from step to step on the device. */
typedef struct {
    uint64_t seed;
    uint32_t last_token; /* what the last sample gave; input of a from_slot run */
    uint32_t prompt_tokens;
    uint32_t counted; /* positions [0, counted) are in `counts` already */
    uint32_t top_k;   /* 0 = off */
    uint32_t min_tokens;
    uint32_t stop_count, bias_count, logprob_id_count, bad_id_count;
    float temperature, top_p, min_p;
    float repetition_penalty, presence_penalty, frequency_penalty;
    uint8_t done;         /* a stop id was sampled: later runs are masked */
    uint8_t logprobs;     /* compute the chosen token's log-probability */
    uint8_t top_logprobs; /* alternatives, at most QN_TOP_LOGPROBS_MAX */
    uint8_t penalties;    /* any penalty is on, so counts are kept */
    uint8_t allow_only;   /* only ids of `bias` may be sampled */
} qn_slot_row_t;

typedef struct {
    uint32_t id;
    float bias;
} qn_bias_entry_t;

#define QN_COUNT_PROMPT 0x80000000u /* flag in `counts`: the id is in the prompt; the rest: times generated */

typedef struct {
    qn_slot_row_t *rows;    /* [slots] */
    uint32_t *block_tables; /* [slots, table_blocks] */
    uint32_t *stop_ids;     /* [slots, QN_SLOT_STOP_IDS_MAX] */
    qn_bias_entry_t *bias;  /* [slots, QN_LOGIT_BIAS_MAX] */
    uint32_t *counts;       /* [slots, V]; kept only for slots with penalties */
    uint32_t *logprob_ids;  /* [slots, QN_LOGPROB_IDS_MAX] */
    uint32_t *bad_ids;      /* [slots, QN_BAD_IDS_MAX]: sequences whose last ids have QN_SEQUENCE_END */
    uint32_t *recent;       /* [slots, QN_BAD_SEQUENCE_TOKENS_MAX]: the generated token at position p is entry
                               p % QN_BAD_SEQUENCE_TOKENS_MAX; kept only for slots with bad_ids */
    uint32_t slots, table_blocks, vocab;
} qn_slot_tables_t;

typedef struct {
    uint32_t slot;
    uint32_t stop_offset, bias_offset, history_offset; /* into the plan's arrays; counts of stop and bias in `row` */
    uint32_t history_count;
    uint32_t logprob_offset, bad_offset; /* into list_ids */
    qn_slot_row_t row;                   /* starting value */
} qn_slot_start_t;

typedef struct {
    uint32_t slot, index, block;
} qn_table_entry_t;

/* One sequence's tokens in this step. Row `first` .. `first + tokens` of every [T, ...] array are its tokens, at
 * positions `position` on. */
typedef struct {
    uint32_t slot, position, tokens, first;
    uint32_t ids_offset; /* into the plan's ids; unused with from_slot */
    uint32_t from_slot;  /* 1: the one input id is the slot's last_token */
} qn_run_t;

typedef struct {
    uint32_t from, to;
} qn_copy_t;

/* ---- operations and their arguments ---- */

/* slot_update: retires, starts and fills table rows, in this order. Moves: the entries. */
typedef struct {
    qn_slot_tables_t tables;
    const uint32_t *retire;
    uint32_t retire_count;
    const qn_slot_start_t *starts;
    uint32_t start_count;
    const qn_table_entry_t *entries;
    uint32_t entry_count;
    const uint32_t *ids, *stop_ids, *list_ids; /* the plan's */
    const qn_bias_entry_t *bias;
} qn_slot_update_t;

/* block_copy: all layers, K and V, of each block. A block is in `to` at most once and in `from` of a later copy only
 * after. Moves 2 * L*2*P*K*D scalars per copy. */
typedef struct {
    qn_kv_t kv;
    const qn_copy_t *copies;
    uint32_t copy_count;
} qn_block_copy_args_t;

/* An array of the step that the host has filled, and where the device has it for the launches to come. Both lie on 16
 * bytes and have room up to the next 16. */
typedef struct {
    void *to;
    const void *from;
    uint32_t bytes;
} qn_step_array_t;

/* step_input: per token its id, position and KV row, and counts for penalties. A run of a slot that is done gets KV
 * row -1 (written nowhere) and id 0. Copies the step's arrays, too: a recorded launch brings new values without an
 * upload before it. */
#define QN_STEP_ARRAYS 4
typedef struct {
    qn_slot_tables_t tables;
    const qn_run_t *runs; /* [N]; like `from`, may be host memory that the device can read */
    uint32_t run_count;
    const uint32_t *ids; /* the plan's */
    uint32_t block_tokens;
    uint32_t *ret_ids;       /* [T] */
    uint32_t *ret_positions; /* [T] */
    uint32_t *ret_lengths;   /* [T]: max(prompt_tokens, position + 1); NULL = not wanted */
    int64_t *ret_kv_rows;    /* [T]: block * P + offset, or -1 */
    qn_step_array_t arrays[QN_STEP_ARRAYS];
} qn_step_input_t;

/* embedding: out[t] = table[ids[t]] * multiplier (+ position_table[positions[t]]). */
typedef struct {
    qn_weight_t table;          /* [V, E] */
    qn_weight_t position_table; /* [positions, E] (GPT-2), or NULL */
    const uint32_t *ids;        /* [T] */
    const uint32_t *positions;  /* [T]; read with a position_table only */
    uint32_t tokens, width;
    float multiplier; /* 1; sqrt(E) for Gemma */
    void *out;        /* [T, E] */
} qn_embedding_t;

/* rmsnorm: out = x / sqrt(mean(x²) + eps) * (weight_offset + weight) (+ residual), per row. out may be x or residual.
 * (Zhang & Sennrich 2019; Gemma stores weight - 1 and adds its norms' outputs to the residual.) */
typedef struct {
    const void *x;        /* [rows, width] */
    qn_weight_t weight;   /* [width] */
    const void *residual; /* [rows, width] or NULL */
    uint32_t rows, width;
    float eps, weight_offset;
    void *out; /* [rows, width] */
} qn_rmsnorm_t;

/* layernorm: out = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias, per row; the variance is that of the row
 * (divided by width). out may be x. (Ba, Kiros & Hinton 2016) */
typedef struct {
    const void *x;            /* [rows, width] */
    qn_weight_t weight, bias; /* [width]; bias may be NULL */
    uint32_t rows, width;
    float eps;
    void *out; /* [rows, width] */
} qn_layernorm_t;

/* matmul: for each part, out = x Wᵀ (+ bias) (+ residual). Parts share x, so that q, k and v (or gate and up) are one
 * launch. residual may be out; nothing else may overlap. Moves the weights once per launch. */
#define QN_MATMUL_PARTS 3
typedef struct {
    qn_weight_t weight;   /* [O, M] */
    qn_weight_t bias;     /* [O] or NULL */
    const void *residual; /* [T, O] or NULL */
    void *out;            /* [T, O] */
    uint32_t outputs;
} qn_matmul_part_t;

typedef struct {
    const void *x; /* [T, M] */
    uint32_t tokens, inputs;
    qn_matmul_part_t parts[QN_MATMUL_PARTS];
    uint32_t part_count;
    void *scratch; /* CPU: at least qn_matmul_scratch_bytes(tokens, inputs), 64-byte aligned; overwritten */
} qn_matmul_t;

/* What a CPU product may need to lay out or quantise its x: four bytes an element, padded, and scales per 32. */
static inline size_t qn_matmul_scratch_bytes(size_t tokens, size_t inputs)
{
    return (tokens + 31) / 32 * 32 * ((inputs + 127) / 128 * 128) * 5 + 4096;
}

/* moe_route: the experts of each token. Probabilities are the softmax of its logits; the A greatest are chosen (ties to
 * the lower expert) in descending order and, with `normalise`, divided by their sum. T*A assignments (token t, choice
 * a) come out grouped by expert, tokens ascending: assignment at place i of that order reads row ret_rows[i] of x, and
 * (t, a) is at place ret_places[t*A + a]. Expert e has places [ret_offsets[e], ret_offsets[e+1]).
 * (Shazeer et al. 2017; Mixtral, Jiang et al. 2024) */
typedef struct {
    const void *logits;       /* [T, X] of the activation type */
    uint32_t tokens, experts; /* X */
    uint32_t per_token;       /* A */
    bool normalise;
    float *ret_weights;    /* [T, A] */
    uint32_t *ret_places;  /* [T, A] */
    uint32_t *ret_rows;    /* [T*A] */
    uint32_t *ret_offsets; /* [X+1] */
} qn_moe_route_t;

/* expert_matmul: a matmul per expert over its places: out[i] = x[i] W_eᵀ for each part, no bias, no residual. */
#define QN_EXPERT_PARTS 2
typedef struct {
    const void *x;                               /* [T*A, M], in the order of moe_route */
    const uint32_t *offsets;                     /* [X+1] */
    uint32_t places, inputs;                     /* T*A */
    uint32_t experts, outputs;                   /* X, O */
    const qn_weight_t *weights[QN_EXPERT_PARTS]; /* each [X], every [O, M]; for CUDA in device memory */
    void *out[QN_EXPERT_PARTS];                  /* [T*A, O] */
    uint32_t part_count;
    void *scratch;      /* CPU: qn_matmul_scratch_bytes(places, inputs) */
    qn_scalar_t scalar; /* of all weights; CUDA, whose host cannot look into the array, chooses by it */
} qn_expert_matmul_t;

/* moe_combine: out[t] = residual[t] + sum over a of weights[t, a] * x[places[t, a]], a ascending. out may be residual. */
typedef struct {
    const void *x;          /* [T*A, E] */
    const float *weights;   /* [T, A] */
    const uint32_t *places; /* [T, A] */
    const void *residual;   /* [T, E] */
    uint32_t tokens, per_token, width;
    void *out; /* [T, E] */
} qn_moe_combine_t;

/* rope_angles: cosines and sines of one step, shared by all layers. */
typedef struct {
    const uint32_t *positions;   /* [T] */
    const uint32_t *lengths;     /* [T]: step_input's, for dynamic scaling; else NULL */
    const float *frequencies;    /* [D/2] radians per position; unused with lengths */
    float theta, factor;         /* dynamic: the base becomes theta * (factor * n / o - (factor - 1)) ^ (D / (D - 2)) */
    uint32_t original_positions; /* dynamic: for a length n beyond o = this */
    float scale;                 /* yarn's attention factor */
    uint32_t tokens, head_dim;
    float *out; /* [T, 2, D/2]: cosines, then sines */
} qn_rope_angles_t;

/* rope: rotates the pairs (x[i], x[i + D/2]) of every head, in place ("rotate half", as Hugging Face checkpoints
 * store them). (Su et al. 2021) */
typedef struct {
    const float *angles; /* [T, 2, D/2] */
    void *q, *k;         /* [T, H, D], [T, K, D] */
    uint32_t tokens, heads, kv_heads, head_dim;
} qn_rope_t;

/* kv_write: stores k and v of each token at its KV row, converted to the cache's type. Rows of -1 are skipped. */
typedef struct {
    qn_kv_t kv;
    uint32_t layer, tokens;
    const void *k, *v;      /* [T, K, D] */
    const int64_t *kv_rows; /* [T] */
} qn_kv_write_t;

/* attention.prefill, attention.decode: causal attention of each run's tokens over the slot's blocks, which hold this
 * step's k and v already. Head h reads kv head h / (H/K). attention.decode gets only runs of one token, or of none:
 * those cost nothing. Rows of out that are no run's are not touched. Moves 2*K*D scalars per (run, position). */
typedef struct {
    qn_kv_t kv;
    qn_slot_tables_t tables;
    const qn_run_t *runs;
    uint32_t run_count; /* [N] */
    uint32_t layer, heads;
    uint32_t window; /* a query sees this many positions, itself included; 0 = all */
    float scale;     /* of the scores: D^-1/2, or the model's own */
    float softcap;   /* c: a scaled score s becomes c * tanh(s / c) (Gemma 2); 0 = off */
    const void *q;   /* [T, H, D] */
    void *out;       /* [T, H, D]; must not overlap q */
} qn_attention_t;

/* A rule on what queries see of the positions that causality and the model's window leave them: of layers
 * [layer_from, layer_to) and heads [head_from, head_to). Rules on one head hold together. Those by position decide which
 * candidates there are; those by score look at all candidates' scores. The greatest score is never dropped. */
typedef enum {
    QN_MASK_TOP_K,       /* the k candidates with the greatest scores; of equal ones the lower positions */
    QN_MASK_THRESHOLD,   /* those whose weight, of the softmax over all candidates, is at least `value` */
    QN_MASK_RATIO,       /* all but the share `value` with the least scores: ceil((1 - value) n) of n */
    QN_MASK_WINDOW,      /* by position: the last `window`, itself included */
    QN_MASK_SINK_WINDOW, /* by position: the first `sinks` and the last `window` */
    QN_MASK_BLOCK_TOP_K, /* those of the k blocks of the cache with the greatest score in them */
} qn_mask_kind_t;

typedef struct {
    qn_mask_kind_t kind;
    uint32_t k, window, sinks; /* k, window: at least 1 */
    float value;               /* 0 to 1 */
    uint32_t layer_from, layer_to, head_from, head_to;
} qn_mask_t;

/* attention.probed: attention of runs of any number of tokens under masks; `attention.out` as there. Optionally writes the
 * weights of every row: those of positions that a row does not see are left as they are. Positions are below
 * QN_MASK_POSITIONS_MAX. Moves one row of keys per candidate and one of values per position seen. */
typedef struct {
    qn_attention_t attention;
    const qn_mask_t *masks;
    uint32_t mask_count;     /* at most QN_MASKS_MAX */
    uint32_t weight_columns; /* of a row of ret_weights: more than the greatest position */
    float *ret_weights;      /* [T, H, weight_columns] or NULL */
    uint64_t *ret_read;      /* [N, 2] or NULL: added to: rows of keys and values read, rows there are */
} qn_probed_attention_t;

/* blend: out = x_factor * x + y_factor * y. An array with the factor 0 is not read and may be NULL; out may be either. */
typedef struct {
    const void *x; /* [rows, width] */
    const void *y; /* the same, or [width] */
    float x_factor, y_factor;
    bool y_is_row; /* y is one row for all */
    uint32_t rows, width;
    void *out; /* [rows, width] */
} qn_blend_t;

/* activation: out = f(gate) * up, or f(gate) where up is NULL. out may be gate. (SwiGLU and GeGLU: Shazeer 2020) */
typedef struct {
    const void *gate, *up; /* [T, F] */
    uint32_t tokens, width;
    qn_activation_t kind; /* f */
    void *out;            /* [T, F] */
} qn_activate_t;

/* softcap: x = cap * tanh(x / cap), in place (Gemma 2's logits). */
typedef struct {
    float *x; /* [rows, width] f32 */
    uint32_t rows, width;
    float cap;
} qn_softcap_t;

/* gather_rows: out[s] = x[rows[s]]. */
typedef struct {
    const void *x;        /* [.., width] */
    const uint32_t *rows; /* [S] */
    uint32_t row_count, width;
    void *out; /* [S, width]; must not overlap x */
} qn_gather_rows_t;

typedef struct {
    uint32_t id;
    float logprob;
} qn_top_entry_t;

/* logprobs: log-probability of one given id per row, the most probable ids, ties to the lower id, and behind them the
 * logprob_ids of the row's slot. */
typedef struct {
    const float *logits;        /* [S, V] */
    const uint32_t *targets;    /* [S] */
    const uint32_t *top_counts; /* [S], at most QN_TOP_LOGPROBS_MAX */
    const uint32_t *slots;      /* [S], or NULL: no row has logprob_ids */
    qn_slot_tables_t tables;    /* read with slots only */
    uint32_t rows, vocab;
    float *ret_logprobs;     /* [S] */
    qn_top_entry_t *ret_top; /* [S, QN_ALTERNATIVES_MAX] */
} qn_logprobs_t;

typedef struct {
    uint32_t slot, position;
} qn_sample_t; /* position of the token to sample */

typedef struct {
    uint32_t id;
    float logprob; /* of the raw model distribution; 0 when the slot did not ask */
    uint8_t stopped, masked;
} qn_sample_result_t;

/* sampler: chooses the next token of each row's slot, vLLM's meaning and order: logit bias (with allow_only the ids
 * that it names are all there is) and min_tokens, the last token of a bad sequence whose others were just generated,
 * penalties,
 * temperature, min-p, top-k, top-p, then one uniform number of Philox4x32-10 keyed by the seed with the position as
 * counter, walked through the kept ids in ascending order. Temperature below 1e-5: the greatest logit. All ties go to
 * the lower id. Writes last_token, done, counts and recent of the slot. A row of a slot that is done is masked. */
typedef struct {
    qn_slot_tables_t tables;
    const qn_sample_t *samples;
    uint32_t sample_count;           /* [S] */
    const float *logits;             /* [S, V] */
    float *scratch;                  /* [S, 2, V] */
    qn_sample_result_t *ret_results; /* [S] */
    qn_top_entry_t *ret_top;         /* [S, QN_ALTERNATIVES_MAX]: the likeliest, then logprob_ids */
} qn_sampler_t;

/* ops.def: the operations every backend has, then those that stand for several of them (fused.h). */
typedef enum {
#define QN_OPERATION(constant, name, arguments) QN_OP_##constant,
#include "kernels/ops.def"
    QN_OP_REQUIRED,
    QN_OP_LAST_REQUIRED = QN_OP_REQUIRED - 1, /* the next row begins at QN_OP_REQUIRED */
#define QN_OPERATION(constant, name, arguments)
#define QN_FUSED_OPERATION(constant, name, arguments) QN_OP_##constant,
#include "kernels/ops.def"
    QN_OP_COUNT,
} qn_op_t;

/* ---- the registry ---- */

/* What a set of kernels must be able to do: the model's shape and types. */
typedef struct {
    uint32_t heads, kv_heads, head_dim, hidden, intermediate, vocab, block_tokens;
    qn_scalar_t kv_scalar, activations;
} qn_kernel_case_t;

enum {
    QN_ISA_AVX2 = 1,
    QN_ISA_AVX512 = 2,
    QN_ISA_AVX512_VNNI = 4,
    QN_ISA_AVX512_BF16 = 8,
    QN_ISA_SM90 = 16, /* a GPU of compute capability 9.0 */
};

/* One implementation. `launch` takes the argument struct of its operation. */
typedef struct {
    qn_op_t op;
    const char *name;                          /* "reference", "avx2", "avx512", "cuda" */
    uint32_t isa;                              /* bits this machine must have */
    uint32_t rank;                             /* of those that fit, the greatest is chosen; 0: the plain one */
    bool (*accepts)(const qn_kernel_case_t *); /* NULL: every shape */
    void (*launch)(qn_stream_t *stream, const void *arguments);
} qn_kernel_t;

/* NULL for an operation that the backend does not have. */
typedef struct {
    const qn_kernel_t *chosen[QN_OP_COUNT];
} qn_kernel_set_t;

/* "attention.decode" and so on. */
const char *qn_op_name(qn_op_t op);
/* QN_OP_COUNT: no operation has this name. */
qn_op_t qn_op_find(const char *name);
/* Returns view of the CPU's rows. */
const qn_kernel_t *qn_kernels(size_t *ret_count);
/* Instruction sets of this machine, as QN_ISA_ bits. */
uint32_t qn_kernels_isa(void);
/* Chooses one implementation per operation. `choice` is compute.kernels: "" (the best that fits), "reference", or a list
 * "op=name,op=name" that overrides the best, or reference after which it comes ("reference,op=name"); of two items of one
 * operation the later counts. Names are those of the backend and of loaded objects (loaded.h). A fused operation (fused.h) is
 * chosen so that it does what its parts would. `isa` limits the instruction sets (qn_kernels_isa() for all).
 * Failure: QN_ERR_CONFIG naming the word at fault with a suggestion, or why the implementation does not fit. */
qn_err_t qn_kernels_choose(const char *choice, const qn_kernel_case_t *shape, uint32_t isa, qn_kernel_set_t *ret_set);
/* The same out of `count` rows of any backend. */
qn_err_t qn_kernels_choose_from(const qn_kernel_t *rows, size_t count, const char *choice,
                                const qn_kernel_case_t *shape, uint32_t isa, qn_kernel_set_t *ret_set);

/* Of what the bits of keys and values depend on in a choice of kernels; never 0. Chain further facts by the seed. */
uint64_t qn_kernels_fingerprint(const qn_kernel_set_t *set, uint64_t seed);

static inline void qn_launch(const qn_kernel_set_t *set, qn_op_t op, qn_stream_t *stream, const void *arguments)
{
    set->chosen[op]->launch(stream, arguments);
}

#endif
