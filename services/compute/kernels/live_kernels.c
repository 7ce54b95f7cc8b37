/* What is this?      The file of what was set live, and the layers of a choice of kernels.
 * State owned:       none.
 * Must never:        let a half-written file be read.
 * Read next:         kernels/kernels.h (what a choice is), kernel_desk.c (who changes it). */
#include "services/compute/kernels/live_kernels.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/build.h"
#include "common/file.h"

#define FILE_BYTES_MAX (1u << 20)

static qn_err_t file_path(const char *run_dir, const char *suffix, char ret_path[QN_PATH_MAX + 64])
{
    snprintf(ret_path, QN_PATH_MAX + 64, "%s/live", run_dir);
    if (mkdir(ret_path, 0700) != 0 && errno != EEXIST) return qn_fail(QN_ERR_IO, "%s: %s", ret_path, strerror(errno));
    snprintf(ret_path, QN_PATH_MAX + 64, "%s/live/compute.kernels%s", run_dir, suffix);
    return QN_OK;
}

/* ---- reading ---- */

static void take_text(const json_t *from, const char *key, char *ret_text, size_t size)
{
    const char *text = json_string_value(json_object_get(from, key));
    snprintf(ret_text, size, "%s", text ? text : "");
}

static unsigned read_objects(const json_t *list, live_object_t *ret_objects)
{
    unsigned count = 0;
    size_t index;
    json_t *item;
    json_array_foreach(list, index, item)
    {
        if (count == LIVE_OBJECTS_MAX) break;
        live_object_t *object = &ret_objects[count];
        char fingerprint[32];
        take_text(item, "path", object->path, sizeof object->path);
        take_text(item, "fingerprint", fingerprint, sizeof fingerprint);
        object->fingerprint = strtoull(fingerprint, NULL, 16);
        const json_t *kernels = json_object_get(item, "kernels");
        for (size_t i = 0; i < json_array_size(kernels) && i < QN_PLUGIN_KERNELS_MAX; i++) {
            const char *name = json_string_value(json_array_get(kernels, i));
            snprintf(object->kernels[object->kernel_count++], QN_NAME_MAX, "%s", name ? name : "");
        }
        count += object->path[0] != '\0' && object->fingerprint != 0;
    }
    return count;
}

static void read_chosen(const json_t *chosen, live_kernels_t *live)
{
    for (unsigned op = 0; op < QN_OP_COUNT; op++)
        take_text(chosen, qn_op_name((qn_op_t)op), live->chosen[op], sizeof live->chosen[op]);
}

qn_err_t live_kernels_read(const char *run_dir, live_kernels_t *ret_live)
{
    char path[QN_PATH_MAX + 64], *text;
    size_t bytes;
    memset(ret_live, 0, sizeof *ret_live);
    qn_err_t err = file_path(run_dir, "", path);
    if (!err) err = qn_file_read(path, FILE_BYTES_MAX, &text, &bytes);
    if (err) return err == QN_ERR_NOT_FOUND ? QN_OK : err;
    json_error_t where;
    json_t *root = json_loadb(text, bytes, 0, &where);
    free(text);
    if (!json_is_object(root)) {
        json_decref(root);
        return qn_fail(QN_ERR_INVALID, "%s is no JSON object (line %d): delete it", path, where.line);
    }
    ret_live->epoch = (uint32_t)json_integer_value(json_object_get(root, "epoch"));
    take_text(root, "build", ret_live->build, sizeof ret_live->build);
    take_text(root, "configured", ret_live->configured, sizeof ret_live->configured);
    read_chosen(json_object_get(root, "kernels"), ret_live);
    ret_live->object_count = read_objects(json_object_get(root, "objects"), ret_live->objects);
    ret_live->withdrawn_count = read_objects(json_object_get(root, "withdrawn"), ret_live->withdrawn);
    json_decref(root);
    return QN_OK;
}

/* ---- writing ---- */

static json_t *write_objects(const live_object_t *objects, unsigned count)
{
    json_t *list = json_array();
    for (unsigned i = 0; i < count; i++) {
        char fingerprint[32];
        json_t *kernels = json_array();
        snprintf(fingerprint, sizeof fingerprint, "%016" PRIx64, objects[i].fingerprint);
        for (unsigned k = 0; k < objects[i].kernel_count; k++)
            json_array_append_new(kernels, json_string(objects[i].kernels[k]));
        json_array_append_new(list, json_pack("{s:s, s:s, s:o}", "path", objects[i].path, "fingerprint", fingerprint,
                                              "kernels", kernels));
    }
    return list;
}

static json_t *write_chosen(const live_kernels_t *live)
{
    json_t *chosen = json_object();
    for (unsigned op = 0; op < QN_OP_COUNT; op++)
        if (live->chosen[op][0]) json_object_set_new(chosen, qn_op_name((qn_op_t)op), json_string(live->chosen[op]));
    return chosen;
}

static qn_err_t write_text(const char *path, const char *text)
{
    size_t bytes = strlen(text);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) return qn_fail(QN_ERR_IO, "%s: %s", path, strerror(errno));
    ssize_t written = write(fd, text, bytes);
    bool good = written == (ssize_t)bytes && fsync(fd) == 0;
    qn_err_t err = good ? QN_OK : qn_fail(QN_ERR_IO, "%s: %s", path, strerror(errno));
    close(fd);
    return err;
}

qn_err_t live_kernels_write(const char *run_dir, const live_kernels_t *live)
{
    char path[QN_PATH_MAX + 64], fresh[QN_PATH_MAX + 64];
    qn_err_t err = file_path(run_dir, "", path);
    if (!err) err = file_path(run_dir, ".new", fresh);
    if (err) return err;
    json_t *root = json_pack("{s:i, s:s, s:s, s:o, s:o, s:o}", "epoch", (int)live->epoch, "build", qn_build_id(),
                             "configured", live->configured, "kernels", write_chosen(live), "objects",
                             write_objects(live->objects, live->object_count), "withdrawn",
                             write_objects(live->withdrawn, live->withdrawn_count));
    char *text = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
    json_decref(root);
    if (!text) return qn_fail(QN_ERR_NO_MEMORY, "no memory for %s", path);
    err = write_text(fresh, text);
    free(text);
    if (!err && rename(fresh, path) != 0) err = qn_fail(QN_ERR_IO, "%s: %s", path, strerror(errno));
    return err;
}

/* ---- objects ---- */

/* "op=name" of the object? */
static bool object_has(const live_object_t *object, const char *item, size_t bytes)
{
    for (unsigned i = 0; i < object->kernel_count; i++)
        if (strlen(object->kernels[i]) == bytes && memcmp(object->kernels[i], item, bytes) == 0) return true;
    return false;
}

static bool is_withdrawn(const live_kernels_t *live, const char *item, size_t bytes)
{
    for (unsigned i = 0; i < live->object_count; i++)
        if (object_has(&live->objects[i], item, bytes)) return false; /* another object has it */
    for (unsigned i = 0; i < live->withdrawn_count; i++)
        if (object_has(&live->withdrawn[i], item, bytes)) return true;
    return false;
}

void live_kernels_withdraw(live_kernels_t *live)
{
    for (unsigned i = 0; i < live->object_count; i++) {
        if (live_kernels_withdrawn(live, live->objects[i].fingerprint)) continue;
        if (live->withdrawn_count == LIVE_OBJECTS_MAX)
            memmove(live->withdrawn, live->withdrawn + 1, --live->withdrawn_count * sizeof *live->withdrawn);
        live->withdrawn[live->withdrawn_count++] = live->objects[i];
    }
    live->object_count = 0;
    for (unsigned op = 0; op < QN_OP_COUNT; op++) {
        char item[2 * QN_NAME_MAX];
        int bytes = snprintf(item, sizeof item, "%s=%s", qn_op_name((qn_op_t)op), live->chosen[op]);
        if (live->chosen[op][0] && is_withdrawn(live, item, (size_t)bytes)) live->chosen[op][0] = '\0';
    }
}

const live_object_t *live_kernels_withdrawn(const live_kernels_t *live, uint64_t fingerprint)
{
    for (unsigned i = 0; i < live->withdrawn_count; i++)
        if (live->withdrawn[i].fingerprint == fingerprint) return &live->withdrawn[i];
    return NULL;
}

qn_err_t live_kernels_add_object(live_kernels_t *live, const live_object_t *object)
{
    unsigned place = 0;
    while (place < live->object_count && strcmp(live->objects[place].path, object->path) != 0)
        place++;
    if (place == LIVE_OBJECTS_MAX)
        return qn_fail(QN_ERR_LIMIT, "%d objects are loaded already; restart compute with fewer", LIVE_OBJECTS_MAX);
    live->objects[place] = *object;
    if (place == live->object_count) live->object_count++;
    return QN_OK;
}

/* ---- the choice ---- */

static qn_err_t append(char *choice, const char *item, size_t bytes)
{
    size_t used = strlen(choice);
    if (bytes == 0) return QN_OK;
    if (used + bytes + 2 > LIVE_CHOICE_MAX)
        return qn_fail(QN_ERR_LIMIT, "the choice of kernels is longer than %d bytes", LIVE_CHOICE_MAX);
    snprintf(choice + used, LIVE_CHOICE_MAX - used, "%s%.*s", used ? "," : "", (int)bytes, item);
    return QN_OK;
}

void live_kernels_list(const live_kernels_t *live, char ret_list[LIVE_CHOICE_MAX])
{
    ret_list[0] = '\0';
    for (unsigned op = 0; op < QN_OP_COUNT; op++) {
        char item[2 * QN_NAME_MAX];
        if (!live->chosen[op][0]) continue;
        int bytes = snprintf(item, sizeof item, "%s=%s", qn_op_name((qn_op_t)op), live->chosen[op]);
        qn_err_t err = append(ret_list, item, (size_t)bytes);
        (void)err; /* QN_OP_COUNT items fit */
    }
}

qn_err_t live_kernels_compose(const live_kernels_t *live, const char *configured, const char *tuned,
                              char ret_choice[LIVE_CHOICE_MAX])
{
    char list[LIVE_CHOICE_MAX];
    bool reference = strncmp(configured, "reference", 9) == 0 && (configured[9] == '\0' || configured[9] == ',');
    ret_choice[0] = '\0';
    qn_err_t err = reference ? QN_OK : append(ret_choice, tuned, strlen(tuned));
    for (const char *at = configured; !err && *at;) {
        size_t bytes = strcspn(at, ",");
        if (!is_withdrawn(live, at, bytes)) err = append(ret_choice, at, bytes);
        at += bytes + (at[bytes] == ',');
    }
    live_kernels_list(live, list);
    return err ? err : append(ret_choice, list, strlen(list));
}
