/* The inside of safetensors_t, for safetensors.c (files) and safetensors_directory.c (shards). */
#ifndef QN_MEMORY_WEIGHTS_SAFETENSORS_INTERNAL_H
#define QN_MEMORY_WEIGHTS_SAFETENSORS_INTERNAL_H

#include "common/arena.h"
#include "services/memory/weights/safetensors.h"

typedef struct {
    char *path;
    int fd;
    const uint8_t *bytes;
    uint64_t length;
    bool mapped;
} checkpoint_file_t;

struct safetensors {
    qn_arena_t arena; /* names and paths */
    checkpoint_file_t *files;
    size_t file_count;
    safetensors_tensor_t *tensors; /* by file, then offset */
    size_t count, capacity;
    uint32_t *by_name; /* indices into `tensors`, sorted by name; those replaced are not among them */
    size_t name_count;
    const char **absent; /* names of files that should be there */
    size_t absent_count;
    bool equal_names_refused; /* nothing says which of two files counts */
    qn_model_warnings_t warnings;
};

/* An empty checkpoint with room for `files` files; NULL: no memory. */
safetensors_t *safetensors_new(size_t files);
/* Opens, maps and parses one regular file as the next of the checkpoint. `path` names it in errors. */
qn_err_t safetensors_add_file(safetensors_t *checkpoint, int directory_fd, const char *name, const char *path);
/* Makes safetensors_find possible; of equal names the last file's stays. */
qn_err_t safetensors_build_index(safetensors_t *checkpoint);
qn_err_t safetensors_open_one(int directory_fd, const char *name, const char *path, safetensors_t **ret_checkpoint);
qn_err_t safetensors_open_directory(const char *directory, safetensors_t **ret_checkpoint);

#endif
