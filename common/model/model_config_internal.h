/* The inside of model_config: typed access to config.json, the table of architectures, and the parts that read the
 * rope and the end tokens. */
#ifndef QN_COMMON_MODEL_MODEL_CONFIG_INTERNAL_H
#define QN_COMMON_MODEL_MODEL_CONFIG_INTERNAL_H

#include <jansson.h>

#include "common/model/model_config.h"

/* What is particular to an architecture, one bit each. */
enum {
    TIED = 1,     /* tie_word_embeddings is true when config.json leaves it out */
    QKV_BIAS = 2, /* q, k and v always have a bias, the output projection never (Qwen2) */
    QK_NORM = 4,
    NO_WINDOW = 8,     /* sliding_window means nothing */
    WINDOW_ASKED = 16, /* sliding_window counts only with use_sliding_window (Qwen) */
    WINDOW_LATE = 32,  /* the first max_window_layers layers see everything (Qwen2 and Qwen3, not Qwen3-MoE) */
    WINDOW_EVEN = 64,  /* even layers slide (Gemma 2) */
    GEMMA = 128,       /* norms of 1 + w, embeddings scaled by sqrt(E) */
    CAPPED = 256,      /* soft-caps, post norms and a scale of its own for attention (Gemma 2) */
    EXPERTS = 512,
    EXPERTS_SPARSE = 1024, /* experts in some layers, of a width of their own (Qwen3-MoE); else in all (Mixtral) */
};

/* The names of the keys that give the shape. */
typedef struct {
    const char *layers, *hidden, *heads, *intermediate, *positions, *eps, *activation;
} key_names_t;

/* The numbers are what transformers' configuration class takes when config.json leaves the key out. */
typedef struct {
    const char *name;
    const char *base_name;  /* of the model without its head; old spellings differ in capitals only */
    const char *model_type; /* decides when config.json names no architecture */
    qn_architecture_t architecture;
    unsigned traits;
    const key_names_t *keys;
    uint32_t head_dim; /* 0: hidden / heads */
    uint32_t window;
    double theta, eps;
    const char *activation;
} model_architecture_t;

#define GELU_TANH "gelu_pytorch_tanh"

/* The row of the architecture that config.json names, or that its model_type has when it names none. */
qn_err_t qn_model_config_architecture(const json_t *root, qn_model_warnings_t *warnings,
                                      const model_architecture_t **ret_row);

/* The value of `key`; NULL when it is absent or null. */
const json_t *qn_model_config_value(const json_t *object, const char *key);

/* The value as a whole number; false: it is none, or beyond 64 bits. */
bool qn_model_config_whole(const json_t *value, int64_t *ret_number);
/* Each reads one value: `fallback` when it is absent or null, else QN_ERR_INVALID naming the key when it has the wrong
 * type or lies outside min .. max. 32.0 is a whole number too. A negative (count) or NAN (real) fallback: the key must
 * be there. */
qn_err_t qn_model_config_count(const json_t *object, const char *key, int64_t fallback, int64_t min, int64_t max,
                               uint32_t *ret_value);
qn_err_t qn_model_config_real(const json_t *object, const char *key, double fallback, double min, double max,
                              double *ret_value);
qn_err_t qn_model_config_flag(const json_t *object, const char *key, bool fallback, bool *ret_value);

/* Fills config->rope and stretches config->max_positions (model_config.h says when); head_dim and max_positions must be
 * set. `theta` is used where the file names none. */
qn_err_t qn_model_config_rope(const json_t *root, double theta, qn_model_config_t *config);

/* Adds the end tokens of an object; those that no model of this vocabulary can sample are left out with a warning.
 * config->vocab must be set. `file` names it in errors. */
qn_err_t qn_model_config_eos(const json_t *object, const char *file, qn_model_config_t *config,
                             qn_model_warnings_t *warnings);
qn_err_t qn_model_config_bos(const json_t *root, qn_model_config_t *config, qn_model_warnings_t *warnings);

#endif
