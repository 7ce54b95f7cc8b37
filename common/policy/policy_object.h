/* A policy that can decide: one that is built in, or a shared object that was loaded. ABI: common/policy.h.
 *
 * A shared object is loaded from a copy of its file that is taken at once: the file may be written anew under its name
 * while it runs, and the new one is loaded beside the old one. Only files inside the directories of `dirs` are loaded,
 * wherever links lead. Not thread-safe; takes as long as reading the file and dlopen(3). */
#ifndef QN_COMMON_POLICY_POLICY_OBJECT_H
#define QN_COMMON_POLICY_POLICY_OBJECT_H

#include <stdbool.h>
#include <stddef.h>

#include "common/err.h"
#include "common/limits.h"
#include "common/policy.h"

#define QN_POLICY_NAME_MAX 512 /* of a choice: a built-in name, a file's name or path, NUL included */

typedef struct qn_policy_object qn_policy_object_t;

/* What a service has of one kind. */
typedef struct {
    qn_policy_kind_t kind;
    const qn_policy_head_t *const *builtin; /* [builtin_count]; the first is the last resort */
    size_t builtin_count;
    const char *dirs; /* of shared objects, separated by colons; borrowed */
} qn_policy_catalogue_t;

/* Asked when the file was read and before any code of it runs; what it fails with, opening fails with. */
typedef struct {
    qn_err_t (*ask)(void *context, const char *choice, uint64_t fingerprint);
    void *context;
} qn_policy_approval_t;

/* "scheduling", ...; and the key of the configuration that chooses one. */
const char *qn_policy_kind_name(qn_policy_kind_t kind);
const char *qn_policy_kind_key(qn_policy_kind_t kind);

/* `choice`: a built-in name, the name of a file NAME.so in one of the directories, or a path into one. QN_ERR_CONFIG: no
 * such policy, outside the directories, not to be loaded, another ABI or kind, incomplete. `approval` may be NULL. Returns
 * owned. */
qn_err_t qn_policy_object_open(const qn_policy_catalogue_t *catalogue, const char *choice,
                               const qn_policy_approval_t *approval, qn_policy_object_t **ret_object);
/* Around a table (borrowed). */
qn_err_t qn_policy_object_wrap(qn_policy_kind_t kind, const qn_policy_head_t *head, qn_policy_object_t **ret_object);
void qn_policy_object_close(qn_policy_object_t **object);

/* The table; cast it to the kind's. */
const qn_policy_head_t *qn_policy_object_head(const qn_policy_object_t *object);
/* What it was opened by. */
const char *qn_policy_object_choice(const qn_policy_object_t *object);
/* Of the file's bytes; 0: it is no shared object. */
uint64_t qn_policy_object_fingerprint(const qn_policy_object_t *object);
/* State (zero) and metrics (zero) of this object. */
const qn_policy_memory_t *qn_policy_object_memory(const qn_policy_object_t *object);

/* The files NAME.so of the directories, each name once: calls `take` with a view. */
void qn_policy_object_list(const char *dirs, void (*take)(void *context, const char *name), void *context);

#endif
