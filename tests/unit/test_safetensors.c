/* Checkpoints: what is read, and every way a file may be broken. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/limits.h"
#include "services/memory/weights/safetensors.h"

static char directory[64];

static int setup(void **state)
{
    (void)state;
    snprintf(directory, sizeof directory, "/tmp/qn-safetensors-XXXXXX");
    return mkdtemp(directory) ? 0 : -1;
}

static int remove_one(const char *path, const struct stat *info, int kind, struct FTW *place)
{
    (void)info, (void)kind, (void)place;
    return remove(path);
}

static int teardown(void **state)
{
    (void)state;
    return nftw(directory, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

/* A file image: length word, header, `data_bytes` bytes 0, 1, 2, ...; returns owned. */
static uint8_t *make_image(const char *header, size_t data_bytes, size_t *ret_bytes)
{
    size_t header_bytes = strlen(header);
    uint8_t *image = malloc(8 + header_bytes + data_bytes);
    assert_non_null(image);
    for (int i = 0; i < 8; i++)
        image[i] = (uint8_t)((uint64_t)header_bytes >> 8 * i);
    memcpy(image + 8, header, header_bytes);
    for (size_t i = 0; i < data_bytes; i++)
        image[8 + header_bytes + i] = (uint8_t)i;
    *ret_bytes = 8 + header_bytes + data_bytes;
    return image;
}

static const char *write_file(const char *name, const void *bytes, size_t length)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, length, file), length);
    fclose(file);
    return path;
}

static void write_checkpoint(const char *name, const char *header, size_t data_bytes)
{
    size_t length;
    uint8_t *image = make_image(header, data_bytes, &length);
    write_file(name, image, length);
    free(image);
}

static void write_index(const char *text) { write_file("model.safetensors.index.json", text, strlen(text)); }

/* ---- one file ---- */

static void test_safetensors_good_file_is_read(void **state)
{
    (void)state;
    size_t length;
    uint8_t *image = make_image("{\"__metadata__\":{\"format\":\"pt\"},"
                                "\"b\":{\"dtype\":\"I8\",\"shape\":[2,3],\"data_offsets\":[8,14]},"
                                "\"scalar\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[14,15]},"
                                "\"empty\":{\"dtype\":\"F32\",\"shape\":[0,7],\"data_offsets\":[8,8]},"
                                "\"a\":{\"dtype\":\"BF16\",\"shape\":[4],\"data_offsets\":[0,8]}}   ",
                                15, &length);
    safetensors_t *checkpoint;
    assert_int_equal(safetensors_open_bytes(image, length, "image", &checkpoint), QN_OK);
    assert_int_equal(safetensors_count(checkpoint), 4);
    assert_string_equal(safetensors_at(checkpoint, 0)->name, "a"); /* in the order of the bytes */
    assert_string_equal(safetensors_at(checkpoint, 1)->name, "empty");
    const safetensors_tensor_t *b = safetensors_find(checkpoint, "b");
    assert_non_null(b);
    assert_int_equal(b->dtype, SAFETENSORS_I8);
    assert_int_equal(b->rank, 2);
    assert_int_equal(b->shape[0], 2);
    assert_int_equal(b->shape[1], 3);
    assert_int_equal(b->bytes, 6);
    assert_int_equal(b->data[0], 8);
    assert_ptr_equal(b->data, image + b->file_offset);
    assert_int_equal(safetensors_elements(safetensors_find(checkpoint, "scalar")), 1);
    assert_int_equal(safetensors_elements(safetensors_find(checkpoint, "empty")), 0);
    assert_null(safetensors_find(checkpoint, "c"));
    assert_null(safetensors_find(checkpoint, "__metadata__"));
    safetensors_close(&checkpoint);
    assert_null(checkpoint);
    free(image);
}

#define ONE(dtype, shape, offsets) "{\"w\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}}"

static const struct {
    const char *header;
    size_t data_bytes;
    const char *text; /* part of the message; NULL: accepted */
} headers[] = {
    {ONE("\"F32\"", "[2]", "[0,8]"), 8, NULL},
    {"{}", 0, NULL},
    {"{}", 1, "belong to no tensor"},
    {"{", 0, "does not begin"}, /* one byte is too short for an object */
    {"[]", 0, "does not begin with '{'"},
    {" {}", 0, "does not begin with '{'"},
    {"{}x", 0, "header byte"},
    {"{\"w\":1}", 0, "'w' is not described by an object"},
    {ONE("\"F31\"", "[2]", "[0,8]"), 8, NULL}, /* of which only the offsets are known */
    {ONE("\"F4\"", "[16]", "[0,8]"), 8, NULL},
    {ONE("\"F4\"", "[16]", "[0,9]"), 8, "truncated download"},
    {ONE("7", "[2]", "[0,8]"), 8, "has no dtype"},
    {"{\"w\":{\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "has no dtype"},
    {"{\"w\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", 8, "has no shape"},
    {ONE("\"F32\"", "2", "[0,8]"), 8, "has no shape"},
    {ONE("\"F32\"", "[-2]", "[0,8]"), 8, "shape[0] is not a count"},
    {ONE("\"F32\"", "[2.0]", "[0,8]"), 8, "shape[0] is not a count"},
    {ONE("\"F32\"", "[1,\"2\"]", "[0,8]"), 8, "shape[1] is not a count"},
    {ONE("\"F32\"", "[1,1,1,1,1,1,1,2]", "[0,8]"), 8, NULL},
    {ONE("\"F32\"", "[1,1,1,1,1,1,1,1,2]", "[0,8]"), 8, "9 dimensions"},
    {ONE("\"F32\"", "[4611686018427387904]", "[0,8]"), 8, "overflows"},
    {ONE("\"U8\"", "[4294967296,4294967296]", "[0,0]"), 0, "overflows"},
    {ONE("\"U8\"", "[9223372036854775808]", "[0,8]"), 8, "header byte"},
    {"{\"w\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, "data_offsets"},
    {ONE("\"F32\"", "[2]", "[0]"), 8, "data_offsets"},
    {ONE("\"F32\"", "[2]", "[0,8,8]"), 8, "data_offsets"},
    {ONE("\"F32\"", "[2]", "[-8,0]"), 8, "data_offsets"},
    {ONE("\"F32\"", "[2]", "[8,0]"), 8, "run backwards"},
    {ONE("\"F32\"", "[2]", "[0,8]"), 7, "truncated download"},
    {ONE("\"F32\"", "[2]", "[0,9223372036854775807]"), 8, "truncated download"},
    {ONE("\"F32\"", "[2]", "[0,4]"), 8, "spans 4 bytes"},
    {ONE("\"F32\"", "[2]", "[4,12]"), 12, "4 bytes before tensor 'w'"},
    {ONE("\"F32\"", "[2]", "[0,8]"), 9, "the last 1 bytes"},
    {"{\"v\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
     "\"w\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]}}",
     3, "'v' and 'w' overlap"},
    {"{\"v\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
     "\"w\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}",
     2, "'v' and 'w' overlap"},
    {"{\"v\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
     "\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[2,3]}}",
     3, "1 bytes before tensor 'w'"},
    {"{\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
     "\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
     2, "duplicate"},
    {"{\"\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "empty name"},
    {"{\"w\\u0001\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "control character"},
    {"{\"w\\u0000\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "header byte"},
    {"{\"w\xff\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "header byte"},
};

static void test_safetensors_headers_are_judged(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++) {
        size_t length;
        uint8_t *image = make_image(headers[i].header, headers[i].data_bytes, &length);
        safetensors_t *checkpoint = NULL;
        qn_err_t err = safetensors_open_bytes(image, length, "image", &checkpoint);
        if (!headers[i].text) {
            if (err) fail_msg("%s: %s", headers[i].header, qn_err_text());
        } else {
            if (err != QN_ERR_INVALID) fail_msg("%s was accepted", headers[i].header);
            if (!strstr(qn_err_text(), headers[i].text)) fail_msg("%s: %s", headers[i].header, qn_err_text());
            assert_non_null(strstr(qn_err_text(), "image"));
            assert_null(checkpoint);
        }
        safetensors_close(&checkpoint);
        free(image);
    }
}

static void test_safetensors_every_truncation_is_refused(void **state)
{
    (void)state;
    size_t length;
    uint8_t *image = make_image(ONE("\"F32\"", "[2]", "[0,8]"), 8, &length);
    safetensors_t *checkpoint;
    for (size_t bytes = 0; bytes < length; bytes++) {
        uint8_t *cut = malloc(bytes ? bytes : 1); /* exact, so that ASan sees a read beyond */
        memcpy(cut, image, bytes);
        assert_int_equal(safetensors_open_bytes(cut, bytes, "cut", &checkpoint), QN_ERR_INVALID);
        free(cut);
    }
    free(image);
}

static void test_safetensors_header_length_both_sides_of_its_limits(void **state)
{
    (void)state;
    size_t length;
    safetensors_t *checkpoint;
    uint8_t *image = make_image("{}", 0, &length);
    image[0] = 3; /* one more than there is */
    assert_int_equal(safetensors_open_bytes(image, length, "image", &checkpoint), QN_ERR_INVALID);
    memset(image, 0xff, 8);
    assert_int_equal(safetensors_open_bytes(image, length, "image", &checkpoint), QN_ERR_INVALID);
    free(image);

    char *padded = malloc(SAFETENSORS_HEADER_BYTES_MAX + 2);
    memset(padded, ' ', SAFETENSORS_HEADER_BYTES_MAX + 1);
    memcpy(padded, "{}", 2);
    padded[SAFETENSORS_HEADER_BYTES_MAX] = '\0';
    image = make_image(padded, 0, &length);
    assert_int_equal(safetensors_open_bytes(image, length, "image", &checkpoint), QN_OK);
    safetensors_close(&checkpoint);
    free(image);
    padded[SAFETENSORS_HEADER_BYTES_MAX] = ' ';
    padded[SAFETENSORS_HEADER_BYTES_MAX + 1] = '\0';
    image = make_image(padded, 0, &length);
    assert_int_equal(safetensors_open_bytes(image, length, "image", &checkpoint), QN_ERR_INVALID);
    assert_non_null(strstr(qn_err_text(), "at most"));
    free(image);
    free(padded);
}

static void test_safetensors_name_length_both_sides_of_its_limit(void **state)
{
    (void)state;
    for (size_t bytes = SAFETENSORS_NAME_MAX; bytes <= SAFETENSORS_NAME_MAX + 1; bytes++) {
        char name[SAFETENSORS_NAME_MAX + 2], header[512];
        memset(name, 'n', bytes);
        name[bytes] = '\0';
        snprintf(header, sizeof header, "{\"%s\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", name);
        size_t length;
        uint8_t *image = make_image(header, 1, &length);
        safetensors_t *checkpoint = NULL;
        assert_int_equal(safetensors_open_bytes(image, length, "image", &checkpoint),
                         bytes <= SAFETENSORS_NAME_MAX ? QN_OK : QN_ERR_INVALID);
        safetensors_close(&checkpoint);
        free(image);
    }
}

static void test_safetensors_tensor_count_both_sides_of_its_limit(void **state)
{
    (void)state;
    for (size_t count = QN_TENSORS_MAX; count <= QN_TENSORS_MAX + 1; count++) {
        char *header = malloc(count * 80 + 16), *end = header;
        *end++ = '{';
        for (size_t i = 0; i < count; i++)
            end += sprintf(end, "%s\"%zu\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}", i ? "," : "", i);
        strcpy(end, "}");
        size_t length;
        uint8_t *image = make_image(header, 0, &length);
        safetensors_t *checkpoint = NULL;
        assert_int_equal(safetensors_open_bytes(image, length, "image", &checkpoint),
                         count <= QN_TENSORS_MAX ? QN_OK : QN_ERR_LIMIT);
        if (checkpoint) assert_non_null(safetensors_find(checkpoint, "65535"));
        safetensors_close(&checkpoint);
        free(image);
        free(header);
    }
}

static void test_safetensors_read_f32_widens_exactly(void **state)
{
    (void)state;
    static const struct {
        uint16_t half;
        float value;
    } halves[] = {
        {0x0000, 0.0f},
        {0x8000, -0.0f},
        {0x3c00, 1.0f},
        {0xc000, -2.0f},
        {0x7bff, 65504.0f},
        {0x0400, 0x1p-14f},
        {0x0001, 0x1p-24f},
        {0x83ff, -1023 * 0x1p-24f},
        {0x7c00, (float)1e300 * 10},
    };
    enum { COUNT = sizeof halves / sizeof *halves };
    char header[256];
    snprintf(header, sizeof header,
             "{\"h\":{\"dtype\":\"F16\",\"shape\":[%d],\"data_offsets\":[0,%d]},"
             "\"b\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[%d,%d]},"
             "\"i\":{\"dtype\":\"I64\",\"shape\":[0],\"data_offsets\":[%d,%d]}}",
             COUNT, 2 * COUNT, 2 * COUNT, 2 * COUNT + 4, 2 * COUNT + 4, 2 * COUNT + 4);
    size_t length;
    uint8_t *image = make_image(header, 2 * COUNT + 4, &length), *data = image + length - 2 * COUNT - 4;
    for (size_t i = 0; i < COUNT; i++)
        memcpy(data + 2 * i, &halves[i].half, 2);
    memcpy(data + 2 * COUNT, "\x80\x3f\x49\xc0", 4); /* 1.0 and -3.140625 */
    safetensors_t *checkpoint;
    float values[COUNT];
    assert_int_equal(safetensors_open_bytes(image, length, "image", &checkpoint), QN_OK);
    assert_int_equal(safetensors_read_f32(safetensors_find(checkpoint, "h"), 0, COUNT, values), QN_OK);
    for (size_t i = 0; i < COUNT; i++)
        assert_memory_equal(&values[i], &halves[i].value, sizeof *values);
    assert_int_equal(safetensors_read_f32(safetensors_find(checkpoint, "b"), 1, 1, values), QN_OK);
    assert_true(values[0] == -3.140625f);
    assert_int_equal(safetensors_read_f32(safetensors_find(checkpoint, "i"), 0, 0, values), QN_ERR_UNSUPPORTED);
    safetensors_close(&checkpoint);
    free(image);
}

/* ---- directories ---- */

#define SHARD(name) "{\"" name "\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}"

static void test_safetensors_sharded_directory_is_read_in_file_order(void **state)
{
    (void)state;
    write_checkpoint("b.safetensors", SHARD("x"), 1);
    write_checkpoint("a.safetensors", SHARD("y"), 1);
    write_index("{\"metadata\":{},\"weight_map\":{\"x\":\"b.safetensors\",\"y\":\"a.safetensors\"}}");
    safetensors_t *checkpoint;
    assert_int_equal(safetensors_open(directory, &checkpoint), QN_OK);
    assert_int_equal(safetensors_count(checkpoint), 2);
    assert_int_equal(safetensors_file_count(checkpoint), 2);
    const safetensors_tensor_t *y = safetensors_at(checkpoint, 0);
    assert_string_equal(y->name, "y");
    assert_non_null(strstr(safetensors_file_path(checkpoint, y->file_index), "/a.safetensors"));
    uint8_t byte = 1;
    assert_int_equal(pread(safetensors_file_fd(checkpoint, y->file_index), &byte, 1, (off_t)y->file_offset), 1);
    assert_int_equal(byte, 0);
    safetensors_close(&checkpoint);
}

static const struct {
    const char *index;
    qn_err_t err;
    const char *text; /* of the error, or of the first warning; NULL: there is none */
} indices[] = {
    {"{\"weight_map\":{\"x\":\"a.safetensors\"}}", QN_OK, NULL},
    {"{\"metadata\":{\"total_size\":NaN},\"weight_map\":{\"x\":\"a.safetensors\"}}", QN_OK, NULL},
    {"", QN_ERR_INVALID, "index.json"},
    {"{}", QN_ERR_INVALID, "no weight_map"},
    {"[]", QN_ERR_INVALID, "no weight_map"},
    {"{\"weight_map\":{}}", QN_ERR_INVALID, "empty"},
    {"{\"weight_map\":{\"x\":1}}", QN_ERR_INVALID, "the file of tensor 'x'"},
    {"{\"weight_map\":{\"x\":\"a.safetensors\",\"z\":\"a.safetensors\"}}", QN_OK, "'z' is in no file"},
    {"{\"weight_map\":{\"x\":\"a.safetensors\",\"z\":\"c.safetensors\"}}", QN_OK, "1 of the 2 weight files"},
    {"{\"weight_map\":{\"x\":\"c.safetensors\"}}", QN_ERR_NOT_FOUND, "c.safetensors"},
    {"{\"weight_map\":{\"x\":\"b.safetensors\",\"y\":\"a.safetensors\"}}", QN_OK, "is taken from a.safetensors"},
    {"{\"weight_map\":{\"x\":\"../a.safetensors\"}}", QN_ERR_INVALID, "not the name of a file"},
    {"{\"weight_map\":{\"x\":\"/etc/passwd\"}}", QN_ERR_INVALID, "not the name of a file"},
    {"{\"weight_map\":{\"x\":\"..\"}}", QN_ERR_INVALID, "not the name of a file"},
    {"{\"weight_map\":{\"x\":\"\"}}", QN_ERR_INVALID, "not the name of a file"},
    {"{\"weight_map\":{\"x\":\"folder\"}}", QN_ERR_INVALID, "not a regular file"},
    {"{\"weight_map\":{\"x\":\"b.safetensors\",\"x\":\"a.safetensors\"}}", QN_OK, NULL},
    {"{\"weight_map\":{\"x\":\"a.safetensors\",\"y\":\"d.safetensors\"}}", QN_OK, "d.safetensors: it is taken"},
};

static void test_safetensors_indices_are_judged(void **state)
{
    (void)state;
    char folder[128];
    snprintf(folder, sizeof folder, "%s/folder", directory);
    mkdir(folder, 0700);
    write_checkpoint("a.safetensors", SHARD("x"), 1);
    write_checkpoint("b.safetensors", SHARD("y"), 1);
    write_checkpoint("d.safetensors", SHARD("x"), 1);
    for (size_t i = 0; i < sizeof indices / sizeof *indices; i++) {
        safetensors_t *checkpoint = NULL;
        write_index(indices[i].index);
        qn_err_t err = safetensors_open(directory, &checkpoint);
        if (err != indices[i].err) fail_msg("%s: %d %s", indices[i].index, err, err ? qn_err_text() : "accepted");
        const qn_model_warnings_t *warnings = err ? NULL : safetensors_warnings(checkpoint);
        const char *said = err ? qn_err_text() : warnings->count ? warnings->texts[0] : "";
        if (indices[i].text ? !strstr(said, indices[i].text) : said[0]) fail_msg("%s: %s", indices[i].index, said);
        if (!err) assert_non_null(safetensors_find(checkpoint, "x"));
        safetensors_close(&checkpoint);
    }
}

/* As transformers has it: whatever the index says, the last file by name counts. */
static void test_safetensors_of_equal_names_the_last_file_counts(void **state)
{
    (void)state;
    safetensors_t *checkpoint;
    write_checkpoint("a.safetensors", SHARD("x"), 1);
    write_checkpoint("b.safetensors", SHARD("x"), 1);
    write_index("{\"weight_map\":{\"x\":\"a.safetensors\",\"y\":\"b.safetensors\"}}");
    assert_int_equal(safetensors_open(directory, &checkpoint), QN_OK);
    assert_non_null(strstr(safetensors_file_path(checkpoint, safetensors_find(checkpoint, "x")->file_index), "/b."));
    assert_int_equal(safetensors_count(checkpoint), 2);
    assert_true(safetensors_at(checkpoint, 0)->replaced && !safetensors_at(checkpoint, 1)->replaced);
    safetensors_close(&checkpoint);
}

static const struct {
    const char *files[4];
    qn_err_t err;
    size_t count;     /* of files that are opened */
    const char *text; /* of the error, or of the warnings' last */
} listings[] = {
    {{"weights.safetensors"}, QN_OK, 1, "the weights are weights.safetensors"},
    {{"adapter_model.safetensors"}, QN_ERR_NOT_FOUND, 0, "model.safetensors"},
    {{"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "consolidated.safetensors"},
     QN_OK,
     2,
     "the 2 files"},
    {{"model-00002-of-00003.safetensors", "other.safetensors"}, QN_OK, 1, "2 of the 3 weight files are not there"},
    {{"model-1-of-1.safetensors"}, QN_OK, 1, "model-1-of-1"},
    {{"model-00001-of-00002.safetensors", "ema-00001-of-00002.safetensors"}, QN_ERR_INVALID, 0, "two sets"},
    {{"model-00003-of-00002.safetensors", "z.safetensors"}, QN_OK, 2, "the 2 files"}, /* no such part: only a name */
    {{"-of-.safetensors", "a-1-of-.safetensors", "a--of-2.safetensors"}, QN_OK, 3, "the 3 files"},
};

static void test_safetensors_without_an_index_the_names_decide(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof listings / sizeof *listings; i++) {
        safetensors_t *checkpoint = NULL;
        char header[128], path[256];
        for (size_t f = 0; f < 4 && listings[i].files[f]; f++) {
            snprintf(header, sizeof header, "{\"t%zu\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", f);
            write_checkpoint(listings[i].files[f], header, 1);
        }
        qn_err_t err = safetensors_open(directory, &checkpoint);
        if (err != listings[i].err) fail_msg("%zu: %d %s", i, err, err ? qn_err_text() : "accepted");
        if (!err) assert_int_equal(safetensors_file_count(checkpoint), listings[i].count);
        const qn_model_warnings_t *warnings = err ? NULL : safetensors_warnings(checkpoint);
        const char *said = err ? qn_err_text() : warnings->count ? warnings->texts[warnings->count - 1] : "";
        if (!strstr(said, listings[i].text)) fail_msg("%zu: %s", i, said);
        safetensors_close(&checkpoint);
        for (size_t f = 0; f < 4 && listings[i].files[f]; f++) {
            snprintf(path, sizeof path, "%s/%s", directory, listings[i].files[f]);
            unlink(path);
        }
    }
}

static void test_safetensors_equal_names_without_an_index_are_refused(void **state)
{
    (void)state;
    safetensors_t *checkpoint = NULL;
    write_checkpoint("a.safetensors", SHARD("x"), 1);
    write_checkpoint("b.safetensors", SHARD("x"), 1);
    assert_int_equal(safetensors_open(directory, &checkpoint), QN_ERR_INVALID);
    assert_non_null(strstr(qn_err_text(), "there is no index"));
}

/* Whatever stands where a file should be is refused by name, and nothing waits for it. */
static void test_safetensors_special_files_of_a_directory_are_refused(void **state)
{
    (void)state;
    static const char *const NAMES[] = {"model.safetensors", "model.safetensors.index.json", "other.safetensors"};
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++)
        for (int kind = 0; kind < 4; kind++) {
            char path[256];
            safetensors_t *checkpoint = NULL;
            snprintf(path, sizeof path, "%s/%s", directory, NAMES[i]);
            int made = kind == 0   ? mkfifo(path, 0600)
                       : kind == 1 ? mkdir(path, 0700)
                       : kind == 2 ? symlink("nowhere", path)
                                   : symlink("/dev/zero", path);
            assert_int_equal(made, 0);
            assert_int_equal(safetensors_open(directory, &checkpoint), QN_ERR_INVALID);
            static const char *const SAID[] = {"is a FIFO", "is a directory", "a file that is not there",
                                               "is a device"};
            if (!strstr(qn_err_text(), NAMES[i]) || !strstr(qn_err_text(), SAID[kind])) fail_msg("%s", qn_err_text());
            assert_int_equal(remove(path), 0);
        }
}

static void test_safetensors_shard_count_both_sides_of_its_limit(void **state)
{
    (void)state;
    for (int count = SAFETENSORS_FILES_MAX; count <= SAFETENSORS_FILES_MAX + 1; count++) {
        char *index = malloc((size_t)count * 40 + 32), *end = index;
        safetensors_t *checkpoint = NULL;
        end += sprintf(end, "{\"weight_map\":{");
        for (int i = 0; i < count; i++)
            end += sprintf(end, "%s\"t%d\":\"f%d.safetensors\"", i ? "," : "", i, i);
        strcpy(end, "}}");
        write_index(index); /* the files are not there: within the limit that is what is found out */
        assert_int_equal(safetensors_open(directory, &checkpoint),
                         count <= SAFETENSORS_FILES_MAX ? QN_ERR_NOT_FOUND : QN_ERR_LIMIT);
        free(index);
    }
}

static void test_safetensors_single_file_wins_over_the_index(void **state)
{
    (void)state;
    write_index("broken");
    write_checkpoint("model.safetensors", SHARD("only"), 1);
    safetensors_t *checkpoint;
    assert_int_equal(safetensors_open(directory, &checkpoint), QN_OK);
    assert_non_null(safetensors_find(checkpoint, "only"));
    safetensors_close(&checkpoint);
}

static void test_safetensors_missing_empty_or_special_files_are_refused(void **state)
{
    (void)state;
    safetensors_t *checkpoint = NULL;
    char path[128];
    assert_int_equal(safetensors_open(directory, &checkpoint), QN_ERR_NOT_FOUND);
    assert_non_null(strstr(qn_err_text(), "model.safetensors"));
    snprintf(path, sizeof path, "%s/none", directory);
    assert_int_equal(safetensors_open(path, &checkpoint), QN_ERR_NOT_FOUND);
    assert_int_equal(safetensors_open(write_file("model.safetensors", "", 0), &checkpoint), QN_ERR_INVALID);
    snprintf(path, sizeof path, "%s/fifo", directory);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(safetensors_open(path, &checkpoint), QN_ERR_INVALID); /* and does not wait for a writer */
}

static void test_safetensors_bundled_model_opens(void **state)
{
    (void)state;
    safetensors_t *checkpoint;
    assert_int_equal(safetensors_open("deploy/models/default", &checkpoint), QN_OK);
    const safetensors_tensor_t *embedding = safetensors_find(checkpoint, "model.embed_tokens.weight");
    assert_non_null(embedding);
    assert_int_equal(embedding->dtype, SAFETENSORS_BF16);
    assert_int_equal(embedding->shape[0], 4096);
    safetensors_close(&checkpoint);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_safetensors_good_file_is_read),
        cmocka_unit_test(test_safetensors_headers_are_judged),
        cmocka_unit_test(test_safetensors_every_truncation_is_refused),
        cmocka_unit_test(test_safetensors_header_length_both_sides_of_its_limits),
        cmocka_unit_test(test_safetensors_name_length_both_sides_of_its_limit),
        cmocka_unit_test(test_safetensors_tensor_count_both_sides_of_its_limit),
        cmocka_unit_test(test_safetensors_read_f32_widens_exactly),
        cmocka_unit_test_setup_teardown(test_safetensors_sharded_directory_is_read_in_file_order, setup, teardown),
        cmocka_unit_test_setup_teardown(test_safetensors_indices_are_judged, setup, teardown),
        cmocka_unit_test_setup_teardown(test_safetensors_special_files_of_a_directory_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_safetensors_equal_names_without_an_index_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_safetensors_without_an_index_the_names_decide, setup, teardown),
        cmocka_unit_test_setup_teardown(test_safetensors_of_equal_names_the_last_file_counts, setup, teardown),
        cmocka_unit_test_setup_teardown(test_safetensors_shard_count_both_sides_of_its_limit, setup, teardown),
        cmocka_unit_test_setup_teardown(test_safetensors_single_file_wins_over_the_index, setup, teardown),
        cmocka_unit_test_setup_teardown(test_safetensors_missing_empty_or_special_files_are_refused, setup, teardown),
        cmocka_unit_test(test_safetensors_bundled_model_opens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
