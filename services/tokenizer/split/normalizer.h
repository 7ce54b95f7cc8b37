/* The normalizers of a tokenizer.json: text to text before anything is cut, remembering where each byte
 * came from when asked. Immutable once loaded. */
#ifndef QN_TOKENIZER_SPLIT_NORMALIZER_H
#define QN_TOKENIZER_SPLIT_NORMALIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "services/tokenizer/split/aligned_text.h"
#include "services/tokenizer/split/pattern.h"
#include "services/tokenizer/split/unicode_classes.h"

#define NORMALIZER_STEPS_MAX 32 /* Gemma and the like have 2 or 3 */

typedef enum {
    NORMALIZER_NFC,
    NORMALIZER_NFD,
    NORMALIZER_NFKC,
    NORMALIZER_NFKD,
    NORMALIZER_LOWERCASE,
    NORMALIZER_STRIP,         /* white space off the ends */
    NORMALIZER_STRIP_ACCENTS, /* marks out */
    NORMALIZER_PREPEND,       /* content before a text that is not empty */
    NORMALIZER_REPLACE,       /* pattern to content */
    NORMALIZER_BYTE_LEVEL,    /* bytes to their printable stand-ins */
    NORMALIZER_NMT,           /* control characters out, exotic spaces to space */
} normalizer_kind_t;

typedef struct {
    normalizer_kind_t kind;
    bool left, right;   /* STRIP */
    pattern_t *pattern; /* REPLACE, owned */
    uint8_t *content;   /* PREPEND, REPLACE; owned */
    size_t content_bytes;
} normalizer_step_t;

typedef struct {
    normalizer_step_t steps[NORMALIZER_STEPS_MAX];
    size_t count;
} normalizer_t;

void normalizer_fini(normalizer_t *normalizer);

/* Buffers of one thread; a zeroed one is valid. */
typedef struct {
    aligned_text_t texts[2];
    int32_t *codes; /* owned */
    size_t code_capacity;
    pattern_work_t pattern_work;
} normalizer_work_t;

void normalizer_work_fini(normalizer_work_t *work);

/* Runs all steps on `view`. *ret is a view of the result, of `view` itself when nothing changed, valid
 * until the next call with this work. Fails with QN_ERR_LIMIT. */
qn_err_t normalizer_run(const normalizer_t *normalizer, const unicode_classes_t *classes, normalizer_work_t *work,
                        text_view_t view, bool is_aligned, text_view_t *ret);

#endif
