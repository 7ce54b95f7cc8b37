/* What is this?      The byte alphabet of byte-level BPE, both ways.
 * State owned:       none.
 * Must never:        depend on the text around a byte.
 * Read next:         vocabulary.h, decoder.h. */
#include "services/tokenizer/bpe/byte_level.h"

#include "services/tokenizer/split/unicode_classes.h"

static bool stands_for_itself(uint32_t code)
{
    return (code >= 0x21 && code <= 0x7E) || (code >= 0xA1 && code <= 0xAC) || (code >= 0xAE && code <= 0xFF);
}

/* The others are numbered in byte order from U+0100: 0x00..0x20, 0x7F..0xA0, 0xAD. */
uint32_t byte_level_character(uint8_t byte)
{
    if (stands_for_itself(byte)) return byte;
    if (byte <= 0x20) return 0x100u + byte;
    if (byte <= 0xA0) return 0x100u + 33 + (byte - 0x7Fu);
    return 0x100u + 67;
}

int byte_level_byte(uint32_t code)
{
    if (stands_for_itself(code)) return (int)code;
    if (code < 0x100 || code > 0x143) return -1;
    uint32_t number = code - 0x100;
    if (number < 33) return (int)number;
    return number < 67 ? (int)(number - 33 + 0x7F) : 0xAD;
}

bool byte_level_map(const uint8_t *piece, size_t bytes, text_buffer_t *out)
{
    size_t length = out->length;
    text_buffer_reserve(out, bytes);
    for (size_t at = 0; at < bytes;) {
        unsigned size;
        int byte = byte_level_byte(unicode_decode(piece + at, &size));
        if (byte < 0) {
            out->length = length;
            text_buffer_append(out, piece, bytes);
            return false;
        }
        out->bytes[out->length++] = (uint8_t)byte;
        at += size;
    }
    return true;
}
