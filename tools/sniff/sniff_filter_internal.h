/* What the parser (sniff_filter_parse.c) makes and the evaluation (sniff_filter.c) reads. */
#ifndef QN_TOOLS_SNIFF_SNIFF_FILTER_INTERNAL_H
#define QN_TOOLS_SNIFF_SNIFF_FILTER_INTERNAL_H

#include "common/capture/capture_field.h"
#include "tools/sniff/sniff_filter.h"

typedef enum {
    FILTER_EQUAL,
    FILTER_UNEQUAL,
    FILTER_LESS,
    FILTER_LESS_EQUAL,
    FILTER_GREATER,
    FILTER_GREATER_EQUAL,
    FILTER_CONTAINS
} filter_operator_t;

typedef enum {
    FILTER_AND,
    FILTER_OR,
    FILTER_NOT, /* left, right */
    FILTER_SOURCE,
    FILTER_TARGET,
    FILTER_HOST,
    FILTER_TYPE,    /* bits */
    FILTER_REQUEST, /* numbers, names */
    FILTER_EPOCH,
    FILTER_SEQUENCE,
    FILTER_BYTES, /* operation, operand */
    FILTER_DROPPED,
    FILTER_FIELD, /* fields, operation, operand */
} filter_kind_t;

typedef struct {
    long double number;
    const char *text; /* in the arena */
    size_t text_bytes;
    bool is_number; /* the word reads as a number, or as true or false */
} filter_operand_t;

/* What a name means in messages of one type. */
typedef struct {
    const qn_capture_field_t *items;
    size_t count; /* 0: the type has no such field */
} filter_fields_t;

#define FILTER_NAMES_MAX 64
#define FILTER_NAMED_REQUESTS_MAX 4096

/* x-request-ids that were asked for, and the requests that bore one of them, as their Encodes told. */
typedef struct filter_names {
    struct filter_names *next; /* of another test */
    const char *texts[FILTER_NAMES_MAX];
    size_t text_count;
    uint64_t requests[FILTER_NAMED_REQUESTS_MAX]; /* a ring */
    size_t learned;
} filter_names_t;

/* A set of message types. */
typedef struct {
    uint64_t words[(QN_MESSAGE_COUNT + 63) / 64];
} filter_types_t;

static inline bool filter_types_has(const filter_types_t *types, unsigned type)
{
    return types->words[type / 64] >> (type % 64) & 1;
}

static inline void filter_types_add(filter_types_t *types, unsigned type)
{
    types->words[type / 64] |= 1ull << (type % 64);
}

typedef struct filter_node {
    filter_kind_t kind;
    const struct filter_node *left, *right;
    uint64_t bits;        /* 1 << service */
    filter_types_t types; /* of FILTER_TYPE */
    const uint64_t *numbers;
    size_t number_count;
    filter_names_t *names; /* of FILTER_REQUEST; NULL: none */
    filter_operator_t operation;
    filter_operand_t operand;
    const filter_fields_t *fields; /* [QN_MESSAGE_COUNT] */
} filter_node_t;

struct sniff_filter {
    qn_arena_t arena;          /* owns the nodes */
    const filter_node_t *root; /* NULL: takes everything */
    filter_types_t named_types;
    filter_names_t *names; /* of all tests */
};

/* The root is NULL for an empty text. Failure as of sniff_filter_parse. */
qn_err_t sniff_filter_parse_text(sniff_filter_t *filter, const char *text, size_t *ret_at);

#endif
