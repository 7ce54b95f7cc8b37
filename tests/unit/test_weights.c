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

#include "common/model_tensors.h"
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
                                .vocab = 10, .max_positions = 32, .tie_embeddings = true };
}

/* What write_model changes of a correct checkpoint. */
typedef struct {
    const char *leave_out;         /* tensor name */
    const char *reshape;           /* tensor name: gets one row more */
    const char *retype;            /* tensor name */
    const char *dtype;             /* of `retype` */
    size_t dtype_bytes;
    const char *extra;             /* JSON of a further tensor of 3 bytes at the end, without offsets */
} damage_t;

/* Writes model.safetensors for `config` in bf16; byte i of the data is i * 7. */
static void write_model(const qn_model_config_t *config, const damage_t *damage)
{
    char path[128], header[16384], *end = header;
    uint64_t offset = 0;
    end += sprintf(end, "{");
    for (size_t i = 0; i < qn_model_tensor_count(config); i++) {
        qn_model_tensor_t tensor;
        qn_model_tensor_at(config, i, &tensor);
        if (damage->leave_out && strcmp(damage->leave_out, tensor.name) == 0) continue;
        if (damage->reshape && strcmp(damage->reshape, tensor.name) == 0) tensor.shape[0]++;
        bool retype = damage->retype && strcmp(damage->retype, tensor.name) == 0;
        uint64_t bytes = tensor.shape[0] * (tensor.rank > 1 ? tensor.shape[1] : 1) * (retype ? damage->dtype_bytes : 2);
        end += sprintf(end, "\"%s\":{\"dtype\":\"%s\",\"shape\":[%d", tensor.name, retype ? damage->dtype : "BF16",
                       (int)tensor.shape[0]);
        if (tensor.rank > 1) end += sprintf(end, ",%d", (int)tensor.shape[1]);
        end += sprintf(end, "],\"data_offsets\":[%d,%d]},", (int)offset, (int)(offset + bytes));
        offset += bytes;
    }
    if (damage->extra) {
        end += sprintf(end, "%s,\"data_offsets\":[%d,%d]},", damage->extra, (int)offset, (int)offset + 3);
        offset += 3;
    }
    strcpy(end - 1, "}");
    snprintf(path, sizeof path, "%s/model.safetensors", directory);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    uint64_t header_bytes = strlen(header);
    fwrite(&header_bytes, 8, 1, file);
    fwrite(header, 1, header_bytes, file);
    for (uint64_t i = 0; i < offset; i++) fputc((int)(i * 7 & 255), file);
    fclose(file);
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
                                 .intermediate = 768, .vocab = 4096, .tie_embeddings = true };
    for (unsigned threads = 1; threads <= 3; threads += 2) {
        weights_t *weights;
        safetensors_t *checkpoint;
        weights_progress_t progress = { 0 };
        if (weights_plan("deploy/models/default", &config, &weights)) fail_msg("%s", qn_err_text());
        assert_int_equal(safetensors_open("deploy/models/default", &checkpoint), QN_OK);
        assert_int_equal(weights_count(weights), safetensors_count(checkpoint));
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

static void test_weights_f16_becomes_f32(void **state)
{
    (void)state;
    qn_model_config_t config = small_config();
    config.vocab = 1 << 20; /* 16 MiB when widened: two chunks */
    weights_t *weights;
    safetensors_t *checkpoint;
    weights_progress_t progress = { 0 };
    write_model(&config, &(damage_t){ .retype = "model.embed_tokens.weight", .dtype = "F16", .dtype_bytes = 2 });
    assert_int_equal(weights_plan(directory, &config, &weights), QN_OK);
    assert_int_equal(safetensors_open(directory, &checkpoint), QN_OK);
    check_table(weights);
    qn_mapping_t *region = make_region(weights_bytes(weights));
    assert_int_equal(weights_fill(weights, region, 2, &progress), QN_OK);
    const safetensors_tensor_t *source = safetensors_find(checkpoint, "model.embed_tokens.weight");
    size_t index = 0;
    while (strcmp(weights_at(weights, index)->name, source->name) != 0) index++;
    const weights_tensor_t *tensor = weights_at(weights, index);
    assert_int_equal(tensor->dtype, QN_DTYPE_F32);
    assert_int_equal(tensor->bytes, 4ull * 4 << 20);
    float *wanted = malloc(tensor->bytes);
    assert_non_null(wanted);
    assert_int_equal(safetensors_read_f32(source, 0, 4ull << 20, wanted), QN_OK);
    assert_memory_equal((uint8_t *)qn_region_pointer(region) + tensor->offset, wanted, tensor->bytes);
    free(wanted);
    qn_region_close(&region);
    safetensors_close(&checkpoint);
    weights_destroy(&weights);
}

static void test_weights_cancelled_fill_says_so(void **state)
{
    (void)state;
    qn_model_config_t config = small_config();
    weights_t *weights;
    weights_progress_t progress = { .cancel = true };
    write_model(&config, &(damage_t){ 0 });
    assert_int_equal(weights_plan(directory, &config, &weights), QN_OK);
    qn_mapping_t *region = make_region(weights_bytes(weights));
    assert_int_equal(weights_fill(weights, region, 2, &progress), QN_ERR_CANCELLED);
    assert_int_equal(progress.done_bytes, 0);
    qn_region_close(&region);
    weights_destroy(&weights);
}

static void test_weights_file_that_shrinks_is_an_error_not_a_signal(void **state)
{
    (void)state;
    qn_model_config_t config = small_config();
    char path[128];
    weights_t *weights;
    weights_progress_t progress = { 0 };
    write_model(&config, &(damage_t){ 0 });
    assert_int_equal(weights_plan(directory, &config, &weights), QN_OK);
    snprintf(path, sizeof path, "%s/model.safetensors", directory);
    assert_int_equal(truncate(path, 100), 0);
    qn_mapping_t *region = make_region(weights_bytes(weights));
    assert_int_equal(weights_fill(weights, region, 2, &progress), QN_ERR_IO);
    assert_non_null(strstr(qn_err_text(), "became shorter"));
    assert_non_null(strstr(qn_err_text(), "model.safetensors"));
    qn_region_close(&region);
    weights_destroy(&weights);
}

/* ---- judging ---- */

static const struct { damage_t damage; qn_err_t err; const char *text; size_t left_out; } models[] = {
    { { 0 }, QN_OK, NULL, 0 },
    { { .leave_out = "model.layers.0.mlp.up_proj.weight" }, QN_ERR_INVALID,
      "'model.layers.0.mlp.up_proj.weight' is missing", 0 },
    { { .leave_out = "model.embed_tokens.weight" }, QN_ERR_INVALID, "'model.embed_tokens.weight' is missing", 0 },
    { { .reshape = "model.embed_tokens.weight" }, QN_ERR_INVALID, "has shape [11, 4], config.json means [10, 4]", 0 },
    { { .reshape = "model.norm.weight" }, QN_ERR_INVALID, "has shape [5], config.json means [4]", 0 },
    { { .retype = "model.norm.weight", .dtype = "F32", .dtype_bytes = 4 }, QN_OK, NULL, 0 },
    { { .retype = "model.norm.weight", .dtype = "F16", .dtype_bytes = 2 }, QN_OK, NULL, 0 },
    { { .retype = "model.norm.weight", .dtype = "I8", .dtype_bytes = 1 }, QN_ERR_UNSUPPORTED, "has dtype I8", 0 },
    { { .retype = "model.norm.weight", .dtype = "F8_E4M3", .dtype_bytes = 1 }, QN_ERR_UNSUPPORTED,
      "has dtype F8_E4M3", 0 },
    { { .extra = "\"rotary.inv_freq\":{\"dtype\":\"U8\",\"shape\":[3]" }, QN_OK, NULL, 0 },
    { { .extra = "\"attn.mask\":{\"dtype\":\"BOOL\",\"shape\":[3]" }, QN_OK, NULL, 1 },
};

static void test_weights_checkpoints_are_judged_against_the_model(void **state)
{
    (void)state;
    qn_model_config_t config = small_config();
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        weights_t *weights = NULL;
        write_model(&config, &models[i].damage);
        qn_err_t err = weights_plan(directory, &config, &weights);
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

static void test_weights_untied_model_needs_its_head(void **state)
{
    (void)state;
    qn_model_config_t config = small_config();
    weights_t *weights = NULL;
    write_model(&config, &(damage_t){ 0 });
    config.tie_embeddings = false;
    assert_int_equal(weights_plan(directory, &config, &weights), QN_ERR_INVALID);
    assert_non_null(strstr(qn_err_text(), "lm_head.weight"));
    write_model(&config, &(damage_t){ 0 });
    assert_int_equal(weights_plan(directory, &config, &weights), QN_OK);
    weights_destroy(&weights);
}

/* ---- fingerprint ---- */

static uint64_t fingerprint_of(const qn_model_config_t *config)
{
    weights_t *weights;
    assert_int_equal(weights_plan(directory, config, &weights), QN_OK);
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
    uint64_t original = fingerprint_of(&config);
    assert_int_not_equal(original, 0);
    assert_true(fingerprint_of(&config) == original);

    set_time(path, 1001); /* touched */
    assert_true(fingerprint_of(&config) != original);

    struct stat info; /* one byte of content, same size and time */
    assert_int_equal(stat(path, &info), 0);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    assert_int_equal(pwrite(fd, "!", 1, info.st_size - 1), 1);
    close(fd);
    set_time(path, 1000);
    assert_true(fingerprint_of(&config) != original);

    write_model(&config, &(damage_t){ .retype = "model.norm.weight", .dtype = "F16", .dtype_bytes = 2 });
    set_time(path, 1000);
    assert_true(fingerprint_of(&config) != original);

    write_model(&config, &(damage_t){ 0 });
    set_time(path, 1000);
    assert_true(fingerprint_of(&config) == original);
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

static qn_mapping_t *fill_dummy(const qn_model_config_t *config, uint64_t seed, unsigned threads, weights_t **weights)
{
    weights_progress_t progress = { 0 };
    assert_int_equal(weights_plan_dummy(config, seed, weights), QN_OK);
    qn_mapping_t *region = make_region(weights_bytes(*weights));
    assert_int_equal(weights_fill(*weights, region, threads, &progress), QN_OK);
    return region;
}

static void test_weights_dummy_depends_on_the_seed_alone(void **state)
{
    (void)state;
    qn_model_config_t config = small_config();
    config.vocab = 1 << 17;
    config.hidden = 64; /* an embedding of 16 MiB: two chunks */
    weights_t *weights[3];
    qn_mapping_t *regions[3] = { fill_dummy(&config, 1, 1, &weights[0]), fill_dummy(&config, 1, 4, &weights[1]),
                                 fill_dummy(&config, 2, 1, &weights[2]) };
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

static void test_weights_dummy_has_the_stated_distribution(void **state)
{
    (void)state;
    qn_model_config_t config = small_config();
    config.vocab = 10000;
    weights_t *weights;
    qn_mapping_t *region = fill_dummy(&config, 7, 2, &weights);
    assert_int_equal(weights_count(weights), qn_model_tensor_count(&config));
    for (size_t i = 0; i < weights_count(weights); i++) {
        const weights_tensor_t *tensor = weights_at(weights, i);
        const uint16_t *values = (const uint16_t *)((uint8_t *)qn_region_pointer(region) + tensor->offset);
        double sum = 0, squares = 0;
        for (uint64_t j = 0; j < tensor->bytes / 2; j++) {
            uint32_t bits = (uint32_t)values[j] << 16;
            float value;
            memcpy(&value, &bits, sizeof value);
            sum += value;
            squares += (double)value * value;
        }
        double count = (double)tensor->bytes / 2;
        if (strstr(tensor->name, "norm")) assert_true(sum == count);
        if (!strstr(tensor->name, "embed")) continue; /* large enough for statistics: 40000 values */
        assert_true(sum / count > -0.0005 && sum / count < 0.0005);
        assert_true(squares / count > 0.00039 && squares / count < 0.00041);
    }
    qn_region_close(&region);
    weights_destroy(&weights);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_weights_bundled_model_arrives_byte_for_byte),
        cmocka_unit_test_setup_teardown(test_weights_f16_becomes_f32, setup, teardown),
        cmocka_unit_test_setup_teardown(test_weights_cancelled_fill_says_so, setup, teardown),
        cmocka_unit_test_setup_teardown(test_weights_file_that_shrinks_is_an_error_not_a_signal, setup, teardown),
        cmocka_unit_test_setup_teardown(test_weights_checkpoints_are_judged_against_the_model, setup, teardown),
        cmocka_unit_test_setup_teardown(test_weights_untied_model_needs_its_head, setup, teardown),
        cmocka_unit_test_setup_teardown(test_weights_fingerprint_sees_every_kind_of_change, setup, teardown),
        cmocka_unit_test(test_weights_fingerprint_function_is_xxh64),
        cmocka_unit_test(test_weights_dummy_depends_on_the_seed_alone),
        cmocka_unit_test(test_weights_dummy_has_the_stated_distribution),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
