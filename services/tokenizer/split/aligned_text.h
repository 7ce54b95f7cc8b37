/* A text on its way through normalizers and pre-tokenizers: bytes and, when somebody wants to know, for
 * each byte the span of the input text it came from. Embedded by its owner and reused. */
#ifndef QN_TOKENIZER_SPLIT_ALIGNED_TEXT_H
#define QN_TOKENIZER_SPLIT_ALIGNED_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "services/tokenizer/text_buffer.h"
#include "services/tokenizer/bpe/token_list.h"

/* What a step reads. `spans` NULL: byte i came from [base + i, base + i + 1). */
typedef struct {
    const uint8_t *bytes; /* valid UTF-8, borrowed */
    size_t length;
    const tokenizer_span_t *spans; /* [length], borrowed or NULL */
    size_t base;
} text_view_t;

/* What a step writes. */
typedef struct {
    text_buffer_t text;
    tokenizer_span_t *spans; /* [text.length] when `is_aligned`, owned */
    size_t span_capacity;
    bool is_aligned;
} aligned_text_t;

static inline void aligned_text_reset(aligned_text_t *out, bool is_aligned)
{
    out->text.length = 0;
    out->is_aligned = is_aligned;
}

static inline void aligned_text_fini(aligned_text_t *out)
{
    text_buffer_fini(&out->text);
    free(out->spans);
    *out = (aligned_text_t){0};
}

static inline text_view_t aligned_text_view(const aligned_text_t *text, size_t base)
{
    const uint8_t *bytes = text->text.bytes ? text->text.bytes : (const uint8_t *)"";
    return (text_view_t){bytes, text->text.length, text->is_aligned ? text->spans : NULL, base};
}

/* Where byte `at` (< length) of a view came from. */
static inline tokenizer_span_t text_view_span(const text_view_t *view, size_t at)
{
    if (view->spans) return view->spans[at];
    return (tokenizer_span_t){(uint32_t)(view->base + at), (uint32_t)(view->base + at + 1)};
}

static inline text_view_t text_view_part(const text_view_t *view, size_t start, size_t end)
{
    return (text_view_t){view->bytes + start, end - start, view->spans ? view->spans + start : NULL,
                         view->base + start};
}

static inline void aligned_text_reserve(aligned_text_t *out, size_t more)
{
    text_buffer_reserve(&out->text, more);
    if (!out->is_aligned || out->span_capacity >= out->text.length + more) return;
    out->span_capacity = out->text.capacity;
    out->spans = realloc(out->spans, out->span_capacity * sizeof *out->spans);
    QN_ASSERT(out->spans != NULL);
}

/* Appends bytes that all came from `span`. */
static inline void aligned_text_put(aligned_text_t *out, const void *bytes, size_t length, tokenizer_span_t span)
{
    if (length == 0) return;
    aligned_text_reserve(out, length);
    if (out->is_aligned)
        for (size_t i = 0; i < length; i++)
            out->spans[out->text.length + i] = span;
    memcpy(out->text.bytes + out->text.length, bytes, length);
    out->text.length += length;
}

/* Appends bytes [start, end) of a view unchanged. */
static inline void aligned_text_copy(aligned_text_t *out, const text_view_t *from, size_t start, size_t end)
{
    if (start == end) return;
    aligned_text_reserve(out, end - start);
    if (out->is_aligned)
        for (size_t i = start; i < end; i++)
            out->spans[out->text.length + i - start] = text_view_span(from, i);
    memcpy(out->text.bytes + out->text.length, from->bytes + start, end - start);
    out->text.length += end - start;
}

#endif
