/* Loaded kernels between their registry (loaded.c) and their launches (loaded_launch.c). */
#ifndef QN_KERNELS_CPU_LOADED_INTERNAL_H
#define QN_KERNELS_CPU_LOADED_INTERNAL_H

#include "kernels/loaded.h"
#include "kernels/plugin.h"

typedef struct {
    qn_plugin_kernel_t kernel; /* operation and name are of the object */
    char object[128];
    uint64_t fingerprint;
} qn_loaded_t;

extern qn_loaded_t qn_loaded[QN_LOADED_KERNELS_MAX];

/* The launch of the operation that runs qn_loaded[place]; NULL: objects cannot have this operation. */
void (*qn_loaded_launch(qn_op_t op, size_t place))(qn_stream_t *stream, const void *arguments);
bool (*qn_loaded_accepts(size_t place))(const qn_kernel_case_t *shape);

#endif
