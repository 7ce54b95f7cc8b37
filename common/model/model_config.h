/* What a Hugging Face model directory says about the shape of its model: config.json (old and new style) and the end
 * tokens of generation_config.json, as one plain struct that memory, scheduler and compute share. Architectures are
 * rows of a table in model_config_architecture.c: a new one is a row there and, when its arithmetic is new, a kernel. */
#ifndef QN_COMMON_MODEL_MODEL_CONFIG_H
#define QN_COMMON_MODEL_MODEL_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/model/activation.h"
#include "common/err.h"
#include "common/limits.h"
#include "common/model/model_warnings.h"

#define QN_HEAD_DIM_MAX 512         /* largest published head is 256; attention keeps a row of this size on the stack */
#define QN_WIDTH_MAX (1u << 18)     /* hidden and intermediate width; the largest published are below 100,000 */
#define QN_POSITIONS_MAX (1u << 24) /* max_position_embeddings; serving is bounded by QN_PROMPT_TOKENS_MAX anyway */
#define QN_EXPERTS_MAX 1024         /* of one layer; the largest published have 512 */

typedef enum {
    QN_ARCHITECTURE_LLAMA,
    QN_ARCHITECTURE_MISTRAL,
    QN_ARCHITECTURE_QWEN2,
    QN_ARCHITECTURE_QWEN3,
    QN_ARCHITECTURE_GPT2,
    QN_ARCHITECTURE_MIXTRAL,
    QN_ARCHITECTURE_QWEN3_MOE,
    QN_ARCHITECTURE_GEMMA,
    QN_ARCHITECTURE_GEMMA2,
} qn_architecture_t;

/* RMS: x / rms * (norm_weight_offset + w). LAYER: (x - mean) / deviation * w + b. */
typedef enum { QN_NORM_RMS, QN_NORM_LAYER } qn_norm_kind_t;

/* NONE: positions come from a table that is added to the embedding (GPT-2). */
typedef enum {
    QN_ROPE_NONE,
    QN_ROPE_DEFAULT,
    QN_ROPE_LINEAR,
    QN_ROPE_DYNAMIC,
    QN_ROPE_LLAMA3,
    QN_ROPE_YARN
} qn_rope_type_t;

/* Rotary embedding as transformers' modeling_rope_utils defines it. Fields that a type does not use are neutral. */
typedef struct {
    qn_rope_type_t type;
    double theta;
    double factor;                            /* linear, dynamic, llama3, yarn */
    double low_freq_factor, high_freq_factor; /* llama3 */
    uint32_t original_max_positions;          /* dynamic, llama3, yarn: the length the model was trained at */
    double beta_fast, beta_slow;              /* yarn */
    bool truncate;                            /* yarn */
    double attention_factor;                  /* yarn: cos and sin are multiplied by it; 1 otherwise */
} qn_rope_config_t;

typedef struct {
    qn_architecture_t architecture;
    char architecture_name[QN_NAME_MAX]; /* "LlamaForCausalLM" */
    uint32_t layers;                     /* L */
    uint32_t hidden;                     /* E: width of the residual stream */
    uint32_t heads, kv_heads, head_dim;  /* H, K, D; H is a multiple of K, D is even */
    uint32_t intermediate;               /* F: width of the MLP */
    uint32_t vocab;                      /* V: rows of the embedding, at least the tokenizer's */
    uint32_t max_positions;              /* the longest sequence, in tokens; see qn_model_config_parse */
    qn_norm_kind_t norm;
    float norm_eps;
    float norm_weight_offset;   /* 0; 1 for Gemma, whose checkpoints hold w - 1 */
    bool post_norms;            /* outputs of attention and MLP are normed before they are added (Gemma 2) */
    float embedding_multiplier; /* 1; sqrt(E) for Gemma */
    qn_rope_config_t rope;
    qn_activation_t activation;
    bool gated_mlp;      /* down(f(gate x) * up x); else down(f(up x)) (GPT-2) */
    bool tie_embeddings; /* the head is the embedding */
    bool qkv_bias, output_bias, mlp_bias;
    bool qk_norm;                        /* RMSNorm over each head of q and k before rope (Qwen3) */
    uint32_t sliding_window;             /* positions a query sees, itself included; 0 = all */
    bool layer_slides[QN_LAYERS_MAX];    /* which layers use sliding_window */
    float attention_scale;               /* of the scores: D^-1/2, or query_pre_attn_scalar^-1/2 */
    bool attention_scale_by_layer;       /* divided by layer index + 1 (GPT-2's scale_attn_by_inverse_layer_idx) */
    float attention_softcap;             /* 0 = off (Gemma 2) */
    float logit_softcap;                 /* 0 = off (Gemma 2) */
    uint32_t experts;                    /* X: of each sparse layer; 0 = the MLP is dense everywhere */
    uint32_t experts_per_token;          /* A */
    uint32_t expert_intermediate;        /* width of one expert's MLP; 0 without experts */
    bool normalise_experts;              /* the chosen experts' weights are made to sum to 1 */
    bool layer_is_sparse[QN_LAYERS_MAX]; /* which layers have experts */
    uint32_t eos[QN_STOP_IDS_MAX];       /* generation_config's first, then config's; no duplicates */
    uint32_t eos_count;
    int32_t bos;                  /* -1: none */
    char dtype_name[QN_NAME_MAX]; /* of the weights, as the file says: "bfloat16"; "" when it does not */
} qn_model_config_t;

/* Parses config.json and, when `generation_text` is not NULL, generation_config.json, both as Python writes JSON
 * (python_json.h). What contradicts itself and does not matter goes to `warnings`, which may be NULL. Keys that may be absent then mean what
 * transformers' configuration class of the architecture says they mean; keys of the shape, experts and vocabulary must
 * be there.
 *
 * max_positions is max_position_embeddings, except where a rope is made to reach further:
 *   yarn     original_max_position_embeddings * factor, when that is more
 *   dynamic  max_position_embeddings * factor: the formula takes max_position_embeddings for the trained length
 *   linear   the same as for yarn when the original length is given. When it is not, max_position_embeddings * factor,
 *            as vLLM has it: published models put the trained length there (Vicuna-16k: 4096 and 4) or the stretched
 *            one (DeepSeek-Coder: 16384 and 4), and nothing tells which. The greater reading forbids neither its
 *            length; model.max_model_len chooses.
 *
 * QN_ERR_INVALID: not JSON, or a field is missing, of the wrong type or out of range (the text names it).
 * QN_ERR_UNSUPPORTED: an architecture, rope type, activation or feature this build does not compute (the text names
 * it). */
qn_err_t qn_model_config_parse(const char *config_text, size_t config_bytes, const char *generation_text,
                               size_t generation_bytes, qn_model_warnings_t *warnings, qn_model_config_t *ret_config);

/* The head_dim/2 rotation speeds in radians per position: angle(p, i) = p * ret_frequencies[i].
 * `dynamic` gives the unscaled ones, which is what transformers computes up to max_positions. */
void qn_rope_frequencies(const qn_rope_config_t *rope, uint32_t head_dim, float *ret_frequencies);

/* Bytes of one KV block over all layers: L*2*P*K*D*scalar_bytes. Failure: QN_ERR_LIMIT (overflow). */
qn_err_t qn_model_kv_block_bytes(const qn_model_config_t *config, uint32_t block_tokens, uint32_t scalar_bytes,
                                 uint64_t *ret_bytes);

#endif
