/* What is this?      XXH64, as its specification has it.
 * State owned:       none.
 * Must never:        depend on alignment. (It does on byte order: little-endian hosts only, like safetensors itself.)
 * Read next:         weights.c, which feeds it. */
#include "services/memory/weights/fingerprint.h"

#include <string.h>

#define PRIME_1 0x9E3779B185EBCA87u
#define PRIME_2 0xC2B2AE3D27D4EB4Fu
#define PRIME_3 0x165667B19E3779F9u
#define PRIME_4 0x85EBCA77C2B2AE63u
#define PRIME_5 0x27D4EB2F165667C5u

static uint64_t rotate(uint64_t value, int bits) { return value << bits | value >> (64 - bits); }

static uint64_t read_64(const uint8_t *bytes)
{
    uint64_t value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

static uint32_t read_32(const uint8_t *bytes)
{
    uint32_t value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

static uint64_t round_lane(uint64_t lane, uint64_t input) { return rotate(lane + input * PRIME_2, 31) * PRIME_1; }

static uint64_t merge_lane(uint64_t hash, uint64_t lane) { return (hash ^ round_lane(0, lane)) * PRIME_1 + PRIME_4; }

/* Four lanes over the 32-byte stripes; moves *bytes behind them. */
static uint64_t hash_stripes(const uint8_t **bytes, const uint8_t *end, uint64_t seed)
{
    uint64_t lanes[4] = {seed + PRIME_1 + PRIME_2, seed + PRIME_2, seed, seed - PRIME_1};
    for (; end - *bytes >= 32; *bytes += 32) {
        for (int i = 0; i < 4; i++)
            lanes[i] = round_lane(lanes[i], read_64(*bytes + 8 * i));
    }
    uint64_t hash = rotate(lanes[0], 1) + rotate(lanes[1], 7) + rotate(lanes[2], 12) + rotate(lanes[3], 18);
    for (int i = 0; i < 4; i++)
        hash = merge_lane(hash, lanes[i]);
    return hash;
}

uint64_t fingerprint_bytes(const void *bytes_pointer, size_t length, uint64_t seed)
{
    if (length == 0) bytes_pointer = "";
    const uint8_t *bytes = bytes_pointer, *end = bytes + length;
    uint64_t hash = (length >= 32 ? hash_stripes(&bytes, end, seed) : seed + PRIME_5) + length;
    for (; end - bytes >= 8; bytes += 8)
        hash = rotate(hash ^ round_lane(0, read_64(bytes)), 27) * PRIME_1 + PRIME_4;
    if (end - bytes >= 4) {
        hash = rotate(hash ^ read_32(bytes) * PRIME_1, 23) * PRIME_2 + PRIME_3;
        bytes += 4;
    }
    for (; bytes < end; bytes++)
        hash = rotate(hash ^ *bytes * PRIME_5, 11) * PRIME_1;
    hash = (hash ^ hash >> 33) * PRIME_2;
    hash = (hash ^ hash >> 29) * PRIME_3;
    return hash ^ hash >> 32;
}
