/* What is this?      Log-probabilities of the prompt's own tokens.
 * State owned:       slot_owner_t.pending, prompt_rows.
 * Must never:        cost a step anything that has no such request.
 * Read next:         executor.c.
 *
 * The logits at position p speak of the id at p + 1. Inside a chunk that id is at hand; for a chunk's last token it
 * comes with the next chunk, so its residual row is kept in `pending` until then. */
#include "services/compute/executor/executor_internal.h"

/* Lists the prompt tokens whose logits are known now. `from_pending` chooses between the two sources of rows. */
static uint32_t list_rows(executor_t *self, const step_plan_t *plan, bool from_pending)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < plan->run_count; i++) {
        const step_run_t *run = &plan->runs[i];
        const slot_owner_t *sequence = &self->owners[run->slot];
        if (!sequence->prompt_logprobs || run->from_slot) continue;
        const uint32_t *ids = plan->ids + run->ids_offset;
        if (from_pending) {
            if (sequence->pending && run->position < sequence->prompt_tokens)
                self->prompt_rows[count++] = (prompt_row_t){i, run->slot, ids[0], run->position};
            continue;
        }
        for (uint32_t t = 1; t < run->tokens && run->position + t < sequence->prompt_tokens; t++)
            self->prompt_rows[count++] =
                (prompt_row_t){i, self->host->runs[i].first + t - 1, ids[t], run->position + t};
    }
    return count;
}

/* Computes `count` listed rows, R at a time, and lists them in the result; their log-probabilities and alternatives
 * come to the ticket, in this order. */
static void compute_rows(executor_t *self, const step_plan_t *plan, const void *source, uint32_t count,
                         const ticket_t *ticket)
{
    const scratch_in_t *host = self->host, *in = &self->scratch.in;
    const scratch_out_t *out = &ticket->out;
    step_result_t *result = ticket->result;
    for (uint32_t done = 0, rows; done < count; done += rows) {
        rows = step_smaller(count - done, self->scratch.logit_rows);
        uint32_t base = result->prompt_count;
        bool by_id = false;
        for (uint32_t i = 0; i < rows; i++) {
            const prompt_row_t *row = &self->prompt_rows[done + i];
            const slot_owner_t *sequence = &self->owners[plan->runs[row->run].slot];
            host->rows[i] = row->row;
            host->targets[i] = row->target;
            host->top_counts[i] = sequence->top_logprobs;
            host->slots[i] = plan->runs[row->run].slot;
            by_id = by_id || sequence->logprob_ids;
            result->prompt[result->prompt_count++] =
                (step_prompt_token_t){.request = sequence->request,
                                      .position = row->position,
                                      .id = row->target,
                                      .top_count = sequence->top_logprobs + sequence->logprob_ids};
        }
        UPLOAD(self, rows, host->rows, rows);
        UPLOAD(self, targets, host->targets, rows);
        UPLOAD(self, top_counts, host->top_counts, rows);
        if (by_id) UPLOAD(self, slots, host->slots, rows);
        forward_logits(&self->forward, source, in->rows, rows, &result->times);
        self->logits_rows = rows;
        executor_launch(self, QN_OP_LOGPROBS,
                        &(qn_logprobs_t){.logits = self->scratch.logits,
                                         .targets = in->targets,
                                         .top_counts = in->top_counts,
                                         .slots = by_id ? in->slots : NULL,
                                         .tables = self->scratch.tables,
                                         .rows = rows,
                                         .vocab = self->limits.vocab,
                                         .ret_logprobs = out->logprobs + base,
                                         .ret_top = out->prompt_top + (size_t)base * QN_ALTERNATIVES_MAX});
    }
}

/* The last row of a chunk that ends inside the prompt waits for its target. */
static void keep_pending(executor_t *self, const step_plan_t *plan)
{
    const scratch_t *s = &self->scratch;
    uint32_t width = self->forward.model->config.hidden;
    size_t row_bytes = (size_t)width * qn_scalar_bytes(self->limits.activations);
    for (uint32_t i = 0; i < plan->run_count; i++) {
        const step_run_t *run = &plan->runs[i];
        slot_owner_t *sequence = &self->owners[run->slot];
        if (!sequence->prompt_logprobs) continue;
        sequence->pending = run->position + run->tokens < sequence->prompt_tokens;
        if (!sequence->pending) continue;
        self->host->rows[0] = self->host->runs[i].first + run->tokens - 1;
        UPLOAD(self, rows, self->host->rows, 1);
        executor_launch(self, QN_OP_GATHER_ROWS,
                        &(qn_gather_rows_t){.x = s->x,
                                            .rows = s->in.rows,
                                            .row_count = 1,
                                            .width = width,
                                            .out = (char *)s->pending + run->slot * row_bytes});
    }
}

void executor_compute_prompts(executor_t *self, const step_plan_t *plan, ticket_t *ticket)
{
    compute_rows(self, plan, self->scratch.pending, list_rows(self, plan, true), ticket);
    compute_rows(self, plan, self->scratch.x, list_rows(self, plan, false), ticket);
    keep_pending(self, plan);
}

void executor_report_prompts(const ticket_t *ticket)
{
    step_result_t *result = ticket->result;
    for (uint32_t i = 0; i < result->prompt_count; i++) {
        result->prompt[i].logprob = ticket->out.logprobs[i];
        executor_add_top(result, ticket->out.prompt_top + (size_t)i * QN_ALTERNATIVES_MAX, result->prompt[i].top_count);
    }
}
