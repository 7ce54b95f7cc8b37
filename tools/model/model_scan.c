/* What is this?      Walks over the numbers of a tensor and looks for what a trained model cannot have.
 * State owned:       none.
 * Must never:        read through the mapping: a file that becomes shorter must be an error and not a signal.
 * Read next:         model_check.c. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "services/memory/weights/weights_number.h"
#include "tools/model/model_tool.h"

#define PIECE_BYTES (256u << 10) /* stays in the second-level cache between the read and the walk */

/* Looks at `count` numbers, the first of which is number `before` of the tensor. One is not finite when its magnitude,
 * as a whole number, is at least `beyond`. The loop over all has no branch, so that it is vectorised; where one is bad is looked for after. */
#define SCAN(name, word)                                                                                  \
    static void name(const word *numbers, size_t count, word beyond, uint64_t before, model_scan_t *scan) \
    {                                                                                                     \
        const word magnitude = (word) - 1 >> 1;                                                           \
        word any = 0;                                                                                     \
        uint32_t bad = 0;                                                                                 \
        for (size_t i = 0; i < count; i++) {                                                              \
            any |= numbers[i] & magnitude;                                                                \
            bad += (word)(numbers[i] & magnitude) >= beyond;                                              \
        }                                                                                                 \
        if (any) scan->all_zero = false;                                                                  \
        if (bad && scan->not_finite == 0) {                                                               \
            size_t first = 0;                                                                             \
            while ((word)(numbers[first] & magnitude) < beyond)                                           \
                first++;                                                                                  \
            scan->first = before + first;                                                                 \
        }                                                                                                 \
        scan->not_finite += bad;                                                                          \
    }

SCAN(scan_half, uint16_t)
SCAN(scan_single, uint32_t)
SCAN(scan_double, uint64_t)

static qn_err_t read_piece(const safetensors_t *checkpoint, const safetensors_tensor_t *tensor, uint64_t offset,
                           size_t bytes, void *ret_piece)
{
    size_t done = 0;
    while (done < bytes) {
        ssize_t got = pread(safetensors_file_fd(checkpoint, tensor->file_index), (char *)ret_piece + done, bytes - done,
                            (off_t)(tensor->file_offset + offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0)
            return qn_fail(QN_ERR_IO, "%s: tensor '%s': %s", safetensors_file_path(checkpoint, tensor->file_index),
                           tensor->name, got < 0 ? strerror(errno) : "the file became shorter");
        done += (size_t)got;
    }
    return QN_OK;
}

qn_err_t model_tool_scan(const safetensors_t *checkpoint, const safetensors_tensor_t *tensor, model_scan_t *ret_scan)
{
    static union {
        uint16_t half[PIECE_BYTES / 2];
        uint32_t single[PIECE_BYTES / 4];
        uint64_t wide[PIECE_BYTES / 8];
    } piece;
    model_scan_t scan = {.all_zero = tensor->bytes > 0};
    size_t size = safetensors_dtype_bytes(tensor->dtype);
    uint16_t beyond = tensor->dtype == SAFETENSORS_BF16 ? 0x7f80 : 0x7c00;
    for (uint64_t offset = 0; offset < tensor->bytes;) {
        size_t bytes = tensor->bytes - offset < PIECE_BYTES ? (size_t)(tensor->bytes - offset) : PIECE_BYTES;
        qn_err_t err = read_piece(checkpoint, tensor, offset, bytes, &piece);
        if (err) return err;
        uint64_t before = offset / size;
        if (tensor->dtype == SAFETENSORS_F64)
            scan_double(piece.wide, bytes / size, WEIGHTS_F64_BEYOND_F32, before, &scan);
        else if (tensor->dtype == SAFETENSORS_F32)
            scan_single(piece.single, bytes / size, 0x7f800000u, before, &scan);
        else
            scan_half(piece.half, bytes / size, beyond, before, &scan);
        offset += bytes;
    }
    *ret_scan = scan;
    return QN_OK;
}
