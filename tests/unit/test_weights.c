/* The weights region: every byte at its place, the same for any number of threads, and no model with a hole. */
#include "tests/unit/weights_case.h"

/* ---- filling ---- */

static void test_weights_bundled_model_arrives_byte_for_byte(void **state)
{
    (void)state;
    qn_model_config_t config = {.layers = 8,
                                .hidden = 256,
                                .heads = 4,
                                .kv_heads = 2,
                                .head_dim = 64,
                                .intermediate = 768,
                                .vocab = 4096,
                                .tie_embeddings = true,
                                .gated_mlp = true,
                                .rope.type = QN_ROPE_DEFAULT};
    for (unsigned threads = 1; threads <= 3; threads += 2) {
        weights_t *weights;
        safetensors_t *checkpoint;
        weights_progress_t progress = {0};
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

static void test_weights_cancelled_fill_says_so(void **state)
{
    (void)state;
    qn_model_config_t config = small_config();
    weights_t *weights;
    weights_progress_t progress = {.cancel = true};
    write_model(&config, &(damage_t){0});
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
    qn_model_config_t configs[] = {llama_config(), gpt2_config()};
    char path[128];
    for (size_t i = 0; i < 4; i++) {
        weights_t *weights;
        weights_progress_t progress = {0};
        write_model(&configs[i / 2], &(damage_t){0});
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

static const struct {
    damage_t damage;
    qn_err_t err;
    const char *text;
    size_t left_out;
} models[] = {
    {{0}, QN_OK, NULL, 0},
    {{.leave_out = "model.layers.0.mlp.up_proj.weight"},
     QN_ERR_INVALID,
     "'model.layers.0.mlp.up_proj.weight' is missing",
     0},
    {{.leave_out = "model.embed_tokens.weight"}, QN_ERR_INVALID, "'model.embed_tokens.weight' is missing", 0},
    {{.reshape = "model.embed_tokens.weight"}, QN_ERR_INVALID, "has shape [11, 4], config.json means [10, 4]", 0},
    {{.reshape = "model.norm.weight"}, QN_ERR_INVALID, "has shape [5], config.json means [4]", 0},
    {{.reshape = "model.norm.weight", .strip = "model."},
     QN_ERR_INVALID,
     "model.safetensors: tensor 'norm.weight' has shape [5]",
     0},
    {{.retype = "model.norm.weight", .retype_to = "F32"}, QN_OK, NULL, 0},
    {{.retype = "model.norm.weight", .retype_to = "F16"}, QN_OK, NULL, 0},
    {{.retype = "model.norm.weight", .retype_to = "I8"}, QN_ERR_UNSUPPORTED, "has dtype I8", 0},
    {{.retype = "model.norm.weight", .retype_to = "F8_E4M3"}, QN_ERR_UNSUPPORTED, "has dtype F8_E4M3", 0},
    {{.extra = "\"rotary.inv_freq\":{\"dtype\":\"U8\",\"shape\":[3]"}, QN_OK, NULL, 1},
    {{.extra = "\"attn.mask\":{\"dtype\":\"BOOL\",\"shape\":[3]"}, QN_OK, NULL, 1},
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
    write_model(&config, &(damage_t){.leave_out = "transformer.h.1.attn.c_attn.weight"});
    assert_int_equal(weights_plan(directory, &config, &AS_IT_IS, &weights), QN_ERR_INVALID);
    assert_non_null(strstr(qn_err_text(), "'transformer.h.1.attn.c_attn.weight' is missing"));
    write_model(&config, &(damage_t){.reshape = "transformer.h.0.attn.c_attn.weight"});
    assert_int_equal(weights_plan(directory, &config, &AS_IT_IS, &weights), QN_ERR_INVALID);
    assert_non_null(strstr(qn_err_text(), "has shape [76, 229], config.json means [76, 228]"));
}

static void test_weights_untied_model_needs_its_head(void **state)
{
    (void)state;
    qn_model_config_t config = small_config();
    weights_t *weights = NULL;
    write_model(&config, &(damage_t){0});
    config.tie_embeddings = false;
    assert_int_equal(weights_plan(directory, &config, &AS_IT_IS, &weights), QN_ERR_INVALID);
    assert_non_null(strstr(qn_err_text(), "lm_head.weight"));
    write_model(&config, &(damage_t){0});
    assert_int_equal(weights_plan(directory, &config, &AS_IT_IS, &weights), QN_OK);
    weights_destroy(&weights);
}

/* Overwrites `bytes` bytes of a tensor of the checkpoint on disk, from `offset` on. */
static void overwrite(const char *name, uint64_t offset, const void *bytes, size_t count)
{
    safetensors_t *checkpoint;
    char path[128];
    snprintf(path, sizeof path, "%s/model.safetensors", directory);
    assert_int_equal(safetensors_open(directory, &checkpoint), QN_OK);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    off_t at = (off_t)(safetensors_find(checkpoint, name)->file_offset + offset);
    assert_int_equal(pwrite(fd, bytes, count, at), (ssize_t)count);
    close(fd);
    safetensors_close(&checkpoint);
}

/* As transformers does it: a head of its own is used, whatever the flag says, and an equal one is the embedding. */
static void test_weights_tied_flag_beside_a_head(void **state)
{
    (void)state;
    qn_model_config_t config = small_config();
    weights_t *weights = NULL;
    config.tie_embeddings = false;
    write_model(&config, &(damage_t){0});
    config.tie_embeddings = true;
    assert_int_equal(weights_plan(directory, &config, &AS_IT_IS, &weights), QN_OK);
    assert_false(weights_config(weights)->tie_embeddings);
    assert_int_equal(weights_count(weights), qn_model_tensor_count(weights_config(weights)));
    assert_string_equal(weights_at(weights, weights_count(weights) - 1)->name, "lm_head.weight");
    assert_non_null(strstr(weights_warnings(weights)->texts[0], "\"tie_word_embeddings\" is true"));
    assert_int_equal(weights_left_out(weights), 0);
    weights_destroy(&weights);

    uint16_t same[10 * 4];
    for (size_t i = 0; i < sizeof same / sizeof *same; i++)
        same[i] = 0x3f80 + (uint16_t)i;
    overwrite("model.embed_tokens.weight", 0, same, sizeof same);
    overwrite("lm_head.weight", 0, same, sizeof same);
    assert_int_equal(weights_plan(directory, &config, &AS_IT_IS, &weights), QN_OK);
    assert_true(weights_config(weights)->tie_embeddings);
    assert_int_equal(weights_left_out(weights), 1);
    assert_int_equal(weights_warnings(weights)->count, 0);
    weights_destroy(&weights);
    same[39] ^= 1; /* the last number is enough */
    overwrite("lm_head.weight", 0, same, sizeof same);
    assert_int_equal(weights_plan(directory, &config, &AS_IT_IS, &weights), QN_OK);
    assert_false(weights_config(weights)->tie_embeddings);
    weights_destroy(&weights);

    config.tie_embeddings = false;
    write_model(&config, &(damage_t){.reshape = "lm_head.weight"});
    config.tie_embeddings = true;
    assert_int_equal(weights_plan(directory, &config, &AS_IT_IS, &weights), QN_ERR_INVALID);
    assert_non_null(strstr(qn_err_text(), "'lm_head.weight' has shape [11, 4], config.json means [10, 4]"));
}

static void test_weights_tied_model_with_only_its_head(void **state)
{
    (void)state;
    qn_model_config_t config = small_config();
    weights_t *weights = NULL;
    config.tie_embeddings = false;
    write_model(&config, &(damage_t){.leave_out = "model.embed_tokens.weight"});
    assert_int_equal(weights_plan(directory, &config, &AS_IT_IS, &weights), QN_ERR_INVALID);
    assert_non_null(strstr(qn_err_text(), "model.embed_tokens.weight"));
    config.tie_embeddings = true;
    assert_int_equal(weights_plan(directory, &config, &AS_IT_IS, &weights), QN_OK);
    assert_string_equal(weights_at(weights, 0)->name, "model.embed_tokens.weight");
    assert_int_equal(weights_left_out(weights), 0);
    assert_int_equal(weights_warnings(weights)->count, 0);
    weights_destroy(&weights);
}

static void test_weights_layers_must_be_as_many_as_the_configuration_says(void **state)
{
    (void)state;
    static const uint32_t said[] = {1, 3};
    qn_model_config_t configs[] = {llama_config(), gpt2_config()};
    for (size_t i = 0; i < 4; i++) {
        qn_model_config_t *config = &configs[i / 2];
        weights_t *weights = NULL;
        config->layers = 2;
        write_model(config, &(damage_t){0});
        config->layers = said[i % 2];
        assert_int_equal(weights_plan(directory, config, &AS_IT_IS, &weights), QN_ERR_INVALID);
        if (!strstr(qn_err_text(), i / 2 ? "\"n_layer\" must be 2" : "\"num_hidden_layers\" must be 2"))
            fail_msg("%s", qn_err_text());
        config->layers = 2; /* the advice is true */
        assert_int_equal(weights_plan(directory, config, &AS_IT_IS, &weights), QN_OK);
        weights_destroy(&weights);
    }
}

static void test_weights_what_is_left_out_is_said(void **state)
{
    (void)state;
    qn_model_config_t config = small_config();
    weights_t *weights = NULL;
    write_model(&config, &(damage_t){.extra = "\"mtp.fc.weight\":{\"dtype\":\"F4\",\"shape\":[6]"});
    snprintf(config.dtype_name, sizeof config.dtype_name, "float16");
    assert_int_equal(weights_plan(directory, &config, &AS_IT_IS, &weights), QN_OK);
    assert_int_equal(weights_warnings(weights)->count, 2);
    assert_non_null(
        strstr(weights_warnings(weights)->texts[0], "is float16, but tensor 'model.embed_tokens.weight' is BF16"));
    assert_non_null(strstr(weights_warnings(weights)->texts[1], "1 tensor of the checkpoint is left out"));
    assert_non_null(strstr(weights_warnings(weights)->texts[1], "mtp.fc.weight"));
    weights_destroy(&weights);
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
    struct timespec times[2] = {{.tv_sec = seconds}, {.tv_sec = seconds}};
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

static void test_weights_fingerprint_sees_every_kind_of_change(void **state)
{
    (void)state;
    qn_model_config_t config = small_config();
    char path[128];
    snprintf(path, sizeof path, "%s/model.safetensors", directory);
    write_model(&config, &(damage_t){0});
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

    write_model(&config, &(damage_t){.retype = "model.norm.weight", .retype_to = "F16"});
    set_time(path, 1000);
    assert_true(fingerprint_of(&config, &AS_IT_IS) != original);

    write_model(&config, &(damage_t){0});
    set_time(path, 1000);
    assert_true(fingerprint_of(&config, &AS_IT_IS) == original);
    for (size_t i = 0; i < FORMAT_COUNT; i++) { /* another format is another region */
        for (size_t j = 0; j < i; j++)
            assert_true(fingerprint_of(&config, &FORMATS[i]) != fingerprint_of(&config, &FORMATS[j]));
    }
}

/* Values of the reference implementation. */
/* ---- dummy ---- */

static void test_weights_dummy_depends_on_the_seed_alone(void **state)
{
    (void)state;
    qn_model_config_t config = small_config();
    config.vocab = 1 << 17;
    config.hidden = 61; /* an embedding of 15 MiB: two chunks, of elements that are no multiple of four */
    weights_t *weights[3];
    qn_mapping_t *regions[3] = {fill_dummy(&config, 1, &AS_IT_IS, 1, &weights[0]),
                                fill_dummy(&config, 1, &AS_IT_IS, 4, &weights[1]),
                                fill_dummy(&config, 2, &AS_IT_IS, 1, &weights[2])};
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
        cmocka_unit_test_setup_teardown(test_weights_cancelled_fill_says_so, setup, teardown),
        cmocka_unit_test_setup_teardown(test_weights_file_that_shrinks_is_an_error_not_a_signal, setup, teardown),
        cmocka_unit_test_setup_teardown(test_weights_checkpoints_are_judged_against_the_model, setup, teardown),
        cmocka_unit_test_setup_teardown(test_weights_part_of_a_gpt2_source_is_named_by_the_source, setup, teardown),
        cmocka_unit_test_setup_teardown(test_weights_untied_model_needs_its_head, setup, teardown),
        cmocka_unit_test_setup_teardown(test_weights_tied_flag_beside_a_head, setup, teardown),
        cmocka_unit_test_setup_teardown(test_weights_tied_model_with_only_its_head, setup, teardown),
        cmocka_unit_test_setup_teardown(test_weights_layers_must_be_as_many_as_the_configuration_says, setup, teardown),
        cmocka_unit_test_setup_teardown(test_weights_what_is_left_out_is_said, setup, teardown),
        cmocka_unit_test_setup_teardown(test_weights_fingerprint_sees_every_kind_of_change, setup, teardown),
        cmocka_unit_test(test_weights_dummy_depends_on_the_seed_alone),
        cmocka_unit_test(test_weights_dummy_has_the_stated_distribution),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
