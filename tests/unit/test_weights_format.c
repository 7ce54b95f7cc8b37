/* The choice of a format: what the configuration says, and what it must not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "services/memory/weights/weights_format.h"

static void test_weights_format_follows_the_configuration(void **state)
{
    (void)state;
    static const struct {
        const char *sets[4];
        weights_format_t format;
        const char *text;
    } cases[] = {
        {{NULL}, {.layout = QN_LAYOUT_PANELS}, NULL},
        {{"model.layout=panels"}, {.layout = QN_LAYOUT_PANELS}, NULL},
        {{"model.layout=rows"}, {.layout = QN_LAYOUT_ROWS}, NULL},
        {{"compute.backend=cuda"}, {.layout = QN_LAYOUT_ROWS}, NULL},
        {{"compute.backend=cuda", "model.layout=rows"}, {.layout = QN_LAYOUT_ROWS}, NULL},
        {{"model.quantize=int8"}, {QN_LAYOUT_PANELS, WEIGHTS_QUANTIZE_INT8, 0}, NULL},
        {{"model.quantize=int4"}, {QN_LAYOUT_PANELS, WEIGHTS_QUANTIZE_INT4, 32}, NULL},
        {{"model.quantize=int4", "model.quantize_group=64"}, {QN_LAYOUT_PANELS, WEIGHTS_QUANTIZE_INT4, 64}, NULL},
        {{"model.quantize=int8", "model.layout=rows"}, {0}, "needs model.layout panels"},
        {{"model.quantize=int8", "compute.backend=cuda"}, {0}, "set model.quantize to none"},
        {{"model.layout=panels", "compute.backend=cuda"}, {0}, "leave model.layout at auto"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        size_t count = 0;
        qn_config_t *config = NULL;
        weights_format_t format = {0};
        while (cases[i].sets[count])
            count++;
        assert_int_equal(qn_config_load(NULL, cases[i].sets, count, "/tmp", &config), QN_OK);
        qn_err_t err = weights_format_choose(qn_config_values(config), &format);
        assert_int_equal(err, cases[i].text ? QN_ERR_CONFIG : QN_OK);
        if (err)
            assert_non_null(strstr(qn_err_text(), cases[i].text));
        else
            assert_memory_equal(&format, &cases[i].format, sizeof format);
        qn_config_free(&config);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_weights_format_follows_the_configuration),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
