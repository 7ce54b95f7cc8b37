/* The layout of compute's buffers: measured and placed alike, inside their regions, without overlap, for small and
 * large limits; sizes that overflow are refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "services/compute/executor/scratch.h"

/* With experts: a dense layer and a sparse one, whose width for all its experts is the larger. */
static qn_model_config_t small_config(bool with_experts)
{
    qn_model_config_t config = {
        .layers = 2, .hidden = 24, .heads = 3, .kv_heads = 1, .head_dim = 8, .intermediate = 40, .vocab = 33};
    if (with_experts) {
        config.experts = 7, config.experts_per_token = 3, config.expert_intermediate = 20;
        config.layer_is_sparse[1] = true;
    }
    return config;
}

typedef struct {
    const void *at;
    uint64_t bytes;
} piece_t;

static void check_pieces(const char *base, uint64_t bytes, const piece_t *pieces, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const char *at = pieces[i].at;
        assert_true(at >= base && (uint64_t)(at - base) + pieces[i].bytes <= bytes);
        assert_int_equal((uintptr_t)at % 64, 0);
        if (i) assert_true(at >= (const char *)pieces[i - 1].at + pieces[i - 1].bytes);
    }
}

static void check_limits(uint32_t sequences, uint32_t tokens, bool with_experts)
{
    qn_model_config_t config = small_config(with_experts);
    step_limits_t limits = step_limits_make(sequences, tokens, 100, 16, 50, config.vocab);
    scratch_sizes_t sizes;
    scratch_t s;
    assert_int_equal(scratch_measure(&config, &limits, &sizes), QN_OK);
    char *a = aligned_alloc(64, sizes.activations_bytes), *state = aligned_alloc(64, sizes.state_bytes);
    char *io = aligned_alloc(64, sizes.step_io_bytes), *host = aligned_alloc(64, sizes.out_bytes);
    scratch_place(&config, &limits, a, state, io, &s);
    uint64_t t = tokens, n = sequences, r = s.logit_rows;
    assert_int_equal(r, tokens < STEP_LOGIT_ROWS ? tokens : STEP_LOGIT_ROWS);
    uint64_t places = with_experts ? 3 * t : 0, mlp = with_experts ? places * 20 * 4 : t * 40 * 4;
    uint64_t products = qn_matmul_scratch_bytes(t, 40);
    if (with_experts && qn_matmul_scratch_bytes(places, 24) > products) products = qn_matmul_scratch_bytes(places, 24);
    const piece_t activations[] = {{s.x, t * 24 * 4},
                                   {s.normed, t * 24 * 4},
                                   {s.q, t * 24 * 4},
                                   {s.attended, t * 24 * 4},
                                   {s.k, t * 8 * 4},
                                   {s.v, t * 8 * 4},
                                   {s.gate, mlp},
                                   {s.up, mlp},
                                   {s.router, with_experts ? t * 7 * 4 : 0},
                                   {s.expert_x, places * 24 * 4},
                                   {s.expert_weights, places * 4},
                                   {s.expert_places, places * 4},
                                   {s.expert_rows, places * 4},
                                   {s.expert_offsets, with_experts ? 8 * 4 : 0},
                                   {s.products, products},
                                   {s.angles, t * 8 * 4},
                                   {s.picked, r * 24 * 4},
                                   {s.logits, r * 33 * 4},
                                   {s.sampler, r * 66 * 4},
                                   {s.token_ids, t * 4},
                                   {s.positions, t * 4},
                                   {s.lengths, t * 4},
                                   {s.kv_rows, t * 8}};
    const piece_t tables[] = {{s.tables.rows, (n + 1) * sizeof(qn_slot_row_t)},
                              {s.tables.block_tables, (n + 1) * 7 * 4},
                              {s.tables.stop_ids, (n + 1) * QN_SLOT_STOP_IDS_MAX * 4},
                              {s.tables.bias, (n + 1) * QN_LOGIT_BIAS_MAX * 8},
                              {s.tables.counts, (n + 1) * 33 * 4},
                              {s.tables.logprob_ids, (n + 1) * QN_LOGPROB_IDS_MAX * 4},
                              {s.tables.bad_ids, (n + 1) * QN_BAD_IDS_MAX * 4},
                              {s.tables.recent, (n + 1) * QN_BAD_SEQUENCE_TOKENS_MAX * 4},
                              {s.pending, n * 24 * 4},
                              {s.frequencies, 16},
                              {s.experts, model_expert_count(&config) * sizeof(qn_weight_t)}};
    const piece_t step_io[] = {{s.in.runs, n * sizeof(qn_run_t)},
                               {s.in.decode_runs, n * sizeof(qn_run_t)},
                               {s.in.prefill_runs, n * sizeof(qn_run_t)},
                               {s.in.samples, n * sizeof(qn_sample_t)},
                               {s.in.sample_rows, n * 4},
                               {s.in.retire, n * 4},
                               {s.in.ids, (n * 100 + t) * 4},
                               {s.in.stop_ids, n * QN_SLOT_STOP_IDS_MAX * 4},
                               {s.in.starts, n * sizeof(qn_slot_start_t)},
                               {s.in.entries, n * 7 * 12},
                               {s.in.copies, 50 * 8},
                               {s.in.bias, step_smaller(n * QN_LOGIT_BIAS_MAX, QN_STEP_PLAN_BIAS_MAX) * 8},
                               {s.in.list_ids, limits.plan_list_ids * 4},
                               {s.in.rows, r * 4},
                               {s.in.targets, r * 4},
                               {s.in.slots, r * 4},
                               {s.in.top_counts, r * 4}};
    scratch_out_t out;
    scratch_place_out(&limits, host, &out);
    const piece_t results[] = {{out.results, n * sizeof(qn_sample_result_t)},
                               {out.logprobs, t * 4},
                               {out.sample_top, n * QN_ALTERNATIVES_MAX * 8},
                               {out.prompt_top, t * QN_ALTERNATIVES_MAX * 8}};
    check_pieces(a, sizes.activations_bytes, activations, sizeof activations / sizeof *activations);
    check_pieces(state, sizes.state_bytes, tables, sizeof tables / sizeof *tables);
    check_pieces(io, sizes.step_io_bytes, step_io, sizeof step_io / sizeof *step_io);
    check_pieces(host, sizes.out_bytes, results, sizeof results / sizeof *results);
    /* The host's copy has the same layout. */
    scratch_in_t in;
    scratch_place_in(&limits, io, &in);
    assert_memory_equal(&in, &s.in, sizeof in);
    free(a);
    free(state);
    free(io);
    free(host);
}

static void test_scratch_buffers_lie_apart_inside_their_regions(void **state)
{
    (void)state;
    for (int with_experts = 0; with_experts < 2; with_experts++) {
        check_limits(1, 1, with_experts);
        check_limits(3, 17, with_experts);
        check_limits(64, 512, with_experts);
        check_limits(300, 5, with_experts);
    }
}

static void test_scratch_sizes_that_overflow_are_refused(void **state)
{
    (void)state;
    qn_model_config_t config = small_config(true);
    step_limits_t limits = step_limits_make(1024, 16384, 1u << 20, 1, 1u << 28, 1u << 20);
    scratch_sizes_t sizes;
    assert_int_equal(scratch_measure(&config, &limits, &sizes), QN_OK); /* the ceilings of limits.h fit */
    config.experts = 1024, config.experts_per_token = 1024, config.expert_intermediate = QN_WIDTH_MAX;
    assert_int_equal(scratch_measure(&config, &limits, &sizes), QN_OK);
    config.heads = config.head_dim = UINT32_MAX;
    assert_int_equal(scratch_measure(&config, &limits, &sizes), QN_ERR_LIMIT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scratch_buffers_lie_apart_inside_their_regions),
        cmocka_unit_test(test_scratch_sizes_that_overflow_are_refused),
    };
    return cmocka_run_group_tests_name("scratch", tests, NULL, NULL);
}
