/* What is this?      The built-in scheduling policy "fair": users take turns, each turn worth the same number of tokens.
 * State owned:       whose turn it is and what is left of it, in the state that the caller keeps.
 * Must never:        let a user wait for ever, whatever the others send.
 * Read next:         common/policy.h; "Efficient Fair Queueing Using Deficit Round Robin" (Shreedhar, Varghese 1995).
 *
 * Deficit round robin: the users who wait stand in a circle, in order of the hash of their names. Who has the turn is
 * given a quantum of tokens and is served, first come first served, while the next request's work fits what it has left;
 * then the turn goes on. The quantum is the work of the largest request that waits, so every turn serves at least one. */
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>

#include "services/scheduler/policy/policy.h"
#include "services/scheduler/policy/policy_order.h"

#define USERS_MAX 128u /* whose rest of a turn is kept; who waits beyond them begins each turn with nothing left */

typedef struct {
    uint64_t user;
    uint64_t deficit; /* tokens left of its last turn */
    uint32_t used, unused;
} fair_user_t;

typedef struct {
    uint64_t turn;   /* user who has it, or had it last */
    uint32_t within; /* its turn is not over: no new quantum */
    uint32_t unused;
    fair_user_t users[USERS_MAX];
} fair_state_t;

_Static_assert(sizeof(fair_state_t) <= QN_POLICY_STATE_MAX, "the state of fair has its bound");

/* ---- users ---- */

/* The row of a user who waits; NULL: all are taken. */
static fair_user_t *row_of(fair_state_t *state, uint64_t user)
{
    fair_user_t *unused = NULL;
    for (uint32_t i = 0; i < USERS_MAX; i++) {
        fair_user_t *row = &state->users[i];
        if (row->used && row->user == user) return row;
        if (!row->used && unused == NULL) unused = row;
    }
    if (unused != NULL) *unused = (fair_user_t){.user = user, .used = 1};
    return unused;
}

/* Who has nothing left to ask keeps nothing, as an empty queue does in deficit round robin. */
static void forget_absent(fair_state_t *state, const qn_policy_view_t *view)
{
    for (uint32_t i = 0; i < USERS_MAX; i++) {
        fair_user_t *row = &state->users[i];
        bool waits = false;
        for (uint32_t k = 0; row->used && k < view->sequence_count && !waits; k++)
            waits = view->sequences[k].user == row->user;
        if (!waits) row->used = 0;
    }
}

static bool is_named(const qn_policy_admit_t *admit, uint64_t id)
{
    for (uint32_t i = 0; i < admit->count; i++)
        if (admit->admissions[i].id == id) return true;
    return false;
}

/* The user's first request that is not admitted yet, or NULL. */
static const qn_policy_sequence_t *head_of(const qn_policy_view_t *view, const qn_policy_admit_t *admit, uint64_t user)
{
    for (uint32_t i = 0; i < view->sequence_count; i++)
        if (view->sequences[i].user == user && !is_named(admit, view->sequences[i].id)) return &view->sequences[i];
    return NULL;
}

/* The next user in the circle after `user` who has a request left; false: nobody has. */
static bool next_user(const qn_policy_view_t *view, const qn_policy_admit_t *admit, uint64_t user, uint64_t *ret_user)
{
    uint64_t best_distance = 0;
    bool found = false;
    for (uint32_t i = 0; i < view->sequence_count; i++) {
        uint64_t distance = view->sequences[i].user - user - 1; /* round the circle: wraps at 2^64 */
        if (is_named(admit, view->sequences[i].id) || (found && distance >= best_distance)) continue;
        best_distance = distance;
        *ret_user = view->sequences[i].user;
        found = true;
    }
    return found;
}

/* ---- decisions ---- */

static void serve(qn_policy_admit_t *admit, const qn_policy_sequence_t *one, uint64_t left)
{
    qn_policy_admission_t *admission = &admit->admissions[admit->count++];
    admission->id = one->id;
    snprintf(admission->reason, sizeof admission->reason,
             "fair: admit %" PRIu64 " of %s%.40s, %" PRIu64 " tokens of work, %" PRIu64 " left of the turn", one->id,
             one->user_name[0] != '\0' ? "user " : "no user", one->user_name, policy_work_left(one), left);
}

static void fair_admit(const qn_policy_memory_t *memory, const qn_policy_view_t *view, uint32_t admissions_max,
                       qn_policy_admit_t *ret_admit)
{
    fair_state_t *state = memory->state;
    uint64_t quantum = 1;
    for (uint32_t i = 0; i < view->sequence_count; i++)
        if (policy_work_left(&view->sequences[i]) > quantum) quantum = policy_work_left(&view->sequences[i]);
    forget_absent(state, view);
    while (ret_admit->count < admissions_max) {
        const qn_policy_sequence_t *one = state->within ? head_of(view, ret_admit, state->turn) : NULL;
        uint64_t none_kept = quantum;
        fair_user_t *row = one != NULL ? row_of(state, state->turn) : NULL;
        uint64_t *deficit = row != NULL ? &row->deficit : &none_kept;
        if (one != NULL && policy_work_left(one) <= *deficit) {
            *deficit -= policy_work_left(one);
            serve(ret_admit, one, *deficit);
            if (row == NULL) state->within = 0;
            continue;
        }
        state->within = 0;
        if (!next_user(view, ret_admit, state->turn, &state->turn)) break;
        state->within = 1;
        if ((row = row_of(state, state->turn)) != NULL) row->deficit += quantum;
    }
    memory->metrics[0] = 0;
    for (uint32_t i = 0; i < USERS_MAX; i++)
        memory->metrics[0] += state->users[i].used;
}

/* The step's prompt tokens: each user's first prompt an equal part, what they leave to who came first. */
static void fair_share(const qn_policy_memory_t *memory, const qn_policy_view_t *view, uint32_t budget_tokens,
                       uint32_t chunk_tokens, uint32_t parts_max, int must_progress, qn_policy_share_t *ret_share)
{
    (void)memory, (void)must_progress; /* the whole budget is dealt as far as chunks allow */
    uint32_t users = 0, left = budget_tokens,
             count = view->sequence_count < parts_max ? view->sequence_count : parts_max;
    for (uint32_t i = 0; i < count; i++) {
        bool first = true;
        for (uint32_t k = 0; k < i && first; k++)
            first = view->sequences[k].user != view->sequences[i].user;
        users += first;
        ret_share->parts[i] = (qn_policy_part_t){.id = view->sequences[i].id, .tokens = first};
    }
    uint32_t each = users < budget_tokens ? budget_tokens / (users > 0 ? users : 1) : 1;
    for (int round = 0; round < 2; round++)
        for (uint32_t i = 0; i < count; i++) {
            qn_policy_part_t *part = &ret_share->parts[i];
            const qn_policy_sequence_t *one = &view->sequences[i];
            bool first = round == 0 && part->tokens == 1;
            if (round == 0) part->tokens = 0;
            if (round == 0 && !first) continue;
            uint32_t most = one->prefill_tokens < chunk_tokens ? one->prefill_tokens : chunk_tokens;
            uint32_t more = most - part->tokens < left ? most - part->tokens : left;
            if (round == 0 && more > each) more = each;
            part->tokens += more;
            left -= more;
        }
    for (uint32_t i = 0; i < count; i++)
        if (ret_share->parts[i].tokens > 0) ret_share->parts[ret_share->count++] = ret_share->parts[i];
    snprintf(ret_share->reason, sizeof ret_share->reason,
             "fair: %u prompt tokens of a budget of %u, %u of %u prompts, %u users with at least %u each",
             budget_tokens - left, budget_tokens, ret_share->count, view->sequence_count, users, each);
}

static uint64_t blocks_of(const qn_policy_view_t *view, uint64_t user)
{
    uint64_t blocks = 0;
    for (uint32_t i = 0; i < view->sequence_count; i++)
        if (view->sequences[i].user == user) blocks += view->sequences[i].blocks;
    return blocks;
}

/* The user who holds most gives up what came last. */
static void fair_preempt(const qn_policy_memory_t *memory, const qn_policy_view_t *view, uint64_t needy,
                         qn_policy_preempt_t *ret_preempt)
{
    (void)memory;
    const qn_policy_sequence_t *victim = NULL;
    uint64_t most = 0;
    for (uint32_t i = 0; i < view->sequence_count; i++) {
        uint64_t blocks = blocks_of(view, view->sequences[i].user);
        if (victim == NULL || blocks >= most) victim = &view->sequences[i], most = blocks;
    }
    ret_preempt->id = victim->id;
    snprintf(ret_preempt->reason, sizeof ret_preempt->reason,
             "fair: %" PRIu64 " of %s%.40s, who holds most (%" PRIu64 " blocks), gives %u back; %" PRIu64 " needs one",
             victim->id, victim->user_name[0] != '\0' ? "user " : "no user", victim->user_name, most, victim->blocks,
             needy);
}

static const char *const metrics[] = {"users_in_turns"};

const qn_policy_t policy_fair = {
    .head = {.version = QN_POLICY_ABI_VERSION,
             .kind = QN_POLICY_SCHEDULING,
             .name = "fair",
             .state_bytes = sizeof(fair_state_t),
             .metric_count = 1,
             .metric_names = metrics},
    .admit = fair_admit,
    .share = fair_share,
    .preempt = fair_preempt,
};
