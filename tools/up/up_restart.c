/* What is this?      The restart rule of `quintet up`.
 * State owned:       none; the counters are the caller's.
 * Must never:        read a clock or start anything.
 * Read next:         up.c, which obeys it. */
#include "tools/up/up_restart.h"

#include <sys/wait.h>
#include <sysexits.h>

#define STATUS_CANNOT_EXECUTE 126
#define STATUS_NO_PROGRAM 127

void up_restart_started(up_restart_t *restart, uint64_t now_ns)
{
    restart->started_ns = now_ns;
    restart->is_ready = false;
}

void up_restart_ready(up_restart_t *restart) { restart->was_ready = restart->is_ready = true; }

/* Exit statuses that say that the next try will end the same way. */
static bool is_mistake(int wait_status)
{
    if (!WIFEXITED(wait_status)) return false;
    switch (WEXITSTATUS(wait_status)) {
    case EX_USAGE:
    case EX_DATAERR:
    case EX_NOINPUT:
    case EX_UNAVAILABLE:
    case EX_NOPERM:
    case EX_CONFIG:
    case STATUS_CANNOT_EXECUTE:
    case STATUS_NO_PROGRAM: return true;
    default: return false;
    }
}

static uint64_t delay_ns(unsigned deaths)
{
    if (deaths <= 1) return 0;
    uint64_t delay = UP_RESTART_FIRST_NS;
    for (unsigned i = 2; i < deaths && delay < UP_RESTART_LONGEST_NS; i++)
        delay *= 2;
    return delay < UP_RESTART_LONGEST_NS ? delay : UP_RESTART_LONGEST_NS;
}

up_verdict_t up_restart_died(up_restart_t *restart, int wait_status, uint64_t now_ns, uint64_t *ret_at_ns)
{
    if (restart->is_ready && now_ns - restart->started_ns >= UP_RESTART_HEALTHY_NS) restart->deaths = 0;
    if (restart->deaths < UINT32_MAX) restart->deaths++;
    if (!restart->was_ready && (is_mistake(wait_status) || restart->deaths >= UP_RESTART_TRIES_MAX)) {
        return UP_VERDICT_GIVE_UP;
    }
    *ret_at_ns = now_ns + delay_ns(restart->deaths);
    return UP_VERDICT_RESTART;
}

int up_restart_exit_status(int wait_status)
{
    if (WIFEXITED(wait_status) && WEXITSTATUS(wait_status) != 0) return WEXITSTATUS(wait_status);
    return EX_SOFTWARE;
}
