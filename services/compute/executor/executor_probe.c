/* What is this?      Steps with slots that have a probe: which runs go together in a pass, and what a pass has beside it.
 * State owned:       slot_owner_t.probe*, probed_slots.
 * Must never:        change anything of a run without a probe: it goes first, as if it were alone.
 * Read next:         executor.c (a pass), forward/forward_probe.c (what it does). */
#include "services/compute/executor/executor_internal.h"

#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "common/watch/log.h"
#include "kernels/cpu/cpu.h"

QN_MASK_RULE_KIND_SAME_VALUES(QN_MASK_);

/* ---- a slot's probe ---- */

void executor_start_probe(executor_t *self, const step_set_t *set)
{
    slot_owner_t *sequence = &self->owners[set->slot];
    sequence->probe_memory = qn_probe_copy(&set->probe, &sequence->probe);
    QN_ASSERT(sequence->probe_memory); /* a step without it would be another one */
    sequence->probe_group = qn_probe_group(&sequence->probe);
    self->probed_slots++;
}

void executor_end_probe(executor_t *self, uint32_t slot)
{
    slot_owner_t *sequence = &self->owners[slot];
    if (!sequence->probe_memory) return;
    free(sequence->probe_memory);
    sequence->probe_memory = NULL;
    self->probed_slots--;
}

/* ---- what a pass has ---- */

static void upload_masks(executor_t *self, const qn_probe_t *probe)
{
    for (uint32_t i = 0; i < probe->mask_count; i++) {
        const qn_mask_rule_t *from = &probe->masks[i];
        self->host->masks[i] = (qn_mask_t){.kind = (qn_mask_kind_t)from->kind,
                                           .k = from->k,
                                           .window = from->window,
                                           .sinks = from->sinks,
                                           .value = from->value,
                                           .layer_from = from->layer_from,
                                           .layer_to = from->layer_to ? from->layer_to : UINT32_MAX,
                                           .head_from = from->head_from,
                                           .head_to = from->head_to ? from->head_to : UINT32_MAX};
    }
    UPLOAD(self, masks, self->host->masks, probe->mask_count);
}

static void upload_values(executor_t *self, const qn_probe_t *probe)
{
    bool f32 = self->limits.activations == QN_SCALAR_F32;
    for (uint32_t i = 0; !f32 && i < probe->value_count; i++)
        ((uint16_t *)self->host->tap_values)[i] = qn_f32_to_bf16(probe->values[i]);
    executor_upload(self, self->scratch.in.tap_values, f32 ? (const void *)probe->values : self->host->tap_values,
                    probe->value_count, qn_scalar_bytes(self->limits.activations));
}

void executor_upload_probe(executor_t *self, const qn_probe_t *probe)
{
    upload_masks(self, probe);
    upload_values(self, probe);
}

void executor_pin_workspace(executor_t *self)
{
    if (self->workspace_pinned || !self->workspace || !self->backend->host_pin) return;
    self->workspace_pinned = true;
    if (self->backend->host_pin(qn_region_pointer(self->workspace), qn_region_bytes(self->workspace)) != QN_OK)
        qn_log_warning("the workspace cannot be pinned, so copies into it are slow: %s", qn_err_text());
}

/* Nothing is read into a workspace that the request does not mean, or after its time. */
static uint8_t *workspace_of(const executor_t *self, const qn_probe_t *probe)
{
    const qn_mapping_t *mapping = self->workspace;
    bool meant = mapping && qn_region_id(mapping) == probe->workspace &&
                 qn_region_epoch(mapping) == probe->workspace_epoch && self->now_ns() < probe->workspace_until_ns;
    return meant ? qn_region_pointer(mapping) : NULL;
}

/* Rows [first, first + count) of the pass, at most R. */
static void tap_output(executor_t *self, const qn_tap_point_t *tap, uint32_t first, uint32_t count)
{
    const scratch_t *s = &self->scratch;
    const qn_model_config_t *config = &self->forward.model->config;
    step_times_t unused = {0};
    bool logits = tap->site == QN_TAP_SITE_LOGITS;
    for (uint32_t i = 0; i < count; i++)
        self->host->rows[i] = first + i;
    UPLOAD(self, rows, self->host->rows, count);
    if (logits)
        forward_logits(&self->forward, s->x, s->in.rows, count, &unused);
    else
        forward_final_norm(&self->forward, s->in.rows, count);
    size_t row_bytes =
        logits ? config->vocab * sizeof(float) : (size_t)config->hidden * qn_scalar_bytes(self->limits.activations);
    forward_read_rows(&self->forward, tap, logits ? (const void *)s->logits : s->picked, row_bytes, first, count);
}

void executor_tap_outputs(executor_t *self)
{
    const forward_probe_t *pass = self->forward.probe;
    for (uint32_t i = 0; i < pass->probe->tap_count; i++) {
        const qn_tap_point_t *tap = &pass->probe->taps[i];
        bool output = tap->site == QN_TAP_SITE_LOGITS || tap->site == QN_TAP_SITE_NORM;
        uint32_t first, count;
        if (!output || !forward_tap_range(pass, tap, &first, &count)) continue;
        for (uint32_t done = 0, rows; done < count; done += rows) {
            rows = step_smaller(count - done, self->scratch.logit_rows);
            tap_output(self, tap, first + done, rows);
        }
    }
}

/* A pass of `plan`'s runs with their probe. */
static void run_probed(executor_t *self, const step_plan_t *plan, const qn_probe_t *probe, ticket_t *ticket)
{
    const scratch_t *s = &self->scratch;
    uint32_t counts = probe->mask_count ? plan->run_count : 0;
    executor_upload_probe(self, probe);
    memset(self->host->kv_read, 0, 2 * (size_t)counts * sizeof *self->host->kv_read);
    UPLOAD(self, kv_read, self->host->kv_read, 2 * (size_t)counts);
    forward_probe_t pass = {.probe = probe,
                            .backend = self->backend,
                            .masks = s->in.masks,
                            .values = s->in.tap_values,
                            .kv_read = counts ? s->in.kv_read : NULL,
                            .aside = s->aside,
                            .position = plan->runs[0].position,
                            .tokens = plan->runs[0].tokens,
                            .workspace = probe->tap_count ? workspace_of(self, probe) : NULL};
    if (pass.workspace) executor_pin_workspace(self);
    if (pass.workspace) pass.workspace_bytes = qn_region_bytes(self->workspace);
    self->forward.probe = &pass;
    executor_run_pass(self, plan, ticket);
    self->forward.probe = NULL;
    for (uint32_t i = 0; i < counts; i++)
        ticket->readers[ticket->reader_count + i] = self->owners[plan->runs[i].slot].request;
    if (counts)
        self->backend->download(self->forward.stream, ticket->out.kv_read + 2 * (size_t)ticket->reader_count,
                                s->in.kv_read, 2 * (size_t)counts * sizeof *s->in.kv_read);
    ticket->reader_count += counts;
}

/* ---- passes ---- */

static const slot_owner_t *probed(const executor_t *self, const step_run_t *run)
{
    const slot_owner_t *sequence = &self->owners[run->slot];
    return sequence->probe_memory ? sequence : NULL;
}

/* Moves run `first` and, of those after it, the ones that may share its pass into pass_runs; returns how many. */
static uint32_t gather(executor_t *self, const step_plan_t *plan, uint32_t first)
{
    const slot_owner_t *leader = probed(self, &plan->runs[first]);
    uint32_t count = 0;
    for (uint32_t i = first; i < plan->run_count; i++) {
        const slot_owner_t *other = probed(self, &plan->runs[i]);
        bool same =
            leader == other || (leader && other && leader->probe_group && leader->probe_group == other->probe_group);
        if (self->pass_done[i] || !same) continue;
        self->pass_done[i] = true;
        self->pass_runs[count++] = plan->runs[i];
    }
    return count;
}

void executor_run_passes(executor_t *self, const step_plan_t *plan, ticket_t *ticket)
{
    step_plan_t pass = *plan;
    uint32_t passes = 0;
    pass.runs = self->pass_runs;
    memset(self->pass_done, 0, plan->run_count * sizeof *self->pass_done);
    if (!plan->run_count) executor_run_pass(self, plan, ticket);
    for (int probes = 0; probes < 2; probes++)
        for (uint32_t i = 0; i < plan->run_count; i++) {
            const slot_owner_t *sequence = probed(self, &plan->runs[i]);
            if (self->pass_done[i] || (sequence != NULL) != probes) continue;
            /* The device reads a pass's arrays when it gets there: they are not written anew before. */
            if (passes++ && !self->backend->synchronous) self->backend->stream_wait(self->forward.stream);
            pass.run_count = gather(self, plan, i);
            if (sequence)
                run_probed(self, &pass, &sequence->probe, ticket);
            else
                executor_run_pass(self, &pass, ticket);
        }
}

void executor_report_reads(const ticket_t *ticket)
{
    step_result_t *result = ticket->result;
    for (uint32_t i = 0; i < ticket->reader_count; i++)
        result->reads[result->read_count++] = (step_read_t){.request = ticket->readers[i],
                                                            .read = ticket->out.kv_read[2 * (size_t)i],
                                                            .all = ticket->out.kv_read[2 * (size_t)i + 1]};
}
