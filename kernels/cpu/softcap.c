/* What is this?      Reference soft-cap of logits: cap * tanh(x / cap).
 * State owned:       none.
 * Must never:        be called with a cap of 0: off is not launching it.
 * Read next:         attention.c, whose scores have a soft-cap of their own. */
#include <math.h>

#include "kernels/cpu/cpu.h"

static void cap_values(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const qn_softcap_t *a = arguments;
    for (size_t i = begin; i < end; i++)
        a->x[i] = (float)(a->cap * tanh((double)a->x[i] / a->cap));
}

void qn_cpu_softcap(qn_stream_t *stream, const void *arguments)
{
    const qn_softcap_t *a = arguments;
    QN_ASSERT(a->cap > 0);
    qn_cpu_split(stream, (size_t)a->rows * a->width, 2000, cap_values, a);
}
