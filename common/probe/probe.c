/* What is this?      Probes: their checks, their identity, their bytes.
 * State owned:       none.
 * Must never:        let two probes that write different KV have one identity by what is left out of it.
 * Read next:         probe.h, schemas/common.fbs (MaskRule, TapPoint), kernels/kernels.h (what a mask means). */
#include "common/probe/probe.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/limits.h"

/* ---- identity ---- */

/* FNV-1a. */
static uint64_t add(uint64_t hash, const void *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        hash = (hash ^ ((const uint8_t *)data)[i]) * 0x100000001b3ull;
    return hash;
}

/* Field by field: padding means nothing. */
static uint64_t hash_masks(uint64_t hash, const qn_probe_t *probe)
{
    for (uint32_t i = 0; i < probe->mask_count; i++) {
        const qn_mask_rule_t *m = &probe->masks[i];
        const uint32_t fields[] = {m->k,        m->window,    m->sinks,   m->layer_from,
                                   m->layer_to, m->head_from, m->head_to, (uint32_t)m->kind};
        hash = add(add(hash, fields, sizeof fields), &m->value, sizeof m->value);
    }
    return hash;
}

static uint64_t hash_written(uint64_t hash, const qn_probe_t *probe)
{
    for (uint32_t i = 0; i < probe->tap_count; i++) {
        const qn_tap_point_t *t = &probe->taps[i];
        if (t->action == QN_TAP_ACTION_READ) continue;
        const uint32_t fields[] = {t->position_from, t->position_to,    t->value_count,
                                   t->layer,         (uint32_t)t->site, (uint32_t)t->action};
        hash = add(add(hash, fields, sizeof fields), &t->scale, sizeof t->scale);
        hash = add(hash, probe->values + t->value_offset, t->value_count * sizeof *probe->values);
    }
    return hash;
}

#define FNV_BASIS 0xcbf29ce484222325ull

static bool writes(const qn_probe_t *probe)
{
    for (uint32_t i = 0; i < probe->tap_count; i++)
        if (probe->taps[i].action != QN_TAP_ACTION_READ) return true;
    return false;
}

bool qn_probe_reads(const qn_probe_t *probe)
{
    for (uint32_t i = 0; i < probe->tap_count; i++)
        if (probe->taps[i].action == QN_TAP_ACTION_READ) return true;
    return false;
}

uint64_t qn_probe_salt(const qn_probe_t *probe, uint64_t salt)
{
    if (!probe->mask_count && !writes(probe)) return salt;
    uint64_t hash = hash_written(hash_masks(add(FNV_BASIS, &salt, sizeof salt), probe), probe);
    return hash ? hash : 1;
}

uint64_t qn_probe_group(const qn_probe_t *probe)
{
    if (probe->tap_count) return 0;
    uint64_t hash = hash_masks(FNV_BASIS, probe);
    return hash ? hash : 1;
}

/* ---- does it suit the model? ---- */

bool qn_probe_site_is_of_layer(qn_tap_site_t site)
{
    return site != QN_TAP_SITE_EMBED && site != QN_TAP_SITE_NORM && site != QN_TAP_SITE_LOGITS;
}

uint32_t qn_probe_width(const qn_probe_model_t *model, qn_tap_site_t site)
{
    switch (site) {
    case QN_TAP_SITE_ATTN_Q: return model->heads * model->head_dim;
    case QN_TAP_SITE_ATTN_K:
    case QN_TAP_SITE_ATTN_V: return model->kv_heads * model->head_dim;
    case QN_TAP_SITE_LOGITS: return model->vocab;
    default: return model->hidden;
    }
}

static qn_err_t check_mask(const qn_mask_rule_t *mask, const qn_probe_model_t *model)
{
    bool window = mask->kind == QN_MASK_RULE_KIND_WINDOW || mask->kind == QN_MASK_RULE_KIND_SINK_WINDOW;
    bool k = mask->kind == QN_MASK_RULE_KIND_TOP_K || mask->kind == QN_MASK_RULE_KIND_BLOCK_TOP_K;
    if ((window && mask->window == 0) || (k && mask->k == 0))
        return qn_fail(QN_ERR_INVALID, "a mask that leaves nothing: %s must be at least 1", window ? "window" : "k");
    uint32_t layer_to = mask->layer_to ? mask->layer_to : model->layers;
    uint32_t head_to = mask->head_to ? mask->head_to : model->heads;
    if (mask->layer_from >= layer_to || layer_to > model->layers)
        return qn_fail(QN_ERR_INVALID, "a mask on layers from %u to below %u; the model has %u", mask->layer_from,
                       layer_to, model->layers);
    if (mask->head_from >= head_to || head_to > model->heads)
        return qn_fail(QN_ERR_INVALID, "a mask on heads from %u to below %u; the model has %u", mask->head_from,
                       head_to, model->heads);
    return QN_OK;
}

static qn_err_t check_written(const qn_probe_t *probe, const qn_tap_point_t *tap, uint32_t width)
{
    uint32_t positions = tap->position_to - tap->position_from;
    if (tap->site == QN_TAP_SITE_LOGITS || tap->site == QN_TAP_SITE_NORM)
        return qn_fail(QN_ERR_INVALID, "logits and the last norm can be read, not written: use logit_bias");
    if (tap->value_offset > probe->value_count || tap->value_count > probe->value_count - tap->value_offset)
        return qn_fail(QN_ERR_INVALID, "%u numbers at %u, there are %u", tap->value_count, tap->value_offset,
                       probe->value_count);
    if (tap->value_count != width && tap->value_count != (uint64_t)positions * width)
        return qn_fail(QN_ERR_INVALID,
                       "%u numbers; a row has %u there, and one row or one for each of %u positions is "
                       "taken",
                       tap->value_count, width, positions);
    if (!isfinite(tap->scale)) return qn_fail(QN_ERR_INVALID, "scale is not a finite number");
    for (uint32_t i = 0; i < tap->value_count; i++)
        if (!isfinite(probe->values[tap->value_offset + i]))
            return qn_fail(QN_ERR_INVALID, "number %u is not finite", i);
    return QN_OK;
}

static qn_err_t check_tap(const qn_probe_t *probe, const qn_tap_point_t *tap, const qn_probe_model_t *model)
{
    if (qn_probe_site_is_of_layer(tap->site) ? tap->layer >= model->layers : tap->layer != 0)
        return qn_fail(QN_ERR_INVALID, "a tap in layer %u; the model has %u, from 0", tap->layer, model->layers);
    if (tap->position_from >= tap->position_to)
        return qn_fail(QN_ERR_INVALID, "a tap at positions %u to %u: the first must be below the end",
                       tap->position_from, tap->position_to);
    if (tap->action != QN_TAP_ACTION_READ) return check_written(probe, tap, qn_probe_width(model, tap->site));
    return probe->workspace ? QN_OK : qn_fail(QN_ERR_INVALID, "a tap that reads, and no workspace to read into");
}

qn_err_t qn_probe_check(const qn_probe_t *probe, const qn_probe_model_t *model, const char **ret_param)
{
    *ret_param = "masks";
    qn_err_t err = QN_OK;
    if (probe->mask_count > QN_MASKS_MAX)
        return qn_fail(QN_ERR_INVALID, "%u rules; %d are possible", probe->mask_count, QN_MASKS_MAX);
    for (uint32_t i = 0; !err && i < probe->mask_count; i++)
        err = check_mask(&probe->masks[i], model);
    if (err) return err;
    *ret_param = "taps";
    if (probe->tap_count > QN_TAPS_MAX || probe->value_count > QN_TAP_VALUES_MAX)
        return qn_fail(QN_ERR_INVALID, "%u points with %u numbers; %d with %d are possible", probe->tap_count,
                       probe->value_count, QN_TAPS_MAX, QN_TAP_VALUES_MAX);
    for (uint32_t i = 0; !err && i < probe->tap_count; i++)
        err = check_tap(probe, &probe->taps[i], model);
    return err;
}

/* ---- bytes ---- */

typedef struct {
    uint64_t workspace, workspace_until_ns;
    uint32_t workspace_epoch, mask_count, tap_count, value_count;
} packed_t;

size_t qn_probe_packed_bytes(const qn_probe_t *probe)
{
    return sizeof(packed_t) + probe->tap_count * sizeof *probe->taps + probe->mask_count * sizeof *probe->masks +
           probe->value_count * sizeof *probe->values;
}

static uint8_t *put(uint8_t *at, const void *data, size_t bytes)
{
    if (bytes) memcpy(at, data, bytes);
    return at + bytes;
}

void qn_probe_pack(const qn_probe_t *probe, void *to)
{
    packed_t head = {.workspace = probe->workspace,
                     .workspace_until_ns = probe->workspace_until_ns,
                     .workspace_epoch = probe->workspace_epoch,
                     .mask_count = probe->mask_count,
                     .tap_count = probe->tap_count,
                     .value_count = probe->value_count};
    uint8_t *at = put(to, &head, sizeof head);
    at = put(at, probe->taps, probe->tap_count * sizeof *probe->taps);
    at = put(at, probe->masks, probe->mask_count * sizeof *probe->masks);
    put(at, probe->values, probe->value_count * sizeof *probe->values);
}

bool qn_probe_unpack(const void *from, size_t bytes, qn_probe_t *ret_probe)
{
    const packed_t *head = from;
    if (bytes < sizeof *head || (uintptr_t)from % sizeof(uint64_t) || head->mask_count > QN_MASKS_MAX ||
        head->tap_count > QN_TAPS_MAX || head->value_count > QN_TAP_VALUES_MAX)
        return false;
    qn_probe_t probe = {.mask_count = head->mask_count,
                        .tap_count = head->tap_count,
                        .value_count = head->value_count,
                        .workspace = head->workspace,
                        .workspace_until_ns = head->workspace_until_ns,
                        .workspace_epoch = head->workspace_epoch};
    if (bytes != qn_probe_packed_bytes(&probe)) return false;
    probe.taps = (const qn_tap_point_t *)(head + 1);
    probe.masks = (const qn_mask_rule_t *)(probe.taps + probe.tap_count);
    probe.values = (const float *)(probe.masks + probe.mask_count);
    *ret_probe = probe;
    return true;
}

void *qn_probe_copy(const qn_probe_t *probe, qn_probe_t *ret_probe)
{
    size_t bytes = qn_probe_packed_bytes(probe);
    void *copy = malloc(bytes);
    if (!copy) return NULL;
    qn_probe_pack(probe, copy);
    return qn_probe_unpack(copy, bytes, ret_probe) ? copy : NULL;
}
