/* Stages of the pipeline by name, and running one of them: shared by /pipeline/step_execute and /pipeline/schedule. */
#ifndef QN_FRONTEND_RESEARCH_PIPELINE_H
#define QN_FRONTEND_RESEARCH_PIPELINE_H

#include "services/frontend/research/tokens.h"

typedef enum {
    PIPELINE_TOKENIZE,
    PIPELINE_EMBED,
    PIPELINE_LAYER,
    PIPELINE_ATTENTION,
    PIPELINE_MLP,
    PIPELINE_OUTPUT,
    PIPELINE_SAMPLE,
    PIPELINE_DETOKENIZE,
} pipeline_step_t;

#define PIPELINE_STEPS "tokenize, embed, layer.N, attention, mlp, output, sample or detokenize"

/* "layer.3" sets *layer as well. false: no such step. */
bool pipeline_find(const char *name, pipeline_step_t *ret_step, uint32_t *layer);
const char *pipeline_name(pipeline_step_t step);
/* The stage of compute's that a step runs; false: it runs none. sample is output with its most probable id. */
bool pipeline_stage(pipeline_step_t step, qn_model_stage_t *ret_stage);

#endif
