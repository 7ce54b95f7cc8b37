/* Probes: what suits a model, whose blocks are whose, and bytes that are none. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/limits.h"
#include "common/probe/probe.h"

static const qn_probe_model_t MODEL = {
    .layers = 3, .heads = 4, .kv_heads = 2, .head_dim = 8, .hidden = 16, .vocab = 100};

static void test_probe_masks_both_sides_of_each_limit(void **state)
{
    (void)state;
    static const struct {
        qn_mask_rule_t rule;
        bool good;
    } ROWS[] = {
        {{.k = 1, .kind = QN_MASK_RULE_KIND_TOP_K}, true},
        {{.k = 0, .kind = QN_MASK_RULE_KIND_TOP_K}, false},
        {{.k = 0, .kind = QN_MASK_RULE_KIND_BLOCK_TOP_K}, false},
        {{.window = 1, .kind = QN_MASK_RULE_KIND_WINDOW}, true},
        {{.window = 0, .kind = QN_MASK_RULE_KIND_SINK_WINDOW, .sinks = 4}, false},
        {{.k = 1, .layer_from = 2, .layer_to = 3}, true},
        {{.k = 1, .layer_from = 2, .layer_to = 4}, false},
        {{.k = 1, .layer_from = 3}, false},
        {{.k = 1, .layer_from = 2, .layer_to = 2}, false},
        {{.k = 1, .head_from = 3, .head_to = 4}, true},
        {{.k = 1, .head_from = 3, .head_to = 5}, false},
        {{.k = 1, .head_from = 4}, false},
    };
    for (size_t i = 0; i < sizeof ROWS / sizeof *ROWS; i++) {
        const char *param = "";
        const qn_probe_t probe = {.masks = &ROWS[i].rule, .mask_count = 1};
        assert_int_equal(qn_probe_check(&probe, &MODEL, &param), ROWS[i].good ? QN_OK : QN_ERR_INVALID);
        assert_string_equal(param, ROWS[i].good ? "taps" : "masks");
    }
}

static void test_probe_taps_both_sides_of_each_limit(void **state)
{
    (void)state;
    static const struct {
        qn_tap_point_t tap;
        bool good;
    } ROWS[] = {
        {{.position_to = 1, .site = QN_TAP_SITE_RESID, .layer = 2}, true},
        {{.position_to = 1, .site = QN_TAP_SITE_RESID, .layer = 3}, false},
        {{.position_to = 1, .site = QN_TAP_SITE_EMBED, .layer = 1}, false},
        {{.position_from = 1, .position_to = 1, .site = QN_TAP_SITE_EMBED}, false},
        {{.position_to = 3, .value_count = 16, .scale = 1, .action = QN_TAP_ACTION_ADD, .site = QN_TAP_SITE_RESID},
         true},
        {{.position_to = 2, .value_count = 32, .scale = 1, .action = QN_TAP_ACTION_REPLACE, .site = QN_TAP_SITE_RESID},
         true},
        {{.position_to = 3, .value_count = 32, .scale = 1, .action = QN_TAP_ACTION_REPLACE, .site = QN_TAP_SITE_RESID},
         false},
        {{.position_to = 1, .value_count = 15, .scale = 1, .action = QN_TAP_ACTION_ADD, .site = QN_TAP_SITE_RESID},
         false},
        {{.position_to = 1, .value_offset = 17, .value_count = 16, .scale = 1, .action = QN_TAP_ACTION_ADD}, false},
        {{.position_to = 1, .value_offset = UINT32_MAX, .value_count = 16, .scale = 1, .action = QN_TAP_ACTION_ADD},
         false},
        {{.position_to = 1, .value_count = 32, .scale = 1, .action = QN_TAP_ACTION_ADD, .site = QN_TAP_SITE_ATTN_Q},
         true},
        {{.position_to = 1, .value_count = 16, .scale = 1, .action = QN_TAP_ACTION_ADD, .site = QN_TAP_SITE_NORM},
         false},
        {{.position_to = 1, .value_count = 16, .scale = INFINITY, .action = QN_TAP_ACTION_ADD}, false},
    };
    float values[32] = {0};
    for (size_t i = 0; i < sizeof ROWS / sizeof *ROWS; i++) {
        const char *param;
        const qn_probe_t probe = {
            .taps = &ROWS[i].tap, .tap_count = 1, .values = values, .value_count = 32, .workspace = 1};
        if (qn_probe_check(&probe, &MODEL, &param) != (ROWS[i].good ? QN_OK : QN_ERR_INVALID)) fail_msg("row %zu", i);
    }
    const qn_tap_point_t add = {.position_to = 1, .value_count = 16, .scale = 1, .action = QN_TAP_ACTION_ADD};
    const qn_probe_t probe = {.taps = &add, .tap_count = 1, .values = values, .value_count = 32};
    const char *param;
    assert_int_equal(qn_probe_check(&probe, &MODEL, &param), QN_OK);
    values[15] = NAN;
    assert_int_equal(qn_probe_check(&probe, &MODEL, &param), QN_ERR_INVALID);
}

/* What changes KV changes the salt; what only looks does not. */
static void test_probe_salt_is_of_all_that_changes_blocks(void **state)
{
    (void)state;
    qn_mask_rule_t mask = {.k = 3};
    qn_tap_point_t tap = {.position_to = 1, .value_count = 1, .scale = 1};
    float value = 1;
    qn_probe_t masked = {.masks = &mask, .mask_count = 1},
               tapped = {.taps = &tap, .tap_count = 1, .values = &value, .value_count = 1};
    assert_int_equal(qn_probe_salt(&(qn_probe_t){0}, 77), 77);
    assert_int_equal(qn_probe_salt(&tapped, 77), 77);
    assert_true(qn_probe_reads(&tapped) && !qn_probe_reads(&masked));
    uint64_t seen[16], count = 0;
#define NEW(probe, salt)                                \
    do {                                                \
        seen[count] = qn_probe_salt(&(probe), salt);    \
        for (uint64_t i = 0; i < count; i++)            \
            assert_int_not_equal(seen[i], seen[count]); \
        assert_int_not_equal(seen[count++], 0);         \
    } while (0)
    NEW(masked, 0);
    NEW(masked, 1);
    mask.k = 4;
    NEW(masked, 0);
    mask.head_to = 1;
    NEW(masked, 0);
    mask.value = 0.5f;
    NEW(masked, 0);
    mask.kind = QN_MASK_RULE_KIND_BLOCK_TOP_K;
    NEW(masked, 0);
    tap.action = QN_TAP_ACTION_ADD;
    NEW(tapped, 0);
    tap.action = QN_TAP_ACTION_REPLACE;
    NEW(tapped, 0);
    value = 2;
    NEW(tapped, 0);
    tap.layer = 1;
    NEW(tapped, 0);
    tap.scale = 2;
    NEW(tapped, 0);
    tap.offset = 64; /* where others read to is no part of it */
    assert_int_equal(qn_probe_salt(&tapped, 0), seen[count - 1]);
    assert_int_equal(qn_probe_group(&tapped), 0);
    assert_int_equal(qn_probe_group(&masked), qn_probe_group(&masked));
}

static void test_probe_bytes_survive_and_damage_is_seen(void **state)
{
    (void)state;
    const qn_mask_rule_t masks[] = {{.k = 3}, {.window = 5, .kind = QN_MASK_RULE_KIND_WINDOW}};
    const qn_tap_point_t tap = {.offset = 64, .position_to = 9, .value_count = 3, .scale = 1};
    const float values[] = {1, 2, 3};
    const qn_probe_t probe = {.masks = masks,
                              .mask_count = 2,
                              .taps = &tap,
                              .tap_count = 1,
                              .values = values,
                              .value_count = 3,
                              .workspace = 7,
                              .workspace_epoch = 2,
                              .workspace_until_ns = 99};
    qn_probe_t back;
    void *copy = qn_probe_copy(&probe, &back);
    size_t bytes = qn_probe_packed_bytes(&probe);
    assert_non_null(copy);
    assert_int_equal(back.masks[1].window, 5);
    assert_int_equal(back.taps[0].position_to, 9);
    assert_true(back.values[2] == 3);
    assert_int_equal(back.workspace_until_ns, 99);
    for (size_t cut = 0; cut < bytes; cut++)
        assert_false(qn_probe_unpack(copy, cut, &back));
    for (size_t at = 0; at + 4 <= 32; at += 4) { /* counts in the head: none gives another size than there is */
        uint32_t kept, most = UINT32_MAX;
        memcpy(&kept, (char *)copy + at, 4);
        memcpy((char *)copy + at, &most, 4);
        if (at >= 20) assert_false(qn_probe_unpack(copy, bytes, &back));
        memcpy((char *)copy + at, &kept, 4);
    }
    assert_true(qn_probe_unpack(copy, bytes, &back));
    free(copy);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_probe_masks_both_sides_of_each_limit),
        cmocka_unit_test(test_probe_taps_both_sides_of_each_limit),
        cmocka_unit_test(test_probe_salt_is_of_all_that_changes_blocks),
        cmocka_unit_test(test_probe_bytes_survive_and_damage_is_seen),
    };
    return cmocka_run_group_tests_name("probe", tests, NULL, NULL);
}
