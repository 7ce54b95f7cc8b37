/* What is this?      The choice of one implementation per operation out of a backend's table.
 * State owned:       none.
 * Must never:        fall back silently from what was asked for by name.
 * Read next:         kernels.h; cpu/registry.c and cuda/registry.c, the tables. */
#include <stdio.h>
#include <string.h>

#include "common/checksum.h"
#include "common/config/suggest.h"
#include "kernels/loaded.h"

typedef struct {
    const qn_kernel_t *rows;
    size_t count;
} table_t;

static const char *const OP_NAMES[QN_OP_COUNT] = {
#define QN_OPERATION(constant, name, arguments) [QN_OP_##constant] = name,
#define QN_FUSED_OPERATION(constant, name, arguments) [QN_OP_##constant] = name,
#include "kernels/ops.def"
};

qn_op_t qn_op_find(const char *name)
{
    unsigned op = 0;
    while (op < QN_OP_COUNT && strcmp(OP_NAMES[op], name) != 0)
        op++;
    return (qn_op_t)op;
}

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
    return qn_kernels_find_loaded(op, name);
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
    char names[256] = "";
    size_t loaded_count;
    const qn_kernel_t *loaded = qn_kernels_loaded(&loaded_count);
    for (size_t i = 0; i < table->count + loaded_count; i++) {
        const qn_kernel_t *row = i < table->count ? &table->rows[i] : &loaded[i - table->count];
        size_t used = strlen(names);
        if (row->op == op) snprintf(names + used, sizeof names - used, "%s%s", used ? ", " : "", row->name);
    }
    return qn_fail(QN_ERR_CONFIG, "compute.kernels: no implementation \"%s\" of \"%s\"; there are %s", word,
                   OP_NAMES[op], names);
}

/* ---- the choice ---- */

static qn_err_t apply_item(const table_t *table, char *item, const qn_kernel_case_t *shape, uint32_t isa,
                           qn_kernel_set_t *set, uint32_t *named)
{
    char *name = strchr(item, '=');
    if (!name)
        return qn_fail(QN_ERR_CONFIG, "compute.kernels: \"%s\" is not op=name; write for example matmul=reference",
                       item);
    *name++ = '\0';
    qn_op_t op = qn_op_find(item);
    if (op == QN_OP_COUNT) return unknown_op(item);
    const qn_kernel_t *kernel = find_kernel(table, op, name);
    if (!kernel) return unknown_kernel(table, op, name);
    if (kernel->isa & ~isa)
        return qn_fail(QN_ERR_CONFIG, "compute.kernels: this machine cannot run %s=%s; leave it out", item, name);
    if (kernel->accepts && !kernel->accepts(shape))
        return qn_fail(QN_ERR_CONFIG,
                       "compute.kernels: %s=%s does not take %u heads of %u, blocks of %u tokens, %s KV and %s "
                       "activations; leave it out",
                       item, name, shape->heads, shape->head_dim, shape->block_tokens, qn_scalar_name(shape->kv_scalar),
                       qn_scalar_name(shape->activations));
    set->chosen[op] = kernel;
    *named |= 1u << op;
    return QN_OK;
}
_Static_assert(QN_OP_COUNT <= 32, "an operation is a bit of `named`");

/* A launch that stands for several must not hide that one of them was asked for by name: it is taken in the implementation
 * of that name, or not at all. Unless it was named itself. */
static void follow_parts(const table_t *table, const qn_kernel_case_t *shape, uint32_t isa, uint32_t named,
                         const qn_kernel_set_t *best, qn_kernel_set_t *set)
{
    static const struct {
        qn_op_t fused, parts[4]; /* the first is what gives it its name */
    } FUSED[] = {
        {QN_OP_NORM_MATMUL, {QN_OP_MATMUL, QN_OP_RMSNORM, QN_OP_ACTIVATION, QN_OP_MATMUL}},
        {QN_OP_DECODE_ATTENTION, {QN_OP_ATTENTION_DECODE, QN_OP_RMSNORM, QN_OP_ROPE, QN_OP_KV_WRITE}},
    };
    for (size_t i = 0; i < sizeof FUSED / sizeof FUSED[0]; i++) {
        qn_op_t fused = FUSED[i].fused, main = FUSED[i].parts[0];
        if (named & 1u << fused) continue;
        if (set->chosen[main] != best->chosen[main]) {
            const qn_kernel_t *same = find_kernel(table, fused, set->chosen[main]->name);
            set->chosen[fused] = same && fits(same, shape, isa) ? same : NULL;
        }
        for (size_t p = 1; p < 4; p++)
            if (set->chosen[FUSED[i].parts[p]] != best->chosen[FUSED[i].parts[p]] && FUSED[i].parts[p] != main)
                set->chosen[fused] = NULL;
    }
}

qn_err_t qn_kernels_choose_from(const qn_kernel_t *rows, size_t count, const char *choice,
                                const qn_kernel_case_t *shape, uint32_t isa, qn_kernel_set_t *ret_set)
{
    const table_t whole = {rows, count}, *table = &whole;
    static const char REFERENCE[] = "reference";
    const size_t length_of_reference = sizeof REFERENCE - 1;
    qn_kernel_set_t best, set;
    uint32_t named = 0;
    bool reference = strncmp(choice, REFERENCE, length_of_reference) == 0 &&
                     (choice[length_of_reference] == '\0' || choice[length_of_reference] == ',');
    choose_best(table, shape, reference ? 0 : isa, reference, &best);
    set = best;
    if (reference) choice += length_of_reference + (choice[length_of_reference] == ',');
    for (const char *at = choice; *at;) {
        size_t length = strcspn(at, ",");
        char item[QN_NAME_MAX];
        if (length >= sizeof item)
            return qn_fail(QN_ERR_CONFIG, "compute.kernels: \"%.40s...\" is too long for op=name", at);
        memcpy(item, at, length);
        item[length] = '\0';
        qn_err_t err = apply_item(table, item, shape, isa, &set, &named);
        if (err) return err;
        at += length + (at[length] == ',');
    }
    follow_parts(table, shape, isa, named, &best, &set);
    *ret_set = set;
    return QN_OK;
}

/* ---- what KV depends on ---- */

/* Operations whose implementation changes no key and no value: what comes after the last layer, and what only moves. */
static bool is_beside_kv(unsigned op)
{
    switch ((qn_op_t)op) {
    case QN_OP_SLOT_UPDATE:
    case QN_OP_BLOCK_COPY:
    case QN_OP_STEP_INPUT:
    case QN_OP_SOFTCAP:
    case QN_OP_GATHER_ROWS:
    case QN_OP_LOGPROBS:
    case QN_OP_SAMPLER: return true;
    default: return false;
    }
}

uint64_t qn_kernels_fingerprint(const qn_kernel_set_t *set, uint64_t seed)
{
    uint64_t hash = seed;
    for (unsigned op = 0; op < QN_OP_COUNT; op++) {
        const qn_kernel_t *kernel = set->chosen[op];
        if (!kernel || is_beside_kv(op)) continue;
        const uint64_t object = qn_kernel_object_fingerprint(kernel);
        hash = qn_fingerprint(OP_NAMES[op], strlen(OP_NAMES[op]) + 1, hash);
        hash = qn_fingerprint(kernel->name, strlen(kernel->name) + 1, hash);
        hash = qn_fingerprint(&object, sizeof object, hash);
    }
    hash &= (UINT64_C(1) << 53) - 1; /* so that every reader of JSON has it exactly */
    return hash ? hash : 1;
}
