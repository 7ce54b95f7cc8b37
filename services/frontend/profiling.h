/* One recording at a time: a thread beside the loop that listens to all taps, writes the capture and, when it ends, the
 * timeline. The loop starts and stops it and is woken when something has changed.
 *
 * Of earlier recordings PROFILING_KEPT are kept in RUN_DIR/recordings; a new one of the same name replaces the old. */
#ifndef QN_FRONTEND_PROFILING_H
#define QN_FRONTEND_PROFILING_H

#include "common/capture/recorder.h"
#include "common/capture/trace.h"
#include "common/limits.h"

#define PROFILING_KEPT 8

typedef enum {
    PROFILING_NONE,     /* nothing was recorded in this life */
    PROFILING_STARTING, /* not every service is heard yet */
    PROFILING_RUNNING,
    PROFILING_ENDED, /* capture and timeline are there, or `error` says why not */
} profiling_state_t;

typedef struct {
    profiling_state_t state;
    char name[QN_NAME_MAX];
    char capture_path[QN_PATH_MAX], trace_path[QN_PATH_MAX];
    unsigned services; /* bits 1 << qn_service_t of those heard; once it is RUNNING */
    uint32_t seconds;  /* at most */
    qn_recorder_figures_t recorded;
    qn_trace_figures_t traced;
    char error[QN_ERR_TEXT_MAX]; /* ENDED: "" when all went well */
} profiling_view_t;

typedef struct profiling profiling_t;

/* `run_dir` is borrowed. Returns owned. Failure: QN_ERR_IO. */
qn_err_t profiling_create(const char *run_dir, profiling_t **ret_profiling);
/* Ends what runs; accepts NULL. */
void profiling_destroy(profiling_t **profiling);
/* Readable when the state has changed; profiling_look makes it unreadable again. */
int profiling_fd(const profiling_t *profiling);

/* Begins; one that has ended is forgotten. Failure: QN_ERR_INVALID (the name), QN_ERR_LIMIT (one runs),
 * QN_ERR_IO. */
qn_err_t profiling_start(profiling_t *self, const char *name, uint32_t seconds);
/* Ends it soon. Harmless when nothing runs. */
void profiling_stop(profiling_t *profiling);
void profiling_look(profiling_t *self, profiling_view_t *ret_view);

#endif
