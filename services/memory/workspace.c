/* What is this?      The leases of the workspace: ranges with an owner and a deadline.
 * State owned:       the list at the beginning of the region, sorted by offset.
 * Must never:        lease a byte twice; keep a lease that nobody can end.
 * Read next:         workspace.h; handlers.c (the messages), service.c (deadlines and deaths). */
#include "services/memory/workspace.h"

#include <stdlib.h>
#include <string.h>

#include "common/assert.h"

#define MAGIC UINT64_C(0x3130534b524f5751) /* "QWORKS01" */

/* As it lies in the region. A kill between two stores leaves at most one entry too many, twice the same: `count` is
 * raised after an entry is there, and of two that overlap the second is left out when the list is taken up. */
typedef struct {
    uint64_t magic, bytes, next_id;
    uint32_t count, unused;
    workspace_lease_t leases[WORKSPACE_LEASES_MAX];
} head_t;
_Static_assert(sizeof(head_t) <= WORKSPACE_HEAD_BYTES, "the list fits in front of what it is about");
_Static_assert(sizeof(workspace_lease_t) == 40, "lies in the region as it stands");

struct workspace {
    head_t *head;
    uint64_t bytes; /* of the region */
};

static uint64_t round_up(uint64_t bytes) { return (bytes + WORKSPACE_ALIGN - 1) / WORKSPACE_ALIGN * WORKSPACE_ALIGN; }

/* ---- life ---- */

static bool is_sound(const workspace_t *self, const workspace_lease_t *lease, uint64_t after)
{
    return lease->id != 0 && lease->id < self->head->next_id && lease->offset >= after &&
           lease->offset % WORKSPACE_ALIGN == 0 && lease->bytes > 0 && lease->bytes % WORKSPACE_ALIGN == 0 &&
           lease->offset < self->bytes && lease->bytes <= self->bytes - lease->offset;
}

static void take_up(workspace_t *self)
{
    head_t *head = self->head;
    uint64_t after = WORKSPACE_HEAD_BYTES;
    uint32_t count = head->count < WORKSPACE_LEASES_MAX ? head->count : WORKSPACE_LEASES_MAX, kept = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (!is_sound(self, &head->leases[i], after)) continue;
        head->leases[kept] = head->leases[i];
        after = head->leases[kept].offset + head->leases[kept].bytes;
        kept++;
    }
    head->count = kept;
}

qn_err_t workspace_create(void *memory, uint64_t bytes, workspace_t **ret_workspace)
{
    QN_ASSERT(bytes >= WORKSPACE_BYTES_MIN);
    workspace_t *self = calloc(1, sizeof *self);
    if (!self) return qn_fail(QN_ERR_NO_MEMORY, "no memory for the list of the workspace");
    self->head = memory;
    self->bytes = bytes / WORKSPACE_ALIGN * WORKSPACE_ALIGN;
    if (self->head->magic == MAGIC && self->head->bytes == self->bytes) {
        take_up(self);
    } else {
        memset(self->head, 0, sizeof *self->head);
        self->head->bytes = self->bytes;
        self->head->next_id = 1;
        self->head->magic = MAGIC;
    }
    *ret_workspace = self;
    return QN_OK;
}

void workspace_destroy(workspace_t **workspace)
{
    free(*workspace);
    *workspace = NULL;
}

uint64_t workspace_capacity(const workspace_t *workspace) { return workspace->bytes - WORKSPACE_HEAD_BYTES; }

const workspace_lease_t *workspace_leases(const workspace_t *workspace, uint32_t *ret_count)
{
    *ret_count = workspace->head->count;
    return workspace->head->leases;
}

/* ---- leases ---- */

static bool owns(const workspace_lease_t *lease, workspace_owner_t owner)
{
    return lease->owner.epoch == owner.epoch && lease->owner.service == owner.service &&
           lease->owner.instance == owner.instance;
}

static workspace_lease_t *find(workspace_t *self, workspace_owner_t owner, uint64_t id)
{
    for (uint32_t i = 0; i < self->head->count; i++)
        if (self->head->leases[i].id == id) return owns(&self->head->leases[i], owner) ? &self->head->leases[i] : NULL;
    return NULL;
}

/* Index at which a lease of `bytes` fits, and its offset; false: nowhere. */
static bool find_gap(const workspace_t *self, uint64_t bytes, uint32_t *ret_index, uint64_t *ret_offset)
{
    const head_t *head = self->head;
    uint64_t after = WORKSPACE_HEAD_BYTES;
    for (uint32_t i = 0; i <= head->count; i++) {
        uint64_t end = i < head->count ? head->leases[i].offset : self->bytes;
        *ret_index = i;
        *ret_offset = after;
        if (end - after >= bytes) return true;
        if (i < head->count) after = head->leases[i].offset + head->leases[i].bytes;
    }
    return false;
}

workspace_outcome_t workspace_lease(workspace_t *workspace, workspace_owner_t owner, uint64_t bytes,
                                    uint64_t deadline_ns, workspace_lease_t *ret_lease)
{
    head_t *head = workspace->head;
    uint32_t index;
    uint64_t offset;
    if (bytes == 0 || bytes > workspace_capacity(workspace)) return WORKSPACE_TOO_BIG;
    bytes = round_up(bytes);
    if (head->count == WORKSPACE_LEASES_MAX || !find_gap(workspace, bytes, &index, &offset)) return WORKSPACE_FULL;
    memmove(&head->leases[index + 1], &head->leases[index], (head->count - index) * sizeof *head->leases);
    head->leases[index] = (workspace_lease_t){
        .id = head->next_id++, .offset = offset, .bytes = bytes, .deadline_ns = deadline_ns, .owner = owner};
    head->count++;
    *ret_lease = head->leases[index];
    return WORKSPACE_OK;
}

workspace_outcome_t workspace_renew(workspace_t *workspace, workspace_owner_t owner, uint64_t id, uint64_t deadline_ns,
                                    workspace_lease_t *ret_lease)
{
    workspace_lease_t *lease = find(workspace, owner, id);
    if (!lease) return WORKSPACE_UNKNOWN;
    lease->deadline_ns = deadline_ns;
    *ret_lease = *lease;
    return WORKSPACE_OK;
}

static void end_at(head_t *head, uint32_t index)
{
    memmove(&head->leases[index], &head->leases[index + 1], (head->count - index - 1) * sizeof *head->leases);
    head->count--;
}

workspace_outcome_t workspace_release(workspace_t *workspace, workspace_owner_t owner, uint64_t id)
{
    workspace_lease_t *lease = find(workspace, owner, id);
    if (!lease) return WORKSPACE_UNKNOWN;
    end_at(workspace->head, (uint32_t)(lease - workspace->head->leases));
    return WORKSPACE_OK;
}

uint32_t workspace_release_owner(workspace_t *workspace, workspace_owner_t owner)
{
    head_t *head = workspace->head;
    uint32_t before = head->count;
    for (uint32_t i = head->count; i-- > 0;)
        if (owns(&head->leases[i], owner)) end_at(head, i);
    return before - head->count;
}

uint64_t workspace_expire(workspace_t *workspace, uint64_t now_ns)
{
    head_t *head = workspace->head;
    uint64_t next_ns = UINT64_MAX;
    for (uint32_t i = head->count; i-- > 0;) {
        if (head->leases[i].deadline_ns <= now_ns)
            end_at(head, i);
        else if (head->leases[i].deadline_ns < next_ns)
            next_ns = head->leases[i].deadline_ns;
    }
    return next_ns;
}
