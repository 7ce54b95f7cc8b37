/* What is this?      The table of tensors.
 * State owned:       the tensors and their bytes.
 * Must never:        hold more than its bound, or free what a task uses.
 * Read next:         tensor_store.h, tensor_task.c (who uses them). */
#include "services/compute/tensors/tensor_store.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"

struct tensor_store {
    uint64_t bytes, bytes_max, made;
    tensor_t *tensors[TENSORS_MAX]; /* owned, oldest first */
    uint32_t count;
};

uint64_t tensor_count(const tensor_shape_t *shape)
{
    uint64_t count = 1;
    for (uint32_t i = 0; i < shape->rank; i++) {
        count *= shape->sizes[i];
        if (count == 0 || count > TENSOR_ELEMENTS_MAX) return 0;
    }
    return shape->rank ? count : 0;
}

void tensor_split(tensor_t *tensor, uint32_t dim, uint32_t wanted)
{
    uint32_t size = tensor->shape.sizes[dim];
    QN_ASSERT(wanted >= 1 && wanted <= TENSOR_SPLITS_MAX);
    tensor->split_dim = dim;
    tensor->piece = size / wanted + (size % wanted != 0);
    tensor->splits = size / tensor->piece + (size % tensor->piece != 0);
}

uint32_t tensor_piece(const tensor_t *tensor, uint32_t i, uint32_t *ret_size)
{
    uint32_t first = i * tensor->piece, left = tensor->shape.sizes[tensor->split_dim] - first;
    *ret_size = left < tensor->piece ? left : tensor->piece;
    return first;
}

qn_err_t tensor_store_create(uint64_t bytes_max, tensor_store_t **ret_store)
{
    tensor_store_t *store = calloc(1, sizeof *store);
    if (!store) return qn_fail(QN_ERR_NO_MEMORY, "no memory for the table of tensors");
    store->bytes_max = bytes_max;
    *ret_store = store;
    return QN_OK;
}

void tensor_store_destroy(tensor_store_t **store)
{
    if (!*store) return;
    while ((*store)->count > 0) {
        (*store)->tensors[0]->uses = 0;
        tensor_store_drop(*store, (*store)->tensors[0]);
    }
    free(*store);
    *store = NULL;
}

static size_t bytes_of(uint64_t count) { return (count * sizeof(float) + 63) / 64 * 64; }

uint64_t tensor_store_room(const tensor_store_t *store) { return store->bytes_max - store->bytes; }

tensor_t *tensor_store_add(tensor_store_t *store, const tensor_shape_t *shape, bool bf16, const char *owner,
                           uint64_t now_ns, uint64_t ttl_ns)
{
    uint64_t count = tensor_count(shape);
    QN_ASSERT(count > 0);
    if (store->count == TENSORS_MAX || bytes_of(count) > tensor_store_room(store)) return NULL;
    tensor_t *tensor = calloc(1, sizeof *tensor);
    float *values = tensor ? aligned_alloc(64, bytes_of(count)) : NULL;
    if (!values) {
        free(tensor);
        return NULL;
    }
    *tensor = (tensor_t){.shape = *shape,
                         .count = count,
                         .values = values,
                         .bf16 = bf16,
                         .deadline_ns = now_ns + ttl_ns,
                         .ttl_ns = ttl_ns,
                         .hidden = true};
    snprintf(tensor->id, sizeof tensor->id, "t%llu", (unsigned long long)++store->made % 1000000000ull);
    snprintf(tensor->owner, sizeof tensor->owner, "%s", owner);
    tensor_split(tensor, 0, 1);
    store->bytes += bytes_of(count);
    store->tensors[store->count++] = tensor;
    return tensor;
}

tensor_t *tensor_store_find(const tensor_store_t *store, const char *id)
{
    for (uint32_t i = store->count; i-- > 0;) {
        tensor_t *tensor = store->tensors[i];
        if (!tensor->hidden && (id[0] ? strcmp(tensor->id, id) == 0 : tensor->was_split)) return tensor;
    }
    return NULL;
}

tensor_t *tensor_store_at(const tensor_store_t *store, uint32_t index)
{
    QN_ASSERT(index < store->count);
    return store->tensors[index];
}

uint32_t tensor_store_count(const tensor_store_t *store) { return store->count; }

void tensor_store_drop(tensor_store_t *store, tensor_t *tensor)
{
    uint32_t i = 0;
    while (store->tensors[i] != tensor)
        i++;
    QN_ASSERT(i < store->count && tensor->uses == 0);
    memmove(store->tensors + i, store->tensors + i + 1, (--store->count - i) * sizeof *store->tensors);
    store->bytes -= bytes_of(tensor->count);
    free(tensor->values);
    free(tensor);
}

uint64_t tensor_store_expire(tensor_store_t *store, uint64_t now_ns)
{
    uint64_t next_ns = UINT64_MAX;
    for (uint32_t i = store->count; i-- > 0;) {
        tensor_t *tensor = store->tensors[i];
        if (tensor->uses > 0) continue; /* looked at again when its task is done */
        if (tensor->deadline_ns <= now_ns)
            tensor_store_drop(store, tensor);
        else if (tensor->deadline_ns < next_ns)
            next_ns = tensor->deadline_ns;
    }
    return next_ns;
}
