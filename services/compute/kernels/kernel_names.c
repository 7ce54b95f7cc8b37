/* What is this?      The field's names of operations, and what they are here.
 * State owned:       none.
 * Must never:        give one name two meanings.
 * Read next:         kernels/ops.def. */
#include "services/compute/kernels/kernel_names.h"

#include <string.h>

#include "common/config/suggest.h"

static const struct {
    const char *name;
    qn_op_t op;
    const char *part;
} USUAL[] = {
    {"flash_attention", QN_OP_ATTENTION_PREFILL, NULL},
    {"attention", QN_OP_ATTENTION_PREFILL, NULL},
    {"sdpa", QN_OP_ATTENTION_PREFILL, NULL},
    {"prefill_attention", QN_OP_ATTENTION_PREFILL, NULL},
    {"paged_attention", QN_OP_ATTENTION_DECODE, NULL},
    {"flash_decoding", QN_OP_ATTENTION_DECODE, NULL},
    {"gemm", QN_OP_MATMUL, NULL},
    {"gemv", QN_OP_MATMUL, NULL},
    {"linear", QN_OP_MATMUL, NULL},
    {"qkv_proj", QN_OP_MATMUL, "qkv"},
    {"o_proj", QN_OP_MATMUL, "output"},
    {"gate_up_proj", QN_OP_MATMUL, "gate_up"},
    {"down_proj", QN_OP_MATMUL, "down"},
    {"lm_head", QN_OP_MATMUL, "head"},
    {"rms_norm", QN_OP_RMSNORM, NULL},
    {"layer_norm", QN_OP_LAYERNORM, NULL},
    {"silu", QN_OP_ACTIVATION, NULL},
    {"swiglu", QN_OP_ACTIVATION, NULL},
    {"gelu", QN_OP_ACTIVATION, "gelu"},
    {"geglu", QN_OP_ACTIVATION, "gelu"},
    {"rotary_embedding", QN_OP_ROPE, NULL},
    {"kv_cache_write", QN_OP_KV_WRITE, NULL},
    {"moe_gemm", QN_OP_EXPERT_MATMUL, NULL},
    {"sampling", QN_OP_SAMPLER, NULL},
    {"embed", QN_OP_EMBEDDING, NULL},
};
#define USUAL_COUNT (sizeof USUAL / sizeof USUAL[0])

qn_op_t kernel_named(const char *name, const char **ret_part, const char **ret_nearest)
{
    qn_op_t op = qn_op_find(name);
    *ret_part = NULL;
    *ret_nearest = qn_op_name((qn_op_t)0);
    for (size_t i = 0; op == QN_OP_COUNT && i < USUAL_COUNT; i++)
        if (strcmp(USUAL[i].name, name) == 0) {
            op = USUAL[i].op;
            *ret_part = USUAL[i].part;
        }
    for (size_t i = 0; op == QN_OP_COUNT && i < QN_OP_COUNT + USUAL_COUNT; i++) {
        const char *known = i < QN_OP_COUNT ? qn_op_name((qn_op_t)i) : USUAL[i - QN_OP_COUNT].name;
        if (qn_edit_distance(name, known) < qn_edit_distance(name, *ret_nearest)) *ret_nearest = known;
    }
    return op;
}
