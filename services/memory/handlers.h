/* Between memory's messages and its nouns: the handler table, and the state both sides of it share. */
#ifndef QN_MEMORY_HANDLERS_H
#define QN_MEMORY_HANDLERS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/daemon/daemon.h"
#include "common/daemon/kept_memory.h"
#include "common/policy/policy_stats.h"
#include "common/region/fd_socket.h"
#include "services/memory/block_pool.h"
#include "services/memory/errands.h"
#include "services/memory/pin_book.h"
#include "services/memory/weights/loader.h"
#include "services/memory/region_table.h"
#include "services/memory/workspace.h"
#include "qn_limits.h"

/* Somebody who asked before the model was there. */
typedef struct {
    qn_peer_t peer;
    uint64_t request;
    bool want_tensors;
} memory_asker_t;

/* A clone of a running request waits for what the scheduler says is written. */
typedef struct {
    qn_call_t call;
    uint64_t query; /* head.request of the CommitQuery; 0: this place is free */
    uint64_t sequence, expires_ms;
    char owner[PIN_OWNER_MAX + 1];
} memory_clone_t;

#define MEMORY_CLONES_MAX 16

typedef struct memory_restore memory_restore_t; /* methods_saved.c */

/* What of the policies outlives the process. */
typedef struct {
    uint32_t epoch; /* of the life that writes; 0: none did */
    uint32_t unused;
    qn_policy_page_t page;
} memory_policies_t;

typedef struct {
    qn_daemon_t *daemon;
    const qn_config_values_t *config;
    region_table_t *regions; /* weights and KV too, once loaded */
    qn_fd_server_t *fd_server;
    loader_t *loader; /* NULL once loaded */
    bool loaded;
    loader_result_t model; /* when loaded; its two regions have moved to `regions` */
    qn_tensor_t *tensors;  /* as ModelDescription carries them; views of model.weights */
    memory_asker_t askers[QN_PEERS_MAX];
    size_t asker_count;
    qn_grant_item_t *grant_items;  /* QN_GRANT_ITEMS_MAX */
    qn_grant_copy_t *grant_copies; /* QN_GRANT_COPIES_MAX */
    uint32_t *grant_blocks;        /* QN_GRANT_BLOCKS_MAX; touched only as far as used */
    uint64_t progress_shown_ns;
    /* The cache, for people. */
    errands_t *errands;
    pin_book_t *pins;             /* open when loaded */
    qn_peer_t scheduler, compute; /* epoch 0: none */
    uint32_t gone_scheduler;      /* epoch of the last that is proven dead */
    memory_clone_t clones[MEMORY_CLONES_MAX];
    uint64_t queries;                                 /* CommitQuery and Settle so far */
    memory_restore_t *restores[BLOCK_POOL_FILLS_MAX]; /* that wait for Settled, or run; NULL: free */
    char policy_dirs[2 * QN_PATH_MAX];
    qn_kept_memory_t policies; /* one qn_policy_page_t */
    qn_policy_seat_t *eviction;
    uint64_t named;         /* policy_stats.h */
    workspace_t *workspace; /* over the region of that name; NULL without one */
} memory_service_t;

extern const qn_handler_t memory_handlers[];
extern const qn_method_row_t memory_methods[]; /* methods.c */

/* The model is loaded: builds the tensor list and answers everybody who waits. */
qn_err_t memory_publish_model(memory_service_t *service);
/* Opens the pin book over the pool that was just made. */
void memory_open_pins(memory_service_t *service);
/* Of CLOCK_REALTIME. */
uint64_t memory_now_ms(void);
/* A peer is there: what is asked of scheduler and compute goes to it. */
void memory_meet_peer(memory_service_t *service, qn_peer_t peer);
/* The peer is gone: nothing is answered to it any more; a scheduler's leases are released. */
void memory_forget_peer(memory_service_t *service, qn_peer_t peer);
/* Sends; a message that nobody takes is lost, and the log says so. */
void memory_send_or_log(memory_service_t *service, qn_peer_t to, qn_message_type_t type, const void *message);

/* handlers_workspace.c: makes the region and takes up its leases, as memory.workspace_bytes says. */
qn_err_t memory_open_workspace(memory_service_t *service);
void memory_handle_workspace_lease(void *state, qn_peer_t from, const void *message);
void memory_handle_workspace_release(void *state, qn_peer_t from, const void *message);
/* Ends the leases of a peer that is gone. */
void memory_forget_holder(memory_service_t *service, qn_peer_t peer);

#endif
