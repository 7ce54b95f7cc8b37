/* The one checksum and the one fingerprint of Quintet. Neither is cryptographic: the first finds damage, the second tells
 * contents apart. */
#ifndef QN_COMMON_CHECKSUM_H
#define QN_COMMON_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

/* CRC-32C (Castagnoli; RFC 3720, B.4) of `bytes` bytes, continuing `crc` (0 to begin). By the processor's instruction where
 * it has one. */
uint32_t qn_crc32c(uint32_t crc, const void *data, size_t bytes);

/* XXH64 (libxxhash). Chain pieces by giving the last result as the next seed. */
uint64_t qn_fingerprint(const void *data, size_t bytes, uint64_t seed);

#endif
