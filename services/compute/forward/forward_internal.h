/* The pieces of the forward pass and what they share. For forward*.c only. Every function launches and returns. */
#ifndef QN_COMPUTE_FORWARD_FORWARD_INTERNAL_H
#define QN_COMPUTE_FORWARD_FORWARD_INTERNAL_H

#include "kernels/fused.h"
#include "services/compute/forward/forward.h"

/* A layer's norm in the model's own kind: out = norm(x) (+ residual; RMS only). x, out: [tokens, E]. */
void forward_norm(const forward_t *f, const void *x, qn_weight_t weight, qn_weight_t bias, const void *residual,
                  uint32_t tokens, void *out);

/* A product of the norm of x [tokens, E] and what follows it; fills in launch->norm, whose out is the product's input. */
void forward_normed_product(const forward_t *f, const void *x, qn_weight_t weight, qn_weight_t bias,
                            qn_norm_matmul_t *launch);

/* One part of a product of a layer: out = x Wᵀ (+ bias) (+ residual). */
static inline qn_matmul_part_t forward_part(const model_layer_t *layer, qn_tensor_role_t weight, qn_tensor_role_t bias,
                                            uint32_t outputs, void *out, const void *residual)
{
    return (qn_matmul_part_t){.weight = layer->weights[weight],
                              .bias = layer->weights[bias],
                              .outputs = outputs,
                              .out = out,
                              .residual = residual};
}

/* Projects x [tokens, inputs] back to the residual stream, normed before it is added where the model does that. `site`: what
 * taps call the sum. */
void forward_add(const forward_t *f, const void *x, uint32_t inputs, uint32_t layer, qn_tensor_role_t weight,
                 qn_tensor_role_t bias, qn_tensor_role_t post_norm, qn_tap_site_t site, uint32_t tokens);

/* forward_probe.c: what taps at a site do with x [T, width] of the activations' type; for a pass with a probe. */
void forward_tap_rows(const forward_t *f, qn_tap_site_t site, uint32_t layer, void *x, uint32_t width);
static inline void forward_tap(const forward_t *f, qn_tap_site_t site, uint32_t layer, void *x, uint32_t width)
{
    if (f->probe) forward_tap_rows(f, site, layer, x, width);
}
bool forward_has_tap(const forward_t *f, qn_tap_site_t site, uint32_t layer);
/* Around launches that add to the residual stream, with `tokens` rows, where has_tap: in between the stream is zero, so that
 * what is added stands alone. end gives the stream back: with what taps made of the sum (true), or, where they only read it,
 * as it was before (false): then the launches follow once more, and have the bits they have without a tap. */
void forward_begin_added(const forward_t *f, uint32_t tokens);
bool forward_end_added(const forward_t *f, qn_tap_site_t site, uint32_t layer, uint32_t tokens);
/* Whether attention of this layer is under a mask or looked at; then all runs of the pass go through attention.probed. */
bool forward_probes_attention(const forward_t *f, uint32_t layer);
void forward_attend_probed(const forward_t *f, const qn_attention_t *attention, uint32_t runs);

/* Each adds its part to the residual stream, scratch->x. */
void forward_attention(const forward_t *f, uint32_t layer, const forward_batch_t *batch);
void forward_mlp(const forward_t *f, uint32_t layer, uint32_t tokens);
void forward_moe(const forward_t *f, uint32_t layer, uint32_t tokens);

#endif
