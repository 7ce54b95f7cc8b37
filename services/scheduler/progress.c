/* What is this?      The clock of the oldest step: how long it may take, and what is due when it takes longer.
 * State owned:       durations of recent steps by size, the step that is watched.
 * Must never:        read a clock, send, or take a long step for a lost one: compute is asked first.
 * Read next:         scheduler.c (who embeds it), service.c (who asks). */
#include "services/scheduler/progress.h"

static unsigned class_of(uint32_t tokens)
{
    unsigned class = 0;
    while (tokens > 1 && class < PROGRESS_CLASSES - 1) {
        tokens /= 2;
        class ++;
    }
    return class;
}

static uint64_t slowest_ns(const progress_t *progress, unsigned class)
{
    uint64_t slowest = 0;
    for (unsigned i = 0; i < PROGRESS_RECENT; i++)
        if (progress->recent_ns[class][i] > slowest) slowest = progress->recent_ns[class][i];
    return slowest;
}

/* What a size that was not seen may take, from the next smaller one that was. */
static uint64_t first_bound_ns(const progress_t *progress, unsigned class)
{
    for (unsigned smaller = class; smaller-- > 0;) {
        uint64_t slowest = slowest_ns(progress, smaller);
        if (slowest == 0) continue;
        double bound = (double)slowest * PROGRESS_FACTOR * (double)(1u << (class - smaller));
        return bound < (double)PROGRESS_FIRST_NS ? (uint64_t)bound : PROGRESS_FIRST_NS;
    }
    return PROGRESS_FIRST_NS;
}

uint64_t progress_bound_ns(const progress_t *progress, uint32_t tokens)
{
    unsigned class = class_of(tokens);
    uint64_t slowest = slowest_ns(progress, class);
    uint64_t bound = slowest > 0 ? slowest * PROGRESS_FACTOR : first_bound_ns(progress, class);
    return bound > PROGRESS_LEAST_NS ? bound : PROGRESS_LEAST_NS;
}

void progress_watch(progress_t *progress, uint64_t step, uint32_t tokens, uint64_t now_ns)
{
    if (step == progress->step) return;
    progress->step = step;
    progress->tokens = tokens;
    progress->since_ns = now_ns;
    progress->due_ns = now_ns + (progress_bound_ns(progress, tokens) << progress->renewals);
    progress->asked = progress->overdue = progress->lost = false;
}

void progress_result(progress_t *progress, uint64_t now_ns)
{
    progress->renewals = 0;
    if (progress->step == 0) return;
    unsigned class = class_of(progress->tokens);
    uint64_t took_ns = now_ns > progress->since_ns ? now_ns - progress->since_ns : 1;
    progress->recent_ns[class][progress->next[class]++ % PROGRESS_RECENT] = took_ns;
}

void progress_answer(progress_t *progress, uint64_t step, bool held, uint64_t now_ns)
{
    if (!progress->asked || step != progress->step) return;
    uint64_t took_ns = now_ns - progress->since_ns;
    progress->asked = false;
    progress->lost = !held;
    progress->due_ns = held ? now_ns + took_ns : now_ns; /* asked at twice the time each time */
}

progress_verdict_t progress_look(progress_t *progress, uint64_t now_ns, uint64_t *ret_again_ns)
{
    *ret_again_ns = progress->step == 0 ? UINT64_MAX : progress->due_ns;
    if (progress->step == 0 || now_ns < progress->due_ns) return PROGRESS_FINE;
    if (progress->asked || progress->lost) {
        *ret_again_ns = UINT64_MAX; /* the new session's first step is watched then */
        if (progress->renewals < PROGRESS_RENEWALS_MAX) progress->renewals++;
        return PROGRESS_RENEW;
    }
    progress->asked = progress->overdue = true;
    *ret_again_ns = progress->due_ns = now_ns + PROGRESS_ANSWER_NS;
    return PROGRESS_ASK;
}
