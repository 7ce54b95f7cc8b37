/* Units of services/tokenizer/bpe/bpe.c: the order of merges, both merging algorithms against a plain one, and
 * characters the vocabulary does not have. */
#include "tests/unit/tokenizer_case.h"

#include <stdlib.h>

#include "services/tokenizer/bpe/bpe.h"

typedef struct {
    const char *model, *vocab, *merges, *text, *tokens;
} row_t;

static const row_t rows[] = {
    /* lowest rank first, not longest first */
    {"", "{\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"bc\":4}", "[[\"b\",\"c\"],[\"a\",\"b\"]]", "abc", "|a|bc"},
    /* of equal ranks the leftmost */
    {"", "{\"a\":0,\"aa\":1}", "[\"a a\"]", "aaaaa", "|aa|aa|a"},
    {"", "{\"a\":0,\"aa\":1,\"aaa\":2}", "[\"a a\",\"aa a\"]", "aaaaaa", "|aa|aa|aa"},
    {"", "{\"a\":0,\"aa\":1,\"aaa\":2}", "[\"a a\",\"aa a\"]", "aaa", "|aaa"},
    /* the last of two ranks for one pair counts */
    {"", "{\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"bc\":4}", "[[\"a\",\"b\"],[\"b\",\"c\"],[\"a\",\"b\"]]", "abc", "|a|bc"},
    /* a piece that no merge reaches is used only with ignore_merges */
    {"", "{\"a\":0,\"b\":1,\"ab\":2}", "[]", "ab", "|a|b"},
    {"\"ignore_merges\":true,", "{\"a\":0,\"b\":1,\"ab\":2}", "[]", "ab", "|ab"},
    {"\"ignore_merges\":true,", "{\"a\":0,\"b\":1,\"ab\":2}", "[]", "aba", "|a|b|a"},
    /* unknown characters */
    {"", "{\"a\":0}", "[]", "xax", "|a"},
    {"\"unk_token\":\"?\",", "{\"a\":0,\"?\":1}", "[]", "xxaé", "|?|?|a|?"},
    {"\"unk_token\":\"?\",\"fuse_unk\":true,", "{\"a\":0,\"?\":1}", "[]", "xxaéy", "|?|a|?"},
    {"\"unk_token\":\"?\",", "{\"a\":0}", "[]", "xa", "|a"},
    {"\"byte_fallback\":true,", "{\"a\":0,\"<0xC3>\":1,\"<0xA9>\":2}", "[]", "aé", "|a|<0xC3>|<0xA9>"},
    {"\"byte_fallback\":true,\"unk_token\":\"?\",", "{\"a\":0,\"<0xC3>\":1,\"?\":2}", "[]", "aé", "|a|?"},
    /* a pending unknown token is written after fallback tokens that come behind it */
    {"\"byte_fallback\":true,\"unk_token\":\"?\",", "{\"a\":0,\"<0x78>\":1,\"?\":2}", "[]", "yxa", "|<0x78>|?|a"},
    /* two pieces with one id: the second stands for the first in merges */
    {"", "{\"a\":0,\"b\":1,\"c\":1,\"ab\":2}", "[\"a b\"]", "acab", "|ab|ab"},
    /* affixes */
    {"\"continuing_subword_prefix\":\"##\",", "{\"a\":0,\"##b\":1,\"##c\":2,\"ab\":3,\"##bc\":4,\"abc\":5}",
     "[[\"##b\",\"##c\"],[\"a\",\"##bc\"]]", "abc", "|abc"},
    {"\"end_of_word_suffix\":\"</w>\",", "{\"a\":0,\"b\":1,\"b</w>\":2,\"ab</w>\":3}", "[[\"a\",\"b</w>\"]]", "bab",
     "|b|ab</w>"},
    /* a cut where nothing joins changes nothing */
    {"", "{\"a\":0,\"b\":1,\"▁\":2,\"▁a\":3,\"▁▁\":4}", "[[\"▁\",\"▁\"],[\"▁\",\"a\"]]", "▁a▁▁▁ab▁", "|▁a|▁▁|▁a|b|▁"},
};

static void test_bpe_rules_give_expected_tokens(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        tokenizer_t *t =
            case_opened((case_json_t){.model = rows[i].model, .vocab = rows[i].vocab, .merges = rows[i].merges});
        const char *got = case_encode(t, rows[i].text, TOKENIZER_PARSE_SPECIAL);
        if (strcmp(got, rows[i].tokens) != 0) fail_msg("row %zu: %s, expected %s", i, got, rows[i].tokens);
        tokenizer_close(&t);
    }
}

#define LETTERS 4
#define MERGES 40

/* A random table over bytes "abcd": merges[i] joins two earlier symbols. */
typedef struct {
    bpe_t bpe;
    uint32_t left[MERGES], right[MERGES], merged[MERGES];
    size_t count;
} table_t;

static void table_open(table_t *table, unsigned *seed, size_t merges)
{
    char pieces[LETTERS + MERGES][64] = {"a", "b", "c", "d"};
    *table = (table_t){.count = 0};
    vocabulary_init(&table->bpe.pieces, 64);
    bpe_init(&table->bpe, MERGES);
    table->bpe.is_byte = true;
    uint32_t ids = LETTERS;
    for (uint32_t i = 0; i < LETTERS; i++)
        vocabulary_add(&table->bpe.pieces, pieces[i], 1, i);
    while (table->count < merges) {
        uint32_t left = (uint32_t)rand_r(seed) % ids, right = (uint32_t)rand_r(seed) % ids;
        char joined[128];
        snprintf(joined, sizeof joined, "%s%s", pieces[left], pieces[right]);
        if (strlen(joined) > 12) continue;
        uint32_t merged = vocabulary_find(&table->bpe.pieces, joined, strlen(joined));
        if (merged == VOCABULARY_NO_ID) {
            merged = ids++;
            strcpy(pieces[merged], joined);
            vocabulary_add(&table->bpe.pieces, joined, strlen(joined), merged);
        }
        table->left[table->count] = left;
        table->right[table->count] = right;
        table->merged[table->count++] = merged;
        bpe_add_merge(&table->bpe, left, right, merged);
    }
    bpe_finish(&table->bpe);
}

/* As the definition says: find the best pair, merge it, start again. */
static size_t merge_plainly(const table_t *table, uint32_t *ids, size_t count)
{
    for (;;) {
        size_t best = SIZE_MAX, at = 0;
        for (size_t i = 0; i + 1 < count; i++) {
            for (size_t rank = table->count; rank-- > 0;) {
                if (table->left[rank] != ids[i] || table->right[rank] != ids[i + 1]) continue;
                if (rank < best) {
                    best = rank;
                    at = i;
                }
                break; /* the last rank of a pair counts */
            }
        }
        if (best == SIZE_MAX) return count;
        ids[at] = table->merged[best];
        memmove(ids + at + 1, ids + at + 2, (count - at - 2) * sizeof *ids);
        count--;
    }
}

static void check_word(const table_t *table, bpe_scratch_t *scratch, const uint8_t *word, size_t bytes)
{
    uint32_t want[512];
    for (size_t i = 0; i < bytes; i++)
        want[i] = word[i] - 'a';
    size_t count = merge_plainly(table, want, bytes);
    const uint32_t *ids, *ends;
    assert_int_equal(bpe_encode_spans(&table->bpe, scratch, word, bytes, &ids, &ends), count);
    assert_memory_equal(ids, want, count * sizeof *want);
    assert_int_equal(ends[count - 1], bytes);
    tokenizer_tokens_t tokens = {0};
    for (int pass = 0; pass < 2; pass++)
        bpe_encode_word(&table->bpe, scratch, word, bytes, bytes, &tokens);
    assert_int_equal(tokens.count, 2 * count);
    assert_memory_equal(tokens.ids, want, count * sizeof *want);
    assert_memory_equal(tokens.ids + count, want, count * sizeof *want);
    tokenizer_tokens_fini(&tokens);
}

/* Lengths on both sides of the short algorithm's 64 symbols, of the heap's 256, of the caches' 15 and 255 bytes. */
static void test_bpe_random_words_equal_plain_merging(void **state)
{
    (void)state;
    static const size_t lengths[] = {1, 2, 3, 7, 12, 13, 15, 16, 17, 63, 64, 65, 66, 200, 255, 256, 300, 500};
    unsigned seed = 20240607;
    print_message("seed %u\n", seed);
    for (int round = 0; round < 40; round++) {
        table_t table;
        table_open(&table, &seed, round % 2 ? MERGES : 2 + (size_t)round / 4); /* few: most words can be cut */
        bpe_scratch_t *scratch = bpe_scratch_open();
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            uint8_t word[512];
            for (size_t k = 0; k < lengths[i]; k++)
                word[k] = (uint8_t)('a' + rand_r(&seed) % LETTERS);
            check_word(&table, scratch, word, lengths[i]);
        }
        bpe_scratch_close(&scratch);
        bpe_fini(&table.bpe);
    }
}

/* Do some two letters never meet inside a piece? */
static bool has_cut(const table_t *table)
{
    bool found = false;
    for (unsigned pair = 0; pair < LETTERS * LETTERS; pair++) {
        unsigned at = ('a' + pair / LETTERS) << 8 | ('a' + pair % LETTERS);
        found |= !(table->bpe.joins[at >> 6] >> (at & 63) & 1);
    }
    return found && table->bpe.is_splittable;
}

/* More words than the caches hold: entries are written over, results stay. */
static void fill_caches(size_t merges)
{
    unsigned seed = 7;
    table_t table;
    table_open(&table, &seed, merges);
    bpe_scratch_t *scratch = bpe_scratch_open(), *fresh = bpe_scratch_open();
    assert_true(has_cut(&table));
    for (int round = 0; round < 60000; round++) {
        uint8_t word[40];
        size_t bytes = 5 + (size_t)(rand_r(&seed) % 35);
        for (size_t k = 0; k < bytes; k++)
            word[k] = (uint8_t)('a' + rand_r(&seed) % LETTERS);
        tokenizer_tokens_t tokens = {0};
        const uint32_t *ids, *ends;
        bpe_encode_word(&table.bpe, scratch, word, bytes, bytes, &tokens);
        size_t count = bpe_encode_spans(&table.bpe, fresh, word, bytes, &ids, &ends);
        assert_int_equal(tokens.count, count);
        assert_memory_equal(tokens.ids, ids, count * sizeof *ids);
        tokenizer_tokens_fini(&tokens);
    }
    bpe_scratch_close(&scratch);
    bpe_scratch_close(&fresh);
    bpe_fini(&table.bpe);
}

static void test_bpe_full_cache_changes_nothing(void **state)
{
    (void)state;
    fill_caches(MERGES);
    fill_caches(5);
}

/* A merge whose piece is not its two pieces side by side (its id names other text as well): no word may be cut, since
 * what is inside pieces says nothing of what merges. */
static void test_bpe_merge_of_another_piece_forbids_cuts(void **state)
{
    (void)state;
    static const struct {
        const char *piece;
        bool splittable;
    } ROWS[] = {{"ab", true}, {"cc", false}};
    for (size_t i = 0; i < 2; i++) {
        bpe_t bpe = {.is_byte = true};
        vocabulary_init(&bpe.pieces, 8);
        bpe_init(&bpe, 1);
        for (uint32_t id = 0; id < 3; id++)
            vocabulary_add(&bpe.pieces, &"abc"[id], 1, id);
        vocabulary_add(&bpe.pieces, ROWS[i].piece, 2, 3);
        bpe_add_merge(&bpe, 0, 1, 3);
        bpe_finish(&bpe);
        assert_int_equal(bpe.is_splittable, ROWS[i].splittable);
        bpe_scratch_t *scratch = bpe_scratch_open();
        tokenizer_tokens_t tokens = {0};
        bpe_encode_word(&bpe, scratch, (const uint8_t *)"cabca", 5, 5, &tokens);
        static const uint32_t WANT[] = {2, 3, 2, 0};
        assert_int_equal(tokens.count, 4);
        assert_memory_equal(tokens.ids, WANT, sizeof WANT);
        tokenizer_tokens_fini(&tokens);
        bpe_scratch_close(&scratch);
        bpe_fini(&bpe);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bpe_rules_give_expected_tokens),
        cmocka_unit_test(test_bpe_random_words_equal_plain_merging),
        cmocka_unit_test(test_bpe_full_cache_changes_nothing),
        cmocka_unit_test(test_bpe_merge_of_another_piece_forbids_cuts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
