/* What is this?      The comparison of a checkpoint with the model that config.json describes.
 * State owned:       none.
 * Must never:        touch a file through its mapping (SIGBUS when it shrinks); leave something out without a word.
 * Read next:         weights.c, which plans the region from what is found here. */
#include "services/memory/weights/weights_source.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "services/memory/weights/weights_number.h"

#define HEAD "lm_head.weight"
#define COMPARE_ELEMENTS 16384u
#define NAMED_MAX 4 /* tensors that are named; the rest is counted */

/* ---- finding ---- */

static const safetensors_tensor_t *find_named(const safetensors_t *checkpoint, const char *name)
{
    const safetensors_tensor_t *found = safetensors_find(checkpoint, name);
    const char *bare = found ? NULL : qn_model_tensor_bare_source(name);
    return bare ? safetensors_find(checkpoint, bare) : found;
}

const safetensors_tensor_t *weights_source_find(const safetensors_t *checkpoint, const qn_model_config_t *config,
                                                const qn_model_tensor_t *wanted)
{
    const safetensors_tensor_t *found = find_named(checkpoint, wanted->source);
    if (!found && wanted->role == QN_TENSOR_EMBEDDING && config->tie_embeddings)
        found = safetensors_find(checkpoint, HEAD);
    return found;
}

void weights_source_shape(const qn_model_tensor_t *wanted, uint64_t *ret_shape)
{
    ret_shape[wanted->transposed ? 1 : 0] = wanted->source_outputs;
    if (wanted->rank == 2) ret_shape[wanted->transposed ? 0 : 1] = wanted->shape[1];
}

bool weights_source_readable(safetensors_dtype_t dtype)
{
    return dtype == SAFETENSORS_BF16 || dtype == SAFETENSORS_F16 || dtype == SAFETENSORS_F32 ||
           dtype == SAFETENSORS_F64;
}

/* ---- the number of layers ---- */

/* The number behind "layers." or "h." in "model.layers.7.mlp.up_proj.weight"; -1: the name has none. */
static int64_t layer_of(const char *name)
{
    static const char *const PREFIXES[] = {"model.layers.", "layers.", "transformer.h.", "h."};
    for (size_t i = 0; i < sizeof PREFIXES / sizeof *PREFIXES; i++) {
        size_t length = strlen(PREFIXES[i]), digits;
        if (strncmp(name, PREFIXES[i], length) != 0) continue;
        digits = strspn(name + length, "0123456789");
        if (digits >= 1 && digits <= 9 && name[length + digits] == '.') return strtol(name + length, NULL, 10);
    }
    return -1;
}

static qn_err_t check_layers(const safetensors_t *checkpoint, const qn_model_config_t *config)
{
    int64_t layers = 0;
    for (size_t i = 0; i < safetensors_count(checkpoint); i++) {
        int64_t layer = layer_of(safetensors_at(checkpoint, i)->name);
        if (layer >= layers) layers = layer + 1;
    }
    if (layers == 0 || layers == config->layers) return QN_OK;
    char absent[200];
    const char *key = config->architecture == QN_ARCHITECTURE_GPT2 ? "n_layer" : "num_hidden_layers";
    size_t files = safetensors_absent(checkpoint, absent, sizeof absent);
    if (layers < config->layers && files)
        return qn_fail(QN_ERR_NOT_FOUND,
                       "%zu weight files are missing (%s); the others hold %" PRId64 " layers of %" PRIu32, files,
                       absent, layers, config->layers);
    return qn_fail(QN_ERR_INVALID,
                   "config.json: \"%s\" is %" PRIu32 ", but the checkpoint in %s has %" PRId64
                   " layers: config.json is of another model, or \"%s\" must be %" PRId64,
                   key, config->layers, safetensors_file_path(checkpoint, 0), layers, key, layers);
}

/* ---- the head ---- */

typedef struct {
    uint8_t raw[COMPARE_ELEMENTS * sizeof(double)];
    float values[COMPARE_ELEMENTS];
} piece_t;

static qn_err_t read_piece(const safetensors_t *checkpoint, const safetensors_tensor_t *tensor, uint64_t first,
                           uint64_t count, piece_t *piece)
{
    uint64_t each = safetensors_dtype_bytes(tensor->dtype), bytes = count * each;
    for (uint64_t done = 0; done < bytes;) {
        ssize_t got = pread(safetensors_file_fd(checkpoint, tensor->file_index), piece->raw + done, bytes - done,
                            (off_t)(tensor->file_offset + first * each + done));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0)
            return qn_fail(QN_ERR_IO, "%s: tensor '%s': %s", safetensors_file_path(checkpoint, tensor->file_index),
                           tensor->name, got < 0 ? strerror(errno) : "the file became shorter");
        done += (uint64_t)got;
    }
    weights_number_widen(tensor->dtype, piece->raw, count, piece->values);
    return QN_OK;
}

/* By their numbers, since the two may be in different dtypes; ends at the first difference. */
static qn_err_t compare_numbers(const safetensors_t *checkpoint, const safetensors_tensor_t *left,
                                const safetensors_tensor_t *right, bool *ret_equal)
{
    piece_t *pieces = malloc(2 * sizeof *pieces);
    if (!pieces)
        return qn_fail(QN_ERR_NO_MEMORY, "no memory to compare tensors '%s' and '%s'", left->name, right->name);
    uint64_t all = safetensors_elements(left);
    bool equal = true;
    qn_err_t err = QN_OK;
    for (uint64_t first = 0; !err && equal && first < all; first += COMPARE_ELEMENTS) {
        uint64_t count = all - first < COMPARE_ELEMENTS ? all - first : COMPARE_ELEMENTS;
        err = read_piece(checkpoint, left, first, count, &pieces[0]);
        if (!err) err = read_piece(checkpoint, right, first, count, &pieces[1]);
        if (!err) equal = memcmp(pieces[0].values, pieces[1].values, count * sizeof(float)) == 0;
    }
    free(pieces);
    if (!err) *ret_equal = equal;
    return err;
}

static bool may_be_compared(const safetensors_tensor_t *left, const safetensors_tensor_t *right)
{
    return left->rank == right->rank && memcmp(left->shape, right->shape, left->rank * sizeof *left->shape) == 0 &&
           weights_source_readable(left->dtype) && weights_source_readable(right->dtype);
}

/* A head that cannot be the embedding is taken for what it says it is; checking its shape is the plan's. */
static qn_err_t settle_head(const safetensors_t *checkpoint, qn_model_config_t *config, qn_model_warnings_t *warnings)
{
    qn_model_tensor_t embedding;
    qn_model_tensor_at(config, 0, &embedding);
    const safetensors_tensor_t *table = find_named(checkpoint, embedding.source);
    const safetensors_tensor_t *head = safetensors_find(checkpoint, HEAD);
    if (!config->tie_embeddings || !table || !head) return QN_OK;
    bool equal = false;
    qn_err_t err = may_be_compared(table, head) ? compare_numbers(checkpoint, table, head, &equal) : QN_OK;
    if (err || equal) return err;
    config->tie_embeddings = false;
    qn_model_warn(warnings,
                  "config.json: \"tie_word_embeddings\" is true, but the checkpoint holds a " HEAD
                  " that is not %s: it is used, as transformers does; false would say so",
                  table->name);
    return QN_OK;
}

/* ---- the type of the numbers ---- */

static bool is_dtype_name(const char *name, safetensors_dtype_t dtype)
{
    static const struct {
        const char *name;
        safetensors_dtype_t dtype;
    } NAMES[] = {
        {"float16", SAFETENSORS_F16}, {"half", SAFETENSORS_F16},  {"bfloat16", SAFETENSORS_BF16},
        {"float32", SAFETENSORS_F32}, {"float", SAFETENSORS_F32}, {"float64", SAFETENSORS_F64},
        {"double", SAFETENSORS_F64},
    };
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++)
        if (strcmp(NAMES[i].name, name) == 0) return NAMES[i].dtype == dtype;
    return true; /* "auto", or a word that says nothing here */
}

static void compare_dtype(const safetensors_t *checkpoint, const qn_model_config_t *config,
                          qn_model_warnings_t *warnings)
{
    qn_model_tensor_t embedding;
    qn_model_tensor_at(config, 0, &embedding);
    const safetensors_tensor_t *table = weights_source_find(checkpoint, config, &embedding);
    if (!table || is_dtype_name(config->dtype_name, table->dtype)) return;
    qn_model_warn(warnings, "config.json: \"dtype\" is %s, but tensor '%s' is %s: tensors are taken as they are stored",
                  config->dtype_name, table->name, safetensors_dtype_name(table->dtype));
}

qn_err_t weights_source_settle(const safetensors_t *checkpoint, qn_model_config_t *config,
                               qn_model_warnings_t *warnings)
{
    qn_model_warnings_append(warnings, safetensors_warnings(checkpoint));
    qn_err_t err = check_layers(checkpoint, config);
    if (!err) err = settle_head(checkpoint, config, warnings);
    if (!err) compare_dtype(checkpoint, config, warnings);
    return err;
}

/* ---- what is left out ---- */

static bool ends_in(const char *name, const char *end)
{
    size_t length = strlen(name), tail = strlen(end);
    return length >= tail && strcmp(name + length - tail, end) == 0;
}

static bool never_was_a_weight(const char *name, const qn_model_config_t *config)
{
    if (ends_in(name, ".rotary_emb.inv_freq")) return true;
    if (config->tie_embeddings && strcmp(name, HEAD) == 0) return true;
    return config->architecture == QN_ARCHITECTURE_GPT2 &&
           (ends_in(name, ".attn.bias") || ends_in(name, ".attn.masked_bias"));
}

void weights_source_warn_left_out(const safetensors_t *checkpoint, const qn_model_config_t *config, const bool *needed,
                                  qn_model_warnings_t *warnings)
{
    char names[300] = "";
    size_t count = 0, used = 0;
    for (size_t i = 0; i < safetensors_count(checkpoint); i++) {
        const safetensors_tensor_t *tensor = safetensors_at(checkpoint, i);
        if (needed[i] || tensor->replaced || never_was_a_weight(tensor->name, config)) continue;
        if (count++ < NAMED_MAX && used < sizeof names)
            used += (size_t)snprintf(names + used, sizeof names - used, "%s%.60s", used ? ", " : "", tensor->name);
    }
    if (count)
        qn_model_warn(warnings, "%zu tensor%s of the checkpoint %s left out, since %s has no place for %s: %s%s", count,
                      count == 1 ? "" : "s", count == 1 ? "is" : "are", config->architecture_name,
                      count == 1 ? "it" : "them", names, count > NAMED_MAX ? ", ..." : "");
}
