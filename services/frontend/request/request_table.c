/* What is this?      The table of requests in flight.
 * State owned:       exchanges, their choices and what arrived for them.
 * Must never:        touch a connection, send, read a clock, or take the same byte or token twice.
 * Read next:         handlers.c, which fills it; exchange_reply.c, which acts on what became complete. */
#include "services/frontend/request/request_table.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"

struct request_table {
    exchange_t **items; /* by first_id, ascending: ids are given out in order */
    uint32_t count, capacity;
    uint32_t active; /* choices and queries */
    uint64_t next_id;
    exchange_t *dirty_first, *dirty_last;
};

static void *zalloc(size_t count, size_t bytes)
{
    void *memory = calloc(count ? count : 1, bytes);
    QN_ASSERT(memory != NULL);
    return memory;
}

request_table_t *request_table_create(uint64_t first_id, uint32_t capacity)
{
    request_table_t *table = zalloc(1, sizeof *table);
    table->items = zalloc(capacity, sizeof(exchange_t *));
    table->capacity = capacity;
    table->next_id = first_id;
    return table;
}

static void exchange_free(exchange_t *exchange)
{
    for (uint32_t i = 0; i < exchange->choice_count; i++) {
        reply_buffer_fini(&exchange->choices[i].text);
        token_log_fini(&exchange->choices[i].tokens);
        token_log_fini(&exchange->choices[i].prompt);
    }
    for (uint32_t i = 0; i < exchange->generation.prompt_count; i++) {
        reply_buffer_fini(&exchange->facts[i].text);
        reply_buffer_fini(&exchange->facts[i].first);
        reply_buffer_fini(&exchange->facts[i].offsets);
        token_log_fini(&exchange->facts[i].ids);
    }
    reply_buffer_fini(&exchange->body);
    if (exchange->batch) reply_buffer_fini(&exchange->batch->members);
    free(exchange->batch);
    free(exchange->choices);
    free(exchange->facts);
    generation_fini(&exchange->generation);
    free(exchange);
}

void request_table_destroy(request_table_t **table)
{
    if (!*table) return;
    for (uint32_t i = 0; i < (*table)->count; i++)
        exchange_free((*table)->items[i]);
    free((*table)->items);
    free(*table);
    *table = NULL;
}

bool request_table_has_room(const request_table_t *table, uint64_t more)
{
    return table->count < table->capacity && more <= table->capacity - table->active;
}

static exchange_t *open_exchange(request_table_t *table, exchange_kind_t kind, uint32_t id_count)
{
    exchange_t *exchange = zalloc(1, sizeof *exchange);
    exchange->kind = kind;
    exchange->first_id = table->next_id;
    exchange->id_count = id_count;
    exchange->deadline_ns = UINT64_MAX;
    table->next_id += id_count;
    table->items[table->count++] = exchange;
    return exchange;
}

bool exchange_shows_offsets(const exchange_t *exchange)
{
    const generation_t *generation = &exchange->generation;
    return generation->echo && generation->logprobs != GENERATION_NONE && !generation->truncate_prompt_tokens;
}

/* Which questions about a prompt must be answered before the reply can be written. */
static void decide_facts(exchange_t *exchange)
{
    const generation_t *generation = &exchange->generation;
    bool counts_prompt =
        generation->stream && (generation->continuous_usage || generation->api != GENERATION_COMPLETIONS);
    for (uint32_t i = 0; i < generation->prompt_count; i++) {
        prompt_facts_t *facts = &exchange->facts[i];
        bool is_text = generation->prompts[i].text.data != NULL;
        bool shows_prompt = generation_for(generation, i)->prompt_logprobs != GENERATION_NONE;
        facts->wants_text = !is_text && generation->echo;
        facts->wants_first = !is_text && shows_prompt;
        facts->wants_ids = is_text && (shows_prompt || counts_prompt || generation->return_token_ids ||
                                       (generation->echo && generation->truncate_prompt_tokens));
        exchange->facts_missing += (uint32_t)facts->wants_text + facts->wants_first + facts->wants_ids;
    }
}

#define FACT_IDS 3u /* per prompt: REFERENCE_TEXT, REFERENCE_IDS, REFERENCE_FIRST */

exchange_t *request_table_open_generation(request_table_t *table, generation_t *generation)
{
    uint32_t choices = generation->prompt_count * generation->best_of; /* both bounded by limits.h */
    if (!request_table_has_room(table, choices)) return NULL;
    exchange_t *exchange = open_exchange(table, EXCHANGE_GENERATION, choices + FACT_IDS * generation->prompt_count);
    table->active += choices;
    exchange->generation = *generation;
    *generation = (generation_t){0};
    exchange->choices = zalloc(choices, sizeof *exchange->choices);
    exchange->choice_count = choices;
    exchange->facts = zalloc(exchange->generation.prompt_count, sizeof *exchange->facts);
    for (uint32_t i = 0; i < choices; i++)
        exchange->choices[i] = (choice_t){.request = exchange->first_id + i, .exchange = exchange, .index = i};
    decide_facts(exchange);
    return exchange;
}

exchange_t *request_table_open_query(request_table_t *table, route_t route)
{
    if (!request_table_has_room(table, 1)) return NULL;
    exchange_t *exchange = open_exchange(table, EXCHANGE_QUERY, 1);
    exchange->route = route;
    table->active++;
    return exchange;
}

/* Index of the exchange that owns `id`, or of where it would be. */
static uint32_t search(const request_table_t *table, uint64_t id)
{
    uint32_t low = 0, high = table->count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (table->items[middle]->first_id + table->items[middle]->id_count <= id)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void unmark(request_table_t *table, exchange_t *exchange)
{
    exchange_t *before = NULL;
    for (exchange_t *at = table->dirty_first; at; before = at, at = at->next_dirty) {
        if (at != exchange) continue;
        if (before)
            before->next_dirty = at->next_dirty;
        else
            table->dirty_first = at->next_dirty;
        if (table->dirty_last == at) table->dirty_last = before;
        return;
    }
}

void request_table_close(request_table_t *table, exchange_t **exchange)
{
    exchange_t *leaving = *exchange;
    uint32_t index = search(table, leaving->first_id);
    QN_ASSERT(index < table->count && table->items[index] == leaving);
    memmove(&table->items[index], &table->items[index + 1], (table->count - index - 1) * sizeof *table->items);
    table->count--;
    table->active -= leaving->kind == EXCHANGE_QUERY ? 1 : leaving->choice_count;
    if (leaving->dirty) unmark(table, leaving);
    exchange_free(leaving);
    *exchange = NULL;
}

reference_t request_table_find(const request_table_t *table, uint64_t id)
{
    uint32_t index = search(table, id);
    if (index == table->count || id < table->items[index]->first_id) return (reference_t){.kind = REFERENCE_NONE};
    exchange_t *exchange = table->items[index];
    uint32_t offset = (uint32_t)(id - exchange->first_id);
    if (exchange->kind == EXCHANGE_QUERY) return (reference_t){.kind = REFERENCE_QUERY, .exchange = exchange};
    if (offset < exchange->choice_count)
        return (reference_t){.kind = REFERENCE_CHOICE, .exchange = exchange, .index = offset};
    offset -= exchange->choice_count;
    return (reference_t){.kind = (reference_kind_t)(REFERENCE_TEXT + offset % FACT_IDS),
                         .exchange = exchange,
                         .index = offset / FACT_IDS};
}

uint64_t exchange_facts_id(const exchange_t *exchange, uint32_t prompt, reference_kind_t kind)
{
    return exchange->first_id + exchange->choice_count + prompt * FACT_IDS + (uint32_t)(kind - REFERENCE_TEXT);
}

exchange_t *request_table_at(const request_table_t *table, uint32_t index)
{
    QN_ASSERT(index < table->count);
    return table->items[index];
}

uint32_t request_table_count(const request_table_t *table) { return table->count; }

uint32_t request_table_active(const request_table_t *table) { return table->active; }

void request_table_mark(request_table_t *table, exchange_t *exchange)
{
    if (exchange->dirty) return;
    exchange->dirty = true;
    exchange->next_dirty = NULL;
    if (table->dirty_last)
        table->dirty_last->next_dirty = exchange;
    else
        table->dirty_first = exchange;
    table->dirty_last = exchange;
}

exchange_t *request_table_take_dirty(request_table_t *table)
{
    exchange_t *exchange = table->dirty_first;
    if (!exchange) return NULL;
    table->dirty_first = exchange->next_dirty;
    if (!table->dirty_first) table->dirty_last = NULL;
    exchange->dirty = false;
    return exchange;
}

/* ---- choices ---- */

choice_outcome_t choice_add_text(choice_t *choice, uint32_t position, const char *text, uint32_t bytes)
{
    if (position > choice->text.bytes) return CHOICE_GAP;
    size_t known = choice->text.bytes - position;
    if (known >= bytes) return CHOICE_REPEATED;
    reply_buffer_append(&choice->text, text + known, bytes - known);
    return CHOICE_NEW;
}

choice_outcome_t choice_expect_token(const choice_t *choice, uint32_t position)
{
    if (position < choice->tokens.count) return CHOICE_REPEATED;
    return position == choice->tokens.count ? CHOICE_NEW : CHOICE_GAP;
}

choice_outcome_t choice_expect_prompt(choice_t *choice, uint32_t position)
{
    if (choice->prompt.count == 0 && position == 1) token_log_add(&choice->prompt, 0, NAN, 0, NULL, 0);
    if (position < choice->prompt.count) return CHOICE_REPEATED;
    return position == choice->prompt.count ? CHOICE_NEW : CHOICE_GAP;
}

void choice_end(choice_t *choice, const choice_end_t *end)
{
    if (choice->ended) return;
    choice->ended = true;
    choice->end = *end;
    choice->exchange->ended_count++;
}

bool exchange_is_complete(const exchange_t *exchange)
{
    return exchange->kind == EXCHANGE_GENERATION && exchange->ended_count == exchange->choice_count &&
           exchange->facts_missing == 0;
}

void exchange_fail(exchange_t *exchange, const http_error_t *error)
{
    if (exchange->failed) return;
    exchange->failed = true;
    exchange->error = *error;
}

uint32_t choice_prompt(const choice_t *choice) { return choice->index / choice->exchange->generation.best_of; }

uint32_t choice_prompt_tokens(const choice_t *choice)
{
    if (choice->ended) return choice->end.prompt_tokens;
    const exchange_t *exchange = choice->exchange;
    uint32_t prompt = choice_prompt(choice);
    if (exchange->facts[prompt].has_ids) return exchange->facts[prompt].ids.count;
    return exchange->generation.prompts[prompt].id_count;
}

void exchange_rank(const exchange_t *exchange, uint32_t prompt, uint32_t *ret_order)
{
    const generation_t *generation = &exchange->generation;
    const choice_t *choices = &exchange->choices[prompt * generation->best_of];
    double means[QN_CHOICES_MAX];
    for (uint32_t i = 0; i < generation->best_of; i++) {
        means[i] = token_log_mean(&choices[i].tokens);
        uint32_t at = i; /* insertion sort: at most 128, and equal means keep their order */
        for (; generation->best_of > generation->n && at > 0 && means[ret_order[at - 1]] < means[i]; at--)
            ret_order[at] = ret_order[at - 1];
        ret_order[at] = i;
    }
}
