/* What is this?      The pointers of the argument structs of kernels.h and fused.h.
 * State owned:       the table.
 * Must never:        miss one: a device would read host memory.
 * Read next:         kernel_runner.c. */
#include "kernels/bench/kernel_pointers.h"

#include "kernels/fused.h"

typedef struct {
    qn_op_t op;
    size_t offset;
} pointer_t;

/* `at` is the path to a struct within the operation's own, with its dot: empty, or `norm.`. */
#define P(op, type, field) {op, offsetof(type, field)}
#define TABLES(op, type, at)                                                                            \
    P(op, type, at tables.rows), P(op, type, at tables.block_tables), P(op, type, at tables.stop_ids),  \
        P(op, type, at tables.bias), P(op, type, at tables.counts), P(op, type, at tables.logprob_ids), \
        P(op, type, at tables.bad_ids), P(op, type, at tables.recent)
#define NORM(op, type, at) P(op, type, at x), P(op, type, at weight.data), P(op, type, at residual), P(op, type, at out)
#define PART(op, type, at) \
    P(op, type, at weight.data), P(op, type, at bias.data), P(op, type, at residual), P(op, type, at out)
#define PRODUCT(op, type, at) \
    P(op, type, at x), PART(op, type, at parts[0].), PART(op, type, at parts[1].), PART(op, type, at parts[2].)
#define ACTIVATION(op, type, at) P(op, type, at gate), P(op, type, at up), P(op, type, at out)
#define ROTATION(op, type, at) P(op, type, at angles), P(op, type, at q), P(op, type, at k)
#define WRITE(op, type, at) P(op, type, at kv.data), P(op, type, at k), P(op, type, at v), P(op, type, at kv_rows)
#define ATTENTION(op, type, at) \
    P(op, type, at kv.data), TABLES(op, type, at), P(op, type, at runs), P(op, type, at q), P(op, type, at out)

static const pointer_t POINTERS[] = {
    TABLES(QN_OP_SLOT_UPDATE, qn_slot_update_t, ),
    P(QN_OP_SLOT_UPDATE, qn_slot_update_t, retire),
    P(QN_OP_SLOT_UPDATE, qn_slot_update_t, starts),
    P(QN_OP_SLOT_UPDATE, qn_slot_update_t, entries),
    P(QN_OP_SLOT_UPDATE, qn_slot_update_t, ids),
    P(QN_OP_SLOT_UPDATE, qn_slot_update_t, stop_ids),
    P(QN_OP_SLOT_UPDATE, qn_slot_update_t, list_ids),
    P(QN_OP_SLOT_UPDATE, qn_slot_update_t, bias),
    P(QN_OP_BLOCK_COPY, qn_block_copy_args_t, kv.data),
    P(QN_OP_BLOCK_COPY, qn_block_copy_args_t, copies),
    TABLES(QN_OP_STEP_INPUT, qn_step_input_t, ),
    P(QN_OP_STEP_INPUT, qn_step_input_t, runs),
    P(QN_OP_STEP_INPUT, qn_step_input_t, ids),
    P(QN_OP_STEP_INPUT, qn_step_input_t, ret_ids),
    P(QN_OP_STEP_INPUT, qn_step_input_t, ret_positions),
    P(QN_OP_STEP_INPUT, qn_step_input_t, ret_lengths),
    P(QN_OP_STEP_INPUT, qn_step_input_t, ret_kv_rows),
    P(QN_OP_EMBEDDING, qn_embedding_t, table.data),
    P(QN_OP_EMBEDDING, qn_embedding_t, position_table.data),
    P(QN_OP_EMBEDDING, qn_embedding_t, ids),
    P(QN_OP_EMBEDDING, qn_embedding_t, positions),
    P(QN_OP_EMBEDDING, qn_embedding_t, out),
    NORM(QN_OP_RMSNORM, qn_rmsnorm_t, ),
    P(QN_OP_LAYERNORM, qn_layernorm_t, x),
    P(QN_OP_LAYERNORM, qn_layernorm_t, weight.data),
    P(QN_OP_LAYERNORM, qn_layernorm_t, bias.data),
    P(QN_OP_LAYERNORM, qn_layernorm_t, out),
    PRODUCT(QN_OP_MATMUL, qn_matmul_t, ),
    P(QN_OP_ROPE_ANGLES, qn_rope_angles_t, positions),
    P(QN_OP_ROPE_ANGLES, qn_rope_angles_t, lengths),
    P(QN_OP_ROPE_ANGLES, qn_rope_angles_t, frequencies),
    P(QN_OP_ROPE_ANGLES, qn_rope_angles_t, out),
    ROTATION(QN_OP_ROPE, qn_rope_t, ),
    WRITE(QN_OP_KV_WRITE, qn_kv_write_t, ),
    ATTENTION(QN_OP_ATTENTION_PREFILL, qn_attention_t, ),
    ATTENTION(QN_OP_ATTENTION_DECODE, qn_attention_t, ),
    ACTIVATION(QN_OP_ACTIVATION, qn_activate_t, ),
    P(QN_OP_MOE_ROUTE, qn_moe_route_t, logits),
    P(QN_OP_MOE_ROUTE, qn_moe_route_t, ret_weights),
    P(QN_OP_MOE_ROUTE, qn_moe_route_t, ret_places),
    P(QN_OP_MOE_ROUTE, qn_moe_route_t, ret_rows),
    P(QN_OP_MOE_ROUTE, qn_moe_route_t, ret_offsets),
    P(QN_OP_EXPERT_MATMUL, qn_expert_matmul_t, x),
    P(QN_OP_EXPERT_MATMUL, qn_expert_matmul_t, offsets),
    P(QN_OP_EXPERT_MATMUL, qn_expert_matmul_t, weights[0]),
    P(QN_OP_EXPERT_MATMUL, qn_expert_matmul_t, weights[1]),
    P(QN_OP_EXPERT_MATMUL, qn_expert_matmul_t, out[0]),
    P(QN_OP_EXPERT_MATMUL, qn_expert_matmul_t, out[1]),
    P(QN_OP_MOE_COMBINE, qn_moe_combine_t, x),
    P(QN_OP_MOE_COMBINE, qn_moe_combine_t, weights),
    P(QN_OP_MOE_COMBINE, qn_moe_combine_t, places),
    P(QN_OP_MOE_COMBINE, qn_moe_combine_t, residual),
    P(QN_OP_MOE_COMBINE, qn_moe_combine_t, out),
    P(QN_OP_SOFTCAP, qn_softcap_t, x),
    P(QN_OP_GATHER_ROWS, qn_gather_rows_t, x),
    P(QN_OP_GATHER_ROWS, qn_gather_rows_t, rows),
    P(QN_OP_GATHER_ROWS, qn_gather_rows_t, out),
    P(QN_OP_LOGPROBS, qn_logprobs_t, logits),
    P(QN_OP_LOGPROBS, qn_logprobs_t, targets),
    P(QN_OP_LOGPROBS, qn_logprobs_t, top_counts),
    TABLES(QN_OP_LOGPROBS, qn_logprobs_t, ),
    P(QN_OP_LOGPROBS, qn_logprobs_t, slots),
    P(QN_OP_LOGPROBS, qn_logprobs_t, ret_logprobs),
    P(QN_OP_LOGPROBS, qn_logprobs_t, ret_top),
    TABLES(QN_OP_SAMPLER, qn_sampler_t, ),
    P(QN_OP_SAMPLER, qn_sampler_t, samples),
    P(QN_OP_SAMPLER, qn_sampler_t, logits),
    P(QN_OP_SAMPLER, qn_sampler_t, scratch),
    P(QN_OP_SAMPLER, qn_sampler_t, ret_results),
    P(QN_OP_SAMPLER, qn_sampler_t, ret_top),
    NORM(QN_OP_NORM_MATMUL, qn_norm_matmul_t, norm.),
    PRODUCT(QN_OP_NORM_MATMUL, qn_norm_matmul_t, matmul.),
    ACTIVATION(QN_OP_NORM_MATMUL, qn_norm_matmul_t, activation.),
    NORM(QN_OP_DECODE_ATTENTION, qn_decode_attention_t, q_norm.),
    NORM(QN_OP_DECODE_ATTENTION, qn_decode_attention_t, k_norm.),
    ROTATION(QN_OP_DECODE_ATTENTION, qn_decode_attention_t, rope.),
    WRITE(QN_OP_DECODE_ATTENTION, qn_decode_attention_t, write.),
    ATTENTION(QN_OP_DECODE_ATTENTION, qn_decode_attention_t, attention.),
};

size_t kernel_arguments_bytes(qn_op_t op)
{
    static const size_t BYTES[QN_OP_COUNT] = {
        [QN_OP_SLOT_UPDATE] = sizeof(qn_slot_update_t),
        [QN_OP_BLOCK_COPY] = sizeof(qn_block_copy_args_t),
        [QN_OP_STEP_INPUT] = sizeof(qn_step_input_t),
        [QN_OP_EMBEDDING] = sizeof(qn_embedding_t),
        [QN_OP_RMSNORM] = sizeof(qn_rmsnorm_t),
        [QN_OP_LAYERNORM] = sizeof(qn_layernorm_t),
        [QN_OP_MATMUL] = sizeof(qn_matmul_t),
        [QN_OP_ROPE_ANGLES] = sizeof(qn_rope_angles_t),
        [QN_OP_ROPE] = sizeof(qn_rope_t),
        [QN_OP_KV_WRITE] = sizeof(qn_kv_write_t),
        [QN_OP_ATTENTION_PREFILL] = sizeof(qn_attention_t),
        [QN_OP_ATTENTION_DECODE] = sizeof(qn_attention_t),
        [QN_OP_ACTIVATION] = sizeof(qn_activate_t),
        [QN_OP_MOE_ROUTE] = sizeof(qn_moe_route_t),
        [QN_OP_EXPERT_MATMUL] = sizeof(qn_expert_matmul_t),
        [QN_OP_MOE_COMBINE] = sizeof(qn_moe_combine_t),
        [QN_OP_SOFTCAP] = sizeof(qn_softcap_t),
        [QN_OP_GATHER_ROWS] = sizeof(qn_gather_rows_t),
        [QN_OP_LOGPROBS] = sizeof(qn_logprobs_t),
        [QN_OP_SAMPLER] = sizeof(qn_sampler_t),
        [QN_OP_NORM_MATMUL] = sizeof(qn_norm_matmul_t),
        [QN_OP_DECODE_ATTENTION] = sizeof(qn_decode_attention_t),
    };
    return BYTES[op];
}

void kernel_each_pointer(qn_op_t op, void *arguments, void (*move)(void *context, void **pointer), void *context)
{
    for (size_t i = 0; i < sizeof POINTERS / sizeof *POINTERS; i++)
        if (POINTERS[i].op == op) move(context, (void **)(void *)((char *)arguments + POINTERS[i].offset));
}
