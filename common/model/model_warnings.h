/* What is said about a model that is loaded all the same: facts of its files that contradict each other, and things
 * in them that are left out. Shown by `quintet model check`, in memory's log, and as `warnings` of /model_info. */
#ifndef QN_COMMON_MODEL_MODEL_WARNINGS_H
#define QN_COMMON_MODEL_MODEL_WARNINGS_H

#include <stddef.h>
#include <stdint.h>

#define QN_MODEL_WARNINGS_MAX 16        /* as ModelDescription.warnings; those beyond are only counted */
#define QN_MODEL_WARNING_BYTES_MAX 384u /* with the NUL; a longer one is cut */

typedef struct {
    uint32_t count, dropped;
    char texts[QN_MODEL_WARNINGS_MAX][QN_MODEL_WARNING_BYTES_MAX];
} qn_model_warnings_t;

/* Adds one, unless the same is there. `warnings` may be NULL. The text says which file and what is done about it. */
void qn_model_warn(qn_model_warnings_t *warnings, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Adds all of `more`. */
void qn_model_warnings_append(qn_model_warnings_t *warnings, const qn_model_warnings_t *more);

#endif
