/* Which words of an operation's argument struct are pointers to arrays: what must be changed when the arrays move. The
 * CPU's scratch is none of them. */
#ifndef QN_KERNELS_BENCH_KERNEL_POINTERS_H
#define QN_KERNELS_BENCH_KERNEL_POINTERS_H

#include <stddef.h>

#include "kernels/kernels.h"

/* Bytes of the struct. */
size_t kernel_arguments_bytes(qn_op_t op);
/* Calls `move` with the place of every pointer in `arguments`, NULL ones too; two may be to one array. */
void kernel_each_pointer(qn_op_t op, void *arguments, void (*move)(void *context, void **pointer), void *context);

#endif
