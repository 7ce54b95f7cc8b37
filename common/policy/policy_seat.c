/* What is this?      Who decides about one thing: live, before it, beside it.
 * State owned:       the three policies, the counts, the last differences; the page's content.
 * Must never:        let a policy that broke a rule decide again, or be replaced without a word.
 * Read next:         policy_object.c (how one is loaded), policy_page.h (what outlives the process). */
#include "common/policy/policy_seat.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/assert.h"
#include "common/checksum.h"
#include "common/watch/log.h"

struct qn_policy_seat {
    qn_policy_catalogue_t catalogue;
    qn_policy_page_t *page, own_page; /* own_page: when there is none that outlives */
    char configured[QN_POLICY_NAME_MAX];
    qn_policy_object_t *live, *previous, *shadow;
    uint64_t asked_ns; /* processor time when a shared object was asked; 0: it is built in */
    char withdrawn[QN_ERR_TEXT_MAX];
    qn_policy_counts_t counts;
    uint64_t difference_count;
    qn_policy_difference_t differences[QN_POLICY_DIFFERENCES_MAX];
};

/* ---- what outlives ---- */

static void copy_choice(char ret_name[QN_POLICY_NAME_MAX], const qn_policy_object_t *object)
{
    snprintf(ret_name, QN_POLICY_NAME_MAX, "%s", object != NULL ? qn_policy_object_choice(object) : "");
}

static void note_loaded(qn_policy_seat_t *seat)
{
    const qn_policy_object_t *all[QN_POLICY_LOADED_MAX] = {seat->live, seat->previous, seat->shadow};
    for (int i = 0; i < QN_POLICY_LOADED_MAX; i++)
        seat->page->loaded[i] = all[i] != NULL ? qn_policy_object_fingerprint(all[i]) : 0;
}

static void save(qn_policy_seat_t *seat)
{
    qn_policy_choice_t choice = {0};
    snprintf(choice.configured, sizeof choice.configured, "%s", seat->configured);
    copy_choice(choice.live, seat->live);
    copy_choice(choice.previous, seat->previous);
    copy_choice(choice.shadow, seat->shadow);
    qn_policy_page_write_choice(seat->page, &choice);
    note_loaded(seat);
}

/* Whose state it is: of another policy, or of the same one compiled anew, it means nothing. */
static uint64_t owner_of(const qn_policy_object_t *object)
{
    const char *name = qn_policy_object_head(object)->name;
    return qn_fingerprint(name, strlen(name), qn_policy_object_fingerprint(object));
}

static void save_state(qn_policy_seat_t *seat)
{
    uint32_t bytes = qn_policy_object_head(seat->live)->state_bytes;
    if (bytes == 0) return;
    qn_policy_page_write_state(seat->page, owner_of(seat->live), qn_policy_object_memory(seat->live)->state, bytes);
}

static void restore_state(qn_policy_seat_t *seat)
{
    uint32_t bytes = qn_policy_object_head(seat->live)->state_bytes;
    if (bytes == 0) return;
    qn_policy_page_read_state(seat->page, owner_of(seat->live), qn_policy_object_memory(seat->live)->state, bytes);
}

/* ---- opening ---- */

/* Before any code of a shared object runs: if the process dies over it, the next life knows. */
static qn_err_t approve(void *context, const char *choice, uint64_t fingerprint)
{
    qn_policy_seat_t *seat = context;
    if (qn_policy_page_is_withdrawn(seat->page, fingerprint))
        return qn_fail(
            QN_ERR_CONFIG,
            "%s policy %s was withdrawn: it broke a rule, was too slow, or the service crashed with it; mend the "
            "file, it is tried again when its content is another one",
            qn_policy_kind_name(seat->catalogue.kind), choice);
    atomic_store(&seat->page->running, fingerprint);
    return QN_OK;
}

static qn_err_t open_object(qn_policy_seat_t *seat, const char *choice, qn_policy_object_t **ret_object)
{
    qn_policy_approval_t approval = {.ask = approve, .context = seat};
    qn_err_t err = qn_policy_object_open(&seat->catalogue, choice, &approval, ret_object);
    atomic_store(&seat->page->running, 0);
    return err;
}

static qn_policy_object_t *last_resort(const qn_policy_seat_t *seat)
{
    qn_policy_object_t *object = NULL;
    qn_err_t err = qn_policy_object_wrap(seat->catalogue.kind, seat->catalogue.builtin[0], &object);
    QN_ASSERT(err == QN_OK);
    return object;
}

/* Opens what was in force before this life, as far as it can be: what cannot is said. */
static qn_policy_object_t *reopen(qn_policy_seat_t *seat, const char *choice)
{
    qn_policy_object_t *object = NULL;
    if (choice[0] == '\0' || open_object(seat, choice, &object) == QN_OK) return object;
    snprintf(seat->withdrawn, sizeof seat->withdrawn, "%s", qn_err_text());
    qn_log_error("%s", seat->withdrawn);
    return NULL;
}

static qn_err_t open_first(qn_policy_seat_t *seat)
{
    qn_policy_choice_t choice;
    bool chosen = qn_policy_page_read_choice(seat->page, &choice) && strcmp(choice.configured, seat->configured) == 0;
    if (chosen) {
        seat->previous = reopen(seat, choice.previous);
        seat->withdrawn[0] = '\0'; /* it decides nothing: the log has it */
        seat->live = reopen(seat, choice.live);
        seat->shadow = reopen(seat, choice.shadow);
        if (seat->live == NULL) seat->live = seat->previous, seat->previous = NULL;
        if (seat->live != NULL) return QN_OK;
    }
    qn_err_t err = open_object(seat, seat->configured, &seat->live);
    if (err == QN_OK) return QN_OK;
    if (strstr(qn_err_text(), "was withdrawn") == NULL) return err;
    snprintf(seat->withdrawn, sizeof seat->withdrawn, "%s", qn_err_text());
    qn_log_error("%s; %s decides", seat->withdrawn, seat->catalogue.builtin[0]->name);
    seat->live = last_resort(seat);
    return QN_OK;
}

static qn_policy_seat_t *create(const qn_policy_catalogue_t *catalogue, qn_policy_page_t *page)
{
    qn_policy_seat_t *seat = calloc(1, sizeof *seat);
    if (seat == NULL) return NULL;
    seat->catalogue = *catalogue;
    seat->page = page != NULL ? page : &seat->own_page;
    return seat;
}

qn_err_t qn_policy_seat_open(const qn_policy_catalogue_t *catalogue, const char *configured, qn_policy_page_t *page,
                             qn_policy_seat_t **ret_seat)
{
    qn_policy_seat_t *seat = create(catalogue, page);
    if (seat == NULL) return qn_fail(QN_ERR_NO_MEMORY, "no memory for a policy");
    snprintf(seat->configured, sizeof seat->configured, "%s", configured);
    qn_err_t err = open_first(seat);
    if (err < 0) {
        qn_policy_seat_close(&seat);
        return err;
    }
    note_loaded(seat);
    restore_state(seat);
    *ret_seat = seat;
    return QN_OK;
}

qn_err_t qn_policy_seat_wrap(const qn_policy_catalogue_t *catalogue, const qn_policy_head_t *head,
                             qn_policy_seat_t **ret_seat)
{
    qn_policy_seat_t *seat = create(catalogue, NULL);
    if (seat == NULL) return qn_fail(QN_ERR_NO_MEMORY, "no memory for a policy");
    qn_err_t err = qn_policy_object_wrap(catalogue->kind, head, &seat->live);
    if (err < 0)
        qn_policy_seat_close(&seat);
    else
        *ret_seat = seat;
    return err;
}

void qn_policy_seat_close(qn_policy_seat_t **seat)
{
    if (*seat == NULL) return;
    qn_policy_object_close(&(*seat)->live);
    qn_policy_object_close(&(*seat)->previous);
    qn_policy_object_close(&(*seat)->shadow);
    free(*seat);
    *seat = NULL;
}

/* ---- changes ---- */

qn_err_t qn_policy_seat_set(qn_policy_seat_t *seat, const char *choice)
{
    qn_policy_object_t *object = NULL;
    qn_err_t err = open_object(seat, choice, &object);
    if (err < 0) return err;
    if (qn_policy_object_head(object)->name ==
        qn_policy_object_head(seat->live)->name) { /* built in, and live already */
        qn_policy_object_close(&object);
    } else {
        qn_policy_object_close(&seat->previous);
        seat->previous = seat->live;
        seat->live = object;
        seat->counts.switches++;
    }
    seat->withdrawn[0] = '\0';
    save(seat);
    return QN_OK;
}

qn_err_t qn_policy_seat_set_shadow(qn_policy_seat_t *seat, const char *choice)
{
    qn_policy_object_t *object = NULL;
    qn_err_t err = choice != NULL && choice[0] != '\0' ? open_object(seat, choice, &object) : QN_OK;
    if (err < 0) return err;
    qn_policy_object_close(&seat->shadow);
    seat->shadow = object;
    seat->counts.shadow_decisions = seat->counts.shadow_differences = seat->difference_count = 0;
    save(seat);
    return QN_OK;
}

static void withdraw(qn_policy_seat_t *seat, bool shadow, const char *broken)
{
    qn_policy_object_t **bad = shadow ? &seat->shadow : &seat->live;
    const char *name = qn_policy_object_head(*bad)->name;
    qn_policy_page_withdraw(seat->page, qn_policy_object_fingerprint(*bad));
    seat->counts.withdrawals++;
    qn_policy_object_t *next = NULL;
    if (!shadow) {
        next = seat->previous != NULL ? seat->previous : last_resort(seat);
        seat->previous = NULL;
    }
    snprintf(seat->withdrawn, sizeof seat->withdrawn, "%s policy %s (%s) was withdrawn: %s; %s",
             qn_policy_kind_name(seat->catalogue.kind), name, qn_policy_object_choice(*bad), broken,
             shadow ? "it was a shadow" : "the one before it decides");
    qn_log_error("%s", seat->withdrawn);
    qn_policy_object_close(bad);
    *bad = next;
    save(seat);
}

/* ---- decisions ---- */

/* Of this thread: a machine that is busy makes no policy slow. */
static uint64_t processor_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

const qn_policy_object_t *qn_policy_seat_ask(qn_policy_seat_t *seat, bool shadow)
{
    const qn_policy_object_t *object = shadow ? seat->shadow : seat->live;
    uint64_t fingerprint = object != NULL ? qn_policy_object_fingerprint(object) : 0;
    seat->asked_ns = fingerprint != 0 ? processor_ns() : 0;
    if (fingerprint != 0) atomic_store_explicit(&seat->page->running, fingerprint, memory_order_relaxed);
    return object;
}

bool qn_policy_seat_take(qn_policy_seat_t *seat, bool shadow, const char *broken)
{
    char slow[96];
    if (seat->asked_ns != 0) {
        uint64_t took_ns = processor_ns() - seat->asked_ns;
        atomic_store_explicit(&seat->page->running, 0, memory_order_relaxed);
        if (broken == NULL && took_ns > QN_POLICY_SLOW_NS) {
            snprintf(slow, sizeof slow, "a decision took %.1f ms of processor time, %.0f are allowed",
                     (double)took_ns / 1e6, QN_POLICY_SLOW_NS / 1e6);
            broken = slow;
        }
    }
    if (broken != NULL) {
        QN_ASSERT(shadow || qn_policy_object_head(seat->live) != seat->catalogue.builtin[0]);
        withdraw(seat, shadow, broken);
        return false;
    }
    if (shadow) {
        seat->counts.shadow_decisions++;
        return true;
    }
    seat->counts.decisions++;
    save_state(seat);
    return true;
}

void qn_policy_seat_compare(qn_policy_seat_t *seat, const char *function, uint64_t now_ns,
                            const qn_policy_decision_t *by_live, const qn_policy_decision_t *by_shadow)
{
    if (by_live->hash == by_shadow->hash) return;
    seat->counts.shadow_differences++;
    qn_policy_difference_t *one = &seat->differences[seat->difference_count++ % QN_POLICY_DIFFERENCES_MAX];
    *one = (qn_policy_difference_t){.now_ns = now_ns, .by_live = *by_live, .by_shadow = *by_shadow};
    snprintf(one->function, sizeof one->function, "%s", function);
    snprintf(one->live, sizeof one->live, "%s", qn_policy_object_head(seat->live)->name);
    snprintf(one->shadow, sizeof one->shadow, "%s", qn_policy_object_head(seat->shadow)->name);
}

/* ---- views ---- */

const qn_policy_object_t *qn_policy_seat_live(const qn_policy_seat_t *seat) { return seat->live; }

const qn_policy_object_t *qn_policy_seat_previous(const qn_policy_seat_t *seat) { return seat->previous; }

const qn_policy_object_t *qn_policy_seat_shadow(const qn_policy_seat_t *seat) { return seat->shadow; }

const char *qn_policy_seat_name(const qn_policy_seat_t *seat) { return qn_policy_object_head(seat->live)->name; }

const char *qn_policy_seat_configured(const qn_policy_seat_t *seat) { return seat->configured; }

const qn_policy_catalogue_t *qn_policy_seat_catalogue(const qn_policy_seat_t *seat) { return &seat->catalogue; }

const char *qn_policy_seat_withdrawn(const qn_policy_seat_t *seat) { return seat->withdrawn; }

uint32_t qn_policy_seat_wants(const qn_policy_seat_t *seat)
{
    return qn_policy_object_head(seat->live)->wants |
           (seat->shadow != NULL ? qn_policy_object_head(seat->shadow)->wants : 0);
}

void qn_policy_seat_counts(const qn_policy_seat_t *seat, qn_policy_counts_t *ret_counts) { *ret_counts = seat->counts; }

const qn_policy_difference_t *qn_policy_seat_difference(const qn_policy_seat_t *seat, uint32_t at)
{
    uint64_t kept =
        seat->difference_count < QN_POLICY_DIFFERENCES_MAX ? seat->difference_count : QN_POLICY_DIFFERENCES_MAX;
    return at < kept ? &seat->differences[(seat->difference_count - 1 - at) % QN_POLICY_DIFFERENCES_MAX] : NULL;
}
