/* Damaged frames: every single-bit flip and every truncation of every example is refused or harmless. The frame lies
 * once right behind and once right before a page that cannot be touched, so that a stray read ends the test. What is
 * accepted is walked to its last byte, encoded and printed as JSON. */
#include "tests/unit/wire_examples.h"
#include "tests/unit/wire_walk.h"

#include <sanitizer/asan_interface.h>
#include <sys/mman.h>
#include <unistd.h>

#define ROOM 65536

static qn_arena_t arena, fresh;
/* ROOM bytes with a guard page on each side. */
static uint8_t *room;

static int room_open(void **state)
{
    (void)state;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uint8_t *map = mmap(NULL, ROOM + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED || mprotect(map + page, ROOM, PROT_READ | PROT_WRITE)) return -1;
    room = map + page;
    qn_arena_init(&arena, 0);
    qn_arena_init(&fresh, 0);
    return 0;
}

static int room_close(void **state)
{
    (void)state;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    munmap(room - page, ROOM + 2 * page);
    qn_arena_fini(&arena);
    qn_arena_fini(&fresh);
    return 0;
}

/* Returns whether the frame was accepted. */
static bool survive(const qn_wire_type_t *type, uint8_t *frame, size_t bytes)
{
    qn_arena_reset(&fresh);
    return wire_survive(type, frame, bytes, &fresh);
}

static bool walk(const qn_wire_type_t *type, uint8_t *frame, size_t bytes)
{
    qn_arena_reset(&fresh);
    return wire_walk(type, frame, bytes, &fresh, qn_arena_alloc(&fresh, type->struct_bytes, 16));
}

/* Returns how many flips were accepted. */
static size_t flip_each_bit(const qn_wire_type_t *type, uint8_t *place, size_t bytes,
                            bool (*attempt)(const qn_wire_type_t *, uint8_t *, size_t))
{
    size_t accepted = 0;
    for (size_t bit = 0; bit < bytes * 8; bit++) {
        place[bit / 8] ^= (uint8_t)(1u << bit % 8);
        accepted += attempt(type, place, bytes);
        place[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    assert_true(attempt(type, place, bytes)); /* undamaged again */
    return accepted;
}

static void test_wire_damage_every_bit_flip_is_refused_or_harmless(void **state)
{
    (void)state;
    size_t flips = 0, accepted = 0;
    EACH_MESSAGE(type)
    {
        qn_arena_reset(&arena);
        size_t bytes;
        const uint8_t *frame = example_frame(type, &arena, &bytes);
        assert_true(bytes < ROOM && bytes % 8 == 0);
        /* What is accepted is encoded and printed for one of the two places; that takes most of the time. */
        size_t again = flip_each_bit(type, memcpy(room, frame, bytes), bytes, walk);
        size_t here = flip_each_bit(type, memcpy(room + ROOM - bytes, frame, bytes), bytes, survive);
        assert_int_equal(here, again);
        flips += bytes * 8, accepted += here;
    }
    print_message("%zu flips at two places, %zu accepted and harmless\n", flips, accepted);
    assert_true(accepted > 0 && accepted < flips);
}

/* A shorter frame ends at the guard page as nearly as 8-byte alignment allows; AddressSanitizer guards the rest. */
static void test_wire_damage_every_truncation_is_refused(void **state)
{
    (void)state;
    EACH_MESSAGE(type)
    {
        qn_arena_reset(&arena);
        size_t bytes;
        const uint8_t *frame = example_frame(type, &arena, &bytes);
        size_t accepted = 0;
        for (size_t kept = 0; kept < bytes; kept++) {
            uint8_t *place = room + ROOM - (kept + 7) / 8 * 8;
            memset(place, 0xA5, (kept + 7) / 8 * 8);
            memcpy(place, frame, kept);
            ASAN_POISON_MEMORY_REGION(place + kept, (size_t)(room + ROOM - place) - kept);
            accepted += survive(type, place, kept);
            ASAN_UNPOISON_MEMORY_REGION(place, (size_t)(room + ROOM - place));
        }
        assert_true(accepted < 8); /* only the padding at the end can be missed */
    }
}

/* Bytes that look like a frame only from afar: each 4-byte word of each example replaced by values that break
 * offsets and lengths. */
static void test_wire_damage_every_word_replaced_is_refused_or_harmless(void **state)
{
    (void)state;
    static const uint32_t words[] = {
        0, 1, 4, 8, 0x7fffffff, 0x80000000, 0xfffffffc, 0xffffffff, 0x00ffffff, 1u << 24,
    };
    EACH_MESSAGE(type)
    {
        qn_arena_reset(&arena);
        size_t bytes;
        const uint8_t *frame = example_frame(type, &arena, &bytes);
        uint8_t *place = room + ROOM - bytes;
        for (size_t at = 0; at + 4 <= bytes; at += 4) {
            for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
                memcpy(place, frame, bytes);
                memcpy(place + at, &words[i], 4);
                survive(type, place, bytes);
            }
        }
    }
}

/* A frame decoded as each other type: only its own accepts it. */
static void test_wire_damage_identifier_of_another_type_is_refused_or_harmless(void **state)
{
    (void)state;
    EACH_MESSAGE(type)
    {
        qn_arena_reset(&arena);
        size_t bytes;
        const uint8_t *frame = example_frame(type, &arena, &bytes);
        uint8_t *place = room + ROOM - bytes;
        EACH_MESSAGE(other)
        {
            memcpy(place, frame, bytes);
            memcpy(place + 4, other->identifier, 4);
            assert_true(survive(other, place, bytes) || other != type);
        }
    }
}

/* ---- crafted frames ------------------------------------------------------------------------------------------ */

/* A Credit { limit: 5 } at the end of the room, `extra` bytes of zeros behind it, and where its parts are. */
typedef struct {
    uint8_t *frame;
    size_t bytes, table, vtable;
} credit_t;

static credit_t craft_credit(size_t extra)
{
    const qn_credit_t message = {.limit = 5};
    const uint8_t *frame;
    credit_t made;
    qn_arena_reset(&arena);
    assert_int_equal(qn_credit_encode(&message, &arena, &frame, &made.bytes), QN_OK);
    made.frame = room + ROOM - made.bytes - extra;
    memcpy(made.frame, frame, made.bytes);
    memset(made.frame + made.bytes, 0, extra);
    uint32_t root, back;
    memcpy(&root, frame, 4);
    memcpy(&back, frame + root, 4);
    made.table = root, made.vtable = root - back;
    made.bytes += extra;
    return made;
}

static void expect_refused(const credit_t *made, const char *text)
{
    qn_credit_t message;
    assert_int_equal(qn_credit_decode(made->frame, made->bytes, &arena, &message), QN_ERR_INVALID);
    if (!strstr(qn_err_text(), text)) fail_msg("\"%s\" is not in: %s", text, qn_err_text());
}

static void store_u16(uint8_t *at, unsigned value) { memcpy(at, &(uint16_t){(uint16_t)value}, 2); }

static void test_wire_damage_vtable_that_runs_out_of_the_frame_is_refused(void **state)
{
    (void)state;
    for (unsigned size = 0; size <= 64; size++) {
        credit_t made = craft_credit(8);
        int32_t back = (int32_t)made.table - (int32_t)(made.bytes - 8);
        memcpy(made.frame + made.table, &back, 4); /* the vtable is now the last 8 bytes */
        store_u16(made.frame + made.bytes - 8, size);
        store_u16(made.frame + made.bytes - 6, 44);
        /* One that fits lacks its fields; no other is looked into. */
        bool fits = size >= 4 && size <= 8 && size % 2 == 0;
        expect_refused(&made, fits ? "Credit.head: is required and absent" : "broken frame: vtable of");
    }
    for (unsigned size = 0; size < 4; size++) {
        credit_t made = craft_credit(0);
        store_u16(made.frame + made.vtable + 2, size);
        expect_refused(&made, "broken frame: table of");
    }
}

static void test_wire_damage_offset_of_zero_or_odd_place_is_refused(void **state)
{
    (void)state;
    static const struct {
        int root;
        int limit;
        const char *text;
    } cases[] = {
        {0, 0, "Credit: broken frame: offset"}, /* points at itself */
        {1, 0, "Credit: broken frame: offset"},       {2, 0, "Credit: broken frame: offset"},
        {-1, 4, "Credit.limit: broken frame: field"}, /* not 8-byte aligned */
        {-1, 1, "Credit.limit: broken frame: field"}, {-1, 2, "Credit.limit: broken frame: field"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        credit_t made = craft_credit(0);
        uint16_t place;
        memcpy(&place, made.frame + made.vtable + 6, 2);
        if (cases[i].root >= 0) memcpy(made.frame, &cases[i].root, 4);
        if (cases[i].limit) store_u16(made.frame + made.vtable + 6, place - (unsigned)cases[i].limit);
        expect_refused(&made, cases[i].text);
    }
}

/* A frame must not choose how much memory its refusal costs. */
static void test_wire_damage_vector_above_its_limit_costs_no_memory(void **state)
{
    (void)state;
    enum { COUNT = 200000 };
    const qn_wire_type_t *type = qn_wire_type(QN_MESSAGE_STEP_PLAN);
    qn_wire_field_t fields[QN_WIRE_FIELDS_MAX];
    memcpy(fields, type->fields, type->field_count * sizeof *fields);
    for (size_t i = 0; i < type->field_count; i++)
        fields[i].max_len = UINT32_MAX;
    qn_wire_type_t lenient = *type;
    lenient.fields = fields;
    qn_arena_reset(&arena);
    qn_text_t *reasons = qn_arena_alloc(&arena, COUNT * sizeof *reasons, 16);
    for (size_t i = 0; i < COUNT; i++)
        reasons[i] = qn_text("");
    const qn_step_plan_t plan = {.step = 1, .reasons = reasons, .reasons_count = COUNT};
    const uint8_t *frame;
    size_t bytes;
    assert_int_equal(qn_wire_encode(&lenient, &plan, &arena, &frame, &bytes), QN_OK);
    qn_arena_t untouched;
    qn_arena_init(&untouched, 0);
    qn_step_plan_t read;
    assert_int_equal(qn_step_plan_decode(frame, bytes, &untouched, &read), QN_ERR_LIMIT);
    assert_string_equal(qn_err_text(), "StepPlan.reasons: 200000 elements exceed the maximum of 64");
    assert_null(untouched.first);
    qn_arena_fini(&untouched);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wire_damage_every_bit_flip_is_refused_or_harmless),
        cmocka_unit_test(test_wire_damage_every_truncation_is_refused),
        cmocka_unit_test(test_wire_damage_every_word_replaced_is_refused_or_harmless),
        cmocka_unit_test(test_wire_damage_identifier_of_another_type_is_refused_or_harmless),
        cmocka_unit_test(test_wire_damage_vtable_that_runs_out_of_the_frame_is_refused),
        cmocka_unit_test(test_wire_damage_offset_of_zero_or_odd_place_is_refused),
        cmocka_unit_test(test_wire_damage_vector_above_its_limit_costs_no_memory),
    };
    return cmocka_run_group_tests(tests, room_open, room_close);
}
