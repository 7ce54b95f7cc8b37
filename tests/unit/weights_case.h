/* What the tests of the weights share: small models of three families, checkpoints written for them with or without
 * damage, regions, and what a tensor should become. */
#ifndef QN_TESTS_UNIT_WEIGHTS_CASE_H
#define QN_TESTS_UNIT_WEIGHTS_CASE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/model/model_tensors.h"
#include "kernels/weight_layout.h"
#include "services/memory/weights/safetensors.h"
#include "services/memory/weights/weights.h"

#define CASE_HELPER static __attribute__((unused))

static char directory[64];

CASE_HELPER int setup(void **state)
{
    (void)state;
    snprintf(directory, sizeof directory, "/tmp/qn-weights-XXXXXX");
    return mkdtemp(directory) ? 0 : -1;
}

CASE_HELPER int remove_one(const char *path, const struct stat *info, int kind, struct FTW *place)
{
    (void)info, (void)kind, (void)place;
    return remove(path);
}

CASE_HELPER int teardown(void **state)
{
    (void)state;
    return nftw(directory, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

/* A model of one layer with tensors of a few bytes. */
CASE_HELPER qn_model_config_t small_config(void)
{
    return (qn_model_config_t){.layers = 1,
                               .hidden = 4,
                               .heads = 2,
                               .kv_heads = 1,
                               .head_dim = 2,
                               .intermediate = 6,
                               .vocab = 10,
                               .max_positions = 32,
                               .tie_embeddings = true,
                               .gated_mlp = true,
                               .rope.type = QN_ROPE_DEFAULT};
}

CASE_HELPER const weights_format_t AS_IT_IS = {.layout = QN_LAYOUT_ROWS};

CASE_HELPER const weights_format_t FORMATS[] = {
    {.layout = QN_LAYOUT_ROWS},
    {.layout = QN_LAYOUT_PANELS},
    {.layout = QN_LAYOUT_PANELS, .quantize = WEIGHTS_QUANTIZE_INT8},
    {.layout = QN_LAYOUT_PANELS, .quantize = WEIGHTS_QUANTIZE_INT4, .group = 32},
    {.layout = QN_LAYOUT_PANELS, .quantize = WEIGHTS_QUANTIZE_INT4, .group = 64},
};
#define FORMAT_COUNT (sizeof FORMATS / sizeof FORMATS[0])

/* Tensors of several chunks, and sizes that are no multiples of anything. */
CASE_HELPER qn_model_config_t llama_config(void)
{
    qn_model_config_t config = {.layers = 2,
                                .hidden = 95,
                                .heads = 3,
                                .kv_heads = 1,
                                .head_dim = 34,
                                .intermediate = 203,
                                .vocab = 4099,
                                .gated_mlp = true,
                                .qkv_bias = true,
                                .qk_norm = true,
                                .rope.type = QN_ROPE_DEFAULT};
    return config;
}

CASE_HELPER qn_model_config_t gpt2_config(void)
{
    qn_model_config_t config = {.architecture = QN_ARCHITECTURE_GPT2,
                                .layers = 2,
                                .hidden = 76,
                                .heads = 2,
                                .kv_heads = 2,
                                .head_dim = 38,
                                .intermediate = 300,
                                .vocab = 1031,
                                .max_positions = 61,
                                .norm = QN_NORM_LAYER,
                                .rope.type = QN_ROPE_NONE,
                                .qkv_bias = true,
                                .output_bias = true,
                                .mlp_bias = true,
                                .tie_embeddings = true};
    return config;
}

CASE_HELPER qn_model_config_t mixtral_config(void)
{
    qn_model_config_t config = {.architecture = QN_ARCHITECTURE_MIXTRAL,
                                .layers = 2,
                                .hidden = 48,
                                .heads = 2,
                                .kv_heads = 1,
                                .head_dim = 24,
                                .vocab = 331,
                                .gated_mlp = true,
                                .experts = 5,
                                .experts_per_token = 2,
                                .expert_intermediate = 70,
                                .rope.type = QN_ROPE_DEFAULT};
    config.layer_is_sparse[0] = config.layer_is_sparse[1] = true;
    return config;
}

/* What write_model changes of a correct checkpoint of bf16 tensors. */
typedef struct {
    const char *dtype;     /* of all tensors */
    const char *leave_out; /* tensor name */
    const char *reshape;   /* tensor name: gets one row more */
    const char *retype;    /* tensor name */
    const char *retype_to; /* its dtype */
    const char *extra;     /* JSON of a further tensor of 3 bytes at the end, without offsets */
    const char *infinite;  /* tensor name: its last element is infinite */
    const char *strip;     /* taken off the front of names */
    unsigned shards;       /* 0: one file; else as many and an index */
} damage_t;

CASE_HELPER size_t dtype_bytes(const char *dtype)
{
    if (strcmp(dtype, "F64") == 0) return 8;
    return strcmp(dtype, "F32") == 0 ? 4 : strcmp(dtype, "BF16") == 0 || strcmp(dtype, "F16") == 0 ? 2 : 1;
}

/* Numbers of all kinds but infinities and NaN, which are bits of any dtype with the exponent's top bits not all set. */
CASE_HELPER void write_values(FILE *file, const char *dtype, uint64_t count, bool infinite, uint64_t *seed)
{
    size_t each = dtype_bytes(dtype);
    for (uint64_t i = 0; i < count; i++) {
        *seed = *seed * 6364136223846793005u + 1442695040888963407u;
        uint64_t bits = *seed >> 32;
        if (each == 8)
            bits = (*seed & 0x801fffffffffffff) | 0x3fe0000000000000;
        else if (each == 4)
            bits = (bits & 0x83ffffff) | 0x3c000000;
        else if (each == 2)
            bits = strcmp(dtype, "F16") == 0 ? bits & 0xbfff : (bits & 0x83ff) | 0x3c00;
        if (infinite && i == count - 1)
            bits = each == 8                   ? 0x7ff0000000000000
                   : each == 4                 ? 0x7f800000
                   : strcmp(dtype, "F16") == 0 ? 0x7c00
                                               : 0x7f80;
        fwrite(&bits, each, 1, file);
    }
}

typedef struct {
    char name[QN_NAME_MAX];
    const char *dtype;
    uint64_t shape[2], count;
    uint32_t rank;
    bool infinite;
} entry_t;

/* The distinct sources of the model, damaged; returns how many. */
CASE_HELPER size_t list_sources(const qn_model_config_t *config, const damage_t *damage, entry_t *entries)
{
    size_t count = 0;
    for (size_t i = 0; i < qn_model_tensor_count(config); i++) {
        qn_model_tensor_t tensor;
        qn_model_tensor_at(config, i, &tensor);
        if (count && tensor.source_first > 0) continue; /* a further part of the source before */
        if (damage->leave_out && strcmp(damage->leave_out, tensor.source) == 0) continue;
        entry_t *entry = &entries[count++];
        *entry = (entry_t){.dtype = damage->dtype ? damage->dtype : "BF16",
                           .rank = tensor.rank,
                           .shape = {tensor.source_outputs, tensor.shape[1]}};
        if (damage->reshape && strcmp(damage->reshape, tensor.source) == 0) entry->shape[0]++;
        if (damage->retype && strcmp(damage->retype, tensor.source) == 0) entry->dtype = damage->retype_to;
        entry->infinite = damage->infinite && strcmp(damage->infinite, tensor.source) == 0;
        size_t skip = damage->strip && strncmp(tensor.source, damage->strip, strlen(damage->strip)) == 0
                          ? strlen(damage->strip)
                          : 0;
        snprintf(entry->name, sizeof entry->name, "%s", tensor.source + skip);
        if (tensor.transposed) {
            uint64_t rows = entry->shape[0];
            entry->shape[0] = entry->shape[1];
            entry->shape[1] = rows;
        }
        entry->count = entry->shape[0] * (entry->rank > 1 ? entry->shape[1] : 1);
    }
    return count;
}

CASE_HELPER void write_file(const char *path, const entry_t *entries, size_t count, const char *extra, uint64_t *seed)
{
    static char header[1 << 16];
    char *end = header;
    unsigned long long offset = 0;
    end += sprintf(end, "{");
    for (size_t i = 0; i < count; i++) {
        unsigned long long bytes = entries[i].count * dtype_bytes(entries[i].dtype);
        end += sprintf(end, "\"%s\":{\"dtype\":\"%s\",\"shape\":[%d", entries[i].name, entries[i].dtype,
                       (int)entries[i].shape[0]);
        if (entries[i].rank > 1) end += sprintf(end, ",%d", (int)entries[i].shape[1]);
        end += sprintf(end, "],\"data_offsets\":[%llu,%llu]},", offset, offset + bytes);
        offset += bytes;
    }
    if (extra) end += sprintf(end, "%s,\"data_offsets\":[%llu,%llu]},", extra, offset, offset + 3);
    strcpy(end - 1, "}");
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    uint64_t header_bytes = strlen(header);
    fwrite(&header_bytes, 8, 1, file);
    fwrite(header, 1, header_bytes, file);
    for (size_t i = 0; i < count; i++)
        write_values(file, entries[i].dtype, entries[i].count, entries[i].infinite, seed);
    if (extra) fwrite("abc", 1, 3, file);
    assert_int_equal(fclose(file), 0);
}

CASE_HELPER void write_shards(const entry_t *entries, size_t count, unsigned shards, uint64_t *seed)
{
    char path[128];
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", directory);
    FILE *index = fopen(path, "w");
    assert_non_null(index);
    fprintf(index, "{\"weight_map\": {");
    for (unsigned i = 0; i < shards; i++) {
        size_t first = count * i / shards, end = count * (i + 1) / shards;
        snprintf(path, sizeof path, "%s/model-%u.safetensors", directory, i);
        write_file(path, entries + first, end - first, NULL, seed);
        for (size_t j = first; j < end; j++)
            fprintf(index, "%s\"%s\": \"model-%u.safetensors\"", j ? ", " : "", entries[j].name, i);
    }
    fprintf(index, "}}");
    fclose(index);
}

/* Writes a checkpoint for `config` with numbers that depend on nothing else. */
CASE_HELPER void write_model(const qn_model_config_t *config, const damage_t *damage)
{
    static entry_t entries[256];
    char path[128];
    uint64_t seed = 42;
    size_t count = list_sources(config, damage, entries);
    if (damage->shards) {
        write_shards(entries, count, damage->shards, &seed);
        return;
    }
    snprintf(path, sizeof path, "%s/model.safetensors", directory);
    write_file(path, entries, count, damage->extra, &seed);
}

CASE_HELPER qn_mapping_t *make_region(uint64_t bytes)
{
    static uint64_t next_id = 1;
    qn_mapping_t *region;
    qn_region_spec_t spec = {.id = next_id++,
                             .kind = QN_REGION_KIND_WEIGHTS,
                             .share = QN_SHARE_MEMFD,
                             .device = -1,
                             .bytes = bytes,
                             .epoch = 1,
                             .name = "weights",
                             .huge_pages = true};
    assert_int_equal(qn_region_create(&spec, &region), QN_OK);
    return region;
}

CASE_HELPER void check_table(const weights_t *weights)
{
    uint64_t end = 0;
    for (size_t i = 0; i < weights_count(weights); i++) {
        const weights_tensor_t *tensor = weights_at(weights, i);
        assert_int_equal(tensor->offset % QN_REGION_ALIGN, 0);
        assert_true(tensor->offset >= end);
        end = tensor->offset + tensor->bytes;
    }
    assert_int_equal(end, weights_bytes(weights));
}

/* What the region should hold; owned. The format wanted for the tensor is worked out here again. */
CASE_HELPER void *pack_by_hand(const weights_format_t *format, const qn_model_tensor_t *tensor, const char *dtype,
                               const float *rows, uint64_t *ret_bytes)
{
    qn_scalar_t scalar = strcmp(dtype, "BF16") == 0 ? QN_SCALAR_BF16 : QN_SCALAR_F32;
    qn_layout_t layout = tensor->use == QN_TENSOR_PLAIN ? QN_LAYOUT_ROWS : format->layout;
    uint64_t inputs = tensor->rank == 2 ? tensor->shape[1] : 1;
    if (layout == QN_LAYOUT_PANELS && format->quantize == WEIGHTS_QUANTIZE_INT8) scalar = QN_SCALAR_INT8;
    if (layout == QN_LAYOUT_PANELS && format->quantize == WEIGHTS_QUANTIZE_INT4)
        scalar = tensor->use == QN_TENSOR_OUTER ? QN_SCALAR_INT8 : QN_SCALAR_INT4;
    assert_int_equal(qn_weight_bytes(scalar, layout, format->group, tensor->shape[0], inputs, ret_bytes), QN_OK);
    uint8_t *bytes = aligned_alloc(64, (*ret_bytes + 63) / 64 * 64);
    uint64_t count = tensor->shape[0] * inputs;
    if (layout == QN_LAYOUT_PANELS)
        qn_weight_pack(scalar, format->group, tensor->shape[0], inputs, 0, qn_panel_count(tensor->shape[0]), rows,
                       bytes);
    else if (scalar == QN_SCALAR_F32)
        memcpy(bytes, rows, count * 4);
    else
        for (uint64_t i = 0; i < count; i++)
            memcpy(bytes + 2 * i, (const uint8_t *)&rows[i] + 2, 2);
    return bytes;
}

CASE_HELPER qn_mapping_t *fill_dummy(const qn_model_config_t *config, uint64_t seed, const weights_format_t *format,
                                     unsigned threads, weights_t **weights)
{
    weights_progress_t progress = {0};
    assert_int_equal(weights_plan_dummy(config, seed, format, weights), QN_OK);
    check_table(*weights);
    qn_mapping_t *region = make_region(weights_bytes(*weights));
    assert_int_equal(weights_fill(*weights, region, threads, &progress), QN_OK);
    return region;
}

CASE_HELPER const void *at(const qn_mapping_t *region, const weights_t *weights, size_t index)
{
    return (const uint8_t *)qn_region_pointer(region) + weights_at(weights, index)->offset;
}

#endif
