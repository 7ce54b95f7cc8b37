/* What is this?      Rings of runs, steps and ended requests, for who asks what became of one.
 * State owned:       the rings.
 * Must never:        be read by a decision; grow.
 * Read next:         history.h, methods_history.c (who asks), outgoing.c and handlers.c (who tells). */
#include "services/scheduler/history.h"

#include <stdlib.h>

struct history {
    history_run_t runs[HISTORY_RUNS];
    history_step_t steps[HISTORY_STEPS];
    history_life_t ended[HISTORY_LIVES];
    uint64_t run_count, ended_count; /* so far */
    uint32_t requests_max;
    history_life_t live[]; /* [requests_max], by ledger index */
};

qn_err_t history_create(uint32_t requests_max, history_t **ret_history)
{
    history_t *history = calloc(1, sizeof *history + requests_max * sizeof *history->live);
    if (!history) return qn_fail(QN_ERR_NO_MEMORY, "no memory for the history of requests");
    history->requests_max = requests_max;
    *ret_history = history;
    return QN_OK;
}

void history_destroy(history_t **history)
{
    free(*history);
    *history = NULL;
}

/* ---- what happens ---- */

static void note_run(history_t *history, const batch_t *batch, const batch_step_t *step, const batch_run_t *run)
{
    const sequence_t *sequence = &batch->sequences[run->index];
    history_life_t *life = &history->live[run->index];
    uint64_t request = sequence->request->id;
    if (life->request != request) *life = (history_life_t){.request = request, .first_step = step->step};
    life->last_step = step->step;
    life->steps++;
    if (sequence->block_count > life->blocks_most) life->blocks_most = sequence->block_count;
    history->runs[history->run_count++ % HISTORY_RUNS] =
        (history_run_t){.request = request, .step = step->step, .position = run->position, .tokens = run->token_count};
}

void history_plan(history_t *history, const batch_t *batch, const batch_step_t *step)
{
    history->steps[step->step % HISTORY_STEPS] = (history_step_t){.step = step->step,
                                                                  .sent_ns = step->sent_ns,
                                                                  .sequences = step->run_count,
                                                                  .tokens = step->token_count};
    for (uint32_t i = 0; i < step->run_count; i++)
        note_run(history, batch, step, &step->runs[i]);
}

void history_result(history_t *history, uint64_t step, uint64_t begin_ns, uint64_t end_ns, uint64_t now_ns)
{
    history_step_t *known = &history->steps[step % HISTORY_STEPS];
    if (known->step != step) return;
    known->begin_ns = begin_ns;
    known->end_ns = end_ns;
    known->result_ns = now_ns;
}

void history_end(history_t *history, const request_t *request, uint64_t now_ns)
{
    const history_life_t *told = history_ended(history, request->id);
    if (told && told->arrival == request->arrival) return; /* its end was lost and is sent again */
    history_life_t *live = &history->live[request->index];
    history_life_t life = live->request == request->id ? *live : (history_life_t){.request = request->id};
    life.ended_ns = now_ns;
    life.timeline = request->timeline;
    life.priority = request->priority;
    life.arrival = request->arrival;
    life.prompt_tokens = request->prompt_tokens;
    life.cached_tokens = request->cached_tokens;
    life.generated_tokens = request->generated_tokens;
    life.generated_max = request->generated_max;
    life.preemptions = request->preemptions;
    life.crashes = request->crashes;
    life.finish = request->finish;
    history->ended[history->ended_count++ % HISTORY_LIVES] = life;
    *live = (history_life_t){0};
}

/* ---- questions ---- */

const history_life_t *history_live(const history_t *history, uint32_t index, uint64_t request)
{
    return history->live[index].request == request ? &history->live[index] : NULL;
}

const history_life_t *history_ended(const history_t *history, uint64_t request)
{
    uint64_t kept = history->ended_count < HISTORY_LIVES ? history->ended_count : HISTORY_LIVES;
    for (uint64_t i = 1; i <= kept; i++) { /* newest first: an id may have been used twice */
        const history_life_t *life = &history->ended[(history->ended_count - i) % HISTORY_LIVES];
        if (life->request == request) return life;
    }
    return NULL;
}

uint32_t history_runs(const history_t *history, uint64_t request, uint32_t room, history_run_t *ret_runs)
{
    uint64_t kept = history->run_count < HISTORY_RUNS ? history->run_count : HISTORY_RUNS;
    uint32_t count = 0;
    for (uint64_t i = 1; i <= kept && count < room; i++) {
        const history_run_t *run = &history->runs[(history->run_count - i) % HISTORY_RUNS];
        if (request == 0 || run->request == request) ret_runs[count++] = *run;
    }
    for (uint32_t i = 0; i < count / 2; i++) {
        history_run_t other = ret_runs[i];
        ret_runs[i] = ret_runs[count - 1 - i];
        ret_runs[count - 1 - i] = other;
    }
    return count;
}

const history_step_t *history_step(const history_t *history, uint64_t step)
{
    const history_step_t *known = &history->steps[step % HISTORY_STEPS];
    return step && known->step == step ? known : NULL;
}
