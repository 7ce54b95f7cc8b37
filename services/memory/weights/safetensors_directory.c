/* What is this?      Opens a Hugging Face directory: one file, or the shards that model.safetensors.index.json names.
 * State owned:       none; it fills a checkpoint.
 * Must never:        open a file outside the directory, whatever the index says.
 * Read next:         safetensors.c. */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/limits.h"
#include "services/memory/weights/safetensors_internal.h"

/* A shard is a plain file beside the index: anything that could leave the directory is refused. */
static qn_err_t check_shard_name(const char *name, const char *index_path)
{
    size_t length = strlen(name);
    if (length == 0 || length > 255 || name[0] == '.' || strchr(name, '/') || strchr(name, '\\'))
        return qn_fail(QN_ERR_INVALID, "%s: '%.64s' is not the name of a file beside the index", index_path, name);
    return QN_OK;
}

static int by_text(const void *left, const void *right)
{
    return strcmp(*(const char *const *)left, *(const char *const *)right);
}

/* The distinct files of the weight map, sorted; the names are views of `map`. At least one. */
static qn_err_t list_shards(json_t *map, const char *index_path, const char **names, size_t *ret_count)
{
    json_t *seen = json_object(), *value;
    size_t count = 0;
    const char *tensor;
    qn_err_t err = seen ? QN_OK : qn_fail(QN_ERR_NO_MEMORY, "%s: no memory", index_path);
    json_object_foreach(map, tensor, value)
    {
        const char *name = json_string_value(value);
        if (err) break;
        if (!name)
            err = qn_fail(QN_ERR_INVALID, "%s: the file of tensor '%.64s' is not a text", index_path, tensor);
        else if (json_object_get(seen, name))
            continue;
        else if ((err = check_shard_name(name, index_path)))
            break;
        else if (count == SAFETENSORS_FILES_MAX)
            err = qn_fail(QN_ERR_LIMIT, "%s: more than %d shards", index_path, SAFETENSORS_FILES_MAX);
        else if (json_object_set_new(seen, name, json_true()) < 0)
            err = qn_fail(QN_ERR_NO_MEMORY, "%s: no memory", index_path);
        else
            names[count++] = name;
    }
    json_decref(seen);
    if (!err && count == 0) err = qn_fail(QN_ERR_INVALID, "%s: weight_map is empty", index_path);
    if (err) return err;
    qsort(names, count, sizeof *names, by_text);
    *ret_count = count;
    return QN_OK;
}

/* Every tensor of the map must be in the file the map names. */
static qn_err_t check_weight_map(const safetensors_t *checkpoint, json_t *map, const char *index_path)
{
    const char *name;
    json_t *value;
    json_object_foreach(map, name, value)
    {
        const safetensors_tensor_t *tensor = safetensors_find(checkpoint, name);
        if (!tensor)
            return qn_fail(QN_ERR_INVALID, "%s: tensor '%.128s' is not in %.128s", index_path, name,
                           json_string_value(value));
        const char *path = checkpoint->files[tensor->file_index].path, *slash = strrchr(path, '/');
        if (strcmp(slash ? slash + 1 : path, json_string_value(value)) != 0)
            return qn_fail(QN_ERR_INVALID, "%s: tensor '%.128s' should be in %.128s but is in %s", index_path, name,
                           json_string_value(value), path);
    }
    return QN_OK;
}

static qn_err_t load_index(int directory_fd, const char *index_path, json_t **ret_index)
{
    int fd = openat(directory_fd, "model.safetensors.index.json", O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat info;
    if (fd < 0)
        return qn_fail(errno == ENOENT ? QN_ERR_NOT_FOUND : QN_ERR_IO,
                       "%s: %s (nor is there a model.safetensors); "
                       "model.load_format dummy invents weights",
                       index_path, strerror(errno));
    qn_err_t err = QN_OK;
    if (fstat(fd, &info) < 0 || !S_ISREG(info.st_mode))
        err = qn_fail(QN_ERR_INVALID, "%s: not a regular file", index_path);
    else if ((uint64_t)info.st_size > SAFETENSORS_HEADER_BYTES_MAX)
        err = qn_fail(QN_ERR_INVALID, "%s: more than %u bytes", index_path, SAFETENSORS_HEADER_BYTES_MAX);
    json_error_t error;
    if (!err) {
        *ret_index = json_loadfd(fd, JSON_REJECT_DUPLICATES, &error);
        if (!*ret_index) err = qn_fail(QN_ERR_INVALID, "%s:%d: %s", index_path, error.line, error.text);
    }
    close(fd);
    return err;
}

static qn_err_t open_shards(const json_t *index, int directory_fd, const char *directory, const char *index_path,
                            safetensors_t **ret_checkpoint)
{
    const char *names[SAFETENSORS_FILES_MAX];
    char path[QN_PATH_MAX + 256];
    size_t count = 0;
    json_t *map = json_object_get(index, "weight_map");
    if (!json_is_object(map)) return qn_fail(QN_ERR_INVALID, "%s: has no weight_map", index_path);
    qn_err_t err = list_shards(map, index_path, names, &count);
    if (err) return err;
    safetensors_t *checkpoint = safetensors_new(count);
    if (!checkpoint) return qn_fail(QN_ERR_NO_MEMORY, "%s: no memory", index_path);
    for (size_t i = 0; !err && i < count; i++) {
        snprintf(path, sizeof path, "%s/%s", directory, names[i]);
        err = safetensors_add_file(checkpoint, directory_fd, names[i], path);
    }
    if (!err) err = safetensors_build_index(checkpoint);
    if (!err) err = check_weight_map(checkpoint, map, index_path);
    if (err)
        safetensors_close(&checkpoint);
    else
        *ret_checkpoint = checkpoint;
    return err;
}

qn_err_t safetensors_open_directory(const char *directory, safetensors_t **ret_checkpoint)
{
    char path[QN_PATH_MAX + 256];
    json_t *index = NULL;
    int directory_fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory_fd < 0) return qn_fail(QN_ERR_IO, "%s: %s", directory, strerror(errno));
    qn_err_t err;
    if (faccessat(directory_fd, "model.safetensors", F_OK, 0) == 0) {
        snprintf(path, sizeof path, "%s/model.safetensors", directory);
        err = safetensors_open_one(directory_fd, "model.safetensors", path, ret_checkpoint);
    } else {
        snprintf(path, sizeof path, "%s/model.safetensors.index.json", directory);
        err = load_index(directory_fd, path, &index);
        if (!err) {
            err = open_shards(index, directory_fd, directory, path, ret_checkpoint);
            json_decref(index);
        }
    }
    close(directory_fd);
    return err;
}
