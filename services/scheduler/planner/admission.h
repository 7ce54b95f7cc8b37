/* Whether a request can be served at all, decided before it enters the ledger. Pure. */
#ifndef QN_SCHEDULER_PLANNER_ADMISSION_H
#define QN_SCHEDULER_PLANNER_ADMISSION_H

#include "services/scheduler/ledger/ledger.h"

/* What the resident model and the KV pool allow. */
typedef struct {
    const char *model; /* served; NULL or "": any name is right */
    uint32_t vocab_size;
    uint32_t max_model_len;  /* tokens of one sequence, prompt and generated */
    uint32_t pool_tokens;    /* tokens all KV blocks hold together */
    qn_probe_model_t probes; /* what probes must suit */
} admission_model_t;

typedef struct {
    uint16_t status;         /* HTTP */
    uint32_t retry_after_ms; /* 0 = trying again does not help */
    const char *param;       /* static; the request's field at fault, or NULL */
    char text[QN_ERR_TEXT_MAX];
} admission_refusal_t;

/* true: can be served; *ret_generated_max is max_tokens clipped to what the model and the pool hold. As vLLM: a prompt
 * must leave room for one token (or be scored only); max_tokens is clipped without complaint.
 * false: *ret_refusal says why, with status 400 and the field. */
bool admission_check(const admission_model_t *model, const ledger_submission_t *submission, uint32_t *ret_generated_max,
                     admission_refusal_t *ret_refusal);
/* Writes a refusal. */
void admission_refuse(admission_refusal_t *ret_refusal, uint16_t status, uint32_t retry_after_ms, const char *param,
                      const char *format, ...) __attribute__((format(printf, 5, 6)));

#endif
