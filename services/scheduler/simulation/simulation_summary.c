/* What is this?      What a simulation comes to: order of arrivals before it, latencies after it.
 * State owned:       none.
 * Must never:        change a simulation that runs.
 * Read next:         simulation.c. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "services/scheduler/simulation/simulation_internal.h"

typedef struct {
    uint64_t arrival_ns;
    uint32_t place;
} arrival_t;

static int compare_arrivals(const void *a, const void *b)
{
    const arrival_t *left = a, *right = b;
    if (left->arrival_ns != right->arrival_ns) return left->arrival_ns < right->arrival_ns ? -1 : 1;
    return (left->place > right->place) - (left->place < right->place);
}

void simulation_sort(simulation_t *self)
{
    arrival_t *arrivals = calloc(self->count + 1, sizeof *arrivals);
    QN_ASSERT(arrivals != NULL);
    for (uint32_t i = 0; i < self->count; i++)
        arrivals[i] = (arrival_t){.arrival_ns = self->requests[i].arrival_ns, .place = i};
    qsort(arrivals, self->count, sizeof *arrivals, compare_arrivals);
    for (uint32_t i = 0; i < self->count; i++)
        self->order[i] = arrivals[i].place;
    free(arrivals);
}

static int compare_numbers(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

/* The nearest rank, as tools for load tests take percentiles. */
static double rank(const double *sorted, uint32_t count, double share)
{
    uint32_t at = (uint32_t)(share * count + 0.999999);
    return sorted[at > 0 ? at - 1 : 0];
}

static simulation_spread_t spread(double *numbers, uint32_t count)
{
    simulation_spread_t result = {0};
    if (count == 0) return result;
    qsort(numbers, count, sizeof *numbers, compare_numbers);
    for (uint32_t i = 0; i < count; i++)
        result.mean += numbers[i] / count;
    result.p50 = rank(numbers, count, 0.5);
    result.p99 = rank(numbers, count, 0.99);
    return result;
}

void simulation_summary(const simulation_t *self, simulation_summary_t *ret_summary)
{
    double *queue = calloc(3 * ((size_t)self->count + 1), sizeof *queue);
    QN_ASSERT(queue != NULL);
    double *ttft = queue + self->count + 1, *latency = ttft + self->count + 1;
    uint32_t served = 0;
    *ret_summary = (simulation_summary_t){.requests = self->count,
                                          .steps = self->all_steps,
                                          .tokens = self->all_tokens,
                                          .generated_tokens = self->generated,
                                          .total_ms = (double)self->now_ns / 1e6};
    for (uint32_t i = 0; i < self->count; i++) {
        const simulation_outcome_t *outcome = &self->outcomes[i];
        const simulation_request_t *request = &self->requests[i];
        ret_summary->refused += outcome->refused;
        ret_summary->preemptions += outcome->preemptions;
        if (outcome->end_ns == 0) continue;
        uint64_t deadline_ns = request->arrival_ns + request->deadline_ns;
        ret_summary->late += request->deadline_ns > 0 && outcome->end_ns > deadline_ns;
        queue[served] = (double)(outcome->first_run_ns - 1 - request->arrival_ns) / 1e6;
        ttft[served] = (double)(outcome->first_token_ns - request->arrival_ns) / 1e6;
        latency[served++] = (double)(outcome->end_ns - request->arrival_ns) / 1e6;
    }
    if (self->now_ns > 0) ret_summary->tokens_per_s = (double)self->generated / ((double)self->now_ns / 1e9);
    ret_summary->queue = spread(queue, served);
    ret_summary->ttft = spread(ttft, served);
    ret_summary->latency = spread(latency, served);
    snprintf(ret_summary->withdrawn, sizeof ret_summary->withdrawn, "%s", scheduler_policy_withdrawn(self->scheduler));
    free(queue);
}
