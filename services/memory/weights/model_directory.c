/* What is this?      Reads what a model directory says of itself.
 * State owned:       the text and the parsed configuration.
 * Must never:        guess: a file that is there and cannot be read is an error.
 * Read next:         common/model/model_config.h. */
#include "services/memory/weights/model_directory.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/file.h"
#include "common/paths.h"

/* Returns owned text in *ret_text, NULL when there is no such file and it may be missing. */
static qn_err_t read_text(const char *directory, const char *name, bool may_miss, char **ret_text, size_t *ret_bytes)
{
    char path[QN_PATH_MAX + 64];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    *ret_text = NULL;
    *ret_bytes = 0;
    qn_err_t err = qn_file_read(path, MODEL_DIRECTORY_TEXT_MAX, ret_text, ret_bytes);
    if (err != QN_ERR_NOT_FOUND) return err;
    if (may_miss) return QN_OK;
    return qn_fail(QN_ERR_NOT_FOUND, "%s: no such file (model.path must be a Hugging Face model directory)", path);
}

static qn_err_t choose_id(const qn_config_values_t *values, model_directory_t *directory)
{
    const char *id = values->model.id;
    if (!id[0]) {
        const char *slash = strrchr(directory->path, '/');
        id = slash && slash[1] ? slash + 1 : directory->path;
    }
    if (strlen(id) >= sizeof directory->id)
        return qn_fail(QN_ERR_CONFIG, "model.id: more than %zu bytes", sizeof directory->id - 1);
    strcpy(directory->id, id);
    return QN_OK;
}

static qn_err_t choose_length(const qn_config_values_t *values, model_directory_t *directory)
{
    uint32_t most = directory->config.max_positions;
    if (most > QN_PROMPT_TOKENS_MAX) most = QN_PROMPT_TOKENS_MAX;
    directory->max_model_len_asked = values->model.max_model_len != 0;
    if (values->model.max_model_len > most)
        return qn_fail(QN_ERR_CONFIG, "model.max_model_len is %" PRIu64 ", but %s can do %" PRIu32 " tokens",
                       values->model.max_model_len, directory->id, most);
    directory->max_model_len = directory->max_model_len_asked ? (uint32_t)values->model.max_model_len : most;
    return QN_OK;
}

static qn_err_t read_all(const qn_config_values_t *values, model_directory_t *directory)
{
    char *generation_text = NULL;
    size_t generation_bytes;
    qn_err_t err = qn_paths_model(values, directory->path, sizeof directory->path);
    if (!err) err = choose_id(values, directory);
    if (err) return err;
    err = read_text(directory->path, "config.json", false, &directory->config_text, &directory->config_bytes);
    if (err) return err;
    err = read_text(directory->path, "generation_config.json", true, &generation_text, &generation_bytes);
    if (err) return err;
    err = qn_model_config_parse(directory->config_text, directory->config_bytes, generation_text, generation_bytes,
                                &directory->warnings, &directory->config);
    if (!err) err = qn_generation_config_parse(generation_text, generation_bytes, &directory->generation);
    free(generation_text);
    return err ? err : choose_length(values, directory);
}

qn_err_t model_directory_read(const qn_config_values_t *values, model_directory_t **ret_directory)
{
    model_directory_t *directory = calloc(1, sizeof *directory);
    if (!directory) return qn_fail(QN_ERR_NO_MEMORY, "model directory: no memory");
    qn_err_t err = read_all(values, directory);
    if (err)
        model_directory_free(&directory);
    else
        *ret_directory = directory;
    return err;
}

void model_directory_free(model_directory_t **directory)
{
    if (!*directory) return;
    free((*directory)->config_text);
    free(*directory);
    *directory = NULL;
}
