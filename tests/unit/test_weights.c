/* The weights region: every byte at its place, the same for any number of threads, and no model with a hole. */
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

#include "common/config.h"
#include "common/model_tensors.h"
#include "kernels/weight_layout.h"
#include "services/memory/fingerprint.h"
#include "services/memory/safetensors.h"
#include "services/memory/weights.h"

static char directory[64];

static int setup(void **state)
{
    (void)state;
    snprintf(directory, sizeof directory, "/tmp/qn-weights-XXXXXX");
    return mkdtemp(directory) ? 0 : -1;
}

static int remove_one(const char *path, const struct stat *info, int kind, struct FTW *place)
{
    (void)info, (void)kind, (void)place;
    return remove(path);
}

static int teardown(void **state)
{
    (void)state;
    return nftw(directory, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

/* A model of one layer with tensors of a few bytes. */
static qn_model_config_t small_config(void)
{
    return (qn_model_config_t){ .layers = 1, .hidden = 4, .heads = 2, .kv_heads = 1, .head_dim = 2, .intermediate = 6,
                                .vocab = 10, .max_positions = 32, .tie_embeddings = true, .gated_mlp = true,
                                .rope.type = QN_ROPE_DEFAULT };
}

static const weights_format_t AS_IT_IS = { .layout = QN_LAYOUT_ROWS };

/* What write_model changes of a correct checkpoint of bf16 tensors. */
typedef struct {
    const char *dtype;             /* of all tensors */
    const char *leave_out;         /* tensor name */
    const char *reshape;           /* tensor name: gets one row more */
    const char *retype;            /* tensor name */
    const char *retype_to;         /* its dtype */
    const char *extra;             /* JSON of a further tensor of 3 bytes at the end, without offsets */
    const char *infinite;          /* tensor name: its last element is infinite */
    const char *strip;             /* taken off the front of names */
    unsigned shards;               /* 0: one file; else as many and an index */
} damage_t;

static size_t dtype_bytes(const char *dtype)
{
    return strcmp(dtype, "F32") == 0 ? 4 : strcmp(dtype, "BF16") == 0 || strcmp(dtype, "F16") == 0 ? 2 : 1;
}

/* Numbers of all kinds but infinities and NaN, which are bits of any dtype with the exponent's top bits not all set. */
static void write_values(FILE *file, const char *dtype, uint64_t count, bool infinite, uint64_t *seed)
{
    size_t each = dtype_bytes(dtype);
    for (uint64_t i = 0; i < count; i++) {
        *seed = *seed * 6364136223846793005u + 1442695040888963407u;
        uint32_t bits = (uint32_t)(*seed >> 32);
        if (each == 4) bits = (bits & 0x83ffffff) | 0x3c000000;
        else if (each == 2) bits = strcmp(dtype, "F16") == 0 ? bits & 0xbfff : (bits & 0x83ff) | 0x3c00;
        if (infinite && i == count - 1) bits = each == 4 ? 0x7f800000 : strcmp(dtype, "F16") == 0 ? 0x7c00 : 0x7f80;
        fwrite(&bits, each, 1, file);
    }
}

typedef struct { char name[QN_NAME_MAX]; const char *dtype; uint64_t shape[2], count; uint32_t rank; bool infinite; } entry_t;

/* The distinct sources of the model, damaged; returns how many. */
static size_t list_sources(const qn_model_config_t *config, const damage_t *damage, entry_t *entries)
{
    size_t count = 0;
    for (size_t i = 0; i < qn_model_tensor_count(config); i++) {
        qn_model_tensor_t tensor;
        qn_model_tensor_at(config, i, &tensor);
        if (count && tensor.source_first > 0) continue; /* a further part of the source before */
        if (damage->leave_out && strcmp(damage->leave_out, tensor.source) == 0) continue;
        entry_t *entry = &entries[count++];
        *entry = (entry_t){ .dtype = damage->dtype ? damage->dtype : "BF16", .rank = tensor.rank,
                            .shape = { tensor.source_outputs, tensor.shape[1] } };
        if (damage->reshape && strcmp(damage->reshape, tensor.source) == 0) entry->shape[0]++;
        if (damage->retype && strcmp(damage->retype, tensor.source) == 0) entry->dtype = damage->retype_to;
        entry->infinite = damage->infinite && strcmp(damage->infinite, tensor.source) == 0;
        size_t skip = damage->strip && strncmp(tensor.source, damage->strip, strlen(damage->strip)) == 0
            ? strlen(damage->strip) : 0;
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

static void write_file(const char *path, const entry_t *entries, size_t count, const char *extra, uint64_t *seed)
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

static void write_shards(const entry_t *entries, size_t count, unsigned shards, uint64_t *seed)
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
static void write_model(const qn_model_config_t *config, const damage_t *damage)
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

static qn_mapping_t *make_region(uint64_t bytes)
{
    static uint64_t next_id = 1;
    qn_mapping_t *region;
    qn_region_spec_t spec = { .id = next_id++, .kind = QN_REGION_KIND_WEIGHTS, .share = QN_SHARE_MEMFD, .device = -1,
                              .bytes = bytes, .epoch = 1, .name = "weights" };
    assert_int_equal(qn_region_create(&spec, &region), QN_OK);
    return region;
}

static void check_table(const weights_t *weights)
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

/* ---- filling ---- */

static void test_weights_bundled_model_arrives_byte_for_byte(void **state)
{
    (void)state;
    qn_model_config_t config = { .layers = 8, .hidden = 256, .heads = 4, .kv_heads = 2, .head_dim = 64,
                                 .intermediate = 768, .vocab = 4096, .tie_embeddings = true, .gated_mlp = true,
                                 .rope.type = QN_ROPE_DEFAULT };
    for (unsigned threads = 1; threads <= 3; threads += 2) {
        weights_t *weights;
        safetensors_t *checkpoint;
        weights_progress_t progress = { 0 };
        if (weights_plan("deploy/models/default", &config, &AS_IT_IS, &weights)) fail_msg("%s", qn_err_text());
        assert_int_equal(safetensors_open("deploy/models/default", &checkpoint), QN_OK);
        assert_int_equal(weights_count(weights), safetensors_count(checkpoint));
        assert_int_equal(weights_left_out(weights), 0);
        check_table(weights);
        qn_mapping_t *region = make_region(weights_bytes(weights));
        assert_int_equal(weights_fill(weights, region, threads, &progress), QN_OK);
        weights_close_files(weights);
        uint64_t total = 0;
        for (size_t i = 0; i < weights_count(weights); i++) {
            const weights_tensor_t *tensor = weights_at(weights, i);
            const safetensors_tensor_t *source = safetensors_find(checkpoint, tensor->name);
            assert_int_equal(tensor->bytes, source->bytes);
            assert_int_equal(tensor->rank, source->rank);
            assert_memory_equal((uint8_t *)qn_region_pointer(region) + tensor->offset, source->data, source->bytes);
            total += tensor->bytes;
        }
        assert_int_equal(progress.done_bytes, total);
        qn_region_close(&region);
        safetensors_close(&checkpoint);
        weights_destroy(&weights);
        assert_null(weights);
    }
}

/* ---- every format against packing by hand ---- */

static const weights_format_t FORMATS[] = {
    { .layout = QN_LAYOUT_ROWS },
    { .layout = QN_LAYOUT_PANELS },
    { .layout = QN_LAYOUT_PANELS, .quantize = WEIGHTS_QUANTIZE_INT8 },
    { .layout = QN_LAYOUT_PANELS, .quantize = WEIGHTS_QUANTIZE_INT4, .group = 32 },
    { .layout = QN_LAYOUT_PANELS, .quantize = WEIGHTS_QUANTIZE_INT4, .group = 64 },
};
#define FORMAT_COUNT (sizeof FORMATS / sizeof FORMATS[0])

/* The tensor's rows as f32, taken out of the whole source one element at a time. Owned. */
static float *rows_by_hand(const safetensors_t *checkpoint, const qn_model_tensor_t *tensor, const char *source_name)
{
    const safetensors_tensor_t *source = safetensors_find(checkpoint, source_name);
    assert_non_null(source);
    uint64_t inputs = tensor->rank == 2 ? tensor->shape[1] : 1, total = tensor->source_outputs * inputs;
    float *all = malloc(total * sizeof *all), *rows = malloc(tensor->shape[0] * inputs * sizeof *rows);
    assert_int_equal(safetensors_read_f32(source, 0, total, all), QN_OK);
    for (uint64_t o = 0; o < tensor->shape[0]; o++) {
        for (uint64_t m = 0; m < inputs; m++) {
            uint64_t output = tensor->source_first + o;
            rows[o * inputs + m] = all[tensor->transposed ? m * tensor->source_outputs + output : output * inputs + m];
        }
    }
    free(all);
    return rows;
}

/* What the region should hold; owned. The format wanted for the tensor is worked out here again. */
static void *pack_by_hand(const weights_format_t *format, const qn_model_tensor_t *tensor, const char *dtype,
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
        qn_weight_pack(scalar, format->group, tensor->shape[0], inputs, 0, qn_panel_count(tensor->shape[0]), rows, bytes);
    else if (scalar == QN_SCALAR_F32) memcpy(bytes, rows, count * 4);
    else for (uint64_t i = 0; i < count; i++) memcpy(bytes + 2 * i, (const uint8_t *)&rows[i] + 2, 2);
    return bytes;
}

static void check_filled(const weights_t *weights, const qn_mapping_t *region, const qn_model_config_t *config,
                         const weights_format_t *format, const damage_t *damage)
{
    safetensors_t *checkpoint;
    assert_int_equal(safetensors_open(directory, &checkpoint), QN_OK);
    for (size_t i = 0; i < weights_count(weights); i++) {
        const weights_tensor_t *tensor = weights_at(weights, i);
        qn_model_tensor_t wanted;
        qn_model_tensor_at(config, i, &wanted);
        bool stripped = damage->strip && strncmp(wanted.source, damage->strip, strlen(damage->strip)) == 0;
        float *rows = rows_by_hand(checkpoint, &wanted, wanted.source + (stripped ? strlen(damage->strip) : 0));
        uint64_t bytes = 0;
        void *packed = pack_by_hand(format, &wanted, damage->dtype, rows, &bytes);
        assert_string_equal(tensor->name, wanted.name);
        assert_int_equal(tensor->rank, wanted.rank);
        assert_int_equal(tensor->shape[0], wanted.shape[0]);
        if (tensor->bytes != bytes || memcmp((uint8_t *)qn_region_pointer(region) + tensor->offset, packed, bytes) != 0)
            fail_msg("%s of %s, layout %d quantize %d group %u: other bytes", tensor->name, damage->dtype,
                     format->layout, format->quantize, format->group);
        free(rows);
        free(packed);
    }
    safetensors_close(&checkpoint);
}

static void check_format(const qn_model_config_t *config, const weights_format_t *format, const damage_t *damage,
                         unsigned threads)
{
    weights_t *weights;
    weights_progress_t progress = { 0 };
    if (weights_plan(directory, config, format, &weights)) fail_msg("%s", qn_err_text());
    check_table(weights);
    qn_mapping_t *region = make_region(weights_bytes(weights));
    if (weights_fill(weights, region, threads, &progress)) fail_msg("%s", qn_err_text());
    check_filled(weights, region, config, format, damage);
    qn_region_close(&region);
    weights_destroy(&weights);
}

/* Tensors of several chunks, and sizes that are no multiples of anything. */
static qn_model_config_t llama_config(void)
{
    qn_model_config_t config = { .layers = 2, .hidden = 95, .heads = 3, .kv_heads = 1, .head_dim = 34,
                                 .intermediate = 203, .vocab = 4099, .gated_mlp = true, .qkv_bias = true,
                                 .qk_norm = true, .rope.type = QN_ROPE_DEFAULT };
    return config;
}

static qn_model_config_t gpt2_config(void)
{
    qn_model_config_t config = { .architecture = QN_ARCHITECTURE_GPT2, .layers = 2, .hidden = 76, .heads = 2,
                                 .kv_heads = 2, .head_dim = 38, .intermediate = 300, .vocab = 1031,
                                 .max_positions = 61, .norm = QN_NORM_LAYER, .rope.type = QN_ROPE_NONE,
                                 .qkv_bias = true, .output_bias = true, .mlp_bias = true, .tie_embeddings = true };
    return config;
}

static qn_model_config_t mixtral_config(void)
{
    qn_model_config_t config = { .architecture = QN_ARCHITECTURE_MIXTRAL, .layers = 2, .hidden = 48, .heads = 2,
                                 .kv_heads = 1, .head_dim = 24, .vocab = 331, .gated_mlp = true, .experts = 5,
                                 .experts_per_token = 2, .expert_intermediate = 70, .rope.type = QN_ROPE_DEFAULT };
    config.layer_is_sparse[0] = config.layer_is_sparse[1] = true;
    return config;
}

static void check_family(const qn_model_config_t *config, const char *strip, unsigned shards)
{
    static const char *const dtypes[] = { "BF16", "F32", "F16" };
    for (size_t d = 0; d < 3; d++) {
        damage_t damage = { .dtype = dtypes[d], .strip = strip, .shards = shards };
        write_model(config, &damage);
        for (size_t f = 0; f < FORMAT_COUNT; f++) {
            check_format(config, &FORMATS[f], &damage, 1);
            check_format(config, &FORMATS[f], &damage, 3);
        }
    }
}

static void test_weights_every_format_is_the_whole_tensor_packed(void **state)
{
    (void)state;
    qn_model_config_t config = llama_config();
    check_family(&config, NULL, 0);
}

static void test_weights_experts_are_brought_one_by_one(void **state)
{
    (void)state;
    qn_model_config_t config = mixtral_config();
    check_family(&config, NULL, 0);
}

static void test_weights_split_and_turned_sources_of_gpt2(void **state)
{
    (void)state;
    qn_model_config_t config = gpt2_config();
    check_family(&config, NULL, 0);
}

static void test_weights_names_without_their_prefix_are_found(void **state)
{
    (void)state;
    qn_model_config_t gpt2 = gpt2_config(), llama = llama_config();
    llama.tie_embeddings = true;
    check_family(&gpt2, "transformer.", 0);
    check_family(&llama, "model.", 0);
}

static void test_weights_shards_are_one_checkpoint(void **state)
{
    (void)state;
    qn_model_config_t config = llama_config();
    check_family(&config, NULL, 3);
}

/* 20 MB when widened: two chunks, each of which reads the whole source. */
static void test_weights_turned_source_of_several_chunks(void **state)
{
    (void)state;
    qn_model_config_t config = gpt2_config();
    config.layers = 1;
    config.hidden = 258;
    config.head_dim = 129;
    config.intermediate = 20003;
    damage_t damage = { .dtype = "BF16" };
    write_model(&config, &damage);
    check_format(&config, &FORMATS[0], &damage, 2);
    check_format(&config, &FORMATS[1], &damage, 2);
}

static void test_weights_f16_is_widened_exactly(void **state)
{
    (void)state;
    uint16_t halves[1 << 16];
    float *wide = malloc(sizeof halves * 2);
    for (uint32_t i = 0; i < 1 << 16; i++) halves[i] = (uint16_t)i;
    qn_weight_widen_f16(halves, 1 << 16, wide);
    for (uint32_t i = 0; i < 1 << 16; i++) {
        float wanted = safetensors_widen_f16((uint16_t)i);
        assert_memory_equal(&wide[i], &wanted, sizeof wanted);
    }
    free(wide);
}

static void test_weights_what_is_not_finite_cannot_be_quantised(void **state)
{
    (void)state;
    qn_model_config_t config = llama_config();
    static const char *const dtypes[] = { "BF16", "F32", "F16" };
    static const char *const names[] = { "model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight" };
    for (size_t i = 0; i < 6; i++) {
        write_model(&config, &(damage_t){ .dtype = dtypes[i / 2], .infinite = names[i % 2] });
        for (size_t f = 0; f < FORMAT_COUNT; f++) {
            weights_t *weights;
            weights_progress_t progress = { 0 };
            assert_int_equal(weights_plan(directory, &config, &FORMATS[f], &weights), QN_OK);
            qn_mapping_t *region = make_region(weights_bytes(weights));
            qn_err_t err = weights_fill(weights, region, 2, &progress);
            assert_int_equal(err, FORMATS[f].quantize == WEIGHTS_QUANTIZE_NONE ? QN_OK : QN_ERR_INVALID);
            if (err && (!strstr(qn_err_text(), names[i % 2]) || !strstr(qn_err_text(), "model.safetensors")))
                fail_msg("%s", qn_err_text());
            qn_region_close(&region);
            weights_destroy(&weights);
        }
    }
    write_model(&config, &(damage_t){ .infinite = "model.norm.weight" }); /* which is never quantised */
    check_format(&config, &FORMATS[3], &(damage_t){ .dtype = "BF16" }, 1);
}

static void test_weights_cancelled_fill_says_so(void **state)
{
    (void)state;
    qn_model_config_t config = small_config();
    weights_t *weights;
    weights_progress_t progress = { .cancel = true };
    write_model(&config, &(damage_t){ 0 });
    assert_int_equal(weights_plan(directory, &config, &AS_IT_IS, &weights), QN_OK);
    qn_mapping_t *region = make_region(weights_bytes(weights));
    assert_int_equal(weights_fill(weights, region, 2, &progress), QN_ERR_CANCELLED);
    assert_int_equal(progress.done_bytes, 0);
    qn_region_close(&region);
    weights_destroy(&weights);
}

static void test_weights_file_that_shrinks_is_an_error_not_a_signal(void **state)
{
    (void)state;
    qn_model_config_t configs[] = { llama_config(), gpt2_config() };
    char path[128];
    for (size_t i = 0; i < 4; i++) {
        weights_t *weights;
        weights_progress_t progress = { 0 };
        write_model(&configs[i / 2], &(damage_t){ 0 });
        assert_int_equal(weights_plan(directory, &configs[i / 2], &FORMATS[i % 2 * 3], &weights), QN_OK);
        snprintf(path, sizeof path, "%s/model.safetensors", directory);
        assert_int_equal(truncate(path, 100), 0);
        qn_mapping_t *region = make_region(weights_bytes(weights));
        assert_int_equal(weights_fill(weights, region, 2, &progress), QN_ERR_IO);
        assert_non_null(strstr(qn_err_text(), "became shorter"));
        assert_non_null(strstr(qn_err_text(), "model.safetensors: tensor '"));
        qn_region_close(&region);
        weights_destroy(&weights);
    }
}

/* ---- judging ---- */

static const struct { damage_t damage; qn_err_t err; const char *text; size_t left_out; } models[] = {
    { { 0 }, QN_OK, NULL, 0 },
    { { .leave_out = "model.layers.0.mlp.up_proj.weight" }, QN_ERR_INVALID,
      "'model.layers.0.mlp.up_proj.weight' is missing", 0 },
    { { .leave_out = "model.embed_tokens.weight" }, QN_ERR_INVALID, "'model.embed_tokens.weight' is missing", 0 },
    { { .reshape = "model.embed_tokens.weight" }, QN_ERR_INVALID, "has shape [11, 4], config.json means [10, 4]", 0 },
    { { .reshape = "model.norm.weight" }, QN_ERR_INVALID, "has shape [5], config.json means [4]", 0 },
    { { .reshape = "model.norm.weight", .strip = "model." }, QN_ERR_INVALID,
      "model.safetensors: tensor 'norm.weight' has shape [5]", 0 },
    { { .retype = "model.norm.weight", .retype_to = "F32" }, QN_OK, NULL, 0 },
    { { .retype = "model.norm.weight", .retype_to = "F16" }, QN_OK, NULL, 0 },
    { { .retype = "model.norm.weight", .retype_to = "I8" }, QN_ERR_UNSUPPORTED, "has dtype I8", 0 },
    { { .retype = "model.norm.weight", .retype_to = "F8_E4M3" }, QN_ERR_UNSUPPORTED, "has dtype F8_E4M3", 0 },
    { { .extra = "\"rotary.inv_freq\":{\"dtype\":\"U8\",\"shape\":[3]" }, QN_OK, NULL, 1 },
    { { .extra = "\"attn.mask\":{\"dtype\":\"BOOL\",\"shape\":[3]" }, QN_OK, NULL, 1 },
};

static void test_weights_checkpoints_are_judged_against_the_model(void **state)
{
    (void)state;
    qn_model_config_t config = small_config();
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        weights_t *weights = NULL;
        write_model(&config, &models[i].damage);
        qn_err_t err = weights_plan(directory, &config, &AS_IT_IS, &weights);
        if (err != models[i].err) fail_msg("model %zu: %d %s", i, err, err ? qn_err_text() : "accepted");
        if (err) {
            if (!strstr(qn_err_text(), models[i].text)) fail_msg("model %zu: %s", i, qn_err_text());
            assert_null(weights);
            continue;
        }
        check_table(weights);
        assert_int_equal(weights_left_out(weights), models[i].left_out);
        weights_destroy(&weights);
    }
}

static void test_weights_part_of_a_gpt2_source_is_named_by_the_source(void **state)
{
    (void)state;
    qn_model_config_t config = gpt2_config();
    weights_t *weights = NULL;
    write_model(&config, &(damage_t){ .leave_out = "transformer.h.1.attn.c_attn.weight" });
    assert_int_equal(weights_plan(directory, &config, &AS_IT_IS, &weights), QN_ERR_INVALID);
    assert_non_null(strstr(qn_err_text(), "'transformer.h.1.attn.c_attn.weight' is missing"));
    write_model(&config, &(damage_t){ .reshape = "transformer.h.0.attn.c_attn.weight" });
    assert_int_equal(weights_plan(directory, &config, &AS_IT_IS, &weights), QN_ERR_INVALID);
    assert_non_null(strstr(qn_err_text(), "has shape [76, 229], config.json means [76, 228]"));
}

static void test_weights_untied_model_needs_its_head(void **state)
{
    (void)state;
    qn_model_config_t config = small_config();
    weights_t *weights = NULL;
    write_model(&config, &(damage_t){ 0 });
    config.tie_embeddings = false;
    assert_int_equal(weights_plan(directory, &config, &AS_IT_IS, &weights), QN_ERR_INVALID);
    assert_non_null(strstr(qn_err_text(), "lm_head.weight"));
    write_model(&config, &(damage_t){ 0 });
    assert_int_equal(weights_plan(directory, &config, &AS_IT_IS, &weights), QN_OK);
    weights_destroy(&weights);
    config.tie_embeddings = true; /* a head that the embedding stands in for is left out */
    assert_int_equal(weights_plan(directory, &config, &AS_IT_IS, &weights), QN_OK);
    assert_int_equal(weights_left_out(weights), 1);
    weights_destroy(&weights);
}

/* ---- choosing the format ---- */

static void test_weights_format_follows_the_configuration(void **state)
{
    (void)state;
    static const struct { const char *sets[4]; weights_format_t format; const char *text; } cases[] = {
        { { NULL }, { .layout = QN_LAYOUT_PANELS }, NULL },
        { { "model.layout=panels" }, { .layout = QN_LAYOUT_PANELS }, NULL },
        { { "model.layout=rows" }, { .layout = QN_LAYOUT_ROWS }, NULL },
        { { "compute.backend=cuda" }, { .layout = QN_LAYOUT_ROWS }, NULL },
        { { "compute.backend=cuda", "model.layout=rows" }, { .layout = QN_LAYOUT_ROWS }, NULL },
        { { "model.quantize=int8" }, { QN_LAYOUT_PANELS, WEIGHTS_QUANTIZE_INT8, 0 }, NULL },
        { { "model.quantize=int4" }, { QN_LAYOUT_PANELS, WEIGHTS_QUANTIZE_INT4, 32 }, NULL },
        { { "model.quantize=int4", "model.quantize_group=64" }, { QN_LAYOUT_PANELS, WEIGHTS_QUANTIZE_INT4, 64 }, NULL },
        { { "model.quantize=int8", "model.layout=rows" }, { 0 }, "needs model.layout panels" },
        { { "model.quantize=int8", "compute.backend=cuda" }, { 0 }, "set model.quantize to none" },
        { { "model.layout=panels", "compute.backend=cuda" }, { 0 }, "leave model.layout at auto" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        size_t count = 0;
        qn_config_t *config = NULL;
        weights_format_t format = { 0 };
        while (cases[i].sets[count]) count++;
        assert_int_equal(qn_config_load(NULL, cases[i].sets, count, "/tmp", &config), QN_OK);
        qn_err_t err = weights_format_choose(qn_config_values(config), &format);
        assert_int_equal(err, cases[i].text ? QN_ERR_CONFIG : QN_OK);
        if (err) assert_non_null(strstr(qn_err_text(), cases[i].text));
        else assert_memory_equal(&format, &cases[i].format, sizeof format);
        qn_config_free(&config);
    }
}

/* ---- fingerprint ---- */

static uint64_t fingerprint_of(const qn_model_config_t *config, const weights_format_t *format)
{
    weights_t *weights;
    assert_int_equal(weights_plan(directory, config, format, &weights), QN_OK);
    uint64_t fingerprint = weights_fingerprint(weights);
    weights_destroy(&weights);
    return fingerprint;
}

static void set_time(const char *path, long seconds)
{
    struct timespec times[2] = { { .tv_sec = seconds }, { .tv_sec = seconds } };
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

static void test_weights_fingerprint_sees_every_kind_of_change(void **state)
{
    (void)state;
    qn_model_config_t config = small_config();
    char path[128];
    snprintf(path, sizeof path, "%s/model.safetensors", directory);
    write_model(&config, &(damage_t){ 0 });
    set_time(path, 1000);
    uint64_t original = fingerprint_of(&config, &AS_IT_IS);
    assert_int_not_equal(original, 0);
    assert_true(fingerprint_of(&config, &AS_IT_IS) == original);

    set_time(path, 1001); /* touched */
    assert_true(fingerprint_of(&config, &AS_IT_IS) != original);

    struct stat info; /* one byte of content, same size and time */
    assert_int_equal(stat(path, &info), 0);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    assert_int_equal(pwrite(fd, "!", 1, info.st_size - 1), 1);
    close(fd);
    set_time(path, 1000);
    assert_true(fingerprint_of(&config, &AS_IT_IS) != original);

    write_model(&config, &(damage_t){ .retype = "model.norm.weight", .retype_to = "F16" });
    set_time(path, 1000);
    assert_true(fingerprint_of(&config, &AS_IT_IS) != original);

    write_model(&config, &(damage_t){ 0 });
    set_time(path, 1000);
    assert_true(fingerprint_of(&config, &AS_IT_IS) == original);
    for (size_t i = 0; i < FORMAT_COUNT; i++) { /* another format is another region */
        for (size_t j = 0; j < i; j++)
            assert_true(fingerprint_of(&config, &FORMATS[i]) != fingerprint_of(&config, &FORMATS[j]));
    }
}

/* Values of the reference implementation. */
static void test_weights_fingerprint_function_is_xxh64(void **state)
{
    (void)state;
    static const struct { const char *text; uint64_t seed, hash; } known[] = {
        { "", 0, 0xef46db3751d8e999u },
        { "a", 0, 0xd24ec4f1a98c6e5bu },
        { "abc", 0, 0x44bc2cf5ad770999u },
        { "Nobody inspects the spammish repetition", 0, 0xfbcea83c8a378bf1u },
        { "", 2654435761u, 0xac75fda2929b17efu },
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        assert_true(fingerprint_bytes(known[i].text, strlen(known[i].text), known[i].seed) == known[i].hash);
}

/* ---- dummy ---- */

static qn_mapping_t *fill_dummy(const qn_model_config_t *config, uint64_t seed, const weights_format_t *format,
                                unsigned threads, weights_t **weights)
{
    weights_progress_t progress = { 0 };
    assert_int_equal(weights_plan_dummy(config, seed, format, weights), QN_OK);
    check_table(*weights);
    qn_mapping_t *region = make_region(weights_bytes(*weights));
    assert_int_equal(weights_fill(*weights, region, threads, &progress), QN_OK);
    return region;
}

static void test_weights_dummy_depends_on_the_seed_alone(void **state)
{
    (void)state;
    qn_model_config_t config = small_config();
    config.vocab = 1 << 17;
    config.hidden = 61; /* an embedding of 15 MiB: two chunks, of elements that are no multiple of four */
    weights_t *weights[3];
    qn_mapping_t *regions[3] = { fill_dummy(&config, 1, &AS_IT_IS, 1, &weights[0]),
                                 fill_dummy(&config, 1, &AS_IT_IS, 4, &weights[1]),
                                 fill_dummy(&config, 2, &AS_IT_IS, 1, &weights[2]) };
    uint64_t bytes = weights_bytes(weights[0]);
    assert_int_equal(memcmp(qn_region_pointer(regions[0]), qn_region_pointer(regions[1]), bytes), 0);
    assert_int_not_equal(memcmp(qn_region_pointer(regions[0]), qn_region_pointer(regions[2]), bytes), 0);
    assert_true(weights_fingerprint(weights[0]) == weights_fingerprint(weights[1]));
    assert_true(weights_fingerprint(weights[0]) != weights_fingerprint(weights[2]));
    for (size_t i = 0; i < 3; i++) {
        qn_region_close(&regions[i]);
        weights_destroy(&weights[i]);
    }
}

static const void *at(const qn_mapping_t *region, const weights_t *weights, size_t index)
{
    return (const uint8_t *)qn_region_pointer(region) + weights_at(weights, index)->offset;
}

/* Whatever the format, the numbers are those of the rows, packed. */
static void test_weights_dummy_is_the_same_model_in_every_format(void **state)
{
    (void)state;
    qn_model_config_t configs[] = { llama_config(), gpt2_config(), mixtral_config() };
    for (size_t c = 0; c < 3; c++) {
        weights_t *plain, *weights;
        qn_mapping_t *rows = fill_dummy(&configs[c], 5, &AS_IT_IS, 1, &plain);
        for (size_t f = 1; f < FORMAT_COUNT; f++) {
            qn_mapping_t *region = fill_dummy(&configs[c], 5, &FORMATS[f], 3, &weights);
            for (size_t i = 0; i < weights_count(weights); i++) {
                qn_model_tensor_t tensor;
                qn_model_tensor_at(&configs[c], i, &tensor);
                uint64_t count = tensor.shape[0] * (tensor.rank == 2 ? tensor.shape[1] : 1), bytes;
                float *values = malloc(count * sizeof *values);
                qn_weight_widen_bf16(at(rows, plain, i), count, values);
                void *packed = pack_by_hand(&FORMATS[f], &tensor, "BF16", values, &bytes);
                assert_int_equal(bytes, weights_at(weights, i)->bytes);
                assert_memory_equal(at(region, weights, i), packed, bytes);
                free(values);
                free(packed);
            }
            qn_region_close(&region);
            weights_destroy(&weights);
        }
        qn_region_close(&rows);
        weights_destroy(&plain);
    }
}

static void test_weights_dummy_has_the_stated_distribution(void **state)
{
    (void)state;
    for (float offset = 0; offset <= 1; offset++) {
        qn_model_config_t config = small_config();
        config.vocab = 10000;
        config.norm_weight_offset = offset;
        weights_t *weights;
        qn_mapping_t *region = fill_dummy(&config, 7, &AS_IT_IS, 2, &weights);
        assert_int_equal(weights_count(weights), qn_model_tensor_count(&config));
        for (size_t i = 0; i < weights_count(weights); i++) {
            const weights_tensor_t *tensor = weights_at(weights, i);
            const uint16_t *values = at(region, weights, i);
            double sum = 0, squares = 0, count = (double)tensor->bytes / 2;
            for (uint64_t j = 0; j < tensor->bytes / 2; j++) {
                float value;
                qn_weight_widen_bf16(&values[j], 1, &value);
                sum += value;
                squares += (double)value * value;
            }
            if (strstr(tensor->name, "norm")) assert_true(sum == count * (1 - (double)offset));
            if (!strstr(tensor->name, "embed")) continue; /* large enough for statistics: 40000 values */
            assert_true(sum / count > -0.0005 && sum / count < 0.0005);
            assert_true(squares / count > 0.00039 && squares / count < 0.00041);
        }
        qn_region_close(&region);
        weights_destroy(&weights);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_weights_bundled_model_arrives_byte_for_byte),
        cmocka_unit_test_setup_teardown(test_weights_every_format_is_the_whole_tensor_packed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_weights_experts_are_brought_one_by_one, setup, teardown),
        cmocka_unit_test_setup_teardown(test_weights_split_and_turned_sources_of_gpt2, setup, teardown),
        cmocka_unit_test_setup_teardown(test_weights_names_without_their_prefix_are_found, setup, teardown),
        cmocka_unit_test_setup_teardown(test_weights_shards_are_one_checkpoint, setup, teardown),
        cmocka_unit_test_setup_teardown(test_weights_turned_source_of_several_chunks, setup, teardown),
        cmocka_unit_test(test_weights_f16_is_widened_exactly),
        cmocka_unit_test_setup_teardown(test_weights_what_is_not_finite_cannot_be_quantised, setup, teardown),
        cmocka_unit_test_setup_teardown(test_weights_cancelled_fill_says_so, setup, teardown),
        cmocka_unit_test_setup_teardown(test_weights_file_that_shrinks_is_an_error_not_a_signal, setup, teardown),
        cmocka_unit_test_setup_teardown(test_weights_checkpoints_are_judged_against_the_model, setup, teardown),
        cmocka_unit_test_setup_teardown(test_weights_part_of_a_gpt2_source_is_named_by_the_source, setup, teardown),
        cmocka_unit_test_setup_teardown(test_weights_untied_model_needs_its_head, setup, teardown),
        cmocka_unit_test(test_weights_format_follows_the_configuration),
        cmocka_unit_test_setup_teardown(test_weights_fingerprint_sees_every_kind_of_change, setup, teardown),
        cmocka_unit_test(test_weights_fingerprint_function_is_xxh64),
        cmocka_unit_test(test_weights_dummy_depends_on_the_seed_alone),
        cmocka_unit_test(test_weights_dummy_is_the_same_model_in_every_format),
        cmocka_unit_test(test_weights_dummy_has_the_stated_distribution),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
