/* What an examination finds (`quintet doctor`, `quintet model check`): a list, shown as a table or as JSON. */
#ifndef QN_TOOLS_FINDINGS_H
#define QN_TOOLS_FINDINGS_H

#include <jansson.h>
#include <stddef.h>

#include "common/err.h"
#include "common/limits.h"

#define FINDINGS_MAX 64

typedef enum { FINDING_OK, FINDING_WARN, FINDING_FAIL } finding_level_t;

typedef struct {
    finding_level_t level;
    qn_err_t err;       /* of a failure: gives the exit status */
    const char *name;   /* of the check */
    const char *remedy; /* NULL: nothing to do */
    char text[QN_ERR_TEXT_MAX];
} finding_t;

typedef struct {
    finding_t items[FINDINGS_MAX];
    size_t count;
} findings_t;

/* Adds one; keeps references to `name` and `remedy`. Whoever examines bounds what it adds: FINDINGS_MAX in all. */
void findings_add(findings_t *findings, finding_level_t level, qn_err_t err, const char *name, const char *remedy,
                  const char *format, ...) __attribute__((format(printf, 6, 7)));

finding_level_t findings_worst(const findings_t *findings);
/* QN_OK when nothing fails. */
qn_err_t findings_first_failure(const findings_t *findings);

/* "ok", "warn", "fail". */
const char *finding_level_name(finding_level_t level);
/* A line each on standard output, in colour on a terminal unless NO_COLOR is set; the remedy below. */
void findings_print(const findings_t *findings);
/* [{"check", "result", "text", "remedy"}], without a remedy where there is none. Returns owned. */
json_t *findings_json(const findings_t *findings);

#endif
