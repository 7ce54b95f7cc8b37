/* The tensors of people: named arrays of f32 (or numbers of bf16, held as f32) in compute's host memory, each split along
 * one dimension. Bounded in bytes and number; each has an owner and a deadline. One thread, but for `values` of a tensor
 * that is in use, which belong to its task. */
#ifndef QN_COMPUTE_TENSORS_TENSOR_STORE_H
#define QN_COMPUTE_TENSORS_TENSOR_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

#define TENSOR_RANK_MAX 8
#define TENSOR_SPLITS_MAX 64
#define TENSORS_MAX 64
#define TENSOR_ELEMENTS_MAX (UINT32_C(1) << 24)
#define TENSOR_OWNER_MAX 64

typedef struct {
    uint32_t rank; /* 1 .. */
    uint32_t sizes[TENSOR_RANK_MAX];
} tensor_shape_t;

typedef struct {
    char id[16]; /* "t1" */
    tensor_shape_t shape;
    uint64_t count;
    float *values;                     /* [count], 64-byte aligned */
    bool bf16;                         /* every number is one of bf16 */
    uint32_t split_dim, piece, splits; /* pieces of `piece`, the last one may be smaller (torch.chunk) */
    uint64_t deadline_ns, ttl_ns;      /* it is kept so long after it was last used */
    bool hidden;                       /* of one call alone: not found and not listed */
    bool was_split;                    /* by a call: what is meant where none is named */
    uint32_t uses;                     /* tasks */
    char owner[TENSOR_OWNER_MAX + 1];
} tensor_t;

typedef struct tensor_store tensor_store_t;

/* The product of the sizes, or 0 when there is a 0, or more than TENSOR_ELEMENTS_MAX. */
uint64_t tensor_count(const tensor_shape_t *shape);
/* Splits along `dim` into `wanted` pieces, as torch.chunk: of ceil(n / wanted), fewer when they are used up. */
void tensor_split(tensor_t *tensor, uint32_t dim, uint32_t wanted);
/* First index of piece `i` along its dimension, and how many. */
uint32_t tensor_piece(const tensor_t *tensor, uint32_t i, uint32_t *ret_size);

qn_err_t tensor_store_create(uint64_t bytes_max, tensor_store_t **ret_store);
void tensor_store_destroy(tensor_store_t **store);
/* A tensor of this shape, hidden, in one piece, values not set. NULL: TENSORS_MAX, or no room (tensor_store_room). */
tensor_t *tensor_store_add(tensor_store_t *store, const tensor_shape_t *shape, bool bf16, const char *owner,
                           uint64_t now_ns, uint64_t ttl_ns);
/* By its id; "": the one that was split last. NULL: none, or hidden. */
tensor_t *tensor_store_find(const tensor_store_t *store, const char *id);
tensor_t *tensor_store_at(const tensor_store_t *store, uint32_t index);
uint32_t tensor_store_count(const tensor_store_t *store);
uint64_t tensor_store_room(const tensor_store_t *store);
/* It is in no task. */
void tensor_store_drop(tensor_store_t *store, tensor_t *tensor);
/* Drops those whose time is over and that no task uses. Returns when the next one's is. */
uint64_t tensor_store_expire(tensor_store_t *store, uint64_t now_ns);

#endif
