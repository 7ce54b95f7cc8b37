/* What is this?      Where the time of a step goes on a device that works behind the launches: marks between the parts of
 *                    every EXECUTOR_SAMPLE_EVERY-th step, while somebody wants to know.
 * State owned:       executor_t.stamps; its marks are made when they are first wanted.
 * Must never:        touch a step that is not sampled; be part of a recorded one.
 * Read next:         executor.h (executor_sample), forward.c (who marks), services/compute/methods_latency.c (who asks).
 *
 * A sampled step is launched kernel by kernel where others replay a graph. It computes the same bits and takes longer. */
#include "services/compute/executor/executor_internal.h"

void executor_sample(executor_t *executor, bool wanted)
{
    atomic_store_explicit(&executor->stamps.wanted, wanted, memory_order_relaxed);
}

/* `sum` gets the time since the stamp before this one; NULL: nobody does. */
static void stamp(void *context, uint64_t *sum)
{
    executor_t *self = context;
    stamps_t *stamps = &self->stamps;
    if (stamps->count == EXECUTOR_STAMPS_MAX) stamps->ticket = NULL; /* more parts than any model has: not sampled */
    if (!stamps->ticket) return;
    backend_mark_t **mark = &stamps->marks[stamps->count];
    if (!*mark && self->backend->mark_create(mark) != QN_OK) {
        stamps->ticket = NULL;
        return;
    }
    self->backend->mark_set(self->forward.stream, *mark);
    stamps->sums[stamps->count++] = sum;
}

void executor_begin_stamps(executor_t *self, ticket_t *ticket)
{
    stamps_t *stamps = &self->stamps;
    if (self->backend->synchronous || self->submitted % EXECUTOR_SAMPLE_EVERY || stamps->ticket ||
        !atomic_load_explicit(&stamps->wanted, memory_order_relaxed))
        return;
    stamps->ticket = ticket;
    stamps->count = 0;
    self->forward.mark = stamp;
    self->forward.mark_context = self;
}

void executor_end_stamps(executor_t *self)
{
    self->forward.mark = NULL;
    self->forward.mark_context = NULL;
}

void executor_read_stamps(executor_t *self, const ticket_t *ticket)
{
    stamps_t *stamps = &self->stamps;
    if (stamps->ticket != ticket) return;
    for (uint32_t i = 1; i < stamps->count; i++)
        if (stamps->sums[i]) *stamps->sums[i] += self->backend->mark_elapsed_ns(stamps->marks[i - 1], stamps->marks[i]);
    ticket->result->times.sampled = stamps->count > 0;
    stamps->ticket = NULL;
}

void executor_destroy_stamps(executor_t *self)
{
    for (uint32_t i = 0; i < EXECUTOR_STAMPS_MAX; i++)
        if (self->stamps.marks[i]) self->backend->mark_destroy(&self->stamps.marks[i]);
}
