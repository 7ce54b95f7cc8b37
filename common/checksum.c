/* What is this?      CRC-32C in hardware and in plain C; XXH64 by its library.
 * State owned:       none.
 * Must never:        depend on alignment or differ between the two ways.
 * Read next:         services/scheduler/ledger/ledger_record.c, common/region/region.c (who checks with it). */
#include "common/checksum.h"

#include <string.h>
#include <xxhash.h>

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t crc_hardware(uint32_t crc, const uint8_t *data, size_t bytes)
{
    uint64_t wide = crc;
    for (; bytes >= 8; data += 8, bytes -= 8) {
        uint64_t eight;
        memcpy(&eight, data, 8);
        wide = __builtin_ia32_crc32di(wide, eight);
    }
    crc = (uint32_t)wide;
    for (; bytes > 0; data++, bytes--)
        crc = __builtin_ia32_crc32qi(crc, *data);
    return crc;
}
#endif

static uint32_t crc_portable(uint32_t crc, const uint8_t *data, size_t bytes)
{
    for (; bytes > 0; data++, bytes--) {
        crc ^= *data;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (0x82f63b78u & (0u - (crc & 1)));
    }
    return crc;
}

uint32_t qn_crc32c(uint32_t crc, const void *data, size_t bytes)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2")) return ~crc_hardware(~crc, data, bytes);
#endif
    return ~crc_portable(~crc, data, bytes);
}

uint64_t qn_fingerprint(const void *data, size_t bytes, uint64_t seed) { return XXH64(bytes ? data : "", bytes, seed); }
