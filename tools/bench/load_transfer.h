/* One request of a load on its way: its bytes into a record, with the time of everything that comes. */
#ifndef QN_TOOLS_BENCH_LOAD_TRANSFER_H
#define QN_TOOLS_BENCH_LOAD_TRANSFER_H

#include <curl/curl.h>
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tools/bench/load_prompts.h"
#include "tools/bench/load_record.h"
#include "tools/client/http_client.h"
#include "tools/client/sse_reader.h"

/* Longest refusal that is kept; what is beyond is let go. */
#define LOAD_REFUSAL_BYTES 4096

/* Embedded, zeroed. The handle, buffers and places for gaps serve one request after the other. */
typedef struct {
    CURL *easy;             /* owned; its private pointer is this transfer */
    load_request_t request; /* owned */
    load_record_t record;
    load_gap_t *gaps; /* owned */
    size_t gap_count, gap_capacity;
    json_t *ids; /* owned; output ids; NULL: not asked for */

    sse_reader_t sse;
    uint64_t begin_ns, now_ns; /* of the load; of the bytes that are read now */
    bool is_stream, ended;     /* by [DONE] */
    char refusal[LOAD_REFUSAL_BYTES + 1];
    size_t refusal_bytes;
    char error[CURL_ERROR_SIZE];
} load_transfer_t;

/* What all requests have in common. */
typedef struct {
    const http_client_t *client; /* borrowed */
    struct curl_slist *headers;  /* borrowed */
    long timeout_ms;             /* 0: none */
    bool keeps_ids;
} load_transfer_options_t;

/* Makes the handle ready for `request` (taken); record's index and times are the caller's. QN_ERR_NO_MEMORY. */
qn_err_t load_transfer_begin(load_transfer_t *transfer, const load_transfer_options_t *options, load_request_t *request,
                             uint64_t begin_ns);
/* libcurl is done with it: completes the record. */
void load_transfer_end(load_transfer_t *transfer, CURLcode code, uint64_t now_ns);
/* Completes the record of a request that was taken back. */
void load_transfer_interrupt(load_transfer_t *transfer, uint64_t now_ns);
void load_transfer_fini(load_transfer_t *transfer);

#endif
