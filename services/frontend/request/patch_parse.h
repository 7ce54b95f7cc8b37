/* Points of the network by name ("embed", "layer.5.attn.q", "layer.*.resid", "norm", "logits"), and patches in JSON: what a
 * request puts there instead (replace) or beside what is there (add): {"point", "action", "values", "scale", "positions"}.
 * `values` is a row, or a row for each of the positions, as numbers or lists of numbers. */
#ifndef QN_FRONTEND_REQUEST_PATCH_PARSE_H
#define QN_FRONTEND_REQUEST_PATCH_PARSE_H

#include <jansson.h>

#include "common/probe/probe.h"
#include "services/frontend/http/http_error.h"

typedef struct {
    qn_tap_point_t *points; /* [points_max], the caller's */
    uint32_t point_count, points_max;
    float *values; /* [QN_TAP_VALUES_MAX], the caller's; unused by points */
    uint32_t value_count;
} patch_list_t;

/* Adds the points that `name` means, each otherwise like `like`; "*" is one per layer. `layers`: of the model; 0: not known,
 * then "*" is refused with 503. False: *ret_error. */
bool point_parse(const char *name, uint32_t layers, const qn_tap_point_t *like, const char *param, patch_list_t *list,
                 http_error_t *ret_error);
/* A list of patches. Positions are below `position_end`, which is where one without positions ends. */
bool patches_parse(const json_t *value, uint32_t layers, uint32_t position_end, patch_list_t *list,
                   http_error_t *ret_error);

#endif
