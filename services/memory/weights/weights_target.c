/* What is this?      Weights into a host region: pieces are the region's own bytes.
 * State owned:       none.
 * Must never:        copy: what is filled is where it belongs.
 * Read next:         weights_target_device.c, where that is not so simple. */
#include "services/memory/weights/weights_target.h"

static qn_err_t host_open(weights_target_t *target, unsigned threads, uint64_t piece_bytes)
{
    (void)target, (void)threads, (void)piece_bytes;
    return QN_OK;
}

static qn_err_t host_take(weights_target_t *target, uint64_t offset, uint8_t **ret_piece)
{
    *ret_piece = target->base + offset;
    return QN_OK;
}

static qn_err_t host_send(weights_target_t *target, uint64_t offset, uint8_t *piece, uint64_t bytes)
{
    (void)target, (void)offset, (void)piece, (void)bytes;
    return QN_OK;
}

static void host_drop(weights_target_t *target, uint8_t *piece) { (void)target, (void)piece; }

static qn_err_t host_finish(weights_target_t *target)
{
    (void)target;
    return QN_OK;
}

static void host_close(weights_target_t *target) { (void)target; }

const weights_target_kind_t weights_target_host = {
    .open = host_open,
    .take = host_take,
    .send = host_send,
    .drop = host_drop,
    .finish = host_finish,
    .close = host_close,
};
