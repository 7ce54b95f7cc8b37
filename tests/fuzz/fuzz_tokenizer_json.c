/* A tokenizer.json from anywhere, and text for it. The input is the file, a zero byte, then the text. Opening may
 * refuse; what opens must encode and decode anything, and give text token by token as it does at once. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "common/assert.h"
#include "common/watch/log.h"
#include "services/tokenizer/decode/detokenizer.h"
#include "services/tokenizer/tokenizer.h"

#define TEXT_BYTES_MAX 4096 /* expressions may take their time on more */

static void decode_both_ways(const tokenizer_t *t, const tokenizer_tokens_t *tokens, unsigned flags)
{
    text_buffer_t whole = {0}, parts = {0};
    detokenizer_t d;
    tokenizer_decode(t, tokens->ids, tokens->count, flags, &whole);
    detokenizer_init(&d, t, flags);
    for (size_t i = 0; i < tokens->count; i++) {
        detokenizer_push(&d, tokens->ids[i], &parts);
        QN_ASSERT(parts.length <= whole.length);
    }
    detokenizer_flush(&d, &parts);
    QN_ASSERT(parts.length == whole.length);
    QN_ASSERT(whole.length == 0 || memcmp(parts.bytes, whole.bytes, whole.length) == 0);
    detokenizer_fini(&d);
    text_buffer_fini(&whole);
    text_buffer_fini(&parts);
}

static void encode_all_ways(const tokenizer_t *t, const char *text, size_t bytes)
{
    tokenizer_scratch_t *scratch = tokenizer_scratch_open(t);
    tokenizer_tokens_t tokens = {0}, spanned = {0};
    for (unsigned flags = 0; flags < 4; flags++) { /* ADD_SPECIAL and PARSE_SPECIAL */
        qn_err_t err = tokenizer_encode(t, scratch, text, bytes, flags, &tokens);
        if (err) continue;
        QN_ASSERT(tokenizer_encode(t, scratch, text, bytes, flags | TOKENIZER_WITH_SPANS, &spanned) == QN_OK);
        QN_ASSERT(spanned.count == tokens.count);
        for (size_t i = 0; i < tokens.count; i++) {
            QN_ASSERT(tokens.ids[i] == spanned.ids[i] && tokens.ids[i] < tokenizer_id_limit(t));
            QN_ASSERT(spanned.spans[i].start <= bytes && spanned.spans[i].end <= bytes);
        }
        decode_both_ways(t, &tokens, 0);
        decode_both_ways(t, &tokens, TOKENIZER_SKIP_SPECIAL);
    }
    tokenizer_tokens_fini(&tokens);
    tokenizer_tokens_fini(&spanned);
    tokenizer_scratch_close(&scratch);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *zero = size ? memchr(data, 0, size) : NULL;
    size_t json_bytes = zero ? (size_t)(zero - data) : size;
    const char *text = zero ? (const char *)zero + 1 : "";
    size_t text_bytes = zero ? size - json_bytes - 1 : 0;
    tokenizer_t *t = NULL;
    qn_log_set_level(QN_LOG_ERROR);
    if (tokenizer_open_memory(&(tokenizer_files_t){.tokenizer = {data, json_bytes}}, &t) != QN_OK) return 0;
    encode_all_ways(t, text, text_bytes < TEXT_BYTES_MAX ? text_bytes : TEXT_BYTES_MAX);
    tokenizer_close(&t);
    return 0;
}
