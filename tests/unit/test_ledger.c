/* Units of services/scheduler/ledger/ledger.c and ledger_record.c: replay, torn and foreign bytes, bounds, compaction. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/checksum.h"
#include "services/scheduler/ledger/ledger.h"
#include "services/scheduler/ledger/ledger_record.h"

#define BYTES LEDGER_BYTES_MIN
#define REQUESTS 16u
#define HEADER LEDGER_HEAD_BYTES

static uint8_t *new_mapping(void)
{
    uint8_t *mapping = calloc(1, BYTES);
    assert_non_null(mapping);
    return mapping;
}

static ledger_t *open_at(void *mapping, ledger_replay_t *ret_replay)
{
    ledger_t *ledger = NULL;
    assert_int_equal(ledger_open(mapping, BYTES, REQUESTS, &ledger, ret_replay), QN_OK);
    return ledger;
}

static request_t *submit(ledger_t *ledger, uint64_t id, uint32_t prompt_tokens, uint32_t generated_max)
{
    uint32_t ids[512], stop_ids[2] = {7, 9};
    request_bias_t bias[1] = {{.id = 3, .bias = -1.5f}};
    for (uint32_t i = 0; i < prompt_tokens; i++)
        ids[i] = (uint32_t)id + i;
    ledger_submission_t submission = {
        .id = id,
        .client = {.epoch = 4, .service = 2, .instance = 1},
        .priority = -3,
        .salt = 99,
        .sampling = {.seed = id, .temperature = 0.5f, .max_tokens = generated_max, .logprobs = 1},
        .timeline = {.received_ns = 1, .queued_ns = 2},
        .prompt_ids = ids,
        .prompt_tokens = prompt_tokens,
        .generated_max = generated_max,
        .stop_ids = stop_ids,
        .stop_count = 2,
        .bias = bias,
        .bias_count = 1,
        .allow_only = true,
    };
    request_t *request = NULL;
    return ledger_submit(ledger, &submission, &request) == LEDGER_ACCEPTED ? request : NULL;
}

static void append(ledger_t *ledger, uint64_t id, uint32_t token, bool stopped)
{
    const request_t *request = ledger_find(ledger, id);
    ledger_token_t one = {.index = request->index,
                          .position = request_known_tokens(request),
                          .id = token,
                          .logprob = -(float)token,
                          .stopped = stopped};
    ledger_append(ledger, &one, 1);
}

/* A hash of everything durable that the ledger holds, in order of arrival. */
static uint64_t digest(const ledger_t *ledger)
{
    uint64_t hash = 1;
    const request_t *request = ledger_next(ledger, NULL);
    for (; request != NULL; request = ledger_next(ledger, request)) {
        size_t bytes = ledger_request_payload(request, false);
        uint8_t *payload = calloc(1, bytes);
        ledger_request_write(request, payload);
        hash = hash * 0x100000001b3ull + qn_crc32c(0, payload, bytes);
        free(payload);
    }
    return hash;
}

static uint64_t digest_of(const uint8_t *mapping)
{
    uint8_t *copy = new_mapping();
    memcpy(copy, mapping, BYTES);
    ledger_replay_t replay;
    ledger_t *ledger = open_at(copy, &replay);
    uint64_t hash = digest(ledger);
    ledger_close(&ledger);
    free(copy);
    return hash;
}

/* Whatever is changed, the next process finds: the change is in the mapping when the call returns. */
static void test_ledger_every_change_is_in_the_mapping_at_once(void **state)
{
    (void)state;
    uint8_t *mapping = new_mapping();
    ledger_replay_t replay;
    ledger_t *ledger = open_at(mapping, &replay);
    uint32_t ids[3] = {1, 2, 3};
    static const uint32_t wanted[1] = {8}, bad[2] = {6, 7 | QN_SEQUENCE_END};
    ledger_submission_t submission = {.id = 5,
                                      .sampling = {.top_logprobs = 2, .logprobs = 1, .max_tokens = 9},
                                      .logprob_ids = wanted,
                                      .logprob_id_count = 1,
                                      .bad_ids = bad,
                                      .bad_id_count = 2,
                                      .prompt_ids = ids,
                                      .prompt_tokens = 3,
                                      .generated_max = 9};
    request_t *request = NULL;
    assert_int_equal(ledger_submit(ledger, &submission, &request), LEDGER_ACCEPTED);
    for (int step = 0; step < 9; step++) {
        uint64_t before = digest(ledger);
        request_timeline_t timeline = {.queued_ns = 7, .planned_ns = 8, .resulted_ns = 9};
        request_alternative_t top[4] = {{.id = 11, .logprob = -1}, {.id = 12, .logprob = -2}, {.id = 13}, {.id = 14}};
        ledger_token_t token = {.index = request->index, .position = request_known_tokens(request), .top = top};
        switch (step) {
        case 0: ledger_orphan(ledger, request, 123456789012345); break;
        case 1: ledger_admit(ledger, request, 2); break;
        case 2: ledger_preempt(ledger, request); break;
        case 3: ledger_stamp(ledger, request, &timeline); break;
        case 4:
            token.top_count = 2;
            ledger_append(ledger, &token, 1);
            break;
        case 5:
            token.top_count = 4;
            ledger_append(ledger, &token, 1);
            break;
        case 6: ledger_adopt(ledger, request, (request_client_t){.epoch = 9, .service = 2}); break;
        case 7: ledger_clip(ledger, request, 4); break;
        default: ledger_finish(ledger, request, REQUEST_LENGTH); break;
        }
        assert_int_not_equal(digest(ledger), before);
        assert_int_equal(digest_of(mapping), digest(ledger));
    }
    assert_int_equal(request->orphaned_ns, 0);
    assert_int_equal(request->top_counts[0], 2);
    assert_int_equal(request->top_counts[1], 3); /* what it asked for */
    assert_int_equal(request->top[3].id, 11);
    ledger_close(&ledger);
    ledger = open_at(mapping, &replay);
    request = ledger_find(ledger, 5);
    assert_true(request->logprob_id_count == 1 && request->logprob_ids[0] == 8);
    assert_int_equal(request->bad_id_count, 2);
    assert_memory_equal(request->bad_ids, bad, sizeof bad);
    ledger_close(&ledger);
    free(mapping);
}

/* Alternatives are the larger part of what such a request needs: they are reserved, and compacted, like all else. */
static void test_ledger_alternatives_survive_compaction_and_are_reserved(void **state)
{
    (void)state;
    uint8_t *mapping = new_mapping();
    ledger_replay_t replay;
    ledger_t *ledger = open_at(mapping, &replay);
    uint32_t ids[1] = {1};
    uint32_t wanted[20] = {0};
    ledger_submission_t submission = {.id = 5,
                                      .sampling = {.top_logprobs = 20},
                                      .logprob_ids = wanted,
                                      .logprob_id_count = 20,
                                      .prompt_ids = ids,
                                      .prompt_tokens = 1,
                                      .generated_max = 15};
    request_t *request = NULL;
    assert_int_equal(ledger_submit(ledger, &submission, &request), LEDGER_ACCEPTED);
    ledger_usage_t usage;
    for (uint32_t i = 0; i < 15; i++) {
        request_alternative_t top[40];
        for (uint32_t k = 0; k < 40; k++)
            top[k] = (request_alternative_t){.id = 100 * i + k, .logprob = -(float)k};
        ledger_token_t token = {.index = request->index,
                                .position = request_known_tokens(request),
                                .top = top,
                                .top_count = 40};
        ledger_append(ledger, &token, 1);
        for (uint32_t k = 0; k < 40; k++)
            ledger_orphan(ledger, request, 1 + i * 40 + k); /* fills the area: it is compacted */
    }
    ledger_usage(ledger, &usage);
    assert_true(usage.compactions > 0);
    assert_true(usage.reserved_bytes > 30 * 160);
    ledger_close(&ledger);
    ledger = open_at(mapping, &replay);
    request = ledger_find(ledger, 5);
    assert_int_equal(request->generated_tokens, 15);
    for (uint32_t i = 0; i < 15; i++)
        assert_int_equal(request->top[i * 40 + 39].id, 100 * i + 39);
    submission.id = 6;
    submission.generated_max = 50; /* 16 KiB of alternatives: more than half of what is there */
    assert_int_equal(ledger_submit(ledger, &submission, &request), LEDGER_FULL);
    ledger_close(&ledger);
    free(mapping);
}

static void test_ledger_open_too_small_or_unaligned_refused(void **state)
{
    (void)state;
    uint8_t *mapping = new_mapping();
    ledger_t *ledger = NULL;
    ledger_replay_t replay;
    assert_int_equal(ledger_open(mapping, BYTES - 1, REQUESTS, &ledger, &replay), QN_ERR_INVALID);
    assert_int_equal(ledger_open(mapping + 4, BYTES, REQUESTS, &ledger, &replay), QN_ERR_INVALID);
    assert_int_equal(ledger_open(mapping, BYTES, 0, &ledger, &replay), QN_ERR_INVALID);
    assert_null(ledger);
    free(mapping);
}

static void test_ledger_replay_finds_every_field_again(void **state)
{
    (void)state;
    uint8_t *mapping = new_mapping();
    ledger_replay_t replay;
    ledger_t *ledger = open_at(mapping, &replay);
    assert_true(replay.formatted);
    assert_non_null(submit(ledger, 100, 5, 8));
    assert_non_null(submit(ledger, 200, 3, 4));
    assert_non_null(submit(ledger, 300, 1, 1));
    append(ledger, 100, 11, false);
    append(ledger, 200, 12, false);
    append(ledger, 100, 13, true);
    ledger_finish(ledger, ledger_find(ledger, 100), REQUEST_STOP);
    ledger_adopt(ledger, ledger_find(ledger, 200), (request_client_t){.epoch = 9, .service = 2});
    ledger_clip(ledger, ledger_find(ledger, 200), 2);
    request_t *third = ledger_find(ledger, 300);
    ledger_finish(ledger, third, REQUEST_CANCELLED);
    ledger_forget(ledger, &third);
    assert_null(third);
    uint64_t before = digest(ledger);
    ledger_close(&ledger);

    ledger = open_at(mapping, &replay);
    assert_false(replay.formatted);
    assert_int_equal(replay.requests, 2);
    assert_int_equal(replay.records, 11);
    assert_int_equal(replay.torn_bytes, 0);
    assert_true(digest(ledger) == before);
    const request_t *request = ledger_find(ledger, 100);
    assert_int_equal(request->generated_tokens, 2);
    assert_int_equal(request->ids[4], 104);
    assert_int_equal(request->ids[6], 13);
    assert_true(request->logprobs[1] == -13.0f);
    assert_true(request->stopped);
    assert_int_equal(request->finish, REQUEST_STOP);
    assert_int_equal(request->stop_ids[1], 9);
    assert_true(request->bias[0].bias == -1.5f);
    assert_true(request->allow_only);
    assert_int_equal(request->priority, -3);
    assert_int_equal(request->salt, 99);
    assert_int_equal(ledger_find(ledger, 200)->client.epoch, 9);
    assert_int_equal(ledger_find(ledger, 200)->generated_max, 2);
    assert_null(ledger_find(ledger, 300));
    assert_ptr_equal(ledger_next(ledger, NULL), request);
    assert_non_null(submit(ledger, 400, 2, 2));
    assert_true(ledger_find(ledger, 400)->arrival > ledger_find(ledger, 200)->arrival);
    ledger_close(&ledger);
    free(mapping);
}

/* ---- a writer that dies ---- */

/* The calls of the story; each appends one record. */
static void tell(ledger_t *ledger, int part)
{
    request_t *request;
    switch (part) {
    case 0: assert_non_null(submit(ledger, 100, 5, 8)); break;
    case 1: assert_non_null(submit(ledger, 200, 3, 8)); break;
    case 2: append(ledger, 100, 11, false); break;
    case 3: append(ledger, 200, 12, false); break;
    case 4: append(ledger, 100, 13, true); break;
    case 5: ledger_finish(ledger, ledger_find(ledger, 100), REQUEST_STOP); break;
    case 6: ledger_clip(ledger, ledger_find(ledger, 200), 4); break;
    case 7: ledger_adopt(ledger, ledger_find(ledger, 200), (request_client_t){.epoch = 5}); break;
    default:
        request = ledger_find(ledger, 100);
        ledger_forget(ledger, &request);
        break;
    }
}

#define PARTS 9

typedef struct {
    uint8_t *mapping[PARTS + 1]; /* after each part */
    uint64_t digest[PARTS + 1];
    size_t tail[PARTS + 1]; /* offset of the next record */
} story_t;

static void write_story(story_t *story)
{
    uint8_t *mapping = new_mapping();
    ledger_replay_t replay;
    ledger_t *ledger = open_at(mapping, &replay);
    for (int part = 0; part <= PARTS; part++) {
        ledger_usage_t usage;
        if (part > 0) tell(ledger, part - 1);
        ledger_usage(ledger, &usage);
        story->tail[part] = HEADER + usage.used_bytes;
        story->digest[part] = digest(ledger);
        story->mapping[part] = new_mapping();
        memcpy(story->mapping[part], mapping, BYTES);
    }
    ledger_close(&ledger);
    free(mapping);
}

static void free_story(story_t *story)
{
    for (int part = 0; part <= PARTS; part++)
        free(story->mapping[part]);
}

static void test_ledger_killed_at_every_byte_of_every_record_rolls_it_back(void **state)
{
    (void)state;
    story_t story;
    write_story(&story);
    uint8_t *mapping = new_mapping();
    for (int part = 1; part <= PARTS; part++) {
        size_t begin = story.tail[part - 1], end = story.tail[part];
        for (size_t at = begin + 8; at < end; at++) { /* bytes from here on were not written, nor the first 8 */
            memcpy(mapping, story.mapping[part - 1], BYTES);
            memcpy(mapping + begin + 8, story.mapping[part] + begin + 8, at - begin - 8);
            assert_true(digest_of(mapping) == story.digest[part - 1]);
        }
        assert_true(digest_of(story.mapping[part]) == story.digest[part]);
    }
    free(mapping);
    free_story(&story);
}

static void test_ledger_every_flipped_byte_ends_the_replay_there(void **state)
{
    (void)state;
    story_t story;
    write_story(&story);
    for (int part = 1; part <= PARTS; part++)
        for (size_t at = story.tail[part - 1]; at < story.tail[part]; at++)
            for (int bit = 0; bit < 8; bit += 7) {
                story.mapping[PARTS][at] ^= (uint8_t)(1u << bit);
                uint64_t found = digest_of(story.mapping[PARTS]);
                story.mapping[PARTS][at] ^= (uint8_t)(1u << bit);
                /* padding is not covered by the CRC: a flip there changes nothing */
                assert_true(found == story.digest[part - 1] || found == story.digest[PARTS]);
            }
    free_story(&story);
}

static void test_ledger_truncated_at_every_byte_keeps_the_records_before(void **state)
{
    (void)state;
    story_t story;
    write_story(&story);
    uint8_t *mapping = new_mapping();
    for (int part = 1; part <= PARTS; part++)
        for (size_t at = story.tail[part - 1]; at < story.tail[part]; at++) {
            memset(mapping, 0, BYTES);
            memcpy(mapping, story.mapping[PARTS], at);
            uint64_t found = digest_of(mapping);
            assert_true(found == story.digest[part - 1] || found == story.digest[part]); /* zeros cut off zeros */
        }
    free(mapping);
    free_story(&story);
}

static void test_ledger_stale_records_behind_a_rolled_back_one_stay_dead(void **state)
{
    (void)state;
    story_t story;
    write_story(&story);
    /* the fifth record (tokens of 100) is torn; the end of 100 behind it is whole, and its number follows on */
    uint8_t *mapping = story.mapping[PARTS];
    mapping[story.tail[4] + 8] ^= 1;
    ledger_replay_t replay;
    ledger_t *ledger = open_at(mapping, &replay);
    assert_true(replay.torn_bytes > 0);
    assert_true(digest(ledger) == story.digest[4]);
    append(ledger, 200, 77, false); /* as long as the torn one */
    uint64_t now = digest(ledger);
    ledger_close(&ledger);
    ledger = open_at(mapping, &replay);
    assert_true(digest(ledger) == now);
    assert_int_equal(replay.records, 5);
    assert_int_equal(ledger_find(ledger, 100)->finish, REQUEST_UNFINISHED);
    ledger_close(&ledger);
    free_story(&story);
}

static void test_ledger_foreign_header_is_formatted_and_empty(void **state)
{
    (void)state;
    story_t story;
    write_story(&story);
    for (size_t at = 0; at < 24; at++) { /* magic, record sizes, area size */
        uint8_t *mapping = new_mapping();
        memcpy(mapping, story.mapping[PARTS], BYTES);
        mapping[at] ^= 0x10;
        ledger_replay_t replay;
        ledger_t *ledger = open_at(mapping, &replay);
        assert_true(replay.formatted);
        assert_int_equal(ledger_count(ledger), 0);
        assert_non_null(submit(ledger, 1, 1, 1));
        ledger_close(&ledger);
        free(mapping);
    }
    free_story(&story);
}

/* ---- bounds ---- */

static void test_ledger_submit_twice_exists_and_too_many_full(void **state)
{
    (void)state;
    uint8_t *mapping = new_mapping();
    ledger_replay_t replay;
    ledger_t *ledger = open_at(mapping, &replay);
    for (uint64_t id = 1; id <= REQUESTS; id++)
        assert_non_null(submit(ledger, id, 1, 1));
    request_t *request = NULL;
    uint32_t prompt = 5;
    ledger_submission_t again = {.id = 3, .prompt_ids = &prompt, .prompt_tokens = 1};
    assert_int_equal(ledger_submit(ledger, &again, &request), LEDGER_EXISTS);
    assert_ptr_equal(request, ledger_find(ledger, 3));
    again.id = 99;
    assert_int_equal(ledger_submit(ledger, &again, &request), LEDGER_FULL);
    request = ledger_find(ledger, 3);
    ledger_finish(ledger, request, REQUEST_CANCELLED);
    ledger_finish(ledger, request, REQUEST_STOP); /* the first one stays */
    assert_int_equal(request->finish, REQUEST_CANCELLED);
    ledger_forget(ledger, &request);
    assert_int_equal(ledger_submit(ledger, &again, &request), LEDGER_ACCEPTED);
    ledger_close(&ledger);
    free(mapping);
}

static void test_ledger_submit_reserves_what_may_be_generated(void **state)
{
    (void)state;
    uint8_t *mapping = new_mapping();
    ledger_replay_t replay;
    ledger_t *ledger = open_at(mapping, &replay);
    ledger_usage_t usage;
    ledger_usage(ledger, &usage);
    /* one request whose tokens alone would fill half an area is refused, one just below is accepted */
    assert_null(submit(ledger, 1, 1, (uint32_t)(usage.area_bytes / 2 / 8)));
    assert_non_null(submit(ledger, 1, 1, (uint32_t)(usage.area_bytes / 2 / 8 - 60)));
    assert_null(submit(ledger, 2, 1, 40));
    ledger_clip(ledger, ledger_find(ledger, 1), 10); /* the model allows less: the space is back */
    assert_non_null(submit(ledger, 2, 1, 40));
    ledger_close(&ledger);
    free(mapping);
}

static void test_ledger_append_to_the_last_reserved_token_compacts_and_never_fails(void **state)
{
    (void)state;
    uint8_t *mapping = new_mapping();
    ledger_replay_t replay;
    ledger_t *ledger = open_at(mapping, &replay);
    uint32_t most = 300;
    for (uint64_t id = 1; id <= 2; id++)
        assert_non_null(submit(ledger, id, 4, most));
    for (uint32_t round = 0; round < 4; round++) {
        for (uint32_t i = 0; i < most; i++) {
            append(ledger, 1, i, false);
            append(ledger, 2, i + 1, false);
            if (i % 50 == 0) assert_true(digest_of(mapping) == digest(ledger));
        }
        for (uint64_t id = 1; id <= 2; id++) {
            request_t *request = ledger_find(ledger, id);
            ledger_finish(ledger, request, REQUEST_LENGTH);
            ledger_forget(ledger, &request);
            assert_non_null(submit(ledger, id, 4, most));
        }
    }
    ledger_usage_t usage;
    ledger_usage(ledger, &usage);
    assert_true(usage.compactions >= 4);
    assert_true(digest_of(mapping) == digest(ledger));
    ledger_close(&ledger);
    free(mapping);
}

/* The other area is being written when the writer dies: the switch was not thrown, the old area counts. */
static void test_ledger_killed_during_compaction_keeps_the_old_area(void **state)
{
    (void)state;
    uint8_t *mapping = new_mapping(), *before = new_mapping();
    ledger_replay_t replay;
    ledger_t *ledger = open_at(mapping, &replay);
    ledger_usage_t usage = {0};
    uint64_t held = 0;
    assert_non_null(submit(ledger, 1, 4, 600));
    while (usage.compactions == 0) {
        memcpy(before, mapping, BYTES);
        held = digest(ledger);
        append(ledger, 1, 5, false);
        ledger_usage(ledger, &usage);
    }
    size_t areas = (BYTES - HEADER) / 2;
    for (size_t written = 0; written < usage.used_bytes; written += 7) {
        uint8_t *torn = new_mapping();
        memcpy(torn, before, BYTES);
        memcpy(torn + HEADER + areas, mapping + HEADER + areas, written);
        assert_true(digest_of(torn) == held);
        free(torn);
    }
    assert_true(digest_of(mapping) == digest(ledger));
    ledger_close(&ledger);
    free(mapping);
    free(before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ledger_every_change_is_in_the_mapping_at_once),
        cmocka_unit_test(test_ledger_alternatives_survive_compaction_and_are_reserved),
        cmocka_unit_test(test_ledger_open_too_small_or_unaligned_refused),
        cmocka_unit_test(test_ledger_replay_finds_every_field_again),
        cmocka_unit_test(test_ledger_killed_at_every_byte_of_every_record_rolls_it_back),
        cmocka_unit_test(test_ledger_every_flipped_byte_ends_the_replay_there),
        cmocka_unit_test(test_ledger_truncated_at_every_byte_keeps_the_records_before),
        cmocka_unit_test(test_ledger_stale_records_behind_a_rolled_back_one_stay_dead),
        cmocka_unit_test(test_ledger_foreign_header_is_formatted_and_empty),
        cmocka_unit_test(test_ledger_submit_twice_exists_and_too_many_full),
        cmocka_unit_test(test_ledger_submit_reserves_what_may_be_generated),
        cmocka_unit_test(test_ledger_append_to_the_last_reserved_token_compacts_and_never_fails),
        cmocka_unit_test(test_ledger_killed_during_compaction_keeps_the_old_area),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
