/* What is this?      The choice of one implementation per operation out of a backend's table.
 * State owned:       none.
 * Must never:        fall back silently from what was asked for by name.
 * Read next:         kernels.h; cpu/registry.c and cuda/registry.c, the tables. */
#include <stdio.h>
#include <string.h>

#include "common/config/suggest.h"
#include "kernels/kernels.h"

typedef struct {
    const qn_kernel_t *rows;
    size_t count;
} table_t;

static const char *const OP_NAMES[QN_OP_COUNT] = {
#define QN_OPERATION(constant, name, arguments) [QN_OP_##constant] = name,
#define QN_FUSED_OPERATION(constant, name, arguments) [QN_OP_##constant] = name,
#include "kernels/ops.def"
};

const char *qn_op_name(qn_op_t op) { return op < QN_OP_COUNT ? OP_NAMES[op] : "unknown"; }

static bool fits(const qn_kernel_t *kernel, const qn_kernel_case_t *shape, uint32_t isa)
{
    return (kernel->isa & ~isa) == 0 && (!kernel->accepts || kernel->accepts(shape));
}

/* The plain implementations have rank 0; `plain` takes no other. */
static void choose_best(const table_t *table, const qn_kernel_case_t *shape, uint32_t isa, bool plain,
                        qn_kernel_set_t *set)
{
    *set = (qn_kernel_set_t){0};
    for (size_t i = 0; i < table->count; i++) {
        const qn_kernel_t *now = set->chosen[table->rows[i].op];
        if (plain && table->rows[i].rank) continue;
        if (fits(&table->rows[i], shape, isa) && (!now || table->rows[i].rank > now->rank))
            set->chosen[table->rows[i].op] = &table->rows[i];
    }
}

static const qn_kernel_t *find_kernel(const table_t *table, qn_op_t op, const char *name)
{
    for (size_t i = 0; i < table->count; i++)
        if (table->rows[i].op == op && strcmp(table->rows[i].name, name) == 0) return &table->rows[i];
    return NULL;
}

/* ---- suggestions ---- */

static qn_err_t unknown_op(const char *word)
{
    const char *nearest = OP_NAMES[0];
    for (unsigned op = 1; op < QN_OP_COUNT; op++)
        if (qn_edit_distance(word, OP_NAMES[op]) < qn_edit_distance(word, nearest)) nearest = OP_NAMES[op];
    return qn_fail(QN_ERR_CONFIG, "compute.kernels: no operation \"%s\"; did you mean \"%s\"?", word, nearest);
}

static qn_err_t unknown_kernel(const table_t *table, qn_op_t op, const char *word)
{
    char names[128] = "";
    for (size_t i = 0; i < table->count; i++) {
        if (table->rows[i].op != op) continue;
        size_t used = strlen(names);
        snprintf(names + used, sizeof names - used, "%s%s", used ? ", " : "", table->rows[i].name);
    }
    return qn_fail(QN_ERR_CONFIG, "compute.kernels: no implementation \"%s\" of \"%s\"; there are %s", word,
                   OP_NAMES[op], names);
}

/* ---- the choice ---- */

static qn_err_t apply_item(const table_t *table, char *item, const qn_kernel_case_t *shape, uint32_t isa,
                           qn_kernel_set_t *set)
{
    char *name = strchr(item, '=');
    if (!name)
        return qn_fail(QN_ERR_CONFIG, "compute.kernels: \"%s\" is not op=name; write for example matmul=reference",
                       item);
    *name++ = '\0';
    unsigned op = 0;
    while (op < QN_OP_COUNT && strcmp(OP_NAMES[op], item) != 0)
        op++;
    if (op == QN_OP_COUNT) return unknown_op(item);
    const qn_kernel_t *kernel = find_kernel(table, (qn_op_t)op, name);
    if (!kernel) return unknown_kernel(table, (qn_op_t)op, name);
    if (kernel->isa & ~isa)
        return qn_fail(QN_ERR_CONFIG, "compute.kernels: this machine cannot run %s=%s; leave it out", item, name);
    if (kernel->accepts && !kernel->accepts(shape))
        return qn_fail(QN_ERR_CONFIG,
                       "compute.kernels: %s=%s does not take %u heads of %u, blocks of %u tokens, %s KV and %s "
                       "activations; leave it out",
                       item, name, shape->heads, shape->head_dim, shape->block_tokens, qn_scalar_name(shape->kv_scalar),
                       qn_scalar_name(shape->activations));
    set->chosen[op] = kernel;
    return QN_OK;
}

qn_err_t qn_kernels_choose_from(const qn_kernel_t *rows, size_t count, const char *choice,
                                const qn_kernel_case_t *shape, uint32_t isa, qn_kernel_set_t *ret_set)
{
    const table_t whole = {rows, count}, *table = &whole;
    qn_kernel_set_t set;
    bool reference = strcmp(choice, "reference") == 0;
    choose_best(table, shape, reference ? 0 : isa, reference, &set);
    for (const char *at = reference ? "" : choice; *at;) {
        size_t length = strcspn(at, ",");
        char item[QN_NAME_MAX];
        if (length >= sizeof item)
            return qn_fail(QN_ERR_CONFIG, "compute.kernels: \"%.40s...\" is too long for op=name", at);
        memcpy(item, at, length);
        item[length] = '\0';
        qn_err_t err = apply_item(table, item, shape, isa, &set);
        if (err) return err;
        at += length + (at[length] == ',');
    }
    *ret_set = set;
    return QN_OK;
}
