/* What is this?      The table of the regions memory owns.
 * State owned:       the regions themselves.
 * Must never:        give two regions one name, or an id twice in an epoch.
 * Read next:         common/region/region.h. */
#include "services/memory/region_table.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"

struct region_table {
    qn_share_t share;
    int32_t device;
    uint32_t epoch;
    char fd_socket[QN_ENDPOINT_MAX];
    bool huge_pages;
    qn_mapping_t *regions[REGION_TABLE_MAX]; /* owned */
    size_t count;
    uint64_t peak_bytes;
    uint64_t next_id;
};

qn_err_t region_table_create(qn_share_t share, int32_t device, uint32_t epoch, const char *fd_socket, bool huge_pages,
                             region_table_t **ret_table)
{
    if (strlen(fd_socket) >= QN_ENDPOINT_MAX) return qn_fail(QN_ERR_LIMIT, "%s: path too long", fd_socket);
    region_table_t *table = calloc(1, sizeof *table);
    if (!table) return qn_fail(QN_ERR_NO_MEMORY, "region table: no memory");
    table->share = share;
    table->device = device;
    table->epoch = epoch;
    table->huge_pages = huge_pages;
    table->next_id = REGION_TABLE_MAX;
    strcpy(table->fd_socket, fd_socket);
    *ret_table = table;
    return QN_OK;
}

void region_table_destroy(region_table_t **table_pointer)
{
    region_table_t *table = *table_pointer;
    if (!table) return;
    for (size_t i = 0; i < table->count; i++)
        qn_region_close(&table->regions[i]);
    free(table);
    *table_pointer = NULL;
}

qn_err_t region_table_make(const region_table_t *table, uint64_t id, qn_region_kind_t kind, const char *name,
                           uint64_t bytes, qn_mapping_t **ret_region)
{
    qn_region_spec_t spec = {.id = id,
                             .kind = kind,
                             .share = table->share,
                             .device = table->device,
                             .bytes = bytes,
                             .epoch = table->epoch,
                             .name = name,
                             .fd_socket = table->fd_socket,
                             .huge_pages = table->huge_pages};
    return qn_region_create(&spec, ret_region);
}

static size_t index_of(const region_table_t *table, const char *name)
{
    size_t index = 0;
    while (index < table->count && strcmp(qn_region_name(table->regions[index]), name) != 0)
        index++;
    return index;
}

/* `more`: bytes that exist and are not in the table yet. */
static void note_peak(region_table_t *table, uint64_t more)
{
    uint64_t bytes = more;
    for (size_t i = 0; i < table->count; i++)
        bytes += qn_region_bytes(table->regions[i]);
    if (bytes > table->peak_bytes) table->peak_bytes = bytes;
}

uint64_t region_table_peak(const region_table_t *table) { return table->peak_bytes; }

qn_err_t region_table_add(region_table_t *table, qn_mapping_t **region)
{
    QN_ASSERT(index_of(table, qn_region_name(*region)) == table->count);
    if (table->count == REGION_TABLE_MAX)
        return qn_fail(QN_ERR_LIMIT, "region '%s': %d regions exist already", qn_region_name(*region),
                       REGION_TABLE_MAX);
    table->regions[table->count++] = *region;
    *region = NULL;
    note_peak(table, 0);
    return QN_OK;
}

/* The name also becomes a name in the service manager's store, which allows no colon and no control character. */
static qn_err_t copy_name(const char *name, size_t bytes, char *ret_name)
{
    if (bytes == 0 || bytes >= QN_NAME_MAX)
        return qn_fail(QN_ERR_INVALID, "name: %zu bytes are not in 1 .. %d", bytes, QN_NAME_MAX - 1);
    for (size_t i = 0; i < bytes; i++) {
        if (!isalnum((unsigned char)name[i]) && !(name[i] != '\0' && strchr("._-", name[i])))
            return qn_fail(QN_ERR_INVALID, "name: byte %zu is not a letter, digit, '.', '_' or '-'", i);
    }
    memcpy(ret_name, name, bytes);
    ret_name[bytes] = '\0';
    return QN_OK;
}

/* A host promises more than it has, so half of it is kept back; a device refuses by itself. */
static qn_err_t check_free(const region_table_t *table, const char *name, uint64_t bytes)
{
    uint64_t free_bytes;
    if (table->share != QN_SHARE_MEMFD) return QN_OK;
    qn_err_t err = qn_region_free_bytes(table->share, table->device, &free_bytes);
    if (!err && bytes > free_bytes / 2)
        err = qn_fail(QN_ERR_LIMIT,
                      "region '%s': %" PRIu64 " bytes are more than half of the %" PRIu64 " that are "
                      "free: lower memory.kv_bytes or scheduler.max_step_tokens",
                      name, bytes, free_bytes);
    return err;
}

qn_err_t region_table_reserve(region_table_t *table, qn_region_kind_t kind, const char *name_text, size_t name_bytes,
                              uint64_t bytes, const qn_mapping_t **ret_region, bool *ret_fresh, qn_mapping_t **ret_old)
{
    char name[QN_NAME_MAX];
    qn_err_t err = copy_name(name_text, name_bytes, name);
    if (err) return err;
    size_t index = index_of(table, name);
    bool known = index < table->count;
    if (known && qn_region_kind(table->regions[index]) != kind)
        return qn_fail(QN_ERR_INVALID, "name: '%s' is a region of another kind", name);
    *ret_old = NULL;
    *ret_fresh = !known || qn_region_bytes(table->regions[index]) < bytes;
    if (*ret_fresh) {
        qn_mapping_t *region;
        if (!known && table->count == REGION_TABLE_MAX)
            return qn_fail(QN_ERR_LIMIT, "region '%s': %d regions exist already", name, REGION_TABLE_MAX);
        if ((err = check_free(table, name, bytes))) return err;
        if ((err = region_table_make(table, table->next_id, kind, name, bytes, &region))) return err;
        table->next_id++;
        /* Prefill reads and writes them all, many times a step; small pages cost it some percent. */
        if (kind == QN_REGION_KIND_ACTIVATIONS) qn_region_make_huge(region, 0, bytes);
        note_peak(table, bytes);
        if (known)
            *ret_old = table->regions[index];
        else
            table->count++;
        table->regions[index] = region;
    }
    *ret_region = table->regions[index];
    return QN_OK;
}

qn_share_t region_table_backing(const region_table_t *table, int32_t *ret_device)
{
    *ret_device = table->device;
    return table->share;
}

const qn_mapping_t *region_table_find_name(const region_table_t *table, const char *name)
{
    size_t index = index_of(table, name);
    return index < table->count ? table->regions[index] : NULL;
}

const qn_mapping_t *region_table_find(const region_table_t *table, uint64_t id, uint32_t epoch)
{
    for (size_t i = 0; i < table->count; i++) {
        const qn_mapping_t *region = table->regions[i];
        if (qn_region_id(region) == id && qn_region_epoch(region) == epoch) return region;
    }
    return NULL;
}

size_t region_table_count(const region_table_t *table) { return table->count; }

const qn_mapping_t *region_table_at(const region_table_t *table, size_t index)
{
    QN_ASSERT(index < table->count);
    return table->regions[index];
}

uint64_t region_table_bytes(const region_table_t *table, qn_region_kind_t kind)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < table->count; i++) {
        if (qn_region_kind(table->regions[i]) == kind) bytes += qn_region_bytes(table->regions[i]);
    }
    return bytes;
}
