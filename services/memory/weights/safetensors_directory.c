/* What is this?      Opens a Hugging Face directory: which of its files are the checkpoint (safetensors.h has the rule).
 * State owned:       none; it fills a checkpoint.
 * Must never:        open a file outside the directory, whatever the index says; depend on what an index says of a tensor.
 * Read next:         safetensors.c. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/file.h"
#include "common/limits.h"
#include "common/model/python_json.h"
#include "services/memory/weights/safetensors_internal.h"

#define WHOLE "model.safetensors"
#define INDEX "model.safetensors.index.json"
#define NAME_BYTES_MAX 255 /* of a file, as Linux has it */
#define WARNED_MAX 3       /* tensors of one kind that are named */

typedef struct {
    const char *directory; /* its path */
    int fd;
    char index_path[QN_PATH_MAX + 64];
    size_t count;
    char *names[SAFETENSORS_FILES_MAX]; /* of the files that should be there; owned */
} listing_t;

static int by_text(const void *left, const void *right)
{
    return strcmp(*(const char *const *)left, *(const char *const *)right);
}

static qn_err_t list_name(listing_t *listing, const char *name)
{
    if (listing->count == SAFETENSORS_FILES_MAX)
        return qn_fail(QN_ERR_LIMIT, "%s: more than %d weight files", listing->directory, SAFETENSORS_FILES_MAX);
    char *copy = strdup(name);
    if (!copy) return qn_fail(QN_ERR_NO_MEMORY, "%s: no memory", listing->directory);
    listing->names[listing->count++] = copy;
    return QN_OK;
}

static void forget_names(listing_t *listing)
{
    while (listing->count)
        free(listing->names[--listing->count]);
}

/* ---- the index ---- */

/* A shard is a plain file beside the index: anything that could leave the directory is refused. */
static qn_err_t check_shard_name(const char *name, const char *index_path)
{
    size_t length = strlen(name);
    if (length == 0 || length > NAME_BYTES_MAX || name[0] == '.' || strchr(name, '/') || strchr(name, '\\'))
        return qn_fail(QN_ERR_INVALID, "%s: '%.64s' is not the name of a file beside the index", index_path, name);
    return QN_OK;
}

/* The distinct files of the weight map. At least one. */
static qn_err_t list_shards(listing_t *listing, json_t *map)
{
    json_t *seen = json_object(), *value;
    const char *tensor;
    qn_err_t err = seen ? QN_OK : qn_fail(QN_ERR_NO_MEMORY, "%s: no memory", listing->index_path);
    json_object_foreach(map, tensor, value)
    {
        const char *name = json_string_value(value);
        if (err) break;
        if (!name)
            err = qn_fail(QN_ERR_INVALID, "%s: the file of tensor '%.64s' is not a text", listing->index_path, tensor);
        else if (json_object_get(seen, name))
            continue;
        else if ((err = check_shard_name(name, listing->index_path)))
            break;
        else if (json_object_set_new(seen, name, json_true()) < 0)
            err = qn_fail(QN_ERR_NO_MEMORY, "%s: no memory", listing->index_path);
        else
            err = list_name(listing, name);
    }
    json_decref(seen);
    if (!err && listing->count == 0)
        err = qn_fail(QN_ERR_INVALID,
                      "%s: weight_map is empty; without this file the weights are found by their files' names",
                      listing->index_path);
    return err;
}

static qn_err_t load_index(const listing_t *listing, json_t **ret_index)
{
    char *text = NULL;
    size_t bytes;
    json_error_t error;
    qn_err_t err = qn_file_read(listing->index_path, SAFETENSORS_HEADER_BYTES_MAX, &text, &bytes);
    if (err) return err;
    json_t *index = qn_python_json_load(text, bytes, &error);
    free(text);
    if (!index) return qn_fail(QN_ERR_INVALID, "%s:%d: %s", listing->index_path, error.line, error.text);
    if (!json_is_object(json_object_get(index, "weight_map"))) {
        json_decref(index);
        return qn_fail(QN_ERR_INVALID,
                       "%s: has no weight_map; without this file the weights are found by their files' names",
                       listing->index_path);
    }
    *ret_index = index;
    return QN_OK;
}

static bool is_absent(const safetensors_t *checkpoint, const char *name)
{
    for (size_t i = 0; i < checkpoint->absent_count; i++)
        if (strcmp(checkpoint->absent[i], name) == 0) return true;
    return false;
}

static const char *file_name(const safetensors_t *checkpoint, const safetensors_tensor_t *tensor)
{
    const char *path = checkpoint->files[tensor->file_index].path, *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* Says where the map and the files differ. A tensor of a file that is not there is that file's matter. */
static void compare_weight_map(safetensors_t *checkpoint, json_t *map)
{
    const char *name;
    json_t *value;
    size_t stale = 0, moved = 0;
    json_object_foreach(map, name, value)
    {
        const char *wanted = json_string_value(value);
        const safetensors_tensor_t *tensor = safetensors_find(checkpoint, name);
        if (!tensor && !is_absent(checkpoint, wanted) && stale++ < WARNED_MAX)
            qn_model_warn(&checkpoint->warnings, INDEX ": tensor '%.128s' is in no file", name);
        if (tensor && strcmp(file_name(checkpoint, tensor), wanted) != 0 && moved++ < WARNED_MAX)
            qn_model_warn(&checkpoint->warnings,
                          INDEX ": tensor '%.128s' is said to be in %.64s, but is taken from %.64s", name, wanted,
                          file_name(checkpoint, tensor));
    }
    if (stale > WARNED_MAX) qn_model_warn(&checkpoint->warnings, INDEX ": %zu of its tensors are in no file", stale);
    if (moved > WARNED_MAX)
        qn_model_warn(&checkpoint->warnings, INDEX ": %zu of its tensors are in other files than it says", moved);
}

/* ---- without an index ---- */

/* "model-00002-of-00003.safetensors": true, the part and the whole, and how long "model-" is. */
static bool is_numbered(const char *name, size_t *ret_prefix, unsigned *ret_part, unsigned *ret_parts)
{
    const char *of = NULL;
    for (const char *at = name; (at = strstr(at, "-of-")); at++)
        of = at;
    if (!of || of == name) return false;
    const char *digits = of;
    while (digits > name && digits[-1] >= '0' && digits[-1] <= '9')
        digits--;
    int end = -1;
    if (digits == of || digits == name || digits[-1] != '-' || of - digits > 9) return false;
    if (sscanf(digits, "%9u-of-%9u.safetensors%n", ret_part, ret_parts, &end) != 2 || end < 0 || digits[end])
        return false;
    *ret_prefix = (size_t)(digits - name);
    return *ret_part >= 1 && *ret_part <= *ret_parts && *ret_parts <= SAFETENSORS_FILES_MAX;
}

static bool is_weights_file(const char *name)
{
    static const char END[] = ".safetensors";
    size_t length = strlen(name);
    return name[0] != '.' && length > strlen(END) && strcmp(name + length - strlen(END), END) == 0 &&
           strncmp(name, "adapter_", 8) != 0;
}

static qn_err_t list_entries(listing_t *listing)
{
    int fd = dup(listing->fd);
    DIR *directory = fd < 0 ? NULL : fdopendir(fd);
    if (!directory) {
        qn_err_t err = qn_fail(QN_ERR_IO, "%s: %s", listing->directory, strerror(errno));
        if (fd >= 0) close(fd);
        return err;
    }
    qn_err_t err = QN_OK;
    for (struct dirent *entry; !err && (entry = readdir(directory));)
        if (is_weights_file(entry->d_name)) err = list_name(listing, entry->d_name);
    closedir(directory);
    return err;
}

static bool same_set(const char *left, const char *right)
{
    size_t prefix, other_prefix;
    unsigned part, parts, other_parts;
    return is_numbered(left, &prefix, &part, &parts) && is_numbered(right, &other_prefix, &part, &other_parts) &&
           parts == other_parts && prefix == other_prefix && memcmp(left, right, prefix) == 0;
}

/* Makes the listing that of one numbered set, with the parts that are not there. */
static qn_err_t list_set(listing_t *listing, const char *member)
{
    char text[NAME_BYTES_MAX + 1], name[NAME_BYTES_MAX + 64];
    size_t prefix;
    unsigned part, parts;
    snprintf(text, sizeof text, "%s", member);
    is_numbered(text, &prefix, &part, &parts);
    int digits = (int)strspn(text + prefix, "0123456789");
    int total = (int)(strlen(text) - prefix) - digits - (int)strlen("-of-.safetensors");
    forget_names(listing);
    for (unsigned i = 1; i <= parts; i++) {
        snprintf(name, sizeof name, "%.*s%0*u-of-%0*u.safetensors", (int)prefix, text, digits, i, total, parts);
        qn_err_t err = list_name(listing, name);
        if (err) return err;
    }
    return QN_OK;
}

/* The names decide: a numbered set is a checkpoint, and other files beside it are not. */
static qn_err_t list_by_names(listing_t *listing, safetensors_t *checkpoint)
{
    size_t prefix;
    unsigned part, parts;
    const char *set = NULL;
    qn_err_t err = list_entries(listing);
    if (err) return err;
    if (listing->count == 0)
        return qn_fail(QN_ERR_NOT_FOUND,
                       "%s: has neither " WHOLE " nor " INDEX
                       " nor another .safetensors file; model.load_format dummy needs none",
                       listing->directory);
    for (size_t i = 0; i < listing->count; i++) {
        const char *name = listing->names[i];
        if (!is_numbered(name, &prefix, &part, &parts) || (set && same_set(set, name))) continue;
        if (set)
            return qn_fail(QN_ERR_INVALID,
                           "%s: %s and %s are of two sets of files, and there is no " INDEX
                           ": remove the set that does not belong to the model",
                           listing->directory, set, name);
        set = name;
    }
    if (set) err = list_set(listing, set);
    checkpoint->equal_names_refused = !set;
    if (!err && listing->count > 1)
        qn_model_warn(&checkpoint->warnings, "there is no " INDEX ": the weights are the %zu files %.100s to %.100s",
                      listing->count, listing->names[0], listing->names[listing->count - 1]);
    else if (!err)
        qn_model_warn(&checkpoint->warnings, "there is no " WHOLE ": the weights are %.200s", listing->names[0]);
    return err;
}

/* ---- opening ---- */

static qn_err_t open_listed(listing_t *listing, safetensors_t *checkpoint)
{
    char path[QN_PATH_MAX + NAME_BYTES_MAX + 2];
    qn_err_t err = QN_OK;
    free(checkpoint->files);
    checkpoint->files = calloc(listing->count, sizeof *checkpoint->files);
    checkpoint->absent = calloc(listing->count, sizeof *checkpoint->absent);
    if (!checkpoint->files || !checkpoint->absent)
        return qn_fail(QN_ERR_NO_MEMORY, "%s: no memory", listing->directory);
    for (size_t i = 0; i < listing->count; i++)
        checkpoint->files[i].fd = -1;
    qsort(listing->names, listing->count, sizeof *listing->names, by_text);
    for (size_t i = 0; !err && i < listing->count; i++) {
        const char *name = listing->names[i];
        snprintf(path, sizeof path, "%s/%s", listing->directory, name);
        if (qn_file_exists(listing->fd, name))
            err = safetensors_add_file(checkpoint, listing->fd, name, path);
        else
            checkpoint->absent[checkpoint->absent_count++] = qn_arena_strndup(&checkpoint->arena, name, strlen(name));
    }
    if (!err && checkpoint->absent_count) {
        char absent[300];
        safetensors_absent(checkpoint, absent, sizeof absent);
        if (checkpoint->file_count == 0)
            return qn_fail(QN_ERR_NOT_FOUND, "%s: %zu of the %zu files that hold the weights are missing: %s",
                           listing->directory, listing->count, listing->count, absent);
        qn_model_warn(&checkpoint->warnings, "%zu of the %zu weight files are not there: %s", checkpoint->absent_count,
                      listing->count, absent);
    }
    return err ? err : safetensors_build_index(checkpoint);
}

static qn_err_t open_in(listing_t *listing, safetensors_t *checkpoint)
{
    json_t *index = NULL, *map = NULL;
    qn_err_t err = QN_OK;
    bool has_index = qn_file_exists(listing->fd, INDEX);
    if (qn_file_exists(listing->fd, WHOLE)) {
        if (has_index)
            qn_model_warn(&checkpoint->warnings, "both " WHOLE " and " INDEX " are there: the index is left out");
        err = list_name(listing, WHOLE);
    } else if (has_index) {
        err = load_index(listing, &index);
        map = json_object_get(index, "weight_map");
        if (!err) err = list_shards(listing, map);
    } else {
        err = list_by_names(listing, checkpoint);
    }
    if (!err) err = open_listed(listing, checkpoint);
    if (!err && map) compare_weight_map(checkpoint, map);
    json_decref(index);
    return err;
}

qn_err_t safetensors_open_directory(const char *directory, safetensors_t **ret_checkpoint)
{
    listing_t listing = {.directory = directory, .fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
    if (listing.fd < 0) return qn_fail(QN_ERR_IO, "%s: %s", directory, strerror(errno));
    snprintf(listing.index_path, sizeof listing.index_path, "%s/" INDEX, directory);
    safetensors_t *checkpoint = safetensors_new(0);
    qn_err_t err = checkpoint ? open_in(&listing, checkpoint) : qn_fail(QN_ERR_NO_MEMORY, "%s: no memory", directory);
    forget_names(&listing);
    close(listing.fd);
    if (err)
        safetensors_close(&checkpoint);
    else
        *ret_checkpoint = checkpoint;
    return err;
}
