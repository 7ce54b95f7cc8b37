/* The differences of two JSON values, place by place. */
#ifndef QN_FRONTEND_RESEARCH_JSON_DIFF_H
#define QN_FRONTEND_RESEARCH_JSON_DIFF_H

#include <jansson.h>
#include <stdint.h>

/* [{"path": "sequences[0].cached_tokens", "a": 0, "b": 48, "delta": 48}, ...]: `delta` is b - a of two numbers; what one
 * does not have is null there. `max` rows at most; *ret_left_out counts the others. Returns owned. */
json_t *json_diff(const json_t *a, const json_t *b, uint32_t max, uint32_t *ret_left_out);

#endif
