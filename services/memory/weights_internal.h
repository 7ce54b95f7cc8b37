/* The inside of weights_t, for weights.c (the plan) and weights_fill.c (the bytes). */
#ifndef QN_MEMORY_WEIGHTS_INTERNAL_H
#define QN_MEMORY_WEIGHTS_INTERNAL_H

#include "common/arena.h"
#include "common/model_tensors.h"
#include "services/memory/safetensors.h"
#include "services/memory/weights.h"

struct weights {
    qn_arena_t arena;              /* names of the tensors */
    weights_tensor_t *tensors;
    union {
        uint32_t source;           /* index in `checkpoint` */
        qn_tensor_role_t role;     /* dummy */
    } *origins;                    /* one per tensor */
    size_t count, left_out;
    uint64_t bytes, fingerprint;
    safetensors_t *checkpoint;     /* NULL: dummy, or files closed */
    bool dummy;
    uint64_t seed;                 /* dummy */
};

#endif
