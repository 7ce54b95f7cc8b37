/* What is this?      The shared page of faults: rules in, hits counted, a verdict for each.
 * State owned:       the mapping.
 * Must never:        fire what was cleared; cost more than a branch when nothing is armed.
 * Read next:         common/daemon/links/links_faults.c (messages), services/memory/handlers.c (leases, regions). */
#include "common/faults.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/checksum.h"
#include "common/limits.h"

#define MAGIC UINT64_C(0x31746c7561666e71) /* "qnfault1": another layout has another number */

static const char *const NAMES[QN_FAULT_KIND_COUNT] = {
    [QN_FAULT_DELAY] = "delay",         [QN_FAULT_DROP] = "drop",
    [QN_FAULT_DUPLICATE] = "duplicate", [QN_FAULT_REORDER] = "reorder",
    [QN_FAULT_CORRUPT] = "corrupt",     [QN_FAULT_KILL] = "kill",
    [QN_FAULT_LEASE] = "fail_lease",    [QN_FAULT_ALLOCATION] = "refuse_allocation",
};

const char *qn_fault_name(qn_fault_kind_t kind) { return kind < QN_FAULT_KIND_COUNT ? NAMES[kind] : NULL; }

qn_fault_kind_t qn_fault_find(const char *name)
{
    for (unsigned kind = QN_FAULT_NONE + 1; kind < QN_FAULT_KIND_COUNT; kind++)
        if (strcmp(NAMES[kind], name) == 0) return (qn_fault_kind_t)kind;
    return QN_FAULT_NONE;
}

/* ---- the page ---- */

qn_err_t qn_faults_open(const char *run_dir, qn_faults_t *ret_faults)
{
    char path[QN_PATH_MAX + 16];
    snprintf(path, sizeof path, "%s/faults", run_dir);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) return qn_fail(QN_ERR_IO, "%s: %s", path, strerror(errno));
    bool sized = ftruncate(fd, sizeof(qn_fault_page_t)) == 0; /* the same for everybody; new bytes are zeros */
    qn_fault_page_t *page = sized ? mmap(NULL, sizeof *page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
    int failure = errno;
    close(fd);
    if (page == MAP_FAILED) return qn_fail(QN_ERR_IO, "%s: %s", path, strerror(failure));
    if (page->magic != MAGIC) { /* new, or of another build: nothing is armed */
        atomic_store(&page->armed, 0);
        page->magic = MAGIC;
    }
    ret_faults->page = page;
    return QN_OK;
}

void qn_faults_close(qn_faults_t *faults)
{
    if (faults->page) munmap(faults->page, sizeof *faults->page);
    faults->page = NULL;
}

void qn_faults_set(qn_faults_t *faults, const qn_fault_t *list, uint32_t count)
{
    qn_fault_page_t *page = faults->page;
    if (count > QN_FAULTS_MAX) count = QN_FAULTS_MAX;
    atomic_store(&page->armed, 0);
    atomic_fetch_or(&page->generation, 1);
    for (uint32_t i = 0; i < count; i++) {
        page->rules[i].fault = list[i];
        atomic_store(&page->rules[i].hits, 0);
        atomic_store(&page->rules[i].fired, 0);
    }
    atomic_fetch_add(&page->generation, 1);
    atomic_store(&page->armed, count);
}

/* How many rules are in force; 0 also while they are written. */
static uint32_t rule_count(const qn_fault_page_t *page)
{
    uint32_t count = atomic_load(&page->armed);
    return count <= QN_FAULTS_MAX ? count : 0;
}

/* False: it is being replaced. */
static bool copy_rule(const qn_fault_page_t *page, uint32_t index, qn_fault_t *ret_fault)
{
    uint32_t before = atomic_load(&page->generation);
    *ret_fault = page->rules[index].fault;
    atomic_thread_fence(memory_order_seq_cst);
    return !(before & 1) && atomic_load(&page->generation) == before && index < rule_count(page);
}

uint32_t qn_faults_list(const qn_faults_t *faults, qn_fault_state_t ret_list[QN_FAULTS_MAX])
{
    uint32_t count = 0;
    for (uint32_t i = 0; faults->page && i < rule_count(faults->page); i++) {
        qn_fault_state_t *state = &ret_list[count];
        state->hits = atomic_load(&faults->page->rules[i].hits);
        state->fired = atomic_load(&faults->page->rules[i].fired);
        count += copy_rule(faults->page, i, &state->fault);
    }
    return count;
}

/* ---- hits ---- */

/* Uniform in [0, 1) by seed and number. */
static double draw(uint64_t seed, uint64_t number)
{
    const uint64_t facts[] = {seed, number};
    return (double)(qn_fingerprint(facts, sizeof facts, 0) >> 11) * 0x1p-53;
}

/* Counts a hit of the rule; true: it fires. */
static bool fires(qn_fault_page_t *page, uint32_t index, const qn_fault_t *fault)
{
    uint64_t number = atomic_fetch_add(&page->rules[index].hits, 1);
    if (number < fault->skip || draw(fault->seed, number) >= (double)fault->probability) return false;
    uint64_t fired = atomic_fetch_add(&page->rules[index].fired, 1);
    if (fault->count == 0 || fired < fault->count) return true;
    atomic_fetch_sub(&page->rules[index].fired, 1);
    return false;
}

static bool is_of_messages(uint32_t kind) { return kind >= QN_FAULT_DELAY && kind <= QN_FAULT_KILL; }

bool qn_faults_hit_message(const qn_faults_t *faults, uint32_t from, uint32_t to, const char type[4], bool control,
                           qn_fault_t *ret_fault)
{
    static const char EVERY[4] = {0};
    qn_fault_t fault;
    for (uint32_t i = 0; i < rule_count(faults->page); i++) {
        if (!copy_rule(faults->page, i, &fault) || !is_of_messages(fault.kind)) continue;
        if ((fault.from && !(fault.from & 1u << from)) || (fault.to && !(fault.to & 1u << to))) continue;
        bool every = memcmp(fault.type, EVERY, 4) == 0;
        if (every ? control : memcmp(fault.type, type, 4) != 0) continue;
        if (!fires(faults->page, i, &fault)) continue;
        *ret_fault = fault;
        return true;
    }
    return false;
}

bool qn_faults_hit(const qn_faults_t *faults, qn_fault_kind_t kind)
{
    qn_fault_t fault;
    for (uint32_t i = 0; i < rule_count(faults->page); i++)
        if (copy_rule(faults->page, i, &fault) && fault.kind == kind && fires(faults->page, i, &fault)) return true;
    return false;
}
