/* What is this?      The bytes of a seat that outlive its process.
 * State owned:       none; the page is the caller's.
 * Must never:        take for whole what was written in part; trust a string of the page to end.
 * Read next:         policy_seat.c, the only user. */
#include "common/policy/policy_page.h"

#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

#include "common/checksum.h"

bool qn_policy_page_judge(qn_policy_page_t *page, bool crashed)
{
    uint64_t running = atomic_load(&page->running);
    bool blamed = false;
    if (crashed && running != 0) qn_policy_page_withdraw(page, running);
    for (int i = 0; i < QN_POLICY_LOADED_MAX; i++) {
        if (crashed && running == 0 && page->loaded[i] != 0) qn_policy_page_withdraw(page, page->loaded[i]);
        blamed = blamed || (crashed && page->loaded[i] != 0);
        page->loaded[i] = 0;
    }
    atomic_store(&page->running, 0);
    return blamed || (crashed && running != 0);
}

void qn_policy_page_withdraw(qn_policy_page_t *page, uint64_t fingerprint)
{
    if (fingerprint == 0 || qn_policy_page_is_withdrawn(page, fingerprint)) return;
    page->withdrawn[page->withdrawn_count++ % QN_POLICY_WITHDRAWN_MAX] = fingerprint;
}

bool qn_policy_page_is_withdrawn(const qn_policy_page_t *page, uint64_t fingerprint)
{
    for (int i = 0; i < QN_POLICY_WITHDRAWN_MAX; i++)
        if (fingerprint != 0 && page->withdrawn[i] == fingerprint) return true;
    return false;
}

/* ---- places ---- */

static uint32_t crc_of(const qn_policy_place_t *place, uint64_t sequence)
{
    uint32_t crc = qn_crc32c(qn_crc32c(0, &sequence, sizeof sequence), &place->bytes, sizeof place->bytes);
    return qn_crc32c(crc, &place->is, place->bytes);
}

static const qn_policy_place_t *newest(const qn_policy_place_t places[2])
{
    const qn_policy_place_t *best = NULL;
    for (int i = 0; i < 2; i++) {
        const qn_policy_place_t *one = &places[i];
        uint64_t sequence = atomic_load_explicit(&one->sequence, memory_order_acquire);
        if (sequence == 0 || one->bytes > sizeof one->is || one->crc != crc_of(one, sequence)) continue;
        if (best == NULL || sequence > atomic_load_explicit(&best->sequence, memory_order_relaxed)) best = one;
    }
    return best;
}

/* The place that is not the newest; its old content means nothing from now on. */
static qn_policy_place_t *begin(qn_policy_place_t places[2], const qn_policy_place_t *last)
{
    qn_policy_place_t *place = last == &places[0] ? &places[1] : &places[0];
    atomic_store_explicit(&place->sequence, 0, memory_order_release);
    atomic_thread_fence(memory_order_seq_cst);
    return place;
}

static void finish(qn_policy_place_t *place, const qn_policy_place_t *last, size_t bytes)
{
    uint64_t before = last != NULL ? atomic_load_explicit(&last->sequence, memory_order_relaxed) : 0;
    place->bytes = (uint32_t)bytes;
    place->crc = crc_of(place, before + 1);
    atomic_store_explicit(&place->sequence, before + 1, memory_order_release);
}

void qn_policy_page_write_choice(qn_policy_page_t *page, const qn_policy_choice_t *choice)
{
    const qn_policy_place_t *last = newest(page->choices);
    qn_policy_place_t *place = begin(page->choices, last);
    place->is.choice = *choice;
    finish(place, last, sizeof *choice);
}

bool qn_policy_page_read_choice(const qn_policy_page_t *page, qn_policy_choice_t *ret_choice)
{
    const qn_policy_place_t *place = newest(page->choices);
    if (place == NULL || place->bytes != sizeof *ret_choice) return false;
    *ret_choice = place->is.choice;
    ret_choice->configured[QN_POLICY_NAME_MAX - 1] = ret_choice->live[QN_POLICY_NAME_MAX - 1] = '\0';
    ret_choice->previous[QN_POLICY_NAME_MAX - 1] = ret_choice->shadow[QN_POLICY_NAME_MAX - 1] = '\0';
    return true;
}

static bool holds(const qn_policy_place_t *place, uint64_t owner, uint32_t bytes)
{
    return place != NULL && place->bytes == offsetof(qn_policy_state_t, bytes) + bytes &&
           place->is.state.owner == owner;
}

void qn_policy_page_write_state(qn_policy_page_t *page, uint64_t owner, const void *state, uint32_t bytes)
{
    const qn_policy_place_t *last = newest(page->states);
    if (bytes > QN_POLICY_STATE_MAX) return;
    if (holds(last, owner, bytes) && memcmp(last->is.state.bytes, state, bytes) == 0) return;
    qn_policy_place_t *place = begin(page->states, last);
    place->is.state.owner = owner;
    memcpy(place->is.state.bytes, state, bytes);
    finish(place, last, offsetof(qn_policy_state_t, bytes) + bytes);
}

bool qn_policy_page_read_state(const qn_policy_page_t *page, uint64_t owner, void *ret_state, uint32_t bytes)
{
    const qn_policy_place_t *place = newest(page->states);
    if (!holds(place, owner, bytes)) return false;
    memcpy(ret_state, place->is.state.bytes, bytes);
    return true;
}
