/* Replies that are not generated text: tokens, cache statistics, models. One JSON object per call. */
#ifndef QN_FRONTEND_REPLY_REPLY_QUERY_H
#define QN_FRONTEND_REPLY_REPLY_QUERY_H

#include <stdbool.h>
#include <stdint.h>

#include "common/model/generation_config.h"
#include "common/limits.h"
#include "common/model/model_warnings.h"
#include "services/frontend/reply/json_writer.h"
#include "services/frontend/reply/token_log.h"

/* What is known of the model served. `id` is set from the start, the rest by memory's description. */
typedef struct {
    char id[257]; /* ModelDescription.model has at most 256 bytes */
    char path[QN_PATH_MAX];
    char architecture[QN_NAME_MAX];
    const char *kv_dtype;     /* "f32" */
    bool described, has_text; /* has_text: the tokenizer reads text, not ids alone */
    uint32_t layers, heads;   /* 0: not known */
    uint32_t vocab_size, max_model_len, block_tokens, block_count;
    int32_t bos_id;
    uint32_t eos_ids[QN_STOP_IDS_MAX];
    uint32_t eos_id_count;
    uint64_t weights_bytes;
    qn_model_warnings_t warnings;    /* what memory found odd in the model's files */
    qn_generation_config_t defaults; /* generation_config.json's */
    int64_t created_s;               /* Unix time the frontend started */
} served_model_t;

typedef struct {
    uint32_t block_tokens, total_blocks, used_blocks, cached_blocks, free_blocks, sequences;
    uint32_t pins, pinned_blocks;
    uint64_t block_bytes, lookups, hits, lookup_tokens, hit_tokens, evictions, grants, grants_short, flushes;
    const char *policy; /* C string */
} cache_figures_t;

/* vLLM's {"count", "max_model_len", "tokens", "token_strs"}. */
void reply_query_tokens(const token_log_t *tokens, uint32_t max_model_len, bool with_pieces, reply_buffer_t *out);
/* vLLM's {"prompt"}. */
void reply_query_text(const char *text, size_t bytes, reply_buffer_t *out);
void reply_query_cache(const cache_figures_t *figures, reply_buffer_t *out);
void reply_query_flushed(uint32_t freed_blocks, reply_buffer_t *out);
/* One model as OpenAI's list shows it, with vLLM's max_model_len. */
void reply_query_model(const served_model_t *model, json_writer_t *writer);
/* SGLang's /model_info. */
void reply_query_model_info(const served_model_t *model, json_writer_t *writer);

#endif
