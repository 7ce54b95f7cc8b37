/* GPT-2's printable stand-ins for bytes: each of the 256 byte values has a character (printable ASCII and
 * Latin-1 stand for themselves, the rest are U+0100 …), so that vocabularies of byte strings can be
 * written as text. Source: openai/gpt-2 encoder.py, bytes_to_unicode. Pure, no tables that change. */
#ifndef QN_TOKENIZER_BPE_BYTE_LEVEL_H
#define QN_TOKENIZER_BPE_BYTE_LEVEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "services/tokenizer/text_buffer.h"

/* Code point that stands for `byte`; below U+0144. */
uint32_t byte_level_character(uint8_t byte);

/* Byte that code point stands for, -1 when none. */
int byte_level_byte(uint32_t code);

/* Appends the bytes that the characters of a piece stand for; when one of them stands for none, appends
 * the piece itself and returns false. `piece` is valid UTF-8. */
bool byte_level_map(const uint8_t *piece, size_t bytes, text_buffer_t *out);

#endif
