/* What is this?      The kernels that shared objects brought: what was loaded, checked for form, as rows of the registry.
 * State owned:       the loaded rows of this process, which only grow.
 * Must never:        believe an object's own words: every name and bit is checked. Right numbers are checked elsewhere
 *                    (services/compute/kernels/), in another process, before this one maps the object.
 * Read next:         kernels/plugin.h, loaded_launch.c. */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "kernels/cpu/loaded_internal.h"

qn_loaded_t qn_loaded[QN_LOADED_KERNELS_MAX];
static qn_kernel_t rows[QN_LOADED_KERNELS_MAX];
static char names[QN_LOADED_KERNELS_MAX][QN_PLUGIN_NAME_MAX];
static size_t row_count;

static bool is_name(const char *name)
{
    size_t length = strnlen(name, QN_PLUGIN_NAME_MAX);
    size_t good = strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_");
    return length > 0 && length < QN_PLUGIN_NAME_MAX && good == length && name[0] >= 'a' && name[0] <= 'z';
}

static qn_err_t check_kernel(const qn_plugin_kernel_t *kernel, const char *object)
{
    if (!kernel->operation || !kernel->name || !kernel->run)
        return qn_fail(QN_ERR_CONFIG, "%s: a kernel has no operation, no name or no function", object);
    qn_op_t op = qn_op_find(kernel->operation);
    if (op == QN_OP_COUNT || !qn_loaded_launch(op, 0))
        return qn_fail(
            QN_ERR_CONFIG,
            "%s: no operation \"%.40s\" for objects; there are rmsnorm, layernorm, activation, softcap, matmul, "
            "attention.prefill and attention.decode",
            object, kernel->operation);
    if (!is_name(kernel->name))
        return qn_fail(QN_ERR_CONFIG,
                       "%s: the name of its %s is not 1 to %d of a-z, 0-9 and _, beginning with a letter", object,
                       kernel->operation, QN_PLUGIN_NAME_MAX - 1);
    if (strcmp(kernel->name, "auto") == 0)
        return qn_fail(QN_ERR_CONFIG, "%s: \"auto\" is no name for a kernel: it means the best", object);
    size_t count;
    const qn_kernel_t *builtin = qn_kernels(&count);
    for (size_t i = 0; i < count; i++)
        if (builtin[i].op == op && strcmp(builtin[i].name, kernel->name) == 0)
            return qn_fail(QN_ERR_CONFIG, "%s: %s=%s is built in; give yours another name", object, kernel->operation,
                           kernel->name);
    uint32_t possible = QN_PLUGIN_F32 | QN_PLUGIN_BF16;
    if (op == QN_OP_MATMUL) possible |= QN_PLUGIN_INT8 | QN_PLUGIN_INT4;
    bool has_format = op != QN_OP_ACTIVATION && op != QN_OP_SOFTCAP;
    if (has_format && (!kernel->formats || kernel->formats & ~possible))
        return qn_fail(QN_ERR_CONFIG, "%s: the formats 0x%x of %s=%s are not some of 0x%x (QN_PLUGIN_F32, ...)", object,
                       kernel->formats, kernel->operation, kernel->name, possible);
    return QN_OK;
}

static qn_err_t check_object(const qn_kernel_plugin_t *plugin, const char *object)
{
    if (!plugin) return qn_fail(QN_ERR_CONFIG, "%s: %s() returned nothing", object, QN_KERNEL_PLUGIN_SYMBOL);
    if (plugin->abi != QN_KERNEL_PLUGIN_ABI)
        return qn_fail(QN_ERR_CONFIG, "%s: made for kernel ABI %u, this build has %d; compile it again", object,
                       plugin->abi, QN_KERNEL_PLUGIN_ABI);
    if (plugin->count < 1 || plugin->count > QN_PLUGIN_KERNELS_MAX || !plugin->kernels)
        return qn_fail(QN_ERR_CONFIG, "%s: it has %u kernels; 1 to %d are possible", object, plugin->count,
                       QN_PLUGIN_KERNELS_MAX);
    if (row_count + plugin->count > QN_LOADED_KERNELS_MAX)
        return qn_fail(QN_ERR_LIMIT, "%s: %d kernels were loaded in this life of compute already; restart compute",
                       object, QN_LOADED_KERNELS_MAX);
    qn_err_t err = QN_OK;
    for (uint32_t i = 0; !err && i < plugin->count; i++)
        err = check_kernel(&plugin->kernels[i], object);
    return err;
}

static void add_row(const qn_plugin_kernel_t *kernel, const char *object, uint64_t fingerprint)
{
    size_t place = row_count++;
    qn_op_t op = qn_op_find(kernel->operation);
    qn_loaded[place].kernel = *kernel;
    qn_loaded[place].fingerprint = fingerprint;
    snprintf(qn_loaded[place].object, sizeof qn_loaded[place].object, "%s", object);
    snprintf(names[place], sizeof names[place], "%s", kernel->name);
    rows[place] = (qn_kernel_t){.op = op,
                                .name = names[place],
                                .accepts = qn_loaded_accepts(place),
                                .launch = qn_loaded_launch(op, place)};
}

qn_err_t qn_kernels_load(int fd, const char *name, uint64_t fingerprint, size_t *ret_first, size_t *ret_count)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) return qn_fail(QN_ERR_CONFIG, "%s: %s", name, dlerror());
    const qn_kernel_plugin_t *(*entry)(void);
    void *symbol = dlsym(library, QN_KERNEL_PLUGIN_SYMBOL);
    memcpy(&entry, &symbol, sizeof entry); /* ISO C has no cast from object to function pointer */
    const qn_kernel_plugin_t *plugin = symbol ? entry() : NULL;
    qn_err_t err = symbol ? check_object(plugin, name)
                          : qn_fail(QN_ERR_CONFIG, "%s: it does not export %s()", name, QN_KERNEL_PLUGIN_SYMBOL);
    if (err) {
        dlclose(library);
        return err;
    }
    *ret_first = row_count;
    *ret_count = plugin->count;
    for (uint32_t i = 0; i < plugin->count; i++)
        add_row(&plugin->kernels[i], name, fingerprint);
    return QN_OK;
}

const qn_kernel_t *qn_kernels_loaded(size_t *ret_count)
{
    *ret_count = row_count;
    return rows;
}

const qn_kernel_t *qn_kernels_find_loaded(qn_op_t op, const char *name)
{
    for (size_t i = row_count; i-- > 0;)
        if (rows[i].op == op && strcmp(rows[i].name, name) == 0) return &rows[i];
    return NULL;
}

/* NULL: it is none of them. */
static const qn_loaded_t *loaded_of(const qn_kernel_t *kernel)
{
    bool ours = kernel >= rows && kernel < rows + row_count;
    return ours ? &qn_loaded[kernel - rows] : NULL;
}

uint32_t qn_kernel_formats(const qn_kernel_t *kernel)
{
    const qn_loaded_t *loaded = loaded_of(kernel);
    return loaded ? loaded->kernel.formats : 0;
}

const char *qn_kernel_object(const qn_kernel_t *kernel)
{
    const qn_loaded_t *loaded = loaded_of(kernel);
    return loaded ? loaded->object : NULL;
}

uint64_t qn_kernel_object_fingerprint(const qn_kernel_t *kernel)
{
    const qn_loaded_t *loaded = loaded_of(kernel);
    return loaded ? loaded->fingerprint : 0;
}
