/* What is this?      Replies about tokens, the cache and the model.
 * State owned:       none.
 * Must never:        ask anybody; it shows what it is given.
 * Read next:         handlers.c and routes_status.c, which call this. */
#include "services/frontend/reply/reply_query.h"

#include "services/frontend/reply/reply_parts.h"

void reply_query_tokens(const token_log_t *tokens, uint32_t max_model_len, bool with_pieces, reply_buffer_t *out)
{
    json_writer_t writer = json_writer_on(out);
    json_put_open(&writer, '{');
    json_put_member_unsigned(&writer, "count", tokens->count);
    json_put_member_unsigned(&writer, "max_model_len", max_model_len);
    json_put_key(&writer, "tokens");
    json_put_open(&writer, '[');
    for (uint32_t i = 0; i < tokens->count; i++)
        json_put_unsigned(&writer, tokens->rows[i].token.id);
    json_put_close(&writer, ']');
    json_put_key(&writer, "token_strs");
    if (with_pieces) {
        json_put_open(&writer, '[');
        for (uint32_t i = 0; i < tokens->count; i++) {
            const token_entry_t *entry = &tokens->rows[i].token;
            reply_token_t token = {.piece = token_log_piece(tokens, entry), .piece_bytes = entry->piece_bytes};
            reply_put_token(&writer, &token, false);
        }
        json_put_close(&writer, ']');
    } else {
        json_put_null(&writer);
    }
    json_put_close(&writer, '}');
}

void reply_query_text(const char *text, size_t bytes, reply_buffer_t *out)
{
    json_writer_t writer = json_writer_on(out);
    json_put_open(&writer, '{');
    json_put_key(&writer, "prompt");
    json_put_text(&writer, bytes ? text : "", bytes);
    json_put_close(&writer, '}');
}

void reply_query_cache(const cache_figures_t *figures, reply_buffer_t *out)
{
    json_writer_t writer = json_writer_on(out);
    json_put_open(&writer, '{');
    json_put_member_unsigned(&writer, "block_tokens", figures->block_tokens);
    json_put_member_unsigned(&writer, "block_bytes", figures->block_bytes);
    json_put_member_unsigned(&writer, "total_blocks", figures->total_blocks);
    json_put_member_unsigned(&writer, "used_blocks", figures->used_blocks);
    json_put_member_unsigned(&writer, "cached_blocks", figures->cached_blocks);
    json_put_member_unsigned(&writer, "free_blocks", figures->free_blocks);
    json_put_member_unsigned(&writer, "sequences", figures->sequences);
    json_put_member_unsigned(&writer, "lookups", figures->lookups);
    json_put_member_unsigned(&writer, "hits", figures->hits);
    json_put_member_unsigned(&writer, "misses", figures->lookups - figures->hits);
    json_put_member_unsigned(&writer, "lookup_tokens", figures->lookup_tokens);
    json_put_member_unsigned(&writer, "hit_tokens", figures->hit_tokens);
    json_put_key(&writer, "hit_rate");
    json_put_number(&writer, figures->lookup_tokens ? (double)figures->hit_tokens / (double)figures->lookup_tokens : 0);
    json_put_member_unsigned(&writer, "pins", figures->pins);
    json_put_member_unsigned(&writer, "pinned_blocks", figures->pinned_blocks);
    json_put_member_unsigned(&writer, "evictions", figures->evictions);
    json_put_member_unsigned(&writer, "grants", figures->grants);
    json_put_member_unsigned(&writer, "grants_short", figures->grants_short);
    json_put_member_unsigned(&writer, "flushes", figures->flushes);
    json_put_member_string(&writer, "policy", figures->policy);
    json_put_close(&writer, '}');
}

void reply_query_flushed(uint32_t freed_blocks, reply_buffer_t *out)
{
    json_writer_t writer = json_writer_on(out);
    json_put_open(&writer, '{');
    json_put_member_unsigned(&writer, "freed_blocks", freed_blocks);
    json_put_close(&writer, '}');
}

static void put_length(json_writer_t *writer, const char *key, uint32_t value, bool known)
{
    json_put_key(writer, key);
    if (known)
        json_put_unsigned(writer, value);
    else
        json_put_null(writer);
}

void reply_query_model(const served_model_t *model, json_writer_t *writer)
{
    json_put_open(writer, '{');
    json_put_member_string(writer, "id", model->id);
    json_put_member_string(writer, "object", "model");
    json_put_member_signed(writer, "created", model->created_s);
    json_put_member_string(writer, "owned_by", "quintet");
    json_put_member_string(writer, "root", model->path);
    json_put_member_null(writer, "parent");
    put_length(writer, "max_model_len", model->max_model_len, model->described);
    json_put_close(writer, '}');
}

void reply_query_model_info(const served_model_t *model, json_writer_t *writer)
{
    json_put_open(writer, '{');
    json_put_member_string(writer, "model_path", model->path);
    json_put_member_string(writer, "served_model_name", model->id);
    json_put_member_bool(writer, "is_generation", true);
    json_put_member_bool(writer, "described", model->described);
    json_put_member_string(writer, "architecture", model->described ? model->architecture : NULL);
    put_length(writer, "vocab_size", model->vocab_size, model->described);
    put_length(writer, "max_model_len", model->max_model_len, model->described);
    put_length(writer, "block_tokens", model->block_tokens, model->described);
    put_length(writer, "block_count", model->block_count, model->described);
    json_put_member_string(writer, "kv_dtype", model->described ? model->kv_dtype : NULL);
    json_put_member_unsigned(writer, "weights_bytes", model->weights_bytes);
    json_put_key(writer, "bos_id");
    if (model->described && model->bos_id >= 0)
        json_put_signed(writer, model->bos_id);
    else
        json_put_null(writer);
    json_put_key(writer, "eos_ids");
    json_put_open(writer, '[');
    for (uint32_t i = 0; i < model->eos_id_count; i++)
        json_put_unsigned(writer, model->eos_ids[i]);
    json_put_close(writer, ']');
    json_put_key(writer, "warnings");
    json_put_open(writer, '[');
    for (uint32_t i = 0; i < model->warnings.count; i++)
        json_put_string(writer, model->warnings.texts[i]);
    json_put_close(writer, ']');
    json_put_close(writer, '}');
}
