/* Loads the model on a thread of its own, so that the daemon's loop keeps its heartbeats: reads the directory, fills
 * the weights region, sizes and makes the KV region and the block pool. */
#ifndef QN_MEMORY_WEIGHTS_LOADER_H
#define QN_MEMORY_WEIGHTS_LOADER_H

#include <stdbool.h>
#include <stdint.h>

#include "common/config/config.h"
#include "common/err.h"
#include "common/region/region.h"
#include "services/memory/block_pool.h"
#include "services/memory/kv_size.h"
#include "services/memory/weights/model_directory.h"
#include "services/memory/region_table.h"
#include "services/memory/weights/weights.h"

/* Region ids of the two that memory itself makes. */
#define LOADER_WEIGHTS_ID 1
#define LOADER_KV_ID 2

/* Everything is owned; loader_result_fini frees what was not taken out. */
typedef struct {
    model_directory_t *directory;
    weights_t *weights;
    qn_mapping_t *weights_region, *kv_region;
    block_pool_t *pool;
    kv_size_t kv;
    uint64_t block_bytes;
    qn_dtype_t kv_dtype;
    uint64_t load_ns;           /* from start to finish */
    bool weights_kept, kv_kept; /* taken over from the service manager: nothing was read, nothing was made */
} loader_result_t;

typedef struct loader loader_t;

/* Starts the thread. Borrows `config` and `table` (region_table_make only) until loader_destroy. `kept_weights` and
 * `kept_kv`: regions from before a restart, or NULL; taken: used when they are still right, else closed. `eviction`: the
 * pool's, borrowed for its life; NULL: lru. */
qn_err_t loader_start(const qn_config_values_t *config, const region_table_t *table, qn_policy_seat_t *eviction,
                      qn_mapping_t **kept_weights, qn_mapping_t **kept_kv, loader_t **ret_loader);
/* Readable once the thread has finished; borrowed. */
int loader_fd(const loader_t *loader);
/* So far; total is 0 until it is known. Any time. */
void loader_progress(const loader_t *loader, uint64_t *ret_done_bytes, uint64_t *ret_total_bytes);
/* false: still running. true: finished; *ret_err says how (its text is this thread's qn_err_text) and, when QN_OK,
 * ret_result is the caller's from now on. Once. */
bool loader_take(loader_t *loader, qn_err_t *ret_err, loader_result_t *ret_result);
/* Cancels when it still runs, waits for the thread (one chunk's time) and frees all. */
void loader_destroy(loader_t **loader);

void loader_result_fini(loader_result_t *result);

#endif
