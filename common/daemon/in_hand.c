/* What is this?      The page that says what a daemon was doing when it died.
 * State owned:       <run_dir>/<service>.hand, mapped.
 * Must never:        cost more than two stores per message; blame content for a kill from outside.
 * Read next:         crash.h, services/scheduler/quarantine/suspects.h (the same for what is in the ledger). */
#include "common/daemon/in_hand.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/build.h"
#include "common/checksum.h"
#include "common/daemon/crash.h"
#include "common/limits.h"
#include "common/watch/log.h"
#include "common/watch/quarantine.h"

#define KNOWN_MAX 128
#define PAGE_BYTES 4096

typedef struct {
    uint64_t key;
    uint32_t crashes, recorded;
} known_t;

typedef struct {
    uint64_t build; /* hash of the build that wrote it */
    uint64_t epoch; /* of the life that writes */
    _Atomic uint64_t now, beside;
    known_t known[KNOWN_MAX];
} page_t;

_Static_assert(sizeof(page_t) <= PAGE_BYTES, "one page");

struct qn_in_hand {
    page_t *page;
    const char *service;
    char run_dir[QN_PATH_MAX];
    char crash_text[64]; /* how the former life ended */
};

uint64_t qn_in_hand_key(uint64_t seed, const void *bytes, size_t count)
{
    uint64_t key = qn_fingerprint(bytes, count, seed);
    return key != 0 ? key : 1;
}

/* ---- the list ---- */

static known_t *find(const qn_in_hand_t *hand, uint64_t key)
{
    for (size_t i = 0; i < KNOWN_MAX; i++)
        if (hand->page->known[i].key == key && key != 0) return &hand->page->known[i];
    return NULL;
}

/* Its place, or that of the one with the fewest crashes. */
static void blame(qn_in_hand_t *hand, uint64_t key)
{
    known_t *place = find(hand, key);
    for (size_t i = 0; place == NULL && i < KNOWN_MAX; i++)
        if (hand->page->known[i].key == 0) place = &hand->page->known[i];
    for (size_t i = 0; place == NULL && i < KNOWN_MAX; i++)
        if (hand->page->known[i].crashes < QN_IN_HAND_CRASHES_MAX) place = &hand->page->known[i];
    if (place == NULL) place = &hand->page->known[key % KNOWN_MAX];
    if (place->key != key) *place = (known_t){.key = key};
    place->crashes++;
}

static void judge_former(qn_in_hand_t *hand)
{
    qn_crash_t crash;
    uint64_t now = atomic_load(&hand->page->now), beside = atomic_load(&hand->page->beside);
    uint64_t key = now != 0 ? now : beside;
    bool alone = now == 0 || beside == 0 || now == beside;
    if (key == 0 || !alone || !qn_crash_read(hand->run_dir, hand->service, (uint32_t)hand->page->epoch, &crash)) return;
    qn_crash_describe(&crash, hand->crash_text, sizeof hand->crash_text);
    blame(hand, key);
    qn_log_warning("the former life crashed (%s) over one request; at the second time it is refused", hand->crash_text);
}

/* ---- life ---- */

static qn_err_t map_page(const char *path, page_t **ret_page)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    int failure = fd < 0 ? errno : posix_fallocate(fd, 0, PAGE_BYTES); /* a full file system says so now */
    void *page = failure == 0 ? mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
    if (failure == 0 && page == MAP_FAILED) failure = errno;
    if (fd >= 0) close(fd);
    if (failure != 0) return qn_fail(QN_ERR_IO, "cannot map %s: %s", path, strerror(failure));
    *ret_page = page;
    return QN_OK;
}

qn_err_t qn_in_hand_open(const char *run_dir, const char *service, uint32_t epoch, qn_in_hand_t **ret_hand)
{
    char path[QN_PATH_MAX];
    if (snprintf(path, sizeof path, "%s/%s.hand", run_dir, service) >= (int)sizeof path)
        return qn_fail(QN_ERR_LIMIT, "run_dir is too long: %s", run_dir);
    qn_in_hand_t *hand = calloc(1, sizeof *hand);
    if (hand == NULL) return qn_fail(QN_ERR_NO_MEMORY, "no memory for %s", path);
    qn_err_t err = map_page(path, &hand->page);
    if (err < 0) {
        free(hand);
        return err;
    }
    hand->service = service;
    snprintf(hand->run_dir, sizeof hand->run_dir, "%s", run_dir);
    uint64_t build = qn_in_hand_key(0, qn_build_id(), strlen(qn_build_id()));
    if (hand->page->build != build) memset(hand->page, 0, PAGE_BYTES);
    judge_former(hand);
    hand->page->build = build;
    hand->page->epoch = epoch;
    atomic_store(&hand->page->now, 0);
    atomic_store(&hand->page->beside, 0);
    *ret_hand = hand;
    return QN_OK;
}

void qn_in_hand_close(qn_in_hand_t **hand)
{
    if (*hand == NULL) return;
    munmap((*hand)->page, PAGE_BYTES);
    free(*hand);
    *hand = NULL;
}

/* ---- use ---- */

uint64_t qn_in_hand_take(qn_in_hand_t *hand, uint64_t key)
{
    if (hand == NULL) return 0;
    uint64_t before = atomic_load_explicit(&hand->page->now, memory_order_relaxed);
    atomic_store_explicit(&hand->page->now, key, memory_order_release);
    return before;
}

void qn_in_hand_take_beside(qn_in_hand_t *hand, uint64_t key)
{
    if (hand != NULL) atomic_store_explicit(&hand->page->beside, key, memory_order_release);
}

uint64_t qn_in_hand_now(const qn_in_hand_t *hand)
{
    return hand != NULL ? atomic_load_explicit(&hand->page->now, memory_order_relaxed) : 0;
}

bool qn_in_hand_refuses(const qn_in_hand_t *hand, uint64_t key)
{
    const known_t *known = hand != NULL ? find(hand, key) : NULL;
    return known != NULL && known->crashes >= QN_IN_HAND_CRASHES_MAX;
}

void qn_in_hand_record(qn_in_hand_t *hand, uint64_t key, json_t *object)
{
    char path[QN_PATH_MAX];
    known_t *known = find(hand, key);
    if (known == NULL || known->recorded != 0 || object == NULL) {
        json_decref(object);
        return;
    }
    known->recorded = 1;
    json_object_set_new(object, "daemon", json_string(hand->service));
    json_object_set_new(object, "crash", json_string(hand->crash_text));
    if (qn_quarantine_write(hand->run_dir, hand->service, key, object, path) == QN_OK)
        qn_log_error("a request that made this daemon crash twice is refused; see %s", path);
    else
        qn_log_error("a request that made this daemon crash twice is refused; no record of it: %s", qn_err_text());
    json_decref(object);
}
