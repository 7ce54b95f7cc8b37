/* The number that stands for a name: a request's cache_salt in leases (prefixes are shared under the same one only), its
 * user and its model in the ledger. */
#ifndef QN_COMMON_NAME_HASH_H
#define QN_COMMON_NAME_HASH_H

#include "common/wire/wire_codec.h"

/* FNV-1a over the name; 0 only for no name. Two that collide are taken for one: 64 bits, chosen by the operator's clients,
 * not a secret. */
static inline uint64_t qn_name_hash(qn_text_t name)
{
    uint64_t hash = 0xcbf29ce484222325ull;
    for (uint32_t i = 0; i < name.bytes; i++)
        hash = (hash ^ (uint8_t)name.data[i]) * 0x100000001b3ull;
    return name.bytes == 0 ? 0 : (hash == 0 ? 1 : hash);
}

#endif
