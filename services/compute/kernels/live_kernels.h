/* What was set live of compute's kernels, and which shared objects run: <run_dir>/live/compute.kernels, so that it outlives the
 * process. People may read it (JSON) and delete it: then the configuration alone counts.
 *
 * What was chosen holds while compute.kernels says what it said then: who changes the configuration takes it back. Objects
 * that were loaded when a life of compute crashed are withdrawn: neither they nor their kernels are used again until their
 * file has changed. */
#ifndef QN_COMPUTE_KERNELS_LIVE_KERNELS_H
#define QN_COMPUTE_KERNELS_LIVE_KERNELS_H

#include "common/limits.h"
#include "kernels/kernels.h"
#include "kernels/plugin.h"

#define LIVE_OBJECTS_MAX 16
#define LIVE_CHOICE_MAX 4096

typedef struct {
    char path[QN_PATH_MAX];
    uint64_t fingerprint;
    char kernels[QN_PLUGIN_KERNELS_MAX][QN_NAME_MAX]; /* "rmsnorm=mine" */
    unsigned kernel_count;
} live_object_t;

typedef struct {
    char configured[1024];                        /* compute.kernels when it was chosen */
    char chosen[QN_OP_COUNT][QN_PLUGIN_NAME_MAX]; /* by operation; "": nothing */
    live_object_t objects[LIVE_OBJECTS_MAX];      /* that this life has loaded, after its check */
    unsigned object_count;
    live_object_t withdrawn[LIVE_OBJECTS_MAX];
    unsigned withdrawn_count;
    uint32_t epoch;          /* of the life that wrote it */
    char build[QN_NAME_MAX]; /* that checked the objects */
} live_kernels_t;

/* No file: nothing was set. QN_ERR_INVALID: it is not as this build writes it; then `ret_live` is empty, too. */
qn_err_t live_kernels_read(const char *run_dir, live_kernels_t *ret_live);
/* Atomic. QN_ERR_IO. */
qn_err_t live_kernels_write(const char *run_dir, const live_kernels_t *live);

/* The former life crashed: its objects are withdrawn, what was chosen of them is chosen no more. Of more than there is room for
 * the oldest are forgotten. */
void live_kernels_withdraw(live_kernels_t *live);
/* NULL: it is not withdrawn. */
const live_object_t *live_kernels_withdrawn(const live_kernels_t *live, uint64_t fingerprint);
/* Adds or replaces (by path) an object. QN_ERR_LIMIT. */
qn_err_t live_kernels_add_object(live_kernels_t *live, const live_object_t *object);

/* "op=name,op=name" of what was chosen. */
void live_kernels_list(const live_kernels_t *live, char ret_list[LIVE_CHOICE_MAX]);
/* One choice for qn_kernels_choose of all layers: `tuned` (the table's, of the best that fits), over it `configured`
 * (compute.kernels, without kernels of withdrawn objects), over it what was chosen live. QN_ERR_LIMIT. */
qn_err_t live_kernels_compose(const live_kernels_t *live, const char *configured, const char *tuned,
                              char ret_choice[LIVE_CHOICE_MAX]);

#endif
