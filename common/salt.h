/* The number that stands for a request's cache_salt in leases: prefixes are shared under the same one only. */
#ifndef QN_COMMON_SALT_H
#define QN_COMMON_SALT_H

#include "common/wire/wire_codec.h"

/* FNV-1a over the salt; 0 only for no salt. Two salts that collide would share prefixes: 64 bits, chosen by the
 * operator's clients, not a secret. */
static inline uint64_t qn_salt_hash(qn_text_t salt)
{
    uint64_t hash = 0xcbf29ce484222325ull;
    for (uint32_t i = 0; i < salt.bytes; i++)
        hash = (hash ^ (uint8_t)salt.data[i]) * 0x100000001b3ull;
    return salt.bytes == 0 ? 0 : (hash == 0 ? 1 : hash);
}

#endif
