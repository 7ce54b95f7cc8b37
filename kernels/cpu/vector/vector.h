/* The vector width that this object is compiled for, and the suffix of its names. A *_vector.c file is compiled once per
 * width (Makefile: VECTOR_FILES), by flags alone: its algorithm is written once, in the operations of vector_avx2.h and
 * vector_avx512.h. registry.c sees to it that none is reached on a machine without the instructions. */
#ifndef QN_KERNELS_CPU_VECTOR_VECTOR_H
#define QN_KERNELS_CPU_VECTOR_VECTOR_H

#if defined __AVX512F__
#include "kernels/cpu/vector/vector_avx512.h"
#define KERNEL(name) name##_avx512
#elif defined __AVX2__
#include "kernels/cpu/vector/vector_avx2.h"
#define KERNEL(name) name##_avx2
#else
#error "compile *_vector.c with the flags of an instruction set"
#endif

#endif
