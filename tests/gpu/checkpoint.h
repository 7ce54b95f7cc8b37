/* A checkpoint of random bytes for a model of a given shape, written for the GPU programs that load one. */
#ifndef QN_TESTS_GPU_CHECKPOINT_H
#define QN_TESTS_GPU_CHECKPOINT_H

#include <fcntl.h>
#include <inttypes.h>
#include <unistd.h>

#include "common/model/model_tensors.h"
#include "tests/gpu/gpu_test.h"

#define CHECKPOINT_BLOCK ((size_t)1 << 20)
#define CHECKPOINT_FINITE 0xbfffbfffu /* no exponent of any dtype is all ones: memory refuses what is not finite */

static inline void checkpoint_write(int fd, const void *bytes, size_t count)
{
    if (write(fd, bytes, count) == (ssize_t)count) return;
    perror("writing a checkpoint");
    exit(70);
}

/* The safetensors header: every source once, one behind the other. Returns the bytes of all. */
static inline uint64_t checkpoint_header(const qn_model_config_t *config, const char *dtype, char *text, size_t size)
{
    uint64_t at = 0, width = strcmp(dtype, "F32") == 0 ? 4 : 2;
    size_t used = (size_t)snprintf(text, size, "{");
    for (size_t i = 0; i < qn_model_tensor_count(config); i++) {
        qn_model_tensor_t tensor;
        qn_model_tensor_at(config, i, &tensor);
        if (tensor.source_first) continue; /* a further part of a source that is there already */
        uint64_t inputs = tensor.rank == 2 ? tensor.shape[1] : 1, bytes = tensor.source_outputs * inputs * width;
        char shape[64];
        if (tensor.rank == 1)
            snprintf(shape, sizeof shape, "%" PRIu64, tensor.source_outputs);
        else
            snprintf(shape, sizeof shape, "%" PRIu64 ",%" PRIu64, tensor.transposed ? inputs : tensor.source_outputs,
                     tensor.transposed ? tensor.source_outputs : inputs);
        used += (size_t)snprintf(text + used, size - used,
                                 "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],"
                                 "\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}",
                                 at ? "," : "", tensor.source, dtype, shape, at, at + bytes);
        at += bytes;
        if (used + 2 > size) exit(70);
    }
    snprintf(text + used, size - used, "}");
    return at;
}

/* DIRECTORY/model.safetensors; returns the bytes of its tensors. */
static inline uint64_t checkpoint_make(const char *directory, const qn_model_config_t *config, const char *dtype)
{
    static char header[1 << 20], path[256];
    static uint32_t block[CHECKPOINT_BLOCK / 4];
    random_t random = {5};
    snprintf(path, sizeof path, "%s/model.safetensors", directory);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) perror(path), exit(70);
    uint64_t total = checkpoint_header(config, dtype, header, sizeof header), length = strlen(header);
    checkpoint_write(fd, &length, sizeof length);
    checkpoint_write(fd, header, length);
    for (size_t i = 0; i < CHECKPOINT_BLOCK / 4; i++)
        block[i] = random_word(&random) & CHECKPOINT_FINITE;
    for (uint64_t left = total; left > 0;) {
        size_t bytes = left < CHECKPOINT_BLOCK ? left : CHECKPOINT_BLOCK;
        block[0] = (uint32_t)(left / CHECKPOINT_BLOCK) & CHECKPOINT_FINITE; /* no two blocks are the same */
        checkpoint_write(fd, block, bytes);
        left -= bytes;
    }
    close(fd);
    return total;
}

static inline void checkpoint_remove(const char *directory)
{
    char path[256];
    snprintf(path, sizeof path, "%s/model.safetensors", directory);
    unlink(path);
    rmdir(directory);
}

#endif
