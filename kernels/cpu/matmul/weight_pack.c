/* What is this?      Packing a panel with the instructions every x86-64 has.
 * State owned:       none.
 * Must never:        differ in a bit from weight_pack_avx2.c.
 * Read next:         weight_pack_body.h. */
#define PACK(name) name
#define PACK_WIDTH 4
#include "kernels/cpu/matmul/weight_pack_body.h"
