/* The files beside a tokenizer.json, from anywhere: tokenizer_config.json, special_tokens_map.json, added_tokens.json and
 * config.json, with a zero byte between, then a text. Opening may refuse; what opens must encode and decode. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "common/assert.h"
#include "common/watch/log.h"
#include "services/tokenizer/tokenizer.h"

#define FILES 4

static const char tokenizer_json[] =
    "{\"added_tokens\":[{\"id\":7,\"content\":\"<x>\",\"lstrip\":true,\"normalized\":true},{\"id\":0,\"content\":\"<s>\","
    "\"special\":true,\"normalized\":false}],\"normalizer\":{\"type\":\"Lowercase\"},\"pre_tokenizer\":{\"type\":"
    "\"Sequence\",\"pretokenizers\":[{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}]},"
    "\"model\":{\"type\":\"BPE\",\"vocab\":{\"<s>\":0,\"a\":1,\"b\":2,\"ab\":3,\"▁\":4,\"</s>\":5},\"merges\":[\"a b\"]}}";

static void encode_and_decode(const tokenizer_t *t, const char *text, size_t bytes)
{
    tokenizer_scratch_t *scratch = tokenizer_scratch_open(t);
    tokenizer_tokens_t tokens = {0};
    text_buffer_t decoded = {0};
    for (unsigned flags = 0; flags < 4; flags++) { /* ADD_SPECIAL and PARSE_SPECIAL */
        if (tokenizer_encode(t, scratch, text, bytes, flags, &tokens) != QN_OK) continue;
        for (size_t i = 0; i < tokens.count; i++)
            QN_ASSERT(tokens.ids[i] < tokenizer_id_limit(t));
        decoded.length = 0;
        tokenizer_decode(t, tokens.ids, tokens.count, TOKENIZER_SKIP_SPECIAL, &decoded);
    }
    for (size_t i = 0; i < tokenizer_note_count(t); i++)
        QN_ASSERT(strlen(tokenizer_note(t, i)) > 0);
    text_buffer_fini(&decoded);
    tokenizer_tokens_fini(&tokens);
    tokenizer_scratch_close(&scratch);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    tokenizer_file_t parts[FILES] = {0};
    for (size_t i = 0; i < FILES; i++) {
        const uint8_t *zero = size ? memchr(data, 0, size) : NULL;
        size_t bytes = zero ? (size_t)(zero - data) : size;
        if (bytes > 0) parts[i] = (tokenizer_file_t){data, bytes};
        bytes += zero != NULL;
        data += bytes;
        size -= bytes;
    }
    tokenizer_files_t files = {.tokenizer = {tokenizer_json, sizeof tokenizer_json - 1},
                               .config = parts[0],
                               .special_tokens_map = parts[1],
                               .added_tokens = parts[2],
                               .model_config = parts[3]};
    tokenizer_t *t = NULL;
    qn_log_set_level(QN_LOG_ERROR);
    if (tokenizer_open_memory(&files, &t) != QN_OK) return 0;
    encode_and_decode(t, (const char *)data, size < 4096 ? size : 4096);
    tokenizer_close(&t);
    return 0;
}
