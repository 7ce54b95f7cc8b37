/* What the forms about a run of tokens share: the tokens, from "prompt" (text), "input_ids", or "request" (the name of one
 * that runs). */
#ifndef QN_FRONTEND_RESEARCH_TOKENS_H
#define QN_FRONTEND_RESEARCH_TOKENS_H

#include "services/frontend/request/mask_parse.h"
#include "services/frontend/research/forms.h"

typedef struct form_tokens form_tokens_t;

/* Lives in the form's arena; the first member of what a form keeps. */
struct form_tokens {
    const uint32_t *ids;
    uint32_t count;
    uint64_t request;   /* a living one's; 0: none. `ids` are then those that are computed */
    const char **texts; /* of each id; NULL: not known */
    void (*next)(form_t *form);
};

/* The members that it reads. */
#define FORM_TOKENS_MEMBERS "prompt", "input_ids", "request"

/* Finds them and calls `next`; or the form was answered. Without any of the three, the example prompt. form->state is a
 * form_tokens_t. */
void form_find_tokens(form_t *form, void (*next)(form_t *form));
/* "positions": [from, to), within `count`; absent: all. False: the form was answered. */
bool form_read_positions(form_t *form, uint32_t count, uint32_t *ret_from, uint32_t *ret_to);
/* "sparsity_mask", as rows. False: answered. */
bool form_read_masks(form_t *form, const qn_mask_row_t **ret_rows, uint32_t *ret_count);
/* As the key says. */
uint32_t form_inline_values(const form_t *form);

/* {"region", "epoch", "offset", "bytes", "shape", "dtype", "lease", "fd_socket"}: where a tensor is. */
void form_put_handle(json_writer_t *writer, const qn_tapped_tensor_t *tensor, const qn_workspace_handle_t *handle);
/* {"min", "max", "mean", "std", "zeros", "nan_count"}. */
void form_put_summary(json_writer_t *writer, const qn_tapped_tensor_t *tensor);
/* The numbers as lists in lists of the tensor's shape, from dimension `from` on. */
void form_put_nested(json_writer_t *writer, const float *values, const uint64_t *shape, uint32_t rank);
/* "shape", "dtype", "summary", and "values" or "handle". */
void form_put_tensor(json_writer_t *writer, const qn_tapped_tensor_t *tensor, const float *values,
                     const qn_workspace_handle_t *handle);

/* For the schemas of bodies. */
#define FORM_OBJECT(members) "{\"type\":\"object\",\"additionalProperties\":false,\"properties\":{" members "}}"
#define FORM_IDS_SCHEMA \
    "\"prompt\":{\"type\":\"string\"},\"input_ids\":{\"type\":\"array\",\"items\":{\"type\":\"integer\",\"minimum\":0}}"
#define FORM_POSITIONS_SCHEMA \
    "\"positions\":{\"type\":\"array\",\"items\":{\"type\":\"integer\",\"minimum\":0},\"minItems\":2,\"maxItems\":2}"
#define FORM_NUMBERS_SCHEMA "{\"type\":[\"integer\",\"array\"],\"items\":{\"type\":\"integer\"}}"
#define FORM_ANY_OBJECT "{\"type\":\"object\"}"

#endif
