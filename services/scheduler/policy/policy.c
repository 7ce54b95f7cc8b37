/* What is this?      The border between the scheduler and a policy, which may be foreign code.
 * State owned:       the handle of the shared object.
 * Must never:        let a decision through that names what was not offered or spends what was not there.
 * Read next:         common/policy.h for the contract, policy_fcfs.c for the default. */
#include "services/scheduler/policy/policy.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/checksum.h"
#include "common/limits.h"

struct policy {
    const qn_policy_t *functions;
    void *library; /* NULL when built in */
};

static const qn_policy_t *find_builtin(const char *name)
{
    static const qn_policy_t *const builtin[] = {&policy_fcfs, &policy_priority};
    for (size_t i = 0; i < sizeof builtin / sizeof *builtin; i++)
        if (strcmp(builtin[i]->name, name) == 0) return builtin[i];
    return NULL;
}

static bool is_path(const char *name)
{
    size_t length = strlen(name);
    return strchr(name, '/') != NULL || (length > 3 && strcmp(name + length - 3, ".so") == 0);
}

static qn_err_t check_functions(const qn_policy_t *functions, const char *from)
{
    if (functions == NULL)
        return qn_fail(QN_ERR_CONFIG, "scheduler.policy %s: %s() returned nothing", from, QN_POLICY_SYMBOL);
    if (functions->version != QN_POLICY_ABI_VERSION)
        return qn_fail(QN_ERR_CONFIG,
                       "scheduler.policy %s: made for policy ABI %u, this build has %d; compile it again", from,
                       functions->version, QN_POLICY_ABI_VERSION);
    if (functions->name == NULL || functions->name[0] == '\0' || strlen(functions->name) >= QN_NAME_MAX)
        return qn_fail(QN_ERR_CONFIG, "scheduler.policy %s: its name is missing or longer than %d bytes", from,
                       QN_NAME_MAX - 1);
    if (functions->admit == NULL || functions->share == NULL || functions->preempt == NULL)
        return qn_fail(QN_ERR_CONFIG, "scheduler.policy %s: admit, share or preempt is missing", from);
    return QN_OK;
}

qn_err_t policy_wrap(const qn_policy_t *functions, policy_t **ret_policy)
{
    qn_err_t err = check_functions(functions, "(wrapped)");
    if (err < 0) return err;
    policy_t *policy = calloc(1, sizeof *policy);
    if (policy == NULL) return qn_fail(QN_ERR_NO_MEMORY, "policy: out of memory");
    policy->functions = functions;
    *ret_policy = policy;
    return QN_OK;
}

static qn_err_t load(const char *path, void **ret_library, const qn_policy_t **ret_functions)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) return qn_fail(QN_ERR_CONFIG, "scheduler.policy %s: %s", path, dlerror());
    qn_policy_entry_t entry;
    void *symbol = dlsym(library, QN_POLICY_SYMBOL);
    memcpy(&entry, &symbol, sizeof entry); /* ISO C has no cast from object to function pointer */
    qn_err_t err = symbol == NULL
                       ? qn_fail(QN_ERR_CONFIG, "scheduler.policy %s: it does not export %s()", path, QN_POLICY_SYMBOL)
                       : check_functions(*ret_functions = entry(), path);
    if (err < 0)
        dlclose(library);
    else
        *ret_library = library;
    return err;
}

qn_err_t policy_open(const char *name, policy_t **ret_policy)
{
    void *library = NULL;
    const qn_policy_t *functions = find_builtin(name);
    if (functions == NULL && !is_path(name))
        return qn_fail(QN_ERR_CONFIG,
                       "scheduler.policy %s: no such policy; built in are fcfs and priority, anything else "
                       "is the path of a shared object",
                       name);
    qn_err_t err = functions == NULL ? load(name, &library, &functions) : QN_OK;
    if (err < 0) return err;
    err = policy_wrap(functions, ret_policy);
    if (err < 0 && library != NULL)
        dlclose(library);
    else if (err == QN_OK)
        (*ret_policy)->library = library;
    return err;
}

uint64_t policy_fingerprint(const char *name)
{
    struct stat file;
    if (name == NULL || find_builtin(name) != NULL || stat(name, &file) != 0) return 0;
    const uint64_t facts[] = {(uint64_t)file.st_dev, (uint64_t)file.st_ino, (uint64_t)file.st_size,
                              (uint64_t)file.st_mtim.tv_sec, (uint64_t)file.st_mtim.tv_nsec};
    uint64_t hash = qn_fingerprint(facts, sizeof facts, 0);
    return hash != 0 ? hash : 1;
}

void policy_close(policy_t **policy)
{
    if (*policy == NULL) return;
    if ((*policy)->library != NULL) dlclose((*policy)->library);
    free(*policy);
    *policy = NULL;
}

const char *policy_name(const policy_t *policy) { return policy->functions->name; }

/* ---- checks ---- */

static const qn_policy_sequence_t *offered(const qn_policy_view_t *view, uint64_t id)
{
    for (uint32_t i = 0; i < view->sequence_count; i++)
        if (view->sequences[i].id == id) return &view->sequences[i];
    return NULL;
}

static qn_err_t broke(const policy_t *policy, const char *function, const char *rule, uint64_t id)
{
    return qn_fail(QN_ERR_INVALID,
                   "scheduling policy %s: %s %s (request %llu); correct the policy or choose another one "
                   "with scheduler.policy",
                   policy->functions->name, function, rule, (unsigned long long)id);
}

static void terminate(char reason[QN_POLICY_REASON_MAX]) { reason[QN_POLICY_REASON_MAX - 1] = '\0'; }

qn_err_t policy_admit(policy_t *policy, const qn_policy_view_t *view, uint32_t admissions_max,
                      qn_policy_admit_t *ret_admit)
{
    ret_admit->count = 0;
    policy->functions->admit(view, admissions_max, ret_admit);
    if (ret_admit->count > admissions_max) return broke(policy, "admit", "names more than it may", 0);
    for (uint32_t i = 0; i < ret_admit->count; i++) {
        qn_policy_admission_t *admission = &ret_admit->admissions[i];
        terminate(admission->reason);
        if (offered(view, admission->id) == NULL)
            return broke(policy, "admit", "names a request that is not waiting", admission->id);
        for (uint32_t j = 0; j < i; j++)
            if (ret_admit->admissions[j].id == admission->id)
                return broke(policy, "admit", "names a request twice", admission->id);
    }
    return QN_OK;
}

qn_err_t policy_share(policy_t *policy, const qn_policy_view_t *view, uint32_t budget_tokens, uint32_t chunk_tokens,
                      bool must_progress, qn_policy_share_t *ret_share)
{
    qn_policy_part_t *parts = ret_share->parts;
    uint32_t parts_max = view->sequence_count;
    ret_share->count = 0;
    ret_share->reason[0] = '\0';
    policy->functions->share(view, budget_tokens, chunk_tokens, parts_max, must_progress, ret_share);
    terminate(ret_share->reason);
    if (ret_share->parts != parts || ret_share->count > parts_max)
        return broke(policy, "share", "names more than it may", 0);
    uint64_t dealt = 0;
    for (uint32_t i = 0; i < ret_share->count; i++) {
        const qn_policy_part_t *part = &parts[i];
        const qn_policy_sequence_t *sequence = offered(view, part->id);
        if (sequence == NULL)
            return broke(policy, "share", "names a request that has no prompt tokens to run", part->id);
        if (part->tokens < 1 || part->tokens > sequence->prefill_tokens || part->tokens > chunk_tokens)
            return broke(policy, "share", "deals more tokens than the request has or the chunk allows, or none",
                         part->id);
        for (uint32_t j = 0; j < i; j++)
            if (parts[j].id == part->id) return broke(policy, "share", "names a request twice", part->id);
        dealt += part->tokens;
    }
    if (dealt > budget_tokens) return broke(policy, "share", "deals more tokens than the step has", 0);
    if (must_progress && dealt == 0) return broke(policy, "share", "deals nothing although nothing else runs", 0);
    return QN_OK;
}

qn_err_t policy_preempt(policy_t *policy, const qn_policy_view_t *view, uint64_t needy,
                        qn_policy_preempt_t *ret_preempt)
{
    *ret_preempt = (qn_policy_preempt_t){0};
    policy->functions->preempt(view, needy, ret_preempt);
    terminate(ret_preempt->reason);
    if (offered(view, ret_preempt->id) == NULL)
        return broke(policy, "preempt", "names a request that may not be preempted", ret_preempt->id);
    return QN_OK;
}
