/* The bytes of the weights region: every format of every family against packing the whole tensor by hand, from every
 * dtype, by any number of threads. */
#include <math.h>

#include "services/memory/weights/weights_number.h"
#include "tests/unit/weights_case.h"

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
    weights_progress_t progress = {0};
    if (weights_plan(directory, config, format, &weights)) fail_msg("%s", qn_err_text());
    check_table(weights);
    qn_mapping_t *region = make_region(weights_bytes(weights));
    if (weights_fill(weights, region, threads, &progress)) fail_msg("%s", qn_err_text());
    check_filled(weights, region, config, format, damage);
    qn_region_close(&region);
    weights_destroy(&weights);
}

static void check_family(const qn_model_config_t *config, const char *strip, unsigned shards)
{
    static const char *const dtypes[] = {"BF16", "F32", "F16", "F64"};
    for (size_t d = 0; d < 4; d++) {
        damage_t damage = {.dtype = dtypes[d], .strip = strip, .shards = shards};
        write_model(config, &damage);
        for (size_t f = 0; f < FORMAT_COUNT; f++) {
            check_format(config, &FORMATS[f], &damage, 1);
            check_format(config, &FORMATS[f], &damage, 3);
        }
    }
}

static void test_weights_bring_every_format_is_the_whole_tensor_packed(void **state)
{
    (void)state;
    qn_model_config_t config = llama_config();
    check_family(&config, NULL, 0);
}

static void test_weights_bring_experts_are_brought_one_by_one(void **state)
{
    (void)state;
    qn_model_config_t config = mixtral_config();
    check_family(&config, NULL, 0);
}

static void test_weights_bring_split_and_turned_sources_of_gpt2(void **state)
{
    (void)state;
    qn_model_config_t config = gpt2_config();
    check_family(&config, NULL, 0);
}

static void test_weights_bring_names_without_their_prefix_are_found(void **state)
{
    (void)state;
    qn_model_config_t gpt2 = gpt2_config(), llama = llama_config();
    llama.tie_embeddings = true;
    check_family(&gpt2, "transformer.", 0);
    check_family(&llama, "model.", 0);
}

static void test_weights_bring_shards_are_one_checkpoint(void **state)
{
    (void)state;
    qn_model_config_t config = llama_config();
    check_family(&config, NULL, 3);
}

/* 20 MB when widened: two chunks, each of which reads the whole source. */
static void test_weights_bring_turned_source_of_several_chunks(void **state)
{
    (void)state;
    qn_model_config_t config = gpt2_config();
    config.layers = 1;
    config.hidden = 258;
    config.head_dim = 129;
    config.intermediate = 20003;
    damage_t damage = {.dtype = "BF16"};
    write_model(&config, &damage);
    check_format(&config, &FORMATS[0], &damage, 2);
    check_format(&config, &FORMATS[1], &damage, 2);
}

/* In every format, of every dtype: one number that is none is found and named. */
static void test_weights_bring_what_is_not_finite_is_refused(void **state)
{
    (void)state;
    qn_model_config_t config = llama_config();
    static const char *const dtypes[] = {"BF16", "F32", "F16", "F64"};
    static const struct {
        const char *name, *place;
    } bad[] = {
        {"model.layers.1.mlp.down_proj.weight", "row 94, column 202"},
        {"model.embed_tokens.weight", "row 4098, column 94"},
        {"model.norm.weight", "row 94, column 0"},
    };
    for (size_t i = 0; i < 12; i++) {
        write_model(&config, &(damage_t){.dtype = dtypes[i / 3], .infinite = bad[i % 3].name});
        for (size_t f = 0; f < FORMAT_COUNT; f++) {
            weights_t *weights;
            weights_progress_t progress = {0};
            assert_int_equal(weights_plan(directory, &config, &FORMATS[f], &weights), QN_OK);
            qn_mapping_t *region = make_region(weights_bytes(weights));
            assert_int_equal(weights_fill(weights, region, 2, &progress), QN_ERR_INVALID);
            if (!strstr(qn_err_text(), bad[i % 3].name) || !strstr(qn_err_text(), bad[i % 3].place) ||
                !strstr(qn_err_text(), "model.safetensors"))
                fail_msg("%s", qn_err_text());
            qn_region_close(&region);
            weights_destroy(&weights);
        }
    }
}

static void test_weights_bring_every_kind_of_number_that_is_none_is_seen(void **state)
{
    (void)state;
    static const struct {
        safetensors_dtype_t dtype;
        uint64_t bits;
        bool finite;
    } rows[] = {
        {SAFETENSORS_F16, 0x7bff, true},
        {SAFETENSORS_F16, 0x7c00, false},
        {SAFETENSORS_F16, 0xfc01, false},
        {SAFETENSORS_BF16, 0xff7f, true},
        {SAFETENSORS_BF16, 0xff80, false},
        {SAFETENSORS_BF16, 0x7fc0, false},
        {SAFETENSORS_F32, 0x7f7fffff, true},
        {SAFETENSORS_F32, 0xff800000, false},
        {SAFETENSORS_F32, 0x7fffffff, false},
        {SAFETENSORS_F64, 0x47efffffe0000000, true},
        {SAFETENSORS_F64, 0xc7efffffefffffff, true}, /* is rounded to the greatest f32 */
        {SAFETENSORS_F64, 0x47effffff0000000, false},
        {SAFETENSORS_F64, 0xfff0000000000001, false},
    };
    enum { COUNT = 1003 };
    uint8_t *raw = malloc(COUNT * 8 + 1);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        size_t each = safetensors_dtype_bytes(rows[i].dtype);
        for (size_t at = 0; at < COUNT; at += 167) {
            memset(raw, 0, COUNT * 8 + 1);
            memcpy(raw + 1 + at * each, &rows[i].bits, each); /* at any alignment */
            uint64_t found = weights_number_not_finite(rows[i].dtype, raw + 1, COUNT);
            assert_int_equal(found, rows[i].finite ? COUNT : at);
        }
        assert_int_equal(weights_number_not_finite(rows[i].dtype, raw, 0), 0);
        float value;
        memcpy(raw, &rows[i].bits, each);
        weights_number_widen(rows[i].dtype, raw, 1, &value);
        assert_int_equal(isfinite(value) != 0, rows[i].finite);
    }
    free(raw);
}

static void test_weights_bring_f16_is_widened_exactly(void **state)
{
    (void)state;
    uint16_t halves[1 << 16];
    float *wide = malloc(sizeof halves * 2);
    for (uint32_t i = 0; i < 1 << 16; i++)
        halves[i] = (uint16_t)i;
    qn_weight_widen_f16(halves, 1 << 16, wide);
    for (uint32_t i = 0; i < 1 << 16; i++) {
        float wanted = safetensors_widen_f16((uint16_t)i);
        assert_memory_equal(&wide[i], &wanted, sizeof wanted);
    }
    free(wide);
}

/* Whatever the format, the numbers are those of the rows, packed. */
static void test_weights_bring_dummy_is_the_same_model_in_every_format(void **state)
{
    (void)state;
    qn_model_config_t configs[] = {llama_config(), gpt2_config(), mixtral_config()};
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_weights_bring_every_format_is_the_whole_tensor_packed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_weights_bring_experts_are_brought_one_by_one, setup, teardown),
        cmocka_unit_test_setup_teardown(test_weights_bring_split_and_turned_sources_of_gpt2, setup, teardown),
        cmocka_unit_test_setup_teardown(test_weights_bring_names_without_their_prefix_are_found, setup, teardown),
        cmocka_unit_test_setup_teardown(test_weights_bring_shards_are_one_checkpoint, setup, teardown),
        cmocka_unit_test_setup_teardown(test_weights_bring_turned_source_of_several_chunks, setup, teardown),
        cmocka_unit_test_setup_teardown(test_weights_bring_what_is_not_finite_is_refused, setup, teardown),
        cmocka_unit_test(test_weights_bring_every_kind_of_number_that_is_none_is_seen),
        cmocka_unit_test(test_weights_bring_f16_is_widened_exactly),
        cmocka_unit_test(test_weights_bring_dummy_is_the_same_model_in_every_format),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
