/* What is this?      `quintet model show`: what a model directory holds, and the memory it takes in each weight format.
 * State owned:       what was read of the directory.
 * Must never:        read the weights themselves: only headers, so that any model is shown at once.
 * Read next:         model_check.c; services/memory/weights/weights.h (the plan), services/compute/executor/scratch.h (activations). */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "services/compute/executor/scratch.h"
#include "services/memory/weights/weights.h"
#include "services/memory/weights/weights_source.h"
#include "services/tokenizer/tokenizer.h"
#include "tools/cli.h"
#include "tools/model/model_tool.h"

/* The formats that are compared. The first is what the configuration says. */
enum { PLAN_CONFIGURED, PLAN_NONE, PLAN_INT8, PLAN_INT4_32, PLAN_INT4_64, PLAN_COUNT };
static const char *const plan_names[PLAN_COUNT] = {"configured", "none", "int8", "int4_group32", "int4_group64"};
static const char *const plan_labels[PLAN_COUNT] = {"configured", "none", "int8", "int4 (32)", "int4 (64)"};

typedef struct {
    const qn_config_values_t *values;
    model_directory_t *directory;
    safetensors_t *checkpoint; /* NULL: no weights there */
    weights_t *plans[PLAN_COUNT];
    uint64_t parameters;
    model_kv_t kv;
    scratch_sizes_t scratch;
    size_t tokens; /* of the tokenizer; 0: none */
    bool chat_template;
} model_view_t;

/* Tensors of one kind: the same role, differing in layer and expert. */
typedef struct {
    char name[QN_NAME_MAX]; /* numbers replaced by '*' */
    size_t count, first;    /* index of the first of them */
    uint64_t bytes;
    bool mixed; /* not all in one dtype */
} kind_t;

/* ---- gathering ---- */

static qn_err_t plan_one(model_view_t *view, const weights_format_t *format, weights_t **ret_weights)
{
    const model_directory_t *directory = view->directory;
    if (!view->checkpoint) return weights_plan_dummy(&directory->config, 0, format, ret_weights);
    return weights_plan(directory->path, &directory->config, format, ret_weights);
}

static qn_err_t plan_all(model_view_t *view)
{
    weights_format_t formats[PLAN_COUNT] = {
        [PLAN_NONE] = {.layout = QN_LAYOUT_PANELS},
        [PLAN_INT8] = {.layout = QN_LAYOUT_PANELS, .quantize = WEIGHTS_QUANTIZE_INT8},
        [PLAN_INT4_32] = {.layout = QN_LAYOUT_PANELS, .quantize = WEIGHTS_QUANTIZE_INT4, .group = 32},
        [PLAN_INT4_64] = {.layout = QN_LAYOUT_PANELS, .quantize = WEIGHTS_QUANTIZE_INT4, .group = 64},
    };
    qn_err_t err = weights_format_choose(view->values, &formats[PLAN_CONFIGURED]);
    for (size_t i = 0; !err && i < PLAN_COUNT; i++)
        err = plan_one(view, &formats[i], &view->plans[i]);
    if (!err) view->directory->config = *weights_config(view->plans[0]);
    for (size_t i = 0; !err && i < weights_count(view->plans[0]); i++) {
        const weights_tensor_t *tensor = weights_at(view->plans[0], i);
        view->parameters += tensor->shape[0] * (tensor->rank == 2 ? tensor->shape[1] : 1);
    }
    return err;
}

static qn_err_t plan_scratch(model_view_t *view)
{
    const qn_config_values_t *values = view->values;
    uint32_t length = view->kv.size.max_model_len ? view->kv.size.max_model_len : view->directory->max_model_len;
    step_limits_t limits =
        step_limits_make((uint32_t)values->scheduler.max_sequences, (uint32_t)values->scheduler.max_step_tokens, length,
                         (uint32_t)values->memory.block_tokens, view->kv.size.block_count,
                         view->directory->config.vocab);
    return scratch_measure(&view->directory->config, &limits, &view->scratch);
}

static void look_at_tokenizer(model_view_t *view)
{
    tokenizer_t *tokenizer = NULL;
    if (tokenizer_open(view->values->tokenizer.path, &tokenizer)) return;
    view->tokens = tokenizer_vocab_size(tokenizer);
    view->chat_template = tokenizer_info(tokenizer)->chat_template != NULL;
    tokenizer_close(&tokenizer);
}

/* A directory with config.json alone is shown too: that is how one plans before a download. */
static qn_err_t gather(model_view_t *view)
{
    qn_err_t err = model_directory_read(view->values, &view->directory);
    if (err) return err;
    err = safetensors_open(view->directory->path, &view->checkpoint);
    if (err == QN_ERR_NOT_FOUND) err = QN_OK;
    if (!err) err = plan_all(view);
    if (err) return err;
    /* What does not fit is shown all the same: the plan says so. */
    (void)model_tool_kv(view->values, view->directory, weights_bytes(view->plans[PLAN_CONFIGURED]), &view->kv);
    err = plan_scratch(view);
    if (!err) look_at_tokenizer(view);
    return err;
}

static void release(model_view_t *view)
{
    for (size_t i = 0; i < PLAN_COUNT; i++)
        weights_destroy(&view->plans[i]);
    safetensors_close(&view->checkpoint);
    model_directory_free(&view->directory);
}

/* ---- words ---- */

static const char *activation_name(qn_activation_t activation)
{
    static const char *const NAMES[] = {[QN_ACTIVATION_SILU] = "silu",
                                        [QN_ACTIVATION_GELU_TANH] = "gelu_tanh",
                                        [QN_ACTIVATION_GELU] = "gelu",
                                        [QN_ACTIVATION_RELU] = "relu"};
    return NAMES[activation];
}

static const char *rope_name(qn_rope_type_t type)
{
    static const char *const NAMES[] = {
        [QN_ROPE_NONE] = "none",       [QN_ROPE_DEFAULT] = "default", [QN_ROPE_LINEAR] = "linear",
        [QN_ROPE_DYNAMIC] = "dynamic", [QN_ROPE_LLAMA3] = "llama3",   [QN_ROPE_YARN] = "yarn"};
    return NAMES[type];
}

static const char *layout_name(qn_layout_t layout) { return layout == QN_LAYOUT_PANELS ? "panels" : "rows"; }

static uint32_t count_true(const bool *flags, uint32_t count)
{
    uint32_t found = 0;
    for (uint32_t i = 0; i < count; i++)
        found += flags[i];
    return found;
}

/* The checkpoint's dtype of tensor `index`; "-" without a checkpoint. */
static const char *source_dtype(const model_view_t *view, size_t index)
{
    qn_model_tensor_t tensor;
    if (!view->checkpoint) return "-";
    qn_model_tensor_at(&view->directory->config, index, &tensor);
    const safetensors_tensor_t *source = weights_source_find(view->checkpoint, &view->directory->config, &tensor);
    return source ? safetensors_dtype_name(source->dtype) : "-";
}

/* ---- kinds of tensors ---- */

/* "model.layers.3.mlp.up_proj.weight" -> "model.layers.*.mlp.up_proj.weight". */
static void blur_numbers(const char *name, char *ret_name)
{
    size_t used = 0;
    for (const char *at = name; *at;) {
        size_t digits = strspn(at, "0123456789");
        bool number = digits && at > name && at[-1] == '.' && at[digits] == '.';
        ret_name[used++] = number ? '*' : *at;
        at += number ? digits : 1;
    }
    ret_name[used] = '\0';
}

/* In the order of their roles; returns how many. */
static size_t list_kinds(const model_view_t *view, kind_t *ret_kinds)
{
    kind_t *of_role[QN_TENSOR_ROLE_COUNT] = {0};
    size_t count = 0;
    for (size_t i = 0; i < weights_count(view->plans[PLAN_CONFIGURED]); i++) {
        qn_model_tensor_t tensor;
        const weights_tensor_t *planned = weights_at(view->plans[PLAN_CONFIGURED], i);
        qn_model_tensor_at(&view->directory->config, i, &tensor);
        kind_t *kind = of_role[tensor.role];
        if (!kind) {
            kind = of_role[tensor.role] = &ret_kinds[count++];
            *kind = (kind_t){.first = i};
            blur_numbers(tensor.name, kind->name);
        }
        kind->count++;
        kind->bytes += planned->bytes;
        kind->mixed = kind->mixed || planned->scalar != weights_at(view->plans[PLAN_CONFIGURED], kind->first)->scalar;
    }
    return count;
}

/* ---- text ---- */

static void print_experts_and_windows(const qn_model_config_t *c)
{
    uint32_t sliding = count_true(c->layer_slides, c->layers);
    if (c->experts)
        printf("  experts      %" PRIu32 " of width %" PRIu32 ", %" PRIu32 " per token, in %" PRIu32 " of %" PRIu32
               " layers\n",
               c->experts, c->expert_intermediate, c->experts_per_token, count_true(c->layer_is_sparse, c->layers),
               c->layers);
    if (sliding)
        printf("  window       %" PRIu32 " positions in %" PRIu32 " of %" PRIu32 " layers\n", c->sliding_window,
               sliding, c->layers);
    if (c->attention_softcap > 0 || c->logit_softcap > 0)
        printf("  soft-caps    scores %g, logits %g\n", (double)c->attention_softcap, (double)c->logit_softcap);
}

static void print_rope(const qn_rope_config_t *rope)
{
    if (rope->type == QN_ROPE_NONE)
        printf("; learned positions\n");
    else if (rope->type == QN_ROPE_DEFAULT)
        printf("; rope theta %g\n", rope->theta);
    else
        printf("; rope %s, theta %g, factor %g\n", rope_name(rope->type), rope->theta, rope->factor);
}

static void print_shape(const model_view_t *view)
{
    const qn_model_config_t *c = &view->directory->config;
    char bytes[32];
    uint64_t file_bytes = 0;
    size_t files = view->checkpoint ? safetensors_file_count(view->checkpoint) : 0;
    for (unsigned i = 0; i < files; i++)
        file_bytes += safetensors_file_bytes(view->checkpoint, i);
    printf("%s in %s\n", c->architecture_name, view->directory->path);
    printf("  parameters   %" PRIu64 " in %zu tensors", view->parameters, weights_count(view->plans[PLAN_CONFIGURED]));
    if (files)
        printf("; %zu file%s, %s, %zu tensors not needed\n", files, files == 1 ? "" : "s",
               model_tool_bytes_text(file_bytes, bytes, sizeof bytes), weights_left_out(view->plans[PLAN_CONFIGURED]));
    else
        printf("; no weights here, planned as bf16\n");
    printf("  shape        %" PRIu32 " layers of width %" PRIu32 "; MLP %" PRIu32 ", %s%s; vocabulary %" PRIu32 "%s\n",
           c->layers, c->hidden, c->intermediate, activation_name(c->activation), c->gated_mlp ? ", gated" : "",
           c->vocab, c->tie_embeddings ? ", head tied" : "");
    printf("  attention    %" PRIu32 " heads, %" PRIu32 " kv heads of %" PRIu32, c->heads, c->kv_heads, c->head_dim);
    print_rope(&c->rope);
    print_experts_and_windows(c);
    printf("  length       %" PRIu32 " tokens, the model's limit is %" PRIu32 "\n", view->directory->max_model_len,
           c->max_positions);
    printf("  end tokens  ");
    for (uint32_t i = 0; i < c->eos_count; i++)
        printf(" %" PRIu32, c->eos[i]);
    printf("%s\n", c->eos_count ? "" : " none");
    if (view->tokens)
        printf("  tokenizer    %zu tokens%s\n", view->tokens, view->chat_template ? ", chat template" : "");
    else
        printf("  tokenizer    none that can be read: token ids only\n");
}

static void print_tensor_row(const model_view_t *view, const char *name, size_t count, size_t index, uint64_t bytes,
                             bool mixed)
{
    const weights_tensor_t *planned = weights_at(view->plans[PLAN_CONFIGURED], index);
    char shape[64], kept[32], size[32];
    snprintf(kept, sizeof kept, "%s %s", mixed ? "mixed" : qn_scalar_name(planned->scalar),
             layout_name(planned->layout));
    printf("%-54s %6zu  %-18s %-10s %-12s %12s\n", name, count,
           model_tool_shape_text(planned->shape, planned->rank, shape, sizeof shape),
           mixed ? "mixed" : source_dtype(view, index), planned->rank == 1 ? qn_scalar_name(planned->scalar) : kept,
           model_tool_bytes_text(bytes, size, sizeof size));
}

static void print_tensors(const model_view_t *view, bool all)
{
    kind_t kinds[QN_TENSOR_ROLE_COUNT];
    printf("\n%-54s %6s  %-18s %-10s %-12s %12s\n", "tensor", "count", "shape", "checkpoint", "kept as", "bytes");
    if (all) {
        for (size_t i = 0; i < weights_count(view->plans[PLAN_CONFIGURED]); i++) {
            const weights_tensor_t *planned = weights_at(view->plans[PLAN_CONFIGURED], i);
            print_tensor_row(view, planned->name, 1, i, planned->bytes, false);
        }
        return;
    }
    size_t count = list_kinds(view, kinds);
    for (size_t i = 0; i < count; i++)
        print_tensor_row(view, kinds[i].name, kinds[i].count, kinds[i].first, kinds[i].bytes, kinds[i].mixed);
}

static void print_memory(const model_view_t *view)
{
    char a[32], b[32], c[32];
    uint64_t length = view->directory->max_model_len, sequences = view->values->scheduler.max_sequences;
    uint64_t total = weights_bytes(view->plans[PLAN_CONFIGURED]) + view->kv.size.bytes +
                     view->scratch.activations_bytes + view->scratch.state_bytes + view->scratch.step_io_bytes;
    printf("\nweights by model.quantize");
    for (size_t i = PLAN_NONE; i < PLAN_COUNT; i++)
        printf("%s %s %s", i == PLAN_NONE ? "  " : "  |", plan_labels[i],
               model_tool_bytes_text(weights_bytes(view->plans[i]), a, sizeof a));
    printf("\nKV cache in %-4s           %s a token, %s a sequence of %" PRIu64 ", %s for %" PRIu64 "\n",
           view->kv.dtype, model_tool_bytes_text(view->kv.token_bytes, a, sizeof a),
           model_tool_bytes_text(view->kv.token_bytes * length, b, sizeof b), length,
           model_tool_bytes_text(view->kv.token_bytes * length * sequences, c, sizeof c), sequences);
    printf("memory plan                weights %s",
           model_tool_bytes_text(weights_bytes(view->plans[PLAN_CONFIGURED]), a, sizeof a));
    if (view->kv.size.block_count)
        printf(" + KV %s (%" PRIu64 " tokens)", model_tool_bytes_text(view->kv.size.bytes, b, sizeof b),
               (uint64_t)view->kv.size.block_count * view->values->memory.block_tokens);
    printf(" + activations %s", model_tool_bytes_text(view->scratch.activations_bytes, a, sizeof a));
    printf(" + state %s", model_tool_bytes_text(view->scratch.state_bytes + view->scratch.step_io_bytes, a, sizeof a));
    printf(" = %s", model_tool_bytes_text(total, a, sizeof a));
    if (view->kv.free_bytes) printf(" of %s", model_tool_bytes_text(view->kv.free_bytes, b, sizeof b));
    printf("%s\n", view->kv.size.block_count || !view->kv.free_bytes ? "" : ": too much for this host");
}

/* ---- JSON ---- */

static json_t *number(uint64_t value) { return json_integer((json_int_t)value); }

static json_t *ids_json(const uint32_t *ids, uint32_t count)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < count; i++)
        json_array_append_new(list, number(ids[i]));
    return list;
}

/* The layers whose flag is set. */
static json_t *layers_json(const bool *flags, uint32_t layers)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < layers; i++)
        if (flags[i]) json_array_append_new(list, number(i));
    return list;
}

static json_t *rope_json(const qn_rope_config_t *rope)
{
    if (rope->type == QN_ROPE_NONE) return json_null();
    json_t *all = json_pack("{s:s, s:f}", "type", rope_name(rope->type), "theta", rope->theta);
    if (rope->type == QN_ROPE_DEFAULT) return all;
    json_object_set_new(all, "factor", json_real(rope->factor));
    if (rope->original_max_positions) json_object_set_new(all, "original_length", number(rope->original_max_positions));
    return all;
}

static json_t *shape_json(const qn_model_config_t *c)
{
    json_t *all =
        json_pack("{s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:s, s:b, s:b, s:f, s:o}", "layers", (int)c->layers, "hidden",
                  (int)c->hidden, "heads", (int)c->heads, "kv_heads", (int)c->kv_heads, "head_dim", (int)c->head_dim,
                  "intermediate", (int)c->intermediate, "vocabulary", (int)c->vocab, "activation",
                  activation_name(c->activation), "gated", c->gated_mlp, "head_tied", c->tie_embeddings,
                  "attention_scale", (double)c->attention_scale, "rope", rope_json(&c->rope));
    json_object_set_new(all, "max_positions", number(c->max_positions));
    if (c->experts)
        json_object_set_new(all, "experts",
                            json_pack("{s:i, s:i, s:i, s:b, s:o}", "count", (int)c->experts, "per_token",
                                      (int)c->experts_per_token, "intermediate", (int)c->expert_intermediate,
                                      "normalised", c->normalise_experts, "layers",
                                      layers_json(c->layer_is_sparse, c->layers)));
    if (c->sliding_window)
        json_object_set_new(all, "window",
                            json_pack("{s:i, s:o}", "positions", (int)c->sliding_window, "layers",
                                      layers_json(c->layer_slides, c->layers)));
    return all;
}

static json_t *tensor_json(const model_view_t *view, const char *name, size_t index)
{
    const weights_tensor_t *planned = weights_at(view->plans[PLAN_CONFIGURED], index);
    json_t *shape = json_array();
    for (unsigned i = 0; i < planned->rank; i++)
        json_array_append_new(shape, number(planned->shape[i]));
    json_t *row = json_pack("{s:s, s:o, s:s, s:s, s:s}", "name", name, "shape", shape, "checkpoint_dtype",
                            source_dtype(view, index), "dtype", qn_scalar_name(planned->scalar), "layout",
                            layout_name(planned->layout));
    if (planned->group) json_object_set_new(row, "group", number(planned->group));
    return row;
}

static json_t *tensors_json(const model_view_t *view, bool all)
{
    kind_t kinds[QN_TENSOR_ROLE_COUNT];
    json_t *rows = json_array();
    size_t count = all ? weights_count(view->plans[PLAN_CONFIGURED]) : list_kinds(view, kinds);
    for (size_t i = 0; i < count; i++) {
        const weights_tensor_t *planned = all ? weights_at(view->plans[PLAN_CONFIGURED], i) : NULL;
        json_t *row = all ? tensor_json(view, planned->name, i) : tensor_json(view, kinds[i].name, kinds[i].first);
        json_object_set_new(row, "bytes", number(all ? planned->bytes : kinds[i].bytes));
        if (all)
            json_object_set_new(row, "offset", number(planned->offset));
        else
            json_object_set_new(row, "count", number(kinds[i].count));
        json_array_append_new(rows, row);
    }
    return rows;
}

static json_t *memory_json(const model_view_t *view)
{
    json_t *weights = json_object(), *all;
    uint64_t length = view->directory->max_model_len;
    for (size_t i = 0; i < PLAN_COUNT; i++)
        json_object_set_new(weights, plan_names[i], number(weights_bytes(view->plans[i])));
    all = json_pack("{s:o, s:{s:s, s:o, s:o}, s:o, s:o, s:o}", "weights_bytes", weights, "kv", "dtype", view->kv.dtype,
                    "bytes_per_token", number(view->kv.token_bytes), "bytes_per_sequence",
                    number(view->kv.token_bytes * length), "activations_bytes", number(view->scratch.activations_bytes),
                    "state_bytes", number(view->scratch.state_bytes), "step_io_bytes",
                    number(view->scratch.step_io_bytes));
    if (view->kv.size.block_count)
        json_object_set_new(json_object_get(all, "kv"), "bytes", number(view->kv.size.bytes));
    if (view->kv.free_bytes) json_object_set_new(all, "free_bytes", number(view->kv.free_bytes));
    return all;
}

static void print_json(const model_view_t *view, bool all_tensors)
{
    const qn_model_config_t *c = &view->directory->config;
    json_t *tokenizer = json_null();
    if (view->tokens)
        tokenizer = json_pack("{s:o, s:b}", "tokens", number(view->tokens), "chat_template", view->chat_template);
    json_t *all =
        json_pack("{s:o, s:s, s:o, s:b, s:o, s:i, s:o, s:o, s:o, s:o}", "directory",
                  cli_text_json(view->directory->path), "architecture", c->architecture_name, "parameters",
                  number(view->parameters), "weights_found", view->checkpoint != NULL, "shape", shape_json(c),
                  "max_model_len", (int)view->directory->max_model_len, "end_tokens", ids_json(c->eos, c->eos_count),
                  "tokenizer", tokenizer, "tensors", tensors_json(view, all_tensors), "memory", memory_json(view));
    cli_print_json(all);
    json_decref(all);
}

int model_tool_show(const qn_config_values_t *values, bool json, bool tensors)
{
    model_view_t view = {.values = values};
    qn_err_t err = gather(&view);
    if (err) {
        release(&view);
        int status = cli_fail_err(err);
        fputs("quintet model check tells all that is wrong with it\n", stderr);
        return status;
    }
    if (json) {
        print_json(&view, tensors);
    } else {
        print_shape(&view);
        print_tensors(&view, tensors);
        print_memory(&view);
    }
    release(&view);
    return cli_finish_output();
}
