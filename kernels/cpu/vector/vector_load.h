/* Loads of either scalar type, resolved at compile time: pass `scalar` as a constant. Include after vector_*.h. */
#ifndef QN_KERNELS_CPU_VECTOR_VECTOR_LOAD_H
#define QN_KERNELS_CPU_VECTOR_VECTOR_LOAD_H

#include "kernels/kernels.h"

VEC_INLINE vec_t vec_load_as(qn_scalar_t scalar, const void *data, size_t index)
{
    if (scalar == QN_SCALAR_F32) return vec_load((const float *)data + index);
    return vec_load_bf16((const uint16_t *)data + index);
}

VEC_INLINE vec_t vec_load_some_as(qn_scalar_t scalar, const void *data, size_t index, uint32_t count)
{
    if (scalar == QN_SCALAR_F32) return vec_load_some((const float *)data + index, count);
    return vec_load_bf16_some((const uint16_t *)data + index, count);
}

#endif
