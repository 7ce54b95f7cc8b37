/* A sparsity mask in JSON: {"method" (or "mask_pattern"): "top_k" | "threshold" | "window" | "sink_window" | "block_top_k",
 * "k", "threshold", "sparsity_ratio", "window", "sinks", "layers", "heads"}, or a list of them. All rules that it names hold
 * together; what a method leaves out another member may say: top_k with a sparsity_ratio needs no k, and a threshold joins
 * any. `layers` and `heads`: a number or a list of them; absent: all. */
#ifndef QN_FRONTEND_REQUEST_MASK_PARSE_H
#define QN_FRONTEND_REQUEST_MASK_PARSE_H

#include <jansson.h>

#include "common/probe/probe.h"
#include "services/frontend/http/http_error.h"

#define MASK_SINKS_DEFAULT 4 /* attention sinks: Xiao et al. 2023 keep four */

typedef struct {
    qn_mask_rule_t rules[64]; /* QN_MASKS_MAX */
    uint32_t count;
} mask_list_t;

/* `prefix`: "" or "sparsity_mask.", before names in messages. `layers`, `heads`: of the model, 0: not known, and then the
 * scheduler judges. `ignored`: members of the object that somebody else reads, ends with NULL. False: *ret_error. */
bool mask_parse(const json_t *value, const char *prefix, uint32_t layers, uint32_t heads, const char *const *ignored,
                mask_list_t *ret_list, http_error_t *ret_error);

/* A rule as methods show and take it. */
static inline qn_mask_row_t mask_row(const qn_mask_rule_t *rule)
{
    return (qn_mask_row_t){.kind = rule->kind,
                           .k = rule->k,
                           .window = rule->window,
                           .sinks = rule->sinks,
                           .value = rule->value,
                           .layer_from = rule->layer_from,
                           .layer_to = rule->layer_to,
                           .head_from = rule->head_from,
                           .head_to = rule->head_to};
}

#endif
