/* What is this?      The method scheduler.schedule: simulations that run a few steps per turn of the loop.
 * State owned:       the simulations under way, in the service's state.
 * Must never:        hold the loop up: SCHEDULES_STEPS steps per turn, SCHEDULES_MAX simulations.
 * Read next:         simulation/simulation.h, schemas/scheduler/scheduler_schedule.fbs. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/name_hash.h"
#include "services/scheduler/methods.h"
#include "services/scheduler/simulation/simulation.h"

#define STEPS_PER_TURN 32u    /* about 0.1 ms */
#define TOKENS_MAX (1u << 20) /* that all requests generate: some seconds at most */

/* One under way. */
struct schedule {
    qn_call_t call;
    simulation_t *simulation;
    char policy[QN_POLICY_NAME_MAX], batching[QN_POLICY_NAME_MAX];
    uint32_t count, max_batch_size, token_budget;
    double step_us, token_us;
    char (*users)[QN_POLICY_USER_MAX]; /* [count] */
};

/* ---- a request becomes a simulation ---- */

static void copy_choice(char ret_choice[QN_POLICY_NAME_MAX], qn_text_t asked, const qn_policy_seat_t *seat)
{
    if (asked.bytes > 0)
        snprintf(ret_choice, QN_POLICY_NAME_MAX, "%.*s", (int)asked.bytes, asked.data);
    else
        snprintf(ret_choice, QN_POLICY_NAME_MAX, "%s", qn_policy_object_choice(qn_policy_seat_live(seat)));
}

static simulation_options_t read_options(scheduler_service_t *service, const qn_scheduler_schedule_t *asked,
                                         schedule_t *schedule)
{
    const scheduler_options_t *live = scheduler_options(service->scheduler);
    const batch_t *batch = scheduler_batch(service->scheduler);
    const policies_t *policies = scheduler_policies(service->scheduler);
    double step_us, token_us;
    scheduler_step_model(service, &step_us, &token_us);
    bool given = asked->step_us > 0 || asked->token_us > 0;
    copy_choice(schedule->policy, asked->policy, policies->scheduling);
    copy_choice(schedule->batching, asked->batching, policies->batching);
    schedule->step_us = given ? (double)asked->step_us : step_us;
    schedule->token_us = given ? (double)asked->token_us : token_us;
    schedule->max_batch_size = asked->max_batch_size > 0 ? asked->max_batch_size : live->max_sequences;
    if (schedule->max_batch_size > QN_SCHEDULED_STEP_SEQUENCES_MAX)
        schedule->max_batch_size = QN_SCHEDULED_STEP_SEQUENCES_MAX;
    schedule->token_budget = asked->token_budget > 0 ? asked->token_budget : live->planner.max_step_tokens;
    return (simulation_options_t){
        .policy = schedule->policy,
        .batching = schedule->batching,
        .policy_dirs = service->policy_dirs,
        .max_sequences = schedule->max_batch_size,
        .max_step_tokens = schedule->token_budget,
        .prefill_chunk_tokens = asked->chunk_tokens > 0 ? asked->chunk_tokens : live->planner.prefill_chunk_tokens,
        .queue_limit = QN_SCHEDULER_SCHEDULE_REQUESTS_MAX,
        .block_tokens = batch->block_tokens,
        .block_count = asked->blocks > 0 ? asked->blocks : batch->total_blocks,
        .step_ns = (uint64_t)(schedule->step_us * 1e3),
        .token_ns = (uint64_t)(schedule->token_us * 1e3),
        .steps_kept = asked->steps,
    };
}

/* NULL: out of memory. Returns owned. */
static simulation_request_t *read_requests(const qn_scheduler_schedule_t *asked, schedule_t *schedule)
{
    simulation_request_t *requests = calloc(asked->requests_count + 1, sizeof *requests);
    schedule->users = calloc(asked->requests_count + 1, sizeof *schedule->users);
    schedule->count = asked->requests_count;
    for (uint32_t i = 0; requests != NULL && schedule->users != NULL && i < asked->requests_count; i++) {
        const qn_simulated_request_t *one = &asked->requests[i];
        if (one->user.bytes > 0)
            snprintf(schedule->users[i], sizeof schedule->users[i], "%.*s", (int)one->user.bytes, one->user.data);
        requests[i] = (simulation_request_t){
            .arrival_ns = (uint64_t)((double)one->arrival_ms * 1e6),
            .deadline_ns = one->deadline_ms * 1000000ull,
            .user = qn_name_hash(one->user),
            .user_name = schedule->users[i],
            .priority = one->priority,
            .prompt_tokens = one->prompt_tokens,
            .max_tokens = one->max_tokens,
            .prefix_tokens = one->prefix_tokens,
        };
    }
    return schedule->users != NULL ? requests : (free(requests), NULL);
}

static void free_schedule(schedule_t *schedule)
{
    simulation_destroy(&schedule->simulation);
    free(schedule->users);
    free(schedule);
}

qn_call_outcome_t scheduler_method_schedule(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    scheduler_service_t *service = state;
    const qn_scheduler_schedule_t *asked = message;
    (void)ret_reply;
    if (scheduler_batch(service->scheduler)->total_blocks == 0)
        return qn_call_fail(call, 503, NULL, "memory has not said yet how many blocks there are; try again");
    uint64_t tokens = 0;
    for (uint32_t i = 0; i < asked->requests_count; i++)
        tokens += asked->requests[i].max_tokens;
    if (tokens > TOKENS_MAX)
        return qn_call_fail(call, 400, "requests",
                            "requests: they generate %llu tokens, %u are simulated here; quintet policy "
                            "replay takes more",
                            (unsigned long long)tokens, TOKENS_MAX);
    if (service->schedule_count == SCHEDULES_MAX)
        return qn_call_fail(call, 503, NULL, "%d simulations are under way; try again when one has ended",
                            SCHEDULES_MAX);
    schedule_t *schedule = calloc(1, sizeof *schedule);
    if (schedule == NULL) return qn_call_fail(call, 503, NULL, "no memory for a simulation");
    schedule->call = *call;
    simulation_options_t options = read_options(service, asked, schedule);
    simulation_request_t *requests = read_requests(asked, schedule);
    qn_err_t err = requests != NULL ? simulation_create(&options, requests, schedule->count, &schedule->simulation)
                                    : qn_fail(QN_ERR_NO_MEMORY, "no memory for the requests of a simulation");
    free(requests);
    if (err < 0) {
        const char *param = err == QN_ERR_INVALID                        ? "requests"
                            : strncmp(qn_err_text(), "batching", 8) == 0 ? "batching"
                            : strstr(qn_err_text(), "max_step_tokens")   ? "token_budget"
                                                                         : "policy";
        free_schedule(schedule);
        return err == QN_ERR_NO_MEMORY ? qn_call_fail(call, 503, NULL, "%s", qn_err_text())
                                       : qn_call_fail(call, 400, param, "%s", qn_err_text());
    }
    service->schedules[service->schedule_count++] = schedule;
    return QN_CALL_LATER;
}

/* ---- an ended simulation becomes a reply ---- */

static float ms_of(uint64_t ns) { return (float)((double)ns / 1e6); }

static const qn_schedule_spread_t *show_spread(qn_arena_t *arena, const simulation_spread_t *spread)
{
    qn_schedule_spread_t *shown = qn_arena_zalloc(arena, 1, sizeof *shown);
    *shown = (qn_schedule_spread_t){.mean = (float)spread->mean, .p50 = (float)spread->p50, .p99 = (float)spread->p99};
    return shown;
}

static const qn_schedule_metrics_t *show_metrics(qn_arena_t *arena, const simulation_summary_t *summary)
{
    qn_schedule_metrics_t *shown = qn_arena_zalloc(arena, 1, sizeof *shown);
    *shown = (qn_schedule_metrics_t){
        .requests = summary->requests,
        .refused = summary->refused,
        .late = summary->late,
        .steps = summary->steps,
        .tokens = summary->tokens,
        .generated_tokens = summary->generated_tokens,
        .preemptions = summary->preemptions,
        .total_ms = (float)summary->total_ms,
        .tokens_per_s = (float)summary->tokens_per_s,
        .queue_ms = show_spread(arena, &summary->queue),
        .ttft_ms = show_spread(arena, &summary->ttft),
        .latency_ms = show_spread(arena, &summary->latency),
    };
    return shown;
}

static void show_step(qn_arena_t *arena, const simulation_t *simulation, const simulation_step_t *step,
                      qn_scheduled_step_t *ret_shown)
{
    qn_scheduled_sequence_t *sequences = qn_arena_zalloc(arena, step->run_count, sizeof *sequences);
    qn_text_t *reasons = qn_arena_zalloc(arena, step->reason_count, sizeof *reasons);
    for (uint32_t i = 0; i < step->run_count; i++) {
        const simulation_run_t *run = &simulation_runs(simulation)[step->first_run + i];
        sequences[i] =
            (qn_scheduled_sequence_t){.id = run->request,
                                      .tokens = run->tokens,
                                      .phase = run->prefill ? QN_SCHEDULE_PHASE_PREFILL : QN_SCHEDULE_PHASE_DECODE};
    }
    for (uint32_t i = 0; i < step->reason_count; i++)
        reasons[i] = qn_text(simulation_reasons(simulation)[step->first_reason + i]);
    *ret_shown = (qn_scheduled_step_t){.step = step->step,
                                       .begin_ms = ms_of(step->begin_ns),
                                       .ms = ms_of(step->end_ns - step->begin_ns),
                                       .tokens = step->tokens,
                                       .sequences = sequences,
                                       .sequences_count = step->run_count,
                                       .reasons = reasons,
                                       .reasons_count = step->reason_count};
}

static void show_request(const schedule_t *schedule, const simulation_request_t *asked, uint32_t at,
                         qn_scheduled_request_t *ret_shown)
{
    const simulation_outcome_t *outcome = simulation_outcome(schedule->simulation, at);
    uint64_t arrival_ns = asked->arrival_ns;
    *ret_shown = (qn_scheduled_request_t){
        .id = at,
        .queue_ms = outcome->first_run_ns > 0 ? ms_of(outcome->first_run_ns - 1 - arrival_ns) : 0,
        .ttft_ms = outcome->first_token_ns > 0 ? ms_of(outcome->first_token_ns - arrival_ns) : 0,
        .latency_ms = outcome->end_ns > 0 ? ms_of(outcome->end_ns - arrival_ns) : 0,
        .preemptions = outcome->preemptions,
        .refused = outcome->refused,
        .reason = qn_text(outcome->reason),
    };
}

static void finish(scheduler_service_t *service, schedule_t *schedule)
{
    qn_arena_reset(&service->arena);
    qn_arena_t *arena = &service->arena;
    const simulation_t *simulation = schedule->simulation;
    simulation_summary_t summary;
    uint32_t step_count;
    const simulation_step_t *steps = simulation_steps(simulation, &step_count);
    simulation_summary(simulation, &summary);
    qn_scheduled_step_t *shown_steps = qn_arena_zalloc(arena, step_count, sizeof *shown_steps);
    qn_scheduled_request_t *shown = qn_arena_zalloc(arena, schedule->count, sizeof *shown);
    qn_text_t *reasons = qn_arena_zalloc(arena, schedule->count, sizeof *reasons);
    for (uint32_t i = 0; i < step_count; i++)
        show_step(arena, simulation, &steps[i], &shown_steps[i]);
    for (uint32_t i = 0; i < schedule->count; i++) {
        show_request(schedule, simulation_request(simulation, i), i, &shown[i]);
        reasons[i] = shown[i].reason;
    }
    qn_scheduler_schedule_reply_t reply = {
        .policy = qn_text(schedule->policy),
        .batching = qn_text(schedule->batching),
        .max_batch_size = schedule->max_batch_size,
        .token_budget = schedule->token_budget,
        .step_us = (float)schedule->step_us,
        .token_us = (float)schedule->token_us,
        .schedule = shown_steps,
        .schedule_count = step_count,
        .requests = shown,
        .requests_count = schedule->count,
        .metrics = show_metrics(arena, &summary),
        .withdrawn = summary.withdrawn[0] != '\0' ? qn_text(summary.withdrawn) : (qn_text_t){0},
        .algorithm_reasoning = reasons,
        .algorithm_reasoning_count = schedule->count,
    };
    qn_call_finish(&schedule->call, &reply);
}

bool scheduler_run_schedules(scheduler_service_t *service)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < service->schedule_count; i++) {
        schedule_t *schedule = service->schedules[i];
        if (!simulation_run(schedule->simulation, STEPS_PER_TURN)) {
            service->schedules[kept++] = schedule;
            continue;
        }
        finish(service, schedule);
        free_schedule(schedule);
    }
    service->schedule_count = kept;
    return kept > 0;
}

void scheduler_drop_schedules(scheduler_service_t *service)
{
    while (service->schedule_count > 0)
        free_schedule(service->schedules[--service->schedule_count]);
}
