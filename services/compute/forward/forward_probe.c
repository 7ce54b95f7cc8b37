/* What is this?      Taps: rows copied out at a site, or blended with what a request gave.
 * State owned:       none.
 * Must never:        be reached by a pass without a probe; write outside the workspace.
 * Read next:         forward_probe.h, common/probe/probe.h; forward.c and forward_attention.c, where the sites are. */
#include "services/compute/forward/forward_probe.h"

#include "services/compute/forward/forward_internal.h"

static uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

bool forward_tap_range(const forward_probe_t *p, const qn_tap_point_t *tap, uint32_t *ret_first, uint32_t *ret_count)
{
    uint32_t from = larger(tap->position_from, p->position);
    uint32_t to = step_smaller(tap->position_to, (uint64_t)p->position + p->tokens);
    *ret_first = from - p->position;
    *ret_count = to > from ? to - from : 0;
    return to > from;
}

void forward_read_rows(const forward_t *f, const qn_tap_point_t *tap, const void *rows, size_t row_bytes,
                       uint32_t first, uint32_t count)
{
    const forward_probe_t *p = f->probe;
    uint64_t offset = tap->offset + (p->position + first - tap->position_from) * row_bytes, bytes = count * row_bytes;
    if (!p->workspace || offset > p->workspace_bytes || bytes > p->workspace_bytes - offset) return;
    p->backend->download(f->stream, p->workspace + offset, rows, bytes);
}

static void write_rows(const forward_t *f, const qn_tap_point_t *tap, char *x, uint32_t width, uint32_t first,
                       uint32_t count)
{
    const forward_probe_t *p = f->probe;
    size_t number_bytes = qn_scalar_bytes(f->activations), row_bytes = width * number_bytes;
    bool one_row = tap->value_count == width;
    size_t skipped = one_row ? 0 : (p->position + first - tap->position_from) * row_bytes;
    char *rows = x + first * row_bytes;
    qn_launch(&f->kernels, QN_OP_BLEND, f->stream,
              &(qn_blend_t){.x = rows,
                            .y = (const char *)p->values + tap->value_offset * number_bytes + skipped,
                            .x_factor = tap->action == QN_TAP_ACTION_ADD ? 1 : 0,
                            .y_factor = tap->scale,
                            .y_is_row = one_row,
                            .rows = count,
                            .width = width,
                            .out = rows});
}

static bool is_at(const qn_tap_point_t *tap, qn_tap_site_t site, uint32_t layer)
{
    return tap->site == site && tap->layer == layer;
}

void forward_tap_rows(const forward_t *f, qn_tap_site_t site, uint32_t layer, void *x, uint32_t width)
{
    uint32_t first, count;
    size_t row_bytes = width * (size_t)qn_scalar_bytes(f->activations);
    for (uint32_t i = 0; i < f->probe->probe->tap_count; i++) {
        const qn_tap_point_t *tap = &f->probe->probe->taps[i];
        if (!is_at(tap, site, layer) || !forward_tap_range(f->probe, tap, &first, &count)) continue;
        if (tap->action == QN_TAP_ACTION_READ)
            forward_read_rows(f, tap, (char *)x + first * row_bytes, row_bytes, first, count);
        else
            write_rows(f, tap, x, width, first, count);
    }
}

bool forward_has_tap(const forward_t *f, qn_tap_site_t site, uint32_t layer)
{
    if (!f->probe) return false;
    for (uint32_t i = 0; i < f->probe->probe->tap_count; i++)
        if (is_at(&f->probe->probe->taps[i], site, layer)) return true;
    return false;
}

/* ---- what is added to the residual stream ---- */

void forward_begin_added(const forward_t *f, uint32_t tokens)
{
    uint32_t width = f->model->config.hidden;
    qn_blend_t keep = {.x = f->scratch->x, .x_factor = 1, .rows = tokens, .width = width, .out = f->probe->aside};
    qn_blend_t clear = {.rows = tokens, .width = width, .out = f->scratch->x};
    qn_launch(&f->kernels, QN_OP_BLEND, f->stream, &keep);
    qn_launch(&f->kernels, QN_OP_BLEND, f->stream, &clear);
}

static bool is_written(const forward_t *f, qn_tap_site_t site, uint32_t layer)
{
    const qn_probe_t *probe = f->probe->probe;
    for (uint32_t i = 0; i < probe->tap_count; i++)
        if (is_at(&probe->taps[i], site, layer) && probe->taps[i].action != QN_TAP_ACTION_READ) return true;
    return false;
}

bool forward_end_added(const forward_t *f, qn_tap_site_t site, uint32_t layer, uint32_t tokens)
{
    uint32_t width = f->model->config.hidden;
    bool written = is_written(f, site, layer);
    forward_tap_rows(f, site, layer, f->scratch->x, width);
    qn_blend_t add = {.x = f->probe->aside,
                      .y = f->scratch->x,
                      .x_factor = 1,
                      .y_factor = written,
                      .rows = tokens,
                      .width = width,
                      .out = f->scratch->x};
    qn_launch(&f->kernels, QN_OP_BLEND, f->stream, &add);
    return written;
}

/* ---- attention ---- */

bool forward_probes_attention(const forward_t *f, uint32_t layer)
{
    if (!f->probe) return false;
    if (f->probe->weights && f->probe->weight_layer == layer) return true;
    for (uint32_t i = 0; i < f->probe->probe->mask_count; i++) {
        const qn_mask_rule_t *mask = &f->probe->probe->masks[i];
        if (layer >= mask->layer_from && (layer < mask->layer_to || mask->layer_to == 0)) return true;
    }
    return false;
}

void forward_attend_probed(const forward_t *f, const qn_attention_t *attention, uint32_t runs)
{
    const forward_probe_t *p = f->probe;
    bool shown = p->weights && p->weight_layer == attention->layer;
    qn_probed_attention_t launch = {.attention = *attention,
                                    .masks = p->masks,
                                    .mask_count = p->probe->mask_count,
                                    .ret_weights = shown ? p->weights : NULL,
                                    .weight_columns = p->weight_columns,
                                    .ret_read = p->kv_read};
    launch.attention.runs = f->scratch->in.runs;
    launch.attention.run_count = runs;
    qn_launch(&f->kernels, QN_OP_ATTENTION_PROBED, f->stream, &launch);
}
