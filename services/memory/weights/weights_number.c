/* What is this?      Widening, and the search for numbers that are none.
 * State owned:       none.
 * Must never:        depend on alignment; take a number of a dtype that it does not know.
 * Read next:         weights_bring.c, which looks at every byte it reads from a file. */
#include "services/memory/weights/weights_number.h"

#include <string.h>

#include "common/assert.h"
#include "kernels/weight_layout.h"

static void narrow_f64(const uint8_t *raw, uint64_t count, float *ret_values)
{
    for (uint64_t i = 0; i < count; i++) {
        double value;
        memcpy(&value, raw + i * sizeof value, sizeof value);
        ret_values[i] = (float)value;
    }
}

void weights_number_widen(safetensors_dtype_t dtype, const uint8_t *raw, uint64_t count, float *ret_values)
{
    switch (dtype) {
    case SAFETENSORS_F32: memcpy(ret_values, raw, count * sizeof *ret_values); return;
    case SAFETENSORS_BF16: qn_weight_widen_bf16(raw, count, ret_values); return;
    case SAFETENSORS_F16: qn_weight_widen_f16(raw, count, ret_values); return;
    case SAFETENSORS_F64: narrow_f64(raw, count, ret_values); return;
    default: QN_ASSERT(!"a dtype without numbers");
    }
}

/* A number is not finite when its magnitude, as a whole number, is at least `beyond`. The greatest magnitude of all
 * needs no branch, so that the compiler uses vectors; where it is is looked for only when it is too great. */
#define MAGNITUDE(word) ((word)(UINT64_MAX >> (65 - 8 * sizeof(word))))
#define SEARCH(name, word)                                                \
    static uint64_t name(const uint8_t *raw, uint64_t count, word beyond) \
    {                                                                     \
        const word magnitude = MAGNITUDE(word);                           \
        word most = 0, bits;                                              \
        for (uint64_t i = 0; i < count; i++) {                            \
            memcpy(&bits, raw + i * sizeof bits, sizeof bits);            \
            bits = (word)(bits & magnitude);                              \
            most = bits > most ? bits : most;                             \
        }                                                                 \
        for (uint64_t i = 0; most >= beyond && i < count; i++) {          \
            memcpy(&bits, raw + i * sizeof bits, sizeof bits);            \
            if ((word)(bits & magnitude) >= beyond) return i;             \
        }                                                                 \
        return count;                                                     \
    }

SEARCH(search_16, int16_t)
SEARCH(search_32, int32_t)
SEARCH(search_64, int64_t)

uint64_t weights_number_not_finite(safetensors_dtype_t dtype, const uint8_t *raw, uint64_t count)
{
    switch (dtype) {
    case SAFETENSORS_F16: return search_16(raw, count, 0x7c00);
    case SAFETENSORS_BF16: return search_16(raw, count, 0x7f80);
    case SAFETENSORS_F32: return search_32(raw, count, 0x7f800000);
    case SAFETENSORS_F64: return search_64(raw, count, WEIGHTS_F64_BEYOND_F32);
    default: QN_ASSERT(!"a dtype without numbers"); return 0;
    }
}
