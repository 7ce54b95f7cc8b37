/* Requests in flight. An exchange is one HTTP request waiting for its answer; a choice is one sequence that the other
 * services know by a request id. An exchange for text has prompts × best_of choices; one for a query (tokenize, cache
 * statistics) has none. Every id sent to another service is found here again, or the answer is dropped.
 *
 * Pure: records what arrived and says what that means; reply writers read it, handlers fill it, service.c acts.
 * Bounded by the capacity given at creation. One thread. Text and token positions are absolute: what arrives twice is
 * dropped, what is missing is seen. */
#ifndef QN_FRONTEND_REQUEST_REQUEST_TABLE_H
#define QN_FRONTEND_REQUEST_REQUEST_TABLE_H

#include <stdbool.h>
#include <stdint.h>

#include "services/frontend/request/generation.h"
#include "services/frontend/http/router.h"
#include "services/frontend/reply/token_log.h"

typedef enum { CHOICE_STOP, CHOICE_LENGTH, CHOICE_CANCELLED, CHOICE_FAILED } choice_finish_t;

/* The last word about a sequence. */
typedef struct {
    uint32_t prompt_tokens, cached_tokens, generated_tokens;
    choice_finish_t finish;
    bool by_stop_id, by_stop_string;
    uint32_t stop_id;
    uint16_t stop_string; /* index into generation.stop */
} choice_end_t;

/* Stages of a request's way, in order; ns of the one clock, 0: not reached. */
enum {
    STAGE_RECEIVED,
    STAGE_ENCODE_BEGIN,
    STAGE_SUBMITTED,
    STAGE_QUEUED,
    STAGE_PLANNED,
    STAGE_EXECUTED,
    STAGE_COMPUTED,
    STAGE_RESULTED,
    STAGE_DETOKENIZED,
    STAGE_COUNT,
};

typedef struct exchange exchange_t;

typedef struct {
    uint64_t request;     /* id the other services know */
    exchange_t *exchange; /* view */
    uint32_t index;       /* in exchange->choices: prompt * best_of + choice */
    reply_buffer_t text;  /* all output text so far, valid UTF-8 */
    token_log_t tokens;   /* all generated tokens */
    token_log_t prompt;   /* prompt tokens with log-probabilities; row 0 says nothing, see prompt_facts_t */
    bool ended;
    choice_end_t end; /* when ended */
    uint64_t stages[STAGE_COUNT];
    uint64_t last_ns;      /* when its last token was seen; 0: none yet */
    uint32_t timed_tokens; /* tokens that were there then */
    /* what a stream has shown */
    uint32_t shown_text, shown_tokens;
    bool shown_end, opened;
} choice_t;

/* What a reply needs to know of a prompt besides what was generated from it. */
typedef struct {
    bool wants_text;  /* echo of a prompt given as ids */
    bool wants_ids;   /* ids of a prompt given as text, with their bytes */
    bool wants_first; /* bytes of the first token of a prompt given as ids */
    bool has_text, has_ids, has_first;
    reply_buffer_t text;
    token_log_t ids;
    reply_buffer_t first;
    reply_buffer_t
        offsets; /* uint32_t each: characters of the text before each token's; see exchange_shows_offsets() */
} prompt_facts_t;

typedef enum { EXCHANGE_GENERATION, EXCHANGE_QUERY } exchange_kind_t;

/* A batch that is sent in an order of its own, some at a time (research/batch_schedule.c). */
#define EXCHANGE_BATCH_MAX 256u
typedef struct {
    uint32_t window; /* choices in flight at once, >= 1 */
    uint32_t count;
    uint32_t order[EXCHANGE_BATCH_MAX]; /* [count]: choices */
    reply_buffer_t members;             /* "{" and members of the answer, as JSON */
} exchange_batch_t;

struct exchange {
    exchange_kind_t kind;
    route_t route;
    void *connection; /* the HTTP request that waits; not touched here */
    char client_id[QN_CLIENT_REQUEST_MAX + 1];
    uint64_t first_id;       /* first internal id; also orders exchanges by age */
    uint32_t id_count;       /* ids first_id .. first_id + id_count - 1 belong to it */
    int64_t created_s;       /* Unix time */
    uint64_t hand_key;       /* of its body, see in_hand.h */
    uint64_t received_ns;    /* the one clock */
    uint64_t deadline_ns;    /* a query is given up then; UINT64_MAX: never */
    uint64_t written_ns;     /* last time the stream got bytes */
    uint64_t first_token_ns; /* 0: none yet */
    bool research;
    bool stream_begun;
    bool dirty; /* something arrived since the last look; in the dirty list */
    bool failed;
    http_error_t error; /* when failed */
    bool want_pieces;   /* /tokenize with return_token_strs */
    bool answered;      /* a query's answer is in `body` */
    reply_buffer_t body;
    generation_t generation; /* EXCHANGE_GENERATION; owned */
    uint32_t sent_parts;     /* questions about prompts, then choices, that were sent to the tokenizer */
    choice_t *choices;       /* owned; choice_count of them */
    uint32_t choice_count, ended_count;
    prompt_facts_t *facts;  /* owned; one per prompt */
    uint32_t facts_missing; /* answers still awaited before anything can be shown */
    exchange_t *next_dirty;
    exchange_batch_t *batch; /* owned; NULL: choices are sent in their order, all at once */
};

/* What an id means. */
typedef enum {
    REFERENCE_NONE,
    REFERENCE_CHOICE,
    REFERENCE_TEXT,
    REFERENCE_IDS,
    REFERENCE_FIRST,
    REFERENCE_QUERY
} reference_kind_t;

typedef struct {
    reference_kind_t kind;
    exchange_t *exchange;
    uint32_t index; /* of the choice or the prompt */
} reference_t;

typedef struct request_table request_table_t;

/* `first_id`: the first internal id it gives out. `capacity`: choices and queries at most. Returns owned. */
request_table_t *request_table_create(uint64_t first_id, uint32_t capacity);
/* Frees all exchanges too; accepts NULL. */
void request_table_destroy(request_table_t **table);

/* Takes *generation (emptied) and makes an exchange of prompts × best_of choices, with ids for them and for what must
 * be asked about each prompt. NULL: the capacity is reached. The caller fills in connection, client_id, times. */
exchange_t *request_table_open_generation(request_table_t *table, generation_t *generation);
/* NULL: the capacity is reached. */
exchange_t *request_table_open_query(request_table_t *table, route_t route);
/* Forgets the exchange and its ids: answers that still come are dropped. */
void request_table_close(request_table_t *table, exchange_t **exchange);

/* REFERENCE_NONE when the id is unknown (late answers of closed exchanges are). */
reference_t request_table_find(const request_table_t *table, uint64_t id);
/* True when the reply says where in the echoed prompt each of its tokens begins. */
bool exchange_shows_offsets(const exchange_t *exchange);
/* Ids of the prompt's questions; valid for those it wants. */
uint64_t exchange_facts_id(const exchange_t *exchange, uint32_t prompt, reference_kind_t kind);

/* Exchanges by age, oldest first; `index` below request_table_count. Closing one moves the later ones down. */
exchange_t *request_table_at(const request_table_t *table, uint32_t index);
uint32_t request_table_count(const request_table_t *table);
/* Choices and queries in flight. */
uint32_t request_table_active(const request_table_t *table);
bool request_table_has_room(const request_table_t *table, uint64_t more);

/* Marks for the next look; harmless when marked already. */
void request_table_mark(request_table_t *table, exchange_t *exchange);
/* Takes one marked exchange out of the list, oldest mark first; NULL when there is none. */
exchange_t *request_table_take_dirty(request_table_t *table);

typedef enum {
    CHOICE_NEW,      /* something was new */
    CHOICE_REPEATED, /* all of it was known: dropped */
    CHOICE_GAP,      /* something before it is missing: nothing was taken */
} choice_outcome_t;

/* Text [position, position + bytes) of the output. */
choice_outcome_t choice_add_text(choice_t *choice, uint32_t position, const char *text, uint32_t bytes);
/* Whether generated token `position` is the next one, a known one, or beyond a gap; the caller then adds it to
 * choice->tokens. */
choice_outcome_t choice_expect_token(const choice_t *choice, uint32_t position);
/* The same for prompt token `position` and choice->prompt. Position 0 may be left out (it has no log-probability): an
 * empty row then stands for it. */
choice_outcome_t choice_expect_prompt(choice_t *choice, uint32_t position);
/* Further ones after the first are ignored. */
void choice_end(choice_t *choice, const choice_end_t *end);
/* All choices of the exchange have ended and all facts are there. */
bool exchange_is_complete(const exchange_t *exchange);
/* Fails it once; the first error stays. */
void exchange_fail(exchange_t *exchange, const http_error_t *error);
uint32_t choice_prompt(const choice_t *choice);

/* Tokens of the prompt: exact once ended or when the ids are known, else 0. */
uint32_t choice_prompt_tokens(const choice_t *choice);

/* Fills order[0..n-1] with the indices (within the prompt's best_of choices) of the n choices to show, best mean
 * log-probability first; ties by index. `order` has room for QN_CHOICES_MAX. */
void exchange_rank(const exchange_t *exchange, uint32_t prompt, uint32_t *ret_order);

#endif
