/* Launches that stand for several operations of kernels.h in a row. A backend may have them in one kernel; one that
 * does not runs the parts, in the order of the fields, with the same result: the `*_parts` functions below. What
 * passes between the parts (the norm's out; gate and up; the rotated q and k) is scratch, written or not. */
#ifndef QN_KERNELS_FUSED_H
#define QN_KERNELS_FUSED_H

#include "kernels/kernels.h"

/* norm_matmul: a product with the norm of its input before it and the activation of its outputs after it. */
typedef struct {
    qn_rmsnorm_t norm; /* its out is matmul.x; x NULL: none */
    qn_matmul_t matmul;
    qn_activate_t activation; /* of the outs of part 0 (gate) and part 1 (up); out NULL: none */
    bool logits;              /* out is f32, whatever the activations are */
} qn_norm_matmul_t;

/* decode_attention: from the projections of q, k and v to the heads' outputs, for runs of one token. Run i's token is
 * row runs[i].first of all arrays. */
typedef struct {
    qn_rmsnorm_t q_norm, k_norm; /* of each head, in place; x NULL: none */
    qn_rope_t rope;              /* angles NULL: none */
    qn_kv_write_t write;
    qn_attention_t attention; /* its runs are all of this step's */
} qn_decode_attention_t;

static inline void qn_norm_matmul_parts(const qn_kernel_set_t *set, qn_stream_t *stream, const qn_norm_matmul_t *a)
{
    if (a->norm.x) qn_launch(set, QN_OP_RMSNORM, stream, &a->norm);
    qn_launch(set, QN_OP_MATMUL, stream, &a->matmul);
    if (a->activation.out) qn_launch(set, QN_OP_ACTIVATION, stream, &a->activation);
}

/* The parts before attention itself. */
static inline void qn_enter_attention(const qn_kernel_set_t *set, qn_stream_t *stream, const qn_decode_attention_t *a)
{
    if (a->q_norm.x) qn_launch(set, QN_OP_RMSNORM, stream, &a->q_norm);
    if (a->k_norm.x) qn_launch(set, QN_OP_RMSNORM, stream, &a->k_norm);
    if (a->rope.angles) qn_launch(set, QN_OP_ROPE, stream, &a->rope);
    qn_launch(set, QN_OP_KV_WRITE, stream, &a->write);
}

static inline void qn_decode_attention_parts(const qn_kernel_set_t *set, qn_stream_t *stream,
                                             const qn_decode_attention_t *a)
{
    qn_enter_attention(set, stream, a);
    qn_launch(set, QN_OP_ATTENTION_DECODE, stream, &a->attention);
}

#endif
