/* What is this?      The normalizing steps, each a function from a view to an aligned text.
 * State owned:       patterns and contents; the work buffers of a thread.
 * Must never:        lengthen a text beyond TOKENIZER_NORMALIZED_BYTES_MAX.
 * Read next:         aligned_text.h, pretokenizer.h. */
#include "services/tokenizer/split/normalizer.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "services/tokenizer/bpe/byte_level.h"
#include "services/tokenizer/tokenizer.h"

void normalizer_fini(normalizer_t *normalizer)
{
    for (size_t i = 0; i < normalizer->count; i++) {
        pattern_close(&normalizer->steps[i].pattern);
        free(normalizer->steps[i].content);
    }
    *normalizer = (normalizer_t){0};
}

void normalizer_work_fini(normalizer_work_t *work)
{
    aligned_text_fini(&work->texts[0]);
    aligned_text_fini(&work->texts[1]);
    free(work->codes);
    pattern_work_fini(&work->pattern_work);
    *work = (normalizer_work_t){0};
}

/* Span of a range of bytes taken as one. */
static tokenizer_span_t range_span(const text_view_t *view, size_t start, size_t end)
{
    return (tokenizer_span_t){text_view_span(view, start).start, text_view_span(view, end - 1).end};
}

static bool is_ascii(const text_view_t *view)
{
    for (size_t i = 0; i < view->length; i++)
        if (view->bytes[i] & 0x80) return false;
    return true;
}

/* ---- Unicode normal forms ---- */

static utf8proc_option_t form_options(normalizer_kind_t kind)
{
    switch (kind) {
    case NORMALIZER_NFC: return UTF8PROC_STABLE | UTF8PROC_COMPOSE;
    case NORMALIZER_NFKC: return UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT;
    case NORMALIZER_NFD: return UTF8PROC_STABLE | UTF8PROC_DECOMPOSE;
    default: return UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT;
    }
}

/* Normalizes bytes [start, end), which neither side can interact with. */
static void put_normal_form(normalizer_work_t *work, utf8proc_option_t options, const text_view_t *view, size_t start,
                            size_t end, aligned_text_t *out)
{
    for (;;) {
        utf8proc_ssize_t count = utf8proc_decompose(view->bytes + start, (utf8proc_ssize_t)(end - start), work->codes,
                                                    (utf8proc_ssize_t)work->code_capacity, options);
        if (count < 0) { /* cannot happen on valid UTF-8 of bounded length; keep the text */
            aligned_text_copy(out, view, start, end);
            return;
        }
        if ((size_t)count > work->code_capacity) {
            work->code_capacity = (size_t)count * 2;
            work->codes = realloc(work->codes, work->code_capacity * sizeof *work->codes);
            QN_ASSERT(work->codes != NULL);
            continue;
        }
        count = utf8proc_normalize_utf32(work->codes, count, options);
        tokenizer_span_t span = range_span(view, start, end);
        for (utf8proc_ssize_t i = 0; i < count; i++) {
            uint8_t bytes[4];
            unsigned size = unicode_encode((uint32_t)work->codes[i], bytes);
            aligned_text_put(out, bytes, size, span);
        }
        return;
    }
}

/* End of the stretch from `at` that no form changes: ASCII, and for NFC every character that is composed
 * and combines with nothing before it. Its last character may still combine with what follows. */
static size_t stable_end(const unicode_classes_t *classes, const text_view_t *view, size_t at, bool is_nfc)
{
    while (at < view->length) {
        unsigned bytes;
        uint32_t code = unicode_decode(view->bytes + at, &bytes);
        if (code >= 0x80 && (!is_nfc || (unicode_class(classes, code) & UNICODE_NFC_UNSAFE))) break;
        at += bytes;
    }
    return at;
}

/* End of the piece of text from `at` that is normalized at once: up to the next character that interacts
 * with nothing before it. */
static size_t joined_end(const unicode_classes_t *classes, const text_view_t *view, size_t at)
{
    at += unicode_lead_bytes(view->bytes[at]);
    while (at < view->length) {
        unsigned bytes;
        uint32_t code = unicode_decode(view->bytes + at, &bytes);
        if (!(unicode_class(classes, code) & UNICODE_JOINS_BEFORE)) break;
        at += bytes;
    }
    return at;
}

static bool is_unnormalized(const unicode_classes_t *classes, const text_view_t *view, size_t at)
{
    unsigned bytes;
    return unicode_class(classes, unicode_decode(view->bytes + at, &bytes)) & UNICODE_UNNORMALIZED;
}

static void run_normal_form(normalizer_kind_t kind, const unicode_classes_t *classes, normalizer_work_t *work,
                            const text_view_t *view, aligned_text_t *out)
{
    bool is_nfc = kind == NORMALIZER_NFC;
    for (size_t at = 0; at < view->length;) {
        size_t stable = stable_end(classes, view, at, is_nfc);
        if (stable > at && stable < view->length) stable = unicode_step_back(view->bytes, stable);
        aligned_text_copy(out, view, at, stable);
        if (stable == view->length) return;
        if (is_unnormalized(classes, view, stable)) {
            at = stable + unicode_lead_bytes(view->bytes[stable]);
            aligned_text_copy(out, view, stable, at);
            continue;
        }
        at = joined_end(classes, view, stable);
        put_normal_form(work, form_options(kind), view, stable, at, out);
    }
}

/* ---- one character at a time ---- */

static void run_lowercase(const text_view_t *view, aligned_text_t *out)
{
    unsigned bytes;
    for (size_t at = 0; at < view->length; at += bytes) {
        uint32_t code = unicode_decode(view->bytes + at, &bytes);
        uint8_t lower[4];
        tokenizer_span_t span = range_span(view, at, at + bytes);
        if (code == 0x130) { /* the one character whose lower case has two: i and a dot above */
            aligned_text_put(out, "i\xCC\x87", 3, span);
            continue;
        }
        unsigned size = unicode_encode((uint32_t)utf8proc_tolower((utf8proc_int32_t)code), lower);
        aligned_text_put(out, lower, size, span);
    }
}

static void run_strip(const normalizer_step_t *step, const unicode_classes_t *classes, const text_view_t *view,
                      aligned_text_t *out)
{
    size_t start = 0, end = view->length;
    unsigned bytes;
    while (step->left && start < end &&
           (unicode_class(classes, unicode_decode(view->bytes + start, &bytes)) & UNICODE_SPACE))
        start += bytes;
    while (step->right && end > start) {
        size_t last = unicode_step_back(view->bytes, end);
        if (!(unicode_class(classes, unicode_decode(view->bytes + last, &bytes)) & UNICODE_SPACE)) break;
        end = last;
    }
    aligned_text_copy(out, view, start, end);
}

static void run_strip_accents(const unicode_classes_t *classes, const text_view_t *view, aligned_text_t *out)
{
    unsigned bytes;
    for (size_t at = 0; at < view->length; at += bytes) {
        uint32_t code = unicode_decode(view->bytes + at, &bytes);
        if (!(unicode_class(classes, code) & UNICODE_MARK)) aligned_text_copy(out, view, at, at + bytes);
    }
}

static bool nmt_drops(uint32_t code)
{
    return (code >= 0x01 && code <= 0x08) || code == 0x0B || (code >= 0x0E && code <= 0x1F) || code == 0x7F ||
           code == 0x8F || code == 0x9F;
}

static bool nmt_is_space(uint32_t code)
{
    return code == 0x09 || code == 0x0A || code == 0x0C || code == 0x0D || code == 0x1680 ||
           (code >= 0x200B && code <= 0x200F) || code == 0x2028 || code == 0x2029 || code == 0x2581 || code == 0xFEFF ||
           code == 0xFFFD;
}

static void run_nmt(const text_view_t *view, aligned_text_t *out)
{
    unsigned bytes;
    for (size_t at = 0; at < view->length; at += bytes) {
        uint32_t code = unicode_decode(view->bytes + at, &bytes);
        if (nmt_drops(code)) continue;
        if (nmt_is_space(code))
            aligned_text_put(out, " ", 1, range_span(view, at, at + bytes));
        else
            aligned_text_copy(out, view, at, at + bytes);
    }
}

static void run_byte_level(const text_view_t *view, aligned_text_t *out)
{
    tokenizer_span_t span = {0, 0}; /* all bytes of a character come from the whole of it */
    for (size_t at = 0; at < view->length; at++) {
        uint8_t character[4];
        if ((view->bytes[at] & 0xC0) != 0x80) span = range_span(view, at, at + unicode_lead_bytes(view->bytes[at]));
        unsigned size = unicode_encode(byte_level_character(view->bytes[at]), character);
        aligned_text_put(out, character, size, span);
    }
}

/* ---- content ---- */

static void run_prepend(const normalizer_step_t *step, const text_view_t *view, aligned_text_t *out)
{
    if (view->length == 0) return;
    aligned_text_put(out, step->content, step->content_bytes, range_span(view, 0, unicode_lead_bytes(view->bytes[0])));
    aligned_text_copy(out, view, 0, view->length);
}

static qn_err_t run_replace(const normalizer_step_t *step, normalizer_work_t *work, const text_view_t *view,
                            aligned_text_t *out)
{
    pattern_walk_t walk = pattern_walk(view->bytes, view->length);
    size_t done = 0;
    while (view->length > 0) {
        bool found;
        size_t start, end;
        qn_err_t err = pattern_next(step->pattern, &work->pattern_work, &walk, &found, &start, &end);
        if (err) return err;
        if (!found) break;
        aligned_text_copy(out, view, done, start);
        tokenizer_span_t span =
            start < end ? range_span(view, start, end) : text_view_span(view, end > 0 ? end - 1 : 0);
        aligned_text_put(out, step->content, step->content_bytes, span);
        done = end;
        if (out->text.length > TOKENIZER_NORMALIZED_BYTES_MAX) break;
    }
    aligned_text_copy(out, view, done, view->length);
    return QN_OK;
}

static qn_err_t run_step(const normalizer_step_t *step, const unicode_classes_t *classes, normalizer_work_t *work,
                         const text_view_t *view, aligned_text_t *out)
{
    switch (step->kind) {
    case NORMALIZER_NFC:
    case NORMALIZER_NFD:
    case NORMALIZER_NFKC:
    case NORMALIZER_NFKD: run_normal_form(step->kind, classes, work, view, out); break;
    case NORMALIZER_LOWERCASE: run_lowercase(view, out); break;
    case NORMALIZER_STRIP: run_strip(step, classes, view, out); break;
    case NORMALIZER_STRIP_ACCENTS: run_strip_accents(classes, view, out); break;
    case NORMALIZER_PREPEND: run_prepend(step, view, out); break;
    case NORMALIZER_REPLACE: return run_replace(step, work, view, out);
    case NORMALIZER_BYTE_LEVEL: run_byte_level(view, out); break;
    case NORMALIZER_NMT: run_nmt(view, out); break;
    }
    return QN_OK;
}

/* ASCII is the same in every normal form. */
static bool leaves_alone(const normalizer_step_t *step, const text_view_t *view)
{
    return step->kind <= NORMALIZER_NFKD && is_ascii(view);
}

qn_err_t normalizer_run(const normalizer_t *normalizer, const unicode_classes_t *classes, normalizer_work_t *work,
                        text_view_t view, bool is_aligned, text_view_t *ret)
{
    size_t base = view.base;
    for (size_t i = 0, target = 0; i < normalizer->count; i++) {
        if (leaves_alone(&normalizer->steps[i], &view)) continue;
        aligned_text_t *out = &work->texts[target];
        aligned_text_reset(out, is_aligned);
        qn_err_t err = run_step(&normalizer->steps[i], classes, work, &view, out);
        if (err) return err;
        if (out->text.length > TOKENIZER_NORMALIZED_BYTES_MAX)
            return qn_fail(QN_ERR_LIMIT, "text: grows beyond %u bytes when normalized; send less text at once",
                           TOKENIZER_NORMALIZED_BYTES_MAX);
        view = aligned_text_view(out, base);
        target = 1 - target;
    }
    *ret = view;
    return QN_OK;
}
