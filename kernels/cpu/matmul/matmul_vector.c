/* What is this?      The matrix product in vectors. Parts in panels and parts in rows are different algorithms; a launch
 *                    that has both runs one, then the other.
 * State owned:       none.
 * Must never:        run on a machine without the instructions it is compiled for: registry.c sees to it.
 * Read next:         vector.h, matmul_panels.h, matmul_rows.h, matmul.c. */
#include "kernels/cpu/vector/vector.h"

#include "kernels/cpu/matmul/matmul_panels.h"
#include "kernels/cpu/matmul/matmul_parts.h"
#include "kernels/cpu/matmul/matmul_rows.h"

static bool in_panels(const qn_matmul_part_t *part) { return part->weight.layout == QN_LAYOUT_PANELS; }
static bool in_rows(const qn_matmul_part_t *part) { return part->weight.layout == QN_LAYOUT_ROWS; }

void KERNEL(qn_cpu_matmul)(qn_stream_t *stream, const void *arguments)
{
    qn_matmul_t panels = qn_matmul_keep(arguments, in_panels), rows = qn_matmul_keep(arguments, in_rows);
    if (panels.part_count > 0) multiply_panels(stream, &panels);
    if (rows.part_count > 0) multiply_rows(stream, &rows);
}
