/* The sampler: vLLM's meaning of every parameter on distributions small enough to check by hand, the random generator
 * against its published vectors, and a chi-square test of what is drawn. */
#include "kernels/cpu/sampling/philox.h"
#include "tests/unit/kernel_check.h"

#define VOCAB 8
#define SLOTS 2
#define DRAWS 4000

/* The implementation under test: every test runs for each. */
static const char *implementation = "reference";

typedef struct {
    qn_slot_row_t rows[SLOTS];
    uint32_t stop_ids[SLOTS * QN_SLOT_STOP_IDS_MAX];
    qn_bias_entry_t bias[SLOTS * QN_LOGIT_BIAS_MAX];
    uint32_t counts[SLOTS * VOCAB];
    uint32_t block_tables[SLOTS];
    uint32_t logprob_ids[SLOTS * QN_LOGPROB_IDS_MAX];
    uint32_t bad_ids[SLOTS * QN_BAD_IDS_MAX];
    uint32_t recent[SLOTS * QN_BAD_SEQUENCE_TOKENS_MAX];
    qn_slot_tables_t tables;
    float scratch[SLOTS * 2 * VOCAB];
    qn_sample_result_t results[SLOTS];
    qn_top_entry_t top[SLOTS * QN_ALTERNATIVES_MAX];
} world_t;

/* Neutral parameters everywhere; slot 0 is what the tests change. */
static void reset(world_t *w)
{
    memset(w, 0, sizeof *w);
    for (int s = 0; s < SLOTS; s++)
        w->rows[s] = (qn_slot_row_t){.prompt_tokens = 1, .top_p = 1, .repetition_penalty = 1, .logprobs = 1};
    w->tables = (qn_slot_tables_t){.rows = w->rows,
                                   .block_tables = w->block_tables,
                                   .stop_ids = w->stop_ids,
                                   .bias = w->bias,
                                   .counts = w->counts,
                                   .logprob_ids = w->logprob_ids,
                                   .bad_ids = w->bad_ids,
                                   .recent = w->recent,
                                   .slots = SLOTS,
                                   .table_blocks = 1,
                                   .vocab = VOCAB};
}

static uint32_t sample(world_t *w, const float *logits, uint32_t position)
{
    static qn_stream_t *stream;
    if (!stream) stream = check_stream(1);
    check_kernel(QN_OP_SAMPLER, implementation)
        ->launch(stream, &(qn_sampler_t){.tables = w->tables,
                                         .samples = &(qn_sample_t){.slot = 0, .position = position},
                                         .sample_count = 1,
                                         .logits = logits,
                                         .scratch = w->scratch,
                                         .ret_results = w->results,
                                         .ret_top = w->top});
    return w->results[0].id;
}

/* How often each id is drawn over DRAWS positions. */
static void histogram(world_t *w, const float *logits, uint32_t ret_counts[VOCAB])
{
    memset(ret_counts, 0, VOCAB * sizeof *ret_counts);
    for (uint32_t i = 0; i < DRAWS; i++)
        ret_counts[sample(w, logits, 1 + i)]++;
}

/* Chi-square of the histogram against `probabilities`; ids of probability 0 must not occur. 24.3 is the value that
 * seven degrees of freedom exceed once in a thousand times; the seed is fixed, so this cannot flicker. */
static void check_distribution(const uint32_t counts[VOCAB], const double probabilities[VOCAB])
{
    double chi_square = 0;
    for (int v = 0; v < VOCAB; v++) {
        double expected = probabilities[v] * DRAWS;
        if (expected == 0)
            assert_int_equal(counts[v], 0);
        else
            chi_square += (counts[v] - expected) * (counts[v] - expected) / expected;
    }
    if (!(chi_square < 24.3)) fail_msg("chi-square %g", chi_square);
}

static void softmax(const float *logits, const bool kept[VOCAB], double temperature, double ret[VOCAB])
{
    double total = 0;
    for (int v = 0; v < VOCAB; v++)
        total += ret[v] = kept[v] ? exp(logits[v] / temperature) : 0;
    for (int v = 0; v < VOCAB; v++)
        ret[v] /= total;
}

static const float LOGITS[VOCAB] = {0.5f, 2, 1, -1, 1.5f, 0, -2, 1.9f};

static void test_philox_gives_the_published_vectors(void **state)
{
    (void)state;
    static const struct {
        uint64_t key;
        uint32_t counter[4], want[4];
    } ROWS[] = {
        {0, {0, 0, 0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {UINT64_MAX,
         {UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {0x299f31d0a4093822,
         {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < 3; i++) {
        uint32_t words[4];
        qn_philox(ROWS[i].key, ROWS[i].counter, words);
        assert_memory_equal(words, ROWS[i].want, sizeof words);
    }
}

static void test_sampler_greedy_takes_the_greatest_and_ties_the_lower_id(void **state)
{
    (void)state;
    world_t w;
    reset(&w);
    assert_int_equal(sample(&w, LOGITS, 1), 1);
    double total = 0;
    for (int v = 0; v < VOCAB; v++)
        total += exp(LOGITS[v]);
    assert_true(fabs(w.results[0].logprob - (2 - log(total))) < 1e-6);
    assert_int_equal(sample(&w, (const float[VOCAB]){0, 3, 1, 3, 3, 0, 0, 0}, 2), 1);
    assert_int_equal(w.rows[0].last_token, 1);
    assert_int_equal(sample(&w, (const float[VOCAB]){NAN, NAN, 1, NAN, NAN, NAN, NAN, NAN}, 3), 0);
}

static void test_sampler_temperature_draws_the_softmax(void **state)
{
    (void)state;
    static const bool ALL[VOCAB] = {1, 1, 1, 1, 1, 1, 1, 1};
    static const float TEMPERATURES[] = {0.5f, 1, 2};
    for (int i = 0; i < 3; i++) {
        world_t w;
        reset(&w);
        w.rows[0].temperature = TEMPERATURES[i];
        w.rows[0].seed = 42 + (uint64_t)i;
        uint32_t counts[VOCAB];
        double want[VOCAB];
        histogram(&w, LOGITS, counts);
        softmax(LOGITS, ALL, TEMPERATURES[i], want);
        check_distribution(counts, want);
    }
}

static void test_sampler_seed_and_position_alone_decide(void **state)
{
    (void)state;
    world_t w;
    reset(&w);
    w.rows[0].temperature = 1;
    uint32_t first[64], differ_seed = 0, differ_position = 0;
    w.rows[0].seed = 7;
    for (uint32_t i = 0; i < 64; i++)
        first[i] = sample(&w, LOGITS, 10 + i);
    for (uint32_t i = 64; i-- > 0;)
        assert_int_equal(sample(&w, LOGITS, 10 + i), first[i]);
    w.rows[0].seed = 8;
    for (uint32_t i = 0; i < 64; i++)
        differ_seed += sample(&w, LOGITS, 10 + i) != first[i];
    for (uint32_t i = 1; i < 64; i++)
        differ_position += first[i] != first[0];
    assert_in_range(differ_seed, 20, 64);
    assert_in_range(differ_position, 20, 64);
}

typedef struct {
    const char *name;
    uint32_t top_k;
    float top_p, min_p, temperature;
    bool kept[VOCAB];
} cut_t;

/* In descending order LOGITS are ids 1, 7, 4, 2, 0, 5, 3, 6 with probabilities .297 .269 .180 .109 .066 .040 .015 .005
 * (temperature 1). */
static const cut_t CUTS[] = {
    {"top_k 1", 1, 1, 0, 1, {0, 1, 0, 0, 0, 0, 0, 0}},
    {"top_k 3", 3, 1, 0, 1, {0, 1, 0, 0, 1, 0, 0, 1}},
    {"top_k 8 is off", 8, 1, 0, 1, {1, 1, 1, 1, 1, 1, 1, 1}},
    {"top_k beyond the vocabulary is off", 1000, 1, 0, 1, {1, 1, 1, 1, 1, 1, 1, 1}},
    {"top_p keeps one at least", 0, 0, 0, 1, {0, 1, 0, 0, 0, 0, 0, 0}},
    {"top_p just below the first", 0, 0.29f, 0, 1, {0, 1, 0, 0, 0, 0, 0, 0}},
    {"top_p just above the first", 0, 0.31f, 0, 1, {0, 1, 0, 0, 0, 0, 0, 1}},
    {"top_p 0.8", 0, 0.8f, 0, 1, {0, 1, 1, 0, 1, 0, 0, 1}},
    {"top_p after top_k, of what is left", 2, 0.5f, 0, 1, {0, 1, 0, 0, 0, 0, 0, 0}},
    {"min_p 0.5 of the greatest", 0, 1, 0.5f, 1, {0, 1, 0, 0, 1, 0, 0, 1}},
    {"min_p 1", 0, 1, 1, 1, {0, 1, 0, 0, 0, 0, 0, 0}},
    {"min_p after temperature", 0, 1, 0.5f, 4, {1, 1, 1, 0, 1, 1, 0, 1}},
};

static void test_sampler_cuts_keep_what_vllm_keeps(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof CUTS / sizeof CUTS[0]; i++) {
        world_t w;
        reset(&w);
        w.rows[0].temperature = CUTS[i].temperature;
        w.rows[0].top_k = CUTS[i].top_k;
        w.rows[0].top_p = CUTS[i].top_p;
        w.rows[0].min_p = CUTS[i].min_p;
        w.rows[0].seed = 1234;
        uint32_t counts[VOCAB];
        double want[VOCAB];
        histogram(&w, LOGITS, counts);
        softmax(LOGITS, CUTS[i].kept, CUTS[i].temperature, want);
        for (int v = 0; v < VOCAB; v++)
            if (!CUTS[i].kept[v] != !counts[v]) fail_msg("%s: id %d was drawn %u times", CUTS[i].name, v, counts[v]);
        check_distribution(counts, want);
    }
}

static void test_sampler_top_k_ties_go_to_lower_ids(void **state)
{
    (void)state;
    world_t w;
    reset(&w);
    w.rows[0].temperature = 1;
    w.rows[0].top_k = 3;
    uint32_t counts[VOCAB];
    histogram(&w, (const float[VOCAB]){1, 0, 1, 1, 5, 1, 1, 1}, counts);
    assert_true(counts[4] && counts[0] && counts[2]);
    assert_int_equal(counts[4] + counts[0] + counts[2], DRAWS);
}

static void test_sampler_bias_shifts_and_forbids(void **state)
{
    (void)state;
    world_t w;
    reset(&w);
    w.rows[0].bias_count = 2;
    w.bias[0] = (qn_bias_entry_t){6, 100};
    w.bias[1] = (qn_bias_entry_t){1, -100};
    assert_int_equal(sample(&w, LOGITS, 1), 6);
    double total = 0;
    for (int v = 0; v < VOCAB; v++)
        total += exp(LOGITS[v]);
    /* Log-probabilities are of the model, not of what was made of it. */
    assert_true(fabs(w.results[0].logprob - (-2 - log(total))) < 1e-6);
    w.bias[0].bias = 0;
    assert_int_equal(sample(&w, LOGITS, 2), 7);
}

static void test_sampler_allow_only_leaves_the_biased_ids(void **state)
{
    (void)state;
    world_t w;
    reset(&w);
    w.rows[0].allow_only = 1;
    w.rows[0].bias_count = 3;
    w.bias[0] = (qn_bias_entry_t){6, 0};
    w.bias[1] = (qn_bias_entry_t){0, 1};
    w.bias[2] = (qn_bias_entry_t){1, QN_LOGIT_FORBIDDEN};
    assert_int_equal(sample(&w, LOGITS, 1), 0); /* 1.5 against -2; id 1 is forbidden among the allowed */
    w.rows[0].temperature = 1;
    uint32_t counts[VOCAB];
    histogram(&w, LOGITS, counts);
    const double total = exp(1.5) + exp(-2);
    check_distribution(counts, (double[VOCAB]){exp(1.5) / total, 0, 0, 0, 0, 0, exp(-2) / total, 0});
    w.rows[0].top_k = 1;
    histogram(&w, LOGITS, counts);
    assert_int_equal(counts[0], DRAWS);
}

static void test_sampler_penalties_follow_counts(void **state)
{
    (void)state;
    world_t w;
    reset(&w);
    w.rows[0].penalties = 1;
    w.counts[1] = QN_COUNT_PROMPT;
    w.rows[0].repetition_penalty = 1.1f; /* 2 / 1.1 = 1.82 < 1.9: prompt tokens count */
    assert_int_equal(sample(&w, LOGITS, 5), 7);
    assert_int_equal(w.counts[7], 1);           /* and the token is counted itself */
    assert_int_equal(sample(&w, LOGITS, 6), 1); /* 1.9 / 1.1 = 1.73 < 1.82 */
    assert_int_equal(w.counts[1], QN_COUNT_PROMPT + 1);

    reset(&w);
    w.rows[0].penalties = 1;
    w.rows[0].presence_penalty = 0.2f;
    w.counts[1] = QN_COUNT_PROMPT; /* presence and frequency are of generated tokens only */
    assert_int_equal(sample(&w, LOGITS, 5), 1);
    assert_int_equal(sample(&w, LOGITS, 6), 7); /* 1: 2 - 0.2 */
    assert_int_equal(sample(&w, LOGITS, 7), 1); /* 7: 1.9 - 0.2 = 1.7 */
    assert_int_equal(sample(&w, LOGITS, 8), 1); /* presence does not grow */

    reset(&w);
    w.rows[0].penalties = 1;
    w.rows[0].frequency_penalty = 0.3f;
    static const uint32_t WANT[] = {1, 7, 1, 7, 4, 1, 7}; /* 2, 1.9, 1.7, 1.6, 1.5, 1.4, 1.3; 4 is 1.2 then */
    for (uint32_t i = 0; i < 7; i++)
        assert_int_equal(sample(&w, LOGITS, 5 + i), WANT[i]);
    assert_int_equal(w.rows[0].counted, 12);
    assert_int_equal(sample(&w, LOGITS, 11), sample(&w, LOGITS, 11)); /* a position counts once */

    reset(&w);
    w.rows[0].penalties = 1;
    w.rows[0].repetition_penalty = 2;
    for (int v = 0; v < VOCAB; v++)
        w.counts[v] = 1;
    w.counts[3] = 0;
    /* Negative logits are multiplied: -1 beats -2 * 2, and 2 / 2 = 1 beats both. */
    assert_int_equal(sample(&w, (const float[VOCAB]){-4, -4, -4, -1, -4, -4, -0.6f, -4}, 3), 3);
}

static void test_sampler_stop_ids_end_and_min_tokens_forbid_them(void **state)
{
    (void)state;
    for (int random = 0; random < 2; random++) {
        world_t w;
        reset(&w);
        if (random) w.rows[0].temperature = 0.01f;
        w.rows[0].prompt_tokens = 10;
        w.rows[0].min_tokens = 2;
        w.rows[0].stop_count = 2;
        w.stop_ids[0] = 1;
        w.stop_ids[1] = 3;
        assert_int_equal(sample(&w, LOGITS, 10), 7);
        assert_int_equal(sample(&w, LOGITS, 11), 7);
        assert_false(w.results[0].stopped);
        assert_int_equal(sample(&w, LOGITS, 12), 1);
        assert_true(w.results[0].stopped && !w.results[0].masked);
        assert_int_equal(w.rows[0].done, 1);
        sample(&w, LOGITS, 13);
        assert_true(w.results[0].masked);
        assert_int_equal(w.rows[0].last_token, 1);
    }
}

static void test_sampler_top_logprobs_are_of_the_raw_distribution(void **state)
{
    (void)state;
    static const uint32_t ORDER[] = {1, 7, 4, 2, 0};
    world_t w;
    reset(&w);
    w.rows[0].top_logprobs = 5;
    w.rows[0].temperature = 0.3f;
    w.rows[0].bias_count = 1;
    w.bias[0] = (qn_bias_entry_t){6, 50};
    double total = 0;
    for (int v = 0; v < VOCAB; v++)
        total += exp(LOGITS[v]);
    assert_int_equal(sample(&w, LOGITS, 3), 6);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(w.top[i].id, ORDER[i]);
        assert_true(fabs(w.top[i].logprob - (LOGITS[ORDER[i]] - log(total))) < 1e-6);
    }
}

/* Cuts over a large vocabulary against a plain sort: every level of the radix selection is exercised. */
static void test_sampler_cuts_of_a_large_vocabulary_agree_with_sorting(void **state)
{
    (void)state;
    enum { V = 3000 };
    float *logits = check_values(V, 77, false), *scratch = malloc(2 * V * sizeof *scratch);
    for (int v = 0; v < V; v += 3)
        logits[v] = logits[(v + 300) % V]; /* many ties */
    qn_slot_row_t row = {.prompt_tokens = 1, .temperature = 0.7f, .top_p = 1, .repetition_penalty = 1};
    qn_slot_tables_t tables = {.rows = &row, .slots = 1, .vocab = V};
    qn_stream_t *stream = check_stream(1);
    static const uint32_t TOP_K[] = {1, 2, 50, 1000, 2999};
    for (size_t i = 0; i < 5; i++)
        for (uint32_t position = 1; position < 20; position++) {
            row.top_k = TOP_K[i];
            qn_sample_result_t result;
            check_kernel(QN_OP_SAMPLER, implementation)
                ->launch(stream, &(qn_sampler_t){.tables = tables,
                                                 .samples = &(qn_sample_t){0, position},
                                                 .sample_count = 1,
                                                 .logits = logits,
                                                 .scratch = scratch,
                                                 .ret_results = &result});
            uint32_t better = 0;
            for (uint32_t v = 0; v < V; v++)
                better += logits[v] > logits[result.id] || (logits[v] == logits[result.id] && v < result.id);
            assert_in_range(better, 0, TOP_K[i] - 1);
            /* What the reference left in its scratch is exactly the kept set. */
            uint32_t kept = 0;
            for (uint32_t v = 0; v < V; v++)
                kept += scratch[V + v] > 0;
            if (strcmp(implementation, "reference") == 0) assert_int_equal(kept, TOP_K[i]);
        }
    free(logits);
    free(scratch);
    qn_stream_destroy(&stream);
}

/* The exact distribution of slot 0's parameters over LOGITS, straight from their definitions in kernels.h's order; plain
 * double arithmetic and sorting. */
static void exact_distribution(const world_t *w, double ret[VOCAB])
{
    const qn_slot_row_t *row = &w->rows[0];
    double logits[VOCAB], sum = 0, greatest = 0;
    bool kept[VOCAB];
    for (int v = 0; v < VOCAB; v++) {
        uint32_t generated = w->counts[v] & ~QN_COUNT_PROMPT;
        logits[v] = LOGITS[v];
        for (uint32_t b = 0; b < row->bias_count; b++)
            if (w->bias[b].id == (uint32_t)v) logits[v] += w->bias[b].bias;
        if (w->counts[v])
            logits[v] = logits[v] > 0 ? logits[v] / row->repetition_penalty : logits[v] * row->repetition_penalty;
        logits[v] -= row->frequency_penalty * generated + (generated ? row->presence_penalty : 0);
        sum += ret[v] = exp(logits[v] / row->temperature);
    }
    for (int v = 0; v < VOCAB; v++)
        greatest = fmax(greatest, ret[v] /= sum);
    for (int v = 0; v < VOCAB; v++) {
        uint32_t better = 0;
        for (int u = 0; u < VOCAB; u++)
            better += logits[u] > logits[v] || (logits[u] == logits[v] && u < v);
        kept[v] = ret[v] >= row->min_p * greatest && (!row->top_k || better < row->top_k);
    }
    double left = 0, final = 0;
    for (int v = 0; v < VOCAB; v++)
        left += kept[v] ? ret[v] : 0;
    for (int v = 0; v < VOCAB; v++) {
        double before = 0; /* what more probable ids hold together */
        for (int u = 0; u < VOCAB; u++)
            if (kept[u] && (logits[u] > logits[v] || (logits[u] == logits[v] && u < v))) before += ret[u];
        kept[v] = kept[v] && (before == 0 || before / left < row->top_p);
    }
    for (int v = 0; v < VOCAB; v++)
        final += ret[v] = kept[v] ? ret[v] : 0;
    for (int v = 0; v < VOCAB; v++)
        ret[v] /= final;
}

/* Every parameter by itself and all at once, by position and by seed; counts are put back after every draw, since a
 * draw is counted itself. */
static void test_sampler_bias_penalties_and_all_together_draw_the_exact_distribution(void **state)
{
    (void)state;
    static const struct {
        float temperature, repetition, presence, frequency, top_p, min_p;
        uint32_t top_k, biases;
    } ROWS[] = {
        {1, 1, 0, 0, 1, 0, 0, 2},
        {1, 1.5f, 0, 0, 1, 0, 0, 0},
        {1, 1, 0.8f, 0, 1, 0, 0, 0},
        {1, 1, 0, 0.4f, 1, 0, 0, 0},
        {1, 0.7f, -0.5f, -0.2f, 1, 0, 0, 0},
        {1.3f, 1.2f, 0.3f, 0.2f, 0.9f, 0.05f, 6, 2},
        {0.6f, 1.1f, -0.4f, 0.1f, 0.8f, 0, 5, 1},
    };
    for (size_t i = 0; i < sizeof ROWS / sizeof ROWS[0]; i++)
        for (int by_seed = 0; by_seed < 2; by_seed++) {
            world_t w;
            reset(&w);
            qn_slot_row_t *row = &w.rows[0];
            row->temperature = ROWS[i].temperature;
            row->repetition_penalty = ROWS[i].repetition;
            row->presence_penalty = ROWS[i].presence;
            row->frequency_penalty = ROWS[i].frequency;
            row->top_p = ROWS[i].top_p;
            row->min_p = ROWS[i].min_p;
            row->top_k = ROWS[i].top_k;
            row->bias_count = ROWS[i].biases;
            row->penalties = 1;
            row->seed = 99;
            w.bias[0] = (qn_bias_entry_t){6, 3};
            w.bias[1] = (qn_bias_entry_t){1, -1.5f};
            static const uint32_t COUNTS[VOCAB] = {2, 1, 0, QN_COUNT_PROMPT, QN_COUNT_PROMPT + 3, 0, 1, 0};
            memcpy(w.counts, COUNTS, sizeof COUNTS);
            double want[VOCAB];
            exact_distribution(&w, want);
            uint32_t counts[VOCAB] = {0};
            for (uint32_t draw = 0; draw < DRAWS; draw++) {
                if (by_seed) row->seed = 1000 + draw;
                counts[sample(&w, LOGITS, by_seed ? 20 : 20 + draw)]++;
                memcpy(w.counts, COUNTS, sizeof COUNTS);
                row->counted = 0;
            }
            check_distribution(counts, want);
        }
}

/* Sequences with parameters of their own give alone what they give together. */
static void test_sampler_rows_of_one_launch_do_not_touch_each_other(void **state)
{
    (void)state;
    world_t alone, both;
    reset(&alone);
    reset(&both);
    for (int k = 0; k < 2; k++) {
        world_t *w = k ? &both : &alone;
        w->rows[0].temperature = 0.8f;
        w->rows[0].top_k = 5;
        w->rows[0].seed = 3;
        w->rows[1] =
            (qn_slot_row_t){.prompt_tokens = 1, .top_p = 0.6f, .repetition_penalty = 1, .temperature = 1.5f, .seed = 4};
    }
    float logits[2 * VOCAB];
    for (int v = 0; v < VOCAB; v++) {
        logits[v] = LOGITS[v];
        logits[VOCAB + v] = LOGITS[VOCAB - 1 - v];
    }
    qn_stream_t *stream = check_stream(1);
    for (uint32_t position = 1; position < 200; position++) {
        const qn_sample_t samples[2] = {{0, position}, {1, position + 7}};
        qn_sampler_t launch = {.tables = both.tables,
                               .samples = samples,
                               .sample_count = 2,
                               .logits = logits,
                               .scratch = both.scratch,
                               .ret_results = both.results,
                               .ret_top = both.top};
        check_kernel(QN_OP_SAMPLER, implementation)->launch(stream, &launch);
        for (uint32_t s = 0; s < 2; s++) {
            launch = (qn_sampler_t){.tables = alone.tables,
                                    .samples = &samples[s],
                                    .sample_count = 1,
                                    .logits = logits + s * VOCAB,
                                    .scratch = alone.scratch,
                                    .ret_results = alone.results,
                                    .ret_top = alone.top};
            check_kernel(QN_OP_SAMPLER, implementation)->launch(stream, &launch);
            assert_int_equal(alone.results[0].id, both.results[s].id);
        }
    }
    qn_stream_destroy(&stream);
}

/* Greedy; of the ids after each other at positions 1, 2, ... the greatest logits decide but for bad words. */
static void test_sampler_bad_words_lose_their_last_token_after_generated_others_only(void **state)
{
    (void)state;
    static const float LIKELY[VOCAB] = {0, 5, 4, 3, 2, 1, 0, 0}; /* 1, else 2, else 3 */
    static const struct {
        uint32_t ids[4], count, prompt_tokens;
        uint32_t want[4]; /* generated at positions prompt_tokens, ... */
    } ROWS[] = {
        {{1, 1 | QN_SEQUENCE_END}, 2, 1, {1, 2, 1, 2}},
        {{1, 1, 1 | QN_SEQUENCE_END}, 3, 1, {1, 1, 2, 1}},
        {{1 | QN_SEQUENCE_END}, 1, 1, {2, 2, 2, 2}}, /* nothing before it: always out */
        {{1, 1 | QN_SEQUENCE_END, 1, 2 | QN_SEQUENCE_END}, 4, 1, {1, 3, 1, 3}},
        {{2, 1 | QN_SEQUENCE_END}, 2, 1, {1, 1, 1, 1}},
        {{1, 1 | QN_SEQUENCE_END}, 2, 40, {1, 2, 1, 2}}, /* the ring has gone round; the prompt is no part of it */
    };
    for (size_t i = 0; i < sizeof ROWS / sizeof ROWS[0]; i++) {
        world_t w;
        reset(&w);
        w.rows[0].prompt_tokens = ROWS[i].prompt_tokens;
        w.rows[0].bad_id_count = ROWS[i].count;
        memcpy(w.bad_ids, ROWS[i].ids, sizeof ROWS[i].ids);
        for (uint32_t j = 0; j < QN_BAD_SEQUENCE_TOKENS_MAX; j++)
            w.recent[j] = 1; /* of whoever had the slot before, and as if the prompt were ones */
        for (uint32_t t = 0; t < 4; t++)
            assert_int_equal(sample(&w, LIKELY, ROWS[i].prompt_tokens + t), ROWS[i].want[t]);
    }
}

static void test_sampler_bad_words_of_all_that_is_allowed_still_give_an_allowed_id(void **state)
{
    (void)state;
    world_t w;
    reset(&w);
    w.rows[0].allow_only = 1;
    w.rows[0].bias_count = 1;
    w.rows[0].bad_id_count = 2;
    w.bias[0] = (qn_bias_entry_t){.id = 6};
    w.bad_ids[0] = 6;
    w.bad_ids[1] = 6 | QN_SEQUENCE_END;
    for (uint32_t temperature = 0; temperature < 2; temperature++) {
        w.rows[0].temperature = (float)temperature;
        for (uint32_t t = 0; t < 3; t++)
            assert_int_equal(sample(&w, LOGITS, 1 + t), 6);
    }
}

static void test_sampler_logprob_ids_follow_the_likeliest_with_their_numbers(void **state)
{
    (void)state;
    world_t w;
    reset(&w);
    w.rows[0].logprobs = 0; /* they alone are reason to compute */
    w.rows[0].logprob_id_count = 3;
    w.logprob_ids[0] = 6, w.logprob_ids[1] = 1, w.logprob_ids[2] = 6;
    assert_int_equal(sample(&w, LOGITS, 1), 1);
    qn_top_entry_t alone[3];
    memcpy(alone, w.top, sizeof alone);
    w.rows[0].top_logprobs = QN_TOP_LOGPROBS_MAX; /* more than the vocabulary has */
    sample(&w, LOGITS, 2);
    assert_memory_equal(w.top + VOCAB, alone, sizeof alone);
    assert_true(alone[0].id == 6 && alone[1].id == 1 && alone[2].id == 6);
    for (int i = 0; i < VOCAB; i++)
        for (int j = 0; j < 3; j++)
            if (w.top[i].id == alone[j].id) assert_true(w.top[i].logprob == alone[j].logprob);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox_gives_the_published_vectors),
        cmocka_unit_test(test_sampler_greedy_takes_the_greatest_and_ties_the_lower_id),
        cmocka_unit_test(test_sampler_temperature_draws_the_softmax),
        cmocka_unit_test(test_sampler_seed_and_position_alone_decide),
        cmocka_unit_test(test_sampler_cuts_keep_what_vllm_keeps),
        cmocka_unit_test(test_sampler_top_k_ties_go_to_lower_ids),
        cmocka_unit_test(test_sampler_bias_shifts_and_forbids),
        cmocka_unit_test(test_sampler_allow_only_leaves_the_biased_ids),
        cmocka_unit_test(test_sampler_penalties_follow_counts),
        cmocka_unit_test(test_sampler_stop_ids_end_and_min_tokens_forbid_them),
        cmocka_unit_test(test_sampler_top_logprobs_are_of_the_raw_distribution),
        cmocka_unit_test(test_sampler_cuts_of_a_large_vocabulary_agree_with_sorting),
        cmocka_unit_test(test_sampler_bias_penalties_and_all_together_draw_the_exact_distribution),
        cmocka_unit_test(test_sampler_rows_of_one_launch_do_not_touch_each_other),
        cmocka_unit_test(test_sampler_bad_words_lose_their_last_token_after_generated_others_only),
        cmocka_unit_test(test_sampler_bad_words_of_all_that_is_allowed_still_give_an_allowed_id),
        cmocka_unit_test(test_sampler_logprob_ids_follow_the_likeliest_with_their_numbers),
    };
    int failures = cmocka_run_group_tests_name("sampler", tests, NULL, NULL);
    for (size_t n = 0; n < CHECK_FAST_COUNT; n++) {
        implementation = CHECK_FAST[n];
        if (check_kernel(QN_OP_SAMPLER, implementation))
            failures += cmocka_run_group_tests_name(implementation, tests, NULL, NULL);
    }
    return failures;
}
