/* libFuzzer target: any bytes as a safetensors file, or as model.safetensors.index.json when they begin with "{" (over
 * three fixed shards, one of which repeats a name of another). What is accepted is walked to its last byte and must keep the reader's promises. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/assert.h"
#include "services/memory/weights/safetensors.h"
#include "services/memory/weights/weights_number.h"
#include "services/memory/weights/weights_source.h"

static char directory[64];

static void write_file(const char *name, const void *bytes, size_t length)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "w");
    QN_ASSERT(file && (length == 0 || fwrite(bytes, length, 1, file) == 1) && fclose(file) == 0);
}

static void remove_directory(void)
{
    static const char *const names[] = {"a.safetensors", "b.safetensors", "c.safetensors",
                                        "model.safetensors.index.json"};
    char path[128];
    for (size_t i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "%s/%s", directory, names[i]);
        unlink(path);
    }
    rmdir(directory);
}

static void make_directory(void)
{
    static const char a[] = "\x35\0\0\0\0\0\0\0{\"x\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}\0";
    static const char b[] = "\x35\0\0\0\0\0\0\0{\"y\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}\0";
    snprintf(directory, sizeof directory, "/tmp/qn-fuzz-XXXXXX");
    QN_ASSERT(mkdtemp(directory));
    atexit(remove_directory);
    write_file("a.safetensors", a, 8 + 0x35 + 1);
    write_file("b.safetensors", b, 8 + 0x35 + 1);
    write_file("c.safetensors", a, 8 + 0x35 + 1);
}

static void walk(const safetensors_t *checkpoint)
{
    volatile uint8_t sink = 0;
    uint64_t total = 0;
    for (size_t i = 0; i < safetensors_count(checkpoint); i++) {
        const safetensors_tensor_t *tensor = safetensors_at(checkpoint, i);
        float value;
        const safetensors_tensor_t *found = safetensors_find(checkpoint, tensor->name);
        bool known = tensor->dtype != SAFETENSORS_OTHER;
        QN_ASSERT(tensor->replaced ? found && found->file_index > tensor->file_index : found == tensor);
        QN_ASSERT(strlen(tensor->name) <= SAFETENSORS_NAME_MAX && tensor->rank <= SAFETENSORS_RANK_MAX);
        QN_ASSERT(!known || tensor->bytes == safetensors_elements(tensor) * safetensors_dtype_bytes(tensor->dtype));
        QN_ASSERT(tensor->file_offset + tensor->bytes <= safetensors_file_bytes(checkpoint, tensor->file_index));
        for (uint64_t at = 0; at < tensor->bytes; at++)
            sink = (uint8_t)(sink + tensor->data[at]);
        if (weights_source_readable(tensor->dtype))
            QN_ASSERT(weights_number_not_finite(tensor->dtype, tensor->data, safetensors_elements(tensor)) <=
                      safetensors_elements(tensor));
        if (known && safetensors_elements(tensor))
            safetensors_read_f32(tensor, safetensors_elements(tensor) - 1, 1, &value);
        total += tensor->bytes;
    }
    for (unsigned i = 0; i < safetensors_file_count(checkpoint); i++)
        QN_ASSERT(total <= safetensors_file_bytes(checkpoint, i) || safetensors_file_count(checkpoint) > 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    safetensors_t *checkpoint = NULL;
    if (!directory[0]) make_directory();
    if (bytes && data[0] == '{') {
        write_file("model.safetensors.index.json", data, bytes);
        if (safetensors_open(directory, &checkpoint) == QN_OK) walk(checkpoint);
    } else {
        uint8_t *exact = malloc(bytes ? bytes : 1); /* so that AddressSanitizer sees the first byte behind it */
        QN_ASSERT(exact);
        if (bytes) memcpy(exact, data, bytes);
        if (safetensors_open_bytes(exact, bytes, "input", &checkpoint) == QN_OK) walk(checkpoint);
        safetensors_close(&checkpoint);
        free(exact);
    }
    safetensors_close(&checkpoint);
    return 0;
}
