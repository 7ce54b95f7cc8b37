/* Hand-written scanners for the token boundary expressions nearly every byte-level model uses. Each cuts
 * text exactly as its expression does with behaviour "Isolated" (the matches cover the whole text), in one
 * pass that looks at no character more than a few times.
 *
 * Pure; `text` is valid UTF-8. */
#ifndef QN_TOKENIZER_SPLIT_SCANNER_H
#define QN_TOKENIZER_SPLIT_SCANNER_H

#include <stddef.h>
#include <stdint.h>

#include "services/tokenizer/split/unicode_classes.h"

/* Finds the end of the pieces from *position on, writes up to `max` of them to ret_ends, moves *position
 * to the last one and returns how many; 0 only at the end of the text. */
typedef size_t scanner_fn(const unicode_classes_t *classes, const uint8_t *text, size_t length, size_t *position,
                          uint32_t *ret_ends, size_t max);

/* GPT-2: also what ByteLevel with use_regex does. */
scanner_fn scanner_gpt2;

/* The scanner for an expression, by its exact text; NULL when there is none. */
scanner_fn *scanner_for_expression(const char *expression, size_t bytes);

#endif
