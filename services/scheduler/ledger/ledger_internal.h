/* What ledger.c and ledger_replay.c share: the mapping's header, the entries, and the few steps that a record and its
 * replay have in common. Nobody else includes this. */
#ifndef QN_SCHEDULER_LEDGER_LEDGER_INTERNAL_H
#define QN_SCHEDULER_LEDGER_LEDGER_INTERNAL_H

#include <stdatomic.h>

#include "services/scheduler/ledger/ledger.h"
#include "services/scheduler/ledger/ledger_record.h"

#define LEDGER_NONE UINT32_MAX

/* First bytes of the mapping. */
typedef struct {
    _Atomic uint64_t magic;              /* written last when formatting */
    uint32_t request_bytes, token_bytes; /* sizes of the record structs: the version */
    uint64_t area_bytes;
    uint64_t first_sequence[2]; /* of the records of each area */
    _Atomic uint64_t active;    /* 0 or 1: the switch of a compaction */
} ledger_header_t;

typedef struct {
    request_t request;       /* request.prompt_tokens == 0: unused */
    uint32_t next_in_bucket; /* or in the list of unused entries */
    uint32_t previous, next; /* by arrival */
} ledger_entry_t;

struct ledger {
    ledger_header_t *header;
    uint8_t *areas[2];
    uint32_t active;
    size_t area_bytes, used_bytes;
    uint64_t next_sequence;
    uint64_t next_arrival;
    uint64_t reserved_bytes; /* records of the living with all they may generate */
    uint64_t living_bytes;   /* records of the living as they are, before padding */
    uint64_t compactions;

    ledger_entry_t *entries;
    uint32_t requests_max, count;
    uint32_t unused;
    uint32_t *buckets;
    uint32_t bucket_mask;
    uint32_t oldest, newest;
};

/* Record bytes of the request with all that it may generate. */
uint64_t ledger_reservation(const request_t *request);

/* Gives the request in `filled` (its arrays move) an entry at the end of the arrival list. */
request_t *ledger_add_entry(ledger_t *ledger, const request_t *filled);

void ledger_remove_entry(ledger_t *ledger, request_t *request);

/* `top`: its alternatives, of any alignment. */
void ledger_add_token(ledger_t *ledger, request_t *request, const record_token_t *token, const void *top);

/* The head of the first free bytes of the active area. */
uint8_t *ledger_tail(const ledger_t *ledger);

/* Reads the active area up to its first record that is torn or makes no sense, which is rolled back. */
void ledger_replay_records(ledger_t *ledger, ledger_replay_t *ret_replay);

#endif
