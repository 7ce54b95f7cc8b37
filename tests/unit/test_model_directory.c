/* What a model directory says: identity, length limit, and files that must not be misread. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "services/memory/weights/model_directory.h"

#define CONFIG                                                                                               \
    "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_size\":64,"                 \
    "\"intermediate_size\":128,\"num_hidden_layers\":2,\"num_attention_heads\":4,\"num_key_value_heads\":2," \
    "\"vocab_size\":100,\"rms_norm_eps\":1e-5,\"hidden_act\":\"silu\",\"rope_theta\":10000.0,"               \
    "\"max_position_embeddings\":500,\"bos_token_id\":1,\"eos_token_id\":2}"

static char directory[64];

static void write_text(const char *name, const char *text)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static int setup(void **state)
{
    (void)state;
    snprintf(directory, sizeof directory, "/tmp/qn-model-XXXXXX");
    if (!mkdtemp(directory)) return -1;
    write_text("config.json", CONFIG);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    static const char *const names[] = {"config.json", "generation_config.json"};
    char path[128];
    for (size_t i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", directory, names[i]);
        unlink(path);
    }
    return rmdir(directory);
}

static qn_config_values_t values(char *id, uint64_t max_model_len)
{
    qn_config_values_t values = {0};
    values.model.path = directory;
    values.model.id = id;
    values.model.max_model_len = max_model_len;
    return values;
}

static void test_model_directory_identity_and_text(void **state)
{
    (void)state;
    model_directory_t *model;
    qn_config_values_t config = values("", 0);
    write_text("generation_config.json", "{\"eos_token_id\":[7,2]}");
    if (model_directory_read(&config, &model)) fail_msg("%s", qn_err_text());
    assert_string_equal(model->id, strrchr(directory, '/') + 1);
    assert_string_equal(model->config_text, CONFIG);
    assert_int_equal(model->config_bytes, strlen(CONFIG));
    assert_int_equal(model->config.eos_count, 2); /* generation_config's first */
    assert_int_equal(model->config.eos[0], 7);
    assert_int_equal(model->max_model_len, 500);
    assert_false(model->max_model_len_asked);
    model_directory_free(&model);
    assert_null(model);
    config = values("my-model", 0);
    assert_int_equal(model_directory_read(&config, &model), QN_OK);
    assert_string_equal(model->id, "my-model");
    model_directory_free(&model);
}

static void test_model_directory_length_both_sides_of_the_model_s(void **state)
{
    (void)state;
    for (uint64_t length = 500; length <= 501; length++) {
        model_directory_t *model = NULL;
        qn_config_values_t config = values("", length);
        assert_int_equal(model_directory_read(&config, &model), length <= 500 ? QN_OK : QN_ERR_CONFIG);
        if (model)
            assert_true(model->max_model_len_asked && model->max_model_len == length);
        else
            assert_non_null(strstr(qn_err_text(), "500 tokens"));
        model_directory_free(&model);
    }
}

static void test_model_directory_id_both_sides_of_the_limit(void **state)
{
    (void)state;
    char id[257];
    for (size_t length = 255; length <= 256; length++) {
        model_directory_t *model = NULL;
        qn_config_values_t config = values(id, 0);
        memset(id, 'i', length);
        id[length] = '\0';
        assert_int_equal(model_directory_read(&config, &model), length <= 255 ? QN_OK : QN_ERR_CONFIG);
        model_directory_free(&model);
    }
}

static void test_model_directory_unreadable_files_are_refused(void **state)
{
    (void)state;
    model_directory_t *model = NULL;
    qn_config_values_t config = values("", 0);
    write_text("generation_config.json", "{");
    assert_int_equal(model_directory_read(&config, &model), QN_ERR_INVALID);
    write_text("generation_config.json", "{}");
    for (size_t bytes = MODEL_DIRECTORY_TEXT_MAX; bytes <= MODEL_DIRECTORY_TEXT_MAX + 1; bytes++) {
        char *text = malloc(bytes + 1);
        memset(text, ' ', bytes);
        memcpy(text, CONFIG, strlen(CONFIG));
        text[bytes] = '\0';
        write_text("config.json", text);
        assert_int_equal(model_directory_read(&config, &model),
                         bytes <= MODEL_DIRECTORY_TEXT_MAX ? QN_OK : QN_ERR_LIMIT);
        model_directory_free(&model);
        free(text);
    }
    char path[128];
    snprintf(path, sizeof path, "%s/config.json", directory);
    unlink(path);
    assert_int_equal(model_directory_read(&config, &model), QN_ERR_NOT_FOUND);
    assert_non_null(strstr(qn_err_text(), "config.json"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_model_directory_identity_and_text, setup, teardown),
        cmocka_unit_test_setup_teardown(test_model_directory_length_both_sides_of_the_model_s, setup, teardown),
        cmocka_unit_test_setup_teardown(test_model_directory_id_both_sides_of_the_limit, setup, teardown),
        cmocka_unit_test_setup_teardown(test_model_directory_unreadable_files_are_refused, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
