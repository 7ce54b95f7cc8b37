/* What is this?      What memory and compute do to the scheduler: come, go, crash, grant, report; who is suspected of a crash.
 * State owned:       nothing of its own: the scheduler's (scheduler_internal.h).
 * Must never:        suspect anybody for a death that is no crash; take the result of an old session.
 * Read next:         quarantine/suspects.h, progress.h, batch/batch.h. */
#include "services/scheduler/scheduler_internal.h"

#include <string.h>

/* ---- quarantine ---- */

void scheduler_take_in_hand(scheduler_t *scheduler, uint64_t request)
{
    ledger_evidence(scheduler->ledger)->in_hand = request;
}

void scheduler_peer_crashed(scheduler_t *scheduler, suspects_peer_t peer)
{
    scheduler_condemn(scheduler, suspects_crashed(scheduler->suspects, peer), peer);
}

void scheduler_peer_survived(scheduler_t *scheduler, suspects_peer_t peer)
{
    suspects_acquit(scheduler->suspects, peer);
}

void scheduler_compute_failed(scheduler_t *scheduler)
{
    suspects_heard(scheduler->suspects, SUSPECTS_COMPUTE); /* of this session: nothing older is in its hands */
    suspects_accuse(scheduler->suspects, SUSPECTS_COMPUTE);
    scheduler_peer_crashed(scheduler, SUSPECTS_COMPUTE);
    scheduler_renew(scheduler);
}

void scheduler_memory_failed(scheduler_t *scheduler)
{
    suspects_accuse(scheduler->suspects, SUSPECTS_MEMORY);
    batch_give_back(scheduler->batch, true); /* it refused */
    scheduler_peer_crashed(scheduler, SUSPECTS_MEMORY);
}

const request_t *scheduler_next_guilty(scheduler_t *scheduler, suspects_peer_t *ret_peer)
{
    const request_t *request = scheduler->condemned_count > 0 ? ledger_next(scheduler->ledger, NULL) : NULL;
    for (; request != NULL; request = ledger_next(scheduler->ledger, request))
        if (scheduler->condemned[request->index] == CONDEMNED_NEWLY) {
            scheduler_set_condemned(scheduler, request->index, CONDEMNED_UNTOLD);
            *ret_peer = scheduler->condemned_by;
            return request;
        }
    return NULL;
}

const request_t *scheduler_next_untold(const scheduler_t *scheduler, const request_t *after)
{
    const request_t *request = scheduler->condemned_count > 0 ? ledger_next(scheduler->ledger, after) : NULL;
    for (; request != NULL; request = ledger_next(scheduler->ledger, request))
        if (scheduler->condemned[request->index] == CONDEMNED_UNTOLD && !request_is_orphan(request) &&
            !delivery_done(scheduler->delivery, request->index))
            return request;
    return NULL;
}

void scheduler_told(scheduler_t *scheduler, const request_t *request)
{
    delivery_drop(scheduler->delivery, request->index);
}

bool scheduler_record_once(scheduler_t *scheduler, uint64_t request)
{
    evidence_t *evidence = ledger_evidence(scheduler->ledger);
    if (evidence_crashes(evidence, request) > SUSPECTS_CRASHES_MAX) return false;
    evidence_note(evidence, request, SUSPECTS_CRASHES_MAX + 1);
    return true;
}

bool scheduler_is_quarantined(const scheduler_t *scheduler, uint64_t request)
{
    return evidence_crashes(ledger_evidence(scheduler->ledger), request) >= SUSPECTS_CRASHES_MAX;
}

/* ---- memory and compute ---- */

static bool same_model(const scheduler_model_t *a, const scheduler_model_t *b)
{
    return strcmp(a->name, b->name) == 0 && a->vocab_size == b->vocab_size && a->max_model_len == b->max_model_len &&
           a->block_tokens == b->block_tokens && a->block_count == b->block_count && a->eos_count == b->eos_count &&
           memcmp(a->eos_ids, b->eos_ids, a->eos_count * sizeof *a->eos_ids) == 0;
}

qn_err_t scheduler_memory_up(scheduler_t *scheduler, const scheduler_model_t *model)
{
    if (model->block_count == 0) return qn_fail(QN_ERR_PEER, "memory has no KV blocks; raise memory.kv_bytes");
    bool known = same_model(model, &scheduler->model);
    if (known && scheduler->memory_is_up) return QN_OK;
    scheduler_memory_lost(scheduler);
    suspects_drop(scheduler->suspects, SUSPECTS_MEMORY);
    uint64_t pool_tokens = (uint64_t)model->block_count * model->block_tokens;
    uint32_t most = pool_tokens < UINT32_MAX ? (uint32_t)pool_tokens : UINT32_MAX;
    qn_err_t err = known ? QN_OK
                         : batch_configure(scheduler->batch, model->block_tokens, model->block_count,
                                           model->max_model_len, model->vocab_size);
    if (err < 0) return err;
    scheduler->model = *model;
    scheduler->limits = (admission_model_t){.model = scheduler->model.name,
                                            .vocab_size = model->vocab_size,
                                            .max_model_len = model->max_model_len,
                                            .pool_tokens = most,
                                            .probes = model->probes};
    planner_set_eos(scheduler->planner, model->eos_ids, model->eos_count);
    scheduler->memory_is_up = true;
    if (known) return QN_OK;
    memset(scheduler->checked, 0, ledger_requests_max(scheduler->ledger) * sizeof *scheduler->checked);
    scheduler->unchecked_count = ledger_count(scheduler->ledger);
    return QN_OK;
}

void scheduler_memory_lost(scheduler_t *scheduler)
{
    if (scheduler->memory_is_up) suspects_accuse(scheduler->suspects, SUSPECTS_MEMORY);
    scheduler->memory_is_up = false;
    suspects_leave_steps(scheduler->suspects);
    batch_memory_lost(scheduler->batch);
    planner_memory_lost(scheduler->planner);
}

void scheduler_compute_up(scheduler_t *scheduler)
{
    batch_compute_lost(scheduler->batch);
    suspects_drop(scheduler->suspects, SUSPECTS_COMPUTE);
    scheduler->compute_is_up = true;
}

bool scheduler_kernels_changed(scheduler_t *scheduler, uint64_t kernel_set)
{
    if (kernel_set == scheduler->kernel_set) return false;
    scheduler->kernel_set = kernel_set;
    bool somebody = scheduler->batch->running_count + scheduler->batch->leasing_count > 0;
    batch_give_back(scheduler->batch, false);
    return somebody;
}

uint64_t scheduler_kernel_set(const scheduler_t *scheduler) { return scheduler->kernel_set; }

void scheduler_compute_lost(scheduler_t *scheduler)
{
    suspects_accuse(scheduler->suspects, SUSPECTS_COMPUTE);
    suspects_leave_steps(scheduler->suspects);
    batch_compute_lost(scheduler->batch);
    scheduler->compute_is_up = false;
}

void scheduler_renew(scheduler_t *scheduler)
{
    suspects_leave_steps(scheduler->suspects);
    batch_compute_lost(scheduler->batch);
    progress_watch(&scheduler->progress, 0, 0, 0);
}

uint32_t scheduler_session(const scheduler_t *scheduler) { return scheduler->batch->session; }

void scheduler_watch_oldest(scheduler_t *scheduler, uint64_t now_ns)
{
    const batch_t *batch = scheduler->batch;
    const batch_step_t *oldest = &batch->steps[0];
    if (batch->step_count > 0)
        progress_watch(&scheduler->progress, oldest->step, oldest->token_count, now_ns);
    else
        progress_watch(&scheduler->progress, 0, 0, now_ns);
}

progress_verdict_t scheduler_progress(scheduler_t *scheduler, uint64_t now_ns, const progress_t **ret_progress,
                                      uint64_t *ret_again_ns)
{
    scheduler_watch_oldest(scheduler, now_ns);
    *ret_progress = &scheduler->progress;
    return progress_look(&scheduler->progress, now_ns, ret_again_ns);
}

const progress_t *scheduler_progress_shown(const scheduler_t *scheduler) { return &scheduler->progress; }

void scheduler_step_status(scheduler_t *scheduler, uint32_t session, uint64_t step, bool held, uint64_t now_ns)
{
    if (session == scheduler->batch->session) progress_answer(&scheduler->progress, step, held, now_ns);
}

bool scheduler_running(const scheduler_t *scheduler) { return scheduler->memory_is_up && scheduler->compute_is_up; }

static void misfit_grant(scheduler_t *scheduler, uint64_t id)
{
    const request_t *request = ledger_find(scheduler->ledger, id);
    suspects_drop(scheduler->suspects, SUSPECTS_MEMORY);
    suspects_accuse_one(scheduler->suspects, SUSPECTS_MEMORY, request->index);
    scheduler_peer_crashed(scheduler, SUSPECTS_MEMORY);
}

uint32_t scheduler_grant(scheduler_t *scheduler, const batch_grant_t *grants, uint32_t count, uint32_t available_blocks)
{
    uint32_t misfits = 0;
    if (!scheduler->memory_is_up) return 0;
    suspects_heard(scheduler->suspects, SUSPECTS_MEMORY);
    batch_available(scheduler->batch, available_blocks);
    for (uint32_t i = 0; i < count; i++) {
        if (batch_grant(scheduler->batch, &grants[i]) == QN_OK) continue;
        misfit_grant(scheduler, grants[i].sequence);
        misfits++;
    }
    return misfits;
}

void scheduler_prefix_hits(scheduler_t *scheduler, uint64_t lookup_batch, const plan_prefix_hit_t *hits, uint32_t count)
{
    if (scheduler->memory_is_up) planner_prefix_hits(scheduler->planner, lookup_batch, hits, count);
}

qn_err_t scheduler_result(scheduler_t *scheduler, const batch_result_t *result, uint64_t now_ns,
                          const batch_step_t **ret_step)
{
    batch_t *batch = scheduler->batch;
    batch_result_t taken = *result;
    taken.taken_ns = now_ns;
    qn_err_t err = batch_result(batch, &taken);
    *ret_step = &batch->last;
    if (err < 0) return err;
    if (batch->last.step != 0) suspects_heard(scheduler->suspects, SUSPECTS_COMPUTE);
    if (batch->last.step != 0) {
        progress_result(&scheduler->progress, now_ns);
        planner_step_took(scheduler->planner, batch->last.token_count, result->end_ns - result->begin_ns);
    }
    scheduler_watch_oldest(scheduler, now_ns);
    scheduler->masked_runs += batch->masked_count;
    for (uint32_t i = 0; i < batch->changed_count; i++)
        scheduler_note(scheduler, ledger_at(scheduler->ledger, batch->changed[i]));
    return QN_OK;
}
