/* The vector matrix product, written once; matmul_avx2.c and matmul_avx512.c include it after their vector header and
 * KERNEL(name). Parts in panels and parts in rows are different algorithms; a launch that has both runs one, then the
 * other. */
#include "kernels/cpu/matmul_panels.h"
#include "kernels/cpu/matmul_parts.h"
#include "kernels/cpu/matmul_rows.h"

static bool in_panels(const qn_matmul_part_t *part) { return part->weight.layout == QN_LAYOUT_PANELS; }
static bool in_rows(const qn_matmul_part_t *part) { return part->weight.layout == QN_LAYOUT_ROWS; }

void KERNEL(qn_cpu_matmul)(qn_stream_t *stream, const void *arguments)
{
    qn_matmul_t panels = qn_matmul_keep(arguments, in_panels), rows = qn_matmul_keep(arguments, in_rows);
    if (panels.part_count > 0) multiply_panels(stream, &panels);
    if (rows.part_count > 0) multiply_rows(stream, &rows);
}
