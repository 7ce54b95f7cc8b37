/* Faults that somebody asked for while everything runs: messages delayed, dropped, doubled, reordered or damaged on their way, a
 * daemon killed at its k-th message, a lease or an allocation refused. For tests and research: what must a service survive?
 *
 * The rules lie in one page, <run_dir>/faults, which every daemon of the run directory maps: what is set or cleared is so for
 * all of them at once, and outlives each. Off, a place that asks costs one load and one branch. Failpoints (failpoint.h) are for
 * places in the code, fixed at start; these are for messages, live.
 *
 * Which hits fire is a function of a rule's seed and the number of the hit. */
#ifndef QN_COMMON_FAULTS_H
#define QN_COMMON_FAULTS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"

#define QN_FAULTS_MAX 16
#define QN_FAULT_DELAY_MS_MAX 10000u

typedef enum {
    QN_FAULT_NONE,
    QN_FAULT_DELAY,      /* taken delay_ms later; what follows on the link waits behind it */
    QN_FAULT_DROP,       /* never taken */
    QN_FAULT_DUPLICATE,  /* taken twice */
    QN_FAULT_REORDER,    /* taken after the next message of the link */
    QN_FAULT_CORRUPT,    /* taken damaged, so that verification fails */
    QN_FAULT_KILL,       /* the receiver kills itself (SIGKILL) before it takes it */
    QN_FAULT_LEASE,      /* memory grants no blocks, as if it had none */
    QN_FAULT_ALLOCATION, /* memory reserves no region, as if it had no room */
    QN_FAULT_KIND_COUNT
} qn_fault_kind_t;

typedef struct {
    uint32_t kind;     /* qn_fault_kind_t */
    uint32_t from, to; /* bits 1 << qn_service_t; 0: any. Of messages */
    char type[4];      /* of messages: the file identifier; zeros: every one but link control */
    uint32_t delay_ms; /* of a delay */
    float probability; /* of each hit after `skip`; 1: always */
    uint32_t skip;     /* the first hits, which do not fire */
    uint32_t count;    /* firings at most; 0: no bound */
    uint64_t seed;
} qn_fault_t;

typedef struct {
    qn_fault_t fault;
    uint64_t hits, fired; /* since it was set, of all daemons and lives */
} qn_fault_state_t;

typedef struct {
    uint64_t magic;
    _Atomic uint32_t armed;      /* rules in force; 0: none */
    _Atomic uint32_t generation; /* odd while the rules are written */
    struct {
        qn_fault_t fault;
        _Atomic uint64_t hits, fired;
    } rules[QN_FAULTS_MAX];
} qn_fault_page_t;

typedef struct {
    qn_fault_page_t *page; /* shared; NULL: not open */
} qn_faults_t;

/* Maps the page, which is made when it is not there. QN_ERR_IO. */
qn_err_t qn_faults_open(const char *run_dir, qn_faults_t *ret_faults);
void qn_faults_close(qn_faults_t *faults);

static inline bool qn_faults_armed(const qn_faults_t *faults)
{
    return faults->page && atomic_load_explicit(&faults->page->armed, memory_order_relaxed) != 0;
}

/* A message of this type (file identifier) of the service `from` arrived at `to`; `control`: it is the link's own. True: the
 * first rule that fires for it, copied. */
bool qn_faults_hit_message(const qn_faults_t *faults, uint32_t from, uint32_t to, const char type[4], bool control,
                           qn_fault_t *ret_fault);
/* A place of this kind (QN_FAULT_LEASE, QN_FAULT_ALLOCATION) was reached. True: fail here. */
bool qn_faults_hit(const qn_faults_t *faults, qn_fault_kind_t kind);

/* Puts these in place of all there were; 0: clears. One writer at a time. */
void qn_faults_set(qn_faults_t *faults, const qn_fault_t *list, uint32_t count);
/* The rules in force; returns how many. */
uint32_t qn_faults_list(const qn_faults_t *faults, qn_fault_state_t ret_list[QN_FAULTS_MAX]);

/* "delay" and so on; NULL: no such kind. */
const char *qn_fault_name(qn_fault_kind_t kind);
/* QN_FAULT_NONE: no such name. */
qn_fault_kind_t qn_fault_find(const char *name);

#endif
