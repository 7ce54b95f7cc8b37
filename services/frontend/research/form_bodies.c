/* What is this?      The bodies of forms that read their own, for the documentation.
 * State owned:       none.
 * Must never:        show an example that the form refuses: tests/system/test_methods.py posts them all.
 * Read next:         forms.def, form_*.c. */
#include "services/frontend/research/form_bodies.h"

#include <stddef.h>
#include <string.h>

#define IDS \
    "\"prompt\":{\"type\":\"string\"},\"input_ids\":{\"type\":\"array\",\"items\":{\"type\":\"integer\",\"minimum\":0}}"
#define POSITIONS \
    "\"positions\":{\"type\":\"array\",\"items\":{\"type\":\"integer\",\"minimum\":0},\"minItems\":2,\"maxItems\":2}"
#define NUMBERS "{\"type\":[\"integer\",\"array\"],\"items\":{\"type\":\"integer\"}}"
#define OBJECT(members) "{\"type\":\"object\",\"additionalProperties\":false,\"properties\":{" members "}}"
#define MASK                                                                                                          \
    "\"method\":{\"type\":\"string\",\"enum\":[\"top_k\",\"threshold\",\"window\",\"sink_window\",\"block_top_k\"]}," \
    "\"mask_pattern\":{\"type\":\"string\"},\"k\":{\"type\":\"integer\",\"minimum\":1},"                              \
    "\"threshold\":{\"type\":\"number\"},\"sparsity_ratio\":{\"type\":\"number\"},\"window\":{\"type\":\"integer\"}," \
    "\"sinks\":{\"type\":\"integer\"},\"layers\":" NUMBERS ",\"heads\":" NUMBERS ",\"scope\":{\"type\":\"string\"}"

static const struct {
    const char *name;
    form_body_t body;
} ROWS[] = {
    {"attention_scores",
     {OBJECT(
          IDS
          ",\"request\":{\"type\":\"string\"},\"layer_idx\":{\"type\":\"integer\",\"minimum\":0},\"head_idx\":" NUMBERS
          "," POSITIONS ",\"threshold\":{\"type\":\"number\"},\"sparsity_mask\":{\"type\":[\"object\",\"array\"]}"),
      "{\"input_ids\":[1,2,3,4],\"layer_idx\":0,\"head_idx\":0}"}},
    {"debug_taps",
     {OBJECT(
          IDS
          ",\"request\":{\"type\":\"string\"},\"points\":{\"type\":\"array\",\"items\":{\"type\":\"string\"}},"
          "\"patches\":{\"type\":\"array\",\"items\":{\"type\":\"object\"}},\"top\":{\"type\":\"integer\"}," POSITIONS
          ",\"sparsity_mask\":{\"type\":[\"object\",\"array\"]}"),
      "{\"input_ids\":[1,2,3,4],\"points\":[\"embed\",\"layer.*.resid\"]}"}},
    {"step_execute",
     {OBJECT(IDS ",\"step\":{\"type\":\"string\"},\"layer_idx\":{\"type\":\"integer\",\"minimum\":0},"
                 "\"input\":{\"type\":[\"object\",\"array\"]},\"return_intermediate\":{\"type\":\"boolean\"},"
                 "\"overlap\":{\"type\":\"boolean\"}"),
      "{\"step\":\"embed\",\"input_ids\":[1,2,3],\"return_intermediate\":true}"}},
    {"pipeline_schedule",
     {OBJECT(
          "\"steps\":{\"type\":\"array\",\"items\":{\"type\":\"string\"}},"
          "\"prompts\":{\"type\":\"array\",\"items\":{\"type\":\"string\"}},"
          "\"batch_size\":{\"type\":\"integer\",\"minimum\":1,\"maximum\":16},\"overlap_comm\":{\"type\":\"boolean\"}"),
      "{\"steps\":[\"tokenize\",\"embed\",\"attention\",\"output\"],\"batch_size\":4,\"overlap_comm\":true}"}},
    {"sparsity_mask_set", {OBJECT(MASK), "{\"mask_pattern\":\"sink_window\",\"window\":4096,\"sinks\":4}"}},
    {"sparsity_mask_clear", {NULL, NULL}},
};

const form_body_t *form_body_of(const char *name)
{
    for (size_t i = 0; i < sizeof ROWS / sizeof *ROWS; i++)
        if (strcmp(ROWS[i].name, name) == 0) return &ROWS[i].body;
    return NULL;
}
