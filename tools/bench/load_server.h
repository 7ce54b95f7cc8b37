/* What a load has to know of the server: its model's name, length and vocabulary. */
#ifndef QN_TOOLS_BENCH_LOAD_SERVER_H
#define QN_TOOLS_BENCH_LOAD_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tools/bench/load_prompts.h"
#include "tools/client/http_client.h"

typedef struct {
    char model[256];
    uint32_t vocab_size, max_model_len;         /* 0: not told */
    uint32_t special_ids[LOAD_SPECIAL_IDS_MAX]; /* ascending, each once, below vocab_size */
    size_t special_count;
    bool is_quintet; /* it has /model_info; others are asked for /v1/models, as vLLM, SGLang and llama.cpp have it */
} load_server_t;

/* Asks the server. Returns an exit status, after a message when it is not EX_OK. */
int load_server_ask(http_client_t *client, load_server_t *ret_server);

#endif
