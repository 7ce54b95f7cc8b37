/* Kernels in a shared object: a C ABI. Such an object replaces an operation of the CPU backend while Quintet serves.
 *
 * It exports one function:
 *     const qn_kernel_plugin_t *qn_kernel_plugin(void);
 * and needs nothing but this header:
 *     cc -O3 -fPIC -shared -I<project> my_kernels.c -o build/kernels/my_kernels.so
 *     quintet kernel check build/kernels/my_kernels.so
 * then POST /kernels/load {"path": "my_kernels.so"} and PUT /kernels/rmsnorm {"implementation": "mine"}. Objects load only from
 * the directories of compute.kernel_dirs. deploy/kernels/example_rmsnorm.c is a whole one.
 *
 * A kernel is a pure function: it gets arrays and a range of items, and writes those items' outputs. Quintet deals the
 * items to its threads in ranges of its choice, so
 *   - every item is computed alone, by the same additions in the same order whatever the range: the bits of a row depend on
 *     that row alone (batch invariance), not on `first`, `count` or what stands beside it;
 *   - it keeps no state, allocates nothing, starts no thread, does not block.
 * All activations are float. Arrays are dense and row-major. An output may be the array of an input where that is said.
 *
 * Before it may run it is checked in a process of its own against the reference, over shapes of all kinds and every format it
 * says it takes, in two ways of dealing. The relative error sqrt(sum (y - exact)^2 / sum exact^2) may be 1e-5; 2e-2 for
 * products of int8 and int4 weights, which may round their input.
 *
 * This header depends on nothing else of the project. Any change of a struct raises QN_KERNEL_PLUGIN_ABI. */
#ifndef QN_KERNELS_PLUGIN_H
#define QN_KERNELS_PLUGIN_H

#include <stdint.h>

#define QN_KERNEL_PLUGIN_ABI 1
#define QN_KERNEL_PLUGIN_SYMBOL "qn_kernel_plugin"
#define QN_PLUGIN_KERNELS_MAX 8 /* of one object */
#define QN_PLUGIN_NAME_MAX 32   /* bytes of a kernel's name, NUL included: a-z, 0-9 and _, beginning with a letter */

/* Formats of numbers: of weights, of norms, of the KV cache. Bits, so that a kernel can say what it takes. */
#define QN_PLUGIN_F32 1u
#define QN_PLUGIN_BF16 2u
#define QN_PLUGIN_INT8 4u /* weights of products only, as INT4 */
#define QN_PLUGIN_INT4 8u

/* ---- arguments, by operation ---- */

/* "rmsnorm": out = x / sqrt(mean(x^2) + eps) * (weight_offset + weight) (+ residual). Items are rows. `out` may be x or
 * residual. */
typedef struct {
    const float *x;        /* [rows, width] */
    const void *weight;    /* [width] of `format` */
    const float *residual; /* [rows, width] or NULL */
    float *out;            /* [rows, width] */
    uint32_t width, format;
    float eps, weight_offset;
} qn_plugin_rmsnorm_t;

/* "layernorm": out = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias. Items are rows. `out` may be x. */
typedef struct {
    const float *x;     /* [rows, width] */
    const void *weight; /* [width] of `format` */
    const void *bias;   /* the same, or NULL */
    float *out;         /* [rows, width] */
    uint32_t width, format;
    float eps;
} qn_plugin_layernorm_t;

/* "activation": out = f(gate) * up, or f(gate) where up is NULL. Items are rows. `out` may be gate. */
#define QN_PLUGIN_SILU 0u      /* x / (1 + e^-x) */
#define QN_PLUGIN_GELU_TANH 1u /* x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) */
#define QN_PLUGIN_GELU 2u      /* x/2 (1 + erf(x / sqrt 2)) */
#define QN_PLUGIN_RELU 3u
typedef struct {
    const float *gate, *up; /* [rows, width] */
    float *out;             /* [rows, width] */
    uint32_t width, kind;   /* f: QN_PLUGIN_SILU, ... */
} qn_plugin_activation_t;

/* "matmul": out = x W^T (+ bias) (+ residual), W [outputs, inputs]. Items are panels: panel p is the outputs 16p .. 16p+15 of
 * all tokens. Where the numbers of a panel lie is described in kernels/weight_layout.h; panel p begins at
 * weight + p * panel_bytes. For f32 it is [inputs][16], for bf16 [ceil(inputs/2)][16][2]. The last panel may be short:
 * outputs beyond `outputs` are zeros in W and must not be written. `residual` may be out. */
typedef struct {
    const float *x;        /* [tokens, inputs] */
    const void *weight;    /* panels of `format` */
    const void *bias;      /* [outputs] of `bias_format`, F32 or BF16, or NULL */
    const float *residual; /* [tokens, outputs] or NULL */
    float *out;            /* [tokens, outputs] */
    uint64_t panel_bytes;
    uint32_t tokens, inputs, outputs, format, bias_format;
    uint32_t group; /* of int4: inputs that share a scale */
} qn_plugin_matmul_t;

/* "attention.prefill" and "attention.decode": causal attention over the paged KV cache. Items are (run, head) pairs, item
 * i = run i / heads, head i % heads; a run is some tokens of one sequence. Token t of a run stands at `position` + t, sees
 * the positions from max(0, position + t + 1 - window) (window 0: from 0) up to its own, and is row first + t of q and out.
 * Key and value of position p of head h: block table[p / block_tokens], offset p % block_tokens, kv head
 * h / (heads / kv_heads). A score is scale * q.k, bent to softcap * tanh(score / softcap) unless softcap is 0. Both
 * operations give a token the same bits: export one function for both. */
typedef struct {
    uint32_t position, tokens, first;
    const uint32_t *table; /* block numbers of the sequence */
} qn_plugin_run_t;

typedef struct {
    const float *q;            /* [rows, heads, head_dim] */
    const void *keys, *values; /* [blocks, block_tokens, kv_heads, head_dim] of `format` */
    float *out;                /* [rows, heads, head_dim]; not q */
    const qn_plugin_run_t *runs;
    uint32_t heads, kv_heads, head_dim, block_tokens, window, format;
    float scale, softcap;
} qn_plugin_attention_t;

/* "softcap": x = cap * tanh(x / cap), in place. Items are rows. */
typedef struct {
    float *x; /* [rows, width] */
    uint32_t width;
    float cap;
} qn_plugin_softcap_t;

/* ---- the object ---- */

typedef struct {
    uint32_t heads, kv_heads, head_dim, hidden, intermediate, vocab, block_tokens;
} qn_plugin_shape_t;

typedef struct {
    const char *operation; /* one of the names above */
    const char *name;      /* what PUT /kernels and compute.kernels say */
    uint32_t formats;      /* QN_PLUGIN_ bits of the `format` it takes; ignored where there is none */
    /* Whether it takes this model; NULL: every one. */
    int (*accepts)(const qn_plugin_shape_t *shape);
    /* Computes items [first, first + count). `arguments` is the operation's struct. */
    void (*run)(const void *arguments, uint32_t first, uint32_t count);
} qn_plugin_kernel_t;

typedef struct {
    uint32_t abi; /* QN_KERNEL_PLUGIN_ABI */
    uint32_t count;
    const qn_plugin_kernel_t *kernels; /* [count], of static storage */
} qn_kernel_plugin_t;

const qn_kernel_plugin_t *qn_kernel_plugin(void);

#endif
