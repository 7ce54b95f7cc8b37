/* What is this?      The file with the fastest kernels of machines and models.
 * State owned:       none.
 * Must never:        lose another machine's entry; leave a half-written file.
 * Read next:         tune_table.h (the format), autotune.c (who measures). */
#include "services/compute/kernels/tune_table.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/build.h"
#include "common/file.h"

#define FORMAT 1
#define FILE_BYTES_MAX (16u << 20)

/* "model name" of /proc/cpuinfo, without its line's rest. */
static void name_cpu(char ret_name[128])
{
    char line[256];
    FILE *file = fopen("/proc/cpuinfo", "re");
    snprintf(ret_name, 128, "a CPU");
    while (file && fgets(line, sizeof line, file)) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || !colon) continue;
        snprintf(ret_name, 128, "%.*s", (int)strcspn(colon + 2, "\n"), colon + 2);
        break;
    }
    if (file) fclose(file);
}

void tune_table_key(const char *backend, const char *device, uint32_t isa, const qn_kernel_case_t *shape,
                    const char *weights, bool deterministic, char ret_key[TUNE_KEY_MAX])
{
    char cpu[128] = "";
    bool host = strcmp(backend, "cpu") == 0;
    if (host) name_cpu(cpu);
    snprintf(ret_key, TUNE_KEY_MAX,
             "%s%s%s, isa 0x%x; heads %u of %u, kv heads %u, width %u, mlp %u, vocab %u, blocks of %u, kv %s, "
             "activations %s, weights %s%s",
             cpu, host ? ", " : "", device, isa, shape->heads, shape->head_dim, shape->kv_heads, shape->hidden,
             shape->intermediate, shape->vocab, shape->block_tokens, qn_scalar_name(shape->kv_scalar),
             qn_scalar_name(shape->activations), weights, deterministic ? ", deterministic" : "");
}

/* Returns owned; NULL without a failure: there is no file. */
static qn_err_t load(const char *path, json_t **ret_root)
{
    char *text;
    size_t bytes;
    json_error_t where;
    *ret_root = NULL;
    qn_err_t err = qn_file_read(path, FILE_BYTES_MAX, &text, &bytes);
    if (err) return err == QN_ERR_NOT_FOUND ? QN_OK : err;
    json_t *root = json_loadb(text, bytes, 0, &where);
    free(text);
    bool good = json_integer_value(json_object_get(root, "format")) == FORMAT &&
                json_is_object(json_object_get(root, "machines"));
    if (good) {
        *ret_root = root;
        return QN_OK;
    }
    json_decref(root);
    return qn_fail(QN_ERR_INVALID,
                   "compute.autotune_table: %s is no table of format %d; delete it or name another file", path, FORMAT);
}

qn_err_t tune_table_read(const char *path, const char *key, char ret_tuned[LIVE_CHOICE_MAX])
{
    json_t *root;
    const char *op;
    json_t *name;
    size_t used = 0;
    ret_tuned[0] = '\0';
    qn_err_t err = load(path, &root);
    json_t *chosen = json_object_get(json_object_get(json_object_get(root, "machines"), key), "chosen");
    json_object_foreach(chosen, op, name)
    {
        const char *text = json_string_value(name);
        if (!text || used + strlen(op) + strlen(text) + 3 > LIVE_CHOICE_MAX) continue;
        used += (size_t)snprintf(ret_tuned + used, LIVE_CHOICE_MAX - used, "%s%s=%s", used ? "," : "", op, text);
    }
    json_decref(root);
    return err;
}

static qn_err_t save(const char *path, const json_t *root)
{
    char fresh[QN_PATH_MAX + 8];
    snprintf(fresh, sizeof fresh, "%s.new", path);
    char *text = json_dumps(root, JSON_INDENT(2));
    int fd = text ? open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644) : -1;
    bool good = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text) && fsync(fd) == 0;
    if (fd >= 0) close(fd);
    free(text);
    if (good && rename(fresh, path) == 0) return QN_OK;
    return qn_fail(QN_ERR_IO, "compute.autotune_table: %s: %s", path, strerror(errno));
}

static json_t *entry_of(json_t *root, const char *key)
{
    json_t *machines = json_object_get(root, "machines"), *entry = json_object_get(machines, key);
    if (json_is_object(entry)) return entry;
    json_object_set_new(machines, key, json_object());
    return json_object_get(machines, key);
}

qn_err_t tune_table_write(const char *path, const char *key, const json_t *chosen, const json_t *measured)
{
    char at[32];
    time_t now = time(NULL);
    json_t *root;
    qn_err_t err = load(path, &root);
    if (err) return err;
    if (!root) root = json_pack("{s:i, s:{}}", "format", FORMAT, "machines");
    json_t *entry = entry_of(root, key), *all = json_object_get(entry, "chosen");
    if (json_is_object(all))
        json_object_update(all, (json_t *)(uintptr_t)chosen);
    else
        json_object_set_new(entry, "chosen", json_deep_copy(chosen));
    json_object_set_new(entry, "measured", json_deep_copy(measured));
    strftime(at, sizeof at, "%Y-%m-%dT%H:%M:%SZ", gmtime(&now));
    json_object_set_new(entry, "at", json_string(at));
    json_object_set_new(entry, "build", json_string(qn_build_id()));
    err = save(path, root);
    json_decref(root);
    return err;
}
