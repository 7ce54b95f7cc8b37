/* XXH64 (Yann Collet, https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md): 64 bits that tell contents
 * apart. Not cryptographic. Chain pieces by giving the last result as the next seed. */
#ifndef QN_MEMORY_FINGERPRINT_H
#define QN_MEMORY_FINGERPRINT_H

#include <stddef.h>
#include <stdint.h>

uint64_t fingerprint_bytes(const void *bytes, size_t length, uint64_t seed);

#endif
