/* A prefix in a file: its token ids and the KV of its full blocks, of one model, layout and number format.
 *
 *   header   saved_header_t, with a CRC-32C of itself
 *   ids      tokens * 4 bytes, with a CRC-32C in the header
 *   blocks   each [L, 2, P, K, D] of the KV cache's numbers, and 4 bytes of CRC-32C behind it
 *
 * A file is written under another name and renamed when it is on the disk: it is there as a whole or not at all. It is read
 * only when it is a regular file of exactly the size its header says, and of this very model, layout and format. Little
 * endian. Knows no pool and no messages; any thread. */
#ifndef QN_MEMORY_SAVED_PREFIX_H
#define QN_MEMORY_SAVED_PREFIX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/region/region.h"

#define SAVED_NAME_MAX 64 /* of [A-Za-z0-9._-], the first no dot */
#define SAVED_MODEL_MAX 128
#define SAVED_FILES_MAX 256 /* shown */

/* The KV cache that is saved from or restored to. */
typedef struct {
    uint64_t fingerprint; /* of the weights */
    char model[SAVED_MODEL_MAX];
    uint32_t layers, kv_heads, head_dim, block_tokens, scalar_bytes; /* 4: f32, 2: bf16 */
    uint32_t block_count;                                            /* of the region */
    const qn_mapping_t *region;                                      /* borrowed */
} saved_ground_t;

typedef struct {
    char magic[8];    /* "QNPREFIX" */
    uint32_t version; /* 2 */
    uint32_t crc;     /* of the header with this field 0 */
    uint64_t fingerprint, salt, saved_unix_s, block_bytes;
    uint64_t
        identity; /* block_pool_identity() of the salt when the blocks were written: by other kernels they are other content */
    uint32_t layout, layers, kv_heads, head_dim, block_tokens, scalar_bytes;
    uint32_t tokens, ids_crc;
    char model[SAVED_MODEL_MAX];
} saved_header_t;

/* One file in a directory. */
typedef struct {
    char name[SAVED_NAME_MAX + 1];
    uint64_t bytes;
    bool readable; /* it is one of these files; else only the name is known */
    saved_header_t header;
    char unfit[256]; /* why it cannot be restored here; "": it can */
} saved_file_t;

/* Whether it can be the name of a file: checked before anything is opened. */
bool saved_name_ok(const char *name, size_t bytes);
/* Opens the directory, making its last component with mode 0700. *ret_fd is the caller's to close. */
qn_err_t saved_directory_open(const char *path, int *ret_fd);
/* Its files, by name; returns how many of SAVED_FILES_MAX. *ret_bytes: of all there are. */
uint32_t saved_directory_list(int directory, const saved_ground_t *ground, saved_file_t *ret_files,
                              uint64_t *ret_bytes);

/* Size of the file of so many tokens. */
uint64_t saved_bytes(const saved_ground_t *ground, uint32_t tokens);
/* Writes `tokens` ids (a multiple of block_tokens) and their blocks. `cancelled` is asked between blocks. QN_ERR_EXISTS: the
 * name is taken, and not `replace`. QN_ERR_IO, QN_ERR_NO_MEMORY, QN_ERR_CANCELLED: nothing is left behind. */
qn_err_t saved_write(int directory, const char *name, bool replace, const saved_ground_t *ground, uint64_t salt,
                     uint64_t identity, uint64_t unix_s, const uint32_t *ids, uint32_t tokens, const uint32_t *blocks,
                     bool (*cancelled)(const void *), const void *context);

/* A file that is being read. */
typedef struct {
    int fd;
    saved_header_t header;
    uint32_t *ids; /* owned */
} saved_reader_t;

/* Opens the file and checks header, size and ids. QN_ERR_NOT_FOUND; QN_ERR_INVALID: damaged, or not such a file;
 * QN_ERR_UNSUPPORTED: of another model, layout or format: the text says which. */
qn_err_t saved_open(int directory, const char *name, const saved_ground_t *ground, saved_reader_t *ret_reader);
/* Copies its blocks [first, first + count) into `blocks` of the region, each checked before. QN_ERR_INVALID: damaged. */
qn_err_t saved_read(const saved_reader_t *reader, const saved_ground_t *ground, uint32_t first, uint32_t count,
                    const uint32_t *blocks, bool (*cancelled)(const void *), const void *context);
void saved_close(saved_reader_t *reader);

#endif
